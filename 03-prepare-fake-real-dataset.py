"""Balance real and fake crops, and split them so that no person is in two splits.

    python 03-prepare-fake-real-dataset.py
    python 03-prepare-fake-real-dataset.py --seed 2
    python 03-prepare-fake-real-dataset.py --split-by official

Reads   faces/faces.csv, frames/videos.csv                the crops, and the labels of their videos
        frames/<video_id>/                                to compare fakes with their originals
Writes  prepared_dataset/{real,fake}/                     an equal number of real and fake crops
        split_dataset/{train,val,test}/{real,fake}/       the same crops, 80:10:10
        split_dataset/crops.csv                           one row per crop, with its split
        split_dataset/bystanders.csv                      faces in fakes that were not swapped
Next    04-train-cnn.py

Frames of one video, a fake and its original, and videos of one person are so similar that a model
trained on one recognizes the other. Videos that share an identity therefore stay together (as a
connected component of the data set's videos), as far as file names and lists give the identities.
A component that is too large for any split is divided by person, and fakes that combine people of
different splits are left out. At the end the script reads the folders on disk and counts people in
two splits, by the table and by the file names. The crops are hard links: editing one in place also
changes it in faces/, unless you use --files copy.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))  # python -P omits this folder
from deepfake_detect import start

start.prepare(__name__)  # Ctrl-C during the imports below ends the run with one sentence

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import splitfolders
from tqdm import tqdm

from deepfake_detect import bystanders, cli, datasets, files, identities, splits
from deepfake_detect.identities import list_people
from deepfake_detect.splits import LABELS, SPLITS

RATIO = cli.Between(1e-6, 1e6)
STEP_1 = "01-convert-video-to-image.py"
STEP_2 = "02-crop-faces-with-mtcnn.py"


@dataclass(frozen=True)
class Settings:
    """Edit a default here, or override it for one run: --seed 2."""

    # folders
    frames_dir: Path = Path("frames")  # videos.csv (labels and identities), and the frames
    faces_dir: Path = Path("faces")  # crops and faces.csv
    prepared_dir: Path = Path("prepared_dataset")  # output: the balanced crops
    split_dir: Path = Path("split_dataset")  # output: the same crops, split
    # split
    split_by: Literal["identity", "official"] = "identity"  # or the published lists, which leak
    split_ratio: Annotated[tuple[float, float, float], RATIO] = (0.8, 0.1, 0.1)  # train, val, test
    dfdc_parts: cli.Count = 10  # keep each part of DFDC in one split if there are this many
    seed: Annotated[int, cli.Between(0)] = 0  # random seed; the same seed gives the same splits
    # crops
    compare: bool = True  # leave out faces of a fake that are unchanged from its original
    # disk
    files: Literal["link", "copy"] = "link"  # link: hard links, or copies where links fail


def main(settings: Settings = Settings()) -> pd.DataFrame:
    """Balance real and fake crops, and split them so that no person is in two splits.

    Returns:
        The crops on disk, one row each: split, folder (the label), video_id, dataset, identities.

    Raises:
        FileNotFoundError: a table of an earlier step is missing
        ValueError: a setting, table or crop is invalid, an identity cannot be trusted, or an output
            folder cannot be replaced
    """
    check_settings(settings)
    how, seed = settings.split_by, settings.seed

    # Assign whole videos to splits first, then balance real and fake crops within each split.
    videos, crops = read_videos_and_crops(settings)
    videos, crops, unchanged, facts = leave_out_bystanders(videos, crops, settings)
    videos["split"] = splits.split_videos(
        videos, how, settings.split_ratio, seed, settings.dfdc_parts
    )
    taken = splits.balance(videos[videos["split"] != ""], seed)
    chosen = splits.choose_crops(crops, videos, taken)
    if empty := [split for split in SPLITS if split not in set(chosen["split"])]:
        raise ValueError(
            f"{settings.faces_dir}: too few separate people or source videos with real and fake "
            f"crops of one data set to fill {empty[0]}/; add videos of at least three."
        )

    # The new folders replace the old ones at the end of this block if it succeeds.
    with (
        files.replacing(settings.prepared_dir, "--prepared-dir", __file__) as new_prepared,
        files.replacing(settings.split_dir, "--split-dir", __file__) as new_split,
    ):
        write_chosen(chosen, settings, new_prepared, new_split)
        write_table(unchanged, new_split / "bystanders.csv")
        on_disk = read_split_folders(new_split, videos)
        people = on_disk.assign(identity=list_people(on_disk)).explode("identity")
        in_two = count_in_two_splits(people)
        if len(on_disk) != len(chosen) or (on_disk["folder"] != on_disk["label"]).any():
            raise ValueError(f"{new_split}: the files on disk do not match the plan; run again.")
        if in_two and how == "identity":
            raise ValueError(f"{new_split}: {in_two:,} people are in two splits; please report it.")

    counts = count_crops(people)
    facts += list_left_out(videos, taken, how)
    facts += [("crops", f"{len(on_disk):,} of {len(crops):,}")]
    facts += [("audit", f"identities in two splits: {in_two:,}, by the table and by file names")]
    print(counts)
    cli.print_facts(settings.split_dir, facts, "python 04-train-cnn.py")
    return on_disk


def check_settings(settings: Settings) -> None:
    """Check the settings.

    Raises:
        ValueError: a number is outside its range, or one output folder is inside the other
    """
    cli.check_ranges(settings)
    one, other = settings.prepared_dir.resolve(), settings.split_dir.resolve()
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise ValueError(
            f"{settings.prepared_dir}, {settings.split_dir}: give two separate folders, "
            "neither inside the other."
        )


# --- The tables of the earlier steps --------------------------------------------------------------


def read_videos_and_crops(settings: Settings) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the videos that have a crop on disk, and their crops, both sorted by video_id.

    Returns:
        videos (the columns of videos.csv and `crops`, their number), and crops (crop, video_id, and
        frame, x, y, width, height as numbers, NaN where the table has no number)

    Raises:
        FileNotFoundError: a table is missing
        ValueError: a table cannot be read, a label has no crops, or an identity cannot be trusted
    """
    columns = ["video_id", "source", "dataset", "label", "method", "identities", "official_split"]
    faces_dir, path = settings.faces_dir, settings.frames_dir / "videos.csv"
    videos = read_table(path, columns, STEP_1, "--frames-dir")
    crops = read_table(faces_dir / "faces.csv", ["crop", "video_id"], STEP_2, "--faces-dir")
    numbers = ["frame", "x", "y", "width", "height"]
    crops = crops.reindex(columns=["crop", "video_id", *numbers])
    crops[numbers] = crops[numbers].apply(pd.to_numeric, errors="coerce")
    videos = videos[videos["label"].isin(LABELS)]
    videos = videos.assign(identities=read_identities(videos, path))

    # A path of another form could lead out of faces/, and its name would not contain the video_id.
    form = r"([A-Za-z0-9_.-]*[A-Za-z0-9_-])/\1-[0-9]{6,12}-[0-9]{2,9}\.png\Z"
    formed = crops["crop"].str.extract("^" + form, expand=False) == crops["video_id"]
    # pathlib's is_file would raise an error for a name that is too long for the disk.
    on_disk = crops["crop"].map(lambda crop: os.path.isfile(faces_dir / crop))  # noqa: PTH113
    on_disk |= ~formed
    known = crops["video_id"].isin(videos["video_id"])
    for left_out, reason in (
        (~formed, "not of the form video_id/video_id-000042-00.png"),
        (~on_disk, "not on disk"),
        (~known, "their video is not listed as real or fake in videos.csv"),
    ):
        if left_out.any():
            first = cli.printable(crops["crop"][left_out].iloc[0])
            print(f"left out: {left_out.sum():,} crops of faces.csv, {reason}: {first}, ...")
    crops = crops[formed & on_disk & known].sort_values("crop", ignore_index=True)
    return count_by_video(videos, crops, faces_dir), crops


