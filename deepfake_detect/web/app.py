"""The page and its HTTP API as a Starlette application."""

from __future__ import annotations

import asyncio
import json
import secrets
import urllib.parse
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepfake_detect import __version__
from deepfake_detect.report import describe_rate, find_rates, read_measures
from deepfake_detect.result import FAKE, REAL
from deepfake_detect.shipped import find_shipped
from deepfake_detect.web.jobs import MB, FullError, Job, Jobs

HERE = Path(__file__).parent
STALLED = 60  # seconds without a byte before an upload is dropped
OVERHEAD = 10_000  # bytes that a form adds to its file
LARGEST_QUESTION = 100_000  # bytes of any other request
LONGEST_NAME = 200  # characters of a file name
LOCAL = ("127.0.0.1", "localhost")
COOKIE = "deepfake-detect-token"
# The browser must not load anything from elsewhere, or run a report's script inside the page.
POLICY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; connect-src 'self'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; media-src 'self' data:; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# A separate report contains its script, so the sandbox isolates it from the page and the server.
REPORT_POLICY = (
    "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; sandbox allow-scripts allow-modals allow-downloads"
)


@dataclass(frozen=True)
class Site:
    """The content of the application.

    Attributes:
        jobs: checks the files
        facts: values for page.html: version, model, error rates
        card: path of the model card, Markdown; it may be missing
        api: True if programs are answered, too
        token: password for every visitor; None: only this machine is answered
    """

    jobs: Jobs
    facts: dict
    card: Path
    api: bool
    token: str | None

    @classmethod
    def describe(cls, jobs: Jobs, api: bool, token: str | None) -> Site:
        """Collect the content for a detector, with its model card and error rates."""
        model = jobs.detector.model
        measured = read_measures(Path(model.name), model.decision)
        card = Path(model.name).with_name("README.md")  # 05 writes it
        facts = {
            "version": __version__,
            "model": Path(model.name).name,
            "model_sha256": model.sha256,
            "practice": model.training.get("practice") is True,
            "rates": [
                (verdict, describe_rate(rate, "video"))
                for verdict in (FAKE, REAL)
                for rate in find_rates(measured, "video", verdict)
            ],
            "has_card": card.is_file(),
        }
        return cls(jobs, facts, card, api, token)

    def build(self) -> Starlette:
        """Build the application."""
        routes = [
            Route("/", self.show_page),
            Route("/card", self.show_card),
            Route("/health", self.show_health),
            Route("/report.js", self.show_script),
            Mount("/static", StaticFiles(directory=HERE / "static")),
            Route("/files", self.take_file, methods=["POST"]),
            Route("/examples", self.take_example, methods=["POST"]),
            Route("/jobs", self.show_jobs, methods=["POST"]),
            Route("/jobs/left", self.note_left, methods=["POST"]),
            Route("/jobs/{job}", self.remove_job, methods=["DELETE"]),
            Route("/results/{job}/{name}", self.show_result),
        ]
        answers = {HTTPException: word_problem, FullError: word_full, OSError: word_disk}
        if self.api:
            routes += [
                Route("/check", self.check, methods=["POST"]),
                Route("/version", self.show_version),
                Route("/openapi.json", self.show_openapi),
            ]
        return Starlette(
            routes=routes,
            middleware=[Middleware(guard, token=self.token)],
            exception_handlers=answers,
        )

    # --- The page ---------------------------------------------------------------------------------

    async def show_page(self, request: Request) -> Response:
        """Serve the page; store a token from its address in a cookie."""
        if "token" in request.query_params:
            answer = RedirectResponse("/", 303)
            answer.set_cookie(COOKIE, self.token or "", httponly=True, samesite="strict")
            return answer
        limits = self.jobs.limits
        facts = self.facts | {
            "examples": EXAMPLES,
            "upload_limit": limits.upload // MB,
            "keep_minutes": f"{limits.seconds / 60:g}",
            "local": self.token is None,
        }
        return HTMLResponse(TEMPLATES.get_template("page.html").render(facts))

    async def show_card(self, request: Request) -> Response:
        """Serve the model card."""
        if not self.card.is_file():
            raise HTTPException(404, "This model has no card.")
        text = self.card.read_text(encoding="utf-8", errors="replace")
        return HTMLResponse(TEMPLATES.get_template("card.html").render(card=text))

    async def show_script(self, request: Request) -> Response:
        """Serve the script of the reports, which the page loads separately."""
        return FileResponse(find_shipped("templates/report.js"), media_type="text/javascript")

    async def take_file(self, request: Request) -> Response:
        """Receive an upload and queue its check; the answer contains the job's id."""
        job = await self.receive(request, marks=True)
        return JSONResponse(self.jobs.describe(job, job.id), 202)

    async def take_example(self, request: Request) -> Response:
        """Queue the check of a practice clip."""
        label = (await read_question(request)).get("example")
        if label not in EXAMPLES:
            raise HTTPException(404, "There is no such example.")
        job = await run_in_threadpool(self.jobs.add_example, label)
        return JSONResponse(self.jobs.describe(job, job.id), 202)

    async def show_jobs(self, request: Request) -> Response:
        """Return the progress of some jobs; the request also shows that their tab is open."""
        found = {one: self.jobs.find(one) for one in await read_ids(request)}
        for job in filter(None, found.values()):
            self.jobs.see(job)
        return JSONResponse({"jobs": [self.jobs.describe(job, one) for one, job in found.items()]})

    async def note_left(self, request: Request) -> Response:
        """Mark the jobs of a closed tab."""
        for one in await read_ids(request):
            if job := self.jobs.find(one):
                self.jobs.leave(job)
        return Response(status_code=204)

    async def remove_job(self, request: Request) -> Response:
        """Cancel a job, or delete its results."""
        if job := self.jobs.find(request.path_params["job"]):
            await run_in_threadpool(self.jobs.remove, job)
        return Response(status_code=204)

    async def show_result(self, request: Request) -> Response:
        """Serve a result of a job: its article, report, marked copy or JSON."""
        job, name = self.jobs.find(request.path_params["job"]), request.path_params["name"]
        if not job or name not in RESULTS:
            raise HTTPException(404, "There is no such result; it may be deleted already.")
        if name == "report.html":  # written last
            await asyncio.wrap_future(job.report)
        path = job.folder / name
        if not path.is_file():
            raise HTTPException(404, "There is no such result.")
        kind, ending = RESULTS[name]
        if "save" not in request.query_params:
            headers = {"Content-Security-Policy": REPORT_POLICY} if name == "report.html" else {}
            return FileResponse(path, media_type=kind, headers=headers)
        return FileResponse(path, media_type=kind, filename=f"{Path(job.name).stem}{ending}")

    # --- Programs ---------------------------------------------------------------------------------

    async def check(self, request: Request) -> Response:
        """Check an upload, delete it, and answer with the JSON of its result."""
        job = await self.receive(request, marks=False)
        leaving = asyncio.create_task(wait_until_gone(request))
        checked = asyncio.ensure_future(asyncio.wrap_future(job.checked))
        try:
            await asyncio.wait({leaving, checked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            self.jobs.remove(job)
        if not checked.done() or job.answer is None:  # the client left, or the page is closed
            raise HTTPException(503, "The check was cancelled.")
        return JSONResponse(job.answer, 422 if "error" in job.answer else 200)

    async def show_health(self, request: Request) -> Response:
        """Answer that the server works, and return the number of waiting files."""
        waiting = sum(job.answer is None for job in list(self.jobs.jobs.values()))
        return JSONResponse({"status": "ok", "waiting": waiting})

    async def show_version(self, request: Request) -> Response:
        """Return the version of the project and the model."""
        return JSONResponse({key: self.facts[key] for key in ("version", "model", "model_sha256")})

    async def show_openapi(self, request: Request) -> Response:
        """Return the description of the HTTP API."""
        described = json.loads((HERE / "openapi.json").read_text(encoding="utf-8"))
        described["info"]["version"] = self.facts["version"]
        return JSONResponse(described)

    # --- Uploads ----------------------------------------------------------------------------------

    async def receive(self, request: Request, marks: bool) -> Job:
        """Receive the file of a form; it has a name on the disk only when it is complete.

        Raises:
            HTTPException: the file is too large, incomplete or missing
            FullError: the page's storage limit is reached
        """
        limit, received = self.jobs.limits.upload, 0
        declared = int(request.headers.get("content-length", 0))
        too_large = HTTPException(413, f"The file has more than {limit // MB:,} MB.")
        if declared > limit + OVERHEAD:
            raise too_large
        room = self.jobs.reserve(declared)

        async def receive() -> Message:
            nonlocal received
            async with asyncio.timeout(STALLED):
                message = await request.receive()
            received += len(message.get("body", b""))
            if received > limit + OVERHEAD:
                raise too_large
            room.grow(received)
            return message

        try:
            form = Request(request.scope, receive).form(max_files=1, max_fields=5)
            async with form as fields:
                file = fields.get("file")
                if not isinstance(file, UploadFile):
                    raise HTTPException(400, 'Send the file as the field "file" of a form.')
                if (file.size or 0) > limit:
                    raise too_large
                name = clean_name(file.filename)
                return await run_in_threadpool(self.jobs.add, name, file.file, marks)
        except (TimeoutError, ClientDisconnect):
            raise HTTPException(400, "The upload was broken off.") from None
        finally:
            room.free()


EXAMPLES = ("real", "fake")
RESULTS = {  # media type, and suffix of the saved file
    "article.html": ("text/html", ".html"),
    "report.html": ("text/html", ".html"),
    "marked.mp4": ("video/mp4", "-marked.mp4"),
    "marked.png": ("image/png", "-marked.png"),
    "result.json": ("application/json", ".json"),
}
TEMPLATES = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=True)


def clean_name(name: str | None) -> str:
    """Return the last part of a file name, with unprintable characters replaced."""
    last = (name or "").replace("\\", "/").rsplit("/", 1)[-1]
    shown = "".join(letter if letter.isprintable() else "_" for letter in last).strip()
    return shown[:LONGEST_NAME] or "file"


async def read_question(request: Request) -> dict:
    """Read the JSON object of a request.

    Raises:
        HTTPException: the body is not a JSON object, or is too large.
    """
    body = b""
    with suppress(ClientDisconnect):
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST_QUESTION:
                raise HTTPException(413, "The question is too long.")
    try:
        question = json.loads(body)
    except (ValueError, RecursionError):
        question = None
    if not isinstance(question, dict):
        raise HTTPException(400, "The question is not a JSON object.")
    return question


async def read_ids(request: Request) -> list[str]:
    """Read the job ids in a request of the page."""
    ids = (await read_question(request)).get("ids")
    return [str(one) for one in ids] if isinstance(ids, list) else []


async def wait_until_gone(request: Request) -> None:
    """Wait until the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def word_problem(request: Request, error: HTTPException) -> Response:
    """Answer a failed request with a sentence."""
    return JSONResponse({"reason": error.detail}, error.status_code, error.headers)


async def word_full(request: Request, error: FullError) -> Response:
    """Answer that the page's storage limit is reached."""
    return JSONResponse({"reason": str(error)}, 503, {"Retry-After": "60"})


async def word_disk(request: Request, error: OSError) -> Response:
    """Answer that an upload cannot be written."""
    return JSONResponse({"reason": f"It cannot be kept: {error.strerror}."}, 507)


def guard(app: ASGIApp, token: str | None) -> ASGIApp:
    """Answer only the page itself and clients with the token; restrict the browser to this server.

    Without a token, only this machine is answered, under its own name: a foreign host name that
    resolves to this machine (DNS rebinding) is refused. Requests from other sites are refused, too.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in POLICY.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await refuse(scope, app, token)(scope, receive, send_with_policy)

    return answer


def refuse(scope: Scope, app: ASGIApp, token: str | None) -> Callable[..., Awaitable[None]]:
    """Return the application, or an error response for a request that must not reach it."""
    if scope["type"] != "http":
        return app if scope["type"] == "lifespan" else PlainTextResponse("Not here.", 404)
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    origin = headers.get("origin", f"http://{host}")
    foreign = len(headers.getlist("host")) != 1 or origin.split("://")[-1] != host
    if foreign or (token is None and host.rsplit(":", 1)[0] not in LOCAL):
        return PlainTextResponse("This is not served here.", 404)
    if token and scope["path"] != "/health" and not knows(token, scope, headers):
        said = {"reason": "The token is missing or wrong; the terminal of the page shows it."}
        return JSONResponse(said, 401, {"WWW-Authenticate": "Bearer"})
    return app


def knows(token: str, scope: Scope, headers: Headers) -> bool:
    """Return True if a request has the token: in a header, in its cookie or in its address."""
    query = urllib.parse.parse_qs(scope["query_string"].decode("latin-1"))
    given = [headers.get("authorization", "").removeprefix("Bearer ")]
    given += [value for value in query.get("token", []) if scope["path"] == "/"]
    cookies = (one.partition("=") for one in headers.get("cookie", "").split(";"))
    given += [value.strip() for name, _, value in cookies if name.strip() == COOKIE]
    return any(secrets.compare_digest(one.encode(), token.encode()) for one in given)
