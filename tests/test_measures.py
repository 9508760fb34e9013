"""Tests of measures: definitions, and intervals by simulation and known values."""

import hypothesis
import numpy as np
import pandas as pd
import pytest
import scipy.special
import scipy.stats
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from deepfake_detect import measures
from deepfake_detect.decision import Decision, calibrate


def make_predictions(rows: list[tuple[str, str, float]]) -> pd.DataFrame:
    """Make uncalibrated predictions from (label, video_id, p_real)."""
    table = pd.DataFrame(rows, columns=["label", "video_id", "p_real"])
    table = table.assign(p_fake=1 - table.p_real, folder="f", dataset="", method="")
    return table.assign(undecided=False)


def make_table(is_fake: np.ndarray, p_fake: np.ndarray) -> pd.DataFrame:
    labels = np.where(is_fake, "fake", "real")
    return pd.DataFrame({"label": labels, "p_fake": p_fake, "undecided": False})


def test_video_score_is_the_mean_of_its_crops() -> None:
    predictions = make_predictions(
        [
            ("fake", "v", 0.1),
            ("fake", "v", 0.5),
            ("real", "w", 0.9),
            ("real", "w", 0.0),
            ("real", "x", 0.7),
            ("real", "x", 0.8),
        ]
    )
    predictions["undecided"] = [True, False, True, True, False, False]
    videos = measures.judge_videos(predictions).set_index("video_id")
    assert videos.p_fake.to_dict() == pytest.approx({"v": 0.7, "w": 0.55, "x": 0.25})
    assert videos.label.to_dict() == {"v": "fake", "w": "real", "x": "real"}
    assert videos.undecided.to_dict() == {"v": False, "w": True, "x": False}
    # By crop: of 2 fakes x 4 reals, 0.1 and 0.5 lie below 3 of the reals each, 0.0 below both. A
    # p_fake of 0.5 is called fake. By video: 0.45 is a real called fake.
    predictions["undecided"] = False
    decision = Decision()
    found = measures.measure_folder(predictions, decision)
    assert found["by_crop"]["auc"] == pytest.approx(6 / 8)
    assert found["by_crop"]["accuracy"] == pytest.approx(5 / 6)
    assert found["by_video"]["auc"] == 1
    assert found["by_video"]["accuracy"] == pytest.approx(2 / 3)
    assert found["confusion"] == (
        {"fake_as_fake": 1, "fake_as_real": 0, "fake_as_undecided": 0}
        | {"real_as_fake": 1, "real_as_real": 1, "real_as_undecided": 0}
    )
    between = measures.measure_folder(predictions, Decision(threshold=0.6, real_below=0.4))
    assert between["confusion"] == (
        {"fake_as_fake": 1, "fake_as_real": 0, "fake_as_undecided": 0}
        | {"real_as_fake": 0, "real_as_real": 1, "real_as_undecided": 1}
    )
    counted = measures.measure_with_intervals(predictions, decision, 9, 9, 1)
    assert (counted["fake videos"], counted["real videos"]) == (1, 2)


SCORES = st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=2, max_size=30)


@given(SCORES)
def test_measures_match_their_definitions(draws: list[tuple[bool, int]]) -> None:
    draws = [(True, 3), (False, 3), *draws]
    is_fake = np.array([fake for fake, _ in draws])
    p_fake = np.array([level / 20 for _, level in draws]).clip(1e-7, 1 - 1e-7)
    decision = Decision(threshold=0.6, real_below=0.3)
    values = measures.measure(make_table(is_fake, p_fake), decision)
    pairs = [
        (fake > real) + (fake == real) / 2 for fake in p_fake[is_fake] for real in p_fake[~is_fake]
    ]
    assert values["auc"] == pytest.approx(np.mean(pairs))
    assert values["log_loss"] == pytest.approx(
        sklearn.metrics.log_loss(is_fake, p_fake.clip(1e-7, 1 - 1e-7)), rel=1e-5
    )
    assert values["brier"] == pytest.approx(sklearn.metrics.brier_score_loss(is_fake, p_fake))
    assert values["accuracy"] == pytest.approx(np.mean((p_fake >= 0.6) == is_fake))
    # The error rates cross between two neighbouring cuts, and the equal error rate is between them.
    cuts = sorted({*p_fake, 2.0})
    rates = [(np.mean(p_fake[~is_fake] >= cut), np.mean(p_fake[is_fake] < cut)) for cut in cuts]
    assert values["eer"] in [pytest.approx(sum(pair) / 2) for pair in rates]
    assert values["fakes_found"] == np.mean(p_fake[is_fake] >= 0.6)
    assert values["fakes_called_real"] == np.mean(p_fake[is_fake] < 0.3)
    assert values["reals_called_fake"] == np.mean(p_fake[~is_fake] >= 0.6)
    assert values["undecided"] == np.mean((p_fake >= 0.3) & (p_fake < 0.6))
    undecided = measures.measure(make_table(is_fake, p_fake).assign(undecided=True), decision)
    assert undecided["fakes_found"] == undecided["reals_called_fake"] == 0
    assert undecided["fakes_called_real"] == 0
    assert undecided["undecided"] == 1 and undecided["auc"] == values["auc"]


