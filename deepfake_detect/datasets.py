"""Find the videos below videos/, and describe each one; 01 uses this.

The data sets are recognised by their own folder and file names, or by the lists that come with
them. What they look like is written in data-sets.toml: this module reads it, walks through the
folder and gives each video a description and a video_id. No file is decoded for that.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import stat
import string
import threading
import tomllib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha1
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pandas as pd

from deepfake_detect import cli

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")
COMPANION_SUFFIXES = (".json", ".csv", ".txt", ".md", ".pdf", ".py")  # beside videos, not videos
LARGEST_LIST = 100_000_000  # bytes, some million videos; a larger file would fill the memory
LONGEST_ID = 80  # characters, so that names of crops stay below the 255 that disks allow
ROWS = {  # what the rows of data-sets.toml must have
    "left_out": "folder reason",
    "videos": "dataset folder name label method identities id example",
    "lists": "dataset file label real fake method identities id",
    "splits": "dataset file split",
}
SPLITS = ("train", "val", "test")
LONGEST_MATCH = 5  # seconds; some expressions take years on some names
DESCRIPTION = ["dataset", "label", "method", "compression", "identities", "official_split"]
Row = dict[str, Any]  # a row of data-sets.toml
Description = dict[str, str]  # the columns of DESCRIPTION, and `prefix`, the start of the video_id


def read_data_sets(path: Path) -> tuple[list[Row], dict[str, Row]]:
    """Read what the data sets look like on disk; the file itself explains its rows.

    Returns:
        The rows for videos, and those for lists by the name of the list in lower case.

    Raises:
        ValueError: the file is not such a table.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        if unknown := set(table) - set(ROWS):
            raise ValueError(f"[[{min(unknown)}]] is not one of {', '.join(ROWS)}")
        for kind in ROWS:
            for number, row in enumerate(table.setdefault(kind, []), 1):
                try:
                    check_row(kind, row)
                except (ValueError, re.error) as error:
                    raise ValueError(f"row {number} of [[{kind}]]: {error}") from error
        lists = {row["file"].lower(): row for row in table["lists"] + table["splits"]}
    except RecursionError as error:
        raise ValueError(f"{path}: it is nested too deeply.") from error
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}; correct it, or give another --data-sets.") from error
    return table["left_out"] + table["videos"], lists


def check_row(kind: str, row: Row) -> None:
    """Check a row of data-sets.toml: its columns are there and say what they may say.

    Raises:
        ValueError, re.error: one does not
    """
    if not isinstance(row, dict):
        raise ValueError("it is not a table")
    if missing := set(ROWS[kind].split()) - set(row):
        raise ValueError(f"it has no {min(missing)}")
    for column, value in row.items():
        is_list = column == "methods" or (column == "identities" and kind == "lists")
        texts = value if is_list else [value]
        if not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
            wanted = "a list of texts" if is_list else "a text"
            raise ValueError(f"{column} is {value!r:.50}; give {wanted}")
        if not is_list and not value and column != "others":
            raise ValueError(f"{column} is empty")
    allowed = {"label": ("real", "fake")} if kind == "videos" else {}
    allowed |= dict.fromkeys(("every", "others"), SPLITS)
    allowed |= {"split": SPLITS} if kind == "splits" else {}
    for column, values in allowed.items():
        if row.get(column, values[0]) not in values:
            raise ValueError(f"{column} is {row[column]!r:.50}; give {' or '.join(values)}")
    patterns = [re.compile(row.get(column, "")) for column in ("folder", "name")]
    groups = {"compression", "method"}.union(*(pattern.groupindex for pattern in patterns))
    if kind in ("videos", "lists"):
        columns = ("method", "identities", "id") if kind == "videos" else ("method",)
        for column in columns:
            check_groups(column, row[column], groups if kind == "videos" else {"folder"})
        if not re.match("[A-Za-z0-9]", row["id"]):
            raise ValueError(f"id is {row['id']!r:.50}; begin it with a letter or a digit")


def check_groups(column: str, text: str, groups: set[str]) -> None:
    """Check the names in braces in a text of data-sets.toml; they have no format of their own.

    Raises:
        ValueError: one is not a group, or has a format
    """
    for _, group, form, conversion in string.Formatter().parse(text):
        if group is not None and (group not in groups or form or conversion):
            raise ValueError(
                f"{column} has {{{group}}}, which is not the name of a group beside it"
            )


