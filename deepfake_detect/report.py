"""Collect and fill in the report of a video or picture, for 06-detect-deepfake.py.

The template is templates/report.html: one page whole in itself, with the pictures inside it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import platform
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import cv2
import jinja2
import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from deepfake_detect.decision import check_decision, describe_decision
from deepfake_detect.shipped import find_shipped

TEMPLATES = find_shipped("templates")


def collect_report(
    result: dict,
    worst: pd.DataFrame,
    heat: Future,
    scorer: NamedTuple,
    target: Path,
    settings: SimpleNamespace,
) -> dict:
    """Collect what the report shows, and what a check of it needs; pictures as data: addresses.

    Args:
        result: the content of <name>.json
        worst: the most suspicious faces, with their crops (RGB uint8 (size, size, 3))
        heat: of what moved their scores, as explain_crops gives it
        scorer: what scored them, of 06: its path, model and decision
        target: what the names of the outputs begin with
        settings: what the run was made with
    """
    faces = worst.drop(columns="crop").to_dict("records")
    for face, crop, strength in zip(faces, worst["crop"], heat.result(), strict=True):
        tint = cv2.applyColorMap((255 * strength).astype(np.uint8), cv2.COLORMAP_INFERNO)
        face["crop"] = embed_picture(crop[..., ::-1])
        face["heat"] = embed_picture(cv2.addWeighted(crop[..., ::-1], 0.45, tint, 0.55, 0))

    # Of the marked copy its most suspicious frame, and all of it where it is small.
    video, still = None, None
    marked = Path(f"{target}-marked.{'png' if result['kind'] == 'picture' else 'mp4'}")
    if marked.is_file():
        frames = cv2.VideoCapture(str(marked))
        frames.set(cv2.CAP_PROP_POS_FRAMES, faces[0]["frame"] if faces else 0)
        shown, frame = frames.read()
        still = embed_picture(frame) if shown else None
        if result["kind"] == "video" and marked.stat().st_size <= settings.largest_video * 1e6:
            video = embed(marked.read_bytes(), "video/mp4")

    source, model = Path(result["file"]), scorer.path
    return {
        "result": result,
        "worst": faces,
        "video": video,
        "still": still,
        "marked": marked.name,
        "file": {"name": source.name, "bytes": source.stat().st_size, "sha256": hash_file(source)},
        "model": {
            "name": model.name,
            "sha256": hash_file(model),
            **describe_decision(scorer.decision),
        },
        "measured": read_measures(scorer),
        "settings": vars(settings),
        "date": time.strftime("%Y-%m-%d %H:%M %z"),
        "versions": f"Python {platform.python_version()}, TensorFlow {tf.__version__}, "
        f"Keras {keras.__version__}, OpenCV {cv2.__version__}, NumPy {np.__version__}",
    }


def explain_crops(crops: list[np.ndarray], model: keras.Model) -> list[np.ndarray]:
    """Map what moved the score of each crop, RGB uint8 (size, size, 3), towards fake: (size, size).

    From 0 to 1, the strongest place of each crop.
    """
    if not crops:
        return []
    maps = attribute_score(np.stack(crops), model)[0].clip(0)
    maps /= np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-12)
    size = crops[0].shape[1::-1]
    return [cv2.resize(one, size, interpolation=cv2.INTER_CUBIC).clip(0, 1) for one in maps]


def attribute_score(crops: np.ndarray, model: keras.Model) -> tuple[np.ndarray, np.ndarray]:
    """Tell what each place of the last convolution added to the score.

    Gradient times activation, summed over the channels (HiResCAM, Draelos and Carin, 2020).
    Grad-CAM would spread each gradient over all places; global max pooling passes it to one only.

    Args:
        crops: RGB uint8 (n, size, size, 3)

    Returns:
        What each place of 32 x 32 pixels added to the logit of p_fake, (n, 4, 4) of 128 x 128, and
        that logit (n,), both uncalibrated; without biases in the top the first sum to the second.
    """
    base = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    prepare = keras.Model(model.input, model.get_layer("imagenet_mean_and_std").output)
    convolutions = keras.Model(base.inputs, base.get_layer("top_activation").output)
    activation = convolutions(prepare(crops.astype(np.float32)), training=False)
    top = model.layers[-1]
    with tf.GradientTape() as tape:
        tape.watch(activation)
        features = base.layers[-1](activation)
        for layer in model.layers[model.layers.index(base) + 1 : -1]:
            features = layer(features, training=False)
        logit = -(features @ top.kernel + top.bias)
    added = tf.reduce_sum(activation * tape.gradient(logit, activation), axis=-1)
    return added.numpy(), logit.numpy()[:, 0]


def embed_picture(picture: np.ndarray) -> str:
    """Embed a picture, BGR uint8, as a JPEG of at most 960 pixels width."""
    scale = min(1, 960 / picture.shape[1])
    picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return embed(cv2.imencode(".jpg", picture)[1].tobytes(), "image/jpeg")


def embed(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_measures(scorer: NamedTuple) -> dict:
    """Read what 05 measured of this very model, told by its decision; nothing if it did not."""
    for path in (scorer.path.with_name("metrics.json"), scorer.path.with_suffix(".json")):
        try:
            measured = json.loads(path.read_bytes())
            saved = {"temperature": None, "threshold": None} | measured["decision"]
            if check_decision(saved) == scorer.decision:  # an older one has fewer entries
                return measured
        except (OSError, ValueError, KeyError, TypeError):
            pass
    return {}


def render_report(content: dict) -> str:
    """Fill in templates/report.html; what a stranger's file says of itself is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
    )
    return environment.get_template("report.html").render(content)
