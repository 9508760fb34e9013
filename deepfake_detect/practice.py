"""Draw practice videos: real clips of invented people, and fakes in which their faces are swapped.

Every person is a variant of one portrait, of the astronaut Eileen Collins (NASA, public domain),
with different colours, light and proportions. In a fake, another person's face replaces the filmed
face, with the typical traces of a swap: it is blurred, as face generators have a low resolution, it
has a seam and wrong colours, and it trembles and flickers slightly. Everything else is equal for
both labels: size, number of frames, background, noise and codec.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

PORTRAIT = Path(__file__).with_name("portrait.jpg")  # 512 x 512
CANVAS_WIDTH = 640  # pixels; clips are drawn at this width, then resized
WIDTHS = (640, 288, 1280, 1920, 640, 288, 1280, 640)  # pixels, of persons 0, 1, 2, ...
FPS = 25  # frames per second
FACE_WIDTHS = (76, 112)  # range, in pixels of the canvas
EXAMPLE_SEED = 1  # for the two clips of write_examples
EXAMPLE_FRAMES = 40

# Points in the portrait, in pixels: x,y.
FACE_CENTER = np.array((225, 129))
FACE_AXES = np.array((42, 48))  # half the face's width and height, brows to chin
FACE_AND_NECK = """187,76 215,81 255,88 268,95 270,125 262,150 256,170 254,186 235,191 210,187
    190,180 186,165 182,140 179,120 179,98"""
SURELY_ASTRONAUT = """165,90 175,50 225,25 275,45 290,90 270,130 255,170 300,230 340,290 345,400
    480,400 490,512 40,512 45,340 80,250 130,215 190,170 175,120"""
PERHAPS_ASTRONAUT = """150,100 150,60 180,25 225,8 275,20 305,70 300,120 285,145 310,200 312,235
    340,255 362,335 420,335 490,380 511,512 15,512 30,330 60,245 115,215 112,190 130,150 165,145"""
# Differences between people: points that move together, and the radius of the change in pixels.
PROPORTIONS = (
    (((203, 101), (246, 103)), 15),  # eyes
    (((224, 124),), 14),  # nose
    (((204, 142), (246, 142)), 14),  # corners of the mouth
    (((182, 130), (269, 132)), 22),  # cheeks
    (((198, 162), (254, 164)), 18),  # jaw
    (((226, 178),), 20),  # chin
    (((226, 80),), 24),  # hairline
    (((156, 80), (300, 85)), 32),  # hair at the sides
    (((228, 18),), 34),  # hair on top
)
# Ranges of the lightness exponent, the hue shift in radians, and the factor of the chroma.
SKIN = ((0.9, 1.9), (-0.2, 0.05), (0.85, 1.25))
HAIR = ((0.8, 2.4), (-0.4, 0.1), (0.15, 1.3))
CLOTHES = ((0.7, 2.0), (-3.1, 3.1), (0.2, 0.9))

Filmed = Iterator[tuple[np.ndarray, np.ndarray]]  # pairs of canvas and camera, see film_person

# --- The clips ------------------------------------------------------------------------------------


class Clip(NamedTuple):
    """A clip to write; take 0 is a person's real clip, takes 1, 2, ... are fakes made from it."""

    name: str
    person: int
    take: int
    original: str | None  # name of the real clip that a fake was made from
    width: int  # pixels
    height: int
    label: str  # REAL or FAKE, as in the lists of the data set DFDC


