"""Firing rates."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnzoo.errors import InputError
from snnzoo.layers import LIF
from snnzoo.modes import evaluating


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
        self._counts: dict[str, Tensor] = {}  # [2, T]: spikes at each step, and chances to fire
        self._hooks = []

    def __enter__(self) -> "SpikeCounter":
        self._hooks = [module.register_forward_hook(self._count(name)) for name, module in self._layers.items()]
        return self

    def __exit__(self, *_) -> None:
        for hook in self._hooks:
            hook.remove()

    def _count(self, name: str) -> Callable:
        def hook(module, args, output):
            spikes = output.sum(tuple(range(1, output.ndim)), dtype=torch.float64)
            counts = torch.stack([spikes, torch.full_like(spikes, output[0].numel())])
            before = self._counts.get(name, counts.new_zeros(2, 0))
            longest = max(before.shape[1], counts.shape[1])  # recordings may differ in length
            self._counts[name] = sum(F.pad(x, (0, longest - x.shape[1])) for x in (before, counts))

        return hook

    def by_step(self) -> dict[str, list[float]]:
        """Spikes per neuron at each step, of each layer that ran."""
        return {name: (counts[0] / counts[1]).tolist() for name, counts in self._counts.items()}

    def by_layer(self) -> dict[str, float]:
        """Spikes per neuron and step of each layer that ran, a number in [0, 1]."""
        return {name: _ratio(counts.sum(1)) for name, counts in self._counts.items()}

    def by_stage(self, total: Callable[[Tensor], Tensor] = lambda value: value) -> dict[str, float]:
        """The same for each part of the network that a layer's name begins with; the first layers are ``stem``.

        Args:
            total: sums a tensor over processes.
        """
        stages: dict[str, Tensor] = {}
        for name, counts in self._counts.items():
            stage = name.split(".")[0] if "." in name else "stem"
            stages[stage] = stages.get(stage, 0.0) + counts.sum(1)
        return {name: _ratio(total(counts)) for name, counts in stages.items()}


def _ratio(counts: Tensor) -> float:
    return float(counts[0] / counts[1])


@torch.no_grad()
def firing_rates(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, float]:
    """Mean spikes per neuron and step of every LIF layer, in evaluation mode.

    Args:
        model: a spiking model; its modules' modes are left as they were.
        batches: inputs as for the model's forward.

    Returns:
        By layer name, a number in [0, 1].

    Raises:
        InputError: the model has no LIF layer.
    """
    with evaluating(model), SpikeCounter(model) as counter:
        for batch in batches:
            model(batch)
    return counter.by_layer()
