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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from snnzoo import fused
from snnzoo.current import Current, Norm, Term, sum_steps
from snnzoo.errors import InputError
from snnzoo.neurons import LIFParams, full


@dataclass(frozen=True, eq=False)
class Signal:
    """A quantity over time as rate-based backpropagation sees it.

    Attributes:
        steps: ``[T, B, ...]`` values at each step, outside the graph. A first axis of 1 is a value that holds at
            every step (a static image before its first neuron).
        rate: ``[B, ...]`` their mean over time, inside the graph.
        moments: mean and variance of each channel, ``[C]``, where the layer before computed them in passing.
    """

    steps: Tensor
    rate: Tensor
    moments: tuple[Tensor, Tensor] | None = None

    def __add__(self, other: "Signal | Tensor") -> "Signal":
        if isinstance(other, Tensor):  # the same at every step
            other = Signal(other.detach(), other)
        if not isinstance(other, Signal):
            return NotImplemented
        return Signal(self.steps + other.steps, self.rate + other.rate)

    def __mul__(self, factor: Tensor) -> "Signal":
        """Scaled by the same factor at every step: with a shift, torchvision's FrozenBatchNorm2d."""
        return Signal(self.steps * factor.detach(), self.rate * factor)


def per_step(fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply ``fn`` once to all steps of ``[T, B, ...]``, folded into the batch."""
    return fn(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def regular(x: Tensor) -> Tensor:
    """``x`` as batch norm may see it: torch's misreads, backward on a CPU, one channels-last image of odd strides.

    Reshaping gives the axis of a single image another stride than that of a whole image, as it may.
    """
    odd = x.shape[0] == 1 and x.stride(0) != x.numel()
    return x.clone(memory_format=torch.channels_last) if odd else x


def checked_readout_decay(value: Any) -> float:
    """``value`` as a float; :class:`InputError` unless :func:`time_mean` can weight with it."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 < value <= 1:
        raise InputError(f"readout_decay must lie in (0, 1], got {value!r}")
    return float(value)


def time_mean(x: Tensor, decay: float = 1.0) -> Tensor:
    """``[T, B, ...]`` to its mean over time ``[B, ...]``, in the memory format of the steps.

    Args:
        x: values at each step; a first axis of 1 is a value that holds at every step.
        decay: what a step counts of the one after it: ``sum_t decay^(T - t) x[t] / sum_t decay^(T - t)``, the state
            of a leaky integrator after the last step.
    """
    if x.shape[0] == 1:
        return x[0]
    if decay != 1:
        state, weight = x[0].to(torch.promote_types(x.dtype, torch.float32)), 1.0
        for step in x[1:]:
            state, weight = torch.add(step, state, alpha=decay), 1 + decay * weight
        return (state / weight).to(x.dtype)
    if x.ndim == 5 and not x[0].is_contiguous():  # channels-last, which torch's mean would undo
        return x.movedim(2, -1).mean(0).movedim(-1, 1)
    return x.mean(0)


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


def _twin(function: type[torch.autograd.Function], value: int) -> type[torch.autograd.Function]:
    """``function`` for torch.func, which wants forward, that is input ``value``, apart from what it keeps.

    Apart, a training step of snn_resnet20_t4 with four images took 9 % longer, so elsewhere they are one.
    """

    class Twin(function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*inputs):
            return inputs[value].view_as(inputs[value])

        @staticmethod
        def setup_context(ctx, inputs, output):
            function.forward(ctx, *inputs)

    return Twin


_ConvOfRateTwin = _twin(_ConvOfRate, 3)


def conv2d(x: Signal, conv: nn.Conv2d) -> Signal:
    """Convolution of a Signal by ``conv``: one forward over all steps, gradients with respect to the rate."""
    with torch.no_grad():
        steps = per_step(lambda s: conv._conv_forward(s, conv.weight, conv.bias), x.steps)
        value, *moments = fused.moments(steps)
    function = _ConvOfRateTwin if fused.is_transformed() else _ConvOfRate
    rate = function.apply(x.rate, conv.weight, conv.bias, value, conv.stride, conv.padding, conv.dilation, conv.groups)
    return Signal(steps, rate, tuple(moments))


def batch_norm(x: Signal, bn: nn.BatchNorm2d) -> Current:
    """Batch norm of a Signal by ``bn``, over time and batch.

    The spike pass normalises with the mean and variance of all T * B samples and updates the running statistics,
    once. With ``bn`` in eval mode (frozen) both passes use the running statistics.

    Raises:
        InputError: a single value in each channel, which has no variance.
    """
    if not bn.training and bn.running_mean is not None:
        return Current((Term(x, Norm(bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps, of_batch=False)),))
    mean, var = x.moments or fused.moments(x.steps)[1:]
    count = x.steps.numel() // len(mean)
    if count == 1:  # as torch does
        raise InputError(
            "Expected more than 1 value per channel when training: one step of one image of one pixel has no variance; "
            "give more images, or freeze the norm by its eval()"
        )
    if bn.running_mean is not None:
        bn.num_batches_tracked.add_(1)
        momentum = 1.0 / float(bn.num_batches_tracked) if bn.momentum is None else bn.momentum
        bn.running_mean.lerp_(mean.to(bn.running_mean.dtype), momentum)
        bn.running_var.lerp_((var * (count / max(count - 1, 1))).to(bn.running_var.dtype), momentum)
    return Current((Term(x, Norm(bn.weight, bn.bias, mean, var, bn.eps, of_batch=True)),))


class _SumOfRates(torch.autograd.Function):
    """``value`` forward. Backward: a sum of rates, each normalised or not, times ``slope`` if there is one.

    A neuron's slope is what the spike pass recorded (Eqs. 14-16). Batch norm goes backward through the mean and
    variance taken on the rates: with ``mean = rec_mean + (m - m.detach())`` and ``var = rec_var + (q - q.detach())``,
    m and q the rates' own mean and mean squared deviation, the gradient is that of ordinary batch norm evaluated with
    the recorded statistics.

    After value and slope come, for each term, its rate and its norm's weight, bias, mean and var; ``norms`` holds
    for each None, or (eps, of_batch).
    """

    @staticmethod
    def forward(ctx, norms, value, slope, *inputs):
        ctx.norms = norms
        terms = [inputs[i : i + 5] for i in range(0, len(inputs), 5)]
        kept = [(None, None, None, None) if norm is None else (x, weight, mean, var)
                for norm, (x, weight, _, mean, var) in zip(norms, terms, strict=True)]  # fmt: skip
        ctx.save_for_backward(slope, *(tensor for term in kept for tensor in term))
        return value.view_as(value)

    @staticmethod
    def backward(ctx, grad):
        slope, *kept = ctx.saved_tensors
        if slope is not None:
            grad = grad * slope
        grads = []
        for i, norm in enumerate(ctx.norms):
            if norm is None:
                grads += [grad, None, None, None, None]
                continue
            (eps, of_batch), (x, weight, mean, var) = norm, kept[4 * i : 4 * i + 4]
            if callable(of_batch):
                grads += [*of_batch(grad, x, weight, mean, torch.rsqrt(var + eps)), None, None]
                continue
            mean, var = full(mean), full(var)
            weight = None if weight is None else weight.to(mean.dtype)
            grads += torch.ops.aten.native_batch_norm_backward(
                grad.to(x.dtype), regular(x), weight, mean, var, mean, torch.rsqrt(var + eps), of_batch, eps,
                list(ctx.needs_input_grad[3 + 5 * i : 6 + 5 * i]),
            )  # fmt: skip
            grads += [None, None]
        return None, None, None, *grads


_SumOfRatesTwin = _twin(_SumOfRates, 1)


def _sum_of_rates(value: Tensor, slope: Tensor | None, terms: Sequence[Term]) -> Tensor:
    norms, inputs = [], []
    for term in terms:
        norm = term.norm
        norms.append(None if norm is None else (norm.eps, norm.of_batch))
        inputs += [term.x.rate, *((None,) * 4 if norm is None else (norm.weight, norm.bias, norm.mean, norm.var))]
    function = _SumOfRatesTwin if fused.is_transformed() else _SumOfRates
    return function.apply(tuple(norms), value, slope, *inputs)


def _of_steps(current: Current) -> Current:
    return Current(tuple(Term(term.x.steps, term.norm) for term in current.terms))


def settle(current: Current) -> Signal:
    """Add up a Current of Signals."""
    with torch.no_grad():
        steps = sum_steps(_of_steps(current))
        value = sum_steps(Current(tuple(Term(term.x.rate[None], term.norm) for term in current.terms)))[0]
    return Signal(steps, _sum_of_rates(value, None, current.terms))


def read_out(x: Signal, decay: float) -> Tensor:
    """:func:`time_mean` of the spike pass, with the gradient of the plain mean: a rate knows nothing of when."""
    if decay == 1 or x.steps.shape[0] == 1:
        return x.rate
    return _sum_of_rates(time_mean(x.steps.to(x.rate.dtype), decay), None, (Term(x),))


def lif(x: Current | Signal, params: LIFParams) -> Signal:
    """A LIF layer on currents: spikes, and the rate with the derivative that the spike pass recorded."""
    current = Current((Term(x),)) if isinstance(x, Signal) else x
    spikes, rate, slope = fused.lif_statistics(_of_steps(current), params)
    return Signal(spikes, _sum_of_rates(rate, slope, current.terms))


def spatial(x: Signal, fn: Callable[[Tensor], Tensor]) -> Signal:
    """A parameter-free spatial map. One that is not linear over time, like max pooling, is applied to the rates."""
    with torch.no_grad():
        steps = per_step(fn, x.steps)
    return Signal(steps, fn(x.rate))


def linear(x: Signal, fc: nn.Linear) -> Signal:
    """A linear layer on a Signal ``[T, B, F]``; it is cheap, so its rate is computed, not recorded."""
    with torch.no_grad():
        steps = nn.functional.linear(x.steps, fc.weight, fc.bias)
    return Signal(steps, nn.functional.linear(x.rate.to(fc.weight.dtype), fc.weight, fc.bias))


def elementwise(fn: Callable[..., Tensor], *xs: Signal) -> Signal:
    """``fn`` of Signals, element by element. One that is not linear, like a product, is applied to the rates."""
    with torch.no_grad():
        steps = fn(*(x.steps for x in xs))
    return Signal(steps, fn(*(x.rate for x in xs)))
