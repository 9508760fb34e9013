"""Decode of an H.264 video only what the frames to score need, for 06-detect-deepfake.py.

From about half of the frames of most such videos no other frame is predicted: H.264 marks them as
non-reference (nal_ref_idc 0, ITU-T H.264, 7.4.1). The decoder can pass over those, which takes half
of the time; PyAV tells it to, OpenCV does not. The frames are OpenCV's, pixel for pixel.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

convert = importlib.import_module("01-convert-video-to-image")

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"  # as PyAV names those with exact stamps
KINDS = [("h264", "yuv420p")], [("h264", "yuv444p")]  # of the video streams: there is but one


def read_sampled(
    path: Path, frames_per_second: float
) -> Iterator[tuple[int, float, bool, np.ndarray | None]]:
    """Step through a video as read_frames of 01 does, and yield what that yields.

    Where this video, or what comes of it, is not as simple as that takes, 01 goes on.
    """
    index = -1
    try:
        for index, *row in read_sparsely(path, frames_per_second):
            yield index, *row
    except (ValueError, av.FFmpegError):
        for row in convert.read_frames(convert.open_video(path), frames_per_second, None):
            if row[0] > index:
                yield row


def read_sparsely(
    path: Path, frames_per_second: float
) -> Iterator[tuple[int, float, bool, np.ndarray | None]]:
    """Step through an H.264 video without decoding what is not needed.

    Raises:
        ValueError, av.FFmpegError: it is none, or not such a simple one, or damaged.
    """
    with convert.open_container(path) as container:
        # Which frames are to be had follows from the time stamps alone.
        stamps = list_stamps(container)
        base = 1000 * container.streams.video[0].time_base
        still = convert.Pictures(iter([b""] * len(stamps)), [float(base * of) for of in stamps])
        rows = list(convert.read_frames(still, frames_per_second, None))
        chosen = {stamps[index] for index, _, wanted, _ in rows if wanted}

        container.seek(0)
        frames = decode(container, chosen)
        for index, seconds, wanted, frame in rows:
            if wanted:
                stamp, frame = next(frames, (None, None))
                if stamp != stamps[index]:
                    raise ValueError("lacks a frame")
            yield index, seconds, wanted, frame


def list_stamps(container: av.container.InputContainer) -> list[int]:
    """List the time stamps of the frames, in the order in which they are shown.

    Raises:
        ValueError: it is not one H.264 stream of whole frames, each with a stamp of its own.
    """
    streams = container.streams.video
    decoders = [stream.codec_context for stream in streams]  # None, where there is none for it
    kinds = [decoder and (decoder.name, decoder.pix_fmt) for decoder in decoders]
    if container.format.name not in CONTAINERS or kinds not in KINDS:
        raise ValueError("is no single H.264 stream of 8 bits")
    # Before each part of a packet stands its size, in so many bytes; elsewhere a mark does: 0.
    head = decoders[0].extradata or b""
    width = (head[4] & 3) + 1 if head[:1] == b"\1" and len(head) > 4 else 0
    packets = [
        (
            packet.pts,
            packet.is_keyframe,
            packet.is_discard or packet.is_corrupt or (width and not is_whole(packet, width)),
        )
        for packet in container.demux(streams[0])
        if packet.size
    ]
    stamps = sorted({stamp for stamp, *_ in packets if stamp is not None})
    odd = any(odd for *_, odd in packets)
    if odd or len(stamps) < max(1, len(packets)) or not packets[0][1]:
        raise ValueError("has packets that are no frame")
    return stamps


def is_whole(packet: av.Packet, width: int) -> bool:
    """Tell whether the parts of an H.264 packet, each after its size of so many bytes, fill it.

    Where they do not, OpenCV stops or goes on with the next, even at a frame that is not wanted.
    """
    data, at = bytes(packet), 0
    while at < len(data):
        at += width + int.from_bytes(data[at : at + width])
    return at == len(data)


def decode(
    container: av.container.InputContainer, chosen: set[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Decode the frames of the chosen time stamps, BGR uint8, and no non-reference frame besides.

    Raises:
        ValueError, av.FFmpegError: a frame is turned, interlaced or damaged.
    """
    video, converter = container.streams.video[0], VideoReformatter()
    video.codec_context.thread_count = 1  # the other cores have enough to do
    for packet in container.demux(video):
        needed = packet.pts is None or packet.pts in chosen  # None: the end, which gives the rest
        video.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
        for frame in packet.decode():
            if frame.rotation or frame.interlaced_frame or frame.is_corrupt:
                raise ValueError("has frames that are turned, interlaced or damaged")
            if frame.pts in chosen:
                converted = converter.reformat(frame, format="bgr24", interpolation="BICUBIC")
                yield frame.pts, converted.to_ndarray()
