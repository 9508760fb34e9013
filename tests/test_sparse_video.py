"""Sampled decoding: the frames that OpenCV decodes of an H.264 video, for half of the work."""

import importlib
import subprocess
import tempfile
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deepfake_detect import sparse_video

convert = importlib.import_module("01-convert-video-to-image")

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
DRAWN = ["-f", "lavfi", "-i", "testsrc2=size=162x120:rate=25:duration=2.4,noise=alls=20:allf=t"]
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
SUFFIXES = st.sampled_from((".mp4", ".mov", ".mkv", ".avi"))


def write_h264(path: Path, coding: dict[str, str]) -> Path:
    options = [text for option in coding.items() for text in option]
    command = [FFMPEG, "-y", "-v", "error", *DRAWN, "-fps_mode", "vfr"]
    subprocess.run([*command, "-c:v", "libx264", *options, str(path)], check=True)
    return path


def assert_same(path: Path, rate: float, pixels: bool = True) -> None:
    """It yields what 01 yields, and the frames are the same to the last bit."""
    wanted = list(convert.read_frames(convert.open_video(path), rate, None))
    found = list(sparse_video.read_sampled(path, rate))
    assert [(index, kept) for index, _, kept, _ in found] == [
        (index, kept) for index, _, kept, _ in wanted
    ]
    seconds = [[seconds for _, seconds, *_ in rows] for rows in (wanted, found)]
    assert np.allclose(*seconds, atol=1e-6)
    for (*_, frame), (*_, other) in zip(wanted, found, strict=True):
        assert (frame is None) == (other is None)
        assert frame is None or not pixels or np.array_equal(frame, other)


@given(CODING, SUFFIXES, st.sampled_from((0.5, 2.0, 5.0, 30.0)), st.booleans())
@settings(max_examples=25)
def test_it_yields_what_01_yields(
    coding: dict[str, str], suffix: str, rate: float, is_piece: bool
) -> None:
    """A piece begins between two frames that stand alone, and says where it is to be shown from."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_h264(Path(folder) / f"a{suffix}", coding)
        if is_piece:
            whole, path = path, path.with_stem("piece")
            command = [FFMPEG, "-v", "error", "-ss", "0.5", "-i", whole, "-c", "copy", path]
            subprocess.run(list(map(str, command)), check=True)
        assert_same(path, rate)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    coding = {"-g": "30", "-pix_fmt": "yuv420p", "-bf": "3"}
    return write_h264(tmp_path_factory.mktemp("sparse") / "clip.mkv", coding)


def test_frames_that_no_other_needs_are_not_decoded(clip: Path, tmp_path: Path) -> None:
    """Whatever stands in them: nal_ref_idc, 2 bits of the first byte after the size, is 0."""
    rows = list(sparse_video.read_sparsely(clip, 2.0))
    content, spoilt, hurt = clip.read_bytes(), clip.read_bytes(), 0
    with av.open(str(clip)) as container:
        packets = {p.pts: bytes(p) for p in container.demux(video=0) if p.size}
    for index, stamp in enumerate(sorted(packets)):
        packet = packets[stamp]
        if packet[4] >> 5 == 0 and not rows[index][2]:
            spoilt = spoilt.replace(packet[5:], b"\xff" * len(packet[5:]))
            hurt += 1
    assert hurt > 20 and content != spoilt
    path = tmp_path / "spoilt.mkv"
    path.write_bytes(spoilt)
    found = list(sparse_video.read_sparsely(path, 2.0))
    assert len(found) == len(rows) == 60
    for (*row, frame), (*other, same) in zip(rows, found, strict=True):
        assert row == other and (frame is None or np.array_equal(frame, same))


@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=9), st.booleans())
@example(335798, b"\0\0", False)  # the size of a part, in a frame that is not decoded
@settings(max_examples=25)
def test_a_damaged_video_is_read_as_01_reads_it(
    clip: Path, at: int, bytes_there: bytes, cut_off: bool
) -> None:
    """But for what either makes up for damage; the header, which gives the times, is whole."""
    content = bytearray(clip.read_bytes())
    at = 2000 + at % (len(content) - 2000)
    content[at : at + len(bytes_there)] = bytes_there
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mkv"
        path.write_bytes(content[:at] if cut_off else content)
        try:
            convert.open_video(path)
        except ValueError:
            with pytest.raises(ValueError, match="does not open as a video"):
                list(sparse_video.read_sampled(path, 2.0))
        else:
            assert_same(path, 2.0, pixels=False)
