"""Compare 02-crop-faces-with-mtcnn.py with a plain loop over the mtcnn package: speed and faces.

    python -m benchmarks.crop_faces frames
    python -m benchmarks.crop_faces frames --frames 200 --rounds 1

Reads   frames, taken evenly from a folder that 01-convert-video-to-image.py wrote
Writes  nothing; prints three tables

The plain loop calls `MTCNN().detect_faces(frame)` frame by frame with TensorFlow's defaults, in a
separate process whose start is not counted. "End to end" covers reading the frames, detection, and
writing the crops; for script 02 it is the whole run from the shell, including its start. "Detection
alone" of script 02 is its detector in one process on all cores. Each round measures all of them in
turn, so that other load on the machine affects them equally. The plain loop runs on the CPU, the
default of the package.
"""

from deepfake_detect import start

start.prepare(__name__)

import csv
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import tyro
from tqdm import tqdm

from deepfake_detect import cli
from deepfake_detect.cli import Count
from deepfake_detect.files import read_image
from deepfake_detect.mtcnn import FaceDetector


@dataclass(frozen=True)
class Settings:
    """Edit a default here, or override it for one run: --rounds 1."""

    frames_dir: Annotated[Path, tyro.conf.Positional]  # the output folder of 01
    frames: Count = 1000  # the plain loop takes each one once, script 02 takes all in each round
    rounds: Count = 4  # the medians are printed


SCRIPT = Path(__file__).parents[1] / "02-crop-faces-with-mtcnn.py"
CONFIDENCE, MARGIN = 0.95, 0.3  # the defaults of script 02
MIN_FACE_SIZES = (20, 40, 80)  # in frame pixels; both use the first by default
SAME_BOX = 0.99  # lowest intersection over union of the same face
SAME_CONFIDENCE = 0.01  # largest difference for the same face
NEAR_THRESHOLD = 0.005  # a face this close to the threshold may be on either side of it

Box = tuple[int, int, int, int]  # x, y, width, height
Faces = list[tuple[Box, float]]  # faces of a frame, with their confidence


def read_frame(path: Path) -> np.ndarray:
    """Read a frame: BGR uint8 (height, width, 3).

    Raises:
        ValueError: the file cannot be read
    """
    try:
        return read_image(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}; run 01 again.") from error


# --- The plain loop -------------------------------------------------------------------------------


def run_plain_loop(paths: list[Path], folder: Path) -> tuple[list[Faces], float, float]:
    """Return the faces of each frame, the seconds of detection alone, and the total seconds."""
    detector = load_plain_detector()
    found, detecting, start = [], 0.0, time.perf_counter()
    for path in paths:
        frame = read_frame(path)
        rgb = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        before = time.perf_counter()
        faces = detector.detect_faces(rgb)
        detecting += time.perf_counter() - before
        found.append([(tuple(face["box"]), float(face["confidence"])) for face in faces])
        for number, ((x, y, width, height), score) in enumerate(found[-1]):
            if score >= CONFIDENCE:
                left, top = max(0, x - round(MARGIN * width)), max(0, y - round(MARGIN * height))
                right, bottom = x + round((1 + MARGIN) * width), y + round((1 + MARGIN) * height)
                _, png = cv2.imencode(".png", frame[top:bottom, left:right])
                (folder / f"{path.stem}-{number:02d}.png").write_bytes(png)
    return found, detecting, time.perf_counter() - start


@cache
def load_plain_detector() -> object:
    """Load the detector of the mtcnn package as in its README."""
    from mtcnn import MTCNN

    return MTCNN()


def start_plain_process() -> ProcessPoolExecutor:
    """Start a process for the plain loop, with its detector loaded."""
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, spawn, initializer=load_plain_detector)
    pool.submit(os.getpid).result()
    return pool


# --- Script 02 ------------------------------------------------------------------------------------


def run_script(frames_dir: Path, faces_dir: Path, workers: int) -> float:
    """Run script 02 from the shell; return the seconds."""
    command = [sys.executable, SCRIPT, "--frames-dir", frames_dir, "--faces-dir", faces_dir]
    command += ["--workers", workers]
    start = time.perf_counter()
    subprocess.run(list(map(str, command)), capture_output=True, check=True)
    return time.perf_counter() - start


def run_detector(paths: list[Path], min_face_size: float) -> tuple[list[Faces], float]:
    """Return the faces of each frame from the detector of script 02, and the seconds it took."""
    detector, found, seconds = FaceDetector(min_face_size), [], 0.0
    for at in range(0, len(paths), 32):
        frames = [read_frame(path) for path in paths[at : at + 32]]
        start = time.perf_counter()
        found += detector.detect(frames)
        seconds += time.perf_counter() - start
    return [[(face.box, face.confidence) for face in faces] for faces in found], seconds


def list_frames(frames_dir: Path, wanted: int) -> list[Path]:
    """Return evenly spaced frames of the folder, from the first to the last.

    Raises:
        ValueError: the folder has no frames
    """
    paths = sorted(frames_dir.glob("*/*.png"))
    if not paths:
        raise ValueError(f"{frames_dir}: the folder has no frames; run 01 first.")
    chosen = np.linspace(0, len(paths) - 1, min(wanted, len(paths))).round().astype(int)
    return [paths[index] for index in chosen]


