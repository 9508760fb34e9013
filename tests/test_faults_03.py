"""03 in trouble: killed, stopped, a full disk, tables and folders that somebody has edited."""

import importlib
import os
from pathlib import Path

import faults
import filelock
import pandas as pd
import pytest
from conftest import run_script
from hypothesis import given, settings
from hypothesis import strategies as st

SCRIPT = "03-prepare-fake-real-dataset.py"
prepare = importlib.import_module("03-prepare-fake-real-dataset")
KILLS = int(os.environ.get("KILLS", "5"))  # 20 by hand: each takes as long as a run
FOLDERS = ("prepared_dataset", "split_dataset")


def write_input(folder: Path, people: int = 12, crops: int = 8, size: int = 30) -> Path:
    """frames/videos.csv and faces/ of so many people, each with a real and a fake video."""
    videos, faces = [], []
    for person in range(people):
        for label in ("real", "fake"):
            video_id = f"dfd-{label}-{person:02d}"
            videos.append((video_id, f"{video_id}.mp4", "DFD", label, "m", f"{person:02d}", ""))
            (folder / "faces" / video_id).mkdir(parents=True)
            for number in range(crops):
                crop = f"{video_id}/{video_id}-{number:06d}-00.png"
                (folder / "faces" / crop).write_bytes(crop.encode() * size)
                faces.append((crop, video_id))
    columns = ["video_id", "source", "dataset", "label", "method", "identities", "official_split"]
    (folder / "frames").mkdir()
    pd.DataFrame(videos, columns=columns).to_csv(folder / "frames" / "videos.csv", index=False)
    pd.DataFrame(faces, columns=["crop", "video_id"]).to_csv(
        folder / "faces" / "faces.csv", index=False
    )
    return folder


def run(folder: Path, **settings: object) -> pd.DataFrame:
    return prepare.main(
        folder / "frames",
        folder / "faces",
        folder / "prepared_dataset",
        folder / "split_dataset",
        **settings,
    )


