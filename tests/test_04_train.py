"""Tests of 04-train-cnn.py: real trainings of the whole network, on a few crops that are plain."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import cv2
import efficientnet.tfkeras as efn
import efficientnet.weights
import filelock
import keras
import numpy as np
import pandas as pd
import pytest
import scipy.special
import tensorflow as tf
from conftest import ROOT, assert_stops, run_script
from crops import BROKEN, OPTIONS, Trained, small_split, trained, write_crop, write_split
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfake_detect import augmentation
from deepfake_detect import crops as crop_files
from deepfake_detect import model as model_module
from deepfake_detect.decision import Decision, calibrate
from deepfake_detect.model import (
    BATCH_NORM_MOMENTUM,
    IMAGENET_FILE,
    LITE0_WEIGHTS,
    build_model,
    find_start_weights,
    sharpen,
)
from deepfake_detect.model_file import load_model, read_decision, read_saved
from deepfake_detect.scoring import predict_crops

train = importlib.import_module("04-train-cnn")

SCRIPT = "04-train-cnn.py"
__all__ = ["small_split", "trained"]  # fixtures


# What is written


def test_it_writes_its_files_whole(trained: Trained) -> None:
    assert sorted(path.name for path in trained.model_dir.iterdir() if path.name != ".lock") == [
        ".made-by",
        "best_model.keras",
        "history.csv",
        "training_curves.png",
    ]
    path = trained.model_dir / "training_curves.png"
    picture = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[0] > 300 and picture.std() > 3


def test_the_model_s_file_says_what_main_returns(trained: Trained) -> None:
    training = trained.training
    assert read_saved(trained.model_dir / "best_model.keras", "training.json") == {
        name: value for name, value in training.items() if name != "decision"
    }
    assert training["counts"] == {
        "train": {"fake crops": 24, "fake videos": 4, "real crops": 24, "real videos": 4},
        "val": {"fake crops": 6, "fake videos": 1, "real crops": 6, "real videos": 1},
    }
    assert training["started_from"] == "ImageNet weights of EfficientNet-Lite0"
    assert training["settings"]["learning_rate"] == 1e-3
    assert training["settings"]["batch_size"] == 8
    assert training["versions"]["TensorFlow"] == tf.__version__


def test_broken_crops_are_left_out_by_name(trained: Trained) -> None:
    assert trained.training["left_out"] == dict.fromkeys(BROKEN, "does not decode as an image")


def test_history_has_a_row_an_epoch(trained: Trained) -> None:
    assert list(trained.history.epoch) == list(range(1, trained.training["epochs_run"] + 1))
    measures = ["loss", "accuracy", "val_loss", "val_accuracy", "val_auc"]
    assert list(trained.history.columns) == ["epoch", *measures]
    assert trained.training["best_epoch"] == train.find_best(trained.history)


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


def score_val(trained: Trained, splits: tuple[str, ...] = ("val",)) -> pd.DataFrame:
    """The predictions of the saved model, by what it is used with."""
    crops = crop_files.find_crops(trained.split_dir, splits)
    images = np.stack(
        [crop_files.read_crop(trained.split_dir / crop, 128) for crop in crops["crop"]]
    )
    return predict_crops(trained.model, images, crops, 8)


def test_the_model_kept_is_that_of_the_best_epoch(trained: Trained) -> None:
    val = score_val(trained)
    p_of_label = np.where(val.label == "real", val.p_real, 1 - val.p_real)
    best = trained.history.set_index("epoch").loc[trained.training["best_epoch"]]
    assert -np.log(p_of_label.clip(1e-7)).mean() == pytest.approx(best.val_loss, rel=1e-3, abs=1e-6)


# What is learned


def test_validation_follows_training(trained: Trained) -> None:
    """With the running statistics of Keras' default momentum it stays at chance here."""
    last = trained.history.iloc[-1]
    assert last.accuracy > 0.9
    assert last.val_accuracy > 0.9


def test_the_auc_of_an_epoch_is_the_mean_of_its_data_sets() -> None:
    """Two sets that are told apart without a fault, at levels that overlap between them."""
    rows = [("A", "real", 0.1), ("A", "fake", 0.4), ("B", "real", 0.5), ("B", "fake", 0.9)]
    val = pd.DataFrame(rows, columns=["dataset", "label", "p_fake"]).assign(video_id=list("abcd"))
    assert train.measure_auc(val) == 1
    assert train.measure_auc(val.assign(dataset="")) == 0.75
    assert train.measure_auc(val.assign(dataset=list("ABCD"))) == 0.75  # none has both labels


# The decision


def make_predictions(rows: list[tuple[str, str, float]]) -> pd.DataFrame:
    """Predictions from (label, video_id, p_real), uncalibrated."""
    table = pd.DataFrame(rows, columns=["label", "video_id", "p_real"])
    return table.assign(p_fake=1 - table.p_real, split="test", dataset="", method="")


