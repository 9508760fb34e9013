"""Tests of marked copies: times of frames, boxes, sound, and size."""

import itertools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import imageio_ffmpeg
import numpy as np
import pytest
from conftest import write_video
from hypothesis import given
from hypothesis import strategies as st

from deepfake_detect.canvas import Box
from deepfake_detect.marked_video import (
    LONGEST_GAP,
    MarkedCopy,
    interpolate,
    write_marked_picture,
    write_marked_video,
    write_small_copy,
)
from deepfake_detect.video import Video

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
GREY = "-f", "lavfi", "-i", "color=gray:size=320x240:rate=25:duration=2"
NOISY = "-f", "lavfi", "-i", "testsrc2=size=320x240:rate=25:duration=4,noise=alls=9:allf=t"
SINE = "-f", "lavfi", "-i", "sine=frequency=440:duration=2"


def ffmpeg(*arguments: object) -> None:
    command = [FFMPEG, "-y", "-v", "error", "-nostdin", *map(str, arguments)]
    subprocess.run(command, check=True)


def moving_box(seconds: float) -> Iterator[Box]:
    """Return a red box that moves to the right by 50 pixels per second."""
    yield Box(1, 40 + 50 * seconds, 60, 80, 100, 100)


def mark(source: Path, target: Path) -> list[str]:
    notes: list[str] = []
    write_marked_video(source, moving_box, target, notes)
    return notes


def list_seconds(path: Path) -> list[float]:
    return [frame.seconds for frame in Video(path).frames()]


def is_red(image: np.ndarray, x: int, y: int) -> bool:
    blue, green, red = image[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).mean(axis=0)
    return red > 170 and blue < 110 and green < 110


# --- Times, boxes, sound --------------------------------------------------------------------------

TIMES = {
    "even": (),
    "every two seconds": ("-vf", "setpts=50*PTS"),
    "varying": ("-vf", "select='lt(n,9)+not(mod(n,7))'", "-fps_mode", "vfr"),
}


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_every_frame_keeps_its_time(name: str, suffix: str, tmp_path: Path) -> None:
    source = tmp_path / f"a.{suffix}"
    ffmpeg(*GREY, *TIMES[name], "-fps_mode", "vfr", source)
    assert mark(source, tmp_path / "marked.mp4") == []
    wanted, found = list_seconds(source), list_seconds(tmp_path / "marked.mp4")
    assert len(wanted) == len(found) > 10
    assert np.allclose(found, wanted, atol=0.0015)
    with av.open(str(tmp_path / "marked.mp4")) as container:
        (stream,) = container.streams
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.format.name == "yuv420p"
        assert container.duration / av.time_base >= wanted[-1]


@pytest.mark.parametrize("form", ["plain", "turned", "odd size", "interlaced", "wide pixels"])
def test_box_is_drawn_around_the_face(form: str, tmp_path: Path) -> None:
    """The result must be the same whether we draw on the stored or the converted frame."""
    options = {
        "plain": (),
        "turned": (),
        "odd size": ("-vf", "crop=319:239:0:0:exact=1", "-pix_fmt", "yuv444p"),
        "interlaced": ("-x264-params", "tff=1"),
        "wide pixels": ("-vf", "scale=160:240,setsar=2/1"),
    }[form]
    source = tmp_path / "a.mp4"
    ffmpeg(*GREY, *options, source)
    if form == "turned":
        ffmpeg("-display_rotation", 180, "-i", source, "-c", "copy", tmp_path / "turned.mp4")
        source = tmp_path / "turned.mp4"
    mark(source, tmp_path / "marked.mp4")
    frames = list(Video(tmp_path / "marked.mp4").frames())
    assert len(frames) == 50 and {frame.image.shape for frame in frames} == {(240, 320, 3)}
    for frame in (frames[0], frames[25], frames[49]):
        left = round(40 + 50 * frame.seconds)
        assert is_red(frame.image, left, 110) and is_red(frame.image, left + 80, 110)
        assert is_red(frame.image, left + 40, 160)
        assert (
            np.abs(frame.image[110, left + 40].astype(int) - 128).max() < 25
        )  # the face is not covered
        assert frame.image[-4:].max() > 150 and np.median(frame.image[-4:]) < 60  # the strip


