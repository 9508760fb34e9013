"""Balance the real and fake crops, and split them so that no person is seen on two sides.

    python 03-prepare-fake-real-dataset.py
    python 03-prepare-fake-real-dataset.py --seed 2
    python 03-prepare-fake-real-dataset.py --split-by official

Reads   faces/faces.csv, frames/videos.csv               the crops, and what their videos are
Writes  prepared_dataset/{real,fake}/                     as many fake crops as real ones
        split_dataset/{train,val,test}/{real,fake}/       the same crops, 80:10:10
        split_dataset/crops.csv                           one row a crop: where it went
Next    04-train-cnn.py

Frames of one video, a fake and the video it was made from, and videos of one person are so alike
that a model which has seen one knows the other. What shares an identity therefore stays together
(a connected component of the data set's videos), as far as file names and lists tell identities.
A component that no split can hold is divided by person, and the fakes between people of different
splits are left out. The last act is to read the folders on disk and to count who is in two splits.
"""

import os
import shutil
import sys
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Literal

import filelock
import numpy as np
import pandas as pd
import splitfolders
import tyro
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

# --------------------------------------------------------------------------------------------------
# folders
FRAMES_DIR = Path("frames")  # its videos.csv has the labels and the identities
FACES_DIR = Path("faces")  # the crops
PREPARED_DIR = Path("prepared_dataset")  # gets the balanced crops, flat
SPLIT_DIR = Path("split_dataset")  # gets the same crops, split
# split
SPLIT_BY = "identity"  # or "official": the lists that the data sets publish, which may leak people
SPLIT_RATIO = (0.8, 0.1, 0.1)  # training, validation and test, in real crops of each data set
SEED = 0  # same videos, same seed: same crops in the same splits
# disk
FILES = "link"  # "link": no disk space (a copy where the disk has no hard links), or "copy"
# --------------------------------------------------------------------------------------------------

SPLITS = ("train", "val", "test")
LABELS = ("fake", "real")
DFDC_PARTS = 10  # from so many parts on, a whole part of DFDC goes to one split


# --- The videos that have crops -------------------------------------------------------------------


def read_table(path: Path, columns: list[str], made_by: str, option: str) -> pd.DataFrame:
    """Read a table of an earlier step, all columns as text.

    Raises: FileNotFoundError or ValueError if it is missing, or is not that table.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {path}: run {made_by} first, or say with {option} where its folder is."
        )
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
        table = table.fillna("")  # what short rows lack
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{path} is not readable as a table ({error}): run {made_by} again."
        ) from error
    missing = [column for column in columns if column not in table]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]}: run {made_by} again.")
    if table[columns[0]].duplicated().any():
        twice = table[columns[0]][table[columns[0]].duplicated()].iloc[0]
        raise ValueError(f"{path} has {columns[0]} {twice} twice: run {made_by} again.")
    return table


def read_videos_and_crops(frames_dir: Path, faces_dir: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The videos with at least one crop on disk, and those crops; both sorted by video_id.

    Returns: videos (the columns of videos.csv, and `crops`, how many), crops (crop, video_id).
    Raises: FileNotFoundError or ValueError if there is nothing to balance.
    """
    videos = read_table(
        frames_dir / "videos.csv",
        ["video_id", "source", "dataset", "label", "method", "identities", "official_split"],
        "01-convert-video-to-image.py",
        "--frames-dir",
    )
    crops = read_table(
        faces_dir / "faces.csv", ["crop", "video_id"], "02-crop-faces-with-mtcnn.py", "--faces-dir"
    )[["crop", "video_id"]]
    videos = videos[videos["label"].isin(LABELS)]
    # A path of another form could lead out of faces/, and its name would not tell the video.
    names = crops["video_id"] + "/" + crops["video_id"]
    rests = [crop.removeprefix(name) for crop, name in zip(crops["crop"], names, strict=True)]
    formed = pd.Series(rests, dtype=str).str.fullmatch(r"-[0-9]{6,12}-[0-9]{2,9}\.png")
    formed &= crops["video_id"].str.fullmatch(r"[A-Za-z0-9_.-]*[A-Za-z0-9_-]")
    # Not pathlib's is_file, which raises an error for a name longer than the disk takes.
    on_disk = crops["crop"].map(lambda crop: os.path.isfile(faces_dir / crop))  # noqa: PTH113
    on_disk |= ~formed
    known = crops["video_id"].isin(videos["video_id"])
    for left_out, reason in (
        (~formed, "not of the form video_id/video_id-000042-00.png"),
        (~on_disk, "not on disk"),
        (~known, "their video not in videos.csv, or of no label"),
    ):
        if left_out.any():
            first = crops["crop"][left_out].iloc[0]
            print(f"left out     {left_out.sum():,} crops of faces.csv, {reason}: {first}, ...")
    crops = crops[formed & on_disk & known].sort_values("crop", ignore_index=True)
    counts = crops["video_id"].value_counts().rename("crops")
    videos = videos.join(counts, on="video_id", how="inner")
    for label in LABELS:
        if label not in set(videos["label"]):
            raise ValueError(
                f"{faces_dir} has no crop of a {label} video: both labels are needed to train, so "
                f"put {label} videos into videos/ and run 01 and 02 again."
            )
    return videos.sort_values("video_id", ignore_index=True), crops


