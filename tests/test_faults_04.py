"""Fault tests of 04: foreign files, pipes, damaged models and checkpoints, signals."""

import importlib
import io
import json
import os
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import keras
import numpy as np
import pandas as pd
import pytest
from crops import Trained, small_split, trained
from faults import read_tree, running, wait_for

from deepfake_detect import crops as crop_files
from deepfake_detect import files
from deepfake_detect.checkpoint import fingerprint_crops, read_checkpoint, write_checkpoint
from deepfake_detect.decision import Decision
from deepfake_detect.model import build_model
from deepfake_detect.model_file import (
    LARGEST_MODEL,
    load_model,
    read_decision,
    read_saved,
    write_model,
)

pytestmark = pytest.mark.long

train = importlib.import_module("04-train-cnn")

SCRIPT = "04-train-cnn.py"
__all__ = ["small_split", "trained"]  # fixtures


# --- The user's own files -------------------------------------------------------------------------


def test_a_foreign_folder_is_refused_and_unchanged(small_split: Path, tmp_path: Path) -> None:
    """D3: 04 overwrote the files of another project in --model-dir."""
    for name in ("README.md", "history.csv"):
        (tmp_path / name).write_text("my project, three years of notes")
    with pytest.raises(ValueError, match=r"README\.md.*--model-dir"):
        train.main(train.Settings(split_dir=small_split, model_dir=tmp_path, start="none"))
    assert read_tree(tmp_path) == {
        name: b"my project, three years of notes" for name in ("README.md", "history.csv")
    }


def test_a_planted_link_is_not_followed(small_split: Path, tmp_path: Path) -> None:
    """D8: 04 wrote a table through a link and replaced the target of the link."""
    victim, model_dir = tmp_path / "victim.txt", tmp_path / "model"
    victim.write_text("mine")
    files.claim(model_dir, "--model-dir", SCRIPT)
    (model_dir / "history.csv").symlink_to(victim)
    settings = train.Settings(split_dir=small_split, model_dir=model_dir, start="none")
    with pytest.raises(ValueError, match=r"history\.csv.*--model-dir"):
        train.main(settings)
    assert victim.read_text() == "mine"


# --- Pipes ----------------------------------------------------------------------------------------


def test_a_pipe_among_the_crops_is_left_out(small_split: Path, tmp_path: Path) -> None:
    """H2: 04 read from the pipe forever."""
    split_dir = shutil.copytree(small_split, tmp_path / "split")
    os.mkfifo(split_dir / "train" / "real" / "pipe.png")
    (split_dir / "train" / "real" / "zero.png").symlink_to("/dev/zero")
    crops = crop_files.find_crops(split_dir, ("train", "val"))
    images = np.empty((len(crops), 128, 128, 3), np.uint8)
    _, left_out = crop_files.decode_crops(crops, split_dir, images)
    assert left_out == {
        f"train/real/{name}.png": "is a pipe or a device" for name in ("pipe", "zero")
    }


@pytest.mark.parametrize("name", ["crops.csv", "crop-rule.json"])
def test_a_pipe_instead_of_a_table_is_refused(name: str, small_split: Path, tmp_path: Path) -> None:
    split_dir = shutil.copytree(small_split, tmp_path / "split")
    (split_dir / name).unlink(missing_ok=True)
    os.mkfifo(split_dir / name)
    with pytest.raises(ValueError, match=f"{name}: .*delete"):
        train.main(train.Settings(split_dir=split_dir, model_dir=tmp_path / "model", start="none"))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "[]",
        '{"margin": 0.3}',
        '{"margin": "x", "square": true, "frames": "full"}',
        '{"margin": -1, "square": true, "frames": "full"}',
        '{"margin": 1, "square": true, "frames": "half"}',
        "[" * 100_000,
    ],
    ids=range(7),
)
def test_an_invalid_crop_rule_is_refused(rule: str, tmp_path: Path) -> None:
    (tmp_path / "crop-rule.json").write_text(rule)
    with pytest.raises(ValueError, match=r"crop-rule\.json: .*not a crop rule"):
        crop_files.read_crop_rule(tmp_path)


