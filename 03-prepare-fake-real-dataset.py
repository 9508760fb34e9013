"""Balance the real and fake crops, and split them so that nobody is in two splits.

    python 03-prepare-fake-real-dataset.py
    python 03-prepare-fake-real-dataset.py --seed 2
    python 03-prepare-fake-real-dataset.py --split-by official

Reads   faces/faces.csv, frames/videos.csv               the crops, and what their videos are
        frames/<video_id>/                                to compare fakes with their originals
Writes  prepared_dataset/{real,fake}/                     as many fake crops as real ones
        split_dataset/{train,val,test}/{real,fake}/       the same crops, 80:10:10
        split_dataset/crops.csv                           one row per crop: where it went
        split_dataset/bystanders.csv                      faces of fakes that were not swapped
Next    04-train-cnn.py

Frames of one video, a fake and the video it was made from, and videos of one person are so alike
that a model which has seen one knows the other. Videos that share an identity therefore stay
together (a connected component of the data set's videos), as far as names and lists give the
identities. A component that no split can hold is divided by person, and the fakes between people of
different splits are left out. At the end the folders on disk are read, and people in two splits are
counted, by the table and by the names of the files. The crops are hard links: one edited in place
changes in faces/ too, unless --files copy.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))  # python -P leaves it out
from deepfake_detect import start

start.prepare(__name__)  # Ctrl-C while the rest is loading ends it with a sentence

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
    frames_dir: Path = Path("frames")  # its videos.csv has the labels and the identities
    faces_dir: Path = Path("faces")  # the crops
    prepared_dir: Path = Path("prepared_dataset")  # gets the balanced crops, flat
    split_dir: Path = Path("split_dataset")  # gets the same crops, split
    # split
    split_by: Literal["identity", "official"] = "identity"  # official: published lists, which leak
    split_ratio: Annotated[tuple[float, float, float], RATIO] = (0.8, 0.1, 0.1)  # of the real crops
    dfdc_parts: cli.Count = 10  # parts of DFDC, at least, for each part to stay whole
    seed: Annotated[int, cli.Between(0)] = 0  # the same videos and seed give the same splits
    # crops
    compare: bool = True  # leave out the faces of a fake that are as in its original
    # disk
    files: Literal["link", "copy"] = "link"  # link: no disk space, or a copy where links fail


def main(settings: Settings = Settings()) -> pd.DataFrame:
    """Balance the real and fake crops, and split them so that nobody is in two splits.

    Returns:
        The crops on disk, one row each: split, folder (the label), video_id, dataset, identities.

    Raises:
        FileNotFoundError: a table of an earlier step is not there
        ValueError: the numbers, tables or crops given do not do, an identity cannot be trusted, or
            a folder cannot be replaced
    """
    check_settings(settings)
    how, seed = settings.split_by, settings.seed

    # Whole videos are dealt to the splits first; then each split keeps as many fakes as reals.
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
            f"crops of one data set to fill {empty[0]}/; add videos for three or more."
        )

    # The new folders take the place of the old ones at the end of this block, if all went well.
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
            raise ValueError(f"{new_split}: this is not what was planned; run again.")
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
        ValueError: a number is outside its range, or one folder is inside the other
    """
    cli.check_ranges(settings)
    one, other = settings.prepared_dir.resolve(), settings.split_dir.resolve()
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise ValueError(
            f"{settings.prepared_dir}, {settings.split_dir}: give two folders, neither in the "
            "other."
        )


# --- The tables of the earlier steps --------------------------------------------------------------


