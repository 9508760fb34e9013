"""Tests of the model file: its contents, and files that are refused."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import scipy.special
from crops import Trained, score_crops, trained

from deepfake_detect.crops import read_crop
from deepfake_detect.decision import describe_decision
from deepfake_detect.model import build_model
from deepfake_detect.model_file import load_model, read_decision

__all__ = ["trained"]  # a fixture


@pytest.mark.long
def test_a_saved_model_scores_the_same_in_a_new_process(trained: Trained, tmp_path: Path) -> None:
    predictions = score_crops(trained, ("val", "test"))
    crops = predictions["crop"]
    images = np.stack([read_crop(trained.split_dir / crop, 128) for crop in crops])
    assert images.dtype == np.uint8 and images.max() > 200
    np.save(tmp_path / "images.npy", images)
    program = (
        "import sys, efficientnet.tfkeras, keras, numpy as np\n"
        "model = keras.saving.load_model(sys.argv[1], safe_mode=True)\n"
        "images = np.load(sys.argv[2])\n"
        "images = np.concatenate((images, images[:, :, ::-1]))\n"
        "np.save(sys.argv[3], model(images, training=False))\n"
    )
    files = [trained.model_dir / "best_model.keras", tmp_path / "images.npy", tmp_path / "p.npy"]
    subprocess.run([sys.executable, "-c", program, *files], check=True)
    p_real = np.load(tmp_path / "p.npy")[:, 0].astype(np.float64).clip(1e-7, 1 - 1e-7)
    logit = scipy.special.logit(p_real).reshape(2, -1).mean(axis=0)  # with the mirror images
    p_real = scipy.special.expit(logit)
    np.testing.assert_allclose(p_real, predictions["p_real"], rtol=1e-4, atol=1e-6)


def test_the_model_file_contains_the_decision(trained: Trained, tmp_path: Path) -> None:
    path = trained.model_dir / "best_model.keras"
    decision = read_decision(path)
    assert describe_decision(decision) == trained.training["decision"]
    with zipfile.ZipFile(path) as archive:
        assert json.loads(archive.read("decision.json"))["positive_class"] == "fake"
    plain = tmp_path / "plain.keras"
    trained.model.save(plain)
    with pytest.raises(ValueError, match="decision threshold"):
        read_decision(plain)
    load_model(plain)


def save_other(path: Path, size: int, outputs: int) -> None:
    inputs = keras.Input((size, size, 3))
    pooled = keras.layers.GlobalMaxPooling2D()(inputs)
    keras.Model(inputs, keras.layers.Dense(outputs)(pooled)).save(path)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("missing", "does not exist"),
        ("text", "not a model of 04-train-cnn.py"),
        ("cut", "not a model of 04-train-cnn.py"),
        ("large", "not a model of 04-train-cnn.py (its layers are different"),
        ("two", "not a model of 04-train-cnn.py (its layers are different"),
        ("lambda", "not a model of 04-train-cnn.py"),
        ("uneven", "not a model of 04-train-cnn.py (its layers are different"),
    ],
)
def test_other_files_are_refused(
    name: str, sentence: str, trained: Trained, tmp_path: Path
) -> None:
    path = tmp_path / f"{name}.keras"
    if name == "text":
        path.write_text("no model")
    elif name == "cut":
        path.write_bytes((trained.model_dir / "best_model.keras").read_bytes()[:100_000])
    elif name == "lambda":  # Keras would run its code without safe_mode
        inputs = keras.Input((128, 128, 3))
        ran = keras.layers.Lambda(lambda x: x[:, :1, 0, 0])(inputs)
        keras.Model(inputs, ran).save(path)
    elif name == "uneven":
        build_model(None, 100).save(path)
    elif name != "missing":
        save_other(path, *((256, 1) if name == "large" else (128, 2)))
    with pytest.raises((ValueError, OSError)) as raised:
        load_model(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ") and sentence in message and "\n" not in message
