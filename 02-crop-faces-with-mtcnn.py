"""Find the faces in the frames and save each as an image of its own.

    python 02-crop-faces-with-mtcnn.py
    python 02-crop-faces-with-mtcnn.py --min-face-size 40
    python 02-crop-faces-with-mtcnn.py --frames-dir my-frames --faces-dir my-faces

Reads   frames/videos.csv                            the list of the videos, by 01
        frames/<video_id>/<video_id>-000042.png      frame 42 of a video
        frames/crop-rule.json                        whether 01 reduced the frames
Writes  faces/<video_id>/<video_id>-000042-00.png    its faces, best confidence first
        faces/faces.csv                              one row a crop
        faces/skipped.csv                            each frame that could not be read, and why
        faces/crop-rule.json                         how the crops were cut
Next    03-prepare-fake-real-dataset.py

The faces are those that MTCNN (Zhang et al., 2016) finds, as it comes in the mtcnn package. Its
three networks get many frames at a time here, on OpenCV, which is several times as fast: see
deepfake_detect/mtcnn.py, and benchmarks/crop_faces.py, which compares the two. Every core works in
a process of its own.

A run that was stopped goes on where it was: a video is done again only if its frames
or the settings below have changed.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path

import cv2
import filelock
import numpy as np
import pandas as pd
import pebble
from tqdm import tqdm

from deepfake_detect import cli
from deepfake_detect import faces as face_detector
from deepfake_detect import files as folders
from deepfake_detect.files import claim_folder, write_whole
from deepfake_detect.mtcnn import FaceDetector
from deepfake_detect.pool import make_processes, open_pool, read_part, share_folder

# --------------------------------------------------------------------------------------------------
# folders
FRAMES_DIR = Path("frames")  # what 01 wrote
FACES_DIR = Path("faces")  # gets one folder a video
# crops
CONFIDENCE = 0.95  # 0 to 1; a face below it is never saved (the networks give none below 0.8)
MARGIN = 0.3  # share of the box's width added left and right, and of its height above and below
SQUARE = False  # True: a square about the box, of its longer side and two margins of that side
# detector
MIN_FACE_SIZE = 20  # pixels of the frame, 12 or more; larger is faster and loses the small faces
SCALE_FACTOR = 0.709  # from one scale of the search to the next: half the area; higher finds more
THRESHOLDS = (0.6, 0.7, 0.8)  # 0 to 1; score that a box needs to pass each of the three networks
# machine
BATCH_SIZE = None  # frames that a network sees at once; None: 8
WORKERS = None  # processes; None: one a core
SCHEDULER = None  # "tcp://host:8786": the workers of that Dask cluster do it, on the same folders
PART = None  # "3/10": every tenth video from the third; a plain run, at last, writes the tables
# --------------------------------------------------------------------------------------------------

SEARCH = MIN_FACE_SIZE, BATCH_SIZE, SCALE_FACTOR, THRESHOLDS  # 06 searches in the same way
LIMITS = {  # from, to
    "confidence": (0, 1),
    "margin": (0, 10),
    "min_face_size": (12, 10_000),
    "scale_factor": (0.1, 0.99),
    "thresholds": (0, 1),
    "batch_size": (1, math.inf),
    "workers": (1, math.inf),
}
LOADED = ["deepfake_detect.mtcnn", "pandas", "tyro"]  # see make_processes
FRAMES_A_TASK = {"reduced": 32, "full": 8}  # that a worker has in memory before it reports
MORE_FRAMES = 4  # times as many on a cluster, whose scheduler hands out some 300 tasks a second
SHOWN = 10  # videos, and skipped frames, that are named at the end
FACES_COLUMNS = ["crop", "video_id", "frame", "face", "confidence", "x", "y", "width", "height"]
SKIPPED_COLUMNS = ["video_id", "frame", "reason"]


def main(
    frames_dir: Path = FRAMES_DIR,
    faces_dir: Path = FACES_DIR,
    confidence: float = CONFIDENCE,
    margin: float = MARGIN,
    square: bool = SQUARE,
    min_face_size: float = MIN_FACE_SIZE,
    scale_factor: float = SCALE_FACTOR,
    thresholds: tuple[float, float, float] = THRESHOLDS,
    batch_size: int | None = BATCH_SIZE,
    workers: int | None = WORKERS,
    scheduler: str | None = SCHEDULER,
    part: str | None = PART,
) -> pd.DataFrame | None:
    """Find the faces in the frames and save each as an image of its own.

    Args:
        frames_dir: what 01 wrote: one folder a video, and videos.csv
        faces_dir: gets one folder a video, and faces.csv
        confidence: a face below this is never saved; 0 to 1
        margin: share of the box that is added on each of its four sides
        square: cut a square about the box, of its longer side and two margins
        min_face_size: smallest face to look for, in pixels of the frame; larger is faster
        scale_factor: from one scale of the search to the next; higher finds more, and is slower
        thresholds: score that a box needs to pass each of the three networks; 0 to 1
        batch_size: frames that a network sees at once; None is 8
        workers: processes; None is one a core
        scheduler: address of a Dask cluster that sees the same folders; None is this machine
        part: 3/10 is every tenth video from the third, and no tables; None is all of them

    Returns:
        The table faces.csv; of a part, which writes none, None.

    Raises:
        FileNotFoundError: frames_dir is not there, or is not what 01 wrote
        ValueError: frames_dir has no frames, no face is in them, a setting makes no sense, or
            faces_dir holds what this script did not make
        filelock.Timeout: another run is writing to faces_dir
        OSError: faces_dir cannot be written to, such as when the disk is full
    """
    settings = dict(locals())
    check_limits(settings)
    video_ids = read_videos(frames_dir)
    rule = face_detector.CropRule(read_frame_size(frames_dir), margin, square)
    search = min_face_size, batch_size, scale_factor, thresholds
    frames_a_task = FRAMES_A_TASK[rule.frames] * (MORE_FRAMES if scheduler else 1)
    frames_a_task = max(frames_a_task, batch_size or 0)
    for name in ("frames_dir", "faces_dir", "batch_size", "workers", "scheduler", "part"):
        del settings[name]  # the crops are the same whatever these are
    settings = json.loads(json.dumps(settings | rule._asdict()))  # as faces.json gives them back

    lock = filelock.FileLock(faces_dir / ".lock", timeout=0)
    if part:
        lock, video_ids = share_folder(faces_dir, part), video_ids[read_part(part)]
    with suppress(FileNotFoundError):  # another part, begun at this moment, was faster
        claim_folder(faces_dir, "--faces-dir", Path(__file__).name)
    with lock:
        try:
            # A video is waiting unless its folder holds what its frames and these settings give.
            inputs = {name: describe_input(frames_dir / name, settings) for name in video_ids}
            done = {name for name in inputs if is_finished(faces_dir / name, inputs[name])}
            waiting = {name: inputs[name] for name in inputs if name not in done}
            if done:
                print(f"{len(done):,} of {len(inputs):,} videos were done", flush=True)
            (faces_dir / "faces.csv").unlink(missing_ok=True)  # it may name crops that now change

            # The crops of a video move from here to their own folder when all of them are there.
            with folders.open_run(faces_dir, scheduler, part) as unfinished:
                if not part:
                    delete_what_lost_its_source(faces_dir, inputs, unfinished)
                tasks = list_tasks(waiting, frames_dir.absolute(), frames_a_task)
                work = partial(write_crops, unfinished, confidence, tuple(rule), search)
                workers = workers or (os.cpu_count() or 1 if waiting and not scheduler else 1)
                start = pebble.ThreadPool if workers == 1 and not scheduler else start_searchers
                pool = open_pool(start, workers, scheduler, unfinished, frames_dir / "videos.csv")
                crashed = crop_videos(waiting, tasks, work, unfinished, faces_dir, pool)
            if part:
                print(f"part {part} is done; after all of them a plain run writes the tables")
                return None

            table, skipped = gather_results(inputs, crashed, faces_dir)
            write_whole(faces_dir / "skipped.csv", partial(skipped.to_csv, index=False))
            write_record(rule._asdict(), faces_dir / "crop-rule.json")
            if not table.empty:
                write_whole(faces_dir / "faces.csv", partial(table.to_csv, index=False))
        except OSError as error:
            raise OSError(
                f"{faces_dir}: stopped by an error ({error}); what is finished is kept, and the "
                "same command goes on once that is mended."
            ) from error
    print_counts(inputs, table, skipped, faces_dir)
    if table.empty:
        raise ValueError(
            f"{frames_dir}: not one face of confidence {confidence} was found in the frames; "
            "lower --confidence or --min-face-size, if there should be."
        )
    return table


def read_videos(frames_dir: Path) -> list[str]:
    """Read the video_ids in videos.csv that have frames.

    Raises:
        FileNotFoundError: there is no such folder, or no videos.csv in it
        ValueError: the table is not one that 01 writes, or no video in it has frames
    """
    path = frames_dir / "videos.csv"
    advice = "run 01-convert-video-to-image.py first, or name another with --frames-dir."
    if not frames_dir.is_dir():
        raise FileNotFoundError(f"{frames_dir}: there is no such folder; {advice}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such table; {advice}")
    columns = {"video_id": str, "frames": int, "status": str}
    try:
        videos = pd.read_csv(
            path, usecols=list(columns), dtype=columns, na_filter=False, index_col=False
        )
        for video_id in videos["video_id"]:
            # A video_id becomes a folder's name: refuse any that could escape the folder.
            if not re.fullmatch(r"(?!\.)[A-Za-z0-9_.-]*[A-Za-z0-9_-]", video_id):
                raise ValueError(f"{video_id[:100]!r} is no video_id")
        if videos["video_id"].duplicated().any():
            raise ValueError("a video_id stands in it twice")
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(f"{path}: it is not a table that 01 writes ({error}); {advice}") from None
    videos = videos[(videos["frames"] > 0) & (videos["status"] != "failed")]
    if videos.empty:
        raise ValueError(f"{path}: no video in it has frames; {advice}")
    return sorted(videos["video_id"])


def read_frame_size(frames_dir: Path) -> str:
    """Read whether 01 saved "reduced" or "full" frames; without its file they are reduced.

    Raises:
        ValueError: the file says neither
    """
    path = frames_dir / "crop-rule.json"
    content = read_record(path) if path.exists() else {"frames": "reduced"}
    if content.get("frames") not in ("reduced", "full"):
        raise ValueError(
            f'{path}: its "frames" is neither "reduced" nor "full"; run '
            "01-convert-video-to-image.py again."
        )
    return content["frames"]


def list_frames(folder: Path) -> dict[int, Path]:
    """List the frames in the folder of a video, by their index in the video."""
    pattern = re.compile(re.escape(folder.name) + r"-([0-9]{6,12})\.png")
    matches = (pattern.fullmatch(path.name) for path in folder.glob("*.png"))
    return dict(sorted((int(match[1]), folder / match[0]) for match in matches if match))


def list_tasks(
    video_ids: Iterable[str], frames_dir: Path, size: int
) -> Iterator[tuple[str, dict[int, Path]]]:
    """Yield parts of the videos, so many frames each: one long video keeps all workers busy."""
    for video_id in video_ids:
        frames = iter(list_frames(frames_dir / video_id).items())
        while some := dict(itertools.islice(frames, size)):
            yield video_id, some


def write_crops(
    unfinished: Path,
    confidence: float,
    rule: tuple,
    search: tuple,
    video_id: str,
    frames: dict[int, Path],
) -> tuple[list[dict], list[dict]]:
    """Find the faces in some frames of a video and write their crops into its unfinished folder.

    Returns:
        A row of faces.csv for each crop, and one of skipped.csv for each frame that is not read.

    Raises:
        OSError: the crops cannot be written
    """
    folder = unfinished / video_id
    folder.mkdir(exist_ok=True)
    images, rows, skipped = {}, [], []
    for index, path in frames.items():
        try:
            images[index] = read_frame(path)
        except (ValueError, OSError) as error:
            skipped.append({"video_id": video_id, "frame": index, "reason": str(error)})

    detector, rule = FaceDetector(*search), face_detector.CropRule(*rule)
    found = face_detector.crop_faces(list(images.values()), detector, confidence, rule)
    for index, crops in zip(images, found, strict=True):
        for number, (face, crop) in enumerate(crops):
            name = f"{frames[index].stem}-{number:02d}.png"
            _, png = cv2.imencode(".png", crop)
            (folder / name).write_bytes(png)
            score = round(face.confidence, 6)
            row = (f"{video_id}/{name}", video_id, index, number, score, *face.box)
            rows.append(dict(zip(FACES_COLUMNS, row, strict=True)))
    return rows, skipped


def read_frame(path: Path) -> np.ndarray:
    """Read a frame: BGR uint8 (height, width, 3).

    Raises:
        ValueError, OSError: it cannot be read, with the reason
    """
    if not path.is_file():  # to open a pipe would be to wait for ever
        raise ValueError("is not a plain file, or a link that leads nowhere")
    data = np.frombuffer(path.read_bytes(), np.uint8)
    try:
        frame = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except cv2.error as error:  # such as for more pixels than OpenCV takes
        raise ValueError(f"does not decode as an image ({error.err or error})") from error
    if frame is None:
        raise ValueError("does not decode as an image" if data.size else "is an empty file")
    return frame


def crop_videos(
    waiting: dict[str, dict],
    tasks: Iterable[tuple[str, dict[int, Path]]],
    work: Callable[[str, dict[int, Path]], tuple[list[dict], list[dict]]],
    unfinished: Path,
    faces_dir: Path,
    pool: AbstractContextManager,
) -> dict[str, str]:
    """Write the crops of the videos; a folder gets its name when all of its crops are there.

    Returns:
        The videos whose worker crashed, with what happened; they get no folder.

    Raises:
        OSError: the crops cannot be written
    """
    if not waiting:
        return {}
    crashed, total = {}, sum(content["files"] for content in waiting.values())
    with pool as run_tasks, tqdm(total=total, unit="frame") as bar:
        results = run_tasks(work, tasks, in_order=True)
        for video_id, parts in itertools.groupby(results, lambda result: result[0][0]):
            faces, skipped = [], []
            for (_, frames), future in parts:
                try:
                    found = future.result()
                except pebble.ProcessExpired as error:
                    reason = f"the process that searched it crashed (exit code {error.exitcode})"
                    crashed[video_id] = f"{reason}; the next run tries again"
                else:
                    faces += found[0]
                    skipped += found[1]
                bar.update(len(frames))
            if video_id not in crashed:
                content = waiting[video_id] | {"skipped": skipped, "faces": faces}
                finish_folder(unfinished / video_id, faces_dir / video_id, content)
    return crashed


# --- The tables -----------------------------------------------------------------------------------


def gather_results(
    inputs: dict[str, dict], crashed: dict[str, str], faces_dir: Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Gather the tables faces.csv and skipped.csv of all videos, by video, frame and face."""
    columns = {name: [] for name in FACES_COLUMNS}
    skipped = [{"video_id": video_id, "reason": reason} for video_id, reason in crashed.items()]
    for video_id, content in inputs.items():
        if content["files"] == 0:
            skipped.append({"video_id": video_id, "reason": "has no frames in its folder"})
        elif video_id not in crashed:
            found = read_record(faces_dir / video_id / "faces.json")
            skipped += found["skipped"]
            for name, values in columns.items():
                values += [face[name] for face in found["faces"]]
    table = pd.DataFrame(columns)
    return table, pd.DataFrame(skipped, columns=SKIPPED_COLUMNS).astype({"frame": "Int64"})


