"""Open the detection as a page in the browser of this machine.

    python 08-web-page.py
    python 08-web-page.py --model my-model/best_model.keras
    python 08-web-page.py --port 8000 --no-open-browser

Reads   a video or picture that is dropped on the page; a model, as 06 does
Writes  a temporary folder with what 06 writes: deleted after an hour, and when the page is closed
Next    hand on the report that the page offers

The page scores with the functions of 06 and shows the report that 06 writes. One file is worked on
at a time; the next one waits. Closing the tab ends the work for it.

Nothing leaves the machine: the server answers this machine alone, sends no statistics, and has the
browser refuse whatever is not from here. Of what gradio serves, only the addresses in SERVED are
answered; none gives a file of the disk, but for results, whose names nobody can guess.
"""

from __future__ import annotations

import contextvars
import functools
import html
import importlib
import inspect
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

# Before gradio is imported: it counts its starts and looks for updates.
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}

import gradio as gr
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tqdm import tqdm

from deepfake_detect import cli, marked_video, practice
from deepfake_detect import datasets as catalogue
from deepfake_detect import inputs as media
from deepfake_detect import report as detection_report
from deepfake_detect.model_file import Scorer

detect = importlib.import_module("06-detect-deepfake")

# --------------------------------------------------------------------------------------------------
# detection
MODEL = None  # as in 06: None takes your own, or if there is none the one that comes along
FRAMES_PER_SECOND = 2.0  # scored of each second
# page
PORT = 7860  # of its address, http://127.0.0.1:7860
OPEN_BROWSER = True  # show the page at once
# uploads
UPLOAD_LIMIT = 500  # MB a file
KEEP_MINUTES = 60.0  # for which a file and its results stay, while the page is open
# --------------------------------------------------------------------------------------------------

TITLE = "Is this video a deepfake?"
WELCOME = f"""<h1>{TITLE}</h1><p>Drop a video or a picture. Every face in it is scored on this
machine, which nothing leaves: a verdict in words, its limits, and a report to hand on.</p>"""
WAITING = "<p>The answer will stand here.</p>"
NOT_SCORED = '<article role="alert"><h1 tabindex="-1">Not scored</h1><p>{}</p></article>'
TO_ANSWER = "() => document.querySelector('#answer h1')?.focus()"  # where reading goes on
STYLE = ".gradio-container > .main { max-width: 64rem !important; padding: 0 1rem !important }"
KNOWN = [*catalogue.VIDEO_SUFFIXES, *media.PICTURE_SUFFIXES]

