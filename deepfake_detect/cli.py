"""The command line of all scripts: settings, their ranges, printed summaries and exit codes."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_type_hints

import filelock
import tyro

from deepfake_detect import __version__, start

PROJECT = start.PROJECT
MACHINE = "machine"  # marks a setting that affects the speed, not the result


@dataclass(frozen=True)
class Between:
    """The range of a setting, or of each number in a tuple; both ends are included."""

    low: float
    high: float = math.inf

    def __str__(self) -> str:
        if self.high == math.inf:
            return "above 0" if self.low == sys.float_info.min else f"{self.low:,} or more"
        return f"{self.low:,} to {self.high:,}"


Share = Annotated[float, Between(0, 1)]
Count = Annotated[int, Between(1)]
Positive = Annotated[float, Between(sys.float_info.min, sys.float_info.max)]


def list_settings(settings: object) -> Iterator[tuple[str, object, tuple]]:
    """Yield the name, value and annotations of each setting, nested groups included."""
    hints = get_type_hints(type(settings), include_extras=True)
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from list_settings(value)
        else:
            yield field.name, value, tuple(list_annotations(hints[field.name]))


def list_annotations(hint: object) -> Iterator[object]:
    """Yield the annotations of a type and of its inner types, as in `Count | None`."""
    yield from getattr(hint, "__metadata__", ())
    for inner in getattr(hint, "__args__", ()):
        yield from list_annotations(inner)


def check_ranges(settings: object) -> None:
    """Check every setting against the range in its annotation.

    Raises:
        ValueError: a setting is outside its range, or NaN
    """
    for name, value, marks in list_settings(settings):
        numbers = value if isinstance(value, tuple) else (value,)
        for allowed in (mark for mark in marks if isinstance(mark, Between)):
            for number in (one for one in numbers if one is not None):
                if not allowed.low <= number <= allowed.high:
                    option = f"--{name.replace('_', '-')}"
                    raise ValueError(f"{option} is {number}; give a number {allowed}.")


def settings_of_result(settings: object) -> dict:
    """Return the settings that affect the result, as JSON types.

    Paths are left out, as files and folders can be moved, and so are settings marked as MACHINE.
    """
    kept = {
        name: value
        for name, value, marks in list_settings(settings)
        if MACHINE not in marks and not isinstance(value, Path)
    }
    return json.loads(json.dumps(kept, default=str))


def print_facts(
    title: object,
    facts: Mapping[str, object] | Iterable[tuple[str, object]],
    next_step: str | None = None,
) -> None:
    """Print the summary of a run: a title, then one indented line per label and fact.

    Args:
        title: such as the output folder
        facts: pairs of label and fact; a label may be empty or repeated
        next_step: the command to run next, for the last line
    """
    print(printable(title))
    pairs = facts.items() if isinstance(facts, Mapping) else facts
    for label, fact in [*pairs, *([("next", next_step)] if next_step else [])]:
        print(printable(f"  {label:15} {fact}"))


def printable(text: object) -> str:
    """Return text that is safe to print: escape control and text-direction characters."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(text))


def describe_error(error: BaseException) -> str:
    """Return an error as one line, with its type unless it is a type that the scripts raise."""
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return printable(f"{os.fsdecode(error.filename)}: {error.strerror}")
    words = printable(" ".join(str(error).split()))  # with file names that others chose
    named = isinstance(error, ValueError | OSError) and words
    return words if named else f"{type(error).__name__}: {words}"


def parse(main: Callable[..., object], arguments: list[str] | None = None) -> object:
    """Call main with the settings from the arguments; None: the arguments of this process."""
    script = Path(sys.argv[0]).name
    return tyro.cli(main, prog=script, args=arguments, config=(tyro.conf.OmitArgPrefixes,))


def run(main: Callable[..., object]) -> None:
    """Run the main function of a script from the command line.

    An error ends the run with one sentence and exit code 1; Ctrl-C, TERM and HUP end it with 130.
    """
    script = Path(sys.argv[0]).name
    start.prepare("__main__")
    start.handle_signals(signal.default_int_handler)  # finish or clean up work in progress
    gc.freeze()  # the collector skips the imported objects, which stay
    gc.enable()
    try:
        if "--version" in sys.argv[1:]:
            print(f"DeepFake-Detect {__version__}")
            return
        parse(main)
        sys.stdout.flush()  # a full disk is noticed here
    except KeyboardInterrupt:
        start.handle_signals(start.stop)  # a second Ctrl-C ends the process at once
        print(f"{script}: stopped; run the same command to continue.", file=sys.stderr)
        sys.exit(start.STOPPED)
    except filelock.Timeout as error:
        folder = Path(error.lock_file).parent
        sys.exit(f"{script}: {folder}: another run is using this folder; wait for it to finish.")
    except BrokenPipeError:  # as in `... | head`: the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except (ValueError, OSError, MemoryError) as error:
        sys.exit(f"{script}: {describe_error(error)}")
