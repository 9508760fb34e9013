"""Make practice videos, so that every step runs before you own a data set.

    python 00-make-sample-videos.py
    python 00-make-sample-videos.py --people 8 --fakes 12
    python 00-make-sample-videos.py --videos-dir my-practice-videos --seed 2

Reads   the portrait of an astronaut that comes with scikit-image (NASA, public domain)
Writes  videos/dfdc_practice/<name>.mp4             real and fake clips
        videos/dfdc_practice/metadata.json          label and original of each, as DFDC has them
        videos/dfdc_practice/practice-set.json      the settings that the set was made with
Next    01-convert-video-to-image.py

Every "person" is the portrait with other proportions, colours and light, in front of another
background and filmed by a moving camera: one real clip each, so that no person can be in two
splits. A fake is the real clip of one person, frame for frame, with the face replaced by a copy of
itself that is resampled, recoloured, shifted a little and blended in with a soft mask: the idea of
self-blended images (Shiohara and Yamasaki, "Detecting Deepfakes with Self-Blended Images", CVPR
2022). All else is equal in both labels: size, number of frames, background, noise and codec.

A model that does well on these clips shows that the pipeline works, and nothing about deepfakes in
the wild. Your own videos are safe: if the folder holds any, nothing is written.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))  # python -P leaves it out
from deepfake_detect import start

start.prepare(__name__)  # Ctrl-C while the rest is loading ends it with a sentence

import functools
import json
import os
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import skimage.data
from tqdm.contrib.concurrent import thread_map

from deepfake_detect import cli
from deepfake_detect.files import write_whole

# --------------------------------------------------------------------------------------------------
# folders
VIDEOS_DIR = Path("videos")  # the clips go into one folder below it
# clips
PEOPLE = 24  # real clips, one a person
FAKES = 36  # more fakes than reals, as in the data sets
FRAMES = 40  # frames a clip, 1.6 s
FPS = 25  # frames per second
SEED = 1  # the same seed makes the same frames
# looks
WIDTHS = (640, 288, 1280, 1920, 640, 288, 1280, 640)  # pixels of the clips of persons 0, 1, 2, ...
FACE_WIDTHS = (76, 112)  # pixels, in a frame 640 wide
STRENGTHS = (0.6, 1.0)  # how visible the traces of a swap are: 0 not at all, 1 strongly
# machine
WORKERS = os.cpu_count() or 1  # clips made side by side
# --------------------------------------------------------------------------------------------------

CLIPS_FOLDER = "dfdc_practice"  # below videos/
MARKER = "practice-set.json"  # shows that the folder is this script's
CANVAS_WIDTH = 640  # pixels; clips are drawn at this width, then sized

# Places in the portrait, in its pixels: x,y.
FACE_CENTER = np.array((225, 129))
FACE_AXES = np.array((42, 48))  # half the face's width and height, brows to chin
FACE_AND_NECK = """187,76 215,81 255,88 268,95 270,125 262,150 256,170 254,186 235,191 210,187
    190,180 186,165 182,140 179,120 179,98"""
SURELY_ASTRONAUT = """165,90 175,50 225,25 275,45 290,90 270,130 255,170 300,230 340,290 345,400
    480,400 490,512 40,512 45,340 80,250 130,215 190,170 175,120"""
PERHAPS_ASTRONAUT = """150,100 150,60 180,25 225,8 275,20 305,70 300,120 285,145 310,200 312,235
    340,255 362,335 420,335 490,380 511,512 15,512 30,330 60,245 115,215 112,190 130,150 165,145"""
# What differs between people: points that move together, and over how many pixels around them.
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
# Ranges of: exponent of the lightness, turn of the hue in radians, factor of the colourfulness.
SKIN = ((0.9, 1.9), (-0.2, 0.05), (0.85, 1.25))
HAIR = ((0.8, 2.4), (-0.4, 0.1), (0.15, 1.3))
CLOTHES = ((0.7, 2.0), (-3.1, 3.1), (0.2, 0.9))

Filmed = Iterator[tuple[np.ndarray, np.ndarray]]  # canvases, each with its camera


def main(
    videos_dir: Path = VIDEOS_DIR,
    people: int = PEOPLE,
    fakes: int = FAKES,
    frames: int = FRAMES,
    fps: float = FPS,
    seed: int = SEED,
    widths: tuple[int, ...] = WIDTHS,
    face_widths: tuple[float, float] = FACE_WIDTHS,
    strengths: tuple[float, float] = STRENGTHS,
    workers: int = WORKERS,
) -> pd.DataFrame:
    """Make practice videos, so that every step runs before you own a data set.

    Args:
        videos_dir: the folder for videos; the clips go into dfdc_practice/ below it
        people: how many people, with one real clip each
        fakes: how many fake clips, made of the people's real clips in turn
        frames: frames a clip
        fps: frames per second
        seed: the same seed makes the same frames
        widths: widths of the clips of persons 0, 1, 2, ..., and again from the first, in pixels
        face_widths: least and largest width of a face, in pixels of a frame 640 wide
        strengths: least and largest visibility of the traces of a swap, 0 to 1
        workers: how many clips are made side by side

    Returns:
        One row a clip of the set: name, person, take, original, width, height, label; no row if
        the folder holds other files and was left alone.

    Raises:
        ValueError: a number is out of its range, or a set made with other settings is in the way.
        OSError: the folder cannot be written, or OpenCV cannot write videos.
    """
    settings = dict(locals())
    for name in ("people", "fakes", "frames", "fps", "seed", "workers"):
        if not settings[name] >= (least := int(name not in ("fakes", "seed"))):
            raise ValueError(f"--{name} is {settings[name]}; give {least} or more.")
    if not widths or min(widths) < 32:
        raise ValueError("--widths: give one or more, each of 32 pixels or more.")

    # The names of the clips follow from the settings; a folder with other files is left alone.
    clips = plan_clips(people, fakes, seed, widths)
    clips = [clip._replace(face_widths=face_widths, strengths=strengths) for clip in clips]
    table = pd.DataFrame(clips).drop(columns=["face_widths", "strengths"])
    if foreign := find_foreign_file(videos_dir):
        print(f"{videos_dir} holds files of your own ({foreign}), so no practice videos were made.")
        return table.iloc[:0]

    # The marker is written before the first clip: it tells the next run which files are ours.
    folder = videos_dir / CLIPS_FOLDER
    made_with = {name: settings[name] for name in settings if name not in ("videos_dir", "workers")}
    made_with = json.loads(json.dumps(made_with))
    earlier = read_marker(folder).get("settings", made_with)
    if other := [name for name in made_with if made_with[name] != earlier.get(name)]:
        raise ValueError(
            f"{folder}: the practice videos in it were made with another setting of "
            f"{', '.join(other)}; delete this folder and run again."
        )
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MARKER).exists():
        marker = {"settings": made_with, "clips": list(table["name"])}
        write_whole(folder / MARKER, lambda path: path.write_text(json.dumps(marker, indent=2)))

    # Make the clips that are not there yet, and at last the list of their labels.
    missing = [clip for clip in clips if not (folder / clip.name).exists()]
    if not missing and (folder / "metadata.json").exists():
        print(f"{folder} holds the whole practice set already; nothing to do.")
        return table
    make = functools.partial(write_clip, folder=folder, frames=frames, fps=fps, seed=seed)
    thread_map(make, missing, max_workers=workers, desc="clips", unit="clip")
    labels = ({"label": clip.label, "split": "train", "original": clip.original} for clip in clips)
    text = json.dumps(dict(zip(table["name"], labels, strict=True)), indent=2)
    write_whole(folder / "metadata.json", lambda path: path.write_text(text))
    print_set(table, frames, len(clips) - len(missing), folder)
    return table


def plan_clips(people: int, fakes: int, seed: int, widths: tuple[int, ...] = WIDTHS) -> list[Clip]:
    """Name the clips as DFDC does, ten letters each; the fakes go round the people in turn."""
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


class Clip(NamedTuple):
    """One clip to make; take 0 is the person's real clip, takes 1, 2, ... are fakes made of it."""

    name: str
    person: int
    take: int
    original: str | None  # name of the real clip that a fake is made of
    width: int  # pixels
    height: int
    label: str  # REAL or FAKE, as DFDC's metadata.json says it
    face_widths: tuple[float, float] = FACE_WIDTHS  # the clip's own is drawn from this range
    strengths: tuple[float, float] = STRENGTHS  # likewise


