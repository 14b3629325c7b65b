#!/usr/bin/env python3
"""How long a distillation step takes on a GPU, compiled and not, and which kernels take it.

    python gpu-compiled-2026-11-27.py {main,compile}

``snn_resnet20_t4`` through time beside ``cifar_resnet20``; random images.
"""

import argparse
import statistics
import time

import timm
import torch
from torch.profiler import ProfilerActivity, profile

import snnzoo  # noqa: F401
from snnzoo.distill import AnnGuidedDistillationTask

begun = time.time()


def say(*what) -> None:
    print(f"[{time.time() - begun:.0f}s]", *what, flush=True)


def make(batch, layout=torch.channels_last, compiled=False, branches="main"):
    x = torch.randn(batch, 3, 32, 32, device="cuda").contiguous(memory_format=layout)
    y = torch.randint(0, 10, (batch,), device="cuda")
    neuron = dict(shortcut="pad", decay=0.5, detach_reset=False)
    student = timm.create_model("snn_resnet20_t4", grad_method="bptt", **neuron).to(memory_format=layout)
    teacher = timm.create_model("cifar_resnet20").to(memory_format=layout)
    task = AnnGuidedDistillationTask(student, teacher, branches=branches, device=torch.device("cuda"), verbose=False)
    optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    if compiled:
        task.compile()
    return x, y, task.train(), optimizer


def step_of(x, y, task, optimizer, amp=False):
    def step():
        with torch.autocast("cuda", torch.bfloat16, enabled=amp):
            loss = task(x, y)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def time_of(step) -> str:
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
    return f"{statistics.median(blocks):.2f} ms ({min(blocks):.2f} to {max(blocks):.2f})"


def show_kernels(step, name) -> None:
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(3):
            step()
        torch.cuda.synchronize()
    kernels = [e for e in profiler.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    kernels.sort(key=lambda e: -e.self_device_time_total)
    total, count = sum(e.self_device_time_total for e in kernels) / 3e3, sum(e.count for e in kernels) // 3
    say(f"{name} kernels {total:.2f} ms, {count} of them")
    for e in kernels[:10]:
        print(f"   {e.self_device_time_total / 3e3:7.3f} ms x{e.count / 3:5.1f}  {e.key[:100]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("which", choices=["main", "compile"])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = True
    if parser.parse_args().which == "compile":
        made = make(512, compiled=True)
        for name, amp in (("compiled 512", False), ("compiled bf16", True)):
            step = step_of(*made, amp=amp)
            step()
            torch.cuda.synchronize()
            say("first step compiled")
            say(name, time_of(step))
            show_kernels(step, name)
        return
    made = make(512)
    for name, amp in (("512 fp32", False), ("512 bf16", True)):
        step = step_of(*made, amp=amp)
        say(name, time_of(step))
        show_kernels(step, name)
    for batch in (256, 128):
        say(batch, time_of(step_of(*make(batch))))
    say("512 no branches", time_of(step_of(*make(512, branches="none"))))
    step, stream = step_of(*make(512)), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(4):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    say("graph 512", time_of(graph.replay))
    step = step_of(*make(512, layout=torch.contiguous_format))
    say("512 NCHW", time_of(step))
    show_kernels(step, "NCHW")


if __name__ == "__main__":
    main()
