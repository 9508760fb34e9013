"""Convert the three networks of the mtcnn package to ONNX files for OpenCV.

    python -m weights.make_mtcnn

Reads   the weights in the installed mtcnn package
Writes  weights/mtcnn-pnet.onnx, mtcnn-rnet.onnx and mtcnn-onet.onnx

Each network takes float32 (n, 3, height, width), RGB, (value - 127.5) / 128, and has one output,
float32 (n, 5, rows, columns): the four offsets of a box and the logit of "is a face". We leave out
the landmarks of the third network. This script does not load TensorFlow.
"""

from __future__ import annotations

from deepfake_detect import start

start.prepare(__name__)

import importlib.util
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deepfake_detect import cli
from deepfake_detect.files import write_whole

FOLDER = Path(__file__).parent
# Window and pads of the max pooling after each convolution; None: without pooling. We state the
# pads because OpenCV 5.0 silently miscomputes windows of 3 with auto_pad. P-Net takes images of any
# size, so its pooling rounds up instead.
POOLS = {
    "pnet": [(2, None), None, None],
    "rnet": [(3, [0, 0, 1, 1]), (3, [0, 0, 0, 0]), None],
    "onet": [(3, [0, 0, 1, 1]), (3, [0, 0, 0, 0]), (2, [0, 0, 0, 0]), None],
}
SIDES = {"pnet": None, "rnet": 24, "onet": 48}  # side of the input in pixels; None: any


def main() -> None:
    """Convert the three networks of the mtcnn package to ONNX files."""
    package = importlib.util.find_spec("mtcnn")
    if package is None:
        raise FileNotFoundError("the mtcnn package is not installed; run: pip install mtcnn")
    for name in POOLS:
        weights = joblib.load(Path(package.origin).parent / "assets" / "weights" / f"{name}.lz4")
        content = build(name, weights).SerializeToString()
        path = FOLDER / f"mtcnn-{name}.onnx"
        write_whole(path, partial(Path.write_bytes, data=content))
        print(path)


def build(name: str, weights: list[np.ndarray]) -> onnx.ModelProto:
    """Build a network from the weights of the package's Keras model, listed in layer order."""
    nodes, constants = [], []

    def keep(array: np.ndarray) -> str:
        array = np.ascontiguousarray(array, np.float32)
        constants.append(numpy_helper.from_array(array, f"constant_{len(constants)}"))
        return constants[-1].name

    def add(operator: str, *inputs: str, output: str = "", **attributes: object) -> str:
        output = output or f"{operator.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def convolve(features: str, kernel: np.ndarray, bias: np.ndarray, output: str = "") -> str:
        """Add a convolution with a Keras kernel (height, width, in, out)."""
        constants = keep(kernel.transpose(3, 2, 0, 1)), keep(bias)
        window = list(kernel.shape[:2])
        return add("Conv", features, *constants, kernel_shape=window, output=output)

    left, features = list(weights), "images"
    for pool in POOLS[name]:
        kernel, bias, slopes = (left.pop(0) for _ in range(3))
        channels = kernel.shape[3]
        features = convolve(features, kernel, bias)
        features = add("PRelu", features, keep(slopes.reshape(channels, 1, 1)))
        if pool:
            window, pads = pool
            options = {"ceil_mode": 1} if pads is None else {"pads": pads}
            options |= {"kernel_shape": [window] * 2, "strides": [2, 2]}
            features = add("MaxPool", features, **options)
    if SIDES[name]:
        kernel, bias, slopes = (left.pop(0) for _ in range(3))
        # Keras flattens (width, height, channels), ONNX (channels, height, width).
        side = round((len(kernel) / channels) ** 0.5)
        kernel = kernel.reshape(side, side, channels, -1).transpose(2, 1, 0, 3)
        kernel = kernel.reshape(side * side * channels, -1)
        features = add("Flatten", features)
        features = add("Gemm", features, keep(kernel), keep(bias))
        features = add("PRelu", features, keep(slopes))
    # For two classes, softmax is the logistic function of the difference of the logits.
    kernel, bias = left[-2][..., 1:] - left[-2][..., :1], left[-1][1:] - left[-1][:1]
    kernel, bias = np.concatenate((left[0], kernel), axis=-1), np.concatenate((left[1], bias))
    if SIDES[name]:
        add("Gemm", features, keep(kernel), keep(bias), output="boxes")
    else:
        convolve(features, kernel, bias, output="boxes")

    sides = [SIDES[name]] * 2 if SIDES[name] else ["height", "width"]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, *sides])
    ends = [] if SIDES[name] else ["rows", "columns"]
    boxes = helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["n", 5, *ends])
    graph = helper.make_graph(nodes, name, [images], [boxes], constants)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


if __name__ == "__main__":
    cli.run(main)
