"""The detector that comes with the project, and the script that makes it of a model of 04."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, assert_stops, run_script
from crops import Trained, train, trained  # noqa: F401  the fixture

from parts import network

MAKE, DETECTOR = "weights/make-detector.py", ROOT / "weights" / "deepfake-detector.keras"


def test_half_the_size_gives_the_same_scores(trained: Trained, tmp_path: Path) -> None:  # noqa: F811
    model, half = trained.model_dir / "best_model.keras", tmp_path / "half.keras"
    assert_stops(
        run_script(MAKE, model, "--target", half, "--largest-difference", 0, cwd=tmp_path),
        "best_model.keras: in 16 bits its scores differ",
    )
    assert not half.exists()
    # A model of so few steps is far from sure of noise, and moves by more than a trained one.
    result = run_script(MAKE, model, "--target", half, "--largest-difference", 0.2, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert half.stat().st_size < 0.55 * model.stat().st_size
    assert network.read_decision(half) == network.read_decision(model)
    assert network.read_saved(half, "training.json") == network.read_saved(model, "training.json")
    crops = np.random.default_rng(1).integers(0, 256, (8, 128, 128, 3)).astype(np.float32)
    whole, halved = (network.load_model(path).predict(crops, verbose=0) for path in (model, half))
    assert 0 < np.abs(whole - halved).max() < 0.2


def test_the_average_of_two_models_lies_between_them(
    trained: Trained,  # noqa: F811
    tmp_path: Path,
) -> None:
    model, other = trained.model_dir / "best_model.keras", tmp_path / "other.keras"
    weights = trained.model.get_weights()
    moved = network.build_model(None)
    moved.set_weights([array + 0.5 for array in weights])
    network.write_model(moved, network.read_decision(model), other)
    for second, shift in ((model, 0.0), (other, 0.25)):
        models = model, second
        result = run_script("weights/average-models.py", trained.split_dir, *models, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        average = network.load_model(tmp_path / "averaged.keras")
        for one, array in zip(average.get_weights(), weights, strict=True):
            assert np.allclose(one, array + shift, atol=1e-6)
        assert network.read_saved(tmp_path / "averaged.keras", "training.json")["averaged"] == 2
        if second == model:
            decision = network.read_decision(tmp_path / "averaged.keras")
            assert decision.threshold == pytest.approx(
                network.read_decision(model).threshold, abs=1e-3
            )


def test_what_is_no_model_stops_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.keras").write_text("no model")
    assert_stops(
        run_script(MAKE, "text.keras", "--target", "new.keras", cwd=tmp_path), "text.keras"
    )
    assert not (tmp_path / "new.keras").exists()


def test_the_project_has_a_detector_of_04_that_says_what_it_is() -> None:
    """Under 12 MB, loaded as any model, with its crop rule, and with a card beside it."""
    assert DETECTOR.stat().st_size < 12e6
    model, decision = network.load_model(DETECTOR), network.read_decision(DETECTOR)
    assert (decision.margin, decision.square, decision.frames) == (0.0, True, "full")
    assert decision.smallest_face == 32 and 0 < decision.threshold < 1
    grey = np.full((1, 128, 128, 3), 128, np.float32)
    assert 0 < model.predict(grey, verbose=0)[0, 0] < 1
    card = (DETECTOR.parent / "README.md").read_text(encoding="utf-8")
    for words in ("FaceForensics++", "Celeb-DF", "DFDC", "research", "04-train-cnn.py"):
        assert words in card
    detect = importlib.import_module("06-detect-deepfake")
    assert DETECTOR in [path.resolve() for path in detect.MODELS]
    assert pytest.approx(decision.threshold, abs=1e-4) == float(
        card.split("from **")[1].split("**")[0] if "from **" in card else decision.threshold
    )
