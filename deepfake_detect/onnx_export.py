"""Export a trained model to the ONNX file that detection loads.

    python -m deepfake_detect.onnx_export weights/deepfake-detector.keras

writes weights/deepfake-detector.onnx. This module builds the graph node by node from the layers of
the Keras model. Converters such as tf2onnx trace the model and fold constants instead, which took
13 GB of memory with this model.
"""

from __future__ import annotations

import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import deepfake_detect.keras_setup  # noqa: F401 - first, before others load Keras  # isort: skip
import keras
import numpy as np
import onnx
import tyro
from onnx import TensorProto, helper, numpy_helper

from deepfake_detect import cli
from deepfake_detect.decision import SMALLEST_P, Decision, describe_decision
from deepfake_detect.detection_model import (
    EVIDENCE,
    INPUT,
    OUTPUT,
    WRITTEN_BY,
    read_facts,
    read_model_file,
)
from deepfake_detect.files import write_whole
from deepfake_detect.first_layers import (
    BELL,
    DARKEST,
    GREY,
    IMAGENET_MEAN,
    IMAGENET_STD,
    LAPLACIAN,
    MOST_ADDED,
)
from deepfake_detect.model_file import load_model, read_decision, read_saved

OPSET = 17  # needs ONNX Runtime 1.12 (2022) or OpenCV 5.0
IR_VERSION = 8  # the version that belongs to opset 17
LOGIT_LIMIT = float(np.log1p(-SMALLEST_P) - np.log(SMALLEST_P))  # as calibrate() clips


def write_onnx(model: keras.Model, decision: Decision, path: Path, training: dict) -> None:
    """Write a model and its decision to an ONNX file, atomically.

    Input `rgb_0_to_255`, float32 (n, size, size, 3): crops from prepare_crop.
    Output `p_fake`, float32 (n, 1) in 0..1: calibrated, from the mean logit of a crop and its
    mirror image. Output `evidence`, float32 (n, size / 32, size / 32): see add_evidence.

    Args:
        model: from build_model, RGB float32 (n, size, size, 3) in 0..255 to p_real (n, 1)
        decision: stored in the metadata; its calibration is part of the graph
        path: the .onnx file
        training: facts about the training, for readers; stored in the metadata as JSON

    Raises:
        ValueError: the model has a layer that this module cannot export
        OSError: the file cannot be written
    """
    content = convert_to_onnx(model, decision, training).SerializeToString()
    write_whole(path, partial(Path.write_bytes, data=content))


