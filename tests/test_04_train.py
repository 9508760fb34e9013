"""Tests of 04-train-cnn.py: train the whole network on a few simple crops."""

import importlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import filelock
import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from conftest import ROOT, assert_stops, run_script
from crops import (
    BROKEN,
    SETTINGS,
    Trained,
    eagerly,
    score_crops,
    small_split,
    trained,
    write_split,
)

from deepfake_detect.augmentation import Augmentation
from deepfake_detect.checkpoint import write_checkpoint
from deepfake_detect.cli import list_settings
from deepfake_detect.crops import find_crops
from deepfake_detect.files import claim
from deepfake_detect.model import build_model
from deepfake_detect.model_file import load_model, read_decision, read_saved

train = importlib.import_module("04-train-cnn")

SCRIPT = "04-train-cnn.py"
__all__ = ["eagerly", "small_split", "trained"]  # fixtures


def test_all_output_files_are_written(trained: Trained) -> None:
    assert sorted(path.name for path in trained.model_dir.iterdir() if path.name != ".lock") == [
        ".made-by",
        "best_model.keras",
        "best_model.onnx",
        "history.csv",
        "training_curves.png",
    ]
    path = trained.model_dir / "training_curves.png"
    picture = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[0] > 300 and picture.std() > 3


def test_the_model_file_holds_what_main_returns(trained: Trained) -> None:
    training = trained.training
    assert read_saved(trained.model_dir / "best_model.keras", "training.json") == {
        name: value for name, value in training.items() if name != "decision"
    }
    assert training["counts"] == {
        "train": {"fake crops": 24, "fake videos": 4, "real crops": 24, "real videos": 4},
        "val": {"fake crops": 6, "fake videos": 1, "real crops": 6, "real videos": 1},
    }
    assert training["started_from"] == "ImageNet weights of EfficientNet-Lite0"
    assert training["settings"]["learning_rate"] == 1e-3
    assert training["settings"]["batch_size"] == 8
    assert training["versions"]["TensorFlow"] == tf.__version__


def test_broken_crops_are_left_out_with_a_reason(trained: Trained) -> None:
    reasons = "is an empty file", "does not decode as an image"
    assert trained.training["left_out"] == dict(zip(BROKEN, reasons, strict=True))


def test_history_has_one_row_per_epoch(trained: Trained) -> None:
    assert list(trained.history.epoch) == list(range(1, trained.training["epochs_run"] + 1))
    measures = ["loss", "accuracy", "val_loss", "val_accuracy", "val_auc"]
    assert list(trained.history.columns) == ["epoch", *measures]
    assert trained.training["best_epoch"] == train.find_best(trained.history)


def test_the_best_epoch_has_the_highest_auc_then_the_lowest_loss() -> None:
    history = pd.DataFrame(
        {
            "epoch": [1, 2, 3, 4, 5],
            "val_auc": [0.7, 0.9, 0.9, 0.8, 0.9],
            "val_loss": [0.1, 0.5, 0.4, 0.1, 0.4],
        }
    )
    assert train.find_best(history) == 3
    assert train.find_best(history.head(1)) == 1


def test_the_best_epoch_is_kept(trained: Trained) -> None:
    val = score_crops(trained)
    p_of_label = np.where(val.label == "real", val.p_real, 1 - val.p_real)
    best = trained.history.set_index("epoch").loc[trained.training["best_epoch"]]
    assert -np.log(p_of_label.clip(1e-7)).mean() == pytest.approx(best.val_loss, rel=1e-3, abs=1e-6)


def test_validation_follows_training(trained: Trained) -> None:
    """With Keras' default momentum for running statistics, validation would stay at chance."""
    last = trained.history.iloc[-1]
    assert last.accuracy > 0.9
    assert last.val_accuracy > 0.9


