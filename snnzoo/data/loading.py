"""timm's datasets and ours, opened with errors that say what to do."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from timm.data import create_dataset, resolve_data_config
from timm.data.loader import adapt_to_chs
from timm.models import get_arch_pretrained_cfgs
from torch import nn
from torch.utils.data import IterableDataset

from snnzoo.data.events import FRAME_DATASETS, Cifar10DVS, FrameFolder
from snnzoo.errors import InputError
from snnzoo.scripting import as_input_error

_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
WORKERS = min(4, _CORES)  # timm's default is 4; torch warns where that is more than there are cores
_RANGES = (
    ("input_size", lambda x: x >= 1, "at least 1"),
    ("std", lambda x: x > 0, "above 0"),
    ("crop_pct", lambda x: x > 0, "above 0"),
)
_SPLIT_NAMES = ("train", "training", "val", "validation", "test", "eval")


def data_config(options: Mapping[str, Any], model: nn.Module, dataset: str) -> dict[str, Any]:
    """timm's ``resolve_data_config`` for as many channels as the model takes.

    Args:
        options: those of the scripts.
        model: gives what they leave open.
        dataset: name; frames of events are counts, not to be normalised unless the options say how, or the run or the
            Hub repository that the model is from.

    Raises:
        InputError: values out of range, or that do not go together.
    """
    for key, fits, text in _RANGES:
        value = options.get(key)
        if value is not None and not all(map(fits, value if isinstance(value, Sequence) else [value])):
            raise InputError(f"--{key.replace('_', '-')} must be {text}, got {value}")
    for key in ("mean", "std"):
        if options.get(key) and len(options[key]) not in (1, model.in_chans):
            raise InputError(f"--{key} must be one value or {model.in_chans}, one per channel, got {options[key]}")
    with as_input_error("--input-size, --mean or --std"):
        config = resolve_data_config({**options, "in_chans": model.in_chans}, model=model)
    if dataset in FRAME_DATASETS:
        for key, neutral in (("mean", 0.0), ("std", 1.0)):
            if not options.get(key) and _registered(model, key, config[key]):  # for images
                config[key] = (neutral,)
        if len(config["mean"]) != len(config["std"]):
            raise InputError(f"--mean and --std must be as many, got {config['mean']} and {config['std']}")
    config["input_size"] = (model.in_chans, *config["input_size"][1:])
    config["mean"], config["std"] = (
        adapt_to_chs(value[0] if len(value) == 1 else value, model.in_chans)
        for value in (config["mean"], config["std"])
    )
    return config


def _registered(model: nn.Module, key: str, value: Sequence[float]) -> bool:
    """Whether it is what the architecture is registered with, under any tag and for any number of channels."""

    def fitted(value: Sequence[float]) -> Sequence[float]:  # as adapt_to_chs, which would warn each time
        return value if len(value) == model.in_chans else [np.mean(value)] * model.in_chans

    known = get_arch_pretrained_cfgs(model.pretrained_cfg["architecture"]).values()
    return any(np.allclose(fitted(value), fitted(getattr(cfg, key))) for cfg in known)


def open_dataset(
    name: str,
    root: str | None,
    split: str,
    num_classes: int,
    in_chans: int = 3,
    num_steps: int | None = None,
    size: tuple[int, int] | None = None,
    **kwargs: Any,
):
    """``timm.data.create_dataset``, checked; and our own datasets of frames.

    Args:
        name: timm's: empty for a folder or tar of images, ``torch/…``, ``hfds/…``, …; ours: ``frames``
            (:class:`~snnzoo.data.FrameFolder`) and ``cifar10dvs`` (:class:`~snnzoo.data.Cifar10DVS`).
        root: the data's folder or file.
        split: which part; for a folder, the sub-folder of that name (or its usual synonyms).
        num_classes: of the model; the data may not have more.
        in_chans: of the model; images are read as grey for 1 and in colour otherwise, frames must have as many.
        num_steps: T, for ``cifar10dvs``.
        size: ``(H, W)``, for frames.
        **kwargs: as for ``create_dataset``.

    Raises:
        InputError: no such folder, no images in it, more classes than the model has, or other channels.
    """
    where = f"dataset {name or 'folder'}" + (f" at {str(root)!r}" if root else "")
    if "/" not in name and not (root and Path(root).exists()):
        raise InputError(f"{where}: there is no such folder or file; give it with --data-dir")
    if name in FRAME_DATASETS:
        dataset = _open_frames(name, root, split, in_chans, num_steps, size)
    elif in_chans not in (1, 3):
        raise InputError(f"{where}: images are read with 1 or 3 channels, the model takes {in_chans}: set --in-chans")
    else:
        try:
            mode = "L" if in_chans == 1 else "RGB"
            dataset = create_dataset(name, root=root, split=split, **{"input_img_mode": mode, **kwargs})
        except Exception as error:  # every reader has its own
            raise InputError(f"{where}, split {split!r}: {error or type(error).__name__}") from error
    if _root(dataset) == root and any((Path(root) / name).is_dir() for name in _SPLIT_NAMES):
        raise InputError(
            f"{where} has no sub-folder {split!r}, and without one all of it would be read; it has "
            f"{', '.join(sorted(path.name for path in Path(root).iterdir() if path.is_dir()))}"
        )
    classes = class_names(dataset)
    if len(classes) > num_classes:
        raise InputError(
            f"{where}, split {split!r}, has {len(classes)} classes ({', '.join(classes[:5])}, …), the model has "
            f"{num_classes}; set --num-classes {len(classes)}"
        )
    return dataset


def _open_frames(name: str, root: str, split: str, in_chans: int, num_steps: int | None, size) -> FrameFolder:
    if name == "frames":
        dataset = FrameFolder(root, split, None, size)
    elif num_steps is None:
        raise InputError("cifar10dvs: a network that knows no time sees the mean of T frames: give T, --event-steps")
    else:
        dataset = Cifar10DVS(root, split, num_steps, size)
    channels = dataset[0][0].shape[1]
    if channels != in_chans:
        raise InputError(
            f"dataset {name} at {str(root)!r} has frames of {channels} channels, the model takes {in_chans}: "
            f"set --in-chans {channels}"
        )
    return dataset


def spread(size: int, count: int) -> list[int]:
    """``count`` indices, or all of ``size`` if there are no more, from all over data whose classes come in order."""
    count = min(size, count)
    return [index * size // count for index in range(count)]


def class_names(dataset) -> list[str]:
    """Names of the dataset's classes by label; empty where its reader does not know them."""
    mapping = getattr(getattr(dataset, "reader", dataset), "class_to_idx", None) or {}
    return sorted(mapping, key=mapping.get)


