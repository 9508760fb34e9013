"""Convert a model to formats that run without Keras, for script 07."""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable

import keras
import numpy as np
import onnx
import onnxruntime
import tensorflow as tf
import tf2onnx

from deepfake_detect.decision import SMALLEST_P, Decision
from deepfake_detect.model import IMAGENET_MEAN, IMAGENET_STD, sharpen

INPUT, OUTPUT = "rgb_0_to_255", "p_fake"
Scorer = Callable[[np.ndarray], np.ndarray]  # RGB float32 (n, size, size, 3) to p_fake (n, 1)


def make_scorer(model: keras.Model, decision: Decision) -> tf.types.experimental.Callable:
    """Make the function that is exported: images to p_fake, mirror image and calibration included.

    Works on the logit: recovering it from the sigmoid in 32 bits loses digits.
    """
    layers = model.layers[model.layers.index(model.get_layer("imagenet_mean_and_std")) + 1 :]
    limit = float(np.log1p(-SMALLEST_P) - np.log(SMALLEST_P))

    @tf.function(input_signature=[tf.TensorSpec((None, *model.input_shape[1:]), name=INPUT)])
    def score(images: tf.Tensor) -> dict[str, tf.Tensor]:
        images = sharpen(images, decision.sharpen_to)
        mean = tf.constant(IMAGENET_MEAN, tf.float32)
        images = (images - mean) / tf.constant(IMAGENET_STD, tf.float32)
        features = tf.concat((images, tf.reverse(images, [2])), 0)
        for layer in layers[:-1]:
            features = layer(features, training=False)
        logits = tf.linalg.matmul(features, layers[-1].kernel) + layers[-1].bias
        logits = tf.clip_by_value(logits, -limit, limit)  # as calibrate() does
        logit = tf.reduce_mean(tf.reshape(logits, (2, -1, 1)), 0)
        return {OUTPUT: tf.sigmoid(-logit / decision.temperature + decision.shift)}

    return score


def convert_to_onnx(
    score: tf.types.experimental.Callable, decision: Decision, opset: int
) -> tuple[bytes, Scorer]:
    """Convert to ONNX, with the decision in its metadata: the file's content, and what runs it."""
    converted, _ = tf2onnx.convert.from_function(score, score.input_signature, opset=opset)
    onnx.helper.set_model_props(
        converted, {name: str(value) for name, value in decision._asdict().items()}
    )
    content = converted.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda images: session.run([OUTPUT], {INPUT: images})[0]


def convert_to_tflite(
    score: tf.types.experimental.Callable, model: keras.Model
) -> tuple[bytes, Scorer]:
    """Convert to TFLite with weights of 16 bits; it calculates in 32 where there is no GPU."""
    with tempfile.TemporaryDirectory() as folder:
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("serve", score)
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
        content = converter.convert()
    warnings.filterwarnings("ignore", "(?s).*tf.lite.Interpreter is deprecated")  # it works
    interpreter = tf.lite.Interpreter(model_content=content, num_threads=os.cpu_count())
    runner = interpreter.get_signature_runner()
    return content, lambda images: runner(**{INPUT: images})[OUTPUT]


def measure_speed(scorers: dict[str, Scorer], images: np.ndarray, rounds: int) -> dict[str, float]:
    """Measure the crops a second of each, the best of so many rounds, in turn."""
    seconds = {name: [] for name in scorers}
    for _ in range(rounds):
        for name, run in scorers.items():
            start = time.perf_counter()
            run(images)
            seconds[name].append(time.perf_counter() - start)
    return {name: len(images) / min(times) for name, times in seconds.items()}
