r"""Train the small classifiers that onnxquant's demo, tests and benchmark stand on.

Two data sets, one split each, fixed for good:

* ``digits``: scikit-learn's handwritten digits (1,797 images of 8x8 inside the package);
  the first 1,000 train, the last 797 are held out.
* ``cifar10``: a zip of image files in class folders (``--zip``); the first 90 % of every class
  in file order train, the rest are held out (45,000 / 5,000 for CIFAR-10's training set).

Runs in the export environment (``make export-env``)::

    python tools/train.py digits  --schedule 64x60 --out runs/digits
    python tools/train.py cifar10 --zip cifar10.zip --schedule 32x12,48x12,64x16 --out runs/cifar10
    python tools/train.py cifar10 --zip cifar10.zip --schedule 32x8,48x8,64x6 --out runs/vit --lr 1e-3 \
        --arch vit_tiny_patch16_224 --arch-options '{"img_size": 64, "patch_size": 8, "embed_dim": 128, "depth": 6,
        "num_heads": 4, "dynamic_img_size": true}'

``--schedule`` lists image size x epochs: early epochs on small images cost a fraction of the later ones. A run that was
interrupted goes on from its last finished epoch when the same command is given again. The result is ``OUT/model.pt``
(weights and what `onnxquant export --checkpoint` must know), ``OUT/log.csv`` and, for resuming, ``OUT/last.pt``.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

HELD_OUT_SHARE = 0.1
DIGITS_TRAINED = 1000
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png"}


@dataclass
class Dataset:
    """uint8 images (N, 3, H, W) and int64 labels (N,), apart into trained and held out."""

    classes: list[str]
    train_images: Tensor
    train_labels: Tensor
    held_images: Tensor
    held_labels: Tensor
    augment: Callable[[Tensor, torch.Generator], Tensor]


def load_digits() -> Dataset:
    from sklearn.datasets import load_digits as sklearn_digits

    digits = sklearn_digits()
    gray = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))
    images = gray[:, None].expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(digits.target.astype(np.int64))
    n = DIGITS_TRAINED
    return Dataset([str(d) for d in range(10)], images[:n], labels[:n], images[n:], labels[n:], augment_digits)


def load_zip(path: Path) -> Dataset:
    by_class: dict[str, list[str]] = {}
    train, held = ([], []), ([], [])
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                by_class.setdefault(Path(name).parent.name, []).append(name)
        for label, members in enumerate(by_class.values()):
            first_held = round(len(members) * (1 - HELD_OUT_SHARE))
            for position, name in enumerate(members):
                images, labels = train if position < first_held else held
                images.append(np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")))
                labels.append(label)
    stack = [torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous() for images, _ in (train, held)]
    return Dataset(list(by_class), stack[0], torch.tensor(train[1]), stack[1], torch.tensor(held[1]), augment_photos)


def augment_digits(images: Tensor, generator: torch.Generator) -> Tensor:
    """Small rotations, scalings and shifts; a mirrored digit is another sign, so no flip."""
    n = len(images)
    u = torch.rand(4, n, generator=generator) * 2 - 1
    angle, scale, shift = u[0] * 0.2, 1 + u[1] * 0.1, u[2:] * 0.15
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack([torch.stack([cos, -sin, shift[0]], 1), torch.stack([sin, cos, shift[1]], 1)], 1)
    return F.grid_sample(images, F.affine_grid(theta, list(images.shape), align_corners=False), align_corners=False)


def augment_photos(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images and shift each by up to an eighth of its size."""
    n, _, height, width = images.shape
    pad = height // 8
    flip = torch.rand(n, generator=generator) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    padded = F.pad(images, (pad, pad, pad, pad), mode="reflect")
    top, left = torch.randint(0, 2 * pad + 1, (2, n), generator=generator)
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.arange(width)
    return padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class Normalize:
    """uint8 images of any size -> what the network takes: resized as pillow's bicubic does, scaled, normalised."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.mean = torch.tensor(mean)[None, :, None, None]
        self.std = torch.tensor(std)[None, :, None, None]

    def __call__(self, images: Tensor, size: int) -> Tensor:
        images = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True).clamp(0, 255)
        return ((images / 255 - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def accuracy(model: torch.nn.Module, data: Dataset, normalize: Normalize, size: int) -> float:
    model.eval()
    batches = zip(data.held_images.split(250), data.held_labels.split(250), strict=True)
    hits = sum(int((model(normalize(x.float(), size)).argmax(1) == y).sum()) for x, y in batches)
    return hits / len(data.held_labels)


def parse_schedule(text: str) -> list[int]:
    """``32x12,64x16`` -> the image size of every epoch."""
    stages = [stage.split("x") for stage in text.split(",")]
    return [int(size) for size, epochs in stages for _ in range(int(epochs))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["digits", "cifar10"])
    parser.add_argument("--zip", type=Path, help="zip of class folders, for cifar10")
    parser.add_argument("--arch", default="mobilevit_xxs", help="timm model name")
    parser.add_argument("--arch-options", type=json.loads, default={}, help="what timm builds it with, as JSON")
    parser.add_argument("--schedule", type=parse_schedule, required=True, help="image size x epochs, e.g. 32x12,64x16")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.data == "cifar10" and args.zip is None:
        parser.error("cifar10 needs --zip PATH")

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    torch.set_default_device(device)
    data = load_digits() if args.data == "digits" else load_zip(args.zip)
    for field in ("train_images", "train_labels", "held_images", "held_labels"):
        setattr(data, field, getattr(data, field).to(device))

    model = timm.create_model(args.arch, num_classes=len(data.classes), **args.arch_options)
    model = model.to(memory_format=torch.channels_last)
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    normalize = Normalize(mean, std)
    sizes: list[int] = args.schedule
    steps = len(data.train_labels) // args.batch_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps * len(sizes), pct_start=0.15)

    args.out.mkdir(parents=True, exist_ok=True)
    last, log = args.out / "last.pt", args.out / "log.csv"
    first_epoch = 0
    if last.exists():
        state = torch.load(last, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first_epoch = state["epoch"] + 1
        print(f"resuming {args.out} at epoch {first_epoch}")
    else:
        log.write_text("epoch,size,loss,held_accuracy,seconds\n")

    for epoch in range(first_epoch, len(sizes)):
        # One generator an epoch, so that a resumed run sees the same batches as an uninterrupted one.
        generator = torch.Generator(device).manual_seed(args.seed * 100_003 + epoch)
        start, total, size = time.time(), 0.0, sizes[epoch]
        order = torch.randperm(len(data.train_labels), generator=generator)
        model.train()
        for step in range(steps):
            chosen = order[step * args.batch_size : (step + 1) * args.batch_size]
            images = normalize(data.augment(data.train_images[chosen].float(), generator), size)
            loss = F.cross_entropy(model(images), data.train_labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss)
        held = accuracy(model, data, normalize, sizes[-1])
        row = [epoch, size, f"{total / steps:.4f}", f"{held:.4f}", f"{time.time() - start:.1f}"]
        print(f"epoch {row[0]}/{len(sizes)}  size {row[1]}  loss {row[2]}  held {row[3]}  {row[4]} s", flush=True)
        with log.open("a", newline="") as file:
            csv.writer(file).writerow(row)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        torch.save({**state, "epoch": epoch}, last.with_suffix(".tmp"))
        last.with_suffix(".tmp").replace(last)

    preprocessing = {
        "input_size": [sizes[-1], sizes[-1]], "crop_pct": 1.0, "interpolation": "bicubic",
        "mean": list(mean), "std": list(std),
    }  # fmt: skip
    torch.save(
        {"state_dict": {k: v.contiguous().cpu() for k, v in model.state_dict().items()}, "arch": args.arch,
         "arch_options": args.arch_options, "classes": data.classes, "preprocessing": preprocessing},
        args.out / "model.pt",
    )  # fmt: skip
    print(f"{args.out / 'model.pt'}: {accuracy(model, data, normalize, sizes[-1]):.2%} of the held images")


if __name__ == "__main__":
    main()
