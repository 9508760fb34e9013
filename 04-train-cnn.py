"""Train EfficientNet-B0 to tell real faces from fake ones, and report how well it does.

    python 04-train-cnn.py
    python 04-train-cnn.py --start lite0 --epochs 3
    python 04-train-cnn.py --split-dir my-split --model-dir my-model --start my-weights.h5
    python 04-train-cnn.py --epochs 0 --start model/best_model.keras --split-dir other \
        --model-dir model-on-other

Reads   split_dataset/{train,val,test}/{real,fake}/   crops of faces, of any size
        split_dataset/crops.csv                       its video, data set and method
Writes  model/best_model.keras                        the best epoch's model, and threshold
        model/README.md                               the model card: how good, which limits
        model/metrics.json, model/predictions.csv     every measure; the scores of val and test
        model/history.csv                             loss, accuracy and AUC of every epoch
        model/{training_curves,scores,worst_mistakes}.png
        model/unfinished/                             what a stopped training goes on from
Next    06-detect-deepfake.py

The model takes RGB images, 128 x 128, as they are, 0 to 255: what its weights expect of them
(ImageNet's mean and standard deviation) is its first layer. Its output is p_real, the probability
that the face is real. Measures take fake as the positive class, as the field's benchmarks do, and
p_fake = 1 - p_real, calibrated on the validation crops.

A training that was stopped, even by a kill, goes on after its last whole epoch and ends with the
same model. With --epochs 0 nothing is trained: the model given by --start is measured on the crops.

EfficientNet is Tan and Le's ("EfficientNet: Rethinking Model Scaling for Convolutional Neural
Networks", ICML 2019), as the efficientnet package has it.
"""

import hashlib
import json
import math
import os
import platform
import re
import shutil
import socket
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

# Before TensorFlow is imported: it is quieter, and on CPUs that have oneDNN off a third faster.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import cv2
import efficientnet.tfkeras as efn  # knows the model's layers: without it the file does not load
import efficientnet.weights
import filelock
import keras
import numpy as np
import pandas as pd
import scipy.optimize
import scipy.special
import sklearn.metrics
import tensorflow as tf
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

# --------------------------------------------------------------------------------------------------
# folders
SPLIT_DIR = Path("split_dataset")  # train/, val/ and test/, each with real/ and fake/
MODEL_DIR = Path("model")  # the model, its measures and pictures
LITE0_WEIGHTS = Path(__file__).parent / "weights" / "efficientnet-lite0-imagenet.npz"  # "lite0"

# training
START = "auto"  # "imagenet", "lite0" (embedded), "auto" (the first to be had), "none", or a file
EPOCHS = 20  # at most; 0 measures the model given as the start
PATIENCE = 5  # epochs without a higher validation AUC, after which training stops
BATCH_SIZE = 32  # crops a step
LEARNING_RATE = None  # of Adam, at its highest; None: by the start, as in the next lines
LEARNING_RATE_PRETRAINED = 4e-4  # from ImageNet or the embedded weights
LEARNING_RATE_RANDOM = 1e-3  # from random weights, which have farther to go
LEARNING_RATE_FILE = 1e-4  # from a file, which may be a detector already
WARM_UP_STEPS = 100  # over which the rate rises from 0, so that the new top does not shake the rest
DECAY = "cosine"  # after that: "cosine" falls to 0 at the last epoch, "constant" stays
BATCH_NORM_MOMENTUM = 0.9  # share of the past in the running statistics a step; see build_model
SEED = 1  # of the random weights, the order of the crops, the augmentation and the bootstrap

# augmentation: each crop of each epoch is changed at random within these, either way. The known
# recipe has 10 degrees, 0.1, 0.2 and 0.1 in the first four: that resamples every pixel, which blurs
# the traces that are to be learned, and measured no better (see the README).
ROTATION = 0  # degrees
SHIFT = 0.05  # of the width and of the height, in whole pixels
SHEAR = 0  # slope of the uprights
ZOOM = 0  # of the size, width and height apart
BRIGHTNESS = 0.1  # of the range from black to white
CONTRAST = 0.1  # of the distance from the image's mean
FLIP = 0.5  # share of the crops that are mirrored

# report
RESAMPLES = 1000  # of the videos, for the 95 % intervals
FEWEST_VIDEOS = 10  # of either class; from fewer an interval would promise too much: none is given
MISTAKES = 32  # crops on the sheet of the worst ones, one a video

# machine
CROPS_IN_MEMORY = 80_000  # decoded once and kept, 48 KiB each: 4 GB; more are kept on disk
DEVICES = None  # such as ("GPU:0",); None: all GPUs, each a share of every batch, or the CPU
MIXED_PRECISION = True  # 16-bit arithmetic on a GPU that is fast at it (compute capability 7)
JIT_COMPILE = False  # XLA trains this model 14 times slower on a CPU; True may pay on a GPU
TENSORBOARD = False  # True writes the history to model/tensorboard/ as well
DOWNLOAD_TIMEOUT = 20  # seconds without an answer, after which the ImageNet weights are given up
# --------------------------------------------------------------------------------------------------

CLASSES = ("fake", "real")  # in the alphabet's order: fake 0, real 1
SPLITS = ("train", "val", "test")
UNITS = ("crop", "video")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
IMAGE_SIZE = 128  # pixels
IMAGENET_MEAN = np.array((0.485, 0.456, 0.406)) * 255  # RGB, 0..255
IMAGENET_STD = np.array((0.229, 0.224, 0.225)) * 255
SMALLEST_P = 1e-7  # probabilities are kept this far from 0 and 1, for the sake of their logarithms
TEMPERATURES = 0.5, 5.0  # a few separable videos would ask for 0: the bounds keep it sensible
BINS = 10  # of p_fake, for the calibration error
NAMED = 5  # crops left out that the summary names; metrics.json has them all
IMAGENET_FILE = "efficientnet-b0_weights_tf_dim_ordering_tf_kernels_autoaugment_notop.h5"
ABOUT_MEASURES = {
    "positive class": "fake, scored by p_fake; the model's output is p_real",
    "p_fake": "sigmoid(-logit(p_real) / temperature): calibrated on the crops of val",
    "crop": "each crop for itself",
    "video": "each video by the mean p_fake of its crops",
    "..._95": "95 % interval: percentiles of a bootstrap over videos, reals and fakes apart, with "
    "the model, the temperature and the threshold as they are; null where there are too few videos",
    "auc": "area under the ROC curve, 0 to 1, higher is better, 0.5 is chance",
    "average_precision": "area under the precision-recall curve, 0 to 1, higher is better, the "
    "share of fakes is chance",
    "eer": "equal error rate: where as many reals are called fake as fakes real, 0 to 1, lower is "
    "better, 0.5 is chance",
    "log_loss": "mean negative logarithm of the probability of the truth, lower is better",
    "brier": "mean square of p_fake less the truth, 0 to 1, lower is better, 0.25 is always 0.5",
    "accuracy": "share called rightly where p_fake >= threshold is called fake",
    "accuracy_at_0.5": "the same at 0.5",
    "confusion": "counts at the threshold and at 0.5, truth first: fake_as_real are missed fakes",
    "calibration_error": "mean distance of p_fake from the share of fakes, in ten bins of p_fake, "
    "before and after the temperature (Naeini et al., AAAI 2015), lower is better",
}


# --- The crops ------------------------------------------------------------------------------------


