#!/usr/bin/env python3
"""Stream a recording of an event camera through a spiking network, one frame at a time, and see its answer settle.

    pip install 'snnzoo[events,onnx]'
    python examples/stream_events.py
    python examples/stream_events.py --recording FILE.aedat --checkpoint RUN/model_best.pth.tar

The network is exported once as a stateful ONNX file: a frame and the membranes in, logits and the membranes out. A
checkpoint is one of train_distill.py on event data. Without one, a small network learns to tell a moving 0 from a
moving 1, recorded from scikit-learn's digits by the model of an event camera in benchmarks/synthetic_dvs.py.
"""

import argparse
import logging
import sys
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import resize

from snnzoo import hub
from snnzoo.data import data_config, write_digits
from snnzoo.data.events import count_events, read_events
from snnzoo.errors import InputError
from snnzoo.scripting import run

ROOT = Path(__file__).resolve().parent.parent
SIZE = (24, 24)  # of the digits' frames
STEPS = 6


def read_recording(path: Path, num_steps: int, size: tuple[int, int]) -> Tensor:
    """``[T, 2, H, W]`` event counts, equally many events in each frame."""
    return resize(count_events(read_events(path), num_steps), size, antialias=True)


def record_digits(output: Path, each: int) -> list[tuple[Path, int]]:
    """Recordings of zeros and ones, with their labels."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.synthetic_dvs import record, write_aedat

    made = []
    for label in (0, 1):
        for source in sorted((write_digits(output / "digits") / "train" / str(label)).iterdir())[:each]:
            path = output / f"digit{label}_{source.stem}.aedat"
            if not path.exists():
                write_aedat(path, record(Image.open(source), np.random.default_rng(int(source.stem))))
            made.append((path, label))
    return made


def train(recordings: list[tuple[Path, int]]) -> nn.Module:
    """A small spiking network for the digits' recordings."""
    torch.manual_seed(0)
    model = timm.create_model(
        "snn_resnet20_t4", num_classes=2, in_chans=2, depths=(1, 1, 1), channels=(8, 16, 32), num_steps=STEPS
    )
    frames = torch.stack([read_recording(path, STEPS, SIZE) for path, _ in recordings])
    labels = torch.tensor([label for _, label in recordings])
    optimizer = torch.optim.Adam(model.train().parameters(), lr=3e-3)
    for _ in range(24):
        for batch in torch.randperm(len(labels)).split(10):
            loss = nn.functional.cross_entropy(model(frames[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def stream(path: Path, frames: Tensor, readout_decay: float) -> list[np.ndarray]:
    """The model's logits after each frame, from an ONNX file that keeps its membranes, and its read-out, outside."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    _, *states = session.get_inputs()
    membranes = {state.name: np.zeros(state.shape, np.float32) for state in states}
    total, weight, answers = 0.0, 0.0, []
    for frame in frames:
        logits, *after = session.run(None, {"images": frame[None].numpy(), **membranes})
        membranes = dict(zip(membranes, after, strict=True))
        total, weight = readout_decay * total + logits[0], readout_decay * weight + 1
        answers.append(total / weight)
    return answers


def main(argv: list[str] | None = None) -> None:
    from snnzoo.export.onnx import export_onnx

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recording", type=Path, metavar="FILE", help=".aedat or .aedat4")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE")
    parser.add_argument("--output", type=Path, default=Path("output/stream"))
    args = parser.parse_args(argv)
    if bool(args.recording) != bool(args.checkpoint):
        raise InputError("--recording and --checkpoint go together: give both, or none for the digits")
    if args.checkpoint:
        model, trained = hub.load(args.checkpoint)
        if model.in_chans != 2 or not hasattr(model, "num_steps"):
            raise InputError(
                f"--checkpoint {str(args.checkpoint)!r} is of {trained.options['model']}, {model.in_chans} channels: "
                f"a recording is for a spiking network with 2, darker and brighter"
            )
        config = data_config(trained.options, model, "frames")
        mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
        path, size, steps = args.recording, config["input_size"][1:], model.num_steps
    else:
        *known, (path, label) = record_digits(args.output, each=21)
        print(f"recording   {path}: a moving {label} that the network has not seen")
        model, size, steps, mean, std = train(known), SIZE, STEPS, 0.0, 1.0
    frames = (read_recording(path, steps, size) - mean) / std
    onnx_file = args.output / "stream.onnx"
    export_onnx(model.eval(), onnx_file, (model.in_chans, *size), mode="stateful")
    for step, logits in enumerate(stream(onnx_file, frames, model.readout_decay), start=1):
        share = torch.softmax(torch.from_numpy(logits), 0)
        print(f"frame {step}/{steps}   class {int(share.argmax())}, {share.max():.0%}")
    with torch.no_grad():
        apart = float((model(frames[None])[0] - torch.from_numpy(logits)).abs().max())
    print(f"all frames at once in PyTorch: logits differ by {apart:.1e}")


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    run(main, Path(__file__).name)
