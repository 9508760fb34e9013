"""Find the faces in the frames and save a crop of each as a PNG image.

    python 02-crop-faces-with-mtcnn.py
    python 02-crop-faces-with-mtcnn.py --min-face-size 40
    python 02-crop-faces-with-mtcnn.py --frames-dir my-frames --faces-dir my-faces

Reads   frames/videos.csv                            list of the videos, written by 01
        frames/<video_id>/<video_id>-000042.png      frame 42 of a video
        frames/crop-rule.json                        whether and how 01 reduced the frames
Writes  faces/<video_id>/<video_id>-000042-00.png    its faces, highest confidence first
        faces/faces.csv                              one row per crop
        faces/skipped.csv                            unreadable frames, with the reason
        faces/crop-rule.json                         how the crops were cut
Next    03-prepare-fake-real-dataset.py

The detector is MTCNN (Zhang et al., 2016) with the weights of the mtcnn package. Its three networks
run on OpenCV and process many frames at a time, which is several times as fast as the package: see
deepfake_detect/mtcnn.py, and benchmarks/crop_faces.py for the comparison. One process runs per
core. A stopped run continues where it stopped: a video is processed again only if its frames or the
settings below have changed.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))  # python -P leaves it out
from deepfake_detect import start

start.prepare(__name__)  # Ctrl-C while the rest is loading ends it with a sentence

import csv
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import cv2
import filelock
import pebble
from tqdm import tqdm

from deepfake_detect import cli, files, resume
from deepfake_detect.cli import Between, Count, Share
from deepfake_detect.cropping import crop_faces
from deepfake_detect.decision import CROP_RULE, Decision, describe_decision, read_width_rule
from deepfake_detect.faces import CropRule
from deepfake_detect.mtcnn import FaceDetector
from deepfake_detect.pool import make_processes, open_pool, read_part, share_folder

Scores = Annotated[tuple[float, float, float], Between(0, 1)]


@dataclass(frozen=True)
class Settings:
    """Edit a default here, or override it for one run: --min-face-size 40."""

    # folders
    frames_dir: Path = Path("frames")  # the output folder of 01
    faces_dir: Path = Path("faces")  # output folder, with one folder per video
    # crops
    confidence: Share = 0.95  # lowest confidence of a saved face (MTCNN returns 0.8 or more)
    margin: Annotated[float, Between(0, 10)] = 0.3  # share of the face box, added on each side
    square: bool = False  # square crops; side = longer side of the box plus a margin on both sides
    # detector
    min_face_size: Annotated[float, Between(12, 10_000)] = 20  # smallest face, in frame pixels
    scale_factor: Annotated[float, Between(0.1, 0.99)] = 0.709  # between scales; higher finds more
    thresholds: Scores = (0.6, 0.7, 0.8)  # lowest score to pass P-Net, R-Net and O-Net
    # machine
    workers: Annotated[Count | None, cli.MACHINE] = None  # 0.2 GB each; None: one per core
    scheduler: Annotated[str | None, cli.MACHINE] = None  # Dask cluster: tcp://host:8786
    part: Annotated[str | None, cli.MACHINE] = None  # 3/10: every tenth video from the third


FRAMES_PER_TASK = {"reduced": 16, "full": 8}  # a worker holds the frames of a task in memory
MORE_FRAMES = 8  # factor on a cluster, whose scheduler starts about 300 tasks per second
# The modules that the processes share, see make_processes.
LOADED = [f"deepfake_detect.{name}" for name in ("mtcnn", "cli", "pool", "resume", "decision")]
MOST_FRAMES = 10**12  # per video: a file name has 12 digits for the frame
SHOWN = 10  # faceless videos and skipped frames listed at the end
FACES_COLUMNS = ["crop", "video_id", "frame", "face", "confidence", "x", "y", "width", "height"]
SKIPPED_COLUMNS = ["video_id", "frame", "reason"]
TABLES = ("skipped.csv", "crop-rule.json", "faces.csv")
SIDE = resume.Sidecar("faces.json", __file__)


def main(settings: Settings = Settings()) -> list[dict] | None:
    """Find the faces in the frames and save a crop of each as a PNG image.

    Returns:
        The rows of faces.csv; None for a part, which does not write tables.

    Raises:
        FileNotFoundError: frames_dir does not exist, or 01 did not write it
        ValueError: frames_dir has no frames, the frames have no face, a setting is out of range, or
            faces_dir holds files that this script did not make
        filelock.Timeout: another run is writing to faces_dir
        OSError: faces_dir cannot be written to, for example because the disk is full
    """
    cli.check_ranges(settings)
    frames_dir, faces_dir, part = settings.frames_dir, settings.faces_dir, settings.part
    video_ids = read_videos(frames_dir)
    rule = read_frame_rule(frames_dir)._replace(margin=settings.margin, square=settings.square)
    output = files.claim(faces_dir, "--faces-dir", __file__)
    lock = filelock.FileLock(faces_dir / ".lock", timeout=0)
    if part:
        lock, video_ids = share_folder(faces_dir, part), video_ids[read_part(part)]
    with lock:
        try:
            output.check(TABLES)
            wanted = cli.settings_of_result(settings) | describe_rule(rule)
            inputs = {
                name: resume.fingerprint(list_frames(frames_dir / name).values(), wanted)
                for name in video_ids
            }
            for name in video_ids:
                SIDE.check(faces_dir / name, "--faces-dir")
            if not part:
                output.delete(["faces.csv"])  # it may list crops that change now
            crashed = process_videos(settings, rule, inputs)
            if part:
                print(f"part {part} is done; after all parts, run without --part to write tables")
                return None
            rows, skipped = gather_results(inputs, crashed, faces_dir)
            write_tables(output, rows, skipped, rule)
        except OSError as error:
            raise OSError(
                f"{faces_dir}: stopped by an error ({error}); fix it and run the same command "
                "again: finished videos are kept."
            ) from error
    print_counts(inputs, rows, skipped, faces_dir)
    if not rows:
        raise ValueError(
            f"{frames_dir}: the frames have no face with confidence {settings.confidence} or more; "
            "lower --confidence or --min-face-size."
        )
    return rows


# --- The output of 01 -----------------------------------------------------------------------------


def read_videos(frames_dir: Path) -> list[str]:
    """Read the video_ids in videos.csv that have frames.

    Raises:
        FileNotFoundError: the folder or its videos.csv does not exist
        ValueError: 01 did not write the table, or no video in it has frames
    """
    path = frames_dir / "videos.csv"
    advice = "run 01-convert-video-to-image.py first, or set --frames-dir to its output."
    if not frames_dir.is_dir():
        raise FileNotFoundError(f"{frames_dir}: the folder does not exist; {advice}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the table does not exist; {advice}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
        frames = {row["video_id"]: int(row["frames"]) for row in rows}
        if max(frames.values(), default=0) > MOST_FRAMES:
            raise ValueError("a video has too many frames")
        for video_id in frames:
            # A video_id becomes a folder name: refuse one that could escape frames_dir.
            if not re.fullmatch(r"(?!\.)[A-Za-z0-9_.-]*[A-Za-z0-9_-]", video_id or ""):
                raise ValueError(f"{str(video_id)[:100]!r} is not a video_id")
        if len(frames) < len(rows):
            raise ValueError("two rows have the same video_id")
        failed = {row["video_id"] for row in rows if row["status"] == "failed"}
    except (ValueError, TypeError, KeyError, OSError, csv.Error) as error:
        reason = f"the column {error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{path}: 01 did not write this table ({reason}); {advice}") from None
    video_ids = sorted(name for name in frames if frames[name] > 0 and name not in failed)
    if not video_ids:
        raise ValueError(f"{path}: no video in the table has frames; {advice}")
    return video_ids


def read_frame_rule(frames_dir: Path) -> CropRule:
    """Read how 01 reduced the frames; without crop-rule.json, return the default rule.

    Raises:
        ValueError: crop-rule.json is not valid
    """
    path, rule = frames_dir / "crop-rule.json", CropRule("reduced", 0, False)
    if not path.exists():
        return rule
    try:
        files.check_plain_file(path)
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["frames"] not in ("reduced", "full"):
            raise ValueError('"frames" is neither "reduced" nor "full"')
        rule = rule._replace(frames=content["frames"])
        if "width_rule" in content:
            rule = rule._replace(width_rule=read_width_rule(content["width_rule"]))
    except (ValueError, TypeError, LookupError, OSError, RecursionError) as error:
        raise ValueError(
            f"{path}: the file is not a valid crop rule ({cli.describe_error(error)}); run "
            "01-convert-video-to-image.py again."
        ) from None
    return rule


def list_frames(folder: Path) -> dict[int, Path]:
    """Return the frame files in a video's folder, by the index of the frame in the video."""
    pattern = re.compile(re.escape(folder.name) + r"-([0-9]{6,12})\.png")
    matches = (pattern.fullmatch(path.name) for path in folder.glob("*.png"))
    return dict(sorted((int(match[1]), folder / match[0]) for match in matches if match))


