"""Tests of the pictures in a report: content and readability."""

from pathlib import Path

import matplotlib.text
import numpy as np
import pandas as pd
import pytest
from crops import write_split
from matplotlib.figure import Figure

from deepfake_detect import crops as crop_files
from deepfake_detect import plots
from deepfake_detect.decision import Decision
from deepfake_detect.files import claim

CARD_WIDTH = 900  # pixels of a picture on the page


def make_predictions(
    count: int = 20, folder: str = "o$$ther_\\frac", labels: str = "both"
) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows = [
        {"label": label, "video_id": f"{label}{i}", "p_real": 0.2 * (label == "real") + p}
        for label in (("fake", "real") if labels == "both" else (labels,))
        for i, p in enumerate(rng.uniform(0.05, 0.75, count))
    ]
    table = pd.DataFrame(rows).assign(folder=folder, dataset="", method="", undecided=False)
    return table.assign(p_fake=1 - table["p_real"])


def list_texts(figure: Figure) -> list[matplotlib.text.Text]:
    figure.canvas.draw()
    texts = figure.findobj(matplotlib.text.Text)
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


def assert_readable(figure: Figure) -> None:
    """Check that text is at least 9 pixels high in the card, and that panels have axis labels."""
    scale = CARD_WIDTH / figure.get_size_inches()[0] / 72  # pixels per point
    assert min(text.get_fontsize() for text in list_texts(figure)) * scale >= 9
    for axes in figure.findobj(matplotlib.axes.Axes):
        if axes.has_data() and axes.axison:
            assert axes.get_xlabel()


def test_scores_are_readable_in_the_model_card() -> None:
    figure = plots.draw_scores(make_predictions(), Decision(threshold=0.7, real_below=0.4))
    assert_readable(figure)
    panels = [axes for axes in figure.findobj(matplotlib.axes.Axes) if axes.axison]
    assert len(panels) == 5 and all(axes.get_ylabel() for axes in panels)
    assert "o$$ther_\\frac" in {text.get_text() for text in list_texts(figure)}


@pytest.mark.parametrize("label", ["real", "fake"])
def test_scores_of_one_class_have_no_empty_panel(label: str) -> None:
    figure = plots.draw_scores(make_predictions(labels=label), Decision())
    panels = [axes for axes in figure.findobj(matplotlib.axes.Axes) if axes.axison]
    assert len(panels) == 2 and all(axes.has_data() for axes in panels)
    assert_readable(figure)


def test_confusion_has_counts_and_percentages() -> None:
    table = make_predictions().assign(p_fake=[0.9] * 15 + [0.5] * 4 + [0.1] + [0.1] * 20)
    figure = plots.draw_scores(table, Decision(threshold=0.7, real_below=0.4))
    texts = {text.get_text() for text in list_texts(figure)}
    assert {"15\n75%", "1\n5%", "4\n20%", "20\n100%"} <= texts


def test_robustness_draws_only_changes_that_were_made() -> None:
    rows = [
        {"folder": folder, "change": change, "value": value, "auc": 0.9, "reals_called_fake": 0.1}
        for folder in ("a$b", "c$d")
        for change, values in {"JPEG quality": (100, 30), "blur": (0,), "size": (1, 0.5)}.items()
        for value in values
    ]
    rows = pd.DataFrame(rows).assign(fakes_found=0.7)
    figure = plots.draw_robustness(rows)
    assert len(figure.axes) == 4
    assert_readable(figure)
    fakes = plots.draw_robustness(rows.assign(auc=None, reals_called_fake=None))
    assert [axes.get_ylabel() for axes in fakes.axes] == ["fakes found", ""]
    reals = plots.draw_robustness(rows.assign(auc=None, fakes_found=None))
    assert [axes.get_ylabel() for axes in reals.axes] == ["reals called fake", ""]


def test_mistakes_are_crops_called_wrong_but_not_undecided(tmp_path: Path) -> None:
    write_split(tmp_path, {"test": 2}, crops=1)
    crops = crop_files.find_crops(tmp_path, ("test",))
    crops = crops.assign(folder=str(tmp_path), video_id=list("abcd"), undecided=False)
    assert list(crops["label"]) == ["fake", "fake", "real", "real"]
    decision = Decision(threshold=0.7, real_below=0.3)

    def name_mistakes(*p_fake: float, undecided: bool = False) -> list[str]:
        table = crops.assign(p_fake=p_fake, undecided=undecided)
        worst = plots.find_worst_mistakes(table, decision)
        if worst.empty:
            return []
        axes = plots.draw_worst_mistakes(worst, decision).axes
        return [panel.get_title() for panel in axes if panel.get_title()]

    assert name_mistakes(0.5, 0.9, 0.1, 0.65) == []
    assert name_mistakes(0.25, 0.05, 0.1, 0.9) == [
        "fake, 0.05\nb",
        "real, 0.90\nd",
        "fake, 0.25\na",
    ]
    assert name_mistakes(0.25, 0.1, 0.1, 0.9, undecided=True) == []


def test_failed_picture_is_reported_and_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw() -> Figure:
        raise RuntimeError("no font")

    plots.write_picture(claim(tmp_path, "--report-dir", __file__), "scores.png", draw)
    assert "scores.png" in capsys.readouterr().err
    assert not (tmp_path / "scores.png").exists()
