"""Check the faces in videos and pictures: are they swapped or re-enacted?

    python 06-detect-deepfake.py clip.mp4
    python 06-detect-deepfake.py "my clip.mp4" photo.jpg a-folder --frames-per-second 5
    python 06-detect-deepfake.py clip.mp4 --json --no-annotate > result.json
    python 06-detect-deepfake.py --check detections/clip.html clip.mp4

Looks for swapped and re-enacted faces; not for wholly generated faces or scenes, voices, drawings.

Reads   videos, pictures, folders of them
        model/best_model.onnx             the model and its decision, written by 04; if it is
                                          missing, the included weights/deepfake-detector.onnx
Writes  detections/results.csv            one row per file of this run
        detections/index.html             the same as a page, with links to the reports
        detections/<name>.html            a report to hand on: verdict, timeline, crops, limits
        detections/<name>.json            the full result, with the score of every face
        detections/<name>-marked.mp4      the video, or picture (.png), with a box on every face
Next    07-export-model.py

Frames are processed by the steps of 01 and 02, so the model scores the same crop of a face that
training would use. The faces of one person in a video form a track, and its score is the mean over
its frames, 0 to 100. A track is likely fake from one threshold on, likely real below another, and
undecided in between; training determined both thresholds. A few seconds that are much more
suspicious than the rest can decide alone. A score is not proof, and not a probability.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))  # python -P omits it

from deepfake_detect import start

start.prepare(__name__)

import contextlib
import json as to_json  # the option --json has its name
import os
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, TextIO

import tyro
from tqdm import tqdm

from deepfake_detect import cli, inputs, report
from deepfake_detect.cli import printable
from deepfake_detect.detector import DetectionError, DetectionSettings, Detector
from deepfake_detect.files import Output, claim, locked, name_unfinished, write_table
from deepfake_detect.result import (
    FAKE,
    NOT_CHECKED,
    REAL,
    UNDECIDED,
    Failure,
    Result,
    count_verdicts,
    to_score,
)


@dataclass(frozen=True)
class Settings:
    """Edit a default here, or override it for one run: --frames-per-second 1."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()  # videos, pictures, folders
    # folders
    model: Path | None = None  # .onnx file from 04; None: in model/, else the included model
    detections_dir: Path = Path("detections")  # folder for the results
    # output
    annotate: bool = True  # write a marked copy, and embed a small one in the report
    json: bool = False  # print the results as JSON, and everything else to standard error
    quiet: bool = False  # print nothing but the JSON and errors
    check: Path | None = None  # compare this report with the file, instead of writing a report
    # detection
    detection: Annotated[DetectionSettings, tyro.conf.arg(help="detection")] = field(
        default_factory=DetectionSettings
    )  # with its help, because tyro would parse the whole script to find this comment


OUTPUTS = (".html", ".json", "-marked.mp4", "-marked.png")  # endings of the output files
COLUMNS = ("file", "kind", "verdict", "score", "p_fake", "low", "high", "from", "to", "reason")
COLUMNS += ("faces", "faces_judged", "frames_scored", "notes", "sha256")
COLOURS = {FAKE: 31, REAL: 32, UNDECIDED: 33, NOT_CHECKED: 35}  # ANSI colour codes
NAMED = 10  # most files that the last sentence names
SAME_SCORE = 0.002  # tolerance for p_fake, as processors round differently


