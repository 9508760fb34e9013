"""Collect the scored faces of a file, join them into tracks, and find moments for a closer look."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import cv2
import numpy as np

from deepfake_detect.decision import Decision
from deepfake_detect.detection_settings import DetectionSettings
from deepfake_detect.display import fit_box, fit_image
from deepfake_detect.result import Face
from deepfake_detect.search import Found
from deepfake_detect.source import Sample
from deepfake_detect.tracks import join_tracks
from deepfake_detect.verdict import doubt_kind, find_thresholds, mean_score

SECOND_LOOK = (0, 3, 9)  # indices of the scored frames for a second search, if no face was found
STILL_WIDTH = 1280  # pixels; the report shows the most suspicious frame at this width
MOST_EXTRA = 60  # limit of extra frames; in a long video, the number already scored
CLOSER = 4  # factor for the frames per second in a short shot

Scored: TypeAlias = tuple[Found, float, np.ndarray]  # a face, its p_fake and its evidence


@dataclass
class ScoredFrames:
    """The frames of a file that were scored, and the faces in them.

    Attributes:
        explained: number of the most suspicious faces to keep with their crops
        size: width and height of the first frame
        times: seconds of the frames
        faces: each face and its look, see faces.measure_look
        worst: the most suspicious faces, with the crop and the evidence of each
        first: frames for a second search, if no face was found
        unsure: highest confidence below the minimum for a face
        still, still_face: most suspicious frame, reduced, and its face
    """

    explained: int
    size: tuple[int, int] | None = None
    times: list[float] = field(default_factory=list)
    faces: list[tuple[Face, np.ndarray]] = field(default_factory=list)
    worst: list[tuple[Face, np.ndarray, np.ndarray]] = field(default_factory=list)
    first: list[np.ndarray] = field(default_factory=list)
    unsure: float = 0.0
    still: np.ndarray | None = None
    still_face: Face | None = None

    def add(self, frame: Sample, found: Sequence[Scored]) -> None:
        """Add a frame with its scored faces."""
        self.size = self.size or frame.image.shape[1::-1]
        if found:
            self.first.clear()
        elif not self.faces and len(self.times) in SECOND_LOOK:
            self.first.append(frame.image)
        self.times.append(frame.seconds)
        for face, p_fake, evidence in found:
            row = self._describe(frame, face, p_fake)
            self.faces.append((row, face.look))
            if self.still_face is None or p_fake > self.still_face.p_fake:
                self.still, self.still_face = shrink(fit_image(frame.image, self.size)), row
            self.worst.append((row, face.crop, evidence))
        self._keep_worst()

    def merge(self, more: ScoredFrames) -> None:
        """Add the frames of a closer look, and mark their faces as extra."""
        extra = {id(face): replace(face, extra=True) for face, _ in more.faces}
        self.times += more.times
        self.faces += [(extra[id(face)], look) for face, look in more.faces]
        self.worst += [(extra[id(face)], crop, places) for face, crop, places in more.worst]
        self._keep_worst()
        best, other = self.still_face, more.still_face
        if other and (best is None or other.p_fake > best.p_fake):
            self.still, self.still_face = more.still, other

    def join(self, settings: DetectionSettings) -> list[list[Face]]:
        """Join the faces into tracks by first appearance, with the faces in order of time.

        The evenly sampled frames determine the tracks; the faces of a closer look are added to
        these tracks, or form new ones.
        """
        faces = sorted(self.faces, key=lambda one: one[0].seconds)
        even = [one for one in faces if not one[0].extra]
        numbers = self._number(even, settings)
        tracks: list[list[Face]] = [[] for _ in range(max(numbers, default=0))]
        for (face, _), number in zip(even, numbers, strict=True):
            tracks[number - 1].append(face)
        if len(even) == len(faces):
            return tracks
        track_of = {id(face): track for track in tracks for face in track}
        groups = self._number(faces, settings)
        known: dict[int, list[Face]] = {group: [] for group in groups}
        for (face, _), group in zip(faces, groups, strict=True):
            if not face.extra:
                known[group].append(face)
        added: dict[int, list[Face]] = {}
        for (face, _), group in zip(faces, groups, strict=True):
            if face.extra and known[group]:
                gaps = [abs(one.seconds - face.seconds) for one in known[group]]
                track_of[id(known[group][int(np.argmin(gaps))])].append(face)
            elif face.extra:
                added.setdefault(group, []).append(face)
        tracks += added.values()
        for track in tracks:
            track.sort(key=lambda face: face.seconds)
        return sorted(tracks, key=lambda track: track[0].seconds)

    def _describe(self, frame: Sample, face: Found, p_fake: float) -> Face:
        """Return a face as a row of the result, in pixels of the first frame."""
        box = fit_box(face.box, frame.image.shape[1::-1], self.size)
        x, y, width, height = map(round, box)
        return Face(
            frame=frame.index,
            seconds=round(frame.seconds, 3),
            x=x,
            y=y,
            width=width,
            height=height,
            confidence=round(face.confidence, 6),
            crop_side=face.crop_side,
            sharpness=round(face.sharpness, 2),
            p_fake=round(p_fake, 6),
        )

    def _keep_worst(self) -> None:
        self.worst.sort(key=lambda one: -one[0].p_fake)
        del self.worst[self.explained :]

    def _number(
        self, faces: Sequence[tuple[Face, np.ndarray]], settings: DetectionSettings
    ) -> list[int]:
        """Return the track number of each face; the faces are in order of time."""
        if not faces:
            return []
        seconds = np.array([face.seconds for face, _ in faces])
        known = np.array(sorted(round(time, 3) for time in self.times))
        return join_tracks(
            seconds,
            np.array([(face.x, face.y, face.width, face.height) for face, _ in faces]),
            np.stack([look for _, look in faces]),
            np.searchsorted(known, seconds),
            least_overlap=settings.least_overlap,
            least_likeness=settings.least_likeness,
            longest_gap=settings.longest_gap,
        ).tolist()


def shrink(frame: np.ndarray) -> np.ndarray:
    """Reduce a frame to the width of the still in a report."""
    scale = STILL_WIDTH / frame.shape[1]
    if scale >= 1:
        return frame.copy()
    return cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


# --- A closer look --------------------------------------------------------------------------------


def find_moments(
    tracks: Sequence[Sequence[Face]],
    times: Sequence[float],
    decision: Decision,
    settings: DetectionSettings,
) -> list[float]:
    """Return the seconds of more frames to score, where too few frames were sampled.

    At two frames per second, a shot of 1.5 s has three frames, but a verdict needs five. A face
    that is suspicious for one second has only two suspicious frames.

    Args:
        tracks: the faces of each track, in order of time
        times: seconds of the frames that were scored
        decision: the model's decision
        settings: frames_per_second and fewest_frames are used
    """
    step = 1 / settings.frames_per_second
    wanted: set[float] = set()
    for faces in tracks:
        for first, last in list_short(faces, decision, settings.fewest_frames):
            first, last = max(0.0, first - step), last + step
            count = round((last - first) / step * CLOSER)
            wanted |= {round(time, 3) for time in np.linspace(first, last, count + 1).tolist()}
    taken = np.array(sorted(times))
    new = [time for time in sorted(wanted) if np.abs(taken - time).min() > step / CLOSER / 2]
    return new[: max(MOST_EXTRA, len(times))]


def list_short(
    faces: Sequence[Face], decision: Decision, fewest: int
) -> Iterator[tuple[float, float]]:
    """Yield the first and last second of a short track, or of suspicious runs in a long one."""
    if doubt_kind(faces, decision):
        return
    if len(faces) < fewest:
        if len(faces) > 1:
            yield faces[0].seconds, faces[-1].seconds
        return
    if mean_score(faces) >= decision.threshold:
        return
    least = find_thresholds(decision, "video", []).part
    for suspicious, run in itertools.groupby(faces, lambda face: face.p_fake >= least):
        some = list(run)
        if suspicious and len(some) < fewest:
            yield some[0].seconds, some[-1].seconds
