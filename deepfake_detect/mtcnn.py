"""MTCNN, on many frames at a time; 02 and 06 use this, through deepfake_detect/faces.py.

MTCNN (Zhang et al., 2016, "Joint Face Detection and Alignment Using Multitask Cascaded
Convolutional Networks") looks for faces with three networks: a small one proposes boxes all over
the frame at many scales, a larger one refines them, the largest decides. The networks, their
weights and the steps between them are those of the mtcnn package. Here they get many frames at a
time, and find the same faces several times as fast: benchmarks/crop_faces.py compares the two.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import partial

import deepfake_detect.keras_setup  # noqa: F401 - first, before others load Keras  # isort: skip
import cv2
import numpy as np
import tensorflow as tf
from mtcnn.stages import StageONet, StagePNet, StageRNet
from mtcnn.utils.bboxes import generate_bounding_box, resize_to_square, smart_nms_from_bboxes
from mtcnn.utils.images import build_scale_pyramid

from deepfake_detect.faces import Face, has_gpu

OVERLAPS = 0.5, 0.7  # of two boxes that share more, the better stays: at one scale, of all scales
CPU_BATCH_SIZE, GPU_BATCH_SIZE = 8, 32  # frames, where nothing else is asked for
MOST_PIXELS = 16_000_000  # searched at once: of larger frames a batch has fewer
PATCHES_A_FRAME = 32  # times the batch size: boxes that a network examines at once


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
