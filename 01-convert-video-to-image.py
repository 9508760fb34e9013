"""Save the frames of videos as images, and describe each video.

    python 01-convert-video-to-image.py
    python 01-convert-video-to-image.py --frames-per-second 1
    python 01-convert-video-to-image.py --videos-dir my-videos --frames-per-video 30

Reads   videos/                                    any mix of the data sets below, at any depth
        data-sets.toml                             what they look like; add your own there
Writes  frames/<video_id>/<video_id>-000042.png    frame 42 of the video, resized by its width
        frames/videos.csv                          one row per video: what it is, how it went
        frames/left-out.csv                        each file that was not converted, and why
        frames/crop-rule.json                      whether and how frames were resized
Next    02-crop-faces-with-mtcnn.py

FaceForensics++, Google DFD, Celeb-DF (v1, v2), DFDC (its preview and test sets too),
DeepFake-TIMIT with VidTIMIT, and plain `real/` and `fake/` folders are recognized by their own
folder and file names, or by the lists that come with them; the names of outer folders do not
matter. A folder directly below real/ or fake/ counts as one person: real/anna/1.mp4,
real/anna/2.mp4 and fake/anna/1.mp4 all show anna. A file that fits no data set is left out and
listed: no label is guessed.

Every frame is counted as it is decoded; the number that a file claims is only compared with it.
A run that was stopped continues where it was. A video is converted again if it or the settings
changed, and the frames of a video that is gone are deleted.
"""

from __future__ import annotations

from deepfake_detect import start

start.prepare(__name__)

import functools
import math
import os
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
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
from deepfake_detect.faces import WIDTH_RULE, WidthRule, resize_by_width
from deepfake_detect.pool import make_processes, open_pool, read_part, share_folder
from deepfake_detect.video import Frame, Video

Level = Annotated[int, Between(0, 9)]


@dataclass(frozen=True)
class Settings:
    """Edit a default here, or override it for one run: --frames-per-second 1."""

    # folders
    videos_dir: Path = Path("videos")  # the data sets, as unpacked
    frames_dir: Path = Path("frames")  # gets one folder per video, and videos.csv
    data_sets: Path | None = None  # what the data sets look like; None: this project's table
    without: tuple[str, ...] = ()  # data sets to leave out, such as: practice
    # sampling
    frames_per_second: Positive | None = None  # frames kept per second of video; None keeps all
    frames_per_video: Count | None = None  # frames kept per video, evenly spread; None keeps all
    # images
    width_rule: WidthRule = WIDTH_RULE  # pairs: frames narrower than this are scaled by this factor
    full_frames: bool = False  # keep the size of frames; 02 then cuts faces with all their pixels
    png_compression: Level = 1  # 0 to 9, all lossless; 3 takes 1.8 times as long, for 7 % less
    # machine
    workers: Annotated[Count | None, MACHINE] = None  # processes; None: one per core
    seconds_per_video: Annotated[Positive | None, MACHINE] = 3600  # more: it is given up
    scheduler: Annotated[str | None, MACHINE] = None  # address of a Dask cluster, tcp://host:8786
    part: Annotated[str | None, MACHINE] = None  # 3/10: every tenth video from the third, no tables


SIDE = resume.Sidecar("video.json", __file__)
PRACTICE = "practice"  # the data set of the videos that 00 makes
SHOWN = 10  # videos of each kind of trouble that are printed; the tables have all
CONVERSION = ["width", "height", "fps", "frames", "status", "reason"]
TABLES = ["crop-rule.json", "left-out.csv", "videos.csv"]


def main(settings: Settings = Settings()) -> pd.DataFrame:
    """Save the frames of videos as images, and describe each video.

    Returns:
        The table videos.csv.

    Raises:
        ValueError: there is no video to convert, a setting makes no sense, or frames_dir holds what
            this script did not make.
        filelock.Timeout: another run is writing to frames_dir.
        OSError: frames_dir cannot be written to, such as when the disk is full.
    """
    check_settings(settings)
    videos, left_out = list_videos(settings)  # by their paths; no file is decoded for it
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
                    f"part {settings.part} is done; after all parts a plain run writes the tables"
                )
                return table
            write_table(output, "left-out.csv", left_out)
            write_table(output, "videos.csv", table)
        except OSError as error:
            raise OSError(
                f"{settings.frames_dir}: stopped by an error ({error}); what is finished is kept. "
                "Fix it, and the same command goes on."
            ) from error
    print_summary(table, left_out, settings.frames_dir)
    if not table["frames"].any():
        raise ValueError(f"{settings.videos_dir}: not one frame could be read from its videos.")
    return table


