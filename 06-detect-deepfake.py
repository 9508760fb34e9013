"""Tell how likely the faces in videos and pictures are to be deepfakes.

    python 06-detect-deepfake.py clip.mp4
    python 06-detect-deepfake.py clip.mp4 photo.jpg a-folder --frames-per-second 5
    python 06-detect-deepfake.py clip.mp4 --explain
    python 06-detect-deepfake.py clip.mp4 --json --no-annotate > result.json

Reads   videos, pictures, folders of them
        model/best_model.keras            the model and its decision, by 04; where there is none,
                                          the project's own, weights/deepfake-detector.keras
Writes  detections/results.csv            one row a file, of this run
        detections/<name>.json            all that was found, down to the score of every face
        detections/<name>-marked.mp4      the video, or picture (.png), with a box on every face
        detections/<name>-timeline.png    p_fake over time, a line a face
        detections/<name>-explain.png     what moved the score, with --explain
        detections/<name>.html            a report to hand on, with all of that inside it
Next    07-export-model.py

A frame goes through the very steps of 01, 02 and 04, so that a face is scored on the crop that the
training would have made of it. The faces of one person through a video are a track: a face joins
the track that it overlaps (as in Bochinski et al., "High-Speed Tracking-by-Detection Without Using
Image Information", AVSS 2017), and where people meet, the one that it looks like. A track's score
is the mean p_fake of its frames, held against the threshold that was found in training. Its
interval says how far chance in the frames moves that mean, and nothing of how well the model knows
such videos: a score is no proof.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import itertools
import json as to_json  # the option --json has its name
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, NamedTuple

# As 02 and 04 have them, before TensorFlow is imported: it is quieter, and faster.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import cv2
import filelock
import imageio_ffmpeg
import jinja2
import keras
import numpy as np
import pandas as pd
import PIL.Image
import scipy.optimize
import tensorflow as tf
import tyro
from matplotlib.figure import Figure
from tqdm import tqdm

from parts import catalogue, face_detector

convert = importlib.import_module("01-convert-video-to-image")
crop_faces = importlib.import_module("02-crop-faces-with-mtcnn")
train_cnn = importlib.import_module("04-train-cnn")

# --------------------------------------------------------------------------------------------------
# folders
MODEL = None  # None: model/best_model.keras, or if there is none weights/deepfake-detector.keras
DETECTIONS_DIR = Path("detections")  # gets what is found
# sampling
FRAMES_PER_SECOND = 2.0  # scored of each second; neighbouring frames tell little more
FEWEST_FRAMES = 5  # scored frames that a verdict needs; short clips are sampled more densely
MOST_PIXELS = 100_000_000  # of a picture; the memory would not hold a much larger one
# verdict
PICTURE_MARGIN = 0.15  # a picture has no interval: within this of the threshold it is undecided
RESAMPLES = 1000  # of a track's frames, for the 95 % interval of its score
# tracks
LEAST_OVERLAP = 0.2  # intersection over union; low, as half a second lies between two boxes
LEAST_LIKENESS = 0.7  # of colours, 0 to 1; of one person 0.9 and more, of two mostly below 0.75
LONGEST_GAP = 3  # scored frames for which a face may be unseen, before its next is another track
# output
ANNOTATE = True  # write the marked copy and the timeline
EXPLAIN = False  # write the sheet of the most suspicious crops with what moved their score
EXPLAINED = 8  # crops on that sheet, and in the report
LARGEST_VIDEO = 8.0  # MB of a marked video that goes into the report; a larger one stays beside it
JSON = False  # print the results as JSON, for other programs
# machine
FRAMES_AT_ONCE = 8  # searched for faces and scored together
# --------------------------------------------------------------------------------------------------

MODELS = Path("model/best_model.keras"), Path(__file__).parent / "weights/deepfake-detector.keras"
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FAKE, REAL, UNDECIDED, NO_FACE = "likely fake", "likely real", "undecided", "no face"
RESULTS = ["file", "verdict", "p_fake", "low", "high", "threshold", "track", "frames", "tracks"]
RESULTS += ["reason", "doubt", "notes"]
OUTPUTS = ("-marked.mp4", "-marked.png", "-timeline.png", "-explain.png")  # after a name
OUTPUTS += (".html", ".json")
TEMPLATES = Path(__file__).parent / "templates"
CLAIMS = ".detections"  # a file beside the outputs that lists them: only those are ever replaced
LONGEST_NAME = 100  # bytes; an ending comes to it, and most disks take 255
NAMED = 10  # files that the last sentence names


def main(
    files: Annotated[list[Path], tyro.conf.Positional],
    /,
    model: Path | None = MODEL,
    detections_dir: Path = DETECTIONS_DIR,
    frames_per_second: float = FRAMES_PER_SECOND,
    fewest_frames: int = FEWEST_FRAMES,
    most_pixels: int = MOST_PIXELS,
    picture_margin: float = PICTURE_MARGIN,
    resamples: int = RESAMPLES,
    least_overlap: float = LEAST_OVERLAP,
    least_likeness: float = LEAST_LIKENESS,
    longest_gap: int = LONGEST_GAP,
    annotate: bool = ANNOTATE,
    explain: bool = EXPLAIN,
    explained: int = EXPLAINED,
    largest_video: float = LARGEST_VIDEO,
    json: bool = JSON,
    frames_at_once: int = FRAMES_AT_ONCE,
) -> list[dict]:
    """Tell how likely the faces in videos and pictures are to be deepfakes.

    Args:
        files: videos, pictures, and folders of them
        model: a model that 04-train-cnn.py wrote; None: model/best_model.keras, or if there is none
            weights/deepfake-detector.keras
        detections_dir: folder for what is found
        frames_per_second: frames scored of each second; more of a short video
        fewest_frames: scored frames that a verdict on a face needs
        most_pixels: larger pictures are not scored
        picture_margin: a picture whose score is as close as this to the threshold is undecided
        resamples: draws of frames for the interval of a score
        least_overlap: intersection over union of two boxes of one track, at least
        least_likeness: likeness of two faces of one track in colours, at least, 0 to 1
        longest_gap: scored frames for which the face of a track may be unseen
        annotate: write a copy with a box on every face, and the timeline
        explain: write the most suspicious crops with what moved their score
        explained: crops on that sheet, and in the report
        largest_video: MB of a marked video that goes into the report
        json: print the results to standard output as JSON, and all else to standard error
        frames_at_once: frames searched for faces and scored together

    Returns:
        What the .json files hold; of a file that could not be scored, file and reason.

    Raises:
        ValueError: a setting is out of its range, the model is of another kind, or some files could
            not be scored (the others are).
        OSError: the model is not there, or nothing can be written.
    """
    settings = SimpleNamespace(**locals())
    check_settings(settings)
    say = partial(print, file=sys.stderr if json else sys.stdout, flush=True)
    scorer = load_scorer(model)
    say(f"model        {scorer.path}")
    sources = list_inputs(files)
    if not sources:
        raise ValueError(f"There is no video or picture in {', '.join(map(spell, files))}.")
    results = []
    detections_dir.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(detections_dir / ".lock", timeout=0):
        claim_outputs(detections_dir, ["results.csv"])
        try:
            for source, name in zip(sources, name_outputs(sources), strict=True):
                results.append(process_file(source, detections_dir / name, scorer, settings))
                say(word_result(results[-1]))
        finally:  # after Ctrl-C, too
            if json:
                print(to_json.dumps(results, allow_nan=False))
        table = tabulate(results)
        write_whole(
            detections_dir / "results.csv",
            lambda partial: table.to_csv(partial, index=False, errors="backslashreplace"),
        )
    failed = [spell(result["file"]) for result in results if "reason" in result]
    say(f"{detections_dir}")
    say(f"  scored          {len(results) - len(failed):,} of {len(results):,} files were scored")
    say(f"  look next at    {detections_dir / 'results.csv'}; a score is no proof")
    if failed:
        named = ", ".join(failed[:NAMED]) + (", ..." if len(failed) > NAMED else "")
        raise ValueError(f"{len(failed):,} of {len(results):,} files were not scored: {named}.")
    return results


def load_scorer(path: Path | None) -> Scorer:
    """Load a model and what was saved with it, running none of it as code.

    Args:
        path: None for the first that is there of MODELS

    Raises:
        FileNotFoundError, ValueError: there is none, or it is none of 04's.
    """
    path = path or next(filter(Path.is_file, MODELS), MODELS[0])
    model, decision = train_cnn.load_model(path), train_cnn.read_decision(path)
    # One graph for any number of faces: Keras' own predict makes a second one, two seconds long.
    crops = tf.TensorSpec(model.input_shape, tf.float32)
    predict = tf.function(partial(model, training=False), input_signature=[crops])
    return Scorer(path, model, predict, decision)


class Scorer(NamedTuple):
    """What scores a face: the model, and the decision that was saved with it."""

    path: Path
    model: keras.Model
    predict: Callable[[np.ndarray], tf.Tensor]  # RGB float32 (n, 128, 128, 3) to p_real (n, 1)
    decision: train_cnn.Decision


def list_inputs(paths: Iterable[Path]) -> list[Path]:
    """List the files given, and the videos and pictures below the folders given, in order.

    In folders, what this script wrote, or began to write, is left out.
    """
    known = (*catalogue.VIDEO_SUFFIXES, *PICTURE_SUFFIXES)
    files = []
    for path in paths:
        if path.is_dir():
            below = [file for file in path.rglob("*") if file.suffix.lower() in known]
            claims = {folder: read_claims(folder) for folder in {file.parent for file in below}}
            below = [file for file in below if file.name not in claims[file.parent]]
            files += sorted(
                file for file in below if file.is_file() and not file.stem.endswith(".partial")
            )
        else:
            files.append(path)
    return list(dict.fromkeys(files))


def name_outputs(files: list[Path]) -> list[str]:
    """Name the outputs of each file by its stem, with a number where that is taken."""
    names, taken = [], set()
    for file in files:
        stem = "".join(letter if letter.isprintable() else "_" for letter in file.stem)
        stem = stem.encode()[:LONGEST_NAME].decode(errors="ignore").rstrip(". ") or "file"
        number, name = 1, stem
        while name.casefold() in taken:  # Windows and macOS tell no A from a
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def process_file(source: Path, target: Path, scorer: Scorer, settings: SimpleNamespace) -> dict:
    """Detect and write what is asked for, into files whose names begin with `target`.

    Whatever fails costs this file alone; then the result is just the file and the reason.
    """
    try:
        if source.name in read_claims(source.parent):
            raise ValueError("was written by this script itself")
        claim_outputs(target.parent, [target.name + ending for ending in OUTPUTS])
        result, worst = detect(source, scorer, settings)
        write_outputs(result, worst, scorer.model, target, settings)
    except Exception as error:
        return {"file": str(source), "reason": word_error(error)}
    try:
        write_html(collect_report(result, worst, scorer, target, settings), target)
    except Exception as error:
        result["notes"].append(f"{target.name}.html is not written: {word_error(error)}")
    return result


# --- The faces and their scores -------------------------------------------------------------------


def detect(path: Path, scorer: Scorer, settings: SimpleNamespace) -> tuple[dict, pd.DataFrame]:
    """Score the faces of a file, join them to tracks, and judge every track and the file.

    Returns:
        The content of <name>.json, and the most suspicious faces: rows as its own, with the track
        and the crop (BGR uint8).

    Raises:
        ValueError, OSError: the file cannot be read or scored.
    """
    picture, notes = is_picture(path), []
    total = None if picture else guess_frames(path, settings.frames_per_second)
    frames = sample_frames(path, settings, notes)
    frames = tqdm(frames, spell(path.name), total, unit="frame", leave=False, disable=picture)
    count, (width, height), faces, worst = score_frames(frames, scorer, settings)
    faces["track"] = join_tracks(faces, settings)
    worst = worst.join(faces.drop(columns=["look", "p_fake"]))
    tracks = []
    for number, its_faces in faces.groupby("track"):
        judged = judge_track(its_faces, picture, scorer.decision, settings)
        listed = its_faces.drop(columns=["track", "look"]).to_dict("records")
        tracks.append({"track": int(number), **judged, "faces": listed})
    result = {
        "file": str(path),
        "kind": "picture" if picture else "video",
        **judge_file(tracks),
        "threshold": round(scorer.decision.threshold, 4),
        "model": str(scorer.path),
        "frames_scored": count,
        "width": width,
        "height": height,
        "notes": notes,
        "tracks": tracks,
    }
    return result, worst


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES


def guess_frames(path: Path, frames_per_second: float) -> int | None:
    """Guess how many frames will be scored, for the bar; None where the header does not know."""
    check_file(path)
    video = convert.open_video(path)
    rate, count = video.get(cv2.CAP_PROP_FPS), video.get(cv2.CAP_PROP_FRAME_COUNT)
    return math.ceil(count / rate * frames_per_second) if rate > 0 and count > 0 else None


def sample_frames(
    path: Path, settings: SimpleNamespace, notes: list[str]
) -> Iterator[tuple[int, float, np.ndarray]]:
    """Yield the frames to score, BGR uint8 as in the file, with their index and second.

    A picture is one frame. A video that gives too few for a verdict is gone through once more for
    some in between: how long it is, its header may not know.

    Raises:
        ValueError, OSError: it cannot be read, does not decode, or has no frames.
    """
    check_file(path)
    if is_picture(path):
        yield 0, 0.0, read_picture(path, settings.most_pixels, notes)
        return
    taken, rate, wanted = set(), settings.frames_per_second, 2 * settings.fewest_frames
    for _ in range(2):
        stamps = []
        for index, seconds, _, frame in convert.read_frames(convert.open_video(path), rate, None):
            stamps.append(seconds)
            if frame is not None and index not in taken:
                taken.add(index)
                yield index, seconds, frame
        if len(taken) >= min(wanted, len(stamps)):
            break
        rate = wanted / (stamps[-1] - stamps[0]) * (len(stamps) - 1) / len(stamps)
    if not taken:
        raise ValueError("no frame of it decodes")


def read_picture(path: Path, most_pixels: int, notes: list[str]) -> np.ndarray:
    """Read a picture: BGR uint8 (height, width, 3), turned as its file says.

    Raises:
        ValueError, OSError: it cannot be read, is too large or does not decode.
    """
    PIL.Image.MAX_IMAGE_PIXELS = None  # the limit is most_pixels
    try:
        with PIL.Image.open(path) as head:  # decodes nothing yet
            if head.width * head.height > most_pixels:
                raise ValueError(
                    f"has {head.width:,} x {head.height:,} pixels, more than --most-pixels allows"
                )
            if head.format in ("PNG", "WEBP") and head.n_frames > 1:
                notes.append(f"only the first of its {head.n_frames:,} pictures was scored")
    except PIL.UnidentifiedImageError as error:
        raise ValueError("does not decode as a picture") from error
    picture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError("does not decode as a picture")
    return picture


def score_frames(
    frames: Iterable[tuple[int, float, np.ndarray]], scorer: Scorer, settings: SimpleNamespace
) -> tuple[int, tuple[int, int], pd.DataFrame, pd.DataFrame]:
    """Score every face of some frames, a few at a time: memory does not grow with their number.

    Returns:
        The number of frames, the width and height of the first, a row for every face (see
        find_faces) with its p_fake, and p_fake and crop of the most suspicious by row, worst first.

    Raises:
        ValueError: the model gives no number for a face.
    """
    rows, worst, count, size = [], [], 0, (0, 0)
    frames = iter(frames)
    while some := list(itertools.islice(frames, settings.frames_at_once)):
        count += len(some)
        size = size if any(size) else some[0][2].shape[1::-1]
        found = list(find_faces(some, scorer.decision))
        scores = score_crops([crop for _, crop in found], scorer) if found else []
        rows += [row | {"p_fake": round(p, 6)} for (row, _), p in zip(found, scores, strict=True)]
        first = len(rows) - len(found)
        worst += [(p, first + at, found[at][1]) for at, p in enumerate(scores)]
        worst = sorted(worst, key=lambda one: -one[0])[: settings.explained]
    columns = ["frame", "seconds", "x", "y", "width", "height", "confidence"]
    columns += ["crop_side", "sharpness", "p_fake", "look"]
    faces = pd.DataFrame(rows, columns=columns).sort_values("frame", kind="stable")
    worst = pd.DataFrame(worst, columns=["p_fake", "row", "crop"]).set_index("row")
    return count, size, faces, worst


def find_faces(
    frames: list[tuple[int, float, np.ndarray]], decision: train_cnn.Decision
) -> Iterator[tuple[dict, np.ndarray]]:
    """Yield each face of some frames: a row, and the crop that 01 and 02 would have saved, BGR.

    A row has frame, seconds, x, y, width and height (the detector's box in pixels of the file's own
    frame), confidence (0..1), crop_side and sharpness (pixels of the crop's shorter side, and what
    measure_sharpness of 04 gives) and look (see measure_look).
    """
    whole = [frame for _, _, frame in frames]
    full = decision.frames == "full"
    shown = whole if full else [convert.resize_by_width(frame) for frame in whole]
    detector = face_detector.load_detector(*crop_faces.SEARCH)
    found = face_detector.crop_faces(shown, detector, crop_faces.CONFIDENCE, decision)
    for (index, seconds, frame), small, faces in zip(frames, shown, found, strict=True):
        down, across = np.divide(frame.shape[:2], small.shape[:2])
        for face, crop in faces:
            box = face_detector.scale_face(face, across, down).box
            row = {"frame": index, "seconds": round(seconds, 3)}
            row |= dict(zip(("x", "y", "width", "height"), box, strict=True))
            row |= {"confidence": round(face.confidence, 6), "crop_side": min(crop.shape[:2])}
            sharpness = train_cnn.measure_sharpness(train_cnn.prepare_crop(crop))
            row |= {"sharpness": round(sharpness, 2)}
            yield row | {"look": measure_look(face_detector.crop_face(small, face.box, 0))}, crop


def measure_look(face: np.ndarray) -> np.ndarray:
    """Measure the colours of a face, BGR uint8: the roots of their shares, float16 (384,).

    The sum of the products of two is their likeness, 0 to 1 (Bhattacharyya, 1943). On real videos
    of Celeb-DF v2, 95 of 100 pairs of frames of one video have 0.89 or more, and 95 of 100 pairs of
    two videos 0.75 or less.
    """
    lab = cv2.cvtColor(face, cv2.COLOR_BGR2LAB)
    lab[..., 1:] = lab[..., 1:].clip(96, 159)  # few faces have stronger colours
    counts = cv2.calcHist([lab], [0, 1, 2], None, (6, 8, 8), (0, 256, 96, 160, 96, 160))
    return np.sqrt(counts.ravel() / counts.sum()).astype(np.float16)


def score_crops(crops: list[np.ndarray], scorer: Scorer) -> list[float]:
    """Score crops, BGR uint8 of any sizes: p_fake, calibrated, of each.

    Raises:
        ValueError: the model gives no number for one of them.
    """
    images = np.stack([train_cnn.prepare_crop(crop) for crop in crops]).astype(np.float32)
    p_real = scorer.predict(images).numpy()[:, 0]
    if not np.isfinite(p_real).all():
        raise ValueError("the model gives no number for a face in it: its file is damaged")
    return train_cnn.calibrate(p_real, scorer.decision).tolist()


# --- Tracks and verdicts --------------------------------------------------------------------------


def join_tracks(faces: pd.DataFrame, settings: SimpleNamespace) -> pd.Series:
    """Tell for each face which track it belongs to, from 1 on in the order of appearance.

    A face may join a track if it looks like the track's last and overlaps that, or where that would
    be had it moved on as before. Where several may, the faces of a frame are given to the tracks
    all together, by likeness above all, so that people who cross keep their tracks.
    """
    numbers = pd.Series(0, index=faces.index, dtype=int)
    frames = faces["frame"].unique()
    reach = (settings.longest_gap + 1) * (np.median(np.diff(frames)) if len(frames) > 1 else 1)
    tracks: dict[int, tuple] = {}  # of each the last frame, box, its speed a frame, and look
    for frame, found in faces.groupby("frame"):
        boxes = found[["x", "y", "width", "height"]].to_numpy(float)
        looks = np.stack(list(found["look"])).astype(float)
        recent = [number for number, track in tracks.items() if frame - track[0] <= reach]
        worth = np.zeros((len(found), len(recent)))
        for column, number in enumerate(recent):
            seen, box, speed, look = tracks[number]
            ahead = measure_overlap(boxes, box + speed * (frame - seen))
            overlap = np.maximum(ahead, measure_overlap(boxes, box))
            likeness = looks @ look
            may = (overlap >= settings.least_overlap) & (likeness >= settings.least_likeness)
            worth[:, column] = may * (likeness + 0.1 * ahead)  # two people differ by more than 0.1
        for row, column in zip(*scipy.optimize.linear_sum_assignment(-worth), strict=True):
            if worth[row, column]:
                numbers[found.index[row]] = recent[column]
        for row, index in enumerate(found.index):
            seen, box, *_ = tracks.get(numbers[index], (frame - 1, boxes[row]))
            numbers[index] = numbers[index] or len(tracks) + 1
            speed = (boxes[row] - box) * (1, 1, 0, 0) / (frame - seen)
            tracks[numbers[index]] = frame, boxes[row], speed, looks[row]
    return numbers


def measure_overlap(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Measure the intersection over union of boxes (n, 4) and a box, x, y, width and height."""
    low = np.maximum(boxes[:, :2], box[:2])
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], box[:2] + box[2:])
    shared = (high - low).clip(0).prod(axis=1)
    return shared / (boxes[:, 2:].prod(axis=1) + box[2:].prod() - shared)


