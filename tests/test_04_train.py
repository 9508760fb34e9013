"""Tests of 04-train-cnn.py: real trainings of the whole network, on a few crops that are plain."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import efficientnet.tfkeras as efn
import efficientnet.weights
import keras
import numpy as np
import pandas as pd
import pytest
import scipy.special
import sklearn.metrics
import tensorflow as tf
from conftest import ROOT, assert_stops, run_script
from hypothesis import given, settings
from hypothesis import strategies as st

train = importlib.import_module("04-train-cnn")

SCRIPT = "04-train-cnn.py"
VIDEOS = {"train": 4, "val": 1, "test": 1}  # of each label
CROPS = 6  # a video
OPTIONS = dict(start="lite0", epochs=6, batch_size=8, learning_rate=1e-3, resamples=20)
BROKEN = ("train/fake/empty-000000-00.png", "train/real/torn-000000-00.jpg")


def write_crop(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix.lower(), image)[1].tobytes())


def write_split(split_dir: Path, videos: dict[str, int] = VIDEOS, crops: int = CROPS) -> None:
    """Write crops that anyone can tell apart: reals are bluish and striped, fakes are reddish."""
    rng = np.random.default_rng(1)
    rows = []
    for split, count in videos.items():
        for label in ("fake", "real"):
            for video in range(count):
                for crop in range(crops):
                    image = rng.integers(0, 90, (*rng.integers(100, 180, 2), 3))
                    image[..., 0 if label == "real" else 2] += 120
                    if label == "real":
                        image[::8] += 40
                    video_id = f"{split}-{label}-{video}"
                    name = f"{split}/{label}/{video_id}-{crop:06d}-00.png"
                    write_crop(split_dir / name, image.astype(np.uint8))
                    rows.append((name, video_id, "dfdc", "", label, split))
    columns = ["crop", "video_id", "dataset", "method", "label", "split"]
    pd.DataFrame(rows, columns=columns).to_csv(split_dir / "crops.csv", index=False)


@dataclass
class Trained:
    split_dir: Path
    model_dir: Path
    metrics: dict
    predictions: pd.DataFrame
    history: pd.DataFrame
    model: keras.Model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One training from the embedded weights, enough to tell the labels, with two broken crops."""
    folder = tmp_path_factory.mktemp("trained")
    split_dir, model_dir = folder / "split_dataset", folder / "model"
    write_split(split_dir)
    (split_dir / BROKEN[0]).write_bytes(b"")
    (split_dir / BROKEN[1]).write_bytes(b"no picture at all")
    metrics = train.main(split_dir, model_dir, **OPTIONS)
    return Trained(
        split_dir=split_dir,
        model_dir=model_dir,
        metrics=metrics,
        predictions=pd.read_csv(model_dir / "predictions.csv"),
        history=pd.read_csv(model_dir / "history.csv"),
        model=keras.saving.load_model(model_dir / "best_model.keras"),
    )


