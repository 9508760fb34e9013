"""Tests of the augmentation: random changes, degradations and blends of crops."""

from dataclasses import fields, replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfake_detect import augmentation
from deepfake_detect.augmentation import NO_CHANGES, Augmentation, blend, find_similar
from deepfake_detect.cli import check_ranges
from deepfake_detect.crops import measure_sharpness


def change(image: np.ndarray, seed: int, **settings: object) -> np.ndarray:
    changes = replace(NO_CHANGES, **settings)
    return augmentation.change_alike([image], changes, np.random.default_rng(seed))[0]


def test_no_changes_keeps_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    assert np.array_equal(change(image, 1), image)
    assert np.array_equal(change(image, 1, flip=1.0), image[:, ::-1])


def test_half_of_the_crops_are_mirrored() -> None:
    ramp = np.broadcast_to(np.arange(128, dtype=np.uint8)[None, :, None], (128, 128, 3)).copy()
    mirrored = [change(ramp, seed, flip=0.5)[0, 0, 0] > 100 for seed in range(400)]
    assert 150 < sum(mirrored) < 250


@given(st.integers(0, 2**31), st.integers(0, 255))
@settings(max_examples=15)
def test_changes_keep_the_shape_and_depend_only_on_the_seed(seed: int, level: int) -> None:
    plain = np.full((128, 128, 3), level, np.uint8)
    moves = {"shift": 0.1, "flip": 0.5, "rotation": 10.0, "zoomed": 1.0, "zoom": 0.2}
    assert np.array_equal(change(plain, seed, **moves), plain)  # the border repeats
    image = np.random.default_rng(seed).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    every = dict.fromkeys(("zoomed", "reduced", "blurred", "noisy", "jpeg"), 1.0)
    every |= {"brightness": 0.5, "contrast": 0.5, "tint": 0.5, "grey": 0.5, "cut_out": 1.0}
    for drawn in (moves, every, moves | every):
        changed = change(image, seed, **drawn)
        assert changed.shape == image.shape and changed.dtype == np.uint8
        assert np.array_equal(changed, change(image, seed, **drawn))
        assert not np.array_equal(changed, change(image, seed + 1, **drawn))


def test_shift_stays_within_its_range() -> None:
    y, x = np.mgrid[:128, :128].astype(np.uint8)
    where = np.stack((x, y, 0 * x), axis=-1)
    moved = np.stack([change(where, seed, shift=0.1) for seed in range(200)]).astype(int)
    farthest = np.abs(moved - where)[:, 40:88, 40:88].max()  # away from the repeated border
    assert farthest == round(0.1 * 128)


def test_brightness_and_contrast_stay_within_their_ranges() -> None:
    grey = np.full((128, 128, 3), 128, np.uint8)
    changed = [int(change(grey, seed, brightness=0.1)[0, 0, 0]) - 128 for seed in range(300)]
    assert -26 <= min(changed) < -23 and 23 < max(changed) <= 26
    assert np.array_equal(change(grey, 3, contrast=0.2), grey)
    halves = np.concatenate((grey[:64] - 50, grey[64:] + 50))
    changed = [int(change(halves, seed, contrast=0.2)[127, 0, 0]) - 178 for seed in range(300)]
    assert -11 <= min(changed) < -8 and 8 < max(changed) <= 11


def test_reduced_and_blurred_crops_are_softer() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    before = measure_sharpness(noise)
    for drawn in ({"reduced": 1.0}, {"blurred": 1.0, "blur": 2.0}):
        assert all(measure_sharpness(change(noise, s, **drawn)) < before for s in range(9))


