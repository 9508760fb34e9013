"""Tests of 01: descriptions of videos, chosen frames, and broken input."""

import importlib
import json
import struct
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, assert_stops, run_script, write_video
from faults import jpeg, write_avi
from hypothesis import given
from hypothesis import strategies as st

from deepfake_detect import datasets as catalogue

SCRIPT = "01-convert-video-to-image.py"
convert = importlib.import_module("01-convert-video-to-image")


def convert_all(videos_dir: Path, frames_dir: Path, **settings: object) -> pd.DataFrame:
    return convert.main(convert.Settings(videos_dir, frames_dir, **settings))


def images(frames_dir: Path, video_id: str) -> dict[int, np.ndarray]:
    """Return the saved frames of a video, by index."""
    paths = (frames_dir / video_id).glob(f"{video_id}-??????.png")
    return {int(path.stem[-6:]): cv2.imread(str(path)) for path in paths}


# --- The five data sets ---------------------------------------------------------------------------

# A path below videos/, then its dataset, label, method, compression, identities, official split.
FIVE_DATA_SETS = """
ff/original_sequences/youtube/c23/videos/000.mp4
    FaceForensics++ real original c23 000 train
ff/original_sequences/youtube/raw/videos/003.mp4
    FaceForensics++ real original raw 003 train
ff/original_sequences/youtube/c23/videos/012.mp4
    FaceForensics++ real original c23 012 test
ff/manipulated_sequences/Deepfakes/c23/videos/000_003.mp4
    FaceForensics++ fake Deepfakes c23 000;003 train
ff/manipulated_sequences/faceshifter/C40/Videos/012_026.mp4
    FaceForensics++ fake FaceShifter c40 012;026 test
ff/original_sequences/actors/c23/videos/01__exit_phone_room.mp4
    DFD real original c23 01 -
ff/manipulated_sequences/DeepFakeDetection/c23/videos/01_02__walk_down_hall__YVGY8LOK.mp4
    DFD fake DeepFakeDetection c23 01;02 -
Celeb-DF-v2/Celeb-real/id0_0001.mp4
    Celeb-DF real original - id0 test
Celeb-DF-v2/Celeb-real/id1_0000.mp4
    Celeb-DF real original - id1 train
Celeb-DF-v2/YouTube-real/00012.mp4
    Celeb-DF real original - youtube00012 test
Celeb-DF-v2/Celeb-synthesis/id0_id1_0001.mp4
    Celeb-DF fake Celeb-synthesis - id0;id1 test
Celeb-DF-v1/Celeb-real/videos/id0_0001.mp4
    Celeb-DF real original - id0 -
dfdc_train_part_3/aaa.mp4
    DFDC real original - aaa train
dfdc_train_part_3/bbb.mp4
    DFDC fake DFDC - aaa train
dfdc_test/test/ccc.mp4
    DFDC fake DFDC - ccc test
dfdc_test/test/ddd.mp4
    DFDC real original - ddd test
preview/original_videos/10/10_a.mp4
    DFDC-preview real original - 10 train
preview/method_A/10/10_20_0.mp4
    DFDC-preview fake method_A - 10;20 test
DeepfakeTIMIT/higher_quality/fadg0/sa1-video-fram1.avi
    DeepFake-TIMIT fake faceswap-GAN higher_quality fadg0;fram1 -
DeepfakeTIMIT/lower_quality/fadg0/sa1-video-fram1.avi
    DeepFake-TIMIT fake faceswap-GAN lower_quality fadg0;fram1 -
vidtimit/fadg0/video/sa1
    DeepFake-TIMIT real original - fadg0 -
own/real/anna/1.mp4
    plain real original - anna -
own/FAKE/anna/1.webm
    plain fake plain - anna -
"""
# A path below videos/, then part of the reason for leaving it out.
LEFT_OUT = """
ff/original_sequences/youtube/c23/videos/12.mp4
    such as 519.mp4
ff/manipulated_sequences/Deepfakes/c23/videos/000-003.mp4
    such as 519_515.mp4
ff/manipulated_sequences/DeepFakeDetection/c23/videos/01_02_walk_YVGY8LOK.mp4
    such as 01_02__
ff/manipulated_sequences/Deepfakes/masks/videos/000_003.mp4
    a mask
Celeb-DF-v2/Celeb-synthesis/id0_0001.mp4
    such as id0_id1_0001.mp4
dfdc_train_part_3/zzz.mp4
    does not name it
dfdc_train_part_3/odd.mp4
    no label REAL or FAKE
dfdc_train_part_3/gone.mp4
    listed
DeepfakeTIMIT/higher_quality/fadg0/sa1.avi
    such as sa1-video-fram1.avi
somewhere/clip.mp4
    folder named real or fake
own/real/fake/clip.mp4
    below both
own/real/clip.wmv
    not a video
broken/metadata.json
    cannot be read as metadata.json
"""


