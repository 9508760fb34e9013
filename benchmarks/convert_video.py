"""Compare the speed of script 01 with ffmpeg: same frames, same sizes, PNG, all cores.

    python -m benchmarks.convert_video VIDEOS_DIR
    python -m benchmarks.convert_video VIDEOS_DIR --rounds 3

Both save all frames, and then one frame per second. ffmpeg converts one video after another with
all cores; script 01 converts several in parallel. For one frame per second, a plain loop in one
process also runs: it reads every frame and saves the first of each second. If ffmpeg is not
installed (Debian package ffmpeg), the benchmark leaves it out.
"""

from deepfake_detect import start

start.prepare(__name__)

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import pandas as pd
import tyro

from deepfake_detect import cli, datasets
from deepfake_detect.cli import Count
from deepfake_detect.faces import resize_by_width
from deepfake_detect.video import Video

ROOT = Path(__file__).resolve().parents[1]
convert = importlib.import_module("01-convert-video-to-image")
SETTINGS = convert.Settings()


def size_after_rule(path: Path) -> tuple[int, int]:
    """Return the width and height of a video's frames after the width rule of script 01.

    Raises:
        ValueError: the video cannot be read
    """
    try:
        frame = next(frame for frame in Video(path).frames() if frame.image is not None)
    except (ValueError, OSError, StopIteration) as error:
        raise ValueError(f"{path}: the video cannot be read; move it elsewhere.") from error
    height, width = resize_by_width(frame.image).shape[:2]
    return width, height


def run_script_01(videos_dir: Path, output: Path, frames_per_second: float | None) -> None:
    """Run script 01 from the shell; its time includes the start of Python."""
    command = [sys.executable, ROOT / "01-convert-video-to-image.py", "--videos-dir", videos_dir]
    command += ["--frames-dir", output]
    if frames_per_second:
        command += ["--frames-per-second", str(frames_per_second)]
    subprocess.run(command, check=True, capture_output=True)


def run_ffmpeg(videos: dict[Path, tuple[int, int]], output: Path, per_second: float | None) -> None:
    """Convert the videos with ffmpeg: same sizes, area averaging and compression level as 01.

    Only the PNG filters differ: 01 stores each row of pixels as its difference from the row above.
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
    """Read all frames; resize and save the first frame of each second with cv2.imwrite."""
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


@dataclass(frozen=True)
class Settings:
    """Edit a default here, or override it for one run: --rounds 3."""

    videos_dir: Annotated[Path, tyro.conf.Positional]  # --videos-dir of script 01
    rounds: Count = 2  # measurements of each method, in turn; the best time counts


def main(settings: Settings) -> pd.DataFrame:
    """Time script 01, ffmpeg and the plain loop on the same videos.

    Returns:
        seconds, images and source frames per second of each method
    """
    cli.check_ranges(settings)
    videos_dir = settings.videos_dir
    found, _ = datasets.make_catalogue(
        videos_dir, *datasets.read_data_sets(ROOT / "data-sets.toml")
    )
    paths = [videos_dir / source for source in found["source"]]
    videos = {path: size_after_rule(path) for path in paths if path.is_file()}
    frames = sum(Video(path).count_frames() for path in videos)
    ways = {
        ("all frames", "01"): lambda out: run_script_01(videos_dir, out, None),
        ("all frames", "ffmpeg"): lambda out: run_ffmpeg(videos, out, None),
        ("one per second", "01"): lambda out: run_script_01(videos_dir, out, 1),
        ("one per second", "ffmpeg"): lambda out: run_ffmpeg(videos, out, 1),
        ("one per second", "plain loop"): lambda out: convert_every_frame(videos, out, 1),
    }
    if shutil.which("ffmpeg") is None:
        print("ffmpeg is not installed: only script 01 and the plain loop are measured")
        ways = {names: way for names, way in ways.items() if names[1] != "ffmpeg"}
    rows = {}
    for names in list(ways) * settings.rounds:
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
    cli.run(main)
