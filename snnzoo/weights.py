"""Making models and loading their weights, with errors that a person can act on."""

import difflib
import logging
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from timm.models import load_checkpoint, parse_model_name
from timm.utils.checkpoint_saver import load_checkpoint_metadata
from torch import nn

from snnzoo.errors import InputError
from snnzoo.grid import plain_weights
from snnzoo.models._pretrained import (
    CONFIG,
    ELSEWHERE,
    WEIGHTS,
    as_input_error,
    config_on_hub,
    in_folder,
    loading_errors,
    on_hub,
    read_config,
)

_logger = logging.getLogger(__name__)

# how a run has prepared its images, where it was told
PREPARED = ("input_size", "mean", "std", "interpolation", "crop_pct")


def create_model(
    name: str, checkpoint: str | Path | None = None, use_ema: bool | None = False, **kwargs: Any
) -> nn.Module:
    """``timm.create_model`` that raises :class:`InputError` for what the caller can mend.

    Args:
        name: a model's name, with a tag or not, or timm's ``hf-hub:…`` and ``local-dir:…`` forms.
        checkpoint: file to load weights from, see :func:`load_weights`. If it is of a run of this model, or of one that
            differs in the T of its name alone, the model is made as the run's options say, see :func:`made_with`, but
            for T, and images are prepared as the run prepared them.
        use_ema: take the checkpoint's averaged weights; None for those if there are any, as timm does.
        **kwargs: as for ``timm.create_model``, before what the checkpoint says; those that are None are left out.

    Raises:
        InputError: no such model, an argument it does not take, no pretrained weights, or none that are safetensors.
    """
    name = _known_name(name)
    if use_ema and not checkpoint:
        raise InputError("averaged weights are those of a training checkpoint: give its file")
    for key, least in (("in_chans", 1), ("num_classes", 0)):
        if kwargs.get(key) is not None and kwargs[key] < least:
            raise InputError(f"model {name!r}: {key} must be at least {least}, got {kwargs[key]}")
    options, _, arch = read_run(checkpoint) if checkpoint else ({}, None, None)
    asked, of_run = name.split(".")[0], {str(options.get("model")).split(".")[0], arch}
    of_this_model = _but_for_steps(asked) in map(_but_for_steps, of_run)
    if of_this_model:
        as_run = made_with(options)
        if asked not in of_run:  # it has its own T
            as_run.pop("num_steps", None)
        kwargs = as_run | {key: value for key, value in kwargs.items() if value is not None}
    kwargs |= _prepare_source(name, kwargs)
    try:
        with loading_errors(name):
            model = timm.create_model(name, **kwargs)
    except TypeError as error:  # an argument that it does not take, or of the wrong type
        raise InputError(f"model {name!r}: {error}") from error
    except RuntimeError as error:
        if "No pretrained weights exist" in str(error):
            raise InputError(f"{error} To use weights of your own, give their file as the checkpoint.") from error
        if "Unknown model" in str(error):
            raise InputError(f"model {name!r} is of an architecture that is not registered here: {error}") from error
        raise
    except OSError as error:  # the errors of the Hub's client are OSErrors
        if ":" in name:
            raise InputError(f"model {name!r}: {error}") from error
        raise as_input_error(error, timm.get_pretrained_cfg(name).hf_hub_id or name) from error
    if checkpoint:
        averages = has_averages(checkpoint)
        load_weights(model, checkpoint, averages if use_ema is None else use_ema)
        if averages and use_ema is None:
            _logger.info("the averaged weights of %s are taken", checkpoint)
        elif averages and not use_ema:
            _logger.warning("%s has averaged weights, too: --use-ema (use_ema=True) takes them", checkpoint)
    if of_this_model:
        if asked not in of_run:  # whose own name stood for what the options left open
            of_name = timm.get_pretrained_cfg(arch if ":" in options["model"] else options["model"])
            model.pretrained_cfg.update(prepared_as(of_name.to_dict(), model.in_chans))
        model.pretrained_cfg.update(prepared_as(options, model.in_chans))
    return model


def prepared_as(options: Mapping[str, Any], in_chans: int) -> dict[str, Any]:
    """How images were prepared, as far as a run's options say, for a model of so many channels."""
    told = {key: options[key] for key in PREPARED if options.get(key)}
    if "input_size" in told:
        told["input_size"] = (in_chans, *told["input_size"][1:])
    return told


def _but_for_steps(name: str | None) -> str | None:
    """A spiking model's name without its T, which changes no parameter."""
    return re.sub(r"_t\d+$", "", name) if name and name.startswith("snn_") else name


def _known_name(name: str) -> str:
    """A model's name as timm writes it."""
    try:
        source, model_id = parse_model_name(name)
    except ValueError as error:
        raise InputError(f"no model named {name!r}: {error}") from error
    if source:
        return f"{source}:{model_id}"
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3)
        raise InputError(
            f"no model named {name!r}"
            + (f"; did you mean {' or '.join(near)}?" if near else "; timm.list_models() lists all")
        )
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # no such tag
        tags = timm.list_models(f"{name.split('.')[0]}.*", include_tags=True)
        raise InputError(f"no model named {name!r}; with tags there are {', '.join(tags) or 'none'}") from error
    return name