def read_videos_and_crops(settings: Settings) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the videos with at least one crop on disk, and those crops; both sorted by video_id.

    Returns:
        videos (the columns of videos.csv), crops (crop, video_id; frame, x, y, width and height as
        numbers, NaN where the table has none)

    Raises:
        FileNotFoundError: a table is not there
        ValueError: a table is not readable, one of the labels has no crop, or an identity cannot
            be trusted
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

    # A path of another form could lead out of faces/, and its name would not give the video.
    form = r"([A-Za-z0-9_.-]*[A-Za-z0-9_-])/\1-[0-9]{6,12}-[0-9]{2,9}\.png\Z"
    formed = crops["crop"].str.extract("^" + form, expand=False) == crops["video_id"]
    # Not pathlib's is_file, which raises an error for a name longer than the disk takes.
    on_disk = crops["crop"].map(lambda crop: os.path.isfile(faces_dir / crop))  # noqa: PTH113
    on_disk |= ~formed
    known = crops["video_id"].isin(videos["video_id"])
    for left_out, reason in (
        (~formed, "not of the form video_id/video_id-000042-00.png"),
        (~on_disk, "not on disk"),
        (~known, "videos.csv does not list their video as real or fake"),
    ):
        if left_out.any():
            first = cli.printable(crops["crop"][left_out].iloc[0])
            print(f"left out: {left_out.sum():,} crops of faces.csv, {reason}: {first}, ...")
    crops = crops[formed & on_disk & known].sort_values("crop", ignore_index=True)
    return count_by_video(videos, crops, faces_dir), crops


def count_by_video(videos: pd.DataFrame, crops: pd.DataFrame, faces_dir: Path) -> pd.DataFrame:
    """Return the videos that have crops, sorted by video_id, with their number: `crops`.

    Raises:
        ValueError: one of the labels has no crop
    """
    counts = crops["video_id"].value_counts().rename("crops")
    videos = videos.drop(columns="crops", errors="ignore").join(counts, on="video_id", how="inner")
    for label in LABELS:
        if label not in set(videos["label"]):
            what = f"there is no crop of a {label} video, and training needs both labels"
            raise ValueError(f"{faces_dir}: {what}; add {label} videos and run 01 and 02 again.")
    return videos.sort_values("video_id", ignore_index=True)


def read_identities(videos: pd.DataFrame, path: Path) -> pd.Series:
    """Return the identities of the videos in one spelling.

    Raises:
        ValueError: the table is not as 01 wrote it, and one contradicts the names of the files
    """
    is_trusted = files.Output(path.parent, "--frames-dir", STEP_1).wrote(path.name)
    restored = identities.normalise(videos, is_trusted)
    if not is_trusted:
        print(f"{path}: it is not as {STEP_1} wrote it; its identities are compared with the names")
        rows, _ = datasets.read_data_sets(start.PROJECT / "data-sets.toml")
        try:
            identities.check_changed_table(videos.assign(identities=restored), rows)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; delete it and run {STEP_1} again.") from error
    return restored


def read_table(path: Path, columns: list[str], made_by: str, option: str) -> pd.DataFrame:
    """Read a table of an earlier step, all columns as text.

    Raises:
        FileNotFoundError: the table is not there
        ValueError: the file is not that table
    """
    if not path.is_file():
        what_to_do = f"run {made_by} first, or name another with {option}"
        raise FileNotFoundError(f"{path}: there is no such file; {what_to_do}.")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
        table = table.fillna("")  # what short rows lack
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as a table ({error}); run {made_by}.") from error
    if missing := [column for column in columns if column not in table]:
        raise ValueError(f"{path}: it has no column {missing[0]}; run {made_by} again.")
    twice = table[columns[0]][table[columns[0]].duplicated()]
    if len(twice):
        raise ValueError(f"{path}: it has {columns[0]} {twice.iloc[0]} twice; run {made_by} again.")
    return table


