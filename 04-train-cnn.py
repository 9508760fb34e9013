"""Train EfficientNet-B0 to tell real faces from fake ones.

    python 04-train-cnn.py
    python 04-train-cnn.py --start auto --epochs 3 --learning-rate 4e-4
    python 04-train-cnn.py --split-dir my-split --model-dir my-model --start my-weights.h5

Reads   split_dataset/{train,val,test}/{real,fake}/   crops of faces, of any size
        split_dataset/crops.csv                       the video that each crop is of
Writes  model/best_model.keras                        the model of the best epoch
        model/metrics.json                            measures by crop and video, counts, settings
        model/predictions.csv                         p_real of every crop of val and test
        model/history.csv                             loss and accuracy of every epoch
        model/training_curves.png, model/roc.png      the same as pictures

The model takes RGB images, 128 x 128, as they are, 0 to 255: what its weights expect of them
(ImageNet's mean and standard deviation) is its first layer. Its output is p_real, the probability
that the face is real. To load it, `import efficientnet.tfkeras` first, which knows its layers.

EfficientNet is Tan and Le's ("EfficientNet: Rethinking Model Scaling for Convolutional Neural
Networks", ICML 2019), as the efficientnet package has it. Measures take fake as the positive class,
as the field's benchmarks do.
"""

import functools
import json
import math
import os
import re
import socket
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported: less chatter

import cv2
import efficientnet.tfkeras as efn
import efficientnet.weights
import keras
import numpy as np
import pandas as pd
import sklearn.metrics
import tensorflow as tf
import tyro
from matplotlib.figure import Figure
from tqdm import tqdm

# --------------------------------------------------------------------------------------------------
# folders
SPLIT_DIR = Path("split_dataset")  # train/, val/ and test/, each with real/ and fake/
MODEL_DIR = Path("model")  # the model, its measures and pictures
LITE0_WEIGHTS = Path(__file__).parent / "weights" / "efficientnet-lite0-imagenet.npz"  # "lite0"

# training
START = "imagenet"  # or "lite0" (embedded), "auto" (the first to be had), "none", or a file
EPOCHS = 20  # at most
PATIENCE = 5  # epochs without a lower validation loss, after which training stops
BATCH_SIZE = 32  # crops a step
LEARNING_RATE = 1e-4  # of Adam; a short training takes more, such as 4e-4
BATCH_NORM_MOMENTUM = 0.9  # share of the past in the running statistics a step; see build_model
SEED = 1  # of the random weights, the order of the crops and the augmentation

# augmentation: each crop of each epoch is moved at random within these, either way
ROTATION = 10  # degrees
SHIFT = 0.1  # of the width and of the height
SHEAR = 0.2  # slope of the uprights
ZOOM = 0.1  # of the size, width and height apart
FLIP = 0.5  # share of the crops that are mirrored

# machine
CROPS_IN_MEMORY = 80_000  # decoded once and kept, 48 KiB each: 4 GB; more are decoded every epoch
JIT_COMPILE = False  # XLA trains this model 14 times slower on a CPU; True may pay on a GPU
DOWNLOAD_TIMEOUT = 20  # seconds without an answer, after which the ImageNet weights are given up
# --------------------------------------------------------------------------------------------------

CLASSES = ("fake", "real")  # in the alphabet's order: fake 0, real 1
SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
IMAGE_SIZE = 128  # pixels
IMAGENET_MEAN = np.array((0.485, 0.456, 0.406)) * 255  # RGB, 0..255
IMAGENET_STD = np.array((0.229, 0.224, 0.225)) * 255
NAMED = 5  # crops left out that the summary names; metrics.json has them all
IMAGENET_FILE = "efficientnet-b0_weights_tf_dim_ordering_tf_kernels_autoaugment_notop.h5"
ABOUT_MEASURES = {
    "positive class": "fake, scored by p_fake = 1 - p_real",
    "unit": "crop: each crop for itself; video: the mean p_real of its crops",
    "auc": "area under the ROC curve, 0 to 1, higher is better, 0.5 is chance",
    "accuracy": "share called rightly where p_fake >= 0.5 is called fake, 0 to 1, higher is better",
}


