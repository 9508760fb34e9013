"""Write a copy of a 04-train-cnn.py model with float16 weights, half the size."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import h5py
import numpy as np

from deepfake_detect.crops import prepare_crop
from deepfake_detect.decision import calibrate
from deepfake_detect.files import write_whole
from deepfake_detect.model_file import load_model, read_decision

LARGEST_DIFFERENCE = 0.01  # in p_fake, between the two models


def write_in_16_bits(model: Path, target: Path) -> float:
    """Write a copy of a model with float16 weights, which Keras converts to float32 on loading.

    The same model gives the same bytes.

    Returns:
        The largest difference in p_fake between the two models on random crops.

    Raises:
        FileNotFoundError: the model does not exist
        ValueError: the file is not a model, or the difference exceeds LARGEST_DIFFERENCE; the copy
            is not written
    """
    decision = read_decision(model)
    scores = score_random_crops(model)
    with zipfile.ZipFile(model) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["model.weights.h5"] = halve(members["model.weights.h5"])
    difference = 0.0

    def write(partial: Path) -> None:
        nonlocal difference
        with zipfile.ZipFile(partial, "w") as archive:
            for name, content in members.items():
                # A new ZipInfo has a date in 1980, so the bytes do not depend on the time.
                archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
        if read_decision(partial) != decision:
            raise ValueError(f"{model}: the decision in the copy is different.")
        difference = float(np.abs(score_random_crops(partial) - scores).max())
        if not difference <= LARGEST_DIFFERENCE:
            raise ValueError(f"{model}: scores with 16 bits differ by up to {difference:.4f}.")

    write_whole(target, write)
    return difference


def halve(weights: bytes) -> bytes:
    """Return an HDF5 file with each float32 array converted to float16."""
    halved = io.BytesIO()
    with h5py.File(io.BytesIO(weights)) as source, h5py.File(halved, "w") as target:

        def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset):
                array = item[()]
                single = item.dtype == np.float32
                copied = target.create_dataset(
                    name, data=array.astype(np.float16) if single else array
                )
            else:
                copied = target.require_group(name)
            for key, value in item.attrs.items():
                copied.attrs[key] = value

        source.visititems(copy)
        for key, value in source.attrs.items():
            target.attrs[key] = value
    return halved.getvalue()


def score_random_crops(path: Path) -> np.ndarray:
    """Return p_fake, float64 (64,), for random crops."""
    rng = np.random.default_rng(1)
    crops = rng.integers(0, 256, (64, 8, 8, 3)).astype(np.uint8)
    decision = read_decision(path)
    crops = np.stack([prepare_crop(crop, decision.image_size) for crop in crops])
    p_real = load_model(path)(crops.astype(np.float32), training=False).numpy()[:, 0]
    return calibrate(p_real, decision)
