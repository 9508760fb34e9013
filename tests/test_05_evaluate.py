"""Tests of 05-evaluate-model.py: measures by their definitions, and the report of a real model."""

import importlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import scipy.special
import sklearn.metrics
from conftest import assert_stops, run_script
from crops import Trained, small_split, trained, write_split
from hypothesis import given
from hypothesis import strategies as st

from deepfake_detect import crops as crop_files
from deepfake_detect import measures
from deepfake_detect import plots as drawings
from deepfake_detect.decision import Decision, calibrate
from deepfake_detect.model import build_model
from deepfake_detect.model_file import load_model, read_decision, write_model
from deepfake_detect.scoring import predict_both_ways

train = importlib.import_module("04-train-cnn")
evaluate = importlib.import_module("05-evaluate-model")

SCRIPT = "05-evaluate-model.py"
__all__ = ["small_split", "trained"]  # fixtures
SWEPT = dict(jpeg_qualities=(30,), sizes=(0.5,), blurs=(), noises=(8.0,), brightnesses=())


@dataclass
class Report:
    folder: Path
    metrics: dict
    predictions: pd.DataFrame
    others: list[Path]


@pytest.fixture(scope="module")
def report(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report on the test part that the model never saw, and on a folder of real/ and fake/
    whose names are those of nobody who wishes a picture well."""
    folder = tmp_path_factory.mktemp("report")
    other = folder / "o$$ther"
    write_split(folder / "made", {"x": 2}, crops=1)
    shutil.move(folder / "made" / "x", other)
    for path in list(other.rglob("*.png")):
        path.rename(path.with_name(f"$$\\frac^{path.name}"))
    metrics = evaluate.main(
        trained.model_dir / "best_model.keras",
        (trained.split_dir, other),
        folder / "report",
        resamples=20,
        fewest_videos=2,
        sweep=True,
        **SWEPT,
    )
    predictions = pd.read_csv(folder / "report" / "predictions.csv", keep_default_na=False)
    return Report(folder / "report", metrics, predictions, [trained.split_dir, other])


# What is written


def test_it_writes_its_files_whole(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(path.name for path in report.folder.iterdir() if path.name != ".lock") == [
        ".made-by",
        "README.md",
        "metrics.json",
        "predictions.csv",
        "robustness.png",
        "scores.png",
        "worst_mistakes.png",
    ]
    for name in ("scores.png", "robustness.png", "worst_mistakes.png"):
        picture = cv2.imdecode(np.fromfile(report.folder / name, np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape[0] > 300 and picture.std() > 3


def test_metrics_json_is_what_main_returns(report: Report, trained: Trained) -> None:
    metrics = json.loads((report.folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics == report.metrics
    assert metrics["decision"] == trained.training["decision"]
    split_dir, other = map(str, report.others)
    assert list(metrics["folders"]) == [split_dir, other]
    assert [metrics["folders"][name]["part"] for name in (split_dir, other)] == ["test", ""]
    assert metrics["folders"][split_dir]["counts"] == (
        {"fake crops": 6, "fake videos": 1, "real crops": 6, "real videos": 1}
    )
    named = set(metrics["about_measures"])
    for folder in metrics["folders"].values():
        assert {"by_crop", "by_video", "confusion", "calibration_error"} <= set(folder)
        assert set(folder["by_crop"]) == set(folder["by_video"]) <= named
    for row in metrics["groups"]:
        names = set(row) - {"folder", "dataset", "method", "fake videos", "real videos"}
        assert {name.removesuffix("_95") for name in names} <= named
    assert [(row["folder"], row["dataset"]) for row in metrics["groups"]] == [
        (split_dir, ""),
        (split_dir, "dfdc"),
        (other, ""),
    ]


def test_the_model_card_has_the_numbers(report: Report, trained: Trained) -> None:
    card = (report.folder / "README.md").read_text(encoding="utf-8")
    assert "from ImageNet weights of EfficientNet-Lite0, 3 epochs" in card
    assert f"from {trained.training['decision']['threshold']:.4f} on it is called fake" in card
    assert "of its reals, and of its\nfakes, at most 10 % are called wrong." in card
    row = "| 1 | 1 | 1.000 | 1.000 | 0.000 | 0.000 | 1.000 | "  # of one video each: no intervals
    assert f"| {report.others[0]} | all | all {row}" in card
    assert f"| {report.others[0]} | dfdc | all {row}" in card
    row = "| 2 | 2 | 1.000 (1.000 to 1.000) | 1.000 | 0.000 | 0.000 (0.000 to 0.000) |"
    assert f"| {report.others[1]} | all | all {row}" in card
    assert "| JPEG quality 30 |" in card and "| unchanged |" in card
    assert f"| unchanged | {report.others[0]} | 1.000 | dfdc 1.000 | 0 % |" in card
    assert "| learning_rate | 0.001 |" in card and "| shift | 0.05 |" in card
    assert f"TensorFlow {trained.training['versions']['TensorFlow']}" in card
    assert "A score is no proof" in card
    assert "{" not in card and "\n\n\n" not in card
    for table in card.split("\n\n"):
        widths = {line.count("|") for line in table.splitlines() if line.startswith("|")}
        assert len(widths) <= 1, table


def test_predictions_hold_every_crop_once(report: Report, trained: Trained) -> None:
    table = report.predictions
    assert list(table.columns) == evaluate.COLUMNS
    assert len(table) == len(table.drop_duplicates(["folder", "crop"])) == 16
    assert table.groupby(["folder", "label"]).size().to_dict() == {
        (str(folder), label): count
        for folder, count in zip(report.others, (6, 2), strict=True)
        for label in ("fake", "real")
    }
    assert all((Path(row.folder) / row.crop).is_file() for row in table.itertuples())
    assert table["p_real"].between(0, 1).all()
    decision = Decision(**trained.training["decision"])
    np.testing.assert_allclose(table["p_fake"], calibrate(table["p_real"], decision))


def test_the_model_tells_people_that_it_never_saw(report: Report) -> None:
    test = report.predictions[report.predictions["folder"] == str(report.others[0])]
    assert test[test.label == "real"].p_real.min() > test[test.label == "fake"].p_real.max()
    threshold = report.metrics["decision"]["threshold"]
    assert ((test.p_fake >= threshold) == (test.label == "fake")).all()
    folder = report.metrics["folders"][str(report.others[0])]
    for values in (folder["by_crop"], folder["by_video"]):
        assert (values["auc"], values["average_precision"], values["eer"]) == (1, 1, 0)
        assert values["accuracy"] == 1
    assert {name: count for name, count in folder["confusion"].items() if count} == (
        {"fake_as_fake": 1, "real_as_real": 1}
    )


def test_val_is_measured_where_there_is_no_test(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_split(tmp_path / "split", {"val": 1}, crops=2)
    metrics = evaluate.main(
        trained.model_dir / "best_model.keras", (tmp_path / "split",), tmp_path / "report"
    )
    assert metrics["folders"][str(tmp_path / "split")]["part"] == "val"
    assert metrics["groups"][0]["auc_95"] is None  # of one video: no interval
    assert metrics["robustness"] == []
    summary = capsys.readouterr().out
    assert f"  val             {tmp_path / 'split'}: 4 crops" in summary
    assert not (tmp_path / "report" / "robustness.png").exists()


def test_a_model_sees_crops_of_its_own_size(trained: Trained, tmp_path: Path) -> None:
    """Unchanged, and changed."""
    model, split_dir = tmp_path / "small.keras", tmp_path / "split"
    start = trained.model_dir / "best_model.keras"
    write_model(build_model(start, 64), read_decision(start), model)
    write_split(split_dir, {"val": 1}, crops=2)
    changes = dict(jpeg_qualities=(), sizes=(0.5,), blurs=(), noises=(), brightnesses=())
    metrics = evaluate.main(model, (split_dir,), tmp_path / "report", sweep=True, **changes)
    assert metrics["decision"]["image_size"] == 64
    assert [row["value"] for row in metrics["robustness"] if row["change"] == "size"] == [1, 0.5]
    crops = crop_files.find_crops(split_dir, ("val",))
    images = np.stack([crop_files.read_crop(split_dir / crop, 64) for crop in crops["crop"]])
    p_real = predict_both_ways(load_model(model).predict_on_batch, images)
    predictions = pd.read_csv(tmp_path / "report" / "predictions.csv")
    np.testing.assert_allclose(predictions["p_real"], p_real, atol=1e-5)
    assert "RGB images of 64 x 64 x 3" in (tmp_path / "report" / "README.md").read_text()


# The measures


def make_predictions(rows: list[tuple[str, str, float]]) -> pd.DataFrame:
    """Predictions from (label, video_id, p_real), uncalibrated."""
    table = pd.DataFrame(rows, columns=["label", "video_id", "p_real"])
    table = table.assign(p_fake=1 - table.p_real, folder="f", dataset="", method="")
    return table.assign(undecided=False)


def make_table(is_fake: np.ndarray, p_fake: np.ndarray) -> pd.DataFrame:
    labels = np.where(is_fake, "fake", "real")
    return pd.DataFrame({"label": labels, "p_fake": p_fake, "undecided": False})


def test_a_video_has_the_mean_of_its_crops() -> None:
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
def test_measures_are_what_their_definitions_say(draws: list[tuple[bool, int]]) -> None:
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
    # The error rates cross between two neighbouring cuts; the equal error rate lies between them.
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
def test_the_calibration_error_falls_where_the_calibration_is_right(too_sure_by: float) -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 1.5, 20_000)
    is_fake = rng.random(20_000) < scipy.special.expit(logits)
    p_real = scipy.special.expit(-too_sure_by * logits)
    decision = Decision(temperature=too_sure_by)
    assert measures.measure_calibration(is_fake, calibrate(p_real, decision)) < 0.015
    if too_sure_by == 2.5:
        assert measures.measure_calibration(is_fake, 1 - p_real) > 0.1


def test_the_calibration_error_is_that_of_ten_bins() -> None:
    is_fake = np.array([True, True, False, True, False, False])
    p_fake = np.array([0.95, 1.0, 0.91, 0.31, 0.35, 0.0])
    error = abs(0.95 + 1.0 + 0.91 - 2) / 6 + abs(0.31 + 0.35 - 1) / 6
    assert measures.measure_calibration(is_fake, p_fake) == pytest.approx(error)
    # More of the same reals change nothing: fakes and reals weigh the same in all.
    more = np.concatenate((is_fake, is_fake[~is_fake])), np.concatenate((p_fake, p_fake[~is_fake]))
    assert measures.measure_calibration(*more) == pytest.approx(error)


def test_intervals_rest_on_videos_and_not_on_crops() -> None:
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
    # Four copies of each crop tell nothing new, unless they are taken for other videos.
    assert width["often"] == pytest.approx(width["once"])
    assert width["alone"] < 0.7 * width["once"]
    few = once.groupby("label").head(9)
    assert measures.measure_with_intervals(few, Decision(), 9, 10, 1)["auc_95"] is None
    # Hanley and McNeil (1982): the standard error of this AUC, times 3.92.
    auc = sklearn.metrics.roc_auc_score(once["label"] == "fake", once["p_fake"])
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    error = np.sqrt((auc * (1 - auc) + 39 * (q1 - auc**2) + 39 * (q2 - auc**2)) / 1600)
    assert width["once"] == pytest.approx(3.92 * error, rel=0.25)


def test_groups_are_data_sets_and_methods_with_the_reals_of_their_data_set() -> None:
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
    }


def test_a_mistake_is_a_crop_called_wrong_and_none_that_is_undecided(small_split: Path) -> None:
    crops = crop_files.find_crops(small_split, ("test",))
    crops = crops.assign(folder=str(small_split), video_id=list("abcd"), undecided=False)
    assert list(crops["label"]) == ["fake", "fake", "real", "real"]
    decision = Decision(threshold=0.7, real_below=0.3)

    def name_mistakes(*p_fake: float, undecided: bool = False) -> list[str]:
        table = crops.assign(p_fake=p_fake, undecided=undecided)
        axes = drawings.draw_worst_mistakes(table, decision, 8).axes
        return [panel.get_title() for panel in axes if panel.get_title()]

    assert name_mistakes(0.5, 0.9, 0.1, 0.65) == []
    assert name_mistakes(0.25, 0.05, 0.1, 0.9) == [
        "fake, 0.05\nb",
        "real, 0.90\nd",
        "fake, 0.25\na",
    ]
    assert name_mistakes(0.25, 0.1, 0.1, 0.9, undecided=True) == []


# Robustness


def test_the_sweep_has_a_row_for_each_change(report: Report) -> None:
    for folder in map(str, report.others):
        rows = [row for row in report.metrics["robustness"] if row["folder"] == folder]
        assert [(row["change"], row["value"]) for row in rows] == [
            ("JPEG quality", 100),
            ("JPEG quality", 30),
            ("size", 1),
            ("size", 0.5),
            ("blur", 0),
            ("noise", 0),
            ("noise", 8.0),
            ("brightness", 0),
        ]
        by_video = report.metrics["folders"][folder]["by_video"]
        for row in rows:
            assert 0 <= row["auc"] <= 1 and 0 <= row["undecided"] <= 1
            if row["value"] == evaluate.UNCHANGED[row["change"]]:
                assert {name: row[name] for name in by_video} == by_video
        named = {"dfdc"} if folder == str(report.others[0]) else set()
        assert all(set(row["auc_by_dataset"]) == named for row in rows)


def test_each_data_set_of_a_folder_has_its_own_auc() -> None:
    """Ones that are told apart, a half, and not at all; and one with no reals is left out."""
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


def test_each_change_does_what_it_says() -> None:
    y, x = np.mgrid[:128, :128]
    image = np.stack((2 * x, 2 * y, 128 + 60 * np.sin(x / 2)), axis=-1).astype(np.uint8)
    for kind, value in evaluate.UNCHANGED.items():
        assert np.array_equal(evaluate.change_crop(image, kind, value), image)
    best, worst = (evaluate.change_crop(image, "JPEG quality", value) for value in (95, 30))
    assert np.abs(best.astype(int) - image).mean() < np.abs(worst.astype(int) - image).mean() < 9
    sharp = crop_files.measure_sharpness(image)
    for kind, value in (("size", 0.25), ("blur", 2.0)):
        changed = evaluate.change_crop(image, kind, value)
        assert changed.shape == ((32, 32, 3) if kind == "size" else image.shape)
        changed = cv2.resize(changed, (128, 128))
        assert crop_files.measure_sharpness(changed) < 0.8 * sharp
    noisy = evaluate.change_crop(np.full_like(image, 128), "noise", 8.0, (1, 2))
    assert noisy.std() == pytest.approx(8, rel=0.05)
    assert np.array_equal(noisy, evaluate.change_crop(0 * image + 128, "noise", 8.0, (1, 2)))
    lit = evaluate.change_crop(np.full_like(image, 200), "brightness", 0.3)
    assert (lit == 255).all() and (evaluate.change_crop(lit, "brightness", -0.2) == 204).all()


def test_small_and_soft_crops_are_undecided(trained: Trained) -> None:
    crops = crop_files.find_crops(trained.split_dir, ("test",))
    images = np.empty((len(crops), 128, 128, 3), np.uint8)
    crops, _ = crop_files.decode_crops(crops, trained.split_dir, images)
    middle = crops["side"].median()
    strict = Decision(smallest_face=int(middle), least_sharpness=0.0)
    scored = evaluate.score_folder(trained.model, images, crops, strict, 8)
    assert (scored["undecided"] == (crops["side"] < int(middle))).all()
    strict = Decision(least_sharpness=crops["sharpness"].median())
    scored = evaluate.score_folder(trained.model, images, crops, strict, 8)
    assert scored["undecided"].sum() == 6


# Wrong input


def test_a_file_of_the_user_stays_and_an_earlier_report_is_replaced(
    trained: Trained, small_split: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder = trained.model_dir / "best_model.keras", tmp_path / "report"
    evaluate.main(model, (small_split,), folder)
    (folder / "robustness.png").write_text("of an earlier sweep")
    names = json.loads((folder / "metrics.json").read_text())
    names["files"] = [*names["files"], "robustness.png"]
    names["files"].remove("README.md")
    (folder / "metrics.json").write_text(json.dumps(names))
    (folder / "README.md").write_text("my project, three years of notes")
    (folder / "notes.txt").write_text("mine")
    before = (folder / "predictions.csv").stat().st_mtime_ns
    capsys.readouterr()
    evaluate.main(model, (small_split,), folder)
    assert (folder / "README.md").read_text() == "my project, three years of notes"
    assert (folder / "notes.txt").read_text() == "mine"
    assert "README.md: this script did not write it" in capsys.readouterr().err
    assert not (folder / "robustness.png").exists()
    assert (folder / "predictions.csv").stat().st_mtime_ns > before
    (folder / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match="this script did not write it; move it away"):
        evaluate.main(model, (small_split,), folder)
    assert (folder / "metrics.json").read_text() == "{}"


def test_a_folder_of_the_user_s_is_refused(
    trained: Trained, small_split: Path, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ValueError, match=r"it holds README\.md, which"):
        evaluate.main(trained.model_dir / "best_model.keras", (small_split,), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_crops_of_another_rule_are_named(
    trained: Trained, small_split: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split_dir = shutil.copytree(small_split, tmp_path / "split")
    rule = {"margin": 0.0, "square": False, "frames": "full"}
    (split_dir / "crop-rule.json").write_text(json.dumps(rule))
    evaluate.main(trained.model_dir / "best_model.keras", (split_dir,), tmp_path / "report")
    notes = capsys.readouterr().err
    assert f"NOTE: {split_dir}: its crops have margin 0.0 and the model was trained on 0.3" in notes
    assert "frames full and the model was trained on reduced" in notes


def test_a_wrong_folder_or_number_is_one_sentence(
    trained: Trained, small_split: Path, tmp_path: Path
) -> None:
    model = trained.model_dir / "best_model.keras"
    one_class = shutil.copytree(small_split, tmp_path / "one-class")
    shutil.rmtree(one_class / "test" / "real")
    (tmp_path / "empty").mkdir()
    for folder, sentence in (
        (one_class, "there are no real crops in it"),
        (tmp_path / "empty", "it has no test/"),
        (tmp_path / "missing", "there is no such folder"),
    ):
        with pytest.raises((ValueError, OSError), match=sentence) as raised:
            evaluate.main(model, (small_split, folder), tmp_path / "report")
        assert str(folder) in str(raised.value) and "\n" not in str(raised.value)
    for number, sentence in (
        ({"resamples": 0}, "--resamples is 0; give 1 or more."),
        ({"batch_size": 0}, "--batch-size is 0; give 1 or more."),
        ({"sizes": (0.5, 0.0)}, "--sizes is 0.0; give 0.05 to 1."),
        ({"jpeg_qualities": (101,)}, "--jpeg-qualities is 101; give 1 to 100."),
    ):
        with pytest.raises(ValueError, match=sentence):
            evaluate.main(model, (small_split,), tmp_path / "report", **number)
    assert not (tmp_path / "report").exists()


def test_the_shell_gets_one_sentence_and_exit_code_1(tmp_path: Path) -> None:
    result = run_script(SCRIPT, "--model", "no.keras", cwd=tmp_path)
    assert_stops(result, f"{SCRIPT}: no.keras: there is no such model")
    assert result.stderr.count("\n") == 1  # TensorFlow says nothing on being loaded
    assert list(tmp_path.iterdir()) == []
