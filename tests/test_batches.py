"""Tests of the batches: the crops, pairs and changes in an epoch."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfake_detect.augmentation import NO_CHANGES, Augmentation, draw_groups
from deepfake_detect.batches import serve_crops


def test_every_epoch_serves_every_crop_once_in_a_new_order() -> None:
    images = np.arange(30 * 128 * 128 * 3).reshape(30, 128, 128, 3) % 251
    images = (images + 5 * np.arange(30)[:, None, None, None]).astype(np.uint8)
    crops = pd.DataFrame({"label": ["fake", "real"] * 15, "dataset": "made up"})
    crops = crops.iloc[2:27]  # the index is the row in images

    def serve(seed: int, number: int) -> list[int]:
        epoch = []
        still = replace(NO_CHANGES, paired=False)
        for pictures, labels in serve_crops(images, crops, still, 12, (seed, number)):
            assert len(labels) in (8, 9)  # batches of 12 would leave a batch of 1
            for picture, label in zip(np.round(pictures), labels.numpy(), strict=True):
                row = [np.array_equal(picture, image) for image in images].index(True)
                assert label == (crops.label[row] == "real")
                epoch.append(row)
        return epoch

    first, second = serve(1, 1), serve(1, 2)
    assert sorted(first) == sorted(second) == list(range(2, 27))
    assert first != second and first != list(range(2, 27))
    assert serve(1, 1) == first  # needed to continue a stopped training
    assert serve(2, 1) != first


def test_batches_leave_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow's autograph would write one, and delete it unless the training is killed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    crops = pd.DataFrame({"label": ["fake", "real"], "dataset": "made up", "identities": ""})
    assert len(serve_crops(np.zeros((2, 32, 32, 3), np.uint8), crops, NO_CHANGES, 2, (0, 0))) == 1
    assert not list(tmp_path.iterdir())


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 1), st.integers(0, 4)), min_size=2),
    st.sampled_from((0.0, 0.5, 1.0)),
    st.integers(1, 3),
    st.integers(0, 100),
)
@settings(max_examples=40)
def test_reals_appear_as_often_as_fakes_and_with_their_own_fakes(
    drawn: list[tuple[bool, int, int]], blended: float, repeats: int, seed: int
) -> None:
    rows = [("real" if real else "fake", f"set {of}", f"id{one};") for real, of, one in drawn]
    crops = pd.DataFrame(rows, columns=["label", "dataset", "identities"])
    crops["identities"] = crops["identities"].str.strip(";").where(crops.index % 3 > 0, "")
    crops.index += 7
    wanted = replace(NO_CHANGES, blended=blended, repeats=repeats)
    pairs = draw_groups(crops, wanted, (seed, 1))
    assert pairs == draw_groups(crops, wanted, (seed, 1))
    for _, part in crops.groupby("dataset"):
        reals = part.index[part["label"] == "real"]
        fakes = len(part) - len(reals)
        times = pd.Series([real for real, _ in pairs if real in reals]).value_counts()
        assert times.sum() == min(max(len(reals), fakes), repeats * len(reals))
        assert set(times.index) == set(reals) and (times.empty or times.max() - times.min() <= 1)
    unrelated = []
    for real, fake in pairs:
        dataset, identity = crops.loc[real, ["dataset", "identities"]]
        fakes = crops[(crops["label"] == "fake") & (crops["dataset"] == dataset)]
        related = fakes.index[(fakes["identities"] == identity) & (identity != "")]
        if fake == -1:
            assert blended > 0 or fakes.empty
        else:
            assert blended < 1 and fake in (related if len(related) else fakes.index)
            unrelated += [] if len(related) else [(dataset, fake)]
    # Fakes without a related real crop: all are used once before one repeats.
    for dataset in {dataset for dataset, _ in unrelated}:
        times = pd.Series([fake for of, fake in unrelated if of == dataset]).value_counts()
        of_set = ((crops["label"] == "fake") & (crops["dataset"] == dataset)).sum()
        assert times.max() - (times.min() if len(times) == of_set else 0) <= 1


def test_a_real_crop_and_its_fake_are_changed_alike() -> None:
    """A real and a fake crop with equal pixels still have equal pixels after the changes."""
    rng = np.random.default_rng(1)
    faces = rng.integers(0, 256, (6, 128, 128, 3)).astype(np.uint8)
    images = np.concatenate((faces, faces))
    crops = pd.DataFrame({"label": ["real"] * 6 + ["fake"] * 6, "dataset": "made up"})
    crops["identities"] = [str(number % 6) for number in range(12)]
    strong = replace(Augmentation(), blended=0.0)
    for pictures, labels in serve_crops(images, crops, strong, 4, (1, 1)):
        assert labels.numpy().ravel().tolist() == [1, 0, 1, 0]
        assert np.array_equal(pictures[0::2], pictures[1::2])
    blended = replace(Augmentation(), blended=1.0)
    for pictures, labels in serve_crops(images, crops, blended, 4, (1, 1)):
        assert labels.numpy().ravel().tolist() == [1, 0, 1, 0]
        differ = (pictures[0::2] != pictures[1::2]).numpy()
        assert differ.any(axis=(1, 2, 3)).all()
