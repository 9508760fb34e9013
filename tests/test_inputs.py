"""Tests of inputs.py and kinds.py: kinds of files, folders, pictures and output names."""

import io
import itertools
import os
import re
import struct
import subprocess
import unicodedata
from pathlib import Path

import av
import cv2
import imageio_ffmpeg
import numpy as np
import PIL.Image
import pillow_heif
import pytest
from conftest import write_video
from faults import skip_as_root
from hypothesis import given
from hypothesis import strategies as st

from deepfake_detect import files
from deepfake_detect.inputs import find_inputs, name_outputs, read_ahead, read_picture
from deepfake_detect.kinds import kind_of
from deepfake_detect.video import Video

pillow_heif.register_heif_opener()
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
PICTURES = ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF", "HEIF", "MPO"]
VIDEOS = {
    **dict.fromkeys(("mp4", "mov", "m4v", "mkv", "avi", "ts", "m2ts", "flv"), ()),
    **{"3gp": ("-s", "176x144"), "webm": ("-c:v", "libvpx"), "mpg": (), "vob": (), "wmv": ()},
    **{"asf": (), "ogv": ("-q:v", "7")},
}


def draw(size: tuple[int, int] = (160, 120), seed: int = 0) -> np.ndarray:
    """Return a picture of smooth noise, BGR uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)


def encode(form: str, image: np.ndarray, **options: object) -> bytes:
    """Encode a picture with Pillow."""
    target = io.BytesIO()
    PIL.Image.fromarray(image[..., ::-1]).save(target, form, **options)
    return target.getvalue()


def ffmpeg(*arguments: object) -> None:
    command = [FFMPEG, "-y", "-v", "error", "-nostdin", *map(str, arguments)]
    subprocess.run(command, check=True)


# --- Kinds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", PICTURES)
@pytest.mark.parametrize("size", [(160, 120), (90, 200)])
def test_pictures_are_read_regardless_of_name(
    form: str, size: tuple[int, int], tmp_path: Path
) -> None:
    image = draw(size)
    more = [PIL.Image.fromarray(draw(size, seed=1))] if form in ("MPO", "GIF", "TIFF") else []
    content = encode(form, image, **({"save_all": True, "append_images": more} if more else {}))
    notes: list[str] = []
    for name in ("a.jfif", "a.mp4", "a"):
        (tmp_path / name).write_bytes(content)
        assert kind_of(tmp_path / name).name == "picture"
        found = read_picture(tmp_path / name, notes=notes)
        assert found.shape == image.shape and found.dtype == np.uint8
        assert np.abs(found.astype(int) - image).mean() < (20 if form == "GIF" else 6)
    assert len(notes) == (3 if form in ("GIF", "TIFF") else 0)
    assert all("2 pictures" in note for note in notes)
    assert np.array_equal(read_picture(content), found)
    assert np.array_equal(read_picture(io.BytesIO(content)), found)


@pytest.mark.parametrize("suffix", VIDEOS)
@pytest.mark.parametrize("drawing", ["testsrc", "mandelbrot"])
def test_videos_are_read_regardless_of_name(suffix: str, drawing: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    source = "-f", "lavfi", "-i", f"{drawing}=size=160x120:rate=25"
    ffmpeg(*source, "-frames:v", 12, *VIDEOS[suffix], path)
    path.rename(tmp_path / "b.jpg")
    assert kind_of(tmp_path / "b.jpg").name == "video"
    assert kind_of((tmp_path / "b.jpg").read_bytes()).name == "video"
    video = Video(tmp_path / "b.jpg")
    assert len(list(video.frames())) == 12 and video.missing() == ""


@pytest.mark.parametrize("form", ["AVIF", "HEIF"])
@pytest.mark.parametrize("brand", [b"miaf", b"mif2", b"MiHE"])
def test_photo_with_another_major_brand_is_a_picture(form: str, brand: bytes) -> None:
    """FFmpeg would open it as a video of one frame, or of one tile."""
    image = draw((160, 120))
    content = bytearray(encode(form, image))
    content[8:12] = brand
    assert kind_of(bytes(content)).name == "picture"
    assert np.abs(read_picture(bytes(content)).astype(int) - image).mean() < 6


@pytest.mark.parametrize("start", [1, 100, 187])
def test_transport_stream_may_start_in_a_packet(start: int, tmp_path: Path) -> None:
    path = tmp_path / "a.ts"
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=160x120:rate=25", "-frames:v", 12, path)
    content = path.read_bytes()[start:]
    assert kind_of(content).name == "video"
    assert len(list(Video(content).frames())) == 12


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"%PDF-1.7", "PDF"),
        (b"PK\x03\x04", "ZIP"),
        (b"<?xml version='1.0'?><svg/>", "SVG"),
        (b"ID3\x03", "MP3"),
        (b"a letter", "known kind"),
    ],
)
def test_other_files_have_a_reason(content: bytes, word: str, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    for source in (tmp_path / "a.mp4", content, io.BytesIO(content)):
        kind = kind_of(source)
        assert kind.name is None and word in kind.reason
        with pytest.raises(ValueError, match=word):
            read_picture(source)


@given(st.binary(max_size=300))
def test_any_bytes_have_a_kind_or_a_reason(content: bytes) -> None:
    kind = kind_of(content)
    assert (kind.name is None) == bool(kind.reason)


def test_pipes_devices_and_folders_are_rejected(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path / "pipe.mp4", Path("/dev/zero"), tmp_path):
        with pytest.raises(ValueError, match="is a"):
            kind_of(path)
    with pytest.raises(ValueError, match="is a pipe"):
        Video(tmp_path / "pipe.mp4")
    with pytest.raises(FileNotFoundError):
        kind_of(tmp_path / "gone.mp4")


# --- Pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_rotated_by_their_metadata(form: str, orientation: int) -> None:
    upright = draw((64, 48))
    stored = upright if orientation < 5 else upright.transpose(1, 0, 2)
    across, down = {
        **{1: (1, 1), 2: (-1, 1), 3: (-1, -1), 4: (1, -1)},
        **{5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)},
    }[orientation]
    stored = stored[::down, ::across]
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    found = read_picture(encode(form, stored, exif=exif.tobytes()))
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).mean() < 6


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "AVIF", "HEIF"])
def test_pixels_per_picture_are_limited(form: str) -> None:
    content = encode(form, draw())
    assert read_picture(content, most_pixels=160 * 120).shape == (120, 160, 3)
    with pytest.raises(ValueError, match="160 x 120 pixels"):
        read_picture(content, most_pixels=160 * 120 - 1)


@pytest.mark.parametrize("form", PICTURES)
def test_damaged_picture_has_a_reason(form: str) -> None:
    content = encode(form, draw())
    for end in (12, 40, len(content) // 3):
        try:
            assert read_picture(content[:end]).shape == (120, 160, 3)  # some decoders fill it in
        except ValueError as error:
            assert str(error)


def box(name: bytes, *content: bytes) -> bytes:
    return struct.pack(">I", 8 + sum(map(len, content))) + name + b"".join(content)


def write_grid_heic(images: list[np.ndarray], columns: int) -> bytes:
    """Return a tiled photo as written by phones: ISO 23008-12, 6.6.2.3.

    Args:
        images: the tiles, row by row, BGR uint8 of one size, 64 pixels at least
        columns: tiles in a row
    """
    height, width = images[0].shape[:2]
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as file:
        options = {"x265-params": "log-level=none:keyint=1:bframes=0", "crf": "4"}
        stream = file.add_stream("libx265", 25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.codec_tag = "hvc1"
        for image in images:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, "bgr24")))
        file.mux(stream.encode(None))
    content = target.getvalue()
    at = content.index(b"hvcC") - 4
    hvcc = content[at : at + int.from_bytes(content[at : at + 4])]
    with av.open(io.BytesIO(content)) as file:
        tiles = [bytes(packet) for packet in file.demux() if packet.size]
    rows, count = len(images) // columns, len(images)
    whole = struct.pack(">HH", columns * width, rows * height)
    grid = struct.pack(">BBBB", 0, 0, rows - 1, columns - 1) + whole
    items = [*tiles, grid]
    infos = [
        box(
            b"infe",
            struct.pack(">IHH", 2 << 24, number, 0),
            b"hvc1" if number <= count else b"grid",
            b"\0",
        )
        for number in range(1, count + 2)
    ]
    properties = box(
        b"ipco",
        hvcc,
        box(b"ispe", struct.pack(">III", 0, width, height)),
        box(b"ispe", struct.pack(">III", 0, columns * width, rows * height)),
    )
    links = [struct.pack(">HBBB", number, 2, 0x81, 2) for number in range(1, count + 1)]
    links.append(struct.pack(">HBB", count + 1, 1, 3))
    of_tiles = struct.pack(f">{count + 2}H", count + 1, count, *range(1, count + 1))

    def make_meta(first: int) -> bytes:
        starts = itertools.accumulate(map(len, items[:-1]), initial=first)
        places = [
            struct.pack(">HHHII", number, 0, 1, start, len(item))
            for number, (start, item) in enumerate(zip(starts, items, strict=True), 1)
        ]
        return box(
            b"meta",
            bytes(4),
            box(b"hdlr", bytes(8), b"pict", bytes(13)),
            box(b"pitm", struct.pack(">IH", 0, count + 1)),
            box(b"iinf", struct.pack(">IH", 0, count + 1), *infos),
            box(b"iref", bytes(4), box(b"dimg", of_tiles)),
            box(b"iprp", properties, box(b"ipma", struct.pack(">II", 0, count + 1), *links)),
            box(b"iloc", struct.pack(">IBBH", 0, 0x44, 0, count + 1), *places),
        )

    head = box(b"ftyp", b"heic", bytes(4), b"mif1heic")
    meta = make_meta(len(head) + len(make_meta(0)) + 8)
    return head + meta + box(b"mdat", *items)


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (3, 1)])
def test_tiled_photo_is_read_completely(rows: int, columns: int) -> None:
    tiles = [draw((128, 64), seed) for seed in range(rows * columns)]
    whole = np.vstack([np.hstack(tiles[row * columns :][:columns]) for row in range(rows)])
    content = write_grid_heic(tiles, columns)
    assert kind_of(content).format == "HEIC"
    found = read_picture(content)
    assert found.shape == whole.shape
    assert np.abs(found.astype(int) - whole).mean() < 6


# --- Folders --------------------------------------------------------------------------------------


def test_folder_is_searched_and_skipped_files_are_listed(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    (folder / "b").mkdir(parents=True)
    elsewhere.mkdir()
    picture = encode("JPEG", draw())
    (folder / "a.jfif").write_bytes(picture)
    (folder / "b/no suffix").write_bytes(picture)
    (folder / "mine.partial.png").write_bytes(picture)
    write_video(folder / "b/clip.mp4")
    write_video(elsewhere / "linked.mp4")
    (folder / "._clip.mp4").write_bytes(b"\0\5\x16\7")
    (folder / ".hidden").mkdir()
    (folder / ".hidden/a.jpg").write_bytes(picture)
    (folder / "one.pdf").write_bytes(b"%PDF-1.7")
    (folder / "two.pdf").write_bytes(b"%PDF-1.7")
    (folder / "empty.mp4").touch()
    (folder / "z-link").symlink_to(elsewhere)
    (folder / "up").symlink_to(folder)
    (folder / "broken.mp4").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.mp4")
    found = find_inputs([folder, tmp_path / "gone.mp4", folder / "a.jfif"])
    names = [path.relative_to(tmp_path).as_posix() for path in found.files]
    assert names == [
        "in/a.jfif",
        "in/mine.partial.png",
        "in/b/clip.mp4",
        "in/b/no suffix",
        "in/z-link/linked.mp4",
        "gone.mp4",
    ]
    passed = {one.path.name: one.reason for one in found.passed_over}
    assert passed.keys() == {"one.pdf", "two.pdf", "empty.mp4", "broken.mp4", "pipe.mp4"}
    assert "empty" in passed["empty.mp4"] and "link" in passed["broken.mp4"]
    assert "pipe" in passed["pipe.mp4"]
    lines = found.summarize()
    assert len(lines) == 4 and lines[0].startswith("2 PDF")


def test_unreadable_folder_is_listed(tmp_path: Path) -> None:
    skip_as_root()
    (tmp_path / "locked").mkdir(mode=0)
    found = find_inputs([tmp_path])
    assert [one.path.name for one in found.passed_over] == ["locked"]
    assert str(tmp_path / "locked") in found.summarize()[0]


def test_outputs_of_other_scripts_are_found(tmp_path: Path) -> None:
    """The practice videos of 00 and the frames of 01 can be checked."""
    output = files.claim(tmp_path, "--videos-dir", "00-make-sample-videos.py")
    output.write("clip.png", lambda path: path.write_bytes(encode("PNG", draw(seed=0))))
    found = find_inputs([tmp_path])
    assert [path.name for path in found.files] == ["clip.png"]


def test_own_outputs_are_counted_and_left_out(tmp_path: Path) -> None:
    """A copied list must not hide files with other content."""
    output = files.claim(tmp_path, "--detections-dir", "06-detect-deepfake.py", shared=True)
    for name, seed in (("ours.png", 0), ("edited.png", 1)):
        content = encode("PNG", draw(seed=seed))
        output.write(name, lambda path, content=content: path.write_bytes(content))
    (tmp_path / "edited.png").write_bytes(encode("PNG", draw(seed=2)))
    (tmp_path / "theirs.png").write_bytes(encode("PNG", draw(seed=3)))
    found = find_inputs([tmp_path])
    assert [path.name for path in found.files] == ["edited.png", "theirs.png"]
    assert found.own_outputs == 1 and "1 output" in found.summarize()[-1]


# --- Names of outputs -----------------------------------------------------------------------------

DEVICES = re.compile(r"(con|conin\$|conout\$|prn|aux|nul|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE)
ODD = [
    "a:b?.png",
    "A_b_.mp4",
    "con.mp4",
    "CONOUT$.mp4",
    "lpt³.mp4",
    "nul.tar.gz",
    "...mp4",
    '"x".mp4',
    "clip.mp4",
    "Clip.mp4",
    "café.mp4",
]


@given(st.lists(st.sampled_from(ODD) | st.text(min_size=1), max_size=12))
def test_output_names_are_valid_on_every_disk(names: list[str]) -> None:
    paths = [Path(str(number), name.replace("/", "_")) for number, name in enumerate(names)]
    found = name_outputs(paths)
    assert len({unicodedata.normalize("NFC", name).casefold() for name in found}) == len(paths)
    for name in found:
        assert name and not set(name) & set('<>:"/\\|?*') and name.isprintable()
        assert not name.startswith((".", " ")) and not name.endswith((".", " "))
        assert not DEVICES.fullmatch(name)
        assert len(name.encode()) <= 120


def test_output_names_avoid_names_of_other_outputs() -> None:
    paths = [Path("monday/clip.mp4"), Path("tuesday/clip.mp4")]
    assert name_outputs(paths) == ["clip", "clip-2"]
    taken = {"clip", "clip-2"}
    assert name_outputs(paths, lambda name, file: name not in taken) == ["clip-3", "clip-4"]


def test_prefetching_keeps_order_and_errors() -> None:
    def count() -> object:
        yield from range(5)
        raise ZeroDivisionError

    found = []
    with pytest.raises(ZeroDivisionError):
        found += iter_into(found, read_ahead(count(), 3))
    assert found == list(range(5))


def iter_into(target: list, items: object) -> list:
    for item in items:
        target.append(item)
    return []
