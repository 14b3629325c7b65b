"""Which model it is: the arguments that make it again, and a digest by which its measurements know it."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

import torch
from timm.models._input import get_model_args
from torch import nn

from snnzoo.errors import InputError
from snnzoo.layers import LIF
from snnzoo.models._base import StagedNet
from snnzoo.models._spiking import SpikingModel
from snnzoo.neurons import Surrogate

# Arguments that have no part in what a model answers, or that are measured one by one.
_NOT_OF_ANSWERS = {"num_steps", "grad_method", "detach_reset", "surrogate", "drop_rate", "drop_path_rate"}


def model_args(model: nn.Module) -> dict[str, Any]:
    """The arguments that make ``model`` again, with those of its neurons and what was changed since, as JSON has them.

    Raises:
        InputError: one has no form in JSON.
    """
    try:
        return json.loads(json.dumps(_arguments(model)))
    except TypeError as error:
        raise InputError(f"an argument that {type(model).__name__} was made with has no JSON form: {error}") from error


def digest(model: nn.Module) -> str:
    """Hexadecimal digits, the same for models of the same weights and arguments whatever the number of steps."""
    arguments = {key: value for key, value in _arguments(model).items() if key not in _NOT_OF_ANSWERS}
    if arguments.get("readout_decay") == 1:  # results that were measured before there was another one stay valid
        del arguments["readout_decay"]
    found = hashlib.sha256(json.dumps(arguments, sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _arguments(model: nn.Module) -> dict[str, Any]:
    own = {"stem": model.stem} if isinstance(model, StagedNet) else {}
    if isinstance(model, SpikingModel):
        neuron = next(module.params for module in model.modules() if isinstance(module, LIF))
        surrogate = neuron.surrogate
        own |= dict(
            num_steps=model.num_steps,
            grad_method=model.grad_method,
            readout_decay=model.readout_decay,
            decay=neuron.decay,
            threshold=neuron.threshold,
            reset=neuron.reset,
            detach_reset=neuron.detach_reset,
            surrogate=surrogate.name if surrogate == Surrogate(surrogate.name) else asdict(surrogate),
        )
    return get_model_args(model, own)
