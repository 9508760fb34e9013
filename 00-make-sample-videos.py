"""Make practice videos, so that every step can be run before you own a data set.

    python 00-make-sample-videos.py
    python 00-make-sample-videos.py --people 48 --fakes 96

Writes  practice/videos/practice/*.mp4            real clips of invented people, and fakes of them
        practice/videos/practice/practice.json    which is which, a list as the data set DFDC has it
Next    cd practice, then 01-convert-video-to-image.py, and so on: what it makes stays in there

The people are one portrait with other colours, light and proportions; in a fake, the face of one
is swapped for the face of another: see deepfake_detect/practice.py. A model that does well on these
clips shows that the pipeline works, and says nothing about deepfakes in the wild.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))  # python -P leaves it out
from deepfake_detect import start

start.prepare(__name__)  # Ctrl-C while the rest is loading ends it with a sentence

import json
import os
import shlex
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from tqdm import tqdm

from deepfake_detect import cli, files, practice

FOLDER = "practice"  # below the folder for videos
MADE_WITH = "settings.json"  # is written first: clips of other settings are never added
LABELS = "practice.json"  # is written last: the set is whole


@dataclass(frozen=True)
class Settings:
    """Edit a default here, or override it for one run: --people 48."""

    # folders
    videos_dir: Path = Path("practice/videos")  # the clips go into practice/ below it
    # clips
    people: cli.Count = 24  # real clips, one of each person
    fakes: Annotated[int, cli.Between(0)] = 36  # fake clips, made of the real ones in turn
    frames: cli.Count = 40  # frames of each clip
    fps: cli.Positive = practice.FPS  # frames per second
    seed: Annotated[int, cli.Between(0)] = 1  # the same seed makes the same frames
    widths: Annotated[tuple[int, ...], cli.Between(32)] = practice.WIDTHS  # of persons 0, 1, 2, ...
    # machine
    workers: Annotated[cli.Count | None, cli.MACHINE] = None  # at once; None: one per core


def main(settings: Settings = Settings()) -> list[practice.Clip]:
    """Make practice videos, so that every step can be run before you own a data set.

    Returns:
        The clips of the set.

    Raises:
        ValueError: a number is out of its range, or other files are in the way
        OSError: the folder cannot be written, or OpenCV cannot write videos
    """
    cli.check_ranges(settings)
    if not settings.widths:
        raise ValueError("--widths: give one or more.")
    clips = practice.plan_clips(settings.people, settings.fakes, settings.seed, settings.widths)
    output = claim_folder(settings)

    # The fakes of a person are made in one go with the real clip, as far as they are not there yet.
    missing = [clip for clip in clips if not output.owns(clip.name)]
    by_person = defaultdict(list)
    for clip in missing:
        by_person[clip.person].append(clip)
    with (
        ThreadPoolExecutor(settings.workers or os.cpu_count() or 1) as pool,
        tqdm(total=len(missing), desc="clips", unit="clip", disable=not missing) as bar,
    ):
        for made in pool.map(partial(write_person, output, settings), by_person.values()):
            bar.update(made)
    entries = ({"label": one.label, "split": "train", "original": one.original} for one in clips)
    labels = dict(zip((clip.name for clip in clips), entries, strict=True))
    if not output.owns(LABELS):
        output.write(LABELS, partial(files.write_json, content=labels))
    print_set(clips, len(clips) - len(missing), settings)
    return clips


def claim_folder(settings: Settings) -> files.Output:
    """Make the folder of the set; clips of the user, or of other settings, are not mixed in.

    Raises:
        ValueError: they are there
    """
    videos_dir, option = settings.videos_dir, "--videos-dir"
    if videos_dir.is_dir():
        others = {path.name for path in videos_dir.iterdir() if not path.name.startswith(".")}
        if others := sorted(others - {FOLDER}):
            raise ValueError(
                f"{videos_dir}: it holds {others[0]}, and practice videos are not mixed with other "
                f"ones; name another folder with {option}."
            )
    output = files.claim(videos_dir / FOLDER, option, __file__)
    made_with, path = cli.settings_of_result(settings), output.folder / MADE_WITH
    if not path.exists():
        output.write(MADE_WITH, partial(files.write_json, content=made_with))
    elif not output.owns(MADE_WITH) or json.loads(path.read_text(encoding="utf-8")) != made_with:
        raise ValueError(
            f"{output.folder}: it holds clips made with other settings, see {MADE_WITH}; delete "
            f"it, or name another folder with {option}."
        )
    return output


def write_person(output: files.Output, settings: Settings, clips: list[practice.Clip]) -> int:
    """Write clips of one person, whole or not at all, and return how many they are."""
    with output.writing([clip.name for clip in clips]) as paths:
        of_path = dict(zip(paths, clips, strict=True))
        practice.write_clips(of_path, settings.frames, settings.fps, settings.seed)
    return len(clips)


def print_set(clips: list[practice.Clip], kept: int, settings: Settings) -> None:
    """Print what the folder holds now, and what was kept."""
    labels = Counter(clip.label.lower() for clip in clips)
    sizes = Counter(f"{clip.width} x {clip.height}" for clip in clips)
    facts = [(f"{label} clips", f"{labels[label]:,}") for label in ("real", "fake")]
    facts += [("frames", f"{len(clips) * settings.frames:,}")]
    facts += [("size", f"{size}: {count:,} clips") for size, count in sorted(sizes.items())]
    facts += [("kept", f"{kept:,} clips that were there")]
    folder, script = settings.videos_dir.parent, "01-convert-video-to-image.py"
    script = os.path.relpath(Path(__file__).resolve().with_name(script), folder)
    step = f"python {shlex.quote(script)} --frames-per-video 20"
    step = step if folder == Path() else f"cd {shlex.quote(str(folder))} && {step}"
    cli.print_facts(settings.videos_dir / FOLDER, facts, step)


if __name__ == "__main__":
    cli.run(main)