def test_a_file_name_that_is_not_unicode_is_read(small_split: Path, tmp_path: Path) -> None:
    split_dir = shutil.copytree(small_split, tmp_path / "split")
    one = next((split_dir / "train" / "real").iterdir())
    one.rename(one.with_name(os.fsdecode(b"caf\xe9.png")))
    crops = crop_files.find_crops(split_dir, ("train", "val"))
    assert len(fingerprint_crops(crops, split_dir)) == 64


# --- Damaged and foreign models -------------------------------------------------------------------


def rewrite(model: Path, path: Path, changes: dict[str, bytes]) -> Path:
    """Write a copy of a model's zip file with some members changed."""
    with zipfile.ZipFile(model) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, changes.get(name, old.read(name) if name not in changes else b""))
    return path


@pytest.mark.parametrize(
    "decision",
    [
        '{"temperature": 1' + 400 * "0" + ', "threshold": 0.5}',
        '{"temperature": NaN, "threshold": 0.5}',
        '{"temperature": 1, "threshold": 0.5, "shift": Infinity}',
        '{"temperature": 1, "threshold": 0.5, "margin": -1}',
        '{"temperature": 1, "threshold": 0.5, "frames": "half"}',
        '{"temperature": 1, "threshold": 0.5, "least_sharpness": NaN}',
        '{"threshold": 0.5}',
        "[]",
        "[" * 100_000,
    ],
    ids=range(9),
)
def test_an_invalid_decision_is_refused(decision: str, trained: Trained, tmp_path: Path) -> None:
    """C2: a number with 400 digits, or 100,000 nested lists, caused a traceback."""
    changes = {"decision.json": decision.encode()}
    path = rewrite(trained.model_dir / "best_model.keras", tmp_path / "m.keras", changes)
    with pytest.raises(ValueError, match="decision threshold"):
        read_decision(path)


def test_an_older_decision_gets_the_defaults(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"decision.json": b'{"temperature": 2.0, "threshold": 0.7}'}
    path = rewrite(trained.model_dir / "best_model.keras", tmp_path / "m.keras", changes)
    assert read_decision(path) == Decision(temperature=2.0, threshold=0.7, real_below=0.7)
    assert f"NOTE: {path}: " in capsys.readouterr().err


def test_a_model_with_other_layers_is_refused(tmp_path: Path) -> None:
    """C3: a model with other layers and the same input and output shapes was accepted."""
    inputs = keras.Input((128, 128, 3))
    pooled = keras.layers.GlobalMaxPooling2D()(inputs)
    outputs = keras.layers.Dense(1, activation="sigmoid")(pooled)
    keras.Model(inputs, outputs).save(tmp_path / "other.keras")
    with pytest.raises(ValueError, match=r"04-train-cnn\.py \(its layers"):
        load_model(tmp_path / "other.keras")


def test_a_model_with_another_activation_is_refused(trained: Trained, tmp_path: Path) -> None:
    model = trained.model_dir / "best_model.keras"
    config = json.dumps(read_saved(model, "config.json"))
    changes = {
        "config.json": config.replace('"activation": "relu"', '"activation": "tanh"').encode()
    }
    with pytest.raises(ValueError, match="its layers are different"):
        load_model(rewrite(model, tmp_path / "tanh.keras", changes))


