"""Rate-based backpropagation against the equations, against BPTT, and by what it computes and keeps."""

import copy
from collections import Counter

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from snnzoo import LIFParams, Surrogate
from snnzoo.layers import LIF, BatchNorm2d, Conv2d, MaxPool2d, hold, settle
from snnzoo.models import SpikingPreActResNet, SpikingResNet, SpikingSEWResNet, SpikingVGG
from snnzoo.rate import Signal

NEURONS = [(reset, detach) for reset in ("soft", "hard") for detach in (True, False)]


def small_net(cls=SpikingResNet, **kwargs):
    """By default a residual net with an identity and a convolutional shortcut."""
    net = cls(**{**dict(depths=(2, 1), channels=(6, 8), num_classes=5), **kwargs})
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
    """Eqs. 13-17 without any of our code: a spike pass that records, then a rate pass that computes everything again.

    The networks' structure is spelled out below, family by family; from ours it takes parameters and strides.

    Args:
        recorded: a convolution's value in the rate pass is the mean of what it gave in the spike pass. It is that
            anyway until something that is not linear over time, like max pooling, has acted on the rates.
    """

    def __init__(self, net, reset="soft", detach=True, decay=0.2, threshold=1.0, alpha=4.0, recorded=True):
        self.model, self.p, self.recorded = net, dict(net.named_parameters()), recorded
        self.reset, self.detach, self.decay, self.threshold, self.alpha = reset, detach, decay, threshold, alpha
        self.record = {}

    # Spike pass: x is a list over time of [B, ...].
    def spike_conv(self, name, x, **kw):
        out = [F.conv2d(x_t, self.p[f"{name}.weight"], **kw) for x_t in x]
        self.record[name] = torch.stack(out).mean(0)
        return out

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

    def spike_map(self, fn, *xs):
        return [fn(*x_t) for x_t in zip(*xs, strict=True)]

    # Rate pass: x is one [B, ...] in a graph.
    def rate_conv(self, name, x, **kw):
        y = F.conv2d(x, self.p[f"{name}.weight"], **kw)
        return self.record[name] + (y - y.detach()) if self.recorded else y

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

    def rate_map(self, fn, *xs):
        return fn(*xs)

    # The same for both.
    def use(self, mode):
        self.conv, self.bn, self.lif, self.map = (
            getattr(self, f"{mode}_{kind}") for kind in ("conv", "bn", "lif", "map")
        )

    def conv_bn(self, conv, bn, x):
        layer = self.model.get_submodule(conv)
        return self.bn(bn, self.conv(conv, x, padding=layer.padding, stride=layer.stride, groups=layer.groups))

    def unit(self, block, i, x):
        return self.conv_bn(f"{block}.conv{i}", f"{block}.bn{i}", x)

    def shortcut(self, block, x):
        if f"{block}.downsample.0.weight" not in self.p:
            return x
        return self.conv_bn(f"{block}.downsample.0", f"{block}.downsample.1", x)

    def resnet_block(self, block, x):
        y = self.unit(block, 2, self.lif(f"{block}.act1", self.unit(block, 1, x)))
        return self.lif(f"{block}.act2", self.map(torch.add, y, self.shortcut(block, x)))

    def preact_block(self, block, x):
        y = self.unit(block, 1, self.lif(f"{block}.act1", x))
        y = self.unit(block, 2, self.lif(f"{block}.act2", y))
        return self.map(torch.add, y, self.shortcut(block, x))

    def sew_block(self, block, x):
        connect = self.model.get_submodule(block).connect.name
        y = x
        for i in (1, 2, 3):
            if f"{block}.conv{i}.weight" in self.p:
                y = self.lif(f"{block}.act{i}", self.unit(block, i, y))
        shortcut = self.shortcut(block, x)
        if shortcut is not x:
            shortcut = self.lif(f"{block}.downsample.2", shortcut)
        fn = {"add": lambda a, s: a + s, "and": lambda a, s: a * s, "iand": lambda a, s: (1 - a) * s}[connect]
        return self.map(fn, y, shortcut)

    def vgg_block(self, block, x):
        return self.lif(f"{block}.act1", self.unit(block, 1, x))

    def net(self, x):
        family = FAMILIES[type(self.model)]
        x = self.conv_bn("conv1", "bn1", x)
        if family != "preact":
            x = self.lif("act1", x)
        if self.p["conv1.weight"].shape[-1] == 7:
            x = self.map(lambda x_t: F.max_pool2d(x_t, 3, 2, 1), x)
        for stage in self.model.stage_names:
            for i in range(len(self.model.get_submodule(stage))):
                x = getattr(self, f"{family}_block")(f"{stage}.{i}", x)
        if "head_fc.weight" in self.p:
            x = self.map(lambda x_t: F.linear(x_t.mean((2, 3)), self.p["head_fc.weight"], self.p["head_fc.bias"]), x)
            return self.lif("head_act", x)
        return self.map(lambda x_t: x_t.mean((2, 3)), x)

    def logits(self, frames):
        """frames: list over time of [B, C, H, W]."""
        self.use("spike")
        with torch.no_grad():
            steps = self.net(frames)
        self.use("rate")
        rate = self.net(torch.stack(frames).mean(0))
        if self.model.readout_decay < 1:  # the value of the spikes as they are read out, the gradient of their rate
            weights = [self.model.readout_decay ** (len(steps) - t) for t in range(1, len(steps) + 1)]
            read = sum(w * x for w, x in zip(weights, steps, strict=True)) / sum(weights)
            rate = rate + (read - rate).detach()
        return F.linear(rate, self.p["fc.weight"], self.p["fc.bias"])


