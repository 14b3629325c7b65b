"""Operations of every layer, counted by hooks on it.

An operation is one input value that is not zero meeting one weight that is not zero:

- a *real* value (pixels, a PreAct network's currents, mean rates before the classifier): a multiply-accumulate, MAC;
- a spike: an accumulate, AC;
- a whole number k (SEW's sums of spikes, counts of events): k ACs, one for each spike in it.

``synops`` counts each pair once whatever the value, as NeuroBench does. What is computed once for a static image (the
stem, before the first neuron; the classifier, after the mean over time) counts once, all else at each step. Biases and
residual additions are left out, as is usual.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn
from torch.func import functional_call

from snnzoo import layers
from snnzoo.analysis.firing import SpikeCounter
from snnzoo.errors import InputError


@dataclass(frozen=True)
class Activity:
    """What a layer with weights did for one image, on average.

    Attributes:
        inputs: ``'real'``, ``'spikes'`` or ``'sums'`` (whole numbers).
        sparsity: share of its inputs that are zero.
        synops: pairs of an input and a weight, neither of them zero, over all steps.
        macs, acs: multiply-accumulates and accumulates that they take.
    """

    inputs: str
    sparsity: float
    synops: float
    macs: float
    acs: float


@dataclass(frozen=True)
class Synapses:
    """A convolution or linear layer.

    Attributes:
        name: its path in the model.
        kind: ``'conv'`` or ``'linear'``.
        shape: of its output, without time and batch.
        parameters: weights and biases.
        steps: how many times it is computed for one image.
        dense: multiply-accumulates for one image, zeros included.
        activity: None where no images were shown.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    steps: int
    dense: int
    activity: Activity | None = None


@dataclass(frozen=True)
class Neurons:
    """A layer of LIF neurons.

    Attributes:
        name: its path in the model.
        shape: without time and batch.
        steps: T.
        rates: spikes per neuron at each step; None where no images were shown.
    """

    name: str
    shape: tuple[int, ...]
    steps: int
    rates: tuple[float, ...] | None = None

    @property
    def count(self) -> int:
        return prod(self.shape)

    @property
    def rate(self) -> float | None:
        """Spikes per neuron and step."""
        return None if self.rates is None else sum(self.rates) / len(self.rates)


@dataclass
class _Inputs:
    """What a layer with weights has received and computed so far."""

    module: nn.Module
    shape: tuple[int, ...]  # of an output, without time and batch
    steps: int = 0
    dense: int = 0
    values: int = 0
    nonzero: Tensor | float = 0.0  # of each input value, over all else
    magnitude: Tensor | float = 0.0
    binary: Tensor | bool = True
    whole: Tensor | bool = True

    def add(self, x: Tensor, axes: int) -> None:
        """Inputs whose last ``axes`` are a single value's."""
        x = x.flatten(0, -axes - 1)
        self.values += x.numel()
        self.nonzero = self.nonzero + (x != 0).sum(0, dtype=torch.float64)
        self.magnitude = self.magnitude + x.abs().sum(0, dtype=torch.float64)
        self.binary = self.binary & ((x == 0) | (x == 1)).all()
        self.whole = self.whole & (x == x.round()).all()

    def activity(self, images: int) -> Activity:
        nonzero, magnitude = (torch.as_tensor(x).cpu() for x in (self.nonzero, self.magnitude))
        fan_out = _fan_out(self.module, nonzero.shape)
        synops = float((nonzero * fan_out).sum()) / images
        sparsity = 1 - float(nonzero.sum()) / self.values
        if self.binary:
            return Activity("spikes", sparsity, synops, macs=0.0, acs=synops)
        if self.whole:
            return Activity("sums", sparsity, synops, macs=0.0, acs=float((magnitude * fan_out).sum()) / images)
        return Activity("real", sparsity, synops, macs=synops, acs=0.0)


def _fan_out(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """How many weights that are not zero each input value meets: the gradient of the sum of all outputs."""
    weights = {name: torch.zeros_like(p, dtype=torch.float64, device="cpu") for name, p in module.named_parameters()}
    weights["weight"] = (module.weight != 0).double().cpu()
    x = torch.zeros(*(1, 1)[: 1 + _knows_time(module)], *shape, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        total = functional_call(module, weights, (x,)).sum()
    return torch.autograd.grad(total, x)[0].view(shape)


def _knows_time(module: nn.Module) -> bool:
    return isinstance(module, (layers.Conv2d, layers.Linear))


class LayerCounter:
    """Counts what a model's layers do in the forwards of a ``with`` block.

    Args:
        model: in evaluation mode.
        measure: look at the values too, not at shapes alone.

    Attributes:
        images: how many were shown.
    """

    def __init__(self, model: nn.Module, measure: bool):
        self.images = 0
        self._model, self._measure = model, measure
        self._shape: tuple[int, ...] = ()
        self._forwards = 0
        self._found: dict[str, _Inputs | Neurons] = {}
        self._hooks = []
        spiking = any(isinstance(module, layers.LIF) for module in model.modules())
        self._spikes = SpikeCounter(model) if spiking and measure else None

    def __enter__(self) -> "LayerCounter":
        for name, module in self._model.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                self._hooks.append(module.register_forward_hook(self._synapses(name)))
            elif isinstance(module, layers.LIF):
                self._hooks.append(module.register_forward_hook(self._neurons(name)))
        if self._spikes:
            self._spikes.__enter__()
        return self

    def __exit__(self, *_) -> None:
        for hook in self._hooks:
            hook.remove()
        if self._spikes:
            self._spikes.__exit__()

    def show(self, batch: Tensor) -> None:
        """Run the model on images, all of the shape of the first.

        Raises:
            InputError: they are of another shape.
        """
        self._shape = self._shape or tuple(batch.shape[1:])
        if batch.shape[1:] != self._shape:
            raise InputError(
                f"images of one shape are counted together, got {self._shape} and then {tuple(batch.shape[1:])}"
            )
        self.images += len(batch)
        self._forwards += 1
        self._model(batch)

    def _synapses(self, name: str) -> Callable:
        def hook(module, args, output):
            axes = 3 if isinstance(module, nn.Conv2d) else 1
            found = self._found.setdefault(name, _Inputs(module, tuple(output.shape[-axes:])))
            x = layers.settle(args[0])
            found.steps += x.shape[0] if _knows_time(module) else 1
            found.dense += output.numel() * module.weight[0].numel()
            if self._measure:
                found.add(x, axes)

        return hook

    def _neurons(self, name: str) -> Callable:
        def hook(module, args, output):
            self._found[name] = Neurons(name, tuple(output.shape[2:]), output.shape[0])

        return hook

    def layers(self) -> Iterator[Synapses | Neurons]:
        """What was found, in the order in which the layers ran."""
        rates = self._spikes.by_step() if self._spikes else {}
        for name, found in self._found.items():
            if isinstance(found, Neurons):
                yield replace(found, rates=tuple(rates[name])) if rates else found
                continue
            yield Synapses(
                name,
                kind="conv" if isinstance(found.module, nn.Conv2d) else "linear",
                shape=found.shape,
                parameters=sum(p.numel() for p in found.module.parameters()),
                steps=found.steps // self._forwards,
                dense=found.dense // self.images,
                activity=found.activity(self.images) if self._measure else None,
            )
