"""Batch norm folded into the convolution before it."""

import copy

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_weights

from snnzoo.errors import InputError
from snnzoo.fused import uncompiled


@torch.no_grad()
@uncompiled()
def fuse(model: nn.Module, input_size: tuple[int, ...] | None = None) -> nn.Module:
    """A copy of a trained model with every batch norm that follows a convolution folded into it.

    It takes less time to evaluate, most at small batches, and gives the same logits to rounding (a spike whose
    membrane lies within a rounding error of the threshold may move). It cannot be trained. Which norm follows which
    convolution is seen in a forward pass, and the result is checked against the model, both in float64.

    Args:
        model: a zoo model, spiking or not, or any timm model.
        input_size: ``(C, H, W)`` of the images, by default what the model and its ``pretrained_cfg`` say.

    Returns:
        The copy, in evaluation mode, on the model's device and in its dtype.

    Raises:
        InputError: the model does not take images of that size, answers with no tensor of finite numbers, has pruned or
            parametrized weights, or is not the same without its norms.
    """
    exact, probe = _probe(model, input_size)
    pairs, expected = _pairs(exact, probe)
    for conv_name, norm_name in pairs:
        _fold(exact, conv_name, norm_name)
    _check(exact, probe, expected)
    fused = exact.to(dtype=next(model.parameters()).dtype)
    return fused.to(memory_format=torch.channels_last) if _is_channels_last(model) else fused


@torch.no_grad()
@uncompiled()
def move_scales(model: nn.Module, input_size: tuple[int, ...] | None = None) -> None:
    """Move the scale of every batch norm that follows a convolution into it; the norm stays, and adds a bias.

    In evaluation mode the model computes what it did, to rounding, and its parameters keep their names. Of a norm that
    was moved only the bias is to be trained.

    Args:
        model: a zoo model, changed in place.
        input_size: ``(C, H, W)`` of the images, by default what the model and its ``pretrained_cfg`` say.

    Raises:
        InputError: the model does not take images of that size, or would not be the same; then it is as it was.
    """
    exact, probe = _probe(model, input_size)
    pairs, expected = _pairs(exact, probe)
    for conv_name, norm_name in pairs:
        conv, norm = exact.get_submodule(conv_name), exact.get_submodule(norm_name)
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        conv.weight.copy_(weight)
        if conv.bias is not None:
            conv.bias.zero_()
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
        norm.weight.fill_(1)
        norm.bias.copy_(bias)
    _check(exact, probe, expected)
    model.load_state_dict(exact.state_dict())
    for _, norm_name in pairs:
        model.get_submodule(norm_name).weight.requires_grad_(False)


def check_plain(model: nn.Module) -> None:
    """Refuse a model with weights that are computed from others, which no copy could be changed of.

    Raises:
        InputError: such a layer, by its path.
    """
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)) and not (
            {"weight", "bias"} <= module._parameters.keys()
        ):
            raise InputError(
                f"{name}: its weights are computed from others; make parameters of them first, with torch.nn.utils."
                f"parametrize.remove_parametrizations, prune.remove or remove_weight_norm"
            )


def _probe(model: nn.Module, input_size: tuple[int, ...] | None) -> tuple[nn.Module, Tensor]:
    """A copy of the model in float64 and in evaluation mode, and images for it."""
    if input_size is None:
        size = model.pretrained_cfg["input_size"]
        input_size = (getattr(model, "in_chans", size[0]), *size[1:])
    if min(input_size) < 1:
        raise InputError(f"input_size must be (C, H, W), each at least 1, got {tuple(input_size)}")
    check_plain(model)
    exact = copy.deepcopy(model).double().eval()
    device = next(exact.parameters()).device
    probe = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    return exact, probe


def _pairs(model: nn.Module, probe: Tensor) -> tuple[list[tuple[str, str]], Tensor]:
    """Names of each convolution and the norm that reads its output, and the model's output."""
    outputs, pairs, handles = {}, [], []  # outputs: by id, (tensor, kept alive so that the id stays its own; name)

    def after_conv(name):
        def hook(module, args, output):
            outputs[id(output)] = output, name

        return hook

    def before_norm(name):
        def hook(module, args):
            if id(args[0]) in outputs:
                pairs.append((outputs[id(args[0])][1], name))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(after_conv(name)))
        elif isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(before_norm(name)))
    try:
        expected = model(probe)
    except Exception as error:  # each architecture has its own way of refusing
        raise InputError(
            f"{type(model).__name__} does not take images of size {tuple(probe.shape[1:])}: {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(expected, Tensor):
        raise InputError(
            f"{type(model).__name__} answers with a {type(expected).__name__}, not with logits: make it without "
            f"features_only"
        )
    if not expected.isfinite().all():
        raise InputError(f"{type(model).__name__} answers with numbers that are not finite: look at its weights")
    return pairs, expected


def _check(changed: nn.Module, probe: Tensor, expected: Tensor) -> None:
    if not torch.allclose(changed(probe), expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max())):
        raise InputError(
            f"{type(changed).__name__} cannot have its norms folded: something besides a norm reads what it normalises"
        )


def _fold(model: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
    parent, _, attribute = norm_name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, rest)


def _is_channels_last(model: nn.Module) -> bool:
    kernels = [p for p in model.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    return any(k.is_contiguous(memory_format=torch.channels_last) for k in kernels)
