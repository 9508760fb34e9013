"""Test the page of 08 in a real browser."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import ROOT
from pages import FAKE, REAL, Server, clips, open_page, write_endless_video  # noqa: F401
from playwright.sync_api import Browser, Page, Request, Route, sync_playwright

CHROMIUM = shutil.which("chromium")  # Debian's, which plays H.264; Playwright's own does not
PATIENCE = 600_000  # ms; a slow machine must not fail a test
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}

pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="There is no chromium, so the tests of the page were left out."
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a page with the included model and an upload limit of 2 MB."""
    with open_page(tmp_path_factory.mktemp("page"), "--upload-limit", 2) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # A container's root has no sandbox, and its /dev/shm is small.
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def torn(tmp_path: Path) -> Path:
    path = tmp_path / "torn.mp4"
    path.write_bytes(b"no video at all")
    return path


def visit(browser: Browser, server: Server, **options: object) -> Page:
    """Open the page in a browser that cannot reach other servers.

    `page.asked` lists its requests to other servers, `page.faults` the errors of its scripts.
    """
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.asked, page.faults = [], []

    def look(route: Route, request: Request) -> None:
        if request.url.startswith(server.address):
            route.continue_()
        else:
            page.asked.append(request.url)
            route.abort()

    context.route("**/*", look)
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda said: page.faults.append(said.text) if said.type == "error" else None)
    page.goto(server.address)
    return page


