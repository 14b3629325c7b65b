"""ONNX: the network unrolled over its time steps, images in, averaged logits out."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from snnzoo.errors import InputError
from snnzoo.files import atomic_path
from snnzoo.layers import LIF

TOLERANCE = 1e-4  # of the logits, relative to the largest


def export_onnx(model: nn.Module, path: str | Path, input_size: tuple[int, int, int] | None = None) -> dict[str, Any]:
    """Write ``model`` as one ONNX file with a dynamic batch, run it in onnxruntime, and compare.

    Args:
        model: a zoo model or any other image classifier; it is not changed.
        path: the file to write; it appears only when the comparison has passed.
        input_size: ``(C, H, W)`` of the images; the model's ``pretrained_cfg`` says by default.

    Returns:
        A report: ``path``, ``bytes``, ``nodes``, ``num_steps``, ``input_size``, ``max_difference`` of the logits.

    Raises:
        InputError: the extra ``onnx`` is not installed, or torch is too old.
        RuntimeError: onnxruntime's logits differ from PyTorch's.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  used by torch.onnx
    except ImportError as error:
        raise InputError(f"ONNX export needs {error.name}: pip install 'snnzoo[onnx]'") from error
    if "dynamo" not in (torch.onnx.export.__kwdefaults__ or {}):
        raise InputError(f"ONNX export needs torch 2.6 or later, this is {torch.__version__}")

    model = copy.deepcopy(model).cpu().float().eval()
    cfg = getattr(model, "pretrained_cfg", {})
    input_size = tuple(input_size or (model.in_chans, *cfg["input_size"][1:]))
    probe = torch.randn(3, *input_size, generator=torch.Generator().manual_seed(0))
    metadata = {"input_size": input_size, "mean": cfg.get("mean"), "std": cfg.get("std")}
    neuron = next((module.params for module in model.modules() if isinstance(module, LIF)), None)
    if neuron is not None:
        metadata |= {
            "num_steps": model.num_steps,
            "decay": neuron.decay,
            "threshold": neuron.threshold,
            "reset": neuron.reset,
        }

    with atomic_path(path) as temporary:
        torch.onnx.export(
            model, (probe,), str(temporary), input_names=["images"], output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},), dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip
        graph = onnx.load(temporary)
        onnx.helper.set_model_props(graph, {key: json.dumps(value) for key, value in metadata.items()})
        onnx.save(graph, temporary)
        onnx.checker.check_model(str(temporary), full_check=True)

        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        difference = 0.0
        for images in (probe, probe[:1]):
            with torch.no_grad():
                expected = model(images)
            got = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
            difference = max(difference, float((got - expected).abs().max() / expected.abs().max()))
        if not difference <= TOLERANCE:
            raise RuntimeError(
                f"onnxruntime's logits differ from PyTorch's by {difference:.2e} of the largest, "
                f"{TOLERANCE} are allowed: {str(path)!r} was not written"
            )
        size = temporary.stat().st_size
    return {
        "path": str(path),
        "bytes": size,
        "nodes": len(graph.graph.node),
        "num_steps": metadata.get("num_steps"),
        "input_size": list(input_size),
        "max_difference": difference,
    }
