"""Average the weights of models of script 04, and fit calibration and thresholds to the average.

    python weights/average-models.py split_dataset one/best_model.keras other/best_model.keras
    python weights/average-models.py split_dataset distilled/student.keras --image-size 224
    python weights/average-models.py split_dataset model/best_model.keras --sharpen-to 35

Reads   split_dataset/{train,val}/   the crops that they were trained on
        the models                   the later ones trained on from the first, or it will not work;
                                     of one alone, calibration and thresholds are fitted
Writes  averaged.keras               a model as 04-train-cnn.py writes it

Trainings that began with the same weights end in places between which the loss is low, and the
middle tells more than either end: Wortsman et al., "Model soups", ICML 2022. A model may also judge
better with larger images than it was trained with, as what augmentation enlarges looks larger to
it: Touvron et al., "Fixing the train-test resolution discrepancy", NeurIPS 2019. And it may judge
soft crops better once they are sharpened. All of that is chosen on the validation part.
"""

import importlib
import inspect
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
train_cnn = importlib.import_module("04-train-cnn")

from deepfake_detect import crops as crop_files  # noqa: E402 - after 04, which quiets TensorFlow first
from deepfake_detect.decision import Decision, calibrate, check_image_size  # noqa: E402 - after 04, which quiets TensorFlow first
from deepfake_detect.model import build_model  # noqa: E402 - after 04, which quiets TensorFlow first
from deepfake_detect.model_file import load_model, read_decision, read_saved, write_model  # noqa: E402 - after 04, which quiets TensorFlow first
from deepfake_detect.scoring import predict_crops  # noqa: E402 - after 04, which quiets TensorFlow first

TARGET = Path("averaged.keras")


def main(
    split_dir: Annotated[Path, tyro.conf.Positional],
    models: Annotated[list[Path], tyro.conf.Positional],
    target: Path = TARGET,
    image_size: int | None = None,
    sharpen_to: float | None = None,
) -> Decision:
    """Average the weights of models of script 04, and fit calibration and thresholds.

    Args:
        split_dir: folder with train/ and val/, each with real/ and fake/
        models: their crop rule and how they were trained are taken from the first
        target: file for the average
        image_size: pixels that a crop's sides are squeezed to, a multiple of 32; None: as the first
            model's
        sharpen_to: sharpness that the model brings a softer crop to, 0 for none; None: as the first
            model's

    Returns:
        The decision that is saved with the average.

    Raises:
        ValueError, OSError: a model or the crops cannot be used.
    """
    first = read_decision(models[0])
    rule = {name: getattr(first, name) for name in ("margin", "square", "frames")}
    weights = [load_model(path).get_weights() for path in models]
    image_size = check_image_size(image_size or first.image_size)
    sharpen_to = first.sharpen_to if sharpen_to is None else sharpen_to
    averaged = build_model(None, image_size, sharpen_to)
    averaged.set_weights([np.mean(arrays, axis=0) for arrays in zip(*weights, strict=True)])

    crops = crop_files.find_crops(split_dir, ("train", "val"))
    images = crop_files.open_cache(len(crops), image_size, target.parent)
    crops, _ = crop_files.decode_crops(crops, split_dir, images)
    parts = {split: part for split, part in crops.groupby("split", sort=False)}
    training = read_saved(models[0], "training.json")
    defaults = inspect.signature(train_cnn.main).parameters
    training["settings"] |= {"image_size": image_size, "sharpen_to": sharpen_to}
    settings = {name: one.default for name, one in defaults.items()} | training["settings"]
    val = predict_crops(averaged, images, parts["val"], settings["batch_size"])
    decision = train_cnn.make_decision(val, parts["train"], images, rule, settings)
    if len(models) > 1:
        training["averaged"] = len(models)
    training["val_auc"] = train_cnn.measure_auc(
        val.assign(p_fake=calibrate(val["p_real"], decision))
    )
    write_model(averaged, decision, target, training)
    print(f"{target}\n  {'validation':15} AUC by video {training['val_auc']:.4f}")
    print(f"  {'verdict':15} fake from {decision.threshold:.3f}, real below ", end="")
    print(f"{decision.real_below:.3f}")
    return decision


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
