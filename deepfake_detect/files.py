"""Files and folders that are whole or not there, however a run ends; every script uses this.

A video's folder of 01 and 02 is begun in the folder of the run, and renamed when all is in it. The
folders of 03 are made anew, and each takes the place of the old one. Only what a script made itself
is ever deleted: what a user has put there, or has moved elsewhere and linked, stays.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import filelock
import pandas as pd

UNFINISHED = ".unfinished"  # in the output folder: what a run has begun, until it is complete

# --- Any file and folder --------------------------------------------------------------------------


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all: under a temporary name beside it, then renamed."""
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    partial.unlink(missing_ok=True)  # a link planted there would be followed
    write(partial)
    partial.replace(path)


def claim_folder(folder: Path, option: str, script: str) -> None:
    """Make an output folder and mark it as a script's; refuse one that holds anything else.

    Args:
        folder: made where it is not there
        option: that names another folder, for the sentence of a refusal
        script: the file name of the script that writes to it

    Raises:
        ValueError: the folder holds what the script did not make.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / ".made-by"
    if mark.is_file() and mark.read_text(encoding="utf-8", errors="replace").strip() == script:
        return
    if foreign := sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")):
        raise ValueError(
            f"{folder}: it holds {foreign[0]}, which this script did not make; name another folder "
            f"with {option}, or move it away."
        )
    write_whole(mark, lambda partial: partial.write_text(f"{script}\n"))


# --- Folders of videos ----------------------------------------------------------------------------


@contextmanager
def open_run(folder: Path, scheduler: str | None, part: str | None) -> Iterator[Path]:
    """Make the folder of a run for what it has begun: empty at first, and gone in the end.

    What a killed run has left is deleted, but not by a part: others may be at work beside it.
    """
    alone = folder.absolute() / UNFINISHED
    if not part:
        for left in folder.glob(f"{UNFINISHED}*"):  # renamed, no worker writes to it any more
            delete_folder(left, alone.with_name(f"{UNFINISHED}-{uuid4().hex}"))
    run = alone.with_name(f"{UNFINISHED}-{uuid4().hex}") if scheduler or part else alone
    run.mkdir()
    try:
        yield run
    finally:
        shutil.rmtree(run, ignore_errors=True)


def delete_folder(folder: Path, doomed: Path) -> None:
    """Delete a folder, renamed first, so that half of it never looks finished; of a link, the link.

    A link leads to where a user has moved the folder.
    """
    folder.rename(doomed)
    doomed.unlink() if doomed.is_symlink() else shutil.rmtree(doomed)


# --- A folder made anew ---------------------------------------------------------------------------


@contextmanager
def replacing(folder: Path, option: str) -> Iterator[Path]:
    """Lend the name of a new folder, which takes the place of the old one at the end of the block.

    Whenever a run is stopped, the folder is old and whole, new and whole, or not there. A link to a
    folder stays a link.

    Raises:
        ValueError: it cannot be written, is in use, or holds what this script did not make
    """
    folder = folder.resolve()
    new, old = (folder.with_name(f"{folder.name}.{end}") for end in ("partial", "replaced.partial"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
            for each in (folder, new, old):
                check_own_folder(each, option)
            delete_own_folder(new)
            delete_own_folder(old)
            yield new
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
            delete_own_folder(old)
    except filelock.Timeout as error:
        raise ValueError(f"{folder}: another run is writing to it; wait for its end.") from error
    except OSError as error:
        raise ValueError(f"{folder}: stopped by an error ({error}); run it again.") from error


def check_own_folder(folder: Path, option: str) -> None:
    """Refuse to replace a folder with anything in it that this script did not make.

    Raises:
        ValueError: it is a file, or holds a file that its own table does not name
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: this is no folder; name another with {option}.")
    own = set()
    if (folder / ".made-by").is_file():
        own |= {".made-by", "crop-rule.json", "crops.csv"}
        with suppress(ValueError, LookupError, OSError):  # there is none, or it was edited by hand
            own |= set(pd.read_csv(folder / "crops.csv", dtype=str)["crop"])
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix().removeprefix("waiting/")
        if name not in own and (path.is_symlink() or not path.is_dir()):
            why = f"it holds {name}, which this script did not make"
            raise ValueError(f"{folder}: {why}; move it away, or name another with {option}.")


def delete_own_folder(folder: Path) -> None:
    """Delete a folder of ours, the mark last: a deletion that is interrupted can go on."""
    if folder.exists():
        for path in sorted(folder.iterdir(), reverse=True):  # waiting, train, ..., .made-by
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        folder.rmdir()
