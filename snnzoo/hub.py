"""Checkpoints in the form of a Hub repository: packed into a folder, pushed, pulled.

A folder holds ``config.json`` (timm's, with everything that makes the model again), ``model.safetensors``,
``README.md`` (the model card), and where there are any ``recipe.yaml`` and ``results.json``. Nothing is ever pickled.
"""

import json
import logging
import random
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf  # the half of timm's save_for_hf that writes no weights
from timm.models._input import get_model_args
from timm.utils import unwrap_model
from torch import nn

from snnzoo import cards
from snnzoo.cards import RECIPE, RESULTS
from snnzoo.errors import InputError
from snnzoo.files import atomic_path, write_atomically
from snnzoo.layers import LIF
from snnzoo.models._cfgs import INITIALISATION
from snnzoo.models._pretrained import (
    CONFIG,
    HUB_CONFIGS,
    SHIPPED,
    WEIGHTS,
    hub_errors,
    in_folder,
    on_hub,
    organisation,
    read_config,
    sha256,
)
from snnzoo.models._spiking import SpikingModel
from snnzoo.neurons import Surrogate
from snnzoo.version import __version__
from snnzoo.weights import create_model, read_run

_logger = logging.getLogger(__name__)

CARD = "README.md"
LICENSE = "LICENSE"  # the notice that a licence wants beside the weights, where somebody has put it there
FILES = (CONFIG, WEIGHTS, CARD, RECIPE, RESULTS, LICENSE)

# Options of a run that say nothing about its outcome, or that are a path on somebody's machine.
_PERSONAL = (
    "data_dir output experiment resume config device workers dataset_download class_map log_interval log_tensorboard "
    "log_wandb wandb_project checkpoint_hist recovery_interval validation_batch_size"
).split()
_FILES_OF_WEIGHTS = ("teacher_checkpoint", "initial_checkpoint")
_LOCAL = "local-dir:"
_NO_LICENCE = "the weights need a licence, such as license='apache-2.0': nobody may use them without"


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
                kept[key] = _LOCAL + Path(value).name
        return kept

    @property
    def data_config(self) -> dict[str, Any]:
        """How the run prepared its images, where its options say so."""
        keys = ("input_size", "mean", "std", "interpolation", "crop_pct")
        return {key: self.options[key] for key in keys if self.options.get(key)}


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
    options, epoch = read_run(checkpoint)
    name = name or options.get("model")
    if not name:
        raise InputError(f"checkpoint {str(checkpoint)!r} does not say which model it is of: give the model's name")
    kwargs = {"grad_method": options.get("grad_method")} | kwargs
    return create_model(name, checkpoint, use_ema, **kwargs), Run(options, epoch, use_ema)


def model_args(model: nn.Module) -> dict[str, Any]:
    """The arguments that make ``model`` again, with those of its neurons and what was changed since, as JSON has them.

    Raises:
        InputError: one has no form in JSON.
    """
    own = {"stem": model.stem} if hasattr(model, "stem") else {}
    if isinstance(model, SpikingModel):
        neuron = next(module.params for module in model.modules() if isinstance(module, LIF))
        surrogate = neuron.surrogate
        own |= dict(
            num_steps=model.num_steps,
            grad_method=model.grad_method,
            decay=neuron.decay,
            threshold=neuron.threshold,
            reset=neuron.reset,
            detach_reset=neuron.detach_reset,
            surrogate=surrogate.name if surrogate == Surrogate(surrogate.name) else asdict(surrogate),
        )
    args = get_model_args(model, own)
    try:
        return json.loads(json.dumps(args))
    except TypeError as error:
        raise InputError(f"an argument that {type(model).__name__} was made with has no JSON form: {error}") from error


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
        run: that the model is of, see :func:`load`; its options become the recipe.
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
    if model is not None:
        model = _packable(model)
    measured = _read_results([Path(path) for path in results], teacher_results)
    if measured:
        _check_results(measured, create_model(f"local-dir:{folder}", device="meta") if model is None else model)
    folder.mkdir(parents=True, exist_ok=True)
    if recipe:
        _copy(Path(recipe), folder / RECIPE)
    elif run.options:
        write_atomically(folder / RECIPE, yaml.safe_dump(run.recipe, sort_keys=False))
    (folder / CARD).unlink(missing_ok=True)  # rather none than one with the numbers of other weights
    if model is not None:
        weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        with atomic_path(folder / WEIGHTS) as temporary:
            save_file(weights, temporary, metadata={"format": "pt"})
            temporary.chmod(0o644)  # safetensors makes it for the owner alone
        (folder / RESULTS).unlink(missing_ok=True)
    if model is not None or not (folder / WEIGHTS).is_file():
        _write_config(folder, _untrained(folder) if model is None else model, run, license)
    else:
        _complete_config(folder, license)
    if measured:
        facts = {"sha256": in_folder(folder).config["sha256"], "epoch": run.epoch, "averaged": run.averaged}
        write_atomically(folder / RESULTS, json.dumps(facts | measured, indent=2) + "\n")
    write_card(folder, repo)
    return folder


