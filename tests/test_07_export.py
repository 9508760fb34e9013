"""07: exported models are only written if their scores match the Keras model."""

import importlib
import json
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import scipy.special
import tensorflow as tf
from conftest import assert_stops, run_script

from deepfake_detect.decision import Decision, calibrate
from deepfake_detect.detection_model import DetectionModel
from deepfake_detect.model import LITE0_WEIGHTS, build_model
from deepfake_detect.model_file import load_model, read_decision, write_model

export = importlib.import_module("07-export-model")
SCRIPT = "07-export-model.py"


def run(folder: Path, export_dir: Path, **settings: object) -> dict:
    settings = {"crops_dir": folder / "crops", "rounds": 1} | settings
    return export.main(export.Settings(folder / "model.keras", export_dir, **settings))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model with an untrained top and crops, and export the model."""
    folder = tmp_path_factory.mktemp("export")
    export.keras.utils.set_random_seed(1)
    built = build_model(LITE0_WEIGHTS, 64, 60)
    decision = Decision(temperature=1.5, shift=-0.4, threshold=0.3, real_below=0.3, sharpen_to=60)
    write_model(built, decision, folder / "model.keras")
    rng = np.random.default_rng(1)
    for number in range(12):
        coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (150, 140), interpolation=cv2.INTER_CUBIC)
        path = folder / "crops" / "fake" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
    (path.parent / "torn.png").write_bytes(b"torn")
    (folder / "result.json").write_text(json.dumps(run(folder, folder / "export")))
    return folder


@pytest.fixture(scope="module")
def truth(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the crops, and their p_fake from the Keras model."""
    settings = export.Settings(crops_dir=folder / "crops", crops=99)
    images, _ = export.read_crops(settings, 64)
    model = load_model(folder / "model.keras")
    both = np.concatenate((images, images[:, :, ::-1])).astype(np.float32)
    p_real = model(both, training=False).numpy()[:, 0]
    logit = scipy.special.logit(p_real.astype(np.float64)).reshape(2, -1).mean(axis=0)
    return images, calibrate(scipy.special.expit(logit), Decision(temperature=1.5, shift=-0.4))


def test_broken_crops_are_skipped_and_few_are_taken_evenly(folder: Path) -> None:
    for wanted, expected in ((99, 12), (4, 3)):  # the last crop is broken
        settings = export.Settings(crops_dir=folder / "crops", crops=wanted)
        assert len(export.read_crops(settings, 64)[0]) == expected


def test_onnx_scores_match_for_one_crop_and_many(
    folder: Path, truth: tuple[np.ndarray, np.ndarray]
) -> None:
    images, p_fake = truth
    path = folder / "export" / "detector.onnx"
    session, model = onnxruntime.InferenceSession(str(path)), DetectionModel.load(path)
    assert [one.name for one in session.get_inputs()] == ["rgb_0_to_255"]
    assert p_fake.std() > 0.01
    for some in (images, images[:1]):
        scores = session.run(["p_fake"], {"rgb_0_to_255": some.astype(np.float32)})[0][:, 0]
        np.testing.assert_allclose(scores, p_fake[: len(some)], atol=0.005)
        np.testing.assert_allclose(scores, model.score(some)[0], atol=1e-5)
    assert (model.decision.threshold, model.decision.temperature) == (0.3, 1.5)


def test_tflite_scores_match(folder: Path, truth: tuple[np.ndarray, np.ndarray]) -> None:
    images, p_fake = truth
    path = folder / "export" / "detector.tflite"
    runner = tf.lite.Interpreter(model_path=str(path)).get_signature_runner()
    for some in (images, images[:1]):
        scores = runner(rgb_0_to_255=some.astype(np.float32))["p_fake"][:, 0]
        np.testing.assert_allclose(scores, p_fake[: len(some)], atol=0.02)


def test_json_has_the_measured_values(folder: Path) -> None:
    about = json.loads((folder / "export" / "detector.json").read_text(encoding="utf-8"))
    result = json.loads((folder / "result.json").read_text())
    assert about["threshold"] == 0.3 and about["checked_on_crops"] == 12
    assert about["input"]["shape"] == ["n", 64, 64, 3]
    assert about["largest_difference"] == {name: one["difference"] for name, one in result.items()}
    for name, file in (("opencv", "onnx"), ("onnxruntime", "onnx"), ("tflite", "tflite")):
        path = folder / "export" / f"detector.{file}"
        assert result[name]["bytes"] == path.stat().st_size
        assert 0 < result[name]["difference"] < 0.02


@pytest.fixture(scope="module")
def scorer(folder: Path) -> export.Scorer:
    path = folder / "model.keras"
    return export.run_keras(load_model(path), read_decision(path))


@pytest.fixture
def converted(folder: Path, scorer: export.Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert to TFLite and compile the Keras model only once."""
    content = (folder / "export" / "detector.tflite").read_bytes()
    monkeypatch.setattr(export, "convert_to_tflite", lambda *_: content)
    monkeypatch.setattr(export, "run_keras", lambda *_: scorer)


@pytest.mark.long
def test_differing_models_and_partial_sets_are_not_written(
    converted: None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="differ"):
        run(folder, tmp_path / "export", tolerance=0.0)
    assert not (tmp_path / "export").exists()

    run(folder, tmp_path / "export")
    before = {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()}
    monkeypatch.setattr(export, "describe", lambda *_: "not bytes: this cannot be written")
    with pytest.raises(TypeError):
        run(folder, tmp_path / "export", crops=3)
    after = {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()}
    assert after == before


def test_foreign_folder_is_not_changed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "detector.json").write_text("mine")
    with pytest.raises(ValueError, match=r"detector\.json.*--export-dir"):
        # The refusal comes before the conversion: this tolerance would fail after it.
        run(folder, tmp_path, tolerance=0.0)
    assert (tmp_path / "detector.json").read_text() == "mine"
    assert not (tmp_path / "detector.onnx").exists()


def test_practice_crops_are_used_without_a_folder(
    converted: None,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    export.main(export.Settings(folder / "model.keras", crops=3, rounds=1))
    printed = capsys.readouterr().out
    assert "3 practice crops" in printed and "08-web-page.py" in printed
    assert (tmp_path / "model/export/detector.tflite").is_file()


@pytest.mark.long
def test_wrong_input_is_reported(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run_script(
        SCRIPT, "--model", folder / "model.keras", "--crops-dir", "empty", cwd=tmp_path
    )
    assert_stops(result, f"{SCRIPT}: empty: ", "--crops-dir")
    assert result.stderr.count("\n") == 1  # TensorFlow prints nothing while it loads
    with pytest.raises(FileNotFoundError, match="04-train-cnn"):
        export.main(export.Settings(tmp_path / "model.keras", tmp_path / "export"))
