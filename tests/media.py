"""Pictures and videos with faces, made of NASA's public-domain portrait of Eileen Collins."""

import io
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import skimage.data

from deepfake_detect.decision import Decision
from deepfake_detect.detection_model import DetectionModel

PORTRAIT = 240  # pixels of the side of a portrait; its face is 80 pixels wide


@cache
def portrait(side: int = PORTRAIT, mirrored: bool = False) -> np.ndarray:
    """A portrait, BGR uint8 (side, side, 3); a mirrored one is fake to the stand-in model."""
    picture = cv2.cvtColor(skimage.data.astronaut()[:400, 20:420], cv2.COLOR_RGB2BGR)
    picture = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
    return cv2.flip(picture, 1) if mirrored else picture


def frame(
    *people: tuple[int, int, bool] | tuple[int, int],
    size: tuple[int, int] = (640, 480),
    side: int = PORTRAIT,
) -> np.ndarray:
    """A grey frame of a size (width, height) with portraits: left, top and whether mirrored."""
    image = np.full((size[1], size[0], 3), 90, np.uint8)
    for left, top, *mirrored in people:
        image[top : top + side, left : left + side] = portrait(side, any(mirrored))
    return image


def write_clip(
    path: Path | io.BytesIO,
    frames: Iterable[np.ndarray],
    seconds: Sequence[float] | float = 0.5,
    codec: str = "libx264",
) -> Path | io.BytesIO:
    """Write a video; `seconds` are the times of the frames, or what lies between two."""
    target = str(path) if isinstance(path, Path) else path
    form, options = (
        ({}, {"movflags": "faststart"}) if isinstance(path, Path) else ({"format": "mp4"}, {})
    )
    with av.open(target, "w", **form, options=options) as container:
        stream = None
        for index, image in enumerate(frames):
            if stream is None:
                quality = {"crf": "12"} if codec == "libx264" else {}
                stream = container.add_stream(codec, 25, options=quality)
                stream.width, stream.height = image.shape[1::-1]
                stream.pix_fmt = "yuv420p" if codec == "libx264" else "yuvj420p"
                stream.codec_context.time_base = Fraction(1, 1000)
            picture = av.VideoFrame.from_ndarray(image, "bgr24")
            time = seconds * index if isinstance(seconds, float) else seconds[index]
            picture.pts, picture.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def encode(image: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


class StandIn(SimpleNamespace):
    """A model that calls faces fake that are darker on their left: 0.97, and others real: 0.03."""

    def __init__(self, **values: object) -> None:
        decision = Decision(threshold=0.6, real_below=0.4, margin=0.0, square=True, frames="full")
        known = {"name": "stand-in.onnx", "sha256": "0" * 64, "training": {}, "decision": decision}
        super().__init__(**(known | values))

    def score(self, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Score crops, RGB uint8 (n, size, size, 3), as DetectionModel.score does."""
        left, right = np.split(crops.mean(axis=3), 2, axis=2)
        fake = left.mean(axis=(1, 2)) < right.mean(axis=(1, 2))
        noise = np.arange(len(crops)) % 3 / 1000
        return np.where(fake, 0.97, 0.03) + noise, np.ones((len(crops), 4, 4), np.float32)


def shipped_model() -> DetectionModel:
    from deepfake_detect.detection_model import SHIPPED, find_shipped

    return DetectionModel.load(find_shipped(SHIPPED))
