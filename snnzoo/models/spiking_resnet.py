"""Post-activation residual networks, spiking (``snn_resnet*``) and not (``cifar_resnet*``).

The two share one definition and one set of parameter names, timm's ResNet's (``conv1``, ``bn1``, ``layer1.0.conv1``,
``fc``): the spiking network is the other with LIF neurons in place of ReLU and layers that know about time.

Sources: "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), section 4.2 for the CIFAR shapes; the
spiking block as in "Advancing Training Efficiency of Deep SNNs through Rate-based Backpropagation" (arXiv 2410.11488).
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import create_classifier, get_device_dtype
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs
from timm.models._features import feature_take_indices  # where timm's own models take it from
from torch import Tensor, nn

from snnzoo import layers
from snnzoo.errors import InputError
from snnzoo.layers import LIF, Signal, TimeSeries, hold, to_rate
from snnzoo.models._registry import register_entry
from snnzoo.models._spiking import SpikingModel, neuron_params
from snnzoo.neurons import Surrogate

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


class PadShortcut(nn.Module):
    """The parameter-free shortcut of He et al.: every ``stride``-th pixel, new channels zero, half on either side."""

    def __init__(self, in_chs: int, out_chs: int, stride: int):
        super().__init__()
        self.stride = stride
        before = (out_chs - in_chs) // 2
        self.pad = (0, 0, 0, 0, before, out_chs - in_chs - before)

    def forward(self, x: TimeSeries) -> TimeSeries:
        if isinstance(x, Signal):
            with torch.no_grad():
                steps = self(x.steps)
            return Signal(steps, self(x.rate))
        return F.pad(x[..., :: self.stride, :: self.stride], self.pad)


class BasicBlock(nn.Module):
    """conv-BN-act-conv-BN-(+ shortcut)-act.

    Args:
        in_chs, out_chs: widths.
        stride: of the first convolution and the shortcut.
        shortcut: what stands in for the identity where the shape changes: ``'conv'``, a 1x1 convolution with batch
            norm, or ``'pad'``, :class:`PadShortcut`.
        conv_layer, norm_layer, act_layer: the layers to build from.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        stride: int,
        shortcut: str,
        conv_layer: Callable[..., nn.Module],
        norm_layer: Callable[..., nn.Module],
        act_layer: Callable[..., nn.Module],
    ):
        super().__init__()
        self.conv1 = conv_layer(in_chs, out_chs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm_layer(out_chs)
        self.act1 = act_layer()
        self.conv2 = conv_layer(out_chs, out_chs, 3, padding=1, bias=False)
        self.bn2 = norm_layer(out_chs)
        self.act2 = act_layer()
        if stride == 1 and in_chs == out_chs:
            self.downsample = None
        elif shortcut == "pad":
            self.downsample = PadShortcut(in_chs, out_chs, stride)
        else:
            self.downsample = nn.Sequential(
                conv_layer(in_chs, out_chs, 1, stride=stride, bias=False), norm_layer(out_chs)
            )

    def forward(self, x: TimeSeries) -> TimeSeries:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.act2(x + shortcut)


class ResNet(nn.Module):
    """Residual network with ReLU; the base of the spiking one.

    Args:
        depths: blocks of each stage.
        channels: width of each stage; the stem has the first one's.
        stem: ``'cifar'``, a 3x3 convolution, or ``'imagenet'``, a 7x7 one and a 3x3 max pooling, both of stride 2.
        shortcut: ``'conv'`` or ``'pad'``, see :class:`BasicBlock`.
        num_classes: outputs of the classifier; 0 for none.
        in_chans: input channels.
        global_pool: timm's names; ``''`` for none.
        drop_rate: dropout before the classifier.
        conv_layer, norm_layer, act_layer, pool_layer: the layers to build from.
    """

    def __init__(
        self,
        depths: Sequence[int],
        channels: Sequence[int],
        stem: str = "cifar",
        shortcut: str = "conv",
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        conv_layer: Callable[..., nn.Module] = nn.Conv2d,
        norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d,
        act_layer: Callable[..., nn.Module] = nn.ReLU,
        pool_layer: Callable[..., nn.Module] = nn.MaxPool2d,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        for name, value, known in (("stem", stem, ("cifar", "imagenet")), ("shortcut", shortcut, ("conv", "pad"))):
            if value not in known:
                raise InputError(f"{name} must be one of {known}, got {value!r}")
        if len(depths) != len(channels):
            raise InputError(f"a network has as many widths as depths, got depths={depths} and channels={channels}")
        dd = dict(device=device, dtype=dtype)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        kit = dict(conv_layer=partial(conv_layer, **dd), norm_layer=partial(norm_layer, **dd), act_layer=act_layer)
        width, reduction = channels[0], 1
        if stem == "cifar":
            self.conv1 = kit["conv_layer"](in_chans, width, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = kit["conv_layer"](in_chans, width, 7, stride=2, padding=3, bias=False)
            self.maxpool = pool_layer(3, stride=2, padding=1)
            reduction = 2
        self.bn1 = kit["norm_layer"](width)
        self.act1 = act_layer()
        self.feature_info = [dict(num_chs=width, reduction=reduction, module="act1")]
        reduction *= 2 if stem == "imagenet" else 1

        self.stage_names = []
        for i, (depth, out_chs) in enumerate(zip(depths, channels, strict=True)):
            stride = 1 if i == 0 else 2
            reduction *= stride
            blocks = [BasicBlock(width, out_chs, stride, shortcut, **kit)]
            blocks += [BasicBlock(out_chs, out_chs, 1, shortcut, **kit) for _ in range(depth - 1)]
            name, width = f"layer{i + 1}", out_chs
            self.add_module(name, nn.Sequential(*blocks))
            self.stage_names.append(name)
            self.feature_info.append(dict(num_chs=width, reduction=reduction, module=name))

        self.num_features = width
        self.global_pool, self.fc = create_classifier(width, num_classes, pool_type=global_pool, **dd)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """timm's parameter groups: the stem, and a group for each block (each stage if ``coarse``)."""
        return dict(stem=r"^conv1|bn1", blocks=r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)")

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: run each block's forward again in the backward pass.

        Rate-based backpropagation takes no part in it: it keeps only rates, and a block run again would have to keep
        the spikes of every step that enter it.
        """
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters to leave out of weight decay besides biases and norms: none."""
        return set()

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> str | nn.Module:
        """The classifier, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for ``num_classes`` classes (0: none); the pooling stays unless named."""
        self.num_classes = num_classes
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool, self.fc = create_classifier(
            self.num_features, num_classes, pool_type=pool_type, **get_device_dtype(self)
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def forward_stem(self, x: Tensor) -> TimeSeries:
        """Images to what the first stage's pooling receives."""
        return self.act1(self.bn1(self.conv1(x)))

    def forward_stage(self, x: TimeSeries, index: int) -> TimeSeries:
        """One stage, counted from 0."""
        stage = getattr(self, self.stage_names[index])
        if self.grad_checkpointing and self.training and not isinstance(x, Signal):
            return checkpoint_seq(stage, x)
        return stage(x)

    def to_feature(self, x: TimeSeries) -> Tensor:
        """What flows between the layers as a feature map ``[B, C, H, W]``."""
        return x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """timm's ``forward_intermediates``: the stem's and the stages' outputs, ``[B, C, H, W]`` each.

        Args:
            x: input as for ``forward``.
            indices: which of them (0 is the stem): the last n if a number, all if None.
            norm: unused, there is no final norm.
            stop_early: stop after the last one asked for.
            output_fmt: must be ``'NCHW'``.
            intermediates_only: leave the final features out.
        """
        if output_fmt != "NCHW":
            raise InputError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        take, last = feature_take_indices(len(self.stage_names) + 1, indices)
        x = self.forward_stem(x)
        intermediates = [self.to_feature(x)] if 0 in take else []
        x = self.maxpool(x)
        for i in range(last if stop_early else len(self.stage_names)):
            x = self.forward_stage(x, i)
            if i + 1 in take:
                intermediates.append(self.to_feature(x))
        return intermediates if intermediates_only else (self.to_feature(x), intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the intermediates asked for do not need; returns their indices."""
        take, last = feature_take_indices(len(self.stage_names) + 1, indices)
        pruned = last < len(self.stage_names)
        for name in self.stage_names[last:]:
            delattr(self, name)
        self.stage_names = self.stage_names[:last]
        if pruned:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head or pruned:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        """Images to the last stage's feature map ``[B, C, H, W]``."""
        x = self.maxpool(self.forward_stem(x))
        for i in range(len(self.stage_names)):
            x = self.forward_stage(x, i)
        return self.to_feature(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature map ``[B, C, H, W]`` to logits ``[B, num_classes]`` (to pooled features if ``pre_logits``)."""
        x = F.dropout(self.global_pool(x), self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        return self.forward_head(self.forward_features(x))


class SpikingResNet(SpikingModel, ResNet):
    """Residual network of LIF neurons.

    Feature maps are firing rates, means over time; so the logits, linear in them, are averages over time.

    Args:
        num_steps: T for static images.
        decay, threshold, reset, detach_reset, surrogate: the neuron, see :class:`~snnzoo.neurons.LIFParams`; the
            surrogate by name or as a :class:`~snnzoo.neurons.Surrogate`.
        grad_method: ``'rate'`` or ``'bptt'``.
        **kwargs: as for :class:`ResNet`.
    """

    def __init__(
        self,
        *args,
        num_steps: int = 4,
        decay: float = 0.2,
        threshold: float = 1.0,
        reset: str = "soft",
        detach_reset: bool = True,
        surrogate: str | Surrogate = "sigmoid",
        grad_method: str = "rate",
        **kwargs,
    ):
        super().__init__(
            *args,
            num_steps=num_steps,
            grad_method=grad_method,
            conv_layer=layers.Conv2d,
            norm_layer=layers.BatchNorm2d,
            act_layer=partial(LIF, neuron_params(decay, threshold, reset, detach_reset, surrogate)),
            pool_layer=layers.MaxPool2d,
            **kwargs,
        )

    def forward_stem(self, x: Tensor) -> TimeSeries:
        x, num_steps = self.encode(x)
        return self.act1(hold(self.bn1(self.conv1(x)), num_steps))

    def to_feature(self, x: TimeSeries) -> Tensor:
        return to_rate(x)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Foreign weights to our names: the classifier of the published CIFAR ResNets is called ``linear``."""
    return {("fc" + k[len("linear") :] if k.startswith("linear.") else k): v for k, v in state_dict.items()}


def _create_resnet(variant: str, pretrained: bool = False, model_cls: type[ResNet] = ResNet, **kwargs) -> ResNet:
    points = tuple(range(len(kwargs["depths"]) + 1))
    return build_model_with_cfg(
        model_cls,
        variant,
        pretrained,
        feature_cfg=dict(feature_cls="getter", out_indices=points),
        pretrained_filter_fn=checkpoint_filter_fn,
        **kwargs,
    )


def _cfg(**kwargs) -> dict:
    return {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": (4, 4),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": CIFAR10_MEAN,
        "std": CIFAR10_STD,
        "first_conv": "conv1",
        "classifier": "fc",
        "license": "apache-2.0",
        **kwargs,
    }


_WIDE = {"channels": (64, 128, 256, 512)}
_THIN = {"channels": (16, 32, 64)}
_ANNS = {
    "cifar_resnet18": dict(depths=(2, 2, 2, 2), **_WIDE),
    "cifar_resnet20": dict(depths=(3, 3, 3), shortcut="pad", **_THIN),
    "cifar_resnet32": dict(depths=(5, 5, 5), shortcut="pad", **_THIN),
    "cifar_resnet56": dict(depths=(9, 9, 9), shortcut="pad", **_THIN),
}
_SNNS = {
    "snn_resnet18": dict(depths=(2, 2, 2, 2), **_WIDE),
    "snn_resnet20": dict(depths=(3, 3, 3), **_THIN),
}
_STEPS = (1, 2, 4, 6)

default_cfgs = generate_default_cfgs(
    {
        "cifar_resnet18.c10": _cfg(),
        # The published weights of these three were trained on images normalised as ImageNet's.
        **{
            f"cifar_resnet{depth}.c10": _cfg(mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD, pool_size=(8, 8))
            for depth in (20, 32, 56)
        },
        **{f"snn_resnet18_t{steps}.c10": _cfg() for steps in _STEPS},
        **{f"snn_resnet20_t{steps}.c10": _cfg(pool_size=(8, 8)) for steps in _STEPS},
    }
)

for _name, _args in _ANNS.items():
    register_entry(_create_resnet, _name, **_args)
for _name, _args in _SNNS.items():
    for _steps in _STEPS:
        register_entry(_create_resnet, f"{_name}_t{_steps}", model_cls=SpikingResNet, num_steps=_steps, **_args)
