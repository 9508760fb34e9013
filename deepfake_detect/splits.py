"""Split videos into training, validation and test by identity, and balance the labels.

Whole videos are assigned to splits. Videos that share an identity form a component and stay
together. If a component is too large for any split, its people are assigned instead, and fakes
that combine people of two splits are left out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
from scipy.sparse import block_array, coo_array
from scipy.sparse.csgraph import connected_components

from deepfake_detect.identities import list_people

SPLITS = ("train", "val", "test")
LABELS = ("fake", "real")


def split_videos(
    videos: pd.DataFrame,
    split_by: str = "identity",
    split_ratio: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    dfdc_parts: int = 10,
) -> pd.Series:
    """Return the split of each video (train, val, test), or "" for a video to leave out.

    `videos` needs the columns video_id, source, dataset, label, method, identities, official_split
    and crops. The result does not depend on the order of the rows.
    """
    shares = pd.Series(split_ratio, index=SPLITS) / sum(split_ratio)
    crops = pd.Series(0, index=["val", "test", "train"])
    splits = []
    for dataset, of_dataset in videos.sort_values("video_id").groupby("dataset"):
        of_dataset = of_dataset.assign(component=find_components(of_dataset, dfdc_parts))
        # Each data set has its own random numbers, so adding a data set does not change the others.
        rng = np.random.default_rng([seed, *dataset.encode()])
        if split_by == "official":
            splits.append(split_by_official_list(of_dataset, shares, rng))
        else:
            # A data set with two components can only fill two splits: serve the emptiest first.
            served_first = [*sorted(["val", "test"], key=crops.get), "train"]
            splits.append(split_by_identity(of_dataset, shares, served_first, rng))
        crops = crops.add(of_dataset.groupby(splits[-1])["crops"].sum(), fill_value=0)[crops.index]
    return pd.concat(splits).reindex(videos.index)


def find_components(videos: pd.DataFrame, dfdc_parts: int) -> np.ndarray:
    """Return a component number per video of one data set; videos that share identities share it.

    File names of DFDC do not identify people, and people recur within a part (one folder). If there
    are at least `dfdc_parts` parts, all videos of a part therefore stay together, as in the winning
    solution of the challenge (Seferbekov, 2020).
    """
    links = list_people(videos)
    parts = videos["source"].map(lambda source: PurePosixPath(source).parent.as_posix())
    if (videos["dataset"] == "DFDC").all() and parts.nunique() >= dfdc_parts:
        links = links + parts.map(lambda part: [f"part {part}"])
    names_of_links, _ = pd.factorize(links.explode())
    edges = np.repeat(np.arange(len(videos)), links.str.len()), names_of_links
    shared = coo_array((np.ones(len(names_of_links)), edges))
    graph = block_array([[None, shared], [shared.T, None]])  # nodes: the videos, then their links
    return connected_components(graph, directed=False)[1][: len(videos)]


def split_by_official_list(
    videos: pd.DataFrame, shares: pd.Series, rng: np.random.Generator
) -> pd.Series:
    """Return the published split of each video of one data set; "" if it is not listed.

    A data set without a list goes to the test split. If the list has no validation part, one is
    split off the training part, by identity.
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
    """Return the split of each video of one data set; "" for a fake with people of two splits.

    Components stay whole if at least three have real videos; a component larger than the training
    share is divided.
    """
    components = videos["component"]
    sizes = videos.pivot_table("crops", components, "label", "sum", fill_value=0)
    sizes = sizes.reindex(columns=LABELS, fill_value=0)
    too_large = (sizes > shares["train"] * sizes.sum()).any(axis=1)
    too_large |= (sizes["real"] > 0).sum() < len(SPLITS)
    people = list_people(videos)
    real_people = people[videos["label"] == "real"].explode()
    too_large &= real_people.groupby(components).nunique().reindex(sizes.index) >= len(SPLITS)

    # Divide components that are too large person by person, and leave out fakes whose people are in
    # two splits.
    inside = videos[components.map(too_large)]
    split_of_person = deal_people(inside, shares * sizes["real"].sum(), rng)
    splits = people[inside.index].explode().map(split_of_person).groupby(level=0)
    split_of_video = splits.first().where(splits.nunique() == 1, "")
    split_of_video = split_of_video.astype(object).reindex(videos.index, fill_value="").astype(str)
    filled = videos.pivot_table("crops", split_of_video, "label", "sum")
    filled = filled.reindex(index=served_first, columns=LABELS).fillna(0)

    # All other components stay whole.
    dealt = deal_components(sizes[~too_large], filled, shares, rng)
    return split_of_video.where(components.map(too_large), components.map(dealt))


