"""Augmentation and data sets."""

import multiprocessing
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from snnzoo import InputError
from snnzoo.data import Cutout, SmallImageTransform, TrainingBatches, evaluation_batches, spread, write_digits


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
    wide = Image.fromarray(np.tile(np.arange(12, dtype=np.uint8), (6, 1)))
    cropped = {tuple(SmallImageTransform((6, 6), padding=0, hflip=0)(wide)[0, 0].tolist()) for _ in range(200)}
    assert cropped == {tuple(range(left, left + 6)) for left in range(7)}  # not squashed
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


# --- batches that can be entered anywhere -------------------------------------------------------------------------


class Noise(torch.utils.data.Dataset):
    """Images of noise drawn from all three generators, labelled by their number."""

    def __len__(self):
        return 23

    def __getitem__(self, index):
        value = random.random() + np.random.rand() + float(torch.rand(()))  # noqa: NPY002
        return torch.full((3, 2, 2), int(value * 80), dtype=torch.uint8), index


class NoiseStream(torch.utils.data.IterableDataset):
    def __len__(self):
        return 23

    def __iter__(self):
        noise = Noise()
        return (noise[index] for index in range(23))


class Rank:
    def __init__(self, rank=0, count=1):
        self.rank, self.count, self.together, self.device = rank, count, count > 1, torch.device("cpu")


def batches(dataset, rank=None, batch_size=4, workers=0, **kwargs):
    fixed = dict(mean=(0.0,) * 3, std=(1 / 255,) * 3, num_classes=23, seed=5)
    return TrainingBatches(dataset, batch_size, processes=rank or Rank(), workers=workers, **fixed, **kwargs)


def listed(epoch):
    return [(images.flatten(1).tolist(), labels.tolist()) for images, labels in epoch]


@pytest.mark.parametrize("kind", [Noise, NoiseStream])
def test_an_epoch_can_be_entered_anywhere(kind):
    whole = listed(batches(kind(), re_prob=0.5).epoch(3))
    assert len(whole) == 5
    before = torch.random.get_rng_state(), random.getstate()
    for workers in (0, 1):
        data = batches(kind(), workers=workers, re_prob=0.5)
        listed(data.epoch(2))
        assert listed(data.epoch(3, 12)) == whole[3:]
        assert listed(data.epoch(3, 20)) == []
        assert listed(data.epoch(3)) == whole
        assert listed(data.epoch(4)) != whole
    assert torch.equal(torch.random.get_rng_state(), before[0]) and random.getstate() == before[1]


def test_workers_outlive_an_epoch():
    def running():
        return {process.pid for process in multiprocessing.active_children()}

    before, data = running(), batches(Noise(), workers=1)
    listed(data.epoch(0))
    started = running() - before
    next(iter(data.epoch(1)))  # and one that is left in the middle
    listed(data.epoch(2))
    assert started and running() - before == started


def test_processes_share_an_epoch():
    """Each batch of two processes together is a batch of one with twice the size, augmentation included."""
    whole = listed(batches(Noise(), batch_size=8).epoch(1))
    parts = [listed(batches(Noise(), Rank(rank, 2)).epoch(1)) for rank in (0, 1)]
    assert len(whole) == len(parts[0]) == len(parts[1]) == 2
    for (images, labels), *shares in zip(whole, *parts, strict=True):
        together = {label: image for share in shares for image, label in zip(*share, strict=True)}
        assert together == dict(zip(labels, images, strict=True))
    # and goes on in another number of processes where the others have stopped
    done = [label for _, labels in whole[:1] for label in labels]
    rest = [label for _, labels in batches(Noise()).epoch(1, 8) or [] for label in labels.tolist()]
    assert not set(done) & set(rest) and len(rest) == 12


def test_evaluation_reads_everything_once():
    for kind in (Noise, NoiseStream):
        loader = evaluation_batches(kind(), 4, 23, Rank(), 0, (0.0,) * 3, (1.0,) * 3)
        assert torch.cat([labels for _, labels in loader]).tolist() == list(range(23))
    shares = [evaluation_batches(Noise(), 4, 23, Rank(rank, 2), 0, (0.0,) * 3, (1.0,) * 3) for rank in (0, 1)]
    real = [torch.cat([y for _, y in share])[: share.sampler.num_valid_samples] for share in shares]
    assert sorted(torch.cat(real).tolist()) == list(range(23))


def test_unlike_statistics_and_empty_data():
    with pytest.raises(InputError, match="fewer images .23. than a batch .30"):
        batches(Noise(), batch_size=30)
    with pytest.raises(InputError, match="on each of 2 processes"):
        batches(Noise(), Rank(0, 2), batch_size=12)


def test_a_selection_reaches_every_class():
    assert spread(100, 64)[0] == 0 and spread(100, 64)[-1] == 98 and len(set(spread(100, 64))) == 64
    assert spread(5, 64) == [0, 1, 2, 3, 4]
    assert spread(10, 1) == [0]
