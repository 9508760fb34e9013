"""Choose the frames of a video to use, and determine their times."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

FRAME_SECONDS = 1 / 25  # duration of a still, and of a frame without a known duration
HIGHEST_RATE = 240  # frames per second; a higher rate in a header is ignored
LONGEST_VIDEO = 864_000  # seconds, 10 days; later time stamps are ignored

Chooser = Callable[[int, float], bool]  # (index, seconds) of each frame in order -> take it?


class Clock:
    """Convert time stamps, which may be missing or wrong, to seconds since the first frame.

    If a time stamp is missing, does not increase or exceeds 10 days, the frame follows the previous
    one after one frame duration: by the rate in the header, or 1/25 s.
    """

    def __init__(self, rate: float = 0) -> None:
        self.frame_seconds = 1 / rate if 1 <= rate <= HIGHEST_RATE else FRAME_SECONDS
        self.first: float | None = None
        self.seconds: float | None = None

    def read(self, stamp: float | None) -> float:
        """Return the time of the next frame, in seconds, from its time stamp in the file."""
        due = 0.0 if self.seconds is None else self.seconds + self.frame_seconds
        if self.first is None and stamp is not None:
            self.first = stamp - due
        passed = due if stamp is None else stamp - self.first
        usable = self.seconds is not None and self.seconds < passed < LONGEST_VIDEO
        self.seconds = passed if usable else due
        return self.seconds


def choose_by_rate(frames_per_second: float) -> Chooser:
    """Choose frames evenly in time, `frames_per_second` of them."""
    due = 0.0

    def wanted(index: int, seconds: float) -> bool:
        nonlocal due
        if seconds <= due - 1e-6:
            return False
        # The next sampling time after this frame. A video with a lower frame rate yields all its
        # frames, and gaps are not compensated by extra frames.
        due = (math.floor(seconds * frames_per_second + 1e-6) + 1) / frames_per_second
        return True

    return wanted


def choose_by_time(times: Collection[float]) -> Chooser:
    """Choose, for each time, the first frame that is not earlier."""
    waiting = sorted(times, reverse=True)

    def wanted(index: int, seconds: float) -> bool:
        found = False
        while waiting and waiting[-1] <= seconds + 1e-6:
            waiting.pop()
            found = True
        return found

    return wanted


def choose_by_index(indices: Collection[int]) -> Chooser:
    """Choose the frames with these numbers."""
    known = set(indices)
    return lambda index, seconds: index in known
