"""Load TensorFlow and Keras without their messages; whatever uses them imports this first."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Discard what libraries write to standard error below Python.

    On loading, TensorFlow prints eight lines that no setting turns off (its issue 100442). A
    message about a crash would be lost, too, so Python's fault handler writes to the real one.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    if ours := not faulthandler.is_enabled():
        faulthandler.enable(stderr)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        if ours:
            faulthandler.disable()
        os.close(stderr)


# Settings that the user has for other programs, here or in ~/.keras/keras.json
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.pop("TF_USE_LEGACY_KERAS", None)
with silent_stderr():
    import keras
    import tensorflow  # noqa: F401
keras.config.set_floatx("float32")
keras.config.set_image_data_format("channels_last")
