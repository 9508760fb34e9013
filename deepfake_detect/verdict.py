"""Determine verdicts from the scores of faces: for each track, and for a file with several tracks.

The model has two thresholds of p_fake (decision.py): a face is likely fake from the first on,
likely real below the second, and undecided in between. More faces or more seconds give chance more
opportunities, so the thresholds rise with them and the false alarm rate stays as stated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from deepfake_detect.decision import Decision
from deepfake_detect.detection_settings import DetectionSettings
from deepfake_detect.result import FAKE, NO_FACE, REAL, UNDECIDED, Face, Interval, Part, Track
from deepfake_detect.result import Verdict as Word

# Increase of a threshold's logit when the chances of a false alarm grow by a factor of e. The
# logits of real faces have an exponential tail: on 1,437 validation crops, the thresholds for 1, 2,
# 3, 5, 10 and 20 faces follow a line with this slope. Seconds of one video are more alike than
# people: videos of 12 people, cut into blocks and joined into videos of various lengths, give the
# second slope for 8 windows, and a smaller slope for longer videos.
RISE_BY_FACES = 0.68
RISE_BY_WINDOWS = 0.25
# Default for a decision without a threshold for parts: a part must score this much more than a
# whole video. On the same crops, 2 of 100 do.
PART_ABOVE_WHOLE = 1.3  # logits
BURST, BURST_SECONDS = 3, 0.75  # frames, and seconds, that can forbid "likely real"
ADVICE = "try --frames-per-second 10"


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of p_fake for one file.

    Attributes:
        fake: a face is likely fake from this value on
        real: a face is likely real below this value
        part: a video is likely fake if its most suspicious part reaches this value
    """

    fake: float
    real: float
    part: float


@dataclass(frozen=True)
class Judgement:
    """The verdict on a file.

    Attributes:
        verdict, reason: see Result
        track: the track that determines the verdict; None without a face
        tracks: all tracks, each with its own verdict
        thresholds: the thresholds for the number of faces in the file
    """

    verdict: Word
    reason: str
    track: Track | None
    tracks: tuple[Track, ...]
    thresholds: Thresholds


def shift_threshold(threshold: float, logits: float) -> float:
    """Return the threshold of p_fake after adding `logits` to its logit."""
    if not 0 < threshold < 1:
        return threshold
    return 1 / (1 + math.exp(-math.log(threshold / (1 - threshold)) - logits))


def raise_threshold(threshold: float, chances: float, slope: float) -> float:
    """Return the threshold of p_fake for several chances of a false alarm."""
    return shift_threshold(threshold, slope * math.log(max(1, chances)))


def judge_file(
    tracks: Sequence[Sequence[Face]],
    kind: Literal["picture", "video"],
    decision: Decision,
    settings: DetectionSettings,
    frames_scored: int,
    hindrance: str = "",
) -> Judgement:
    """Judge the faces of a file, and the file by its most suspicious one.

    Args:
        tracks: the faces of each track, in order of time
        kind: "picture" or "video"; a picture has its own thresholds and does not have an interval
        decision: the model's decision
        settings: fewest_frames, resamples and window are used
        frames_scored: number of frames, with and without faces
        hindrance: why a verdict is not possible for this file, regardless of the scores; or empty
    """
    if not tracks:
        return Judgement(NO_FACE, "", None, (), find_thresholds(decision, kind, []))
    even = [pick_even(faces, settings) for faces in tracks]
    intervals = [find_interval(faces, kind, settings) for faces in even]
    doubts = [doubt_track(faces, kind, decision, settings, frames_scored) for faces in tracks]
    reach = [
        interval[0] if interval else mean_score(faces)
        for faces, interval, doubt in zip(even, intervals, doubts, strict=True)
        if not doubt
    ]
    thresholds = find_thresholds(decision, kind, reach)
    judged = tuple(
        judge_track(number, faces, interval, doubt, thresholds, settings)
        for number, (faces, interval, doubt) in enumerate(
            zip(tracks, intervals, doubts, strict=True), start=1
        )
    )
    worst = pick_worst(judged)
    verdict, reason = worst.verdict, worst.reason
    if verdict == REAL and (unknown := doubt_rest(judged, decision, thresholds)):
        verdict, reason = UNDECIDED, unknown
    if hindrance:
        verdict, reason = UNDECIDED, hindrance
    return Judgement(verdict, reason, worst, judged, thresholds)


