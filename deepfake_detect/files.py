"""Write files and folders atomically, and record which files the scripts wrote.

    output = files.claim(Path("model"), "--model-dir", __file__)  # an output folder
    output.write("history.csv", table.to_csv)                     # one file, atomically
    output.write_set({"m.onnx": write, "m.json": write_json})     # files that belong together
    output.owns("history.csv")                                    # True: written by us, unchanged
    files.write_whole(path, write)                                # a file outside output folders
    with files.replacing(folder, "--split-dir", __file__) as new: # replace a whole folder

A file is written under a unique temporary name and renamed when it is complete. Each output folder
has a list, `.made-by`, with one line per file that a script wrote: its size and SHA-256 (for hard
links, its modification time). A file is replaced or deleted only if the list has exactly this name
and content. Files of the user are therefore safe, even if a list was copied with them, and so is an
output that was edited.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import threading
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING
from uuid import uuid4

import filelock

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

LIST = ".made-by"  # in an output folder: the list of the files that the scripts wrote
UNFINISHED = ".unfinished"  # start of the names of unfinished files and folders
LEFT_BEHIND = re.compile(r"\.unfinished-[0-9a-f]{32}.*")
LONGEST_WRITE = 3600  # seconds; an unfinished file unchanged for longer is from a killed run
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # first characters of a formula in a spreadsheet
COARSE_TIME = 2 * 10**9  # nanoseconds; FAT rounds times to two seconds

Write = Callable[[Path], object]  # writes the file at the given path

# --- Any file -------------------------------------------------------------------------------------


def check_plain_file(path: Path) -> None:
    """Check that a path is a plain file: reading a pipe or a device may never end.

    Raises:
        FileNotFoundError: the path does not exist, or is a broken link
        ValueError: the path is a folder, a pipe or a device
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        broken = "is a broken link" if path.is_symlink() else "does not exist"
        raise FileNotFoundError(broken) from None
    if not stat.S_ISREG(mode):
        raise ValueError("is a folder" if stat.S_ISDIR(mode) else "is a pipe or a device")


def read_image(path: Path) -> np.ndarray:
    """Read an image: BGR uint8 (height, width, 3).

    Raises:
        FileNotFoundError, OSError: the file does not exist or cannot be read
        ValueError: the path is not a file, or its content does not decode
    """
    import cv2
    import numpy as np

    check_plain_file(path)
    data = np.frombuffer(path.read_bytes(), np.uint8)
    if not data.size:
        raise ValueError("is an empty file")
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:  # for example, too many pixels for OpenCV
        raise ValueError(f"does not decode as an image ({error.err or error})") from error
    if image is None:
        raise ValueError("does not decode as an image")
    return image


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def name_unfinished(folder: Path, suffix: str = "") -> Path:
    """Return a unique temporary name for an unfinished file or folder."""
    return folder / f"{UNFINISHED}-{uuid4().hex}{suffix}"


