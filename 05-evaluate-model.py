"""Measure how well a model tells real faces from fake ones, on any folders of crops.

    python 05-evaluate-model.py
    python 05-evaluate-model.py --split-dirs split_dataset other-split --sweep
    python 05-evaluate-model.py --model my-model/best_model.keras --part val --report-dir report

Reads   model/best_model.keras                      a model of 04, with its decision
        split_dataset/{test,val}/{real,fake}/       crops of people that it was not trained on
        split_dataset/crops.csv                     the video, data set and method of each
Writes  model/README.md                             the model card: how good, which limits
        model/metrics.json, model/predictions.csv   every measure; the score of every crop
        model/{scores,worst_mistakes}.png           and robustness.png with --sweep
Next    06-detect-deepfake.py

A video's score is the mean p_fake of its crops. Measures take fake as the positive class, as the
field's benchmarks do. With several folders the table has a row for each, and for each data set and
method in it: what a model is worth on data that it was not trained on.
"""

from __future__ import annotations

import importlib
import json
import math
import platform
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import deepfake_detect.keras_setup  # noqa: F401 - first, before others load Keras  # isort: skip
import cv2
import filelock
import jinja2
import keras
import numpy as np
import pandas as pd
from tqdm import tqdm

from deepfake_detect import augmentation, cli, measures
from deepfake_detect import crops as crop_files
from deepfake_detect import plots as drawings
from deepfake_detect.crops import CLASSES
from deepfake_detect.decision import Decision, calibrate
from deepfake_detect.files import claim_folder, write_whole
from deepfake_detect.model_file import load_model, read_decision, read_saved
from deepfake_detect.scoring import predict_crops

train_cnn = importlib.import_module("04-train-cnn")

# --------------------------------------------------------------------------------------------------
# folders
MODEL = Path("model/best_model.keras")  # a model that 04 wrote
SPLIT_DIRS = (Path("split_dataset"),)  # each with test/ or val/, or with real/ and fake/ itself
REPORT_DIR = None  # gets the card and the measures; None: the model's folder
# measures
PART = None  # of each folder: "test", "val", "train"; None: test/ where it is there, else val/
RESAMPLES = 1000  # of the videos, for the 95 % intervals
FEWEST_VIDEOS = 10  # of either class; from fewer an interval would promise too much: none is given
MISTAKES = 32  # crops on the sheet of the worst ones, one a video
SEED = 1  # of the resampling and of the noise
# robustness
SWEEP = False  # measure the crops changed, too, in each of the ways below, at their own size
JPEG_QUALITIES = (90, 70, 50, 30)  # of 100
SIZES = (0.75, 0.5, 0.35, 0.25)  # of the width and height
BLURS = (1.0, 2.0, 3.0)  # pixels, sigma
NOISES = (4.0, 8.0, 16.0)  # of 255, sigma
BRIGHTNESSES = (-0.3, -0.15, 0.15, 0.3)  # added, of the range from black to white
# machine
BATCH_SIZE = 64  # crops scored at once
# --------------------------------------------------------------------------------------------------

TEMPLATES = Path(__file__).parent / "templates"  # the card, and what each measure is
LIMITS = {  # of the settings: least and most
    (1, math.inf): ("resamples", "batch_size"),
    (0, math.inf): ("mistakes", "seed"),
    (2, math.inf): ("fewest_videos",),
    (1, 100): ("jpeg_qualities",),
    (0.05, 1): ("sizes",),
    (0.1, 100): ("blurs",),
    (0, 255): ("noises",),
    (-1, 1): ("brightnesses",),
}
FILES = ("metrics.json", "predictions.csv", "README.md")
PICTURES = ("scores.png", "worst_mistakes.png", "robustness.png")
UNCHANGED = {"JPEG quality": 100, "size": 1, "blur": 0, "noise": 0, "brightness": 0}
COLUMNS = ["folder", "crop", "video_id", "dataset", "method", "label", "split", "side"]
COLUMNS += ["sharpness", "undecided", "p_real", "p_fake"]


