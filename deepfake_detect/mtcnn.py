"""MTCNN on OpenCV, many frames at a time: same faces as the mtcnn package, without TensorFlow.

MTCNN (Zhang et al., 2016, "Joint Face Detection and Alignment Using Multitask Cascaded
Convolutional Networks") looks for faces with three networks: P-Net, a small one, proposes boxes all
over the frame at many scales, R-Net refines them, and O-Net, the largest, decides. The weights and
the steps between the networks come from the mtcnn package (weights/make_mtcnn.py).

Boxes are float64 (n, 6): index of the frame in its batch; left, top, right and bottom in pixels;
score, 0 to 1.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np

from deepfake_detect.faces import Face
from deepfake_detect.shipped import find_shipped

# Larger batches take more memory and are not faster. Strips of more pixels do not fit into the
# processor's cache: P-Net takes up to 1.4 times as long.
FRAMES_AT_ONCE = 4  # frames searched together
PIXELS_AT_ONCE = 1_250_000  # pixels searched together; a larger frame is searched alone
ROWS_AT_ONCE = 32  # rows of a resized image that are made at once
STRIP_PIXELS = 60_000  # pixels per call of P-Net
PATCHES_AT_ONCE = {"rnet": 64, "onet": 16}  # patches per call
SIDES = {"rnet": 24, "onet": 48}  # pixels per side of a patch
STRIDE, CELL = 2, 12  # distance between cells of P-Net, and side of a cell, in image pixels
BOXES_AT_ONCE = 512  # boxes compared with all others at once
LOADED = threading.local()  # one set of networks per thread: cv2.dnn.Net is not thread-safe


class Thresholds(NamedTuple):
    """Lowest score, 0 to 1, of a box that passes P-Net, R-Net and O-Net."""

    propose: float = 0.6
    refine: float = 0.7
    decide: float = 0.8


class FaceDetector:
    """MTCNN with the networks and steps of the mtcnn package, on many frames at a time.

    It finds the same faces as `mtcnn.MTCNN().detect_faces` on single frames, without two faults of
    the package: the package finds nothing with a `min_face_size` above 20, and nothing in a whole
    batch if one frame fails. A detector is cheap to create, and threads can share it.

    Args:
        min_face_size: smallest face to look for, in frame pixels; 12 or more
        frames_at_once: frames of the same size that are searched together
        scale_factor: between the scales of the search, 0 to 1; higher finds more
        thresholds: lowest score to pass each network, 0 to 1; the last one applies to the faces
    """

    def __init__(
        self,
        min_face_size: float = 20,
        frames_at_once: int | None = None,
        scale_factor: float = 0.709,
        thresholds: tuple[float, float, float] = Thresholds(),
    ) -> None:
        self.min_face_size, self.scale_factor = min_face_size, scale_factor
        self.frames_at_once = frames_at_once or FRAMES_AT_ONCE
        self.thresholds = Thresholds(*thresholds)

    def detect(self, frames: Iterable[np.ndarray]) -> list[list[Face]]:
        """Return the faces of each frame, BGR uint8 (height, width, 3) of any size, best first."""
        faces = []
        for (height, width, _), of_a_size in itertools.groupby(frames, np.shape):
            at_once = min(self.frames_at_once, max(1, PIXELS_AT_ONCE // (height * width)))
            while batch := list(itertools.islice(of_a_size, at_once)):
                faces += self.detect_in_batch(batch)
        return faces

    def detect_in_batch(self, frames: list[np.ndarray]) -> list[list[Face]]:
        """Return the faces of each frame; all frames have the same size."""
        images = [normalise(frame) for frame in frames]
        boxes = self.propose(images)
        for network, threshold in (
            ("rnet", self.thresholds.refine),
            ("onet", self.thresholds.decide),
        ):
            boxes = examine(network, images, make_square(boxes), threshold)
            boxes = suppress(boxes, 0.7, by_smaller=network == "onet")

        faces, (height, width) = [[] for _ in frames], frames[0].shape[:2]
        for owner, *corners, score in boxes:
            left, top, right, bottom = np.clip(corners, 0, [width - 1, height - 1] * 2)
            box = np.array([left, top, right - left, bottom - top]).round().astype(int)
            if box[2:].all():
                faces[int(owner)].append(Face(tuple(box.tolist()), float(score)))
        return faces

    def propose(self, images: list[np.ndarray]) -> np.ndarray:
        """Return the boxes that P-Net proposes at all scales."""
        height, width = images[0].shape[:2]
        sums = [sum_rows(image) for image in images]
        proposed = [np.empty((0, 6))]
        for scale in list_scales(height, width, self.min_face_size, self.scale_factor):
            size = int(height * scale), int(width * scale)
            smaller = np.empty((len(images), 3, *size), np.float32)
            for image, above, target in zip(images, sums, smaller, strict=True):
                shrink(image, above, target)
            boxes = scan(smaller, self.thresholds.propose)
            boxes[:, 1:5] /= scale
            proposed.append(suppress(boxes, 0.5))
        return suppress(np.concatenate(proposed), 0.7)


def normalise(frame: np.ndarray) -> np.ndarray:
    """Convert a frame, BGR uint8, to the input of the networks: RGB float32, -1 to 1."""
    image = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB).astype(np.float32)
    image -= 127.5
    image /= 128
    return image


def list_scales(height: int, width: int, min_face_size: float, scale_factor: float) -> np.ndarray:
    """Return the scales to search; at the first one, a face of min_face_size has 12 pixels.

    At the last one, the image has 12 to 17 pixels. The package uses the same for its default, 20.
    """
    smallest = min(height, width) * 20 / min_face_size
    count = round(-(np.log(smallest / CELL) / np.log(scale_factor) + 1))
    return CELL / min_face_size * scale_factor ** np.arange(count)


def sum_rows(image: np.ndarray) -> np.ndarray:
    """Return the sum of the rows above each row of a normalised image, in the same shape.

    The sums are exact up to 65,536 rows: pixels are multiples of 1/256.
    """
    sums = np.zeros_like(image)
    for above, row, target in zip(sums, image, sums[1:], strict=False):
        np.add(above, row, out=target)  # numpy.cumsum takes 8 times as long
    return sums


def shrink(image: np.ndarray, sums: np.ndarray, target: np.ndarray) -> None:
    """Resize a normalised image as cv2.INTER_AREA does, within 1e-6 and in half the time.

    cv2.resize averages each row of the image before it adds the rows; the sums make that faster.

    Args:
        image: float32 (height, width, 3)
        sums: from sum_rows
        target: the result, float32 (3, rows, columns)
    """
    height, (rows, columns) = len(image), target.shape[1:]
    edges = np.arange(rows + 1) * (height / rows)
    whole = np.minimum(edges.astype(int), height - 1)
    share = (edges - whole).astype(np.float32)[:, None, None]
    for first in range(0, rows, ROWS_AT_ONCE):
        some = slice(first, first + ROWS_AT_ONCE + 1)
        above, parts = sums.take(whole[some], axis=0), image.take(whole[some], axis=0)
        parts *= share[some]
        bands = above[1:] - above[:-1]
        bands += parts[1:]
        bands -= parts[:-1]
        narrow = cv2.resize(bands, (columns, len(bands)), interpolation=cv2.INTER_AREA)
        narrow *= rows / height
        planes = list(target[:, first : first + ROWS_AT_ONCE])
        cv2.mixChannels([narrow], planes, fromTo=(0, 0, 1, 1, 2, 2))


# --- The networks ---------------------------------------------------------------------------------


def run_network(name: str, images: np.ndarray) -> np.ndarray:
    """Run a network on images, float32 (n, 3, height, width).

    OpenCV's classic engine is faster than its new one here if PReLU stays a layer of its own; see
    benchmarks/LOG.md.

    Returns:
        float32 (n, 5): four offsets and the logit of each box; (n, 5, rows, columns) for P-Net
    """
    if not hasattr(LOADED, name):
        path = find_shipped(f"weights/mtcnn-{name}.onnx")
        network = cv2.dnn.readNetFromONNX(str(path), cv2.dnn.ENGINE_CLASSIC)
        network.enableFusion(False)
        setattr(LOADED, name, network)
    network = getattr(LOADED, name)
    network.setInput(np.ascontiguousarray(images))
    return network.forward()


def scan(images: np.ndarray, threshold: float) -> np.ndarray:
    """Return the boxes that P-Net finds in images, float32 (n, 3, height, width).

    Small images are scanned together, large ones in strips that overlap by one cell.
    """
    height, width = images.shape[2:]
    rows = (height - CELL) // STRIDE + 1  # rows of cells; P-Net rounds up at the lower edge
    step = max(1, STRIP_PIXELS // (width * STRIDE))
    at_once = max(1, STRIP_PIXELS // (width * height))
    places, values = [], []
    for start, first in itertools.product(range(0, len(images), at_once), range(0, rows, step)):
        last = first + step
        end = height if last >= rows else (last - 1) * STRIDE + CELL
        cells = run_network("pnet", images[start : start + at_once, :, first * STRIDE : end])
        passed = cells[:, 4] > logit(threshold)
        image, row, column = np.unravel_index(np.flatnonzero(passed), passed.shape)
        places.append((image + start, row + first, column))
        values.append(cells[image, :, row, column])
    return make_boxes(*np.concatenate(places, axis=1), np.concatenate(values))


def make_boxes(
    image: np.ndarray, row: np.ndarray, column: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """Convert cells of P-Net to boxes in image pixels.

    Args:
        image: index of the image of each cell
        row: index of its row in the output of P-Net
        column: index of its column
        values: its output, float32 (n, 5): four offsets and the logit
    """
    left, top = 1 + STRIDE * column, 1 + STRIDE * row
    corners = np.stack((left, top, left + CELL - 1, top + CELL - 1), axis=1)
    return np.column_stack((image, corners + values[:, :4] * (CELL - 1), expit(values[:, 4])))


def examine(
    network: str, images: list[np.ndarray], boxes: np.ndarray, threshold: float
) -> np.ndarray:
    """Score square boxes with R-Net or O-Net; return the ones above the threshold, refined."""
    found = [np.empty((0, 6))]
    for start in range(0, len(boxes), PATCHES_AT_ONCE[network]):
        some = boxes[start : start + PATCHES_AT_ONCE[network]]
        patches = cut_patches(images, some, SIDES[network])
        output = run_network(network, patches)
        passed = output[:, 4] > logit(threshold)
        some, output = some[passed], output[passed]
        sides = some[:, 3:5] - some[:, 1:3] + 1
        corners = some[:, 1:5] + output[:, :4] * np.tile(sides, 2)
        found.append(np.column_stack((some[:, 0], corners, expit(output[:, 4]))))
    return np.concatenate(found)


def cut_patches(images: list[np.ndarray], boxes: np.ndarray, side: int) -> np.ndarray:
    """Cut boxes out of images as TensorFlow's crop_and_resize does: bilinear, 0 outside.

    The corner pixels of a patch are on the corners of its box. The pixels are within 1e-4 of
    TensorFlow's: both use 32-bit coordinates.

    Returns:
        float32 (n, 3, side, side)
    """
    height, width = images[0].shape[:2]
    scale = np.array((width - 1, height - 1)) / (width, height)
    starts, steps = boxes[:, 1:3] * scale, (boxes[:, 3:5] - boxes[:, 1:3]) * scale / (side - 1)
    patches = np.empty((len(boxes), side, side, 3), np.float32)
    for patch, image, (left, top), (across, down) in zip(
        patches, boxes[:, 0].astype(int), starts, steps, strict=True
    ):
        matrix = np.array(((across, 0, left), (0, down, top)))
        cv2.warpAffine(
            images[image],
            matrix,
            (side, side),
            dst=patch,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
    ends = starts + steps * (side - 1)
    for index in np.flatnonzero(((starts < 0) | (ends > (width - 1, height - 1))).any(axis=1)):
        x, y = (starts[index][:, None] + steps[index][:, None] * np.arange(side)).astype(np.float32)
        patches[index][(y < 0) | (y > height - 1)] = 0
        patches[index][:, (x < 0) | (x > width - 1)] = 0
    return patches.transpose(0, 3, 1, 2)


# --- Boxes ----------------------------------------------------------------------------------------


def suppress(boxes: np.ndarray, threshold: float, by_smaller: bool = False) -> np.ndarray:
    """Remove each box that overlaps a better one in its frame (non-maximum suppression).

    As in the package, a removed box can still remove others.

    Args:
        boxes: the boxes of several frames
        threshold: intersection over union above which the box with the lower score is removed
        by_smaller: divide the intersection by the area of the smaller box instead

    Returns:
        The remaining boxes, frame by frame, best first.
    """
    kept = [np.empty((0, 6))]
    for frame in np.unique(boxes[:, 0]):
        own = boxes[boxes[:, 0] == frame]
        own = own[np.argsort(own[:, 5])[::-1]]
        worse = np.zeros(len(own), bool)
        for start in range(0, len(own), BOXES_AT_ONCE):
            shares = overlap(own[start : start + BOXES_AT_ONCE], own[start:], by_smaller)
            worse[start:] |= np.triu(shares > threshold, 1).any(axis=0)
        kept.append(own[~worse])
    return np.concatenate(kept)


def overlap(some: np.ndarray, others: np.ndarray, by_smaller: bool) -> np.ndarray:
    """Return the overlap of boxes (n, 6) with others (m, 6): float64 (n, m), 0 to 1."""
    left, top, right, bottom = some[:, 1:5].T[..., None]
    left2, top2, right2, bottom2 = others[:, 1:5].T
    width = np.minimum(right, right2) - np.maximum(left, left2)
    height = np.minimum(bottom, bottom2) - np.maximum(top, top2)
    shared = width.clip(0) * height.clip(0)
    area, other = (right - left) * (bottom - top), (right2 - left2) * (bottom2 - top2)
    with np.errstate(invalid="ignore", divide="ignore"):  # an empty box does not overlap anything
        return shared / (np.minimum(area, other) if by_smaller else area + other - shared)


def make_square(boxes: np.ndarray) -> np.ndarray:
    """Enlarge the shorter side of each box to the longer one, around the same centre."""
    sides = boxes[:, 3:5] - boxes[:, 1:3]
    longer = sides.max(axis=1, keepdims=True)
    low = boxes[:, 1:3] + (sides - longer) / 2
    return np.column_stack((boxes[:, 0], low, low + longer, boxes[:, 5]))


def logit(p: float) -> float:
    """Return the logit of a probability; infinite for 0 and 1."""
    with np.errstate(divide="ignore"):  # a threshold of 0 or 1
        return float(np.log(p) - np.log1p(-p))


def expit(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits, in 0..1."""
    return 1 / (1 + np.exp(-logits))
