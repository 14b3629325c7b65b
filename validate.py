#!/usr/bin/env python3
"""Measure the accuracy of any zoo, timm or Hub model, in the manner of timm's validate.py.

python validate.py --data-dir DIR --model snn_resnet20_t4 --checkpoint output/train/RUN/model_best.pth.tar
python validate.py --data-dir DIR --model hf-hub:OWNER/NAME --num-steps 1 2 4 6 --results-file results.csv
"""

import argparse
import csv
import io
import json
import logging
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from timm.data import create_transform
from timm.utils import ParseKwargs, setup_default_logging

from snnzoo import data
from snnzoo.errors import InputError
from snnzoo.evaluate import evaluate, logits_of
from snnzoo.files import new_file
from snnzoo.hub import digest
from snnzoo.processes import Processes
from snnzoo.records import versions
from snnzoo.scripting import as_input_error, in_chans, model_kwargs, parse_with_config, run
from snnzoo.weights import create_model

_logger = logging.getLogger("validate")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--data-dir", metavar="DIR", help="root of the data")
    add("--dataset", metavar="NAME", default="", help="timm's names: torch/…, hfds/…; frames, cifar10dvs; or a folder")
    add("--split", metavar="NAME", default="validation")
    add("--dataset-download", action="store_true", help="let torch/… and hfds/… data be downloaded")
    add("--class-map", metavar="FILE", default="", help="class to label mapping")
    add("--model", required=True, help="a zoo or timm model, or hf-hub:…")
    add("--checkpoint", metavar="FILE", help="its weights; else --pretrained, or a model from a Hub")
    add("--pretrained", action="store_true", help="the model's pretrained weights")
    add("--use-ema", action="store_true", help="the averaged weights of the checkpoint")
    add("--num-classes", type=int, metavar="N", help="(default: the model's)")
    add("--in-chans", type=int, metavar="N")
    add("--num-steps", type=int, nargs="+", metavar="T", help="time steps, one or several (default: the model's)")
    add("--event-steps", type=int, metavar="T", help="frames of a cifar10dvs recording (default: the model's steps)")
    add("--model-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="K=V")
    add("--input-size", nargs=3, type=int, metavar="N", help="channels, height, width (default: the model's)")
    add("--crop-pct", type=float, metavar="P")
    add("--mean", type=float, nargs="+", metavar="M", help="of the pixels, in [0, 1] (default: the model's)")
    add("--std", type=float, nargs="+", metavar="S")
    add("--interpolation", default="", help="for resizing (default: the model's)")
    add("-b", "--batch-size", type=int, default=256, metavar="N")
    add("-j", "--workers", type=int, default=data.WORKERS, metavar="N")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--channels-last", action="store_true", help="memory layout, often faster")
    add("--amp", action="store_true")
    add("--amp-dtype", default="bfloat16", choices=("bfloat16", "float16"))
    add("--results-file", metavar="FILE", help="write the results, .csv or .json")
    return parser


def as_text(results: list[dict], suffix: str) -> str:
    """One row or object for each number of steps; JSON says what it was measured with, too."""
    if suffix == ".json":
        return json.dumps({"results": results, "versions": versions()}, indent=2) + "\n"
    text = io.StringIO()
    writer = csv.DictWriter(text, list(results[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(results)
    return text.getvalue()


def main(argv: list[str] | None = None) -> None:
    args = parse_with_config(make_parser(), argv)
    if not args.checkpoint and not args.pretrained and ":" not in args.model:
        raise InputError("nothing to measure: give --checkpoint FILE or --pretrained")
    if args.results_file and Path(args.results_file).suffix not in (".csv", ".json"):
        raise InputError(f"--results-file must end in .csv or .json, got {args.results_file!r}")
    if args.num_steps and args.event_steps:
        raise InputError("--num-steps does nothing with --event-steps: frames of events have their own number of steps")
    if args.event_steps and args.dataset != "cifar10dvs":
        raise InputError("--event-steps does nothing without --dataset cifar10dvs")
    processes = Processes(args.device)
    if processes.is_first:
        setup_default_logging()
    with new_file(args.results_file) if args.results_file and processes.is_first else nullcontext() as temporary:
        results = measure(args, processes)
        if temporary:
            temporary.write_text(as_text(results, Path(args.results_file).suffix))
    processes.close()


def measure(args: argparse.Namespace, processes: Processes) -> list[dict]:
    """A row for each number of steps."""
    model = create_model(
        args.model,
        args.checkpoint,
        use_ema=args.use_ema,
        pretrained=args.pretrained or not args.checkpoint,
        in_chans=in_chans(args),
        num_classes=args.num_classes,
        num_steps=args.num_steps and args.num_steps[0],
        **model_kwargs(args),
    )
    identity = digest(model)
    model = model.to(processes.device).eval()
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    autocast = nullcontext
    if args.amp:
        autocast = partial(torch.autocast, processes.device.type, dtype=getattr(torch, args.amp_dtype))
    config = data.data_config(vars(args), model, args.dataset)

    results = []
    for steps in args.num_steps or [getattr(model, "num_steps", None)]:
        if steps is not None:
            model.num_steps = steps
        dataset = data.open_dataset(
            args.dataset, args.data_dir, args.split, model.num_classes, model.in_chans, args.event_steps or steps,
            config["input_size"][1:], class_map=args.class_map, download=args.dataset_download,
        )  # fmt: skip
        frames = args.dataset in data.FRAME_DATASETS
        if frames and args.dataset == "frames" and args.num_steps:
            raise InputError(f"--num-steps: frames have their own number of steps, {dataset.num_steps}")
        with as_input_error("--interpolation or --crop-pct"):
            transform = create_transform(is_training=False, use_prefetcher=True, **config)
        dataset.transform = data.FrameTransform(time_mean=steps is None) if frames else transform
        loader = data.evaluation_batches(
            dataset, args.batch_size, model.num_classes, processes, args.workers, config["mean"], config["std"], frames
        )
        images = next(iter(loader))[0]
        if args.channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), autocast():  # kernels are compiled before the clock starts
            model(images)
        metrics = evaluate(
            partial(logits_of, model), loader, processes, autocast, args.channels_last,
            spiking=model if steps is not None else None,
        )  # fmt: skip
        shown = dataset.num_steps if frames else steps
        results.append({
            "model": args.model,
            "checkpoint": args.checkpoint,
            "num_steps": shown,
            "images": len(dataset),
            "input_size": "x".join(map(str, config["input_size"])),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "digest": identity,
            **metrics,
        })  # fmt: skip
        _logger.info(
            f"{args.model}{f' T = {shown}' if shown else ''}: top-1 {metrics['top1']:.2f} % top-5 "
            f"{metrics['top5']:.2f} % loss {metrics['loss']:.4f} on {len(dataset)} images, "
            f"{metrics['images_per_s']:.0f} img/s"
        )
    return results


if __name__ == "__main__":
    run(main, Path(__file__).name)
