"""Augmentation of crops: pairs of a real crop and a fake, random changes, and blended fakes.

A real crop and its fake get the same random changes, so that only the forgery differs between them.
All images are RGB uint8 (size, size, 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import cv2
import numpy as np
import pandas as pd

from deepfake_detect.cli import Between, Count, Share

CANDIDATES = 100  # real crops to compare; a blend takes the face of the most similar one
GRID = 16  # points per side at which the brightness is compared
CORNERS = 90  # of the polygon in a blend's mask
FRACTION_BITS = 4  # fractional bits of a corner's pixel coordinates
INTERPOLATIONS = cv2.INTER_LINEAR, cv2.INTER_CUBIC


@dataclass(frozen=True)
class Augmentation:
    """Random changes to each crop; a real crop and its fake get the same changes."""

    paired: bool = True  # pair each real crop with a fake; False: independent crops
    repeats: Count = 2  # most uses of a real crop per epoch, if there are more fakes
    blended: Share = 0.5  # share of pairs whose fake is a blend instead of a deepfake
    swapped: Share = 0.5  # share of blends that take the face of another real crop
    flip: Share = 0.5  # share of crops mirrored
    shift: Share = 0.05  # largest shift, as a share of the size; whole pixels
    rotation: Annotated[float, Between(0, 180)] = 0.0  # largest angle in degrees; rotation blurs
    zoomed: Share = 0.5  # share of crops zoomed, as margins vary in use
    zoom: Share = 0.15  # largest zoom, as a share of the size
    brightness: Share = 0.1  # largest change, as a share of the range from black to white
    contrast: Share = 0.1  # largest change, as a share of the distance from the mean
    tint: Share = 0.03  # largest change of one colour channel; half of the crops are tinted
    grey: Share = 0.05  # share of crops converted to greyscale
    cut_out: Share = 0.15  # share of crops with a bar over eyes, nose or mouth
    reduced: Share = 0.3  # share of crops scaled down and up again
    reduced_to: Count = 32  # smallest side after scaling down, in pixels
    blurred: Share = 0.2  # share of crops blurred
    blur: Annotated[float, Between(0.3, 100)] = 1.6  # largest standard deviation, in pixels
    noisy: Share = 0.2  # share of crops with noise
    noise: Annotated[float, Between(1, 255)] = 8.0  # largest standard deviation, of 255
    jpeg: Share = 0.4  # share of crops compressed as JPEG, once or twice
    jpeg_quality: Annotated[int, Between(1, 100)] = 30  # lowest JPEG quality


STANDARD = Augmentation()
NO_CHANGES = Augmentation(
    **dict.fromkeys(("flip", "shift", "zoomed", "brightness", "contrast", "tint", "grey"), 0.0),
    **dict.fromkeys(("cut_out", "reduced", "blurred", "noisy", "jpeg", "blended"), 0.0),
)


# --- Random changes -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Changes:
    """One random draw of the augmentation."""

    scale: np.ndarray  # (2,): x and y; x is negative for a mirrored crop
    angle: float  # degrees
    shift: np.ndarray  # (2,): x and y, pixels
    contrast: float  # factor of the distance from the mean
    light: np.ndarray  # (3,), added to each channel
    grey: bool
    bar: tuple[slice, slice] | None  # rows and columns under the bar
    bar_colour: np.ndarray | None  # (3,)
    blur: float  # standard deviation in pixels; 0: off
    side: int  # side after scaling down, in pixels; 0: off
    upscaling: int  # OpenCV's interpolation
    noise: np.ndarray | None  # float32 (size, size, 3)
    noise_last: bool  # True: screen noise, after the other changes; False: camera noise
    qualities: tuple[int, ...]  # zero, one or two JPEG qualities
    jpeg_first: bool  # compress before scaling down


def change_alike(
    images: list[np.ndarray], augmentation: Augmentation, rng: np.random.Generator
) -> list[np.ndarray]:
    """Draw random changes once, and return the images with these changes applied to each."""
    changes = draw_changes(augmentation, len(images[0]), rng)
    return [apply_changes(image, changes) for image in images]


def draw_changes(augmentation: Augmentation, size: int, rng: np.random.Generator) -> Changes:
    """Draw random changes for images of size x size pixels."""

    def happens(share: float) -> bool:
        return rng.random() < share

    # Position: mirrored, shifted by whole pixels, sometimes zoomed and rotated.
    mirrored = happens(augmentation.flip)
    shift = np.round(rng.uniform(-1, 1, 2) * augmentation.shift * size)
    scale, angle = np.ones(2), 0.0
    if happens(augmentation.zoomed):
        scale += rng.uniform(-1, 1) * augmentation.zoom
        scale[1] += rng.uniform(-1, 1) * augmentation.zoom / 3
    if augmentation.rotation:
        angle = rng.uniform(-1, 1) * augmentation.rotation
    scale[0] *= -1 if mirrored else 1

    # Light and colour.
    contrast = 1 + rng.uniform(-1, 1) * augmentation.contrast
    light = rng.uniform(-1, 1) * augmentation.brightness * 255
    light = light + rng.uniform(-1, 1, 3) * augmentation.tint * 255 * happens(0.5)
    grey = happens(augmentation.grey)
    bar = bar_colour = None
    if happens(augmentation.cut_out):
        bar, bar_colour = draw_bar(size, rng)

    # Degradations, as after recording.
    blur = rng.uniform(0.3, augmentation.blur) if happens(augmentation.blurred) else 0
    sides = math.log(augmentation.reduced_to), math.log(size)
    side = round(math.exp(rng.uniform(*sides))) if happens(augmentation.reduced) else 0
    upscaling = INTERPOLATIONS[rng.integers(2)]
    deviation = rng.uniform(1, augmentation.noise) if happens(augmentation.noisy) else 0
    # A separate generator, so that disabling the noise does not change later draws.
    noise_rng = np.random.default_rng(rng.integers(2**31))
    noise = (
        deviation * noise_rng.standard_normal((size, size, 3), np.float32) if deviation else None
    )
    times = 1 + int(happens(0.3)) if happens(augmentation.jpeg) else 0
    qualities = tuple(int(rng.integers(augmentation.jpeg_quality, 101)) for _ in range(times))
    jpeg_first, noise_last = happens(0.5), happens(0.5)
    return Changes(
        scale=scale,
        angle=angle,
        shift=shift,
        contrast=contrast,
        light=light,
        grey=grey,
        bar=bar,
        bar_colour=bar_colour,
        blur=blur,
        side=side,
        upscaling=upscaling,
        noise=noise,
        noise_last=noise_last,
        qualities=qualities,
        jpeg_first=jpeg_first,
    )


def draw_bar(size: int, rng: np.random.Generator) -> tuple[tuple[slice, slice], np.ndarray]:
    """Draw a bar over the eyes, nose or mouth: its rows and columns, and its colour (3,)."""
    height, width = rng.uniform(0.1, 0.25), rng.uniform(0.2, 0.6)
    y = rng.choice((0.42, 0.6, 0.77)) + rng.uniform(-0.05, 0.05)
    x = rng.uniform(0.3, 0.7)
    sides = np.array((y - height / 2, y + height / 2, x - width / 2, x + width / 2))
    top, bottom, left, right = (sides.clip(0) * size).astype(int)
    return np.s_[top:bottom, left:right], rng.integers(0, 256, 3)


def apply_changes(image: np.ndarray, changes: Changes) -> np.ndarray:
    """Return an image after the changes, in the order in which they happen to a video."""
    image = move_image(image, changes.scale, changes.angle, changes.shift)
    mean = np.mean(cv2.mean(image)[:3])
    image = map_levels(image, changes.contrast, mean - changes.contrast * mean + changes.light)
    if changes.grey:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if changes.bar:
        image[changes.bar] = changes.bar_colour
    for degrade in list_degradations(changes, len(image)):
        image = degrade(image)
    return image


def list_degradations(changes: Changes, size: int) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """Yield the functions that degrade an image of size x size pixels, in order."""
    add_noise = partial(cv2.add, src2=changes.noise, dtype=cv2.CV_8U)
    first, second = (*changes.qualities, 0, 0)[:2]
    if changes.noise is not None and not changes.noise_last:
        yield add_noise
    if changes.blur:
        yield lambda image: cv2.GaussianBlur(image, (0, 0), changes.blur)
    if first and changes.jpeg_first:
        yield lambda image: compress(image, first)
    if changes.side:
        small = changes.side, changes.side
        yield lambda image: cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    if first and not changes.jpeg_first:
        yield lambda image: compress(image, first)
    if changes.side:
        yield lambda image: cv2.resize(image, (size, size), interpolation=changes.upscaling)
    if second:
        yield lambda image: compress(image, second)
    if changes.noise is not None and changes.noise_last:
        yield add_noise


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    """Return an image after JPEG compression at a quality of 1 to 100."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)  # JPEG keeps less colour detail than brightness
    _, data = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, quality))
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def degrade(image: np.ndarray, kind: str, amount: float, seed: int = 0) -> np.ndarray:
    """Return an image of the same size after one degradation that is not a forgery.

    Args:
        image: RGB uint8 (height, width, 3)
        kind: "jpeg" (quality), "size" (factor, scaled back by step 02's interpolation), "blur"
            (standard deviation in pixels), "noise" (standard deviation, of 255) or "brightness"
            (share of the range from black to white to add)
        amount: the value in the unit of kind
        seed: seed of the noise
    """
    if kind == "jpeg":
        return compress(image, int(amount))
    if kind == "size":
        small = cv2.resize(image, None, fx=amount, fy=amount, interpolation=cv2.INTER_AREA)
        return cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    if kind == "blur":
        return cv2.GaussianBlur(image, (0, 0), amount)
    if kind == "noise":
        added = np.random.default_rng(seed).normal(0, amount, image.shape)
    elif kind == "brightness":
        added = amount * 255
    else:
        raise ValueError(f"{kind} is not a kind of degradation")
    return np.clip(np.rint(image + added), 0, 255).astype(np.uint8)