def main(settings: Settings = Settings()) -> list[Result | Failure]:
    """Check the faces in videos and pictures: are they swapped or re-enacted?

    Looks for swapped and re-enacted faces; not for wholly generated faces or scenes, voices,
    drawings. A score is not proof, and not a probability.

    Exit code: 0 if all files were checked (with --check: if the report is correct), 1 if some were
    not, 2 for invalid options, 130 if stopped.

    Returns:
        a result or a failure for each file

    Raises:
        ValueError: the model or a setting cannot be used, or some files could not be checked (the
            others were).
        OSError: the folder for the results cannot be written.
    """
    cli.check_ranges(settings)
    if settings.check:
        return [check_report(settings.check, settings)]
    found = inputs.find_inputs(settings.files)
    if not found.files:
        advice = "name one: python 06-detect-deepfake.py clip.mp4"
        places = ", ".join(map(printable, settings.files)) or "what was given"
        passed = "".join(f"; passed over {line}" for line in found.summarize())
        raise ValueError(f"There is no video or picture in {places}{passed}; {advice}")
    ThreadPoolExecutor(1).submit(report.prepare)  # 0.15 s, while OpenCV loads the model
    detector = Detector(settings.model, settings.detection)
    output = claim(settings.detections_dir, "--detections-dir", __file__, shared=True)
    with locked(settings.detections_dir), open_talk(settings) as to:
        output.check(["results.csv", *(["index.html"] if len(found.files) > 1 else [])])
        print_head(detector, to)
        names = inputs.name_outputs(
            found.files, lambda name, file: output.is_free([name + end for end in OUTPUTS], file)
        )
        width = max(len(printable(file.name)) for file in found.files)
        results: list[Result | Failure] = []
        with print_json(settings.json) as print_item:
            for source, name in zip(found.files, names, strict=True):
                results.append(check_file(source, detector))
                print(describe(results[-1], min(width, 40), to.isatty()), file=to, flush=True)
                if isinstance(results[-1], Result):
                    said = len(results[-1].notes)
                    results[-1] = write_outputs(
                        results[-1], source, name, detector, output, settings
                    )
                    print_notes(results[-1], said, to)
                print_item(results[-1])
        write_summary(results, names, output)
        print_summary(results, names, found, settings, to)
    failed = [printable(one.name) for one in results if isinstance(one, Failure)]
    if failed:
        named = ", ".join(failed[:NAMED]) + (", ..." if len(failed) > NAMED else "")
        raise ValueError(f"{len(failed):,} of {len(results):,} files were not checked: {named}.")
    return results


def check_file(source: Path, detector: Detector) -> Result | Failure:
    """Check a file; return any error as a failure, so that the other files are still checked."""
    try:
        if inputs.is_own(Output(source.parent, "", ""), source.name):
            raise ValueError("was written by this script itself")
        with open_bar(source) as progress:
            return detector.check(source, progress=progress)
    except (DetectionError, ValueError, OSError) as error:
        return Failure(str(source), cli.describe_error(error), error)


# --- Output files ---------------------------------------------------------------------------------


def write_outputs(
    result: Result, source: Path, name: str, detector: Detector, output: Output, settings: Settings
) -> Result | Failure:
    """Write the report, the marked copy and the JSON; an output that fails becomes a note.

    The report is written first, and again with a small copy inside when the copy is finished.

    Returns:
        the result with its notes and without its pictures, or a failure if writing the JSON failed
    """
    ending = "-marked.png" if result.kind == "picture" else "-marked.mp4"
    output.delete([name + end for end in OUTPUTS if end.startswith("-marked")], source)
    notes: list[str] = []

    def write(ending: str, make: Callable[[Path], object]) -> None:
        try:
            output.write(name + ending, make, source)
        except Exception as error:  # from any library; only this output is lost
            notes.append(f"{name}{ending} is not written: {describe_cause(error)}")

    write(".html", lambda path: detector.write_report(result, path, video=False))
    if settings.annotate and result.tracks:
        small = name_unfinished(output.folder, ".mp4")  # only for the report
        with open_bar(source) as progress:

            def draw(path: Path) -> None:
                options = {"small": small, "progress": progress}
                notes.extend(detector.write_marked_copy(result, path, **options))

            try:
                write(ending, draw)
                if small.is_file() and (output.folder / (name + ending)).is_file():
                    write(".html", lambda path: detector.write_report(result, path, video=small))
            finally:
                small.unlink(missing_ok=True)
    result = replace(result, notes=(*result.notes, *notes), evidence=None)  # saves memory
    text = to_json.dumps(result.to_dict(), indent=2, allow_nan=False) + "\n"
    try:
        output.write(f"{name}.json", lambda path: path.write_text(text, encoding="utf-8"), source)
    except (OSError, ValueError) as error:  # such as a full disk: the next file may be smaller
        reason = f"{name}.json is not written: {describe_cause(error)}"
        return Failure(str(source), reason, error)
    return result


def describe_cause(error: Exception) -> str:
    """Return an error as one line; without its path, as the sentence around it names the file."""
    return getattr(error, "strerror", None) or cli.describe_error(error)


