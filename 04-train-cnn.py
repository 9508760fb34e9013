"""Train EfficientNet-B0 to classify face crops as real or fake.

    python 04-train-cnn.py
    python 04-train-cnn.py --start lite0 --epochs 3
    python 04-train-cnn.py --split-dir my-split --model-dir my-model --start my-weights.h5

Reads   split_dataset/{train,val}/{real,fake}/   face crops of any size; 04 never opens test/
        split_dataset/crops.csv                  video, data set and method of each crop
        split_dataset/crop-rule.json             rule that the crops were cut by
Writes  model/best_model.keras                   model of the best epoch, with its decision
        model/best_model.onnx                    the same model, to detect without TensorFlow
        model/history.csv                        loss, accuracy and AUC of every epoch
        model/training_curves.png                plot of history.csv
        model/unfinished.keras                   checkpoint of a stopped training
Next    05-evaluate-model.py

The model takes RGB images in 0..255 and normalises them with ImageNet's mean and standard
deviation. Its output is p_real, the probability that the face is real. The decision turns p_real
into a verdict: it holds the calibration and the thresholds, both fitted on the validation crops,
and the crop rule.

If a training is stopped, even by a kill, run the same command again: it continues after the last
complete epoch and ends with the same model and history, byte for byte.

EfficientNet: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural
Networks", ICML 2019, as implemented in the efficientnet package.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))  # python -P leaves it out
from deepfake_detect import start

start.prepare(__name__)  # so that Ctrl-C during the imports prints one line

import os
import platform
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Annotated, Literal

import deepfake_detect.keras_setup  # noqa: F401 - first, before others load Keras  # isort: skip
import keras
import numpy as np
import pandas as pd
import sklearn.metrics
import tensorflow as tf
from tqdm.keras import TqdmCallback

from deepfake_detect import cli, files
from deepfake_detect.augmentation import STANDARD, Augmentation
from deepfake_detect.batches import serve_crops
from deepfake_detect.checkpoint import (
    fingerprint_crops,
    read_checkpoint,
    seed_dropout,
    write_checkpoint,
)
from deepfake_detect.cli import MACHINE, Between, Count, Share
from deepfake_detect.crops import (
    CLASSES,
    count_crops,
    decode_crops,
    find_crop_rule,
    find_crops,
    open_cache,
)
from deepfake_detect.decision import (
    IMAGE_SIZE,
    Decision,
    calibrate,
    check_image_size,
    describe_decision,
)
from deepfake_detect.model import build_model, find_start_weights
from deepfake_detect.model_file import write_model
from deepfake_detect.onnx_export import write_onnx
from deepfake_detect.plots import draw_training_curves, write_picture
from deepfake_detect.scoring import (
    find_least_sharpness,
    fit_decision,
    measure_auc,
    predict_changed,
    predict_crops,
)

Rate = Annotated[float, Between(1e-9, 1)]


# --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Settings:
    """Edit a default here, or override it for one run: --epochs 3."""

    # folders
    split_dir: Path = Path("split_dataset")  # train/ and val/, each with real/ and fake/
    model_dir: Path = Path("model")  # output folder for the model and its history
    # training
    start: str = "auto"  # imagenet, lite0 (built in), auto (first available), none, or a file
    epochs: Count = 20  # largest number of epochs
    patience: Count = 5  # stop after this many epochs without a higher validation AUC
    batch_size: Count = 32  # crops per step
    learning_rate: Rate | None = None  # peak; None: depends on start, see LEARNING_RATES
    warm_up_steps: Annotated[int, Between(0)] = 100  # steps in which the learning rate rises from 0
    decay: Literal["cosine", "constant"] = "cosine"  # learning rate after the warm-up
    seed: Annotated[int, Between(0, 2**31 - 1)] = 1  # for weights, order of crops, augmentation
    augmentation: Augmentation = STANDARD  # random changes to the training crops
    # crops
    image_size: int = IMAGE_SIZE  # side of the network's input in pixels, a multiple of 32
    sharpen_to: Annotated[float, Between(0)] = 0.0  # sharpen softer crops to this; 0: off
    darken_to: Annotated[float, Between(0, 255)] = 0.0  # darken bright, pale crops to this; 0: off
    margin: Annotated[float, Between(0, 10)] = 0.3  # crop margin, if crop-rule.json is missing
    square: bool = False  # crops are squares, if crop-rule.json is missing
    frames: Literal["reduced", "full"] = "reduced"  # source of crops, if crop-rule.json is missing
    # verdict
    most_wrong: Share = 0.1  # largest error rate on real, and on fake, validation videos
    robust: bool = False  # keep most_wrong on compressed, soft, noisy and bright reals, too
    smallest_face: Annotated[int, Between(0)] = 32  # in pixels; smaller crops are undecided
    softest_share: Share = 0.01  # crops softer than this quantile in training are undecided
    # machine
    devices: Annotated[tuple[str, ...] | None, MACHINE] = None  # GPU:0 GPU:1; None: all GPUs


# --------------------------------------------------------------------------------------------------

LEARNING_RATES = {
    "pretrained": 4e-4,
    "random": 1e-3,
    "file": 1e-4,
}  # a file may be a trained detector
UNITS = ("crops", "videos")
FEW_VIDEOS = 100  # per label; with fewer, a model learns the people instead of the forgery
NAMED = 5  # unreadable crops listed in the summary
MODEL, ONNX, HISTORY, CURVES = (
    "best_model.keras",
    "best_model.onnx",
    "history.csv",
    "training_curves.png",
)


def main(settings: Settings = Settings()) -> dict:
    """Train EfficientNet-B0 to classify face crops as real or fake.

    Returns:
        The facts saved with the model: how it was trained, and its decision.

    Raises:
        ValueError: a setting, the crops, the start weights or model_dir are not valid, or the
            training diverged
        OSError: a file is missing, or cannot be downloaded, written or locked
    """
    cli.check_ranges(settings)
    check_image_size(settings.image_size)
    crops = find_crops(settings.split_dir, ("train", "val"))
    rule = find_crop_rule(settings.split_dir, settings)
    start_weights, started_from = find_start_weights(settings.start)
    if settings.learning_rate is None:
        kind = "pretrained" if "ImageNet" in started_from else "file" if start_weights else "random"
        settings = replace(settings, learning_rate=LEARNING_RATES[kind])

    output = files.claim(settings.model_dir, "--model-dir", __file__)
    output.check([MODEL, ONNX, HISTORY, CURVES])
    with files.locked(settings.model_dir):
        images = open_cache(len(crops), settings.image_size, settings.model_dir)
        crops, left_out = decode_crops(crops, settings.split_dir, images)
        splits = {split: part for split, part in crops.groupby("split", sort=False)}
        warn_of_few_videos(splits["train"])

        # Every setting that affects the result is part of the training's identity; paths are not.
        decision = Decision(**rule)
        made_with = cli.settings_of_result(settings) | {
            name: value for name, value in describe_decision(decision).items() if name in rule
        }
        made_with |= {"start": started_from}
        versions = {"Python": platform.python_version(), "TensorFlow": tf.__version__}
        versions |= {"Keras": keras.__version__, "efficientnet": version("efficientnet")}
        identity = made_with | versions | {"crops": fingerprint_crops(crops, settings.split_dir)}
        unfinished = settings.model_dir / "unfinished.keras"
        model, history = train_model(images, splits, start_weights, settings, identity, unfinished)

        # Write the model first, so that a later error does not lose the training.
        decision = decide(model, images, splits, settings)._replace(**rule)
        training = {
            "counts": {split: count_crops(part) for split, part in splits.items()},
            "practice": bool((splits["train"]["dataset"] == "practice").any()),
            "left_out": left_out,
            "started_from": started_from,
            "epochs_run": len(history),
            "best_epoch": find_best(history),
            "val_auc": float(history["val_auc"].max()),
            "settings": made_with,
            "versions": versions,
        }
        output.write_set(
            {
                ONNX: lambda path: write_onnx(model, decision, path, training),
                MODEL: lambda path: write_model(model, decision, path, training),
            }
        )
        output.write(HISTORY, lambda path: history.to_csv(path, index=False))
        write_picture(output, CURVES, lambda: draw_training_curves(history, find_best(history)))
        unfinished.unlink(missing_ok=True)
    print_training(training, decision, settings.model_dir)
    return training | {"decision": describe_decision(decision)}


def warn_of_few_videos(train: pd.DataFrame) -> None:
    """Print a note if a label has fewer than FEW_VIDEOS training videos."""
    videos = train.groupby("label")["video_id"].nunique()
    if videos.min() < FEW_VIDEOS:
        print(
            f"NOTE: only {videos['real']:,} real and {videos['fake']:,} fake videos to train on; "
            f"with fewer than {FEW_VIDEOS} of each, expect a model that fails on new people."
        )


# --- Training -------------------------------------------------------------------------------------


def train_model(
    images: np.ndarray,
    splits: dict[str, pd.DataFrame],
    start_weights: Path | None,
    settings: Settings,
    identity: dict,
    unfinished: Path,
) -> tuple[keras.Model, pd.DataFrame]:
    """Train, or continue to train; return the best epoch's model and the history by epoch.

    Training loss and accuracy are measured with dropout and augmentation, so the validation values
    may be better.

    Args:
        images: the decoded crops
        splits: the train and val crops; their index is the row in images
        start_weights: file to start from; None for random weights
        settings: the settings of this script
        identity: values that must be equal in a stopped training for it to be continued
        unfinished: path of the checkpoint, which is written after each epoch
    """
    history, best = read_checkpoint(unfinished, identity)
    epochs = settings.epochs
    keras.config.set_dtype_policy(choose_precision())
    keras.utils.set_random_seed(settings.seed)
    print(f"training on {describe_devices(settings.devices)}", flush=True)
    with choose_strategy(settings.devices).scope():
        if best:
            print(f"continuing after epoch {len(history)} of {epochs}")
            model = keras.saving.load_model(unfinished)
        else:
            shown = settings.image_size, settings.sharpen_to, settings.darken_to
            model = build_model(start_weights, *shown)
            served = serve_epoch(images, splits["train"], settings, 1)
            compile_model(model, settings, int(served.cardinality()) * epochs)

    for epoch in range(len(history) + 1, epochs + 1):
        if len(history) and len(history) - find_best(history) >= settings.patience:
            break
        # One pass over the training crops.
        began = time.monotonic()
        seed_dropout(model, settings.seed, epoch)
        batches = serve_epoch(images, splits["train"], settings, epoch)
        span = {"initial_epoch": epoch - 1, "epochs": epoch, "shuffle": False, "verbose": 0}
        trained = model.fit(batches, callbacks=[TqdmCallback(leave=False)], **span)

        # Evaluate on people who are not in the training set.
        val = predict_crops(model, images, splits["val"], settings.batch_size)
        if not np.isfinite(val["p_real"]).all():
            raise ValueError(
                f"the training diverged in epoch {epoch}: the model returns NaN; use a smaller "
                f"--learning-rate, and delete {unfinished} first."
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
            f"{row['val_auc']:.3f}; {time.monotonic() - began:.0f} s",
            flush=True,
        )
    model.set_weights(best)
    return model, history


def serve_epoch(
    images: np.ndarray, crops: pd.DataFrame, settings: Settings, epoch: int
) -> tf.data.Dataset:
    """Return the training batches of an epoch; see serve_crops."""
    seed = settings.seed, epoch
    return serve_crops(images, crops, settings.augmentation, settings.batch_size, seed)


def choose_precision() -> str:
    """Return mixed_float16 if all GPUs are fast at it (compute capability 7), else float32."""
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    fast = [detail.get("compute_capability", (0,)) >= (7,) for detail in details]
    return "mixed_float16" if fast and all(fast) else "float32"


def choose_strategy(devices: tuple[str, ...] | None) -> tf.distribute.Strategy:
    """Return the strategy that splits each batch over the devices; None means all GPUs."""
    devices = devices or [device.name for device in tf.config.list_logical_devices("GPU")]
    if len(devices) > 1:
        return tf.distribute.MirroredStrategy(devices)
    return tf.distribute.OneDeviceStrategy(devices[0]) if devices else tf.distribute.get_strategy()


def describe_devices(devices: tuple[str, ...] | None) -> str:
    """Return the names of the training devices, for the end of a sentence."""
    if devices:
        return ", ".join(devices)
    gpus = tf.config.list_physical_devices("GPU")
    names = [tf.config.experimental.get_device_details(gpu).get("device_name") for gpu in gpus]
    return (
        ", ".join(filter(None, names))
        or f"the CPU ({os.cpu_count()} cores), because no GPU was found"
    )


def compile_model(model: keras.Model, settings: Settings, steps: int) -> None:
    """Compile the model for a number of steps with Adam (Kingma and Ba, ICLR 2015).

    The learning rate rises linearly from 0, because large gradients of the untrained head would
    damage the pretrained layers. Then it follows half a cosine down to 0 (Loshchilov and Hutter,
    "SGDR", ICLR 2017) or stays constant.
    """
    highest, warm_up = settings.learning_rate, min(settings.warm_up_steps, steps // 10)
    rate = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warm_up else highest,
        decay_steps=steps - warm_up,
        alpha=1.0 if settings.decay == "constant" else 0.0,
        warmup_target=highest if warm_up else None,
        warmup_steps=warm_up,
    )
    model.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss="binary_crossentropy",
        metrics=[keras.metrics.BinaryAccuracy("accuracy")],
        jit_compile=False,  # XLA trains this model 14 times slower on a CPU
    )
    # Metric and optimizer have their variables now; otherwise the first step is traced twice.
    model.optimizer.build(model.trainable_variables)


def find_best(history: pd.DataFrame) -> int:
    """Return the epoch with the highest validation AUC by video; ties go to the lowest loss.

    The AUC depends only on the order of the scores; calibration corrects their confidence later.
    """
    order = history.sort_values(["val_auc", "val_loss", "epoch"], ascending=[False, True, True])
    return int(order["epoch"].iloc[0])


def decide(
    model: keras.Model, images: np.ndarray, splits: dict[str, pd.DataFrame], settings: Settings
) -> Decision:
    """Fit calibration and thresholds on the validation crops, and set the quality limits.

    Crops that are smaller or softer than the augmented training crops are undecided.
    """
    val, train = predict_crops(model, images, splits["val"], settings.batch_size), splits["train"]
    changed = []
    if settings.robust:
        changed = predict_changed(model, images, splits["val"], settings.batch_size)
    return fit_decision(val, settings.most_wrong, changed)._replace(
        smallest_face=min(settings.smallest_face, int(train["side"].min())),
        least_sharpness=find_least_sharpness(
            images, train, settings.augmentation, settings.softest_share, settings.seed
        ),
        image_size=settings.image_size,
        sharpen_to=settings.sharpen_to,
        darken_to=settings.darken_to,
    )


# --- Output ---------------------------------------------------------------------------------------


def print_training(training: dict, decision: Decision, model_dir: Path) -> None:
    """Print a summary of the training."""
    rows = {"started from": training["started_from"]}
    for split, count in training["counts"].items():
        crops, videos = (sum(count[f"{label} {unit}"] for label in CLASSES) for unit in UNITS)
        rows[split] = f"{crops:,} crops from {videos:,} videos"
    if left_out := list(training["left_out"]):
        named = ", ".join(left_out[:NAMED]) + (", ..." if len(left_out) > NAMED else "")
        rows["left out"] = f"{len(left_out):,} crops that cannot be read: {named}"
    rows["epochs"] = f"{training['epochs_run']}; the best is epoch {training['best_epoch']}"
    rows["validation"] = (
        f"AUC by video {training['val_auc']:.3f}; optimistic: the epoch was selected on it"
    )
    rows["verdict"] = (
        f"likely fake from p_fake {decision.threshold:.3f}, likely real below "
        f"{decision.real_below:.3f}"
    )
    if training["practice"]:
        rows["practice"] = "trained on practice videos; do not use this model on real videos"
    rows["curves"] = model_dir / CURVES
    cli.print_facts(model_dir, rows)
    print("next: python 05-evaluate-model.py")


if __name__ == "__main__":
    cli.run(main)