def test_a_real_and_a_fake_of_the_same_name_are_two_videos() -> None:
    predictions = make_predictions([("fake", "v", 0.2), ("real", "v", 0.8)])
    assert sorted(crop_files.average_by_video(predictions).p_fake) == pytest.approx([0.2, 0.8])


SCORES = st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=2, max_size=30)


@given(SCORES, st.sampled_from((0.0, 0.1, 0.3)))
@settings(deadline=None)
def test_of_either_class_few_videos_are_called_wrong(
    draws: list[tuple[bool, int]], most_wrong: float
) -> None:
    draws = [(True, 3), (False, 3), *((fake, min(p, 19)) for fake, p in draws)]
    rows = [("fake" if fake else "real", str(i), 1 - p / 20) for i, (fake, p) in enumerate(draws)]
    threshold, real_below = train.choose_thresholds(make_predictions(rows), most_wrong)
    assert 0 <= real_below <= threshold <= 1
    p_fake = {
        kind: np.array([1 - (1 - p / 20) for of, p in draws if of == kind]) for kind in (0, 1)
    }
    assert np.mean(p_fake[0] >= threshold) <= most_wrong + 1 / len(p_fake[0])
    assert np.mean(p_fake[1] < real_below) <= most_wrong + 1 / len(p_fake[1])


def test_where_nothing_need_be_undecided_one_threshold_lies_in_the_gap() -> None:
    val = make_predictions([("real", "a", 0.9), ("real", "b", 0.8), ("fake", "c", 0.2)])
    assert train.choose_thresholds(val, 0.0) == pytest.approx((0.5, 0.5))


@given(st.floats(0.5, 5), st.floats(-5, 5), st.lists(st.floats(0, 1), min_size=1))
def test_calibration_keeps_the_order_and_turns_round(
    temperature: float, shift: float, p: list[float]
) -> None:
    p_real = np.sort(np.float64(p))
    p_fake = calibrate(p_real, Decision(temperature, shift))
    assert ((p_fake > 0) & (p_fake < 1)).all()
    assert (np.diff(p_fake) <= 0).all()
    np.testing.assert_allclose(
        calibrate(p_real, Decision()),
        np.clip(1 - p_real, 1e-7, 1 - 1e-7),
        rtol=1e-6,
    )
    logit = -scipy.special.logit(np.clip(p_real, 1e-7, 1 - 1e-7)) / temperature + shift
    np.testing.assert_allclose(p_fake, np.clip(scipy.special.expit(logit), 1e-7, 1 - 1e-7))


@pytest.mark.parametrize("share_of_fakes", [0.5, 0.2])
@pytest.mark.parametrize("shifted_by", [0.0, -1.5])
@pytest.mark.parametrize("too_sure_by", [0.8, 1.0, 2.5])
def test_the_calibration_that_scores_lack_is_found(
    too_sure_by: float, shifted_by: float, share_of_fakes: float
) -> None:
    """Whatever the share of fakes in val/: that is no property of the world."""
    rng = np.random.default_rng(2)
    is_fake = rng.random(40_000) < share_of_fakes
    # The logit of two normal distributions of scale s, s**2 apart, at even odds, is the score.
    logits = rng.normal(np.where(is_fake, 1, -1) * 1.5**2 / 2, 1.5)
    p_real = scipy.special.expit(-(too_sure_by * logits + shifted_by))
    rows = zip(np.where(is_fake, "fake", "real"), map(str, range(40_000)), p_real, strict=True)
    found = train.fit_calibration(make_predictions(list(rows)))
    assert found.temperature == pytest.approx(too_sure_by, rel=0.05)
    assert found.shift == pytest.approx(-shifted_by / too_sure_by, abs=0.06)


def test_a_separable_validation_set_does_not_ask_for_the_end_of_the_scale() -> None:
    val = make_predictions([("real", "a", 0.9), ("fake", "b", 0.1)])
    found = train.fit_calibration(val)
    assert found.temperature == pytest.approx(train.TEMPERATURES[0], abs=1e-3)
    assert abs(found.shift) < 0.1


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
    assert {layer.momentum for layer in norms} == {BATCH_NORM_MOMENTUM}


def test_the_normalisation_is_inside(trained: Trained) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3)).astype(np.float32)
    inside = trained.model.get_layer("imagenet_mean_and_std")(images)
    np.testing.assert_allclose(inside, efn.preprocess_input(images.copy()), rtol=1e-4, atol=1e-5)