def move_image(image: np.ndarray, scale: np.ndarray, angle: float, shift: np.ndarray) -> np.ndarray:
    """Scale an image about its centre, rotate it (degrees) and shift it; repeat the border."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    matrix = np.array(((cos, -sin), (sin, cos))) * scale
    centre = (len(image) - 1) / 2
    matrix = np.column_stack((matrix, centre - matrix.sum(axis=1) * centre + shift))
    return cv2.warpAffine(image, matrix, image.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)


def map_levels(
    image: np.ndarray, gain: float | np.ndarray, offset: float | np.ndarray
) -> np.ndarray:
    """Return gain * image + offset, rounded and clipped; both may have a value per channel (3,)."""
    levels = np.arange(256)[:, None] * np.broadcast_to(gain, (1, 3)) + offset
    return cv2.LUT(image, levels.round().clip(0, 255).astype(np.uint8)[None])


# --- Pairs of crops -------------------------------------------------------------------------------


def draw_groups(
    crops: pd.DataFrame, augmentation: Augmentation, seed: tuple[int, int]
) -> list[tuple[int, ...]]:
    """Draw the groups of rows for an epoch, in order; the crops of a group get the same changes.

    With `paired`, a group is a real crop and a fake. The fake is a blend into the real crop (-1),
    or a deepfake that shares an identity with it. Without such a deepfake, it is another fake of
    the same data set; all of them are used once before one repeats. A data set has one pair per
    fake, but uses each real crop at least once and at most `repeats` times. Without `paired`, each
    crop is a group.
    """
    rng = np.random.default_rng(seed)
    if not augmentation.paired:
        return [(row,) for row in rng.permutation(crops.index)]
    pairs = []
    for _, part in crops.groupby("dataset"):
        reals, fakes = (part[part["label"] == label] for label in ("real", "fake"))
        sharing = fakes.assign(identity=fakes["identities"].str.split(";")).explode("identity")
        sharing = sharing[sharing["identity"] != ""].groupby("identity").groups
        count = min(max(len(reals), len(fakes)), augmentation.repeats * len(reals))
        rows = [rng.permutation(reals.index) for _ in range(augmentation.repeats)]
        deck: list[int] = []
        for row in np.concatenate(rows)[:count]:
            if rng.random() < augmentation.blended or fakes.empty:
                pairs.append((row, -1))
                continue
            identities = reals.at[row, "identities"].split(";")
            if related := [fake for one in identities for fake in sharing.get(one, ())]:
                pairs.append((row, related[rng.integers(len(related))]))
                continue
            deck = deck or list(rng.permutation(fakes.index))
            pairs.append((row, deck.pop()))
    return [pairs[place] for place in rng.permutation(len(pairs))]


def show_group(
    images: np.ndarray,
    group: tuple[int, ...],
    reals: np.ndarray | None,
    swapped: float,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Return the images of a group of rows; -1 is a blend into the first image.

    Args:
        images: the decoded crops, uint8 (n, size, size, 3)
        group: rows of images, from draw_groups
        reals: rows of the real crops of the same data set, as sources of faces for blends
        swapped: share of the blends whose face comes from another crop, 0..1
        rng: random generator for the blends
    """
    faces = []
    for row in group:
        if row < 0:
            face = around = group[0]
            if rng.random() < swapped:
                face = find_similar(images, around, rng.choice(reals, CANDIDATES))
            faces.append(blend(images[face], images[around], rng))
        else:
            faces.append(images[row])
    return faces