def find_crops(split_dir: Path) -> pd.DataFrame:
    """List the crops: one row each, with crop (path below split_dir), video_id, label and split.

    The folders say label and split; crops.csv says the video. Without it the video is the file name
    less its frame and face (`<video_id>-000042-00.png`), or the whole of any other name.

    Raises:
        FileNotFoundError, ValueError: the folder is not one that can be trained on.
    """
    make = "make it with 03-prepare-fake-real-dataset.py or name another with --split-dir."
    if not split_dir.is_dir():
        raise FileNotFoundError(f"{split_dir}: there is no such folder; {make}")
    if not (split_dir / "train").is_dir():
        raise FileNotFoundError(f"{split_dir}: it has no train/, so it is not a split set; {make}")
    rows = []
    for split in SPLITS:
        if split == "test" and not (split_dir / split).exists():
            continue
        for label in CLASSES:
            folder = split_dir / split / label
            names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
            images = [name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
            images = [name for name in images if not name.startswith(".")]
            if not images:
                raise FileNotFoundError(f"{folder}: there are no {label} crops in it; {make}")
            rows += [(f"{split}/{label}/{name}", label, split) for name in sorted(images)]
    crops = pd.DataFrame(rows, columns=["crop", "label", "split"])
    by_name = crops.crop.map(lambda crop: re.sub(r"-\d{6,}-\d{2,}$", "", Path(crop).stem))
    crops.insert(1, "video_id", crops.crop.map(read_video_ids(split_dir)).fillna(by_name))
    return crops


def read_video_ids(split_dir: Path) -> dict[str, str]:
    """Read which video each crop is of from crops.csv; empty where there is no such table.

    Raises:
        ValueError: the table has no columns crop and video_id.
    """
    path = split_dir / "crops.csv"
    if not path.exists():
        return {}
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        return dict(zip(table["crop"], table["video_id"], strict=True))
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{path}: it is not a table with the columns crop and video_id; run "
            "03-prepare-fake-real-dataset.py again, or delete it to go by the file names."
        ) from error


@functools.lru_cache(maxsize=CROPS_IN_MEMORY)
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


