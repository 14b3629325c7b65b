#!/usr/bin/env python3
"""Measure the accuracy of any zoo or timm model, in the manner of timm's validate.py.

python validate.py --data-dir DIR --model snn_resnet20_t4 --checkpoint output/train/RUN/model_best.pth.tar
"""

import argparse
import json
import logging
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from timm.data import create_loader, resolve_data_config
from timm.utils import ParseKwargs, setup_default_logging

from snnzoo.data import open_dataset
from snnzoo.errors import InputError
from snnzoo.evaluate import evaluate, logits_of
from snnzoo.files import write_atomically
from snnzoo.scripting import as_input_error, model_kwargs, open_device, parse_with_config, run
from snnzoo.weights import create_model

_logger = logging.getLogger("validate")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--data-dir", metavar="DIR", help="root of the data")
    add("--dataset", metavar="NAME", default="", help="timm's names: torch/…, hfds/…; a folder or tar if empty")
    add("--split", metavar="NAME", default="validation")
    add("--dataset-download", action="store_true", help="let torch/… and hfds/… data be downloaded")
    add("--class-map", metavar="FILE", default="", help="class to label mapping")
    add("--model", required=True)
    add("--checkpoint", metavar="FILE", help="weights; without it --pretrained")
    add("--pretrained", action="store_true", help="the model's pretrained weights")
    add("--use-ema", action="store_true", help="the averaged weights of the checkpoint")
    add("--num-classes", type=int, metavar="N", help="(default: the model's)")
    add("--in-chans", type=int, metavar="N")
    add("--num-steps", type=int, metavar="T", help="time steps (default: the model's)")
    add("--model-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="K=V")
    add("--input-size", nargs=3, type=int, metavar="N", help="channels, height, width (default: the model's)")
    add("--crop-pct", type=float, metavar="P")
    add("--mean", type=float, nargs="+", metavar="M", help="of the pixels, in [0, 1] (default: the model's)")
    add("--std", type=float, nargs="+", metavar="S")
    add("--interpolation", default="", help="for resizing (default: the model's)")
    add("-b", "--batch-size", type=int, default=256, metavar="N")
    add("-j", "--workers", type=int, default=4, metavar="N")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--channels-last", action="store_true", help="memory layout, often faster")
    add("--amp", action="store_true")
    add("--amp-dtype", default="bfloat16", choices=("bfloat16", "float16"))
    add("--results-file", metavar="FILE", help="write the results as JSON")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = parse_with_config(make_parser(), argv)
    setup_default_logging()
    if not args.checkpoint and not args.pretrained:
        raise InputError("nothing to measure: give --checkpoint FILE or --pretrained")
    model = create_model(
        args.model,
        args.checkpoint,
        use_ema=args.use_ema,
        pretrained=args.pretrained,
        in_chans=args.in_chans or (args.input_size and args.input_size[0]),
        num_classes=args.num_classes,
        num_steps=args.num_steps,
        **model_kwargs(args),
    )
    device = open_device(args.device)
    model = model.to(device).eval()
    if args.channels_last:
        model.to(memory_format=torch.channels_last)

    with as_input_error("--input-size, --mean or --std"):
        config = resolve_data_config(vars(args), model=model)
    config["input_size"] = (model.in_chans, *config["input_size"][1:])
    dataset = open_dataset(
        args.dataset, args.data_dir, args.split, model.num_classes, class_map=args.class_map,
        download=args.dataset_download, input_img_mode="L" if model.in_chans == 1 else "RGB",
    )  # fmt: skip
    loader = create_loader(
        dataset, batch_size=args.batch_size, num_workers=args.workers, device=device, pin_memory=device.type == "cuda",
        persistent_workers=False, **config,
    )  # fmt: skip
    autocast = nullcontext
    if args.amp:
        autocast = partial(torch.autocast, device.type, dtype=getattr(torch, args.amp_dtype))

    metrics = evaluate(partial(logits_of, model), loader, device, autocast, args.channels_last)
    result = {
        "model": args.model,
        "checkpoint": args.checkpoint,
        "num_steps": getattr(model, "num_steps", None),
        "images": len(dataset),
        "input_size": list(config["input_size"]),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **metrics,
    }
    _logger.info(
        f"{args.model}: top-1 {metrics['top1']:.2f} % top-5 {metrics['top5']:.2f} % loss {metrics['loss']:.4f} on "
        f"{len(dataset)} images, {metrics['images_per_s']:.0f} img/s"
    )
    if args.results_file:
        write_atomically(args.results_file, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    run(main, Path(__file__).name)
