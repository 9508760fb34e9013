"""06: no file of the user's is touched, no file stops the others, and no name or file fools it.

The model and the face detector are stood in for, so that each test is about what lies around them.
"""

import importlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import cv2
import imageio_ffmpeg
import numpy as np
import pandas as pd
import PIL.Image
import pytest
from conftest import write_video
from faults import jpeg, write_avi

from deepfake_detect import crops as crop_files
from deepfake_detect import inputs as media
from deepfake_detect import marked_video
from deepfake_detect import report as detection_report
from deepfake_detect.decision import Decision
from deepfake_detect.model_file import Scorer

detect = importlib.import_module("06-detect-deepfake")

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
SETTINGS = {name: one.default for name, one in inspect.signature(detect.main).parameters.items()}
DECISION = Decision(temperature=1.0, threshold=0.5)


@pytest.fixture
def p_real(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the stand-in model says of every crop; each frame has one face, in its middle."""
    said = [0.1]

    def predict(crops: np.ndarray) -> np.ndarray:
        return np.full((len(crops), 1), said[0])

    def find_faces(frames: list, decision: object) -> object:
        for index, seconds, frame in frames:
            height, width = frame.shape[:2]
            box = {"x": width // 4, "y": height // 4, "width": width // 2, "height": height // 2}
            row = {"frame": index, "seconds": seconds, **box, "confidence": 1.0}
            row |= {"crop_side": 99, "sharpness": 99.0}
            yield row | {"look": np.ones(1)}, frame

    loading = Future()
    loading.set_result((None, predict))
    scorer = Scorer(Path("stand-in.keras"), DECISION, loading)
    monkeypatch.setattr(detect, "load_scorer", lambda path, as_graph: scorer)
    monkeypatch.setattr(detect, "find_faces", find_faces)
    monkeypatch.setattr(detection_report, "collect_report", lambda *_: {})
    monkeypatch.setattr(detect, "write_html", lambda content, target: None)
    return said


@pytest.fixture
def here(p_real: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, with a picture and a video in in/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    write_picture(tmp_path / "in" / "photo.png")
    write_video(tmp_path / "in" / "clip.mp4", frames=12)
    return tmp_path


def write_picture(path: Path, size: tuple[int, int] = (64, 48)) -> Path:
    path.write_bytes(cv2.imencode(".png", cv2.imdecode(np.frombuffer(jpeg(size), np.uint8), 1))[1])
    return path


def run(*files: str | Path, failed: int = 0, **options: object) -> dict[str, dict]:
    """Run 06, which names so many files as not scored; gives the results by the files' names."""
    results = []
    tabulate = detect.tabulate
    detect.tabulate = lambda table: results.extend(table) or tabulate(table)
    try:
        if failed:
            with pytest.raises(ValueError, match=rf"^{failed} of \d+ files were not scored"):
                detect.main([Path(file) for file in files], **options)
        else:
            detect.main([Path(file) for file in files], **options)
    finally:
        detect.tabulate = tabulate
    return {Path(result["file"]).name: result for result in results}


def count_frames(path: Path) -> int:
    video, count = cv2.VideoCapture(str(path)), 0
    while video.grab():
        count += 1
    return count


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


# Files of the user's


def test_files_that_it_did_not_write_are_left_alone(here: Path) -> None:
    (here / "photo.json").write_text("my notes")
    results = run("in", failed=1, detections_dir=Path())
    assert "photo.json: this script did not write it" in results["photo.png"]["reason"]
    assert results["clip.mp4"]["verdict"] == "likely fake"
    assert (here / "photo.json").read_text() == "my notes"
    assert not (here / "photo-marked.png").exists() and (here / "clip.json").exists()


def test_another_s_results_stop_it_before_anything_is_written(here: Path) -> None:
    (here / "results.csv").write_text("my results")
    with pytest.raises(ValueError, match=r"results\.csv: this script did not write it"):
        detect.main([Path("in")], detections_dir=Path())
    assert listed(here) == ["in", "results.csv"]
    assert (here / "results.csv").read_text() == "my results"


def test_a_planted_link_is_not_followed(here: Path) -> None:
    (here / "detections").mkdir()
    (here / "victim").write_text("mine")
    for name in ("photo.partial.json", "results.partial.csv", ".detections.partial", ".detections"):
        (here / "detections" / name).symlink_to("../victim")
    run("in")
    assert (here / "victim").read_text() == "mine"
    assert not (here / "detections" / "photo.json").is_symlink()


def test_outputs_of_earlier_runs_never_stay_beside_later_ones(here: Path) -> None:
    run("in")
    assert "clip-marked.mp4" in listed(here / "detections")
    run("in/clip.mp4", annotate=False)
    assert "clip-marked.mp4" not in listed(here / "detections")
    (here / "in" / "clip.mp4").write_bytes(b"no video any more")
    run("in/clip.mp4", failed=1)
    assert "clip.json" not in listed(here / "detections")
    assert "photo.json" in listed(here / "detections")  # of a file that this run is not about


def test_it_never_scores_what_it_wrote_itself(here: Path) -> None:
    for name in ("other-marked.partial.mp4", "other.partial.png"):  # as a kill leaves them
        (here / "in" / name).write_bytes((here / "in" / "clip.mp4").read_bytes())
    for _ in range(3):
        assert set(run("in", detections_dir=Path("in/sub"))) == {"photo.png", "clip.mp4"}
    assert "clip-marked.mp4" in listed(here / "in" / "sub")
    result = run("in/sub/clip-marked.mp4", failed=1)["clip-marked.mp4"]
    assert result["reason"] == "was written by this script itself"


# One file costs one file


def test_names_that_are_too_long_are_cut_by_bytes(here: Path) -> None:
    long = here / "in" / ("漢" * 79 + ".mp4")
    long.write_bytes((here / "in" / "clip.mp4").read_bytes())
    result = run("in")[long.name]
    assert not result["notes"] and "漢" * 33 + "-marked.mp4" in listed(here / "detections")


def test_a_dollar_is_a_dollar(here: Path) -> None:
    (here / "in" / "clip.mp4").rename(here / "in" / "a$$b $\\frac$.mp4")
    result = run("in")["a$$b $\\frac$.mp4"]
    assert not result["notes"] and "a$$b $\\frac$-marked.mp4" in listed(here / "detections")


def test_a_name_that_is_no_utf8_is_no_reason_to_crash(here: Path) -> None:
    for name in (b"latin\xe9\xff.mp4", b"latin\xe9\xff.png"):
        source = here / "in" / ("clip" if name.endswith(b"4") else "photo")
        (here / "in" / os.fsdecode(name)).write_bytes(
            source.with_suffix(Path(os.fsdecode(name)).suffix).read_bytes()
        )
    results = run("in")
    assert all("verdict" in result for result in results.values()) and len(results) == 4
    assert "latin__-marked.mp4" in listed(here / "detections")
    table = pd.read_csv(here / "detections" / "results.csv")
    assert table["file"].str.contains(r"latin\udce9", regex=False).sum() == 2


def add_sound(path: Path, channels: int = 1, seconds: float = 1.0) -> Path:
    """The video in path, with that sound, beside it as loud.mkv."""
    tones = "|".join(["sin(440*t)"] * channels)
    sound = ["-f", "lavfi", "-i", f"aevalsrc={tones}:d={seconds}", "-c:v", "copy"]
    loud = path.with_name("loud.mkv")
    command = [FFMPEG, "-v", "error", "-i", path, *sound, "-c:a", "pcm_s16le", loud]
    subprocess.run(list(map(str, command)), check=True)
    return loud


@pytest.mark.parametrize("seconds", [0.1, 3])
def test_every_frame_is_marked_however_long_the_sound_is(here: Path, seconds: float) -> None:
    run(add_sound(here / "in" / "clip.mp4", seconds=seconds))
    assert count_frames(here / "detections" / "loud-marked.mp4") == 12


def test_sound_that_cannot_be_copied_is_left_out_and_said_to_be(here: Path) -> None:
    result = run(add_sound(here / "in" / "clip.mp4", channels=9))["loud.mkv"]
    assert "the marked copy has no sound" in " ".join(result["notes"])
    assert count_frames(here / "detections" / "loud-marked.mp4") == 12
    table = pd.read_csv(here / "detections" / "results.csv")
    assert "no sound" in table["notes"][0]


def test_an_interlaced_video_is_marked_as_long_as_it_is(here: Path) -> None:
    """It is decoded by FFmpeg, as OpenCV gives noise for it: so its rate is known from there."""
    drawn = ["-f", "lavfi", "-i", "color=gray:size=320x240:rate=25:duration=2"]
    fields = ["-c:v", "libx264", "-x264-params", "tff=1", "-pix_fmt", "yuv420p"]
    command = [FFMPEG, "-v", "error", *drawn, *fields, here / "in" / "fields.mkv"]
    subprocess.run(list(map(str, command)), check=True)
    assert run("in/fields.mkv")["fields.mkv"]["frames_scored"] == 12
    marked = here / "detections" / "fields-marked.mp4"
    assert count_frames(marked) == 50
    video = cv2.VideoCapture(str(marked))
    assert video.get(cv2.CAP_PROP_FPS) == 25
    assert np.abs(video.read()[1][-50:].astype(int) - 128).max() < 20


def stand_in_for_ffmpeg(monkeypatch: pytest.MonkeyPatch, folder: Path, *lines: str) -> None:
    program = folder / "ffmpeg"
    program.write_text("\n".join([f"#!{sys.executable}", "import os, sys", *lines]))
    program.chmod(0o755)
    monkeypatch.setattr(marked_video.imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(program))


def test_an_encoder_that_says_much_does_not_stop_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As FFmpeg does of damaged sound: more than a pipe holds, before it takes the next frame."""
    write_video(here / "in" / "clip.mp4", frames=12, size=(320, 240))
    said = "sys.stderr.write('damaged\\n' * 100_000); sys.stderr.flush()"
    stand_in_for_ffmpeg(monkeypatch, here, said, "sys.stdin.buffer.read()", "sys.exit(1)")
    result = run("in/clip.mp4")["clip.mp4"]
    assert result["verdict"] == "likely fake"
    assert result["notes"] == ["clip-marked.mp4 is not written: damaged"]
    assert listed(here / "detections") == ["clip.json", "results.csv"]


def test_an_encoder_that_is_killed_costs_its_copy(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_ffmpeg(monkeypatch, here, "os.kill(os.getpid(), 9)")
    results = run("in")
    assert "ffmpeg was ended (-9)" in results["clip.mp4"]["notes"][0]
    assert results["clip.mp4"]["verdict"] == results["photo.png"]["verdict"] == "likely fake"


def test_a_video_that_vanishes_costs_its_copy(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = detect.score_frames

    def score_and_delete(*args: object) -> tuple:
        found = score(*args)
        (here / "in" / "clip.mp4").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(detect, "score_frames", score_and_delete)
    result = run("in")["clip.mp4"]
    assert result["notes"] == ["clip-marked.mp4 is not written: there is no such file"]


def test_a_report_that_fails_costs_the_report(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("crop")

    monkeypatch.setattr(detection_report, "collect_report", fail)
    result = run("in/photo.png")["photo.png"]
    assert result["notes"] == ["photo.html is not written: KeyError: 'crop'"]
    assert result["verdict"] == "likely fake"


def test_whatever_fails_the_others_go_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_picture = media.read_picture

    def stumble(path: Path, *args: object) -> np.ndarray:
        if path.name == "photo.png":
            raise RuntimeError("of a kind that nobody\nthought of")
        return read_picture(path, *args)

    monkeypatch.setattr(media, "read_picture", stumble)
    results = run("in", failed=1)
    assert results["photo.png"]["reason"] == "RuntimeError: of a kind that nobody thought of"
    assert results["clip.mp4"]["verdict"] == "likely fake"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_what_is_no_file_is_named_and_never_waited_for(here: Path) -> None:
    os.mkfifo(here / "pipe.mp4")
    (here / "zero.png").symlink_to("/dev/zero")
    (here / "broken.mp4").symlink_to("nothing")
    (here / "empty.png").touch()
    (here / "other.ppm").write_bytes(b"P6\n1 1\n255\nabc")
    (here / "words.mp4").write_text("no video")
    results = run(*here.glob("*.*"), failed=6)
    assert {name: result["reason"] for name, result in results.items()} == {
        "pipe.mp4": "is a pipe or a device",
        "zero.png": "is a pipe or a device",
        "broken.mp4": "is a broken link",
        "empty.png": "does not decode as a picture",
        "other.ppm": "does not open as a video",
        "words.mp4": "does not open as a video",
    }


# Numbers, and what stands for the whole


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_model_that_gives_no_number_is_found_out(
    here: Path, p_real: list[float], number: float, capsys: pytest.CaptureFixture[str]
) -> None:
    p_real[0] = number
    run("in", failed=2, json=True)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    printed = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert all("the model gives no number" in result["reason"] for result in printed)


def test_json_is_printed_of_what_was_scored_before_it_was_stopped(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    word_result = detect.word_result

    def stop(result: dict) -> str:
        if result["file"].endswith("photo.png"):
            raise KeyboardInterrupt
        return word_result(result)

    monkeypatch.setattr(detect, "word_result", stop)
    with pytest.raises(KeyboardInterrupt):
        detect.main([Path("in")], json=True)
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_a_video_that_claims_too_many_frames_gives_enough(here: Path) -> None:
    path = write_avi(here / "in" / "claims.avi", [jpeg((64, 48))] * 25, claimed=100_000)
    assert run(path)["claims.avi"]["frames_scored"] == 2 * detect.FEWEST_FRAMES


def test_of_an_animation_the_first_picture_is_scored_and_that_is_said(here: Path) -> None:
    first, *others = (PIL.Image.new("RGB", (64, 48), color) for color in ("red", "blue", "green"))
    first.save(here / "in" / "moves.webp", save_all=True, append_images=others)
    result = run("in")["moves.webp"]
    assert result["notes"] == ["only the first of its 3 pictures was scored"]


def test_a_picture_of_too_many_pixels_is_not_decoded(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media.cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    result = run("in/photo.png", failed=1, most_pixels=64 * 48 - 1)["photo.png"]
    assert result["reason"] == "has 64 x 48 pixels, more than --most-pixels allows"


# People who cross


def walk(looks: list[np.ndarray], ways: list[list[float]]) -> tuple[pd.DataFrame, list[int]]:
    """The faces of people who walk from left to right, and who each of them is."""
    rows = [
        {"frame": 15 * time, "person": person, "x": x, "y": 30 * person, "look": looks[person]}
        for person, way in enumerate(ways)
        for time, x in enumerate(way)
    ]
    faces = pd.DataFrame(rows).assign(width=100, height=100).sort_values("frame", kind="stable")
    return faces, faces["person"].tolist()


def join(faces: pd.DataFrame) -> list[int]:
    return detect.join_tracks(faces, SimpleNamespace(**SETTINGS)).tolist()


ANNA, BERT, CARL = np.sqrt([[0.8, 0.2, 0.0], [0.2, 0.3, 0.5], [0.5, 0.1, 0.4]])
RIGHT, LEFT = [0, 60, 120, 180, 240, 300], [300, 240, 180, 120, 60, 0]


@pytest.mark.parametrize(
    ("looks", "ways"),
    [
        ([ANNA, BERT], [RIGHT, LEFT]),
        ([ANNA, ANNA], [RIGHT, LEFT]),  # twins, who go on as before
        ([ANNA, BERT], [[0, 60, 120, 120, 60, 0], [300, 240, 180, 180, 240, 300]]),  # turn round
        ([ANNA, CARL], [[0, 60, 120, 120, 60, 0], [300, 240, 180, 180, 240, 300]]),
        ([ANNA, BERT], [[0, 50, 50, 50, 0], [100, 50, 50, 50, 100]]),
    ],
)
def test_people_who_cross_keep_their_tracks(looks: list, ways: list) -> None:
    faces, people = walk(looks, ways)
    assert join(faces) == [person + 1 for person in people]


def test_a_cut_to_another_person_in_the_same_place_is_another_track() -> None:
    faces, _ = walk([ANNA, BERT], [[50, 50, 50], [50, 50, 50]])
    faces["frame"] += 45 * faces["person"]
    assert join(faces.sort_values("frame", kind="stable")) == [1, 1, 1, 2, 2, 2]


def test_two_portraits_are_told_apart_by_their_colours() -> None:
    portrait = cv2.imdecode(np.frombuffer(jpeg((80, 80), seed=1), np.uint8), 1)
    darker = cv2.convertScaleAbs(portrait, alpha=0.95)
    other = cv2.imdecode(np.frombuffer(jpeg((80, 80), seed=2), np.uint8), 1)
    one, same, two = (
        crop_files.measure_look(face).astype(float) for face in (portrait, darker, other)
    )
    assert one @ one == pytest.approx(1, abs=1e-2)
    assert one @ same > detect.LEAST_LIKENESS > one @ two


# Strangers' files


def test_a_name_reaches_the_terminal_as_letters(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "evil\nlikely real  innocent\x1b[2J.png"
    (here / "in" / "photo.png").rename(here / "in" / name)
    (here / "in" / "torn\x1b[2J\n.mp4").write_text("no video")
    with pytest.raises(ValueError) as error:
        detect.main([Path("in")])
    said = capsys.readouterr().out + str(error.value)
    assert "\x1b" not in said and "\nlikely real" not in said
    assert r"evil\nlikely real  innocent\x1b[2J.png" in said


@pytest.fixture
def playlist(here: Path) -> Path:
    path = here / "in" / "list.mp4"
    path.write_text("ffconcat version 1.0\nfile clip.mp4\n")
    return path


def test_a_playlist_is_no_video(
    here: Path, playlist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_transport;udp")
    result = run(playlist, failed=1)["list.mp4"]
    assert result["reason"] == "does not open as a video"


def test_the_sound_of_a_playlist_is_not_copied(
    here: Path, playlist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the pictures could be had of it."""
    result = run("in/clip.mp4")["clip.mp4"] | {"file": str(playlist)}
    open_video: Callable = detect.convert.open_video
    clip = here / "in" / "clip.mp4"
    monkeypatch.setattr(detect.convert, "open_video", lambda path: open_video(clip))
    with pytest.raises(OSError, match="Error opening input"):
        marked_video.encode_video(result, here / "marked.mp4", with_sound=True)


# The model


def test_the_model_of_the_project_is_taken_where_there_is_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, shipped = tmp_path / "own.keras", tmp_path / "shipped.keras"
    monkeypatch.setattr(detect, "MODELS", (own, shipped))
    monkeypatch.setattr(detect.network, "read_scorer", lambda path, as_graph: path.stem)
    # Where neither is there, the user's own is what is missing.
    assert detect.load_scorer(None) == "own"
    shipped.touch()
    assert detect.load_scorer(None) == "shipped"
    own.touch()
    assert detect.load_scorer(None) == "own"
    assert detect.load_scorer(tmp_path / "named.keras") == "named"


@pytest.mark.parametrize(
    ("option", "value", "advice"),
    [
        ("frames_at_once", 0, "give 1 or more"),
        ("longest_gap", -1, "give 0 or more"),
        ("least_likeness", float("nan"), "give 0 to 1"),
    ],
)
def test_a_number_that_makes_no_sense_is_named(option: str, value: float, advice: str) -> None:
    name = option.replace("_", "-")
    with pytest.raises(ValueError, match=f"^--{name} is {value}; {advice}"):
        detect.main([Path("in")], **{option: value})
