"""The zoo. Importing it registers every model with timm."""

from snnzoo.models.spiking_resnet import ResNet, SpikingResNet

__all__ = ["ResNet", "SpikingResNet"]
