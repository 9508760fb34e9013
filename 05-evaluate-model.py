"""Measure how often a model is right on face crops, and on whole videos and pictures.

    python 05-evaluate-model.py
    python 05-evaluate-model.py --split-dirs split_dataset other-split --sweep
    python 05-evaluate-model.py --clips my-videos

Reads   model/best_model.onnx or .keras         a model from 04, with its thresholds
        split_dataset/{test,val}/{real,fake}/   crops of people who are not in the training set
        split_dataset/crops.csv                 video, data set and method of each crop
        CLIPS/                                  videos and pictures in folders named real and fake,
                                                or in the layout of a data set
Writes  model/README.md                         the model card: how good it is, and where it fails
        model/metrics.json                      every measure
        model/{predictions,clips}.csv           score of every crop, verdict on every file
        model/{scores,worst_mistakes,robustness}.png
        The report on the included model goes into evaluation/ instead.
Next    06-detect-deepfake.py

Crops measure the model alone: a video's score is the mean p_fake of its crops. --clips measures the
whole detection of 06, which finds and tracks the faces and may stay undecided; use its rates to
judge a verdict. One class alone is enough: real videos show how often real people are called fake.
The report keeps the results of earlier runs with the same model.
"""

from __future__ import annotations

import sys
from pathlib import Path, PurePosixPath

sys.path.append(str(Path(__file__).resolve().parent))  # python -P leaves it out
from deepfake_detect import start

start.prepare(__name__)  # Ctrl-C while the rest is loading ends it with a sentence

import json
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Literal

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from deepfake_detect import cli, crops, datasets, inputs, measures, model_card, plots
from deepfake_detect.cli import Between, Count
from deepfake_detect.decision import (
    SMALLEST_P,
    Decision,
    calibrate,
    check_decision,
    describe_decision,
)
from deepfake_detect.files import (
    Output,
    check_model_path,
    claim,
    locked,
    make_safe_cell,
    read_image,
)
from deepfake_detect.shipped import find_shipped

if TYPE_CHECKING:
    from deepfake_detect.detection_model import DetectionModel


Sizes = Annotated[tuple[float, ...], Between(0.05, 1)]


@dataclass(frozen=True)
class Settings:
    """Edit a default here, or override it for one run: --part val."""

    # input
    model: Path | None = None  # .onnx or .keras; None: in model/, else the included model
    split_dirs: tuple[Path, ...] | None = None  # folders of crops; None: split_dataset, if no clips
    part: Literal["test", "val", "train"] | None = None  # of each folder; None: test, else val
    clips: tuple[Path, ...] = ()  # folders of videos and pictures to run the whole detection on
    # report
    report_dir: Path | None = None  # None: the model's folder; evaluation/ for the included model
    resamples: Count = 1000  # bootstrap samples of the videos, for the 95 % interval of the AUC
    fewest_videos: Annotated[int, Between(2)] = 10  # per class, for an interval of the AUC
    mistakes: Annotated[int, Between(0)] = 32  # most crops in worst_mistakes.png
    seed: Annotated[int, Between(0)] = 1  # random seed of the bootstrap and the noise
    # robustness
    sweep: bool = False  # also measure the crops after each change below, at their original size
    jpeg_qualities: Annotated[tuple[int, ...], Between(1, 100)] = (90, 70, 50, 30)  # 1 to 100
    sizes: Sizes = (0.75, 0.5, 0.35, 0.25)  # factors of width and height
    blurs: Annotated[tuple[float, ...], Between(0.1, 100)] = (1.0, 2.0, 3.0)  # sigma in pixels
    noises: Annotated[tuple[float, ...], Between(0, 255)] = (4.0, 8.0, 16.0)  # sigma, of 255
    brightnesses: Annotated[tuple[float, ...], Between(-1, 1)] = (-0.3, -0.15, 0.15, 0.3)  # offsets
    # machine
    batch_size: Annotated[Count, cli.MACHINE] = 64  # crops scored at once


