"""Tests of identities.py: tables changed by a spreadsheet, and checks against file names."""

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import example, given
from hypothesis import strategies as st

from deepfake_detect import datasets, identities
from deepfake_detect.splits import split_videos

ROWS, _ = datasets.read_data_sets(ROOT / "data-sets.toml")


def faceforensics(people: int) -> pd.DataFrame:
    """Return videos.csv for people of FaceForensics++, with a fake of each and the next one."""
    rows = []
    for person in range(people):
        real, other = f"{person:03d}", f"{person ^ 1:03d}"
        path = f"original_sequences/youtube/c23/videos/{real}.mp4"
        rows.append((f"ffpp-original-c23-{real}", path, "real", real))
        path = f"manipulated_sequences/Deepfakes/c23/videos/{real}_{other}.mp4"
        rows.append((f"ffpp-Deepfakes-c23-{real}_{other}", path, "fake", f"{real};{other}"))
    videos = pd.DataFrame(rows, columns=["video_id", "source", "label", "identities"])
    return videos.assign(
        dataset="FaceForensics++", method=videos["label"], official_split="", crops=4
    )


CHANGES = {
    "zeros": lambda text: text.lstrip("0") or "0" if ";" not in text else text,
    "number": lambda text: f"{int(text)}.0" if ";" not in text else text,
    "comma": lambda text: text.replace(";", ","),
    "comma and blank": lambda text: text.replace(";", ", "),
    "blank": lambda text: text.replace(";", " "),
    "blanks around": lambda text: f" {text.replace(';', ' ; ')}\xa0",
    "apostrophe": lambda text: f"'{text}",
    "bar": lambda text: text.replace(";", "|"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_by_a_spreadsheet_are_restored(change: str) -> None:
    videos = faceforensics(40)
    changed = videos.assign(identities=videos["identities"].map(CHANGES[change]))
    assert not changed.equals(videos)
    changed["identities"] = identities.normalise(changed, is_trusted=False)
    assert changed.equals(videos)
    identities.check_changed_table(changed, ROWS)


def test_letter_case_and_accents_do_not_matter() -> None:
    names = ["Id007", "id007", "JOS\u00c9", "jose\u0301", " anna "]
    videos = pd.DataFrame({"dataset": "D", "identities": names})
    restored = identities.normalise(videos, is_trusted=True)
    assert restored.tolist() == ["id007", "id007", "jos\u00e9", "jos\u00e9", "anna"]


def test_comma_in_an_unchanged_table_is_kept() -> None:
    videos = pd.DataFrame({"dataset": "plain", "identities": ["smith, anna", "smith, john"]})
    assert identities.normalise(videos, True).tolist() == ["smith, anna", "smith, john"]
    assert identities.normalise(videos, False).str.split(";").map(len).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("column", "value", "named"),
    [
        ("identities", "005", "ffpp-original-c23-001"),
        ("identities", "", "no identities"),
        ("identities", "1.23457E+11", "rounded"),
        ("identities", "001;002", "ffpp-original-c23-001"),
        ("source", "original_sequences/youtube/c23/videos/009.mp4", "009.mp4"),
    ],
)
def test_identity_that_contradicts_the_names_is_rejected(
    column: str, value: str, named: str
) -> None:
    videos = faceforensics(4)
    videos.loc[2, column] = value
    videos["identities"] = identities.normalise(videos, is_trusted=False)
    with pytest.raises(ValueError, match=named):
        identities.check_changed_table(videos, ROWS)


@pytest.mark.parametrize(
    ("video_id", "people"),
    [
        ("ffpp-original-c23-071", {"071"}),
        ("ffpp-Deepfakes-c23-071_054", {"071", "054"}),
        ("dfd-original-01__exit_phone_room", {"01"}),
        ("dfd-DeepFakeDetection-c23-01_02__exit_phone_room__YVGY8LOK", {"01", "02"}),
        ("celebdf-real-id0_0001", {"id0"}),
        ("celebdf-synthesis-id0_id1_0001", {"id0", "id1"}),
        ("celebdf-youtube-00012", {"youtube00012"}),
        ("dfdc-aajsqyyjni", set()),
        ("plain-real-anna-1", set()),
    ],
)
def test_video_id_identifies_people(video_id: str, people: set[str]) -> None:
    assert identities.people_of_name(video_id, ROWS) == people


@given(st.lists(st.text(max_size=12), min_size=1, max_size=6), st.booleans())
@example(['0"\x0c', "ß\u0301"], False)
def test_any_text_is_a_set_of_people(texts: list[str], is_trusted: bool) -> None:
    videos = pd.DataFrame({"dataset": "D", "identities": texts})
    once = identities.normalise(videos, is_trusted)
    again = identities.normalise(videos.assign(identities=once), is_trusted)
    assert once.equals(again)
    assert not once.str.contains(r"^;|;;|;$").any()


@pytest.mark.parametrize("change", ["zeros", "comma"])
def test_no_person_is_in_two_splits_after_a_spreadsheet(change: str) -> None:
    videos = faceforensics(40)
    videos["identities"] = videos["identities"].map(CHANGES[change])
    videos["identities"] = identities.normalise(videos, is_trusted=False)
    videos["split"] = split_videos(videos)
    named = videos["video_id"].str.extractall(r"(\d{3})(?=_|$)")[0].droplevel(1)
    seen = pd.DataFrame({"person": named, "split": videos["split"][named.index]})
    seen = seen[seen["split"] != ""].drop_duplicates()
    assert seen["person"].nunique() == 40 and seen["person"].is_unique
    assert np.all(videos["split"] != "")
