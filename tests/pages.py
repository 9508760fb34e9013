"""The page of 08 as a process, for its tests: started as from the shell, on a free port."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import av
import numpy as np
import pytest
from conftest import ROOT

from deepfake_detect.practice import write_examples

CLIPS = tempfile.TemporaryDirectory()  # it goes with the process
REAL, FAKE = (Path(CLIPS.name) / f"practice-{label}.mp4" for label in ("real", "fake"))


@pytest.fixture(scope="module", autouse=True)
def clips() -> None:
    """Draw the practice clips REAL and FAKE."""
    if not REAL.exists():
        write_examples(Path(CLIPS.name))


class Server(NamedTuple):
    """A page that is open.

    Attributes:
        address: with the port, without a slash
        folder: its temporary one
        token: that it asks for, or empty
        process: of 08-web-page.py
    """

    address: str
    folder: Path
    token: str
    process: subprocess.Popen


@contextmanager
def open_page(home: Path, *options: object, **environment: str) -> Iterator[Server]:
    """Open a page in a folder; at the end it is closed as by a service, and leaves nothing."""
    temporary = home / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    before = set(temporary.iterdir())
    command = [sys.executable, ROOT / "08-web-page.py", "--no-open-browser", "--port", 0, *options]
    with subprocess.Popen(
        list(map(str, command)),
        cwd=home,
        env=os.environ | {"TMPDIR": str(temporary)} | environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            line = next((line for line in process.stdout if "the page is open" in line), "")
            found = re.match(r"(http://[\w.]+:\d+)/(?:\?token=(\S+))?: ", line)
            assert found, line
            (folder,) = set(temporary.glob("deepfake-page-*")) - before
            yield Server(found[1], folder, unquote(found[2] or ""), process)
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                assert process.wait() == 130
                assert not folder.exists(), "what visitors brought is still there"
        finally:
            process.kill()


def write_endless_video(path: Path) -> Path:
    """Write an hour of grey without a face, in less than 1 MB."""
    frame = av.VideoFrame.from_ndarray(np.full((480, 640, 3), 128, np.uint8), format="bgr24")
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", 1, width=640, height=480, pix_fmt="yuv420p")
        stream.options = {"preset": "ultrafast", "g": "9999"}
        for second in range(3600):
            frame.pts = second
            frame.time_base = Fraction(1, 1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert path.stat().st_size < 1_000_000
    return path
