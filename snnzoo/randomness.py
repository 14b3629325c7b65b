"""Random numbers that depend on where a run is, not on how it got there.

numpy's global generator is among them: timm and torchvision draw from it.
"""
# ruff: noqa: NPY002

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def seed_of(*key: int) -> int:
    """A 32-bit seed for a tuple of numbers, such as (seed, epoch, sample)."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def seed_all(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators, on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def rng_state(device: torch.device) -> dict[str, Any]:
    """The state of all generators that a process on ``device`` draws from, in types that a checkpoint may hold."""
    _, keys, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore what :func:`rng_state` returned."""
    keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_host(*key: int) -> None:
    """Seed the generators that data loading draws from: Python's, numpy's and torch's on the CPU."""
    seed = seed_of(*key)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach for the other devices too


@contextlib.contextmanager
def host_rng_preserved() -> Iterator[None]:
    """Run a block that may seed and use Python's, numpy's and torch's CPU generators; then they go on from before."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


@contextlib.contextmanager
def seeded(*key: int, device: torch.device | None = None) -> Iterator[None]:
    """Run a block with the generators of host and ``device`` seeded; afterwards they go on as if it had not been."""
    on_gpu = device is not None and device.type == "cuda"
    before = torch.cuda.get_rng_state(device) if on_gpu else None
    with host_rng_preserved():
        seed_host(*key)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed_of(*key))
        try:
            yield
        finally:
            if on_gpu:
                torch.cuda.set_rng_state(before, device)
