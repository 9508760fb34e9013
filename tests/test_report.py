"""The report of 06: whole in itself, true to the JSON beside it, and safe with strangers' names."""

import base64
import hashlib
import importlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT
from frames import make_frame
from test_06_detect import write_frames

from deepfake_detect import report as detection_report
from deepfake_detect.decision import Decision
from deepfake_detect.model import LITE0_WEIGHTS, build_model
from deepfake_detect.model_file import Scorer, read_decision, write_model

train_cnn = importlib.import_module("04-train-cnn")
detect = importlib.import_module("06-detect-deepfake")

# What 05 writes, but for what the report does not show.
MEASURES = {"folder": "/home/me/my-split", "dataset": "", "method": "", "fakes_found": 0.8}
MEASURES |= {"real videos": 200, "reals_called_fake": 0.12, "reals_called_fake_95": [0.08, 0.17]}
MEASURES |= {"fake videos": 90, "fakes_found_95": None}
MEASURED = {
    "groups": [
        MEASURES,
        MEASURES | {"dataset": "DFD"},
        MEASURES | {"dataset": "DFD", "method": "a"},
    ],
    "training": {"counts": {"train": {"fake crops": 1234, "real crops": 987}}},
}


@pytest.fixture(scope="module")
def detections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What 06 writes of a video, a picture and a video without a face."""
    home = tmp_path_factory.mktemp("report")
    train_cnn.keras.utils.set_random_seed(1)
    built = build_model(LITE0_WEIGHTS)
    decision = Decision(temperature=1.0, threshold=0.5, real_below=0.4)
    write_model(built, decision, home / "best_model.keras")
    (home / "metrics.json").write_text(json.dumps(MEASURED | {"decision": decision._asdict()}))
    frames = [make_frame((40 + 12 * at, 200, 1.2), size=(640, 480)) for at in range(12)]
    write_frames(home / "in" / "clip.mp4", frames)
    write_frames(home / "in" / "empty.mp4", [make_frame()] * 6)
    cv2.imwrite(str(home / "in" / "photo.png"), make_frame((200, 60, 1.0)))
    detect.main([home / "in"], model=home / "best_model.keras", detections_dir=home / "out")
    return home / "out"


class Page(HTMLParser):
    """The elements of a page, each with its attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def find(self, tag: str, **wanted: str) -> list[dict]:
        return [
            found
            for name, found in self.elements
            if name == tag and wanted.items() <= found.items()
        ]


@pytest.mark.parametrize("name", ["clip", "empty", "photo"])
def test_nothing_in_it_is_loaded_from_elsewhere(detections: Path, name: str) -> None:
    page = Page(detections / f"{name}.html")
    (policy,) = page.find("meta", **{"http-equiv": "Content-Security-Policy"})
    assert "default-src 'none'" in policy["content"]
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.elements}
    for tag, found in page.elements:
        for attribute, value in found.items():
            if attribute in ("src", "poster", "data", "srcset", "action"):
                kind, _, data = value.partition(";base64,")
                assert kind in ("data:image/jpeg", "data:video/mp4"), (tag, attribute, value[:60])
                assert base64.b64decode(data, validate=True)
            if attribute == "href":
                assert value.startswith("#"), value
    text = (detections / f"{name}.html").read_text(encoding="utf-8")
    assert "http:" not in text and "https:" not in text and "url(" not in text
    assert str(detections.parent) not in text


def test_it_says_what_the_json_says(detections: Path) -> None:
    page, result = (
        Page(detections / "clip.html"),
        json.loads((detections / "clip.json").read_text()),
    )
    (track,) = result["tracks"]
    low, high = track["interval_95"]
    assert f"p_fake {track['p_fake']:.2f} ({low:.2f} to {high:.2f})" in page.text
    points = page.find("circle", **{"class": "dot"}) + page.find("circle", **{"class": "dot above"})
    of_gauge, marks = 1, [face["p_fake"] >= result["threshold"] for face in track["faces"]]
    assert len(points) == len(marks) + of_gauge
    assert len(page.find("circle", **{"class": "dot above"})) == sum(marks) + of_gauge
    rows = {row["id"] for row in page.find("tr") if "id" in row}
    assert rows == {f"face-1-{face['frame']}" for face in track["faces"]}
    for link in page.find("a"):
        assert link["href"][1:] in rows
    assert len(page.find("line", **{"class": "cut"})) == 2 * (of_gauge + len(result["tracks"]))
    assert "from 0.50 on a face is called fake, below 0.40 real" in page.text
    maps = page.find("img", alt="What moved its score")  # one beside each of the worst crops
    assert len(maps) == min(detect.EXPLAINED, len(track["faces"]))
    assert len({found["src"] for found in maps}) == len(maps)


