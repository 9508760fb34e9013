"""Train EfficientNet-B0 to tell real faces from fake ones.

    python 04-train-cnn.py
    python 04-train-cnn.py --start lite0 --epochs 3
    python 04-train-cnn.py --split-dir my-split --model-dir my-model --start my-weights.h5

Reads   split_dataset/{train,val}/{real,fake}/   crops of faces, of any size; test/ is never opened
        split_dataset/crops.csv                  the video, data set and method of each crop
        split_dataset/crop-rule.json             how the crops were cut
Writes  model/best_model.keras                   the best epoch's model, with what makes a verdict
        model/history.csv                        loss, accuracy and AUC of every epoch
        model/training_curves.png                the same as a picture
        model/unfinished.keras                   what a stopped training goes on from
Next    05-evaluate-model.py

The model takes RGB images, 128 x 128, as they are, 0 to 255: its first layer normalises them by
ImageNet's mean and standard deviation. Its output is p_real, the probability that the face is real.
p_fake, the score that the later scripts use, is 1 - p_real after a calibration on the validation
crops; the calibration, the threshold and the way the crops were cut are saved in the model's file.

A training that was stopped, even by a kill, goes on after its last whole epoch and ends with the
same model and history, byte for byte.

EfficientNet is Tan and Le's ("EfficientNet: Rethinking Model Scaling for Convolutional Neural
Networks", ICML 2019), as the efficientnet package has it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import shutil
import signal
import socket
import sys
import tempfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

# Before TensorFlow is imported: it is quieter, and on CPUs that have oneDNN off a third faster.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import cv2
import efficientnet.tfkeras as efn
import efficientnet.weights
import filelock
import h5py
import keras
import numpy as np
import pandas as pd
import scipy.optimize
import scipy.special
import sklearn.metrics
import tensorflow as tf
import tyro
from matplotlib.figure import Figure
from sklearn.utils.class_weight import compute_sample_weight
from tqdm import tqdm
from tqdm.keras import TqdmCallback

# --------------------------------------------------------------------------------------------------
# folders
SPLIT_DIR = Path("split_dataset")  # train/ and val/, each with real/ and fake/
MODEL_DIR = Path("model")  # the model and its history
# training
START = "auto"  # "imagenet", "lite0" (embedded), "auto" (the first to be had), "none", or a file
EPOCHS = 20  # at most
PATIENCE = 5  # epochs without a higher validation AUC, after which training stops
BATCH_SIZE = 32  # crops a step
LEARNING_RATE = None  # of Adam, at its highest; None: by the start, see LEARNING_RATES
WARM_UP_STEPS = 100  # of a rising rate, as an untrained top's gradients spoil the layers below it
DECAY = "cosine"  # after that: "cosine" falls to 0 at the last epoch, "constant" stays
SEED = 1  # of the random weights, the order of the crops and the augmentation
# augmentation
PAIRED = True  # each real crop comes with a fake, both changed alike; False: every crop by itself
REPEATS = 2  # times that a real comes in an epoch at most, where its data set has more fakes
SELF_BLENDED = 0.25  # share of the pairs whose fake is a blend of the real, of no one's method
FLIP = 0.5  # share that is mirrored
SHIFT = 0.05  # largest, of the width and height, in whole pixels
ROTATION = 0.0  # degrees at most; every turn resamples the pixels, which blurs the traces
ZOOMED = 0.5, 0.15  # share that is zoomed, and by how much at most: later margins will differ
BRIGHTNESS = 0.1  # largest change, of the range from black to white
CONTRAST = 0.1  # largest change, of the distance from the image's mean
TINT = 0.03  # largest change of one colour, of its range; half of the crops are tinted
GREY = 0.05  # share that loses its colours
CUT_OUT = 0.15  # share with a bar over eyes, nose or mouth: the model is not to rest on one of them
REDUCED = 0.3, 32  # share that is reduced and enlarged again, and the shortest side, in pixels
BLURRED = 0.2, 1.6  # share that is blurred, and the largest standard deviation, in pixels
NOISY = 0.2, 8.0  # share with noise, and its largest standard deviation, of 255
JPEG = 0.4, 30  # share that is compressed, once or twice, and the worst quality, 1 to 100
# crops
MARGIN = 0.3  # of the face's box, on each side; where no crop-rule.json says how they were cut
SQUARE = False  # the crop is a square about the box's centre; likewise
FRAMES = "reduced"  # that they were cut from, by the width rule of 01, or "full"; likewise
# limits
SMALLEST_FACE = 32  # pixels of a crop's shorter side, as in REDUCED; a smaller one is undecided
MOST_WRONG = 0.1  # share of the real, and of the fake, validation videos that may be called wrong
SOFTEST_SHARE = 0.01  # of the training crops; one softer than all but these is undecided
# machine
DEVICES = None  # such as ("GPU:0",); None: all GPUs, each a share of every batch, or the CPU
# --------------------------------------------------------------------------------------------------

RULE = ("margin", "square", "frames")  # what crop-rule.json and a model's decision both have
CLASSES = ("fake", "real")  # in the alphabet's order: fake 0, real 1
UNITS = ("crops", "videos")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
IMAGE_SIZE = 128  # pixels
IMAGENET_MEAN = np.array((0.485, 0.456, 0.406)) * 255  # RGB, 0..255
IMAGENET_STD = np.array((0.229, 0.224, 0.225)) * 255
IMAGENET_FILE = "efficientnet-b0_weights_tf_dim_ordering_tf_kernels_autoaugment_notop.h5"
LITE0_WEIGHTS = Path(__file__).parent / "weights" / "efficientnet-lite0-imagenet.npz"
DOWNLOAD_TIMEOUT = 20  # seconds without an answer, after which the ImageNet weights are given up
LEARNING_RATES = {"pretrained": 4e-4, "random": 1e-3, "file": 1e-4}  # a file may be a detector
SMALLEST_P = 1e-7  # probabilities are kept this far from 0 and 1, for the sake of their logarithms
TEMPERATURES = 0.5, 5.0  # a few separable videos would ask for 0: the bounds keep it sensible
SHIFTS = -5.0, 5.0  # the same for the shift
LARGEST_MODEL = 200 * 2**20  # bytes of a model's file, unpacked; ours has 20 MB
NAMED = 5  # crops left out that the summary names
BATCH_NORM_MOMENTUM = 0.9  # share of the past in the running statistics a step; see build_model
LIMITS = {  # of the settings: least and most
    (1, math.inf): ("epochs", "patience", "batch_size", "repeats"),
    (0, math.inf): ("warm_up_steps", "smallest_face"),
    (0, 10): ("margin",),
    (0, 1): (
        *("self_blended", "flip", "shift", "zoomed", "brightness", "contrast", "tint", "grey"),
        *("cut_out", "most_wrong", "softest_share"),
    ),
    (0, 100): ("reduced", "blurred", "noisy", "jpeg"),
    (0, 180): ("rotation",),
    (1e-9, 1): ("learning_rate",),
    (0, 2**31 - 1): ("seed",),
}


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
    paired: bool = PAIRED,
    repeats: int = REPEATS,
    self_blended: float = SELF_BLENDED,
    flip: float = FLIP,
    shift: float = SHIFT,
    rotation: float = ROTATION,
    zoomed: tuple[float, float] = ZOOMED,
    brightness: float = BRIGHTNESS,
    contrast: float = CONTRAST,
    tint: float = TINT,
    grey: float = GREY,
    cut_out: float = CUT_OUT,
    reduced: tuple[float, int] = REDUCED,
    blurred: tuple[float, float] = BLURRED,
    noisy: tuple[float, float] = NOISY,
    jpeg: tuple[float, int] = JPEG,
    margin: float = MARGIN,
    square: bool = SQUARE,
    frames: Literal["reduced", "full"] = FRAMES,
    most_wrong: float = MOST_WRONG,
    smallest_face: int = SMALLEST_FACE,
    softest_share: float = SOFTEST_SHARE,
    devices: tuple[str, ...] | None = DEVICES,
) -> dict:
    """Train EfficientNet-B0 to tell real faces from fake ones.

    Args:
        split_dir: folder with train/ and val/, each with real/ and fake/
        model_dir: folder for the model and its history
        start: imagenet, lite0 (embedded), auto (the first of the two to be had), none, or a file
        epochs: epochs at most
        patience: epochs without a higher validation AUC, after which training stops
        batch_size: crops a step
        learning_rate: of Adam, at its highest; None: 4e-4, from random weights 1e-3, a file 1e-4
        warm_up_steps: steps over which it rises from 0, a tenth of all at most
        decay: after that it falls to 0 as half a cosine, or is constant
        seed: the same seed, crops and machine give the same model
        paired: each real crop comes with a fake, both changed alike; or every crop by itself
        repeats: times that a real comes in an epoch at most, where its data set has more fakes
        self_blended: share of the pairs whose fake is a blend of the real
        flip: share that is mirrored
        shift: largest shift, of the width and of the height
        rotation: degrees at most
        zoomed: share that is zoomed, and by how much at most
        brightness: largest change of brightness, of the range from black to white
        contrast: largest change of contrast, of the distance from the image's mean
        tint: largest change of one colour, of its range
        grey: share that loses its colours
        cut_out: share with a bar over eyes, nose or mouth
        reduced: share that is reduced and enlarged again, and the shortest side in pixels
        blurred: share that is blurred, and the largest standard deviation in pixels
        noisy: share with noise, and its largest standard deviation
        jpeg: share that is compressed, and the worst quality
        margin: of the crops, where no crop-rule.json has it: of the face's box, on each side
        square: of the crops, likewise: whether they are squares
        frames: that the crops were cut from, likewise
        most_wrong: share of either class's validation videos that may be called wrong
        smallest_face: pixels of a crop's shorter side; a smaller one is undecided
        softest_share: share of the training crops that are too soft to be decided
        devices: such as GPU:0 GPU:1; None: all GPUs, or the CPU

    Returns:
        What is saved with the model: how it was trained, and its decision.

    Raises:
        ValueError: a number, the crops, the start weights or model_dir cannot be used, or the loss
            is no longer a number.
        OSError: a folder or file is not there, or cannot be downloaded, written or locked.
    """
    settings = dict(locals())
    check_numbers(settings, LIMITS)
    crops = find_crops(split_dir, ("train", "val"))
    rule = read_crop_rule(split_dir) or {"margin": margin, "square": square, "frames": frames}
    start_weights, started_from = find_start_weights(start)
    if learning_rate is None:
        kind = "pretrained" if "ImageNet" in started_from else "file" if start_weights else "random"
        settings["learning_rate"] = LEARNING_RATES[kind]

    if model_dir.is_file():
        raise ValueError(f"{model_dir}: it is a file; name a folder with --model-dir.")
    claim_folder(model_dir, "--model-dir")
    with filelock.FileLock(model_dir / ".lock", timeout=0):
        images = open_cache(len(crops), model_dir)
        crops, left_out = decode_crops(crops, split_dir, images)
        parts = {split: part for split, part in crops.groupby("split", sort=False)}

        # Whatever may change the model makes this another training; where it lies does not.
        made_with = settings | rule | {"start": started_from, "devices": list(devices or [])}
        del made_with["split_dir"], made_with["model_dir"]
        versions = {"Python": platform.python_version(), "TensorFlow": tf.__version__}
        versions |= {"Keras": keras.__version__, "efficientnet": version("efficientnet")}
        identity = made_with | versions | {"crops": fingerprint_crops(crops, split_dir)}
        identity = json.loads(
            json.dumps(identity)
        )  # as a checkpoint gives it back: lists, no tuples
        unfinished = model_dir / "unfinished.keras"
        model, history = train_model(images, parts, start_weights, settings, identity, unfinished)

        # The model is written first: nothing that fails after it can cost the training.
        val = predict_crops(model, images, parts["val"], batch_size)
        decision = make_decision(val, parts["train"], rule, settings)
        training = {
            "counts": {split: count_crops(part) for split, part in parts.items()},
            "left_out": left_out,
            "started_from": started_from,
            "epochs_run": len(history),
            "best_epoch": find_best(history),
            "val_auc": float(history["val_auc"].max()),
            "settings": made_with,
            "versions": versions,
        }
        write_model(model, decision, model_dir / "best_model.keras", training)
        path = model_dir / "history.csv"
        write_whole(path, lambda partial: history.to_csv(partial, index=False))
        write_picture(model_dir / "training_curves.png", lambda: draw_training_curves(history))
        unfinished.unlink(missing_ok=True)
    print_training(training, decision, model_dir)
    return training | {"decision": decision._asdict()}


# --- The crops ------------------------------------------------------------------------------------


def find_crops(split_dir: Path, splits: tuple[str, ...]) -> pd.DataFrame:
    """List the crops of some splits, a row each.

    A row has crop (its path below split_dir), label, split, video_id, dataset, method, identities.
    The folders say label and split, crops.csv the rest. Without it the video is the file name less
    its frame and face (`<video_id>-000042-00.png`), or the whole of any other name.

    Args:
        splits: such as train and val; "" is split_dir itself, with real/ and fake/ in it
    """
    make = "make it with 03-prepare-fake-real-dataset.py, or name another folder."
    if not split_dir.is_dir():
        raise FileNotFoundError(f"{split_dir}: there is no such folder; {make}")
    rows = []
    for split in splits:
        if not (split_dir / split).is_dir():
            raise FileNotFoundError(f"{split_dir}: it has no {split}/; {make}")
        for label in CLASSES:
            folder = split_dir / split / label
            names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
            images = [name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
            images = [name for name in images if not name.startswith(".")]
            if not images:
                raise FileNotFoundError(f"{folder}: there are no {label} crops in it; {make}")
            below = folder.relative_to(split_dir).as_posix()
            rows += [(f"{below}/{name}", label, split) for name in sorted(images)]
    crops = pd.DataFrame(rows, columns=["crop", "label", "split"])
    crops = crops.merge(read_crops_table(split_dir), "left", "crop")
    by_name = crops["crop"].map(lambda crop: re.sub(r"-\d{6,}-\d{2,}$", "", Path(crop).stem))
    return crops.fillna(
        {"video_id": by_name} | dict.fromkeys(("dataset", "method", "identities"), "")
    )


def read_crops_table(split_dir: Path) -> pd.DataFrame:
    """Read what crops.csv says of each crop; no rows where there is no such table."""
    path = split_dir / "crops.csv"
    columns = ["crop", "video_id", "dataset", "method", "identities"]
    if not path.exists():
        return pd.DataFrame(columns=columns, dtype=str)
    with suppress(ValueError, KeyError):
        refuse_pipe(path)
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if table["crop"].is_unique and "video_id" in table:
            return table.reindex(columns=columns, fill_value="")
    raise ValueError(
        f"{path}: it is not a table with the columns crop and video_id and a row a crop; run "
        "03-prepare-fake-real-dataset.py again, or delete it to go by the file names."
    )


def read_crop_rule(split_dir: Path) -> dict:
    """Read how the crops were cut: margin, square and frames; nothing where no file says so."""
    path = split_dir / "crop-rule.json"
    if not path.exists():
        return {}
    with suppress(KeyError, TypeError, ValueError, OverflowError, RecursionError):
        refuse_pipe(path)
        rule = json.loads(path.read_text(encoding="utf-8"))
        return {name: rule[name] for name in RULE if check_decision(rule)}
    raise ValueError(
        f"{path}: it does not give {', '.join(RULE)}; run 03-prepare-fake-real-dataset.py again, "
        "or delete it to go by the settings of those names."
    )


class Decision(NamedTuple):
    """What turns a model's output into a verdict; it is saved with the model."""

    temperature: float = 1.0  # above 0; divides the logit, above 1 where the model is too sure
    shift: float = 0.0  # added to the logit of p_fake after that
    threshold: float = 0.5  # of p_fake: a video whose mean is at or above it is called fake
    real_below: float = 0.5  # and one below this real; what lies between is undecided
    margin: float = 0.3  # how the crops were cut: of the face's box, added on each side
    square: bool = False  # whether they are squares
    frames: str = "reduced"  # of which frames: reduced by the width rule, or "full"
    smallest_face: int = 0  # pixels of a crop's shorter side; a smaller one is undecided
    least_sharpness: float = 0.0  # as measure_sharpness has it; a softer crop is undecided


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