def write_summary(results: list[Result | Failure], names: list[str], output: Output) -> None:
    """Write results.csv and, for several files, index.html."""
    rows = [tabulate(result) for result in results]
    output.write("results.csv", lambda path: write_table(path, COLUMNS, rows))
    if len(results) > 1:
        links = [f"{urllib.parse.quote(name, errors='replace')}.html" for name in names]
        there = [
            has_report(result, output.folder / f"{name}.html")
            for result, name in zip(results, names, strict=True)
        ]
        page = report.render_index(results, links, there).encode("utf-8", "replace")
        output.write("index.html", lambda path: path.write_bytes(page))


def has_report(result: Result | Failure, page: Path) -> bool:
    """Return True if a page is the report of this result, not of an earlier run."""
    return isinstance(result, Result) and page.is_file()


def tabulate(result: Result | Failure) -> list[object]:
    """Return a row of results.csv."""
    if isinstance(result, Failure):
        cells = {"file": result.name, "verdict": result.verdict, "reason": result.reason}
        return [cells.get(column) for column in COLUMNS]
    low, high = result.interval or (None, None)
    part = result.part
    return [
        *(result.name, result.kind, result.verdict, result.score, result.p_fake, low, high),
        *((part.first_seconds, part.last_seconds) if part else (None, None)),
        *(result.reason, len(result.tracks), result.faces_judged, result.frames_scored),
        *("; ".join(result.notes), result.sha256),
    ]


# --- Printed output -------------------------------------------------------------------------------


@contextlib.contextmanager
def open_talk(settings: Settings) -> Iterator[TextIO]:
    """Yield the stream for people: standard output, standard error with --json, or a null file."""
    if settings.quiet:
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            yield nowhere
    else:
        yield sys.stderr if settings.json else sys.stdout


@contextlib.contextmanager
def print_json(wanted: bool) -> Iterator[Callable[[Result | Failure], None]]:
    """Print results as one JSON array, each as soon as it is ready; close the array on Ctrl-C."""
    before = "["

    def print_item(result: Result | Failure) -> None:
        nonlocal before
        if wanted:
            print(before + to_json.dumps(result.to_dict(), allow_nan=False), flush=True)
            before = ","

    try:
        yield print_item
    finally:
        if wanted:
            print("]" if before == "," else "[]", flush=True)


@contextlib.contextmanager
def open_bar(source: Path) -> Iterator[Callable[[str, int, int | None], None]]:
    """Show a progress bar for a file, on a terminal only."""
    with tqdm(unit="frame", leave=False, disable=None) as bar:

        def show(phase: str, done: int, total: int | None) -> None:
            bar.total = total
            bar.set_description(f"{printable(source.name)}: {phase}", refresh=False)
            bar.update(done - bar.n)

        yield show


def print_head(detector: Detector, to: TextIO) -> None:
    """Print the model and the facts that all results share."""
    decision = detector.model.decision
    fake, real = to_score(decision.threshold), to_score(decision.real_below)
    print(f"model    {printable(detector.model.name)}", file=to)
    if detector.model.training.get("practice") is True:
        print("         trained on practice clips: it knows nothing of real files", file=to)
    print(f"scores   0 to 100; {fake} and more is fake, below {real} real; no probability", file=to)
    print("faces    swapped or re-enacted; not generated ones, scenes, voices, drawings", file=to)


def describe(result: Result | Failure, width: int, colour: bool) -> str:
    """Return a line about a result, then a line for each note and for the file's own statements."""
    verdict = f"{result.verdict:11}"
    if colour and result.verdict in COLOURS and not os.environ.get("NO_COLOR"):
        verdict = f"\033[{COLOURS[result.verdict]}m{verdict}\033[0m"
    name = printable(Path(result.name).name)
    if isinstance(result, Failure):
        return f"{verdict}  {'':14}  {name:{width}}  {printable(result.reason)}"
    score, facts = "", []
    if result.score is not None:
        low, high = map(to_score, result.interval or (0, 0))
        score = f"{result.score:3} ({low} to {high})" if result.interval else f"{result.score:3}"
    if result.part:
        facts.append(f"{report.describe_part(result.part)}: {to_score(result.part.p_fake)}")
    if result.tracks:
        fake = sum(track.verdict == FAKE for track in result.tracks)
        count = "1 face" if len(result.tracks) == 1 else f"{len(result.tracks)} faces"
        facts.append(f"{fake} of {count} likely fake")
        facts += [f"{result.frames_scored:,} frames"] if result.kind == "video" else []
    if result.reason:
        facts.append(result.reason)
    line = f"{verdict}  {score:14}  {name:{width}}  {printable('; '.join(facts))}"
    more = [f"note: {note}" for note in result.notes]
    more += [f"file: {result.provenance.sentence()}"] if result.provenance else []
    return "\n".join([line, *(f"{'':11}  {printable(said)}" for said in more)])


