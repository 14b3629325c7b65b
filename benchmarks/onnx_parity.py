#!/usr/bin/env python3
"""A trained model in PyTorch and as ONNX in onnxruntime, image by image over a whole test set.

    python benchmarks/onnx_parity.py --data-dir DIR --model snn_resnet20_t4

Prints how many images get the same class, how many the same logits to 1e-4, for the others how many neurons fire
otherwise on equal inputs and whether they were at the threshold, and the accuracy of both.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from timm.data import create_loader
from timm.utils import ParseKwargs

from snnzoo.data import open_dataset
from snnzoo.export.interpret import watch
from snnzoo.export.onnx import DEFAULT_OPSET, OnnxEngine, export_onnx, observe
from snnzoo.export.onnx_build import build
from snnzoo.export.parity import compare
from snnzoo.export.trace import trace
from snnzoo.weights import create_model


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--checkpoint", help="(default: the pretrained weights)")
    parser.add_argument("--model-kwargs", nargs="*", default={}, action=ParseKwargs)
    parser.add_argument("--batch-size", type=int, default=100)
    args = parser.parse_args()
    model = create_model(args.model, args.checkpoint, pretrained=not args.checkpoint, **args.model_kwargs).eval()
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(model, Path(folder) / "net.onnx", dynamic_batch=True)
        engine = OnnxEngine(Path(folder) / "net.onnx")
    graph = trace(model)
    proto, spikes = build(graph, "unrolled", dynamic_batch=True, opset=DEFAULT_OPSET)
    cfg = model.pretrained_cfg
    dataset = open_dataset("", args.data_dir, "validation", model.num_classes)
    loader = create_loader(
        dataset, cfg["input_size"], args.batch_size, mean=cfg["mean"], std=cfg["std"], crop_pct=1.0, num_workers=0,
        device=torch.device("cpu"), persistent_workers=False,
    )  # fmt: skip
    logits, others, labels, differing, ties = [], [], [], 0, 0
    for images, target in loader:
        logits.append(model(images))
        others.append(engine(images))
        odd = images[((logits[-1] - others[-1]).abs() > 1e-4).any(1)]
        if len(odd):
            parity = compare(graph, odd, watch(model, odd), observe(proto, spikes, engine, odd))
            differing, ties = differing + parity.differing, ties + parity.ties
        labels.append(target)
    a, b, y = torch.cat(logits), torch.cat(others), torch.cat(labels)
    apart = (a - b).abs().amax(1)
    result = {
        "images": len(y),
        "top1_pytorch": 100 * float((a.argmax(1) == y).float().mean()),
        "top1_onnxruntime": 100 * float((b.argmax(1) == y).float().mean()),
        "same_class": int((a.argmax(1) == b.argmax(1)).sum()),
        "logits_within_1e-4": int((apart <= 1e-4).sum()),
        "largest_difference": float(apart.max()),
        "neurons_that_fire_otherwise_in_the_rest": differing,
        "of_these_at_the_threshold": ties,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
