"""Compare the training speed of script 04 with Keras' ImageDataGenerator.

    python -m benchmarks.train_cnn split_dataset
    python -m benchmarks.train_cnn split_dataset --crops 500 --rounds 1

In each round, three methods feed the same model in turn: one repeated batch, which never waits; the
input pipeline of 04, after decoding all crops; and ImageDataGenerator with the same ranges, as in
the classic recipe. A method that takes longer than the repeated batch waits for crops in this time.
"""

from deepfake_detect import start

start.prepare(__name__)

import importlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

train_cnn = importlib.import_module("04-train-cnn")

import numpy as np
import pandas as pd
import tensorflow as tf
import tyro

from deepfake_detect import cli
from deepfake_detect import crops as crop_files
from deepfake_detect.batches import without_tuning
from deepfake_detect.cli import Count
from deepfake_detect.model import build_model


@dataclass(frozen=True)
class Settings:
    """Edit a default here, or override it for one run: --rounds 1."""

    split_dir: Annotated[Path, tyro.conf.Positional]  # --split-dir of 04-train-cnn.py
    crops: Count = 1000  # training crops per epoch
    rounds: Count = 2  # measurements of each method, in turn
    image_size: int = train_cnn.Settings().image_size  # pixels of the model's input


TRAINING = train_cnn.Settings(learning_rate=1e-5, warm_up_steps=0, decay="constant")


def repeat_one_batch(served: tf.data.Dataset, steps: int) -> tf.data.Dataset:
    """Repeat the first batch for a number of steps: the same computation, without waiting."""
    batch = next(iter(served))
    crops = tf.data.Dataset.from_tensor_slices(batch).batch(len(batch[1]))
    return without_tuning(crops.cache().repeat(steps))


def serve_with_generator(split_dir: Path, crops: pd.DataFrame, size: int) -> tf.data.Dataset:
    """Serve crops by ImageDataGenerator with the ranges of 04; it decodes them in every epoch."""
    ranges = TRAINING.augmentation
    generator = tf.keras.preprocessing.image.ImageDataGenerator(
        width_shift_range=ranges.shift,
        height_shift_range=ranges.shift,
        horizontal_flip=ranges.flip > 0,
        fill_mode="nearest",
    )
    table = crops.assign(crop=[str((split_dir / crop).resolve()) for crop in crops.crop])
    batches = generator.flow_from_dataframe(
        table,
        x_col="crop",
        y_col="label",
        target_size=(size, size),
        class_mode="binary",
        batch_size=TRAINING.batch_size,
        seed=1,
    )

    def generate() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch in range(len(batches)):
            images, labels = batches[batch]
            yield images, labels[:, None]

    # Without a signature, Keras 3.15 cannot infer the shape of the labels and fails.
    signature = tf.TensorSpec((None, size, size, 3)), tf.TensorSpec((None, 1))
    return without_tuning(tf.data.Dataset.from_generator(generate, output_signature=signature))


def main(settings: Settings) -> None:
    """Compare the training speed of script 04 with Keras' ImageDataGenerator."""
    cli.check_ranges(settings)
    table = crop_files.find_crops(settings.split_dir, ("train",))
    # Equal numbers of reals and fakes: each pair of 04 has one of each.
    each = min(settings.crops // 2, *table["label"].value_counts())
    table = table.groupby("label").sample(each, random_state=1).reset_index(drop=True)
    training = replace(TRAINING, image_size=settings.image_size)
    model = build_model(None, training.image_size)
    train_cnn.compile_model(model, training, 10**6)

    with tempfile.TemporaryDirectory() as folder:
        images = crop_files.open_cache(len(table), training.image_size, Path(folder))
        start = time.perf_counter()
        table, _ = crop_files.decode_crops(table, settings.split_dir, images)
        print(f"decoding, once: {len(table) / (time.perf_counter() - start):,.0f} crops/s")

        def serve_crops() -> tf.data.Dataset:
            return train_cnn.serve_epoch(images, table, training, 1)

        steps = math.ceil(len(table) / training.batch_size)
        ways = {
            "one batch, no waiting": lambda: repeat_one_batch(serve_crops(), steps),
            "script 04": serve_crops,
            "ImageDataGenerator": lambda: serve_with_generator(
                settings.split_dir, table, training.image_size
            ),
        }
        seconds = time_ways(model, ways, settings.rounds)
    least = seconds.median().iloc[0]
    print(f"{len(table):,} crops, medians of {settings.rounds} rounds")
    for name, median in seconds.median().items():
        waiting = max(0.0, 1 - least / median)
        print(f"{name:22} {1 / median:6.1f} crops/s, {waiting:6.1%} of the time waiting for crops")


def time_ways(
    model: tf.keras.Model, ways: dict[str, Callable[[], tf.data.Dataset]], rounds: int
) -> pd.core.groupby.SeriesGroupBy:
    """Return the seconds per crop of each round, grouped by method."""
    # In an epoch of 04, a real crop may appear twice, with different fakes.
    served = {name: sum(len(y) for _, y in serve()) for name, serve in ways.items()}
    for serve in ways.values():  # TensorFlow compiles during the first steps
        model.fit(serve(), steps_per_epoch=2, verbose=0)
    rows = []
    for _ in range(rounds):
        for name, serve in ways.items():
            batches = serve()
            start = time.perf_counter()
            model.fit(batches, shuffle=False, verbose=0)
            rows.append((name, (time.perf_counter() - start) / served[name]))
    return pd.DataFrame(rows, columns=["way", "seconds"]).groupby("way", sort=False)["seconds"]


if __name__ == "__main__":
    cli.run(main)
