"""Find the videos below videos/, and describe each one, for 01.

Data sets are recognized by their own folder and file names, or by their label lists, as described
in data-sets.toml. This module reads that table, walks through the folder, and gives each video a
description and a video_id. It does not decode any file.
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

from deepfake_detect import cli, files

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")
COMPANION_SUFFIXES = (".json", ".csv", ".txt", ".md", ".pdf", ".py")  # ignored
LARGEST_LIST = 100_000_000  # bytes, some million videos; reading a larger file could exhaust memory
LONGEST_ID = 80  # characters; names of crops then stay below the usual limit of 255
ROWS = {  # required columns of the rows of data-sets.toml
    "left_out": "folder reason",
    "videos": "dataset folder name label method identities id example",
    "lists": "dataset file label real fake method identities id",
    "splits": "dataset file split",
}
SPLITS = ("train", "val", "test")
LONGEST_MATCH = 5  # seconds; some regular expressions take years on some names
DESCRIPTION = ["dataset", "label", "method", "compression", "identities", "official_split"]
Row = dict[str, Any]  # a row of data-sets.toml
Description = dict[str, str]  # columns of DESCRIPTION, and `prefix`, the start of the video_id


def read_data_sets(path: Path) -> tuple[list[Row], dict[str, Row]]:
    """Read the table of data sets; data-sets.toml explains its rows.

    Returns:
        The rows for videos, and the rows for lists by the lower-case file name of the list.

    Raises:
        ValueError: the file cannot be read, or a row is invalid
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
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
        raise ValueError(
            f"{path}: nested too deeply; correct it, or name another file with --data-sets."
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: {error}; correct it, or name another file with --data-sets."
        ) from error
    return table["left_out"] + table["videos"], lists


def check_row(kind: str, row: Row) -> None:
    """Check a row of data-sets.toml: its columns and their values.

    Raises:
        ValueError, re.error: a column is missing, or a value is invalid
    """
    if not isinstance(row, dict):
        raise ValueError("the row is not a table")
    if missing := set(ROWS[kind].split()) - set(row):
        raise ValueError(f"the column {min(missing)} is missing")
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
    """Check that the names in braces in a text of data-sets.toml are groups without a format.

    Raises:
        ValueError: a name is not a group, or has a format
    """
    for _, group, form, conversion in string.Formatter().parse(text):
        if group is not None and (group not in groups or form or conversion):
            raise ValueError(
                f"{column} has {{{group}}}, which is not a group of the expressions in this row"
            )


