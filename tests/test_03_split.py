"""03: no identity in two splits, balanced classes, and folders that match the plan."""

import importlib
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import assert_stops, run_script
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepfake_detect.splits import balance, share_evenly, split_videos

SCRIPT = "03-prepare-fake-real-dataset.py"
prepare = importlib.import_module("03-prepare-fake-real-dataset")
RATIO = (0.8, 0.1, 0.1)
PARTS = 10  # smallest number of DFDC parts that are kept whole
METHODS = ("Deepfakes", "Face2Face", "FaceSwap")


# --- Catalogues like the five data sets -----------------------------------------------------------


def faceforensics(people: int, rng: np.random.Generator) -> list[tuple]:
    """Make one real per person, and fakes of each pair in both directions by several methods."""
    reals = [("ff", "real", "original", f"{n}") for n in range(people)]
    pairs = [f"{n};{n ^ 1}" for n in range(people)]
    return reals + [("ff", "fake", method, pair) for method in METHODS for pair in pairs]


def celeb(people: int, rng: np.random.Generator) -> list[tuple]:
    """Make reals of few people, fakes of any two of them, and single reals without fakes."""
    reals = [("celeb", "real", "original", f"id{n % people}") for n in range(3 * people)]
    singles = [("celeb", "real", "original", f"youtube{n}") for n in range(people)]
    swaps = [rng.choice(people, 2, replace=False) for _ in range(12 * people)]
    return reals + singles + [("celeb", "fake", "swap", f"id{t};id{s}") for t, s in swaps]


def dfdc(originals: int, rng: np.random.Generator) -> list[tuple]:
    """Make reals, and one to four fakes of each; some reals are missing, as in parts of DFDC."""
    reals = [("DFDC", "real", "original", f"o{n}") for n in range(originals)]
    fakes = [("DFDC", "fake", "DFDC", f"o{n}") for n in range(originals + 3)]
    return reals + fakes * int(rng.integers(1, 5))


def plain(videos: int, rng: np.random.Generator) -> list[tuple]:
    """Make unrelated reals and fakes."""
    reals = [("plain", "real", "original", f"r{n}") for n in range(videos)]
    return reals + [("plain", "fake", "plain", f"f{n}") for n in range(2 * videos)]


def timit(pairs: int, rng: np.random.Generator) -> list[tuple]:
    """Make pairs of people, swapped in both directions, in two qualities."""
    people = range(2 * pairs)
    reals = [("timit", "real", "original", f"p{n}") for n in people for _ in range(4)]
    fakes = [("timit", "fake", "faceswap", f"p{n};p{n ^ 1}") for n in people for _ in range(8)]
    return reals + fakes


def make_catalogue(sizes: dict[callable, int], seed: int) -> pd.DataFrame:
    """Make a catalogue in the format of script 03, with a random number of crops per video."""
    rng = np.random.default_rng(seed)
    rows = [row for kind, size in sizes.items() for row in kind(size, rng)]
    videos = pd.DataFrame(rows, columns=["dataset", "label", "method", "identities"])
    return videos.assign(
        video_id=[f"v{number:05d}" for number in range(len(videos))],
        source=[f"folder/v{number}.mp4" for number in range(len(videos))],
        official_split="",
        crops=rng.integers(1, 8, len(videos)),
    )


CATALOGUES = st.builds(
    make_catalogue,
    st.dictionaries(
        st.sampled_from([faceforensics, celeb, dfdc, plain, timit]),
        st.integers(3, 10).map(lambda size: 2 * size),
        min_size=1,
        max_size=2,
    ),
    st.integers(0, 2**31),
)


def splits_of_identities(videos: pd.DataFrame) -> dict[tuple[str, str], set[str]]:
    """Return the splits of each identity, without using the script's code."""
    seen = defaultdict(set)
    for video in videos.itertuples():
        for identity in video.identities.split(";") if video.split else ():
            seen[video.dataset, identity].add(video.split)
    return seen


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(CATALOGUES, st.integers(0, 100))
def test_each_identity_is_in_one_split_and_all_reals_are_kept(
    videos: pd.DataFrame, seed: int
) -> None:
    videos["split"] = split_videos(videos, "identity", RATIO, seed, PARTS)
    assert set(videos["split"]) <= {"train", "val", "test", ""}
    assert all(len(splits) == 1 for splits in splits_of_identities(videos).values())
    assert set(videos["label"][videos["split"] == ""]) <= {"fake"}
    for _, of_dataset in videos.groupby("dataset"):
        reals = of_dataset[of_dataset["label"] == "real"]
        assert set(reals["split"]) == {"train", "val", "test"}


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(CATALOGUES, st.integers(0, 100))
def test_every_split_is_balanced_and_fakes_are_spread(videos: pd.DataFrame, seed: int) -> None:
    videos["split"] = split_videos(videos, "identity", RATIO, seed, PARTS)
    taken = balance(videos[videos["split"] != ""], seed)
    videos["taken"] = videos["video_id"].map(taken).fillna(0).astype(int)
    assert (videos["taken"] <= videos["crops"]).all()
    for _, part in videos[videos["split"] != ""].groupby(["dataset", "split"]):
        available = part.groupby("label")["crops"].sum().reindex(["fake", "real"], fill_value=0)
        got = part.groupby("label")["taken"].sum().reindex(["fake", "real"], fill_value=0)
        assert got["fake"] == got["real"] == available.min()
        for _, of_method in part.groupby(["label", "method"]):
            # A video gives at most one crop more than a video with crops left.
            left_some = of_method["taken"] < of_method["crops"]
            if left_some.any():
                assert of_method["taken"].max() <= of_method["taken"][left_some].min() + 1


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(CATALOGUES, st.integers(0, 100), st.randoms(use_true_random=False))
def test_split_depends_on_the_seed_not_the_order(
    videos: pd.DataFrame, seed: int, random: object
) -> None:
    order = list(range(len(videos)))
    random.shuffle(order)
    first = split_videos(videos, "identity", RATIO, seed, PARTS)
    second = split_videos(videos.iloc[order], "identity", RATIO, seed, PARTS)
    assert first.equals(second.sort_index())
    assert (
        balance(videos.assign(split=first), seed)
        .sort_index()
        .equals(balance(videos.iloc[order].assign(split=second), seed).sort_index())
    )


