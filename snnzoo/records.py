"""What a run leaves to be read: a table of its epochs, a summary, and on request TensorBoard and Weights & Biases."""

import argparse
import contextlib
import csv
import hashlib
import importlib
import io
import json
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
import yaml

from snnzoo.checkpoints import Progress
from snnzoo.errors import InputError
from snnzoo.files import write_atomically
from snnzoo.version import __version__

TABLE, SUMMARY = "summary.csv", "summary.json"


class Records:
    """A run's records, kept whole after every epoch.

    Args:
        folder: of the run.
        args: the run's options.
        facts: what else the summary says, such as the data's fingerprint.
        progress: of the run, now and later; rows of an interrupted run that are ahead of it are dropped.

    Raises:
        InputError: an option asks for a library that is not installed.
    """

    def __init__(self, folder: Path, args: argparse.Namespace, facts: dict[str, Any], progress: Progress):
        self.folder, self._progress = folder, progress
        again = {option: value for option, value in vars(args).items() if option != "resume"}
        write_atomically(folder / "args.yaml", yaml.safe_dump(again))
        self.rows = [row for row in read_table(folder / TABLE) if row["epoch"] < progress.epoch]
        self._summary = {
            "options": vars(args),
            "versions": versions(),
            "git": git_revision(),
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **facts,
        }
        self._board = self._wandb = None
        if args.log_tensorboard:
            board = _import("torch.utils.tensorboard", "--log-tensorboard", "tensorboard")
            self._board = board.SummaryWriter(folder, purge_step=progress.epoch)
        if args.log_wandb:
            # one id for one folder: a resumed run goes on in the same place
            name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
            self._wandb = _import("wandb", "--log-wandb", "wandb").init(
                project=args.wandb_project, name=folder.name, id=name, resume="allow", config=vars(args), dir=folder
            )
        self._write_summary(finished=False)

    def epoch(self, row: dict[str, float]) -> None:
        """Record an epoch: its metrics by name, ``epoch`` among them."""
        self.rows.append(row)
        write_atomically(self.folder / TABLE, _as_csv(self.rows))
        self._write_summary(finished=False)
        if self._board:
            for name, value in row.items():
                self._board.add_scalar(name.replace("_", "/", 1), value, row["epoch"])
            self._board.flush()
        if self._wandb:
            self._wandb.log(row, step=int(row["epoch"]))

    def close(self, finished: bool) -> None:
        """The run has ended; ``finished`` if with its last epoch."""
        self._write_summary(finished)
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish(exit_code=0 if finished else 1)

    def _write_summary(self, finished: bool) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        last = self.rows[-1] if self.rows else None
        summary = {"finished": finished, "epochs": len(self.rows), "last": last, **self._summary}
        if self._progress.best_epoch is not None:
            options, value, epoch = self._summary["options"], self._progress.best_metric, self._progress.best_epoch
            summary["best"] = {"metric": options["eval_metric"], "averaged": options["model_ema"], "value": value,
                               "epoch": epoch}  # fmt: skip
        summary["written"] = now
        write_atomically(self.folder / SUMMARY, json.dumps(summary, indent=2) + "\n")


def is_finished(folder: Path) -> bool:
    """Whether the records of a run's folder say that it has ended with its last epoch."""
    with contextlib.suppress(OSError, ValueError):  # none, or torn: they are written anew
        return bool(json.loads((folder / SUMMARY).read_text())["finished"])
    return False


def _import(module: str, option: str, extra: str):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{option} needs {extra}: pip install 'snnzoo[{extra}]'") from error


def _as_csv(rows: list[dict[str, float]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_table(path: str | Path) -> list[dict[str, float]]:
    """The rows of a run's ``summary.csv``, numbers by name; none if there is no such file.

    Raises:
        InputError: the file is something else.
    """
    path = Path(path)
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
        return [row | {"epoch": int(row["epoch"])} for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        why = "it has no column 'epoch'" if isinstance(error, KeyError) else error
        raise InputError(f"{str(path)!r} is not the {TABLE} of a run: {why}") from error


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """The rows that ``validate.py --results-file`` wrote, ``.csv`` (all values strings) or ``.json``.

    Raises:
        InputError: the file is not there, or is something else.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(text)))
        elif "results" in (content := json.loads(text)):
            rows = content["results"]
        else:
            raise ValueError("it has no 'results'")
        if not rows or not all("top1" in row and "model" in row and "num_steps" in row for row in rows):
            raise ValueError("it has no model, num_steps and top1")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"results {str(path)!r} are not what `validate.py --results-file` writes: {error}") from error
    return rows


def versions() -> dict[str, str | None]:
    """Of what computes a run's numbers."""
    return {
        "snnzoo": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "numpy": np.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": f"{platform.system()} {platform.machine()}",
    }


def git_revision() -> dict[str, Any] | None:
    """Revision of the source tree that this package runs from, and whether it was changed since; None if it is not."""
    here = Path(__file__).parent
    try:
        asked = [["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]]
        revision, changes = (
            subprocess.run(["git", "-C", str(here), *ask], capture_output=True, text=True, check=True).stdout.strip()
            for ask in asked
        )
        tracked = subprocess.run(
            ["git", "-C", str(here), "ls-files", "--error-unmatch", Path(__file__).name],
            capture_output=True, check=False,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    # an installed copy may lie inside somebody else's repository
    return {"revision": revision, "changed": bool(changes)} if tracked.returncode == 0 else None
