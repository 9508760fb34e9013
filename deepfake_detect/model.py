"""The network: EfficientNet-B0 on RGB face crops, with its start weights and sharpening layer."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import deepfake_detect.keras_setup  # noqa: F401 - first, before others load Keras  # isort: skip
import efficientnet.tfkeras as efn
import efficientnet.weights
import keras
import numpy as np

from deepfake_detect.decision import IMAGE_SIZE
from deepfake_detect.first_layers import (
    BELL,
    DARKEST,
    GREY,
    IMAGENET_MEAN,
    IMAGENET_STD,
    LAPLACIAN,
    MOST_ADDED,
)

IMAGENET_FILE = "efficientnet-b0_weights_tf_dim_ordering_tf_kernels_autoaugment_notop.h5"
LITE0_WEIGHTS = Path(__file__).parents[1] / "weights" / "efficientnet-lite0-imagenet.npz"
DOWNLOAD_TIMEOUT = 20  # seconds without data
BATCH_NORM_MOMENTUM = 0.9  # for the running statistics; see build_model


def find_start_weights(start: str | None) -> tuple[Path | None, str]:
    """Return the file with the start weights (None for random weights) and their description.

    Downloads the ImageNet weights of the efficientnet package once, to ~/.keras/models.

    Args:
        start: imagenet, lite0, auto (imagenet if available, else lite0), none, or a file

    Raises:
        FileNotFoundError, OSError: the file is missing, or the download failed
    """
    if start is None or start.lower() == "none":
        return None, "random weights"
    if start == "lite0":
        return LITE0_WEIGHTS, "ImageNet weights of EfficientNet-Lite0"
    if start == "auto":
        try:
            return find_start_weights("imagenet")
        except OSError as error:
            print(f"NOTE: training starts from the built-in weights: {error}", file=sys.stderr)
            return find_start_weights("lite0")
    if start != "imagenet":
        if not Path(start).is_file():
            raise FileNotFoundError(
                f"{start}: the weights file does not exist; --start takes a file, imagenet, "
                "lite0, auto or none."
            )
        return Path(start), start

    url = efficientnet.weights.IMAGENET_WEIGHTS_PATH + IMAGENET_FILE
    _, file_hash = efficientnet.weights.IMAGENET_WEIGHTS_HASHES["efficientnet-b0"]
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        file = keras.utils.get_file(IMAGENET_FILE, url, cache_subdir="models", file_hash=file_hash)
    except Exception as error:  # Keras has one type for offline, a partial file and a wrong hash
        raise OSError(
            f"downloading the ImageNet weights from {url} failed ({type(error).__name__}); go "
            "online, pass the downloaded file with --start, or use the built-in weights with "
            "--start lite0."
        ) from error
    finally:
        socket.setdefaulttimeout(None)
    return Path(file), "ImageNet weights"


def build_model(
    start_weights: Path | None,
    image_size: int = IMAGE_SIZE,
    sharpen_to: float = 0.0,
    darken_to: float = 0.0,
) -> keras.Model:
    """Build the model: RGB images (n, image_size, image_size, 3) in 0..255 to p_real (n, 1).

    Args:
        start_weights: weights of EfficientNet-B0 without its top, or a model of 04-train-cnn.py
            (.keras) with any image size; None for random weights
        image_size: pixels per side
        sharpen_to: sharpness that softer images are sharpened to, see sharpen; 0: off
        darken_to: mean that brighter images are darkened to, see darken; 0: off, also for pale ones

    Raises:
        ValueError: the weights are of another architecture
    """
    shape = image_size, image_size, 3
    base = efn.EfficientNetB0(weights=None, include_top=False, pooling="max", input_shape=shape)
    # Batch normalisation uses batch statistics in training and running statistics in validation.
    # With Keras' momentum of 0.99, the running statistics keep 37 % of their initial values after
    # 100 steps, and a short training ends with validation at chance although the training loss is
    # low. With 0.9, only 0.003 % remains, and the last 10 batches, a few hundred crops, dominate.
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = BATCH_NORM_MOMENTUM

    images = keras.Input(shape, name="rgb_0_to_255")
    features = keras.layers.Normalization(
        mean=IMAGENET_MEAN, variance=IMAGENET_STD**2, name="imagenet_mean_and_std"
    )(sharpen(darken(images, darken_to), sharpen_to))
    features = base(features)
    features = keras.layers.Dense(512, activation="relu")(features)
    features = keras.layers.Dropout(0.5)(features)
    features = keras.layers.Dense(128, activation="relu")(features)
    # float32 even in a mixed_float16 model: the loss takes the logarithm of this output.
    p_real = keras.layers.Dense(1, activation="sigmoid", name="p_real", dtype="float32")(features)
    model = keras.Model(images, p_real, name="deepfake_detector")

    if start_weights:
        owner = model if start_weights.suffix == ".keras" else base
        try:
            if start_weights.suffix == ".npz":
                fill_from_lite0(base, start_weights)
            else:
                owner.load_weights(start_weights)
        except Exception as error:  # of any type, depending on the file
            raise ValueError(
                f"{start_weights}: the file has neither the weights of an EfficientNet-B0 without "
                "its top nor a model of 04-train-cnn.py; name another file with --start."
            ) from error
    return model


def darken(images: keras.KerasTensor, target: float) -> keras.KerasTensor:
    """Darken images that are too bright or pale; return the others unchanged.

    An image is too bright if its mean is above the target, and too pale if even the darkest of
    32 x 32 blocks has a mean above DARKEST. The larger excess is subtracted from every pixel. Such
    images are rare in training, and the network calls more of their real faces fake.

    Args:
        images: RGB float32 (n, size, size, 3) in 0..255, the same as the result
        target: largest mean; 0: off
    """
    if not target:
        return images
    ops = keras.ops
    block = images.shape[1] // 32
    kernel = np.full((block, block, 3, 1), 1 / 3 / block**2, np.float32)
    blocks = ops.conv(images, kernel, strides=block, padding="valid")
    axes = {"axis": (1, 2, 3), "keepdims": True}
    excess = ops.maximum(ops.mean(images, **axes) - target, ops.min(blocks, **axes) - DARKEST)
    return ops.clip(images - ops.clip(excess, 0, 255), 0, 255)


def sharpen(images: keras.KerasTensor, target: float) -> keras.KerasTensor:
    """Sharpen images that are softer than the target; return the others unchanged.

    Blur makes the traces of a fake too faint for the network. An unsharp mask with a weight of at
    most MOST_ADDED restores the target sharpness (the variance of the Laplacian, see
    faces.measure_sharpness).

    Args:
        images: RGB float32 (n, size, size, 3) in 0..255, the same as the result
        target: sharpness to reach; 0: off
    """
    ops = keras.ops
    if not target:
        return images

    def convolve(image: keras.KerasTensor, kernel: np.ndarray) -> keras.KerasTensor:
        down, across = (side // 2 for side in kernel.shape)
        padded = ops.pad(image, [(0, 0), (down, down), (across, across), (0, 0)], mode="reflect")
        kernels = np.repeat(kernel[..., None, None], image.shape[3], axis=2)
        return ops.depthwise_conv(padded, kernels.astype(np.float32))

    grey = ops.sum(images * np.float32(GREY), axis=3, keepdims=True)
    edges = convolve(grey, LAPLACIAN)
    sharpness = ops.var(edges, axis=(1, 2, 3), keepdims=True)
    added = ops.clip(ops.sqrt(target / (sharpness + 1e-3)) - 1, 0, MOST_ADDED)
    soft = convolve(convolve(images, BELL), BELL.T)
    return ops.clip(images + added * (images - soft), 0, 255)


def fill_from_lite0(base: keras.Model, path: Path) -> None:
    """Copy the convolutions and batch normalisations of Lite0 into EfficientNet-B0.

    Lite0 has the shapes of B0 but lacks squeeze-and-excitation. We open the gates of B0 instead:
    near sigmoid(3) = 0.95 for every input, they change little and can still learn.

    Raises:
        ValueError: the arrays do not fit the layers
    """
    filled = set()
    with np.load(path) as arrays:
        for layer in base.layers:
            for variable in layer.weights:
                name = f"{layer.name}/{variable.name}"
                if name in arrays:
                    variable.assign(arrays[name].astype(np.float32))
                    filled.add(name)
                elif name.endswith("se_expand/kernel"):
                    variable.assign(0.1 * variable)
                elif name.endswith("se_expand/bias"):
                    variable.assign(variable + 3.0)
        layers = {layer.name for layer in base.layers if layer.weights and "_se_" not in layer.name}
        if filled != set(arrays) or {name.split("/")[0] for name in filled} != layers:
            raise ValueError("the names of the arrays and the layers differ")
