"""What the tests of 04 and 05 share: crops that anyone can tell apart, and one model of them."""

import importlib
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import filelock
import keras
import numpy as np
import pandas as pd
import pytest

train = importlib.import_module("04-train-cnn")

VIDEOS = {"train": 4, "val": 1, "test": 1}  # of each label
CROPS = 6  # a video
OPTIONS = dict(start="lite0", epochs=3, batch_size=8, learning_rate=1e-3)
# The labels are told by their colours, in too few steps to learn that through noise and tints.
OPTIONS |= dict(blended=0.0, tint=0.0, grey=0.0, cut_out=0.0, zoomed=(0.0, 0.0))
OPTIONS |= dict(reduced=(0.0, 32), blurred=(0.0, 2.0), noisy=(0.0, 10.0), jpeg=(0.0, 30))
BROKEN = ("train/fake/empty-000000-00.png", "train/real/torn-000000-00.jpg")


def write_crop(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix.lower(), image)[1].tobytes())


def write_split(split_dir: Path, videos: dict[str, int] = VIDEOS, crops: int = CROPS) -> None:
    """Write crops that anyone can tell apart: reals are bluish and striped, fakes are reddish."""
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
    """One training for all processes of the tests, enough to tell the labels, with two broken
    crops and without a look at the test part."""
    root = tmp_path_factory.getbasetemp()
    folder = (root if worker_id == "master" else root.parent) / "trained-once"
    folder.mkdir(exist_ok=True)
    split_dir, model_dir = folder / "split_dataset", folder / "model"
    with filelock.FileLock(folder / ".lock"):
        if not (folder / "training.json").exists():
            write_split(split_dir)
            (split_dir / BROKEN[0]).write_bytes(b"")
            (split_dir / BROKEN[1]).write_bytes(b"no picture at all")
            hidden = (split_dir / "test").rename(folder / "test")
            training = train.main(split_dir, model_dir, **OPTIONS)
            hidden.rename(split_dir / "test")
            (folder / "training.json").write_text(json.dumps(training))
    return Trained(
        split_dir=split_dir,
        model_dir=model_dir,
        training=json.loads((folder / "training.json").read_text()),
        history=pd.read_csv(model_dir / "history.csv"),
        model=keras.saving.load_model(model_dir / "best_model.keras"),
    )


@pytest.fixture(scope="session")
def small_split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split set with two crops of each label in each split, to be copied and damaged."""
    split_dir = tmp_path_factory.mktemp("small") / "split_dataset"
    write_split(split_dir, {"train": 1, "val": 1, "test": 1}, crops=2)
    return split_dir
