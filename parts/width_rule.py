"""Resize frames by their width, so that faces have a similar size; 01, 02 and 06 use this."""

from __future__ import annotations

import math

import cv2
import numpy as np

WidthRule = tuple[tuple[float, float], ...]
WIDTH_RULE = ((300, 2.0), (1001, 1.0), (1901, 0.5), (math.inf, 0.33))  # below so many pixels: times


def resize_by_width(frame: np.ndarray, width_rule: WidthRule = WIDTH_RULE) -> np.ndarray:
    """Resize an image, uint8 (height, width) or (height, width, 3), by the factor for its width.

    The rule brings faces to a similar size: below 300 pixels 2x, to 1000 1x, to 1900 0.5x, above
    0.33x, cut to whole pixels. INTER_AREA shrinks by averages, so that nothing aliases.
    """
    height, width = frame.shape[:2]
    factor = next(factor for limit, factor in width_rule if width < limit)
    if factor == 1:
        return frame
    size = max(1, int(width * factor)), max(1, int(height * factor))
    return cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA)
