#!/bin/sh
# Set up .venv, the Python environment of a clone: sh install.sh WHAT, where WHAT is
#   detect   detection: 06
#   page     detection and the page: 06 and 08
#   train    the pipeline: 00 to 07
#   test     everything, the tests and ruff, in the tested versions of requirements.lock
# Packages from earlier calls stay. PYTHON=python3.12 selects another Python, VENV another folder.
set -eu
cd "$(dirname "$0")"
what=${1:-detect}
venv=${VENV:-.venv}
python=$venv/bin/python
case $what in
    detect) extras=provenance ;;
    page) extras=provenance,page ;;
    train) extras=train ;;
    test) extras= ;;
    *) echo "install.sh: $what is not an option; use detect, page, train or test." >&2; exit 2 ;;
esac

fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; }

# Replace an environment whose Python is too old or was removed.
if ! fits "$python"; then
    base=${PYTHON:-python3}
    if ! fits "$base"; then
        version=$("$base" -V 2> /dev/null || echo "not installed")
        echo "DeepFake-Detect needs Python 3.11 or newer, and $base is $version;" \
            "select another: PYTHON=python3.12 make ..." >&2
        exit 1
    fi
    "$base" -m venv --clear "$venv"
fi

stamp=$venv/installed-$what
if [ ! -e "$stamp" ] || [ -n "$(find pyproject.toml requirements.lock -newer "$stamp")" ]; then
    "$python" -m pip --version > /dev/null 2>&1 || "$python" -m ensurepip
    pip() { "$python" -m pip "$@" --disable-pip-version-check; }
    uv() { "$python" -m uv pip install --python "$python" "$@"; } # less than half of pip's time
    if [ "$what" = test ]; then
        pip install --quiet uv && uv --require-hashes --requirement requirements.lock
    else # pip knows a mirror in pip's settings; uv does not
        { pip install --quiet uv && uv --editable ".[$extras]"; } || pip install --editable ".[$extras]"
    fi || {
        echo "install.sh: the packages are not complete, see above; check the internet connection" \
            "and run the same command again." >&2
        exit 1
    }
    touch "$stamp"
fi