def pairs_of_lines(text: str) -> dict[str, str]:
    lines = text.strip().splitlines()
    return {path: words.strip() for path, words in zip(lines[::2], lines[1::2], strict=True)}


FIVE_DATA_SETS = {
    path: tuple("" if word == "-" else word for word in words.split())
    for path, words in pairs_of_lines(FIVE_DATA_SETS).items()
}
LEFT_OUT = pairs_of_lines(LEFT_OUT)


@pytest.fixture(scope="module")
def five_data_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a miniature of all five data sets in one folder, with some misnamed files."""
    videos = tmp_path_factory.mktemp("five") / "videos"
    for number, source in enumerate([*FIVE_DATA_SETS, *LEFT_OUT]):
        path = videos / source
        if source.startswith("vidtimit"):
            path.mkdir(parents=True)
            for still in ("001", "002", "003"):
                image = np.full((48, 64, 3), int(still), np.uint8)
                (path / still).write_bytes(cv2.imencode(".jpg", image)[1])
        elif path.suffix in (".wmv", ".json"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("[1, 2")
        elif path.stem != "gone":
            write_video(path, frames=2, seed=number)
    (videos / "ff/splits").mkdir()
    (videos / "ff/splits/train.json").write_text('[["000", "003"]]')
    (videos / "ff/splits/test.json").write_text('[["012", "026"]]')
    (videos / "Celeb-DF-v2/List_of_testing_videos.txt").write_text(
        "1 YouTube-real/00012.mp4\n1 Celeb-real/id0_0001.mp4\n0 Celeb-synthesis/id0_id1_0001.mp4\n"
    )
    dfdc = {
        "aaa.mp4": {"label": "REAL", "split": "train", "original": None},
        "bbb.mp4": {"label": "FAKE", "split": "train", "original": "aaa.mp4"},
        "odd.mp4": {"label": "PERHAPS", "split": "train", "original": "aaa.mp4"},
        "gone.mp4": {"label": "FAKE", "split": "train", "original": "aaa.mp4"},
    }
    (videos / "dfdc_train_part_3/metadata.json").write_text(json.dumps(dfdc))
    (videos / "dfdc_test/labels.csv").write_text("filename,label\nccc.mp4,1\nddd.mp4,0\n")
    real = {"label": "real", "set": "train", "target_id": 10, "swapped_id": None}
    fake = {"label": "fake", "set": "test", "target_id": 10, "swapped_id": 20}
    preview = {"original_videos/10/10_a.mp4": real, "method_A/10/10_20_0.mp4": fake}
    (videos / "preview/dataset.json").write_text(json.dumps(preview))
    return videos


def test_five_data_sets_are_described(five_data_sets: Path, tmp_path: Path) -> None:
    table = convert_all(five_data_sets, tmp_path / "frames", workers=2)
    rows = {row.source: tuple(row)[3:9] for row in table.itertuples()}
    assert rows == FIVE_DATA_SETS
    assert set(table["status"]) == {"ok"}
    stills = table["source"] == "vidtimit/fadg0/video/sa1"
    assert (table["frames"] == np.where(stills, 3, 2)).all()
    assert table["video_id"].str.lower().is_unique
    assert table["video_id"].str.fullmatch(r"[A-Za-z0-9_.-]+").all()
    assert "ffpp-Deepfakes-c23-000_003" in set(table["video_id"])
    for video_id, frames in zip(table["video_id"], table["frames"], strict=True):
        assert len(images(tmp_path / "frames", video_id)) == frames
    on_disk = pd.read_csv(tmp_path / "frames/videos.csv", dtype=str, keep_default_na=False)
    assert list(on_disk.columns) == list(table.columns)
    left_out = pd.read_csv(tmp_path / "frames/left-out.csv").set_index("path")["reason"]
    assert set(left_out.index) == set(LEFT_OUT)
    for path, reason in LEFT_OUT.items():
        assert reason in left_out[path], path


def test_five_data_sets_can_be_split(
    five_data_sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The videos do not show faces, so each frame is used as a crop."""
    monkeypatch.chdir(tmp_path)
    table = convert_all(five_data_sets, Path("frames"), workers=2)
    faces = []
    for path in sorted(Path("frames").glob("*/*.png")):
        crop = Path(path.parent.name, f"{path.stem}-00.png")
        (Path("faces") / crop).parent.mkdir(parents=True, exist_ok=True)
        (Path("faces") / crop).write_bytes(path.read_bytes())
        faces.append({"crop": crop.as_posix(), "video_id": path.parent.name})
    pd.DataFrame(faces).to_csv("faces/faces.csv", index=False)
    on_disk = importlib.import_module("03-prepare-fake-real-dataset").main()
    assert set(on_disk["split"]) == {"train", "val", "test"}
    counts = on_disk.groupby(["dataset", "split"])["label"].value_counts().unstack()
    assert (counts["real"] == counts["fake"]).all()
    labels = table.set_index("video_id")["label"]
    assert (on_disk["folder"] == on_disk["video_id"].map(labels)).all()
    people = on_disk.assign(identity=on_disk["identities"].str.split(";")).explode("identity")
    assert (people.groupby(["dataset", "identity"])["split"].nunique() == 1).all()


