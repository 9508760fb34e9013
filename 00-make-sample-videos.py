"""Make practice videos, so that every step runs before you own a data set.

    python 00-make-sample-videos.py
    python 00-make-sample-videos.py --people 8 --fakes 12
    python 00-make-sample-videos.py --videos-dir my-practice-videos --seed 2

Reads   the portrait of an astronaut that comes with scikit-image (NASA, public domain)
Writes  videos/dfdc_practice/<name>.mp4             real and fake clips
        videos/dfdc_practice/metadata.json          label and original of each, as DFDC has them
        videos/dfdc_practice/practice-set.json      the settings that the set was made with
Next    01-convert-video-to-image.py

Every "person" is the portrait with other proportions, colours and light, before another background
and under a moving camera: one real clip each, so that no person can stand in two splits. A fake is
the real clip of one of them, frame for frame, with the face replaced by a copy of itself that is
resampled, recoloured, a little displaced and blended in with a feathered mask: the idea of
self-blended images (Shiohara and Yamasaki, "Detecting Deepfakes with Self-Blended Images", CVPR
2022). All else is equal in both labels: size, number of frames, background, noise and codec.

A model that does well on these clips shows that the pipeline works. It shows nothing about
deepfakes in the wild.

Videos of your own are safe: where the folder holds any, nothing is written. A run that was broken
off is finished by the next one, which keeps the clips that are there.
"""

import functools
import json
import multiprocessing
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import skimage.data
import tyro
from tqdm import tqdm

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
SIZES = (  # width, height of the clips of persons 0, 1, 2, ...: all that 01 treats differently
    (640, 480),
    (288, 216),
    (1280, 720),
    (1920, 1080),
    (640, 480),
    (288, 216),
    (1280, 720),
    (640, 480),
)
FACE_WIDTHS = (76, 112)  # pixels, in a frame 640 wide
STRENGTHS = (0.6, 1.0)  # how plain the traces of a swap are: 0 none, 1 strong

# machine
WORKERS = os.cpu_count() or 1  # processes, one clip each
# --------------------------------------------------------------------------------------------------

CLIPS_FOLDER = "dfdc_practice"
MARKER = "practice-set.json"
CANVAS_WIDTH = 640  # pixels; clips are drawn at this width, then sized

# Places in the portrait, in its pixels: x,y.
FACE_CENTER = np.array((225, 129))
FACE_AXES = np.array((42, 48))  # half the face's width and height, brows to chin
FACE_AND_NECK = """
    187,76 215,81 255,88 268,95 270,125 262,150 256,170 254,186 235,191 210,187 190,180 186,165
    182,140 179,120 179,98
"""
SURELY_ASTRONAUT = """
    165,90 175,50 225,25 275,45 290,90 270,130 255,170 300,230 340,290 345,400 480,400 490,512
    40,512 45,340 80,250 130,215 190,170 175,120
"""
PERHAPS_ASTRONAUT = """
    150,100 150,60 180,25 225,8 275,20 305,70 300,120 285,145 310,200 312,235 340,255 362,335
    420,335 490,380 511,512 15,512 30,330 60,245 115,215 112,190 130,150 165,145
"""
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


@dataclass(frozen=True)
class Clip:
    """One clip to make; take 0 is the person's real clip, takes 1, 2, ... are fakes made of it."""

    name: str
    person: int
    take: int
    original: str | None
    width: int
    height: int

    @property
    def label(self) -> str:
        """REAL or FAKE, as DFDC's metadata.json says it."""
        return "FAKE" if self.take else "REAL"


