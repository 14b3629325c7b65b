"""``snnzoo export``: what the command line says, as calls of the exporters."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from snnzoo.errors import InputError
from snnzoo.model_options import add_data, add_model, make_model, open_data

ACTIVITY_IMAGES = 64
CALIBRATION_IMAGES = 128
PARITY_IMAGES = 8


def add_commands(targets: argparse._SubParsersAction) -> None:
    """Add ``graph``, ``onnx``, ``nir`` and ``lava``."""
    graph = targets.add_parser("graph", help="print the network that every exporter starts from, batch norms folded")
    add_model(graph)
    graph.add_argument("--plot", metavar="FILE", help="draw it, too: a png, svg or pdf file")
    graph.set_defaults(command=_graph)

    onnx = targets.add_parser("onnx", help="ONNX: images in, averaged logits out; checked in onnxruntime")
    add_model(onnx)
    _add_file(onnx)
    onnx.add_argument(
        "--mode",
        default="unrolled",
        metavar="MODE",
        help="unrolled over the time steps, or stateful: one step, membranes in and out (default: %(default)s)",
    )
    onnx.add_argument("--dynamic-batch", action="store_true", help="any number of images at once (default: 1)")
    onnx.add_argument("--opset", type=int, metavar="N", help="version of ONNX's operators (default: 18)")
    onnx.add_argument("--int8", action="store_true", help="8-bit weights and inputs, calibrated on --calibration-split")
    onnx.add_argument("--calibration-split", metavar="NAME", help="(default: train)")
    onnx.set_defaults(command=_onnx)

    nir = targets.add_parser("nir", help="NIR: for other simulators of spiking networks")
    add_model(nir)
    _add_file(nir)
    nir.add_argument("--target", default="any", metavar="NAME", help="importer: any, snntorch, norse or spikingjelly")
    nir.set_defaults(command=_nir)

    lava = targets.add_parser("lava", help="Lava: the integers of a Loihi 2 chip, for `snnzoo simulate`")
    add_model(lava)
    _add_file(lava)
    lava.add_argument("--calibration-split", default="train", metavar="NAME", help="(default: %(default)s)")
    lava.add_argument("--calibration-images", type=int, default=32, metavar="N", help="(default: %(default)s)")
    lava.set_defaults(command=_lava)


def add_simulate(commands: argparse._SubParsersAction) -> None:
    """Add ``simulate``."""
    simulate = commands.add_parser("simulate", help="run a Loihi network on Lava's simulator, compare every spike")
    add = simulate.add_argument
    add("network", metavar="NET.h5", help="file that `snnzoo export lava` wrote")
    add("--images", nargs="+", required=True, metavar="PATH", help="images, or folders of them")
    add("--count", type=int, default=2, metavar="N", help="images to show, spread over them (default: %(default)s)")
    add("--python", metavar="FILE", help="Python 3.10 with lava-dl (default: $SNNZOO_LAVA_PYTHON, .venv-lava)")
    instead = simulate.add_mutually_exclusive_group()
    instead.add_argument("--fast", action="store_true", help="our model of Lava's convolutions, equal but faster")
    instead.add_argument("--netx", action="store_true", help="the file as lava-dl's netx loads it, not as we build it")
    add("--num-steps", type=int, metavar="T", help="that the file has to be for")
    simulate.set_defaults(command=_simulate)


def add_resources(commands: argparse._SubParsersAction) -> None:
    """Add ``resources``."""
    resources = commands.add_parser("resources", help="estimate cores, operations, latency and energy on Loihi 2")
    add_model(resources)
    add_data(resources, f"{ACTIVITY_IMAGES} images from all over it tell how active the neurons are")
    resources.add_argument("--json", action="store_true", help="print JSON instead of a table")
    resources.set_defaults(command=_resources)


def _add_file(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-o", "--output", required=True, metavar="FILE")
    add_data(parser, "images to compare on and to measure the accuracy, before and after")


def _graph(args: argparse.Namespace) -> None:
    from snnzoo.export.plot import plot
    from snnzoo.export.trace import trace

    graph = trace(make_model(args), args.input_size)
    print(graph.table(), end="")
    print(f"{graph.num_parameters:,} parameters, {len(graph.folded)} batch norms folded, {graph.num_steps} time steps")
    for change in graph.changed:
        print(f"changed: {change}")
    if args.plot:
        plot(graph, args.plot)


def _onnx(args: argparse.Namespace) -> None:
    from snnzoo.export.onnx import DEFAULT_OPSET, export_onnx

    if args.calibration_split and not args.int8:
        raise InputError("--calibration-split does nothing without --int8")
    model = make_model(args)
    options = _on_data(args, model)
    if args.int8:
        if not (args.data_dir or args.dataset):
            raise InputError("--int8 needs images to calibrate on: give --data-dir")
        options["calibration"] = _spread(*_data(args, model, args.calibration_split or "train"), CALIBRATION_IMAGES)
    _export(
        partial(
            export_onnx, model, args.output, args.input_size, mode=args.mode, dynamic_batch=args.dynamic_batch,
            opset=DEFAULT_OPSET if args.opset is None else args.opset, **options,
        )
    )  # fmt: skip


def _nir(args: argparse.Namespace) -> None:
    from snnzoo.export.nir import export_nir

    model = make_model(args)
    _export(partial(export_nir, model, args.output, args.input_size, target=args.target, **_on_data(args, model)))


def _resources(args: argparse.Namespace) -> None:
    from snnzoo.export.lava.resources import estimate
    from snnzoo.export.trace import trace

    model = make_model(args)
    graph, images = trace(model, args.input_size), None
    if args.data_dir or args.dataset:
        images = torch.cat(list(_spread(*_data(args, model, args.split), ACTIVITY_IMAGES)))
    result = estimate(graph, images)
    print(json.dumps(result.to_dict(), indent=2) if args.json else result.table().rstrip())


def _lava(args: argparse.Namespace) -> None:
    from snnzoo import data
    from snnzoo.export.lava.export import PREPARED, export_lava

    if not (args.data_dir or args.dataset):
        raise InputError("scales are chosen on images: give --data-dir")
    if args.calibration_images < 1:
        raise InputError(f"--calibration-images must be at least 1, got {args.calibration_images}")
    model = make_model(args)
    options = _on_data(args, model)
    config = data.data_config({"input_size": args.input_size}, model, args.dataset)
    preprocessing = {key: config[key] for key in ("mean", "std", *PREPARED)}
    splits = [(args.calibration_split, args.calibration_images), (args.split, PARITY_IMAGES)]
    calibration, images = (_pixels(_data(args, model, split)[0], count) for split, count in splits)
    _export(
        partial(
            export_lava, model, args.output, calibration, args.input_size, images=images, preprocessing=preprocessing,
            accuracy=options["accuracy"], labels=options["labels"],
        )
    )  # fmt: skip


def _simulate(args: argparse.Namespace) -> None:
    from snnzoo.export.lava import MismatchError, open_network, simulate
    from snnzoo.export.lava.export import read_images

    network = open_network(args.network, args.num_steps)
    images, files = read_images(network, args.images, args.count)
    try:
        result = simulate(args.network, images, args.python, args.fast, netx=args.netx)
    except MismatchError as error:
        print(f"snnzoo: error: {error}", file=sys.stderr)
        sys.exit(1)
    for match in result["matches"][:-1]:
        print(f"{match.layer:<28}{match.spikes:>12,} spikes of {match.chances:>12,}: equal")
    print("logits: equal")
    labels = network.metadata.get("labels")
    for file, logits in zip(files, result["logits"], strict=True):
        best = int(logits.argmax())
        print(f"{file}: {labels[best] if labels and best < len(labels) else best}")
    first, *others = result["run"].seconds
    print(f"{network.num_steps} steps per image, {sum(others) / len(others):.2f} s a step, {first:.1f} s to start")


def _export(export: Callable[[], dict]) -> None:
    from snnzoo.export.parity import ParityError
    from snnzoo.export.report import as_text

    try:
        report = export()
    except ParityError as error:
        print(f"snnzoo: error: {error}: nothing was written", file=sys.stderr)
        sys.exit(1)
    print(as_text(report), end="")


def onnx_parity(model: nn.Module, images: Tensor) -> dict:
    """The report of an ONNX export that is compared on ``images``, normalised, and thrown away.

    Raises:
        InputError: the model, or frames, have no ONNX form, the extra ``onnx`` is missing, or onnxruntime computes
            something else: the caller goes on and tells.
    """
    from snnzoo.export.onnx import export_onnx
    from snnzoo.export.parity import ParityError

    if images.ndim != 4:
        raise InputError("exports are compared on images, not on frames")
    try:
        with tempfile.TemporaryDirectory() as folder:
            path, size = Path(folder) / "net.onnx", tuple(images.shape[1:])
            report = export_onnx(model, path, size, dynamic_batch=True, images=images)
    except ParityError as error:
        raise InputError(str(error)) from error
    del report["path"]
    return report


def _data(args: argparse.Namespace, model: nn.Module, split: str):
    """The images of a split, and batches of them as the model takes them."""
    from snnzoo import data

    if args.dataset in data.FRAME_DATASETS:
        raise InputError(f"--dataset {args.dataset}: exports are compared on images, not on frames; leave it out")
    return open_data(args, model, split)


def _on_data(args: argparse.Namespace, model: nn.Module) -> dict:
    """What the exporters take when there is data: images to compare on, the accuracy, the classes' names."""
    if not (args.data_dir or args.dataset):
        return {}
    from snnzoo.data import class_names
    from snnzoo.evaluate import evaluate, logits_of
    from snnzoo.processes import Processes

    dataset, loader = _data(args, model, args.split)

    def accuracy(forward: Callable[[Tensor], Tensor]) -> float:
        return evaluate(partial(logits_of, forward), loader, Processes("cpu"))["top1"]

    images = torch.cat(list(_spread(dataset, loader, PARITY_IMAGES)))
    return {"images": images, "accuracy": accuracy, "labels": class_names(dataset)}


def _pixels(dataset, count: int) -> Tensor:
    """The same as pixels ``[count, C, H, W]``, uint8, before they are normalised."""
    from snnzoo.data import spread

    return torch.stack([torch.as_tensor(dataset[index][0]) for index in spread(len(dataset), count)])


def _spread(dataset, loader, count: int) -> Iterator[Tensor]:
    """``count`` images from all over the data, whose classes come one after the other; normalised, ``[1, C, H, W]``."""
    from snnzoo.data import spread

    for index in spread(len(dataset), count):
        yield (torch.as_tensor(dataset[index][0])[None].float() - loader.mean) / loader.std
