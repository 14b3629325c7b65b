"""What timm's data pipeline lacks."""

from snnzoo.data.digits import write_digits
from snnzoo.data.loading import check_splits, class_names, open_dataset
from snnzoo.data.transforms import AUTO_AUGMENT, Cutout, SmallImageTransform

__all__ = [
    "AUTO_AUGMENT",
    "Cutout",
    "SmallImageTransform",
    "check_splits",
    "class_names",
    "open_dataset",
    "write_digits",
]
