"""Render the report on a video or picture: one self-contained page from templates/report.html."""

from __future__ import annotations

import base64
import datetime
import functools
import json
import math
import platform
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import av
import cv2
import numpy as np

from deepfake_detect.canvas import Box, Canvas, scale_boxes
from deepfake_detect.cli import printable
from deepfake_detect.decision import Decision, check_decision
from deepfake_detect.detection_model import DetectionModel
from deepfake_detect.result import (
    FAKE,
    NO_FACE,
    NOT_CHECKED,
    REAL,
    UNDECIDED,
    Face,
    Failure,
    Part,
    Result,
    Track,
    count_verdicts,
    to_score,
)
from deepfake_detect.shipped import find_shipped

if TYPE_CHECKING:
    import jinja2

TIMELINES = 8  # most suspicious faces with a timeline
MOST_POINTS = 600  # points per timeline; a longer track is thinned out
MOST_ROWS = 3000  # rows in the table of all faces
PICTURE_WIDTH = 960  # pixels of the still
SIGNS = {FAKE: "▲", REAL: "○", UNDECIDED: "◇", NO_FACE: "□", NOT_CHECKED: "✕"}
TONES = {FAKE: "fake", REAL: "real"}
# Exceptions from reading a damaged or forged JSON file.
BAD_FILE: tuple[type[Exception], ...] = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
    RecursionError,
)


class Rate(NamedTuple):
    """The share of files with a known label that received the verdict.

    Attributes:
        label: "real" or "fake"
        hits, files: number of files with the verdict, and of all files
        low, high: exact 95 % interval of the share, in percent
        by_crops: True if measured on one or two crops per video, not on whole files
    """

    label: str
    hits: int
    files: int
    low: int
    high: int
    by_crops: bool = False


def collect(result: Result, model: DetectionModel) -> dict:
    """Collect the content of the report; pictures as data: addresses, names made printable.

    Args:
        result: from Detector.check
        model: the model of the check
    """
    measured = read_measures(Path(model.name), model.decision)
    track = next((one for one in result.tracks if one.number == result.track), None)
    drawn = sorted(result.tracks, key=lambda one: one.p_fake, reverse=True)[:TIMELINES]
    rates = find_rates(measured, result.kind, result.verdict)
    return {
        "result": result,
        "json": result.to_dict() | {"file": Path(result.name).name},  # without local folders
        "name": printable(Path(result.name).name),
        "track": track,
        "drawn": [(one, thin_out(one.faces)) for one in drawn],
        "faces": [(one, face) for one in result.tracks for face in one.faces][:MOST_ROWS],
        "more_faces": max(0, len(result.faces) - MOST_ROWS),
        "crops": embed_crops(result),
        "still": embed_still(result),
        "rates": rates,
        "sentence": write_sentence(result, track, rates),
        "table": list_measures(measured),
        "training": describe_training(model.training),
        "practice": model.training.get("practice") is True,
        "headline": result.provenance and result.provenance.headline(),
        "provenance": result.provenance and result.provenance.sentence(),
        "command": write_command(result),
        "decision": describe_decision(model.decision),
        "settings": ", ".join(
            f"{name.replace('_', ' ')} {value}" for name, value in result.settings.items()
        ),
        "versions": f"DeepFake-Detect {result.version}, Python {platform.python_version()}, "
        f"OpenCV {cv2.__version__}, NumPy {np.__version__}, PyAV {av.__version__}",
        "whole_length": result.seconds,
    }


def render(content: dict) -> str:
    """Fill in templates/report.html; all text from the checked file is escaped."""
    return load_template().render(content).lstrip()


def render_index(results: list[Result | Failure], links: list[str], there: list[bool]) -> str:
    """Fill in templates/detections.html: a table of several results.

    Args:
        results: results of a run
        links: address of each report
        there: True for each report that was written
    """
    rows = [
        (result, printable(Path(result.name).name), link if has_report else None)
        for result, link, has_report in zip(results, links, there, strict=True)
    ]
    order = [FAKE, UNDECIDED, REAL, NO_FACE, NOT_CHECKED]
    rows.sort(key=lambda row: order.index(row[0].verdict))
    return load_template("detections.html").render(rows=rows, counts=count_verdicts(results))


def prepare() -> None:
    """Load the template and the font; another thread can do this during a check."""
    load_template()
    cv2.getTextSize("", cv2.FONT_HERSHEY_SIMPLEX, 1, 1)  # loads the font


