"""Test verdicts on a face, on its most suspicious seconds, and on files with many faces."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepfake_detect.decision import Decision
from deepfake_detect.detector import DetectionSettings
from deepfake_detect.result import Face
from deepfake_detect.verdict import (
    Judgement,
    find_thresholds,
    find_window,
    judge_file,
    raise_threshold,
)

DECISION = Decision(threshold=0.6, real_below=0.4, smallest_face=100, least_sharpness=50.0)
SETTINGS = DetectionSettings()
STEADY = [0.05, 0.04, 0.06] * 20  # a real face for half a minute
SURE = [0.9, 0.8, 0.9, 0.7, 0.9, 0.8]


def make_track(scores: list[float], rate: float = 2, side: int = 200, sharp: float = 99) -> list:
    return [
        Face(at, at / rate, 0, 0, side, side, 1.0, side, sharp, score)
        for at, score in enumerate(scores)
    ]


def judge(
    *tracks: list[float] | list[Face],
    kind: str = "video",
    decision: Decision = DECISION,
    **more: str,
) -> Judgement:
    faces = [make_track(one) if isinstance(one[0], float) else one for one in tracks]
    return judge_file(faces, kind, decision, SETTINGS, 60, **more)


# One face


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        (SURE, "likely fake"),
        ([0.1, 0.2, 0.1, 0.3, 0.1, 0.2], "likely real"),
        ([0.5] * 6, "undecided"),
        ([0.9, 0.5, 0.9, 0.3, 0.9, 0.8], "undecided"),  # the interval extends below
        ([0.1, 0.5, 0.1, 0.6, 0.2, 0.4], "undecided"),  # the interval extends above
        ([0.99] * 4, "undecided"),  # too few frames
    ],
)
def test_clear_verdict_needs_whole_interval_on_one_side(scores: list[float], verdict: str) -> None:
    judged = judge(scores)
    assert judged.verdict == verdict == judged.track.verdict
    assert bool(judged.reason) == (verdict == "undecided")
    assert judged.track.p_fake == pytest.approx(np.mean(scores), abs=1e-4)
    assert (judged.track.interval is None) == (len(scores) < SETTINGS.fewest_frames)


def test_interval_is_an_interval_of_the_mean() -> None:
    scores = np.random.default_rng(0).uniform(0.2, 0.8, 60)
    low, high = judge(scores.tolist()).track.interval
    assert high - low == pytest.approx(3.92 * scores.std(ddof=1) / np.sqrt(60), rel=0.15)


def test_too_few_frames_name_the_option() -> None:
    assert "--frames-per-second" in judge([0.99] * 4).reason


@pytest.mark.parametrize("kind", ["picture", "video"])
@pytest.mark.parametrize("odd", [{"side": 40}, {"sharp": 12.3}])
def test_faces_outside_training_range_are_undecided(kind: str, odd: dict) -> None:
    scores = [0.99] * (1 if kind == "picture" else 6)
    assert judge(make_track(scores), kind=kind).verdict == "likely fake"
    judged = judge(make_track(scores, **odd), kind=kind)
    assert judged.verdict == "undecided" and not judged.track.judged


def test_pictures_have_their_own_thresholds() -> None:
    own = DECISION._replace(picture_threshold=0.9, picture_real_below=0.2)
    for score, verdict in ((0.95, "likely fake"), (0.7, "undecided"), (0.1, "likely real")):
        judged = judge([score], kind="picture", decision=own)
        assert judged.verdict == verdict and judged.track.interval is None
    assert judge([0.7], kind="picture").verdict == "likely fake"


# The most suspicious part


@pytest.mark.parametrize("rate", [2, 10])
@pytest.mark.parametrize("start", [0, 13, 27.5])
def test_fake_part_of_real_video_is_found_with_its_seconds(rate: float, start: float) -> None:
    scores = [0.97 if start <= at / rate < start + 2.5 else 0.04 for at in range(round(30 * rate))]
    judged = judge(make_track(scores, rate))
    assert judged.verdict == "likely fake"
    assert judged.track.part.first_seconds == pytest.approx(start, abs=0.01)
    assert judged.track.part.last_seconds == pytest.approx(start + 2.5 - 1 / rate, abs=0.01)
    assert judged.track.part.p_fake == pytest.approx(0.97)
    assert judged.track.p_fake < 0.2


def test_short_or_less_suspicious_part_prevents_likely_real() -> None:
    for burst in ([0.97] * 3, [0.85] * 6):
        judged = judge([*STEADY, *burst, *STEADY])
        assert judged.verdict == "undecided" and judged.track.part is not None
    assert judge([*STEADY, 0.97, *STEADY]).verdict == "likely real"  # a single frame


def test_suspicious_half_of_an_undecided_video_is_named() -> None:
    judged = judge([*STEADY[:20], *[0.85] * 20])
    assert judged.verdict == "undecided"
    assert (judged.track.part.first_seconds, judged.track.part.last_seconds) == (10, 19.5)


def test_a_closer_look_does_not_change_the_mean() -> None:
    """Ten more frames of a suspicious second form a part, but do not change the mean."""
    even = make_track([*STEADY[:20], 0.97, 0.97, *STEADY])
    extra = [
        replace(face, seconds=10.05 + at / 10, p_fake=0.97, extra=True)
        for at, face in enumerate(even[:8])
    ]
    both = sorted([*even, *extra], key=lambda face: face.seconds)
    judged = judge(both)
    assert judged.track.p_fake == judge(even).track.p_fake
    assert (judge(even).verdict, judged.verdict) == ("likely real", "undecided")
    short = [*even[:3], *extra[:4]]
    assert judge(short).track.interval is not None  # a short track includes them


def test_a_longer_video_needs_a_more_suspicious_part() -> None:
    part = [0.92] * 5
    assert judge([*STEADY, *part]).verdict == "likely fake"
    assert judge([*STEADY * 60, *part]).verdict == "undecided"


def test_parts_of_real_videos_of_any_length_are_rarely_likely_fake() -> None:
    """The scores drift between 0.1 and 0.5, for a quarter of a minute to an hour."""
    draw = np.random.default_rng(3)
    for length, count in ((30, 60), (600, 20), (7200, 3)):
        for _ in range(count):
            drift = np.convolve(draw.normal(0, 1.2, length + 4), np.ones(5) / 5, "valid")
            scores = 1 / (1 + np.exp(1.3 - drift))
            assert judge(scores.tolist()).verdict != "likely fake"


def test_part_threshold_of_the_model_is_used() -> None:
    own = DECISION._replace(part_threshold=0.99)
    assert judge([*STEADY, *[0.97] * 5]).verdict == "likely fake"
    assert judge([*STEADY, *[0.97] * 5], decision=own).verdict == "undecided"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0, 5), st.integers(1, 6))
def test_no_window_has_a_higher_mean(scores: list[float], length: float, fewest: int) -> None:
    seconds = np.arange(len(scores)) / 2
    window = find_window(seconds, np.array(scores), length, fewest)
    assert window.stop - window.start >= min(fewest, len(scores))
    best = np.mean(scores[window])
    for start in range(len(scores) - fewest + 1):
        end = max(start + fewest, int(np.sum(seconds <= seconds[start] + length)))
        assert np.mean(scores[start:end]) <= best + 1e-9


# Several faces


def test_a_group_has_the_false_alarm_rate_of_one_face() -> None:
    """The logits are distributed like real faces; 10 in 100 reach the threshold alone."""
    draw = np.random.default_rng(1)
    for count in (1, 3, 10, 30):
        called = 0
        for _ in range(400):
            logits = 0.405 + 0.68 * (draw.exponential(1, count) - np.log(10))
            group = [make_track([float(p)]) for p in 1 / (1 + np.exp(-logits))]
            called += judge(*group, kind="picture").verdict == "likely fake"
        assert called / 400 < 0.15


def test_single_fake_in_a_group_must_be_more_suspicious_than_several() -> None:
    real, fake = [0.05] * 6, [0.7] * 6
    assert judge(fake).verdict == "likely fake"
    assert judge(fake, *[real] * 4).verdict == "undecided"
    assert judge([0.97] * 6, *[real] * 4).verdict == "likely fake"
    assert judge(*[fake] * 5).verdict == "likely fake"


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0, 1))
def test_thresholds_are_between_thresholds_for_one_and_all_faces(reach: list, more: float) -> None:
    found = find_thresholds(DECISION, "video", reach)
    highest = raise_threshold(0.6, max(1, len(reach)), 0.68)
    assert 0.6 - 1e-9 <= found.fake <= highest + 1e-9
    assert found.real == 0.4 and found.part >= find_thresholds(DECISION, "video", []).part


def test_most_suspicious_judged_face_determines_the_verdict() -> None:
    judged = judge([0.05] * 6, [0.3] * 6, make_track([0.9] * 6, side=20))
    assert judged.track.number == 2 and [track.number for track in judged.tracks] == [1, 2, 3]
    wide = [0.1, 0.5, 0.1, 0.6, 0.2, 0.4]
    assert judge([0.39] * 6, wide).verdict == "undecided"  # although its mean is lower


@pytest.mark.parametrize(
    ("others", "verdict"),
    [
        ([make_track([0.05] * 2)], "likely real"),
        ([make_track([0.7] * 2)], "undecided"),  # short, and suspicious
        ([make_track([0.7])], "likely real"),  # one frame, possibly by chance
        ([make_track([0.7] * 6, side=20)], "likely real"),  # small faces, which the model overrates
        ([make_track([0.95] * 6, side=20)], "undecided"),
        ([make_track([0.05] * 6, side=20)] * 2, "undecided"),  # most of the faces
    ],
)
def test_faces_that_cannot_be_judged_can_prevent_likely_real(others: list, verdict: str) -> None:
    judged = judge([0.05] * 10, *others)
    assert judged.verdict == verdict and not judged.tracks[1].judged
    if verdict == "undecided":
        assert f"{len(others)} of {len(others) + 1} faces" in judged.reason
    assert judge([0.99] * 10, *others).verdict == "likely fake"


def test_a_hindrance_makes_any_verdict_undecided() -> None:
    assert judge([0.99] * 6, hindrance="most of it is missing").verdict == "undecided"
    assert judge([0.01] * 6, hindrance="most of it is missing").reason == "most of it is missing"


def test_no_face_is_not_a_verdict() -> None:
    judged = judge()
    assert (judged.verdict, judged.track, judged.tracks) == ("no face", None, ())
