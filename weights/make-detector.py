"""Make the detector that comes with the project: a model of script 04 in half its size.

    python weights/make-detector.py model/best_model.keras

Reads   model/best_model.keras            a model, as 04-train-cnn.py writes it
Writes  weights/deepfake-detector.keras   the same with its weights in 16 bits, zipped

Keras puts the weights back into 32 bits when it loads them. Before the file is written, both models
score the same random crops: rounding must not move p_fake by more than 0.01.
"""

import io
import sys
import zipfile
from pathlib import Path
from typing import Annotated

import h5py
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deepfake_detect import crops as crop_files
from deepfake_detect import files as folders
from deepfake_detect.decision import calibrate
from deepfake_detect.model_file import load_model, read_decision

TARGET = Path(__file__).with_name("deepfake-detector.keras")
LARGEST_DIFFERENCE = 0.01  # of p_fake, 0 to 1


def main(
    model: Annotated[Path, tyro.conf.Positional],
    target: Path = TARGET,
    largest_difference: float = LARGEST_DIFFERENCE,
) -> None:
    """Write a model of script 04 with its weights in 16 bits.

    Args:
        model: a model that 04-train-cnn.py wrote
        target: file for the smaller one
        largest_difference: of p_fake on random crops, above which nothing is written

    Raises:
        FileNotFoundError, ValueError: it is no such model, or 16 bits change its scores.
    """
    decision = read_decision(model)
    score = score_crops(model)
    with zipfile.ZipFile(model) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files["model.weights.h5"] = halve(files["model.weights.h5"])

    def write(partial: Path) -> None:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                info = zipfile.ZipInfo(name)  # dated 1980: the same file for the same model
                archive.writestr(info, content, zipfile.ZIP_DEFLATED)
        if read_decision(partial) != decision:
            raise ValueError(f"{model}: its decision is not kept.")
        difference = float(np.abs(score_crops(partial) - score).max())
        if difference > largest_difference:
            raise ValueError(f"{model}: in 16 bits its scores differ by up to {difference:.4f}.")
        print(f"{target}\n  {'difference':15} {difference:.5f} of p_fake at most")

    folders.write_whole(target, write)
    print(f"  {'size':15} {target.stat().st_size / 1e6:.1f} MB")


def halve(weights: bytes) -> bytes:
    """Give an HDF5 file, with every float32 array in it in 16 bits."""
    halved = io.BytesIO()
    with h5py.File(io.BytesIO(weights)) as source, h5py.File(halved, "w") as target:

        def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset):
                single = item.dtype == np.float32
                copied = target.create_dataset(
                    name, data=item[()].astype(np.float16) if single else item[()]
                )
            else:
                copied = target.require_group(name)
            for key, value in item.attrs.items():
                copied.attrs[key] = value

        source.visititems(copy)
        for key, value in source.attrs.items():
            target.attrs[key] = value
    return halved.getvalue()


def score_crops(path: Path) -> np.ndarray:
    """Score random crops of many kinds with a model: p_fake, float64 (64,)."""
    rng = np.random.default_rng(1)
    crops = rng.integers(0, 256, (64, 8, 8, 3)).astype(np.uint8)
    decision = read_decision(path)
    crops = np.stack([crop_files.prepare_crop(crop, decision.image_size) for crop in crops])
    p_real = load_model(path)(crops.astype(np.float32), training=False).numpy()[:, 0]
    return calibrate(p_real, decision)


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
