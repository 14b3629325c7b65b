"""A training run's folder: opened, saved to, resumed from."""

import argparse
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from timm.task import TrainingTask, load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import CheckpointSaver, NativeScaler
from timm.utils.checkpoint_saver import load_checkpoint_metadata

from snnzoo.errors import InputError
from snnzoo.scripting import as_input_error


class Saver(CheckpointSaver):
    """timm's saver; the run's options go into the file as a plain dict, which every torch loads safely."""

    def __init__(self, options: dict[str, Any], **kwargs: Any):
        super().__init__(**kwargs)
        self.options = options

    def state_dict(self, *args: Any) -> dict[str, Any]:
        return super().state_dict(*args) | {"options": self.options}


def open_run_dir(args: argparse.Namespace) -> Path:
    """The run's folder; never one that holds another run."""
    name = args.experiment or f"{datetime.now():%Y%m%d-%H%M%S}-{args.model.replace('/', '_')}"
    own = args.resume and not args.experiment
    folder = Path(args.resume).parent if own else Path(args.output) / name
    goes_on = args.resume and folder.resolve() == Path(args.resume).resolve().parent
    if not goes_on and any(folder.glob("*.pth.tar")):
        raise InputError(f"folder {str(folder)!r} holds another run's checkpoints; resume it with --resume, or choose "
                         f"another --experiment")  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def resume(
    args: argparse.Namespace,
    task: TrainingTask,
    optimizer: torch.optim.Optimizer,
    scaler: NativeScaler | None,
    saver: Saver,
    folder: Path,
) -> int:
    """Restore everything from a checkpoint; returns the epoch to go on with."""
    if not Path(args.resume).is_file():
        raise InputError(f"--resume: no checkpoint file at {args.resume!r}")
    try:
        written_by = load_checkpoint_metadata(args.resume)["saver"]["options"]
    except Exception as error:  # torn files fail in many ways
        raise InputError(
            f"--resume: {args.resume!r} is not a checkpoint of this script, or it is truncated: {error}"
        ) from error
    for option in ("model", "model_kwargs", "num_classes", "teacher", "branches", "opt"):
        if written_by[option] != getattr(args, option):
            name = option.replace("_", "-")
            raise InputError(
                f"--resume: {args.resume!r} was written with --{name} {written_by[option]}, this run has "
                f"{getattr(args, option)}"
            )
    with as_input_error(f"--resume {args.resume}"):
        start_epoch = resume_task_checkpoint(task, args.resume, optimizer, scaler, log_info=False)
    if task.has_ema():
        load_task_ema_checkpoint(task, args.resume)
    if folder.resolve() == Path(args.resume).resolve().parent:
        saver.load_state_dict_from_checkpoint(args.resume)
    return start_epoch
