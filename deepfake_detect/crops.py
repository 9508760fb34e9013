"""Read crops of faces, and the tables and rules beside them, for script 04 and those after.

A crop is an image file of any size. The model takes it squeezed to a square, and the row of
an array that holds it so is the index of its row in the table of the crops.
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

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from deepfake_detect.decision import CROP_RULE, check_decision

CLASSES = ("fake", "real")  # in the alphabet's order: fake 0, real 1
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def find_crops(split_dir: Path, splits: tuple[str, ...], one_class: bool = False) -> pd.DataFrame:
    """List the crops of some splits, a row each.

    A row has crop (its path below split_dir), label, split, video_id, dataset, method, identities.
    The folders say label and split, crops.csv the rest. Without it the video is the file name less
    its frame and face (`<video_id>-000042-00.png`), or the whole of any other name.

    Args:
        splits: such as train and val; "" is split_dir itself, with real/ and fake/ in it
        one_class: accept a split with crops of one class only
    """
    make = "make it with 03-prepare-fake-real-dataset.py, or name another folder."
    if not split_dir.is_dir():
        raise FileNotFoundError(f"{split_dir}: there is no such folder; {make}")
    rows = []
    for split in splits:
        if not (split_dir / split).is_dir():
            raise FileNotFoundError(f"{split_dir}: it has no {split}/; {make}")
        for label in CLASSES:
            folder = split_dir / split / label
            if one_class and not folder.exists():
                continue
            names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
            images = [name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
            images = [name for name in images if not name.startswith(".")]
            if not images:
                raise FileNotFoundError(f"{folder}: there are no {label} crops in it; {make}")
            below = folder.relative_to(split_dir).as_posix()
            rows += [(f"{below}/{name}", label, split) for name in sorted(images)]
    if not rows:
        raise FileNotFoundError(f"{split_dir}: it has no real/ and no fake/; {make}")
    crops = pd.DataFrame(rows, columns=["crop", "label", "split"])
    crops = crops.merge(read_crops_table(split_dir), "left", "crop")
    by_name = crops["crop"].map(lambda crop: re.sub(r"-\d{6,}-\d{2,}$", "", Path(crop).stem))
    return crops.fillna(
        {"video_id": by_name} | dict.fromkeys(("dataset", "method", "identities"), "")
    )


def read_crops_table(split_dir: Path) -> pd.DataFrame:
    """Read what crops.csv says of each crop; no rows where there is no such table."""
    path = split_dir / "crops.csv"
    columns = ["crop", "video_id", "dataset", "method", "identities"]
    if not path.exists():
        return pd.DataFrame(columns=columns, dtype=str)
    with suppress(ValueError, KeyError):
        refuse_pipe(path)
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if table["crop"].is_unique and "video_id" in table:
            return table.reindex(columns=columns, fill_value="")
    raise ValueError(
        f"{path}: it is not a table with the columns crop and video_id and a row a crop; run "
        "03-prepare-fake-real-dataset.py again, or delete it to go by the file names."
    )


def read_crop_rule(split_dir: Path) -> dict:
    """Return how the crops were cut, the fields of CROP_RULE; empty without a crop-rule.json.

    Raises:
        ValueError: the file does not hold a crop rule
    """
    path = split_dir / "crop-rule.json"
    if not path.exists():
        return {}
    with suppress(KeyError, TypeError, ValueError, OverflowError, RecursionError):
        refuse_pipe(path)
        rule = json.loads(path.read_text(encoding="utf-8"))
        checked = check_decision(
            {name: rule[name] for name in ("margin", "square", "frames")} | rule
        )
        return {name: getattr(checked, name) for name in CROP_RULE}
    raise ValueError(
        f"{path}: it is not a crop rule; run 03-prepare-fake-real-dataset.py again, or delete the "
        "file to use the settings margin, square and frames."
    )


def open_cache(count: int, size: int, folder: Path) -> np.ndarray:
    """Give room for decoded crops, uint8 (count, size, size, 3): a file without a name.

    The system keeps it in memory while there is room, and it is gone with the process.
    """
    shape = (count, size, size, 3)
    free, needed = shutil.disk_usage(folder).free, math.prod(shape)
    if free < needed:  # found out later, it would be a crash: a mapped file gives no error
        raise OSError(
            f"{folder}: the decoded crops take {needed / 2**30:.1f} GiB there and "
            f"{free / 2**30:.1f} are free; make room, or name a folder on another disk."
        )
    return np.memmap(tempfile.TemporaryFile(dir=folder), np.uint8, "w+", shape=shape)


def decode_crops(
    crops: pd.DataFrame, split_dir: Path, images: np.ndarray
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Decode every crop, once and for all epochs, into its row of images, of any size.

    Returns:
        The crops that decode, their index being their rows, with side (pixels of the shorter one)
        and sharpness (see measure_sharpness) beside; and those that do not, with the reason.
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
        folder, again = split_dir / split, "make them anew with 03-prepare-fake-real-dataset.py."
        if not (part["fault"] == "").any():
            raise ValueError(f"{folder / label}: none of its crops can be read; {again}")
        if split != "train" and whole.loc[whole["split"] == split, "video_id"].nunique() < 2:
            raise ValueError(
                f"{folder}: all of its crops are of one video; at least two are needed; {again}"
            )
    return whole, dict(crops.loc[crops["fault"] != "", ["crop", "fault"]].to_numpy().tolist())


def read_crop(path: Path, size: int) -> np.ndarray:
    """Read a crop as a model takes it: RGB uint8 (size, size, 3).

    Raises:
        ValueError, OSError: it cannot be read or does not decode.
    """
    return prepare_crop(read_image(path), size)


def read_image(path: Path) -> np.ndarray:
    """Read an image: BGR uint8 (height, width, 3)."""
    refuse_pipe(path)
    data = np.frombuffer(path.read_bytes(), np.uint8)
    with suppress(cv2.error):  # more pixels than OpenCV takes
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
        if image is not None:
            return image
    raise ValueError("does not decode as an image")


def prepare_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Squeeze a crop, BGR uint8 of any shape, to RGB uint8 (size, size, 3) in the model's size.

    Pixels are averaged where the crop shrinks, so nothing aliases, and interpolated where it grows.
    """
    return cv2.cvtColor(squeeze(image, size), cv2.COLOR_BGR2RGB)


