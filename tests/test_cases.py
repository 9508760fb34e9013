"""Test files of many kinds, each made by the test, with the correct verdict."""

import io
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import PIL.Image
import pytest
from conftest import ROOT
from media import StandIn, encode, frame, write_clip

from deepfake_detect import DetectionSettings, Detector

PERSON = (200, 100)
SMALL = (260, 250)  # size of the frames of long videos, about as large as a portrait


@pytest.fixture(scope="module")
def detector() -> Detector:
    """Load a detector with the stand-in model, which scores mirrored portraits as fake."""
    made = Detector()
    made.model = StandIn()
    return made


@pytest.fixture(scope="module")
def shipped() -> Detector:
    return Detector()


# The content determines the kind of a file


FORMATS = ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "AVIF", "BMP")
NAMES = ("photo.mp4", "photo", "photo.txt")


@pytest.mark.parametrize(
    ("form", "name"),
    [*((form, "photo.jfif") for form in FORMATS), *(("AVIF", name) for name in NAMES)],
)
def test_picture_is_recognised_by_content_not_name(
    shipped: Detector, tmp_path: Path, form: str, name: str
) -> None:
    image = PIL.Image.fromarray(cv2.cvtColor(frame(PERSON, side=320), cv2.COLOR_BGR2RGB))
    image.save(tmp_path / name, form)
    result = shipped.check(tmp_path / name)
    assert (result.kind, result.verdict) == ("picture", "likely real")
    assert result.p_fake < 0.2 and len(result.faces) == 1


def test_animated_gif_has_a_note_about_unchecked_frames(detector: Detector) -> None:
    data = io.BytesIO()
    pictures = [PIL.Image.fromarray(frame((at, 100))[..., ::-1]) for at in (100, 200, 300)]
    pictures[0].save(data, "GIF", save_all=True, append_images=pictures[1:])
    result = detector.check(data.getvalue())
    assert result.kind == "picture" and "3 pictures" in " ".join(result.notes)


def test_video_without_suffix_is_recognised(detector: Detector, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [frame(PERSON)] * 8)
    assert detector.check(clip.rename(tmp_path / "upload")).kind == "video"


# Times are in seconds


@pytest.mark.parametrize("step", [2.0, 5.0])
def test_slow_video_is_one_track_and_its_copy_has_equal_length(
    detector: Detector, tmp_path: Path, step: float
) -> None:
    clip = write_clip(tmp_path / "slow.mp4", [frame(PERSON)] * 12, step)
    result = detector.check(clip)
    (track,) = result.tracks
    assert len(track.faces) == 12 and result.verdict == "likely real"
    detector.write_marked_copy(result, tmp_path / "marked.mp4")
    assert list_times(tmp_path / "marked.mp4") == pytest.approx([step * at for at in range(12)])


def test_changing_frame_rate_keeps_all_tracks(detector: Detector, tmp_path: Path) -> None:
    """As in screen recordings and video calls: ten frames per second, then one per 1.5 s."""
    times = [*np.arange(0, 4, 0.1), *np.arange(4, 22, 1.5)]
    places = [((20 + round(6 * time), 5), (395, 5, True)) for time in times]
    people = [frame(*place, size=(640, 250)) for place in places]
    result = detector.check(write_clip(tmp_path / "uneven.mp4", people, times))
    assert len(result.tracks) == 2 and result.verdict == "likely fake"
    assert all(track.last_seconds > 20 for track in result.tracks)
    detector.write_marked_copy(result, tmp_path / "marked.mp4")
    assert list_times(tmp_path / "marked.mp4") == pytest.approx(times, abs=0.002)


def test_frame_after_a_freeze_is_scored_once(detector: Detector, tmp_path: Path) -> None:
    """More frames are scored where a face is suspicious, also at times without a frame."""
    times = [*np.arange(0, 4, 0.1), *np.arange(10, 11.2, 0.1)]
    people = [frame((10, 5, time > 9), size=SMALL) for time in times]
    result = detector.check(write_clip(tmp_path / "frozen.mkv", people, times))
    (track,) = result.tracks
    assert any(face.extra for face in track.faces)
    assert len({face.frame for face in track.faces}) == len(track.faces)


