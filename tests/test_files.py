"""Tests of files.py: atomic writing, and the list of own files."""

import csv
import json
import os
import shutil
import threading
from pathlib import Path

import filelock
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepfake_detect import files

OPTION = "--out-dir"


def text(content: str) -> files.Write:
    return lambda path: path.write_text(content, encoding="utf-8")


def claim(folder: Path, script: str = "a.py", shared: bool = True) -> files.Output:
    return files.claim(folder, OPTION, script, shared)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != files.LIST)


@pytest.mark.parametrize("name", ["clip.csv", "clip.tar.gz", "漢" * 83, ".hidden"])
def test_file_is_complete_or_unchanged(name: str, tmp_path: Path) -> None:
    files.write_whole(tmp_path / name, text("old"))

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("No space left")

    with pytest.raises(OSError, match="No space"):
        files.write_whole(tmp_path / name, fail)
    assert names(tmp_path) == [name] and (tmp_path / name).read_text() == "old"


@pytest.mark.parametrize("name", ["clip.csv", "folder/clip.csv", files.LIST])
def test_full_disk_names_the_file(name: str, tmp_path: Path) -> None:
    output, path = claim(tmp_path), tmp_path / name
    write = {
        "clip.csv": lambda: files.write_whole(path, text("long" * 999)),
        "folder/clip.csv": lambda: output.write(name, text("long" * 999)),
        files.LIST: lambda: output.write("l" * 200, text("")),
    }[name]
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / files.LIST).stat().st_size + 50, hard))
    try:
        with pytest.raises(OSError, match="too large") as raised:
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert raised.value.filename == str(path)


