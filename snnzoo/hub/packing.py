"""Checkpoints packed into a folder that has the form of a Hub repository.

A folder holds ``config.json`` (timm's, with everything that makes the model again), ``model.safetensors``,
``README.md`` (the model card), and where there are any ``recipe.yaml`` and ``results.json``. Nothing is ever pickled.
"""

import contextlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
import yaml
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf  # the half of timm's save_for_hf that writes no weights
from timm.utils import unwrap_model
from torch import nn

from snnzoo.errors import InputError
from snnzoo.files import atomic_path, copy, write_atomically
from snnzoo.hub import cards
from snnzoo.hub.cards import RECIPE, RESULTS
from snnzoo.hub.identity import model_args
from snnzoo.hub.measurements import check_measurements, read_measurements
from snnzoo.hub.run import Run
from snnzoo.models._cfgs import INITIALISATION
from snnzoo.models._pretrained import CONFIG, WEIGHTS, in_folder, read_config, sha256
from snnzoo.modes import evaluating
from snnzoo.weights import create_model, made_with, prepared_as

_logger = logging.getLogger(__name__)

CARD = "README.md"
LICENSE = "LICENSE"  # the notice that a licence wants beside the weights, where somebody has put it there
FILES = (CONFIG, WEIGHTS, CARD, RECIPE, RESULTS, LICENSE)

_NO_LICENCE = "the weights need a licence, such as license='apache-2.0': nobody may use them without"


def pack(
    folder: str | Path,
    model: nn.Module | None = None,
    run: Run | None = None,
    license: str | None = None,
    recipe: str | Path | None = None,
    results: Iterable[str | Path] = (),
    teacher_results: str | Path | None = None,
    repo: str | None = None,
) -> Path:
    """Write a checkpoint's folder, or complete one: config, weights, recipe, results, card.

    The name of the folder, ``<model>.<tag>``, says which data set the weights are for.

    Args:
        folder: what is there stays if nothing here replaces it; new weights take old results away.
        model: its weights and arguments; without it the folder keeps its own, or has none.
        run: that the model is of, see :func:`snnzoo.hub.load`; its options become the recipe.
        license: of the weights, as the Hub writes it (``apache-2.0``); needed once.
        recipe: a YAML file of train_distill.py's options, instead of the run's.
        results: files of ``validate.py --results-file X.json``: of these weights, then of runs with other seeds.
        teacher_results: the same of the teacher.
        repo: Hub repository that the card is for; ours, with the folder's name, by default.

    Returns:
        The folder.

    Raises:
        InputError: the licence is missing, a file is malformed, or results are of another model.
    """
    folder, run = Path(folder), run or Run({})
    config = read_config(folder / CONFIG, repr(str(folder))) if (folder / CONFIG).is_file() else None
    license = license or (config and config["pretrained_cfg"].get("license"))
    if not license:
        raise InputError(_NO_LICENCE)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{str(folder)!r} is a file: name a folder to pack into")
    options, has_weights = _recipe(folder, run, recipe), model is not None or (folder / WEIGHTS).is_file()
    if model is None and has_weights and config is None:
        raise InputError(f"{str(folder)!r} has weights and no {CONFIG} that says of which model: give the checkpoint")
    described = None  # the folder's own config stays
    if model is not None:
        described = _packable(model)
    elif not has_weights:
        described = _untrained(folder, options)
    arguments = None if described is None else model_args(described)
    measured = read_measurements(list(results), teacher_results)
    if measured and not has_weights:
        raise InputError(f"results are of weights, and {str(folder)!r} has none: give the checkpoint")
    if measured:
        of = create_model(f"local-dir:{folder}", pretrained=True) if described is None else described
        check_measurements(measured, of, options)
    ours = not (folder / CARD).is_file() or cards.MARK in (folder / CARD).read_text(encoding="utf-8")
    with _all_or_nothing(folder) as made:
        if recipe:
            copy(Path(recipe), made / RECIPE)
        elif run.options:
            write_atomically(made / RECIPE, yaml.safe_dump(run.recipe, sort_keys=False))
        if model is not None:
            weights = {key: value.detach().cpu().contiguous() for key, value in described.state_dict().items()}
            with atomic_path(made / WEIGHTS) as temporary:
                save_file(weights, temporary, metadata={"format": "pt"})
            (made / RESULTS).unlink(missing_ok=True)
        if described is not None:
            data_config = prepared_as(run.options or options, described.in_chans)
            _write_config(made, described, arguments, data_config, license)
        else:
            _complete_config(made, license)
        if measured:
            facts = {"sha256": in_folder(made).config["sha256"], "epoch": run.epoch, "averaged": run.averaged}
            write_atomically(made / RESULTS, json.dumps(facts | measured, indent=2) + "\n")
        if ours:
            write_card(made, repo)
    if not ours:
        _logger.warning("%s is not one that `snnzoo pack` has written, and stays as it is", folder / CARD)
    return folder


@contextlib.contextmanager
def _all_or_nothing(folder: Path) -> Iterator[Path]:
    """A folder of the same name and contents to make files in; they go into ``folder`` when the block has succeeded."""
    with TemporaryDirectory() as temporary:
        made = Path(temporary) / folder.resolve().name
        made.mkdir()
        for file in FILES:
            if (folder / file).is_file():
                (made / file).symlink_to((folder / file).resolve())
        yield made
        for file in FILES:
            if not (made / file).exists():
                (folder / file).unlink(missing_ok=True)
            elif not (made / file).is_symlink():
                copy(made / file, folder / file)