# --- Who belongs together -------------------------------------------------------------------------


def list_identities(videos: pd.DataFrame) -> pd.Series:
    """The identities of each video, as a list; of one without, its own video_id."""
    identities = videos["identities"].where(videos["identities"] != "", videos["video_id"])
    return identities.str.split(";")


def find_components(videos: pd.DataFrame) -> np.ndarray:
    """A number for each video of one data set, the same for all that share identities.

    The names in DFDC carry no person, and people recur within a part: where there are enough
    parts, all videos of a part (one folder) belong together, as in the winning solution of the
    challenge (Seferbekov, 2020).
    """
    links = list_identities(videos)
    parts = videos["source"].map(lambda source: PurePosixPath(source).parent.as_posix())
    if (videos["dataset"] == "DFDC").all() and parts.nunique() >= DFDC_PARTS:
        links = links + parts.map(lambda part: [f"part {part}"])
    videos_of_links = np.repeat(np.arange(len(videos)), links.str.len())
    names_of_links, names = pd.factorize(links.explode())
    size = len(videos) + len(names)  # the nodes: first the videos, then the identities
    graph = coo_array(
        (np.ones(len(names_of_links)), (videos_of_links, len(videos) + names_of_links)),
        shape=(size, size),
    )
    return connected_components(graph, directed=False)[1][: len(videos)]


# --- The split ------------------------------------------------------------------------------------


def deal_people(videos: pd.DataFrame, targets: dict[str, float], rng: np.random.Generator) -> dict:
    """Deal the people of one large component to splits: a dictionary from identity to split.

    Test and validation grow from a person drawn by lot, always by the one who shares most fake
    crops with those already in, so that few fakes fall between splits. One is full at `targets`
    real crops, or when its own fakes could match so many. Everyone else is for training.
    """
    reals = defaultdict(int)
    shared = defaultdict(lambda: defaultdict(int))  # fake crops, by two people
    people_of_videos = list_identities(videos)
    for people, label, crops in zip(
        people_of_videos, videos["label"], videos["crops"], strict=True
    ):
        for person in people:
            reals[person] += crops if label == "real" else 0
            for other in people if label == "fake" else ():
                if other != person or len(people) == 1:
                    shared[person][other] += crops
    waiting = [str(person) for person in rng.permutation(sorted(reals))]
    split_of = dict.fromkeys(waiting, "train")
    for split in ("test", "val"):
        gains = dict.fromkeys(waiting, 0)
        real_crops = fake_crops = 0
        while max(real_crops, fake_crops) < targets[split] and len(waiting) > 1:
            person = max(waiting, key=gains.get)
            waiting.remove(person)
            split_of[person] = split
            real_crops += reals[person]
            fake_crops += gains[person] + shared[person][person]
            for other, crops in shared[person].items():
                if other in gains:
                    gains[other] += crops
    return split_of


