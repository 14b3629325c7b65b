"""Measurements of packed weights: what validate.py wrote, checked and put together for ``results.json``."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from snnzoo.errors import InputError


def read_measurements(paths: Sequence[str | Path], teacher_path: str | Path | None) -> dict[str, Any]:
    """What results.json says of the measurements in these files: without how fast, and where the weights were.

    Raises:
        InputError: a file is not what validate.py writes, or the teacher's stands alone.
    """
    if not paths:
        if teacher_path:
            raise InputError("the teacher's results stand beside the student's: give those too")
        return {}
    files = [_read_file(path) for path in paths]
    keys = ("model", "parameters", "num_steps", "images", "input_size", "loss", "top1", "top5")
    results = {
        "runs": [
            [{k: v for k, v in row.items() if k in keys or k.startswith("rate_")} for row in file["results"]]
            for file in files
        ],
        "versions": files[0].get("versions", {}),
    }
    if teacher_path:
        teacher = _read_file(teacher_path)["results"][0]
        results["teacher"] = {key: teacher[key] for key in ("model", "top1", "images")}
    return results


def _read_file(path: str | Path) -> dict[str, Any]:
    try:
        measured = json.loads(Path(path).read_text(encoding="utf-8"))
        needed = ("model", "parameters", "num_steps", "images", "top1", "top5")
        missing = {key for row in measured["results"] for key in needed if key not in row}
        if not measured["results"] or missing:
            raise ValueError(f"they do not say {', '.join(sorted(missing)) or 'anything'}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"results {str(path)!r} are not what `validate.py --results-file X.json` writes: "
            f"{type(error).__name__}: {error}"
        ) from error
    return measured


def check_measurements(results: Mapping[str, Any], model: nn.Module) -> None:
    """Raise :class:`InputError` unless the measurements are all of this model, and of the same numbers of steps."""
    architecture = model.pretrained_cfg["architecture"]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    steps = [row["num_steps"] for row in results["runs"][0]]
    for run in results["runs"]:
        for row in run:
            other = ":" not in row["model"] and row["model"].split(".")[0] != architecture
            if other or row["parameters"] != parameters:
                raise InputError(
                    f"results of a {row['model']} with {row['parameters']:,} parameters are not of this "
                    f"{architecture} with {parameters:,}"
                )
        if [row["num_steps"] for row in run] != steps:
            raise InputError(f"results of several seeds must be of the same numbers of steps as the first, {steps}")