DATA_SETS = find_shipped("data-sets.toml")
MODELS = (Path("model/best_model.onnx"), Path("model/best_model.keras"))  # the first that exists
SHIPPED = "weights/deepfake-detector.onnx"  # if neither exists
PICTURES = ("scores.png", "worst_mistakes.png", "robustness.png")
SECTIONS = {"folders": {}, "groups": [], "robustness": [], "clips": None}  # of metrics.json
UNCHANGED = {"JPEG quality": 100, "size": 1, "blur": 0, "noise": 0, "brightness": 0}
CROP_COLUMNS = ["folder", "crop", "video_id", "dataset", "method", "label", "split", "side"]
CROP_COLUMNS += ["sharpness", "undecided", "p_real", "p_fake"]
FOUND = ["kind", "verdict", "p_fake", "reason"]
CLIP_COLUMNS = ["file", "dataset", "method", "label", *FOUND]

Predict = Callable[[np.ndarray], np.ndarray]  # RGB uint8 (n, size, size, 3) -> p_real (n,)


def main(settings: Settings = Settings()) -> dict:
    """Measure how often a model is right on face crops, on whole files, or on both.

    Returns:
        the content of metrics.json

    Raises:
        ValueError, OSError: a setting, the model, a folder or the report folder cannot be used
    """
    cli.check_ranges(settings)
    model = settings.model or next(filter(Path.is_file, MODELS), find_shipped(SHIPPED))
    predict, decision, training = load_model(model, settings.batch_size)
    # Check every folder before measuring the first one.
    split_dirs = settings.split_dirs or (() if settings.clips else (Path("split_dataset"),))
    parts = {folder: settings.part or choose_part(folder) for folder in split_dirs}
    listed = {
        folder: crops.find_crops(folder, (part,), one_class=True) for folder, part in parts.items()
    }
    for folder in listed:
        compare_crop_rules(crops.read_crop_rule(folder), decision, folder)
    clips, left_out = list_clips(settings.clips)

    beside = Path("evaluation") if model == find_shipped(SHIPPED) else model.parent
    report_dir = settings.report_dir or beside
    report = claim(report_dir, "--report-dir", __file__, shared=report_dir == model.parent)
    with locked(report_dir):
        earlier = read_earlier(report)
        same = earlier.get("decision") == describe_decision(decision)  # the same model
        metrics = {
            "made_by": Path(__file__).name,
            "model": str(model),
            "decision": describe_decision(decision),
            "training": training,
            **{name: earlier[name] if same else empty for name, empty in SECTIONS.items()},
            "settings": cli.settings_of_result(settings),
            "about_measures": model_card.explain_measures(),
        }
        tables = {}
        if listed:
            measured, tables["predictions.csv"] = measure_crops(
                listed, parts, predict, decision, report_dir, settings
            )
            metrics |= measured
        if settings.clips:
            metrics["clips"], tables["clips.csv"] = measure_clips(clips, model, settings)
            metrics["clips"]["left_out"] = left_out
        metrics["versions"] = {"Python": platform.python_version()} | {
            name: version(name) for name in ("opencv-python-headless", "scikit-learn", "scipy")
        }
        write_report(metrics, tables, settings, report)
    facts = model_card.describe_measures(metrics, crops=bool(listed), clips=bool(settings.clips))
    look = f"read {report_dir / 'README.md'}, then check a file with 06-detect-deepfake.py"
    cli.print_facts(report_dir, {"model": model, **facts, "next": look})
    return metrics


