"""Pre-activation spiking residual networks (``snn_preact_resnet*``): the shortcut carries currents, not spikes.

Also known as MS-ResNet. Parameter names are those of timm's ResNet, whose weights fit.

Sources: "Advancing Spiking Neural Networks towards Deep Residual Learning" (arXiv 2112.08954); without a neuron in the
stem and after the last stage as in "Advancing Training Efficiency of Deep SNNs through Rate-based Backpropagation"
(arXiv 2410.11488).
"""

from collections.abc import Sequence

import torch.fx
from timm.models import generate_default_cfgs

from snnzoo.layers import TimeSeries, add, settle
from snnzoo.models._base import StagedNet
from snnzoo.models._blocks import ResidualBlock
from snnzoo.models._cfgs import cfgs
from snnzoo.models._convert import checkpoint_filter_fn
from snnzoo.models._registry import build, register_entry, with_steps
from snnzoo.models._spiking import SpikingModel

torch.fx.wrap("settle")

__all__ = ["PreActBlock", "SpikingPreActResNet", "checkpoint_filter_fn"]


class PreActBlock(ResidualBlock):
    """LIF-conv-BN-LIF-conv-BN + shortcut, all of them currents."""

    def forward(self, x: TimeSeries) -> TimeSeries:
        shortcut = self.forward_shortcut(x)
        for conv, bn, act in self.units():
            x = bn(conv(act(x)))
        return settle(add(self.drop_path(x), shortcut))  # the next block reads it twice


class SpikingPreActResNet(SpikingModel, StagedNet):
    """Residual network whose blocks begin with LIF neurons. Its feature maps are mean currents.

    Args:
        depths, channels: blocks and width of each stage.
        spike_head: LIF neurons after the last stage, so that the classifier receives spikes; the reference has none.
        **kwargs: as for :class:`~snnzoo.models._spiking.SpikingModel`.
    """

    def __init__(self, depths: Sequence[int], channels: Sequence[int], spike_head: bool = False, **kwargs):
        super().__init__(depths, channels, block=PreActBlock, stem_act=False, final_act=spike_head, **kwargs)


def _create_preact_resnet(variant: str, pretrained: bool = False, **kwargs) -> SpikingPreActResNet:
    return build(SpikingPreActResNet, variant, pretrained, **kwargs)


_ROWS = {"snn_preact_resnet18": (2, 2, 2, 2), "snn_preact_resnet34": (3, 4, 6, 3)}

default_cfgs = generate_default_cfgs(
    {
        key: cfg
        for row in _ROWS
        for key, cfg in cfgs(
            with_steps(row), ("in1k",), 32, ann=f"timm/{row.removeprefix('snn_preact_')}.a1_in1k"
        ).items()
    }
)

for _row, _depths in _ROWS.items():
    for _name, _steps in with_steps(_row).items():
        register_entry(
            _create_preact_resnet,
            _name,
            num_steps=_steps,
            depths=_depths,
            channels=(64, 128, 256, 512),
            stem="imagenet",
        )
