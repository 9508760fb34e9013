"""Tests of bystanders.py: find the faces in a fake that were not swapped."""

import importlib
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepfake_detect import bystanders, practice

prepare = importlib.import_module("03-prepare-fake-real-dataset")

FRAMES = 3
BOXES = ("x", "y", "width", "height")


def film_two(person: int) -> list[list[np.ndarray]]:
    """Return frames of two people side by side, unchanged and with the left face swapped."""
    clips = [practice.Clip("", person, take, None, 320, 240, "") for take in (0, 1)]
    left = list(practice.draw_clips(clips, FRAMES, seed=1))
    clips = [practice.Clip("", person + 100, 0, None, 320, 240, "")]
    right = [frames[0] for frames in practice.draw_clips(clips, FRAMES, seed=1)]
    return [
        [np.hstack((drawn[take], other)) for drawn, other in zip(left, right, strict=True)]
        for take in (0, 1)
    ]


def encode(frames: list[np.ndarray], path: Path) -> list[np.ndarray]:
    """Compress frames with MPEG-4, like the clips of a data set."""
    size = frames[0].shape[1::-1]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, size)
    for frame in frames:
        writer.write(frame)
    writer.release()
    reader = cv2.VideoCapture(str(path))
    return [reader.read()[1] for _ in frames]


def find_faces(person: int) -> list[np.ndarray]:
    """Return the boxes of the left and the right face in each frame, int (2, 4)."""
    found = []
    for number, left in ((person, 0), (person + 100, 320)):
        clip = practice.Clip("", number, 0, None, 320, 240, "")
        filmed = practice.film_person(clip, FRAMES, np.random.default_rng((1, number)))
        boxes = []
        for _, camera in filmed:
            corners = [(sx, sy) for sx in (-0.9, 0.9) for sy in (-0.9, 0.9)]
            corners = practice.FACE_CENTER + practice.FACE_AXES * corners
            corners = (corners @ camera[:, :2].T + camera[:, 2]) / 2
            low, high = corners.min(axis=0), corners.max(axis=0)
            boxes.append((*(low + np.array((left, 0))).astype(int), *(high - low).astype(int)))
        found.append(boxes)
    return [np.array(pair) for pair in zip(*found, strict=True)]


@pytest.mark.parametrize("person", [0, 1, 2, 3])
def test_only_the_bystander_is_found(person: int, tmp_path: Path) -> None:
    real, fake = (
        encode(frames, tmp_path / f"{number}.mp4") for number, frames in enumerate(film_two(person))
    )
    for before, after, boxes in zip(real, fake, find_faces(person), strict=True):
        allowed, (swapped, bystander) = bystanders.compare_faces(after, before, boxes)
        assert bystander <= allowed < swapped / 2


def test_different_moments_are_not_bystanders() -> None:
    real, fake = film_two(0)
    boxes = find_faces(0)[0]
    moved = np.roll(fake[0], 9, axis=1)
    allowed, differences = bystanders.compare_faces(moved, real[0], boxes)
    assert min(differences) > allowed
    with pytest.raises(ValueError, match="size"):
        bystanders.compare_faces(fake[0][:-1], real[0], boxes)


@given(st.lists(st.tuples(*[st.integers(-500, 500)] * 4), min_size=1, max_size=4))
def test_any_boxes_can_be_compared(boxes: list[tuple[int, int, int, int]]) -> None:
    frame = np.zeros((60, 80, 3), np.uint8)
    allowed, differences = bystanders.compare_faces(frame, frame, np.array(boxes))
    assert len(differences) == len(boxes)
    assert all(one == 0 or one == np.inf for one in differences) and allowed > 0


def make_videos(rows: list[tuple[str, str, str, str]]) -> pd.DataFrame:
    videos = pd.DataFrame(rows, columns=["source", "dataset", "label", "identities"])
    return videos.assign(video_id=videos["source"])


@pytest.mark.parametrize(
    ("rows", "original"),
    [
        ([("519.mp4", "FF", "real", "519"), ("515.mp4", "FF", "real", "515")], "519.mp4"),
        ([("515.mp4", "FF", "real", "515")], None),
        ([("519.mp4", "DFD", "real", "519")], None),
    ],
)
def test_original_shows_the_filmed_person(rows: list[tuple], original: str | None) -> None:
    videos = make_videos([*rows, ("519_515.mp4", "FF", "fake", "519;515")])
    assert bystanders.find_originals(videos).get("519_515.mp4") == original


