"""The leaky integrate-and-fire neuron as pure functions over a time-major tensor.

Shape suffixes: T steps, B batch, C channels, H, W; ``[T, B, ...]`` is time-major. State starts at zero inside every
call, so nothing survives a forward and nothing has to be reset.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from snnzoo.errors import InputError

RESETS = ("soft", "hard")

Steps = Tensor | Sequence[Tensor]  # [T, B, ...], or T tensors [B, ...]


def _sigmoid(x: Tensor, alpha: float) -> Tensor:
    if torch.compiler.is_compiling() and x.dtype != torch.float64:
        # s(z) (1 - s(z)) = 1 / (2 + 2 cosh z), cosh by its series in z^2. The first ten terms are right to 2e-7, and
        # on a CPU they are free, where an exponential takes longer than all the rest of the neuron.
        square = (alpha * x) ** 2
        cosh = 1 / math.factorial(18)
        for k in range(16, -1, -2):
            cosh = cosh * square + 1 / math.factorial(k)
        return alpha / (2 + 2 * cosh)
    y = torch.sigmoid(alpha * x)
    return alpha * y * (1 - y)


def _atan(x: Tensor, alpha: float) -> Tensor:
    return alpha / 2 / (1 + (math.pi / 2 * alpha * x) ** 2)


def _triangle(x: Tensor, alpha: float) -> Tensor:
    return alpha * (1 - alpha * x.abs()).clamp(min=0)


def _rectangle(x: Tensor, alpha: float) -> Tensor:
    return alpha * (x.abs() < 0.5 / alpha).to(x.dtype)


def _fast_sigmoid(x: Tensor, alpha: float) -> Tensor:
    return 1 / (1 + alpha * x.abs()) ** 2


# name: (derivative at x = u - threshold, default alpha)
SURROGATES = {
    "sigmoid": (_sigmoid, 4.0),
    "atan": (_atan, 2.0),
    "triangle": (_triangle, 1.0),
    "rectangle": (_rectangle, 1.0),
    "fast_sigmoid": (_fast_sigmoid, 25.0),
}


@dataclass(frozen=True)
class Surrogate:
    """The derivative that stands in for that of the spike, a step function of the membrane.

    With x = u - threshold:

    - ``sigmoid``: alpha * s(alpha x) * (1 - s(alpha x)), s the logistic function (RateBP, arXiv 2410.11488)
    - ``atan``: alpha / 2 / (1 + (pi / 2 * alpha * x)^2) (Fang et al., arXiv 2007.05785)
    - ``triangle``: alpha * max(0, 1 - alpha |x|) (Esser et al., arXiv 1603.08270)
    - ``rectangle``: alpha where |x| < 1 / (2 alpha), else 0 (Wu et al., STBP, arXiv 1706.02609)
    - ``fast_sigmoid``: 1 / (1 + alpha |x|)^2 (Zenke and Ganguli, arXiv 1705.11146)

    Args:
        name: one of the above.
        alpha: steepness, in 1 / membrane units; None takes the name's usual value (4, 2, 1, 1, 25).

    Raises:
        InputError: unknown name, or alpha not positive.
    """

    name: str = "sigmoid"
    alpha: float | None = None

    def __post_init__(self):
        if self.name not in SURROGATES:
            raise InputError(f"surrogate: no such name {self.name!r}; choose from {', '.join(SURROGATES)}")
        if self.alpha is None:
            object.__setattr__(self, "alpha", SURROGATES[self.name][1])
        if not 0 < self.alpha < math.inf:
            raise InputError(f"surrogate: alpha must be a positive number, got {self.alpha!r}")

    def derivative(self, x: Tensor) -> Tensor:
        """The surrogate of ds/du at ``x = u - threshold``; any shape."""
        return SURROGATES[self.name][0](x, self.alpha)


@dataclass(frozen=True)
class LIFParams:
    """Everything that defines a LIF neuron. Exporters read the same object as the forward pass.

    Args:
        decay: what is left of the membrane after one step, in [0, 1].
        threshold: membrane at which the neuron fires, > 0, in the units of the input current.
        reset: ``'soft'`` subtracts the threshold from the membrane of a neuron that fired, ``'hard'`` sets it to zero.
        detach_reset: leave the reset out of the gradient.
        surrogate: derivative of the spike.

    Raises:
        InputError: a value outside its range.
    """

    decay: float = 0.2
    threshold: float = 1.0
    reset: str = "soft"
    detach_reset: bool = True
    surrogate: Surrogate = field(default_factory=Surrogate)

    def __post_init__(self):
        if not 0 <= self.decay <= 1:
            raise InputError(f"decay must lie in [0, 1], got {self.decay!r}")
        if not 0 < self.threshold < math.inf:
            raise InputError(f"threshold must be a positive number, got {self.threshold!r}")
        if self.reset not in RESETS:
            raise InputError(f"reset must be 'soft' or 'hard', got {self.reset!r}")
        if not isinstance(self.detach_reset, bool):
            raise InputError(f"detach_reset must be True or False, got {self.detach_reset!r}")


class _Spike(torch.autograd.Function):
    """Step function with a surrogate derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, params: LIFParams) -> Tensor:
        return (u >= params.threshold).to(u.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        u, ctx.params = inputs
        ctx.save_for_backward(u)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (u,) = ctx.saved_tensors
        return grad * ctx.params.surrogate.derivative(u - ctx.params.threshold), None


def lif_step(current: Tensor, v: Tensor | None, params: LIFParams) -> tuple[Tensor, Tensor, Tensor]:
    """One step of the neuron, differentiable by the surrogate::

        u = decay * v + current
        s = 1 if u >= threshold else 0
        v = u - threshold * s        (soft reset)
        v = u * (1 - s)              (hard reset)

    Args:
        current: input of this step, any shape.
        v: membrane left by the step before, same shape; None before the first step (zero).
        params: the neuron.

    Returns:
        ``(u, s, v)``: membrane before the reset, spikes (0 or 1), membrane after it; each of ``current``'s shape.
    """
    u = current if v is None else torch.add(current, v, alpha=params.decay)
    s = _Spike.apply(u, params)
    fired = s.detach() if params.detach_reset else s
    v = torch.sub(u, fired, alpha=params.threshold) if params.reset == "soft" else u * (1 - fired)
    return u, s, v


def lif(current: Steps, params: LIFParams, dtype: torch.dtype | None = None) -> Tensor:
    """Spikes of a LIF layer; its gradient is that of surrogate-gradient backpropagation through time.

    The membrane is kept in float32 (float64 for float64 input) whatever the input's type.

    Args:
        current: ``[T, B, ...]`` input currents, or one ``[B, ...]`` for each step.
        params: the neuron.
        dtype: of the spikes; ``current``'s if None.

    Returns:
        ``[T, B, ...]`` spikes, 0 or 1.
    """
    v, spikes = None, []
    for current_t in current:
        _, s, v = lif_step(full(current_t), v, params)
        spikes.append(s.to(dtype or current_t.dtype))
    return join(spikes)


@torch.no_grad()
def lif_gradient(current: Steps, params: LIFParams, grad: Steps) -> list[Tensor]:
    """The gradient of :func:`lif`, as a sweep back through time that builds no graph.

    With sg[t] the surrogate ds[t]/du[t], and G[t] the loss's derivative by v[t], zero after the last step::

        dL/du[t] = (grad[t] + dv[t]/ds[t] G[t]) sg[t] + dv[t]/du[t] G[t]    (dv/ds: zero with the reset detached)
        G[t - 1] = decay dL/du[t]

    Args:
        current: as for :func:`lif`.
        params: the neuron.
        grad: of the spikes, ``[T, B, ...]`` or one for each step.

    Returns:
        The gradient by each step's current, ``[B, ...]`` each, in the membrane's dtype.
    """
    v, states = None, []
    for current_t in current:
        u, s, v = lif_step(full(current_t), v, params)
        states.append((u, s))
    grad_v, grads = 0.0, []
    for (u, s), grad_s in zip(reversed(states), reversed(list(grad)), strict=True):
        grad_s = full(grad_s)
        if not params.detach_reset:
            grad_s = grad_s - (params.threshold if params.reset == "soft" else u) * grad_v
        grad_u = grad_s * params.surrogate.derivative(u - params.threshold)
        grad_u = grad_u + (grad_v if params.reset == "soft" else (1 - s) * grad_v)
        grads.append(grad_u)
        grad_v = params.decay * grad_u
    return grads[::-1]


@torch.no_grad()
def lif_statistics(
    current: Steps, params: LIFParams, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes of a LIF layer and the two statistics that rate-based backpropagation needs; builds no graph.

    With sg[t] the surrogate ds[t]/du[t], the derivative of the rate is the running mean (RateBP, arXiv 2410.11488,
    Eq. 16)::

        g <- ((t - 1) g + rho sg[t]) / t

    where rho = du[t]/dI for a current I constant in time: 1 at the first step, and then
    ``1 + decay * rho * dv[t]/du[t]`` with

    - soft reset: ``dv/du = 1 - threshold * sg``, or 1 with the reset detached
    - hard reset: ``dv/du = 1 - s - u * sg``, or ``1 - s`` with the reset detached

    Args:
        current: ``[T, B, ...]`` input currents, or one ``[B, ...]`` for each step.
        params: the neuron.
        dtype: of the spikes; ``current``'s if None.

    Returns:
        ``(spikes, rate, slope)``: spikes ``[T, B, ...]``, their mean over time ``[B, ...]``, and g ``[B, ...]``, both
        in the membrane's dtype.
    """
    v, spikes = None, []
    rho, rate, slope = 1.0, 0.0, 0.0
    for current_t in current:
        u, s, v = lif_step(full(current_t), v, params)
        sg = params.surrogate.derivative(u - params.threshold)
        spikes.append(s.to(dtype or current_t.dtype))
        rate = rate + s
        slope = slope + rho * sg
        if params.reset == "soft":
            dv_du = 1.0 if params.detach_reset else 1 - params.threshold * sg
        else:
            dv_du = 1 - s if params.detach_reset else 1 - s - u * sg
        rho = 1 + params.decay * rho * dv_du
    return join(spikes), rate / len(spikes), slope / len(spikes)


def join(steps: list[Tensor]) -> Tensor:
    """T tensors ``[B, ...]`` as one, ``[T, B, ...]``."""
    return torch.cat(steps).unflatten(0, (len(steps), -1))  # cat keeps a channels-last layout, stack does not


def full(x: Tensor) -> Tensor:
    """At least float32: a membrane that loses small currents to rounding drifts."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
