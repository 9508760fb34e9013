"""Open the detection as a page in the browser, and over HTTP for other programs.

    python 08-web-page.py
    python 08-web-page.py --model model/best_model.onnx
    python 08-web-page.py --port 8000 --no-open-browser
    python 08-web-page.py --api              # POST /check answers programs, too: docs/api.md

Reads   videos and pictures that are dropped on the page; a model, as 06 does
Writes  a temporary folder: an upload is deleted when it is checked, its results after an hour, and
        all of it when the page's program ends. The next start deletes what a killed one left
Next    hand on the report that the page offers

The page checks files one after another, with the Detector that 06 uses, and shows the report that
06 writes. Closing the tab cancels what it waits for.

Nothing leaves this computer: the server answers this computer alone and asks no other, and has the
browser load nothing from elsewhere. With --host it answers others, too, if they know the token.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))  # python -P leaves it out

from deepfake_detect import start

start.prepare(__name__)

import os
import secrets
import socket
import threading
import webbrowser
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

from deepfake_detect import cli
from deepfake_detect.cli import Between, Count, Positive

if TYPE_CHECKING:
    from deepfake_detect.web.jobs import Jobs

TOKEN = "DEEPFAKE_DETECT_TOKEN"  # an environment variable, which no list of processes shows


@dataclass(frozen=True)
class Settings:
    """Edit a default here, or override it for one run: --port 8000."""

    # detection
    model: Path | None = None  # an .onnx file of 04; None: as 06 chooses
    frames_per_second: Positive = 2.0  # frames scored per second of video; more of short videos
    # address
    host: str = "127.0.0.1"  # another address is served with a token only
    port: Annotated[int, Between(0, 65535)] = 7860  # of the address; 0 takes a free one
    token: str | None = None  # that visitors must know; better in DEEPFAKE_DETECT_TOKEN
    open_browser: bool = True  # show the page at once
    # programs
    api: bool = False  # answer POST /check, GET /version and GET /openapi.json as well
    # uploads
    upload_limit: Count = 500  # MB per file
    kept_limit: Count = 4000  # MB of all uploads and results together
    keep_minutes: Positive = 60.0  # for which results stay


def main(settings: Settings = Settings()) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        ValueError: a setting is out of its range, or the model cannot be used.
        OSError: the address cannot be had, or the temporary folder cannot be written.
    """
    cli.check_ranges(settings)
    token = choose_token(settings)
    listener = listen(settings.host, settings.port)
    print("Loading the model ...", flush=True)

    # Here, so that a wrong port and Ctrl-C are answered at once.
    from deepfake_detect import DetectionSettings, Detector
    from deepfake_detect.web.jobs import MB, Jobs, Limits, open_folder

    detection = DetectionSettings(frames_per_second=settings.frames_per_second)
    detector = Detector(settings.model, detection)
    limits = Limits(
        upload=settings.upload_limit * MB,
        kept=settings.kept_limit * MB,
        seconds=settings.keep_minutes * 60,
    )
    with open_folder() as folder, listener:
        jobs = Jobs(detector, folder, limits)
        try:
            serve(jobs, listener, settings, token)
        finally:
            jobs.close()


def choose_token(settings: Settings) -> str | None:
    """Return the token that visitors must know; None where only this computer is answered."""
    token = settings.token or os.environ.get(TOKEN)
    if settings.host in ("127.0.0.1", "localhost"):
        return token
    return token or secrets.token_urlsafe(16)


def listen(host: str, port: int) -> socket.socket:
    """Take the address of the page.

    Raises:
        OSError: it is in use, or is not an address of this computer
    """
    listener = socket.socket()
    if os.name == "posix":  # the address of a page that was closed just now
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        if isinstance(error, socket.gaierror):
            raise OSError(f"--host {host}: there is no such address ({error.strerror}).") from None
        raise OSError(
            f"{host}:{port} cannot be used ({error.strerror}): the page may be open already at "
            f"http://{host}:{port}; or choose another port with --port."
        ) from None
    return listener


def serve(jobs: Jobs, listener: socket.socket, settings: Settings, token: str | None) -> None:
    """Answer requests until Ctrl-C; the server has a thread of its own."""
    import uvicorn

    from deepfake_detect.web.app import Site

    site = Site.describe(jobs, settings.api, token)
    server = uvicorn.Server(
        uvicorn.Config(
            site.build(),
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            http="h11",
            timeout_graceful_shutdown=1,
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    port = listener.getsockname()[1]
    address = f"http://{settings.host}:{port}/" + (f"?token={quote(token)}" if token else "")
    print(f"{address}: the page is open, with {site.facts['model']}; Ctrl-C closes it.", flush=True)
    if settings.open_browser:
        webbrowser.open(address)
    try:
        while thread.is_alive():
            thread.join(1)
        print("The server has stopped.", file=sys.stderr)
    finally:
        server.should_exit = True
        thread.join(5)


if __name__ == "__main__":
    cli.run(main)
