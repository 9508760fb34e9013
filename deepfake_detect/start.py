"""Prepare signals, standard streams and the environment before a script imports anything else.

The other imports take seconds. After this one, Ctrl-C during them ends the run with one sentence,
and the libraries do not see closed streams or environment variables meant for other programs:

    from deepfake_detect import start

    start.prepare(__name__)

    import cv2
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from types import FrameType

PROJECT = Path(__file__).resolve().parents[1]
STOPPED = 130  # exit code after Ctrl-C, as in shells
NARROW = 40  # columns; the help needs this width, and below ten columns tyro never returns
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # all of them end a run like Ctrl-C


def prepare(name: str) -> None:
    """Prepare the process if `name` is __main__; can be called more than once."""
    if name != "__main__":
        return
    gc.disable()  # imports leave no garbage; cli.run enables the collector after them
    open_streams()
    clean_environment()
    stderr = os.dup(2)  # keras_setup redirects 2 while TensorFlow loads
    handle_signals(partial(stop, stderr=stderr))


def open_streams() -> None:
    """Reopen closed standard streams, and make printing work for any text in any encoding.

    Otherwise, the next file to be opened would take the number of a closed stream, and output
    would be written into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # closed, or no console, as with pythonw
            mode = "w" if number else "r"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def clean_environment() -> None:
    """Replace environment variables that would change how this project runs."""
    # Worker processes find this project, but not modules in the current folder.
    os.environ |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(PROJECT)}
    for name in [name for name in os.environ if name.startswith("TQDM_")]:
        del os.environ[name]
    if not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"  # a progress bar in a log file would be thousands of lines
    os.environ["MPLBACKEND"] = "Agg"  # plots are only written to files
    # NumPy's products are small here, and more threads would wait for them in a busy loop.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    if shutil.get_terminal_size().columns < NARROW:
        os.environ["COLUMNS"] = str(NARROW)


def handle_signals(handler: signal.Handlers) -> None:
    """Set the handler of the signals that end a run, except ignored ones, as under nohup."""
    for name in set(SIGNALS) & set(dir(signal)):
        if signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, name), handler)


def stop(number: int = 0, frame: FrameType | None = None, stderr: int = 2) -> None:
    """Print one sentence and end the process at once; there is no work in progress to clean up."""
    script = Path(sys.argv[0]).name
    sentence = f"{script}: stopped; run the same command to continue.\n"
    os.write(stderr, sentence.encode(errors="backslashreplace"))
    os._exit(STOPPED)
