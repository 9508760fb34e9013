"""Plan a large run: time and disk of scripts 01 and 02 for each of the five data sets in full.

    python -m benchmarks.plan VIDEOS_DIR
    python -m benchmarks.plan VIDEOS_DIR --videos 20 --workers 4 16 64

Both scripts are run on a few of your videos, and their speeds carried over to the data sets'
published sizes. It prints a Markdown table for every frame, one a second and 32 a video, on this
machine and on so many like it, and what it assumes. Some ten videos of what you mean to convert
will do; the run takes about as long as script 01 and 02 take for them. What is measured is the
processor's time, so that other work on the machine moves the plan little.
"""

import ctypes
import importlib
import os
import resource
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import tyro

from benchmarks import split_sizes

ROOT = Path(__file__).resolve().parents[1]
convert = importlib.import_module("01-convert-video-to-image")

# --------------------------------------------------------------------------------------------------
VIDEOS = 10  # of the folder are measured, evenly spread over their names
FRAMES_PER_SECOND = 4  # of these videos are searched for faces
WORKERS = (10, 100)  # machines like this one that share the work
# --------------------------------------------------------------------------------------------------

PR_SET_CHILD_SUBREAPER = 36  # of Linux' prctl


class Clips(NamedTuple):
    """What the videos of a data set are like, on average."""

    frames: int  # a video
    fps: float
    width: int  # pixels, before the width rule
    height: int


# Frames after the table in Li et al., CVPR 2020 (Celeb-DF); DFDC's clips have 10 s. Sizes are the
# most frequent ones, but for FaceForensics++, whose videos have 480 to 1080 lines.
DATA_SETS = {
    "FaceForensics++": Clips(frames=500, fps=25, width=1280, height=720),
    "DFD": Clips(frames=746, fps=24, width=1920, height=1080),
    "Celeb-DF": Clips(frames=359, fps=30, width=944, height=500),
    "DFDC": Clips(frames=300, fps=30, width=1920, height=1080),
    "DeepFake-TIMIT": Clips(frames=106, fps=25, width=512, height=384),
}


class Speeds(NamedTuple):
    """What a pixel costs on this machine, all of its cores at work on nothing else."""

    read: float  # seconds that 01 takes for a pixel of a video
    write: float  # seconds more for a pixel of a frame that it saves
    search: float  # seconds that 02 takes for a pixel of such a frame
    frame_bytes: float  # on the disk, for a pixel of a frame
    crops: float  # that a frame has
    crop_bytes: float  # on the disk, of a crop


def choose_videos(videos_dir: Path, wanted: int, folder: Path) -> None:
    """Link some videos into folder/real/, whatever data set they belong to.

    Raises:
        ValueError: there is no video
    """
    suffixes = convert.datasets.VIDEO_SUFFIXES
    found = sorted(path for path in videos_dir.rglob("*") if path.suffix.lower() in suffixes)
    if not found:
        raise ValueError(f"{videos_dir}: it holds no video; name a folder that does.")
    (folder / "real").mkdir(parents=True)
    for number in sorted(convert.choose_evenly(len(found), wanted)):
        name = f"{number}{found[number].suffix}"
        (folder / "real" / name).symlink_to(found[number].resolve())


def write_tiny_video(folder: Path) -> None:
    """Write a video that takes no time, so that what is left is the time of a start."""
    (folder / "real").mkdir(parents=True)
    codec = cv2.VideoWriter_fourcc(*"MJPG")
    video = cv2.VideoWriter(str(folder / "real" / "0.avi"), codec, 25, (64, 48))
    video.write(np.zeros((48, 64, 3), np.uint8))
    video.release()


