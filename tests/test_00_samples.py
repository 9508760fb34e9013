"""Tests of 00: the practice videos are complete and reproducible, and user files are kept."""

import importlib
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, assert_stops, run_script
from hypothesis import given
from hypothesis import strategies as st
from mtcnn import MTCNN

from deepfake_detect import Detector, files, practice

samples = importlib.import_module("00-make-sample-videos")

SCRIPT = "00-make-sample-videos.py"
SMALL = samples.Settings(people=4, fakes=6, frames=8, workers=2)
SMALLEST = samples.Settings(people=1, fakes=1, frames=2, workers=1)
OPTIONS = ["--people", "3", "--fakes", "3", "--frames", "3", "--workers", "1"]


def make(videos_dir: Path, settings: samples.Settings = SMALLEST, **changes: object) -> list:
    return samples.main(replace(settings, videos_dir=videos_dir, **changes))


def read_frames(path: Path) -> np.ndarray:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (frame := capture.read())[0]:
        frames.append(frame[1])
    return np.stack(frames)


def list_times(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and path.name != files.LIST
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[practice.Clip]]:
    """Return a small set; tests must not change it."""
    videos_dir = tmp_path_factory.mktemp("small") / "videos"
    clips = make(videos_dir, SMALL)
    return videos_dir / "practice", clips


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    videos_dir = tmp_path_factory.mktemp("smallest") / "videos"
    make(videos_dir)
    return videos_dir


@pytest.fixture
def smallest(made_once: Path, tmp_path: Path) -> Path:
    """Return a set of two clips with two frames each, which a test may change."""
    return shutil.copytree(made_once, tmp_path / "videos")


# The clips


def test_label_list_has_the_format_of_dfdc(small: tuple[Path, list[practice.Clip]]) -> None:
    folder, clips = small
    entries = json.loads((folder / "practice.json").read_text(encoding="utf-8"))
    videos = {path.name for path in folder.glob("*.mp4")}
    others = {"practice.json", "settings.json", ".lock", files.LIST}
    assert {path.name for path in folder.iterdir()} == videos | others
    assert len(videos) == len(entries) == len(clips) == 10
    assert set(entries) == videos == {clip.name for clip in clips}
    labels = [entry["label"] for entry in entries.values()]
    assert (labels.count("REAL"), labels.count("FAKE")) == (4, 6)
    for entry in entries.values():
        original = entry["original"]
        assert (original is None) == (entry["label"] == "REAL")
        assert original is None or entries[original]["label"] == "REAL"
    originals = [entry["original"] for entry in entries.values() if entry["original"]]
    assert sorted(originals.count(name) for name in set(originals)) == [1, 1, 2, 2]


def test_every_frame_decodes_at_its_size(small: tuple[Path, list[practice.Clip]]) -> None:
    folder, clips = small
    for clip in clips:
        assert read_frames(folder / clip.name).shape == (8, clip.height, clip.width, 3)
        capture = cv2.VideoCapture(str(folder / clip.name))
        assert capture.get(cv2.CAP_PROP_FPS) == practice.FPS


def test_reals_and_fakes_have_every_width_class() -> None:
    clips = practice.plan_clips(4, 6, 1)
    for label in ("REAL", "FAKE"):
        widths = {clip.width for clip in clips if clip.label == label}
        assert set(np.digitize(list(widths), [300, 1000, 1900])) == {0, 1, 2, 3}


@given(people=st.integers(1, 60), fakes=st.integers(0, 150), seed=st.integers(0, 10**6))
def test_plan_is_valid_for_any_numbers(people: int, fakes: int, seed: int) -> None:
    clips = practice.plan_clips(people, fakes, seed)
    names = [clip.name for clip in clips]
    assert len(set(names)) == people + fakes
    reals = {clip.name: clip for clip in clips if clip.label == "REAL"}
    assert sorted(clip.person for clip in reals.values()) == list(range(people))
    turns = [clip.person for clip in clips if clip.label == "FAKE"]
    assert len(turns) == fakes
    assert max(map(turns.count, range(people))) - min(map(turns.count, range(people))) <= 1
    for clip in clips:
        if clip.label == "FAKE":
            original = reals[clip.original]
            assert (original.person, original.width, original.height) == (
                clip.person,
                clip.width,
                clip.height,
            )
    assert clips == practice.plan_clips(people, fakes, seed)
    assert not set(names) & {clip.name for clip in practice.plan_clips(people, fakes, seed + 1)}


