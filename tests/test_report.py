"""Test the report of 06: self-contained, equal to the JSON, and safe with strangers' names."""

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from media import StandIn, encode, frame, write_clip

from deepfake_detect import Detector, Result, report
from deepfake_detect.decision import Decision, describe_decision
from deepfake_detect.provenance import Credentials, Provenance
from deepfake_detect.result import FAKE, NO_FACE, REAL, UNDECIDED, Part
from deepfake_detect.shipped import find_shipped

DECISION = Decision(threshold=0.6, real_below=0.4)
PERSON = (200, 100)


def count(files: int, **verdicts: int) -> dict:
    known = dict.fromkeys((FAKE, REAL, UNDECIDED, NO_FACE, "not checked"), 0)
    return {"files": files, **known, **{name.replace("_", " "): n for name, n in verdicts.items()}}


CLIPS = {
    "video": {
        "real": count(8, likely_fake=1, likely_real=6, undecided=1),
        "fake": count(200, likely_fake=150, likely_real=26, undecided=24),
    },
    "picture": {"real": count(0), "fake": count(0)},
    "by_dataset": [
        {"kind": "video", "dataset": "DFD", "method": "", "label": "real"}
        | count(8, likely_fake=1, likely_real=6, undecided=1)
    ],
}
GROUP = {"folder": "/home/me/split", "dataset": "", "method": "", "fakes_found": 0.8}
GROUP |= {"real videos": 200, "reals_called_fake": 0.12, "fake videos": 90}
GROUP |= {"fakes_called_real": 0.1}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def detector(home: Path) -> Detector:
    made = Detector()
    made.model = StandIn(name=str(home / "best_model.onnx"))
    return made


@pytest.fixture(scope="module")
def fake(detector: Detector, home: Path) -> Result:
    """Return the result for a real video of half a minute with three fake seconds."""
    shot = [frame((*PERSON, 10 <= at < 16)) for at in range(60)]
    return detector.check(write_clip(home / "long clip.mp4", shot))


@pytest.fixture(scope="module")
def picture(detector: Detector, home: Path) -> Result:
    (home / "photo.png").write_bytes(encode(frame(PERSON)))
    return detector.check(home / "photo.png")


@pytest.fixture(scope="module")
def nobody(detector: Detector) -> Result:
    return detector.check(frame())


