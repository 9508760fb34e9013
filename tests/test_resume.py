"""Tests of resume.py: finished videos, and folders that may be deleted."""

import os
from pathlib import Path

import pytest

from deepfake_detect import resume

SIDE = resume.Sidecar("video.json", "a.py")
INPUTS = {"settings": {"rate": 1.0}, "files": 1, "bytes": 3, "modified_ns": 0}


def finish(folder: Path, name: str = "clip", images: int = 2) -> Path:
    made = folder / f".run/{name}"
    made.mkdir(parents=True)
    for number in range(images):
        (made / f"{name}-{number:06d}.png").write_bytes(b"image")
    SIDE.finish(made, folder / name, INPUTS, {"frames": images})
    return folder / name


def test_only_finished_videos_are_done(tmp_path: Path) -> None:
    target = finish(tmp_path)
    assert SIDE.find_result(target, INPUTS) == {"frames": 2}
    assert SIDE.find_result(target, INPUTS | {"bytes": 4}) is None
    assert resume.Sidecar("video.json", "b.py").find_result(target, INPUTS) is None
    assert SIDE.find_result(tmp_path / "none", INPUTS) is None


@pytest.mark.parametrize("damage", ["image gone", "image emptied", "image more", "side file cut"])
def test_damaged_folder_is_ours_but_not_done(damage: str, tmp_path: Path) -> None:
    target = finish(tmp_path)
    image = target / "clip-000001.png"
    {
        "image gone": image.unlink,
        "image emptied": lambda: image.write_bytes(b""),
        "image more": lambda: (target / "clip-000009-00.png").touch(),
        "side file cut": lambda: (target / "video.json").write_text('{"made_by'),
    }[damage]()
    assert SIDE.find_result(target, INPUTS) is None
    assert SIDE.owns(target)
    SIDE.check(target, "--out-dir")


def test_letter_case_does_not_matter(tmp_path: Path) -> None:
    """On FAT, Clip and clip are the same name; Clip-000001.png is not an image of clip."""
    renamed = finish(tmp_path, "Clip").rename(tmp_path / "clip")
    assert SIDE.owns(renamed) and SIDE.find_result(renamed, INPUTS) is None


@pytest.mark.parametrize("name", ["notes.txt", "clip-1.png", "other-000001.png", "folder"])
def test_folder_with_a_user_file_is_not_ours(name: str, tmp_path: Path) -> None:
    target = finish(tmp_path)
    assert SIDE.list_own(tmp_path) == {"clip"}
    (target / name).mkdir() if name == "folder" else (target / name).write_text("mine")
    assert not SIDE.owns(target) and not SIDE.list_own(tmp_path)
    with pytest.raises(ValueError, match=r"clip.*--out-dir"):
        SIDE.check(target, "--out-dir")


@pytest.mark.parametrize("content", ["{}", "mine", '{"made_by": "other.py"}', "[" * 100_000])
def test_sidecar_of_another_script_is_not_ours(content: str, tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip/video.json").write_text(content)
    assert not SIDE.owns(tmp_path / "clip")


def test_linked_folder_stays_a_link(tmp_path: Path) -> None:
    moved = finish(tmp_path).rename(tmp_path / "elsewhere")
    (tmp_path / "clip").symlink_to(moved)
    (tmp_path / ".run").rmdir()
    target = finish(tmp_path, images=3)
    assert target.is_symlink() and len(list(moved.glob("*.png"))) == 3
    assert SIDE.find_result(target, INPUTS) == {"frames": 3}


def test_change_without_new_size_or_time_is_noticed_at_the_ends(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(bytes(100_000))
    before = resume.fingerprint([path], {}, sampled=True)
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    for place in (0, 50_000, 99_999):
        content = bytearray(100_000)
        content[place] = 1
        path.write_bytes(content)
        os.utime(path, ns=times)
        assert resume.fingerprint([path], {}, sampled=True) != before
    assert resume.fingerprint([path], {}) == {key: before[key] for key in before if key != "sample"}


def test_unreadable_file_has_a_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "broken").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    paths = [tmp_path / "broken", tmp_path / "pipe"]
    assert resume.fingerprint(paths, {}, sampled=True)["files"] == 2


@pytest.mark.parametrize("part", [None, "1/2"])
def test_run_deletes_leftovers_of_a_killed_run(part: str | None, tmp_path: Path) -> None:
    left, mine = tmp_path / f".unfinished-{'0' * 32}", tmp_path / ".unfinished"
    for path in (left, mine):
        (path / "clip").mkdir(parents=True)
    with resume.open_run(tmp_path, None, part) as run:
        assert not list(run.iterdir()) and left.exists() == bool(part) and mine.exists()
    assert not run.exists() and (mine / "clip").exists()