def make_catalogue(
    videos_dir: Path, rows: list[Row], list_rows: dict[str, Row]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Find and describe the videos.

    Returns:
        One row per video (video_id, source, the columns of DESCRIPTION), and one row per file that
        is left out (path, reason).

    Raises:
        ValueError: the folder does not exist, or has no video to convert
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
        left_out[path] = lists.faults.get(path, "listed, but the file is missing")
    left_out = sorted((path.as_posix(), reason) for path, reason in left_out.items())
    left_out = pd.DataFrame(left_out, columns=["path", "reason"])
    if not videos:
        print_left_out(left_out)
        raise ValueError(
            f"{videos_dir}: no video to convert was found; put an unpacked data set there, or "
            "videos in folders named real and fake."
        )
    catalogue = pd.DataFrame(videos)
    catalogue["video_id"] = name_videos(catalogue)
    return catalogue[["video_id", "source", *DESCRIPTION]].sort_values("video_id"), left_out


def find_files(
    videos_dir: Path, list_rows: dict[str, Row]
) -> tuple[list[PurePosixPath], list[PurePosixPath], dict[PurePosixPath, str]]:
    """Walk through videos/, following links; each folder is visited once.

    Returns:
        Videos (files, and folders of numbered stills), lists, and other or unreadable files with
        the reason; as paths below videos/, sorted, so that the order on disk does not matter.
    """
    videos, lists, left_out, seen = [], [], {}, set()

    def leave_out(error: OSError) -> None:
        folder = Path(error.filename).relative_to(videos_dir)
        left_out[PurePosixPath(folder.as_posix())] = f"cannot be read: {error.strerror}"

    for folder, subfolders, names in os.walk(videos_dir, onerror=leave_out, followlinks=True):
        # Visit links last, so that a folder is known by its own name, not by the name of a link.
        subfolders.sort(key=lambda name: (Path(folder, name).is_symlink(), name))
        below = PurePosixPath(Path(folder).relative_to(videos_dir).as_posix())
        if (real_folder := os.path.realpath(folder)) in seen:
            subfolders.clear()
            left_out[below] = "a link to a folder that was already visited"
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
    """Read the label lists of the data sets.

    Returns:
        The content of the lists, and the lists that cannot be read, with the reason.
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
        if name.endswith(".csv"):  # its videos may be in a folder next to it
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
    """The content of the lists below videos/."""

    described: dict[PurePosixPath, Description]  # by the video's path below videos/
    faults: dict[PurePosixPath, str]  # why the entry of a video is invalid
    folders: set[PurePosixPath]  # folders whose videos are all in a list
    splits: dict[tuple[str, PurePosixPath], dict[str, str]]  # by (data set, folder), then by name


NO_LISTS = Lists({}, {}, set(), {})


def find_fault(path: Path) -> str:
    """Return why a file, or a still in a folder, cannot be read; empty if it can be read."""
    try:
        for file in list_files(path):
            if not stat.S_ISREG(file.stat().st_mode):
                return "not a plain file"  # opening a pipe would block
            if not os.access(file, os.R_OK):
                return "cannot be read: no permission"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""


def list_files(path: Path) -> list[Path]:
    """Return the file itself, or the stills in a folder, sorted by name."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if not file.name.startswith("."))


def read_list(path: Path, row: Row) -> dict[str, Any]:
    """Read a list: videos with their JSON objects or CSV rows, or the members of a split.

    Raises:
        ValueError: the file has another format
    """
    if path.stat().st_size > LARGEST_LIST:
        raise ValueError(f"the file is larger than {LARGEST_LIST:,} bytes")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".csv":
        table = files.read_table(io.StringIO(text))
        return join_entries(zip(table["filename"], table.to_dict("records"), strict=True))
    if path.suffix.lower() == ".txt":  # lines such as: 1 YouTube-real/00170.mp4
        paths = [line.split()[1] for line in text.split("\n") if line.strip()]
        members = [PurePosixPath(path.lower()).stem for path in paths]
    elif "label" in row:
        content = json.loads(text, object_pairs_hook=join_entries)
        if not isinstance(content, dict):
            raise ValueError("expected a JSON object with file names as keys")
        return content
    else:
        pairs = json.loads(text)
        if not isinstance(pairs, list) or not all(isinstance(pair, list) for pair in pairs):
            raise ValueError("expected a JSON list of pairs")
        members = [person for pair in pairs for person in pair]
    if not all(isinstance(member, str) for member in members):
        raise ValueError("a member of a pair is not a text")
    return dict.fromkeys(members, row["split"]) | {"": row.get("others", "")}


def join_entries(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dictionary from pairs; a name with several different entries maps to None."""
    entries = {}
    for name, entry in pairs:
        entries[name] = entry if entries.get(name, entry) == entry else None
    return entries


def describe_by_entry(name: str, entry: dict | None, row: Row) -> Description:
    """Describe a video by its entry in a list and the row of data-sets.toml for that list.

    Raises:
        ValueError: the entry is invalid; the message is the reason
    """
    path = PurePosixPath(name)
    if not path.name or path.is_absolute() or ".." in path.parts:
        raise ValueError("its entry points outside the folder of the list")
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
        "".join(
            [name, *description.values()]
        ).encode()  # check that all texts can be written as UTF-8
    except (AttributeError, LookupError, TypeError, ValueError):
        raise ValueError(
            "its entry in the list has no label REAL or FAKE, or it has several entries"
        ) from None
    return description


def describe(source: PurePosixPath, lists: Lists, rows: list[Row]) -> Description:
    """Describe a video.

    Raises:
        ValueError: the video cannot be described; the message is the reason
    """
    try:
        source.as_posix().encode()
    except UnicodeEncodeError:
        raise ValueError("its name is not valid UTF-8; rename it") from None
    if source in lists.faults:
        raise ValueError(lists.faults[source])
    with within_seconds(LONGEST_MATCH, "its name takes too long to compare with data-sets.toml"):
        video = lists.described.get(source) or describe_by_name(source, rows)
    if video is None and not lists.folders.isdisjoint(source.parents):
        raise ValueError("the list in its folder (such as metadata.json) does not name it")
    video = video or describe_by_plain_folder(source)
    if video is None:
        raise ValueError("matches no known data set, and is not inside a folder named real or fake")
    # macOS and other systems may encode the accents of the same name differently.
    video["identities"] = unicodedata.normalize("NFC", video["identities"].lower())
    return video | {"official_split": find_official_split(source, video, lists)}


@contextmanager
def within_seconds(seconds: float, reason: str) -> Iterator[None]:
    """Limit the time of a block, on systems with SIGALRM.

    A signal can interrupt a regular expression, a thread cannot.

    Raises:
        ValueError: the block took longer; the message is `reason`
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
    """Describe a video by its path below videos/; None if its folder does not match any row.

    Raises:
        ValueError: the folder matches a row, but the name does not; the message is the reason
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
    """Describe a video below a folder named real or fake; None elsewhere.

    The identity is the next folder below it, or the file name if there is none: real/anna/1.mp4 and
    fake/anna/2.mp4 count as the same person and stay in one split.

    Raises:
        ValueError: the video is below both real and fake
    """
    folders = [part.lower() for part in source.parent.parts]
    labels = {label for label in ("real", "fake") if label in folders}
    if not labels:
        return None
    if len(labels) == 2:
        raise ValueError("below both a folder named real and a folder named fake")
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
    """Return the published split of a video (train, val or test); empty if there is none."""
    for folder in source.parents:
        if members := lists.splits.get((video["dataset"], folder)):
            first_person = video["identities"].split(";")[0]
            return members.get(source.stem.lower()) or members.get(first_person) or members[""]
    published = video.get("official_split", "").lower()
    return {"train": "train", "validation": "val", "val": "val", "test": "test"}.get(published, "")


def print_left_out(left_out: pd.DataFrame) -> None:
    """Print each reason once, with the first three files and the number of others."""
    for reason, paths in left_out.groupby("reason")["path"]:
        more = f" and {len(paths) - 3:,} more" if len(paths) > 3 else ""
        print(cli.printable(f"  left out        {reason}: {', '.join(paths[:3])}{more}"))


def name_videos(catalogue: pd.DataFrame) -> pd.Series:
    """Return a unique video_id per row: letters, digits, _ . and -, at most 89 characters.

    It is a valid file name on every system. Names that are too long, or that are equal except for
    case, get part of the SHA-1 of their path, so that an id does not depend on other videos.
    """
    stems = catalogue["source"].map(lambda source: PurePosixPath(source).stem)
    names = (catalogue["prefix"] + "-" + stems).str.replace(r"[^A-Za-z0-9_.-]", "_", regex=True)
    names = names.str.rstrip(".").str.replace(r"\.(?=partial$)", "_", case=False, regex=True)
    unclear = names.str.lower().duplicated(keep=False) | (names.str.len() > LONGEST_ID)
    hashes = catalogue["source"].map(lambda source: sha1(os.fsencode(source)).hexdigest()[:8])
    return names.mask(unclear, names.str[:LONGEST_ID] + "-" + hashes)
