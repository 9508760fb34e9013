"""Share the videos of a step between processes and machines; 01 and 02 use this.

On one machine every worker is a process of its own: one that crashes or hangs costs its own video,
Ctrl-C reaches the main process alone, and no worker outlives the main process.

`--scheduler` gives the work to a running Dask cluster. Each of its workers opens the step's own
pool for the run, with a process for each of its threads: a crash, a hang or a full memory costs
there what it costs on one machine, and is told in the same words. Dask hands out the tasks, and
gives those of a worker that is gone to another. Any `dask scheduler` and `dask worker` will do, as
they are: they need no settings, only the same folders under the same paths, this one included.

`--part 3/10` is for those who have a batch system alone: ten runs at once, each with its share.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager, suppress
from functools import cache, partial
from hashlib import sha1
from multiprocessing import resource_tracker
from pathlib import Path
from types import ModuleType
from typing import Any

import filelock
import pebble

Pool = pebble.ProcessPool | pebble.ThreadPool
LONGEST_FOLDER = 70  # bytes of the temporary folder, for processes that are copies
TASKS_AT_ONCE = 4  # that a worker has begun or waiting, so that none waits for work

# --- The pool -------------------------------------------------------------------------------------


@contextmanager
def open_pool(
    start_pool: Callable[[int], Pool],
    workers: int,
    scheduler: str | None = None,
    run: Path | None = None,
    probe: Path | None = None,
) -> Iterator[Callable[..., Iterator[tuple[tuple, Future]]]]:
    """Start the workers of a step, on this machine or a cluster; they end with the block.

    Args:
        start_pool: the function of the step that starts a pool of so many workers
        workers: on this machine
        scheduler: address of a Dask cluster, whose workers do it instead; None is this machine
        run: a folder that lives as long as the run; a cluster's workers must see it
        probe: a file that they must see, too

    Returns:
        run_tasks, for this pool: a function of (function, tasks, timeout, in_order).
    """
    pool = Cluster(scheduler, start_pool, run, probe) if scheduler else start_pool(workers)
    try:
        if isinstance(pool, pebble.ProcessPool):
            start_processes(pool)
        yield partial(run_tasks, pool, Cluster.workers if scheduler else workers)
    finally:
        pool.stop()
        # A process that has only begun would miss, and say so, what the pool deletes when it ends.
        for process in multiprocessing.active_children():
            process.terminate()
        pool.join()


def start_processes(pool: pebble.ProcessPool) -> None:
    """Start the processes of a pool so that they do not get Ctrl-C: the main process ends them.

    A thread starts them, as Ctrl-C would stop the main one midway and leave a process half begun.
    """

    def start() -> None:
        if hasattr(signal, "pthread_sigmask"):  # not on Windows
            resource_tracker.ensure_running()  # it unblocks SIGINT when it starts, so it is first
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        _ = pool.active  # to ask starts them

    with ThreadPoolExecutor(1) as starter:
        starter.submit(start).result()


def run_tasks(
    pool: Pool | Cluster,
    workers: int,
    function: Callable[..., Any],
    tasks: Iterable[tuple],
    timeout: float | None = None,
    in_order: bool = False,
) -> Iterator[tuple[tuple, Future]]:
    """Run a function of the step for each task: a tuple of arguments.

    They are of Python's own types: the scheduler of a cluster reads them, and has no step loaded.

    Yields:
        Each task with its ended future, as they end or `in_order`. The future raises TimeoutError
        after `timeout` seconds, and pebble.ProcessExpired for a crash.

    Raises:
        OSError: the processes cannot go on: one ended without a task, or in taking or giving one.
    """
    running, tasks = {}, iter(tasks)
    limit = {} if timeout is None else {"timeout": timeout}
    while True:
        # A pool looks at all its tasks ten times a second, so it gets a few at a time.
        for task in itertools.islice(tasks, TASKS_AT_ONCE * workers - len(running)):
            try:
                running[pool.schedule(function, task, **limit)] = task
            except RuntimeError as error:
                raise OSError(f"the processes that do the work ended: {error}") from error
        if not running:
            return
        awaited = [next(iter(running))] if in_order else running
        for future in wait(awaited, return_when=FIRST_COMPLETED).done:
            if isinstance(future.exception(), BrokenExecutor):
                raise OSError(f"the processes that do the work ended: {future.exception()}")
            yield running.pop(future), future


def make_processes(
    workers: int, loaded: list[str], prepare: Callable[..., None], *arguments: object
) -> Pool:
    """Make a pool of processes, each prepared by the step's own function.

    Unlike the standard library's, the pool survives a process that crashes. On Linux the processes
    are copies of one that has loaded the modules that all need, those that it finds; elsewhere a
    copy of it may fail, and each loads them for itself. By the last lines of each script, it finds
    those of this project, and none in the folder that the user is in.
    """
    # That one is asked for copies by a socket in the temporary folder, with 107 bytes for its path.
    copied = sys.platform == "linux" and len(os.fsencode(tempfile.gettempdir())) < LONGEST_FOLDER
    context = multiprocessing.get_context("forkserver" if copied else "spawn")
    context.set_forkserver_preload(loaded)
    return pebble.ProcessPool(workers, 0, start_process, (prepare, *arguments), context=context)


def run_apart(pool: pebble.ProcessPool, function: Callable[[], object]) -> object:
    """Run a function in a process of a pool, which then ends, and return what it returned.

    Raises:
        OSError: the process ended before
    """
    try:
        start_processes(pool)
        _, future = next(run_tasks(pool, 1, function, [()]))
        return future.result()
    finally:
        pool.stop()
        pool.join()


def start_process(prepare: Callable[..., None], *arguments: object) -> None:
    """Prepare a process, which ends when the main one is killed; it would wait for ever."""

    def wait_for_main() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait_for_main, daemon=True).start()
    prepare(*arguments)


# --- Parts ----------------------------------------------------------------------------------------


def read_part(part: str) -> slice:
    """Read a part such as 3/10: every tenth video, beginning with the third.

    Raises:
        ValueError: it is no part
    """
    number, _, parts = part.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 0 < int(number) <= int(parts)):
        raise ValueError(f"--part is {part}; give one such as 3/10.")
    return slice(int(number) - 1, None, int(parts))


@contextmanager
def share_folder(folder: Path, part: str) -> Iterator[None]:
    """Hold an output folder for a part: other parts may, a plain run and the same part may not.

    A plain run locks the folder's .lock; the parts lock it, too, but in the way that many can.

    Raises:
        filelock.Timeout: a plain run, or the same part, is writing to it
    """
    import fcntl  # not on Windows

    own = folder / f".lock-{part.replace('/', '-of-')}"
    with filelock.FileLock(own, timeout=0), (folder / ".lock").open("a+") as shared:
        try:
            fcntl.flock(shared, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise filelock.Timeout(str(own)) from None
        try:
            yield
        finally:
            own.unlink(missing_ok=True)


# --- Dask, on the machine of the run --------------------------------------------------------------


class Cluster:
    """A running Dask cluster, for the tasks of one run of a step."""

    workers = 500  # so many are kept busy at least: each has TASKS_AT_ONCE begun or waiting

    def __init__(
        self, scheduler: str, start_pool: Callable[[int], Pool], run: Path, probe: Path
    ) -> None:
        """Connect to the scheduler.

        Args:
            scheduler: its address, as it prints it: tcp://host:8786
            start_pool: the function of a step that starts a pool of so many workers
            run: a folder that lives as long as the run; once it is gone, the workers stop
            probe: a file that every worker must see, too

        Raises:
            ValueError: Dask is not installed
            OSError: no scheduler answers
        """
        try:
            import distributed
        except ImportError as error:
            raise ValueError(
                f"--scheduler needs Dask ({error}); pip install -r requirements-cluster.txt."
            ) from error
        logging.disable()  # Dask would print pages on what is said here in a sentence.
        try:
            if "://" not in scheduler or not scheduler.rpartition(":")[2].isdecimal():
                raise ValueError("it is no address such as tcp://host:8786")
            self.client = distributed.Client(scheduler, timeout=15, set_as_default=False)
        except (ValueError, OSError) as error:
            raise OSError(
                f"{scheduler}: no scheduler answers ({error}); start one with `dask scheduler`, or "
                "leave --scheduler out."
            ) from error
        self.address = scheduler
        self.run = run.absolute()
        script = Path(start_pool.__code__.co_filename).resolve()
        self.step = script, find_version(script), start_pool.__name__, self.run, probe.absolute()
        if not self.client.nthreads():
            print(f"{scheduler}: it has no workers yet; waiting for one to join", flush=True)

    def schedule(
        self,
        function: Callable[..., dict],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
        timeout: float | None = None,
    ) -> Future[dict]:
        """Run a function of the step in a process of the cluster; pebble's method of this name."""

        # It goes to the worker as it stands here: nothing of this project is loaded there yet.
        def begin(script: Path, *call: object) -> dict:
            sys.path[:] = dict.fromkeys([str(script.parent), *sys.path])
            return importlib.import_module("parts.workers").run_task(script, *call)

        outcome: Future[dict] = Future()
        if isinstance(function, partial):
            args, kwargs = (*function.args, *args), function.keywords | (kwargs or {})
            function = function.func
        call = function.__name__, args, kwargs or {}, timeout
        future = self.client.submit(begin, *self.step, *call, pure=False)
        self.client.loop.add_callback(self._hand_over, future, outcome)
        return outcome

    async def _hand_over(self, future: Any, outcome: Future[dict]) -> None:  # noqa: ANN401
        """Wait for Dask's future, and tell its outcome as a pebble pool would."""
        try:
            outcome.set_result(await self.client.gather(future, asynchronous=True))
        except Exception as error:
            kind, line = type(error).__name__, " ".join(str(error).split())[:300]
            if kind in ("CancelledError", "FutureCancelledError", "CommClosedError"):
                gone = "the scheduler is gone; start it again, or leave --scheduler out"
                error = ConnectionError(f"{self.address}: {gone}")
            elif kind == "KilledWorker":  # one after another died with the task
                error = pebble.ProcessExpired("", code="unknown, its workers died with it")
            elif isinstance(error, (ImportError, RuntimeError)):
                error = OSError(f"{self.address}: a worker cannot run the step ({line})")
            outcome.set_exception(error)

    def stop(self) -> None:
        """Leave the cluster, and delete the run's folder, by which its workers know the end."""
        with suppress(OSError):  # renamed first: under its old name no worker writes to it any more
            shutil.rmtree(self.run.rename(self.run.with_name(f"{self.run.name}-over")))
        self.client.close()

    def join(self) -> None:
        """Do nothing: stop has waited."""


