"""Find the faces in the frames and save each as an image of its own.

    python 02-crop-faces-with-mtcnn.py
    python 02-crop-faces-with-mtcnn.py --min-face-size 40
    python 02-crop-faces-with-mtcnn.py --frames-dir my-frames --faces-dir my-faces

Reads   frames/videos.csv                            the list of the videos, by 01
        frames/<video_id>/<video_id>-000042.png      frame 42 of a video
Writes  faces/<video_id>/<video_id>-000042-00.png    its faces, best confidence first
        faces/faces.csv                              one row a crop
        faces/skipped.csv                            each frame that could not be read, and why
Next    03-prepare-fake-real-dataset.py

MTCNN (Zhang et al., 2016, "Joint Face Detection and Alignment Using Multitask Cascaded
Convolutional Networks") looks for faces with three networks: a small one proposes boxes all over
the frame at many scales, a larger one refines them, the largest decides. The networks and their
weights are those of the mtcnn package. The steps between them are written for many frames at a
time, and find the same faces several times as fast: benchmarks/crop_faces.py compares the two.

Every core works in a process of its own; a GPU, if TensorFlow sees one, is fed by the threads of
one process. A run that was stopped goes on where it was: a video is done again only if its frames
or the settings below have changed.
"""

import itertools
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing import resource_tracker
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # twice as fast; not every CPU has it on
os.environ.setdefault("TF_CUDNN_USE_AUTOTUNE", "0")  # batches differ too much to tune for each

import cv2
import filelock
import numpy as np
import pandas as pd
import pebble
import tensorflow as tf
import tyro
from mtcnn import MTCNN
from tqdm import tqdm

# --------------------------------------------------------------------------------------------------
# folders
FRAMES_DIR = Path("frames")  # what 01 wrote
FACES_DIR = Path("faces")  # gets one folder a video
# detector
CONFIDENCE = 0.95  # 0 to 1; a face below it is never saved (the networks give none below 0.8)
MARGIN = 0.3  # share of the box's width added left and right, and of its height above and below
MIN_FACE_SIZE = 20  # pixels of the frame, 12 or more; larger is faster and loses the small faces
# machine
BATCH_SIZE = None  # frames that a network sees at once; None: 8, on a GPU 32
WORKERS = None  # None: a process a core (1 GB of memory each), on a GPU 4 threads of one process
# --------------------------------------------------------------------------------------------------

MOST_PIXELS = 16_000_000  # searched at once: of larger frames a batch has fewer
FRAMES_A_TASK = 32  # that a worker reads, searches and crops before it reports
FACES_COLUMNS = ["crop", "video_id", "frame", "face", "confidence", "x", "y", "width", "height"]
SKIPPED_COLUMNS = ["video_id", "frame", "reason"]


# --- The detector ---------------------------------------------------------------------------------


class Face(NamedTuple):
    """A face in a frame: its box (x, y, width, height) in whole pixels, and 0 to 1."""

    box: tuple[int, int, int, int]
    confidence: float


class Boxes(NamedTuple):
    """Places in a batch of frames that may be faces."""

    owners: np.ndarray  # int [n]: which frame of the batch
    corners: np.ndarray  # float64 [n, 4]: left, top, right, bottom in pixels of the frame
    scores: np.ndarray  # float64 [n]: 0 to 1

    def pick(self, chosen: np.ndarray) -> "Boxes":
        return Boxes(*(part[chosen] for part in self))


