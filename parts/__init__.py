"""What has outgrown the page of a numbered script: each file says which script uses it."""

import atexit
import gc

# A process ends with all that it has: to look through TensorFlow for garbage takes a second.
atexit.register(gc.freeze)