def print_counts(
    inputs: dict[str, dict], table: pd.DataFrame, skipped: pd.DataFrame, faces_dir: Path
) -> None:
    frames = sum(content["files"] for content in inputs.values())
    with_face = len(table.drop_duplicates(["video_id", "frame"]))
    faceless = sorted(set(inputs) - set(table["video_id"]))
    unreadable = skipped["frame"].notna().sum()
    lines = [("videos", f"{len(inputs):,}"), ("frames", f"{frames:,}")]
    lines += [("faces", f"{len(table):,} (faces.csv)")]
    lines += [("without face", f"{frames - unreadable - with_face:,} frames")]
    lines += [("", f"{video_id}: none of its frames has one") for video_id in faceless[:SHOWN]]
    if len(faceless) > SHOWN:
        lines += [("", f"{len(faceless) - SHOWN:,} more videos")]
    lines += [("skipped", f"{unreadable:,} frames (skipped.csv)")]
    for video_id, frame, reason in skipped.head(SHOWN).itertuples(index=False):
        name = video_id if pd.isna(frame) else f"frame {frame} of {video_id}"
        lines += [("", f"{name}: {reason}")]
    print(faces_dir)
    for label, fact in lines:
        print(f"  {label:15} {fact}")


# --- Machinery ------------------------------------------------------------------------------------


