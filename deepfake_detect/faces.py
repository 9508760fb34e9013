"""Find faces with MTCNN and cut them out; 02 and 06 use this.

TensorFlow, which takes seconds to load, is loaded where faces are searched for, and not before: the
main process of 02 leaves that to others.
"""

from __future__ import annotations

import math
import os
import threading
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

if TYPE_CHECKING:
    from deepfake_detect.mtcnn import FaceDetector

os.environ.setdefault("TF_CUDNN_USE_AUTOTUNE", "0")  # batches differ too much to tune for each

Box = tuple[int, int, int, int]  # x, y, width and height in whole pixels
LOADING = threading.Lock()
WidthRule = tuple[tuple[float, float], ...]
WIDTH_RULE = ((300, 2.0), (1001, 1.0), (1901, 0.5), (math.inf, 0.33))  # below so many pixels: times


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


# --- The detector ---------------------------------------------------------------------------------


def load_detector(*settings: object) -> FaceDetector:
    """Load the detector of this process: made at its first use, the same one ever after."""
    with LOADING:  # or each thread that feeds a GPU would make one
        return make_detector(*settings)


@cache
def make_detector(*settings: object) -> FaceDetector:
    from deepfake_detect.mtcnn import FaceDetector

    return FaceDetector(*settings)


def has_gpu() -> bool:
    from deepfake_detect.keras_setup import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def share_cores(workers: int) -> None:
    """Take this process's share of the cores: so many work side by side."""
    from deepfake_detect.keras_setup import tensorflow as tf

    threads = max(1, (os.cpu_count() or 1) // workers)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    cv2.setNumThreads(threads)
