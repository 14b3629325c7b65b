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
    "resnet18 resnet50d resnext50_32x4d wide_resnet50_2 seresnet50 ecaresnet26t res2net50d resnest14d regnetx_002 "
    "regnety_002 densenet121 vgg11_bn mobilenetv2_100 mobilenetv3_small_050 mobilenetv4_conv_small efficientnet_b0 "
    "efficientnet_lite0 mnasnet_100 ghostnet_100 convnext_atto convnextv2_atto dla34 hrnet_w18_small "
    "cspresnet50 darknet53 repvgg_a0 resnetv2_50 nfnet_l0 inception_v3 xception41 hardcorenas_a fastvit_t8 "
    "edgenext_xx_small swin_tiny_patch4_window7_224 vit_tiny_patch16_224 mixer_s32_224"
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
