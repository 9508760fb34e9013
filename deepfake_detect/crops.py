"""List and decode face crops, and read their tables and crop rule.

A crop is an image file of any size, and is resized to a square for the model. The index of a table
of crops is the row of each crop in the array of decoded images.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from deepfake_detect.decision import CROP_RULE, check_decision
from deepfake_detect.faces import measure_sharpness, prepare_crop, squeeze  # noqa: F401
from deepfake_detect.files import check_plain_file, read_image, read_table

CLASSES = ("fake", "real")  # in alphabetical order: fake 0, real 1
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def find_crops(split_dir: Path, splits: tuple[str, ...], one_class: bool = False) -> pd.DataFrame:
    """Return a table of the crops of some splits.

    Columns: crop (path relative to split_dir), label, split, video_id, dataset, method, identities.
    Label and split come from the folders, the other columns from crops.csv. Without that table,
    video_id is the file name without frame and face numbers (`<video_id>-000042-00.png`), or the
    whole name.

    Args:
        split_dir: folder that contains the splits
        splits: names such as train and val; "" is split_dir itself, with real/ and fake/ in it
        one_class: accept a split that has crops of only one label

    Raises:
        FileNotFoundError: a folder is missing or empty
        ValueError: crops.csv is damaged
    """
    make = "create it with 03-prepare-fake-real-dataset.py, or name another folder."
    if not split_dir.is_dir():
        raise FileNotFoundError(f"{split_dir}: this folder does not exist; {make}")
    rows = []
    for split in splits:
        if not (split_dir / split).is_dir():
            raise FileNotFoundError(f"{split_dir}: it does not contain {split}/; {make}")
        for label in CLASSES:
            folder = split_dir / split / label
            if one_class and not folder.exists():
                continue
            names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
            images = [name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
            images = [name for name in images if not name.startswith(".")]
            if not images:
                raise FileNotFoundError(f"{folder}: it does not contain {label} crops; {make}")
            below = folder.relative_to(split_dir).as_posix()
            rows += [(f"{below}/{name}", label, split) for name in sorted(images)]
    if not rows:
        raise FileNotFoundError(f"{split_dir}: it contains neither real/ nor fake/; {make}")
    crops = pd.DataFrame(rows, columns=["crop", "label", "split"])
    crops = crops.merge(read_crops_table(split_dir), "left", "crop")
    by_name = crops["crop"].map(lambda crop: re.sub(r"-\d{6,}-\d{2,}$", "", Path(crop).stem))
    return crops.fillna(
        {"video_id": by_name} | dict.fromkeys(("dataset", "method", "identities"), "")
    )


def read_crops_table(split_dir: Path) -> pd.DataFrame:
    """Read crops.csv; return an empty table if the file does not exist.

    Raises:
        ValueError: the table is damaged
    """
    path = split_dir / "crops.csv"
    columns = ["crop", "video_id", "dataset", "method", "identities"]
    if not path.exists():
        return pd.DataFrame(columns=columns, dtype=str)
    with suppress(ValueError, KeyError):
        check_plain_file(path)
        table = read_table(path)
        if table["crop"].is_unique and "video_id" in table:
            return table.reindex(columns=columns, fill_value="")
    raise ValueError(
        f"{path}: the file is not a table with columns crop and video_id and one row per crop; run "
        "03-prepare-fake-real-dataset.py again, or delete it to use the file names."
    )


def read_crop_rule(split_dir: Path) -> dict:
    """Read crop-rule.json: the fields of CROP_RULE; return {} if the file does not exist.

    Raises:
        ValueError: the file is not a crop rule
    """
    path = split_dir / "crop-rule.json"
    if not path.exists():
        return {}
    with suppress(KeyError, TypeError, ValueError, OverflowError, RecursionError):
        check_plain_file(path)
        rule = json.loads(path.read_text(encoding="utf-8"))
        checked = check_decision(
            {name: rule[name] for name in ("margin", "square", "frames")} | rule
        )
        return {name: getattr(checked, name) for name in CROP_RULE}
    raise ValueError(
        f"{path}: the file is not a crop rule; run 03-prepare-fake-real-dataset.py again, or "
        "delete the file to use the settings margin, square and frames."
    )


def find_crop_rule(split_dir: Path, settings: object) -> dict:
    """Return the crop rule of a split folder, from the settings if crop-rule.json is missing.

    Args:
        split_dir: folder from step 03
        settings: an object with the attributes margin, square and frames

    Raises:
        ValueError: the file is not a crop rule
    """
    names = "margin", "square", "frames"
    return read_crop_rule(split_dir) or {name: getattr(settings, name) for name in names}


def open_cache(count: int, size: int, folder: Path) -> np.ndarray:
    """Allocate a memory-mapped array for decoded crops, uint8 (count, size, size, 3).

    The array is backed by an unnamed temporary file in the folder: the system keeps it in memory
    while there is room, and deletes it when the process ends.

    Raises:
        OSError: the disk has too little space
    """
    shape = (count, size, size, 3)
    free, needed = shutil.disk_usage(folder).free, math.prod(shape)
    if free < needed:  # a full disk would crash the process: a mapped file does not raise
        raise OSError(
            f"{folder}: the decoded crops need {needed / 2**30:.1f} GiB, but only "
            f"{free / 2**30:.1f} GiB are free; free some space, or name a folder on another disk."
        )
    return np.memmap(tempfile.TemporaryFile(dir=folder), np.uint8, "w+", shape=shape)


def decode_crops(
    crops: pd.DataFrame, split_dir: Path, images: np.ndarray
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Decode each crop into its row of images, once for all epochs.

    Returns:
        The table of the readable crops, with the columns side (of the shorter side, in pixels) and
        sharpness (see measure_sharpness), and the unreadable crops by name, with the reason.

    Raises:
        ValueError: all crops of a label are unreadable, or a split other than train has one video
    """

    def decode(row: int, crop: str) -> tuple[int, float, str]:
        try:
            image = read_image(split_dir / crop)
        except (ValueError, OSError) as error:
            return 0, 0.0, str(error)
        images[row] = prepare_crop(image, images.shape[1])
        return min(image.shape[:2]), measure_sharpness(images[row]), ""

    with ThreadPoolExecutor() as pool:
        found = pool.map(decode, range(len(crops)), crops["crop"])
        found = list(tqdm(found, "crops", len(crops), unit="crop", leave=False))
    crops = crops.join(pd.DataFrame(found, crops.index, ["side", "sharpness", "fault"]))
    whole = crops[crops["fault"] == ""].drop(columns="fault")
    for (split, label), part in crops.groupby(["split", "label"]):
        folder, again = split_dir / split, "create them again with 03-prepare-fake-real-dataset.py."
        if not (part["fault"] == "").any():
            raise ValueError(f"{folder / label}: the crops in this folder cannot be read; {again}")
        if split != "train" and whole.loc[whole["split"] == split, "video_id"].nunique() < 2:
            raise ValueError(
                f"{folder}: all crops come from one video, but at least two are needed; {again}"
            )
    return whole, dict(crops.loc[crops["fault"] != "", ["crop", "fault"]].to_numpy().tolist())


def read_crop(path: Path, size: int) -> np.ndarray:
    """Read a crop and resize it for a model: RGB uint8 (size, size, 3).

    Raises:
        ValueError, OSError: the file cannot be read or decoded
    """
    return prepare_crop(read_image(path), size)


def count_crops(crops: pd.DataFrame) -> dict[str, int]:
    """Return the number of crops and of videos per label, such as {"real crops": 120}."""
    counts = {}
    for label in CLASSES:
        of_class = crops[crops["label"] == label]
        counts[f"{label} crops"] = len(of_class)
        counts[f"{label} videos"] = of_class["video_id"].nunique()
    return counts


def average_by_video(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the mean p_fake per video: a table with the columns label, video_id and p_fake."""
    return predictions.groupby(["label", "video_id"], as_index=False)["p_fake"].mean()