def test_the_saved_model_says_the_same_in_a_new_process(trained: Trained, tmp_path: Path) -> None:
    predictions = score_val(trained, ("val", "test"))
    crops = predictions["crop"]
    images = np.stack([crop_files.read_crop(trained.split_dir / crop, 128) for crop in crops])
    assert images.dtype == np.uint8 and images.max() > 200
    np.save(tmp_path / "images.npy", images)
    program = (
        "import sys, efficientnet.tfkeras, keras, numpy as np\n"
        "model = keras.saving.load_model(sys.argv[1], safe_mode=True)\n"
        "images = np.load(sys.argv[2])\n"
        "images = np.concatenate((images, images[:, :, ::-1]))\n"
        "np.save(sys.argv[3], model.predict(images, verbose=0))\n"
    )
    files = [trained.model_dir / "best_model.keras", tmp_path / "images.npy", tmp_path / "p.npy"]
    subprocess.run([sys.executable, "-c", program, *files], check=True)
    p_real = np.load(tmp_path / "p.npy")[:, 0].astype(np.float64).clip(1e-7, 1 - 1e-7)
    logit = scipy.special.logit(p_real).reshape(2, -1).mean(axis=0)  # of a crop, and of its mirror
    p_real = scipy.special.expit(logit)
    np.testing.assert_allclose(p_real, predictions["p_real"], rtol=1e-4, atol=1e-6)


def test_the_decision_travels_with_the_model(trained: Trained, tmp_path: Path) -> None:
    path = trained.model_dir / "best_model.keras"
    decision = read_decision(path)
    assert decision._asdict() == trained.training["decision"]
    with zipfile.ZipFile(path) as archive:
        assert json.loads(archive.read("decision.json"))["positive_class"] == "fake"
    plain = tmp_path / "plain.keras"
    trained.model.save(plain)
    with pytest.raises(ValueError, match="it has no threshold saved with it"):
        read_decision(plain)
    load_model(plain)


