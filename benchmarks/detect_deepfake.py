"""Time 06-detect-deepfake.py from start to verdict, side by side with a plain loop.

    python -m benchmarks.detect_deepfake clip.mp4
    python -m benchmarks.detect_deepfake clip.mp4 --seconds 600 --rounds 1 --no-plain

Reads   a video with a face, repeated to each length; the photo is one of its frames
Writes  nothing; prints three tables

The plain loop runs the mtcnn package frame by frame, Keras' predict face by face and OpenCV's
writer, on the same number of frames per second, in one pass. Its time includes the import of
TensorFlow, but not the start of Python. Each round measures all methods in turn, so that other load
on the machine affects them equally. Ratios compare values of the same round: a photo with the
import of TensorFlow, a video with marked copy with FFmpeg's decoding and encoding, and a video
without the copy with decoding alone.
"""

from __future__ import annotations

from deepfake_detect import start

start.prepare(__name__)

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import cv2
import imageio_ffmpeg
import numpy as np
import tyro
from tqdm import tqdm

from deepfake_detect import cli
from deepfake_detect.cli import Between, Count

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "06-detect-deepfake.py"
MODEL = ROOT / "weights" / "deepfake-detector.onnx"
START = [sys.executable, "-c", "import tensorflow, cv2"]  # minimum time when 06 used TensorFlow
STEPS = "loading", "check", "report", "marked copy"  # steps of the Python interface


@dataclass(frozen=True)
class Settings:
    """Edit a default here, or override it for one run: --rounds 1."""

    video: Annotated[Path, tyro.conf.Positional]  # a video with a face
    seconds: Annotated[tuple[float, ...], Between(0)] = (0.0, 10.0, 120.0)  # lengths; 0: a photo
    rounds: Count = 3  # the medians are printed
    plain: bool = True  # also time the plain loop: minutes per minute of video
    model: Path = MODEL  # an .onnx file; the plain loop uses the .keras file next to it