def main(
    model: Path = MODEL,
    split_dirs: tuple[Path, ...] = SPLIT_DIRS,
    report_dir: Path | None = REPORT_DIR,
    part: Literal["test", "val", "train"] | None = PART,
    resamples: int = RESAMPLES,
    fewest_videos: int = FEWEST_VIDEOS,
    mistakes: int = MISTAKES,
    seed: int = SEED,
    sweep: bool = SWEEP,
    jpeg_qualities: tuple[int, ...] = JPEG_QUALITIES,
    sizes: tuple[float, ...] = SIZES,
    blurs: tuple[float, ...] = BLURS,
    noises: tuple[float, ...] = NOISES,
    brightnesses: tuple[float, ...] = BRIGHTNESSES,
    batch_size: int = BATCH_SIZE,
) -> dict:
    """Measure how well a model tells real faces from fake ones, on any folders of crops.

    Args:
        model: a model that 04-train-cnn.py wrote
        split_dirs: folders with test/ or val/, or with real/ and fake/ themselves
        report_dir: folder for the card and the measures; None: the model's folder
        part: test, val or train of each folder; None: test where it is there, else val
        resamples: of the videos, for the 95 % intervals
        fewest_videos: of either class, from which an interval is given
        mistakes: crops on the sheet of the worst ones
        seed: of the resampling and of the noise
        sweep: measure how scores hold under the changes that follow, too
        jpeg_qualities: 1 to 100
        sizes: shares of the width and height that the crops are reduced to
        blurs: sigma in pixels
        noises: sigma, of 255
        brightnesses: added, of the range from black to white
        batch_size: crops scored at once

    Returns:
        What metrics.json holds.

    Raises:
        ValueError: a number, the model, a folder of crops or the report folder cannot be used.
        OSError: a folder or file is not there, or cannot be written or locked.
    """
    settings = dict(locals())
    for limits, names in LIMITS.items():
        for name in names:
            values = settings[name] if isinstance(settings[name], tuple) else (settings[name],)
            for value in values:
                train_cnn.check_numbers({name: value}, {limits: (name,)})
    values = jpeg_qualities, sizes, blurs, noises, brightnesses
    changes = dict(zip(UNCHANGED, values, strict=True))
    loaded, decision = load_model(model), read_decision(model)
    # Every folder is looked at before the first is measured.
    parts = {folder: part or choose_part(folder) for folder in split_dirs}
    listed = {folder: crop_files.find_crops(folder, (name,)) for folder, name in parts.items()}
    for folder in listed:
        compare_crop_rules(crop_files.read_crop_rule(folder), decision, folder)

    report_dir = report_dir or model.parent
    claim_folder(report_dir, "--report-dir", Path(train_cnn.__file__).name)
    with filelock.FileLock(report_dir / ".lock", timeout=0):
        own_files = find_own_files(report_dir)
        folders, scored, robustness = {}, [], []
        for folder, crops in listed.items():
            images = crop_files.open_cache(len(crops), decision.image_size, report_dir)
            crops, left_out = crop_files.decode_crops(crops, folder, images)
            score = partial(score_folder, loaded, images, decision=decision, batch_size=batch_size)
            predictions = score(crops).assign(folder=str(folder))
            scored.append(predictions)
            folders[str(folder)] = {
                "part": parts[folder],
                "counts": crop_files.count_crops(crops),
                "left_out": left_out,
                **measures.measure_folder(predictions, decision),
            }
            if sweep:
                rows = sweep_changes(folder, images, predictions, score, decision, changes, seed)
                robustness += [{"folder": str(folder), **row} for row in rows]

        predictions = pd.concat(scored, ignore_index=True)
        intervals = (decision, resamples, fewest_videos, seed)
        metrics = {
            "made_by": Path(__file__).name,
            "model": str(model),
            "decision": decision._asdict(),
            "training": read_training(model),
            "folders": folders,
            "groups": [
                {**names, **measures.measure_with_intervals(group, *intervals)}
                for names, group in measures.split_groups(predictions)
            ],
            "robustness": robustness,
            "about_measures": json.loads((TEMPLATES / "about-measures.json").read_text()),
            "settings": json.loads(json.dumps(settings, default=str)),
            "versions": {
                "Python": platform.python_version(),
                **{name: version(name) for name in ("tensorflow", "keras", "scikit-learn")},
            },
        }
        write_report(metrics, predictions, decision, mistakes, report_dir, own_files)
    print_measures(metrics, report_dir)
    return metrics


