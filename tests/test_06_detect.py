"""Test 06 at the shell: its inputs, its printed output, and the files in detections/."""

import csv
import importlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, assert_stops, run_script
from media import StandIn, encode, frame, write_clip

from deepfake_detect import Detector, Failure, Result, search
from deepfake_detect.cropping import crop_faces
from deepfake_detect.decision import Decision
from deepfake_detect.faces import prepare_crop, resize_by_width
from deepfake_detect.mtcnn import FaceDetector

detect = importlib.import_module("06-detect-deepfake")

SCRIPT = "06-detect-deepfake.py"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "b").mkdir()
    two = [frame((20 + 4 * at, 100), (360, 100, True)) for at in range(12)]
    write_clip(folder / "two people.mp4", two)
    write_clip(folder / "b" / "two people.mp4", [frame()] * 6)
    (folder / "photo.jpg").write_bytes(encode(frame((200, 100)), ".jpg"))
    (folder / "torn.mp4").write_bytes(b"\0\0\0\x18ftypisom no video at all")
    (folder / "notes.txt").write_text("neither video nor picture")
    return folder


def load(model: Path | None = None, settings: object = None) -> Detector:
    """Load a detector with the stand-in model instead of the model of 06."""
    made = Detector(settings=settings or detect.DetectionSettings())
    made.model = StandIn()
    return made


