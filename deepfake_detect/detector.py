"""Check videos and pictures for swapped and re-enacted faces: the Python interface.

    from deepfake_detect import Detector
    detector = Detector()
    result = detector.check("clip.mp4")
    print(result.verdict, result.score)

The package prints nothing, and writes files only in write_report and write_marked_copy.
"""

from __future__ import annotations

import datetime
import functools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from deepfake_detect import __version__
from deepfake_detect.cli import (
    check_ranges,
    describe_error,
    settings_of_result,
)
from deepfake_detect.detection_model import DetectionModel, find_model
from deepfake_detect.detection_settings import DetectionSettings
from deepfake_detect.errors import (
    CancelledError,
    DetectionError,
    ModelError,
    SourceChangedError,
    SourceNotFoundError,
    SourceTooLargeError,
    SourceUnreadableError,
)
from deepfake_detect.faces import measure_look
from deepfake_detect.files import check_plain_file, write_whole
from deepfake_detect.inputs import read_ahead, read_picture
from deepfake_detect.provenance import Provenance, check_trust_list, read_provenance
from deepfake_detect.result import Evidence, Failure, Result
from deepfake_detect.scored_frames import Scored, ScoredFrames, find_moments
from deepfake_detect.search import (
    CONFIDENCE,
    USUAL,
    Found,
    Way,
    find_faces,
    list_tried,
    look_again,
)
from deepfake_detect.source import (
    Frames,
    Opened,
    Sample,
    Source,
    batch_frames,
    open_source,
    read_state,
    translate,
)
from deepfake_detect.verdict import Judgement, judge_file
from deepfake_detect.video import Video

__all__ = [
    "CancelledError",
    "DetectionError",
    "DetectionSettings",
    "Detector",
    "Frames",
    "ModelError",
    "Source",
    "SourceChangedError",
    "SourceNotFoundError",
    "SourceTooLargeError",
    "SourceUnreadableError",
]

Progress: TypeAlias = Callable[[str, int, int | None], object]  # phase, done, total (None: unknown)
LOOKING, AGAIN, DRAWING = "Looking for faces", "Looking again", "Drawing the marked copy"
LARGEST_VIDEO = 5_000_000  # bytes of the video in a report


@dataclass
class Watch:
    """Report the progress of a check to the caller, and ask the caller whether to stop."""

    progress: Progress | None
    cancelled: Callable[[], bool] | None

    def step(self, phase: str, done: int, total: int | None) -> None:
        """Report the progress of a phase.

        Raises:
            CancelledError: the caller asked to stop
        """
        if self.cancelled is not None and self.cancelled():
            raise CancelledError("cancelled")
        if self.progress is not None:
            self.progress(phase, done if total is None else min(done, total), total)


