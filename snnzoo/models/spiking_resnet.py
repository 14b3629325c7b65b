"""Post-activation residual networks, spiking (``snn_resnet*``) and not (``cifar_resnet*``).

The two share one definition and one set of parameter names, timm's ResNet's (``conv1``, ``bn1``, ``layer1.0.conv1``,
``fc``): the spiking network is the other with LIF neurons in place of ReLU and layers that know about time.

Sources: "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), section 4.2 for the CIFAR shapes; ResNet-19
with its hidden layer before the classifier, "Going Deeper With Directly-Trained Larger Spiking Neural Networks" (arXiv
2011.05280); the spiking block as in "Advancing Training Efficiency of Deep SNNs through Rate-based Backpropagation"
(arXiv 2410.11488).
"""

from collections.abc import Sequence
from functools import partial

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs

from snnzoo.layers import TimeSeries, add
from snnzoo.models._base import StagedNet
from snnzoo.models._blocks import ResidualBlock
from snnzoo.models._cfgs import cfgs
from snnzoo.models._convert import checkpoint_filter_fn
from snnzoo.models._registry import build, register_entry, with_steps
from snnzoo.models._spiking import SpikingModel

__all__ = ["BasicBlock", "ResNet", "SpikingResNet", "checkpoint_filter_fn"]


class BasicBlock(ResidualBlock):
    """conv-BN-act-conv-BN-(+ shortcut)-act."""

    def forward(self, x: TimeSeries) -> TimeSeries:
        shortcut = self.forward_shortcut(x)
        *inner, (conv, bn, act) = self.units()
        for conv_i, bn_i, act_i in inner:
            x = act_i(bn_i(conv_i(x)))
        return act(add(self.drop_path(bn(conv(x))), shortcut))


class ResNet(StagedNet):
    """Residual network with ReLU.

    Args:
        depths, channels: blocks and width of each stage.
        shortcut: ``'conv'`` or ``'pad'``, see :class:`~snnzoo.models._blocks.ResidualBlock`.
        **kwargs: as for :class:`~snnzoo.models._base.StagedNet`.
    """

    def __init__(self, depths: Sequence[int], channels: Sequence[int], shortcut: str = "conv", **kwargs):
        super().__init__(depths, channels, block=partial(BasicBlock, shortcut=shortcut), **kwargs)


class SpikingResNet(SpikingModel, ResNet):
    """Residual network of LIF neurons."""


def _create_resnet(variant: str, pretrained: bool = False, **kwargs) -> ResNet:
    spiking = variant.startswith("snn_")
    return build(SpikingResNet if spiking else ResNet, variant, pretrained, **kwargs)


_WIDE = dict(channels=(64, 128, 256, 512))
_RESNET18 = dict(depths=(2, 2, 2, 2), **_WIDE)
_RESNET19 = dict(depths=(3, 3, 2), channels=(128, 256, 512), head_width=256)
_RESNET20 = dict(depths=(3, 3, 3), channels=(16, 32, 64))
_RESNET34 = dict(depths=(3, 4, 6, 3), **_WIDE)
_ANNS = {
    "cifar_resnet18": _RESNET18,
    "cifar_resnet19": _RESNET19,
    "cifar_resnet20": dict(shortcut="pad", **_RESNET20),
    "cifar_resnet32": dict(shortcut="pad", **{**_RESNET20, "depths": (5, 5, 5)}),
    "cifar_resnet34": _RESNET34,
    "cifar_resnet56": dict(shortcut="pad", **{**_RESNET20, "depths": (9, 9, 9)}),
}
_SNN18, _SNN20, _SNN34 = map(with_steps, ("snn_resnet18", "snn_resnet20", "snn_resnet34"))
_SNN19 = with_steps("snn_resnet19", (1, 2, 4, 6, 10))
_THIN = ("cifar_resnet20", "cifar_resnet32", "cifar_resnet56")

default_cfgs = generate_default_cfgs(
    {
        **cfgs(("cifar_resnet18", "cifar_resnet34", *_SNN18), ("c10", "c100"), 8),
        **cfgs(("cifar_resnet19", *_SNN19), ("c10", "c100", "c10dvs"), 4),
        **cfgs((*_THIN, *_SNN20), ("c10", "c100"), 4),
        # The published weights of these three were trained on images normalised as ImageNet's.
        **cfgs(_THIN, ("c10",), 4, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD),
        **cfgs(_SNN34, ("in1k",), 32, ann="timm/resnet34.a1_in1k"),
    }
)

for _name, _args in _ANNS.items():
    register_entry(_create_resnet, _name, **_args)
for _rows, _args in (
    (_SNN18, _RESNET18),
    (_SNN19, _RESNET19),
    (_SNN20, _RESNET20),
    (_SNN34, dict(stem="imagenet", **_RESNET34)),
):
    for _name, _steps in _rows.items():
        register_entry(_create_resnet, _name, num_steps=_steps, **_args)
