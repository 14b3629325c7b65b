#!/usr/bin/env python3
"""Training images/s and peak memory on a GPU over the number of time steps (the paper's Fig. 4, on this GPU).

    python benchmarks/gpu.py [--model snn_resnet18_t4] [--batch-size 128] [--steps 2 4 6 8] [--compile]

For T steps, float32 (with TF32 convolutions) and bfloat16 autocast: rate-based backpropagation, our gradients through
time, SpikingJelly's multi-step LIF (its own fastest kernels for the GPU, chosen by itself) if it is installed; with
``--compile`` also ours under ``torch.compile(mode="reduce-overhead")``, the whole model with CUDA graphs. A figure is
the median of 5 blocks of 10 steps of forward, backward and SGD; its spread is in brackets. Then, at the first number of
steps, a training epoch's worth of distillation with three branches against the student alone.
"""

import argparse
import statistics
import time

import peers
import timm
import torch
import torch.nn.functional as F

import snnzoo
from snnzoo.distill import AnnGuidedDistillationTask


def measure(make, batch_size: int, dtype: torch.dtype, wrap=lambda model: model) -> str:
    """Images/s and MiB above the process's base, as text."""
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    base = torch.cuda.memory_allocated()
    try:
        model = make().cuda().train().to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
        forward = wrap(model)
        x = torch.randn(batch_size, 3, 32, 32, device="cuda").contiguous(memory_format=torch.channels_last)
        target = torch.randint(0, 10, (batch_size,), device="cuda")

        def step():
            with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
                output = forward(x, target) if isinstance(model, AnnGuidedDistillationTask) else forward(x)
            loss = output["loss"] if isinstance(output, dict) else F.cross_entropy(output.float(), target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        for _ in range(6):
            step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        rates = []
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(10):
                step()
            torch.cuda.synchronize()
            rates.append(10 * batch_size / (time.perf_counter() - start))
        peak = (torch.cuda.max_memory_allocated() - base) / 2**20
        return f"{statistics.median(rates):8.0f} ({min(rates):6.0f} to {max(rates):6.0f}) {peak:7.0f} MiB"
    except Exception as error:
        return f"failed: {type(error).__name__}: {str(error).splitlines()[0][:90]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="snn_resnet18_t4")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 4, 6, 8])
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, snnzoo {snnzoo.__version__}")
    print(f"{args.model}, batch {args.batch_size}, 32x32, channels-last; images/s (spread), peak memory")

    def ours(num_steps, grad_method="rate"):
        return lambda: timm.create_model(args.model, num_steps=num_steps, grad_method=grad_method)

    def whole(model):
        torch._dynamo.reset()
        return torch.compile(model, mode="reduce-overhead")

    def distilled(num_steps):
        teacher = timm.create_model("cifar_resnet18")
        return lambda: AnnGuidedDistillationTask(ours(num_steps)(), teacher, verbose=False)

    for num_steps in args.steps:
        for dtype in (torch.float32, torch.bfloat16):
            rows = {
                "rate": (ours(num_steps),),
                "through time": (ours(num_steps, "bptt"),),
                "SpikingJelly": (lambda num_steps=num_steps: peers.spikingjelly(args.model, num_steps),),
            }
            if args.compile:
                rows["rate, compiled"] = (ours(num_steps), whole)
                rows["through time, compiled"] = (ours(num_steps, "bptt"), whole)
            if num_steps == args.steps[0]:
                rows["rate, three branches"] = (distilled(num_steps),)
            for label, (make, *wrap) in rows.items():
                figures = measure(make, args.batch_size, dtype, *wrap)
                print(f"T={num_steps}  {str(dtype)[6:]:9s} {label:24s} {figures}", flush=True)


if __name__ == "__main__":
    main()