@given(st.lists(st.floats(0.01, 9), min_size=1, max_size=12), st.integers(0, 10**6))
def test_boxes_are_interpolated_between_scored_frames(steps: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = np.cumsum([1.0, *steps])
    faces = [
        SimpleNamespace(seconds=at, x=x, y=y, width=w, height=h, p_fake=p)
        for at, x, y, w, h, p in zip(times, *rng.uniform(0, 1, (5, len(times))), strict=True)
    ]
    boxes_at = interpolate([SimpleNamespace(number=7, faces=faces)])
    for face in faces:
        (box,) = boxes_at(face.seconds)
        assert np.allclose(box[1:5], (face.x, face.y, face.width, face.height), atol=1e-4)
        assert box.number == 7 and box.score == round(100 * face.p_fake)
    assert not list(boxes_at(0.9)) and not list(boxes_at(times[-1] + 0.1))
    for before, after in itertools.pairwise(faces):
        middle = list(boxes_at((before.seconds + after.seconds) / 2))
        assert len(middle) == (after.seconds - before.seconds <= LONGEST_GAP)
        assert all(abs(box.x - (before.x + after.x) / 2) < 1e-4 for box in middle)


@pytest.mark.parametrize(
    ("codec", "suffix"), [("aac", "mp4"), ("libmp3lame", "mkv"), ("pcm_s16le", "mov")]
)
def test_sound_is_kept(codec: str, suffix: str, tmp_path: Path) -> None:
    source = tmp_path / f"a.{suffix}"
    ffmpeg(*GREY, *SINE, "-c:a", codec, source)
    assert mark(source, tmp_path / "marked.mp4") == []
    with av.open(str(tmp_path / "marked.mp4")) as container:
        sound = container.streams.audio[0]
        assert sound.codec_context.name == "aac"
        waves = [frame.to_ndarray()[0] for frame in container.decode(sound)]
    wave = np.concatenate(waves)[4000:60_000]
    crossings = np.diff(np.signbit(wave)).sum() / 2 / len(wave) * sound.rate
    assert abs(crossings - 440) < 5
    assert abs(sum(map(len, waves)) / sound.rate - 2) < 0.15
    if codec == "aac":  # copied byte by byte

        def read_packets(path: Path) -> list[bytes]:
            with av.open(str(path)) as container:
                return [bytes(one) for one in container.demux(audio=0) if one.size]

        assert read_packets(tmp_path / "marked.mp4")[-50:] == read_packets(source)[-50:]


def test_unreadable_sound_is_noted(tmp_path: Path) -> None:
    ffmpeg(*GREY, *SINE, "-c:a", "pcm_s16le", "-ac", 16, tmp_path / "many.mov")
    ffmpeg(*GREY, *SINE, "-c:a", "aac", tmp_path / "a.mkv")
    content = (tmp_path / "a.mkv").read_bytes()
    assert b"A_AAC" in content
    (tmp_path / "unknown.mkv").write_bytes(content.replace(b"A_AAC", b"A_XXX"))
    for name, notes in (("many.mov", 0), ("unknown.mkv", 1)):
        said = mark(tmp_path / name, tmp_path / "marked.mp4")
        assert len(said) == notes and all("sound" in note for note in said)
        assert len(list_seconds(tmp_path / "marked.mp4")) == 50


def test_sound_may_start_later_or_end_earlier(tmp_path: Path) -> None:
    for name, offset, length in (("late", 1, 1), ("short", 0, 0.3)):
        source = tmp_path / f"{name}.mp4"
        sine = "-f", "lavfi", "-i", f"sine=duration={length}"
        ffmpeg(*GREY, "-itsoffset", offset, *sine, "-c:a", "aac", source)
        assert mark(source, tmp_path / "marked.mp4") == []
        with av.open(str(tmp_path / "marked.mp4")) as container:
            stamps = [p.pts * p.time_base for p in container.demux(audio=0) if p.size]
        assert abs(float(stamps[0]) - offset) < 0.05, name
        assert len(list_seconds(tmp_path / "marked.mp4")) == 50


# --- Content and size of a copy -------------------------------------------------------------------


def test_copy_has_only_video_and_sound(tmp_path: Path) -> None:
    chapters = tmp_path / "chapters.txt"
    chapters.write_text(
        ";FFMETADATA1\ntitle=SECRETTITLE\nartist=SECRETARTIST\nlocation=+48.1+011.5/\n"
        "[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=1000\ntitle=SECRETCHAPTER\n"
    )
    names = [
        *("-metadata:s:v:0", "handler_name=SECRETPICTURE"),
        *("-metadata:s:a:0", "handler_name=SECRETSOUND", "-metadata:s:a:0", "language=ger"),
    ]
    ffmpeg(*GREY, *SINE, "-i", chapters, "-map_metadata", 2, *names, tmp_path / "a.mp4")
    assert b"SECRETCHAPTER" in (tmp_path / "a.mp4").read_bytes()
    mark(tmp_path / "a.mp4", tmp_path / "marked.mp4")
    write_small_copy(tmp_path / "a.mp4", moving_box, [], tmp_path / "small.mp4")
    for name in ("marked.mp4", "small.mp4"):
        content = (tmp_path / name).read_bytes()
        assert b"SECRET" not in content and b"+48.1" not in content
        with av.open(str(tmp_path / name)) as container:
            assert not container.chapters()
            assert {one.metadata.get("language") for one in container.streams} <= {"und", None}


@pytest.mark.parametrize("quality", [20, 30, 40])
def test_copy_is_at_most_1_5_times_as_large(quality: int, tmp_path: Path) -> None:
    ffmpeg(*NOISY, "-crf", quality, tmp_path / "a.mp4")
    mark(tmp_path / "a.mp4", tmp_path / "marked.mp4")
    sizes = [(tmp_path / name).stat().st_size for name in ("marked.mp4", "a.mp4")]
    assert sizes[0] <= max(1.5 * sizes[1], 60_000)


def test_small_copy_shows_every_frame_of_moments(tmp_path: Path) -> None:
    ffmpeg(*NOISY, tmp_path / "a.mp4")
    write_small_copy(tmp_path / "a.mp4", moving_box, [(1.6, 2.0)], tmp_path / "small.mp4")
    seconds = np.array(list_seconds(tmp_path / "small.mp4"))
    shown = (seconds >= 1.1) & (seconds <= 2.5)
    assert shown.sum() == 35 and (~shown).sum() == 6
    first = next(Video(tmp_path / "small.mp4").frames()).image
    assert is_red(first, 40, 110)


@pytest.mark.long
def test_small_copy_is_small(tmp_path: Path) -> None:
    """The bit rate depends on the length: without a limit, five minutes would take 9 MB."""
    path, source = tmp_path / "a.mp4", "testsrc2=size=704x396:rate=2:duration=300"
    ffmpeg("-f", "lavfi", "-i", source, "-preset", "ultrafast", path)
    write_small_copy(path, moving_box, [(0, 300)], tmp_path / "small.mp4")
    assert (tmp_path / "small.mp4").stat().st_size < 5_000_000
    assert Video(tmp_path / "small.mp4").width == 640


# --- Frames from elsewhere, errors, and pictures --------------------------------------------------


def test_copy_accepts_frames_decoded_for_another_purpose(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", frames=12, size=(64, 48))
    with Video(source) as video, MarkedCopy(tmp_path / "marked.mp4", video, []) as copy:
        for raw in video.raw_frames():
            image = raw.to_bgr()
            copy.add(raw.seconds, raw.to_yuv() if raw.index % 2 else image, [])
    assert list_seconds(tmp_path / "marked.mp4") == list_seconds(source)


def test_exception_in_progress_stops_the_copy(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", frames=12)
    calls = []

    def stop(done: int, total: int | None) -> None:
        calls.append((done, total))
        if done == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        write_marked_video(source, moving_box, tmp_path / "marked.mp4", [], progress=stop)
    assert calls == [(done, 12) for done in range(1, 6)]


def test_unwritable_copy_is_an_error(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", frames=12)
    with pytest.raises(OSError, match="No such file"):
        write_marked_video(source, moving_box, tmp_path / "gone/marked.mp4", [])


def test_marked_picture_differs_only_in_box_and_strip(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(60, 200, (240, 320, 3), dtype=np.uint8)
    write_marked_picture(image.copy(), [Box(1, 50, 60, 90, 80, 0)], tmp_path / "a.png")
    marked = cv2.imread(str(tmp_path / "a.png"))
    assert marked.shape == image.shape
    assert np.array_equal(marked[64:136, 54:136], image[64:136, 54:136])
    assert np.array_equal(marked[150:220], image[150:220])
    assert (marked[100, 50] == (0, 255, 0)).all()
    assert np.median(marked[-8:]) < 10 and marked[-8:].max() > 200
