"""Make the README's picture of the page of 08: the verdict on its own practice video, a fake.

    .venv/bin/python img/make-page-picture.py
    .venv/bin/python img/make-page-picture.py --model model/best_model.keras

Reads   a model, as 06 does; the page of 08-web-page.py, which it opens and closes
Writes  img/page.png
"""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import tyro
from playwright.sync_api import sync_playwright

# --------------------------------------------------------------------------------------------------
# folders
IMG_DIR = Path(__file__).parent  # gets the picture
MODEL = None  # as in 06
# looks
WIDTH = 1000  # pixels, of the window
HEIGHT = 1340  # pixels: down to the marked video
PORT = 7899  # of the page, while it is open
# --------------------------------------------------------------------------------------------------


def main(
    model: Path | None = MODEL,
    img_dir: Path = IMG_DIR,
    width: int = WIDTH,
    height: int = HEIGHT,
    port: int = PORT,
) -> None:
    """Make the README's picture of the page of 08.

    Args:
        model: a model that 04-train-cnn.py wrote; None: as 06 chooses
        img_dir: gets the picture
        width: pixels of the window
        height: pixels of the window
        port: port of the page, while it is open
    """
    script = Path(__file__).resolve().parents[1] / "08-web-page.py"
    command = [sys.executable, script, "--no-open-browser", "--port", port]
    command += ["--model", model] if model else []
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as page:
        try:
            if not any("the page is open" in line for line in page.stdout):
                raise OSError(f"{script.name}: it does not open; its message is above.")
            take_picture(f"http://127.0.0.1:{port}", img_dir / "page.png", width, height)
        finally:
            page.send_signal(signal.SIGTERM)


def take_picture(address: str, path: Path, width: int, height: int) -> None:
    """Click on the fake practice video, wait for the verdict, and take the picture.

    Raises:
        OSError: there is no chromium.
    """
    chromium = shutil.which("chromium")
    if not chromium:
        raise OSError("chromium: there is no such program; install it (apt-get install chromium).")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        window = browser.new_page(viewport={"width": width, "height": height})
        window.set_default_timeout(0)
        window.goto(address)
        window.get_by_role("button", name="A fake one").click()
        window.locator("#answer video").wait_for()
        window.wait_for_function("document.querySelector('#answer video').readyState == 4")
        window.wait_for_timeout(1000)  # the player takes its hourglass away
        window.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0) }")
        window.screenshot(path=path)
        browser.close()


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
