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

The model takes RGB images, 128 x 128 if not told otherwise, as they are, 0 to 255: its first layer
normalises them by ImageNet's mean and standard deviation. Its output is p_real, the probability
that the face is real. p_fake, the score that the later scripts use, is 1 - p_real after a
calibration on the validation crops; the calibration, the two thresholds and the way the crops were
cut are saved in its file.

A training that was stopped, even by a kill, goes on after its last whole epoch and ends with the
same model and history, byte for byte.

EfficientNet is Tan and Le's ("EfficientNet: Rethinking Model Scaling for Convolutional Neural
Networks", ICML 2019), as the efficientnet package has it.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import deepfake_detect.keras_setup  # noqa: F401 - first, before others load Keras  # isort: skip
import filelock
import keras
import numpy as np
import pandas as pd
import scipy.optimize
import scipy.special
import sklearn.metrics
import tensorflow as tf
from matplotlib.figure import Figure
from sklearn.utils.class_weight import compute_sample_weight
from tqdm.keras import TqdmCallback

from deepfake_detect import cli
from deepfake_detect.augmentation import change_alike, serve_crops
from deepfake_detect.crops import (
    CLASSES,
    average_by_video,
    count_crops,
    decode_crops,
    find_crops,
    measure_sharpness,
    open_cache,
    read_crop_rule,
)
from deepfake_detect.decision import SMALLEST_P, Decision, calibrate, check_image_size
from deepfake_detect.files import claim_folder, write_whole
from deepfake_detect.fused_adam import FusedAdam
from deepfake_detect.model import build_model, find_start_weights
from deepfake_detect.model_file import write_model
from deepfake_detect.scoring import predict_crops

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
BLENDED = 0.5  # share of the pairs whose fake is a face blended into the real, of no one's method
SWAPPED = 0.5  # share of those whose face is another real's; the others' is the real's own
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
IMAGE_SIZE = 128  # pixels that a crop's sides are squeezed to, a multiple of 32
SHARPEN_TO = 0.0  # sharpness that the network brings a softer crop to, as it is measured; 0: none
MARGIN = 0.3  # of the face's box, on each side; where no crop-rule.json says how they were cut
SQUARE = False  # the crop is a square about the box's centre; likewise
FRAMES = "reduced"  # that they were cut from, by the width rule of 01, or "full"; likewise
# limits
SMALLEST_FACE = 32  # pixels of a crop's shorter side, as in REDUCED; a smaller one is undecided
MOST_WRONG = 0.1  # share of the real, and of the fake, validation videos that may be called wrong
SOFTEST_SHARE = 0.01  # of the changed training crops; one softer than all others is undecided
# machine
DEVICES = None  # such as ("GPU:0",); None: all GPUs, each a share of every batch, or the CPU
# --------------------------------------------------------------------------------------------------