def drop_broken_crops(crops: pd.DataFrame, split_dir: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return the crops that decode, and those that do not with the reason.

    Raises:
        ValueError: a class of a split has no crop left.
    """
    broken = {}
    for crop in tqdm(crops.crop, "crops", unit="crop"):
        try:
            read_crop(split_dir / crop)
        except (ValueError, OSError) as error:
            broken[crop] = str(error)
    whole = crops[~crops.crop.isin(broken)].reset_index(drop=True)
    for split, label in crops.groupby(["split", "label"]).groups:
        if not ((whole.split == split) & (whole.label == label)).any():
            raise ValueError(
                f"{split_dir / split / label}: none of its crops can be read; make them anew with "
                "03-prepare-fake-real-dataset.py."
            )
    return whole, broken


def batch_crops(
    crops: pd.DataFrame, split_dir: Path, batch_size: int, seed: int | None = None
) -> tf.data.Dataset:
    """Serve batches: RGB float32 (n, 128, 128, 3) in 0..255, and labels (n,), fake 0, real 1.

    With a seed they come in a new order in every epoch, and augmented; without, as they are and in
    the table's order.
    """
    paths = [split_dir / crop for crop in crops.crop]
    labels = tf.constant(crops.label.map(CLASSES.index), tf.float32)
    # Batches of one size, or nearly: a last one of one or two crops would spoil the running
    # statistics of the batch normalisation just before the validation.
    batch_size = math.ceil(len(paths) / math.ceil(len(paths) / batch_size))

    def read_batch(rows: np.ndarray) -> np.ndarray:
        return np.stack([read_crop(paths[row]) for row in rows])

    def load_batch(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images = tf.numpy_function(read_batch, [rows], tf.uint8)
        images = tf.ensure_shape(images, (None, IMAGE_SIZE, IMAGE_SIZE, 3))
        return tf.cast(images, tf.float32), tf.gather(labels, rows)

    rows = tf.data.Dataset.range(len(paths))
    if seed is None:
        batches = rows.batch(batch_size).map(load_batch, tf.data.AUTOTUNE)
    else:
        batches = rows.shuffle(len(paths), seed=seed).batch(batch_size)
        batches = batches.map(load_batch, tf.data.AUTOTUNE)
        seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)
        batches = tf.data.Dataset.zip(batches, seeds).map(
            lambda batch, seed: (augment(batch[0], seed), batch[1]), tf.data.AUTOTUNE
        )
    return batches.prefetch(tf.data.AUTOTUNE)


def augment(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Turn, shift, shear, zoom and mirror each image at random, as one affine map.

    One map resamples the pixels once, where one after another would blur them five times and hide
    the very traces that are to be learned. What comes in from outside repeats the border. The shear
    is a slope (0.2 is 11 degrees); Keras' old ImageDataGenerator took the same 0.2 for degrees,
    which moved nothing by as much as a pixel.

    Args:
        images: float32 (n, size, size, 3).
        seed: two integers; the same make the same.
    """
    draws = tf.random.stateless_uniform((7, tf.shape(images)[0]), seed, -1, 1)
    angle = draws[0] * math.radians(ROTATION)
    shear = draws[1] * SHEAR
    zoom_x, zoom_y = 1 + draws[2] * ZOOM, 1 + draws[3] * ZOOM
    zoom_x *= tf.where(draws[4] < 2 * FLIP - 1, -1.0, 1.0)
    shift_x, shift_y = draws[5] * SHIFT * IMAGE_SIZE, draws[6] * SHIFT * IMAGE_SIZE
    # Rotation x shear x zoom about the middle; it says where each pixel of the result comes from.
    a, b = tf.cos(angle) * zoom_x, (tf.cos(angle) * shear - tf.sin(angle)) * zoom_y
    c, d = tf.sin(angle) * zoom_x, (tf.sin(angle) * shear + tf.cos(angle)) * zoom_y
    middle = (IMAGE_SIZE - 1) / 2
    x, y = middle * (1 - a - b) + shift_x, middle * (1 - c - d) + shift_y
    maps = tf.stack((a, b, x, c, d, y, tf.zeros_like(a), tf.zeros_like(a)), axis=1)
    return keras.ops.image.affine_transform(images, maps, "bilinear", fill_mode="nearest")


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
    p_real = keras.layers.Dense(1, activation="sigmoid", name="p_real")(features)
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


def train_model(
    model: keras.Model,
    train: tf.data.Dataset,
    val: tf.data.Dataset,
    epochs: int,
    learning_rate: float,
    patience: int,
) -> pd.DataFrame:
    """Train, leave the model with the weights of its best epoch, and return a row an epoch.

    The columns are epoch (from 1), accuracy, loss, val_accuracy and val_loss. Those of training are
    taken with dropout and augmentation, so those of validation may be better.

    Raises:
        ValueError: the loss is no longer a number.
    """
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss="binary_crossentropy",
        metrics=["accuracy"],
        jit_compile=JIT_COMPILE,
    )
    # TensorFlow traces a step that makes variables twice, 20 s here; so these two make them before.
    model.optimizer.build(model.trainable_variables)
    model.evaluate(val.take(1), verbose=0)
    stop = keras.callbacks.EarlyStopping(
        "val_loss", patience=patience, mode="min", restore_best_weights=True
    )
    bar_or_lines = 1 if sys.stdout.isatty() else 2
    run = model.fit(
        train,
        validation_data=val,
        epochs=epochs,
        callbacks=[stop],
        shuffle=False,  # they come in a new order already
        verbose=bar_or_lines,
    )
    history = pd.DataFrame(run.history)
    history.insert(0, "epoch", np.arange(1, len(history) + 1))
    if not np.isfinite(history.val_loss).all():
        raise ValueError(
            "the validation loss is no longer a number, so no model was written; train with a "
            "smaller --learning-rate."
        )
    return history


