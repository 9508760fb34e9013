"""Helpers for the tests of faults: killed runs, small disks, and unusual videos."""

import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT

KILLS = int(os.environ.get("KILLS", "3"))  # more for a manual test: each takes as long as a run

# --- Disturbed runs -------------------------------------------------------------------------------


@contextmanager
def running(script: str, *arguments: object, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a script in its own session while the block runs; its output goes to cwd/said."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    with (cwd / "said").open("w") as said:
        run = subprocess.Popen(
            command, cwd=cwd, stdout=said, stderr=said, text=True, start_new_session=True
        )
    try:
        yield run
    finally:
        run.kill()
        run.wait()
        with suppress(ProcessLookupError):  # resume stopped workers, so that they end
            os.killpg(run.pid, signal.SIGCONT)


def wait_for(condition: Callable[[], object], run: subprocess.Popen[str]) -> object:
    """Wait until the condition holds, and return what it returned."""
    while True:
        with suppress(FileNotFoundError):  # a folder was moved while it was read
            if result := condition():
                return result
        assert run.poll() is None, "the run ended too early"
        time.sleep(0.01)


def processes_of(run: subprocess.Popen[str], containing: str = "") -> list[int]:
    """Return the other processes in the session of a run, with this text in their command."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc to find the processes")
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = read_status(int(folder.name))
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue  # the process has ended
        ours = session == str(run.pid) != folder.name and state != "Z"
        if ours and containing in command:
            found.append(int(folder.name))
    return sorted(found)


def read_status(pid: int) -> list[str]:
    """Return the state, parent, group and session of a process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]


def wait_for_end_of_all(run: subprocess.Popen[str]) -> None:
    """Wait until all processes of an ended run have ended, for at most five minutes."""
    for _ in range(6000):
        if not processes_of(run):
            return
        time.sleep(0.05)
    raise AssertionError(f"processes are still running: {processes_of(run)}")


def workers_of(run: subprocess.Popen[str]) -> list[int]:
    """Return the worker processes of a run: children of its fork server."""
    found = processes_of(run, "forkserver")
    return [pid for pid in found if read_status(pid)[1] != str(run.pid)]


def kill_again_and_again(
    script: str, *arguments: object, cwd: Path, longest: float, check: Callable
) -> None:
    """Start a script and kill it within `longest` seconds, KILLS times; check after each kill."""
    moments = random.Random(0)
    for _ in range(KILLS):
        with running(script, *arguments, cwd=cwd) as run:
            time.sleep(moments.uniform(0, longest))
            run.send_signal(signal.SIGKILL)
            run.wait()
        check()


def read_tree(folder: Path) -> dict[str, bytes]:
    """Return the content of all files below a folder, by path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def finished_folders(frames_dir: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of the folders with a final name; both change if rewritten."""
    folders = [path for path in frames_dir.glob("*/") if not path.name.startswith(".unfinished-")]
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folders}


@contextmanager
def small_disk(folder: Path, megabytes: float) -> Iterator[Callable[[float], None]]:
    """Mount a small disk on a folder; yield a function that changes its size."""

    def mount(options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        try:
            return subprocess.run(command, capture_output=True).returncode == 0
        except FileNotFoundError:
            return False

    folder.mkdir(parents=True, exist_ok=True)
    if not mount(f"size={int(megabytes * 1024)}k"):
        pytest.skip("mounting a small disk needs Linux and root")

    def resize(megabytes: float) -> None:
        assert mount(f"remount,size={int(megabytes * 1024)}k")

    try:
        yield resize
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def skip_as_root() -> None:
    if not hasattr(os, "geteuid") or os.geteuid() == 0:
        pytest.skip("file permissions do not apply to root or on Windows")


# --- Unusual videos -------------------------------------------------------------------------------


def jpeg(size: tuple[int, int], grey: bool = False, seed: int = 0) -> bytes:
    """Return a JPEG of smooth noise; size is (width, height)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    picture = cv2.resize(coarse[..., 0] if grey else coarse, size)
    return cv2.imencode(".jpg", picture)[1].tobytes()


def write_avi(
    path: Path,
    frames: list[bytes],
    size: tuple[int, int] = (64, 48),
    codec: bytes = b"MJPG",
    bits: int = 24,
    rate: tuple[int, int] = (25, 1),
    claimed: int | None = None,
    audio: bool = False,
) -> Path:
    """Write an AVI of encoded frames whose header has the given values, correct or not."""

    def chunk(name: bytes, *content: bytes) -> bytes:
        content = b"".join(content)
        return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)

    claimed = len(frames) if claimed is None else claimed
    main = struct.pack("<14I", 40_000, 0, 0, 0, claimed, 0, 1, 0, *size, 0, 0, 0, 0)
    stream = struct.pack("<4s4sIHH", b"auds" if audio else b"vids", codec, 0, 0, 0)
    stream += struct.pack("<8I4H", 0, rate[1], rate[0], 0, claimed, 0, 0, 0, 0, 0, 0, 0)
    looks = struct.pack("<IiiHH4s5I", 40, *size, 1, bits, codec, 0, 0, 0, 0, 0)
    sound = struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16)
    lists = chunk(b"strh", stream), chunk(b"strf", sound if audio else looks)
    header = chunk(b"LIST", b"hdrl", chunk(b"avih", main), chunk(b"LIST", b"strl", *lists))
    chunks = [chunk(b"00wb" if audio else b"00dc", frame) for frame in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(chunk(b"RIFF", b"AVI ", header, chunk(b"LIST", b"movi", *chunks)))
    return path