def find_crops(split_dir: Path, training: bool = True) -> pd.DataFrame:
    """List the crops: one row each, with crop (its path below split_dir), label, split, video_id,
    dataset and method.

    The folders say label and split, crops.csv the rest. Without it the video is the file name less
    its frame and face (`<video_id>-000042-00.png`), or the whole of any other name.

    Args:
        training: train/ and val/ must be there, test/ may be; else train/ is not looked at, and one
            of the others is enough.

    Raises:
        FileNotFoundError, ValueError: the folder is not one that can be trained on, or measured.
    """
    make = "make it with 03-prepare-fake-real-dataset.py or name another with --split-dir."
    if not split_dir.is_dir():
        raise FileNotFoundError(f"{split_dir}: there is no such folder; {make}")
    if training and not (split_dir / "train").is_dir():
        raise FileNotFoundError(f"{split_dir}: it has no train/, so it is not a split set; {make}")
    needed = ("train", "val") if training else ()
    splits = [name for name in SPLITS if name in needed or (split_dir / name).is_dir()]
    if not training:
        splits = [name for name in splits if name != "train"]
        if not splits:
            raise FileNotFoundError(f"{split_dir}: it has neither val/ nor test/; {make}")
    rows = []
    for split in splits:
        for label in CLASSES:
            folder = split_dir / split / label
            names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
            images = [name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
            images = [name for name in images if not name.startswith(".")]
            if not images:
                raise FileNotFoundError(f"{folder}: there are no {label} crops in it; {make}")
            rows += [(f"{split}/{label}/{name}", label, split) for name in sorted(images)]
    crops = pd.DataFrame(rows, columns=["crop", "label", "split"])
    crops = crops.merge(read_crops_table(split_dir), "left", "crop")
    by_name = crops.crop.map(lambda crop: re.sub(r"-\d{6,}-\d{2,}$", "", Path(crop).stem))
    return crops.fillna({"video_id": by_name, "dataset": "", "method": ""})


def read_crops_table(split_dir: Path) -> pd.DataFrame:
    """Read crop, video_id, dataset and method from crops.csv; no rows where there is no such table.

    Raises:
        ValueError: it is no table, has no columns crop and video_id, or names a crop twice.
    """
    path = split_dir / "crops.csv"
    columns = ["crop", "video_id", "dataset", "method"]
    if not path.exists():
        return pd.DataFrame(columns=columns, dtype=str)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if table["crop"].duplicated().any() or not len(table["video_id"]):
            raise ValueError("a crop stands in it twice")
        return table.reindex(columns=columns, fill_value="")
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{path}: it is not a table with the columns crop and video_id and a row a crop; run "
            "03-prepare-fake-real-dataset.py again, or delete it to go by the file names."
        ) from error


def read_crop(path: Path) -> np.ndarray:
    """Read a crop as the model takes it: RGB uint8 (128, 128, 3).

    Raises:
        ValueError, OSError: it cannot be read or does not decode.
    """
    try:
        image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:  # an empty file
        raise ValueError("does not decode as an image") from error
    if image is None:
        raise ValueError("does not decode as an image")
    return prepare_crop(image)


def prepare_crop(image: np.ndarray) -> np.ndarray:
    """Squeeze a crop, BGR uint8 of any size, to RGB uint8 (128, 128, 3), whatever its proportions.

    Pixels are averaged where the crop shrinks, so nothing aliases, and interpolated where it grows.
    """
    shrinks = min(image.shape[:2]) > IMAGE_SIZE
    resample = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(image, (IMAGE_SIZE, IMAGE_SIZE), interpolation=resample)
    return cv2.cvtColor(resized, cv2.COLOR_BGR2RGB)


@contextmanager
def open_cache(count: int, folder: Path) -> Iterator[np.ndarray]:
    """Give room for decoded crops, uint8 (count, 128, 128, 3): in memory, or in a file if too many.

    Raises:
        OSError: the file would not fit on the disk.
    """
    shape = (count, IMAGE_SIZE, IMAGE_SIZE, 3)
    if count <= CROPS_IN_MEMORY:
        yield np.empty(shape, np.uint8)
        return
    free, needed = shutil.disk_usage(folder).free, math.prod(shape)
    if free < needed:  # found out later, it would be a crash: a mapped file gives no error
        raise OSError(
            f"{folder}: the decoded crops take {needed / 2**30:.1f} GiB there and "
            f"{free / 2**30:.1f} are free; make room, or raise CROPS_IN_MEMORY."
        )
    path = folder / "decoded-crops.partial"
    try:
        yield np.memmap(path, np.uint8, "w+", shape=shape)
    finally:
        path.unlink(missing_ok=True)


