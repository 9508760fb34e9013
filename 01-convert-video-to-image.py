"""Save the frames of the videos as images, and write down what each video is.

    python 01-convert-video-to-image.py
    python 01-convert-video-to-image.py --frames-per-second 1
    python 01-convert-video-to-image.py --videos-dir my-videos --frames-per-video 30

Reads   videos/                                    any mix of the layouts below, at any depth
Writes  frames/<video_id>/<video_id>-000042.png    frame 42 of the video, resized by its width
        frames/videos.csv                          one row a video: what it is, how it went
        frames/left-out.csv                        each file that was not converted, and why
Next    02-crop-faces-with-mtcnn.py

FaceForensics++, Google DFD, Celeb-DF (v1, v2), DFDC (its preview and test sets too),
DeepFake-TIMIT with VidTIMIT, and plain `real/` and `fake/` folders are told apart by their own
folder and file names, or by the lists that come with them; the names of outer folders do not
matter. A file that fits none is left out and written down: no label is guessed.

Frames are read one after another until none comes: the frame count and the rate that a file
claims are not believed. A run that was stopped goes on where it was. A video that was changed, or
whose settings were, is converted again, and the frames of one that is gone are deleted.
"""

import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from hashlib import sha1
from multiprocessing import resource_tracker
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import filelock
import numpy as np
import pandas as pd
import pebble
import tyro
from tqdm import tqdm

# --------------------------------------------------------------------------------------------------
# folders
VIDEOS_DIR = Path("videos")  # the data sets, as they were unpacked
FRAMES_DIR = Path("frames")  # gets one folder a video
# sampling
FRAMES_PER_SECOND = None  # None: every frame; else so many of each second, evenly in time
FRAMES_PER_VIDEO = None  # None: every frame; else so many of each video, spread over its length
# images
PNG_COMPRESSION = 1  # 0 to 9, all lossless: 1 writes 1.8 times as fast as 3, files 7 % larger
# machine
WORKERS = os.cpu_count() or 1  # videos converted side by side, one process each
SECONDS_PER_VIDEO = 3600  # a video that takes longer is given up and named; None: no limit
# --------------------------------------------------------------------------------------------------

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")
# What a video may be inside, whatever its name: no playlist, which would show other files' frames.
CONTAINERS = "avi,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mpegts,mpeg,flv,asf,ogg"
DESCRIBING_LISTS = ("metadata.json", "dataset.json", "labels.csv")
SPLIT_LISTS = ("train.json", "val.json", "test.json", "list_of_testing_videos.txt")
COMPANION_SUFFIXES = (".json", ".csv", ".txt", ".md", ".pdf", ".py")  # beside videos, not videos
LARGEST_LIST = 100_000_000  # bytes, some million videos; a larger file would fill the memory
DESCRIPTION = ["dataset", "label", "method", "compression", "identities", "official_split"]
CONVERSION = ["width", "height", "fps", "frames", "status", "reason"]
Description = dict[str, str]  # the columns of DESCRIPTION, and `prefix`, the start of the video_id


# --- What a video is, by its path -----------------------------------------------------------------


class Layout(NamedTuple):
    """How a data set names the videos of one label.

    `folder` matches the end of the folder's path and `name` the whole file name without its
    suffix, both regular expressions, case ignored. Their groups fill the other fields.
    """

    dataset: str
    label: str
    method: str
    folder: str
    name: str
    identities: str
    prefix: str
    example: str


METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter")
COMPRESSION = "(?P<compression>raw|c0|c23|c40)"
SUBJECT = "[fm][a-z]{3}[0-9]"  # VidTIMIT's people: fadg0, mstk0, ...
LAYOUTS = [
    # Rössler et al., ICCV 2019. A fake is TARGET_SOURCE, both numbers of original sequences.
    Layout(
        dataset="FaceForensics++",
        label="real",
        method="original",
        folder=f"original_sequences/youtube/{COMPRESSION}/videos",
        name="(?P<target>[0-9]{3})",
        identities="{target}",
        prefix="ffpp-original-{compression}",
        example="519.mp4",
    ),
    Layout(
        dataset="FaceForensics++",
        label="fake",
        method="{method}",
        folder=f"manipulated_sequences/(?P<method>{'|'.join(METHODS)})/{COMPRESSION}/videos",
        name="(?P<target>[0-9]{3})_(?P<source>[0-9]{3})",
        identities="{target};{source}",
        prefix="ffpp-{method}-{compression}",
        example="519_515.mp4",
    ),
    # Dufour and Gully, 2019. ACTOR__scene, and TARGET_SOURCE__scene__HASH; scenes hold single _.
    Layout(
        dataset="DFD",
        label="real",
        method="original",
        folder=f"original_sequences/actors(/{COMPRESSION})?(/[^/]+)*",
        name="(?P<target>[0-9]{2})__[^_]+(_[^_]+)*",
        identities="{target}",
        prefix="dfd-original-{compression}",
        example="01__exit_phone_room.mp4",
    ),
    Layout(
        dataset="DFD",
        label="fake",
        method="DeepFakeDetection",
        folder=f"manipulated_sequences/DeepFakeDetection(/{COMPRESSION})?(/[^/]+)*",
        name="(?P<target>[0-9]{2})_(?P<source>[0-9]{2})__[^_]+(_[^_]+)*__[^_]+",
        identities="{target};{source}",
        prefix="dfd-DeepFakeDetection-{compression}",
        example="01_02__exit_phone_room__YVGY8LOK.mp4",
    ),
    # Li et al., CVPR 2020. A clip from YouTube is a person of its own.
    Layout(
        dataset="Celeb-DF",
        label="real",
        method="original",
        folder="Celeb-real(/videos)?",
        name="(?P<target>id[0-9]+)_[0-9]+",
        identities="{target}",
        prefix="celebdf-real",
        example="id0_0001.mp4",
    ),
    Layout(
        dataset="Celeb-DF",
        label="real",
        method="original",
        folder="YouTube-real(/videos)?",
        name="(?P<target>[0-9]+)",
        identities="youtube{target}",
        prefix="celebdf-youtube",
        example="00012.mp4",
    ),
    Layout(
        dataset="Celeb-DF",
        label="fake",
        method="Celeb-synthesis",
        folder="Celeb-synthesis(/videos)?",
        name="(?P<target>id[0-9]+)_(?P<source>id[0-9]+)_[0-9]+",
        identities="{target};{source}",
        prefix="celebdf-synthesis",
        example="id0_id1_0001.mp4",
    ),
    # Korshunov and Marcel, 2018. Its reals are VidTIMIT's folders of stills (Sanderson, 2009).
    Layout(
        dataset="DeepFake-TIMIT",
        label="fake",
        method="faceswap-GAN",
        folder=f"(?P<compression>higher_quality|lower_quality)/(?P<target>{SUBJECT})",
        name=f"[a-z0-9]+-video-(?P<source>{SUBJECT})",
        identities="{target};{source}",
        prefix="timit-{compression}-{target}",
        example="sa1-video-fram1.avi",
    ),
    Layout(
        dataset="DeepFake-TIMIT",
        label="real",
        method="original",
        folder=f"(?P<target>{SUBJECT})/video",
        name="[a-z0-9]+",
        identities="{target}",
        prefix="timit-original-{target}",
        example="sa1, a folder of the stills 001, 002 and so on",
    ),
]


def describe_by_name(source: PurePosixPath) -> Description | None:
    """What the layouts say of the video at this path below videos/; None if it fits no folder.

    Raises: ValueError, with the reason, if the folder fits and the name does not.
    """
    for layout in LAYOUTS:
        parent = source.parent.as_posix()
        folder = re.search(rf"(^|/){layout.folder}\Z", parent, re.IGNORECASE | re.ASCII)
        if folder is None:
            continue
        name = re.fullmatch(layout.name, source.stem, re.IGNORECASE | re.ASCII)
        if name is None:
            raise ValueError(f"not named like the {layout.label}s there, such as {layout.example}")
        found = folder.groupdict(default="") | name.groupdict()
        found = {group: text.lower() for group, text in found.items()}
        found["method"] = {method.lower(): method for method in METHODS}.get(found.get("method"))
        return {
            "dataset": layout.dataset,
            "label": layout.label,
            "method": layout.method.format(**found),
            "compression": found.get("compression", ""),
            "identities": layout.identities.format(**found),
            "prefix": layout.prefix.format(**found).rstrip("-"),
        }
    return None


def describe_by_plain_folder(source: PurePosixPath) -> Description | None:
    """A video somewhere below a folder that is called real or fake.

    Its identity is its path below that folder, so that real/anna/1.mp4 and fake/anna/1.mp4
    count as made from one source and stay in one split.
    """
    folders = [part.lower() for part in source.parent.parts]
    labels = {label for label in ("real", "fake") if label in folders}
    if not labels:
        return None
    if len(labels) == 2:
        raise ValueError("below a folder called real and one called fake at once")
    label = labels.pop()
    below = PurePosixPath(*source.parts[folders.index(label) + 1 :]).with_suffix("")
    return {
        "dataset": "plain",
        "label": label,
        "method": "original" if label == "real" else "plain",
        "compression": "",
        "identities": below.as_posix().lower().replace(";", "_"),
        "prefix": "-".join(["plain", label, *below.parts[:-1]]),
    }


# --- What a video is, by the lists that come with a data set --------------------------------------


class Lists(NamedTuple):
    """What all list files below videos/ say; paths are below videos/."""

    described: dict[PurePosixPath, Description]  # by video, or a dictionary with its `reason`
    folders: set[PurePosixPath]  # that have a list of all their videos
    ffpp_splits: dict[tuple[PurePosixPath, str], str]  # by FaceForensics++ root and identity
    celeb_tests: dict[PurePosixPath, set[str]]  # by Celeb-DF root: the names of its test videos


