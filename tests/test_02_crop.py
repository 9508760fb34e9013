"""02: crops, tables, and continuing a stopped run."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, assert_stops, run_script
from frames import FRAMES, crop, make_frame, run_02, write_frames
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfake_detect import faces as face_detector
from deepfake_detect import files
from deepfake_detect.cropping import crop_faces
from deepfake_detect.mtcnn import FaceDetector

SCRIPT = "02-crop-faces-with-mtcnn.py"


@given(*[st.integers(0, 80)] * 2, *[st.integers(1, 80)] * 2, st.floats(0, 1))
def test_margin_is_added_on_each_side(
    x: int, y: int, width: int, height: int, margin: float
) -> None:
    frame = np.arange(160 * 160 * 3, dtype=np.uint32).reshape(160, 160, 3)
    cut = face_detector.crop_face(frame, (x, y, width, height), margin)
    left, top = max(0, x - round(margin * width)), max(0, y - round(margin * height))
    assert cut[0, 0, 0] == frame[top, left, 0]
    right = min(160, x + width + round(margin * width))
    bottom = min(160, y + height + round(margin * height))
    assert cut.shape == (bottom - top, right - left, 3)


@given(*[st.integers(0, 80)] * 2, *[st.integers(1, 80)] * 2, st.floats(0, 1))
def test_square_crop_is_centred_on_the_box(
    x: int, y: int, width: int, height: int, margin: float
) -> None:
    frame = np.arange(600 * 600 * 3, dtype=np.uint32).reshape(600, 600, 3)
    cut = face_detector.crop_face(frame, (x + 200, y + 200, width, height), margin, square=True)
    side = max(width, height) * (1 + 2 * margin)
    assert cut.shape[0] == cut.shape[1] and abs(len(cut) - side) <= 0.5
    top, left = divmod(int(cut[0, 0, 0]) // 3, 600)
    assert abs(left + side / 2 - (x + 200 + width / 2)) <= 1
    assert abs(top + side / 2 - (y + 200 + height / 2)) <= 1
    box = x + 200, y + 200, 1, 1
    at_an_edge = face_detector.crop_face(frame[: y + 201, : x + 201], box, 1.0, True)
    assert at_an_edge.shape == (2, 2, 3)


class KnownFaces:
    """A detector that returns given faces, and stores the frames that it searched."""

    def __init__(self, faces: list[list[object]]) -> None:
        self.faces, self.shown = faces, []

    def detect(self, frames: list[np.ndarray]) -> list[list[object]]:
        self.shown = frames
        return self.faces


@st.composite
def frame_and_face(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Draw a full-size frame of noise, and a box in the frame after the width rule."""
    width, height = draw(st.integers(40, 2400)), draw(st.integers(40, 120))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    frame = rng.integers(0, 256, (height, width, 3), np.uint8)
    rows, columns = face_detector.resize_by_width(frame).shape[:2]
    x, y = draw(st.integers(0, columns - 12)), draw(st.integers(0, rows - 12))
    return frame, (
        x,
        y,
        draw(st.integers(12, max(12, columns - x))),
        draw(st.integers(12, max(12, rows - y))),
    )


