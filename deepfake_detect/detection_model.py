"""The model for detection: an ONNX file that includes its decision, run by OpenCV.

onnx_export.py writes these files. This module reads the few fields that it checks directly from the
protobuf encoding: `import onnx` would add 0.16 s and 25 MB to every verdict.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from deepfake_detect.decision import IMAGE_SIZES, Decision, check_decision
from deepfake_detect.files import check_model_path
from deepfake_detect.shipped import find_shipped

INPUT, OUTPUT, EVIDENCE = "rgb_0_to_255", "p_fake", "evidence"  # names in the graph
WRITTEN_BY = "deepfake-detect"
MODEL = Path("model/best_model.onnx")  # written by 04
SHIPPED = "weights/deepfake-detector.onnx"
LARGEST_FILE = 64 * 2**20  # bytes; the included model has 10 MB
OLDEST_OPENCV = 5  # major version; OpenCV 4 cannot read the file
# Crops per network call, 0.25 GB of memory. Measured on two cores: 16 crops take 0.43 GB, 32 crops
# 0.76 GB, and neither is faster.
CROPS_AT_ONCE = 8
OPERATORS = {
    *("Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Conv", "Div", "Equal"),
    *("Expand", "Flatten", "Gemm", "GlobalMaxPool", "Max", "Mul", "Neg", "Pad", "ReduceMean"),
    *("ReduceSum", "Sigmoid", "Sign", "Slice", "Split", "Sqrt", "Sub", "Transpose", "Relu"),
    *("Unsqueeze", "GlobalAveragePool"),  # the last one in files of earlier versions
}
TENSOR_TYPES = {1: np.dtype("<f4"), 7: np.dtype("<i8"), 10: np.dtype("<f2")}  # of TensorProto


@dataclass(frozen=True)
class DetectionModel:
    """A model that scores crops; create it with load. Threads can share it."""

    name: str  # its path, for messages
    sha256: str  # of the loaded bytes
    decision: Decision
    training: dict  # facts about the training, for readers
    network: cv2.dnn.Net = field(repr=False)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @staticmethod
    def load(source: Path | str | bytes) -> DetectionModel:
        """Load a model from an ONNX file, or from its bytes; a file is read only once.

        Raises:
            FileNotFoundError: the file does not exist
            ValueError: write_onnx did not write the file, or it is damaged
        """
        name = "the model" if isinstance(source, bytes) else str(source)
        content = source if isinstance(source, bytes) else read_model_file(Path(source))
        decision, training = read_facts(name, content)
        if int(cv2.__version__.split(".")[0]) < OLDEST_OPENCV:
            raise ValueError(
                f"{name}: OpenCV {cv2.__version__} is too old to read it; install OpenCV "
                f"{OLDEST_OPENCV}.0 or later."
            )
        try:
            network = cv2.dnn.readNetFromONNX(np.frombuffer(content, np.uint8), cv2.dnn.ENGINE_NEW)
        except cv2.error as error:
            raise describe_fault(name, f"OpenCV cannot read it: {error.err}") from error
        sha256 = hashlib.sha256(content).hexdigest()
        return DetectionModel(name, sha256, decision, training, network)

    def score(self, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Score face crops, RGB uint8 (n, size, size, 3), from prepare_crop.

        Returns:
            p_fake, float32 (n,) in 0..1: calibrated, from each crop and its mirror image.
            evidence, float32 (n, size / 32, size / 32): contribution of each 32 x 32 pixels to the
            logit of p_fake, see onnx_export.add_evidence.

        Raises:
            ValueError: the crops have another shape, or the model returns NaN for one
        """
        size = self.decision.image_size
        if crops.shape[1:] != (size, size, 3):
            raise ValueError(f"crops have shape {crops.shape}, not (n, {size}, {size}, 3).")
        scores, evidence = [np.empty((0, 1))], [np.empty((0, size // 32, size // 32))]
        for start in range(0, len(crops), CROPS_AT_ONCE):
            images = crops[start : start + CROPS_AT_ONCE].astype(np.float32)
            try:
                with self.lock:  # cv2.dnn.Net is not thread-safe, and uses all cores by itself
                    self.network.setInput(images, INPUT)
                    outputs = self.network.forward([OUTPUT, EVIDENCE])
            except cv2.error as error:
                raise ValueError(f"{self.name}: OpenCV cannot run it ({error.err}).") from error
            scores.append(outputs[0])
            evidence.append(outputs[1])
        p_fake = np.concatenate(scores)[:, 0].astype(np.float32)
        if not np.isfinite(p_fake).all():
            raise ValueError(f"{self.name}: the model returned NaN for a face; it is damaged.")
        return p_fake, np.concatenate(evidence).astype(np.float32)


def find_model(path: Path | None = None) -> Path:
    """Return the ONNX file to use for detection.

    Args:
        path: an .onnx file, or a .keras file with an .onnx file next to it; None:
            model/best_model.onnx if it exists and was not trained on practice clips, else the
            included model

    Raises:
        FileNotFoundError: the file does not exist
        ValueError: model/best_model.onnx cannot be read
    """
    shipped = find_shipped(SHIPPED)
    if path is None:
        trained = MODEL.is_file() or MODEL.with_suffix(".keras").is_file()
        if not trained and shipped.is_file():
            return shipped
        path = find_onnx(MODEL.with_suffix(".keras"))
        _, training = read_facts(str(path), read_model_file(path))
        return shipped if training.get("practice") is True and shipped.is_file() else path
    return find_onnx(path)


def find_onnx(path: Path) -> Path:
    """Return the .onnx file of a model; the path may also name the .keras file next to it."""
    onnx = path.with_suffix(".onnx") if path.suffix == ".keras" else path
    if onnx.is_file():
        return onnx
    check_model_path(path)
    if path.suffix == ".keras":
        raise FileNotFoundError(
            f"{path}: detection needs {onnx.name} next to it; create it with "
            f"python -m deepfake_detect.onnx_export {path}"
        )
    return onnx


# --- Checks of the file ---------------------------------------------------------------------------


def read_model_file(path: Path) -> bytes:
    """Return the content of a model's file, at most one byte more than LARGEST_FILE.

    Raises:
        FileNotFoundError: the path does not exist, or is a folder, pipe or device
        ValueError: the path names a .keras file
    """
    find_onnx(path)
    if path.suffix == ".keras":
        raise ValueError(f"{path}: detection needs the .onnx file next to it.")
    with path.open("rb") as file:
        content = file.read(LARGEST_FILE + 1)
    return content


def describe_fault(name: str, reason: str) -> ValueError:
    """Return the error for a file that is not a model."""
    return ValueError(
        f"{name}: this is not a model from 04-train-cnn.py or 07-export-model.py ({reason}); give "
        "the path of one."
    )


def read_facts(name: str, content: bytes) -> tuple[Decision, dict]:
    """Return the decision and the training facts of a model's file, and check the whole file.

    Raises:
        ValueError: it is not a model's file, it is damaged, or it stores weights in other files
    """
    try:
        if len(content) > LARGEST_FILE:
            raise ValueError(f"it is larger than {LARGEST_FILE / 2**20:.0f} MiB")
        if not content:
            raise ValueError("it is empty")
        model = read_message(memoryview(content))
        facts = {
            bytes(entry[1][0]).decode(): json.loads(bytes(entry[2][0]))
            for entry in map(read_message, model.get(14, []))
        }
        if b"".join(model.get(2, [])) != WRITTEN_BY.encode() or "decision" not in facts:
            raise ValueError("it does not contain a decision")
        decision = read_decision(facts["decision"])
        (graph,) = map(read_message, model[7])
        check_graph(graph, decision.image_size)
        training = facts.get("training", {})
        return decision, training if isinstance(training, dict) else {}
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else "it is damaged"
        raise describe_fault(name, reason) from error


def read_decision(saved: object) -> Decision:
    """Return the decision in a file's metadata.

    Raises:
        ValueError: a value has a wrong type or is out of range
    """
    try:
        return check_decision(dict(saved))
    except (ValueError, TypeError, LookupError, OverflowError):
        raise ValueError("its decision is out of range") from None


def check_graph(graph: dict[int, list], size: int) -> None:
    """Check the operators, inputs, outputs and weights of a graph.

    Raises:
        ValueError: the graph differs from the graphs of write_onnx
    """
    if size not in IMAGE_SIZES:
        raise ValueError(f"its image size is {size}")
    nodes = map(read_message, graph[1])
    operators = {bytes(node[4][0]).decode() for node in nodes}
    if not operators <= OPERATORS:
        raise ValueError(f"it has the operator {min(operators - OPERATORS)}")
    shapes = dict(map(read_shape, graph[11] + graph[12]))
    side = size // 32
    if shapes != {INPUT: [size, size, 3], OUTPUT: [1], EVIDENCE: [side, side]}:
        raise ValueError("its inputs or outputs have other names or shapes")
    for tensor in map(read_message, graph[5]):
        check_tensor(tensor)


def check_tensor(tensor: dict[int, list]) -> None:
    """Check that a constant is complete, inside the file, and finite."""
    if 13 in tensor or any(tensor.get(14, [])):
        raise ValueError("it stores weights in other files")
    kind, data = TENSOR_TYPES.get(tensor[2][0]), tensor.get(9, [b""])[0]
    dimensions = tensor.get(1, [])
    if kind is None or not all(isinstance(one, int) for one in dimensions):
        raise ValueError("its weights have an unknown type")
    if len(data) != math.prod(dimensions) * kind.itemsize:
        raise ValueError("its weights are incomplete")
    if not np.isfinite(np.frombuffer(data, kind)).all():
        raise ValueError("some of its weights are NaN or infinite")


def read_shape(value: memoryview) -> tuple[str, list[int]]:
    """Return the name of an input or output, and its shape without the first dimension."""
    information = read_message(value)
    tensor = read_message(read_message(information[2][0])[1][0])
    dimensions = [read_message(one) for one in read_message(tensor[2][0])[1]]
    return bytes(information[1][0]).decode(), [one[1][0] for one in dimensions[1:]]


def read_message(data: memoryview) -> dict[int, list]:
    """Decode a protobuf message: return the values of each field, by the field's number.

    A value is a memoryview or an int; see https://protobuf.dev/programming-guides/encoding.

    Raises:
        ValueError: the message is truncated or not valid
    """
    fields: dict[int, list] = {}
    for number, value in read_fields(data):
        fields.setdefault(number, []).append(value)
    return fields


def read_fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yield the number and value of each field of a message."""
    at = 0

    def read_varint() -> int:
        nonlocal at
        result = 0
        for shift in range(0, 70, 7):
            if at >= len(data):
                break
            byte = data[at]
            at += 1
            result |= (byte & 127) << shift
            if byte < 128:
                return result
        raise ValueError("it is truncated or damaged")

    while at < len(data):
        key = read_varint()
        number, wire = key >> 3, key & 7
        if wire == 0:
            yield number, read_varint()
            continue
        length = read_varint() if wire == 2 else {1: 8, 5: 4}.get(wire, len(data) + 1)
        if at + length > len(data):
            raise ValueError("it is truncated or damaged")
        yield number, data[at : at + length]
        at += length
