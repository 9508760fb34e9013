"""03 under faults: kills, signals, a full disk, and edited tables and folders."""

import importlib
import os
import re
import shutil
import signal
import time
import unicodedata
from collections import defaultdict
from functools import partial
from pathlib import Path

import faults
import filelock
import pandas as pd
import pytest
from conftest import run_script
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfake_detect import files

pytestmark = pytest.mark.long

SCRIPT = "03-prepare-fake-real-dataset.py"
prepare = importlib.import_module("03-prepare-fake-real-dataset")
FOLDERS = ("prepared_dataset", "split_dataset")


def write_input(folder: Path, people: int = 12, crops: int = 8, size: int = 30) -> Path:
    """Write frames/videos.csv and faces/ of some people, with a real and a fake video each."""
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
    folders = {
        "frames_dir": folder / "frames",
        "faces_dir": folder / "faces",
        "prepared_dir": folder / "prepared_dataset",
        "split_dir": folder / "split_dataset",
    }
    return prepare.main(prepare.Settings(**folders | settings))


def read(folder: Path) -> dict[str, dict[str, bytes]]:
    return {name: faults.read_tree(folder / name) for name in FOLDERS if (folder / name).exists()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_input(tmp_path / "work")


# Kills and a full disk


def test_killed_run_leaves_old_or_new_folders_or_none(folder: Path) -> None:
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

    faults.kill_again_and_again(SCRIPT, "--seed", 2, cwd=folder, longest=2, check=check)
    result = run_script(SCRIPT, "--seed", 2, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""  # neither a warning nor, without a terminal, a progress bar
    assert read(folder) == new
    assert not list(folder.glob(".*unfinished*"))


def test_leftovers_of_a_killed_run_are_deleted(folder: Path) -> None:
    run(folder)
    new = read(folder)
    for name in FOLDERS:  # killed while writing a crop, and while deleting the old folder
        for number in "ab":
            left = folder / f".{name}.unfinished-{number * 32}"
            shutil.copytree(folder / name, left)
            shutil.rmtree(next(left.glob("*/")))
            next(left.rglob("*.png")).write_bytes(b"half")
            (left / ".made-by").unlink()
    shutil.rmtree(folder / "split_dataset")
    run(folder)
    assert read(folder) == new
    assert not list(folder.glob(".*unfinished*"))


def test_second_run_stops(folder: Path) -> None:
    for name in FOLDERS:
        with (
            filelock.FileLock(folder / f".{name}.lock"),
            pytest.raises(ValueError, match=f"{name}: another run"),
        ):
            run(folder)
        assert read(folder) == {}
    run(folder)  # the lock files still exist, as after a crash


def test_full_disk_keeps_the_old_folders(tmp_path: Path) -> None:
    with faults.small_disk(tmp_path / "disk", 3) as resize:
        folder = write_input(tmp_path / "disk" / "work")
        run(folder, seed=1, files="copy")
        old = read(folder)
        resize(faults_used(tmp_path / "disk") + 0.05)
        with pytest.raises(ValueError, match=r"split_dataset: stopped by an error .*No space left"):
            run(folder, seed=2, files="copy")
        assert read(folder) == old
        resize(20)
        run(folder, seed=2, files="copy")
        assert read(folder) != old and not list(folder.glob(".*unfinished*"))


def faults_used(disk: Path) -> float:
    """Return the used space in megabytes."""
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
def test_invalid_table_is_rejected(table: str, content: bytes, folder: Path) -> None:
    (folder / table).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        run(folder)
    assert str(folder / Path(table).parent) in str(raised.value)
    assert "\n" not in str(raised.value).strip() and read(folder) == {}


def test_duplicate_row_is_rejected(folder: Path) -> None:
    path = folder / "frames" / "videos.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[1]]))
    with pytest.raises(ValueError, match="video_id dfd-real-00 occurs twice; run 01-"):
        run(folder)


def test_rows_with_paths_outside_the_folder_are_left_out(
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


def test_missing_crops_and_invalid_labels_are_counted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "faces" / "dfd-real-03" / "dfd-real-03-000002-00.png").unlink()
    edit(folder / "frames" / "videos.csv", "DFD,fake,m,05", "DFD,perhaps,m,05")
    long = "long" * 100  # valid, but too long for a file name
    with (folder / "faces" / "faces.csv").open("a") as table:
        table.write(f"{long}/{long}-000000-00.png,{long}\n")
    run(folder)
    said = capsys.readouterr().out
    assert "2 crops of faces.csv, not on disk: dfd-real-03/dfd-real-03-000002-00.png" in said
    assert "9 crops of faces.csv, their video is not listed as real or fake in videos.csv" in said


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "\x00\x01"])
def test_split_with_a_foreign_crops_csv_is_not_deleted(content: str, folder: Path) -> None:
    run(folder)
    (folder / "split_dataset" / "crops.csv").write_text(content)
    before = read(folder)
    with pytest.raises(ValueError, match="not created by this script; move it"):
        run(folder)
    assert read(folder) == before


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_input(tmp_path_factory.mktemp("scratch") / "work", people=4, crops=2)


