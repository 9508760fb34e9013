"""Write the model as ONNX and as TFLite, for those who serve it without Keras.

    python 07-export-model.py
    python 07-export-model.py --crops-dir split_dataset/val --crops 20
    python 07-export-model.py --model my-model/best_model.keras --export-dir my-export

Reads   model/best_model.keras            the model, its temperature and its threshold, by 04
        split_dataset/test/               crops of faces, to check the exported models on
Writes  model/export/detector.onnx        32-bit weights, for ONNX Runtime
        model/export/detector.tflite      16-bit weights, half the size, for LiteRT (TFLite)
        model/export/detector.json        the threshold, and what goes in and comes out

Both take `rgb_0_to_255`, float32 (n, 128, 128, 3): crops of faces with a margin of 30 %, RGB, as
they are. They give `p_fake`, float32 (n, 1), 0..1: the scores of 06, calibrated, with all that lies
between inside. A file gets its name only if its scores agree with the Keras model's.
"""

import importlib
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

# As 04 has them, before TensorFlow is imported: it is quieter and faster.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import filelock
import keras
import numpy as np
import onnx
import onnxruntime
import tensorflow as tf
import tf2onnx
import tyro

train_cnn = importlib.import_module("04-train-cnn")

# --------------------------------------------------------------------------------------------------
# folders
MODEL = Path("model/best_model.keras")  # a model that 04 wrote
EXPORT_DIR = Path("model/export")  # gets the two models and detector.json
CROPS_DIR = Path("split_dataset/test")  # a folder with images below it: crops of faces
# check
CROPS = 100  # of them, taken evenly, that the models are compared on
TOLERANCE = {"onnx": 1e-4, "tflite": 2e-2}  # largest difference of p_fake; 16 bits have 3 digits
ROUNDS = 5  # the speed is the best of so many, the models in turn
# format
OPSET = 17  # of ONNX; ONNX Runtime knows it since 1.12 (2022)
# --------------------------------------------------------------------------------------------------

INPUT, OUTPUT = "rgb_0_to_255", "p_fake"
Scorer = Callable[[np.ndarray], np.ndarray]


def read_crops(crops_dir: Path, count: int) -> np.ndarray:
    """Read so many of the crops below a folder, evenly: float32 (n, 128, 128, 3), RGB, 0..255.

    Raises:
        ValueError: there are none.
    """
    paths = sorted(
        path for path in crops_dir.rglob("*") if path.suffix.lower() in train_cnn.IMAGE_SUFFIXES
    )
    images = []
    for index in np.unique(np.linspace(0, max(0, len(paths) - 1), count).astype(int)):
        try:
            images.append(train_cnn.read_crop(paths[index]))
        except (ValueError, OSError, IndexError):
            continue  # a broken crop has been named by 04; the others are enough for a check
    if not images:
        raise ValueError(
            f"{crops_dir}: there is no crop in it to check the exported models on; name a folder "
            "with some, such as split_dataset/val, with --crops-dir."
        )
    return np.stack(images).astype(np.float32)


def make_scorer(model: keras.Model, decision: train_cnn.Decision) -> tf.types.experimental.Callable:
    """Make the function that is exported: images to p_fake, the calibration of 04 included.

    It takes the last layer's logit, not the logarithm of its sigmoid, which 32 bits would round.
    """
    layers = model.layers[model.layers.index(model.get_layer("imagenet_mean_and_std")) + 1 :]
    limit = float(np.log1p(-train_cnn.SMALLEST_P) - np.log(train_cnn.SMALLEST_P))

    @tf.function(input_signature=[tf.TensorSpec((None, *model.input_shape[1:]), name=INPUT)])
    def score(images: tf.Tensor) -> dict[str, tf.Tensor]:
        mean = tf.constant(train_cnn.IMAGENET_MEAN, tf.float32)
        features = (images - mean) / tf.constant(train_cnn.IMAGENET_STD, tf.float32)
        for layer in layers[:-1]:
            features = layer(features, training=False)
        logit = tf.linalg.matmul(features, layers[-1].kernel) + layers[-1].bias
        logit = tf.clip_by_value(logit, -limit, limit)  # as 04's calibrate() does
        return {OUTPUT: tf.sigmoid(-logit / decision.temperature + decision.shift)}

    return score


def convert_to_onnx(score: tf.types.experimental.Callable, decision: train_cnn.Decision) -> bytes:
    """Convert to ONNX, with temperature and threshold in its metadata."""
    converted, _ = tf2onnx.convert.from_function(score, score.input_signature, opset=OPSET)
    onnx.helper.set_model_props(
        converted, {name: repr(value) for name, value in decision._asdict().items()}
    )
    return converted.SerializeToString()


