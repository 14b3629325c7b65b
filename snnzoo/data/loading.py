"""timm's datasets, opened with errors that say what to do."""

from pathlib import Path
from typing import Any

from timm.data import create_dataset

from snnzoo.errors import InputError

_SPLIT_NAMES = ("train", "training", "val", "validation", "test", "eval")


def open_dataset(name: str, root: str | None, split: str, num_classes: int, **kwargs: Any):
    """``timm.data.create_dataset``, checked.

    Args:
        name: timm's: empty for a folder or tar of images, ``torch/…``, ``hfds/…``, …
        root: the data's folder or file.
        split: which part; for a folder, the sub-folder of that name (or its usual synonyms).
        num_classes: of the model; the data may not have more.
        **kwargs: as for ``create_dataset``.

    Raises:
        InputError: no such folder, no images in it, or more classes than the model has.
    """
    where = f"dataset {name or 'folder'} at {str(root)!r}"
    if "/" not in name and not Path(root or "").exists():
        raise InputError(f"{where}: there is no such folder or file; give it with --data-dir")
    try:
        dataset = create_dataset(name, root=root, split=split, **kwargs)
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


def class_names(dataset) -> list[str]:
    """Names of the dataset's classes by label; empty where its reader does not know them."""
    mapping = getattr(getattr(dataset, "reader", dataset), "class_to_idx", None) or {}
    return sorted(mapping, key=mapping.get)


def _root(dataset) -> str | None:
    """The folder that a folder dataset reads, None for other kinds."""
    samples_from_files = hasattr(dataset, "reader") or hasattr(dataset, "imgs")
    return getattr(getattr(dataset, "reader", dataset), "root", None) if samples_from_files else None


def check_splits(train, validation) -> None:
    """Raise InputError where validation would see training images, or other classes under the same labels.

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