def load_model(path: Path, batch_size: int) -> tuple[Predict, Decision, dict]:
    """Return a function that scores crops with the model, its decision, and its training facts.

    An ONNX file runs faster, and without TensorFlow; training also writes a .keras file.

    Raises:
        FileNotFoundError, ValueError: the file does not exist, or is not a model of this project
    """
    check_model_path(path)  # before the slow import of TensorFlow
    if path.suffix == ".onnx":
        from deepfake_detect.detection_model import DetectionModel

        model = DetectionModel.load(path)
        return partial(predict_with_onnx, model), model.decision, model.training
    import deepfake_detect.keras_setup  # noqa: F401 - before TensorFlow is imported
    from deepfake_detect import model_file, scoring

    model, training = model_file.load_model(path), {}
    with suppress(Exception):  # of many types: an older file has no training.json
        training = model_file.read_saved(path, "training.json")

    def predict(images: np.ndarray) -> np.ndarray:
        # Pad the last batch: Keras compiles a graph per batch size, which takes seconds.
        missing = batch_size - len(images)
        images = np.concatenate((images, np.repeat(images[-1:], missing, axis=0)))
        return scoring.predict_both_ways(model.predict_on_batch, images)[: batch_size - missing]

    return predict, model_file.read_decision(path), training


def predict_with_onnx(model: DetectionModel, images: np.ndarray) -> np.ndarray:
    """Return p_real before calibration, by inverting the calibration inside the ONNX file."""
    p_fake = np.clip(model.score(images)[0].astype(np.float64), SMALLEST_P, 1 - SMALLEST_P)
    logit = np.log(p_fake) - np.log1p(-p_fake)
    return 1 / (1 + np.exp((logit - model.decision.shift) * model.decision.temperature))


# --- Crops ----------------------------------------------------------------------------------------


def choose_part(folder: Path) -> str:
    """Return "test" or "val" if the folder has it, or "" if it has real/ or fake/ itself."""
    for part in ("test", "val"):
        if (folder / part).is_dir():
            return part
    return "" if any((folder / label).is_dir() for label in crops.CLASSES) else "test"


def compare_crop_rules(rule: dict, decision: Decision, folder: Path) -> None:
    """Warn if the crops of a folder were cut by another rule than the training crops."""
    for name in (name for name, value in rule.items() if value != getattr(decision, name)):
        print(
            f"NOTE: {folder}: its crops have {name} {rule[name]}, the model was trained with "
            f"{getattr(decision, name)}; these results do not reflect how the model is used.",
            file=sys.stderr,
        )


def measure_crops(
    listed: dict[Path, pd.DataFrame],
    parts: dict[Path, str],
    predict: Predict,
    decision: Decision,
    report_dir: Path,
    settings: Settings,
) -> tuple[dict, pd.DataFrame]:
    """Score and measure the crops of each folder; return the measures and all predictions."""
    folders, scored, robustness = {}, [], []
    for folder, table in listed.items():
        images = crops.open_cache(len(table), decision.image_size, report_dir)
        table, left_out = crops.decode_crops(table, folder, images)
        score = partial(score_crops, predict, images, decision, settings.batch_size)
        predictions = score(table).assign(folder=str(folder))
        scored.append(predictions)
        folders[str(folder)] = {
            "part": parts[folder],
            "counts": crops.count_crops(table),
            "left_out": left_out,
            **measures.measure_folder(predictions, decision),
        }
        if settings.sweep:
            rows = sweep_changes(folder, images, predictions, score, decision, settings)
            robustness += [{"folder": str(folder), **row} for row in rows]
    predictions = pd.concat(scored, ignore_index=True)
    intervals = (decision, settings.resamples, settings.fewest_videos, settings.seed)
    groups = [
        {**names, **measures.measure_with_intervals(group, *intervals)}
        for names, group in measures.split_groups(predictions)
    ]
    return {"folders": folders, "groups": groups, "robustness": robustness}, predictions


def score_crops(
    predict: Predict,
    images: np.ndarray,
    decision: Decision,
    batch_size: int,
    table: pd.DataFrame,
) -> pd.DataFrame:
    """Return the table of crops with columns p_real, p_fake and undecided.

    Here a crop is undecided if it is too small or too blurry, whatever its score.

    Args:
        predict: returns p_real of images
        images: RGB uint8 (n, size, size, 3)
        decision: calibrates the scores
        batch_size: crops scored at once
        table: crops; the index holds their rows in images
    """
    rows = table.index.to_numpy()
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    p_real = np.concatenate([predict(images[batch]) for batch in tqdm(batches, "scores", None)])
    small = table["side"] < decision.smallest_face
    soft = table["sharpness"] < decision.least_sharpness
    return table.assign(p_real=p_real, p_fake=calibrate(p_real, decision), undecided=small | soft)


