"""The file of a trained model (.keras): its weights and decision, checked before they are used."""

from __future__ import annotations

import io
import json
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import deepfake_detect.keras_setup  # noqa: F401 - first, before others load Keras  # isort: skip
import h5py
import keras
import numpy as np
import tensorflow as tf

from deepfake_detect.decision import IMAGE_SIZES, Decision, check_decision, describe_decision
from deepfake_detect.files import write_whole
from deepfake_detect.model import build_model

LARGEST_MODEL = 200 * 2**20  # bytes of an unpacked model file; ours has 20 MB
WEIGHTS = "model.weights.h5"  # inside the zip file


def write_model(
    model: keras.Model, decision: Decision, path: Path, training: dict | None = None
) -> None:
    """Write the model and its decision to a .keras file, whole or not at all.

    The same weights give the same bytes. The optimizer, two thirds of the size, is left out, and
    the weights have 32 bits whatever the precision of the training. A .keras file is a zip file:
    decision.json and training.json are added to it. Clears Keras' session and sets its precision to
    32 bits.

    Args:
        model: from build_model
        decision: its calibration, thresholds and crop rule
        path: the file to write
        training: how the model was trained, as JSON has it

    Raises:
        ValueError: the layers of the model differ from what the decision says
    """
    keras.config.set_dtype_policy("float32")
    keras.utils.clear_session()  # layer names are counted from 1 again
    plain = build_model(None, model.input_shape[1], decision.sharpen_to, decision.darken_to)
    plain.set_weights(model.get_weights())
    if list_layers(json.loads(plain.to_json())) != list_layers(json.loads(model.to_json())):
        raise ValueError(f"{path}: the layers of the model do not fit its decision, {decision}.")
    decision = decision._replace(image_size=model.input_shape[1])
    score = "p_fake = sigmoid(-logit(p_real) / temperature + shift)"
    about = {"output": "p_real", "positive_class": "fake", "score": score}
    added = {
        "decision.json": json.dumps(about | describe_decision(decision), indent=2),
        "training.json": json.dumps(training or {}, indent=2),
    }

    def write(partial: Path) -> None:
        plain.save(partial)
        with zipfile.ZipFile(partial) as saved:
            files = {name: saved.read(name) for name in saved.namelist()}
        for name in ("metadata.json", "config.json"):  # without the date, and addresses in memory
            files[name] = re.sub(rb', "(date_saved|shared_object_id)": [^,}]+', b"", files[name])
        with zipfile.ZipFile(partial, "w") as archive:
            for name, content in (files | added).items():
                archive.writestr(zipfile.ZipInfo(name), content)  # dated 1980

    write_whole(path, write)


def load_model(path: Path) -> keras.Model:
    """Load a model of 04-train-cnn.py without running any code from its file.

    The layers are built here, and filled from the file once they are known to be the same.

    Raises:
        FileNotFoundError, ValueError: the file does not exist, or it holds something else
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: there is no such model; train one with 04-train-cnn.py, or name another."
        )
    try:
        with open_checked(path) as archive:
            config, decision = json.loads(archive.read("config.json")), {}
            if "decision.json" in archive.namelist():
                decision = json.loads(archive.read("decision.json"))
        before = (float(decision.get(name, 0.0)) for name in ("sharpen_to", "darken_to"))
        model = build_model(None, read_image_size(config), *before)
        if list_layers(config) != list_layers(json.loads(model.to_json())):
            raise ValueError("its layers are different")
        # Inside the zip file, Keras would unpack all of it for each weight that it reads.
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
            model.load_weights(archive.extract(WEIGHTS, folder))
        if not all(np.isfinite(weights).all() for weights in model.get_weights()):
            raise ValueError("some of its weights are NaN or infinite")
    except Exception as error:  # of many kinds, by what the file is instead
        reason = str(error) if type(error) is ValueError else type(error).__name__
        raise ValueError(
            f"{path}: it is not a model of 04-train-cnn.py ({reason}); name a best_model.keras."
        ) from error
    return model


def read_image_size(config: dict) -> int:
    """Return the image size that a model's config.json states, in pixels per side."""
    _, size, _, _ = config["config"]["layers"][0]["config"]["batch_shape"]
    if size not in IMAGE_SIZES:
        raise ValueError("its layers are different")
    return size


