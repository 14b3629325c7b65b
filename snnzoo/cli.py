"""The ``snnzoo`` command."""

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from timm.utils import ParseKwargs

from snnzoo.analysis.commands import add_profile, add_report
from snnzoo.analysis.plot_commands import add_plot
from snnzoo.errors import InputError
from snnzoo.export.commands import add_commands, add_resources, add_simulate, onnx_parity
from snnzoo.scripting import model_kwargs, run


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="snnzoo", description="Spiking neural networks as timm models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    export = commands.add_parser("export", help="write a model for another engine")
    targets = export.add_subparsers(required=True, metavar="TARGET")
    add_commands(targets)
    add_simulate(commands)
    add_resources(commands)
    add_profile(commands)
    add_plot(commands)
    add_report(commands, onnx_parity)

    push = commands.add_parser("push", help="put a checkpoint into a Hub repository, as safetensors")
    push.add_argument("checkpoint", help="file of weights, or a folder made by pack")
    push.add_argument("--repo", required=True, metavar="OWNER/NAME", help="made if it does not exist")
    push.add_argument("--private", action="store_true", help="make it private; one that exists must be")
    push.add_argument("--revision", metavar="BRANCH", help="made if it does not exist (default: main)")
    push.add_argument("--message", default="Add model", help="of the commit")
    push.add_argument("--dry-run", action="store_true", help="do everything but talk to the Hub")
    _add_details(push)
    push.set_defaults(command=_push)

    pack = commands.add_parser("pack", help="write or complete a folder of a Hub repository's content, card included")
    pack.add_argument("folder", help="named MODEL.TAG; what is there stays if nothing here replaces it")
    pack.add_argument("--checkpoint", metavar="FILE", help="its weights")
    _add_details(pack)
    pack.set_defaults(command=_pack)

    pull = commands.add_parser("pull", help="fetch a checkpoint from the Hub; prints its folder")
    pull.add_argument("id", help="OWNER/NAME, or MODEL.TAG of our organisation")
    pull.add_argument("--revision", help="branch, tag or commit")
    pull.add_argument("-o", "--output", metavar="DIR", help="copy it there (default: the Hub's cache)")
    pull.set_defaults(command=_pull)

    models = commands.add_parser("list", help="the models, with their tags")
    models.add_argument("pattern", nargs="?", default="*", help="of names, e.g. 'snn_resnet20*'")
    models.add_argument("--pretrained", action="store_true", help="only those with weights, and where they are")
    models.set_defaults(command=_list)
    return parser


def _add_details(parser: argparse.ArgumentParser) -> None:
    """What push and pack have to know about a checkpoint that is a file."""
    add = parser.add_argument
    add("--license", metavar="ID", help="of the weights, e.g. apache-2.0; a file needs it")
    add("--model", metavar="NAME", help="(default: what the checkpoint says)")
    add("--use-ema", action="store_true", help="the averaged weights of the checkpoint")
    add("--num-classes", type=int, metavar="N")
    add("--in-chans", type=int, metavar="N")
    add("--num-steps", type=int, metavar="T")
    add("--model-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="K=V")
    add("--recipe", metavar="FILE", help="options of train_distill.py (default: the checkpoint's)")
    add("--results", nargs="+", default=[], metavar="FILE", help="of validate.py: of this, then of other seeds")
    add("--teacher-results", metavar="FILE", help="of validate.py, for the teacher")


def _details(args: argparse.Namespace) -> dict[str, Any]:
    names = ("license", "recipe", "results", "teacher_results")
    return {name: getattr(args, name) for name in names}


def _refuse_details(args: argparse.Namespace, names: str, because: str) -> None:
    for name in names.split():
        if getattr(args, name):
            raise InputError(f"--{name.replace('_', '-')} does nothing {because}")


_MODEL_DETAILS = "model use_ema num_classes in_chans num_steps model_kwargs"


def _load(args: argparse.Namespace) -> dict[str, Any]:
    from snnzoo import hub

    model, run_ = hub.load(
        args.checkpoint,
        args.model,
        args.use_ema,
        num_classes=args.num_classes,
        in_chans=args.in_chans,
        num_steps=args.num_steps,
        **model_kwargs(args),
    )
    return {"model": model, "run": run_}


def _push(args: argparse.Namespace) -> None:
    from snnzoo import hub

    options = {name: getattr(args, name) for name in ("private", "revision", "dry_run", "message")}
    if Path(args.checkpoint).is_dir():
        names = f"{_MODEL_DETAILS} license recipe results teacher_results"
        _refuse_details(args, names, "to a folder, which is pushed as it is: `snnzoo pack` changes it")
        pushed = hub.push(args.checkpoint, args.repo, **options)
    else:
        loaded = _load(args)
        pushed = hub.push(loaded.pop("model"), args.repo, **options, **loaded, **_details(args))
    for name, size in pushed.files.items():
        print(f"{size:>12,}  {name}")
    print(pushed.url or f"dry run: nothing was sent to {args.repo}")


def _pack(args: argparse.Namespace) -> None:
    from snnzoo import hub

    if not args.checkpoint:
        _refuse_details(args, _MODEL_DETAILS, "without --checkpoint")
    loaded = _load(args) if args.checkpoint else {}
    folder = hub.pack(args.folder, **loaded, **_details(args))
    if loaded:
        hub.validate(folder, loaded["model"])
    print(folder)


def _pull(args: argparse.Namespace) -> None:
    from snnzoo import hub

    print(hub.pull(args.id, args.revision, args.output))


def _list(args: argparse.Namespace) -> None:
    from snnzoo import hub

    found = hub.list_models(args.pattern, args.pretrained)
    if not found:
        print(f"snnzoo: no model {'with weights ' * args.pretrained}is named {args.pattern!r}", file=sys.stderr)
    for model in found:
        print(f"{model.name:<34}{model.weights}".rstrip())


@contextlib.contextmanager
def _tidy_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as an error does, so that half-written files go; status 143, as shells have it."""

    def end(signum, frame):
        raise SystemExit(128 + signum)

    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # whoever calls us has other plans
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console command."""
    args = make_parser().parse_args(argv)
    with _tidy_on_sigterm():
        run(lambda: args.command(args), "snnzoo")


if __name__ == "__main__":
    main()
