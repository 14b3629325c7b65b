"""Rate-based backpropagation against the equations, against BPTT, and by what it computes and keeps."""

from collections import Counter

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from snnzoo import LIFParams, Surrogate
from snnzoo.layers import LIF, BatchNorm2d, Conv2d, MaxPool2d, hold, settle
from snnzoo.models import SpikingResNet
from snnzoo.rate import Signal

NEURONS = [(reset, detach) for reset in ("soft", "hard") for detach in (True, False)]


def small_net(**kwargs):
    """A residual net with an identity and a convolutional shortcut."""
    net = SpikingResNet(depths=(2, 1), channels=(6, 8), num_classes=5, **kwargs)
    for module in net.modules():  # away from the defaults, so that a forgotten weight or bias shows
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.3, 0.5)
    return net.double().train()


def loss_and_grads(net, x, target):
    net.zero_grad()
    logits = net(x)
    loss = F.cross_entropy(logits, target)
    loss.backward()
    return logits.detach(), {name: p.grad.clone() for name, p in net.named_parameters()}


def assert_same_grads(got, expected, rtol):
    for name, grad in expected.items():
        error = (got[name] - grad).norm() / grad.norm().clamp(min=1e-12)
        assert error < rtol, f"{name}: relative error {error:.2e}"


# --- against BPTT ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reset", "detach"), NEURONS)
@pytest.mark.parametrize("frames", [False, True])
def test_equals_bptt_at_one_step(reset, detach, frames):
    net = small_net(num_steps=1, reset=reset, detach_reset=detach)
    x = torch.randn(4, 3, 9, 7, dtype=torch.float64)
    if frames:
        x = x.unsqueeze(1)
    target = torch.tensor([0, 1, 2, 3])
    logits, grads = loss_and_grads(net, x, target)
    net.grad_method = "bptt"
    logits_bptt, grads_bptt = loss_and_grads(net, x, target)
    torch.testing.assert_close(logits, logits_bptt)
    assert_same_grads(grads, grads_bptt, 1e-5)


@pytest.mark.parametrize("name", ["atan", "triangle", "rectangle", "fast_sigmoid"])
def test_equals_bptt_at_one_step_for_every_surrogate(name):
    net = small_net(num_steps=1, surrogate=Surrogate(name, 0.8))
    x, target = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    _, grads = loss_and_grads(net, x, target)
    net.grad_method = "bptt"
    assert_same_grads(grads, loss_and_grads(net, x, target)[1], 1e-5)


# --- against two plain passes, written from the equations --------------------------------------------------------


