"""``snnzoo export lava`` and ``snnzoo simulate`` as functions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snnzoo.data import spread
from snnzoo.errors import InputError
from snnzoo.export.interpret import interpret, watch
from snnzoo.export.lava.interpreter import need_h5py
from snnzoo.export.lava.quantization import Quantized, quantize
from snnzoo.export.lava.reference import IntegerRun, check_pixels, simulate_integer
from snnzoo.export.lava.simulator.network import CURRENT, LoihiNetwork, load, save
from snnzoo.export.parity import check_graph
from snnzoo.export.report import make_report, new_export, write_report
from snnzoo.export.trace import float_copy, trace

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm")
PREPARED = ("interpolation", "crop_pct", "crop_mode")  # how image files become pixels, in timm's words


def export_lava(
    model: nn.Module,
    path: str | Path,
    calibration: Tensor,
    input_size: tuple[int, int, int] | None = None,
    *,
    images: Tensor | None = None,
    accuracy: Callable[[Callable[[Tensor], Tensor]], float] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    labels: list[str] | None = None,
) -> dict[str, Any]:
    """Write a spiking model as a network of Loihi 2, with a report of what was lost.

    Args:
        model: a spiking zoo model; it is not changed.
        path: the HDF5 file to write; it and its reports (``.json``, ``.txt``) appear together.
        calibration: ``[B, C, H, W]``, uint8, to choose the scales on.
        input_size: ``(C, H, W)``; the calibration images' by default.
        images: the same, others, to compare the model with its graph and to count agreeing spikes on; the
            calibration images by default.
        accuracy: top-1 in percent of a function from normalised images to logits, for the report.
        preprocessing: ``mean``, ``std`` (the model's by default) and :data:`PREPARED`: how images become pixels.
        labels: names of the classes.

    Returns:
        The report.

    Raises:
        InputError: a node that Loihi cannot express, weights that no scale holds, a path that cannot be written, the
            extra ``lava`` is not installed.
        ParityError: the graph that was made of the model computes something else.
    """
    need_h5py()
    with new_export(path) as (temporary, *reports):
        model = float_copy(model)
        graph = trace(model, input_size or tuple(calibration.shape[1:]))
        graph.metadata.update({k: v for k, v in (preprocessing or {}).items() if k in ("mean", "std")})
        if labels:
            graph.metadata["labels"] = labels
        more = {k: v for k, v in (preprocessing or {}).items() if k not in ("mean", "std")}
        quantized = quantize(graph, calibration, metadata=more)
        save(quantized.network, temporary)
        network = load(temporary)
        images = calibration if images is None else images
        check_pixels(network, images)
        normalised = normalise(network, images)
        check_graph(graph, normalised, watch(model, normalised), repr(str(path)))
        run = simulate_integer(network, images)
        if not torch.equal(run.readout, simulate_integer(quantized.network, images).readout):
            raise AssertionError(f"{str(path)!r}, read back, is another network than was written")
        report = make_report(graph, "lava", path, None, **_lost(quantized, run, graph, images))
        if accuracy:

            def integers(normalised: Tensor) -> Tensor:
                pixels = to_pixels(normalised, network.metadata["mean"], network.metadata["std"])
                return simulate_integer(network, pixels, record=False).logits

            report["accuracy"] = {"PyTorch": accuracy(model), "Loihi integers": accuracy(integers)}
        write_report(report, graph, temporary, *reports)
    return report


def normalise(network: LoihiNetwork, images: Tensor) -> Tensor:
    """8-bit pixels as the float model takes them."""
    mean, std = (torch.tensor(network.metadata[key])[:, None, None] for key in ("mean", "std"))
    return (images.float() / 255 - mean) / std


def to_pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images that were normalised with ``mean`` and ``std`` as the 8-bit pixels that they were made of."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return (255 * (images.cpu().float() * std + mean)).round().clamp(0, 255).to(torch.uint8)


def _lost(quantized: Quantized, run: IntegerRun, graph, images: Tensor) -> dict[str, Any]:
    """The part of the report that is about the integers."""
    network = quantized.network
    model = interpret(graph, normalise(network, images))
    agreement = {
        name: float((spikes.reshape(run.spikes[name].shape) == run.spikes[name]).double().mean())
        for name, spikes in model.spikes.items()
    }
    rows = [
        {
            "name": layer.name, "unit": layer.unit, "threshold": layer.threshold,
            "largest_weight": layer.largest_weight, "saturated": layer.saturated,
            "worst_current": layer.worst_current, "guaranteed": layer.guaranteed,
            "alone": layer.alone, "agreement": agreement.get(layer.name),
        }
        for layer in quantized.layers
    ]  # fmt: skip
    same = int((run.logits.argmax(1) == model.logits.argmax(1)).sum())
    worst = min(agreement, key=agreement.get)
    alone = [layer.alone for layer in quantized.layers if layer.alone is not None]
    on_equal_inputs = f", on equal inputs {100 * min(alone):.2f} %" if alone else ""
    return {
        "netx": network.sequential,
        "depth": network.depths[network.readout.name],
        "quantised": rows,
        "saturated": quantized.saturated,
        "overflows": {name: list(counts) for name, counts in run.overflows.items()},
        "agreement_images": len(images),
        "same_top1": same,
        "summary": [
            f"loihi       {len(network.layers) - 1} layers, {network.depths[network.readout.name]} steps deep; "
            + ("stock netx loads it" if network.sequential else "not sequential, or soft: for `snnzoo simulate`"),
            f"spikes      least agreement with the model {100 * agreement[worst]:.2f} % ({worst}){on_equal_inputs}; "
            f"same class for {same} of {len(images)} images",
            f"saturated   {quantized.saturated} weights and biases; worst current "
            f"{max(layer.worst_current for layer in quantized.layers):,} of {CURRENT:,}; "
            f"{sum(map(sum, run.overflows.values()))} overflows",
            *(f"warning     {layer.name}: its currents were bounded by observation, not for every image"
              for layer in quantized.layers if not layer.guaranteed),
        ],
    }  # fmt: skip


def read_images(network: LoihiNetwork, paths: Iterable[str | Path], count: int) -> tuple[Tensor, list[Path]]:
    """Image files as pixels ``[B, C, H, W]``, prepared as the network's metadata says.

    Args:
        network: that they are for.
        paths: files, or folders, in all of which ``count`` images are looked for.
        count: how many, spread over what is there.

    Raises:
        InputError: no such file, no image in a folder, a file that is no image, a network of 2 or more than 3 channels.
    """
    from PIL import Image
    from timm.data import create_transform

    files: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"no image or folder at {str(path)!r}")
        files += sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGES) if path.is_dir() else [path]
    if not files or count < 1:
        raise InputError(f"no images ({', '.join(IMAGES)}) in {', '.join(map(str, paths))}" if not files else
                         f"--count must be at least 1, got {count}")  # fmt: skip
    files = [files[index] for index in spread(len(files), count)]
    shape = network.layers[0].shape
    if shape[0] not in (1, 3):
        raise InputError(
            f"the network takes images of {shape[0]} channels, image files have 1 or 3: give pixels to "
            "snnzoo.export.lava.simulate"
        )
    settings = {key: network.metadata[key] for key in PREPARED if network.metadata.get(key)}
    transform = create_transform(shape, is_training=False, use_prefetcher=True, **settings)
    pixels = []
    for file in files:
        try:
            with Image.open(file) as image:
                array = np.asarray(transform(image.convert("L" if shape[0] == 1 else "RGB")))
        except OSError as error:
            raise InputError(f"{str(file)!r} cannot be read as an image: {error}") from error
        pixels.append(array.reshape(shape[0], *array.shape[-2:]))
    return torch.from_numpy(np.stack(pixels)), files
