"""02 under faults: kills, crashes, signals, a full disk, and edited folders."""

import os
import re
import shutil
import signal
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import faults
import filelock
import pandas as pd
import pytest
from conftest import assert_stops, run_script, run_script_after
from frames import crop, make_frame, run_02, write_videos
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfake_detect import files

pytestmark = pytest.mark.long

SCRIPT = "02-crop-faces-with-mtcnn.py"


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videos(tmp_path_factory.mktemp("input") / "frames")


@pytest.fixture(scope="module")
def undisturbed(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of an undisturbed run."""
    faces = tmp_path_factory.mktemp("undisturbed") / "faces"
    assert len(run_02(frames, faces)) == 12
    return read(faces)


def read(faces: Path) -> dict[str, bytes]:
    tree = faults.read_tree(faces)
    tree.pop(".lock", None)
    tree.pop(".made-by", None)
    return tree


# Kills, crashes and signals


def test_run_continues_after_kills(
    frames: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    faces, times = tmp_path / "faces", {}

    def check() -> None:
        """Check that a folder with its final name is complete and not written again."""
        for folder in faces.glob("v?"):
            for path in folder.iterdir():
                name = path.relative_to(faces).as_posix()
                assert path.read_bytes() == undisturbed[name]
                assert times.setdefault(name, path.stat().st_mtime_ns) == path.stat().st_mtime_ns

    options = ("--frames-dir", frames, "--faces-dir", faces, "--workers", 2)
    faults.kill_again_and_again(SCRIPT, *options, cwd=tmp_path, longest=6, check=check)
    done = len(list(faces.glob("v?")))
    result = run_script(SCRIPT, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (f"{done:,} of 3 videos were done" in result.stdout) == (done > 0)
    check()
    assert read(faces) == undisturbed


def test_worker_crash_loses_only_its_video(tmp_path: Path) -> None:
    frames, faces = write_videos(tmp_path / "frames", videos=6, frames=16), tmp_path / "faces"
    options = ("--frames-dir", frames, "--faces-dir", faces, "--workers", 2)

    # Each task is a whole video, so that no worker is killed between tasks, which ends the run.
    with faults.running(SCRIPT, *options, cwd=tmp_path) as run:
        faults.wait_for(lambda: len(list(faces.glob(".unfinished-*/v*"))) == 2, run)
        for worker in faults.workers_of(run):
            os.kill(worker, signal.SIGKILL)
        assert run.wait() == 0, (tmp_path / "said").read_text()
    skipped = pd.read_csv(faces / "skipped.csv")
    assert skipped.video_id.tolist() == ["v0", "v1"]
    assert skipped.reason.str.contains(r"crashed \(exit code -9\)").all()
    crashed = set(skipped.video_id)
    assert {folder.name for folder in faces.glob("v?")} == {f"v{n}" for n in range(6)} - crashed
    assert not crashed & set(pd.read_csv(faces / "faces.csv").video_id)
    assert not list(faces.glob(".unfinished*"))
    assert set(run_02(frames, faces).video_id) == {f"v{n}" for n in range(6)}
    assert pd.read_csv(faces / "skipped.csv").empty


def test_run_ends_if_workers_cannot_start(tmp_path: Path) -> None:
    """The workers end immediately after their start, as with full memory."""
    frames = write_videos(tmp_path / "frames", videos=1, frames=2)
    dying = (
        "import os, deepfake_detect.pool as pool\n"
        "make = pool.make_processes\n"
        "pool.make_processes = lambda workers, loaded, _, *more: make(workers, loaded, os._exit, 7)"
    )
    result = run_script_after(dying, SCRIPT, "--frames-dir", frames, cwd=tmp_path)
    assert_stops(result, "faces", "the worker processes ended", "the same command")
    assert not list(tmp_path.glob("faces/.unfinished*"))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_end_the_run_and_all_its_processes(name: str, tmp_path: Path) -> None:
    frames, faces = write_videos(tmp_path / "frames", videos=4, frames=100), tmp_path / "faces"
    options = ("--frames-dir", frames, "--faces-dir", faces, "--workers", 2)
    with faults.running(SCRIPT, *options, cwd=tmp_path) as run:
        faults.wait_for(lambda: list(faces.glob(".unfinished-*/*/*.png")), run)
        if name == "SIGINT":
            os.killpg(run.pid, signal.SIGINT)  # like the shell: also to the workers
        else:
            run.send_signal(getattr(signal, name))
        assert run.wait() == 130
        faults.wait_for_end_of_all(run)
    said = (tmp_path / "said").read_text()
    assert said.rstrip().endswith(f"{SCRIPT}: stopped; run the same command to continue.")
    assert "Traceback" not in said
    assert not list(faces.glob(".unfinished*"))


def test_second_run_stops_and_stale_lock_is_ignored(
    frames: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    faces = tmp_path / "faces"
    faces.mkdir()
    with filelock.FileLock(faces / ".lock"), pytest.raises(filelock.Timeout):
        run_02(frames, faces)
    with filelock.FileLock(faces / ".lock"):
        options = ("--frames-dir", frames, "--faces-dir", faces)
        assert_stops(run_script(SCRIPT, *options, cwd=tmp_path), f"{faces}: another run")
    assert (faces / ".lock").exists()  # as after a crash
    run_02(frames, faces)
    assert read(faces) == undisturbed


def test_run_continues_after_a_full_disk(
    frames: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    with faults.small_disk(tmp_path / "disk", 0.3) as resize:
        faces = tmp_path / "disk" / "faces"
        with pytest.raises(OSError, match=r"stopped by an error .*No space left") as raised:
            run_02(frames, faces)
        assert str(faces) in str(raised.value)
        finished = {
            name: content for name, content in read(faces).items() if "unfinished" not in name
        }
        assert finished.items() <= undisturbed.items()
        assert not (faces / "faces.csv").exists()
        resize(20)
        run_02(frames, faces)
        assert read(faces) == undisturbed


# Changed and edited input


def test_changed_setting_redoes_all_videos(frames: Path, tmp_path: Path) -> None:
    one, both = tmp_path / "one", tmp_path / "both"
    run_02(frames, one, margin=0.1)
    run_02(frames, both, margin=0.4)
    run_02(frames, both, margin=0.1)
    assert read(one) == read(both)


def test_changed_videos_are_redone_and_removed_videos_deleted(
    frames: Path, undisturbed: dict[str, bytes], tmp_path: Path, snapshot: Callable
) -> None:
    mine, faces = tmp_path / "frames", tmp_path / "faces"
    shutil.copytree(frames, mine)
    run_02(mine, faces)
    before = snapshot(faces)
    shutil.copy(mine / "v0" / "v0-000000.png", mine / "v1" / "v1-000000.png")
    videos = pd.read_csv(mine / "videos.csv")
    videos[videos.video_id != "v2"].to_csv(mine / "videos.csv", index=False)
    (files.name_unfinished(faces) / "v9").mkdir(parents=True)  # as after a killed run
    table = run_02(mine, faces)
    after = snapshot(faces)
    assert set(table.video_id) == {"v0", "v1"} and not (faces / "v2").exists()
    assert not list(faces.glob(".unfinished*"))
    for name in after:
        if name.startswith("v0/"):
            assert before[name] == after[name]
    assert after["v1/v1-000000-00.png"][0] == after["v0/v0-000000-00.png"][0]
    assert after["v1/v1-000001-00.png"][0] == before["v1/v1-000001-00.png"][0]


def cut(faces: Path) -> None:
    path = faces / "v1" / "faces.json"
    path.write_bytes(path.read_bytes()[:100])


def make_a_list(faces: Path) -> None:
    (faces / "v1" / "faces.json").write_text("[1, 2]")


def rename_in_json(faces: Path) -> None:
    path = faces / "v1" / "faces.json"
    path.write_text(path.read_text().replace("v1-000000-00", "v1-000000-07"))


def delete_crop(faces: Path) -> None:
    (faces / "v1" / "v1-000002-00.png").unlink()


def add_crop(faces: Path) -> None:
    shutil.copy(faces / "v1" / "v1-000002-00.png", faces / "v1" / "v1-000002-01.png")


@pytest.mark.parametrize("edit", [cut, make_a_list, rename_in_json, delete_crop, add_crop])
def test_edited_folder_is_redone(
    edit: Callable, frames: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    faces = tmp_path / "faces"
    run_02(frames, faces)
    untouched = (faces / "v0" / "faces.json").stat().st_mtime_ns
    edit(faces)
    run_02(frames, faces)
    assert read(faces) == undisturbed
    assert (faces / "v0" / "faces.json").stat().st_mtime_ns == untouched


# Files of the user


def test_only_own_folders_are_deleted(frames: Path, tmp_path: Path) -> None:
    faces = tmp_path / "faces"
    (faces / "mine.partial").mkdir(parents=True)
    (faces / "mine.partial" / "thesis.txt").write_text("three years of work")
    before = faults.read_tree(faces)
    with pytest.raises(ValueError, match=r"faces: mine.partial was not created"):
        run_02(frames, faces)
    assert faults.read_tree(faces) == before and not (faces / ".lock").exists()

    shutil.move(faces / "mine.partial", tmp_path / "mine.partial")
    run_02(frames, faces)
    shutil.move(tmp_path / "mine.partial", faces / "mine.partial")
    for name, content in (("kinetics", "{}"), ("photos", '[{"face": 1}]'), ("torn", "{")):
        (faces / name).mkdir()
        (faces / name / "faces.json").write_text(content)
        (faces / name / "notes.txt").write_text("mine")
    own = faces / "gone"  # the folder of a removed video
    shutil.copytree(faces / "v0", own)
    for path in own.glob("*.png"):
        path.rename(path.with_name(path.name.replace("v0", "gone")))
    before = faults.read_tree(faces)
    run_02(frames, faces, margin=0.2)
    after = faults.read_tree(faces)
    assert not own.exists()
    for name in before:
        if name.startswith(("mine", "kinetics", "photos", "torn")):
            assert after.get(name) == before[name], name


def test_foreign_folder_with_a_video_name_stops_the_run(frames: Path, tmp_path: Path) -> None:
    faces = tmp_path / "faces"
    files.claim(faces, "--faces-dir", SCRIPT)
    (faces / "v1").mkdir()
    for content in ("{}", "[1, 2]", '{"made_by": "another"}'):
        (faces / "v1" / "faces.json").write_text(content)
        with pytest.raises(ValueError, match=r"faces: v1 was not created by this script"):
            run_02(frames, faces)
        assert (faces / "v1" / "faces.json").read_text() == content


def test_linked_folders_stay_links(
    frames: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    large, faces = tmp_path / "large-disk", tmp_path / "faces"
    large.mkdir()
    (tmp_path / "faces-there").mkdir()
    faces.symlink_to(tmp_path / "faces-there")
    run_02(frames, faces)
    shutil.move(faces / "v1", large / "moved")
    (faces / "v1").symlink_to(large / "moved")
    run_02(frames, faces, margin=0.1)
    run_02(frames, faces)
    assert faces.is_symlink() and (faces / "v1").is_symlink()
    assert faults.read_tree(large / "moved").keys() == faults.read_tree(faces / "v1").keys()
    linked = {f"v1/{name}": content for name, content in faults.read_tree(large / "moved").items()}
    assert read(faces) | linked == undisturbed
    assert [path.name for path in large.iterdir()] == ["moved"]

    videos = pd.read_csv(frames / "videos.csv")
    mine = tmp_path / "frames"
    shutil.copytree(frames, mine)
    videos[videos["video_id"] != "v1"].to_csv(mine / "videos.csv", index=False)
    run_02(mine, faces)  # same settings: the other videos are already done
    assert not (faces / "v1").is_symlink() and len(list((large / "moved").iterdir())) == 5

    (faces / "v1").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"v1 was not created by this script"):
        run_02(frames, faces)


def test_planted_links_are_not_followed(frames: Path, tmp_path: Path) -> None:
    faces, victim, room = tmp_path / "faces", tmp_path / "victim.txt", tmp_path / "room"
    victim.write_text("precious")
    room.mkdir()
    (room / "v0").mkdir()
    files.claim(faces, "--faces-dir", SCRIPT)
    tables = ("faces", "skipped", "crop-rule")
    for name in (f"{table}.partial{end}" for table in tables for end in (".csv", ".json")):
        (faces / name).symlink_to(victim)
    (faces / (".unfinished-" + "0" * 32)).symlink_to(room)
    run_02(frames, faces)
    assert victim.read_text() == "precious" and not list(room.rglob("*.*"))
    assert not (faces / "faces.csv").is_symlink() and not list(faces.glob(".unfinished*"))


# Broken input


def png_claiming(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_broken_frames_are_listed_and_odd_sizes_searched(tmp_path: Path) -> None:
    frames = write_videos(tmp_path / "frames", videos=1, frames=3)
    folder = frames / "v0"
    whole = (folder / "v0-000000.png").read_bytes()
    (folder / "v0-000010.png").write_bytes(whole[: len(whole) // 2])
    (folder / "v0-000011.png").write_bytes(png_claiming(200_000, 200_000))
    (folder / "v0-000012.png").write_bytes(b"")
    (folder / "v0-000013.png").mkdir()
    for index, size in ((20, (1, 1)), (21, (3000, 1)), (22, (4000, 3000))):
        frame = (
            make_frame((1000, 1000, 1.0), size=size) if size[0] == 4000 else make_frame(size=size)
        )
        cv2.imwrite(str(folder / f"v0-{index:06d}.png"), frame)
    (folder / "notes.txt").write_text("mine")
    (folder / "v0-1.png").write_bytes(whole)  # 01 does not use this name
    table = run_02(frames, tmp_path / "faces")
    assert sorted(table.frame) == [0, 1, 2, 22]
    skipped = pd.read_csv(tmp_path / "faces" / "skipped.csv").set_index("frame").reason
    # OpenCV may or may not decode the first half of a picture, so frame 10 is optional.
    assert set(skipped.index) - {10} == {11, 12, 13}
    assert skipped[12] == "is an empty file"


def test_pipes_and_broken_links_are_skipped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    frames = write_videos(tmp_path / "frames", videos=1, frames=2)
    folder = frames / "v0"
    os.mkfifo(folder / "v0-000010.png")
    (folder / "v0-000011.png").symlink_to(folder / "v0-000010.png")
    (folder / "v0-000012.png").symlink_to("/dev/zero")
    (folder / "v0-000013.png").symlink_to(folder / "nothing")
    (folder / "v0-000014.png").symlink_to(folder / "v0-000014.png")
    (folder / "v0-000015.png").symlink_to(folder / "v0-000000.png")
    table = run_02(frames, tmp_path / "faces")
    assert sorted(table["frame"]) == [0, 1, 15]
    skipped = pd.read_csv(tmp_path / "faces" / "skipped.csv")
    assert skipped["frame"].tolist() == [10, 11, 12, 13, 14]
    assert skipped["reason"].notna().all()
    assert "5 frames (skipped.csv)" in capsys.readouterr().out
    run_02(frames, tmp_path / "faces")
    assert "1 of 1 videos were done" in capsys.readouterr().out
    shutil.copy(folder / "v0-000001.png", folder / "nothing")  # the target of the broken link
    assert sorted(run_02(frames, tmp_path / "faces")["frame"]) == [0, 1, 13, 15]


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e308"])
@pytest.mark.parametrize("name", ["confidence", "margin", "min_face_size", "scale_factor"])
def test_infinite_and_nan_settings_are_rejected(name: str, value: str, tmp_path: Path) -> None:
    sentence = re.escape(f"--{name.replace('_', '-')} is {float(value)}; give ")
    with pytest.raises(ValueError, match=sentence):
        run_02(tmp_path / "none", tmp_path / "faces", **{name: float(value)})
    with pytest.raises(ValueError, match=r"--thresholds is "):
        run_02(tmp_path / "none", tmp_path / "faces", thresholds=(0.6, float(value), 0.8))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"video_id,frames\nv0,3\n",
        b"video_id,frames,status\nv0,three,ok\n",
        b"video_id,frames,status\nv0,,ok\n",
        b"video_id,frames,status\nv0,99999999999999999999999,ok\n",
        b"video_id,frames,status\n../v0,3,ok\n",
        b"video_id,frames,status\nC:\\v0,3,ok\n",
        b"video_id,frames,status\n..,3,ok\n",
        b"video_id,frames,status\n,3,ok\n",
        b"video_id,frames,status\nv0,3,ok\nv0,3,ok\n",
        b"\xff\xfe" + "video_id,frames,status\nv0,3,ok\n".encode("utf-16-le"),
        b"video_id,frames,status\n\x80\x81,3,ok\n",
        b'video_id,frames,status\n"v0,3,ok\n',
    ],
)
def test_invalid_videos_csv_is_rejected(content: bytes, tmp_path: Path) -> None:
    frames = write_videos(tmp_path / "frames", videos=1, frames=1)
    (frames / "videos.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"01-convert-video-to-image\.py") as raised:
        run_02(frames, tmp_path / "faces")
    assert str(frames / "videos.csv") in str(raised.value)
    assert not (tmp_path / "faces").exists()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


LINES = st.lists(st.text('ab,."\\/\n\r\t0123é\x00', max_size=12), max_size=6)


@given(LINES, st.binary(max_size=20))
@settings(deadline=None, max_examples=200)
def test_video_ids_cannot_escape_the_folder(scratch: Path, lines: list[str], tail: bytes) -> None:
    text = "\n".join(["video_id,frames,status", *(f"{line},3,ok" for line in lines)])
    (scratch / "videos.csv").write_bytes(text.encode() + tail)
    try:
        video_ids = crop.read_videos(scratch)
    except ValueError:
        return
    for video_id in video_ids:
        assert (scratch / video_id).parent == scratch and video_id not in ("", ".", "..")
