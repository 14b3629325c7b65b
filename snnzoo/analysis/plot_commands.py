"""``snnzoo plot``: what the command line says, as calls of this package's drawing functions."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from snnzoo.analysis.charts import draw_accuracy, draw_rates
from snnzoo.analysis.curves import draw_curves, draw_hybrids
from snnzoo.analysis.figure import check_figure_path, save
from snnzoo.analysis.rasters import draw_raster, record
from snnzoo.errors import InputError
from snnzoo.model_options import add_model, make_model
from snnzoo.records import TABLE, read_results, read_table


def add_plot(commands: argparse._SubParsersAction) -> None:
    """Add ``plot`` and its kinds."""
    plot = commands.add_parser("plot", help="draw a run, a network's activity, or accuracy against its cost")
    kinds = plot.add_subparsers(required=True, metavar="KIND")

    def kind(name: str, help: str, draw) -> argparse.ArgumentParser:
        parser = kinds.add_parser(name, help=help)
        parser.add_argument("-o", "--output", required=True, metavar="FILE", help="a png, svg or pdf file")
        parser.set_defaults(command=lambda args: _save(args, draw))
        return parser

    for name, help, draw in (
        ("curves", "loss, accuracy and firing rates over epochs", draw_curves),
        ("hybrids", "accuracy of the hybrids, and how alike their features are to the teacher's", draw_hybrids),
    ):
        parser = kind(name, help, lambda args, draw=draw: draw(_runs(args.run)))
        parser.add_argument("run", nargs="+", help="folder of a run, or its summary.csv")

    raster = kind("raster", "membranes and spikes of a layer for one image", _raster)
    add_model(raster)
    raster.add_argument(
        "--image", required=True, metavar="FILE", help="a picture; or frames, .npy or .npz [T, C, H, W]"
    )
    raster.add_argument("--layer", required=True, metavar="NAME", help="a LIF layer, as `snnzoo profile` names it")

    rates = kind("rates", "firing rates by layer and step", _rates)
    rates.add_argument("profile", help="JSON file of `snnzoo profile -o`")

    accuracy = kind("accuracy", "top-1 against the number of steps and against energy", _accuracy)
    accuracy.add_argument("results", nargs="+", help="file of `validate.py --results-file`")
    accuracy.add_argument(
        "--profile", nargs="+", default=[], metavar="FILE", help="JSON files of `snnzoo profile -o`, one for each T"
    )


def _save(args: argparse.Namespace, draw) -> None:
    check_figure_path(args.output)
    print(save(draw(args), args.output))


def _runs(paths: list[str]) -> dict[str, list[dict[str, float]]]:
    """The tables by the folders' names, or by their paths where names are the same."""
    files = [path / TABLE if path.is_dir() else path for path in map(Path, paths)]
    for file in files:
        if not file.is_file():
            raise InputError(f"no run at {str(file)!r}: give the folder of a run, which has a {TABLE}")
    names = [file.parent.name for file in files]
    if len(set(names)) < len(names):
        names = [str(file.parent) for file in files]
    return {name: read_table(file) for name, file in zip(names, files, strict=True)}


_PROFILE = {"model": str, "num_steps": int | None, "images": int, "energy": dict, "totals": dict, "layers": list}
_LAYER = {"name": str, "kind": str}


def _read_profile(path: str) -> dict[str, Any]:
    """What is in the file, if figures can be drawn of it."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        _check_types(found, _PROFILE, "it")
        for number, layer in enumerate(found["layers"]):
            _check_types(layer, _LAYER, f"layer {number}")
            rates = layer.get("rates") or []
            if not isinstance(rates, list) or not all(isinstance(rate, float | int) for rate in rates):
                raise ValueError(f"the rates of {layer['name']} are no list of numbers")
    except (OSError, ValueError) as error:
        raise InputError(f"profile {path!r} is not what `snnzoo profile -o` writes: {error}") from error
    return found


def _check_types(found: Any, wanted: dict[str, Any], where: str) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{where} is not a table of names and values")
    for name, kind in wanted.items():
        if name not in found:
            raise ValueError(f"{where} has no {name}")
        if not isinstance(found[name], kind):
            raise ValueError(f"{name} of {where} is {found[name]!r}")


def _rates(args: argparse.Namespace):
    return draw_rates(_read_profile(args.profile))


def _accuracy(args: argparse.Namespace):
    results = {Path(path).stem: read_results(path) for path in args.results}
    return draw_accuracy(results, [_read_profile(path) for path in args.profile])


def _raster(args: argparse.Namespace):
    from PIL import Image, UnidentifiedImageError
    from timm.data import create_transform

    from snnzoo import data
    from snnzoo.data.events import read_frames

    model, path = make_model(args), Path(args.image)
    if not path.is_file():
        raise InputError(f"--image: there is no file {args.image!r}")
    if path.suffix in (".npy", ".npz"):
        return draw_raster(record(model, read_frames(path), args.layer), title=path.name)
    if model.in_chans not in (1, 3):
        raise InputError(f"--image: a picture has 3 channels or 1, the network takes {model.in_chans}: give a .npz")
    config = data.data_config({"input_size": args.input_size}, model, "")
    try:
        with Image.open(path) as file:
            picture = file.convert("L" if model.in_chans == 1 else "RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"--image {args.image!r} cannot be read: {error}") from error
    image = create_transform(is_training=False, **config)(picture)
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    seen = (image * std + mean).clamp(0, 1).movedim(0, -1).squeeze(-1)
    return draw_raster(record(model, image, args.layer), seen, path.name)
