"""Check videos and pictures for swapped faces: `from deepfake_detect import Detector`.

The other modules are the code shared by the numbered scripts.
"""

import importlib
import os
from typing import TYPE_CHECKING

# Set before TensorFlow is loaded, here or in a worker: no log output, and a third faster on CPUs
# where oneDNN is off by default.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

if TYPE_CHECKING:
    from deepfake_detect.detector import (
        CancelledError,
        DetectionError,
        DetectionSettings,
        Detector,
        ModelError,
        SourceChangedError,
        SourceNotFoundError,
        SourceTooLargeError,
        SourceUnreadableError,
    )
    from deepfake_detect.result import Face, Failure, Part, Result, Track

__version__ = "1.0.0"
__all__ = [
    "CancelledError",
    "DetectionError",
    "DetectionSettings",
    "Detector",
    "Face",
    "Failure",
    "ModelError",
    "Part",
    "Result",
    "SourceChangedError",
    "SourceNotFoundError",
    "SourceTooLargeError",
    "SourceUnreadableError",
    "Track",
    "__version__",
]
RESULTS = ("Face", "Failure", "Part", "Result", "Track")


def __getattr__(name: str) -> object:
    """Import a public name on first use, as training scripts do not need the detection code."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "result" if name in RESULTS else "detector"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
