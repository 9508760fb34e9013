"""Estimate time and disk space of scripts 01 and 02 for the five complete data sets.

    python -m benchmarks.plan VIDEOS_DIR
    python -m benchmarks.plan VIDEOS_DIR --videos 20 --workers 4 16 64

The benchmark runs both scripts on a few of your videos and applies their speeds to the published
sizes of the data sets. It prints a Markdown table for all frames, one per second and 32 per video,
on this machine and on several like it, and then the assumptions. About ten typical videos are
enough; the benchmark takes about as long as scripts 01 and 02 take for them. It measures processor
time, so that other load on the machine has little effect.
"""

from deepfake_detect import start

start.prepare(__name__)

import ctypes
import importlib
import os
import resource
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import cv2
import numpy as np
import pandas as pd
import tyro

from benchmarks import split_sizes
from deepfake_detect import cli
from deepfake_detect.cli import Between, Count, Positive

ROOT = Path(__file__).resolve().parents[1]
convert = importlib.import_module("01-convert-video-to-image")


@dataclass(frozen=True)
class Settings:
    """Edit a default here, or override it for one run: --videos 20."""

    videos_dir: Annotated[Path, tyro.conf.Positional]  # some of your videos, at any depth
    videos: Count = 10  # videos to measure, evenly spread over the sorted names
    frames_per_second: Positive = 4.0  # frames to search for faces in the measurement
    workers: Annotated[tuple[int, ...], Between(1)] = (10, 100)  # machines that share the work


SAMPLINGS = "all", "1 per second", "32 per video"  # frames kept
PR_SET_CHILD_SUBREAPER = 36  # option of prctl on Linux


class Clips(NamedTuple):
    """Average length and size of the videos of a data set."""

    frames: int  # per video
    fps: float
    width: int  # pixels, before the width rule
    height: int


# Frames: table in Li et al., CVPR 2020 (Celeb-DF); DFDC clips have 10 s. Sizes: the most frequent
# one, except for FaceForensics++, whose videos have 480 to 1080 lines.
DATA_SETS = {
    "FaceForensics++": Clips(frames=500, fps=25, width=1280, height=720),
    "DFD": Clips(frames=746, fps=24, width=1920, height=1080),
    "Celeb-DF": Clips(frames=359, fps=30, width=944, height=500),
    "DFDC": Clips(frames=300, fps=30, width=1920, height=1080),
    "DeepFake-TIMIT": Clips(frames=106, fps=25, width=512, height=384),
}


class Speeds(NamedTuple):
    """Cost on this machine, with all cores."""

    read: float  # seconds of 01 per pixel of a video
    write: float  # additional seconds of 01 per pixel of a saved frame
    search: float  # seconds of 02 per pixel of a saved frame
    frame_bytes: float  # bytes on disk per pixel of a saved frame
    crops: float  # crops per frame
    crop_bytes: float  # bytes on disk per crop


def choose_videos(videos_dir: Path, wanted: int, folder: Path) -> None:
    """Link some videos into folder/real/, regardless of their data set.

    Raises:
        ValueError: videos_dir has no videos
    """
    suffixes = convert.datasets.VIDEO_SUFFIXES
    found = sorted(path for path in videos_dir.rglob("*") if path.suffix.lower() in suffixes)
    if not found:
        raise ValueError(f"{videos_dir}: the folder has no videos; give a folder with videos.")
    (folder / "real").mkdir(parents=True)
    for number in sorted(convert.choose_evenly(len(found), wanted)):
        name = f"{number}{found[number].suffix}"
        (folder / "real" / name).symlink_to(found[number].resolve())


def write_tiny_video(folder: Path) -> None:
    """Write a video of one tiny frame, to measure the start time of the scripts."""
    (folder / "real").mkdir(parents=True)
    codec = cv2.VideoWriter_fourcc(*"MJPG")
    video = cv2.VideoWriter(str(folder / "real" / "0.avi"), codec, 25, (64, 48))
    video.write(np.zeros((48, 64, 3), np.uint8))
    video.release()


