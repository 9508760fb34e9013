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

IMAGENET_MEAN = np.array((0.485, 0.456, 0.406)) * 255  # RGB, 0..255
IMAGENET_STD = np.array((0.229, 0.224, 0.225)) * 255
IMAGENET_FILE = "efficientnet-b0_weights_tf_dim_ordering_tf_kernels_autoaugment_notop.h5"
LITE0_WEIGHTS = Path(__file__).parents[1] / "weights" / "efficientnet-lite0-imagenet.npz"
DOWNLOAD_TIMEOUT = 20  # seconds without an answer, after which the ImageNet weights are given up
GREY = 0.299, 0.587, 0.114  # of red, green and blue, as OpenCV has it
LAPLACIAN = np.array(((0, 1, 0), (1, -4, 1), (0, 1, 0)))
BELL = np.exp(-(np.arange(-4, 5) ** 2) / 2 / 1.2**2)  # of 1.2 pixels; less is what sharpening adds
BELL = BELL[:, None] / BELL.sum()  # down; its transpose is across
MOST_ADDED = 4.0  # times what is fine in an image
BATCH_NORM_MOMENTUM = 0.9  # share of the past in the running statistics a step; see build_model


def find_start_weights(start: str | None) -> tuple[Path | None, str]:
    """Find the weights to start from: their file, or None for random ones, and what to call them.

    ImageNet's are those of the efficientnet package, downloaded once to ~/.keras/models.
    """
    if start is None or start.lower() == "none":
        return None, "random weights"
    if start == "lite0":
        return LITE0_WEIGHTS, "ImageNet weights of EfficientNet-Lite0"
    if start == "auto":
        try:
            return find_start_weights("imagenet")
        except OSError as error:
            print(f"NOTE: training starts from the embedded weights: {error}", file=sys.stderr)
            return find_start_weights("lite0")
    if start != "imagenet":
        if not Path(start).is_file():
            raise FileNotFoundError(
                f"{start}: there is no such weights file; --start takes a file, imagenet, lite0, "
                "auto or none."
            )
        return Path(start), start

    url = efficientnet.weights.IMAGENET_WEIGHTS_PATH + IMAGENET_FILE
    _, file_hash = efficientnet.weights.IMAGENET_WEIGHTS_HASHES["efficientnet-b0"]
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        file = keras.utils.get_file(IMAGENET_FILE, url, cache_subdir="models", file_hash=file_hash)
    except Exception as error:  # Keras raises no narrower one: offline, half a file, a wrong hash
        raise OSError(
            f"the ImageNet weights cannot be downloaded from {url} ({type(error).__name__}): go "
            "online, or fetch that file elsewhere and name it with --start, or start from "
            "the embedded ones with --start lite0."
        ) from error
    finally:
        socket.setdefaulttimeout(None)
    return Path(file), "ImageNet weights"


def build_model(
    start_weights: Path | None, image_size: int = IMAGE_SIZE, sharpen_to: float = 0.0
) -> keras.Model:
    """Build the model: RGB images (n, image_size, image_size, 3) in 0..255 to p_real (n, 1).

    Args:
        start_weights: EfficientNet-B0's weights without its top, or a model of this script
            (`.keras`) of any image size to train on; None for random ones
        sharpen_to: sharpness that a softer image is brought to, see sharpen; 0 for none

    Raises:
        ValueError: the weights are not of this model.
    """
    shape = image_size, image_size, 3
    base = efn.EfficientNetB0(weights=None, include_top=False, pooling="max", input_shape=shape)
    # Batch normalisation trains with the statistics of each batch and validates with running ones.
    # At Keras' momentum of 0.99 those hold on to their first values for hundreds of steps: after
    # 100 steps, 37 % of them still is what they began with, and a short training ends with
    # validation at chance while training does well. At 0.9 it is 0.003 %, and the last 10 batches
    # make most of them, still a few hundred crops.
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = BATCH_NORM_MOMENTUM

    images = keras.Input(shape, name="rgb_0_to_255")
    features = keras.layers.Normalization(
        mean=IMAGENET_MEAN, variance=IMAGENET_STD**2, name="imagenet_mean_and_std"
    )(sharpen(images, sharpen_to))
    features = base(features)
    features = keras.layers.Dense(512, activation="relu")(features)
    features = keras.layers.Dropout(0.5)(features)
    features = keras.layers.Dense(128, activation="relu")(features)
    # 32 bits even where the rest has 16: the loss takes the logarithm of this.
    p_real = keras.layers.Dense(1, activation="sigmoid", name="p_real", dtype="float32")(features)
    model = keras.Model(images, p_real, name="deepfake_detector")

    if start_weights:
        owner = model if start_weights.suffix == ".keras" else base
        try:
            if start_weights.suffix == ".npz":
                fill_from_lite0(base, start_weights)
            else:
                owner.load_weights(start_weights)
        except Exception as error:  # of many kinds, by what the file is instead
            raise ValueError(
                f"{start_weights}: these are not the weights of an EfficientNet-B0 without its "
                "top, nor a model of this script; name another file with --start."
            ) from error
    return model


def sharpen(images: keras.KerasTensor, wanted: float) -> keras.KerasTensor:
    """Sharpen what is softer than wanted: RGB float32 (n, size, size, 3) in 0..255; so it stays.

    Blur makes the traces of a fake fainter, and what is too faint the network takes for none. So
    what is fine in an image is added to it (unsharp masking), as often as it takes to the sharpness
    that is wanted, as measure_sharpness has it, or four times. What is sharp enough stays as it is,
    and where 0 is wanted, all.
    """
    ops = keras.ops
    if not wanted:
        return images

    def convolve(image: keras.KerasTensor, kernel: np.ndarray) -> keras.KerasTensor:
        down, across = (side // 2 for side in kernel.shape)
        padded = ops.pad(image, [(0, 0), (down, down), (across, across), (0, 0)], mode="reflect")
        kernels = np.repeat(kernel[..., None, None], image.shape[3], axis=2)
        return ops.depthwise_conv(padded, kernels.astype(np.float32))

    grey = ops.sum(images * np.float32(GREY), axis=3, keepdims=True)
    edges = convolve(grey, LAPLACIAN)
    sharpness = ops.var(edges, axis=(1, 2, 3), keepdims=True)
    added = ops.clip(ops.sqrt(wanted / (sharpness + 1e-3)) - 1, 0, MOST_ADDED)
    soft = convolve(convolve(images, BELL), BELL.T)
    return ops.clip(images + added * (images - soft), 0, 255)


def fill_from_lite0(base: keras.Model, path: Path) -> None:
    """Fill EfficientNet-B0's convolutions and batch normalisations with those of Lite0.

    Lite0 has the shapes of B0 but no squeeze-and-excitation, so that its gates are opened instead:
    near sigmoid(3) = 0.95 for every input, they change little and can still learn.
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
            raise ValueError("the arrays have other names than the layers")