def read(folder: Path) -> dict[str, dict[str, bytes]]:
    return {name: faults.read_tree(folder / name) for name in FOLDERS if (folder / name).exists()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_input(tmp_path / "work")


# Killed, stopped


def test_killed_at_any_moment_a_folder_is_old_or_new_or_not_there(folder: Path) -> None:
    run(folder, seed=1)
    old = read(folder)
    run(folder, seed=2)
    new = read(folder)
    assert old["split_dataset"] != new["split_dataset"]
    run(folder, seed=1)

    def check() -> None:
        found = read(folder)
        for name, tree in found.items():
            assert tree in (old[name], new[name])
        if found.get("split_dataset") == old["split_dataset"] != new["split_dataset"]:
            assert found.get("prepared_dataset", old["prepared_dataset"]) == old["prepared_dataset"]

    faults.kill_again_and_again(
        SCRIPT, "--seed", 2, cwd=folder, times=KILLS, longest=4, check=check
    )
    result = run_script(SCRIPT, "--seed", 2, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert read(folder) == new
    assert not list(folder.glob("*.partial"))


def test_whatever_was_left_by_a_kill_is_cleared_away(folder: Path) -> None:
    run(folder)
    new = read(folder)
    for name in FOLDERS:
        (folder / f"{name}.partial" / "real").mkdir(parents=True)
        (folder / f"{name}.partial" / "real" / "half.png").write_bytes(b"half")
    (folder / "split_dataset").rename(folder / "split_dataset.replaced.partial")
    run(folder)
    assert read(folder) == new
    assert not list(folder.glob("*.partial"))


def test_a_second_run_stops(folder: Path) -> None:
    for name in FOLDERS:
        with (
            filelock.FileLock(folder / f".{name}.lock"),
            pytest.raises(ValueError, match=f"{name}: another run is writing to it"),
        ):
            run(folder)
        assert read(folder) == {}
    run(folder)  # the lock files are there still, as after a crash


def test_a_full_disk_leaves_the_old_folders_whole(tmp_path: Path) -> None:
    with faults.small_disk(tmp_path / "disk", 3) as resize:
        folder = write_input(tmp_path / "disk" / "work")
        run(folder, seed=1, files="copy")
        old = read(folder)
        resize(faults_used(tmp_path / "disk") + 0.05)
        with pytest.raises(OSError, match=r"split_dataset: stopped by an error .*No space left"):
            run(folder, seed=2, files="copy")
        assert read(folder) == old
        resize(20)
        run(folder, seed=2, files="copy")
        assert read(folder) != old and not list(folder.glob("*.partial"))


def faults_used(disk: Path) -> float:
    """The megabytes in use."""
    status = os.statvfs(disk)
    return (status.f_blocks - status.f_bfree) * status.f_frsize / 2**20


# Tables and folders edited by hand


def edit(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new, 1))


@pytest.mark.parametrize("table", ["frames/videos.csv", "faces/faces.csv"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"a,b\n1,2\n",
        b"\xff\xfev\x00i\x00",
        b"video_id,crop\n\x80,\x81\n",
        b'crop,video_id\n"a,b\n',
        b"crop,video_id\na,b,c,d\ne\n",
    ],
)
def test_a_table_of_another_kind_is_one_sentence(table: str, content: bytes, folder: Path) -> None:
    (folder / table).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        run(folder)
    assert str(folder / Path(table).parent) in str(raised.value)
    assert "\n" not in str(raised.value).strip() and read(folder) == {}


def test_a_row_twice_is_named(folder: Path) -> None:
    path = folder / "frames" / "videos.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[1]]))
    with pytest.raises(ValueError, match="has video_id dfd-real-00 twice: run 01-"):
        run(folder)


def test_rows_that_lead_out_of_the_folder_are_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = folder / "secret.png"
    outside.write_bytes(b"not a face")
    rows = [
        ("../secret.png", "dfd-real-00"),
        ("dfd-real-00/../../secret.png", "dfd-real-00"),
        (str(outside), "dfd-real-00"),
        ("../secret-000000-00.png", ".."),
        ("dfd-real-01/dfd-real-01-000000-01.png", "dfd-real-02"),
        ("", ""),
        ("long" * 100, "dfd-real-00"),
    ]
    path = folder / "faces" / "faces.csv"
    table = pd.concat([pd.read_csv(path), pd.DataFrame(rows, columns=["crop", "video_id"])])
    expected = run(folder)
    before = read(folder)
    table.to_csv(path, index=False)
    assert len(run(folder)) == len(expected)
    assert read(folder) == before
    said = capsys.readouterr().out
    assert "7 crops of faces.csv, not of the form video_id/video_id-000042-00.png" in said


def test_crops_that_are_gone_and_labels_that_are_none_are_counted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "faces" / "dfd-real-03" / "dfd-real-03-000002-00.png").unlink()
    edit(folder / "frames" / "videos.csv", "DFD,fake,m,05", "DFD,perhaps,m,05")
    long = "long" * 100  # well formed, and longer than a file's name can be
    with (folder / "faces" / "faces.csv").open("a") as table:
        table.write(f"{long}/{long}-000000-00.png,{long}\n")
    run(folder)
    said = capsys.readouterr().out
    assert "2 crops of faces.csv, not on disk: dfd-real-03/dfd-real-03-000002-00.png" in said
    assert "9 crops of faces.csv, their video not in videos.csv, or of no label" in said


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "\x00\x01"])
def test_a_split_with_a_crops_csv_of_another_kind_is_not_deleted(
    content: str, folder: Path
) -> None:
    run(folder)
    (folder / "split_dataset" / "crops.csv").write_text(content)
    before = read(folder)
    with pytest.raises(ValueError, match="holds files that this script did not make"):
        run(folder)
    assert read(folder) == before


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_input(tmp_path_factory.mktemp("scratch") / "work", people=4, crops=2)


FIELDS = st.text('ab,.-"\\/\n\r0129é\x00', max_size=20)


@given(st.lists(st.tuples(FIELDS, FIELDS), max_size=5), st.binary(max_size=10))
@settings(deadline=None, max_examples=200)
def test_no_table_of_faces_ends_in_anything_but_a_sentence(
    scratch: Path, rows: list[tuple[str, str]], tail: bytes
) -> None:
    path = scratch / "faces" / "faces.csv"
    whole = path.read_bytes()
    try:
        extra = "\n".join(f"{crop},{video_id}" for crop, video_id in rows)
        path.write_bytes(whole + extra.encode() + tail)
        videos, crops = prepare.read_videos_and_crops(scratch / "frames", scratch / "faces")
        assert len(crops) <= 16 and set(videos.label) == {"real", "fake"}
    except ValueError:
        pass
    finally:
        path.write_bytes(whole)