def convert_to_tflite(score: tf.types.experimental.Callable, model: keras.Model) -> bytes:
    """Convert to TFLite with weights of 16 bits; it calculates in 32 where there is no GPU."""
    with tempfile.TemporaryDirectory() as folder:
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("serve", score)
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
        return converter.convert()


def run_keras(model: keras.Model, decision: train_cnn.Decision) -> Scorer:
    """Score as 06 does."""

    def run(images: np.ndarray) -> np.ndarray:
        return train_cnn.calibrate(model.predict_on_batch(images), decision)

    return run


def run_onnx(content: bytes) -> Scorer:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: session.run([OUTPUT], {INPUT: images})[0]


def run_tflite(content: bytes) -> Scorer:
    warnings.filterwarnings("ignore", "(?s).*tf.lite.Interpreter is deprecated")  # it works
    interpreter = tf.lite.Interpreter(model_content=content, num_threads=os.cpu_count())
    runner = interpreter.get_signature_runner()
    return lambda images: runner(**{INPUT: images})[OUTPUT]


def measure_speed(scorers: dict[str, Scorer], images: np.ndarray) -> dict[str, float]:
    """Measure the crops a second of each, the best of ROUNDS, in turn."""
    seconds = {name: [] for name in scorers}
    for _ in range(ROUNDS):
        for name, run in scorers.items():
            start = time.perf_counter()
            run(images)
            seconds[name].append(time.perf_counter() - start)
    return {name: len(images) / min(times) for name, times in seconds.items()}


def write_bytes(content: bytes, path: Path) -> None:
    """Write a file whole or not at all: to a temporary name beside it, then renamed."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


def main(
    model: Path = MODEL,
    export_dir: Path = EXPORT_DIR,
    crops_dir: Path = CROPS_DIR,
    crops: int = CROPS,
) -> dict[str, dict[str, float]]:
    """Write the model as ONNX and as TFLite, for those who serve it without Keras.

    Args:
        model: a model that 04-train-cnn.py wrote
        export_dir: folder for the two models and detector.json
        crops_dir: folder with crops of faces below it, to check the exported models on
        crops: so many of them are taken

    Returns:
        Of each model, keras, onnx and tflite: largest difference of p_fake from the first's, bytes,
        and crops a second.

    Raises:
        ValueError: there are no crops, the model is of another kind, or the scores do not agree.
        OSError: the model is not there, or the folder cannot be written.
    """
    if crops < 1:
        raise ValueError(f"--crops is {crops}; give 1 or more.")
    loaded, decision = train_cnn.load_model(model), train_cnn.read_decision(model)
    images = read_crops(crops_dir, crops)
    score = make_scorer(loaded, decision)
    steps = {
        "onnx": (partial(convert_to_onnx, score, decision), run_onnx),
        "tflite": (partial(convert_to_tflite, score, loaded), run_tflite),
    }
    contents, differences = {}, {"keras": 0.0}
    scorers = {"keras": run_keras(loaded, decision)}
    truth = scorers["keras"](images)
    for name, (convert, run) in steps.items():
        contents[name] = convert()
        scorers[name] = run(contents[name])
        differences[name] = float(np.abs(scorers[name](images) - truth).max())
        if not differences[name] <= TOLERANCE[name]:  # so that NaN stops it too
            raise ValueError(
                f"{model}: its scores as {name} differ from its own by up to "
                f"{differences[name]:.4f} on {crops_dir}, more than {TOLERANCE[name]}; nothing "
                "was written."
            )
    speeds = measure_speed(scorers, images)
    sizes = {"keras": model.stat().st_size} | {name: len(of) for name, of in contents.items()}
    export_dir.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(export_dir / ".lock", timeout=0):
        for name, content in contents.items():
            write_bytes(content, export_dir / f"detector.{name}")
        about = {
            "input": {"name": INPUT, "type": "float32", "shape": ["n", *loaded.input_shape[1:]]},
            "output": {"name": OUTPUT, "type": "float32", "shape": ["n", 1], "calibrated": True},
            "score_of_a_video": "the mean of its crops' p_fake, fake from the threshold on",
            **decision._asdict(),
            "checked_on_crops": len(images),
            "largest_difference": differences,
        }
        train_cnn.write_whole(
            export_dir / "detector.json",
            lambda partial: partial.write_text(
                json.dumps(about, indent=2) + "\n", encoding="utf-8"
            ),
        )
    print(f"{len(images):,} crops of {crops_dir}; {export_dir}")
    print("          largest difference    size    crops/s")
    for name, difference in differences.items():
        size = f"{sizes[name] / 1e6:.1f} MB"
        print(f"{name:10}{difference:18.6f}{size:>10}{speeds[name]:10.0f}")
    return {
        name: {"difference": differences[name], "bytes": sizes[name], "crops/s": speeds[name]}
        for name in scorers
    }


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except KeyboardInterrupt:
        print(f"{Path(__file__).name}: stopped; nothing was written.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
