"""Firing rates."""

from collections.abc import Iterable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from snnzoo.errors import InputError
from snnzoo.layers import LIF


@torch.no_grad()
def firing_rates(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, float]:
    """Mean spikes per neuron and step of every LIF layer, in evaluation mode.

    Args:
        model: a spiking model; its mode is left as it was.
        batches: inputs as for the model's forward.

    Returns:
        By layer name, a number in [0, 1].

    Raises:
        InputError: the model has no LIF layer.
    """
    spikes, sites = {}, {}

    def count(name):
        def hook(module, args, output):
            spikes[name] = spikes.get(name, 0.0) + float(output.double().sum())
            sites[name] = sites.get(name, 0) + output.numel()

        return hook

    training = model.training
    model.eval()
    with ExitStack() as stack:
        layers = {name: module for name, module in model.named_modules() if isinstance(module, LIF)}
        if not layers:
            raise InputError(f"{type(model).__name__} has no LIF layers: nothing fires")
        for name, module in layers.items():
            stack.callback(module.register_forward_hook(count(name)).remove)
        for batch in batches:
            model(batch)
    model.train(training)
    return {name: spikes[name] / sites[name] for name in layers}
