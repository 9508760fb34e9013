#!/bin/sh
# Install detection and the page into a folder of their own: sh docker/install.sh FOLDER [WHEEL]
# The Dockerfile and tests/test_package.py run this. Without a wheel it takes the clone. The versions are
# the tested ones of requirements.lock. PYTHON=python3.12 takes another Python.
set -eu
folder=$1
clone=$(cd "$(dirname "$0")/.." && pwd)
package=${2:-$clone}

"${PYTHON:-python3}" -m venv --clear "$folder"
sed -n 's/^\([A-Za-z0-9].*==.*[^ ]\) *\\$/\1/p' "$clone/requirements.lock" > "$folder/constraints.txt"
"$folder/bin/python" -m pip install --disable-pip-version-check --quiet \
    --constraint "$folder/constraints.txt" "$package[page,provenance]"
# For linking against the library, which nobody here does: 30 MB.
find "$folder" -name '*.rlib' -delete
