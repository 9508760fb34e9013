"""The practice videos: what is in the set, that it repeats, and that nobody's files suffer."""

import importlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mtcnn import MTCNN

samples = importlib.import_module("00-make-sample-videos")

SCRIPT = Path(samples.__file__)
SMALL = {"people": 4, "fakes": 6, "frames": 8, "workers": 2}
SMALLEST = {"people": 1, "fakes": 1, "frames": 2, "workers": 1}


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
        if path.is_file()
    }


@pytest.fixture(scope="module")
def practice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """A small set, read by many tests and changed by none."""
    videos_dir = tmp_path_factory.mktemp("practice") / "videos"
    table = samples.main(videos_dir=videos_dir, **SMALL)
    return videos_dir / "dfdc_practice", table


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    videos_dir = tmp_path_factory.mktemp("smallest") / "videos"
    samples.main(videos_dir=videos_dir, **SMALLEST)
    return videos_dir


@pytest.fixture
def smallest(made_once: Path, tmp_path: Path) -> Path:
    """A set of two clips of two frames, to do things to."""
    return shutil.copytree(made_once, tmp_path / "videos")


def test_set_is_in_the_layout_of_dfdc(practice: tuple[Path, pd.DataFrame]) -> None:
    folder, table = practice
    metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    videos = {path.name for path in folder.glob("*.mp4")}
    assert {path.name for path in folder.iterdir()} == videos | {
        "metadata.json",
        "practice-set.json",
    }
    assert len(videos) == len(metadata) == len(table) == 10
    assert set(metadata) == videos == set(table.name)
    labels = [entry["label"] for entry in metadata.values()]
    assert (labels.count("REAL"), labels.count("FAKE")) == (4, 6)
    assert {entry["split"] for entry in metadata.values()} == {"train"}
    for entry in metadata.values():
        if entry["label"] == "REAL":
            assert entry["original"] is None
        else:
            assert metadata[entry["original"]]["label"] == "REAL"
    originals = [entry["original"] for entry in metadata.values() if entry["original"]]
    assert sorted(originals.count(name) for name in set(originals)) == [1, 1, 2, 2]


def test_every_frame_decodes_at_its_size(practice: tuple[Path, pd.DataFrame]) -> None:
    folder, table = practice
    for clip in table.itertuples():
        assert read_frames(folder / clip.name).shape == (8, clip.height, clip.width, 3)
        capture = cv2.VideoCapture(str(folder / clip.name))
        assert capture.get(cv2.CAP_PROP_FPS) == samples.FPS


def test_every_width_class_is_there_in_reals_and_fakes(
    practice: tuple[Path, pd.DataFrame],
) -> None:
    _, table = practice
    for _, clips in table.groupby("label"):
        classes = pd.cut(clips.width, [0, 299, 1000, 1900, np.inf], labels=False)
        assert set(classes) == {0, 1, 2, 3}
    sizes = table.set_index("name")[["width", "height"]]
    for fake in table[table.label == "FAKE"].itertuples():
        assert tuple(sizes.loc[fake.original]) == (fake.width, fake.height)


@given(people=st.integers(1, 60), fakes=st.integers(0, 150), seed=st.integers(0, 10**6))
def test_plan_holds_for_any_numbers(people: int, fakes: int, seed: int) -> None:
    clips = samples.plan_clips(people, fakes, seed)
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
    assert clips == samples.plan_clips(people, fakes, seed)
    assert not set(names) & {clip.name for clip in samples.plan_clips(people, fakes, seed + 1)}


def test_default_set_has_no_person_twice_and_more_fakes_than_reals() -> None:
    assert samples.PEOPLE >= 12
    assert samples.PEOPLE < samples.FAKES <= 2 * samples.PEOPLE


