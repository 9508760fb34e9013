"""Run the tasks of a script in parallel processes, for 01 and 02.

On one machine, every worker is a process. A worker that crashes or hangs loses only its own task,
only the main process receives Ctrl-C, and workers end with the main process. With --scheduler the
tasks run on a Dask cluster instead, see cluster.py.
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
LONGEST_FOLDER = 70  # bytes of the path of the temporary folder, for forkserver
TASKS_AT_ONCE = 4  # running or queued per worker, so that workers are never idle

# --- The pool -------------------------------------------------------------------------------------


@contextmanager
def open_pool(
    start_pool: Callable[[int], Pool],
    workers: int,
    scheduler: str | None = None,
    run: Path | None = None,
    probe: Path | None = None,
) -> Iterator[Callable[..., Iterator[tuple[tuple, Future]]]]:
    """Start the workers of a script, on this machine or a cluster; they end with the block.

    Args:
        start_pool: function of the script that starts a pool with a given number of workers
        workers: number of workers on this machine
        scheduler: address of a Dask scheduler; None: run on this machine
        run: folder that exists during the run; the workers of a cluster must see it
        probe: input file that the workers of a cluster must see

    Yields:
        run_tasks for this pool: a function of (function, tasks, timeout, in_order).
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
        # A process that is still starting would report an error when the pool deletes its files.
        for process in multiprocessing.active_children():
            process.terminate()
        pool.join()


@contextmanager
def naming_shared_memory() -> Iterator[None]:
    """Explain an OSError while processes start: it does not come from a folder of the user.

    Raises:
        OSError: the error, with its likely cause
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT):
            raise
        raise OSError(
            f"processes cannot be started ({error.strerror}): they need free space in shared "
            "memory (/dev/shm on Linux) and in the temporary folder"
        ) from error


def start_processes(pool: pebble.ProcessPool) -> None:
    """Start the processes of a pool with Ctrl-C blocked; the main process ends them.

    A separate thread starts them, as Ctrl-C in the main thread could leave a process half started.
    """

    def start() -> None:
        if hasattr(signal, "pthread_sigmask"):  # not on Windows
            resource_tracker.ensure_running()  # start it first, as it unblocks SIGINT
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        _ = pool.active  # this property starts the processes

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
    """Run a function of the script for each task.

    Args:
        pool: the pool, or the cluster
        workers: number of workers of the pool
        function: function of the script
        tasks: tuples of arguments, of built-in types, as the scheduler of a cluster reads them
            without the script
        timeout: time limit per task, in seconds
        in_order: yield tasks in order instead of as they finish

    Yields:
        Each task with its finished future. The future raises TimeoutError after `timeout` seconds,
        and pebble.ProcessExpired for a crash.

    Raises:
        OSError: the pool failed: a process ended outside of a task
    """
    running, tasks = {}, iter(tasks)
    limit = {} if timeout is None else {"timeout": timeout}
    while True:
        # A pool checks all its tasks ten times per second, so give it only a few at a time.
        for task in itertools.islice(tasks, TASKS_AT_ONCE * workers - len(running)):
            try:
                running[pool.schedule(function, task, **limit)] = task
            except RuntimeError as error:
                raise OSError(f"the worker processes ended: {error}") from error
        if not running:
            return
        awaited = [next(iter(running))] if in_order else running
        for future in wait(awaited, return_when=FIRST_COMPLETED).done:
            if isinstance(future.exception(), BrokenExecutor):
                raise OSError(f"the worker processes ended: {future.exception()}")
            yield running.pop(future), future


def make_processes(
    workers: int, loaded: list[str], prepare: Callable[..., None], *arguments: object
) -> Pool:
    """Make a pool of processes, each prepared by a function of the script.

    Unlike the standard library's pool, this one survives a process that crashes. On Linux, the
    processes are forked from a server that has loaded the common modules; elsewhere forking may
    fail, so each process loads them. They import modules of this project but not from the current
    folder, see start.py.

    Args:
        workers: number of processes
        loaded: names of the modules to load in the server
        prepare: called with `arguments` when a process starts
        arguments: arguments of `prepare`
    """
    # The processes keep the memory that they free, as glibc would have to clear it again: this
    # saves a tenth of 02's time. glibc reads the limits when a process starts.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**25))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**28))
    # The server listens on a socket in the temporary folder, whose path may have 107 bytes.
    copied = sys.platform == "linux" and len(os.fsencode(tempfile.gettempdir())) < LONGEST_FOLDER
    context = multiprocessing.get_context("forkserver" if copied else "spawn")
    context.set_forkserver_preload(loaded)
    return pebble.ProcessPool(workers, 0, start_process, (prepare, *arguments), context=context)


def run_apart(pool: pebble.ProcessPool, function: Callable[[], object]) -> object:
    """Run a function in a process of a pool, end the pool, and return the result.

    Raises:
        OSError: the process ended before the function returned
    """
    try:
        start_processes(pool)
        _, future = next(run_tasks(pool, 1, function, [()]))
        return future.result()
    finally:
        pool.stop()
        pool.join()


def start_process(prepare: Callable[..., None], *arguments: object) -> None:
    """Prepare a process, and end it if the main process is killed."""

    def wait_for_main() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait_for_main, daemon=True).start()
    prepare(*arguments)


# --- Parts ----------------------------------------------------------------------------------------


def read_part(part: str) -> slice:
    """Read a part such as 3/10: every tenth video, starting with the third.

    Raises:
        ValueError: the text is not a part
    """
    number, _, parts = part.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 0 < int(number) <= int(parts)):
        raise ValueError(f"--part is {part}; give one such as 3/10.")
    return slice(int(number) - 1, None, int(parts))


@contextmanager
def share_folder(folder: Path, part: str) -> Iterator[None]:
    """Lock an output folder for a part: other parts can run, a full run or the same part cannot.

    A full run locks the folder's .lock exclusively with filelock; the parts take a shared lock on
    it. filelock's own shared locks do not fit: a full run does not see one of them on a disk
    without locks, and the other stays locked for minutes after a run was killed.

    Raises:
        ValueError: this system, or the disk, does not support shared locks
        filelock.Timeout: a full run, or the same part, is using the folder
    """
    wanted = read_part(part)
    own = folder / f".lock-{wanted.start + 1}-of-{wanted.step}"
    try:
        import fcntl
    except ImportError:  # Windows
        raise ValueError(
            "--part needs file locks, which this system does not have; leave it out."
        ) from None
    with filelock.FileLock(own, timeout=0), (folder / ".lock").open("a+") as shared:
        try:
            fcntl.flock(shared, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise filelock.Timeout(str(own)) from None
        except OSError as error:
            raise ValueError(
                f"{folder}: --part needs file locks, which this disk does not support "
                f"({error.strerror}); leave it out, or name a folder on another disk."
            ) from error
        try:
            yield
        finally:
            own.unlink(missing_ok=True)
