"""Read and write the file of a trained model (.keras): its weights and its decision."""

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
from deepfake_detect.files import check_model_path, write_whole
from deepfake_detect.model import build_model

LARGEST_MODEL = 200 * 2**20  # bytes, unpacked; our models have 20 MB
WEIGHTS = "model.weights.h5"  # inside the zip file


def write_model(
    model: keras.Model, decision: Decision, path: Path, training: dict | None = None
) -> None:
    """Write the model and its decision to a .keras file, atomically.

    The same weights give the same bytes. The file leaves out the optimizer, two thirds of the size,
    and has float32 weights for any training precision. A .keras file is a zip file; decision.json
    and training.json are added to it. Clears Keras' session and sets its precision to float32.

    Args:
        model: from build_model
        decision: calibration, thresholds and crop rule of the model
        path: the file to write
        training: JSON-able facts about the training

    Raises:
        ValueError: the layers of the model do not match the decision
    """
    keras.config.set_dtype_policy("float32")
    keras.utils.clear_session()  # numbers in layer names restart at 1
    plain = build_model(None, model.input_shape[1], decision.sharpen_to, decision.darken_to)
    plain.set_weights(model.get_weights())
    if list_layers(json.loads(plain.to_json())) != list_layers(json.loads(model.to_json())):
        raise ValueError(f"{path}: the layers of the model do not match its decision, {decision}.")
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
        for name in ("metadata.json", "config.json"):  # remove the date and memory addresses
            files[name] = re.sub(rb', "(date_saved|shared_object_id)": [^,}]+', b"", files[name])
        with zipfile.ZipFile(partial, "w") as archive:
            for name, content in (files | added).items():
                archive.writestr(zipfile.ZipInfo(name), content)  # dated 1980

    write_whole(path, write)


def load_model(path: Path) -> keras.Model:
    """Load a model of 04-train-cnn.py without running any code from its file.

    We build the layers ourselves, compare them with the file, and then load its weights.

    Raises:
        FileNotFoundError: the file does not exist
        ValueError: the file is not a model of 04-train-cnn.py
    """
    check_model_path(path)
    try:
        with open_checked(path) as archive:
            config, decision = json.loads(archive.read("config.json")), {}
            if "decision.json" in archive.namelist():
                decision = json.loads(archive.read("decision.json"))
        before = (float(decision.get(name, 0.0)) for name in ("sharpen_to", "darken_to"))
        model = build_model(None, read_image_size(config), *before)
        if list_layers(config) != list_layers(json.loads(model.to_json())):
            raise ValueError("its layers are different")
        # From inside the zip file, Keras would unpack the whole file for each weight it reads.
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
            model.load_weights(archive.extract(WEIGHTS, folder))
        if not all(np.isfinite(weights).all() for weights in model.get_weights()):
            raise ValueError("some of its weights are NaN or infinite")
    except Exception as error:  # of any type, depending on the file
        reason = str(error) if type(error) is ValueError else type(error).__name__
        raise ValueError(
            f"{path}: the file is not a model of 04-train-cnn.py ({reason}); name a "
            "best_model.keras."
        ) from error
    return model


def read_image_size(config: dict) -> int:
    """Return the image size in a model's config.json, in pixels per side.

    Raises:
        ValueError: the size is not in IMAGE_SIZES
    """
    _, size, _, _ = config["config"]["layers"][0]["config"]["batch_shape"]
    if size not in IMAGE_SIZES:
        raise ValueError("its layers are different")
    return size


def list_layers(config: dict) -> list[tuple]:
    """List the layers of a model and its base, as tuples of class name and settings."""
    settings = "activation", "strides", "padding", "mean", "variance", "batch_shape", "epsilon"
    parts = config["config"]["layers"]
    layers = [layer for part in parts for layer in part["config"].get("layers", [part])]
    values = [[layer["config"].get(name) for name in settings] for layer in layers]
    kinds = [layer["class_name"] for layer in layers]
    values = [[v["config"] if isinstance(v, dict) else v for v in of] for of in values]
    return list(zip(kinds, values, strict=True))


def read_decision(path: Path) -> Decision:
    """Read the decision in a model file.

    Raises:
        ValueError: the file does not contain a valid decision
    """
    try:
        with open_checked(path) as archive:
            names = "decision.json", "config.json"
            saved, config = (json.loads(archive.read(name)) for name in names)
        decision = check_decision({"temperature": None, "threshold": None} | saved)
        decision = decision._replace(image_size=read_image_size(config))
    except Exception as error:  # of any type, depending on the file
        raise ValueError(
            f"{path}: the file does not contain a decision threshold, so 04-train-cnn.py did not "
            "write it; train a model with that script, or name another."
        ) from error
    if "margin" not in saved:
        note = "this older model has no crop rule; assuming a margin of 30 % on reduced frames"
        print(f"NOTE: {path}: {note}.", file=sys.stderr)
    return decision


def read_saved(path: Path, name: str) -> dict:
    """Read a JSON member of a model's zip file."""
    with open_checked(path) as archive:
        return json.loads(archive.read(name))


@contextmanager
def open_checked(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open the zip file of a model after checking its unpacked size.

    Raises:
        ValueError: the contents are larger than LARGEST_MODEL
    """
    with zipfile.ZipFile(path) as archive:
        sizes = [info.file_size for info in archive.infolist()]
        if sum(sizes) <= LARGEST_MODEL:
            with h5py.File(io.BytesIO(archive.read(WEIGHTS))) as weights:
                weights.visititems(lambda _, found: sizes.append(getattr(found, "nbytes", 0)))
        if sum(sizes) > LARGEST_MODEL:
            raise ValueError(f"it unpacks to more than {LARGEST_MODEL / 2**20:.0f} MiB")
        yield archive


class Scorer(NamedTuple):
    """A model, which loads in a background thread, and its decision."""

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
    """Read the decision of a model, and start to load the model in a background thread.

    Loading takes three seconds; the caller can decode the first frames meanwhile.

    Args:
        path: a .keras file
        as_graph: compile a graph, which takes a second and then predicts five times as fast

    Raises:
        FileNotFoundError: the file does not exist
        ValueError: the file is not a model of 04-train-cnn.py
    """
    thread = ThreadPoolExecutor(1)
    loading = thread.submit(load_predictor, path, as_graph)
    thread.shutdown(wait=False)
    try:
        return Scorer(path, read_decision(path), loading)
    except ValueError:
        loading.result()  # raises the clearer error if the file is not a model
        raise


def load_predictor(path: Path, as_graph: bool) -> tuple[keras.Model, Callable]:
    """Return a model and its prediction function; see read_scorer."""
    model = load_model(path)
    predict = partial(model, training=False)
    if as_graph:  # one graph for batches of any size
        crops = tf.TensorSpec(model.input_shape, tf.float32)
        predict = tf.function(predict, input_signature=[crops])
        predict.get_concrete_function()  # compile now instead of at the first face
    return model, predict