def _prepare_source(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Check where a model is to come from; what has timm read verified safetensors, where it would take any file."""
    source, model_id = parse_model_name(name)
    overlay, cache_dir = kwargs.get("pretrained_cfg_overlay") or {}, kwargs.get("cache_dir")
    to_find = kwargs.get("pretrained") and not any(overlay.get(key) for key in ELSEWHERE)
    if source == "local-dir":
        folder = Path(model_id)
        if not (folder / CONFIG).is_file():
            raise InputError(f"model {name!r}: there is no {CONFIG} in {str(folder)!r}")
        read_config(folder / CONFIG, repr(str(folder)))
        if to_find and (folder / WEIGHTS).is_file():
            in_folder(folder)
    elif source == "hf-hub" and not to_find:
        config_on_hub(model_id, cache_dir)
    elif source == "hf-hub":
        found = on_hub(overlay.get("hf_hub_id") or model_id, overlay.get("hf_hub_filename"), cache_dir)
        return {"pretrained_cfg_overlay": {**overlay, "file": str(found.file), "source": None}}
    elif to_find and (cfg := timm.get_pretrained_cfg(name)) and cfg.hf_hub_id:
        named = overlay.get("hf_hub_filename") or cfg.hf_hub_filename or WEIGHTS
        safe = Path(named.replace("pytorch_model", "model")).with_suffix(".safetensors")
        return {"pretrained_cfg_overlay": {**overlay, "hf_hub_filename": str(safe)}}
    return {}


_UNREADABLE = (SafetensorError, EOFError, OSError, pickle.UnpicklingError)


def _read_state(path: str | Path) -> dict[str, Any]:
    """What a training checkpoint holds, tensors on the CPU.

    Raises:
        InputError: it is missing or cannot be read.
    """
    if not Path(path).is_file():
        raise InputError(f"no checkpoint file at {str(path)!r}")
    try:
        state = load_checkpoint_metadata(str(path))
    except (*_UNREADABLE, RuntimeError) as error:
        raise InputError(f"checkpoint {str(path)!r} cannot be read, it may be truncated: {error}") from error
    if not isinstance(state, dict):
        raise InputError(f"checkpoint {str(path)!r} holds a {type(state).__name__}, not weights by name")
    return state


def read_run(checkpoint: str | Path) -> tuple[dict[str, Any], int | None, str | None]:
    """The options of the run that a checkpoint is of, its last finished epoch and its model's architecture.

    The options name the model as it was asked for, perhaps with a source. Of plain weights nothing is known.

    Raises:
        InputError: it is missing or cannot be read.
    """
    if Path(checkpoint).suffix == ".safetensors":
        return {}, None, None
    state = _read_state(checkpoint)
    options = state.get("options") or state.get("saver", {}).get("options") or {}
    return options, state.get("epoch"), state.get("arch") if options else None


def has_averages(checkpoint: str | Path) -> bool:
    """Whether a checkpoint holds averaged weights, too.

    Raises:
        InputError: it is missing or cannot be read.
    """
    return Path(checkpoint).suffix != ".safetensors" and "state_dict_ema" in _read_state(checkpoint)


def made_with(options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a run's options made its model with: its shape, its neuron, its number of steps."""
    keys = ("num_classes", "in_chans", "num_steps", "reset")
    kwargs = {key: options.get(key) for key in keys} | dict(options.get("model_kwargs") or {})
    if options.get("input_size") and not kwargs["in_chans"]:
        kwargs["in_chans"] = options["input_size"][0]
    return {key: value for key, value in kwargs.items() if value is not None}


def load_weights(model: nn.Module, path: str | Path, use_ema: bool = False) -> None:
    """Load a checkpoint file into ``model``, through the ``checkpoint_filter_fn`` of the model's family.

    Args:
        model: any timm model.
        path: safetensors, or a training checkpoint (read with ``weights_only=True``).
        use_ema: take the checkpoint's averaged weights.

    Raises:
        InputError: the file is missing, damaged, or of another architecture or number of classes; the model is then
            unchanged.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint file at {str(path)!r}")
    # timm's convention: a family's module holds the filter that knows other people's names for its weights.
    of_family = getattr(
        sys.modules[type(model).__module__], "checkpoint_filter_fn", lambda state_dict, model: state_dict
    )

    def filter_fn(state_dict, model):
        return of_family(plain_weights(state_dict), model)

    if use_ema and not has_averages(path):
        raise InputError(f"checkpoint {str(path)!r} has no averaged weights (it was trained without --model-ema)")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    try:
        load_checkpoint(model, str(path), use_ema=use_ema, filter_fn=filter_fn)
    except _UNREADABLE as error:
        raise InputError(f"checkpoint {str(path)!r} cannot be read, it may be truncated: {error}") from error
    except RuntimeError as error:
        if "size mismatch" in str(error) or "in state_dict" in str(error):
            model.load_state_dict(before)
            first = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
            raise InputError(
                f"checkpoint {str(path)!r} does not fit {type(model).__name__} with {model.num_classes} classes: "
                f"{first}"
            ) from error
        raise InputError(f"checkpoint {str(path)!r} cannot be read, it may be truncated: {error}") from error