def choose_part(folder: Path) -> str:
    """Choose test/ where it is there, else val/, else the folder itself if it has real/, fake/."""
    for part in ("test", "val"):
        if (folder / part).is_dir():
            return part
    return "" if any((folder / label).is_dir() for label in CLASSES) else "test"


def compare_crop_rules(rule: dict, decision: Decision, folder: Path) -> None:
    """Say so where a folder's crops were cut in another way than the model wants them."""
    differ = [name for name, value in rule.items() if value != getattr(decision, name)]
    for name in differ:
        print(
            f"NOTE: {folder}: its crops have {name} {rule[name]} and the model was trained on "
            f"{getattr(decision, name)}, so that its measures here are not those of its use.",
            file=sys.stderr,
        )


def score_folder(
    model: keras.Model,
    images: np.ndarray,
    crops: pd.DataFrame,
    decision: Decision,
    batch_size: int,
) -> pd.DataFrame:
    """Score crops, their index being rows of images: the table with p_real, p_fake, undecided.

    A crop is undecided here where it is too small or too soft, whatever its score.
    """
    predictions = predict_crops(model, images, crops, batch_size)
    small = predictions["side"] < decision.smallest_face
    soft = predictions["sharpness"] < decision.least_sharpness
    p_fake = calibrate(predictions["p_real"], decision)
    return predictions.assign(p_fake=p_fake, undecided=small | soft)


# --- Robustness -----------------------------------------------------------------------------------


def sweep_changes(
    folder: Path,
    images: np.ndarray,
    predictions: pd.DataFrame,
    score: Callable[[pd.DataFrame], pd.DataFrame],
    decision: Decision,
    changes: dict[str, tuple[float, ...]],
    seed: int,
) -> list[dict]:
    """Measure changed crops by video: a row a change and value, and one of it unchanged.

    Args:
        folder: that the crops are in
        images: room for them, RGB uint8 (n, size, size, 3), which `score` scores
        predictions: of the crops unchanged, their index being rows of images
    """
    steps = [(kind, value) for kind in changes for value in (UNCHANGED[kind], *changes[kind])]
    unchanged, rows = measures.measure_data_sets(predictions, decision), []
    for kind, value in tqdm(steps, "changes", leave=False):
        if value == UNCHANGED[kind]:
            rows.append({"change": kind, "value": value, **unchanged})
            continue

        def change(row: int, kind: str = kind, value: float = value) -> float:
            crop = crop_files.read_image(folder / predictions.at[row, "crop"])[..., ::-1]
            crop = change_crop(crop, kind, value, (seed, row))[..., ::-1]
            images[row] = crop_files.prepare_crop(crop, decision.image_size)
            return crop_files.measure_sharpness(images[row])

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
    """Change a crop, RGB uint8 (height, width, 3), in one of the ways of UNCHANGED."""
    if value == UNCHANGED[kind]:
        return image
    if kind == "JPEG quality":
        return augmentation.compress(image, int(value))
    if kind == "size":
        return cv2.resize(image, None, fx=value, fy=value, interpolation=cv2.INTER_AREA)
    if kind == "blur":
        return cv2.GaussianBlur(image, (0, 0), value)
    added = value * 255
    if kind == "noise":
        added = np.random.default_rng(seed).normal(0, value, image.shape)
    return np.clip(np.rint(image + added), 0, 255).astype(np.uint8)


# --- The report -----------------------------------------------------------------------------------


