#!/usr/bin/env python3
"""Compare an ANN with the spiking network that it taught: accuracy, sparsity, energy.

    python examples/compare.py
    python examples/compare.py --teacher output/train/teacher --student output/train/student --data-dir DIR

Both are folders of runs of train_distill.py. Without them a ResNet-20 and its student are trained on scikit-learn's
digits first, for a few seconds each.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from snnzoo import hub
from snnzoo.analysis import profile
from snnzoo.checkpoints import BEST
from snnzoo.data import write_digits
from snnzoo.errors import InputError
from snnzoo.evaluate import evaluate, logits_of
from snnzoo.model_options import open_data
from snnzoo.processes import Processes
from snnzoo.scripting import run

ROOT = Path(__file__).resolve().parent.parent


def train_pair(output: Path) -> tuple[Path, Path]:
    """The folders of an ANN's and its student's runs on the digits."""
    sys.path.insert(0, str(ROOT))  # the script is not part of the package
    import train_distill

    for checkpoint in output.glob("*/*.pth.tar"):  # of an earlier comparison
        checkpoint.unlink()
    fixed = f"--data-dir {write_digits(output / 'digits')} --output {output} --input-size 3 8 8 --crop-padding 1"
    fixed = f"{fixed} --hflip 0 --batch-size 32 --workers 0 --lr 0.05 --epochs 4 --device cpu".split()
    train_distill.main([*fixed, "--model", "cifar_resnet20", "--experiment", "ann"])
    taught = ["--teacher", "cifar_resnet20", "--teacher-checkpoint", str(output / "ann" / BEST)]
    train_distill.main([*fixed, "--model", "snn_resnet20_t4", *taught, "--experiment", "snn"])
    return output / "ann", output / "snn"


def measure(folder: Path, data_dir: str | None) -> dict[str, float]:
    """Accuracy and cost of a run's best checkpoint on its validation data."""
    model, trained = hub.load(folder / BEST)
    options = argparse.Namespace(**{**trained.options, "data_dir": data_dir or trained.options["data_dir"]})
    _, loader = open_data(options, model, options.val_split)
    accuracy = evaluate(partial(logits_of, model.eval()), loader, Processes("cpu"))
    found = profile(model, (images for images, _ in loader))
    zeros = sum(layer.activity.sparsity * layer.dense for layer in found.synapses)
    return {
        "top-1, %": accuracy["top1"],
        "time steps": found.num_steps,
        "zeros among inputs, %": 100 * zeros / found.totals["dense_macs"],  # weighted by what they save
        "MACs an image": found.totals["macs"],
        "ACs an image": found.totals["acs"],
        "energy, µJ an image": found.totals["energy_uj"],
        "membranes besides, µJ": found.totals["membrane_energy_uj"],
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, metavar="RUN", help="folder of the ANN's run")
    parser.add_argument("--student", type=Path, metavar="RUN", help="folder of the spiking network's run")
    parser.add_argument("--data-dir", metavar="DIR", help="(default: where the runs say)")
    parser.add_argument("--output", type=Path, default=Path("output/compare"), help="for the digits' runs")
    args = parser.parse_args(argv)
    if bool(args.teacher) != bool(args.student):
        raise InputError("--teacher and --student go together: give both runs, or none for the digits")
    folders = (args.teacher, args.student) if args.student else train_pair(args.output)
    ann, snn = (measure(folder, args.data_dir) for folder in folders)
    print(f"\n{'':<24}{'ANN':>14}{'SNN':>14}")
    for name in ann:
        print(f"{name:<24}{ann[name]:>14,.2f}{snn[name]:>14,.2f}")
    share = snn["energy, µJ an image"] / ann["energy, µJ an image"]
    print(f"\nThe spiking network's synapses take {share:.2f} times the energy of the ANN's, zeros skipped in both.")


if __name__ == "__main__":
    run(main, Path(__file__).name)