@settings(max_examples=50)
@given(frame_and_face(), st.sampled_from(["reduced", "full"]), st.floats(0, 1), st.booleans())
def test_training_and_detection_use_identical_pixels(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: tuple,
    frames: str,
    margin: float,
    square: bool,
) -> None:
    """A frame saved by 01 and cropped by 02 gives the same crop and box as a frame in memory."""
    video_frame, box = drawn
    rule = face_detector.CropRule(frames, margin, square)
    frame = face_detector.resize_by_width(video_frame) if frames == "reduced" else video_frame
    detector = KnownFaces([[face_detector.Face(box, 0.99), face_detector.Face(box, 0.5)]])
    (((face, in_memory),),) = crop_faces([frame], detector, 0.95, rule)
    assert (detector.shown[0] == face_detector.resize_by_width(video_frame)).all()

    folder = tmp_path_factory.mktemp("v")
    path = folder / "v-000000.png"
    path.write_bytes(cv2.imencode(".png", frame)[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crop, "FaceDetector", lambda: detector)
        (row,), skipped = crop.write_crops(folder, 0.95, rule, (), "v", {0: path})
    assert not skipped
    on_disk = cv2.imread(str(folder / row["crop"]))
    assert (row["x"], row["y"], row["width"], row["height"]) == face.box
    assert on_disk.shape == in_memory.shape and (on_disk == in_memory).all()
    assert (face_detector.crop_face(frame, face.box, margin, square) == in_memory).all()
    left, top, width, height = face.box
    assert left >= 0 and top >= 0 and min(width, height) >= 1
    assert left + width <= frame.shape[1] and top + height <= frame.shape[0]
    factor = frame.shape[1] / detector.shown[0].shape[1]
    assert np.abs(np.array(face.box) / factor - box).max() <= 3


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    videos = {"a-b": ["one", "two", "other size"], "c": ["none", "one"]}
    shown = {video_id: [FRAMES[name] for name in names] for video_id, names in videos.items()}
    return write_frames(tmp_path / "frames", shown, step=10)


def test_crops_and_tables_on_disk(
    frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (frames / "c/c-000020.png").write_bytes(b"broken")
    table = run_02(frames, tmp_path / "faces")
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
        assert (saved == face_detector.crop_face(frame, box, 0.3)).all()
    skipped = pd.read_csv(tmp_path / "faces/skipped.csv")
    assert skipped[["video_id", "frame"]].values.tolist() == [["c", 20]]
    assert "frame 20 of c: does not decode" in capsys.readouterr().out


def test_faces_below_the_threshold_are_not_saved(frames: Path, tmp_path: Path) -> None:
    scores = run_02(frames, tmp_path / "faces")["confidence"]
    threshold = float(scores.sort_values().iloc[2]) + 1e-7
    table = run_02(frames, tmp_path / "faces", confidence=threshold)
    assert len(table) == (scores >= threshold).sum() < len(scores)
    assert len(list((tmp_path / "faces").glob("*/*.png"))) == len(table)
    with pytest.raises(ValueError, match=r"confidence 1\.0"):
        run_02(frames, tmp_path / "faces", confidence=1.0)
    assert not list((tmp_path / "faces").glob("*/*.png"))
    assert not (tmp_path / "faces/faces.csv").exists()


def test_second_run_only_processes_changes(
    frames: Path, tmp_path: Path, snapshot: callable, capsys: pytest.CaptureFixture
) -> None:
    faces = tmp_path / "faces"
    run_02(frames, faces)
    before = snapshot(faces)
    left = files.name_unfinished(faces)  # leftovers of a killed run
    (left / "c").mkdir(parents=True)
    (left / "c/c-000000-00.png").write_bytes(b"half an image")
    (frames / "c/c-000010.png").write_bytes(cv2.imencode(".png", FRAMES["two"])[1])
    table = run_02(frames, faces)
    after = snapshot(faces)
    assert "1 of 2 videos were done" in capsys.readouterr().out
    assert (table["video_id"] == "c").sum() == 2
    of_first = [name for name in before if name.startswith("a-b/")]
    assert len(of_first) == 5 and all(after[name] == before[name] for name in of_first)
    assert not list(faces.glob(".unfinished*"))
    assert {name for name in after if name.endswith(".png")} == set(table["crop"])
    (faces / table["crop"][0]).unlink()
    run_02(frames, faces)
    assert (faces / table["crop"][0]).read_bytes() == before[table["crop"][0]][0]
    wider = run_02(frames, faces, margin=0.5)
    assert len(wider) == len(table)
    assert snapshot(faces)[of_first[0]] != after[of_first[0]]


def test_two_processes_write_the_same_files_as_one(
    frames: Path, tmp_path: Path, snapshot: callable
) -> None:
    run_02(frames, tmp_path / "1")
    run_02(frames, tmp_path / "2", workers=2)
    contents = [
        {
            name: content
            for name, (content, _) in snapshot(tmp_path / folder).items()
            if not name.endswith(".made-by")
        }
        for folder in ("1", "2")
    ]
    assert len(contents[0]) == 10 and contents[0] == contents[1]


def test_detection_does_not_import_training_packages() -> None:
    lines = (
        "import importlib, sys; importlib.import_module('02-crop-faces-with-mtcnn'); "
        "print(sorted({'tensorflow', 'keras', 'pandas', 'scipy', 'mtcnn'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_unexpected_frames_and_folders(frames: Path, tmp_path: Path) -> None:
    faces = tmp_path / "faces"
    videos = pd.read_csv(frames / "videos.csv")
    lost = pd.DataFrame([{"video_id": "lost", "frames": 7, "status": "ok"}])
    pd.concat([videos, lost]).to_csv(frames / "videos.csv", index=False)
    (frames / "c/c-000000.png").write_bytes(b"")
    cut = (frames / "c/c-000010.png").read_bytes()[:-1000]
    (frames / "c/c-000010.png").write_bytes(cut)
    (frames / "c/other-000010.png").write_bytes((frames / "a-b/a-b-000000.png").read_bytes())
    files.claim(faces, "--faces-dir", SCRIPT)  # as an earlier run does
    (faces / "mine").mkdir()
    (faces / "mine/mine-000000-00.png").write_bytes(b"kept")
    table = run_02(frames, faces)
    assert set(table["video_id"]) == {"a-b"}
    assert (faces / "mine/mine-000000-00.png").read_bytes() == b"kept"
    skipped = pd.read_csv(faces / "skipped.csv").fillna("")
    assert skipped.values.tolist() == [
        ["c", 0, "is an empty file"],
        ["c", 10, "does not decode as an image"],
        ["lost", "", "its folder has no frames"],
    ]
    (frames / "a-b/a-b-000000.png").touch()
    (faces / "a-b/faces.json").unlink()
    with pytest.raises(ValueError, match=r"faces: a-b was not created by this"):
        run_02(frames, faces)
    assert (faces / "a-b/a-b-000000-00.png").exists() and (faces / "faces.csv").exists()


def test_bad_input_is_reported(tmp_path: Path) -> None:
    frames, faces = tmp_path / "frames", tmp_path / "faces"
    with pytest.raises(FileNotFoundError, match=r"frames: .* run 01.* --frames-dir"):
        run_02(frames, faces)
    frames.mkdir()
    assert_stops(run_script(SCRIPT, cwd=tmp_path), "frames/videos.csv", "01-convert")
    (frames / "videos.csv").write_text("crop,label\n")
    with pytest.raises(ValueError, match=r"videos\.csv"):
        run_02(frames, faces)
    (frames / "videos.csv").write_text("video_id,frames,status\nv,0,failed\n")
    with pytest.raises(ValueError, match="has frames"):
        run_02(frames, faces)
    for wrong in ({"confidence": 1.1}, {"margin": -1}, {"min_face_size": 5}, {"workers": 0}):
        option, value = next(iter(wrong.items()))
        with pytest.raises(ValueError, match=f"--{option.replace('_', '-')} is {value}; give "):
            run_02(frames, faces, **wrong)
    assert not faces.exists()


def test_full_frames_are_searched_reduced_and_cropped_full(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    frames, faces = tmp_path / "frames", tmp_path / "faces"
    full = make_frame((400, 100, 2.0), size=(1280, 720))
    (frames / "v").mkdir(parents=True)
    cv2.imwrite(str(frames / "v/v-000000.png"), full)
    pd.DataFrame([{"video_id": "v", "frames": 1, "status": "ok"}]).to_csv(frames / "videos.csv")
    detector = FaceDetector()
    usual = [[300, 2.0], [1001, 1.0], [1901, 0.5], [None, 0.33]]
    for kind, square, width in (
        ("full", True, usual),
        ("full", False, usual),
        ("full", False, [[None, 0.25]]),
        ("reduced", False, usual),
    ):
        (frames / "crop-rule.json").write_text(json.dumps({"frames": kind, "width_rule": width}))
        table = run_02(frames, faces, square=square)
        rule = json.loads((faces / "crop-rule.json").read_text())
        expected = {"frames": kind, "margin": 0.3, "square": square, "width_rule": width}
        assert rule == expected
        pairs = tuple((limit or np.inf, factor) for limit, factor in width)
        rule = face_detector.CropRule(kind, 0.3, square, pairs)
        (((face, cut),),) = crop_faces([full], detector, 0.95, rule)
        row = table.iloc[0]
        assert (row["x"], row["y"], row["width"], row["height"]) == face.box
        assert (cv2.imread(str(faces / row["crop"])) == cut).all()
        assert not square or cut.shape[0] == cut.shape[1]
    assert "videos were done" not in capsys.readouterr().out
    (frames / "crop-rule.json").write_text('{"frames": "some"}')
    with pytest.raises(ValueError, match=r"crop-rule\.json"):
        run_02(frames, faces)
