"""Measure the overhead of 136,074 videos on 100 workers: scheduler, folders and tables.

    python -m benchmarks.many_machines
    python -m benchmarks.many_machines --videos 2000 --workers 10 --crops 20000

The five data sets have this number of videos; here all are empty. The 100 Dask workers share a few
processes on this machine and do nothing, so that only the cost of scheduling is measured. Script 01
makes the folders of the empty files, and script 02 gathers the tables of empty crops
(benchmarks.table_sizes).
"""

from __future__ import annotations

from deepfake_detect import start

start.prepare(__name__)

import asyncio
import importlib
import json
import logging
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pebble
import psutil
from distributed import Worker

from deepfake_detect import cli
from deepfake_detect.cli import Count

ROOT = Path(__file__).resolve().parents[1]
clusters = importlib.import_module("deepfake_detect.cluster")
pools = importlib.import_module("deepfake_detect.pool")


@dataclass(frozen=True)
class Settings:
    """Edit a default here, or override it for one run: --videos 2000."""

    videos: Count = 136_074  # empty videos; the default is the size of the five data sets
    workers: Count = 100  # workers that do nothing
    crops: Count = 1_360_740  # rows of the tables: ten per video, as with one frame per second


HOSTS = 4  # processes that the workers share
MIB = 2**20


def start_pool(workers: int) -> pebble.ThreadPool:
    """Return a pool; deepfake_detect.cluster calls this function on each worker."""
    return pebble.ThreadPool(workers)


def do_nothing(source: Path, target: Path, checkpoint: dict) -> dict:
    """Return the row of a video as in 01, without doing any work."""
    assert source != target and checkpoint
    row = {"width": 1920, "height": 1080, "fps": 29.97, "frames": 10, "status": "ok", "reason": ""}
    return row


def host_workers(address: str, count: int) -> None:
    """Run `count` Dask workers in this process until the scheduler stops."""
    logging.disable()

    async def be_workers() -> None:
        workers = [Worker(address, nthreads=1, dashboard=False) for _ in range(count)]
        await asyncio.gather(*workers)
        await asyncio.gather(*(worker.finished() for worker in workers))

    asyncio.run(be_workers())


def measure_scheduler(folder: Path, videos: int, workers: int) -> float:
    """Submit one task per video to idle workers; print the load, return tasks per second."""
    file, run = folder / "scheduler.json", folder / "run"
    run.mkdir()
    command = ["dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    command = [sys.executable, "-m", *command, "--scheduler-file", str(file)]
    processes = [subprocess.Popen(command, stderr=subprocess.DEVNULL)]
    scheduler, client = psutil.Process(processes[0].pid), psutil.Process()
    try:
        while not (file.exists() and file.read_text(encoding="utf-8")):
            time.sleep(0.1)
        address = json.loads(file.read_text(encoding="utf-8"))["address"]
        for host in range(HOSTS):
            share = workers // HOSTS + (host < workers % HOSTS)
            task = (
                f"from benchmarks import many_machines as m; m.host_workers({address!r}, {share})"
            )
            command = [sys.executable, "-c", task]
            processes.append(subprocess.Popen(command, cwd=ROOT))
        pool = clusters.Cluster(address, start_pool, run, Path(__file__))
        pool.client.wait_for_workers(workers)

        # As in the scripts: keep a number of tasks in flight, and add one for each finished task.
        start = time.perf_counter()
        before = [sum(process.cpu_times()[:2]) for process in (scheduler, client)]
        checkpoint = {"settings": {"frames_per_second": 1}, "files": 1, "bytes": 2_000_000}
        names = (f"dfdc-{number:010d}" for number in range(videos))
        tasks = ((folder / "videos" / f"{n}.mp4", folder / "frames" / n, checkpoint) for n in names)
        for _, future in pools.run_tasks(pool, pool.workers, do_nothing, tasks):
            assert future.result()["status"] == "ok"
        seconds = time.perf_counter() - start

        after = [sum(process.cpu_times()[:2]) for process in (scheduler, client)]
        of_scheduler, of_client = (end - begin for begin, end in zip(before, after, strict=True))
        memory = scheduler.memory_info().rss / MIB
        pool.stop()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    print(f"scheduler  {videos:,} tasks on {workers:,} workers: {seconds:,.1f} s")
    print(f"           processor time of the scheduler {of_scheduler:,.1f} s ({memory:,.0f} MiB),")
    print(f"           of the submitting process {of_client:,.1f} s", flush=True)
    return videos / max(of_scheduler, of_client)


def measure_folders(folder: Path, videos: int) -> None:
    """Run script 01 on empty files, which makes one folder per file, and run it again."""
    for number in range(videos):
        label = folder / "videos" / ("real" if number % 2 else "fake") / f"{number // 1000}"
        label.mkdir(parents=True, exist_ok=True)
        (label / f"{number}.mp4").touch()
    for what in ("made", "found done"):
        start = time.perf_counter()
        command = [sys.executable, str(ROOT / "01-convert-video-to-image.py")]
        subprocess.run(command, cwd=folder, capture_output=True)  # exits with an error: no frames
        seconds = time.perf_counter() - start
        assert (folder / "frames" / "videos.csv").exists()
        milliseconds = 1000 * seconds / videos
        print(
            f"folders    {videos:,} {what} by 01: {seconds:,.1f} s, {milliseconds:.2f} ms each",
            flush=True,
        )


def measure_tables(folder: Path, crops: int) -> None:
    """Run script 02 on finished crops, so that it only gathers its tables."""
    # Imported here, because it loads TensorFlow, which the workers above do not need.
    from benchmarks import table_sizes

    table_sizes.write_input(folder, crops)
    seconds, memory = table_sizes.run("02-crop-faces-with-mtcnn.py", folder)
    print(f"tables     {crops:,} crops gathered by 02: {seconds:,.1f} s, {memory:,.0f} MiB")
    table = folder / "faces" / "faces.csv"
    print(f"           faces.csv {table.stat().st_size / 1e6:,.0f} MB")


def main(settings: Settings = Settings()) -> None:
    """Measure the overhead of a large run."""
    cli.check_ranges(settings)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("cluster", "folders", "tables"):
            (folder / part).mkdir()
        rate = measure_scheduler(folder / "cluster", settings.videos, settings.workers)
        measure_folders(folder / "folders", settings.videos)
        measure_tables(folder / "tables", settings.crops)
    print(f"limit      {rate:,.0f} tasks per second, in the scheduler or the submitting process:")
    for seconds in (1, 10, 60):
        print(f"           {rate * seconds:,.0f} worker processes if a task takes {seconds} s")


if __name__ == "__main__":
    cli.run(main)
