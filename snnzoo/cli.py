"""The ``snnzoo`` command."""

import argparse
import json
from collections.abc import Sequence

from timm.utils import ParseKwargs

from snnzoo.scripting import model_kwargs, run


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="snnzoo", description="Spiking neural networks as timm models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    export = commands.add_parser("export", help="write a model for another engine")
    targets = export.add_subparsers(required=True, metavar="TARGET")
    onnx = targets.add_parser("onnx", help="ONNX: images in, averaged logits out; checked in onnxruntime")
    onnx.add_argument("model", help="name of a zoo model, or of any timm model")
    onnx.add_argument("--checkpoint", metavar="FILE", help="its weights")
    onnx.add_argument("--pretrained", action="store_true", help="its pretrained weights")
    onnx.add_argument("--num-classes", type=int, metavar="N")
    onnx.add_argument("--in-chans", type=int, metavar="N")
    onnx.add_argument("--num-steps", type=int, metavar="T", help="time steps (default: the model's)")
    onnx.add_argument("--model-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="K=V")
    onnx.add_argument("--input-size", nargs=3, type=int, metavar="N", help="channels, height, width")
    onnx.add_argument("-o", "--output", required=True, metavar="FILE")
    onnx.set_defaults(command=_export_onnx)
    return parser


def _export_onnx(args: argparse.Namespace) -> None:
    from snnzoo.export.onnx import export_onnx
    from snnzoo.weights import create_model

    model = create_model(
        args.model,
        args.checkpoint,
        pretrained=args.pretrained,
        in_chans=args.in_chans or (args.input_size and args.input_size[0]),
        num_classes=args.num_classes,
        num_steps=args.num_steps,
        **model_kwargs(args),
    )
    print(json.dumps(export_onnx(model, args.output, args.input_size), indent=2))


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console command."""
    args = make_parser().parse_args(argv)
    run(lambda: args.command(args), "snnzoo")


if __name__ == "__main__":
    main()