@pytest.mark.long
def test_a_model_can_be_the_start_of_another_training(
    eagerly: None, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The split folder has neither a test split nor crops.csv, and has other file names.

    The start model has another image size.
    """
    split_dir, model_dir = tmp_path / "split_dataset", tmp_path / "model"
    write_split(split_dir, {"train": 1, "val": 1}, crops=3)
    (split_dir / "crops.csv").unlink()
    rule = {"margin": 0.1, "square": True, "frames": "full"}
    rule["width_rule"] = [[500, 1.0], [None, 0.5]]
    (split_dir / "crop-rule.json").write_text(json.dumps(rule))
    for number, path in enumerate(sorted(split_dir.rglob("*.png"))):
        image = cv2.imread(str(path.rename(path.with_name(f"photo {number}.png"))))
        image[:12, :12] = 0  # with a dark place, as in real crops, darkening leaves them
        cv2.imwrite(str(path.with_name(f"photo {number}.png")), image)
    model_dir.mkdir()
    claim(model_dir, "--model-dir", SCRIPT).write(
        "best_model.keras", lambda path: path.write_bytes(b"an old model")
    )
    (model_dir / "notes.txt").write_text("mine")
    start = str(trained.model_dir / "best_model.keras")
    settings = train.Settings(
        split_dir=split_dir, model_dir=model_dir, start=start, epochs=1, learning_rate=1e-6
    )
    settings = replace(settings, frames="full", image_size=96, sharpen_to=60, darken_to=90)
    training = train.main(settings)
    assert training["started_from"] == start
    for split in ("train", "val"):
        counts = training["counts"][split]
        assert (counts["fake videos"], counts["real videos"]) == (3, 3)
    assert training["val_auc"] == 1
    decision = read_decision(model_dir / "best_model.keras")
    assert (decision.margin, decision.square, decision.frames) == (0.1, True, "full")
    assert decision.width_rule == ((500, 1.0), (math.inf, 0.5))
    assert (decision.image_size, decision.sharpen_to, decision.darken_to) == (96, 60, 90)
    model = load_model(model_dir / "best_model.keras")
    assert model.input_shape == (None, 96, 96, 3)
    summary = capsys.readouterr().out
    assert "6 crops from 6 videos" in summary
    assert "NOTE: only 3 real and 3 fake videos" in summary
    assert "training on" in summary and summary.rstrip().endswith("05-evaluate-model.py")
    assert model.name == "deepfake_detector"
    assert (model_dir / "notes.txt").read_text() == "mine"


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists():
        assert process.poll() is None, "it ended before"
        time.sleep(0.05)


@pytest.mark.long
def test_a_killed_training_continues_and_ends_the_same(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same seed gives the same bytes with and without a kill."""
    split_dir, killed = trained.split_dir, tmp_path / "killed"
    settings = replace(SETTINGS, split_dir=split_dir, model_dir=killed)
    dict_of_defaults = {name: value for name, value, _ in list_settings(train.Settings())}
    command = [sys.executable, ROOT / SCRIPT, "--split-dir", split_dir, "--model-dir", killed]
    for name, value, _ in list_settings(SETTINGS):
        if value != dict_of_defaults[name]:
            command += [f"--{name.replace('_', '-')}", str(value)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path
    )
    wait_for(killed / "unfinished.keras", process)
    process.send_signal(signal.SIGSTOP)  # so that it does not end before the second training starts
    with pytest.raises(filelock.Timeout):
        train.main(settings)
    process.kill()
    process.wait()
    assert not (killed / "best_model.keras").exists()

    with pytest.raises(ValueError, match="differs in seed") as raised:
        train.main(replace(settings, seed=2))
    assert "(was 1, now 2)" in str(raised.value)
    touched = next((split_dir / "train" / "real").iterdir())
    content = touched.read_bytes(), touched.stat()
    touched.write_bytes(content[0])
    with pytest.raises(ValueError, match="differs in crops;"):
        train.main(settings)
    os.utime(touched, ns=(content[1].st_atime_ns, content[1].st_mtime_ns))

    capsys.readouterr()
    train.main(settings)
    printed = capsys.readouterr().out
    assert "continuing after epoch" in printed and "epoch 1 of 3:" not in printed
    assert not (killed / "unfinished.keras").exists()
    for name in ("history.csv", "best_model.keras", "best_model.onnx"):
        first, second = ((folder / name).read_bytes() for folder in (trained.model_dir, killed))
        assert first == second, name


@pytest.mark.long
def test_patience_counts_epochs_before_a_stop(tmp_path: Path, small_split: Path) -> None:
    """A training whose patience ended before the stop does not continue."""
    crops = find_crops(small_split, ("train", "val"))
    images = np.zeros((len(crops), 32, 32, 3), np.uint8)
    model = build_model(None, 32)
    settings = train.Settings(epochs=9, patience=2, batch_size=4, learning_rate=1e-4)
    settings = replace(settings, warm_up_steps=0, decay="constant")
    train.compile_model(model, settings, steps=9)
    rows = [(1, 0.6, 0.5), (2, 0.9, 0.5), (3, 0.7, 0.5), (4, 0.8, 0.5)]
    history = pd.DataFrame(rows, columns=["epoch", "val_auc", "val_loss"])
    best = [weight + 1 for weight in model.get_weights()]
    path = tmp_path / "unfinished.keras"
    write_checkpoint(model, history, best, {"run": 1}, path)
    splits = {name: part for name, part in crops.groupby("split")}
    kept, history = train.train_model(images, splits, None, settings, {"run": 1}, path)
    assert len(history) == 4
    assert all(map(np.array_equal, kept.get_weights(), best))
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished.keras"]


@pytest.mark.parametrize("decay", ["cosine", "constant"])
def test_the_learning_rate_rises_then_falls_or_stays_constant(decay: str) -> None:
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    settings = train.Settings(learning_rate=0.1, warm_up_steps=50, decay=decay)
    train.compile_model(model, settings, steps=1000)
    rate = model.optimizer._learning_rate
    assert float(rate(0)) == 0
    assert float(rate(25)) == pytest.approx(0.05)
    assert float(rate(50)) == pytest.approx(0.1)
    assert float(rate(525)) == pytest.approx(0.05 if decay == "cosine" else 0.1)
    assert float(rate(1000)) == pytest.approx(0 if decay == "cosine" else 0.1, abs=1e-6)
    train.compile_model(model, replace(settings, warm_up_steps=0), steps=1000)
    assert float(model.optimizer._learning_rate(0)) == pytest.approx(0.1)


def remove(split_dir: Path, name: str) -> None:
    shutil.rmtree(split_dir / name)


def empty(split_dir: Path, name: str) -> None:
    for path in (split_dir / name).iterdir():
        path.unlink()


def tear(split_dir: Path, name: str) -> None:
    for path in (split_dir / name).iterdir():
        path.write_bytes(b"torn")


def garble(split_dir: Path, name: str) -> None:
    (split_dir / name).write_text("a,b\n1,2\n")


def shift(split_dir: Path, name: str) -> None:
    path = split_dir / name
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *(f"{number},{row}" for number, row in enumerate(rows))]))


