"""Extract the frames of videos as PNG images, and describe each video.

    python 01-convert-video-to-image.py
    python 01-convert-video-to-image.py --frames-per-second 1
    python 01-convert-video-to-image.py --videos-dir my-videos --frames-per-video 30

Reads   videos/                                    any mix of the data sets below, at any depth
        data-sets.toml                             how to recognize them; add your own there
Writes  frames/<video_id>/<video_id>-000042.png    frame 42 of the video, resized by its width
        frames/videos.csv                          one row per video: its description and status
        frames/left-out.csv                        each file that was not converted, and the reason
        frames/crop-rule.json                      whether and how the frames were resized
Next    02-crop-faces-with-mtcnn.py

FaceForensics++, Google DFD, Celeb-DF (v1, v2), DFDC (its preview and test sets too),
DeepFake-TIMIT with VidTIMIT, and plain `real/` and `fake/` folders are recognized by their own
folder and file names, or by their label lists; the names of outer folders do not matter. A folder
directly below real/ or fake/ counts as one person: real/anna/1.mp4, real/anna/2.mp4 and
fake/anna/1.mp4 all show anna. A file that matches no data set is left out and listed; its label is
not guessed.

Frames are counted as they are decoded; the number in the file's header is only compared with this
count. A stopped run continues where it left off. A video is converted again if the file or the
settings changed, and the frames of a deleted video are deleted.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))  # python -P omits this folder
from deepfake_detect import start

start.prepare(__name__)

import functools
import math
import os
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated
from uuid import uuid4

import av
import cv2
import filelock
import numpy as np
import pandas as pd
import pebble
from tqdm import tqdm

from deepfake_detect import cli, datasets, files, resume
from deepfake_detect.cli import MACHINE, Between, Count, Positive
from deepfake_detect.decision import read_width_rule
from deepfake_detect.faces import WIDTH_RULE, WidthRule, resize_by_width
from deepfake_detect.pool import make_processes, open_pool, read_part, share_folder
from deepfake_detect.shipped import find_shipped
from deepfake_detect.video import Frame, Video

Level = Annotated[int, Between(0, 9)]


@dataclass(frozen=True)
class Settings:
    """Edit a default here, or override it for one run: --frames-per-second 1."""

    # folders
    videos_dir: Path = Path("videos")  # the unpacked data sets
    frames_dir: Path = Path("frames")  # output: one folder per video, and videos.csv
    data_sets: Path | None = None  # table of data sets; None: data-sets.toml of this project
    without: tuple[str, ...] = ()  # names of data sets to leave out, such as practice
    # sampling
    frames_per_second: Positive | None = None  # frames to keep per second; None keeps all
    frames_per_video: Count | None = None  # frames to keep per video, evenly spaced; None keeps all
    # images
    width_rule: WidthRule = WIDTH_RULE  # (width, factor): narrower frames are scaled by factor
    full_frames: bool = False  # do not resize frames; 02 then crops faces at full resolution
    png_compression: Level = 1  # 0 to 9, all lossless; 3 takes 1.8 times as long, 7 % smaller
    # machine
    workers: Annotated[Count | None, MACHINE] = None  # processes; None: one per core
    seconds_per_video: Annotated[Positive | None, MACHINE] = 3600  # time limit per video
    scheduler: Annotated[str | None, MACHINE] = None  # address of a Dask scheduler, tcp://host:8786
    part: Annotated[str | None, MACHINE] = None  # 3/10: every tenth video from the third, no tables


SIDE = resume.Sidecar("video.json", __file__)
PRACTICE = "practice"  # the data set of the videos that 00 makes
SHOWN = 10  # videos printed per kind of problem; the tables list all
CONVERSION = ["width", "height", "fps", "frames", "status", "reason"]
TABLES = ["crop-rule.json", "left-out.csv", "videos.csv"]


def main(settings: Settings = Settings()) -> pd.DataFrame:
    """Extract the frames of videos as PNG images, and describe each video.

    Returns:
        The table videos.csv.

    Raises:
        ValueError: there is no video to convert, a setting is invalid, or frames_dir holds files
            that this script did not create
        filelock.Timeout: another run is using frames_dir
        OSError: frames_dir cannot be written to, for example because the disk is full
    """
    check_settings(settings)
    videos, left_out = list_videos(settings)  # by path only; this decodes nothing
    if settings.part:
        videos = videos.iloc[read_part(settings.part)]
    output = files.claim(settings.frames_dir, "--frames-dir", __file__)
    output.check(TABLES)
    with hold_folder(settings):
        try:
            conversions = convert_videos(videos, output, settings)
            table = videos.join(conversions, on="video_id")
            if settings.part:
                print(
                    f"part {settings.part} is done; when all parts are done, run without --part to "
                    "write the tables"
                )
                return table
            write_table(output, "left-out.csv", left_out)
            write_table(output, "videos.csv", table)
        except OSError as error:
            raise OSError(
                f"{settings.frames_dir}: stopped by an error ({error}); finished videos are kept. "
                "Fix it, then run the same command to continue."
            ) from error
    print_summary(table, left_out, settings.frames_dir)
    if not table["frames"].any():
        raise ValueError(f"{settings.videos_dir}: no frame could be read from its videos.")
    return table


def check_settings(settings: Settings) -> None:
    """Check the settings.

    Raises:
        ValueError: a setting is invalid
    """
    cli.check_ranges(settings)
    if settings.frames_per_second and settings.frames_per_video:
        raise ValueError("Give --frames-per-second or --frames-per-video, not both.")
    try:
        read_width_rule(settings.width_rule)
    except ValueError as error:
        raise ValueError(f"--width-rule: {error}.") from error


def list_videos(settings: Settings) -> tuple[pd.DataFrame, pd.DataFrame]:
    """List the videos to convert, and the files to leave out (path, reason).

    Raises:
        ValueError: there is no video to convert
    """
    known = settings.data_sets or find_shipped("data-sets.toml")
    videos, left_out = datasets.make_catalogue(settings.videos_dir, *datasets.read_data_sets(known))
    unwanted = videos["dataset"].isin(settings.without)
    dropped = videos.loc[unwanted, ["source", "dataset"]]
    dropped = dropped.assign(reason="left out by --without " + dropped["dataset"])
    dropped = dropped.rename(columns={"source": "path"})[["path", "reason"]]
    if unwanted.all():
        raise ValueError(f"{settings.videos_dir}: --without leaves no video to convert.")
    return videos[~unwanted], pd.concat([left_out, dropped], ignore_index=True)


def hold_folder(settings: Settings) -> AbstractContextManager:
    """Lock the output folder, exclusively or shared with other parts."""
    if settings.part:
        return share_folder(settings.frames_dir, settings.part)
    return filelock.FileLock(settings.frames_dir / ".lock", timeout=0)


def write_table(output: files.Output, name: str, table: pd.DataFrame) -> None:
    """Write a table as CSV."""
    rows = table.itertuples(index=False)
    output.write(name, lambda path: files.write_table(path, table.columns, rows))


# --- Conversion -----------------------------------------------------------------------------------


def convert_videos(videos: pd.DataFrame, output: files.Output, settings: Settings) -> pd.DataFrame:
    """Convert the videos that are not done yet, several in parallel.

    Returns:
        The columns of CONVERSION, one row per video, indexed by video_id.

    Raises:
        ValueError: a video's output folder exists and was not created by this script
        OSError: the frames cannot be written
    """
    frames_dir, made_with = settings.frames_dir, describe_settings(settings)
    conversions, jobs = {}, []
    for video_id, source in zip(videos["video_id"], videos["source"], strict=True):
        path, target = settings.videos_dir / source, frames_dir / video_id
        SIDE.check(target, "--frames-dir")
        inputs = resume.fingerprint(datasets.list_files(path), made_with, sampled=True)
        if row := SIDE.find_result(target, inputs):
            conversions[video_id] = row
        else:
            jobs.append((path.absolute(), target.absolute(), inputs))
    if conversions:
        print(f"{len(conversions):,} of {len(videos):,} videos were done", flush=True)

    # Delete videos.csv first, as its frames may change now; the new one is written last.
    output.delete(["videos.csv"])
    with resume.open_run(frames_dir, settings.scheduler, settings.part) as unfinished:
        delete_outdated(videos, set(conversions), settings, unfinished)
        if not settings.part:
            rule = describe_frames(settings)
            output.write("crop-rule.json", lambda path: files.write_json(path, rule))

        # Start with the largest files, so that no process is left with one while others are idle.
        jobs.sort(key=lambda job: (job[2]["bytes"], job[1]), reverse=True)
        conversions |= convert_side_by_side(unfinished, jobs, settings)
    ids = pd.Index(list(conversions), dtype=str)  # a part may be empty
    return pd.DataFrame(list(conversions.values()), index=ids, columns=CONVERSION)


def delete_outdated(
    videos: pd.DataFrame, done: set[str], settings: Settings, unfinished: Path
) -> None:
    """Delete the frames of videos that were deleted or must be converted again."""
    known, frames_dir = set(videos["video_id"]), settings.frames_dir
    for name in SIDE.list_own(frames_dir) - done:
        if name in known and (frames_dir / name).is_symlink():
            SIDE.forget(frames_dir / name)  # the target of the link is reused
        elif name in known or not settings.part:
            files.delete_folder(frames_dir / name, unfinished / name)


def describe_settings(settings: Settings) -> dict:
    """Return the settings that affect the frames of a video, as JSON types."""
    made_with = cli.settings_of_result(settings) | {"width_rule": describe_rule(settings)}
    del made_with["without"]
    return made_with


def describe_frames(settings: Settings) -> dict:
    """Return the content of crop-rule.json."""
    kind = "full" if settings.full_frames else "reduced"
    return {"frames": kind, "width_rule": describe_rule(settings)}


def describe_rule(settings: Settings) -> list:
    """Return the width rule as JSON types, with null for an infinite width."""
    return [[None if width == math.inf else width, by] for width, by in settings.width_rule]


def convert_video(unfinished: Path, video_path: Path, target: Path, inputs: dict) -> dict:
    """Write the frames of one video into the folder `target`, atomically.

    The frames are first written to a temporary folder below `unfinished`.

    Args:
        unfinished: folder for unfinished work
        video_path: the video file, or a folder of stills
        target: output folder of the video
        inputs: fingerprint of the video and the settings, see resume.fingerprint

    Returns:
        The columns of CONVERSION, also written to target/video.json. status is ok, partial (some
        frames could not be read) or failed (no frame could); reason explains it. A problem with
        the video is reported here and not raised.

    Raises:
        OSError: the frames cannot be written
    """
    settings = inputs["settings"]
    rule = tuple((width or math.inf, factor) for width, factor in settings["width_rule"])
    folder = unfinished / f"{target.name}-{uuid4().hex}"  # a lost worker may have left one
    folder.mkdir()
    row = {"width": "", "height": "", "fps": "", "frames": 0, "status": "ok", "reason": ""}
    try:
        video = Video(video_path)
        for frame in read_frames(video, settings):
            if frame.image is None:
                continue
            if row["frames"] == 0:
                row |= {"width": frame.image.shape[1], "height": frame.image.shape[0]}
            image = frame.image if settings["full_frames"] else resize_by_width(frame.image, rule)
            path = folder / f"{target.name}-{frame.index:06d}.png"
            write_png(image, path, settings["png_compression"])
            row["frames"] += 1
        if video.seen_frames > 1:
            row["fps"] = round((video.seen_frames - 1) / video.seen_seconds, 3)
        if missing := video.missing():
            row |= {"status": "partial", "reason": missing}
    except UNREADABLE as error:
        row |= {"status": "partial", "reason": cli.describe_error(error)}
    if row["frames"] == 0:
        row |= {"status": "failed", "reason": row["reason"] or "no frame decodes"}
    SIDE.finish(folder, target, inputs, row)
    return row


UNREADABLE = ValueError, ArithmeticError, MemoryError, RuntimeError, cv2.error


def read_frames(video: Video, settings: dict) -> Iterator[Frame]:
    """Yield the frames to keep.

    Raises:
        ValueError: the video cannot be read. Not an OSError, because an OSError from writing the
            frames ends the run.
    """
    try:
        if settings["frames_per_video"]:
            total = video.count_frames()
            yield from video.sampled(indices=choose_evenly(total, settings["frames_per_video"]))
        elif settings["frames_per_second"]:
            yield from video.sampled(settings["frames_per_second"])
        else:
            yield from video.frames()
    except (OSError, av.FFmpegError) as error:
        raise ValueError(f"reading failed: {cli.describe_error(error)}") from error


def choose_evenly(total: int, wanted: int) -> set[int]:
    """Return the middle frame of each of `wanted` equal parts of a video, or all if fewer."""
    wanted = min(wanted, total)
    return {(2 * part + 1) * total // (2 * wanted) for part in range(wanted)}


def write_png(image: np.ndarray, path: Path, compression: int) -> None:
    """Write a frame, BGR uint8 (height, width, 3), as a lossless PNG.

    Each row is stored as its difference from the row above (the filter "up"). By default OpenCV
    tries five filters per row, which takes 1.6 times as long for files that are 2 % smaller.
    """
    settings = [cv2.IMWRITE_PNG_COMPRESSION, compression]
    settings += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
    path.write_bytes(cv2.imencode(".png", image, settings)[1])


# --- Processes ------------------------------------------------------------------------------------


def convert_side_by_side(
    unfinished: Path, jobs: list[tuple[Path, Path, dict]], settings: Settings
) -> dict[str, dict]:
    """Convert videos in several processes; a process that dies or hangs loses only its video.

    Args:
        unfinished: the folder of the run
        jobs: the arguments of convert_video after `unfinished`, in the order to start them
        settings: the settings of the run

    Returns:
        The result of convert_video for each video, by video_id.

    Raises:
        OSError: convert_video raised it, or the worker processes failed
    """
    if not jobs:
        return {}
    rows, work, probe = {}, functools.partial(convert_video, unfinished), jobs[0][0]
    workers = min(settings.workers or os.cpu_count() or 1, len(jobs))
    pool = open_pool(start_pool, workers, settings.scheduler, unfinished, probe)
    with pool as run_tasks, tqdm(total=len(jobs), unit="video") as bar:
        for (_, target, _), future in run_tasks(work, jobs, settings.seconds_per_video):
            rows[target.name] = row_of(future, settings.seconds_per_video)
            bar.update()
    return rows


def start_pool(workers: int) -> pebble.ProcessPool:
    """Start the worker processes, on this machine or on a worker of a cluster."""
    return make_processes(workers, ["av", "cv2", "pandas", "tyro"], prepare_process)


def prepare_process() -> None:
    """Prepare a worker process: one thread per video, and OpenCV prints nothing."""
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def row_of(future: Future[dict], seconds_per_video: float | None) -> dict:
    """Return the row of a video, or a row with the reason if its process died or timed out.

    Such a video has no output folder, so the next run tries it again.
    """
    try:
        return future.result()
    except TimeoutError:
        reason = f"skipped after {seconds_per_video:,} seconds (--seconds-per-video)"
    except pebble.ProcessExpired as error:
        reason = f"the worker process crashed (exit code {error.exitcode})"
    row = dict.fromkeys(CONVERSION, "")
    return row | {"frames": 0, "status": "failed", "reason": f"{reason}; the next run tries again"}


# --- Summary --------------------------------------------------------------------------------------


def print_summary(table: pd.DataFrame, left_out: pd.DataFrame, frames_dir: Path) -> None:
    """Print the number of videos and frames of each kind, the problems and the files left out."""
    facts = [("videos", f"{len(table):,} (videos.csv)"), ("frames", f"{table['frames'].sum():,}")]
    for (dataset, *kind), videos in table.groupby(["dataset", "label", "method"]):
        counts = f"{len(videos):,} videos, {videos['frames'].sum():,} frames"
        facts.append((dataset, f"{' '.join(kind)}: {counts}"))
    if practice := int((table["dataset"] == PRACTICE).sum()):
        why = "for trying the scripts, not for training; leave them out with --without practice"
        facts.append(("note", f"{practice:,} are practice videos: {why}"))
    for status in ("partial", "failed"):
        broken = table[table["status"] == status]
        named = zip(broken["source"], broken["reason"], strict=True)
        facts += [(status, f"{source}: {reason}") for source, reason in list(named)[:SHOWN]]
        if len(broken) > SHOWN:
            facts.append((status, f"{len(broken) - SHOWN:,} more, see videos.csv"))
    for reason, paths in left_out.groupby("reason")["path"]:
        more = f" and {len(paths) - 3:,} more" if len(paths) > 3 else ""
        facts.append(("left out", f"{reason}: {', '.join(paths[:3])}{more}"))
    cli.print_facts(frames_dir, facts, "python 02-crop-faces-with-mtcnn.py")


if __name__ == "__main__":
    cli.run(main)
