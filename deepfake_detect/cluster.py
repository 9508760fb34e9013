"""Give the tasks of a step to a running Dask cluster, for --scheduler of 01 and 02.

Each Dask worker opens the step's own pool for the run, with one process for each of its threads: a
crash, a hang or a full memory costs there what it costs on one machine, and is reported in the same
words. Dask hands out the tasks; another worker gets the tasks of a lost one. Any
`dask scheduler` and `dask worker` will do as they are: they need no settings, only the same folders
under the same paths, the project's own included.
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
PATIENCE = 15  # seconds that a scheduler has to answer

# --- Dask, on the machine of the run --------------------------------------------------------------


class Cluster:
    """A running Dask cluster, for the tasks of one run of a step."""

    workers = 500  # are kept busy: each has TASKS_AT_ONCE begun or waiting

    def __init__(
        self, scheduler: str, start_pool: Callable[[int], Pool], run: Path, probe: Path
    ) -> None:
        """Connect to the scheduler.

        Args:
            scheduler: its address, as it prints it: tcp://host:8786
            start_pool: the function of a step that starts a pool of a given number of workers
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
                f"--scheduler needs Dask ({error}); pip install '.[cluster]'."
            ) from error
        logging.disable()  # Dask would print pages about what these messages say in a sentence.
        try:
            if "://" not in scheduler or not scheduler.rpartition(":")[2].isdecimal():
                raise ValueError("this is not an address such as tcp://host:8786")
            # Dask's own limit ends with the connection: something else that listens there, and
            # answers nothing, would be waited for without end.
            asyncio.run(asyncio.wait_for(ask_scheduler(scheduler), PATIENCE))
            self.client = distributed.Client(scheduler, timeout=PATIENCE, set_as_default=False)
        except Exception as error:  # Dask raises many kinds, such as TypeError for ucx://
            why = " ".join(str(error).split()) or f"nothing came within {PATIENCE} seconds"
            raise OSError(
                f"{scheduler}: no scheduler answers ({why}); start one with `dask scheduler`, or "
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

        # It is sent to the worker as it is: nothing of this project is loaded there yet.
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
        """Wait for Dask's future, and give its outcome as a pebble pool would."""
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


async def ask_scheduler(address: str) -> None:
    """Ask a scheduler who it is, to see that it is one."""
    import distributed

    async with distributed.rpc(address, timeout=PATIENCE) as scheduler:
        if (await scheduler.identity()).get("type") != "Scheduler":
            raise ValueError("what listens there is not a scheduler")


def find_version(script: Path) -> str:
    """Return a digest of a step's file and of the package, which changes with either."""
    paths = script, *sorted(Path(__file__).parent.glob("*.py"))
    return sha1("".join(map(find_digest, paths)).encode()).hexdigest()


@cache
def find_digest(path: Path) -> str:
    """Return the digest of a file when it was first asked for, as a worker loads it only once."""
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
