"""Augmentation and data sets."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from snnzoo import InputError
from snnzoo.data import Cutout, SmallImageTransform, write_digits


def test_cutout_is_one_clipped_square():
    seen = set()
    for _ in range(300):
        image = Cutout(4, (9, 8, 7))(torch.full((3, 6, 6), 200, dtype=torch.uint8))
        filled = image[0] == 9
        assert torch.equal(filled, image[1] == 8)
        assert torch.equal(filled, image[2] == 7)
        assert (image[:, ~filled] == 200).all()
        rows, columns = filled.any(1).sum().item(), filled.any(0).sum().item()
        assert filled.sum() == rows * columns  # a rectangle
        assert 2 <= rows <= 4
        assert 2 <= columns <= 4
        seen.add((rows, columns))
    assert seen == {(r, c) for r in (2, 3, 4) for c in (2, 3, 4)}  # clipped at the border as often as not


def test_small_image_transform():
    image = Image.fromarray(np.arange(6 * 6 * 3, dtype=np.uint8).reshape(6, 6, 3))
    out = SmallImageTransform((6, 6), padding=0, hflip=0)(image)
    assert out.dtype == torch.uint8
    assert torch.equal(out, torch.from_numpy(np.array(image)).permute(2, 0, 1))
    flipped = SmallImageTransform((6, 6), padding=0, hflip=1)(image)
    assert torch.equal(flipped, out.flip(2))
    assert SmallImageTransform((8, 8), padding=0)(image).shape == (3, 8, 8)
    shifted = {tuple(SmallImageTransform((6, 6), padding=1, hflip=0)(image).flatten().tolist()) for _ in range(200)}
    assert len(shifted) == 9  # 3 x 3 positions


def test_cifar_policy_and_fill():
    transform = SmallImageTransform((32, 32), auto_augment="cifar10", cutout=16, mean=(0.5, 0.4, 0.3))
    (policy,) = [step for step in transform.transforms if isinstance(step, transforms.AutoAugment)]
    assert policy.policy is transforms.AutoAugmentPolicy.CIFAR10
    assert policy.fill == [128, 102, 76]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    assert all(transform(image).shape == (3, 32, 32) for _ in range(50))
    with pytest.raises(
        InputError, match="'imagenet' is not for padded crops of small images; choose from cifar10, svhn"
    ):
        SmallImageTransform((32, 32), auto_augment="imagenet")


def test_digits(tmp_path):
    sklearn = pytest.importorskip("sklearn.datasets")
    folder = write_digits(tmp_path / "digits")
    assert len(list(folder.glob("train/*/*.png"))) == 1438
    assert len(list(folder.glob("validation/*/*.png"))) == 359
    digits = sklearn.load_digits()
    image = np.array(Image.open(folder / "validation" / str(digits.target[4]) / "0004.png"))
    assert np.array_equal(np.round(image / 255 * 16), digits.images[4])