class TwoPasses:
    """Eqs. 13-17 without any of our code: a spike pass that records, then a rate pass that convolves again."""

    def __init__(self, net, reset, detach, decay, threshold, alpha):
        self.p = dict(net.named_parameters())
        self.reset, self.detach, self.decay, self.threshold, self.alpha = reset, detach, decay, threshold, alpha
        self.record = {}

    # Spike pass: x is a list over time of [B, ...].
    def spike_conv(self, name, x, **kw):
        return [F.conv2d(x_t, self.p[f"{name}.weight"], **kw) for x_t in x]

    def spike_bn(self, name, x):
        samples = torch.cat(x).transpose(0, 1).flatten(1)
        mean, var = samples.mean(1).view(1, -1, 1, 1), samples.var(1, unbiased=False).view(1, -1, 1, 1)
        self.record[name] = mean, var
        return [self.affine(name, (x_t - mean) / (var + 1e-5).sqrt()) for x_t in x]

    def affine(self, name, x):
        return x * self.p[f"{name}.weight"].view(1, -1, 1, 1) + self.p[f"{name}.bias"].view(1, -1, 1, 1)

    def spike_lif(self, name, x):
        v, g, rho, out = torch.zeros_like(x[0]), torch.zeros_like(x[0]), torch.ones_like(x[0]), []
        for t, current in enumerate(x, start=1):
            u = self.decay * v + current
            s = (u >= self.threshold).double()
            y = torch.sigmoid(self.alpha * (u - self.threshold))
            sg = self.alpha * y * (1 - y)
            g = ((t - 1) * g + rho * sg) / t
            if self.reset == "soft":
                v = u - self.threshold * s
                rho = 1 + self.decay * rho * (1 if self.detach else 1 - self.threshold * sg)
            else:
                v = u * (1 - s)
                rho = 1 + self.decay * rho * (1 - s if self.detach else 1 - s - u * sg)
            out.append(s)
        self.record[name] = torch.stack(out).mean(0), g
        return out

    # Rate pass: x is one [B, ...] in a graph.
    def rate_conv(self, name, x, **kw):
        return F.conv2d(x, self.p[f"{name}.weight"], **kw)

    def rate_bn(self, name, x):
        rec_mean, rec_var = self.record[name]
        m = x.mean((0, 2, 3), keepdim=True)
        mean = rec_mean + (m - m.detach())
        q = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
        var = rec_var + (q - q.detach())
        return self.affine(name, (x - mean) / (var + 1e-5).sqrt())

    def rate_lif(self, name, x):
        rate, g = self.record[name]
        return rate + g * (x - x.detach())

    def net(self, mode, x):
        """small_net, its names spelled out."""
        conv, bn, lif = (getattr(self, f"{mode}_{kind}") for kind in ("conv", "bn", "lif"))

        def add(a, b):
            return a + b if mode == "rate" else [i + j for i, j in zip(a, b, strict=True)]

        x = lif("act1", bn("bn1", conv("conv1", x, padding=1)))
        for block, stride in (("layer1.0", 1), ("layer1.1", 1), ("layer2.0", 2)):
            y = lif(f"{block}.act1", bn(f"{block}.bn1", conv(f"{block}.conv1", x, padding=1, stride=stride)))
            y = bn(f"{block}.bn2", conv(f"{block}.conv2", y, padding=1))
            if stride == 2:
                x = bn(f"{block}.downsample.1", conv(f"{block}.downsample.0", x, stride=2))
            x = lif(f"{block}.act2", add(y, x))
        return x

    def logits(self, frames):
        """frames: list over time of [B, C, H, W]."""
        with torch.no_grad():
            self.net("spike", frames)
        rates = self.net("rate", torch.stack(frames).mean(0))
        return F.linear(rates.mean((2, 3)), self.p["fc.weight"], self.p["fc.bias"])


@pytest.mark.parametrize(("reset", "detach"), NEURONS)
@pytest.mark.parametrize("num_steps", [2, 5])
@pytest.mark.parametrize("static", [True, False])
def test_whole_net_equals_two_plain_passes(reset, detach, num_steps, static):
    neuron = dict(reset=reset, detach_reset=detach, decay=0.3, threshold=0.8)
    net = small_net(num_steps=num_steps, surrogate=Surrogate("sigmoid", 3.0), **neuron)
    frames = [torch.randn(4, 3, 9, 7, dtype=torch.float64) for _ in range(num_steps)]
    frames = frames[:1] * num_steps if static else frames
    target = torch.tensor([0, 1, 2, 3])

    reference = TwoPasses(net, reset, detach, 0.3, 0.8, 3.0)
    logits_ref = reference.logits(frames)
    net.zero_grad()
    F.cross_entropy(logits_ref, target).backward()
    expected = {name: p.grad.clone() for name, p in net.named_parameters()}

    logits, got = loss_and_grads(net, frames[0] if static else torch.stack(frames, 1), target)
    torch.testing.assert_close(logits, logits_ref.detach())
    assert_same_grads(got, expected, 1e-4)


def test_input_gradient_equals_two_plain_passes():
    net = small_net(num_steps=3)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(TwoPasses(net, "soft", True, 0.2, 1.0, 4.0).logits([x] * 3).sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(net(x).sum(), x)[0], expected)


# --- what is computed, what is kept ------------------------------------------------------------------------------