def run(script: str, folder: Path, *arguments: str) -> float:
    """Run a script in the folder as from the shell, and return its seconds if all cores did it.

    Raises:
        RuntimeError: it wrote no table
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, str(ROOT / script), *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    with suppress(ChildProcessError):  # the time of what outlives the script counts once it ends
        while True:
            os.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    seconds = busy / os.cpu_count()
    output = Path(folder, arguments[-1])
    if not list(output.glob("*.csv")):
        raise RuntimeError(result.stderr.strip().splitlines()[-1])
    return seconds


def measure_frames(frames_dir: Path) -> tuple[int, int, int, int]:
    """Count the frames in a folder that 01 wrote, their bytes, their pixels and their videos'."""
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
    """Run 01 and 02 on a few videos; returns their speeds, and a sentence on what was measured."""
    steps = ["01-convert-video-to-image.py", "02-crop-faces-with-mtcnn.py"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        choose_videos(videos_dir, videos, folder / "videos")
        write_tiny_video(folder / "tiny")

        # What a start of each takes is no cost of a pixel, so it is taken off.
        start_01 = run(steps[0], folder, "--videos-dir", "tiny", "--frames-dir", "tiny-frames")
        start_02 = run(steps[1], folder, "--frames-dir", "tiny-frames", "--faces-dir", "tiny-faces")

        # Every frame and some of them: the same reading, a different number of frames written.
        every = run(steps[0], folder, "--frames-dir", "every")
        rate = "--frames-per-second", str(frames_per_second)
        some = run(steps[0], folder, *rate, "--frames-dir", "some")
        frames, frame_bytes, pixels, pixels_read = measure_frames(folder / "every")
        few_frames, _, few_pixels, _ = measure_frames(folder / "some")
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
    """The frames of a video that a sampling keeps: every, 1 a second or 32 a video."""
    seconds = clips.frames / clips.fps
    kept = {"every": clips.frames, "1 a second": seconds, "32 a video": 32}[sampling]
    return min(kept, clips.frames)


def plan(name: str, videos: int, sampling: str, speeds: Speeds) -> dict:
    """The frames, bytes and seconds on this machine of one data set in full."""
    clips = DATA_SETS[name]
    frames = videos * count_frames(clips, sampling)
    rule = convert.resize_by_width(np.empty((clips.height, clips.width, 3), np.uint8))
    pixels = frames * rule.shape[0] * rule.shape[1]
    # 32 a video takes two passes over a video: one counts its frames.
    passes = 2 if sampling == "32 a video" else 1
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


def say_seconds(seconds: float) -> str:
    """A time in the unit that a reader would choose."""
    for unit, length in (("days", 86_400), ("h", 3600)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{max(1, seconds / 60):,.0f} min"


def say_bytes(size: float) -> str:
    """Say a size in GB or TB."""
    return f"{size / 1e12:,.1f} TB" if size >= 1e12 else f"{max(0.1, size / 1e9):,.1f} GB"


def make_table(speeds: Speeds, workers: tuple[int, ...]) -> pd.DataFrame:
    """One row a data set and sampling, with the sum of all five; seconds and bytes as numbers."""
    videos = split_sizes.make_catalogue(1, 0).groupby("dataset").size()
    rows = []
    for sampling in ("every", "1 a second", "32 a video"):
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
        cells += [say_bytes(row["frames/"]), say_bytes(row["faces/"])]
        cells += [say_seconds(row[name]) for name in ("01", "02")]
        cells += [say_seconds(row[f"on {count}"]) for count in workers]
        print(f"| {' | '.join(cells)} |")


def print_assumptions(table: pd.DataFrame, workers: tuple[int, ...]) -> None:
    """Print what the table takes for granted, and what it asks of the disk at the most."""
    sizes = (f"{name} {c.frames} of {c.width}x{c.height}" for name, c in DATA_SETS.items())
    print(f"\nAssumed: frames a video and their size are {', '.join(sizes)};")
    print("time goes with the number of pixels, read by 01, saved by 01 and searched by 02; your")
    print("videos' codec, and their number and size of faces, are those of the data sets; the")
    print("machines are like this one, wait for nothing, and share one disk that keeps up.")
    most = table[(table["data set"] == "all five") & (table["sampling"] == "every")].iloc[0]
    for count in workers:
        seconds = most["01"] / count
        files, rate = most["frames"] / seconds, most["frames/"] / seconds
        print(f"{count:,} machines write {files:,.0f} frames a second, {rate / 1e6:,.0f} MB/s.")


def main(
    videos_dir: tyro.conf.Positional[Path],
    videos: int = VIDEOS,
    frames_per_second: float = FRAMES_PER_SECOND,
    workers: tuple[int, ...] = WORKERS,
) -> pd.DataFrame:
    """Plan time and disk of scripts 01 and 02 for each of the five data sets in full.

    Args:
        videos_dir: some videos of yours, at any depth
        videos: so many of them are measured
        frames_per_second: so many frames of a second are searched for faces in the measurement
        workers: machines like this one that share the work

    Returns:
        The table, in seconds and bytes.
    """
    if sys.platform == "linux":  # the processes that a script leaves to their end become ours
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    speeds, sentence = measure(videos_dir, videos, frames_per_second)
    table = make_table(speeds, workers)
    print_table(table, workers)
    print_assumptions(table, workers)
    print(sentence)
    return table


if __name__ == "__main__":
    tyro.cli(main)
