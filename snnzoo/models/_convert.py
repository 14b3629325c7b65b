"""Other people's weights: their names for our layers."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

# (their name, ours). timm's and torchvision's ResNets and SpikingJelly's models need no renaming.
_RENAMINGS = [
    # akamaster/pytorch_resnet_cifar10
    (r"^linear\.", "fc."),
    # fangwei123456/Spike-Element-Wise-ResNet: convolution and norm in one container
    (r"\bconv(\d)\.module\.0\.", r"conv\1."),
    (r"\bconv(\d)\.module\.1\.", r"bn\1."),
    (r"\bdownsample\.0\.module\.", "downsample."),
    # Tab-ct/rate-based-backpropagation: ResNet-18 and 19, then SEW-ResNet
    (r"^conv0\.0\.", "conv1."),
    (r"^conv0\.1\.", "bn1."),
    (r"\bshortcut\.", "downsample."),
    (r"^classifier\.2\.", "fc."),
    (r"\bconvNeuron(\d)\.0\.", r"conv\1."),
    (r"\bconvNeuron(\d)\.1\.", r"bn\1."),
]


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Weights under the names of other code bases as ``model``'s.

    Known are timm's and torchvision's ResNets, SpikingJelly's ``spiking_resnet`` and ``sew_resnet``, and the models of
    the repositories Spike-Element-Wise-ResNet, rate-based-backpropagation and pytorch_resnet_cifar10. A bias of a
    convolution before a batch norm, which our convolutions do without, goes into that norm's running mean.

    Args:
        state_dict: weights by name, or a checkpoint of rate-based-backpropagation that has them as ``best_net``.
        model: the model that they are for.
    """
    state_dict = state_dict.get("best_net", state_dict)
    # With a hidden layer before it the classifier is the last of three; without, it is the first of one.
    renamings = [*_RENAMINGS, (r"^classifier\.0\.", "head_fc." if "classifier.2.weight" in state_dict else "fc.")]
    renamed = {}
    for key, value in state_dict.items():
        for pattern, name in renamings:
            key = re.sub(pattern, name, key)
        renamed[key] = value
    for name, module in model.named_modules():
        bias = renamed.get(f"{name}.bias")
        if isinstance(module, nn.Conv2d) and module.bias is None and bias is not None:
            norm = name.replace("downsample.0", "downsample.1") if "downsample" in name else _norm_of(name)
            if f"{norm}.running_mean" in renamed:  # otherwise loading says that there is one bias too many
                renamed[f"{norm}.running_mean"] = renamed[f"{norm}.running_mean"] - renamed.pop(f"{name}.bias")
    return renamed


def _norm_of(conv: str) -> str:
    return re.sub(r"conv(\d)$", r"bn\1", conv)
