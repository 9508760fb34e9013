"""Measure the split of the five data sets at their true sizes: videos per split, time, memory.

    python -m benchmarks.split_sizes
    python -m benchmarks.split_sizes --crops-per-video 32

It does not need videos: it generates catalogues with the published counts of the data sets, and the
same number of crops per video. In Celeb-DF and DFD, the two people of a fake are random.
"""

from deepfake_detect import start

start.prepare(__name__)

import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from deepfake_detect import cli, splits
from deepfake_detect.cli import Count


@dataclass(frozen=True)
class Settings:
    """Edit a default here, or override it for one run: --crops-per-video 32."""

    crops_per_video: Count = 10  # as with one frame per second in clips of 10 seconds
    seed: int = 0  # random seed of the pairs and the split


COLUMNS = [f"{label} {split}" for label in ("real", "fake") for split in splits.SPLITS]
COLUMNS += ["fake between splits"]
Video = tuple[str, str, str, str, str]  # source, dataset, label, method, identities


def make_faceforensics() -> Iterator[Video]:
    """Make 1,000 originals in pairs, and fakes of each pair by five methods in both directions."""
    name = "FaceForensics++"
    for number in range(1000):
        yield f"original/{number:03d}", name, "real", "original", f"{number:03d}"
        for method in ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter"):
            pair = f"{number:03d};{number ^ 1:03d}"
            yield f"{method}/{number:03d}", name, "fake", method, pair


def make_celeb_df(rng: np.random.Generator) -> Iterator[Video]:
    """Make 590 reals of 59 people, 300 YouTube clips, and 5,639 fakes of two people each."""
    name = "Celeb-DF"
    for number in range(590):
        yield f"Celeb-real/{number}", name, "real", "original", f"id{number % 59}"
    for number in range(300):
        yield f"YouTube-real/{number}", name, "real", "original", f"youtube{number}"
    for number in range(5639):
        target, source = rng.choice(59, 2, replace=False)
        yield f"Celeb-synthesis/{number}", name, "fake", "swap", f"id{target};id{source}"


def make_dfd(rng: np.random.Generator) -> Iterator[Video]:
    """Make 363 reals of 28 actors, and 3,068 fakes of two actors each."""
    for number in range(363):
        yield f"actors/{number}", "DFD", "real", "original", f"{number % 28:02d}"
    for number in range(3068):
        target, source = rng.choice(28, 2, replace=False)
        yield f"DeepFakeDetection/{number}", "DFD", "fake", "swap", f"{target:02d};{source:02d}"


def make_dfdc() -> Iterator[Video]:
    """Make 19,154 originals and 100,000 fakes of them, in 50 parts."""
    for number in range(19154):
        yield f"part_{number % 50}/r{number}", "DFDC", "real", "original", f"r{number}"
    for number in range(100_000):
        original = number % 19154
        yield f"part_{original % 50}/f{number}", "DFDC", "fake", "DFDC", f"r{original}"


def make_timit() -> Iterator[Video]:
    """Make 32 people in 16 pairs, with 10 sentences and fakes of both directions and qualities."""
    name = "DeepFake-TIMIT"
    for person in range(32):
        for sentence in range(10):
            real = f"{person}/video/{sentence}"
            yield real, name, "real", "original", f"p{person}"
            for quality in ("higher", "lower"):
                fake = f"{quality}/{person}/{sentence}"
                yield fake, name, "fake", "faceswap-GAN", f"p{person};p{person ^ 1}"


def make_catalogue(crops_per_video: int, seed: int) -> pd.DataFrame:
    """Return the catalogue of all five data sets in the format of script 03."""
    rng = np.random.default_rng(seed)
    makers = (make_faceforensics(), make_celeb_df(rng), make_dfd(rng), make_dfdc(), make_timit())
    columns = ["source", "dataset", "label", "method", "identities"]
    videos = pd.DataFrame([video for maker in makers for video in maker], columns=columns)
    video_id = videos["dataset"] + "-" + videos["source"].str.replace("/", "-")
    return videos.assign(video_id=video_id, official_split="", crops=crops_per_video)


def main(settings: Settings = Settings()) -> pd.DataFrame:
    """Measure the split of the five data sets at their true sizes.

    Returns:
        the number of videos by data set, label and split
    """
    cli.check_ranges(settings)
    crops_per_video, seed = settings.crops_per_video, settings.seed
    videos = make_catalogue(crops_per_video, seed)
    crop_ids = pd.DataFrame({"video_id": videos["video_id"].repeat(crops_per_video)})
    crop_ids["crop"] = crop_ids["video_id"] + "-" + crop_ids.groupby("video_id").cumcount().map(str)

    start = time.perf_counter()
    videos["split"] = splits.split_videos(videos, seed=seed)
    taken = splits.balance(videos[videos["split"] != ""], seed)
    chosen = splits.choose_crops(crop_ids, videos, taken)
    seconds = time.perf_counter() - start

    groups = videos["label"] + " " + videos["split"].replace("", "between splits")
    tables = {
        "videos": videos.pivot_table("video_id", "dataset", groups, "count", fill_value=0),
        "balanced crops": chosen.pivot_table(
            "crop", "dataset", chosen["label"] + " " + chosen["split"], "count", fill_value=0
        ),
    }
    for name, table in tables.items():
        columns = [column for column in COLUMNS if column in table]
        print(f"{name}\n{table[columns].map('{:,}'.format).to_string()}\n")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{len(videos):,} videos, {len(crop_ids):,} crops: {seconds:.1f} s, {memory:,.0f} MiB")
    return tables["videos"]


if __name__ == "__main__":
    cli.run(main)