def predict_crops(
    model: keras.Model, crops: pd.DataFrame, batches: tf.data.Dataset
) -> pd.DataFrame:
    """Predict crops that are served in the table's order: crop, video_id, label, p_real, split."""
    p_real = model.predict(batches, verbose=0)[:, 0]
    return crops.assign(p_real=p_real)[["crop", "video_id", "label", "p_real", "split"]]


def average_by_video(predictions: pd.DataFrame) -> pd.DataFrame:
    """Give each video the mean p_real of its crops: video_id, label, p_real."""
    return predictions.groupby(["label", "video_id"], as_index=False).p_real.mean()


def score_fakes(predictions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Turn predictions round, to fake as the positive class: is_fake bool (n,), p_fake (n,)."""
    p_fake = 1 - predictions.p_real.to_numpy(np.float64)
    return predictions.label.to_numpy() == "fake", p_fake


def measure(predictions: pd.DataFrame) -> dict[str, float]:
    """Measure predictions of crops or of videos; ABOUT_MEASURES says what the numbers are."""
    is_fake, p_fake = score_fakes(predictions)
    return {
        "auc": float(sklearn.metrics.roc_auc_score(is_fake, p_fake)),
        "accuracy": float(np.mean((p_fake >= 0.5) == is_fake)),
    }


def measure_both_units(predictions: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Measure predictions of crops by crop and by video."""
    return {"crop": measure(predictions), "video": measure(average_by_video(predictions))}


def count_crops(crops: pd.DataFrame) -> dict[str, int]:
    """Count the crops and videos of each class."""
    counts = {}
    for label in CLASSES:
        of_class = crops[crops.label == label]
        counts[f"{label} crops"] = len(of_class)
        counts[f"{label} videos"] = of_class.video_id.nunique()
    return counts


def write_model(model: keras.Model, path: Path) -> None:
    """Write the model without its optimizer, a third of the size, whole or not at all."""
    partial = path.with_name(path.stem + ".partial.keras")  # Keras goes by the suffix
    keras.Model(model.inputs, model.outputs, name=model.name).save(partial)
    partial.replace(path)


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


def write_picture(figure: Figure, path: Path) -> None:
    """Write a picture as PNG whole or not at all: to a temporary name beside it, then renamed."""
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=150)
    partial.replace(path)