@pytest.mark.parametrize("size", [(320, 240), (360, 480)])
def test_changed_size_keeps_the_track_and_the_shape(
    detector: Detector, tmp_path: Path, size: tuple[int, int]
) -> None:
    """As in video calls and recordings of a turned screen; a player adds black bars."""
    place = (40, 20) if size[1] == 240 else (100, 120)
    small = frame(place, size=size, side=size[1] // 2)
    parts = tmp_path / "1.ts", tmp_path / "2.ts"
    write_clip(parts[0], [frame((80, 40))] * 8)
    write_clip(parts[1], [small] * 8)
    clip = tmp_path / "calls.ts"
    clip.write_bytes(parts[0].read_bytes() + parts[1].read_bytes())
    result = detector.check(clip)
    if size == (320, 240):
        assert len(result.tracks) == 1
    face = result.faces[-1]
    assert (result.width, result.height) == (640, 480)
    detector.write_marked_copy(result, tmp_path / "marked.mp4")
    with av.open(str(tmp_path / "marked.mp4")) as copy:
        *_, last = (one.to_ndarray(format="bgr24") for one in copy.decode(video=0))
    assert last.shape == (480, 640, 3)
    left = (640 - 480 * size[0] // size[1]) // 2
    assert last[:440, : max(0, left - 2)].max(initial=0) < 30
    # The box is drawn where the face is: a green line on its left edge.
    edge = last[face.y + face.height // 2, face.x - 3 : face.x + 4].astype(int)
    assert (edge[:, 1] - edge[:, 2]).max() > 100


def list_times(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [one.time for one in container.decode(video=0)]


# Parts, shots and groups


@pytest.mark.parametrize(
    ("start", "length"),
    [
        (19.5, 2.5),
        pytest.param(0.0, 3.0, marks=pytest.mark.long),
        pytest.param(27.0, 2.5, marks=pytest.mark.long),
    ],
)
def test_fake_part_of_long_real_video_is_found(
    detector: Detector, tmp_path: Path, start: float, length: float
) -> None:
    fake = [start <= at / 10 < start + length for at in range(295)]
    shot = [frame((10, 5, one), size=SMALL) for one in fake]
    result = detector.check(write_clip(tmp_path / "partly.mp4", shot, 0.1))
    assert result.verdict == "likely fake" and result.p_fake < 0.3
    assert result.part.first_seconds == pytest.approx(start, abs=0.5)
    assert result.part.last_seconds == pytest.approx(start + length, abs=0.6)


@pytest.mark.long
@pytest.mark.parametrize("seconds", [1.0, 1.6])
def test_a_shorter_part_is_never_likely_real(
    detector: Detector, tmp_path: Path, seconds: float
) -> None:
    shot = [frame((10, 5, 10 <= at / 10 < 10 + seconds), size=SMALL) for at in range(200)]
    result = detector.check(write_clip(tmp_path / "partly.mp4", shot, 0.1))
    assert result.verdict != "likely real"


@pytest.mark.long
def test_short_shots_are_decided(detector: Detector, tmp_path: Path) -> None:
    """As in films, shots of 1.5 s show different people at different positions."""
    places = [(20, 100), (380, 220, True), (200, 20)]
    shots = [frame(place) for place in places for _ in range(15)]
    result = detector.check(write_clip(tmp_path / "film.mp4", shots * 2, 0.1))
    assert result.verdict == "likely fake" and result.faces_judged == len(result.tracks) == 6


def test_one_fake_in_a_group_is_found_and_all_faces_are_judged(detector: Detector) -> None:
    places = [(20 + 260 * (at % 3), 20 + 260 * (at // 3)) for at in range(6)]
    real = detector.check(frame(*places, size=(820, 560)))
    assert (real.verdict, len(real.tracks)) == ("likely real", 6)
    assert real.threshold > detector.check(frame(PERSON)).threshold
    one = detector.check(frame(*places[:5], (*places[5], True), size=(820, 560)))
    assert one.verdict == "likely fake"
    assert sum(track.verdict == "likely fake" for track in one.tracks) == 1


# Faces that are hard to find


@pytest.mark.parametrize("turn", [cv2.ROTATE_90_CLOCKWISE, cv2.ROTATE_180])
def test_rotated_video_is_checked_upright(detector: Detector, tmp_path: Path, turn: int) -> None:
    shot = [cv2.rotate(frame((100 + 10 * at, 100)), turn) for at in range(8)]
    result = detector.check(write_clip(tmp_path / "turned.mp4", shot))
    assert result.verdict == "likely real" and "rotating" in " ".join(result.notes)
    detector.write_marked_copy(result, tmp_path / "marked.mp4")


@pytest.mark.parametrize("side", [90, 1600])
def test_faces_of_another_size_are_found(detector: Detector, side: int) -> None:
    result = detector.check(frame((20, 20), size=(side + 300, side + 40), side=side))
    assert len(result.faces) == 1


def test_faces_in_the_second_stream_are_found(detector: Detector, tmp_path: Path) -> None:
    path = tmp_path / "two.mp4"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", 5) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for at in range(10):
            for stream, image in zip(streams, (frame(), frame(PERSON)), strict=True):
                picture = av.VideoFrame.from_ndarray(image, "bgr24")
                picture.pts, picture.time_base = at, Fraction(1, 5)
                container.mux(stream.encode(picture))
        for stream in streams:
            container.mux(stream.encode(None))
    result = detector.check(path)
    assert result.verdict == "likely real" and len(result.tracks) == 1
    assert "stream 1 was checked" in " ".join(result.notes)
    assert "not checked" not in " ".join(result.notes)
    detector.write_marked_copy(result, tmp_path / "marked.mp4")
    with av.open(str(tmp_path / "marked.mp4")) as container:
        first = next(container.decode(video=0)).to_ndarray(format="bgr24")
    assert np.abs(first[110:330, 210:430].astype(int) - 90).mean() > 20  # not the grey stream


# HDR


@pytest.mark.parametrize("person", [PERSON, (*PERSON, True)])
def test_an_hdr_video_is_undecided_with_the_reason(
    detector: Detector, tmp_path: Path, person: tuple
) -> None:
    path = tmp_path / "hdr.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 5, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p10le"
        stream.codec_context.color_trc, stream.codec_context.color_primaries = 16, 9
        stream.codec_context.colorspace = 9
        for at in range(10):
            picture = av.VideoFrame.from_ndarray(frame(person), "bgr24")
            picture = picture.reformat(format="yuv420p10le", dst_colorspace="bt2020")
            picture.pts, picture.time_base = at, Fraction(1, 5)
            picture.color_trc, picture.color_primaries = 16, 9
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    result = detector.check(path)
    assert (result.verdict, "HDR" in result.reason) == ("undecided", True)
    assert "HDR" in " ".join(result.notes)


@pytest.mark.parametrize("form", ["AVIF", "PNG"])
def test_an_hdr_picture_is_undecided_with_the_reason(detector: Detector, form: str) -> None:
    data, chunks = io.BytesIO(), PIL.PngImagePlugin.PngInfo()
    chunks.add(b"cICP", bytes((9, 16, 0, 1)))
    options = {"pnginfo": chunks} if form == "PNG" else {}
    PIL.Image.fromarray(frame(PERSON)[..., ::-1]).save(data, form, **options)
    content = data.getvalue().replace(b"colrnclx\0\x01\0\x0d", b"colrnclx\0\x09\0\x10")
    result = detector.check(content)
    assert (result.verdict, "HDR" in result.reason) == ("undecided", True)
    assert "HDR" in " ".join(result.notes)


# Missing content


@pytest.mark.long
@pytest.mark.parametrize(("kept", "verdict"), [(0.3, "undecided"), (0.9, "likely real")])
def test_truncated_video_has_a_note(
    detector: Detector, tmp_path: Path, kept: float, verdict: str
) -> None:
    noise = np.random.default_rng(0)
    shots = [frame(PERSON) for _ in range(60)]
    for shot in shots:  # large enough that the cut is inside the frames
        shot[:60] = noise.integers(0, 255, (60, *shot.shape[1:]))
    clip = write_clip(tmp_path / "whole.mp4", shots, 0.25)
    assert detector.check(clip).notes == ()
    data = clip.read_bytes()
    result = detector.check(data[: round(kept * len(data))])
    assert result.verdict == verdict and "of the 60 frames" in " ".join(result.notes)


# Limits


def test_frame_with_too_many_pixels_is_rejected(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "large.mp4", [frame(PERSON)] * 6)
    limited = Detector(settings=DetectionSettings(most_pixels=640 * 480 - 1))
    with pytest.raises(ValueError, match="pixels"):
        limited.check(clip)


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited as on Linux")
def test_large_frames_are_checked_in_limited_memory(tmp_path: Path) -> None:
    """Twelve frames of 9 million pixels, 27 MB each; one at a time, the peak is about 410 MB."""
    big = cv2.resize(frame(PERSON), (3600, 2500), interpolation=cv2.INTER_NEAREST)
    clip = write_clip(tmp_path / "big.avi", [big] * 12, 0.5, codec="mjpeg")
    program = (
        "import re, pathlib\nfrom deepfake_detect import Detector\n"
        f"print(Detector().check({str(clip)!r}).frames_scored)\n"
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]) // 1024)"
    )
    command = [sys.executable, "-c", program]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    frames, memory = map(int, done.stdout.split())
    assert frames == 12 and memory < 600


def test_grey_pictures_and_alpha_are_read(shipped: Detector) -> None:
    image = frame(PERSON, side=320)
    grey = encode(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))
    clear = encode(cv2.cvtColor(image, cv2.COLOR_BGR2BGRA))
    deep = cv2.imencode(".png", image.astype(np.uint16) * 257)[1].tobytes()
    assert [len(shipped.check(data).faces) for data in (grey, clear, deep)] == [1, 1, 1]