@pytest.mark.parametrize("name", ["clip.partial.csv", ".unfinished", "clip.csv.partial", ".lock"])
def test_user_files_with_similar_names_are_kept(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    output = claim(tmp_path)
    files.write_whole(tmp_path / "clip.csv", text("ours"))
    output.write("other.csv", text("ours"))
    files.delete_left_behind(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("suffix", ["", ".keras"])
def test_the_next_run_deletes_the_unfinished_files_of_a_killed_run(
    suffix: str, tmp_path: Path
) -> None:
    left = files.name_unfinished(tmp_path, suffix)
    left.write_text("half a model") if suffix else left.mkdir()
    with files.locked(tmp_path):
        assert names(tmp_path) == [".lock"]
        with pytest.raises(filelock.Timeout), files.locked(tmp_path):
            pass


@pytest.mark.parametrize("content", ["mine", "ours, edited"])
def test_only_own_files_are_replaced(content: str, tmp_path: Path) -> None:
    output = claim(tmp_path)
    output.write("a.csv", text("ours"))
    output.write("a.csv", text("ours again"))
    assert output.owns("a.csv") and claim(tmp_path, "other.py").owns("a.csv")
    (tmp_path / "a.csv").write_text(content)
    for again in (output, claim(tmp_path)):
        assert not again.owns("a.csv")
        with pytest.raises(ValueError, match=rf"a\.csv.*{OPTION}"):
            again.write("a.csv", text("new"))
        again.delete(["a.csv"])
    assert (tmp_path / "a.csv").read_text() == content and names(tmp_path) == ["a.csv"]


@pytest.mark.parametrize(
    "line",
    [
        "thesis.txt",
        json.dumps({"script": "a.py", "name": "thesis.txt", "bytes": 4, "source": ""}),
        json.dumps(
            {"script": "a.py", "name": "thesis.txt", "bytes": 4, "source": "", "sha256": "0" * 64}
        ),
        json.dumps(
            {"script": "a.py", "name": "thesis.txt", "bytes": 4, "source": "", "modified_ns": 0}
        ),
    ],
)
def test_planted_list_does_not_expose_user_files(line: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / files.LIST).write_text(f"a.py\n{line}\n")
    output = claim(tmp_path)
    assert not output.owns("thesis.txt")
    with pytest.raises(ValueError, match=r"thesis\.txt"):
        output.write("thesis.txt", text("ours"))


def test_copied_list_does_not_expose_user_files(tmp_path: Path) -> None:
    claim(tmp_path / "a").write("x.txt", text("ours"))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_text("mine")
    shutil.copy(tmp_path / "a" / files.LIST, tmp_path / "b")
    assert not claim(tmp_path / "b").owns("x.txt")


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_list_that_is_not_a_file_is_rejected(kind: str, tmp_path: Path) -> None:
    victim, place = tmp_path / "victim", tmp_path / "out" / files.LIST
    victim.write_text("mine")
    place.parent.mkdir()
    {"link": lambda: place.symlink_to(victim), "pipe": lambda: os.mkfifo(place)}.get(
        kind, place.mkdir
    )()
    with pytest.raises(ValueError, match=f"{files.LIST}.*{OPTION}"):
        claim(place.parent)
    assert victim.read_text() == "mine"


@given(content=st.binary(max_size=200))
def test_any_list_can_be_read(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / files.LIST).write_bytes(content)
    output = claim(folder)
    output.write("a", text("ours"))
    assert output.owns("a") and claim(folder).owns("a")


def test_different_sources_need_different_names(tmp_path: Path) -> None:
    output = claim(tmp_path)
    monday, tuesday = tmp_path / "monday/clip.png", tmp_path / "tuesday/clip.png"
    output.write("clip.html", text("Monday"), monday)
    assert output.is_free(["clip.html"], monday) and not output.is_free(["clip.html"], tuesday)
    with pytest.raises(ValueError, match=r"clip\.html"):
        output.write("clip.html", text("Tuesday"), tuesday)
    output.delete(["clip.html"], tuesday)
    assert (tmp_path / "clip.html").read_text() == "Monday"
    assert str(tmp_path) not in (tmp_path / files.LIST).read_text()


@pytest.mark.parametrize(
    ("written", "found"), [("Clip.png", "clip.PNG"), ("caf\u00e9.png", "cafe\u0301.png")]
)
def test_names_match_on_disks_that_change_them(written: str, found: str, tmp_path: Path) -> None:
    output = claim(tmp_path)
    output.write(written, text("ours"))
    (tmp_path / written).rename(tmp_path / found)
    assert output.owns(found)
    output.write(found, text("new"))


@pytest.mark.parametrize("failing", ["a.onnx", "a.tflite", "a.json"])
def test_set_is_replaced_completely_or_not_at_all(failing: str, tmp_path: Path) -> None:
    output = claim(tmp_path)
    writes = {name: text("old") for name in ("a.onnx", "a.tflite", "a.json")}
    output.write_set(writes)

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("No space left")

    with pytest.raises(OSError, match="No space"):
        output.write_set(dict.fromkeys(writes, text("new")) | {failing: fail})
    assert {(tmp_path / name).read_text() for name in writes} == {"old"}
    assert names(tmp_path) == sorted(writes)
    (tmp_path / failing).write_text("mine")
    with pytest.raises(ValueError, match=failing):
        output.write_set(dict.fromkeys(writes, text("new")))
    assert (tmp_path / failing).read_text() == "mine"


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_interrupted_set_is_incomplete(
    renames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = claim(tmp_path)
    order = ("a.onnx", "a.tflite", "a.json")
    output.write_set(dict.fromkeys(order, text("old")))
    done, replace = [], Path.replace

    def stop(path: Path, target: Path) -> None:
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(target.name)
        replace(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", stop)
        output.write_set(dict.fromkeys(order, text("new")))
    assert done == list(order[:renames]) and not (tmp_path / "a.json").exists()
    claim(tmp_path).write_set(dict.fromkeys(order, text("new")))  # the existing files are ours
    assert {(tmp_path / name).read_text() for name in order} == {"new"}


def test_cut_off_line_is_ignored(tmp_path: Path) -> None:
    output = claim(tmp_path)
    output.write("a", text("a"))
    with (tmp_path / files.LIST).open("a") as file:
        file.write('\n{"script": "a.py", "na')
    output.write("b", text("b"))
    again = claim(tmp_path)
    assert again.owns("a") and again.owns("b")


def test_threads_and_runs_can_share_a_list(tmp_path: Path) -> None:
    outputs = [claim(tmp_path) for _ in range(4)]

    def work(number: int) -> None:
        for turn in range(20):
            outputs[number % 4].write(f"{number}-{turn}", text("x"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names(tmp_path)) == 160
    assert all(output.owns(name) for output in outputs for name in names(tmp_path))


@pytest.mark.parametrize("name", ["thesis.txt", "folder/deep.png"])
def test_non_empty_folder_is_rejected_unless_shared(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("mine")
    with pytest.raises(ValueError, match=f"{name.split('/')[0]}.*{OPTION}"):
        claim(folder, shared=False)
    claim(folder, shared=True)
    claim(folder, shared=False)
    with pytest.raises(ValueError, match=OPTION):
        claim(folder, "b.py", shared=False)
    with pytest.raises(ValueError, match=OPTION):
        claim(folder / name, shared=False)


def replace_all(folder: Path, content: str) -> None:
    with files.replacing(folder, OPTION, "a.py") as new:
        (new / "train").mkdir()
        (new / "train/a.txt").write_text(content)
        os.link(folder.parent / "original", new / "train/link")


@pytest.mark.parametrize("kind", ["new", "edited", "link", "linked folder"])
def test_folder_with_foreign_files_is_not_replaced(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (tmp_path / "original").write_text("linked")
    replace_all(folder, "one")
    replace_all(folder, "two")
    os.utime(tmp_path / "original", ns=(0, 0))  # the link's content has another name, too
    replace_all(folder, "three")
    name = {"new": "train/mine", "edited": "train/a.txt"}.get(kind, "mine")
    if "link" in kind:
        (folder / name).symlink_to(tmp_path if "folder" in kind else "nowhere")
    else:
        (folder / name).write_text("mine!")
    with pytest.raises(ValueError, match=f"{name}.*{OPTION}"):
        replace_all(folder, "four")
    assert os.path.lexists(folder / name) and (folder / "train/link").read_text() == "linked"


def test_leftovers_of_a_killed_run_are_deleted(tmp_path: Path) -> None:
    (tmp_path / "original").write_text("linked")
    left = tmp_path / f".out.unfinished-{'0' * 32}"
    others = [tmp_path / ".out.unfinished-1", tmp_path / f".other.unfinished-{'0' * 32}"]
    for path in (left, *others):
        path.mkdir()
    replace_all(tmp_path / "out", "one")
    assert not left.exists() and all(path.exists() for path in others)
    with pytest.raises(KeyboardInterrupt), files.replacing(tmp_path / "out", OPTION, "a.py"):
        raise KeyboardInterrupt
    assert (tmp_path / "out/train/a.txt").read_text() == "one"
    assert not list(tmp_path.glob(".out.unfinished-????*"))


@pytest.mark.parametrize("kind", ["missing", "broken link", "folder", "pipe", "empty", "text"])
def test_unreadable_image_has_a_reason(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    {
        "broken link": lambda: path.symlink_to("nowhere"),
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "empty": path.touch,
        "text": lambda: path.write_text("no image"),
    }.get(kind, lambda: None)()
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        files.read_image(path)
    assert {"missing": "exist", "text": "decode"}.get(kind, kind) in str(error.value)


CELLS = st.text("=+-@\t\r\n,;\"'ab1 é\udcff", max_size=6) | st.integers() | st.none()


@given(st.lists(st.tuples(CELLS, CELLS), max_size=5))
def test_cells_are_not_run_as_formulas(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple]
) -> None:
    path = tmp_path_factory.mktemp("table") / "a.csv"
    files.write_table(path, ["a", "=b"], rows)
    with path.open(encoding="utf-8", newline="") as file:
        (_, head), *found = csv.reader(file)
    assert head == "'=b" and len(found) == len(rows)
    for written, read in zip(rows, found, strict=True):
        for cell, text in zip(written, read, strict=True):
            assert not text.startswith(("=", "+", "@", "\t", "\r", "\n"))
            assert isinstance(cell, int) or not text.startswith("-")
            assert isinstance(cell, str) or text == ("" if cell is None else str(cell))


@pytest.mark.parametrize(
    ("text", "cells"),
    [("a,b\n1,\n2\n", [["1", ""], ["2", ""]]), ("a,b\n01,NA\n", [["01", "NA"]])],
)
def test_table_is_read_as_text(text: str, cells: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    assert files.read_table(tmp_path / "a.csv").values.tolist() == cells


@pytest.mark.parametrize("text", ["", "a,b\n1,2,3\n4,5,6\n", "a,b\n1,2\n4,5,6\n", 'a,b\n"1,2'])
def test_table_with_lost_cells_is_rejected(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError):
        files.read_table(tmp_path / "a.csv")


def test_data_frame_is_written_as_a_table(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": ["x", None], "b": [1.5, np.nan], "c": [True, False]})
    table["d"] = pd.array([1, None], "Int64")
    files.write_table(tmp_path / "a.csv", table.columns, table.itertuples(index=False))
    assert (tmp_path / "a.csv").read_text() == "a,b,c,d\nx,1.5,True,1\n,,False,\n"