def judge_track(
    faces: pd.DataFrame, picture: bool, decision: train_cnn.Decision, settings: SimpleNamespace
) -> dict:
    """Judge a face by its scores through the file: verdict, p_fake, interval and what it rests on.

    The interval is the middle 95 % of the means of frames drawn anew (the bootstrap, Efron 1979).
    Neighbouring frames are alike, so that it is too narrow rather than too wide.
    """
    scores = faces["p_fake"].to_numpy()
    p_fake, threshold = float(scores.mean()), decision.threshold
    doubt, interval = doubt_faces(faces, decision), None
    if not picture and len(scores) < settings.fewest_frames:
        doubt = doubt or f"it is seen in fewer than {settings.fewest_frames} of the frames scored"
    known = not doubt
    if picture and abs(p_fake - threshold) <= settings.picture_margin:
        doubt = doubt or f"its score is within {settings.picture_margin} of the threshold"
    elif not picture and len(scores) >= settings.fewest_frames:
        drawn = np.random.default_rng(1).choice(scores, (settings.resamples, len(scores)))
        low, high = np.percentile(drawn.mean(axis=1), (2.5, 97.5)).tolist()
        interval = [round(low, 4), round(high, 4)]
        if low < threshold <= high:
            doubt = doubt or "its interval has the threshold in it"
    return {
        "verdict": UNDECIDED if doubt else FAKE if p_fake >= threshold else REAL,
        "doubt": doubt,
        "known": known,
        "p_fake": round(p_fake, 4),
        "interval_95": interval,
        "frames": len(scores),
        "first_seconds": float(faces["seconds"].min()),
        "last_seconds": float(faces["seconds"].max()),
    }


