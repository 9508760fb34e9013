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

MTCNN (Zhang et al., 2016, "Joint Face Detection and Alignment Using Multitask Cascaded
Convolutional Networks") looks for faces with three networks: a small one proposes boxes all over
the frame at many scales, a larger one refines them, the largest decides. The networks, their
weights and the steps between them are those of the mtcnn package. Here they get many frames at a
time, and find the same faces several times as fast: benchmarks/crop_faces.py compares the two.

Every core works in a process of its own; a GPU, if TensorFlow sees one, is fed by the threads of
one process. A run that was stopped goes on where it was: a video is done again only if its frames
or the settings below have changed.
"""

from __future__ import annotations

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
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache, partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

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
from mtcnn.stages import StageONet, StagePNet, StageRNet
from mtcnn.utils.bboxes import generate_bounding_box, resize_to_square, smart_nms_from_bboxes
from mtcnn.utils.images import build_scale_pyramid
from tqdm import tqdm

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
BATCH_SIZE = None  # frames that a network sees at once; None: 8, on a GPU 32
WORKERS = None  # None: a process a core (1 GB of memory each), on a GPU 4 threads of one process
SCHEDULER = None  # "tcp://host:8786": the workers of that Dask cluster do it, on the same folders
PART = None  # "3/10": every tenth video from the third; a plain run, at last, writes the tables
# --------------------------------------------------------------------------------------------------

Box = tuple[int, int, int, int]  # x, y, width and height in whole pixels
WidthRule = tuple[tuple[float, float], ...]
WIDTH_RULE = ((300, 2.0), (1001, 1.0), (1901, 0.5), (math.inf, 0.33))  # 01's: below so many pixels
LIMITS = {  # from, to
    "confidence": (0, 1),
    "margin": (0, 10),
    "min_face_size": (12, 10_000),
    "scale_factor": (0.1, 0.99),
    "thresholds": (0, 1),
    "batch_size": (1, math.inf),
    "workers": (1, math.inf),
}
OVERLAPS = 0.5, 0.7  # of two boxes that share more, the better stays: at one scale, of all scales
CPU_BATCH_SIZE, GPU_BATCH_SIZE, GPU_THREADS = 8, 32, 4  # where the panel says None
MOST_PIXELS = 16_000_000  # searched at once: of larger frames a batch has fewer
PATCHES_A_FRAME = 32  # times the batch size: boxes that a network examines at once
FRAMES_A_TASK = {"reduced": 32, "full": 8}  # that a worker has in memory before it reports
MORE_FRAMES = 4  # times as many on a cluster, whose scheduler hands out some 300 tasks a second
UNFINISHED = ".unfinished"  # in faces/: a video's folder until it is complete
TASKS_A_WORKER = 3  # begun or waiting, so that no worker waits for work
LOADING = threading.Lock()
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
        batch_size: frames that a network sees at once; None is 8, on a GPU 32
        workers: processes, on a GPU threads; None is one a core, on a GPU 4
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
    rule = CropRule(read_frame_size(frames_dir), margin, square)
    search = min_face_size, batch_size, scale_factor, thresholds
    frames_a_task = FRAMES_A_TASK[rule.frames] * (MORE_FRAMES if scheduler else 1)
    for name in ("frames_dir", "faces_dir", "batch_size", "workers", "scheduler", "part"):
        del settings[name]  # the crops are the same whatever these are
    settings = json.loads(json.dumps(settings | rule._asdict()))  # as faces.json gives them back

    lock = filelock.FileLock(faces_dir / ".lock", timeout=0)
    if part:
        from cluster import read_part, share_folder  # beside this script

        lock, video_ids = share_folder(faces_dir, part), video_ids[read_part(part)]
    with suppress(FileNotFoundError):  # another part, begun at this moment, was faster
        claim_folder(faces_dir, "--faces-dir")
    with lock:
        try:
            # A video is waiting unless its folder holds what its frames and these settings give.
            inputs = {name: describe_input(frames_dir / name, settings) for name in video_ids}
            waiting = {
                name: content
                for name, content in inputs.items()
                if not is_finished(faces_dir / name, content)
            }
            if done := len(inputs) - len(waiting):
                print(f"{done:,} of {len(inputs):,} videos were done", flush=True)
            (faces_dir / "faces.csv").unlink(missing_ok=True)  # it may name crops that now change

            # The crops of a video move from here to their own folder when all of them are there.
            name = f"{UNFINISHED}-{uuid4().hex}" if scheduler or part else UNFINISHED
            with temporary_folder(faces_dir.absolute() / name) as unfinished:
                if not part:
                    delete_what_lost_its_source(faces_dir, inputs, unfinished)
                crashed = crop_videos(
                    waiting,
                    list_tasks(waiting, frames_dir.absolute(), max(frames_a_task, batch_size or 0)),
                    partial(write_crops, unfinished, confidence, tuple(rule), search),
                    unfinished,
                    faces_dir,
                    partial(open_pool, workers, scheduler, unfinished, frames_dir / "videos.csv"),
                )
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


class CropRule(NamedTuple):
    """How crops are cut: a model must be shown such crops as it was trained on."""

    frames: str  # "reduced" by the width rule of 01, or "full"
    margin: float  # share of the box, on each of its sides
    square: bool  # a square about the box, of its longer side


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


def crop_videos(
    waiting: dict[str, dict],
    tasks: Iterable[tuple[str, dict[int, Path]]],
    work: Callable[[str, dict[int, Path]], tuple[list[dict], list[dict]]],
    unfinished: Path,
    faces_dir: Path,
    start_workers: Callable[[], AbstractContextManager],
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
    with start_workers() as run_in_order, tqdm(total=total, unit="frame") as bar:
        results = run_in_order(work, tasks)
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

    found = crop_faces(list(images.values()), load_detector(*search), confidence, CropRule(*rule))
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


def crop_faces(
    frames: list[np.ndarray], detector: FaceDetector, confidence: float, rule: CropRule
) -> list[list[tuple[Face, np.ndarray]]]:
    """Find the faces in frames and cut them out, for training here and in the detection script.

    Args:
        frames: BGR uint8 (height, width, 3), of any sizes, as 01 saves them: reduced by the width
            rule if the crop rule's frames are "reduced", with all their pixels if they are "full"
        detector: from load_detector
        confidence: a face below this is left out; 0 to 1
        rule: anything with a CropRule's frames, margin and square

    Returns:
        For each frame its faces, best first, in pixels of the frame, with their crops, BGR uint8.
    """
    # Full frames are searched at the size of reduced ones, and only the crops have all the pixels.
    searched = [resize_by_width(frame) for frame in frames] if rule.frames == "full" else frames
    cut = []
    for frame, smaller, faces in zip(frames, searched, detector.detect(searched), strict=True):
        down, across = np.divide(frame.shape[:2], smaller.shape[:2])
        faces = [scale_face(face, across, down) for face in faces if face.confidence >= confidence]
        crops = [crop_face(frame, face.box, rule.margin, rule.square) for face in faces]
        cut.append(list(zip(faces, crops, strict=True)))
    return cut


def resize_by_width(frame: np.ndarray, width_rule: WidthRule = WIDTH_RULE) -> np.ndarray:
    """Resize an image, uint8 (height, width) or (height, width, 3), by the factor for its width.

    The rule brings faces to a similar size: below 300 pixels 2x, to 1000 1x, to 1900 0.5x, above
    0.33x, cut to whole pixels. INTER_AREA shrinks by averages, so that nothing aliases.
    """
    height, width = frame.shape[:2]
    factor = next(factor for limit, factor in width_rule if width < limit)
    if factor == 1:
        return frame
    size = max(1, int(width * factor)), max(1, int(height * factor))
    return cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA)


def scale_face(face: Face, across: float, down: float) -> Face:
    """Tell where a face is in a frame that is so many times as wide and as high."""
    x, y, width, height = face.box
    left, top = round(x * across), round(y * down)
    right, bottom = round((x + width) * across), round((y + height) * down)
    return Face((left, top, max(1, right - left), max(1, bottom - top)), face.confidence)


class Face(NamedTuple):
    """A face in a frame: its box, and its confidence, 0 to 1."""

    box: Box
    confidence: float


def crop_face(frame: np.ndarray, box: Box, margin: float, square: bool = False) -> np.ndarray:
    """Cut out the box and the margin on its four sides, or a square about it, within the frame."""
    x, y, width, height = box
    left, top = x - round(margin * width), y - round(margin * height)
    right, bottom = x + width + round(margin * width), y + height + round(margin * height)
    if square:
        side = round(max(width, height) * (1 + 2 * margin))
        left, top = round(x + (width - side) / 2), round(y + (height - side) / 2)
        right, bottom = left + side, top + side
    return frame[max(0, top) : bottom, max(0, left) : right].copy()


# --- The detector ---------------------------------------------------------------------------------


def load_detector(*settings: object) -> FaceDetector:
    """Load the detector of this process: made at its first use, the same one ever after."""
    with LOADING:  # or each thread that feeds a GPU would make one
        return make_detector(*settings)


class FaceDetector:
    """MTCNN with the networks and steps of the mtcnn package, on many frames at a time.

    It finds what `mtcnn.MTCNN().detect_faces` finds in one frame at a time, but for two faults of
    the package: with a `min_face_size` above 20 that one finds nothing at all, and nothing in a
    whole batch if it stumbles over one frame.

    Boxes are the package's, float64 (n, 6) or more columns: the index of the frame in the batch,
    left, top, right and bottom in pixels, the score.
    """

    def __init__(
        self,
        min_face_size: float = MIN_FACE_SIZE,
        batch_size: int | None = BATCH_SIZE,
        scale_factor: float = SCALE_FACTOR,
        thresholds: tuple[float, float, float] = THRESHOLDS,
    ) -> None:
        self.min_face_size, self.scale_factor = min_face_size, scale_factor
        self.thresholds = thresholds
        self.batch_size = batch_size or (GPU_BATCH_SIZE if has_gpu() else CPU_BATCH_SIZE)
        tf.config.experimental.enable_tensor_float_32_execution(False)  # it would move boxes
        self.propose = compile_network(StagePNet().model, None)
        self.refine, self.decide = StageRNet(), StageONet()
        for stage, side in ((self.refine, 24), (self.decide, 48)):
            network = compile_network(stage.model, side)
            stage._model = partial(examine_patches, network, PATCHES_A_FRAME * self.batch_size)

    def detect(self, frames: Iterable[np.ndarray]) -> list[list[Face]]:
        """Find the faces of each frame, BGR uint8 (height, width, 3) of any sizes, best first."""
        faces = []
        for (height, width, _), of_a_size in itertools.groupby(frames, np.shape):
            at_once = min(self.batch_size, max(1, MOST_PIXELS // (height * width)))
            while batch := list(itertools.islice(of_a_size, at_once)):
                faces += self.detect_in_batch(batch)
        return faces

    def detect_in_batch(self, frames: list[np.ndarray]) -> list[list[Face]]:
        """Find the faces of each frame; the frames are of one size."""
        rgb = np.stack([cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) for frame in frames])
        with tf.device("CPU:0"):  # only the CPU can resize by area; a GPU gets the resized images
            images = (tf.cast(rgb, tf.float32) - 127.5) / 128
            boxes = self.propose_boxes(images)
            if len(boxes):
                boxes = self.refine(images, boxes, threshold_rnet=self.thresholds[1])
            if len(boxes):
                boxes = self.decide(images, boxes, threshold_onet=self.thresholds[2])

        faces, (height, width) = [[] for _ in frames], rgb.shape[1:3]
        for owner, *corners, score in boxes[:, :6]:
            left, top, right, bottom = np.clip(corners, 0, [width - 1, height - 1] * 2)
            box = np.array([left, top, right - left, bottom - top]).round().astype(int)
            if box[2:].all():
                faces[int(owner)].append(Face(tuple(box.tolist()), float(score)))
        return faces

    def propose_boxes(self, images: tf.Tensor) -> np.ndarray:
        """Find what the first network takes for a face, at any scale."""
        _, height, width, _ = images.shape
        proposed = [np.empty((0, 6))]
        for scale in list_scales(height, width, self.min_face_size, self.scale_factor):
            size = np.array([height * scale, width * scale], np.int32)
            found = self.propose(tf.image.resize(images, size, "area"))
            boxes = generate_bounding_box(*found, self.thresholds[0])
            boxes[:, 1:5] /= scale
            proposed.append(smart_nms_from_bboxes(boxes, OVERLAPS[0]))
        return resize_to_square(smart_nms_from_bboxes(np.concatenate(proposed), OVERLAPS[1]))


def compile_network(network: tf.keras.Model, side: int | None) -> Callable[..., tuple]:
    """Compile a network for any number of images, and of any size where the side is None.

    A data set has hundreds of sizes, and to compile for each would take seconds.
    """

    @tf.function(input_signature=[tf.TensorSpec([None, side, side, 3], tf.float32)])
    def examine(images: tf.Tensor) -> tuple[tf.Tensor, ...]:
        with tf.device("GPU:0" if has_gpu() else "CPU:0"):
            return network(images)

    return examine


def examine_patches(network: Callable, at_once: int, patches: tf.Tensor) -> list[tf.Tensor]:
    """Give patches (n, side, side, 3) to a network, so many at once: a crowd would fill memory."""
    starts = range(0, len(patches), at_once)
    parts = [network(patches[start : start + at_once]) for start in starts]
    return [tf.concat(part, axis=0) for part in zip(*parts, strict=True)]


def list_scales(height: int, width: int, min_face_size: float, scale_factor: float) -> np.ndarray:
    """List the scales to search a frame at: faces of min_face_size become 12 pixels at the first.

    The last image measures 12 to 17 pixels, as the package's do for its min_face_size of 20 alone.
    """
    larger = 20 / min_face_size
    return larger * build_scale_pyramid(width * larger, height * larger, 20, scale_factor)


make_detector = cache(FaceDetector)


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


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all: under a temporary name beside it, then renamed."""
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    partial.unlink(missing_ok=True)  # a link planted there would be followed
    write(partial)
    partial.replace(path)


def claim_folder(folder: Path, option: str) -> None:
    """Make an output folder and mark it as this script's; refuse one that holds anything else.

    Raises:
        ValueError: the folder holds what this script did not make.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark, script = folder / ".made-by", Path(__file__).name
    if mark.is_file() and mark.read_text(encoding="utf-8", errors="replace").strip() == script:
        return
    if foreign := sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")):
        raise ValueError(
            f"{folder}: it holds {foreign[0]}, which this script did not make; name another folder "
            f"with {option}, or move it away."
        )
    write_whole(mark, lambda partial: partial.write_text(f"{script}\n"))


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


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """Make a folder that is empty at first, and gone in the end, however that comes."""
    if folder.is_symlink():
        folder.unlink()  # what the link leads to is not ours
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def delete_what_lost_its_source(faces_dir: Path, known: Iterable[str], unfinished: Path) -> None:
    """Delete the crops of videos that are gone; of a linked folder, the link."""
    for folder in sorted(faces_dir.iterdir()):
        earlier = read_record(folder / "faces.json")
        ours = earlier.get("made_by") == Path(__file__).name and folder.name not in known
        if ours or (folder.name.startswith(UNFINISHED) and folder.name != unfinished.name):
            if folder.is_symlink():
                folder.unlink()
            else:
                delete_renamed(folder, unfinished)


def delete_renamed(folder: Path, unfinished: Path) -> None:
    """Delete a folder, renamed first: an interrupted deletion never looks like a finished video."""
    doomed = folder.rename(unfinished / f".{folder.name}")
    shutil.rmtree(doomed)


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
        delete_renamed(target, made.parent)
    made.rename(target)


@contextmanager
def open_pool(
    workers: int | None,
    scheduler: str | None = None,
    run: Path | None = None,
    probe: Path | None = None,
) -> Iterator[Callable[..., Iterator[tuple[tuple, Future]]]]:
    """Start the workers: processes, or threads where one process is enough.

    With the address of a Dask `scheduler` they are the processes of its cluster, each machine of
    which must see the folder of the `run` and the file `probe`.

    Returns:
        A function of (work, tasks) that yields each task with its future, in order.
    """
    if scheduler:
        from cluster import Cluster  # beside this script

        workers, pool = Cluster.workers, Cluster(scheduler, make_searchers, run, probe)
    else:
        workers = count_workers(workers)
        pool = pebble.ThreadPool(1) if workers == 1 else make_searchers(workers)
    if isinstance(pool, pebble.ProcessPool) and hasattr(signal, "pthread_sigmask"):  # not Windows
        # What starts while Ctrl-C is blocked never gets it: the main process ends the workers.
        resource_tracker.ensure_running()  # it unblocks Ctrl-C when it starts: start it first
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        _ = pool.active  # to ask starts the processes
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def run_in_order(work: Callable, tasks: Iterable[tuple]) -> Iterator[tuple[tuple, Future]]:
        running = deque()  # few at a time, as there may be millions
        for task in tasks:
            running.append((task, pool.schedule(work, task)))
            if len(running) >= TASKS_A_WORKER * workers:
                yield running.popleft()
        yield from running

    try:
        yield run_in_order
    finally:
        pool.stop()
        pool.join()


def count_workers(workers: int | None) -> int:
    return workers or (GPU_THREADS if has_gpu() else os.cpu_count() or 1)


def make_searchers(workers: int) -> pebble.ProcessPool | pebble.ThreadPool:
    """Make a pool; unlike the standard library's, its processes outlive one that crashes."""
    if has_gpu():
        return pebble.ThreadPool(workers)
    threads, spawn = (os.cpu_count() or 1) // workers, multiprocessing.get_context("spawn")
    return pebble.ProcessPool(workers, 0, share_cores, [max(1, threads)], context=spawn)


def has_gpu() -> bool:
    return bool(tf.config.list_physical_devices("GPU"))


def share_cores(threads: int) -> None:
    """Take a share of the cores only, and end when the main process is killed."""

    def wait_for_main() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait_for_main, daemon=True).start()
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    cv2.setNumThreads(threads)


if __name__ == "__main__":
    for name in {"SIGTERM", "SIGHUP"} & set(dir(signal)):  # both end a run as Ctrl-C does
        if signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(getattr(signal, name), signal.default_int_handler)
    try:
        tyro.cli(main)
    except KeyboardInterrupt:
        print(f"{Path(__file__).name}: stopped; the same command goes on.", file=sys.stderr)
        sys.exit(130)
    except filelock.Timeout as error:
        folder = Path(error.lock_file).parent
        sys.exit(
            f"{Path(__file__).name}: {folder}: another run is writing to it; wait for its end."
        )
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
