"""08: what a visitor sees in a real browser, and what a stranger cannot get at."""

import http.client
import importlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import imageio_ffmpeg
import pytest
from conftest import ROOT
from playwright.sync_api import Browser, Page, Request, Route, sync_playwright

from deepfake_detect import practice
from deepfake_detect.decision import Decision
from deepfake_detect.model import LITE0_WEIGHTS, build_model
from deepfake_detect.model_file import write_model

train_cnn = importlib.import_module("04-train-cnn")

CHROMIUM = shutil.which("chromium")  # Debian's, which plays H.264; Playwright's own does not
PATIENCE = 600_000  # ms; no test is to fail because a machine is slow
SECRET = "nobody may read this"

pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="There is no chromium, so the tests of the page were left out."
)


class Server(NamedTuple):
    address: str
    folder: Path  # its temporary one
    secret: Path  # a file that is none of its business
    clip: Path  # a practice video
    process: subprocess.Popen


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The page of a model with an untrained top, whose uploads may have 1 MB."""
    home = tmp_path_factory.mktemp("page")
    train_cnn.keras.utils.set_random_seed(1)
    built = build_model(LITE0_WEIGHTS)
    write_model(built, Decision(temperature=1.0, threshold=0.5), home / "model.keras")
    (home / "secret.txt").write_text(SECRET)
    (home / "secret.mp4").write_text(SECRET)
    (home / "tmp").mkdir()
    (clip,) = practice.plan_clips(people=1, fakes=0, seed=3)
    practice.write_clips({home / clip.name: clip}, 12)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, ROOT / "08-web-page.py", "--model", "model.keras", "--port", port]
    command += ["--no-open-browser", "--upload-limit", 1]
    with subprocess.Popen(
        list(map(str, command)),
        cwd=home,
        env=os.environ | {"TMPDIR": str(home / "tmp")},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        line = next((line for line in process.stdout if "the page is open" in line), "")
        assert f"http://127.0.0.1:{port}/" in line
        (folder,) = (home / "tmp").glob("deepfake-page-*")
        yield Server(
            f"http://127.0.0.1:{port}", folder, home / "secret.txt", home / clip.name, process
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 130
    assert not folder.exists(), "what visitors brought is still there"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # A container's root has no sandbox, and its /dev/shm is small.
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


def visit(browser: Browser, server: Server, **options: object) -> Page:
    """Open the page in a browser that can reach nothing else; `page.asked` has what it tried."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.asked = []

    def look(route: Route, request: Request) -> None:
        if request.url.startswith(server.address):
            route.continue_()
        else:
            page.asked.append(request.url)
            route.abort()

    context.route("**/*", look)
    page.goto(server.address)
    page.get_by_text("The answer will stand here.").wait_for()
    return page


def drop(page: Page, path: Path) -> None:
    page.locator("input[type=file]").set_input_files(path)


def wait_for_answer(page: Page) -> str:
    page.locator("#answer h1").wait_for()
    return page.locator("#answer").inner_text()


# What a visitor sees


def test_a_video_gets_a_verdict_a_playing_copy_and_a_report_that_opens_offline(
    browser: Browser, server: Server, tmp_path: Path
) -> None:
    page = visit(browser, server)
    drop(page, server.clip)
    answer = wait_for_answer(page)
    assert re.search("sign of manipulation|signs of manipulation|Undecided", answer)
    assert re.search(r"p_fake 0\.\d\d", answer) and "How often is it wrong?" in answer
    assert "What this means, and what it does not" in answer

    # The marked video can play, and a point of the timeline leads to its moment.
    video = page.locator("#answer video")
    video.evaluate("video => video.play()")
    page.wait_for_function("document.querySelector('#answer video').readyState >= 2")
    points = page.locator("#answer .timeline a")
    assert points.count() >= 10  # 2 frames a second would be too few, see 06
    assert re.fullmatch(r"frame \d+, [\d.]+ s: p_fake \d\.\d\d", points.last.text_content().strip())
    points.last.click()
    moment = float(points.last.get_attribute("data-seconds"))
    assert video.evaluate("video => video.currentTime") == pytest.approx(moment, abs=0.01)
    crops = page.locator("#answer .crops img")
    assert crops.count() == 2 * 8
    assert all(crop.evaluate("crop => crop.complete && crop.naturalWidth") for crop in crops.all())

    # Nothing was asked of other machines, and the page tells no path of this one.
    assert page.asked == []
    seen = page.content()
    for path in (str(server.folder), str(ROOT), str(Path.home())):
        assert path not in seen

    with page.expect_download() as download:
        page.get_by_role("link", name="Download the report").click()
    report = tmp_path / download.value.suggested_filename
    assert report.name == f"{server.clip.stem}.html"
    download.value.save_as(report)
    alone = browser.new_context(offline=True)
    asked = []
    alone.on("request", lambda request: asked.append(request.url))
    saved = alone.new_page()
    saved.goto(report.as_uri())
    assert saved.locator("h1").inner_text() == f"Deepfake report: {server.clip.name}"
    assert saved.locator(".words").inner_text() == page.locator("#answer .words").inner_text()
    saved.wait_for_function("document.querySelector('video').readyState >= 1")
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert str(server.folder) not in report.read_text(encoding="utf-8")
    for opened in (page, saved):
        opened.context.close()