def deal_components(
    sizes: pd.DataFrame, filled: pd.DataFrame, shares: pd.Series, rng: np.random.Generator
) -> dict[int, str]:
    """Deal whole components to splits: a dictionary from component to split.

    `sizes` has the real and fake crops of each component, `filled` those that each split has
    already; splits that come first in it are served first when there are too few components.
    Large ones go first and those of about one size by lot, each to the split that it fills least
    beyond its share (Graham's rule for machines of different speeds). Fakes with no real follow
    the reals in the same way.
    """
    split_of, groups = {}, {split: [] for split in SPLITS}
    filled = filled.to_dict("index")
    by_lot = sizes.loc[rng.permutation(sizes.index.sort_values())]
    powers = np.log2(by_lot.clip(lower=1)).astype(int)  # within a factor of two is one size
    by_size = {label: powers[label].sort_values(ascending=False, kind="stable") for label in LABELS}
    with_reals = by_lot.loc[by_size["real"].index].query("real > 0")
    for component, real, fake in with_reals[["real", "fake"]].itertuples():
        split = min(SPLITS, key=lambda split: (filled[split]["real"] + real) / shares[split])
        groups[split].append((component, real, fake))
        filled[split]["real"] += real
        filled[split]["fake"] += fake
    for split in filled:
        donor = max(SPLITS, key=lambda split: len(groups[split]))
        if filled[split]["real"] == 0 and len(groups[donor]) > 1:
            groups[split].append(groups[donor].pop())
            for label, crops in zip(("real", "fake"), groups[split][-1][1:], strict=True):
                filled[donor][label] -= crops
                filled[split][label] += crops
    for split, members in groups.items():
        split_of |= {component: split for component, _, _ in members}

    served = [split for split in SPLITS if filled[split]["real"] > 0] or ["train"]
    fakes_only = by_lot.loc[by_size["fake"].index].query("real == 0")
    for component, fake in fakes_only["fake"].items():
        split = min(
            served, key=lambda split: (filled[split]["fake"] + fake) / (filled[split]["real"] or 1)
        )
        split_of[component] = split
        filled[split]["fake"] += fake
    return split_of


def split_by_identity(
    videos: pd.DataFrame, shares: pd.Series, served_first: list[str], rng: np.random.Generator
) -> pd.Series:
    """The split of each video of one data set; empty for a fake between people of two splits.

    Components stay whole while three of them have reals and none is larger than training may be.
    """
    components = pd.Series(find_components(videos), index=videos.index)
    sizes = videos.pivot_table("crops", components, "label", "sum", fill_value=0)
    sizes = sizes.reindex(columns=list(LABELS), fill_value=0)
    too_large = (sizes > shares["train"] * sizes.sum()).any(axis=1)
    if (sizes["real"] > 0).sum() < len(SPLITS):
        too_large[:] = True
    people = list_identities(videos)
    real_people = people[videos["label"] == "real"].explode()
    too_large &= real_people.groupby(components).nunique().reindex(sizes.index) >= len(SPLITS)

    split_of_video = pd.Series("", index=videos.index)
    filled = pd.DataFrame(0, index=served_first, columns=list(LABELS))
    for component in sizes.index[too_large]:
        inside = videos[components == component]
        targets = shares * sizes["real"].sum() - filled["real"]
        split_of_person = deal_people(inside, targets.to_dict(), rng)
        splits = people[inside.index].explode().map(split_of_person).groupby(level=0)
        split_of_video.loc[inside.index] = splits.first().where(splits.nunique() == 1, "")
        kept = inside.groupby([split_of_video.loc[inside.index], "label"])["crops"].sum().unstack()
        filled = filled.add(kept.reindex(filled.index), fill_value=0)
    dealt = deal_components(sizes[~too_large], filled, shares, rng)
    return split_of_video.where(components.map(too_large), components.map(dealt))


def split_by_official_list(
    videos: pd.DataFrame, shares: pd.Series, rng: np.random.Generator
) -> pd.Series:
    """The published split of each video of one data set; empty for one that no list names.

    A data set with no list goes to the test split whole. Where the list has no validation part,
    one is taken from the training part, by identity.
    """
    split_of_video = videos["official_split"].copy()
    if (split_of_video == "").all():
        return split_of_video.replace("", "test")
    if "val" not in set(split_of_video) and "train" in set(split_of_video):
        training = videos[split_of_video == "train"]
        by_identity = split_by_identity(training, shares, ["val", "test", "train"], rng)
        split_of_video.loc[training.index] = by_identity.replace("test", "train")
    return split_of_video


