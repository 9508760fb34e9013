"""The decision saved with a model: calibration, thresholds, and the rule for its crops."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from deepfake_detect.faces import WIDTH_RULE, WidthRule

IMAGE_SIZE = 128  # pixels per side of an image, the default of training
IMAGE_SIZES = range(32, 513, 32)  # allowed sizes: the network halves an image five times
SMALLEST_P = 1e-7  # probabilities keep this distance from 0 and 1, so that logits are finite
LARGEST_FACTOR = 10.0  # of a width rule; a larger one is a mistake
CROP_RULE = "margin", "square", "frames", "width_rule"  # fields that are also in crop-rule.json


class Decision(NamedTuple):
    """Everything that turns a model's output into a verdict; saved with the model."""

    temperature: float = 1.0  # divides the logit; above 1 if the model is overconfident
    shift: float = 0.0  # added to the divided logit of p_fake
    threshold: float = 0.5  # a video with this mean p_fake or more is likely fake
    real_below: float = 0.5  # a video with a mean below this is likely real; undecided in between
    picture_threshold: float | None = None  # threshold for a single picture; None: as for videos
    picture_real_below: float | None = None  # real_below for a single picture
    part_threshold: float | None = None  # for the most suspicious seconds; None: from threshold
    margin: float = 0.3  # share of the face box, added on each side of a crop
    square: bool = False  # whether crops are squares
    frames: str = (
        "reduced"  # the frames that crops are cut from: "reduced" by width_rule, or "full"
    )
    width_rule: WidthRule = WIDTH_RULE  # pairs: frames narrower than this are scaled by this factor
    image_size: int = IMAGE_SIZE  # pixels per side of the network's input
    sharpen_to: float = 0.0  # the network sharpens crops below this sharpness; 0: never
    darken_to: float = 0.0  # the network darkens crops above this mean brightness; 0: never
    smallest_face: int = 0  # pixels; a crop with a shorter side below this is undecided
    least_sharpness: float = 0.0  # variance of the Laplacian; a crop below this is undecided

    def thresholds_of(self, kind: str) -> tuple[float, float]:
        """Return (threshold, real_below) for a kind of file: "picture" or "video"."""
        own = self.picture_threshold, self.picture_real_below
        if kind != "picture" or None in own:
            return self.threshold, self.real_below
        return own


def check_image_size(size: int) -> int:
    """Return the size, if it is a multiple of 32 up to 512 pixels.

    Raises:
        ValueError: it is not
    """
    if size not in IMAGE_SIZES:
        raise ValueError(f"--image-size is {size}; give a multiple of 32, up to 512.")
    return size


def check_decision(saved: dict) -> Decision:
    """Build a decision from the JSON of a file; missing fields get their defaults.

    Raises:
        ValueError, TypeError, OverflowError: a value has a wrong type or is out of range
    """
    if "threshold" in saved:
        saved = {"real_below": saved["threshold"]} | saved
    values = {name: saved[name] for name in Decision._fields if name in saved}
    for name, default in Decision._field_defaults.items():
        if name == "width_rule" and name in values:
            values[name] = read_width_rule(values[name])
        elif name in values and not (default is None and values[name] is None):
            values[name] = (float if default is None else type(default))(values[name])
    decision = Decision(**values)
    numbers = [value for value in decision if isinstance(value, int | float)]
    amounts = (
        *(decision.margin, decision.smallest_face, decision.least_sharpness),
        *(decision.sharpen_to, decision.darken_to),
    )
    pairs = decision.thresholds_of("video"), decision.thresholds_of("picture")
    if not (
        all(map(math.isfinite, numbers))
        and decision.temperature > 0
        and min(amounts) >= 0
        and all(0 <= real_below <= threshold <= 1 for threshold, real_below in pairs)
        and 0 <= (decision.part_threshold or 0) <= 1
        and decision.frames in ("reduced", "full")
    ):
        raise ValueError(f"{decision} is out of range")
    return decision


def read_width_rule(saved: Sequence[Sequence[float | None]]) -> WidthRule:
    """Read the pairs of a width rule; the last width is infinite (null or Infinity in JSON).

    Raises:
        ValueError, TypeError: they are not pairs of rising widths and of factors in range
    """
    pairs = tuple(
        (math.inf if width is None else float(width), float(factor)) for width, factor in saved
    )
    widths = [width for width, _ in pairs]
    if (
        widths[-1:] != [math.inf]
        or not all(low < high for low, high in itertools.pairwise((0.0, *widths)))
        or not all(0 < factor <= LARGEST_FACTOR for _, factor in pairs)
    ):
        raise ValueError(
            f"{pairs} is not a list of (width, factor) with rising widths, the last one infinite, "
            f"and factors above 0, up to {LARGEST_FACTOR:g}"
        )
    return pairs


def describe_decision(decision: Decision) -> dict:
    """Return a decision for JSON; an infinite width becomes null, as JSON has no infinity."""
    rule = [(None if width == math.inf else width, factor) for width, factor in decision.width_rule]
    return json.loads(json.dumps(decision._asdict() | {"width_rule": rule}))


def calibrate(p_real: np.ndarray, decision: Decision) -> np.ndarray:
    """Return the calibrated p_fake of the model's output p_real, float64 of the same shape, 0..1.

    The logit of p_fake is divided by a temperature and shifted (Platt, "Probabilistic Outputs for
    Support Vector Machines", 1999). This changes how confident scores are, but not their order.
    """
    p_real = np.clip(np.asarray(p_real, np.float64), SMALLEST_P, 1 - SMALLEST_P)
    logit = (np.log1p(-p_real) - np.log(p_real)) / decision.temperature + decision.shift
    return np.clip(1 / (1 + np.exp(-logit)), SMALLEST_P, 1 - SMALLEST_P)
