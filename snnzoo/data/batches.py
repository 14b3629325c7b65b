"""Batches whose order and augmentation depend on (seed, epoch, sample) alone.

So an epoch can be entered in its middle without decoding what came before, with any number of workers, and what
follows is what would have followed. Except: random erasing and mixup belong to a batch and change with the number of
processes; a stream comes in the order of its reader, which changes with the number of workers too.
"""

import atexit
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

import torch
from PIL import Image
from timm.data.distributed_sampler import OrderedDistributedSampler
from timm.data.loader import PrefetchLoader, fast_collate
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, default_collate, get_worker_info

from snnzoo.errors import InputError
from snnzoo.interruption import ignore_signals
from snnzoo.processes import Processes
from snnzoo.randomness import host_rng_preserved, seed_host, seed_of, seeded


class Order(Sampler[int]):
    """The samples of an epoch in random order, from a given place on; each process's share of them.

    Every batch of all processes together is a run of the one order, however many processes there are. A sample is
    named by ``epoch * length + index``, so that workers that outlive an epoch need not be told of the next.

    Args:
        length: of the data.
        batch_size: of one process.
        seed: of the run.
        processes: of the run.
    """

    def __init__(self, length: int, batch_size: int, seed: int, processes: Processes):
        self._length, self._batch_size, self._seed = length, batch_size, seed
        self._rank, self._count = processes.rank, processes.count
        self.epoch = self.done = 0

    def __len__(self) -> int:
        step = self._batch_size * self._count
        return (self._length - self.done) // step * self._batch_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(seed_of(self._seed, self.epoch))
        order = torch.randperm(self._length, generator=generator)[self.done :] + self.epoch * self._length
        return iter(order[: len(self) * self._count][self._rank :: self._count].tolist())


class _Checked:
    """What both kinds of data below do with a sample."""

    def __init__(self, dataset: Any, num_classes: int, seed: int = 0):
        self.dataset, self.num_classes, self._seed = dataset, num_classes, seed
        if hasattr(dataset, "_max_retries"):
            dataset._max_retries = 1  # timm would put the next image in the place of one that it cannot read

    def _check(self, sample: tuple, name: Callable[[], str]) -> tuple:
        if not 0 <= int(sample[1]) < self.num_classes:
            raise InputError(
                f"{name()} has label {int(sample[1])}, the model has {self.num_classes} classes, labels 0 to "
                f"{self.num_classes - 1}: set --num-classes, or mend the labels"
            )
        return sample


class SeededDataset(_Checked, Dataset):
    """A dataset whose every sample is drawn with random numbers of its own.

    Args:
        dataset: images (or frames) and labels by index. Here they go by :class:`Order`'s names.
        num_classes: labels must be below it.
        seed: of the run.

    Raises:
        InputError: on reading, a sample that cannot be read, or has a label out of range.
    """

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, name: int) -> tuple[Any, int]:
        return self.__getitems__([name])[0]

    def __getitems__(self, names: list[int]) -> list[tuple[Any, int]]:  # what a DataLoader asks for
        with host_rng_preserved():
            return [self._read(*divmod(name, len(self))) for name in names]

    def _read(self, epoch: int, index: int) -> tuple[Any, int]:
        seed_host(self._seed, epoch, index)
        try:
            sample = self.dataset[index]
        except InputError:
            raise
        except Exception as error:  # every format has its own
            raise InputError(
                f"{self._name(index)} cannot be read, mend or remove it: {self._reason(index) or error}"
            ) from error
        return self._check(sample, lambda: self._name(index))

    def _reason(self, index: int) -> Exception | None:
        """What is wrong with an image: timm logs it, and raises an error that does not say it."""
        if hasattr(self.dataset, "_max_retries"):
            try:
                with Image.open(self.dataset.reader[index][0]) as image:
                    image.load()
            except Exception as error:
                return error
        return None

    def _name(self, index: int) -> str:
        try:
            return f"sample {self.dataset.filename(index, absolute=True)!r}"
        except Exception:  # torchvision's have no file names, tars no absolute ones
            return f"sample number {index}"


class SeededStream(_Checked, IterableDataset):
    """The same for data that come in a stream, where the place in the stream is the index.

    ``epoch`` is set before each epoch's workers start.
    """

    epoch = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        worker = get_worker_info()
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(self.epoch)
        samples = iter(self.dataset)
        for index in count():
            with seeded(self._seed, self.epoch, worker.id if worker else 0, index):
                sample = next(samples, None)
            if sample is None:
                return
            yield self._check(sample, lambda index=index: f"sample number {index} of the stream")


class _SeededErasing:
    """timm's random erasing, which runs on the device a batch ahead, with random numbers for each batch."""

    def __init__(self, erase: Callable[[Tensor], Tensor], device: torch.device):
        self._erase, self._device, self._key = erase, device, ()
        self._batch = 0

    def start(self, *key: int, batch: int) -> None:
        self._key, self._batch = key, batch

    def __call__(self, images: Tensor) -> Tensor:
        with seeded(*self._key, self._batch, device=self._device):
            images = self._erase(images)
        self._batch += 1
        return images


