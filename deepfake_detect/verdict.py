"""From the scores of faces to verdicts: on a face through time, and on a file with several.

Two thresholds of p_fake come with the model (decision.py): from one on a face is likely fake, below
the other likely real, undecided in between. A file that gives chance more opportunities, by more
faces or more seconds, is held against higher ones, so that a false alarm stays as rare as stated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from deepfake_detect.decision import Decision
from deepfake_detect.result import FAKE, NO_FACE, REAL, UNDECIDED, Face, Interval, Part, Track
from deepfake_detect.result import Verdict as Word

if TYPE_CHECKING:
    from deepfake_detect.detector import DetectionSettings

# By how much the logit of a threshold rises each time the chances of a false alarm grow by e. The
# logits of real faces have an exponential tail: on 1,437 crops of validation the thresholds of 1,
# 2, 3, 5, 10 and 20 faces lie on a line of this slope. The seconds of one video are more alike
# than people: videos of 12 people, cut into blocks and joined to videos of any length, give the
# second slope for 8 windows, and less for longer ones.
RISE_BY_FACES = 0.68
RISE_BY_WINDOWS = 0.25
# What a part must score more than a whole video, where the model's decision does not say it: on the
# same crops 2 of 100 do.
PART_ABOVE_WHOLE = 1.3  # logits
BURST, BURST_SECONDS = 3, 0.75  # frames, and seconds, that can forbid "likely real"
ADVICE = "try --frames-per-second 10"


@dataclass(frozen=True)
class Thresholds:
    """What p_fake is held against.

    Attributes:
        fake: from here on a face is likely fake
        real: below, it is likely real
        part: from here on the most suspicious part of one video makes it likely fake
    """

    fake: float
    real: float
    part: float


@dataclass(frozen=True)
class Judgement:
    """The verdict on a file.

    Attributes:
        verdict, reason: see Result
        track: the face that gives it; None without a face
        tracks: all faces, each with its own verdict
        thresholds: that were used, for so many faces
    """

    verdict: Word
    reason: str
    track: Track | None
    tracks: tuple[Track, ...]
    thresholds: Thresholds


def shift_threshold(threshold: float, logits: float) -> float:
    """Return a threshold of p_fake whose logit is higher by so much."""
    if not 0 < threshold < 1:
        return threshold
    return 1 / (1 + math.exp(-math.log(threshold / (1 - threshold)) - logits))


def raise_threshold(threshold: float, chances: float, slope: float) -> float:
    """Return the threshold of p_fake for more chances of a false alarm than one."""
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
        tracks: the faces of each track, in the order of time
        kind: a single picture has thresholds of its own, and no interval
        decision: of the model
        settings: fewest_frames, resamples and window are used
        frames_scored: how many, with and without faces
        hindrance: why no verdict can be given on this file, whatever the scores; or empty
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
    """Find the thresholds for a file with so many faces that can be judged.

    Of n faces the k-th most suspicious is held against the threshold for n / k: one suspicious face
    of many must be very suspicious, and many of them no more than one alone (Simes, "An Improved
    Bonferroni Procedure for Multiple Tests of Significance", 1986).

    Args:
        decision: of the model
        kind: "picture" or "video"
        reach: of each such face the lower end of its interval, or its score
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
    """Judge one face through the file: by the mean of its frames, and by a suspicious part."""
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
    """Pick the faces of evenly sampled frames, or all where those are too few.

    A closer look at suspicious seconds must not make the rest more suspicious.
    """
    even = [face for face in faces if not face.extra]
    return even if len(even) >= settings.fewest_frames else faces


def mean_score(faces: Sequence[Face]) -> float:
    """Return the mean p_fake of faces, in 0..1."""
    return float(np.mean([face.p_fake for face in faces]))


def find_interval(faces: Sequence[Face], kind: str, settings: DetectionSettings) -> Interval | None:
    """Return the middle 95 % of the means of frames drawn again, or None for too few of them.

    The bootstrap (Efron, 1979). Neighbouring frames are alike, so it is rather too narrow.
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
    """Say why a face cannot be judged; empty where it can."""
    doubts = []
    if kind == "video" and len(faces) < settings.fewest_frames:
        doubts.append(
            f"the face was found in only {len(faces)} of {frames_scored:,} frames, and "
            f"{settings.fewest_frames} are needed ({ADVICE})"
        )
    return "; ".join([*doubts, *doubt_kind(faces, decision)])


def doubt_kind(faces: Sequence[Face], decision: Decision) -> list[str]:
    """Say why the model does not know such faces: most are smaller or softer than it was taught."""
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
    """Give the verdict on a score and its range, and the reason where it is undecided."""
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


# --- The part that is fake ------------------------------------------------------------------------


def judge_part(
    faces: Sequence[Face],
    thresholds: Thresholds,
    settings: DetectionSettings,
    verdict: Word,
    reason: str,
) -> tuple[Part | None, Word, str]:
    """Look whether the most suspicious seconds of a face change its verdict.

    Returns:
        the part, where it gives or forbids the verdict, then the verdict and its reason
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
    if verdict == REAL:
        burst = find_window(seconds, scores, BURST_SECONDS, BURST)
        if scores[burst].mean() >= fake:
            window = burst
        elif scores[window].mean() < suspicious:
            return None, verdict, reason
        part = describe_part(grow_window(window, scores, suspicious), seconds, scores)
        return part, UNDECIDED, "most of it looks real, but a part is suspicious"
    return None, verdict, reason


def find_window(seconds: np.ndarray, scores: np.ndarray, length: float, fewest: int) -> slice:
    """Find the frames with the highest mean among all stretches of a length.

    Args:
        seconds, scores: of the frames, in the order of time
        length: in seconds; a stretch with too few frames is taken longer
        fewest: frames of a stretch; no more than there are
    """
    fewest = min(fewest, len(scores))
    starts = np.arange(len(scores) - fewest + 1)
    ends = np.searchsorted(seconds, seconds[starts] + length + 1e-6).clip(starts + fewest)
    sums = np.concatenate(([0.0], scores.cumsum()))
    best = int(((sums[ends] - sums[starts]) / (ends - starts)).argmax())
    return slice(int(starts[best]), int(ends[best]))


def grow_window(window: slice, scores: np.ndarray, least: float) -> slice:
    """Let a stretch begin and end where the scores reach a threshold."""
    first, last = window.start, window.stop
    while first > 0 and scores[first - 1] >= least:
        first -= 1
    while last < len(scores) and scores[last] >= least:
        last += 1
    above = np.flatnonzero(scores[first:last] >= least)
    return slice(first + int(above[0]), first + int(above[-1]) + 1) if len(above) else window


def describe_part(window: slice, seconds: np.ndarray, scores: np.ndarray) -> Part:
    """Make the part of a file that a window of its frames covers."""
    first, last = float(seconds[window][0]), float(seconds[window][-1])
    return Part(first, last, round(float(scores[window].mean()), 4), window.stop - window.start)


# --- Several faces --------------------------------------------------------------------------------


def pick_worst(tracks: Sequence[Track]) -> Track:
    """Pick the face that gives the verdict on the file: the most suspicious that can be judged."""
    order = [REAL, UNDECIDED, FAKE]
    judged = [track for track in tracks if track.judged] or tracks
    return max(judged, key=lambda track: (order.index(track.verdict), track.p_fake))


def doubt_rest(tracks: Sequence[Track], decision: Decision, thresholds: Thresholds) -> str:
    """Say why faces that could not be judged forbid "likely real"; empty where they do not.

    They do where they are more than half of all that was seen, or where one is suspicious. One that
    is only too short is suspicious as any other is; one of a kind that the model does not know, or
    of a single frame, must score as high as a part.
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
