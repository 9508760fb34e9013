"""Tests of video.py: frames as displayed, their times, sampling, and missing frames."""

import io
import itertools
import random
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import imageio_ffmpeg
import numpy as np
import pytest
from conftest import write_video
from faults import jpeg, write_avi
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deepfake_detect import display
from deepfake_detect.packets import find_parts
from deepfake_detect.sampling import Clock, choose_by_rate, choose_by_time
from deepfake_detect.video import Video

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
DRAWN = "-f", "lavfi", "-i", "testsrc2=size=160x120:rate=25:duration=2"


def ffmpeg(*arguments: object) -> None:
    command = [FFMPEG, "-y", "-v", "error", "-nostdin", *map(str, arguments)]
    subprocess.run(command, check=True)


def draw(count: int, size: tuple[int, int] = (160, 120), seed: int = 0) -> list[np.ndarray]:
    """Yield frames of moving smooth noise, BGR uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    whole = cv2.resize(coarse, (size[0] + count, size[1]), interpolation=cv2.INTER_CUBIC)
    return [whole[:, shift : shift + size[0]].copy() for shift in range(count)]


def encode(
    path: Path, frames: list[np.ndarray], options: dict[str, str] | None = None, **context: object
) -> Path:
    """Write H.264 of similar frames at 25 frames per second; `context` configures the encoder."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", 25, options={"crf": "4", **(options or {})})
        height, width = frames[0].shape[:2]
        stream.width, stream.height = width, height
        stream.pix_fmt = str(context.pop("pix_fmt", "yuv420p"))
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        for image in frames:
            form = "bgr24" if image.dtype == np.uint8 else "bgr48le"
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, form)))
        file.mux(stream.encode(None))
    return path


def assert_alike(found: list, wanted: list[np.ndarray], most: float = 3) -> None:
    """Check that the frames are equal in number, and equal except for compression."""
    assert len(found) == len(wanted)
    for frame, image in zip(found, wanted, strict=True):
        assert frame.image.shape == image.shape
        assert np.abs(frame.image.astype(int) - image).mean() < most, frame.index


# --- Sampling -------------------------------------------------------------------------------------

CODING = st.fixed_dictionaries(
    {
        "-bf": st.sampled_from(("0", "1", "3", "5")),
        "-g": st.sampled_from(("1", "5", "12", "60")),
        "-pix_fmt": st.sampled_from(("yuv420p", "yuv444p", "yuvj420p")),
        "-preset": st.sampled_from(("ultrafast", "fast")),
        "-colorspace": st.sampled_from(("bt709", "smpte170m", "bt2020nc")),
        "-x264-params": st.sampled_from(
            ("ref=1", "open-gop=1", "b-pyramid=none", "b-pyramid=strict", "intra-refresh=1")
        ),
        "-vf": st.sampled_from(
            ("null", "fps=7", "select='mod(n,3)'", "setpts=PTS*2.3", "setpts=PTS+sin(N)*0.01/TB")
        ),
    }
)
SUFFIXES = st.sampled_from((".mp4", ".mov", ".mkv", ".avi", ".ts"))


def write_h264(path: Path, coding: dict[str, str]) -> Path:
    noise = "testsrc2=size=162x120:rate=25:duration=2.4,noise=alls=20:allf=t"
    options = [text for option in coding.items() for text in option]
    ffmpeg("-f", "lavfi", "-i", noise, "-fps_mode", "vfr", "-c:v", "libx264", *options, path)
    return path