@pytest.fixture(scope="module")
def small_split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split set with two crops of each label in each split, to be copied and damaged."""
    split_dir = tmp_path_factory.mktemp("small") / "split_dataset"
    write_split(split_dir, {"train": 1, "val": 1, "test": 1}, crops=2)
    return split_dir


# What is written


def test_it_writes_its_files_whole(trained: Trained) -> None:
    assert sorted(path.name for path in trained.model_dir.iterdir() if path.name != ".lock") == [
        "README.md",
        "best_model.keras",
        "history.csv",
        "metrics.json",
        "predictions.csv",
        "scores.png",
        "training_curves.png",
        "worst_mistakes.png",
    ]
    for name in ("scores.png", "training_curves.png", "worst_mistakes.png"):
        picture = cv2.imdecode(np.fromfile(trained.model_dir / name, np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape[0] > 300 and picture.std() > 3


def test_metrics_json_is_what_main_returns(trained: Trained) -> None:
    metrics = json.loads((trained.model_dir / "metrics.json").read_text(encoding="utf-8"))
    assert metrics == trained.metrics
    assert metrics["counts"] == {
        "train": {"fake crops": 24, "fake videos": 4, "real crops": 24, "real videos": 4},
        "val": {"fake crops": 6, "fake videos": 1, "real crops": 6, "real videos": 1},
        "test": {"fake crops": 6, "fake videos": 1, "real crops": 6, "real videos": 1},
    }
    assert metrics["start"] == "lite0"
    assert metrics["started_from"] == "ImageNet weights of EfficientNet-Lite0"
    assert metrics["settings"]["learning_rate"] == 1e-3
    assert metrics["settings"]["batch_size"] == 8
    named = set(metrics["about_measures"])
    for units in metrics["measures"].values():
        for unit, values in units.items():
            names = set(values) - {f"fake {unit}s", f"real {unit}s"}
            assert {name.removesuffix("_95") for name in names} <= named
            for name in names:
                assert values[name] is None or not name.endswith("_95")  # of one video: no interval


def test_the_model_card_has_the_numbers(trained: Trained) -> None:
    card = (trained.model_dir / "README.md").read_text(encoding="utf-8")
    assert "from ImageNet weights of EfficientNet-Lite0, 6 epochs" in card
    assert f"from {trained.metrics['decision']['threshold']:.4f} on it is called fake" in card
    assert "| test, by video | 1 | 1 | 1.000 | 1.000 | 0.000 |" in card
    assert "| test, by crop: data set dfdc | 6 | 6 | 1.000 | 1.000 | 0.000 |" in card
    assert "| learning_rate | 0.001 |" in card and "| shift | 0.05 |" in card
    assert f"TensorFlow {tf.__version__}" in card and "A score is no proof" in card


def test_broken_crops_are_left_out_by_name(trained: Trained) -> None:
    assert trained.metrics["left_out"] == dict.fromkeys(BROKEN, "does not decode as an image")


def test_predictions_hold_every_crop_of_val_and_test_once(trained: Trained) -> None:
    table = trained.predictions
    assert list(table.columns) == (
        ["crop", "video_id", "dataset", "method", "label", "split", "p_real", "p_fake"]
    )
    assert len(table) == table.crop.nunique() == 24
    assert table.groupby(["split", "label"]).size().to_dict() == {
        ("test", "fake"): 6,
        ("test", "real"): 6,
        ("val", "fake"): 6,
        ("val", "real"): 6,
    }
    assert all(trained.split_dir.joinpath(crop).is_file() for crop in table.crop)
    assert (
        table.crop.str.split("/").str[:2].str.join("/") == table.split + "/" + table.label
    ).all()
    assert table.p_real.between(0, 1).all()
    temperature = trained.metrics["decision"]["temperature"]
    np.testing.assert_allclose(table.p_fake, train.calibrate(table.p_real, temperature))


def test_history_has_a_row_an_epoch(trained: Trained) -> None:
    assert list(trained.history.epoch) == list(range(1, trained.metrics["epochs_run"] + 1))
    measures = ["loss", "accuracy", "val_loss", "val_accuracy", "val_auc"]
    assert list(trained.history.columns) == ["epoch", *measures, "crops_per_second", "waiting"]
    assert (trained.history.crops_per_second > 0).all()
    assert trained.history.waiting.between(0, 1).all()
    assert trained.metrics["best_epoch"] == train.find_best(trained.history)


def test_the_best_epoch_has_the_highest_auc_then_the_lowest_loss() -> None:
    history = pd.DataFrame(
        {
            "epoch": [1, 2, 3, 4, 5],
            "val_auc": [0.7, 0.9, 0.9, 0.8, 0.9],
            "val_loss": [0.1, 0.5, 0.4, 0.1, 0.4],
        }
    )
    assert train.find_best(history) == 3
    assert train.find_best(history.head(1)) == 1


def test_the_model_kept_is_that_of_the_best_epoch(trained: Trained) -> None:
    val = trained.predictions[trained.predictions.split == "val"]
    p_of_label = np.where(val.label == "real", val.p_real, 1 - val.p_real)
    best = trained.history.set_index("epoch").loc[trained.metrics["best_epoch"]]
    assert -np.log(p_of_label.clip(1e-7)).mean() == pytest.approx(best.val_loss, rel=1e-3, abs=1e-6)


# What is learned


def test_it_learns_and_p_real_is_high_for_real(trained: Trained) -> None:
    test = trained.predictions[trained.predictions.split == "test"]
    assert test[test.label == "real"].p_real.min() > test[test.label == "fake"].p_real.max()
    threshold = trained.metrics["decision"]["threshold"]
    assert ((test.p_fake >= threshold) == (test.label == "fake")).all()
    for values in trained.metrics["measures"]["test"].values():
        assert (values["auc"], values["average_precision"], values["eer"]) == (1, 1, 0)
        assert values["accuracy"] == 1


def test_validation_follows_training(trained: Trained) -> None:
    """With the running statistics of Keras' default momentum it stays at chance here."""
    last = trained.history.iloc[-1]
    assert last.accuracy > 0.9
    assert last.val_accuracy > 0.9


# The measures


def make_predictions(rows: list[tuple[str, str, float]]) -> pd.DataFrame:
    """Predictions from (label, video_id, p_real), uncalibrated."""
    table = pd.DataFrame(rows, columns=["label", "video_id", "p_real"])
    return table.assign(p_fake=1 - table.p_real, split="test", dataset="", method="")


def test_a_video_has_the_mean_of_its_crops() -> None:
    predictions = make_predictions(
        [
            ("fake", "v", 0.1),
            ("fake", "v", 0.5),
            ("real", "w", 0.9),
            ("real", "w", 0.0),
            ("real", "x", 0.7),
            ("real", "x", 0.8),
        ]
    )
    videos = train.average_by_video(predictions).set_index("video_id")
    assert videos.p_fake.to_dict() == pytest.approx({"v": 0.7, "w": 0.55, "x": 0.25})
    assert videos.label.to_dict() == {"v": "fake", "w": "real", "x": "real"}
    # By crop: of 2 fakes x 4 reals, 0.1 and 0.5 lie below 3 of the reals each, 0.0 below both. A
    # p_fake of 0.5 is called fake. By video: 0.45 is a real called fake.
    by_crop, by_video = (
        train.measure_with_intervals(predictions, unit, 0.5, 10, 1) for unit in train.UNITS
    )
    assert (by_crop["fake crops"], by_crop["real crops"]) == (2, 4)
    assert by_crop["auc"] == pytest.approx(6 / 8)
    assert by_crop["accuracy"] == pytest.approx(5 / 6)
    assert (by_video["fake videos"], by_video["real videos"]) == (1, 2)
    assert by_video["auc"] == 1
    assert by_video["accuracy"] == pytest.approx(2 / 3)


def test_a_real_and_a_fake_of_the_same_name_are_two_videos() -> None:
    predictions = make_predictions([("fake", "v", 0.2), ("real", "v", 0.8)])
    assert sorted(train.average_by_video(predictions).p_fake) == pytest.approx([0.2, 0.8])


SCORES = st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=2, max_size=30)