def sweep_changes(
    folder: Path,
    images: np.ndarray,
    predictions: pd.DataFrame,
    score: Callable[[pd.DataFrame], pd.DataFrame],
    decision: Decision,
    settings: Settings,
) -> list[dict]:
    """Measure the crops by video after each change: one row per change and value, and unchanged.

    Args:
        folder: the folder of the crops
        images: RGB uint8 (n, size, size, 3), overwritten with the changed crops, for `score`
        predictions: scores of the unchanged crops; the index holds their rows in images
        score: returns the scores of a table of crops
        decision: thresholds and quality limits
        settings: the values of each change
    """
    values = (settings.jpeg_qualities, settings.sizes, settings.blurs, settings.noises)
    changes = dict(zip(UNCHANGED, (*values, settings.brightnesses), strict=True))
    steps = [(kind, value) for kind in changes for value in (UNCHANGED[kind], *changes[kind])]
    unchanged, rows = measures.measure_data_sets(predictions, decision), []
    for kind, value in tqdm(steps, "changes", leave=False, disable=None):
        if value == UNCHANGED[kind]:
            rows.append({"change": kind, "value": value, **unchanged})
            continue

        def change(row: int, kind: str = kind, value: float = value) -> float:
            crop = read_image(folder / predictions.at[row, "crop"])
            crop = change_crop(crop, kind, value, (settings.seed, row))
            images[row] = crops.prepare_crop(crop, decision.image_size)
            return crops.measure_sharpness(images[row])

        with ThreadPoolExecutor() as pool:
            sharpness = list(pool.map(change, predictions.index))
        side = predictions["side"] * (value if kind == "size" else 1)
        changed = score(predictions.assign(sharpness=sharpness, side=side))
        measured = measures.measure_data_sets(changed, decision)
        rows.append({"change": kind, "value": value, **measured})
    return rows


def change_crop(
    image: np.ndarray, kind: str, value: float, seed: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """Apply one change of UNCHANGED to a crop, BGR uint8 (height, width, 3)."""
    if value == UNCHANGED[kind]:
        return image
    if kind == "JPEG quality":
        _, data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, int(value)))
        return cv2.imdecode(data, cv2.IMREAD_COLOR)
    if kind == "size":
        return cv2.resize(image, None, fx=value, fy=value, interpolation=cv2.INTER_AREA)
    if kind == "blur":
        return cv2.GaussianBlur(image, (0, 0), value)
    added = value * 255
    if kind == "noise":
        added = np.random.default_rng(seed).normal(0, value, image.shape)
    return np.clip(np.rint(image + added), 0, 255).astype(np.uint8)


# --- Whole files ----------------------------------------------------------------------------------


