#!/bin/sh
# Install detection and the page into a folder of their own: sh docker/install.sh FOLDER [WHEEL]
# The Dockerfile and tests/test_package.py run this; it needs uv (pip install uv). Without a wheel it takes
# the clone. Versions and hashes are those of requirements.lock. PYTHON=python3.12 takes another Python.
set -eu
folder=$1
clone=$(cd "$(dirname "$0")/.." && pwd)
package=${2:-$clone}

uv venv --quiet --python "${PYTHON:-python3}" "$folder"
uv pip install --quiet --python "$folder" --constraint "$clone/requirements.lock" \
    "deepfake-detect[page,provenance] @ file://$package"
# For linking against the library, which nobody here does: 30 MB.
find "$folder" -name '*.rlib' -delete
