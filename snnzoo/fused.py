"""What happens to every number at every step, compiled into one kernel where a compiler exists.

Two kernels make a layer's elementwise work: the neurons' loop over time, with the batch norms and the residual
addition before it, and the sweep over a convolution's output that batch norm and the rate need. Compiled or not they
give the same results (to rounding); compiled, each current is read once and the membrane stays in registers.
``torch.compile`` needs a C++ compiler on a CPU and Triton on a GPU; without one the plain functions run, and a line in
the log says so.
"""

import contextlib
import functools
import importlib.util
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from snnzoo import neurons
from snnzoo.current import Current, Term, affines_of, weighted_sum
from snnzoo.errors import InputError
from snnzoo.neurons import LIFParams

BACKENDS = ("auto", "compiled", "eager")

_logger = logging.getLogger(__name__)
_backend = "auto"
_uncompiled: ContextVar[bool] = ContextVar("uncompiled", default=False)
_broken: set[str] = set()  # device types whose compiler failed


def set_backend(name: str) -> None:
    """Choose how neurons run, for the whole process.

    The environment variable ``SNNZOO_BACKEND`` chooses it at import.

    Args:
        name: ``'compiled'``, ``'eager'``, or ``'auto'``: compiled if the device has a compiler.

    Raises:
        InputError: no such backend.
    """
    global _backend
    if name not in BACKENDS:
        raise InputError(f"backend (SNNZOO_BACKEND) must be one of {', '.join(BACKENDS)}, got {name!r}")
    _backend = name


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Run neurons uncompiled in this thread: for a look at a few images, which a compilation would make wait."""
    token = _uncompiled.set(True)
    try:
        yield
    finally:
        _uncompiled.reset(token)


set_backend(os.environ.get("SNNZOO_BACKEND", "auto"))


def lif(current: Current | Tensor, params: LIFParams) -> Tensor:
    """:func:`snnzoo.neurons.lif` of a sum of tensors; differentiable."""
    return _run_neuron(_lif, _run_lif, current, params)


@torch.no_grad()
def lif_statistics(current: Current | Tensor, params: LIFParams) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`snnzoo.neurons.lif_statistics` of a sum of tensors."""
    return _run_neuron(_lif_statistics, functools.partial(_run, _lif_statistics), current, params)