def find_foreign_file(videos_dir: Path) -> Path | None:
    """Find a file that no earlier run of this script made; links count, hidden files do not."""
    folder = videos_dir / CLIPS_FOLDER
    marker = read_marker(folder)
    own = {MARKER, "metadata.json", *marker["clips"]} if marker else {MARKER}
    own |= {f"{Path(name).stem}.partial{Path(name).suffix}" for name in own}
    for path in videos_dir.rglob("*"):
        is_file = path.is_symlink() or not path.is_dir()
        is_own = path.name.startswith(".") or (path.parent == folder and path.name in own)
        if is_file and not is_own:
            return path
    return None


def read_marker(folder: Path) -> dict:
    """Read the settings and the names of the clips of the set in a folder; empty if none is there.

    Raises:
        ValueError: the file is not as this script writes it.
    """
    if not (folder / MARKER).exists():
        return {}
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return {"settings": dict(marker["settings"]), "clips": [str(n) for n in marker["clips"]]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / MARKER}: this is not as the script wrote it; delete {folder} and run again."
        ) from error


def write_clip(clip: Clip, folder: Path, frames: int, fps: float, seed: int) -> None:
    """Write a clip whole or not at all.

    Raises:
        OSError: OpenCV cannot write MPEG-4 here, or the disk is full.
    """

    def encode(path: Path) -> None:
        name = os.fsencode(path.absolute())  # FFmpeg would take a name like http:x for an address
        codec = cv2.VideoWriter_fourcc(*"mp4v")
        writer = cv2.VideoWriter(name, codec, fps, (clip.width, clip.height))
        if not writer.isOpened():
            raise OSError(f"{path}: OpenCV cannot write MPEG-4 here; install it by pip.")
        for frame in draw_clip(clip, frames, seed):
            writer.write(frame)
        writer.release()
        if cv2.VideoCapture(name).get(cv2.CAP_PROP_FRAME_COUNT) != frames:
            path.unlink()
            raise OSError(f"{path}: not every frame was written; is the disk full?")

    write_whole(folder / clip.name, encode)


