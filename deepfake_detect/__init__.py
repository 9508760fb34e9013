"""Code shared by the numbered scripts: plumbing, data, model, detection, results."""

import os

# Before TensorFlow is loaded, here or in a worker: it is quieter, and a third faster on CPUs that
# have oneDNN off by default.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
