"""The detector: EfficientNet-B0, the decision that makes a verdict of its output, and its file.

Script 04 trains it, and the scripts after use it.
"""

from __future__ import annotations

import io
import json
import math
import re
import socket
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import parts.quiet_keras  # noqa: F401 - first, before others load Keras  # isort: skip
import efficientnet.tfkeras as efn
import efficientnet.weights
import h5py
import keras
import numpy as np
import pandas as pd
import scipy.special
import tensorflow as tf

from parts.folders import write_whole

IMAGE_SIZE = 128  # pixels of an image's side, as the known recipe has it
IMAGE_SIZES = range(32, 513, 32)  # that a model may have: the network halves an image five times
IMAGENET_MEAN = np.array((0.485, 0.456, 0.406)) * 255  # RGB, 0..255
IMAGENET_STD = np.array((0.229, 0.224, 0.225)) * 255
IMAGENET_FILE = "efficientnet-b0_weights_tf_dim_ordering_tf_kernels_autoaugment_notop.h5"
LITE0_WEIGHTS = Path(__file__).parents[1] / "weights" / "efficientnet-lite0-imagenet.npz"
DOWNLOAD_TIMEOUT = 20  # seconds without an answer, after which the ImageNet weights are given up
SMALLEST_P = 1e-7  # probabilities are kept this far from 0 and 1, for the sake of their logarithms
LARGEST_MODEL = 200 * 2**20  # bytes of a model's file, unpacked; ours has 20 MB
WEIGHTS = "model.weights.h5"  # in a model's file
GREY = 0.299, 0.587, 0.114  # of red, green and blue, as OpenCV has it
LAPLACIAN = np.array(((0, 1, 0), (1, -4, 1), (0, 1, 0)))
BELL = np.exp(-(np.arange(-4, 5) ** 2) / 2 / 1.2**2)  # of 1.2 pixels; less is what sharpening adds
BELL = BELL[:, None] / BELL.sum()  # down; its transpose is across
MOST_ADDED = 4.0  # times what is fine in an image
BATCH_NORM_MOMENTUM = 0.9  # share of the past in the running statistics a step; see build_model


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


def predict_crops(
    model: keras.Model, images: np.ndarray, crops: pd.DataFrame, batch_size: int
) -> pd.DataFrame:
    """Predict crops, their index being rows of images: the table with a column p_real."""
    # Batches are filled up with the last crop: Keras makes a graph for each number, in seconds.
    size = min(batch_size, len(crops))
    rows = np.pad(crops.index.to_numpy(), (0, -len(crops) % size), mode="edge")
    batches = (images[part] for part in rows.reshape(-1, size))
    p_real = [predict_both_ways(model.predict_on_batch, batch) for batch in batches]
    return crops.assign(p_real=np.concatenate(p_real)[: len(crops)])


def predict_both_ways(predict: Callable[[np.ndarray], object], images: np.ndarray) -> np.ndarray:
    """Predict each image and its mirror image: p_real, float64 (n,), of the mean of both logits.

    A face has no better side, and what chance does to one of the two is halved.

    Args:
        predict: the model, RGB float32 (n, size, size, 3) in 0..255 to p_real (n, 1)
        images: RGB (n, size, size, 3) in 0..255
    """
    both = np.concatenate((images, images[:, :, ::-1])).astype(np.float32)
    p_real = np.asarray(predict(both), np.float64)[:, 0]
    p_real = np.where(np.isfinite(p_real), p_real.clip(SMALLEST_P, 1 - SMALLEST_P), np.nan)
    return scipy.special.expit(scipy.special.logit(p_real).reshape(2, -1).mean(axis=0))


def calibrate(p_real: np.ndarray, decision: Decision) -> np.ndarray:
    """Turn the model's output round and calibrate it: p_fake, float64 of the same shape, 0..1.

    The logit of p_fake is divided by a temperature and shifted (Platt, "Probabilistic Outputs for
    Support Vector Machines", 1999), which changes how sure a score is, never the order of two.
    """
    p_real = np.clip(np.asarray(p_real, np.float64), SMALLEST_P, 1 - SMALLEST_P)
    logit = -scipy.special.logit(p_real) / decision.temperature + decision.shift
    return np.clip(scipy.special.expit(logit), SMALLEST_P, 1 - SMALLEST_P)


def write_model(
    model: keras.Model, decision: Decision, path: Path, training: dict | None = None
) -> None:
    """Write the model and its decision, whole or not at all, and the same for the same weights.

    It goes without the optimizer, a third of the size, and in 32 bits whatever it was trained in.
    The decision and how it was trained are two more files, decision.json and training.json, in the
    zip file that a `.keras` file is.
    """
    keras.config.set_dtype_policy("float32")
    keras.utils.clear_session()  # which counts the layers' names from the beginning again
    plain = build_model(None, model.input_shape[1], decision.sharpen_to)
    plain.set_weights(model.get_weights())
    if list_layers(json.loads(plain.to_json())) != list_layers(json.loads(model.to_json())):
        raise ValueError(f"{path}: the model has other layers than its decision, {decision}, says.")
    decision = decision._replace(image_size=model.input_shape[1])
    score = "p_fake = sigmoid(-logit(p_real) / temperature + shift)"
    about = {"output": "p_real", "positive_class": "fake", "score": score}
    added = {
        "decision.json": json.dumps(about | decision._asdict(), indent=2),
        "training.json": json.dumps(training or {}, indent=2),
    }

    def write(partial: Path) -> None:
        plain.save(partial)
        with zipfile.ZipFile(partial) as saved:
            files = {name: saved.read(name) for name in saved.namelist()}
        for name in ("metadata.json", "config.json"):  # less the date, and addresses in memory
            files[name] = re.sub(rb', "(date_saved|shared_object_id)": [^,}]+', b"", files[name])
        with zipfile.ZipFile(partial, "w") as archive:
            for name, content in (files | added).items():
                archive.writestr(zipfile.ZipInfo(name), content)  # dated 1980

    write_whole(path, write)


