"""Fine-tuning a trained network with the weights it will have on Loihi (``train_distill.py --quant loihi``)."""

from torch import Tensor, nn

from snnzoo import layers
from snnzoo.errors import InputError
from snnzoo.export.lava.export import to_pixels
from snnzoo.export.lava.quantization import Quantized, quantize
from snnzoo.export.lava.rounding import snap
from snnzoo.export.lava.simulator.network import BIAS, CURRENT
from snnzoo.export.trace import trace
from snnzoo.folding import move_scales
from snnzoo.grid import put_on_grid

ROOM = 1.1  # for sums of weights and for biases to grow in, where they would otherwise leave their bits


class FrozenBatchNorm2d(layers.BatchNorm2d):
    """Batch norm that keeps its statistics in training: the weights' grid is chosen for them."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        return super().train(False)


def prepare(model: nn.Module, images: Tensor) -> Quantized:
    """Let a trained model compute with 8-bit weights, so that training goes on with what they lose.

    The batch norms' scales move into the convolutions before them, whose weights then are those of the chip; what is
    left of those norms is a bias. The statistics of all norms stay as they are. Scales are chosen as an export would
    (:func:`~snnzoo.export.lava.quantize`), coarser where 16 bits would else leave weights no room to grow; an export of
    what was trained finds them again in the weights, which lie on their grid. Thresholds are exact in these scales;
    membranes, and biases, remain real numbers. Weights of layers that read currents, and of the 7x7 stem, are left as
    they are: their currents are shifted.

    Args:
        model: a trained spiking zoo model with ``mean`` and ``std`` in its ``pretrained_cfg``; changed in place.
        images: ``[B, C, H, W]``, normalised: some tens, to choose the scales on.

    Returns:
        The network that an export would write now.

    Raises:
        InputError: a model that Loihi cannot run, or images that are no images.
    """
    if images.ndim != 4:
        raise InputError(f"Loihi's scales are chosen on images [B, C, H, W], these are {list(images.shape)}: no frames")
    pixels = to_pixels(images, model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
    size = tuple(images.shape[1:])
    graph = trace(model, size)
    quantized = quantize(graph, pixels)
    move_scales(model, size)
    unit = _units(quantized)
    sent = {p.name: unit[p.group] if p.kind in ("current", "wide") else 1.0 for p in quantized.populations}
    for population in quantized.populations:
        for link in population.links:
            layer = model.get_submodule(link.origin)
            if population.kind != "wide" and not link.exact and isinstance(layer, (nn.Conv2d, nn.Linear)):
                step = unit[population.group] / sent[link.source]
                put_on_grid(layer, step * _own_scale(layer.weight.detach(), link.weight))
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, layers.BatchNorm2d):
                setattr(parent, name, _freeze(norm))
    return quantized


def _units(quantized: Quantized) -> dict[str, float]:
    """The units of the groups, those at the end of their bits coarser: weights and biases may still grow."""
    units = {p.group: quantized.network[p.name].scale for p in quantized.populations[1:]}
    coarser = dict(units)
    reports = {report.name: report for report in quantized.layers}
    for p in quantized.populations[1:]:
        report, unit = reports.get(p.name), units[p.group]
        current = report.worst_current if report else 0
        bias = 0.0 if p.bias is None else float(p.bias.abs().max()) / unit
        short = ROOM * max(current / CURRENT, bias / BIAS[1])
        if short > 1:
            wanted = snap(unit * short, p.params.threshold if p.params else None)
            coarser[p.group] = max(coarser[p.group], wanted)
    return coarser


def _own_scale(weight: Tensor, linked: Tensor) -> Tensor:
    """``[C]``: by how much the weight of a layer's input channel is more than what became of it in a link."""
    outs, channels = linked.shape[:2]
    own, of_link = (w.double().reshape(outs, channels, -1).abs().mean((0, 2)) for w in (weight.cpu(), linked))
    scale = own / of_link
    return scale.where(scale.isfinite(), scale.nanmedian()).repeat_interleave(weight.shape[1] // channels)


def _freeze(norm: layers.BatchNorm2d) -> FrozenBatchNorm2d:
    frozen = FrozenBatchNorm2d(norm.num_features, norm.eps)
    for key, value in [*norm.named_parameters(), *norm.named_buffers()]:
        setattr(frozen, key, value)
    return frozen.eval()
