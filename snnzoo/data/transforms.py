"""Augmentation that timm's pipeline lacks: the recipe of CIFAR papers."""

import torch
from timm.data.transforms import MaybePILToTensor, ResizeKeepRatio
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.functional import InterpolationMode

from snnzoo.errors import InputError

AUTO_AUGMENT = {"cifar10": transforms.AutoAugmentPolicy.CIFAR10, "svhn": transforms.AutoAugmentPolicy.SVHN}


class Cutout:
    """Fill one square, its centre anywhere in the image, clipped at the border (DeVries and Taylor, arXiv 1708.04552).

    Args:
        size: side in pixels.
        fill: colour, one value from 0 to 255 per channel.
    """

    def __init__(self, size: int, fill: tuple[int, ...]):
        self.size = size
        self.fill = torch.tensor(fill, dtype=torch.uint8).view(-1, 1, 1)

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 ``[C, H, W]``, changed in place."""
        height, width = image.shape[-2:]
        top = int(torch.randint(height, ())) - self.size // 2
        left = int(torch.randint(width, ())) - self.size // 2
        image[:, max(top, 0) : max(top + self.size, 0), max(left, 0) : max(left + self.size, 0)] = self.fill
        return image


class SmallImageTransform(transforms.Compose):
    """Resize if needed, random crop of the padded image, flip, AutoAugment, Cutout; PIL image to uint8 ``[C, H, W]``.

    An image of another shape keeps it until it is cropped, as in validation.
    Normalisation is left to timm's prefetcher, as for timm's own training transforms.

    Args:
        size: ``(H, W)`` of the result.
        padding: pixels added on each side before the random crop.
        hflip: probability of a horizontal flip.
        auto_augment: ``'cifar10'`` or ``'svhn'`` (arXiv 1805.09501, torchvision's), or None.
        cutout: side of the square, 0 for none.
        mean: mean colour in [0, 1], per channel; fills what AutoAugment and Cutout leave empty.

    Raises:
        InputError: unknown policy.
    """

    def __init__(
        self,
        size: tuple[int, int],
        padding: int = 4,
        hflip: float = 0.5,
        auto_augment: str | None = None,
        cutout: int = 0,
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
    ):
        if auto_augment and auto_augment not in AUTO_AUGMENT:
            raise InputError(
                f"auto augment policy {auto_augment!r} is not for padded crops of small images; "
                f"choose from {', '.join(AUTO_AUGMENT)}"
            )
        fill = tuple(round(255 * channel) for channel in mean)
        steps = [
            ResizeKeepRatio(size, longest=0),  # leaves an image of that size alone
            transforms.RandomCrop(size, padding=padding),
            transforms.RandomHorizontalFlip(hflip),
        ]
        if auto_augment:
            steps.append(
                transforms.AutoAugment(AUTO_AUGMENT[auto_augment], InterpolationMode.BILINEAR, fill=list(fill))
            )
        steps.append(MaybePILToTensor())
        if cutout:
            steps.append(Cutout(cutout, fill))
        super().__init__(steps)
