"""The settings of a check, for 06, 08 and the Python interface."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from deepfake_detect.cli import MACHINE, Between, Count, Positive, Share


@dataclass(frozen=True)
class DetectionSettings:
    """Settings that affect a result; 06-detect-deepfake.py uses the same defaults."""

    # sampling
    frames_per_second: Positive = 2.0  # frames scored per second; more in short videos and shots
    fewest_frames: Count = 5  # minimum scored frames for a verdict on a face
    most_pixels: Count = 100_000_000  # pixel limit for a picture or frame; larger: not checked
    # tracks
    least_overlap: Share = 0.2  # minimum intersection over union of two boxes in one track
    least_likeness: Share = 0.7  # minimum colour similarity of two faces in one track
    longest_gap: Positive = 2.0  # seconds that a face may be missing before a new track starts
    # verdict
    resamples: Count = 1000  # bootstrap samples for the interval of a score
    window: Positive = 2.0  # length in seconds of a part that can be likely fake alone
    # report
    explained: Count = 8  # number of most suspicious crops in a report
    # statements of the file about itself; they do not change the verdict
    trust_list: Path | None = None  # PEM file; trusted certificates for content credentials
    show_location: bool = False  # also show places, names and titles from the file
    # machine
    frames_at_once: Annotated[int, Between(1, 64), MACHINE] = 8  # frames per face search
    pixels_at_once: Annotated[int, Between(1), MACHINE] = 16_000_000  # pixels per face search