def plan_clips(people: int, fakes: int, seed: int) -> list[Clip]:
    """Name the clips as DFDC does, ten letters each; the fakes go round the people in turn."""
    takes = [(person, 0) for person in range(people)]
    takes += [(fake % people, 1 + fake // people) for fake in range(fakes)]
    names = {}
    for person, take in takes:
        letters = np.random.default_rng((seed, person, take)).integers(26, size=10)
        names[person, take] = "".join(chr(ord("a") + letter) for letter in letters) + ".mp4"
    return [
        Clip(
            name=names[person, take],
            person=person,
            take=take,
            original=names[person, 0] if take else None,
            width=SIZES[person % len(SIZES)][0],
            height=SIZES[person % len(SIZES)][1],
        )
        for person, take in takes
    ]


def read_marker(folder: Path) -> dict:
    """Read what the set in a folder was made with: its settings and the names of its clips.

    Raises:
        ValueError: the file is not as this script writes it.
    """
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return {"settings": dict(marker["settings"]), "clips": list(marker["clips"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / MARKER}: this is not as the script wrote it; delete {folder} and run again."
        ) from error


def find_foreign_file(videos_dir: Path) -> Path | None:
    """Find a file that no earlier run of this script made; links count, hidden files do not."""
    folder = videos_dir / CLIPS_FOLDER
    own = {MARKER}
    if (folder / MARKER).exists():
        own |= {"metadata.json", *read_marker(folder)["clips"]}
    own = {folder / name for name in own} | {folder / (name + ".partial") for name in own}
    for path in videos_dir.rglob("*"):
        is_file = path.is_symlink() or not path.is_dir()
        if is_file and path not in own and not path.name.startswith("."):
            return path
    return None


def read_outline(points: str) -> np.ndarray:
    """Read "x,y x,y ..." as int32 (points, 2)."""
    return np.array([point.split(",") for point in points.split()], np.int32)


@functools.cache
def load_portrait() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Load the portrait, BGR float32 (512, 512, 3) in 0..1, and a soft mask of each of its parts.

    The masks are float32 (512, 512, 1) in 0..1: the person, and areas of skin, hair and clothes
    that add up to 1. The person is cut out by GrabCut between two outlines drawn by hand.
    """
    portrait = cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2BGR)
    cut = np.full(portrait.shape[:2], cv2.GC_BGD, np.uint8)
    cv2.fillPoly(cut, [read_outline(PERHAPS_ASTRONAUT)], cv2.GC_PR_FGD)
    cv2.fillPoly(cut, [read_outline(SURELY_ASTRONAUT)], cv2.GC_FGD)
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(portrait, cut, None, *models, 3, cv2.GC_INIT_WITH_MASK)
    astronaut = np.isin(cut, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
    skin = cv2.fillPoly(np.zeros_like(astronaut), [read_outline(FACE_AND_NECK)], 1.0)
    head = np.zeros_like(astronaut)
    head[:138] = 1  # rows that the hair reaches down to
    masks = {
        "person": cv2.erode(astronaut, np.ones((2, 2))),
        "skin": skin,
        "hair": head * (1 - skin),
        "clothes": (1 - head) * (1 - skin),
    }
    masks = {part: cv2.GaussianBlur(mask, (0, 0), 1.2)[..., None] for part, mask in masks.items()}
    return portrait.astype(np.float32) / 255, masks


def make_person(rng: np.random.Generator) -> np.ndarray:
    """Give the portrait other colours, light and proportions.

    Returns BGRA float32 (512, 512, 4) in 0..1, the colours multiplied by the alpha.
    """
    portrait, masks = load_portrait()
    lab = cv2.cvtColor(portrait, cv2.COLOR_BGR2Lab)
    recoloured = np.zeros_like(lab)
    for part, ranges in (("skin", SKIN), ("hair", HAIR), ("clothes", CLOTHES)):
        exponent, turn, colourfulness = (rng.uniform(low, high) for low, high in ranges)
        a, b = lab[..., 1] * colourfulness, lab[..., 2] * colourfulness
        part_lab = np.dstack(
            (
                100 * (lab[..., 0] / 100) ** exponent,
                a * np.cos(turn) - b * np.sin(turn),
                a * np.sin(turn) + b * np.cos(turn),
            )
        )
        recoloured += masks[part] * part_lab
    person = cv2.cvtColor(recoloured.astype(np.float32), cv2.COLOR_Lab2BGR)

    x, y = np.meshgrid(*(np.arange(size, dtype=np.float32) for size in (512, 512)))
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.22)
    toward_light = np.cos(angle) * (x - FACE_CENTER[0]) + np.sin(angle) * (y - FACE_CENTER[1])
    person *= (1 + strength * np.tanh(toward_light / 60))[..., None]
    person = np.dstack((person.clip(0, 1), np.ones_like(x))) * masks["person"]

    from_x, from_y = x.copy(), y.copy()
    for points, reach in PROPORTIONS:
        apart, down = reach * rng.normal(0, (0.11, 0.08)).clip(-0.18, 0.18)
        for point_x, point_y in points:
            near = np.exp(-((x - point_x) ** 2 + (y - point_y) ** 2) / (2 * reach**2))
            if len(points) == 2:
                from_x -= np.sign(point_x - FACE_CENTER[0]) * apart * near
            from_y -= down * near
    return cv2.remap(person, from_x, from_y, cv2.INTER_CUBIC)


def make_background(rng: np.random.Generator) -> np.ndarray:
    """Paint a wall out of focus, soft blots of two colours: BGR float32 (512, 512, 3) in 0..1."""
    colours = rng.uniform(0.1, 0.85, (2, 1)) * rng.uniform(0.75, 1.0, (2, 3))
    blots = np.zeros((512, 512), np.float32)
    for cells in (3, 6, 14):
        coarse = rng.random((cells, cells), dtype=np.float32) - 0.5
        blots += cv2.resize(coarse, (512, 512), interpolation=cv2.INTER_CUBIC) * 3 / cells
    share = (0.5 + blots.clip(-0.5, 0.5))[..., None]
    return (colours[0] * share + colours[1] * (1 - share)).astype(np.float32)


def film_person(
    clip: Clip, frames: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Film a person with a hand-held camera: drifting, zooming, turning a little, with noise.

    Yields the canvas, BGR float32 (height, CANVAS_WIDTH, 3) in 0..1 but for the noise, and the
    camera, a matrix (2, 3) from the portrait's pixels to the canvas's.
    """
    person, background = make_person(rng), make_background(rng)
    size = CANVAS_WIDTH, round(CANVAS_WIDTH * clip.height / clip.width)
    place = np.array((rng.uniform(0.4, 0.6), rng.uniform(0.43, 0.5))) * size
    scale = rng.uniform(*FACE_WIDTHS) / (2 * FACE_AXES[0])
    widen, mirror = rng.uniform(0.93, 1.07), rng.choice((-1, 1))
    focus, noise = rng.uniform(0.3, 0.8), rng.uniform(0.008, 0.02)
    white = rng.uniform(0.95, 1.05, 3).astype(np.float32)
    # Each of the four movements (x, y, zoom, turn) is a sum of two slow waves.
    waves = rng.uniform(0.1, 0.7, (2, 4)), rng.uniform(0, 2 * np.pi, (2, 4))
    reach = rng.uniform(0.3, 1.0, 4) * (12, 6, 0.04, 0.05)
    for frame in range(frames):
        *move, zoom, turn = reach * np.sin(waves[0] * frame / 5 + waves[1]).sum(axis=0) / 2
        move = np.array(move)
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


def swap_faces(
    filmed: Iterator[tuple[np.ndarray, np.ndarray]], detail: float, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Replace the face in each frame by a blended copy of itself.

    Self-blended images (Shiohara and Yamasaki, CVPR 2022): the copy is resampled, recoloured,
    displaced and scaled, and goes in through a feathered mask of irregular outline. What the swap
    is like is drawn once a clip, and jitters a little from frame to frame.

    Args:
        filmed: canvases, BGR float32 (height, width, 3), each with its camera.
        detail: share of the canvas's resolution that the clip will have, at most 1.
        rng: for what the swap is like.

    Yields:
        The canvases with the face swapped.
    """
    strength = rng.uniform(*STRENGTHS)
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


def draw_clip(clip: Clip, frames: int, seed: int) -> Iterator[np.ndarray]:
    """Draw a clip's frames, BGR uint8 (height, width, 3).

    A fake draws the frames of its original again, to the last grain of noise, and swaps the face.
    """
    filmed = film_person(clip, frames, np.random.default_rng((seed, clip.person)))
    if clip.take:
        rng = np.random.default_rng((seed, clip.person, clip.take))
        canvases = swap_faces(filmed, min(1.0, clip.width / CANVAS_WIDTH), rng)
    else:
        canvases = (canvas for canvas, _ in filmed)
    for canvas in canvases:
        shrinks = clip.width < CANVAS_WIDTH
        resample = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        sized = cv2.resize(canvas, (clip.width, clip.height), interpolation=resample)
        yield (255 * sized).round().clip(0, 255).astype(np.uint8)


def write_clip(clip: Clip, folder: Path, frames: int, fps: float, seed: int) -> None:
    """Write a clip whole or not at all: encoded elsewhere, copied beside its name, then renamed.

    Raises:
        OSError: OpenCV cannot write MPEG-4 here, or the disk is full.
    """
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as elsewhere:
        encoded = Path(elsewhere) / clip.name
        codec = cv2.VideoWriter_fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(encoded), codec, fps, (clip.width, clip.height))
        if not writer.isOpened():
            raise OSError(f"{encoded}: OpenCV cannot write MPEG-4 here; install it by pip.")
        for frame in draw_clip(clip, frames, seed):
            writer.write(frame)
        writer.release()
        if cv2.VideoCapture(str(encoded)).get(cv2.CAP_PROP_FRAME_COUNT) != frames:
            raise OSError(f"{encoded}: not every frame was written; is the disk full?")
        partial = folder / (clip.name + ".partial")
        partial.write_bytes(encoded.read_bytes())
    partial.replace(folder / clip.name)


def write_json(content: dict, path: Path) -> None:
    """Write a JSON file whole or not at all: to a temporary name beside it, then renamed."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def end_with_main() -> None:
    """Let a worker end when the main process was killed; it would wait for work for ever."""

    def wait_for_main() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait_for_main, daemon=True).start()


def main(
    videos_dir: Path = VIDEOS_DIR,
    people: int = PEOPLE,
    fakes: int = FAKES,
    frames: int = FRAMES,
    fps: float = FPS,
    seed: int = SEED,
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
        workers: how many processes

    Returns:
        One row a clip of the set: name, person, take, original, width, height, label. Without rows
        where the folder holds other files and was left alone.

    Raises:
        ValueError: a number is out of its range, or a set made with other settings is in the way.
        OSError: the folder cannot be written, or OpenCV cannot write videos.
    """
    for name, value, least in (
        ("people", people, 1),
        ("fakes", fakes, 0),
        ("frames", frames, 1),
        ("fps", fps, 1),
        ("seed", seed, 0),
        ("workers", workers, 1),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; give {least} or more.")
    clips = plan_clips(people, fakes, seed)
    table = pd.DataFrame([asdict(clip) | {"label": clip.label} for clip in clips])

    foreign = find_foreign_file(videos_dir)
    if foreign:
        print(f"{videos_dir} holds files of your own ({foreign}), so no practice videos were made.")
        return table.iloc[:0]

    folder = videos_dir / CLIPS_FOLDER
    settings = {"people": people, "fakes": fakes, "frames": frames, "fps": fps, "seed": seed}
    settings |= {"sizes": SIZES, "face_widths": FACE_WIDTHS, "strengths": STRENGTHS}
    settings = json.loads(json.dumps(settings))
    if (folder / MARKER).exists():
        earlier = read_marker(folder)["settings"]
        other = [name for name in settings if settings[name] != earlier.get(name)]
        if other:
            raise ValueError(
                f"{folder}: the practice videos in it were made with another setting of "
                f"{', '.join(other)}; delete this folder and run again."
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json({"settings": settings, "clips": [clip.name for clip in clips]}, folder / MARKER)

    missing = [clip for clip in clips if not (folder / clip.name).exists()]
    if not missing and (folder / "metadata.json").exists():
        print(f"{folder} holds the whole practice set already; nothing to do.")
        return table
    make = functools.partial(write_clip, folder=folder, frames=frames, fps=fps, seed=seed)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(missing) or 1), spawn, end_with_main) as pool:
        for _ in tqdm(pool.map(make, missing), "clips", len(missing), unit="clip"):
            pass
    labels = {
        clip.name: {"label": clip.label, "split": "train", "original": clip.original}
        for clip in clips
    }
    write_json(labels, folder / "metadata.json")

    sizes = table.groupby(["width", "height"]).size()
    print(f"{folder}")
    print(f"  people          {people:7,}")
    print(f"  real clips      {people:7,}")
    print(f"  fake clips      {fakes:7,}")
    print(f"  frames          {len(clips) * frames:7,}")
    for (width, height), count in sizes.items():
        print(f"  {width:4} x {height:4}     {count:7,} clips")
    print(f"  kept of before  {len(clips) - len(missing):7,} clips")
    print("They show that the pipeline works, and say nothing of its accuracy on real deepfakes.")
    return table


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except KeyboardInterrupt:
        print(f"{Path(__file__).name}: stopped; run it again to go on.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
