"""Load TensorFlow and Keras, sooner and without a word; scripts 02 and 04 to 08 load this first."""

from __future__ import annotations

import faulthandler
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def without_stderr() -> Iterator[None]:
    """Keep what libraries write to standard error, below Python, from the user.

    On being loaded, TensorFlow tells of itself in eight lines, and no setting keeps it from that
    (its issue 100442). What it says of a fault is lost as well, so Python says where that was.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # there is none
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


# Keras imports both where they are installed, for what is not used here: 0.8 s of every start.
UNUSED = {"matplotlib", "sklearn"} - set(sys.modules)
sys.modules |= dict.fromkeys(UNUSED)
# All that is loaded stays: to look through it for garbage takes 0.4 s, and some again later.
collecting = gc.isenabled()
gc.disable()
with without_stderr():
    import keras  # noqa: F401
    import tensorflow  # noqa: F401
gc.freeze()
if collecting:
    gc.enable()
for name in UNUSED:
    del sys.modules[name]
