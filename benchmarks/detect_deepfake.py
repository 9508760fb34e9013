"""Time 06-detect-deepfake.py from its start to its verdict, side by side with a plain loop.

    python -m benchmarks.detect_deepfake clip.mp4
    python -m benchmarks.detect_deepfake clip.mp4 --seconds 600 --rounds 1 --no-plain

Reads   a video with a face in it, which is repeated to the lengths; a photo is one of its frames
Writes  nothing; prints three tables

What a start cannot go below is `python -c "import tensorflow, cv2"`; all that is cold is told in
times of that, too. The plain loop is the mtcnn package frame by frame, Keras' predict face by face
and OpenCV's writer, on as many frames a second, in one pass; its interpreter is started before its
time begins. Each round measures all of them one after another, so that they share whatever else the
machine does; a ratio is formed within its round.
"""

from __future__ import annotations

import importlib
import io
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Annotated, NamedTuple

import cv2
import imageio_ffmpeg
import numpy as np
import tyro
from tqdm import tqdm

# --------------------------------------------------------------------------------------------------
# measurement
SECONDS = (0.0, 10.0, 120.0)  # of the videos; 0 is a photo
ROUNDS = 3  # of which the medians are printed
PLAIN = True  # time the plain loop, too
MODEL = Path(__file__).parents[1] / "weights" / "deepfake-detector.keras"
# --------------------------------------------------------------------------------------------------

SCRIPT = Path(__file__).parents[1] / "06-detect-deepfake.py"
START = [sys.executable, "-c", "import tensorflow, cv2"]
STEPS = "imports", "model", "decoding", "detection", "scoring", "marked copy", "drawing", "report"