class Scorer(NamedTuple):
    """What scores a face: the decision that was saved with a model, and the model once loaded."""

    path: Path
    decision: Decision
    loading: Future  # of the model, and of what predicts with it

    @property
    def model(self) -> keras.Model:
        """Wait for the model; raises what load_model raises."""
        return self.loading.result()[0]

    def predict(self, images: np.ndarray) -> tf.Tensor:
        """Wait for the model, and predict RGB float32 images in 0..255: p_real (n, 1)."""
        return self.loading.result()[1](images)


def read_scorer(path: Path, as_graph: bool = True) -> Scorer:
    """Read a model's decision, and have a thread load the model meanwhile.

    Loading takes three seconds, in which the first frames are decoded and searched for faces.

    Args:
        as_graph: make a graph of it, which takes a second and then scores in a fifth of the time

    Raises:
        FileNotFoundError, ValueError: there is none, or it is none of 04's.
    """
    thread = ThreadPoolExecutor(1)
    loading = thread.submit(load_predictor, path, as_graph)
    thread.shutdown(wait=False)
    try:
        return Scorer(path, read_decision(path), loading)
    except ValueError:
        loading.result()  # a file that is no model at all is told as such
        raise


def load_predictor(path: Path, as_graph: bool) -> tuple[keras.Model, Callable]:
    """Load a model, and make what predicts with it; see read_scorer."""
    model = load_model(path)
    predict = partial(model, training=False)
    if as_graph:  # one for any number of faces: Keras' own predict makes a second one
        crops = tf.TensorSpec(model.input_shape, tf.float32)
        predict = tf.function(predict, input_signature=[crops])
        predict.get_concrete_function()  # made now, not when the first face waits for it
    return model, predict


def load_model(path: Path) -> keras.Model:
    """Load a model of this script; whatever the file holds, none of it is run as code.

    The layers are built anew, and filled from the file once they are known to be the same.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is no such model.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: there is no such model; train one with 04-train-cnn.py, or name another."
        )
    try:
        with open_checked(path) as archive:
            config, decision = json.loads(archive.read("config.json")), {}
            if "decision.json" in archive.namelist():
                decision = json.loads(archive.read("decision.json"))
        sharpen_to = float(decision.get("sharpen_to", 0.0))
        model = build_model(None, read_image_size(config), sharpen_to)
        if list_layers(config) != list_layers(json.loads(model.to_json())):
            raise ValueError("it has other layers")
        # Keras would read them within the zip file, piece by piece, and unpack it for each anew.
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
            model.load_weights(archive.extract(WEIGHTS, folder))
        if not all(np.isfinite(weights).all() for weights in model.get_weights()):
            raise ValueError("some of its weights are not numbers")
    except Exception as error:  # of many kinds, by what the file is instead
        reason = str(error) if type(error) is ValueError else type(error).__name__
        raise ValueError(
            f"{path}: it is not a model of 04-train-cnn.py ({reason}); name a best_model.keras."
        ) from error
    return model


def read_image_size(config: dict) -> int:
    """Read the pixels of an image's side out of a model's config.json."""
    _, size, _, _ = config["config"]["layers"][0]["config"]["batch_shape"]
    if size not in IMAGE_SIZES:
        raise ValueError("it has other layers")
    return size


def list_layers(config: dict) -> list[tuple]:
    """List a model's layers, the base's among them: of each its kind and what it computes."""
    told = "activation", "strides", "padding", "mean", "variance", "batch_shape", "epsilon"
    parts = config["config"]["layers"]
    layers = [layer for part in parts for layer in part["config"].get("layers", [part])]
    values = [[layer["config"].get(name) for name in told] for layer in layers]
    kinds = [layer["class_name"] for layer in layers]
    values = [[v["config"] if isinstance(v, dict) else v for v in of] for of in values]
    return list(zip(kinds, values, strict=True))


def read_decision(path: Path) -> Decision:
    """Read what was saved with a model to turn its output into a verdict.

    Raises:
        ValueError: the file has no such thing.
    """
    try:
        with open_checked(path) as archive:
            names = "decision.json", "config.json"
            saved, config = (json.loads(archive.read(name)) for name in names)
        decision = check_decision({"temperature": None, "threshold": None} | saved)
        decision = decision._replace(image_size=read_image_size(config))
    except Exception as error:  # of many kinds, by what the file is instead
        raise ValueError(
            f"{path}: it has no threshold saved with it, so it is not a model that "
            "04-train-cnn.py wrote; train it there, or name another."
        ) from error
    if "margin" not in saved:
        note = "an older model, without a crop rule; taken as a margin of 30 % of reduced frames"
        print(f"NOTE: {path}: {note}.", file=sys.stderr)
    return decision


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


def read_saved(path: Path, name: str) -> dict:
    """Read a JSON file out of a model's file."""
    with open_checked(path) as archive:
        return json.loads(archive.read(name))


@contextmanager
def open_checked(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a model's file, once that is known to unpack to a sensible size."""
    with zipfile.ZipFile(path) as archive:
        sizes = [info.file_size for info in archive.infolist()]
        if sum(sizes) <= LARGEST_MODEL:
            with h5py.File(io.BytesIO(archive.read(WEIGHTS))) as weights:
                weights.visititems(lambda _, found: sizes.append(getattr(found, "nbytes", 0)))
        if sum(sizes) > LARGEST_MODEL:
            raise ValueError(f"it unpacks to more than {LARGEST_MODEL / 2**20:.0f} MiB")
        yield archive