def test_default_set_has_enough_people_and_more_fakes_than_reals() -> None:
    settings = samples.Settings()
    assert settings.people >= 12
    assert settings.people < settings.fakes <= 2 * settings.people


def test_seed_determines_the_frames(
    small: tuple[Path, list[practice.Clip]], tmp_path: Path
) -> None:
    folder, clips = small
    again = make(tmp_path / "again", frames=8)
    assert [clip.name for clip in again] == [clips[0].name, clips[4].name]
    other = make(tmp_path / "other", seed=2)
    for clip, other_clip in zip(again, other, strict=True):
        frames = read_frames(tmp_path / "again/practice" / clip.name)
        # Here, the second fake of this person was not written together with these two.
        assert np.array_equal(frames, read_frames(folder / clip.name))
        others = read_frames(tmp_path / "other/practice" / other_clip.name)
        assert cv2.absdiff(others[0], frames[0]).mean() > 10


def find_distances(clip: practice.Clip, seed: int) -> np.ndarray:
    """Return the distance of each pixel from the centre of the face, 1 at its outline."""
    filmed = practice.film_person(clip, 1, np.random.default_rng((seed, clip.person)))
    canvas, camera = next(filmed)
    y, x = np.mgrid[: clip.height, : clip.width] * canvas.shape[1] / clip.width
    portrait_xy = np.linalg.inv(camera[:, :2]) @ np.stack((x, y)).reshape(2, -1)
    portrait_xy -= (np.linalg.inv(camera[:, :2]) @ camera[:, 2])[:, None]
    from_center = (portrait_xy.T - practice.FACE_CENTER) / practice.FACE_AXES
    return np.linalg.norm(from_center, axis=1).reshape(x.shape)


def test_fake_differs_from_its_original_only_in_the_face(
    small: tuple[Path, list[practice.Clip]],
) -> None:
    folder, clips = small
    reals = {clip.name: clip for clip in clips if clip.label == "REAL"}
    for fake in clips[4:]:
        distances = find_distances(fake, 1)
        face, far = distances < 0.8, distances > 1.9
        both = [fake, reals[fake.original]]
        drawn = [frame.astype(int) for frame in next(practice.draw_clips(both, 1, 1))]
        difference = np.abs(drawn[0] - drawn[1]).mean(axis=2)
        assert difference[face].mean() > 2
        assert difference[far].max() == 0
        decoded = [read_frames(folder / clip.name)[0].astype(int) for clip in both]
        difference = np.abs(decoded[0] - decoded[1]).mean(axis=2)
        assert difference[face].mean() > 3 * difference[far].mean()


@pytest.mark.long
def test_detector_finds_exactly_the_face(small: tuple[Path, list[practice.Clip]]) -> None:
    folder, clips = small
    detector = MTCNN()
    for clip in clips:
        factor = {288: 2, 640: 1, 1280: 0.5, 1920: 0.33}[clip.width]
        size = int(clip.width * factor), int(clip.height * factor)
        shrinks = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        for frame in read_frames(folder / clip.name)[::5]:
            resized = cv2.resize(frame, size, interpolation=shrinks)
            faces = detector.detect_faces(cv2.cvtColor(resized, cv2.COLOR_BGR2RGB))
            sure = [face for face in faces if face["confidence"] >= 0.95]
            assert len(sure) == 1, clip.name
            assert 60 <= sure[0]["box"][2] <= 150, clip.name


@pytest.mark.long
def test_included_model_classifies_the_clips(
    small: tuple[Path, list[practice.Clip]], tmp_path: Path
) -> None:
    """Check the examples of the page by a margin, and clips of every size."""
    folder, clips = small
    detector = Detector()
    for label, path in practice.write_examples(tmp_path).items():
        result = detector.check(path)
        assert result.verdict == f"likely {label}"
        assert result.p_fake > 0.75 if label == "fake" else result.p_fake < 0.25
    for clip in (*clips[1:3], *clips[7:]):  # sizes that the examples do not have
        assert detector.check(folder / clip.name).verdict == f"likely {clip.label.lower()}"


# The folder


@pytest.mark.parametrize("name", ["my.mp4", "FaceForensics++/a/b/000_003.mp4", "practice/z.mp4"])
def test_user_files_are_not_touched(name: str, tmp_path: Path, snapshot: callable) -> None:
    own = tmp_path / "videos" / name
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=r"--videos-dir"):
        make(tmp_path / "videos")
    assert snapshot(tmp_path) == before


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights that a user may not have")
def test_linked_folder_is_treated_as_the_users(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "celeb-df").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="celeb-df"):
        make(tmp_path / "videos")
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["celeb-df"]


