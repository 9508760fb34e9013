"""Test the Python interface: any source, any thread, one exception type per kind of failure."""

import base64
import hashlib
import io
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import ROOT
from media import StandIn, encode, frame, write_clip

import deepfake_detect
from deepfake_detect import (
    CancelledError,
    DetectionError,
    DetectionSettings,
    Detector,
    Failure,
    ModelError,
    Result,
    SourceChangedError,
    SourceNotFoundError,
    SourceTooLargeError,
    SourceUnreadableError,
)
from deepfake_detect import detector as module

TWO = frame((20, 100), (360, 100, True))  # a real face, and a fake one


@pytest.fixture(scope="module")
def detector() -> Detector:
    made = Detector()
    made.model = StandIn()
    return made


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("in") / "my clip.mp4"
    return write_clip(path, [frame((20 + 4 * at, 100), (360, 100, True)) for at in range(12)])


def strip(result: Result) -> dict:
    """Return the values of a result that must not depend on the form of the source."""
    return result.to_dict() | {"date": None, "file": None}


# Sources


def test_result_is_equal_for_path_bytes_and_file(detector: Detector, clip: Path) -> None:
    result = detector.check(clip)
    assert (result.kind, result.verdict, result.frames_scored) == ("video", "likely fake", 12)
    assert (
        result.name == str(clip) and result.sha256 == hashlib.sha256(clip.read_bytes()).hexdigest()
    )
    assert [len(track.faces) for track in result.tracks] == [12, 12]
    data = clip.read_bytes()
    with clip.open("rb") as file:
        others = [detector.check(one) for one in (str(clip), data, io.BytesIO(data), file)]
    assert [strip(other) for other in others] == [strip(result)] * 4
    assert detector.check(data, name="given.mp4").name == "given.mp4"


def test_pictures_and_frames_can_be_arrays(detector: Detector) -> None:
    result = detector.check(TWO)
    assert (result.kind, result.verdict, result.sha256) == ("picture", "likely fake", None)
    assert strip(detector.check(encode(TWO)))["tracks"] == strip(result)["tracks"]
    frames = detector.check((at / 2, TWO) for at in range(6))
    assert (frames.kind, frames.frames_scored, frames.verdict) == ("video", 6, "likely fake")
    assert [face.seconds for face in frames.tracks[0].faces] == [at / 2 for at in range(6)]
    assert frames.tracks[0].faces[0].p_fake == result.tracks[0].faces[0].p_fake


def test_json_contains_only_plain_values(detector: Detector, clip: Path) -> None:
    import json

    result = detector.check(clip)
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert found["score"] == 97 and found["tracks"][1]["faces"][0]["frame"] == 0
    assert found["version"] == deepfake_detect.__version__
    assert found["model_sha256"] == "0" * 64 and found["settings"]["frames_per_second"] == 2.0
    assert "detections_dir" not in found["settings"] and "frames_at_once" not in found["settings"]


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_arrays_of_wrong_shape_or_type_are_rejected(detector: Detector, image: np.ndarray) -> None:
    for source in (image, [(0.0, TWO), (0.5, image)]):
        with pytest.raises(SourceUnreadableError, match="uint8"):
            detector.check(source)


@pytest.mark.parametrize(
    "frames",
    [[], [TWO], [(0.0, TWO), (0.0, TWO)], [(float("nan"), TWO)], [(0.0, "no frame")], ["ab"]],
)
def test_frames_need_rising_times(detector: Detector, frames: list) -> None:
    with pytest.raises(SourceUnreadableError):
        detector.check(frames)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (17, 13)])
def test_small_and_narrow_pictures_have_no_face(detector: Detector, size: tuple[int, int]) -> None:
    result = detector.check(np.full((*size, 3), 90, np.uint8))
    assert (result.verdict, result.p_fake, result.track) == ("no face", None, None)
    assert "180" in result.reason  # names the rotations that were tried


