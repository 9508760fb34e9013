"""The commands of an installed package, which run the numbered scripts that come with it."""

from __future__ import annotations

import runpy

from deepfake_detect.shipped import find_shipped


def detect() -> None:
    """Run the command deepfake-detect, which is 06-detect-deepfake.py."""
    runpy.run_path(str(find_shipped("06-detect-deepfake.py")), run_name="__main__")


def serve() -> None:
    """Run the command deepfake-detect-page, which is 08-web-page.py."""
    runpy.run_path(str(find_shipped("08-web-page.py")), run_name="__main__")


if __name__ == "__main__":
    detect()
