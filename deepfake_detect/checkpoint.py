"""Read and write checkpoints, from which a stopped training continues."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from deepfake_detect.files import write_whole


def read_checkpoint(path: Path, identity: dict) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """Return the history and the best weights of a stopped training; both empty without a file.

    Args:
        path: the checkpoint
        identity: values that must be equal in the stopped training

    Raises:
        ValueError: the file is damaged or belongs to another training
    """
    if not path.exists():
        return pd.DataFrame(), []
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged} is wrong")
            earlier = json.loads(archive.read("identity.json"))
            differing = [name for name in identity if earlier.get(name) != identity[name]]
            history = pd.read_csv(archive.open("history.csv"), float_precision="round_trip")
            with np.load(archive.open("best.npz")) as weights:
                best = [weights[name] for name in weights.files]
    except Exception as error:  # of any type, depending on the damage
        raise ValueError(
            f"{path}: the file is damaged ({error}); delete it to start over."
        ) from error
    if differing:
        changes = ", ".join(
            name if name == "crops" else f"{name} (was {earlier.get(name)}, now {identity[name]})"
            for name in differing
        )
        raise ValueError(
            f"{path}: the training that stopped after epoch {len(history)} differs in {changes}; "
            "repeat its command to continue it, delete the file to discard it, or name another "
            "folder with --model-dir."
        )
    return history, best


def write_checkpoint(
    model: keras.Model, history: pd.DataFrame, best: list[np.ndarray], identity: dict, path: Path
) -> None:
    """Write a checkpoint: a .keras file, with history, best weights and identity added to it.

    Keras' BackupAndRestore does not save the best epoch so far (Keras issue 17012).
    """

    def write(partial: Path) -> None:
        model.save(partial)
        with zipfile.ZipFile(partial, "a") as archive:
            archive.writestr("identity.json", json.dumps(identity))
            archive.writestr("history.csv", history.to_csv(index=False))
            with archive.open("best.npz", "w") as file:
                np.savez(file, *best)

    write_whole(path, write)


def fingerprint_crops(crops: pd.DataFrame, split_dir: Path) -> str:
    """Return a hash that changes if a crop is added, removed or rewritten."""
    stats = [(split_dir / crop).stat() for crop in crops["crop"]]
    content = crops.assign(
        size=[stat.st_size for stat in stats], modified=[stat.st_mtime_ns for stat in stats]
    )
    return hashlib.sha256(content.to_csv().encode(errors="backslashreplace")).hexdigest()


def seed_dropout(model: keras.Model, seed: int, epoch: int) -> None:
    """Set the random state of each dropout layer for an epoch; model files do not store it."""
    inner = [layer for part in model.layers for layer in getattr(part, "layers", [])]
    dropouts = [layer for layer in [*model.layers, *inner] if hasattr(layer, "seed_generator")]
    for number, layer in enumerate(dropouts):
        state = np.random.default_rng((seed, epoch, number)).integers(2**31, size=2)
        layer.seed_generator.state.assign(state)