def doubt_faces(faces: pd.DataFrame, decision: train_cnn.Decision) -> str:
    """Say why the model does not know such faces, where most are smaller or softer than trained."""
    side, sharpness = faces["crop_side"], faces["sharpness"]
    for what, values, least in (
        ("smaller", side, decision.smallest_face),
        ("softer", sharpness, decision.least_sharpness),
    ):
        if (values < least).mean() > 0.5:
            return (
                f"it is {what} than the faces of the training ({values.median():.0f} < {least:.0f})"
            )
    return ""


def judge_file(tracks: list[dict]) -> dict:
    """Take the most suspicious track of those that can be judged, or of all if none can."""
    if not tracks:
        return {"verdict": NO_FACE, "doubt": "", "p_fake": None, "interval_95": None, "track": None}
    known = [track for track in tracks if track["known"]]
    worst = max(known or tracks, key=lambda track: track["p_fake"])
    return {key: worst[key] for key in ("verdict", "doubt", "p_fake", "interval_95", "track")}


# --- What is shown --------------------------------------------------------------------------------


def write_outputs(
    result: dict, worst: pd.DataFrame, model: keras.Model, target: Path, settings: SimpleNamespace
) -> None:
    """Write everything about a file, the .json last; what else cannot be written becomes a note.

    Raises:
        OSError: the .json cannot be written.
    """
    writers = {}
    if settings.annotate and result["kind"] == "picture":
        writers["-marked.png"] = partial(write_marked_picture, result, settings.most_pixels)
    elif settings.annotate:
        writers["-marked.mp4"] = partial(write_marked_video, result)
        writers["-timeline.png"] = partial(draw_timeline, result)
    if settings.explain and len(worst):
        writers["-explain.png"] = partial(draw_explanation, result, worst, model)
    writers[".json"] = lambda path: path.write_text(
        to_json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    for ending, write in writers.items():
        path = Path(f"{target}{ending}")
        try:
            write_whole(path, write)
        except Exception as error:
            if ending == ".json":
                raise
            result["notes"].append(f"{path.name} is not written: {word_error(error)}")
        finally:
            path.with_name(f"{path.stem}.partial{path.suffix}").unlink(missing_ok=True)


def write_marked_picture(result: dict, most_pixels: int, path: Path) -> None:
    """Write the picture with its faces marked."""
    picture = read_picture(Path(result["file"]), most_pixels, [])
    marked = mark_faces(picture, find_boxes(arrange_tracks(result), 0))
    path.write_bytes(cv2.imencode(".png", marked)[1])


def mark_faces(frame: np.ndarray, faces: Iterable[tuple[int, list[float]]]) -> np.ndarray:
    """Draw a box, its number and p_fake on each face (see find_boxes) of a frame, BGR uint8."""
    marked = frame.copy()
    line = max(2, round(frame.shape[1] / 400))
    font, size = cv2.FONT_HERSHEY_SIMPLEX, line / 3
    for number, (x, y, width, height, p_fake) in faces:
        color = 0, int(255 * min(1, 2 - 2 * p_fake)), int(255 * min(1, 2 * p_fake))  # green to red
        left, top = round(x), round(y)
        cv2.rectangle(marked, (left, top), (round(x + width), round(y + height)), color, line)
        text = f"{number}: {p_fake:.2f}"
        (text_width, text_height), _ = cv2.getTextSize(text, font, size, line)
        top = max(0, top - text_height - 3 * line)
        below = left + text_width + 2 * line, top + text_height + 3 * line
        cv2.rectangle(marked, (left, top), below, color, cv2.FILLED)
        at = left + line, top + text_height + line
        cv2.putText(marked, text, at, font, size, (0, 0, 0), max(1, line // 2))
    return marked


def find_boxes(tracks: dict[int, np.ndarray], frame: int) -> Iterator[tuple[int, list[float]]]:
    """Yield number and x, y, width, height and p_fake of the tracks in a frame.

    Between two frames that were scored they are interpolated.
    """
    for number, (frames, *values) in tracks.items():
        if frames[0] <= frame <= frames[-1]:
            yield number, [np.interp(frame, frames, of) for of in values]


def arrange_tracks(result: dict) -> dict[int, np.ndarray]:
    """Arrange the faces of each track for drawing: frame, x, y, width, height, p_fake (6, n)."""
    sides = ["frame", "x", "y", "width", "height", "p_fake"]
    return {
        track["track"]: pd.DataFrame(track["faces"])[sides].to_numpy(float).T
        for track in result["tracks"]
    }


def write_marked_video(result: dict, path: Path) -> None:
    """Write every frame of the video, marked, and its sound where ffmpeg can copy that.

    Raises:
        ValueError, OSError: the video cannot be read any more, or ffmpeg does not write it.
    """
    try:
        encode_video(result, path, with_sound=True)
    except OSError as error:
        encode_video(result, path, with_sound=False)
        result["notes"].append(f"the marked copy has no sound: {error}")


def encode_video(result: dict, path: Path, with_sound: bool) -> None:
    """Write the marked video as H.264 that browsers play.

    It plays at the average frame rate, so the sound of one of varying rate may drift a little.

    Raises:
        ValueError, OSError: the video cannot be read any more, or ffmpeg does not write it.
    """
    source, size = Path(result["file"]), (result["width"], result["height"])
    check_file(source)
    video, tracks = convert.open_video(source), arrange_tracks(result)
    rate = video.get(cv2.CAP_PROP_FPS)
    rate = rate if 1 <= rate <= 240 else 25  # what players can do; some headers know nothing
    odd = size[0] % 2, size[1] % 2  # H.264 has a colour for two by two pixels
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-f", "rawvideo"]
    command += ["-pix_fmt", "yuv420p", "-s", f"{size[0] + odd[0]}x{size[1] + odd[1]}"]
    command += ["-r", str(rate), "-i", "-"]
    if with_sound:
        command += ["-protocol_whitelist", "file", "-format_whitelist", convert.CONTAINERS]
        command += ["-i", f"file:{source.absolute()}", "-map", "0:v", "-map", "1:a?", "-c:a", "aac"]
    # At this preset the file is twice as large as at "veryfast", and there in 40 % of the time.
    command += ["-c:v", "libx264", "-preset", "ultrafast"]
    command += ["-movflags", "+faststart", f"file:{path.absolute()}"]
    # Its messages go to a file: a pipe, which nobody reads meanwhile, would fill and stop both.
    with (
        tempfile.TemporaryFile() as messages,
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=messages) as encoder,
    ):
        try:
            frames = convert.read_frames(video, None, None)
            total = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) or None
            bar = tqdm(frames, spell(source.name), total, unit="frame", leave=False)
            for index, _, _, frame in bar:
                if frame is not None:
                    marked = mark_faces(frame, find_boxes(tracks, index))
                    marked = marked if frame.shape[1::-1] == size else cv2.resize(marked, size)
                    if any(odd):
                        marked = cv2.copyMakeBorder(
                            marked, 0, odd[1], 0, odd[0], cv2.BORDER_CONSTANT
                        )
                    # OpenCV's conversion takes a third of the time of FFmpeg's, for half the bytes.
                    encoder.stdin.write(cv2.cvtColor(marked, cv2.COLOR_BGR2YUV_I420).data)
            encoder.stdin.close()
        except BrokenPipeError:  # ffmpeg has ended, and says why
            with suppress(BrokenPipeError):
                encoder.stdin.close()  # it would be tried again at the end of `with`
        if encoder.wait():
            messages.seek(0)
            said = messages.read().decode(errors="replace").strip().splitlines()
            raise OSError(said[-1] if said else f"ffmpeg was ended ({encoder.returncode})")


def draw_timeline(result: dict, path: Path) -> None:
    """Draw p_fake over time, a line a track, and the threshold."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots()
    for track in result["tracks"]:
        seconds = [face["seconds"] for face in track["faces"]]
        scores = [face["p_fake"] for face in track["faces"]]
        label = f"face {track['track']}: {track['verdict']}, {track['p_fake']:.2f}"
        axes.plot(seconds, scores, "o-", ms=3, label=label)
    axes.axhline(result["threshold"], color="0.3", linestyle="--", label="threshold")
    axes.set_title(spell(Path(result["file"]).name), parse_math=False)  # $ is no formula
    axes.set(xlabel="seconds", ylabel="p_fake", ylim=(-0.02, 1.02))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


def draw_explanation(result: dict, worst: pd.DataFrame, model: keras.Model, path: Path) -> None:
    """Draw the most suspicious crops, each with the map of what moved its score."""
    crops = np.stack([train_cnn.prepare_crop(crop) for crop in worst["crop"]])
    figure = Figure(figsize=(max(4, 1.7 * len(crops)), 4.4), layout="constrained")
    name = spell(Path(result["file"]).name)
    title = f"{name}: where the model saw signs of a fake (4 x 4 places)"
    figure.suptitle(title, parse_math=False)
    panels = figure.subplots(2, len(crops), squeeze=False)
    for (above, below), p_fake, crop, heat in zip(
        panels.T, worst["p_fake"], crops, explain_crops(crops, model), strict=True
    ):
        above.set_title(f"p_fake {p_fake:.2f}", fontsize="small")
        above.imshow(crop)
        below.imshow(crop)
        below.imshow(heat, cmap="inferno", alpha=0.55, vmin=0, vmax=1)
    for axes in panels.ravel():
        axes.axis("off")
    figure.savefig(path, dpi=150)


def explain_crops(crops: np.ndarray, model: keras.Model) -> np.ndarray:
    """Map what moved the scores of crops, RGB uint8 (n, 128, 128, 3), towards fake: (n, 128, 128).

    From 0 to 1, the strongest place of each crop.
    """
    maps = attribute_score(crops, model)[0].clip(0)
    maps /= np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-12)
    size = crops.shape[2], crops.shape[1]
    maps = [cv2.resize(one, size, interpolation=cv2.INTER_CUBIC) for one in maps]
    return np.stack(maps).clip(0, 1)


def attribute_score(crops: np.ndarray, model: keras.Model) -> tuple[np.ndarray, np.ndarray]:
    """Tell what each place of the last convolution added to the score.

    Gradient times activation, summed over the channels (HiResCAM, Draelos and Carin, 2020).
    Grad-CAM would spread each gradient over all places; global max pooling passes it to one only.

    Args:
        crops: RGB uint8 (n, 128, 128, 3)

    Returns:
        What each of the 4 x 4 places added to the logit of p_fake (n, 4, 4), and that logit (n,),
        both uncalibrated; without biases in the top the first sum to the second.
    """
    base = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    normalization, top = model.get_layer("imagenet_mean_and_std"), model.layers[-1]
    convolutions = keras.Model(base.inputs, base.get_layer("top_activation").output)
    activation = convolutions(normalization(crops.astype(np.float32)), training=False)
    with tf.GradientTape() as tape:
        tape.watch(activation)
        features = base.layers[-1](activation)
        for layer in model.layers[model.layers.index(base) + 1 : -1]:
            features = layer(features, training=False)
        logit = -(features @ top.kernel + top.bias)
    added = tf.reduce_sum(activation * tape.gradient(logit, activation), axis=-1)
    return added.numpy(), logit.numpy()[:, 0]


def write_html(content: dict, target: Path) -> None:
    """Write the report: a page whole in itself, which opens offline."""
    page = render_report(content)
    write_whole(Path(f"{target}.html"), lambda partial: partial.write_text(page, encoding="utf-8"))


def render_report(content: dict) -> str:
    """Fill in templates/report.html; what a stranger's file says of itself is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
    )
    return environment.get_template("report.html").render(content)


