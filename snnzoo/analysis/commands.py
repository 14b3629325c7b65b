"""``snnzoo profile`` and ``snnzoo plot``: what the command line says, as calls of this package."""

import argparse
from pathlib import Path

from snnzoo.analysis.figure import check_figure_path, save
from snnzoo.errors import InputError
from snnzoo.model_options import add_data, add_model, make_model, open_data

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
    model = make_model(args).to(args.device)
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