def save_other(path: Path, size: int, outputs: int) -> None:
    inputs = keras.Input((size, size, 3))
    pooled = keras.layers.GlobalMaxPooling2D()(inputs)
    keras.Model(inputs, keras.layers.Dense(outputs)(pooled)).save(path)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("missing", "there is no such model"),
        ("text", "it is not a model of 04-train-cnn.py"),
        ("cut", "it is not a model of 04-train-cnn.py"),
        ("large", "it is not a model of 04-train-cnn.py (it has other layers"),
        ("two", "it is not a model of 04-train-cnn.py (it has other layers"),
        ("lambda", "it is not a model of 04-train-cnn.py"),
        ("uneven", "it is not a model of 04-train-cnn.py (it has other layers"),
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
    elif name == "uneven":
        build_model(None, 100).save(path)
    elif name != "missing":
        save_other(path, *((256, 1) if name == "large" else (128, 2)))
    with pytest.raises((ValueError, OSError)) as raised:
        load_model(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: {sentence}") and "\n" not in message


# The crops


@given(st.integers(1, 300), st.integers(1, 300))
@settings(max_examples=20, deadline=None)
def test_a_crop_of_any_size_becomes_rgb_128(height: int, width: int) -> None:
    crop = crop_files.prepare_crop(np.full((height, width, 3), (10, 20, 250), np.uint8), 128)
    assert crop.shape == (128, 128, 3) and crop.dtype == np.uint8
    assert (crop == (250, 20, 10)).all()


def test_a_blurred_crop_is_less_sharp() -> None:
    crop = np.random.default_rng(1).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    soft, softer = (cv2.GaussianBlur(crop, (0, 0), sigma) for sigma in (1, 2))
    found = [crop_files.measure_sharpness(image) for image in (crop, soft, softer, 0 * crop)]
    assert found == sorted(found, reverse=True) and found[-1] == 0
    assert found[1] == pytest.approx(
        cv2.Laplacian(cv2.cvtColor(soft, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var()
    )


def test_crops_are_listed_with_any_supported_suffix(tmp_path: Path, small_split: Path) -> None:
    split_dir = shutil.copytree(small_split, tmp_path / "split_dataset")
    image = np.zeros((50, 50, 3), np.uint8)
    for name in ("a.JPG", "b.jpeg", "c.WebP", "dé.png"):
        write_crop(split_dir / "train" / "real" / name, image)
    for name in ("notes.txt", ".hidden.png", "d.png.partial"):
        (split_dir / "train" / "real" / name).write_bytes(b"")
    crops = crop_files.find_crops(split_dir, ("train", "val", "test"))
    assert len(crops) == 12 + 4
    images = np.empty((16, 128, 128, 3), np.uint8)
    whole, left_out = crop_files.decode_crops(crops, split_dir, images)
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
    crops = crop_files.find_crops(split_dir, ("train", "val")).set_index("crop").video_id
    assert crops["train/real/listed.png"] == "007"
    assert crops["train/real/photo-12-3.png"] == "nan"
    (split_dir / "crops.csv").unlink()
    crops = crop_files.find_crops(split_dir, ("train", "val")).set_index("crop").video_id
    assert crops["train/real/listed.png"] == "listed"
    assert crops["train/real/photo-12-3.png"] == "photo-12-3"
    assert crops["train/real/ffpp-a-b_c-000042-00.png"] == "ffpp-a-b_c"
    assert crops["train/real/x.y-1000000-01.png"] == "x.y"
    assert crops["train/real/519_515.png"] == "519_515"


# Nothing is left of the augmentation, and every crop comes by itself.
STILL = dict.fromkeys(
    ("blended", "swapped", "flip", "shift", "rotation", "brightness", "contrast", "tint", "grey"), 0
)
STILL |= {"paired": False, "repeats": 2, "cut_out": 0.0, "zoomed": (0, 0), "reduced": (0, 32)}
STILL |= {"blurred": (0, 2), "noisy": (0, 10), "jpeg": (0, 30), "batch_size": 12, "seed": 1}


def test_every_epoch_serves_every_crop_once_in_another_order() -> None:
    images = np.arange(30 * 128 * 128 * 3).reshape(30, 128, 128, 3) % 251
    images = (images + 5 * np.arange(30)[:, None, None, None]).astype(np.uint8)
    crops = pd.DataFrame({"label": ["fake", "real"] * 15, "dataset": "made up"})
    crops = crops.iloc[2:27]  # their index says the row

    def serve(seed: int, number: int) -> list[int]:
        epoch = []
        for pictures, labels in augmentation.serve_crops(
            images, crops, STILL | {"seed": seed}, number
        ):
            assert len(labels) in (8, 9)  # 25 in batches of 12 would leave one of 1
            for picture, label in zip(np.round(pictures), labels.numpy(), strict=True):
                row = [np.array_equal(picture, image) for image in images].index(True)
                assert label == (crops.label[row] == "real")
                epoch.append(row)
        return epoch

    first, second = serve(1, 1), serve(1, 2)
    assert sorted(first) == sorted(second) == list(range(2, 27))
    assert first != second and first != list(range(2, 27))
    assert serve(1, 1) == first  # as a training that goes on needs it
    assert serve(2, 1) != first


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 1), st.integers(0, 4)), min_size=2),
    st.sampled_from((0.0, 0.5, 1.0)),
    st.integers(1, 3),
    st.integers(0, 100),
)
@settings(max_examples=40)
def test_every_real_comes_as_often_as_there_are_fakes_with_a_fake_of_its_own(
    drawn: list[tuple[bool, int, int]], blended: float, repeats: int, seed: int
) -> None:
    rows = [("real" if real else "fake", f"set {of}", f"id{one};") for real, of, one in drawn]
    crops = pd.DataFrame(rows, columns=["label", "dataset", "identities"])
    crops["identities"] = crops["identities"].str.strip(";").where(crops.index % 3 > 0, "")
    crops.index += 7
    wanted = {"paired": True, "blended": blended, "repeats": repeats}
    pairs = augmentation.draw_groups(crops, wanted, (seed, 1))
    assert pairs == augmentation.draw_groups(crops, wanted, (seed, 1))
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
    # Of a data set's fakes that share no one's identity none comes twice before all came once.
    for dataset in {dataset for dataset, _ in unrelated}:
        times = pd.Series([fake for of, fake in unrelated if of == dataset]).value_counts()
        of_set = ((crops["label"] == "fake") & (crops["dataset"] == dataset)).sum()
        assert times.max() - (times.min() if len(times) == of_set else 0) <= 1


def test_a_pair_is_a_real_and_its_fake_and_both_are_changed_alike() -> None:
    """A real and a fake of the same pixels stay the same pixels, whatever is done to them."""
    rng = np.random.default_rng(1)
    faces = rng.integers(0, 256, (6, 128, 128, 3)).astype(np.uint8)
    images = np.concatenate((faces, faces))
    crops = pd.DataFrame({"label": ["real"] * 6 + ["fake"] * 6, "dataset": "made up"})
    crops["identities"] = [str(number % 6) for number in range(12)]
    strong = {name: getattr(train, name.upper()) for name in STILL}
    strong |= {"blended": 0.0, "batch_size": 4}
    for pictures, labels in augmentation.serve_crops(images, crops, strong, 1):
        assert labels.numpy().ravel().tolist() == [1, 0, 1, 0]
        assert np.array_equal(pictures[0::2], pictures[1::2])
    blended = strong | {"blended": 1.0, "swapped": 0.5}
    for pictures, labels in augmentation.serve_crops(images, crops, blended, 1):
        assert labels.numpy().ravel().tolist() == [1, 0, 1, 0]
        differ = (pictures[0::2] != pictures[1::2]).numpy()
        assert differ.any(axis=(1, 2, 3)).all()