def plan_clips(people: int, fakes: int, seed: int, widths: tuple[int, ...] = WIDTHS) -> list[Clip]:
    """Return the clips to write, named as in DFDC (ten letters); fakes use each person in turn."""
    takes = [(person, 0) for person in range(people)]
    takes += [(fake % people, 1 + fake // people) for fake in range(fakes)]
    clips = []
    for person, take in takes:
        letters = np.random.default_rng((seed, person, take)).integers(26, size=10)
        name = "".join(chr(ord("a") + letter) for letter in letters) + ".mp4"
        original, label = (clips[person].name, "FAKE") if take else (None, "REAL")
        width = widths[person % len(widths)]
        size = width, 2 * round(width * (3 / 8 if width <= 640 else 9 / 32))  # 4:3, wide ones 16:9
        clips.append(Clip(name, person, take, original, *size, label))
    return clips


def write_clips(
    clips: Mapping[Path, Clip], frames: int, fps: float = FPS, seed: int = EXAMPLE_SEED
) -> None:
    """Write clips of one person as MPEG-4; all of them share one filming.

    Args:
        clips: the clips by output file
        frames: frames per clip
        fps: frames per second
        seed: the same seed makes the same frames

    Raises:
        OSError: OpenCV cannot write MPEG-4, or the disk is full
    """
    with ExitStack() as opened:
        videos = [opened.enter_context(Mpeg4(path, clip, fps)) for path, clip in clips.items()]
        for drawn in draw_clips(list(clips.values()), frames, seed):
            for video, frame in zip(videos, drawn, strict=True):
                video.write(frame)
    for path in clips:
        if count_frames(path) != frames:
            raise OSError(
                f"{path.parent}: some frames were not written; check whether the disk is full."
            )


class Mpeg4:
    """A video file for writing, closed at the end of a `with` block."""

    def __init__(self, path: Path, clip: Clip, fps: float) -> None:
        name = os.fsencode(path.absolute())  # FFmpeg would treat a name like http:x as a URL
        codec = cv2.VideoWriter_fourcc(*"mp4v")
        self.writer = cv2.VideoWriter(name, codec, fps, (clip.width, clip.height))
        if not self.writer.isOpened():
            raise OSError(
                f"{path.parent}: OpenCV cannot write MPEG-4; install opencv-python with pip."
            )

    def __enter__(self) -> Mpeg4:
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append a frame, BGR uint8 (height, width, 3)."""
        self.writer.write(frame)

    def __exit__(self, *_: object) -> None:
        self.writer.release()


def count_frames(path: Path) -> int:
    """Return the number of frames in a video's header; 0 if it cannot be read."""
    return int(cv2.VideoCapture(os.fsencode(path.absolute())).get(cv2.CAP_PROP_FRAME_COUNT))


def write_examples(folder: Path) -> dict[str, Path]:
    """Write a real clip and a fake made from it, to try the detection: 1.6 s of 640 x 480.

    Returns:
        The files by label, "real" and "fake".
    """
    clips = plan_clips(people=1, fakes=1, seed=EXAMPLE_SEED)
    paths = {clip.label.lower(): folder / f"practice-{clip.label.lower()}.mp4" for clip in clips}
    write_clips(dict(zip(paths.values(), clips, strict=True)), EXAMPLE_FRAMES)
    return paths


def draw_clips(clips: list[Clip], frames: int, seed: int) -> Iterator[list[np.ndarray]]:
    """Draw the frames of clips of one person, each BGR uint8 (height, width, 3).

    A fake has exactly the frames of its original, including the noise, with another face.

    Yields:
        For each point in time, one frame per clip.
    """
    person = clips[0].person
    swaps = [
        Swap(clip, np.random.default_rng((seed, person, clip.take))) if clip.take else None
        for clip in clips
    ]
    for canvas, camera in film_person(clips[0], frames, np.random.default_rng((seed, person))):
        canvases = (swap.swap_face(canvas, camera) if swap else canvas for swap in swaps)
        yield [size_frame(each, clip) for each, clip in zip(canvases, clips, strict=True)]


def size_frame(canvas: np.ndarray, clip: Clip) -> np.ndarray:
    """Convert a canvas to a frame of the clip: BGR uint8 (height, width, 3)."""
    frame = cv2.convertScaleAbs(canvas.clip(0, 1), alpha=255)
    resample = cv2.INTER_AREA if clip.width < CANVAS_WIDTH else cv2.INTER_CUBIC
    return cv2.resize(frame, (clip.width, clip.height), interpolation=resample)


# --- A real clip ----------------------------------------------------------------------------------


def film_person(clip: Clip, frames: int, rng: np.random.Generator) -> Filmed:
    """Simulate filming a person with a hand-held camera that drifts, zooms and turns slightly.

    Yields:
        The canvas, BGR float32 (height, CANVAS_WIDTH, 3) in 0..1 except for the noise, and the
        camera, float64 (2, 3), which maps pixels of the portrait to pixels of the canvas.
    """
    # Draw the constant properties of the clip at random.
    person, background = make_person(rng), make_background(rng)
    width, height = size = CANVAS_WIDTH, round(CANVAS_WIDTH * clip.height / clip.width)
    place = np.array((rng.uniform(0.4, 0.6), rng.uniform(0.43, 0.5))) * size
    scale = rng.uniform(*FACE_WIDTHS) / (2 * FACE_AXES[0])
    widen, mirror = rng.uniform(0.93, 1.07), rng.choice((-1, 1))
    focus = rng.uniform(0.3, 0.8)
    noise = rng.uniform(0.008, 0.02) * rng.standard_normal((2 * height, 2 * width, 1), np.float32)
    white = rng.uniform(0.95, 1.05, 3).astype(np.float32)
    # Each of the four movements (x, y, zoom, turn) is a sum of two slow waves.
    waves = rng.uniform(0.1, 0.7, (2, 4)), rng.uniform(0, 2 * np.pi, (2, 4))
    reach = rng.uniform(0.3, 1.0, 4) * (12, 6, 0.04, 0.05)
    # Each frame has its own camera; it is applied to person and background separately.
    for frame in range(frames):
        movement = reach * np.sin(waves[0] * frame / 5 + waves[1]).sum(axis=0) / 2
        move, (zoom, turn) = movement[:2], movement[2:]
        turned = np.array(((np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))))
        matrix = scale * (1 + zoom) * turned @ np.diag((mirror * widen, 1 / widen))
        camera = np.column_stack((matrix, place + move - matrix @ FACE_CENTER))
        # The background is farther away and moves less.
        behind = np.column_stack((matrix, place + move / 2 - matrix @ FACE_CENTER))
        front = cv2.warpAffine(person, camera, size, flags=cv2.INTER_CUBIC)
        back = cv2.warpAffine(background, behind, size, borderMode=cv2.BORDER_REFLECT)
        canvas = (front[..., :3] + (1 - front[..., 3:]) * back) * white
        canvas = cv2.GaussianBlur(canvas, (0, 0), focus)
        down, across = rng.integers((height, width))
        canvas += noise[down : down + height, across : across + width]
        yield canvas, camera


def make_person(rng: np.random.Generator) -> np.ndarray:
    """Return a variant of the portrait with random colours, light and proportions.

    Returns:
        BGRA float32 (512, 512, 4) in 0..1, with premultiplied alpha.
    """
    # Colours: change the lightness, hue and chroma of skin, hair and clothes separately.
    portrait, masks = load_portrait()
    lab = cv2.cvtColor(portrait, cv2.COLOR_BGR2Lab)
    recoloured = np.zeros_like(lab)
    for part, ranges in (("skin", SKIN), ("hair", HAIR), ("clothes", CLOTHES)):
        exponent, turn, colourfulness = (rng.uniform(low, high) for low, high in ranges)
        colour = (lab[..., 1] + 1j * lab[..., 2]) * colourfulness * np.exp(1j * turn)
        lightness = 100 * (lab[..., 0] / 100) ** exponent
        recoloured += masks[part] * np.dstack((lightness, colour.real, colour.imag))
    person = cv2.cvtColor(recoloured.astype(np.float32), cv2.COLOR_Lab2BGR)

    # Light: make one side of the face brighter than the other.
    x, y = np.meshgrid(*(np.arange(size, dtype=np.float32) for size in (512, 512)))
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.22)
    toward_light = np.cos(angle) * (x - FACE_CENTER[0]) + np.sin(angle) * (y - FACE_CENTER[1])
    person *= (1 + strength * np.tanh(toward_light / 60))[..., None]
    person = np.dstack((person.clip(0, 1), np.ones_like(x))) * masks["person"]

    # Proportions: move each part of the face slightly, together with the pixels around it.
    from_x, from_y = x.copy(), y.copy()
    for points, reach in PROPORTIONS:
        apart, down = reach * rng.normal(0, (0.11, 0.08)).clip(-0.18, 0.18)
        for point_x, point_y in points:
            near = np.exp(-((x - point_x) ** 2 + (y - point_y) ** 2) / (2 * reach**2))
            if len(points) == 2:
                from_x -= np.sign(point_x - FACE_CENTER[0]) * apart * near
            from_y -= down * near
    return cv2.remap(person, from_x, from_y, cv2.INTER_CUBIC)