def draw_training_curves(history: pd.DataFrame, best_epoch: int) -> Figure:
    """Draw loss and accuracy of training and validation by epoch."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(history.epoch, history[name], marker="o", markersize=3, label="training")
        axes.plot(
            history.epoch, history["val_" + name], marker="o", markersize=3, label="validation"
        )
        axes.axvline(best_epoch, color="0.6", linestyle=":", label="epoch kept")
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, loc="lower right")
    return figure


def draw_roc(predictions: pd.DataFrame, split: str) -> Figure:
    """Draw the ROC curves by crop and by video, fake as the positive class."""
    units = {"crop": predictions, "video": average_by_video(predictions)}
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    axes = figure.subplots()
    for unit, table in units.items():
        false_alarms, found, _ = sklearn.metrics.roc_curve(*score_fakes(table))
        auc = measure(table)["auc"]
        line = "--" if unit == "video" else "-"  # to be seen where one lies on the other
        label = f"by {unit}: AUC {auc:.3f}, n = {len(table):,}"
        axes.plot(false_alarms, found, line, label=label)
    axes.plot((0, 1), (0, 1), color="0.6", linestyle=":", label="chance: AUC 0.5")
    axes.set(
        title=f"ROC of {split}",
        xlabel="false positive rate: reals called fake",
        ylabel="true positive rate: fakes found",
        xlim=(-0.01, 1.01),
        ylim=(-0.01, 1.01),
        aspect="equal",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    return figure


def main(
    split_dir: Path = SPLIT_DIR,
    model_dir: Path = MODEL_DIR,
    start: str | None = START,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    learning_rate: float = LEARNING_RATE,
    patience: int = PATIENCE,
    seed: int = SEED,
) -> dict:
    """Train EfficientNet-B0 to tell real faces from fake ones.

    Args:
        split_dir: folder with train/, val/ and test/, each with real/ and fake/
        model_dir: folder for the model, its measures and pictures
        start: imagenet, lite0 (embedded), auto (the first of the two to be had), none, or a file
        epochs: epochs at most
        batch_size: crops a step
        learning_rate: of Adam
        patience: epochs without a lower validation loss, after which training stops
        seed: the same seed starts from the same weights and serves the crops in the same order

    Returns:
        What metrics.json holds: measures by split and unit, counts, settings.

    Raises:
        ValueError: a number is out of its range, the crops or the start weights cannot be used, or
            the loss is no longer a number.
        OSError: a folder or file is not there, or the ImageNet weights cannot be downloaded.
    """
    for name, value, least in (
        ("epochs", epochs, 1),
        ("batch size", batch_size, 1),
        ("patience", patience, 0),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; give {least} or more.")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning rate is {learning_rate}; give a number above 0.")
    if model_dir.exists() and not model_dir.is_dir():
        raise ValueError(
            f"{model_dir}: it is a file; name a folder for the model with --model-dir."
        )

    crops = find_crops(split_dir)
    start_weights, started_from = find_start_weights(start)
    read_crop.cache_clear()  # the files may be others than in an earlier call
    crops, left_out = drop_broken_crops(crops, split_dir)
    parts = {split: part for split, part in crops.groupby("split", sort=False)}
    keras.utils.set_random_seed(seed)
    served = {split: batch_crops(part, split_dir, batch_size) for split, part in parts.items()}
    served["train"] = batch_crops(parts["train"], split_dir, batch_size, seed)

    model = build_model(start_weights)
    model_dir.mkdir(parents=True, exist_ok=True)  # before hours are spent
    history = train_model(model, served["train"], served["val"], epochs, learning_rate, patience)
    best_epoch = int(history.epoch[history.val_loss.argmin()])

    predictions = {
        split: predict_crops(model, parts[split], served[split])
        for split in parts
        if split != "train"
    }
    metrics = {
        "measures": {split: measure_both_units(table) for split, table in predictions.items()},
        "about_measures": ABOUT_MEASURES,
        "counts": {split: count_crops(part) for split, part in parts.items()},
        "left_out": left_out,
        "start": start,
        "started_from": started_from,
        "epochs_run": len(history),
        "best_epoch": best_epoch,
        "settings": {
            "epochs": epochs,
            "patience": patience,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "batch_norm_momentum": BATCH_NORM_MOMENTUM,
            "seed": seed,
            "image_size": IMAGE_SIZE,
            "rotation": ROTATION,
            "shift": SHIFT,
            "shear": SHEAR,
            "zoom": ZOOM,
            "flip": FLIP,
        },
    }

    write_model(model, model_dir / "best_model.keras")
    write_table(history, model_dir / "history.csv")
    write_table(pd.concat(predictions.values()), model_dir / "predictions.csv")
    write_json(metrics, model_dir / "metrics.json")
    write_picture(draw_training_curves(history, best_epoch), model_dir / "training_curves.png")
    judged = "test" if "test" in parts else "val"
    write_picture(draw_roc(predictions[judged], judged), model_dir / "roc.png")

    print(f"{model_dir}")
    print(f"  started from    {started_from}")
    print(f"  epochs          {len(history)}, the best of which is {best_epoch}")
    for split, count in metrics["counts"].items():
        print(
            f"  {split:15} {count['real crops'] + count['fake crops']:,} crops of "
            f"{count['real videos'] + count['fake videos']:,} videos"
        )
    if left_out:
        named = ", ".join(list(left_out)[:NAMED]) + (", ..." if len(left_out) > NAMED else "")
        print(f"  left out        {len(left_out):,} crops that cannot be read: {named}")
    if "test" not in parts:
        print(f"  no test/        {split_dir} has none, so these are the measures of val/:")
    for unit, values in metrics["measures"][judged].items():
        print(
            f"  {judged + ', by ' + unit:15} AUC {values['auc']:.3f}, "
            f"accuracy {values['accuracy']:.3f}"
        )
    print(f"  look next at    {model_dir / 'training_curves.png'} and {model_dir / 'roc.png'}")
    return metrics


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