def check_limits(settings: dict) -> None:
    """Refuse numbers that make no sense.

    Raises:
        ValueError: a number is outside its LIMITS, or is none
    """
    for name, (low, high) in LIMITS.items():
        for value in np.ravel(settings[name]):
            if value is not None and not (low <= value <= high and math.isfinite(value)):
                span = f"{low} or more" if high == math.inf else f"{low} to {high}"
                raise ValueError(f"--{name.replace('_', '-')} is {value}; give {span}.")


def write_record(content: dict, path: Path) -> None:
    text = json.dumps(content, indent=2) + "\n"
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def read_record(path: Path) -> dict:
    """Read a side file; one that is not there, or is damaged, is empty."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def describe_input(folder: Path, settings: dict) -> dict:
    """Describe what the crops of a video depend on: where that is the same, they are kept."""
    stats = []
    for path in list_frames(folder).values():
        try:
            stats.append(path.stat())
        except OSError:  # a link that leads nowhere
            stats.append(path.lstat())
    return {
        "made_by": Path(__file__).name,
        "settings": settings,
        "files": len(stats),
        "bytes": sum(stat.st_size for stat in stats),
        "modified_ns": max((stat.st_mtime_ns for stat in stats), default=0),
    }


def is_finished(folder: Path, content: dict) -> bool:
    """Tell whether an earlier run made the crops in a folder from the same frames and settings.

    Raises:
        ValueError: the folder is there, and was not made by this script
    """
    if not folder.exists() and not folder.is_symlink():
        return False
    earlier = read_record(folder / "faces.json")
    if not is_ours(folder, earlier):
        raise ValueError(
            f"{folder.parent}: it holds {folder.name}, which this script did not make; name "
            "another folder with --faces-dir, or move it away."
        )
    try:
        crops = {folder.parent / face["crop"] for face in earlier["faces"]}
        whole = crops == set(folder.glob("*.png")) and isinstance(earlier["skipped"], list)
        return whole and earlier.items() >= content.items()
    except (LookupError, TypeError):  # a faces.json edited by hand
        return False


def is_ours(folder: Path, earlier: dict) -> bool:
    """Tell whether this script made a folder, also if faces.json is damaged but crops are in it."""
    if earlier or not (folder / "faces.json").is_file():
        return earlier.get("made_by") == Path(__file__).name
    crops = {path.name for path in folder.iterdir()} - {"faces.json"}
    pattern = re.escape(folder.name) + r"-\d{6,12}-\d{2,}\.png"
    return bool(crops) and all(re.fullmatch(pattern, crop) for crop in crops)


def delete_what_lost_its_source(faces_dir: Path, known: Iterable[str], unfinished: Path) -> None:
    """Delete the crops of videos that are gone; of a linked folder, the link."""
    for folder in sorted(faces_dir.iterdir()):
        earlier = read_record(folder / "faces.json")
        if earlier.get("made_by") == Path(__file__).name and folder.name not in known:
            folders.delete_folder(folder, unfinished / f".{folder.name}")


def finish_folder(made: Path, target: Path, content: dict) -> None:
    """Give the crops of a video their place; a folder that is a link to elsewhere stays one."""
    if target.is_symlink():
        write_record({"made_by": content["made_by"]}, target / "faces.json")  # ours, not finished
        for path in target.glob("*.png"):
            path.unlink()
        for path in made.glob("*.png"):
            shutil.move(path, target / path.name)
        write_record(content, target / "faces.json")
        return
    write_record(content, made / "faces.json")
    if target.exists():
        folders.delete_folder(target, made.with_name(f".{target.name}"))
    made.rename(target)


def start_searchers(workers: int) -> pebble.ProcessPool:
    """Start the worker processes, also on the workers of a cluster."""
    return make_processes(workers, LOADED, share_cores, workers)


def share_cores(workers: int) -> None:
    """Take this process's share of the cores: so many work side by side."""
    cv2.setNumThreads(max(1, (os.cpu_count() or 1) // workers))


if __name__ == "__main__":
    cli.run(main)