FIELDS = st.text('ab,.-"\\/\n\r0129é\x00', max_size=20)


@given(st.lists(st.tuples(FIELDS, FIELDS), max_size=5), st.binary(max_size=10))
@settings(deadline=None, max_examples=200)
def test_random_faces_csv_never_crashes(
    scratch: Path, rows: list[tuple[str, str]], tail: bytes
) -> None:
    path = scratch / "faces" / "faces.csv"
    whole = path.read_bytes()
    try:
        extra = "\n".join(f"{crop},{video_id}" for crop, video_id in rows)
        path.write_bytes(whole + extra.encode() + tail)
        videos, crops = prepare.read_videos_and_crops(
            prepare.Settings(frames_dir=scratch / "frames", faces_dir=scratch / "faces")
        )
        assert len(crops) <= 16 and set(videos.label) == {"real", "fake"}
    except ValueError:
        pass
    finally:
        path.write_bytes(whole)


# Tables saved by a spreadsheet


def write_by_01(folder: Path, videos: pd.DataFrame) -> None:
    """Write videos.csv as 01 does, with its checksum."""
    (folder / "frames" / "videos.csv").unlink()
    output = files.claim(folder / "frames", "--frames-dir", "01-convert-video-to-image.py", True)
    save = partial(files.write_table, columns=videos.columns, rows=videos.itertuples(index=False))
    output.write("videos.csv", save)


@pytest.fixture
def ffpp(folder: Path) -> pd.DataFrame:
    """Return videos of 12 people in the layout of FaceForensics++."""
    videos = pd.read_csv(folder / "frames/videos.csv", dtype=str, keep_default_na=False)
    crops = pd.read_csv(folder / "faces/faces.csv", dtype=str)
    for row, (video_id, person) in enumerate(zip(videos.video_id, videos.identities, strict=True)):
        real, other = f"0{person}", f"0{int(person) ^ 1:02d}"
        name, group, people = (
            (real, "original_sequences/youtube", real)
            if videos.label[row] == "real"
            else (f"{real}_{other}", "manipulated_sequences/Deepfakes", f"{real};{other}")
        )
        new_id = f"ffpp-{'original' if name == real else 'Deepfakes'}-c23-{name}"
        for path in (folder / "faces" / video_id).iterdir():
            path.rename(path.with_name(path.name.replace(video_id, new_id)))
        (folder / "faces" / video_id).rename(folder / "faces" / new_id)
        crops["crop"] = crops["crop"].str.replace(video_id, new_id)
        columns = ["video_id", "source", "dataset", "identities"]
        source = f"{group}/c23/videos/{name}.mp4"
        videos.loc[row, columns] = [new_id, source, "FaceForensics++", people]
    crops["video_id"] = crops["crop"].str.split("/").str[0]
    crops.to_csv(folder / "faces/faces.csv", index=False)
    write_by_01(folder, videos)
    return videos


def people_by_split(folder: Path) -> dict[str, set[str]]:
    """Return the splits of each person, from the file names alone."""
    found = defaultdict(set)
    for path in (folder / "split_dataset").glob("*/*/*.png"):
        for person in re.findall(r"(?<=[-_])0\d\d(?=[-_])", path.name.partition("c23")[2]):
            found[person].add(path.parts[-3])
    return found