def decode_crops(
    crops: pd.DataFrame, split_dir: Path, images: np.ndarray
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Decode every crop, once and for all epochs, into its row of images.

    Returns:
        The crops that decode, their index being their rows, and those that do not with the reason.

    Raises:
        ValueError: a class of a split has no crop left, or val or test fewer than two videos.
    """

    def decode(row: int, crop: str) -> str:
        try:
            images[row] = read_crop(split_dir / crop)
            return ""
        except (ValueError, OSError) as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        reasons = pool.map(decode, range(len(crops)), crops.crop)
        reasons = list(tqdm(reasons, "crops", len(crops), unit="crop"))
    broken = {crop: why for crop, why in zip(crops.crop, reasons, strict=True) if why}
    whole = crops[[not why for why in reasons]]
    again = "make them anew with 03-prepare-fake-real-dataset.py."
    for split, label in crops.groupby(["split", "label"]).groups:
        if not ((whole.split == split) & (whole.label == label)).any():
            raise ValueError(f"{split_dir / split / label}: none of its crops can be read; {again}")
    for split, part in whole[whole.split != "train"].groupby("split"):
        if part.groupby(["label", "video_id"]).ngroups < 2 or part.video_id.nunique() < 2:
            raise ValueError(
                f"{split_dir / split}: all of its crops are of one video, from which nothing can "
                f"be told of others; {again}"
            )
    return whole, broken


def serve_crops(
    images: np.ndarray, crops: pd.DataFrame, batch_size: int, seed: tuple[int, int] | None = None
) -> tf.data.Dataset:
    """Serve batches: RGB float32 (n, 128, 128, 3) in 0..255, and labels (n, 1), fake 0, real 1.

    With a seed, of the run and the epoch, they come shuffled and augmented, the same for the same
    seed, so that a training that was stopped goes on with what would have come; without, as they
    are and in the table's order.
    """
    # Batches of one size, or nearly: a last one of one or two crops would spoil the running
    # statistics of the batch normalisation just before the validation.
    batch_size = math.ceil(len(crops) / math.ceil(len(crops) / batch_size))
    rows = crops.index.to_numpy()
    labels = crops.label.map(CLASSES.index).to_numpy(np.float32)[:, None]
    if seed is not None:
        order = np.random.default_rng(seed).permutation(len(rows))
        rows, labels = rows[order], labels[order]

    def gather(step: tf.Tensor, rows: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch = tf.numpy_function(lambda rows: images[rows], [rows], tf.uint8)
        batch = tf.cast(tf.ensure_shape(batch, (None, *images.shape[1:])), tf.float32)
        if seed is not None:
            batch = augment(batch, tf.random.fold_in(tf.constant(seed, tf.int32), step))
        return batch, labels

    batches = tf.data.Dataset.from_tensor_slices((rows, labels)).batch(batch_size)
    batches = batches.enumerate().map(lambda step, batch: gather(step, *batch), os.cpu_count())
    # tf.data's own tuning looks again after 10 ms, 20 ms, up to a minute, and TensorFlow 2.21 lets
    # the end of an epoch wait for its next look.
    untuned = tf.data.Options()
    untuned.autotune.enabled = False
    return batches.prefetch(8).with_options(untuned)


def augment(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Turn, shift, shear, zoom, mirror and relight each image at random.

    The moves are one affine map: it resamples the pixels once, where one after another would blur
    them five times and hide the very traces that are to be learned. What comes in from outside
    repeats the border. The shear is a slope (0.2 is 11 degrees); Keras' old ImageDataGenerator took
    the same 0.2 for degrees, which moved nothing by as much as a pixel.

    Args:
        images: float32 (n, size, size, 3) in 0..255, and so is the result.
        seed: two integers; the same make the same.
    """
    draws = tf.random.stateless_uniform((9, tf.shape(images)[0]), seed, -1, 1)
    angle = draws[0] * math.radians(ROTATION)
    shear = draws[1] * SHEAR
    zoom_x, zoom_y = 1 + draws[2] * ZOOM, 1 + draws[3] * ZOOM
    zoom_x *= tf.where(draws[4] < 2 * FLIP - 1, -1.0, 1.0)
    shift_x, shift_y = (tf.round(draws[row] * SHIFT * IMAGE_SIZE) for row in (5, 6))
    # Rotation x shear x zoom about the middle; it says where each pixel of the result comes from.
    a, b = tf.cos(angle) * zoom_x, (tf.cos(angle) * shear - tf.sin(angle)) * zoom_y
    c, d = tf.sin(angle) * zoom_x, (tf.sin(angle) * shear + tf.cos(angle)) * zoom_y
    middle = (IMAGE_SIZE - 1) / 2
    x, y = middle * (1 - a - b) + shift_x, middle * (1 - c - d) + shift_y
    maps = tf.stack((a, b, x, c, d, y, tf.zeros_like(a), tf.zeros_like(a)), axis=1)
    images = keras.ops.image.affine_transform(images, maps, "bilinear", fill_mode="nearest")
    contrast = tf.reshape(1 + draws[7] * CONTRAST, (-1, 1, 1, 1))
    brightness = tf.reshape(draws[8] * BRIGHTNESS * 255, (-1, 1, 1, 1))
    means = tf.reduce_mean(images, (1, 2, 3), keepdims=True)
    return tf.clip_by_value((images - means) * contrast + means + brightness, 0, 255)


# --- The model ------------------------------------------------------------------------------------


def find_start_weights(start: str | None) -> tuple[Path | None, str]:
    """Find the weights to start from: their file, or None for random ones, and what to call them.

    ImageNet's are those of the efficientnet package, downloaded once to ~/.keras/models.

    Raises:
        OSError: the ImageNet weights cannot be downloaded, or there is no such file.
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
    timeout_before = socket.getdefaulttimeout()
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
        socket.setdefaulttimeout(timeout_before)
    return Path(file), "ImageNet weights"


def fill_from_lite0(base: keras.Model, path: Path) -> None:
    """Fill EfficientNet-B0's convolutions and batch normalisations with those of Lite0.

    Lite0 has the shapes of B0 but no squeeze-and-excitation, so that its gates are opened instead:
    near sigmoid(3) = 0.95 for every input, they change little and can still learn.

    Raises:
        ValueError: the file holds other arrays than these.
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


def build_model(start_weights: Path | None) -> keras.Model:
    """Build the model: RGB images (n, 128, 128, 3) in 0..255 to p_real (n, 1).

    Args:
        start_weights: EfficientNet-B0's weights without its top, or a model of this script
            (`.keras`) to train on; None for random ones.

    Raises:
        ValueError: the weights are not of this model.
    """
    base = efn.EfficientNetB0(
        weights=None, include_top=False, pooling="max", input_shape=(IMAGE_SIZE, IMAGE_SIZE, 3)
    )
    # Batch normalisation trains with the statistics of each batch and validates with running ones.
    # At Keras' momentum of 0.99 those hold on to their first values for hundreds of steps: after
    # 100 steps, 37 % of them still is what they began with, and a short training ends with
    # validation at chance while training does well. At 0.9 it is 0.003 %, and the last 10 batches
    # make most of them, still a few hundred crops.
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = BATCH_NORM_MOMENTUM

    images = keras.Input((IMAGE_SIZE, IMAGE_SIZE, 3), name="rgb_0_to_255")
    features = keras.layers.Normalization(
        mean=IMAGENET_MEAN, variance=IMAGENET_STD**2, name="imagenet_mean_and_std"
    )(images)
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


class Decision(NamedTuple):
    """What turns a model's output into a verdict; it is saved with the model."""

    temperature: float  # above 0; divides the logit, above 1 where the model is too sure of itself
    threshold: float  # of p_fake, 0..1: a video whose mean is at or above it is called fake


def write_model(model: keras.Model, decision: Decision, path: Path) -> None:
    """Write the model and its decision, whole or not at all.

    It goes without the optimizer, a third of the size, and in 32 bits whatever it was trained in.
    The decision is one more file, decision.json, in the zip file that a `.keras` file is.
    """
    keras.config.set_dtype_policy("float32")
    plain = build_model(None)
    plain.set_weights(model.get_weights())
    partial = path.with_name(path.stem + ".partial.keras")  # Keras goes by the suffix
    plain.save(partial)
    about = {"output": "p_real", "positive_class": "fake", "score": ABOUT_MEASURES["p_fake"]}
    with zipfile.ZipFile(partial, "a") as archive:
        archive.writestr("decision.json", json.dumps(about | decision._asdict(), indent=2))
    partial.replace(path)


def load_model(path: Path) -> keras.Model:
    """Load a model of this script; whatever the file holds, none of it is run as code.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is no such model.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: there is no such model; train one with 04-train-cnn.py, or name another."
        )
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # of many kinds, by what the file is instead
        raise ValueError(
            f"{path}: it is not a model that Keras can load ({type(error).__name__}); name a "
            "best_model.keras of 04-train-cnn.py."
        ) from error
    shapes = [tuple(tensor.shape) for tensor in (*model.inputs, *model.outputs)]
    if shapes != [(None, IMAGE_SIZE, IMAGE_SIZE, 3), (None, 1)]:
        raise ValueError(
            f"{path}: it takes and gives {' and '.join(map(str, shapes))}, where a model of "
            f"04-train-cnn.py takes {(None, IMAGE_SIZE, IMAGE_SIZE, 3)} and gives {(None, 1)}."
        )
    return model


def read_decision(path: Path) -> Decision:
    """Read the temperature and the threshold that were saved with a model.

    Raises:
        ValueError: the file has none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            saved = json.loads(archive.read("decision.json"))
        decision = Decision(float(saved["temperature"]), float(saved["threshold"]))
        if not (0 < decision.temperature < math.inf and 0 <= decision.threshold <= 1):
            raise ValueError(str(decision))
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: it has no threshold saved with it, so it is not a model that "
            "04-train-cnn.py wrote; train it there, or name another."
        ) from error
    return decision


# --- Training -------------------------------------------------------------------------------------