def _root(dataset) -> str | None:
    """The folder that a folder dataset reads, None for other kinds."""
    samples_from_files = hasattr(dataset, "reader") or hasattr(dataset, "imgs")
    return getattr(getattr(dataset, "reader", dataset), "root", None) if samples_from_files else None


def fingerprint(dataset) -> dict[str, Any]:
    """What tells one state of a dataset from another, without reading all of it.

    Returns:
        ``samples``, ``classes``, and ``sha256`` over all file names and labels (where the reader knows them) and the
        contents of 16 samples spread over the data; without the last for streams.
    """
    found = {"samples": len(dataset), "classes": len(class_names(dataset)) or None}
    if isinstance(dataset, IterableDataset):
        return found
    digest = hashlib.sha256()
    for sample in getattr(getattr(dataset, "reader", dataset), "samples", getattr(dataset, "targets", ())):
        name, label = (sample[0], sample[-1]) if np.ndim(sample) else ("", sample)
        digest.update(f"{Path(getattr(name, 'name', str(name))).name}:{label};".encode())
    transform, dataset.transform = dataset.transform, None
    try:
        for index in np.linspace(0, len(dataset) - 1, 16).astype(int).tolist():
            image, label = dataset[index]
            digest.update(np.asarray(image).tobytes() + str(label).encode())
    finally:
        dataset.transform = transform
    return found | {"sha256": digest.hexdigest()}


def check_splits(train, validation) -> None:
    """Raise InputError where validation would see training images, other classes under the same labels, or another T.

    timm reads the whole folder where it finds no sub-folder for a split.
    """
    roots = [_root(dataset) for dataset in (train, validation)]
    if all(roots):
        a, b = (Path(root).resolve() for root in roots)
        if a == b or a in b.parents or b in a.parents:
            raise InputError(
                f"training images come from {str(a)!r} and validation images from {str(b)!r}, which overlap: put them "
                f"in sub-folders named by --train-split and --val-split"
            )
    a, b = class_names(train), class_names(validation)
    if a and b and a != b:
        raise InputError(f"training and validation data name different classes: {a[:5]}, … and {b[:5]}, …")
    a, b = (getattr(dataset, "num_steps", None) for dataset in (train, validation))
    if a != b:
        raise InputError(f"training frames have {a} time steps and validation frames {b}: make them as many")