def count_by_video(videos: pd.DataFrame, crops: pd.DataFrame, faces_dir: Path) -> pd.DataFrame:
    """Return the videos that have crops, sorted by video_id, with the number of crops in `crops`.

    Raises:
        ValueError: a label has no crops
    """
    counts = crops["video_id"].value_counts().rename("crops")
    videos = videos.drop(columns="crops", errors="ignore").join(counts, on="video_id", how="inner")
    for label in LABELS:
        if label not in set(videos["label"]):
            what = f"there are no crops of {label} videos, and training needs both labels"
            raise ValueError(f"{faces_dir}: {what}; add {label} videos and run 01 and 02 again.")
    return videos.sort_values("video_id", ignore_index=True)


def read_identities(videos: pd.DataFrame, path: Path) -> pd.Series:
    """Return the identities of the videos in normal form.

    Raises:
        ValueError: the table was changed since 01 wrote it, and contradicts the file names
    """
    is_trusted = files.Output(path.parent, "--frames-dir", STEP_1).wrote(path.name)
    restored = identities.normalise(videos, is_trusted)
    if not is_trusted:
        print(f"{path}: changed since {STEP_1} wrote it; checking its identities by file names")
        rows, _ = datasets.read_data_sets(start.PROJECT / "data-sets.toml")
        try:
            identities.check_changed_table(videos.assign(identities=restored), rows)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; delete it and run {STEP_1} again.") from error
    return restored


