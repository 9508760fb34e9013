"""Tests of 04-train-cnn.py: real trainings of the whole network, on a few crops that are plain."""

import importlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import efficientnet.tfkeras as efn
import efficientnet.weights
import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from conftest import assert_stops, run_script
from hypothesis import given, settings
from hypothesis import strategies as st

train = importlib.import_module("04-train-cnn")

SCRIPT = "04-train-cnn.py"
VIDEOS = {"train": 4, "val": 1, "test": 1}  # of each label
CROPS = 6  # a video
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
    metrics = train.main(
        split_dir, model_dir, start="lite0", epochs=8, batch_size=8, learning_rate=1e-3, seed=3
    )
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
    assert sorted(path.name for path in trained.model_dir.iterdir()) == [
        "best_model.keras",
        "history.csv",
        "metrics.json",
        "predictions.csv",
        "roc.png",
        "training_curves.png",
    ]
    for name in ("roc.png", "training_curves.png"):
        picture = cv2.imdecode(np.fromfile(trained.model_dir / name, np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape[0] > 400 and picture.std() > 10


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
    assert "fake" in metrics["about_measures"]["positive class"]
    assert "higher is better" in metrics["about_measures"]["auc"]


def test_broken_crops_are_left_out_by_name(trained: Trained) -> None:
    assert trained.metrics["left_out"] == dict.fromkeys(BROKEN, "does not decode as an image")


def test_predictions_hold_every_crop_of_val_and_test_once(trained: Trained) -> None:
    table = trained.predictions
    assert list(table.columns) == ["crop", "video_id", "label", "p_real", "split"]
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


def test_history_has_a_row_an_epoch_and_the_best_has_the_lowest_loss(trained: Trained) -> None:
    history = trained.history
    assert list(history.epoch) == list(range(1, trained.metrics["epochs_run"] + 1))
    assert set(history.columns) == {"epoch", "loss", "accuracy", "val_loss", "val_accuracy"}
    assert history.set_index("epoch").val_loss.idxmin() == trained.metrics["best_epoch"]


def test_the_model_kept_is_that_of_the_best_epoch(trained: Trained) -> None:
    val = trained.predictions[trained.predictions.split == "val"]
    p_of_label = np.where(val.label == "real", val.p_real, 1 - val.p_real)
    val_loss = -np.log(p_of_label.clip(1e-7)).mean()
    assert val_loss == pytest.approx(trained.history.val_loss.min(), rel=1e-3, abs=1e-5)


# What is learned


def test_it_learns_and_p_real_is_high_for_real(trained: Trained) -> None:
    test = trained.predictions[trained.predictions.split == "test"]
    assert test[test.label == "real"].p_real.min() > 0.5
    assert test[test.label == "fake"].p_real.max() < 0.5
    assert trained.metrics["measures"]["test"] == {
        "crop": {"auc": 1.0, "accuracy": 1.0},
        "video": {"auc": 1.0, "accuracy": 1.0},
    }


def test_validation_follows_training(trained: Trained) -> None:
    """With the running statistics of Keras' default momentum it stays at chance here."""
    last = trained.history.iloc[-1]
    assert last.accuracy > 0.9
    assert last.val_accuracy > 0.9


def test_a_video_has_the_mean_of_its_crops() -> None:
    predictions = pd.DataFrame(
        {
            "crop": list("abcdef"),
            "video_id": ["v", "v", "w", "w", "x", "x"],
            "label": ["fake", "fake", "real", "real", "real", "real"],
            "p_real": [0.1, 0.5, 0.9, 0.0, 0.7, 0.8],
            "split": "test",
        }
    )
    videos = train.average_by_video(predictions).set_index("video_id")
    assert videos.p_real.to_dict() == pytest.approx({"v": 0.3, "w": 0.45, "x": 0.75})
    assert videos.label.to_dict() == {"v": "fake", "w": "real", "x": "real"}
    # By crop: of 2 fakes x 4 reals, 0.1 and 0.5 lie below 3 of the reals each, 0.0 below both. A
    # p_fake of 0.5 is called fake. By video: 0.45 is a real called fake.
    assert train.measure_both_units(predictions) == {
        "crop": {"auc": pytest.approx(6 / 8), "accuracy": pytest.approx(5 / 6)},
        "video": {"auc": 1.0, "accuracy": pytest.approx(2 / 3)},
    }


def test_a_real_and_a_fake_of_the_same_name_are_two_videos() -> None:
    predictions = pd.DataFrame(
        {"video_id": "v", "label": ["fake", "real"], "p_real": [0.2, 0.8], "split": "test"}
    )
    assert sorted(train.average_by_video(predictions).p_real) == [0.2, 0.8]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=2, max_size=30))
