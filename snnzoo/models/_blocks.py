"""What the residual families' blocks have in common: convolutions, norms and activations, and the shortcut."""

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import nn

from snnzoo.layers import Signal, TimeSeries
from snnzoo.models._base import Layers, check_choice

SHORTCUTS = ("conv", "pad")


@register_notrace_module
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


class ResidualBlock(nn.Module):
    """``conv1, bn1, act1, conv2, bn2, act2`` (and a third of each) and ``downsample``; a family orders them.

    Args:
        in_chs, out_chs: widths.
        stride: of the first 3x3 convolution and the shortcut.
        dilation: of the 3x3 convolutions.
        first_dilation: of the first of them.
        drop_path: probability of dropping the branch.
        layers: what to build from.
        bottleneck: 1x1, 3x3, 1x1 convolutions, the first two of a quarter of ``out_chs``, instead of two 3x3 ones.
        shortcut: what stands in for the identity where the shape changes: ``'conv'``, a 1x1 convolution with batch
            norm, or ``'pad'``, :class:`PadShortcut`.
        shortcut_act: an activation after that convolution and batch norm.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        stride: int,
        dilation: int,
        first_dilation: int,
        drop_path: float,
        layers: Layers,
        bottleneck: bool = False,
        shortcut: str = "conv",
        shortcut_act: bool = False,
    ):
        super().__init__()
        check_choice("shortcut", shortcut, SHORTCUTS)
        if bottleneck:
            mid = out_chs // 4
            convs = [(in_chs, mid, 1, 1, 1), (mid, mid, 3, stride, first_dilation), (mid, out_chs, 1, 1, 1)]
        else:
            convs = [(in_chs, out_chs, 3, stride, first_dilation), (out_chs, out_chs, 3, 1, dilation)]
        for i, (ins, outs, kernel, step, dil) in enumerate(convs, start=1):
            conv = layers.conv(ins, outs, kernel, stride=step, padding=dil * (kernel // 2), dilation=dil, bias=False)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", layers.norm(outs))
            self.add_module(f"act{i}", layers.act())
        self.num_convs = len(convs)
        self.drop_path = layers.drop_path(drop_path) if drop_path else nn.Identity()
        if stride == 1 and in_chs == out_chs:
            self.downsample = None
        elif shortcut == "pad":
            self.downsample = PadShortcut(in_chs, out_chs, stride)
        else:
            parts = [layers.conv(in_chs, out_chs, 1, stride=stride, bias=False), layers.norm(out_chs)]
            self.downsample = nn.Sequential(*parts, *([layers.act()] if shortcut_act else []))

    def units(self) -> list[tuple[nn.Module, nn.Module, nn.Module]]:
        """The convolutions in their order, each with its norm and its activation."""
        return [
            (getattr(self, f"conv{i}"), getattr(self, f"bn{i}"), getattr(self, f"act{i}"))
            for i in range(1, self.num_convs + 1)
        ]

    def forward_shortcut(self, x: TimeSeries) -> TimeSeries:
        """The other way through the block."""
        return x if self.downsample is None else self.downsample(x)
