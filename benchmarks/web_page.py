"""Measure the web page and its HTTP API under load: parallel clients, then uploads in turn.

    python -m benchmarks.web_page
    python -m benchmarks.web_page clip.mp4 photo.jpg --clients 8 --requests 200

Reads   files to send, in turn; by default, two practice clips
Writes  nothing; prints the latency of POST /check, and memory, open files and files on disk of the
        page's process, which should not grow

The page runs from the shell. This needs Linux, because it reads the memory from /proc.
"""

from __future__ import annotations

from deepfake_detect import start

start.prepare(__name__)

import http.client
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple
from uuid import uuid4

import numpy as np
import tyro

from deepfake_detect import cli
from deepfake_detect.cli import Count
from deepfake_detect.practice import write_examples

SCRIPT = Path(__file__).parents[1] / "08-web-page.py"
WARM_UP = 5  # requests before the first memory measurement, to fill the caches of libraries
ASKED_EVERY = 0.2  # seconds between two polls for a finished job


@dataclass(frozen=True)
class Settings:
    """Edit a default here, or override it for one run: --requests 10."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()  # default: two practice clips
    requests: Count = 50  # requests to POST /check
    clients: Count = 4  # parallel clients
    uploads: int = 200  # uploads to the page, one after another, with report and marked copy


class Page(NamedTuple):
    """A running page: its port, process and temporary folder."""

    port: int
    process: int
    folder: Path


def main(settings: Settings = Settings()) -> None:
    """Measure the web page and its HTTP API under load."""
    cli.check_ranges(settings)
    with tempfile.TemporaryDirectory() as temporary:
        files = settings.files or tuple(write_examples(Path(temporary)).values())
        with open_page(Path(temporary)) as page:
            check_in_parallel(page, files, settings)
            if settings.uploads:
                upload_in_turn(page, files, settings.uploads)


@contextmanager
def open_page(folder: Path) -> Iterator[Page]:
    """Start the page on a free port, in a separate temporary folder."""
    command = [sys.executable, str(SCRIPT), "--api", "--no-open-browser", "--port", "0"]
    began = time.perf_counter()
    with subprocess.Popen(
        command, env=os.environ | {"TMPDIR": str(folder)}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            line = next((line for line in process.stdout if "the page is open" in line), None)
            if line is None:
                raise OSError(f"{SCRIPT.name} did not start; see its message above.")
            print(f"start to an open page  {time.perf_counter() - began:.1f} s")
            port = int(line.split("/:")[0].rsplit(":", 1)[1])
            (temporary,) = folder.glob("deepfake-page-*")
            yield Page(port, process.pid, temporary)
        finally:
            process.send_signal(signal.SIGTERM)


def check_in_parallel(page: Page, files: tuple[Path, ...], settings: Settings) -> None:
    """Send files to POST /check from parallel clients, and print the latency of the answers."""

    def check(path: Path) -> float:
        began = time.perf_counter()
        answer = post(page, "/check", path)
        if "verdict" not in answer:
            raise ValueError(f"{path.name}: the answer has no verdict: {answer}")
        return time.perf_counter() - began

    for path in itertools.islice(itertools.cycle(files), WARM_UP):
        check(path)
    before = measure(page)
    began = time.perf_counter()
    sent = itertools.islice(itertools.cycle(files), settings.requests)
    with ThreadPoolExecutor(settings.clients) as clients:
        seconds = np.array(list(clients.map(check, sent)))
    passed = time.perf_counter() - began
    middle, slow, worst = np.quantile(seconds, [0.5, 0.95, 1])
    print(f"POST /check            {settings.requests} answers to {settings.clients} clients")
    print(f"  requests per second  {settings.requests / passed:.2f}")
    print(f"  seconds              {middle:.2f} (median), {slow:.2f} (95 %), {worst:.2f} (all)")
    print_growth(before, measure(page))


def upload_in_turn(page: Page, files: tuple[Path, ...], uploads: int) -> None:
    """Upload files to the page one after another, and delete each result."""
    before = None
    began = time.perf_counter()
    for number, path in enumerate(itertools.islice(itertools.cycle(files), uploads)):
        if number == min(WARM_UP, uploads - 1):
            before = measure(page)
        job = post(page, "/files", path)["id"]
        question = json.dumps({"ids": [job]}).encode()
        while ask(page, "POST", "/jobs", question)["jobs"][0]["phase"] != "Done":
            time.sleep(ASKED_EVERY)
        ask(page, "DELETE", f"/jobs/{job}")
    print(f"the page               {uploads} uploads with report and marked copy, in turn")
    print(f"  seconds              {(time.perf_counter() - began) / uploads:.2f} per upload")
    print_growth(before, measure(page))


def measure(page: Page) -> tuple[float, int, int]:
    """Return memory in MB, open files, and files in the temporary folder of the page."""
    status = Path(f"/proc/{page.process}/status").read_text()
    memory = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    opened = len(list(Path(f"/proc/{page.process}/fd").iterdir()))
    return int(memory) / 1024, opened, len(list(page.folder.rglob("*")))


def print_growth(before: tuple[float, int, int], after: tuple[float, int, int]) -> None:
    """Print two results of measure, before and after."""
    names = ("memory in MB", "open files", "files on disk")
    for name, first, last in zip(names, before, after, strict=True):
        print(f"  {name:20} {first:.0f} before, {last:.0f} after")


def post(page: Page, address: str, path: Path) -> dict:
    """Send a file as a form, like a browser or curl; return the JSON answer."""
    boundary = uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{path.name}"'
    body = f"{head}\r\n\r\n".encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return ask(page, "POST", address, body, kind)


def ask(
    page: Page, method: str, address: str, body: bytes = b"", headers: dict | None = None
) -> dict:
    """Send a request to the page; return the JSON answer."""
    connection = http.client.HTTPConnection("127.0.0.1", page.port)
    connection.request(method, address, body, headers or {})
    answer = json.loads(connection.getresponse().read() or b"{}")
    connection.close()
    return answer


if __name__ == "__main__":
    cli.run(main)
