"""02 in trouble: killed, crashed, stopped, a full disk, and folders that somebody has edited."""

import importlib
import os
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
from conftest import run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from test_02_crop import make_frame

SCRIPT = "02-crop-faces-with-mtcnn.py"
crop = importlib.import_module("02-crop-faces-with-mtcnn")
KILLS = int(os.environ.get("KILLS", "3"))  # 20 by hand: each takes as long as a run


def write_frames(folder: Path, videos: int = 3, frames: int = 4) -> Path:
    """A frames folder as 01 writes it: another head, and another place of it, in each video."""
    for number in range(videos):
        video_id = f"v{number}"
        (folder / video_id).mkdir(parents=True)
        for index in range(frames):
            frame = make_frame(
                (20 + 30 * number + 5 * index, 10, 0.7 + 0.05 * number), size=(320, 240)
            )
            cv2.imwrite(str(folder / video_id / f"{video_id}-{index:06d}.png"), frame)
    rows = [(f"v{number}", frames, "ok") for number in range(videos)]
    pd.DataFrame(rows, columns=["video_id", "frames", "status"]).to_csv(
        folder / "videos.csv", index=False
    )
    return folder


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frames(tmp_path_factory.mktemp("input") / "frames")


@pytest.fixture(scope="module")
def undisturbed(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run that nothing befell writes."""
    faces = tmp_path_factory.mktemp("undisturbed") / "faces"
    assert len(crop.main(frames, faces, workers=1)) == 12
    return read(faces)


def read(faces: Path) -> dict[str, bytes]:
    tree = faults.read_tree(faces)
    tree.pop(".lock", None)
    return tree


# Killed, crashed, stopped


def test_killed_at_any_moment_it_goes_on(
    frames: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    faces, times = tmp_path / "faces", {}

    def check() -> None:
        """A folder with a final name is whole, and is never written again."""
        for folder in faces.glob("v?"):
            for path in folder.iterdir():
                name = path.relative_to(faces).as_posix()
                assert path.read_bytes() == undisturbed[name]
                assert times.setdefault(name, path.stat().st_mtime_ns) == path.stat().st_mtime_ns

    options = ("--frames-dir", frames, "--faces-dir", faces, "--workers", 2)
    faults.kill_again_and_again(
        SCRIPT, *options, cwd=tmp_path, times=KILLS, longest=15, check=check
    )
    done = len(list(faces.glob("v?")))
    result = run_script(SCRIPT, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (f"{done:,} of 3 videos were done" in result.stdout) == (done > 0)
    check()
    assert read(faces) == undisturbed


def test_a_crash_of_a_worker_costs_its_video_only(tmp_path: Path) -> None:
    frames, faces = write_frames(tmp_path / "frames", videos=6, frames=40), tmp_path / "faces"
    options = ("--frames-dir", frames, "--faces-dir", faces, "--workers", 2)

    def two_are_begun() -> bool:
        return len({path.parent for path in faces.glob("*.partial/*.png")}) == 2

    with faults.running(SCRIPT, *options, cwd=tmp_path) as run:
        faults.wait_for(two_are_begun, run)
        for worker in faults.workers_of(run):
            os.kill(worker, signal.SIGKILL)
        assert run.wait(timeout=240) == 0, (tmp_path / "said").read_text()
    skipped = pd.read_csv(faces / "skipped.csv")
    assert 1 <= len(skipped) <= 2  # one, if both were at the same video
    assert skipped.reason.str.fullmatch(
        r"the process that searched it crashed \(exit code -9\); the next run tries again"
    ).all()
    crashed = set(skipped.video_id)
    assert {folder.name for folder in faces.glob("v?")} == {f"v{n}" for n in range(6)} - crashed
    assert not crashed & set(pd.read_csv(faces / "faces.csv").video_id)
    assert not list(faces.glob("*.partial"))
    assert set(crop.main(frames, faces, workers=1).video_id) == {f"v{n}" for n in range(6)}
    assert pd.read_csv(faces / "skipped.csv").empty


def test_ctrl_c_ends_it_and_all_of_its_processes(tmp_path: Path) -> None:
    frames, faces = write_frames(tmp_path / "frames", videos=4, frames=100), tmp_path / "faces"
    options = ("--frames-dir", frames, "--faces-dir", faces, "--workers", 2)
    with faults.running(SCRIPT, *options, cwd=tmp_path) as run:
        faults.wait_for(lambda: list(faces.glob("*.partial/*.png")), run)
        os.killpg(run.pid, signal.SIGINT)  # as the shell does: to the workers as well
        assert run.wait(timeout=30) == 130
        faults.wait_for_end_of_all(run)
    said = (tmp_path / "said").read_text()
    assert said.rstrip().endswith(f"{SCRIPT}: stopped; run it again to go on.")
    assert "Traceback" not in said


def test_a_second_run_stops_and_a_dead_one_s_lock_does_not_hold(
    frames: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    faces = tmp_path / "faces"
    faces.mkdir()
    with filelock.FileLock(faces / ".lock"), pytest.raises(ValueError, match="another run is writ"):
        crop.main(frames, faces, workers=1)
    assert (faces / ".lock").exists()  # left behind as by a crash
    crop.main(frames, faces, workers=1)
    assert read(faces) == undisturbed


def test_a_full_disk_stops_it_and_after_room_is_made_it_goes_on(
    frames: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    with faults.small_disk(tmp_path / "disk", 0.3) as resize:
        faces = tmp_path / "disk" / "faces"
        with pytest.raises(OSError, match=r"stopped by an error .*No space left") as raised:
            crop.main(frames, faces, workers=1)
        assert str(faces) in str(raised.value)
        finished = {name: content for name, content in read(faces).items() if "partial" not in name}
        assert finished.items() <= undisturbed.items()
        assert not (faces / "faces.csv").exists()
        resize(20)
        crop.main(frames, faces, workers=1)
        assert read(faces) == undisturbed


# Changed and edited input


def test_a_changed_setting_redoes_all(frames: Path, tmp_path: Path) -> None:
    one, both = tmp_path / "one", tmp_path / "both"
    crop.main(frames, one, margin=0.1, workers=1)
    crop.main(frames, both, margin=0.4, workers=1)
    crop.main(frames, both, margin=0.1, workers=1)
    assert read(one) == read(both)


def test_what_changed_is_redone_and_what_is_gone_is_dropped(
    frames: Path, undisturbed: dict[str, bytes], tmp_path: Path, snapshot: Callable
) -> None:
    mine, faces = tmp_path / "frames", tmp_path / "faces"
    shutil.copytree(frames, mine)
    crop.main(mine, faces, workers=1)
    before = snapshot(faces)
    shutil.copy(mine / "v0" / "v0-000000.png", mine / "v1" / "v1-000000.png")
    videos = pd.read_csv(mine / "videos.csv")
    videos[videos.video_id != "v2"].to_csv(mine / "videos.csv", index=False)
    (faces / "v9.partial").mkdir()  # of a run that was killed
    table = crop.main(mine, faces, workers=1)
    after = snapshot(faces)
    assert set(table.video_id) == {"v0", "v1"} and not (faces / "v2").exists()
    assert not (faces / "v9.partial").exists()
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
    shutil.copy(faces / "v1" / "v1-000002-00.png", faces / "v1" / "mine.png")


@pytest.mark.parametrize("edit", [cut, make_a_list, rename_in_json, delete_crop, add_crop])
def test_a_folder_edited_by_hand_is_made_again(
    edit: Callable, frames: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    faces = tmp_path / "faces"
    for name, content in undisturbed.items():
        (faces / name).parent.mkdir(parents=True, exist_ok=True)
        (faces / name).write_bytes(content)
    untouched = (faces / "v0" / "faces.json").stat().st_mtime_ns
    edit(faces)
    crop.main(frames, faces, workers=1)
    assert read(faces) == undisturbed
    assert (faces / "v0" / "faces.json").stat().st_mtime_ns == untouched


# Broken input


def png_claiming(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_broken_frames_are_named_and_odd_ones_searched(tmp_path: Path) -> None:
    frames = write_frames(tmp_path / "frames", videos=1, frames=3)
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
    (folder / "v0-1.png").write_bytes(whole)  # not a name that 01 gives
    table = crop.main(frames, tmp_path / "faces", workers=1)
    assert sorted(table.frame) == [0, 1, 2, 22]
    skipped = pd.read_csv(tmp_path / "faces" / "skipped.csv").set_index("frame").reason
    # OpenCV makes what it can of the first half of a picture, or nothing.
    assert set(skipped.index) - {10} == {11, 12, 13}
    assert skipped[12] == "is an empty file"


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
def test_a_table_that_01_does_not_write_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    frames = write_frames(tmp_path / "frames", videos=1, frames=1)
    (frames / "videos.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"is not a table that 01 writes|has frames") as raised:
        crop.main(frames, tmp_path / "faces", workers=1)
    assert str(frames / "videos.csv") in str(raised.value)
    assert not (tmp_path / "faces").exists()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


LINES = st.lists(st.text('ab,."\\/\n\r\t0123é\x00', max_size=12), max_size=6)


@given(LINES, st.binary(max_size=20))
@settings(deadline=None, max_examples=200)
def test_no_table_leads_out_of_the_folder(scratch: Path, lines: list[str], tail: bytes) -> None:
    text = "\n".join(["video_id,frames,status", *(f"{line},3,ok" for line in lines)])
    (scratch / "videos.csv").write_bytes(text.encode() + tail)
    try:
        video_ids = crop.read_videos(scratch)
    except ValueError:
        return
    for video_id in video_ids:
        assert (scratch / video_id).parent == scratch and video_id not in ("", ".", "..")