def run(*files: Path, **options: object) -> list[Result | Failure]:
    """Run 06 in this process with the stand-in model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detect, "Detector", load)
        return detect.main(detect.Settings(files=files, **options))


@pytest.fixture(scope="module")
def detections(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "detections"
    with pytest.raises(ValueError, match=r"1 of 4 files were not checked: .*torn\.mp4\.$"):
        run(inputs, detections_dir=folder)
    return folder


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def read_table(folder: Path) -> dict[str, dict]:
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


# Crops and frames


@pytest.mark.parametrize(
    ("frames", "square"), [("reduced", False), ("full", False), ("full", True)]
)
def test_crops_equal_the_crops_of_01_and_02(frames: str, square: bool) -> None:
    """Detection and training use the same pixels, for every crop rule."""
    rule = Decision(margin=0.3, square=square, frames=frames)
    wide = [frame((60 + 40 * at, 200), (800, 60), size=(1280, 720), side=440) for at in range(3)]
    saved = wide if frames == "full" else [resize_by_width(image) for image in wide]
    cut = crop_faces(saved, FaceDetector(), search.CONFIDENCE, rule)
    found, _ = search.find_faces(wide, rule)
    assert [len(faces) for faces in found] == [len(faces) for faces in cut] == [2, 2, 2]
    for of_frame, others in zip(found, cut, strict=True):
        for one, (face, crop) in zip(of_frame, others, strict=True):
            assert np.array_equal(one.crop, prepare_crop(crop, rule.image_size))
            assert (one.crop_side, one.confidence) == (min(crop.shape[:2]), face.confidence)
            # Boxes are in pixels of the video, twice those of a frame that 01 reduced.
            times = 1 if frames == "full" else 2
            assert one.box == tuple(times * side for side in face.box)


def test_frames_are_sampled_evenly_and_more_often_in_short_videos(tmp_path: Path) -> None:
    for count, rate, scored in ((100, 10, 20), (20, 20, 10), (3, 20, 3)):
        path = write_clip(tmp_path / f"{count}.mp4", [frame(size=(64, 48))] * count, 1 / rate)
        (result,) = run(path, detections_dir=tmp_path / "out", annotate=False)
        assert (result.frames_scored, result.verdict) == (scored, "no face")


# Output files


def test_all_outputs_are_written_for_every_file(detections: Path, inputs: Path) -> None:
    names = sorted(path.name for path in detections.iterdir() if not path.name.startswith("."))
    assert names == [
        *("index.html", "photo-marked.png", "photo.html", "photo.json", "results.csv"),
        *("two people-2.html", "two people-2.json"),  # without a face: no marked copy
        *("two people-marked.mp4", "two people.html", "two people.json"),
    ]
    table = read_table(detections)
    order = ["photo.jpg", "torn.mp4", "two people.mp4", "b/two people.mp4"]
    assert sorted(table) == sorted(str(inputs / name) for name in order)
    torn = table[str(inputs / "torn.mp4")]
    assert (torn["verdict"], torn["p_fake"]) == ("not checked", "") and torn["reason"]
    two = table[str(inputs / "two people.mp4")]
    assert (two["verdict"], two["score"], two["faces"]) == ("likely fake", "97", "2")
    assert table[str(inputs / "b/two people.mp4")]["verdict"] == "no face"


def test_json_contains_all_results(detections: Path, inputs: Path) -> None:
    result = read(detections, "two people")
    assert result["file"] == str(inputs / "two people.mp4") and result["track"] == 2
    assert (result["frames_scored"], result["faces_judged"]) == (12, 2)
    for track in result["tracks"]:
        scores = [face["p_fake"] for face in track["faces"]]
        assert track["p_fake"] == pytest.approx(np.mean(scores), abs=1e-4)
        low, high = track["interval_95"]
        assert low <= track["p_fake"] <= high and len(scores) == 12
    nobody = read(detections, "two people-2")
    assert (nobody["verdict"], nobody["p_fake"], nobody["tracks"]) == ("no face", None, [])


def test_index_links_every_report(detections: Path) -> None:
    page = (detections / "index.html").read_text(encoding="utf-8")
    for name in ("two%20people.html", "two%20people-2.html", "photo.html"):
        assert f'href="{name}"' in page
    assert "torn.html" not in page and "torn.mp4" in page


def test_marked_picture_differs_only_in_boxes(detections: Path, inputs: Path) -> None:
    original, marked = (
        cv2.imread(str(path)) for path in (inputs / "photo.jpg", detections / "photo-marked.png")
    )
    face = read(detections, "photo")["tracks"][0]["faces"][0]
    inside = np.s_[
        face["y"] + 9 : face["y"] + face["height"] - 9,
        face["x"] + 9 : face["x"] + face["width"] - 9,
    ]
    assert original.shape == marked.shape and not np.array_equal(original, marked)
    assert np.array_equal(original[inside], marked[inside])


def test_later_run_without_copy_deletes_old_copy(inputs: Path, tmp_path: Path) -> None:
    for annotate in (True, False):
        run(inputs / "photo.jpg", detections_dir=tmp_path, annotate=annotate)
        assert (tmp_path / "photo-marked.png").exists() == annotate


# At the shell, with the included model


def test_a_run_from_the_shell(inputs: Path, tmp_path: Path) -> None:
    """In another folder: one line per file, without progress bars or messages from libraries."""
    files = [inputs / "two people.mp4", inputs / "photo.jpg"]
    result = run_script(SCRIPT, *files, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    lines = [line for line in result.stdout.splitlines() if line.startswith("likely")]
    assert [line.split()[:2] for line in lines] == [["likely", "real"]] * 2
    assert lines[0].index("two people.mp4") == lines[1].index("photo.jpg")
    assert "detections/index.html" in result.stdout.splitlines()[-1]
    assert "\x1b" not in result.stdout


def test_standard_output_contains_only_json(inputs: Path, tmp_path: Path) -> None:
    given = (inputs / "torn.mp4", inputs / "photo.jpg", "--json", "--no-annotate")
    result = run_script(SCRIPT, *given, cwd=tmp_path)
    failed, checked = json.loads(result.stdout)
    assert checked == read(tmp_path / "detections", "photo")
    assert (failed["file"], failed["verdict"]) == (str(inputs / "torn.mp4"), "not checked")
    assert_stops(result, "1 of 2 files", "torn.mp4")


def test_each_json_item_is_printed_as_soon_as_it_is_ready(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The array is also complete when the run is stopped."""
    said = []
    real = detect.check_file

    def stop(source: Path, detector: Detector) -> Result | Failure:
        said.append(capsys.readouterr().out)
        if len(said) == 3:
            raise KeyboardInterrupt
        return real(source, detector)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detect, "check_file", stop)
        with pytest.raises(KeyboardInterrupt):
            run(*[inputs / "photo.jpg"] * 1, inputs, detections_dir=tmp_path, json=True)
    assert said[0] == "" and json.loads(said[1] + "]")[0]["verdict"] == "likely real"
    whole = "".join(said) + capsys.readouterr().out
    assert len(json.loads(whole)) == 2


