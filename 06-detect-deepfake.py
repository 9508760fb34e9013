"""Tell how likely the faces in videos and pictures are to be deepfakes.

    python 06-detect-deepfake.py clip.mp4
    python 06-detect-deepfake.py clip.mp4 photo.jpg a-folder --frames-per-second 5
    python 06-detect-deepfake.py clip.mp4 --explain
    python 06-detect-deepfake.py clip.mp4 --json --no-annotate > result.json

Reads   videos, pictures, folders of them
        model/best_model.keras            the model, its temperature and its threshold, by 04
Writes  detections/results.csv            one row a file, of this run
        detections/<name>.json            all that was found, down to the score of every face
        detections/<name>-marked.mp4      the video, or picture (.png), with a box on every face
        detections/<name>-timeline.png    p_fake over time, a line a face
        detections/<name>-explain.png     what moved the score, with --explain
Next    07-export-model.py

A frame goes through the very steps of 01, 02 and 04: the width rule, the detector, the margin, the
size. The faces of one person through a video are a track, joined by the overlap of their boxes (as
in Bochinski et al., "High-Speed Tracking-by-Detection Without Using Image Information", AVSS 2017).
A track's score is the mean p_fake of its frames, held against the threshold that was found in
training. Its interval says how far chance in the frames moves that mean, and nothing of how well
the model knows such videos: a score is no proof.
"""

import importlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from json import dumps as dump_json
from pathlib import Path
from typing import Annotated, NamedTuple

# As 02 and 04 have them, before TensorFlow is imported: it is quieter, and faster.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import cv2
import imageio_ffmpeg
import keras
import matplotlib
import numpy as np
import pandas as pd
import scipy.optimize
import tensorflow as tf
import tyro
from matplotlib.figure import Figure
from tqdm import tqdm

convert = importlib.import_module("01-convert-video-to-image")
crop_faces = importlib.import_module("02-crop-faces-with-mtcnn")
train_cnn = importlib.import_module("04-train-cnn")

# --------------------------------------------------------------------------------------------------
# folders
MODEL = Path("model/best_model.keras")  # what 04 wrote; take none from people you don't trust
DETECTIONS_DIR = Path("detections")  # gets what is found
# sampling
FRAMES_PER_SECOND = 2.0  # scored of each second; neighbouring frames tell little more
FEWEST_FRAMES = 5  # that a verdict on a face rests on; of a clip too short for it more are scored
# verdict
PICTURE_MARGIN = 0.15  # a picture has no interval: within this of the threshold it is undecided
# tracks
LEAST_OVERLAP = 0.2  # intersection over union; low, as half a second lies between two boxes
LONGEST_GAP = 3  # scored frames for which a face may be unseen, before its next is another track
# output
ANNOTATE = True  # write the marked copy and the timeline
EXPLAIN = False  # write the sheet of the most suspicious crops with what moved their score
EXPLAINED = 8  # crops on that sheet
# machine
FRAMES_AT_ONCE = 8  # searched for faces and scored together
# --------------------------------------------------------------------------------------------------

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
RESAMPLES = 1000  # of the frames, for the interval
FAKE, REAL, UNDECIDED, NO_FACE = "likely fake", "likely real", "undecided", "no face"
RESULTS = ["file", "verdict", "p_fake", "low", "high", "threshold", "track", "frames", "tracks"]
COLORS = matplotlib.colormaps["RdYlGn_r"]  # of p_fake: green, yellow, red


class Scorer(NamedTuple):
    """What scores a face: the model, and the temperature and threshold that belong to it."""

    path: Path
    model: keras.Model
    predict: Callable[[np.ndarray], tf.Tensor]  # RGB float32 (n, 128, 128, 3) to p_real (n, 1)
    decision: train_cnn.Decision


def load_scorer(path: Path) -> Scorer:
    """Load a model and what was saved with it, running none of it as code.

    Raises:
        FileNotFoundError, ValueError: there is none, or it is none of 04's.
    """
    model, decision = train_cnn.load_model(path), train_cnn.read_decision(path)
    # One graph for any number of faces: Keras' own predict makes a second one, two seconds long.
    crops = tf.TensorSpec(model.input_shape, tf.float32)
    predict = tf.function(partial(model, training=False), input_signature=[crops])
    return Scorer(path, model, predict, decision)


# --- The faces and their scores -------------------------------------------------------------------


