"""Convert decoded frames as a video player does: deinterlacing, rotation, pixel shape and colours.

HDR video with PQ (HDR10, SMPTE ST 2084) is converted to SDR: reference white is 203 candela per
square metre (ITU-R BT.2408), colours are converted from BT.2020 or P3 to BT.709, and values
brighter than white are compressed smoothly instead of clipped.
"""

from __future__ import annotations

import gc
import io
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from functools import cache
from typing import BinaryIO, NamedTuple

import av
import cv2
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import VideoReformatter

FRAMES_KEPT = 16  # frames kept alive by references in their side data, at most
LARGEST_HEADER = 2**26  # bytes of the MP4 header to search for the clean aperture
PICTURE_HEADER = 2**16  # bytes of a picture to search for its colours
LONGEST_PIXEL = 4  # largest credible aspect ratio of a pixel, or its inverse
PQ = 16  # AVCOL_TRC_SMPTE2084
BT709, NOT_SAID = 1, 2  # AVCOL_PRI_BT709; "unspecified" of primaries, transfer and matrix
HDR_CONVERTED = "its HDR colours (PQ) were converted to ordinary ones"  # a note
HDR_AS_IT_IS = "its HDR colours (Dolby Vision) could not be converted"
HDR_PICTURE = "its HDR colours (PQ) were not converted"
UNKNOWN_COLOURS = 14, 15  # AVCOL_SPC_ICTCP, AVCOL_SPC_IPT_C2: Dolby Vision without a base layer
REFERENCE_WHITE = 203  # candela per square metre, ITU-R BT.2408
BRIGHTEST = 10_000 / REFERENCE_WHITE  # brightest value of PQ, in units of white: 49.3
KNEE = 0.8  # linear light above which the curve is compressed
DISPLAY_GAMMA = 2.4  # of SDR video, ITU-R BT.1886
STEPS = 16_384  # entries of the table from light to output; each is below half an output level

# Linear light to BT.709, in the order red, green, blue, by FFmpeg's number of the primaries.
TO_BT709 = {
    9: (  # BT.2020: ITU-R BT.2087
        (1.660491, -0.587641, -0.072850),
        (-0.124550, 1.132900, -0.008349),
        (-0.018151, -0.100579, 1.118730),
    ),
    12: (  # Display P3: SMPTE EG 432-1
        (1.224940, -0.224940, 0.0),
        (-0.042057, 1.042057, 0.0),
        (-0.019638, -0.078636, 1.098274),
    ),
}


class Aperture(NamedTuple):
    """The clean aperture of a QuickTime or MP4 file in stored pixels, ISO 14496-12, 12.1.4."""

    width: float
    height: float
    right: float  # offset of its centre from the centre of the frame
    down: float


class Display:
    """A converter for the decoded frames of one stream.

    Attributes:
        notes: sentences about properties that could not be shown correctly
    """

    def __init__(
        self, stream: av.VideoStream, notes: list[str], aperture: Aperture | None = None
    ) -> None:
        """Use the pixel shape of the container if it has one, otherwise of each frame.

        Args:
            stream: the stream of the frames
            notes: a list to which sentences about incorrect display are added
            aperture: part of the frames to show; None: the whole frame
        """
        self.aperture = aperture
        self.decoder, self.notes = stream.codec_context, notes
        said = stream.sample_aspect_ratio
        self.of_container = said if said != self.decoder.sample_aspect_ratio else None
        # The decoder overwrites these values with the values of the stream, even with unknown ones.
        self.transfer, self.primaries = self.decoder.color_trc, self.decoder.color_primaries
        self.reformatter = VideoReformatter()
        self.asked = 0
        self.first_has_matrix: bool | None = None

    def to_bgr(self, frame: av.VideoFrame) -> np.ndarray:
        """Convert a frame to BGR uint8 (height, width, 3) as displayed."""
        settings = {"width": max(1, round(frame.width * self._pixel())), "height": frame.height}
        settings |= {"interpolation": "BICUBIC", "threads": 1}
        if self._is_pq(frame) and frame.colorspace not in UNKNOWN_COLOURS:
            if frame.colorspace == NOT_SAID:
                settings |= {"src_colorspace": "bt2020"}
            wide = self.reformatter.reformat(frame, format="bgr48le", **settings).to_ndarray()
            primaries = frame.color_primaries
            image = map_to_sdr(wide, self.primaries if primaries == NOT_SAID else primaries)
            note = HDR_CONVERTED
        else:
            image = self.reformatter.reformat(frame, format="bgr24", **settings).to_ndarray()
            note = HDR_AS_IT_IS
        if self._is_pq(frame) and note not in self.notes:
            self.notes.append(note)
        if self.aperture:
            image = crop_to_aperture(image, self.aperture, self._pixel())
        if matrix := self._find_matrix(frame):
            image = turn(image, np.frombuffer(matrix, np.int32))
        return image

    def is_plain(self, frame: av.VideoFrame) -> bool:
        """Return True if a frame is displayed as stored, in 8-bit YUV 4:2:0."""
        return (
            frame.format.name in ("yuv420p", "yuvj420p")
            and not (frame.width % 2 or frame.height % 2)
            and not self._is_pq(frame)
            and self.aperture is None
            and self._find_matrix(frame) is None
            and self._pixel() == 1
        )

    def _is_pq(self, frame: av.VideoFrame) -> bool:
        """Return True if the transfer function of a frame, or else of the container, is PQ."""
        return (self.transfer if frame.color_trc == NOT_SAID else frame.color_trc) == PQ

    def _find_matrix(self, frame: av.VideoFrame) -> object:
        """Return the display matrix of a frame, if it has one.

        Reading the side data of a frame creates a reference cycle: only the garbage collector frees
        the frame, and hundreds of frames would accumulate. We therefore read it only if the first
        frame has a matrix or this frame is rotated, and run the collector regularly.
        """
        if self.first_has_matrix is False and not frame.rotation:
            return None
        if self.first_has_matrix is None:
            self.first_has_matrix = frame.side_data.get(SideData.DISPLAYMATRIX) is not None
        self.asked += 1
        if self.asked % FRAMES_KEPT == 0:
            gc.collect(1)
        return frame.side_data.get(SideData.DISPLAYMATRIX)

    def _pixel(self) -> float:
        """Return the aspect ratio of a pixel; 1 if unknown, not credible or within 1 % of 1."""
        ratio = float(self.of_container or self.decoder.sample_aspect_ratio or 1)
        credible = 1 / LONGEST_PIXEL <= ratio <= LONGEST_PIXEL
        return ratio if credible and abs(ratio - 1) > 0.01 else 1.0


