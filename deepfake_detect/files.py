"""Files and folders that are whole or not there, and the list of what the scripts wrote.

    output = files.claim(Path("model"), "--model-dir", __file__)  # an output folder
    output.write("history.csv", table.to_csv)                     # a file, whole or not at all
    output.write_set({"m.onnx": write, "m.json": write_json})     # files that belong together
    output.owns("history.csv")                                    # written by us, and unchanged
    files.write_whole(path, write)                                # a file of no output folder
    with files.replacing(folder, "--split-dir", __file__) as new: # a whole folder in place of one

A file gets a temporary name that nobody else can have, and its own name once it is whole.
Each output folder has a list, `.made-by`: a line for each file that a script wrote, with its size
and SHA-256 (of hard links: its time). A file is replaced or deleted only if the list has exactly
this content under this name, so a list that came with somebody's files gives none of them up, and
a file that was edited since is the user's.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import stat
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import filelock

if TYPE_CHECKING:
    import numpy as np

LIST = ".made-by"  # in an output folder: what the scripts wrote there
UNFINISHED = ".unfinished"  # begins the name of a file or folder that is not whole yet
LEFT_BEHIND = re.compile(r"\.unfinished-[0-9a-f]{32}.*")
LONGEST_WRITE = 3600  # seconds; what was not written to for longer was left by a killed run
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # begin a formula in a spreadsheet
COARSE_TIME = 2 * 10**9  # nanoseconds; FAT keeps a time to two seconds

Write = Callable[[Path], object]  # writes a file of the given path

# --- Any file -------------------------------------------------------------------------------------


def check_plain_file(path: Path) -> None:
    """Refuse anything but a plain file: reading a pipe or a device may never end.

    Raises:
        FileNotFoundError: nothing is there, or a link that leads nowhere
        ValueError: it is a folder, a pipe or a device
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        broken = "is a broken link" if path.is_symlink() else "there is no such file"
        raise FileNotFoundError(broken) from None
    if not stat.S_ISREG(mode):
        raise ValueError("is a folder" if stat.S_ISDIR(mode) else "is a pipe or a device")


def read_image(path: Path) -> np.ndarray:
    """Read an image: BGR uint8 (height, width, 3).

    Raises:
        FileNotFoundError, OSError: it is not there, or cannot be read
        ValueError: it is not a file, or does not decode
    """
    import cv2
    import numpy as np

    check_plain_file(path)
    data = np.frombuffer(path.read_bytes(), np.uint8)
    if not data.size:
        raise ValueError("is an empty file")
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:  # such as for more pixels than OpenCV takes
        raise ValueError(f"does not decode as an image ({error.err or error})") from error
    if image is None:
        raise ValueError("does not decode as an image")
    return image


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def name_unfinished(folder: Path, suffix: str = "") -> Path:
    """Name a file or folder that is not whole yet: a name that nobody else has."""
    return folder / f"{UNFINISHED}-{uuid4().hex}{suffix}"


def write_whole(path: Path, write: Write) -> None:
    """Write a file whole or not at all, in place of the old one.

    This does not ask whose the old one is: in an output folder use Output.write.
    """
    partial = name_unfinished(path.parent, path.suffix)
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Write content as JSON, whole or not at all."""
    text = json.dumps(content, indent=2) + "\n"
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_table(path: Path, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a table as CSV that is safe to open in a spreadsheet; None and NaN are empty cells.

    A text that a spreadsheet would run as a formula gets an apostrophe in front of it, as the Open
    Web Application Security Project advises. A data frame is written by

        write_table(path, table.columns, table.itertuples(index=False))
    """
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(map(make_safe_cell, columns))
        table.writerows(map(make_safe_cell, row) for row in rows)


def make_safe_cell(cell: object) -> object:
    """Return a cell that no spreadsheet takes for a formula."""
    if isinstance(cell, str):
        safe = f"'{cell}" if cell.startswith(FORMULA) else cell
        return safe.replace("\r", "\\r")  # the csv module does not quote it
    missing = cell is None or type(cell).__name__ in ("NAType", "NaTType") or cell != cell
    return "" if missing else cell


# --- An output folder -----------------------------------------------------------------------------


