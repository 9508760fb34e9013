"""Measure what 136,074 videos on 100 workers cost besides the work: scheduler, folders, tables.

    python -m benchmarks.many_machines
    python -m benchmarks.many_machines --videos 2000 --workers 10 --crops 20000

There are as many videos as in the five data sets, and all are empty. Dask's own scheduler has 100
workers, which share a few processes of this machine and do nothing, so that only the cost of
handing out tasks is measured. Script 01 makes the folders of the empty files, and script 02 gathers
the tables of empty crops (benchmarks.table_sizes).
"""

from __future__ import annotations

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

    videos: Count = 136_074  # of the five data sets, all empty
    workers: Count = 100  # of the cluster, which do nothing
    crops: Count = 1_360_740  # in the tables: ten per video, as from one frame per second


HOSTS = 4  # processes that the workers share
MIB = 2**20


def start_pool(workers: int) -> pebble.ThreadPool:
    """Return the pool of this file, which deepfake_detect.cluster runs like 01 and 02."""
    return pebble.ThreadPool(workers)


def do_nothing(source: Path, target: Path, checkpoint: dict) -> dict:
    """Return a row as 01 has it for a video."""
    assert source != target and checkpoint
    row = {"width": 1920, "height": 1080, "fps": 29.97, "frames": 10, "status": "ok", "reason": ""}
    return row


def host_workers(address: str, count: int) -> None:
    """Run a number of workers of the cluster in this process, until the scheduler is gone."""
    logging.disable()

    async def be_workers() -> None:
        workers = [Worker(address, nthreads=1, dashboard=False) for _ in range(count)]
        await asyncio.gather(*workers)
        await asyncio.gather(*(worker.finished() for worker in workers))

    asyncio.run(be_workers())


def measure_scheduler(folder: Path, videos: int, workers: int) -> float:
    """Hand out one task per video to workers that do nothing; print and return tasks per second."""
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

        # As the scripts do: a number of tasks at once, and a new one for each that is done.
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
    print(f"           busy: it {of_scheduler:,.1f} s, with {memory:,.0f} MiB; ", end="")
    print(f"the run that feeds it {of_client:,.1f} s", flush=True)
    return videos / max(of_scheduler, of_client)


def measure_folders(folder: Path, videos: int) -> None:
    """Run script 01 on empty files, which get one folder each, and again when all are done."""
    for number in range(videos):
        label = folder / "videos" / ("real" if number % 2 else "fake") / f"{number // 1000}"
        label.mkdir(parents=True, exist_ok=True)
        (label / f"{number}.mp4").touch()
    for what in ("made", "found done"):
        start = time.perf_counter()
        command = [sys.executable, str(ROOT / "01-convert-video-to-image.py")]
        subprocess.run(command, cwd=folder, capture_output=True)  # it ends with: not one frame
        seconds = time.perf_counter() - start
        assert (folder / "frames" / "videos.csv").exists()
        milliseconds = 1000 * seconds / videos
        print(
            f"folders    {videos:,} {what} by 01: {seconds:,.1f} s, {milliseconds:.2f} ms each",
            flush=True,
        )


def measure_tables(folder: Path, crops: int) -> None:
    """Run script 02 over crops that are all done, so that it only gathers its tables."""
    # Loads TensorFlow, which the workers above do without.
    from benchmarks import table_sizes

    table_sizes.write_input(folder, crops)
    seconds, memory = table_sizes.run("02-crop-faces-with-mtcnn.py", folder)
    print(f"tables     {crops:,} crops gathered by 02: {seconds:,.1f} s, {memory:,.0f} MiB")
    table = folder / "faces" / "faces.csv"
    print(f"           faces.csv {table.stat().st_size / 1e6:,.0f} MB")


def main(settings: Settings = Settings()) -> None:
    """Measure what a large run costs besides the work."""
    cli.check_ranges(settings)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("cluster", "folders", "tables"):
            (folder / part).mkdir()
        rate = measure_scheduler(folder / "cluster", settings.videos, settings.workers)
        measure_folders(folder / "folders", settings.videos)
        measure_tables(folder / "tables", settings.crops)
    print(
        f"first to break: the scheduler, or the run that feeds it, at {rate:,.0f} tasks per second:"
    )
    for seconds in (1, 10, 60):
        print(f"           {rate * seconds:,.0f} processes, if a task takes {seconds} s")


if __name__ == "__main__":
    cli.run(main)