def convert_to_onnx(model: keras.Model, decision: Decision, training: dict) -> onnx.ModelProto:
    """Build the graph that write_onnx describes."""
    size = model.input_shape[1]
    decision = decision._replace(image_size=size)
    base, dense = split_model(model)
    graph = Graph()
    images = graph.add("Transpose", INPUT, perm=[0, 3, 1, 2])
    images = add_darkening(graph, images, decision.darken_to, size // 32)
    images = add_sharpening(graph, images, decision.sharpen_to)
    images = graph.add("Sub", images, graph.keep(IMAGENET_MEAN.reshape(1, 3, 1, 1)))
    images = graph.add("Div", images, graph.keep(IMAGENET_STD.reshape(1, 3, 1, 1)))
    # Mirror by a slice with a negative step, because OpenCV does not have ReverseSequence.
    window = (graph.keep(numbers, np.int64) for numbers in ([-1], [-(2**31)], [3], [-1]))
    mirrored = graph.add("Slice", images, *window)
    features = add_network(graph, base, graph.add("Concat", images, mirrored, axis=0))
    pooled = graph.add("GlobalMaxPool", features)
    logit, gradient = add_top(graph, dense, graph.add("Flatten", pooled))
    add_score(graph, logit, decision)
    add_evidence(graph, features, pooled, gradient)
    return make_file(graph, size, decision, training)


class Graph:
    """Nodes and constants of an ONNX graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: object) -> str:
        """Add a node with one output; return the name of the output."""
        output = output or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def halve(self, both: str) -> tuple[str, str]:
        """Split a batch of crops followed by their mirror images; return both names."""
        names = f"crop_{len(self.nodes)}", f"mirror_{len(self.nodes)}"
        self.nodes.append(helper.make_node("Split", [both], names, axis=0))
        return names

    def keep(self, array: np.ndarray | list, kind: type = np.float32) -> str:
        """Add a constant array; return its name."""
        name = f"constant_{len(self.constants)}"
        array = np.ascontiguousarray(array, kind)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def keep_weights(self, array: np.ndarray) -> str:
        """Add 16-bit weights: half the file size, and runtimes widen them once, while loading.

        Raises:
            ValueError: a weight does not fit into 16 bits, or is NaN
        """
        with np.errstate(over="ignore"):
            stored = self.keep(array, np.float16)
            if not np.isfinite(array.astype(np.float16)).all():
                raise ValueError("the model has weights that 16 bits cannot hold (or NaN)")
        return self.add("Cast", stored, to=TensorProto.FLOAT)


def split_model(model: keras.Model) -> tuple[keras.Model, list[keras.layers.Dense]]:
    """Return the convolutional network of a model, and its dense layers."""
    base = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    return base, [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]


def add_darkening(graph: Graph, images: str, target: float, block: int) -> str:
    """Add the operation of model.darken, with blocks of block x block pixels; keep the shape."""
    if not target:
        return images
    mean = graph.add("ReduceMean", images, axes=[1, 2, 3], keepdims=1)
    kernel = graph.keep(np.full((1, 3, block, block), -1 / 3 / block**2))  # negative: see below
    window = {"kernel_shape": [block] * 2, "strides": [block] * 2}
    blocks = graph.add("Conv", images, kernel, **window)
    darkest = graph.add("Neg", graph.add("GlobalMaxPool", blocks))  # ONNX has no GlobalMinPool
    too_bright = graph.add("Sub", mean, graph.keep([target]))
    too_pale = graph.add("Sub", darkest, graph.keep([DARKEST]))
    excess = graph.add("Max", too_bright, too_pale)
    excess = graph.add("Clip", excess, graph.keep(0.0), graph.keep(255.0))
    darker = graph.add("Sub", images, excess)
    return graph.add("Clip", darker, graph.keep(0.0), graph.keep(255.0))


def add_sharpening(graph: Graph, images: str, wanted: float) -> str:
    """Add the operation of model.sharpen: (n, 3, size, size) to the same shape."""
    if not wanted:
        return images

    def convolve(image: str, kernel: np.ndarray, channels: int = 1) -> str:
        kernels = graph.keep(np.repeat(kernel[None, None], channels, axis=0))
        return graph.add("Conv", image, kernels, group=channels, kernel_shape=kernel.shape)

    # The padding is done once, for all convolutions: OpenCV pads many channels slowly.
    border = len(BELL) // 2
    pads = graph.keep([0, 0, border, border] * 2, np.int64)
    padded = graph.add("Pad", images, pads, mode="reflect")
    grey = graph.add(
        "Conv", padded, graph.keep(np.reshape(GREY, (1, 3, 1, 1))), kernel_shape=[1, 1]
    )
    unpadded = ([border - 1] * 2, [1 - border] * 2, [2, 3])  # starts, ends, axes
    unpadded = (graph.keep(numbers, np.int64) for numbers in unpadded)
    edges = graph.add("Slice", convolve(grey, LAPLACIAN), *unpadded)
    axes = {"axes": [1, 2, 3], "keepdims": 1}
    centred = graph.add("Sub", edges, graph.add("ReduceMean", edges, **axes))
    sharpness = graph.add("ReduceMean", graph.add("Mul", centred, centred), **axes)
    ratio = graph.add("Div", graph.keep([wanted]), graph.add("Add", sharpness, graph.keep([1e-3])))
    times = graph.add("Sub", graph.add("Sqrt", ratio), graph.keep([1.0]))
    times = graph.add("Clip", times, graph.keep(0.0), graph.keep(MOST_ADDED))
    fine = graph.add("Sub", images, convolve(convolve(padded, BELL, 3), BELL.T, 3))
    sharper = graph.add("Add", images, graph.add("Mul", fine, times))
    return graph.add("Clip", sharper, graph.keep(0.0), graph.keep(255.0))


def add_network(graph: Graph, base: keras.Model, images: str) -> str:
    """Add the layers of EfficientNet-B0 up to its last feature map, (n, channels, h, w)."""
    names = {id(base.inputs[0]): images}
    for layer in base.layers:
        if isinstance(layer, keras.layers.InputLayer | keras.layers.GlobalMaxPooling2D):
            continue
        inputs = layer.input if isinstance(layer.input, list) else [layer.input]
        names[id(layer.output)] = add_layer(graph, layer, [names[id(one)] for one in inputs])
    return names[id(layer.input)]


def add_layer(graph: Graph, layer: keras.Layer, inputs: list[str]) -> str:
    """Add one layer of EfficientNet-B0.

    Raises:
        ValueError: EfficientNet-B0 does not have this type of layer
    """
    kinds = keras.layers
    weights = [weight.astype(np.float32) for weight in layer.get_weights()]
    match layer:
        case kinds.DepthwiseConv2D():
            kernel = weights[0].transpose(2, 3, 0, 1)  # one multiplier: (channels, 1, h, w)
            return add_convolution(graph, layer, inputs[0], kernel, group=kernel.shape[0])
        case kinds.Conv2D():
            return add_convolution(graph, layer, inputs[0], weights[0].transpose(3, 2, 0, 1))
        case kinds.BatchNormalization():
            constants = [graph.keep(weight) for weight in weights]
            return graph.add("BatchNormalization", *inputs, *constants, epsilon=layer.epsilon)
        case kinds.Activation():
            return add_activation(graph, layer, inputs[0])
        case kinds.GlobalAveragePooling2D():
            return add_average(graph, layer, inputs[0])
        case kinds.Reshape() | kinds.Dropout():  # the average has the right shape already
            return inputs[0]
        case kinds.Multiply():
            return graph.add("Mul", *inputs)
        case kinds.Add():
            return graph.add("Add", *inputs)
    raise ValueError(f"layers of type {type(layer).__name__} cannot be exported to ONNX")


def add_convolution(
    graph: Graph, layer: keras.layers.Conv2D, images: str, kernel: np.ndarray, group: int = 1
) -> str:
    """Add a convolution with its bias and activation; kernel is (out, in / group, h, w)."""
    size, stride = layer.input.shape[1], layer.strides[0]
    window = kernel.shape[2]
    # Explicit padding equal to TensorFlow's "same": OpenCV reads auto_pad differently.
    size = (size or 1) if window > 1 else 1
    missing = max((-(-size // stride) - 1) * stride + window - size, 0)
    pads = [missing // 2] * 2 + [missing - missing // 2] * 2
    inputs = [images, graph.keep_weights(kernel)]
    if layer.use_bias:
        inputs.append(graph.keep(layer.bias.numpy()))
    output = graph.add(
        "Conv", *inputs, group=group, pads=pads, strides=[stride] * 2, kernel_shape=[window] * 2
    )
    return add_activation(graph, layer, output)


def add_average(graph: Graph, layer: keras.layers.GlobalAveragePooling2D, features: str) -> str:
    """Add the average over the places of a feature map, repeated along the width: (n, c, 1, w).

    This takes a quarter less time on OpenCV than GlobalAveragePool and a gate of shape (n, c, 1,
    1): OpenCV stores eight channels together, but averages by GlobalAveragePool in another order,
    and multiplies by such a gate place by place.
    """
    height, width = layer.input.shape[1:3]
    average = graph.add("AveragePool", features, kernel_shape=[height, width])
    return graph.add("Expand", average, graph.keep([1, 1, 1, width], np.int64))


def add_activation(graph: Graph, layer: keras.Layer, features: str) -> str:
    """Add the activation of a layer.

    Raises:
        ValueError: it is not linear, sigmoid or swish
    """
    name = getattr(layer.activation, "__name__", "")
    if name == "linear":
        return features
    if name not in ("sigmoid", "silu", "swish"):
        raise ValueError(f"the activation {name} cannot be exported to ONNX")
    gate = graph.add("Sigmoid", features)
    return gate if name == "sigmoid" else graph.add("Mul", features, gate)


def add_top(graph: Graph, dense: list[keras.layers.Dense], pooled: str) -> tuple[str, str]:
    """Add the dense layers: pooled (n, channels) to the logit of p_real (n, 1) and its gradient.

    Returns:
        The names of the logit and its gradient with respect to pooled, (n, channels). The layers
        are linear between ReLUs, so the gradient is the product of their kernels, with zeros where
        a ReLU is closed.
    """
    steps, features = [], pooled
    for layer in dense:
        kernel, bias = layer.get_weights()
        stored = graph.keep_weights(kernel)
        features = graph.add("Gemm", features, stored, graph.keep(bias))
        if layer is not dense[-1]:
            features = graph.add("Relu", features)
            steps.append((stored, graph.add("Sign", features)))
    gradient = graph.add("Transpose", stored, perm=[1, 0])
    for kernel, is_open in reversed(steps):
        gradient = graph.add("Mul", gradient, is_open)
        gradient = graph.add("Gemm", gradient, kernel, transB=1)
    return features, gradient


def add_score(graph: Graph, logit: str, decision: Decision) -> None:
    """Add the calibrated score p_fake.

    Args:
        graph: the graph to extend
        logit: name of the logits of p_real of crops and mirror images, (2 n, 1)
        decision: its calibration is applied
    """
    limits = graph.keep(-LOGIT_LIMIT), graph.keep(LOGIT_LIMIT)
    crop, mirror = graph.halve(graph.add("Clip", logit, *limits))
    both = graph.add("Add", crop, mirror)
    scaled = graph.add("Mul", both, graph.keep([-0.5 / decision.temperature]))
    shifted = graph.add("Add", scaled, graph.keep([decision.shift]))
    graph.add("Sigmoid", shifted, output=OUTPUT)


def add_evidence(graph: Graph, features: str, pooled: str, gradient: str) -> None:
    """Add the contribution of each place of a crop's last feature map to the logit of p_fake.

    It is gradient times activation, summed over the channels (HiResCAM, Draelos and Carin, 2020).
    Global max pooling passes the gradient of a channel to the place of its maximum, in equal shares
    if there are several. Without the biases of the dense layers, the sum is the crop's logit.
    """
    maximum = graph.add("Cast", graph.add("Equal", features, pooled), to=TensorProto.FLOAT)
    count = graph.add("ReduceSum", maximum, graph.keep([2, 3], np.int64), keepdims=1)
    gradient = graph.add("Unsqueeze", gradient, graph.keep([2, 3], np.int64))
    share = graph.add("Div", graph.add("Mul", pooled, gradient), count)
    added = graph.add("Mul", maximum, share)
    added = graph.add("ReduceSum", added, graph.keep([1], np.int64), keepdims=0)
    graph.add("Neg", graph.halve(added)[0], output=EVIDENCE)


def make_file(graph: Graph, size: int, decision: Decision, training: dict) -> onnx.ModelProto:
    """Return the ONNX model of a graph, with the decision and training facts in its metadata."""
    shapes = {
        INPUT: ["n", size, size, 3],
        OUTPUT: ["n", 1],
        EVIDENCE: ["n", size // 32, size // 32],
    }
    ends = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    }
    outputs = [ends[OUTPUT], ends[EVIDENCE]]
    made = helper.make_graph(
        graph.nodes, "deepfake_detector", [ends[INPUT]], outputs, graph.constants
    )
    file = helper.make_model(
        made,
        producer_name=WRITTEN_BY,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    helper.set_model_props(
        file,
        {"decision": json.dumps(describe_decision(decision)), "training": json.dumps(training)},
    )
    return file


def read_training(path: Path) -> dict:
    """Return the training facts in a .keras file; empty if the file has none."""
    with suppress(LookupError, ValueError, RecursionError):
        return read_saved(path, "training.json")
    return {}


def main(model: Annotated[Path, tyro.conf.Positional], /) -> None:
    """Write the ONNX file next to a .keras file that 04-train-cnn.py wrote.

    Args:
        model: the .keras file

    Raises:
        FileNotFoundError, ValueError: the file does not exist or is not a model from 04, or a file
            that is not a model has the name of the ONNX file
    """
    target = model.with_suffix(".onnx")
    try:  # refuse before the slow loading
        if target.exists():
            read_facts(str(target), read_model_file(target))
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{target}: a file that is not a model has this name; move it away ({error})"
        ) from error
    write_onnx(load_model(model), read_decision(model), target, read_training(model))
    print(target)


if __name__ == "__main__":
    cli.run(main)
