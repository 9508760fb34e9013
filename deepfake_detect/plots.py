"""Draw what script 05 measured: scores, the worst mistakes, and how scores hold under changes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import sklearn.metrics
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deepfake_detect.crops import CLASSES, read_crop
from deepfake_detect.decision import Decision, calibrate
from deepfake_detect.measures import bin_scores, call, judge_videos, measure_calibration


def draw_scores(predictions: pd.DataFrame, decision: Decision) -> Figure:
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
        look = {"labels": (*CLASSES, "undecided"), "cmap": "Blues", "colorbar": False}
        draw_confusion = sklearn.metrics.ConfusionMatrixDisplay.from_predictions
        draw_confusion(videos["label"], call(videos, decision), ax=confusion, **look)
        confusion.set(title="videos", xlabel="called", ylabel="truth", ylim=(1.5, -0.5))
        for count in confusion.texts:  # the row of no truth is cut off, its zeros with it
            count.set_clip_on(True)
        for label, color in (("fake", "C3"), ("real", "C0")):
            its = videos.loc[videos["label"] == label, "p_fake"]
            look = {"alpha": 0.6, "color": color, "label": f"{label}, {len(its):,}"}
            histogram.hist(its, 25, range=(0, 1), **look)
        histogram.axvline(decision.threshold, color="0.3", linestyle="--", label="fake from")
        histogram.axvline(decision.real_below, color="0.3", linestyle=":", label="real below")
        histogram.set(title="scores by video", xlabel="p_fake", ylabel="videos")
        histogram.legend(loc="upper center", framealpha=1, edgecolor="w")  # clear of the bars
        draw_calibration(part, decision, reliability)
    return figure


def draw_calibration(part: pd.DataFrame, decision: Decision, axes: Axes) -> None:
    """Draw the share of fakes by p_fake, before and after the calibration."""
    is_fake = (part["label"] == "fake").to_numpy()
    for label, fitted in (("before", Decision()), ("after", decision)):
        p_fake = calibrate(part["p_real"], fitted)
        bins, error = bin_scores(is_fake, p_fake), measure_calibration(is_fake, p_fake)
        axes.plot(bins["p_fake"], bins["fakes"], "o-", label=f"{label}: error {error:.3f}")
    axes.plot((0, 1), (0, 1), color="0.6", linestyle=":", label="perfect")
    axes.set(title="calibration by crop", xlabel="p_fake, mean of a tenth", ylabel="share of fakes")
    axes.legend(frameon=False)


def draw_worst_mistakes(predictions: pd.DataFrame, decision: Decision, mistakes: int) -> Figure:
    """Draw the crops that are farthest beyond the threshold of the other class, one a video."""
    p_fake, is_fake = predictions["p_fake"], predictions["label"] == "fake"
    wrong_by = np.where(is_fake, decision.real_below - p_fake, p_fake - decision.threshold)
    called = call(predictions, decision)
    wrong = np.where(is_fake, called == "real", called == "fake")
    table = predictions.assign(wrong_by=wrong_by)[wrong].sort_values("wrong_by", ascending=False)
    table = table.drop_duplicates(["folder", "label", "video_id"])
    table = table.head(mistakes)
    rows = max(1, math.ceil(len(table) / 8))
    figure = Figure(figsize=(13, 1 + 2 * rows), layout="constrained")
    figure.suptitle(
        "Worst mistakes: truth, p_fake and video" if len(table) else "No crop is called wrong"
    )
    panels = figure.subplots(rows, 8, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, crop in zip(panels, table.to_dict("records"), strict=False):
        path = Path(crop["folder"]) / crop["crop"]
        axes.imshow(read_crop(path, decision.image_size))
        title = f"{crop['label']}, {crop['p_fake']:.2f}\n{crop['video_id'][-22:]}"
        axes.set_title(title, fontsize="small", parse_math=False)  # a $ in it is a $
    return figure


def draw_robustness(rows: pd.DataFrame) -> Figure:
    """Draw AUC and reals called fake by video against each change, a line a folder."""
    figure = Figure(figsize=(18, 7), layout="constrained")
    names = {"auc": "AUC by video", "reals_called_fake": "reals called fake"}
    kinds = rows["change"].unique()
    panels = figure.subplots(2, len(kinds), sharey="row", squeeze=False)
    for column, (kind, of_kind) in zip(panels.T, rows.groupby("change", sort=False), strict=False):
        for axes, name in zip(column, names, strict=True):
            for folder, line in of_kind.groupby("folder", sort=False):
                line = line.sort_values("value")
                label = folder.replace("$", r"\$")
                axes.plot(line["value"], line[name], "o-", label=label)
            axes.set(xlabel=kind, ylabel=names[name] if kind == kinds[0] else "")
            axes.grid(alpha=0.25)
    panels[0, 0].legend(frameon=False)
    return figure
