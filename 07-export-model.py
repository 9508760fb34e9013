"""Write the model as ONNX and as TFLite, for those who serve it without Keras.

    python 07-export-model.py
    python 07-export-model.py --crops-dir split_dataset/val --crops 20
    python 07-export-model.py --model my-model/best_model.keras --export-dir my-export

Reads   model/best_model.keras            the model and its decision, by 04; where there is none,
                                          the project's own, weights/deepfake-detector.keras
        split_dataset/test/               crops of faces, to check the exported models on
Writes  model/export/detector.onnx        32-bit weights, for ONNX Runtime
        model/export/detector.tflite      16-bit weights, half the size, for LiteRT (TFLite)
        model/export/detector.json        the decision, and what goes in and comes out
Next    08-web-page.py

Both take `rgb_0_to_255`, float32 (n, size, size, 3): crops of faces, RGB, as they are, cut by the
crop rule and squeezed to the image_size in detector.json. They give `p_fake`, float32 (n, 1), 0..1:
the scores of 06, with normalisation and calibration inside. A file is written only if its scores
agree with those of the Keras model.
"""

from __future__ import annotations

import json
from contextlib import suppress
from functools import partial
from pathlib import Path

import deepfake_detect.keras_setup  # noqa: F401 - first, before others load Keras  # isort: skip
import filelock
import keras
import numpy as np

from deepfake_detect import cli, export_formats
from deepfake_detect import crops as crop_files
from deepfake_detect.decision import Decision, calibrate
from deepfake_detect.export_formats import INPUT, OUTPUT, Scorer
from deepfake_detect.files import claim_folder, write_whole
from deepfake_detect.model_file import load_model, read_decision
from deepfake_detect.scoring import predict_both_ways

# --------------------------------------------------------------------------------------------------
# folders
MODEL = None  # None: model/best_model.keras, or if there is none weights/deepfake-detector.keras
EXPORT_DIR = Path("model/export")  # gets the two models and detector.json
CROPS_DIR = Path("split_dataset/test")  # a folder with images below it: crops of faces
# check
CROPS = 100  # of them, taken evenly, that the models are compared on
ONNX_TOLERANCE = 1e-4  # largest difference of p_fake, by rounding
TFLITE_TOLERANCE = 2e-2  # the same of weights with 16 bits, which are three digits
ROUNDS = 5  # the speed is the best of so many, the models in turn
# format
OPSET = 17  # of ONNX; ONNX Runtime knows it since 1.12 (2022)
# --------------------------------------------------------------------------------------------------

MODELS = Path("model/best_model.keras"), Path(__file__).parent / "weights/deepfake-detector.keras"


