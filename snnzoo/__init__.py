"""Spiking neural networks as timm models, distilled from ANNs, on neuromorphic hardware.

Importing the package registers its models with timm::

    import snnzoo, timm
    model = timm.create_model('snn_resnet18_t4', num_classes=10)

Layout of time, everywhere: a model takes images ``[B, C, H, W]`` or frames ``[B, T, C, H, W]``; inside, time is the
first axis, ``[T, B, ...]``. Suffixes: T steps, B batch, C channels, H, W.
"""

from snnzoo import models
from snnzoo.errors import InputError
from snnzoo.folding import fuse
from snnzoo.fused import set_backend
from snnzoo.neurons import LIFParams, Surrogate
from snnzoo.version import __version__

__all__ = ["InputError", "LIFParams", "Surrogate", "__version__", "fuse", "models", "set_backend"]
