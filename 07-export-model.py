"""Export the model as ONNX and TFLite, to run it without this project.

    python 07-export-model.py
    python 07-export-model.py --crops-dir split_dataset/val --crops 20
    python 07-export-model.py --model my-model/best_model.keras --export-dir my-export

Reads   model/best_model.keras            the model and its decision, written by 04; without it,
                                          the included weights/deepfake-detector.keras
        split_dataset/test/               face crops to check the exported models on; without
                                          them, practice crops made from a portrait
Writes  model/export/detector.onnx        for OpenCV 5, ONNX Runtime and others
        model/export/detector.tflite      for LiteRT (TFLite), for example on phones
        model/export/detector.json        the decision, and the inputs and outputs
Next    08-web-page.py

Input of both: `rgb_0_to_255`, float32 (n, size, size, 3): face crops; docs/onnx.md describes them.
Output: `p_fake`, float32 (n, 1), 0..1: the scores of 06; the model contains the mirror image,
normalisation and calibration. Weights have 16 bits. The script writes the files only if their
scores match the scores of the Keras model.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))  # python -P leaves it out
from deepfake_detect import start

start.prepare(__name__)  # Ctrl-C while the rest is loading ends it with a sentence

import json
import os
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from deepfake_detect.keras_setup import silent_stderr  # isort: skip - first, before others load Keras
import cv2
import keras
import numpy as np
import onnxruntime
import tensorflow as tf

from deepfake_detect import cli, files, practice
from deepfake_detect.cli import Count, Share
from deepfake_detect.crops import IMAGE_SUFFIXES, prepare_crop
from deepfake_detect.decision import Decision, calibrate, describe_decision
from deepfake_detect.detection_model import EVIDENCE, INPUT, OUTPUT, DetectionModel
from deepfake_detect.first_layers import IMAGENET_MEAN, IMAGENET_STD
from deepfake_detect.model import darken, sharpen
from deepfake_detect.model_file import load_model, read_decision
from deepfake_detect.onnx_export import LOGIT_LIMIT, convert_to_onnx, read_training
from deepfake_detect.scoring import predict_both_ways
from deepfake_detect.shipped import find_shipped


@dataclass(frozen=True)
class Settings:
    """Edit a default here, or override it for one run: --crops 20."""

    # folders
    model: Path | None = None  # a .keras file; None: model/best_model.keras, or the included model
    export_dir: Path = Path("model/export")  # output folder for both models and detector.json
    crops_dir: Path | None = None  # face crops; None: split_dataset/test, or practice crops
    # check
    crops: Count = 50  # crops to compare the models on
    tolerance: Share = 0.02  # largest difference of p_fake: 16-bit weights have three digits
    rounds: Annotated[Count, cli.MACHINE] = 3  # speed measurements; the best one counts


MODEL = Path("model/best_model.keras")
CROPS_DIR = Path("split_dataset/test")
SHIPPED = "weights/deepfake-detector.keras"
AT_ONCE = 8  # crops per network call; more take more memory and are not faster
Scorer = Callable[[np.ndarray], np.ndarray]  # RGB uint8 (n, size, size, 3) to p_fake (n,)


def main(settings: Settings = Settings()) -> dict[str, dict[str, float]]:
    """Export the model as ONNX and TFLite, to run it without this project.

    Returns:
        For keras, opencv, onnxruntime and tflite: the largest difference of p_fake from keras,
        bytes, and crops per second.

    Raises:
        ValueError: the folder has no crops, the file is not a model from 04, the scores differ, or
            export_dir has other files
        OSError: the model does not exist, or the folder cannot be written
    """
    cli.check_ranges(settings)
    path = settings.model or (MODEL if MODEL.is_file() else find_shipped(SHIPPED))
    model, decision = load_model(path), read_decision(path)
    images, source = read_crops(settings, decision.image_size)
    names = [f"detector.{ending}" for ending in ("onnx", "tflite", "json")]
    if settings.export_dir.exists():  # refuse before the slow conversion
        files.claim(settings.export_dir, "--export-dir", __file__).check(names)

    onnx = convert_to_onnx(model, decision, read_training(path)).SerializeToString()
    tflite = convert_to_tflite(model, decision)
    scorers = {
        "keras": run_keras(model, decision),
        "opencv": run_opencv(onnx),
        "onnxruntime": run_onnxruntime(onnx),
        "tflite": run_tflite(tflite),
    }
    differences = compare(scorers, images)
    worst = max(differences, key=lambda name: np.nan_to_num(differences[name], nan=np.inf))
    if not differences[worst] <= settings.tolerance:  # so that NaN stops it too
        raise ValueError(
            f"{path}: the scores of {worst} differ from the scores of Keras by up to "
            f"{differences[worst]:.4f} on {source}, more than --tolerance {settings.tolerance}; "
            "nothing was written."
        )
    speeds = measure_speed(scorers, images[: 2 * AT_ONCE], settings.rounds)

    about = describe(decision, len(images), differences)
    contents = dict(zip(names, (onnx, tflite, about), strict=True))
    output = files.claim(settings.export_dir, "--export-dir", __file__)
    with files.locked(settings.export_dir):
        output.write_set(
            {name: partial(Path.write_bytes, data=data) for name, data in contents.items()}
        )
    sizes = {"keras": path.stat().st_size, "opencv": len(onnx), "onnxruntime": len(onnx)}
    sizes["tflite"] = len(tflite)
    print_table(settings.export_dir, path, f"{len(images):,} {source}", sizes, differences, speeds)
    return {
        name: {"difference": differences[name], "bytes": sizes[name], "crops/s": speeds[name]}
        for name in scorers
    }


# --- Crops to compare on --------------------------------------------------------------------------


def read_crops(settings: Settings, size: int) -> tuple[np.ndarray, str]:
    """Read crops, taken evenly from a folder, or make practice crops.

    Returns:
        RGB uint8 (n, size, size, 3), and a description of them

    Raises:
        ValueError: the folder has no crops
    """
    folder = settings.crops_dir or CROPS_DIR
    if settings.crops_dir is None and not folder.is_dir():
        return make_practice_crops(settings.crops, size), "practice crops"
    found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    paths = sorted(found)
    images = []
    for index in np.unique(np.linspace(0, max(0, len(paths) - 1), settings.crops).astype(int)):
        with suppress(ValueError, OSError, IndexError):  # skip it: the others are enough
            images.append(prepare_crop(files.read_image(paths[index]), size))
    if not images:
        raise ValueError(
            f"{folder}: it has no crops to check the exported models on; give a folder with crops, "
            "such as split_dataset/val, with --crops-dir."
        )
    return np.stack(images), f"crops of {folder}"


def make_practice_crops(count: int, size: int) -> np.ndarray:
    """Make moved, blurred, noisy, tinted crops of NASA's public-domain portrait of Eileen Collins.

    Returns:
        RGB uint8 (count, size, size, 3)
    """
    portrait, rng, crops = files.read_image(practice.PORTRAIT), np.random.default_rng(0), []
    for _ in range(count):
        side, left, top = rng.integers((90, 140, 20), (200, 220, 80))
        crop = portrait[top : top + side, left : left + side]
        crop = cv2.GaussianBlur(crop, (0, 0), rng.uniform(0.1, 3))
        changed = crop * rng.uniform(0.6, 1.3, 3) + rng.normal(0, rng.uniform(0, 20), crop.shape)
        crops.append(prepare_crop(changed.clip(0, 255).astype(np.uint8), size))
    return np.stack(crops)


# --- Formats --------------------------------------------------------------------------------------


def convert_to_tflite(model: keras.Model, decision: Decision) -> bytes:
    """Convert to TFLite with 16-bit weights; without a GPU, TFLite calculates with 32 bits."""
    layers = model.layers[model.layers.index(model.get_layer("imagenet_mean_and_std")) + 1 :]

    shown = tf.TensorSpec((None, *model.input_shape[1:]), name=INPUT)

    @tf.function(input_signature=[shown], autograph=False)
    def score(images: tf.Tensor) -> dict[str, tf.Tensor]:
        images = sharpen(darken(images, decision.darken_to), decision.sharpen_to)
        mean = tf.constant(IMAGENET_MEAN, tf.float32)
        images = (images - mean) / tf.constant(IMAGENET_STD, tf.float32)
        features = tf.concat((images, tf.reverse(images, [2])), 0)
        for layer in layers[:-1]:
            features = layer(features, training=False)
        # Compute the logit directly: recovering it from a 32-bit sigmoid loses digits.
        logits = tf.linalg.matmul(features, layers[-1].kernel) + layers[-1].bias
        logits = tf.clip_by_value(logits, -LOGIT_LIMIT, LOGIT_LIMIT)
        logit = tf.reduce_mean(tf.reshape(logits, (2, -1, 1)), 0)
        return {OUTPUT: tf.sigmoid(-logit / decision.temperature + decision.shift)}

    # A module with only the weights: TensorFlow would trace a Keras model several more times.
    module = tf.Module()
    module.weights = [weight.value for weight in model.weights]
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [score.get_concrete_function()], module
    )
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    return converter.convert()


def run_keras(model: keras.Model, decision: Decision) -> Scorer:
    """Return a function that scores crops with the Keras model."""
    crops = tf.TensorSpec(model.input_shape, tf.float32)  # one graph for batches of any size
    predict = partial(model, training=False)
    predict = tf.function(predict, input_signature=[crops], autograph=False)
    return lambda crops: calibrate(predict_both_ways(predict, crops), decision)


def run_opencv(content: bytes) -> Scorer:
    """Return a function that scores crops with the ONNX file in OpenCV."""
    loaded = DetectionModel.load(content)
    return lambda crops: loaded.score(crops)[0]


def run_onnxruntime(content: bytes) -> Scorer:
    """Return a function that scores crops with the ONNX file in ONNX Runtime."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda crops: session.run([OUTPUT], {INPUT: crops.astype(np.float32)})[0][:, 0]