@functools.cache
def load_portrait() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Load the portrait, BGR float32 (512, 512, 3) in 0..1, and a soft mask per part.

    The masks are float32 (512, 512, 1) in 0..1; skin, hair and clothes add up to 1.
    """
    # GrabCut finds the person's outline between two polygons drawn by hand.
    portrait = cv2.imdecode(np.frombuffer(PORTRAIT.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    cut = np.full(portrait.shape[:2], cv2.GC_BGD, np.uint8)
    cv2.fillPoly(cut, [read_outline(PERHAPS_ASTRONAUT)], cv2.GC_PR_FGD)
    cv2.fillPoly(cut, [read_outline(SURELY_ASTRONAUT)], cv2.GC_FGD)
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(portrait, cut, None, *models, 3, cv2.GC_INIT_WITH_MASK)
    astronaut = np.isin(cut, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
    skin = cv2.fillPoly(np.zeros_like(astronaut), [read_outline(FACE_AND_NECK)], 1.0)
    head = np.float32(np.arange(512) < 138)[:, None]  # rows above the end of the hair
    masks = {
        "person": cv2.erode(astronaut, np.ones((2, 2))),
        "skin": skin,
        "hair": head * (1 - skin),
        "clothes": (1 - head) * (1 - skin),
    }
    masks = {part: cv2.GaussianBlur(mask, (0, 0), 1.2)[..., None] for part, mask in masks.items()}
    return portrait.astype(np.float32) / 255, masks


def read_outline(points: str) -> np.ndarray:
    """Read the text "x,y x,y ..." as points, int32 (n, 2)."""
    return np.array([point.split(",") for point in points.split()], np.int32)


def make_background(rng: np.random.Generator) -> np.ndarray:
    """Return a blurred two-colour background: BGR float32 (512, 512, 3) in 0..1."""
    colours = rng.uniform(0.1, 0.85, (2, 1)) * rng.uniform(0.75, 1.0, (2, 3))
    spots = np.zeros((512, 512), np.float32)
    for cells in (3, 6, 14):
        coarse = rng.random((cells, cells), dtype=np.float32) - 0.5
        spots += cv2.resize(coarse, (512, 512), interpolation=cv2.INTER_CUBIC) * 3 / cells
    share = (0.5 + spots.clip(-0.5, 0.5))[..., None]
    return (colours[0] * share + colours[1] * (1 - share)).astype(np.float32)


# --- A fake ---------------------------------------------------------------------------------------


class Swap:
    """Another person's face for the frames of a clip, with its constant random properties."""

    def __init__(self, clip: Clip, rng: np.random.Generator) -> None:
        self.rng = rng
        self.donor = make_person(rng)
        # Resolution of the swapped face relative to the canvas
        self.resolution = min(1.0, clip.width / CANVAS_WIDTH) * rng.uniform(0.26, 0.34)
        self.likeness = rng.uniform(0.6, 0.8)  # share of the colour difference that is removed
        self.feather = rng.uniform(0.7, 1.3)  # pixels of the canvas
        self.shift = rng.uniform(-2, 2, 2)  # pixels of the canvas
        self.trembling, self.flicker = rng.uniform(0.4, 0.8), rng.uniform(0.005, 0.02)
        angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        radii = rng.uniform(0.86, 0.96) * np.ones_like(angles)
        for wave in (2, 3, 4):
            radii += rng.uniform(-0.04, 0.04) * np.cos(wave * angles + rng.uniform(0, 2 * np.pi))
        self.outline = FACE_CENTER + FACE_AXES * (radii * (np.cos(angles), np.sin(angles))).T

    def swap_face(self, canvas: np.ndarray, camera: np.ndarray) -> np.ndarray:
        """Return a copy of a canvas, BGR float32, with the swapped face."""
        tremble = self.rng.normal(0, self.trembling, 2)
        corners = self.outline @ camera[:, :2].T + camera[:, 2] + tremble
        left, top = np.maximum(corners.min(axis=0).astype(int) - 6, 0)
        right, bottom = np.minimum(corners.max(axis=0).astype(int) + 7, canvas.shape[1::-1])
        inside, size = (slice(top, bottom), slice(left, right)), (right - left, bottom - top)

        camera = camera - np.column_stack((np.zeros((2, 2)), (left, top) - self.shift - tremble))
        face = cv2.warpAffine(self.donor, camera, size, flags=cv2.INTER_CUBIC)[..., :3]
        few = [max(1, round(self.resolution * side)) for side in size]
        face = cv2.resize(face, few, interpolation=cv2.INTER_AREA)
        face = cv2.resize(face, size, interpolation=cv2.INTER_CUBIC)

        mask = np.zeros(face.shape[:2], np.float32)
        cv2.fillPoly(mask, [(corners - (left, top)).round().astype(np.int32)], 1.0)
        off = canvas[inside][mask > 0].mean(axis=0) - face[mask > 0].mean(axis=0)
        face += np.float32(self.likeness * off + self.rng.normal(0, self.flicker, 3))
        mask = cv2.GaussianBlur(mask, (0, 0), self.feather)[..., None]
        swapped = canvas.copy()
        swapped[inside] = mask * face + (1 - mask) * canvas[inside]
        return swapped
