"""Model cards, from one template and what lies in a checkpoint's folder: its config, its recipe, its results."""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import timm
import yaml
from huggingface_hub import EvalResult, ModelCardData

from snnzoo.errors import InputError
from snnzoo.models._cfgs import INITIALISATION
from snnzoo.models._pretrained import CONFIG, WEIGHTS, read_config

RECIPE, RESULTS = "recipe.yaml", "results.json"

# The data set that a tag begins with the name of: title, Hub id if it has a slash, classes.
DATASETS = {
    "c10": ("CIFAR-10", "uoft-cs/cifar10", 10),
    "c100": ("CIFAR-100", "uoft-cs/cifar100", 100),
    "in1k": ("ImageNet-1k", "ILSVRC/imagenet-1k", 1000),
    "c10dvs": ("CIFAR10-DVS", "cifar10-dvs", 10),
}

# In every card of ours, where no reader sees it; a card without it is somebody's own.
MARK = "<!-- written by `snnzoo pack`, which writes it anew: remove this line to keep a text of your own -->"

_TEMPLATE = """\
---
{metadata}
---

{mark}

# {name}

{summary}

## Model

{model}

## Results

{results}

## Training

{training}

## Use

```python
import timm, torch
import snnzoo  # registers the model: without it timm says "Unknown model"

model = timm.create_model({arguments}).eval()
{forward}
```

Another number of classes or input channels, and any of the model's arguments, go into `create_model`.

## Sources

- Rate-based backpropagation: [arXiv 2410.11488](https://arxiv.org/abs/2410.11488)
- ANN-guided distillation: [arXiv 2503.16572](https://arxiv.org/abs/2503.16572)
"""


def render(folder: Path, repo: str) -> str:
    """The card of the checkpoint in ``folder``. Its numbers are those of ``results.json``; without one it has none.

    Args:
        folder: with ``config.json``, and ``recipe.yaml`` and ``results.json`` if there are any.
        repo: the Hub repository that the card is for, ``owner/name`` or ``owner/name@revision``.

    Raises:
        InputError: a file is missing or malformed, or the results are of other weights.
    """
    config = read_config(folder / CONFIG, repr(str(folder)))
    recipe, results = read_recipe(folder / RECIPE), read_results(folder)
    if results and results["sha256"] != config.get("sha256"):
        raise InputError(f"{str(folder / RESULTS)!r} was measured on other weights than {str(folder)!r} holds")
    name, has_weights = repo.split("/")[-1].partition("@")[0], (folder / WEIGHTS).is_file()
    return _TEMPLATE.format(
        mark=MARK,
        metadata=_metadata(name, config, recipe, results),
        name=name,
        summary=_summary(config, recipe, has_weights),
        model=_table(_facts(config)),
        results=_results(results, has_weights),
        training=_training(name, config, recipe, results),
        arguments=_arguments(name, repo, config, has_weights),
        forward=_forward(config),
    )


def read_recipe(path: Path) -> dict[str, Any]:
    """The options in a recipe, as train_distill.py's ``--config`` takes them; none if there is no such file.

    Raises:
        InputError: it does not hold options.
    """
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    except yaml.YAMLError as error:
        raise InputError(f"recipe {str(path)!r} cannot be read: {error}") from error
    if not isinstance(recipe, dict) or not isinstance(recipe.get("model_kwargs") or {}, dict):
        raise InputError(f"recipe {str(path)!r} must hold 'option: value' lines, and model_kwargs a mapping")
    return {str(key).replace("-", "_"): value for key, value in recipe.items() if value is not None}


def read_results(folder: Path) -> dict[str, Any]:
    """What a folder's ``results.json`` says, nothing if there is no such file.

    Raises:
        InputError: it is malformed.
    """
    path = folder / RESULTS
    if not path.exists():
        return {}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        return {"sha256": results["sha256"], "runs": results["runs"], **results}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"results {str(path)!r} cannot be read: {type(error).__name__}: {error}") from error


