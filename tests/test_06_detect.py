"""06: the very crops of 01 and 02, tracks, verdicts, and what a user of the shell sees."""

import importlib
import inspect
import json
import shutil
import subprocess
import zipfile
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace

import cv2
import imageio_ffmpeg
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, assert_stops, run_script, run_script_after
from frames import make_frame, run_02
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfake_detect import crops as crop_files
from deepfake_detect import inputs as media
from deepfake_detect import report as detection_report
from deepfake_detect.decision import Decision
from deepfake_detect.model import LITE0_WEIGHTS, build_model
from deepfake_detect.model_file import load_model, read_decision, write_model

convert = importlib.import_module("01-convert-video-to-image")
train_cnn = importlib.import_module("04-train-cnn")
detect = importlib.import_module("06-detect-deepfake")

SCRIPT = "06-detect-deepfake.py"
# What a run without options is made with.
SETTINGS = SimpleNamespace(
    **{name: one.default for name, one in inspect.signature(detect.main).parameters.items()}
)


def sample(path: Path, frames_per_second: float) -> list[tuple[int, float, np.ndarray]]:
    settings = SimpleNamespace(**{**vars(SETTINGS), "frames_per_second": frames_per_second})
    return list(media.sample_frames(path, settings, []))


def write_frames(path: Path, frames: list[np.ndarray], fps: float = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = frames[0].shape[1::-1]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, size)
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def two_people(count: int = 15) -> list[np.ndarray]:
    """A small face that moves to the right on the left side, and a larger one that leaves."""
    wide = (1280, 720)  # so that the width rule halves it
    return [
        make_frame(
            (40 + 12 * number, 300, 1.2),
            *([(760, 120, 1.9)] if number < 10 else []),
            size=wide,
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as 04 writes it: from the embedded weights, its top untrained."""
    path = tmp_path_factory.mktemp("model") / "best_model.keras"
    train_cnn.keras.utils.set_random_seed(1)
    built = build_model(LITE0_WEIGHTS)
    decision = Decision(temperature=1.5, threshold=0.3, real_below=0.2)
    write_model(built, decision, path)
    return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_frames(folder / "a" / "two.mp4", two_people())
    write_frames(folder / "b" / "two.mp4", [make_frame() for _ in range(6)])
    cv2.imwrite(str(folder / "photo.png"), make_frame((200, 60, 1.0)))
    (folder / "torn.mp4").write_bytes(b"no video at all")
    (folder / "notes.txt").write_text("neither video nor picture")
    return folder


@pytest.fixture(scope="module")
def detections(inputs: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "detections"
    with pytest.raises(ValueError, match=r"1 of 4 files were not scored: .*torn\.mp4\.$"):
        detect.main([inputs], model=model, detections_dir=folder)
    return folder


def read(detections: Path, name: str) -> dict:
    return json.loads((detections / f"{name}.json").read_text(encoding="utf-8"))


# Scoring


@pytest.mark.parametrize(
    ("frames", "square"), [("reduced", False), ("full", False), ("full", True)]
)
def test_a_frame_gives_the_crops_that_01_and_02_save(
    frames: str, square: bool, tmp_path: Path
) -> None:
    """Detection and training score the same pixels, whatever the crop rule."""
    videos = tmp_path / "videos" / "real"
    write_frames(videos / "two.mp4", two_people(4))
    full = frames == "full"
    convert.main(tmp_path / "videos", tmp_path / "frames", full_frames=full)
    run_02(tmp_path / "frames", tmp_path / "faces", square=square)
    rule = json.loads((tmp_path / "faces" / "crop-rule.json").read_text(encoding="utf-8"))
    assert (rule["frames"], rule["square"]) == (frames, square)
    decision = Decision(**{name: rule[name] for name in ("frames", "margin", "square")})
    saved = pd.read_csv(tmp_path / "faces" / "faces.csv")
    found = list(detect.find_faces(sample(videos / "two.mp4", 1000), decision))
    assert len(found) == len(saved) == 8
    for (row, crop), (_, other) in zip(found, saved.iterrows(), strict=True):
        image = cv2.imread(str(tmp_path / "faces" / other.crop))
        assert np.array_equal(crop, image)
        prepared = crop_files.read_crop(tmp_path / "faces" / other.crop, 128)
        assert np.array_equal(crop_files.prepare_crop(crop, 128), prepared)
        assert (row["frame"], row["confidence"]) == (other.frame, other.confidence)
        assert row["crop_side"] == min(image.shape[:2])
        # The box is told in pixels of the video, twice those of the frame if 01 reduced it.
        box = [row[side] for side in ("x", "y", "width", "height")]
        assert box == [(1 if full else 2) * other[side] for side in ("x", "y", "width", "height")]


@pytest.mark.parametrize("size", [128, 64])
def test_the_scores_are_the_model_s_calibrated(size: int, model: Path, tmp_path: Path) -> None:
    """Whatever the size of its images."""
    if size != 128:
        built, decision = build_model(model, size), read_decision(model)
        write_model(built, decision, model := tmp_path / "other.keras")
    loaded = detect.load_scorer(model)
    (row, crop), *_ = detect.find_faces([(0, 0.0, make_frame((200, 60, 1.0)))], loaded.decision)
    prepared = crop_files.prepare_crop(crop, size)
    assert row["sharpness"] == round(crop_files.measure_sharpness(prepared), 2)
    image = prepared[None].astype(np.float32)
    both = np.concatenate((image, image[:, :, ::-1]))
    p_real = np.asarray(loaded.model(both, training=False), np.float64)[:, 0]
    logit = np.log(p_real / (1 - p_real)).mean()
    for as_graph in (True, False):  # as videos and as a few pictures are scored
        scorer = detect.load_scorer(model, as_graph)
        score = detect.score_crops([prepared], scorer)[0]
        assert score == pytest.approx(1 / (1 + np.exp(logit / 1.5)), rel=1e-4)
        _, _, faces, worst = detect.score_frames(
            [(0, 0.0, make_frame((200, 60, 1.0)))],
            scorer,
            SimpleNamespace(frames_at_once=1, explained=1),
        )
        assert faces["p_fake"].tolist() == [round(score, 6)]
        assert np.array_equal(worst["crop"].iloc[0], prepared)


def test_frames_are_taken_evenly_and_more_of_a_short_video(tmp_path: Path) -> None:
    blank = [make_frame(size=(64, 48))]
    long = write_frames(tmp_path / "long.mp4", blank * 100, fps=10)
    assert [index for index, _, _ in sample(long, 2)] == list(range(0, 100, 5))
    short = write_frames(tmp_path / "short.mp4", blank * 20, fps=20)
    assert len(sample(short, 2)) == 2 * detect.FEWEST_FRAMES
    tiny = write_frames(tmp_path / "tiny.mp4", blank * 3, fps=20)
    assert len(sample(tiny, 2)) == 3


# Tracks and verdicts


def test_two_people_are_two_tracks(detections: Path) -> None:
    result = read(detections, "two")
    assert result["frames_scored"] == 15 and (result["width"], result["height"]) == (1280, 720)
    assert sorted(track["frames"] for track in result["tracks"]) == [10, 15]
    for track in result["tracks"]:
        assert [face["frame"] for face in track["faces"]] == list(range(track["frames"]))
        assert track["p_fake"] == pytest.approx(
            np.mean([face["p_fake"] for face in track["faces"]]), abs=1e-4
        )
        low, high = track["interval_95"]
        assert low <= track["p_fake"] <= high
    x = {len(track["faces"]): [face["x"] for face in track["faces"]] for track in result["tracks"]}
    assert max(x[15]) < 500 < min(x[10])
    worst = max(result["tracks"], key=lambda track: track["p_fake"])
    for key in ("verdict", "p_fake", "interval_95", "track"):
        assert result[key] == worst[key]


def make_faces(rows: list[tuple[int, float]]) -> pd.DataFrame:
    """Faces of 100 x 100 pixels, from (frame, x)."""
    table = pd.DataFrame(rows, columns=["frame", "x"])
    looks = [np.array([1.0])] * len(table)  # all alike
    table = table.assign(y=0, width=100, height=100, seconds=table.frame / 2, p_fake=0.5)
    return table.assign(look=looks, crop_side=100, sharpness=50.0)


@pytest.mark.parametrize(
    ("rows", "tracks"),
    [
        ([(0, 0), (5, 10), (10, 20)], [1, 1, 1]),
        ([(0, 0), (5, 90), (10, 180)], [1, 2, 3]),  # too far apart
        ([(0, 0), (0, 300), (5, 310), (5, 5)], [1, 2, 2, 1]),  # whatever their order in a frame
        (
            [(0, 0), (5, 0), (25, 0), (30, 0)],
            [1, 1, 1, 1],
        ),  # unseen for three frames of those scored
        ([(0, 0), (5, 0), (30, 0), (35, 0)], [1, 1, 2, 2]),  # for four
        ([(0, 0), (0, 30), (5, 25), (5, 55)], [1, 2, 1, 2]),  # joined all together, not best first
        ([], []),
    ],
)
def test_faces_are_joined_by_overlap(rows: list[tuple[int, float]], tracks: list[int]) -> None:
    assert detect.join_tracks(make_faces(rows), SETTINGS).tolist() == tracks


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 400)), max_size=25))
@settings(deadline=None)
def test_no_track_has_two_faces_of_a_frame(rows: list[tuple[int, int]]) -> None:
    faces = make_faces(sorted(rows))
    tracks = detect.join_tracks(faces, SETTINGS)
    assert not faces.assign(track=tracks).duplicated(["frame", "track"]).any()
    assert sorted(tracks.unique()) == list(range(1, tracks.nunique() + 1))


def judge(
    scores: list[float],
    threshold: float = 0.5,
    picture: bool = False,
    limits: dict[str, float] | None = None,
    **columns: object,
) -> dict:
    faces = make_faces([(5 * number, 0) for number in range(len(scores))])
    limits = {"real_below": threshold} | (limits or {})
    decision = Decision(threshold=threshold, **limits)
    faces = faces.assign(p_fake=scores, **columns)
    return detect.judge_track(faces, picture, decision, SETTINGS)


def test_a_verdict_needs_its_whole_interval_on_one_side() -> None:
    assert judge([0.9, 0.8, 0.9, 0.7, 0.9, 0.8])["verdict"] == "likely fake"
    assert judge([0.1, 0.2, 0.1, 0.3, 0.1, 0.2])["verdict"] == "likely real"
    assert judge([0.1, 0.9, 0.2, 0.8, 0.6, 0.5])["verdict"] == "undecided"
    assert judge([0.9, 0.8, 0.9, 0.7, 0.9, 0.8], threshold=0.83)["verdict"] == "undecided"
    few = judge([0.99] * (detect.FEWEST_FRAMES - 1))
    assert (few["verdict"], few["interval_95"], few["p_fake"]) == ("undecided", None, 0.99)


@pytest.mark.parametrize(
    ("scores", "verdict", "doubt"),
    [
        ([0.9, 0.8, 0.9, 0.7, 0.9, 0.8], "likely fake", ""),
        ([0.1, 0.2, 0.1, 0.3, 0.1, 0.2], "likely real", ""),
        ([0.5] * 6, "undecided", "its score lies between what is called real and what is called"),
        ([0.1, 0.9, 0.2, 0.8, 0.6, 0.5], "undecided", "its score lies between"),
        ([0.9, 0.5, 0.9, 0.3, 0.9, 0.8], "undecided", "its interval reaches below what is called"),
        ([0.1, 0.5, 0.1, 0.6, 0.2, 0.4], "undecided", "its interval reaches above what is called"),
    ],
)
def test_what_lies_between_the_two_thresholds_is_undecided(
    scores: list[float], verdict: str, doubt: str
) -> None:
    judged = judge(scores, threshold=0.6, limits={"real_below": 0.4})
    assert judged["verdict"] == verdict and judged["doubt"].startswith(doubt)
    assert bool(judged["doubt"]) == (verdict == "undecided") and judged["known"]


def test_a_picture_has_no_interval_but_the_two_thresholds() -> None:
    band = {"threshold": 0.6, "limits": {"real_below": 0.4}, "picture": True}
    assert judge([0.6], **band)["verdict"] == "likely fake"
    for score in (0.59, 0.4):
        judged = judge([score], **band)
        assert judged["verdict"] == "undecided"
        assert judged["doubt"] == (
            "its score lies between what is called real and what is called fake"
        )
    assert judge([0.39], **band)["verdict"] == "likely real"
    assert judge([0.3], picture=True)["interval_95"] is None


@pytest.mark.parametrize("picture", [False, True])
def test_faces_that_the_training_did_not_know_are_undecided(picture: bool) -> None:
    sure, limits = [0.99] * 6, {"smallest_face": 100, "least_sharpness": 50.0}
    assert judge(sure, picture=picture, limits=limits)["verdict"] == "likely fake"
    few = [99] * 3 + [100] * 3  # no more than half of them
    assert judge(sure, picture=picture, limits=limits, crop_side=few)["verdict"] == "likely fake"
    for column, value, words in (
        (
            "crop_side",
            [40] * 4 + [200] * 2,
            "it is smaller than the faces of the training (40 < 100)",
        ),
        ("sharpness", 12.3, "it is softer than the faces of the training (12.3 < 50)"),
    ):
        judged = judge(sure, picture=picture, limits=limits, **{column: value})
        assert (judged["verdict"], judged["doubt"]) == ("undecided", words)
        assert not judged["known"] and judged["p_fake"] == 0.99


def test_the_interval_is_that_of_a_mean() -> None:
    scores = np.random.default_rng(0).uniform(0.2, 0.8, 60)
    low, high = judge(scores.tolist())["interval_95"]
    error = scores.std(ddof=1) / np.sqrt(60)
    assert (high - low) == pytest.approx(3.92 * error, rel=0.15)


def test_a_file_has_its_most_suspicious_track_that_rests_on_enough_frames() -> None:
    tracks = [
        {
            "track": number,
            "verdict": str(number),
            "doubt": "",
            "known": frames >= 5,
            "p_fake": p,
            "interval_95": None,
            "frames": frames,
        }
        for number, p, frames in ((1, 0.4, 20), (2, 0.9, 2), (3, 0.6, 8))
    ]
    assert detect.judge_file(tracks)["track"] == 3
    assert detect.judge_file([track | {"known": True} for track in tracks])["track"] == 2
    assert detect.judge_file(tracks[1:2])["track"] == 2
    assert detect.judge_file([]) == {
        "verdict": "no face",
        "doubt": "",
        "p_fake": None,
        "interval_95": None,
        "track": None,
    }


def test_no_face_is_never_a_number(detections: Path) -> None:
    result = read(detections, "two-2")
    assert (result["verdict"], result["p_fake"], result["tracks"]) == ("no face", None, [])
    row = pd.read_csv(detections / "results.csv").set_index("file").filter(like="b", axis=0)
    assert row.iloc[0][["p_fake", "low", "high", "track"]].isna().all()


# What is written


def test_it_writes_everything_about_every_file(detections: Path, inputs: Path) -> None:
    names = sorted(path.name for path in detections.iterdir() if not path.name.startswith("."))
    assert names == [
        "photo-marked.png",
        "photo.html",
        "photo.json",
        "results.csv",
        "two-2-marked.mp4",
        "two-2.html",
        "two-2.json",
        "two-marked.mp4",
        "two.html",
        "two.json",
    ]
    results = pd.read_csv(detections / "results.csv").set_index("file")
    assert list(results.index) == [
        str(inputs / name) for name in ("a/two.mp4", "b/two.mp4", "photo.png", "torn.mp4")
    ]
    assert results.reason[str(inputs / "torn.mp4")] == "does not open as a video"
    assert results.tracks[str(inputs / "a/two.mp4")] == 2
    scored = results[results.reason.isna()]
    assert set(zip(scored.threshold, scored.real_below, strict=True)) == {(0.3, 0.2)}
    result = read(detections, "two")
    assert (result["threshold"], result["real_below"]) == (0.3, 0.2)


def test_the_marked_video_plays_in_a_browser_and_shows_the_boxes(detections: Path) -> None:
    path = detections / "two-marked.mp4"
    about = next(imageio_ffmpeg.read_frames(str(path)))
    assert about["codec"] == "h264" and about["pix_fmt"].startswith("yuv420p")
    assert about["size"] == (1280, 720) and about["fps"] == 2
    video = cv2.VideoCapture(str(path))
    result = read(detections, "two")
    for number, original in enumerate(two_people()):
        shown = video.read()[1].astype(int)
        changed = np.abs(shown - original).max(axis=2) > 60
        for track in result["tracks"]:
            if number < track["frames"]:
                face = track["faces"][number]
                x, y, width = face["x"], face["y"], face["width"]
                edge = changed[y + 20 : y + face["height"] - 20, x]
                assert edge.mean() > 0.5  # some skin has a colour near the box's
                assert changed[y - 12 : y - 2, x : x + width // 4].mean() > 0.5  # the number
    assert not video.read()[0]


def test_what_is_read_ahead_knows_whose_work_it_is() -> None:
    """By that the page ends the work for a tab that was closed, in the midst of the scoring."""
    whose = ContextVar("whose", default="nobody's")
    whose.set("a tab's")
    inner = media.read_ahead((whose.get() for _ in range(3)), 2)
    assert list(media.read_ahead(inner, 2)) == ["a tab's"] * 3


def test_the_sound_is_kept_and_odd_sizes_work(model: Path, tmp_path: Path) -> None:
    ffmpeg, path = imageio_ffmpeg.get_ffmpeg_exe(), tmp_path / "-loud.mp4"
    silent = write_frames(tmp_path / "silent.avi", [make_frame(size=(322, 240))] * 10, fps=10)
    tone = ["-f", "lavfi", "-i", "sine=frequency=440:duration=1", "-i", silent]
    crop = ["-vf", "crop=321:239:0:0:exact=1", "-pix_fmt", "yuv444p"]
    command = [ffmpeg, "-loglevel", "error", *tone, *crop, "-c:v", "libx264", f"file:{path}"]
    subprocess.run(list(map(str, command)), check=True)
    detect.main([path], model=model, detections_dir=tmp_path / "out")
    marked = tmp_path / "out" / "-loud-marked.mp4"
    told = subprocess.run(
        [ffmpeg, "-i", f"file:{marked}"], capture_output=True, text=True, check=False
    ).stderr
    assert "Audio: aac" in told and "h264" in told and "322x240" in told


def test_the_marked_picture_is_the_picture_but_for_its_boxes(detections: Path) -> None:
    original, marked = make_frame((200, 60, 1.0)), cv2.imread(str(detections / "photo-marked.png"))
    face = read(detections, "photo")["tracks"][0]["faces"][0]
    assert original.shape == marked.shape and not np.array_equal(original, marked)
    inside = np.s_[
        face["y"] + 9 : face["y"] + face["height"] - 9,
        face["x"] + 9 : face["x"] + face["width"] - 9,
    ]
    assert np.array_equal(original[inside], marked[inside])


def test_the_explanation_adds_up_to_the_score() -> None:
    """Without the biases of the top, what the places add is the logit of p_fake itself."""
    loaded = build_model(LITE0_WEIGHTS, 96, 60)
    crops = np.random.default_rng(0).integers(60, 200, (3, 8, 8, 3)).astype(np.uint8)
    crops = np.stack([cv2.resize(crop, (96, 96)) for crop in crops])  # the network sharpens them
    added, logit = detection_report.attribute_score(crops, loaded)
    assert added.shape == (3, 3, 3)
    p_real = loaded.predict_on_batch(crops.astype(np.float32))[:, 0]
    np.testing.assert_allclose(1 / (1 + np.exp(logit)), p_real, rtol=1e-3)
    np.testing.assert_allclose(added.sum(axis=(1, 2)), logit, rtol=1e-3)  # its biases are 0 yet
    maps = np.stack(detection_report.explain_crops(list(crops), loaded))
    assert maps.shape == (3, 96, 96) and maps.min() >= 0 and maps.max() <= 1
    assert detection_report.explain_crops([], loaded) == []


def test_outputs_of_the_same_name_have_numbers() -> None:
    files = ["a/clip.mp4", "b/Clip.mp4", "clip.jpg", "clip-2.mp4", "x" * 250 + ".mp4"]
    names = media.name_outputs([Path(file) for file in files])
    assert names[:4] == ["clip", "Clip-2", "clip-3", "clip-2-2"]
    assert len({name.casefold() for name in names}) == 5 and len(names[4]) == 100


# At the shell


def test_json_is_all_of_standard_output(model: Path, inputs: Path, tmp_path: Path) -> None:
    """And nothing is written into the environment beside a thread, which may crash of it."""
    watch = (
        "import os, threading\n"
        "os.environ.pop('KMP_INIT_AT_FORK', None)\n"  # which joblib sets where it is not set
        "def watch(event, given):\n"
        "    if event == 'os.putenv' and threading.active_count() > 1:\n"
        "        print('written beside a thread:', given, file=sys.stderr)\n"
        "sys.addaudithook(watch)"
    )
    given = (inputs / "torn.mp4", inputs / "photo.png", "--model", model, "--json")
    result = run_script_after(watch, SCRIPT, *given, cwd=tmp_path)
    assert result.returncode == 1
    assert "beside a thread" not in result.stderr
    failed, scored = json.loads(result.stdout)
    assert scored == read(tmp_path / "detections", "photo")
    assert failed == {"file": str(inputs / "torn.mp4"), "reason": "does not open as a video"}
    assert "1 of 2 files were scored" in result.stderr
    assert "torn.mp4" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("missing.keras", "there is no such model"),
        ("words.keras", "it is not a model of 04-train-cnn.py"),
    ],
)
def test_a_model_of_another_kind_is_named(
    name: str, sentence: str, inputs: Path, tmp_path: Path
) -> None:
    (tmp_path / "words.keras").write_text("no model")
    with pytest.raises((ValueError, OSError), match=sentence):
        detect.main([inputs], model=tmp_path / name, detections_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_its_threshold_is_named(model: Path, inputs: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.keras"
    load_model(model).save(plain)
    with pytest.raises(ValueError, match="decision threshold"):
        detect.main([inputs], model=plain, detections_dir=tmp_path / "out")


def test_a_model_of_other_layers_ends_the_run(model: Path, inputs: Path, tmp_path: Path) -> None:
    """It is found out while the first file is worked on, and is no fault of that file."""
    broken = tmp_path / "broken.keras"
    with zipfile.ZipFile(model) as whole, zipfile.ZipFile(broken, "w") as part:
        for name in whole.namelist():
            content = whole.read(name)
            part.writestr(name, content.replace(b"relu", b"tanh") if "config" in name else content)
    result = run_script(SCRIPT, inputs, "--model", broken, cwd=tmp_path)
    assert_stops(result, "broken.keras: it is not a model of 04-train-cnn.py", "other layers")
    assert not list((tmp_path / "detections").glob("*.json"))


def test_nothing_to_score_is_one_sentence(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="There is no video or picture in"):
        detect.main([tmp_path / "empty"], model=model, detections_dir=tmp_path / "out")
    (tmp_path / "photo.png").touch()
    result = run_script(SCRIPT, "photo.png", "--model", "none.keras", cwd=tmp_path)
    assert_stops(result, f"{SCRIPT}: none.keras: there is no such model")
    assert result.stderr.count("\n") == 1  # TensorFlow says nothing on being loaded
    assert not (tmp_path / "detections").exists()


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make here")
def test_make_detect_needs_nothing_but_the_files() -> None:
    def make(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["make", "--dry-run", "--no-print-directory", "detect", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    said = make("FILES=clip.mp4 photo.jpg").stdout.splitlines()
    assert said[-1].endswith(f"/python {SCRIPT} clip.mp4 photo.jpg")
    assert "Name your files" in make().stdout  # what it says then
