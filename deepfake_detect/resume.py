"""Go on where a run was stopped: which videos are done, for 01 and 02.

Each video has a folder of its own in the output folder, with images named after it and a side file
that says from what they were made. A video is done again only if that has changed:

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

SAMPLE = 4096  # bytes at the start, middle and end of a file that its fingerprint reads


def fingerprint(
    paths: Iterable[Path], settings: Mapping[str, object], sampled: bool = False
) -> dict[str, Any]:
    """Describe what a result depends on: where that is the same, the result is kept.

    Args:
        paths: the files that are read; one that cannot be read counts as empty
        settings: those that the result depends on, of JSON's types
        sampled: read the first, middle and last 4 KiB of each file as well, which notices a change
            there that kept size and time
    """
    states, sample = [], sha256()
    for path in paths:
        try:
            state = path.stat()
        except OSError:  # a link that leads nowhere
            state = path.lstat()
        states.append(state)
        with suppress(OSError, ValueError):  # whoever reads it will say what is wrong
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
    """The side file of a step, in the folder of each video."""

    name: str  # of the file, such as video.json
    script: str  # the file of the script that writes it

    def read(self, folder: Path) -> dict:
        """Read the side file of a folder; empty if it is not there, damaged, or of another."""
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
        """The file name of the script, which marks what it made."""
        return Path(self.script).name

    def find_result(self, folder: Path, inputs: dict) -> dict | None:
        """Return the result that a finished run gave for these inputs; None: make it."""
        side = self.read(folder)
        done = side and side["inputs"] == inputs and side["outputs"] == count_images(folder)
        return side["result"] if done else None

    def owns(self, folder: Path) -> bool:
        """Return whether a folder is ours to replace: a side file, and else nothing but its images.

        The side file may be damaged if there are images.
        """
        # On some disks A and a are one name, and the folder may have been named by the other.
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
        """Refuse to write the folder of a video where another's is.

        Raises:
            ValueError: something is there that this script did not make
        """
        if (folder.exists() or folder.is_symlink()) and not self.owns(folder):
            raise ValueError(
                f"{folder.parent}: it holds {folder.name}, which this script did not make, or with "
                f"other files in it; move it away, or name another folder with {option}."
            )

    def list_own(self, folder: Path) -> set[str]:
        """List the folders of videos in an output folder that are ours."""
        return {path.name for path in folder.iterdir() if path.is_dir() and self.owns(path)}

    def finish(self, made: Path, target: Path, inputs: dict, result: dict) -> None:
        """Give the finished images of a video their place; a target that is a link stays one.

        Args:
            made: the folder they are in, inside the run's folder
            target: the folder of the video; an earlier one of ours is replaced
            inputs: what fingerprint gave before they were made
            result: of JSON's types; find_result gives it back

        Raises:
            OSError: it cannot be written
        """
        side = {"made_by": self.made_by, "inputs": inputs, "outputs": count_images(made)}
        side |= {"result": result}
        if target.is_symlink():
            self.forget(target)
            for path in made.glob("*.png"):
                shutil.move(path, target / path.name)
            files.write_json(target / self.name, side)
            return
        if self.find_result(target, inputs) is not None:  # by a worker that was thought lost
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
        """Delete the images of a video, and keep its folder as ours: to be made again."""
        empty = {"made_by": self.made_by, "inputs": {}, "outputs": {}, "result": {}}
        files.write_json(folder / self.name, empty)
        for path in folder.glob("*.png"):
            path.unlink()


def count_images(folder: Path) -> dict[str, int]:
    """Count the images in the folder of a video, and their bytes."""
    sizes = [path.lstat().st_size for path in folder.glob("*.png")]
    return {"files": len(sizes), "bytes": sum(sizes)}


@contextmanager
def open_run(folder: Path, scheduler: str | None, part: str | None) -> Iterator[Path]:
    """Make a folder for what a run has begun: empty at first, and deleted in the end.

    What a killed run has left is deleted, but not by a part: others may be at work beside it.

    Args:
        folder: the output folder, held by the run's lock
        scheduler: address of a Dask cluster, whose workers end when the run's folder is gone
        part: the part of the videos, such as 3/10; None is all of them
    """
    if not part:
        for left in folder.iterdir():
            if files.LEFT_BEHIND.fullmatch(left.name):  # renamed, no worker writes to it any more
                delete_left(left)
    run = files.name_unfinished(folder.absolute())
    run.mkdir()
    try:
        yield run
    finally:
        shutil.rmtree(run, ignore_errors=True)


def delete_left(left: Path) -> None:
    """Delete what a killed run left, a file or a folder."""
    if left.is_dir():
        files.delete_folder(left, files.name_unfinished(left.parent))
    else:
        left.unlink(missing_ok=True)