class CountConvolutions(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.forward, self.backward = Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.forward[tuple(args[1].shape), args[0].shape[0]] += 1
        self.backward += func is torch.ops.aten.convolution_backward.default
        return func(*args, **(kwargs or {}))


def test_each_convolution_runs_forward_once():
    net = timm.create_model("snn_resnet20_t4")
    batch, num_steps = 2, 4
    with CountConvolutions() as count:
        net(torch.randn(batch, 3, 16, 16)).sum().backward()
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert sum(count.forward.values()) == count.backward == len(convolutions) == 21
    folded = {n for (_, n) in count.forward}
    assert folded == {batch, num_steps * batch}
    assert count.forward[tuple(net.conv1.weight.shape), batch] == 1  # the static image: once, not once per step


def saved_bytes(net, x, num_steps):
    net.num_steps = num_steps
    parameters = {p.data_ptr() for p in net.parameters()}
    seen = {}

    def pack(tensor):
        if tensor.data_ptr() not in parameters:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = net(x)
    assert out.requires_grad
    return sum(seen.values())


def test_what_is_saved_for_backward_does_not_grow_with_steps():
    net, x = timm.create_model("snn_resnet20_t4"), torch.randn(2, 3, 16, 16)
    two, eight = saved_bytes(net, x, 2), saved_bytes(net, x, 8)
    assert two == eight > 100_000
    net.grad_method = "bptt"
    assert saved_bytes(net, x, 8) > 3 * saved_bytes(net, x, 2) > 3 * two


# --- layers ------------------------------------------------------------------------------------------------------


def test_rates_are_means_of_steps():
    """The invariant of a Signal, through every layer that is linear over time."""
    x = torch.randn(3, 2, 4, 8, 8)
    signal = Signal(x, x.mean(0))
    for layer in (Conv2d(4, 6, 3, stride=2, bias=True), BatchNorm2d(4), LIF(LIFParams())):
        out = settle(layer.train()(signal))
        torch.testing.assert_close(out.rate.detach(), out.steps.mean(0))
    total = signal + signal
    torch.testing.assert_close(total.rate, total.steps.mean(0))
    assert hold(Signal(x[:1], x[0]), 5).steps.shape[0] == 5


def test_batch_norm_updates_its_statistics_once():
    x = torch.randn(5, 4, 3, 6, 6)
    ours, torchs = BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    ours.train()(Signal(x, x.mean(0)))
    torchs.train()(x.flatten(0, 1))
    torch.testing.assert_close(ours.state_dict(), torchs.state_dict())
    ours.momentum = torchs.momentum = None  # cumulative average
    ours(Signal(x, x.mean(0)))
    torchs(x.flatten(0, 1))
    torch.testing.assert_close(ours.state_dict(), torchs.state_dict())


def test_frozen_batch_norm_uses_running_statistics():
    norm = BatchNorm2d(3).eval()
    norm.running_mean.uniform_()
    x = torch.randn(5, 4, 3, 6, 6)
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    out = settle(norm(Signal(x, x.mean(0))))
    torch.testing.assert_close(out.rate.detach(), out.steps.mean(0))
    torch.testing.assert_close(out.steps, settle(norm(x)))
    torch.testing.assert_close(out.steps, F.batch_norm(x.flatten(0, 1), norm.running_mean, norm.running_var).view_as(x))
    torch.testing.assert_close(norm.state_dict(), before)


def test_max_pool_acts_on_rates():
    x = (torch.rand(3, 2, 4, 8, 8) > 0.5).float()
    out = MaxPool2d(2)(Signal(x, x.mean(0)))
    torch.testing.assert_close(out.rate, F.max_pool2d(x.mean(0), 2))
    torch.testing.assert_close(out.steps[1], F.max_pool2d(x[1], 2))


def test_bfloat16_autocast_trains():
    net = timm.create_model("snn_resnet20_t2")
    x, target = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    _, exact = loss_and_grads(net, x, target)
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(net(x), target)
    net.zero_grad()
    loss.backward()
    for name, p in net.named_parameters():
        assert p.grad.dtype == torch.float32
        assert p.grad.isfinite().all(), name
    cosine = F.cosine_similarity(net.fc.weight.grad.flatten(), exact["fc.weight"].flatten(), dim=0)
    assert cosine > 0.7  # spikes flip with rounding; an unrelated direction would be within 0.1 of 0
