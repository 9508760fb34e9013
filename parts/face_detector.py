"""Find faces with MTCNN, in many frames at a time, and cut them out; 02 and 06 use this.

MTCNN (Zhang et al., 2016, "Joint Face Detection and Alignment Using Multitask Cascaded
Convolutional Networks") looks for faces with three networks: a small one proposes boxes all over
the frame at many scales, a larger one refines them, the largest decides. The networks, their
weights and the steps between them are those of the mtcnn package. Here they get many frames at a
time, and find the same faces several times as fast: benchmarks/crop_faces.py compares the two.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # twice as fast; not every CPU has it on
os.environ.setdefault("TF_CUDNN_USE_AUTOTUNE", "0")  # batches differ too much to tune for each

import cv2
import numpy as np
import tensorflow as tf
from mtcnn.stages import StageONet, StagePNet, StageRNet
from mtcnn.utils.bboxes import generate_bounding_box, resize_to_square, smart_nms_from_bboxes
from mtcnn.utils.images import build_scale_pyramid

from parts.width_rule import resize_by_width

Box = tuple[int, int, int, int]  # x, y, width and height in whole pixels
OVERLAPS = 0.5, 0.7  # of two boxes that share more, the better stays: at one scale, of all scales
CPU_BATCH_SIZE, GPU_BATCH_SIZE, GPU_THREADS = 8, 32, 4  # where nothing else is asked for
MOST_PIXELS = 16_000_000  # searched at once: of larger frames a batch has fewer
PATCHES_A_FRAME = 32  # times the batch size: boxes that a network examines at once
LOADING = threading.Lock()


class Face(NamedTuple):
    """A face in a frame: its box, and its confidence, 0 to 1."""

    box: Box
    confidence: float


class CropRule(NamedTuple):
    """How crops are cut: a model must be shown such crops as it was trained on."""

    frames: str  # "reduced" by the width rule of 01, or "full"
    margin: float  # share of the box, on each of its sides
    square: bool  # a square about the box, of its longer side


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


def scale_face(face: Face, across: float, down: float) -> Face:
    """Tell where a face is in a frame that is so many times as wide and as high."""
    x, y, width, height = face.box
    left, top = round(x * across), round(y * down)
    right, bottom = round((x + width) * across), round((y + height) * down)
    return Face((left, top, max(1, right - left), max(1, bottom - top)), face.confidence)


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
        min_face_size: float,
        batch_size: int | None,
        scale_factor: float,
        thresholds: tuple[float, float, float],
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


def has_gpu() -> bool:
    return bool(tf.config.list_physical_devices("GPU"))


def count_workers(workers: int | None) -> int:
    """Tell how many detectors work side by side: a core each, or threads that feed one GPU."""
    return workers or (GPU_THREADS if has_gpu() else os.cpu_count() or 1)


def share_cores(workers: int) -> None:
    """Take this process's share of the cores: so many work side by side."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    cv2.setNumThreads(threads)


make_detector = cache(FaceDetector)
