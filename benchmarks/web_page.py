"""Put load on the page and its HTTP API: clients at once, then uploads in turn.

    python -m benchmarks.web_page
    python -m benchmarks.web_page clip.mp4 photo.jpg --clients 8 --requests 200

Reads   files to send, in turn; without any, two practice clips
Writes  nothing; prints the latency of POST /check, and the memory, open files and disk of the
        page's process, which are to stay flat

The page is started as from the shell. Its memory is read from /proc, so this needs Linux.
"""

from __future__ import annotations

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
WARM_UP = 5  # requests before memory is compared: libraries fill their caches
ASKED_EVERY = 0.2  # seconds between two questions whether a job is done


@dataclass(frozen=True)
class Settings:
    """Edit a default here, or override it for one run: --requests 10."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()  # to send; none: practice clips
    requests: Count = 50  # of POST /check
    clients: Count = 4  # that send them at once
    uploads: int = 200  # to the page, one after another, with report and marked copy


class Page(NamedTuple):
    """A page that is open: its port, process and temporary folder."""

    port: int
    process: int
    folder: Path


def main(settings: Settings = Settings()) -> None:
    """Put load on the page and its HTTP API."""
    cli.check_ranges(settings)
    with tempfile.TemporaryDirectory() as temporary:
        files = settings.files or tuple(write_examples(Path(temporary)).values())
        with open_page(Path(temporary)) as page:
            check_in_parallel(page, files, settings)
            if settings.uploads:
                upload_in_turn(page, files, settings.uploads)


@contextmanager
def open_page(folder: Path) -> Iterator[Page]:
    """Start the page on a free port, in its own temporary folder."""
    command = [sys.executable, str(SCRIPT), "--api", "--no-open-browser", "--port", "0"]
    began = time.perf_counter()
    with subprocess.Popen(
        command, env=os.environ | {"TMPDIR": str(folder)}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            line = next((line for line in process.stdout if "the page is open" in line), None)
            if line is None:
                raise OSError(f"{SCRIPT.name} does not start; its message is above.")
            print(f"start to an open page  {time.perf_counter() - began:.1f} s")
            port = int(line.split("/:")[0].rsplit(":", 1)[1])
            (temporary,) = folder.glob("deepfake-page-*")
            yield Page(port, process.pid, temporary)
        finally:
            process.send_signal(signal.SIGTERM)


def check_in_parallel(page: Page, files: tuple[Path, ...], settings: Settings) -> None:
    """Send files to POST /check from several clients, and print how long each answer took."""

    def check(path: Path) -> float:
        began = time.perf_counter()
        answer = post(page, "/check", path)
        if "verdict" not in answer:
            raise ValueError(f"{path.name}: no verdict, but {answer}")
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
    """Drop files on the page one after another, and remove each result."""
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
    """Measure the page's process: memory in MB, open files, and files below its folder."""
    status = Path(f"/proc/{page.process}/status").read_text()
    memory = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    opened = len(list(Path(f"/proc/{page.process}/fd").iterdir()))
    return int(memory) / 1024, opened, len(list(page.folder.rglob("*")))


def print_growth(before: tuple[float, int, int], after: tuple[float, int, int]) -> None:
    """Print what measure gave, before and after."""
    names = ("memory in MB", "open files", "files on disk")
    for name, first, last in zip(names, before, after, strict=True):
        print(f"  {name:20} {first:.0f} before, {last:.0f} after")


def post(page: Page, address: str, path: Path) -> dict:
    """Send a file as a form, as a browser or curl does."""
    boundary = uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{path.name}"'
    body = f"{head}\r\n\r\n".encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return ask(page, "POST", address, body, kind)


def ask(
    page: Page, method: str, address: str, body: bytes = b"", headers: dict | None = None
) -> dict:
    """Ask the page, and return the JSON of its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", page.port)
    connection.request(method, address, body, headers or {})
    answer = json.loads(connection.getresponse().read() or b"{}")
    connection.close()
    return answer


if __name__ == "__main__":
    cli.run(main)
