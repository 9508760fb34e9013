"""Each benchmark runs on tiny data: the numbers are meaningless, but the code stays tested."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, write_video
from frames import make_frame

RUNS = {
    "convert_video.py": (["videos", "--rounds", 1], "2 videos, 16 frames"),
    "crop_faces.py": (
        ["frames", "--frames", 4, "--rounds", 1],
        "without a match                  0",
    ),
    "detect_deepfake.py": (
        ["face.avi", "--seconds", 0, "--rounds", 1],
        "time of each step",
    ),
    "many_machines.py": (["--videos", 20, "--workers", 2, "--crops", 200], "20 tasks on 2 workers"),
    "plan.py": (["videos", "--frames-per-second", 1], "| all five | 32 per video | 4,354,368 |"),
    "split_sizes.py": (["--crops-per-video", 1], "136,074 videos, 136,074 crops"),
    "table_sizes.py": (["--crops", 200], "\n      200 "),
    "train_cnn.py": (
        ["split_dataset", "--crops", 8, "--rounds", 1, "--image-size", 32],
        "8 crops, medians of 1 round",
    ),
    "web_page.py": (
        ["frames/v/v-000000.png", "--requests", 4, "--clients", 2, "--uploads", 2],
        "4 answers to 2 clients",
    ),
}


def test_every_benchmark_has_a_test() -> None:
    assert set(RUNS) == {path.name for path in (ROOT / "benchmarks").glob("*.py")}


def write_videos(folder: Path) -> None:
    for label in ("real", "fake"):
        write_video(folder / "videos" / label / "a.mp4", frames=8, fps=4)


def write_frames(folder: Path) -> None:
    """Write frames/ in the layout of 01, with a face in each frame, and face.avi from them."""
    writer = cv2.VideoWriter(
        str(folder / "face.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 4, (320, 240)
    )
    (folder / "frames" / "v").mkdir(parents=True)
    for number in range(4):
        frame = make_frame((40 + 20 * number, 20, 0.9), size=(320, 240))
        cv2.imwrite(str(folder / "frames" / "v" / f"v-{number:06d}.png"), frame)
        writer.write(frame)
    writer.release()
    table = pd.DataFrame([{"video_id": "v", "frames": 4, "status": "ok"}])
    table.to_csv(folder / "frames" / "videos.csv", index=False)


def write_crops(folder: Path) -> None:
    """Write split_dataset/ with noise crops, each from a different video."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 2), ("test", 2)):
        for label in ("real", "fake"):
            (folder / "split_dataset" / split / label).mkdir(parents=True)
            for number in range(count):
                name = f"{split}-{label}-{number}-000000-00.png"
                crop = rng.integers(0, 256, (32, 32, 3), np.uint8)
                cv2.imwrite(str(folder / "split_dataset" / split / label / name), crop)


@pytest.mark.long
@pytest.mark.parametrize("name", RUNS)
def test_benchmark_runs(name: str, tmp_path: Path) -> None:
    write_videos(tmp_path)
    write_frames(tmp_path)
    write_crops(tmp_path)
    arguments, expected = RUNS[name]
    command = [sys.executable, "-m", f"benchmarks.{Path(name).stem}", *map(str, arguments)]
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert expected in result.stdout


@pytest.mark.parametrize("name", ["convert_video", "crop_faces", "detect_deepfake"])
def test_unreadable_input_is_named(name: str, tmp_path: Path) -> None:
    benchmark, path = importlib.import_module(f"benchmarks.{name}"), tmp_path / "torn.avi"
    path.write_bytes(b"RIFF")
    read = {
        "convert_video": lambda: benchmark.size_after_rule(path),
        "crop_faces": lambda: benchmark.read_frame(path),
        "detect_deepfake": lambda: benchmark.make_inputs(path, (0,), tmp_path),
    }[name]
    with pytest.raises(ValueError, match=r"torn\.avi"):
        read()


def test_photo_and_longer_video_are_made_from_a_video(tmp_path: Path) -> None:
    detect_deepfake = importlib.import_module("benchmarks.detect_deepfake")
    write_frames(tmp_path)
    inputs = detect_deepfake.make_inputs(tmp_path / "face.avi", (0, 2), tmp_path)
    assert inputs.keys() == {"photo", "2 s"}
    assert cv2.imread(str(inputs["photo"])).shape == (240, 320, 3)
    assert cv2.VideoCapture(str(inputs["2 s"])).get(cv2.CAP_PROP_FRAME_COUNT) == 8


def test_log_table_lists_every_entry() -> None:
    text = (ROOT / "benchmarks" / "LOG.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (.*)$", text, re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
    rows = re.findall(r"^\| (\d{4}-\d\d-\d\d) \| \[.*?\]\(#(.*?)\) \|.*\|.*\|$", text, re.MULTILINE)
    assert [anchor for _, anchor in rows] == anchors
    assert all(title.startswith(date) for title, (date, _) in zip(titles, rows, strict=True))
