"""Make the README's two pictures from the practice set, after `make run`.

    .venv/bin/python img/make-pictures.py

Reads   frames/, faces/, split_dataset/   of the practice videos, not of anybody's own
Writes  img/steps.png                     what each step makes of one video
        img/practice-faces.png            real faces and fakes made of them
"""

import sys
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle

# --------------------------------------------------------------------------------------------------
# folders
FRAMES_DIR = Path("frames")  # of script 01
FACES_DIR = Path("faces")  # of script 02
SPLIT_DIR = Path("split_dataset")  # of script 03
IMG_DIR = Path(__file__).parent  # gets the pictures
# looks
PAIRS = 8  # real faces in the sheet, one a person, with a fake of each below
TILE = 128  # pixels, each face in the sheet and in the steps: what the model sees
COLORS = {"real": "#2a7f62", "fake": "#b3423a"}
# --------------------------------------------------------------------------------------------------


def read_image(path: Path) -> np.ndarray:
    """RGB uint8."""
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def read_tile(path: Path) -> np.ndarray:
    """RGB uint8 (TILE, TILE, 3)."""
    return cv2.resize(read_image(path), (TILE, TILE), interpolation=cv2.INTER_AREA)


def find_pairs(videos: pd.DataFrame, faces: pd.DataFrame) -> pd.DataFrame:
    """One row a person: the same frame's crop of a real video and of a fake made from it."""
    columns = ["video_id", "label", "identities"]
    crops = faces[faces["face"] == 0].merge(videos[columns], on="video_id")
    real, fake = (crops[crops["label"] == label] for label in ("real", "fake"))
    pairs = real.merge(fake, on=["identities", "frame"], suffixes=("_real", "_fake"))
    return pairs.sort_values("frame").groupby("identities").first().reset_index()


def draw_sheet(pairs: pd.DataFrame, faces_dir: Path) -> Figure:
    """Real faces in the upper row, a fake of each below it."""
    figure = Figure(figsize=(PAIRS * 1.15 + 0.7, 2.7), layout="constrained")
    for row, label in zip(figure.subplots(2, PAIRS), ("real", "fake"), strict=True):
        for axes, crop in zip(row, pairs[f"crop_{label}"], strict=False):
            axes.imshow(read_tile(faces_dir / crop))
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(color=COLORS[label], linewidth=2)
        row[0].set_ylabel(label, fontsize=14, color=COLORS[label])
    return figure


def draw_frame(axes: Axes, face: pd.Series, frames_dir: Path) -> None:
    """A frame with the detector's box, and the margin around it."""
    frame = read_image(
        frames_dir / face["video_id"] / f"{face['video_id']}-{face['frame']:06d}.png"
    )
    axes.imshow(frame)
    x, y, width, height = face[["x", "y", "width", "height"]]
    box = Rectangle((x, y), width, height, fill=False, color="white", linewidth=1.5)
    margin = Rectangle(
        (x - 0.3 * width, y - 0.3 * height),
        1.6 * width,
        1.6 * height,
        fill=False,
        color="white",
        linestyle=":",
        linewidth=1.5,
    )
    axes.add_patch(box)
    axes.add_patch(margin)


def draw_steps(
    face: pd.Series, crops: pd.DataFrame, frames_dir: Path, faces_dir: Path, split_dir: Path
) -> Figure:
    """The four steps from left to right, each with what it writes."""
    figure = Figure(figsize=(12, 3.1))
    titles = [
        "01  frames, resized by width",
        "02  faces, 30 % margin",
        "03  balanced, split by person",
        "04  EfficientNet-B0",
    ]
    lefts, widths = (0.01, 0.29, 0.47, 0.82), (0.26, 0.14, 0.31, 0.17)
    panels = []
    for title, left, width in zip(titles, lefts, widths, strict=True):
        axes = figure.add_axes((left, 0.08, width, 0.76))
        axes.set_title(title, fontsize=11, loc="left")
        axes.set_axis_off()
        panels.append(axes)
    draw_frame(panels[0], face, frames_dir)
    panels[1].imshow(read_tile(faces_dir / face["crop"]))

    panels[2].set(xlim=(0, 5.6), ylim=(3.3, -0.4))
    for row, split in enumerate(("train", "val", "test")):
        panels[2].text(0.0, row + 0.5, split, va="center", fontsize=10)
        for column, label in enumerate(("real", "fake")):
            of_split = crops[(crops["split"] == split) & (crops["label"] == label)]
            shown = of_split.drop_duplicates("video_id").head(2)["crop"]
            for number, crop in enumerate(shown):
                left = 0.75 + 2.4 * column + 1.05 * number
                panels[2].imshow(read_tile(split_dir / crop), extent=(left, left + 1, row + 1, row))
    for column, label in enumerate(("real", "fake")):
        left = 0.75 + 2.4 * column
        panels[2].text(left, -0.1, label, color=COLORS[label], fontsize=10, weight="bold")
    panels[2].set(xlim=(0, 5.3), ylim=(3.05, -0.4))

    layers = [
        "128 x 128 x 3, raw 0 to 255",
        "EfficientNet-B0",
        "global max pooling",
        "dense 512, ReLU",
        "dense 128, ReLU",
        "sigmoid: p(real)",
    ]
    panels[3].set(xlim=(0, 1), ylim=(len(layers), 0))
    for number, layer in enumerate(layers):
        strength = 0.35 + 0.1 * number
        box = Rectangle((0.04, number + 0.12), 0.92, 0.76, color=COLORS["real"], alpha=strength)
        panels[3].add_patch(box)
        panels[3].text(0.5, number + 0.5, layer, ha="center", va="center", fontsize=9)
    for left, right in pairwise(panels):
        arrow = ConnectionPatch(
            (1.01, 0.5),
            (-0.01, 0.5),
            "axes fraction",
            "axes fraction",
            axesA=left,
            axesB=right,
            arrowstyle="->",
        )
        figure.add_artist(arrow)
    return figure


def main(
    frames_dir: Path = FRAMES_DIR,
    faces_dir: Path = FACES_DIR,
    split_dir: Path = SPLIT_DIR,
    img_dir: Path = IMG_DIR,
) -> None:
    """Make the README's two pictures from the practice set.

    Args:
        frames_dir: Of script 01.
        faces_dir: Of script 02.
        split_dir: Of script 03.
        img_dir: Gets the pictures.
    """
    videos = pd.read_csv(frames_dir / "videos.csv", keep_default_na=False)
    if not videos["source"].str.startswith("practice/").all():
        raise ValueError(f"{frames_dir} holds other videos than the practice set: faces of people.")
    pairs = find_pairs(videos, pd.read_csv(faces_dir / "faces.csv"))
    crops = pd.read_csv(split_dir / "crops.csv")
    draw_sheet(pairs.head(PAIRS), faces_dir).savefig(img_dir / "practice-faces.png", dpi=100)
    wide = pairs[pairs["video_id_fake"].isin(videos.query("width == 1280")["video_id"])].iloc[0]
    names = ["crop", "video_id", "x", "y", "width", "height"]
    face = pd.Series({name: wide[f"{name}_fake"] for name in names} | {"frame": wide["frame"]})
    steps = draw_steps(face, crops, frames_dir, faces_dir, split_dir)
    steps.savefig(img_dir / "steps.png", dpi=100)


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
