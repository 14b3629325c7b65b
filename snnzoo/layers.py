"""Layers that know about time, under torch's own names and with torch's own parameters.

Each takes either a plain tensor ``[T, B, ...]`` (evaluation, and training by backpropagation through time) or a
:class:`~snnzoo.rate.Signal` (training by rate-based backpropagation): the type of the input says which pass it is in.
"""

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
