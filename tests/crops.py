"""Helpers for the tests of training and evaluation: simple crops, and a model trained on them."""

import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import filelock
import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from deepfake_detect.augmentation import Augmentation
from deepfake_detect.crops import find_crops, read_crop
from deepfake_detect.scoring import predict_crops

train = importlib.import_module("04-train-cnn")

VIDEOS = {"train": 4, "val": 1, "test": 1}  # per label
CROPS = 6  # per video
# The labels differ in colour; a short training cannot learn this with noise and tints.
GENTLE = Augmentation(
    **dict.fromkeys(("blended", "tint", "grey", "cut_out", "zoomed"), 0.0),
    **dict.fromkeys(("reduced", "blurred", "noisy", "jpeg"), 0.0),
)
SETTINGS = train.Settings(
    start="lite0", epochs=3, batch_size=8, learning_rate=1e-3, augmentation=GENTLE
)
BROKEN = ("train/fake/empty-000000-00.png", "train/real/torn-000000-00.jpg")


def write_crop(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix.lower(), image)[1].tobytes())


def write_split(split_dir: Path, videos: dict[str, int] = VIDEOS, crops: int = CROPS) -> None:
    """Write crops that are easy to classify: reals are bluish and striped, fakes are reddish."""
    rng = np.random.default_rng(1)
    rows = []
    for split, count in videos.items():
        for label in ("fake", "real"):
            for video in range(count):
                for crop in range(crops):
                    image = rng.integers(0, 90, (*rng.integers(100, 180, 2), 3))
                    image[..., 0 if label == "real" else 2] += 120
                    if label == "real":
                        image[::8] += 40
                    video_id = f"{split}-{label}-{video}"
                    name = f"{split}/{label}/{video_id}-{crop:06d}-00.png"
                    write_crop(split_dir / name, image.astype(np.uint8))
                    rows.append((name, video_id, "dfdc", "", label, split))
    columns = ["crop", "video_id", "dataset", "method", "label", "split"]
    pd.DataFrame(rows, columns=columns).to_csv(split_dir / "crops.csv", index=False)


@dataclass
class Trained:
    split_dir: Path
    model_dir: Path
    training: dict  # what main returned
    history: pd.DataFrame
    model: keras.Model


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Trained:
    """Train once for all test processes, long enough to separate the labels.

    Two crops are damaged, and the test split is moved away.
    """
    root = tmp_path_factory.getbasetemp()
    folder = (root if worker_id == "master" else root.parent) / "trained-once"
    folder.mkdir(exist_ok=True)
    split_dir, model_dir = folder / "split_dataset", folder / "model"
    with filelock.FileLock(folder / ".lock"):
        if not (folder / "training.json").exists():
            write_split(split_dir)
            (split_dir / BROKEN[0]).write_bytes(b"")
            (split_dir / BROKEN[1]).write_bytes(b"not a picture")
            hidden = (split_dir / "test").rename(folder / "test")
            settings = replace(SETTINGS, split_dir=split_dir, model_dir=model_dir)
            training = train.main(settings)
            hidden.rename(split_dir / "test")
            (folder / "training.json").write_text(json.dumps(training))
    return Trained(
        split_dir=split_dir,
        model_dir=model_dir,
        training=json.loads((folder / "training.json").read_text()),
        history=pd.read_csv(model_dir / "history.csv"),
        model=keras.saving.load_model(model_dir / "best_model.keras"),
    )


@pytest.fixture
def eagerly() -> Iterator[None]:
    """Run TensorFlow without compiling: 30 seconds less for a training of a few steps."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="session")
def small_split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a split folder with two crops per label and split, for tests that damage a copy."""
    split_dir = tmp_path_factory.mktemp("small") / "split_dataset"
    write_split(split_dir, {"train": 1, "val": 1, "test": 1}, crops=2)
    return split_dir


def make_predictions(rows: list[tuple[str, str, float]]) -> pd.DataFrame:
    """Return uncalibrated predictions for rows of (label, video_id, p_real)."""
    table = pd.DataFrame(rows, columns=["label", "video_id", "p_real"])
    return table.assign(p_fake=1 - table.p_real, split="test", dataset="", method="")


def score_crops(trained: Trained, splits: tuple[str, ...] = ("val",)) -> pd.DataFrame:
    """Return the predictions of the saved model for the crops of some splits."""
    crops = find_crops(trained.split_dir, splits)
    images = np.stack([read_crop(trained.split_dir / crop, 128) for crop in crops["crop"]])
    return predict_crops(trained.model, images, crops, 8)
