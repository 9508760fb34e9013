"""Serve the detector as a page in the browser, and over HTTP for other programs.

    python 08-web-page.py
    python 08-web-page.py --model model/best_model.onnx
    python 08-web-page.py --port 8000 --no-open-browser
    python 08-web-page.py --api              # also answer programs at POST /check: docs/api.md

Reads   videos and pictures that a visitor drops on the page; the same model as 06
Writes  a temporary folder: each upload is deleted after its check, its results after an hour, and
        everything when this program ends. The next start deletes the files of a killed program
Next    share the report from the page

The page checks files one after another with the Detector of 06, and shows the same report as 06.
Closing a tab cancels its checks.

Nothing leaves this computer: the server answers only this computer, does not contact others, and
prevents the browser from loading anything from elsewhere. With --host, the server also answers
other computers if they send the token.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))  # python -P omits it

from deepfake_detect import start

start.prepare(__name__)

import errno
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

TOKEN = "DEEPFAKE_DETECT_TOKEN"  # environment variable; not visible in process lists


@dataclass(frozen=True)
class Settings:
    """Edit a default here, or override it for one run: --port 8000."""

    # detection
    model: Path | None = None  # .onnx file from 04; None: the same model as 06
    frames_per_second: Positive = 2.0  # frames scored per second of video; more of short videos
    # address
    host: str = "127.0.0.1"  # other addresses require a token
    port: Annotated[int, Between(0, 65535)] = 7860  # 0: any free port
    token: str | None = None  # password for visitors; better set in DEEPFAKE_DETECT_TOKEN
    open_browser: bool = True  # open the page in the default browser
    # programs
    api: bool = False  # also answer POST /check, GET /version and GET /openapi.json
    # uploads
    upload_limit: Count = 500  # MB per file
    kept_limit: Count = 4000  # MB of all uploads and results in total
    keep_minutes: Positive = 60.0  # minutes before results are deleted


def main(settings: Settings = Settings()) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        ValueError: a setting is out of its range, or the model cannot be used.
        OSError: the address is not available, or the temporary folder cannot be written.
    """
    cli.check_ranges(settings)
    token = choose_token(settings)
    listener = listen(settings.host, settings.port)
    print("Loading the model ...", flush=True)

    # Imported here, so that a wrong port and Ctrl-C are handled immediately.
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
    """Return the token that visitors must send; None if only this computer is answered."""
    token = settings.token or os.environ.get(TOKEN)
    if settings.host in ("127.0.0.1", "localhost"):
        return token
    return token or secrets.token_urlsafe(16)


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket at the address of the page.

    Raises:
        OSError: the address is in use, or does not belong to this computer
    """
    listener = socket.socket()
    if os.name == "posix":  # allow the address of a page that closed a moment ago
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        if isinstance(error, socket.gaierror):
            raise OSError(f"--host {host}: there is no such address ({error.strerror}).") from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise OSError(f"--host {host}: this is not an address of this computer.") from None
        raise OSError(
            f"{host}:{port} cannot be used ({error.strerror}): the page may be open already at "
            f"http://{host}:{port}; or choose another port with --port."
        ) from None
    return listener


def serve(jobs: Jobs, listener: socket.socket, settings: Settings, token: str | None) -> None:
    """Answer requests until Ctrl-C; the server runs in its own thread."""
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