def collect_report(
    result: dict, worst: pd.DataFrame, scorer: Scorer, target: Path, settings: SimpleNamespace
) -> dict:
    """Collect what the report shows, and what a check of it needs; pictures as data: addresses."""
    crops = np.stack([train_cnn.prepare_crop(crop) for crop in worst["crop"]]) if len(worst) else []
    maps = explain_crops(crops, scorer.model) if len(worst) else []
    faces = worst.drop(columns="crop").to_dict("records")
    for face, crop, heat in zip(faces, crops, maps, strict=True):
        tint = cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)
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
        "model": {"name": model.name, "sha256": hash_file(model), **scorer.decision._asdict()},
        "measured": read_measures(scorer),
        "settings": vars(settings),
        "date": time.strftime("%Y-%m-%d %H:%M %z"),
        "versions": f"Python {platform.python_version()}, TensorFlow {tf.__version__}, "
        f"Keras {keras.__version__}, OpenCV {cv2.__version__}, NumPy {np.__version__}",
    }


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


def read_measures(scorer: Scorer) -> dict:
    """Read what 05 measured of this very model, told by its decision; nothing if it did not."""
    for path in (scorer.path.with_name("metrics.json"), scorer.path.with_suffix(".json")):
        try:
            measured = to_json.loads(path.read_bytes())
            if measured["decision"] == scorer.decision._asdict():
                return measured
        except (OSError, ValueError, KeyError, TypeError):
            pass
    return {}


