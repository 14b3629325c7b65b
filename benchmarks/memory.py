#!/usr/bin/env python3
"""Peak memory of one training step against the number of time steps: rate-based, through time, and SpikingJelly's.

    python benchmarks/memory.py [--model snn_resnet18_t4] [--batch-size 32] [--steps 2 4 8]

Each measurement is a process of its own: a step on a tiny batch first, so that libraries and compiled kernels are
loaded, then one step on the whole batch. Printed is how far the process's peak rises above what it held between.
"""

import argparse
import platform
import resource
import subprocess
import sys
from pathlib import Path

import torch


def measure(name: str, num_steps: int, grad_method: str, batch_size: int) -> float:
    """MiB that one step needs above the process's base."""
    import peers
    import timm

    torch.set_num_threads(2)
    if grad_method == "spikingjelly":
        model = peers.spikingjelly(name, num_steps)
    else:
        model = timm.create_model(name, num_steps=num_steps, grad_method=grad_method).train()
    model.to(memory_format=torch.channels_last)

    def step(batch):
        images = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        torch.nn.functional.cross_entropy(model(images), torch.zeros(batch, dtype=torch.long)).backward()

    step(2)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    base = pages * resource.getpagesize() / 2**20
    step(batch_size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="snn_resnet18_t4")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # the measuring process
    args = parser.parse_args()
    if args.one:
        print(measure(args.model, int(args.one[0]), args.one[1], args.batch_size))
        return

    print(f"{args.model}, batch {args.batch_size}, 32x32, float32; torch {torch.__version__}, {platform.machine()}")
    print(
        "method      "
        + "".join(f"   T={steps:<3d} MiB" for steps in args.steps)
        + f"   T={args.steps[-1]} / T={args.steps[0]}"
    )
    for grad_method in ("rate", "bptt", "spikingjelly"):
        peaks = []
        for steps in args.steps:
            command = [sys.executable, __file__, "--model", args.model, "--batch-size", str(args.batch_size)]
            command += ["--one", str(steps), grad_method]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            peaks.append(float(output.split()[-1]))
        print(f"{grad_method:12s}" + "".join(f"   {peak:9.0f}" for peak in peaks) + f"   {peaks[-1] / peaks[0]:9.2f}")


if __name__ == "__main__":
    main()
