"""The neuron against traces computed by hand, and its gradients against autograd and finite differences."""

import pytest
import torch

from snnzoo import InputError, LIFParams, Surrogate
from snnzoo.neurons import SURROGATES, lif, lif_gradient, lif_statistics, lif_step

# decay 0.5, threshold 1, currents 0.8, 0.9, 0.2 (three neurons see three different histories)
CURRENTS = torch.tensor([[0.8, 1.4, 0.1], [0.9, 0.5, 0.1], [0.2, 0.9, 1.0]], dtype=torch.float64)
# by hand, step by step:
#   neuron 0: u = 0.8 | 0.5*0.8+0.9 = 1.3 -> spike | soft v = 0.3: 0.5*0.3+0.2 = 0.35; hard v = 0: 0.2
#   neuron 1: u = 1.4 -> spike | soft v = 0.4: 0.2+0.5 = 0.7; hard: 0.5 | soft 0.35+0.9 = 1.25, hard 1.15 -> spike
#   neuron 2: u = 0.1 | 0.05+0.1 = 0.15 | 0.075+1.0 = 1.075 -> spike
MEMBRANES = {
    "soft": [[0.8, 1.4, 0.1], [1.3, 0.7, 0.15], [0.35, 1.25, 1.075]],
    "hard": [[0.8, 1.4, 0.1], [1.3, 0.5, 0.15], [0.2, 1.15, 1.075]],
}
SPIKES = [[0, 1, 0], [1, 0, 0], [0, 1, 1]]


@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_trace_by_hand(reset):
    params = LIFParams(decay=0.5, reset=reset)
    v, membranes, spikes = None, [], []
    for current in CURRENTS:
        u, s, v = lif_step(current, v, params)
        membranes.append(u)
        spikes.append(s)
    expected = torch.tensor(MEMBRANES[reset], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(membranes), expected)
    assert torch.stack(spikes).tolist() == SPIKES
    assert lif(CURRENTS, params).tolist() == SPIKES


def _rectangle(u):
    """Derivative of the rectangular surrogate with alpha 1: 1 within 0.5 of the threshold. Easy by hand."""
    return 1.0 if abs(u - 1) < 0.5 else 0.0


@pytest.mark.parametrize(
    ("reset", "detach", "expected"),
    [
        # sg from MEMBRANES: soft [[1,1,0],[1,1,0],[0,1,1]], hard [[1,1,0],[1,0,0],[0,1,1]] (0.5 is not within 0.5 of 1)
        # soft, detached: rho = 1, 1.5, 1.75 for every neuron
        ("soft", True, [(1 + 1.5 + 0) / 3, (1 + 1.5 + 1.75) / 3, (0 + 0 + 1.75) / 3]),
        # soft: rho' = 1 + 0.5 rho (1 - sg); neuron 0: 1, 1, 1; neuron 1: 1, 1, 1; neuron 2: 1, 1.5, 1.75
        ("soft", False, [(1 + 1) / 3, (1 + 1 + 1) / 3, 1.75 / 3]),
        # hard, detached: rho' = 1 + 0.5 rho (1 - s); neuron 0: 1, 1.5, 1; neuron 1: 1, 1, 1.5; neuron 2: 1, 1.5, 1.75
        ("hard", True, [(1 + 1.5) / 3, (1 + 1.5) / 3, 1.75 / 3]),
        # hard: rho' = 1 + 0.5 rho (1 - s - u sg); neuron 0: 1, 1 + 0.5 (1 - 0.8) = 1.1, sg = 0 after;
        # neuron 1: 1, 1 + 0.5 (0 - 1.4) = 0.3, 1 + 0.15 = 1.15; neuron 2: 1, 1.5, 1.75
        ("hard", False, [(1 + 1.1) / 3, (1 + 1.15) / 3, 1.75 / 3]),
    ],
)
def test_statistics_by_hand(reset, detach, expected):
    params = LIFParams(decay=0.5, reset=reset, detach_reset=detach, surrogate=Surrogate("rectangle"))
    for u, sg in [(0.8, 1), (0.35, 0), (1.25, 1)]:
        assert _rectangle(u) == sg
    spikes, rate, slope = lif_statistics(CURRENTS, params)
    assert spikes.tolist() == SPIKES
    torch.testing.assert_close(rate, torch.tensor([1 / 3, 2 / 3, 1 / 3], dtype=torch.float64))
    torch.testing.assert_close(slope, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_slope_is_bptt_gradient_for_constant_current(reset, detach, num_steps):
    """For a current constant in time the recorded slope is d rate / d current through time, exactly."""
    params = LIFParams(decay=0.3, threshold=0.7, reset=reset, detach_reset=detach)
    current = torch.randn(64, dtype=torch.float64, requires_grad=True)
    held = current.expand(num_steps, -1)
    (through_time,) = torch.autograd.grad(lif(held, params).mean(0).sum(), current)
    torch.testing.assert_close(lif_statistics(held, params)[2], through_time)


@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("detach", [True, False])
def test_bptt_is_autograd_through_an_unrolled_loop(reset, detach):
    """The same recursion written here with a smooth spike whose value is corrected to the step function's."""
    params = LIFParams(decay=0.4, threshold=0.9, reset=reset, detach_reset=detach)
    current = torch.randn(6, 50, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 50, dtype=torch.float64)
    v, loss = torch.zeros(50, dtype=torch.float64), 0.0
    for current_t, weight_t in zip(current, weight, strict=True):
        u = 0.4 * v + current_t
        smooth = torch.sigmoid(4 * (u - 0.9))
        s = smooth + ((u >= 0.9).double() - smooth).detach()
        gate = s.detach() if detach else s
        v = u - 0.9 * gate if reset == "soft" else u * (1 - gate)
        loss = loss + (weight_t * s).sum()
    (expected,) = torch.autograd.grad(loss, current)
    (got,) = torch.autograd.grad((weight * lif(current, params)).sum(), current)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.stack(lif_gradient(current, params, weight)), expected)