def word_result(result: dict) -> str:
    """Say a file's verdict, or why it has none, in a line, and each note in a further one."""
    if "reason" in result:
        return f"{'not scored':12} {spell(result['file'])}: {spell(result['reason'])}"
    line = f"{result['verdict']:12} {spell(result['file'])}: "
    track = next((one for one in result["tracks"] if one["track"] == result["track"]), None)
    if track is None:
        line += f"none was found in {result['frames_scored']:,} frames"
    else:
        line += f"p_fake {track['p_fake']:.2f}"
        line += " ({:.2f} to {:.2f})".format(*track["interval_95"]) if track["interval_95"] else ""
        line += f", threshold {result['threshold']:.2f}; face {track['track']} of "
        line += f"{len(result['tracks'])}, in {track['frames']} of {result['frames_scored']:,} "
        line += "frames scored" + (f"; {track['doubt']}" if track["doubt"] else "")
    return "\n".join([line, *(f"{'':12} {spell(note)}" for note in result["notes"])])


def tabulate(results: list[dict]) -> pd.DataFrame:
    """Make the table of results.csv: a row a file."""
    rows = []
    for result in results:
        low, high = result.get("interval_95") or (None, None)
        tracks = result.get("tracks", [])
        frames = sum(one["frames"] for one in tracks if one["track"] == result["track"])
        notes = "; ".join(result.get("notes", []))
        row = {"low": low, "high": high, "frames": frames, "tracks": len(tracks), "notes": notes}
        rows.append(result | row)
    return pd.DataFrame(rows, columns=RESULTS)


