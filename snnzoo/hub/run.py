"""A training checkpoint, and what it says about the run that it is of."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from snnzoo.errors import InputError
from snnzoo.weights import create_model, read_run

# Options of a run that say nothing about its outcome, or that are a path on somebody's machine.
_PERSONAL = (
    "data_dir output experiment resume config device workers dataset_download class_map log_interval log_tensorboard "
    "log_wandb wandb_project checkpoint_hist recovery_interval validation_batch_size val_interval"
).split()
_FILES_OF_WEIGHTS = ("teacher_checkpoint", "initial_checkpoint")
_LOCAL = "local-dir:"


@dataclass(frozen=True)
class Run:
    """What a training checkpoint says about itself.

    Attributes:
        options: of the run; none if the file has none, as one of plain weights.
        epoch: the last finished one, counted from 0.
        averaged: whether the weights taken from it are the averaged ones.
    """

    options: Mapping[str, Any]
    epoch: int | None = None
    averaged: bool = False

    @property
    def recipe(self) -> dict[str, Any]:
        """The options that make the run again, without what is of one machine only."""
        # 0 equals False, but is a choice
        kept = {
            key: value
            for key, value in self.options.items()
            if key not in _PERSONAL and (value or (value == 0 and value is not False))
        }
        for key, value in kept.items():
            if key in _FILES_OF_WEIGHTS:
                kept[key] = Path(value).name
            elif str(value).startswith(_LOCAL):
                kept[key] = _LOCAL + Path(value.removeprefix(_LOCAL)).name
        return kept


def load(
    checkpoint: str | Path, name: str | None = None, use_ema: bool = False, **kwargs: Any
) -> tuple[nn.Module, Run]:
    """The model in a checkpoint file, made as the run's options in it say.

    Args:
        checkpoint: of train_distill.py, or weights alone.
        name: of the model, if the file does not say.
        use_ema: take the averaged weights.
        **kwargs: of the model, before what the file says.

    Raises:
        InputError: the file cannot be read, or nobody says which model it is.
    """
    options, epoch, arch = read_run(checkpoint)
    name = name or arch
    if not name:
        raise InputError(f"checkpoint {str(checkpoint)!r} does not say which model it is of: give the model's name")
    kwargs = {"grad_method": options.get("grad_method")} | kwargs
    return create_model(name, checkpoint, use_ema, **kwargs), Run(options, epoch, use_ema)
