#!/usr/bin/env python3
"""How long a training step takes on a GPU, and for how much of it kernels run.

    python gpu-profile-2026-11-27.py {wide,narrow,bfloat16}

``wide``: ``snn_resnet18_t2`` by rates, batch 128. ``narrow``: ``snn_resnet20_t4`` through time beside
``cifar_resnet20``, main branches, batch 512; ``bfloat16``: that under autocast. Random images, channels-last.
"""

import argparse
import statistics
import time

import timm
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

import snnzoo  # noqa: F401
from snnzoo.distill import AnnGuidedDistillationTask


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("which", choices=["wide", "narrow", "bfloat16"])
    which = parser.parse_args().which
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = True
    batch = 128 if which == "wide" else 512
    x = torch.randn(batch, 3, 32, 32, device="cuda").contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (batch,), device="cuda")
    if which == "wide":
        model = timm.create_model("snn_resnet18_t2").cuda().train().to(memory_format=torch.channels_last)
        trained = model
    else:
        neuron = dict(shortcut="pad", decay=0.65, detach_reset=False)
        student = timm.create_model("snn_resnet20_t4", grad_method="bptt", **neuron)
        teacher = timm.create_model("cifar_resnet20").to(memory_format=torch.channels_last)
        model = AnnGuidedDistillationTask(
            student.to(memory_format=torch.channels_last), teacher, device=torch.device("cuda"), verbose=False
        ).train()
        trained = model.get_trainable_module()
    optimizer = torch.optim.SGD(trained.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)

    def step():
        with torch.autocast("cuda", torch.bfloat16, enabled=which == "bfloat16"):
            loss = F.cross_entropy(model(x), y) if which == "wide" else model(x, y)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(4):
        step()
    blocks = []
    for _ in range(4):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(8):
            step()
        torch.cuda.synchronize()
        blocks.append((time.perf_counter() - start) / 8 * 1e3)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(3):
            step()
        torch.cuda.synchronize()
    kernels = [e for e in profiler.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    busy, count = sum(e.self_device_time_total for e in kernels) / 3e3, sum(e.count for e in kernels) // 3
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: {which}")
    print(
        f"{statistics.median(blocks):.2f} ms ({min(blocks):.2f} to {max(blocks):.2f}), kernels {busy:.2f} ms of {count}"
    )


if __name__ == "__main__":
    main()
