"""Make practice videos, so that every step can be run before you own a data set.

    python 00-make-sample-videos.py
    python 00-make-sample-videos.py --people 48 --fakes 96

Writes  practice/videos/practice/*.mp4            real clips of invented people, and fakes of them
        practice/videos/practice/practice.json    their labels, in the format of the data set DFDC
Next    cd practice, then run 01-convert-video-to-image.py there, so its outputs stay in practice/

All people are variants of one portrait with different colours, light and proportions. In a fake,
one person's face replaces another's, see deepfake_detect/practice.py. A model that does well on
these clips shows that the pipeline works; it does not show that the model detects real deepfakes.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))  # python -P omits this folder
from deepfake_detect import start

start.prepare(__name__)  # Ctrl-C during the imports below ends the run with one sentence

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
MADE_WITH = "settings.json"  # written first, so that clips with other settings are never added
LABELS = "practice.json"  # written last, so its presence means that the set is complete


@dataclass(frozen=True)
class Settings:
    """Edit a default here, or override it for one run: --people 48."""

    # folders
    videos_dir: Path = Path("practice/videos")  # output; the clips go into practice/ below it
    # clips
    people: cli.Count = 24  # real clips, one per person
    fakes: Annotated[int, cli.Between(0)] = 36  # fake clips, spread evenly over the people
    frames: cli.Count = 40  # frames per clip
    fps: cli.Positive = practice.FPS  # frames per second
    seed: Annotated[int, cli.Between(0)] = 1  # random seed; the same seed makes the same frames
    widths: Annotated[tuple[int, ...], cli.Between(32)] = practice.WIDTHS  # pixels, in turn
    # machine
    workers: Annotated[cli.Count | None, cli.MACHINE] = None  # threads; None: one per core


def main(settings: Settings = Settings()) -> list[practice.Clip]:
    """Make practice videos, so that every step can be run before you own a data set.

    Returns:
        The clips of the set.

    Raises:
        ValueError: a number is out of range, or the folder holds other files
        OSError: the folder cannot be written, or OpenCV cannot write videos
    """
    cli.check_ranges(settings)
    if not settings.widths:
        raise ValueError("--widths is empty; give one width or more.")
    clips = practice.plan_clips(settings.people, settings.fakes, settings.seed, settings.widths)
    labels = {
        one.name: {"label": one.label, "split": "train", "original": one.original} for one in clips
    }
    output = claim_folder(settings)
    with files.locked(output.folder):
        missing = [clip for clip in clips if not output.owns(clip.name)]
        write_missing(output, settings, missing)
        if not output.owns(LABELS):
            output.write(LABELS, partial(files.write_json, content=labels))
    print_set(clips, len(clips) - len(missing), settings)
    return clips


def claim_folder(settings: Settings) -> files.Output:
    """Create the folder of the set, or reopen it if it was made with the same settings.

    Raises:
        ValueError: the folder holds other videos, or clips made with other settings
    """
    videos_dir, option = settings.videos_dir, "--videos-dir"
    if videos_dir.is_dir():
        others = {path.name for path in videos_dir.iterdir() if not path.name.startswith(".")}
        if others := sorted(others - {FOLDER}):
            raise ValueError(
                f"{videos_dir}: the folder holds {others[0]}, and practice videos cannot be mixed "
                f"with other videos; name another folder with {option}."
            )
    output = files.claim(videos_dir / FOLDER, option, __file__)
    made_with, path = cli.settings_of_result(settings), output.folder / MADE_WITH
    if not path.exists():
        output.write(MADE_WITH, partial(files.write_json, content=made_with))
    elif not output.owns(MADE_WITH) or json.loads(path.read_text(encoding="utf-8")) != made_with:
        raise ValueError(
            f"{output.folder}: the folder holds clips made with other settings, see {MADE_WITH}; "
            f"delete it, or name another folder with {option}."
        )
    return output


def write_missing(output: files.Output, settings: Settings, missing: list[practice.Clip]) -> None:
    """Write the missing clips, grouped by person: one scene gives the real clip and its fakes."""
    by_person = defaultdict(list)
    for clip in missing:
        by_person[clip.person].append(clip)
    with (
        ThreadPoolExecutor(settings.workers or os.cpu_count() or 1) as pool,
        tqdm(total=len(missing), desc="clips", unit="clip", disable=not missing or None) as bar,
    ):
        for made in pool.map(partial(write_person, output, settings), by_person.values()):
            bar.update(made)


def write_person(output: files.Output, settings: Settings, clips: list[practice.Clip]) -> int:
    """Write the clips of one person, all or none, and return their number."""
    with output.writing([clip.name for clip in clips]) as paths:
        of_path = dict(zip(paths, clips, strict=True))
        practice.write_clips(of_path, settings.frames, settings.fps, settings.seed)
    return len(clips)


def print_set(clips: list[practice.Clip], kept: int, settings: Settings) -> None:
    """Print the contents of the folder, and the number of clips kept from earlier runs."""
    labels = Counter(clip.label.lower() for clip in clips)
    sizes = Counter(f"{clip.width} x {clip.height}" for clip in clips)
    facts = [(f"{label} clips", f"{labels[label]:,}") for label in ("real", "fake")]
    facts += [("frames", f"{len(clips) * settings.frames:,}")]
    facts += [("size", f"{size}: {count:,} clips") for size, count in sorted(sizes.items())]
    facts += [("kept", f"{kept:,} clips from an earlier run")]
    folder, script = settings.videos_dir.parent, "01-convert-video-to-image.py"
    script = os.path.relpath(Path(__file__).resolve().with_name(script), folder)
    step = f"python {shlex.quote(script)} --frames-per-video 20"
    step = step if folder == Path() else f"cd {shlex.quote(str(folder))} && {step}"
    cli.print_facts(settings.videos_dir / FOLDER, facts, step)


if __name__ == "__main__":
    cli.run(main)