def wait_until(page: Page, expression: str) -> None:
    """Wait until an expression is true; the page forbids the eval of wait_for_function."""
    for _ in range(PATIENCE // 50):
        if page.evaluate(f"() => {expression}"):
            return
        page.wait_for_timeout(50)
    raise AssertionError(expression)


def leave(page: Page) -> None:
    """Close the tab, and check for requests to other servers and for script errors."""
    assert page.asked == [] and page.faults == []
    page.context.close()


def drop(page: Page, *paths: Path) -> None:
    page.locator("#files").set_input_files(list(paths))


def find_row(page: Page, name: str, verdict: str = "") -> object:
    """Return the row of a file when it has a verdict."""
    row = page.locator("#results tbody tr").filter(has=page.locator(".open", has_text=name))
    if verdict:
        row.locator("b").filter(has_text=re.compile(verdict)).wait_for()
    return row


def wait_for_phase(page: Page, words: str) -> None:
    """Wait for a phase in the table; the hidden text for screen readers has the same words."""
    page.locator("#results .words").filter(has_text=words).wait_for()


def wait_for_report(page: Page) -> str:
    page.locator("#answer .report h1").wait_for()
    return page.locator("#answer").inner_text()


# One file


def test_verdict_comes_first_then_a_marked_copy_with_clickable_moments(
    browser: Browser, server: Server, tmp_path: Path
) -> None:
    page = visit(browser, server)
    drop(page, FAKE)
    report = wait_for_report(page)
    assert "likely fake" in report.lower() and FAKE.name in report
    find_row(page, FAKE.name, "likely fake")

    video = page.locator("#answer video")
    video.wait_for()
    wait_until(page, "document.querySelector('#answer video').readyState >= 2")
    points = page.locator("#answer [data-seconds]")
    points.last.dispatch_event("click")
    moment = float(points.last.get_attribute("data-seconds"))
    assert video.evaluate("video => video.currentTime") == pytest.approx(moment, abs=0.05)
    wait_until(page, "document.querySelector('#answer video').seeking == false")
    pictures = page.locator("#answer img").all()
    assert pictures and all(one.evaluate("one => one.naturalWidth") for one in pictures)
    assert str(server.folder) not in page.content() and str(Path.home()) not in page.content()

    # The report is one file that works offline as it does on the page.
    with page.expect_download() as download:
        page.get_by_role("link", name="Save the report").click()
    assert download.value.suggested_filename == f"{FAKE.stem}.html"
    path = tmp_path / "report.html"
    download.value.save_as(path)
    alone = browser.new_context(offline=True)
    asked = []
    alone.on("request", lambda request: asked.append(request.url))
    saved = alone.new_page()
    saved.goto(path.as_uri())
    assert "likely fake" in saved.locator("body").inner_text().lower()
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    alone.close()

    with page.expect_download() as download:
        page.get_by_role("link", name="Save the marked copy").click()
    assert download.value.suggested_filename == f"{FAKE.stem}-marked.mp4"
    leave(page)


@pytest.mark.parametrize(
    ("button", "verdict"),
    [pytest.param("real", "likely real", marks=pytest.mark.long), ("fake", "likely fake")],
)
def test_examples_work_with_the_keyboard_alone(
    browser: Browser, server: Server, button: str, verdict: str
) -> None:
    page = visit(browser, server)
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.example") == button:
            break
    page.keyboard.press("Enter")
    assert verdict in wait_for_report(page).lower()
    wait_until(page, "document.activeElement.matches('#answer h1')")  # for a screen reader
    assert page.locator("#said").inner_text() != ""  # and has announced the verdict
    leave(page)


@pytest.mark.long
def test_progress_names_phases_and_never_exceeds_total(browser: Browser, server: Server) -> None:
    page = visit(browser, server)
    page.evaluate(
        """() => {
            window.seen = new Set();
            new MutationObserver(() => document.querySelectorAll('.words').forEach(
                (words) => window.seen.add(words.innerText))).observe(
                document.querySelector('#results'), {subtree: true, childList: true});
        }"""
    )
    drop(page, REAL)
    page.locator("#answer video").wait_for()
    # The page asks for the phase from time to time, and may miss a short one.
    seen = page.evaluate("[...window.seen]")
    later = [words for words in seen if re.search("Drawing the marked copy|Writing", words)]
    assert seen and all("likely real" in words for words in later)  # the verdict comes first
    assert all(int(share) <= 100 for words in seen for share in re.findall(r"(\d+) %", words))
    leave(page)


# Several files


def test_table_of_files_survives_a_reload_and_opens_each_report(
    browser: Browser, server: Server, torn: Path
) -> None:
    page = visit(browser, server)
    drop(page, REAL, torn, FAKE)
    find_row(page, REAL.name, "likely real")
    find_row(page, torn.name, "not checked")
    find_row(page, FAKE.name, "likely fake")
    for name, words in ((FAKE.name, "likely fake"), (REAL.name, "likely real")):
        page.get_by_role("button", name=name, exact=True).click()
        page.locator("#answer .report h1").filter(has_text=name).wait_for()
        assert words in page.locator("#answer").inner_text().lower()
    page.get_by_role("button", name=torn.name, exact=True).click()
    card = page.locator("#answer .problem")
    card.wait_for()
    assert torn.name in card.inner_text() and card.locator("p").count() == 2  # reason and advice

    page.reload()
    page.locator("#results tbody tr").nth(2).wait_for()
    page.get_by_role("button", name=REAL.name, exact=True).click()
    wait_for_report(page)
    page.get_by_role("button", name=f"Remove {REAL.name}").click()
    assert page.locator("#results tbody tr").count() == 2
    assert page.locator("#answer").is_hidden()
    page.get_by_role("button", name="Remove all").click()
    assert page.locator("#results").is_hidden()
    leave(page)


def test_every_dropped_file_has_a_row(browser: Browser, server: Server) -> None:
    page = visit(browser, server)
    page.evaluate(
        """() => {
            const data = new DataTransfer();
            for (const name of ["one.mp4", "two.mp4", "notes.txt"])
                data.items.add(new File(["no video at all"], name));
            document.body.dispatchEvent(
                new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
        }"""
    )
    for name in ("one.mp4", "two.mp4", "notes.txt"):
        find_row(page, name, "not checked")
    leave(page)


@pytest.mark.long
def test_other_files_in_a_folder_are_skipped(
    browser: Browser, server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "clips"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(REAL, folder / "one.mp4")
    shutil.copy(FAKE, folder / "deep" / "two.mp4")
    (folder / "notes.txt").write_text("not media")
    page = visit(browser, server)
    page.locator("#folder").set_input_files(folder)
    find_row(page, "one.mp4", "likely real")
    find_row(page, "two.mp4", "likely fake")
    assert page.locator("#results tbody tr").count() == 2
    assert "1 file was left out" in page.locator("#problems").inner_text()
    leave(page)


@pytest.mark.long
def test_new_file_hides_the_old_report(browser: Browser, server: Server, torn: Path) -> None:
    page = visit(browser, server)
    drop(page, torn)
    page.locator("#answer .problem").wait_for()
    drop(page, REAL)
    assert page.locator("#answer").is_hidden()
    assert REAL.name in wait_for_report(page)
    find_row(page, torn.name, "not checked")
    leave(page)


@pytest.mark.long
def test_x_cancels_second_tab_shows_its_place_and_closed_tab_cancels(
    browser: Browser, server: Server, tmp_path: Path
) -> None:
    endless = write_endless_video(tmp_path / "endless.mp4")
    first, second = visit(browser, server), visit(browser, server)
    drop(first, endless)
    wait_for_phase(first, "Looking for faces")
    drop(second, endless)
    wait_for_phase(second, "Waiting: 1 file before this one")

    first.get_by_role("button", name="Cancel endless.mp4").click()
    assert first.locator("#results").is_hidden()
    wait_for_phase(second, "Looking for faces")
    second.close()  # closing the tab cancels its checks
    drop(first, REAL)
    assert REAL.name in wait_for_report(first)
    first.get_by_role("link", name="Save the report").wait_for()
    assert not list(server.folder.rglob("upload"))
    leave(second)
    leave(first)


# Files that cannot be checked


def test_too_large_file_is_reported_and_not_sent(
    browser: Browser, server: Server, tmp_path: Path
) -> None:
    large = tmp_path / "large.mp4"
    large.write_bytes(bytes(2_100_000))
    page = visit(browser, server)
    drop(page, large, REAL)
    card = page.locator("#problems .problem")
    assert large.name in card.inner_text() and "2 MB" in card.inner_text()
    find_row(page, REAL.name, "likely real")
    assert page.locator("#results tbody tr").count() == 1
    leave(page)


@pytest.mark.parametrize(
    "name", [".png", "..png", "<img src=x onerror=alert(1)>.mp4", "a\u202egnp.mp4", "it's.mp4"]
)
def test_strange_name_is_shown_as_text(
    browser: Browser, server: Server, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(b"no video at all")
    page = visit(browser, server)
    drop(page, path)
    card = page.locator("#answer .problem")
    card.wait_for()
    assert name.replace("\u202e", "_") in card.inner_text()  # it would reverse the text after it
    leave(page)


@pytest.mark.long
def test_stopped_server_is_reported(browser: Browser, tmp_path: Path, torn: Path) -> None:
    with open_page(tmp_path) as server:
        page = visit(browser, server)
        drop(page, write_endless_video(tmp_path / "endless.mp4"))
        wait_for_phase(page, "Looking for faces")
    page.locator("#problems .lost").wait_for()
    page.context.close()


# Accessibility, phones and print


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.long)])
def test_axe_finds_no_faults_in_any_state(
    browser: Browser, server: Server, torn: Path, tmp_path: Path, scheme: str
) -> None:
    page = visit(browser, server, color_scheme=scheme, reduced_motion="reduce")

    def check(state: str, page: Page = page) -> None:
        found = Axe().run(page)
        assert found.violations_count == 0, f"{state}: {found.generate_report()}"

    check("empty")
    drop(page, torn)
    page.locator("#answer .problem").wait_for()
    check("error")
    drop(page, FAKE)
    wait_for_phase(page, "Looking for faces")
    check("at work")
    page.locator("#answer video").wait_for()
    check("report")
    with page.expect_popup() as alone:
        page.get_by_role("link", name="Open the report alone").click()
    alone.value.wait_for_load_state()
    check("report alone", alone.value)
    page.goto(f"{server.address}/card")
    check("card")
    page.context.close()


