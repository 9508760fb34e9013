"""Find the files to check: folders of them, pictures, and the names of outputs.

found = find_inputs([Path("a-folder"), Path("clip.mp4")])
found.files                       # videos and pictures, in order
found.passed_over                 # what else was there, and why
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

from deepfake_detect.files import Output
from deepfake_detect.kinds import Source, kind_of
from deepfake_detect.video import MOST_PIXELS

Item = TypeVar("Item")
END = object()  # comes after the last item
DETECTION = "06-detect-deepfake.py"  # whose outputs are not worth a look
LONGEST_NAME = 100  # bytes; an ending is added, and most disks take 255
BAD_LETTERS = '<>:"/\\|?*'  # in names on FAT, exFAT, NTFS and SMB
DEVICE_NAMES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # of Windows


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
    """Return True if 06 wrote this file of an output folder; what 00 or 01 made is worth a look."""
    try:
        return output.wrote(name, DETECTION)
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