def open_cache(count: int, folder: Path) -> np.ndarray:
    """Give room for decoded crops, uint8 (count, 128, 128, 3): a file without a name.

    The system keeps it in memory while there is room, and it is gone with the process.
    """
    shape = (count, IMAGE_SIZE, IMAGE_SIZE, 3)
    free, needed = shutil.disk_usage(folder).free, math.prod(shape)
    if free < needed:  # found out later, it would be a crash: a mapped file gives no error
        raise OSError(
            f"{folder}: the decoded crops take {needed / 2**30:.1f} GiB there and "
            f"{free / 2**30:.1f} are free; make room, or name a folder on another disk."
        )
    return np.memmap(tempfile.TemporaryFile(dir=folder), np.uint8, "w+", shape=shape)


def decode_crops(
    crops: pd.DataFrame, split_dir: Path, images: np.ndarray
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Decode every crop, once and for all epochs, into its row of images.

    Returns:
        The crops that decode, their index being their rows, with side (pixels of the shorter one)
        and sharpness (see measure_sharpness) beside; and those that do not, with the reason.
    """

    def decode(row: int, crop: str) -> tuple[int, float, str]:
        try:
            image = read_image(split_dir / crop)
        except (ValueError, OSError) as error:
            return 0, 0.0, str(error)
        images[row] = prepare_crop(image)
        return min(image.shape[:2]), measure_sharpness(images[row]), ""

    with ThreadPoolExecutor() as pool:
        found = pool.map(decode, range(len(crops)), crops["crop"])
        found = list(tqdm(found, "crops", len(crops), unit="crop", leave=False))
    crops = crops.join(pd.DataFrame(found, crops.index, ["side", "sharpness", "fault"]))
    whole = crops[crops["fault"] == ""].drop(columns="fault")
    for (split, label), part in crops.groupby(["split", "label"]):
        folder, again = split_dir / split, "make them anew with 03-prepare-fake-real-dataset.py."
        if not (part["fault"] == "").any():
            raise ValueError(f"{folder / label}: none of its crops can be read; {again}")
        if split != "train" and whole.loc[whole["split"] == split, "video_id"].nunique() < 2:
            raise ValueError(
                f"{folder}: all of its crops are of one video; at least two are needed; {again}"
            )
    return whole, dict(crops.loc[crops["fault"] != "", ["crop", "fault"]].to_numpy().tolist())


def read_image(path: Path) -> np.ndarray:
    """Read an image: BGR uint8 (height, width, 3)."""
    refuse_pipe(path)
    data = np.frombuffer(path.read_bytes(), np.uint8)
    with suppress(cv2.error):  # more pixels than OpenCV takes
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
        if image is not None:
            return image
    raise ValueError("does not decode as an image")


def prepare_crop(image: np.ndarray) -> np.ndarray:
    """Squeeze a crop, BGR uint8 of any size, to RGB uint8 (128, 128, 3), whatever its proportions.

    Pixels are averaged where the crop shrinks, so nothing aliases, and interpolated where it grows.
    """
    shrinks = min(image.shape[:2]) > IMAGE_SIZE
    resample = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(image, (IMAGE_SIZE, IMAGE_SIZE), interpolation=resample)
    return cv2.cvtColor(resized, cv2.COLOR_BGR2RGB)


def read_crop(path: Path) -> np.ndarray:
    """Read a crop as the model takes it: RGB uint8 (128, 128, 3).

    Raises:
        ValueError, OSError: it cannot be read or does not decode.
    """
    return prepare_crop(read_image(path))


def measure_sharpness(crop: np.ndarray) -> float:
    """Measure how sharp a crop is, RGB uint8 (128, 128, 3): the variance of its Laplacian in grey.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000.
    """
    return float(cv2.Laplacian(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


# --- Training -------------------------------------------------------------------------------------


def train_model(
    images: np.ndarray,
    parts: dict[str, pd.DataFrame],
    start_weights: Path | None,
    settings: dict,
    identity: dict,
    unfinished: Path,
) -> tuple[keras.Model, pd.DataFrame]:
    """Train, or go on training, and return the best epoch's model and the history, a row an epoch.

    Loss and accuracy of training are taken with dropout and augmentation, so those of validation
    may be better.

    Args:
        images: the decoded crops
        parts: the crops of train and val, their index being rows of images
        settings: what main was given
        identity: what an earlier training must agree in for this one to go on from it
        unfinished: gets, after each epoch, what a stopped training goes on from
    """
    history, best = read_checkpoint(unfinished, identity)
    epochs, seed = settings["epochs"], settings["seed"]
    keras.config.set_dtype_policy(choose_precision())
    keras.utils.set_random_seed(seed)
    with choose_strategy(settings["devices"]).scope():
        if best:
            print(f"epochs 1 to {len(history)} of {epochs} were done")
            model = keras.saving.load_model(unfinished)
        else:
            model = build_model(start_weights)
            steps = int(serve_crops(images, parts["train"], settings, 1).cardinality())
            compile_model(model, settings, steps * epochs)
        # Created inside the first step, the optimizer's and the metrics' variables would make
        # TensorFlow trace that step twice, 20 s here; so they are created now.
        model.optimizer.build(model.trainable_variables)
        model.compute_metrics(None, np.zeros((1, 1)), np.zeros((1, 1)))

    for epoch in range(len(history) + 1, epochs + 1):
        if len(history) and len(history) - find_best(history) >= settings["patience"]:
            break
        # One pass over the training crops.
        seed_dropout(model, seed, epoch)
        batches = serve_crops(images, parts["train"], settings, epoch)
        progress = TqdmCallback(leave=False)
        span = {"initial_epoch": epoch - 1, "epochs": epoch, "shuffle": False, "verbose": 0}
        trained = model.fit(batches, callbacks=[progress], **span)

        # What it is worth on people that it does not know.
        val = predict_crops(model, images, parts["val"], settings["batch_size"])
        if not np.isfinite(val["p_real"]).all():
            raise ValueError(
                f"after epoch {epoch} the model's output is no longer a number; train with a "
                f"smaller --learning-rate, and delete {unfinished} before."
            )
        val["p_fake"] = calibrate(val["p_real"], Decision())
        videos = average_by_video(val)
        row = {
            "epoch": epoch,
            "loss": trained.history["loss"][0],
            "accuracy": trained.history["accuracy"][0],
            "val_loss": sklearn.metrics.log_loss(val["label"] == "fake", val["p_fake"]),
            "val_accuracy": float(((val["p_fake"] >= 0.5) == (val["label"] == "fake")).mean()),
            "val_auc": sklearn.metrics.roc_auc_score(videos["label"] == "fake", videos["p_fake"]),
        }
        history = pd.concat([history, pd.DataFrame([row])], ignore_index=True)
        if find_best(history) == epoch:
            best = model.get_weights()
        write_checkpoint(model, history, best, identity, unfinished)
        print(
            f"epoch {epoch} of {epochs}: loss {row['loss']:.3f}, validation loss "
            f"{row['val_loss']:.3f}, accuracy {row['val_accuracy']:.3f}, AUC by video "
            f"{row['val_auc']:.3f}",
            flush=True,
        )
    model.set_weights(best)
    return model, history


def choose_precision() -> str:
    """Choose 16 bits where all GPUs are fast at it (compute capability 7), and else 32."""
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    fast = [detail.get("compute_capability", (0,)) >= (7,) for detail in details]
    return "mixed_float16" if fast and all(fast) else "float32"


def choose_strategy(devices: tuple[str, ...] | None) -> tf.distribute.Strategy:
    """Share every batch among the devices, or all GPUs, where there are several."""
    devices = devices or [device.name for device in tf.config.list_logical_devices("GPU")]
    if len(devices) > 1:
        return tf.distribute.MirroredStrategy(devices)
    return tf.distribute.OneDeviceStrategy(devices[0]) if devices else tf.distribute.get_strategy()


def build_model(start_weights: Path | None) -> keras.Model:
    """Build the model: RGB images (n, 128, 128, 3) in 0..255 to p_real (n, 1).

    Args:
        start_weights: EfficientNet-B0's weights without its top, or a model of this script
            (`.keras`) to train on; None for random ones

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


# --- What the model is fed with -------------------------------------------------------------------


def serve_crops(
    images: np.ndarray, crops: pd.DataFrame, settings: dict, epoch: int
) -> tf.data.Dataset:
    """Serve an epoch's batches: RGB float32 (n, 128, 128, 3) in 0..255, and labels (n, 1).

    Fake is 0, real 1. The same seed and epoch give the same batches, so that a training that was
    stopped goes on with what would have come.

    Args:
        images: the decoded crops, RGB uint8 (crops, 128, 128, 3)
        crops: the crops to serve, their index being rows of images
        settings: batch_size, seed, paired and everything under augmentation
    """
    seed = settings["seed"], epoch
    groups = draw_groups(crops, settings, seed)
    # Batches of one size, or nearly: a last one of one or two crops would spoil the running
    # statistics of the batch normalisation just before the validation.
    steps = math.ceil(sum(map(len, groups)) / settings["batch_size"])
    shares = np.array_split(np.arange(len(groups)), steps)
    is_real = (crops["label"] == "real").to_dict()

    def make(step: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((*seed, step))
        batch, labels = [], []
        for group in (groups[place] for place in shares[step]):
            faces = [
                images[row] if row >= 0 else blend_with_itself(images[group[0]], rng)
                for row in group
            ]
            batch += change_alike(faces, settings, rng)
            labels += [row >= 0 and is_real[row] for row in group]
        return np.stack(batch), np.array(labels, np.float32)[:, None]

    def load(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch, labels = tf.numpy_function(
            lambda step: make(int(step)), [step], (tf.uint8, tf.float32)
        )
        batch = tf.ensure_shape(batch, (None, *images.shape[1:]))
        return tf.cast(batch, tf.float32), tf.ensure_shape(labels, (None, 1))

    # tf.data's own tuning looks again after 10 ms, 20 ms, up to a minute, and TensorFlow 2.21 lets
    # the end of an epoch wait for its next look.
    untuned = tf.data.Options()
    untuned.autotune.enabled = False
    numbers = tf.data.Dataset.range(steps)
    return numbers.map(load, os.cpu_count()).prefetch(8).with_options(untuned)


def draw_groups(crops: pd.DataFrame, settings: dict, seed: tuple[int, int]) -> list[tuple]:
    """Draw what an epoch shows, in its order: groups of rows that stay together, changed alike.

    Paired, a real crop comes with a fake: a blend of itself (-1), or a deepfake that shares an
    identity with it, or where none does another of its data set, each of those once before any
    comes again. A data set gives as many pairs as it has fakes, but each real at least once and at
    most `repeats` times. Not paired, each crop comes once, by itself.
    """
    rng = np.random.default_rng(seed)
    if not settings["paired"]:
        return [(row,) for row in rng.permutation(crops.index)]
    pairs = []
    for _, part in crops.groupby("dataset"):
        reals, fakes = (part[part["label"] == label] for label in ("real", "fake"))
        sharing = fakes.assign(identity=fakes["identities"].str.split(";")).explode("identity")
        sharing = sharing[sharing["identity"] != ""].groupby("identity").groups
        count = min(max(len(reals), len(fakes)), settings["repeats"] * len(reals))
        rows = [rng.permutation(reals.index) for _ in range(settings["repeats"])]
        deck: list[int] = []
        for row in np.concatenate(rows)[:count]:
            if rng.random() < settings["self_blended"] or fakes.empty:
                pairs.append((row, -1))
                continue
            identities = reals.at[row, "identities"].split(";")
            if related := [fake for one in identities for fake in sharing.get(one, ())]:
                pairs.append((row, related[rng.integers(len(related))]))
                continue
            deck = deck or list(rng.permutation(fakes.index))
            pairs.append((row, deck.pop()))
    return [pairs[place] for place in rng.permutation(len(pairs))]


def blend_with_itself(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Make a fake of a real crop: a changed copy of the face, blended back through a soft mask.

    What every face swap leaves behind, a border and two kinds of pixels, without what only one
    method leaves: Shiohara and Yamasaki, "Detecting Deepfakes with Self-Blended Images", CVPR 2022,
    written from its description, with a bent ellipse for the hull of landmarks.

    Args:
        image: RGB uint8 (size, size, 3), and so is the result
    """
    size = len(image)
    # The copy gets another colour and contrast, ...
    face = image + rng.uniform(-15, 15, 3)
    mean = face.mean(axis=(0, 1))
    face = (face - mean) * rng.uniform(0.85, 1.15) + mean + rng.uniform(-10, 10)
    if rng.random() < 0.3:
        grey = face.mean(axis=2, keepdims=True)
        face = grey + (face - grey) * rng.uniform(0.6, 1.4)
    face = face.clip(0, 255).astype(np.uint8)
    # ... is resampled from fewer pixels, or sharpened, ...
    if rng.random() < 0.5:
        side = round(size / rng.choice((1.5, 2, 3, 4)))
        shrink = (cv2.INTER_AREA, cv2.INTER_LINEAR)[rng.integers(2)]
        grow = (cv2.INTER_LINEAR, cv2.INTER_CUBIC)[rng.integers(2)]
        small = cv2.resize(face, (side, side), interpolation=shrink)
        face = cv2.resize(small, (size, size), interpolation=grow)
    elif rng.random() < 0.6:
        soft = cv2.GaussianBlur(face, (0, 0), rng.uniform(0.7, 1.5))
        amount = rng.uniform(0.2, 1.0)
        face = cv2.addWeighted(face, 1 + amount, soft, -amount, 0)
    # ... and is moved by a few pixels.
    scale, turn = rng.uniform(0.95, 1.05, 2), rng.uniform(-3, 3)
    moved = move_image(face, scale, turn, rng.uniform(-0.03, 0.03, 2) * size)
    mask = draw_mask(size, rng)[..., None] * rng.choice((0.25, 0.5, 0.75, 1, 1, 1))
    return (image * (1 - mask) + moved * mask + 0.5).clip(0, 255).astype(np.uint8)


def move_image(image: np.ndarray, scale: np.ndarray, turn: float, shift: np.ndarray) -> np.ndarray:
    """Resize an image about its middle, turn it (degrees) and shift it; the border repeats."""
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    matrix = np.array(((cos, -sin), (sin, cos))) * scale
    middle = (len(image) - 1) / 2
    matrix = np.column_stack((matrix, middle - matrix.sum(axis=1) * middle + shift))
    return cv2.warpAffine(image, matrix, image.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)


def draw_mask(size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a soft mask, float32 (size, size) in 0..1: an ellipse on the face with a bent outline.

    Two thirds cover the face, the others the band of the eyes, the nose or the mouth, as methods
    that change an expression do.
    """
    whole = rng.random() < 0.65
    middle = rng.uniform(0.46, 0.54), rng.uniform(0.5, 0.6)
    radii = rng.uniform(0.28, 0.42), rng.uniform(0.32, 0.46)
    if not whole:
        middle = middle[0], rng.choice((0.42, 0.6, 0.75)) + rng.uniform(-0.04, 0.04)
        radii = rng.uniform(0.16, 0.34), rng.uniform(0.1, 0.2)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    x, y = (x - middle[0]) / radii[0], (y - middle[1]) / radii[1]
    angle, outline = np.arctan2(y, x), 1.0
    for waves in range(2, 7):
        height = rng.uniform(-0.12, 0.12) / math.sqrt(waves - 1)
        outline += height * np.cos(waves * angle + rng.uniform(0, 2 * math.pi))
    mask = cv2.GaussianBlur(
        (np.hypot(x, y) < outline).astype(np.float32), (0, 0), rng.uniform(1, 7)
    )
    if rng.random() < 0.5:  # soft on the inside only
        mask = cv2.GaussianBlur((mask * 2 - 1).clip(0, 1), (0, 0), rng.uniform(0.7, 3))
    return mask.clip(0, 1)


def change_alike(
    images: list[np.ndarray], settings: dict, rng: np.random.Generator
) -> list[np.ndarray]:
    """Change the crops of a group at random, all alike: only what is fake is to tell them apart.

    Args:
        images: RGB uint8 (128, 128, 3) each, and so are the results
        settings: everything under augmentation
    """
    # Where the face stands: mirrored, shifted by whole pixels, at times zoomed and turned.
    mirrored = rng.random() < settings["flip"]
    shift = np.round(rng.uniform(-1, 1, 2) * settings["shift"] * IMAGE_SIZE)
    scale, turn = np.ones(2), 0.0
    share, most = settings["zoomed"]
    if rng.random() < share:
        scale += rng.uniform(-1, 1) * most
        scale[1] += rng.uniform(-1, 1) * most / 3
    if settings["rotation"]:
        turn = rng.uniform(-1, 1) * settings["rotation"]
    scale[0] *= -1 if mirrored else 1

    # Its light and colour.
    contrast = 1 + rng.uniform(-1, 1) * settings["contrast"]
    light = rng.uniform(-1, 1) * settings["brightness"] * 255
    light = light + rng.uniform(-1, 1, 3) * settings["tint"] * 255 * (rng.random() < 0.5)
    grey = rng.random() < settings["grey"]

    # A plain bar over the eyes, the nose or the mouth: the model is not to rest on one sign alone.
    bar = fill = None
    if rng.random() < settings["cut_out"]:
        height, width = rng.uniform(0.1, 0.25), rng.uniform(0.2, 0.6)
        y = rng.choice((0.42, 0.6, 0.77)) + rng.uniform(-0.05, 0.05)
        x = rng.uniform(0.3, 0.7)
        sides = np.array((y - height / 2, y + height / 2, x - width / 2, x + width / 2))
        top, bottom, left, right = (sides.clip(0) * IMAGE_SIZE).astype(int)
        bar, fill = np.s_[top:bottom, left:right], rng.integers(0, 256, 3)

    # What a video goes through: blur, fewer pixels, noise, and compression, before or after.
    share, most = settings["blurred"]
    blur = rng.uniform(0.3, most) if rng.random() < share else 0
    share, least = settings["reduced"]
    sizes = math.log(max(least, 1)), math.log(IMAGE_SIZE)
    side = round(math.exp(rng.uniform(*sizes))) if rng.random() < share else 0
    grow = (cv2.INTER_LINEAR, cv2.INTER_CUBIC)[rng.integers(2)]
    share, most = settings["noisy"]
    deviation = rng.uniform(1, most) if rng.random() < share else 0
    noise = np.random.default_rng(rng.integers(2**31)).normal(0, deviation, images[0].shape)
    share, worst = settings["jpeg"]
    times = 1 + int(rng.random() < 0.3) if rng.random() < share else 0
    qualities = [int(rng.integers(worst, 101)) for _ in range(times)]
    before = rng.random() < 0.5  # whether JPEG comes before the reduction
    noise_last = rng.random() < 0.5  # a camera's noise comes first, a bad screen's last

    changed = []
    for image in images:
        face = move_image(image, scale, turn, shift).astype(np.float32)
        face = (face - face.mean()) * contrast + face.mean() + light
        if grey:
            face = cv2.cvtColor(face.astype(np.float32), cv2.COLOR_RGB2GRAY)[..., None].repeat(3, 2)
        if bar:
            face[bar] = fill
        face = (face + (0 if noise_last else noise)).clip(0, 255).astype(np.uint8)
        if blur:
            face = cv2.GaussianBlur(face, (0, 0), blur)
        if qualities and before:
            face = compress(face, qualities[0])
        if side:
            face = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
        if qualities and not before:
            face = compress(face, qualities[0])
        if side:
            face = cv2.resize(face, (IMAGE_SIZE, IMAGE_SIZE), interpolation=grow)
        if times == 2:
            face = compress(face, qualities[1])
        if deviation and noise_last:
            face = (face + noise).clip(0, 255).astype(np.uint8)
        changed.append(face)
    return changed


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    """Give an image, RGB uint8, the traces of JPEG at a quality of 1 to 100."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)  # JPEG keeps less of the colours than of the light
    _, data = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, quality))
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def compile_model(model: keras.Model, settings: dict, steps: int) -> None:
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
        jit_compile=False,  # XLA trains this model 14 times slower on a CPU
    )


def find_best(history: pd.DataFrame) -> int:
    """Tell the best epoch: of the highest AUC of the validation videos, then of the lowest loss.

    The AUC asks for the right order alone; how sure the scores are, the calibration puts right.
    """
    order = history.sort_values(["val_auc", "val_loss", "epoch"], ascending=[False, True, True])
    return int(order["epoch"].iloc[0])


def predict_crops(
    model: keras.Model, images: np.ndarray, crops: pd.DataFrame, batch_size: int
) -> pd.DataFrame:
    """Predict crops, their index being rows of images: the table with a column p_real."""
    batches = np.array_split(crops.index.to_numpy(), math.ceil(len(crops) / batch_size))
    p_real = [model.predict_on_batch(images[rows].astype(np.float32)) for rows in batches]
    return crops.assign(p_real=np.concatenate(p_real)[:, 0].astype(np.float64))


# --- From the model's output to a verdict ---------------------------------------------------------


def calibrate(p_real: np.ndarray, decision: Decision) -> np.ndarray:
    """Turn the model's output round and calibrate it: p_fake, float64 of the same shape, 0..1.

    The logit of p_fake is divided by a temperature and shifted (Platt, "Probabilistic Outputs for
    Support Vector Machines", 1999), which changes how sure a score is, never the order of two.
    """
    p_real = np.clip(np.asarray(p_real, np.float64), SMALLEST_P, 1 - SMALLEST_P)
    logit = -scipy.special.logit(p_real) / decision.temperature + decision.shift
    return np.clip(scipy.special.expit(logit), SMALLEST_P, 1 - SMALLEST_P)


def average_by_video(predictions: pd.DataFrame) -> pd.DataFrame:
    """Give each video the mean p_fake of its crops: label, video_id, p_fake."""
    return predictions.groupby(["label", "video_id"], as_index=False)["p_fake"].mean()


def make_decision(val: pd.DataFrame, train: pd.DataFrame, rule: dict, settings: dict) -> Decision:
    """Fit calibration and thresholds to the validation crops, and say how crops must be.

    None is to be smaller or softer than those that the model was trained on.
    """
    calibrated = fit_calibration(val)
    val = val.assign(p_fake=calibrate(val["p_real"], calibrated))
    threshold, real_below = choose_thresholds(val, settings["most_wrong"])
    return calibrated._replace(
        threshold=threshold,
        real_below=real_below,
        smallest_face=min(settings["smallest_face"], int(train["side"].min())),
        least_sharpness=float(train["sharpness"].quantile(settings["softest_share"])),
        **rule,
    )


def fit_calibration(val: pd.DataFrame) -> Decision:
    """Find the temperature and the shift of the lowest log loss on the validation crops.

    Fakes and reals weigh the same in all: how many of either val/ has, says nothing of the world.
    """
    is_fake = (val["label"] == "fake").to_numpy()
    weights = compute_sample_weight("balanced", is_fake)

    def log_loss(values: np.ndarray) -> float:
        p_fake = calibrate(val["p_real"], Decision(temperature=1 / values[0], shift=values[1]))
        return sklearn.metrics.log_loss(is_fake, p_fake, sample_weight=weights)

    # In 1 / temperature and shift this is a logistic regression: it has one minimum.
    bounds = (1 / TEMPERATURES[1], 1 / TEMPERATURES[0]), SHIFTS
    slope, shift = scipy.optimize.minimize(log_loss, (1.0, 0.0), bounds=bounds).x
    return Decision(temperature=float(1 / slope), shift=float(shift))


def choose_thresholds(val: pd.DataFrame, most_wrong: float) -> tuple[float, float]:
    """Find the p_fake from which a video is called fake, and that below which it is called real.

    Of either class at most so large a share of the validation videos is then called wrong, and
    what lies between is undecided. Where the two would cross, both are the middle between them.
    """
    videos = average_by_video(val)
    reals, fakes = (np.sort(videos.loc[videos["label"] == k, "p_fake"]) for k in ("real", "fake"))
    threshold = np.quantile(reals, 1 - most_wrong, method="higher") + SMALLEST_P
    real_below = np.quantile(fakes, most_wrong, method="lower")
    if real_below > threshold:
        threshold = real_below = (threshold + real_below) / 2
    return float(min(threshold, 1.0)), float(real_below)


def find_equal_errors(is_fake: np.ndarray, p_fake: np.ndarray) -> tuple[float, float]:
    """Find where the two error rates come closest: the equal error rate and the score there."""
    false_alarms, found, cuts = sklearn.metrics.roc_curve(is_fake, p_fake, drop_intermediate=False)
    nearest = np.argmin(np.abs(false_alarms - (1 - found)))
    return float(false_alarms[nearest] + 1 - found[nearest]) / 2, float(cuts[nearest])


# --- What is written and printed ------------------------------------------------------------------


def count_crops(crops: pd.DataFrame) -> dict[str, int]:
    """Count the crops and videos of each class."""
    counts = {}
    for label in CLASSES:
        of_class = crops[crops["label"] == label]
        counts[f"{label} crops"] = len(of_class)
        counts[f"{label} videos"] = of_class["video_id"].nunique()
    return counts


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
    plain = build_model(None)
    plain.set_weights(model.get_weights())
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


def draw_training_curves(history: pd.DataFrame) -> Figure:
    """Draw loss, accuracy and AUC of training and validation by epoch."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = (["loss", "val_loss"], ["accuracy", "val_accuracy"], ["val_auc"])
    for axes, columns in zip(figure.subplots(1, 3), panels, strict=True):
        axes.plot(history["epoch"], history[columns], "o-", ms=3, label=columns)
        axes.axvline(find_best(history), color="0.6", linestyle=":", label="epoch kept")
        axes.set(xlabel="epoch", title=columns[0])
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False)
    return figure


def print_training(training: dict, decision: Decision, model_dir: Path) -> None:
    """Print the few numbers that a reader would check."""
    rows = {"started from": training["started_from"]}
    for split, count in training["counts"].items():
        crops, videos = (sum(count[f"{label} {unit}"] for label in CLASSES) for unit in UNITS)
        rows[split] = f"{crops:,} crops of {videos:,} videos"
    if left_out := list(training["left_out"]):
        named = ", ".join(left_out[:NAMED]) + (", ..." if len(left_out) > NAMED else "")
        rows["left out"] = f"{len(left_out):,} crops that cannot be read: {named}"
    rows["epochs"] = f"{training['epochs_run']}, the best of which is {training['best_epoch']}"
    rows["validation"] = (
        f"AUC by video {training['val_auc']:.3f}; flattering, as it chose the epoch"
    )
    rows["verdict"] = (
        f"fake from p_fake {decision.threshold:.3f}, real below {decision.real_below:.3f}"
    )
    rows["look next at"] = f"{model_dir / 'training_curves.png'}; then run 05-evaluate-model.py"
    print(model_dir)
    for label, fact in rows.items():
        print(f"  {label:15} {fact}")


# --- For the scripts that use the model -----------------------------------------------------------


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
    model = build_model(None)
    try:
        if list_layers(read_saved(path, "config.json")) != list_layers(json.loads(model.to_json())):
            raise ValueError("it has other layers")
        model.load_weights(path)
        if not all(np.isfinite(weights).all() for weights in model.get_weights()):
            raise ValueError("some of its weights are not numbers")
    except Exception as error:  # of many kinds, by what the file is instead
        reason = str(error) if type(error) is ValueError else type(error).__name__
        raise ValueError(
            f"{path}: it is not a model of 04-train-cnn.py ({reason}); name a best_model.keras."
        ) from error
    return model


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
        saved = read_saved(path, "decision.json")
        decision = check_decision({"temperature": None, "threshold": None} | saved)
    except Exception as error:  # of many kinds, by what the file is instead
        raise ValueError(
            f"{path}: it has no threshold saved with it, so it is not a model that "
            "04-train-cnn.py wrote; train it there, or name another."
        ) from error
    if "margin" not in saved:
        note = "an older model, without a crop rule; taken as a margin of 30 % of reduced frames"
        print(f"NOTE: {path}: {note}.", file=sys.stderr)
    return decision


def read_saved(path: Path, name: str) -> dict:
    """Read a JSON file out of a model's file, once that is known to unpack to a sensible size."""
    with zipfile.ZipFile(path) as archive:
        sizes = [info.file_size for info in archive.infolist()]
        if sum(sizes) <= LARGEST_MODEL:
            with archive.open("model.weights.h5") as file, h5py.File(file) as weights:
                weights.visititems(lambda _, found: sizes.append(getattr(found, "nbytes", 0)))
        if sum(sizes) > LARGEST_MODEL:
            raise ValueError(f"it unpacks to more than {LARGEST_MODEL / 2**20:.0f} MiB")
        return json.loads(archive.read(name))


# --- Machinery ------------------------------------------------------------------------------------


def check_numbers(settings: dict, limits: dict[tuple[float, float], tuple[str, ...]]) -> None:
    """Check that settings lie within their limits."""
    for (least, most), names in limits.items():
        for name in names:
            values = np.atleast_1d([] if settings[name] is None else settings[name])
            if not ((values >= least) & (values <= most)).all():
                wanted = f"{least} to {most}" if most < math.inf else f"{least} or more"
                raise ValueError(f"--{name.replace('_', '-')} is {settings[name]}; give {wanted}.")


def refuse_pipe(path: Path) -> None:
    """Refuse what is there and no file: a named pipe or a device would be read without end."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no file")


def check_decision(saved: dict) -> Decision:
    """Make a decision of what a file holds; what the file lacks is as in models without it."""
    kinds = {name: type(value) for name, value in Decision._field_defaults.items()}
    saved = {"real_below": saved["threshold"]} | saved if "threshold" in saved else saved
    decision = Decision(**{name: kinds[name](saved[name]) for name in kinds if name in saved})
    numbers = [float(value) for value in decision if not isinstance(value, str)]
    least = min(decision.margin, decision.smallest_face, decision.least_sharpness)
    right = all(map(math.isfinite, numbers)) and decision.temperature > 0 and least >= 0
    ordered = 0 <= decision.real_below <= decision.threshold <= 1
    if not right or not ordered or decision.frames not in ("reduced", "full"):
        raise ValueError(f"{decision} is out of its range")
    return decision


def claim_folder(folder: Path, option: str) -> None:
    """Make an output folder and mark it as this script's; refuse one that holds anything else.

    Raises:
        ValueError: the folder holds what this script did not make.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark, script = folder / ".made-by", Path(__file__).name
    if mark.is_file() and mark.read_text(encoding="utf-8", errors="replace").strip() == script:
        return
    if foreign := sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")):
        raise ValueError(
            f"{folder}: it holds {foreign[0]}, which this script did not make; name another folder "
            f"with {option}, or move it away."
        )
    write_whole(mark, lambda partial: partial.write_text(f"{script}\n"))


def fingerprint_crops(crops: pd.DataFrame, split_dir: Path) -> str:
    """Give the crops a fingerprint: another one if any is added, removed or written anew."""
    stats = [(split_dir / crop).stat() for crop in crops["crop"]]
    content = crops.assign(
        size=[stat.st_size for stat in stats], modified=[stat.st_mtime_ns for stat in stats]
    )
    return hashlib.sha256(content.to_csv().encode(errors="backslashreplace")).hexdigest()


def read_checkpoint(path: Path, identity: dict) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """Read the history of a stopped training and its best epoch's weights; nothing if none was."""
    if not path.exists():
        return pd.DataFrame(), []
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} in it is not as it was written")
            earlier = json.loads(archive.read("identity.json"))
            differ = [name for name in identity if earlier.get(name) != identity[name]]
            history = pd.read_csv(archive.open("history.csv"), float_precision="round_trip")
            with np.load(archive.open("best.npz")) as weights:
                best = [weights[name] for name in weights.files]
    except Exception as error:  # of many kinds, by what the file is instead
        raise ValueError(f"{path}: it is damaged ({error}); delete it to begin anew.") from error
    if differ:
        changes = ", ".join(
            name if name == "crops" else f"{name} ({earlier.get(name)} there, {identity[name]} now)"
            for name in differ
        )
        raise ValueError(
            f"{path}: a training stopped after epoch {len(history)} lies there, and it differs in "
            f"{changes}; give its own command to go on with it, delete the file to give it up, or "
            "name another folder with --model-dir."
        )
    return history, best


def write_checkpoint(
    model: keras.Model, history: pd.DataFrame, best: list[np.ndarray], identity: dict, path: Path
) -> None:
    """Write what a training goes on from: the model as it is, and the rest beside in its zip file.

    Keras' own BackupAndRestore forgets which epoch was the best so far (Keras issue 17012).
    """

    def write(partial: Path) -> None:
        model.save(partial)
        with zipfile.ZipFile(partial, "a") as archive:
            archive.writestr("identity.json", json.dumps(identity))
            archive.writestr("history.csv", history.to_csv(index=False))
            with archive.open("best.npz", "w") as file:
                np.savez(file, *best)

    write_whole(path, write)


def seed_dropout(model: keras.Model, seed: int, epoch: int) -> None:
    """Give every dropout its random state for an epoch; the file of a model does not hold it."""
    inner = [layer for part in model.layers for layer in getattr(part, "layers", [])]
    dropouts = [layer for layer in [*model.layers, *inner] if hasattr(layer, "seed_generator")]
    for number, layer in enumerate(dropouts):
        state = np.random.default_rng((seed, epoch, number)).integers(2**31, size=2)
        layer.seed_generator.state.assign(state)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all: under a temporary name beside it, then renamed."""
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    partial.unlink(missing_ok=True)  # a link planted there would be followed
    write(partial)
    partial.replace(path)


def write_picture(path: Path, draw: Callable[[], Figure]) -> None:
    """Draw a picture and write it as PNG; one that fails costs itself and nothing else."""
    try:
        figure = draw()
        write_whole(path, lambda partial: figure.savefig(partial, format="png", dpi=150))
    except Exception as error:  # of many kinds: the result is on the disk already
        print(f"NOTE: {path}: this picture could not be drawn ({error}).", file=sys.stderr)


if __name__ == "__main__":
    for name in {"SIGTERM", "SIGHUP"} & set(dir(signal)):  # both end a run as Ctrl-C does
        if signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(getattr(signal, name), signal.default_int_handler)
    try:
        tyro.cli(main)
    except KeyboardInterrupt:
        print(f"{Path(__file__).name}: stopped; the same command goes on.", file=sys.stderr)
        sys.exit(130)
    except filelock.Timeout as error:
        folder = Path(error.lock_file).parent
        sys.exit(
            f"{Path(__file__).name}: {folder}: another run is writing to it; wait for its end."
        )
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
