"""What has outgrown the page of a numbered script: each file says which script uses it."""

import atexit
import gc
import os

# A process ends with all that it has: to look through TensorFlow for garbage takes a second.
atexit.register(gc.freeze)

# Before TensorFlow is loaded, here or in a worker: it is quieter, and a third faster, with faces
# twice as fast, on CPUs that have oneDNN off.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
