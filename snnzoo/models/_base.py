"""The network that every family is: a stem, stages of blocks, a head; and all of timm's contract, once.

A family says which block its stages are made of. The layers come as one :class:`Layers`, so the same definition builds
the ANN and, from layers that know about time, the spiking network (:mod:`snnzoo.models._spiking`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral

import torch
import torch.nn.functional as F
from timm.layers import DropPath, create_classifier, get_device_dtype
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices  # where timm's own models take it from
from torch import Tensor, nn

from snnzoo.errors import InputError
from snnzoo.layers import TimeSeries, is_signal

STEMS = ("cifar", "imagenet")


@dataclass(frozen=True)
class Layers:
    """Constructors of what a network is built from; by default an ANN's."""

    conv: Callable[..., nn.Module] = nn.Conv2d
    norm: Callable[..., nn.Module] = nn.BatchNorm2d
    act: Callable[[], nn.Module] = nn.ReLU
    max_pool: Callable[..., nn.Module] = nn.MaxPool2d
    linear: Callable[..., nn.Module] = nn.Linear
    drop_path: Callable[[float], nn.Module] = DropPath


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raise :class:`InputError` unless ``value`` is one of ``known``."""
    if value not in known:
        raise InputError(f"{name} must be one of {tuple(known)}, got {value!r}")


def check_sizes(name: str, value: Sequence[int]) -> None:
    """Raise :class:`InputError` unless ``value`` is a sequence of positive whole numbers."""
    if not (isinstance(value, Sequence) and all(isinstance(size, Integral) and size > 0 for size in value)):
        raise InputError(f"{name} must be whole numbers of at least 1, one for each stage, got {value!r}")


class StagedNet(nn.Module):
    """Stem, stages, pooling and classifier, under the names of timm's ResNet (``conv1``, ``layer1.0``, ``fc``).

    Args:
        depths: blocks of each stage.
        channels: output width of each stage.
        block: makes a block: ``block(in_chs, out_chs, stride, dilation=…, first_dilation=…, drop_path=…, layers=…)``.
        strides: of each stage's first block; 1 and then 2s by default.
        stem: ``'cifar'``, a 3x3 convolution, or ``'imagenet'``, a 7x7 one and a 3x3 max pooling, both of stride 2.
        stem_width: of the stem; the first stage's by default.
        stem_act: an activation after the stem's batch norm.
        final_act: an activation after the last stage.
        head_width: of a hidden layer with activation before the classifier; None for none. It needs pooled features,
            so with ``global_pool=''`` it is left out.
        num_classes: outputs of the classifier; 0 for none.
        in_chans: input channels.
        global_pool: timm's names; ``''`` for none.
        output_stride: stages that would reduce the input further keep their size and dilate instead, as in timm.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, falling linearly to 0 at the first.
        layers: what to build from.
        device, dtype: of the parameters.

    Raises:
        InputError: a value that is not allowed; the message names it.
    """

    def __init__(
        self,
        depths: Sequence[int],
        channels: Sequence[int],
        block: Callable[..., nn.Module],
        strides: Sequence[int] | None = None,
        stem: str = "cifar",
        stem_width: int | None = None,
        stem_act: bool = True,
        final_act: bool = False,
        head_width: int | None = None,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        output_stride: int = 32,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layers: Layers | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_choice("stem", stem, STEMS)
        check_sizes("depths", depths)
        check_sizes("channels", channels)
        if len(depths) != len(channels):
            raise InputError(f"a network has as many widths as depths, got depths={depths} and channels={channels}")
        smallest = 4 if stem == "imagenet" else 1
        if output_stride not in (1, 2, 4, 8, 16, 32) or output_stride < smallest:
            raise InputError(
                f"output_stride must be a power of two from {smallest}, the reduction of the stem, to 32, "
                f"got {output_stride!r}"
            )
        if not 0 <= drop_path_rate < 1:
            raise InputError(f"drop_path_rate must lie in [0, 1), got {drop_path_rate!r}")
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.stem = stem
        self.drop_rate = drop_rate
        self.head_width = head_width
        self.grad_checkpointing = False

        dd = dict(device=device, dtype=dtype)
        layers = layers or Layers()
        self._linear = layers.linear
        layers = replace(layers, conv=partial(layers.conv, **dd), norm=partial(layers.norm, **dd))
        width = stem_width or channels[0]
        if stem == "cifar":
            self.conv1 = layers.conv(in_chans, width, 3, padding=1, bias=False)
        else:
            self.conv1 = layers.conv(in_chans, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = layers.norm(width)
        self.act1 = layers.act() if stem_act else nn.Identity()
        self.maxpool = layers.max_pool(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity()
        self.feature_info = [dict(num_chs=width, reduction=2 if stem == "imagenet" else 1, module="act1")]

        self.stage_names = []
        reduction, dilation, first_dilation, index = smallest, 1, 1, 0
        strides = strides or (1, *[2] * (len(depths) - 1))
        for i, (depth, out_chs, stride) in enumerate(zip(depths, channels, strides, strict=True)):
            if reduction * stride > output_stride:
                dilation, stride = dilation * stride, 1
            reduction *= stride
            blocks = []
            for j in range(depth):
                drop_path = drop_path_rate * index / max(sum(depths) - 1, 1)
                blocks.append(
                    block(
                        width,
                        out_chs,
                        stride if j == 0 else 1,
                        dilation=dilation,
                        first_dilation=first_dilation,
                        drop_path=drop_path,
                        layers=layers,
                    )
                )
                width, first_dilation, index = out_chs, dilation, index + 1
            name = f"layer{i + 1}"
            self.add_module(name, nn.Sequential(*blocks))
            self.stage_names.append(name)
            self.feature_info.append(dict(num_chs=width, reduction=reduction, module=name))
        self.final_act = layers.act() if final_act else nn.Identity()

        self.num_features = width
        self.head_fc = nn.Identity()
        self.head_act = layers.act() if head_width else nn.Identity()
        self._make_head(num_classes, global_pool, dd)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _make_head(self, num_classes: int, pool_type: str, dd: dict) -> None:
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=pool_type, **dd)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        if not (self.head_width and pool_type):
            self.head_fc = nn.Identity()
            return
        # The hidden layer is a feature, not the classifier: it stays where its input keeps its size.
        if getattr(self.head_fc, "in_features", None) != self.head_hidden_size:
            self.head_fc = self._linear(self.head_hidden_size, self.head_width, **dd)
        _, self.fc = create_classifier(self.head_width, num_classes, **dd)
        self.head_hidden_size = self.head_width

    @property
    def has_hidden_head(self) -> bool:
        """Whether pooled features pass a hidden layer before the classifier."""
        return isinstance(self.head_fc, nn.Linear)

    # --- timm's contract: the parts ---------------------------------------------------------------------------------

    def __prepare_scriptable__(self):
        raise InputError(
            f"{type(self).__name__} has no TorchScript form (torch deprecates it): use torch.compile or torch.export"
        )

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
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        self._make_head(num_classes, pool_type, get_device_dtype(self))
        for module in (self.global_pool, self.head_fc, self.fc):
            module.train(self.training)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the intermediates asked for do not need; returns their indices."""
        take, last = feature_take_indices(len(self.stage_names) + 1, indices)
        pruned = last < len(self.stage_names)
        for name in self.stage_names[last:]:
            delattr(self, name)
        self.stage_names = self.stage_names[:last]
        if last == 0:
            self.maxpool = nn.Identity()
        if prune_norm or pruned:
            self.final_act = nn.Identity()
        if pruned:
            self.num_features = self.feature_info[last]["num_chs"]
            self.head_width = None  # it was made for the last stage's features
        if prune_head or pruned:
            self.reset_classifier(0, "")
        return take

    # --- forward ----------------------------------------------------------------------------------------------------

    def forward_stem(self, x: Tensor) -> TimeSeries:
        """Images to what the first stage's pooling receives."""
        return self.act1(self.bn1(self.conv1(x)))

    def forward_stage(self, x: TimeSeries, index: int) -> TimeSeries:
        """One stage, counted from 0."""
        stage = getattr(self, self.stage_names[index])
        if self.grad_checkpointing and self.training and not is_signal(x):
            return checkpoint_seq(stage, x)
        return stage(x)

    def forward_stages(self, x: Tensor) -> TimeSeries:
        """Images to what the head receives."""
        x = self.maxpool(self.forward_stem(x))
        for i in range(len(self.stage_names)):
            x = self.forward_stage(x, i)
        return self.final_act(x)

    def to_feature(self, x: TimeSeries) -> Tensor:
        """What flows between the layers as a feature map ``[B, C, H, W]``."""
        return x

    def to_last_feature(self, x: TimeSeries) -> Tensor:
        """The same of what the head receives."""
        return self.to_feature(x)

    def from_feature(self, x: Tensor) -> TimeSeries:
        """A feature map ``[B, C, H, W]`` as what flows between the layers."""
        return x

    def forward_pool(self, x: TimeSeries) -> Tensor:
        """What the last stage gives to what the classifier receives, ``[B, head_hidden_size]``."""
        x = self.global_pool(x)
        return self.head_act(self.head_fc(x)) if self.has_hidden_head else x

    def _head(self, x: TimeSeries, pre_logits: bool = False) -> Tensor:
        x = F.dropout(self.forward_pool(x), self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images to the last feature map ``[B, C, H, W]``."""
        return self.to_last_feature(self.forward_stages(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature map ``[B, C, H, W]`` to logits ``[B, num_classes]`` (to pooled features if ``pre_logits``)."""
        return self._head(self.from_feature(x), pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        return self._head(self.forward_stages(x))

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
            norm: pass the last one through ``final_act``, where the family has one.
            stop_early: stop after the last one asked for.
            output_fmt: must be ``'NCHW'``.
            intermediates_only: leave the final features out.

        Raises:
            InputError: another output format.
        """
        check_choice("output_fmt", output_fmt, ("NCHW",))
        take, last = feature_take_indices(len(self.stage_names) + 1, indices)
        x = self.forward_stem(x)
        intermediates = [self.to_feature(x)] if 0 in take else []
        x = self.maxpool(x)
        num_stages = len(self.stage_names)
        for i in range(last if stop_early else num_stages):
            x = self.forward_stage(x, i)
            if i + 1 in take:
                is_final = norm and i + 1 == num_stages
                intermediates.append(self.to_feature(self.final_act(x) if is_final else x))
        return intermediates if intermediates_only else (self.to_last_feature(self.final_act(x)), intermediates)