class Progress(keras.callbacks.Callback):
    """Show how an epoch goes on, and measure its speed and what of it was waiting for crops.

    The first step is left out of both: TensorFlow compiles in it.
    """

    def __init__(self, batches: tf.data.Dataset, crops: int, title: str) -> None:
        super().__init__()
        self.steps = int(batches.cardinality())
        self.crops = crops
        self.bar = tqdm(desc=title, total=self.steps, unit="step", leave=False)
        self.waited = self.seconds = 0.0
        self.asked = self.began = time.perf_counter()

    def watch(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """Serve the same batches, noting when each is handed to its step."""

        def note(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            tf.numpy_function(self.note_delivery, [], [])
            return images, labels

        return batches.map(note)

    def note_delivery(self) -> None:
        self.waited += max(0.0, time.perf_counter() - self.asked)

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        self.asked = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.bar.update()
        if batch == 0:
            self.waited, self.began = 0.0, time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.seconds = time.perf_counter() - self.began
        self.bar.close()

    def tell_speed(self) -> dict[str, float]:
        """Tell the crops trained on a second, and the share of the time waited for them, 0..1.

        An epoch of one step has neither: NaN.
        """
        if self.steps < 2:
            return {"crops_per_second": math.nan, "waiting": math.nan}
        return {
            "crops_per_second": self.crops * (1 - 1 / self.steps) / self.seconds,
            "waiting": min(1.0, self.waited / self.seconds),
        }


def choose_precision() -> str:
    """Choose 16 bits on GPUs that are fast at it, where asked for, and else 32."""
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    fast = [detail.get("compute_capability", (0,)) >= (7,) for detail in details]
    return "mixed_float16" if MIXED_PRECISION and fast and all(fast) else "float32"


def choose_strategy() -> tf.distribute.Strategy:
    """Share every batch among DEVICES, or all GPUs, where there are several."""
    devices = DEVICES or [device.name for device in tf.config.list_logical_devices("GPU")]
    if len(devices) > 1:
        return tf.distribute.MirroredStrategy(devices)
    return tf.distribute.OneDeviceStrategy(devices[0]) if devices else tf.distribute.get_strategy()


def prepare_training(model: keras.Model, settings: dict, steps: int) -> None:
    """Compile the model for so many steps with Adam (Kingma and Ba, ICLR 2015).

    The learning rate rises evenly from 0, and then falls as half a cosine (Loshchilov and Hutter,
    "SGDR", ICLR 2017) or stays.
    """
    highest, warm_up = settings["learning_rate"], min(settings["warm_up_steps"], steps // 10)
    rate = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warm_up else highest,
        decay_steps=steps - warm_up,
        alpha=1.0 if settings["decay"] == "constant" else 0.0,
        warmup_target=highest if warm_up else None,
        warmup_steps=warm_up,
    )
    model.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss="binary_crossentropy",
        metrics=["accuracy"],
        jit_compile=JIT_COMPILE,
    )


def seed_dropout(model: keras.Model, seed: int, epoch: int) -> None:
    """Give every dropout its random state for an epoch; the file of a model does not hold it."""
    inner = [layer for part in model.layers for layer in getattr(part, "layers", [])]
    dropouts = [layer for layer in [*model.layers, *inner] if hasattr(layer, "seed_generator")]
    for number, layer in enumerate(dropouts):
        state = np.random.default_rng((seed, epoch, number)).integers(2**31, size=2)
        layer.seed_generator.state.assign(state)


def find_best(history: pd.DataFrame) -> int:
    """Tell the best epoch: of the highest AUC of the validation videos, then of the lowest loss.

    The AUC asks for the right order alone; how sure the scores are, the temperature puts right.
    """
    order = history.sort_values(["val_auc", "val_loss", "epoch"], ascending=[False, True, True])
    return int(order.epoch.iloc[0])


def train_model(
    images: np.ndarray,
    parts: dict[str, pd.DataFrame],
    start_weights: Path | None,
    settings: dict,
    identity: dict,
    folder: Path,
) -> tuple[keras.Model, pd.DataFrame]:
    """Train, or go on training, and return the best epoch's model and the history, a row an epoch.

    Loss and accuracy of training are taken with dropout and augmentation, so those of validation
    may be better.

    Args:
        images: the decoded crops.
        parts: the crops of train and val, their index being rows of images.
        settings: epochs, patience, batch_size, learning_rate, warm_up_steps, decay and seed.
        identity: what an earlier training must agree in for this one to go on from it.
        folder: gets a checkpoint after each epoch.

    Raises:
        ValueError: the loss is no longer a number, or folder is of another training.
    """
    checkpoint, history = read_checkpoint(folder, identity)
    epochs, seed, batch_size = (settings[name] for name in ("epochs", "seed", "batch_size"))
    keras.config.set_dtype_policy(choose_precision())
    keras.utils.set_random_seed(seed)
    with choose_strategy().scope():
        if checkpoint:
            print(f"epochs 1 to {len(history)} of {epochs} were done")
            model = keras.saving.load_model(checkpoint / "last.keras")
        else:
            model = build_model(start_weights)
            steps = math.ceil(len(parts["train"]) / batch_size)
            prepare_training(model, settings, steps * epochs)
        # TensorFlow traces a step that makes variables twice, 20 s here; so they are made before.
        model.optimizer.build(model.trainable_variables)
        model.compute_metrics(None, np.zeros((1, 1)), np.zeros((1, 1)))

    for epoch in range(len(history) + 1, epochs + 1):
        if len(history) and len(history) - find_best(history) >= settings["patience"]:
            break
        seed_dropout(model, seed, epoch)
        batches = serve_crops(images, parts["train"], batch_size, (seed, epoch))
        progress = Progress(batches, len(parts["train"]), f"epoch {epoch} of {epochs}")
        trained = model.fit(progress.watch(batches), callbacks=[progress], shuffle=False, verbose=0)
        val = predict_crops(model, images, parts["val"], batch_size)
        if not np.isfinite(val.p_real).all():
            raise ValueError(
                f"after epoch {epoch} the model's output is no longer a number; train with a "
                f"smaller --learning-rate, and delete {folder} before."
            )
        val["p_fake"] = calibrate(val.p_real, temperature=1)
        of_crops, of_videos = (measure(*get_truth_and_score(val, unit), 0.5) for unit in UNITS)
        row = {
            "epoch": epoch,
            "loss": trained.history["loss"][0],
            "accuracy": trained.history["accuracy"][0],
            "val_loss": of_crops["log_loss"],
            "val_accuracy": of_crops["accuracy"],
            "val_auc": of_videos["auc"],
            **progress.tell_speed(),
        }
        history = pd.concat([history, pd.DataFrame([row])], ignore_index=True)
        write_checkpoint(model, history, identity, folder)
        print(
            f"epoch {epoch} of {epochs}: loss {row['loss']:.3f}, validation loss "
            f"{row['val_loss']:.3f}, accuracy {row['val_accuracy']:.3f}, AUC by video "
            f"{row['val_auc']:.3f}",
            flush=True,
        )
    model.load_weights(folder / f"{len(history):04d}" / "best.weights.h5")
    return model, history


def describe_crops(crops: pd.DataFrame, split_dir: Path) -> str:
    """Give the crops a fingerprint: another one if any is added, removed or written anew."""
    stats = [(split_dir / crop).stat() for crop in crops.crop]
    content = crops.assign(
        size=[stat.st_size for stat in stats], modified=[stat.st_mtime_ns for stat in stats]
    )
    return hashlib.sha256(content.to_csv().encode()).hexdigest()


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints of a training, the last epoch's at the end."""
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())