def write_card(folder: Path, repo: str | None = None) -> None:
    """Write a folder's model card anew from what else is in it; see :func:`snnzoo.cards.render`."""
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


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        raise InputError(f"no file at {str(source)!r}")
    if source.resolve() != target.resolve():
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)


def _untrained(folder: Path) -> nn.Module:
    """The model that a folder's recipe or name is of, without weights."""
    recipe, name = cards.read_recipe(folder), folder.resolve().name
    full = name if name in _tagged_models() else recipe.get("model", name)
    kwargs = {key: recipe.get(key) for key in ("num_classes", "num_steps", "reset", "grad_method")}
    if recipe.get("input_size"):
        kwargs["in_chans"] = recipe["input_size"][0]
    return create_model(full, device="meta", **kwargs, **recipe.get("model_kwargs", {}))


def _write_config(folder: Path, model: nn.Module, run: Run, license: str) -> None:
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
    data_config = run.data_config or Run(cards.read_recipe(folder)).data_config
    with atomic_path(folder / CONFIG) as temporary:
        save_config_for_hf(model, temporary, extra, model_args(model), data_config)


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


def _read_results(paths: list[Path], teacher_path: str | Path | None) -> dict[str, Any]:
    """What results.json says of the measurements in these files: without how fast, and where the weights were."""
    if not paths:
        if teacher_path:
            raise InputError("the teacher's results stand beside the student's: give those too")
        return {}
    files = [_read_measurements(path) for path in paths]
    keys = ("model", "parameters", "num_steps", "images", "input_size", "loss", "top1", "top5")
    results = {
        "runs": [
            [{k: v for k, v in row.items() if k in keys or k.startswith("rate_")} for row in file["results"]]
            for file in files
        ],
        "versions": files[0].get("versions", {}),
    }
    if teacher_path:
        teacher = _read_measurements(teacher_path)["results"][0]
        results["teacher"] = {key: teacher[key] for key in ("model", "top1", "images")}
    return results


def _read_measurements(path: str | Path) -> dict[str, Any]:
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


def _check_results(results: Mapping[str, Any], model: nn.Module) -> None:
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


@torch.no_grad()
def validate(folder: Path, model: nn.Module | None = None) -> None:
    """Load what a folder holds as anybody will, and compare it with the model that it was packed from.

    Raises:
        InputError: it does not load, or does not give the same outputs.
    """
    loaded = create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = read_config(folder / CONFIG, repr(str(folder)))
    size = config["pretrained_cfg"]["input_size"]
    images = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    outputs = loaded(images)
    if not torch.isfinite(outputs).all():
        raise InputError(f"the model packed in {str(folder)!r} has outputs that are not finite")
    if model is None:
        return
    modes = {module: module.training for module in model.modules()}
    expected = model.eval()(images.to(next(model.parameters()).device)).cpu()
    for module, training in modes.items():
        module.training = training  # as it was: some may be frozen
    weights = loaded.state_dict()
    same = all(torch.equal(value.cpu(), weights[key]) for key, value in model.state_dict().items())
    if not same or model_args(loaded) != model_args(model) or not torch.allclose(outputs, expected, atol=1e-5):
        raise InputError(
            f"the model packed in {str(folder)!r} does not come back the same: outputs differ by "
            f"{float((outputs - expected).abs().max()):.3g}; arguments {model_args(loaded)}, not {model_args(model)}"
        )


