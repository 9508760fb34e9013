"""Predict crops with a model: p_real of each, the mean over the crop and its mirror image."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pandas as pd
import scipy.special

from deepfake_detect.decision import SMALLEST_P


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
