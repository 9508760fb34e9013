"""Show HDR video of the PQ kind (HDR10, SMPTE ST 2084) as ordinary video.

The brightness of each pixel follows from ST 2084 in candela per square metre. White of ordinary
video is put at 203 (ITU-R BT.2408), colours are converted from BT.2020 or P3 to BT.709, and what is
brighter than white is rolled off smoothly instead of cut.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

REFERENCE_WHITE = 203  # candela per square metre, ITU-R BT.2408
BRIGHTEST = 10_000 / REFERENCE_WHITE  # that PQ can say, in units of white: 49.3
KNEE = 0.8  # linear light above which the curve departs from a line
DISPLAY_GAMMA = 2.4  # of ordinary video, ITU-R BT.1886
STEPS = 16_384  # of the table from light to output; below 0.5 of an output level each

# Linear light to BT.709, rows and columns red, green, blue; by FFmpeg's number of the primaries.
TO_BT709 = {
    9: (  # BT.2020: ITU-R BT.2087
        (1.660491, -0.587641, -0.072850),
        (-0.124550, 1.132900, -0.008349),
        (-0.018151, -0.100579, 1.118730),
    ),
    12: (  # Display P3: SMPTE EG 432-1
        (1.224940, -0.224940, 0.0),
        (-0.042057, 1.042057, 0.0),
        (-0.019638, -0.078636, 1.098274),
    ),
}


def map_to_sdr(image: np.ndarray, primaries: int) -> np.ndarray:
    """Convert a PQ image to BT.709.

    Args:
        image: BGR uint16 (height, width, 3), 0 to 65535 for PQ's 0 to 1
        primaries: of its colours, FFmpeg's AVColorPrimaries; unknown ones are taken for BT.2020

    Returns:
        BGR uint8 (height, width, 3).
    """
    light = linear_light()[image >> 4]
    if primaries != 1:
        matrix = np.array(TO_BT709.get(primaries, TO_BT709[9]), np.float32)[::-1, ::-1]  # BGR
        light = cv2.transform(light, matrix)
    light = cv2.sqrt(np.maximum(light, 0, out=light))  # dark steps need more of the table
    steps = cv2.multiply(light, (STEPS - 1) / BRIGHTEST**0.5)
    return output_levels()[np.minimum(steps, STEPS - 1, out=steps).astype(np.uint16)]


@cache
def linear_light() -> np.ndarray:
    """Light for each of 4096 PQ values, in units of white: ST 2084, equations 4.1 and 4.2."""
    root = np.linspace(0, 1, 4096) ** (32 / 2523)  # 1 / m2
    light = (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (8192 / 1305)
    return (light * BRIGHTEST).astype(np.float32)


@cache
def output_levels() -> np.ndarray:
    """Output 0 to 255 for STEPS values of light, whose square root grows evenly."""
    light = np.linspace(0, BRIGHTEST**0.5, STEPS) ** 2
    room = 1 - KNEE
    rolled = KNEE + room * (1 - np.exp(-(np.maximum(light, KNEE) - KNEE) / room))
    shown = np.where(light <= KNEE, light, rolled) ** (1 / DISPLAY_GAMMA)
    return np.round(255 * shown).astype(np.uint8)