@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_quiet_prints_only_json(inputs: Path, tmp_path: Path, option: str) -> None:
    result = run_script(SCRIPT, inputs / "photo.jpg", "--quiet", option, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(json.loads(result.stdout or "[]")) == (option == "--json")


def test_nothing_to_check_names_a_command(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("words")
    for given in ([], ["empty"]):
        assert_stops(run_script(SCRIPT, *given, cwd=tmp_path), f"python {SCRIPT} clip.mp4")
    assert not (tmp_path / "detections").exists()


def test_model_of_another_kind_is_rejected(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "words.onnx").write_text("no model")
    for name in ("words.onnx", "missing.onnx"):
        result = run_script(SCRIPT, inputs / "photo.jpg", "--model", name, cwd=tmp_path)
        assert_stops(result, name)
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "detections").exists()


def test_detection_imports_no_training_libraries(inputs: Path, tmp_path: Path) -> None:
    heavy = ("tensorflow", "keras", "pandas", "scipy", "sklearn", "matplotlib", "onnx", "h5py")
    program = (
        f"import importlib, pathlib, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        f"detect = importlib.import_module({SCRIPT.removesuffix('.py')!r})\n"
        f"detect.main(detect.Settings((pathlib.Path({str(inputs / 'photo.jpg')!r}),)))\n"
        f"print('heavy', sorted(set({heavy}) & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "heavy []", done.stderr


# --check


@pytest.fixture(scope="module")
def report(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a report with the included model and one changed setting."""
    folder = tmp_path_factory.mktemp("check")
    given = (inputs / "photo.jpg", "--no-annotate", "--least-overlap", "0.3")
    assert run_script(SCRIPT, *given, cwd=folder).returncode == 0
    return folder / "detections" / "photo.html"


def test_correct_report_passes_the_check(report: Path, inputs: Path, tmp_path: Path) -> None:
    result = run_script(SCRIPT, "--check", report, inputs / "photo.jpg", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("same") == 4 and "not the same" not in result.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        ('"p_fake": 0.0', '"p_fake": 0.1', "scores"),
        ('"verdict": "likely real"', '"verdict": "likely fake"', "verdict"),
        ('"x": ', '"x": 1', "scores"),
        ('"model_sha256": "', '"model_sha256": "0', "model"),
    ],
)
def test_changed_report_fails_the_check(
    report: Path, inputs: Path, tmp_path: Path, before: str, after: str, word: str
) -> None:
    text = report.read_text(encoding="utf-8")
    assert before in text
    (tmp_path / "changed.html").write_text(text.replace(before, after), encoding="utf-8")
    given = ("--check", tmp_path / "changed.html", inputs / "photo.jpg")
    assert_stops(run_script(SCRIPT, *given, cwd=tmp_path), "not the same", word)


def test_report_of_another_file_fails_the_check(report: Path, tmp_path: Path) -> None:
    (tmp_path / "other.png").write_bytes(encode(frame((100, 100))))
    result = run_script(SCRIPT, "--check", report, "other.png", cwd=tmp_path)
    assert_stops(result, "not the same", "file")


@pytest.mark.parametrize(
    "content",
    [
        "words",
        '<script type="application/json" id="result">[' + "[" * 10_000 + "</script>",
        '<script type="application/json" id="result">{"tracks": 1}</script>',
        '<script type="application/json" id="result">'
        '{"tracks": [], "sha256": "", "settings": {"window": -1}}</script>',
        '<script type="application/json" id="result">'
        '{"tracks": [], "sha256": "", "settings": {"trust_list": "x", "window": []}}</script>',
        '<script type="application/json" id="result">'
        '{"tracks": [{"faces": [1]}], "sha256": "", "settings": []}</script>',
    ],
)
def test_other_files_are_not_accepted_as_reports(
    inputs: Path, tmp_path: Path, content: str
) -> None:
    (tmp_path / "page.html").write_text(content)
    with pytest.raises(ValueError, match=r"page\.html"):
        detect.main(detect.Settings((inputs / "photo.jpg",), check=tmp_path / "page.html"))
