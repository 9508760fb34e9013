"""Read videos, whole or sampled, as BGR frames with their time in seconds.

All scripts use this reader, which is based on FFmpeg (PyAV). Frames are rotated, stretched,
deinterlaced and tone-mapped by their own metadata, so that they look as in a video player.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import av
import av.logging
import cv2
import numpy as np

from deepfake_detect.display import Aperture, Display, deinterlace, image_to_yuv, read_aperture
from deepfake_detect.kinds import OwnPlace, Source, kind_of
from deepfake_detect.packets import (
    Inexact,
    StreamFacts,
    choose_stream,
    decode_parts,
    end_of,
    find_holes,
    find_parts,
    list_stamps,
    list_streams,
    name_container,
    read_packets,
)
from deepfake_detect.sampling import (
    FRAME_SECONDS,
    HIGHEST_RATE,
    LONGEST_VIDEO,
    Chooser,
    Clock,
    choose_by_index,
    choose_by_rate,
    choose_by_time,
)

av.logging.set_libav_level(av.logging.PANIC)  # we report errors ourselves, once per file

# Containers that FFmpeg may open. Playlists are excluded, as they can refer to other files.
CONTAINERS = "avi,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mpegts,mpeg,flv,asf,ogg"
MOST_PIXELS = 100_000_000  # per frame; larger frames could exhaust memory
MISSING_SHARE = 0.02  # tolerated share of missing frames or seconds, relative to the header
WITH_INDEX = "mov", "avi"  # the index gives the place of each packet
FFMPEG_NAMES = {
    **{"AVI": "avi", "Matroska or WebM": "matroska", "MP4 or MOV": "mov", "FLV": "flv"},
    **{"WMV or ASF": "asf", "OGG": "ogg", "MPEG": "mpeg", "MPEG-TS": "mpegts"},
}


class Frame(NamedTuple):
    """A frame of a video."""

    index: int  # number of the frame, from 0, among readable frames; not a time
    seconds: float  # since the first frame
    image: np.ndarray | None  # BGR uint8 (height, width, 3) as displayed; None if damaged


class RawFrame(NamedTuple):
    """A decoded frame before conversion."""

    index: int
    seconds: float
    picture: av.VideoFrame
    display: Display

    def to_bgr(self) -> np.ndarray:
        """Return the frame as displayed, BGR uint8 (height, width, 3)."""
        return self.display.to_bgr(self.picture)

    def to_yuv(self) -> av.VideoFrame:
        """Return the frame as displayed, in YUV 4:2:0 of even size, for drawing on it."""
        if self.display.is_plain(self.picture):
            self.picture.make_writable()  # copies the frame if the decoder still needs it
            return self.picture
        return image_to_yuv(self.to_bgr())


class Video:
    """A video file, or a folder of stills, read one frame after another.

    Args:
        source: a path, the bytes of a file, or a seekable binary file object; bytes and file
            objects are not written to disk
        stream: index of the video stream to read; None: the first stream that is not a cover
        threads: number of decoder threads; 0: one per core
        most_pixels: maximum number of pixels per frame; larger frames are not decoded

    Attributes:
        streams: properties of all video streams, without covers
        stream: index of the stream to read
        rate: average frames per second by the header, 0 if unknown
        claimed_frames, claimed_seconds: length by the header, 0 if unknown
        notes: sentences about parts that are not shown correctly or not checked; may grow during
            reading
        start: time stamp of the first frame in the file, in seconds; known after reading it
        seen_frames, seen_seconds: progress of the latest call of `frames` or `sampled`
        lost_frames: number of frames in it that did not decode

    Raises:
        ValueError: the source is not a supported video, or does not have this stream
        OSError: the source cannot be read
    """

    def __init__(
        self,
        source: Source,
        stream: int | None = None,
        *,
        threads: int = 1,
        most_pixels: int = MOST_PIXELS,
    ) -> None:
        self.source, self.threads, self.most_pixels = source, threads, most_pixels
        self.notes: list[str] = []
        self.stills = list_stills(source) if isinstance(source, Path) and source.is_dir() else None
        self._size: tuple[int, int] | None = None
        self._is_intact = False  # True after a complete pass without damage
        self.start = 0.0
        self._start_counting()
        if self.stills is None:
            with self.open_container() as container:
                self.streams = list_streams(container)
                self.stream = choose_stream(self.streams, stream)
                self._read_claims(container)
                is_mov = name_container(container) == "mov"
            self.aperture = self._read_aperture() if is_mov else None
        else:
            self.streams, self.stream = [StreamFacts(0, "stills", 0, 0)], 0
            self.rate, self.claimed_frames = 1 / FRAME_SECONDS, len(self.stills)
            self.claimed_seconds = FRAME_SECONDS * len(self.stills)
        for one in self.streams:
            if one.index != self.stream:
                size = f"{one.codec}, {one.width} x {one.height}"
                self.notes.append(f"video stream {one.index} ({size}) was not checked")

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing, as the file is open only while frames are read."""

    @property
    def width(self) -> int:
        """Width of the first frame as displayed, in pixels."""
        return self._display_size()[0]

    @property
    def height(self) -> int:
        """Height of the first frame as displayed, in pixels."""
        return self._display_size()[1]

    def frames(self) -> Iterator[Frame]:
        """Yield every frame, in display order.

        Raises:
            ValueError: no frame decodes
            OSError: the file can no longer be read
        """
        if self.stills is not None:
            yield from self._read_stills(lambda index, seconds: True)
        else:
            yield from map(self._convert, self.raw_frames())

    def raw_frames(self) -> Iterator[RawFrame]:
        """Yield every frame of a file before conversion; otherwise like `frames`."""
        yield from self._decode_all(lambda index, seconds: True)

    def sampled(
        self,
        frames_per_second: float | None = None,
        *,
        indices: Collection[int] = (),
        times: Collection[float] = (),
    ) -> Iterator[Frame]:
        """Yield some frames; the others are not converted and, if possible, not decoded.

        Pass one argument:

        Args:
            frames_per_second: yield frames evenly in time; a slower video yields all its frames
            indices: yield the frames with these indices
            times: for each of these times in seconds, yield the first frame that is not earlier

        Raises:
            ValueError: no frame decodes
            OSError: the file can no longer be read
        """

        def make_chooser() -> Chooser:
            if frames_per_second:
                return choose_by_rate(frames_per_second)
            return choose_by_time(times) if times else choose_by_index(indices)

        yield from self.chosen(make_chooser)

    def chosen(self, make_chooser: Callable[[], Chooser]) -> Iterator[Frame]:
        """Yield the frames that a chooser selects, like `sampled`.

        Args:
            make_chooser: returns a new chooser, which is called with the index and the time of
                each frame in order and returns True for the frames to yield
        """
        if self.stills is not None:
            yield from self._read_stills(make_chooser())
            return
        last = -1.0
        with suppress(Inexact, av.FFmpegError):
            for raw in self._decode_needed(make_chooser()):
                yield self._convert(raw)
                last = raw.seconds
            return
        for raw in self._decode_all(make_chooser()):
            if raw.seconds > last:
                yield self._convert(raw)

    def file_size(self) -> int:
        """Return the size of the file in bytes; 0 for stills."""
        if self.stills is not None:
            return 0
        if isinstance(self.source, Path):
            return self.source.stat().st_size
        return (
            len(self.source) if isinstance(self.source, bytes) else OwnPlace(self.source).seek(0, 2)
        )

    def count_frames(self) -> int:
        """Return the number of frames; this may decode all of them."""
        times = self.list_times()
        return sum(1 for _ in self.raw_frames()) if times is None else len(times)

    def list_times(self) -> list[float] | None:
        """Return the time of every frame in seconds without decoding; None if it is not exact."""
        if self.stills is not None:
            return [FRAME_SECONDS * index for index in range(len(self.stills))]
        with suppress(Inexact, av.FFmpegError), self.open_container() as container:
            return [seconds for _, seconds in list_stamps(container, self.stream)[0]]
        return None

    def missing(self) -> str:
        """Describe the missing frames of the video, compared with its header; "" if complete.

        Call this after `frames` or `sampled` has finished.
        """
        said = []
        short = self.seen_frames < (1 - MISSING_SHARE) * self.claimed_frames - 2
        if short and self.stills is None and self._is_incomplete():
            read, claimed = f"{self.seen_frames:,}", f"{self.claimed_frames:,} frames"
            if self.rate > HIGHEST_RATE:  # an AVI whose frame count includes other packets
                read, claimed = f"{self.seen_seconds:.1f}", f"{self.claimed_seconds:.1f} seconds"
            said.append(f"only {read} of the {claimed} in its header")
        if self.lost_frames:
            said.append(
                f"{self.lost_frames:,} damaged {'frame' if self.lost_frames == 1 else 'frames'}"
            )
        return f"has {' and '.join(said)}" if said else ""

    def count_good_frames(self) -> int:
        """Return the number of frames without damage in the latest call of `frames` or `sampled`.

        The frames of a file are counted without its damaged frames, but damaged stills are counted.
        """
        return self.seen_frames - (self.lost_frames if self.stills is not None else 0)

    # --- The file ---------------------------------------------------------------------------------

    def open_container(self) -> av.container.InputContainer:
        """Open the container at its start."""
        source, kind = self.source, kind_of(self.source)
        if isinstance(source, Path):
            source = f"file:{source.absolute()}"  # FFmpeg would treat http:clip.mp4 as a URL
        elif isinstance(source, bytes):
            source = io.BytesIO(source)
        else:
            source = OwnPlace(source)
        options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
        options |= {"max_pixels": str(self.most_pixels)}
        try:
            # Set the format, as FFmpeg would treat an MPEG video named .jpg as a picture.
            form = FFMPEG_NAMES.get(kind.format)
            return av.open(source, format=form, options=options, metadata_errors="replace")
        except (av.FFmpegError, ValueError) as error:
            raise ValueError("does not open as a video") from error

    def _read_claims(self, container: av.container.InputContainer) -> None:
        """Read the length and the frame rate from the header."""
        stream = container.streams[self.stream]
        rate = float(stream.average_rate or 0)
        self.rate = rate if 0 < rate < math.inf else 0.0
        length = stream.frames if name_container(container) == "avi" else stream.duration
        if length:
            seconds = float(length * stream.time_base)
        else:
            seconds = (container.duration or 0) / av.time_base
            start = (container.start_time or 0) / av.time_base
            seconds -= start if 0 < start < seconds else 0
        self.claimed_seconds = max(0.0, seconds)
        believed = self.claimed_seconds if self.claimed_seconds < LONGEST_VIDEO else 0
        self.claimed_frames = stream.frames or round(believed * self.rate)

    def _read_aperture(self) -> Aperture | None:
        """Read the clean aperture of an MP4 or MOV: the part of the frames to show."""
        if isinstance(self.source, Path):
            with self.source.open("rb") as file:
                return read_aperture(file)
        is_bytes = isinstance(self.source, bytes)
        return read_aperture(io.BytesIO(self.source) if is_bytes else OwnPlace(self.source))

    def _is_incomplete(self) -> bool:
        """Return True if a part of the file is missing, and its header is not merely wrong.

        An AVI has a count of its frames, and an MP4 the position of each frame in the file. Other
        headers may claim too much if the video starts late, has a variable frame rate or is part of
        a longer one. Such a file is incomplete if no stream, such as the sound, reaches the end, or
        if it has a hole.
        """
        try:
            with self.open_container() as container:
                stream = container.streams[self.stream]
                if name_container(container) == "mov":
                    entries, size = stream.index_entries, container.size
                    return any(entry.pos + entry.size > size for entry in entries)
                if name_container(container) == "avi":  # empty packets repeat the previous frame
                    places = [packet.dts or 0 for packet in read_packets(container, stream)]
                    return max(places, default=0) + 1 < (1 - MISSING_SHARE) * stream.frames - 2
                # Time stamps may be negative, for example where the clock of an MPEG-TS wraps.
                first = min(0, container.start_time or 0) / av.time_base
                length = (container.duration or 0) / av.time_base
                reached = 0.0
                for packet, follows_hole in find_holes(read_packets(container)):
                    if follows_hole:
                        return True
                    reached = max(reached, end_of(packet) or 0.0)
                return reached - first < (1 - MISSING_SHARE) * length
        except (OSError, ValueError, av.FFmpegError):  # it could be opened before
            return True

    def _display_size(self) -> tuple[int, int]:
        if self._size is None:
            other = Video(self.source, self.stream, most_pixels=self.most_pixels)
            first = next((frame for frame in other.frames() if frame.image is not None), None)
            if first is None:
                raise ValueError("has no frame that decodes")
            self._size = first.image.shape[1::-1]
        return self._size

    # --- Reading ----------------------------------------------------------------------------------

    def _start_counting(self) -> None:
        self.seen_frames, self.seen_seconds, self.lost_frames = 0, 0.0, 0

    def _count(self, index: int, seconds: float) -> None:
        self.seen_frames, self.seen_seconds = index + 1, seconds

    def _convert(self, raw: RawFrame) -> Frame:
        image = raw.to_bgr()
        self._size = self._size or image.shape[1::-1]
        return Frame(raw.index, raw.seconds, image)

    def _read_stills(self, wanted: Chooser) -> Iterator[Frame]:
        """Yield the stills that the chooser selects."""
        self._start_counting()
        for index, path in enumerate(self.stills):
            self._count(index, FRAME_SECONDS * index)
            if wanted(index, self.seen_seconds):
                image = read_still(path)
                self.lost_frames += image is None
                yield Frame(index, self.seen_seconds, image)

    def _decode_all(self, wanted: Chooser) -> Iterator[RawFrame]:
        """Decode every frame, and yield the frames that the chooser selects."""
        self._start_counting()
        clock = Clock(self.rate)
        with self.open_container() as container:
            stream = container.streams[self.stream]
            display = Display(stream, self.notes, self.aperture)
            for index, picture in enumerate(deinterlace(self._decode(container, stream))):
                seconds = clock.read(picture.time)
                self.start = clock.first or 0.0
                self._count(index, seconds)
                if wanted(index, seconds):
                    yield RawFrame(index, seconds, picture, display)
            if not self.seen_frames:
                why = ": all of them are damaged" if self.lost_frames else ""
                if not stream.width:
                    why = f": more than {self.most_pixels:,} pixels, or damaged"
                raise ValueError(f"has no frame that decodes{why}")

    def _decode(
        self, container: av.container.InputContainer, stream: av.VideoStream
    ) -> Iterator[av.VideoFrame]:
        """Decode a stream; damage loses all frames until the next key frame.

        FFmpeg would show these frames with parts of other frames in them.
        """
        self._set_up(stream.codec_context)
        name = name_container(container)
        intact = True
        for packet, follows_hole in find_holes(read_packets(container)):
            if follows_hole and name not in WITH_INDEX:
                intact = False
            if packet.stream is not stream:
                continue
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                self.lost_frames += bool(packet.size)
                intact = False
                continue
            for frame in decoded:
                intact = (intact or frame.key_frame) and not frame.is_corrupt
                if not intact:
                    self.lost_frames += 1
                    continue
                if name == "avi":  # it only has time stamps in decoding order
                    frame.pts = frame.dts
                yield frame
        with suppress(av.FFmpegError):  # after damage, the decoder may still hold frames
            yield from stream.codec_context.decode(None)

    def _set_up(self, decoder: av.VideoCodecContext) -> None:
        decoder.thread_count = self.threads
        decoder.thread_type = "AUTO" if self.threads != 1 else "SLICE"
        decoder.options = {"max_pixels": str(self.most_pixels)}

    def _decode_needed(self, wanted: Chooser) -> Iterator[RawFrame]:
        """Yield the frames that the chooser selects, and decode only frames they depend on.

        Raises:
            Inexact, av.FFmpegError: the file is not simple enough, or is damaged
        """
        self._start_counting()
        with self.open_container() as container:
            listed, packets = list_stamps(container, self.stream)
            chosen = {
                stamp: (index, seconds)
                for index, (stamp, seconds) in enumerate(listed)
                if wanted(index, seconds)
            }
            container.seek(0)
            stream = container.streams[self.stream]
            display = Display(stream, self.notes, self.aperture)
            self._set_up(stream.codec_context)
            waiting = iter(chosen)
            # Damage is noticed by decoding, so the first pass does not leave out whole parts.
            parts = find_parts(packets, chosen) if self._is_intact else [True] * len(packets)
            for picture in decode_parts(container, stream, parts, chosen):
                if picture.interlaced_frame or picture.is_corrupt:
                    raise Inexact("has interlaced or damaged frames")
                if picture.pts in chosen:
                    if picture.pts != next(waiting, None):
                        raise Inexact("lacks a frame")
                    self._count(*chosen[picture.pts])
                    yield RawFrame(*chosen[picture.pts], picture, display)
            if next(waiting, None) is not None:
                raise Inexact("lacks a frame")
            self._count(len(listed) - 1, listed[-1][1])
            self._is_intact = True


def list_stills(folder: Path) -> list[Path]:
    """Return the stills in a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def read_still(path: Path) -> np.ndarray | None:
    """Read a still, BGR uint8 (height, width, 3); None if it cannot be read."""
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
        return cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except (OSError, cv2.error):
        return None
