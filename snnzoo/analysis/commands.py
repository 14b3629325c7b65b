"""``snnzoo profile`` and ``snnzoo report``: what the command line says, as calls of this package."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from snnzoo.analysis.figure import check_figure_path, new_figure, save
from snnzoo.errors import InputError
from snnzoo.files import new_file
from snnzoo.model_options import add_data, add_model, make_model, open_data
from snnzoo.scripting import open_device

if TYPE_CHECKING:
    from snnzoo.analysis.inspection import Deploy

PROFILE_IMAGES = 256


def add_profile(commands: argparse._SubParsersAction) -> None:
    """Add ``profile``."""
    parser = commands.add_parser("profile", help="operations, energy, memory and firing rates, layer by layer")
    add_model(parser)
    add_data(parser, "images to show it; without them only what does not depend on any is told")
    add = parser.add_argument
    add("--images", type=int, default=PROFILE_IMAGES, metavar="N",
        help="show so many, spread evenly over the data (default: %(default)s)")  # fmt: skip
    add("--device", default="cpu", help="(default: %(default)s)")
    add(
        "--mac-pj", type=float, default=4.6, metavar="PJ", help="energy of a multiply-accumulate (default: %(default)s)"
    )
    add("--ac-pj", type=float, default=0.9, metavar="PJ", help="energy of an accumulate (default: %(default)s)")
    add("-o", "--output", metavar="FILE", help="write it as JSON, too")
    add("--plot", metavar="FILE", help="draw it, too: a png, svg or pdf file")
    parser.set_defaults(command=_profile)


def _profile(args: argparse.Namespace) -> None:
    from snnzoo.analysis.charts import draw_profile
    from snnzoo.analysis.profiling import Energy, profile

    shows = bool(args.data_dir or args.dataset)
    if args.plot:
        check_figure_path(args.plot)
        if not shows:
            raise InputError("--plot draws activity, which needs images: give --data-dir")
    if args.output and Path(args.output).suffix != ".json":
        raise InputError(f"--output must end in .json, got {args.output!r}")
    energy = Energy(args.mac_pj, args.ac_pj)
    model = make_model(args).to(open_device(args.device))
    batches = ()
    if shows:
        batches = (images for images, _ in open_data(args, model, args.split, args.device, args.images)[1])
    found = profile(model, batches, args.input_size, energy)
    print(found.table(), end="")
    if not shows:
        print("\nFiring rates, operations and energy depend on what the network sees: give --data-dir DIR.")
    elif not (args.checkpoint or args.pretrained):
        print("\nThese are untrained weights: their activity says nothing. Give --checkpoint FILE or --pretrained.")
    if args.output:
        found.save(args.output)
    if args.plot:
        save(draw_profile(found.to_dict()), args.plot)


def add_report(commands: argparse._SubParsersAction, deploy: "Deploy") -> None:
    """Add ``report``; ``deploy`` exports a model and compares."""
    parser = commands.add_parser("report", help="a run as one HTML page: curves, confusion, activity, energy, parity")
    add = parser.add_argument
    add("run", help="folder of the run")
    add("--data-dir", metavar="DIR", help="its data, where they are not where the run says")
    add("--images", type=int, metavar="N", help="look at so many validation images, spread evenly (default: all)")
    add("-o", "--output", metavar="FILE", help="(default: report.html in the run's folder)")
    parser.set_defaults(command=lambda args: _report(args, deploy))


def _report(args: argparse.Namespace, deploy: "Deploy") -> None:
    from snnzoo.analysis.inspection import inspect_run
    from snnzoo.analysis.report import render

    new_figure(1, 1)  # is there matplotlib?
    path = Path(args.output or Path(args.run) / "report.html")
    if path.suffix not in (".html", ".htm"):
        raise InputError(f"--output must end in .html, got {args.output!r}")
    page = render(inspect_run(args.run, args.data_dir, args.images, deploy))  # before a folder is made for its file
    with new_file(path) as temporary:
        temporary.write_text(page)
    print(path)