def draw_clip(clip: Clip, frames: int, seed: int) -> Iterator[np.ndarray]:
    """Draw the frames of a clip, each BGR uint8 (height, width, 3).

    A fake draws the frames of its original again, to the last grain of noise, and swaps the face.
    """
    filmed = film_person(clip, frames, np.random.default_rng((seed, clip.person)))
    if clip.take:
        rng = np.random.default_rng((seed, clip.person, clip.take))
        canvases = swap_faces(filmed, clip, rng)
    else:
        canvases = (canvas for canvas, _ in filmed)
    resample = cv2.INTER_AREA if clip.width < CANVAS_WIDTH else cv2.INTER_CUBIC
    for canvas in canvases:
        sized = cv2.resize(canvas, (clip.width, clip.height), interpolation=resample)
        yield (255 * sized).round().clip(0, 255).astype(np.uint8)


def film_person(clip: Clip, frames: int, rng: np.random.Generator) -> Filmed:
    """Film a person with a hand-held camera: drifting, zooming, turning a little, with noise.

    Yields:
        The canvas, BGR float32 (height, CANVAS_WIDTH, 3) in 0..1 but for the noise, and the camera,
        a float64 (2, 3) that maps pixels of the portrait to pixels of the canvas.
    """
    # What stays the same through the clip is drawn at random once.
    person, background = make_person(rng), make_background(rng)
    size = CANVAS_WIDTH, round(CANVAS_WIDTH * clip.height / clip.width)
    place = np.array((rng.uniform(0.4, 0.6), rng.uniform(0.43, 0.5))) * size
    scale = rng.uniform(*clip.face_widths) / (2 * FACE_AXES[0])
    widen, mirror = rng.uniform(0.93, 1.07), rng.choice((-1, 1))
    focus, noise = rng.uniform(0.3, 0.8), rng.uniform(0.008, 0.02)
    white = rng.uniform(0.95, 1.05, 3).astype(np.float32)
    # Each of the four movements (x, y, zoom, turn) is a sum of two slow waves.
    waves = rng.uniform(0.1, 0.7, (2, 4)), rng.uniform(0, 2 * np.pi, (2, 4))
    reach = rng.uniform(0.3, 1.0, 4) * (12, 6, 0.04, 0.05)
    # Each frame has its own camera; person and background go through it by themselves.
    for frame in range(frames):
        movement = reach * np.sin(waves[0] * frame / 5 + waves[1]).sum(axis=0) / 2
        move, (zoom, turn) = movement[:2], movement[2:]
        turned = np.array(((np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))))
        matrix = scale * (1 + zoom) * turned @ np.diag((mirror * widen, 1 / widen))
        camera = np.column_stack((matrix, place + move - matrix @ FACE_CENTER))
        # What is behind the person is farther away and moves less.
        behind = np.column_stack((matrix, place + move / 2 - matrix @ FACE_CENTER))
        front = cv2.warpAffine(person, camera, size, flags=cv2.INTER_CUBIC)
        back = cv2.warpAffine(background, behind, size, borderMode=cv2.BORDER_REFLECT)
        canvas = (front[..., :3] + (1 - front[..., 3:]) * back) * white
        canvas = cv2.GaussianBlur(canvas, (0, 0), focus)
        canvas += noise * rng.standard_normal((size[1], size[0], 1), dtype=np.float32)
        yield canvas, camera


