"""Sequential spiking networks (``snn_vgg*``): convolutions only, of stride 2 where VGG has a pooling.

Without pooling, shortcuts and sums they fit the simplest file formats of neuromorphic tool chains.

Source: configuration A of "Very Deep Convolutional Networks for Large-Scale Image Recognition" (arXiv 1409.1556), its
fully connected layers replaced by one behind global average pooling, as usual on CIFAR.
"""

from collections.abc import Sequence

from timm.models import generate_default_cfgs
from torch import nn

from snnzoo.errors import InputError
from snnzoo.layers import TimeSeries
from snnzoo.models._base import Layers, StagedNet
from snnzoo.models._cfgs import cfgs
from snnzoo.models._convert import checkpoint_filter_fn
from snnzoo.models._registry import build, register_entry, with_steps
from snnzoo.models._spiking import SpikingModel

__all__ = ["ConvBlock", "SpikingVGG", "checkpoint_filter_fn"]


class ConvBlock(nn.Module):
    """conv-BN-LIF; the arguments are those of every block, see :class:`~snnzoo.models._base.StagedNet`."""

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        stride: int,
        dilation: int,
        first_dilation: int,
        drop_path: float,
        layers: Layers,
    ):
        super().__init__()
        self.conv1 = layers.conv(
            in_chs, out_chs, 3, stride=stride, padding=first_dilation, dilation=first_dilation, bias=False
        )
        self.bn1 = layers.norm(out_chs)
        self.act1 = layers.act()

    def forward(self, x: TimeSeries) -> TimeSeries:
        return self.act1(self.bn1(self.conv1(x)))


class SpikingVGG(SpikingModel, StagedNet):
    """A chain of convolutions and LIF neurons.

    Args:
        depths, channels: convolutions and width of each stage after the stem; each begins with stride 2.
        drop_path_rate: must be 0: there is no path beside the one.
        **kwargs: as for :class:`~snnzoo.models._spiking.SpikingModel`.

    Raises:
        InputError: another ``drop_path_rate``.
    """

    def __init__(self, depths: Sequence[int], channels: Sequence[int], drop_path_rate: float = 0.0, **kwargs):
        if drop_path_rate:
            raise InputError(f"drop_path_rate needs shortcuts, which a VGG does not have: got {drop_path_rate!r}")
        super().__init__(depths, channels, block=ConvBlock, strides=[2] * len(depths), stem_width=64, **kwargs)


def _create_vgg(variant: str, pretrained: bool = False, **kwargs) -> SpikingVGG:
    return build(SpikingVGG, variant, pretrained, **kwargs)


_VGG11 = with_steps("snn_vgg11")

default_cfgs = generate_default_cfgs(cfgs(_VGG11, ("c10", "c100"), 16))

for _name, _steps in _VGG11.items():
    register_entry(_create_vgg, _name, num_steps=_steps, depths=(1, 2, 2, 2), channels=(128, 256, 512, 512))
