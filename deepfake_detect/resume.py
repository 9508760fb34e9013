"""Continue a stopped run: find out which videos are done, for 01 and 02.

Each video has its own folder in the output folder, with images named after the video and a sidecar
file that describes the inputs. A video is processed again only if its inputs have changed:

    side = resume.Sidecar("video.json", __file__)
    inputs = resume.fingerprint(list_files(video), settings)
    result = side.find_result(frames / video_id, inputs)   # None: make it
    with resume.open_run(frames, scheduler, part) as unfinished:
        ...                                                # write images into unfinished/NAME
        side.finish(unfinished / NAME, frames / video_id, inputs, result)
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from deepfake_detect import files

SAMPLE = 4096  # bytes that a fingerprint reads at the start, middle and end of a file


def fingerprint(
    paths: Iterable[Path], settings: Mapping[str, object], sampled: bool = False
) -> dict[str, Any]:
    """Return a fingerprint of the inputs of a result; if it is unchanged, the result is reused.

    Args:
        paths: the input files; a file that cannot be read counts as empty
        settings: the settings that affect the result, as JSON types
        sampled: also read the first, middle and last 4 KiB of each file, to notice a change there
            that kept the size and time
    """
    states, sample = [], sha256()
    for path in paths:
        try:
            state = path.stat()
        except OSError:  # a broken link
            state = path.lstat()
        states.append(state)
        with suppress(OSError, ValueError):  # the error is reported when the file is processed
            if sampled:
                files.check_plain_file(path)
                with path.open("rb") as file:
                    for start in (0, state.st_size // 2, max(0, state.st_size - SAMPLE)):
                        file.seek(start)
                        sample.update(file.read(SAMPLE))
    inputs = {
        "settings": json.loads(json.dumps(settings, default=str)),
        "files": len(states),
        "bytes": sum(state.st_size for state in states),
        "modified_ns": max((state.st_mtime_ns for state in states), default=0),
    }
    return inputs | ({"sample": sample.hexdigest()} if sampled else {})


@dataclass(frozen=True)
class Sidecar:
    """The sidecar file that a script writes into the folder of each video."""

    name: str  # file name, such as video.json
    script: str  # path of the script that writes it

    def read(self, folder: Path) -> dict:
        """Read the sidecar of a folder; empty if missing, damaged or written by another script."""
        with suppress(OSError, ValueError, RecursionError):
            files.check_plain_file(folder / self.name)
            content = json.loads((folder / self.name).read_text(encoding="utf-8"))
            parts = {"inputs": dict, "outputs": dict, "result": dict}
            whole = isinstance(content, dict) and content.get("made_by") == self.made_by
            if whole and all(isinstance(content.get(key), kind) for key, kind in parts.items()):
                return content
        return {}

    @property
    def made_by(self) -> str:
        """The file name of the script, recorded in each sidecar."""
        return Path(self.script).name

    def find_result(self, folder: Path, inputs: dict) -> dict | None:
        """Return the saved result for these inputs, or None if the video must be processed."""
        side = self.read(folder)
        # On a disk that ignores case, the folder may be of a video named in another case.
        count = count_images(folder, named=folder.name)
        done = side and side["inputs"] == inputs and side["outputs"] == count
        return side["result"] if done else None

    def owns(self, folder: Path) -> bool:
        """Return True if a folder holds only a sidecar and its images, so that we may replace it.

        The sidecar may be damaged if there are images.
        """
        # Some disks ignore case, so the folder may have been named in another case.
        image = re.compile(re.escape(folder.name) + r"-\d{6,12}(-\d{2,9})?\.png", re.IGNORECASE)
        try:
            if not (folder / self.name).is_file():
                return False
            names = {path.name for path in folder.iterdir()} - {self.name}
        except OSError:
            return False
        ours = all(image.fullmatch(name) for name in names)
        return ours and bool(names or self.read(folder))

    def check(self, folder: Path, option: str) -> None:
        """Check that the folder of a video may be written.

        Raises:
            ValueError: the folder exists and is not ours, see owns
        """
        if (folder.exists() or folder.is_symlink()) and not self.owns(folder):
            raise ValueError(
                f"{folder.parent}: {folder.name} was not created by this script, or holds other "
                f"files; move it elsewhere, or name another folder with {option}."
            )

    def list_own(self, folder: Path) -> set[str]:
        """Return the names of the video folders in an output folder that are ours."""
        return {path.name for path in folder.iterdir() if path.is_dir() and self.owns(path)}

    def finish(self, made: Path, target: Path, inputs: dict, result: dict) -> None:
        """Move the finished images of a video to their folder; a target that is a link stays one.

        Args:
            made: the folder with the images, inside the run's folder
            target: the folder of the video; an earlier one of ours is replaced
            inputs: the fingerprint taken before the images were made
            result: the result as JSON types, which find_result returns

        Raises:
            OSError: the folder cannot be written
        """
        side = {"made_by": self.made_by, "inputs": inputs, "outputs": count_images(made)}
        side |= {"result": result}
        if target.is_symlink():
            self.forget(target)
            for path in made.glob("*.png"):
                shutil.move(path, target / path.name)
            files.write_json(target / self.name, side)
            return
        if self.find_result(target, inputs) is not None:  # finished by a worker considered lost
            return
        files.write_json(made / self.name, side)
        try:
            if target.exists():
                files.delete_folder(target, files.name_unfinished(made.parent))
            made.rename(target)
        except OSError:
            if self.find_result(target, inputs) is None:
                raise

    def forget(self, folder: Path) -> None:
        """Delete the images of a video, and mark its folder as ours but not done."""
        empty = {"made_by": self.made_by, "inputs": {}, "outputs": {}, "result": {}}
        files.write_json(folder / self.name, empty)
        for path in folder.glob("*.png"):
            path.unlink()


def count_images(folder: Path, named: str = "") -> dict[str, int]:
    """Return the number of images in a folder whose names begin with `named`, and their bytes."""
    paths = (path for path in folder.glob("*.png") if path.name.startswith(named))
    sizes = [path.lstat().st_size for path in paths]
    return {"files": len(sizes), "bytes": sum(sizes)}


@contextmanager
def open_run(folder: Path, scheduler: str | None, part: str | None) -> Iterator[Path]:
    """Create a folder for unfinished work, and delete it at the end of the run.

    Unfinished work of killed runs is deleted, except when `part` is given, as other parts may be
    running.

    Args:
        folder: the output folder, locked by this run
        scheduler: address of a Dask scheduler; its workers stop when the run's folder is deleted
        part: the part of the videos, such as 3/10; None: all videos
    """
    if not part:
        for left in folder.iterdir():
            if files.LEFT_BEHIND.fullmatch(left.name):  # renames it, so workers cannot write to it
                delete_left(left)
    run = files.name_unfinished(folder.absolute())
    run.mkdir()
    try:
        yield run
    finally:
        shutil.rmtree(run, ignore_errors=True)


def delete_left(left: Path) -> None:
    """Delete an unfinished file or folder of a killed run."""
    if left.is_dir():
        files.delete_folder(left, files.name_unfinished(left.parent))
    else:
        left.unlink(missing_ok=True)