def read_checkpoint(folder: Path, identity: dict) -> tuple[Path | None, pd.DataFrame]:
    """Find the checkpoint to go on from, and the history up to it; None and no rows if none is.

    Raises:
        ValueError: it is one of a training with other settings or crops.
    """
    if not list_checkpoints(folder):
        return None, pd.DataFrame()
    last = list_checkpoints(folder)[-1]
    earlier = json.loads((last / "identity.json").read_text(encoding="utf-8"))
    differ = [name for name in identity if earlier.get(name) != identity[name]]
    if differ:
        changes = ", ".join(
            name if name == "crops" else f"{name} ({earlier.get(name)} there, {identity[name]} now)"
            for name in differ
        )
        raise ValueError(
            f"{folder}: a training stopped after epoch {int(last.name)} lies there, and it "
            f"differs in {changes}; give its own command to go on with it, delete the folder to "
            "give it up, or name another with --model-dir."
        )
    return last, pd.read_csv(last / "history.csv", float_precision="round_trip")


def write_checkpoint(
    model: keras.Model, history: pd.DataFrame, identity: dict, folder: Path
) -> None:
    """Write what a training goes on from: a folder an epoch, that appears when it is whole.

    Keras' own BackupAndRestore forgets which epoch was the best so far (Keras issue 17012).
    """
    epoch, partial = len(history), folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save(partial / "last.keras")
    if find_best(history) == epoch:
        model.save_weights(partial / "best.weights.h5")
    else:
        shutil.copy(folder / f"{epoch - 1:04d}" / "best.weights.h5", partial)
    history.to_csv(partial / "history.csv", index=False)
    write_json(identity, partial / "identity.json")
    partial.rename(folder / f"{epoch:04d}")
    for older in list_checkpoints(folder)[:-1]:
        shutil.rmtree(older)


# --- Scores and measures --------------------------------------------------------------------------


def predict_crops(
    model: keras.Model, images: np.ndarray, crops: pd.DataFrame, batch_size: int
) -> pd.DataFrame:
    """Predict crops, their index being rows of images: the table with a column p_real."""
    p_real = model.predict(serve_crops(images, crops, batch_size), verbose=0)[:, 0]
    return crops.assign(p_real=p_real.astype(np.float64))


def calibrate(p_real: np.ndarray, temperature: float) -> np.ndarray:
    """Turn the model's output round and calibrate it: p_fake, float64 of the same shape, 0..1.

    The logit is divided by the temperature (Guo et al., "On Calibration of Modern Neural Networks",
    ICML 2017), which changes how sure a score is and never the order of two.
    """
    p_real = np.clip(np.asarray(p_real, np.float64), SMALLEST_P, 1 - SMALLEST_P)
    return scipy.special.expit(-scipy.special.logit(p_real) / temperature)


def fit_temperature(val: pd.DataFrame) -> float:
    """Find the temperature of the lowest log loss on the validation crops, within TEMPERATURES."""
    is_fake = (val.label == "fake").to_numpy()

    def log_loss(temperature: float) -> float:
        return measure_loss(is_fake, calibrate(val.p_real, temperature))

    return float(scipy.optimize.minimize_scalar(log_loss, bounds=TEMPERATURES).x)


def choose_threshold(val: pd.DataFrame) -> float:
    """Find the p_fake where, by validation video, as many reals are called fake as fakes real.

    It lies half-way between two scores: on one, a rounding could turn the verdict.
    """
    is_fake, p_fake = get_truth_and_score(val, "video")
    _, _, cut = find_equal_errors(is_fake, p_fake)
    below = p_fake[p_fake < cut]
    return float((min(cut, 1.0) + below.max()) / 2) if len(below) else float(cut)


def get_truth_and_score(predictions: pd.DataFrame, unit: str) -> tuple[np.ndarray, np.ndarray]:
    """Take is_fake, bool (n,), and p_fake, float64 (n,), of each crop or of each video's mean."""
    if unit == "video":
        predictions = average_by_video(predictions)
    return (predictions.label == "fake").to_numpy(), predictions.p_fake.to_numpy(np.float64)


def average_by_video(predictions: pd.DataFrame) -> pd.DataFrame:
    """Give each video the mean p_fake of its crops: label, video_id, p_fake."""
    return predictions.groupby(["label", "video_id"], as_index=False).p_fake.mean()


def measure_loss(is_fake: np.ndarray, p_fake: np.ndarray) -> float:
    """Measure the log loss: the mean of -log of the probability that was given to the truth."""
    p_truth = np.where(is_fake, p_fake, 1 - p_fake)
    return float(-np.log(np.clip(p_truth, SMALLEST_P, 1)).mean())


def find_equal_errors(is_fake: np.ndarray, p_fake: np.ndarray) -> tuple[float, float, float]:
    """Find where the two error rates come closest: AUC, equal error rate and the score there."""
    false_alarms, found, cuts = sklearn.metrics.roc_curve(is_fake, p_fake, drop_intermediate=False)
    nearest = np.argmin(np.abs(false_alarms - (1 - found)))
    eer = (false_alarms[nearest] + 1 - found[nearest]) / 2
    return float(sklearn.metrics.auc(false_alarms, found)), float(eer), float(cuts[nearest])


def measure(is_fake: np.ndarray, p_fake: np.ndarray, threshold: float) -> dict[str, float]:
    """Measure the scores of crops or of videos; ABOUT_MEASURES says what the numbers are."""
    auc, eer, _ = find_equal_errors(is_fake, p_fake)
    return {
        "auc": auc,
        "average_precision": float(sklearn.metrics.average_precision_score(is_fake, p_fake)),
        "eer": eer,
        "log_loss": measure_loss(is_fake, p_fake),
        "brier": float(np.mean((p_fake - is_fake) ** 2)),
        "accuracy": float(np.mean((p_fake >= threshold) == is_fake)),
        "accuracy_at_0.5": float(np.mean((p_fake >= 0.5) == is_fake)),
    }


def measure_with_intervals(
    predictions: pd.DataFrame, unit: str, threshold: float, resamples: int, seed: int
) -> dict[str, float | list[float] | None]:
    """Measure predictions, with the 95 % interval of each measure, and count what they rest on.

    The bootstrap (Efron, 1979) draws videos, not crops: the crops of a video are nearly the same
    picture, and drawn one by one they would promise far too much.
    """
    table = average_by_video(predictions) if unit == "video" else predictions
    is_fake, p_fake = get_truth_and_score(table, "crop")  # the table is of the unit already
    values = measure(is_fake, p_fake, threshold)
    videos = table.reset_index(drop=True).groupby(["label", "video_id"]).indices
    rows = {label: [rows for (its, _), rows in videos.items() if its == label] for label in CLASSES}
    enough = min(map(len, rows.values())) >= FEWEST_VIDEOS
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples if enough else 0):
        drawn = [of[pick] for of in rows.values() for pick in rng.integers(len(of), size=len(of))]
        drawn = np.concatenate(drawn)
        draws.append(measure(is_fake[drawn], p_fake[drawn], threshold))
    draws = pd.DataFrame(draws)
    result = {f"fake {unit}s": int(is_fake.sum()), f"real {unit}s": int((~is_fake).sum())}
    for name, value in values.items():
        interval = np.percentile(draws[name], (2.5, 97.5)).tolist() if enough else None
        result |= {name: value, f"{name}_95": interval}
    return result