def main(
    model: Path | None = MODEL,
    export_dir: Path = EXPORT_DIR,
    crops_dir: Path = CROPS_DIR,
    crops: int = CROPS,
    onnx_tolerance: float = ONNX_TOLERANCE,
    tflite_tolerance: float = TFLITE_TOLERANCE,
    rounds: int = ROUNDS,
    opset: int = OPSET,
) -> dict[str, dict[str, float]]:
    """Write the model as ONNX and as TFLite, for those who serve it without Keras.

    Args:
        model: a model that 04-train-cnn.py wrote; None: model/best_model.keras, or if there is none
            weights/deepfake-detector.keras
        export_dir: folder for the two models and detector.json
        crops_dir: folder with crops of faces below it, to check the exported models on
        crops: so many of them are taken
        onnx_tolerance: largest difference of p_fake between the ONNX and the Keras model
        tflite_tolerance: the same of the TFLite model
        rounds: the speed is the best of so many
        opset: version of the ONNX operators

    Returns:
        Of each model, keras, onnx and tflite: largest difference of p_fake from the first's, bytes,
        and crops a second.

    Raises:
        ValueError: there are no crops, the model is of another kind, the scores do not agree, or
            export_dir holds other files.
        OSError: the model is not there, or the folder cannot be written.
    """
    for option, value in {"--crops": crops, "--rounds": rounds, "--opset": opset}.items():
        if value < 1:
            raise ValueError(f"{option} is {value}; give 1 or more.")
    model = model or next(filter(Path.is_file, MODELS), MODELS[0])
    loaded, decision = load_model(model), read_decision(model)
    images = read_crops(crops_dir, crops, decision.image_size)
    if export_dir.is_dir():  # a refusal comes before the minute that converting takes
        claim_folder(export_dir, "--export-dir", Path(__file__).name)
    score = export_formats.make_scorer(loaded, decision)

    # Convert to each format, score the crops with it, and stop at the first that disagrees.
    scorers = {"keras": run_keras(loaded, decision)}
    truth, files, differences = scorers["keras"](images), {}, {"keras": 0.0}
    for name, tolerance, convert in (
        ("onnx", onnx_tolerance, partial(export_formats.convert_to_onnx, score, decision, opset)),
        ("tflite", tflite_tolerance, partial(export_formats.convert_to_tflite, score, loaded)),
    ):
        files[name], scorers[name] = convert()
        differences[name] = float(np.abs(scorers[name](images) - truth).max())
        if not differences[name] <= tolerance:  # so that NaN stops it too
            raise ValueError(
                f"{model}: its scores as {name} differ from its own by up to "
                f"{differences[name]:.4f} on {crops_dir}, more than {tolerance}; nothing was "
                "written."
            )
    speeds = export_formats.measure_speed(scorers, images, rounds)

    about = {
        "input": {
            "name": INPUT,
            "type": "float32",
            "shape": ["n", *loaded.input_shape[1:]],
        },
        "output": {
            "name": OUTPUT,
            "type": "float32",
            "shape": ["n", 1],
            "calibrated": True,
        },
        "score_of_a_video": "the mean of its crops' p_fake; fake from the threshold on, real below "
        "real_below, and undecided between them",
        **decision._asdict(),
        "checked_on_crops": len(images),
        "largest_difference": differences,
    }
    files["json"] = (json.dumps(about, indent=2) + "\n").encode()
    export_dir.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(export_dir / ".lock", timeout=0):
        claim_folder(export_dir, "--export-dir", Path(__file__).name)
        for name, content in files.items():
            write_whole(export_dir / f"detector.{name}", partial(Path.write_bytes, data=content))
    sizes = {"keras": model.stat().st_size} | {name: len(files[name]) for name in files}
    print(f"{export_dir}")
    print(f"  model           {model}")
    print(f"  crops           {len(images):,} of {crops_dir}")
    print(f"  {'':15} largest difference      size   crops/s")
    for name, difference in differences.items():
        size = f"{sizes[name] / 1e6:.1f} MB"
        print(f"  {name:15} {difference:18.6f}{size:>10}{speeds[name]:10.0f}")
    return {
        name: {"difference": differences[name], "bytes": sizes[name], "crops/s": speeds[name]}
        for name in scorers
    }


def read_crops(crops_dir: Path, count: int, size: int) -> np.ndarray:
    """Read so many of the crops below a folder, evenly: float32 (n, size, size, 3), RGB, 0..255.

    Raises:
        ValueError: there are none.
    """
    suffixes = crop_files.IMAGE_SUFFIXES
    paths = sorted(path for path in crops_dir.rglob("*") if path.suffix.lower() in suffixes)
    images = []
    for index in np.unique(np.linspace(0, max(0, len(paths) - 1), count).astype(int)):
        with suppress(ValueError, OSError, IndexError):  # the others are enough for a check
            images.append(crop_files.read_crop(paths[index], size))
    if not images:
        raise ValueError(
            f"{crops_dir}: there is no crop in it to check the exported models on; name a folder "
            "with some, such as split_dataset/val, with --crops-dir."
        )
    return np.stack(images).astype(np.float32)


def run_keras(model: keras.Model, decision: Decision) -> Scorer:
    """Score as 06 does: p_fake, float64 (n, 1)."""
    predict = partial(predict_both_ways, model.predict_on_batch)
    return lambda images: calibrate(predict(images), decision)[:, None]


if __name__ == "__main__":
    cli.run(main)