def write_whole(path: Path, write: Write) -> None:
    """Write a file atomically, replacing an existing one.

    This does not check whether the existing file is ours; in an output folder, use Output.write.
    """
    partial = name_unfinished(path.parent, path.suffix)
    try:
        with naming(path):
            write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a file in the error of a full disk or a file size limit; Python leaves the name out."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_json(path: Path, content: object) -> None:
    """Write content as a JSON file, atomically."""
    text = json.dumps(content, indent=2) + "\n"
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_table(path: Path, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a table as CSV that is safe to open in a spreadsheet; None and NaN are empty cells.

    Text that a spreadsheet would run as a formula is prefixed with an apostrophe, as the Open Web
    Application Security Project recommends. For a data frame:

        write_table(path, table.columns, table.itertuples(index=False))
    """
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(map(make_safe_cell, columns))
        table.writerows(map(make_safe_cell, row) for row in rows)


def make_safe_cell(cell: object) -> object:
    """Return a cell that a spreadsheet does not run as a formula."""
    if isinstance(cell, str):
        safe = f"'{cell}" if cell.startswith(FORMULA) else cell
        return safe.replace("\r", "\\r")  # the csv module does not quote \r
    missing = cell is None or type(cell).__name__ in ("NAType", "NaTType") or cell != cell
    return "" if missing else cell


def check_model_path(path: Path) -> None:
    """Check that the file of a model exists.

    Raises:
        FileNotFoundError: it does not, or is not a file
    """
    if not path.is_file():
        fault = "is not a file" if path.exists() else "does not exist"
        raise FileNotFoundError(
            f"{path}: the model {fault}; train one with 04-train-cnn.py, or name another."
        )


def read_table(source: Path | IO) -> pd.DataFrame:
    """Read a CSV table, all cells as text; missing cells are empty.

    Raises:
        OSError: the file cannot be read
        ValueError: the content is not a table, or a row has more cells than the header
    """
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            table = pd.read_csv(source, dtype=str, keep_default_na=False, index_col=False)
        except pd.errors.ParserWarning as warning:
            raise ValueError("a row has more cells than the header") from warning
    return table.fillna("")


# --- An output folder -----------------------------------------------------------------------------


class Output:
    """A folder that scripts write to, with a list of the files they wrote.

    Several processes may use the same folder, as lines are only appended to the list.
    """

    def __init__(self, folder: Path, option: str, script: str | Path) -> None:
        """Read the list of a folder.

        Args:
            folder: need not exist yet
            option: the option that sets this folder, for error messages
            script: path of the script that writes to the folder
        """
        self.folder, self.option, self.script = folder, option, Path(script).name
        self._records: dict[str, list[dict]] = {}  # by name, see _key
        self._read_to = 0  # bytes of the list read into _records so far
        self._reading = threading.Lock()

    def owns(self, name: str, source: Path | str | None = None) -> bool:
        """Return True if a script wrote this file from this source, and it has not changed.

        Args:
            name: path of the file below the folder
            source: the file it was made from; None if it was written without a source
        """
        wanted = _digest_of(source)
        return any(record["source"] == wanted for record in self._find(name))

    def wrote(self, name: str, script: str | None = None) -> bool:
        """Return True if a script (None: any) wrote this file from any source, unchanged."""
        return any(script in (None, record["script"]) for record in self._find(name))

    def is_free(self, names: Iterable[str], source: Path | str | None = None) -> bool:
        """Return True if the names are free, or taken by our own files made from `source`."""
        there = (name for name in names if os.path.lexists(self.folder / name))
        return all(self.owns(name, source) for name in there)

    def check(self, names: Iterable[str], source: Path | str | None = None) -> None:
        """Check that files may be written, see is_free.

        Raises:
            ValueError: a name is taken by a file that a script did not write from `source`
        """
        for name in names:
            if not self.is_free([name], source):
                why = "was changed since it was written" if self._named(name) else "is not ours"
                if self.wrote(name):
                    why = "was made from another file"
                raise ValueError(
                    f"{self.folder / name}: the file {why}, so it is not replaced; move it "
                    f"elsewhere, or name another folder with {self.option}."
                )

    def write(self, name: str, write: Write, source: Path | str | None = None) -> None:
        """Write a file atomically; an existing one must be ours, made from the same source.

        Raises:
            ValueError: the file may not be replaced, see check
        """
        self.write_set({name: write}, source)

    def write_set(self, writes: Mapping[str, Write], source: Path | str | None = None) -> None:
        """Write files that belong together, see writing.

        Raises:
            ValueError: a file may not be replaced, see check
        """
        with self.writing(list(writes), source) as paths:
            for (name, write), path in zip(writes.items(), paths, strict=True):
                with naming(self.folder / name):
                    write(path)

    @contextmanager
    def writing(
        self, names: Sequence[str], source: Path | str | None = None
    ) -> Iterator[list[Path]]:
        """Yield a temporary path per file of a set; the files are renamed at the end of the block.

        The last file marks the set as complete: it is deleted first and written last, so that old
        and new files never look like one set after a kill.

        Raises:
            ValueError: a file may not be replaced, see check
        """
        self.check(names, source)
        paths = []
        try:
            for name in names:
                final = self.folder / name
                final.parent.mkdir(parents=True, exist_ok=True)
                paths.append(name_unfinished(final.parent, final.suffix))
            yield paths
            self._record(
                [(name, path, True) for name, path in zip(names, paths, strict=True)], source
            )
            if len(names) > 1:
                (self.folder / names[-1]).unlink(missing_ok=True)
            for name, path in zip(names, paths, strict=True):
                path.replace(self.folder / name)
        finally:
            for path in paths:
                path.unlink(missing_ok=True)

    def delete(self, names: Iterable[str], source: Path | str | None = None) -> None:
        """Delete the files that are ours and made from this source; keep others."""
        for name in names:
            if self.owns(name, source):
                (self.folder / name).unlink()

    def record_all(self) -> None:
        """Add every file below the folder to the list; hard links by size and time, unread."""
        paths = sorted(path for path in self.folder.rglob("*") if not path.is_dir())
        names = {path.relative_to(self.folder).as_posix(): path for path in paths}
        names.pop(LIST, None)
        self._record([(name, names[name], names[name].stat().st_nlink == 1) for name in names])

    def find_foreign(self) -> str | None:
        """Return the name of a file that is not ours, was changed or is a link; else None."""
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_symlink() or not (path.is_dir() or name == LIST or self.wrote(name)):
                return name
        return None

    def mark(self) -> None:
        """Record in the list that the script writes to this folder."""
        self._read()
        if not any(record["script"] == self.script for record in self._records.get("", [])):
            self._add([{"script": self.script, "name": "", "bytes": 0, "source": ""}])

    def is_marked(self) -> bool:
        """Return True if the script has written to this folder before."""
        return any(record["script"] == self.script for record in self._named(""))

    def _named(self, name: str) -> list[dict]:
        self._read()
        return self._records.get(_key(name), [])

    def _find(self, name: str) -> list[dict]:
        """Return the records that match the current content of a file."""
        records, path = self._named(name), self.folder / name
        with suppress(OSError):
            state = path.lstat() if records else None
            if state and stat.S_ISREG(state.st_mode):
                records = [one for one in records if one["bytes"] == state.st_size]
                digest = hash_file(path) if any("sha256" in one for one in records) else ""
                return [one for one in records if _describes(one, state, digest)]
        return []

    def _record(
        self, files: Iterable[tuple[str, Path, bool]], source: Path | str | None = None
    ) -> None:
        """Add files (name, current path, whether to hash it) to the list, before renaming them."""
        records = []
        for name, path, is_read in files:
            state, is_ours = path.lstat(), {"script": self.script, "name": name}
            known = {"sha256": hash_file(path)} if is_read else {"modified_ns": state.st_mtime_ns}
            records.append(
                is_ours | {"bytes": state.st_size, **known, "source": _digest_of(source)}
            )
        self._add([one for one in records if one not in self._named(one["name"])])

    def _add(self, records: list[dict]) -> None:
        """Append lines to the list; start on a new line, as a kill may have left a partial one."""
        if not records:
            return
        path = self.folder / LIST
        self._check_list()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        with naming(path), open(os.open(path, flags, 0o666), "ab") as file:  # noqa: PTH123
            file.write("".join(f"\n{json.dumps(record)}\n" for record in records).encode())

    def _read(self) -> None:
        """Read the lines added to the list since the last call."""
        self._check_list()
        with self._reading:
            try:
                with (self.folder / LIST).open("rb") as file:
                    file.seek(self._read_to)
                    whole, end, _ = file.read().rpartition(b"\n")
            except FileNotFoundError:
                self._records, self._read_to = {}, 0
                return
            self._read_to += len(whole + end)
            for line in whole.split(b"\n"):
                with suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
                    record = json.loads(line)
                    key = _key(record["name"])
                    if isinstance(record["script"], str) and {"bytes", "source"} <= set(record):
                        self._records.setdefault(key, []).append(record)

    def _check_list(self) -> None:
        path = self.folder / LIST
        if os.path.lexists(path) and not (path.is_file() and not path.is_symlink()):
            raise ValueError(
                f"{path}: this is not a list that a script wrote; delete it, or name another "
                f"folder with {self.option}."
            )


def _key(name: str) -> str:
    """Return a key that is equal for names that some disks treat as equal (case, accents)."""
    return unicodedata.normalize("NFC", name).casefold()


def _digest_of(source: Path | str | None) -> str:
    """Return a short hash of the path of a source; the list must not reveal folder names."""
    if source is None:
        return ""
    path = os.fsencode(os.path.realpath(source))
    return hashlib.sha256(path).hexdigest()[:16]


def _describes(record: dict, state: os.stat_result, digest: str) -> bool:
    """Return True if a record matches a file; the content of a hard link may be used elsewhere."""
    if "sha256" in record:
        return record["sha256"] == digest
    modified = record.get("modified_ns")
    same = isinstance(modified, int) and abs(modified - state.st_mtime_ns) <= COARSE_TIME
    return same or state.st_nlink > 1


def claim(folder: Path, option: str, script: str | Path, shared: bool = False) -> Output:
    """Create an output folder and its list.

    Args:
        folder: created if it does not exist
        option: the option that sets this folder, for error messages
        script: path of the script that writes to the folder
        shared: the folder may hold other files; otherwise it must be empty or claimed before

    Raises:
        ValueError: the path is not a folder, or the folder holds files that are not ours
    """
    output = Output(folder, option, script)
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(f"{folder}: this is not a folder; name another one with {option}.")
    folder.mkdir(parents=True, exist_ok=True)
    if not (shared or output.is_marked()):
        with os.scandir(folder) as entries:
            foreign = sorted(entry.name for entry in entries if not entry.name.startswith("."))
        if foreign:
            raise ValueError(
                f"{folder}: {foreign[0]} was not created by this script; name another folder "
                f"with {option}, or move it elsewhere."
            )
    output.mark()
    delete_left_behind(folder, LONGEST_WRITE)
    return output


def delete_left_behind(folder: Path, seconds: float = 0) -> None:
    """Delete unfinished files of killed runs that did not change for `seconds`."""
    with os.scandir(folder) as entries:
        left = [Path(entry) for entry in entries if LEFT_BEHIND.fullmatch(entry.name)]
    for path in left:
        with suppress(FileNotFoundError):  # another run deleted it first
            if time.time() - path.lstat().st_mtime >= seconds:
                is_folder = path.is_dir() and not path.is_symlink()
                shutil.rmtree(path) if is_folder else path.unlink()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock an output folder for one run, and delete the unfinished files of killed runs.

    Raises:
        filelock.Timeout: another run is using the folder
    """
    with filelock.FileLock(folder / ".lock", timeout=0):
        delete_left_behind(folder)
        yield


def delete_folder(folder: Path, doomed: Path) -> None:
    """Delete a folder; rename it to `doomed` first, so that half of it never looks complete.

    For a link, delete only the link: the user may have moved the folder to another disk.
    """
    folder.rename(doomed)
    doomed.unlink() if doomed.is_symlink() else shutil.rmtree(doomed)


# --- Replacing a folder ---------------------------------------------------------------------------


@contextmanager
def replacing(folder: Path, option: str, script: str | Path) -> Iterator[Path]:
    """Yield a new folder, which replaces the old one at the end of the block.

    If a run is killed, the folder is the complete old one, the complete new one, or missing. A link
    to a folder stays a link.

    Raises:
        ValueError: the folder cannot be written, is in use, or holds files that are not ours
    """
    folder = folder.resolve()
    kept = re.compile(re.escape(f".{folder.name}{UNFINISHED}-") + "[0-9a-f]{32}")
    new, old = (folder.with_name(f".{folder.name}{UNFINISHED}-{uuid4().hex}") for _ in range(2))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
            check_replaceable(Output(folder, option, script))
            for left in [path for path in folder.parent.iterdir() if kept.fullmatch(path.name)]:
                shutil.rmtree(left)
            new.mkdir()
            output = Output(new, option, script)
            try:
                output.mark()
                yield new
                output.record_all()
                if folder.exists():
                    folder.rename(old)
                new.rename(folder)
            finally:
                if old.exists() and not folder.exists():  # stopped between the two renames
                    old.rename(folder)
                for path in (new, old):
                    shutil.rmtree(path, ignore_errors=True)
    except filelock.Timeout as error:
        raise ValueError(
            f"{folder}: another run is using this folder; wait for it to finish."
        ) from error
    except OSError as error:
        raise ValueError(f"{folder}: stopped by an error ({error}); run it again.") from error


def check_replaceable(output: Output) -> None:
    """Check that a folder holds only files that a script wrote.

    Raises:
        ValueError: the path is a file, or the folder holds other or changed files
    """
    folder = output.folder
    advice = f"move it elsewhere, or name another folder with {output.option}."
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(f"{folder}: this is not a folder; {advice}")
    if folder.exists() and (foreign := output.find_foreign()):
        raise ValueError(f"{folder}: {foreign} was not created by this script; {advice}")
