"""Write copies of videos and pictures with a box and a score on every face.

    boxes_at = interpolate(tracks)                 # a function from seconds to boxes
    write_marked_video(source, boxes_at, path, notes)

A copy is H.264 video that browsers can play: every frame at its original time, with the sound but
without other streams of the source. A strip on every frame explains the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import cv2
import numpy as np

from deepfake_detect.canvas import Box, Canvas, fit_frame, planes_of, scale_boxes
from deepfake_detect.display import fit_image, image_to_yuv
from deepfake_detect.inputs import read_ahead
from deepfake_detect.kinds import Source
from deepfake_detect.packets import read_packets
from deepfake_detect.sampling import Chooser, choose_by_rate
from deepfake_detect.video import Video

if TYPE_CHECKING:
    from deepfake_detect.result import Track

AHEAD = 4  # frames to decode in advance
CLOCK = Fraction(1, 90_000)  # seconds; time base of a copy
LARGEST_SHARE = 1.2  # bit rate relative to the source; with the container below 1.5
FEWEST_BITS = 64_000  # bits per second; minimum for the boxes and the strip
QUALITY = "24"  # x264's constant rate factor, within the bit-rate limit
FINE_PIXELS = 1_000_000  # frames up to this size are encoded more slowly, for smaller files
KEY_SECONDS = 2  # maximum interval between key frames, for fast seeking
LONGEST_GAP = 3.0  # seconds; boxes are not interpolated over longer gaps
SMALL_WIDTH = 640  # pixels, width of the small copy for a report
SMALL_BYTES = 4_500_000  # maximum size of the small copy
SMALL_RATE = 2.0  # frames per second in it, outside of the important moments
SMALL_BITS = 1_000_000  # bits per second, at most

BoxesAt = Callable[[float], Iterable[Box]]
Moments = Collection[tuple[float, float]]  # first and last second of each moment
Progress = Callable[[int, int | None], object]  # called with the frames done, and the total or None


def interpolate(tracks: Iterable[Track]) -> BoxesAt:
    """Return a function from seconds to boxes, interpolated linearly between scored frames.

    Boxes are not interpolated over gaps longer than LONGEST_GAP.
    """
    known = []
    for track in tracks:
        rows = [(f.seconds, f.x, f.y, f.width, f.height, f.p_fake) for f in track.faces]
        known.append((track.number, *np.array(rows, float).T))

    def boxes_at(seconds: float) -> Iterator[Box]:
        for number, times, *values in known:
            after = int(np.searchsorted(times, seconds - 1e-6))
            if after == len(times) or (after == 0 and times[0] > seconds + 1e-6):
                continue
            gap = times[after] - times[after - 1] if after else 0
            if gap <= LONGEST_GAP or abs(times[after] - seconds) < 1e-6:
                *box, p_fake = (float(np.interp(seconds, times, of)) for of in values)
                yield Box(number, *box, round(100 * p_fake))

    return boxes_at


# --- Whole copies ---------------------------------------------------------------------------------


def write_marked_picture(image: np.ndarray, boxes: Iterable[Box], path: Path) -> None:
    """Write a marked picture as PNG; this draws on `image`, BGR uint8 (height, width, 3)."""
    canvas = Canvas([image], is_yuv=False)
    canvas.mark(boxes)
    canvas.add_strip()
    path.write_bytes(cv2.imencode(".png", image)[1])


def write_marked_video(
    source: Source | Video,
    boxes_at: BoxesAt,
    path: Path,
    notes: list[str],
    *,
    progress: Progress | None = None,
    small: tuple[Path, Moments] | None = None,
) -> None:
    """Write a copy of a video with marked faces and the sound.

    Args:
        source: the video, or a Video to choose its stream or threads
        boxes_at: returns the boxes at a time in seconds since the first frame
        path: the .mp4 file to write
        notes: a list to which a sentence is added if the copy lacks, for example, the sound
        progress: called after each frame; an exception that it raises stops the copy
        small: path and moments of a small copy to write in the same pass, or None

    Raises:
        ValueError, OSError: the video cannot be read, or the copy cannot be written
    """
    video = source if isinstance(source, Video) else Video(source, threads=0)
    with ExitStack() as files:
        copy = files.enter_context(MarkedCopy(path, video, notes))
        if small:
            is_wanted = choose_moments(small[1])
            little = files.enter_context(open_small_copy(small[0], video))

        def prepare() -> Iterator[tuple[float, av.VideoFrame, list[Box]]]:
            """Yield the frames of the copy, and write the small copy."""
            first = None
            for raw in read_ahead(video.raw_frames(), AHEAD):
                frame, boxes = raw.to_yuv(), list(boxes_at(raw.seconds))
                first = first or (frame.width, frame.height)
                frame = fit_frame(frame, first)
                if small and is_wanted(raw.index, raw.seconds):
                    scale = min(1, SMALL_WIDTH / frame.width)
                    size = (
                        max(2, round(side * scale / 2) * 2) for side in (frame.width, frame.height)
                    )
                    # Area averaging would take longer than all other work on the small copy.
                    smaller = frame.reformat(*size, interpolation="FAST_BILINEAR")
                    little.add(raw.seconds, smaller, scale_boxes(boxes, scale))
                yield raw.seconds, frame, boxes

        for done, frame in enumerate(read_ahead(prepare(), AHEAD), 1):
            copy.add(*frame)
            if progress:
                progress(done, video.claimed_frames or None)


def write_small_copy(
    source: Source | Video,
    boxes_at: BoxesAt,
    moments: Moments,
    path: Path,
    *,
    progress: Progress | None = None,
) -> None:
    """Write a small marked copy without sound for a report, below 5 MB unless it is very long.

    Args:
        source, boxes_at, path, progress: see write_marked_video
        moments: first and last second of the parts with every frame; elsewhere the copy has two
            frames per second

    Raises:
        ValueError, OSError: the video cannot be read, or the copy cannot be written
    """
    video = source if isinstance(source, Video) else Video(source, threads=0)
    size = None
    with open_small_copy(path, video) as copy:
        frames = video.chosen(lambda: choose_moments(moments))
        for done, frame in enumerate(read_ahead(frames, AHEAD), 1):
            size = size or frame.image.shape[1::-1]
            scale = min(1, SMALL_WIDTH / size[0])
            image = fit_image(frame.image, size)
            image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            copy.add(frame.seconds, image, scale_boxes(boxes_at(frame.seconds), scale))
            if progress:
                progress(done, None)


def choose_moments(moments: Moments) -> Chooser:
    """Choose every frame in some moments, and SMALL_RATE frames per second elsewhere."""
    is_due = choose_by_rate(SMALL_RATE)
    spans = [(first - 0.5, last + 0.5) for first, last in moments]
    return lambda index, seconds: (
        is_due(index, seconds) or any(first <= seconds <= last for first, last in spans)
    )


def open_small_copy(path: Path, video: Video) -> MarkedCopy:
    """Open a small copy, with a bit rate for at most SMALL_BYTES."""
    bits = min(SMALL_BITS, 8 * SMALL_BYTES / max(1.0, video.claimed_seconds))
    return MarkedCopy(path, video, None, bits_per_second=bits)


class MarkedCopy:
    """An .mp4 file to which marked frames are added in order.

    `add` each frame of Video.raw_frames (`to_yuv()`), or an image, when its boxes are known. The
    frames may also be decoded for another purpose.
    """

    def __init__(
        self,
        path: Path,
        video: Video,
        notes: list[str] | None,
        *,
        bits_per_second: float | None = None,
    ) -> None:
        """Open the file.

        Args:
            path: the file to write or replace
            video: the source video
            notes: a list to which a sentence is added if the sound cannot be copied; None: do not
                copy the sound
            bits_per_second: maximum bit rate of the video; None: 1.2 times the rate of the source

        Raises:
            OSError: the file cannot be written
        """
        self.video, self.notes = video, notes
        self.bits = bits_per_second or limit_bits(video)
        self.stream: av.VideoStream | None = None
        self.sound: Sound | None = None
        self.last = -1
        with as_os_errors():
            self.file = av.open(
                f"file:{path.absolute()}", "w", format="mp4", options={"movflags": "+faststart"}
            )

    def __enter__(self) -> MarkedCopy:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self.close(complete=error is None)

    def add(self, seconds: float, frame: av.VideoFrame | np.ndarray, boxes: Iterable[Box]) -> None:
        """Mark a frame and add it.

        Args:
            seconds: time since the first frame, increasing
            frame: YUV 4:2:0 of even size, which is drawn on, or BGR uint8 (height, width, 3)
            boxes: the boxes in pixels of the frame

        Raises:
            OSError: the file cannot be written
        """
        if isinstance(frame, np.ndarray):
            frame = image_to_yuv(frame)
        if self.stream is None:
            self._begin(frame)
        frame = fit_frame(frame, (self.stream.width, self.stream.height))
        canvas = Canvas(planes_of(frame), is_yuv=True)
        canvas.mark(boxes)
        canvas.add_strip()
        self.last = max(self.last + 1, round(seconds / CLOCK))
        frame.pts, frame.time_base, frame.pict_type = self.last, CLOCK, 0
        with as_os_errors():
            if self.sound:
                self.sound.copy_until(seconds)
            self.file.mux(self.stream.encode(frame))

    def close(self, complete: bool = True) -> None:
        """Write the remaining frames and sound, and close the file.

        Raises:
            OSError: the file cannot be written
        """
        with as_os_errors():
            try:
                if complete and self.stream is not None:
                    if self.sound:
                        self.sound.copy_until(math.inf)
                    self.file.mux(self.stream.encode(None))
            finally:
                if complete:
                    self.file.close()
                else:
                    with suppress(av.FFmpegError):
                        self.file.close()

    def _begin(self, frame: av.VideoFrame) -> None:
        """Set up the encoder for frames like the first one, and open the sound."""
        rate = self.video.rate if 1 <= self.video.rate <= 240 else 25
        fine = frame.width * frame.height <= FINE_PIXELS
        # No B-frames, as some players cut them off at the end.
        options = {"preset": "superfast" if fine else "ultrafast", "crf": QUALITY, "bf": "0"}
        if self.bits:
            options |= {"maxrate": str(int(self.bits)), "bufsize": str(int(self.bits / 2))}
        self.stream = self.file.add_stream("libx264", round(rate), options=options)
        encoder = self.stream.codec_context
        encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, "yuv420p"
        encoder.time_base, encoder.gop_size = CLOCK, max(1, round(KEY_SECONDS * rate))
        encoder.thread_count = 0  # one thread per core
        encoder.colorspace, encoder.color_range = frame.colorspace, frame.color_range
        encoder.color_primaries, encoder.color_trc = frame.color_primaries, frame.color_trc
        if self.notes is not None:
            self.sound = Sound(self.video, self.file, self.notes)


class Sound:
    """The first audio stream of a video, copied if it is AAC, otherwise encoded as AAC."""

    def __init__(
        self, video: Video, target: av.container.OutputContainer, notes: list[str]
    ) -> None:
        self.target, self.notes, self.start = target, notes, video.start
        self.packets: Iterator[av.Packet] = iter(())
        try:
            source = video.open_container()
            if sounds := [stream for stream in source.streams if stream.type == "audio"]:
                self.packets = self._read(source, sounds[0])
        except (av.FFmpegError, ValueError, OSError) as error:
            self._give_up(error)
        self.waiting = self._next()

    def copy_until(self, seconds: float) -> None:
        """Add the sound up to a time of the video.

        Raises:
            av.FFmpegError: the file cannot be written
        """
        while self.waiting and (self.waiting.pts or 0) * self.waiting.time_base <= seconds:
            self.target.mux(self.waiting)
            self.waiting = self._next()

    def _next(self) -> av.Packet | None:
        try:
            return next(self.packets, None)
        except (av.FFmpegError, ValueError, OSError) as error:
            self._give_up(error)
            return None

    def _give_up(self, error: Exception) -> None:
        self.packets = iter(())
        self.notes.append(f"the marked copy lacks sound: {error}")

    def _read(
        self, source: av.container.InputContainer, stream: av.AudioStream
    ) -> Iterator[av.Packet]:
        """Return the packets for the copy, with times since the first frame of the video."""
        if stream.codec_context is None:
            raise ValueError("its codec is unknown")
        if stream.codec_context.name == "aac":
            made = self.target.add_stream_from_template(stream)
            return self._copy(source, stream, made)
        made = self.target.add_stream("aac", stream.rate or 48_000)
        made.codec_context.layout = "mono" if stream.channels == 1 else "stereo"
        made.codec_context.open()
        return self._encode(source, stream, made)

    def _copy(
        self, source: av.container.InputContainer, stream: av.AudioStream, made: av.AudioStream
    ) -> Iterator[av.Packet]:
        shift = round(self.start / stream.time_base)
        for packet in read_packets(source, stream):
            if packet.dts is not None and packet.size:
                packet.dts -= shift
                packet.pts = packet.dts if packet.pts is None else packet.pts - shift
                if packet.pts >= 0:
                    packet.stream = made
                    yield packet

    def _encode(
        self, source: av.container.InputContainer, stream: av.AudioStream, made: av.AudioStream
    ) -> Iterator[av.Packet]:
        encoder = made.codec_context
        resampler = av.AudioResampler(
            encoder.format, encoder.layout, encoder.rate, frame_size=encoder.frame_size
        )
        now = 0  # samples; gaps in the sound are kept
        for frame in decode_sound(source, stream):
            for piece in resampler.resample(frame):
                now = max(now, round(((piece.time or 0) - self.start) * encoder.rate))
                piece.pts, piece.time_base = now, Fraction(1, encoder.rate)
                now += piece.samples
                yield from made.encode(piece)
        yield from made.encode(None)


def decode_sound(
    source: av.container.InputContainer, stream: av.AudioStream
) -> Iterator[av.AudioFrame | None]:
    """Yield the frames of an audio stream except damaged ones, and None at the end."""
    for packet in read_packets(source, stream):
        with suppress(av.FFmpegError):
            yield from packet.decode()
    yield None


# --- The file -------------------------------------------------------------------------------------


def limit_bits(video: Video) -> float | None:
    """Return the maximum bits per second of a copy; None if the length is unknown."""
    size = video.file_size()
    if not size or not video.claimed_seconds:
        return None
    return max(FEWEST_BITS, LARGEST_SHARE * 8 * size / video.claimed_seconds)


@contextmanager
def as_os_errors() -> Iterator[None]:
    """Convert FFmpeg errors to OSError with the same text."""
    try:
        yield
    except av.FFmpegError as error:
        raise OSError(error.errno, error.strerror or "FFmpeg failed") from error
