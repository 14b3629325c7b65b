"""Rate-based backpropagation: the one place that knows how gradients skip time.

Source: RateBP, "Advancing Training Efficiency of Deep SNNs through Rate-based Backpropagation" (arXiv 2410.11488,
Eqs. 13-17), as used by arXiv 2503.16572.

A training forward in rate mode carries a :class:`Signal` from layer to layer: the values at every step, outside the
graph (the spike pass), and their mean over time, inside it (the rate pass). Each function below takes a Signal
through one kind of layer. Convolution, batch norm, average pooling and addition are linear over time, so the value
of the rate pass is the time mean of what the spike pass has just computed; it is recorded, never computed again. What
is kept for the backward pass has the size of a rate, ``[B, ...]``, whatever the number of steps.

Shape suffixes: T steps, B batch, C channels, H, W.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snnzoo.fused import lif_statistics
from snnzoo.neurons import LIFParams


@dataclass(frozen=True, eq=False)
class Signal:
    """A quantity over time as rate-based backpropagation sees it.

    Attributes:
        steps: ``[T, B, ...]`` values at each step, outside the graph. A first axis of 1 is a value that holds at
            every step (a static image before its first neuron).
        rate: ``[B, ...]`` their mean over time, inside the graph.
    """

    steps: Tensor
    rate: Tensor

    def __add__(self, other: "Signal") -> "Signal":
        return Signal(self.steps + other.steps, self.rate + other.rate)


def per_step(fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply ``fn`` once to all steps of ``[T, B, ...]``, folded into the batch."""
    return fn(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def time_mean(x: Tensor) -> Tensor:
    """``[T, B, ...]`` to its mean over time ``[B, ...]``."""
    return x[0] if x.shape[0] == 1 else x.mean(0)


class _ConvOfRate(torch.autograd.Function):
    """``value`` forward; backward that of ``conv2d(rate, weight, bias)`` (Eq. 13), which is never computed."""

    @staticmethod
    def forward(ctx, rate, weight, bias, value, stride, padding, dilation, groups):
        # Under autocast the spike pass ran in a lower precision: so does the backward pass, on half the memory.
        ctx.save_for_backward(rate.to(value.dtype), weight)
        ctx.bias_sizes = None if bias is None else [bias.shape[0]]
        ctx.conv = (stride, padding, dilation, groups)
        return value.view_as(value)

    @staticmethod
    def backward(ctx, grad):
        rate, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.conv
        needs = ctx.needs_input_grad
        grads = torch.ops.aten.convolution_backward(
            grad, rate, weight.to(rate.dtype), ctx.bias_sizes, stride, padding, dilation, False, [0, 0], groups,
            [needs[0], needs[1], needs[2]],
        )  # fmt: skip
        return *grads, None, None, None, None, None


def conv2d(x: Signal, conv: nn.Conv2d) -> Signal:
    """Convolution of a Signal by ``conv``: one forward over all steps, gradients with respect to the rate."""
    with torch.no_grad():
        steps = per_step(lambda s: conv._conv_forward(s, conv.weight, conv.bias), x.steps)
    rate = _ConvOfRate.apply(
        x.rate, conv.weight, conv.bias, time_mean(steps), conv.stride, conv.padding, conv.dilation, conv.groups
    )
    return Signal(steps, rate)


class _BatchNormOfRate(torch.autograd.Function):
    """Normalise the rate by the recorded statistics; backward through the mean and variance taken on the rates.

    With ``mean = rec_mean + (m - m.detach())`` and ``var = rec_var + (q - q.detach())``, m and q the rates' own mean
    and mean squared deviation, the gradient is that of ordinary batch norm evaluated with the recorded statistics.
    """

    @staticmethod
    def forward(ctx, rate, weight, bias, mean, invstd, eps):
        ctx.save_for_backward(rate, weight, mean, invstd)
        ctx.eps = eps
        scale = invstd if weight is None else invstd * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        shape = (1, -1, 1, 1)
        return torch.addcmul(shift.view(shape), rate, scale.view(shape)).to(rate.dtype)

    @staticmethod
    def backward(ctx, grad):
        rate, weight, mean, invstd = ctx.saved_tensors
        grads = torch.ops.aten.native_batch_norm_backward(
            grad, rate, weight, None, None, mean, invstd, True, ctx.eps, list(ctx.needs_input_grad[:3])
        )
        return *grads, None, None, None


def batch_norm(x: Signal, bn: nn.BatchNorm2d) -> Signal:
    """Batch norm of a Signal by ``bn``, over time and batch.

    The spike pass normalises with the mean and variance of all T * B samples and updates the running statistics,
    once. With ``bn`` in eval mode (frozen) both passes use the running statistics.
    """
    stats = bn.running_mean, bn.running_var
    if not bn.training and stats[0] is not None:
        with torch.no_grad():
            steps = per_step(
                lambda s: nn.functional.batch_norm(s, *stats, bn.weight, bn.bias, False, 0, bn.eps), x.steps
            )
        return Signal(steps, nn.functional.batch_norm(x.rate, *stats, bn.weight, bn.bias, False, 0, bn.eps))

    momentum = bn.momentum
    if bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
        if momentum is None:  # torch's cumulative average
            momentum = 1.0 / float(bn.num_batches_tracked)
    with torch.no_grad():
        steps, mean, invstd = torch.native_batch_norm(
            x.steps.flatten(0, 1), bn.weight, bn.bias, *stats, True, momentum or 0.0, bn.eps
        )
    rate = _BatchNormOfRate.apply(x.rate, bn.weight, bn.bias, mean, invstd, bn.eps)
    return Signal(steps.unflatten(0, x.steps.shape[:2]), rate)


class _LIFOfRate(torch.autograd.Function):
    """``value`` forward; backward the recorded slope of the rate, elementwise (Eqs. 14-16)."""

    @staticmethod
    def forward(ctx, current, value, slope):
        ctx.save_for_backward(slope)
        return value.view_as(value)

    @staticmethod
    def backward(ctx, grad):
        (slope,) = ctx.saved_tensors
        return grad * slope, None, None


def lif(x: Signal, params: LIFParams) -> Signal:
    """A LIF layer on a Signal of currents: spikes, and the rate with the derivative that the spike pass recorded."""
    spikes, rate, slope = lif_statistics(x.steps, params)
    return Signal(spikes, _LIFOfRate.apply(x.rate, rate, slope))


def spatial(x: Signal, fn: Callable[[Tensor], Tensor]) -> Signal:
    """A parameter-free spatial map. One that is not linear over time, like max pooling, is applied to the rates."""
    with torch.no_grad():
        steps = per_step(fn, x.steps)
    return Signal(steps, fn(x.rate))


def linear(x: Signal, fc: nn.Linear) -> Signal:
    """A linear layer on a Signal ``[T, B, F]``; it is cheap, so its rate is computed, not recorded."""
    with torch.no_grad():
        steps = nn.functional.linear(x.steps, fc.weight, fc.bias)
    return Signal(steps, nn.functional.linear(x.rate, fc.weight, fc.bias))


def elementwise(fn: Callable[..., Tensor], *xs: Signal) -> Signal:
    """``fn`` of Signals, element by element. One that is not linear, like a product, is applied to the rates."""
    with torch.no_grad():
        steps = fn(*(x.steps for x in xs))
    return Signal(steps, fn(*(x.rate for x in xs)))
