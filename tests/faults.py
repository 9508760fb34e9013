"""What the tests of faults need: runs that are killed, small disks, files that are not right."""

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

# --- Runs that are disturbed ----------------------------------------------------------------------


@contextmanager
def running(script: str, *arguments: object, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """A script at work, in a session of its own; what it says is in cwd/said."""
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
        with suppress(ProcessLookupError):  # a worker that a test stopped goes on, and so ends
            os.killpg(run.pid, signal.SIGCONT)


def wait_for(condition: Callable[[], object], run: subprocess.Popen[str]) -> object:
    """Wait until the condition holds, and return what it returned."""
    while True:
        with suppress(FileNotFoundError):  # a folder was moved while it was looked into
            if result := condition():
                return result
        assert run.poll() is None, "the run ended before"
        time.sleep(0.01)


def processes_of(run: subprocess.Popen[str], containing: str = "") -> list[int]:
    """The processes in the session of a run, itself left out, that have this in their command."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("there is no /proc to find the processes in")
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = read_status(int(folder.name))
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue  # it has ended
        ours = session == str(run.pid) != folder.name and state != "Z"
        if ours and containing in command:
            found.append(int(folder.name))
    return sorted(found)


def read_status(pid: int) -> list[str]:
    """A process's state, parent, group and session."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]


def wait_for_end_of_all(run: subprocess.Popen[str]) -> None:
    """A run that has ended leaves no process behind, or soon none: within minutes."""
    for _ in range(6000):
        if not processes_of(run):
            return
        time.sleep(0.05)
    raise AssertionError(f"it left processes behind: {processes_of(run)}")


def workers_of(run: subprocess.Popen[str]) -> list[int]:
    """The processes that do the work of a run: copies of one that itself is the run's."""
    found = processes_of(run, "forkserver")
    return [pid for pid in found if read_status(pid)[1] != str(run.pid)]


def kill_again_and_again(
    script: str, *arguments: object, cwd: Path, times: int, longest: float, check: Callable
) -> None:
    """Start a script and kill it after a random part of `longest` seconds; check after each."""
    moments = random.Random(0)
    for _ in range(times):
        with running(script, *arguments, cwd=cwd) as run:
            time.sleep(moments.uniform(0, longest))
            run.send_signal(signal.SIGKILL)
            run.wait()
        check()


def read_tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder, by their path, with their content."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def finished_folders(frames_dir: Path) -> dict[str, tuple[int, int]]:
    """The folders with a final name, and their inode and time: new ones if made again."""
    folders = [path for path in frames_dir.glob("*/") if not path.name.startswith(".unfinished-")]
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folders}


@contextmanager
def small_disk(folder: Path, megabytes: float) -> Iterator[Callable[[float], None]]:
    """Mount a small disk on a folder; yields a function that gives it another size."""

    def mount(options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        try:
            return subprocess.run(command, capture_output=True).returncode == 0
        except FileNotFoundError:
            return False

    folder.mkdir(parents=True, exist_ok=True)
    if not mount(f"size={int(megabytes * 1024)}k"):
        pytest.skip("a small disk cannot be mounted here: that takes Linux and root")

    def resize(megabytes: float) -> None:
        assert mount(f"remount,size={int(megabytes * 1024)}k")

    try:
        yield resize
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def skip_as_root() -> None:
    if not hasattr(os, "geteuid") or os.geteuid() == 0:
        pytest.skip("permissions do not bind root, nor Windows")


# --- Videos that are not right --------------------------------------------------------------------


def jpeg(size: tuple[int, int], grey: bool = False, seed: int = 0) -> bytes:
    """A picture of smooth noise, size (width, height), encoded."""
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
    """An AVI of encoded frames whose header has the values given, true or not."""

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
