"""Layers that know about time, under torch's own names and with torch's own parameters.

Each takes either a plain tensor ``[T, B, ...]`` (evaluation, and training by backpropagation through time) or a
:class:`~snnzoo.rate.Signal` (training by rate-based backpropagation): the type of the input says which pass it is in.
"""

from collections.abc import Callable

from timm.layers import drop_path
from torch import Tensor, nn

from snnzoo import rate
from snnzoo.fused import lif
from snnzoo.neurons import LIFParams
from snnzoo.rate import Signal

TimeSeries = Tensor | Signal  # what flows between the layers of a spiking network


class Conv2d(nn.Conv2d):
    """2d convolution at every step: ``[T, B, C, H, W]`` in and out."""

    def forward(self, x: TimeSeries) -> TimeSeries:
        if isinstance(x, Signal):
            return rate.conv2d(x, self)
        return rate.per_step(super().forward, x)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm over time and batch: ``[T, B, C, H, W]`` in and out."""

    def forward(self, x: TimeSeries) -> TimeSeries:
        if isinstance(x, Signal):
            return rate.batch_norm(x, self)
        return rate.per_step(super().forward, x)


class MaxPool2d(nn.MaxPool2d):
    """Max pooling at every step: ``[T, B, C, H, W]`` in and out."""

    def forward(self, x: TimeSeries) -> TimeSeries:
        if isinstance(x, Signal):
            return rate.spatial(x, super().forward)
        return rate.per_step(super().forward, x)


class LIF(nn.Module):
    """A layer of leaky integrate-and-fire neurons: currents ``[T, B, ...]`` in, spikes ``[T, B, ...]`` out.

    It has no parameters to train and no state: the membrane starts at zero in every forward.
    """

    def __init__(self, params: LIFParams):
        super().__init__()
        self.params = params

    def forward(self, x: TimeSeries) -> TimeSeries:
        if isinstance(x, Signal):
            return rate.lif(x, self.params)
        return lif(x, self.params)

    def extra_repr(self) -> str:
        p = self.params
        return f"decay={p.decay}, threshold={p.threshold}, reset={p.reset}, surrogate={p.surrogate.name}"


def hold(x: TimeSeries, num_steps: int) -> TimeSeries:
    """Hold a value that is the same at every step (first axis 1) for ``num_steps`` steps, without copying it."""
    if isinstance(x, Signal):
        return Signal(hold(x.steps, num_steps), x.rate)
    return x.expand(num_steps, *x.shape[1:])


def to_rate(x: TimeSeries) -> Tensor:
    """The mean over time ``[B, ...]``, inside the graph."""
    return x.rate if isinstance(x, Signal) else rate.time_mean(x)


class Linear(nn.Linear):
    """Linear layer at every step: ``[T, B, F]`` in and out."""

    def forward(self, x: TimeSeries) -> TimeSeries:
        if isinstance(x, Signal):
            return rate.linear(x, self)
        return super().forward(x)


class DropPath(nn.Module):
    """Stochastic depth: of a sample, a branch is left out at all steps, or kept and divided by the chance of that.

    Args:
        drop_prob: the chance of leaving it out.
    """

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: TimeSeries) -> TimeSeries:
        if not self.training:
            return x
        one = x.rate if isinstance(x, Signal) else x[0]
        kept = drop_path(one.new_ones(one.shape[0], 1, 1, 1), self.drop_prob, training=True)
        return elementwise(lambda values: values * kept, x)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob}"


def elementwise(fn: Callable[..., Tensor], *xs: TimeSeries) -> TimeSeries:
    """``fn`` of one or more time series, step by step; one that is not linear, like a product, acts on the rates."""
    if isinstance(xs[0], Signal):
        return rate.elementwise(fn, *xs)
    return fn(*xs)


def spatial(x: TimeSeries, fn: Callable[[Tensor], Tensor]) -> TimeSeries:
    """A parameter-free map ``fn`` of ``[B, C, H, W]``, step by step."""
    return rate.spatial(x, fn) if isinstance(x, Signal) else rate.per_step(fn, x)
