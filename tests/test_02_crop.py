"""02: the package's own faces, the margin, and a run that goes on where it was."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import skimage.data
from conftest import assert_stops, run_script
from hypothesis import given
from hypothesis import strategies as st
from mtcnn import MTCNN
from mtcnn.utils.bboxes import smart_nms_from_bboxes
from mtcnn.utils.images import build_scale_pyramid

SCRIPT = "02-crop-faces-with-mtcnn.py"
crop = importlib.import_module("02-crop-faces-with-mtcnn")
HEAD = cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2BGR)[0:230, 100:350]


def make_frame(*faces: tuple[int, int, float], size: tuple[int, int] = (640, 360)) -> np.ndarray:
    """BGR uint8: the portrait's head at (left, top), scaled, on grey; size is (width, height)."""
    frame = np.full((size[1], size[0], 3), 128, np.uint8)
    for left, top, scale in faces:
        head = cv2.resize(HEAD, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        height, width = head.shape[:2]
        part = frame[max(0, top) : top + height, max(0, left) : left + width]
        part[:] = head[max(0, -top) :, max(0, -left) :][: part.shape[0], : part.shape[1]]
    return frame


FRAMES = {
    "one": make_frame((200, 60, 1.0)),
    "two": make_frame((40, 60, 1.0), (380, 120, 0.7)),
    "none": make_frame(),
    "small": make_frame((300, 100, 0.4)),
    "edge": make_frame((-60, 60, 1.0)),
    "other size": make_frame((100, 40, 0.9), size=(430, 310)),
    "tiny frame": make_frame(size=(20, 11)),
}
STEPS = {"CELL": crop.FaceDetector.CELL, "SCALE_FACTOR": crop.FaceDetector.SCALE_FACTOR}
FACES = {"one": 1, "two": 2, "none": 0, "small": 1, "edge": 1, "other size": 1, "tiny frame": 0}


def overlap(one: tuple[int, ...], two: tuple[int, ...]) -> float:
    """Intersection over union of two boxes x, y, width, height."""
    width = min(one[0] + one[2], two[0] + two[2]) - max(one[0], two[0])
    height = min(one[1] + one[3], two[1] + two[3]) - max(one[1], two[1])
    shared = max(0, width) * max(0, height)
    return shared / (one[2] * one[3] + two[2] * two[3] - shared)


@pytest.fixture(scope="module")
def detector() -> object:
    return crop.load_detector(20, None)


def test_the_faces_are_the_package_s(detector: object) -> None:
    package = MTCNN()
    ours = detector.detect(FRAMES.values())
    for name, frame, faces in zip(FRAMES, FRAMES.values(), ours, strict=True):
        confident = [face for face in faces if face.confidence >= 0.95]
        assert len(confident) == FACES[name], name
        if name == "tiny frame":
            continue
        theirs = package.detect_faces(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
        theirs = sorted(theirs, key=lambda face: -face["confidence"])
        assert len(faces) == len(theirs), name
        for face, other in zip(faces, theirs, strict=True):
            assert overlap(face.box, other["box"]) >= 0.99
            assert face.confidence == pytest.approx(other["confidence"], abs=0.01)


def test_a_frame_has_the_same_faces_in_any_batch(detector: object) -> None:
    together = detector.detect(list(FRAMES.values()) * 2)
    for frame, first, second in zip(FRAMES.values(), together, together[7:], strict=False):
        (alone,) = detector.detect([frame])
        assert [face.box for face in alone] == [face.box for face in first]
        assert [face.box for face in alone] == [face.box for face in second]


def test_a_box_inside_a_better_one_goes_only_by_the_smaller_area() -> None:
    corners = np.array([[10.0, 10, 40, 40], [0, 0, 100, 100], [200, 200, 240, 240]])
    boxes = crop.Boxes(np.zeros(3, int), corners, np.array([0.85, 0.9, 0.8]))
    assert crop.without_overlaps(boxes, 0.7).scores.tolist() == [0.9, 0.85, 0.8]
    assert crop.without_overlaps(boxes, 0.7, of_smaller=True).scores.tolist() == [0.9, 0.8]


@given(st.integers(12, 2000), st.integers(12, 2000), st.integers(12, 400))
def test_the_scales_are_the_package_s(height: int, width: int, min_face_size: int) -> None:
    scales = crop.FaceDetector.pyramid
    package = build_scale_pyramid(width, height, 20, 0.709)
    assert scales(SimpleNamespace(**STEPS, min_face_size=20), height, width) == pytest.approx(
        package
    )
    ours = scales(SimpleNamespace(**STEPS, min_face_size=min_face_size), height, width)
    smallest = [int(min(height, width) * scale) for scale in ours[-1:]]
    assert all(12 <= size <= 17 for size in smallest)


@given(
    st.integers(0, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.5, 0.7]), st.booleans()
)
def test_overlapping_boxes_are_left_out_as_in_the_package(
    count: int, seed: int, threshold: float, of_smaller: bool
) -> None:
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 30, (count, 2)), rng.uniform(5, 40, (count, 2))
    boxes = crop.Boxes(
        rng.integers(0, 3, count), np.hstack([corner, corner + size]), rng.uniform(0.6, 1, count)
    )
    package = smart_nms_from_bboxes(
        np.column_stack(boxes), threshold, method="min" if of_smaller else "union"
    )
    ours = crop.without_overlaps(boxes, threshold, of_smaller)
    np.testing.assert_array_equal(np.column_stack(ours), package)