def leave_out_bystanders(
    videos: pd.DataFrame, crops: pd.DataFrame, settings: Settings
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, list[tuple[str, str]]]:
    """Leave out the faces of fakes that are as in the original, see bystanders.py.

    Returns:
        The videos and crops without them, the table bystanders.csv, and lines for the summary.
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
        why = "faces of fakes, the same as in the original, see bystanders.csv"
        facts += [("left out", f"{len(unchanged):,} {why}")]
    if alone:
        why = "have several faces in a frame, and no original here to see which one was swapped"
        facts += [("note", f"{alone:,} fake videos {why}")]
    crops = crops[~crops["crop"].isin(unchanged["crop"])].reset_index(drop=True)
    return count_by_video(videos, crops, settings.faces_dir), crops, unchanged, facts


# --- The folders --------------------------------------------------------------------------------


def write_chosen(
    chosen: pd.DataFrame, settings: Settings, prepared_dir: Path, split_dir: Path
) -> None:
    """Fill prepared_dir/{real,fake}/ and split_dir/{train,val,test}/{real,fake}/.

    split-folders draws single crops at random, and frames of one video would fall on both sides. It
    is therefore given the crops of one split after another, each time with the whole ratio for it.
    """
    names = chosen["label"] + "/" + chosen["crop"].map(lambda crop: PurePosixPath(crop).name)
    rule = settings.faces_dir / "crop-rule.json"  # how the crops were cut, which a model must know
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
    """Put a file at a second place: as a hard link where that is wanted and can be, or a copy."""
    if how == "link":
        with suppress(OSError):  # a disk without hard links
            return os.link(source, target)
    shutil.copyfile(source, target)


# --- The audit ------------------------------------------------------------------------------------


def read_split_folders(split_dir: Path, videos: pd.DataFrame) -> pd.DataFrame:
    """Read what the split folders hold: a row per crop, with its video's columns.

    A crop's file name is its video_id and two more fields, frame and face.

    Returns:
        split, folder (the label by its place), video_id, dataset, label, identities
    """
    paths = split_dir.glob("*/*/*.png")
    rows = [(*path.parts[-3:-1], path.stem.rsplit("-", 2)[0]) for path in paths]
    on_disk = pd.DataFrame(rows, columns=["split", "folder", "video_id"])
    columns = videos[["video_id", "dataset", "label", "identities"]]
    return on_disk.merge(columns, on="video_id", how="left")


def count_in_two_splits(people: pd.DataFrame) -> int:
    """Count the people in two splits: by the table's identities, or by those in the file names.

    Args:
        people: a row for each person of each crop: split, video_id, dataset, identity
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
    """Count what each split got, as a table in text (`people`: see count_in_two_splits)."""
    names = {"index": "crops", "video_id": "videos", "identity": "identities"}
    counts = people.reset_index().groupby(["dataset", "split", "label"])[list(names)].nunique()
    counts = counts.rename(columns=names).reindex(SPLITS, level="split")
    return counts.to_string(formatters=["{:,}".format] * 3)


def list_left_out(videos: pd.DataFrame, taken: pd.Series, split_by: str) -> list[tuple[str, str]]:
    """List the videos and crops that are not used, and why, as lines for the summary."""
    facts = []
    between = videos[videos["split"] == ""]
    why = "between people of two splits" if split_by == "identity" else "not in the official list"
    if len(between):
        facts += [("left out", f"{len(between):,} videos {why} ({between['crops'].sum():,} crops)")]
    used = videos[videos["split"] != ""].set_index("video_id")
    spare = used["crops"].sub(taken, fill_value=0).groupby([used["label"], used["dataset"]]).sum()
    why = {"fake": "to be as many as the reals", "real": "too few fakes in their split"}
    for (label, dataset), crops in spare[spare > 0].items():
        facts += [("left out", f"{crops:,.0f} {label} crops of {dataset}, {why[label]}")]
    if split_by == "official":
        facts += [("note", "official lists leak most people of Celeb-DF, some of FaceForensics++")]
    elif "DFDC" in set(videos["dataset"]):
        facts += [("note", "DFDC names no people: they may recur, only source videos do not")]
    return facts


if __name__ == "__main__":
    cli.run(main)