def squeeze(image: np.ndarray, size: int) -> np.ndarray:
    """Squeeze an image, uint8 of any shape, to size x size, its colours in their order."""
    resample = cv2.INTER_AREA if min(image.shape[:2]) > size else cv2.INTER_LINEAR
    return cv2.resize(image, (size, size), interpolation=resample)


def measure_sharpness(crop: np.ndarray) -> float:
    """Measure how sharp a crop is, RGB uint8 as prepared: the variance of its Laplacian in grey.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000.
    """
    return float(cv2.Laplacian(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


def measure_look(face: np.ndarray) -> np.ndarray:
    """Measure the colours of a face, BGR uint8: the roots of their shares, float16 (384,).

    The sum of the products of two is their likeness, 0 to 1 (Bhattacharyya, 1943). On real videos
    of Celeb-DF v2, 95 of 100 pairs of frames of one video have 0.89 or more, and 95 of 100 pairs of
    two videos 0.75 or less.
    """
    lab = cv2.cvtColor(face, cv2.COLOR_BGR2LAB)
    lab[..., 1:] = lab[..., 1:].clip(96, 159)  # few faces have stronger colours
    counts = cv2.calcHist([lab], [0, 1, 2], None, (6, 8, 8), (0, 256, 96, 160, 96, 160))
    return np.sqrt(counts.ravel() / counts.sum()).astype(np.float16)


def count_crops(crops: pd.DataFrame) -> dict[str, int]:
    """Count the crops and videos of each class."""
    counts = {}
    for label in CLASSES:
        of_class = crops[crops["label"] == label]
        counts[f"{label} crops"] = len(of_class)
        counts[f"{label} videos"] = of_class["video_id"].nunique()
    return counts


def average_by_video(predictions: pd.DataFrame) -> pd.DataFrame:
    """Give each video the mean p_fake of its crops: label, video_id, p_fake."""
    return predictions.groupby(["label", "video_id"], as_index=False)["p_fake"].mean()


def refuse_pipe(path: Path) -> None:
    """Refuse what is there and no file: a named pipe or a device would be read without end."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no file")
