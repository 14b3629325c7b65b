"""``python -m simulator NET.h5 IMAGES.npy OUT.npz``: run a network on Lava's fixed-point simulator of Loihi 2.

Prints a line of JSON for each step, and writes the recorded spikes ``[B, T, C, H, W]`` by layer and the ``readout``
``[B, O]``.
"""

import argparse
import contextlib
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from .network import LoihiNetwork, load


def simulate(
    path: str, network: LoihiNetwork, images: np.ndarray, by: str, record: tuple[str, ...], folder: Path
) -> dict[str, np.ndarray]:
    """Run the network in this process's Lava.

    Args:
        path: of the network's file.
        network: what is in it.
        images: ``[B, C, H, W]``, uint8.
        by: ``lava``; ``fast``, with our model of Lava's convolution instead of Lava's own; or ``netx``, as lava-dl's
            netx loads the file.
        record: names of the layers whose spikes to keep.
        folder: for files on the way.

    Returns:
        ``readout``, ``[B, O]``, ``seconds`` of each step, and the spikes by layer.
    """
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.conv.process import Conv

    from .build import build, build_netx
    from .fast_conv import FastConvModel

    if by == "netx":
        with contextlib.redirect_stdout(sys.stderr):  # lava-dl gives advice when it is imported
            processes = build_netx(path, network, images, record, folder)
    else:
        processes = build(network, images, record, folder)
    models = {Conv: FastConvModel} if by == "fast" else None
    config = Loihi2SimCfg(select_tag="fixed_pt", exception_proc_model_map=models)
    seconds = []
    try:
        for step in range(processes.num_steps):
            start = time.time()
            processes.start.run(condition=RunSteps(num_steps=1), run_cfg=config)
            seconds.append(time.time() - start)
            print(json.dumps({"step": step + 1, "of": processes.num_steps, "seconds": seconds[-1]}), flush=True)
        steps, count = network.num_steps, len(images)
        # Reading begins at the first step of the right phase, before an image has come through.
        early = (network.depths[network.readout.name] - 1) // steps + 1
        states = processes.readout.data.get()[0, 0]
        result = {"seconds": np.array(seconds), "readout": states[:, early:][:, :count].T.astype(np.int64)}
        for name, path in processes.recordings.items():
            spikes = np.load(path)[network.depths[name] :][: count * steps].transpose(0, 3, 2, 1)
            result[f"spikes/{name}"] = spikes.reshape(count, steps, *spikes.shape[1:])
        return result
    finally:
        processes.start.stop()


def main() -> None:
    parser = argparse.ArgumentParser(prog="simulator", description="Run a network on Lava's Loihi 2 simulator.")
    parser.add_argument("network", help="file that `snnzoo export lava` wrote")
    parser.add_argument("images", help="npy file, uint8 [B, C, H, W]")
    parser.add_argument("output", help="npz file to write")
    parser.add_argument(
        "--by", default="lava", choices=("lava", "fast", "netx"),
        help="Lava's convolution, our model of it, or the file as lava-dl's netx loads it",
    )  # fmt: skip
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    network = load(args.network)
    record = tuple(layer.name for layer in network if layer.spikes)
    with tempfile.TemporaryDirectory() as folder:
        result = simulate(args.network, network, np.load(args.images), args.by, record, Path(folder))
    np.savez(args.output, **result)


if __name__ == "__main__":
    main()
