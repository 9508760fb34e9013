"""Script 01 against ffmpeg: PNG images of the same frames at the same sizes, with all cores.

    python -m benchmarks.convert_video VIDEOS_DIR
    python -m benchmarks.convert_video VIDEOS_DIR --rounds 3

Once for every frame and once for one frame a second. ffmpeg runs on one video after another and
uses all cores for each; script 01 converts several side by side. Without ffmpeg (Debian's package
of that name) only script 01 is measured. One frame a second is also compared with reading and
converting every frame and keeping one a second, in one process.
"""

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import cv2
import pandas as pd
import tyro

from deepfake_detect import datasets
from deepfake_detect.cli import Count
from deepfake_detect.faces import resize_by_width
from deepfake_detect.video import Video

ROOT = Path(__file__).resolve().parents[1]
convert = importlib.import_module("01-convert-video-to-image")
SETTINGS = convert.Settings()


def size_after_rule(path: Path) -> tuple[int, int]:
    """Return width and height of a video's frames as script 01 saves them."""
    height, width = resize_by_width(next(Video(path).frames()).image).shape[:2]
    return width, height


def run_script_01(videos_dir: Path, output: Path, frames_per_second: float | None) -> None:
    """Run it as from the shell, start of Python included."""
    command = [sys.executable, ROOT / "01-convert-video-to-image.py", "--videos-dir", videos_dir]
    command += ["--frames-dir", output]
    if frames_per_second:
        command += ["--frames-per-second", str(frames_per_second)]
    subprocess.run(command, check=True, capture_output=True)


def run_ffmpeg(videos: dict[Path, tuple[int, int]], output: Path, per_second: float | None) -> None:
    """Make the same sizes by area averaging, with the same level of compression, as 01 does.

    01 stores each row of pixels as its difference from the one above; ffmpeg has its own way.
    """
    for number, (path, (width, height)) in enumerate(videos.items()):
        filters = f"scale={width}:{height}:flags=area"
        if per_second:
            filters = f"fps={per_second},{filters}"
        folder = output / str(number)
        folder.mkdir(parents=True)
        command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-i", path, "-vf", filters]
        command += ["-fps_mode", "passthrough", "-compression_level", SETTINGS.png_compression]
        subprocess.run([*map(str, command), str(folder / "%06d.png")], check=True)


def convert_every_frame(videos: dict[Path, tuple[int, int]], output: Path, every: float) -> None:
    """The plain loop: read and convert all frames, save the first of each second by cv2.imwrite."""
    output.mkdir()
    for number, path in enumerate(videos):
        video, due = cv2.VideoCapture(str(path)), 0.0
        decoded, frame = video.read()
        while decoded:
            if video.get(cv2.CAP_PROP_POS_MSEC) / 1000 >= due:
                image = resize_by_width(frame)
                settings = [cv2.IMWRITE_PNG_COMPRESSION, SETTINGS.png_compression]
                cv2.imwrite(str(output / f"{number}-{due:06.0f}.png"), image, settings)
                due += every
            decoded, frame = video.read()


def main(
    videos_dir: tyro.conf.Positional[Path],
    rounds: Annotated[Count, tyro.conf.arg(help="each way is timed so often, in turn")] = 2,
) -> pd.DataFrame:
    """Time script 01, ffmpeg and the plain loop on the same videos.

    Args:
        videos_dir: as script 01 takes it
        rounds: each way is timed so often, in turn; its best time counts

    Returns:
        Seconds, images and source frames a second of each way.
    """
    found, _ = datasets.make_catalogue(
        videos_dir, *datasets.read_data_sets(ROOT / "data-sets.toml")
    )
    paths = [videos_dir / source for source in found["source"]]
    videos = {path: size_after_rule(path) for path in paths if path.is_file()}
    frames = sum(Video(path).count_frames() for path in videos)
    ways = {
        ("every frame", "01"): lambda out: run_script_01(videos_dir, out, None),
        ("every frame", "ffmpeg"): lambda out: run_ffmpeg(videos, out, None),
        ("one a second", "01"): lambda out: run_script_01(videos_dir, out, 1),
        ("one a second", "ffmpeg"): lambda out: run_ffmpeg(videos, out, 1),
        ("one a second", "plain loop"): lambda out: convert_every_frame(videos, out, 1),
    }
    if shutil.which("ffmpeg") is None:
        print("ffmpeg is not installed: only script 01 and the plain loop are measured")
        ways = {names: way for names, way in ways.items() if names[1] != "ffmpeg"}
    rows = {}
    for names in list(ways) * rounds:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            ways[names](Path(folder) / "images")
            seconds = time.perf_counter() - start
            images = len(list(Path(folder).rglob("*.png")))
        if names not in rows or seconds < rows[names]["seconds"]:
            rows[names] = {"seconds": round(seconds, 1), "images": images}
            rows[names]["frames/s"] = round(frames / seconds)
    table = pd.DataFrame.from_dict(rows, orient="index")
    table["01 is faster by"] = [
        f"{seconds / rows[sampling, '01']['seconds']:.2f}x"
        for (sampling, _), seconds in table["seconds"].items()
    ]
    print(f"{len(videos)} videos, {frames:,} frames, {os.cpu_count()} cores")
    print(table.to_string())
    return table


if __name__ == "__main__":
    tyro.cli(main)
