"""Check videos and pictures for swapped and re-enacted faces: the Python interface.

    from deepfake_detect import Detector
    detector = Detector()
    result = detector.check("clip.mp4")
    print(result.verdict, result.score)

It prints nothing, and writes nothing but what write_report and write_marked_copy are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, TypeAlias

import numpy as np

from deepfake_detect.cli import MACHINE, Between, Count, Positive, Share
from deepfake_detect.result import Failure, Result

Frames: TypeAlias = Iterable[tuple[float, np.ndarray]]  # seconds and BGR uint8 (height, width, 3)
Source: TypeAlias = Path | str | bytes | BinaryIO | np.ndarray | Frames
Progress: TypeAlias = Callable[[str, int, int | None], object]  # phase, done, all (None: unknown)
LOOKING, DRAWING = "Looking for faces", "Drawing the marked copy"  # the phases


class DetectionError(Exception):
    """A file could not be checked; each kind of failure has a class below this one."""


class SourceNotFoundError(DetectionError, FileNotFoundError):
    """There is no such file, or it is a folder, pipe or device."""


class SourceUnreadableError(DetectionError, ValueError):
    """It is neither a video nor a picture, is damaged, or its frames have an odd shape or type."""


class SourceTooLargeError(DetectionError, ValueError):
    """It has more pixels than the settings allow."""


class SourceChangedError(DetectionError, OSError):
    """The file changed while it was read, so its check sum would not be of what was scored."""


class ModelError(DetectionError, ValueError):
    """The model cannot be used: it is missing, damaged or of another kind."""


class CancelledError(DetectionError):
    """The caller asked to stop."""


@dataclass(frozen=True)
class DetectionSettings:
    """What a result depends on; the defaults are those of 06-detect-deepfake.py."""

    # sampling
    frames_per_second: Positive = 2.0  # scored; more of short videos and of short shots
    fewest_frames: Count = 5  # scored frames that a verdict on a face needs
    most_pixels: Count = 100_000_000  # of a picture or a frame; larger ones are not checked
    # tracks
    least_overlap: Share = 0.2  # intersection over union of two boxes of one track
    least_likeness: Share = 0.7  # of the colours of two faces of one track
    longest_gap: Positive = 2.0  # seconds for which the face of a track may be unseen
    # verdict
    resamples: Count = 1000  # draws of frames for the interval of a score
    window: Positive = 2.0  # seconds of a part that can be likely fake by itself
    # machine
    crops_at_once: Annotated[int, Between(1, 32), MACHINE] = 16  # scored together


class Detector:
    """A model, loaded once; any number of threads may use it."""

    def __init__(
        self, model: Path | str | None = None, settings: DetectionSettings = DetectionSettings()
    ) -> None:
        """Load a model.

        Args:
            model: an .onnx file that 04-train-cnn.py wrote; None takes model/best_model.onnx, or
                where there is none the one that comes with the project
            settings: see DetectionSettings

        Raises:
            ModelError: the model cannot be used.
            ValueError: a setting is out of its range.
        """
        raise NotImplementedError

    def check(
        self,
        source: Source,
        *,
        name: str | None = None,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Result:
        """Check a video or a picture.

        Args:
            source: a path, the bytes of a file, a file open for reading, a picture (BGR uint8
                (height, width, 3)), or the frames of a video with their seconds
            name: shown in the result; None takes that of the file
            progress: called with the phase, and how much of all is done; never above all
            cancelled: asked between frames; True stops

        Raises:
            DetectionError: in one of its kinds; nothing else is raised because of a source.
        """
        raise NotImplementedError

    def check_all(
        self,
        sources: Iterable[Source],
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Iterator[Result | Failure]:
        """Check sources one after another; one that cannot be checked costs no other."""
        raise NotImplementedError

    def render_report(
        self, result: Result, *, video: str | None = None, download: str | None = None
    ) -> str:
        """Give the report as HTML.

        Args:
            result: from check
            video: address of a marked copy to play; None leaves a still picture
            download: address of the report as a file. Where it is given, the HTML is an <article>
                for another page, without a head
        """
        raise NotImplementedError

    def write_report(self, result: Result, path: Path | str) -> None:
        """Write the report: one HTML file, whole in itself, with a small marked video inside.

        Raises:
            OSError: it cannot be written.
        """
        raise NotImplementedError

    def write_marked_copy(
        self,
        result: Result,
        path: Path | str,
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[str]:
        """Write a copy with a box on every face: .mp4 of a video, .png of a picture.

        Returns:
            what a reader should know about the copy, such as that it has no sound

        Raises:
            OSError, ValueError: it cannot be written, or its source cannot be read again.
        """
        raise NotImplementedError
