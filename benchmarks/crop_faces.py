"""Compare 02-crop-faces-with-mtcnn.py with a plain loop over the mtcnn package: speed and faces.

    python -m benchmarks.crop_faces frames
    python -m benchmarks.crop_faces frames --frames 200 --rounds 1

Reads   a folder that 01-convert-video-to-image.py wrote; its frames are taken evenly
Writes  nothing; prints three tables

The plain loop is `MTCNN().detect_faces(frame)` for one frame after another, with TensorFlow as it
comes, in a process of its own. "End to end" is reading the frames, detecting, and writing the
crops; starting the processes is not counted on either side. Each round measures all of them one
after another, so that they share whatever else the machine does. With one worker the script has
all cores through TensorFlow; with several, each is a process with its share of the cores. The
plain loop does not use a GPU: the package's default is the CPU.
"""

import importlib
import itertools
import multiprocessing
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import tyro
from tqdm import tqdm

# --------------------------------------------------------------------------------------------------
# measurement
FRAMES = 1000  # to measure on; the plain loop sees each once, the script all of them in each round
ROUNDS = 4  # of which the medians are printed
MIN_FACE_SIZES = (20, 40, 80)  # pixels of the frame
# the same face, found by both
SAME_BOX = 0.99  # intersection over union, at least
SAME_CONFIDENCE = 0.01  # difference, at most
NEAR_THRESHOLD = 0.005  # so close to the threshold, a face may be on either side of it
# --------------------------------------------------------------------------------------------------

Box = tuple[int, int, int, int]  # x, y, width, height
Faces = list[tuple[Box, float]]  # of a frame, with their confidences


@cache
def load_step() -> ModuleType:
    """The script. Not imported above: it sets TensorFlow up, and the plain loop has it as it is."""
    return importlib.import_module("02-crop-faces-with-mtcnn")


# --- The plain loop -------------------------------------------------------------------------------


def run_plain_loop(paths: list[Path], folder: Path, confidence: float, margin: float) -> tuple:
    """Returns: the faces of each frame, the seconds of detection alone, and the seconds of all."""
    detector = load_plain_detector()
    found, detecting, start = [], 0.0, time.perf_counter()
    for path in paths:
        frame = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        rgb = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        before = time.perf_counter()
        faces = detector.detect_faces(rgb)
        detecting += time.perf_counter() - before
        found.append([(tuple(face["box"]), float(face["confidence"])) for face in faces])
        for number, ((x, y, width, height), score) in enumerate(found[-1]):
            if score >= confidence:
                left, top = max(0, x - round(margin * width)), max(0, y - round(margin * height))
                right, bottom = x + round((1 + margin) * width), y + round((1 + margin) * height)
                _, png = cv2.imencode(".png", frame[top:bottom, left:right])
                (folder / f"{path.stem}-{number:02d}.png").write_bytes(png)
    return found, detecting, time.perf_counter() - start


@cache
def load_plain_detector() -> object:
    from mtcnn import MTCNN

    return MTCNN()


def start_plain_process() -> ProcessPoolExecutor:
    """A process for the plain loop, with the environment as it is, its detector loaded."""
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, spawn, initializer=load_plain_detector)
    pool.submit(os.getpid).result()
    return pool


# --- The script -----------------------------------------------------------------------------------


def split_into_tasks(paths: list[Path]) -> Iterator[tuple[str, dict[int, Path]]]:
    """Yield the frames as the script's workers get them: some of one video, with its id."""
    for folder, frames in itertools.groupby(paths, lambda path: path.parent):
        while some := list(itertools.islice(frames, load_step().FRAMES_A_TASK["reduced"])):
            yield folder.name, dict(enumerate(some))


def detect_faces(min_face_size: float, _: str, paths: dict[int, Path]) -> tuple[list[Faces], float]:
    """Returns: the faces of each frame, and the seconds of detection alone."""
    step = load_step()
    detector = step.FaceDetector(min_face_size, *step.SEARCH[1:])
    frames = [step.read_frame(path) for path in paths.values()]
    start = time.perf_counter()
    found = detector.detect(frames)
    seconds = time.perf_counter() - start
    return [[(face.box, face.confidence) for face in faces] for faces in found], seconds


def run_detection(
    run_tasks: Callable, workers: int, paths: list[Path], min_face_size: float
) -> tuple[list[Faces], float]:
    """Returns: the faces of each frame, and frames a second of detection alone."""
    work = partial(detect_faces, min_face_size)
    results = [
        future.result() for _, future in run_tasks(work, split_into_tasks(paths), in_order=True)
    ]
    found = [faces for part, _ in results for faces in part]
    return found, workers * len(paths) / sum(seconds for _, seconds in results)


def run_end_to_end(run_tasks: Callable, paths: list[Path]) -> float:
    """Returns: frames a second of reading, detecting and writing."""
    step = load_step()
    rule = step.face_detector.CropRule("reduced", step.MARGIN, step.SQUARE)
    with tempfile.TemporaryDirectory() as folder:
        work = partial(step.write_crops, Path(folder), step.CONFIDENCE, rule, step.SEARCH)
        start = time.perf_counter()
        for _, future in run_tasks(work, split_into_tasks(paths), in_order=True):
            future.result()
        return len(paths) / (time.perf_counter() - start)


# --- The comparison -------------------------------------------------------------------------------


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(0, width) * max(0, height)
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


