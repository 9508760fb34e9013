"""Time the training of script 04, and the same with Keras' ImageDataGenerator feeding the model.

    python benchmarks/train_cnn.py split_dataset
    python benchmarks/train_cnn.py split_dataset --crops 500 --rounds 1

Three ways feed one model, in turn, in each round: a single batch over and over, which costs no
waiting at all; script 04, once all is decoded; and ImageDataGenerator, as the known recipe has it,
with the same ranges. What a way takes longer than the first is waiting for crops.
"""

import importlib
import inspect
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
train_cnn = importlib.import_module("04-train-cnn")

import numpy as np  # noqa: E402 - after 04, which quiets TensorFlow first
import pandas as pd  # noqa: E402
import tensorflow as tf  # noqa: E402
import tyro  # noqa: E402

from deepfake_detect import augmentation  # noqa: E402
from deepfake_detect import crops as crop_files  # noqa: E402
from deepfake_detect.decision import IMAGE_SIZE  # noqa: E402
from deepfake_detect.model import build_model  # noqa: E402

BATCH_SIZE = 32


def repeat_one_batch(served: tf.data.Dataset, steps: int) -> tf.data.Dataset:
    """The first batch of a data set, for so many steps: the same arithmetic, and no waiting."""
    batch = next(iter(served))
    crops = tf.data.Dataset.from_tensor_slices(batch).batch(len(batch[1]))
    return without_tuning(crops.cache().repeat(steps))


def without_tuning(batches: tf.data.Dataset) -> tf.data.Dataset:
    """The same, as script 04 has it: tf.data's tuning makes the end of an epoch wait for it."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.with_options(options)


def serve_with_generator(split_dir: Path, crops: pd.DataFrame) -> tf.data.Dataset:
    """ImageDataGenerator with the ranges of script 04; it reads and decodes in every epoch."""
    generator = tf.keras.preprocessing.image.ImageDataGenerator(
        width_shift_range=train_cnn.SHIFT,
        height_shift_range=train_cnn.SHIFT,
        horizontal_flip=train_cnn.FLIP > 0,
        fill_mode="nearest",
    )
    table = crops.assign(crop=[str((split_dir / crop).resolve()) for crop in crops.crop])
    batches = generator.flow_from_dataframe(
        table,
        x_col="crop",
        y_col="label",
        target_size=(128, 128),
        class_mode="binary",
        batch_size=BATCH_SIZE,
        seed=1,
    )

    def generate() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch in range(len(batches)):
            images, labels = batches[batch]
            yield images, labels[:, None]

    # Given to fit as it is, Keras 3.15 finds no shape for its labels, and stops.
    signature = tf.TensorSpec((None, 128, 128, 3)), tf.TensorSpec((None, 1))
    return without_tuning(tf.data.Dataset.from_generator(generate, output_signature=signature))


def main(
    split_dir: Annotated[Path, tyro.conf.Positional], /, crops: int = 1000, rounds: int = 2
) -> None:
    """Time the training of script 04, and the same with Keras' ImageDataGenerator.

    Args:
        split_dir: A folder as script 04 takes it.
        crops: So many of its training crops an epoch.
        rounds: Each way is timed so often, in turn.
    """
    given = inspect.signature(train_cnn.main).parameters
    settings = {name: parameter.default for name, parameter in given.items()}
    settings |= {"learning_rate": 1e-5, "warm_up_steps": 0, "decay": "constant"}
    table = crop_files.find_crops(split_dir, ("train",))
    # As many reals as fakes: of each pair that script 04 serves one is a real crop.
    each = min(crops // 2, *table["label"].value_counts())
    table = table.groupby("label").sample(each, random_state=1).reset_index(drop=True)
    model = build_model(None)
    train_cnn.compile_model(model, settings, 10**6)
    train_cnn.hasten_first_step(model)

    with tempfile.TemporaryDirectory() as folder:
        images = crop_files.open_cache(len(table), IMAGE_SIZE, Path(folder))
        start = time.perf_counter()
        table, _ = crop_files.decode_crops(table, split_dir, images)
        print(f"decoding, once: {len(table) / (time.perf_counter() - start):,.0f} crops/s")

        def serve_crops() -> tf.data.Dataset:
            return augmentation.serve_crops(images, table, settings, 1)

        steps = math.ceil(len(table) / BATCH_SIZE)
        ways = {
            "one batch, no waiting": lambda: repeat_one_batch(serve_crops(), steps),
            "script 04": serve_crops,
            "ImageDataGenerator": lambda: serve_with_generator(split_dir, table),
        }
        # A real crop may come twice in an epoch of script 04, by another fake.
        served = {name: sum(len(y) for _, y in serve()) for name, serve in ways.items()}
        for serve in ways.values():  # TensorFlow compiles in it, for each
            model.fit(serve(), steps_per_epoch=2, verbose=0)
        rows = []
        for _ in range(rounds):
            for name, serve in ways.items():
                batches = serve()
                start = time.perf_counter()
                model.fit(batches, shuffle=False, verbose=0)
                rows.append((name, (time.perf_counter() - start) / served[name]))
    seconds = pd.DataFrame(rows, columns=["way", "seconds"]).groupby("way", sort=False).seconds
    least = seconds.median().iloc[0]
    print(f"{len(table):,} crops, medians of {rounds} rounds")
    for name, median in seconds.median().items():
        waiting = max(0.0, 1 - least / median)
        print(f"{name:22} {1 / median:6.1f} crops/s, {waiting:6.1%} of the time waiting for crops")


if __name__ == "__main__":
    tyro.cli(main)
