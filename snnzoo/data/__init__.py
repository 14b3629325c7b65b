"""What timm's data pipeline lacks."""

from snnzoo.data.loading import check_same_classes, class_names, open_dataset
from snnzoo.data.transforms import Cutout, SmallImageTransform

__all__ = ["Cutout", "SmallImageTransform", "check_same_classes", "class_names", "open_dataset"]
