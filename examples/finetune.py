#!/usr/bin/env python3
"""Fine-tune a trained spiking network on a folder of your own images, in plain PyTorch.

    python examples/finetune.py
    python examples/finetune.py --data-dir DIR --model hf-hub:OWNER/NAME
    python examples/finetune.py --data-dir DIR --model snn_resnet20_t4 --checkpoint FILE

DIR holds train/<class>/* and validation/<class>/*. Without it a network that has learnt scikit-learn's digits 0 to 4
learns 5 to 9 from eight images each, and one that starts from nothing does the same.
"""

import argparse
import shutil
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from timm.data import create_transform
from torch import nn
from torch.utils.data import DataLoader

from snnzoo.data import class_names, data_config, open_dataset, write_digits
from snnzoo.errors import InputError
from snnzoo.scripting import run
from snnzoo.weights import create_model

SMALL = dict(depths=(1, 1, 1))  # for the digits


def open_split(folder: Path, split: str, model: nn.Module, size: int | None) -> tuple[DataLoader, int]:
    """Batches of a split, normalised as the model was trained, and the number of classes."""
    config = data_config({"input_size": size and (model.in_chans, size, size)}, model, "")
    dataset = open_dataset("", str(folder), split, num_classes=10**6, in_chans=model.in_chans)
    dataset.transform = create_transform(**config, is_training=False)
    return DataLoader(dataset, batch_size=32, shuffle=split == "train"), len(class_names(dataset))


def fit(model: nn.Module, batches: DataLoader, epochs: int, lr: float) -> None:
    """The body learns a tenth as fast as the new classifier. Rate-based backpropagation is the model's own default."""
    head = list(model.get_classifier().parameters())
    body = [p for name, p in model.named_parameters() if not name.startswith(model.get_classifier(name_only=True))]
    groups = [{"params": body, "lr": lr / 10}, {"params": head, "lr": lr}]
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    for _ in range(epochs):
        model.train()
        for images, labels in batches:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()


@torch.no_grad()
def top1(model: nn.Module, batches: DataLoader) -> float:
    """In percent."""
    model.eval()
    right = [(model(images).argmax(1) == labels).float() for images, labels in batches]
    return 100 * float(torch.cat(right).mean())


def digits_apart(output: Path) -> tuple[Path, Path]:
    """Folders of the digits 0 to 4, and of 5 to 9 with eight training images each."""
    folders = output / "known", output / "new"
    shutil.rmtree(output / "known", ignore_errors=True)
    shutil.rmtree(output / "new", ignore_errors=True)
    for split in ("train", "validation"):
        for label, source in enumerate(sorted((write_digits(output / "digits") / split).iterdir())):
            target = folders[label > 4] / split / source.name
            target.mkdir(parents=True)
            for image in sorted(source.iterdir())[: 8 if label > 4 and split == "train" else None]:
                shutil.copy(image, target)
    return folders


def learn_known(folder: Path, path: Path) -> None:
    """The trained network of the digits' example: weights of one that knows 0 to 4."""
    model = timm.create_model("snn_resnet20_t4", num_classes=5, **SMALL)
    batches, _ = open_split(folder, "train", model, 8)
    fit(model, batches, epochs=6, lr=0.5)
    save_file(model.state_dict(), path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, metavar="DIR")
    parser.add_argument("--model", default="snn_resnet20_t4", help="a zoo model or hf-hub:… (default: %(default)s)")
    parser.add_argument("--checkpoint", metavar="FILE", help="its weights (default: its pretrained ones)")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--output", type=Path, default=Path("output/finetune"))
    args = parser.parse_args(argv)
    if args.epochs < 1 or not args.lr > 0:
        raise InputError(f"--epochs and --lr must be positive, got {args.epochs} and {args.lr}")
    torch.manual_seed(0)
    kwargs, size, folder, checkpoint = {}, None, args.data_dir, args.checkpoint
    if folder is None:
        known, folder = digits_apart(args.output)
        kwargs, size, checkpoint = SMALL | {"num_classes": 5}, 8, args.output / "known.safetensors"
        learn_known(known, checkpoint)

    model = create_model(args.model, checkpoint, pretrained=not checkpoint, **kwargs)
    batches, classes = open_split(folder, "train", model, size)
    validation, _ = open_split(folder, "validation", model, size)
    model.reset_classifier(classes)
    fit(model, batches, args.epochs, args.lr)
    print(f"fine-tuned:   top-1 {top1(model, validation):.2f} % of {classes} classes after {args.epochs} epochs")
    args.output.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), args.output / "finetuned.safetensors")
    print(f"weights:      {args.output / 'finetuned.safetensors'}")
    if args.data_dir is None:
        scratch = timm.create_model(args.model, num_classes=classes, **SMALL)
        fit(scratch, batches, args.epochs, args.lr)
        print(f"from nothing: top-1 {top1(scratch, validation):.2f} %, as many epochs on the same images")


if __name__ == "__main__":
    run(main, Path(__file__).name)
