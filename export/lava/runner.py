"""Lava's simulator, called from any Python, and what it fired compared with what was predicted."""

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from snnzoo.errors import InputError
from snnzoo.export.lava.interpreter import find_interpreter, need_h5py
from snnzoo.export.lava.reference import IntegerRun, check_pixels, simulate_integer
from snnzoo.export.lava.simulator.network import LoihiNetwork, NetworkError, load

_HERE = Path(__file__).parent
NEEDS = ("lava.proc.conv.process", "h5py")
NETX = "lava.lib.dl.netx.hdf5"


@dataclass(frozen=True, eq=False)
class SimulatorRun:
    """What the simulator did with some images.

    Attributes:
        readout: ``[B, num_classes]``, int64: the readout's state after the last step.
        spikes: of the model's LIF layers, by name, ``[T, B, C, H, W]``.
        seconds: of each step; the first starts the processes.
        python: that ran it.
    """

    readout: Tensor
    spikes: dict[str, Tensor]
    seconds: list[float]
    python: str


@dataclass(frozen=True)
class Difference:
    """Where something came out otherwise: of layer ``layer``, at image, step and neuron ``(c, y, x)``."""

    layer: str
    image: int
    step: int
    neuron: tuple[int, ...]
    predicted: int
    simulated: int

    def __str__(self) -> str:
        return (
            f"{self.layer}: image {self.image}, step {self.step}, neuron {self.neuron}: predicted {self.predicted}, "
            f"simulated {self.simulated}"
        )


@dataclass(frozen=True)
class Match:
    """One layer: spikes predicted, of so many chances to, how many came out otherwise, and the first of them."""

    layer: str
    spikes: int
    chances: int
    differing: int
    first: Difference | None


class MismatchError(RuntimeError):
    """The simulator fires otherwise than predicted; the message names the first difference."""


def open_network(path: str | Path, num_steps: int | None = None) -> LoihiNetwork:
    """Read a network's file.

    Args:
        path: that ``snnzoo export lava`` wrote.
        num_steps: T that it has to have been written for; any if None.

    Raises:
        InputError: no such file, a damaged one, one of another version or for another T; h5py is not installed.
    """
    need_h5py()
    try:
        network = load(path)
    except NetworkError as error:
        raise InputError(str(error)) from error
    if num_steps not in (None, network.num_steps):
        raise InputError(
            f"{str(path)!r} is for {network.num_steps} time steps, not {num_steps}: resets and delays are part of it, "
            f"write another with `snnzoo export lava --num-steps {num_steps}`"
        )
    return network


def run_simulator(
    path: str | Path,
    images: Tensor | np.ndarray,
    python: str | None = None,
    fast: bool = False,
    netx: bool = False,
) -> SimulatorRun:
    """Run a network's file on Lava's fixed-point simulator of Loihi 2, with a progress bar.

    Args:
        path: the file.
        images: ``[B, C, H, W]``, 8-bit pixels.
        python: see :func:`~snnzoo.export.lava.interpreter.find_interpreter`.
        fast: our model of Lava's convolutions, the same integers by matrix products, instead of Lava's own.
        netx: the network as lava-dl's stock netx loads the file, instead of as we build it.

    Raises:
        InputError: no interpreter, file or images that fit; netx cannot hold the network.
        RuntimeError: the simulator fails; the message is the last line of what it said.
    """
    network, images = open_network(path), np.asarray(images)
    check_pixels(network, images)
    if netx and not network.sequential:
        raise InputError(f"netx cannot load {str(path)!r}: it knows layers in a row that reset hard, nothing else")
    python = find_interpreter(python, (*NEEDS, NETX) if netx else NEEDS)
    with tempfile.TemporaryDirectory() as folder, Path(folder, "stderr").open("w+") as stderr:
        given, taken = Path(folder, "images.npy"), Path(folder, "result.npz")
        np.save(given, images)
        by = "netx" if netx else "fast" if fast else "lava"
        command = [python, "-m", "simulator", str(Path(path).resolve()), str(given), str(taken), "--by", by]
        process = subprocess.Popen(
            command, cwd=_HERE, stdout=subprocess.PIPE, stderr=stderr, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},  # there is a process for each layer
        )  # fmt: skip
        try:
            with tqdm(desc="simulate", unit="step", leave=False, disable=None) as bar:
                for line in process.stdout:
                    bar.total = json.loads(line)["of"]
                    bar.update()
            process.wait()
        finally:
            process.kill()
        if process.returncode or not taken.is_file():
            stderr.seek(0)
            said = stderr.read().strip().splitlines() or ["nothing"]
            raise RuntimeError(f"the simulator ended with status {process.returncode}: {said[-1]}")
        with np.load(taken) as result:
            spikes = {
                key.removeprefix("spikes/"): torch.from_numpy(result[key]).transpose(0, 1)
                for key in result
                if key.startswith("spikes/")
            }
            return SimulatorRun(torch.from_numpy(result["readout"]), spikes, result["seconds"].tolist(), python)


def compare(predicted: IntegerRun, simulated: SimulatorRun) -> list[Match]:
    """Layer by layer, and ``logits`` last."""
    matches = [_match(name, spikes, simulated.spikes[name]) for name, spikes in predicted.spikes.items()]
    return [*matches, _match("logits", predicted.readout[None], simulated.readout[None])]


def _match(name: str, predicted: Tensor, simulated: Tensor) -> Match:
    predicted, simulated = predicted.transpose(0, 1).long(), simulated.transpose(0, 1).long()
    differing, first = (predicted != simulated).nonzero(), None
    if len(differing):
        index = tuple(differing[0].tolist())
        first = Difference(name, index[0], index[1], index[2:], int(predicted[index]), int(simulated[index]))
    spikes = int(predicted.sum()) if name != "logits" else 0
    return Match(name, spikes, predicted.numel(), len(differing), first)


def simulate(
    path: str | Path,
    images: Tensor | np.ndarray,
    python: str | None = None,
    fast: bool = False,
    num_steps: int | None = None,
    netx: bool = False,
) -> Mapping:
    """Run a network's file on the simulator and compare every spike with the prediction.

    Args:
        path, images, python, fast, netx: see :func:`run_simulator`.
        num_steps: see :func:`open_network`.

    Returns:
        ``matches`` (:class:`Match` of each layer), ``logits`` ``[B, num_classes]``, ``run``
        (:class:`SimulatorRun`).

    Raises:
        InputError: as :func:`open_network` and :func:`run_simulator` do.
        MismatchError: something fires otherwise.
    """
    network = open_network(path, num_steps)
    predicted = simulate_integer(network, images)
    run = run_simulator(path, images, python, fast, netx)
    matches = compare(predicted, run)
    wrong = [match for match in matches if match.differing]
    if wrong:
        names = ", ".join(f"{match.layer} ({match.differing:,})" for match in wrong)
        raise MismatchError(f"the simulator fires otherwise than predicted in {names}; first {wrong[0].first}")
    return {"matches": matches, "logits": run.readout.double() * network.logit_scale, "run": run}