@given(st.integers(0, 2**31), st.booleans())
@settings(max_examples=25)
def test_blend_joins_two_kinds_of_pixels_with_a_soft_mask(seed: int, own: bool) -> None:
    rng, masks, copies = np.random.default_rng(seed), [], []
    draw_mask, change_copy = augmentation.draw_mask, augmentation.change_copy
    noise = rng.integers(0, 256, (2, 128, 128, 3)).astype(np.uint8)
    image, other = (cv2.GaussianBlur(one, (0, 0), 3) for one in noise)
    face = image if own else other

    def draw(*arguments: object) -> np.ndarray:
        masks.append(draw_mask(*arguments))
        return masks[-1]

    def change(*arguments: object) -> np.ndarray:
        copies.append(change_copy(*arguments))
        return copies[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augmentation, "draw_mask", draw)
        patch.setattr(augmentation, "change_copy", change)
        blended = blend(face, image, np.random.default_rng(seed))
    assert blended.shape == image.shape and blended.dtype == np.uint8
    assert np.array_equal(blended, blend(face, image, np.random.default_rng(seed)))
    (mask,), (copy,) = masks, copies
    assert mask.shape == (128, 128) and mask.dtype == np.float32
    assert mask.min() >= 0 and mask.max() <= 1
    assert np.abs(np.diff(mask, axis=0)).max() < 0.7  # the border is soft
    assert mask[[0, 0, -1, -1], [0, -1, 0, -1]].max() < 0.01  # the corners are unchanged
    around = blended[mask == 0]
    assert any(np.array_equal(around, whole[mask == 0]) for whole in (image, copy))
    assert not any(np.array_equal(blended, whole) for whole in (image, copy))


def test_the_face_of_a_blend_is_similar_and_from_the_same_data_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(1)
    places = rng.integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    for pixels in (12, 8):  # pixels between points, for images of 192 x 192 and 128 x 128
        faces = places.repeat(pixels, 1).repeat(pixels, 2)
        images = np.concatenate((faces, faces // 2 + 40, 255 - faces))  # the second are darker
        assert find_similar(images, 1, np.array([0, 2, 4, 7])) == 4
        assert find_similar(images, 5, np.array([0, 2, 3, 8])) == 2
    # Larger images are compared over their whole area.
    face, other = (image.repeat(12, 0).repeat(12, 1) for image in places[:2])
    in_part = np.where(np.indices(face.shape)[0] < 128, face, 255 - face)
    mixed = np.stack([face, in_part, face // 3 * 2 + other // 3])
    assert find_similar(mixed, 0, np.array([1, 2])) == 2

    blended = []
    monkeypatch.setattr(
        augmentation, "blend", lambda face, around, _: blended.append((face, around)) or around
    )
    rows = {image.tobytes(): row for row, image in enumerate(images)}
    for swapped in (0.0, 1.0):
        blended.clear()
        for row in range(9):
            reals = np.arange(4) if row < 4 else np.arange(4, 9)
            augmentation.show_group(images, (row, -1), reals, swapped, rng)
        pairs = [tuple(rows[image.tobytes()] for image in pair) for pair in blended]
        assert [around for _, around in pairs] == list(range(9))
        assert all((face < 4) == (around < 4) for face, around in pairs)
        assert all(face == around for face, around in pairs) == (swapped == 0)


SAME = {"jpeg": 100, "size": 1.0, "blur": 0.01, "noise": 0.0, "brightness": 0.0}
STRONG = {"jpeg": 20, "size": 0.25, "blur": 3.0, "noise": 20.0, "brightness": 0.4}


@pytest.mark.parametrize("kind", STRONG)
def test_degradation_keeps_the_size_and_grows_with_the_amount(kind: str) -> None:
    soft = np.random.default_rng(0).integers(0, 256, (12, 8, 3)).astype(np.uint8)
    image = cv2.resize(soft, (80, 120), interpolation=cv2.INTER_CUBIC)
    weak, strong = (
        augmentation.degrade(image, kind, amounts[kind], seed=1) for amounts in (SAME, STRONG)
    )
    assert weak.shape == strong.shape == image.shape and strong.dtype == np.uint8
    assert np.abs(weak.astype(int) - image).mean() < 3
    assert np.abs(strong.astype(int) - image).mean() > 4
    assert np.array_equal(strong, augmentation.degrade(image, kind, STRONG[kind], seed=1))


def test_an_unknown_degradation_is_refused() -> None:
    with pytest.raises(ValueError, match="fog"):
        augmentation.degrade(np.zeros((8, 8, 3), np.uint8), "fog", 1)


def test_settings_out_of_range_are_refused() -> None:
    """Examples: a share of 50, a quality of 0."""
    for wrong in ({"blurred": 50.0}, {"jpeg": 2.0}, {"jpeg_quality": 0}, {"zoomed": -0.1}):
        with pytest.raises(ValueError, match=next(iter(wrong)).replace("_", "-")):
            check_ranges(replace(Augmentation(), **wrong))
    check_ranges(Augmentation())
    check_ranges(NO_CHANGES)
    assert {field.name for field in fields(Augmentation)} >= {"reduced", "reduced_to"}
