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
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import cv2
import filelock
import jinja2
import numpy as np
import pandas as pd
import scipy.stats
import sklearn.metrics
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.utils.class_weight import compute_sample_weight
from tqdm import tqdm

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
SWEEP = False  # measure crops that are changed at 128 x 128 too, in each of the ways below
JPEG_QUALITIES = (90, 70, 50, 30)  # of 100
SIZES = (0.75, 0.5, 0.35, 0.25)  # of the width and height, and back
BLURS = (1.0, 2.0, 3.0)  # pixels, sigma
NOISES = (4.0, 8.0, 16.0)  # of 255, sigma
BRIGHTNESSES = (-0.3, -0.15, 0.15, 0.3)  # added, of the range from black to white
# machine
BATCH_SIZE = 64  # crops scored at once
# --------------------------------------------------------------------------------------------------

TEMPLATES = Path(__file__).parent / "templates"  # the card, and what each measure is
BINS = 10  # of p_fake, for the calibration error
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
    loaded, decision = train_cnn.load_model(model), train_cnn.read_decision(model)
    # Every folder is looked at before the first is measured.
    parts = {folder: part or choose_part(folder) for folder in split_dirs}
    listed = {folder: train_cnn.find_crops(folder, (name,)) for folder, name in parts.items()}
    for folder in listed:
        compare_crop_rules(train_cnn.read_crop_rule(folder), decision, folder)

    report_dir = report_dir or model.parent
    train_cnn.claim_folder(report_dir, "--report-dir")
    with filelock.FileLock(report_dir / ".lock", timeout=0):
        own_files = find_own_files(report_dir)
        folders, scored, robustness = {}, [], []
        for folder, crops in listed.items():
            images = train_cnn.open_cache(len(crops), report_dir)
            crops, left_out = train_cnn.decode_crops(crops, folder, images)
            predictions = score_folder(loaded, images, crops, decision, batch_size)
            scored.append(predictions.assign(folder=str(folder)))
            folders[str(folder)] = {
                "part": parts[folder],
                "counts": train_cnn.count_crops(crops),
                "left_out": left_out,
                **measure_folder(predictions, decision),
            }
            if sweep:
                score = partial(score_folder, loaded, decision=decision, batch_size=batch_size)
                changed = train_cnn.open_cache(len(images), report_dir)
                rows = sweep_changes(images, changed, crops, score, decision, changes, seed)
                robustness += [{"folder": str(folder), **row} for row in rows]

        predictions = pd.concat(scored, ignore_index=True)
        intervals = (decision.threshold, resamples, fewest_videos, seed)
        metrics = {
            "made_by": Path(__file__).name,
            "model": str(model),
            "decision": decision._asdict(),
            "training": read_training(model),
            "folders": folders,
            "groups": [
                {**names, **measure_with_intervals(judge_videos(group), *intervals)}
                for names, group in split_groups(predictions)
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
    return "" if any((folder / label).is_dir() for label in train_cnn.CLASSES) else "test"


def compare_crop_rules(rule: dict, decision: train_cnn.Decision, folder: Path) -> None:
    """Say so where a folder's crops were cut in another way than the model wants them."""
    differ = [name for name, value in rule.items() if value != getattr(decision, name)]
    for name in differ:
        print(
            f"NOTE: {folder}: its crops have {name} {rule[name]} and the model was trained on "
            f"{getattr(decision, name)}, so that its measures here are not those of its use.",
            file=sys.stderr,
        )


def score_folder(
    model: train_cnn.keras.Model,
    images: np.ndarray,
    crops: pd.DataFrame,
    decision: train_cnn.Decision,
    batch_size: int,
) -> pd.DataFrame:
    """Score crops, their index being rows of images: the table with p_real, p_fake, undecided."""
    predictions = train_cnn.predict_crops(model, images, crops, batch_size)
    small = predictions["side"] < decision.smallest_face
    soft = predictions["sharpness"] < decision.least_sharpness
    p_fake = train_cnn.calibrate(predictions["p_real"], decision)
    return predictions.assign(p_fake=p_fake, undecided=small | soft)


# --- Measures -------------------------------------------------------------------------------------


def measure_folder(predictions: pd.DataFrame, decision: train_cnn.Decision) -> dict:
    """Measure a folder: by_crop, by_video, confusion and calibration_error."""
    videos = judge_videos(predictions)
    before = train_cnn.calibrate(predictions["p_real"], train_cnn.Decision())
    is_fake = (predictions["label"] == "fake").to_numpy()
    called = np.where(videos["p_fake"] >= decision.threshold, "fake", "real")
    counts = sklearn.metrics.confusion_matrix(videos["label"], called, labels=train_cnn.CLASSES)
    names = [f"{truth}_as_{call}" for truth in train_cnn.CLASSES for call in train_cnn.CLASSES]
    return {
        "by_crop": measure(predictions, decision.threshold),
        "by_video": measure(videos, decision.threshold),
        "confusion": dict(zip(names, counts.ravel().tolist(), strict=True)),
        "calibration_error": {
            "before": measure_calibration(is_fake, before),
            "after": measure_calibration(is_fake, predictions["p_fake"].to_numpy()),
        },
    }


def judge_videos(predictions: pd.DataFrame) -> pd.DataFrame:
    """Give each video the mean p_fake of its crops; it is undecided where most of its crops are."""
    videos = predictions.groupby(["label", "video_id"], as_index=False)
    videos = videos.agg({"p_fake": "mean", "undecided": "mean"})
    return videos.assign(undecided=videos["undecided"] > 0.5)


def measure(table: pd.DataFrame, threshold: float) -> dict[str, float]:
    """Measure the scores of crops or of videos: label, p_fake and undecided of each.

    Returns:
        What templates/about-measures.json explains.
    """
    is_fake, p_fake = (table["label"] == "fake").to_numpy(), table["p_fake"].to_numpy()
    called_fake = (p_fake >= threshold) & ~table["undecided"].to_numpy()
    values = {
        "auc": sklearn.metrics.roc_auc_score(is_fake, p_fake),
        "average_precision": sklearn.metrics.average_precision_score(is_fake, p_fake),
        "eer": train_cnn.find_equal_errors(is_fake, p_fake)[0],
        "log_loss": sklearn.metrics.log_loss(is_fake, p_fake),
        "brier": sklearn.metrics.brier_score_loss(is_fake, p_fake),
        "accuracy": np.mean((p_fake >= threshold) == is_fake),
        "accuracy_at_0.5": np.mean((p_fake >= 0.5) == is_fake),
        "reals_called_fake": np.mean(called_fake[~is_fake]),
        "fakes_found": np.mean(called_fake[is_fake]),
        "undecided": table["undecided"].mean(),
    }
    return {name: float(value) for name, value in values.items()}


def measure_calibration(is_fake: np.ndarray, p_fake: np.ndarray) -> float:
    """Measure the expected calibration error, 0..1 (Naeini et al., AAAI 2015)."""
    bins = bin_scores(is_fake, p_fake)
    return float(np.average(np.abs(bins["p_fake"] - bins["fakes"]), weights=bins["weight"]))


def bin_scores(is_fake: np.ndarray, p_fake: np.ndarray) -> pd.DataFrame:
    """Sort scores into BINS equal bins of p_fake: weight, mean p_fake and share of fakes of each.

    Fakes and reals weigh the same in all, as in the fit of the calibration.
    """
    bins = np.minimum((p_fake * BINS).astype(int), BINS - 1)
    weight = compute_sample_weight("balanced", is_fake)
    table = pd.DataFrame({"weight": weight, "p_fake": weight * p_fake, "fakes": weight * is_fake})
    table = table.groupby(bins).sum()
    return table.assign(
        p_fake=table["p_fake"] / table["weight"], fakes=table["fakes"] / table["weight"]
    )


# --- Robustness -----------------------------------------------------------------------------------


def sweep_changes(
    images: np.ndarray,
    changed: np.ndarray,
    crops: pd.DataFrame,
    score: Callable[[np.ndarray, pd.DataFrame], pd.DataFrame],
    decision: train_cnn.Decision,
    changes: dict[str, tuple[float, ...]],
    seed: int,
) -> list[dict]:
    """Measure changed crops by video: a row a change and value, and one of it unchanged.

    Args:
        images: RGB uint8 (n, 128, 128, 3)
        changed: room for as many
        crops: their index being rows of images
    """
    steps = [(kind, value) for kind in changes for value in (UNCHANGED[kind], *changes[kind])]
    rows = []
    for kind, value in tqdm(steps, "changes", leave=False):

        def change(row: int, kind: str = kind, value: float = value) -> float:
            changed[row] = change_crop(images[row], kind, value, (seed, row))
            return train_cnn.measure_sharpness(changed[row])

        with ThreadPoolExecutor() as pool:
            sharpness = list(pool.map(change, crops.index))
        side = crops["side"]
        if kind == "size":
            side = side.clip(upper=train_cnn.IMAGE_SIZE) * value
        videos = judge_videos(score(changed, crops.assign(sharpness=sharpness, side=side)))
        rows.append({"change": kind, "value": value, **measure(videos, decision.threshold)})
    return rows


def change_crop(
    image: np.ndarray, kind: str, value: float, seed: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """Change a crop, RGB uint8 (128, 128, 3), in one of the ways of UNCHANGED."""
    if value == UNCHANGED[kind]:
        return image
    if kind == "JPEG quality":
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(value)]
        encoded = cv2.imencode(".jpg", image[..., ::-1], quality)[1]
        return cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1]
    if kind == "size":
        small = cv2.resize(image, None, fx=value, fy=value, interpolation=cv2.INTER_AREA)
        return cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    if kind == "blur":
        return cv2.GaussianBlur(image, (0, 0), value)
    added = value * 255
    if kind == "noise":
        added = np.random.default_rng(seed).normal(0, value, image.shape)
    return np.clip(np.rint(image + added), 0, 255).astype(np.uint8)


# --- The table ------------------------------------------------------------------------------------


def measure_with_intervals(
    videos: pd.DataFrame, threshold: float, resamples: int, fewest_videos: int, seed: int
) -> dict[str, float | list[float] | None]:
    """Measure videos, with the 95 % intervals of what matters most, and count them.

    The bootstrap (Efron, 1979) draws videos, not crops: the crops of a video are nearly the same
    picture, and drawn one by one they would promise far too much.
    """
    p_fake = videos["p_fake"].to_numpy()
    called_fake = (p_fake >= threshold) & ~videos["undecided"].to_numpy()
    rows = [np.flatnonzero(videos["label"] == label) for label in train_cnn.CLASSES]

    def measure_draws(fakes: np.ndarray, reals: np.ndarray, axis: int) -> np.ndarray:
        """Take rows of videos, (draws, n) of each class: (3, draws), for all draws at once."""
        count, others = fakes.shape[axis], reals.shape[axis]
        scores = np.concatenate((p_fake[fakes], p_fake[reals]), axis)
        ranks = scipy.stats.rankdata(scores, axis=axis)[..., :count].sum(axis)
        auc = (ranks - count * (count + 1) / 2) / (count * others)  # Mann and Whitney, 1947
        return np.stack((auc, called_fake[reals].mean(axis), called_fake[fakes].mean(axis)))

    bounds = [None] * 3
    if min(map(len, rows)) >= fewest_videos:
        drawn = scipy.stats.bootstrap(
            rows, measure_draws, n_resamples=resamples, method="percentile", rng=seed, batch=100
        )
        bounds = np.transpose(drawn.confidence_interval).tolist()
    intervals = zip(("auc_95", "reals_called_fake_95", "fakes_found_95"), bounds, strict=True)
    counts = dict(zip(("fake videos", "real videos"), map(len, rows), strict=True))
    return {**counts, **measure(videos, threshold), **dict(intervals)}


def split_groups(predictions: pd.DataFrame) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """Yield the predictions of each folder, of each data set in it, and of each method.

    A method comes with the reals of its data set. Names are folder, dataset and method; "" is all.
    Groups without a real or without a fake are left out: nothing can be measured in them.
    """
    for folder, part in predictions.groupby("folder", sort=False):
        groups = [("", "", part)]
        groups += [(dataset, "", of) for dataset, of in part.groupby("dataset") if dataset]
        reals, fakes = (part[part["label"] == label] for label in ("real", "fake"))
        for (dataset, method), of in fakes.groupby(["dataset", "method"]):
            of_dataset = reals[reals["dataset"] == dataset]
            groups += [(dataset, method, pd.concat([of, of_dataset]))] if method else []
        for dataset, method, of in groups:
            if of["label"].nunique() == len(train_cnn.CLASSES):
                yield {"folder": folder, "dataset": dataset, "method": method}, of


# --- The report -----------------------------------------------------------------------------------


def write_report(
    metrics: dict,
    predictions: pd.DataFrame,
    decision: train_cnn.Decision,
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
    drawings = {
        "scores.png": lambda: draw_scores(predictions, decision),
        "worst_mistakes.png": lambda: draw_worst_mistakes(predictions, decision, mistakes),
        "robustness.png": lambda: draw_robustness(pd.DataFrame(metrics["robustness"])),
    }
    for name in metrics["files"]:
        if name in texts:
            content = texts[name].encode(errors="backslashreplace")
            train_cnn.write_whole(report_dir / name, partial(Path.write_bytes, data=content))
        else:
            train_cnn.write_picture(report_dir / name, drawings[name])


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


def draw_scores(predictions: pd.DataFrame, decision: train_cnn.Decision) -> Figure:
    """Draw a row a folder: ROC, precision and recall, confusion, scores by video, calibration."""
    folders = predictions.groupby("folder", sort=False)
    figure = Figure(figsize=(22, 4.4 * len(folders)), layout="constrained")
    panels = figure.subplots(len(folders), 5, squeeze=False)
    for (folder, part), row in zip(folders, panels, strict=True):
        roc, precision_recall, confusion, histogram, reliability = row
        videos = judge_videos(part)
        for table, unit in ((part, "by crop"), (videos, "by video")):
            truth_and_score = table["label"] == "fake", table["p_fake"]
            sklearn.metrics.RocCurveDisplay.from_predictions(*truth_and_score, name=unit, ax=roc)
            sklearn.metrics.PrecisionRecallDisplay.from_predictions(
                *truth_and_score, name=unit, ax=precision_recall
            )
        roc.set(xlabel="reals called fake", ylabel="fakes found")
        roc.set_title(folder, parse_math=False)  # a $ in it is a $
        precision_recall.set(xlabel="fakes found", ylabel="fakes among those called so")
        called = np.where(videos["p_fake"] >= decision.threshold, "fake", "real")
        look = {"labels": train_cnn.CLASSES, "cmap": "Blues", "colorbar": False, "ax": confusion}
        draw_confusion = sklearn.metrics.ConfusionMatrixDisplay.from_predictions
        draw_confusion(videos["label"], called, **look)
        confusion.set(title=f"videos at {decision.threshold:.3f}", xlabel="called", ylabel="truth")
        for label, color in (("fake", "C3"), ("real", "C0")):
            its = videos.loc[videos["label"] == label, "p_fake"]
            look = {"alpha": 0.6, "color": color, "label": f"{label}, {len(its):,}"}
            histogram.hist(its, 25, range=(0, 1), **look)
        histogram.axvline(decision.threshold, color="0.3", linestyle="--", label="threshold")
        histogram.set(title="scores by video", xlabel="p_fake", ylabel="videos")
        histogram.legend(frameon=False)
        draw_calibration(part, decision, reliability)
    return figure


def draw_calibration(part: pd.DataFrame, decision: train_cnn.Decision, axes: Axes) -> None:
    """Draw the share of fakes by p_fake, before and after the calibration."""
    is_fake = (part["label"] == "fake").to_numpy()
    for label, fitted in (("before", train_cnn.Decision()), ("after", decision)):
        p_fake = train_cnn.calibrate(part["p_real"], fitted)
        bins, error = bin_scores(is_fake, p_fake), measure_calibration(is_fake, p_fake)
        axes.plot(bins["p_fake"], bins["fakes"], "o-", label=f"{label}: error {error:.3f}")
    axes.plot((0, 1), (0, 1), color="0.6", linestyle=":", label="perfect")
    axes.set(title="calibration by crop", xlabel="p_fake, mean of a tenth", ylabel="share of fakes")
    axes.legend(frameon=False)


def draw_worst_mistakes(
    predictions: pd.DataFrame, decision: train_cnn.Decision, mistakes: int
) -> Figure:
    """Draw the crops that are farthest on the wrong side of the threshold, one a video."""
    sign = np.where(predictions["label"] == "fake", -1, 1)
    wrong_by = sign * (predictions["p_fake"] - decision.threshold)
    table = predictions.assign(wrong_by=wrong_by).sort_values("wrong_by", ascending=False)
    table = table[table["wrong_by"] > 0].drop_duplicates(["folder", "label", "video_id"])
    table = table.head(mistakes)
    rows = max(1, math.ceil(len(table) / 8))
    figure = Figure(figsize=(13, 1 + 2 * rows), layout="constrained")
    figure.suptitle(
        "Worst mistakes: truth, p_fake and video" if len(table) else "No crop is on the wrong side"
    )
    panels = figure.subplots(rows, 8, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, crop in zip(panels, table.to_dict("records"), strict=False):
        axes.imshow(train_cnn.read_crop(Path(crop["folder"]) / crop["crop"]))
        title = f"{crop['label']}, {crop['p_fake']:.2f}\n{crop['video_id'][-22:]}"
        axes.set_title(title, fontsize="small", parse_math=False)  # a $ in it is a $
    return figure


def draw_robustness(rows: pd.DataFrame) -> Figure:
    """Draw AUC and reals called fake by video against each change, a line a folder."""
    figure = Figure(figsize=(18, 7), layout="constrained")
    names = {"auc": "AUC by video", "reals_called_fake": "reals called fake"}
    panels = figure.subplots(2, len(UNCHANGED), sharey="row")
    for column, (kind, of_kind) in zip(panels.T, rows.groupby("change", sort=False), strict=False):
        for axes, name in zip(column, names, strict=True):
            for folder, line in of_kind.groupby("folder", sort=False):
                line = line.sort_values("value")
                label = folder.replace("$", r"\$")
                axes.plot(line["value"], line[name], "o-", label=label)
            axes.set(xlabel=kind, ylabel=names[name] if kind == "JPEG quality" else "")
            axes.grid(alpha=0.25)
    panels[0, 0].legend(frameon=False)
    return figure


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
        return train_cnn.read_saved(model, "training.json")
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
