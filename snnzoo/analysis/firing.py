"""Firing rates."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from snnzoo.errors import InputError
from snnzoo.layers import LIF


class SpikeCounter:
    """Counts the spikes of every LIF layer in the forwards of a ``with`` block; the counts stay on the device.

    Args:
        model: a spiking model, in evaluation mode.

    Raises:
        InputError: the model has no LIF layer.
    """

    def __init__(self, model: nn.Module):
        self._layers = {name: module for name, module in model.named_modules() if isinstance(module, LIF)}
        if not self._layers:
            raise InputError(f"{type(model).__name__} has no LIF layers: nothing fires")
        self._spikes: dict[str, Tensor] = {}
        self._sites: dict[str, int] = {}
        self._hooks = []

    def __enter__(self) -> "SpikeCounter":
        self._hooks = [module.register_forward_hook(self._count(name)) for name, module in self._layers.items()]
        return self

    def __exit__(self, *_) -> None:
        for hook in self._hooks:
            hook.remove()

    def _count(self, name: str) -> Callable:
        def hook(module, args, output):
            spikes = output.sum(dtype=torch.float64)
            self._spikes[name] = self._spikes.get(name, 0.0) + spikes
            self._sites[name] = self._sites.get(name, 0) + output.numel()

        return hook

    def by_layer(self) -> dict[str, float]:
        """Spikes per neuron and step of each layer that ran, a number in [0, 1]."""
        return {name: float(spikes) / self._sites[name] for name, spikes in self._spikes.items()}

    def by_stage(self, total: Callable[[Tensor], Tensor] = lambda value: value) -> dict[str, float]:
        """The same for each part of the network that a layer's name begins with; the first layers are ``stem``.

        Args:
            total: sums a tensor over processes.
        """
        stages: dict[str, Tensor] = {}
        for name, spikes in self._spikes.items():
            stage = name.split(".")[0] if "." in name else "stem"
            stages[stage] = stages.get(stage, 0.0) + torch.stack([spikes, spikes.new_tensor(self._sites[name])])
        return {name: float(spikes / sites) for name, (spikes, sites) in ((k, total(v)) for k, v in stages.items())}


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
    training = model.training
    with SpikeCounter(model.eval()) as counter:
        for batch in batches:
            model(batch)
    model.train(training)
    return counter.by_layer()