def test_outer_folder_names_and_case_do_not_matter(tmp_path: Path) -> None:
    source = "X/real stuff/MANIPULATED_SEQUENCES/neuraltextures/C23/VIDEOS/000_003.MP4"
    write_video(tmp_path / "videos/elsewhere.mp4", frames=2).parent.joinpath(
        Path(source).parent
    ).mkdir(parents=True)
    (tmp_path / "videos/elsewhere.mp4").rename(tmp_path / "videos" / source)
    (row,) = convert_all(tmp_path / "videos", tmp_path / "frames", workers=1).itertuples()
    assert (row.dataset, row.method) == ("FaceForensics++", "NeuralTextures")


@given(
    st.lists(
        st.tuples(st.sampled_from(["plain-real", "dfdc", "a-b"]), st.text(min_size=1)),
        min_size=1,
        max_size=30,
        unique=True,
    )
)
def test_video_ids_are_safe_and_unique(names: list[tuple[str, str]]) -> None:
    sources = [f"{prefix}/{name.replace('/', '_')}.mp4" for prefix, name in names]
    videos = pd.DataFrame({"source": sources, "prefix": [prefix for prefix, _ in names]})
    videos = videos.drop_duplicates()
    ids = catalogue.name_videos(videos)
    assert ids.str.lower().is_unique
    assert ids.str.fullmatch(r"[A-Za-z0-9_.-]{1,89}").all()
    assert not ids.str.endswith(".").any()
    reversed_ids = catalogue.name_videos(videos[::-1])
    assert reversed_ids.sort_index().equals(ids)


# --- Which frames, at which size ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "expected"),
    [(1, 2), (299, 598), (300, 300), (1000, 1000), (1001, 500), (1900, 950), (1901, 627)],
)
def test_width_rule(width: int, expected: int) -> None:
    factor = expected / width
    resized = convert.resize_by_width(np.zeros((180, width, 3), np.uint8))
    assert resized.shape[1] == expected
    assert abs(resized.shape[0] - 180 * factor) <= 1


