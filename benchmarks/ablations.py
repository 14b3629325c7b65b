#!/usr/bin/env python3
"""What each part of the method is worth: the ablations of arXiv 2503.16572 (its Tables 3 and 4), in one table.

    python benchmarks/ablations.py                                        # short, on scikit-learn's digits
    python benchmarks/ablations.py --variants labels logits main --seeds 0 1 2 --epochs 20 --data-dir CIFAR10_DIR \
        --teacher cifar_resnet20 --teacher-checkpoint FILE --options "-c hub_configs/snn_resnet20_t4.c10/recipe.yaml"

Each row is one command of train_distill.py, which is shown; its run is a folder in --output. Runs that are there are
not repeated, and one that was interrupted goes on. After each run table.md and table.csv are written anew; curves.png
compares the variants' first seeds.
"""

import argparse
import csv
import io
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

from snnzoo.analysis import draw_curves, save
from snnzoo.data import write_digits
from snnzoo.errors import InputError
from snnzoo.files import write_atomically
from snnzoo.records import SUMMARY, TABLE, read_table

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = {  # what it says, options beside the teacher's; None: no teacher
    "labels": ("labels only", None),
    "logits": ("logits only", "--branches none"),
    "stem": ("branch after the stem", "--branches stem"),
    "1": ("branch after stage 1", "--branches 1"),
    "2": ("branch after stage 2", "--branches 2"),
    "fc": ("branch before the classifier", "--branches fc"),
    "main": ("main branches", "--branches main"),
    "stem-main": ("stem and main branches", "--branches stem,1,2"),
    "main-fc": ("main branches and fc", "--branches 1,2,fc"),
    "all": ("all branches", "--branches all"),
    "alpha-0.3": ("main, alpha 0.3", "--alpha 0.3"),
    "alpha-0.7": ("main, alpha 0.7", "--alpha 0.7"),
    "rising": ("main, alpha rising", "--alpha-schedule rising"),
    "falling": ("main, alpha falling", "--alpha-schedule falling"),
    "halving": ("main, beta halving", "--beta halving"),
    "scaled": ("main, loss gradient 1/4", "--loss-grad-scale 0.25"),
    "hard": ("main, hard reset", "--reset hard"),
    "bptt": ("main, through time", "--grad-method bptt"),
}
DIGITS = "--input-size 3 8 8 --crop-padding 1 --hflip 0 --batch-size 32 --workers 0 --lr 0.05"


def train(folder: Path, options: list[str]) -> list[dict[str, float]]:
    """The table of a run, trained if it is not there; ends the program if it fails."""
    command = [sys.executable, str(ROOT / "train_distill.py"), *options, "--output", str(folder.parent)]
    command += ["--experiment", folder.name, "--resume", "auto"]
    print("$ " + shlex.join(["python", "train_distill.py", *command[2:]]), flush=True)
    summary = folder / SUMMARY
    if not summary.exists() or not json.loads(summary.read_text())["finished"]:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            sys.exit(f"{folder.name} failed:\n{result.stderr}")
    return read_table(folder / TABLE)


def write_tables(output: Path, found: dict[str, dict[int, list[dict[str, float]]]]) -> str:
    """Top-1 of the last epoch, for each variant and seed; returns the table as text."""
    lines = ["| training | top-1 of the last epoch, by seed | mean | spread (s.d.) |", "|---|---|---|---|"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["variant", "seed", "epochs", "top1_last", "top1_best"])
    for name, by_seed in found.items():
        last = [rows[-1]["eval_top1"] for rows in by_seed.values()]
        deviation = f"{statistics.stdev(last):.2f}" if len(last) > 1 else "-"
        values = ", ".join(f"{value:.2f}" for value in last)
        lines.append(f"| {VARIANTS[name][0]} | {values} | {statistics.mean(last):.2f} | {deviation} |")
        for seed, rows in by_seed.items():
            best = max(row["eval_top1"] for row in rows)
            writer.writerow([name, seed, len(rows), rows[-1]["eval_top1"], best])
    write_atomically(output / "table.csv", text.getvalue())
    write_atomically(output / "table.md", "\n".join(lines) + "\n")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME", help=", ".join(VARIANTS))
    add("--seeds", type=int, nargs="+", default=[0])
    add("--epochs", type=int, default=15)
    add("--model", default="snn_resnet20_t4")
    add("--data-dir", type=Path, help="(default: the digits, and a teacher trained on them)")
    add("--teacher", default="cifar_resnet20")
    add("--teacher-checkpoint", type=Path)
    add("--options", default="", help="further options of train_distill.py, for all runs")
    add("--output", type=Path, default=Path("output/ablations"))
    args = parser.parse_args()

    weights, data = args.teacher_checkpoint, args.data_dir
    fixed = shlex.split(args.options)
    if data is None:
        data = write_digits(args.output / "digits")
        fixed = [*DIGITS.split(), *fixed]
        if weights is None:
            ann = f"--model {args.teacher} --epochs 12 --seed 42 --data-dir {data} {DIGITS}"
            rows = train(args.output / "teacher", ann.split())
            weights = args.output / "teacher/model_best.pth.tar"
            print(f"teacher {args.teacher}: best {max(row['eval_top1'] for row in rows):.2f} %", flush=True)
    elif weights is None:
        parser.error("--data-dir needs --teacher-checkpoint")

    found: dict[str, dict[int, list[dict[str, float]]]] = {}
    for name in args.variants:
        for seed in args.seeds:
            options = [*fixed, "--data-dir", str(data), "--model", args.model, "--epochs", str(args.epochs)]
            options += ["--seed", str(seed)]
            if VARIANTS[name][1] is None:
                options += ["--teacher", ""]  # a recipe may name one
            else:
                options += ["--teacher", args.teacher, "--teacher-checkpoint", str(weights), *VARIANTS[name][1].split()]
            found.setdefault(name, {})[seed] = train(args.output / f"{name}-{seed}", options)
            table = write_tables(args.output, found)
    print(table)
    try:
        runs = {VARIANTS[name][0]: by_seed[args.seeds[0]] for name, by_seed in found.items()}
        save(draw_curves(runs), args.output / "curves.png")
    except InputError as error:
        print(error)


if __name__ == "__main__":
    main()