def deal_people(videos: pd.DataFrame, targets: dict[str, float], rng: np.random.Generator) -> dict:
    """Assign the people of large components to splits; return the split of each identity.

    Test and validation each start with a random person. Then the person who shares the most fake
    crops with the people in the split is added, so that few fakes have people of two splits. A
    split is full when its real crops, or the fakes available to balance them, reach `targets`.
    Everyone else is used for training.
    """
    reals, shared = Counter(), defaultdict(Counter)  # real crops; fake crops per two people
    rows = zip(list_people(videos), videos["label"], videos["crops"], strict=True)
    for people, label, crops in rows:
        for person in people:
            reals[person] += crops * (label == "real")
            others = [other for other in people if other != person] or people
            shared[person].update({other: crops * (label == "fake") for other in others})

    waiting = [str(person) for person in rng.permutation(sorted(reals))]
    split_of = dict.fromkeys(waiting, "train")
    for split in ("test", "val"):
        gains = Counter()  # fake crops that each person would add to this split
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
    """Assign whole components to splits; return the split of each component.

    `sizes` has the fake and real crops per component, `filled` the fake and real crops already in
    each split, in the order in which to serve the splits. Large components are assigned first,
    components of similar size in random order, each to the split that is then furthest below its
    share (Graham's rule for machines of different speeds).
    """
    groups = {split: [] for split in SPLITS}
    filled = dict(zip(filled.index, filled.to_numpy(copy=True), strict=True))  # fake, real
    shuffled = sizes.loc[rng.permutation(sizes.index.sort_values())]
    powers = np.log2(shuffled.clip(lower=1)).astype(
        int
    )  # sizes within a factor of two count as equal
    order = {label: powers[label].sort_values(ascending=False, kind="stable") for label in LABELS}
    with_reals = shuffled.loc[order["real"].index].query("real > 0")
    for component, crops in zip(with_reals.index, with_reals.to_numpy(), strict=True):
        split = min(SPLITS, key=lambda split: (filled[split] + crops)[1] / shares[split])
        groups[split].append(component)
        filled[split] += crops

    # A split without real crops takes the smallest component of the split that has the most.
    for split in filled:
        donor = max(SPLITS, key=lambda split: len(groups[split]))
        if filled[split][1] == 0 and len(groups[donor]) > 1:
            groups[split].append(groups[donor].pop())
            filled[donor] -= sizes.loc[groups[split][-1]].to_numpy()
            filled[split] += sizes.loc[groups[split][-1]].to_numpy()

    # A component without reals goes to the split with the fewest fakes per real.
    served = [split for split in SPLITS if filled[split][1] > 0] or ["train"]
    for component, fake in shuffled.loc[order["fake"].index].query("real == 0")["fake"].items():
        split = min(served, key=lambda split: (filled[split][0] + fake) / (filled[split][1] or 1))
        groups[split].append(component)
        filled[split][0] += fake
    return {component: split for split, members in groups.items() for component in members}


def balance(videos: pd.DataFrame, seed: int) -> pd.Series:
    """Return the number of crops to take per video_id so that real and fake crops are balanced.

    `videos` has a column split. Within each split and data set, the label with more crops is
    reduced to the other, evenly over its methods, and evenly over the videos of a method.
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
    """Distribute `wanted` as evenly as possible, with random remainders; return the counts."""
    order = available.loc[rng.permutation(available.index.sort_values())].sort_values(kind="stable")
    taken = {}
    for position, (name, most) in enumerate(order.items()):
        taken[name] = min(most, wanted // (len(order) - position))
        wanted -= taken[name]
    return pd.Series(taken, dtype=int)


def choose_crops(crops: pd.DataFrame, videos: pd.DataFrame, taken: pd.Series) -> pd.DataFrame:
    """Choose crops evenly over the length of each video.

    Returns:
        crop (path below faces/), video_id, dataset, method, label, split, identities
    """
    groups = crops.groupby("video_id")["crop"]
    position, total = groups.cumcount(), groups.transform("size")
    wanted = crops["video_id"].map(taken).fillna(0).astype(int)
    # Take `wanted` of `total` crops at even spacing, as in Bresenham's line algorithm.
    chosen = (position + 1) * wanted // total > position * wanted // total
    columns = ["dataset", "method", "label", "split", "identities"]
    return crops.loc[chosen, ["crop", "video_id"]].join(
        videos.set_index("video_id")[columns], on="video_id"
    )
