"""Spike-element-wise residual networks (``snn_sew_resnet*``): branch and shortcut meet as spikes.

Parameter names are those of timm's ResNet and of SpikingJelly's SEW-ResNet, whose weights fit.

Source: "Deep Residual Learning in Spiking Neural Networks" (arXiv 2102.04159).
"""

from collections.abc import Sequence
from functools import partial

from timm.layers import register_notrace_module
from timm.models import generate_default_cfgs
from torch import Tensor, nn

from snnzoo.errors import InputError
from snnzoo.layers import TimeSeries, elementwise
from snnzoo.models._base import StagedNet, check_choice
from snnzoo.models._blocks import ResidualBlock
from snnzoo.models._cfgs import cfgs
from snnzoo.models._convert import checkpoint_filter_fn
from snnzoo.models._registry import build, register_entry, with_steps
from snnzoo.models._spiking import SpikingModel

__all__ = ["Connect", "SEWBlock", "SpikingSEWResNet", "checkpoint_filter_fn"]


def _add(branch: Tensor, shortcut: Tensor) -> Tensor:
    return branch + shortcut


def _and(branch: Tensor, shortcut: Tensor) -> Tensor:
    return branch * shortcut


def _iand(branch: Tensor, shortcut: Tensor) -> Tensor:
    return (1 - branch) * shortcut


CONNECTS = {"add": _add, "and": _and, "iand": _iand}


@register_notrace_module
class Connect(nn.Module):
    """Branch A and shortcut S, spike by spike: ``'add'``: A + S; ``'and'``: A S; ``'iand'``: (1 - A) S.

    Raises:
        InputError: another name.
    """

    def __init__(self, name: str):
        super().__init__()
        check_choice("connect", name, tuple(CONNECTS))
        self.name = name

    def forward(self, branch: TimeSeries, shortcut: TimeSeries) -> TimeSeries:
        return elementwise(CONNECTS[self.name], branch, shortcut)

    def extra_repr(self) -> str:
        return self.name


class SEWBlock(ResidualBlock):
    """conv-BN-LIF twice (or three times), then ``connect`` with the shortcut, conv-BN-LIF itself where shapes change.

    Args:
        connect: see :class:`Connect`.
        **kwargs: as for :class:`~snnzoo.models._blocks.ResidualBlock`.
    """

    def __init__(self, *args, connect: str, **kwargs):
        super().__init__(*args, shortcut_act=True, **kwargs)
        self.connect = Connect(connect)
        if connect == "and":
            # Products of rates vanish with depth. A branch that always fires lets the shortcut through (section 4.2).
            _, bn, act = self.units()[-1]
            nn.init.zeros_(bn.weight)
            nn.init.constant_(bn.bias, 1.01 * act.params.threshold)  # above it in 16 bits, too

    def forward(self, x: TimeSeries) -> TimeSeries:
        shortcut = self.forward_shortcut(x)
        for conv, bn, act in self.units():
            x = act(bn(conv(x)))
        return self.connect(self.drop_path(x), shortcut)


class SpikingSEWResNet(SpikingModel, StagedNet):
    """Residual network whose blocks pass on spikes, or with ``connect='add'`` whole numbers of them.

    Args:
        depths, channels: blocks and output width of each stage.
        connect: ``'add'``, ``'and'`` or ``'iand'``, see :class:`Connect`.
        bottleneck: three convolutions in a block instead of two, as from ResNet-50 on.
        **kwargs: as for :class:`~snnzoo.models._spiking.SpikingModel`.

    Raises:
        InputError: another ``connect``, or ``drop_path_rate`` with one that no branch can be dropped from.
    """

    def __init__(
        self,
        depths: Sequence[int],
        channels: Sequence[int],
        connect: str = "add",
        bottleneck: bool = False,
        drop_path_rate: float = 0.0,
        **kwargs,
    ):
        if drop_path_rate and connect != "add":
            raise InputError(f"drop_path_rate needs connect='add', got connect={connect!r}: a product is not dropped")
        block = partial(SEWBlock, connect=connect, bottleneck=bottleneck)
        super().__init__(depths, channels, block=block, stem_width=64, drop_path_rate=drop_path_rate, **kwargs)


def _create_sew_resnet(variant: str, pretrained: bool = False, **kwargs) -> SpikingSEWResNet:
    return build(SpikingSEWResNet, variant, pretrained, **kwargs)


_BASIC = dict(channels=(64, 128, 256, 512))
_ROWS = {
    "snn_sew_resnet18": dict(depths=(2, 2, 2, 2), **_BASIC),
    "snn_sew_resnet34": dict(depths=(3, 4, 6, 3), **_BASIC),
    "snn_sew_resnet50": dict(depths=(3, 4, 6, 3), channels=(256, 512, 1024, 2048), bottleneck=True),
}

default_cfgs = generate_default_cfgs(
    {
        key: cfg
        for row in _ROWS
        for key, cfg in cfgs(with_steps(row), ("in1k",), 32, ann=f"timm/{row.removeprefix('snn_sew_')}.a1_in1k").items()
    }
)

for _row, _args in _ROWS.items():
    for _name, _steps in with_steps(_row).items():
        register_entry(_create_sew_resnet, _name, num_steps=_steps, stem="imagenet", **_args)
