"""Test 06 with faults: users' files are kept, bad files are skipped, hostile names are harmless."""

import copy
import importlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, assert_stops, run_script
from media import StandIn, encode, frame, write_clip

from deepfake_detect import Detector, Failure, Result

pytestmark = pytest.mark.long

detect = importlib.import_module("06-detect-deepfake")

SCRIPT = "06-detect-deepfake.py"


DETECTOR = Detector()


def load(model: Path | None = None, settings: object = None) -> Detector:
    made = copy.copy(DETECTOR)
    made.model, made.settings = StandIn(), settings or detect.DetectionSettings()
    return made


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a folder with a picture and a video in in/, and use the stand-in model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(detect, "Detector", load)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "photo.png").write_bytes(encode(frame((200, 100))))
    write_clip(tmp_path / "in" / "clip.mp4", [frame((200, 100, True), size=(480, 360))] * 6)
    return tmp_path


def run(*files: str | Path, failed: int = 0, **options: object) -> dict[str, Result | Failure]:
    """Run 06, expect `failed` unchecked files, and return the results by file name."""
    results: list = []
    summarize = detect.write_summary

    def keep(found: list, *more: object) -> None:
        results.extend(found)
        summarize(found, *more)

    settings = detect.Settings(tuple(map(Path, files)), **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detect, "write_summary", keep)
        if failed:
            with pytest.raises(ValueError, match=rf"^{failed} of \d+ files were not checked"):
                detect.main(settings)
        else:
            detect.main(settings)
    return {Path(result.name).name: result for result in results}


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def reason(result: Result | Failure) -> str:
    assert isinstance(result, Failure)
    return result.reason


# The user's own files


@pytest.mark.parametrize("name", ["photo.json", "photo.html", "photo-marked.png"])
def test_files_of_the_user_are_kept(here: Path, name: str) -> None:
    """The outputs take another name."""
    (here / name).write_text("my notes")
    run("in", detections_dir=Path())
    assert (here / name).read_text() == "my notes"
    assert {"photo-2.json", "photo-2.html", "clip.json"} <= set(listed(here))


@pytest.mark.parametrize("name", ["results.csv", "index.html"])
def test_foreign_results_stop_the_run_before_the_checks(here: Path, name: str) -> None:
    (here / name).write_text("my results")
    with pytest.raises(ValueError, match="--detections-dir"):
        detect.main(detect.Settings((Path("in"),), detections_dir=Path()))
    assert listed(here) == sorted(["in", name]) and (here / name).read_text() == "my results"


def test_edited_results_are_kept(here: Path) -> None:
    run("in")
    (here / "detections" / "results.csv").write_text("edited")
    with pytest.raises(ValueError, match="changed since"):
        detect.main(detect.Settings((Path("in"),)))


@pytest.mark.parametrize(
    "name", ["results.partial.csv", "photo-marked.partial.png", ".detections.partial", "a.tmp"]
)
def test_temporary_names_do_not_replace_user_files(here: Path, name: str) -> None:
    (here / name).write_text("mine")
    run("in", detections_dir=Path())
    assert (here / name).read_text() == "mine"
    assert not list(here.glob(".unfinished*"))


def test_two_files_of_the_same_name_have_separate_reports(here: Path) -> None:
    """Also in a later run, and if the later file cannot be checked."""
    for day in ("monday", "tuesday", "wednesday"):
        (here / day).mkdir()
        data = (
            b"junk" if day == "wednesday" else encode(frame((100 if day == "monday" else 200, 90)))
        )
        (here / day / "clip.png").write_bytes(data)
    run("monday/clip.png")
    before = (here / "detections" / "clip.json").read_bytes()
    run("tuesday/clip.png")
    run("wednesday/clip.png", failed=1)
    assert (here / "detections" / "clip.json").read_bytes() == before
    assert {"clip.html", "clip-2.html", "clip-2.json"} <= set(listed(here / "detections"))
    run("monday/clip.png")
    assert "clip-3.json" not in listed(here / "detections")


