"""Tests of the network: layers, start weights, sharpening and darkening."""

from pathlib import Path

import cv2
import efficientnet.tfkeras as efn
import efficientnet.weights
import keras
import numpy as np
import pytest
from conftest import assert_stops, run_script
from crops import small_split

from deepfake_detect import model as model_module
from deepfake_detect.crops import measure_sharpness
from deepfake_detect.model import (
    BATCH_NORM_MOMENTUM,
    IMAGENET_FILE,
    LITE0_WEIGHTS,
    build_model,
    darken,
    find_start_weights,
    sharpen,
)

__all__ = ["small_split"]  # a fixture


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return build_model(None)


def test_network_has_the_documented_layers(model: keras.Model) -> None:
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


def test_the_network_normalises_its_images(model: keras.Model) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3)).astype(np.float32)
    inside = model.get_layer("imagenet_mean_and_std")(images)
    np.testing.assert_allclose(inside, efn.preprocess_input(images.copy()), rtol=1e-4, atol=1e-5)


def test_auto_falls_back_to_the_built_in_weights_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model_module, "IMAGENET_FILE", "not-there.h5")
    monkeypatch.setattr(efficientnet.weights, "IMAGENET_WEIGHTS_PATH", tmp_path.as_uri() + "/")
    weights, name = find_start_weights("auto")
    assert weights == LITE0_WEIGHTS
    assert name == "ImageNet weights of EfficientNet-Lite0"
    assert "NOTE: " in capsys.readouterr().err
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


def test_none_means_random_weights() -> None:
    assert find_start_weights(None) == find_start_weights("None")
    assert find_start_weights("none") == (None, "random weights")


@pytest.mark.long
def test_a_failed_download_is_reported_and_changes_nothing(
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
    result = run_script("04-train-cnn.py", *options, cwd=tmp_path)
    assert_stops(result, "04-train-cnn.py", "ImageNet weights", "--start lite0")
    assert [path.name for path in model_dir.iterdir()] == ["best_model.keras"]
    assert (model_dir / "best_model.keras").read_bytes() == b"an old model"


@pytest.mark.long
def test_weights_files_of_the_efficientnet_package_load(tmp_path: Path) -> None:
    shape = (128, 128, 3)
    base = efn.EfficientNetB0(weights=None, include_top=False, input_shape=shape)
    base.save(tmp_path / "base.h5")  # HDF5, like the files of the package
    base.save_weights(tmp_path / "base.weights.h5")
    for name in ("base.h5", "base.weights.h5"):
        weights, started_from = find_start_weights(str(tmp_path / name))
        assert started_from == str(tmp_path / name)
        loaded = build_model(weights).layers[2].get_weights()
        assert all(map(np.array_equal, loaded, base.get_weights()))


@pytest.mark.parametrize(
    "name",
    [
        *("words.h5", "words.txt", "words.keras", "other.keras", "other.npz"),
        pytest.param("b1.h5", marks=pytest.mark.long),
    ],
)
def test_weights_of_another_architecture_are_refused(name: str, tmp_path: Path) -> None:
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
    with pytest.raises(ValueError, match="--start") as raised:
        build_model(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_the_network_sharpens_soft_images_only() -> None:
    """Compare with an unsharp mask and the variance of the Laplacian in OpenCV."""
    rng = np.random.default_rng(1)
    sharp = cv2.resize(rng.integers(40, 216, (24, 24, 3)).astype(np.uint8), (64, 64))
    images = [cv2.GaussianBlur(sharp, (0, 0), blur) for blur in (0.1, 1.0, 1.8, 3.0)]
    before = [measure_sharpness(image) for image in images]
    wanted = before[0] / 2
    model = build_model(LITE0_WEIGHTS, 64, wanted)
    sharpening = keras.Model(model.input, sharpen(model.input, wanted))
    sharpened = sharpening(np.stack(images).astype(np.float32)).numpy()
    assert np.array_equal(sharpened[0], images[0])
    for image, result, sharpness in zip(images[1:], sharpened[1:], before[1:], strict=True):
        grey = image @ np.array((0.299, 0.587, 0.114))  # measure_sharpness rounds to integers
        added = min(4.0, np.sqrt(wanted / cv2.Laplacian(grey, cv2.CV_64F).var()) - 1)
        assert added > 0
        soft = cv2.GaussianBlur(image.astype(np.float32), (9, 9), 1.2)
        unsharp = np.clip(image + added * (image - soft), 0, 255)
        assert np.abs(result - unsharp).max() < 0.1
        now = measure_sharpness(result.round().astype(np.uint8))
        assert sharpness < now < 1.05 * wanted
    # A model without sharpening gives the same output for images sharpened beforehand.
    plain = build_model(None, 64)
    plain.set_weights(model.get_weights())
    batch = np.stack(images).astype(np.float32)
    np.testing.assert_allclose(model(batch), plain(sharpened), atol=1e-6)
    assert np.abs(model(batch) - plain(batch)).max() > 1e-4


def test_the_network_darkens_bright_and_pale_images_only() -> None:
    noise = np.random.default_rng(1).integers(0, 100, (64, 64, 3)).astype(np.float32)
    spot = np.zeros((64, 64, 3), bool)
    spot[6:8, 20:22] = True  # one of 32 x 32 blocks
    ordinary, pale, bright = (np.where(spot, 12, noise + more) for more in (0, 30, 100))
    pale[spot] = 42
    inputs = keras.Input((64, 64, 3))
    images = np.stack([ordinary, pale, bright])
    darkened = keras.Model(inputs, darken(inputs, 100.0))(images).numpy()
    assert np.array_equal(darkened[0], ordinary)
    excess = np.array((42 - 20, bright.mean() - 100)).reshape(2, 1, 1, 1)
    assert np.abs(darkened[1:] - (images[1:] - excess).clip(0)).max() < 1e-3
    assert np.array_equal(keras.Model(inputs, darken(inputs, 0.0))(images), images)
