"""Measurements of packed weights: what validate.py wrote, checked and put together for ``results.json``."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from snnzoo.errors import InputError
from snnzoo.hub.identity import digest

_NEEDED = ("model", "parameters", "num_steps", "images", "top1", "top5")


def read_measurements(paths: Sequence[str | Path], teacher_path: str | Path | None) -> dict[str, Any]:
    """What results.json says of the measurements in these files: without how fast, and where the weights were.

    Raises:
        InputError: a file is not what validate.py writes, or the teacher's stands alone.
    """
    if not paths:
        if teacher_path:
            raise InputError("the teacher's results stand beside the student's: give those too")
        return {}
    files = [_read_file(path, (*_NEEDED, "digest")) for path in paths]
    keys = (*_NEEDED, "input_size", "loss", "digest")
    results = {
        "runs": [
            [{k: v for k, v in row.items() if k in keys or k.startswith("rate_")} for row in file["results"]]
            for file in files
        ],
        "versions": files[0].get("versions", {}),
    }
    if teacher_path:
        teacher = _read_file(teacher_path, _NEEDED)["results"][0]
        results["teacher"] = {key: teacher[key] for key in ("model", "top1", "images")}
    return results


def _read_file(path: str | Path, needed: Sequence[str]) -> dict[str, Any]:
    try:
        measured = json.loads(Path(path).read_text(encoding="utf-8"))
        missing = {key for row in measured["results"] for key in needed if key not in row}
        if not measured["results"] or missing:
            raise ValueError(f"they do not say {', '.join(sorted(missing)) or 'anything'}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"results {str(path)!r} are not what `validate.py --results-file X.json` writes: "
            f"{type(error).__name__}: {error}"
        ) from error
    return measured


def check_measurements(results: Mapping[str, Any], model: nn.Module, recipe: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` unless measurements are what a card says of them.

    The first file has to be of this model and its weights, others of the same architecture, at the same numbers of
    steps and each of weights of its own; the teacher's of the recipe's teacher.
    """
    architecture = model.pretrained_cfg["architecture"]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    steps = [row["num_steps"] for row in results["runs"][0]]
    for run in results["runs"]:
        for row in run:
            if _differ(row["model"], architecture) or row["parameters"] != parameters:
                raise InputError(
                    f"results of a {row['model']} with {row['parameters']:,} parameters are not of this "
                    f"{architecture} with {parameters:,}"
                )
        if [row["num_steps"] for row in run] != steps:
            raise InputError(f"results of several seeds must be of the same numbers of steps as the first, {steps}")
    digests = [{row["digest"] for row in run} for run in results["runs"]]
    if digests[0] != {digest(model)}:
        raise InputError(
            "the results are of other weights than these, or of another neuron: measure these with validate.py (of a "
            "run with --model-ema its averaged weights are --use-ema, here and there)"
        )
    if len(set().union(*digests)) < len(digests):
        raise InputError("results of several seeds must be of different weights; two of these files are of the same")
    teacher, expected = results.get("teacher"), recipe.get("teacher")
    if teacher and recipe and (not expected or _differ(teacher["model"], expected)):
        raise InputError(f"the teacher's results are of a {teacher['model']}, the recipe's teacher is {expected}")


def _differ(name: str, other: str) -> bool:
    """Whether two names are of different architectures, as far as names say."""
    return ":" not in name + other and name.split(".")[0] != other.split(".")[0]