# Antiderivatives of the surrogates: the smooth steps they are the slopes of.
PRIMITIVES = {
    "sigmoid": lambda x, a: torch.sigmoid(a * x),
    "atan": lambda x, a: torch.atan(torch.pi / 2 * a * x) / torch.pi,
    "triangle": lambda x, a: (x > 0).double() - torch.sign(x) * (1 - a * x.abs()).clamp(min=0) ** 2 / 2,
    "rectangle": lambda x, a: (a * x).clamp(-0.5, 0.5),
    "fast_sigmoid": lambda x, a: x / (1 + a * x.abs()),
}  # fmt: skip


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogate_is_the_slope_of_its_step(name):
    surrogate = Surrogate(name)
    x = torch.linspace(-1.234, 1.234, 300, dtype=torch.float64)
    eps = 1e-6
    slope = (PRIMITIVES[name](x + eps, surrogate.alpha) - PRIMITIVES[name](x - eps, surrogate.alpha)) / (2 * eps)
    torch.testing.assert_close(surrogate.derivative(x), slope, rtol=1e-5, atol=1e-5)


def test_spikes_at_exactly_the_threshold():
    assert lif(torch.ones(1, 1), LIFParams()).item() == 1


def test_no_state_survives():
    current, params = torch.randn(3, 10), LIFParams()
    assert torch.equal(lif(current, params), lif(current, params))


def test_membrane_stays_float32_in_half_precision():
    """0.5 + small currents: bfloat16 would lose what is added."""
    current = torch.full((8, 1), 0.001, dtype=torch.bfloat16)
    current[0] = 0.5
    params = LIFParams(decay=1.0, threshold=0.5 + 6.5 * float(current[1]))
    spikes, rate, _ = lif_statistics(current, params)
    assert spikes.dtype == torch.bfloat16
    assert rate.dtype == torch.float32
    assert spikes.flatten().tolist() == [0] * 7 + [1]
    assert torch.equal(lif(current, params), spikes)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        (dict(decay=1.5), r"decay must lie in \[0, 1\], got 1.5"),
        (dict(decay=float("nan")), "decay"),
        (dict(threshold=0.0), "threshold must be a positive number, got 0.0"),
        (dict(threshold=float("inf")), "threshold"),
        (dict(reset="middle"), "reset must be 'soft' or 'hard', got 'middle'"),
        (dict(detach_reset="False"), "detach_reset must be True or False, got 'False'"),
    ],
)
def test_bad_parameters(kwargs, match):
    with pytest.raises(InputError, match=match):
        LIFParams(**kwargs)


def test_bad_surrogates():
    with pytest.raises(InputError, match="no such name 'step'; choose from sigmoid"):
        Surrogate("step")
    for alpha in (-1, float("inf")):
        with pytest.raises(InputError, match=f"alpha must be a positive number, got {alpha}"):
            Surrogate("atan", alpha=alpha)
