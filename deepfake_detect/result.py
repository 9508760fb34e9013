"""What a check gives: faces in frames, tracks of one person, and the verdict on the file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    import numpy as np

    from deepfake_detect.provenance import Provenance

SCHEMA = 2  # of to_dict(); it changes where a key changes its meaning or goes
FAKE: Final = "likely fake"
REAL: Final = "likely real"
UNDECIDED: Final = "undecided"
NO_FACE: Final = "no face"
NOT_CHECKED: Final = "not checked"
Verdict = Literal["likely fake", "likely real", "undecided", "no face", "not checked"]
Interval = tuple[float, float]


def to_score(p_fake: float) -> int:
    """Return the score that people read, 0 to 100; it is not a probability."""
    return round(100 * p_fake)


@dataclass(frozen=True)
class Face:
    """A face in a frame.

    Attributes:
        frame: the index of the frame, from 0
        seconds: when it is shown, from the first frame of the video
        x, y, width, height: its box in pixels of the frame as it is shown
        confidence: that it is a face, 0 to 1
        crop_side: pixels of the shorter side of the crop that was scored
        sharpness: as faces.measure_sharpness has it
        p_fake: 0 to 1, calibrated
        extra: from a closer look at a few seconds; the mean of a track needs no such faces where
            it has enough others
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
        first_seconds, last_seconds: of its first and last frame that was scored
        p_fake: the mean of its frames
        frames: how many were scored
    """

    first_seconds: float
    last_seconds: float
    p_fake: float
    frames: int


@dataclass(frozen=True)
class Track:
    """One person through a video, or a face of a picture.

    Attributes:
        number: from 1 on, in the order of appearance
        verdict: of this face alone
        reason: why it is undecided; else empty
        p_fake: the mean of its frames
        interval: the middle 95 % of the means of frames drawn again (bootstrap); None for a picture
            or too few frames
        part: its most suspicious seconds, where they alone give or forbid the verdict
        judged: False where the face is too small, too blurred or too short to be judged
        faces: one for each scored frame that it is seen in
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
        """The score that people read, 0 to 100; not a probability."""
        return to_score(self.p_fake)

    @property
    def first_seconds(self) -> float:
        """When the face is first seen, in seconds."""
        return self.faces[0].seconds

    @property
    def last_seconds(self) -> float:
        """When the face is last seen, in seconds."""
        return self.faces[-1].seconds

    def to_dict(self) -> dict:
        """Give all of it as plain values for JSON."""
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
    """What a report and a marked copy need besides: pictures, and where the frames come from.

    Attributes:
        source: what was checked
        state: of its file when it was checked, see source.read_state; None where there is none
        stream: of its video streams, the one that was checked; None of a picture
        crops: the most suspicious crops, RGB uint8 (n, size, size, 3), worst first
        heat: what each place of a crop added to the logit of p_fake, float32 (n, k, k)
        crop_faces: the track's number and the face of each crop
        still: the most suspicious frame, BGR uint8, at most 1280 pixels wide; None without a face
        still_seconds: when it is shown
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
    """The verdict on a file and all that it rests on; of its most suspicious face, where several.

    Attributes:
        name: of the file, as given
        kind: "picture" or "video"
        verdict: "likely fake", "likely real", "undecided" or "no face"
        reason: why it is undecided, or what was tried where no face was found; else empty
        p_fake: 0 to 1; None without a face. `score` is 0 to 100
        interval: 95 % interval of p_fake, or None; see Track
        part: the most suspicious seconds, where they alone give or forbid the verdict
        track: the number of the face that gives the verdict
        tracks: all faces, in the order of appearance
        threshold, real_below, part_threshold: what p_fake was held against, for so many faces
        frames_scored: how many
        width, height: of the frames as they are shown, in pixels
        seconds: how long the video is, as far as it was read; 0 of a picture
        notes: parts that were not checked, and other notes for the reader
        provenance: what the file says about itself
        sha256, size: of the bytes that were scored; None where there are none
        model, model_sha256: the name of the model's file, and of the bytes that scored
        version: of this project
        settings: what the result was made with
        date: when, ISO 8601
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
        """0 to 100, as people read it; not a probability."""
        return None if self.p_fake is None else to_score(self.p_fake)

    @property
    def faces(self) -> tuple[Face, ...]:
        """All faces of all tracks."""
        return tuple(face for track in self.tracks for face in track.faces)

    @property
    def faces_judged(self) -> int:
        """The number of faces that were fit for a verdict."""
        return sum(track.judged for track in self.tracks)

    def to_dict(self) -> dict:
        """Give all of it but the pictures as plain values: the JSON of 06-detect-deepfake.py."""
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
    """A file that could not be checked, and why.

    Attributes:
        name: of the file, as given
        reason: in a sentence
        error: what was raised
    """

    name: str
    reason: str
    error: Exception = field(repr=False)
    verdict: Verdict = NOT_CHECKED

    def to_dict(self) -> dict:
        """Give it as plain values: the JSON of 06-detect-deepfake.py for such a file."""
        return {
            "schema": SCHEMA,
            "file": self.name,
            "verdict": self.verdict,
            "reason": self.reason,
            "error": type(self.error).__name__,
        }


def count_verdicts(results: Iterable[Result | Failure]) -> dict[str, int]:
    """Count the results of each verdict, in the order of the five words."""
    verdicts = [result.verdict for result in results]
    words = (FAKE, REAL, UNDECIDED, NO_FACE, NOT_CHECKED)
    return {word: verdicts.count(word) for word in words if word in verdicts}
