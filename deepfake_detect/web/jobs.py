"""Check the files of visitors one after another, and always delete them afterwards.

Each file is a job with its own folder. The parent folder is locked while the page is open; the next
page of the same user deletes the folders of a killed page.
"""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import filelock

from deepfake_detect.cli import describe_error
from deepfake_detect.practice import write_examples
from deepfake_detect.result import Failure, Result

if TYPE_CHECKING:
    from deepfake_detect.detector import Detector

PREFIX = "deepfake-page-"
WAITING, OPENING, WRITING = "Waiting", "Opening the file", "Writing the report"  # phases
DONE, DELETED = "Done", "Deleted"
LEFT_AFTER = 5.0  # seconds after a tab is closed; a reload is faster
UNSEEN_AFTER = 150.0  # seconds without a request; a background tab sends one per minute
SHOWN = ("verdict", "score", "interval_95", "reason", "advice")  # JSON keys that the page shows
EXPECTED = 8.0  # seconds per check, until the first one is measured
MB = 10**6


@dataclass(frozen=True)
class Limits:
    """The limits on uploads and storage.

    Attributes:
        upload: bytes per file
        kept: bytes of all uploads and results in total
        seconds: time until a result is deleted
    """

    upload: int
    kept: int
    seconds: float


class FullError(Exception):
    """The page keeps as much as it may."""


@dataclass(eq=False)
class Job:
    """A file to check, and its results."""

    name: str  # as the visitor named it
    folder: Path  # contains the upload and the results; deleted with the job
    marks: bool  # write a report and a marked copy
    seen: float = field(default_factory=time.monotonic)  # its tab's last request; inf: no tab
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))  # cannot be guessed
    phase: str = WAITING
    done: int = 0
    total: int | None = None
    began: float = 0.0  # start of the phase
    ended: float | None = None
    size: int = 0  # bytes on the disk
    busy: bool = False  # True while a thread works on it
    stop: threading.Event = field(default_factory=threading.Event)
    answer: dict | None = None  # JSON of the result or failure
    notes: list[str] = field(default_factory=list)  # about the marked copy
    marked: Path | None = None
    report: Future = field(default_factory=Future)  # done when the report is written or has failed
    checked: Future = field(default_factory=Future)  # done when `answer` is set

    @property
    def upload(self) -> Path:
        """Path of the file to check."""
        return self.folder / "upload"

    @property
    def article(self) -> Path:
        """Path of the report as a part of the page."""
        return self.folder / "article.html"

    def enter(self, phase: str, done: int = 0, total: int | None = None) -> None:
        """Record the progress."""
        if phase != self.phase:
            self.began = time.monotonic()
        self.phase, self.done, self.total = phase, done, total

    def is_unwanted(self) -> bool:
        """Return True if the job was cancelled, or its tab is closed."""
        return self.stop.is_set() or time.monotonic() - self.seen > UNSEEN_AFTER

    def measure(self) -> None:
        """Update the number of bytes on the disk."""
        with suppress(OSError):
            self.size = sum(path.stat().st_size for path in self.folder.iterdir())

    def share(self) -> float | None:
        """Return the finished share of the phase, 0 to 1; None if the total is unknown."""
        return min(self.done / self.total, 1.0) if self.total else None

    def seconds_left(self) -> float | None:
        """Estimate the remaining seconds of the phase from its speed so far."""
        share, passed = self.share(), time.monotonic() - self.began
        return passed * (1 - share) / share if share and passed > 1 else None


@dataclass
class Room:
    """Storage that is reserved for an upload in progress."""

    jobs: Jobs
    size: int = 0

    def grow(self, size: int) -> None:
        """Reserve `size` bytes in total, if this is more than before.

        Raises:
            FullError: the limit of all jobs together is reached
        """
        if size <= self.size:
            return
        others = sum(job.size for job in list(self.jobs.jobs.values()))
        if others + self.jobs.receiving + size - self.size > self.jobs.limits.kept:
            raise FullError(
                f"The page keeps {self.jobs.limits.kept // MB:,} MB of uploads and results at "
                "most. Remove some results, or try again later."
            )
        self.jobs.receiving += size - self.size
        self.size = size

    def free(self) -> None:
        """Release the reserved bytes."""
        self.jobs.receiving -= self.size
        self.size = 0


