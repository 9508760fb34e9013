"""Find the faces in a fake that were not swapped, by comparing it with its original.

In a video of two people, often only one face is swapped. A crop of the other face is not a deepfake
and must not be labelled as one. If the original is available, each face of the fake is compared
with the same place in the same frame of the original. Compression changes both, so they are never
identical; the rest of the picture shows how much compression alone changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from deepfake_detect import files

BLUR = 2.0  # pixels; averages out compression noise, but not a different face
GRID = 4  # blocks per side of a face; a change of only the mouth is visible in one block
# Measured on fakes of FaceForensics++ c23: a swapped or re-enacted face differs by 5 grey levels or
# more, 7 times the change by compression; other faces differ only by the change by compression.
TIMES_CODEC = 2.0  # allowed difference, relative to the change by compression
LEAST, MOST = 1.0, 4.0  # grey levels; range of the allowed difference
COLUMNS = ["crop", "video_id", "original", "difference", "allowed"]


def find_originals(videos: pd.DataFrame) -> dict[str, str]:
    """Find the real video that each fake was made from.

    The first identity of a fake is the person who was filmed. If there are several videos of this
    person, the original is the one whose name is the name of the fake without the other person:
    id0_0001 for id0_id1_0001.

    Args:
        videos: columns video_id, source, dataset, label, compression (may be missing), identities

    Returns:
        The video_id of the original by the video_id of the fake, where it was found.
    """
    reals: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    videos = videos.assign(stem=videos["source"].map(lambda source: PurePosixPath(source).stem))
    if "compression" not in videos:
        videos = videos.assign(compression="")
    columns = ["video_id", "dataset", "identities", "stem", "compression"]
    for video_id, dataset, identities, *names in videos[videos["label"] == "real"][
        columns
    ].itertuples(index=False):
        reals.setdefault((dataset, identities), []).append((video_id, *names))
    originals = {}
    for video_id, dataset, identities, stem, compression in videos[videos["label"] == "fake"][
        columns
    ].itertuples(index=False):
        person, _, other = identities.partition(";")
        known = reals.get((dataset, person), [])
        known = [real for real in known if real[2] == compression] or known
        if len(known) > 1:
            wanted = re.sub(rf"_{re.escape(other)}(?=_|$)", "", stem, count=1, flags=re.I)
            known = [real for real in known if wanted.lower().startswith(real[1].lower())]
        if known:
            originals[video_id] = max(known, key=lambda real: len(real[1]))[0]
    return originals


def find_bystanders(
    faces: pd.DataFrame, originals: dict[str, str], frames_dir: Path
) -> pd.DataFrame:
    """Find the crops of fakes that show an unchanged face of the original.

    Args:
        faces: rows of faces.csv: crop, video_id, frame, x, y, width, height
        originals: video_id of the original of each fake, see find_originals
        frames_dir: folder with the frames of the fakes and the originals

    Returns:
        One row per such crop: crop, video_id, original, the difference and the allowed difference
        in grey levels. Crops that cannot be compared are left out.
    """
    faces = faces[faces["video_id"].isin(list(originals))]
    frames = list(faces.groupby(["video_id", "frame"], sort=False))

    def compare(frame: tuple[tuple[str, int], pd.DataFrame]) -> list[tuple]:
        (video_id, index), of_frame = frame
        original = originals[video_id]
        paths = [frames_dir / name / f"{name}-{index:06d}.png" for name in (video_id, original)]
        boxes = of_frame[["x", "y", "width", "height"]].to_numpy(int)
        with suppress(ValueError, OSError):
            allowed, differences = compare_faces(*map(files.read_image, paths), boxes)
            rows = zip(of_frame["crop"], differences, strict=True)
            return [
                (crop, video_id, original, round(float(one), 2), round(float(allowed), 2))
                for crop, one in rows
                if one <= allowed
            ]
        return []

    with ThreadPoolExecutor() as pool:
        compared = pool.map(compare, frames)
        bar = {"unit": "frame", "disable": not frames or None}  # None: only on a terminal
        found = tqdm(compared, "faces compared", len(frames), **bar)
        return pd.DataFrame([row for rows in found for row in rows], columns=COLUMNS)


def compare_faces(
    fake: np.ndarray, original: np.ndarray, boxes: np.ndarray
) -> tuple[float, list[float]]:
    """Measure how much each face of a fake differs from the same place in the original frame.

    Args:
        fake, original: frames, BGR uint8 (height, width, 3)
        boxes: int (n, 4): x, y, width, height, in pixels

    Returns:
        The allowed difference, and the difference of each face: the largest mean of a block, in
        grey levels.

    Raises:
        ValueError: the frames have different sizes
    """
    if fake.shape != original.shape:
        raise ValueError("the frames have different sizes")
    change = cv2.GaussianBlur(fake.astype(np.float32) - original, (0, 0), BLUR)
    change = np.abs(change).mean(axis=2)
    outside = np.ones(change.shape, np.uint8)
    for x, y, width, height in boxes:  # including the surroundings, which a swap may change
        outside[cut(y - height // 2, 2 * height), cut(x - width // 2, 2 * width)] = 0
    block = max(4, int(np.median(boxes[:, 2])) // GRID)
    size = max(1, change.shape[1] // block), max(1, change.shape[0] // block)
    elsewhere = cv2.resize(change, size, interpolation=cv2.INTER_AREA)
    elsewhere = elsewhere[cv2.resize(outside, size, interpolation=cv2.INTER_NEAREST) > 0]
    by_codec = np.percentile(elsewhere, 99) if elsewhere.size else 0.0
    return float(np.clip(TIMES_CODEC * by_codec, LEAST, MOST)), list(measure_boxes(change, boxes))


def measure_boxes(change: np.ndarray, boxes: np.ndarray) -> Iterator[float]:
    """Yield the largest block mean of each box; infinity for a box outside the frame."""
    for x, y, width, height in boxes:
        face = change[cut(y, height), cut(x, width)]
        if not face.size:
            yield np.inf
        else:
            yield float(cv2.resize(face, (GRID, GRID), interpolation=cv2.INTER_AREA).max())


def cut(start: int, length: int) -> slice:
    """Return a slice of `length` from `start`, which may be negative, clipped at 0."""
    return slice(max(0, start), max(0, start + length))


def count_without_original(faces: pd.DataFrame, fakes: set[str], originals: dict[str, str]) -> int:
    """Count the fakes without an available original that show several faces in a frame."""
    alone = faces[faces["video_id"].isin(fakes - set(originals))]
    several = alone.groupby(["video_id", "frame"]).size() > 1
    return int(several.groupby("video_id").any().sum())
