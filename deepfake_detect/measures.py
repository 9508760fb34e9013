"""Measure scores against the truth, with intervals, for script 05.

Fake is the positive class everywhere. What templates/about-measures.json explains is made here.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import scipy.stats
import sklearn.metrics
from sklearn.utils.class_weight import compute_sample_weight

from deepfake_detect.crops import CLASSES
from deepfake_detect.decision import Decision, calibrate

BINS = 10  # of p_fake, for the calibration error


def measure_folder(predictions: pd.DataFrame, decision: Decision) -> dict:
    """Measure a folder: by_crop, by_video, confusion and calibration_error."""
    videos = judge_videos(predictions)
    before = calibrate(predictions["p_real"], Decision())
    is_fake = (predictions["label"] == "fake").to_numpy()
    called = (*CLASSES, "undecided")
    counts = sklearn.metrics.confusion_matrix(
        videos["label"], call(videos, decision), labels=called
    )
    counts = counts[: len(CLASSES)]  # nothing is undecided in truth
    names = [f"{truth}_as_{verdict}" for truth in CLASSES for verdict in called]
    return {
        "by_crop": measure(predictions, decision),
        "by_video": measure(videos, decision),
        "confusion": dict(zip(names, counts.ravel().tolist(), strict=True)),
        "calibration_error": {
            "before": measure_calibration(is_fake, before),
            "after": measure_calibration(is_fake, predictions["p_fake"].to_numpy()),
        },
    }


def measure_videos(predictions: pd.DataFrame, decision: Decision) -> dict[str, float]:
    """Measure crops' predictions by video."""
    return measure(judge_videos(predictions), decision)


def measure_data_sets(predictions: pd.DataFrame, decision: Decision) -> dict:
    """Measure a folder's predictions by video, with the AUC of each data set in the folder."""
    aucs = {
        names["dataset"]: measure_videos(group, decision)["auc"]
        for names, group in split_groups(predictions)
        if names["dataset"] and not names["method"]
    }
    return {**measure_videos(predictions, decision), "auc_by_dataset": aucs}


def judge_videos(predictions: pd.DataFrame) -> pd.DataFrame:
    """Give each video the mean p_fake of its crops; it is undecided where most of its crops are."""
    videos = predictions.groupby(["label", "video_id"], as_index=False)
    videos = videos.agg({"p_fake": "mean", "undecided": "mean"})
    return videos.assign(undecided=videos["undecided"] > 0.5)


def call(table: pd.DataFrame, decision: Decision) -> np.ndarray:
    """Call crops or videos fake, real or undecided, by p_fake and undecided of each."""
    p_fake, undecided = table["p_fake"].to_numpy(), table["undecided"].to_numpy()
    low, high = p_fake < decision.real_below, p_fake >= decision.threshold
    return np.select((undecided, high, low), ("undecided", "fake", "real"), "undecided")


def measure(table: pd.DataFrame, decision: Decision) -> dict[str, float]:
    """Measure the scores of crops or of videos: label, p_fake and undecided of each.

    Returns:
        What templates/about-measures.json explains.
    """
    is_fake, p_fake = (table["label"] == "fake").to_numpy(), table["p_fake"].to_numpy()
    called = call(table, decision)
    values = {
        "auc": sklearn.metrics.roc_auc_score(is_fake, p_fake),
        "average_precision": sklearn.metrics.average_precision_score(is_fake, p_fake),
        "eer": measure_equal_errors(is_fake, p_fake),
        "log_loss": sklearn.metrics.log_loss(is_fake, p_fake),
        "brier": sklearn.metrics.brier_score_loss(is_fake, p_fake),
        "accuracy": np.mean((p_fake >= decision.threshold) == is_fake),
        "accuracy_at_0.5": np.mean((p_fake >= 0.5) == is_fake),
        "reals_called_fake": np.mean(called[~is_fake] == "fake"),
        "fakes_found": np.mean(called[is_fake] == "fake"),
        "fakes_called_real": np.mean(called[is_fake] == "real"),
        "undecided": np.mean(called == "undecided"),
    }
    return {name: float(value) for name, value in values.items()}


