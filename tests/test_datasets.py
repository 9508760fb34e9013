"""Tests of datasets.py: valid and invalid tables of data sets."""

import importlib
import time
from pathlib import Path, PurePosixPath

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from deepfake_detect import datasets

TABLE = (ROOT / "data-sets.toml").read_text(encoding="utf-8")
VIDEOS = """[[videos]]
dataset = "D"
folder = 'd/(?P<method>[a-z]+)'
name = '(?P<target>[0-9]+)'
label = "real"
method = "original"
identities = "{target}"
id = "d"
example = "1.mp4"
"""
LISTS = """[[lists]]
dataset = "D"
file = "d.json"
label = "label"
real = "real"
fake = "fake"
method = "{folder}"
identities = ["a"]
id = "d"
"""


def read(folder: Path, text: str) -> tuple:
    (folder / "sets.toml").write_text(text, encoding="utf-8")
    return datasets.read_data_sets(folder / "sets.toml")


def test_test_rows_are_valid(tmp_path: Path) -> None:
    rows, lists = read(tmp_path, VIDEOS + LISTS)
    assert len(rows) == len(lists) == 1


@pytest.mark.parametrize(
    ("rows", "old", "new", "named"),
    [
        (VIDEOS, 'label = "real"', 'label = "Real"', "label"),
        (VIDEOS, 'label = "real"', 'label = "maybe"', "label"),
        (VIDEOS, 'label = "real"', "label = 1", "label"),
        (VIDEOS, 'label = "real"', "label = true", "label"),
        (VIDEOS, 'label = "real"', 'label = ""', "label"),
        (VIDEOS, 'method = "original"', 'method = "original"\nmethods = "Deepfakes"', "methods"),
        (VIDEOS, 'method = "original"', 'method = "original"\nmethods = [1]', "methods"),
        (VIDEOS, 'dataset = "D"', 'dataset = ["D"]', "dataset"),
        (VIDEOS, 'dataset = "D"', "dataset = nan", "dataset"),
        (VIDEOS, '"{target}"', '"{target:>9999999999}"', "identities"),
        (VIDEOS, '"{target}"', '"{target!r}"', "identities"),
        (VIDEOS, '"{target}"', '"{target.real}"', "identities"),
        (VIDEOS, '"{target}"', '"{0}"', "identities"),
        (VIDEOS, '"{target}"', '"{"', "row 1"),
        (VIDEOS, 'id = "d"', 'id = ".d"', "id"),
        (VIDEOS, 'id = "d"', 'id = "-d"', "id"),
        (VIDEOS, "[a-z]+", "[a-z", "row 1"),
        (VIDEOS, "[[videos]]", "[[video]]", "video"),
        (LISTS, 'identities = ["a"]', 'identities = "a"', "identities"),
        (LISTS, 'identities = ["a"]', "identities = [1]", "identities"),
        (LISTS, '"{folder}"', '"{folder:>99999999}"', "method"),
        (LISTS, '"{folder}"', '"{x}"', "method"),
        (LISTS, 'real = "real"', "real = 0", "real"),
        (LISTS, 'id = "d"', 'id = "d"\nevery = "all"', "every"),
    ],
)
def test_invalid_value_is_reported(
    rows: str, old: str, new: str, named: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=named):
        read(tmp_path, rows.replace(old, new))


@pytest.mark.parametrize(
    "text", ["videos = [" + "[" * 5000 + "]" * 5000 + "]", "videos = [1]", "splits = 'a'", "= 1"]
)
def test_invalid_table_is_reported(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sets\.toml"):
        read(tmp_path, text)


VALUES = st.text(max_size=5) | st.integers() | st.booleans() | st.floats() | st.lists(st.text())
KEYS = "dataset folder name label method methods identities id example file real fake split every"


@given(st.sampled_from(KEYS.split()), VALUES, st.sampled_from(["videos", "lists", "splits"]))
def test_any_value_is_accepted_or_reported(key: str, value: object, kind: str) -> None:
    tomllib = importlib.import_module("tomllib")
    table = {name: row for name, (row,) in tomllib.loads(VIDEOS + LISTS).items()}
    table["splits"] = {"dataset": "D", "file": "a.json", "split": "test"}
    row = table[kind] | {key: value}
    try:
        datasets.check_row(kind, row)
    except (ValueError, datasets.re.error):
        return
    none = datasets.Lists({}, {}, set(), {})
    source = PurePosixPath("d/x/1.mp4")
    try:
        if kind == "videos":
            datasets.describe(source, none, [row])
        elif kind == "lists":
            datasets.describe_by_entry("1.mp4", {"label": "real", "a": "b"}, row)
    except ValueError:
        pass


@pytest.mark.parametrize("expression", ["(a+)+", "(a|aa)+"])
def test_slow_expression_is_interrupted(
    expression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "LONGEST_MATCH", 0.2)
    rows, _ = read(tmp_path, VIDEOS.replace("(?P<target>[0-9]+)", f"(?P<target>{expression})"))
    none, began = datasets.Lists({}, {}, set(), {}), time.monotonic()
    with pytest.raises(ValueError, match=r"data-sets\.toml"):
        datasets.describe(PurePosixPath("d/x") / ("a" * 60 + "b.mp4"), none, rows)
    assert time.monotonic() - began < 60


def test_table_saved_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeff" + VIDEOS) == read(tmp_path, VIDEOS)


def test_practice_videos_are_a_separate_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "practice"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(b"x")
    (folder / "practice.json").write_text(
        '{"a.mp4": {"label": "REAL", "split": "train", "original": null},'
        ' "b.mp4": {"label": "FAKE", "split": "train", "original": "a.mp4"}}'
    )
    table, left_out = datasets.make_catalogue(
        tmp_path, *datasets.read_data_sets(ROOT / "data-sets.toml")
    )
    assert set(table["dataset"]) == {"practice"} and left_out.empty
    assert set(table["identities"]) == {"a"}
    assert set(table["video_id"]) == {"practice-a", "practice-b"}
