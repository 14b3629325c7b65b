"""What timm's data pipeline lacks."""

from snnzoo.data.batches import TrainingBatches, evaluation_batches
from snnzoo.data.digits import write_digits
from snnzoo.data.events import FRAME_DATASETS, Cifar10DVS, FrameFolder, FrameTransform
from snnzoo.data.loading import WORKERS, check_splits, class_names, data_config, fingerprint, open_dataset, spread
from snnzoo.data.transforms import AUTO_AUGMENT, Cutout, SmallImageTransform

__all__ = [
    "AUTO_AUGMENT",
    "FRAME_DATASETS",
    "WORKERS",
    "Cifar10DVS",
    "Cutout",
    "FrameFolder",
    "FrameTransform",
    "SmallImageTransform",
    "TrainingBatches",
    "check_splits",
    "class_names",
    "data_config",
    "evaluation_batches",
    "fingerprint",
    "open_dataset",
    "spread",
    "write_digits",
]
