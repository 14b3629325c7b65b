"""ONNX files: unrolled over the time steps, or one step with explicit membranes for streaming."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snnzoo.errors import InputError
from snnzoo.export.graph import Graph
from snnzoo.export.interpret import Run, watch
from snnzoo.export.parity import compare, float_images, images_or_noise, same_top1
from snnzoo.export.report import make_report, new_export, write_report
from snnzoo.export.trace import float_copy, trace
from snnzoo.rate import checked_readout_decay, time_mean

MODES = ("unrolled", "stateful")
OPSETS = range(13, 22)  # per-channel quantisation begins with 13; onnxruntime 1.18 ends with 21
DEFAULT_OPSET = 18


def export_onnx(
    model: nn.Module,
    path: str | Path,
    input_size: tuple[int, int, int] | None = None,
    *,
    mode: str = "unrolled",
    dynamic_batch: bool = False,
    opset: int = DEFAULT_OPSET,
    images: Tensor | None = None,
    calibration: Iterable[Tensor] | None = None,
    accuracy: Callable[[Callable[[Tensor], Tensor]], float] | None = None,
    labels: list[str] | None = None,
) -> dict[str, Any]:
    """Write a model as one ONNX file, run it in onnxruntime, and compare spikes and logits.

    ``unrolled``: ``images`` ``[B, C, H, W]`` in, ``logits`` ``[B, classes]`` out, averaged over the model's
    ``num_steps``. ``stateful``: one step; besides, a membrane ``<layer>.membrane`` in and ``<layer>.membrane_out`` out
    for each layer of neurons, zero at the start; the answer is the mean of the steps' logits (weighted as
    :func:`snnzoo.rate.time_mean` does, if the metadata have a ``readout_decay``).

    Args:
        model: a zoo model, spiking or not, or another classifier that :func:`~snnzoo.export.trace.trace` knows.
        path: the file to write; it and its reports (``.json``, ``.txt``) appear only when the comparison has passed.
        input_size: ``(C, H, W)`` of the images; the model's ``pretrained_cfg`` says by default.
        mode: one of the two.
        dynamic_batch: leave B open; otherwise it is 1.
        opset: version of the operators.
        images: ``[B, C, H, W]`` to compare on; three of noise by default.
        calibration: batches of the same to quantise weights and what enters convolutions to 8 bits by; the float
            network is compared before.
        accuracy: top-1 in percent of a function from images to logits, for the report.
        labels: names of the classes, for the file's metadata.

    Returns:
        The report.

    Raises:
        InputError: an option out of range, images that do not fit, a model that has no graph, a path that cannot be
            written, or the extra ``onnx`` is not installed.
        ParityError: onnxruntime computes something else than the model.
    """
    try:
        import onnx
        import onnxruntime

        from snnzoo.export.onnx_build import build
    except ImportError as error:
        raise InputError(f"ONNX export needs {error.name}: pip install 'snnzoo[onnx]'") from error
    if mode not in MODES:
        raise InputError(f"mode must be one of {MODES}, got {mode!r}")
    if opset not in OPSETS:
        raise InputError(f"opset must lie between {OPSETS[0]} and {OPSETS[-1]}, got {opset}")
    if calibration is not None and mode == "stateful":
        raise InputError("int8 needs --mode unrolled: calibration runs whole images, not single steps")

    with new_export(path) as (temporary, *reports):
        model = float_copy(model)
        graph = trace(model, input_size)
        if labels:
            graph.metadata["labels"] = labels
        images, kind = images_or_noise(graph, images)
        if calibration is not None:
            calibration = [float_images(graph, batch, "calibration images") for batch in calibration]
            if not calibration:
                raise InputError("calibration must hold at least one batch of images, got none")
        proto, spikes = build(graph, mode, dynamic_batch, opset)
        onnx.helper.set_model_props(proto, {key: json.dumps(value) for key, value in _metadata(graph, mode).items()})
        onnx.checker.check_model(proto, full_check=True)
        onnx.save(proto, temporary)
        engine = OnnxEngine(temporary)
        run = observe(proto, spikes, engine, images)
        parity = compare(graph, images, watch(model, images), run).check(f"{str(path)!r} in onnxruntime")
        if calibration is not None:
            kind += ", before its weights had 8 bits"
        report = make_report(
            graph, "onnx", path, parity, mode=mode, dynamic_batch=dynamic_batch, opset=opset,
            int8=calibration is not None, parity_images=kind,
            versions={"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__, "torch": torch.__version__},
        )  # fmt: skip
        if accuracy:
            report["accuracy"] = {"PyTorch": accuracy(model), "onnxruntime": accuracy(engine)}
        if calibration is not None:
            _quantise(temporary, calibration, engine.image_name, engine.batch)
            quantised = OnnxEngine(temporary)
            report |= _lost(run, observe(onnx.load(temporary), spikes, quantised, images))
            report["changed"].append("weights, and what enters convolutions and linear layers, have 8 bits")
            if accuracy:
                report["accuracy"]["onnxruntime, int8"] = accuracy(quantised)
        report["nodes"] = len(onnx.load(temporary).graph.node)
        write_report(report, graph, temporary, *reports)
    return report


class OnnxEngine:
    """An exported file in onnxruntime on the CPU, as a function from images to logits, ``[B, ...]``.

    Args:
        path: the file, or the model's bytes; of either mode.
        threads: of onnxruntime; its own choice if 0.
    """

    def __init__(self, path: str | Path | bytes, threads: int = 0):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        source = path if isinstance(path, bytes) else str(path)
        self.session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        images, *states = self.session.get_inputs()
        self.image_name, self.answer_name = images.name, self.session.get_outputs()[0].name
        self.state_shapes = {state.name: state.shape[1:] for state in states}
        self.batch = images.shape[0] if isinstance(images.shape[0], int) else None
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.num_steps = json.loads(metadata["num_steps"]) if self.state_shapes else 1
        self.readout_decay = checked_readout_decay(json.loads(metadata.get("readout_decay", "1")))

    def __call__(self, images: Tensor) -> Tensor:
        return self.run(images, [])[0]

    def run(self, images: Tensor, extra: list[str]) -> tuple[Tensor, list[list[Tensor]]]:
        """Logits averaged over the steps, and for each call of the session the further outputs asked for."""
        logits, others = [], []
        for part in images.split(self.batch or len(images)):
            x = part.numpy()
            states = {name: np.zeros((len(x), *shape), np.float32) for name, shape in self.state_shapes.items()}
            outs = [f"{name}_out" for name in states]
            steps, seen = [], []
            for _ in range(self.num_steps):
                y, *rest = self.session.run([self.answer_name, *outs, *extra], {self.image_name: x, **states})
                states = dict(zip(states, rest, strict=False))
                steps.append(torch.from_numpy(y))
                seen += rest[len(outs) :]
            logits.append(time_mean(torch.stack(steps), self.readout_decay))
            others.append([torch.from_numpy(array) for array in seen])
        return torch.cat(logits), others


def observe(proto: Any, spikes: dict[str, list[str]], engine: OnnxEngine, images: Tensor) -> Run:
    """Logits of a file, and the spikes of the same network with these as further outputs.

    Args:
        proto, spikes: what :func:`~snnzoo.export.onnx_build.build` returned.
        engine: the file.
        images: ``[B, C, H, W]``.
    """
    import onnx

    seen = onnx.ModelProto()
    seen.CopyFrom(proto)
    names = [name for steps in spikes.values() for name in steps]
    seen.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    _, parts = OnnxEngine(seen.SerializeToString()).run(images, names)
    by_layer = {}
    for layer, steps in spikes.items():
        first = names.index(steps[0])
        # In the stateful form the outputs of all layers follow each other, once for each step.
        at = range(first, first + len(steps)) if len(steps) > 1 else range(first, len(parts[0]), len(names))
        by_layer[layer] = torch.stack([torch.cat([part[i] for part in parts]) for i in at])
    return Run(engine(images), by_layer, {})


def _lost(before: Run, after: Run) -> dict[str, Any]:
    """The part of the report that is about the 8 bits."""
    differing = sum(int((after.spikes[name] != spikes).sum()) for name, spikes in before.spikes.items())
    total = sum(spikes.numel() for spikes in before.spikes.values())
    same = same_top1(after.logits, before.logits)
    spikes = f"{differing:,} of {total:,} spikes are not those of before; " if total else ""
    return {
        "int8_differing": differing,
        "int8_same_top1": same,
        "summary": [f"int8        {spikes}same class as before for {same} of {len(before.logits)} images"],
    }


def _metadata(graph: Graph, mode: str) -> dict[str, Any]:
    metadata = {"model": graph.name, "mode": mode, "num_steps": graph.num_steps, "input_size": graph.input.shape}
    if graph.output.decay != 1:
        metadata["readout_decay"] = graph.output.decay
    metadata |= graph.metadata
    for key in ("decay", "threshold", "reset"):
        values = {getattr(node.params, key) for node in graph.lifs}
        if len(values) == 1:  # neurons that differ have none in common
            metadata[key] = values.pop()
    return metadata


def _quantise(path: Path, batches: Iterable[Tensor], image_name: str, batch: int | None) -> None:
    """Replace the file by its static quantisation; membranes and thresholds stay in float32."""
    import logging

    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.parts = iter([part for images in batches for part in images.split(batch or len(images))])

        def get_next(self):
            part = next(self.parts, None)
            return None if part is None else {image_name: part.numpy()}

    level, root = logging.root.level, logging.root
    root.setLevel(logging.ERROR)  # it recommends its own preparation of the file, which ours does not need
    try:
        quantize_static(
            str(path), str(path), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            op_types_to_quantize=["Conv", "Gemm"], weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
        )  # fmt: skip
    finally:
        root.setLevel(level)