# Failures


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda folder: folder / "missing.mp4", SourceNotFoundError),
        (lambda folder: folder, SourceUnreadableError),
        (lambda folder: b"", SourceUnreadableError),
        (lambda folder: b"no media at all", SourceUnreadableError),
        (lambda folder: encode(TWO)[:200], SourceUnreadableError),
        (lambda folder: io.StringIO("text"), SourceUnreadableError),
        (lambda folder: 7, SourceUnreadableError),
        (lambda folder: Path("/dev/null"), SourceUnreadableError),
    ],
)
def test_each_kind_of_failure_has_its_exception(
    detector: Detector, tmp_path: Path, make: callable, kind: type
) -> None:
    with pytest.raises(DetectionError) as caught:
        detector.check(make(tmp_path))
    assert type(caught.value) is kind
    assert isinstance(caught.value, ValueError | OSError) and str(caught.value)


def test_too_many_pixels_are_rejected() -> None:
    small = Detector(settings=DetectionSettings(most_pixels=640 * 480 - 1))
    for source in (encode(TWO), encode(TWO, ".jpg")):
        with pytest.raises(SourceTooLargeError):
            small.check(source)


@pytest.mark.parametrize("content", [None, b"no model", b""])
def test_unusable_model_raises_model_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "other.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"other\.onnx"):
        Detector(path)


@pytest.mark.parametrize("bad", [{"frames_per_second": float("nan")}, {"least_overlap": 2.0}])
def test_settings_out_of_range_name_the_option(bad: dict) -> None:
    with pytest.raises(ValueError, match=f"--{next(iter(bad)).replace('_', '-')}"):
        Detector(settings=DetectionSettings(**bad))


def test_failed_source_does_not_stop_the_others(detector: Detector, clip: Path) -> None:
    sources = [clip, clip.with_name("missing.mp4"), b"junk", TWO]
    results = list(detector.check_all(sources))
    assert [type(one) for one in results] == [Result, Failure, Failure, Result]
    assert [one.verdict for one in results][1:3] == ["not checked", "not checked"]
    assert results[1].name == str(sources[1]) and results[1].to_dict()["reason"]


def test_library_error_becomes_detection_error(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, kind in (
        (RuntimeError("odd"), SourceUnreadableError),
        (MemoryError(), SourceTooLargeError),
    ):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(module, "find_faces", fail)
        with pytest.raises(kind):
            detector.check(TWO)


# The hashed bytes are the scored bytes


@pytest.mark.parametrize("how", ["replace", "append"])
def test_file_changed_during_the_check_is_rejected(
    detector: Detector, clip: Path, tmp_path: Path, how: str
) -> None:
    path = Path(shutil.copy(clip, tmp_path / "changes.mp4"))

    def change(*_: object) -> None:
        if how == "replace":
            other = Path(shutil.copy(clip, tmp_path / "other.mp4"))
            other.replace(path)
        else:
            with path.open("ab") as file:
                file.write(b"more")

    with pytest.raises(SourceChangedError):
        detector.check(path, progress=change)


def test_marked_copy_needs_the_checked_file(detector: Detector, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(encode(TWO))
    result = detector.check(path)
    detector.write_marked_copy(result, tmp_path / "marked.png")
    path.write_bytes(encode(frame((20, 100))))
    with pytest.raises(SourceChangedError):
        detector.write_marked_copy(result, tmp_path / "again.png")
    assert not (tmp_path / "again.png").exists()


def test_small_copy_is_written_in_the_same_pass(
    detector: Detector, clip: Path, tmp_path: Path
) -> None:
    result = detector.check(clip)
    paths = [tmp_path / name for name in ("marked.mp4", "small.mp4")]
    detector.write_marked_copy(result, paths[0], small=paths[1])
    for path in paths:
        with av.open(str(path)) as container:
            times = [one.time for one in container.decode(video=0)]
            assert times == pytest.approx([at / 2 for at in range(12)])
    detector.write_report(result, tmp_path / "report.html", video=paths[1])
    data = base64.b64encode(paths[1].read_bytes()).decode()
    assert data in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_replaced_model_file_does_not_affect_loaded_detector(tmp_path: Path) -> None:
    from deepfake_detect.detection_model import SHIPPED
    from deepfake_detect.shipped import find_shipped

    path = Path(shutil.copy(find_shipped(SHIPPED), tmp_path / "model.onnx"))
    made = Detector(path)
    before = made.check(TWO)
    path.write_bytes(b"another")
    after = made.check(TWO)
    assert after.model_sha256 == before.model_sha256 and strip(after) == strip(before)


# Progress, cancelling, threads


def test_progress_never_exceeds_its_total(detector: Detector, clip: Path) -> None:
    said: list[tuple[str, int, int | None]] = []
    detector.check(clip, progress=lambda *one: said.append(one))
    phases = list(dict.fromkeys(phase for phase, *_ in said))
    assert phases[0] == module.LOOKING
    for phase in phases:
        steps = [(done, total) for name, done, total in said if name == phase]
        assert steps == sorted(steps) and all(done <= total for done, total in steps if total)
    assert said[-1][1:] == (12, 12)


@pytest.mark.parametrize("after", [0, 1])
def test_a_check_can_be_cancelled(detector: Detector, clip: Path, after: int) -> None:
    asked = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > after

    with pytest.raises(CancelledError):
        detector.check(clip, cancelled=cancelled)
    with pytest.raises(CancelledError):
        list(detector.check_all([clip, clip], cancelled=lambda: True))
    assert threading.active_count() < 20


def test_threads_share_a_detector() -> None:
    made = Detector()
    images = [frame((20 + 10 * at, 100)) for at in range(4)]
    alone = [strip(made.check(image)) for image in images]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda image: strip(made.check(image)), images)) == alone