def write_report(
    metrics: dict,
    predictions: pd.DataFrame,
    decision: Decision,
    mistakes: int,
    report_dir: Path,
    own_files: set[str],
) -> None:
    """Write the measures first, then the card, then what may fail; a file of the user stays.

    Args:
        own_files: names of what an earlier run wrote, and this one may replace
    """
    names = [*FILES, *PICTURES[: None if metrics["robustness"] else -1]]
    foreign = [name for name in names if (report_dir / name).exists() and name not in own_files]
    metrics["files"] = [name for name in names if name not in foreign]
    for name in foreign:
        note = "this script did not write it, so it stays; move it away, or name a --report-dir"
        print(f"NOTE: {report_dir / name}: {note}.", file=sys.stderr)
    for name in own_files - set(names):  # the picture of an earlier sweep
        (report_dir / name).unlink(missing_ok=True)
    texts = {
        "metrics.json": json.dumps(metrics, indent=2) + "\n",
        "predictions.csv": predictions[COLUMNS].to_csv(index=False),
        "README.md": render_card(metrics),
    }
    pictures = {
        "scores.png": lambda: drawings.draw_scores(predictions, decision),
        "worst_mistakes.png": lambda: drawings.draw_worst_mistakes(predictions, decision, mistakes),
        "robustness.png": lambda: drawings.draw_robustness(pd.DataFrame(metrics["robustness"])),
    }
    for name in metrics["files"]:
        if name in texts:
            content = texts[name].encode(errors="backslashreplace")
            write_whole(report_dir / name, partial(Path.write_bytes, data=content))
        else:
            train_cnn.write_picture(report_dir / name, pictures[name])


def render_card(metrics: dict) -> str:
    """Write the model card (Mitchell et al., "Model Cards for Model Reporting", FAT* 2019)."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "interval": tell_interval,
        "percent": lambda share: f"{share:.0%}".replace("%", " %"),
        "number": lambda number: f"{number:,}",
        "cell": lambda value: " ".join(str(value).replace("|", "\\|").split()) or "all",
    }
    return environment.get_template("model-card.md").render(metrics)


def tell_interval(row: dict, name: str) -> str:
    """Tell a measure with its interval, if it has one: "0.840 (0.822 to 0.857)"."""
    interval = row[f"{name}_95"]
    return f"{row[name]:.3f}" + (" ({:.3f} to {:.3f})".format(*interval) if interval else "")


def print_measures(metrics: dict, report_dir: Path) -> None:
    """Print the few numbers that a reader would check."""
    print(report_dir)
    print(f"  {'model':15} {metrics['model']}")
    for name, folder in metrics["folders"].items():
        count = folder["counts"]
        crops = count["fake crops"] + count["real crops"]
        left_out = f", {len(folder['left_out']):,} left out" if folder["left_out"] else ""
        print(f"  {folder['part'] or 'all':15} {name}: {crops:,} crops{left_out}")
    for row in metrics["groups"]:
        label = " ".join(filter(None, (row["dataset"], row["method"]))) or row["folder"]
        fake, found = row["reals_called_fake"], row["fakes_found"]
        print(
            f"  {label:15} AUC by video {tell_interval(row, 'auc')}; {fake:.0%} of reals called "
            f"fake, {found:.0%} of fakes found, {row['undecided']:.0%} undecided"
        )
    print(f"  {'look next at':15} {report_dir / 'README.md'} and {report_dir / 'scores.png'}")


# --- Machinery ------------------------------------------------------------------------------------


def read_training(model: Path) -> dict:
    """Read how a model was trained, as its file has it; nothing where it does not say."""
    with suppress(Exception):  # of many kinds, by what the file is instead
        return read_saved(model, "training.json")
    return {}


def find_own_files(report_dir: Path) -> set[str]:
    """Find what an earlier run of this script wrote into a folder, by its metrics.json."""
    path = report_dir / "metrics.json"
    if not path.exists():
        return set()
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if saved["made_by"] == Path(__file__).name:
            return set(saved["files"]) & {*FILES, *PICTURES}
    raise ValueError(
        f"{path}: this script did not write it; move it away, or name another folder with "
        "--report-dir."
    )


if __name__ == "__main__":
    cli.run(main)
