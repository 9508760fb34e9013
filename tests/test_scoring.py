"""Tests of scoring: AUC, calibration, thresholds and quality limits."""

from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest
import scipy.special
from crops import make_predictions
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfake_detect import scoring
from deepfake_detect.augmentation import NO_CHANGES
from deepfake_detect.crops import measure_sharpness
from deepfake_detect.scoring import (
    choose_thresholds,
    find_least_sharpness,
    fit_calibration,
    fit_decision,
    measure_auc,
)


def test_auc_is_the_mean_over_data_sets() -> None:
    """Two data sets, each perfectly separated, with overlapping score ranges."""
    rows = [("A", "real", 0.1), ("A", "fake", 0.4), ("B", "real", 0.5), ("B", "fake", 0.9)]
    val = pd.DataFrame(rows, columns=["dataset", "label", "p_fake"]).assign(video_id=list("abcd"))
    assert measure_auc(val) == 1
    assert measure_auc(val.assign(dataset="")) == 0.75
    assert measure_auc(val.assign(dataset=list("ABCD"))) == 0.75  # each data set has one label


SCORES = st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=2, max_size=30)


@given(SCORES, st.sampled_from((0.0, 0.1, 0.3)))
@settings(deadline=None)
def test_thresholds_limit_the_share_of_wrong_verdicts(
    draws: list[tuple[bool, int]], most_wrong: float
) -> None:
    draws = [(True, 3), (False, 3), *((fake, min(p, 19)) for fake, p in draws)]
    rows = [("fake" if fake else "real", str(i), 1 - p / 20) for i, (fake, p) in enumerate(draws)]
    threshold, real_below = choose_thresholds(make_predictions(rows), most_wrong)
    assert 0 <= real_below <= threshold <= 1
    p_fake = {
        kind: np.array([1 - (1 - p / 20) for of, p in draws if of == kind]) for kind in (0, 1)
    }
    assert np.mean(p_fake[0] >= threshold) <= most_wrong + 1 / len(p_fake[0])
    assert np.mean(p_fake[1] < real_below) <= most_wrong + 1 / len(p_fake[1])


def test_separated_scores_get_one_threshold_in_the_gap() -> None:
    val = make_predictions([("real", "a", 0.9), ("real", "b", 0.8), ("fake", "c", 0.2)])
    assert choose_thresholds(val, 0.0) == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize("share_of_fakes", [0.5, 0.2])
@pytest.mark.parametrize("shifted_by", [0.0, -1.5])
@pytest.mark.parametrize("too_sure_by", [0.8, 1.0, 2.5])
def test_calibration_recovers_temperature_and_shift(
    too_sure_by: float, shifted_by: float, share_of_fakes: float
) -> None:
    """The share of fakes in the validation set does not matter."""
    rng = np.random.default_rng(2)
    is_fake = rng.random(40_000) < share_of_fakes
    # For two normal distributions of scale s, s**2 apart, the score is the logit at even odds.
    logits = rng.normal(np.where(is_fake, 1, -1) * 1.5**2 / 2, 1.5)
    p_real = scipy.special.expit(-(too_sure_by * logits + shifted_by))
    rows = zip(np.where(is_fake, "fake", "real"), map(str, range(40_000)), p_real, strict=True)
    found = fit_calibration(make_predictions(list(rows)))
    assert found.temperature == pytest.approx(too_sure_by, rel=0.05)
    assert found.shift == pytest.approx(-shifted_by / too_sure_by, abs=0.06)


def test_perfectly_separated_scores_get_a_bounded_temperature() -> None:
    val = make_predictions([("real", "a", 0.9), ("fake", "b", 0.1)])
    found = fit_calibration(val)
    assert found.temperature == pytest.approx(scoring.TEMPERATURES[0], abs=1e-3)
    assert abs(found.shift) < 0.1


def test_least_sharpness_is_measured_on_augmented_crops() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 128, 128, 3)).astype(np.uint8)
    crops = pd.DataFrame(index=range(20))
    plain = [measure_sharpness(image) for image in images]
    assert find_least_sharpness(images, crops, NO_CHANGES, 0.0, 1) == min(plain)
    assert find_least_sharpness(images, crops, NO_CHANGES, 1.0, 1) == max(plain)
    blurred = replace(NO_CHANGES, blurred=1.0, blur=2.0)
    assert find_least_sharpness(images, crops, blurred, 0.0, 1) < min(plain) / 10


def test_pictures_get_thresholds_from_single_crops() -> None:
    """The mean over a video's crops is closer to 0.5 than single crops are."""
    rng = np.random.default_rng(3)
    is_fake = np.repeat(rng.random(300) < 0.5, 8)
    logits = np.where(is_fake, -1.0, 1.0) + rng.normal(0, 1.5, len(is_fake))
    labels, videos = np.where(is_fake, "fake", "real"), np.repeat(np.arange(300), 8).astype(str)
    rows = list(zip(labels, videos, scipy.special.expit(logits), strict=True))
    decision = fit_decision(make_predictions(rows), 0.1)
    assert decision.picture_real_below < decision.real_below
    assert decision.picture_threshold > decision.threshold


def test_thresholds_hold_for_changed_crops() -> None:
    """A change that raises the scores of reals raises only the fake thresholds."""
    rng = np.random.default_rng(3)
    labels = np.repeat(["real", "fake"], 200)
    logits = np.where(labels == "fake", -1.0, 1.0) + rng.normal(0, 1, 400)
    tables = [
        make_predictions(
            list(zip(labels, map(str, range(400)), scipy.special.expit(logits - by), strict=True))
        )
        for by in (0.0, 0.8, -2.0)
    ]
    plain, robust = fit_decision(tables[0], 0.1), fit_decision(tables[0], 0.1, tables[1:])
    assert robust.threshold > plain.threshold
    assert (
        robust._replace(threshold=plain.threshold, picture_threshold=plain.picture_threshold)
        == plain
    )
    reals = tables[1][labels == "real"]
    called = scoring.calibrate(reals.p_real, robust) >= robust.threshold
    assert 0.08 < called.mean() <= 0.1


def test_predictions_of_changed_crops_keep_their_rows() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)
    crops = pd.DataFrame({"label": ["real", "fake", "fake"]}, index=[4, 0, 2])
    inputs = keras.Input((32, 32, 3))
    brightness = keras.layers.GlobalAveragePooling2D()(inputs)
    outputs = keras.layers.Dense(1, activation="sigmoid", kernel_initializer="ones")
    model = keras.Model(inputs, outputs(keras.layers.Rescaling(1 / 1000)(brightness)))
    tables = scoring.predict_changed(model, images, crops, 2)
    plain = scoring.predict_crops(model, images, crops, 2)
    assert len(tables) == len(scoring.CHANGES) == 5
    for kind, table in zip(scoring.CHANGES, tables, strict=True):
        assert list(table.index) == [4, 0, 2] and list(table.label) == list(crops.label)
        difference = (table.p_real - plain.p_real).abs().max()
        assert difference > 0.01 if kind == "brightness" else difference < 0.01