def main(settings: Settings) -> None:
    """Time script 06 from start to verdict, side by side with a plain loop."""
    cli.check_ranges(settings)
    video, model = settings.video, settings.model.absolute()
    if not video.is_file():
        raise FileNotFoundError(f"{video}: the video does not exist; give a video with a face.")
    times: dict[str, list[Times]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        inputs = make_inputs(video, settings.seconds, folder)
        plain = model.with_suffix(".keras") if settings.plain else None
        stored = store_model(plain, folder / "stored.keras") if plain else None
        for _ in tqdm(range(settings.rounds), unit="round"):
            for name, path in inputs.items():
                times[name].append(time_input(path, model, stored, folder / "out"))
        steps = {name: in_new_process(time_steps, path, model) for name, path in inputs.items()}
    print(f"{video.name}, {os.cpu_count()} cores, medians of {settings.rounds} round(s)")
    print_times(times)
    print_steps(steps)


def make_inputs(video: Path, seconds: tuple[float, ...], folder: Path) -> dict[str, Path]:
    """Write a photo (length 0), or repeat the video to each length without re-encoding.

    Raises:
        ValueError: the video cannot be read
    """
    inputs = {}
    for length in seconds:
        if not length:
            path = inputs["photo"] = folder / "photo.jpg"
            frames = cv2.VideoCapture(str(video))
            frames.set(cv2.CAP_PROP_POS_FRAMES, frames.get(cv2.CAP_PROP_FRAME_COUNT) // 2)
            decoded, frame = frames.read()
            if not decoded:
                raise ValueError(f"{video}: no frame can be read; give a video with a face.")
            cv2.imwrite(str(path), frame)
            continue
        path = inputs[f"{length:g} s"] = folder / f"{length:g}{video.suffix}"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-stream_loop", "-1"]
        command += ["-i", str(video), "-t", str(length), "-c", "copy", str(path)]
        subprocess.run(command, check=True)
    return inputs


def store_model(model: Path, target: Path) -> Path:
    """Copy a model into an uncompressed zip file, because Keras reads compressed ones slowly."""
    with zipfile.ZipFile(model) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            copy.writestr(name, source.read(name))
    return target


# --- From start to verdict ------------------------------------------------------------------------


class Times(NamedTuple):
    """Times of one input in one round, in seconds, and the peak memory of script 06, in MiB."""

    script: float
    unmarked: float  # the script without the marked copy
    plain: float  # NaN if not timed
    decoding: float  # FFmpeg, decoding alone
    coding: float  # FFmpeg, decoding and encoding
    start: float  # Python, with the import of TensorFlow and OpenCV
    memory: float


def time_input(path: Path, model: Path, stored: Path | None, out: Path) -> Times:
    """Time one input with every method, each in a new process; `stored` is for the plain loop."""
    script = [sys.executable, str(SCRIPT), str(path), "--model", str(model)]
    script += ["--detections-dir", str(out)]
    marked, memory = run(script)
    unmarked, _ = run([*script, "--no-annotate"])
    plain = in_new_process(run_plain_loop, path, stored, out) if stored else np.nan
    start, _ = run(START)
    if path.suffix == ".jpg":
        return Times(marked, unmarked, plain, np.nan, np.nan, start, memory)
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y", "-i", str(path)]
    decoding, _ = run([*ffmpeg, "-f", "null", "-"])
    fast = ["-c:v", "libx264", "-preset", "ultrafast", "-qp", "22"]
    coding, _ = run([*ffmpeg, *fast, str(out / "coded.mp4")])
    return Times(marked, unmarked, plain, decoding, coding, start, memory)


def run(command: list[str]) -> tuple[float, float]:
    """Run a command; return the seconds and its peak memory in MiB."""
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
    """Call a function in a new process without imported modules."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(os.getpid).result()
        return pool.submit(work, *given).result()


def run_plain_loop(path: Path, model: Path, out: Path) -> float:
    """Score and mark a file in the simplest way; return the seconds."""
    before = time.perf_counter()
    import efficientnet.tfkeras  # noqa: F401 - registers the layers of the model
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
    print("\nfrom start to verdict, in seconds, and the peak memory of script 06")
    columns = "script 06", "no copy", "plain loop", "decoding", "coding", "TensorFlow", "MiB"
    print(f"{'':8}" + "".join(f"{column:>12}" for column in columns))
    for name, rounds in times.items():
        medians = np.median(np.array(rounds), 0)
        print(f"{name:8}" + "".join(f"{value:12.2f}" for value in medians))
    print("\nratio to")
    for name, rounds in times.items():
        script, unmarked, _, decoding, coding, start, _ = np.array(rounds).T
        if name == "photo":
            print(f"{name:8}{np.median(script / start):6.2f}  importing TensorFlow and OpenCV")
            continue
        print(f"{name:8}{np.median(script / coding):6.2f}  decoding and encoding")
        print(f"{'':8}{np.median(unmarked / decoding):6.2f}  decoding, without the marked copy")


# --- Where the time goes --------------------------------------------------------------------------


def time_steps(path: Path, model: Path) -> list[dict[str, float]]:
    """Time the steps of the Python interface, cold and then warm, as on the web page."""
    results, before = [], time.perf_counter()

    def stop(step: str) -> None:
        nonlocal before
        now = time.perf_counter()
        results[-1][step], before = now - before, now

    with tempfile.TemporaryDirectory() as folder:
        for number in range(2):
            results.append({})
            if not number:
                from deepfake_detect import Detector  # the time includes its imports

                detector = Detector(model)
            stop("loading")
            result = detector.check(path)
            stop("check")
            detector.write_report(result, Path(folder) / "report.html")
            stop("report")
            end = ".png" if result.kind == "picture" else ".mp4"
            detector.write_marked_copy(result, Path(folder) / f"marked{end}")
            stop("marked copy")
    return results


def print_steps(steps: dict[str, list[dict[str, float]]]) -> None:
    """Print the seconds of each step, cold and warm."""
    print("\ntime of each step, in seconds")
    print(f"{'':14}" + "".join(f"{name + ', cold':>14}{name + ', warm':>14}" for name in steps))
    for step in STEPS:
        cells = [f"{run[step]:14.2f}" for runs in steps.values() for run in runs]
        print(f"{step:14}" + "".join(cells))


if __name__ == "__main__":
    cli.run(main)
