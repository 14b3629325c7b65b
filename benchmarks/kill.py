#!/usr/bin/env python3
"""Kill a training run with signal 9 at random moments, resume it, and compare with the run that was left alone.

    python benchmarks/kill.py [--kills 10] [--output DIR]

A short run on scikit-learn's digits with everything that is random in it: dropout, AutoAugment, random erasing, mixup,
averaged weights, a teacher, two data loading processes. Each kill hits a run of its own at a moment drawn uniformly
from an uninterrupted one's, saving and validation included, from the making of its folder on; the same command then
goes on to the end.
Compared are the weights, the averages, the optimizer, the adapters and the table of epochs. Exits with 1 if any differ.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

import snnzoo  # noqa: F401, registers the models
from snnzoo.data import write_digits
from snnzoo.records import read_table

ROOT = Path(__file__).resolve().parent.parent
RUN = (
    "--device cpu --input-size 3 8 8 --crop-padding 1 --hflip 0 --aa cifar10 --batch-size 64 --workers 2 --epochs 4 "
    "--model snn_resnet20_t2 --model-kwargs depths=(1,1,1) --drop 0.1 --mixup 0.2 --reprob 0.25 --model-ema "
    "--teacher cifar_resnet20 --recovery-interval 3 --resume auto"
)
COMPARED = ("state_dict", "state_dict_ema", "optimizer", "task_state", "task_state_ema", "progress", "rng")


def start(folder: Path, args: argparse.Namespace) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train_distill.py"), *RUN.split(), "--data-dir", str(args.output / "digits")]
    command += ["--teacher-checkpoint", str(args.output / "teacher.safetensors")]
    command += ["--output", str(folder.parent), "--experiment", folder.name]
    # uncompiled: nothing here depends on how the neurons run, and compiling would take most of the time
    environment = os.environ | {"SNNZOO_BACKEND": "eager", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def wait_for(folder: Path, process: subprocess.Popen) -> None:
    """Until the run has loaded its libraries and made its folder."""
    while not folder.exists() and process.poll() is None:
        time.sleep(0.01)


def finish(folder: Path, args: argparse.Namespace) -> float:
    """Run to the end; the seconds it took from the making of its folder on."""
    process = start(folder, args)
    wait_for(folder, process)
    begun = time.perf_counter()
    _, stderr = process.communicate()
    if process.returncode:
        sys.exit(f"{folder.name} ended with {process.returncode}:\n{stderr.decode()}")
    return time.perf_counter() - begun


def outcome(folder: Path) -> tuple[dict, list]:
    checkpoint = torch.load(folder / "last.pth.tar", weights_only=True)
    rows = [{k: v for k, v in row.items() if "images_per_s" not in k} for row in read_table(folder / "summary.csv")]
    return {key: checkpoint[key] for key in COMPARED}, rows


def place(folder: Path) -> str:
    """Where the killed run would go on."""
    if not (folder / "last.pth.tar").exists():
        return "before its first checkpoint"
    progress = torch.load(folder / "last.pth.tar", weights_only=True)["progress"]
    return f"epoch {progress['epoch']}, {progress['samples']} samples into it"


def same(a, b) -> bool:
    try:
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        return True
    except AssertionError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", type=Path, default=Path("output/benchmark-kill"))
    args = parser.parse_args()
    write_digits(args.output / "digits")
    torch.manual_seed(0)
    save_file(timm.create_model("cifar_resnet20").state_dict(), args.output / "teacher.safetensors")
    for folder in args.output.glob("run-*"):
        shutil.rmtree(folder)
    seconds = finish(args.output / "run-whole", args)
    whole = outcome(args.output / "run-whole")
    print(f"uninterrupted: {seconds:.1f} s from the making of its folder", flush=True)

    moments, identical = random.Random(args.seed), 0
    for number in range(args.kills):
        folder, moment = args.output / f"run-{number}", moments.uniform(0, seconds)
        process = start(folder, args)
        wait_for(folder, process)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        where = place(folder)
        finish(folder, args)
        equal = same(outcome(folder), whole)
        identical += equal
        state = "killed" if process.returncode == -signal.SIGKILL else "finished before the kill"
        print(f"{state} after {moment:4.1f} s, {where}: {'identical' if equal else 'DIFFERENT'}", flush=True)
    print(f"{identical} of {args.kills} identical to the uninterrupted run")
    sys.exit(identical != args.kills)


if __name__ == "__main__":
    main()