def test_report_is_kept_but_not_shown_if_its_file_can_no_longer_be_checked(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("in/photo.png")
    before = (here / "detections" / "photo.html").read_bytes()
    (here / "in" / "photo.png").write_bytes(b"no picture any more")
    assert "photo.html" in capsys.readouterr().out
    run("in/photo.png", failed=1)
    assert (here / "detections" / "photo.html").read_bytes() == before
    assert "photo.html" not in capsys.readouterr().out
    run("in/photo.png", "in/clip.mp4", failed=1)
    page = (here / "detections" / "index.html").read_text(encoding="utf-8")
    assert 'href="clip.html"' in page and 'href="photo.html"' not in page


@pytest.mark.parametrize("name", ["photo.json", "results.csv"])
def test_planted_link_is_not_followed(here: Path, name: str) -> None:
    (here / "detections").mkdir()
    (here / "victim").write_text("mine")
    (here / "detections" / name).symlink_to("../victim")
    if name == "results.csv":
        with pytest.raises(ValueError, match=name):
            detect.main(detect.Settings((Path("in"),)))
    else:
        run("in")
    assert (here / "victim").read_text() == "mine"


def test_own_outputs_are_not_checked(here: Path) -> None:
    for _ in range(3):
        found = run("in", detections_dir=Path("in/sub"))
        assert set(found) == {"photo.png", "clip.mp4"}
    result = run("in/sub/clip-marked.mp4", failed=1)["clip-marked.mp4"]
    assert "written by this script" in reason(result)


def test_foreign_manifest_hides_no_files_and_releases_no_files(here: Path) -> None:
    for name in (".detections", ".made-by"):
        (here / "in" / name).write_text('photo.png\n{"name": "photo.png", "script": "06"}\n')
    (here / "in" / "photo.json").write_text("thesis")
    assert set(run("in", detections_dir=Path("in"))) == {"photo.png", "clip.mp4"}
    assert (here / "in" / "photo.json").read_text() == "thesis"


def test_files_of_macos_are_ignored_and_others_counted(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "in" / "._clip.mp4").write_bytes(b"\0\5\26\7")
    (here / "in" / "notes.txt").write_text("words")
    assert set(run("in")) == {"photo.png", "clip.mp4"}
    said = capsys.readouterr().out
    assert "._clip" not in said and ".txt" in said


# A fault affects only its own file


def test_long_names_are_shortened_by_bytes(here: Path) -> None:
    long = here / "in" / ("漢" * 79 + ".png")
    (here / "in" / "photo.png").rename(long)
    assert not run("in/" + long.name)[long.name].notes
    assert "漢" * 33 + "-marked.png" in listed(here / "detections")


NAMES = ["a$$b $\\frac$", 'my holiday\'s "clip"', "=cmd|calc!A1", "@SUM(1+1)", "-rf", "a:b?"]


@pytest.mark.parametrize("name", NAMES)
def test_files_with_odd_names_have_all_outputs(here: Path, name: str) -> None:
    (here / "in" / "photo.png").rename(here / "in" / f"{name}.png")
    result = run("in")[f"{name}.png"]
    assert not result.notes
    stem = name.translate(str.maketrans(dict.fromkeys('<>:"/\\|?*', "_")))
    assert {f"{stem}.html", f"{stem}.json"} <= set(listed(here / "detections"))
    with (here / "detections" / "results.csv").open() as table:
        assert not any(line[0] in "=@+" for line in table)


def test_name_that_is_not_utf8_has_a_report(here: Path) -> None:
    for ending, source in ((b".mp4", "clip.mp4"), (b".png", "photo.png")):
        (here / "in" / source).rename(here / "in" / os.fsdecode(b"latin\xe9\xff" + ending))
    results = run("in")
    assert not any(result.notes for result in results.values()) and len(results) == 2
    assert {"latin__.html", "latin__-2.html"} <= set(listed(here / "detections"))
    table = (here / "detections" / "results.csv").read_text(encoding="utf-8")
    assert table.count(r"latin\udce9") == 2
    assert json.loads((here / "detections" / "latin__.json").read_text())["verdict"]


def test_failed_outputs_become_notes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("crop")

    monkeypatch.setattr(Detector, "write_report", fail)
    monkeypatch.setattr(Detector, "write_marked_copy", fail)
    result = run("in/photo.png")["photo.png"]
    assert result.verdict == "likely real"
    assert [note.split()[0] for note in result.notes] == ["photo.html", "photo-marked.png"]
    stored = json.loads((here / "detections" / "photo.json").read_text())
    assert stored["notes"] == list(result.notes)
    assert listed(here / "detections") == ["photo.json", "results.csv"]


def test_failed_json_fails_only_its_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a full disk; the other files are still checked."""
    write = detect.Output.write

    def fill(self: object, name: str, *more: object) -> None:
        if name == "clip.json":
            raise OSError(28, "No space left on device")
        write(self, name, *more)

    monkeypatch.setattr(detect.Output, "write", fill)
    results = run("in", failed=1)
    assert "No space" in reason(results["clip.mp4"])
    assert results["photo.png"].verdict == "likely real"


def test_results_keep_no_pictures(here: Path) -> None:
    """The pictures of thousands of files would fill the memory."""
    assert all(result.evidence is None for result in run("in").values())


def test_outputs_are_written_without_a_temporary_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    assert not run("in/clip.mp4")["clip.mp4"].notes
    assert "video/mp4" in (here / "detections" / "clip.html").read_text()
    assert not list((here / "detections").glob(".unfinished*"))


def test_deleted_video_loses_only_its_copy(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = Detector.check

    def check_and_delete(self: Detector, source: Path, **options: object) -> Result:
        found = check(self, source, **options)
        source.unlink()
        return found

    monkeypatch.setattr(Detector, "check", check_and_delete)
    results = run("in")
    assert results["clip.mp4"].verdict == "likely fake"
    assert "clip-marked.mp4 is not written" in " ".join(results["clip.mp4"].notes)
    assert "clip.html" in listed(here / "detections")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_unusable_files_are_reported_without_waiting(here: Path) -> None:
    os.mkfifo(here / "pipe.mp4")
    (here / "zero.png").symlink_to("/dev/zero")
    (here / "broken.mp4").symlink_to("nothing")
    (here / "empty.png").touch()
    (here / "words.mp4").write_text("no video")
    (here / "torn.jpg").write_bytes(encode(frame((200, 100)), ".jpg")[:300])
    results = run(*here.glob("*.*"), failed=6)
    assert all(reason(result) for result in results.values())
    assert "pipe or a device" in results["pipe.mp4"].reason
    assert "broken link" in results["broken.mp4"].reason


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads anything")
def test_unreadable_files_are_reported(here: Path) -> None:
    (here / "in" / "photo.png").chmod(0)
    run("in", failed=1)
    (here / "in" / "photo.png").chmod(stat.S_IRUSR)


# Numbers


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_model_that_returns_nan_is_reported(
    here: Path, number: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def score(self: StandIn, crops: np.ndarray) -> tuple:
        raise ValueError("the model gives no number for a face: it is damaged.")

    monkeypatch.setattr(StandIn, "score", score)
    run("in", failed=2, json=True)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    printed = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert all("no number" in result["reason"] for result in printed)


# Strangers' files and names


def test_name_is_printed_without_control_characters(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "evil\nlikely real  innocent\x1b[2J\u202e.png"
    (here / "in" / "photo.png").rename(here / "in" / name)
    (here / "in" / "torn\x1b[2J\n.png").write_bytes(encode(frame())[:40])
    with pytest.raises(ValueError) as error:
        detect.main(detect.Settings((Path("in"),)))
    said = capsys.readouterr().out + str(error.value)
    assert "\x1b" not in said and "\u202e" not in said
    assert r"evil\nlikely real  innocent\x1b[2J\u202e.png" in said


@pytest.mark.parametrize("first", ["ffconcat version 1.0", "#EXTM3U", "concat:clip.mp4"])
def test_playlist_is_not_a_video(here: Path, first: str) -> None:
    (here / "list.mp4").write_text(f"{first}\nfile in/clip.mp4\nin/clip.mp4\n")
    assert reason(run("list.mp4", failed=1)["list.mp4"])


# The environment


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_closed_standard_streams_do_not_stop_the_run(here: Path, closed: str) -> None:
    script = f"'{sys.executable}' '{ROOT / SCRIPT}' in/photo.png {closed}"
    done = subprocess.run(["sh", "-c", script], cwd=here, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert {"photo.html", "photo.json", "photo-marked.png"} <= set(listed(here / "detections"))


@pytest.mark.parametrize(
    "variables", [{"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}, {"PYTHONSAFEPATH": "1"}]
)
def test_locale_and_safe_path_do_not_stop_the_run(here: Path, variables: dict[str, str]) -> None:
    (here / "in" / "photo.png").rename(here / "in" / "détect😀.png")
    command = [sys.executable, ROOT / SCRIPT, "in/détect😀.png"]
    environment = os.environ | variables
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "détect😀.html" in listed(here / "detections")


def test_a_link_to_the_script_works(here: Path) -> None:
    (here / "check").symlink_to(ROOT / SCRIPT)
    command = [sys.executable, "check", "in/photo.png", "--no-annotate"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_two_runs_do_not_share_a_folder(here: Path) -> None:
    import filelock

    (here / "detections").mkdir()
    with filelock.FileLock(here / "detections" / ".lock"):
        assert_stops(run_script(SCRIPT, "in/photo.png", cwd=here), "another run")


@pytest.mark.parametrize(
    ("option", "value"), [("frames_at_once", 0), ("longest_gap", -1), ("least_likeness", np.nan)]
)
def test_invalid_number_is_rejected(here: Path, option: str, value: float) -> None:
    settings = detect.DetectionSettings(**{option: value})
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')}"):
        detect.main(detect.Settings((Path("in/photo.png"),), detection=settings))