def test_a_zip_bomb_is_not_unpacked(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S4: a small file filled the memory, compressed by zip or inside the weights."""
    model = trained.model_dir / "best_model.keras"
    monkeypatch.setattr(keras.Model, "load_weights", lambda *_: pytest.fail("it was unpacked"))
    changes = {"config.json": bytes(LARGEST_MODEL)}
    with pytest.raises(ValueError, match="it unpacks to more than 200 MiB"):
        load_model(rewrite(model, tmp_path / "zipped.keras", changes))
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        shape = (LARGEST_MODEL // 4 + 1,)
        file.create_dataset("a/b", shape, np.float32, chunks=True, compression="gzip")
    changes = {"model.weights.h5": weights.getvalue()}
    with pytest.raises(ValueError, match="it unpacks to more than 200 MiB"):
        load_model(rewrite(model, tmp_path / "packed.keras", changes))


@pytest.fixture(scope="module")
def built() -> keras.Model:
    return build_model(None, 32)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_nan_or_infinite_are_refused(
    value: float, built: keras.Model, tmp_path: Path
) -> None:
    """W7: the verdict on each face was "undecided, p_fake nan"."""
    last = built.weights[-1]
    before = last.numpy()
    last.assign(np.full_like(before, value))
    write_model(built, Decision(), tmp_path / "nan.keras")
    last.assign(before)
    with pytest.raises(ValueError, match="NaN"):
        load_model(tmp_path / "nan.keras")


def test_the_same_weights_give_the_same_file(built: keras.Model, tmp_path: Path) -> None:
    for name in ("a.keras", "b.keras"):
        write_model(built, Decision(), tmp_path / name, {"epochs_run": 1})
    assert (tmp_path / "a.keras").read_bytes() == (tmp_path / "b.keras").read_bytes()


# --- Damaged checkpoints --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a training that stopped after its first epoch."""
    path = tmp_path_factory.mktemp("stopped") / "unfinished.keras"
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile(loss="mse")
    history = pd.DataFrame([{"epoch": 1, "val_auc": 0.5, "val_loss": 0.7}])
    write_checkpoint(model, history, model.get_weights(), {"seed": 1}, path)
    table, best = read_checkpoint(path, {"seed": 1})
    pd.testing.assert_frame_equal(table, history, check_exact=True)
    assert all(map(np.array_equal, best, model.get_weights()))
    return path


def flip(path: Path, name: str) -> None:
    """Flip one bit in the middle of a member of the zip file."""
    with zipfile.ZipFile(path) as archive:
        middle = archive.read(name)[archive.getinfo(name).file_size // 2 :][:16]
    content = bytearray(path.read_bytes())
    content[content.index(middle)] ^= 1
    path.write_bytes(content)


def change(path: Path, name: str, text: str) -> None:
    copy = rewrite(path, path.with_suffix(".copy"), {name: text.encode()})
    copy.replace(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: flip(path, "model.weights.h5"),
        lambda path: flip(path, "best.npz"),
        lambda path: flip(path, "history.csv"),
        lambda path: path.write_bytes(path.read_bytes()[:999]),
        lambda path: path.write_bytes(b""),
        lambda path: change(path, "history.csv", ""),
        lambda path: change(path, "best.npz", ""),
        lambda path: change(path, "identity.json", "[]"),
        lambda path: change(path, "identity.json", ""),
        lambda path: change(path, "identity.json", "[" * 100_000),
    ],
    ids=range(10),
)
def test_a_damaged_checkpoint_is_refused(
    damage: Callable[[Path], object], stopped: Path, tmp_path: Path
) -> None:
    """C5, U3: a traceback, a message without the file name, or silently wrong weights."""
    path = Path(shutil.copy(stopped, tmp_path))
    damage(path)
    with pytest.raises(ValueError, match="damaged") as raised:
        read_checkpoint(path, {"seed": 1})
    message = str(raised.value)
    assert message.startswith(f"{path}: ") and "delete it" in message


# --- Signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_with_a_message(
    number: signal.Signals, small_split: Path, tmp_path: Path
) -> None:
    """U7: the run ended without a message."""
    options = "--split-dir", small_split, "--start", "none", "--epochs", 99, "--patience", 99
    with running(SCRIPT, *options, cwd=tmp_path) as run:
        wait_for((tmp_path / "model" / ".made-by").exists, run)
        run.send_signal(number)
        assert run.wait() == 130
    said = (tmp_path / "said").read_text()
    # If the signal arrives while a bar is created, tqdm reports an incomplete bar at the end.
    said = said.split("Exception ignored in: <function tqdm.__del__")[0]
    assert said.rstrip().endswith(f"{SCRIPT}: stopped; run the same command to continue.")
    assert "Traceback" not in said
    assert not (tmp_path / "model" / "best_model.keras").exists()
