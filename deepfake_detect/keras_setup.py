"""Import TensorFlow and Keras without log output; import this module before either of them."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Discard the output of native code to standard error.

    On import, TensorFlow prints eight lines that cannot be turned off (TensorFlow issue 100442).
    Python's fault handler keeps the real standard error, so that a crash is still reported.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # the process does not have a standard error
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


# Override settings for other programs in the environment and in ~/.keras/keras.json.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.pop("TF_USE_LEGACY_KERAS", None)
with silent_stderr():
    import keras
    import tensorflow  # noqa: F401
keras.config.set_floatx("float32")
keras.config.set_image_data_format("channels_last")
