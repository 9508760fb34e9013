"""Find the files included with the project: the model, the templates, the scripts."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def find_shipped(name: str) -> Path:
    """Return the path of a file or folder included with the project.

    Args:
        name: path relative to the root of a clone, such as "weights/deepfake-detector.onnx"

    Returns:
        the path inside the installed package, or inside the clone
    """
    installed = PACKAGE / name
    return installed if installed.exists() else PACKAGE.parent / name