def read_table(path: Path, columns: list[str], made_by: str, option: str) -> pd.DataFrame:
    """Read a table of an earlier step, all columns as text.

    Raises:
        FileNotFoundError: the table is missing
        ValueError: the file is not a table with these columns
    """
    if not path.is_file():
        what_to_do = f"run {made_by} first, or name another folder with {option}"
        raise FileNotFoundError(f"{path}: the file does not exist; {what_to_do}.")
    try:
        table = files.read_table(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as a table ({error}); run {made_by}.") from error
    if missing := [column for column in columns if column not in table]:
        raise ValueError(f"{path}: the column {missing[0]} is missing; run {made_by} again.")
    twice = table[columns[0]][table[columns[0]].duplicated()]
    if len(twice):
        raise ValueError(f"{path}: {columns[0]} {twice.iloc[0]} occurs twice; run {made_by} again.")
    return table


def leave_out_bystanders(
    videos: pd.DataFrame, crops: pd.DataFrame, settings: Settings
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, list[tuple[str, str]]]:
    """Leave out faces of fakes that are unchanged from the original, see bystanders.py.

    Returns:
        The remaining videos and crops, the table bystanders.csv, and lines for the summary.
    """
    faces = crops.replace([np.inf, -np.inf], np.nan).dropna()
    numbers = ["frame", "x", "y", "width", "height"]
    faces = faces[(faces[numbers].abs() < 2**31).all(axis=1)].astype(dict.fromkeys(numbers, int))
    originals, facts = bystanders.find_originals(videos), []
    if not settings.compare:
        return videos, crops, pd.DataFrame(columns=bystanders.COLUMNS), facts
    unchanged = bystanders.find_bystanders(faces, originals, settings.frames_dir)
    fakes = set(videos["video_id"][videos["label"] == "fake"])
    alone = bystanders.count_without_original(faces, fakes, originals)
    if len(unchanged):
        why = "faces in fakes, unchanged from the original, see bystanders.csv"
        facts += [("left out", f"{len(unchanged):,} {why}")]
    if alone:
        why = "show several faces, and without their original the swapped one is unknown"
        facts += [("note", f"{alone:,} fake videos {why}")]
    crops = crops[~crops["crop"].isin(unchanged["crop"])].reset_index(drop=True)
    return count_by_video(videos, crops, settings.faces_dir), crops, unchanged, facts


# --- The folders --------------------------------------------------------------------------------


def write_chosen(
    chosen: pd.DataFrame, settings: Settings, prepared_dir: Path, split_dir: Path
) -> None:
    """Fill prepared_dir/{real,fake}/ and split_dir/{train,val,test}/{real,fake}/.

    split-folders assigns single crops at random, so frames of one video would be in several splits.
    We therefore call it once per split, with only the crops of that split and a ratio of 1 for it.
    """
    names = chosen["label"] + "/" + chosen["crop"].map(lambda crop: PurePosixPath(crop).name)
    rule = settings.faces_dir / "crop-rule.json"  # how the crops were cut; the model needs it
    for folder, paths in ((prepared_dir, names), (split_dir, chosen["split"] + "/" + names)):
        write_table(chosen.assign(crop=paths), folder / "crops.csv")
        if rule.is_file():
            shutil.copyfile(rule, folder / rule.name)

    waiting = {split: split_dir / "waiting" / split for split in SPLITS}
    for folder in (prepared_dir, *waiting.values()):
        for label in LABELS:
            (folder / label).mkdir(parents=True)
    rows = zip(chosen["crop"], names, chosen["split"], strict=True)
    for crop, name, split in tqdm(rows, "crops prepared", total=len(chosen), unit="crop"):
        write_file(settings.faces_dir / crop, prepared_dir / name, settings.files)
        write_file(prepared_dir / name, waiting[split] / name, settings.files)
    for split, folder in waiting.items():
        ratio = tuple(float(split == other) for other in SPLITS)
        splitfolders.ratio(folder, split_dir, ratio=ratio, move=True)
    shutil.rmtree(split_dir / "waiting")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, without its index."""
    files.write_table(path, table.columns, table.itertuples(index=False))


def write_file(source: Path, target: Path, how: str) -> None:
    """Link or copy a file; copy it if the disk does not support hard links."""
    if how == "link":
        with suppress(OSError):  # a disk without hard links
            return os.link(source, target)
    shutil.copyfile(source, target)


# --- The audit ------------------------------------------------------------------------------------


def read_split_folders(split_dir: Path, videos: pd.DataFrame) -> pd.DataFrame:
    """List the crops in the split folders, one row per crop, with the columns of its video.

    The name of a crop is VIDEO_ID-FRAME-FACE.png.

    Returns:
        split, folder (the label by the folder), video_id, dataset, label, identities
    """
    paths = split_dir.glob("*/*/*.png")
    rows = [(*path.parts[-3:-1], path.stem.rsplit("-", 2)[0]) for path in paths]
    on_disk = pd.DataFrame(rows, columns=["split", "folder", "video_id"])
    columns = videos[["video_id", "dataset", "label", "identities"]]
    return on_disk.merge(columns, on="video_id", how="left")


def count_in_two_splits(people: pd.DataFrame) -> int:
    """Count the people in two splits, by the table and by the file names; return the larger count.

    Args:
        people: one row per person and crop: split, video_id, dataset, identity
    """
    rows, _ = datasets.read_data_sets(start.PROJECT / "data-sets.toml")
    videos = people[["video_id", "dataset", "split"]].drop_duplicates()
    named = videos["video_id"].map(lambda name: sorted(identities.people_of_name(name, rows)))
    named = videos.assign(identity=named).explode("identity").dropna()
    counts = (
        each.groupby(["dataset", "identity"])["split"].nunique() > 1 for each in (people, named)
    )
    return max(int(in_two.sum()) for in_two in counts)


# --- The summary ----------------------------------------------------------------------------------


def count_crops(people: pd.DataFrame) -> str:
    """Return the counts per split as a text table; `people` is as in count_in_two_splits."""
    names = {"index": "crops", "video_id": "videos", "identity": "identities"}
    counts = people.reset_index().groupby(["dataset", "split", "label"])[list(names)].nunique()
    counts = counts.rename(columns=names).reindex(SPLITS, level="split")
    return counts.to_string(formatters=["{:,}".format] * 3)


def list_left_out(videos: pd.DataFrame, taken: pd.Series, split_by: str) -> list[tuple[str, str]]:
    """List the unused videos and crops with the reasons, as lines for the summary."""
    facts = []
    between = videos[videos["split"] == ""]
    why = "with people of two splits" if split_by == "identity" else "not in the official list"
    if len(between):
        facts += [("left out", f"{len(between):,} videos {why} ({between['crops'].sum():,} crops)")]
    used = videos[videos["split"] != ""].set_index("video_id")
    spare = used["crops"].sub(taken, fill_value=0).groupby([used["label"], used["dataset"]]).sum()
    why = {"fake": "to balance them with the real crops", "real": "too few fakes in their split"}
    for (label, dataset), crops in spare[spare > 0].items():
        facts += [("left out", f"{crops:,.0f} {label} crops of {dataset}, {why[label]}")]
    if split_by == "official":
        facts += [("note", "official lists leak most people of Celeb-DF, some of FaceForensics++")]
    elif "DFDC" in set(videos["dataset"]):
        facts += [("note", "DFDC does not name people: only source videos are kept in one split")]
    return facts


if __name__ == "__main__":
    cli.run(main)