UNITS = ("crops", "videos")
LEARNING_RATES = {"pretrained": 4e-4, "random": 1e-3, "file": 1e-4}  # a file may be a detector
TEMPERATURES = 0.5, 5.0  # a few separable videos would ask for 0: the bounds keep it sensible
SHIFTS = -5.0, 5.0  # the same for the shift
NAMED = 5  # crops left out that the summary names
SAMPLED = 2000  # training crops, at most, that are changed to tell how soft they become
LIMITS = {  # of the settings: least and most
    (1, math.inf): ("epochs", "patience", "batch_size", "repeats"),
    (0, math.inf): ("warm_up_steps", "smallest_face", "sharpen_to"),
    (0, 10): ("margin",),
    (0, 1): (
        *("blended", "swapped", "flip", "shift", "zoomed", "brightness", "contrast", "tint"),
        *("grey", "cut_out", "most_wrong", "softest_share"),
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
    blended: float = BLENDED,
    swapped: float = SWAPPED,
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
    image_size: int = IMAGE_SIZE,
    sharpen_to: float = SHARPEN_TO,
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
        blended: share of the pairs whose fake is a face blended into the real
        swapped: share of those whose face is another real's, not the real's own
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
        image_size: pixels that a crop's sides are squeezed to, a multiple of 32
        sharpen_to: sharpness that the network brings a softer crop to, such as 35; 0: none
        margin: of the crops, where no crop-rule.json has it: of the face's box, on each side
        square: of the crops, likewise: whether they are squares
        frames: that the crops were cut from, likewise
        most_wrong: share of either class's validation videos that may be called wrong
        smallest_face: pixels of a crop's shorter side; a smaller one is undecided
        softest_share: share of the changed training crops that are too soft to be decided
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
    check_image_size(image_size)
    crops = find_crops(split_dir, ("train", "val"))
    rule = read_crop_rule(split_dir) or {"margin": margin, "square": square, "frames": frames}
    start_weights, started_from = find_start_weights(start)
    if learning_rate is None:
        kind = "pretrained" if "ImageNet" in started_from else "file" if start_weights else "random"
        settings["learning_rate"] = LEARNING_RATES[kind]

    if model_dir.is_file():
        raise ValueError(f"{model_dir}: it is a file; name a folder with --model-dir.")
    claim_folder(model_dir, "--model-dir", Path(__file__).name)
    with filelock.FileLock(model_dir / ".lock", timeout=0):
        images = open_cache(len(crops), image_size, model_dir)
        crops, left_out = decode_crops(crops, split_dir, images)
        parts = {split: part for split, part in crops.groupby("split", sort=False)}

        # Whatever may change the model makes this another training; where it lies does not.
        made_with = settings | rule | {"start": started_from, "devices": list(devices or [])}
        del made_with["split_dir"], made_with["model_dir"]
        versions = {"Python": platform.python_version(), "TensorFlow": tf.__version__}
        versions |= {"Keras": keras.__version__, "efficientnet": version("efficientnet")}
        identity = made_with | versions | {"crops": fingerprint_crops(crops, split_dir)}
        identity = json.loads(json.dumps(identity))  # lists, no tuples, as a checkpoint has it
        unfinished = model_dir / "unfinished.keras"
        model, history = train_model(images, parts, start_weights, settings, identity, unfinished)

        # The model is written first: nothing that fails after it can cost the training.
        val = predict_crops(model, images, parts["val"], batch_size)
        decision = make_decision(val, parts["train"], images, rule, settings)
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
            size, sharpen_to = settings["image_size"], settings["sharpen_to"]
            model = build_model(start_weights, size, sharpen_to)
            steps = int(serve_crops(images, parts["train"], settings, 1).cardinality())
            compile_model(model, settings, steps * epochs)
        hasten_first_step(model)

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
        row = {
            "epoch": epoch,
            "loss": trained.history["loss"][0],
            "accuracy": trained.history["accuracy"][0],
            "val_loss": sklearn.metrics.log_loss(val["label"] == "fake", val["p_fake"]),
            "val_accuracy": float(((val["p_fake"] >= 0.5) == (val["label"] == "fake")).mean()),
            "val_auc": measure_auc(val),
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
        optimizer=FusedAdam(rate),
        loss="binary_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,  # XLA trains this model 14 times slower on a CPU
    )


def hasten_first_step(model: keras.Model) -> None:
    """Create the variables of the optimizer and the metrics, and have no graph rewritten on a CPU.

    Created inside the first step, they would make TensorFlow trace that step twice, 9 s here. And
    without a GPU, a graph that is rewritten first trains no faster, and begins 1.5 s later.
    """
    if not tf.config.list_physical_devices("GPU"):
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    model.optimizer.build(model.trainable_variables)
    model.compute_metrics(None, np.zeros((1, 1)), np.zeros((1, 1)))


def find_best(history: pd.DataFrame) -> int:
    """Tell the best epoch: of the highest AUC by validation video, then of the lowest loss.

    The AUC asks for the right order alone; how sure the scores are, the calibration puts right.
    """
    order = history.sort_values(["val_auc", "val_loss", "epoch"], ascending=[False, True, True])
    return int(order["epoch"].iloc[0])


def measure_auc(val: pd.DataFrame) -> float:
    """Measure the AUC by video of each data set that has both labels, and average them.

    Taken together, data sets of different levels of score would hide how well each is told apart.
    """
    parts = [part for _, part in val.groupby("dataset") if part["label"].nunique() == 2] or [val]
    videos = [average_by_video(part) for part in parts]
    score = sklearn.metrics.roc_auc_score
    return float(np.mean([score(part["label"] == "fake", part["p_fake"]) for part in videos]))


# --- From the model's output to a verdict ---------------------------------------------------------


def make_decision(
    val: pd.DataFrame, train: pd.DataFrame, images: np.ndarray, rule: dict, settings: dict
) -> Decision:
    """Fit calibration and thresholds to the validation crops, and say how crops must be.

    None is to be smaller or softer than those that the model was trained on, changed as they were.
    """
    calibrated = fit_calibration(val)
    val = val.assign(p_fake=calibrate(val["p_real"], calibrated))
    threshold, real_below = choose_thresholds(val, settings["most_wrong"])
    return calibrated._replace(
        threshold=threshold,
        real_below=real_below,
        smallest_face=min(settings["smallest_face"], int(train["side"].min())),
        least_sharpness=find_least_sharpness(images, train, settings),
        image_size=images.shape[1],
        sharpen_to=settings["sharpen_to"],
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


def find_least_sharpness(images: np.ndarray, train: pd.DataFrame, settings: dict) -> float:
    """Find the sharpness that all but the softest share of the training's crops have, as changed.

    Args:
        images: the decoded crops, the index of train being rows of them
    """
    rng = np.random.default_rng(settings["seed"])
    rows = rng.permutation(train.index)[:SAMPLED]
    changed = [change_alike([images[row]], settings, rng)[0] for row in rows]
    return float(np.quantile(list(map(measure_sharpness, changed)), settings["softest_share"]))


# --- What is written and printed ------------------------------------------------------------------


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
    rows["validation"] = f"AUC by video {training['val_auc']:.3f}; flattering: it chose the epoch"
    rows["verdict"] = (
        f"fake from p_fake {decision.threshold:.3f}, real below {decision.real_below:.3f}"
    )
    rows["look next at"] = f"{model_dir / 'training_curves.png'}; then run 05-evaluate-model.py"
    print(model_dir)
    for label, fact in rows.items():
        print(f"  {label:15} {fact}")


# --- Machinery ------------------------------------------------------------------------------------


def check_numbers(settings: dict, limits: dict[tuple[float, float], tuple[str, ...]]) -> None:
    """Check that settings lie within their limits."""
    for (least, most), names in limits.items():
        for name in names:
            values = np.atleast_1d([] if settings[name] is None else settings[name])
            if not ((values >= least) & (values <= most)).all():
                wanted = f"{least} to {most}" if most < math.inf else f"{least} or more"
                raise ValueError(f"--{name.replace('_', '-')} is {settings[name]}; give {wanted}.")


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


def write_picture(path: Path, draw: Callable[[], Figure]) -> None:
    """Draw a picture and write it as PNG; one that fails costs itself and nothing else."""
    try:
        figure = draw()
        write_whole(path, lambda partial: figure.savefig(partial, format="png", dpi=150))
    except Exception as error:  # of many kinds: the result is on the disk already
        print(f"NOTE: {path}: this picture could not be drawn ({error}).", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
