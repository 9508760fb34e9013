"""Find the faces in frames and cut their crops: the same pixels in training and detection."""

from __future__ import annotations

import cv2
import numpy as np

from deepfake_detect.decision import Decision
from deepfake_detect.faces import CropRule, Face, crop_face, resize_by_width, scale_face
from deepfake_detect.mtcnn import FaceDetector

LARGEST_SEARCH = 4_000_000  # pixels of a frame that is searched at another size


def crop_faces(
    frames: list[np.ndarray],
    detector: FaceDetector,
    confidence: float,
    rule: CropRule | Decision,
    size: float = 1.0,
) -> list[list[tuple[Face, np.ndarray]]]:
    """Find the faces in frames and crop them; 02 and detection both use this function.

    Args:
        frames: BGR uint8 (height, width, 3), of any size, as saved by 01: reduced by the width rule
            if rule.frames is "reduced", at full size if it is "full"
        detector: the face detector
        confidence: minimum confidence of a face, 0 to 1
        rule: the rules for cutting crops
        size: size of the searched frames, relative to the width rule

    Returns:
        For each frame, its faces in frame pixels with their crops, BGR uint8, best face first.
    """
    # Search full frames at reduced size, but cut the crops at full resolution.
    searched = frames
    if rule.frames == "full":
        searched = [resize_by_width(frame, rule.width_rule) for frame in frames]
    if size != 1:
        searched = [resize_for_search(frame, size) for frame in searched]
    cut = []
    for frame, image, faces in zip(frames, searched, detector.detect(searched), strict=True):
        down, across = np.divide(frame.shape[:2], image.shape[:2])
        faces = [scale_face(face, across, down) for face in faces if face.confidence >= confidence]
        crops = [crop_face(frame, face.box, rule.margin, rule.square) for face in faces]
        cut.append(list(zip(faces, crops, strict=True)))
    return cut


def resize_for_search(frame: np.ndarray, factor: float) -> np.ndarray:
    """Resize a frame by a factor, to at most LARGEST_SEARCH pixels."""
    height, width = frame.shape[:2]
    factor = min(factor, (LARGEST_SEARCH / (height * width)) ** 0.5)
    if factor == 1:
        return frame
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA)