def measure_equal_errors(is_fake: np.ndarray, p_fake: np.ndarray) -> float:
    """Measure the equal error rate, 0..1: the mean of both rates where they come closest."""
    false_alarms, found, _ = sklearn.metrics.roc_curve(is_fake, p_fake, drop_intermediate=False)
    nearest = np.argmin(np.abs(false_alarms - (1 - found)))
    return float(false_alarms[nearest] + 1 - found[nearest]) / 2


def measure_calibration(is_fake: np.ndarray, p_fake: np.ndarray) -> float:
    """Measure the expected calibration error, 0..1 (Naeini et al., AAAI 2015)."""
    bins = bin_scores(is_fake, p_fake)
    return float(np.average(np.abs(bins["p_fake"] - bins["fakes"]), weights=bins["weight"]))


def bin_scores(is_fake: np.ndarray, p_fake: np.ndarray) -> pd.DataFrame:
    """Sort scores into BINS equal bins of p_fake: weight, mean p_fake and share of fakes of each.

    Fakes and reals weigh the same in all, as in the fit of the calibration.
    """
    bins = np.minimum((p_fake * BINS).astype(int), BINS - 1)
    weight = compute_sample_weight("balanced", is_fake)
    table = pd.DataFrame({"weight": weight, "p_fake": weight * p_fake, "fakes": weight * is_fake})
    table = table.groupby(bins).sum()
    return table.assign(
        p_fake=table["p_fake"] / table["weight"], fakes=table["fakes"] / table["weight"]
    )


def measure_with_intervals(
    predictions: pd.DataFrame, decision: Decision, resamples: int, fewest_videos: int, seed: int
) -> dict[str, float | list[float] | None]:
    """Measure predictions by video, with the 95 % intervals of what matters most, and count them.

    The bootstrap (Efron, 1979) draws videos, not crops: the crops of a video are nearly the same
    picture, and drawn one by one they would promise far too much.
    """
    videos = judge_videos(predictions)
    p_fake = videos["p_fake"].to_numpy()
    called_fake = call(videos, decision) == "fake"
    rows = [np.flatnonzero(videos["label"] == label) for label in CLASSES]

    def measure_draws(fakes: np.ndarray, reals: np.ndarray, axis: int) -> np.ndarray:
        """Take rows of videos, (draws, n) of each class: (3, draws), for all draws at once."""
        count, others = fakes.shape[axis], reals.shape[axis]
        scores = np.concatenate((p_fake[fakes], p_fake[reals]), axis)
        ranks = scipy.stats.rankdata(scores, axis=axis)[..., :count].sum(axis)
        auc = (ranks - count * (count + 1) / 2) / (count * others)  # Mann and Whitney, 1947
        return np.stack((auc, called_fake[reals].mean(axis), called_fake[fakes].mean(axis)))

    bounds = [None] * 3
    if min(map(len, rows)) >= fewest_videos:
        drawn = scipy.stats.bootstrap(
            rows, measure_draws, n_resamples=resamples, method="percentile", rng=seed, batch=100
        )
        bounds = np.transpose(drawn.confidence_interval).tolist()
    intervals = zip(("auc_95", "reals_called_fake_95", "fakes_found_95"), bounds, strict=True)
    counts = dict(zip(("fake videos", "real videos"), map(len, rows), strict=True))
    return {**counts, **measure(videos, decision), **dict(intervals)}


def split_groups(predictions: pd.DataFrame) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """Yield the predictions of each folder, of each data set in it, and of each method.

    A method comes with the reals of its data set. Names are folder, dataset and method; "" is all.
    Groups without a real or without a fake are left out: nothing can be measured in them.
    """
    for folder, part in predictions.groupby("folder", sort=False):
        groups = [("", "", part)]
        groups += [(dataset, "", of) for dataset, of in part.groupby("dataset") if dataset]
        reals, fakes = (part[part["label"] == label] for label in ("real", "fake"))
        for (dataset, method), of in fakes.groupby(["dataset", "method"]):
            of_dataset = reals[reals["dataset"] == dataset]
            groups += [(dataset, method, pd.concat([of, of_dataset]))] if method else []
        for dataset, method, of in groups:
            if of["label"].nunique() == len(CLASSES):
                yield {"folder": folder, "dataset": dataset, "method": method}, of