def check_settings(settings: Settings) -> None:
    """Refuse settings that make no sense.

    Raises:
        ValueError: there is one.
    """
    cli.check_ranges(settings)
    rule = settings.width_rule
    if settings.frames_per_second and settings.frames_per_video:
        raise ValueError("Give --frames-per-second or --frames-per-video, not both.")
    if not rule or rule[-1][0] != math.inf or not min(map(min, rule)) > 0:
        raise ValueError("--width-rule: give pairs of numbers above 0, the last as: inf FACTOR.")


def list_videos(settings: Settings) -> tuple[pd.DataFrame, pd.DataFrame]:
    """List the videos to convert, and the files that are left out (path, reason).

    Raises:
        ValueError: there is no video to convert.
    """
    known = settings.data_sets or Path(__file__).with_name("data-sets.toml")
    videos, left_out = datasets.make_catalogue(settings.videos_dir, *datasets.read_data_sets(known))
    unwanted = videos["dataset"].isin(settings.without)
    dropped = videos.loc[unwanted, ["source", "dataset"]]
    dropped = dropped.assign(reason="left out by --without " + dropped["dataset"])
    dropped = dropped.rename(columns={"source": "path"})[["path", "reason"]]
    if unwanted.all():
        raise ValueError(f"{settings.videos_dir}: --without leaves no video to convert.")
    return videos[~unwanted], pd.concat([left_out, dropped], ignore_index=True)


def hold_folder(settings: Settings) -> AbstractContextManager:
    """Hold the output folder, alone or with other parts."""
    if settings.part:
        return share_folder(settings.frames_dir, settings.part)
    return filelock.FileLock(settings.frames_dir / ".lock", timeout=0)


def write_table(output: files.Output, name: str, table: pd.DataFrame) -> None:
    """Write a table as CSV."""
    rows = table.itertuples(index=False)
    output.write(name, lambda path: files.write_table(path, table.columns, rows))


# --- Conversion -----------------------------------------------------------------------------------


def convert_videos(videos: pd.DataFrame, output: files.Output, settings: Settings) -> pd.DataFrame:
    """Convert the videos, several side by side, except those already done.

    Returns:
        The columns of CONVERSION, one row per video, by video_id.

    Raises:
        ValueError: the folder of a video is there and was not made by this script.
        OSError: the frames cannot be written.
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

    # videos.csv may name frames that change now, so it is deleted first; the new one comes last.
    output.delete(["videos.csv"])
    with resume.open_run(frames_dir, settings.scheduler, settings.part) as unfinished:
        delete_outdated(videos, set(conversions), settings, unfinished)
        if not settings.part:
            rule = describe_frames(settings)
            output.write("crop-rule.json", lambda path: files.write_json(path, rule))

        # The longest come first, so that no process ends with one while the others are idle.
        jobs.sort(key=lambda job: (job[2]["bytes"], job[1]), reverse=True)
        conversions |= convert_side_by_side(unfinished, jobs, settings)
    return pd.DataFrame.from_dict(conversions, orient="index", columns=CONVERSION)


def delete_outdated(
    videos: pd.DataFrame, done: set[str], settings: Settings, unfinished: Path
) -> None:
    """Delete the frames of videos that are gone or will be converted again."""
    known, frames_dir = set(videos["video_id"]), settings.frames_dir
    for name in SIDE.list_own(frames_dir) - done:
        if name in known and (frames_dir / name).is_symlink():
            SIDE.forget(frames_dir / name)  # the folder that it leads to is used again
        elif name in known or not settings.part:
            files.delete_folder(frames_dir / name, unfinished / name)


def describe_settings(settings: Settings) -> dict:
    """Return the settings that the frames of one video depend on, as JSON has them."""
    made_with = cli.settings_of_result(settings) | {"width_rule": describe_rule(settings)}
    del made_with["without"]
    return made_with


def describe_frames(settings: Settings) -> dict:
    """Return what crop-rule.json says of the frames."""
    kind = "full" if settings.full_frames else "reduced"
    return {"frames": kind, "width_rule": describe_rule(settings)}


def describe_rule(settings: Settings) -> list:
    """Return the width rule as JSON has it: an infinite width is null."""
    return [[None if width == math.inf else width, by] for width, by in settings.width_rule]


def convert_video(unfinished: Path, video_path: Path, target: Path, inputs: dict) -> dict:
    """Write the frames of one video into the folder `target`, which appears when all are there.

    Until then they are below `unfinished`, in a folder of their own.

    Args:
        inputs: the fingerprint of the video, with the settings

    Returns:
        The columns of CONVERSION; they also go into target/video.json. status is ok, partial (some
        frames could not be read) or failed (none could); reason says why.

    Raises:
        OSError: the frames cannot be written. What is wrong with the video goes into the row.
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
        row |= {"status": "failed", "reason": row["reason"] or "no frame of it decodes"}
    SIDE.finish(folder, target, inputs, row)
    return row