def match_faces(found: list[Faces], others: list[Faces], confidence: float) -> np.ndarray:
    """The best partner in `others` of every confident face in `found`, in the same frame.

    Returns: float [faces, 3]: its confidence, its partner's overlap and confidence (0 if none).
    """
    rows = []
    for faces, other_faces in zip(found, others, strict=True):
        for box, score in faces:
            partners = [(overlap(box, other), other_score) for other, other_score in other_faces]
            if score >= confidence:
                rows.append((score, *max(partners, default=(0.0, 0.0))))
    return np.array(rows).reshape(-1, 3)


def print_agreement(plain: list[Faces], ours: list[Faces], confidence: float) -> None:
    one_way = match_faces(plain, ours, confidence)
    scores, overlaps, partners = np.concatenate([one_way, match_faces(ours, plain, confidence)]).T
    same = (overlaps >= SAME_BOX) & (abs(scores - partners) <= SAME_CONFIDENCE)
    near = ~same & (scores - confidence <= NEAR_THRESHOLD)
    print(f"\nfaces of confidence {confidence} or more in {len(plain):,} frames")
    print(f"the plain loop's          {len(one_way):8,}")
    print(f"this script's             {len(scores) - len(one_way):8,}")
    print(f"both, without a partner   {(~same & ~near).sum():8,}")
    print(f"  and near the threshold  {near.sum():8,}")
    print(f"lowest overlap of two     {overlaps[same].min(initial=1):8.4f}")
    print(f"their confidences differ  {abs(scores - partners)[same].max(initial=0):8.6f} at most")


def choose_frames(frames_dir: Path, wanted: int) -> list[Path]:
    """So many frames of the folder, evenly from the first to the last."""
    step = load_step()
    videos = step.read_videos(frames_dir)
    paths = [path for video in videos for path in step.list_frames(frames_dir / video).values()]
    if not paths:
        raise ValueError(f"{frames_dir}: there are no frames in it; run 01 first.")
    chosen = np.linspace(0, len(paths) - 1, min(wanted, len(paths))).round().astype(int)
    return [paths[index] for index in chosen]


def print_speeds(speeds: dict[str, list[tuple[float, float]]]) -> None:
    """Medians over the rounds; a ratio is formed within its round."""
    print("\nframes a second, and times the plain loop's (lowest to highest of the rounds)")
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


def print_min_face_sizes(
    found: dict[int, list[Faces]], speeds: dict[int, list[float]], confidence: float
) -> None:
    smallest = min(found)
    print("\nMIN_FACE_SIZE, detection alone, all workers")
    for size, rounds in speeds.items():
        ratio = np.median(np.array(rounds) / speeds[smallest])
        faces = match_faces(found[smallest], found[size], confidence)
        lost = ((faces[:, 1] < 0.5) | (faces[:, 2] < confidence)).sum()
        print(
            f"{size:4} px {np.median(rounds):10.1f} frames/s {ratio:6.2f}x   "
            f"{lost:,} of {len(faces):,} faces lost"
        )


def main(
    frames_dir: tyro.conf.Positional[Path], frames: int = FRAMES, rounds: int = ROUNDS
) -> dict[str, list[tuple[float, float]]]:
    """Compare 02-crop-faces-with-mtcnn.py with a plain loop over the mtcnn package.

    Args:
        frames_dir: A folder that 01-convert-video-to-image.py wrote.
        frames: So many of its frames, evenly.
        rounds: Measure so often; the plain loop gets another share of the frames in each.

    Returns:
        Frames a second of each round, end to end and of detection alone.
    """
    step = load_step()
    paths = choose_frames(frames_dir, frames)
    plain_faces: dict[Path, Faces] = {}
    speeds: dict[str, list[tuple[float, float]]] = defaultdict(list)
    size_faces: dict[int, list[Faces]] = {}
    size_speeds: dict[int, list[float]] = defaultdict(list)
    with ExitStack() as running:  # all pools end with this block
        plain_pool = running.enter_context(start_plain_process())
        pools = [
            (
                running.enter_context(
                    step.open_pool(
                        step.pebble.ThreadPool if count == 1 else step.start_searchers, count
                    )
                ),
                count,
            )
            for count in sorted({1, step.count_workers()})
        ]
        for pool, workers in pools:  # untimed: networks and processes take seconds to start
            some = paths[: 4 * step.FRAMES_A_TASK["reduced"] * workers]
            run_detection(pool, workers, some, MIN_FACE_SIZES[0])

        for number in tqdm(range(rounds), unit="round"):
            share = paths[number::rounds]
            with tempfile.TemporaryDirectory() as folder:
                job = (run_plain_loop, share, Path(folder), step.CONFIDENCE, step.MARGIN)
                found, alone, end_to_end = plain_pool.submit(*job).result()
            plain_faces.update(zip(share, found, strict=True))
            speeds["plain loop"].append((len(share) / end_to_end, len(share) / alone))
            for pool, workers in pools:
                end_to_end = run_end_to_end(pool, paths)
                _, alone = run_detection(pool, workers, paths, step.MIN_FACE_SIZE)
                speeds[f"this script, workers {workers}"].append((end_to_end, alone))
            for size in MIN_FACE_SIZES:
                size_faces[size], alone = run_detection(*pools[-1], paths, size)
                size_speeds[size].append(alone)

    print(f"{len(paths):,} frames, {os.cpu_count()} cores, medians of {rounds} rounds")
    print_speeds(speeds)
    ours = size_faces[step.MIN_FACE_SIZE]
    print_agreement([plain_faces[path] for path in paths], ours, step.CONFIDENCE)
    print_min_face_sizes(size_faces, size_speeds, step.CONFIDENCE)
    return speeds


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
