"""Serve the training with batches of crops, changed at random; script 04 uses this.

What a video goes through, a pair of a real crop and its fake goes through alike. Fakes are those of
the data sets, and blends of a real crop with itself or with another.
"""

from __future__ import annotations

import math
import os

import cv2
import numpy as np
import pandas as pd
import tensorflow as tf

CANDIDATES = 100  # reals, of which the one most alike gives its face to a blend
PLACES = 16  # across and down, by whose light two faces are compared
CORNERS = 90  # of the polygon that a blend's mask begins as
FRACTION_BITS = 4  # of the corners' coordinates in pixels


def serve_crops(
    images: np.ndarray, crops: pd.DataFrame, settings: dict, epoch: int
) -> tf.data.Dataset:
    """Serve an epoch's batches: RGB float32 (n, size, size, 3) in 0..255, and labels (n, 1).

    Fake is 0, real 1. The same seed and epoch give the same batches, so that a training that was
    stopped goes on with what would have come.

    Args:
        images: the decoded crops, RGB uint8 (crops, size, size, 3)
        crops: the crops to serve, their index being rows of images
        settings: batch_size, seed, paired and everything under augmentation
    """
    seed = settings["seed"], epoch
    groups = draw_groups(crops, settings, seed)
    # Batches of one size, or nearly: a last one of one or two crops would spoil the running
    # statistics of the batch normalisation just before the validation.
    steps = math.ceil(sum(map(len, groups)) / settings["batch_size"])
    shares = np.array_split(np.arange(len(groups)), steps)
    is_real = (crops["label"] == "real").to_dict()
    reals = crops[crops["label"] == "real"].groupby("dataset").groups

    def make(step: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((*seed, step))
        batch, labels = [], []
        for group in (groups[place] for place in shares[step]):
            of_its_set = reals.get(crops.at[group[0], "dataset"])
            faces = show_group(images, group, of_its_set, settings, rng)
            batch += change_alike(faces, settings, rng)
            labels += [row >= 0 and is_real[row] for row in group]
        return np.stack(batch), np.array(labels, np.float32)[:, None]

    def load(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch, labels = tf.numpy_function(
            lambda step: make(int(step)), [step], (tf.uint8, tf.float32)
        )
        batch = tf.ensure_shape(batch, (None, *images.shape[1:]))
        return tf.cast(batch, tf.float32), tf.ensure_shape(labels, (None, 1))

    # tf.data's own tuning looks again after 10 ms, 20 ms, up to a minute, and TensorFlow 2.21 lets
    # the end of an epoch wait for its next look.
    untuned = tf.data.Options()
    untuned.autotune.enabled = False
    numbers = tf.data.Dataset.range(steps)
    return numbers.map(load, os.cpu_count()).prefetch(8).with_options(untuned)


def draw_groups(crops: pd.DataFrame, settings: dict, seed: tuple[int, int]) -> list[tuple]:
    """Draw what an epoch shows, in its order: groups of rows that stay together, changed alike.

    Paired, a real crop comes with a fake: a blend into itself (-1), or a deepfake that shares an
    identity with it, or where none does another of its data set, each of those once before any
    comes again. A data set gives as many pairs as it has fakes, but each real at least once and at
    most `repeats` times. Not paired, each crop comes once, by itself.
    """
    rng = np.random.default_rng(seed)
    if not settings["paired"]:
        return [(row,) for row in rng.permutation(crops.index)]
    pairs = []
    for _, part in crops.groupby("dataset"):
        reals, fakes = (part[part["label"] == label] for label in ("real", "fake"))
        sharing = fakes.assign(identity=fakes["identities"].str.split(";")).explode("identity")
        sharing = sharing[sharing["identity"] != ""].groupby("identity").groups
        count = min(max(len(reals), len(fakes)), settings["repeats"] * len(reals))
        rows = [rng.permutation(reals.index) for _ in range(settings["repeats"])]
        deck: list[int] = []
        for row in np.concatenate(rows)[:count]:
            if rng.random() < settings["blended"] or fakes.empty:
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
    group: tuple,
    reals: np.ndarray | None,
    settings: dict,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Show the crops of a group, RGB uint8 (size, size, 3) each; -1 is a blend into its first.

    Args:
        reals: rows of the real crops of its data set, some of which give their faces to blends
        settings: swapped, the share of the blends whose face is another's
    """
    faces = []
    for row in group:
        if row < 0:
            face = row = group[0]
            if rng.random() < settings["swapped"]:
                others = rng.choice(reals, CANDIDATES)
                face = find_similar(images, row, others)
            faces.append(blend(images[face], images[row], rng))
        else:
            faces.append(images[row])
    return faces


def find_similar(images: np.ndarray, row: int, others: np.ndarray) -> int:
    """Find, among the rows of others, the image whose face stands and looks most as in this one.

    That is judged by their light in 16 x 16 places, each image's mean and deviation taken out.
    """
    apart = images.shape[1] // PLACES
    places = np.s_[apart // 2 : PLACES * apart : apart]
    small = images[np.append(others, row), places, places].astype(np.float32)
    small = (small @ np.full(3, 1 / 3, np.float32)).reshape(-1, PLACES**2)
    small -= small.mean(axis=1, keepdims=True)
    likeness = small[:-1] @ small[-1] / (small[:-1].std(axis=1) + 1)
    return others[np.argmax(likeness)]


def blend(face: np.ndarray, around: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Make a fake: blend a face into what is around another, or itself; one of the two is changed.

    What every face swap leaves behind, a border and two kinds of pixels, without what only one
    method leaves: Shiohara and Yamasaki, "Detecting Deepfakes with Self-Blended Images", CVPR 2022,
    and for two people Li et al., "Face X-ray for More General Face Forgery Detection", CVPR 2020,
    written from their descriptions, with a bent ellipse for the hull of landmarks.

    Args:
        face, around: RGB uint8 (size, size, 3), and so is the result
    """
    size = len(face)
    # The face gets the colours of the other (Reinhard et al., "Color Transfer between Images").
    middle = np.s_[size // 4 : -size // 4, size // 4 : -size // 4]
    (own, deviation), (wanted, wanted_deviation) = map(
        cv2.meanStdDev, (face[middle], around[middle])
    )
    gain = (wanted_deviation + 1) / (deviation + 1)
    face = map_levels(face, gain.T, (wanted - gain * own).T)
    if rng.random() < 0.5:
        face = change_copy(face, rng)
    else:
        around = change_copy(around, rng)
    # It is moved by a few pixels, and shows through a soft mask.
    scale, turn = rng.uniform(0.95, 1.05, 2), rng.uniform(-3, 3)
    moved = move_image(face, scale, turn, rng.uniform(-0.03, 0.03, 2) * size)
    mask = draw_mask(size, rng) * np.float32(rng.choice((0.25, 0.5, 0.75, 1, 1, 1)))
    return cv2.blendLinear(moved, around, mask, 1 - mask)


def map_levels(
    image: np.ndarray, gain: float | np.ndarray, offset: float | np.ndarray
) -> np.ndarray:
    """Give every value of an image, RGB uint8, a gain and an offset, or every colour its own."""
    levels = np.arange(256)[:, None] * np.broadcast_to(gain, (1, 3)) + offset
    return cv2.LUT(image, levels.round().clip(0, 255).astype(np.uint8)[None])


def change_copy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give a copy of an image, RGB uint8, other colours and pixels, often hardly to be seen."""
    size, strength, mean = len(image), rng.uniform(0, 1), np.array(cv2.mean(image)[:3])
    gain = 1 + rng.uniform(-0.15, 0.15) * strength
    light = (rng.uniform(-15, 15, 3) + rng.uniform(-10, 10)) * strength
    copy = map_levels(image, gain, mean - gain * mean + light)
    if rng.random() < 0.3:
        saturation = rng.uniform(0.6, 1.4)
        copy = cv2.transform(copy, np.eye(3) * saturation + (1 - saturation) / 3)
    # Then it is resampled from fewer pixels, or sharpened.
    if rng.random() < 0.5:
        side = round(size / rng.choice((1.5, 2, 3, 4)))
        shrink = (cv2.INTER_AREA, cv2.INTER_LINEAR)[rng.integers(2)]
        grow = (cv2.INTER_LINEAR, cv2.INTER_CUBIC)[rng.integers(2)]
        small = cv2.resize(copy, (side, side), interpolation=shrink)
        return cv2.resize(small, (size, size), interpolation=grow)
    if rng.random() < 0.6:
        soft = cv2.GaussianBlur(copy, (0, 0), rng.uniform(0.7, 1.5))
        amount = rng.uniform(0.2, 1.0)
        return cv2.addWeighted(copy, 1 + amount, soft, -amount, 0)
    return copy


def move_image(image: np.ndarray, scale: np.ndarray, turn: float, shift: np.ndarray) -> np.ndarray:
    """Resize an image about its middle, turn it (degrees) and shift it; the border repeats."""
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    matrix = np.array(((cos, -sin), (sin, cos))) * scale
    middle = (len(image) - 1) / 2
    matrix = np.column_stack((matrix, middle - matrix.sum(axis=1) * middle + shift))
    return cv2.warpAffine(image, matrix, image.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)


def draw_mask(size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a soft mask, float32 (size, size) in 0..1: an ellipse on the face with a bent outline.

    Two thirds cover the face, the others the band of the eyes, the nose or the mouth, as methods
    that change an expression do.
    """
    whole = rng.random() < 0.65
    middle = rng.uniform(0.46, 0.54), rng.uniform(0.5, 0.6)
    radii = rng.uniform(0.28, 0.42), rng.uniform(0.32, 0.46)
    if not whole:
        middle = middle[0], rng.choice((0.42, 0.6, 0.75)) + rng.uniform(-0.04, 0.04)
        radii = rng.uniform(0.16, 0.34), rng.uniform(0.1, 0.2)
    # The outline is a polygon of so many corners that it is a curve.
    angle, outline = np.linspace(0, 2 * math.pi, CORNERS, endpoint=False), 1.0
    for waves in range(2, 7):
        height = rng.uniform(-0.12, 0.12) / math.sqrt(waves - 1)
        outline += height * np.cos(waves * angle + rng.uniform(0, 2 * math.pi))
    corners = np.column_stack((np.cos(angle), np.sin(angle))) * outline[:, None] * radii + middle
    mask = np.zeros((size, size), np.float32)
    fine = 1 << FRACTION_BITS
    cv2.fillPoly(mask, [np.int32(np.round(corners * size * fine))], 1.0, shift=FRACTION_BITS)
    mask = cv2.GaussianBlur(mask, (0, 0), rng.uniform(1, 7))
    if rng.random() < 0.5:  # soft on the inside only
        mask = cv2.GaussianBlur((mask * 2 - 1).clip(0, 1), (0, 0), rng.uniform(0.7, 3))
    return mask.clip(0, 1)


def change_alike(
    images: list[np.ndarray], settings: dict, rng: np.random.Generator
) -> list[np.ndarray]:
    """Change the crops of a group at random, all alike: only what is fake is to tell them apart.

    Args:
        images: RGB uint8 (size, size, 3) each, and so are the results
        settings: everything under augmentation
    """
    size = len(images[0])
    # Where the face stands: mirrored, shifted by whole pixels, at times zoomed and turned.
    mirrored = rng.random() < settings["flip"]
    shift = np.round(rng.uniform(-1, 1, 2) * settings["shift"] * size)
    scale, turn = np.ones(2), 0.0
    share, most = settings["zoomed"]
    if rng.random() < share:
        scale += rng.uniform(-1, 1) * most
        scale[1] += rng.uniform(-1, 1) * most / 3
    if settings["rotation"]:
        turn = rng.uniform(-1, 1) * settings["rotation"]
    scale[0] *= -1 if mirrored else 1

    # Its light and colour.
    contrast = 1 + rng.uniform(-1, 1) * settings["contrast"]
    light = rng.uniform(-1, 1) * settings["brightness"] * 255
    light = light + rng.uniform(-1, 1, 3) * settings["tint"] * 255 * (rng.random() < 0.5)
    grey = rng.random() < settings["grey"]

    # A plain bar over the eyes, the nose or the mouth: the model is not to rest on one sign alone.
    bar = fill = None
    if rng.random() < settings["cut_out"]:
        height, width = rng.uniform(0.1, 0.25), rng.uniform(0.2, 0.6)
        y = rng.choice((0.42, 0.6, 0.77)) + rng.uniform(-0.05, 0.05)
        x = rng.uniform(0.3, 0.7)
        sides = np.array((y - height / 2, y + height / 2, x - width / 2, x + width / 2))
        top, bottom, left, right = (sides.clip(0) * size).astype(int)
        bar, fill = np.s_[top:bottom, left:right], rng.integers(0, 256, 3)

    # What a video goes through: blur, fewer pixels, noise, and compression, before or after.
    share, most = settings["blurred"]
    blur = rng.uniform(0.3, most) if rng.random() < share else 0
    share, least = settings["reduced"]
    sizes = math.log(max(least, 1)), math.log(size)
    side = round(math.exp(rng.uniform(*sizes))) if rng.random() < share else 0
    grow = (cv2.INTER_LINEAR, cv2.INTER_CUBIC)[rng.integers(2)]
    share, most = settings["noisy"]
    deviation = rng.uniform(1, most) if rng.random() < share else 0
    apart = np.random.default_rng(rng.integers(2**31))  # what follows is drawn alike without noise
    noise = deviation * apart.standard_normal(images[0].shape, np.float32) if deviation else None
    share, worst = settings["jpeg"]
    times = 1 + int(rng.random() < 0.3) if rng.random() < share else 0
    qualities = [int(rng.integers(worst, 101)) for _ in range(times)]
    before = rng.random() < 0.5  # whether JPEG comes before the reduction
    noise_last = rng.random() < 0.5  # a camera's noise comes first, a bad screen's last

    changed = []
    for image in images:
        face = move_image(image, scale, turn, shift)
        mean = np.mean(cv2.mean(face)[:3])
        face = map_levels(face, contrast, mean - contrast * mean + light)
        if grey:
            face = cv2.cvtColor(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        if bar:
            face[bar] = fill
        if deviation and not noise_last:
            face = cv2.add(face, noise, dtype=cv2.CV_8U)
        if blur:
            face = cv2.GaussianBlur(face, (0, 0), blur)
        if qualities and before:
            face = compress(face, qualities[0])
        if side:
            face = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
        if qualities and not before:
            face = compress(face, qualities[0])
        if side:
            face = cv2.resize(face, (size, size), interpolation=grow)
        if times == 2:
            face = compress(face, qualities[1])
        if deviation and noise_last:
            face = cv2.add(face, noise, dtype=cv2.CV_8U)
        changed.append(face)
    return changed


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    """Give an image, RGB uint8, the traces of JPEG at a quality of 1 to 100."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)  # JPEG keeps less of the colours than of the light
    _, data = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, quality))
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
