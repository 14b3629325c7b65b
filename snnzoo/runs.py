"""A training run's folder: opened, and gone on from."""

import argparse
import contextlib
import logging
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from filelock import AcquireReturnProxy, FileLock, Timeout

from snnzoo.checkpoints import (
    LAST,
    MUST_AGREE,
    Progress,
    Training,
    candidates,
    go_back,
    judged_by,
    keep_best,
    read_checkpoint,
)
from snnzoo.errors import InputError
from snnzoo.files import remove_leftovers
from snnzoo.processes import Processes
from snnzoo.randomness import set_rng_state
from snnzoo.records import is_finished
from snnzoo.scripting import as_input_error

_logger = logging.getLogger(__name__)

LOCK = ".lock"  # stays in the folder; what counts is that the system holds it for a process, which a kill ends too
PATIENCE = 6  # seconds; data loading workers of a killed process notice within five, and hold what it held till then


@contextlib.contextmanager
def run_dir(args: argparse.Namespace, processes: Processes) -> Iterator[Path]:
    """The run's folder, in all processes; never one that holds another run, and none but this run writes there.

    Raises:
        InputError: it holds one, or another process is training there, or it cannot be made or written to, or there is
            nothing to go on from.
    """
    folder, held = _open(args) if processes.is_first else (None, contextlib.nullcontext())
    with held:
        yield processes.from_first(folder)


def _open(args: argparse.Namespace) -> tuple[Path, AcquireReturnProxy]:
    if args.resume == "auto" and not args.experiment:
        raise InputError("--resume auto goes on in the run's own folder: name it with --experiment")
    name = args.experiment or f"{datetime.now():%Y%m%d-%H%M%S}-{args.model.replace('/', '_')}"
    source = None
    if args.resume and args.resume != "auto":
        source = find_checkpoints(Path(args.resume))[0].parent  # before anything is made
    folder = source if source and not args.experiment else Path(args.output) / name
    goes_on = args.resume == "auto" or (source and folder.resolve() == source.resolve())
    dated = not (source or args.experiment)
    if not (goes_on or dated) and any(folder.glob("*.pth.tar")):
        raise InputError(f"folder {str(folder)!r} holds another run's checkpoints; resume it with --resume, or choose "
                         f"another --experiment")  # fmt: skip
    try:
        if dated:
            folder = _make_new(folder)
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(folder / LOCK).acquire(timeout=PATIENCE)
        (folder / ".writable.tmp").touch()
        remove_leftovers(folder)
    except Timeout as error:
        raise InputError(
            f"another process is training in {str(folder)!r}: wait for its end, or choose another --experiment"
        ) from error
    except OSError as error:
        raise InputError(
            f"the run's folder {str(folder)!r} cannot be written to: {error.strerror}; choose another --output"
        ) from error
    return folder, held


def _make_new(folder: Path) -> Path:
    """A folder of that name, or with a number behind it: runs may begin in the same second."""
    made, number = folder, 0
    while True:
        try:
            made.mkdir(parents=True)
            return made
        except FileExistsError:
            number += 1
            made = folder.with_name(f"{folder.name}-{number}")


def find_checkpoints(path: Path) -> list[Path]:
    """What ``--resume`` may mean, best first: one checkpoint, or of a folder, or its ``last``, everything whole in it.

    Raises:
        InputError: there is nothing there.
    """
    if path.is_file() and path.name != LAST:
        return [path]
    folder = path if path.is_dir() else path.parent
    found = candidates(folder) if folder == path or path.name == LAST else []
    if not found:
        there = ", ".join(sorted(other.name for other in folder.glob("*.pth.tar"))) or "no checkpoint"
        raise InputError(f"--resume: no checkpoint file at {str(path)!r}; in {str(folder)!r} there is {there}")
    return found


def _as_in_yaml(value: Any) -> Any:
    """An option as a run's ``args.yaml`` has it: without tuples, and empty as none."""
    return yaml.safe_load(yaml.safe_dump(None if value == "" else value))


def resume(args: argparse.Namespace, folder: Path, training: Training, processes: Processes, epochs: int) -> Progress:
    """Restore everything from the newest checkpoint that is whole; the start of the run if ``auto`` finds none.

    The checkpoint is the folder's ``last`` from now on: ``auto`` never goes on with what was gone back on.

    Raises:
        InputError: no checkpoint, none that is whole, one of another kind of run, or one with all of the ``epochs``.
    """
    find = partial(candidates, folder) if args.resume == "auto" else partial(find_checkpoints, Path(args.resume))
    found = processes.from_first(find() if processes.is_first else None)
    if not found:
        return Progress()
    for path, older in zip(found, [*found[1:], None], strict=True):
        try:
            state = read_checkpoint(path)
            break
        except InputError as error:
            if older is None:
                raise
            _logger.warning("%s\n  going on from the one before: %s", error, older)
    for option in MUST_AGREE:
        was, asked = _as_in_yaml(state["options"].get(option)), _as_in_yaml(getattr(args, option))
        if was != asked:
            name = option.replace("_", "-")
            raise InputError(f"--resume: {str(path)!r} was written with --{name} {was}, this run has {asked}")
    progress = Progress(**state["progress"])
    if progress.samples and state["options"]["seed"] != args.seed:
        raise InputError(
            f"--resume: {str(path)!r} lies inside an epoch, whose order comes from --seed {state['options']['seed']}; "
            f"this run has {args.seed}"
        )
    if progress.samples and state.get("data", training.data) != training.data:
        was, now = (f"{data['samples']} samples, {data.get('sha256')}" for data in (state["data"], training.data))
        raise InputError(
            f"--resume: {str(path)!r} lies inside an epoch of other training data ({was}) than these ({now}): take "
            f"those, or go on from a checkpoint-<epoch>"
        )
    # a run that died between its last save and its end has its records to finish
    same_run = path.resolve().parent == folder.resolve() and state["options"]["epochs"] == args.epochs
    ended = not same_run or processes.from_first(is_finished(folder))
    if progress.epoch >= epochs and args.resume != "auto" and ended:
        raise InputError(f"nothing to do: {args.resume!r} has all of {epochs} epochs; set --epochs higher")
    with as_input_error(f"--resume {path}"):
        training.load(state, progress)
    was, now = judged_by(state["options"]), judged_by(vars(args))
    if was != now:
        progress.best_metric = progress.best_epoch = None
        _logger.warning("%s was judged by %s: the best is looked for anew", path, was)
    elif progress.best_epoch is not None and not processes.from_first(
        keep_best(progress, path, folder) if processes.is_first else None
    ):
        _logger.warning("no checkpoint of epoch %d, the best before %s: it is looked for anew",
                        progress.best_epoch, path)  # fmt: skip
        progress.best_metric = progress.best_epoch = None
    if processes.is_first:
        go_back(path, folder)
    if len(state["rng"]) == processes.count:
        set_rng_state(state["rng"][processes.rank], processes.device)
        if "buffers" in state:
            training.load_buffers(state["buffers"][processes.rank])
    else:
        _logger.warning("%s was written by %d processes, this run has %d: random numbers go on differently",
                        path, len(state["rng"]), processes.count)  # fmt: skip
    _logger.info("going on from %s: epoch %d, %d samples into it", path, progress.epoch, progress.samples)
    return progress
