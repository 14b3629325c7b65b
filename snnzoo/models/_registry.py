"""Registration with timm: names that come in rows, such as ``snn_resnet18_t1 … _t6``, and the building behind them."""

import contextlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from timm.models import build_model_with_cfg, register_model
from timm.models._input import update_model_args  # what timm's own models record their arguments with
from torch import Tensor, nn

from snnzoo.errors import InputError
from snnzoo.models import _pretrained
from snnzoo.models._base import check_sizes
from snnzoo.models._cfgs import INITIALISATION
from snnzoo.models._convert import checkpoint_filter_fn
from snnzoo.models._spiking import SpikingModel

_logger = logging.getLogger(__name__)

STEPS = (1, 2, 4, 6)


def register_entry(create: Callable[..., nn.Module], name: str, **model_args: Any) -> None:
    """Register ``name`` with timm as ``create(name, pretrained, **model_args)``, the caller's arguments winning.

    With pretrained weights the model is made as their ``config.json`` says, see
    :func:`snnzoo.models._pretrained.resolve`. The entry point becomes a function of the module that defines ``create``,
    whose ``default_cfgs`` timm reads.
    """

    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        saved_args, kwargs = _pretrained.resolve(name, kwargs) if pretrained else ({}, kwargs)
        model = create(name, pretrained, **{**model_args, **saved_args, **kwargs})
        update_model_args(model, **{**model_args, **saved_args})  # timm adds the caller's
        return model

    entry.__name__ = entry.__qualname__ = name
    entry.__module__ = create.__module__
    setattr(sys.modules[create.__module__], name, register_model(entry))


def with_steps(name: str, steps: Sequence[int] = STEPS) -> dict[str, int]:
    """The names of a model by its default number of steps, and that number: ``{'snn_resnet18_t1': 1, …}``."""
    return {f"{name}_t{t}": t for t in steps}


def _all_but_classifier(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Pretrained weights under the model's names, all there: where classes change, timm would skip what is missing."""
    weights = checkpoint_filter_fn(state_dict, model)
    cfg = model.pretrained_cfg
    missing = [
        key
        for key in model.state_dict().keys() - weights.keys()
        if not key.startswith(f"{cfg['classifier']}.") and not key.endswith(".num_batches_tracked")
    ]
    if missing:
        raise InputError(
            f"the pretrained weights are not those of a {cfg['architecture']}: {len(missing)} tensors are missing, "
            f"{min(missing)!r} for one"
        )
    return weights


def build(model_cls: type[nn.Module], variant: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """timm's ``build_model_with_cfg`` for a :class:`~snnzoo.models._base.StagedNet`.

    Raises:
        InputError: pretrained weights or depths that do not fit, or a kind of feature extraction that would bypass
            time.
    """
    if issubclass(model_cls, SpikingModel) and kwargs.get("feature_cls", "getter") != "getter":
        raise InputError(
            f"feature_cls must be 'getter' for a spiking model, got {kwargs['feature_cls']!r}: the others take the "
            f"outputs of modules, which are time series, where features are rates"
        )
    check_sizes("depths", kwargs["depths"])
    with _pretrained.loading_errors(variant) if pretrained else contextlib.nullcontext():
        model = build_model_with_cfg(
            model_cls,
            variant,
            pretrained,
            feature_cfg=dict(feature_cls="getter", out_indices=tuple(range(len(kwargs["depths"]) + 1))),
            pretrained_filter_fn=_all_but_classifier,
            **kwargs,
        )
    tag = model.pretrained_cfg.get("tag") or ""
    if pretrained and tag.startswith(INITIALISATION):
        _logger.warning(
            "%s.%s is an initialisation: the weights of the ANN %s, not trained as a spiking network",
            variant, tag, model.pretrained_cfg.get("hf_hub_id"),
        )  # fmt: skip
    return model
