"""Score crops with a model, and fit the calibration and thresholds of its decision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.optimize
import scipy.special
import sklearn.metrics
from sklearn.utils.class_weight import compute_sample_weight

from deepfake_detect.augmentation import Augmentation, change_alike, degrade
from deepfake_detect.crops import average_by_video, measure_sharpness
from deepfake_detect.decision import SMALLEST_P, Decision, calibrate

if TYPE_CHECKING:
    import keras

TEMPERATURES = 0.5, 5.0  # bounds, because perfectly separated scores would drive it to 0
SHIFTS = -5.0, 5.0  # bounds for the same reason
CHANGES = {"jpeg": 30, "size": 0.5, "blur": 2.0, "noise": 8.0, "brightness": 0.3}  # see degrade
SAMPLED = 2000  # most training crops that are augmented to estimate their sharpness


def predict_crops(
    model: keras.Model, images: np.ndarray, crops: pd.DataFrame, batch_size: int
) -> pd.DataFrame:
    """Return the table of crops with a column p_real; its index holds rows of images."""
    # Pad the last batch: Keras compiles a graph per batch size, which takes seconds.
    size = min(batch_size, len(crops))
    rows = np.pad(crops.index.to_numpy(), (0, -len(crops) % size), mode="edge")
    batches = (images[part] for part in rows.reshape(-1, size))
    p_real = [predict_both_ways(model.predict_on_batch, batch) for batch in batches]
    return crops.assign(p_real=np.concatenate(p_real)[: len(crops)])


def predict_both_ways(predict: Callable[[np.ndarray], object], images: np.ndarray) -> np.ndarray:
    """Return p_real, float64 (n,), from the mean logit of each image and its mirror image.

    Test-time augmentation: averaging over the mirror image reduces the noise of a score.

    Args:
        predict: the model, RGB float32 (n, size, size, 3) in 0..255 to p_real (n, 1)
        images: RGB (n, size, size, 3) in 0..255
    """
    both = np.concatenate((images, images[:, :, ::-1])).astype(np.float32)
    p_real = np.asarray(predict(both), np.float64)[:, 0]
    p_real = np.where(np.isfinite(p_real), p_real.clip(SMALLEST_P, 1 - SMALLEST_P), np.nan)
    return scipy.special.expit(scipy.special.logit(p_real).reshape(2, -1).mean(axis=0))


def measure_auc(scored: pd.DataFrame) -> float:
    """Return the mean AUC by video over the data sets that have both labels.

    One AUC over all data sets would hide how well each one is separated, because their scores have
    different levels.

    Args:
        scored: crops with dataset, label, video_id and p_fake
    """
    parts = [part for _, part in scored.groupby("dataset") if part["label"].nunique() == 2]
    videos = [average_by_video(part) for part in parts or [scored]]
    score = sklearn.metrics.roc_auc_score
    return float(np.mean([score(part["label"] == "fake", part["p_fake"]) for part in videos]))


def predict_changed(
    model: keras.Model, images: np.ndarray, crops: pd.DataFrame, batch_size: int
) -> list[pd.DataFrame]:
    """Return the result of predict_crops after each change in CHANGES, one table per change."""
    tables = []
    for kind, amount in CHANGES.items():
        changed = np.stack(
            [degrade(images[row], kind, amount, seed=int(row)) for row in crops.index]
        )
        places = pd.RangeIndex(len(crops))
        predicted = predict_crops(model, changed, crops.set_axis(places), batch_size)
        tables.append(predicted.set_axis(crops.index))
    return tables


def fit_decision(
    val: pd.DataFrame, most_wrong: float, changed: Sequence[pd.DataFrame] = ()
) -> Decision:
    """Return a decision with calibration and thresholds fitted on validation crops.

    Videos and single pictures have separate thresholds, because the score of a video is a mean over
    crops. At most the share most_wrong of the reals, and of the fakes, is called wrong; for reals
    this also holds after each change.

    Args:
        val: crops with label, video_id and p_real
        most_wrong: 0..1
        changed: the same crops after harmless changes, see predict_changed
    """
    fitted = fit_calibration(val)

    def score(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(p_fake=calibrate(table["p_real"], fitted))

    thresholds = {}
    for kind, group in (("", average_by_video), ("picture_", pd.DataFrame)):
        unchanged = group(score(val))
        threshold, real_below = choose_thresholds(unchanged, most_wrong)
        for table in changed:
            scores = group(score(table))
            reals = scores.loc[scores["label"] == "real", "p_fake"]
            highest = np.quantile(reals, 1 - most_wrong, method="higher") + SMALLEST_P
            threshold = max(threshold, float(highest))
        thresholds |= {f"{kind}threshold": min(threshold, 1.0), f"{kind}real_below": real_below}
    return fitted._replace(**thresholds)


def fit_calibration(val: pd.DataFrame) -> Decision:
    """Return a decision with the temperature and shift that minimise the log loss on these crops.

    Fakes and reals have the same total weight, because the class ratio of the validation set does
    not reflect the real world.

    Args:
        val: validation crops with label and p_real
    """
    is_fake = (val["label"] == "fake").to_numpy()
    weights = compute_sample_weight("balanced", is_fake)

    def log_loss(values: np.ndarray) -> float:
        p_fake = calibrate(val["p_real"], Decision(temperature=1 / values[0], shift=values[1]))
        return sklearn.metrics.log_loss(is_fake, p_fake, sample_weight=weights)

    # In 1 / temperature and shift, this is a logistic regression, so it has one minimum.
    bounds = (1 / TEMPERATURES[1], 1 / TEMPERATURES[0]), SHIFTS
    slope, shift = scipy.optimize.minimize(log_loss, (1.0, 0.0), bounds=bounds).x
    return Decision(temperature=float(1 / slope), shift=float(shift))


def choose_thresholds(scores: pd.DataFrame, most_wrong: float) -> tuple[float, float]:
    """Return (threshold, real_below): fake from the first on, real below the second.

    At most the share most_wrong of the reals, and of the fakes, is called wrong; scores between the
    two are undecided. If the two would cross, both are set to their mean.

    Args:
        scores: one row per file, with label and p_fake
        most_wrong: 0..1
    """
    reals, fakes = (np.sort(scores.loc[scores["label"] == k, "p_fake"]) for k in ("real", "fake"))
    threshold = np.quantile(reals, 1 - most_wrong, method="higher") + SMALLEST_P
    real_below = np.quantile(fakes, most_wrong, method="lower")
    if real_below > threshold:
        threshold = real_below = (threshold + real_below) / 2
    return float(min(threshold, 1.0)), float(real_below)


def find_least_sharpness(
    images: np.ndarray,
    train: pd.DataFrame,
    augmentation: Augmentation,
    softest_share: float,
    seed: int,
) -> float:
    """Return the quantile softest_share of the sharpness of the augmented training crops.

    Args:
        images: the decoded crops
        train: the training crops; the index holds rows of images
        augmentation: the random changes in training
        softest_share: 0..1
        seed: random seed of the sample and its changes
    """
    rng = np.random.default_rng(seed)
    rows = rng.permutation(train.index)[:SAMPLED]
    changed = [change_alike([images[row]], augmentation, rng)[0] for row in rows]
    return float(np.quantile(list(map(measure_sharpness, changed)), softest_share))