@pytest.mark.parametrize("too_sure_by", [0.8, 1.0, 2.5])
def test_correct_temperature_gives_a_low_calibration_error(too_sure_by: float) -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 1.5, 20_000)
    is_fake = rng.random(20_000) < scipy.special.expit(logits)
    p_real = scipy.special.expit(-too_sure_by * logits)
    decision = Decision(temperature=too_sure_by)
    assert measures.measure_calibration(is_fake, calibrate(p_real, decision)) < 0.015
    if too_sure_by == 2.5:
        assert measures.measure_calibration(is_fake, 1 - p_real) > 0.1


def test_calibration_error_uses_ten_bins() -> None:
    is_fake = np.array([True, True, False, True, False, False])
    p_fake = np.array([0.95, 1.0, 0.91, 0.31, 0.35, 0.0])
    error = abs(0.95 + 1.0 + 0.91 - 2) / 6 + abs(0.31 + 0.35 - 1) / 6
    assert measures.measure_calibration(is_fake, p_fake) == pytest.approx(error)
    # Repeating the reals does not change the error: both classes have the same total weight.
    more = np.concatenate((is_fake, is_fake[~is_fake])), np.concatenate((p_fake, p_fake[~is_fake]))
    assert measures.measure_calibration(*more) == pytest.approx(error)


def test_intervals_count_videos_not_crops() -> None:
    rng = np.random.default_rng(0)
    videos = [
        (label, f"{label}{i}", np.clip(rng.normal(0.6 if label == "real" else 0.4, 0.2), 0, 1))
        for label in ("fake", "real")
        for i in range(40)
    ]
    once, often = (
        make_predictions(videos),
        make_predictions([row for row in videos for _ in "1234"]),
    )
    alone = [(label, f"{video}-{i}", p) for label, video, p in videos for i in range(4)]
    width = {}
    for name, table in {"once": once, "often": often, "alone": make_predictions(alone)}.items():
        values = measures.measure_with_intervals(table, Decision(), 400, 10, 1)
        for measure in ("auc", "reals_called_fake", "fakes_found"):
            low, high = values[f"{measure}_95"]
            assert low < values[measure] < high
        width[name] = values["auc_95"][1] - values["auc_95"][0]
    # Four copies of each crop do not add information, unless they count as other videos.
    assert width["often"] == pytest.approx(width["once"])
    assert width["alone"] < 0.7 * width["once"]
    few = once.groupby("label").head(9)
    assert measures.measure_with_intervals(few, Decision(), 9, 10, 1)["auc_95"] is None
    # Width of the interval: 3.92 times the standard error by Hanley and McNeil (1982).
    auc = sklearn.metrics.roc_auc_score(once["label"] == "fake", once["p_fake"])
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    error = np.sqrt((auc * (1 - auc) + 39 * (q1 - auc**2) + 39 * (q2 - auc**2)) / 1600)
    assert width["once"] == pytest.approx(3.92 * error, rel=0.25)


def test_groups_include_the_reals_of_their_data_set() -> None:
    labels = ["real", "real", "fake", "fake", "fake", "real", "fake"]
    table = make_predictions(
        [(label, video, 0.5) for label, video in zip(labels, "abcdefg", strict=True)]
    )
    table["dataset"] = ["X", "X", "X", "X", "Y", "", "Z"]
    table["method"] = ["original", "original", "swap", "morph", "swap", "", ""]
    groups = {
        (names["dataset"], names["method"]): "".join(part.video_id)
        for names, part in measures.split_groups(table)
    }
    assert groups == {
        ("", ""): "abcdefg",
        ("X", ""): "abcd",
        ("X", "swap"): "cab",
        ("X", "morph"): "dab",
        ("Y", ""): "e",
        ("Z", ""): "g",
    }


