"""A run's checkpoints: written so that no crash costs more than what came after the last one."""

import contextlib
import math
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.task import TrainingTask
from timm.utils import NativeScaler, unwrap_model
from torch import Tensor
from torch.optim import Optimizer

from snnzoo.errors import InputError
from snnzoo.files import atomic_path
from snnzoo.meters import DIVERGED
from snnzoo.processes import Processes
from snnzoo.randomness import rng_state

LAST, PREVIOUS, BEST = "last.pth.tar", "previous.pth.tar", "model_best.pth.tar"
MUST_AGREE = (
    "model", "model_kwargs", "num_classes", "in_chans", "num_steps", "reset", "teacher", "branches", "opt", "quant"
)  # fmt: skip

# Options of an optimizer, and what its parameter groups call them.
_HYPERPARAMETERS = (
    ("lr", "lr"), ("weight_decay", "weight_decay"), ("momentum", "momentum"), ("opt_betas", "betas"), ("opt_eps", "eps")
)  # fmt: skip

# What the plateau schedule has counted so far; the rest of its state are options.
_COUNTED = {"best", "num_bad_epochs", "cooldown_counter", "last_epoch"}


@dataclass
class Progress:
    """Where a run is.

    Attributes:
        epoch: the present epoch.
        samples: how many of its samples have been learnt from, by all processes together.
        updates: optimizer steps, of the whole run.
        totals: of this epoch's metrics so far, see :class:`snnzoo.meters.Meters`.
        best_metric, best_epoch: of the validations so far.
    """

    epoch: int = 0
    samples: int = 0
    updates: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    best_metric: float | None = None
    best_epoch: int | None = None

    def judge(self, metric: float, decreasing: bool) -> None:
        """Take the present epoch as the best if its metric is better, lower if ``decreasing``."""
        best = self.best_metric
        if best is None or not math.isfinite(best) or (metric < best if decreasing else metric > best):
            self.best_metric, self.best_epoch = metric, self.epoch

    def next_epoch(self) -> None:
        """The present epoch is done."""
        self.epoch, self.samples, self.totals = self.epoch + 1, 0, {}