class TrainingBatches:
    """An epoch's batches, from any place in it.

    Args:
        dataset: with its transform set; images as uint8 ``[C, H, W]``, or float frames.
        batch_size: of one process.
        num_classes: of the model.
        seed: of the run.
        processes: of the run.
        workers: data loading processes; those of a stream start anew for each epoch.
        mean, std: of the pixels, in [0, 1] for images, in their own unit for frames.
        frames: whether the data are frames.
        re_prob, re_mode: timm's random erasing.

    Attributes:
        steps: batches of a whole epoch, of each process.

    Raises:
        InputError: not one batch of data, or a negative number of workers.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        num_classes: int,
        seed: int,
        processes: Processes,
        workers: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        frames: bool = False,
        re_prob: float = 0.0,
        re_mode: str = "pixel",
    ):
        self.step_size = batch_size * processes.count
        self._key = (seed, processes.rank)
        self._order = None
        if isinstance(dataset, IterableDataset):
            if hasattr(dataset, "set_loader_cfg"):
                dataset.set_loader_cfg(num_workers=workers)
            self._data = SeededStream(dataset, num_classes, seed)
        else:
            self._data = SeededDataset(dataset, num_classes, seed)
            self._order = Order(len(dataset), batch_size, seed, processes)
        loading = _loading(self._data, workers, frames, processes)
        loader = DataLoader(self._data, batch_size, sampler=self._order, drop_last=True, **loading)
        self.steps = len(loader)
        if not self.steps:
            raise InputError(
                f"the training data has fewer images ({len(dataset)}) than a batch ({batch_size}"
                + (f" on each of {processes.count} processes)" if processes.together else ")")
            )
        self._loader = _prefetch(loader, mean, std, frames, processes, re_prob=re_prob, re_mode=re_mode)
        if self._loader.random_erasing is not None:
            self._loader.random_erasing = _SeededErasing(self._loader.random_erasing, processes.device)

    def left(self, done: int) -> int:
        """Batches of an epoch after its first ``done`` samples, of each process."""
        if self._order is None:
            return self.steps - done // self.step_size
        return (len(self._data) - done) // self.step_size

    def epoch(self, epoch: int, done: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels, normalised and on the device, of the epoch's samples after the first ``done``."""
        skipped = done // self.step_size
        is_stream = self._order is None
        if self._loader.random_erasing is not None:  # which sees what is skipped of a stream
            self._loader.random_erasing.start(*self._key, epoch, batch=0 if is_stream else skipped)
        if is_stream:  # it has to be read to be skipped
            self._data.epoch = epoch
            return islice(self._loader, skipped, None)
        self._order.epoch, self._order.done = epoch, done
        return iter(self._loader)

    def first(self) -> Tensor:
        """The images of the first batch, to choose by; the epochs are what they were without it."""
        return next(iter(self.epoch(0)))[0]


def evaluation_batches(
    dataset: Any,
    batch_size: int,
    num_classes: int,
    processes: Processes,
    workers: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    frames: bool = False,
) -> PrefetchLoader:
    """All samples in order, shared out between the processes; arguments as for :class:`TrainingBatches`.

    Where the processes' shares are unequal the last samples are repeated:
    ``timm.task.evaluator.evaluation_sample_limit`` knows how many are real.

    Raises:
        InputError: a batch size below 1, or a negative number of workers.
    """
    if batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, got {batch_size}")
    sampler = None
    if isinstance(dataset, IterableDataset):
        checked = SeededStream(dataset, num_classes)
    else:
        checked = SeededDataset(dataset, num_classes)
        if processes.together:
            sampler = OrderedDistributedSampler(checked, processes.count, processes.rank)
    loader = DataLoader(checked, batch_size, sampler=sampler, **_loading(checked, workers, frames, processes))
    return _prefetch(loader, mean, std, frames, processes)


def _loading(data: Dataset, workers: int, frames: bool, processes: Processes) -> dict[str, Any]:
    if workers < 0:
        raise InputError(f"--workers must be at least 0, got {workers}")
    return dict(
        num_workers=workers,
        persistent_workers=workers > 0 and not isinstance(data, IterableDataset),
        collate_fn=default_collate if frames else fast_collate,
        pin_memory=processes.device.type == "cuda",
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # so that loading leaves the training's random numbers alone
    )


def _start_worker(worker: int) -> None:
    ignore_signals()


@atexit.register
def _end_workers() -> None:
    """Python would ask them to end by a SIGTERM, which they ignore, and wait for them for ever."""
    if hasattr(signal, "SIGCHLD"):  # torch's handler takes a worker that is killed for a failure
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    workers = [process for process in multiprocessing.active_children() if process.daemon]
    for process in workers:
        process.kill()
    for process in workers:
        process.join()


def _prefetch(loader: DataLoader, mean, std, frames: bool, processes: Processes, **erasing: Any) -> PrefetchLoader:
    if frames:  # timm's loader takes pixels of 0 to 255 and their mean and std in [0, 1]
        mean, std = ([value / 255 for value in values] for values in (mean, std))
    return PrefetchLoader(loader, mean, std, channels=len(mean), device=processes.device, **erasing)
