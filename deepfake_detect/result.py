"""The result of a check: faces in frames, tracks of one person, and the verdict on the file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    import numpy as np

    from deepfake_detect.provenance import Provenance

SCHEMA = 2  # version of to_dict(); raised when a key changes its meaning or is removed
FAKE: Final = "likely fake"
REAL: Final = "likely real"
UNDECIDED: Final = "undecided"
NO_FACE: Final = "no face"
NOT_CHECKED: Final = "not checked"
Verdict = Literal["likely fake", "likely real", "undecided", "no face", "not checked"]
Interval = tuple[float, float]


def to_score(p_fake: float) -> int:
    """Return the score for people, 0 to 100; it is not a probability."""
    return round(100 * p_fake)


@dataclass(frozen=True)
class Face:
    """A face in a frame.

    Attributes:
        frame: index of the frame, from 0
        seconds: time since the first frame of the video
        x, y, width, height: box in pixels of the displayed frame; a frame of another size than the
            first is fitted into that size, see display.fit_box
        confidence: the face detector's confidence, 0 to 1
        crop_side: shorter side of the scored crop, in pixels
        sharpness: see faces.measure_sharpness
        p_fake: 0 to 1, calibrated
        extra: True if the frame is from a closer look at a few seconds; the mean of a track omits
            such faces if it has enough others
    """

    frame: int
    seconds: float
    x: int
    y: int
    width: int
    height: int
    confidence: float
    crop_side: int
    sharpness: float
    p_fake: float
    extra: bool = False


@dataclass(frozen=True)
class Part:
    """The most suspicious seconds of a track.

    Attributes:
        first_seconds, last_seconds: times of its first and last scored frame
        p_fake: mean over its frames
        frames: number of scored frames
    """

    first_seconds: float
    last_seconds: float
    p_fake: float
    frames: int


@dataclass(frozen=True)
class Track:
    """One person in a video, or one face in a picture.

    Attributes:
        number: from 1, by first appearance
        verdict: verdict on this face alone
        reason: why the verdict is "undecided"; otherwise empty
        p_fake: mean over its frames
        interval: bootstrap 95 % interval of the mean; None for a picture or too few frames
        part: its most suspicious seconds, if only a part is suspicious
        judged: False if the face is too small, too blurred or too short to judge
        faces: one for each scored frame with this face
    """

    number: int
    verdict: Verdict
    reason: str
    p_fake: float
    interval: Interval | None
    part: Part | None
    judged: bool
    faces: tuple[Face, ...] = field(repr=False)

    @property
    def score(self) -> int:
        """Score for people, 0 to 100; not a probability."""
        return to_score(self.p_fake)

    @property
    def first_seconds(self) -> float:
        """Time of the first scored frame with this face, in seconds."""
        return self.faces[0].seconds

    @property
    def last_seconds(self) -> float:
        """Time of the last scored frame with this face, in seconds."""
        return self.faces[-1].seconds

    def to_dict(self) -> dict:
        """Return the track as plain values for JSON."""
        return {
            "track": self.number,
            "verdict": self.verdict,
            "reason": self.reason,
            "judged": self.judged,
            "score": self.score,
            "p_fake": self.p_fake,
            "interval_95": self.interval and list(self.interval),
            "part": self.part and asdict(self.part),
            "frames": len(self.faces),
            "first_seconds": self.first_seconds,
            "last_seconds": self.last_seconds,
            "faces": [asdict(face) for face in self.faces],
        }


@dataclass(frozen=True)
class Evidence:
    """The pictures and the source, which a report and a marked copy need besides the result.

    Attributes:
        source: source of the check
        state: state of the file at the check, see source.read_state; None without a file
        stream: index of the checked video stream; None for a picture
        crops: the most suspicious crops, RGB uint8 (n, size, size, 3), worst first
        heat: contribution of each crop region to the logit of p_fake, float32 (n, k, k)
        crop_faces: track number and face of each crop
        still: the most suspicious frame, BGR uint8, at most 1280 pixels wide; None without a face
        still_seconds: time of that frame
    """

    source: object
    state: tuple[int, ...] | None
    stream: int | None
    crops: np.ndarray
    heat: np.ndarray
    crop_faces: tuple[tuple[int, Face], ...]
    still: np.ndarray | None
    still_seconds: float


@dataclass(frozen=True)
class Result:
    """The verdict on a file with its evidence; the most suspicious of several faces determines it.

    Attributes:
        name: name of the file, as given
        kind: "picture" or "video"
        verdict: "likely fake", "likely real", "undecided" or "no face"
        reason: why the verdict is "undecided" or "no face"; otherwise empty
        p_fake: 0 to 1; None without a face. `score` is 0 to 100
        interval: 95 % interval of p_fake, or None; see Track
        part: the most suspicious seconds, if only a part is suspicious
        track: number of the track that determines the verdict
        tracks: all tracks, by first appearance
        threshold, real_below, part_threshold: thresholds of p_fake for this number of faces
        frames_scored: number of scored frames
        width, height: size of the displayed frames, in pixels; of the first one if it changes
        seconds: duration of the part of the video that was read; 0 for a picture
        notes: parts that were not checked, and other notes for the reader
        provenance: the file's statements about itself
        sha256, size: hash and number of the scored bytes; None for a source without bytes
        model, model_sha256: name and hash of the model file
        version: version of this project
        settings: settings of the check
        date: date of the check, ISO 8601
    """

    name: str
    kind: Literal["picture", "video"]
    verdict: Verdict
    reason: str
    p_fake: float | None
    interval: Interval | None
    part: Part | None
    track: int | None
    tracks: tuple[Track, ...]
    threshold: float
    real_below: float
    part_threshold: float | None
    frames_scored: int
    width: int
    height: int
    seconds: float
    notes: tuple[str, ...]
    provenance: Provenance | None
    sha256: str | None
    size: int | None
    model: str
    model_sha256: str
    version: str
    settings: dict
    date: str
    evidence: Evidence | None = field(default=None, repr=False, compare=False)

    @property
    def score(self) -> int | None:
        """Score for people, 0 to 100; not a probability. None without a face."""
        return None if self.p_fake is None else to_score(self.p_fake)

    @property
    def faces(self) -> tuple[Face, ...]:
        """The faces of all tracks."""
        return tuple(face for track in self.tracks for face in track.faces)

    @property
    def faces_judged(self) -> int:
        """Number of tracks that could be judged."""
        return sum(track.judged for track in self.tracks)

    def to_dict(self) -> dict:
        """Return the result without pictures as plain values: the JSON of 06-detect-deepfake.py."""
        return {
            "schema": SCHEMA,
            "version": self.version,
            "file": self.name,
            "kind": self.kind,
            "verdict": self.verdict,
            "reason": self.reason,
            "score": self.score,
            "p_fake": self.p_fake,
            "interval_95": self.interval and list(self.interval),
            "part": self.part and asdict(self.part),
            "track": self.track,
            "faces_judged": self.faces_judged,
            "faces_found": len(self.tracks),
            "threshold": self.threshold,
            "real_below": self.real_below,
            "part_threshold": self.part_threshold,
            "frames_scored": self.frames_scored,
            "width": self.width,
            "height": self.height,
            "seconds": self.seconds,
            "notes": list(self.notes),
            "provenance": self.provenance and self.provenance.to_dict(),
            "sha256": self.sha256,
            "bytes": self.size,
            "model": self.model,
            "model_sha256": self.model_sha256,
            "settings": self.settings,
            "date": self.date,
            "tracks": [track.to_dict() for track in self.tracks],
        }


@dataclass(frozen=True)
class Failure:
    """A file that could not be checked, and the reason.

    Attributes:
        name: name of the file, as given
        reason: the reason in one sentence
        error: the exception
    """

    name: str
    reason: str
    error: Exception = field(repr=False)
    verdict: Verdict = NOT_CHECKED

    def to_dict(self) -> dict:
        """Return the failure as plain values: the JSON of 06-detect-deepfake.py for such a file."""
        return {
            "schema": SCHEMA,
            "file": self.name,
            "verdict": self.verdict,
            "reason": self.reason,
            "error": type(self.error).__name__,
        }


def count_verdicts(results: Iterable[Result | Failure]) -> dict[str, int]:
    """Count the results for each of the five verdicts, in their usual order."""
    verdicts = [result.verdict for result in results]
    words = (FAKE, REAL, UNDECIDED, NO_FACE, NOT_CHECKED)
    return {word: verdicts.count(word) for word in words if word in verdicts}