@dataclass(frozen=True)
class Pushed:
    """What :func:`push` did.

    Attributes:
        files: sizes in bytes by name.
        url: of the commit; None for a dry run.
    """

    files: Mapping[str, int]
    url: str | None


def push(
    source: nn.Module | str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
    message: str = "Add model",
    **details: Any,
) -> Pushed:
    """Put a checkpoint into a Hub repository, in one commit and as safetensors alone.

    It is packed, loaded back and compared before anything is sent.

    Args:
        source: a model, or a folder from :func:`pack`.
        repo: ``owner/name``, made if it does not exist. With a name ``<model>.<tag>`` and the owner in
            ``SNNZOO_HUB_ORG``, ``create_model('<model>.<tag>', pretrained=True)`` finds it.
        private: make it private, if it is made.
        revision: branch, made if it does not exist; main by default.
        token: of the Hub; by default from HF_TOKEN or ``hf auth login``.
        dry_run: do everything but talk to the Hub.
        message: of the commit.
        **details: of a model, as for :func:`pack`; a folder is pushed as it is, its card for this repository if it is
            one of ours.

    Raises:
        InputError: the checkpoint does not come back as it was, or the Hub refuses it or cannot be reached.
    """
    name = _name_in(repo)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / name
        model = None
        if isinstance(source, nn.Module):
            model = _packable(source)
            pack(folder, model, repo=repo, **details)
        elif details:
            raise InputError(f"{', '.join(details)}: a folder is pushed as it is, pack({str(source)!r}, …) changes it")
        else:
            _copy_packed(Path(source), folder, repo)
        validate(folder, model)
        files = {file: (folder / file).stat().st_size for file in FILES if (folder / file).is_file()}
        url = None if dry_run else _commit(folder, files, repo, private, revision, token, message)
    return Pushed(files, url)


def _name_in(repo: str) -> str:
    try:
        validate_repo_id(repo)
        _, name = repo.split("/")
    except ValueError as error:  # the client's own are ValueErrors
        raise InputError(
            f"{repo!r} is not a Hub repository: to push to it must be OWNER/NAME, and a branch is the revision"
        ) from error
    return name


def _copy_packed(source: Path, folder: Path, repo: str) -> None:
    """A folder made by pack, with a card for ``repo``; a card that somebody has written stays."""
    license = in_folder(source).config["pretrained_cfg"].get("license")
    if not license:
        raise InputError(f"{str(source / CONFIG)!r}: {_NO_LICENCE} (`snnzoo pack {source} --license ID` adds it)")
    for file in FILES:
        if (source / file).is_file():
            _copy(source / file, folder / file)
    _complete_config(folder, license)
    card = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else None
    named = card and re.search(r'"hf-hub:([^"]+)", pretrained=True', card)
    if card is None or (named and card == cards.render(folder, named[1])):
        write_card(folder, repo)
    else:
        _logger.warning("%s is not the card that `snnzoo pack` makes and is pushed as it is", source / CARD)


def _commit(
    folder: Path, files: Iterable[str], repo: str, private: bool, revision: str | None, token: str | None, message: str
) -> str:
    # A token read from a file ends in a newline, which the client would refuse with the token in its message.
    api = HfApi(token=(token or "").strip() or None, library_name="snnzoo", library_version=__version__)
    with hub_errors(repo):
        api.create_repo(repo, private=private or None, exist_ok=True)
        if revision:
            api.create_branch(repo, branch=revision, exist_ok=True)
        for attempt in range(6):
            try:
                there = api.list_repo_files(repo, revision=revision)
                # What came with other weights does not belong to these.
                operations = [CommitOperationDelete(file) for file in FILES if file in there and file not in files]
                operations += [CommitOperationAdd(file, folder / file) for file in files]
                commit = api.create_commit(repo, operations, commit_message=message, revision=revision)
                return commit.commit_url
            except HfHubHTTPError as error:
                # somebody else's commit came in between
                if error.response.status_code not in (409, 412) or attempt == 5:
                    raise
                time.sleep(random.uniform(0.1, 0.5) * 2**attempt)
    raise AssertionError