def split_videos(
    videos: pd.DataFrame, split_by: str, split_ratio: tuple[float, float, float], seed: int
) -> pd.Series:
    """The split of each video (train, val, test), or an empty string for one that is left out.

    Needs the columns video_id, source, dataset, label, method, identities, official_split and
    crops, and does not depend on the order of the rows.
    """
    shares = pd.Series(split_ratio, index=SPLITS) / sum(split_ratio)
    crops = pd.Series(0, index=["val", "test", "train"])
    splits = []
    for dataset, of_dataset in videos.sort_values("video_id").groupby("dataset"):
        rng = np.random.default_rng([seed, *dataset.encode()])  # no data set's lot moves another's
        if split_by == "official":
            splits.append(split_by_official_list(of_dataset, shares, rng))
        else:
            # A data set with two components can fill two splits: the emptier ones so far.
            served_first = [*sorted(["val", "test"], key=crops.get), "train"]
            splits.append(split_by_identity(of_dataset, shares, served_first, rng))
        crops = crops.add(of_dataset.groupby(splits[-1])["crops"].sum(), fill_value=0)[crops.index]
    return pd.concat(splits).reindex(videos.index)


# --- The balance ----------------------------------------------------------------------------------


def share_evenly(available: pd.Series, wanted: int, rng: np.random.Generator) -> pd.Series:
    """How many to take of each, `wanted` in all and as equal as can be; the odd ones by lot."""
    order = available.loc[rng.permutation(available.index.sort_values())].sort_values(kind="stable")
    taken = {}
    for position, (name, most) in enumerate(order.items()):
        taken[name] = min(most, wanted // (len(order) - position))
        wanted -= taken[name]
    return pd.Series(taken, dtype=int)


def balance(videos: pd.DataFrame, seed: int) -> pd.Series:
    """How many crops to take of each video (by video_id) so that reals and fakes are even.

    `videos` has a column split. Within each split and data set the label with more crops is
    brought down to the other, evenly over its methods, and evenly over the videos of a method.
    """
    taken = [pd.Series(dtype=int)]
    for (dataset, split), part in videos.groupby(["dataset", "split"]):
        rng = np.random.default_rng([seed, *dataset.encode(), *split.encode()])
        crops = part.groupby("label")["crops"].sum().reindex(LABELS, fill_value=0)
        for _, of_label in part.groupby("label"):
            methods = of_label.groupby("method")["crops"].sum()
            for method, wanted in share_evenly(methods, crops.min(), rng).items():
                available = of_label[of_label["method"] == method].set_index("video_id")["crops"]
                taken.append(share_evenly(available, wanted, rng))
    return pd.concat(taken)


def choose_crops(crops: pd.DataFrame, videos: pd.DataFrame, taken: pd.Series) -> pd.DataFrame:
    """The chosen crops, spread over the length of each video.

    Returns: crop (path below faces/), video_id, dataset, method, label, split.
    """
    groups = crops.groupby("video_id")["crop"]
    position, total = groups.cumcount(), groups.transform("size")
    wanted = crops["video_id"].map(taken).fillna(0).astype(int)
    # So many steps of a straight line from 0 to `wanted` over the crops of a video.
    chosen = (position + 1) * wanted // total > position * wanted // total
    description = videos.set_index("video_id")[["dataset", "method", "label", "split"]]
    return crops[chosen].join(description, on="video_id")


# --- The folders ----------------------------------------------------------------------------------


def check_own_folder(folder: Path) -> None:
    """Raises: ValueError if the folder holds a file that this script did not put there."""
    if not folder.exists():
        return
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    table = folder / "crops.csv"
    try:
        own = {"crops.csv", *pd.read_csv(table, dtype=str)["crop"]}
    except (ValueError, LookupError, OSError):  # it is not there, or was edited by hand
        own = set()
    if foreign := sorted(files - own):
        raise ValueError(
            f"{folder} holds files that this script did not make, such as {foreign[0]}, and would "
            "be deleted: move them away, or choose another folder."
        )


def lock_beside(folder: Path) -> filelock.AcquireReturnProxy:
    """Hold a folder for this run alone; the lock lies beside it, since the folder is replaced.

    Raises: ValueError if another run holds it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        return filelock.FileLock(folder.with_name(f".{folder.name}.lock")).acquire(timeout=0)
    except filelock.Timeout as error:
        raise ValueError(
            f"{folder}: another run is writing to it; wait for its end, or name another folder."
        ) from error


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV table whole or not at all: to a temporary name beside it, then renamed."""
    partial = path.with_name(path.name + ".partial")
    table.to_csv(partial, index=False)
    partial.replace(path)


def write_file(source: Path, target: Path, files: str) -> None:
    """Put a file at a second place: as a hard link where that is wanted and can be, or a copy."""
    try:
        if files == "copy":
            raise OSError
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_prepared(chosen: pd.DataFrame, faces_dir: Path, folder: Path, files: str) -> None:
    """Fill folder/{real,fake}/ with the chosen crops, and its crops.csv."""
    for label in LABELS:
        (folder / label).mkdir(parents=True)
    names = chosen["label"] + "/" + chosen["crop"].map(lambda crop: PurePosixPath(crop).name)
    pairs = zip(chosen["crop"], names, strict=True)
    for crop, name in tqdm(pairs, total=len(chosen), unit="crop", desc=PREPARED_DIR.name):
        write_file(faces_dir / crop, folder / name, files)
    write_table(chosen.assign(crop=names), folder / "crops.csv")


def write_split(chosen: pd.DataFrame, prepared_dir: Path, folder: Path, files: str) -> None:
    """Fill folder/{train,val,test}/{real,fake}/ with the prepared crops, and its crops.csv.

    split-folders would draw single crops by lot, and frames of one video would fall on both
    sides. It is therefore asked for one split after another, each time for the crops planned.
    """
    names = chosen["crop"].map(lambda crop: PurePosixPath(crop).name)
    split_of = dict(zip(names, chosen["split"], strict=True))
    waiting = folder / "waiting"
    for label in LABELS:
        (waiting / label).mkdir(parents=True)
        for crop in (prepared_dir / label).iterdir():
            write_file(crop, waiting / label / crop.name, files)
    for split in SPLITS:
        splitfolders.ratio(
            waiting,
            folder,
            ratio=tuple(float(split == other) for other in SPLITS),
            group=lambda crops, split=split: [c for c in crops if split_of[c.name] == split],
            move=True,
        )
    shutil.rmtree(waiting)
    paths = chosen["split"] + "/" + chosen["label"] + "/" + names
    write_table(chosen.assign(crop=paths), folder / "crops.csv")


def write_folders(
    chosen: pd.DataFrame, faces_dir: Path, prepared_dir: Path, split_dir: Path, files: str
) -> None:
    """Make both folders anew beside the old ones, and put them in their place when complete."""
    for folder in (prepared_dir, split_dir):
        check_own_folder(folder)
    folders = prepared_dir, split_dir
    new, old = (
        [folder.with_name(f"{folder.name}.{kind}") for folder in folders]
        for kind in ("partial", "replaced.partial")
    )
    for folder in (*new, *old):
        if folder.exists():
            shutil.rmtree(folder)
    write_prepared(chosen, faces_dir, new[0], files)
    write_split(chosen, new[0], new[1], files)
    # Whenever this is stopped, each of the two is old and whole, new and whole, or not there; and
    # new crops never stand beside an old split.
    for folder, aside in zip(folders, old, strict=True):
        if folder.exists():
            folder.rename(aside)
    for folder, made in zip(folders, new, strict=True):
        made.rename(folder)
    for folder in old:
        shutil.rmtree(folder, ignore_errors=True)


# --- The check ------------------------------------------------------------------------------------


def read_split_folders(split_dir: Path, videos: pd.DataFrame) -> pd.DataFrame:
    """What really lies in split_dataset/: one row a crop (split, label, and its video's columns).

    A crop's file name is its video_id and two more fields, frame and face.
    """
    rows = [
        {"split": path.parts[-3], "folder": path.parts[-2], "video_id": path.stem.rsplit("-", 2)[0]}
        for path in split_dir.glob("*/*/*.png")
    ]
    columns = videos[["video_id", "dataset", "label", "identities"]]
    return pd.DataFrame(rows).merge(columns, on="video_id", how="left")


def count_in_two_splits(on_disk: pd.DataFrame) -> pd.Series:
    """How many identities of each data set lie in more than one split."""
    seen = on_disk.drop_duplicates(["split", "video_id"])
    seen = seen.assign(identity=list_identities(seen)).explode("identity")
    return (seen.groupby(["dataset", "identity"])["split"].nunique() > 1).groupby("dataset").sum()


def count_splits(on_disk: pd.DataFrame) -> pd.DataFrame:
    """Crops by label, videos and identities, for each data set and split, from the disk."""
    crops = on_disk.pivot_table(
        "video_id", ["dataset", "split"], "folder", "count", fill_value=0
    ).reindex(columns=["real", "fake"], fill_value=0)
    people = on_disk.assign(identities=list_identities(on_disk)).explode("identities")
    counts = crops.assign(
        videos=on_disk.groupby(["dataset", "split"])["video_id"].nunique(),
        identities=people.groupby(["dataset", "split"])["identities"].nunique(),
    )
    counts.columns.name = None
    order = [(d, s) for d in counts.index.levels[0] for s in SPLITS if (d, s) in counts.index]
    return counts.loc[order]


# --- The run --------------------------------------------------------------------------------------


def print_unused(videos: pd.DataFrame, taken: pd.Series, split_by: str) -> None:
    """What of the faces did not become part of the data set, and why."""
    between = videos[videos["split"] == ""]
    why = "between people of two splits" if split_by == "identity" else "not in the official list"
    if len(between):
        print(f"left out     {len(between):,} videos {why} ({between['crops'].sum():,} crops)")
    used = videos[videos["split"] != ""]
    spare = used.set_index("video_id")["crops"].sub(taken, fill_value=0).astype(int)
    for (label, dataset), part in used.groupby(["label", "dataset"]):
        crops = spare[part["video_id"]].sum()
        if crops:
            why = (
                "to be as many as the reals" if label == "fake" else "too few fakes in their split"
            )
            print(f"left out     {crops:,} {label} crops of {dataset}, {why}")
    if split_by == "identity" and "DFDC" in set(videos["dataset"]):
        print("note         DFDC names no people: that nobody is in two splits is known for its")
        print("             source videos only")
    if split_by == "official":
        print(
            "note         the official lists leak: in FaceForensics++ some sequences of one video"
        )
        print("             stand on two sides, in Celeb-DF most people do")


def main(
    frames_dir: Path = FRAMES_DIR,
    faces_dir: Path = FACES_DIR,
    prepared_dir: Path = PREPARED_DIR,
    split_dir: Path = SPLIT_DIR,
    split_by: Literal["identity", "official"] = SPLIT_BY,
    split_ratio: tuple[float, float, float] = SPLIT_RATIO,
    seed: int = SEED,
    files: Literal["link", "copy"] = FILES,
) -> pd.DataFrame:
    """Balance the real and fake crops, and split them so that no person is seen on two sides.

    Args:
        frames_dir: Its videos.csv has the labels and the identities.
        faces_dir: The crops.
        prepared_dir: Gets the balanced crops, flat; made anew.
        split_dir: Gets the same crops, split; made anew.
        split_by: By identity, or by the lists that the data sets publish.
        split_ratio: Training, validation and test.
        seed: Another seed deals other people to other splits.
        files: Hard links, or copies.

    Returns:
        The crops on disk, one row each: split, folder (the label), video_id, dataset, identities.

    Raises:
        FileNotFoundError: A table of an earlier step is not there.
        ValueError: There is not enough to fill three splits with both labels.
        RuntimeError: An identity was found in two splits.
    """
    if min(split_ratio) <= 0:
        raise ValueError("Each of the three shares of --split-ratio must be above 0.")
    videos, crops = read_videos_and_crops(frames_dir, faces_dir)
    videos["split"] = split_videos(videos, split_by, split_ratio, seed)
    taken = balance(videos[videos["split"] != ""], seed)
    chosen = choose_crops(crops, videos, taken)
    if empty := [split for split in SPLITS if split not in set(chosen["split"])]:
        raise ValueError(
            f"{faces_dir} has too few separate people or source videos to fill {empty[0]} with "
            "real and fake crops of one data set: at least three of each are needed, so add videos."
        )
    try:
        with lock_beside(prepared_dir), lock_beside(split_dir):
            write_folders(chosen, faces_dir, prepared_dir, split_dir, files)
            on_disk = read_split_folders(split_dir, videos)
    except OSError as error:
        raise OSError(
            f"{split_dir}: stopped by an error ({error}); run it again once that is mended."
        ) from error

    print(count_splits(on_disk).to_string(formatters=["{:,}".format] * 4))
    print(f"crops        {len(on_disk):,} of {len(crops):,} ({split_dir})")
    print_unused(videos, taken, split_by)
    in_two = count_in_two_splits(on_disk).sum()
    print(f"identities in two splits: {in_two:,}")
    if len(on_disk) != len(chosen) or (on_disk["folder"] != on_disk["label"]).any():
        raise RuntimeError(f"{split_dir} does not hold what was planned: delete it and run again.")
    if in_two and split_by == "identity":
        raise RuntimeError(f"{split_dir} has people in two splits: please report this as a fault.")
    return on_disk


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except KeyboardInterrupt:
        print(f"{Path(__file__).name}: stopped; run it again to begin anew.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