def find_version(script: Path) -> str:
    """What tells one text of a step's file, and of all parts, from another."""
    paths = script, *sorted(Path(__file__).parent.glob("*.py"))
    return sha1("".join(map(find_digest, paths)).encode()).hexdigest()


@cache
def find_digest(path: Path) -> str:
    """The digest of a file as it was when first asked for, as a worker loads it only once."""
    return sha1(path.read_bytes()).hexdigest()


# --- Dask, on a worker of the cluster -------------------------------------------------------------

POOLS: dict[Path, tuple[ModuleType, Pool]] = {}  # by run: the step, and its pool on this worker
OPENING = threading.Lock()


def run_task(
    script: Path,
    version: str,
    start_pool: str,
    run: Path,
    probe: Path,
    function: str,
    args: tuple,
    kwargs: dict[str, Any],
    timeout: float | None,
) -> dict:
    """Run a function of a step in this worker's pool for the run, and wait for its result.

    Raises:
        OSError: this worker does not see the folders, or has another version of the step
        TimeoutError: it took longer than `timeout` seconds
        pebble.ProcessExpired: its process died
    """
    with OPENING:
        if run not in POOLS:
            POOLS[run] = load_pool(script, version, start_pool, run, probe)
            threading.Thread(target=close_after, args=(run,), daemon=True).start()
        step, pool = POOLS[run]
    limit = {} if timeout is None else {"timeout": timeout}
    return pool.schedule(getattr(step, function), args, kwargs, **limit).result()


def load_pool(
    script: Path, version: str, start_pool: str, run: Path, probe: Path
) -> tuple[ModuleType, Pool]:
    """Load the step and open its pool, with a process for each thread of this worker."""
    from distributed import get_worker

    worker = get_worker()
    name = f"the worker {worker.address} on {socket.gethostname()}"
    for path in (script, run, probe):
        if not path.exists():
            raise FileNotFoundError(f"{name} does not see {path}; let it see the same folders")
    step = importlib.import_module(script.stem)
    if find_version(script) != version:
        raise OSError(f"{name} has another version of {script.name} loaded; restart it")
    multiprocessing.current_process().daemon = False  # Dask's are, and may have no processes.
    return step, getattr(step, start_pool)(worker.state.nthreads)


def close_after(run: Path) -> None:
    """End the processes of a run soon after its folder is gone, however the run ended."""
    while os.path.exists(run):  # noqa: PTH110 - unlike Path.exists, no error of the network is raised
        time.sleep(1)
    _, pool = POOLS.pop(run)
    pool.stop()
    pool.join()