UNREADABLE = ValueError, ArithmeticError, MemoryError, RuntimeError, cv2.error


def read_frames(video: Video, settings: dict) -> Iterator[Frame]:
    """Yield the frames to keep.

    Raises:
        ValueError: the video cannot be read; an OSError here would end the run, as those do that
            come from writing.
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
        raise ValueError(f"reading it failed: {cli.describe_error(error)}") from error


def choose_evenly(total: int, wanted: int) -> set[int]:
    """Choose the middle of each of `wanted` equal parts of `total` frames; all if fewer."""
    wanted = min(wanted, total)
    return {(2 * part + 1) * total // (2 * wanted) for part in range(wanted)}


def write_png(image: np.ndarray, path: Path, compression: int) -> None:
    """Write a frame, BGR uint8 (height, width, 3), without loss.

    Each row of pixels is stored as its difference from the one above. OpenCV by itself tries five
    kinds of difference for each row, which takes 1.6 times as long for files 2 % smaller.
    """
    settings = [cv2.IMWRITE_PNG_COMPRESSION, compression]
    settings += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
    path.write_bytes(cv2.imencode(".png", image, settings)[1])


# --- Processes ------------------------------------------------------------------------------------


def convert_side_by_side(
    unfinished: Path, jobs: list[tuple[Path, Path, dict]], settings: Settings
) -> dict[str, dict]:
    """Convert videos in processes; one that dies or hangs costs its video.

    Args:
        unfinished: the folder of the run
        jobs: what convert_video takes after `unfinished`, in the order to begin them

    Returns:
        What convert_video gives for each video, by its video_id.

    Raises:
        OSError: convert_video raised it, or the processes could not go on.
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
    """Start the processes; also on the workers of a cluster."""
    return make_processes(workers, ["av", "cv2", "pandas", "tyro"], prepare_process)


def prepare_process() -> None:
    """Prepare a process: it converts one video with one thread, and prints nothing itself."""
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def row_of(future: Future[dict], seconds_per_video: float | None) -> dict:
    """Return the row of a video; if its process died or was too slow, one that says so.

    Such a video gets no folder, so the next run tries it again.
    """
    try:
        return future.result()
    except TimeoutError:
        reason = f"given up after {seconds_per_video:,} seconds (--seconds-per-video)"
    except pebble.ProcessExpired as error:
        reason = f"the process that read it crashed (exit code {error.exitcode})"
    row = dict.fromkeys(CONVERSION, "")
    return row | {"frames": 0, "status": "failed", "reason": f"{reason}; the next run tries again"}


# --- Summary --------------------------------------------------------------------------------------


def print_summary(table: pd.DataFrame, left_out: pd.DataFrame, frames_dir: Path) -> None:
    """Print how many videos and frames there are of each kind, what went wrong and was left out."""
    facts = [("videos", f"{len(table):,} (videos.csv)"), ("frames", f"{table['frames'].sum():,}")]
    for (dataset, *kind), videos in table.groupby(["dataset", "label", "method"]):
        counts = f"{len(videos):,} videos, {videos['frames'].sum():,} frames"
        facts.append((dataset, f"{' '.join(kind)}: {counts}"))
    if practice := int((table["dataset"] == PRACTICE).sum()):
        why = "to try the scripts, not to train on; leave them out with --without practice"
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
