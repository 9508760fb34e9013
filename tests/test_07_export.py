"""07: the exported models give the Keras model's scores, or are not written."""

import importlib
import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import scipy.special
import tensorflow as tf
from conftest import assert_stops, run_script

from deepfake_detect.decision import Decision, calibrate
from deepfake_detect.model import LITE0_WEIGHTS, build_model
from deepfake_detect.model_file import load_model, write_model

train_cnn = importlib.import_module("04-train-cnn")
export = importlib.import_module("07-export-model")

SCRIPT = "07-export-model.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as 04 writes it, its top untrained, crops, and what 07 makes of them."""
    folder = tmp_path_factory.mktemp("export")
    train_cnn.keras.utils.set_random_seed(1)
    built = build_model(LITE0_WEIGHTS, 64, 60)
    decision = Decision(1.5, -0.4, 0.3, 0.3, sharpen_to=60)
    write_model(built, decision, folder / "model.keras")
    rng = np.random.default_rng(1)
    for number in range(12):
        coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (150, 140), interpolation=cv2.INTER_CUBIC)
        path = folder / "crops" / "fake" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
    (path.parent / "torn.png").write_bytes(b"torn")
    result = export.main(folder / "model.keras", folder / "export", folder / "crops")
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture(scope="module")
def truth(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The crops, and their p_fake as 06 has it."""
    images = export.read_crops(folder / "crops", 99, 64)
    model = load_model(folder / "model.keras")
    p_real = model.predict_on_batch(np.concatenate((images, images[:, :, ::-1])))[:, 0]
    logit = scipy.special.logit(p_real.astype(np.float64)).reshape(2, -1).mean(axis=0)
    p_real = scipy.special.expit(logit)[:, None]  # of a crop and its mirror image
    return images, calibrate(p_real, Decision(1.5, -0.4))


def test_broken_crops_are_passed_over_and_few_are_taken_evenly(folder: Path) -> None:
    assert len(export.read_crops(folder / "crops", 99, 64)) == 12
    assert len(export.read_crops(folder / "crops", 4, 64)) == 3  # the last one is torn


def test_onnx_gives_the_same_scores_one_crop_or_many(
    folder: Path, truth: tuple[np.ndarray, np.ndarray]
) -> None:
    images, p_fake = truth
    session = onnxruntime.InferenceSession(str(folder / "export" / "detector.onnx"))
    assert [one.name for one in session.get_inputs()] == ["rgb_0_to_255"]
    assert p_fake.std() > 0.01
    for some in (images, images[:1]):
        scores = session.run(["p_fake"], {"rgb_0_to_255": some})[0]
        np.testing.assert_allclose(scores, p_fake[: len(some)], atol=1e-4)
    about = session.get_modelmeta().custom_metadata_map
    assert (float(about["threshold"]), float(about["temperature"])) == (0.3, 1.5)
    onnx.checker.check_model(str(folder / "export" / "detector.onnx"))


def test_tflite_gives_the_same_scores_in_half_the_size(
    folder: Path, truth: tuple[np.ndarray, np.ndarray]
) -> None:
    images, p_fake = truth
    path = folder / "export" / "detector.tflite"
    runner = tf.lite.Interpreter(model_path=str(path)).get_signature_runner()
    for some in (images, images[:1]):
        scores = runner(rgb_0_to_255=some)["p_fake"]
        np.testing.assert_allclose(scores, p_fake[: len(some)], atol=0.02)
    assert path.stat().st_size < 0.6 * (folder / "model.keras").stat().st_size


def test_what_is_told_is_what_was_measured(folder: Path) -> None:
    about = json.loads((folder / "export" / "detector.json").read_text(encoding="utf-8"))
    result = json.loads((folder / "result.json").read_text())
    assert about["threshold"] == 0.3 and about["checked_on_crops"] == 12
    assert about["input"]["shape"] == ["n", 64, 64, 3]
    assert about["largest_difference"] == {name: one["difference"] for name, one in result.items()}
    for name in ("onnx", "tflite"):
        path = folder / "export" / f"detector.{name}"
        assert result[name]["bytes"] == path.stat().st_size
        tolerance = {"onnx": export.ONNX_TOLERANCE, "tflite": export.TFLITE_TOLERANCE}[name]
        assert 0 < result[name]["difference"] < tolerance


def test_scores_that_do_not_agree_are_not_written(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="its scores as onnx differ from its own by up to"):
        export.main(
            folder / "model.keras", tmp_path / "export", folder / "crops", onnx_tolerance=0.0
        )
    assert not (tmp_path / "export").exists()


def test_another_s_folder_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "detector.json").write_text("mine")
    with pytest.raises(
        ValueError, match=r"it holds detector\.json, which this script did not make"
    ):
        # Before anything is converted: what this tolerance refuses comes later.
        export.main(folder / "model.keras", tmp_path, folder / "crops", onnx_tolerance=0.0)
    assert (tmp_path / "detector.json").read_text() == "mine"
    assert not (tmp_path / "detector.onnx").exists()


def test_wrong_input_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run_script(
        SCRIPT, "--model", folder / "model.keras", "--crops-dir", "empty", cwd=tmp_path
    )
    assert_stops(result, f"{SCRIPT}: empty: there is no crop in it")
    assert result.stderr.count("\n") == 1  # TensorFlow says nothing on being loaded
    with pytest.raises(FileNotFoundError, match="there is no such model"):
        export.main(tmp_path / "model.keras", tmp_path / "export", folder / "crops")