def double(split_dir: Path, name: str) -> None:
    lines = (split_dir / name).read_text().splitlines()
    (split_dir / name).write_text("\n".join([*lines, lines[-1]]))


def one_video(split_dir: Path, name: str) -> None:
    pd.read_csv(split_dir / name).assign(video_id="v").to_csv(split_dir / name, index=False)


@pytest.mark.parametrize(
    ("damage", "name", "sentence"),
    [
        (remove, "", "does not exist"),
        (remove, "train", "does not contain train/"),
        (remove, "val", "does not contain val/"),
        (remove, "train/real", "does not contain real crops"),
        (empty, "train/fake", "does not contain fake crops"),
        (empty, "val/real", "does not contain real crops"),
        (tear, "val/fake", "cannot be read"),
        (garble, "crops.csv", "not a table"),
        (shift, "crops.csv", "not a table"),
        (double, "crops.csv", "not a table"),
        (one_video, "crops.csv", "from one video"),
    ],
)
def test_a_damaged_split_folder_is_refused(
    damage: object, name: str, sentence: str, tmp_path: Path, small_split: Path
) -> None:
    split_dir = shutil.copytree(small_split, tmp_path / "split_dataset")
    damage(split_dir, name)
    with pytest.raises((ValueError, OSError), match=sentence) as raised:
        train.main(train.Settings(split_dir=split_dir, model_dir=tmp_path / "model", start="none"))
    message = str(raised.value)
    assert str(split_dir) in message and "\n" not in message and message.endswith(".")
    assert "03-prepare-fake-real-dataset.py" in message
    written = [path.name for path in tmp_path.glob("model/*")]
    assert set(written) <= {".lock", ".made-by"}


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("start", "not-there.h5", "not-there.h5"),
        ("epochs", 0, "--epochs is 0"),
        ("batch_size", 0, "--batch-size is 0"),
        ("patience", 0, "--patience is 0"),
        ("seed", -1, "--seed is -1"),
        ("learning_rate", 0.0, "--learning-rate is 0.0"),
        ("learning_rate", float("nan"), "--learning-rate is nan"),
        ("augmentation", Augmentation(flip=1.5), "--flip is 1.5"),
        ("augmentation", Augmentation(jpeg=50), "--jpeg is 50"),
        ("image_size", 100, "--image-size is 100"),
        ("margin", float("inf"), "--margin is inf"),
        ("model_dir", Path(train.__file__), "--model-dir"),
    ],
)
def test_an_invalid_setting_is_refused(
    setting: str, value: object, words: str, tmp_path: Path, small_split: Path
) -> None:
    settings = train.Settings(split_dir=small_split, model_dir=tmp_path / "model", start="none")
    with pytest.raises((ValueError, OSError), match=words):
        train.main(replace(settings, **{setting: value}))
    assert not (tmp_path / "model").exists()


