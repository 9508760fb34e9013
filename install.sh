#!/bin/sh
# Set up .venv, the Python environment of a clone: sh install.sh WHAT, where WHAT is
#   detect   a verdict on files: 06
#   page     the same, and 08
#   train    the whole pipeline
#   test     the tested versions of everything, the tests and ruff, from requirements.lock
# What an earlier call has installed stays. PYTHON=python3.12 takes another Python, VENV another folder.
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
    *) echo "install.sh: there is no $what; take detect, page, train or test." >&2; exit 2 ;;
esac

fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; }

# An environment of an older Python, or of one that is gone, is of no use to anybody.
if ! fits "$python"; then
    base=${PYTHON:-python3}
    if ! fits "$base"; then
        version=$("$base" -V 2> /dev/null || echo "not there")
        echo "DeepFake-Detect needs Python 3.11 or newer, and $base is $version;" \
            "name another: PYTHON=python3.12 make ..." >&2
        exit 1
    fi
    "$base" -m venv --clear "$venv"
fi

stamp=$venv/installed-$what
if [ ! -e "$stamp" ] || [ -n "$(find pyproject.toml requirements.lock -newer "$stamp")" ]; then
    "$python" -m pip --version > /dev/null 2>&1 || "$python" -m ensurepip
    if [ "$what" = test ]; then # uv takes a third of the time
        "$python" -m pip install --disable-pip-version-check --quiet uv
        "$python" -m uv pip install --python "$python" --require-hashes --requirement requirements.lock
    else
        "$python" -m pip install --disable-pip-version-check --editable ".[$extras]"
    fi
    touch "$stamp"
fi