@pytest.mark.parametrize("kind", [faceforensics, celeb, dfdc, plain, timit])
def test_many_groups_match_the_split_ratio(kind: callable) -> None:
    for seed in range(10):
        videos = make_catalogue({kind: 100}, seed)
        videos["split"] = split_videos(videos, "identity", RATIO, seed, PARTS)
        reals = videos[videos["label"] == "real"].groupby("split")["crops"].sum()
        shares = reals / reals.sum()
        assert shares.sub(pd.Series(RATIO, index=["train", "val", "test"])).abs().max() < 0.03
        kept = videos[videos["split"] != ""].groupby(["split", "label"])["crops"].sum().unstack()
        assert (kept["fake"] > 0.6 * kept["real"]).all()


def test_seeds_give_different_splits() -> None:
    for kind in (faceforensics, celeb, dfdc, plain, timit):
        videos = make_catalogue({kind: 40}, 0)
        splits = [split_videos(videos, "identity", RATIO, seed, PARTS) for seed in range(3)]
        assert len({tuple(split) for split in splits}) == 3


def test_adding_a_data_set_keeps_the_other_splits() -> None:
    alone = make_catalogue({faceforensics: 40}, 0)
    both = pd.concat([alone, make_catalogue({timit: 10}, 0).assign(dataset="a")])
    both["video_id"] = both["dataset"] + both["video_id"]
    first = split_videos(alone, "identity", RATIO, 0, PARTS)
    second = split_videos(both.reset_index(drop=True), "identity", RATIO, 0, PARTS)
    assert first.equals(second[: len(alone)])


def test_ten_parts_of_dfdc_stay_whole() -> None:
    for parts, together in ((10, True), (9, False)):
        videos = make_catalogue({dfdc: 200}, 0)
        part = videos["identities"].str[1:].astype(int) % parts
        videos["source"] = [f"dfdc_train_part_{number}/x.mp4" for number in part]
        splits = split_videos(videos, "identity", RATIO, 0, PARTS)
        assert (splits.groupby(part).nunique() == 1).all() == together


def test_official_lists() -> None:
    listed = make_catalogue({faceforensics: 6}, 0)
    listed["official_split"] = ["train", "val", "test", ""] * (len(listed) // 4)
    assert split_videos(listed, "official", RATIO, 0, PARTS).equals(listed["official_split"])
    without = make_catalogue({timit: 6}, 0)
    assert set(split_videos(without, "official", RATIO, 0, PARTS)) == {"test"}
    no_val = make_catalogue({dfdc: 40}, 0)
    no_val["official_split"] = np.where(
        no_val["identities"].str[1:].astype(int) < 8, "test", "train"
    )
    no_val["split"] = split_videos(no_val, "official", RATIO, 0, PARTS)
    assert (no_val["split"] == "test").equals(no_val["official_split"] == "test")
    assert (no_val["split"] == "val").any()
    assert all(len(splits) == 1 for splits in splits_of_identities(no_val).values())


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=20), st.integers(0, 2000), st.integers(0, 9)
)
def test_share_evenly(available: list[int], wanted: int, seed: int) -> None:
    wanted = min(wanted, sum(available))
    series = pd.Series(available, index=[f"n{n}" for n in range(len(available))])
    taken = share_evenly(series, wanted, np.random.default_rng(seed))[series.index]
    assert taken.sum() == wanted
    assert (taken <= series).all()
    left_some = taken < series
    if left_some.any():
        assert taken.max() <= taken[left_some].min() + 1


# --- The whole script, on crops on disk -----------------------------------------------------------


