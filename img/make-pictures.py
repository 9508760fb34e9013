"""Make the README's two pictures: the page with a verdict, and the output of each step.

    .venv/bin/python img/make-pictures.py
    .venv/bin/python img/make-pictures.py --check    # are the numbers on page.png up to date?

Reads   the included model, and the fake practice clip, which this script draws
        practice/    from `make run`; without this folder, steps.png is not changed
Writes  img/page.png, with its numbers as text in the file; img/steps.png

make-example-report.py makes docs/example-report.html.
"""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import cv2
import numpy as np
import pandas as pd
import PIL.Image
import PIL.PngImagePlugin
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle

from deepfake_detect import Detector, Result, cli, practice, report
from deepfake_detect.detection_model import DetectionModel
from deepfake_detect.shipped import find_shipped

MODEL = find_shipped("weights/deepfake-detector.onnx")
WIDTH, HEIGHT = 1000, 1330  # pixels of the window, which ends below the marked video
NUMBERS = "numbers"  # text entry of page.png with its numbers as JSON
TILE = 128  # pixels of each face in the steps
COLORS = {"real": "#2a7f62", "fake": "#b3423a"}


@dataclass(frozen=True)
class Settings:
    """Edit a default here, or override it for one run: --check."""

    practice_dir: Path = Path("practice")  # folder of make run
    img_dir: Path = Path(__file__).parent  # folder for the pictures
    check: bool = False  # compare the numbers on page.png with a new check; write nothing


def main(settings: Settings = Settings()) -> None:
    """Make the README's two pictures, or check the numbers on the picture of the page.

    Raises:
        ValueError: the numbers are out of date, or the practice folder contains other videos
        OSError: chromium is not installed
    """
    page = settings.img_dir / "page.png"
    with tempfile.TemporaryDirectory() as folder:
        fake = practice.write_examples(Path(folder))["fake"]
        detector = Detector(MODEL)
        numbers = list_numbers(detector.check(fake, name=fake.name), detector.model)
    if settings.check:
        compare_numbers(page, numbers)
        print(f"{page}: {numbers['verdict']}, score {numbers['score']}, as today")
        return
    take_picture(page)
    shown = PIL.PngImagePlugin.PngInfo()
    shown.add_text(NUMBERS, json.dumps(numbers))
    PIL.Image.open(page).save(page, pnginfo=shown, optimize=True)
    print(f"{page}: {numbers['verdict']}, score {numbers['score']}")
    if (settings.practice_dir / "split_dataset" / "crops.csv").is_file():
        draw_practice(settings.practice_dir).savefig(settings.img_dir / "steps.png", dpi=100)
        print(settings.img_dir / "steps.png")
    else:
        print(f"{settings.img_dir / 'steps.png'} stays as it is: run make run first")


# --- The page -------------------------------------------------------------------------------------


def list_numbers(result: Result, model: DetectionModel) -> dict:
    """Return the numbers of a result that the picture shows."""
    return {
        "verdict": result.verdict,
        "score": result.score,
        "interval": [round(100 * end) for end in result.interval or ()],
        "rates": [[rate.hits, rate.files] for rate in report.collect(result, model)["rates"]],
        "model": result.model_sha256,
    }


def compare_numbers(page: Path, numbers: dict) -> None:
    """Compare the numbers on a picture with `numbers`.

    Raises:
        ValueError: they differ; scores may differ by 1, as processors round differently
    """
    shown = json.loads(PIL.Image.open(page).info.get(NUMBERS, "{}"))
    scores = [[one.get("score", -9), *one.get("interval", [])] for one in (shown, numbers)]
    same = all(shown.get(name) == numbers[name] for name in ("verdict", "rates", "model"))
    if not same or len(scores[0]) != len(scores[1]) or np.abs(np.diff(scores, axis=0)).max() > 1:
        raise ValueError(
            f"{page}: it shows {shown}, and today it would be {numbers}; make it again."
        )


def take_picture(path: Path) -> None:
    """Open the page of 08, click on the fake example, wait for its video, and take the picture.

    Raises:
        OSError: chromium is not installed, or the page does not open.
    """
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if not chromium:
        raise OSError("chromium: there is no such program; install it (apt-get install chromium).")
    script = ROOT / "08-web-page.py"
    command = [sys.executable, str(script), "--no-open-browser", "--port", "0"]
    with subprocess.Popen(
        [*command, "--model", str(MODEL)], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            line = next((line for line in server.stdout if "the page is open" in line), None)
            if line is None:
                raise OSError(f"{script.name}: it does not open; its message is above.")
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=chromium, args=["--no-sandbox"]
                )
                window = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
                window.set_default_timeout(0)
                window.goto(line.split(": ")[0])
                window.get_by_role("button", name="A fake one").click()
                window.get_by_role("link", name="Save the report").wait_for()
                window.wait_for_function("document.querySelector('video').readyState == 4")
                window.evaluate("document.activeElement.blur()")
                window.wait_for_timeout(1000)  # the player hides its waiting symbol
                window.evaluate("document.querySelector('#results').scrollIntoView()")
                window.wait_for_timeout(500)
                window.screenshot(path=path)
                browser.close()
        finally:
            server.send_signal(signal.SIGTERM)


# --- The steps ------------------------------------------------------------------------------------


def draw_practice(folder: Path) -> Figure:
    """Draw the steps from the practice set that `make run` wrote to a folder.

    Raises:
        ValueError: the folder contains other videos, which may show real people
    """
    frames_dir, faces_dir, split_dir = (folder / n for n in ("frames", "faces", "split_dataset"))
    videos = pd.read_csv(frames_dir / "videos.csv", keep_default_na=False)
    if not videos["source"].str.startswith("practice/").all():
        raise ValueError(f"{frames_dir}: it holds other videos than the practice set.")
    pairs = find_pairs(videos, pd.read_csv(faces_dir / "faces.csv"))
    crops = pd.read_csv(split_dir / "crops.csv")
    wide = pairs[pairs["video_id_fake"].isin(videos.query("width == 1280")["video_id"])].iloc[0]
    names = ["crop", "video_id", "x", "y", "width", "height"]
    face = pd.Series({name: wide[f"{name}_fake"] for name in names} | {"frame": wide["frame"]})
    return draw_steps(face, crops, frames_dir, faces_dir, split_dir)


def read_image(path: Path) -> np.ndarray:
    """Read a picture, RGB uint8 (height, width, 3)."""
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def read_tile(path: Path) -> np.ndarray:
    """Read a face, RGB uint8 (TILE, TILE, 3)."""
    return cv2.resize(read_image(path), (TILE, TILE), interpolation=cv2.INTER_AREA)


def find_pairs(videos: pd.DataFrame, faces: pd.DataFrame) -> pd.DataFrame:
    """Return one row per person: crops of the same frame from a real video and its fake."""
    columns = ["video_id", "label", "identities"]
    crops = faces[faces["face"] == 0].merge(videos[columns], on="video_id")
    real, fake = (crops[crops["label"] == label] for label in ("real", "fake"))
    pairs = real.merge(fake, on=["identities", "frame"], suffixes=("_real", "_fake"))
    return pairs.sort_values("frame").groupby("identities").first().reset_index()


def draw_frame(axes: Axes, face: pd.Series, frames_dir: Path) -> None:
    """Draw a frame with the detector's box, and the margin around it."""
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
    """Draw the four steps from left to right, each with its output."""
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


if __name__ == "__main__":
    cli.run(main)
