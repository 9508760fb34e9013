"""Open the source of a check, a video or a picture in any form, and hash its bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias, cast

import cv2
import numpy as np

from deepfake_detect.display import HDR_AS_IT_IS, HDR_CONVERTED, HDR_PICTURE
from deepfake_detect.errors import (
    DetectionError,
    SourceChangedError,
    SourceNotFoundError,
    SourceTooLargeError,
    SourceUnreadableError,
)
from deepfake_detect.files import check_plain_file
from deepfake_detect.inputs import read_picture
from deepfake_detect.kinds import kind_of
from deepfake_detect.video import Video

Frames: TypeAlias = Iterable[tuple[float, np.ndarray]]  # seconds and BGR uint8 (height, width, 3)
Source: TypeAlias = Path | str | bytes | BinaryIO | np.ndarray | Frames
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # we raise errors instead

EXTRA_FRAMES = 2  # a short video is sampled for this multiple of the minimum frames
LEAST_SEEN = 0.5  # minimum share of a file that must be readable for a verdict


@dataclass(frozen=True)
class Sample:
    """A frame to score: its index, its time in seconds, and BGR uint8 (height, width, 3)."""

    index: int
    seconds: float
    image: np.ndarray


@dataclass
class Opened:
    """An open source.

    Attributes:
        source: the path, bytes, file object, picture or frames passed by the caller
        name: name of the file, for people
        kind: "picture" or "video"
        sha256, size: hash and number of its bytes; None if it does not have bytes
        notes: sentences about problems; may grow while frames are read
        seconds: time of the last frame that was read
        picture, video, frames: the content; one of the three is set
        state: state of the file, see read_state
        looked_at: indices of the video streams that were read, if more than one
    """

    source: object
    name: str
    kind: Literal["picture", "video"]
    sha256: str | None = None
    size: int | None = None
    notes: list[str] = field(default_factory=list)
    picture: np.ndarray | None = None
    video: Video | None = None
    frames: Frames | None = None
    seconds: float = 0.0
    state: tuple[int, ...] | None = None
    looked_at: set[int] = field(default_factory=set)

    def sample(self, rate: float, fewest: int) -> Iterator[Sample]:
        """Yield the frames to score: `rate` frames per second, and more of a short video.

        If a video yields too few frames for a verdict, it is read again for frames in between, as
        the length in its header may be wrong.
        """
        if self.picture is not None:
            yield Sample(0, 0.0, self.picture)
        elif self.video is None:
            yield from self._check_frames()
        else:
            yield from self._sample_video(self.video, rate, EXTRA_FRAMES * fewest)

    def _sample_video(self, video: Video, rate: float, wanted: int) -> Iterator[Sample]:
        taken: set[int] = set()
        for _ in range(2):
            for frame in video.sampled(rate):
                if frame.image is not None and frame.index not in taken:
                    taken.add(frame.index)
                    yield Sample(frame.index, frame.seconds, frame.image)
            self.seconds = video.seen_seconds
            if len(taken) >= min(wanted, video.seen_frames) or not video.seen_seconds:
                break
            rate = wanted / video.seen_seconds * (video.seen_frames - 1) / video.seen_frames
        if not taken:
            raise SourceUnreadableError("has no frame that decodes")

    def sample_at(self, times: list[float], known: Collection[float]) -> Iterator[Sample]:
        """Yield the frames at more times, except at known times.

        In a gap of the video, the frame of a new time is one that is known. Yield nothing if the
        frames can be read only once.
        """
        if self.video is not None and times:
            video = self.video
            seen = video.seen_frames, video.seen_seconds, video.lost_frames
            for frame in video.sampled(times=times):
                if frame.image is not None and frame.seconds not in known:
                    yield Sample(frame.index, frame.seconds, frame.image)
            video.seen_frames, video.seen_seconds, video.lost_frames = seen

    def open_streams(self) -> Iterator[Video]:
        """Open the further video streams of a file, one after another."""
        if self.video is not None:
            first = self.video
            for stream in first.streams:
                if stream.index != first.stream:
                    self.looked_at |= {first.stream, stream.index}
                    yield Video(first.source, stream.index, most_pixels=first.most_pixels)

    def guess_count(self, rate: float, fewest: int) -> int | None:
        """Estimate the number of frames that `sample` yields; None if the length is unknown."""
        if self.picture is not None:
            return 1
        if self.video is None or not self.video.claimed_seconds:
            return None
        few = EXTRA_FRAMES * fewest
        even = int(self.video.claimed_seconds * rate) + 1
        claimed = self.video.claimed_frames or even
        return max(1, min(max(even, few), claimed))

    def find_hindrance(self) -> str:
        """Return why a verdict is not possible, regardless of the scores; empty if it is."""
        notes = {*self.notes, *(self.video.notes if self.video else ())}
        # In HDR10, two of five real people score in the fake range, although the colour difference
        # is not larger than the change by compression.
        if {HDR_CONVERTED, HDR_AS_IT_IS, HDR_PICTURE} & notes:
            return "it has HDR colours, and the model was not trained on them"
        if self.video is None:
            return ""
        claimed = self.video.claimed_frames
        if self.video.missing() and self.video.count_good_frames() < LEAST_SEEN * claimed:
            return "less than half of the video could be read"
        return ""

    def list_notes(self) -> list[str]:
        """Return notes about the file for the reader of the result, after reading all frames."""
        notes = list(self.notes)
        if self.video is not None:
            missing = self.video.missing()
            known = tuple(f"video stream {index} (" for index in self.looked_at)
            notes += [note for note in self.video.notes if not note.startswith(known)]
            notes += [f"the video {missing}"] if missing else []
        return notes

    def check_unchanged(self) -> None:
        """Check that the file has not changed since it was hashed.

        Raises:
            SourceChangedError: the file has changed
        """
        if isinstance(self.source, Path) and self.state != read_state(self.source):
            raise SourceChangedError("the file changed while it was read; check it again")

    def _check_frames(self) -> Iterator[Sample]:
        last = -1.0
        for index, given in enumerate(self.frames or ()):
            try:
                seconds, image = given
                seconds = float(seconds)
            except (TypeError, ValueError) as error:
                raise SourceUnreadableError(
                    f"frame {index} is not a pair of time in seconds and image"
                ) from error
            if not last < seconds < float("inf"):
                raise SourceUnreadableError(f"frame {index} is not later than the one before it")
            last = self.seconds = seconds
            yield Sample(index, seconds, check_image(image))
        if last < 0:
            raise SourceUnreadableError("has no frames")


def open_source(source: Source, name: str | None, most_pixels: int) -> Opened:
    """Open a source, and hash its bytes.

    Raises:
        DetectionError: the source cannot be opened
    """
    if isinstance(source, str | Path):
        return open_file(Path(source), name, most_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        return open_bytes(bytes(source), name or "file", most_pixels)
    if isinstance(source, np.ndarray):
        picture = check_image(source)
        return Opened(source, name or "picture", "picture", picture=picture)
    if hasattr(source, "read"):
        file = cast(BinaryIO, source)
        return open_bytes(read_all(file), name or name_of(file), most_pixels)
    if isinstance(source, Iterable):
        return Opened(source, name or "frames", "video", frames=source)
    raise SourceUnreadableError(
        f"a {type(source).__name__} is not a source; give a path, bytes, a file or frames"
    )


def open_file(path: Path, name: str | None, most_pixels: int) -> Opened:
    """Open a file on disk.

    Raises:
        DetectionError: the file cannot be opened
    """
    try:
        check_plain_file(path)
        state = read_state(path)
        if check_kind(path) == "picture":
            data = path.read_bytes()
            opened = open_bytes(data, name or str(path), most_pixels)
        else:
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            video = open_video(path, most_pixels)
            opened = Opened(path, name or str(path), "video", sha256, path.stat().st_size)
            opened.video = video
    except (DetectionError, MemoryError):
        raise
    except (OSError, ValueError) as error:
        raise translate(error) from error
    opened.source, opened.state = path, state
    return opened


def open_bytes(data: bytes, name: str, most_pixels: int) -> Opened:
    """Open the bytes of a file.

    Raises:
        DetectionError: the bytes are not a readable video or picture
    """
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        if check_kind(data) == "picture":
            opened = Opened(data, name, "picture", sha256, len(data))
            opened.picture = read_picture(data, most_pixels, opened.notes)
        else:
            opened = Opened(data, name, "video", sha256, len(data))
            opened.video = open_video(data, most_pixels)
    except (OSError, ValueError) as error:
        raise translate(error) from error
    return opened


def open_video(source: Path | bytes, most_pixels: int) -> Video:
    """Open a video.

    Raises:
        SourceTooLargeError: the frames have too many pixels
        ValueError, OSError: the video cannot be read
    """
    video = Video(source, most_pixels=most_pixels)
    for stream in video.streams:
        if stream.index == video.stream and stream.width * stream.height > most_pixels:
            size = f"{stream.width:,} x {stream.height:,} pixels"
            raise SourceTooLargeError(f"has frames of {size}, more than --most-pixels allows")
    return video


def check_kind(source: Path | bytes) -> Literal["picture", "video"]:
    """Return the kind of a file.

    Raises:
        SourceUnreadableError: the file is neither a picture nor a video
    """
    kind = kind_of(source)
    if kind.name is None:
        raise SourceUnreadableError(kind.reason)
    return kind.name


def read_all(file: BinaryIO) -> bytes:
    """Read a file object from its current position to its end."""
    data = file.read()
    if not isinstance(data, bytes):
        raise SourceUnreadableError("the file is open as text; open it with mode 'rb'")
    return data


def name_of(file: BinaryIO) -> str:
    """Return the name of an open file, without its folder."""
    name = getattr(file, "name", None)
    return Path(name).name if isinstance(name, str) else "file"


def check_image(image: object) -> np.ndarray:
    """Check an image passed by the caller, and return it as a contiguous array.

    Raises:
        SourceUnreadableError: the image is not BGR uint8 (height, width, 3)
    """
    if not isinstance(image, np.ndarray):
        raise SourceUnreadableError(f"a frame is a {type(image).__name__}, not a NumPy array")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise SourceUnreadableError(
            f"a frame is {image.dtype} {image.shape}; give BGR uint8 (height, width, 3)"
        )
    return np.ascontiguousarray(image)


def read_state(path: Path) -> tuple[int, ...]:
    """Return properties that change with a file: device, inode, size and times."""
    try:
        state = path.stat()
    except OSError:
        return ()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def translate(error: Exception) -> DetectionError:
    """Convert an error of a reader to a DetectionError."""
    if isinstance(error, DetectionError):
        return error
    if isinstance(error, FileNotFoundError):
        return SourceNotFoundError(str(error))
    words = getattr(error, "strerror", None) or str(error)
    kind = SourceTooLargeError if "pixels" in words else SourceUnreadableError
    return kind(words)


def batch_frames(frames: Iterator[Sample], most: int, most_pixels: int) -> Iterator[list[Sample]]:
    """Yield lists of at most `most` frames and `most_pixels` pixels, but at least one frame."""
    batch: list[Sample] = []
    pixels = 0
    for frame in frames:
        size = frame.image.shape[0] * frame.image.shape[1]
        if batch and (len(batch) == most or pixels + size > most_pixels):
            yield batch
            batch, pixels = [], 0
        batch.append(frame)
        pixels += size
    if batch:
        yield batch
