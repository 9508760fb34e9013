"""Draw the training curves of script 04, and the scores, worst mistakes and robustness of 05."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import sklearn.metrics
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deepfake_detect.crops import CLASSES, read_crop
from deepfake_detect.decision import Decision, calibrate
from deepfake_detect.files import Output
from deepfake_detect.measures import bin_scores, call, judge_videos, measure_calibration

WIDTH = 10  # inches; text stays readable at the 900 pixels of the model card
COLORS = {"fake": "C3", "real": "C0"}


def write_picture(output: Output, name: str, draw: Callable[[], Figure]) -> None:
    """Draw a figure and write it as PNG; if that fails, print a note and leave it out."""
    try:
        figure = draw()
        output.write(name, lambda partial: figure.savefig(partial, format="png", dpi=150))
    except Exception as error:  # of many types; the measures are already written
        print(
            f"NOTE: {output.folder / name}: this picture could not be drawn ({error}).",
            file=sys.stderr,
        )


def draw_training_curves(history: pd.DataFrame, best_epoch: int) -> Figure:
    """Plot training and validation loss and accuracy, and the validation AUC, by epoch.

    Args:
        history: the table of 04-train-cnn.py, one row per epoch
        best_epoch: the epoch whose weights were kept
    """
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    panels = {
        "loss (lower is better)": {"training": "loss", "validation": "val_loss"},
        "accuracy by crop": {"training": "accuracy", "validation": "val_accuracy"},
        "AUC by video": {"validation": "val_auc"},
    }
    for axes, (title, lines) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for label, column in lines.items():
            colour = "tab:orange" if label == "validation" else "tab:blue"
            axes.plot(history["epoch"], history[column], "o-", color=colour, label=label)
        axes.axvline(best_epoch, color="0.5", linestyle=":", label="epoch kept")
        axes.set(xlabel="epoch", ylabel=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return figure


def draw_scores(predictions: pd.DataFrame, decision: Decision) -> Figure:
    """Draw two rows of panels per folder: scores, confusion, and three curves with both classes."""
    folders = predictions.groupby("folder", sort=False)
    figure = Figure(figsize=(WIDTH, 6.6 * len(folders)), layout="constrained")
    blocks = np.atleast_1d(figure.subfigures(len(folders), 1))
    for (folder, part), block in zip(folders, blocks, strict=True):
        block.suptitle(folder, parse_math=False)  # show "$" literally
        videos = judge_videos(part)
        panels = iter(block.subplots(2, 3).ravel())
        draw_histogram(videos, decision, next(panels))
        draw_confusion(videos, decision, next(panels))
        if part["label"].nunique() == len(CLASSES):
            draw_calibration(part, decision, next(panels))
            draw_curves(part, videos, next(panels), next(panels))
        for empty in panels:
            empty.axis("off")
    return figure


def draw_histogram(videos: pd.DataFrame, decision: Decision, axes: Axes) -> None:
    """Draw a histogram of the scores of real and fake videos, with the two thresholds."""
    for label, color in COLORS.items():
        scores = videos.loc[videos["label"] == label, "p_fake"]
        look = {"alpha": 0.6, "color": color, "label": f"{label}, {len(scores):,}"}
        if len(scores):
            axes.hist(scores, 25, range=(0, 1), **look)
    axes.axvline(decision.threshold, color="0.3", linestyle="--", label="fake from")
    axes.axvline(decision.real_below, color="0.3", linestyle=":", label="real below")
    axes.set(title="scores of videos", xlabel="p_fake", ylabel="videos")
    axes.legend(loc="upper center", framealpha=1, edgecolor="w", fontsize="small")


def draw_confusion(videos: pd.DataFrame, decision: Decision, axes: Axes) -> None:
    """Draw the confusion matrix of videos, with counts and percentages of each row."""
    called, truths = call(videos, decision), sorted(videos["label"].unique())
    columns = (*CLASSES, "undecided")
    counts = np.array(
        [
            [np.sum((videos["label"] == truth) & (called == column)) for column in columns]
            for truth in truths
        ]
    )
    shares = counts / counts.sum(axis=1, keepdims=True)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        color = "w" if share > 0.5 else "k"
        axes.text(column, row, f"{count:,}\n{share:.0%}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(truths)), truths, rotation=90, va="center")
    axes.set(title="verdicts on videos", xlabel="called", ylabel="truth")


def draw_curves(part: pd.DataFrame, videos: pd.DataFrame, roc: Axes, precision: Axes) -> None:
    """Draw the ROC and precision-recall curves, by crop and by video."""
    for table, unit in ((part, "by crop"), (videos, "by video")):
        is_fake, p_fake = table["label"] == "fake", table["p_fake"]
        false_alarms, found, _ = sklearn.metrics.roc_curve(is_fake, p_fake)
        auc = sklearn.metrics.roc_auc_score(is_fake, p_fake)
        roc.plot(false_alarms, found, label=f"{unit}: AUC {auc:.3f}")
        right, recall, _ = sklearn.metrics.precision_recall_curve(is_fake, p_fake)
        average = sklearn.metrics.average_precision_score(is_fake, p_fake)
        precision.step(recall, right, where="post", label=f"{unit}: AP {average:.3f}")
    roc.plot((0, 1), (0, 1), color="0.6", linestyle=":", label="chance")
    roc.set(title="ROC", xlabel="reals called fake", ylabel="fakes found")
    precision.set(title="precision and recall", xlabel="fakes found (recall)", ylabel="precision")
    for axes in (roc, precision):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.legend(loc="lower right" if axes is roc else "lower left", fontsize="small")


def draw_calibration(part: pd.DataFrame, decision: Decision, axes: Axes) -> None:
    """Draw the share of fakes against p_fake, before and after calibration."""
    is_fake = (part["label"] == "fake").to_numpy()
    for label, fitted in (("before", Decision()), ("after", decision)):
        p_fake = calibrate(part["p_real"], fitted)
        bins, error = bin_scores(is_fake, p_fake), measure_calibration(is_fake, p_fake)
        axes.plot(bins["p_fake"], bins["fakes"], "o-", label=f"{label}: error {error:.3f}")
    axes.plot((0, 1), (0, 1), color="0.6", linestyle=":", label="perfect")
    axes.set(title="calibration of crops", xlabel="mean p_fake of a bin", ylabel="share of fakes")
    axes.legend(frameon=False, fontsize="small")


def find_worst_mistakes(predictions: pd.DataFrame, decision: Decision) -> pd.DataFrame:
    """Return crops of one class that were called the other, worst first, one per video."""
    p_fake, is_fake = predictions["p_fake"], predictions["label"] == "fake"
    wrong_by = np.where(is_fake, decision.real_below - p_fake, p_fake - decision.threshold)
    called = call(predictions, decision)
    wrong = np.where(is_fake, called == "real", called == "fake")
    table = predictions.assign(wrong_by=wrong_by)[wrong].sort_values("wrong_by", ascending=False)
    return table.drop_duplicates(["folder", "label", "video_id"])


def draw_worst_mistakes(worst: pd.DataFrame, decision: Decision) -> Figure:
    """Draw the crops from find_worst_mistakes, at least one, with truth, p_fake and video."""
    columns = 6
    rows = math.ceil(len(worst) / columns)
    figure = Figure(figsize=(WIDTH, 0.6 + 2.1 * rows), layout="constrained")
    figure.suptitle("Worst mistakes: truth, p_fake and video")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, crop in zip(panels, worst.to_dict("records"), strict=False):
        path = Path(crop["folder"]) / crop["crop"]
        axes.imshow(read_crop(path, decision.image_size))
        title = f"{crop['label']}, {crop['p_fake']:.2f}\n{crop['video_id'][-22:]}"
        axes.set_title(title, fontsize="small", parse_math=False)  # show "$" literally
    return figure


def draw_robustness(rows: pd.DataFrame) -> Figure:
    """Draw AUC and reals called fake, by video, against each change, one line per folder.

    Without reals, draw the share of fakes found instead.
    """
    rows = rows.groupby(["change", "folder"]).filter(lambda group: len(group) > 1)
    names = {"auc": "AUC by video", "reals_called_fake": "reals called fake"}
    names |= {"fakes_found": "fakes found"}  # drawn only if one of the others is missing
    names = {name: names[name] for name in names if rows[name].notna().any()}
    names = dict(list(names.items())[:2])
    kinds = rows["change"].unique()
    figure = Figure(figsize=(WIDTH, 0.6 + 2.6 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), len(kinds), sharey="row", squeeze=False)
    for column, (kind, of_kind) in zip(panels.T, rows.groupby("change", sort=False), strict=True):
        for axes, name in zip(column, names, strict=True):
            for folder, line in of_kind.groupby("folder", sort=False):
                line = line.sort_values("value")
                axes.plot(line["value"], line[name].astype(float), "o-", label=folder)
            axes.set(xlabel=kind, ylabel=names[name] if kind == kinds[0] else "")
            axes.grid(alpha=0.25)
    lines, folders = panels[0, 0].get_legend_handles_labels()
    legend = figure.legend(lines, folders, loc="outside upper center", frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)  # show "$" literally
    return figure