@functools.cache
def load_template(name: str = "report.html") -> jinja2.Template:
    """Load a template that escapes all its values."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(find_shipped("templates")),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "clock": format_clock,
        "exact_clock": functools.partial(format_clock, tenths=True),
        "score": to_score,
        "printable": printable,
    }
    environment.globals |= {"signs": SIGNS, "tones": TONES}
    return environment.get_template(name)


# --- Text -----------------------------------------------------------------------------------------


def format_clock(seconds: float, tenths: bool = False) -> str:
    """Format seconds like a video player: 1:05 or, with hours, 1:01:05; with tenths 1:05.3."""
    tenth = round(seconds * 10) if tenths else int(seconds + 1e-6) * 10
    whole, rest = divmod(tenth, 10)
    minutes, whole = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02d}:{whole:02d}" if hours else f"{minutes}:{whole:02d}"
    return f"{clock}.{rest}" if tenths else clock


def describe_part(part: Part) -> str:
    """Return the start and end time of a part as text."""
    return (
        f"from {format_clock(part.first_seconds)} to {format_clock(math.ceil(part.last_seconds))}"
    )


def write_sentence(result: Result, track: Track | None, rates: Iterable[Rate]) -> str:
    """Return a sentence to publish: the verdict with its error rates."""
    date = datetime.datetime.fromisoformat(result.date)
    tool = (
        f"DeepFake-Detect {result.version}, model {result.model_sha256[:8]}, "
        f"{date.day} {date:%B %Y}"
    )
    what = "picture" if result.kind == "picture" else "video"
    worth = " ".join(describe_rate(rate, what) for rate in rates)
    if track is None:
        return (
            f"An automatic test ({tool}) found no face in this {what}, so it says nothing about it."
        )
    score = f"score {track.score} of 100"
    if result.verdict == FAKE:
        where = f" {describe_part(result.part)}" if result.part else ""
        score = f"score {to_score(result.part.p_fake)} of 100 there" if result.part else score
        found = f"rates a face in this {what} as likely fake{where} ({score})"
        return f"An automatic test ({tool}) {found}. {worth} It is not proof."
    if result.verdict == REAL:
        found = f"found no sign of a swapped or re-enacted face in this {what} ({score})"
        worth += f" It does not prove that the {what} is real."
        return f"An automatic test ({tool}) {found}. {worth.strip()}"
    found = f"could not decide whether a face in this {what} was swapped or re-enacted ({score})"
    return f"An automatic test ({tool}) {found}."


def describe_rate(rate: Rate, what: str) -> str:
    """Return a sentence on how many files of the other label received the same verdict."""
    if rate.files < 30 or rate.hits == 0:
        up_to = f"up to {rate.high} in 100 are possible"
        between = f"{rate.low} to {rate.high} in 100 are possible" if rate.low else up_to
        return f"Of {rate.files:,} {rate.label} {what}s, {rate.hits:,} got this answer ({between})."
    return (
        f"Of 100 {rate.label} {what}s, {100 * rate.hits / rate.files:.0f} get this answer, too "
        f"({rate.low} to {rate.high}, measured on {rate.files:,})."
    )


def write_command(result: Result) -> str:
    """Return the command that checks the report, for a POSIX shell."""
    names = (printable(Path(name).name) for name in (result.name, result.model))
    file, model = (shlex.quote(name if not name.startswith("-") else f"./{name}") for name in names)
    rate = result.settings.get("frames_per_second", 2.0)
    return f"python 06-detect-deepfake.py {file} --model {model} --frames-per-second {rate:g}"


def describe_decision(decision: Decision) -> str:
    """Return a line with the thresholds, the calibration and the crop rule."""
    numbers = {name: value for name, value in decision._asdict().items() if name != "width_rule"}
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}"
        if isinstance(value, float)
        else f"{name.replace('_', ' ')} {value}"
        for name, value in numbers.items()
        if value is not None
    )


def describe_training(training: dict) -> str:
    """Describe the training data of the model; empty if the model file does not state it."""
    try:
        counts = training["counts"]["train"]
        return (
            f"{int(counts['fake crops']):,} fake and {int(counts['real crops']):,} real face crops"
        )
    except BAD_FILE:
        return ""


# --- Error rates ----------------------------------------------------------------------------------


def read_measures(model: Path, decision: Decision) -> dict:
    """Read the measures that 05 wrote for a model with this decision; {} if 05 did not measure it.

    A damaged file beside the model does not prevent the report.
    """
    for path in (model.with_name("metrics.json"), model.with_suffix(".json")):
        try:
            measured = json.loads(path.read_bytes())
            if check_decision({"threshold": None} | measured["decision"]) == decision:
                return measured
        except BAD_FILE:
            continue
    return {}


def find_rates(measured: dict, kind: str, verdict: str) -> list[Rate]:
    """Return how many files received this verdict wrongly; [] if this was not measured.

    "likely fake" counts real files, "likely real" counts fake files, "undecided" counts both.
    """
    labels = {FAKE: ("real",), REAL: ("fake",), UNDECIDED: ("real", "fake")}.get(verdict, ())
    rates = []
    for label in labels:
        for find in (find_rate_of_clips, find_rate_of_crops):
            try:
                rates.append(find(measured, kind, verdict, label))
                break
            except BAD_FILE:
                continue
    return rates


def find_rate_of_clips(measured: dict, kind: str, verdict: str, label: str) -> Rate:
    """Return the rate measured on whole files."""
    counts = measured["clips"][kind][label]
    return make_rate(label, int(counts[verdict]), int(counts["files"]))


def find_rate_of_crops(measured: dict, kind: str, verdict: str, label: str) -> Rate:
    """Return the rate measured on crops; only for the two clear verdicts on videos."""
    key = {(FAKE, "real"): "reals_called_fake", (REAL, "fake"): "fakes_called_real"}[verdict, label]
    [group] = [one for one in measured["groups"] if not one["dataset"] and not one["method"]]
    files = int(group[f"{label} videos"])
    return make_rate(label, round(files * float(group[key])), files, by_crops=True)


def make_rate(label: str, count: int, files: int, by_crops: bool = False) -> Rate:
    """Return a Rate with its interval.

    Raises:
        ValueError: the counts contradict each other
    """
    if not 0 <= count <= files or not files:
        raise ValueError("makes no sense")
    low, high = exact_interval(count, files)
    return Rate(label, count, files, math.floor(100 * low), math.ceil(100 * high), by_crops)


def exact_interval(count: int, files: int) -> tuple[float, float]:
    """Return the exact 95 % interval of a share (Clopper and Pearson, 1934)."""

    def find_share(is_low: Callable[[float], bool]) -> float:
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if is_low(middle) else (low, middle)
        return (low + high) / 2

    fewer, more = at_most(count, files), at_most(files - count, files)
    low = 0.0 if count == 0 else find_share(lambda p: more(1 - p) < 0.025)
    high = 1.0 if count == files else find_share(lambda p: fewer(p) > 0.025)
    return low, high


def at_most(count: int, files: int) -> Callable[[float], float]:
    """Return the binomial probability of at most `count` hits, as a function of the share."""
    hits = np.arange(count + 1)
    ways = [math.lgamma(hit + 1) + math.lgamma(files - hit + 1) for hit in hits.tolist()]
    logs = math.lgamma(files + 1) - np.array(ways)

    def probability(share: float) -> float:
        rest = (files - hits) * math.log1p(-share)
        return float(np.exp(logs + hits * math.log(share) + rest).sum())

    return probability


def list_measures(measured: dict) -> list[list[str]]:
    """Return the measures as rows of a table, its head first; [] without measures."""
    for rows in (list_clips, list_groups):
        try:
            listed = rows(measured)
            if len(listed) > 1:
                return listed
        except BAD_FILE:
            continue
    return []


def list_clips(measured: dict) -> list[list[str]]:
    """Return the verdict counts of whole files: a head, then a row per data set and method."""
    verdicts = (FAKE, UNDECIDED, REAL, NO_FACE)
    head = ["Data set", "Files", *(verdict.capitalize() for verdict in verdicts)]
    rows = []
    for row in measured["clips"]["by_dataset"]:
        dataset = " ".join(dict.fromkeys(filter(None, (row["dataset"], row["method"]))))
        files = f"{int(row['files']):,} {row['label']} {row['kind']}s"
        rows.append([dataset, files, *(f"{int(row[verdict]):,}" for verdict in verdicts)])
    return [head, *rows]


def list_groups(measured: dict) -> list[list[str]]:
    """Return the measures on crops: a head, then a row per data set."""
    head = ["Data set", "Real, fake videos", "Real ones called fake", "Fakes found"]
    rows = []
    for row in (one for one in measured["groups"] if not one["method"]):
        counts = [int(row[f"{label} videos"]) for label in ("real", "fake")]
        shares = [float(row[name]) for name in ("reals_called_fake", "fakes_found")]
        cells = [
            describe_share(round(share * count), count)
            for share, count in zip(shares, counts, strict=True)
        ]
        rows.append([row["dataset"] or "all together", "{:,}, {:,}".format(*counts), *cells])
    return [head, *rows]


def describe_share(count: int, files: int) -> str:
    """Format a share with its interval; for few files only the counts."""
    if not files:
        return "not measured"
    rate = make_rate("", count, files)
    if files < 30:
        return f"{count} of {files} ({rate.low} to {rate.high} in 100)"
    return f"{100 * count / files:.0f} in 100 ({rate.low} to {rate.high})"


# --- Pictures -------------------------------------------------------------------------------------


def embed_crops(result: Result) -> list[dict]:
    """Embed the most suspicious crops and their heat maps, all maps on one scale.

    A crop with a score in the real range does not have a map: it does not look fake to the model.
    """
    evidence = result.evidence
    if evidence is None or not len(evidence.crops):
        return []
    shown = [face.p_fake >= result.real_below for _, face in evidence.crop_faces]
    strongest = max(
        (float(heat.max()) for heat, one in zip(evidence.heat, shown, strict=True) if one),
        default=0,
    )
    crops = []
    for (number, face), crop, heat, has_map in zip(
        evidence.crop_faces, evidence.crops, evidence.heat, shown, strict=True
    ):
        bgr = np.ascontiguousarray(crop[..., ::-1])
        row = {"track": number, "face": face, "crop": embed_picture(bgr), "heat": None}
        if has_map and strongest > 0:
            row["heat"] = embed_picture(tint(bgr, heat / strongest))
        crops.append(row)
    return crops


def tint(picture: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Overlay a map of strengths, 0 to 1, on a picture, BGR uint8."""
    size = picture.shape[1::-1]
    smooth = cv2.resize(strength.astype(np.float32), size, interpolation=cv2.INTER_CUBIC).clip(0, 1)
    colour = cv2.applyColorMap((255 * smooth).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return cv2.addWeighted(picture, 0.45, colour, 0.55, 0)


def embed_still(result: Result) -> str | None:
    """Embed the most suspicious frame, with a box on every face."""
    if result.evidence is None or result.evidence.still is None:
        return None
    still = result.evidence.still.copy()
    frame = result.evidence.crop_faces[0][1].frame
    boxes = (
        Box(track.number, face.x, face.y, face.width, face.height, to_score(face.p_fake))
        for track in result.tracks
        for face in track.faces
        if face.frame == frame
    )
    scale = still.shape[1] / result.width
    Canvas([still], is_yuv=False).mark(scale_boxes(boxes, scale))
    return embed_picture(still)


def thin_out(faces: tuple[Face, ...]) -> list[Face]:
    """Return at most MOST_POINTS faces of a track: the most suspicious of each stretch."""
    step = math.ceil(len(faces) / MOST_POINTS)
    stretches = (faces[at : at + step] for at in range(0, len(faces), step))
    return [max(some, key=lambda face: face.p_fake) for some in stretches]


def embed_picture(picture: np.ndarray) -> str:
    """Embed a picture, BGR uint8, as a JPEG of at most 960 pixels width."""
    scale = min(1, PICTURE_WIDTH / picture.shape[1])
    picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return embed(cv2.imencode(".jpg", picture)[1].tobytes(), "image/jpeg")


def embed(data: bytes, kind: str) -> str:
    """Return data as a data: address, for a self-contained HTML page."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


# --- Reading a report back ------------------------------------------------------------------------


def read_result(page: Path) -> dict:
    """Read the result in a report, in the form of Result.to_dict.

    Raises:
        ValueError: the page is not a report of this project
        OSError: the page cannot be read
    """
    text = page.read_text(encoding="utf-8", errors="replace")
    _, start, rest = text.partition('<script type="application/json" id="result">')
    data, end, _ = rest.partition("</script>")
    try:
        if not start or not end:
            raise ValueError
        result = json.loads(data)
        if not isinstance(result["tracks"], list) or "sha256" not in result:
            raise ValueError
    except BAD_FILE as error:
        raise ValueError(f"{page}: it is not a report that can be checked.") from error
    return result