# What may be asked of the server: the page, the parts of gradio that it works with, and results.
SERVED = re.compile(
    r"/|/(assets|static)/[^\\]+|/(config|theme\.css|favicon\.ico|manifest\.json)"
    r"|/results/[\w-]+/[^/\\]+(\.html|-marked\.mp4)"
    r"|/gradio_api/(upload|upload_progress|queue/join|queue/data|cancel|heartbeat/\w+|startup-events)"
)
POLICY = {"Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}
POLICY["Content-Security-Policy"] = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


def main(
    model: Path | None = MODEL,
    frames_per_second: float = FRAMES_PER_SECOND,
    port: int = PORT,
    open_browser: bool = OPEN_BROWSER,
    upload_limit: int = UPLOAD_LIMIT,
    keep_minutes: float = KEEP_MINUTES,
) -> None:
    """Open the detection as a page in the browser of this machine, until Ctrl-C.

    Args:
        model: a model that 04-train-cnn.py wrote; None: as 06 chooses
        frames_per_second: frames scored of each second; more of a short video
        port: port of the page's address
        open_browser: show the page at once
        upload_limit: MB that a file may have
        keep_minutes: minutes for which a file and its results stay

    Raises:
        ValueError: a number is out of its range, or the model is of another kind.
        OSError: the model is not there, or the port is taken.
    """
    defaults = inspect.signature(detect.main).parameters
    settings = SimpleNamespace(**{name: one.default for name, one in defaults.items()})
    settings.frames_per_second = frames_per_second
    detect.check_settings(settings)
    for option, value in (("--upload-limit", upload_limit), ("--keep-minutes", keep_minutes)):
        if not value > 0:
            raise ValueError(f"{option} is {value}; give more than 0.")
    scorer = detect.load_scorer(model)
    scorer.loading.result()  # what is wrong with the model is told now, not to a visitor
    detect.tqdm = marked_video.tqdm = Bar
    gr.processing_utils.async_ssrf_protected_download = refuse_address

    # All that visitors bring and get lies below one folder, which goes when the page goes.
    with tempfile.TemporaryDirectory(prefix="deepfake-page-") as temporary:
        folder = Path(temporary).resolve()
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
        practice = make_practice_videos(folder / "practice")
        answer = functools.partial(answer_file, scorer=scorer, settings=settings, folder=folder)
        page = build_page(practice, answer, upload_limit)
        threading.Thread(target=keep_clean, args=(folder, 60 * keep_minutes), daemon=True).start()
        try:
            address = open_page(page, folder / "results", port, upload_limit, open_browser)
            print(f"{address}: the page is open, with {scorer.path}; Ctrl-C closes it.", flush=True)
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def make_practice_videos(folder: Path) -> dict[str, Path]:
    """Make a real and a fake video; give each by the words on its button."""
    folder.mkdir()
    examples = practice.write_examples(folder)
    return {f"A {label} one": path for label, path in examples.items()}


def answer_file(
    path: str, tab: str, scorer: Scorer, settings: SimpleNamespace, folder: Path
) -> str:
    """Score a file as 06 does, write what 06 writes, and give its report as HTML for the page.

    A file that cannot be scored gets 06's sentence, and nothing is done for a tab that is closed.
    """
    TAB.set(tab)
    results = folder / "results" / secrets.token_urlsafe(16)
    with AT_WORK:
        try:
            source = find_upload(path, folder)
            results.mkdir(parents=True)
            target = results / media.name_outputs([source])[0]
            result, worst = detect.detect(source, scorer, settings)
            heat = detect.write_outputs(result, worst, target, scorer, settings)
            found = result, worst, heat
            content = detection_report.collect_report(*found, scorer, target, settings)
            detect.write_html(content, target)
        except TabClosedError:
            shutil.rmtree(results)
            return ""
        except Exception as error:
            reason = f"{Path(path).name}: {media.word_error(error)}"
            for inside in (f"{Path(path).parent}/", f"{results}/"):  # no path of the machine
                reason = reason.replace(inside, "")
            return NOT_SCORED.format(html.escape(reason))

    # The report has the marked video inside if it is small; the page plays it from the server.
    address = f"/results/{results.name}/{urllib.parse.quote(target.name)}"
    video = f"{address}-marked.mp4" if Path(f"{target}-marked.mp4").is_file() else None
    return detection_report.render_report(content | {"video": video, "download": f"{address}.html"})


def find_upload(path: str, folder: Path) -> Path:
    """Find the file that a browser names: one that was uploaded here, or a practice video.

    Raises:
        ValueError: it is any other file of the disk, or of a kind that 06 does not open.
    """
    found = Path(path).resolve()
    if not any(found.is_relative_to(folder / inside) for inside in ("uploads", "practice")):
        raise ValueError("no such file was uploaded; drop it on the page again.")
    if found.suffix.lower() not in KNOWN:
        raise ValueError(f"such a file is not opened; give one of {', '.join(KNOWN)}.")
    return found


def build_page(
    practice: dict[str, Path], answer: Callable[[str, str], str], upload_limit: int
) -> gr.Blocks:
    """Lay out the page: what to drop, the practice videos, and below them the answer."""
    bar = gr.Progress(track_tqdm=True)  # shows the bars of 06

    def work(given: dict | str, request: gr.Request, progress: gr.Progress = bar) -> tuple:
        path = practice[given] if isinstance(given, str) else given["path"]
        return answer(str(path), request.session_hash), None  # ready for the next file

    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.HTML(WELCOME)
        with gr.Row():
            limit = f"A video or a picture, up to {upload_limit} MB"
            dropped = gr.File(label=limit, file_types=KNOWN, scale=3)
            with gr.Column(scale=1, min_width=200):
                gr.HTML("<p>Nothing at hand? Try a video that was made for practice:</p>")
                buttons = [gr.Button(words) for words in practice]
        shown = gr.HTML(WAITING, elem_id="answer", min_height=160, apply_default_css=False)
        for listen, given in ((dropped.upload, dropped), *((one.click, one) for one in buttons)):
            event = listen(
                work,
                given,
                [shown, dropped],
                preprocess=False,  # find_upload looks at the path
                show_progress_on=shown,
                concurrency_limit=1,  # whoever comes second is shown his place in the queue
                concurrency_id="detection",
                api_visibility="private",
            )
            event.then(None, js=TO_ANSWER)
        page.unload(close_tab)
    return page


def open_page(
    page: gr.Blocks, results: Path, port: int, upload_limit: int, open_browser: bool
) -> str:
    """Open the page to this machine alone, behind the guard; give its address."""
    results.mkdir()
    served = {"routes": [Mount("/results", StaticFiles(directory=results))]}
    _, address, _ = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        inbrowser=open_browser,
        max_file_size=upload_limit * 10**6,
        app_kwargs=served | {"middleware": [Middleware(guard)]},
        theme=gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("monospace",)),
        css=STYLE,
        footer_links=[],
        prevent_thread_lock=True,
        quiet=True,
    )
    return address