def print_notes(result: Result | Failure, said: int, to: TextIO) -> None:
    """Print the notes about the outputs, or the failure to write them, after the verdict."""
    later = [result.reason] if isinstance(result, Failure) else result.notes[said:]
    for note in later:
        print(f"{'':11}  note: {printable(note)}", file=to, flush=True)


def print_summary(
    results: list[Result | Failure],
    names: list[str],
    found: inputs.Inputs,
    settings: Settings,
    to: TextIO,
) -> None:
    """Print the counts, the skipped files, and the page to open next."""
    folder = settings.detections_dir
    facts = [
        (
            "checked",
            f"{sum(isinstance(one, Result) for one in results):,} of {len(results):,} files",
        )
    ]
    facts += [(verdict, f"{count:,}") for verdict, count in count_verdicts(results).items()]
    facts += [("passed over", line) for line in found.summarize()]
    page = folder / (f"{names[0]}.html" if len(results) == 1 else "index.html")
    ready = page.is_file() if len(results) > 1 else has_report(results[0], page)
    with contextlib.redirect_stdout(to):
        cli.print_facts(folder, facts, f"open {page}" if ready else None)


# --- Checking a report ----------------------------------------------------------------------------


def check_report(page: Path, settings: Settings) -> Result:
    """Check a file again with a report's settings; compare checksums, verdict and scores.

    Raises:
        ValueError: the page is not a report, or it differs from the new result
    """
    if len(settings.files) != 1:
        raise ValueError("--check needs the report and one file: --check clip.html clip.mp4")
    stored = report.read_result(page)
    known = {field.name for field in fields(DetectionSettings)}
    try:
        numbers = {  # but not the paths, as a stranger may have written the report
            name: value
            for name, value in stored["settings"].items()
            if name in known and isinstance(value, int | float)
        }
        detection = DetectionSettings(**numbers)
        cli.check_ranges(detection)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{page}: its settings make no sense.") from error
    result = Detector(settings.model, detection).check(settings.files[0])
    now = result.to_dict()
    differ = [
        name for name in ("sha256", "model_sha256", "verdict") if stored.get(name) != now[name]
    ]
    largest = compare_scores(stored["tracks"], now["tracks"])
    if largest is None or largest > SAME_SCORE:
        differ.append("scores")
    words = {"sha256": "file", "model_sha256": "model", "verdict": "verdict", "scores": "scores"}
    with open_talk(settings) as to, contextlib.redirect_stdout(to):
        same = {word: "not the same" if name in differ else "same" for name, word in words.items()}
        if largest is not None:
            same["scores"] += f" (largest difference {100 * largest:.2f} of 100)"
        cli.print_facts(page, same)
    if differ:
        named = ", ".join(words[name] for name in differ)
        raise ValueError(f"{printable(page)}: not the same as this file gives now: {named}.")
    return result


def compare_scores(stored: list[dict], now: list[dict]) -> float | None:
    """Return the largest difference of p_fake between equal faces; None if the faces differ."""

    def list_faces(tracks: list[dict]) -> dict[tuple, float]:
        sides = ("frame", "x", "y", "width", "height")
        faces = (face for track in tracks for face in track["faces"])
        return {tuple(face[side] for side in sides): float(face["p_fake"]) for face in faces}

    try:
        before, after = list_faces(stored), list_faces(now)
    except (KeyError, TypeError, ValueError):
        return None
    if set(before) != set(after):
        return None
    return max((abs(before[key] - after[key]) for key in before), default=0.0)


if __name__ == "__main__":
    cli.run(main)