def count_confusion(is_fake: np.ndarray, p_fake: np.ndarray, threshold: float) -> dict[str, int]:
    """Count what was called what at a threshold, truth first."""
    called_fake = p_fake >= threshold
    return {
        "fake_as_fake": int((is_fake & called_fake).sum()),
        "fake_as_real": int((is_fake & ~called_fake).sum()),
        "real_as_fake": int((~is_fake & called_fake).sum()),
        "real_as_real": int((~is_fake & ~called_fake).sum()),
    }


def bin_scores(is_fake: np.ndarray, p_fake: np.ndarray) -> pd.DataFrame:
    """Sort scores into BINS equal bins of p_fake: count, mean p_fake and share of fakes of each."""
    bins = np.minimum((p_fake * BINS).astype(int), BINS - 1)
    table = pd.DataFrame({"p_fake": p_fake, "fakes": is_fake.astype(float), "count": 1})
    return table.groupby(bins).agg({"p_fake": "mean", "fakes": "mean", "count": "sum"})


def measure_calibration(is_fake: np.ndarray, p_fake: np.ndarray) -> float:
    """Measure the expected calibration error, 0..1 (Naeini et al., AAAI 2015)."""
    bins = bin_scores(is_fake, p_fake)
    return float(np.average(np.abs(bins.p_fake - bins.fakes), weights=bins["count"]))