def test_a_practice_video_is_an_example_by_keyboard_alone(browser: Browser, server: Server) -> None:
    page = visit(browser, server)
    page.get_by_role("button", name="A fake one").wait_for()
    for _ in range(20):
        page.keyboard.press("Tab")
        focused = "document.activeElement"  # at first the body, whose title has "fake", too
        if "fake" in page.evaluate(f"{focused}.matches('button') ? {focused}.innerText : ''"):
            break
    page.keyboard.press("Enter")
    assert "practice-fake.mp4" in wait_for_answer(page)
    page.wait_for_function("document.activeElement.tagName == 'H1'")  # where reading goes on
    page.keyboard.press("Tab")
    assert "Download" in page.evaluate("document.activeElement.innerText")
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_on_a_phone(browser: Browser, server: Server, scheme: str) -> None:
    page = visit(
        browser, server, viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True
    )
    drop(page, server.clip)
    wait_for_answer(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    small = "[...document.querySelectorAll('.report :is(p, li, td, dd)')]"
    assert (
        page.evaluate(f"Math.min(...{small}.map(e => parseFloat(getComputedStyle(e).fontSize)))")
        >= 13
    )
    for selector in ("p", ".words", ".soft", "td", "figcaption a", "dt"):
        assert measure_contrast(page, f"#answer .report {selector}") >= 4.5, selector
    dark = measure_light(
        page, "getComputedStyle(document.querySelector('.report')).backgroundColor"
    )
    assert (dark < 0.1) == (scheme == "dark")
    page.context.close()


def measure_light(page: Page, color: str) -> float:
    """Measure the relative luminance of a colour, a JavaScript expression (WCAG 2)."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", page.evaluate(color))[:3]]
    linear = [
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def measure_contrast(page: Page, selector: str) -> float:
    """Measure the contrast of a text to the report's background, 1 to 21 (WCAG 2)."""
    ink = measure_light(page, f"getComputedStyle(document.querySelector('{selector}')).color")
    paper = measure_light(
        page, "getComputedStyle(document.querySelector('.report')).backgroundColor"
    )
    return (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05)


def test_what_cannot_be_scored_gets_a_sentence(
    browser: Browser, server: Server, tmp_path: Path
) -> None:
    page = visit(browser, server)
    torn = tmp_path / "torn.mp4"
    torn.write_bytes(b"no video at all")
    drop(page, torn)
    answer = wait_for_answer(page)
    assert " ".join(answer.split()) == "Not scored torn.mp4: does not open as a video"

    notes = tmp_path / "notes.txt"
    notes.write_text("neither video nor picture")
    drop(page, notes)
    page.get_by_text(re.compile("Invalid file type")).first.wait_for()
    large = tmp_path / "large.mp4"
    large.write_bytes(bytes(1_100_000))
    page.reload()
    drop(page, large)
    page.get_by_text(re.compile("maximum allowed size|too large", re.IGNORECASE)).first.wait_for()
    assert not list(server.folder.rglob("large.mp4"))
    page.context.close()


def test_the_second_visitor_waits_and_a_closed_tab_ends_its_work(
    browser: Browser, server: Server, tmp_path: Path
) -> None:
    endless = tmp_path / "endless.mp4"  # an hour of grey
    grey = ["-f", "lavfi", "-i", "color=gray:size=640x480:rate=1:duration=3600"]
    coding = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "9999", "-pix_fmt", "yuv420p"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *grey, *coding, str(endless)]
    subprocess.run(command, check=True)
    assert endless.stat().st_size < 1_000_000
    first = visit(browser, server)
    drop(first, endless)
    first.locator("#answer").get_by_text(re.compile(r"frame")).first.wait_for()  # it is at work
    second = visit(browser, server)
    drop(second, server.clip)
    second.locator("#answer").get_by_text(re.compile("queue")).first.wait_for()
    first.context.close()
    assert server.clip.name in wait_for_answer(second)
    assert not list(server.folder.glob("results/*/endless*"))
    second.context.close()


# What a stranger cannot get at


