"""The files that come with the project: the model, the templates, the scripts."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def find_shipped(name: str) -> Path:
    """Return the path of a file or folder that comes with the project.

    Args:
        name: its path from the top of a clone, such as "weights/deepfake-detector.onnx"

    Returns:
        the path in the package, where it is installed, or from the top of the clone
    """
    installed = PACKAGE / name
    return installed if installed.exists() else PACKAGE.parent / name