class Detector:
    """A model that is loaded once; any number of threads may use it."""

    def __init__(
        self, model: Path | str | None = None, settings: DetectionSettings = DetectionSettings()
    ) -> None:
        """Load a model.

        Args:
            model: .onnx file from 04-train-cnn.py; None: model/best_model.onnx, or the included
                model if that file is missing
            settings: see DetectionSettings

        Raises:
            ModelError: the model cannot be used.
            ValueError: a setting is out of its range, or the trust list holds no certificates.
            OSError: the trust list cannot be read.
        """
        check_ranges(settings)
        if settings.trust_list is not None:
            check_trust_list(settings.trust_list)
        self.settings = settings
        try:
            with ThreadPoolExecutor(1) as thread:
                # OpenCV makes tables for its first conversion to Lab colours: 0.1 s.
                thread.submit(measure_look, np.zeros((1, 1, 3), np.uint8))
                self.model = DetectionModel.load(find_model(None if model is None else Path(model)))
        except (OSError, ValueError) as error:
            raise ModelError(str(error)) from error

    # --- Checking ---------------------------------------------------------------------------------

    def check(
        self,
        source: Source,
        *,
        name: str | None = None,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Result:
        """Check a video or a picture.

        Args:
            source: a path, the bytes of a file, a file open for reading, a picture (BGR uint8
                (height, width, 3)), or an iterable of (seconds, frame); all its frames are scored
            name: name in the result; None: the path as given
            progress: called with the phase, the finished count and the total; the count never
                exceeds the total
            cancelled: called between frames; the check stops if it returns True

        Raises:
            DetectionError: one of its subclasses; a source does not cause other exceptions.
        """
        watch = Watch(progress, cancelled)
        try:
            with ThreadPoolExecutor(1) as thread:
                opened = open_source(source, name, self.settings.most_pixels)
                said = thread.submit(read_claims, opened, self.settings)
                result = self._check(opened, watch)
                opened.check_unchanged()
                return replace(result, provenance=said.result())
        except DetectionError:
            raise
        except MemoryError as error:
            raise SourceTooLargeError("there is not enough memory for it") from error
        except (OSError, ValueError) as error:
            raise translate(error) from error
        except Exception as error:  # a library failed on the content of the file
            raise SourceUnreadableError(describe_error(error)) from error

    def check_all(
        self,
        sources: Iterable[Source],
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Iterator[Result | Failure]:
        """Check sources one after another; yield a Failure for a source that cannot be checked.

        Raises:
            CancelledError: the caller asked to stop
        """
        for number, source in enumerate(sources, start=1):
            try:
                yield self.check(source, progress=progress, cancelled=cancelled)
            except CancelledError:
                raise
            except DetectionError as error:
                is_path = isinstance(source, str | Path)
                name = str(source) if is_path else f"source {number}"
                yield Failure(name, describe_error(error), error)

    def _check(self, opened: Opened, watch: Watch) -> Result:
        """Score the frames, search again where needed, and judge the faces."""
        rate, fewest = self.settings.frames_per_second, self.settings.fewest_frames
        total = opened.guess_count(rate, fewest)
        way = USUAL
        scored = self._look(opened.sample(rate, fewest), way, watch, (LOOKING, total))
        if not scored.faces:
            scored = self._look_at_other_streams(opened, scored, watch)
        if not scored.faces:
            other, unsure = look_again(scored.first, self.model.decision)
            scored.unsure = max(scored.unsure, unsure)
            if other is not None and opened.frames is None:
                way = other
                opened.notes.append(way.describe())
                scored = self._look(opened.sample(rate, fewest), way, watch, (AGAIN, total))
        tracks = scored.join(self.settings)
        if times := find_moments(tracks, scored.times, self.model.decision, self.settings):
            extra = opened.sample_at(times, set(scored.times))
            scored.merge(self._look(extra, way, watch, (AGAIN, len(times)), scored.size))
            tracks = scored.join(self.settings)
        judgement = judge_file(
            tracks,
            opened.kind,
            self.model.decision,
            self.settings,
            len(scored.times),
            opened.find_hindrance(),
        )
        return self._describe(opened, scored, judgement)

    def _look_at_other_streams(
        self, opened: Opened, scored: ScoredFrames, watch: Watch
    ) -> ScoredFrames:
        """Search the further video streams; return the faces of the first stream with any."""
        rate, fewest = self.settings.frames_per_second, self.settings.fewest_frames
        first = opened.video
        for video in opened.open_streams():
            opened.video = video
            try:
                other = self._look(opened.sample(rate, fewest), USUAL, watch, (AGAIN, None))
            except (OSError, ValueError):
                opened.notes.append(f"video stream {video.stream} cannot be read")
                continue
            if other.faces:
                said = "was checked, as there is no face in the first"
                opened.notes.append(f"video stream {video.stream} {said}")
                return other
        opened.video = first
        return scored

    def _look(
        self,
        frames: Iterator[Sample],
        way: Way,
        watch: Watch,
        phase: tuple[str, int | None],
        size: tuple[int, int] | None = None,
    ) -> ScoredFrames:
        """Find and score the faces in small batches of frames, so that memory does not grow.

        The next batch is decoded and searched while the previous batch is scored.
        """
        decision, scored = self.model.decision, ScoredFrames(self.settings.explained, size)
        words, total = phase
        watch.step(words, 0, total)
        batches = batch_frames(frames, self.settings.frames_at_once, self.settings.pixels_at_once)

        def search() -> Iterator[tuple[list[Sample], list, float]]:
            for batch in read_ahead(batches, 1):
                yield batch, *find_faces([frame.image for frame in batch], decision, way)

        for batch, found, unsure in read_ahead(search(), 1):
            scored.unsure = max(scored.unsure, unsure)
            for frame, faces in zip(batch, found, strict=True):
                scored.add(frame, self._score(faces))
            watch.step(words, len(scored.times), total)
        return scored

    def _score(self, found: list[Found]) -> list[Scored]:
        """Score the faces of a frame."""
        if not found:
            return []
        p_fake, evidence = self.model.score(np.stack([face.crop for face in found]))
        return list(zip(found, p_fake.tolist(), evidence, strict=True))

    def _describe(self, opened: Opened, scored: ScoredFrames, judgement: Judgement) -> Result:
        """Return the result."""
        track, thresholds = judgement.track, judgement.thresholds
        number_of = {id(face): track.number for track in judgement.tracks for face in track.faces}
        worst = [(number_of[id(face)], face) for face, _, _ in scored.worst]
        size = self.model.decision.image_size
        evidence = Evidence(
            source=opened.source,
            state=opened.state,
            stream=opened.video.stream if opened.video is not None else None,
            crops=np.array([crop for _, crop, _ in scored.worst]).reshape(-1, size, size, 3),
            heat=np.array([places for _, _, places in scored.worst]),
            crop_faces=tuple(worst),
            still=scored.still,
            still_seconds=scored.still_face.seconds if scored.still_face else 0.0,
        )
        reason = judgement.reason
        if track is None:
            reason = word_no_face(opened.kind, scored)
        return Result(
            name=opened.name,
            kind=opened.kind,
            verdict=judgement.verdict,
            reason=reason,
            p_fake=track.p_fake if track else None,
            interval=track.interval if track else None,
            part=track.part if track else None,
            track=track.number if track else None,
            tracks=judgement.tracks,
            threshold=round(thresholds.fake, 4),
            real_below=round(thresholds.real, 4),
            part_threshold=round(thresholds.part, 4) if opened.kind == "video" else None,
            frames_scored=len(scored.times),
            width=scored.size[0] if scored.size else 0,
            height=scored.size[1] if scored.size else 0,
            seconds=round(opened.seconds, 3),
            notes=tuple(dict.fromkeys(opened.list_notes())),
            provenance=None,
            sha256=opened.sha256,
            size=opened.size,
            model=Path(self.model.name).name,
            model_sha256=self.model.sha256,
            version=__version__,
            settings=settings_of_result(self.settings),
            date=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            evidence=evidence,
        )

    # --- Showing ----------------------------------------------------------------------------------

    def render_report(
        self, result: Result, *, video: str | None = None, download: str | None = None
    ) -> str:
        """Return the report as HTML.

        Args:
            result: from check
            video: address of a marked copy to play; None: show a still picture
            download: address of the report as a file; if given, return an <article> for another
                page, without a head
        """
        from deepfake_detect import report  # imports Jinja, which a check does not need

        content = report.collect(result, self.model)
        return report.render(content | {"video": video, "download": download})

    def write_report(self, result: Result, path: Path | str, *, video: bool | Path = True) -> None:
        """Write the report: one self-contained HTML file.

        Args:
            result: from check
            path: path of the report
            video: True: read the source again and embed a small marked video; a path: embed this
                video from write_marked_copy; False, or if the video cannot be made: show the most
                suspicious frame

        Raises:
            OSError: the report cannot be written.
        """
        small = None
        if video and result.kind == "video" and result.tracks:
            small = embed_video(result, None if video is True else video)
        data = self.render_report(result, video=small).encode("utf-8", "replace")
        write_whole(Path(path), lambda partial: partial.write_bytes(data))

    def write_marked_copy(
        self,
        result: Result,
        path: Path | str,
        *,
        small: Path | str | None = None,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[str]:
        """Write a copy with a box on every face: .mp4 for a video, .png for a picture.

        Args:
            result: from check
            path: path of the copy
            small: for a video, path of a small copy for write_report, written in the same pass
            progress: as in check
            cancelled: as in check

        Returns:
            notes about the copy for the reader, such as missing sound

        Raises:
            CancelledError: the caller asked to stop
            OSError, ValueError: the copy cannot be written, or the source cannot be read again.
        """
        from deepfake_detect import marked_video

        watch = Watch(progress, cancelled)
        notes: list[str] = []
        source = find_source(result)
        boxes_at = marked_video.interpolate(result.tracks)

        def write(partial: Path) -> None:
            if isinstance(source, Video):
                step = functools.partial(watch.step, DRAWING)
                also = (Path(small), list_moments(result)) if small else None
                marked_video.write_marked_video(
                    source, boxes_at, partial, notes, progress=step, small=also
                )
                return
            if isinstance(source, np.ndarray):
                picture = source.copy()
            else:
                picture = read_picture(source, self.settings.most_pixels)
            marked_video.write_marked_picture(picture, boxes_at(0.0), partial)

        write_whole(Path(path), write)
        return notes


def find_source(result: Result) -> Path | bytes | np.ndarray | Video:
    """Return the source of a result, to read it again.

    Raises:
        ValueError: the source can be read only once
        SourceChangedError: the file has changed since the check
    """
    evidence = result.evidence
    if evidence is None or not isinstance(evidence.source, Path | bytes | np.ndarray):
        raise SourceUnreadableError(
            "its frames were given one by one, so they cannot be read again"
        )
    if isinstance(evidence.source, Path):
        check_plain_file(evidence.source)
        if evidence.state != read_state(evidence.source):
            raise SourceChangedError("it changed since it was checked")
    if evidence.stream is not None and not isinstance(evidence.source, np.ndarray):
        return Video(evidence.source, evidence.stream, threads=0)
    return evidence.source


def list_moments(result: Result) -> list[tuple[float, float]]:
    """Return first and last seconds of suspicious moments, which a small copy shows in full."""
    faces = result.evidence.crop_faces if result.evidence else ()
    spans = [(face.seconds, face.seconds) for _, face in faces]
    parts = [track.part for track in result.tracks if track.part]
    return spans + [(part.first_seconds, part.last_seconds) for part in parts]


def embed_video(result: Result, made: Path | None) -> str | None:
    """Return the small marked video of a report as a data: address; None if it cannot be made.

    Args:
        result: from Detector.check
        made: path of the video, if it exists already
    """
    from deepfake_detect import marked_video, report

    try:
        if made is not None:
            data = made.read_bytes()
        else:
            source = find_source(result)
            if not isinstance(source, Video):
                return None
            boxes_at, moments = marked_video.interpolate(result.tracks), list_moments(result)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "small.mp4"
                marked_video.write_small_copy(source, boxes_at, moments, path)
                data = path.read_bytes()
    except (OSError, ValueError):
        return None
    return report.embed(data, "video/mp4") if len(data) <= LARGEST_VIDEO else None


def word_no_face(kind: str, scored: ScoredFrames) -> str:
    """Return a sentence about the searches, for a file without a face."""
    where = "it" if kind == "picture" else f"{len(scored.times):,} frames"
    said = f"no face was found in {where}, looked for {' and '.join(list_tried())}"
    if scored.unsure:
        said += (
            f"; the nearest to a face has a confidence of {scored.unsure:.3f}, and {CONFIDENCE:g} "
            "is needed"
        )
    return said


def read_claims(opened: Opened, settings: DetectionSettings) -> Provenance | None:
    """Return the file's statements about itself."""
    if isinstance(opened.source, Path | bytes):
        return read_provenance(opened.source, settings.trust_list, settings.show_location)
    return None