def test_auc_is_the_share_of_pairs_in_the_right_order(draws: list[tuple[bool, int]]) -> None:
    draws = [(True, 3), (False, 3), *draws]
    predictions = pd.DataFrame(
        {
            "label": ["fake" if is_fake else "real" for is_fake, _ in draws],
            "p_real": np.float32([p_real / 20 for _, p_real in draws]),
        }
    )
    fakes = [p_real for is_fake, p_real in draws if is_fake]
    reals = [p_real for is_fake, p_real in draws if not is_fake]
    pairs = [(fake < real) + (fake == real) / 2 for fake in fakes for real in reals]
    assert train.measure(predictions)["auc"] == pytest.approx(np.mean(pairs))


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
    whole, left_out = train.drop_broken_crops(crops, split_dir)
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
    for name in ("ROTATION", "SHIFT", "SHEAR", "ZOOM", "FLIP"):
        monkeypatch.setattr(train, name, 0)


def test_every_epoch_serves_every_crop_once_in_another_order(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    still(monkeypatch)
    crops = train.find_crops(trained.split_dir)
    crops = crops[(crops.split == "train") & ~crops.crop.isin(BROKEN)].head(25)
    images = [train.read_crop(trained.split_dir / crop) for crop in crops.crop]

    def serve(seed: int | None) -> list[list[int]]:
        batches = train.batch_crops(crops, trained.split_dir, 12, seed)
        epochs = []
        for _ in range(2):
            epochs.append([])
            for pictures, labels in batches:
                assert len(labels) in (7, 9)  # 25 in batches of 12 would leave one of 1
                for picture, label in zip(np.round(pictures), labels.numpy(), strict=True):
                    row = [np.array_equal(picture, image) for image in images].index(True)
                    assert label == (crops.label.iloc[row] == "real")
                    epochs[-1].append(row)
        return epochs

    in_order, again = serve(None)
    assert in_order == again == list(range(25))
    first, second = serve(seed=1)
    assert sorted(first) == sorted(second) == list(range(25))
    assert first != second and first != in_order
    assert serve(seed=1) == [first, second]
    assert serve(seed=2) != [first, second]


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
    moved = train.augment(tf.constant(images), [seed, 0]).numpy()
    assert moved.shape == images.shape
    np.testing.assert_allclose(moved[0], level, atol=1e-3)  # nothing foreign comes in at the border
    assert moved.min() >= 0 and moved.max() <= 255.001
    assert np.array_equal(moved, train.augment(tf.constant(images), [seed, 0]))
    assert not np.array_equal(moved, train.augment(tf.constant(images), [seed, 1]))


@pytest.mark.parametrize(
    ("name", "most"),
    # pixels that a corner can move, from a ring of radius 63.5 in the middle
    [("ROTATION", 15.7), ("SHIFT", 18.2), ("SHEAR", 12.8), ("ZOOM", 9.1)],
)
def test_each_range_moves_that_far_and_no_farther(
    name: str, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = getattr(train, name)
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
    result = run_script(SCRIPT, "--split-dir", small_split, "--model-dir", model_dir, cwd=tmp_path)
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
    split_dir, model_dir = tmp_path / "split_dataset", tmp_path / "model"
    write_split(split_dir, {"train": 1, "val": 1})
    (split_dir / "crops.csv").unlink()
    model_dir.mkdir()
    (model_dir / "best_model.keras").write_bytes(b"an old model")
    (model_dir / "notes.txt").write_text("mine")
    start = str(trained.model_dir / "best_model.keras")
    metrics = train.main(split_dir, model_dir, start, epochs=1, learning_rate=1e-6)
    assert metrics["started_from"] == start
    assert metrics["measures"] == {
        "val": {"crop": {"auc": 1.0, "accuracy": 1.0}, "video": {"auc": 1.0, "accuracy": 1.0}}
    }
    assert len(pd.read_csv(model_dir / "predictions.csv")) == 12
    summary = capsys.readouterr().out
    assert "has none, so these are the measures of val" in summary
    assert "val, by crop" in summary
    assert keras.saving.load_model(model_dir / "best_model.keras").name == "deepfake_detector"
    assert (model_dir / "notes.txt").read_text() == "mine"


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
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("argument", "value", "sentence"),
    [
        ("start", "not-there.h5", "not-there.h5: there is no such weights file"),
        ("epochs", 0, "epochs is 0; give 1 or more"),
        ("batch_size", 0, "batch size is 0; give 1 or more"),
        ("patience", -1, "patience is -1; give 0 or more"),
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
