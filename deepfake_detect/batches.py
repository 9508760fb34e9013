"""Batches of augmented crops for training with Keras."""

from __future__ import annotations

import math
import os

import deepfake_detect.keras_setup  # noqa: F401 - first, before others load Keras  # isort: skip
import numpy as np
import pandas as pd
import tensorflow as tf

from deepfake_detect.augmentation import Augmentation, change_alike, draw_groups, show_group


def serve_crops(
    images: np.ndarray,
    crops: pd.DataFrame,
    augmentation: Augmentation,
    batch_size: int,
    seed: tuple[int, int],
) -> tf.data.Dataset:
    """Return the batches of an epoch: RGB float32 (n, size, size, 3) in 0..255, labels (n, 1).

    Fake is 0, real is 1. The same seed gives the same batches, so that a stopped training continues
    with the batches that would have come next.

    Args:
        images: the decoded crops, RGB uint8 (n, size, size, 3)
        crops: the crops to serve; their index is the row in images
        augmentation: the random changes
        batch_size: approximate number of crops per batch
        seed: the seed of the training, and the number of the epoch
    """
    groups = draw_groups(crops, augmentation, seed)
    # All batches have nearly the same size: a last batch of one or two crops would spoil the
    # running statistics of the batch normalisation just before validation.
    steps = math.ceil(sum(map(len, groups)) / batch_size)
    shares = np.array_split(np.arange(len(groups)), steps)
    is_real = (crops["label"] == "real").to_dict()
    reals = crops[crops["label"] == "real"].groupby("dataset").groups

    def make(step: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((*seed, step))
        batch, labels = [], []
        for group in (groups[place] for place in shares[step]):
            same_set = reals.get(crops.at[group[0], "dataset"])
            faces = show_group(images, group, same_set, augmentation.swapped, rng)
            batch += change_alike(faces, augmentation, rng)
            labels += [row >= 0 and is_real[row] for row in group]
        return np.stack(batch), np.array(labels, np.float32)[:, None]

    @tf.autograph.experimental.do_not_convert  # a killed training would leave a temporary file
    def load(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch, labels = tf.numpy_function(
            lambda step: make(int(step)), [step], (tf.uint8, tf.float32)
        )
        batch = tf.ensure_shape(batch, (None, *images.shape[1:]))
        return tf.cast(batch, tf.float32), tf.ensure_shape(labels, (None, 1))

    numbers = tf.data.Dataset.range(steps)
    return without_tuning(numbers.map(load, os.cpu_count()).prefetch(8))


def without_tuning(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Return the same batches with tf.data's autotuning disabled.

    Autotuning wakes up after 10 ms, 20 ms and so on, up to a minute, and in TensorFlow 2.21 the end
    of an epoch waits for the next time.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.with_options(options)