class Jobs:
    """All jobs of a page: one thread checks them in turn, another draws the marked copies."""

    def __init__(self, detector: Detector, folder: Path, limits: Limits) -> None:
        self.detector, self.folder, self.limits = detector, folder, limits
        self.jobs: dict[str, Job] = {}
        self.lock = threading.Lock()
        self.receiving = 0  # bytes of uploads in progress
        self.checking = ThreadPoolExecutor(1, "check")
        self.drawing = ThreadPoolExecutor(1, "draw")  # verdicts must not wait for drawings
        self.durations: deque[float] = deque([EXPECTED], maxlen=5)  # seconds of recent checks
        self.examples: dict[str, Path] = {}  # by label; drawn on the first request
        self.drawing_examples = threading.Lock()
        self.closed = threading.Event()
        self.cleaner = threading.Thread(target=self.keep_clean, daemon=True)
        self.cleaner.start()

    def find(self, identity: str) -> Job | None:
        """Return a job by its id; None if the job does not exist."""
        return self.jobs.get(identity)

    # --- From the visitors ------------------------------------------------------------------------

    def reserve(self, size: int) -> Room:
        """Reserve storage for an upload of `size` bytes; the room can grow later.

        Raises:
            FullError: the limit of all jobs together is reached
        """
        room = Room(self)
        room.grow(size)
        return room

    def add(self, name: str, content: BinaryIO, marks: bool) -> Job:
        """Store an upload and queue its check; with `marks`, also write a report and a marked copy.

        Raises:
            FullError, OSError: the upload cannot be stored.
        """
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        job = Job(name, folder, marks, *([] if marks else [math.inf]))
        try:
            with job.upload.open("xb") as file:
                shutil.copyfileobj(content, file, 2**20)
            job.measure()
            self.jobs[job.id] = job
            job.checked = self.checking.submit(self.work, job, self.check)
        except BaseException:
            self.jobs.pop(job.id, None)
            delete(folder)
            raise
        return job

    def add_example(self, label: str) -> Job:
        """Queue the check of a practice clip, real or fake; the first call draws the clips."""
        folder = self.folder / EXAMPLES
        with self.drawing_examples:
            if not self.examples:
                folder.mkdir()
                self.examples = write_examples(folder)
        with self.examples[label].open("rb") as file:
            return self.add(self.examples[label].name, file, marks=True)

    def remove(self, job: Job) -> None:
        """Cancel a job and delete its files, immediately or when its thread stops."""
        with self.lock:
            self.jobs.pop(job.id, None)
            job.stop.set()
            busy = job.busy
        settle(job.report)
        if not busy:
            delete(job.folder)

    def see(self, job: Job) -> None:
        """Record that the tab of a job is open."""
        job.seen = time.monotonic()

    def leave(self, job: Job) -> None:
        """Record that the tab of a job was closed; it has a few seconds to return."""
        job.seen = min(job.seen, time.monotonic() - UNSEEN_AFTER + LEFT_AFTER)

    def describe(self, job: Job | None, identity: str) -> dict:
        """Return the state of a job for the page, as plain values; also for a deleted job."""
        if job is None:
            return {"id": identity, "phase": DELETED}
        said = {"id": job.id, "name": job.name, "phase": job.phase, "share": job.share()}
        if job.phase == WAITING:
            waiting = [one for one in list(self.jobs.values()) if one.answer is None]
            before = waiting.index(job) if job in waiting else 0
            mean = sum(self.durations) / len(self.durations)
            return said | {"before": before, "seconds_left": before * mean}
        said["seconds_left"] = job.seconds_left()
        if job.answer:
            said |= {key: job.answer[key] for key in SHOWN if key in job.answer}
            said |= {"marked": job.marked and job.marked.name, "ready": job.report.done()}
            said["notes"] = job.notes
        return said

    # --- In the threads ---------------------------------------------------------------------------

    def work(self, job: Job, step: Callable[[Job], None]) -> None:
        """Run a step of a job, unless the job is cancelled or its tab is closed."""
        with self.lock:
            job.busy = not job.stop.is_set()
        if not job.busy:
            return
        try:
            if not job.is_unwanted():
                step(job)
        finally:
            with self.lock:
                job.busy = False
            if job.is_unwanted():
                self.remove(job)

    def check(self, job: Job) -> None:
        """Check the upload; the other thread then writes the report.

        The result is released after the report is written, because its pictures take memory.
        """
        began = time.monotonic()
        job.enter(OPENING)
        try:
            result = self.detector.check(
                job.upload, name=job.name, progress=job.enter, cancelled=job.is_unwanted
            )
            if job.marks:
                download = f"results/{job.id}/report.html?save"
                article = self.detector.render_report(result, download=download)
                job.article.write_text(article, encoding="utf-8", errors="replace")
                numbers = json.dumps(result.to_dict())
                (job.folder / "result.json").write_text(numbers, encoding="utf-8")
            whole = result.to_dict()  # megabytes for a long video; the page keeps only a part
            job.answer = {key: whole.get(key) for key in SHOWN} if job.marks else whole
        except Exception as error:  # only this file fails
            self.fail(job, error)
            return
        self.durations.append(time.monotonic() - began)
        if job.marks and not job.is_unwanted():
            self.drawing.submit(self.work, job, lambda job: self.draw(job, result))
        else:
            self.finish(job)

    def fail(self, job: Job, error: Exception) -> None:
        """Record why a file could not be checked."""
        reason = describe_error(error).replace(f"{job.upload}: ", "").replace(str(job.upload), "")
        failure = Failure(job.name, reason, error)
        job.answer = failure.to_dict() | {"advice": advise(error)}
        self.finish(job)

    def draw(self, job: Job, result: Result) -> None:
        """Write the marked copy and the report; record an error, but keep the verdict."""
        marked = job.folder / ("marked.png" if result.kind == "picture" else "marked.mp4")
        report = job.folder / "report.html"
        small = job.folder / "small.mp4"  # only for the report
        try:
            if result.tracks:
                job.notes += self.detector.write_marked_copy(
                    result, marked, small=small, progress=job.enter, cancelled=job.is_unwanted
                )
                job.marked = marked
        except Exception as error:
            job.notes.append(f"There is no marked copy: {describe_error(error)}")
        try:
            if not job.is_unwanted():
                job.enter(WRITING)
                video = small if job.marked and small.is_file() else False
                self.detector.write_report(result, report, video=video)
        except Exception as error:
            job.notes.append(f"The report could not be written: {describe_error(error)}")
        small.unlink(missing_ok=True)
        self.finish(job)

    def finish(self, job: Job) -> None:
        """Finish a job: delete its upload, and keep its results for a while."""
        delete(job.upload)
        job.measure()
        job.ended = time.monotonic()
        job.enter(DONE)
        settle(job.report)

    # --- Deleting ---------------------------------------------------------------------------------

    def keep_clean(self) -> None:
        """Delete old jobs until the page closes; continue after any error."""
        while not self.closed.wait(min(60, self.limits.seconds / 2)):
            try:
                self.clean()
            except Exception as error:
                print(f"deleting old uploads: {describe_error(error)}", file=sys.stderr)

    def clean(self) -> None:
        """Remove old jobs, jobs of closed tabs, and files that do not belong to a job."""
        now = time.monotonic()
        for job in list(self.jobs.values()):
            if now - job.ended > self.limits.seconds if job.ended else job.is_unwanted():
                self.remove(job)
        owned = {job.folder for job in list(self.jobs.values())} | {
            self.folder / LOCK,
            self.folder / EXAMPLES,
        }
        for path in set(self.folder.iterdir()) - owned:
            with suppress(OSError):
                if time.time() - path.lstat().st_mtime > self.limits.seconds:
                    delete(path)

    def close(self) -> None:
        """Cancel all jobs and wait for the threads."""
        self.closed.set()
        for job in list(self.jobs.values()):
            self.remove(job)
        for threads in (self.checking, self.drawing):
            threads.shutdown(cancel_futures=True)


