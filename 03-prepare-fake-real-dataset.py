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
that a model which has seen one knows the other. Videos that share an identity therefore stay
together (a connected component of the data set's videos), as far as file names and lists tell
identities. A component that no split can hold is divided by person, and the fakes between people of
different splits are left out. At the end the folders on disk are read and people in two splits are
counted. The crops are hard links: one edited in place changes in faces/ too, unless --files copy.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))  # python -P leaves it out
from deepfake_detect import start

start.prepare(__name__)  # Ctrl-C while the rest is loading ends it with a sentence

import os
import shutil
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
import pandas as pd
import splitfolders
from scipy.sparse import block_array, coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from deepfake_detect import cli
from deepfake_detect import files as folders

# --------------------------------------------------------------------------------------------------
# folders
FRAMES_DIR = Path("frames")  # its videos.csv has the labels and the identities
FACES_DIR = Path("faces")  # the crops
PREPARED_DIR = Path("prepared_dataset")  # gets the balanced crops, flat
SPLIT_DIR = Path("split_dataset")  # gets the same crops, split
# split
SPLIT_BY = "identity"  # or "official": the lists that the data sets publish, which may leak people
SPLIT_RATIO = (0.8, 0.1, 0.1)  # training, validation and test, in real crops of each data set
DFDC_PARTS = 10  # parts of DFDC, at least, for each part to stay whole: people recur within a part
SEED = 0  # same videos, same seed: same crops in the same splits
# disk
FILES = "link"  # "link": no disk space (a copy where the disk has no hard links), or "copy"
# --------------------------------------------------------------------------------------------------

SPLITS = ("train", "val", "test")
LABELS = ("fake", "real")


def main(
    frames_dir: Path = FRAMES_DIR,
    faces_dir: Path = FACES_DIR,
    prepared_dir: Path = PREPARED_DIR,
    split_dir: Path = SPLIT_DIR,
    split_by: Literal["identity", "official"] = SPLIT_BY,
    split_ratio: tuple[float, float, float] = SPLIT_RATIO,
    dfdc_parts: int = DFDC_PARTS,
    seed: int = SEED,
    files: Literal["link", "copy"] = FILES,
) -> pd.DataFrame:
    """Balance the real and fake crops, and split them so that no person is seen on two sides.

    Args:
        frames_dir: folder whose videos.csv has the labels and the identities
        faces_dir: folder with the crops
        prepared_dir: folder for the balanced crops, flat; made anew
        split_dir: folder for the same crops, split; made anew
        split_by: by identity, or by the lists that the data sets publish
        split_ratio: shares of training, validation and test
        dfdc_parts: parts of DFDC, at least, for each part to stay whole
        seed: another seed deals other people to other splits
        files: hard links, or copies

    Returns:
        The crops on disk, one row each: split, folder (the label), video_id, dataset, identities.

    Raises:
        FileNotFoundError: a table of an earlier step is not there
        ValueError: the numbers, tables or crops given do not do, or a folder cannot be replaced
    """
    if min(split_ratio) <= 0 or not np.isfinite(sum(split_ratio)):
        raise ValueError(f"--split-ratio is {split_ratio}; give three numbers above 0.")
    for option, value, least in (("--dfdc-parts", dfdc_parts, 1), ("--seed", seed, 0)):
        if value < least:
            raise ValueError(f"{option} is {value}; give {least} or more.")
    one, other = prepared_dir.resolve(), split_dir.resolve()
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise ValueError(f"{prepared_dir}, {split_dir}: give two folders, neither in the other.")

    # Whole videos are dealt to the splits first; then each split keeps as many fakes as reals.
    videos, crops = read_videos_and_crops(frames_dir, faces_dir)
    videos["split"] = split_videos(videos, split_by, split_ratio, seed, dfdc_parts)
    taken = balance(videos[videos["split"] != ""], seed)
    chosen = choose_crops(crops, videos, taken)
    if empty := [split for split in SPLITS if split not in set(chosen["split"])]:
        what = "too few separate people or source videos with real and fake crops of one data set"
        raise ValueError(f"{faces_dir}: {what} to fill {empty[0]}/; add videos for three or more.")

    # The new folders take the place of the old ones at the end of this block, if all went well.
    with (
        folders.replacing(prepared_dir, "--prepared-dir", __file__) as new_prepared,
        folders.replacing(split_dir, "--split-dir", __file__) as new_split,
    ):
        write_chosen(chosen, faces_dir, new_prepared, new_split, files)
        on_disk = read_split_folders(new_split, videos)
        people = on_disk.assign(identity=list_identities(on_disk)).explode("identity")
        in_two = (people.groupby(["dataset", "identity"])["split"].nunique() > 1).sum()
        if len(on_disk) != len(chosen) or (on_disk["folder"] != on_disk["label"]).any():
            raise ValueError(f"{new_split}: this is not what was planned; run again.")
        if in_two and split_by == "identity":
            raise ValueError(f"{new_split}: {in_two:,} people are in two splits; please report it.")

    print(split_dir)
    print_split(people, videos, taken, split_by)
    print(f"  {'crops':15} {len(on_disk):,} of {len(crops):,}")
    print(f"  {'audit':15} identities in two splits: {in_two:,}")
    return on_disk


