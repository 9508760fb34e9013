"""Find the faces in frames and cut their crops, exactly as 01 and 02 do.

If no face is found, the frames are searched again at other sizes and rotated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from deepfake_detect.cropping import crop_faces
from deepfake_detect.decision import Decision
from deepfake_detect.faces import (
    Box,
    crop_face,
    measure_look,
    measure_sharpness,
    prepare_crop,
    resize_by_width,
    scale_face,
)
from deepfake_detect.mtcnn import FaceDetector

CONFIDENCE = 0.95  # minimum; 02 does not save faces with less
SIZES = (0.5, 0.7, 1.4, 2.0)  # relative to the usual size
TURNS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


@dataclass(frozen=True)
class Way:
    """The size and rotation of frames for a search.

    Attributes:
        size: size of the searched frame, relative to the usual size
        turn: clockwise rotation before the search in degrees: 0, 90, 180 or 270
    """

    size: float = 1.0
    turn: int = 0

    def describe(self) -> str:
        """Return a note for faces that were found only in this way."""
        if self.turn:
            return (
                f"faces were found only after rotating it by {self.turn} degrees; it may be rotated"
            )
        return f"faces were found only at {self.size:g} times the usual search size"


USUAL = Way()
OTHERS = (*(Way(size=size) for size in SIZES), *(Way(turn=turn) for turn in TURNS))


@dataclass(frozen=True)
class Found:
    """A face in a frame, with its crop for the model.

    Attributes:
        box: x, y, width and height in pixels of the original frame
        confidence: the detector's confidence, 0 to 1
        crop: RGB uint8 (size, size, 3)
        crop_side: shorter side of the crop before resizing, in pixels
        sharpness: see measure_sharpness
        look: colour histogram, see measure_look
    """

    box: Box
    confidence: float
    crop: np.ndarray
    crop_side: int
    sharpness: float
    look: np.ndarray


def find_faces(
    frames: Sequence[np.ndarray], decision: Decision, way: Way = USUAL
) -> tuple[list[list[Found]], float]:
    """Find the faces in frames, and cut their crops by the crop rule of the model.

    Args:
        frames: BGR uint8 (height, width, 3), of any sizes
        decision: its frames, margin, square, width_rule and image_size are used
        way: the size and rotation to search

    Returns:
        the faces of each frame, best first, and the highest confidence below the minimum
    """
    turned = [turn_frame(frame, way.turn) for frame in frames]
    source = turned
    if decision.frames == "reduced":
        source = [resize_by_width(frame, decision.width_rule) for frame in turned]
    cut = crop_faces(source, FaceDetector(), 0.0, decision, way.size)
    found: list[list[Found]] = []
    unsure = 0.0
    for frame, reduced, faces in zip(turned, source, cut, strict=True):
        found.append([])
        down, across = np.divide(frame.shape[:2], reduced.shape[:2])
        for face, crop in faces:
            if face.confidence < CONFIDENCE:
                unsure = max(unsure, face.confidence)
                continue
            if not crop.size:
                continue
            prepared = prepare_crop(crop, decision.image_size)
            box = scale_face(face, across, down).box
            found[-1].append(
                Found(
                    box=turn_back(box, frame.shape[1::-1], way.turn),
                    confidence=face.confidence,
                    crop=prepared,
                    crop_side=min(crop.shape[:2]),
                    sharpness=measure_sharpness(prepared),
                    look=measure_look(crop_face(reduced, face.box, 0)),
                )
            )
    return found, unsure


def look_again(frames: Sequence[np.ndarray], decision: Decision) -> tuple[Way | None, float]:
    """Search at other sizes and rotations; return the way that finds the most faces.

    A rotated face can also be found without rotation, but with less confidence, so equal counts are
    decided by the sum of confidences.

    Returns:
        the best way, or None, and the highest confidence below the minimum in any way
    """
    best, most, unsure = None, (0, 0.0), 0.0
    for way in OTHERS:
        found, almost = find_faces(frames, decision, way)
        unsure = max(unsure, almost)
        confidences = [face.confidence for faces in found for face in faces]
        score = (len(confidences), sum(confidences))
        if score > most:
            best, most = way, score
    return best, unsure


def list_tried() -> Iterator[str]:
    """Yield descriptions of the sizes and rotations that a second search tries."""
    yield "at " + ", ".join(f"{size:g}" for size in (1, *SIZES)) + " times the usual size"
    yield "rotated by " + ", ".join(map(str, TURNS)) + " degrees"


def turn_frame(frame: np.ndarray, degrees: int) -> np.ndarray:
    """Rotate a frame clockwise by 0, 90, 180 or 270 degrees."""
    return cv2.rotate(frame, TURNS[degrees]) if degrees else frame


def turn_back(box: Box, size: tuple[int, int], degrees: int) -> Box:
    """Convert a box in a rotated frame to the original frame.

    Args:
        box: x, y, width, height
        size: width and height of the rotated frame
        degrees: clockwise rotation of the frame
    """
    x, y, width, height = box
    across, down = size
    if degrees == 90:
        return y, across - x - width, height, width
    if degrees == 180:
        return across - x - width, down - y - height, width, height
    if degrees == 270:
        return down - y - height, x, height, width
    return box
