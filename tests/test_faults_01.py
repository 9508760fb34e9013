"""Tests of faults in 01: kills, Ctrl-C, two runs, a full disk, broken videos and lists."""

import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path, PurePosixPath

import cv2
import imageio_ffmpeg
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, assert_stops, run_script, run_script_after, write_video
from faults import (
    finished_folders,
    jpeg,
    kill_again_and_again,
    read_tree,
    running,
    skip_as_root,
    small_disk,
    wait_for,
    wait_for_end_of_all,
    workers_of,
    write_avi,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfake_detect import datasets as catalogue
from deepfake_detect.video import Video

pytestmark = pytest.mark.long

resource = pytest.importorskip("resource", reason="signals and limits are not for Windows")
SCRIPT = "01-convert-video-to-image.py"
convert = importlib.import_module("01-convert-video-to-image")
DATA_SETS = ROOT / "data-sets.toml"
ROWS, LIST_ROWS = catalogue.read_data_sets(DATA_SETS)


def convert_all(videos_dir: Path, frames_dir: Path, **settings: object) -> pd.DataFrame:
    return convert.main(convert.Settings(videos_dir, frames_dir, **settings))


@pytest.fixture(scope="module")
def eight_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write videos/ with eight short videos, and whole/, the output of an undisturbed run."""
    folder = tmp_path_factory.mktemp("eight")
    for number in range(8):
        label = "real" if number % 2 else "fake"
        write_video(folder / f"videos/{label}/{number}.mp4", 25, (320, 240), seed=number)
    assert run_script(SCRIPT, "--frames-dir", "whole", cwd=folder).returncode == 0
    assert len(read_tree(folder / "whole")) == 8 * 26 + 5
    return folder


@pytest.fixture
def long_video(tmp_path: Path) -> Path:
    """Write videos/ with one long and two short videos."""
    write_avi(tmp_path / "videos/real/long.avi", [jpeg((640, 480))] * 250, (640, 480))
    for name in ("a", "b"):
        write_avi(tmp_path / f"videos/fake/{name}.avi", [jpeg((64, 48))] * 3)
    return tmp_path


def read_frames(frames_dir: Path) -> dict[str, bytes]:
    """Read all files except the list of own files, which also has files replaced since."""
    return {name: data for name, data in read_tree(frames_dir).items() if name != ".made-by"}


def is_converting(frames_dir: Path) -> bool:
    # Not the folders of outdated frames, which are moved there without a number of their own.
    return any(frames_dir.glob(f".unfinished-*/*-{'[0-9a-f]' * 32}/*.png"))


# --- Stopped runs ---------------------------------------------------------------------------------


def test_killed_run_continues(eight_videos: Path) -> None:
    frames, whole = eight_videos / "frames", read_frames(eight_videos / "whole")
    shutil.rmtree(frames, ignore_errors=True)
    finished = {}

    def check() -> None:
        if not frames.exists():
            return
        now = finished_folders(frames)
        assert {name: now[name] for name in finished} == finished, "something was done again"
        finished.update(now)
        for name, content in read_frames(frames).items():
            if not name.startswith(".unfinished-"):
                assert whole[name] == content, f"{name} is not whole"

    arguments = "--frames-dir", "frames", "--workers", 1
    with running(
        SCRIPT, *arguments, cwd=eight_videos
    ) as run:  # killed after it has certainly started
        wait_for(lambda: is_converting(frames), run)
    check()
    kill_again_and_again(SCRIPT, *arguments, cwd=eight_videos, longest=2.2, check=check)
    done = len(finished)
    result = run_script(SCRIPT, *arguments, cwd=eight_videos)
    assert result.returncode == 0
    assert (f"{done} of 8 videos were done" in result.stdout) == (done > 0)
    check()
    assert read_frames(frames) == whole


@pytest.mark.parametrize("moment", ["converting", "starting"])
def test_ctrl_c_ends_the_run(long_video: Path, moment: str) -> None:
    frames = long_video / "frames"
    with running(SCRIPT, cwd=long_video) as run:
        wait_for(lambda: workers_of(run), run)
        if moment == "converting":
            wait_for(lambda: len(finished_folders(frames)) == 2 and is_converting(frames), run)
        os.killpg(run.pid, signal.SIGINT)  # to all processes, like a terminal
        assert run.wait() == 130
        wait_for_end_of_all(run)
    said = (long_video / "said").read_text()
    assert said.endswith(f"{SCRIPT}: stopped; run the same command to continue.\n")
    assert "Traceback" not in said and "Error" not in said and "leaked" not in said
    assert not list(frames.glob(".unfinished*"))
    if moment == "converting":
        write_avi(long_video / "videos/real/long.avi", [jpeg((64, 48))])
        again = run_script(SCRIPT, cwd=long_video)
        assert "2 of 3 videos were done" in again.stdout


def test_ctrl_c_while_a_process_starts(long_video: Path) -> None:
    """The process exists but has not been set up yet; it must not be left running."""
    half_begun = (
        "import multiprocessing.forkserver as forkserver, os, signal\n"
        "begin = forkserver.connect_to_new_process\n"
        "def interrupt(fds):\n"
        "    pipes = begin(fds)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    return pipes\n"
        "forkserver.connect_to_new_process = interrupt"
    )
    result = run_script_after(half_begun, SCRIPT, cwd=long_video)
    assert result.returncode == 130
    assert result.stderr.endswith(f"{SCRIPT}: stopped; run the same command to continue.\n")
    assert "Traceback" not in result.stderr and "Error" not in result.stderr
    assert not list((long_video / "frames").glob(".unfinished*"))


def test_modules_in_the_current_folder_are_not_imported(tmp_path: Path) -> None:
    """A folder of suspicious videos may also contain code."""
    write_video(tmp_path / "videos/real/a.mp4")
    for name in ("cv2", "multiprocessing", "pandas", "random", "selectors", "tyro"):
        (tmp_path / f"{name}.py").write_text("open('loaded', 'w')")
    result = run_script(SCRIPT, "--workers", 2, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "loaded").exists()


def test_long_path_of_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch systems create such folders, and the path of a socket has at most 107 bytes."""
    temporary = tmp_path / ("long" * 30)
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    write_video(tmp_path / "videos/real/a.mp4")
    result = run_script(SCRIPT, "--workers", 2, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert pd.read_csv(tmp_path / "frames/videos.csv")["status"].tolist() == ["ok"]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_other_signals_end_a_run_like_ctrl_c(long_video: Path, name: str) -> None:
    with running(
        SCRIPT, "--workers", "4", cwd=long_video
    ) as run:  # some workers are still starting
        wait_for(lambda: is_converting(long_video / "frames"), run)
        run.send_signal(getattr(signal, name))
        assert run.wait() == 130
        wait_for_end_of_all(run)
    said = (long_video / "said").read_text()
    assert said.endswith(f"{SCRIPT}: stopped; run the same command to continue.\n")
    assert "Traceback" not in said
    assert not list((long_video / "frames").glob(".unfinished*"))


def test_second_run_at_the_same_time_stops(long_video: Path) -> None:
    frames = long_video / "frames"
    convert_all(long_video / "videos", frames, frames_per_video=1, workers=1)
    with running(SCRIPT, cwd=long_video) as run:
        wait_for(lambda: is_converting(frames), run)
        os.killpg(run.pid, signal.SIGSTOP)  # so that it does not end before the second run starts
        assert_stops(run_script(SCRIPT, cwd=long_video), "frames", "another run")
        assert is_converting(frames)
        run.kill()
        run.wait()
    # The frames now have the settings of the killed run, and videos.csv does not exist.
    assert not (frames / "videos.csv").exists()
    for path in frames.glob("*/video.json"):
        assert json.loads(path.read_text())["inputs"]["settings"]["frames_per_video"] is None
    convert_all(
        long_video / "videos", frames, frames_per_video=2, workers=1
    )  # the lock was released
    assert len(list(frames.glob("*/*.png"))) == 3 * 2


def test_worker_crash_or_hang_loses_only_its_video(long_video: Path) -> None:
    frames = long_video / "frames"
    shutil.copy(long_video / "videos/real/long.avi", long_video / "videos/real/too.avi")

    def two_are_begun() -> bool:
        return len({path.parent for path in frames.glob(".unfinished-*/*/*.png")}) == 2

    with running(SCRIPT, "--workers", 2, "--seconds-per-video", 10, cwd=long_video) as run:
        wait_for(two_are_begun, run)
        first, second = workers_of(run)
        os.kill(first, signal.SIGSEGV)
        os.kill(second, signal.SIGSTOP)  # reacts only to SIGKILL, like a hanging decoder
        assert run.wait() == 0
    table = pd.read_csv(frames / "videos.csv", keep_default_na=False)
    assert table["status"].tolist() == ["ok", "ok", "failed", "failed"]
    reasons = " ".join(sorted(table["reason"])).strip()
    assert re.fullmatch("skipped after 10.0 seconds .* crashed .exit code -11.*again", reasons)
    assert "Traceback" not in (long_video / "said").read_text()
    before = finished_folders(frames)
    assert sorted(before) == ["plain-fake-a", "plain-fake-b"]
    table = convert_all(long_video / "videos", frames, workers=2)
    assert table["frames"].tolist() == [3, 3, 250, 250]
    assert before.items() <= finished_folders(frames).items()


# --- Changed input --------------------------------------------------------------------------------


def test_changed_videos_are_converted_again_and_deleted_ones_removed(tmp_path: Path) -> None:
    videos, frames = tmp_path / "videos", tmp_path / "frames"
    for name in ("same", "replaced", "removed", "cut"):
        write_avi(videos / f"real/{name}.avi", [jpeg((64, 48))] * 3)
    convert_all(videos, frames, workers=1)
    before = finished_folders(frames)
    write_avi(videos / "real/replaced.avi", [jpeg((64, 48), seed=1)] * 2)
    (videos / "real/removed.avi").unlink()
    next((frames / "plain-real-cut").glob("*.png")).unlink()  # a frame listed in the table
    (frames / "mine").mkdir()
    (frames / "mine/note.txt").write_text("not made by 01")
    (frames / f".unfinished-{'0' * 32}/plain-real-gone").mkdir(parents=True)
    table = convert_all(videos, frames, workers=1)
    after = finished_folders(frames)
    assert table["source"].tolist() == ["real/cut.avi", "real/replaced.avi", "real/same.avi"]
    assert table["frames"].tolist() == [3, 2, 3]
    assert len(list(frames.glob("*/*.png"))) == 3 + 2 + 3
    assert sorted(after) == ["mine", "plain-real-cut", "plain-real-replaced", "plain-real-same"]
    assert after["plain-real-same"] == before["plain-real-same"]
    assert not list(frames.glob(".unfinished*"))


@pytest.mark.parametrize("change", [{"frames_per_video": 2}, {"png_compression": 9}])
def test_folder_never_mixes_frames_of_two_settings(tmp_path: Path, change: dict) -> None:
    videos, frames = tmp_path / "videos", tmp_path / "frames"
    for name in ("a", "b"):
        write_avi(videos / f"real/{name}.avi", [jpeg((64, 48))] * 3)
    convert_all(videos, frames, workers=1)
    (frames / "plain-real-a/video.json").write_text("edited by hand")
    convert_all(videos, frames, workers=1, **change)
    convert_all(videos, tmp_path / "undisturbed", workers=1, **change)
    assert read_frames(frames) == read_frames(tmp_path / "undisturbed")


def test_change_without_new_size_or_time_is_noticed(tmp_path: Path) -> None:
    videos, frames = tmp_path / "videos", tmp_path / "frames"
    for name in ("same", "replaced", "emptied"):
        write_avi(videos / f"real/{name}.avi", [bytes(64 * 48 * 4)] * 3, codec=b"\0" * 4, bits=32)
    convert_all(videos, frames, workers=1)
    before = finished_folders(frames)
    times = (videos / "real/replaced.avi").stat()
    other = [b"\x7f" * 64 * 48 * 4] * 3
    write_avi(videos / "real/replaced.avi", other, codec=b"\0" * 4, bits=32)
    os.utime(videos / "real/replaced.avi", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (videos / "real/replaced.avi").stat().st_size == times.st_size
    (frames / "plain-real-emptied/plain-real-emptied-000001.png").write_bytes(b"")
    convert_all(videos, frames, workers=1)
    after = finished_folders(frames)
    assert [name for name in before if before[name] == after[name]] == ["plain-real-same"]
    assert all(path.stat().st_size for path in frames.glob("*/*.png"))
    assert cv2.imread(str(frames / "plain-real-replaced/plain-real-replaced-000000.png")).max() > 0


# --- User files are kept --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mine.partial/thesis.txt", "kinetics/video.json", "videos.csv"])
def test_user_folder_is_not_an_output_folder(tmp_path: Path, name: str) -> None:
    write_avi(tmp_path / "videos/real/a.avi", [jpeg((64, 48))])
    (tmp_path / "work" / name).parent.mkdir(parents=True)
    (tmp_path / "work" / name).write_text("{}")
    with pytest.raises(ValueError, match=rf"work: {name.split('/')[0]}.* --frames-dir"):
        convert_all(tmp_path / "videos", tmp_path / "work", workers=1)
    assert read_tree(tmp_path / "work") == {name: b"{}"}


def test_user_files_in_an_output_folder_are_kept(tmp_path: Path) -> None:
    videos, frames = tmp_path / "videos", tmp_path / "real disk/frames"
    write_avi(videos / "real/a.avi", [jpeg((64, 48))])
    write_avi(videos / "real/b.avi", [jpeg((64, 48))])
    frames.mkdir(parents=True)
    (tmp_path / "frames").symlink_to(frames)
    convert_all(videos, tmp_path / "frames", workers=1)
    for name in ("mine.partial/thesis.txt", "kinetics/video.json", "plain-real-c/mine.png"):
        (frames / name).parent.mkdir()
        (frames / name).write_text("{}")
    for name in ("videos.partial.csv", "left-out.partial.csv", "crop-rule.partial.json"):
        (frames / name).write_text("{}")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/mine.txt").write_text("a user's")
    (frames / ".unfinished").symlink_to(tmp_path / "elsewhere")
    (frames / "plain-real-b").rename(tmp_path / "moved")
    (frames / "plain-real-b").symlink_to(tmp_path / "moved")

    # With another setting, both videos are converted again, and the link stays a link.
    convert_all(videos, tmp_path / "frames", png_compression=2, workers=1)
    assert (tmp_path / "frames").is_symlink() and not (frames / "videos.csv").is_symlink()
    assert (frames / "plain-real-b/plain-real-b-000000.png").is_file()
    assert (frames / "plain-real-b").is_symlink()
    side = json.loads((tmp_path / "moved/video.json").read_text())
    assert side["inputs"]["settings"]["png_compression"] == 2
    for name in ("mine.partial/thesis.txt", "kinetics/video.json", "plain-real-c/mine.png"):
        assert (frames / name).read_text() == "{}"
    for name in ("videos.partial.csv", "left-out.partial.csv", "crop-rule.partial.json"):
        assert (frames / name).read_text() == "{}"
    assert (tmp_path / "elsewhere/mine.txt").read_text() == "a user's"

    # A video whose folder belongs to the user stops the run before anything is written.
    write_avi(videos / "real/c.avi", [jpeg((64, 48))])
    before = read_tree(frames)
    with pytest.raises(ValueError, match="plain-real-c was not created"):
        convert_all(videos, tmp_path / "frames", workers=1)
    assert read_tree(frames) == before


def test_link_to_the_script_finds_the_data_sets(tmp_path: Path) -> None:
    write_avi(tmp_path / "videos/real/a.avi", [jpeg((64, 48))])
    link = tmp_path / "convert"
    link.symlink_to(ROOT / SCRIPT)
    result = subprocess.run([sys.executable, link], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "frames").glob("*/*.png"))) == 1


# --- A full disk ----------------------------------------------------------------------------------


def test_full_disk_is_reported(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(640 * 480 * 4)  # large as PNG, so that only a few fit
    for number in range(6):
        path = tmp_path / f"videos/real/{number}.avi"
        write_avi(path, [noise], (640, 480), b"\0\0\0\0", 32)
    command = SCRIPT, "--workers", 2
    convert_all(tmp_path / "videos", tmp_path / "whole", workers=2)
    with small_disk(tmp_path / "frames", 4) as resize:
        assert_stops(run_script(*command, cwd=tmp_path), "frames", "No space left", "same command")
        whole, before = read_frames(tmp_path / "whole"), finished_folders(tmp_path / "frames")
        assert 0 < len(before) < 6
        assert read_frames(tmp_path / "frames").items() <= whole.items()
        resize(40)
        result = run_script(*command, cwd=tmp_path)
        assert result.returncode == 0
        assert f"{len(before)} of 6 videos were done" in result.stdout
        assert read_frames(tmp_path / "frames") == whole
        assert before.items() <= finished_folders(tmp_path / "frames").items()


def test_file_size_limit_is_reported(tmp_path: Path) -> None:
    write_avi(tmp_path / "videos/real/a.avi", [jpeg((640, 480))])

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))

    result = subprocess.run(
        [sys.executable, ROOT / SCRIPT],
        cwd=tmp_path,
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
    assert_stops(result, "frames", "too large", "same command")
    assert set(read_tree(tmp_path / "frames")) == {".lock", ".made-by", "crop-rule.json"}


# --- Broken videos --------------------------------------------------------------------------------


def write_odd_videos(folder: Path) -> dict[str, tuple[str, int]]:
    """Write unusual videos; return the expected status and number of frames of each."""
    five = [jpeg((64, 48), seed=seed) for seed in range(5)]
    raw = b"\0\0\0\0"
    grey = [jpeg((64, 48), grey=True)]
    sizes = [jpeg(size) for size in ((64, 48), (320, 240), (20, 20), (1200, 100))]
    expected = {}

    def add(name: str, status: str, saved: int, frames: list[bytes], **header: object) -> None:
        write_avi(folder / f"{name}.avi", frames, **header)
        expected[name] = status, saved

    add("plain", "ok", 5, five)
    add("one-frame", "ok", 1, five[:1])
    add("header-only", "failed", 0, [])
    add("zero-rate", "ok", 5, five, rate=(0, 1))
    add("zero-scale", "ok", 5, five, rate=(25, 0))
    add("absurd-rate", "ok", 5, five, rate=(2**32 - 1, 1))
    add("absurdly-slow", "ok", 5, five, rate=(1, 2**32 - 1))
    add("claims-none", "ok", 5, five, claimed=0)
    add("claims-absurdly-many", "partial", 5, five, claimed=2**32 - 1)
    add("absurd-size", "ok", 5, five, size=(2**31 - 1, 2**31 - 1))
    add("absurd-size-raw", "failed", 0, [b"\1" * 100], size=(60_000, 60_000), codec=raw)
    add("1x1", "ok", 1, [jpeg((1, 1))], size=(1, 1))
    add("8000x8000", "ok", 1, [jpeg((8000, 8000))], size=(8000, 8000))
    add("grey", "ok", 1, grey)
    add("ten-bit", "ok", 2, [b"\x10\x40\x08\x20" * 32 * 48] * 2, size=(48, 48), codec=b"v210")
    add("alpha", "ok", 2, [bytes(range(256)) * 48] * 2, codec=raw, bits=32)
    add("variable-rate", "ok", 3, [five[0], b"", b"", five[1], b"", five[2]])
    add("changes-size", "ok", 4, sizes)
    add("no-pictures", "failed", 0, [b"junk" * 50] * 5)
    add("audio-only", "failed", 0, [b"\0\1" * 4000], codec=raw, audio=True)
    for name, content in {
        "empty": b"",
        "text": b"not a video",
        "playlist": b"ffconcat version 1.0\nfile plain.avi\n",
        "zeros": bytes(10_000),
    }.items():
        (folder / f"{name}.mp4").write_bytes(content)
        expected[name] = "failed", 0
    return expected


def test_unusual_videos(tmp_path: Path) -> None:
    expected = write_odd_videos(tmp_path / "videos/real")
    table = convert_all(tmp_path / "videos", tmp_path / "frames", workers=2)
    stems = table["source"].map(lambda source: PurePosixPath(source).stem)
    found = zip(stems, zip(table["status"], table["frames"], strict=True), strict=True)
    assert dict(found) == expected
    assert ((table["reason"] == "") == (table["status"] == "ok")).all()
    for video_id, frames in zip(table["video_id"], table["frames"], strict=True):
        assert len(list((tmp_path / "frames" / video_id).glob("*.png"))) == frames


def test_cut_videos_and_flipped_bytes(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", frames=10).read_bytes()
    drawn = random.Random(0)
    folder = tmp_path / "videos/real"
    folder.mkdir(parents=True)
    for number in range(20):
        (folder / f"cut-{number}.mp4").write_bytes(whole[: drawn.randrange(len(whole))])
        flipped = bytearray(whole)
        for _ in range(50):
            flipped[drawn.randrange(len(whole))] ^= drawn.randrange(1, 256)
        (folder / f"flipped-{number}.mp4").write_bytes(flipped)
    (folder / "whole.mp4").write_bytes(whole)
    table = convert_all(tmp_path / "videos", tmp_path / "frames", workers=2)
    assert len(table) == 41
    assert table["status"].isin(["ok", "partial", "failed"]).all()
    assert ((table["frames"] == 0) == (table["status"] == "failed")).all()
    assert table.set_index("source").loc["real/whole.mp4", "frames"] == 10


def ffmpeg(*arguments: object) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", *map(str, arguments)]
    subprocess.run(command, check=True)


def test_videos_from_phones_websites_and_editors(tmp_path: Path) -> None:
    real, copy = tmp_path / "videos/real", ("-c", "copy")
    real.mkdir(parents=True)
    source, cover = tmp_path / "source.mp4", tmp_path / "cover.png"
    drawn = "-f", "lavfi", "-i", "testsrc=size=160x120:rate=25:duration=2"
    ffmpeg(*drawn, "-c:v", "libx264", "-g", 25, "-movflags", "faststart", source)
    ffmpeg(*drawn, "-frames:v", 1, cover)
    ffmpeg(*drawn, "-c:v", "libaom-av1", "-cpu-used", 8, "-frames:v", 20, real / "av1.mp4")
    ffmpeg("-i", real / "av1.mp4", *copy, real / "av1.webm")
    ffmpeg("-i", cover, "-i", source, "-map", 0, "-map", 1, *copy, real / "cover.mkv")
    ffmpeg("-ss", 1.5, "-i", source, *copy, real / "a-piece.mp4")
    ffmpeg("-itsoffset", 90_000, "-i", source, *copy, real / "late.mkv")
    early = "-avoid_negative_ts", "disabled"
    ffmpeg("-itsoffset", -1, "-i", source, *copy, *early, real / "negative.mkv")
    every_third = "-vf", "select='lt(n,5)+not(mod(n,3))'", "-fps_mode", "vfr"
    ffmpeg("-i", source, *every_third, real / "variable.mkv")
    whole = source.read_bytes()
    (real / "cut-off.mp4").write_bytes(whole[: len(whole) // 2])
    ffmpeg("-i", source, *copy, tmp_path / "whole.mkv")
    whole = (tmp_path / "whole.mkv").read_bytes()
    (real / "cut-off.mkv").write_bytes(whole[: len(whole) // 2])
    table = convert_all(tmp_path / "videos", tmp_path / "frames", workers=2)
    found = table.set_index("source")[["status", "frames"]].T.to_dict("list")
    found = {PurePosixPath(name).name: tuple(value) for name, value in found.items()}
    cut_off = [found.pop("cut-off.mkv"), found.pop("cut-off.mp4")]
    assert all(status == "partial" and 0 < frames < 50 for status, frames in cut_off)
    piece = found.pop("a-piece.mp4")
    assert piece[0] == "ok" and 12 <= piece[1] < 40
    assert found == {
        "av1.mp4": ("ok", 20),
        "av1.webm": ("ok", 20),
        "cover.mkv": ("ok", 50),
        "late.mkv": ("ok", 50),
        "negative.mkv": ("ok", 50),
        "variable.mkv": ("ok", 20),
    }
    for name in ("av1.mp4", "late.mkv", "negative.mkv"):
        seconds = [frame.seconds for frame in Video(real / name).frames()]
        assert seconds[0] == 0 and np.allclose(np.diff(seconds), 0.04, atol=0.002), name
    # AV1 shows the same picture as H.264 except for compression.
    frames = [
        cv2.imread(str(path)) for path in sorted((tmp_path / "frames").glob("*av1-*/*10.png"))
    ]
    frames += [cv2.imread(str(path)) for path in (tmp_path / "frames").glob("*late/*10.png")]
    assert len(frames) == 3 and all(frame.shape == (240, 320, 3) for frame in frames)
    assert all(np.abs(frame.astype(int) - frames[-1]).mean() < 8 for frame in frames)


FIELDS = {
    "h264": ("libx264", "-x264-params", "tff=1"),
    "mpeg2": ("mpeg2video", "-flags", "+ildct+ilme"),
}


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "h264.avi", "mpeg2.avi", "mpeg2.mkv"])
def test_interlaced_videos_show_the_same_pictures(name: str, tmp_path: Path) -> None:
    """OpenCV returns noise for them, and some containers do not mark them as interlaced."""
    real, drawn = tmp_path / "videos" / "real", "testsrc=size=720x576:rate=25:duration=0.4"
    real.mkdir(parents=True)
    codec = "-c:v", *FIELDS[name.split(".")[0]], "-pix_fmt", "yuv420p", "-b:v", "4M"
    ffmpeg("-f", "lavfi", "-i", drawn, *codec, real / name)
    ffmpeg("-f", "lavfi", "-i", drawn, tmp_path / "%02d.png")
    table = convert_all(tmp_path / "videos", tmp_path / "frames", workers=1)
    assert (table["status"][0], table["frames"][0], table["fps"][0]) == ("ok", 10, 25)
    for number, path in enumerate(sorted((tmp_path / "frames").glob("*/*.png"))):
        frame, whole = cv2.imread(str(path)), cv2.imread(str(tmp_path / f"{number + 1:02d}.png"))
        assert np.abs(frame.astype(int) - whole).mean() < 8, path.name


def test_playlists_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "other.mp4")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile other.mp4\n")
    monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_transport;udp")
    with pytest.raises(ValueError, match="does not open"):
        Video(tmp_path / "list.mp4")
    assert len(list(Video(tmp_path / "other.mp4").frames())) == 3


def test_folder_name_that_is_not_utf_8(tmp_path: Path) -> None:
    videos = Path(os.fsdecode(os.fsencode(tmp_path) + b"/vid\xe9os"))
    write_avi(videos / "real/a.avi", [jpeg((64, 48))])
    table = convert_all(videos, tmp_path / "frames", workers=1)
    assert table[["status", "frames"]].values.tolist() == [["ok", 1]]


# --- Names and links ------------------------------------------------------------------------------

ODD_NAMES = [
    "with spaces",
    'it\'s "quoted"',
    "two\nlines\r\n",
    "comma,semicolon;",
    "日本 é ß",
    "--workers",
    "-",
    "%03d",
    "http:clip",
    "x" * 246,
    "CON",
    "nul.tar",
    "dots...",
    "a.partial",
    "a",
    "A",
    "a b",
    "a_b",
    "*?<>|:",
    "$(reboot)",
]


def test_unusual_names(tmp_path: Path) -> None:
    content = write_video(tmp_path / "a.mp4", frames=1).read_bytes()
    (tmp_path / "videos/real").mkdir(parents=True)
    for name in ODD_NAMES:
        (tmp_path / f"videos/real/{name}.mp4").write_bytes(content)
    not_text = os.fsencode(tmp_path / "videos/real/") + b"/caf\xe9.mp4"
    Path(os.fsdecode(not_text)).write_bytes(content)
    (tmp_path / "videos/real/日本\n.wmv").touch()
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}  # a terminal without these letters
    command = [sys.executable, str(ROOT / SCRIPT)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, env=environment)
    assert result.returncode == 0, result.stderr.decode()
    table = pd.read_csv(tmp_path / "frames/videos.csv", dtype=str, keep_default_na=False)
    assert sorted(table["source"]) == sorted(
        f"real/{name}.mp4".replace("\r", "\\r") for name in ODD_NAMES
    )
    assert set(table["status"]) == {"ok"}
    folders = [path.name for path in (tmp_path / "frames").glob("*/")]
    assert sorted(folders) == sorted(table["video_id"])
    left_out = pd.read_csv(tmp_path / "frames/left-out.csv")
    assert left_out["path"].tolist() == [r"real/caf\udce9.mp4", "real/日本\n.wmv"]
    assert "UTF-8" in left_out["reason"][0]
    assert rb"real/\u65e5\u672c\n.wmv" in result.stdout


WINDOWS_DEVICES = re.compile(r"(CON|PRN|AUX|NUL|COM[0-9]|LPT[0-9])(\..*)?", re.IGNORECASE)


@settings(deadline=None)
@given(st.lists(st.sampled_from(ODD_NAMES) | st.text(min_size=1), max_size=8, unique=True))
def test_names_are_valid_on_windows(names: list[str]) -> None:
    sources = [f"real/{name.replace('/', '_')}.mp4" for name in names] + ["real/AUX.mp4"]
    sources = sorted(set(sources))
    prefixes = [catalogue.describe_by_plain_folder(PurePosixPath(s))["prefix"] for s in sources]
    ids = catalogue.name_videos(pd.DataFrame({"source": sources, "prefix": prefixes}))
    for name in ids:
        assert not set(name) & set('<>:"/\\|?*') and name.isprintable() and name.isascii()
        assert not name.endswith((".", " ", ".partial"))
        assert not WINDOWS_DEVICES.fullmatch(name)
        assert len(f"{name}-000042-00.png.partial") < 255
    assert ids.str.lower().is_unique


def test_links_and_pipes(tmp_path: Path) -> None:
    real = tmp_path / "videos/real"
    write_avi(real / "a.avi", [jpeg((64, 48))])
    write_avi(tmp_path / "elsewhere/b.avi", [jpeg((64, 48))])
    (real / "z-outside").symlink_to(tmp_path / "elsewhere")
    (real / "up").symlink_to(tmp_path / "videos")
    (real / "again").symlink_to(real / "z-outside")
    (real / "itself.avi").symlink_to("itself.avi")
    (real / "nowhere.avi").symlink_to("nothing.avi")
    (real / "file.avi").symlink_to(tmp_path / "elsewhere/b.avi")
    (real / "folder.avi").mkdir()
    os.mkfifo(real / "pipe.avi")
    os.mkfifo(tmp_path / "videos/metadata.json")
    (real / "stills").mkdir()
    os.mkfifo(real / "stills/001")
    table = convert_all(tmp_path / "videos", tmp_path / "frames", workers=1)
    assert set(table["source"]) == {"real/a.avi", "real/again/b.avi", "real/file.avi"}
    left_out = pd.read_csv(tmp_path / "frames/left-out.csv").set_index("path")["reason"].to_dict()
    assert left_out == {
        "metadata.json": "cannot be read as metadata.json: not a plain file",
        "real/itself.avi": "cannot be read: Too many levels of symbolic links",
        "real/nowhere.avi": "cannot be read: No such file or directory",
        "real/pipe.avi": "not a plain file",
        "real/stills": "not a plain file",
        "real/up": "a link to a folder that was already visited",
        "real/z-outside": "a link to a folder that was already visited",
    }


def test_unreadable_files_are_listed(tmp_path: Path) -> None:
    skip_as_root()
    real = tmp_path / "videos/real"
    for name in ("a", "locked", "folder/b"):
        write_avi(real / f"{name}.avi", [jpeg((64, 48))])
    (real / "locked.avi").chmod(0)
    (real / "folder").chmod(0)
    try:
        convert_all(tmp_path / "videos", tmp_path / "frames", workers=1)
        left_out = pd.read_csv(tmp_path / "frames/left-out.csv").set_index("path")["reason"]
        assert left_out.to_dict() == {
            "real/folder": "cannot be read: Permission denied",
            "real/locked.avi": "cannot be read: no permission",
        }
    finally:
        (real / "folder").chmod(0o755)
        (real / "locked.avi").chmod(0o644)
    assert len(convert_all(tmp_path / "videos", tmp_path / "frames", workers=1)) == 3


def test_identities_in_plain_folders() -> None:
    lists = catalogue.Lists({}, {}, set(), {})

    def identity(source: str) -> str:
        return catalogue.describe(PurePosixPath(source), lists, ROWS)["identities"]

    assert identity("real/anna/1.mp4") == identity("Fake/Anna/2/b.mp4") == "anna"
    assert identity("real/b.mp4") == identity("x/fake/b.avi") == "b"
    assert identity("real/Jos\u00e9/1.mp4") == identity("fake/Jose\u0301/2.mp4")  # NFC, and NFD


# --- Broken lists ---------------------------------------------------------------------------------

REAL = '{"label": "REAL"}'
UNREADABLE_LISTS = {  # a list, and part of the reason for leaving it out
    "list/metadata.json": ("[1, 2]", "JSON object"),
    "text/metadata.json": ("a.mp4 REAL", "Expecting value"),
    "empty/metadata.json": ("", "Expecting value"),
    "deep/metadata.json": ("[" * 100_000, "recursion"),
    "latin/metadata.json": ('{"caf\xe9.mp4": 1}'.encode("latin-1"), "decode"),
    "number/metadata.json": (f'{{"a.mp4": {"9" * 5000}}}', "integer string"),
    "columns/labels.csv": ("name,label\na.mp4,1\n", "filename"),
    "rows/labels.csv": ('filename,label\n"a.mp4,1\n', "EOF inside string"),
    "latin/labels.csv": ("filename,label\ncaf\xe9.mp4,1\n".encode("latin-1"), "decode"),
    "none/labels.csv": ("", "No columns"),
    "splits/train.json": ('{"071": "054"}', "a JSON list"),
    "splits/val.json": ("[[71, 54]]", "not a text"),
    "splits/test.json": ('["071", "054"]', "a JSON list"),
    "celeb/List_of_testing_videos.txt": ("1\n", "index out of range"),
    "utf16/List_of_testing_videos.txt": ("1 a.mp4".encode("utf-16"), "decode"),
}
ODD_ENTRIES = {  # an entry of metadata.json, and part of the reason for leaving it out
    '"../real/a.mp4": ' + REAL: "outside the folder of the list",
    '"/etc/a.mp4": ' + REAL: "outside the folder of the list",
    '"b.mp4": {"label": "REAL"}, "b.mp4": {"label": "FAKE"}': "several entries",
    '"c.mp4": {"label": "REAL", "label": "FAKE"}': "several entries",
    '"d.mp4": {"label": 1}': "no label",
    '"e.mp4": "REAL"': "no label",
    '"f.mp4": {"label": "REAL", "split": 7}': "no label",
    '"g.mp4": {"label": "FAKE", "original": ["a.mp4"]}': "no label",
    '"h.mp4": {"label": "FAKE", "original": "\\ud800.mp4"}': "no label",
    '"i\\ud800.mp4": ' + REAL: "no label",
    '"": ' + REAL: "outside the folder of the list",
    '"j.mp4": null': "no label",
}


def test_broken_lists_are_reported(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    write_avi(videos / "real/a.avi", [jpeg((64, 48))])
    for path, (content, _) in UNREADABLE_LISTS.items():
        (videos / path).parent.mkdir(exist_ok=True)
        content = content if isinstance(content, bytes) else content.encode()
        (videos / path).write_bytes(content)
    (videos / "huge").mkdir()
    with (videos / "huge/metadata.json").open("wb") as file:
        file.truncate(200_000_000)
    (videos / "dfdc").mkdir()
    for name in "bcdefghj":
        shutil.copy(videos / "real/a.avi", videos / f"dfdc/{name}.mp4")
    (videos / "dfdc/metadata.json").write_text(
        "{" + ", ".join([f'"good.mp4": {REAL}, "good.mp4": {REAL}', *ODD_ENTRIES]) + "}"
    )
    shutil.copy(videos / "real/a.avi", videos / "dfdc/good.mp4")
    table = convert_all(videos, tmp_path / "frames", workers=1)
    assert table["source"].tolist() == ["dfdc/good.mp4", "real/a.avi"]
    left_out = pd.read_csv(tmp_path / "frames/left-out.csv").set_index("path")["reason"]
    for path, (_, reason) in UNREADABLE_LISTS.items():
        assert reason in left_out.pop(path)
    assert "larger than" in left_out.pop("huge/metadata.json")
    assert len(left_out) == len(ODD_ENTRIES)
    names = [re.match(r'"(.*?)":', entry)[1] for entry in ODD_ENTRIES]
    paths = ["/etc/a.mp4" if name.startswith("/") else f"dfdc/{name}".rstrip("/") for name in names]
    for path, reason in zip(paths, ODD_ENTRIES.values(), strict=True):
        assert reason in left_out[path], path


def test_own_data_set_does_not_need_python(tmp_path: Path) -> None:
    table = tmp_path / "sets.toml"
    table.write_text(
        DATA_SETS.read_text(encoding="utf-8")
        + """
[[videos]]
dataset = "Mine"
folder = 'clips/(?P<method>[a-z]+)'
name = '(?P<who>[a-z]+)-[0-9]+'
label = "fake"
method = "{method}"
methods = ["Swap"]
identities = "{who}"
id = "mine-{method}"
example = "eve-1.mp4"

[[splits]]
dataset = "Mine"
file = "held-out.txt"
split = "test"
others = "train"
"""
    )
    write_avi(tmp_path / "videos/clips/swap/eve-1.avi", [jpeg((64, 48))])
    write_avi(tmp_path / "videos/clips/swap/kim-2.avi", [jpeg((64, 48))])
    (tmp_path / "videos/held-out.txt").write_text("1 clips/swap/kim-2.avi\n")
    rows = catalogue.make_catalogue(tmp_path / "videos", *catalogue.read_data_sets(table))[0]
    assert rows[
        ["video_id", "dataset", "method", "identities", "official_split"]
    ].values.tolist() == [
        ["mine-Swap-eve-1", "Mine", "Swap", "eve", "train"],
        ["mine-Swap-kim-2", "Mine", "Swap", "kim", "test"],
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        ("[[videos]\n", "Expected"),
        ('[[videos]]\nfolder = "("\nname = "a"\n', "dataset is missing"),
        ('[[left_out]]\nfolder = "("\nreason = "a"\n', "unterminated"),
        ('[[lists]]\nfile = "a.json"\n', r"\[\[lists\]\].* dataset is missing"),
        ("videos = 3\n", "not iterable"),
        (DATA_SETS.read_text().replace("(?P<target>id", "(?P<aim>id"), "target"),
    ],
)
def test_invalid_table_of_data_sets_is_reported(
    tmp_path: Path, content: str | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / "sets.toml").write_text(content)
    with pytest.raises(ValueError, match=rf"sets\.toml.*{reason}|{reason}.*sets\.toml"):
        catalogue.read_data_sets(tmp_path / "sets.toml")


# --- The parsers, under hypothesis ----------------------------------------------------------------

WORDS = [
    *("original_sequences", "manipulated_sequences", "youtube", "actors", "c23", "videos"),
    *("Deepfakes", "FaceShifter", "Face\u017fhifter", "DeepFakeDetection", "Celeb-real"),
    *("YouTube-real", "Celeb-synthesis", "higher_quality", "fadg0", "video", "real", "fake"),
    *("000", "000_003", "01__kitchen", "01_02__walk__ABCD", "id0_0001", "id0_id1_0001", "001"),
    *("sa1-video-fram1", "masks", "...", " ", "\n", ";"),
]
PATHS = st.lists(
    st.sampled_from(WORDS) | st.text(min_size=1, max_size=8).map(lambda s: s.replace("/", "_")),
    min_size=1,
    max_size=6,
).map(lambda parts: PurePosixPath(*parts[:-1], f"{parts[-1]}.mp4"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "label": st.sampled_from(["REAL", "FAKE", "real"]) | JSON,
        "split": st.sampled_from(["train", "validation", "test"]) | JSON,
        "original": st.just("a.mp4") | JSON,
        "set": JSON,
        "target_id": JSON,
        "swapped_id": JSON,
    },
)
LISTS = st.dictionaries(st.just("a.mp4") | st.text(), ENTRIES | JSON, max_size=4) | JSON
NAMES = list(LIST_ROWS)


@settings(max_examples=300, deadline=None)
@given(st.lists(PATHS, min_size=1, max_size=4), LISTS, st.sampled_from(NAMES))
def test_any_names_and_lists_give_rows_or_reasons(
    tmp_path_factory: pytest.TempPathFactory, paths: list[PurePosixPath], content: object, name: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "lists"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    paths = [PurePosixPath("a.mp4"), *paths]
    lists, unreadable = catalogue.read_lists(folder, [PurePosixPath(name)], paths, LIST_ROWS)
    assert all(unreadable.values())
    for path in paths:
        try:
            video = catalogue.describe(path, lists, ROWS)
        except ValueError as error:
            assert str(error) and "\n" not in str(error)
            continue
        assert set(catalogue.DESCRIPTION) <= set(video)
        assert video["label"] in ("real", "fake") and video["prefix"]
        assert video["official_split"] in ("", "train", "val", "test")
        assert all(isinstance(text, str) for text in video.values())
        "".join(video.values()).encode()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode), st.sampled_from(NAMES))
def test_any_bytes_are_a_list_or_have_a_reason(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "bytes"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    _, unreadable = catalogue.read_lists(folder, [PurePosixPath(name)], [], LIST_ROWS)
    assert set(unreadable) <= {PurePosixPath(name)}
    assert all("\n" not in reason for reason in unreadable.values())