@pytest.mark.parametrize("name", ["mine.mp4", "notes.txt", "clip.partial.mp4"])
def test_user_files_beside_the_clips_are_kept(name: str, smallest: Path) -> None:
    (smallest / "practice" / name).write_bytes(b"mine")
    next(smallest.glob("practice/[!c]*.mp4")).unlink()
    make(smallest)
    assert (smallest / "practice" / name).read_bytes() == b"mine"


def test_changed_clip_is_not_replaced(smallest: Path) -> None:
    clip = next(smallest.glob("practice/*.mp4"))
    clip.write_bytes(b"mine now")
    with pytest.raises(ValueError, match=clip.name):
        make(smallest)
    assert clip.read_bytes() == b"mine now"


def test_hidden_files_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / ".DS_Store").write_bytes(b"")
    assert len(make(tmp_path / "videos")) == 2


def test_complete_set_is_not_rewritten(smallest: Path, capsys: pytest.CaptureFixture) -> None:
    before = list_times(smallest)
    capsys.readouterr()
    assert len(make(smallest)) == 2
    assert list_times(smallest) == before
    assert "2 clips from" in capsys.readouterr().out


def test_only_the_missing_clip_is_rewritten(smallest: Path) -> None:
    missing, _ = sorted(smallest.glob("practice/*.mp4"))
    frames, before = read_frames(missing), list_times(smallest)
    missing.unlink()
    make(smallest)
    after = list_times(smallest)
    assert [name for name in before if after[name] != before[name]] == [f"practice/{missing.name}"]
    assert np.array_equal(read_frames(missing), frames)


@pytest.mark.long
def test_next_run_finishes_a_killed_run(tmp_path: Path) -> None:
    folder = tmp_path / "practice/videos/practice"
    command = [sys.executable, str(ROOT / SCRIPT), *OPTIONS]
    run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
    while not list(folder.glob("[!.]*.mp4")) and run.poll() is None:
        time.sleep(0.005)
    run.kill()
    run.communicate()  # wait until all processes that can write to the pipe have ended
    assert run.returncode != 0, "the run ended before it could be killed"
    assert not (folder / "practice.json").exists()
    done = {path.name: path.stat().st_mtime_ns for path in folder.glob("[!.]*.mp4")}
    assert 1 <= len(done) < 6
    finished = run_script(SCRIPT, *OPTIONS, cwd=tmp_path)
    assert f"{len(done):,} clips from" in finished.stdout, finished.stderr
    assert finished.stderr == ""  # no progress bar, except on a terminal
    after = list_times(folder)
    assert done.items() <= after.items() and len(list(folder.glob("[!.]*.mp4"))) == 6
    assert not list(folder.glob(".unfinished*"))
    assert all(len(read_frames(path)) == 3 for path in folder.glob("[!.]*.mp4"))


@pytest.mark.parametrize("other", [{"seed": 2}, {"people": 2}, {"frames": 3}, {"fps": 30}])
def test_sets_with_different_settings_are_not_mixed(other: dict[str, int], smallest: Path) -> None:
    before = list_times(smallest)
    with pytest.raises(ValueError, match=r"settings\.json.*--videos-dir"):
        make(smallest, **other)
    assert list_times(smallest) == before


@pytest.mark.parametrize("content", ["{", "{}"])
def test_changed_settings_file_is_reported(content: str, smallest: Path) -> None:
    (smallest / "practice/settings.json").write_text(content)
    with pytest.raises(ValueError, match=r"settings\.json"):
        make(smallest)


@pytest.mark.parametrize("name", ["people", "frames", "fps", "workers"])
def test_number_out_of_range_is_rejected(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"--{name}"):
        make(tmp_path / "videos", **{name: 0})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="a limit on file sizes is POSIX's")
def test_full_disk_does_not_leave_a_broken_clip(tmp_path: Path) -> None:
    import resource

    def allow_only_small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    arguments = ["--people", "1", "--fakes", "0", "--frames", "3", "--workers", "1"]
    run = subprocess.run(
        [sys.executable, str(ROOT / SCRIPT), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=allow_only_small_files,
    )
    assert_stops(run, SCRIPT)
    left = {path.name for path in tmp_path.rglob("*.*") if path.is_file()}
    assert left == {"settings.json", ".lock", files.LIST}