def run(script: str, folder: Path, *arguments: str) -> float:
    """Run a script in the folder; return processor seconds divided by the number of cores.

    Raises:
        ValueError: the script did not write a table
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, str(ROOT / script), *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    with suppress(ChildProcessError):  # include the time of processes that outlive the script
        while True:
            os.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    seconds = busy / os.cpu_count()
    output = Path(folder, arguments[-1])
    if not list(output.glob("*.csv")):
        raise ValueError(result.stderr.strip().splitlines()[-1])
    return seconds


def measure_frames(frames_dir: Path) -> tuple[int, int, int, int]:
    """Return the number, bytes and pixels of saved frames, and the pixels of their videos."""
    table = pd.read_csv(frames_dir / "videos.csv")
    files = bytes_ = pixels = 0
    for video_id in table["video_id"]:
        paths = list((frames_dir / video_id).glob("*.png"))
        files += len(paths)
        bytes_ += sum(path.stat().st_size for path in paths)
        if paths:
            height, width = cv2.imread(str(paths[0])).shape[:2]
            pixels += height * width * len(paths)
    return files, bytes_, pixels, int((table["width"] * table["height"] * table["frames"]).sum())


def measure(videos_dir: Path, videos: int, frames_per_second: float) -> tuple[Speeds, str]:
    """Run 01 and 02 on a few videos; return the speeds, and a sentence about the measurement.

    Raises:
        ValueError: a script stopped, or no frame could be read
    """
    steps = ["01-convert-video-to-image.py", "02-crop-faces-with-mtcnn.py"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        choose_videos(videos_dir, videos, folder / "videos")
        write_tiny_video(folder / "tiny")

        # Subtract the start time of each script, because it does not grow with the pixels.
        start_01 = run(steps[0], folder, "--videos-dir", "tiny", "--frames-dir", "tiny-frames")
        start_02 = run(steps[1], folder, "--frames-dir", "tiny-frames", "--faces-dir", "tiny-faces")

        # Save all frames, then some: both read the same pixels, but write different numbers.
        every = run(steps[0], folder, "--frames-dir", "every")
        rate = "--frames-per-second", str(frames_per_second)
        some = run(steps[0], folder, *rate, "--frames-dir", "some")
        frames, frame_bytes, pixels, pixels_read = measure_frames(folder / "every")
        few_frames, _, few_pixels, _ = measure_frames(folder / "some")
        if not few_frames:
            raise ValueError(f"{videos_dir}: no frame of the chosen videos can be read.")
        write = max(0.0, every - some) / max(1, pixels - few_pixels)
        read = max(0.0, every - start_01 - write * pixels) / pixels_read

        search = run(steps[1], folder, "--frames-dir", "some", "--faces-dir", "faces") - start_02
        crops = list((folder / "faces").glob("*/*.png"))
        crop_bytes = sum(path.stat().st_size for path in crops) / max(1, len(crops))
        links = len(list((folder / "videos/real").iterdir()))
    speeds = Speeds(
        read=read,
        write=write,
        search=max(0.0, search) / few_pixels,
        frame_bytes=frame_bytes / pixels,
        crops=len(crops) / few_frames,
        crop_bytes=crop_bytes,
    )
    sentence = (
        f"Measured on {os.cpu_count()} cores with {links:,} videos: 01 takes {every:.1f} s for "
        f"all {frames:,} frames, {some:.1f} s for {few_frames:,} of them, {start_01:.1f} s to "
        f"start; 02 takes {search:.1f} s for these {few_frames:,}, {start_02:.1f} s to start."
    )
    return speeds, sentence


def count_frames(clips: Clips, sampling: str) -> float:
    """Return the number of frames per video that a sampling, one of SAMPLINGS, keeps."""
    seconds = clips.frames / clips.fps
    kept = dict(zip(SAMPLINGS, (clips.frames, seconds, 32), strict=True))[sampling]
    return min(kept, clips.frames)


def plan(name: str, videos: int, sampling: str, speeds: Speeds) -> dict:
    """Return frames, bytes, and seconds on this machine, for one complete data set."""
    clips = DATA_SETS[name]
    frames = videos * count_frames(clips, sampling)
    rule = convert.resize_by_width(np.empty((clips.height, clips.width, 3), np.uint8))
    pixels = frames * rule.shape[0] * rule.shape[1]
    # "32 per video" reads a video twice: the first pass counts its frames.
    passes = 2 if sampling == SAMPLINGS[2] else 1
    pixels_read = passes * videos * clips.frames * clips.width * clips.height
    return {
        "data set": name,
        "sampling": sampling,
        "videos": videos,
        "frames": frames,
        "frames/": pixels * speeds.frame_bytes,
        "faces/": frames * speeds.crops * speeds.crop_bytes,
        "01": pixels_read * speeds.read + pixels * speeds.write,
        "02": pixels * speeds.search,
    }


def format_seconds(seconds: float) -> str:
    """Format a time in days, hours or minutes."""
    for unit, length in (("days", 86_400), ("h", 3600)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{max(1, seconds / 60):,.0f} min"


def format_bytes(size: float) -> str:
    """Format a size in GB or TB."""
    return f"{size / 1e12:,.1f} TB" if size >= 1e12 else f"{max(0.1, size / 1e9):,.1f} GB"


def make_table(speeds: Speeds, workers: tuple[int, ...]) -> pd.DataFrame:
    """Return one row per data set and sampling, and the sums, in seconds and bytes."""
    videos = split_sizes.make_catalogue(1, 0).groupby("dataset").size()
    rows = []
    for sampling in SAMPLINGS:
        of_sets = [plan(name, int(videos[name]), sampling, speeds) for name in DATA_SETS]
        sums = pd.DataFrame(of_sets).drop(columns=["data set", "sampling"]).sum()
        rows += [*of_sets, {"data set": "all five", "sampling": sampling, **sums}]
    table = pd.DataFrame(rows)
    for count in workers:
        table[f"on {count}"] = (table["01"] + table["02"]) / count
    return table


def print_table(table: pd.DataFrame, workers: tuple[int, ...]) -> None:
    """Print the table as Markdown."""
    columns = ["data set", "frames kept", "frames", "`frames/`", "`faces/`", "01", "02"]
    columns += [f"both on {count:,} such machines" for count in workers]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in table.to_dict("records"):
        cells = [row["data set"], row["sampling"], f"{row['frames']:,.0f}"]
        cells += [format_bytes(row["frames/"]), format_bytes(row["faces/"])]
        cells += [format_seconds(row[name]) for name in ("01", "02")]
        cells += [format_seconds(row[f"on {count}"]) for count in workers]
        print(f"| {' | '.join(cells)} |")


def print_assumptions(table: pd.DataFrame, workers: tuple[int, ...]) -> None:
    """Print the assumptions of the table, and the highest load on the disk."""
    sizes = (f"{name} {c.frames} of {c.width}x{c.height}" for name, c in DATA_SETS.items())
    print(f"\nAssumed: frames per video and their size are {', '.join(sizes)};")
    print("time is proportional to the number of pixels read, saved and searched; your videos have")
    print("the same codec, and the same number and size of faces, as the data sets; all machines")
    print("are like this one, never wait, and share one disk that is fast enough.")
    most = table[(table["data set"] == "all five") & (table["sampling"] == SAMPLINGS[0])].iloc[0]
    for count in workers:
        seconds = most["01"] / count
        files, rate = most["frames"] / seconds, most["frames/"] / seconds
        print(f"{count:,} machines write {files:,.0f} frames per second, {rate / 1e6:,.0f} MB/s.")


def main(settings: Settings) -> pd.DataFrame:
    """Estimate time and disk space of scripts 01 and 02 for the five complete data sets.

    Returns:
        the table, in seconds and bytes
    """
    cli.check_ranges(settings)
    if sys.platform == "linux":  # adopt processes that outlive a script
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    measured = settings.videos_dir, settings.videos, settings.frames_per_second
    speeds, sentence = measure(*measured)
    table = make_table(speeds, settings.workers)
    print_table(table, settings.workers)
    print_assumptions(table, settings.workers)
    print(sentence)
    return table


if __name__ == "__main__":
    cli.run(main)