def write_faces(folder: Path, videos: int = 10, crops: int = 6) -> None:
    """Write frames/videos.csv and faces/ with tiny crops of reals and two fakes of each."""
    rows, faces = [], []
    for number in range(videos):
        for label, method in (("real", "original"), ("fake", "A"), ("fake", "B")):
            video_id = f"x-{method}-{number}"
            rows.append(
                {
                    "video_id": video_id,
                    "source": f"{video_id}.mp4",
                    "dataset": "X",
                    "label": label,
                    "method": method,
                    "identities": f"p{number}",
                    "official_split": "",
                }
            )
            (folder / "faces" / video_id).mkdir(parents=True)
            for frame in range(crops):
                crop = f"{video_id}/{video_id}-{frame:06d}-00.png"
                image = np.full((8, 8, 3), frame, np.uint8)
                (folder / "faces" / crop).write_bytes(cv2.imencode(".png", image)[1])
                faces.append({"crop": crop, "video_id": video_id})
    (folder / "frames").mkdir()
    pd.DataFrame(rows).to_csv(folder / "frames/videos.csv", index=False)
    pd.DataFrame(faces).to_csv(folder / "faces/faces.csv", index=False)


@pytest.fixture
def faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_faces(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def count_files(folder: Path) -> dict[str, int]:
    """Count the images in each folder."""
    counts = defaultdict(int)
    for path in folder.rglob("*.png"):
        counts[path.parent.relative_to(folder).as_posix()] += 1
    return dict(counts)


def test_folders_match_the_plan(faces: Path, capsys: pytest.CaptureFixture) -> None:
    prepare.main()
    assert count_files(faces / "prepared_dataset") == {"real": 60, "fake": 60}
    assert count_files(faces / "split_dataset") == {
        "train/real": 48,
        "train/fake": 48,
        "val/real": 6,
        "val/fake": 6,
        "test/real": 6,
        "test/fake": 6,
    }
    assert "identities in two splits: 0" in capsys.readouterr().out
    table = pd.read_csv(faces / "split_dataset/crops.csv")
    columns = ["crop", "video_id", "dataset", "method", "label", "split", "identities"]
    assert list(table.columns) == columns  # 04 pairs reals and fakes by identities
    assert all((faces / "split_dataset" / crop).is_file() for crop in table["crop"])
    fakes = table[table["label"] == "fake"]
    assert fakes["method"].value_counts().to_dict() == {"A": 30, "B": 30}
    assert (fakes["video_id"].value_counts() == 3).all()


def test_second_run_gives_the_same_files_without_leftovers(faces: Path) -> None:
    prepare.main()
    first = sorted(faces.rglob("*_dataset/**/*"))
    prepare.main()
    assert sorted(faces.rglob("*_dataset/**/*")) == first
    for seed in range(1, 6):
        prepare.main(prepare.Settings(seed=seed))
    assert sum(count_files(faces / "split_dataset").values()) == 120
    assert not list(faces.glob(".*unfinished*"))


def test_hard_links_or_copies(faces: Path) -> None:
    prepare.main()
    crop = next((faces / "split_dataset/train/real").iterdir())
    assert crop.stat().st_nlink == 3
    prepare.main(prepare.Settings(files="copy"))
    crop = next((faces / "split_dataset/train/real").iterdir())
    assert crop.stat().st_nlink == 1
    assert cv2.imread(str(crop)).shape == (8, 8, 3)


def test_missing_crops_are_left_out_and_counted(faces: Path, capsys: pytest.CaptureFixture) -> None:
    (faces / "faces/x-original-3/x-original-3-000002-00.png").unlink()
    prepare.main()
    assert count_files(faces / "prepared_dataset") == {"real": 59, "fake": 59}
    assert "1 crops of faces.csv, not on disk: x-original-3/" in capsys.readouterr().out


def test_bad_input_is_reported(faces: Path, snapshot: callable) -> None:
    prepare.main()
    (faces / "split_dataset/train/real/mine.png").touch()
    before = snapshot(faces)
    assert_stops(run_script(SCRIPT, cwd=faces), "split_dataset", "train/real/mine.png")
    with pytest.raises(OSError, match=r"frames/faces\.csv.*02-crop-faces-with-mtcnn\.py"):
        prepare.main(prepare.Settings(faces_dir=Path("frames")))
    with pytest.raises(OSError, match=r"nowhere/videos\.csv.*01-convert-video-to-image\.py"):
        prepare.main(prepare.Settings(frames_dir=Path("nowhere")))
    videos = pd.read_csv(faces / "frames/videos.csv")
    for name, table, words in (
        ("one-label", videos[videos["label"] == "real"], "of fake videos"),
        ("two-groups", videos[videos["identities"].isin(["p0", "p1"])], "too few separate"),
        ("no-column", videos.drop(columns="identities"), "column identities.*01-"),
    ):
        (faces / name).mkdir()
        table.to_csv(faces / name / "videos.csv", index=False)
        with pytest.raises(ValueError, match=words):
            prepare.main(prepare.Settings(frames_dir=Path(name)))
        (faces / name / "videos.csv").unlink()
    assert snapshot(faces) == before
