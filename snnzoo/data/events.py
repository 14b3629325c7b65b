"""Recordings of event cameras, as frames ``[T, C, H, W]``: folders of them, and CIFAR10-DVS from its event files."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import resize

from snnzoo.errors import InputError
from snnzoo.files import atomic_path

FRAME_DATASETS = ("frames", "cifar10dvs")
SENSOR = (128, 128)  # height and width of the DVS128
_SPLIT_FILE = Path(__file__).with_name("cifar10dvs_split.json")


class FrameFolder(Dataset):
    """Frames in ``ROOT/SPLIT/<class>/*.npz`` (or ``.npy``), one array ``[T, C, H, W]`` in each; no hidden ones.

    Args:
        root, split: the folder.
        num_steps: T that every file must have; None for that of the first.
        size: ``(H, W)`` to bring the frames to.

    Attributes:
        transform: called with each sample's float32 tensor ``[T, C, H, W]``.
        class_to_idx: labels by the name of each folder with files, in alphabetical order.

    Raises:
        InputError: no such folder or no files in it; on reading, a file of another kind or shape.
    """

    def __init__(self, root: str | Path, split: str, num_steps: int | None = None, size: tuple[int, int] | None = None):
        self.root, self.size, self.transform = Path(root) / split, size, None
        if not self.root.is_dir():
            raise InputError(f"frames: there is no folder {str(self.root)!r}")
        self.class_to_idx, self.samples = self._find()
        if not self.samples:
            raise InputError(f"frames: no files .npz or .npy in the class folders of {str(self.root)!r}")
        self.num_steps = num_steps or self._frames(0).shape[0]

    def _find(self) -> tuple[dict[str, int], list[tuple[Path, int]]]:
        paths = sorted(path for path in self.root.glob("[!.]*/[!.]*") if path.suffix in (".npz", ".npy"))
        class_to_idx = {name: label for label, name in enumerate(sorted({path.parent.name for path in paths}))}
        return class_to_idx, [(path, class_to_idx[path.parent.name]) for path in paths]

    def __len__(self) -> int:
        return len(self.samples)

    def filename(self, index: int, **_: Any) -> str:
        """The sample's file."""
        return str(self.samples[index][0])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        frames = self._frames(index)
        if frames.ndim != 4 or frames.shape[0] != self.num_steps:
            raise InputError(
                f"frames: {self.filename(index)!r} holds an array of shape {tuple(frames.shape)}, expected "
                f"[{self.num_steps}, C, H, W]"
            )
        if self.size and frames.shape[-2:] != self.size:
            frames = resize(frames, self.size, antialias=True)
        return frames if self.transform is None else self.transform(frames), self.samples[index][1]

    def _frames(self, index: int) -> Tensor:
        return read_frames(self.samples[index][0])


def read_frames(path: Path) -> Tensor:
    """The one array of an ``.npz`` or ``.npy`` file, as float32.

    Raises:
        InputError: it cannot be read, or holds more than one.
    """
    try:
        content = np.load(path, allow_pickle=False)
        if path.suffix == ".npz":
            with content as arrays:
                (name,) = arrays.files
                content = arrays[name]
        frames = torch.from_numpy(content.astype(np.float32))
        if not frames.isfinite().all():
            raise ValueError("some of its values are infinite or not a number")
        return frames
    except Exception as error:  # zip's, numpy's, the file system's
        raise InputError(f"frames: {str(path)!r} cannot be read as one array: {error}") from error


class Cifar10DVS(FrameFolder):
    """CIFAR10-DVS from its event files, ``ROOT/<class>/*_<number>.aedat`` or ``.aedat4``, read by tonic.

    There is no official split. Ours, for everybody to compare by, is the list of the 1,000 test recordings in
    ``cifar10dvs_split.json``: 100 of each class, drawn once (numpy's default generator, seed 2025) and committed; the
    other 9,000 are for training.

    A recording becomes T frames with an equal number of events each, events counted by pixel and polarity, and
    brought to ``size`` (bilinear, antialiased). The frames are kept in ``ROOT/frames-T<T>-<H>x<W>`` as float16.

    Args:
        root: folder of the class folders.
        split: ``'train'`` or ``'test'`` (``'validation'`` is the same).
        num_steps: T.
        size: ``(H, W)`` of the frames.

    Raises:
        InputError: no recordings of this split, or names without a number.
    """

    def __init__(self, root: str | Path, split: str, num_steps: int, size: tuple[int, int]):
        if split not in ("train", "test", "validation"):
            raise InputError(f"cifar10dvs has the splits train and test (or validation), got {split!r}")
        self._is_test = split != "train"
        self._test = json.loads(_SPLIT_FILE.read_text())["test"]
        self._cache = Path(root) / f"frames-T{num_steps}-{size[0]}x{size[1]}"
        super().__init__(root, "", num_steps, size)

    def _find(self) -> tuple[dict[str, int], list[tuple[Path, int]]]:
        class_to_idx = {name: label for label, name in enumerate(self._test)}
        samples = []
        for name, label in class_to_idx.items():
            held_out = set(self._test[name])
            numbered = []
            for path in (self.root / name).glob("[!.]*.aedat*"):
                number = re.search(r"(\d+)$", path.stem)
                if not number:
                    raise InputError(f"cifar10dvs: the name of {str(path)!r} must end in the recording's number")
                numbered.append((int(number[1]), path))
            samples += [(path, label) for number, path in sorted(numbered) if (number in held_out) == self._is_test]
        if not samples:
            raise InputError(
                f"cifar10dvs: no recordings .aedat or .aedat4 of the {'test' if self._is_test else 'train'} split in "
                f"the folders {', '.join(self._test)} of {str(self.root)!r}"
            )
        return class_to_idx, samples

    def _frames(self, index: int) -> Tensor:
        path, _ = self.samples[index]
        cached = self._cache / path.parent.name / f"{path.stem}.npz"
        if cached.exists():
            return read_frames(cached)
        frames = resize(count_events(read_events(path), self.num_steps), self.size, antialias=True).half()
        try:
            with atomic_path(cached, durable=False) as temporary, temporary.open("wb") as file:
                np.savez(file, frames=frames.numpy())
        except OSError as error:
            raise InputError(f"cifar10dvs: frames cannot be kept in {str(self._cache)!r}: {error.strerror}") from error
        return frames.float()


