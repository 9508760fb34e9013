"""Tests of listing, decoding, resizing and measuring crops."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from crops import make_predictions, small_split, write_crop
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfake_detect.crops import (
    average_by_video,
    decode_crops,
    find_crops,
    measure_sharpness,
    open_cache,
    prepare_crop,
    read_crop,
)

__all__ = ["small_split"]  # a fixture


def test_a_real_and_a_fake_with_the_same_name_are_two_videos() -> None:
    predictions = make_predictions([("fake", "v", 0.2), ("real", "v", 0.8)])
    assert sorted(average_by_video(predictions).p_fake) == pytest.approx([0.2, 0.8])


@given(st.integers(1, 300), st.integers(1, 300))
@settings(max_examples=20, deadline=None)
def test_a_crop_of_any_size_is_resized_to_rgb(height: int, width: int) -> None:
    crop = prepare_crop(np.full((height, width, 3), (10, 20, 250), np.uint8), 128)
    assert crop.shape == (128, 128, 3) and crop.dtype == np.uint8
    assert (crop == (250, 20, 10)).all()


def test_blur_lowers_the_sharpness() -> None:
    crop = np.random.default_rng(1).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    soft, softer = (cv2.GaussianBlur(crop, (0, 0), sigma) for sigma in (1, 2))
    found = [measure_sharpness(image) for image in (crop, soft, softer, 0 * crop)]
    assert found == sorted(found, reverse=True) and found[-1] == 0
    assert found[1] == pytest.approx(
        cv2.Laplacian(cv2.cvtColor(soft, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var()
    )


def test_crops_with_any_supported_suffix_are_listed(tmp_path: Path, small_split: Path) -> None:
    split_dir = shutil.copytree(small_split, tmp_path / "split_dataset")
    image = np.zeros((50, 50, 3), np.uint8)
    for name in ("a.JPG", "b.jpeg", "c.WebP", "dé.png"):
        write_crop(split_dir / "train" / "real" / name, image)
    for name in ("notes.txt", ".hidden.png", "d.png.partial"):
        (split_dir / "train" / "real" / name).write_bytes(b"")
    crops = find_crops(split_dir, ("train", "val", "test"))
    assert len(crops) == 12 + 4
    images = np.empty((16, 128, 128, 3), np.uint8)
    whole, left_out = decode_crops(crops, split_dir, images)
    assert len(whole) == 16 and left_out == {}


def test_video_ids_come_from_the_table_or_the_file_names(tmp_path: Path, small_split: Path) -> None:
    split_dir = shutil.copytree(small_split, tmp_path / "split_dataset")
    real = split_dir / "train" / "real"
    for name in ("ffpp-a-b_c-000042-00", "x.y-1000000-01", "519_515", "photo-12-3", "listed"):
        write_crop(real / f"{name}.png", np.zeros((8, 8, 3), np.uint8))
    pd.DataFrame(
        {"crop": ["train/real/listed.png", "train/real/photo-12-3.png"], "video_id": ["007", "nan"]}
    ).to_csv(split_dir / "crops.csv", index=False)
    crops = find_crops(split_dir, ("train", "val")).set_index("crop").video_id
    assert crops["train/real/listed.png"] == "007"
    assert crops["train/real/photo-12-3.png"] == "nan"
    (split_dir / "crops.csv").unlink()
    crops = find_crops(split_dir, ("train", "val")).set_index("crop").video_id
    assert crops["train/real/listed.png"] == "listed"
    assert crops["train/real/photo-12-3.png"] == "photo-12-3"
    assert crops["train/real/ffpp-a-b_c-000042-00.png"] == "ffpp-a-b_c"
    assert crops["train/real/x.y-1000000-01.png"] == "x.y"
    assert crops["train/real/519_515.png"] == "519_515"


def test_decoded_crops_leave_no_file_behind(tmp_path: Path, small_split: Path) -> None:
    crops = find_crops(small_split, ("train", "val"))
    images = open_cache(len(crops), 128, tmp_path)
    assert list(tmp_path.iterdir()) == []  # also after a kill
    whole, _ = decode_crops(crops, small_split, images)
    for row, crop in whole.iterrows():
        assert np.array_equal(images[row], read_crop(small_split / crop["crop"], 128))
        picture = cv2.imread(str(small_split / crop["crop"]))
        assert crop["side"] == min(picture.shape[:2])
        assert crop["sharpness"] == measure_sharpness(images[row])