def list_layers(config: dict) -> list[tuple]:
    """List the layers of a model, including those of its base: kind and computation of each."""
    settings = "activation", "strides", "padding", "mean", "variance", "batch_shape", "epsilon"
    parts = config["config"]["layers"]
    layers = [layer for part in parts for layer in part["config"].get("layers", [part])]
    values = [[layer["config"].get(name) for name in settings] for layer in layers]
    kinds = [layer["class_name"] for layer in layers]
    values = [[v["config"] if isinstance(v, dict) else v for v in of] for of in values]
    return list(zip(kinds, values, strict=True))


def read_decision(path: Path) -> Decision:
    """Read the decision that was saved with a model.

    Raises:
        ValueError: the file does not hold a valid one
    """
    try:
        with open_checked(path) as archive:
            names = "decision.json", "config.json"
            saved, config = (json.loads(archive.read(name)) for name in names)
        decision = check_decision({"temperature": None, "threshold": None} | saved)
        decision = decision._replace(image_size=read_image_size(config))
    except Exception as error:  # of many kinds, by what the file is instead
        raise ValueError(
            f"{path}: it does not contain a decision threshold, so 04-train-cnn.py did not write "
            "it; train a model with that script, or name another."
        ) from error
    if "margin" not in saved:
        note = "this older model has no crop rule; assuming a margin of 30 % on reduced frames"
        print(f"NOTE: {path}: {note}.", file=sys.stderr)
    return decision


def read_saved(path: Path, name: str) -> dict:
    """Read a JSON file from the zip file of a model."""
    with open_checked(path) as archive:
        return json.loads(archive.read(name))


@contextmanager
def open_checked(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open the zip file of a model after checking its unpacked size."""
    with zipfile.ZipFile(path) as archive:
        sizes = [info.file_size for info in archive.infolist()]
        if sum(sizes) <= LARGEST_MODEL:
            with h5py.File(io.BytesIO(archive.read(WEIGHTS))) as weights:
                weights.visititems(lambda _, found: sizes.append(getattr(found, "nbytes", 0)))
        if sum(sizes) > LARGEST_MODEL:
            raise ValueError(f"it unpacks to more than {LARGEST_MODEL / 2**20:.0f} MiB")
        yield archive


class Scorer(NamedTuple):
    """A decision and its model, which loads in a background thread."""

    path: Path
    decision: Decision
    loading: Future  # the model and its prediction function

    @property
    def model(self) -> keras.Model:
        """Wait for the model; raises the errors of load_model."""
        return self.loading.result()[0]

    def predict(self, images: np.ndarray) -> tf.Tensor:
        """Wait for the model, and predict RGB float32 images in 0..255: p_real (n, 1)."""
        return self.loading.result()[1](images)


def read_scorer(path: Path, as_graph: bool = True) -> Scorer:
    """Read the decision of a model, and load the model in a background thread.

    Loading takes three seconds, during which the first frames can be decoded.

    Args:
        path: a .keras file
        as_graph: compile a graph, which takes a second and then scores five times as fast

    Raises:
        FileNotFoundError, ValueError: the file does not exist, or it holds something else
    """
    thread = ThreadPoolExecutor(1)
    loading = thread.submit(load_predictor, path, as_graph)
    thread.shutdown(wait=False)
    try:
        return Scorer(path, read_decision(path), loading)
    except ValueError:
        loading.result()  # raises the clearer error if the file is not a model at all
        raise


def load_predictor(path: Path, as_graph: bool) -> tuple[keras.Model, Callable]:
    """Load a model, and return it with its prediction function; see read_scorer."""
    model = load_model(path)
    predict = partial(model, training=False)
    if as_graph:  # one graph for any number of faces
        crops = tf.TensorSpec(model.input_shape, tf.float32)
        predict = tf.function(predict, input_signature=[crops])
        predict.get_concrete_function()  # compiled now, not when the first face waits for it
    return model, predict