# --- Blends ---------------------------------------------------------------------------------------


def find_similar(images: np.ndarray, row: int, others: np.ndarray) -> int:
    """Return the row among others whose face is most similar in position and lighting.

    Compares the brightness at GRID x GRID points, normalised to the same mean and deviation.
    """
    step = images.shape[1] // GRID
    places = np.s_[step // 2 : GRID * step : step]
    small = images[np.append(others, row), places, places].astype(np.float32)
    small = (small @ np.full(3, 1 / 3, np.float32)).reshape(-1, GRID**2)
    small -= small.mean(axis=1, keepdims=True)
    likeness = small[:-1] @ small[-1] / (small[:-1].std(axis=1) + 1)
    return others[np.argmax(likeness)]


def blend(face: np.ndarray, around: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a fake: `around` with a face of the same or another person blended into it.

    One of the two images is changed first. The blend then has the traces of every face swap, a
    border and two kinds of pixels, without the traces of a particular method: Shiohara and
    Yamasaki, "Detecting Deepfakes with Self-Blended Images", CVPR 2022, and for two people Li et
    al., "Face X-ray for More General Face Forgery Detection", CVPR 2020. Written from the papers,
    with a distorted ellipse instead of the convex hull of landmarks.
    """
    size = len(face)
    face = match_colours(face, around)
    if rng.random() < 0.5:
        face = change_copy(face, rng)
    else:
        around = change_copy(around, rng)
    # Move the face by a few pixels, and blend it through a soft mask.
    scale, angle = rng.uniform(0.95, 1.05, 2), rng.uniform(-3, 3)
    moved = move_image(face, scale, angle, rng.uniform(-0.03, 0.03, 2) * size)
    mask = draw_mask(size, rng) * np.float32(rng.choice((0.25, 0.5, 0.75, 1, 1, 1)))
    return cv2.blendLinear(moved, around, mask, 1 - mask)


def match_colours(face: np.ndarray, around: np.ndarray) -> np.ndarray:
    """Return a face with the colour mean and deviation of `around`, measured in the middle.

    Reinhard et al., "Color Transfer between Images", IEEE CG&A 2001.
    """
    quarter = len(face) // 4
    middle = np.s_[quarter:-quarter, quarter:-quarter]
    mean, deviation = cv2.meanStdDev(face[middle])
    wanted, wanted_deviation = cv2.meanStdDev(around[middle])
    gain = (wanted_deviation + 1) / (deviation + 1)
    return map_levels(face, gain.T, (wanted - gain * mean).T)


def change_copy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a copy of an image with colours and pixels changed, often almost invisibly."""
    size, strength, mean = len(image), rng.uniform(0, 1), np.array(cv2.mean(image)[:3])
    gain = 1 + rng.uniform(-0.15, 0.15) * strength
    light = (rng.uniform(-15, 15, 3) + rng.uniform(-10, 10)) * strength
    copy = map_levels(image, gain, mean - gain * mean + light)
    if rng.random() < 0.3:
        saturation = rng.uniform(0.6, 1.4)
        copy = cv2.transform(copy, np.eye(3) * saturation + (1 - saturation) / 3)
    # Then scale down and up, sharpen, or leave the copy.
    if rng.random() < 0.5:
        side = round(size / rng.choice((1.5, 2, 3, 4)))
        shrink = (cv2.INTER_AREA, cv2.INTER_LINEAR)[rng.integers(2)]
        grow = INTERPOLATIONS[rng.integers(2)]
        small = cv2.resize(copy, (side, side), interpolation=shrink)
        return cv2.resize(small, (size, size), interpolation=grow)
    if rng.random() < 0.6:
        soft = cv2.GaussianBlur(copy, (0, 0), rng.uniform(0.7, 1.5))
        amount = rng.uniform(0.2, 1.0)
        return cv2.addWeighted(copy, 1 + amount, soft, -amount, 0)
    return copy


def draw_mask(size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a soft mask, float32 (size, size) in 0..1: an ellipse with a distorted outline.

    Two thirds of the masks cover the face. The others cover the eyes, the nose or the mouth, the
    regions that methods for changing an expression replace.
    """
    whole = rng.random() < 0.65
    centre = rng.uniform(0.46, 0.54), rng.uniform(0.5, 0.6)
    radii = rng.uniform(0.28, 0.42), rng.uniform(0.32, 0.46)
    if not whole:
        centre = centre[0], rng.choice((0.42, 0.6, 0.75)) + rng.uniform(-0.04, 0.04)
        radii = rng.uniform(0.16, 0.34), rng.uniform(0.1, 0.2)
    # A polygon with enough corners to look like a curve.
    angle, outline = np.linspace(0, 2 * math.pi, CORNERS, endpoint=False), 1.0
    for waves in range(2, 7):
        height = rng.uniform(-0.12, 0.12) / math.sqrt(waves - 1)
        outline += height * np.cos(waves * angle + rng.uniform(0, 2 * math.pi))
    corners = np.column_stack((np.cos(angle), np.sin(angle))) * outline[:, None] * radii + centre
    mask = np.zeros((size, size), np.float32)
    fine = 1 << FRACTION_BITS
    cv2.fillPoly(mask, [np.int32(np.round(corners * size * fine))], 1.0, shift=FRACTION_BITS)
    mask = cv2.GaussianBlur(mask, (0, 0), rng.uniform(1, 7))
    if rng.random() < 0.5:  # soft only on the inside
        mask = cv2.GaussianBlur((mask * 2 - 1).clip(0, 1), (0, 0), rng.uniform(0.7, 3))
    return mask.clip(0, 1)
