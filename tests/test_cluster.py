"""Tests of 01 and 02 on several machines: a real Dask cluster, and --part."""

import errno
import http.server
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import filelock
import pandas as pd
import pytest
from conftest import ROOT, assert_stops, run_script
from faults import (
    finished_folders,
    jpeg,
    kill_again_and_again,
    processes_of,
    read_tree,
    running,
    wait_for,
    write_avi,
)
from frames import crop, run_02, write_videos

from deepfake_detect import cluster, pool

pytest.importorskip("distributed", reason="Dask is the extra 'cluster'")
pytest.importorskip("fcntl", reason="signals and shared locks are not for Windows")
SCRIPT = "01-convert-video-to-image.py"

# Loaded by a worker that must not see the folders: every path is missing there.
BLIND = "import pathlib\npathlib.Path.exists = lambda self, **options: False\n"


def children_of(parent: int, containing: str) -> list[int]:
    """Return the child processes of all threads of a process, with this text in the command."""
    found = []
    for children in Path(f"/proc/{parent}/task").glob("*/children"):
        with suppress(OSError):  # the process has ended
            for pid in children.read_text().split():
                if containing in Path(f"/proc/{pid}/cmdline").read_text():
                    found.append(int(pid))
    return found


class Machines:
    """A Dask scheduler on a free port, and workers, started like a user starts them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, []
        self.file = folder / f"{time.monotonic_ns()}.json"
        self.scheduler = self.start("scheduler", "--host", "127.0.0.1", "--port", 0)
        wait_for(lambda: self.file.exists() and self.file.read_text(), self.scheduler)
        self.address = json.loads(self.file.read_text())["address"]

    def start(self, kind: str, *arguments: object) -> subprocess.Popen[bytes]:
        """Start a process of the cluster in its own session."""
        command = [sys.executable, "-m", "dask", kind, "--scheduler-file", self.file]
        command = [*map(str, [*command, "--no-dashboard", *arguments])]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append(process)
        return process

    def start_worker(self, *arguments: object) -> subprocess.Popen[bytes]:
        """Start a worker with one thread, in a folder other than the run's."""
        return self.start("worker", "--nthreads", 1, "--local-directory", "scratch", *arguments)

    def find_pool_processes(self) -> list[int]:
        """Return the pool processes of the two workers; empty unless there are two."""
        copied = [pid for process in self.processes for pid in processes_of(process, "forkserver")]
        found = [copy for pid in copied for copy in children_of(pid, "forkserver")]
        return found if len(found) == 2 else []

    def stop(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Start a scheduler and two workers for all tests; the last test kills the scheduler."""
    machines = Machines(tmp_path_factory.mktemp("machines"))
    machines.start_worker("--no-nanny")
    machines.nanny = machines.start_worker()
    yield machines
    machines.stop()


@pytest.fixture(scope="module")
def few_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write videos/ with five short videos, and whole/, the output of a run on one machine."""
    folder = tmp_path_factory.mktemp("few")
    for name in ("real/a", "real/b", "real/c", "fake/a"):
        write_avi(folder / f"videos/{name}.avi", [jpeg((64, 48), seed=ord(name[-1]))] * 3)
    write_avi(folder / "videos/fake/torn.avi", [b"no picture"] * 3)
    assert run_script(SCRIPT, "--frames-dir", "whole", "--workers", 1, cwd=folder).returncode == 0
    return folder


@pytest.fixture
def long_videos(tmp_path: Path) -> Path:
    """Write videos/ with two long and two short videos."""
    for name in ("a", "b"):
        write_avi(tmp_path / f"videos/real/{name}.avi", [jpeg((640, 480))] * 300, (640, 480))
        write_avi(tmp_path / f"videos/fake/{name}.avi", [jpeg((64, 48))] * 3)
    return tmp_path


def two_are_begun(folder: Path) -> bool:
    """Return True if both long videos are being converted."""
    return len({path.parent for path in folder.glob("frames/.unfinished*/plain-real-*/*.png")}) == 2


# --- A Dask cluster -------------------------------------------------------------------------------


def test_files_are_the_same_as_on_one_machine(machines: Machines, few_videos: Path) -> None:
    arguments = "--frames-dir", "many", "--scheduler", machines.address
    result = run_script(SCRIPT, *arguments, cwd=few_videos)
    assert result.returncode == 0, result.stderr
    assert read_tree(few_videos / "many") == read_tree(few_videos / "whole")
    assert "distributed" not in result.stderr
    again = run_script(SCRIPT, *arguments, cwd=few_videos)
    assert "5 of 5 videos were done" in again.stdout
    assert read_tree(few_videos / "many") == read_tree(few_videos / "whole")


@pytest.fixture(scope="module")
def few_frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write frames/ of two videos, and whole/, the faces found on one machine."""
    folder = tmp_path_factory.mktemp("faces")
    write_videos(folder / "frames", videos=2, frames=3)
    (folder / "frames/v1/v1-000001.png").write_bytes(b"no picture")
    assert len(run_02(folder / "frames", folder / "whole")) == 5
    return folder


def test_faces_are_the_same_as_on_one_machine(machines: Machines, few_frames: Path) -> None:
    arguments = "--faces-dir", "many", "--scheduler", machines.address
    result = run_script("02-crop-faces-with-mtcnn.py", *arguments, cwd=few_frames)
    assert result.returncode == 0, result.stderr
    assert read_tree(few_frames / "many") == read_tree(few_frames / "whole")


@pytest.mark.long
def test_crash_and_timeout_are_reported(machines: Machines, long_videos: Path) -> None:
    arguments = "--scheduler", machines.address, "--seconds-per-video", 10
    with running(SCRIPT, *arguments, cwd=long_videos) as run:
        wait_for(lambda: two_are_begun(long_videos), run)
        first, second = wait_for(machines.find_pool_processes, run)
        os.kill(first, signal.SIGSEGV)
        os.kill(second, signal.SIGSTOP)  # reacts only to SIGKILL, like a hanging decoder
        assert run.wait() == 0
    table = pd.read_csv(long_videos / "frames/videos.csv", keep_default_na=False)
    assert table["status"].tolist() == ["ok", "ok", "failed", "failed"]
    reasons = " ".join(sorted(table["reason"])).strip()
    assert re.fullmatch("skipped after 10.0 seconds .* crashed .exit code -11.*again", reasons)
    assert "Traceback" not in (long_videos / "said").read_text()


@pytest.mark.long
def test_tasks_of_a_killed_worker_are_repeated(machines: Machines, long_videos: Path) -> None:
    with running(SCRIPT, "--scheduler", machines.address, cwd=long_videos) as run:
        wait_for(lambda: two_are_begun(long_videos), run)
        (worker,) = children_of(machines.nanny.pid, "spawn_main")
        os.kill(worker, signal.SIGKILL)  # its nanny starts another
        assert run.wait() == 0
    table = pd.read_csv(long_videos / "frames/videos.csv", keep_default_na=False)
    assert table[["status", "frames"]].values.tolist() == [["ok", 3]] * 2 + [["ok", 300]] * 2
    assert len(list((long_videos / "frames").glob("*/*.png"))) == 606
    assert not list((long_videos / "frames").glob(".unfinished*"))


@pytest.mark.long
def test_killed_run_continues(machines: Machines, few_videos: Path) -> None:
    frames, whole, finished = few_videos / "killed", read_tree(few_videos / "whole"), {}

    def check() -> None:
        """Check that folders with a final name are complete and never rewritten."""
        now = finished_folders(frames) if frames.exists() else {}
        assert {name: now[name] for name in finished} == finished
        finished.update(now)
        for name in finished:
            for path in (frames / name).iterdir():
                assert path.read_bytes() == whole[f"{name}/{path.name}"]

    arguments = "--frames-dir", "killed", "--scheduler", machines.address
    kill_again_and_again(SCRIPT, *arguments, cwd=few_videos, longest=4, check=check)
    result = run_script(SCRIPT, *arguments, cwd=few_videos)
    assert result.returncode == 0, result.stderr
    check()
    assert read_tree(frames) == whole


@pytest.mark.long
def test_worker_without_the_folders_is_reported(machines: Machines, few_videos: Path) -> None:
    alone = Machines(machines.folder)
    try:
        (alone.folder / "blind.py").write_text(BLIND)
        alone.start_worker("--no-nanny", "--preload", "blind.py")
        arguments = "--frames-dir", "blind", "--scheduler", alone.address
        result = run_script(SCRIPT, *arguments, cwd=few_videos)
        assert_stops(result, "the worker tcp://127.0.0.1:", "does not see", "run the same command")
        assert not list((few_videos / "blind").glob(".unfinished*"))
    finally:
        alone.stop()


def test_version_changes_with_the_script_or_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, part = tmp_path / "step.py", tmp_path / "parts" / "part.py"
    part.parent.mkdir()
    monkeypatch.setattr(cluster, "__file__", str(part))
    versions = []
    for texts in (("a", "b"), ("a", "b"), ("a", "c"), ("b", "c")):
        for path, text in zip((step, part), texts, strict=True):
            path.write_text(text)
        cluster.find_digest.cache_clear()
        versions.append(cluster.find_version(step))
    part.write_text("loaded already: this comes too late")
    assert versions[0] == versions[1] and len(set(versions)) == 3
    assert cluster.find_version(step) == versions[-1]
    cluster.find_digest.cache_clear()


@pytest.mark.long
def test_killed_scheduler_is_reported(machines: Machines, long_videos: Path) -> None:
    with running(SCRIPT, "--scheduler", machines.address, cwd=long_videos) as run:
        wait_for(lambda: two_are_begun(long_videos), run)
        machines.scheduler.kill()
        assert run.wait() == 1
    said = (long_videos / "said").read_text()
    assert "Traceback" not in said
    assert f"{machines.address}: the scheduler" in said.splitlines()[-1]
    result = run_script(SCRIPT, "--scheduler", machines.address, cwd=long_videos)
    assert_stops(result, machines.address, "cannot reach", "leave --scheduler out")
    result = run_script(SCRIPT, cwd=long_videos)
    assert result.returncode == 0
    assert len(list((long_videos / "frames").glob("*/*.png"))) == 606


# --- Parts ----------------------------------------------------------------------------------------


@pytest.mark.long
def test_two_parts_in_parallel_then_the_tables(few_videos: Path) -> None:
    frames = few_videos / "parts"
    arguments = "--frames-dir", "parts", "--workers", 1
    with running(SCRIPT, *arguments, "--part", "1/2", cwd=few_videos) as first:
        wait_for(lambda: list(frames.glob(".unfinished*")), first)
        os.killpg(first.pid, signal.SIGSTOP)
        assert_stops(run_script(SCRIPT, *arguments, cwd=few_videos), "parts", "another run")
        again = run_script(SCRIPT, *arguments, "--part", "1/2", cwd=few_videos)
        assert_stops(again, "parts", "another run")
        second = run_script(SCRIPT, *arguments, "--part", "2/2", cwd=few_videos)
        assert second.returncode == 0, second.stderr
        assert not (frames / "videos.csv").exists()
        os.killpg(first.pid, signal.SIGCONT)
        assert first.wait() == 0
    assert len(list(frames.glob("*/video.json"))) == 5
    result = run_script(SCRIPT, *arguments, cwd=few_videos)
    assert "5 of 5 videos were done" in result.stdout
    assert read_tree(frames) == read_tree(few_videos / "whole")
    assert pd.read_csv(frames / "videos.csv")["frames"].sum() == 12


def test_part_can_be_empty(few_videos: Path) -> None:
    result = run_script(SCRIPT, "--frames-dir", "empty", "--part", "9/9", cwd=few_videos)
    assert result.returncode == 0, result.stderr
    assert not list((few_videos / "empty").glob("*/"))


def test_faces_can_be_made_in_parts(few_frames: Path) -> None:
    frames, faces = few_frames / "frames", few_frames / "parts"
    for part, done in (("1/2", {"v0"}), ("2/2", {"v0", "v1"}), ("3/3", {"v0", "v1"})):
        settings = crop.Settings(frames_dir=frames, faces_dir=faces, workers=1, part=part)
        assert crop.main(settings) is None
        assert {path.parent.name for path in faces.glob("*/faces.json")} == done
        assert not (faces / "faces.csv").exists() and not (faces / "skipped.csv").exists()
    assert len(run_02(frames, faces)) == 5
    assert read_tree(faces) == read_tree(few_frames / "whole")


@pytest.fixture
def listener(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the address of a server that is not a scheduler."""
    if not request.param:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            yield f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        return
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"tcp://127.0.0.1:{server.server_port}"
        server.shutdown()


def connect(address: str, folder: Path) -> None:
    start = importlib.import_module("01-convert-video-to-image").start_pool
    cluster.Cluster(address, start, folder, folder)


@pytest.mark.parametrize("listener", [True, False], indirect=True)
def test_other_program_is_not_waited_for(
    listener: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "PATIENCE", 2)
    with pytest.raises(OSError, match="cannot reach"):
        connect(listener, tmp_path)


@pytest.mark.parametrize("address", ["ucx://127.0.0.1:1", "inproc://a:1", "foo://a:1", "tcp://a"])
def test_invalid_address_is_reported(address: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"{address}: cannot reach"):
        connect(address, tmp_path)


@pytest.mark.parametrize("part", ["\u0663/\u0661\u0660", "\uff13/\uff11\uff10", "03/10", "3/010"])
def test_part_is_the_same_in_any_notation(part: str, tmp_path: Path) -> None:
    assert pool.read_part(part) == pool.read_part("3/10")
    with (
        pool.share_folder(tmp_path, "3/10"),
        pytest.raises(filelock.Timeout),
        pool.share_folder(tmp_path, part),
    ):
        pass
    with pool.share_folder(tmp_path, "4/10"), pool.share_folder(tmp_path, part):
        pass


def test_disk_without_locks_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="--part"),
        pool.share_folder(tmp_path, "1/2"),
    ):
        pass


@pytest.mark.parametrize("options", ["size=4k,nr_inodes=2", "ro"])
def test_missing_shared_memory_is_reported(options: str, few_videos: Path) -> None:
    command = f"mount -t tmpfs -o {options} none /dev/shm || exit 99; exec "
    command += f"{sys.executable} {ROOT / SCRIPT} --frames-dir shm"
    run = subprocess.run(
        ["unshare", "-m", "sh", "-c", command], cwd=few_videos, capture_output=True, text=True
    )
    if run.returncode not in (0, 1):
        pytest.skip("a small /dev/shm cannot be had here: that takes Linux and root")
    assert_stops(run, "/dev/shm")


@pytest.mark.parametrize("part", ["0/2", "3/2", "half", "1/0", "-1/2"])
def test_invalid_part_is_rejected(few_videos: Path, part: str) -> None:
    with pytest.raises(ValueError, match=r"--part is .*give one such as 3/10"):
        pool.read_part(part)