@given(SCORES)
@settings(deadline=None)
def test_measures_are_what_their_definitions_say(draws: list[tuple[bool, int]]) -> None:
    draws = [(True, 3), (False, 3), *draws]
    is_fake = np.array([fake for fake, _ in draws])
    p_fake = np.array([level / 20 for _, level in draws])
    values = train.measure(is_fake, p_fake, 0.3)
    pairs = [
        (fake > real) + (fake == real) / 2 for fake in p_fake[is_fake] for real in p_fake[~is_fake]
    ]
    assert values["auc"] == pytest.approx(np.mean(pairs))
    assert values["log_loss"] == pytest.approx(
        sklearn.metrics.log_loss(is_fake, p_fake.clip(1e-7, 1 - 1e-7)), rel=1e-5
    )
    assert values["brier"] == pytest.approx(sklearn.metrics.brier_score_loss(is_fake, p_fake))
    assert values["accuracy"] == pytest.approx(np.mean((p_fake >= 0.3) == is_fake))
    # The error rates cross between two neighbouring cuts; the equal error rate lies between them.
    cuts = sorted({*p_fake, 2.0})
    rates = [(np.mean(p_fake[~is_fake] >= cut), np.mean(p_fake[is_fake] < cut)) for cut in cuts]
    assert values["eer"] in [pytest.approx(sum(pair) / 2) for pair in rates]
    counts = train.count_confusion(is_fake, p_fake, 0.3)
    assert sum(counts.values()) == len(draws)
    assert counts["fake_as_real"] == np.sum(p_fake[is_fake] < 0.3)
    assert counts["real_as_fake"] == np.sum(p_fake[~is_fake] >= 0.3)


@given(SCORES)
@settings(deadline=None)
def test_the_threshold_is_where_the_error_rates_meet(draws: list[tuple[bool, int]]) -> None:
    draws = [(True, 3), (False, 3), *draws]
    rows = [("fake" if fake else "real", str(i), 1 - p / 20) for i, (fake, p) in enumerate(draws)]
    val = make_predictions(rows)
    threshold = train.choose_threshold(val)
    assert 0 <= threshold <= 1
    is_fake, p_fake = train.get_truth_and_score(val, "video")

    def gap(cut: float) -> float:
        return abs(np.mean(p_fake[~is_fake] >= cut) - np.mean(p_fake[is_fake] < cut))

    assert gap(threshold) == pytest.approx(min(gap(cut) for cut in {*p_fake, 2.0}))
    if p_fake.min() < threshold < 1:
        assert threshold not in p_fake  # so that no rounding turns a verdict


def test_the_threshold_lies_in_the_middle_of_a_gap() -> None:
    val = make_predictions([("real", "a", 0.9), ("real", "b", 0.8), ("fake", "c", 0.2)])
    assert train.choose_threshold(val) == pytest.approx(0.5)


@given(st.floats(0.5, 5), st.lists(st.floats(0, 1), min_size=1))
def test_calibration_keeps_the_order_and_turns_round(temperature: float, p: list[float]) -> None:
    p_real = np.sort(np.float64(p))
    p_fake = train.calibrate(p_real, temperature)
    assert ((p_fake > 0) & (p_fake < 1)).all()
    assert (np.diff(p_fake) <= 0).all()
    np.testing.assert_allclose(
        train.calibrate(p_real, 1), np.clip(1 - p_real, 1e-7, 1 - 1e-7), rtol=1e-6
    )


@pytest.mark.parametrize("too_sure_by", [0.8, 1.0, 2.5])
def test_the_temperature_that_scores_were_heated_by_is_found(too_sure_by: float) -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 1.5, 20_000)
    is_fake = rng.random(20_000) < scipy.special.expit(logits)
    p_real = scipy.special.expit(-too_sure_by * logits)
    rows = zip(np.where(is_fake, "fake", "real"), map(str, range(20_000)), p_real, strict=True)
    val = make_predictions(list(rows))
    temperature = train.fit_temperature(val)
    assert temperature == pytest.approx(too_sure_by, rel=0.05)
    after = train.measure_calibration(is_fake, train.calibrate(p_real, temperature))
    assert after < 0.01
    if too_sure_by == 2.5:
        assert train.measure_calibration(is_fake, 1 - p_real) > 0.1


def test_a_separable_validation_set_does_not_ask_for_the_end_of_the_scale() -> None:
    val = make_predictions([("real", "a", 0.9), ("fake", "b", 0.1)])
    assert train.fit_temperature(val) == pytest.approx(train.TEMPERATURES[0], abs=1e-3)


def test_intervals_rest_on_videos_and_not_on_crops() -> None:
    rng = np.random.default_rng(0)
    videos = [
        (label, f"{label}{i}", np.clip(rng.normal(0.6 if label == "real" else 0.4, 0.2), 0, 1))
        for label in ("fake", "real")
        for i in range(40)
    ]
    once, often = (
        make_predictions(videos),
        make_predictions([row for row in videos for _ in "1234"]),
    )
    alone = [(label, f"{video}-{i}", p) for label, video, p in videos for i in range(4)]
    width = {}
    for name, table in {"once": once, "often": often, "alone": make_predictions(alone)}.items():
        values = train.measure_with_intervals(table, "crop", 0.5, 400, 1)
        width[name] = values["auc_95"][1] - values["auc_95"][0]
        low, high = values["auc_95"]
        assert low < values["auc"] < high
        assert (
            train.format_measure(values, "auc") == f"{values['auc']:.3f} ({low:.3f} to {high:.3f})"
        )
    # Four copies of each crop tell nothing new, unless they are taken for other videos.
    assert width["often"] == pytest.approx(width["once"])
    assert width["alone"] < 0.7 * width["once"]
    few = once.groupby("label").head(train.FEWEST_VIDEOS - 1)
    assert train.measure_with_intervals(few, "crop", 0.5, 9, 1)["auc_95"] is None
    # Hanley and McNeil (1982): the standard error of this AUC, times 3.92.
    auc = train.measure_with_intervals(once, "crop", 0.5, 1, 1)["auc"]
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    error = np.sqrt((auc * (1 - auc) + 39 * (q1 - auc**2) + 39 * (q2 - auc**2)) / 1600)
    assert width["once"] == pytest.approx(3.92 * error, rel=0.25)


