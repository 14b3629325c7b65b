"""Batch norm with the statistics of all processes' samples, for spiking layers and ordinary ones.

torch's SyncBatchNorm does neither: it knows no rates, and runs on GPUs only. With equal batches on every process the
result is that of one process with all of them.
"""

import inspect
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from snnzoo import fused, layers
from snnzoo.current import Current, Norm, Term
from snnzoo.errors import InputError
from snnzoo.layers import TimeSeries
from snnzoo.rate import Signal, per_step

# Has torch's DistributedDataParallel leave the processes their statistics; the name changed in torch 2.14.
_PARAMETERS = inspect.signature(nn.parallel.DistributedDataParallel).parameters
OWN_BUFFERS = {"forward_sync_buffers" if "forward_sync_buffers" in _PARAMETERS else "broadcast_buffers": False}


@torch.no_grad()
def combine(mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Statistics of all processes' samples from those of each.

    Args:
        mean, var: ``[C]`` of this process's samples, the variance with the count as divisor.
        count: values behind each; may differ between processes.

    Returns:
        ``(mean, var, count)``: ``[C]``, ``[C]`` and a scalar tensor, equal on every process.
    """
    own = torch.cat([mean, var, mean.new_tensor([count])])
    every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(every, own)
    means, variances, counts = torch.stack(every).split([len(mean), len(mean), 1], 1)
    total = counts.sum()
    mean = (means * counts).sum(0) / total
    # around the common mean: no difference of large squares
    return mean, ((variances + (means - mean) ** 2) * counts).sum(0) / total, total


def backward(grad: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, invstd: Tensor, count: Tensor):
    """The gradient of batch norm through statistics that the processes share.

    Args:
        grad, x: ``[B, C, H, W]``, of the output and the input of the norm. In rate-based backpropagation the input is
            the rate and the statistics are those of the steps (see :mod:`snnzoo.rate`).
        weight: ``[C]``, or None.
        mean, invstd: ``[C]``, of all processes.
        count: values of ``x`` behind each, over all processes.

    Returns:
        Gradients of x, weight and bias. The first is that of the sum of all processes' losses, the others are this
        process's part of it: DistributedDataParallel averages those.
    """
    shape = (1, -1, 1, 1)
    normal = (x - mean.view(shape)) * invstd.view(shape)
    grad = grad.to(normal.dtype)
    grad_bias, grad_weight = grad.sum((0, 2, 3)), (grad * normal).sum((0, 2, 3))
    total = torch.cat([grad_bias, grad_weight])
    dist.all_reduce(total)
    mean_grad, mean_product = (total / count).view(2, 1, -1, 1, 1)
    scale = invstd if weight is None else invstd * weight
    grad_x = (grad - mean_grad - normal * mean_product) * scale.view(shape)
    return grad_x.to(x.dtype), None if weight is None else grad_weight, None if weight is None else grad_bias


class _BatchNorm(torch.autograd.Function):
    """Batch norm over all processes' batches."""

    @staticmethod
    def forward(ctx, x, weight, bias, mean, var, count, eps):
        invstd = torch.rsqrt(var + eps)
        ctx.save_for_backward(x, weight, mean, invstd, count)
        scale = invstd if weight is None else invstd * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        return torch.addcmul(shift.view(1, -1, 1, 1), x, scale.view(1, -1, 1, 1)).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        return *backward(grad, *ctx.saved_tensors), None, None, None, None


def batch_norm(x: Tensor, bn: nn.BatchNorm2d) -> Tensor:
    """``[B, C, H, W]`` normalised by ``bn`` over the batches of all processes; updates its running statistics."""
    full = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    var, mean = torch.var_mean(full, (0, 2, 3), correction=0)
    found = combine(mean, var, x.numel() // x.shape[1])
    _remember(bn, *found)
    return _BatchNorm.apply(x, bn.weight, bn.bias, *found, bn.eps)


def batch_norm_of_rate(x: Signal, bn: nn.BatchNorm2d) -> Current:
    """:func:`snnzoo.rate.batch_norm` over the batches of all processes."""
    mean, var = x.moments or fused.moments(x.steps)[1:]
    mean, var, count = combine(mean, var, x.steps.numel() // len(mean))
    _remember(bn, mean, var, count)
    through_statistics = partial(backward, count=count / x.steps.shape[0])
    return Current((Term(x, Norm(bn.weight, bn.bias, mean, var, bn.eps, through_statistics)),))


@torch.no_grad()
def _remember(bn: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: Tensor) -> None:
    """Update the running statistics as ``nn.BatchNorm2d`` does: the variance unbiased."""
    if bn.running_mean is None:
        return
    bn.num_batches_tracked.add_(1)
    momentum = 1.0 / float(bn.num_batches_tracked) if bn.momentum is None else bn.momentum
    bn.running_mean.lerp_(mean.to(bn.running_mean.dtype), momentum)
    bn.running_var.lerp_((var * count / (count - 1).clamp(min=1)).to(bn.running_var.dtype), momentum)


def _shares(bn: nn.BatchNorm2d) -> bool:
    """Whether it uses the batch's statistics, and there are processes to share them; one alone is as torch's."""
    return (bn.training or bn.running_mean is None) and dist.is_available() and dist.is_initialized()


class SyncBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` over the batches of all processes: ``[B, C, H, W]`` in and out."""

    def forward(self, x: Tensor) -> Tensor:
        if not _shares(self):
            return super().forward(x)
        return batch_norm(x, self)


class SyncSpikingBatchNorm2d(layers.BatchNorm2d):
    """:class:`snnzoo.layers.BatchNorm2d` over time and the batches of all processes."""

    def forward(self, x: TimeSeries) -> TimeSeries:
        if not _shares(self):
            return super().forward(x)
        x = layers.settle(x)
        return batch_norm_of_rate(x, self) if isinstance(x, Signal) else per_step(partial(batch_norm, bn=self), x)


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
