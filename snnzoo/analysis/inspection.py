"""A run's folder, looked into: what its files say, and what its best checkpoint does with its validation data."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from snnzoo import hub
from snnzoo.analysis.profiling import Profile, profile
from snnzoo.checkpoints import BEST, LAST
from snnzoo.data import class_names
from snnzoo.errors import InputError
from snnzoo.model_options import open_data
from snnzoo.records import SUMMARY, TABLE, read_table

PROFILE_IMAGES = 256
DEPLOY_IMAGES = 8

# What an exporter makes of a model and images: its report, or InputError where it cannot.
Deploy = Callable[[nn.Module, Tensor], Mapping[str, Any]]


@dataclass
class Inspection:
    """What is known of a run; what is not is None, and ``missing`` says why.

    Attributes:
        name: of the folder.
        options: of the run.
        summary: the content of ``summary.json``, empty for a run without.
        rows: of ``summary.csv``.
        checkpoint: name of the file that was looked at, and which weights of it.
        classes: their names by label, empty where the data have none.
        confusion: ``[N, N]`` counts, by true label and answer.
        profile: of the model on validation images.
        deploy: reports of exports: those that lie in the folder, and the one made for it.
        missing: by section, why there is nothing to tell.
    """

    name: str
    options: dict[str, Any]
    summary: dict[str, Any]
    rows: list[dict[str, float]]
    checkpoint: str | None = None
    classes: Sequence[str] = ()
    confusion: Tensor | None = None
    profile: Profile | None = None
    deploy: list[Mapping[str, Any]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


def inspect_run(
    folder: str | Path, data_dir: str | None = None, images: int | None = None, deploy: Deploy | None = None
) -> Inspection:
    """Look into a run's folder.

    Args:
        folder: of the run.
        data_dir: its data, where they are not any more where the run says.
        images: how many validation images to look at, spread evenly; all if None.
        deploy: exports the model and compares, see :data:`Deploy`.

    Raises:
        InputError: it is not a run's folder, or ``data_dir`` or ``images`` does not fit.
    """
    folder = Path(folder)
    if images is not None and images < 1:
        raise InputError(f"--images must be at least 1, got {images}")
    if not (folder / TABLE).is_file():
        raise InputError(f"no run at {str(folder)!r}: a run's folder has a {TABLE}")
    summary = _read(folder / SUMMARY, json.loads)
    options = summary.get("options") or _read(folder / "args.yaml", yaml.safe_load)
    found = Inspection(folder.resolve().name, options, summary, read_table(folder / TABLE))
    found.deploy = _reports(folder)
    checkpoint = next((path for path in (folder / BEST, folder / LAST) if path.is_file()), None)
    if checkpoint is None:
        found.missing["activity"] = f"The folder has no checkpoint ({BEST} or {LAST})."
        return found
    try:
        _look(found, checkpoint, data_dir, images, deploy)
    except InputError as error:
        if data_dir:
            raise
        found.missing["activity"] = f"{error}. Give the place of the run's validation data with --data-dir."
    return found


def _look(found: Inspection, checkpoint: Path, data_dir: str | None, images: int | None, deploy: Deploy | None) -> None:
    averaged = bool(found.options.get("model_ema"))  # by which the best checkpoint was chosen, then
    model, _ = hub.load(checkpoint, use_ema=averaged)
    found.checkpoint = f"{checkpoint.name}, its averaged weights" if averaged else checkpoint.name
    options = {"dataset": "", "val_split": "validation", **found.options, "batch_size": 64}
    if data_dir:
        options["data_dir"] = data_dir
    args, split = argparse.Namespace(**options), options["val_split"]
    opened = partial(open_data, args, model, split)
    dataset, loader = opened(count=images)
    found.classes = class_names(dataset)
    found.confusion = confusion_matrix(model, loader)
    limit = min(images or PROFILE_IMAGES, PROFILE_IMAGES)
    found.profile = profile(model, (batch for batch, _ in opened(count=limit)[1]))
    if deploy is None:
        return
    try:
        (shown, _), *_ = opened(count=DEPLOY_IMAGES)[1]
        found.deploy.append(deploy(model, shown))
    except InputError as error:
        found.missing["deploy"] = f"{error}."


@torch.no_grad()
def confusion_matrix(model: nn.Module, loader) -> Tensor:
    """How often which class got which answer: ``[N, N]`` counts, rows by true label.

    Args:
        model: with N classes; it is evaluated in evaluation mode.
        loader: batches of images and labels.
    """
    model.eval()
    counts = torch.zeros(model.num_classes, model.num_classes, dtype=torch.int64)
    for images, target in loader:
        answers = model(images).argmax(1)
        counts.index_put_((target.cpu(), answers.cpu()), torch.tensor(1), accumulate=True)
    return counts


def _reports(folder: Path) -> list[Mapping[str, Any]]:
    """Of exports that lie in the folder."""
    found = [_read(path, json.loads) for path in sorted(folder.glob("*.json"))]
    return [report for report in found if "parity" in report and "target" in report]


def _read(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """A mapping in a file; empty if there is none."""
    if not path.is_file():
        return {}
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{str(path)!r} cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}
