"""The ONNX file of detection: scores as in Keras, file checks, and sharing between threads."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import skimage.data
from conftest import ROOT, assert_stops
from onnx import helper, numpy_helper

from deepfake_detect import detection_model, keras_setup, onnx_export
from deepfake_detect.decision import Decision, calibrate
from deepfake_detect.detection_model import DetectionModel, find_model
from deepfake_detect.explanation import make_heat_maps
from deepfake_detect.model import LITE0_WEIGHTS, build_model
from deepfake_detect.model_file import load_model, read_decision, write_model
from deepfake_detect.onnx_export import write_onnx
from deepfake_detect.scoring import predict_both_ways

keras = keras_setup.keras
SHIPPED = ROOT / "weights" / "deepfake-detector.onnx"


def make_crops(size: int) -> np.ndarray:
    """Make crops, RGB uint8: noise, sharp and blurry portraits, black, white, line, two halves."""
    rng = np.random.default_rng(0)
    portrait = cv2.resize(skimage.data.astronaut()[:230, 100:350], (size, size))
    crops = [rng.integers(0, 256, (size, size, 3), np.uint8), portrait, portrait[:, ::-1]]
    crops += [cv2.GaussianBlur(portrait, (0, 0), sigma) for sigma in (1, 2, 5)]
    crops += [np.full((size, size, 3), value, np.uint8) for value in (0, 255)]
    crops += [crops[-2].copy(), np.hstack((portrait[:, : size // 2], crops[0][:, size // 2 :]))]
    crops[-2][size // 3] = 255
    return np.stack(crops)


def explain_with_keras(model: keras.Model, crops: np.ndarray) -> np.ndarray:
    """Return gradient times activation of the last feature map, with TensorFlow's gradient."""
    import tensorflow as tf

    base = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    prepare = keras.Model(model.input, model.get_layer("imagenet_mean_and_std").output)
    convolutions = keras.Model(base.inputs, base.get_layer("top_activation").output)
    activation = convolutions(prepare(crops.astype(np.float32)), training=False)
    top = model.layers[-1]
    with tf.GradientTape() as tape:
        tape.watch(activation)
        features = base.layers[-1](activation)
        for layer in model.layers[model.layers.index(base) + 1 : -1]:
            features = layer(features, training=False)
        logit = -(features @ top.kernel + top.bias)
    gradient = tape.gradient(logit, activation)
    return tf.reduce_sum(activation * gradient, axis=-1).numpy()


@dataclass
class Built:
    """A model with random biases and batch statistics, and 16-bit weights."""

    keras: keras.Model
    decision: Decision
    path: Path  # the .onnx file


def build(path: Path, size: int, sharpen_to: float, darken_to: float) -> Built:
    keras.utils.set_random_seed(3)
    model = build_model(LITE0_WEIGHTS, size, sharpen_to, darken_to)
    rng = np.random.default_rng(0)
    changed = []
    for weight in model.get_weights():
        if weight.ndim == 1:
            weight = weight + rng.uniform(0, 0.05, weight.shape)
        changed.append(weight.astype(np.float16).astype(np.float32))
    model.set_weights(changed)
    decision = Decision(temperature=1.3, shift=-0.2, frames="full")
    decision = decision._replace(sharpen_to=sharpen_to, darken_to=darken_to)
    write_onnx(model, decision, path, {"practice": True, "epochs": 3})
    return Built(model, decision._replace(image_size=size), path)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("model") / "model.onnx", 96, 60.0, 110.0)


