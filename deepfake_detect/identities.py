"""Who is in a video: the identities that videos.csv names, and what the file names say.

03 splits the videos by these, so a wrong one puts a person into two splits. A table that is as
01 wrote it is right. One that was opened and saved elsewhere may have lost zeros ("071" is 71 to a
spreadsheet), its separators or its letter case: what can be restored is, what contradicts the names
of the files is refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from pathlib import PurePosixPath

import pandas as pd

from deepfake_detect import datasets

SEPARATORS = re.compile(r"[;,|\t\r\n]+")  # 01 writes ; and spreadsheets have others
AS_NUMBER = re.compile(r"([0-9]+)\.0*")  # what a table's number column makes of 71
SCIENTIFIC = re.compile(r"[0-9](\.[0-9]+)?e[+-]?[0-9]+")  # and of a long one: digits are lost


def normalise(videos: pd.DataFrame, is_trusted: bool) -> pd.Series:
    """Return the identities of each video in one spelling, with ; between them.

    Args:
        videos: columns dataset and identities
        is_trusted: the table is as 01 wrote it: other separators than ; belong to a name
    """
    separators = re.compile(";") if is_trusted else SEPARATORS
    people = [split_people(text, separators) for text in videos["identities"]]
    widths: dict[str, int] = defaultdict(int)  # digits that the numbers of a data set have
    for dataset, names in zip(videos["dataset"], people, strict=True):
        numbers = [len(name) for name in names if name.isdecimal()]
        widths[dataset] = max([widths[dataset], *numbers])
    restored = [
        ";".join(name.zfill(widths[dataset]) if name.isdecimal() else name for name in names)
        for dataset, names in zip(videos["dataset"], people, strict=True)
    ]
    return pd.Series(restored, videos.index, dtype=str)


def split_people(text: str, separators: re.Pattern = SEPARATORS) -> list[str]:
    """Split a cell of identities: lower case, one form of accents, no blanks at the ends."""
    text = unicodedata.normalize("NFC", text).casefold()
    names = [" ".join(name.strip(" '\"\xa0").split()) for name in separators.split(text)]
    names = [AS_NUMBER.sub(r"\1", name) if AS_NUMBER.fullmatch(name) else name for name in names]
    if all(re.fullmatch("[0-9 ]*", name) for name in names):  # "071 054"
        names = [number for name in names for number in name.split()]
    return [name for name in names if name]


def list_people(videos: pd.DataFrame) -> pd.Series:
    """List the identities of each video; a video without any is its own identity."""
    identities = videos["identities"].where(videos["identities"] != "", videos["video_id"])
    return identities.str.split(";")


def check_changed_table(videos: pd.DataFrame, rows: list[datasets.Row]) -> None:
    """Compare the identities of a table that is not as 01 wrote it with the names of the files.

    Args:
        videos: columns video_id, source, dataset and identities, as normalise gives them
        rows: what the data sets look like, see datasets.read_data_sets

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
                f"the identities of {video_id} are {identities}, its name says "
                f"{';'.join(sorted(expected))}"
            )


def widen(people: set[str]) -> set[str]:
    """Return names that are equal where only zeros in front of a number differ."""
    return {name.lstrip("0") if name.isdecimal() else name for name in people}


def people_of_source(source: str, dataset: str, rows: list[datasets.Row]) -> set[str]:
    """Return the people that the path of a video names; empty where that is not known."""
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
    """Return the people that a video_id names by itself; empty where that is not known."""
    for row in rows:
        start = row.get("id", "").partition("{")[0]
        if "reason" in row or not video_id.startswith(start):
            continue
        end = re.search(rf"(^|-)({row['name']})\Z", video_id[len(start) :], re.I | re.A)
        try:
            if end:
                named = row["identities"].format(**end.groupdict(default=""))
                return set(split_people(named, re.compile(";")))
        except KeyError:  # the folder names one of them, and the video_id has no folder
            return set()
    return set()