class FaceDetector:
    """MTCNN with the networks of the mtcnn package, on many frames at a time.

    It finds what `mtcnn.MTCNN().detect_faces` finds in one frame at a time, but for two faults of
    the package: with a `min_face_size` above 20 that one finds nothing at all, and nothing in a
    whole batch if it stumbles over one frame.
    """

    CELL, STRIDE = 12, 2  # pixels that the proposal network looks at, and moves on by
    SCALE_FACTOR = 0.709  # from one image of the pyramid to the next: half the area
    PROPOSED, REFINED, FOUND = 0.6, 0.7, 0.8  # score that a box needs to pass each network

    def __init__(
        self, min_face_size: float = MIN_FACE_SIZE, batch_size: int | None = BATCH_SIZE
    ) -> None:
        self.min_face_size = min_face_size
        self.batch_size = batch_size or (32 if tf.config.list_physical_devices("GPU") else 8)
        tf.config.experimental.enable_tensor_float_32_execution(False)  # it would move boxes

        proposal, refinement, output = (stage.model for stage in MTCNN().stages)
        # Open sizes: a data set has hundreds of them, and compiling for each would take seconds.
        images = tf.TensorSpec([None, None, None, 3], tf.float32)
        size = tf.TensorSpec([2], tf.int32)
        corners, owners = tf.TensorSpec([None, 4], tf.float32), tf.TensorSpec([None], tf.int32)

        @tf.function(input_signature=[images, size])
        def propose(images: tf.Tensor, size: tf.Tensor) -> tuple[tf.Tensor, ...]:
            with tf.device("CPU:0"):
                scaled = tf.image.resize(images, size, "area")
            offsets, scores = proposal(scaled)
            cells = tf.where(scores[..., 1] > self.PROPOSED)
            return cells, tf.gather_nd(offsets, cells), tf.gather_nd(scores[..., 1], cells)

        def examine_with(network: tf.keras.Model, side: int) -> Callable[..., tuple]:
            @tf.function(input_signature=[images, corners, owners])
            def examine(images: tf.Tensor, corners: tf.Tensor, owners: tf.Tensor) -> tuple:
                with tf.device("CPU:0"):
                    patches = tf.image.crop_and_resize(images, corners, owners, [side, side])
                offsets, *_landmarks, scores = network(patches)
                return offsets, scores[:, 1]

            return examine

        self._propose = propose
        self._refine = examine_with(refinement, side=24)
        self._decide = examine_with(output, side=48)

    def detect(self, frames: Iterable[np.ndarray]) -> list[list[Face]]:
        """The faces of each frame (uint8 [height, width, 3], BGR, of any sizes), best first."""
        frames = list(frames)
        faces: list[list[Face]] = [[] for _ in frames]
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, frame in enumerate(frames):
            by_size.setdefault(frame.shape, []).append(index)
        for (height, width, _), indices in by_size.items():
            at_once = min(self.batch_size, max(1, MOST_PIXELS // (height * width)))
            for start in range(0, len(indices), at_once):
                batch = indices[start : start + at_once]
                for owner, face in self._detect_in_batch([frames[index] for index in batch]):
                    faces[batch[owner]].append(face)
        return faces

    def _detect_in_batch(self, frames: list[np.ndarray]) -> Iterator[tuple[int, Face]]:
        """Yield (index of the frame, face) for frames of one size."""
        rgb = np.stack([cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) for frame in frames])
        with tf.device("CPU:0"):  # It alone can resize by area; a GPU gets the smaller images.
            images = (tf.cast(rgb, tf.float32) - 127.5) / 128

        boxes = self._propose_boxes(images)
        boxes = self._examine_boxes(boxes, images, self._refine, self.REFINED)
        boxes = self._examine_boxes(boxes, images, self._decide, self.FOUND, of_smaller=True)

        _, height, width, _ = rgb.shape
        for owner, corners, score in zip(*boxes, strict=True):
            left, top, right, bottom = corners.clip(0, [width - 1, height - 1] * 2)
            box = np.array([left, top, right - left, bottom - top]).round().astype(int)
            if box[2:].all():
                yield owner, Face(tuple(box.tolist()), float(score))

    def pyramid(self, height: int, width: int) -> list[float]:
        """The scales to search a frame at: faces of min_face_size become 12 pixels at the first.

        The last image measures 12 to 17 pixels, as the package's do for its min_face_size of 20.
        """
        shorter_side = min(height, width) * 20 / self.min_face_size
        levels = round(math.log(self.CELL / shorter_side, self.SCALE_FACTOR) - 1)
        first = self.CELL / self.min_face_size
        return [first * self.SCALE_FACTOR**level for level in range(levels)]

    def _propose_boxes(self, images: tf.Tensor) -> Boxes:
        """Whatever the proposal network takes for a face, at any scale."""
        _, height, width, _ = images.shape
        proposed = [Boxes(np.empty(0, int), np.empty((0, 4)), np.empty(0))]
        for scale in self.pyramid(height, width):
            size = np.array([height * scale, width * scale], np.int32)
            cells, offsets, scores = (part.numpy() for part in self._propose(images, size))
            cells, owners = cells[:, [2, 1, 2, 1]] * self.STRIDE, cells[:, 0]
            corners = cells + [1, 1, self.CELL, self.CELL] + offsets.astype(float) * (self.CELL - 1)
            boxes = Boxes(owners, corners / scale, scores.astype(float))
            proposed.append(without_overlaps(boxes, 0.5))
        boxes = Boxes(*(np.concatenate(parts) for parts in zip(*proposed, strict=True)))
        return without_overlaps(boxes, 0.7)

    def _examine_boxes(
        self,
        boxes: Boxes,
        images: tf.Tensor,
        network: Callable[..., tuple],
        threshold: float,
        of_smaller: bool = False,
    ) -> Boxes:
        """The boxes that a network confirms, with its scores, and moved and sized by it."""
        _, height, width, _ = images.shape
        corners = square(boxes.corners)
        shares = (corners / [width, height, width, height])[:, [1, 0, 3, 2]].astype(np.float32)
        offsets, scores = np.empty(corners.shape, np.float32), np.empty(len(corners))
        patches_at_once = 32 * self.batch_size
        for start in range(0, len(corners), patches_at_once):
            some = slice(start, start + patches_at_once)
            owners = boxes.owners[some].astype(np.int32)
            offsets[some], scores[some] = network(images, shares[some], owners)
        sizes = np.tile(corners[:, 2:] - corners[:, :2] + 1, 2).astype(np.float32)
        boxes = Boxes(boxes.owners, corners + offsets * sizes, scores)
        return without_overlaps(boxes.pick(scores > threshold), 0.7, of_smaller)


def square(corners: np.ndarray) -> np.ndarray:
    """The boxes (float [n, 4]) with their shorter side made as long as the other, both ways."""
    sizes = corners[:, 2:] - corners[:, :2]
    side = sizes.max(axis=1, keepdims=True)
    left_top = corners[:, :2] + sizes * 0.5 - side * 0.5
    return np.hstack([left_top, left_top + side])


def without_overlaps(boxes: Boxes, threshold: float, of_smaller: bool = False) -> Boxes:
    """The boxes that no better one of their frame overlaps, each frame's best first.

    The overlap is a share of the area that two boxes cover, or with `of_smaller` of the smaller
    one. A better box counts even if it is left out itself, as in the mtcnn package and unlike in
    the usual non-maximum suppression.
    """
    kept = [np.empty(0, int)]
    for owner in np.unique(boxes.owners):
        order = np.flatnonzero(boxes.owners == owner)
        order = order[np.argsort(boxes.scores[order])[::-1]]
        left, top, right, bottom = boxes.corners[order].T
        width = np.minimum(right[:, None], right) - np.maximum(left[:, None], left)
        height = np.minimum(bottom[:, None], bottom) - np.maximum(top[:, None], top)
        shared = width.clip(0) * height.clip(0)
        area = (right - left) * (bottom - top)
        whole = np.minimum(area[:, None], area) if of_smaller else area[:, None] + area - shared
        by_a_better_one = np.triu(shared > threshold * whole, k=1).any(axis=0)
        kept.append(order[~by_a_better_one])
    return boxes.pick(np.concatenate(kept))


@cache
def load_detector(min_face_size: float, batch_size: int | None) -> FaceDetector:
    """The detector of this process: made at its first use, the same one ever after."""
    return FaceDetector(min_face_size, batch_size)


# --- One frame ------------------------------------------------------------------------------------


def read_frame(path: Path) -> np.ndarray:
    """The frame as uint8 [height, width, 3], BGR.

    Raises: ValueError or OSError, with the reason, if it is none.
    """
    data = np.frombuffer(path.read_bytes(), np.uint8)
    try:
        frame = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except cv2.error as error:  # such as for more pixels than OpenCV takes
        raise ValueError(f"does not decode as an image ({error.err or error})") from error
    if frame is None:
        raise ValueError("does not decode as an image" if data.size else "is an empty file")
    return frame


def crop_face(frame: np.ndarray, box: tuple[int, int, int, int], margin: float) -> np.ndarray:
    """The part of the frame in the box and the margin on its four sides, cut at the edges."""
    x, y, width, height = box
    beside, above = round(margin * width), round(margin * height)
    left, top = max(0, x - beside), max(0, y - above)
    return frame[top : y + height + above, left : x + width + beside].copy()


def write_crops(
    video_id: str,
    frames: dict[int, Path],
    faces_dir: Path,
    confidence: float,
    margin: float,
    min_face_size: float,
    batch_size: int | None,
) -> dict:
    """Find the faces in some frames of a video and write their crops into its partial folder.

    Returns: the video_id, the number of frames, a row of faces.csv for each crop, and a row of
    skipped.csv for each frame that cannot be read.
    Raises: OSError if the crops cannot be written.
    """
    folder = partial_folder(faces_dir / video_id)
    folder.mkdir(parents=True, exist_ok=True)
    images, rows, skipped = {}, [], []
    for index, path in frames.items():
        try:
            images[index] = read_frame(path)
        except (ValueError, OSError) as error:
            skipped.append({"video_id": video_id, "frame": index, "reason": str(error)})
    found = load_detector(min_face_size, batch_size).detect(images.values())
    for (index, image), faces in zip(images.items(), found, strict=True):
        for number, face in enumerate(face for face in faces if face.confidence >= confidence):
            name = f"{frames[index].stem}-{number:02d}.png"
            _, png = cv2.imencode(".png", crop_face(image, face.box, margin))
            (folder / name).write_bytes(png)
            crop, score = f"{video_id}/{name}", round(face.confidence, 6)
            row = (crop, video_id, index, number, score, *face.box)
            rows.append(dict(zip(FACES_COLUMNS, row, strict=True)))
    found = {"faces": rows, "skipped": skipped, "crashes": []}
    return {"video_id": video_id, "frames": len(frames)} | found


# --- One video ------------------------------------------------------------------------------------


def read_videos(frames_dir: Path) -> list[str]:
    """The video_ids in videos.csv that have frames.

    Raises: FileNotFoundError or ValueError if it is not a folder that 01 made, or has no frames.
    """
    table_path = frames_dir / "videos.csv"
    advice = "run 01-convert-video-to-image.py first, or give --frames-dir."
    if not frames_dir.is_dir():
        raise FileNotFoundError(f"There is no folder {frames_dir}: {advice}")
    if not table_path.is_file():
        raise FileNotFoundError(f"There is no videos.csv in {frames_dir}: {advice}")
    columns = {"video_id": str, "frames": int, "status": str}
    try:
        videos = pd.read_csv(
            table_path, usecols=list(columns), dtype=columns, na_filter=False, index_col=False
        )
        for video_id in videos["video_id"]:
            # It names a folder, so that a table made elsewhere could lead out of frames/ with it.
            if not re.fullmatch(r"[A-Za-z0-9_.-]*[A-Za-z0-9_-]", video_id):
                raise ValueError(f"{video_id[:100]!r} is no video_id")
        if videos["video_id"].duplicated().any():
            raise ValueError("a video_id stands in it twice")
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(
            f"{table_path} is not a table that 01 writes ({error}): {advice}"
        ) from None
    videos = videos[(videos["frames"] > 0) & (videos["status"] != "failed")]
    if videos.empty:
        raise ValueError(f"No video in {table_path} has frames: {advice}")
    return sorted(videos["video_id"])


def list_frames(folder: Path) -> dict[int, Path]:
    """The frames in the folder of a video, by their index in the video."""
    pattern = re.compile(re.escape(folder.name) + r"-([0-9]{6,12})\.png")
    matches = (pattern.fullmatch(path.name) for path in folder.glob("*.png"))
    return dict(sorted((int(match[1]), folder / match[0]) for match in matches if match))


def partial_folder(target: Path) -> Path:
    """Where the files of a video are until all of them are there, or that are to be deleted."""
    return target.with_name(target.name.removesuffix(".partial") + ".partial")


def make_checkpoint(files: list[Path], settings: dict) -> dict:
    """What a result depends on: if none of it has changed, it is not made again."""
    stats = [file.stat() for file in files]
    return {
        "settings": settings,
        "files": len(stats),
        "bytes": sum(stat.st_size for stat in stats),
        "modified_ns": max((stat.st_mtime_ns for stat in stats), default=0),
    }


def is_finished(target: Path, checkpoint: dict) -> bool:
    """Whether an earlier run made the crops in the folder from the same frames and settings.

    Raises: ValueError if the folder is there and was not made by this script.
    """
    if not target.exists():
        return False
    if not (target / "faces.json").is_file():
        raise ValueError(
            f"{target} was not made by this script (it has no faces.json): move it away, or "
            "choose another folder with --faces-dir."
        )
    try:
        earlier = json.loads((target / "faces.json").read_text(encoding="utf-8"))
        crops = {target.parent / face["crop"] for face in earlier["faces"]}
        whole = crops == set(target.glob("*.png")) and isinstance(earlier["skipped"], list)
        return whole and earlier.items() >= checkpoint.items()
    except (ValueError, LookupError, TypeError, AttributeError):  # a faces.json edited by hand
        return False


def write_json(content: dict, path: Path) -> None:
    """Write a JSON file whole or not at all: to a temporary name beside it, then renamed."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV table whole or not at all: to a temporary name beside it, then renamed."""
    partial = path.with_name(path.name + ".partial")
    table.to_csv(partial, index=False)
    partial.replace(path)


# --- The run --------------------------------------------------------------------------------------


def lock_folder(folder: Path) -> filelock.AcquireReturnProxy:
    """Hold a folder for this run alone, until the `with` ends or the process dies, however it dies.

    Raises:
        ValueError: another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return filelock.FileLock(folder / ".lock").acquire(timeout=0)
    except filelock.Timeout as error:
        raise ValueError(
            f"{folder}: another run is writing to it; wait for its end, or name another folder."
        ) from error


def end_with_main() -> None:
    """Let a worker end when the main process was killed; it would wait for work for ever."""

    def wait_for_main() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait_for_main, daemon=True).start()


@contextmanager
def hidden_from_ctrl_c() -> Iterator[None]:
    """The processes that are started in here do not get Ctrl-C: the main process ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # as on Windows
        yield
        return
    resource_tracker.ensure_running()  # Started by the first process, it would undo the next line.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def share_cores(threads: int) -> None:
    """Leave each process its share of the cores: TensorFlow would take all of them."""
    end_with_main()
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    cv2.setNumThreads(threads)


def open_pool(workers: int | None) -> tuple[pebble.ProcessPool | pebble.ThreadPool, int]:
    """The workers, and their number: processes, or threads where one process is enough.

    Unlike the standard library's, pebble's pool of processes outlives one that crashes.
    """
    cores = os.cpu_count() or 1
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    workers = workers or (4 if on_gpu else cores)
    if on_gpu or workers == 1:
        return pebble.ThreadPool(workers), workers
    threads = max(1, cores // workers)
    spawn = multiprocessing.get_context("spawn")
    pool = pebble.ProcessPool(workers, initializer=share_cores, initargs=(threads,), context=spawn)
    with hidden_from_ctrl_c():
        _ = pool.active  # To ask starts the processes.
    return pool, workers


def run_in_order(
    pool: pebble.ProcessPool | pebble.ThreadPool,
    function: Callable[..., dict],
    tasks: Iterable[tuple[str, dict[int, Path]]],
    at_once: int,
) -> Iterator[dict]:
    """Like pool.map, but begins no more tasks than keep the workers busy: there may be millions."""
    running = deque()
    for task in tasks:
        running.append((task, pool.schedule(function, task)))
        if len(running) >= at_once:
            yield result_of(*running.popleft())
    while running:
        yield result_of(*running.popleft())


def result_of(task: tuple[str, dict[int, Path]], future: Future[dict]) -> dict:
    """What write_crops returned; if its process died, the reason why the video is skipped."""
    try:
        return future.result()
    except pebble.ProcessExpired as error:
        reason = f"the process that searched it crashed (exit code {error.exitcode})"
        crash = {"video_id": task[0], "reason": f"{reason}; the next run tries again"}
        nothing = {"faces": [], "skipped": [], "crashes": [crash]}
        return {"video_id": task[0], "frames": len(task[1])} | nothing


def delete_what_lost_its_source(faces_dir: Path, video_ids: Iterable[str]) -> None:
    """Delete the crops of videos that are gone, and what a stopped run left half done."""
    known = set(video_ids)
    for folder in [path for path in faces_dir.iterdir() if path.is_dir()]:
        ours = folder.suffix == ".partial" or (folder / "faces.json").is_file()
        if ours and folder.name not in known:
            shutil.rmtree(folder)


def crop_videos(
    checkpoints: dict[str, dict],
    frames_dir: Path,
    faces_dir: Path,
    settings: dict,
    batch_size: int | None,
    workers: int | None,
) -> list[dict]:
    """Write the crops of the videos; a folder gets its name when all of its crops are there.

    The workers share the frames of each video, so a long one alone keeps all of them busy.

    Returns: a row of skipped.csv for each video whose worker crashed; it gets no folder.
    Raises: OSError if the crops cannot be written.
    """
    if not checkpoints:
        return []

    def tasks() -> Iterator[tuple[str, dict[int, Path]]]:
        for video_id in checkpoints:
            frames = iter(list_frames(frames_dir / video_id).items())
            while some := dict(itertools.islice(frames, max(FRAMES_A_TASK, batch_size or 0))):
                yield video_id, some

    crashed = []
    pool, workers = open_pool(workers)
    if isinstance(pool, pebble.ThreadPool):
        load_detector(settings["min_face_size"], batch_size)  # or each thread would begin with one
    function = partial(write_crops, faces_dir=faces_dir, batch_size=batch_size, **settings)
    total = sum(checkpoint["files"] for checkpoint in checkpoints.values())
    with tqdm(total=total, unit="frame") as bar:
        try:
            results = run_in_order(pool, function, tasks(), 3 * workers)
            for video_id, parts in itertools.groupby(results, itemgetter("video_id")):
                found, crashes = {"skipped": [], "faces": []}, []
                for part in parts:
                    found["skipped"] += part["skipped"]
                    found["faces"] += part["faces"]
                    crashes += part["crashes"]
                    bar.update(part["frames"])
                folder = partial_folder(faces_dir / video_id)
                if crashes:
                    crashed.append(crashes[0])
                    shutil.rmtree(folder, ignore_errors=True)
                    continue
                write_json(checkpoints[video_id] | found, folder / "faces.json")
                shutil.rmtree(faces_dir / video_id, ignore_errors=True)
                folder.rename(faces_dir / video_id)
        finally:
            pool.stop()
            pool.join()
    return crashed


def gather_results(
    checkpoints: dict[str, dict], crashed: list[dict], faces_dir: Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables faces.csv and skipped.csv of all videos, by video, frame and face."""
    columns, skipped = {name: [] for name in FACES_COLUMNS}, list(crashed)
    without_folder = {row["video_id"] for row in crashed}
    for video_id, checkpoint in checkpoints.items():
        if checkpoint["files"] == 0:
            skipped.append({"video_id": video_id, "reason": "has no frames in its folder"})
        elif video_id not in without_folder:
            found = json.loads((faces_dir / video_id / "faces.json").read_text(encoding="utf-8"))
            skipped += found["skipped"]
            for name, values in columns.items():
                values += [face[name] for face in found["faces"]]
    table = pd.DataFrame(columns)
    return table, pd.DataFrame(skipped, columns=SKIPPED_COLUMNS).astype({"frame": "Int64"})


def print_counts(
    checkpoints: dict[str, dict], table: pd.DataFrame, skipped: pd.DataFrame, faces_dir: Path
) -> None:
    frames = sum(checkpoint["files"] for checkpoint in checkpoints.values())
    with_face = len(table.drop_duplicates(["video_id", "frame"]))
    faceless = sorted(set(checkpoints) - set(table["video_id"]))
    unreadable = skipped["frame"].notna().sum()
    print(f"videos       {len(checkpoints):,}")
    print(f"frames       {frames:,}")
    print(f"faces        {len(table):,} ({faces_dir / 'faces.csv'})")
    print(f"without face {frames - unreadable - with_face:,} frames")
    for video_id in faceless[:10]:
        print(f"without face {video_id}: none of its frames has one")
    if len(faceless) > 10:
        print(f"without face {len(faceless) - 10:,} more videos")
    print(f"skipped      {unreadable:,} frames ({faces_dir / 'skipped.csv'})")
    for video_id, frame, reason in skipped.head(10).itertuples(index=False):
        name = video_id if pd.isna(frame) else f"frame {frame} of {video_id}"
        print(f"skipped      {name}: {reason}")


def main(
    frames_dir: Path = FRAMES_DIR,
    faces_dir: Path = FACES_DIR,
    confidence: float = CONFIDENCE,
    margin: float = MARGIN,
    min_face_size: float = MIN_FACE_SIZE,
    batch_size: int | None = BATCH_SIZE,
    workers: int | None = WORKERS,
) -> pd.DataFrame:
    """Find the faces in the frames and save each as an image of its own.

    Args:
        frames_dir: What 01 wrote: one folder a video, and videos.csv.
        faces_dir: Gets one folder a video, and faces.csv.
        confidence: A face below this is never saved; 0 to 1.
        margin: Share of the box that is added on each of its four sides.
        min_face_size: Smallest face to look for, in pixels of the frame; larger is faster.
        batch_size: Frames that a network sees at once; None is 8, on a GPU 32.
        workers: Processes, on a GPU threads; None is one a core, on a GPU 4.

    Returns:
        The table faces.csv.

    Raises:
        FileNotFoundError: frames_dir is not there, or is not what 01 wrote.
        ValueError: It has no frames, no face is in them, a setting makes no sense, or another run
            is writing to faces_dir.
        OSError: faces_dir cannot be written to, such as when the disk is full.
    """
    if not 0 <= confidence <= 1 or margin < 0 or min_face_size < FaceDetector.CELL:
        raise ValueError(
            "--confidence must be 0 to 1, --margin 0 or more, --min-face-size 12 or more."
        )
    if any(number is not None and number < 1 for number in (batch_size, workers)):
        raise ValueError("--batch-size and --workers must be 1 or more.")
    settings = {"confidence": confidence, "margin": margin, "min_face_size": min_face_size}

    video_ids = read_videos(frames_dir)
    with lock_folder(faces_dir):
        try:
            checkpoints = {
                video_id: make_checkpoint(
                    list(list_frames(frames_dir / video_id).values()), settings
                )
                for video_id in video_ids
            }
            unfinished = {
                video_id: checkpoint
                for video_id, checkpoint in checkpoints.items()
                if not is_finished(faces_dir / video_id, checkpoint)
            }
            if done := len(checkpoints) - len(unfinished):
                print(f"{done:,} of {len(checkpoints):,} videos were done", flush=True)
            (faces_dir / "faces.csv").unlink(missing_ok=True)  # it may name crops that now change
            delete_what_lost_its_source(faces_dir, video_ids)
            crashed = crop_videos(unfinished, frames_dir, faces_dir, settings, batch_size, workers)
            table, skipped = gather_results(checkpoints, crashed, faces_dir)
            write_table(skipped, faces_dir / "skipped.csv")
            if not table.empty:
                write_table(table, faces_dir / "faces.csv")
        except OSError as error:
            raise OSError(
                f"{faces_dir}: stopped by an error ({error}); what is finished is kept, and the "
                "same command goes on once that is mended."
            ) from error
    print_counts(checkpoints, table, skipped, faces_dir)
    if table.empty:
        raise ValueError(
            f"Not one face of confidence {confidence} was found in the frames in {frames_dir}: "
            "lower --confidence or --min-face-size, if there should be."
        )
    return table


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except KeyboardInterrupt:
        print(f"{Path(__file__).name}: stopped; run it again to go on.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