def split_groups(predictions: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the predictions of each data set, and of each method with the reals of its data sets.

    Groups without a real or without a fake are left out: nothing can be measured in them.
    """
    groups = [(f"data set {name}", part) for name, part in predictions.groupby("dataset") if name]
    reals = predictions[predictions.label == "real"]
    for (dataset, method), fakes in predictions[predictions.label == "fake"].groupby(
        ["dataset", "method"]
    ):
        if method:
            of_dataset = reals[reals.dataset == dataset]
            groups.append((f"{dataset}, method {method}", pd.concat([fakes, of_dataset])))
    for name, part in groups:
        if part.label.nunique() == len(CLASSES):
            yield name, part


def make_report(
    predictions: pd.DataFrame, decision: Decision, resamples: int, seed: int
) -> dict[str, dict]:
    """Measure everything, by split: measures, confusion, groups, calibration_error."""
    report = {name: {} for name in ("measures", "confusion", "groups", "calibration_error")}
    tables = [(split, unit) for split in predictions.split.unique() for unit in UNITS]
    for split, unit in tqdm(tables, "intervals", leave=False):
        part = predictions[predictions.split == split]
        is_fake, p_fake = get_truth_and_score(part, unit)
        before = part.assign(p_fake=calibrate(part.p_real, temperature=1))
        for name, value in (
            (
                "measures",
                measure_with_intervals(part, unit, decision.threshold, resamples, seed),
            ),
            (
                "confusion",
                {
                    "at threshold": count_confusion(is_fake, p_fake, decision.threshold),
                    "at 0.5": count_confusion(is_fake, p_fake, 0.5),
                },
            ),
            (
                "calibration_error",
                {
                    "before": measure_calibration(*get_truth_and_score(before, unit)),
                    "after": measure_calibration(is_fake, p_fake),
                },
            ),
            (
                "groups",
                {
                    group: measure_with_intervals(some, unit, decision.threshold, resamples, seed)
                    for group, some in split_groups(part)
                },
            ),
        ):
            report[name].setdefault(split, {})[unit] = value
    return report


def count_crops(crops: pd.DataFrame) -> dict[str, int]:
    """Count the crops and videos of each class."""
    counts = {}
    for label in CLASSES:
        of_class = crops[crops.label == label]
        counts[f"{label} crops"] = len(of_class)
        counts[f"{label} videos"] = of_class.video_id.nunique()
    return counts


# --- What is written ------------------------------------------------------------------------------


def lock_folder(folder: Path) -> filelock.AcquireReturnProxy:
    """Hold a folder for this run alone, until the `with` ends or the process dies, however it dies.

    Raises:
        ValueError: another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return filelock.FileLock(folder / ".lock").acquire(timeout=0)
    except filelock.Timeout as error:
        raise ValueError(
            f"{folder}: another run is writing to it; wait for its end, or name another folder."
        ) from error


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV table whole or not at all: to a temporary name beside it, then renamed."""
    partial = path.with_name(path.name + ".partial")
    table.to_csv(partial, index=False)
    partial.replace(path)


def write_json(content: dict, path: Path) -> None:
    """Write a JSON file whole or not at all: to a temporary name beside it, then renamed."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def write_text(text: str, path: Path) -> None:
    """Write a text file whole or not at all: to a temporary name beside it, then renamed."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_picture(figure: Figure, path: Path) -> None:
    """Write a picture as PNG whole or not at all: to a temporary name beside it, then renamed."""
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=150)
    partial.replace(path)


def write_tensorboard(history: pd.DataFrame, folder: Path) -> None:
    """Write the history for TensorBoard, anew."""
    shutil.rmtree(folder, ignore_errors=True)
    with tf.summary.create_file_writer(str(folder)).as_default():
        for row in history.to_dict("records"):
            for name in set(row) - {"epoch"}:
                tf.summary.scalar(name, row[name], step=int(row["epoch"]))


def draw_training_curves(history: pd.DataFrame) -> Figure:
    """Draw loss, accuracy and AUC of training and validation by epoch."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = (("loss", ("loss", "val_loss")), ("accuracy", ("accuracy", "val_accuracy")))
    panels = (*panels, ("AUC by video", (None, "val_auc")))
    for axes, (title, columns) in zip(figure.subplots(1, 3), panels, strict=True):
        for column, label, color in zip(
            columns, ("training", "validation"), ("C0", "C1"), strict=True
        ):
            if column:
                axes.plot(history.epoch, history[column], "o-", ms=3, label=label, color=color)
        axes.axvline(find_best(history), color="0.6", linestyle=":", label="epoch kept")
        set_up(axes, "", "epoch", title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False)
    return figure


def set_up(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """Give a panel its words and its plain look."""
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def draw_scores(predictions: pd.DataFrame, decision: Decision, title: str) -> Figure:
    """Draw a split's scores: ROC, precision-recall, histograms, calibration, confusion."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    figure.suptitle(title)
    (roc, precision_recall, confusion), (by_crop, by_video, reliability) = figure.subplots(2, 3)
    for unit, line in zip(UNITS, ("-", "--"), strict=True):  # to be seen where both lie together
        is_fake, p_fake = get_truth_and_score(predictions, unit)
        values = measure(is_fake, p_fake, decision.threshold)
        false_alarms, found, _ = sklearn.metrics.roc_curve(is_fake, p_fake)
        roc.plot(false_alarms, found, line, label=f"by {unit}: AUC {values['auc']:.3f}")
        precision, recall, _ = sklearn.metrics.precision_recall_curve(is_fake, p_fake)
        label = f"by {unit}: average precision {values['average_precision']:.3f}"
        precision_recall.plot(recall, precision, line, label=label)
    roc.plot((0, 1), (0, 1), color="0.6", linestyle=":", label="chance")
    set_up(roc, "ROC", "reals called fake", "fakes found")
    precision_recall.set_ylim(0, 1.03)
    set_up(precision_recall, "Precision and recall", "fakes found", "fakes among those called so")

    counts = count_confusion(*get_truth_and_score(predictions, "video"), decision.threshold)
    cells = np.reshape(list(counts.values()), (2, 2))
    confusion.imshow(cells / cells.sum(axis=1, keepdims=True), cmap="Blues", vmin=0, vmax=1.4)
    for (row, column), count in np.ndenumerate(cells):
        confusion.text(column, row, f"{count:,}", ha="center", va="center", fontsize="x-large")
    confusion.set(xticks=(0, 1), yticks=(0, 1), xticklabels=CLASSES, yticklabels=CLASSES)
    confusion.set(title=f"Videos at {decision.threshold:.3f}", xlabel="called", ylabel="truth")

    for axes, unit in zip((by_crop, by_video), UNITS, strict=True):
        is_fake, p_fake = get_truth_and_score(predictions, unit)
        for label, color, of in (("fake", "C3", is_fake), ("real", "C0", ~is_fake)):
            axes.hist(
                p_fake[of], 25, range=(0, 1), alpha=0.6, color=color, label=f"{label}, {of.sum():,}"
            )
        axes.axvline(decision.threshold, color="0.3", linestyle="--", label="threshold")
        set_up(axes, f"Scores by {unit}", "p_fake", f"{unit}s")

    for label, temperature in (("before", 1.0), ("after the temperature", decision.temperature)):
        table = predictions.assign(p_fake=calibrate(predictions.p_real, temperature))
        is_fake, p_fake = get_truth_and_score(table, "crop")
        bins = bin_scores(is_fake, p_fake)
        error = measure_calibration(is_fake, p_fake)
        reliability.plot(bins.p_fake, bins.fakes, "o-", label=f"{label}: error {error:.3f}")
    reliability.plot((0, 1), (0, 1), color="0.6", linestyle=":", label="perfect")
    set_up(reliability, "Calibration by crop", "p_fake, mean of a tenth", "share of fakes in it")
    for axes in (roc, precision_recall, by_crop, by_video, reliability):
        axes.legend(frameon=False)
    return figure


def draw_worst_mistakes(
    predictions: pd.DataFrame, images: np.ndarray, decision: Decision
) -> Figure:
    """Draw the crops that are farthest on the wrong side of the threshold, one a video.

    Args:
        predictions: their index being rows of images.
    """
    sign = np.where(predictions.label == "fake", -1, 1)
    wrong_by = sign * (predictions.p_fake - decision.threshold)
    table = predictions.assign(wrong_by=wrong_by).sort_values("wrong_by", ascending=False)
    table = table[table.wrong_by > 0].drop_duplicates(["label", "video_id"]).head(MISTAKES)
    rows = max(1, math.ceil(len(table) / 8))
    figure = Figure(figsize=(13, 1 + 2 * rows), layout="constrained")
    figure.suptitle(
        "Worst mistakes: truth, p_fake and video" if len(table) else "No crop is on the wrong side"
    )
    panels = figure.subplots(rows, 8, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, (row, crop) in zip(panels, table.iterrows(), strict=False):
        axes.imshow(images[row])
        axes.set_title(f"{crop.label}, {crop.p_fake:.2f}\n{crop.video_id[-22:]}", fontsize="small")
    return figure


def format_measure(values: dict, name: str) -> str:
    """Write a measure with its interval, if it has one: "0.840 (0.822 to 0.857)"."""
    interval = values[f"{name}_95"]
    return f"{values[name]:.3f}" + (
        f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    )


def tabulate_measures(measures: dict[str, dict]) -> str:
    """Make a Markdown table of measures with their intervals, a row for each name."""
    columns = {"auc": "AUC", "average_precision": "AP", "eer": "EER", "accuracy": "accuracy"}
    columns |= {"accuracy_at_0.5": "accuracy at 0.5", "log_loss": "log loss", "brier": "Brier"}
    lines = [
        "| | fake | real | " + " | ".join(columns.values()) + " |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for name, values in measures.items():
        fake, real = list(values.values())[:2]
        cells = " | ".join(format_measure(values, column) for column in columns)
        lines.append(f"| {name} | {fake:,} | {real:,} | {cells} |")
    return "\n".join(lines)


def write_model_card(metrics: dict, path: Path) -> None:
    """Write the model card (Mitchell et al., "Model Cards for Model Reporting", FAT* 2019)."""
    decision = metrics["decision"]
    rows = {
        f"{split}, by {unit}": values
        for split, units in metrics["measures"].items()
        for unit, values in units.items()
    }
    groups = {
        f"{split}, by {unit}: {group}": values
        for split, units in metrics["groups"].items()
        for unit, found in units.items()
        for group, values in found.items()
    }
    counts = "\n".join(
        f"| {split} | " + " | ".join(f"{count:,}" for count in values.values()) + " |"
        for split, values in metrics["counts"].items()
    )
    trained = (
        f"started from {metrics['started_from']}, {metrics['epochs_run']} epochs, "
        f"of which number {metrics['best_epoch']} is kept"
        if metrics["epochs_run"]
        else f"not trained here: measured as it is, {metrics['started_from']}"
    )
    errors = "; ".join(
        f"{split} by {unit} {value['before']:.3f} before, {value['after']:.3f} after"
        for split, units in metrics["calibration_error"].items()
        for unit, value in units.items()
    )
    settings = "\n".join(f"| {name} | {value} |" for name, value in metrics["settings"].items())
    versions = ", ".join(f"{name} {value}" for name, value in metrics["versions"].items())
    write_text(
        f"""# Deepfake detector: EfficientNet-B0 on crops of faces

It takes RGB images of 128 x 128 x 3, 0 to 255, and gives p_real, the probability that the face is
real; p_fake = sigmoid(-logit(p_real) / {decision["temperature"]:.4g}). A video's score is the mean
p_fake of its crops, and **from {decision["threshold"]:.4f} on it is called fake**. Temperature and
threshold were found on the validation part: the threshold is where, by video, as many reals are
called fake as fakes real.

Training: {trained}.

| | fake crops | fake videos | real crops | real videos |
|---|---|---|---|---|
{counts}

## How good it is

Fake is the positive class. In brackets: 95 % intervals, by a bootstrap over videos; where there are
none, the videos are too few to tell. The numbers of the validation part flatter: epoch, temperature
and threshold were chosen on it.

{tabulate_measures(rows)}

Expected calibration error and the temperature: {errors}.

{tabulate_measures(groups) if groups else "No data set or method is known for these crops."}

## What it is not

A score is no proof, and nobody should be accused on the strength of one. The measures hold for
faces like those above: of the same data sets, methods, cameras and compression. On methods that it
has not seen a detector is known to fall far below its test measures, and compression, a filter or
an attack alone can undo it. The intervals are about the chance in drawing videos, not about that.

## Made with

| setting | value |
|---|---|
{settings}

{versions}
""",
        path,
    )


# --- The run --------------------------------------------------------------------------------------


def print_report(
    metrics: dict, history: pd.DataFrame, judged: str, split_dir: Path, model_dir: Path
) -> None:
    """Print the few numbers that a reader would check."""
    print(f"{model_dir}")
    print(f"  started from    {metrics['started_from']}")
    if len(history):
        speed, waiting = history.crops_per_second.median(), history.waiting.median()
        print(f"  epochs          {len(history)}, the best of which is {metrics['best_epoch']}")
        print(f"  speed           {speed:.0f} crops/s, {waiting:.1%} of the time waiting for them")
    for split, count in metrics["counts"].items():
        print(
            f"  {split:15} {count['real crops'] + count['fake crops']:,} crops of "
            f"{count['real videos'] + count['fake videos']:,} videos"
        )
    left_out = list(metrics["left_out"])
    if left_out:
        named = ", ".join(left_out[:NAMED]) + (", ..." if len(left_out) > NAMED else "")
        print(f"  left out        {len(left_out):,} crops that cannot be read: {named}")
    if judged != "test":
        print(f"  no test/        {split_dir} has none, so these are the measures of val/:")
    for unit, values in metrics["measures"][judged].items():
        auc, eer, accuracy = (format_measure(values, name) for name in ("auc", "eer", "accuracy"))
        print(f"  {judged + ', by ' + unit:15} AUC {auc}, EER {eer}, accuracy {accuracy}")
    print(f"  threshold       p_fake {metrics['decision']['threshold']:.3f} and above is fake")
    print(f"  look next at    {model_dir / 'README.md'} and {model_dir / 'scores.png'}")


def main(
    split_dir: Path = SPLIT_DIR,
    model_dir: Path = MODEL_DIR,
    start: str | None = START,
    epochs: int = EPOCHS,
    patience: int = PATIENCE,
    batch_size: int = BATCH_SIZE,
    learning_rate: float | None = LEARNING_RATE,
    warm_up_steps: int = WARM_UP_STEPS,
    decay: Literal["cosine", "constant"] = DECAY,
    seed: int = SEED,
    resamples: int = RESAMPLES,
) -> dict:
    """Train EfficientNet-B0 to tell real faces from fake ones, and report how well it does.

    Args:
        split_dir: folder with train/, val/ and test/, each with real/ and fake/
        model_dir: folder for the model, its measures and pictures
        start: imagenet, lite0 (embedded), auto (the first of the two to be had), none, or a file
        epochs: epochs at most; 0 measures the model given by --start, without training
        patience: epochs without a higher validation AUC, after which training stops
        batch_size: crops a step
        learning_rate: of Adam, at its highest; None: 4e-4, from random weights 1e-3, a file 1e-4
        warm_up_steps: steps over which it rises from 0, a tenth of all at most
        decay: after that it falls to 0 as half a cosine, or is constant
        seed: the same seed, crops and machine give the same model
        resamples: of the videos, for the 95 % intervals

    Returns:
        What metrics.json holds.

    Raises:
        ValueError: a number is out of its range, the crops or the start weights cannot be used, the
            loss is no longer a number, or model_dir holds another training or is in use.
        OSError: a folder or file is not there, or the ImageNet weights cannot be downloaded.
    """
    for name, value, least in (
        ("epochs", epochs, 0),
        ("patience", patience, 1),
        ("batch size", batch_size, 1),
        ("warm-up steps", warm_up_steps, 0),
        ("seed", seed, 0),
        ("resamples", resamples, 1),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; give {least} or more.")
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise ValueError(f"learning rate is {learning_rate}; give a number above 0.")
    if model_dir.exists() and not model_dir.is_dir():
        raise ValueError(
            f"{model_dir}: it is a file; name a folder for the model with --model-dir."
        )
    if not epochs and (not str(start).endswith(".keras") or Path(start).parent == model_dir):
        raise ValueError(
            "with --epochs 0 a model is measured: name a best_model.keras with --start, and a "
            "folder of its own for the report with --model-dir."
        )

    crops = find_crops(split_dir, training=epochs > 0)
    start_weights, started_from = find_start_weights(start)
    keras.config.set_dtype_policy("float32")
    model, history = None if epochs else load_model(start_weights), pd.DataFrame()
    if learning_rate is None:
        pretrained = LEARNING_RATE_PRETRAINED if "ImageNet" in started_from else LEARNING_RATE_FILE
        learning_rate = pretrained if start_weights else LEARNING_RATE_RANDOM
    settings = {
        "epochs": epochs,
        "patience": patience,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "warm_up_steps": warm_up_steps,
        "decay": decay,
        "seed": seed,
    }
    constants = {
        "batch_norm_momentum": BATCH_NORM_MOMENTUM,
        "rotation": ROTATION,
        "shift": SHIFT,
        "shear": SHEAR,
        "zoom": ZOOM,
        "brightness": BRIGHTNESS,
        "contrast": CONTRAST,
        "flip": FLIP,
    }
    versions = {"Python": platform.python_version(), "TensorFlow": tf.__version__}
    versions |= {"Keras": keras.__version__, "efficientnet": version("efficientnet")}

    with lock_folder(model_dir), open_cache(len(crops), model_dir) as images:
        crops, left_out = decode_crops(crops, split_dir, images)
        parts = {split: part for split, part in crops.groupby("split", sort=False)}
        if epochs:
            identity = settings | constants | {"start": started_from, **versions}
            identity["crops"] = describe_crops(crops, split_dir)
            unfinished = model_dir / "unfinished"
            model, history = train_model(
                images, parts, start_weights, settings, identity, unfinished
            )
        predictions = pd.concat(
            predict_crops(model, images, part, batch_size)
            for split, part in parts.items()
            if split != "train"
        )
        if epochs:
            val = predictions[predictions.split == "val"]
            temperature = fit_temperature(val)
            val = val.assign(p_fake=calibrate(val.p_real, temperature))
            decision = Decision(temperature, choose_threshold(val))
        else:
            decision = read_decision(start_weights)
        predictions["p_fake"] = calibrate(predictions.p_real, decision.temperature)
        metrics = {
            "decision": decision._asdict(),
            **make_report(predictions, decision, resamples, seed),
            "about_measures": ABOUT_MEASURES,
            "counts": {split: count_crops(part) for split, part in parts.items()},
            "left_out": left_out,
            "start": start,
            "started_from": started_from,
            "epochs_run": len(history),
            "best_epoch": find_best(history) if epochs else None,
            "settings": settings | constants | {"resamples": resamples, "image_size": IMAGE_SIZE},
            "versions": versions,
        }

        judged = "test" if "test" in parts else "val"
        of_judged = predictions[predictions.split == judged]
        title = f"{judged} of {split_dir}, fake being the positive class"
        columns = ["crop", "video_id", "dataset", "method", "label", "split", "p_real", "p_fake"]
        write_table(predictions[columns], model_dir / "predictions.csv")
        write_picture(draw_scores(of_judged, decision, title), model_dir / "scores.png")
        mistakes = draw_worst_mistakes(of_judged, images, decision)
        write_picture(mistakes, model_dir / "worst_mistakes.png")
        if epochs:
            write_model(model, decision, model_dir / "best_model.keras")
            write_table(history, model_dir / "history.csv")
            write_picture(draw_training_curves(history), model_dir / "training_curves.png")
        if epochs and TENSORBOARD:
            write_tensorboard(history, model_dir / "tensorboard")
        write_model_card(metrics, model_dir / "README.md")
        write_json(metrics, model_dir / "metrics.json")
        if epochs:
            finished = model_dir / "finished.partial"  # half of it, after a kill, is of no use
            shutil.rmtree(finished, ignore_errors=True)
            unfinished.rename(finished)
            shutil.rmtree(finished)
    print_report(metrics, history, judged, split_dir, model_dir)
    return metrics


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except KeyboardInterrupt:
        message = "stopped; the same command goes on after the last whole epoch."
        print(f"{Path(__file__).name}: {message}", file=sys.stderr)
        os._exit(130)
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
