"""What every subcommand that works on one model asks for: the model, and data to show it."""

import argparse

from timm.data import create_transform
from timm.data.loader import PrefetchLoader
from timm.utils import ParseKwargs
from torch import nn
from torch.utils.data import Dataset, IterableDataset, Subset

from snnzoo.errors import InputError
from snnzoo.processes import Processes
from snnzoo.scripting import in_chans, model_kwargs
from snnzoo.weights import create_model


def add_model(parser: argparse.ArgumentParser) -> None:
    """Options for :func:`make_model`."""
    add = parser.add_argument
    add("model", help="name of a zoo model")
    add("--checkpoint", metavar="FILE", help="its weights")
    add("--use-ema", action="store_true", help="the averaged weights of the checkpoint")
    add("--pretrained", action="store_true", help="its pretrained weights")
    add("--num-classes", type=int, metavar="N")
    add("--in-chans", type=int, metavar="N")
    add("--num-steps", type=int, metavar="T", help="time steps (default: the model's)")
    add("--model-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="K=V")
    add("--input-size", nargs=3, type=int, metavar="N", help="channels, height, width")


def add_data(parser: argparse.ArgumentParser, what_for: str) -> None:
    """Options for :func:`open_data`."""
    add = parser.add_argument
    add("--data-dir", metavar="DIR", help=what_for)
    add("--dataset", metavar="NAME", default="", help="timm's names: torch/…, hfds/…; a folder or tar if empty")
    add("--split", metavar="NAME", default="validation", help="(default: %(default)s)")
    add("-b", "--batch-size", type=int, default=64, metavar="N", help="(default: %(default)s)")


def make_model(args: argparse.Namespace) -> nn.Module:
    """The model that the options name.

    Raises:
        InputError: no such model, or an option that it does not take.
    """
    if args.input_size and min(args.input_size) < 1:
        raise InputError(f"--input-size must be at least 1 1 1, got {' '.join(map(str, args.input_size))}")
    return create_model(
        args.model,
        args.checkpoint,
        args.use_ema,
        pretrained=args.pretrained,
        in_chans=in_chans(args),
        num_classes=args.num_classes,
        num_steps=args.num_steps,
        **model_kwargs(args),
    )


def open_data(
    args: argparse.Namespace, model: nn.Module, split: str, device: str = "cpu", count: int | None = None
) -> tuple[Dataset, PrefetchLoader]:
    """The samples of a split, and batches of them as the model takes them.

    Args:
        args: the options; those of train_distill.py about data too, where there are any.
        model: that will see them.
        split: which.
        device: of the batches.
        count: take so many, spread evenly over the data, whose classes come one after the other; all if None.

    Raises:
        InputError: no such data, or it does not fit the model.
    """
    from snnzoo import data

    options = {"mean": None, "std": None, **vars(args)}
    config, frames = data.data_config(options, model, args.dataset), args.dataset in data.FRAME_DATASETS
    steps = getattr(model, "num_steps", None)
    dataset = data.open_dataset(
        args.dataset, args.data_dir, split, model.num_classes, model.in_chans, options.get("event_steps") or steps,
        config["input_size"][1:], class_map=options.get("class_map", ""),
    )  # fmt: skip
    if frames:
        dataset.transform = data.FrameTransform(time_mean=steps is None)
    else:
        dataset.transform = create_transform(is_training=False, use_prefetcher=True, **config)
    shown = dataset
    if count is not None and count < 1:
        raise InputError(f"the number of images must be at least 1, got {count}")
    if count is not None and not isinstance(dataset, IterableDataset):
        shown = Subset(dataset, data.spread(len(dataset), count))
    return dataset, data.evaluation_batches(
        shown, args.batch_size, model.num_classes, Processes(device), 0, config["mean"], config["std"], frames
    )
