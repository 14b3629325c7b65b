"""timm's pretrained configurations: a tag for each data set that the recipes train on."""

from collections.abc import Iterable
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

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


def cfgs(names: Iterable[str], tags: Iterable[str], reduction: int, **overrides: Any) -> dict[str, dict[str, Any]]:
    """Configurations of every name with every tag; the first tag is the default, whichever get weights.

    Args:
        names: models.
        tags: keys of ``TAGS``.
        reduction: of the input by the whole network.
        **overrides: fields that differ.
    """
    return {
        f"{name}.{tag}{'' if i else '*'}": dict(
            interpolation="bilinear",
            first_conv="conv1",
            classifier="fc",
            license="apache-2.0",
            pool_size=tuple(-(-size // reduction) for size in TAGS[tag]["input_size"][1:]),
            **{**TAGS[tag], **overrides},
        )
        for name in names
        for i, tag in enumerate(tags)
    }
