"""Share the tasks of a step between processes, for 01 and 02.

On one machine every worker is a process: one that crashes or hangs costs its own task, Ctrl-C
reaches the main process alone, and no worker outlives the main process. With --scheduler the tasks
go to a Dask cluster instead, see cluster.py.
"""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import filelock
import pebble

from deepfake_detect.cluster import Cluster

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
        start_pool: the function of the step that starts a pool of a given number of workers
        workers: on this machine
        scheduler: address of a Dask cluster, whose workers do it instead; None is this machine
        run: a folder that lives as long as the run; a cluster's workers must see it
        probe: a file that they must see, too

    Returns:
        run_tasks, for this pool: a function of (function, tasks, timeout, in_order).
    """
    if scheduler:
        pool = Cluster(scheduler, start_pool, run, probe)
    else:
        with naming_shared_memory():
            pool = start_pool(workers)
    try:
        if isinstance(pool, pebble.ProcessPool):
            with naming_shared_memory():
                start_processes(pool)
        yield partial(run_tasks, pool, Cluster.workers if scheduler else workers)
    finally:
        pool.stop()
        # A process that has only begun would miss, and say so, what the pool deletes when it ends.
        for process in multiprocessing.active_children():
            process.terminate()
        pool.join()


@contextmanager
def naming_shared_memory() -> Iterator[None]:
    """Name the likely cause of an error when processes start: it is not a folder of the step.

    Raises:
        OSError: that error, with its cause
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT):
            raise
        raise OSError(
            f"processes cannot be started ({error.strerror}): they need shared memory, on Linux "
            "/dev/shm, and a temporary folder, both with room"
        ) from error


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
    are copies of one that has loaded the modules that all need; elsewhere a copy may fail, and each
    loads them for itself. They find the modules of this project, and none in the folder that the
    user is in, see start.py.
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
        ValueError: this is not a part
    """
    number, _, parts = part.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 0 < int(number) <= int(parts)):
        raise ValueError(f"--part is {part}; give one such as 3/10.")
    return slice(int(number) - 1, None, int(parts))


@contextmanager
def share_folder(folder: Path, part: str) -> Iterator[None]:
    """Hold an output folder for a part: other parts may, a plain run and the same part may not.

    A plain run locks the folder's .lock with filelock; the parts lock it as well, but in the way
    that many can. filelock's own locks for many do not fit: one is not seen by a plain run on a
    disk without locks, the other holds for minutes after a run was killed.

    Raises:
        ValueError: this system, or the disk, has no locks of this kind
        filelock.Timeout: a plain run, or the same part, is writing to it
    """
    wanted = read_part(part)
    own = folder / f".lock-{wanted.start + 1}-of-{wanted.step}"
    try:
        import fcntl
    except ImportError:  # Windows
        raise ValueError("--part needs locks that this system lacks; leave it out.") from None
    with filelock.FileLock(own, timeout=0), (folder / ".lock").open("a+") as shared:
        try:
            fcntl.flock(shared, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise filelock.Timeout(str(own)) from None
        except OSError as error:
            raise ValueError(
                f"{folder}: its disk has no locks ({error.strerror}), which --part needs; leave it "
                "out, or name a folder on another disk."
            ) from error
        try:
            yield
        finally:
            own.unlink(missing_ok=True)
