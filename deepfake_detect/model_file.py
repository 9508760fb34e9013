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

LARGEST_MODEL = 200 * 2**20  # bytes of a model's file, unpacked; ours has 20 MB
WEIGHTS = "model.weights.h5"  # in a model's file


def write_model(
    model: keras.Model, decision: Decision, path: Path, training: dict | None = None
) -> None:
    """Write the model and its decision, whole or not at all, and the same for the same weights.

    It goes without the optimizer, a third of the size, and in 32 bits whatever it was trained in.
    The decision and how it was trained are two more files, decision.json and training.json, in the
    zip file that a `.keras` file is.
    """
    keras.config.set_dtype_policy("float32")
    keras.utils.clear_session()  # which counts the layers' names from the beginning again
    plain = build_model(None, model.input_shape[1], decision.sharpen_to)
    plain.set_weights(model.get_weights())
    if list_layers(json.loads(plain.to_json())) != list_layers(json.loads(model.to_json())):
        raise ValueError(f"{path}: the model has other layers than its decision, {decision}, says.")
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
        for name in ("metadata.json", "config.json"):  # less the date, and addresses in memory
            files[name] = re.sub(rb', "(date_saved|shared_object_id)": [^,}]+', b"", files[name])
        with zipfile.ZipFile(partial, "w") as archive:
            for name, content in (files | added).items():
                archive.writestr(zipfile.ZipInfo(name), content)  # dated 1980

    write_whole(path, write)


def load_model(path: Path) -> keras.Model:
    """Load a model of this script; whatever the file holds, none of it is run as code.

    The layers are built anew, and filled from the file once they are known to be the same.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is no such model.
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
        sharpen_to = float(decision.get("sharpen_to", 0.0))
        model = build_model(None, read_image_size(config), sharpen_to)
        if list_layers(config) != list_layers(json.loads(model.to_json())):
            raise ValueError("it has other layers")
        # Keras would read them within the zip file, piece by piece, and unpack it for each anew.
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
            model.load_weights(archive.extract(WEIGHTS, folder))
        if not all(np.isfinite(weights).all() for weights in model.get_weights()):
            raise ValueError("some of its weights are not numbers")
    except Exception as error:  # of many kinds, by what the file is instead
        reason = str(error) if type(error) is ValueError else type(error).__name__
        raise ValueError(
            f"{path}: it is not a model of 04-train-cnn.py ({reason}); name a best_model.keras."
        ) from error
    return model


def read_image_size(config: dict) -> int:
    """Read the pixels of an image's side out of a model's config.json."""
    _, size, _, _ = config["config"]["layers"][0]["config"]["batch_shape"]
    if size not in IMAGE_SIZES:
        raise ValueError("it has other layers")
    return size


def list_layers(config: dict) -> list[tuple]:
    """List a model's layers, the base's among them: of each its kind and what it computes."""
    told = "activation", "strides", "padding", "mean", "variance", "batch_shape", "epsilon"
    parts = config["config"]["layers"]
    layers = [layer for part in parts for layer in part["config"].get("layers", [part])]
    values = [[layer["config"].get(name) for name in told] for layer in layers]
    kinds = [layer["class_name"] for layer in layers]
    values = [[v["config"] if isinstance(v, dict) else v for v in of] for of in values]
    return list(zip(kinds, values, strict=True))


def read_decision(path: Path) -> Decision:
    """Read what was saved with a model to turn its output into a verdict.

    Raises:
        ValueError: the file has no such thing.
    """
    try:
        with open_checked(path) as archive:
            names = "decision.json", "config.json"
            saved, config = (json.loads(archive.read(name)) for name in names)
        decision = check_decision({"temperature": None, "threshold": None} | saved)
        decision = decision._replace(image_size=read_image_size(config))
    except Exception as error:  # of many kinds, by what the file is instead
        raise ValueError(
            f"{path}: it has no threshold saved with it, so it is not a model that "
            "04-train-cnn.py wrote; train it there, or name another."
        ) from error
    if "margin" not in saved:
        note = "an older model, without a crop rule; taken as a margin of 30 % of reduced frames"
        print(f"NOTE: {path}: {note}.", file=sys.stderr)
    return decision


def read_saved(path: Path, name: str) -> dict:
    """Read a JSON file out of a model's file."""
    with open_checked(path) as archive:
        return json.loads(archive.read(name))


@contextmanager
def open_checked(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a model's file, once that is known to unpack to a sensible size."""
    with zipfile.ZipFile(path) as archive:
        sizes = [info.file_size for info in archive.infolist()]
        if sum(sizes) <= LARGEST_MODEL:
            with h5py.File(io.BytesIO(archive.read(WEIGHTS))) as weights:
                weights.visititems(lambda _, found: sizes.append(getattr(found, "nbytes", 0)))
        if sum(sizes) > LARGEST_MODEL:
            raise ValueError(f"it unpacks to more than {LARGEST_MODEL / 2**20:.0f} MiB")
        yield archive


class Scorer(NamedTuple):
    """What scores a face: the decision that was saved with a model, and the model once loaded."""

    path: Path
    decision: Decision
    loading: Future  # of the model, and of what predicts with it

    @property
    def model(self) -> keras.Model:
        """Wait for the model; raises what load_model raises."""
        return self.loading.result()[0]

    def predict(self, images: np.ndarray) -> tf.Tensor:
        """Wait for the model, and predict RGB float32 images in 0..255: p_real (n, 1)."""
        return self.loading.result()[1](images)


def read_scorer(path: Path, as_graph: bool = True) -> Scorer:
    """Read a model's decision, and have a thread load the model meanwhile.

    Loading takes three seconds, in which the first frames are decoded and searched for faces.

    Args:
        as_graph: make a graph of it, which takes a second and then scores in a fifth of the time

    Raises:
        FileNotFoundError, ValueError: there is none, or it is none of 04's.
    """
    thread = ThreadPoolExecutor(1)
    loading = thread.submit(load_predictor, path, as_graph)
    thread.shutdown(wait=False)
    try:
        return Scorer(path, read_decision(path), loading)
    except ValueError:
        loading.result()  # a file that is no model at all is told as such
        raise


def load_predictor(path: Path, as_graph: bool) -> tuple[keras.Model, Callable]:
    """Load a model, and make what predicts with it; see read_scorer."""
    model = load_model(path)
    predict = partial(model, training=False)
    if as_graph:  # one for any number of faces: Keras' own predict makes a second one
        crops = tf.TensorSpec(model.input_shape, tf.float32)
        predict = tf.function(predict, input_signature=[crops])
        predict.get_concrete_function()  # made now, not when the first face waits for it
    return model, predict