@torch.no_grad()
def moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean over time, and mean and variance of each channel over all the rest, in one sweep.

    Args:
        x: ``[T, B, C, H, W]``.

    Returns:
        ``(rate, mean, var)``: ``[B, C, H, W]`` in ``x``'s dtype; ``[C]`` and ``[C]``, at least float32, the variance
        with the count as divisor.
    """
    if _is_traced():
        return _moments(x, 2)
    layout = _Layout(x)
    rate, mean, var = _run(_moments, layout.flatten(x), -1 if layout.channels_last else -2)
    return layout.restore(rate), mean, var


def _lif(xs, affines, params):
    return neurons.lif(_steps(xs, affines), params, xs[0].dtype)


def _lif_gradient(xs, affines, params, grad, needed):
    """Gradients of :func:`_lif` by xs, then by each scale and shift; None where not ``needed``."""
    steps = neurons.lif_gradient(_steps(xs, affines), params, grad.unbind(0))
    needed = iter(needed)
    of_xs = [
        neurons.join([(g * a[0] if a else g).to(x.dtype) for g in steps]) if next(needed) else None
        for x, a in zip(xs, affines, strict=True)
    ]
    of_affines = []
    for x, affine in zip(xs, affines, strict=True):
        if affine:
            products = zip(steps, x.unbind(0), strict=True)
            of_affines.append(_per_channel([g * x_t for g, x_t in products], affine[0]) if next(needed) else None)
            of_affines.append(_per_channel(steps, affine[1]) if next(needed) else None)
    return (*of_xs, *of_affines)


def _per_channel(steps: list[Tensor], like: Tensor) -> Tensor:
    # Sums over an image, then over images, as in _moments.
    last = like.ndim == 1
    return sum(steps).sum(1 if last else 2, keepdim=not last).sum(0).to(like.dtype)


def _lif_statistics(xs, affines, params):
    return neurons.lif_statistics(_steps(xs, affines), params, xs[0].dtype)


def _steps(xs, affines) -> list[Tensor]:
    return [weighted_sum(step, affines) for step in zip(*(x.unbind(0) for x in xs), strict=True)]


def _moments(x: Tensor, channel_axis: int) -> tuple[Tensor, Tensor, Tensor]:
    axes = [axis for axis in range(1, x.ndim) if axis != channel_axis % x.ndim]
    # Distances from a sample of the channel, not from zero: nothing cancels when the mean is far from zero.
    origin = neurons.full(x[:1])
    for axis in axes:
        origin = origin.narrow(axis, 0, 1)
    origin = origin[0]
    total = squares = 0.0
    for step in x.unbind(0):
        distance = neurons.full(step) - origin
        total, squares = total + distance, squares + distance * distance
    # Sums over an image, then over images: one long sum would lose digits.
    count = x.numel() // origin.numel()
    within = [axis - 1 for axis in axes[1:]]
    mean = total.sum(within).sum(0) / count
    var = squares.sum(within).sum(0) / count - mean * mean
    return (total / x.shape[0] + origin).to(x.dtype), mean + origin.flatten(), var.clamp(min=0)


class _Layout:
    """``[T, B, C, H, W]`` with its axes in the order of memory and H, W as one; ``[T, B, ...]`` with all but T as one.

    So that one compilation serves every shape and memory format.
    """

    def __init__(self, x: Tensor):
        self.shape = x.shape
        self.image = x.ndim == 5
        self.channels_last = self.image and not x[0].is_contiguous()

    def flatten(self, x: Tensor) -> Tensor:
        if not self.image:
            return x.flatten(1)
        return x.movedim(2, -1).flatten(2, 3) if self.channels_last else x.flatten(3)

    def restore(self, x: Tensor) -> Tensor:
        if not self.image:
            return x.unflatten(-1, self.shape[1:])
        if self.channels_last:
            return x.unflatten(-2, self.shape[3:]).movedim(-1, -3)
        return x.unflatten(-1, self.shape[3:])

    def channels(self, x: Tensor) -> Tensor:
        """``[C]`` to a shape that broadcasts with one flattened step."""
        return x if self.channels_last else x[:, None]


class _Lif(torch.autograd.Function):
    """:func:`_lif`, forward and backward compiled one by one.

    Compiled as one, torch lets what the backward needs be used up by it: no ``retain_graph=True``, and no derivative of
    the derivative.
    """

    @staticmethod
    def forward(ctx, params, num_terms, *tensors):
        ctx.params, ctx.num_terms = params, num_terms
        ctx.save_for_backward(*tensors)
        return _run(_lif, *_paired(tensors, num_terms), params)

    @staticmethod
    def backward(ctx, grad):
        tensors, needed = ctx.saved_tensors, ctx.needs_input_grad[2:]
        if not torch.is_grad_enabled():
            return None, None, *_run(_lif_gradient, *_paired(tensors, ctx.num_terms), ctx.params, grad, needed)
        # The plain function, whose gradient has one itself. A tensor may be two of the terms: views tell them apart.
        tensors = [x.view_as(x) for x in tensors]
        spikes = _lif(*_paired(tensors, ctx.num_terms), ctx.params)
        by = [x for x, is_needed in zip(tensors, needed, strict=True) if is_needed]
        found = iter(torch.autograd.grad(spikes, by, grad, create_graph=True))
        return None, None, *(next(found) if is_needed else None for is_needed in needed)


def _paired(tensors, num_terms):
    """xs, and the affines that follow them, if any do."""
    xs, rest = tensors[:num_terms], tensors[num_terms:]
    return xs, tuple(zip(rest[::2], rest[1::2], strict=True)) or (None,) * num_terms


def _run_lif(xs, affines, params):
    tensors = (*xs, *(value for affine in affines if affine for value in affine))
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors) and _compiles(xs[0]):
        return _Lif.apply(params, len(xs), *tensors)
    return _run(_lif, xs, affines, params)


def _run_neuron(fn: Callable, run: Callable, current: Current | Tensor, params: LIFParams):
    terms = current.terms if isinstance(current, Current) else (Term(current),)
    xs = tuple(term.x for term in terms)
    if _is_traced():
        return fn(xs, affines_of(Current(terms)), params)
    affines = tuple(None if term.norm is None else term.norm.affine() for term in terms)
    layout = _Layout(xs[0])
    if layout.image:
        # A factor of one and a shift of zero change nothing, and spare a compilation for every mixture of terms.
        channels = xs[0].shape[2]
        plain = neurons.full(xs[0].new_ones(channels)), neurons.full(xs[0].new_zeros(channels))
        affines = tuple(tuple(map(layout.channels, plain if a is None else a)) for a in affines)
    result = run(tuple(map(layout.flatten, xs)), affines, params)
    return tuple(map(layout.restore, result)) if isinstance(result, tuple) else layout.restore(result)


def is_transformed() -> bool:
    """Inside one of torch.func's transforms: grad, vmap …"""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def _is_traced() -> bool:
    """Inside somebody else's compilation, trace or function transform, where they want to see the plain function."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or is_transformed()


def _run(fn: Callable, first: Tensor | tuple[Tensor, ...], *args):
    x = first[0] if isinstance(first, tuple) else first
    args = (first, *args)
    if not _compiles(x):
        return fn(*args)
    try:
        return _compiled(fn)(*args)
    except Exception as error:
        if _backend == "compiled" or isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
            raise
        reason = f"compilation failed ({type(error).__name__})"
    result = fn(*args)  # before anything is blamed: where the caller's tensors do not fit, this fails as well
    _warn(x.device.type, reason)
    _broken.add(x.device.type)
    return result


def _compiles(x: Tensor) -> bool:
    device_type = x.device.type
    # A kernel reads memory: tensors without any (on meta, in a FakeTensorMode) are for the plain functions.
    if _uncompiled.get() or _backend == "eager" or device_type == "meta" or isinstance(x, FakeTensor):
        return False
    return _backend == "compiled" or (device_type not in _broken and _has_compiler(device_type))


@functools.cache
def _has_compiler(device_type: str) -> bool:
    if device_type == "cpu":
        found = any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++"))
    else:
        found = importlib.util.find_spec("triton") is not None
    if not found:
        _warn(device_type, "no C++ compiler found" if device_type == "cpu" else "Triton not found")
    return found


def _warn(device_type: str, reason: str) -> None:
    _logger.warning(
        "%s: neurons on %s run uncompiled, a training step takes 1.2 times (wide networks) to 2 times (narrow ones) "
        "as long",
        reason,
        device_type,
    )


@functools.cache
def _compiled(fn: Callable) -> Callable:
    # One compilation for each T, neuron and dtype in use: more than torch's default limit allows for. A neuron's
    # numbers are constants of its compilation; as variables, torch 2.14 cannot follow them past an autograd function.
    compiled = torch.compile(fn, dynamic=True)
    options = {"cache_size_limit": 256}
    if hasattr(torch._dynamo.config, "specialize_float"):  # before torch 2.5 they always were
        options["specialize_float"] = True

    # Made once for each thread: torch 2.14 keeps every patch that it has made for as long as the process runs.
    own = threading.local()

    def call(*args):
        if not hasattr(own, "patch"):
            own.patch = torch._dynamo.config.patch(options)
        with own.patch:
            return compiled(*args)

    return call