@dataclass
class Training:
    """What a checkpoint is made of besides the progress."""

    task: TrainingTask
    optimizer: Optimizer
    scheduler: Any | None
    scaler: NativeScaler | None
    options: dict[str, Any]
    arch: str  # of the model, whatever source its name in the options has
    data: dict[str, Any]  # the fingerprint of what it learns from

    def state(self, progress: Progress, rng: list[dict[str, Any]]) -> dict[str, Any]:
        """Plain types and tensors only, so that every torch loads it with ``weights_only=True``."""
        state = {
            "epoch": progress.epoch - 1,  # the last finished one, as timm has it
            "arch": self.arch,
            "version": 2,  # of timm's format, whose scripts read the weights
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(progress),
            "rng": rng,
            "options": self.options,
            "data": self.data,
            **self.task.get_checkpoint_state(),
            **self.task.get_checkpoint_state(ema=True),
        }
        if self._plateau:
            state["scheduler"] = self._plateau.state_dict()
        if self.scaler:
            state[self.scaler.state_dict_key] = self.scaler.state_dict()
        return state

    def load(self, state: dict[str, Any], progress: Progress) -> None:
        """The reverse; schedule and optimizer follow this run's options from the checkpoint's place on."""
        self.task.load_checkpoint_state(state["state_dict"], state.get("task_state"))
        if self.task.has_ema():
            # a run that has only now asked for averages starts them from its weights
            key = "_ema" if "state_dict_ema" in state else ""
            averaged = state["state_dict" + key], state.get("task_state" + key)
            self.task.load_checkpoint_state(*averaged, ema=True)
        was = state["options"]
        changed = [key for name, key in _HYPERPARAMETERS if was.get(name) != self.options[name]]
        asked = [{key: group[key] for key in changed if key in group} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, values in zip(self.optimizer.param_groups, asked, strict=True):
            group.update(values)
        if self.scaler and self.scaler.state_dict_key in state:
            self.scaler.load_state_dict(state[self.scaler.state_dict_key])
        if self._plateau:
            counted = _COUNTED if judged_by(was) == judged_by(self.options) else _COUNTED - {"best"}
            before = state.get("scheduler", {})
            vars(self._plateau).update({key: before[key] for key in counted & before.keys()})
        elif self.scheduler:
            self.scheduler.step(progress.epoch)
            self.scheduler.step_update(progress.updates)

    def buffers(self) -> list[dict[str, Tensor]]:
        """Running statistics of what is trained and of the averages; inside an epoch every process has its own."""
        modules = self.task.get_trainable_module(), self.task.get_trainable_module(ema=True)
        return [dict(unwrap_model(module).named_buffers()) for module in modules if module is not None]

    def load_buffers(self, saved: list[dict[str, Tensor]]) -> None:
        """The reverse."""
        for buffers, theirs in zip(self.buffers(), saved, strict=False):  # the averages may be new, or gone
            for name, buffer in buffers.items():
                buffer.copy_(theirs[name])

    @property
    def _plateau(self) -> Any | None:
        """The one schedule with a memory, which timm leaves out of its state; the others are functions of the place."""
        return getattr(self.scheduler, "lr_scheduler", None)


class Checkpoints:
    """The checkpoint files of a run's folder.

    ``last`` is the newest state and ``previous`` the one before it; ``checkpoint-<epoch>`` are the last few epochs'
    ends, ``model_best`` the best of all epochs. Each is whole: written under a temporary name, confirmed by the disk,
    renamed. They are links to one file where the file system has links. timm's saver deletes the old file before it
    renames the new one, which a crash can hit.

    Args:
        folder: of the run.
        keep: how many epochs' ends.
        training: what is saved.
        processes: of the run; the first one writes.
    """

    def __init__(self, folder: Path, keep: int, training: Training, processes: Processes):
        self.folder, self.keep, self._training, self._processes = folder, keep, training, processes

    def save(self, progress: Progress) -> None:
        """Write ``last``; called by all processes.

        Raises:
            InputError: the disk is full, or not to be written to, or a weight is not a finite number; what was there is
                still there.
        """
        state = self._state(progress)
        if not self._processes.is_first:
            return
        last = self.folder / LAST
        with self._written(last, state):
            if last.exists():
                _link(last, self.folder / PREVIOUS)

    def save_epoch(self, progress: Progress, epoch: int) -> None:
        """Keep an epoch's end under its name, as the best if it is, and last as ``last``; called by all processes."""
        state = self._state(progress)
        if not self._processes.is_first:
            return
        path, last = self.folder / f"checkpoint-{epoch}.pth.tar", self.folder / LAST
        with self._written(path, state):
            pass
        for later in _epochs(self.folder):  # of a run that went on from here before
            if _epoch_of(later) > epoch:
                later.unlink(missing_ok=True)
        if progress.best_epoch == epoch:
            _link(path, self.folder / BEST)
        if last.exists():
            _link(last, self.folder / PREVIOUS)
        _link(path, last)  # only now: whoever goes on from it finds the rest in place
        for old in _epochs(self.folder)[self.keep :]:
            old.unlink(missing_ok=True)

    def _state(self, progress: Progress) -> dict[str, Any]:
        state = self._training.state(progress, self._processes.gather(rng_state(self._processes.device)))
        if self._processes.together and progress.samples:
            own = [{name: value.cpu() for name, value in buffers.items()} for buffers in self._training.buffers()]
            state["buffers"] = self._processes.gather(own)
        for name, value in state["state_dict"].items():
            # A loss need not show it: a membrane that is not a number never fires.
            if value.is_floating_point() and not value.isfinite().all():
                raise InputError(DIVERGED.format(repr(name)))
        return state

    @contextlib.contextmanager
    def _written(self, path: Path, state: dict[str, Any]) -> Iterator[None]:
        """Write a checkpoint under a temporary name, run the block, and give it its name."""
        try:
            with atomic_path(path) as temporary:
                with temporary.open("wb") as file:
                    torch.save(state, file)
                yield
        except (OSError, RuntimeError) as error:  # torch's writer hides the reason in a RuntimeError
            before = f", then --resume {self.folder}: the one before is intact" if candidates(self.folder) else ""
            raise InputError(
                f"checkpoint {str(path)!r} could not be written: {_reason(error, self.folder)}; make room{before}"
            ) from error


def judged_by(options: Mapping[str, Any]) -> str:
    """What a run's options choose its best epoch by: the averaged weights' metric if there are any."""
    return ("ema_" if options["model_ema"] else "") + options["eval_metric"]


def keep_best(progress: Progress, resumed: Path, folder: Path) -> bool:
    """Have the best so far as the ``model_best`` of a folder that goes on from a checkpoint; False if it is lost."""
    of_epoch = f"checkpoint-{progress.best_epoch}.pth.tar"  # where a run that went back has replaced its best
    paths = (folder / BEST, resumed.with_name(BEST), resumed, folder / of_epoch, resumed.with_name(of_epoch))
    for path in filter(Path.exists, paths):
        try:
            state = read_checkpoint(path)
        except InputError:
            continue
        best = state["progress"]["best_metric"], state["epoch"]
        if best == (progress.best_metric, progress.best_epoch) and not state["progress"]["samples"]:
            _link(path, folder / BEST)
            return True
    return False


def go_back(resumed: Path, folder: Path) -> None:
    """Make the checkpoint that a run goes on from the ``last`` of its folder, whatever was abandoned there."""
    _link(resumed, folder / LAST)


def candidates(folder: Path) -> list[Path]:
    """What a run could go on from, newest first."""
    paths = [folder / LAST, folder / PREVIOUS, *_epochs(folder)]
    return [path for path in paths if path.is_file()]


def _epochs(folder: Path) -> list[Path]:
    """The epochs' checkpoints, newest first."""
    return sorted(folder.glob("checkpoint-*.pth.tar"), key=_epoch_of, reverse=True)


def _epoch_of(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-").split(".")[0])


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or a copy where the file system has no links."""
    if target.exists() and source.samefile(target):  # a rename would do nothing, and leave the temporary name
        return
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def _reason(error: Exception, folder: Path) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    cause = error.__cause__ or error.__context__
    if isinstance(cause, OSError):
        return _reason(cause, folder)
    free = shutil.disk_usage(folder).free / 2**20
    return f"{str(error).splitlines()[0]} ({free:.0f} MiB are free)"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of the trainer, tensors on the CPU.

    Raises:
        InputError: it is not one, or it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch writes checksums and does not look at them
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"its part {damaged} does not have the checksum it was written with")
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {"progress": state["progress"], **state}
    except Exception as error:  # torn files fail in many ways
        raise InputError(
            f"--resume: {str(path)!r} is not a checkpoint of this script, or it is truncated: {error}"
        ) from error
