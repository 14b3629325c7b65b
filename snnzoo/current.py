"""The current that enters a layer of neurons: a sum of normalised values, left to the neurons to add up.

Batch norm, a residual addition and the neuron's loop over time each read and write every step of a feature map, and
on a CPU or GPU that is all they cost. So batch norm and ``+`` do no work here: they return a :class:`Current`, a list
of terms, and the neuron's kernel reads the terms once (see :mod:`snnzoo.fused`). A layer that is no neuron asks for the
sum itself (:func:`snnzoo.layers.settle`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from snnzoo.rate import Signal


@dataclass(frozen=True, eq=False)
class Norm:
    """Batch norm as one affine map per channel: ``weight * (x - mean) / sqrt(var + eps) + bias``.

    Attributes:
        weight, bias: ``[C]``, or None.
        mean, var: ``[C]`` statistics to normalise with.
        eps: added to the variance.
        of_batch: the statistics are the batch's own, so gradients flow through them; else they are constants. Where
            they are those of several processes' batches, the function that knows that gradient (:mod:`snnzoo.sync`).
    """

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    var: Tensor
    eps: float
    of_batch: bool | Callable

    def affine(self) -> tuple[Tensor, Tensor]:
        """``(scale, shift)``, ``[C]`` each, at least float32: ``scale * x + shift`` is the norm of x."""
        dtype = torch.promote_types(self.var.dtype, torch.float32)
        scale = torch.rsqrt(self.var.to(dtype) + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shift = -self.mean * scale
        return scale, shift if self.bias is None else shift + self.bias


@dataclass(frozen=True, eq=False)
class Term:
    """One summand: ``x``, ``[T, B, C, H, W]``, normalised by ``norm`` if there is one."""

    x: Tensor | Signal
    norm: Norm | None = None


@dataclass(frozen=True, eq=False)
class Current:
    """A sum of terms; all tensors or all Signals."""

    terms: tuple[Term, ...]

    def __add__(self, other: Current | Tensor | Signal) -> Current:
        return Current(self.terms + (other.terms if isinstance(other, Current) else (Term(other),)))

    __radd__ = __add__


Affine = tuple[Tensor, Tensor]  # scale and shift


def weighted_sum(xs: Sequence[Tensor], affines: Sequence[Affine | None]) -> Tensor:
    """The sum of ``scale * x + shift``, of x itself where there is none; at least float32 where there is one."""
    total = None
    for x, affine in zip(xs, affines, strict=True):
        y = x if affine is None else x * affine[0] + affine[1]
        total = y if total is None else total + y
    return total


def affines_of(current: Current) -> list[Affine | None]:
    """Scale and shift of each term, ``[C, 1, 1]``."""
    norms = [term.norm for term in current.terms]
    return [None if norm is None else tuple(a[:, None, None] for a in norm.affine()) for norm in norms]


def sum_steps(current: Current) -> Tensor:
    """Add up a Current of tensors: ``[T, B, C, H, W]``, in the terms' dtype; differentiable."""
    xs = [term.x for term in current.terms]
    return weighted_sum(xs, affines_of(current)).to(xs[0].dtype)
