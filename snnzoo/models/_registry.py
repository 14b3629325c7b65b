"""Registration with timm for names that come in rows, such as ``snn_resnet18_t1 … _t6``."""

import sys
from collections.abc import Callable
from typing import Any

from timm.models import register_model
from torch import nn


def register_entry(create: Callable[..., nn.Module], name: str, **model_args: Any) -> None:
    """Register ``name`` with timm as ``create(name, pretrained, **model_args)``, the caller's arguments winning.

    The entry point becomes a function of the module that defines ``create``, whose ``default_cfgs`` timm reads.
    """

    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return create(name, pretrained, **{**model_args, **kwargs})

    entry.__name__ = entry.__qualname__ = name
    entry.__module__ = create.__module__
    setattr(sys.modules[create.__module__], name, register_model(entry))
