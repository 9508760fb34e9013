"""Compare scores with the truth, with confidence intervals, for script 05.

Fake is the positive class everywhere. templates/about-measures.json explains each result. A result
that cannot be measured, such as an AUC without real videos, is None.
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
from deepfake_detect.result import FAKE, NO_FACE, REAL, UNDECIDED

BINS = 10  # bins of p_fake for the calibration error
KINDS = ("video", "picture")  # kinds of files that detection accepts
VERDICTS = (FAKE, REAL, UNDECIDED, NO_FACE)  # verdicts on a file that could be checked

# --- Crops, and videos as means of their crops ----------------------------------------------------


def measure_folder(predictions: pd.DataFrame, decision: Decision) -> dict:
    """Return by_crop, by_video, confusion and calibration_error of a folder's crops."""
    videos = judge_videos(predictions)
    before = calibrate(predictions["p_real"], Decision())
    is_fake = (predictions["label"] == "fake").to_numpy()
    called = (*CLASSES, "undecided")
    counts = sklearn.metrics.confusion_matrix(
        videos["label"], call(videos, decision), labels=called
    )
    counts = counts[: len(CLASSES)]  # "undecided" is never the truth
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


def measure_videos(predictions: pd.DataFrame, decision: Decision) -> dict[str, float | None]:
    """Return the measures by video of predictions by crop."""
    return measure(judge_videos(predictions), decision)


def measure_data_sets(predictions: pd.DataFrame, decision: Decision) -> dict:
    """Return the measures by video of a folder, with the AUC of each data set in it."""
    aucs = {
        names["dataset"]: measure_videos(group, decision)["auc"]
        for names, group in split_groups(predictions)
        if names["dataset"] and not names["method"] and group["label"].nunique() == 2
    }
    return {**measure_videos(predictions, decision), "auc_by_dataset": aucs}


