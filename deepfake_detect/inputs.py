"""Find the files to check: their kind by content, folders of them, pictures, names of outputs.

found = find_inputs([Path("a-folder"), Path("clip.mp4")])
found.files                       # videos and pictures, in order
found.passed_over                 # what else was there, and why
kind_of(found.files[0]).name      # "video" or "picture"
"""

from __future__ import annotations

import io
import math
import os
import re
import sys
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, NamedTuple, TypeVar

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps

from deepfake_detect.files import Output, check_plain_file, write_whole
from deepfake_detect.video import MOST_PIXELS, Source, Video

Item = TypeVar("Item")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CLAIMS = ".detections"  # a file beside the outputs that lists them
END = object()  # comes after the last item
HEAD_BYTES = 1024  # at the start of a file that say what kind it is
LONGEST_NAME = 100  # bytes; an ending is added, and most disks take 255
BAD_LETTERS = '<>:"/\\|?*'  # in names on FAT, exFAT, NTFS and SMB
DEVICE_NAMES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # of Windows

# How a file of each format begins. The formats of pictures and videos are those that are read.
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
    "MPEG-TS": rb"(G.{187}G.{187}G|.{4}G.{191}G.{191}G)",
}
OTHERS = {  # what people bring besides, for the sentence
    "JPEG XL": rb"(\xff\x0a|\0\0\0\x0cJXL )",
    "PDF": rb"%PDF",
    "SVG": rb"\s*(<\?xml.*?)?<svg",
    "Photoshop": rb"8BPS",
    "ZIP": rb"PK\x03\x04",
    "MP3": rb"(ID3|\xff\xfb)",
    "WAV": rb"RIFF....WAVE",
}


# MP4, HEIC and AVIF begin alike, and name themselves by brands, ISO 14496-12 and 23008-12.
AVIF_BRANDS = {b"avif", b"avis"}
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


class Kind(NamedTuple):
    """What a file is, by its content."""

    name: Literal["picture", "video"] | None
    format: str  # such as "JPEG"; "" if unknown
    reason: str  # why it is neither a picture nor a video; else ""


@dataclass(frozen=True)
class PassedOver:
    """A file or folder that was found and is not checked."""

    path: Path
    kind: str  # such as "PDF", ".txt" or "folder"
    reason: str


@dataclass
class Inputs:
    """What find_inputs found."""

    files: list[Path] = field(default_factory=list)
    passed_over: list[PassedOver] = field(default_factory=list)
    own_outputs: int = 0  # files that the scripts wrote themselves

    def summarize(self) -> list[str]:
        """Return a line for each kind of files that were passed over, most frequent first."""
        kinds = Counter((one.kind, one.reason) for one in self.passed_over)
        lines = [f"{count:,} {kind}: {reason}" for (kind, reason), count in kinds.most_common()]
        if self.own_outputs:
            lines.append(f"{self.own_outputs:,} written by this project itself")
        return lines


# --- Kinds of files -------------------------------------------------------------------------------


def kind_of(source: Source) -> Kind:
    """Tell by its content what a file is; its name does not matter.

    Whether it decodes is not known yet.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, a pipe or a device.
        OSError: it cannot be read.
    """
    head = read_head(source)
    if not head:
        return Kind(None, "", "is an empty file")
    if head[4:8] == b"ftyp":
        size = int.from_bytes(head[:4])
        first, *others = (head[at : at + 4] for at in (8, *range(16, min(size, len(head)), 4)))
        if first in AVIF_BRANDS | HEIC_BRANDS:
            named = "AVIF" if AVIF_BRANDS & {first, *others} else "HEIC"
            return Kind("picture", named, "")
    for name, formats in (("picture", PICTURES), ("video", VIDEOS), (None, OTHERS)):
        for format_name, start in formats.items():
            if re.match(start, head, re.DOTALL):
                reason = "" if name else f"is a {format_name} file, not a video or a picture"
                return Kind(name, format_name, reason)
    return Kind(None, "", "is neither a video nor a picture of a known kind")


def read_head(source: Source) -> bytes:
    """Read the first bytes of a file, of bytes or of a file object."""
    if isinstance(source, bytes):
        return source[:HEAD_BYTES]
    if isinstance(source, Path):
        check_plain_file(source)
        with source.open("rb") as file:
            return file.read(HEAD_BYTES)
    source.seek(0)
    return source.read(HEAD_BYTES)


# --- Folders --------------------------------------------------------------------------------------


def find_inputs(paths: Iterable[Path]) -> Inputs:
    """Find the videos and pictures to check: files as given, folders with all below them.

    In folders, names that begin with a dot are ignored (macOS leaves ._clip.mp4 beside clip.mp4),
    linked folders are followed once, and what the scripts wrote there is left out and counted.
    """
    found, seen = Inputs(), set()
    for path in paths:
        if path.is_dir():
            for folder, names in walk(path, found, seen):
                add_folder(found, folder, names)
        else:
            found.files.append(path)  # what is wrong with it is said when it is checked
    found.files = list(dict.fromkeys(found.files))
    return found