def test_groups_are_data_sets_and_methods_with_the_reals_of_their_data_set() -> None:
    labels = ["real", "real", "fake", "fake", "fake", "real", "fake"]
    table = make_predictions(
        [(label, video, 0.5) for label, video in zip(labels, "abcdefg", strict=True)]
    )
    table["dataset"] = ["X", "X", "X", "X", "Y", "", "Z"]
    table["method"] = ["original", "original", "swap", "morph", "swap", "", ""]
    groups = {name: "".join(part.video_id) for name, part in train.split_groups(table)}
    assert groups == {
        "data set X": "abcd",
        "X, method swap": "cab",
        "X, method morph": "dab",
    }


# The model


def test_the_model_is_the_one_described(trained: Trained) -> None:
    model = trained.model
    assert model.input_shape == (None, 128, 128, 3)
    assert model.output_shape == (None, 1)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds[:3] == ["InputLayer", "Normalization", "Functional"]
    assert kinds[3:] == ["Dense", "Dropout", "Dense", "Dense"]
    wide, dropout, narrow, p_real = model.layers[3:]
    assert (wide.units, wide.activation) == (512, keras.activations.relu)
    assert dropout.rate == 0.5
    assert (narrow.units, narrow.activation) == (128, keras.activations.relu)
    assert (p_real.units, p_real.activation) == (1, keras.activations.sigmoid)
    base = model.layers[2]
    assert base.name == "efficientnet-b0"
    assert base.output_shape == (None, 1280)
    assert isinstance(base.layers[-1], keras.layers.GlobalMaxPooling2D)
    norms = [layer for layer in base.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(norms) == 49
    assert {layer.momentum for layer in norms} == {train.BATCH_NORM_MOMENTUM}


def test_the_normalisation_is_inside(trained: Trained) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3)).astype(np.float32)
    inside = trained.model.get_layer("imagenet_mean_and_std")(images)
    np.testing.assert_allclose(inside, efn.preprocess_input(images.copy()), rtol=1e-4, atol=1e-5)


def test_the_saved_model_says_the_same_in_a_new_process(trained: Trained, tmp_path: Path) -> None:
    crops = list(trained.predictions.crop)
    images = np.stack([train.read_crop(trained.split_dir / crop) for crop in crops])
    assert images.dtype == np.uint8 and images.max() > 200
    np.save(tmp_path / "images.npy", images)
    program = (
        "import sys, efficientnet.tfkeras, keras, numpy as np\n"
        "model = keras.saving.load_model(sys.argv[1], safe_mode=True)\n"
        "np.save(sys.argv[3], model.predict(np.load(sys.argv[2]), verbose=0))\n"
    )
    files = [trained.model_dir / "best_model.keras", tmp_path / "images.npy", tmp_path / "p.npy"]
    subprocess.run([sys.executable, "-c", program, *files], check=True, timeout=300)
    p_real = np.load(tmp_path / "p.npy")[:, 0]
    np.testing.assert_allclose(p_real, trained.predictions.p_real, rtol=1e-5, atol=1e-6)


def test_the_decision_travels_with_the_model(trained: Trained, tmp_path: Path) -> None:
    path = trained.model_dir / "best_model.keras"
    decision = train.read_decision(path)
    assert decision._asdict() == trained.metrics["decision"]
    with zipfile.ZipFile(path) as archive:
        assert json.loads(archive.read("decision.json"))["positive_class"] == "fake"
    plain = tmp_path / "plain.keras"
    trained.model.save(plain)
    with pytest.raises(ValueError, match="it has no threshold saved with it"):
        train.read_decision(plain)
    train.load_model(plain)