def test_width_rule_can_be_changed_or_disabled_and_is_saved_for_02(tmp_path: Path) -> None:
    write_video(tmp_path / "videos/real/a.mp4", frames=1, size=(400, 300))
    own, said = {"width_rule": ((350, 4.0), (float("inf"), 0.5))}, []
    for setting, size in (({}, 400), (own, 200), ({"full_frames": True} | own, 400)):
        convert_all(tmp_path / "videos", tmp_path / "frames", workers=1, **setting)
        assert images(tmp_path / "frames", "plain-real-a")[0].shape[1] == size
        said.append(json.loads((tmp_path / "frames/crop-rule.json").read_text()))
    assert [rule["frames"] for rule in said] == ["reduced", "reduced", "full"]
    usual = [[300, 2.0], [1001, 1.0], [1901, 0.5], [None, 0.33]]
    assert [rule["width_rule"] for rule in said] == [usual, *([[[350, 4.0], [None, 0.5]]] * 2)]
    for rule in ((), ((300, 2.0),), ((300, 0.0), (float("inf"), 1.0))):
        with pytest.raises(ValueError, match="--width-rule"):
            convert_all(tmp_path / "videos", tmp_path / "frames", width_rule=rule)


def test_all_frames_are_saved_in_order_and_lossless(tmp_path: Path) -> None:
    video = write_video(tmp_path / "videos/real/a.mp4", frames=7, size=(320, 240))
    convert_all(tmp_path / "videos", tmp_path / "frames", workers=1)
    saved = images(tmp_path / "frames", "plain-real-a")
    assert sorted(saved) == list(range(7))
    capture = cv2.VideoCapture(str(video))
    for index in range(7):
        assert (saved[index] == capture.read()[1]).all()


def test_frames_per_video_are_an_even_subset_of_all_frames(tmp_path: Path) -> None:
    write_video(tmp_path / "videos/real/a.mp4", frames=20)
    convert_all(tmp_path / "videos", tmp_path / "all", workers=1)
    convert_all(tmp_path / "videos", tmp_path / "some", frames_per_video=4, workers=1)
    some, every = (
        images(tmp_path / "some", "plain-real-a"),
        images(tmp_path / "all", "plain-real-a"),
    )
    assert sorted(some) == [2, 7, 12, 17]
    assert all((some[index] == every[index]).all() for index in some)


def test_frames_per_second(tmp_path: Path) -> None:
    write_video(tmp_path / "videos/real/a.mp4", frames=50, fps=25)
    for fps, expected in ((1, [0, 25]), (5, list(range(0, 50, 5))), (100, list(range(50)))):
        frames = tmp_path / f"frames{fps}"
        table = convert_all(tmp_path / "videos", frames, frames_per_second=fps, workers=1)
        assert sorted(images(frames, "plain-real-a")) == expected
        assert table["fps"].tolist() == [25.0]


@given(st.integers(1, 3000), st.integers(1, 400))
def test_chosen_frames_are_evenly_spaced(total: int, wanted: int) -> None:
    chosen = sorted(convert.choose_evenly(total, wanted))
    assert len(chosen) == min(total, wanted)
    assert set(chosen) <= set(range(total))
    gaps = np.diff(chosen)
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


def test_rotation_is_applied_before_the_width_rule(tmp_path: Path) -> None:
    path = write_video(tmp_path / "videos/real/a.mp4", frames=2, size=(1200, 240))
    data = bytearray(path.read_bytes())
    upright = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    turned = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)  # by 90 degrees
    start = data.index(upright, data.index(b"tkhd"))
    data[start : start + len(turned)] = turned
    path.write_bytes(data)
    table = convert_all(tmp_path / "videos", tmp_path / "frames", workers=1)
    assert (table["width"][0], table["height"][0]) == (240, 1200)
    assert images(tmp_path / "frames", "plain-real-a")[0].shape == (2400, 480, 3)


# --- Broken input, and continuing -----------------------------------------------------------------