# --- The crops ------------------------------------------------------------------------------------


def process_videos(settings: Settings, rule: CropRule, inputs: dict[str, dict]) -> dict[str, str]:
    """Write the crops of unfinished videos, and delete the crops of removed videos.

    Returns:
        The videos whose worker crashed, with the reason; they do not get a folder.

    Raises:
        OSError: the crops cannot be written
    """
    frames_dir, faces_dir, scheduler = settings.frames_dir, settings.faces_dir, settings.scheduler
    waiting = {
        name: content
        for name, content in inputs.items()
        if find_result(faces_dir / name, content) is None
    }
    if done := len(inputs) - len(waiting):
        print(f"{done:,} of {len(inputs):,} videos were done", flush=True)
    with resume.open_run(faces_dir, scheduler, settings.part) as unfinished:
        if not settings.part:
            for name in SIDE.list_own(faces_dir) - set(inputs):
                files.delete_folder(faces_dir / name, unfinished / name)
        if not waiting:
            return {}
        for name, content in waiting.items():
            if SIDE.find_result(faces_dir / name, content):  # its side file was edited by hand
                SIDE.forget(faces_dir / name)
        size = FRAMES_PER_TASK[rule.frames] * (MORE_FRAMES if scheduler else 1)
        tasks = list_tasks(waiting, frames_dir.absolute(), size)
        search = settings.min_face_size, None, settings.scale_factor, settings.thresholds
        work = partial(write_crops, unfinished, settings.confidence, tuple(rule), search)
        workers = settings.workers or (1 if scheduler else os.cpu_count() or 1)
        start_pool = pebble.ThreadPool if workers == 1 and not scheduler else start_searchers
        pool = open_pool(start_pool, workers, scheduler, unfinished, frames_dir / "videos.csv")
        return crop_videos(waiting, tasks, work, unfinished, faces_dir, pool)