def image_to_yuv(image: np.ndarray) -> av.VideoFrame:
    """Convert an image, BGR uint8, to a frame in YUV 4:2:0 and BT.709, padded to even size."""
    down, right = image.shape[0] % 2, image.shape[1] % 2
    if down or right:
        image = cv2.copyMakeBorder(image, 0, down, 0, right, cv2.BORDER_REPLICATE)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "bgr24")
    return frame.reformat(format="yuv420p", dst_colorspace="itu709", threads=1)


# --- Frames of another size -----------------------------------------------------------------------


def fit_box(
    box: tuple[float, float, float, float], size: tuple[int, int], into: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Convert a box in a frame to the box after fitting the frame into another size.

    The frame is scaled and centred, with black bars, as in a web browser.

    Args:
        box: x, y, width and height in pixels
        size: width and height of the frame
        into: width and height of the other frames
    """
    x, y, width, height = box
    scale = min(into[0] / size[0], into[1] / size[1])
    left, top = ((whole - scale * side) / 2 for whole, side in zip(into, size, strict=True))
    return left + scale * x, top + scale * y, scale * width, scale * height


def fit_image(image: np.ndarray, into: tuple[int, int]) -> np.ndarray:
    """Fit a BGR image into a width and height, see fit_box; return it if it has this size."""
    size = image.shape[1::-1]
    if size == into:
        return image
    left, top, width, height = (max(0, round(side)) for side in fit_box((0, 0, *size), size, into))
    whole = np.zeros((into[1], into[0], 3), np.uint8)
    inside = max(1, width), max(1, height)
    image = cv2.resize(image, inside, interpolation=cv2.INTER_AREA)
    whole[top : top + inside[1], left : left + inside[0]] = image
    return whole


# --- Clean aperture, interlacing and orientation --------------------------------------------------


def read_aperture(file: BinaryIO) -> Aperture | None:
    """Read the clean aperture of an MP4 or MOV file; None if it has none, or several."""
    file.seek(0)
    head = file.read(8)
    while len(head) == 8:
        size, kind, read = int.from_bytes(head[:4]), head[4:], 8
        if size == 1:
            size, read = int.from_bytes(file.read(8)), 16
        if kind == b"moov":
            boxes = file.read(min(size - read, LARGEST_HEADER) if size else LARGEST_HEADER)
            found = re.findall(rb"\0\0\0\x28clap(.{32})", boxes, re.DOTALL)
            numbers = struct.unpack(">IIIIiIiI", found[0]) if found else ()
            if len(found) != 1 or not all(numbers[1::2]):
                return None
            ratios = (up / by for up, by in zip(numbers[::2], numbers[1::2], strict=True))
            return Aperture(*ratios)
        if size < read:
            return None
        file.seek(size - read, io.SEEK_CUR)
        head = file.read(8)
    return None


def crop_to_aperture(image: np.ndarray, aperture: Aperture, pixel: float) -> np.ndarray:
    """Crop a frame to its clean aperture if valid; `pixel` is the aspect ratio of a pixel."""
    height, width = image.shape[:2]
    wide, high = round(aperture.width * pixel), round(aperture.height)
    left = round((width - wide) / 2 + aperture.right * pixel)
    top = round((height - high) / 2 + aperture.down)
    inside = 0 <= left <= width - wide and 0 <= top <= height - high
    if not inside or wide < 1 or high < 1:
        return image
    return np.ascontiguousarray(image[top : top + high, left : left + wide])


def deinterlace(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Deinterlace the interlaced frames, and yield the other frames unchanged.

    Interlacing is a property of a frame, not of a stream. After the first interlaced frame, all
    frames pass through FFmpeg's bwdif, which needs the previous and the next frame, and changes
    only frames that are marked as interlaced.
    """
    graph, kind = None, None
    for frame in frames:
        now = frame.width, frame.height, frame.format.name
        if graph is not None and now != kind:
            yield from drain(graph)
            graph = None
        if graph is None and frame.interlaced_frame:
            graph, kind = make_deinterlacer(frame), now
        if graph is None:
            yield frame
        else:
            graph.push(frame)
            yield from pull(graph)
    if graph is not None:
        yield from drain(graph)


def make_deinterlacer(frame: av.VideoFrame) -> Graph:
    """Return a filter graph for frames with the size and format of this one."""
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base or Fraction(1, 1000),
    )
    bwdif = graph.add("bwdif", "mode=send_frame:deint=interlaced")
    graph.link_nodes(source, bwdif, graph.add("buffersink")).configure()
    return graph