def test_a_larger_smallest_face_still_finds_the_large_ones() -> None:
    larger = crop.load_detector(80, None)
    found = dict(zip(FRAMES, larger.detect(FRAMES.values()), strict=True))
    assert len(found["one"]) == 1 and len(found["small"]) == 0


@given(*[st.integers(0, 80)] * 2, *[st.integers(1, 80)] * 2, st.floats(0, 1))
def test_the_margin(x: int, y: int, width: int, height: int, margin: float) -> None:
    frame = np.arange(160 * 160 * 3, dtype=np.uint32).reshape(160, 160, 3)
    cut = crop.crop_face(frame, (x, y, width, height), margin)
    left, top = max(0, x - round(margin * width)), max(0, y - round(margin * height))
    assert cut[0, 0, 0] == frame[top, left, 0]
    right = min(160, x + width + round(margin * width))
    bottom = min(160, y + height + round(margin * height))
    assert cut.shape == (bottom - top, right - left, 3)


def write_frames(folder: Path, videos: dict[str, list[str]]) -> None:
    rows = []
    for video_id, names in videos.items():
        (folder / video_id).mkdir(parents=True)
        for index, name in enumerate(names):
            png = cv2.imencode(".png", FRAMES[name])[1]
            (folder / video_id / f"{video_id}-{10 * index:06d}.png").write_bytes(png)
        rows.append({"video_id": video_id, "frames": len(names), "status": "ok"})
    rows.append({"video_id": "failed", "frames": 0, "status": "failed"})
    pd.DataFrame(rows).to_csv(folder / "videos.csv", index=False)


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    write_frames(tmp_path / "frames", {"a-b": ["one", "two", "other size"], "c": ["none", "one"]})
    return tmp_path / "frames"


