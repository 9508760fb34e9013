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
case $what in
    detect) packages='--editable .[provenance]' ;;
    page) packages='--editable .[provenance,page]' ;;
    train) packages='--editable .[train]' ;;
    test) packages='--require-hashes --requirement requirements.lock' ;;
    *) echo "install.sh: there is no $what; take detect, page, train or test." >&2; exit 2 ;;
esac

fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; }

# An environment of an older Python, or of one that is gone, is of no use to anybody.
if ! fits "$venv/bin/python"; then
    python=${PYTHON:-python3}
    if ! fits "$python"; then
        echo "DeepFake-Detect needs Python 3.11 or newer, and $python is" \
            "$("$python" -V 2> /dev/null || echo 'not there'); name another: PYTHON=python3.12 make ..." >&2
        exit 1
    fi
    "$python" -m venv --clear "$venv"
fi

stamp=$venv/installed-$what
if [ ! -e "$stamp" ] || [ -n "$(find pyproject.toml requirements.lock -newer "$stamp")" ]; then
    "$venv/bin/python" -m pip --version > /dev/null 2>&1 || "$venv/bin/python" -m ensurepip
    # shellcheck disable=SC2086  # several words on purpose
    "$venv/bin/python" -m pip install --disable-pip-version-check $packages
    touch "$stamp"
fi
