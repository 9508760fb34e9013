"""Tell how likely the faces in videos and pictures are to be deepfakes.

    python 06-detect-deepfake.py clip.mp4
    python 06-detect-deepfake.py clip.mp4 photo.jpg a-folder --frames-per-second 5
    python 06-detect-deepfake.py clip.mp4 --json --no-annotate > result.json

Reads   videos, pictures, folders of them
        model/best_model.keras            the model and its decision, by 04; where there is none,
                                          the project's own, weights/deepfake-detector.keras
Writes  detections/results.csv            one row a file, of this run
        detections/<name>.json            all that was found, down to the score of every face
        detections/<name>-marked.mp4      the video, or picture (.png), with a box on every face
        detections/<name>.html            a report to hand on: verdict, timeline, crops, limits
Next    07-export-model.py

A frame goes through the very steps of 01, 02 and 04, so that a face is scored on the crop that the
training would have made of it. The faces of one person through a video are a track: a face joins
the track that it overlaps (as in Bochinski et al., "High-Speed Tracking-by-Detection Without Using
Image Information", AVSS 2017), and where people meet, the one that it looks like. A track's score
is the mean p_fake of its frames. It is called fake from one threshold on, and real below another;
both were found in training, and what lies between is undecided. The score's interval says how far
chance in the frames moves that mean, and nothing of how well the model knows such videos: a score
is no proof.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import json as to_json  # the option --json has its name
import math
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

gc.disable()  # what is imported is no garbage, and to look through all of it takes half a second

import filelock
import numpy as np
import pandas as pd
import scipy.optimize
import tyro
from tqdm import tqdm

from deepfake_detect import cli, marked_video
from deepfake_detect import crops as crop_files
from deepfake_detect import faces as face_detector
from deepfake_detect import inputs as media
from deepfake_detect import report as detection_report
from deepfake_detect.decision import Decision, calibrate
from deepfake_detect.faces import resize_by_width
from deepfake_detect.files import write_whole
from deepfake_detect.inputs import spell, word_error
from deepfake_detect.model_file import Scorer, read_scorer
from deepfake_detect.mtcnn import FaceDetector
from deepfake_detect.scoring import predict_both_ways

convert = importlib.import_module("01-convert-video-to-image")
crop_faces = importlib.import_module("02-crop-faces-with-mtcnn")

gc.freeze()
gc.enable()

# --------------------------------------------------------------------------------------------------
# folders
MODEL = None  # None: model/best_model.keras, or if there is none weights/deepfake-detector.keras
DETECTIONS_DIR = Path("detections")  # gets what is found
# sampling
FRAMES_PER_SECOND = 2.0  # scored of each second; neighbouring frames tell little more
FEWEST_FRAMES = 5  # scored frames that a verdict needs; short clips are sampled more densely
MOST_PIXELS = 100_000_000  # of a picture; the memory would not hold a much larger one
# verdict
RESAMPLES = 1000  # of a track's frames, for the 95 % interval of its score
# tracks
LEAST_OVERLAP = 0.2  # intersection over union; low, as half a second lies between two boxes
LEAST_LIKENESS = 0.7  # of colours, 0 to 1; of one person 0.9 and more, of two mostly below 0.75
LONGEST_GAP = 3  # scored frames for which a face may be unseen, before its next is another track
# output
ANNOTATE = True  # write the marked copy
EXPLAINED = 8  # most suspicious crops that the report shows, with what moved their score
LARGEST_VIDEO = 8.0  # MB of a marked video that goes into the report; a larger one stays beside it
JSON = False  # print the results as JSON, for other programs
# machine
FRAMES_AT_ONCE = 8  # searched for faces and scored together
# --------------------------------------------------------------------------------------------------

MODELS = Path("model/best_model.keras"), Path(__file__).parent / "weights/deepfake-detector.keras"
Sample = tuple[int, float, np.ndarray]  # a frame's index, its second, and the frame, BGR uint8
FAKE, REAL, UNDECIDED, NO_FACE = "likely fake", "likely real", "undecided", "no face"
RESULTS = ["file", "verdict", "p_fake", "low", "high", "threshold", "real_below", "track"]
RESULTS += ["frames", "tracks", "reason", "doubt", "notes"]
OUTPUTS = ("-marked.mp4", "-marked.png", ".html", ".json")  # after a name
OUTPUTS += ("-timeline.png", "-explain.png")  # of earlier versions: they never stay beside these
NAMED = 10  # files that the last sentence names
FEW_PICTURES = 4  # are scored before a graph of the model would be made


def main(
    files: Annotated[list[Path], tyro.conf.Positional],
    /,
    model: Path | None = MODEL,
    detections_dir: Path = DETECTIONS_DIR,
    frames_per_second: float = FRAMES_PER_SECOND,
    fewest_frames: int = FEWEST_FRAMES,
    most_pixels: int = MOST_PIXELS,
    resamples: int = RESAMPLES,
    least_overlap: float = LEAST_OVERLAP,
    least_likeness: float = LEAST_LIKENESS,
    longest_gap: int = LONGEST_GAP,
    annotate: bool = ANNOTATE,
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
        resamples: draws of frames for the interval of a score
        least_overlap: intersection over union of two boxes of one track, at least
        least_likeness: likeness of two faces of one track in colours, at least, 0 to 1
        longest_gap: scored frames for which the face of a track may be unseen
        annotate: write a copy with a box on every face
        explained: most suspicious crops that the report shows, with what moved their score
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
    sources = media.list_inputs(files)
    if not sources:
        raise ValueError(f"There is no video or picture in {', '.join(map(spell, files))}.")
    few = len(sources) <= FEW_PICTURES and all(map(media.is_picture, sources))
    scorer = load_scorer(model, as_graph=not few)
    say(f"model        {scorer.path}")
    results = []
    detections_dir.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(detections_dir / ".lock", timeout=0):
        media.claim_outputs(detections_dir, ["results.csv"])
        try:
            for source, name in zip(sources, media.name_outputs(sources), strict=True):
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


def load_scorer(path: Path | None, as_graph: bool = True) -> Scorer:
    """Load a model, or None for the first that is there of MODELS; see read_scorer."""
    convert.confine_decoder()  # before a thread reads the environment
    return read_scorer(path or next(filter(Path.is_file, MODELS), MODELS[0]), as_graph)


def process_file(source: Path, target: Path, scorer: Scorer, settings: SimpleNamespace) -> dict:
    """Detect and write what is asked for, into files whose names begin with `target`.

    Whatever fails costs this file alone; then the result is just the file and the reason.

    Raises:
        ValueError: the model, which is loaded meanwhile, is none of 04's.
    """
    try:
        if source.name in media.read_claims(source.parent):
            raise ValueError("was written by this script itself")
        media.claim_outputs(target.parent, [target.name + ending for ending in OUTPUTS])
        result, worst = detect(source, scorer, settings)
        heat = write_outputs(result, worst, target, scorer, settings)
    except Exception as error:
        scorer.loading.result()  # what kept the model from being loaded ends the run
        return {"file": str(source), "reason": word_error(error)}
    try:
        content = detection_report.collect_report(result, worst, heat, scorer, target, settings)
        write_html(content, target)
    except Exception as error:
        result["notes"].append(f"{target.name}.html is not written: {word_error(error)}")
    return result


# --- The faces and their scores -------------------------------------------------------------------


def detect(path: Path, scorer: Scorer, settings: SimpleNamespace) -> tuple[dict, pd.DataFrame]:
    """Score the faces of a file, join them to tracks, and judge every track and the file.

    Returns:
        The content of <name>.json, and the most suspicious faces: rows as its own, with the track
        and the crop (RGB uint8 (size, size, 3)).

    Raises:
        ValueError, OSError: the file cannot be read or scored.
    """
    picture, notes = media.is_picture(path), []
    total = None if picture else media.guess_frames(path, settings.frames_per_second)
    frames = media.read_ahead(media.sample_frames(path, settings, notes), settings.frames_at_once)
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
        "real_below": round(scorer.decision.real_below, 4),
        "model": str(scorer.path),
        "frames_scored": count,
        "width": width,
        "height": height,
        "notes": notes,
        "tracks": tracks,
    }
    return result, worst


def score_frames(
    frames: Iterable[Sample], scorer: Scorer, settings: SimpleNamespace
) -> tuple[int, tuple[int, int], pd.DataFrame, pd.DataFrame]:
    """Score every face of some frames, a few at a time: memory does not grow with their number.

    Returns:
        The number of frames, the width and height of the first, a row for every face (see
        find_faces) with its p_fake, and p_fake and crop of the most suspicious by row, worst first.

    Raises:
        ValueError: the model gives no number for a face.
    """
    rows, worst, count, size = [], [], 0, (0, 0)
    # Faces are found while those before are scored, and the first while the model is loaded.
    batches = find_in_batches(iter(frames), scorer.decision, settings.frames_at_once)
    for number, first_size, found in media.read_ahead(batches, 2):
        count, size = count + number, size if any(size) else first_size
        crops = [crop_files.prepare_crop(crop, scorer.decision.image_size) for _, crop in found]
        scores = score_crops(crops, scorer) if found else []
        rows += [row | {"p_fake": round(p, 6)} for (row, _), p in zip(found, scores, strict=True)]
        first = len(rows) - len(found)
        worst += [(p, first + at, crops[at]) for at, p in enumerate(scores)]
        worst = sorted(worst, key=lambda one: -one[0])[: settings.explained]
    columns = ["frame", "seconds", "x", "y", "width", "height", "confidence"]
    columns += ["crop_side", "sharpness", "p_fake", "look"]
    faces = pd.DataFrame(rows, columns=columns).sort_values("frame", kind="stable")
    worst = pd.DataFrame(worst, columns=["p_fake", "row", "crop"]).set_index("row")
    return count, size, faces, worst


def find_in_batches(
    frames: Iterator[Sample], decision: Decision, at_once: int
) -> Iterator[tuple[int, tuple[int, int], list[tuple[dict, np.ndarray]]]]:
    """Yield how many the next frames are, the size of the first, and the faces in all of them."""
    while some := list(itertools.islice(frames, at_once)):
        yield len(some), some[0][2].shape[1::-1], list(find_faces(some, decision))


def find_faces(frames: list[Sample], decision: Decision) -> Iterator[tuple[dict, np.ndarray]]:
    """Yield each face of some frames: a row, and the crop that 01 and 02 would have saved, BGR.

    A row has frame, seconds, x, y, width and height (the detector's box in pixels of the file's own
    frame), confidence (0..1), crop_side and sharpness (pixels of the crop's shorter side, and what
    measure_sharpness of 04 gives) and look (see measure_look).
    """
    whole = [frame for _, _, frame in frames]
    full = decision.frames == "full"
    shown = whole if full else [resize_by_width(frame, convert.WIDTH_RULE) for frame in whole]
    detector = FaceDetector(*crop_faces.SEARCH)
    found = face_detector.crop_faces(shown, detector, crop_faces.CONFIDENCE, decision)
    for (index, seconds, frame), small, faces in zip(frames, shown, found, strict=True):
        down, across = np.divide(frame.shape[:2], small.shape[:2])
        for face, crop in faces:
            box = face_detector.scale_face(face, across, down).box
            row = {"frame": index, "seconds": round(seconds, 3)}
            row |= dict(zip(("x", "y", "width", "height"), box, strict=True))
            row |= {"confidence": round(face.confidence, 6), "crop_side": min(crop.shape[:2])}
            prepared = crop_files.prepare_crop(crop, decision.image_size)
            row |= {"sharpness": round(crop_files.measure_sharpness(prepared), 2)}
            within_box = face_detector.crop_face(small, face.box, 0)
            yield row | {"look": crop_files.measure_look(within_box)}, crop


def score_crops(crops: list[np.ndarray], scorer: Scorer) -> list[float]:
    """Score crops, RGB uint8 (size, size, 3): p_fake, calibrated, of each.

    Raises:
        ValueError: the model gives no number for one of them.
    """
    p_real = predict_both_ways(scorer.predict, np.stack(crops))
    if not np.isfinite(p_real).all():
        raise ValueError("the model gives no number for a face in it: its file is damaged")
    return calibrate(p_real, scorer.decision).tolist()


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
    faces: pd.DataFrame, picture: bool, decision: Decision, settings: SimpleNamespace
) -> dict:
    """Judge a face by its scores through the file: verdict, p_fake, interval and what it rests on.

    The interval is the middle 95 % of the means of frames drawn anew (the bootstrap, Efron 1979).
    Neighbouring frames are alike, so that it is too narrow rather than too wide.
    """
    scores = faces["p_fake"].to_numpy()
    low = high = p_fake = float(scores.mean())
    doubt, interval = doubt_faces(faces, decision), None
    if not picture and len(scores) < settings.fewest_frames:
        doubt = doubt or f"it is seen in fewer than {settings.fewest_frames} of the frames scored"
    known = not doubt
    if not picture and len(scores) >= settings.fewest_frames:
        drawn = np.random.default_rng(1).choice(scores, (settings.resamples, len(scores)))
        low, high = np.percentile(drawn.mean(axis=1), (2.5, 97.5)).tolist()
        interval = [round(low, 4), round(high, 4)]
    verdict, between = decide(p_fake, low, high, decision)
    return {
        "verdict": UNDECIDED if doubt else verdict,
        "doubt": doubt or between,
        "known": known,
        "p_fake": round(p_fake, 4),
        "interval_95": interval,
        "frames": len(scores),
        "first_seconds": float(faces["seconds"].min()),
        "last_seconds": float(faces["seconds"].max()),
    }


def doubt_faces(faces: pd.DataFrame, decision: Decision) -> str:
    """Say why the model does not know such faces, where most are smaller or softer than trained."""
    side, sharpness = faces["crop_side"], faces["sharpness"]
    for what, values, least in (
        ("smaller", side, decision.smallest_face),
        ("softer", sharpness, decision.least_sharpness),
    ):
        if (values < least).mean() > 0.5:
            return (
                f"it is {what} than the faces of the training ({values.median():.3g} < {least:.3g})"
            )
    return ""


def decide(p_fake: float, low: float, high: float, decision: Decision) -> tuple[str, str]:
    """Give the verdict of a score and its range, and the reason where that is none."""
    if low >= decision.threshold:
        return FAKE, ""
    if high < decision.real_below:
        return REAL, ""
    if p_fake >= decision.threshold:
        return UNDECIDED, "its interval reaches below what is called fake"
    if p_fake < decision.real_below:
        return UNDECIDED, "its interval reaches above what is called real"
    return UNDECIDED, "its score lies between what is called real and what is called fake"


def judge_file(tracks: list[dict]) -> dict:
    """Take the most suspicious track of those that can be judged, or of all if none can."""
    if not tracks:
        return {"verdict": NO_FACE, "doubt": "", "p_fake": None, "interval_95": None, "track": None}
    known = [track for track in tracks if track["known"]]
    worst = max(known or tracks, key=lambda track: track["p_fake"])
    return {key: worst[key] for key in ("verdict", "doubt", "p_fake", "interval_95", "track")}


# --- What is shown --------------------------------------------------------------------------------


def write_outputs(
    result: dict,
    worst: pd.DataFrame,
    target: Path,
    scorer: Scorer,
    settings: SimpleNamespace,
) -> Future:
    """Write everything about a file, the .json last; what else cannot be written becomes a note.

    Returns:
        What moved the scores of the worst (see explain_crops): it is found beside the encoder.

    Raises:
        OSError: the .json cannot be written.
    """
    writers = {}
    if settings.annotate and result["kind"] == "picture":
        writers["-marked.png"] = partial(
            marked_video.write_marked_picture, result, settings.most_pixels
        )
    elif settings.annotate:
        writers["-marked.mp4"] = partial(marked_video.write_marked_video, result)
    writers[".json"] = lambda path: path.write_text(
        to_json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    with ThreadPoolExecutor(1) as thread:
        heat = thread.submit(detection_report.explain_crops, list(worst["crop"]), scorer.model)
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
    return heat


def write_html(content: dict, target: Path) -> None:
    """Write the report: a page whole in itself, which opens offline."""
    page = detection_report.render_report(content)
    write_whole(Path(f"{target}.html"), lambda partial: partial.write_text(page, encoding="utf-8"))


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
        line += f", fake from {result['threshold']:.2f}, real below {result['real_below']:.2f}"
        line += f"; face {track['track']} of "
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
    limits |= dict.fromkeys(("least_overlap", "least_likeness"), (0, 1))
    limits |= {"frames_per_second": (1e-6, 1e6)}
    for name, (least, most) in limits.items():
        value = getattr(settings, name)
        if not least <= value <= most:  # so that NaN is refused
            advice = f"{least} or more" if most == math.inf else f"{least} to {most}"
            raise ValueError(f"--{name.replace('_', '-')} is {value}; give {advice}.")


if __name__ == "__main__":
    cli.run(main)