def assert_two_passes_agree(net, frames, static, rtol, **neuron):
    """Logits and gradients of ``net`` are those of the reference."""
    target = torch.arange(len(frames[0])) % 5
    logits_ref = TwoPasses(net, **neuron).logits(frames)
    net.zero_grad()
    F.cross_entropy(logits_ref, target).backward()
    expected = {name: p.grad.clone() for name, p in net.named_parameters()}
    assert all(grad.norm() > 1e-8 for grad in expected.values())
    logits, got = loss_and_grads(net, frames[0] if static else torch.stack(frames, 1), target)
    torch.testing.assert_close(logits, logits_ref.detach())
    assert_same_grads(got, expected, rtol)


def random_frames(num_steps, static, *shape):
    frames = [torch.randn(shape, dtype=torch.float64) for _ in range(num_steps)]
    return frames[:1] * num_steps if static else frames


@pytest.mark.parametrize(("reset", "detach"), NEURONS)
@pytest.mark.parametrize("num_steps", [2, 5])
@pytest.mark.parametrize("static", [True, False])
def test_whole_net_equals_two_plain_passes(reset, detach, num_steps, static):
    neuron = dict(reset=reset, decay=0.3, threshold=0.8)
    net = small_net(num_steps=num_steps, surrogate=Surrogate("sigmoid", 3.0), detach_reset=detach, **neuron)
    frames = random_frames(num_steps, static, 4, 3, 9, 7)
    assert_two_passes_agree(net, frames, static, 1e-4, detach=detach, alpha=3.0, **neuron)


FAMILIES = {SpikingResNet: "resnet", SpikingPreActResNet: "preact", SpikingSEWResNet: "sew", SpikingVGG: "vgg"}
IMAGENET = dict(stem="imagenet", depths=(2, 1), channels=(6, 8))
NETS = [
    (SpikingResNet, IMAGENET),
    (SpikingResNet, dict(head_width=7, depths=(1, 1), channels=(6, 8))),
    (SpikingResNet, dict(readout_decay=0.6)),
    (SpikingResNet, dict(readout_decay=0.6, head_width=7, depths=(1, 1), channels=(6, 8))),
    (SpikingPreActResNet, IMAGENET),
    *((SpikingSEWResNet, dict(connect=connect, **IMAGENET)) for connect in ("add", "and", "iand")),
    (SpikingSEWResNet, dict(stem="imagenet", depths=(2, 1), channels=(8, 16), bottleneck=True)),
    (SpikingVGG, dict(depths=(1, 2), channels=(6, 8))),
]


@pytest.mark.parametrize(("cls", "kwargs"), NETS)
@pytest.mark.parametrize("static", [True, False])
def test_every_family_equals_two_plain_passes(cls, kwargs, static):
    net = small_net(cls, num_steps=3, threshold=0.5, **kwargs)
    if net.has_hidden_head:
        net.head_fc.weight.data.normal_()
    assert_two_passes_agree(net, random_frames(3, static, 4, 3, 34, 30), static, 1e-4, threshold=0.5)


def test_grouped_convolutions_equal_two_plain_passes():
    net = small_net(num_steps=3, threshold=0.5)
    net.layer1[0].conv2 = Conv2d(6, 6, 3, padding=1, groups=3, bias=False).double()
    assert_two_passes_agree(net, random_frames(3, False, 4, 3, 9, 7), False, 1e-4, threshold=0.5)


def test_input_gradient_equals_two_plain_passes():
    net = small_net(num_steps=3)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(TwoPasses(net).logits([x] * 3).sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(net(x).sum(), x)[0], expected)


@pytest.mark.parametrize(("cls", "kwargs"), NETS)
@pytest.mark.parametrize("grad_method", ["rate", "bptt"])
@pytest.mark.parametrize(("num_steps", "static"), [(1, True), (3, True), (3, False)])
def test_one_image_gives_the_same_gradients_in_both_memory_formats(cls, kwargs, grad_method, num_steps, static):
    if cls is SpikingPreActResNet:  # its norms' outputs, averaged over one image, would be the same for any image
        kwargs = dict(spike_head=True, **kwargs)
    net = small_net(cls, num_steps=num_steps, threshold=0.5, grad_method=grad_method, **kwargs)
    x, target = torch.stack(random_frames(num_steps, static, 1, 3, 34, 30), 1), torch.tensor([1])
    x = x[:, 0] if static else x
    _, expected = loss_and_grads(net, x, target)
    net = copy.deepcopy(net).to(memory_format=torch.channels_last)
    assert_same_grads(loss_and_grads(net, x, target)[1], expected, 1e-6)
    if static:
        x = x.contiguous(memory_format=torch.channels_last)
        assert_same_grads(loss_and_grads(net, x, target)[1], expected, 1e-6)


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


@pytest.mark.parametrize("readout_decay", [1.0, 0.6])
def test_what_is_saved_for_backward_does_not_grow_with_steps(readout_decay):
    net, x = timm.create_model("snn_resnet20_t4", readout_decay=readout_decay), torch.randn(2, 3, 16, 16)
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


@pytest.mark.parametrize("grad_method", ["rate", "bptt"])
def test_one_value_has_no_variance(grad_method):
    net = timm.create_model("snn_resnet20_t1", grad_method=grad_method)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        net(torch.randn(1, 3, 4, 4))


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