def describe_dfdc(name: str, entry: dict) -> Description:
    """A video by its entry in DFDC's metadata.json (Dolhansky et al., 2020).

    Names carry no person there, so the identity is the video that a fake was made from.
    """
    label = entry["label"].lower()
    return {
        "dataset": "DFDC",
        "label": label,
        "method": "original" if label == "real" else "DFDC",
        "compression": "",
        "identities": PurePosixPath(entry.get("original") or name).stem.lower(),
        "official_split": entry.get("split") or "",
        "prefix": "dfdc",
    }


def describe_dfdc_preview(name: str, entry: dict) -> Description:
    """A video by its entry in the dataset.json of DFDC's preview set (Dolhansky et al., 2019)."""
    label = entry["label"].lower()
    people = [str(entry[key]) for key in ("target_id", "swapped_id") if entry.get(key) is not None]
    return {
        "dataset": "DFDC-preview",
        "label": label,
        "method": "original" if label == "real" else PurePosixPath(name).parts[0],
        "compression": "",
        "identities": ";".join(people),
        "official_split": entry.get("set") or "",
        "prefix": "dfdcpreview",
    }


def join_entries(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A dictionary of the pairs; a name that comes again with another entry gets None."""
    entries = {}
    for name, entry in pairs:
        entries[name] = entry if entries.get(name, entry) == entry else None
    return entries


def read_json_object(path: Path) -> dict:
    """Raises: ValueError if the file holds no JSON object."""
    content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=join_entries)
    if not isinstance(content, dict):
        raise ValueError("a JSON object of file names is expected")
    return content


def read_labels_csv(path: Path) -> dict:
    """The labels.csv of DFDC's test set (filename,label; 1 is fake), as metadata.json has it."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False, usecols=["filename", "label"])
    labels = table["label"].map({"0": "REAL", "1": "FAKE"}).fillna("")
    entries = ({"label": label, "split": "test"} for label in labels)
    return join_entries(zip(table["filename"], entries, strict=True))


def read_split_list(path: Path) -> set[str]:
    """The numbers in a list of FaceForensics++, which holds pairs: [["071", "054"], ...].

    Raises: ValueError if it holds anything else.
    """
    pairs = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(pairs, list) or not all(isinstance(pair, list) for pair in pairs):
        raise ValueError("a JSON list of pairs is expected")
    people = [person for pair in pairs for person in pair]
    if not all(isinstance(person, str) for person in people):
        raise ValueError("a pair of it is not of two texts")
    return set(people)


def described_by_list(
    entries: dict, describe: Callable[[str, dict], Description]
) -> dict[str, Description]:
    """What a list says of each video that it names; `reason` where it says nothing usable."""
    described = {}
    for name, entry in entries.items():
        try:
            description = describe(name, entry)
            if description["label"] not in ("real", "fake"):
                raise ValueError
            "".join(description.values()).encode()  # each must be text that can be written down
            described[name] = description
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            reason = "its entry in the list has no label REAL or FAKE, or it has several entries"
            described[name] = {"reason": reason}
        path = PurePosixPath(name)
        if not path.name or path.is_absolute() or ".." in path.parts:
            described[name] = {"reason": "named by a list that may not: it is not below its folder"}
    return described


def read_lists(
    videos_dir: Path, list_paths: list[PurePosixPath], sources: list[PurePosixPath]
) -> tuple[Lists, dict[PurePosixPath, str]]:
    """Read every list file; returns what they say, and the unreadable ones with the reason."""
    lists, unreadable = Lists({}, set(), {}, {}), {}
    for path in list_paths:
        file, folder, name = videos_dir / path, path.parent, path.name.lower()
        try:
            if fault := find_fault(file):
                raise ValueError(fault)
            if file.stat().st_size > LARGEST_LIST:
                raise ValueError(f"it is larger than {LARGEST_LIST:,} bytes")
            if name == "list_of_testing_videos.txt":  # lines such as: 1 YouTube-real/00170.mp4
                lines = file.read_text(encoding="utf-8-sig").split("\n")
                tests = {line.split()[1].lower() for line in lines if line.strip()}
                lists.celeb_tests[folder] = tests
            elif name in ("train.json", "val.json", "test.json"):
                roots = {folder}
                if folder.name == "splits":
                    roots |= {folder.parent, folder.parent.parent}
                people = read_split_list(file)
                split_of = {(root, person): name[:-5] for root in roots for person in people}
                lists.ffpp_splits.update(split_of)
            else:
                entries = read_labels_csv(file) if name == "labels.csv" else read_json_object(file)
                describe = describe_dfdc_preview if name == "dataset.json" else describe_dfdc
                if name == "labels.csv":  # It lies beside its videos, or beside their folder.
                    below = {s.name: s.parent.name for s in sources if s.parent.parent == folder}
                    entries = {
                        f"{below[video]}/{video}" if video in below else video: entry
                        for video, entry in entries.items()
                    }
                for video, description in described_by_list(entries, describe).items():
                    lists.described[folder / video] = description
                    if folder in (folder / video).parents:
                        lists.folders.add((folder / video).parent)
        except (ValueError, LookupError, TypeError, RecursionError, OSError) as error:
            reason = " ".join(str(error).split())
            unreadable[path] = f"not readable as the list that its name says: {reason}"
    return lists, unreadable


def official_split(source: PurePosixPath, video: Description, lists: Lists) -> str:
    """train, val or test as the data set publishes it; empty where there is no such list."""
    if video["dataset"] == "FaceForensics++":
        root = next(p.parent for p in source.parents if p.name.lower().endswith("_sequences"))
        return lists.ffpp_splits.get((root, video["identities"].split(";")[0]), "")
    if video["dataset"] == "Celeb-DF":
        folder = next(p for p in source.parents if re.match("(celeb|youtube)-", p.name.lower()))
        tests = lists.celeb_tests.get(folder.parent, set())
        in_test = f"{folder.name}/{source.name}".lower() in tests
        return ("test" if in_test else "train") if tests else ""
    published = video.get("official_split", "").lower()
    return {"train": "train", "validation": "val", "val": "val", "test": "test"}.get(published, "")


# --- The catalogue --------------------------------------------------------------------------------


def find_files(
    videos_dir: Path,
) -> tuple[list[PurePosixPath], list[PurePosixPath], dict[PurePosixPath, str]]:
    """Walk through videos/, links included; a folder that a link leads back to is seen once.

    Returns: videos (files, and folders of numbered stills), lists, and what is neither or cannot
    be read, with the reason; as paths below videos/, sorted, so that the order on the disk changes
    nothing.
    """
    videos, lists, left_out, seen = [], [], {}, set()

    def leave_out(error: OSError) -> None:
        folder = Path(error.filename).relative_to(videos_dir)
        left_out[PurePosixPath(folder.as_posix())] = f"cannot be read: {error.strerror}"

    for folder, subfolders, names in os.walk(videos_dir, onerror=leave_out, followlinks=True):
        # Links last: a folder is then known by its own name, and not by a link's beside it.
        subfolders.sort(key=lambda name: (Path(folder, name).is_symlink(), name))
        below = PurePosixPath(Path(folder).relative_to(videos_dir).as_posix())
        if (real_folder := os.path.realpath(folder)) in seen:
            subfolders.clear()
            left_out[below] = "a link to a folder that was seen already"
            continue
        seen.add(real_folder)
        names = [name for name in names if not name.startswith(".")]
        if names and all(re.fullmatch(r"\d{3,}(\.jpe?g|\.png)?", n.lower()) for n in names):
            videos.append(below)
            continue
        for name in names:
            suffix = PurePosixPath(name).suffix.lower()
            if suffix in VIDEO_SUFFIXES:
                videos.append(below / name)
            elif name.lower() in DESCRIBING_LISTS + SPLIT_LISTS:
                lists.append(below / name)
            elif suffix not in COMPANION_SUFFIXES:
                left_out[below / name] = f"not a video ({' '.join(VIDEO_SUFFIXES)})"
    return sorted(videos), sorted(lists), left_out


def list_files(path: Path) -> list[Path]:
    """The file itself, or the stills in a folder of them, in order."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if not file.name.startswith("."))


def find_fault(path: Path) -> str:
    """Why a file, or a still in a folder of them, cannot be read; empty if it can be opened."""
    try:
        for file in list_files(path):
            if not stat.S_ISREG(file.stat().st_mode):
                return "not a plain file"  # Opening a pipe would wait for ever.
            if not os.access(file, os.R_OK):
                return "cannot be read: no permission"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""


def as_text(path: PurePosixPath) -> str:
    """A path that can be written to a table: bytes that are no UTF-8 are spelt out."""
    return path.as_posix().encode("utf-8", "backslashreplace").decode()


def describe(source: PurePosixPath, lists: Lists) -> Description:
    """What a video is. Raises: ValueError with the reason if that cannot be told."""
    if as_text(source) != source.as_posix():
        raise ValueError("its name is not text (UTF-8): rename it")
    if re.search("manipulated_sequences/.*masks/", source.as_posix(), re.IGNORECASE):
        raise ValueError("a mask of FaceForensics++, not a video of a face")
    video = lists.described.get(source) or describe_by_name(source)
    if video is None and not lists.folders.isdisjoint(source.parents):
        raise ValueError("the list of its folder (metadata.json or the like) does not name it")
    video = video or describe_by_plain_folder(source)
    if video is None:
        raise ValueError("fits no data set's layout, and is in no folder called real or fake")
    if "reason" in video:
        raise ValueError(video["reason"])
    return video | {"official_split": official_split(source, video, lists)}


def name_videos(catalogue: pd.DataFrame) -> pd.Series:
    """A video_id for each row: of letters, digits, _ . and -, unique, at most 89 characters long.

    It is a file name on every system, and never one of an unfinished folder (.partial).

    Names that would be cut, or be the same but for upper and lower case, get a piece of their
    path's SHA-1, so that an id depends on no other video's order.
    """
    stems = catalogue["source"].map(lambda source: PurePosixPath(source).stem)
    names = (catalogue["prefix"] + "-" + stems).str.replace(r"[^A-Za-z0-9_.-]", "_", regex=True)
    names = names.str.rstrip(".").str.replace(r"\.(?=partial$)", "_", case=False, regex=True)
    unclear = names.str.lower().duplicated(keep=False) | (names.str.len() > 80)
    hashes = catalogue["source"].map(lambda source: sha1(os.fsencode(source)).hexdigest()[:8])
    return names.mask(unclear, names.str[:80] + "-" + hashes)


def make_catalogue(videos_dir: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Find and describe the videos.

    Returns: one row a video (video_id, source, the columns of DESCRIPTION), and one row for each
    file that is left out (path, reason).
    Raises: FileNotFoundError or ValueError if there is no folder, or no video to convert in it.
    """
    if not videos_dir.is_dir():
        raise FileNotFoundError(
            f"There is no folder {videos_dir}: put your videos there, give another with "
            "--videos-dir, or make practice videos with 00-make-sample-videos.py."
        )
    sources, list_paths, left_out = find_files(videos_dir)
    lists, unreadable = read_lists(videos_dir, list_paths, sources)
    left_out |= unreadable
    rows = []
    for source in sources:
        try:
            if fault := find_fault(videos_dir / source):
                raise ValueError(fault)
            rows.append({"source": source.as_posix()} | describe(source, lists))
        except ValueError as error:
            left_out[source] = str(error)
    for path in set(lists.described) - set(sources):
        left_out[path] = lists.described[path].get("reason", "named by a list, but not there")
    left_out = pd.DataFrame(
        sorted((as_text(path), reason) for path, reason in left_out.items()),
        columns=["path", "reason"],
    )
    if not rows:
        print_left_out(left_out)
        raise ValueError(
            f"No video to convert was found in {videos_dir}: it should hold a data set as it was "
            "unpacked, or videos in folders called real and fake."
        )
    catalogue = pd.DataFrame(rows)
    catalogue["video_id"] = name_videos(catalogue)
    return catalogue[["video_id", "source", *DESCRIPTION]].sort_values("video_id"), left_out


# --- Conversion -----------------------------------------------------------------------------------


class Stills:
    """A folder of numbered stills, read as cv2.VideoCapture reads a video, at VidTIMIT's 25 fps."""

    def __init__(self, folder: Path) -> None:
        self.paths = list_files(folder)
        self.position = -1

    def grab(self) -> bool:
        self.position += 1
        return self.position < len(self.paths)

    def retrieve(self) -> tuple[bool, np.ndarray | None]:
        try:
            data = np.frombuffer(self.paths[self.position].read_bytes(), np.uint8)
        except OSError:  # It is no fault of the frames' disk, which would end the run.
            return False, None
        frame = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
        return frame is not None, frame

    def get(self, what: int) -> float:
        return {cv2.CAP_PROP_POS_MSEC: self.position * 40.0}.get(what, len(self.paths))


def open_video(path: Path) -> cv2.VideoCapture | Stills:
    """Open a video for reading one frame after another, turned as its rotation flag says.

    Raises: ValueError if OpenCV finds no video stream in it that it can decode.
    """
    if path.is_dir():
        return Stills(path)
    # One decoding thread: the processes side by side use the other cores. An absolute path: FFmpeg
    # would take a name such as http:clip.mp4 for an address.
    video = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    if not video.isOpened():
        raise ValueError("does not open as a video")
    video.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    return video


def grab_frames(video: cv2.VideoCapture | Stills) -> Iterator[tuple[int, float]]:
    """Step through a video without converting its frames: yields each one's index and seconds.

    Where the time stamps stand still, run back or pass 10 days, a frame counts as 1/25 s.
    """
    index, seconds = 0, -1 / 25
    while video.grab():
        stamp = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
        seconds = stamp if seconds < stamp < 864_000 else seconds + 1 / 25
        yield index, seconds
        index += 1


def choose_evenly(total: int, wanted: int) -> set[int]:
    """The middle of each of `wanted` equal parts of a video of `total` frames; all if fewer."""
    wanted = min(wanted, total)
    return {(2 * part + 1) * total // (2 * wanted) for part in range(wanted)}


def read_frames(
    video: cv2.VideoCapture | Stills,
    frames_per_second: float | None,
    chosen: set[int] | None,
) -> Iterator[tuple[int, float, bool, np.ndarray | None]]:
    """Step through a video and convert only the frames to keep.

    Yields for every frame: its index in the video, its time in seconds, whether it is to be
    kept, and if so the BGR image (uint8, height x width x 3), None if it does not decode.
    """
    due = 0.0
    for index, seconds in grab_frames(video):
        wanted = index in chosen if chosen is not None else True
        if frames_per_second:
            wanted = seconds > due - 1e-6
        if wanted and frames_per_second:
            # The next tick of the clock that lies behind this frame: a video with fewer frames a
            # second than asked for gives all it has, and a gap in it is not made up for.
            due = (math.floor(seconds * frames_per_second + 1e-6) + 1) / frames_per_second
        yield index, seconds, wanted, video.retrieve()[1] if wanted else None


def resize_by_width(frame: np.ndarray) -> np.ndarray:
    """The recipe's rule, which brings faces to a similar size; works on any uint8 image.

    Width under 300 px 2x, 300 to 1000 1x, over 1000 to 1900 0.5x, over 1900 0.33x, cut to whole
    pixels. INTER_CUBIC to enlarge, INTER_AREA to shrink: it averages, so nothing aliases.
    """
    height, width = frame.shape[:2]
    factor = 2 if width < 300 else 1 if width <= 1000 else 0.5 if width <= 1900 else 0.33
    if factor == 1:
        return frame
    size = max(1, int(width * factor)), max(1, int(height * factor))
    return cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA)


def write_png(image: np.ndarray, path: Path, compression: int) -> None:
    """Write a frame, uint8 (height, width, 3) BGR, without loss.

    Each row of pixels is stored as its difference from the one above. OpenCV by itself tries five
    kinds of difference for each row, which takes 1.6 times as long for files 2 % smaller.
    """
    settings = [cv2.IMWRITE_PNG_COMPRESSION, compression]
    settings += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
    _, png = cv2.imencode(".png", image, settings)
    path.write_bytes(png)


def write_json(content: dict, path: Path) -> None:
    """Write a JSON file whole or not at all: to a temporary name beside it, then renamed."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV table whole or not at all: to a temporary name beside it, then renamed."""
    partial = path.with_name(path.name + ".partial")
    table.to_csv(partial, index=False)
    partial.replace(path)


def partial_folder(target: Path) -> Path:
    """Where the files of a video are until all of them are there, or that are to be deleted."""
    return target.with_name(target.name.removesuffix(".partial") + ".partial")


def delete_folder(folder: Path) -> None:
    """Delete a folder; where that is broken off, no rest of it bears the name of a whole one."""
    partial = partial_folder(folder)
    if folder != partial:
        shutil.rmtree(partial, ignore_errors=True)
        folder.rename(partial)
    shutil.rmtree(partial)


def convert_video(
    video_path: Path,
    target: Path,
    checkpoint: dict,
    frames_per_second: float | None,
    frames_per_video: int | None,
    png_compression: int,
) -> dict:
    """Write the frames of one video into the folder `target`, which appears when all are there.

    Returns: the columns of CONVERSION; they also go into target/video.json with `checkpoint`.
    status is ok, partial (some frames could not be had) or failed (none could); reason says why.
    Raises: OSError if the frames cannot be written. What is wrong with the video goes into the row.
    """
    partial = partial_folder(target)
    partial.mkdir()
    row = {"width": "", "height": "", "fps": "", "frames": 0, "status": "ok", "reason": ""}
    first = last = None
    grabbed = undecoded = 0
    claimed = 0.0
    try:
        chosen = None
        if frames_per_video:
            total = sum(1 for _ in grab_frames(open_video(video_path)))
            chosen = choose_evenly(total, frames_per_video)
        video = open_video(video_path)
        claimed = video.get(cv2.CAP_PROP_FRAME_COUNT)
        for index, seconds, wanted, frame in read_frames(video, frames_per_second, chosen):
            first, last, grabbed = seconds if first is None else first, seconds, index + 1
            if frame is None:
                undecoded += wanted
                continue
            if row["frames"] == 0:
                row |= {"width": frame.shape[1], "height": frame.shape[0]}
            image = resize_by_width(frame)
            write_png(image, partial / f"{target.name}-{index:06d}.png", png_compression)
            row["frames"] += 1
        if undecoded:
            row |= {"status": "partial", "reason": f"{undecoded:,} frames do not decode"}
        elif grabbed < 0.98 * claimed - 2:
            reason = f"ends after {grabbed:,} of the {claimed:,.0f} frames that it claims"
            row |= {"status": "partial", "reason": reason}
    except (ValueError, ArithmeticError, MemoryError, cv2.error) as error:
        row |= {"status": "partial", "reason": " ".join(str(error).split()) or "too large"}
    if row["frames"] == 0:
        row |= {"status": "failed", "reason": row["reason"] or "no frame of it decodes"}
    if grabbed > 1:
        row["fps"] = round((grabbed - 1) / (last - first), 3)
    write_json(checkpoint | {"conversion": row}, partial / "video.json")
    partial.rename(target)
    return row


def make_checkpoint(files: list[Path], settings: dict) -> dict:
    """What a result depends on: if none of it has changed, it is not made again."""
    stats = [file.stat() for file in files]
    return {
        "settings": settings,
        "files": len(stats),
        "bytes": sum(stat.st_size for stat in stats),
        "modified_ns": max((stat.st_mtime_ns for stat in stats), default=0),
    }


def finished_conversion(target: Path, checkpoint: dict) -> dict | None:
    """The row of a video that an earlier run finished from the same file with the same settings."""
    try:
        earlier = json.loads((target / "video.json").read_text(encoding="utf-8"))
        row = earlier.pop("conversion")
        saved = sum(1 for _ in target.glob("*.png"))
        whole = earlier == checkpoint and list(row) == CONVERSION and row["frames"] == saved
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return row if whole else None


# --- The run --------------------------------------------------------------------------------------


def lock_folder(folder: Path) -> filelock.AcquireReturnProxy:
    """Hold a folder for this run alone, until the `with` ends or the process dies, however it dies.

    Raises:
        ValueError: another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return filelock.FileLock(folder / ".lock").acquire(timeout=0)
    except filelock.Timeout as error:
        raise ValueError(
            f"{folder}: another run is writing to it; wait for its end, or name another folder."
        ) from error


def end_with_main() -> None:
    """Let a worker end when the main process was killed; it would wait for work for ever."""

    def wait_for_main() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait_for_main, daemon=True).start()


@contextmanager
def hidden_from_ctrl_c() -> Iterator[None]:
    """The processes that are started in here do not get Ctrl-C: the main process ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # as on Windows
        yield
        return
    resource_tracker.ensure_running()  # Started by the first process, it would undo the next line.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def start_worker() -> None:
    """One process converts one video with one thread; decoders' own messages would hide the bar."""
    end_with_main()
    cv2.setNumThreads(1)
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", f"format_whitelist;{CONTAINERS}")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def check_own_folders(catalogue: pd.DataFrame, frames_dir: Path) -> None:
    """Raises: ValueError if a folder that a video is to get was not made by this script."""
    for target in (frames_dir / video_id for video_id in catalogue["video_id"]):
        if target.exists() and not (target / "video.json").is_file():
            raise ValueError(
                f"{target} was not made by this script (it has no video.json): move it away, or "
                "choose another folder with --frames-dir."
            )


def delete_outdated(frames_dir: Path, done: Iterable[str]) -> None:
    """Delete what is unfinished, of another video or setting, or of a video that is gone."""
    for folder in [path for path in frames_dir.iterdir() if path.name not in done]:
        if (folder.suffix == ".partial" and folder.is_dir()) or (folder / "video.json").is_file():
            delete_folder(folder)


def row_of(future: Future[dict], seconds_per_video: float | None) -> dict:
    """The row of a video; if its process died, or was ended at the limit of time, one that says so.

    That video gets no folder, so that the next run tries it again.
    """
    try:
        return future.result()
    except TimeoutError:
        reason = f"given up after {seconds_per_video:,} seconds (--seconds-per-video)"
    except pebble.ProcessExpired as error:
        reason = f"the process that read it crashed (exit code {error.exitcode})"
    row = dict.fromkeys(CONVERSION, "")
    return row | {"frames": 0, "status": "failed", "reason": f"{reason}; the next run tries again"}


def convert_videos(
    catalogue: pd.DataFrame,
    videos_dir: Path,
    frames_dir: Path,
    settings: dict,
    seconds_per_video: float | None,
    workers: int,
) -> pd.DataFrame:
    """Convert all videos of the catalogue, several side by side, but for those already done.

    Returns: the columns of CONVERSION, one row a video, by video_id.
    Raises: OSError if the frames cannot be written.
    """
    conversions, jobs = {}, []
    for video_id, source in zip(catalogue["video_id"], catalogue["source"], strict=True):
        checkpoint = make_checkpoint(list_files(videos_dir / source), settings)
        earlier = finished_conversion(frames_dir / video_id, checkpoint)
        if earlier is None:
            jobs.append((checkpoint["bytes"], video_id, source, checkpoint))
        else:
            conversions[video_id] = earlier
    if conversions:
        print(f"{len(conversions):,} of {len(catalogue):,} videos were done", flush=True)
    delete_outdated(frames_dir, conversions)
    jobs.sort()  # The longest is taken first, so that no process ends with one all alone.
    workers = max(1, min(workers, len(jobs)))
    spawn = multiprocessing.get_context("spawn")
    # Unlike the standard library's, this pool outlives a worker that crashes. It looks at all its
    # tasks ten times a second, so it gets a few at a time.
    pool = pebble.ProcessPool(workers, initializer=start_worker, context=spawn)
    with pool, tqdm(total=len(jobs), unit="video", disable=not jobs) as bar:
        try:
            with hidden_from_ctrl_c():
                _ = pool.active  # To ask starts the processes.
            running = {}
            while jobs or running:
                while jobs and len(running) < 4 * workers:
                    _, video_id, source, checkpoint = jobs.pop()
                    task = (videos_dir / source, frames_dir / video_id, checkpoint)
                    future = pool.schedule(convert_video, task, settings, seconds_per_video)
                    running[future] = video_id
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    conversions[running.pop(future)] = row_of(future, seconds_per_video)
                    bar.update()
        except RuntimeError as error:
            raise OSError(f"the processes that convert the videos ended: {error}") from error
        finally:
            pool.stop()
            pool.join()
            for folder in frames_dir.glob("*.partial"):
                shutil.rmtree(folder, ignore_errors=True)
    return pd.DataFrame.from_dict(conversions, orient="index", columns=CONVERSION)


def printable(line: str) -> str:
    """A line as the terminal can show it: line ends, and letters that it lacks, are spelt out."""
    line = line if line.isprintable() else ascii(line)[1:-1]
    encoding = sys.stdout.encoding or "utf-8"
    return line.encode(encoding, "backslashreplace").decode(encoding)


def print_left_out(left_out: pd.DataFrame) -> None:
    """Each reason once, with the number of files and the first of them."""
    for reason, paths in left_out.groupby("reason")["path"]:
        more = f" and {len(paths) - 3:,} more" if len(paths) > 3 else ""
        print(printable(f"left out     {reason}: {', '.join(paths[:3])}{more}"))


def print_summary(table: pd.DataFrame, left_out: pd.DataFrame, frames_dir: Path) -> None:
    counts = table.groupby(["dataset", "label", "method"]).agg(
        videos=("video_id", "size"), frames=("frames", "sum")
    )
    print(counts.to_string(formatters=["{:,}".format] * 2))
    print(f"videos       {len(table):,} ({frames_dir / 'videos.csv'})")
    print(f"frames       {table['frames'].sum():,} ({frames_dir}/<video_id>/)")
    for status in ("partial", "failed"):
        broken = table[table["status"] == status]
        for source, reason in broken[["source", "reason"]].head(10).itertuples(index=False):
            print(printable(f"{status:12} {source}: {reason}"))
        if len(broken) > 10:
            print(f"{status:12} {len(broken) - 10:,} more, see the status column of videos.csv")
    print_left_out(left_out)


def main(
    videos_dir: Path = VIDEOS_DIR,
    frames_dir: Path = FRAMES_DIR,
    frames_per_second: float | None = FRAMES_PER_SECOND,
    frames_per_video: int | None = FRAMES_PER_VIDEO,
    png_compression: int = PNG_COMPRESSION,
    workers: int = WORKERS,
    seconds_per_video: float | None = SECONDS_PER_VIDEO,
) -> pd.DataFrame:
    """Save the frames of the videos as images, and write down what each video is.

    Args:
        videos_dir: The data sets, as they were unpacked.
        frames_dir: Gets one folder a video, and videos.csv.
        frames_per_second: So many frames of each second; None is every frame.
        frames_per_video: So many frames of each video, spread evenly; None is every frame.
        png_compression: 0 (fast, large) to 9 (slow, small); lossless all.
        workers: Videos converted side by side.
        seconds_per_video: A video that takes longer is given up; None is no limit.

    Returns:
        The table videos.csv.

    Raises:
        FileNotFoundError: videos_dir is not there.
        ValueError: It holds no video to convert, a setting makes no sense, or another run is
            writing to frames_dir.
        OSError: frames_dir cannot be written to, such as when the disk is full.
    """
    if frames_per_second is not None and frames_per_video is not None:
        raise ValueError("Give --frames-per-second or --frames-per-video, not both.")
    numbers = frames_per_second, frames_per_video, seconds_per_video
    if not all(number is None or 0 < number < math.inf for number in numbers):
        raise ValueError(
            "--frames-per-second, --frames-per-video and --seconds-per-video must be above 0."
        )
    settings = {
        "frames_per_second": frames_per_second,
        "frames_per_video": frames_per_video,
        "png_compression": png_compression,
    }

    catalogue, left_out = make_catalogue(videos_dir)
    check_own_folders(catalogue, frames_dir)
    with lock_folder(frames_dir):
        (frames_dir / "videos.csv").unlink(missing_ok=True)  # It may name frames that now change.
        try:
            conversions = convert_videos(
                catalogue, videos_dir, frames_dir, settings, seconds_per_video, workers
            )
            table = catalogue.join(conversions, on="video_id")
            write_table(left_out, frames_dir / "left-out.csv")
            write_table(table, frames_dir / "videos.csv")
        except OSError as error:
            raise OSError(
                f"{frames_dir}: stopped by an error ({error}); what is finished is kept, and the "
                "same command goes on once that is mended."
            ) from error
    print_summary(table, left_out, frames_dir)
    if not table["frames"].any():
        raise ValueError(f"Not one frame could be read from the videos in {videos_dir}.")
    return table


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except KeyboardInterrupt:
        print(f"{Path(__file__).name}: stopped; the same command goes on.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