def ask(server: Server, target: str, method: str = "GET", body: str = "", **headers: str) -> tuple:
    """Ask for a target exactly as it is written, which no browser would send like that."""
    connection = http.client.HTTPConnection(server.address.removeprefix("http://"))
    connection.request(method, target, body or None, headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(errors="replace")


def test_no_file_of_the_disk_is_served(server: Server) -> None:
    secret, up = str(server.secret), "../" * 12
    inside = server.folder / "results" / "planted"
    inside.mkdir(exist_ok=True)
    for name in ("link.html", "link-marked.mp4"):
        (inside / name).symlink_to(server.secret)
    (server.folder / "uploads").mkdir(exist_ok=True)
    (server.folder / "uploads" / "mine.txt").write_text(SECRET)
    files = [secret, f"{up}{secret}", f"{server.folder}/uploads/mine.txt", f"file://{secret}"]
    files += [f"{server.folder}/../../secret.txt", "/etc/passwd", f"{inside}/link.html"]
    files += [urllib.parse.quote(secret, safe="")]
    ways = ("file=", "file/", "gradio_api/file=", "gradio_api/file/")
    tried = [f"/{way}{name}" for way in ways for name in files]
    climbs = [f"{up}{secret}", f"{up}etc/passwd", "..%2f" * 12 + "etc/passwd"]
    climbs += ["%2e%2e/" * 12 + "etc/passwd", "..\\" * 12 + "etc\\passwd"]
    ways = ("static", "assets", "results", "svelte", "theme.css", "gradio_api/upload")
    tried += [f"/{way}/{name}" for way in ways for name in climbs]
    tried += ["/results/planted/link.html", "/results/planted/link-marked.mp4", "/results/planted"]
    tried += ["/results/", "/results/../uploads/mine.txt", "/results/%2e%2e/uploads/mine.txt"]
    tried += [f"/gradio_api/proxy=file://{secret}", f"/proxy={secret}", f"/monitoring/{secret}"]
    for target in tried:
        for method in ("GET", "HEAD", "POST"):
            status, text = ask(server, target, method)
            assert status in (400, 403, 404, 405, 422), (method, target, status)
            assert SECRET not in text and "root:" not in text, (method, target)


def test_no_path_that_was_not_uploaded_is_opened(server: Server) -> None:
    """What a browser names is a path of the server: it could name any."""
    uploads = server.folder / "uploads"
    uploads.mkdir(exist_ok=True)
    (uploads / "link.mp4").symlink_to(server.secret.with_suffix(".mp4"))
    _, config = ask(server, "/config")
    (function,) = (
        one["id"]
        for one in json.loads(config)["dependencies"]
        if any(event == "upload" for _, event in one["targets"])
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.1)
        elsewhere = f"http://127.0.0.1:{listener.getsockname()[1]}/x.mp4"
        for number, path in enumerate(
            [
                str(server.secret.with_suffix(".mp4")),
                "/etc/passwd",
                str(uploads / "link.mp4"),
                f"{uploads}/../../../secret.mp4",
                elsewhere,
            ]
        ):
            file = {"path": path, "url": elsewhere, "meta": {"_type": "gradio.FileData"}}
            tab = {"session_hash": f"stranger{number}"}
            join = {"data": [file], "fn_index": function, **tab}
            status, text = ask(
                server,
                "/gradio_api/queue/join",
                "POST",
                json.dumps(join),
                **{"Content-Type": "application/json"},
            )
            assert status == 200, text
            _, text = ask(server, f"/gradio_api/queue/data?{urllib.parse.urlencode(tab)}")
            assert '"success":false' in text or "no such file was uploaded" in text
            assert SECRET not in text
            assert path != elsewhere or "No address is fetched here" in text
        with pytest.raises(TimeoutError):
            listener.accept()


def test_only_this_machine_s_own_page_is_answered(server: Server) -> None:
    port = server.address.rsplit(":", 1)[1]
    assert ask(server, "/", Host="evil.example")[0] == 404  # a name bent to 127.0.0.1
    for target in ("/", "/config", "/gradio_api/upload"):
        assert ask(server, target, "POST", Origin="http://evil.example")[0] == 404
    assert ask(server, "/", Origin=server.address)[0] == 200
    if listing := shutil.which("ss"):
        command = [listing, "-Hltn", f"sport = :{port}"]
        listening = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert f"127.0.0.1:{port}" in listening and f"0.0.0.0:{port}" not in listening


def test_every_answer_keeps_the_browser_here(server: Server) -> None:
    connection = http.client.HTTPConnection(server.address.removeprefix("http://"))
    for target in ("/", "/nothing", "/config"):
        connection.request("GET", target)
        answer = connection.getresponse()
        answer.read()
        policy = answer.headers["Content-Security-Policy"] or ""
        assert "default-src 'self'" in policy and "http" not in policy, target


def test_what_is_old_is_deleted_and_the_rest_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, age in (("old", 3700), ("new", 60)):
        for folder in ("uploads", "results"):
            file = tmp_path / folder / name / "clip.mp4"
            file.parent.mkdir(parents=True)
            file.touch()
            for path in (file, file.parent):
                os.utime(path, (time.time() - age,) * 2)

    class StopError(Exception):
        pass

    def stop_at_second(seconds: float, slept: list = []) -> None:  # noqa: B006
        slept.append(seconds)
        if len(slept) > 1:
            raise StopError

    web_page = importlib.import_module("08-web-page")
    monkeypatch.setattr(web_page.time, "sleep", stop_at_second)
    with pytest.raises(StopError):
        web_page.keep_clean(tmp_path, 3600)
    kept = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*"))
    assert kept == ["results/new", "uploads/new"]
