"""Find, open, read and name files, for 06-detect-deepfake.py.

Which videos and pictures are meant, the frames of each that are scored, and the outputs: what is
written is listed in a file of the folder, so that nothing else is ever replaced.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import cv2
import numpy as np
import PIL.Image

from deepfake_detect import datasets as catalogue
from deepfake_detect import sparse_video
from deepfake_detect.files import write_whole

convert = importlib.import_module("01-convert-video-to-image")

Item = TypeVar("Item")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CLAIMS = ".detections"  # a file beside the outputs that lists them: only those are ever replaced
END = object()  # what comes after the last item
LONGEST_NAME = 100  # bytes; an ending comes to it, and most disks take 255


def list_inputs(paths: Iterable[Path]) -> list[Path]:
    """List the files given, and the videos and pictures below the folders given, in order.

    In folders, what this script wrote, or began to write, is left out.
    """
    known = (*catalogue.VIDEO_SUFFIXES, *PICTURE_SUFFIXES)
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


def name_outputs(files: list[Path]) -> list[str]:
    """Name the outputs of each file by its stem, with a number where that is taken."""
    names, taken = [], set()
    for file in files:
        stem = "".join(letter if letter.isprintable() else "_" for letter in file.stem)
        stem = stem.encode()[:LONGEST_NAME].decode(errors="ignore").rstrip(". ") or "file"
        number, name = 1, stem
        while name.casefold() in taken:  # Windows and macOS tell no A from a
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES


def guess_frames(path: Path, frames_per_second: float) -> int | None:
    """Guess how many frames will be scored, for the bar; None where the header does not know."""
    check_file(path)
    video = convert.open_video(path)
    rate, count = video.get(cv2.CAP_PROP_FPS), video.get(cv2.CAP_PROP_FRAME_COUNT)
    return math.ceil(count / rate * frames_per_second) if rate > 0 and count > 0 else None


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
        stamps = []
        for index, seconds, _, frame in sparse_video.read_sampled(path, rate):
            stamps.append(seconds)
            if frame is not None and index not in taken:
                taken.add(index)
                yield index, seconds, frame
        if len(taken) >= min(wanted, len(stamps)):
            break
        rate = wanted / (stamps[-1] - stamps[0]) * (len(stamps) - 1) / len(stamps)
    if not taken:
        raise ValueError("no frame of it decodes")


def read_ahead(items: Iterator[Item], ahead: int) -> Iterator[Item]:
    """Have a thread take the next items, so many at most, while those before are worked on.

    OpenCV decodes without Python's lock, so that decoding runs beside whatever is done here. The
    thread is told what the page keeps in context variables: whose work it is, and whose bar.
    """
    run = copy_context().run
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(run, next, items, END) for _ in range(ahead))
        while (item := waiting.popleft().result()) is not END:
            waiting.append(thread.submit(run, next, items, END))
            yield item


def read_picture(path: Path, most_pixels: int, notes: list[str]) -> np.ndarray:
    """Read a picture: BGR uint8 (height, width, 3), turned as its file says.

    Raises:
        ValueError, OSError: it cannot be read, is too large or does not decode.
    """
    PIL.Image.MAX_IMAGE_PIXELS = None  # the limit is most_pixels
    try:
        with PIL.Image.open(path) as head:  # decodes nothing yet
            if head.width * head.height > most_pixels:
                raise ValueError(
                    f"has {head.width:,} x {head.height:,} pixels, more than --most-pixels allows"
                )
            if head.format in ("PNG", "WEBP") and head.n_frames > 1:
                notes.append(f"only the first of its {head.n_frames:,} pictures was scored")
    except PIL.UnidentifiedImageError as error:
        raise ValueError("does not decode as a picture") from error
    picture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError("does not decode as a picture")
    return picture


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