def test_each_data_set_has_its_own_auc() -> None:
    """AUC 1, 0.5 and 0; a data set without reals is left out."""
    pairs = {"x": ((0.9, 0.8), (0.2, 0.3)), "y": ((0.9, 0.3), (0.5, 0.5)), "z": ((0.1,), (0.6,))}
    rows = [
        dict(dataset=name, method=label, label=label, video_id=f"{name}{number}", p_fake=p_fake)
        for name, (fakes, reals) in (pairs | {"no reals": ((0.5,), ())}).items()
        for label, of in (("fake", fakes), ("real", reals))
        for number, p_fake in enumerate(of)
    ]
    predictions = pd.DataFrame(rows).assign(undecided=False, folder="all")
    measured = measures.measure_data_sets(predictions, Decision())
    assert measured["auc_by_dataset"] == {"x": 1.0, "y": 0.5, "z": 0.0}
    assert measured["auc"] == measures.measure_videos(predictions, Decision())["auc"]


@given(st.integers(1, 60), st.data())
def test_exact_intervals_have_the_stated_coverage(total: int, data: st.DataObject) -> None:
    """Clopper and Pearson: at each bound, the count or a more extreme one has probability 2.5 %."""
    count = data.draw(st.integers(0, total))
    hits = np.arange(total) < count
    low, high = measures.exact_interval(hits)
    assert 0 <= low <= count / total <= high <= 1
    if count:
        assert scipy.stats.binom.sf(count - 1, total, low) == pytest.approx(0.025)
    if count < total:
        assert scipy.stats.binom.cdf(count, total, high) == pytest.approx(0.025)


def test_interval_of_zero_hits_has_a_width() -> None:
    low, high = measures.exact_interval(np.zeros(22, bool))
    assert low == 0 and high == pytest.approx(0.154, abs=0.001)
    assert measures.exact_interval(np.zeros(0, bool)) is None


@pytest.mark.parametrize("label", ["fake", "real"])
def test_one_class_alone_can_be_measured(label: str) -> None:
    predictions = make_predictions([(label, f"v{i}", p) for i, p in enumerate((0.1, 0.5, 0.9))])
    decision = Decision(threshold=0.8, real_below=0.3)
    folder = measures.measure_folder(predictions, decision)
    assert folder["by_video"]["auc"] is None and folder["calibration_error"]["after"] is None
    counted = measures.measure_with_intervals(predictions, decision, 9, 2, 1)
    shares = {"fakes_found": "fake", "fakes_called_real": "fake", "reals_called_fake": "real"}
    for name, of in shares.items():
        assert (counted[name] is None) == (counted[f"{name}_95"] is None) == (of != label)
        assert counted[name] in (None, pytest.approx(1 / 3))
    assert counted["auc_95"] is None and counted["undecided_for"] == {"score": 1, "crops": 0}


def test_perfect_auc_has_no_interval() -> None:
    rows = [
        (label, f"{label}{i}", p) for label, p in (("fake", 0.1), ("real", 0.9)) for i in range(9)
    ]
    counted = measures.measure_with_intervals(make_predictions(rows), Decision(), 20, 2, 1)
    assert counted["auc"] == 1 and counted["auc_95"] is None


KINDS = st.tuples(st.sampled_from(measures.KINDS), st.sampled_from(["real", "fake"]))
CLIPS = st.lists(st.tuples(KINDS, st.sampled_from("XY"), st.sampled_from(measures.VERDICTS)))


@hypothesis.settings(max_examples=30)
@given(CLIPS)
def test_verdicts_on_clips_are_counted_once(rows: list) -> None:
    table = pd.DataFrame(
        [
            (kind, label, dataset, "", verdict, np.nan if verdict == "no face" else 0.5)
            for (kind, label), dataset, verdict in rows
        ],
        columns=["kind", "label", "dataset", "method", "verdict", "p_fake"],
    )
    counted = measures.measure_clips(table)
    cells = [counted[kind][label] for kind in measures.KINDS for label in ("real", "fake")]
    for parts in (cells, counted["by_dataset"]):
        assert sum(part["files"] for part in parts) == len(rows)
        for part in parts:
            assert sum(part[verdict] for verdict in measures.VERDICTS) == part["files"]
    for part in counted["by_dataset"]:
        its = ((part["kind"], part["label"]), part["dataset"])
        for verdict in measures.VERDICTS:
            assert part[verdict] == rows.count((*its, verdict))
            low, high = part["intervals_95"][verdict]
            assert low <= part[verdict] / part["files"] <= high


def test_auc_of_clips_ignores_files_without_a_face() -> None:
    table = pd.DataFrame(
        {
            "kind": "video",
            "label": ["real", "real", "fake", "fake"],
            "dataset": "",
            "method": "",
            "verdict": ["likely real", "undecided", "likely fake", "no face"],
            "p_fake": [0.1, 0.5, 0.4, np.nan],
        }
    )
    counted = measures.measure_clips(table)
    assert counted["video"]["auc"] == 0.5 and counted["picture"]["auc"] is None