def walk(top: Path, found: Inputs, seen: set[str]) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder below `top`, links followed, with the names of its files, sorted."""

    def pass_over(error: OSError) -> None:
        reason = f"cannot be read: {error.strerror}"
        found.passed_over.append(PassedOver(Path(error.filename), "folder", reason))

    for folder, subfolders, names in os.walk(top, onerror=pass_over, followlinks=True):
        # Links come last, so that a folder is known by its own name and not by a link's.
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        subfolders.sort(key=lambda name: (Path(folder, name).is_symlink(), name))
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        yield Path(folder), sorted(name for name in names if not name.startswith("."))


def add_folder(found: Inputs, folder: Path, names: list[str]) -> None:
    """Add the files of one folder to what was found."""
    output = Output(folder, "", "")
    for name in names:
        path = folder / name
        try:
            kind = kind_of(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            found.passed_over.append(PassedOver(path, path.suffix.lower() or "file", reason))
            continue
        if is_own(output, name):
            found.own_outputs += 1
        elif kind.name:
            found.files.append(path)
        else:
            shown = kind.format or path.suffix.lower() or "file"
            found.passed_over.append(PassedOver(path, shown, kind.reason))


def is_own(output: Output, name: str) -> bool:
    """Return True if one of the scripts wrote this file of an output folder."""
    try:
        return output.wrote(name)
    except ValueError:  # its list is not one: then nothing is ours
        return False


# --- Pictures -------------------------------------------------------------------------------------


def read_picture(
    source: Source, most_pixels: int = MOST_PIXELS, notes: list[str] | None = None
) -> np.ndarray:
    """Read a picture: BGR uint8 (height, width, 3), turned as its file says.

    Args:
        source: path, bytes or file object
        most_pixels: of the picture; a larger one is refused before it is decoded
        notes: gets a sentence if the file holds more than one picture

    Raises:
        ValueError: it is too large or does not decode.
        OSError: it cannot be read.
    """
    kind = kind_of(source)
    if kind.name != "picture":
        raise ValueError(kind.reason or "is a video, not a picture")
    data = read_all(source)
    if kind.format == "HEIC":
        enable_heif()
    PIL.Image.MAX_IMAGE_PIXELS = None  # the limit is most_pixels
    try:
        with PIL.Image.open(io.BytesIO(data)) as picture:  # decodes nothing yet
            width, height = picture.size
            if width * height > most_pixels:
                raise ValueError(
                    f"has {width:,} x {height:,} pixels, more than --most-pixels allows"
                )
            count = getattr(picture, "n_frames", 1)
            if count > 1 and notes is not None and picture.format != "MPO":
                notes.append(f"only the first of its {count:,} pictures was looked at")
            # OpenCV does not know HEIC, and does not turn AVIF.
            image = decode(data) if kind.format not in ("AVIF", "HEIC", "GIF") else None
            if image is None:
                upright = PIL.ImageOps.exif_transpose(picture).convert("RGB")
                image = np.ascontiguousarray(np.asarray(upright)[..., ::-1])
    except (PIL.UnidentifiedImageError, SyntaxError, EOFError, OverflowError) as error:
        raise ValueError("does not decode as a picture") from error
    except OSError as error:
        raise ValueError(f"does not decode as a picture ({error})") from error
    return image


def read_all(source: Source) -> bytes:
    """Read a whole file, bytes or a file object."""
    if isinstance(source, Path):
        return source.read_bytes()
    if isinstance(source, bytes):
        return source
    source.seek(0)
    return source.read()


def decode(data: bytes) -> np.ndarray | None:
    """Decode a picture with OpenCV, which turns it by its EXIF; None if it cannot."""
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None


def enable_heif() -> None:
    """Let Pillow read HEIC, the photos of iPhones, with all their tiles.

    Raises:
        ValueError: the package for it is not installed.
    """
    try:
        import pillow_heif
    except ImportError as error:
        why = "is a HEIC photo, and the package pillow-heif, which reads those, is not installed"
        raise ValueError(f"{why}: pip install pillow-heif, or convert it to JPEG") from error
    pillow_heif.register_heif_opener(thumbnails=False)


# --- Outputs --------------------------------------------------------------------------------------


def name_outputs(
    files: Iterable[Path], is_free: Callable[[str, Path], bool] = lambda name, file: True
) -> list[str]:
    """Name the outputs of each file by its stem, with a number where that is taken.

    Args:
        files: what the outputs are made from
        is_free: may the outputs of this file have this name? To keep those of another run

    Returns:
        For each file a name without an ending, that every disk takes, unique whatever the case.
    """
    names, taken = [], set()
    for file in files:
        stem = make_safe(file.stem)
        number, name = 1, stem
        while name.casefold() in taken or not is_free(name, file):
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def make_safe(stem: str) -> str:
    """Make a name that FAT, exFAT, NTFS and SMB take, too, and a terminal can show."""
    stem = unicodedata.normalize("NFC", stem)
    stem = "".join(
        "_" if letter in BAD_LETTERS or not letter.isprintable() else letter for letter in stem
    )
    stem = stem.encode()[:LONGEST_NAME].decode(errors="ignore").strip(". ") or "file"
    return f"_{stem}" if DEVICE_NAMES.fullmatch(stem) else stem


# --- Reading ahead --------------------------------------------------------------------------------


def read_ahead(items: Iterator[Item], ahead: int) -> Iterator[Item]:
    """Have a thread take up to `ahead` items while the caller works on those before.

    Decoding runs without Python's lock, so it runs beside whatever the caller does. The thread has
    the context variables of the caller.
    """
    run = copy_context().run
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(run, next, items, END) for _ in range(ahead))
        while (item := waiting.popleft().result()) is not END:
            waiting.append(thread.submit(run, next, items, END))
            yield item


# --- For the present 06 and 08, until they are on deepfake_detect.detector ------------------------


def list_inputs(paths: Iterable[Path]) -> list[Path]:
    """List the files given, and the videos and pictures below the folders given, in order.

    In folders, what this script wrote, or began to write, is left out.
    """
    known = (".mp4", ".avi", ".mov", ".mkv", ".webm", *PICTURE_SUFFIXES)
    files = []
    for path in paths:
        if path.is_dir():
            below = [file for file in path.rglob("*") if file.suffix.lower() in known]
            claims = {folder: read_claims(folder) for folder in {file.parent for file in below}}
            below = [file for file in below if file.name not in claims[file.parent]]
            files += sorted(
                file for file in below if file.is_file() and not file.stem.endswith(".partial")
            )
        else:
            files.append(path)
    return list(dict.fromkeys(files))


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES


def guess_frames(path: Path, frames_per_second: float) -> int | None:
    """Guess how many frames will be scored, for the bar; None where the header does not know."""
    check_file(path)
    return math.ceil(Video(path).claimed_seconds * frames_per_second) or None


def sample_frames(
    path: Path, settings: SimpleNamespace, notes: list[str]
) -> Iterator[tuple[int, float, np.ndarray]]:
    """Yield the frames to score, BGR uint8 as in the file, with their index and second.

    A picture is one frame. A video that gives too few for a verdict is gone through once more for
    some in between: how long it is, its header may not know.

    Raises:
        ValueError, OSError: it cannot be read, does not decode, or has no frames.
    """
    check_file(path)
    if is_picture(path):
        yield 0, 0.0, read_picture(path, settings.most_pixels, notes)
        return
    taken, rate, wanted = set(), settings.frames_per_second, 2 * settings.fewest_frames
    for _ in range(2):
        video = Video(path)
        for index, seconds, frame in video.sampled(rate):
            if frame is not None and index not in taken:
                taken.add(index)
                yield index, seconds, frame
        if len(taken) >= min(wanted, video.seen_frames):
            break
        rate = wanted / video.seen_seconds * (video.seen_frames - 1) / video.seen_frames
    if not taken:
        raise ValueError("no frame of it decodes")


def check_file(path: Path) -> None:
    """Refuse what is no file: a pipe or a device may never end.

    Raises:
        FileNotFoundError: it is no file.
    """
    if path.exists() and not path.is_file():
        raise FileNotFoundError("is a pipe or a device")
    if not path.is_file():
        raise FileNotFoundError(
            "is a broken link" if path.is_symlink() else "there is no such file"
        )


def read_claims(folder: Path) -> set[str]:
    """Read which files in a folder this script has written."""
    try:
        return set((folder / CLAIMS).read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return set()


def claim_outputs(folder: Path, names: list[str]) -> None:
    """Delete what earlier runs wrote under these names, and list them as this script's.

    Raises:
        ValueError: another's file has such a name.
    """
    claims, there = read_claims(folder), [name for name in names if os.path.lexists(folder / name)]
    if foreign := [name for name in there if name not in claims]:
        raise ValueError(
            f"{folder / foreign[0]}: this script did not write it, so it stays as it is; move it "
            "away, or name another folder with --detections-dir."
        )
    for name in there:
        (folder / name).unlink()
    claims = "".join(f"{name}\n" for name in sorted({*claims, *names}))
    write_whole(folder / CLAIMS, lambda partial: partial.write_text(claims, encoding="utf-8"))


def spell(text: object) -> str:
    """Spell a name so that a terminal can show it, and is sent no line ends and control codes."""
    text = str(text) if str(text).isprintable() else ascii(str(text))[1:-1]
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def word_error(error: Exception) -> str:
    """Say an error in a line, with its kind if it is not of those that scripts raise."""
    words = " ".join(str(error).split())
    return words if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {words}"
