"""Find the videos and pictures to check, read pictures, and name the outputs.

found = find_inputs([Path("a-folder"), Path("clip.mp4")])
found.files                       # videos and pictures, sorted
found.passed_over                 # other files, with the reason
kind_of(found.files[0]).name      # "video" or "picture"
"""

from __future__ import annotations

import io
import os
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps

from deepfake_detect.display import HDR_PICTURE, has_pq
from deepfake_detect.files import Output
from deepfake_detect.kinds import AVIF_BRANDS, HEIC_BRANDS, Source, kind_of
from deepfake_detect.video import MOST_PIXELS

Item = TypeVar("Item")
END = object()  # returned after the last item
DETECTION = "06-detect-deepfake.py"  # its outputs are not checked
LONGEST_NAME = 100  # bytes; leaves room for a suffix, as most disks allow 255
BAD_LETTERS = '<>:"/\\|?*'  # not allowed on FAT, exFAT, NTFS and SMB
DEVICE_NAMES = re.compile(  # reserved on Windows
    r"(con|conin\$|conout\$|prn|aux|nul|(com|lpt)[\d¹²³])(\..*)?", re.IGNORECASE
)


@dataclass(frozen=True)
class PassedOver:
    """A file or folder that was found but is not checked."""

    path: Path
    kind: str  # such as "PDF", ".txt" or "folder"
    reason: str


@dataclass
class Inputs:
    """The result of find_inputs."""

    files: list[Path] = field(default_factory=list)
    passed_over: list[PassedOver] = field(default_factory=list)
    own_outputs: int = 0  # number of files written by 06

    def summarize(self) -> list[str]:
        """Return one line per kind of file that was skipped, most frequent first."""
        kinds = Counter((one.kind, one.reason) for one in self.passed_over)
        lines = [f"{count:,} {kind}: {reason}" for (kind, reason), count in kinds.most_common()]
        if self.own_outputs:
            lines.append(f"{self.own_outputs:,} outputs of this project")
        return lines


# --- Folders --------------------------------------------------------------------------------------


def find_inputs(paths: Iterable[Path]) -> Inputs:
    """Find the videos and pictures to check: the given files, and all files below given folders.

    In folders, names that start with a dot are ignored (macOS creates ._clip.mp4 next to clip.mp4),
    linked folders are visited once, and outputs of 06 are left out and counted.
    """
    found, seen = Inputs(), set()
    for path in paths:
        if path.is_dir():
            for folder, names in walk(path, found, seen):
                add_folder(found, folder, names)
        else:
            found.files.append(path)  # problems are reported when it is checked
    found.files = list(dict.fromkeys(found.files))
    return found


def walk(top: Path, found: Inputs, seen: set[str]) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder below `top`, including links, with the sorted names of its files."""

    def pass_over(error: OSError) -> None:
        reason = f"{error.filename} cannot be read: {error.strerror}"
        found.passed_over.append(PassedOver(Path(error.filename), "folder", reason))

    for folder, subfolders, names in os.walk(top, onerror=pass_over, followlinks=True):
        # Visit links last, so that a folder is known by its own name, not by the name of a link.
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        subfolders.sort(key=lambda name: (Path(folder, name).is_symlink(), name))
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        yield Path(folder), sorted(name for name in names if not name.startswith("."))


def add_folder(found: Inputs, folder: Path, names: list[str]) -> None:
    """Add the files of one folder to `found`."""
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
    """Return True if 06 wrote this file; outputs of 00 and 01 can be checked."""
    try:
        return output.wrote(name, DETECTION)
    except ValueError:  # the list of the folder is invalid, so nothing is ours
        return False


# --- Pictures -------------------------------------------------------------------------------------


def read_picture(
    source: Source, most_pixels: int = MOST_PIXELS, notes: list[str] | None = None
) -> np.ndarray:
    """Read a picture, rotated by its metadata: BGR uint8 (height, width, 3).

    Args:
        source: path, bytes or file object
        most_pixels: maximum number of pixels; a larger picture is refused before decoding
        notes: a list to which sentences are added if the file has more than one picture, or HDR
            colours

    Raises:
        ValueError: the picture is too large or does not decode
        OSError: the file cannot be read
    """
    kind = kind_of(source)
    if kind.name != "picture":
        raise ValueError(kind.reason or "is a video, not a picture")
    data = read_all(source)
    if kind.format == "HEIC":
        enable_heif()
    if notes is not None and has_pq(data):
        notes.append(HDR_PICTURE)
    if kind.format in ("AVIF", "HEIC") and data[8:12] not in AVIF_BRANDS | HEIC_BRANDS:
        data = data[:8] + kind.format.lower().encode() + data[12:]  # Pillow needs a known brand
    PIL.Image.MAX_IMAGE_PIXELS = None  # the limit is most_pixels
    try:
        with PIL.Image.open(io.BytesIO(data)) as picture:  # reads only the header
            width, height = picture.size
            if width * height > most_pixels:
                raise ValueError(
                    f"has {width:,} x {height:,} pixels, more than --most-pixels allows"
                )
            count = getattr(picture, "n_frames", 1)
            if count > 1 and notes is not None and picture.format != "MPO":
                notes.append(f"only the first of its {count:,} pictures was checked")
            # OpenCV cannot read HEIC, and does not rotate AVIF.
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
    """Return all bytes of a source."""
    if isinstance(source, Path):
        return source.read_bytes()
    if isinstance(source, bytes):
        return source
    source.seek(0)
    return source.read()


def decode(data: bytes) -> np.ndarray | None:
    """Decode a picture with OpenCV, which rotates it by its EXIF data; None if it fails."""
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None


def enable_heif() -> None:
    """Enable HEIC, the photo format of iPhones, in Pillow.

    Raises:
        ValueError: pillow-heif is not installed
    """
    try:
        import pillow_heif
    except ImportError as error:
        why = "is a HEIC photo, which needs the package pillow-heif"
        raise ValueError(f"{why}; run pip install pillow-heif, or convert it to JPEG") from error
    pillow_heif.register_heif_opener(thumbnails=False)


# --- Outputs --------------------------------------------------------------------------------------


def name_outputs(
    files: Iterable[Path], is_free: Callable[[str, Path], bool] = lambda name, file: True
) -> list[str]:
    """Name the outputs of each file after its stem, with a number if that name is taken.

    Args:
        files: the input files
        is_free: returns True if the outputs of a file may have a name, to keep other outputs

    Returns:
        One name per file without a suffix, valid on every disk, and unique regardless of case.
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
    """Return a name that is valid on FAT, exFAT, NTFS and SMB, and printable."""
    stem = unicodedata.normalize("NFC", stem)
    stem = "".join(
        "_" if letter in BAD_LETTERS or not letter.isprintable() else letter for letter in stem
    )
    stem = stem.encode()[:LONGEST_NAME].decode(errors="ignore").strip(". ") or "file"
    return f"_{stem}" if DEVICE_NAMES.fullmatch(stem) else stem


# --- Reading ahead --------------------------------------------------------------------------------


def read_ahead(items: Iterator[Item], ahead: int) -> Iterator[Item]:
    """Prefetch up to `ahead` items in a background thread.

    Decoding releases Python's lock, so it runs in parallel with the caller. The thread has the
    context variables of the caller.
    """
    run = copy_context().run
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(run, next, items, END) for _ in range(ahead))
        while (item := waiting.popleft().result()) is not END:
            waiting.append(thread.submit(run, next, items, END))
            yield item