def find_result(folder: Path, inputs: dict) -> dict | None:
    """Return the finished result for these inputs if the crops on disk match it, else None."""
    result = SIDE.find_result(folder, inputs)
    try:
        crops = {folder.parent / face["crop"] for face in result["faces"]}
        return result if crops == set(folder.glob("*.png")) else None
    except (LookupError, TypeError):  # not done, or edited by hand
        return None


def list_tasks(
    video_ids: Iterable[str], frames_dir: Path, size: int
) -> Iterator[tuple[str, dict[int, Path]]]:
    """Yield tasks of up to `size` frames, so that one long video keeps all workers busy."""
    for video_id in video_ids:
        frames = iter(list_frames(frames_dir / video_id).items())
        while some := dict(itertools.islice(frames, size)):
            yield video_id, some


def crop_videos(
    waiting: dict[str, dict],
    tasks: Iterable[tuple[str, dict[int, Path]]],
    work: Callable[[str, dict[int, Path]], tuple[list[dict], list[dict]]],
    unfinished: Path,
    faces_dir: Path,
    pool: AbstractContextManager,
) -> dict[str, str]:
    """Write the crops of the videos; rename a folder to its final name once it is complete.

    Returns:
        The videos whose worker crashed, with the reason; they do not get a folder.

    Raises:
        OSError: the crops cannot be written
    """
    crashed, total = {}, sum(content["files"] for content in waiting.values())
    with pool as run_tasks, tqdm(total=total, unit="frame") as bar:
        results = run_tasks(work, tasks, in_order=True)
        for video_id, parts in itertools.groupby(results, lambda result: result[0][0]):
            faces, skipped = [], []
            for (_, frames), future in parts:
                try:
                    found = future.result()
                except pebble.ProcessExpired as error:
                    reason = f"the worker process crashed (exit code {error.exitcode})"
                    crashed[video_id] = f"{reason}; the next run tries again"
                else:
                    faces += found[0]
                    skipped += found[1]
                bar.update(len(frames))
            if video_id not in crashed:
                result = {"skipped": skipped, "faces": faces}
                made, target = unfinished / video_id, faces_dir / video_id
                SIDE.finish(made, target, waiting[video_id], result)
    return crashed


