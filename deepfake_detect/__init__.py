"""Check videos and pictures for swapped faces: `from deepfake_detect import Detector`.

The other modules are shared by the numbered scripts: plumbing, data, model, detection, results.
"""

import importlib
import os
from typing import TYPE_CHECKING

# Before TensorFlow is loaded, here or in a worker: it is quieter, and a third faster on CPUs that
# have oneDNN off by default.
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
    """Import a public name at its first use: a training script has no use for detection."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "result" if name in RESULTS else "detector"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
