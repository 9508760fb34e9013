"""Shared test helpers: write small videos, and run scripts like a user."""

import os
import signal
import subprocess
import sys
from pathlib import Path

# Set as in the scripts, before TensorFlow is imported: a run in the process of the tests must give
# the same numbers as a run in its own process.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import cv2
import hypothesis
import numpy as np
import pytest

# No deadline per example, as the machine may be busy.
# Other examples in each run, but in CI always the same: it must fail only because of its change.
hypothesis.settings.register_profile("ours", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("ours")

# A shell that starts the tests with & or nohup ignores these signals. Scripts started by the tests
# would inherit that, so restore the default handlers.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):  # not on Windows
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = Path(__file__).resolve().parents[1]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return one process more than cores, as tests often wait for a script they started."""
    return (os.cpu_count() or 1) + 1


def write_video(
    path: Path, frames: int = 3, size: tuple[int, int] = (64, 48), fps: float = 25, seed: int = 0
) -> Path:
    """Write a video of smooth coloured noise, different in each frame; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = "MJPG" if path.suffix == ".avi" else "VP90" if path.suffix == ".webm" else "mp4v"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, size)
    assert writer.isOpened(), path
    rng = np.random.default_rng(seed)
    for _ in range(frames):
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        writer.write(cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC))
    writer.release()
    return path


def run_script(name: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in the folder `cwd`, as from a shell."""
    command = [sys.executable, str(ROOT / name), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def run_script_after(
    lines: str, name: str, *arguments: object, cwd: Path
) -> subprocess.CompletedProcess[str]:
    """Run some lines of Python and then a script, in one process."""
    argv = [name, *map(str, arguments)]
    program = (
        f"import runpy, sys\nsys.path.insert(0, {str(ROOT)!r})\nsys.argv = {argv}\n"
        f"{lines}\nrunpy.run_path({str(ROOT / name)!r}, run_name='__main__')\n"
    )
    return subprocess.run([sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True)


def assert_stops(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """Check for exit code 1 and one sentence with these words, without a traceback."""
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    sentence = result.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in sentence, sentence


@pytest.fixture
def snapshot() -> callable:
    """Return a function that reads all files below a folder, with their modification times."""

    def take(folder: Path) -> dict[str, tuple[bytes, int]]:
        return {
            path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in folder.rglob("*")
            if path.is_file() and path.name != ".lock"
        }

    return take
