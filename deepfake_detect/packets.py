"""Read the streams and packets of a video file: damaged places, and packets that may be skipped."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import av
from av.stream import Disposition

from deepfake_detect.sampling import Clock

READ_ERRORS = 100  # reading stops after this many damaged places in a container
HOLE_BYTES, HOLE_SECONDS = 4096, 0.3  # of a damaged place without packets, at least
PICTURE_CODECS = ("mjpeg", "png", "bmp", "gif", "webp", "tiff")  # of covers in video files
APART = (  # streams that are not the main video
    Disposition.attached_pic
    | Disposition.timed_thumbnails
    | Disposition.still_image
    | Disposition.dependent
)
# In these formats, each frame is one packet with its own time stamp, and the decoder can skip
# non-reference frames: in H.264, frames with nal_ref_idc 0 (ITU-T H.264, 7.4.1).
EXACT_CONTAINERS = "mov", "matroska"
EXACT_CODECS = "h264", "hevc"


@dataclass(frozen=True)
class StreamFacts:
    """The properties of a video stream, from the header of the file."""

    index: int  # index of the stream in the file
    codec: str
    width: int  # pixels, as stored
    height: int


class Inexact(ValueError):
    """A video is not simple enough to skip frames without decoding them."""


def name_container(container: av.container.InputContainer) -> str:
    """Return FFmpeg's first name of the container format, such as mov."""
    return container.format.name.split(",")[0]


def list_streams(container: av.container.InputContainer) -> list[StreamFacts]:
    """List the video streams that can be decoded; include covers only if there is nothing else."""
    found = [one for one in container.streams.video if one.codec_context]
    found = [one for one in found if not one.disposition & APART] or found
    return [StreamFacts(one.index, one.codec_context.name, one.width, one.height) for one in found]


def choose_stream(streams: list[StreamFacts], wanted: int | None) -> int:
    """Return the index of the stream to read.

    Raises:
        ValueError: the file has no video stream, or lacks the requested one
    """
    if not streams:
        raise ValueError("has no video stream that can be decoded")
    if wanted is None:
        return min(streams, key=lambda one: one.codec in PICTURE_CODECS).index
    if wanted not in [one.index for one in streams]:
        raise ValueError(f"has no video stream {wanted}")
    return wanted


def read_packets(
    container: av.container.InputContainer, *streams: av.VideoStream
) -> Iterator[av.Packet]:
    """Yield the packets of some or all streams, and continue after damaged places."""
    for _ in range(READ_ERRORS):
        try:
            yield from container.demux(*streams)
            return
        except av.FFmpegError:
            continue


def find_holes(packets: Iterator[av.Packet]) -> Iterator[tuple[av.Packet, bool]]:
    """Yield each packet, and True if damage before it removed other packets.

    Then bytes of the file are not in a packet, and the time has a gap. A gap alone is usual where
    the picture does not change, and bytes alone where another stream is.
    """
    place, reached = None, None
    for packet in packets:
        end = end_of(packet)
        skipped = packet.pos - place if packet.pos is not None and place is not None else 0
        gap = end - reached if end is not None and reached is not None else 0.0
        yield packet, skipped >= HOLE_BYTES and gap >= HOLE_SECONDS
        place = None if packet.pos is None else packet.pos + packet.size
        reached = end if reached is None else max(reached, end or 0.0)


def end_of(packet: av.Packet) -> float | None:
    """Return the time in seconds at which a packet ends; None if it is unknown."""
    stamp = packet.dts if packet.pts is None else packet.pts
    return None if stamp is None else float((stamp + (packet.duration or 0)) * packet.time_base)


def list_stamps(
    container: av.container.InputContainer, index: int
) -> tuple[list[tuple[int, float]], list[tuple[int, bool]]]:
    """Read all packets of a stream.

    Returns:
        the time stamp and the time in seconds of each frame, in display order
        the time stamp of each packet, in file order, and True if it is a key frame

    Raises:
        Inexact: packets of the stream are not single frames with their own time stamps
    """
    stream = container.streams[index]
    if (
        name_container(container) not in EXACT_CONTAINERS
        or stream.codec_context.name not in EXACT_CODECS
    ):
        raise Inexact("frames cannot be skipped in this format")
    packets = [
        (packet.pts, packet.is_keyframe, packet.is_discard or packet.is_corrupt)
        for packet in container.demux(stream)
        if packet.size
    ]
    stamps = sorted({stamp for stamp, _, _ in packets if stamp is not None})
    if len(stamps) < max(1, len(packets)) or any(odd for *_, odd in packets):
        raise Inexact("has packets that are not one frame each")
    if packets[0][0] != stamps[0]:
        raise Inexact("starts with frames that cannot be decoded")
    clock, base = Clock(), stream.time_base
    listed = [(stamp, clock.read(float(stamp * base))) for stamp in stamps]
    return listed, [(stamp, is_key) for stamp, is_key, _ in packets]


def find_parts(packets: list[tuple[int, bool]], chosen: Collection[int]) -> list[bool]:
    """Return for each packet whether it may be needed to decode the chosen frames.

    A part starts with a key frame that all packets after it in the file also follow in time; other
    key frames may be followed by frames that depend on earlier ones. It ends with a chosen frame.

    Args:
        packets: from list_stamps
        chosen: time stamps
    """
    parts, inside, earliest = [], False, math.inf
    for stamp, is_key in reversed(packets):
        inside = inside or stamp in chosen
        parts.append(inside)
        earliest = min(earliest, stamp)
        if is_key and stamp == earliest:
            inside = False
    return parts[::-1]


def decode_parts(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    parts: list[bool],
    chosen: Collection[int],
) -> Iterator[av.VideoFrame]:
    """Decode some packets of a stream, but no frames that are neither chosen nor referenced.

    Args:
        container, stream: the container, at its start, and the stream
        parts: from find_parts
        chosen: time stamps
    """
    decoder, waiting, is_inside = stream.codec_context, iter(parts), False
    for packet in container.demux(stream):
        if packet.size and not next(waiting):
            if is_inside:
                yield from decoder.decode(None)
                decoder.flush_buffers()
            is_inside = False
            continue
        is_inside = True
        needed = packet.pts is None or packet.pts in chosen  # None: flush at the end
        decoder.skip_frame = "DEFAULT" if needed else "NONREF"
        yield from packet.decode()