class Page(HTMLParser):
    """The elements of a page, each with its attributes, and its text without scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements, self.text, self.inside = [], "", ""
        self.feed(page)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        self.text += data if self.inside not in ("script", "style") else ""

    def find(self, tag: str, **wanted: str) -> list[dict]:
        wanted = {name.rstrip("_"): value for name, value in wanted.items()}
        return [one for name, one in self.elements if name == tag and wanted.items() <= one.items()]


@pytest.mark.parametrize("name", ["fake", "picture", "nobody"])
def test_report_loads_nothing_from_elsewhere(
    name: str, detector: Detector, home: Path, request: pytest.FixtureRequest
) -> None:
    detector.write_report(request.getfixturevalue(name), home / f"{name}.html")
    text = (home / f"{name}.html").read_text(encoding="utf-8")
    page = Page(text)
    (policy,) = page.find("meta", **{"http-equiv": "Content-Security-Policy"})
    assert "default-src 'none'" in policy["content"]
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in page.elements}
    for tag, found in page.elements:
        for attribute, value in found.items():
            if attribute in ("src", "poster", "data", "srcset", "action"):
                kind, _, data = value.partition(";base64,")
                assert kind in ("data:image/jpeg", "data:video/mp4"), (tag, attribute, value[:60])
                assert base64.b64decode(data, validate=True)
            if attribute == "href":
                assert value.startswith("#"), value
    assert "http:" not in text and "https:" not in text and "url(" not in text
    assert str(home) not in text
    assert len(page.find("video")) == (name == "fake") and len(text) < 7_000_000


def test_report_agrees_with_json(detector: Detector, fake: Result) -> None:
    page = Page(detector.render_report(fake))
    (track,) = fake.tracks
    assert fake.verdict == FAKE and fake.part is not None
    assert f"Score {track.score} (" in page.text and "not a probability" in page.text
    assert "0:05 to 0:08" in page.text
    assert page.text.index("Likely fake") < page.text.index("Score")
    rows = {row["id"] for row in page.find("tr") if "id" in row}
    assert rows == {f"face-1-{face.frame}" for face in track.faces}
    points = [one for one in page.find("a") if "style" in one]
    assert len(points) == 60 and {one["href"][1:] for one in points} == rows
    above = [one for one in points if one.get("class") == "above"]
    assert len(above) == sum(face.p_fake >= fake.threshold for face in track.faces) == 6
    (shade,) = page.find("span", class_="part")
    left, width = map(float, re.findall(r"([\d.]+)%", shade["style"]))
    assert left == pytest.approx(100 * 5 / 29.5, abs=0.1)
    assert width == pytest.approx(100 * 2.5 / 29.5, abs=0.1)


def test_heat_maps_share_a_scale_and_exclude_the_real_range(
    detector: Detector, fake: Result, picture: Result
) -> None:
    page = Page(detector.render_report(fake))
    crops = [one for one in fake.evidence.crop_faces if one[1].p_fake >= fake.real_below]
    assert len(page.find("img", alt="What influenced its score")) == len(crops) == 6
    assert len(fake.evidence.crops) == 8
    assert not Page(detector.render_report(picture)).find("img", alt="What influenced its score")
    weak = replace(fake.evidence, heat=fake.evidence.heat * np.linspace(1, 0.1, 8)[:, None, None])
    maps = [one["heat"] for one in report.embed_crops(replace(fake, evidence=weak))]
    assert len(set(maps[:6])) == 6 and maps[6:] == [None, None]


def test_report_contains_values_for_a_check(detector: Detector, fake: Result) -> None:
    page = Page(detector.render_report(fake))
    for words in (fake.sha256, fake.model_sha256, "long clip.mp4", "frames per second 2.0"):
        assert words in page.text
    assert "threshold 0.6" in page.text and f"DeepFake-Detect {fake.version}" in page.text
    assert re.search(r"20\d\d-\d\d-\d\d \d\d:\d\d", page.text)


@pytest.mark.parametrize("verdict", [FAKE, REAL, UNDECIDED])
def test_verdict_uses_the_five_words_and_more_than_colour(
    detector: Detector, fake: Result, verdict: str
) -> None:
    page = Page(detector.render_report(replace(fake, verdict=verdict, reason="it is so")))
    assert f"{report.SIGNS[verdict]} {verdict.capitalize()}" in page.text
    assert ("Because it is so" in page.text) == (verdict == UNDECIDED)


def test_report_on_a_picture_names_the_kind(detector: Detector, picture: Result) -> None:
    page = Page(detector.render_report(picture))
    assert "less certain than a video" in page.text
    assert not page.find("div", role="group")


def test_file_without_a_face_lists_the_searches(detector: Detector, nobody: Result) -> None:
    page = Page(detector.render_report(nobody))
    assert "No face" in page.text and "180" in page.text and "Score" not in page.text


def test_provenance_is_shown_above_any_score(detector: Detector, fake: Result) -> None:
    said = Provenance(Credentials("valid", generated="whole"), {"encoder": "<b>x\u202e</b>"})
    text = detector.render_report(replace(fake, provenance=said))
    page = Page(text)
    assert page.text.index("generated by AI") < page.text.index("Likely fake")
    assert "<b>" not in text and "\u202e" not in text


# Error rates


def write_measures(home: Path, **values: object) -> None:
    content = {"decision": describe_decision(StandIn().decision), **values}
    (home / "metrics.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (FAKE, ["Of 8 real videos", "1 got this answer"]),
        (REAL, ["Of 100 fake videos, 13 get this answer"]),
        (UNDECIDED, ["Of 8 real videos", "Of 100 fake videos, 12 get this answer"]),
    ],
)
def test_error_rate_matches_the_verdict(
    detector: Detector, fake: Result, home: Path, verdict: str, words: list[str]
) -> None:
    write_measures(home, clips=CLIPS, groups=[GROUP])
    page = Page(detector.render_report(replace(fake, verdict=verdict)))
    assert all(one in page.text for one in words)
    assert page.find("tr", class_="measured") and "DFD" in page.text and "/home/me" not in page.text


def test_rates_measured_on_crops_are_marked(detector: Detector, fake: Result, home: Path) -> None:
    write_measures(home, groups=[GROUP])
    page = Page(detector.render_report(fake))
    assert "Of 100 real videos, 12 get this answer" in page.text and "face crops" in page.text


def test_pictures_have_their_own_rates(detector: Detector, picture: Result, home: Path) -> None:
    write_measures(home, clips=CLIPS)
    assert "not measured" in Page(detector.render_report(picture)).text
    write_measures(home, clips=CLIPS | {"picture": CLIPS["video"]})
    assert "Of 100 fake pictures" in Page(detector.render_report(picture)).text


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[" * 200_000,
        "[]",
        '{"decision": 1}',
        '{"decision": {"temperature": 1' + "0" * 400 + "}}",
        *(
            json.dumps({"decision": describe_decision(StandIn().decision), **values})
            for values in (
                {"groups": 5, "clips": []},
                {"groups": []},
                {"groups": [GROUP | {"dataset": "DFDC"}]},
                {"groups": [{}], "clips": {"video": None}},
                {"groups": [GROUP | {"reals_called_fake": None}]},
                {"clips": {"video": {"real": {"files": 3, "likely fake": 4}}}},
                {"clips": {"video": {"real": {"files": 0, "likely fake": 0}}, "by_dataset": [{}]}},
            )
        ),
    ],
)
def test_damaged_files_beside_the_model_do_not_prevent_the_report(
    detector: Detector, fake: Result, home: Path, content: str
) -> None:
    (home / "metrics.json").write_text(content)
    page = Page(detector.render_report(fake))
    assert "not measured" in page.text and "0 (0 to 0)" not in page.text


def test_measures_of_another_model_are_not_used(home: Path) -> None:
    write_measures(home, clips=CLIPS)
    assert report.read_measures(home / "best_model.onnx", StandIn().decision)["clips"] == CLIPS
    assert report.read_measures(home / "best_model.onnx", DECISION) == {}


def test_included_model_has_error_rates() -> None:
    made = Detector(find_shipped("weights/deepfake-detector.onnx"))
    measured = report.read_measures(Path(made.model.name), made.model.decision)
    for verdict in (FAKE, REAL):
        assert report.find_rates(measured, "video", verdict)
    assert len(report.list_measures(measured)) > 1


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_intervals_equal_clopper_pearson(counts: tuple[int, int]) -> None:
    hits, files = counts
    exact = scipy.stats.binomtest(hits, files).proportion_ci(method="exact")
    assert report.exact_interval(hits, files) == pytest.approx(tuple(exact), abs=1e-6)


# Sentences to publish, and commands to copy


@pytest.mark.parametrize("verdict", [FAKE, REAL, UNDECIDED, NO_FACE])
def test_sentence_to_publish_includes_error_rates(
    detector: Detector, fake: Result, nobody: Result, home: Path, verdict: str
) -> None:
    write_measures(home, clips=CLIPS)
    shown = nobody if verdict == NO_FACE else replace(fake, verdict=verdict)
    page = detector.render_report(shown)
    assert Page(page).find("button", **{"data-copy": "sentence"})
    sentence = re.search(r'<blockquote id="sentence">(.*?)</blockquote>', page, re.DOTALL)[1]
    assert "automatic test" in sentence and "000000" in sentence
    if verdict in (FAKE, REAL):
        assert "proof" in sentence or "prove" in sentence
    assert ("from 0:05 to 0:08" in sentence) == (verdict == FAKE)


NAMES = ["$(touch pwned).mp4", "a`touch pwned`.mp4", 'a";touch pwned;".mp4', "-it's one.mp4"]


@pytest.mark.parametrize("name", NAMES)
def test_command_to_copy_quotes_the_name(fake: Result, tmp_path: Path, name: str) -> None:
    command = report.write_command(replace(fake, name=f"/home/me/{name}", model="$(touch x).onnx"))
    shown = "printf '%s\\n'" + command.removeprefix("python 06-detect-deepfake.py")
    said = subprocess.run(["sh", "-c", shown], cwd=tmp_path, capture_output=True, text=True)
    assert said.stdout.splitlines()[0].removeprefix("./") == name
    assert "/home/me" not in command and not list(tmp_path.iterdir())


def test_strange_name_is_only_text(detector: Detector, fake: Result) -> None:
    name = "<img src=x onerror=alert(1)>\"'{{ 7 * 7 }}<!--<script>.mp4"
    page = detector.render_report(replace(fake, name=name, notes=(name,)))
    parsed = Page(page)
    assert parsed.text.count(name) >= 3 and not parsed.find("img", src="x")
    assert len(parsed.find("script")) == 2


def test_direction_characters_in_names_are_replaced(detector: Detector, fake: Result) -> None:
    page = detector.render_report(
        replace(fake, name="inv\u202egnp.exe\u2066.mp4", notes=("\u202e",))
    )
    assert not set("\u202e\u2066") & set(Page(page).text) and "inv\\u202egnp" in page


def test_name_that_is_not_utf8_has_a_report(detector: Detector, fake: Result, home: Path) -> None:
    detector.write_report(replace(fake, name="latin\udce9.mp4"), home / "latin.html", video=False)
    assert "latin\\udce9" in (home / "latin.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("seconds", "plain", "exact"),
    [
        (0, "0:00", "0:00.0"),
        (59.96, "0:59", "1:00.0"),
        (150, "2:30", "2:30.0"),
        (3725.25, "1:02:05", "1:02:05.2"),
    ],
)
def test_times_are_formatted_like_a_player(seconds: float, plain: str, exact: str) -> None:
    assert report.format_clock(seconds) == plain
    assert report.format_clock(seconds, tenths=True) == exact


def test_thinning_keeps_the_most_suspicious_faces(fake: Result) -> None:
    (track,) = fake.tracks
    faces = tuple(replace(track.faces[0], frame=at, p_fake=at % 7 / 7) for at in range(5000))
    drawn = report.thin_out(faces)
    assert len(drawn) <= report.MOST_POINTS and {face.p_fake for face in drawn} == {6 / 7}
    part = Part(1.0, 3.4, 0.97, 5)
    assert report.describe_part(part) == "from 0:01 to 0:04"


# For the page of 08


def test_an_article_has_no_head_and_no_script(detector: Detector, fake: Result) -> None:
    text = detector.render_report(fake, video="/results/a.mp4", download="/results/a.html")
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"html", "head", "body", "script", "main"} and "article" in tags
    assert page.find("video", src="/results/a.mp4") and page.find("a", href="/results/a.html")


def test_a_report_can_be_read_back(detector: Detector, fake: Result, home: Path) -> None:
    detector.write_report(replace(fake, name="a</script>.mp4"), home / "back.html", video=False)
    assert report.read_result(home / "back.html")["tracks"] == json.loads(
        json.dumps(fake.to_dict()["tracks"])
    )


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")  # Debian's plays H.264; Playwright's own does not
    if not chromium:
        pytest.skip("there is no chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["fake", "picture", "nobody"])
def test_axe_finds_no_faults_and_report_fits_a_phone(
    browser: object,
    detector: Detector,
    home: Path,
    name: str,
    scheme: str,
    request: pytest.FixtureRequest,
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    path = home / f"{name}-axe.html"
    detector.write_report(request.getfixturevalue(name), path, video=False)
    size = {"width": 390, "height": 844}
    page = browser.new_page(viewport=size, color_scheme=scheme)
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert axe.Axe().run(page).response["violations"] == []
    page.set_viewport_size({"width": 1280, "height": 900})
    assert axe.Axe().run(page).response["violations"] == []
    page.close()


def test_point_seeks_the_video_and_copy_button_copies(
    browser: object, detector: Detector, fake: Result, home: Path
) -> None:
    detector.write_report(fake, home / "clicks.html")
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto((home / "clicks.html").as_uri())
    page.wait_for_function("document.querySelector('video').readyState >= 1")
    page.locator(".chart a").nth(12).click()
    assert page.evaluate("document.querySelector('video').currentTime") == pytest.approx(6, abs=0.1)
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    page.emulate_media(media="print")
    assert not page.locator("video").is_visible() and page.locator("img.still").is_visible()
    page.close()