def pull(graph: Graph) -> Iterator[av.VideoFrame]:
    """Yield the finished frames of a filter graph."""
    with suppress(av.BlockingIOError, av.EOFError):
        while True:
            yield graph.pull()


def drain(graph: Graph) -> Iterator[av.VideoFrame]:
    """Flush a filter graph, and yield its remaining frames."""
    graph.push(None)
    yield from pull(graph)


def turn(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Rotate and mirror an image by a display matrix, int32 (9,), to the nearest right angle."""
    a, b, _, c, d, *_ = matrix.tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, mirrored, flipped = cv2.transpose(image), c < 0, b < 0
    else:
        mirrored, flipped = a < 0, d < 0
    if mirrored or flipped:
        image = cv2.flip(image, -1 if mirrored and flipped else int(mirrored))
    return image


# --- HDR ------------------------------------------------------------------------------------------


def map_to_sdr(image: np.ndarray, primaries: int) -> np.ndarray:
    """Convert a PQ image to BT.709.

    Args:
        image: BGR uint16 (height, width, 3), where 65535 is PQ value 1
        primaries: colour primaries, FFmpeg's AVColorPrimaries; unknown values count as BT.2020

    Returns:
        BGR uint8 (height, width, 3).
    """
    light = linear_light()[image >> 4]
    if primaries != BT709:
        matrix = np.array(TO_BT709.get(primaries, TO_BT709[9]), np.float32)[::-1, ::-1]  # BGR
        light = cv2.transform(light, matrix)
    light = cv2.sqrt(np.maximum(light, 0, out=light))  # more table entries for dark values
    steps = cv2.multiply(light, (STEPS - 1) / BRIGHTEST**0.5)
    return output_levels()[np.minimum(steps, STEPS - 1, out=steps).astype(np.uint16)]


def has_pq(picture: bytes) -> bool:
    """Return True if the colours of an AVIF, HEIC or PNG file are PQ.

    The code is in a colr box (ISO 14496-12, 12.1.5) or a cICP chunk (PNG, 11.3.2.6). A photo with a
    gain map (tmap, ISO 21496-1) has SDR colours, and the code of its HDR version.
    """
    head = picture[:PICTURE_HEADER]
    if head.startswith(b"\x89PNG"):
        return bool(re.search(rb"\0\0\0\x04cICP.\x10", head, re.DOTALL))
    found = re.search(rb"colrnclx..\0\x10", head, re.DOTALL)
    return head[4:8] == b"ftyp" and bool(found) and b"tmap" not in head


@cache
def linear_light() -> np.ndarray:
    """Return the light for 4096 PQ values, in units of white: ST 2084, equations 4.1 and 4.2."""
    root = np.linspace(0, 1, 4096) ** (32 / 2523)  # 1 / m2
    light = (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (8192 / 1305)
    return (light * BRIGHTEST).astype(np.float32)


@cache
def output_levels() -> np.ndarray:
    """Return output levels, uint8, for STEPS light values with evenly spaced square roots."""
    light = np.linspace(0, BRIGHTEST**0.5, STEPS) ** 2
    room = 1 - KNEE
    rolled = KNEE + room * (1 - np.exp(-(np.maximum(light, KNEE) - KNEE) / room))
    shown = np.where(light <= KNEE, light, rolled) ** (1 / DISPLAY_GAMMA)
    return np.round(255 * shown).astype(np.uint8)