class Output:
    """A folder that scripts write to, with the list of what they wrote there.

    Several processes may use the same folder: lines are only ever added to the list.
    """

    def __init__(self, folder: Path, option: str, script: str | Path) -> None:
        """Read the list of a folder.

        Args:
            folder: need not be there yet
            option: the option that names another folder, for error messages
            script: the file of the script that writes to it
        """
        self.folder, self.option, self.script = folder, option, Path(script).name
        self._records: dict[str, list[dict]] = {}  # by name, see _key
        self._read_to = 0  # bytes of the list that are in _records
        self._reading = threading.Lock()

    def owns(self, name: str, source: Path | str | None = None) -> bool:
        """Return whether a file is as a script wrote it here, and was made from this source.

        Args:
            name: path of the file below the folder
            source: what it was made from; None if it was written without one
        """
        wanted = _digest_of(source)
        return any(record["source"] == wanted for record in self._find(name))

    def wrote(self, name: str, script: str | None = None) -> bool:
        """Return whether a file is as a script (None: any) wrote it here, from whatever source."""
        return any(script in (None, record["script"]) for record in self._find(name))

    def is_free(self, names: Iterable[str], source: Path | str | None = None) -> bool:
        """Return whether files may be written: nothing has their names, or our own of `source`."""
        there = (name for name in names if os.path.lexists(self.folder / name))
        return all(self.owns(name, source) for name in there)

    def check(self, names: Iterable[str], source: Path | str | None = None) -> None:
        """Refuse to replace files that are not ours.

        Raises:
            ValueError: a file of such a name is there, and not as a script wrote it from `source`
        """
        for name in names:
            if not self.is_free([name], source):
                why = "was changed since it was written" if self._named(name) else "is not ours"
                if self.wrote(name):
                    why = "was made from another file"
                raise ValueError(
                    f"{self.folder / name}: it {why}, so it stays as it is; move it away, or name "
                    f"another folder with {self.option}."
                )

    def write(self, name: str, write: Write, source: Path | str | None = None) -> None:
        """Write a file, whole or not at all; an earlier one must be ours and of the same source.

        Raises:
            ValueError: see check
        """
        self.write_set({name: write}, source)

    def write_set(self, writes: Mapping[str, Write], source: Path | str | None = None) -> None:
        """Write files that belong together; see writing.

        Raises:
            ValueError: see check
        """
        with self.writing(list(writes), source) as paths:
            for path, write in zip(paths, writes.values(), strict=True):
                write(path)

    @contextmanager
    def writing(
        self, names: Sequence[str], source: Path | str | None = None
    ) -> Iterator[list[Path]]:
        """Lend a path for each file of a set; at the end of the block all get their names.

        The last one makes the set complete: it is taken away first and comes back last, so that
        after a kill old and new files never look like one set.

        Raises:
            ValueError: see check
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
        """Delete those files that are ours and of this source; others stay."""
        for name in names:
            if self.owns(name, source):
                (self.folder / name).unlink()

    def record_all(self) -> None:
        """List every file below the folder; hard links by size and time, without reading them."""
        paths = sorted(path for path in self.folder.rglob("*") if not path.is_dir())
        names = {path.relative_to(self.folder).as_posix(): path for path in paths}
        names.pop(LIST, None)
        self._record([(name, names[name], names[name].stat().st_nlink == 1) for name in names])

    def find_foreign(self) -> str | None:
        """Find a file below the folder that is not ours: changed, of another, or a link."""
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_symlink() or not (path.is_dir() or name == LIST or self.wrote(name)):
                return name
        return None

    def mark(self) -> None:
        """List the folder as one that the script writes to."""
        self._read()
        if not any(record["script"] == self.script for record in self._records.get("", [])):
            self._add([{"script": self.script, "name": "", "bytes": 0, "source": ""}])

    def is_marked(self) -> bool:
        """Return whether the script has written to this folder before."""
        return any(record["script"] == self.script for record in self._named(""))

    def _named(self, name: str) -> list[dict]:
        self._read()
        return self._records.get(_key(name), [])

    def _find(self, name: str) -> list[dict]:
        """Find the records that describe a file as it is now."""
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
        """List files (name, where it is now, whether to read it) before they get their names."""
        records = []
        for name, path, is_read in files:
            state, is_ours = path.lstat(), {"script": self.script, "name": name}
            known = {"sha256": hash_file(path)} if is_read else {"modified_ns": state.st_mtime_ns}
            records.append(
                is_ours | {"bytes": state.st_size, **known, "source": _digest_of(source)}
            )
        self._add([one for one in records if one not in self._named(one["name"])])

    def _add(self, records: list[dict]) -> None:
        """Add lines to the list: each begins a line of its own, whatever a kill left before it."""
        if not records:
            return
        path = self.folder / LIST
        self._check_list()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        with open(os.open(path, flags, 0o666), "ab") as file:  # noqa: PTH123
            file.write("".join(f"\n{json.dumps(record)}\n" for record in records).encode())

    def _read(self) -> None:
        """Read the lines that were added to the list since the last time."""
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
                f"{path}: this is not the list that scripts write; delete it, or name another "
                f"folder with {self.option}."
            )


def _key(name: str) -> str:
    """Return what names have in common that are one name on some disks: case and accents."""
    return unicodedata.normalize("NFC", name).casefold()


def _digest_of(source: Path | str | None) -> str:
    """Return a short name of a source that does not give away the folders of the machine."""
    if source is None:
        return ""
    path = os.fsencode(os.path.realpath(source))
    return hashlib.sha256(path).hexdigest()[:16]


def _describes(record: dict, state: os.stat_result, digest: str) -> bool:
    """Return whether a record is of a file; of a hard link, another name has the content too."""
    if "sha256" in record:
        return record["sha256"] == digest
    modified = record.get("modified_ns")
    same = isinstance(modified, int) and abs(modified - state.st_mtime_ns) <= COARSE_TIME
    return same or state.st_nlink > 1


def claim(folder: Path, option: str, script: str | Path, shared: bool = False) -> Output:
    """Make an output folder, and begin its list.

    Args:
        folder: made where it is not there
        option: the option that names another folder, for error messages
        script: the file of the script that writes to it
        shared: other files may be in it; otherwise the folder is empty, or was claimed before

    Raises:
        ValueError: it is not a folder, or holds what the script did not make
    """
    output = Output(folder, option, script)
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(f"{folder}: this is not a folder; name another with {option}.")
    folder.mkdir(parents=True, exist_ok=True)
    if not (shared or output.is_marked()):
        with os.scandir(folder) as entries:
            foreign = sorted(entry.name for entry in entries if not entry.name.startswith("."))
        if foreign:
            raise ValueError(
                f"{folder}: it holds {foreign[0]}, which this script did not make; name another "
                f"folder with {option}, or move it away."
            )
    output.mark()
    delete_left_behind(folder, LONGEST_WRITE)
    return output


def delete_left_behind(folder: Path, seconds: float = 0) -> None:
    """Delete what killed runs left unfinished in a folder, if not written to for some seconds."""
    with os.scandir(folder) as entries:
        left = [Path(entry) for entry in entries if LEFT_BEHIND.fullmatch(entry.name)]
    for path in left:
        with suppress(FileNotFoundError):  # another run was faster
            if time.time() - path.lstat().st_mtime >= seconds:
                is_folder = path.is_dir() and not path.is_symlink()
                shutil.rmtree(path) if is_folder else path.unlink()


def delete_folder(folder: Path, doomed: Path) -> None:
    """Delete a folder, renamed first, so that half of it never looks finished; of a link, the link.

    A link leads to where a user has moved the folder.
    """
    folder.rename(doomed)
    doomed.unlink() if doomed.is_symlink() else shutil.rmtree(doomed)


# --- A folder in place of another -----------------------------------------------------------------


@contextmanager
def replacing(folder: Path, option: str, script: str | Path) -> Iterator[Path]:
    """Lend a new folder, which takes the place of the old one at the end of the block.

    Whenever a run is stopped, the folder is old and whole, new and whole, or not there. A link to a
    folder stays a link.

    Raises:
        ValueError: it cannot be written, is in use, or holds what this script did not make
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
                if old.exists() and not folder.exists():  # stopped between the two
                    old.rename(folder)
                for path in (new, old):
                    shutil.rmtree(path, ignore_errors=True)
    except filelock.Timeout as error:
        raise ValueError(f"{folder}: another run is writing to it; wait for its end.") from error
    except OSError as error:
        raise ValueError(f"{folder}: stopped by an error ({error}); run it again.") from error


def check_replaceable(output: Output) -> None:
    """Refuse to replace a folder with anything in it that the script did not make.

    Raises:
        ValueError: it is a file, or holds a file that is not as the script wrote it
    """
    folder, advice = output.folder, f"move it away, or name another with {output.option}."
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(f"{folder}: this is not a folder; {advice}")
    if folder.exists() and (foreign := output.find_foreign()):
        raise ValueError(f"{folder}: it holds {foreign}, which this script did not make; {advice}")