def test_crops_are_decoded_once_into_a_file_without_a_name(
    tmp_path: Path, small_split: Path
) -> None:
    crops = crop_files.find_crops(small_split, ("train", "val"))
    images = crop_files.open_cache(len(crops), 128, tmp_path)
    assert list(tmp_path.iterdir()) == []  # so that a kill leaves none behind
    whole, _ = crop_files.decode_crops(crops, small_split, images)
    for row, crop in whole.iterrows():
        assert np.array_equal(images[row], crop_files.read_crop(small_split / crop["crop"], 128))
        picture = cv2.imread(str(small_split / crop["crop"]))
        assert crop["side"] == min(picture.shape[:2])
        assert crop["sharpness"] == crop_files.measure_sharpness(images[row])


# The augmentation


def change(image: np.ndarray, seed: int, **settings: object) -> np.ndarray:
    return augmentation.change_alike([image], STILL | settings, np.random.default_rng(seed))[0]


def test_without_ranges_nothing_changes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    assert np.array_equal(change(image, 1), image)
    assert np.array_equal(change(image, 1, flip=1.0), image[:, ::-1])


def test_about_half_are_mirrored() -> None:
    ramp = np.broadcast_to(np.arange(128, dtype=np.uint8)[None, :, None], (128, 128, 3)).copy()
    mirrored = [change(ramp, seed, flip=0.5)[0, 0, 0] > 100 for seed in range(400)]
    assert 150 < sum(mirrored) < 250


@given(st.integers(0, 2**31), st.integers(0, 255))
@settings(max_examples=15)
def test_changed_crops_stay_within_their_values(seed: int, level: int) -> None:
    plain = np.full((128, 128, 3), level, np.uint8)
    moves = {"shift": 0.1, "flip": 0.5, "rotation": 10.0, "zoomed": (1, 0.2)}
    assert np.array_equal(change(plain, seed, **moves), plain)  # nothing foreign at the border
    image = np.random.default_rng(seed).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    every = {
        name: (1, getattr(train, name.upper())[1]) for name in ("zoomed", "reduced", "blurred")
    }
    every |= {name: (1, getattr(train, name.upper())[1]) for name in ("noisy", "jpeg")}
    every |= {"brightness": 0.5, "contrast": 0.5, "tint": 0.5, "grey": 0.5, "cut_out": 1.0}
    for drawn in (moves, every, moves | every):
        changed = change(image, seed, **drawn)
        assert changed.shape == image.shape and changed.dtype == np.uint8
        assert np.array_equal(changed, change(image, seed, **drawn))
        assert not np.array_equal(changed, change(image, seed + 1, **drawn))


def test_the_shift_moves_that_far_and_no_farther() -> None:
    y, x = np.mgrid[:128, :128].astype(np.uint8)
    where = np.stack((x, y, 0 * x), axis=-1)
    moved = np.stack([change(where, seed, shift=0.1) for seed in range(200)]).astype(int)
    farthest = np.abs(moved - where)[:, 40:88, 40:88].max()  # no pixel comes from outside there
    assert farthest == round(0.1 * 128)


def test_light_and_contrast_change_within_their_ranges() -> None:
    grey = np.full((128, 128, 3), 128, np.uint8)
    changed = [int(change(grey, seed, brightness=0.1)[0, 0, 0]) - 128 for seed in range(300)]
    assert -26 <= min(changed) < -23 and 23 < max(changed) <= 26
    assert np.array_equal(change(grey, 3, contrast=0.2), grey)
    halves = np.concatenate((grey[:64] - 50, grey[64:] + 50))
    changed = [int(change(halves, seed, contrast=0.2)[127, 0, 0]) - 178 for seed in range(300)]
    assert -11 <= min(changed) < -8 and 8 < max(changed) <= 11


def test_a_reduced_crop_has_no_finer_detail_than_its_size_holds() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    before = crop_files.measure_sharpness(noise)
    for drawn in ({"reduced": (1, 32)}, {"blurred": (1, 2.0)}):
        assert all(
            crop_files.measure_sharpness(change(noise, s, **drawn)) < before for s in range(9)
        )


def test_the_softest_share_is_that_of_the_crops_as_they_were_changed() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 128, 128, 3)).astype(np.uint8)
    crops = pd.DataFrame(index=range(20))
    plain = [crop_files.measure_sharpness(image) for image in images]
    still = STILL | {"seed": 1, "softest_share": 0.0}
    assert train.find_least_sharpness(images, crops, still) == min(plain)
    assert train.find_least_sharpness(images, crops, still | {"softest_share": 1.0}) == max(plain)
    blurred = still | {"blurred": (1, 2.0)}
    assert train.find_least_sharpness(images, crops, blurred) < min(plain) / 10


