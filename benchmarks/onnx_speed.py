#!/usr/bin/env python3
"""Exported ONNX files in onnxruntime against PyTorch on the CPU, paired: the two take turns.

    python benchmarks/onnx_speed.py [--models snn_resnet20_t4 snn_resnet18_t4] [--batch-sizes 1 32] [--rounds 10]

PyTorch runs the fused model, channels-last, neurons compiled; under torch.compile it is faster, see speed.py. A line
for each model and batch: the medians in ms, and the median of the rounds' ratios with its quartiles.
"""

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import onnxruntime
import torch

import snnzoo
from snnzoo.export.importers import lively
from snnzoo.export.onnx import export_onnx


def seconds(run, images) -> float:
    start = time.perf_counter()
    run(images)
    return time.perf_counter() - start


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["snn_resnet20_t4", "snn_resnet18_t4"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        "| model | batch | PyTorch, ms | onnxruntime, ms | PyTorch / onnxruntime (quartiles) |\n|---|---|---|---|---|"
    )
    for name in args.models:
        model = lively(name)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.onnx"
            export_onnx(model, path, dynamic_batch=True)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = args.threads
            # Its idle threads would slow down the other.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        fused = snnzoo.fuse(model.to(memory_format=torch.channels_last))
        for batch in args.batch_sizes:
            images = torch.randn(batch, *model.pretrained_cfg["input_size"])
            last = images.contiguous(memory_format=torch.channels_last)
            engine = partial(session.run, None)
            for _ in range(3):
                engine({"images": images.numpy()}), fused(last)
            times = [(seconds(fused, last), seconds(engine, {"images": images.numpy()})) for _ in range(args.rounds)]
            torch_ms, onnx_ms = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
            low, mid, high = statistics.quantiles([a / b for a, b in times], n=4)
            print(
                f"| `{name}` | {batch} | {torch_ms:.1f} | {onnx_ms:.1f} | {mid:.2f} ({low:.2f} to {high:.2f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
