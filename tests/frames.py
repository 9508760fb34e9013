"""Frames with faces, as 01 writes them, and runs of 02 on them."""

import importlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import skimage.data

crop = importlib.import_module("02-crop-faces-with-mtcnn")
HEAD = cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2BGR)[0:230, 100:350]


def make_frame(*faces: tuple[int, int, float], size: tuple[int, int] = (640, 360)) -> np.ndarray:
    """BGR uint8: the portrait's head at (left, top), scaled, on grey; size is (width, height)."""
    frame = np.full((size[1], size[0], 3), 128, np.uint8)
    for left, top, scale in faces:
        head = cv2.resize(HEAD, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        height, width = head.shape[:2]
        part = frame[max(0, top) : top + height, max(0, left) : left + width]
        part[:] = head[max(0, -top) :, max(0, -left) :][: part.shape[0], : part.shape[1]]
    return frame


FRAMES = {
    "one": make_frame((200, 60, 1.0)),
    "two": make_frame((40, 60, 1.0), (380, 120, 0.7)),
    "none": make_frame(),
    "small": make_frame((300, 100, 0.4)),
    "edge": make_frame((-60, 60, 1.0)),
    "other size": make_frame((100, 40, 0.9), size=(430, 310)),
    "tiny frame": make_frame(size=(20, 11)),
}
FACES = {"one": 1, "two": 2, "none": 0, "small": 1, "edge": 1, "other size": 1, "tiny frame": 0}


def write_frames(folder: Path, videos: dict[str, list[np.ndarray]], step: int = 1) -> Path:
    """Write a frames folder as 01 does; the frames of a video are `step` apart."""
    for video_id, frames in videos.items():
        (folder / video_id).mkdir(parents=True)
        for index, frame in enumerate(frames):
            cv2.imwrite(str(folder / video_id / f"{video_id}-{step * index:06d}.png"), frame)
    rows = [(video_id, len(frames), "ok") for video_id, frames in videos.items()]
    rows.append(("failed", 0, "failed"))
    table = pd.DataFrame(rows, columns=["video_id", "frames", "status"])
    table.to_csv(folder / "videos.csv", index=False)
    return folder


def write_videos(folder: Path, videos: int = 3, frames: int = 4) -> Path:
    """A frames folder as 01 writes it: another head, and another place of it, in each video."""
    shown = {
        f"v{number}": [
            make_frame((20 + 30 * number + 5 * index, 10, 0.7 + 0.05 * number), size=(320, 240))
            for index in range(frames)
        ]
        for number in range(videos)
    }
    return write_frames(folder, shown)


def run_02(frames_dir: Path, faces_dir: Path, **settings: object) -> pd.DataFrame:
    """Run 02 in this process, or in as many as `workers` says; return faces.csv."""
    settings = {"workers": 1} | settings
    rows = crop.main(crop.Settings(frames_dir=frames_dir, faces_dir=faces_dir, **settings))
    return pd.DataFrame(rows, columns=crop.FACES_COLUMNS)
