"""The zoo. Importing it registers every model with timm."""

from snnzoo.models.spiking_preact_resnet import SpikingPreActResNet
from snnzoo.models.spiking_resnet import ResNet, SpikingResNet
from snnzoo.models.spiking_sew_resnet import SpikingSEWResNet
from snnzoo.models.spiking_vgg import SpikingVGG

__all__ = ["ResNet", "SpikingPreActResNet", "SpikingResNet", "SpikingSEWResNet", "SpikingVGG"]