def save_other(path: Path, size: int, outputs: int) -> None:
    inputs = keras.Input((size, size, 3))
    pooled = keras.layers.GlobalMaxPooling2D()(inputs)
    keras.Model(inputs, keras.layers.Dense(outputs)(pooled)).save(path)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("missing", "there is no such model"),
        ("text", "it is not a model that Keras can load"),
        ("cut", "it is not a model that Keras can load"),
        ("large", "it takes and gives (None, 256, 256, 3) and (None, 1), where"),
        ("two", "it takes and gives (None, 128, 128, 3) and (None, 2), where"),
        ("lambda", "it is not a model that Keras can load"),
    ],
)
def test_a_model_of_another_kind_is_named(
    name: str, sentence: str, trained: Trained, tmp_path: Path
) -> None:
    path = tmp_path / f"{name}.keras"
    if name == "text":
        path.write_text("no model")
    elif name == "cut":
        path.write_bytes((trained.model_dir / "best_model.keras").read_bytes()[:100_000])
    elif name == "lambda":  # whose code Keras would run, were it not for safe_mode
        inputs = keras.Input((128, 128, 3))
        ran = keras.layers.Lambda(lambda x: x[:, :1, 0, 0])(inputs)
        keras.Model(inputs, ran).save(path)
    elif name != "missing":
        save_other(path, *((256, 1) if name == "large" else (128, 2)))
    with pytest.raises((ValueError, OSError)) as raised:
        train.load_model(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: {sentence}") and "\n" not in message


# The crops


@given(st.integers(1, 300), st.integers(1, 300))
@settings(max_examples=20, deadline=None)
def test_a_crop_of_any_size_becomes_rgb_128(height: int, width: int) -> None:
    crop = train.prepare_crop(np.full((height, width, 3), (10, 20, 250), np.uint8))
    assert crop.shape == (128, 128, 3) and crop.dtype == np.uint8
    assert (crop == (250, 20, 10)).all()


def test_crops_are_listed_with_any_supported_suffix(tmp_path: Path, small_split: Path) -> None:
    split_dir = shutil.copytree(small_split, tmp_path / "split_dataset")
    image = np.zeros((50, 50, 3), np.uint8)
    for name in ("a.JPG", "b.jpeg", "c.WebP", "dé.png"):
        write_crop(split_dir / "train" / "real" / name, image)
    for name in ("notes.txt", ".hidden.png", "d.png.partial"):
        (split_dir / "train" / "real" / name).write_bytes(b"")
    crops = train.find_crops(split_dir)
    assert len(crops) == 12 + 4
    images = np.empty((16, 128, 128, 3), np.uint8)
    whole, left_out = train.decode_crops(crops, split_dir, images)
    assert len(whole) == 16 and left_out == {}


def test_videos_are_those_of_the_table_or_of_the_file_names(
    tmp_path: Path, small_split: Path
) -> None:
    split_dir = shutil.copytree(small_split, tmp_path / "split_dataset")
    real = split_dir / "train" / "real"
    for name in ("ffpp-a-b_c-000042-00", "x.y-1000000-01", "519_515", "photo-12-3", "listed"):
        write_crop(real / f"{name}.png", np.zeros((8, 8, 3), np.uint8))
    pd.DataFrame(
        {"crop": ["train/real/listed.png", "train/real/photo-12-3.png"], "video_id": ["007", "nan"]}
    ).to_csv(split_dir / "crops.csv", index=False)
    crops = train.find_crops(split_dir).set_index("crop").video_id
    assert crops["train/real/listed.png"] == "007"
    assert crops["train/real/photo-12-3.png"] == "nan"
    (split_dir / "crops.csv").unlink()
    crops = train.find_crops(split_dir).set_index("crop").video_id
    assert crops["train/real/listed.png"] == "listed"
    assert crops["train/real/photo-12-3.png"] == "photo-12-3"
    assert crops["train/real/ffpp-a-b_c-000042-00.png"] == "ffpp-a-b_c"
    assert crops["train/real/x.y-1000000-01.png"] == "x.y"
    assert crops["train/real/519_515.png"] == "519_515"


def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave nothing of the augmentation."""
    for name in ("ROTATION", "SHIFT", "SHEAR", "ZOOM", "BRIGHTNESS", "CONTRAST", "FLIP"):
        monkeypatch.setattr(train, name, 0)


def test_every_epoch_serves_every_crop_once_in_another_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    still(monkeypatch)
    images = np.arange(30 * 128 * 128 * 3).reshape(30, 128, 128, 3) % 251
    images = (images + 5 * np.arange(30)[:, None, None, None]).astype(np.uint8)
    crops = pd.DataFrame({"label": ["fake", "real"] * 15}).iloc[2:27]  # their index says the row

    def serve(*seed: int) -> list[int]:
        epoch = []
        for pictures, labels in train.serve_crops(images, crops, 12, seed or None):
            assert len(labels) in (7, 9)  # 25 in batches of 12 would leave one of 1
            for picture, label in zip(np.round(pictures), labels.numpy(), strict=True):
                row = [np.array_equal(picture, image) for image in images].index(True)
                assert label == (crops.label[row] == "real")
                epoch.append(row)
        return epoch

    assert serve() == serve() == list(range(2, 27))
    first, second = serve(1, 1), serve(1, 2)
    assert sorted(first) == sorted(second) == list(range(2, 27))
    assert first != second and first != list(range(2, 27))
    assert serve(1, 1) == first  # as a training that goes on needs it
    assert serve(2, 1) != first


@pytest.mark.parametrize("most_in_memory", [100, 1])
def test_crops_are_decoded_once_in_memory_or_on_disk(
    most_in_memory: int, tmp_path: Path, small_split: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "CROPS_IN_MEMORY", most_in_memory)
    crops = train.find_crops(small_split)
    with train.open_cache(len(crops), tmp_path) as images:
        assert isinstance(images, np.memmap) == (most_in_memory == 1)
        train.decode_crops(crops, small_split, images)
        for row, crop in crops.crop.items():
            assert np.array_equal(images[row], train.read_crop(small_split / crop))
    assert list(tmp_path.iterdir()) == []


# The augmentation


def test_without_ranges_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    still(monkeypatch)
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (4, 128, 128, 3)), tf.float32)
    np.testing.assert_allclose(train.augment(images, [1, 2]), images, atol=0.01)
    monkeypatch.setattr(train, "FLIP", 1)
    np.testing.assert_allclose(train.augment(images, [1, 2]), images[:, :, ::-1], atol=0.05)


def test_about_half_are_mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    still(monkeypatch)
    monkeypatch.setattr(train, "FLIP", 0.5)
    ramp = tf.broadcast_to(tf.range(128.0)[None, None, :, None], (400, 128, 128, 3))
    mirrored = train.augment(ramp, [5, 6])[:, 0, 0, 0].numpy() > 100
    assert 150 < mirrored.sum() < 250


@given(st.integers(0, 2**31), st.integers(0, 255))
@settings(max_examples=15, deadline=None)
def test_moved_images_stay_within_their_values(seed: int, level: int) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (3, 128, 128, 3)).astype(np.float32)
    images[0] = level
    with pytest.MonkeyPatch.context() as ranges:
        for name, value in dict(ROTATION=10, SHIFT=0.1, SHEAR=0.2, ZOOM=0.1).items():
            ranges.setattr(train, name, value)
        ranges.setattr(train, "BRIGHTNESS", 0)
        ranges.setattr(train, "CONTRAST", 0)
        moved, again, other = (
            train.augment(tf.constant(images), [seed, last]).numpy() for last in (0, 0, 1)
        )
    assert moved.shape == images.shape
    np.testing.assert_allclose(moved[0], level, atol=1e-3)  # nothing foreign comes in at the border
    assert moved.min() >= 0 and moved.max() <= 255.001
    assert np.array_equal(moved, again)
    assert not np.array_equal(moved, other)


@pytest.mark.parametrize(
    ("name", "value", "most"),
    # pixels that a corner can move, from a ring of radius 63.5 in the middle
    [("ROTATION", 10, 15.7), ("SHIFT", 0.1, 18.4), ("SHEAR", 0.2, 12.8), ("ZOOM", 0.1, 9.1)],
)
def test_each_range_moves_that_far_and_no_farther(
    name: str, value: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    still(monkeypatch)
    monkeypatch.setattr(train, name, value)
    y, x = np.mgrid[:128, :128].astype(np.float32)
    where = np.broadcast_to(np.stack((x, y, 0 * x), axis=-1), (200, 128, 128, 3))
    moved = train.augment(tf.constant(where), [7, 8]).numpy()[:, 40:88, 40:88, :2]
    still_there = np.stack((x, y), axis=-1)[40:88, 40:88]
    # Within the middle no pixel comes from outside; there the corners are at 24 of 64 pixels.
    share = 1 if name == "SHIFT" else 23.5 / 63.5
    farthest = np.linalg.norm(moved - still_there, axis=-1).max()
    assert 0.85 * most * share < farthest < 1.01 * most * share


def test_light_and_contrast_change_within_their_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    still(monkeypatch)
    grey = tf.fill((300, 128, 128, 3), 128.0)
    monkeypatch.setattr(train, "BRIGHTNESS", 0.1)
    change = (train.augment(grey, [3, 4])[:, 0, 0, 0] - 128).numpy()
    assert -25.5 <= change.min() < -23 and 23 < change.max() <= 25.51
    monkeypatch.setattr(train, "BRIGHTNESS", 0)
    monkeypatch.setattr(train, "CONTRAST", 0.2)
    assert np.array_equal(train.augment(grey, [3, 4]), grey)
    halves = tf.concat((grey[:, :64] - 50, grey[:, 64:] + 50), axis=1)
    change = train.augment(halves, [3, 4])[:, 127, 0, 0].numpy() - 178
    assert -10.01 <= change.min() < -9 and 9 < change.max() <= 10.01


# The start weights


def test_auto_says_loudly_that_it_starts_from_the_embedded_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "IMAGENET_FILE", "not-there.h5")
    monkeypatch.setattr(efficientnet.weights, "IMAGENET_WEIGHTS_PATH", tmp_path.as_uri() + "/")
    weights, name = train.find_start_weights("auto")
    assert weights == train.LITE0_WEIGHTS
    assert name == "ImageNet weights of EfficientNet-Lite0"
    assert "NOTE: training starts from the embedded weights" in capsys.readouterr().err
    with pytest.raises(OSError, match="--start lite0"):
        train.find_start_weights("imagenet")


def test_every_convolution_and_batch_norm_is_filled_from_lite0() -> None:
    model = train.build_model(train.LITE0_WEIGHTS)
    base = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    filled = set()
    with np.load(train.LITE0_WEIGHTS) as arrays:
        for layer in base.layers:
            for variable in layer.weights:
                name = f"{layer.name}/{variable.name}"
                if "_se_" in name:
                    assert name not in arrays
                    if name.endswith("se_expand/bias"):
                        assert (variable.numpy() == 3).all()
                else:
                    assert (variable.numpy() == arrays[name].astype(np.float32)).all(), name
                    filled.add(name)
        assert filled == set(arrays)
    assert len(filled) == 245


def test_none_is_random_weights() -> None:
    assert train.find_start_weights(None) == train.find_start_weights("None")
    assert train.find_start_weights("none") == (None, "random weights")


def test_imagenet_that_cannot_be_had_ends_in_one_sentence(
    tmp_path: Path, small_split: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_dir = tmp_path / "model"
    model_dir.mkdir()
    (model_dir / "best_model.keras").write_bytes(b"an old model")
    half_a_file = tmp_path / "keras" / "models" / train.IMAGENET_FILE
    half_a_file.parent.mkdir(parents=True)
    half_a_file.write_bytes(b"half a download")
    closed = "http://127.0.0.1:9"
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("https_proxy", closed)
    monkeypatch.setenv("HTTPS_PROXY", closed)
    options = ("--split-dir", small_split, "--model-dir", model_dir, "--start", "imagenet")
    result = run_script(SCRIPT, *options, cwd=tmp_path)
    assert_stops(result, f"{SCRIPT}: the ImageNet weights cannot be downloaded", "--start lite0.")
    assert [path.name for path in model_dir.iterdir()] == ["best_model.keras"]
    assert (model_dir / "best_model.keras").read_bytes() == b"an old model"


def test_a_weights_file_of_the_package_is_loaded(tmp_path: Path) -> None:
    shape = (128, 128, 3)
    base = efn.EfficientNetB0(weights=None, include_top=False, input_shape=shape)
    base.save(tmp_path / "base.h5")  # HDF5 as the package's own
    base.save_weights(tmp_path / "base.weights.h5")
    for name in ("base.h5", "base.weights.h5"):
        weights, started_from = train.find_start_weights(str(tmp_path / name))
        assert started_from == str(tmp_path / name)
        loaded = train.build_model(weights).layers[2].get_weights()
        assert all(map(np.array_equal, loaded, base.get_weights()))


@pytest.mark.parametrize(
    "name", ["words.h5", "words.txt", "words.keras", "other.keras", "b1.h5", "other.npz"]
)
def test_weights_that_do_not_fit_are_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "other.keras":
        inputs = keras.Input((4,))
        keras.Model(inputs, keras.layers.Dense(2)(inputs)).save(path)
    elif name == "other.npz":
        np.savez(path, stem=np.zeros(3))
    elif name == "b1.h5":
        efn.EfficientNetB1(weights=None, include_top=False, input_shape=(128, 128, 3)).save(path)
    else:
        path.write_text("no weights")
    with pytest.raises(ValueError, match="these are not the weights") as raised:
        train.build_model(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_training_on_without_a_test_split(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Any folder of that shape will do: here without crops.csv and with names of its own."""
    split_dir, model_dir = tmp_path / "split_dataset", tmp_path / "model"
    write_split(split_dir, {"train": 1, "val": 1}, crops=3)
    (split_dir / "crops.csv").unlink()
    for number, path in enumerate(sorted(split_dir.rglob("*.png"))):
        path.rename(path.with_name(f"photo {number}.png"))
    model_dir.mkdir()
    (model_dir / "best_model.keras").write_bytes(b"an old model")
    (model_dir / "notes.txt").write_text("mine")
    start = str(trained.model_dir / "best_model.keras")
    metrics = train.main(split_dir, model_dir, start, epochs=1, learning_rate=1e-6, resamples=20)
    assert metrics["started_from"] == start
    assert set(metrics["measures"]) == {"val"} and metrics["groups"]["val"]["crop"] == {}
    for unit, values in metrics["measures"]["val"].items():
        assert (values[f"fake {unit}s"], values[f"real {unit}s"]) == (3, 3)
        assert values["auc"] == 1
    assert len(pd.read_csv(model_dir / "predictions.csv")) == 6
    summary = capsys.readouterr().out
    assert "has none, so these are the measures of val" in summary
    assert "val, by crop" in summary
    assert keras.saving.load_model(model_dir / "best_model.keras").name == "deepfake_detector"
    assert (model_dir / "notes.txt").read_text() == "mine"


def test_a_model_is_measured_on_another_folder_without_training(
    trained: Trained, tmp_path: Path
) -> None:
    split_dir, model_dir = tmp_path / "other", tmp_path / "report"
    write_split(split_dir, {"test": 2}, crops=2)
    start = trained.model_dir / "best_model.keras"
    before = start.read_bytes()
    metrics = train.main(split_dir, model_dir, str(start), epochs=0, resamples=20)
    assert metrics["decision"] == trained.metrics["decision"]
    assert metrics["measures"]["test"]["video"]["fake videos"] == 2
    assert metrics["measures"]["test"]["video"]["auc"] == 1
    assert sorted(path.name for path in model_dir.iterdir() if path.name != ".lock") == [
        "README.md",
        "metrics.json",
        "predictions.csv",
        "scores.png",
        "worst_mistakes.png",
    ]
    assert "not trained here" in (model_dir / "README.md").read_text(encoding="utf-8")
    assert start.read_bytes() == before
    for wrong in (dict(model_dir=start.parent), dict(start="lite0")):
        arguments = {"split_dir": split_dir, "model_dir": model_dir, "start": str(start)} | wrong
        with pytest.raises(ValueError, match="with --epochs 0 a model is measured"):
            train.main(**arguments, epochs=0)


# Stopping and going on


def wait_for(path: Path, process: subprocess.Popen, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.05)


def test_a_killed_training_goes_on_and_ends_as_an_undisturbed_one(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same seed gives the same history to the last digit, killed or not."""
    split_dir, killed = trained.split_dir, tmp_path / "killed"
    command = [sys.executable, ROOT / SCRIPT, "--split-dir", split_dir, "--model-dir", killed]
    for name, value in OPTIONS.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path
    )
    wait_for(killed / "unfinished" / "0001", process, 200)
    with pytest.raises(ValueError, match="another run is writing to it"):
        train.main(split_dir, killed, **OPTIONS)
    process.kill()
    process.wait()
    assert not (killed / "best_model.keras").exists()

    with pytest.raises(ValueError, match="lies there, and it differs in seed") as raised:
        train.main(split_dir, killed, **OPTIONS, seed=2)
    assert "(1 there, 2 now)" in str(raised.value)
    touched = next((split_dir / "train" / "real").iterdir())
    content = touched.read_bytes(), touched.stat()
    touched.write_bytes(content[0])
    with pytest.raises(ValueError, match="it differs in crops; give its own command"):
        train.main(split_dir, killed, **OPTIONS)
    os.utime(touched, ns=(content[1].st_atime_ns, content[1].st_mtime_ns))

    capsys.readouterr()
    train.main(split_dir, killed, **OPTIONS)
    printed = capsys.readouterr().out
    assert "of 6 were done" in printed and "epoch 1 of 6" not in printed
    folders = trained.model_dir, killed
    for name in ("predictions.csv", "history.csv"):
        tables = [pd.read_csv(folder / name) for folder in folders]
        timed = ["crops_per_second", "waiting"]
        first, second = (table.drop(columns=timed, errors="ignore") for table in tables)
        pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert not (killed / "unfinished").exists() and not (killed / "finished.partial").exists()
    weights = [train.load_model(folder / "best_model.keras").get_weights() for folder in folders]
    assert all(map(np.array_equal, *weights))


def test_patience_counts_from_the_best_epoch_across_a_stop(
    tmp_path: Path, small_split: Path
) -> None:
    """A training whose patience was used up before it was stopped does not train on."""
    crops = train.find_crops(small_split)
    images = np.zeros((len(crops), 128, 128, 3), np.uint8)
    model = train.build_model(None)
    settings = dict(epochs=9, patience=2, batch_size=4, learning_rate=1e-4, seed=1)
    settings |= dict(warm_up_steps=0, decay="constant")
    train.prepare_training(model, settings, steps=9)
    rows = [(1, 0.6, 0.5), (2, 0.9, 0.5), (3, 0.7, 0.5), (4, 0.8, 0.5)]
    for count in (2, 3, 4):
        history = pd.DataFrame(rows[:count], columns=["epoch", "val_auc", "val_loss"])
        train.write_checkpoint(model, history, {"run": 1}, tmp_path)
        if count == 2:
            best = [weight.copy() for weight in model.get_weights()]
            model.set_weights([weight + 1 for weight in best])
    parts = {name: part for name, part in crops.groupby("split")}
    kept, history = train.train_model(images, parts, None, settings, {"run": 1}, tmp_path)
    assert len(history) == 4
    assert all(map(np.array_equal, kept.get_weights(), best))
    assert [path.name for path in tmp_path.iterdir()] == ["0004"]


@pytest.mark.parametrize("decay", ["cosine", "constant"])
def test_the_learning_rate_rises_and_then_falls_or_stays(decay: str) -> None:
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    settings = {"learning_rate": 0.1, "warm_up_steps": 50, "decay": decay}
    train.prepare_training(model, settings, steps=1000)
    rate = model.optimizer._learning_rate
    assert float(rate(0)) == 0
    assert float(rate(25)) == pytest.approx(0.05)
    assert float(rate(50)) == pytest.approx(0.1)
    assert float(rate(525)) == pytest.approx(0.05 if decay == "cosine" else 0.1)
    assert float(rate(1000)) == pytest.approx(0 if decay == "cosine" else 0.1, abs=1e-6)
    train.prepare_training(model, settings | {"warm_up_steps": 0}, steps=1000)
    assert float(model.optimizer._learning_rate(0)) == pytest.approx(0.1)


# Wrong input


def remove(split_dir: Path, name: str) -> None:
    shutil.rmtree(split_dir / name)


def empty(split_dir: Path, name: str) -> None:
    for path in (split_dir / name).iterdir():
        path.unlink()


def tear(split_dir: Path, name: str) -> None:
    for path in (split_dir / name).iterdir():
        path.write_bytes(b"torn")


def garble(split_dir: Path, name: str) -> None:
    (split_dir / name).write_text("a,b\n1,2\n")


def double(split_dir: Path, name: str) -> None:
    lines = (split_dir / name).read_text().splitlines()
    (split_dir / name).write_text("\n".join([*lines, lines[-1]]))


def one_video(split_dir: Path, name: str) -> None:
    pd.read_csv(split_dir / name).assign(video_id="v").to_csv(split_dir / name, index=False)


@pytest.mark.parametrize(
    ("damage", "name", "sentence"),
    [
        (remove, "", "there is no such folder"),
        (remove, "train", "it has no train/"),
        (remove, "val", "there are no fake crops in it"),
        (remove, "train/real", "there are no real crops in it"),
        (empty, "train/fake", "there are no fake crops in it"),
        (empty, "val/real", "there are no real crops in it"),
        (empty, "test/real", "there are no real crops in it"),
        (tear, "test/fake", "none of its crops can be read"),
        (garble, "crops.csv", "it is not a table with the columns"),
        (double, "crops.csv", "it is not a table with the columns"),
        (one_video, "crops.csv", "all of its crops are of one video"),
    ],
)
def test_a_wrong_split_folder_is_named(
    damage: object, name: str, sentence: str, tmp_path: Path, small_split: Path
) -> None:
    split_dir = shutil.copytree(small_split, tmp_path / "split_dataset")
    damage(split_dir, name)
    with pytest.raises((ValueError, OSError), match=sentence) as raised:
        train.main(split_dir, tmp_path / "model", start="none")
    message = str(raised.value)
    assert str(split_dir) in message and "\n" not in message and message.endswith(".")
    assert "03-prepare-fake-real-dataset.py" in message
    written = [path.name for path in tmp_path.glob("model/*")]
    assert set(written) <= {".lock"}


@pytest.mark.parametrize(
    ("argument", "value", "sentence"),
    [
        ("start", "not-there.h5", "not-there.h5: there is no such weights file"),
        ("epochs", -1, "epochs is -1; give 0 or more"),
        ("epochs", 0, "with --epochs 0 a model is measured"),
        ("resamples", 0, "resamples is 0; give 1 or more"),
        ("batch_size", 0, "batch size is 0; give 1 or more"),
        ("patience", 0, "patience is 0; give 1 or more"),
        ("seed", -1, "seed is -1; give 0 or more"),
        ("learning_rate", 0.0, "learning rate is 0.0; give a number above 0"),
        ("learning_rate", float("nan"), "learning rate is nan; give a number above 0"),
        ("model_dir", Path(train.__file__), "it is a file; name a folder"),
    ],
)
def test_a_wrong_argument_is_named(
    argument: str, value: object, sentence: str, tmp_path: Path, small_split: Path
) -> None:
    arguments = {"split_dir": small_split, "model_dir": tmp_path / "model", "start": "none"}
    with pytest.raises((ValueError, OSError), match=sentence):
        train.main(**arguments | {argument: value})
    assert not (tmp_path / "model").exists()


def test_the_shell_gets_one_sentence_and_exit_code_1(tmp_path: Path) -> None:
    result = run_script(SCRIPT, "--split-dir", "faces", "--start", "none", cwd=tmp_path)
    assert_stops(result, f"{SCRIPT}: faces: there is no such folder")
    assert list(tmp_path.iterdir()) == []
