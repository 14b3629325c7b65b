"""Registration with timm: names that come in rows, such as ``snn_resnet18_t1 … _t6``, and the building behind them."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from timm.models import build_model_with_cfg, register_model, resolve_pretrained_cfg
from torch import nn

from snnzoo.errors import InputError
from snnzoo.models._convert import checkpoint_filter_fn
from snnzoo.models._spiking import SpikingModel

STEPS = (1, 2, 4, 6)


def register_entry(create: Callable[..., nn.Module], name: str, **model_args: Any) -> None:
    """Register ``name`` with timm as ``create(name, pretrained, **model_args)``, the caller's arguments winning.

    The entry point becomes a function of the module that defines ``create``, whose ``default_cfgs`` timm reads.
    """

    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return create(name, pretrained, **{**model_args, **kwargs})

    entry.__name__ = entry.__qualname__ = name
    entry.__module__ = create.__module__
    setattr(sys.modules[create.__module__], name, register_model(entry))


def with_steps(name: str, steps: Sequence[int] = STEPS) -> dict[str, int]:
    """The names of a model by its default number of steps, and that number: ``{'snn_resnet18_t1': 1, …}``."""
    return {f"{name}_t{t}": t for t in steps}


def build(model_cls: type[nn.Module], variant: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """timm's ``build_model_with_cfg`` for a :class:`~snnzoo.models._base.StagedNet`.

    Raises:
        InputError: ``pretrained`` without weights to load, or a kind of feature extraction that would bypass time.
    """
    if pretrained:
        cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
        if not (cfg.has_weights or cfg.state_dict):
            name = f"{cfg.architecture or variant}.{cfg.tag}" if cfg.tag else variant
            raise InputError(
                f"No pretrained weights exist for {name}: its pretrained_cfg names no file, url or Hub repository. "
                f"Use pretrained=False for random weights, or give their file as the checkpoint "
                f"(checkpoint_path=…, or pretrained_cfg_overlay=dict(file=…)) or 'hf-hub:USER/REPO' as the model's name"
            )
    if issubclass(model_cls, SpikingModel) and kwargs.get("feature_cls", "getter") != "getter":
        raise InputError(
            f"feature_cls must be 'getter' for a spiking model, got {kwargs['feature_cls']!r}: the others take the "
            f"outputs of modules, which are time series, where features are rates"
        )
    return build_model_with_cfg(
        model_cls,
        variant,
        pretrained,
        feature_cfg=dict(feature_cls="getter", out_indices=tuple(range(len(kwargs["depths"]) + 1))),
        pretrained_filter_fn=checkpoint_filter_fn,
        **kwargs,
    )
