"""From real numbers to the chip's: units, weights that make up for one another, biases, and what they can add up to."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from snnzoo.export.lava.lower import Link, Population
from snnzoo.export.lava.simulator.network import BIAS, FRACTION, NETX_BIAS_EXPONENT, THRESHOLD, WEIGHT


def snap(unit: float, threshold: float | None) -> float:
    """The nearest unit in which the threshold lies 1/64 above a whole number, so that both neurons fire by one rule."""
    if threshold is None:
        return unit
    return threshold / (min(max(round(threshold / unit), 1), THRESHOLD[1]) + 1 / FRACTION)


def second_moments(link: Link, x: Tensor) -> Tensor:
    """``[K, K]``: how the inputs that meet a kernel's K weights go together, from about 2^15 places of the map."""
    x = x.flatten(0, 1)
    share = max(1, x.shape[0] * x.shape[2] * x.shape[3] // (link.stride[0] * link.stride[1]) >> 15)
    columns = F.unfold(x[::share], link.weight.shape[2:], link.dilation, link.padding, link.stride)
    columns = columns.transpose(0, 1).flatten(1).double()
    return columns @ columns.T / columns.shape[1]


def compensated(weight: Tensor, moments: Tensor) -> Tensor:
    """Integers near ``weight`` ``[O, C, KH, KW]`` whose errors cancel on inputs of such second moments.

    Weights are rounded one after the other, and what that changes is taken back by those still to come (GPTQ, arXiv
    2210.17323, Eq. 2 and 3; the order is the kernel's).
    """
    damped = moments + 0.01 * moments.diagonal().mean().clamp(1e-12) * torch.eye(len(moments), dtype=moments.dtype)
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    left, result = weight.double().flatten(1).clone(), []
    for k in range(left.shape[1]):
        rounded = left[:, k].round().clamp(*WEIGHT)
        result.append(rounded)
        left -= ((left[:, k] - rounded) / factor[k, k])[:, None] * factor[k]
    return torch.stack(result, 1).reshape(weight.shape).to(weight.dtype)


def extremes(link: Link, weight: Tensor, least: np.ndarray, most: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the most that a link can bring, ``[O]``, from that of its source, ``[C]``."""
    weight = weight.double().flatten(2).numpy()  # [O, C / groups, K]
    positive, negative = weight.clip(0).sum(2), (-weight).clip(0).sum(2)
    outs = len(weight)
    least, most = (
        np.repeat(x.reshape(link.groups, -1), outs // link.groups, axis=0) for x in (least.clip(None, 0), most.clip(0))
    )
    return (positive * least - negative * most).sum(1), (positive * most - negative * least).sum(1)


def bias_mantissas(p: Population, unit: float, more: Tensor | float = 0.0) -> tuple[np.ndarray, int]:
    """Mantissas, ``[C]`` if they are the same all over the map, else ``[C, H, W]``; and how many did not fit."""
    bias = more + (torch.zeros(p.shape) if p.bias is None else p.bias)
    mantissa = (bias.double().expand(p.shape) / unit * FRACTION / 2**NETX_BIAS_EXPONENT).round()
    clipped = int(((mantissa < BIAS[0]) | (mantissa > BIAS[1])).sum())
    mantissa = mantissa.clamp(*BIAS).numpy().astype(np.int16)
    flat = mantissa.reshape(p.shape[0], -1)
    return (flat[:, 0] if (flat == flat[:, :1]).all() else mantissa), clipped