@pytest.fixture(scope="module")
def built_plain(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Make a model of another size, without sharpening and darkening."""
    return build(tmp_path_factory.mktemp("model") / "plain.onnx", 64, 0.0, 0.0)


@pytest.mark.parametrize("which", ["built", pytest.param("built_plain", marks=pytest.mark.long)])
def test_scores_match_keras(which: str, request: pytest.FixtureRequest) -> None:
    built = request.getfixturevalue(which)
    crops = make_crops(built.decision.image_size)
    predict = lambda images: built.keras(images, training=False)  # noqa: E731
    truth = calibrate(predict_both_ways(predict, crops), built.decision)
    assert np.ptp(truth) > 0.001
    p_fake, evidence = DetectionModel.load(built.path).score(crops)
    np.testing.assert_allclose(p_fake, truth, atol=2e-5)
    session = onnxruntime.InferenceSession(str(built.path))
    scores, other = session.run(None, {"rgb_0_to_255": crops.astype(np.float32)})
    np.testing.assert_allclose(scores[:, 0], truth, atol=2e-5)
    np.testing.assert_allclose(other, evidence, atol=1e-3 * np.abs(evidence).max())


@pytest.mark.parametrize("which", ["built", pytest.param("built_plain", marks=pytest.mark.long)])
def test_evidence_matches_gradient_times_activation_of_keras(
    which: str, request: pytest.FixtureRequest
) -> None:
    built = request.getfixturevalue(which)
    crops = make_crops(built.decision.image_size)
    truth = explain_with_keras(built.keras, crops)
    _, evidence = DetectionModel.load(built.path).score(crops)
    assert np.abs(truth).max() > 0.01
    np.testing.assert_allclose(evidence, truth, atol=1e-3 * np.abs(truth).max())
    assert evidence.shape[1:] == (built.decision.image_size // 32,) * 2


def test_heat_maps_show_the_strongest_place() -> None:
    evidence = np.zeros((2, 4, 4), np.float32)
    evidence[0, 1, 2], evidence[0, 3, 3], evidence[1] = 3, -9, -1
    heat = make_heat_maps(evidence, 128)
    assert heat.shape == (2, 128, 128) and heat.min() == 0 and 0.99 < heat.max() <= 1
    row, column = np.unravel_index(heat[0].argmax(), (128, 128))
    assert (row // 32, column // 32) == (1, 2) and not heat[1].any()
    assert make_heat_maps(evidence[:0], 128).shape == (0, 128, 128)


def test_file_contains_decision_and_training(built: Built) -> None:
    model = DetectionModel.load(built.path)
    assert model.decision == built.decision
    assert model.training == {"practice": True, "epochs": 3}
    assert model.sha256 == hashlib.sha256(built.path.read_bytes()).hexdigest()
    assert DetectionModel.load(built.path.read_bytes()).sha256 == model.sha256
    onnx.checker.check_model(str(built.path), full_check=True)


def test_scores_do_not_depend_on_the_number_of_crops(built: Built) -> None:
    model = DetectionModel.load(built.path)
    crops = np.concatenate([make_crops(built.decision.image_size)] * 2)
    p_fake, evidence = model.score(crops)
    for count in (0, 1, 3, 9):
        some, its_evidence = model.score(crops[:count])
        np.testing.assert_allclose(some, p_fake[:count], atol=1e-6)
        np.testing.assert_allclose(its_evidence, evidence[:count], atol=1e-5)
    with pytest.raises(ValueError, match="crops"):
        model.score(crops[:, :-1])


def test_threads_can_share_a_model(built: Built) -> None:
    model, crops = DetectionModel.load(built.path), make_crops(built.decision.image_size)
    alone = [model.score(crops[:count])[0] for count in range(1, 9)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda count: model.score(crops[:count])[0], range(1, 9)))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_included_model_matches_the_keras_file() -> None:
    path = SHIPPED.with_suffix(".keras")
    model, decision = DetectionModel.load(SHIPPED), read_decision(path)
    assert model.decision == decision
    assert SHIPPED.stat().st_size < 10e6
    crops, keras_model = make_crops(decision.image_size)[:4], load_model(path)
    predict = lambda images: keras_model(images, training=False)  # noqa: E731
    truth = calibrate(predict_both_ways(predict, crops), decision)
    np.testing.assert_allclose(model.score(crops)[0], truth, atol=0.003)


def test_loading_does_not_import_large_packages() -> None:
    lines = (
        "import sys; from deepfake_detect.detection_model import DetectionModel, find_model; "
        "DetectionModel.load(find_model()); print(sorted({'tensorflow', 'keras', 'onnx', "
        "'onnxruntime', 'pandas', 'scipy', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


# --- Which model ----------------------------------------------------------------------------------


def test_find_model_prefers_the_trained_model(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_model() == SHIPPED
    Path("model").mkdir()
    trained = Path("model/best_model.onnx")
    trained.write_bytes(built.path.read_bytes())
    assert find_model() == SHIPPED  # trained on practice clips
    write_onnx(built.keras, built.decision, trained, {"practice": False})
    assert find_model() == trained
    assert find_model(Path("model/best_model.keras")) == trained
    assert find_model(built.path) == built.path
    trained.write_bytes(b"torn")
    with pytest.raises(ValueError, match="best_model"):
        find_model()
    trained.unlink()
    Path("model/best_model.keras").write_bytes(b"")
    for path in (None, Path("model/best_model.keras")):
        with pytest.raises(FileNotFoundError, match=r"-m deepfake_detect\.onnx_export"):
            find_model(path)
    with pytest.raises(FileNotFoundError, match="04-train-cnn"):
        find_model(Path("nothing.onnx"))


def test_a_keras_file_is_exported(built: Built, tmp_path: Path) -> None:
    write_model(built.keras, built.decision, tmp_path / "m.keras", {"epochs": 3})
    onnx_export.main(tmp_path / "m.keras")
    model = DetectionModel.load(tmp_path / "m.onnx")
    assert (model.decision, model.training) == (built.decision, {"epochs": 3})
    (tmp_path / "m.onnx").write_bytes(b"another's")
    with pytest.raises(ValueError, match=r"m\.onnx") as raised:
        onnx_export.main(tmp_path / "m.keras")
    assert "\n" not in str(raised.value)
    assert (tmp_path / "m.onnx").read_bytes() == b"another's"


@pytest.mark.long
def test_command_reports_a_missing_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deepfake_detect.onnx_export", str(tmp_path / "m.keras")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert_stops(result, "m.keras")


# --- Bad files ------------------------------------------------------------------------------------


def edit(change: Callable[[onnx.ModelProto], object]) -> Callable[[bytes], bytes]:
    def apply(content: bytes) -> bytes:
        model = onnx.load_from_string(content)
        change(model)
        return model.SerializeToString()

    return apply


def put_nan(model: onnx.ModelProto) -> None:
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = numpy_helper.to_array(weights).copy()
    values.flat[3] = np.nan
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))


def keep_outside(model: onnx.ModelProto) -> None:
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "/etc/passwd")
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL


def set_decision(model: onnx.ModelProto, text: str) -> None:
    next(one for one in model.metadata_props if one.key == "decision").value = text


def add_loop(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Loop", [""], ["x"]))


def change_shape(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4096


def cut_weights(model: onnx.ModelProto) -> None:
    model.graph.initializer[-1].dims[0] += 1


BAD = {
    "empty": lambda content: b"",
    "text": lambda content: b"not a model" * 100,
    "a zip file": lambda content: b"PK\3\4" + bytes(1000),
    "truncated": lambda content: content[: len(content) // 2],
    "last byte missing": lambda content: content[:-1],
    "too large": lambda content: content + bytes(detection_model.LARGEST_FILE),
    "from another program": edit(lambda model: setattr(model, "producer_name", "pytorch")),
    "without a decision": edit(lambda model: model.ClearField("metadata_props")),
    "NaN weights": edit(put_nan),
    "weights elsewhere": edit(keep_outside),
    "weights missing": edit(cut_weights),
    "a loop": edit(add_loop),
    "other shapes": edit(change_shape),
    "no graph": edit(lambda model: model.ClearField("graph")),
    "no outputs": edit(lambda model: model.graph.ClearField("output")),
    "a decision out of range": edit(
        lambda model: set_decision(model, json.dumps({"threshold": 7, "temperature": 1}))
    ),
    "a decision that is a list": edit(lambda model: set_decision(model, "[1, 2]")),
    "a decision that is too deep": edit(lambda model: set_decision(model, "[" * 200_000)),
    "a decision of another size": edit(
        lambda model: set_decision(model, json.dumps({"threshold": 0.5, "image_size": 128}))
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_rejected(name: str, built: Built, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(BAD[name](built.path.read_bytes()))
    with pytest.raises(ValueError, match=r"bad\.onnx.*04-train-cnn\.py") as raised:
        DetectionModel.load(path)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


def test_damaged_files_never_crash(built: Built) -> None:
    """Randomly changed or truncated files load or are rejected in one sentence."""
    content, rng = built.path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(content)
        ends = len(content) - int(rng.integers(1, 20_000))  # the structure is near the end
        for at in rng.integers(ends, len(content), 3):
            damaged[at] = int(rng.integers(0, 256))
        try:
            detection_model.read_facts("it", bytes(damaged[: rng.integers(1, len(content) + 1)]))
            detection_model.read_facts("it", bytes(damaged))
        except ValueError as error:
            assert "\n" not in str(error)


def test_missing_files_folders_and_pipes_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="04-train-cnn"):
        DetectionModel.load(tmp_path / "nothing.onnx")
    with pytest.raises(FileNotFoundError, match="04-train-cnn"):
        DetectionModel.load(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.onnx")
        with pytest.raises(FileNotFoundError, match="04-train-cnn"):
            DetectionModel.load(tmp_path / "pipe.onnx")


def test_old_opencv_is_rejected(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "__version__", "4.12.0")
    with pytest.raises(ValueError, match=r"OpenCV 4\.12\.0"):
        DetectionModel.load(built.path)


def test_find_model_reports_a_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a file"):
        find_model(tmp_path)
