"""Batch norm with the statistics of all processes' samples, for spiking layers and ordinary ones.

torch's SyncBatchNorm does neither: it knows no rates, and runs on GPUs only. With equal batches on every process the
result is that of one process with all of them.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from snnzoo import layers
from snnzoo.errors import InputError
from snnzoo.layers import TimeSeries
from snnzoo.rate import Signal


@torch.no_grad()
def statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of a feature map over all samples of all processes.

    Args:
        x: ``[N, C, H, W]``; N may differ between processes.

    Returns:
        ``(mean, var, count)``: ``[C]``, ``[C]`` (biased) and a scalar, the number of values behind each; float32 at
        least, equal on every process.
    """
    var, mean = torch.var_mean(x.float() if x.dtype.itemsize < 4 else x, (0, 2, 3), correction=0)
    own = torch.cat([mean, var, mean.new_tensor([x.numel() / x.shape[1]])])
    every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(every, own)
    means, variances, counts = torch.stack(every).split([len(mean), len(mean), 1], 1)
    count = counts.sum()
    mean = (means * counts).sum(0) / count
    # around the common mean: no difference of large squares
    var = ((variances + (means - mean) ** 2) * counts).sum(0) / count
    return mean, var, count


class _Normalise(torch.autograd.Function):
    """Batch norm of ``x`` by the given statistics; backward through them, as those of all processes' ``x``.

    What reaches ``x`` is the gradient of the sum of all processes' losses, what reaches weight and bias is this
    process's part of it: DistributedDataParallel averages those.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, mean, var, count, eps):
        invstd = torch.rsqrt(var + eps)
        ctx.save_for_backward(x, weight, mean, invstd, count)
        scale = invstd * weight
        shape = (1, -1, 1, 1)
        return torch.addcmul((bias - mean * scale).view(shape), x, scale.view(shape)).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, weight, mean, invstd, count = ctx.saved_tensors
        shape = (1, -1, 1, 1)
        normal = (x - mean.view(shape)) * invstd.view(shape)
        full = grad.to(normal.dtype)
        grad_bias, grad_weight = full.sum((0, 2, 3)), (full * normal).sum((0, 2, 3))
        total = torch.cat([grad_bias, grad_weight])
        dist.all_reduce(total)
        mean_grad, mean_product = (total / count).view(2, 1, -1, 1, 1)
        grad_x = (full - mean_grad - normal * mean_product) * (invstd * weight).view(shape)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), None, None, None, None


def normalise(x: Tensor, bn: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: Tensor) -> Tensor:
    """Batch norm by :func:`statistics`, with their part of the gradient.

    For rate-based backpropagation ``x`` is the rate and the statistics are those of the steps: the mean of the rates
    is the mean of the steps, and the gradient through the variance is that of the rates' own, as in
    :func:`snnzoo.rate.batch_norm`.

    Args:
        x: ``[B, C, H, W]``.
        bn: weight, bias and eps.
        mean, var, count: of :func:`statistics`; the count that of ``x`` itself, over all processes.
    """
    weight, bias = (bn.weight, bn.bias) if bn.affine else (torch.ones_like(mean), torch.zeros_like(mean))
    return _Normalise.apply(x, weight, bias, mean, var, count, bn.eps)


@torch.no_grad()
def _remember(bn: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: Tensor) -> None:
    """Update the running statistics as ``nn.BatchNorm2d`` does: the variance unbiased."""
    if bn.running_mean is None:
        return
    bn.num_batches_tracked.add_(1)
    momentum = 1.0 / float(bn.num_batches_tracked) if bn.momentum is None else bn.momentum
    bn.running_mean.lerp_(mean.to(bn.running_mean.dtype), momentum)
    bn.running_var.lerp_((var * count / (count - 1)).to(bn.running_var.dtype), momentum)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` over the batches of all processes: ``[B, C, H, W]`` in and out."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.running_mean is not None:
            return super().forward(x)
        found = statistics(x)
        _remember(self, *found)
        return normalise(x, self, *found)


class SyncSpikingBatchNorm2d(layers.BatchNorm2d):
    """:class:`snnzoo.layers.BatchNorm2d` over time and the batches of all processes."""

    def forward(self, x: TimeSeries) -> TimeSeries:
        if not self.training and self.running_mean is not None:
            return super().forward(x)
        steps = x.steps if isinstance(x, Signal) else x
        mean, var, count = statistics(steps.flatten(0, 1))
        _remember(self, mean, var, count)
        if not isinstance(x, Signal):
            return normalise(x.flatten(0, 1), self, mean, var, count).unflatten(0, x.shape[:2])
        with torch.no_grad():
            normal = normalise(steps.flatten(0, 1), self, mean, var, count).unflatten(0, steps.shape[:2])
        return Signal(normal, normalise(x.rate, self, mean, var, count / steps.shape[0]))


_SYNCHRONISED = {nn.BatchNorm2d: SyncBatchNorm2d, layers.BatchNorm2d: SyncSpikingBatchNorm2d}


def synchronise(model: nn.Module) -> nn.Module:
    """Replace every batch norm by one that shares its statistics; parameters and buffers stay the same objects.

    Args:
        model: changed in place; frozen parts (a teacher) need none of it.

    Returns:
        The model.

    Raises:
        InputError: a batch norm of a kind that is not known here.
    """
    for parent in list(model.modules()):
        for name, bn in parent.named_children():
            if not isinstance(bn, nn.modules.batchnorm._BatchNorm):
                continue
            if type(bn) not in _SYNCHRONISED:
                raise InputError(
                    f"--sync-bn: {type(model).__name__} has a {type(bn).__name__}, whose statistics cannot be shared; "
                    f"--dist-bn reduce averages them after each epoch"
                )
            new = _SYNCHRONISED[type(bn)](bn.num_features, bn.eps, bn.momentum, bn.affine, bn.track_running_stats)
            for key, value in [*bn.named_parameters(), *bn.named_buffers()]:
                setattr(new, key, value)
            setattr(parent, name, new.train(bn.training))
    return model
