#!/usr/bin/env python3
"""Which timm models can teach by branches: one of each architecture, with random weights, cut and proved.

python benchmarks/teachers.py                     # the table in docs/teachers.md
python benchmarks/teachers.py --models resnet18 vit_tiny_patch16_224 --input-size 3 224 224
"""

import argparse

import timm

from snnzoo import InputError
from snnzoo.distill import StagedTeacher

MODELS = (
    "resnet18 resnet50d seresnet50 res2net50d regnety_002 densenet121 vgg11_bn mobilenetv3_small_050 efficientnet_b0 "
    "efficientnet_lite0 convnext_atto dla34 cspresnet50 repvgg_a0 resnetv2_50 nfnet_l0 fastvit_t8 hrnet_w18_small "
    "vit_tiny_patch16_224 swin_tiny_patch4_window7_224"
).split()


def try_to_cut(name: str, input_size: tuple[int, int, int]) -> tuple[str, str]:
    """Widths of the stages that it can be entered after, or why there are none."""
    model = timm.create_model(name, num_classes=10)
    try:
        teacher = StagedTeacher(model, input_size)
    except InputError as error:
        return "no", str(error).split(": ", 1)[1].removesuffix(
            " It can still teach by its logits alone (branches='none')"
        )
    return "yes", ", ".join(f"{c}x{h}x{w}" for c, h, w in teacher.feature_shapes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME")
    parser.add_argument("--input-size", nargs=3, type=int, default=(3, 224, 224), metavar="N")
    args = parser.parse_args()
    print("| timm model | can be cut | feature maps, or the reason |\n|---|---|---|", flush=True)
    for name in args.models:
        can, what = try_to_cut(name, tuple(args.input_size))
        print(f"| `{name}` | {can} | {what} |", flush=True)


if __name__ == "__main__":
    main()
