"""Tests of 05-evaluate-model.py: the report of a real model, on crops and on whole files."""

import importlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import skimage.data
from conftest import ROOT, assert_stops, run_script
from crops import Trained, small_split, trained, write_split

from deepfake_detect import Detector
from deepfake_detect import crops as crop_files
from deepfake_detect.decision import Decision, calibrate, check_decision, describe_decision
from deepfake_detect.detection_model import DetectionModel
from deepfake_detect.files import claim
from deepfake_detect.measures import KINDS
from deepfake_detect.model import build_model
from deepfake_detect.model_file import load_model, read_decision, write_model
from deepfake_detect.scoring import predict_both_ways

evaluate = importlib.import_module("05-evaluate-model")

SCRIPT = "05-evaluate-model.py"
SHIPPED = ROOT / "weights" / "deepfake-detector.onnx"
__all__ = ["small_split", "trained"]  # fixtures
SWEPT = dict(jpeg_qualities=(30,), sizes=(0.5,), blurs=(), noises=(8.0,), brightnesses=())


def run(
    model: Path, split_dirs: tuple[Path, ...] | None, report_dir: Path, **settings: object
) -> dict:
    """Run 05 on folders of crops, in this process."""
    named = dict(model=model, split_dirs=split_dirs, report_dir=report_dir)
    return evaluate.main(evaluate.Settings(**named, **settings))


@dataclass
class Report:
    folder: Path
    metrics: dict
    predictions: pd.DataFrame
    others: list[Path]