def read_events(path: Path) -> np.ndarray:
    """The events of a DVS128 recording.

    Args:
        path: AEDAT 2.0 (``.aedat``, as CIFAR10-DVS was published) or 4.0 (``.aedat4``, as tonic has it).

    Returns:
        Structured array in order of time, fields ``t`` (microseconds), ``x``, ``y``, ``p`` (1: brighter).

    Raises:
        InputError: tonic is not installed, or the file cannot be read.
    """
    try:
        from tonic.io import get_aer_events_from_file, make_structured_array, read_aedat4, read_aedat_header_from_file

        if path.suffix == ".aedat4":
            import aedat  # noqa: F401, tonic does not install it
    except ImportError as error:
        raise InputError(f"event files are read by tonic and aedat: pip install 'snnzoo[events]' ({error})") from error
    try:
        if path.suffix == ".aedat4":
            events = read_aedat4(str(path))
            t, x, y, p = (events[name] for name in events.dtype.names)  # in this order, as tonic takes them
            return make_structured_array(x, y, t, p)
        with path.open("rb") as file:
            if not file.readline().startswith(b"#!AER-DAT2"):
                raise ValueError("its first line is not #!AER-DAT2.0")
        version, start, *_ = read_aedat_header_from_file(str(path))
        raw = get_aer_events_from_file(str(path), version, start)
    except Exception as error:  # tonic's errors are of every kind
        raise InputError(
            f"recording {str(path)!r} cannot be read; it has to be AEDAT 2.0 (.aedat) or 4.0 (.aedat4): "
            f"{error or type(error).__name__}"
        ) from error
    # The DVS128's address: row, column and polarity, the picture turned upside down and a set bit for darker.
    address = raw["address"]
    x, y = SENSOR[1] - 1 - ((address >> 8) & 0x7F), SENSOR[0] - 1 - ((address >> 1) & 0x7F)
    return make_structured_array(x, y, raw["timeStamp"], 1 - (address & 1))


def count_events(events: np.ndarray, num_steps: int) -> Tensor:
    """Events of a DVS128 to ``[T, 2, 128, 128]`` counts, T frames of equally many events, darker and brighter."""
    step = np.arange(len(events)) * num_steps // max(len(events), 1)
    shape = (num_steps, 2, *SENSOR)
    place = np.ravel_multi_index((step, *(events[name].astype(np.int64) for name in ("p", "y", "x"))), shape)
    return torch.from_numpy(np.bincount(place, minlength=np.prod(shape)).reshape(shape)).float()


class FrameTransform:
    """Flip and roll, the same for all steps (as for CIFAR10-DVS in arXiv 2503.16572).

    Args:
        hflip: probability of a horizontal flip.
        roll: the frames are rolled by up to so many pixels along each side.
        time_mean: hand on the mean over time ``[C, H, W]``, for networks that know no time.
    """

    def __init__(self, hflip: float = 0.0, roll: int = 0, time_mean: bool = False):
        self.hflip, self.roll, self.time_mean = hflip, roll, time_mean

    def __call__(self, frames: Tensor) -> Tensor:
        """``[T, C, H, W]`` to the same shape, or ``[C, H, W]``."""
        if self.time_mean:
            frames = frames.mean(0)
        if float(torch.rand(())) < self.hflip:
            frames = frames.flip(-1)
        if self.roll:
            shifts = torch.randint(-self.roll, self.roll + 1, (2,)).tolist()
            frames = frames.roll(shifts, (-2, -1))
        return frames