def find_thresholds(decision: Decision, kind: str, reach: Sequence[float]) -> Thresholds:
    """Return the thresholds for the number of faces that can be judged.

    The k-th most suspicious of n faces is compared with the threshold for n / k faces: one
    suspicious face among many must be very suspicious, but many suspicious faces need not be more
    suspicious than a single face (Simes, "An Improved Bonferroni Procedure for Multiple Tests of
    Significance", 1986).

    Args:
        decision: the model's decision
        kind: "picture" or "video"
        reach: for each such face, the lower end of its interval, or its score
    """
    fake, real = decision.thresholds_of(kind)
    part = decision.part_threshold
    if part is None:
        part = shift_threshold(fake, PART_ABOVE_WHOLE)
    count = max(1, len(reach))
    raised = raise_threshold(fake, count, RISE_BY_FACES)
    for place, score in enumerate(sorted(reach, reverse=True), start=1):
        threshold = raise_threshold(fake, count / place, RISE_BY_FACES)
        if score >= threshold:
            raised = threshold
    return Thresholds(raised, real, raise_threshold(part, count, RISE_BY_FACES))


def judge_track(
    number: int,
    faces: Sequence[Face],
    interval: Interval | None,
    doubt: str,
    thresholds: Thresholds,
    settings: DetectionSettings,
) -> Track:
    """Judge one track by the mean of its frames, and by its most suspicious part."""
    p_fake = mean_score(pick_even(faces, settings))
    verdict, reason = decide(p_fake, interval or (p_fake, p_fake), thresholds)
    part = None
    if doubt:
        verdict, reason = UNDECIDED, doubt
    elif verdict != FAKE and interval:
        part, verdict, reason = judge_part(faces, thresholds, settings, verdict, reason)
    return Track(
        number=number,
        verdict=verdict,
        reason=reason,
        p_fake=round(p_fake, 4),
        interval=interval and (round(interval[0], 4), round(interval[1], 4)),
        part=part,
        judged=not doubt,
        faces=tuple(faces),
    )


def pick_even(faces: Sequence[Face], settings: DetectionSettings) -> Sequence[Face]:
    """Return the faces of evenly sampled frames, or all faces if there are too few.

    More frames from suspicious seconds must not raise the mean.
    """
    even = [face for face in faces if not face.extra]
    return even if len(even) >= settings.fewest_frames else faces


def mean_score(faces: Sequence[Face]) -> float:
    """Return the mean p_fake of faces, in 0..1."""
    return float(np.mean([face.p_fake for face in faces]))


def find_interval(faces: Sequence[Face], kind: str, settings: DetectionSettings) -> Interval | None:
    """Return the bootstrap 95 % interval of the mean; None for too few frames.

    Efron, 1979. Neighbouring frames are similar, so the interval is rather too narrow.
    """
    if kind == "picture" or len(faces) < settings.fewest_frames:
        return None
    scores = np.array([face.p_fake for face in faces])
    drawn = np.random.default_rng(1).choice(scores, (settings.resamples, len(scores)))
    low, high = np.percentile(drawn.mean(axis=1), (2.5, 97.5)).tolist()
    return low, high


def doubt_track(
    faces: Sequence[Face],
    kind: str,
    decision: Decision,
    settings: DetectionSettings,
    frames_scored: int,
) -> str:
    """Return why a face cannot be judged; empty if it can."""
    doubts = []
    if kind == "video" and len(faces) < settings.fewest_frames:
        doubts.append(
            f"the face was found in only {len(faces)} of {frames_scored:,} frames, and "
            f"{settings.fewest_frames} are needed ({ADVICE})"
        )
    return "; ".join([*doubts, *doubt_kind(faces, decision)])


def doubt_kind(faces: Sequence[Face], decision: Decision) -> list[str]:
    """Return why most of the faces are outside the training range: too small, or too soft."""
    sides = np.array([face.crop_side for face in faces])
    if np.mean(sides < decision.smallest_face) > 0.5:
        return [
            f"the face is smaller than the model can judge ({np.median(sides):.0f} pixels, and "
            f"{decision.smallest_face} are needed)"
        ]
    sharpness = np.array([face.sharpness for face in faces])
    if np.mean(sharpness < decision.least_sharpness) > 0.5:
        return [
            "the face is blurrier than the model can judge (sharpness "
            f"{np.median(sharpness):.3g}, and {decision.least_sharpness:.3g} is needed)"
        ]
    return []


def decide(p_fake: float, interval: Interval, thresholds: Thresholds) -> tuple[Word, str]:
    """Return the verdict for a score and its interval, and the reason if it is undecided."""
    low, high = interval
    if low >= thresholds.fake:
        return FAKE, ""
    if high < thresholds.real:
        return REAL, ""
    if p_fake >= thresholds.fake:
        return UNDECIDED, "the score is in the fake range, but not clearly"
    if p_fake < thresholds.real:
        return UNDECIDED, "the score is in the real range, but not clearly"
    return UNDECIDED, "the score is between the real and the fake range"