@pytest.mark.long
def test_an_error_is_one_sentence_and_exit_code_1(tmp_path: Path) -> None:
    result = run_script(SCRIPT, "--split-dir", "faces", "--start", "none", cwd=tmp_path)
    assert_stops(result, f"{SCRIPT}: faces: ")
    assert result.stderr.count("\n") == 1  # no log output of TensorFlow
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_models_of_practice_videos_are_marked(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instead of another training, take the trained model: the mark comes after the training."""
    split_dir, model_dir = tmp_path / "split_dataset", tmp_path / "model"
    write_split(split_dir, {"train": 1, "val": 1}, crops=4)
    table = pd.read_csv(split_dir / "crops.csv").assign(dataset="practice")
    table.to_csv(split_dir / "crops.csv", index=False)
    settings = replace(SETTINGS, split_dir=split_dir, model_dir=model_dir, robust=True)
    monkeypatch.setattr(train, "train_model", lambda *_: (trained.model, trained.history))
    assert train.main(settings)["practice"] is True
    assert read_saved(model_dir / "best_model.keras", "training.json")["practice"] is True
    assert trained.training["practice"] is False


def test_an_edited_model_is_never_replaced(small_split: Path, tmp_path: Path) -> None:
    """The check runs before the training instead of after it."""
    settings = train.Settings(split_dir=small_split, model_dir=tmp_path, start="none")
    output = claim(tmp_path, "--model-dir", SCRIPT)
    output.write("best_model.keras", lambda path: path.write_bytes(b"an old model"))
    (tmp_path / "best_model.keras").write_bytes(b"edited since")
    with pytest.raises(ValueError, match=r"best_model\.keras: .*--model-dir"):
        train.main(settings)
    assert (tmp_path / "best_model.keras").read_bytes() == b"edited since"