def assert_same(path: Path, rate: float) -> None:
    """Check that sampled frames are identical to frames of a full read."""
    video = Video(path)
    wanted = choose_by_rate(rate)
    whole = [frame for frame in video.frames() if wanted(frame.index, frame.seconds)]
    seen = video.seen_frames
    found = list(video.sampled(rate))
    assert [frame.index for frame in found] == [frame.index for frame in whole]
    assert np.allclose(*([frame.seconds for frame in each] for each in (found, whole)))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(found, whole, strict=True))
    assert video.seen_frames == seen <= video.count_frames()  # some may not be decodable
    for some in (whole[-1:], whole[:1], whole[1::4]):  # parts without these are left out now
        times = [frame.seconds for frame in some]
        again = list(video.sampled(times=times)) if times else []
        assert [frame.index for frame in again] == [frame.index for frame in some]
        assert all(np.array_equal(a.image, b.image) for a, b in zip(again, some, strict=True))


@given(CODING, SUFFIXES, st.sampled_from((0.5, 2.0, 5.0, 30.0)), st.booleans())
@settings(max_examples=20)
def test_sampled_frames_equal_those_of_a_full_read(
    coding: dict[str, str], suffix: str, rate: float, is_piece: bool
) -> None:
    """A piece starts between two key frames, with an edit list for its first visible frame."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_h264(Path(folder) / f"a{suffix}", coding)
        if is_piece and suffix != ".ts":
            whole, path = path, path.with_stem("piece")
            ffmpeg("-ss", 0.5, "-i", whole, "-c", "copy", path)
        assert_same(path, rate)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    coding = {"-g": "30", "-pix_fmt": "yuv420p", "-bf": "3"}
    return write_h264(tmp_path_factory.mktemp("video") / "clip.mkv", coding)


def test_non_reference_frames_are_not_decoded(clip: Path, tmp_path: Path) -> None:
    """Their nal_ref_idc, 2 bits of the first byte after the size, is 0; the content is damaged."""
    kept = list(Video(clip).sampled(2.0))
    indices = {frame.index for frame in kept}
    content, spoilt, hurt = clip.read_bytes(), clip.read_bytes(), 0
    with av.open(str(clip)) as container:
        packets = {p.pts: bytes(p) for p in container.demux(video=0) if p.size}
    for index, stamp in enumerate(sorted(packets)):
        packet = packets[stamp]
        if packet[4] >> 5 == 0 and index not in indices:
            spoilt = spoilt.replace(packet[5:], b"\xff" * len(packet[5:]))
            hurt += 1
    assert hurt > 20 and content != spoilt
    found = list(Video(spoilt).sampled(2.0))
    assert len(found) == len(kept) == 5
    assert all(np.array_equal(a.image, b.image) for a, b in zip(found, kept, strict=True))


def test_later_passes_leave_out_parts_without_a_chosen_frame(tmp_path: Path) -> None:
    """The frames up to the second last key frame are damaged after the first pass."""
    path = write_h264(tmp_path / "a.mkv", {"-g": "12", "-bf": "3", "-pix_fmt": "yuv420p"})
    content = path.read_bytes()
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        keys = [packet.pts for packet in packets if packet.is_keyframe]
        hurt = [bytes(packet) for packet in packets if packet.pts < keys[-2]]
    video = Video(content)
    last = list(video.sampled(2.0))[-1]
    for packet in hurt:
        content = content.replace(packet[5:], b"\xff" * len(packet[5:]))
    video.source = content
    (found,) = video.sampled(times=[last.seconds])
    assert len(hurt) > 20 and not video.lost_frames
    assert found.index == last.index and np.array_equal(found.image, last.image)


def test_parts_start_only_at_key_frames_without_earlier_frames_after_them() -> None:
    closed = [(0, True), (1, False), (2, True), (3, False), (4, False)]
    assert find_parts(closed, {3}) == [False, False, True, True, False]
    leading = [(0, True), (2, False), (1, False), (5, True), (3, False), (4, False), (6, False)]
    assert find_parts(leading, {3}) == [True] * 5 + [False] * 2  # frame 3 needs frame 2


@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=9), st.booleans())
@example(335798, b"\0\0", False)
@settings(max_examples=30)
def test_damage_loses_only_its_frames(
    clip: Path, at: int, bytes_there: bytes, cut_off: bool
) -> None:
    content = bytearray(clip.read_bytes())
    at %= len(content)
    content[at : at + len(bytes_there)] = bytes_there
    for sampled in (False, True):
        try:
            video = Video(bytes(content[:at] if cut_off else content))
            frames = list(video.sampled(2.0) if sampled else video.frames())
        except ValueError:
            continue
        seconds = [frame.seconds for frame in frames]
        assert all(a < b for a, b in itertools.pairwise(seconds))
        assert all(frame.image.shape == (120, 162, 3) for frame in frames)


@given(
    st.lists(st.floats(0.001, 3), max_size=60),
    st.floats(0.1, 50),
)
def test_frames_are_chosen_evenly_in_time(steps: list[float], rate: float) -> None:
    times = np.cumsum([0.0, *steps])
    wanted = choose_by_rate(rate)
    chosen = [seconds for index, seconds in enumerate(times) if wanted(index, seconds)]
    assert chosen[0] == 0
    slots = [int(seconds * rate + 1e-6) for seconds in chosen]
    assert len(set(slots)) == len(slots) == len({int(t * rate + 1e-6) for t in times})


@given(st.lists(st.floats(0, 20), max_size=20), st.lists(st.floats(0.001, 3), max_size=30))
def test_each_time_selects_the_first_frame_not_earlier(
    asked: list[float], steps: list[float]
) -> None:
    times = np.cumsum([0.0, *steps]).tolist()
    wanted = choose_by_time(asked)
    chosen = [seconds for index, seconds in enumerate(times) if wanted(index, seconds)]
    later = ([at for at in times if at >= time - 1e-6] for time in asked)
    assert chosen == sorted({after[0] for after in later if after})


# --- Times ----------------------------------------------------------------------------------------


@given(st.lists(st.none() | st.floats(-1e7, 1e7) | st.floats(0, 100), max_size=50))
def test_times_always_increase(stamps: list[float | None]) -> None:
    clock = Clock()
    seconds = [clock.read(stamp) for stamp in stamps]
    assert all(a < b for a, b in zip([-1, *seconds], seconds, strict=False))
    assert not seconds or seconds[0] == 0


def test_varying_and_late_times_are_kept(tmp_path: Path) -> None:
    every_third = "-vf", "select='lt(n,5)+not(mod(n,3))'", "-fps_mode", "vfr"
    ffmpeg("-itsoffset", 1000, *DRAWN, *every_third, "-copyts", tmp_path / "a.mkv")
    seconds = [frame.seconds for frame in Video(tmp_path / "a.mkv").frames()]
    wanted = [n / 25 for n in range(50) if n < 5 or n % 3 == 0]
    assert np.allclose(seconds, wanted, atol=0.002)
    assert np.allclose(Video(tmp_path / "a.mkv").list_times(), wanted, atol=0.002)


# --- Display --------------------------------------------------------------------------------------


def test_frames_are_deinterlaced_individually(tmp_path: Path) -> None:
    """The first half is progressive, the second half interlaced; both must stay sharp."""
    frames = draw(20)
    fields = [
        np.where(np.arange(120)[:, None, None] % 2, after, image)
        for image, after in zip(frames[10:], [*frames[11:], frames[-1]], strict=True)
    ]
    parts = tmp_path / "a.ts", tmp_path / "b.ts"
    encode(parts[0], frames[:10])
    encode(parts[1], fields, {"x264-params": "tff=1", "flags": "+ildct+ilme"})
    (tmp_path / "c.ts").write_bytes(parts[0].read_bytes() + parts[1].read_bytes())
    found = list(Video(tmp_path / "c.ts").frames())
    plain = list(Video(parts[0]).frames())
    assert len(plain) == 10 and len(found) == 20
    assert all(np.array_equal(a.image, b.image) for a, b in zip(found, plain, strict=False))
    combed = list(Video(parts[1]).raw_frames())
    assert all(raw.picture.interlaced_frame for raw in av_frames(parts[1]))
    assert_alike(found[10:], frames[10:], 8)
    assert len(combed) == 10


def av_frames(path: Path) -> Iterator:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield type("Raw", (), {"picture": frame})


def test_frames_of_different_sizes_keep_their_size(tmp_path: Path) -> None:
    sizes = [(64, 48), (320, 240), (20, 20), (1200, 100)]
    path = write_avi(tmp_path / "a.avi", [jpeg(size) for size in sizes])
    assert [frame.image.shape[1::-1] for frame in Video(path).frames()] == sizes


@pytest.mark.parametrize(
    ("ratio", "suffix", "width"),
    [("2/1", "mp4", 320), ("2/1", "mkv", 320), ("1/2", "mp4", 80), ("200/1", "mp4", 160)],
)
def test_non_square_pixels_are_stretched(
    ratio: str, suffix: str, width: int, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{suffix}"
    ffmpeg(*DRAWN, "-vf", f"setsar={ratio}", "-frames:v", 3, path)
    video = Video(path)
    assert (video.width, video.height) == (width, 120)
    assert all(frame.image.shape == (120, width, 3) for frame in video.frames())


@given(st.sampled_from((0, 90, 180, 270)), st.booleans())
def test_frames_are_rotated_and_mirrored_by_the_display_matrix(angle: int, mirror: bool) -> None:
    """In FFmpeg, x' = a x + c y and y' = b x + d y, in 16.16 fixed point."""
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    cos, sin = round(np.cos(np.radians(angle))), round(np.sin(np.radians(angle)))
    sign = -1 if mirror else 1
    matrix = [sign * cos, sin, 0, -sign * sin, cos, 0, 0, 0, 1]
    turned = np.rot90(image, -angle // 90)
    wanted = np.rot90(image[:, ::-1] if mirror else image, -angle // 90) if mirror else turned
    matrix = [sign * cos, sign * sin, 0, -sin, cos, 0, 0, 0, 1]
    found = display.turn(image, 65536 * np.array(matrix, np.int32))
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize(
    ("numbers", "shown"),
    [
        ((100, 1, 80, 1, 0, 1, 0, 1), np.s_[20:100, 30:130]),
        ((100, 1, 160, 2, 20, 2, -5, 1), np.s_[15:95, 40:140]),
        ((1000, 1, 80, 1, 0, 1, 0, 1), np.s_[:, :]),
        ((100, 0, 80, 1, 0, 1, 0, 1), np.s_[:, :]),
    ],
)
def test_frames_are_cropped_to_the_clean_aperture(
    numbers: tuple, shown: tuple, tmp_path: Path
) -> None:
    path = encode(tmp_path / "a.mp4", draw(3))
    content = bytearray(path.read_bytes())
    box = b"\0\0\0\x28clap" + struct.pack(">IIIIiIiI", *numbers)
    at = content.index(b"moov")
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        at = content.index(name, at)
        size = int.from_bytes(content[at - 4 : at])
        content[at - 4 : at] = (size + len(box)).to_bytes(4)
    content[at - 4 + size : at - 4 + size] = box
    found = list(Video(bytes(content)).frames())
    assert len(found) == 3
    for frame, whole in zip(found, Video(path).frames(), strict=True):
        assert np.array_equal(frame.image, whole.image[shown])


@pytest.mark.parametrize("turned", [("90",), ("180",), ("0", "-display_vflip")])
def test_rotated_video_is_shown_upright(turned: tuple[str, ...], tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", draw(3))
    flip = turned[1:]
    ffmpeg(
        "-display_rotation",
        turned[0],
        *flip,
        "-i",
        tmp_path / "a.mp4",
        "-c",
        "copy",
        tmp_path / "b.mp4",
    )
    plain = [frame.image for frame in Video(tmp_path / "a.mp4").frames()]
    found = [frame.image for frame in Video(tmp_path / "b.mp4").frames()]
    wanted = [image[::-1] if flip else np.rot90(image, int(turned[0]) // 90) for image in plain]
    assert len(found) == 3
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def to_pq(image: np.ndarray, white: float = 203) -> np.ndarray:
    """Convert SDR video, BGR uint8, to BT.709 light in PQ, uint16."""
    light = (image / 255) ** 2.4 * white / 10_000
    power = light ** (2610 / 16384)
    pq = (0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)
    return np.round(65535 * pq ** (2523 / 32)).astype(np.uint16)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_hdr_of_sdr_brightness_equals_the_sdr_picture(seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    found = display.map_to_sdr(to_pq(image), primaries=1).astype(int)
    below = image < 225  # brighter values are compressed
    assert np.abs(found - image)[below].max() <= 2
    assert (found[~below] >= 220).all()
    brighter = display.map_to_sdr(to_pq(image, white=1000), primaries=1).astype(int)
    assert (brighter >= found - 1).all() and brighter.max() <= 255


def test_wide_colours_are_converted_to_bt709() -> None:
    """Check red of BT.709 in BT.2020 (ITU-R BT.2087), and grey, which does not change."""
    red = np.array([[[0.0163916, 0.0690973, 0.6274039]]]) ** (1 / 2.4) * 255
    grey = np.full((1, 1, 3), 120.0)
    for image, wanted in ((red, (0, 0, 246)), (grey, (120, 120, 120))):
        found = display.map_to_sdr(to_pq(image), primaries=9)[0, 0].astype(int)
        assert np.abs(found - wanted).max() <= 4


def test_hdr10_video_looks_like_the_sdr_video(tmp_path: Path) -> None:
    frames = [image // 2 + 40 for image in draw(5)]
    options = {"colorprim": "bt709", "transfer": "smpte2084", "colormatrix": "bt709"}
    params = ":".join(f"{name}={value}" for name, value in options.items())
    path = encode(
        tmp_path / "hdr.mp4",
        [to_pq(image) for image in frames],
        {"x264-params": params},
        pix_fmt="yuv420p10le",
        color_trc=16,
        color_primaries=1,
        colorspace=1,
    )
    video = Video(path)
    found = list(video.frames())
    assert ["HDR" in note for note in video.notes] == [True]
    for frame, image in zip(found, frames, strict=True):
        means = frame.image.mean(axis=(0, 1)) - image.mean(axis=(0, 1))
        assert np.abs(means).max() < 6
    unsaid = tmp_path / "unsaid.mp4"  # only the container says it
    ffmpeg("-i", path, "-c", "copy", "-bsf:v", "h264_metadata=transfer_characteristics=2", unsaid)
    assert np.array_equal(next(Video(unsaid).frames()).image, found[0].image)
    with av.open(str(path)) as container:  # the stored values are very different
        plain = next(container.decode(video=0)).to_ndarray(format="bgr24")
    assert np.abs(plain.mean(axis=(0, 1)) - frames[0].mean(axis=(0, 1))).max() > 10


# --- Sources and streams --------------------------------------------------------------------------


def test_bytes_and_file_objects_are_read_like_files(clip: Path) -> None:
    wanted = [(frame.seconds, frame.image.sum()) for frame in Video(clip).sampled(5)]
    with clip.open("rb") as file:
        for source in (clip.read_bytes(), io.BytesIO(clip.read_bytes()), file):
            video = Video(source)
            assert [(f.seconds, f.image.sum()) for f in video.sampled(5)] == wanted
            assert video.file_size() == clip.stat().st_size
        # Two readers of one file object are independent.
        pair = zip(Video(file).frames(), Video(file).frames(), strict=True)
        assert sum(np.array_equal(a.image, b.image) for a, b in pair) == 60


def test_folder_of_stills_is_a_video(tmp_path: Path) -> None:
    images = draw(4)
    for number, image in enumerate(images):
        cv2.imwrite(str(tmp_path / f"{number:03d}.png"), image)
    (tmp_path / "002.png").write_bytes(b"no picture")
    (tmp_path / ".DS_Store").write_bytes(b"")
    video = Video(tmp_path)
    found = list(video.frames())
    assert [frame.seconds for frame in found] == [0, 0.04, 0.08, 0.12]
    assert [frame.image is None for frame in found] == [False, False, True, False]
    assert np.array_equal(found[3].image, images[3])
    assert video.lost_frames == 1 and "1 damaged" in video.missing()
    assert [frame.index for frame in video.sampled(12.5)] == [0, 2]


def test_every_video_stream_is_listed_and_readable(tmp_path: Path) -> None:
    first, second, cover = tmp_path / "1.mp4", tmp_path / "2.mp4", tmp_path / "cover.png"
    encode(first, [np.full((120, 160, 3), 90, np.uint8)] * 5)
    encode(second, draw(7, (80, 60)))
    cv2.imwrite(str(cover), draw(1)[0])
    path = tmp_path / "both.mkv"
    inputs = [text for one in (cover, first, second) for text in ("-i", one)]
    maps = "-map", 0, "-map", 1, "-map", 2
    ffmpeg(*inputs, *maps, "-c", "copy", path)
    video = Video(path)
    assert [one.codec for one in video.streams] == ["png", "h264", "h264"]
    assert video.stream == 1 and len(list(video.frames())) == 5
    assert ["stream 2" in note for note in video.notes] == [False, True]
    other = Video(path, stream=2)
    assert (other.width, other.height, len(list(other.frames()))) == (80, 60, 7)
    with pytest.raises(ValueError, match="stream 3"):
        Video(path, stream=3)


@pytest.mark.parametrize("content", [b"", b"not a video", b"ffconcat version 1.0\nfile a.mp4\n"])
def test_non_video_is_rejected(content: bytes, tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", draw(2))
    (tmp_path / "list.mp4").write_bytes(content)
    for source in (tmp_path / "list.mp4", content):
        with pytest.raises(ValueError, match="does not open"):
            Video(source)
    with pytest.raises(FileNotFoundError):
        Video(tmp_path / "gone.mp4")


def test_pixels_per_frame_are_limited(tmp_path: Path) -> None:
    """Larger frames are not decoded; 16,000 x 16,000 pixels would need a gigabyte per frame."""
    path = write_avi(tmp_path / "a.avi", [jpeg((1600, 1200))] * 2, (1600, 1200))
    assert len(list(Video(path).frames())) == 2
    with pytest.raises(ValueError, match="1,000,000 pixels"):
        list(Video(path, most_pixels=1_000_000).frames())


# --- Missing frames -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    ffmpeg(*DRAWN, "-g", 25, "-movflags", "faststart", path)
    return path


def read(source: Path | bytes, sampled: bool) -> Video:
    video = Video(source)
    for _ in video.sampled(5) if sampled else video.frames():
        pass
    return video


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "flv"])
def test_cut_off_video_is_reported(
    sampled: bool, suffix: str, long_clip: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{suffix}"
    ffmpeg("-i", long_clip, "-c", "copy", "-movflags", "faststart", path)
    assert read(path, sampled).missing() == ""
    whole = path.read_bytes()
    video = read(whole[: len(whole) * 6 // 10], sampled)
    assert 0 < video.seen_frames < 45
    claimed = "2.0 seconds" if suffix == "avi" else f"{video.seen_frames} of the 50 frames"
    assert claimed in video.missing()


@pytest.mark.parametrize("sampled", [False, True])
def test_damaged_frames_are_counted(sampled: bool, long_clip: Path) -> None:
    content = bytearray(long_clip.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    video = read(bytes(content), sampled)
    assert video.lost_frames > 0
    assert f"{video.lost_frames} damaged" in video.missing()


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("suffix", ["mkv", "ts", "mp4"])
def test_frames_after_a_damaged_place_are_left_out(
    suffix: str, sampled: bool, tmp_path: Path
) -> None:
    """FFmpeg would draw them with parts of frames before the damage, until the next key frame."""
    path = tmp_path / f"a.{suffix}"
    ffmpeg(*DRAWN, "-g", 10, "-bf", 0, path)
    whole = {round(frame.seconds, 2): frame.image for frame in Video(path).frames()}
    assert len(whole) == 50
    content = bytearray(path.read_bytes())
    first, last = len(content) * 2 // 5, len(content) * 3 // 5
    content[first:last] = bytes(last - first)
    video = Video(bytes(content))
    found = list(video.sampled(12.5) if sampled else video.frames())
    assert video.missing() and len(found) < (25 if sampled else 50)
    assert max(frame.seconds for frame in found) > 1.8
    assert all(np.array_equal(frame.image, whole[round(frame.seconds, 2)]) for frame in found)


def test_video_without_an_intact_key_frame_has_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    ffmpeg(*DRAWN, "-g", 100, "-bf", 0, path)
    content = bytearray(path.read_bytes())
    content[3000:4000] = bytes(1000)  # in the only key frame
    with pytest.raises(ValueError, match="damaged"):
        list(Video(bytes(content)).frames())


@pytest.mark.parametrize("sampled", [False, True])
def test_pieces_late_and_varying_videos_are_complete(
    sampled: bool, long_clip: Path, tmp_path: Path
) -> None:
    copy = "-c", "copy"
    sound = "-f", "lavfi", "-i", "sine=duration=4"
    ffmpeg("-ss", 1.5, "-i", long_clip, *copy, tmp_path / "piece.mp4")
    ffmpeg("-ss", 0.5, "-i", long_clip, *copy, tmp_path / "piece.mkv")
    ffmpeg("-itsoffset", 90_000, "-i", long_clip, *copy, tmp_path / "late.mkv")
    ffmpeg("-i", long_clip, *sound, "-c:v", "copy", tmp_path / "longer-sound.mkv")
    ffmpeg("-i", long_clip, *sound, "-c:v", "copy", tmp_path / "longer-sound.mp4")
    some = "-vf", "select='not(mod(n,7))'", "-fps_mode", "vfr"
    ffmpeg("-i", long_clip, *some, tmp_path / "few.mkv")
    freeze = "-vf", "setpts=PTS+gte(N\\,20)*2/TB", "-fps_mode", "vfr"
    ffmpeg("-i", long_clip, *sound, *freeze, tmp_path / "freeze.mkv")
    ffmpeg("-i", long_clip, *sound, *freeze, tmp_path / "freeze.ts")
    ffmpeg("-i", long_clip, "-bf", 0, "-output_ts_offset", 95_442.5, tmp_path / "wrapped.ts")
    ffmpeg("-i", long_clip, *copy, "-movflags", "frag_keyframe+empty_moov", tmp_path / "parts.mp4")
    assert len(list(tmp_path.iterdir())) == 10
    for path in tmp_path.iterdir():
        video = read(path, sampled)
        assert (path.name, video.missing(), video.lost_frames) == (path.name, "", 0)


def test_many_threads_read_at_once(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=20)
    counts: list[int] = []
    threads = [
        threading.Thread(target=lambda: counts.append(len(list(Video(path).frames()))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [20] * 8


def test_flipped_bytes_give_frames_or_a_reason(tmp_path: Path) -> None:
    drawn = random.Random(0)
    for suffix in ("mp4", "mkv", "avi", "ts", "mpg", "flv", "wmv"):
        ffmpeg(*DRAWN, "-frames:v", 10, tmp_path / f"a.{suffix}")
        whole = (tmp_path / f"a.{suffix}").read_bytes()
        for _ in range(6):
            flipped = bytearray(whole)
            for _ in range(40):
                flipped[drawn.randrange(len(whole))] ^= drawn.randrange(1, 256)
            try:
                video = read(bytes(flipped), sampled=False)
                assert isinstance(video.missing(), str)
            except ValueError as error:
                assert str(error)