@given(st.integers(0, 2**31), st.booleans())
@settings(max_examples=25)
def test_a_blend_is_of_two_kinds_of_pixels_with_a_soft_mask(seed: int, own: bool) -> None:
    rng, masks, copies = np.random.default_rng(seed), [], []
    draw_mask, change_copy = augmentation.draw_mask, augmentation.change_copy
    noise = rng.integers(0, 256, (2, 128, 128, 3)).astype(np.uint8)
    image, other = (cv2.GaussianBlur(one, (0, 0), 3) for one in noise)
    face = image if own else other

    def draw(*arguments: object) -> np.ndarray:
        masks.append(draw_mask(*arguments))
        return masks[-1]

    def change(*arguments: object) -> np.ndarray:
        copies.append(change_copy(*arguments))
        return copies[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augmentation, "draw_mask", draw)
        patch.setattr(augmentation, "change_copy", change)
        blend = augmentation.blend(face, image, np.random.default_rng(seed))
    assert blend.shape == image.shape and blend.dtype == np.uint8
    assert np.array_equal(blend, augmentation.blend(face, image, np.random.default_rng(seed)))
    (mask,), (copy,) = masks, copies
    assert mask.shape == (128, 128) and mask.dtype == np.float32
    assert mask.min() >= 0 and mask.max() <= 1
    assert np.abs(np.diff(mask, axis=0)).max() < 0.7  # no hard border
    assert mask[[0, 0, -1, -1], [0, -1, 0, -1]].max() < 0.01  # the corners are no face
    around = blend[mask == 0]
    assert any(np.array_equal(around, whole[mask == 0]) for whole in (image, copy))
    assert not any(np.array_equal(blend, whole) for whole in (image, copy))


