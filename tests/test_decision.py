"""Tests of the decision: its defaults, its form in JSON, its ranges, and the calibration."""

import json
import math

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from deepfake_detect.decision import (
    Decision,
    calibrate,
    check_decision,
    describe_decision,
)

RULE = ((500, 1.0), (math.inf, 0.5))


def test_a_decision_survives_its_json() -> None:
    decision = Decision(1.5, -0.2, 0.7, 0.3, 0.8, 0.2, 0.9, 0.0, True, "full", RULE, 224)
    text = json.dumps(describe_decision(decision), allow_nan=False)
    assert check_decision(json.loads(text)) == decision


def test_missing_fields_get_defaults() -> None:
    saved = {"temperature": 2.0, "threshold": 0.7}
    assert check_decision(saved) == Decision(temperature=2.0, threshold=0.7, real_below=0.7)


def test_pictures_have_thresholds_of_their_own() -> None:
    decision = Decision(threshold=0.7, real_below=0.4)
    assert decision.thresholds_of("picture") == decision.thresholds_of("video") == (0.7, 0.4)
    decision = decision._replace(picture_threshold=0.6, picture_real_below=0.1)
    assert decision.thresholds_of("picture") == (0.6, 0.1)
    assert decision.thresholds_of("video") == (0.7, 0.4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0},
        {"temperature": math.nan},
        {"shift": math.inf},
        {"threshold": 0.3, "real_below": 0.4},
        {"picture_threshold": 0.3, "picture_real_below": 0.4},
        {"part_threshold": 1.2},
        {"part_threshold": "high"},
        {"margin": -1},
        {"frames": "half"},
        {"width_rule": [[300, 2]]},
        {"width_rule": [[300, 2], [200, 1], [None, 1]]},
        {"width_rule": [[300, 0], [None, 1]]},
        {"width_rule": [[300, 11], [None, 1]]},
        {"width_rule": [[math.nan, 2], [None, 1]]},
        {"width_rule": [[0, 2], [None, 1]]},
        {"width_rule": []},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises((ValueError, TypeError)):
        check_decision({"temperature": 1, "threshold": 0.5} | wrong)


@given(st.floats(0.5, 5), st.floats(-5, 5), st.lists(st.floats(0, 1), min_size=1))
def test_calibration_reverses_the_output_and_keeps_the_order(
    temperature: float, shift: float, p: list[float]
) -> None:
    p_real = np.sort(np.float64(p))
    p_fake = calibrate(p_real, Decision(temperature, shift))
    assert ((p_fake > 0) & (p_fake < 1)).all()
    assert (np.diff(p_fake) <= 0).all()
    clipped = np.clip(p_real, 1e-7, 1 - 1e-7)
    np.testing.assert_allclose(calibrate(p_real, Decision()), 1 - clipped, rtol=1e-6)
    logit = -scipy.special.logit(clipped) / temperature + shift
    np.testing.assert_allclose(p_fake, np.clip(scipy.special.expit(logit), 1e-7, 1 - 1e-7))