def list_clips(folders: tuple[Path, ...]) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return a table of the labelled files, and the reason why each other file is left out.

    The label comes from the layout of a data set, or from a folder named real or fake: a folder
    given here or one inside it.

    Raises:
        FileNotFoundError, ValueError: a folder does not exist, or no file in it has a label
    """
    rows, list_rows = datasets.read_data_sets(DATA_SETS)
    clips, left_out = [], {}
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: the folder does not exist; correct --clips.")
        sources, list_paths, _ = datasets.find_files(folder, list_rows)
        lists, _ = datasets.read_lists(folder, list_paths, sources, list_rows)
        label, before = folder.resolve().name.lower(), len(clips)
        found = inputs.find_inputs([folder])
        left_out |= {str(one.path): one.reason for one in found.passed_over}
        for file in found.files:
            clip = {"dataset": "", "method": "", "label": label, "file": str(file)}
            try:
                below = PurePosixPath(file.relative_to(folder).as_posix())
                clips.append(clip | datasets.describe(below, lists, rows))
            except ValueError as error:
                if label in crops.CLASSES:
                    clips.append(clip)
                else:
                    left_out[str(file)] = str(error)
        if len(clips) == before:
            raise ValueError(
                f"{folder}: no video or picture in it has a label; sort them into folders named "
                "real and fake, or give a data set's folder to --clips."
            )
    return pd.DataFrame(clips, columns=CLIP_COLUMNS[:4]), left_out


def measure_clips(
    clips: pd.DataFrame, model: Path, settings: Settings
) -> tuple[dict, pd.DataFrame]:
    """Check every file with the detection of 06; return the counts of verdicts and a table."""
    from deepfake_detect import Detector  # here, because only the detection needs its imports
    from deepfake_detect.detection_model import find_model

    checks = Detector(find_model(model)).check_all(map(Path, clips["file"]))
    checks = tqdm(checks, "files", len(clips), unit="file", leave=False, disable=None)
    found = [[check.to_dict().get(name) for name in FOUND] for check in checks]
    table = clips.join(pd.DataFrame(found, columns=FOUND)).astype({"p_fake": float})
    failed = table["verdict"] == "not checked"
    if failed.all():
        file, reason = table.loc[0, ["file", "reason"]]
        raise ValueError(f"{file}: {reason}; 05 could not check any file.")
    folders = " ".join(str(folder) for folder in settings.clips)
    return {
        "command": f"05-evaluate-model.py --model {model} --clips {folders}",
        **measures.measure_clips(table[~failed]),
        "not_checked": table[failed].set_index("file")["reason"].to_dict(),
    }, table


# --- The report -----------------------------------------------------------------------------------


def write_report(
    metrics: dict, tables: dict[str, pd.DataFrame], settings: Settings, report: Output
) -> None:
    """Write the measures and tables, then the card, then the pictures; keep the user's files.

    Args:
        metrics: the content of metrics.json
        tables: the tables of this run, by file name
        settings: for the pictures
        report: the folder to write to
    """
    draw = choose_pictures(metrics, tables.get("predictions.csv"), settings)
    columns = {"predictions.csv": CROP_COLUMNS, "clips.csv": CLIP_COLUMNS}
    texts = {"metrics.json": json.dumps(metrics, indent=2) + "\n"}
    for name, table in tables.items():  # safe to open in a spreadsheet
        texts[name] = table[columns[name]].map(make_safe_cell).to_csv(index=False)
    texts["README.md"] = model_card.render(metrics)
    for name in (*texts, *draw):
        if not report.is_free([name]):
            why = "was not written by this script, so it is kept; move it, or set --report-dir"
            print(f"NOTE: {report.folder / name} {why}.", file=sys.stderr)
        elif name in texts:
            content = texts[name].encode(errors="backslashreplace")
            report.write(name, partial(Path.write_bytes, data=content))
        else:
            plots.write_picture(report, name, draw[name])
    if "predictions.csv" in tables:  # delete outdated pictures, such as from an earlier sweep
        report.delete(set(PICTURES) - set(draw))


def choose_pictures(
    metrics: dict, predictions: pd.DataFrame | None, settings: Settings
) -> dict[str, Callable]:
    """Return the function that draws each picture, by file name; leave out empty pictures."""
    if predictions is None:
        return {}
    decision = check_decision(metrics["decision"])
    worst = plots.find_worst_mistakes(predictions, decision).head(settings.mistakes)
    draw = {"scores.png": lambda: plots.draw_scores(predictions, decision)}
    if len(worst):
        draw["worst_mistakes.png"] = lambda: plots.draw_worst_mistakes(worst, decision)
    if any(row["value"] != UNCHANGED[row["change"]] for row in metrics["robustness"]):
        draw["robustness.png"] = lambda: plots.draw_robustness(pd.DataFrame(metrics["robustness"]))
    return draw


def read_earlier(report: Output) -> dict:
    """Return the content of an earlier metrics.json; empty if it does not exist.

    Raises:
        ValueError: this script did not write the metrics.json
    """
    report.check(["metrics.json"])
    path = report.folder / "metrics.json"
    saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return saved if set(SECTIONS) <= set(saved) else {}


if __name__ == "__main__":
    cli.run(main)
