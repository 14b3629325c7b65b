#!/usr/bin/env python3
"""The main job in miniature, in about two minutes on a laptop: `make demo`.

Trains a small ANN on scikit-learn's digits, distils a spiking ResNet-20 from it, measures it, and exports it to ONNX.
Every step is a command that is shown before it runs; the same ones, with other options, train on real data.
"""

import csv
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from timm.data import create_loader

from snnzoo.analysis import firing_rates
from snnzoo.data import open_dataset, write_digits
from snnzoo.weights import create_model

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = Path("output/demo")
STUDENT = "snn_resnet20_t4"
DATA = "--input-size 3 8 8 --crop-padding 1 --hflip 0 --batch-size 32 --workers 0"


def run(command: str) -> None:
    """Show a command and run it with this Python; a failure ends the demo."""
    print(f"\n$ {command}", flush=True)
    program, *args = shlex.split(command)
    program = [sys.executable, str(ROOT / args.pop(0))] if program == "python" else [sys.executable, "-m", "snnzoo.cli"]
    status = subprocess.run([*program, *args], check=False).returncode
    if status:
        sys.exit(status)


def train(name: str, options: str) -> tuple[float, Path]:
    """Train a run from the start; its best top-1 in percent, and its best checkpoint."""
    folder = OUTPUT / name
    for checkpoint in folder.glob("*.pth.tar"):  # of an earlier demo
        checkpoint.unlink()
    run(f"python train_distill.py --data-dir {OUTPUT}/digits {DATA} --output {OUTPUT} --experiment {name} {options}")
    with (folder / "summary.csv").open() as file:
        best = max(float(row["eval_top1"]) for row in csv.DictReader(file))
    return best, folder / "model_best.pth.tar"


def main() -> None:
    print("scikit-learn's digits: 1,438 images to train on, 359 to test on, 8x8 pixels", flush=True)
    write_digits(OUTPUT / "digits")
    teacher_top1, teacher = train("teacher", "--model cifar_resnet20 --epochs 12 --lr 0.05")
    student_top1, student = train(
        "student",
        f"--model {STUDENT} --teacher cifar_resnet20 --teacher-checkpoint {teacher} --epochs 15 --lr 0.05",
    )
    onnx_file = OUTPUT / f"{STUDENT}.onnx"
    run(f"snnzoo export onnx {STUDENT} --checkpoint {student} --input-size 3 8 8 --dynamic-batch -o {onnx_file}")

    import onnxruntime

    model = create_model(STUDENT, student).eval()
    cfg = model.pretrained_cfg
    dataset = open_dataset("", str(OUTPUT / "digits"), "validation", model.num_classes)
    loader = create_loader(
        dataset, (3, 8, 8), 90, mean=cfg["mean"], std=cfg["std"], crop_pct=1.0, num_workers=0,
        device=torch.device("cpu"), persistent_workers=False,
    )  # fmt: skip
    images, labels = map(torch.cat, zip(*loader, strict=True))
    with torch.no_grad():
        logits = model(images)
    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    onnx_logits = session.run(None, {"images": images.numpy()})[0]
    same = float((onnx_logits.argmax(1) == logits.argmax(1).numpy()).mean())
    rates = firing_rates(model, [images])
    measured = 100 * float((logits.argmax(1) == labels).float().mean())

    print(f"\nteacher     cifar_resnet20, an ANN: top-1 {teacher_top1:.2f} %")
    print(f"student     {STUDENT}, spiking, {model.num_steps} time steps: top-1 {student_top1:.2f} %")
    mean_rate = np.mean(list(rates.values()))
    print(f"firing rate {100 * mean_rate:.1f} % of the neurons fire at a step (mean of {len(rates)} layers)")
    print(f"checkpoint  {student}")
    print(f"onnx        {onnx_file}: same class as PyTorch on {100 * same:.1f} % of the {len(labels)} test digits")
    if abs(measured - student_top1) > 0.01 or same < 1:
        sys.exit(f"demo: the checkpoint gives {measured:.2f} %, ONNX agrees on {100 * same:.1f} %: something is wrong")
    print(f"demo: top-1 {measured:.2f} % student, {teacher_top1:.2f} % teacher")


if __name__ == "__main__":
    main()