def test_unchanged_table_is_accepted(
    folder: Path, ffpp: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    run(folder)
    assert "changed since 01" not in capsys.readouterr().out
    assert len(people_by_split(folder)) == 12


@pytest.mark.parametrize("change", ["zeros", "commas", "blanks"])
def test_table_saved_by_a_spreadsheet_keeps_people_together(
    change: str, folder: Path, ffpp: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    run(folder)
    before = read(folder)["split_dataset"]
    ffpp["identities"] = {
        "zeros": ffpp["identities"].str.replace("^0+(?=[0-9]+$)", "", regex=True),
        "commas": ffpp["identities"].str.replace(";", ","),
        "blanks": ffpp["identities"].str.replace(";", " ; ") + " ",
    }[change]
    ffpp.to_csv(folder / "frames/videos.csv", index=False)
    capsys.readouterr()
    run(folder)
    assert "changed since 01" in capsys.readouterr().out
    assert read(folder)["split_dataset"] == before
    assert all(len(splits) == 1 for splits in people_by_split(folder).values())


@pytest.mark.parametrize(("row", "identity"), [(2, "009"), (2, ""), (3, "1.5E+10"), (3, "001")])
def test_identity_that_contradicts_the_file_names_is_rejected(
    row: int, identity: str, folder: Path, ffpp: pd.DataFrame
) -> None:
    ffpp.loc[row, "identities"] = identity
    ffpp.to_csv(folder / "frames/videos.csv", index=False)
    with pytest.raises(ValueError, match=rf"videos\.csv.*{ffpp.video_id[row]}.*01-"):
        run(folder)
    assert read(folder) == {}


# Invalid folders and numbers


@pytest.mark.parametrize("name", ["split_dataset", "prepared_dataset"])
def test_foreign_folder_is_never_deleted(name: str, folder: Path, snapshot: callable) -> None:
    (folder / name / "mine").mkdir(parents=True)
    (folder / name / "mine" / "thesis.txt").write_text("three years")
    before = snapshot(folder)
    option = f"--{name.replace('dataset', 'dir').replace('_', '-')}"
    with pytest.raises(ValueError, match=rf"{name}: mine/thesis.txt.* {option}"):
        run(folder)
    after = snapshot(folder)
    assert {path: after[path] for path in after if not path.endswith(".lock")} == before


@pytest.mark.parametrize("end", [".partial", ".replaced.partial", ".unfinished"])
def test_folders_with_similar_names_are_kept(end: str, folder: Path) -> None:
    for name in FOLDERS:
        (folder / f"{name}{end}").mkdir()
        (folder / f"{name}{end}" / "thesis.txt").write_text("three years")
    run(folder)
    assert all((folder / f"{name}{end}" / "thesis.txt").exists() for name in FOLDERS)


def test_user_files_and_links_in_our_folders_are_not_deleted(folder: Path) -> None:
    run(folder)
    before = read(folder)
    for add in (
        lambda path: path.write_text("mine"),
        lambda path: path.symlink_to(folder / "faces", target_is_directory=True),
        lambda path: path.symlink_to("nowhere"),
    ):
        mine = folder / "split_dataset" / "train" / "mine"
        add(mine)
        with pytest.raises(ValueError, match="split_dataset: train/mine was not created"):
            run(folder)
        mine.unlink()
        assert read(folder) == before


def test_file_with_the_name_of_a_folder_is_kept(folder: Path, snapshot: callable) -> None:
    before = snapshot(folder)
    with pytest.raises(ValueError, match=r"videos\.csv: this is not a folder; .* --split-dir"):
        run(folder, split_dir=folder / "frames" / "videos.csv")
    assert {name: snapshot(folder)[name] for name in before} == before


def test_linked_folder_stays_a_link(folder: Path) -> None:
    run(folder)
    expected = read(folder)
    for name in FOLDERS:
        shutil.rmtree(folder / name)
        (folder / name).symlink_to(folder / "disk" / name)  # dangling at first
    for _ in range(3):
        run(folder)
        assert read(folder) == expected
        assert all((folder / name).is_symlink() for name in FOLDERS)
        assert sorted(path.name for path in (folder / "disk").glob("[!.]*")) == list(FOLDERS)


@pytest.mark.parametrize("planted", [".made-by", "crops.csv", "crop-rule.json"])
def test_planted_links_are_not_followed(planted: str, folder: Path) -> None:
    victim = folder / "victim.txt"
    victim.write_text("mine")
    (folder / "split_dataset").mkdir()
    (folder / "split_dataset" / planted).symlink_to(victim)
    with pytest.raises(ValueError, match=planted):
        run(folder)
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("mtime_kept", [True, False])
def test_user_file_with_the_name_of_a_crop_is_kept(mtime_kept: bool, folder: Path) -> None:
    """A listed crop that the user replaced is not deleted, even if its timestamp is the same."""
    run(folder, files="copy")
    split_dir = folder / "split_dataset"
    crop = next(split_dir.glob("train/real/*.png"))
    state = crop.stat()
    crop.write_bytes(crop.read_bytes()[::-1] if mtime_kept else b"mine")
    if mtime_kept:
        os.utime(crop, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(ValueError, match=crop.name):
        run(folder)
    assert crop.exists()


@pytest.mark.parametrize(
    ("prepared_dir", "split_dir"),
    [("a", "a"), ("a", "b/../a"), ("a", "a/b"), ("a/b", "a"), ("link", "a")],
)
def test_same_or_nested_folders_are_rejected(
    prepared_dir: str, split_dir: str, folder: Path
) -> None:
    (folder / "link").symlink_to("a")
    with pytest.raises(ValueError, match="two separate folders"):
        run(folder, prepared_dir=folder / prepared_dir, split_dir=folder / split_dir)
    assert not (folder / "a").exists()


def test_working_folder_is_rejected(
    folder: Path, snapshot: callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(folder)
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match="two separate folders"):
        run(folder, prepared_dir=Path("out/prepared"), split_dir=Path())
    with pytest.raises(ValueError, match=r"not created by this script.*--split-dir"):
        run(folder, prepared_dir=Path("../prepared"), split_dir=Path())
    assert {name: snapshot(folder)[name] for name in before} == before


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("split_ratio", (float("nan"),) * 3),
        ("split_ratio", (0.8, float("nan"), 0.1)),
        ("split_ratio", (float("inf"), 1, 1)),
        ("split_ratio", (1e308,) * 3),
        ("split_ratio", (1, 1, 0)),
        ("split_ratio", (1, -1, 1)),
        ("seed", -1),
        ("dfdc_parts", 0),
    ],
)
def test_number_out_of_range_is_rejected(option: str, value: object, folder: Path) -> None:
    with pytest.raises(ValueError, match=rf"--{option.replace('_', '-')}.* is .*; give"):
        run(folder, **{option: value})
    assert read(folder) == {}


def test_accented_names_match_in_any_unicode_form(folder: Path) -> None:
    path = folder / "frames" / "videos.csv"
    videos = pd.read_csv(path, dtype=str, keep_default_na=False)
    videos["identities"] = "José" + videos["identities"]
    forms = videos["label"].map({"real": "NFC", "fake": "NFD"})
    videos["identities"] = [
        unicodedata.normalize(form, name)
        for form, name in zip(forms, videos["identities"], strict=True)
    ]
    videos.to_csv(path, index=False)
    on_disk = run(folder)
    people = on_disk["video_id"].str[-2:]  # the number of the person
    assert (on_disk.groupby(people)["split"].nunique() == 1).all()


def test_crop_rule_is_copied_with_the_crops(folder: Path) -> None:
    run(folder)
    assert not any((folder / name / "crop-rule.json").exists() for name in FOLDERS)
    rule = '{"frames": "reduced", "margin": 0.3, "square": false}'
    for _ in range(2):
        (folder / "faces" / "crop-rule.json").write_text(rule)
        run(folder)
        for name in FOLDERS:
            assert (folder / name / "crop-rule.json").read_text() == rule
        rule = '{"frames": "full"}'
    assert (folder / "faces" / "crop-rule.json").stat().st_nlink == 1


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder, already split with seed 1, that takes long enough to split for a signal."""
    folder = write_input(tmp_path_factory.mktemp("large") / "work", people=20, crops=60)
    run(folder, seed=1)
    return folder


@pytest.mark.parametrize(("name", "seed"), [("SIGINT", 2), ("SIGTERM", 3), ("SIGHUP", 4)])
def test_signal_stops_the_run_and_keeps_the_old_folders(
    name: str, seed: int, large_folder: Path
) -> None:
    folder = large_folder
    old = read(folder)
    number = getattr(signal, name)
    before = signal.signal(
        number, signal.SIG_DFL
    )  # under nohup, the run would inherit the ignored signal
    for _ in range(20):  # on a busy machine, a run may end before the signal
        with faults.running(SCRIPT, "--seed", seed, cwd=folder) as running:
            while running.poll() is None and not list(
                folder.glob(".prepared_dataset.unfinished-*/real/*")
            ):
                time.sleep(0.001)
            running.send_signal(number)
            code = running.wait()
        if code:
            break
        old = read(folder)
        seed += 10
    signal.signal(number, before)
    assert code == 130
    assert (folder / "said").read_text().splitlines()[-1] == (
        f"{SCRIPT}: stopped; run the same command to continue."
    )
    assert read(folder) == old
    run(folder, seed=seed)
    assert read(folder) != old
    assert not list(folder.glob(".*unfinished*"))
