"""Heat maps: the places of a crop that moved its score towards fake.

The ONNX file returns the evidence with each score: gradient times activation of the last feature
map, summed over its channels (HiResCAM, Draelos and Carin, 2020, "Use HiResCAM instead of Grad-CAM
for faithful explanations"); see onnx_export.add_evidence. Grad-CAM would spread each gradient over
all places, although global max pooling passes it to only one.
"""

from __future__ import annotations

import cv2
import numpy as np


def make_heat_maps(evidence: np.ndarray, size: int) -> np.ndarray:
    """Enlarge the positive evidence, which speaks for fake, to one map per crop.

    Args:
        evidence: float32 (n, rows, columns), as DetectionModel.score returns it
        size: pixels per side of a map

    Returns:
        float32 (n, size, size), 0 to 1; the strongest place of each crop is 1
    """
    maps = [np.empty((0, size, size), np.float32)]
    for one in evidence.clip(0):
        one = (one / max(one.max(), 1e-12)).astype(np.float32)
        larger = cv2.resize(one, (size, size), interpolation=cv2.INTER_CUBIC)
        maps.append(larger.clip(0, 1)[None])
    return np.concatenate(maps)