def write_card(folder: Path, repo: str | None = None) -> None:
    """Write a folder's model card anew from what else is in it; see :func:`snnzoo.hub.cards.render`."""
    write_atomically(folder / CARD, cards.render(folder, repo or f"snnzoo/{folder.resolve().name}"))


def _packable(model: nn.Module) -> nn.Module:
    """A model without what torch.compile and data parallelism wrap around it."""
    model = unwrap_model(model)
    if not hasattr(model, "pretrained_cfg") or not hasattr(model, "num_classes"):
        raise InputError(f"{type(model).__name__} is not a timm model with a classifier: it cannot be made by a name")
    other = {p.dtype for p in model.parameters()} - {torch.float32}
    if other:
        raise InputError(f"weights are packed in float32, these are {other.pop()}: give model.float()")
    return model


def _recipe(folder: Path, run: Run, given: str | Path | None) -> Mapping[str, Any]:
    """The options of the recipe that a folder will have."""
    if given is None and run.options:
        return run.recipe
    if given is not None and not Path(given).is_file():
        raise InputError(f"no file at {str(given)!r}")
    return cards.read_recipe(folder / RECIPE if given is None else Path(given))


def _untrained(folder: Path, recipe: Mapping[str, Any]) -> nn.Module:
    """The model that a folder's recipe or name is of, without weights."""
    name = folder.resolve().name
    full = name if name in _tagged_models() else recipe.get("model", name)
    return create_model(full, device="meta", grad_method=recipe.get("grad_method"), **made_with(recipe))


def _write_config(
    folder: Path, model: nn.Module, arguments: dict[str, Any], data_config: Mapping[str, Any], license: str
) -> None:
    architecture = model.pretrained_cfg["architecture"]
    name, _, tag = folder.resolve().name.partition(".")
    described = {"tag": tag if name == architecture and tag else None, "license": license}
    extra: dict[str, Any] = {"pretrained_cfg": described}
    if (folder / WEIGHTS).is_file():
        extra["sha256"] = sha256(folder / WEIGHTS)
    if described["tag"] and tag.startswith(INITIALISATION) and f"{architecture}.{tag}" in _tagged_models():
        extra["initialisation"] = timm.get_pretrained_cfg(f"{architecture}.{tag}").hf_hub_id
    elif (model.pretrained_cfg.get("tag") or "").startswith(INITIALISATION):
        described["description"] = None  # it is no initialisation any more
    if len(model.pretrained_cfg.get("label_names") or ()) == model.num_classes:  # else they were of other classes
        labels = ("label_names", "label_descriptions")
        extra |= {key: model.pretrained_cfg[key] for key in labels if model.pretrained_cfg.get(key)}
    with atomic_path(folder / CONFIG) as temporary:
        save_config_for_hf(model, temporary, extra, arguments, data_config)


def _complete_config(folder: Path, license: str) -> None:
    """Give a folder with weights the licence, and the sha256 that other people's folders lack."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    described = config.get("pretrained_cfg", config)
    if described.get("license") != license or "sha256" not in config:
        described["license"] = license
        config.setdefault("sha256", sha256(folder / WEIGHTS))
        write_atomically(folder / CONFIG, json.dumps(config, indent=2))


def _tagged_models() -> set[str]:
    return set(timm.list_models(include_tags=True))


def copy_packed(source: Path, folder: Path, repo: str) -> None:
    """A folder made by pack, with a card for ``repo``; a card that somebody has written stays.

    Raises:
        InputError: there is no such folder, or its config names no licence.
    """
    license = in_folder(source).config["pretrained_cfg"].get("license")
    if not license:
        raise InputError(f"{str(source / CONFIG)!r}: {_NO_LICENCE} (`snnzoo pack {source} --license ID` adds it)")
    for file in FILES:
        if (source / file).is_file():
            copy(source / file, folder / file)
    _complete_config(folder, license)
    card = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else None
    named = card and re.search(r'"hf-hub:([^"]+)", pretrained=True', card)
    if card is None or (named and card == cards.render(folder, named[1])):
        write_card(folder, repo)
    else:
        _logger.warning("%s is not the card that `snnzoo pack` makes and is pushed as it is", source / CARD)


@torch.no_grad()
def validate(folder: str | Path, model: nn.Module | None = None) -> None:
    """Load what a folder holds as anybody will, and compare it with the model that it was packed from.

    Raises:
        InputError: it does not load, or does not give the same outputs.
    """
    loaded = create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = read_config(Path(folder) / CONFIG, repr(str(folder)))
    size = config["pretrained_cfg"]["input_size"]
    images = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    outputs = loaded(images)
    if not torch.isfinite(outputs).all():
        raise InputError(f"the model packed in {str(folder)!r} has outputs that are not finite")
    if model is None:
        return
    model = unwrap_model(model)
    with evaluating(model):
        expected = model(images.to(next(model.parameters()).device)).cpu()
    weights = loaded.state_dict()
    same = all(torch.equal(value.cpu(), weights[key]) for key, value in model.state_dict().items())
    if not same or model_args(loaded) != model_args(model) or not torch.allclose(outputs, expected, atol=1e-5):
        raise InputError(
            f"the model packed in {str(folder)!r} does not come back the same: outputs differ by "
            f"{float((outputs - expected).abs().max()):.3g}; arguments {model_args(loaded)}, not {model_args(model)}"
        )