def pull(repo: str, revision: str | None = None, folder: str | Path | None = None) -> Path:
    """Fetch a checkpoint from the Hub: config, weights (safetensors alone, verified), card, recipe, results, licence.

    Args:
        repo: ``owner/name``, or ``<model>.<tag>`` of our organisation.
        revision: branch, tag or commit.
        folder: to copy it to; by default it stays in the Hub's cache.

    Returns:
        The folder; ``timm.create_model('local-dir:<folder>', pretrained=True)`` makes the model.

    Raises:
        InputError: there is no such checkpoint, it may not be read, or it is damaged.
    """
    repo = repo.removeprefix("hf-hub:")
    if revision and "@" in repo:
        raise InputError(f"{repo!r} names a revision, and so does revision={revision!r}: name one")
    repo = repo if "/" in repo else f"{organisation()}/{repo}"
    found = on_hub(f"{repo}@{revision}" if revision else repo)
    here = found.file.parent
    at_commit = dict(repo_id=repo.partition("@")[0], revision=here.name)
    # Of a commit the cache knows for good what it has and has not.
    beside = (CARD, RECIPE, RESULTS, LICENSE)
    unknown = [file for file in beside if try_to_load_from_cache(filename=file, **at_commit) is None]
    for i, file in enumerate(unknown):
        with hub_errors(repo):
            try:
                hf_hub_download(filename=file, **at_commit)
            except LocalEntryNotFoundError:
                _logger.warning("%s of %s: not asked for, the Hub cannot be reached", ", ".join(unknown[i:]), repo)
                break
            except EntryNotFoundError:
                _logger.debug("%s has no %s", repo, file)
    if folder is None:
        return here
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{str(folder)!r} is a file: name a folder to copy to")
    fetched = [file for file in FILES if (here / file).is_file()]
    strange = [file for file in FILES if (folder / file).is_file() and file not in fetched]
    if strange:
        raise InputError(
            f"folder {str(folder)!r} has {', '.join(strange)}, which {repo} has not: name another folder, lest they mix"
        )
    for file in fetched:
        _copy(here / file, folder / file)
    return folder


@dataclass(frozen=True)
class Listed:
    """A model of the zoo.

    Attributes:
        name: with its tag.
        weights: where its pretrained weights are, ``''`` if there are none.
    """

    name: str
    weights: str


def list_models(pattern: str = "*", pretrained: bool = False) -> list[Listed]:
    """The zoo's models with their tags.

    Args:
        pattern: of names, with ``*``.
        pretrained: only those with weights, for which the Hub is asked what our organisation has published; where it
            cannot be reached, a warning says so.
    """
    wanted = set(timm.list_models(pattern, include_tags=True))
    published = set()
    if pretrained:
        try:
            with hub_errors(organisation()):
                published = {model.id for model in HfApi().list_models(author=organisation())}
        except InputError as error:
            _logger.warning("what the Hub has is not listed: %s", error)
    listed = []
    for name in timm.list_models(["snn_*", "cifar_*"], include_tags=True):
        weights = ""
        if name in SHIPPED:
            weights = f"in the package, {HUB_CONFIGS.name}/{name}"
        elif (cfg := timm.get_pretrained_cfg(name)).hf_hub_id:
            weights = f"initialisation, {cfg.hf_hub_id}"
        elif f"{organisation()}/{name}" in published:
            weights = f"on the Hub, {organisation()}/{name}"
        if name in wanted and (weights or not pretrained):
            listed.append(Listed(name, weights))
    return listed
