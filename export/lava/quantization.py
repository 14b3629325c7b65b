"""From a trained network to the integers of a Loihi 2 chip.

A population's current is counted in units of its own, and with them everything that enters it: 8-bit weights, biases
and the threshold. The model fires at ``u >= Vth``, the chip at ``v > 64 threshold``, whole numbers: so a unit is
``Vth / (threshold + 1/64)``, and both are the same rule. Which unit is best is tried out on calibration images.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snnzoo.errors import InputError
from snnzoo.export.graph import Graph
from snnzoo.export.lava.delays import in_steps
from snnzoo.export.lava.lower import Link, Population, evaluate, lower, per_step, pixel_offset
from snnzoo.export.lava.rounding import bias_mantissas, compensated, extremes, second_moments, snap
from snnzoo.export.lava.simulator.network import (
    BIAS,
    CURRENT,
    DECAY,
    FRACTION,
    STATE,
    THRESHOLD,
    WEIGHT,
    Layer,
    LoihiNetwork,
    NetworkError,
    Synapses,
)
from snnzoo.export.trace import trace

_logger = logging.getLogger(__name__)
FINER, COARSER = 0.5, 1.15  # units that are tried: from half of what holds the largest weight, in such steps
TRIED = 10
ON_GRID = 1e-3  # units by which a weight may miss a whole number and count as one
SHORT = 255  # what the largest observed value of a current is cut to where only some of its bits matter
PARALLEL = 8  # connections between the same two neurons, for a weight beyond 8 bits
HEADROOM = 4  # times the largest observed value, where the largest possible one is out of all proportion


@dataclass(frozen=True)
class LayerReport:
    """How a layer came through.

    Attributes:
        unit: the model's current that one unit of the layer's is worth.
        threshold: in units; None of what is no neuron.
        largest_weight: of 8 bits.
        saturated: weights and biases that did not fit.
        worst_current: the largest current that any input could cause, in units; 32767 are allowed.
        guaranteed: whether that is so for any input whatever, or only for what was observed, with headroom.
        alone: share of the spikes that are the model's when the layer receives the model's own spikes, on the
            calibration images; None where it shares its unit with other layers.
    """

    name: str
    unit: float
    threshold: int | None
    largest_weight: int
    saturated: int
    worst_current: int
    guaranteed: bool
    alone: float | None = None


@dataclass(frozen=True, eq=False)
class Quantized:
    """A network, and what was lost on the way into it.

    Attributes:
        network: the integers.
        layers: a report for each layer of neurons and the readout.
        populations: the same network in real numbers, for pixels as the network gets them.
        saturated: weights and biases that did not fit, those between the layers that pass on currents too.
    """

    network: LoihiNetwork
    layers: tuple[LayerReport, ...]
    populations: tuple[Population, ...]
    saturated: int


@torch.no_grad()
def quantize(
    model: nn.Module | Graph,
    images: Tensor,
    input_size: tuple[int, int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Quantized:
    """Turn a spiking model into Loihi's integers.

    Args:
        model: a spiking zoo model, or its graph.
        images: ``[B, C, H, W]``, uint8: some tens of the training set, to choose the units on.
        input_size: ``(C, H, W)``; the images' by default.
        mean, std: that the model's images are normalised with, for pixels within 0 and 1; by default the graph's.
        metadata: put into the network.

    Raises:
        InputError: a node that Loihi cannot express, images that are no 8-bit pixels, weights that are not finite.
    """
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
        got = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"calibration images must be 8-bit pixels, a uint8 tensor [B, C, H, W], got {got}")
    graph = model if isinstance(model, Graph) else trace(model, input_size or tuple(images.shape[1:]))
    if tuple(images.shape[1:]) != graph.input.shape:
        raise InputError(
            f"the network takes images {graph.input.shape}, calibration images are {tuple(images.shape[1:])}"
        )
    mean, std = mean or graph.metadata.get("mean"), std or graph.metadata.get("std")
    if not mean or not std:
        raise InputError(f"{graph.name}: its mean and std are not known: give them as mean=…, std=…")
    if not len(mean) == len(std) == graph.input.shape[0]:
        raise InputError(f"images of {graph.input.shape[0]} channels need as many means and stds, got {mean} and {std}")
    for node in graph:
        if not all(tensor.isfinite().all() for tensor in node.tensors):
            raise InputError(f"{node.name} ({node.kind}) has weights that are not finite: no scale holds them")
    populations, offset = lower(graph, mean, std), pixel_offset(mean)
    payload = images.float() - offset[:, None, None]
    search = _Search(populations, evaluate(populations, payload, graph.num_steps), graph.num_steps, offset)
    layers, reports = search.run()
    try:
        network = LoihiNetwork(
            tuple(_with_relays(layers)), graph.num_steps, offset.numpy().astype(np.int16), graph.name,
            {"mean": list(mean), "std": list(std), "labels": graph.metadata.get("labels"), **(metadata or {})},
        )  # fmt: skip
    except NetworkError as error:
        raise InputError(f"{graph.name} does not fit Loihi: {error}") from error
    return Quantized(network, tuple(reports), populations, search.saturated)


@dataclass
class _Search:
    """Units and integers, population after population.

    Attributes:
        populations: in real numbers.
        values: what each sends on the calibration images, in the model.
    """

    populations: tuple[Population, ...]
    values: dict[str, Tensor]
    num_steps: int
    offset: Tensor
    units: dict[str, float] = field(default_factory=dict)  # of a group
    # The least and the most that a population can send, by channel; of wide ones in the model's units.
    reach: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    observed: set[str] = field(default_factory=set)  # populations whose reach is what was observed, with headroom
    alone: dict[str, float] = field(default_factory=dict)  # see LayerReport
    joint: dict[int, Tensor] = field(default_factory=dict)  # weights rounded together, by their link's id
    lost: dict[str, float] = field(default_factory=dict)  # what rounding down takes of a current, on average
    saturated: int = 0

    def __post_init__(self):
        self.by_name = {population.name: population for population in self.populations}
        self.groups: dict[str, list[Population]] = {}
        for population in self.populations:
            self.groups.setdefault(population.group, []).append(population)
            self.reach[population.name] = self._always(population)

    def _always(self, p: Population) -> tuple[np.ndarray, np.ndarray]:
        """The reach of pixels and spikes; of currents none yet."""
        low = np.zeros(p.shape[0])
        if p.kind == "input":
            return -self.offset.numpy(), 255 - self.offset.numpy()
        if p.kind == "count":
            return low, low + sum(self.reach[link.source][1] for link in p.links)
        return low, low + (p.kind in ("neurons", "logic"))

    def run(self) -> tuple[list[Layer], list[LayerReport]]:
        layers, reports = [], []
        for p in self.populations:
            if p.kind == "wide":
                self._wide(p)
            elif p.kind in ("neurons", "current", "readout") and p.group not in self.units:
                self._choose(self.groups[p.group])
            layer, report = self._layer(p)
            layers.append(layer)
            if p.kind in ("neurons", "readout"):
                reports.append(report)
        return layers, reports

    def _unit(self, name: str) -> float:
        """What one unit of a population's output is worth in the model: a spike is 1."""
        population = self.by_name[name]
        return self.units[population.group] if population.kind in ("current", "wide") else 1.0

    # --- the choice of a unit ----------------------------------------------------------------------------------------

    def _choose(self, members: list[Population]) -> None:
        group = members[0].group
        scaled = [(p, link) for p in members for link in p.links if not link.exact]
        neurons = [p for p in members if p.kind == "neurons"]
        if not scaled:  # a pooled current: some of the bits of its sum; or what pixels bring
            self.units[group] = self._unit_of_pixels(members) if neurons else self._unit_of_short(members[0])
            return
        threshold = neurons[0].params.threshold if neurons else None
        largest = max(
            float(link.weight.abs().max()) * self._unit(link.source) / (PARALLEL if _passes_on(link) else 1)
            for _, link in scaled
        )
        kept = self._grid_of(scaled, threshold)
        if kept is not None:
            self.units[group] = kept
            if self._fits(members):
                self._tell_alone(members, self._loss(members))
                return
            _logger.warning("%s: its weights lie on a grid that does not fit the chip, and are rounded anew", group)
        unit = FINER * (largest or 1.0) / WEIGHT[1]
        tried: list[tuple[float, float]] = []
        while len(tried) < TRIED:
            self.units[group] = snap(unit, threshold)
            if self._fits(members):
                tried.append((self._loss(members), self.units[group]))
            unit *= COARSER
            if threshold and unit > 2 * threshold:  # a threshold of one: no finer unit fits either
                break
        if not tried:
            raise InputError(f"{group}: no scale keeps its currents within 16 bits; its weights reach {largest:g}")
        loss, self.units[group] = min(tried)
        self._tell_alone(members, self._round_jointly(scaled, members, loss))

    def _tell_alone(self, members: list[Population], loss: float) -> None:
        if len(members) == 1 and members[0].kind == "neurons":
            self.alone[members[0].name] = 1 - loss / self.values[members[0].name].numel()

    def _grid_of(self, scaled: list[tuple[Population, Link]], threshold: float | None) -> float | None:
        """The unit on whose grid the weights lie already, as those of a fine-tuned network do; None for others."""
        weights = [link.weight * self._unit(link.source) for _, link in scaled if not _passes_on(link)]
        largest = max((float(weight.abs().max()) for weight in weights), default=0.0)
        for whole in range(1, 1 - WEIGHT[0] if largest else 1):
            unit = snap(largest / whole, threshold)
            if all(bool(((weight / unit).round() - weight / unit).abs().max() < ON_GRID) for weight in weights):
                return unit
        return None

    def _round_jointly(self, scaled: list[tuple[Population, Link]], members: list[Population], loss: float) -> float:
        """Round each weight so that it makes up for what rounding the ones before it did; kept where that helps."""
        links = {id(link): (p, link) for p, link in scaled if link.groups == 1 and not _passes_on(link)}
        for key, (p, link) in links.items():
            weight = link.weight * (self._unit(link.source) / self.units[p.group])
            self.joint[key] = compensated(weight, second_moments(link, self.values[link.source]))
        better = self._loss(members) if self._fits(members) else np.inf
        if better >= loss:
            for key in links:
                del self.joint[key]
        return min(better, loss)

    def _fits(self, members: list[Population]) -> bool:
        """Whether no input whatever makes a current or a bias too large, with the units as they are."""
        reach = dict(self.reach)
        for p in members:
            low, high = self._arriving(p, reach)
            limit = CURRENT if p.kind != "readout" else min(CURRENT, STATE // FRACTION // self.num_steps)
            if p.kind != "current" and max(-low.min(), high.max()) > limit:
                return False
            if p.bias is not None and float(p.bias.abs().max()) / self.units[p.group] > BIAS[1]:
                return False
            reach[p.name] = self._sent(p, low, high)
        return True

    def _loss(self, members: list[Population]) -> float:
        """Spikes that differ from the model's on the model's own spikes; where currents pass on, their error."""
        if len(members) == 1 and members[0].kind == "neurons":
            return self._differing(members[0])
        loss = 0.0
        for p in members:
            for link in p.links:
                if not link.exact:
                    x = self.values[link.source]
                    exact = per_step(link, x)
                    error = per_step(link, x, self._rounded(p, link)) - exact
                    loss += float(error.square().mean() / exact.square().mean().clamp(1e-12))
        return loss

    def _differing(self, p: Population) -> float:
        current = sum(self._brings(p, link) for link in p.links)
        unit = self.units[p.group]
        bias = torch.from_numpy(bias_mantissas(p, unit, _halves(p, unit))[0].astype(np.float32)) * unit
        spikes = replace(p, bias=bias if bias.ndim == 3 else bias[:, None, None]).respond(
            current.expand(self.num_steps, *current.shape[1:])
        )
        return float((spikes != self.values[p.name]).sum())

    def _brings(self, p: Population, link: Link) -> Tensor:
        """What a link's integers bring when the model's own values enter, as the model's numbers."""
        source = self.by_name[link.source]
        if not link.shift or source.group not in self.units:
            return per_step(link, self.values[link.source], self._rounded(p, link))
        (wide,) = source.links
        unit = self.units[p.group]
        return (per_step(wide, self.values[wide.source], self._rounded(source, wide)) / unit).floor() * unit

    def _rounded(self, p: Population, link: Link) -> Tensor:
        """The link's weights as the model's numbers that the integers stand for."""
        if link.exact:
            return link.weight
        return self._weight(p, link).float() * (self.units[p.group] / self._unit(link.source))

    # --- integers, given the unit ------------------------------------------------------------------------------------

    def _weight(self, p: Population, link: Link) -> Tensor:
        """The link's weights as integers, in 8 bits but where connections can lie side by side."""
        if link.exact:
            return link.weight.sign()
        if id(link) in self.joint:
            return self.joint[id(link)]
        weight = (link.weight * (self._unit(link.source) / self.units[p.group])).round()
        return weight.clamp(*(PARALLEL * limit for limit in WEIGHT)) if _passes_on(link) else weight.clamp(*WEIGHT)

    def _largest_weight(self, p: Population, link: Link) -> int:
        """Of currents that are shifted, of the weights that they come from."""
        if link.shift and not self.by_name[link.source].links[0].exact:
            p = self.by_name[link.source]
            (link,) = p.links
        return int(self._weight(p, link).abs().max())

    def _beyond(self, p: Population, link: Link) -> int:
        """How many weights are beyond 8 bits."""
        weight = (link.weight * (self._unit(link.source) / self.units[p.group])).round()
        parallel = PARALLEL if _passes_on(link) else 1
        return int(((weight < parallel * WEIGHT[0]) | (weight > parallel * WEIGHT[1])).sum())

    def _arriving(self, p: Population, reach) -> tuple[np.ndarray, np.ndarray]:
        """The least and the most that any input can bring, ``[C]``."""
        low, high = np.zeros(p.shape[0]), np.zeros(p.shape[0])
        for link in p.links:
            least, most = reach[link.source]
            if link.shift:
                low, high = low + least / self.units[p.group] - 1, high + most / self.units[p.group] + 1
            else:
                most_negative, most_positive = extremes(link, self._weight(p, link), least, most)
                low, high = low + most_negative, high + most_positive
        return low, high

    def _sent(self, p: Population, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (np.zeros(len(low)), np.ones(len(low))) if p.kind in ("neurons", "logic") else (low, high)

    def _is_short(self, p: Population) -> bool:
        """Whether it is a part of the bits of a mean over the map."""
        (link, *others) = p.links
        return not others and link.shift and self.by_name[link.source].links[0].exact

    def _unit_of_short(self, p: Population) -> float:
        (link,) = p.links
        unit = self.units[self.by_name[link.source].group]
        largest = float(self.values[link.source].abs().max()) / unit
        return unit * 2 ** max(0, int(np.ceil(np.log2(max(largest, 1) / SHORT))))

    def _unit_of_pixels(self, members: list[Population]) -> float:
        """The finest that keeps what wide currents bring to neurons within 16 bits."""
        threshold = next(p.params.threshold for p in members if p.kind == "neurons")
        largest = max(float(np.abs(self.reach[link.source]).max()) for p in members for link in p.links if link.shift)
        bias = max((float(p.bias.abs().max()) for p in members if p.bias is not None), default=0.0)
        unit = max(largest / (CURRENT - 1), bias / (BIAS[1] - 1))
        whole = min(int(threshold / unit - 1 / FRACTION), THRESHOLD[1])
        if whole < 1:
            raise InputError(f"{members[0].group}: no scale keeps its currents within 16 bits; they reach {largest:g}")
        return threshold / (whole + 1 / FRACTION)

    def _wide(self, p: Population) -> None:
        """The unit of a population whose currents will be shifted: as fine as 8-bit weights and 24 bits allow."""
        (link,) = p.links
        source = self._unit(link.source)
        self.reach[p.name] = extremes(link, link.weight * source, *self.reach[link.source])
        if link.exact:  # sums for a mean
            self.units[p.group] = source * float(link.weight.max())
            return
        target = next(q for q in self.populations if any(other.source == p.name for other in q.links))
        if target.group not in self.units:
            self._choose(self.groups[target.group])
        unit = self.units[target.group]
        finest = (
            float(link.weight.abs().max()) * source / WEIGHT[1],
            HEADROOM * float(self.values[p.name].abs().max()) / STATE,
        )
        self.units[p.group] = unit / 2 ** max(0, int(np.floor(np.log2(unit / max(*finest, 1e-30)))))
        if target.kind == "neurons" and len(target.links) == 1:
            self.alone[target.name] = 1 - self._differing(target) / self.values[target.name].numel()

    def _layer(self, p: Population) -> tuple[Layer, LayerReport | None]:
        if p.kind == "input":
            return Layer(p.name, "input", p.shape), None
        low, high = self._arriving(p, self.reach)
        if p.kind != "wide":
            self.reach[p.name] = self._sent(p, low, high)
        if p.kind == "current" and self._is_short(p):
            most = HEADROOM * float(self.values[p.name].abs().max()) / self.units[p.group]
            self.reach[p.name] = tuple(np.clip(x, -most, most) for x in (low, high))
            self.observed.add(p.name)
        unit = self.units.get(p.group, 1.0)
        weights = [self._weight(p, link) for link in p.links]
        self.lost[p.name] = 0.0
        if p.kind == "current":
            half = sum(unit / 2 for link in p.links if link.shift)
            self.lost[p.name] = half + max(self.lost.get(link.source, 0.0) * link.exact for link in p.links)
        more = sum(_constant(link, self.lost.get(link.source, 0.0)) for link in p.links)
        bias, clipped = bias_mantissas(p, unit, more + _halves(p, unit))
        settings: dict[str, Any] = dict(scale=unit)
        if p.kind in ("neurons", "logic"):
            threshold = p.threshold if p.kind == "logic" else round(p.params.threshold / unit - 1 / FRACTION)
            settings |= dict(threshold=threshold, decay=_taken(p.params.decay if p.params else 0), bias=bias)
            settings |= dict(reset=p.params.reset, spikes=True) if p.kind == "neurons" else {}
        if p.kind == "readout":
            settings |= dict(threshold=THRESHOLD[1], decay=_taken(p.decay), bias=bias)
        kind = {"neurons": "lif", "logic": "lif", "readout": "readout"}.get(p.kind, "graded")
        inputs = [
            synapses
            for link, weight in zip(p.links, weights, strict=True)
            for synapses in self._synapses(p, link, weight)
        ]
        layer = Layer(p.name, kind, p.shape, tuple(inputs), **settings)
        saturated = clipped + sum(self._beyond(p, link) for link in p.links if not link.exact)
        self.saturated += saturated
        report = LayerReport(
            p.name, unit, settings["threshold"] if p.kind == "neurons" else None,
            max(self._largest_weight(p, link) for link in p.links), saturated, int(max(-low.min(), high.max())),
            not self.observed.intersection(link.source for link in p.links), self.alone.get(p.name),
        ) if p.kind in ("neurons", "readout") else None  # fmt: skip
        return layer, report

    def _synapses(self, p: Population, link: Link, weight: Tensor) -> Iterator[Synapses]:
        shift = round(np.log2(self.units[p.group] / self._unit(link.source))) if link.shift else 0
        while True:
            part = weight.clamp(*WEIGHT)
            yield Synapses(
                link.source, part.numpy().astype(np.int8), link.stride, link.padding, link.dilation, link.groups,
                shift, link.origin,
            )  # fmt: skip
            weight = weight - part
            if not weight.any():
                return


def _taken(decay: float) -> int:
    """What a step takes of a state, in 4096ths, when ``decay`` is what is left of it."""
    return min(4096 - round(4096 * decay), DECAY[1])


def _passes_on(link: Link) -> bool:
    """Whether it brings each neuron one other's output, as shortcuts do: then it costs little to have several of it."""
    weight = link.weight
    return weight[0, 0].numel() == 1 and bool(
        ((weight == 0) | (weight == 1)).all() and (weight.sum((1, 2, 3)) <= 1).all()
    )


def _constant(link: Link, value: float) -> Tensor:
    """What arrives, ``[O, 1, 1]``, when the source sends ``value`` everywhere."""
    return value * link.weight.sum((1, 2, 3))[:, None, None]


def _halves(p: Population, unit: float) -> float:
    """What shifting the currents that enter neurons takes of them, on average; others' is made up for by who reads."""
    return sum(unit / 2 for link in p.links if link.shift) if p.kind == "neurons" else 0.0


def _with_relays(layers: list[Layer]) -> Iterator[Layer]:
    """The layers, and graded neurons that hold up what would arrive before a layer's other inputs."""
    by_name = {layer.name: layer for layer in layers}
    for placed in in_steps({layer.name: [synapses.source for synapses in layer.inputs] for layer in layers}):
        if placed.holds_up:
            origin = by_name[placed.holds_up]
            pass_on = np.ones((origin.shape[0], 1, 1, 1), np.int8)
            inputs = (Synapses(*placed.sources, pass_on, groups=origin.shape[0]),)
            yield Layer(placed.name, "graded", origin.shape, inputs, scale=origin.scale)
        else:
            layer = by_name[placed.name]
            inputs = zip(layer.inputs, placed.sources, strict=True)
            yield replace(layer, inputs=tuple(replace(synapses, source=source) for synapses, source in inputs))
