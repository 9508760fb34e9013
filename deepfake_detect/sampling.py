"""Which frames of a video are taken, and when they are shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

FRAME_SECONDS = 1 / 25  # of a still, and of a frame of which nothing better is known
HIGHEST_RATE = 240  # frames a second that are believed where time stamps are missing
LONGEST_VIDEO = 864_000  # seconds, 10 days; a time stamp beyond that is not believed

Chooser = Callable[[int, float], bool]  # is this frame wanted? Asked for each frame, in order


class Clock:
    """Seconds since the first frame, from time stamps that may be missing or wrong.

    Where stamps are missing, stand still, run back or pass 10 days, a frame lasts 1/25 s, or what
    the file claims as its rate.
    """

    def __init__(self, rate: float = 0) -> None:
        self.frame_seconds = 1 / rate if 1 <= rate <= HIGHEST_RATE else FRAME_SECONDS
        self.first: float | None = None
        self.seconds: float | None = None

    def read(self, stamp: float | None) -> float:
        """Return the seconds of the next frame, whose time stamp in the file is `stamp`."""
        due = 0.0 if self.seconds is None else self.seconds + self.frame_seconds
        if self.first is None and stamp is not None:
            self.first = stamp - due
        passed = due if stamp is None else stamp - self.first
        usable = self.seconds is not None and self.seconds < passed < LONGEST_VIDEO
        self.seconds = passed if usable else due
        return self.seconds


def choose_by_rate(frames_per_second: float) -> Chooser:
    """Choose so many frames of each second, evenly in time."""
    due = 0.0

    def wanted(index: int, seconds: float) -> bool:
        nonlocal due
        if seconds <= due - 1e-6:
            return False
        # The next sampling time after this frame: a video with fewer frames a second than asked
        # for gives all it has, and a gap in it is not made up for.
        due = (math.floor(seconds * frames_per_second + 1e-6) + 1) / frames_per_second
        return True

    return wanted


def choose_by_time(times: Collection[float]) -> Chooser:
    """Choose for each time the first frame that is not earlier."""
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
