"""Constants of the network's first layers, which darken, sharpen and normalise crops.

The Keras model, its ONNX export and the PyTorch network of the recipe share them.
"""

from __future__ import annotations

import numpy as np

IMAGENET_MEAN = np.array((0.485, 0.456, 0.406)) * 255  # RGB, 0..255
IMAGENET_STD = np.array((0.229, 0.224, 0.225)) * 255
GREY = np.array((0.299, 0.587, 0.114))  # weights of red, green and blue, as in OpenCV
LAPLACIAN = np.array(((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0)))
BELL = np.exp(-(np.arange(-4, 5) ** 2) / 2 / 1.2**2)  # Gaussian, sigma 1.2 pixels
BELL = BELL[:, None] / BELL.sum()  # vertical; its transpose is horizontal
MOST_ADDED = 4.0  # largest weight of the unsharp mask
DARKEST = 20.0  # largest mean of the darkest of 32 x 32 blocks, 0..255