def test_seed_decides_the_frames(practice: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    folder, table = practice
    again = samples.main(videos_dir=tmp_path / "again", **(SMALLEST | {"frames": 8}))
    assert list(again.name) == [table.name[0], table.name[4]]
    for name in again.name:
        frames = read_frames(tmp_path / "again" / "dfdc_practice" / name)
        assert np.array_equal(frames, read_frames(folder / name))
    other = samples.main(videos_dir=tmp_path / "other", **SMALLEST | {"seed": 2})
    for name, other_name in zip(again.name, other.name, strict=True):
        frames = read_frames(tmp_path / "other" / "dfdc_practice" / other_name)
        difference = cv2.absdiff(frames[0], read_frames(folder / name)[0])
        assert difference.mean() > 10


def find_distances(clip: "samples.Clip", seed: int, frames: int) -> np.ndarray:
    """Distance of each pixel of each frame from the face's center, 1 at its outline."""
    filmed = samples.film_person(clip, frames, np.random.default_rng((seed, clip.person)))
    distances = []
    for canvas, camera in filmed:
        y, x = np.mgrid[: clip.height, : clip.width] * canvas.shape[1] / clip.width
        portrait_xy = np.linalg.inv(camera[:, :2]) @ np.stack((x, y)).reshape(2, -1)
        portrait_xy -= (np.linalg.inv(camera[:, :2]) @ camera[:, 2])[:, None]
        from_center = (portrait_xy.T - samples.FACE_CENTER) / samples.FACE_AXES
        distances.append(np.linalg.norm(from_center, axis=1).reshape(x.shape))
    return np.stack(distances)


def test_fake_differs_from_its_original_in_the_face(
    practice: tuple[Path, pd.DataFrame],
) -> None:
    folder, _ = practice
    clips = samples.plan_clips(4, 6, samples.SEED)
    reals = {clip.name: clip for clip in clips if clip.label == "REAL"}
    for fake in clips:
        if fake.label == "REAL":
            continue
        distances = find_distances(fake, samples.SEED, 1)
        face, far = distances < 0.8, distances > 1.9
        drawn = [
            np.stack(list(samples.draw_clip(clip, 1, samples.SEED))).astype(int)
            for clip in (fake, reals[fake.original])
        ]
        difference = np.abs(drawn[0] - drawn[1]).mean(axis=3)
        assert difference[face].mean() > 2
        assert difference[far].max() == 0
        decoded = [
            read_frames(folder / name)[:1].astype(int) for name in (fake.name, fake.original)
        ]
        difference = np.abs(decoded[0] - decoded[1]).mean(axis=3)
        assert difference[face].mean() > 3 * difference[far].mean()


def test_detector_finds_exactly_the_face(practice: tuple[Path, pd.DataFrame]) -> None:
    folder, table = practice
    detector = MTCNN()
    for clip in table.itertuples():
        factor = {288: 2, 640: 1, 1280: 0.5, 1920: 0.33}[clip.width]
        size = int(clip.width * factor), int(clip.height * factor)
        shrinks = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        for frame in read_frames(folder / clip.name)[::5]:
            resized = cv2.resize(frame, size, interpolation=shrinks)
            faces = detector.detect_faces(cv2.cvtColor(resized, cv2.COLOR_BGR2RGB))
            sure = [face for face in faces if face["confidence"] >= 0.95]
            assert len(sure) == 1, clip.name
            assert 60 <= sure[0]["box"][2] <= 150, clip.name


@pytest.mark.parametrize("name", ["my.mp4", "FaceForensics++/a/b/000_003.mp4", "dfdc_practice/z"])
def test_files_of_the_user_are_left_alone(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "videos" / name
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    before = list_times(tmp_path)
    table = samples.main(videos_dir=tmp_path / "videos", **SMALLEST)
    assert table.empty
    assert list_times(tmp_path) == before
    assert str(own) in capsys.readouterr().out


def test_file_of_the_user_beside_a_set_is_left_alone(smallest: Path) -> None:
    next(smallest.glob("*/*.mp4")).unlink()
    (smallest / "dfdc_practice" / "mine.mp4").write_bytes(b"mine")
    before = list_times(smallest)
    assert samples.main(videos_dir=smallest, **SMALLEST).empty
    assert list_times(smallest) == before


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights that a user may not have")
def test_linked_folder_counts_as_the_users(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "celeb-df").symlink_to(tmp_path / "elsewhere")
    assert samples.main(videos_dir=tmp_path / "videos", **SMALLEST).empty
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["celeb-df"]


def test_hidden_files_and_empty_folders_are_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "videos" / "empty").mkdir(parents=True)
    (tmp_path / "videos" / ".DS_Store").write_bytes(b"")
    assert len(samples.main(videos_dir=tmp_path / "videos", **SMALLEST)) == 2


def test_whole_set_is_not_made_again(smallest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = list_times(smallest)
    capsys.readouterr()
    assert len(samples.main(videos_dir=smallest, **SMALLEST)) == 2
    assert list_times(smallest) == before
    assert "nothing to do" in capsys.readouterr().out


def test_missing_clip_is_made_again_alone(
    smallest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = smallest / "dfdc_practice"
    missing, kept = sorted(folder.glob("*.mp4"))
    frames, kept_time = read_frames(missing), kept.stat().st_mtime_ns
    missing.unlink()
    missing.with_suffix(".partial.mp4").write_bytes(b"half a clip")
    capsys.readouterr()
    samples.main(videos_dir=smallest, **SMALLEST)
    assert kept.stat().st_mtime_ns == kept_time
    assert np.array_equal(read_frames(missing), frames)
    assert len(list(folder.iterdir())) == 4
    assert "kept of before        1 clips" in capsys.readouterr().out


def test_killed_run_is_finished_by_the_next(tmp_path: Path) -> None:
    arguments = ["--people", "3", "--fakes", "3", "--frames", "3", "--workers", "1"]
    command = [sys.executable, str(SCRIPT), *arguments]
    folder = tmp_path / "videos" / "dfdc_practice"
    run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)

    def list_finished() -> list[Path]:
        return [path for path in folder.glob("*.mp4") if ".partial." not in path.name]

    while not list_finished() and run.poll() is None:
        time.sleep(0.005)
    run.kill()
    run.communicate()  # ends when the last process that could write to the pipe has
    assert run.returncode != 0, "the run ended before it could be killed"
    assert not (folder / "metadata.json").exists()
    done = {path.name: path.stat().st_mtime_ns for path in list_finished()}
    assert 1 <= len(done) < 6
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"kept of before  {len(done):7,} clips" in finished.stdout
    after = list_times(folder)
    assert len(after) == 8
    assert done.items() <= after.items()
    assert all(len(read_frames(path)) == 3 for path in folder.glob("*.mp4"))


@pytest.mark.parametrize("other", [{"seed": 2}, {"people": 2}, {"frames": 3}, {"fps": 30}])
def test_set_of_other_settings_is_not_mixed(other: dict[str, int], smallest: Path) -> None:
    before = list_times(smallest)
    with pytest.raises(ValueError, match=rf"dfdc_practice: .* {next(iter(other))}; delete"):
        samples.main(videos_dir=smallest, **SMALLEST | other)
    assert list_times(smallest) == before


def test_marker_that_someone_changed_is_named(smallest: Path) -> None:
    (smallest / "dfdc_practice" / "practice-set.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"practice-set\.json"):
        samples.main(videos_dir=smallest, **SMALLEST)


@pytest.mark.parametrize("name", ["people", "frames", "fps", "workers"])
def test_number_out_of_range_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        samples.main(videos_dir=tmp_path / "videos", **SMALLEST | {name: 0})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="a limit on file sizes is POSIX's")
def test_full_disk_leaves_no_broken_clip(tmp_path: Path) -> None:
    import resource

    def allow_only_small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    arguments = ["--people", "1", "--fakes", "0", "--frames", "3", "--workers", "1"]
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=allow_only_small_files,
    )
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("00-make-sample-videos.py: ")
    assert {path.name for path in tmp_path.rglob("*.*")} == {"practice-set.json"}