def test_name_selects_among_videos_of_a_person() -> None:
    videos = make_videos(
        [
            ("id0_0001.mp4", "Celeb-DF", "real", "id0"),
            ("id0_0002.mp4", "Celeb-DF", "real", "id0"),
            ("id0_id1_0002.mp4", "Celeb-DF", "fake", "id0;id1"),
            ("01__exit.mp4", "DFD", "real", "01"),
            ("01__walk.mp4", "DFD", "real", "01"),
            ("01_02__walk__YVGY8LOK.mp4", "DFD", "fake", "01;02"),
            ("abc.mp4", "DFDC", "real", "abc"),
            ("xyz.mp4", "DFDC", "fake", "abc"),
        ]
    )
    assert bystanders.find_originals(videos) == {
        "id0_id1_0002.mp4": "id0_0002.mp4",
        "01_02__walk__YVGY8LOK.mp4": "01__walk.mp4",
        "xyz.mp4": "abc.mp4",
    }


# The whole script


def write_data(folder: Path, people: int = 3) -> None:
    """Write frames/ and faces/ of videos of two people, and fakes with one face swapped."""
    videos, faces = [], []
    for person in range(people):
        names = [f"dfdc-real{person}", f"dfdc-fake{person}"]
        boxes = find_faces(person)
        for name, label, frames in zip(names, ("real", "fake"), film_two(person), strict=True):
            (folder / "frames" / name).mkdir(parents=True)
            (folder / "faces" / name).mkdir(parents=True)
            source = f"dfdc/{name.removeprefix('dfdc-')}.mp4"
            videos.append((name, source, "DFDC", label, label, f"real{person}", ""))
            for index, frame in enumerate(encode(frames, folder / "clip.mp4")):
                stem = f"{name}/{name}-{index:06d}"
                cv2.imwrite(str(folder / "frames" / f"{stem}.png"), frame)
                for number, (x, y, width, height) in enumerate(boxes[index]):
                    crop = f"{stem}-{number:02d}.png"
                    face = frame[y : y + height, x : x + width]
                    cv2.imwrite(str(folder / "faces" / crop), face)
                    faces.append((crop, name, index, x, y, width, height))
    columns = ["video_id", "source", "dataset", "label", "method", "identities", "official_split"]
    pd.DataFrame(videos, columns=columns).to_csv(folder / "frames/videos.csv", index=False)
    columns = ["crop", "video_id", "frame", *BOXES]
    pd.DataFrame(faces, columns=columns).to_csv(folder / "faces/faces.csv", index=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    write_data(folder)
    return folder


def run(data: Path, folder: Path, **settings: object) -> pd.DataFrame:
    folders = {"frames_dir": data / "frames", "faces_dir": data / "faces"}
    folders |= {"prepared_dir": folder / "prepared", "split_dir": folder / "split"}
    return prepare.main(prepare.Settings(**folders | settings))


def test_bystanders_are_not_labelled_fake(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(data, tmp_path)
    crops = pd.read_csv(tmp_path / "split/crops.csv")
    fakes = crops[crops["label"] == "fake"]
    assert len(fakes) == 3 * FRAMES and fakes["crop"].str.endswith("-00.png").all()
    assert "9 faces in fakes" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "split/bystanders.csv")
    assert list(table.columns) == bystanders.COLUMNS and len(table) == 3 * FRAMES
    assert table["crop"].str.endswith("-01.png").all()
    assert (table["difference"] <= table["allowed"]).all()


def test_comparison_can_be_disabled(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path, compare=False)
    crops = pd.read_csv(tmp_path / "split/crops.csv")
    assert crops["crop"][crops["label"] == "fake"].str.endswith("-01.png").any()


def test_fakes_without_original_are_counted(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = pd.read_csv(data / "frames/videos.csv")
    videos.loc[videos["label"] == "fake", "identities"] = [f"other{n}" for n in range(3)]
    (tmp_path / "frames").mkdir()
    videos.to_csv(tmp_path / "frames/videos.csv", index=False)
    run(data, tmp_path, frames_dir=tmp_path / "frames")
    assert "3 fake videos" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "split/bystanders.csv").empty


@pytest.mark.parametrize("change", ["frame is gone", "frame is damaged", "no boxes", "odd boxes"])
def test_crops_that_cannot_be_compared_stay_fake(change: str, data: Path, tmp_path: Path) -> None:
    for name in ("frames", "faces"):
        shutil.copytree(data / name, tmp_path / name)
    frames = sorted(tmp_path.glob("frames/dfdc-real0/*.png"))
    faces = pd.read_csv(tmp_path / "faces/faces.csv")
    if change == "frame is gone":
        frames[0].unlink()
    elif change == "frame is damaged":
        frames[0].write_bytes(b"no image")
    elif change == "no boxes":
        faces = faces[["crop", "video_id"]]
    else:
        faces = faces.astype({"x": object})
        faces["x"] = ["a", "1e400", "-99999999999", "", "7", "nan"] * 6
    faces.to_csv(tmp_path / "faces/faces.csv", index=False)
    run(tmp_path, tmp_path)
    left_out = pd.read_csv(tmp_path / "split/bystanders.csv")
    assert len(left_out) == 8 if "frame" in change else len(left_out) < 9
