"""timm's pretrained configurations: a tag for each data set that the recipes train on."""

from collections.abc import Iterable
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from snnzoo.models._pretrained import CONFIG, HUB_CONFIGS, SHIPPED, read_config

# A tag that begins so is not of trained weights, but of others' to start from.
INITIALISATION = "ann_"

_DEFAULTS = dict(interpolation="bilinear", license="apache-2.0")
_CIFAR = dict(input_size=(3, 32, 32), crop_pct=1.0)
TAGS = {
    "c10": dict(num_classes=10, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), **_CIFAR),
    "c100": dict(num_classes=100, mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761), **_CIFAR),
    "in1k": dict(
        num_classes=1000,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        input_size=(3, 224, 224),
        crop_pct=0.875,
    ),
    # Event frames: a channel for each polarity, counts as they are.
    "c10dvs": dict(num_classes=10, mean=(0.0, 0.0), std=(1.0, 1.0), input_size=(2, 48, 48), crop_pct=1.0),
}


# Prepared as timm prepares images for those weights.
TAGS["ann_in1k"] = TAGS["in1k"] | dict(
    description="An initialisation: the weights of timm's ANN of the same shape.",
    crop_pct=0.95,
    interpolation="bicubic",
)


def cfgs(
    names: Iterable[str], tags: Iterable[str], reduction: int, ann: str | None = None, **overrides: Any
) -> dict[str, dict[str, Any]]:
    """Configurations of every name with every tag; the first tag is the default, whichever have weights.

    Args:
        names: models.
        tags: keys of ``TAGS``.
        reduction: of the input by the whole network.
        ann: Hub repository of an ANN of the same shape, which the tag ``ann_in1k`` starts from.
        **overrides: fields that differ.
    """
    default, *others = tags
    # timm puts what has weights before what has none, except behind a later default: so that one comes last.
    rows = {tag: {} for tag in others} | ({"ann_in1k": dict(hf_hub_id=ann)} if ann else {}) | {default: {}}
    return {
        f"{name}.{tag}{'*' if tag == default else ''}": dict(
            first_conv="conv1",
            classifier="fc",
            pool_size=tuple(-(-size // reduction) for size in TAGS[tag]["input_size"][1:]),
            **_DEFAULTS | TAGS[tag] | source | _shipped(f"{name}.{tag}") | overrides,
        )
        for name in names
        for tag, source in rows.items()
    }


def _shipped(full_name: str) -> dict[str, Any]:
    """Where a model's weights are and how they want images prepared, if they come with the package."""
    if full_name not in SHIPPED:
        return {}
    folder = HUB_CONFIGS / full_name
    described = read_config(folder / CONFIG, repr(full_name))["pretrained_cfg"]
    prepared = {key: described[key] for key in ("input_size", "interpolation", "crop_pct", "mean", "std")}
    prepared = {key: tuple(value) if isinstance(value, list) else value for key, value in prepared.items()}
    return dict(source="local-dir", file=str(folder), license=described["license"], **prepared)