def copy_frames(paths: list[Path], target: Path) -> None:
    """Copy frames into a folder in the layout of 01, so that script 02 uses only these."""
    counts: dict[str, int] = defaultdict(int)
    for path in paths:
        folder = target / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
        counts[path.parent.name] += 1
    with (target / "videos.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["video_id", "frames", "status"])
        rows.writerows((video_id, count, "ok") for video_id, count in counts.items())


# --- The comparison -------------------------------------------------------------------------------


def overlap(one: Box, other: Box) -> float:
    """Return the intersection over union of two boxes."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(0, width) * max(0, height)
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


def match_faces(found: list[Faces], others: list[Faces]) -> np.ndarray:
    """Find the best match in `others` for every confident face in `found`, in the same frame.

    Returns:
        float (faces, 3): confidence of the face, overlap and confidence of its match (0 without)
    """
    rows = []
    for faces, other_faces in zip(found, others, strict=True):
        for box, score in faces:
            partners = [(overlap(box, other), other_score) for other, other_score in other_faces]
            if score >= CONFIDENCE:
                rows.append((score, *max(partners, default=(0.0, 0.0))))
    return np.array(rows).reshape(-1, 3)


def print_agreement(plain: list[Faces], ours: list[Faces]) -> None:
    """Print the number of faces that both found, and the differences of boxes and confidences."""
    one_way = match_faces(plain, ours)
    scores, overlaps, partners = np.concatenate([one_way, match_faces(ours, plain)]).T
    same = (overlaps >= SAME_BOX) & (abs(scores - partners) <= SAME_CONFIDENCE)
    near = ~same & (scores - CONFIDENCE <= NEAR_THRESHOLD)
    print(f"\nfaces with confidence {CONFIDENCE} or more in {len(plain):,} frames")
    print(f"plain loop                {len(one_way):8,}")
    print(f"script 02                 {len(scores) - len(one_way):8,}")
    print(f"without a match           {(~same & ~near).sum():8,}")
    print(f"  near the threshold      {near.sum():8,}")
    print(f"lowest overlap            {overlaps[same].min(initial=1):8.4f}")
    print(f"confidence difference     {abs(scores - partners)[same].max(initial=0):8.6f} at most")


def print_speeds(speeds: dict[str, list[tuple[float, float]]]) -> None:
    """Print medians over the rounds; each ratio compares values of the same round."""
    print("\nframes per second, and speed-up over the plain loop (lowest to highest round)")
    print(f"{'':27} {'end to end':>32}   {'detection alone':>32}")
    plain = np.array(speeds["plain loop"])
    for name, rounds in speeds.items():
        ratios = np.array(rounds) / plain
        columns = np.median(rounds, 0), np.median(ratios, 0), ratios.min(0), ratios.max(0)
        cells = [
            "{:10.1f} {:6.1f}x ({:5.1f} to {:5.1f})".format(*cell)
            for cell in zip(*columns, strict=True)
        ]
        print(f"{name:27} {cells[0]}   {cells[1]}")


def print_min_face_sizes(found: dict[int, list[Faces]], speeds: dict[int, list[float]]) -> None:
    """Print the speed-up of larger --min-face-size values, and the faces that they lose."""
    smallest = min(found)
    print("\n--min-face-size, detection alone")
    for size, rounds in speeds.items():
        ratio = np.median(np.array(rounds) / speeds[smallest])
        faces = match_faces(found[smallest], found[size])
        lost = ((faces[:, 1] < 0.5) | (faces[:, 2] < CONFIDENCE)).sum()
        print(
            f"{size:4} px {np.median(rounds):10.1f} frames/s {ratio:6.2f}x   "
            f"{lost:,} of {len(faces):,} faces lost"
        )


def main(settings: Settings) -> None:
    """Compare script 02 with a plain loop over the mtcnn package."""
    cli.check_ranges(settings)
    paths = list_frames(settings.frames_dir, settings.frames)
    plain_faces: dict[Path, Faces] = {}
    speeds: dict[str, list[tuple[float, float]]] = defaultdict(list)
    size_faces: dict[int, list[Faces]] = {}
    size_speeds: dict[int, list[float]] = defaultdict(list)
    with start_plain_process() as plain_pool, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_frames(paths, folder / "frames")
        for number in tqdm(range(settings.rounds), unit="round"):
            share = paths[number :: settings.rounds]
            (folder / f"plain-{number}").mkdir()
            job = plain_pool.submit(run_plain_loop, share, folder / f"plain-{number}")
            found, alone, end_to_end = job.result()
            plain_faces.update(zip(share, found, strict=True))
            speeds["plain loop"].append((len(share) / end_to_end, len(share) / alone))
            for size in MIN_FACE_SIZES:
                size_faces[size], seconds = run_detector(paths, size)
                size_speeds[size].append(len(paths) / seconds)
            for workers in sorted({1, os.cpu_count() or 1}):
                seconds = run_script(folder / "frames", folder / f"{number}-{workers}", workers)
                pair = len(paths) / seconds, size_speeds[MIN_FACE_SIZES[0]][-1]
                speeds[f"script 02, workers {workers}"].append(pair)

    print(f"{len(paths):,} frames, {os.cpu_count()} cores, medians of {settings.rounds} rounds")
    print_speeds(speeds)
    print_agreement([plain_faces[path] for path in paths], size_faces[MIN_FACE_SIZES[0]])
    print_min_face_sizes(size_faces, size_speeds)


if __name__ == "__main__":
    cli.run(main)
