"""Run the tasks of a script on a Dask cluster, for --scheduler of 01 and 02.

Each Dask worker opens the script's own pool for the run, with one process per worker thread. A
crash, a timeout or an out-of-memory error is therefore handled and reported as on one machine. Dask
distributes the tasks, and gives the tasks of a lost worker to another one. Any `dask scheduler` and
`dask worker` work without configuration if they see the same folders under the same paths,
including the folder of this project.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import multiprocessing
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import cache, partial
from hashlib import sha1
from pathlib import Path
from types import ModuleType
from typing import Any

import pebble

Pool = pebble.ProcessPool | pebble.ThreadPool
PATIENCE = 15  # seconds to wait for an answer of the scheduler

# --- Dask on the machine of the run ---------------------------------------------------------------


class Cluster:
    """A Dask cluster that runs the tasks of one run of a script."""

    workers = 500  # assumed number of workers: TASKS_AT_ONCE tasks per worker are submitted

    def __init__(
        self, scheduler: str, start_pool: Callable[[int], Pool], run: Path, probe: Path
    ) -> None:
        """Connect to the scheduler.

        Args:
            scheduler: address that the scheduler prints, such as tcp://host:8786
            start_pool: function of the script that starts a pool with a given number of workers
            run: folder that exists during the run; the workers stop when it is deleted
            probe: input file that every worker must see

        Raises:
            ValueError: Dask is not installed
            OSError: the scheduler does not answer
        """
        try:
            import distributed
        except ImportError as error:
            raise ValueError(
                f"--scheduler needs Dask ({error}); pip install '.[cluster]'."
            ) from error
        logging.disable()  # our messages replace Dask's long log output
        try:
            if "://" not in scheduler or not scheduler.rpartition(":")[2].isdecimal():
                raise ValueError("the address must look like tcp://host:8786")
            # Dask's own timeout only covers the connection: it would wait forever for another
            # program that listens at this address and never answers.
            asyncio.run(asyncio.wait_for(ask_scheduler(scheduler), PATIENCE))
            self.client = distributed.Client(scheduler, timeout=PATIENCE, set_as_default=False)
        except Exception as error:  # Dask raises many types, such as TypeError for ucx://
            why = " ".join(str(error).split()) or f"no answer within {PATIENCE} seconds"
            raise OSError(
                f"{scheduler}: cannot reach a Dask scheduler ({why}); start one with "
                "`dask scheduler`, or leave --scheduler out."
            ) from error
        self.address = scheduler
        self.run = run.absolute()
        script = Path(start_pool.__code__.co_filename).resolve()
        self.step = script, find_version(script), start_pool.__name__, self.run, probe.absolute()
        if not self.client.nthreads():
            print(f"{scheduler}: waiting for a worker to join", flush=True)

    def schedule(
        self,
        function: Callable[..., dict],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
        timeout: float | None = None,
    ) -> Future[dict]:
        """Run a function of the script in a process of the cluster; same interface as pebble."""

        # Dask sends this function by value, as the worker has not loaded this project yet.
        def begin(script: Path, *call: object) -> dict:
            sys.path[:] = dict.fromkeys([str(script.parent), *sys.path])
            return importlib.import_module("deepfake_detect.cluster").run_task(script, *call)

        outcome: Future[dict] = Future()
        if isinstance(function, partial):
            args, kwargs = (*function.args, *args), function.keywords | (kwargs or {})
            function = function.func
        call = function.__name__, args, kwargs or {}, timeout
        future = self.client.submit(begin, *self.step, *call, pure=False)
        self.client.loop.add_callback(self._hand_over, future, outcome)
        return outcome

    async def _hand_over(self, future: Any, outcome: Future[dict]) -> None:  # noqa: ANN401
        """Wait for Dask's future, and set the outcome as a pebble pool does."""
        try:
            outcome.set_result(await self.client.gather(future, asynchronous=True))
        except Exception as error:
            kind, line = type(error).__name__, " ".join(str(error).split())[:300]
            if kind in ("CancelledError", "FutureCancelledError", "CommClosedError"):
                gone = "the scheduler stopped; start it again, or leave --scheduler out"
                error = ConnectionError(f"{self.address}: {gone}")
            elif kind == "KilledWorker":  # several workers died with this task
                error = pebble.ProcessExpired("", code="unknown, its workers died with it")
            elif isinstance(error, (ImportError, RuntimeError)):
                error = OSError(f"{self.address}: a worker cannot run the script ({line})")
            outcome.set_exception(error)

    def stop(self) -> None:
        """Disconnect, and delete the run's folder, which makes the workers stop."""
        with suppress(OSError):  # rename it first, so that workers cannot write to it
            shutil.rmtree(self.run.rename(self.run.with_name(f"{self.run.name}-over")))
        self.client.close()

    def join(self) -> None:
        """Do nothing: stop has already waited."""


async def ask_scheduler(address: str) -> None:
    """Check that a Dask scheduler answers at the address.

    Raises:
        ValueError: another program answers
    """
    import distributed

    async with distributed.rpc(address, timeout=PATIENCE) as scheduler:
        if (await scheduler.identity()).get("type") != "Scheduler":
            raise ValueError("another program uses this address")


def find_version(script: Path) -> str:
    """Return a hash of the script and the package sources."""
    paths = script, *sorted(Path(__file__).parent.glob("*.py"))
    return sha1("".join(map(find_digest, paths)).encode()).hexdigest()


@cache
def find_digest(path: Path) -> str:
    """Return the hash of a file; cached, as a worker loads the file only once."""
    return sha1(path.read_bytes()).hexdigest()


# --- Dask on a worker of the cluster --------------------------------------------------------------

POOLS: dict[Path, tuple[ModuleType, Pool]] = {}  # by run: the script, and its pool on this worker
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
    """Run a function of a script in this worker's pool for the run, and wait for the result.

    Raises:
        OSError: this worker does not see the folders, or has another version of the script
        TimeoutError: the function took longer than `timeout` seconds
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
    """Load the script and open its pool, with one process per thread of this worker."""
    from distributed import get_worker

    worker = get_worker()
    name = f"the worker {worker.address} on {socket.gethostname()}"
    for path in (script, run, probe):
        if not path.exists():
            raise FileNotFoundError(
                f"{name} does not see {path}; give it access to the same folders"
            )
    step = importlib.import_module(script.stem)
    if find_version(script) != version:
        raise OSError(f"{name} has another version of {script.name} loaded; restart it")
    multiprocessing.current_process().daemon = False  # daemonic processes cannot have children
    return step, getattr(step, start_pool)(worker.state.nthreads)


def close_after(run: Path) -> None:
    """End the processes of a run soon after its folder is deleted, however the run ended."""
    while os.path.exists(run):  # noqa: PTH110 - unlike Path.exists, without network errors
        time.sleep(1)
    _, pool = POOLS.pop(run)
    pool.stop()
    pool.join()
