"""The decision saved with a model: calibration, thresholds, and the rule for its crops."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

IMAGE_SIZE = 128  # pixels of an image's side, as the known recipe has it
IMAGE_SIZES = range(32, 513, 32)  # that a model may have: the network halves an image five times
SMALLEST_P = 1e-7  # probabilities are kept this far from 0 and 1, for the sake of their logarithms


class Decision(NamedTuple):
    """What turns a model's output into a verdict; it is saved with the model."""

    temperature: float = 1.0  # above 0; divides the logit, above 1 where the model is too sure
    shift: float = 0.0  # added to the logit of p_fake after that
    threshold: float = 0.5  # of p_fake: a video whose mean is at or above it is called fake
    real_below: float = 0.5  # and one below this real; what lies between is undecided
    margin: float = 0.3  # how the crops were cut: of the face's box, added on each side
    square: bool = False  # whether they are squares
    frames: str = "reduced"  # of which frames: reduced by the width rule, or "full"
    image_size: int = IMAGE_SIZE  # pixels that a crop's sides are squeezed to
    sharpen_to: float = 0.0  # sharpness that the network brings a softer crop to; 0 for none
    smallest_face: int = 0  # pixels of a crop's shorter side; a smaller one is undecided
    least_sharpness: float = 0.0  # as measure_sharpness has it; a softer crop is undecided


def check_image_size(size: int) -> int:
    """Check the pixels of an image's side, which are given back; raises ValueError."""
    if size not in IMAGE_SIZES:
        raise ValueError(f"--image-size is {size}; give a multiple of 32, up to 512.")
    return size


def check_decision(saved: dict) -> Decision:
    """Make a decision of what a file holds; what the file lacks is as in models without it."""
    kinds = {name: type(value) for name, value in Decision._field_defaults.items()}
    saved = {"real_below": saved["threshold"]} | saved if "threshold" in saved else saved
    decision = Decision(**{name: kinds[name](saved[name]) for name in kinds if name in saved})
    numbers = [float(value) for value in decision if not isinstance(value, str)]
    sharpness = decision.sharpen_to, decision.least_sharpness
    least = min(decision.margin, decision.smallest_face, *sharpness)
    right = all(map(math.isfinite, numbers)) and decision.temperature > 0 and least >= 0
    ordered = 0 <= decision.real_below <= decision.threshold <= 1
    if not right or not ordered or decision.frames not in ("reduced", "full"):
        raise ValueError(f"{decision} is out of its range")
    return decision


def calibrate(p_real: np.ndarray, decision: Decision) -> np.ndarray:
    """Turn the model's output round and calibrate it: p_fake, float64 of the same shape, 0..1.

    The logit of p_fake is divided by a temperature and shifted (Platt, "Probabilistic Outputs for
    Support Vector Machines", 1999), which changes how sure a score is, never the order of two.
    """
    p_real = np.clip(np.asarray(p_real, np.float64), SMALLEST_P, 1 - SMALLEST_P)
    logit = (np.log1p(-p_real) - np.log(p_real)) / decision.temperature + decision.shift
    return np.clip(1 / (1 + np.exp(-logit)), SMALLEST_P, 1 - SMALLEST_P)