def test_broken_videos_are_reported_and_others_converted(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    write_video(videos / "real/whole.mp4", frames=4)
    (videos / "fake").mkdir()
    (videos / "fake/text.mp4").write_text("not a video")
    (videos / "fake/empty.mp4").touch()
    cut = write_video(videos / "fake/cut.avi", frames=20)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 6 // 10])
    table = convert_all(videos, tmp_path / "frames", workers=2).set_index("video_id")
    status = table["status"].to_dict()
    assert status == {
        "plain-real-whole": "ok",
        "plain-fake-text": "failed",
        "plain-fake-empty": "failed",
        "plain-fake-cut": "partial",
    }
    assert "does not open" in table.loc["plain-fake-text", "reason"]
    assert "of the 20 frames" in table.loc["plain-fake-cut", "reason"]
    frames = table.loc["plain-fake-cut", "frames"]
    assert 0 < frames < 20
    assert sorted(images(tmp_path / "frames", "plain-fake-cut")) == list(range(frames))


def test_second_run_converts_only_changed_videos(tmp_path: Path, snapshot: callable) -> None:
    videos, frames = tmp_path / "videos", tmp_path / "frames"
    write_video(videos / "real/a.mp4", frames=3)
    write_video(videos / "real/b.mp4", frames=3)
    convert_all(videos, frames, workers=1)
    before = snapshot(frames)
    write_video(videos / "real/b.mp4", frames=5, seed=1)
    write_video(videos / "fake/c.mp4", frames=2)
    left = frames / f".unfinished-{'0' * 32}/plain-fake-c"  # left by a killed run
    left.mkdir(parents=True)
    (left / "half.png").touch()
    table = convert_all(videos, frames, workers=1)
    after = snapshot(frames)
    assert table["frames"].tolist() == [2, 3, 5]
    of_a = [name for name in before if name.startswith("plain-real-a/")]
    assert len(of_a) == 4 and all(after[name] == before[name] for name in of_a)
    assert not [name for name in after if ".unfinished" in name]
    table = convert_all(videos, frames, frames_per_video=1, workers=1)
    assert table["frames"].tolist() == [1, 1, 1]
    assert len(list(frames.glob("*/*.png"))) == 3


@pytest.mark.long
def test_workers_end_with_a_killed_run(tmp_path: Path) -> None:
    write_avi(tmp_path / "videos/real/a.avi", [jpeg((640, 480))] * 3000, (640, 480))
    run = subprocess.Popen([sys.executable, ROOT / SCRIPT], cwd=tmp_path)
    frames = tmp_path / "frames"
    while not len(list(frames.rglob("*.png"))) > 5:
        assert run.poll() is None
        time.sleep(0.05)
    run.kill()
    run.wait()
    written = [-1, 0]
    while written[-1] != written[-2]:  # a surviving worker would write all frames and move them
        time.sleep(1)
        written.append(len(list(frames.rglob("*.png"))))
    assert written[-1] < 3000


def test_user_folder_named_masks_is_not_left_out(tmp_path: Path) -> None:
    write_video(tmp_path / "videos/real/masks/a.mp4", frames=1)
    table = convert_all(tmp_path / "videos", tmp_path / "frames", workers=1)
    assert table["identities"].tolist() == ["masks"]


def test_bad_input_is_reported(tmp_path: Path, snapshot: callable) -> None:
    assert_stops(
        run_script(SCRIPT, cwd=tmp_path), "videos: the folder does not exist", "--videos-dir"
    )
    videos, frames = tmp_path / "videos", tmp_path / "frames"
    videos.mkdir()
    with pytest.raises(ValueError, match=r"videos: no video to convert.*real and fake"):
        convert_all(videos, frames)
    write_video(videos / "real/a.mp4", frames=2)
    (frames / "plain-real-a").mkdir(parents=True)
    (frames / "plain-real-a/mine.png").write_text("a user's")
    before = snapshot(frames)
    with pytest.raises(ValueError, match=r"plain-real-a.*not created by this script"):
        convert_all(videos, frames)
    assert snapshot(frames) == before
    with pytest.raises(ValueError, match="not both"):
        convert_all(videos, frames, frames_per_second=1, frames_per_video=1)