def judge_videos(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the mean p_fake per video; a video is undecided if more than half of its crops are."""
    videos = predictions.groupby(["label", "video_id"], as_index=False)
    videos = videos.agg({"p_fake": "mean", "undecided": "mean"})
    return videos.assign(undecided=videos["undecided"] > 0.5)


def call(table: pd.DataFrame, decision: Decision) -> np.ndarray:
    """Return "fake", "real" or "undecided" per row, from the columns p_fake and undecided."""
    p_fake, undecided = table["p_fake"].to_numpy(), table["undecided"].to_numpy()
    low, high = p_fake < decision.real_below, p_fake >= decision.threshold
    return np.select((undecided, high, low), ("undecided", "fake", "real"), "undecided")


def measure(table: pd.DataFrame, decision: Decision) -> dict[str, float | None]:
    """Measure the scores of crops or videos, from the columns label, p_fake and undecided.

    Returns:
        The measures that templates/about-measures.json explains; None if a class is missing.
    """
    is_fake, p_fake = (table["label"] == "fake").to_numpy(), table["p_fake"].to_numpy()
    called = call(table, decision)
    values = dict.fromkeys(("auc", "average_precision", "eer"))
    if is_fake.any() and not is_fake.all():
        values["auc"] = sklearn.metrics.roc_auc_score(is_fake, p_fake)
        values["average_precision"] = sklearn.metrics.average_precision_score(is_fake, p_fake)
        values["eer"] = measure_equal_errors(is_fake, p_fake)
    values |= {
        "log_loss": sklearn.metrics.log_loss(is_fake, p_fake, labels=[False, True]),
        "brier": np.mean((p_fake - is_fake) ** 2),
        "accuracy": np.mean((p_fake >= decision.threshold) == is_fake),
        "accuracy_at_0.5": np.mean((p_fake >= 0.5) == is_fake),
        "reals_called_fake": share_of(called[~is_fake] == "fake"),
        "fakes_found": share_of(called[is_fake] == "fake"),
        "fakes_called_real": share_of(called[is_fake] == "real"),
        "undecided": np.mean(called == "undecided"),
    }
    return {name: None if value is None else float(value) for name, value in values.items()}


def share_of(hits: np.ndarray) -> float | None:
    """Return the share of True values, 0..1; None if the array is empty."""
    return float(hits.mean()) if len(hits) else None


def measure_equal_errors(is_fake: np.ndarray, p_fake: np.ndarray) -> float:
    """Return the equal error rate, 0..1: the mean of both error rates where they are closest."""
    false_alarms, found, _ = sklearn.metrics.roc_curve(is_fake, p_fake, drop_intermediate=False)
    nearest = np.argmin(np.abs(false_alarms - (1 - found)))
    return float(false_alarms[nearest] + 1 - found[nearest]) / 2


def measure_calibration(is_fake: np.ndarray, p_fake: np.ndarray) -> float | None:
    """Return the expected calibration error, 0..1 (Naeini et al., AAAI 2015)."""
    if is_fake.all() or not is_fake.any():
        return None
    bins = bin_scores(is_fake, p_fake)
    return float(np.average(np.abs(bins["p_fake"] - bins["fakes"]), weights=bins["weight"]))


def bin_scores(is_fake: np.ndarray, p_fake: np.ndarray) -> pd.DataFrame:
    """Return weight, mean p_fake and share of fakes for each of BINS equal bins of p_fake.

    Fakes and reals have the same total weight, as in the fit of the calibration.
    """
    bins = np.minimum((p_fake * BINS).astype(int), BINS - 1)
    weight = compute_sample_weight("balanced", is_fake)
    table = pd.DataFrame({"weight": weight, "p_fake": weight * p_fake, "fakes": weight * is_fake})
    table = table.groupby(bins).sum()
    return table.assign(
        p_fake=table["p_fake"] / table["weight"], fakes=table["fakes"] / table["weight"]
    )


# --- Intervals ------------------------------------------------------------------------------------


def measure_with_intervals(
    predictions: pd.DataFrame, decision: Decision, resamples: int, fewest_videos: int, seed: int
) -> dict:
    """Count and measure predictions by video, with 95 % intervals of the most important measures.

    Rates have an exact interval, the AUC has a bootstrap. Both count videos, not crops: crops of
    one video are nearly the same picture, so intervals over crops would be far too narrow.
    """
    videos = judge_videos(predictions)
    is_fake, called = (videos["label"] == "fake").to_numpy(), call(videos, decision)
    between = ~videos["undecided"] & (called == "undecided")
    return {
        "fake videos": int(is_fake.sum()),
        "real videos": int((~is_fake).sum()),
        **measure(videos, decision),
        "auc_95": bootstrap_auc(videos, resamples, fewest_videos, seed),
        "reals_called_fake_95": exact_interval(called[~is_fake] == "fake"),
        "fakes_found_95": exact_interval(called[is_fake] == "fake"),
        "fakes_called_real_95": exact_interval(called[is_fake] == "real"),
        "undecided_for": {"score": int(between.sum()), "crops": int(videos["undecided"].sum())},
    }


def exact_interval(hits: np.ndarray) -> list[float] | None:
    """Return the exact 95 % interval of a share (Clopper and Pearson, 1934); None without values.

    For 0 of 22 it is 0 to 0.154; a bootstrap would return 0 to 0.
    """
    if not len(hits):
        return None
    interval = scipy.stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(method="exact")
    return [float(interval.low), float(interval.high)]


def bootstrap_auc(
    videos: pd.DataFrame, resamples: int, fewest_videos: int, seed: int
) -> list[float] | None:
    """Return the 95 % interval of the AUC by a bootstrap over videos (Efron, 1979).

    Return None if a class has fewer than fewest_videos, or if all resamples have the same AUC, as
    with perfectly separated videos: the bootstrap does not work there.
    """
    p_fake = videos["p_fake"].to_numpy()
    rows = [np.flatnonzero(videos["label"] == label) for label in CLASSES]
    if min(map(len, rows)) < fewest_videos:
        return None

    def measure_draws(fakes: np.ndarray, reals: np.ndarray, axis: int) -> np.ndarray:
        """Return the AUC of each draw, from rows of videos, (draws, n) per class."""
        count, others = fakes.shape[axis], reals.shape[axis]
        scores = np.concatenate((p_fake[fakes], p_fake[reals]), axis)
        ranks = scipy.stats.rankdata(scores, axis=axis)[..., :count].sum(axis)
        return (ranks - count * (count + 1) / 2) / (count * others)  # Mann and Whitney, 1947

    drawn = scipy.stats.bootstrap(
        rows, measure_draws, n_resamples=resamples, method="percentile", rng=seed, batch=100
    )
    low, high = (float(bound) for bound in drawn.confidence_interval)
    return [low, high] if low < high else None


def split_groups(predictions: pd.DataFrame) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """Yield the predictions of each folder, each data set in it, and each method.

    Names are folder, dataset and method; "" means all. A method is yielded together with the reals
    of its data set, and only if the data set has several methods.
    """
    for folder, part in predictions.groupby("folder", sort=False):
        groups = [("", "", part)]
        groups += [(dataset, "", of) for dataset, of in part.groupby("dataset") if dataset]
        reals, fakes = (part[part["label"] == label] for label in ("real", "fake"))
        for dataset, of_dataset in fakes.groupby("dataset"):
            if of_dataset["method"].nunique() > 1:
                its_reals = reals[reals["dataset"] == dataset]
                groups += [
                    (dataset, method, pd.concat([of, its_reals]))
                    for method, of in of_dataset.groupby("method")
                    if method
                ]
        for dataset, method, of in groups:
            yield {"folder": folder, "dataset": dataset, "method": method}, of


# --- Verdicts on whole files ----------------------------------------------------------------------


def measure_clips(clips: pd.DataFrame) -> dict:
    """Count the verdicts on real and fake files, separately for videos and pictures.

    Args:
        clips: one row per checked file: kind, label, dataset, method, verdict, p_fake (NaN without
            a face)
    """
    scored = clips.dropna(subset="p_fake")
    counts = {}
    for kind in KINDS:
        of_kind, its_scores = clips[clips["kind"] == kind], scored[scored["kind"] == kind]
        counts[kind] = {
            label: count_verdicts(of_kind[of_kind["label"] == label]) for label in ("real", "fake")
        }
        is_fake = its_scores["label"] == "fake"
        both = is_fake.nunique() == 2
        auc = sklearn.metrics.roc_auc_score(is_fake, its_scores["p_fake"]) if both else None
        counts[kind]["auc"] = None if auc is None else float(auc)
    names = ["kind", "dataset", "method", "label"]
    counts["by_dataset"] = [
        dict(zip(names, key, strict=True)) | count_verdicts(part)
        for key, part in clips.groupby(names)
    ]
    return counts


def count_verdicts(clips: pd.DataFrame) -> dict:
    """Count files and verdicts, with the exact 95 % interval of each verdict's share."""
    verdicts = clips["verdict"].to_numpy(str)
    counts = {verdict: int((verdicts == verdict).sum()) for verdict in VERDICTS}
    intervals = {verdict: exact_interval(verdicts == verdict) for verdict in VERDICTS}
    return {"files": len(clips), **counts, "intervals_95": intervals}
