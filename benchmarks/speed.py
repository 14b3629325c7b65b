#!/usr/bin/env python3
"""Speed on a CPU against the floor, against the published algorithm and against peers, in paired runs.

    python benchmarks/speed.py [train] [steps] [eval] [distill] [lif] [loader] [profile]

A pair is two things in one process, run in turn (A B A B ...), and the ratio B / A is taken run by run; printed are
the medians of the times and the median, minimum and maximum of the ratios. Everything is float32, on two threads, in
the channels-last memory format, which is the faster one for all of them.
"""

import argparse
import platform
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import peers
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_dataset, create_loader
from torchvision.transforms.functional import to_pil_image

import snnzoo
from snnzoo import LIFParams, fused, set_backend
from snnzoo.allocator import keep_memory
from snnzoo.data import SmallImageTransform

RUNS = 15


def pair(label: str, ours, other, runs: int = RUNS) -> None:
    """Time two calls in turn and print how much longer the other one takes."""
    for _ in range(3):
        ours(), other()
    times = []
    for _ in range(runs):
        times.append((clock(ours), clock(other)))
    a, b = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = [y / x for x, y in times]
    print(
        f"{label:58s} {1e3 * a:9.2f} {1e3 * b:9.2f} ms   {statistics.median(ratios):5.2f}"
        f"  ({min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )


def clock(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def channels_last(x):
    return x.to(memory_format=torch.channels_last)


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return channels_last(torch.randn(size, 3, 32, 32)), torch.randint(0, 10, (size,))


def step(model, x, target) -> None:
    model.zero_grad()
    F.cross_entropy(model(x), target).backward()


def train() -> None:
    for name, size in (("snn_resnet18_t4", 16), ("snn_resnet20_t4", 128)):
        x, target = batch(size)
        num_steps = 4
        ours = channels_last(timm.create_model(name).train())
        through_time = channels_last(timm.create_model(name, grad_method="bptt").train())
        ours = partial(step, ours, x, target)

        def uncompiled(ours=ours):
            set_backend("eager")
            ours()
            set_backend("auto")

        label = f"{name} B={size}: step"
        floor = channels_last(peers.floor_net(name))
        pair(f"{label}, floor / ours", ours, partial(peers.floor_step, floor, x, target, num_steps))
        reference = channels_last(peers.rate_reference(name, num_steps))
        pair(f"{label}, published algorithm / ours", ours, partial(step, reference, x, target))
        pair(f"{label}, without a compiler / ours", ours, uncompiled)
        pair(f"{label}, ours through time / ours", ours, partial(step, through_time, x, target))
        peer = channels_last(peers.spikingjelly(name, num_steps))
        pair(f"{label}, SpikingJelly through time / ours", ours, partial(step, peer, x, target))


def steps() -> None:
    for name, size in (("snn_resnet18_t4", 16), ("snn_resnet20_t4", 128)):
        x, target = batch(size)
        two, eight = (channels_last(timm.create_model(name, num_steps=t).train()) for t in (2, 8))
        pair(f"{name} B={size}: step, T=8 / T=2", partial(step, two, x, target), partial(step, eight, x, target))

        @torch.no_grad()
        def forward(model, x=x):
            model(x)

        pair(f"{name} B={size}: forward, T=8 / T=2", partial(forward, two), partial(forward, eight))


def evaluation() -> None:
    import onnxruntime

    from snnzoo.export.onnx import export_onnx

    name = "snn_resnet18_t4"
    plain = channels_last(timm.create_model(name).eval())
    ours = torch.compile(snnzoo.fuse(plain), options={"freezing": True})
    peer = channels_last(peers.spikingjelly(name, 4)).eval()
    peer.load_state_dict(plain.state_dict())
    ann = snnzoo.fuse(channels_last(peers.floor_net(name)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(plain, path, dynamic_batch=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # its idle threads slow down the other
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for size in (1, 32):
        x, _ = batch(size)
        images = x.contiguous().numpy()

        @torch.no_grad()
        def run(net, x=x):
            return net(x)

        label, compiled = f"{name} B={size}: eval", partial(run, ours)
        pair(f"{label}, not fused, not compiled / ours", compiled, partial(run, plain))
        pair(f"{label}, SpikingJelly / ours", compiled, partial(run, peer))
        pair(f"{label}, onnxruntime of our export / ours", compiled, partial(session.run, None, {"images": images}))
        pair(f"{label}, T * B images of the ANN / ours", compiled, partial(run, ann, x.repeat(4, 1, 1, 1)))


def distill() -> None:
    from snnzoo.distill import AnnGuidedDistillationTask

    student = channels_last(timm.create_model("snn_resnet18_t4"))
    teacher = channels_last(timm.create_model("cifar_resnet18"))
    task = AnnGuidedDistillationTask(student, teacher, branches="main", verbose=False).train()
    x, target = batch(16)

    def distilled():
        task.zero_grad()
        task(x, target)["loss"].backward()

    pair("snn_resnet18_t4 B=16: step, three branches / student alone", partial(step, student, x, target), distilled)


def lif() -> None:
    current = torch.randn(4, 256, 32, 32, 16).movedim(-1, 2)  # 64 MB
    spikes, rate, slope = torch.empty_like(current), torch.empty_like(current[0]), torch.empty_like(current[0])

    def copy():
        spikes.copy_(current)
        rate.copy_(current[0])
        slope.copy_(current[1])

    pair(
        "LIF with statistics, 64 MB: copy of as much / ours",
        partial(fused.lif_statistics, current, LIFParams()),
        copy,
    )

    def uncompiled():
        set_backend("eager")
        fused.lif_statistics(current, LIFParams())
        set_backend("auto")

    pair(
        "LIF with statistics, 64 MB: without a compiler / ours",
        partial(fused.lif_statistics, current, LIFParams()),
        uncompiled,
    )


def loader() -> None:
    """Images/s on one core of each stage of the CIFAR pipeline, summed up stage by stage, and of timm's loader."""
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "validation"):
            for label in range(10):
                target = Path(folder) / split / str(label)
                target.mkdir(parents=True)
                for index in range(100):  # smooth, as photographs are: decoding noise would take longer
                    pixels = F.interpolate(torch.rand(1, 3, 8, 8), (32, 32), mode="bilinear")[0]
                    to_pil_image(pixels).save(target / f"{index}.png")
        files = sorted(Path(folder).glob("train/*/*.png"))
        transform = SmallImageTransform((32, 32), 4, 0.5, "cifar10", 16)
        stages = [("read", lambda path: Image.open(path).convert("RGB"))]
        stages += [(type(t).__name__, t) for t in transform.transforms]
        samples = files
        torch.set_num_threads(1)
        for label, stage in stages:
            start = time.perf_counter()
            samples = [stage(sample) for sample in samples]
            print(f"loader: {label:50s} {1e6 * (time.perf_counter() - start) / len(files):9.1f} us per image")
        torch.set_num_threads(2)
        dataset = create_dataset("", root=folder, split="train")
        loader = create_loader(
            dataset,
            (3, 32, 32),
            100,
            is_training=True,
            num_workers=2,
            device=torch.device("cpu"),
            persistent_workers=True,
        )
        dataset.transform = transform
        for _ in loader:  # starts the workers
            pass
        rates = []
        for _ in range(10):
            start = time.perf_counter()
            for _ in loader:
                pass
            rates.append(len(files) / (time.perf_counter() - start))
        print(f"loader: two workers, all of it {statistics.median(rates):33.0f} images/s")


def profile() -> None:
    from torch.profiler import ProfilerActivity, profile

    for name, size in (("snn_resnet18_t4", 16), ("snn_resnet20_t4", 128)):
        model, (x, target) = channels_last(timm.create_model(name).train()), batch(size)
        for _ in range(3):
            step(model, x, target)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            step(model, x, target)
        print(f"{name} B={size}, one step by operator")
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=50))


PARTS = {
    "train": train,
    "steps": steps,
    "eval": evaluation,
    "distill": distill,
    "lif": lif,
    "loader": loader,
    "profile": profile,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    args = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    keep_memory()
    print(f"torch {torch.__version__}, timm {timm.__version__}, snnzoo {snnzoo.__version__}, {platform.machine()}")
    print(f"{'':58s} {'A':>9s} {'B':>9s}      B / A")
    for part in args.parts or PARTS:
        PARTS[part]()


if __name__ == "__main__":
    main()
