"""Face boxes and face crops, and the rules for cutting crops."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

Box = tuple[int, int, int, int]  # x, y, width and height in whole pixels
WidthRule = tuple[tuple[float, float], ...]
# (width, factor): frames narrower than the width, in pixels, are scaled by the factor
WIDTH_RULE = ((300, 2.0), (1001, 1.0), (1901, 0.5), (math.inf, 0.33))


class Face(NamedTuple):
    """A face in a frame: its box, and the detector's confidence, 0 to 1."""

    box: Box
    confidence: float


class CropRule(NamedTuple):
    """The rules for cutting crops; must be the same in training and detection."""

    frames: str  # "reduced" by the width rule, or "full"
    margin: float  # share of the box, added on each side
    square: bool  # cut a square; side = longer side of the box plus a margin on both sides
    width_rule: WidthRule = WIDTH_RULE  # see resize_by_width


def scale_face(face: Face, across: float, down: float) -> Face:
    """Scale a face box to a frame that is `across` times as wide and `down` times as high."""
    x, y, width, height = face.box
    left, top = round(x * across), round(y * down)
    right, bottom = round((x + width) * across), round((y + height) * down)
    return Face((left, top, max(1, right - left), max(1, bottom - top)), face.confidence)


def crop_face(frame: np.ndarray, box: Box, margin: float, square: bool = False) -> np.ndarray:
    """Crop a box with a margin on each side, or a square around it, clipped to the frame.

    Args:
        frame: uint8 (height, width, 3)
        box: face box in frame pixels
        margin: share of the box's width and height, added on each side
        square: crop a square; side = longer side of the box plus a margin on both sides
    """
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

    The rule brings faces to a similar size. Default factors by width: 2 below 300 pixels, 1 up to
    1000, 0.5 up to 1900, 0.33 above, rounded down to whole pixels. INTER_AREA averages pixels, so
    shrinking does not cause aliasing.
    """
    height, width = frame.shape[:2]
    factor = next(factor for limit, factor in width_rule if width < limit)
    if factor == 1:
        return frame
    size = max(1, int(width * factor)), max(1, int(height * factor))
    return cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA)


# --- Preparing and measuring crops ----------------------------------------------------------------


def prepare_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Resize a crop, BGR uint8 of any shape, to RGB uint8 (size, size, 3).

    Pixels are averaged if the crop shrinks, which prevents aliasing, and interpolated if it grows.
    """
    return cv2.cvtColor(squeeze(image, size), cv2.COLOR_BGR2RGB)


def squeeze(image: np.ndarray, size: int) -> np.ndarray:
    """Resize an image, uint8 of any shape, to size x size; keep the channel order."""
    resample = cv2.INTER_AREA if min(image.shape[:2]) > size else cv2.INTER_LINEAR
    return cv2.resize(image, (size, size), interpolation=resample)


def measure_sharpness(crop: np.ndarray) -> float:
    """Return the variance of the Laplacian of the grey image of a prepared crop, RGB uint8.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000.
    """
    return float(cv2.Laplacian(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


def measure_look(face: np.ndarray) -> np.ndarray:
    """Return the square roots of a face's colour histogram, BGR uint8 to float16 (384,).

    The dot product of two such vectors is their similarity, 0 to 1 (Bhattacharyya, 1943). On real
    videos of Celeb-DF v2, 95 % of pairs of frames from one video have 0.89 or more, and 95 % of
    pairs from two videos have 0.75 or less.
    """
    lab = cv2.cvtColor(face, cv2.COLOR_BGR2LAB)
    lab[..., 1:] = lab[..., 1:].clip(96, 159)  # few faces have stronger colours
    counts = cv2.calcHist([lab], [0, 1, 2], None, (6, 8, 8), (0, 256, 96, 160, 96, 160))
    return np.sqrt(counts.ravel() / counts.sum()).astype(np.float16)