def test_the_face_that_is_blended_in_is_of_the_same_data_set_and_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(1)
    places = rng.integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    for pixels in (12, 8):  # of a place, in images of 192 x 192 and of 128 x 128
        faces = places.repeat(pixels, 1).repeat(pixels, 2)
        images = np.concatenate((faces, faces // 2 + 40, 255 - faces))  # the second has less light
        assert augmentation.find_similar(images, 1, np.array([0, 2, 4, 7])) == 4
        assert augmentation.find_similar(images, 5, np.array([0, 2, 3, 8])) == 2
    # Larger images are compared in all of their places.
    face, other = (image.repeat(12, 0).repeat(12, 1) for image in places[:2])
    in_part = np.where(np.indices(face.shape)[0] < 128, face, 255 - face)
    mixed = np.stack([face, in_part, face // 3 * 2 + other // 3])
    assert augmentation.find_similar(mixed, 0, np.array([1, 2])) == 2

    crops = pd.DataFrame({"label": "real", "dataset": ["a"] * 4 + ["b"] * 5, "identities": ""})
    blended = []
    monkeypatch.setattr(
        augmentation, "blend", lambda face, around, _: blended.append((face, around)) or around
    )
    rows = {image.tobytes(): row for row, image in enumerate(images)}
    for swapped, epoch in ((0.0, 1), (1.0, 2)):
        blended.clear()
        drawn = STILL | {"paired": True, "blended": 1.0, "swapped": swapped}
        assert len(list(augmentation.serve_crops(images, crops, drawn, epoch))) == 2
        pairs = [tuple(rows[image.tobytes()] for image in pair) for pair in blended]
        assert sorted(around for _, around in pairs) == list(range(9))
        assert all((face < 4) == (around < 4) for face, around in pairs)
        assert all(face == around for face, around in pairs) == (swapped == 0)


# The start weights


def test_auto_says_loudly_that_it_starts_from_the_embedded_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model_module, "IMAGENET_FILE", "not-there.h5")
    monkeypatch.setattr(efficientnet.weights, "IMAGENET_WEIGHTS_PATH", tmp_path.as_uri() + "/")
    weights, name = find_start_weights("auto")
    assert weights == LITE0_WEIGHTS
    assert name == "ImageNet weights of EfficientNet-Lite0"
    assert "NOTE: training starts from the embedded weights" in capsys.readouterr().err
    with pytest.raises(OSError, match="--start lite0"):
        find_start_weights("imagenet")


def test_every_convolution_and_batch_norm_is_filled_from_lite0() -> None:
    model = build_model(LITE0_WEIGHTS)
    base = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    filled = set()
    with np.load(LITE0_WEIGHTS) as arrays:
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
    assert find_start_weights(None) == find_start_weights("None")
    assert find_start_weights("none") == (None, "random weights")


def test_imagenet_that_cannot_be_had_ends_in_one_sentence(
    tmp_path: Path, small_split: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_dir = tmp_path / "model"
    model_dir.mkdir()
    (model_dir / "best_model.keras").write_bytes(b"an old model")
    half_a_file = tmp_path / "keras" / "models" / IMAGENET_FILE
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
        weights, started_from = find_start_weights(str(tmp_path / name))
        assert started_from == str(tmp_path / name)
        loaded = build_model(weights).layers[2].get_weights()
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
        build_model(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_training_on_without_a_test_split(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Any folder of that shape will do: here without crops.csv and with names of its own.

    The model to train on may have seen images of another size.
    """
    split_dir, model_dir = tmp_path / "split_dataset", tmp_path / "model"
    write_split(split_dir, {"train": 1, "val": 1}, crops=3)
    (split_dir / "crops.csv").unlink()
    rule = {"margin": 0.1, "square": True, "frames": "full"}
    (split_dir / "crop-rule.json").write_text(json.dumps(rule))
    for number, path in enumerate(sorted(split_dir.rglob("*.png"))):
        path.rename(path.with_name(f"photo {number}.png"))
    model_dir.mkdir()
    (model_dir / ".made-by").write_text("04-train-cnn.py\n")
    (model_dir / "best_model.keras").write_bytes(b"an old model")
    (model_dir / "notes.txt").write_text("mine")
    start = str(trained.model_dir / "best_model.keras")
    settings = dict(epochs=1, learning_rate=1e-6, frames="full", image_size=160, sharpen_to=60)
    training = train.main(split_dir, model_dir, start, **settings)
    assert training["started_from"] == start
    for split in ("train", "val"):
        counts = training["counts"][split]
        assert (counts["fake videos"], counts["real videos"]) == (3, 3)
    assert training["val_auc"] == 1
    decision = read_decision(model_dir / "best_model.keras")
    assert (decision.margin, decision.square, decision.frames) == (0.1, True, "full")
    assert (decision.image_size, decision.sharpen_to) == (160, 60)
    model = load_model(model_dir / "best_model.keras")
    assert model.input_shape == (None, 160, 160, 3)
    summary = capsys.readouterr().out
    assert "val             6 crops of 6 videos" in summary
    assert model.name == "deepfake_detector"
    assert (model_dir / "notes.txt").read_text() == "mine"


def test_what_is_soft_is_sharpened_within_the_network_and_the_rest_is_left() -> None:
    """As OpenCV has an unsharp mask and the variance of the Laplacian."""
    rng = np.random.default_rng(1)
    sharp = cv2.resize(rng.integers(40, 216, (24, 24, 3)).astype(np.uint8), (64, 64))
    images = [cv2.GaussianBlur(sharp, (0, 0), blur) for blur in (0.1, 1.0, 1.8, 3.0)]
    before = [crop_files.measure_sharpness(image) for image in images]
    wanted = before[0] / 2
    model = build_model(LITE0_WEIGHTS, 64, wanted)
    sharpening = keras.Model(model.input, sharpen(model.input, wanted))
    sharpened = sharpening(np.stack(images).astype(np.float32)).numpy()
    assert np.array_equal(sharpened[0], images[0])
    for image, result, sharpness in zip(images[1:], sharpened[1:], before[1:], strict=True):
        grey = image @ np.array((0.299, 0.587, 0.114))  # which measure_sharpness rounds
        added = min(4.0, np.sqrt(wanted / cv2.Laplacian(grey, cv2.CV_64F).var()) - 1)
        assert added > 0
        soft = cv2.GaussianBlur(image.astype(np.float32), (9, 9), 1.2)
        unsharp = np.clip(image + added * (image - soft), 0, 255)
        assert np.abs(result - unsharp).max() < 0.1
        now = crop_files.measure_sharpness(result.round().astype(np.uint8))
        assert sharpness < now < 1.05 * wanted
    # The model judges by what is sharpened, as a model without judges what was sharpened before.
    plain = build_model(None, 64)
    plain.set_weights(model.get_weights())
    batch = np.stack(images).astype(np.float32)
    np.testing.assert_allclose(model(batch), plain(sharpened), atol=1e-6)
    assert np.abs(model(batch) - plain(batch)).max() > 1e-4


# Stopping and going on


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists():
        assert process.poll() is None, "it ended before"
        time.sleep(0.05)


def test_a_killed_training_goes_on_and_ends_as_an_undisturbed_one(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same seed gives the very files, killed or not."""
    split_dir, killed = trained.split_dir, tmp_path / "killed"
    command = [sys.executable, ROOT / SCRIPT, "--split-dir", split_dir, "--model-dir", killed]
    for name, value in OPTIONS.items():
        values = value if isinstance(value, tuple) else [value]
        command += [f"--{name.replace('_', '-')}", *map(str, values)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path
    )
    wait_for(killed / "unfinished.keras", process)
    with pytest.raises(filelock.Timeout):
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
    assert "of 3 were done" in printed and "epoch 1 of 3" not in printed
    assert not (killed / "unfinished.keras").exists()
    for name in ("history.csv", "best_model.keras"):
        first, second = ((folder / name).read_bytes() for folder in (trained.model_dir, killed))
        assert first == second, name


def test_patience_counts_from_the_best_epoch_across_a_stop(
    tmp_path: Path, small_split: Path
) -> None:
    """A training whose patience was used up before it was stopped does not train on."""
    crops = crop_files.find_crops(small_split, ("train", "val"))
    images = np.zeros((len(crops), 128, 128, 3), np.uint8)
    model = build_model(None)
    settings = dict(epochs=9, patience=2, batch_size=4, learning_rate=1e-4, seed=1)
    settings |= dict(warm_up_steps=0, decay="constant", devices=None)
    train.compile_model(model, settings, steps=9)
    rows = [(1, 0.6, 0.5), (2, 0.9, 0.5), (3, 0.7, 0.5), (4, 0.8, 0.5)]
    history = pd.DataFrame(rows, columns=["epoch", "val_auc", "val_loss"])
    best = [weight + 1 for weight in model.get_weights()]
    path = tmp_path / "unfinished.keras"
    train.write_checkpoint(model, history, best, {"run": 1}, path)
    parts = {name: part for name, part in crops.groupby("split")}
    kept, history = train.train_model(images, parts, None, settings, {"run": 1}, path)
    assert len(history) == 4
    assert all(map(np.array_equal, kept.get_weights(), best))
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished.keras"]


@pytest.mark.parametrize("decay", ["cosine", "constant"])
def test_the_learning_rate_rises_and_then_falls_or_stays(decay: str) -> None:
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    settings = {"learning_rate": 0.1, "warm_up_steps": 50, "decay": decay}
    train.compile_model(model, settings, steps=1000)
    rate = model.optimizer._learning_rate
    assert float(rate(0)) == 0
    assert float(rate(25)) == pytest.approx(0.05)
    assert float(rate(50)) == pytest.approx(0.1)
    assert float(rate(525)) == pytest.approx(0.05 if decay == "cosine" else 0.1)
    assert float(rate(1000)) == pytest.approx(0 if decay == "cosine" else 0.1, abs=1e-6)
    train.compile_model(model, settings | {"warm_up_steps": 0}, steps=1000)
    assert float(model.optimizer._learning_rate(0)) == pytest.approx(0.1)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
@pytest.mark.parametrize("devices", [(), ("CPU:0",)])
def test_the_optimizer_in_few_operations_is_keras_s(
    devices: tuple[str, ...], precision: str
) -> None:
    """On a device by itself, on those that share each batch, and in 16 bits."""
    strategy = tf.distribute.MirroredStrategy(devices) if devices else tf.distribute.get_strategy()
    inputs = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    trained = []
    for optimizer in (keras.optimizers.Adam, train.FusedAdam):
        with strategy.scope():
            keras.utils.set_random_seed(1)
            layers = [
                keras.layers.Dense(9, "relu", dtype=precision),
                keras.layers.Dense(1, dtype="float32"),
            ]
            model = keras.Sequential([keras.Input((6,)), *layers])
            before = model.get_weights()
            adam = optimizer(keras.optimizers.schedules.CosineDecay(0.1, 10))
            if precision != "float32":  # as Keras does where that is the policy of all
                adam = keras.optimizers.LossScaleOptimizer(adam)
            model.compile(adam, "mse", jit_compile=False)
        model.fit(inputs, inputs[:, :1] ** 2, batch_size=4, shuffle=False, verbose=0)
        trained.append(model.get_weights())
    for theirs, ours, start in zip(*trained, before, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert np.abs(ours - start).max() > 0.05


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
        (remove, "val", "it has no val/"),
        (remove, "train/real", "there are no real crops in it"),
        (empty, "train/fake", "there are no fake crops in it"),
        (empty, "val/real", "there are no real crops in it"),
        (tear, "val/fake", "none of its crops can be read"),
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
    assert set(written) <= {".lock", ".made-by"}


@pytest.mark.parametrize(
    ("argument", "value", "sentence"),
    [
        ("start", "not-there.h5", "not-there.h5: there is no such weights file"),
        ("epochs", 0, "--epochs is 0; give 1 or more."),
        ("batch_size", 0, "--batch-size is 0; give 1 or more."),
        ("patience", 0, "--patience is 0; give 1 or more."),
        ("seed", -1, "--seed is -1; give 0 to 2147483647."),
        ("learning_rate", 0.0, "--learning-rate is 0.0; give 1e-09 to 1."),
        ("learning_rate", float("nan"), "--learning-rate is nan; give 1e-09 to 1."),
        ("flip", 1.5, "--flip is 1.5; give 0 to 1."),
        ("image_size", 100, "--image-size is 100; give a multiple of 32, up to 512."),
        ("margin", float("inf"), "--margin is inf; give 0 to 10."),
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
    assert result.stderr.count("\n") == 1  # TensorFlow says nothing on being loaded
    assert list(tmp_path.iterdir()) == []