# --- The most suspicious part ---------------------------------------------------------------------


def judge_part(
    faces: Sequence[Face],
    thresholds: Thresholds,
    settings: DetectionSettings,
    verdict: Word,
    reason: str,
) -> tuple[Part | None, Word, str]:
    """Check whether the most suspicious seconds of a face change its verdict.

    Returns:
        the part, if it is suspicious, then the verdict and its reason
    """
    seconds = np.array([face.seconds for face in faces])
    scores = np.array([face.p_fake for face in faces])
    windows = (seconds[-1] - seconds[0]) / settings.window
    fake = raise_threshold(thresholds.part, windows, RISE_BY_WINDOWS)
    suspicious = raise_threshold(thresholds.fake, windows, RISE_BY_WINDOWS)
    window = find_window(seconds, scores, settings.window, settings.fewest_frames)
    if scores[window].mean() >= fake:
        window = grow_window(window, scores, suspicious)
        return describe_part(window, seconds, scores), FAKE, ""
    burst = find_window(seconds, scores, BURST_SECONDS, BURST)
    if verdict == REAL and scores[burst].mean() >= fake:
        window = burst
    if scores[window].mean() < suspicious:
        return None, verdict, reason
    if verdict == REAL:
        verdict, reason = UNDECIDED, "most of it looks real, but a part is suspicious"
    window = grow_window(window, scores, suspicious)
    return describe_part(window, seconds, scores), verdict, reason


def find_window(seconds: np.ndarray, scores: np.ndarray, length: float, fewest: int) -> slice:
    """Return the window of frames with the highest mean.

    Args:
        seconds, scores: time and score of each frame, in order of time
        length: seconds of a window; a window with too few frames is extended
        fewest: minimum frames of a window; at most the number of frames
    """
    fewest = min(fewest, len(scores))
    starts = np.arange(len(scores) - fewest + 1)
    ends = np.searchsorted(seconds, seconds[starts] + length + 1e-6).clip(starts + fewest)
    sums = np.concatenate(([0.0], scores.cumsum()))
    best = int(((sums[ends] - sums[starts]) / (ends - starts)).argmax())
    return slice(int(starts[best]), int(ends[best]))


def grow_window(window: slice, scores: np.ndarray, least: float) -> slice:
    """Grow or shrink a window to begin and end at frames with a score of at least `least`."""
    first, last = window.start, window.stop
    while first > 0 and scores[first - 1] >= least:
        first -= 1
    while last < len(scores) and scores[last] >= least:
        last += 1
    above = np.flatnonzero(scores[first:last] >= least)
    return slice(first + int(above[0]), first + int(above[-1]) + 1) if len(above) else window


def describe_part(window: slice, seconds: np.ndarray, scores: np.ndarray) -> Part:
    """Return the part of a file that a window of its frames covers."""
    first, last = float(seconds[window][0]), float(seconds[window][-1])
    return Part(first, last, round(float(scores[window].mean()), 4), window.stop - window.start)


# --- Several faces --------------------------------------------------------------------------------


def pick_worst(tracks: Sequence[Track]) -> Track:
    """Return the most suspicious track that can be judged; it determines the file's verdict."""
    order = [REAL, UNDECIDED, FAKE]
    judged = [track for track in tracks if track.judged] or tracks
    return max(judged, key=lambda track: (order.index(track.verdict), track.p_fake))


def doubt_rest(tracks: Sequence[Track], decision: Decision, thresholds: Thresholds) -> str:
    """Return why faces that could not be judged prevent "likely real"; empty if they do not.

    They prevent it if they are more than half of all faces, or if one is suspicious. A face that is
    only too short is suspicious at the usual threshold; a face outside the training range, or in a
    single frame, must reach the threshold for a part.
    """
    rest = [track for track in tracks if not track.judged]
    if not rest:
        return ""
    count = f"{len(rest)} of {len(tracks)} faces could not be judged"
    if 2 * sum(len(track.faces) for track in rest) > sum(len(track.faces) for track in tracks):
        return f"{count}: {rest[0].reason}"
    for track in rest:
        known = len(track.faces) > 1 and not doubt_kind(track.faces, decision)
        if track.p_fake >= (thresholds.fake if known else thresholds.part):
            return f"{count}, and face {track.number} is suspicious: {track.reason}"
    return ""
