"""Measure how time and memory of scripts 02 and 03 grow with the number of crops.

    python -m benchmarks.table_sizes
    python -m benchmarks.table_sizes --crops 10000

The crops are empty files, ten per video, with one real and one fake video per person. Script 02
finds all of them finished and gathers its tables; script 03 balances, splits and links them. Both
run from the shell.
"""

from deepfake_detect import start

start.prepare(__name__)

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
from tqdm import tqdm

from deepfake_detect import cli, files, resume
from deepfake_detect.cli import Between
from deepfake_detect.faces import CropRule

ROOT = Path(__file__).resolve().parents[1]
crop_faces = importlib.import_module("02-crop-faces-with-mtcnn")

CROPS_PER_VIDEO = 10  # as with one frame per second in clips of 10 seconds


@dataclass(frozen=True)
class Settings:
    """Edit a default here, or override it for one run: --crops 10000."""

    # sizes
    crops: Annotated[tuple[int, ...], Between(10)] = (10_000, 100_000, 1_000_000)  # per data set


def write_input(folder: Path, crops: int) -> None:
    """Write frames/ and faces/ in the layout of 01 and 02, with empty image files."""
    settings = cli.settings_of_result(crop_faces.Settings())
    settings |= crop_faces.describe_rule(CropRule("reduced", 0.3, False))
    files.claim(folder / "faces", "--faces-dir", crop_faces.__file__)
    rows = []
    for number in tqdm(range(crops // CROPS_PER_VIDEO), "videos", leave=False):
        label, person = ("real", "fake")[number % 2], f"{number // 2:06d}"
        video_id = f"dfd-{label}-{person}"
        source = f"{video_id}.mp4"
        rows.append((video_id, source, "DFD", label, label, person, "", 1, "ok"))
        frames, faces = folder / "frames" / video_id, folder / "faces" / video_id
        frames.mkdir(parents=True)
        faces.mkdir(parents=True)
        frame = frames / f"{video_id}-000000.png"
        frame.touch()
        found = []
        for face in range(CROPS_PER_VIDEO):
            crop = f"{video_id}/{video_id}-{face:06d}-00.png"
            (folder / "faces" / crop).touch()
            row = (crop, video_id, face, 0, 0.99, 1, 2, 30, 40)
            found.append(dict(zip(crop_faces.FACES_COLUMNS, row, strict=True)))
        content = {
            "made_by": Path(crop_faces.__file__).name,
            "inputs": resume.fingerprint([frame], settings),
            "outputs": resume.count_images(faces),
            "result": {"skipped": [], "faces": found},
        }
        (faces / "faces.json").write_text(json.dumps(content), encoding="utf-8")
    columns = ["video_id", "source", "dataset", "label", "method", "identities", "official_split"]
    table = pd.DataFrame(rows, columns=[*columns, "frames", "status"])
    table.to_csv(folder / "frames" / "videos.csv", index=False)


def run(script: str, folder: Path) -> tuple[float, float]:
    """Run a script in the folder; return the seconds and its peak memory in MiB."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, ROOT / script],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    message = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{script} failed: {message.strip().splitlines()[-1]}")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return time.perf_counter() - start, usage.ru_maxrss / unit


def main(settings: Settings = Settings()) -> None:
    """Time scripts 02 and 03 on data sets of several sizes."""
    cli.check_ranges(settings)
    print("    crops   02: seconds     MiB   03: seconds     MiB")
    for count in settings.crops:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_input(folder, count)
            of_02 = run("02-crop-faces-with-mtcnn.py", folder)
            of_03 = run("03-prepare-fake-real-dataset.py", folder)
        line = "{:14.1f}{:8.0f}{:14.1f}{:8.0f}".format(*of_02, *of_03)
        print(f"{count:9,}{line}", flush=True)


if __name__ == "__main__":
    cli.run(main)