def list_inputs(paths: Iterable[Path]) -> list[Path]:
    """List the files given, and the videos and pictures below the folders given, in order."""
    known = (*convert.VIDEO_SUFFIXES, *PICTURE_SUFFIXES)
    files = []
    for path in paths:
        if path.is_dir():
            below = (file for file in path.rglob("*") if file.suffix.lower() in known)
            files += sorted(file for file in below if file.is_file())
        else:
            files.append(path)
    return list(dict.fromkeys(files))


def read_picture(path: Path) -> np.ndarray:
    """Read a picture: BGR uint8 (height, width, 3), turned as its file says.

    Raises:
        ValueError, OSError: it cannot be read or does not decode.
    """
    data = np.frombuffer(path.read_bytes(), np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if picture is None:
        raise ValueError("does not decode as a picture")
    return picture


def sample_frames(path: Path, frames_per_second: float) -> Iterator[tuple[int, float, np.ndarray]]:
    """Yield the frames to score, BGR uint8 as in the file, with their index and second.

    A picture is one frame. A video too short for a verdict at that rate gives more a second.

    Raises:
        ValueError, OSError: it cannot be read, does not decode, or has no frames.
    """
    if not path.is_file():
        raise FileNotFoundError("there is no such file")
    if is_picture(path):
        yield 0, 0.0, read_picture(path)
        return
    video = convert.open_video(path)
    rate, count = video.get(cv2.CAP_PROP_FPS), video.get(cv2.CAP_PROP_FRAME_COUNT)
    if rate > 0 and count > 0:
        frames_per_second = max(frames_per_second, 2 * FEWEST_FRAMES * rate / count)
    sampled = 0
    for index, seconds, _, frame in convert.read_frames(video, frames_per_second, None):
        if frame is not None:
            yield index, seconds, frame
            sampled += 1
    if not sampled:
        raise ValueError("no frame of it decodes")


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES


def find_faces(
    frames: list[tuple[int, float, np.ndarray]],
) -> Iterator[tuple[dict, np.ndarray]]:
    """Yield each face of some frames: a row, and the crop that 01 and 02 would have saved, BGR.

    A row has frame, seconds, x, y, width and height (the detector's box in pixels of the file's own
    frame) and confidence (0..1).
    """
    resized = [convert.resize_by_width(frame) for _, _, frame in frames]
    finder = crop_faces.load_detector(crop_faces.MIN_FACE_SIZE, None)
    for (index, seconds, frame), small, faces in zip(
        frames, resized, finder.detect(resized), strict=True
    ):
        scale = frame.shape[1] / small.shape[1], frame.shape[0] / small.shape[0]
        for face in faces:
            if face.confidence >= crop_faces.CONFIDENCE:
                box = (round(side * scale[axis % 2]) for axis, side in enumerate(face.box))
                row = {"frame": index, "seconds": round(seconds, 3)}
                row |= dict(zip(("x", "y", "width", "height"), box, strict=True))
                row |= {"confidence": round(face.confidence, 6)}
                yield row, crop_faces.crop_face(small, face.box, crop_faces.MARGIN)


def score_crops(crops: list[np.ndarray], scorer: Scorer) -> np.ndarray:
    """Score crops, BGR uint8 of any sizes: p_fake, calibrated, float64 (n,)."""
    images = np.stack([train_cnn.prepare_crop(crop) for crop in crops]).astype(np.float32)
    p_real = scorer.predict(images).numpy()[:, 0]
    return train_cnn.calibrate(p_real, scorer.decision.temperature)


def score_file(
    path: Path, frames_per_second: float, scorer: Scorer
) -> tuple[int, tuple[int, int], pd.DataFrame, list[tuple[float, int, np.ndarray]]]:
    """Score every face of a file, a few frames at a time: memory does not grow with its length.

    Returns:
        The number of frames looked at, their width and height, a row for every face with its
        p_fake, and the most suspicious crops as (p_fake, row, BGR crop), the worst first.

    Raises:
        ValueError, OSError: the file cannot be read.
    """
    rows, suspicious, scored, size = [], [], 0, (0, 0)
    frames = sample_frames(path, frames_per_second)
    with tqdm(desc=path.name, unit="frame", leave=False, disable=is_picture(path)) as bar:
        while some := list(itertools.islice(frames, FRAMES_AT_ONCE)):
            scored += len(some)
            size = size if any(size) else some[0][2].shape[1::-1]
            found = list(find_faces(some))
            scores = score_crops([crop for _, crop in found], scorer) if found else []
            for (row, crop), p_fake in zip(found, scores, strict=True):
                suspicious.append((float(p_fake), len(rows), crop))
                rows.append(row | {"p_fake": round(float(p_fake), 6)})
            suspicious = sorted(suspicious, key=lambda one: one[:2], reverse=True)[:EXPLAINED]
            bar.update(len(some))
    columns = ["frame", "seconds", "x", "y", "width", "height", "confidence", "p_fake"]
    return scored, size, pd.DataFrame(rows, columns=columns), suspicious


# --- Tracks and verdicts --------------------------------------------------------------------------


def join_tracks(faces: pd.DataFrame) -> pd.Series:
    """Tell for each face which track it belongs to, from 1 on in the order of appearance.

    Frame by frame, boxes are given to the tracks whose last box they overlap most, taken all
    together. A cut from one person to another in the same place is not noticed.
    """
    tracks = pd.Series(0, index=faces.index, dtype=int)
    step = np.median(np.diff(faces.frame.unique())) if faces.frame.nunique() > 1 else 1
    last: dict[int, tuple[int, np.ndarray]] = {}  # of each track: frame and box
    for frame, found in faces.groupby("frame"):
        open_tracks = [
            track for track, (seen, _) in last.items() if frame - seen <= (LONGEST_GAP + 1) * step
        ]
        boxes = found[["x", "y", "width", "height"]].to_numpy(float)
        overlaps = np.zeros((len(found), len(open_tracks)))
        for column, track in enumerate(open_tracks):
            overlaps[:, column] = measure_overlap(boxes, last[track][1])
        for row, column in zip(*scipy.optimize.linear_sum_assignment(-overlaps), strict=True):
            if overlaps[row, column] >= LEAST_OVERLAP:
                tracks[found.index[row]] = open_tracks[column]
        for row, index in enumerate(found.index):
            if not tracks[index]:
                tracks[index] = len(last) + 1
            last[tracks[index]] = frame, boxes[row]
    return tracks


def measure_overlap(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Measure the intersection over union of boxes (n, 4) and a box, x, y, width and height."""
    low = np.maximum(boxes[:, :2], box[:2])
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], box[:2] + box[2:])
    shared = (high - low).clip(0).prod(axis=1)
    return shared / (boxes[:, 2:].prod(axis=1) + box[2:].prod() - shared)


def judge_track(faces: pd.DataFrame, picture: bool, threshold: float) -> dict:
    """Judge a face by its scores through the file: verdict, p_fake, interval and what it rests on.

    The interval is the middle 95 % of the means of frames drawn anew (the bootstrap, Efron 1979).
    Neighbouring frames are alike, so that it is too narrow rather than too wide.
    """
    scores = faces.p_fake.to_numpy()
    p_fake, low, high = scores.mean(), None, None
    if picture:
        sure = abs(p_fake - threshold) > PICTURE_MARGIN
    elif len(scores) < FEWEST_FRAMES:
        sure = False
    else:
        drawn = np.random.default_rng(1).choice(scores, (RESAMPLES, len(scores)))
        low, high = np.percentile(drawn.mean(axis=1), (2.5, 97.5))
        sure = low >= threshold or high < threshold
    verdict = (FAKE if p_fake >= threshold else REAL) if sure else UNDECIDED
    interval = None if low is None else [round(float(low), 4), round(float(high), 4)]
    return {
        "verdict": verdict,
        "p_fake": round(float(p_fake), 4),
        "interval_95": interval,
        "frames": len(scores),
        "first_seconds": float(faces.seconds.min()),
        "last_seconds": float(faces.seconds.max()),
    }


def judge_file(tracks: list[dict], picture: bool) -> dict:
    """Take the most suspicious track that rests on enough frames, or of all if none does."""
    if not tracks:
        return {"verdict": NO_FACE, "p_fake": None, "interval_95": None, "track": None}
    enough = [track for track in tracks if picture or track["frames"] >= FEWEST_FRAMES]
    worst = max(enough or tracks, key=lambda track: track["p_fake"])
    return {key: worst[key] for key in ("verdict", "p_fake", "interval_95", "track")}


def detect(
    path: Path, frames_per_second: float, scorer: Scorer
) -> tuple[dict, list[tuple[float, int, np.ndarray]]]:
    """Detect: the content of <name>.json, and the most suspicious crops as score_file gives them.

    Raises:
        ValueError, OSError: the file cannot be read.
    """
    frames, (width, height), faces, suspicious = score_file(path, frames_per_second, scorer)
    faces.insert(0, "track", join_tracks(faces))
    threshold, picture = scorer.decision.threshold, is_picture(path)
    tracks = []
    for track, its_faces in faces.groupby("track"):
        judged = judge_track(its_faces, picture, threshold)
        listed = its_faces.drop(columns="track").to_dict("records")
        tracks.append({"track": int(track), **judged, "faces": listed})
    result = {
        "file": str(path),
        "kind": "picture" if picture else "video",
        **judge_file(tracks, picture),
        "threshold": round(threshold, 4),
        "model": str(scorer.path),
        "frames_scored": frames,
        "width": width,
        "height": height,
        "tracks": tracks,
    }
    return result, suspicious


# --- What is shown --------------------------------------------------------------------------------


def mark_faces(frame: np.ndarray, faces: Iterable[tuple[int, np.ndarray, float]]) -> np.ndarray:
    """Draw a box with its number and p_fake on each face (track, box, p_fake) of a BGR frame."""
    marked = frame.copy()
    line = max(2, round(frame.shape[1] / 400))
    for track, (x, y, width, height), p_fake in faces:
        red, green, blue, _ = COLORS(float(p_fake), bytes=True)
        color = int(blue), int(green), int(red)
        corner = round(x), round(y)
        cv2.rectangle(marked, corner, (round(x + width), round(y + height)), color, line)
        text, size = f"{track}: {p_fake:.2f}", line / 3
        (text_width, text_height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, line)
        top = max(0, corner[1] - text_height - 3 * line)
        below = corner[0] + text_width + 2 * line, top + text_height + 3 * line
        cv2.rectangle(marked, (corner[0], top), below, color, cv2.FILLED)
        at = corner[0] + line, top + text_height + line
        cv2.putText(marked, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), max(1, line // 2))
    return marked


def arrange_tracks(result: dict) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Arrange the tracks for drawing: number, frames (n,), and x, y, width, height, p_fake (5, n).

    Once a video, as lists would be made into arrays again for each of its frames.
    """
    sides = ("x", "y", "width", "height", "p_fake")
    return [
        (
            track["track"],
            np.array([face["frame"] for face in track["faces"]]),
            np.array([[face[side] for face in track["faces"]] for side in sides], float),
        )
        for track in result["tracks"]
    ]


def find_boxes(
    tracks: list[tuple[int, np.ndarray, np.ndarray]], frame: int
) -> Iterator[tuple[int, np.ndarray, float]]:
    """Yield number, box and p_fake of the tracks in a frame, between those scored in proportion."""
    for track, frames, values in tracks:
        if frames[0] <= frame <= frames[-1]:
            *box, p_fake = (np.interp(frame, frames, of) for of in values)
            yield track, np.array(box), p_fake


def write_marked_video(source: Path, result: dict, path: Path) -> None:
    """Write the video with its faces marked, as H.264 that browsers play, with its sound.

    It plays at the average frame rate, so the sound of one of varying rate may drift a little.

    Raises:
        OSError: ffmpeg, which comes with imageio-ffmpeg, does not write it.
    """
    video, tracks = convert.open_video(source), arrange_tracks(result)
    rate = video.get(cv2.CAP_PROP_FPS)
    rate = rate if 1 <= rate <= 240 else 25.0
    size = result["width"], result["height"]
    unfinished = path.with_name(path.stem + ".partial.mp4")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error"]
    command += ["-f", "rawvideo", "-pix_fmt", "bgr24", "-s", f"{size[0]}x{size[1]}"]
    command += [
        "-r",
        f"{rate}",
        "-i",
        "-",
        "-i",
        f"file:{source.absolute()}",
        "-map",
        "0:v",
        "-map",
        "1:a?",
    ]
    # At this preset the file is twice as large as at "veryfast", and there in 40 % of the time.
    command += ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-c:v", "libx264", "-preset", "ultrafast"]
    command += ["-pix_fmt", "yuv420p", "-c:a", "aac", "-shortest", "-movflags", "+faststart"]
    with subprocess.Popen(
        [*command, f"file:{unfinished.absolute()}"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as encoder:
        try:
            for index, _, _, frame in tqdm(
                convert.read_frames(video, None, None), path.name, unit="frame", leave=False
            ):
                if frame is None:
                    continue
                marked = mark_faces(frame, find_boxes(tracks, index))
                if frame.shape[1::-1] != size:
                    marked = cv2.resize(marked, size)
                encoder.stdin.write(marked.tobytes())
        except BrokenPipeError:
            pass  # ffmpeg has ended; it says why
        _, message = encoder.communicate()
    if encoder.returncode:
        unfinished.unlink(missing_ok=True)
        reason = message.decode(errors="replace").strip().splitlines()
        raise OSError(
            f"{path}: it could not be written ({reason[-1] if reason else 'ffmpeg failed'}); make "
            "room or name another --detections-dir, or leave it out with --no-annotate."
        )
    unfinished.replace(path)


def write_marked_picture(source: Path, result: dict, path: Path) -> None:
    """Write the picture with its faces marked, as PNG."""
    marked = mark_faces(read_picture(source), find_boxes(arrange_tracks(result), 0))
    _, png = cv2.imencode(".png", marked)
    unfinished = path.with_name(path.name + ".partial")
    unfinished.write_bytes(png)
    unfinished.replace(path)


def draw_timeline(result: dict) -> Figure:
    """Draw p_fake over time, a line a track, and the threshold."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots()
    for track in result["tracks"]:
        seconds = [face["seconds"] for face in track["faces"]]
        scores = [face["p_fake"] for face in track["faces"]]
        label = f"face {track['track']}: {track['verdict']}, {track['p_fake']:.2f}"
        axes.plot(seconds, scores, "o-", ms=3, label=label)
    axes.axhline(result["threshold"], color="0.3", linestyle="--", label="threshold")
    train_cnn.set_up(axes, Path(result["file"]).name, "seconds", "p_fake")
    axes.set_ylim(-0.02, 1.02)
    axes.legend(frameon=False, fontsize="small")
    return figure


def attribute_score(crops: np.ndarray, model: keras.Model) -> tuple[np.ndarray, np.ndarray]:
    """Tell what each place of the last convolution added to the score.

    Gradient times activation, summed over the channels (HiResCAM, Draelos and Carin, 2020).
    Grad-CAM would spread each gradient over all places, of which global max pooling lets one alone
    through.

    Args:
        crops: RGB uint8 (n, 128, 128, 3).

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


def explain_crops(crops: np.ndarray, model: keras.Model) -> np.ndarray:
    """Map what moved the scores of crops, RGB uint8 (n, 128, 128, 3), towards fake: (n, 128, 128).

    From 0 to 1, the strongest place of each crop.
    """
    maps = attribute_score(crops, model)[0].clip(0)
    maps /= np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-12)
    size = crops.shape[2], crops.shape[1]
    return np.stack([cv2.resize(one, size, interpolation=cv2.INTER_CUBIC) for one in maps]).clip(
        0, 1
    )


def draw_explanation(
    suspicious: list[tuple[float, int, np.ndarray]], result: dict, model: keras.Model
) -> Figure:
    """Draw the most suspicious crops, each with the map of what moved its score."""
    crops = np.stack([train_cnn.prepare_crop(crop) for _, _, crop in suspicious])
    maps = explain_crops(crops, model)
    figure = Figure(figsize=(max(4, 1.7 * len(crops)), 4.4), layout="constrained")
    figure.suptitle(
        f"{Path(result['file']).name}: where the model saw signs of a fake (4 x 4 places)"
    )
    panels = figure.subplots(2, len(crops), squeeze=False)
    for column, ((p_fake, _, _), crop, heat) in enumerate(
        zip(suspicious, crops, maps, strict=True)
    ):
        panels[0, column].set_title(f"p_fake {p_fake:.2f}", fontsize="small")
        panels[0, column].imshow(crop)
        panels[1, column].imshow(crop)
        panels[1, column].imshow(heat, cmap="inferno", alpha=0.55, vmin=0, vmax=1)
    for axes in panels.ravel():
        axes.axis("off")
    return figure


# --- The run --------------------------------------------------------------------------------------


def name_outputs(files: list[Path]) -> list[str]:
    """Name the outputs of each file by its stem, with a number where that is taken."""
    names, taken = [], set()
    for file in files:
        stem = file.stem[:100].rstrip(". ") or "file"
        number, name = 1, stem
        while name.casefold() in taken:  # Windows and macOS tell no A from a
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def write_outputs(
    source: Path,
    result: dict,
    suspicious: list[tuple[float, int, np.ndarray]],
    model: keras.Model,
    target: Path,
    annotate: bool,
    explain: bool,
) -> None:
    """Write everything about a file, each beginning with `target`; the .json comes last."""
    if annotate and result["kind"] == "picture":
        write_marked_picture(source, result, Path(f"{target}-marked.png"))
    elif annotate:
        write_marked_video(source, result, Path(f"{target}-marked.mp4"))
        train_cnn.write_picture(draw_timeline(result), Path(f"{target}-timeline.png"))
    if explain and suspicious:
        sheet = draw_explanation(suspicious, result, model)
        train_cnn.write_picture(sheet, Path(f"{target}-explain.png"))
    train_cnn.write_json(result, Path(f"{target}.json"))


def tabulate(results: list[dict]) -> pd.DataFrame:
    """Make the table of results.csv: a row a file."""
    rows = []
    for result in results:
        low, high = result.get("interval_95") or (None, None)
        of_track = [one for one in result.get("tracks", []) if one["track"] == result["track"]]
        row = {"low": low, "high": high, "frames": sum(one["frames"] for one in of_track)}
        rows.append(result | row | {"tracks": len(result.get("tracks", []))})
    return pd.DataFrame(rows, columns=[*RESULTS, "reason"])


def word_verdict(result: dict) -> str:
    """Say the verdict in a line."""
    if "reason" in result:
        return f"{'not scored':13}{result['file']}: {result['reason']}"
    line = f"{result['verdict']:13}{result['file']}"
    if result["p_fake"] is None:
        return f"{line}: none was found in {result['frames_scored']:,} frames"
    track = next(one for one in result["tracks"] if one["track"] == result["track"])
    interval = (
        "" if not track["interval_95"] else " ({:.2f} to {:.2f})".format(*track["interval_95"])
    )
    return (
        f"{line}: p_fake {track['p_fake']:.2f}{interval}, threshold {result['threshold']:.2f}; "
        f"face {track['track']} of {len(result['tracks'])}, in {track['frames']} of "
        f"{result['frames_scored']:,} frames scored"
    )


def main(
    files: Annotated[list[Path], tyro.conf.Positional],
    /,
    model: Path = MODEL,
    detections_dir: Path = DETECTIONS_DIR,
    frames_per_second: float = FRAMES_PER_SECOND,
    annotate: bool = ANNOTATE,
    explain: bool = EXPLAIN,
    json: bool = False,
) -> list[dict]:
    """Tell how likely the faces in videos and pictures are to be deepfakes.

    Args:
        files: videos, pictures, and folders of them
        model: a model that 04-train-cnn.py wrote
        detections_dir: folder for what is found
        frames_per_second: frames scored of each second; more of a video shorter than 5 s
        annotate: write a copy with a box on every face, and the timeline
        explain: write the most suspicious crops with what moved their score
        json: print the results to standard output as JSON, and all else to standard error

    Returns:
        What the .json files hold; of a file that could not be scored, file and reason.

    Raises:
        ValueError: a setting is out of its range, the model is of another kind, or some files could
            not be scored (the others are).
        OSError: the model is not there, or nothing can be written.
    """
    say = partial(print, file=sys.stderr if json else sys.stdout, flush=True)
    if not 0 < frames_per_second < float("inf"):
        raise ValueError(f"--frames-per-second is {frames_per_second}; give a number above 0.")
    scorer = load_scorer(model)
    sources = list_inputs(files)
    if not sources:
        raise ValueError(f"There is no video or picture in {', '.join(map(str, files))}.")
    results = []
    with train_cnn.lock_folder(detections_dir):
        for source, name in zip(sources, name_outputs(sources), strict=True):
            try:
                result, suspicious = detect(source, frames_per_second, scorer)
            except (ValueError, OSError, cv2.error) as error:
                results.append({"file": str(source), "reason": " ".join(str(error).split())})
            else:
                results.append(result)
                target = detections_dir / name
                write_outputs(source, result, suspicious, scorer.model, target, annotate, explain)
            say(word_verdict(results[-1]))
        train_cnn.write_table(tabulate(results), detections_dir / "results.csv")
    if json:
        print(dump_json(results))
    failed = [result["file"] for result in results if "reason" in result]
    say(f"{len(results) - len(failed):,} of {len(results):,} files were scored; look next at")
    say(f"  {detections_dir / 'results.csv'} and the files beside it. A score is no proof.")
    if failed:
        named = ", ".join(failed[:10]) + (", ..." if len(failed) > 10 else "")
        raise ValueError(f"{len(failed):,} of {len(results):,} files were not scored: {named}.")
    return results


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except KeyboardInterrupt:
        print(f"{Path(__file__).name}: stopped; what was scored is kept.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
