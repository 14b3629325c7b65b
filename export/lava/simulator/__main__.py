"""``python -m simulator NET.h5 IMAGES.npy OUT.npz``: run a network on Lava's fixed-point simulator of Loihi 2.

Prints a line of JSON for each step, and writes the recorded spikes ``[B, T, C, H, W]`` by layer and the ``readout``
``[B, O]``.
"""

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path

import numpy as np

from .network import LoihiNetwork, load


def simulate(
    network: LoihiNetwork, images: np.ndarray, fast: bool, record: tuple[str, ...], folder: Path
) -> dict[str, np.ndarray]:
    """Run the network in this process's Lava.

    Args:
        network: what to run.
        images: ``[B, C, H, W]``, uint8.
        fast: our model of Lava's convolution instead of Lava's own.
        record: names of the layers whose spikes to keep.
        folder: for files on the way.

    Returns:
        ``readout``, ``[B, O]``, ``seconds`` of each step, and the spikes by layer.
    """
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.conv.process import Conv

    from .build import build
    from .fast_conv import FastConvModel

    processes = build(network, images, record, folder)
    config = Loihi2SimCfg(select_tag="fixed_pt", exception_proc_model_map={Conv: FastConvModel} if fast else None)
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
    parser.add_argument("--fast", action="store_true", help="our model of Lava's convolution instead of Lava's own")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    network = load(args.network)
    record = tuple(layer.name for layer in network if layer.spikes)
    with tempfile.TemporaryDirectory() as folder:
        result = simulate(network, np.load(args.images), args.fast, record, Path(folder))
    np.savez(args.output, **result)


if __name__ == "__main__":
    main()