def write_crops(
    unfinished: Path,
    confidence: float,
    rule: tuple,
    search: tuple,
    video_id: str,
    frames: dict[int, Path],
) -> tuple[list[dict], list[dict]]:
    """Find the faces in frames of one video and write their crops into its unfinished folder.

    Args:
        rule: the fields of a CropRule
        search: the arguments of a FaceDetector
        frames: the file of each frame, by its index in the video

    Returns:
        One row of faces.csv per crop, and one row of skipped.csv per unreadable frame.

    Raises:
        OSError: the crops cannot be written
    """
    folder = unfinished / video_id
    folder.mkdir(exist_ok=True)
    images, rows, skipped = {}, [], []
    for index, path in frames.items():
        try:
            images[index] = files.read_image(path)
        except (ValueError, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            skipped.append({"video_id": video_id, "frame": index, "reason": reason})

    detector = FaceDetector(*search)
    found = crop_faces(list(images.values()), detector, confidence, CropRule(*rule))
    for index, crops in zip(images, found, strict=True):
        for number, (face, crop) in enumerate(crops):
            name = f"{frames[index].stem}-{number:02d}.png"
            _, png = cv2.imencode(".png", crop)
            (folder / name).write_bytes(png)
            score = round(face.confidence, 6)
            row = (f"{video_id}/{name}", video_id, index, number, score, *face.box)
            rows.append(dict(zip(FACES_COLUMNS, row, strict=True)))
    return rows, skipped


def start_searchers(workers: int) -> pebble.ProcessPool:
    """Start the worker processes, also on the workers of a cluster."""
    return make_processes(workers, LOADED, share_cores, workers)


def share_cores(workers: int) -> None:
    """Limit OpenCV to this process's share of the cores; `workers` processes share them."""
    cv2.setNumThreads(max(1, (os.cpu_count() or 1) // workers))


# --- The tables -----------------------------------------------------------------------------------


def gather_results(
    inputs: dict[str, dict], crashed: dict[str, str], faces_dir: Path
) -> tuple[list[dict], list[dict]]:
    """Gather the rows of faces.csv and skipped.csv of all videos, by video, frame and face."""
    rows = []
    skipped = [{"video_id": video_id, "reason": reason} for video_id, reason in crashed.items()]
    for video_id, content in inputs.items():
        if content["files"] == 0:
            skipped.append({"video_id": video_id, "reason": "its folder has no frames"})
        elif video_id not in crashed:
            found = find_result(faces_dir / video_id, content) or {}  # {}: changed meanwhile
            rows += found.get("faces", [])
            skipped += found.get("skipped", [])
    return rows, skipped


def write_tables(
    output: files.Output, rows: list[dict], skipped: list[dict], rule: CropRule
) -> None:
    """Write the tables and the crop rule; write faces.csv last, and only if there are faces."""

    def tabulate(columns: list[str], content: list[dict]) -> files.Write:
        cells = [[row.get(name) for name in columns] for row in content]
        return lambda path: files.write_table(path, columns, cells)

    text = json.dumps(describe_rule(rule), indent=2) + "\n"
    output.write("skipped.csv", tabulate(SKIPPED_COLUMNS, skipped))
    output.write("crop-rule.json", lambda path: path.write_text(text, encoding="utf-8"))
    if rows:
        output.write("faces.csv", tabulate(FACES_COLUMNS, rows))


def describe_rule(rule: CropRule) -> dict:
    """Return a crop rule in the format of crop-rule.json."""
    described = describe_decision(Decision()._replace(**rule._asdict()))
    return {name: described[name] for name in CROP_RULE}


def print_counts(
    inputs: dict[str, dict], rows: list[dict], skipped: list[dict], faces_dir: Path
) -> None:
    """Print the summary of the run, and the next step."""
    frames = sum(content["files"] for content in inputs.values())
    with_face = len({(row["video_id"], row["frame"]) for row in rows})
    faceless = sorted(set(inputs) - {row["video_id"] for row in rows})
    unreadable = [row for row in skipped if "frame" in row]
    facts = {
        "videos": f"{len(inputs):,}",
        "frames": f"{frames:,}",
        "faces": f"{len(rows):,} (faces.csv)",
        "without face": f"{frames - len(unreadable) - with_face:,} frames",
        "skipped": f"{len(unreadable):,} frames (skipped.csv)",
    }
    cli.print_facts(faces_dir, facts)
    notes = [f"{video_id}: no face found" for video_id in faceless]
    for row in skipped:
        name = f"frame {row['frame']} of {row['video_id']}" if "frame" in row else row["video_id"]
        notes.append(f"{name}: {row['reason']}")
    for note in notes[:SHOWN]:
        print(cli.printable(f"  {'':15} {note}"))
    if len(notes) > SHOWN:
        print(f"  {'':15} and {len(notes) - SHOWN:,} more")
    print(f"  {'next':15} 03-prepare-fake-real-dataset.py")


if __name__ == "__main__":
    cli.run(main)