def run_tflite(content: bytes) -> Scorer:
    """Return a function that scores crops with the TFLite file."""
    warnings.filterwarnings("ignore", "(?s).*tf.lite.Interpreter is deprecated")  # it works
    interpreter = tf.lite.Interpreter(model_content=content, num_threads=os.cpu_count())
    runner = interpreter.get_signature_runner()
    size = runner.get_input_details()[INPUT]["shape"][1:]
    with silent_stderr():  # the first call prints the name of TFLite's accelerator
        runner(**{INPUT: np.zeros((1, *size), np.float32)})
    return lambda crops: runner(**{INPUT: crops.astype(np.float32)})[OUTPUT][:, 0]


# --- Comparison -----------------------------------------------------------------------------------


def score_in_parts(run: Scorer, images: np.ndarray) -> np.ndarray:
    """Score images in small batches, so that memory does not depend on their number."""
    parts = [run(images[start : start + AT_ONCE]) for start in range(0, len(images), AT_ONCE)]
    return np.concatenate(parts)


def compare(scorers: dict[str, Scorer], images: np.ndarray) -> dict[str, float]:
    """Return the largest difference of each scorer's p_fake from the p_fake of keras."""
    scores = {name: score_in_parts(run, images) for name, run in scorers.items()}
    return {name: float(np.abs(one - scores["keras"]).max()) for name, one in scores.items()}