@pytest.mark.long
def test_page_fits_a_phone(browser: Browser, server: Server, torn: Path) -> None:
    page = visit(browser, server, **PHONE)
    drop(page, torn, FAKE)
    find_row(page, FAKE.name, "likely fake")
    page.get_by_role("button", name=FAKE.name, exact=True).tap()
    page.locator("#answer video").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    cut = """[...document.querySelectorAll('#results *, #answer :is(p, table, td, th, li, figure)')]
        .filter((one) => one.getBoundingClientRect().right > 391).map((one) => one.outerHTML)"""
    assert page.evaluate(cut) == []
    small = "[...document.querySelectorAll('p, li, td, dd, th')]"
    size = f"Math.min(...{small}.map((one) => parseFloat(getComputedStyle(one).fontSize)))"
    assert page.evaluate(size) >= 13
    for button in page.get_by_role("button").all():
        if button.is_visible():
            assert button.bounding_box()["height"] >= 24
    leave(page)


@pytest.mark.long
def test_print_shows_the_report_without_buttons(browser: Browser, server: Server) -> None:
    page = visit(browser, server)
    drop(page, FAKE)
    page.locator("#answer video").wait_for()
    page.emulate_media(media="print")
    assert page.locator("#drop").is_hidden() and page.locator("#answer .buttons").is_hidden()
    assert page.locator("#answer .report h1").is_visible()
    assert page.pdf().startswith(b"%PDF")
    leave(page)


@pytest.mark.long
def test_picture_in_readme_shows_current_numbers() -> None:
    command = [sys.executable, "img/make-pictures.py", "--check"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "likely fake" in ran.stdout