def test_crops_on_disk(frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (frames / "c/c-000020.png").write_bytes(b"broken")
    table = crop.main(frames, tmp_path / "faces", workers=1)
    assert table["crop"].tolist() == [
        "a-b/a-b-000000-00.png",
        "a-b/a-b-000010-00.png",
        "a-b/a-b-000010-01.png",
        "a-b/a-b-000020-00.png",
        "c/c-000010-00.png",
    ]
    on_disk = {
        p.relative_to(tmp_path / "faces").as_posix() for p in tmp_path.rglob("faces/*/*.png")
    }
    assert on_disk == set(table["crop"])
    two = table[table["frame"] == 10].query("video_id == 'a-b'")
    assert two["confidence"].is_monotonic_decreasing and (table["confidence"] >= 0.95).all()
    shown = {("a-b", 0): "one", ("a-b", 10): "two", ("a-b", 20): "other size", ("c", 10): "one"}
    for row in table.itertuples():
        frame = FRAMES[shown[row.video_id, row.frame]]
        saved = cv2.imread(str(tmp_path / "faces" / row.crop))
        box = (row.x, row.y, row.width, row.height)
        assert (saved == crop.crop_face(frame, box, 0.3)).all()
    skipped = pd.read_csv(tmp_path / "faces/skipped.csv")
    assert skipped[["video_id", "frame"]].values.tolist() == [["c", 20]]
    assert "frame 20 of c: does not decode" in capsys.readouterr().out


def test_faces_under_the_threshold_are_never_saved(frames: Path, tmp_path: Path) -> None:
    scores = crop.main(frames, tmp_path / "faces", workers=1)["confidence"]
    threshold = float(scores.sort_values().iloc[2]) + 1e-7
    table = crop.main(frames, tmp_path / "faces", confidence=threshold, workers=1)
    assert len(table) == (scores >= threshold).sum() < len(scores)
    assert len(list((tmp_path / "faces").glob("*/*.png"))) == len(table)
    with pytest.raises(ValueError, match=r"Not one face of confidence 1\.0"):
        crop.main(frames, tmp_path / "faces", confidence=1.0, workers=1)
    assert not list((tmp_path / "faces").glob("*/*.png"))
    assert not (tmp_path / "faces/faces.csv").exists()


def test_a_second_run_does_only_what_changed(
    frames: Path, tmp_path: Path, snapshot: callable, capsys: pytest.CaptureFixture
) -> None:
    faces = tmp_path / "faces"
    crop.main(frames, faces, workers=1)
    before = snapshot(faces)
    (faces / "c.partial").mkdir()  # what a killed run leaves
    (faces / "c.partial/c-000000-00.png").write_bytes(b"half an image")
    (frames / "c/c-000010.png").write_bytes(cv2.imencode(".png", FRAMES["two"])[1])
    table = crop.main(frames, faces, workers=1)
    after = snapshot(faces)
    assert "1 of 2 videos were done" in capsys.readouterr().out
    assert (table["video_id"] == "c").sum() == 2
    of_first = [name for name in before if name.startswith("a-b/")]
    assert len(of_first) == 5 and all(after[name] == before[name] for name in of_first)
    assert not list(faces.rglob("*.partial"))
    assert {name for name in after if name.endswith(".png")} == set(table["crop"])
    (faces / table["crop"][0]).unlink()
    crop.main(frames, faces, workers=1)
    assert (faces / table["crop"][0]).read_bytes() == before[table["crop"][0]][0]
    wider = crop.main(frames, faces, margin=0.5, workers=1)
    assert len(wider) == len(table)
    assert snapshot(faces)[of_first[0]] != after[of_first[0]]


def test_processes_write_what_one_does(frames: Path, tmp_path: Path, snapshot: callable) -> None:
    for workers in (1, 2):
        crop.main(frames, tmp_path / str(workers), workers=workers)
    contents = [
        {name: content for name, (content, _) in snapshot(tmp_path / folder).items()}
        for folder in ("1", "2")
    ]
    assert len(contents[0]) == 9 and contents[0] == contents[1]


def test_frames_and_folders_that_are_not_as_expected(frames: Path, tmp_path: Path) -> None:
    faces = tmp_path / "faces"
    videos = pd.read_csv(frames / "videos.csv")
    lost = pd.DataFrame([{"video_id": "lost", "frames": 7, "status": "ok"}])
    pd.concat([videos, lost]).to_csv(frames / "videos.csv", index=False)
    (frames / "c/c-000000.png").write_bytes(b"")
    cut = (frames / "c/c-000010.png").read_bytes()[:-1000]
    (frames / "c/c-000010.png").write_bytes(cut)
    (frames / "c/other-000010.png").write_bytes((frames / "a-b/a-b-000000.png").read_bytes())
    (faces / "mine").mkdir(parents=True)
    (faces / "mine/mine-000000-00.png").write_bytes(b"kept")
    table = crop.main(frames, faces, workers=1)
    assert set(table["video_id"]) == {"a-b"}
    assert (faces / "mine/mine-000000-00.png").read_bytes() == b"kept"
    skipped = pd.read_csv(faces / "skipped.csv").fillna("")
    assert skipped.values.tolist() == [
        ["c", 0, "is an empty file"],
        ["c", 10, "does not decode as an image"],
        ["lost", "", "has no frames in its folder"],
    ]
    (frames / "a-b/a-b-000000.png").touch()
    (faces / "a-b/faces.json").unlink()
    with pytest.raises(ValueError, match=r"a-b was not made by this script"):
        crop.main(frames, faces, workers=1)
    assert (faces / "a-b/a-b-000000-00.png").exists() and (faces / "faces.csv").exists()


def test_what_bad_input_gets(tmp_path: Path) -> None:
    frames, faces = tmp_path / "frames", tmp_path / "faces"
    with pytest.raises(FileNotFoundError, match=r"no folder .*frames: run 01.* --frames-dir"):
        crop.main(frames, faces)
    frames.mkdir()
    assert_stops(run_script(SCRIPT, cwd=tmp_path), "no videos.csv in frames", "01-convert")
    (frames / "videos.csv").write_text("crop,label\n")
    with pytest.raises(ValueError, match=r"videos.csv is not a table that 01 writes"):
        crop.main(frames, faces)
    (frames / "videos.csv").write_text("video_id,frames,status\nv,0,failed\n")
    with pytest.raises(ValueError, match="has frames"):
        crop.main(frames, faces)
    for wrong in ({"confidence": 1.1}, {"margin": -1}, {"min_face_size": 5}, {"workers": 0}):
        with pytest.raises(ValueError, match="must be"):
            crop.main(frames, faces, **wrong)
    assert not faces.exists()
