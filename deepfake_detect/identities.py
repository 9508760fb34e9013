"""The identities of the people in each video, from videos.csv and from the file names.

03 splits videos by identity, so a wrong identity puts a person into two splits. A table that is
unchanged since 01 wrote it is trusted. A table that was saved by another program may have lost
leading zeros (a spreadsheet reads "071" as 71), separators or letter case. They are restored where
possible, and a table that contradicts the file names is refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from pathlib import PurePosixPath

import pandas as pd

from deepfake_detect import datasets

SEPARATORS = re.compile(r"[;,|\t\r\n]+")  # 01 writes ; and other programs use the others
AS_NUMBER = re.compile(r"([0-9]+)\.0*")  # 71 in a numeric column, such as 71.0
SCIENTIFIC = re.compile(r"[0-9](\.[0-9]+)?e[+-]?[0-9]+")  # a long number, which has lost digits


def normalise(videos: pd.DataFrame, is_trusted: bool) -> pd.Series:
    """Return the identities of each video in normal form, separated by semicolons.

    Args:
        videos: columns dataset and identities
        is_trusted: the table is unchanged since 01 wrote it, so only ; is a separator
    """
    separators = re.compile(";") if is_trusted else SEPARATORS
    people = [split_people(text, separators) for text in videos["identities"]]
    widths: dict[str, int] = defaultdict(int)  # digits of the numbers in a data set
    for dataset, names in zip(videos["dataset"], people, strict=True):
        numbers = [len(name) for name in names if name.isdecimal()]
        widths[dataset] = max([widths[dataset], *numbers])
    restored = [
        ";".join(name.zfill(widths[dataset]) if name.isdecimal() else name for name in names)
        for dataset, names in zip(videos["dataset"], people, strict=True)
    ]
    return pd.Series(restored, videos.index, dtype=str)


def split_people(text: str, separators: re.Pattern = SEPARATORS) -> list[str]:
    """Split a cell of identities: lower case, NFC accents, surrounding spaces removed."""
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())
    names = [" ".join(name.split()).strip(" '\"") for name in separators.split(text)]
    names = [AS_NUMBER.sub(r"\1", name) if AS_NUMBER.fullmatch(name) else name for name in names]
    if all(re.fullmatch("[0-9 ]*", name) for name in names):  # "071 054"
        names = [number for name in names for number in name.split()]
    return [name for name in names if name]


def list_people(videos: pd.DataFrame) -> pd.Series:
    """Return the identities of each video as lists; a video without any is its own identity."""
    identities = videos["identities"].where(videos["identities"] != "", videos["video_id"])
    return identities.str.split(";")


def check_changed_table(videos: pd.DataFrame, rows: list[datasets.Row]) -> None:
    """Compare the identities in a changed table with the file names.

    Args:
        videos: columns video_id, source, dataset, and identities as returned by normalise
        rows: rows of data-sets.toml, see datasets.read_data_sets

    Raises:
        ValueError: an identity cannot be trusted; the message names the video
    """
    named = set(videos["dataset"][videos["identities"] != ""])
    columns = ["video_id", "source", "dataset", "identities"]
    for video_id, source, dataset, identities in videos[columns].itertuples(index=False):
        people = set(identities.split(";"))
        if not identities and dataset in named:
            raise ValueError(f"{video_id} has no identities, unlike others of {dataset}")
        if strange := sorted(name for name in people if SCIENTIFIC.fullmatch(name)):
            raise ValueError(f"the identity {strange[0]} of {video_id} is a rounded number")
        stem = re.sub("[^A-Za-z0-9_.-]", "_", PurePosixPath(source).stem)
        if stem.rstrip(".") not in video_id and not re.search("-[0-9a-f]{8}$", video_id):
            raise ValueError(f"{video_id} is not the video_id of {source}")
        expected = people_of_source(source, dataset, rows) or people_of_name(video_id, rows)
        if expected and widen(expected) != widen(people):
            raise ValueError(
                f"the identities of {video_id} are {identities}, but its name says "
                f"{';'.join(sorted(expected))}"
            )


def widen(people: set[str]) -> set[str]:
    """Return the names without leading zeros of numbers, for comparison."""
    return {name.lstrip("0") if name.isdecimal() else name for name in people}


def people_of_source(source: str, dataset: str, rows: list[datasets.Row]) -> set[str]:
    """Return the people named in the path of a video; empty if unknown."""
    try:
        found = datasets.describe(PurePosixPath(source), datasets.NO_LISTS, rows)
    except ValueError:
        return set()
    return (
        set(split_people(found["identities"], re.compile(";")))
        if found["dataset"] == dataset
        else set()
    )


def people_of_name(video_id: str, rows: list[datasets.Row]) -> set[str]:
    """Return the people named in a video_id; empty if unknown."""
    for row in rows:
        start = row.get("id", "").partition("{")[0]
        if "reason" in row or not video_id.startswith(start):
            continue
        end = re.search(rf"(^|-)({row['name']})\Z", video_id[len(start) :], re.I | re.A)
        try:
            if end:
                named = row["identities"].format(**end.groupdict(default=""))
                return set(split_people(named, re.compile(";")))
        except KeyError:  # one person is named by the folder, which the video_id does not have
            return set()
    return set()