# --- Machinery ------------------------------------------------------------------------------------


def check_settings(settings: SimpleNamespace) -> None:
    """Refuse a number that makes no sense.

    Raises:
        ValueError: there is one.
    """
    limits = dict.fromkeys(
        ("fewest_frames", "most_pixels", "resamples", "explained"), (1, math.inf)
    )
    limits |= {"frames_at_once": (1, math.inf), "longest_gap": (0, math.inf)}
    limits |= dict.fromkeys(("picture_margin", "least_overlap", "least_likeness"), (0, 1))
    limits |= {"frames_per_second": (1e-6, 1e6)}
    for name, (least, most) in limits.items():
        value = getattr(settings, name)
        if not least <= value <= most:  # so that NaN is refused
            advice = f"{least} or more" if most == math.inf else f"{least} to {most}"
            raise ValueError(f"--{name.replace('_', '-')} is {value}; give {advice}.")


def check_file(path: Path) -> None:
    """Refuse what is no file: a pipe or a device may never end.

    Raises:
        FileNotFoundError: it is no file.
    """
    if path.exists() and not path.is_file():
        raise FileNotFoundError("is a pipe or a device")
    if not path.is_file():
        raise FileNotFoundError(
            "is a broken link" if path.is_symlink() else "there is no such file"
        )