def measure_speed(scorers: dict[str, Scorer], images: np.ndarray, rounds: int) -> dict[str, float]:
    """Return the crops per second of each scorer; the scorers take turns, the best round counts."""
    seconds = {name: [] for name in scorers}
    for _ in range(rounds):
        for name, run in scorers.items():
            begun = time.perf_counter()
            score_in_parts(run, images)
            seconds[name].append(time.perf_counter() - begun)
    return {name: len(images) / min(times) for name, times in seconds.items()}


def describe(decision: Decision, crops: int, differences: dict[str, float]) -> bytes:
    """Return detector.json: the inputs and outputs of the models, and the decision."""
    size = decision.image_size
    about = {
        "input": {"name": INPUT, "type": "float32", "shape": ["n", size, size, 3]},
        "output": {"name": OUTPUT, "type": "float32", "shape": ["n", 1], "calibrated": True},
        "evidence": {
            "name": EVIDENCE,
            "type": "float32",
            "shape": ["n", size // 32, size // 32],
            "in": "detector.onnx",
            "meaning": "contribution of each place of the crop to the logit of p_fake",
        },
        "score_of_a_video": "mean p_fake of its crops; likely fake from threshold on, likely real "
        "below real_below, undecided in between",
        **describe_decision(decision),
        "checked_on_crops": crops,
        "largest_difference": differences,
    }
    return (json.dumps(about, indent=2) + "\n").encode()


def print_table(
    folder: Path,
    model: Path,
    crops: str,
    sizes: dict[str, int],
    differences: dict[str, float],
    speeds: dict[str, float],
) -> None:
    """Print the size, the difference from Keras and the speed of each model."""
    cli.print_facts(folder, {"model": model, "checked on": crops})
    print(f"  {'':15} largest difference      size   crops/s")
    for name, difference in differences.items():
        size = f"{sizes[name] / 1e6:.1f} MB"
        print(f"  {name:15} {difference:18.6f}{size:>10}{speeds[name]:10.0f}")
    print(f"  {'next':15} 08-web-page.py")


if __name__ == "__main__":
    cli.run(main)
