"""Layers that know about time, under torch's own names and with torch's own parameters.

Each takes either a plain tensor ``[T, B, ...]`` (evaluation, and training by backpropagation through time) or a
:class:`~snnzoo.rate.Signal` (training by rate-based backpropagation): the type of the input says which pass it is in.
What enters neurons may be a :class:`~snnzoo.current.Current` of either, a sum still to be added up.
"""

from collections.abc import Callable

import torch
from timm.layers import drop_path
from torch import Tensor, nn

from snnzoo import rate
from snnzoo.current import Current, Norm, Term, sum_steps
from snnzoo.fused import lif
from snnzoo.neurons import LIFParams
from snnzoo.rate import Signal

TimeSeries = Tensor | Signal | Current  # what flows between the layers of a spiking network


class Conv2d(nn.Conv2d):
    """2d convolution at every step: ``[T, B, C, H, W]`` in and out."""

    def forward(self, x: TimeSeries) -> TimeSeries:
        x = settle(x)
        if isinstance(x, Signal):
            return rate.conv2d(x, self)
        return rate.per_step(super().forward, x)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm over time and batch: ``[T, B, C, H, W]`` in and out.

    Only backpropagation through time computes it here; otherwise it is left to the neurons that follow.
    """

    def forward(self, x: TimeSeries) -> TimeSeries:
        x = settle(x)
        if isinstance(x, Signal):
            return rate.batch_norm(x, self)
        if self.training or self.running_mean is None:
            norm = super().forward
            return rate.per_step(lambda steps: norm(rate.regular(steps)), x)
        return Current((Term(x, Norm(self.weight, self.bias, self.running_mean, self.running_var, self.eps, False)),))


class MaxPool2d(nn.MaxPool2d):
    """Max pooling at every step: ``[T, B, C, H, W]`` in and out."""

    def forward(self, x: TimeSeries) -> TimeSeries:
        x = settle(x)
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
        if is_signal(x):
            return rate.lif(x, self.params)
        return lif(x, self.params)

    def extra_repr(self) -> str:
        p = self.params
        return f"decay={p.decay}, threshold={p.threshold}, reset={p.reset}, surrogate={p.surrogate.name}"


def is_signal(x: TimeSeries) -> bool:
    """Whether it is in a forward of rate-based training."""
    return isinstance(x.terms[0].x if isinstance(x, Current) else x, Signal)


def settle(x: TimeSeries) -> Tensor | Signal:
    """Add up what is still a sum of terms: for layers that are no neurons, and for what is used twice."""
    if not isinstance(x, Current):
        return x
    return rate.settle(x) if is_signal(x) else sum_steps(x)


def hold(x: TimeSeries, num_steps: int) -> TimeSeries:
    """Hold a value that is the same at every step (first axis 1) for ``num_steps`` steps, without copying it."""
    if isinstance(x, Current):
        return Current(tuple(Term(hold(term.x, num_steps), term.norm) for term in x.terms))
    if isinstance(x, Signal):
        return Signal(hold(x.steps, num_steps), x.rate)
    return x.expand(num_steps, *x.shape[1:])


def to_rate(x: TimeSeries, dtype: torch.dtype, decay: float) -> Tensor:
    """The mean over time ``[B, ...]``, inside the graph, later steps weighted more where ``decay`` is below 1 (see
    :func:`snnzoo.rate.time_mean`); in ``dtype`` where rate-based training has it in float32."""
    x = settle(x)
    return rate.read_out(x, decay).to(dtype) if isinstance(x, Signal) else rate.time_mean(x, decay)


class Linear(nn.Linear):
    """Linear layer at every step: ``[T, B, F]`` in and out."""

    def forward(self, x: TimeSeries) -> TimeSeries:
        x = settle(x)
        return rate.linear(x, self) if isinstance(x, Signal) else super().forward(x)


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
        x = settle(x)
        one = x.rate if isinstance(x, Signal) else x[0]
        kept = drop_path(one.new_ones(one.shape[0], 1, 1, 1), self.drop_prob, training=True)
        return elementwise(lambda values: values * kept, x)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob}"


def elementwise(fn: Callable[..., Tensor], *xs: TimeSeries) -> TimeSeries:
    """``fn`` of one or more time series, step by step; one that is not linear, like a product, acts on the rates."""
    xs = [settle(x) for x in xs]
    return rate.elementwise(fn, *xs) if isinstance(xs[0], Signal) else fn(*xs)


def spatial(x: TimeSeries, fn: Callable[[Tensor], Tensor]) -> TimeSeries:
    """A parameter-free map ``fn`` of ``[B, C, H, W]``, step by step."""
    x = settle(x)
    return rate.spatial(x, fn) if isinstance(x, Signal) else rate.per_step(fn, x)


def add(a: TimeSeries, b: TimeSeries) -> TimeSeries:
    """``a + b``, in a form that ``torch.compile`` can follow where one is a Current and the other a tensor."""
    if isinstance(a, Current):
        return a.__add__(b)
    return b.__add__(a) if isinstance(b, Current) else a + b