def _arguments(name: str, repo: str, config: Mapping[str, Any], has_weights: bool) -> str:
    """Of the ``create_model`` that makes this model; from the Hub if it has weights there."""
    if has_weights:
        return f'"hf-hub:{repo}", pretrained=True'
    if "initialisation" in config:
        return f'"{name}", pretrained=True'
    # a tag knows its number of classes and its input
    known = name.startswith(f"{config['architecture']}.") and name in timm.list_models(include_tags=True)
    return f'"{name if known else config["architecture"]}"'


def _forward(config: Mapping[str, Any]) -> str:
    """The code that shows the model something: an image, or frames of events, which no transform makes."""
    size, steps = config["pretrained_cfg"]["input_size"], config.get("model_args", {}).get("num_steps")
    shape = ", ".join(map(str, size))
    if size[0] not in (1, 3):
        return f"logits = model(torch.zeros(1, {f'{steps}, ' if steps else ''}{shape}))  # frames of events"
    return (
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)\n"
        f"logits = model(torch.zeros(1, {shape}))  # or: transform(image).unsqueeze(0)"
    )


def _tag(config: Mapping[str, Any]) -> str:
    return config["pretrained_cfg"].get("tag") or ""


def _dataset(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Title and id of the data set that the tag names, if the model has its number of classes."""
    *named, classes = DATASETS.get(_tag(config).removeprefix(INITIALISATION).split("_")[0], (None,))
    return tuple(named) if classes == config["num_classes"] else None


def _metadata(name: str, config: Mapping, recipe: Mapping, results: Mapping) -> str:
    dataset = _dataset(config)
    evaluation = None
    row = results.get("runs") and _default_row(results["runs"][0], config)
    if dataset and row:
        task = dict(task_type="image-classification", dataset_type=dataset[1], dataset_name=dataset[0])
        evaluation = [
            EvalResult(metric_type="accuracy", metric_name=metric, metric_value=round(row[key], 2), **task)
            for metric, key in (("Top-1", "top1"), ("Top-5", "top5"))
        ]
    data = ModelCardData(
        license=config["pretrained_cfg"].get("license"),
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["timm", "image-classification", "snnzoo", "spiking-neural-network"],
        datasets=[dataset[1]] if dataset and "/" in dataset[1] else None,
        base_model=config.get("initialisation") or _base_model(recipe),
        model_name=name,
        eval_results=evaluation,
    )
    return data.to_yaml(line_break="\n").strip()


def _base_model(recipe: Mapping) -> str | None:
    """The Hub's model that a run went on with."""
    source, _, hub_id = str(recipe.get("model")).partition(":")
    return hub_id.partition("@")[0] if source == "hf-hub" and recipe.get("pretrained") else None


def _default_row(run: list[Mapping], config: Mapping) -> Mapping | None:
    """The measurement with the model's own number of steps, if there is one."""
    steps = config.get("model_args", {}).get("num_steps")
    return next((row for row in run if row["num_steps"] == steps), None)


def _summary(config: Mapping, recipe: Mapping, has_weights: bool) -> str:
    args, dataset = config.get("model_args", {}), _dataset(config)
    steps = args.get("num_steps")
    kind = f"A spiking neural network of {steps} time steps" if steps else "An ANN"
    if "initialisation" in config:
        return (
            f"**An initialisation, not a trained network.** {kind} with the weights of the ANN "
            f"[{config['initialisation']}](https://huggingface.co/{config['initialisation']}), which has the same "
            f"shape: a place to start training from. It has not been trained as a spiking network."
        )
    text = f"{kind} for {dataset[0] if dataset else 'image classification'}, a model of the timm family `snnzoo`"
    if recipe.get("teacher"):
        text += f", {'' if has_weights else 'to be '}distilled from `{recipe['teacher']}`"
    return text + "." + ("" if has_weights else " **There are no weights yet**: this is its recipe.")


def _facts(config: Mapping) -> dict[str, Any]:
    args, cfg = config.get("model_args", {}), config["pretrained_cfg"]
    facts = {"architecture": f"`{config['architecture']}`"}
    if "num_steps" in args:
        facts["time steps T"] = args["num_steps"]
    if "surrogate" in args:  # in what pack writes; timm's save_for_hf knows no neurons
        surrogate = args["surrogate"]
        if isinstance(surrogate, dict):
            surrogate = f"{surrogate['name']}, alpha {surrogate['alpha']}"
        facts["neuron"] = f"LIF, decay {args['decay']}, threshold {args['threshold']}, {args['reset']} reset"
        facts["surrogate"] = surrogate
        decay = args.get("readout_decay", 1.0)
        facts["read-out"] = "the mean over the steps" if decay == 1 else f"leaky, decay {decay}"
    facts |= {
        "stem": args.get("stem"),
        "input": "x".join(map(str, cfg["input_size"])),
        "classes": config["num_classes"],
        "normalisation": f"mean {tuple(cfg['mean'])}, std {tuple(cfg['std'])}",
    }
    return facts | ({"sha256": config["sha256"]} if "sha256" in config else {})


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def _results(results: Mapping, has_weights: bool) -> str:
    if not results.get("runs"):
        return "Nothing has been measured with these weights." if has_weights else "No weights, so no results."
    runs = results["runs"]
    stages = [key for key in runs[0][0] if key.startswith("rate_")]
    head = ["T", "top-1 %", "top-5 %", "images", *(f"rate {key.removeprefix('rate_')}" for key in stages)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in runs[0]:
        cells = [row["num_steps"] or "none", f"{row['top1']:.2f}", f"{row['top5']:.2f}", row["images"]]
        cells += [f"{row[key]:.3f}" for key in stages]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    text = "\n".join(lines) + "\n\nMeasured with `validate.py` on the weights in this repository."
    if stages:
        text += " Rates are spikes per neuron and step."
    if len(runs) > 1:
        text += "\n\nOver runs that differ in their seed, the first of them the one here:\n"
        for rows in zip(*runs, strict=True):
            values = [row["top1"] for row in rows]
            steps = f"T = {rows[0]['num_steps']}: " if rows[0]["num_steps"] else ""
            text += (
                f"\n- {steps}top-1 {mean(values):.2f} %, standard deviation {stdev(values):.2f}, "
                f"n = {len(values)} ({', '.join(f'{value:.2f}' for value in values)})"
            )
    if teacher := results.get("teacher"):
        text += f"\n\nThe teacher, `{teacher['model']}`: top-1 {teacher['top1']:.2f} % on {teacher['images']} images."
    versions = {key: value for key, value in results.get("versions", {}).items() if value}
    if versions:
        text += f"\n\nWith {', '.join(f'{key} {value}' for key, value in versions.items())}."
    return text


def _training(name: str, config: Mapping, recipe: Mapping, results: Mapping) -> str:
    if "initialisation" in config:
        return "None: see above."
    if not recipe:
        return "The recipe is not part of this repository."
    command = f"python train_distill.py -c {RECIPE} --data-dir DIR"
    teacher = recipe.get("teacher")
    if teacher and ("teacher_checkpoint" in recipe or not (":" in teacher or timm.is_model_pretrained(teacher))):
        command += " --teacher-checkpoint FILE"
    if "initial_checkpoint" in recipe:
        command += " --initial-checkpoint FILE"
    if not teacher:
        recipe = {key: value for key, value in recipe.items() if key != "branches"}
    facts = {"started from": f"the pretrained weights of `{recipe['model']}`"} if recipe.get("pretrained") else {}
    facts |= {
        label: f"`{recipe[key]}`"
        for key, label in {
            "teacher": "teacher",
            "teacher_checkpoint": "its weights",
            "initial_checkpoint": "started from",
            "branches": "branches",
            "epochs": "epochs",
            "batch_size": "batch size",
            "opt": "optimizer",
            "lr": "learning rate",
            "weight_decay": "weight decay",
            "seed": "seed",
        }.items()
        if recipe.get(key) is not None
    }
    if results.get("epoch") is not None:
        average = ", averaged (`--model-ema`)" if results.get("averaged") else ""
        facts["these weights"] = f"of epoch {results['epoch']} of the run, counted from 0{average}"
    trained, now = (
        (args or {}).get("readout_decay", 1.0) for args in (recipe.get("model_kwargs"), config.get("model_args"))
    )
    if trained != now:
        facts["read-out"] = f"changed after the training, from a decay of {trained} to {now}"
    return f"```\n{command}\n```\n\n{_table(facts)}\n\nAll options are in `{RECIPE}`."