def make_person(rng: np.random.Generator) -> np.ndarray:
    """Give the portrait other colours, light and proportions.

    Returns:
        BGRA float32 (512, 512, 4) in 0..1, the colours multiplied by the alpha.
    """
    # Colours: skin, hair and clothes each get another lightness, hue and colourfulness.
    portrait, masks = load_portrait()
    lab = cv2.cvtColor(portrait, cv2.COLOR_BGR2Lab)
    recoloured = np.zeros_like(lab)
    for part, ranges in (("skin", SKIN), ("hair", HAIR), ("clothes", CLOTHES)):
        exponent, turn, colourfulness = (rng.uniform(low, high) for low, high in ranges)
        colour = (lab[..., 1] + 1j * lab[..., 2]) * colourfulness * np.exp(1j * turn)
        lightness = 100 * (lab[..., 0] / 100) ** exponent
        recoloured += masks[part] * np.dstack((lightness, colour.real, colour.imag))
    person = cv2.cvtColor(recoloured.astype(np.float32), cv2.COLOR_Lab2BGR)

    # Light: one side of the face is brighter than the other.
    x, y = np.meshgrid(*(np.arange(size, dtype=np.float32) for size in (512, 512)))
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.22)
    toward_light = np.cos(angle) * (x - FACE_CENTER[0]) + np.sin(angle) * (y - FACE_CENTER[1])
    person *= (1 + strength * np.tanh(toward_light / 60))[..., None]
    person = np.dstack((person.clip(0, 1), np.ones_like(x))) * masks["person"]

    # Proportions: each part of the face is moved a little, together with what is near it.
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
    """Load the portrait, BGR float32 (512, 512, 3) in 0..1, and a soft mask of each of its parts.

    The masks are float32 (512, 512, 1) in 0..1; those of skin, hair and clothes add up to 1.
    """
    # GrabCut finds the person's edge between two outlines drawn by hand.
    portrait = cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2BGR)
    cut = np.full(portrait.shape[:2], cv2.GC_BGD, np.uint8)
    cv2.fillPoly(cut, [read_outline(PERHAPS_ASTRONAUT)], cv2.GC_PR_FGD)
    cv2.fillPoly(cut, [read_outline(SURELY_ASTRONAUT)], cv2.GC_FGD)
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(portrait, cut, None, *models, 3, cv2.GC_INIT_WITH_MASK)
    astronaut = np.isin(cut, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
    skin = cv2.fillPoly(np.zeros_like(astronaut), [read_outline(FACE_AND_NECK)], 1.0)
    head = np.float32(np.arange(512) < 138)[:, None]  # rows that the hair reaches down to
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
    """Paint a wall out of focus, soft spots of two colours: BGR float32 (512, 512, 3) in 0..1."""
    colours = rng.uniform(0.1, 0.85, (2, 1)) * rng.uniform(0.75, 1.0, (2, 3))
    spots = np.zeros((512, 512), np.float32)
    for cells in (3, 6, 14):
        coarse = rng.random((cells, cells), dtype=np.float32) - 0.5
        spots += cv2.resize(coarse, (512, 512), interpolation=cv2.INTER_CUBIC) * 3 / cells
    share = (0.5 + spots.clip(-0.5, 0.5))[..., None]
    return (colours[0] * share + colours[1] * (1 - share)).astype(np.float32)


def swap_faces(filmed: Filmed, clip: Clip, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Replace the face in each frame by a blended copy of itself.

    Self-blended images (Shiohara and Yamasaki, CVPR 2022): the copy is resampled, recoloured,
    shifted and scaled, and is blended in through a soft mask of irregular outline. All this is
    drawn at random once a clip, and varies a little from frame to frame.

    Yields:
        The canvases, BGR float32 (height, CANVAS_WIDTH, 3), with the face swapped.
    """
    strength = rng.uniform(*clip.strengths)
    detail = min(1.0, clip.width / CANVAS_WIDTH)  # a finer trace would be lost in a small clip
    resolution = detail / (1 + strength * rng.uniform(0.5, 1.3))
    gains = 1 + strength * rng.uniform(-0.09, 0.09) + strength * rng.uniform(-0.06, 0.06, 3)
    shift = strength * rng.uniform(-2.5, 2.5, 2)  # pixels of the canvas
    zoom = 1 + strength * rng.uniform(-0.05, 0.05)
    opacity = rng.uniform(0.8, 1.0)
    feather = rng.uniform(1.5, 4.0)  # pixels of the canvas
    noise = rng.uniform(0.008, 0.02)  # a swap gets new grain, to look like what is around it
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    radii = rng.uniform(0.86, 0.98) * np.ones_like(angles)
    for wave in (2, 3, 4):
        radii += rng.uniform(-0.04, 0.04) * np.cos(wave * angles + rng.uniform(0, 2 * np.pi))
    outline = FACE_CENTER + FACE_AXES * (radii * (np.cos(angles), np.sin(angles))).T

    for canvas, camera in filmed:
        height, width = canvas.shape[:2]
        jitter = rng.normal(0, 0.3 * strength, 2)
        flicker = rng.normal(1, 0.006 * strength)
        face = cv2.resize(canvas, None, fx=resolution, fy=resolution, interpolation=cv2.INTER_AREA)
        face = cv2.resize(face, (width, height), interpolation=cv2.INTER_CUBIC)
        center = camera @ (*FACE_CENTER, 1)
        displace = np.column_stack((zoom * np.eye(2), (1 - zoom) * center + shift + jitter))
        face = cv2.warpAffine(face, displace, (width, height))
        face *= (flicker * gains).astype(np.float32)
        face += noise * rng.standard_normal((height, width, 1), dtype=np.float32)

        corners = outline @ camera[:, :2].T + camera[:, 2] + jitter
        mask = np.zeros((height, width), np.float32)
        cv2.fillPoly(mask, [corners.round().astype(np.int32)], opacity)
        mask = cv2.GaussianBlur(mask, (0, 0), feather)[..., None]
        yield mask * face + (1 - mask) * canvas


def print_set(table: pd.DataFrame, frames: int, kept: int, folder: Path) -> None:
    print(f"{folder}")
    for label, count in table["label"].value_counts().sort_index(ascending=False).items():
        print(f"  {label.lower()} clips      {count:7,}")
    print(f"  frames          {len(table) * frames:7,}")
    for (width, height), count in table.groupby(["width", "height"]).size().items():
        print(f"  {width:4} x {height:4}     {count:7,} clips")
    print(f"  kept of before  {kept:7,} clips")
    print("They show that the pipeline works, and say nothing of its accuracy on real deepfakes.")


if __name__ == "__main__":
    cli.run(main)