# Second search and closer look


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotated_face_is_found_at_its_position(detector: Detector, turns: int) -> None:
    upright = detector.check(frame((60, 40), size=(480, 400)))
    image = np.ascontiguousarray(np.rot90(frame((60, 40), size=(480, 400)), turns))
    result = detector.check(image)
    (face,), (before,) = result.faces, upright.faces
    middle = np.array([before.x + before.width / 2, before.y + before.height / 2])
    for _ in range(turns):  # counterclockwise
        height = 480 if _ % 2 == 0 else 400
        middle = np.array([middle[1], height - middle[0]])
    assert [face.x + face.width / 2, face.y + face.height / 2] == pytest.approx(middle, abs=8)
    assert "rotat" in " ".join(result.notes)


def test_short_shot_is_sampled_more_often(detector: Detector) -> None:
    """At two frames per second, three frames show the face; a verdict needs five."""
    data = io.BytesIO()
    shot = [frame((200, 100, True)) if 40 <= at < 55 else frame() for at in range(100)]
    write_clip(data, shot, 0.1)
    result = detector.check(data.getvalue())
    (track,) = result.tracks
    assert len(track.faces) >= 5 and result.verdict == "likely fake"
    assert track.first_seconds >= 3.9 and track.last_seconds <= 5.5


# A well-behaved library


def test_a_check_prints_nothing_and_writes_nothing(
    clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = Detector()
    made.render_report(made.check(clip))
    list(made.check_all([b"junk", encode(TWO)[:100], clip.read_bytes()[:3000]]))
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir())


def test_check_imports_no_training_libraries(clip: Path) -> None:
    program = (
        "import sys\nfrom deepfake_detect import Detector\nmade = Detector()\n"
        f"made.render_report(made.check({str(clip)!r}))\n"
        "heavy = {'tensorflow', 'keras', 'pandas', 'scipy', 'sklearn', 'matplotlib', 'onnx'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc")
def test_memory_does_not_grow_with_the_number_of_faces(tmp_path: Path) -> None:
    """A frame with 49 people needs less than 1 GB."""
    people = [(20 + 260 * (at % 7), 20 + 260 * (at // 7)) for at in range(49)]
    crowd = tmp_path / "crowd.png"
    crowd.write_bytes(encode(frame(*people, size=(1840, 1840))))
    program = (
        "import re, pathlib\nfrom deepfake_detect import Detector\n"
        f"print(len(Detector().check({str(crowd)!r}).tracks))\n"
        # ru_maxrss would include the memory of the tests, because a child process inherits it.
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]) // 1024)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    faces, memory = map(int, done.stdout.split())
    assert faces > 40 and memory < 1000