def test_it_has_what_a_check_needs(detections: Path) -> None:
    page = Page(detections / "clip.html")
    for path in (detections.parent / "in" / "clip.mp4", detections.parent / "best_model.keras"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in page.text
        assert path.name in page.text
    for words in (
        "frames per second 2.0",
        "temperature 1.0",
        "threshold 0.5",
        "real below 0.4",
        "TensorFlow ",
    ):
        assert words in page.text
    assert re.search(r"Scored\s*20\d\d-\d\d-\d\d \d\d:\d\d", page.text)


def test_the_rate_of_false_alarms_stands_beside_the_number(detections: Path) -> None:
    page = Page(detections / "clip.html")
    text = " ".join(page.text.split())
    assert "Of 200 real videos that it was not trained on, this model called 12 in 100" in text
    assert "1,234 fake and 987 real crops" in text
    rows = [row["class"] for row in page.find("tr", **{"class": "measured"})]
    assert len(rows) == 2  # one a data set, and one of all; none a method
    assert "all together" in text and "my-split" not in text and "/home/me" not in text
    assert "DFD" in text and "80 in 100" in text


def make_content(**result: object) -> dict:
    """What a report of one face in a video shows, made up."""
    faces = [
        {"frame": at, "seconds": at / 2, "x": 1, "y": 2, "width": 3, "height": 4, "p_fake": 0.9}
        for at in range(6)
    ]
    track = {"track": 1, "verdict": "likely fake", "doubt": "", "p_fake": 0.9, "frames": 6}
    track |= {"interval_95": [0.85, 0.95], "first_seconds": 0.0, "last_seconds": 2.5}
    track |= {name: value for name, value in result.items() if name in track}
    made = {"file": "clip.mp4", "kind": "video", "threshold": 0.6, "real_below": 0.6}
    made |= {
        "frames_scored": 6,
        "width": 64,
        "height": 48,
        "notes": [],
        "tracks": [track | {"faces": faces}],
    }
    made |= {name: track[name] for name in ("verdict", "doubt", "p_fake", "interval_95", "track")}
    file = {"name": "clip.mp4", "bytes": 5, "sha256": "0" * 64}
    used = {"model": {"name": "m.keras"}, "settings": {"frames_per_second": 2.0}}
    return {"result": made | result, "worst": [], "file": file, **used}


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({}, "▲ Strong signs of manipulation"),
        ({"p_fake": 0.79}, "△ Some signs of manipulation"),  # nearer to the threshold than to 1
        ({"verdict": "likely real", "p_fake": 0.1}, "○ Little sign of manipulation"),
        ({"p_fake": 0.9}, "and the whole range of it, lies where a face is called fake."),
        ({"kind": "picture", "interval_95": None}, "face lies where a face is called fake."),
        ({"verdict": "undecided", "doubt": "it is too small"}, "because it is too small."),
        ({"verdict": "no face", "p_fake": None, "tracks": []}, "□ No face was found"),
    ],
)
def test_the_verdict_stands_first_in_words_and_by_more_than_its_colour(
    result: dict, words: str
) -> None:
    page = detection_report.render_report(make_content(**result))
    text = re.sub(r"<style>.*?</style>|<[^>]+>", "", page, flags=re.DOTALL)
    text = " ".join(text.split())
    assert words in text
    if result.get("p_fake", 0) is not None:
        assert text.index(words) < text.index("p_fake")
    assert "its rate of false alarms is not known" in text  # nothing lies beside the model


def test_what_lies_between_the_thresholds_is_said_to_be_neither() -> None:
    one, two = (
        " ".join(detection_report.render_report(make_content(real_below=value)).split())
        for value in (0.6, 0.5)
    )
    assert "from 0.60 on a face is called fake, below 0.60 real." in one
    assert "from 0.60 on a face is called fake, below 0.50 real, and between the two neither" in two
    assert two.count('class="cut"') == 2 * one.count('class="cut"') == 4


def test_measures_of_another_model_are_not_taken_for_its_own(tmp_path: Path) -> None:
    decision = Decision(temperature=1.0, threshold=0.5)
    scorer = Scorer(tmp_path / "best_model.keras", decision, None)
    for content in ("", "[]", "{}", '{"decision": 1}', json.dumps(MEASURED | {"decision": {}})):
        (tmp_path / "metrics.json").write_text(content)
        assert detection_report.read_measures(scorer) == {}
    for kept in (
        list(decision._fields),
        [name for name in decision._fields if name != "real_below"],
    ):
        own = MEASURED | {"decision": {name: getattr(decision, name) for name in kept}}
        (tmp_path / "best_model.json").write_text(json.dumps(own))
        assert detection_report.read_measures(scorer) == own  # an older one has one threshold


def test_the_detector_that_comes_along_says_how_often_it_is_wrong() -> None:
    detector = ROOT / "weights" / "deepfake-detector.keras"
    scorer = Scorer(detector, read_decision(detector), None)
    page = detection_report.render_report(
        make_content() | {"measured": detection_report.read_measures(scorer)}
    )
    assert "real videos that it was not trained on, this model called" in page


def test_few_real_videos_give_no_rate() -> None:
    few = {"groups": [MEASURES | {"real videos": 4, "reals_called_fake": 0.25}]}
    page = detection_report.render_report(make_content() | {"measured": few})
    assert "this model called 1 fake: too few videos to tell." in page


def test_a_strangers_name_is_only_text(tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>\"'{{ 7 * 7 }}</title><script>.mp4"
    content = make_content()
    content["file"]["name"] = name
    content["result"]["notes"] = [name]
    (tmp_path / "report.html").write_text(detection_report.render_report(content), encoding="utf-8")
    page = Page(tmp_path / "report.html")
    assert page.text.count(name) >= 3
    assert not page.find("script") and not page.find("img", src="x")


def test_a_large_video_stays_beside_it(detections: Path, tmp_path: Path) -> None:
    source = detections.parent / "in" / "clip.mp4"
    detect.main(
        [source],
        model=detections.parent / "best_model.keras",
        detections_dir=tmp_path,
        largest_video=0.001,
    )
    page = Page(tmp_path / "clip.html")
    assert not page.find("video") and "lies beside it (clip-marked.mp4)" in page.text
    (still,) = page.find("img", **{"class": "still"})
    data = base64.b64decode(still["src"].partition(",")[2])
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape == (480, 640, 3)