def make_catalogue(
    videos_dir: Path, rows: list[Row], list_rows: dict[str, Row]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Find and describe the videos.

    Returns:
        One row a video (video_id, source, the columns of DESCRIPTION), and one row for each file
        that is left out (path, reason).

    Raises:
        ValueError: there is no folder, or no video to convert in it.
    """
    if not videos_dir.is_dir():
        raise ValueError(
            f"{videos_dir}: the folder does not exist; put your videos there, name another folder "
            "with --videos-dir, or make practice videos with 00-make-sample-videos.py."
        )
    sources, list_paths, left_out = find_files(videos_dir, list_rows)
    lists, unreadable = read_lists(videos_dir, list_paths, sources, list_rows)
    videos, left_out = [], left_out | unreadable
    for source in sources:
        try:
            if fault := find_fault(videos_dir / source):
                raise ValueError(fault)
            videos.append({"source": source.as_posix()} | describe(source, lists, rows))
        except ValueError as error:
            left_out[source] = str(error)
    for path in (lists.described.keys() | lists.faults.keys()) - set(sources):
        left_out[path] = lists.faults.get(path, "named by a list, but not there")
    left_out = sorted((path.as_posix(), reason) for path, reason in left_out.items())
    left_out = pd.DataFrame(left_out, columns=["path", "reason"])
    if not videos:
        print_left_out(left_out)
        raise ValueError(
            f"{videos_dir}: no video to convert was found in it; it should hold a data set as it "
            "was unpacked, or videos in folders called real and fake."
        )
    catalogue = pd.DataFrame(videos)
    catalogue["video_id"] = name_videos(catalogue)
    return catalogue[["video_id", "source", *DESCRIPTION]].sort_values("video_id"), left_out


def find_files(
    videos_dir: Path, list_rows: dict[str, Row]
) -> tuple[list[PurePosixPath], list[PurePosixPath], dict[PurePosixPath, str]]:
    """Walk through videos/, links included; a folder that a link leads back to is seen once.

    Returns:
        Videos (files, and folders of numbered stills), lists, and files that are neither or cannot
        be read, with the reason; as paths below videos/, sorted, so that the order on the disk
        changes nothing.
    """
    videos, lists, left_out, seen = [], [], {}, set()

    def leave_out(error: OSError) -> None:
        folder = Path(error.filename).relative_to(videos_dir)
        left_out[PurePosixPath(folder.as_posix())] = f"cannot be read: {error.strerror}"

    for folder, subfolders, names in os.walk(videos_dir, onerror=leave_out, followlinks=True):
        # Links last: a folder is then known by its own name, and not by that of a link to it.
        subfolders.sort(key=lambda name: (Path(folder, name).is_symlink(), name))
        below = PurePosixPath(Path(folder).relative_to(videos_dir).as_posix())
        if (real_folder := os.path.realpath(folder)) in seen:
            subfolders.clear()
            left_out[below] = "a link to a folder that was seen already"
            continue
        seen.add(real_folder)
        names = [name for name in names if not name.startswith(".")]
        if names and all(re.fullmatch(r"\d{3,}(\.jpe?g|\.png)?", n.lower()) for n in names):
            videos.append(below)
            continue
        for name in names:
            suffix = PurePosixPath(name).suffix.lower()
            if suffix in VIDEO_SUFFIXES:
                videos.append(below / name)
            elif name.lower() in list_rows:
                lists.append(below / name)
            elif suffix not in COMPANION_SUFFIXES:
                left_out[below / name] = f"not a video ({' '.join(VIDEO_SUFFIXES)})"
    return sorted(videos), sorted(lists), left_out


def read_lists(
    videos_dir: Path,
    list_paths: list[PurePosixPath],
    sources: list[PurePosixPath],
    list_rows: dict[str, Row],
) -> tuple[Lists, dict[PurePosixPath, str]]:
    """Read the lists that come with the data sets.

    Returns:
        What the lists say, and the lists that cannot be read, with the reason.
    """
    lists, unreadable = Lists({}, {}, set(), defaultdict(dict)), {}
    for path in list_paths:
        folder, name, row = path.parent, path.name.lower(), list_rows[path.name.lower()]
        try:
            if fault := find_fault(videos_dir / path):
                raise ValueError(fault)
            entries = read_list(videos_dir / path, row)
        except (ValueError, LookupError, TypeError, RecursionError, OSError) as error:
            unreadable[path] = f"cannot be read as {name}: {' '.join(str(error).split())}"
            continue
        if "label" not in row:
            for root in path.parents[: 3 if folder.name == "splits" else 1]:
                lists.splits[row["dataset"], root].update(entries)
            continue
        beside = {}
        if name.endswith(".csv"):  # its videos may be in a folder beside it
            beside = {s.name: s for s in sources if s.parent.parent == folder}
        for video, entry in entries.items():
            source = beside.get(video, folder / video)
            try:
                lists.described[source] = describe_by_entry(video, entry, row)
            except ValueError as error:
                lists.faults[source] = str(error)
            if folder in source.parents:
                lists.folders.add(source.parent)
    return lists, unreadable


class Lists(NamedTuple):
    """What the lists below videos/ say."""

    described: dict[PurePosixPath, Description]  # by the video's path below videos/
    faults: dict[PurePosixPath, str]  # why what a list says of a video is of no use
    folders: set[PurePosixPath]  # that have a list of all their videos
    splits: dict[tuple[str, PurePosixPath], dict[str, str]]  # by data set and folder; by name


NO_LISTS = Lists({}, {}, set(), {})


def find_fault(path: Path) -> str:
    """Find out why a file, or a still in a folder, cannot be read; empty if it can be opened."""
    try:
        for file in list_files(path):
            if not stat.S_ISREG(file.stat().st_mode):
                return "not a plain file"  # to open a pipe would wait for ever
            if not os.access(file, os.R_OK):
                return "cannot be read: no permission"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""


def list_files(path: Path) -> list[Path]:
    """List the file itself, or the stills in a folder of them, in order."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if not file.name.startswith("."))


def read_list(path: Path, row: Row) -> dict[str, Any]:
    """Read a list of videos, each with an object or a row of the table, or of a split's members.

    Raises:
        ValueError: the file holds anything else.
    """
    if path.stat().st_size > LARGEST_LIST:
        raise ValueError(f"it is larger than {LARGEST_LIST:,} bytes")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".csv":
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
        return join_entries(zip(table["filename"], table.to_dict("records"), strict=True))
    if path.suffix.lower() == ".txt":  # lines such as: 1 YouTube-real/00170.mp4
        paths = [line.split()[1] for line in text.split("\n") if line.strip()]
        members = [PurePosixPath(path.lower()).stem for path in paths]
    elif "label" in row:
        content = json.loads(text, object_pairs_hook=join_entries)
        if not isinstance(content, dict):
            raise ValueError("a JSON object of file names is expected")
        return content
    else:
        pairs = json.loads(text)
        if not isinstance(pairs, list) or not all(isinstance(pair, list) for pair in pairs):
            raise ValueError("a JSON list of pairs is expected")
        members = [person for pair in pairs for person in pair]
    if not all(isinstance(member, str) for member in members):
        raise ValueError("a pair of it is not of two texts")
    return dict.fromkeys(members, row["split"]) | {"": row.get("others", "")}


def join_entries(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dictionary of pairs; a name that comes again with another entry gets None."""
    entries = {}
    for name, entry in pairs:
        entries[name] = entry if entries.get(name, entry) == entry else None
    return entries


def describe_by_entry(name: str, entry: dict | None, row: Row) -> Description:
    """Describe a video by its entry in a list and the row of data-sets.toml for such lists.

    Raises:
        ValueError: the entry does not describe the video; the message is the reason.
    """
    path = PurePosixPath(name)
    if not path.name or path.is_absolute() or ".." in path.parts:
        raise ValueError("its entry points outside the list's own folder")
    try:
        texts = {column: entry.get(column) for column in [row["label"], *row["identities"]]}
        texts["split"] = row.get("every", entry.get(row.get("split")))
        texts = {column: "" if text is None else text for column, text in texts.items()}
        if not all(isinstance(text, str | int) for text in texts.values()):
            raise ValueError
        said = str(texts[row["label"]]).lower()
        label = {row["real"].lower(): "real", row["fake"].lower(): "fake"}[said]
        people = [str(texts[column]) for column in row["identities"] if texts[column] != ""]
        description = {
            "dataset": row["dataset"],
            "label": label,
            "method": "original" if label == "real" else row["method"].format(folder=path.parts[0]),
            "compression": "",
            "identities": ";".join(PurePosixPath(person).stem for person in people or [path.stem]),
            "official_split": texts["split"],
            "prefix": row["id"],
        }
        "".join([name, *description.values()]).encode()  # each must be text that can be written
    except (AttributeError, LookupError, TypeError, ValueError):
        raise ValueError(
            "its entry in the list has no label REAL or FAKE, or it has several entries"
        ) from None
    return description


def describe(source: PurePosixPath, lists: Lists, rows: list[Row]) -> Description:
    """Describe a video.

    Raises:
        ValueError: that is not possible; the message is the reason.
    """
    try:
        source.as_posix().encode()
    except UnicodeEncodeError:
        raise ValueError("its name is not text (UTF-8): rename it") from None
    if source in lists.faults:
        raise ValueError(lists.faults[source])
    with within_seconds(LONGEST_MATCH, "its name takes too long to compare with data-sets.toml"):
        video = lists.described.get(source) or describe_by_name(source, rows)
    if video is None and not lists.folders.isdisjoint(source.parents):
        raise ValueError("the list of its folder (metadata.json or the like) does not name it")
    video = video or describe_by_plain_folder(source)
    if video is None:
        raise ValueError("fits no data set's layout, and is in no folder called real or fake")
    # One name, written on a Mac and elsewhere, may differ in how an accent is spelt.
    video["identities"] = unicodedata.normalize("NFC", video["identities"].lower())
    return video | {"official_split": find_official_split(source, video, lists)}


@contextmanager
def within_seconds(seconds: float, reason: str) -> Iterator[None]:
    """Interrupt a regular expression, which no thread could; where the system has such signals.

    Raises:
        ValueError: the block took longer; the message is the reason
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() != threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise ValueError(reason)

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def describe_by_name(source: PurePosixPath, rows: list[Row]) -> Description | None:
    """Describe the video at this path below videos/ by its names; None if no row has its folder.

    Raises:
        ValueError: the folder fits a row and the name does not; the message is the reason.
    """
    for row in rows:
        parent, ignore = source.parent.as_posix(), re.IGNORECASE | re.ASCII
        if (folder := re.search(rf"(^|/){row['folder']}\Z", parent, ignore)) is None:
            continue
        found = folder.groupdict(default="")
        spelling = {method.lower(): method for method in row.get("methods", ())}
        if spelling and found.get("method", "").lower() not in spelling:
            continue
        if "reason" in row:
            raise ValueError(row["reason"])
        if (name := re.fullmatch(row["name"], source.stem, ignore)) is None:
            raise ValueError(f"not named like the {row['label']}s there, such as {row['example']}")
        found = {"compression": ""} | found | name.groupdict(default="")
        found = {group: text.lower() for group, text in found.items()}
        found["method"] = spelling.get(found.get("method"), "")
        return {
            "dataset": row["dataset"],
            "label": row["label"],
            "method": row["method"].format(**found),
            "compression": found["compression"],
            "identities": row["identities"].format(**found),
            "prefix": row["id"].format(**found).rstrip("-"),
        }
    return None


def describe_by_plain_folder(source: PurePosixPath) -> Description | None:
    """Describe a video somewhere below a folder that is called real or fake; None elsewhere.

    The folder below that one is its identity, or its own name if there is none: real/anna/1.mp4 and
    fake/anna/2.mp4 count as made from one person and stay in one split.

    Raises:
        ValueError: it is below both.
    """
    folders = [part.lower() for part in source.parent.parts]
    labels = {label for label in ("real", "fake") if label in folders}
    if not labels:
        return None
    if len(labels) == 2:
        raise ValueError("below a folder called real and one called fake at once")
    label = labels.pop()
    below = PurePosixPath(*source.parts[folders.index(label) + 1 :]).with_suffix("").parts
    return {
        "dataset": "plain",
        "label": label,
        "method": "original" if label == "real" else "plain",
        "compression": "",
        "identities": below[0].replace(";", "_"),
        "prefix": "-".join(["plain", label, *below[:-1]]),
    }


def find_official_split(source: PurePosixPath, video: Description, lists: Lists) -> str:
    """Find train, val or test as the data set publishes it; empty where there is no such list."""
    for folder in source.parents:
        if members := lists.splits.get((video["dataset"], folder)):
            first_person = video["identities"].split(";")[0]
            return members.get(source.stem.lower()) or members.get(first_person) or members[""]
    published = video.get("official_split", "").lower()
    return {"train": "train", "validation": "val", "val": "val", "test": "test"}.get(published, "")


def print_left_out(left_out: pd.DataFrame) -> None:
    """Print each reason once, with the number of files and the first of them."""
    for reason, paths in left_out.groupby("reason")["path"]:
        more = f" and {len(paths) - 3:,} more" if len(paths) > 3 else ""
        print(cli.printable(f"  left out        {reason}: {', '.join(paths[:3])}{more}"))


def name_videos(catalogue: pd.DataFrame) -> pd.Series:
    """Make a video_id for each row: unique, of letters, digits, _ . and -, 89 characters at most.

    It is a file name on every system. Names that would be cut, or be the same but for upper and
    lower case, get a piece of their path's SHA-1, so that an id depends on no other video's order.
    """
    stems = catalogue["source"].map(lambda source: PurePosixPath(source).stem)
    names = (catalogue["prefix"] + "-" + stems).str.replace(r"[^A-Za-z0-9_.-]", "_", regex=True)
    names = names.str.rstrip(".").str.replace(r"\.(?=partial$)", "_", case=False, regex=True)
    unclear = names.str.lower().duplicated(keep=False) | (names.str.len() > LONGEST_ID)
    hashes = catalogue["source"].map(lambda source: sha1(os.fsencode(source)).hexdigest()[:8])
    return names.mask(unclear, names.str[:LONGEST_ID] + "-" + hashes)