# --- Machinery ------------------------------------------------------------------------------------

AT_WORK = threading.Lock()  # held while a file is worked on: nothing is cleaned away meanwhile
TAB: contextvars.ContextVar[str | None] = contextvars.ContextVar("tab", default=None)
CLOSED: set[str] = set()  # tabs, by gradio's name for each


class TabClosedError(BaseException):
    """Nobody waits for the answer any more; as Ctrl-C does, it passes by `except Exception`."""


class Bar(tqdm):
    """The progress bars of 06, at each step of which the work for a closed tab ends."""

    def __iter__(self) -> Iterator:
        for item in super().__iter__():
            if TAB.get() in CLOSED:
                raise TabClosedError
            yield item


async def refuse_address(*_: object, **__: object) -> None:
    """Take the place of what in gradio fetches an address that stands where a path should."""
    raise gr.Error("No address is fetched here; drop a file on the page.")


def close_tab(request: gr.Request) -> None:
    CLOSED.add(request.session_hash)


def guard(app: ASGIApp) -> ASGIApp:
    """Answer only what is in SERVED, asked for from the page itself; keep the browser here."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(POLICY)
            await send(message)

        asked = app
        if scope["type"] != "lifespan":
            headers = Headers(scope=scope)
            host = headers.get("host", "")
            own = host.split(":")[0] in ("127.0.0.1", "localhost")  # no name that was bent to it
            own = own and headers.get("origin", f"http://{host}") == f"http://{host}"
            if not own or not SERVED.fullmatch(scope["path"]):
                asked = PlainTextResponse("This is not served here.", 404)
        await asked(scope, receive, send_with_policy)

    return answer


def keep_clean(folder: Path, seconds: float) -> None:
    """Delete uploads and results that are older than that, as long as the page is open."""
    while True:
        time.sleep(min(60, seconds / 2))
        with AT_WORK:
            for kept in (*folder.glob("uploads/*"), *folder.glob("results/*")):
                newest = max(path.lstat().st_mtime for path in (kept, *kept.rglob("*")))
                if newest < time.time() - seconds:
                    shutil.rmtree(kept, ignore_errors=True)


if __name__ == "__main__":
    cli.run(main)
