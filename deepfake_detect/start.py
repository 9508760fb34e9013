"""The first thing that a script loads: signals, standard streams and the user's environment.

The other imports of a script take seconds. This takes none, so that a signal during them ends the
run with a sentence, and so that no library meets a closed stream or settings made for others:

    from deepfake_detect import start

    start.prepare(__name__)

    import cv2
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType

PROJECT = Path(__file__).resolve().parents[1]
STOPPED = 130  # exit code after Ctrl-C, as shells have it
NARROW = 40  # columns; in fewer, the help does not fit, and in fewer than ten tyro never ends
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # all end a run as Ctrl-C does


def prepare(name: str) -> None:
    """Prepare the process, if `name` is __main__; it may be called again."""
    if name != "__main__":
        return
    open_streams()
    clean_environment()
    handle_signals(stop)


def open_streams() -> None:
    """Open standard streams that are closed, and let those of any encoding take any name.

    A file that is opened while a stream is closed would get its number, and then the output.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # closed, or a program without a console, as pythonw is
            mode = "w" if number else "r"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def clean_environment() -> None:
    """Take away settings of the user that are meant for other programs."""
    # Worker processes find the project, and no module in the folder that the user is in.
    os.environ |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(PROJECT)}
    for name in [name for name in os.environ if name.startswith("TQDM_")]:
        del os.environ[name]
    if not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"  # a bar in a file is thousands of lines
    os.environ["MPLBACKEND"] = "Agg"  # pictures are only ever written to files
    if shutil.get_terminal_size().columns < NARROW:
        os.environ["COLUMNS"] = str(NARROW)


def handle_signals(handler: signal.Handlers) -> None:
    """Handle the signals that end a run, but for those that are ignored, as nohup sets it."""
    for name in set(SIGNALS) & set(dir(signal)):
        if signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, name), handler)


def stop(number: int = 0, frame: FrameType | None = None) -> None:
    """End the process at once with a sentence: nothing has begun that would need an end."""
    script = Path(sys.argv[0]).name
    sentence = f"{script}: stopped; run the same command to continue.\n"
    os.write(2, sentence.encode(errors="backslashreplace"))
    os._exit(STOPPED)
