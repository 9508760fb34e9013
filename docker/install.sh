#!/bin/sh
# Install detection and the page into a new environment: sh docker/install.sh FOLDER [WHEEL]
# The Dockerfile and tests/test_package.py run this script. It needs uv (pip install uv). Without a wheel, it
# installs the clone. requirements.lock gives the versions and hashes. PYTHON=python3.12 selects another Python.
set -eu
folder=$1
clone=$(cd "$(dirname "$0")/.." && pwd)
package=${2:-$clone}

uv venv --quiet --python "${PYTHON:-python3}" "$folder"
uv pip install --quiet --python "$folder" --constraint "$clone/requirements.lock" \
    "deepfake-detect[page,provenance] @ file://$package"
# 30 MB that only linking against the library needs.
find "$folder" -name '*.rlib' -delete