@pytest.fixture(scope="module")
def report(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Report on the unseen test part, and on a folder of real/ and fake/ whose name contains
    characters that Matplotlib could read as a formula."""
    folder = tmp_path_factory.mktemp("report")
    other = folder / "o$$ther"
    write_split(folder / "made", {"x": 2}, crops=1)
    shutil.move(folder / "made" / "x", other)
    for path in list(other.rglob("*.png")):
        path.rename(path.with_name(f"$$\\frac^{path.name}"))
    metrics = run(
        trained.model_dir / "best_model.onnx",
        (trained.split_dir, other),
        folder / "report",
        resamples=20,
        fewest_videos=2,
        sweep=True,
        **SWEPT,
    )
    predictions = pd.read_csv(folder / "report" / "predictions.csv", keep_default_na=False)
    return Report(folder / "report", metrics, predictions, [trained.split_dir, other])


# The report


def test_files_are_written_and_pictures_are_not_empty(
    report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted(path.name for path in report.folder.iterdir() if path.name != ".lock")
    assert names == [  # worst_mistakes.png is missing, because the model made no mistakes
        ".made-by",
        "README.md",
        "metrics.json",
        "predictions.csv",
        "robustness.png",
        "scores.png",
    ]
    for name in ("scores.png", "robustness.png"):
        picture = cv2.imdecode(np.fromfile(report.folder / name, np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape[0] > 300 and picture.std() > 3


def test_metrics_json_is_what_main_returns(report: Report, trained: Trained) -> None:
    metrics = json.loads((report.folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics == report.metrics
    decision = check_decision(trained.training["decision"])
    assert metrics["decision"] == describe_decision(decision)
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
    assert [(row["folder"], row["dataset"], row["method"]) for row in metrics["groups"]] == [
        (split_dir, "", ""),
        (split_dir, "dfdc", ""),
        (other, "", ""),
    ]


def test_model_card_has_the_numbers(report: Report, trained: Trained) -> None:
    card = (report.folder / "README.md").read_text(encoding="utf-8")
    assert f"fake from {trained.training['decision']['threshold']:.4f} on" in card
    # One video per class: exact intervals of 0 of 1 and 1 of 1, but not for the AUC.
    rates = "0 of 1 (0 to 98 %) | 1 of 1 (3 to 100 %) | 0 of 1 (0 to 98 %)"
    for name in ("all", "dfdc"):
        assert f"| {report.others[0]} | {name} | all | 1.000 | 1.000 | 0.000 | {rates} |" in card
    rates = "0 of 2 (0 to 84 %) | 2 of 2 (16 to 100 %) | 0 of 2 (0 to 84 %)"
    assert f"| {report.others[1]} | all | all | 1.000 | 1.000 | 0.000 | {rates} |" in card
    assert "| JPEG quality 30 |" in card and "| unchanged |" in card
    assert f"| unchanged | {report.others[0]} | 1.000 | dfdc 1.000 | 0 % |" in card
    assert "| learning_rate | 0.001 |" in card and "| shift | 0.05 |" in card
    assert f"TensorFlow {trained.training['versions']['TensorFlow']}" in card
    assert "3 epochs" in card
    assert "{" not in card and "\n\n\n" not in card
    for table in card.split("\n\n"):
        widths = {line.count("|") for line in table.splitlines() if line.startswith("|")}
        assert len(widths) <= 1, table


def test_predictions_contain_every_crop_once(report: Report, trained: Trained) -> None:
    table = report.predictions
    assert list(table.columns) == evaluate.CROP_COLUMNS
    assert len(table) == len(table.drop_duplicates(["folder", "crop"])) == 16
    assert table.groupby(["folder", "label"]).size().to_dict() == {
        (str(folder), label): count
        for folder, count in zip(report.others, (6, 2), strict=True)
        for label in ("fake", "real")
    }
    assert all((Path(row.folder) / row.crop).is_file() for row in table.itertuples())
    assert table["p_real"].between(0, 1).all()
    decision = check_decision(trained.training["decision"])
    np.testing.assert_allclose(table["p_fake"], calibrate(table["p_real"], decision))


def test_model_separates_unseen_videos(report: Report) -> None:
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


def test_val_is_measured_without_test(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_split(tmp_path / "split", {"val": 1}, crops=2)
    metrics = run(trained.model_dir / "best_model.onnx", (tmp_path / "split",), tmp_path / "report")
    assert metrics["folders"][str(tmp_path / "split")]["part"] == "val"
    assert metrics["groups"][0]["auc_95"] is None  # one video per class: no interval
    assert metrics["robustness"] == []
    assert f"{tmp_path / 'split'}: 4 crops" in capsys.readouterr().out
    assert not (tmp_path / "report" / "robustness.png").exists()


@pytest.mark.long
def test_crops_have_the_size_of_the_model(trained: Trained, tmp_path: Path) -> None:
    """Also after changes."""
    model, split_dir = tmp_path / "small.keras", tmp_path / "split"
    start = trained.model_dir / "best_model.keras"
    write_model(build_model(start, 64), read_decision(start), model)
    write_split(split_dir, {"val": 1}, crops=2)
    changes = dict(jpeg_qualities=(), sizes=(0.5,), blurs=(), noises=(), brightnesses=())
    metrics = run(model, (split_dir,), tmp_path / "report", sweep=True, batch_size=4, **changes)
    assert metrics["decision"]["image_size"] == 64
    assert [row["value"] for row in metrics["robustness"] if row["change"] == "size"] == [1, 0.5]
    crops = crop_files.find_crops(split_dir, ("val",))
    images = np.stack([crop_files.read_crop(split_dir / crop, 64) for crop in crops["crop"]])
    p_real = predict_both_ways(load_model(model), images)
    predictions = pd.read_csv(tmp_path / "report" / "predictions.csv")
    np.testing.assert_allclose(predictions["p_real"], p_real, atol=1e-5)
    assert "64 x 64 x 3" in (tmp_path / "report" / "README.md").read_text()


# Robustness


def test_sweep_has_a_row_for_each_change(report: Report) -> None:
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


def test_each_change_has_its_effect() -> None:
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


def test_small_and_blurry_crops_are_undecided(trained: Trained) -> None:
    crops = crop_files.find_crops(trained.split_dir, ("test",))
    images = np.empty((len(crops), 128, 128, 3), np.uint8)
    crops, _ = crop_files.decode_crops(crops, trained.split_dir, images)
    predict, *_ = evaluate.load_model(trained.model_dir / "best_model.onnx", 8)
    middle = crops["side"].median()
    strict = Decision(smallest_face=int(middle), least_sharpness=0.0)
    scored = evaluate.score_crops(predict, images, strict, 8, crops)
    assert (scored["undecided"] == (crops["side"] < int(middle))).all()
    strict = Decision(least_sharpness=crops["sharpness"].median())
    scored = evaluate.score_crops(predict, images, strict, 8, crops)
    assert scored["undecided"].sum() == 6


# Whole files


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make pictures and a video of a public-domain portrait, a faceless and a broken picture."""
    folder = tmp_path_factory.mktemp("clips")
    face = cv2.cvtColor(skimage.data.astronaut()[:256, 96:352], cv2.COLOR_RGB2BGR)
    for name in ("real/a.png", "real/b.jpg", "fake/c.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / name), face)
    cv2.imwrite(str(folder / "real" / "grey.png"), np.full((64, 64, 3), 128, np.uint8))
    (folder / "real" / "torn.png").write_bytes((folder / "real" / "a.png").read_bytes()[:999])
    (folder / "notes.png").write_bytes((folder / "real" / "a.png").read_bytes())  # no label
    writer = cv2.VideoWriter(
        str(folder / "fake" / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 8, (256, 256)
    )
    for _ in range(8):
        writer.write(face)
    writer.release()
    return folder


@pytest.fixture(scope="module")
def checked(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Report on whole files with the included model."""
    folder = tmp_path_factory.mktemp("checked") / "report"
    metrics = run(SHIPPED, None, folder, clips=(clips,))
    table = pd.read_csv(folder / "clips.csv", keep_default_na=False)
    return Report(folder, metrics, table, [clips])


def test_verdicts_are_counted(checked: Report, clips: Path) -> None:
    counts = checked.metrics["clips"]
    assert counts == json.loads((checked.folder / "metrics.json").read_text())["clips"]
    files = {kind: {c: counts[kind][c]["files"] for c in ("real", "fake")} for kind in KINDS}
    assert files == {"video": {"real": 0, "fake": 1}, "picture": {"real": 3, "fake": 1}}
    assert counts["picture"]["real"]["no face"] == 1
    assert list(counts["not_checked"]) == [str(clips / "real" / "torn.png")]
    assert list(counts["left_out"]) == [str(clips / "notes.png")]
    assert "--clips" in counts["command"]
    # The verdicts match the detection on each file.
    table = checked.predictions.set_index("file")
    detector = Detector(SHIPPED)
    for name in ("real/b.jpg", "fake/v.avi"):
        row, result = table.loc[str(clips / name)], detector.check(clips / name)
        assert (row["verdict"], row["kind"]) == (result.verdict, result.kind)
        assert float(row["p_fake"]) == result.p_fake
    card = (checked.folder / "README.md").read_text(encoding="utf-8")
    assert "| 3 real pictures | " in card and " of 3 (" in card
    assert not (checked.folder / "predictions.csv").exists()
    named = set(checked.metrics["about_measures"])
    assert {"clips", "clips KIND", "clips COUNTS"} <= named


def test_included_results_belong_to_the_included_model() -> None:
    saved = json.loads(SHIPPED.with_suffix(".json").read_text(encoding="utf-8"))
    assert saved["decision"] == describe_decision(DetectionModel.load(SHIPPED).decision)
    assert saved["clips"]["video"]["real"]["files"] and saved["clips"]["video"]["fake"]["files"]
    assert saved["groups"] and saved["robustness"]


def test_clips_folder_may_itself_be_named_after_a_label(clips: Path) -> None:
    listed, left_out = evaluate.list_clips((clips / "fake",))
    assert sorted(Path(file).name for file in listed["file"]) == ["c.png", "v.avi"]
    assert set(listed["label"]) == {"fake"} and not left_out


def test_clips_in_a_data_set_layout_get_its_labels(clips: Path, tmp_path: Path) -> None:
    names = {
        "original_sequences/youtube/c23/videos/003.avi": ("real", "original"),
        "manipulated_sequences/FaceSwap/c23/videos/003_000.avi": ("fake", "FaceSwap"),
    }
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True)
        shutil.copy(clips / "fake" / "v.avi", tmp_path / name)
    listed, _ = evaluate.list_clips((tmp_path,))
    assert set(listed["dataset"]) == {"FaceForensics++"}
    found = {
        Path(row.file).relative_to(tmp_path).as_posix(): (row.label, row.method)
        for row in listed.itertuples()
    }
    assert found == names


def test_report_keeps_earlier_results_of_the_same_model(
    checked: Report, clips: Path, tmp_path: Path
) -> None:
    """A different model starts a new report."""
    folder = shutil.copytree(checked.folder, tmp_path / "report")
    write_split(tmp_path / "split", {"test": 1}, crops=1)
    metrics = run(SHIPPED, (tmp_path / "split",), folder)
    assert metrics["clips"] == checked.metrics["clips"]
    assert metrics["groups"] and (folder / "clips.csv").exists()
    other = dict(metrics["decision"], threshold=0.99)
    (tmp_path / "other.json").write_text(json.dumps(metrics | {"decision": other}))
    report = claim(tmp_path / "second", "--report-dir", evaluate.__file__)
    report.write("metrics.json", lambda path: shutil.copy(tmp_path / "other.json", path))
    assert run(SHIPPED, (tmp_path / "split",), tmp_path / "second")["clips"] is None


@pytest.mark.long
def test_onnx_and_keras_give_the_same_scores(tmp_path: Path) -> None:
    write_split(tmp_path / "split", {"test": 1}, crops=2)
    onnx, keras = (
        run(SHIPPED.with_suffix(suffix), (tmp_path / "split",), tmp_path / suffix, batch_size=4)
        for suffix in (".onnx", ".keras")
    )
    tables = [pd.read_csv(tmp_path / suffix / "predictions.csv") for suffix in (".onnx", ".keras")]
    np.testing.assert_allclose(tables[0]["p_real"], tables[1]["p_real"], atol=2e-3)
    assert onnx["decision"] == keras["decision"]
    assert onnx["training"]["counts"] == keras["training"]["counts"]


# Wrong input


def test_user_files_are_kept_and_earlier_report_is_replaced(
    trained: Trained, small_split: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder = trained.model_dir / "best_model.onnx", tmp_path / "report"
    run(model, (small_split,), folder, sweep=True, **SWEPT)
    assert (folder / "robustness.png").exists()
    (folder / "README.md").write_text("my project, three years of notes")
    (folder / "notes.txt").write_text("mine")
    before = (folder / "predictions.csv").stat().st_mtime_ns
    capsys.readouterr()
    run(model, (small_split,), folder)
    assert (folder / "README.md").read_text() == "my project, three years of notes"
    assert (folder / "notes.txt").read_text() == "mine"
    assert f"NOTE: {folder / 'README.md'}" in capsys.readouterr().err
    assert not (folder / "robustness.png").exists()
    assert (folder / "predictions.csv").stat().st_mtime_ns > before
    (folder / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match=r"metrics\.json.*--report-dir"):
        run(model, (small_split,), folder)
    assert (folder / "metrics.json").read_text() == "{}"


def test_folder_with_user_files_is_refused(
    trained: Trained, small_split: Path, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ValueError, match=r"README\.md.*--report-dir"):
        run(trained.model_dir / "best_model.onnx", (small_split,), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_other_crop_rule_is_reported(
    trained: Trained, small_split: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split_dir = shutil.copytree(small_split, tmp_path / "split")
    rule = {"margin": 0.0, "square": False, "frames": "full"}
    (split_dir / "crop-rule.json").write_text(json.dumps(rule))
    run(trained.model_dir / "best_model.onnx", (split_dir,), tmp_path / "report")
    notes = capsys.readouterr().err
    assert f"NOTE: {split_dir}: its crops have margin 0.0" in notes
    assert "frames full" in notes


def test_wrong_folder_or_number_is_reported(
    trained: Trained, small_split: Path, tmp_path: Path
) -> None:
    model = trained.model_dir / "best_model.onnx"
    (tmp_path / "empty" / "test").mkdir(parents=True)
    (tmp_path / "nothing").mkdir()
    for name in ("empty", "nothing", "missing"):
        with pytest.raises((ValueError, OSError), match=name) as raised:
            run(model, (small_split, tmp_path / name), tmp_path / "report")
        assert "\n" not in str(raised.value)
    for settings, option in (
        (dict(resamples=0), "--resamples"),
        (dict(batch_size=0), "--batch-size"),
        (dict(sizes=(0.5, 0.0)), "--sizes"),
        (dict(jpeg_qualities=(101,)), "--jpeg-qualities"),
        (dict(clips=(tmp_path / "missing",)), "--clips"),
        (dict(clips=(tmp_path / "nothing",)), "--clips"),
    ):
        with pytest.raises((ValueError, OSError), match=option):
            run(model, (small_split,), tmp_path / "report", **settings)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("label", ["real", "fake"])
def test_one_class_alone_is_enough(
    trained: Trained, tmp_path: Path, label: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_split(tmp_path / "split", {"test": 2}, crops=1)
    shutil.rmtree(tmp_path / "split" / "test" / {"real": "fake", "fake": "real"}[label])
    model = trained.model_dir / "best_model.onnx"
    metrics = run(model, (tmp_path / "split",), tmp_path / "report", sweep=True, **SWEPT)
    row, *_ = metrics["groups"]
    assert (row["fake videos"], row["real videos"]) == ((2, 0) if label == "fake" else (0, 2))
    rate = "fakes_found" if label == "fake" else "reals_called_fake"
    assert row[rate] == (label == "fake") and row["auc"] is None
    assert " of 2 (" in capsys.readouterr().out
    assert " of 2 (" in (tmp_path / "report" / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "report" / "robustness.png").exists()


@pytest.mark.long
def test_missing_model_ends_with_exit_code_1(tmp_path: Path) -> None:
    result = run_script(SCRIPT, "--model", "no.keras", cwd=tmp_path)
    assert_stops(result, "no.keras")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
