"""The ``snnzoo`` command."""

import argparse
from collections.abc import Sequence

from snnzoo.export.commands import add_commands
from snnzoo.scripting import run


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="snnzoo", description="Spiking neural networks as timm models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    export = commands.add_parser("export", help="write a model for another engine")
    targets = export.add_subparsers(required=True, metavar="TARGET")
    add_commands(targets)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console command."""
    args = make_parser().parse_args(argv)
    run(lambda: args.command(args), "snnzoo")


if __name__ == "__main__":
    main()