def read_videos_and_crops(frames_dir: Path, faces_dir: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the videos with at least one crop on disk, and those crops; both sorted by video_id.

    Returns:
        videos (the columns of videos.csv, and `crops`, how many), crops (crop, video_id)

    Raises:
        FileNotFoundError: a table is not there
        ValueError: a table is not readable, or one of the labels has no crop
    """
    columns = ["video_id", "source", "dataset", "label", "method", "identities", "official_split"]
    step_1 = "01-convert-video-to-image.py", "--frames-dir"
    step_2 = "02-crop-faces-with-mtcnn.py", "--faces-dir"
    videos = read_table(frames_dir / "videos.csv", columns, *step_1)
    crops = read_table(faces_dir / "faces.csv", ["crop", "video_id"], *step_2)[["crop", "video_id"]]
    videos = videos[videos["label"].isin(LABELS)]
    # Unicode has two ways to write an accent, and a Mac takes the other one.
    videos["identities"] = videos["identities"].str.normalize("NFC")

    # A path of another form could lead out of faces/, and its name would not tell the video.
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
            first = crops["crop"][left_out].iloc[0]
            print(f"left out: {left_out.sum():,} crops of faces.csv, {reason}: {first}, ...")

    crops = crops[formed & on_disk & known].sort_values("crop", ignore_index=True)
    counts = crops["video_id"].value_counts().rename("crops")
    videos = videos.join(counts, on="video_id", how="inner")
    for label in LABELS:
        if label not in set(videos["label"]):
            what = f"there is no crop of a {label} video, and training needs both labels"
            raise ValueError(f"{faces_dir}: {what}; add {label} videos and run 01 and 02 again.")
    return videos.sort_values("video_id", ignore_index=True), crops


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


def split_videos(
    videos: pd.DataFrame, split_by: str, split_ratio: tuple, seed: int, dfdc_parts: int
) -> pd.Series:
    """Tell the split of each video (train, val, test), or an empty string for one left out.

    Needs the columns video_id, source, dataset, label, method, identities, official_split and
    crops, and does not depend on the order of the rows.
    """
    shares = pd.Series(split_ratio, index=SPLITS) / sum(split_ratio)
    crops = pd.Series(0, index=["val", "test", "train"])
    splits = []
    for dataset, of_dataset in videos.sort_values("video_id").groupby("dataset"):
        of_dataset = of_dataset.assign(component=find_components(of_dataset, dfdc_parts))
        # Each data set has random numbers of its own, so that another one more changes nothing.
        rng = np.random.default_rng([seed, *dataset.encode()])
        if split_by == "official":
            splits.append(split_by_official_list(of_dataset, shares, rng))
        else:
            # A data set with two components can fill two splits: the emptier ones so far.
            served_first = [*sorted(["val", "test"], key=crops.get), "train"]
            splits.append(split_by_identity(of_dataset, shares, served_first, rng))
        crops = crops.add(of_dataset.groupby(splits[-1])["crops"].sum(), fill_value=0)[crops.index]
    return pd.concat(splits).reindex(videos.index)


def find_components(videos: pd.DataFrame, dfdc_parts: int) -> np.ndarray:
    """Number the videos of one data set: the same number for all that share identities.

    The names in DFDC carry no person, and people recur within a part: where there are
    `dfdc_parts`, all videos of a part (one folder) belong together, as in the winning solution of
    the challenge (Seferbekov, 2020).
    """
    links = list_identities(videos)
    parts = videos["source"].map(lambda source: PurePosixPath(source).parent.as_posix())
    if (videos["dataset"] == "DFDC").all() and parts.nunique() >= dfdc_parts:
        links = links + parts.map(lambda part: [f"part {part}"])
    names_of_links, _ = pd.factorize(links.explode())
    edges = np.repeat(np.arange(len(videos)), links.str.len()), names_of_links
    shared = coo_array((np.ones(len(names_of_links)), edges))
    graph = block_array([[None, shared], [shared.T, None]])  # nodes: the videos, then their links
    return connected_components(graph, directed=False)[1][: len(videos)]


def list_identities(videos: pd.DataFrame) -> pd.Series:
    """List the identities of each video; a video without any is its own identity."""
    identities = videos["identities"].where(videos["identities"] != "", videos["video_id"])
    return identities.str.split(";")


def split_by_official_list(
    videos: pd.DataFrame, shares: pd.Series, rng: np.random.Generator
) -> pd.Series:
    """Take the published split of each video of one data set; empty for one that no list names.

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


def split_by_identity(
    videos: pd.DataFrame, shares: pd.Series, served_first: list[str], rng: np.random.Generator
) -> pd.Series:
    """Deal the videos of one data set to splits; empty for a fake between people of two splits.

    Components stay whole while three of them have reals and none is larger than training may be.
    """
    components = videos["component"]
    sizes = videos.pivot_table("crops", components, "label", "sum", fill_value=0)
    sizes = sizes.reindex(columns=LABELS, fill_value=0)
    too_large = (sizes > shares["train"] * sizes.sum()).any(axis=1)
    too_large |= (sizes["real"] > 0).sum() < len(SPLITS)
    people = list_identities(videos)
    real_people = people[videos["label"] == "real"].explode()
    too_large &= real_people.groupby(components).nunique().reindex(sizes.index) >= len(SPLITS)

    # A component too large for one split is dealt person by person. A fake whose people went to
    # two splits is left out.
    inside = videos[components.map(too_large)]
    split_of_person = deal_people(inside, shares * sizes["real"].sum(), rng)
    splits = people[inside.index].explode().map(split_of_person).groupby(level=0)
    split_of_video = splits.first().where(splits.nunique() == 1, "")
    split_of_video = split_of_video.astype(object).reindex(videos.index, fill_value="").astype(str)
    filled = videos.pivot_table("crops", split_of_video, "label", "sum")
    filled = filled.reindex(index=served_first, columns=LABELS).fillna(0)

    # All others stay whole.
    dealt = deal_components(sizes[~too_large], filled, shares, rng)
    return split_of_video.where(components.map(too_large), components.map(dealt))


def deal_people(videos: pd.DataFrame, targets: dict[str, float], rng: np.random.Generator) -> dict:
    """Deal the people of large components to splits: a dictionary from identity to split.

    Test and validation each start from a person drawn at random. The next one is always the person
    who shares most fake crops with those already in, so that few fakes fall between splits. A split
    is full when its real crops, or the fakes available to balance them, reach `targets`. Everyone
    else is for training.
    """
    reals, shared = Counter(), defaultdict(Counter)  # crops; fake crops, by two people
    rows = zip(list_identities(videos), videos["label"], videos["crops"], strict=True)
    for people, label, crops in rows:
        for person in people:
            reals[person] += crops * (label == "real")
            others = [other for other in people if other != person] or people
            shared[person].update({other: crops * (label == "fake") for other in others})

    waiting = [str(person) for person in rng.permutation(sorted(reals))]
    split_of = dict.fromkeys(waiting, "train")
    for split in ("test", "val"):
        gains = Counter()  # fake crops that each person would bring to this split
        real_crops = fake_crops = 0
        while max(real_crops, fake_crops) < targets[split] and len(waiting) > 1:
            person = max(waiting, key=gains.__getitem__)
            waiting.remove(person)
            split_of[person] = split
            real_crops += reals[person]
            fake_crops += gains[person] + shared[person][person]
            gains.update(shared[person])
    return split_of


def deal_components(
    sizes: pd.DataFrame, filled: pd.DataFrame, shares: pd.Series, rng: np.random.Generator
) -> dict[int, str]:
    """Deal whole components to splits: a dictionary from component to split.

    `sizes` has the fake and real crops of each component, `filled` those that each split has
    already, the splits that are served first on top. Large components go first, those of about one
    size in random order, each to the split that is furthest below its share afterwards (Graham's
    rule for machines of different speeds).
    """
    groups = {split: [] for split in SPLITS}
    filled = dict(zip(filled.index, filled.to_numpy(copy=True), strict=True))  # of fake and real
    shuffled = sizes.loc[rng.permutation(sizes.index.sort_values())]
    powers = np.log2(shuffled.clip(lower=1)).astype(int)  # within a factor of two is one size
    order = {label: powers[label].sort_values(ascending=False, kind="stable") for label in LABELS}
    with_reals = shuffled.loc[order["real"].index].query("real > 0")
    for component, crops in zip(with_reals.index, with_reals.to_numpy(), strict=True):
        split = min(SPLITS, key=lambda split: (filled[split] + crops)[1] / shares[split])
        groups[split].append(component)
        filled[split] += crops

    # A split that got no real takes the smallest component of the split that has most.
    for split in filled:
        donor = max(SPLITS, key=lambda split: len(groups[split]))
        if filled[split][1] == 0 and len(groups[donor]) > 1:
            groups[split].append(groups[donor].pop())
            filled[donor] -= sizes.loc[groups[split][-1]].to_numpy()
            filled[split] += sizes.loc[groups[split][-1]].to_numpy()

    # Fakes with no real go where they are fewest beside the reals.
    served = [split for split in SPLITS if filled[split][1] > 0] or ["train"]
    for component, fake in shuffled.loc[order["fake"].index].query("real == 0")["fake"].items():
        split = min(served, key=lambda split: (filled[split][0] + fake) / (filled[split][1] or 1))
        groups[split].append(component)
        filled[split][0] += fake
    return {component: split for split, members in groups.items() for component in members}


def balance(videos: pd.DataFrame, seed: int) -> pd.Series:
    """Tell how many crops to take of each video (by video_id) so that reals and fakes are even.

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


def share_evenly(available: pd.Series, wanted: int, rng: np.random.Generator) -> pd.Series:
    """Tell how many to take of each: `wanted` in all, as equal as can be, odd ones at random."""
    order = available.loc[rng.permutation(available.index.sort_values())].sort_values(kind="stable")
    taken = {}
    for position, (name, most) in enumerate(order.items()):
        taken[name] = min(most, wanted // (len(order) - position))
        wanted -= taken[name]
    return pd.Series(taken, dtype=int)


def choose_crops(crops: pd.DataFrame, videos: pd.DataFrame, taken: pd.Series) -> pd.DataFrame:
    """Choose crops spread over the length of each video.

    Returns:
        crop (path below faces/), video_id, dataset, method, label, split, identities
    """
    groups = crops.groupby("video_id")["crop"]
    position, total = groups.cumcount(), groups.transform("size")
    wanted = crops["video_id"].map(taken).fillna(0).astype(int)
    # Take `wanted` of `total` crops at even spacing, as an integer line is drawn (Bresenham).
    chosen = (position + 1) * wanted // total > position * wanted // total
    columns = ["dataset", "method", "label", "split", "identities"]
    return crops[chosen].join(videos.set_index("video_id")[columns], on="video_id")


def write_chosen(
    chosen: pd.DataFrame, faces_dir: Path, prepared_dir: Path, split_dir: Path, files: str
) -> None:
    """Fill prepared_dir/{real,fake}/ and split_dir/{train,val,test}/{real,fake}/.

    split-folders draws single crops at random, and frames of one video would fall on both sides. It
    is therefore given the crops of one split after another, each time with the whole ratio for it.
    """
    names = chosen["label"] + "/" + chosen["crop"].map(lambda crop: PurePosixPath(crop).name)
    rule = faces_dir / "crop-rule.json"  # how the crops were cut, which a model must know
    for folder, paths in ((prepared_dir, names), (split_dir, chosen["split"] + "/" + names)):
        chosen.assign(crop=paths).to_csv(folder / "crops.csv", index=False)
        if rule.is_file():
            shutil.copyfile(rule, folder / rule.name)

    waiting = {split: split_dir / "waiting" / split for split in SPLITS}
    for folder in (prepared_dir, *waiting.values()):
        for label in LABELS:
            (folder / label).mkdir(parents=True)
    rows = zip(chosen["crop"], names, chosen["split"], strict=True)
    for crop, name, split in tqdm(rows, "crops prepared", total=len(chosen), unit="crop"):
        write_file(faces_dir / crop, prepared_dir / name, files)
        write_file(prepared_dir / name, waiting[split] / name, files)
    for split, folder in waiting.items():
        ratio = tuple(float(split == other) for other in SPLITS)
        splitfolders.ratio(folder, split_dir, ratio=ratio, move=True)
    shutil.rmtree(split_dir / "waiting")


def read_split_folders(split_dir: Path, videos: pd.DataFrame) -> pd.DataFrame:
    """Read what really lies in the split folders: a row a crop, with its video's columns.

    A crop's file name is its video_id and two more fields, frame and face.

    Returns:
        split, folder (the label by its place), video_id, dataset, label, identities
    """
    paths = split_dir.glob("*/*/*.png")
    rows = [(*path.parts[-3:-1], path.stem.rsplit("-", 2)[0]) for path in paths]
    on_disk = pd.DataFrame(rows, columns=["split", "folder", "video_id"])
    columns = videos[["video_id", "dataset", "label", "identities"]]
    return on_disk.merge(columns, on="video_id", how="left")


def print_split(seen: pd.DataFrame, videos: pd.DataFrame, taken: pd.Series, split_by: str) -> None:
    """Print what each split got (`seen`: a row for each person of each crop), what not, and why."""
    names = {"index": "crops", "video_id": "videos", "identity": "identities"}
    counts = seen.reset_index().groupby(["dataset", "split", "label"])[list(names)].nunique()
    counts = counts.rename(columns=names).reindex(SPLITS, level="split")
    print(counts.to_string(formatters=["{:,}".format] * 3))
    between = videos[videos["split"] == ""]
    why = "between people of two splits" if split_by == "identity" else "not in the official list"
    if len(between):
        print(f"  {'left out':15} {len(between):,} videos {why} ({between['crops'].sum():,} crops)")
    used = videos[videos["split"] != ""].set_index("video_id")
    spare = used["crops"].sub(taken, fill_value=0).groupby([used["label"], used["dataset"]]).sum()
    why = {"fake": "to be as many as the reals", "real": "too few fakes in their split"}
    for (label, dataset), crops in spare[spare > 0].items():
        print(f"  {'left out':15} {crops:,.0f} {label} crops of {dataset}, {why[label]}")
    if split_by == "official":
        print(f"  {'note':15} official lists leak most people of Celeb-DF, some of FaceForensics++")
    elif "DFDC" in set(videos["dataset"]):
        print(f"  {'note':15} DFDC names no people: they may recur, only source videos do not")


# --- Machinery ------------------------------------------------------------------------------------


def write_file(source: Path, target: Path, files: str) -> None:
    """Put a file at a second place: as a hard link where that is wanted and can be, or a copy."""
    if files == "link":
        with suppress(OSError):  # a disk without hard links
            return os.link(source, target)
    shutil.copyfile(source, target)


if __name__ == "__main__":
    cli.run(main)
