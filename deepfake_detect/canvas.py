"""Draw on pictures and video frames: boxes with scores, and a strip that explains the numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple

import av
import cv2
import numpy as np

from deepfake_detect.display import fit_box

WORDS = "DeepFake-Detect: score of this frame, not proof"


class Box(NamedTuple):
    """A face to mark."""

    number: int  # number of its track
    x: float  # left edge, pixels of the first frame as displayed
    y: float  # top edge
    width: float
    height: float
    score: int  # 0 to 100


class Canvas:
    """An image to draw on: one BGR plane, or three planes of YUV 4:2:0."""

    def __init__(self, planes: list[np.ndarray], is_yuv: bool) -> None:
        self.planes, self.is_yuv = planes, is_yuv
        self.height, self.width = planes[0].shape[:2]

    def mark(self, boxes: Iterable[Box]) -> None:
        """Draw each box, with the number of the face and its score, 0 to 100."""
        line = max(2, round(self.width / 400))
        font, size = cv2.FONT_HERSHEY_SIMPLEX, line / 3
        for number, x, y, width, height, score in boxes:
            share = min(1.0, max(0.0, score / 100))
            bgr = 0, int(255 * min(1, 2 - 2 * share)), int(255 * min(1, 2 * share))  # green to red
            self._rectangle(x, y, x + width, y + height, bgr, line)
            text = f"{number}: {score}"
            (text_width, text_height), _ = cv2.getTextSize(text, font, size, line)
            top = max(0, y - text_height - 3 * line)
            right, below = x + text_width + 2 * line, top + text_height + 3 * line
            self._rectangle(x, top, right, below, (0, 0, 0), cv2.FILLED)
            at = round(x) + line, round(top) + text_height + line
            white = 235 if self.is_yuv else (255, 255, 255)
            cv2.putText(self.planes[0], text, at, font, size, white, max(1, line // 2))

    def add_strip(self) -> None:
        """Draw a strip over the lower edge that explains the numbers."""
        strip = draw_strip(self.width, self.height, self.is_yuv)
        self.planes[0][-len(strip) :] = strip
        for plane in self.planes[1:]:
            plane[-(len(strip) // 2) :] = 128  # grey

    def _rectangle(
        self, left: float, top: float, right: float, below: float, bgr: tuple, line: int
    ) -> None:
        colours = to_yuv_colour(bgr) if self.is_yuv else [bgr]
        for plane, colour in zip(self.planes, colours, strict=True):
            shrink = self.height / plane.shape[0]
            first, last = (
                (round(across / shrink), round(down / shrink))
                for across, down in ((left, top), (right, below))
            )
            cv2.rectangle(plane, first, last, colour, line if line < 0 else round(line / shrink))


@cache
def draw_strip(width: int, height: int, is_yuv: bool) -> np.ndarray:
    """Return the strip: uint8 luma (rows, width) or BGR (rows, width, 3); rows is even."""
    rows = 2 * max(6, round(height / 50))
    dark, bright = (16, 235) if is_yuv else (0, 255)
    strip = np.full((rows, width), dark, np.uint8)
    font, size = cv2.FONT_HERSHEY_SIMPLEX, rows / 40
    (wide, high), _ = cv2.getTextSize(WORDS, font, size, 1)
    size *= min(1, (width - 8) / wide)
    at = 4, (rows + round(high * min(1, (width - 8) / wide))) // 2
    cv2.putText(strip, WORDS, at, font, size, bright, max(1, round(rows / 40)), cv2.LINE_AA)
    return strip if is_yuv else np.repeat(strip[..., None], 3, axis=2)


@cache
def to_yuv_colour(bgr: tuple[int, int, int]) -> list[int]:
    """Convert a colour to Y, U and V, ITU-R BT.601."""
    return cv2.cvtColor(np.uint8([[bgr]]), cv2.COLOR_BGR2YUV)[0, 0].tolist()


def scale_boxes(boxes: Iterable[Box], scale: float) -> Iterator[Box]:
    """Yield the boxes scaled by `scale`."""
    for number, *box, score in boxes:
        yield Box(number, *(scale * side for side in box), score)


def fit_frame(frame: av.VideoFrame, into: tuple[int, int]) -> av.VideoFrame:
    """Fit a YUV 4:2:0 frame into an even width and height, see display.fit_box."""
    size = frame.width, frame.height
    if size == into:
        return frame
    *_, width, height = fit_box((0, 0, *size), size, into)
    inside = (max(2, round(side / 2) * 2) for side in (width, height))
    small = frame.reformat(*inside, interpolation="AREA")
    whole = av.VideoFrame(*into, small.format.name)
    for plane, part, black in zip(planes_of(whole), planes_of(small), (16, 128, 128), strict=True):
        plane[:] = black
        top, left = ((side - of) // 2 for side, of in zip(plane.shape, part.shape, strict=True))
        plane[top : top + part.shape[0], left : left + part.shape[1]] = part
    return whole


def planes_of(frame: av.VideoFrame) -> list[np.ndarray]:
    """Return the planes of a YUV 4:2:0 frame as writable views, uint8 (height, width)."""
    return [
        np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]
        for plane in frame.planes
    ]