def main(
    video: Annotated[Path, tyro.conf.Positional],
    seconds: tuple[float, ...] = SECONDS,
    rounds: int = ROUNDS,
    plain: bool = PLAIN,
    model: Path = MODEL,
) -> dict[str, list[Times]]:
    """Time script 06 from its start to its verdict, side by side with a plain loop.

    Args:
        video: with a face in it
        seconds: lengths of the videos that are made of it; 0 is a photo
        rounds: measure so often
        plain: time the plain loop, too, which takes minutes for each of a video
        model: that scores the faces

    Returns:
        What each round took, by input.
    """
    if not video.is_file():
        raise FileNotFoundError(f"{video}: there is no such video; name one with a face in it.")
    times: dict[str, list[Times]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        inputs = make_inputs(video, seconds, folder)
        stored = store_model(model, folder / "stored.keras") if plain else None
        for _ in tqdm(range(rounds), unit="round"):
            for name, path in inputs.items():
                times[name].append(time_input(path, model, stored, folder / "out"))
        steps = {name: in_new_process(time_steps, path, model) for name, path in inputs.items()}
    print(f"{video.name}, {os.cpu_count()} cores, medians of {rounds} round(s)")
    print_times(times)
    print_steps(steps)
    return times


def make_inputs(video: Path, seconds: tuple[float, ...], folder: Path) -> dict[str, Path]:
    """Make a photo, or a video of a length: the given one over and over, not coded anew."""
    inputs = {}
    for length in seconds:
        if not length:
            path = inputs["photo"] = folder / "photo.jpg"
            frames = cv2.VideoCapture(str(video))
            frames.set(cv2.CAP_PROP_POS_FRAMES, frames.get(cv2.CAP_PROP_FRAME_COUNT) // 2)
            cv2.imwrite(str(path), frames.read()[1])
            continue
        path = inputs[f"{length:g} s"] = folder / f"{length:g}{video.suffix}"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-stream_loop", "-1"]
        command += ["-i", str(video), "-t", str(length), "-c", "copy", str(path)]
        subprocess.run(command, check=True)
    return inputs


def store_model(model: Path, target: Path) -> Path:
    """Copy a model without the compression of its zip file, in which Keras is slow to read."""
    with zipfile.ZipFile(model) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            copy.writestr(name, source.read(name))
    return target


# --- From start to verdict ------------------------------------------------------------------------


class Times(NamedTuple):
    """What an input took in a round, in seconds, and the most memory of script 06, in MiB."""

    start: float  # import tensorflow, cv2
    script: float
    unmarked: float  # the script without the marked copy
    plain: float
    decoding: float  # alone, by OpenCV
    memory: float


def time_input(path: Path, model: Path, stored: Path | None, out: Path) -> Times:
    """Time an input in every way, each in a process of its own; the plain loop with `stored`."""
    start, _ = run(START)
    script = [sys.executable, str(SCRIPT), str(path), "--model", str(model)]
    script += ["--detections-dir", str(out)]
    marked, memory = run(script)
    unmarked, _ = run([*script, "--no-annotate"])
    plain = in_new_process(run_plain_loop, path, stored, out) if stored else np.nan
    before = time.perf_counter()
    frames = cv2.VideoCapture(str(path))
    while frames.grab():
        pass
    return Times(start, marked, unmarked, plain, time.perf_counter() - before, memory)


def run(command: list[str]) -> tuple[float, float]:
    """Run a command: its seconds, and its most memory in MiB."""
    before = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        seconds, process.returncode = time.perf_counter() - before, status
        if status:
            said.seek(0)
            raise ValueError(f"{' '.join(command)} failed: {said.read().decode(errors='replace')}")
    return seconds, usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def in_new_process(work: object, *given: object) -> object:
    """What a function gives in a process of its own, which has TensorFlow yet to import."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(os.getpid).result()
        return pool.submit(work, *given).result()


def run_plain_loop(path: Path, model: Path, out: Path) -> float:
    """Score and mark a file as a first attempt would: seconds."""
    before = time.perf_counter()
    import efficientnet.tfkeras  # noqa: F401 - its layers, for the model
    import keras
    from mtcnn import MTCNN

    detector, network = MTCNN(), keras.saving.load_model(model, compile=False)
    frames = cv2.VideoCapture(str(path))
    rate, writer = frames.get(cv2.CAP_PROP_FPS) or 25, None
    every, boxes, index = max(1, round(rate / 2)), [], 0
    while True:
        there, frame = frames.read()
        if not there:
            break
        if index % every == 0:
            boxes = []
            for face in detector.detect_faces(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)):
                if face["confidence"] >= 0.95:
                    x, y, width, height = face["box"]
                    crop = frame[max(0, y) : y + height, max(0, x) : x + width, ::-1]
                    crop = cv2.resize(crop, network.input_shape[1:3])[None].astype(np.float32)
                    p_fake = 1 - network.predict(crop, verbose=0)[0, 0]
                    boxes.append((x, y, width, height, p_fake))
        for x, y, width, height, p_fake in boxes:
            cv2.rectangle(frame, (x, y), (x + width, y + height), (0, 0, 255), 4)
            cv2.putText(frame, f"{p_fake:.2f}", (x, y), cv2.FONT_HERSHEY_SIMPLEX, 1, (0, 0, 255), 2)
        if writer is None:
            code = cv2.VideoWriter.fourcc(*"mp4v")
            writer = cv2.VideoWriter(str(out / "plain.mp4"), code, rate, frame.shape[1::-1])
        writer.write(frame)
        index += 1
    writer.release()
    return time.perf_counter() - before


def print_times(times: dict[str, list[Times]]) -> None:
    """Print the medians over the rounds."""
    print('\nfrom start to verdict: seconds (in times of "import tensorflow, cv2"), most memory')
    print(f"{'':8}{'start':>8}{'script 06':>17}{'no marked copy':>17}{'plain loop':>17}{'MiB':>8}")
    for name, rounds in times.items():
        table = np.array(rounds)
        seconds, ratios = np.median(table, 0), np.median(table / table[:, :1], 0)
        cells = [f"{seconds[at]:8.1f} ({ratios[at]:5.2f}x)" for at in (1, 2, 3)]
        print(f"{name:8}{seconds[0]:8.1f} {' '.join(cells)} {seconds[5]:7.0f}")
    print("\nwithout the marked copy, in times of decoding alone")
    for name, rounds in times.items():
        if name == "photo":  # nothing of it to decode
            continue
        table = np.array(rounds)
        print(f"{name:8}{np.median(table[:, 2] / table[:, 4]):8.2f}x of {table[0, 4]:.1f} s")


# --- Where the time goes --------------------------------------------------------------------------


def time_steps(path: Path, model: Path) -> list[dict[str, float]]:
    """Time each step of the detection, cold and then warm, as the page is: seconds by step."""
    before = time.perf_counter()
    detect = importlib.import_module(SCRIPT.stem)
    spent = defaultdict(float, imports=time.perf_counter() - before)
    time_calls(detect.network, "load_predictor", "model", spent)
    time_items(detect.convert, "read_frames", "decoding", spent)
    time_items(detect.media.Video, "sampled", "decoding", spent)
    time_calls(detect.face_detector, "crop_faces", "detection", spent)
    time_calls(detect, "score_crops", "scoring", spent)
    time_calls(detect, "write_outputs", "marked copy", spent)
    time_calls(detect.marked_video, "mark_faces", "drawing", spent)
    time_calls(detect.detection_report, "collect_report", "report", spent)
    time_calls(detect, "write_html", "report", spent)

    results = []
    load_scorer = cache(detect.load_scorer)  # once, as the page does
    detect.load_scorer = lambda path, as_graph: load_scorer(path)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        for _ in range(2):
            detect.main([path], model=model, detections_dir=Path(folder))
            results.append({**spent, "all": time.perf_counter() - before})
            before = time.perf_counter()
            spent.clear()
    return results


def time_calls(module: ModuleType, name: str, step: str, spent: dict[str, float]) -> None:
    """Have the calls of a function add their seconds to a step."""
    function = getattr(module, name)

    def timed(*args: object, **options: object) -> object:
        before = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            spent[step] += time.perf_counter() - before

    setattr(module, name, timed)


def time_items(module: ModuleType, name: str, step: str, spent: dict[str, float]) -> None:
    """Have a generator add the seconds until each of its items to a step."""
    function = getattr(module, name)

    def timed(*args: object, **options: object) -> Iterator:
        items = function(*args, **options)
        while True:
            before = time.perf_counter()
            item = next(items, None)
            spent[step] += time.perf_counter() - before
            if item is None:
                return
            yield item

    setattr(module, name, timed)


def print_steps(steps: dict[str, list[dict[str, float]]]) -> None:
    """Print what each step took, cold and warm."""
    print("\nwhere the time goes, in seconds; steps run beside one another, drawing within marking")
    print(f"{'':14}" + "".join(f"{name + ', cold':>14}{name + ', warm':>14}" for name in steps))
    for step in (*STEPS, "all"):
        cells = [f"{run.get(step, 0.0):14.2f}" for runs in steps.values() for run in runs]
        print(f"{step:14}" + "".join(cells))


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