def read_claims(folder: Path) -> set[str]:
    """Read which files in a folder this script has written."""
    try:
        return set((folder / CLAIMS).read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return set()


def claim_outputs(folder: Path, names: list[str]) -> None:
    """Delete what earlier runs wrote under these names, and list them as this script's.

    Raises:
        ValueError: another's file has such a name.
    """
    claims, there = read_claims(folder), [name for name in names if os.path.lexists(folder / name)]
    if foreign := [name for name in there if name not in claims]:
        raise ValueError(
            f"{folder / foreign[0]}: this script did not write it, so it stays as it is; move it "
            "away, or name another folder with --detections-dir."
        )
    for name in there:
        (folder / name).unlink()
    claims = "".join(f"{name}\n" for name in sorted({*claims, *names}))
    write_whole(folder / CLAIMS, lambda partial: partial.write_text(claims, encoding="utf-8"))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all: under a temporary name beside it, then renamed."""
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    partial.unlink(missing_ok=True)  # a link planted there would be followed
    write(partial)
    partial.replace(path)


def spell(text: object) -> str:
    """Spell a name so that a terminal can show it, and is sent no line ends and control codes."""
    text = str(text) if str(text).isprintable() else ascii(str(text))[1:-1]
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def word_error(error: Exception) -> str:
    """Say an error in a line, with its kind if it is not of those that scripts raise."""
    words = " ".join(str(error).split())
    return words if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {words}"


if __name__ == "__main__":
    for name in {"SIGTERM", "SIGHUP"} & set(dir(signal)):  # both end a run as Ctrl-C does
        if signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(getattr(signal, name), signal.default_int_handler)
    try:
        tyro.cli(main)
    except KeyboardInterrupt:
        print(f"{Path(__file__).name}: stopped; the same command goes on.", file=sys.stderr)
        sys.exit(130)
    except filelock.Timeout as error:
        folder = Path(error.lock_file).parent
        sys.exit(
            f"{Path(__file__).name}: {folder}: another run is writing to it; wait for its end."
        )
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