def settle(future: Future) -> None:
    """Complete a future to wake its waiters; repeated calls have no effect."""
    with suppress(InvalidStateError):
        future.set_result(None)


# --- Advice ---------------------------------------------------------------------------------------

ADVICE = {
    "SourceUnreadableError": "It may be incomplete or of another kind: download or copy it again. "
    "If it plays elsewhere, save it as MP4 (a video) or JPEG (a picture) and drop that.",
    "SourceTooLargeError": "Save a smaller copy of it and drop that.",
}
OTHERWISE = "Drop it again. If that does not help, save it as MP4 or JPEG and drop that."


def advise(error: Exception) -> str:
    """Return advice to the visitor about a file that could not be checked."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "The disk of this computer is full: make room on it, then drop the file again."
    return ADVICE.get(type(error).__name__, OTHERWISE)


# --- Folders --------------------------------------------------------------------------------------

LOCK, EXAMPLES = "lock", "examples"  # in the folder of a page


def delete(path: Path) -> None:
    """Delete a file or folder, if it exists; delete a link, but not its target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@contextmanager
def open_folder() -> Iterator[Path]:
    """Make the folder of a page, readable only by this user; delete it at the end of the block.

    First delete the folders of this user's killed pages: their locks are free.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError, filelock.Timeout):
            own = not hasattr(os, "getuid") or left.lstat().st_uid == os.getuid()
            if left.is_symlink() or not own:
                continue
            if (left / LOCK).exists():
                with filelock.FileLock(left / LOCK, timeout=0):
                    shutil.rmtree(left, ignore_errors=True)
            elif time.time() - left.stat().st_mtime > 60:  # the page was killed before it locked it
                left.rmdir()  # a folder that is not empty is the user's
    folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
    try:
        with filelock.FileLock(folder / LOCK, timeout=0):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
