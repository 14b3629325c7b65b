"""The same networks by other means, for comparison: our ResNet's skeleton with somebody else's layers in it.

``rate_reference``: rate-based backpropagation as its authors publish it (arXiv 2410.11488), written plainly: a spike
pass over T steps that records, then a second forward over the rates with a graph, a Python loop over time in every
neuron. ``spikingjelly``: SpikingJelly's multi-step layers and LIF neuron, gradients through time.
"""

import timm
import torch
import torch.nn.functional as F
from torch import nn

import snnzoo  # noqa: F401
from snnzoo.models._base import Layers
from snnzoo.models.spiking_resnet import ResNet


class Reference:
    """Which pass the reference's layers are in, and the rates it carries."""

    spike_pass = True


class ReferenceBatchNorm2d(nn.BatchNorm2d):
    """Spike pass: torch's batch norm over T * B, statistics recorded. Rate pass: the recorded ones, with gradients."""

    def forward(self, x):
        if Reference.spike_pass:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            self.recorded = mean, var
            return super().forward(x)
        m = x.mean((0, 2, 3))
        mean = self.recorded[0] + (m - m.detach())
        q = ((x - mean.view(1, -1, 1, 1)) ** 2).mean((0, 2, 3))
        var = self.recorded[1] + (q - q.detach())
        x = (x - mean.view(1, -1, 1, 1)) / torch.sqrt(var + self.eps).view(1, -1, 1, 1)
        return x * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


class _Replace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rate, slope):
        ctx.save_for_backward(slope)
        return rate.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0], None, None


class ReferenceLIF(nn.Module):
    """Eqs. 14-16, soft reset, reset detached, in a loop over time."""

    def __init__(self, num_steps, decay=0.2, threshold=1.0, alpha=4.0):
        super().__init__()
        self.num_steps, self.decay, self.threshold, self.alpha = num_steps, decay, threshold, alpha

    def forward(self, x):
        if not Reference.spike_pass:
            return _Replace.apply(x, self.rate, self.slope)
        x = x.view(self.num_steps, -1, *x.shape[1:])
        v, rate = torch.zeros_like(x[0]), torch.zeros_like(x[0])
        slope, rho, spikes = torch.zeros_like(x[0]), torch.ones_like(x[0]), []
        for t in range(self.num_steps):
            v = self.decay * v + x[t]
            spike = (v >= self.threshold).to(x)
            y = torch.sigmoid(self.alpha * (v - self.threshold))
            grad = self.alpha * y * (1 - y)
            slope = (slope * t + rho * grad) / (t + 1)
            rate = rate + spike / self.num_steps
            v = v - self.threshold * spike
            rho = 1 + self.decay * rho
            spikes.append(spike)
        self.rate, self.slope = rate, slope
        return torch.cat(spikes)


class ReferenceNet(ResNet):
    def __init__(self, num_steps, **kwargs):
        layers = Layers(norm=ReferenceBatchNorm2d, act=lambda: ReferenceLIF(num_steps))
        super().__init__(layers=layers, **kwargs)
        self.num_steps = num_steps

    def forward(self, x):
        Reference.spike_pass = True
        with torch.no_grad():
            self.forward_features(x.repeat(self.num_steps, 1, 1, 1))
        Reference.spike_pass = False
        return self.forward_head(self.forward_features(x))


def rate_reference(name: str, num_steps: int) -> nn.Module:
    """The zoo's network of that name, trained by the plain two-pass algorithm."""
    return ReferenceNet(num_steps, **_shape(name)).train()


def spikingjelly(name: str, num_steps: int) -> nn.Module:
    """The zoo's network of that name in SpikingJelly's multi-step layers: hard to tell from ours but for the time."""
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    class Net(ResNet):
        def __init__(self, **kwargs):
            layers = Layers(
                conv=lambda *args, device, dtype, **kw: layer.Conv2d(*args, **kw, step_mode="m"),
                norm=lambda *args, device, dtype, **kw: layer.BatchNorm2d(*args, **kw, step_mode="m"),
                act=lambda: neuron.LIFNode(
                    tau=1.25,  # a decay of 0.2
                    decay_input=False,
                    v_reset=None,
                    detach_reset=True,
                    surrogate_function=surrogate.Sigmoid(alpha=4.0),
                    step_mode="m",
                ),
            )
            super().__init__(layers=layers, **kwargs)

        def forward(self, x):
            functional.reset_net(self)
            # The static image's first convolution once, as ours: its batch norm too.
            x = self.bn1(self.conv1(x.unsqueeze(0))).expand(num_steps, -1, -1, -1, -1)
            x = self.act1(x)
            for i in range(len(self.stage_names)):
                x = self.forward_stage(x, i)
            return self.forward_head(x.mean(0))

    return Net(**_shape(name)).train()


def floor_net(name: str) -> nn.Module:
    """The ANN of the same shape: conv, batch norm, ReLU."""
    return timm.create_model("cifar_" + name.removeprefix("snn_").split("_")[0]).train()


def _shape(name: str) -> dict:
    model = timm.create_model(name)
    depths = [len(getattr(model, stage)) for stage in model.stage_names]
    return dict(depths=depths, channels=[point["num_chs"] for point in model.feature_info[1:]])


def floor_step(ann: nn.Module, x: torch.Tensor, target: torch.Tensor, num_steps: int) -> None:
    """What no rate-based step can do without: a forward of T * B images and a backward of B, of the ANN."""
    with torch.no_grad():
        ann(x.repeat(num_steps - 1, 1, 1, 1))
    F.cross_entropy(ann(x), target).backward()
