"""Determine the kind of a file by its content, not by its name."""

from __future__ import annotations

import io
import re
import threading
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from deepfake_detect.files import check_plain_file

HEAD_BYTES = 1024  # read at the start of a file to determine its kind

Source = Path | bytes | BinaryIO
READING = threading.Lock()  # held while using a file object, which has only one position

# Regular expressions for the start of each format; only these pictures and videos are supported.
PICTURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "GIF": rb"GIF8[79]a",
    "WebP": rb"RIFF....WEBP",
    "TIFF": rb"(II[*+]\0|MM\0[*+])",
    "BMP": rb"BM.{4}\0\0\0\0",
    "PPM": rb"P[1-6]\s",
    "JPEG 2000": rb"(\0\0\0\x0cjP  |\xff\x4f\xff\x51)",
}
VIDEOS = {
    "AVI": rb"RIFF....AVI ",
    "Matroska or WebM": rb"\x1a\x45\xdf\xa3",
    "MP4 or MOV": rb"....(ftyp|styp|moov|moof|mdat|wide|free|skip|pnot)",
    "FLV": rb"FLV\x01",
    "WMV or ASF": rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
    "OGG": rb"OggS",
    "MPEG": rb"\0\0\x01\xba",
    "MPEG-TS": rb".{0,191}(G.{187}G.{187}G.{187}G|G.{191}G.{191}G)",  # may start in a packet
}
OTHERS = {  # other common formats, for the error message
    "JPEG XL": rb"(\xff\x0a|\0\0\0\x0cJXL )",
    "PDF": rb"%PDF",
    "SVG": rb"\s*(<\?xml.*?)?<svg",
    "Photoshop": rb"8BPS",
    "ZIP": rb"PK\x03\x04",
    "MP3": rb"(ID3|\xff\xfb)",
    "WAV": rb"RIFF....WAVE",
}


# MP4, HEIC and AVIF start in the same way and differ by brands, ISO 14496-12 and 23008-12.
AVIF_BRANDS = {b"avif", b"avis"}
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
VIDEO_BRANDS = b"iso", b"mp4", b"avc", b"qt", b"M4V", b"3g"  # starts of brands


class Kind(NamedTuple):
    """The kind of a file, by its content."""

    name: Literal["picture", "video"] | None
    format: str  # such as "JPEG"; "" if unknown
    reason: str  # why it is neither a picture nor a video; otherwise ""


def kind_of(source: Source) -> Kind:
    """Return the kind of a file, without checking that it decodes.

    Raises:
        FileNotFoundError: the file does not exist
        ValueError: the path is a folder, a pipe or a device
        OSError: the file cannot be read
    """
    head = read_head(source)
    if not head:
        return Kind(None, "", "is an empty file")
    if head[4:8] == b"ftyp":
        size = int.from_bytes(head[:4])
        first, *others = (head[at : at + 4] for at in (8, *range(16, min(size, len(head)), 4)))
        is_video = any(brand.startswith(VIDEO_BRANDS) for brand in (first, *others))
        known = {first} if is_video else {first, *others}  # photos may start with brands of makers
        if known & (AVIF_BRANDS | HEIC_BRANDS):
            named = "AVIF" if AVIF_BRANDS & {first, *others} else "HEIC"
            return Kind("picture", named, "")
    for name, formats in (("picture", PICTURES), ("video", VIDEOS), (None, OTHERS)):
        for format_name, start in formats.items():
            if re.match(start, head, re.DOTALL):
                reason = "" if name else f"is a {format_name} file, not a video or a picture"
                return Kind(name, format_name, reason)
    return Kind(None, "", "is neither a video nor a picture of a known kind")


def read_head(source: Source) -> bytes:
    """Return the first HEAD_BYTES bytes of a source."""
    if isinstance(source, bytes):
        return source[:HEAD_BYTES]
    if isinstance(source, Path):
        check_plain_file(source)
        with source.open("rb") as file:
            return file.read(HEAD_BYTES)
    source.seek(0)
    return source.read(HEAD_BYTES)


class OwnPlace:
    """A reader with its own position, so that several can read the same file object."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.place = file, 0

    def read(self, count: int = -1) -> bytes:
        """Read from the position of this reader."""
        with READING:
            self.file.seek(self.place)
            data = self.file.read(count)
        self.place += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position of this reader."""
        with READING:
            end = self.file.seek(0, io.SEEK_END)
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: end}[whence]
        self.place = max(0, start + offset)
        return self.place

    def tell(self) -> int:
        """Return the position of this reader."""
        return self.place
