#!/usr/bin/env python3
"""Make a SYNTHETIC stand-in for CIFAR10-DVS: event files from real CIFAR-10 images by the model of a moving camera.

    python benchmarks/synthetic_dvs.py --images CIFAR10_DIR --output DIR [--train 20] [--test 10]

CIFAR10-DVS was recorded by a DVS128 camera that looked at CIFAR-10 images moving on a screen. Here the image is
enlarged, moved along a closed path, and a pixel sends an event whenever the logarithm of what it sees has changed by a
threshold since its last one. Files have the names, the folders and the format (AEDAT 2.0) of the real data, so that
everything reads them the same way; they are no substitute for it, and no number from them is one of CIFAR10-DVS.

``--images`` is a folder ``DIR/train/<class>/*.png``. ``--train`` and ``--test`` recordings of each class are made, with
numbers that our split of CIFAR10-DVS has on that side.
"""

import argparse
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from snnzoo.files import atomic_path

STEPS, STEP_US = 60, 1500  # camera positions in a recording, and microseconds at each
TRAVEL, THRESHOLD = 12.0, 0.18  # pixels that the image moves each way; change of log intensity that makes an event


def record(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Events of a moving image.

    Returns:
        Structured array in order of time: ``t`` (microseconds), ``x``, ``y`` (0 to 127), ``p`` (1: brighter).
    """
    margin = int(TRAVEL) + 1
    side = 128 + 2 * margin
    scene = np.asarray(image.convert("L").resize((side, side), Image.Resampling.BICUBIC), dtype=np.float64)
    scene = np.log(scene / 255 + 0.1)
    # a diamond, once around, begun at a corner drawn at random
    around = (np.arange(STEPS + 1) / STEPS + rng.integers(4) / 4) % 1
    offsets = TRAVEL * np.stack([_triangle(around), _triangle(around + 0.25)], 1)
    seen = [_shifted(scene, margin, *offset) for offset in offsets]
    memory, events = seen[0].copy(), []
    for step, now in enumerate(seen[1:]):
        crossings = np.trunc((now - memory) / THRESHOLD).astype(int)
        memory += crossings * THRESHOLD
        y, x = np.nonzero(crossings)
        count = np.abs(crossings[y, x])
        y, x, p = (np.repeat(value, count) for value in (y, x, crossings[y, x] > 0))
        t = np.sort(rng.integers(step * STEP_US, (step + 1) * STEP_US, len(x)))
        order = rng.permutation(len(x))
        events.append(np.rec.fromarrays([t, x[order], y[order], p[order]], names="t,x,y,p"))
    return np.concatenate(events)


def _triangle(phase: np.ndarray) -> np.ndarray:
    return 1 - 4 * np.abs((phase % 1) - 0.5)


def _shifted(scene: np.ndarray, margin: int, dy: float, dx: float) -> np.ndarray:
    """128x128 pixels of the scene, bilinear between its own."""
    rows, columns = np.arange(128) + margin + dy, np.arange(128) + margin + dx
    for axis, place in ((0, rows), (1, columns)):
        low = np.floor(place).astype(int)
        weight = np.expand_dims(place - low, 1 - axis)
        scene = scene.take(low, axis) * (1 - weight) + scene.take(low + 1, axis) * weight
    return scene


def write_aedat(path: Path, events: np.ndarray) -> None:
    """AEDAT 2.0 with the addresses of a DVS128, as its own software wrote CIFAR10-DVS."""
    x, y, p = (events[name].astype(np.uint32) for name in "xyp")
    raw = np.empty(len(events), np.dtype([("address", ">u4"), ("time", ">u4")]))
    raw["address"] = (127 - x) << 8 | (127 - y) << 1 | (1 - p)
    raw["time"] = events["t"]
    header = b"#!AER-DAT2.0\r\n# SYNTHETIC: made from an image, not recorded\r\n"
    with atomic_path(path, durable=False) as temporary:
        temporary.write_bytes(header + raw.tobytes())


def write_synthetic_dvs(images: Path, output: Path, train: int, test: int) -> None:
    """Make ``train`` and ``test`` recordings of each class from the images ``images/train/<class>/*``."""
    split = json.loads(files("snnzoo.data").joinpath("cifar10dvs_split.json").read_text())["test"]
    for name, held_out in split.items():
        sources = sorted((images / "train" / name).iterdir())
        numbers = [n for n in range(1000) if n not in set(held_out)][:train] + held_out[:test]
        for source, number in zip(sources, numbers, strict=False):
            events = record(Image.open(source), np.random.default_rng(number))
            write_aedat(output / name / f"cifar10_{name}_{number}.aedat", events)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--train", type=int, default=20, help="recordings of each class, up to 900")
    parser.add_argument("--test", type=int, default=10, help="up to 100")
    args = parser.parse_args()
    write_synthetic_dvs(args.images, args.output, args.train, args.test)


if __name__ == "__main__":
    main()
