"""The neuron's loops over time, compiled into one kernel where a compiler exists.

Same functions, same results (to rounding); on a CPU a layer runs about ten times faster, because each current is read
once and the membrane stays in registers. ``torch.compile`` needs a C++ compiler on a CPU and Triton on a GPU; without
one the plain functions of :mod:`snnzoo.neurons` run, and a line in the log says so.
"""

import functools
import importlib.util
import logging
import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor

from snnzoo import neurons
from snnzoo.errors import InputError
from snnzoo.neurons import LIFParams

BACKENDS = ("auto", "compiled", "eager")

_logger = logging.getLogger(__name__)
_backend = "auto"
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


set_backend(os.environ.get("SNNZOO_BACKEND", "auto"))


def lif(current: Tensor, params: LIFParams) -> Tensor:
    """:func:`snnzoo.neurons.lif`."""
    return _run(neurons.lif, current, params)


def lif_statistics(current: Tensor, params: LIFParams) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`snnzoo.neurons.lif_statistics`."""
    return _run(neurons.lif_statistics, current, params)


def _run(fn: Callable, current: Tensor, params: LIFParams):
    # Inside somebody else's compilation or trace the plain function is what they want to see.
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not _compiles(current.device.type):
        return fn(current, params)
    # Neurons do not see each other: one flat axis serves every shape and memory format with one compilation.
    channels_last = current.ndim == 5 and not current[0].is_contiguous()
    moved = current.movedim(2, -1) if channels_last else current
    shape = moved.shape[1:]

    def restore(x: Tensor) -> Tensor:
        x = x.unflatten(-1, shape)
        return x.movedim(-1, x.ndim - 3) if channels_last else x

    try:
        result = _compiled(fn)(moved.flatten(1), params)
    except Exception as error:
        if _backend == "compiled" or isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
            raise
        _warn(current.device.type, f"compilation failed ({type(error).__name__})")
        _broken.add(current.device.type)
        return fn(current, params)
    return tuple(map(restore, result)) if isinstance(result, tuple) else restore(result)


def _compiles(device_type: str) -> bool:
    return _backend == "compiled" or (_backend == "auto" and device_type not in _broken and _has_compiler(device_type))


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
    _logger.warning("%s: neurons on %s run uncompiled, a training step takes longer", reason, device_type)


@functools.cache
def _compiled(fn: Callable) -> Callable:
    # One compilation for each T, neuron and dtype in use: more than torch's default limit allows for.
    compiled = torch.compile(fn, dynamic=True)

    def call(*args):
        with torch._dynamo.config.patch(cache_size_limit=256):
            return compiled(*args)

    return call
