#!/usr/bin/env python3
"""What the teacher is worth on scikit-learn's digits: labels only, logits only, main branches; three seeds each.

    python benchmarks/digits.py [--output DIR] [--seeds 0 1 2]

Trains one teacher (cifar_resnet20), then snn_resnet20_t4 nine times with train_distill.py, and prints a table. A run
whose checkpoints are there is not repeated.
"""

import argparse
import csv
import statistics
import subprocess
import sys
from pathlib import Path

from snnzoo.data import write_digits

ROOT = Path(__file__).resolve().parent.parent
DATA = "--input-size 3 8 8 --crop-padding 1 --hflip 0 --batch-size 32 --workers 0 --lr 0.05"
VARIANTS = {
    "labels only": "",
    "logits only": "--teacher cifar_resnet20 --teacher-checkpoint {teacher} --branches none",
    "main branches": "--teacher cifar_resnet20 --teacher-checkpoint {teacher} --branches main",
}


def train(folder: Path, options: str) -> dict[str, float]:
    """The last epoch's and the best top-1 of a run, training it if it is not there."""
    if not (folder / "model_best.pth.tar").exists():
        command = [sys.executable, str(ROOT / "train_distill.py"), *DATA.split(), *options.split()]
        command += ["--data-dir", str(folder.parent / "digits"), "--output", str(folder.parent)]
        subprocess.run([*command, "--experiment", folder.name], check=True, capture_output=True)
    with (folder / "summary.csv").open() as file:
        top1 = [float(row["eval_top1"]) for row in csv.DictReader(file)]
    return {"last": top1[-1], "best": max(top1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/benchmark-digits"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--options", default="", help="further options of train_distill.py for the students")
    args = parser.parse_args()
    write_digits(args.output / "digits")
    teacher = train(args.output / "teacher", "--model cifar_resnet20 --epochs 12 --seed 42")
    print(f"teacher cifar_resnet20: last {teacher['last']:.2f} best {teacher['best']:.2f}", flush=True)
    weights = args.output / "teacher/model_best.pth.tar"
    print("| training | top-1 of the last epoch, by seed | mean | spread (s.d.) |\n|---|---|---|---|", flush=True)
    for name, options in VARIANTS.items():
        last = []
        for seed in args.seeds:
            folder = args.output / f"{name.replace(' ', '-')}-{seed}"
            fixed = f"--model snn_resnet20_t4 --epochs {args.epochs} --seed {seed} {args.options}"
            last.append(train(folder, f"{fixed} {options.format(teacher=weights)}")["last"])
        values = ", ".join(f"{value:.2f}" for value in last)
        deviation = f"{statistics.stdev(last):.2f}" if len(last) > 1 else "-"
        print(f"| {name} | {values} | {statistics.mean(last):.2f} | {deviation} |", flush=True)


if __name__ == "__main__":
    main()
