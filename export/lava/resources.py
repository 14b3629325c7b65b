"""What a network takes on Loihi 2: neurons, synapses, cores, steps, and an estimate of its energy.

It is laid out as for Lava (:mod:`~snnzoo.export.lava.lower`): populations of neurons, and links between them that take
a step each; what would arrive too early is held up by relays.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from snnzoo.errors import InputError
from snnzoo.export.graph import Graph
from snnzoo.export.lava.delays import in_steps
from snnzoo.export.lava.lower import Link, Population, evaluate, lower

# The chip, from Intel's technology brief "Taking Neuromorphic Computing to the Next Level with Loihi 2" (2021).
CORES_PER_CHIP = 128
NEURONS_PER_CORE = 8192
BYTES_PER_CORE = 192 * 1024
SHORTEST_STEP = 200e-9  # s
# Table 2 of Davies et al., "Loihi: A Neuromorphic Manycore Processor with On-Chip Learning", IEEE Micro 38(1), 2018.
JOULES_PER_SYNOP = 23.6e-12
JOULES_PER_UPDATE = 81e-12
# Ours.
BYTES_PER_NEURON = 12
BYTES_PER_WEIGHT = 1
WIDTHS = (0.75, 0.5, 0.25, 0.125)  # what is tried for a network that does not fit
_OF_SPIKES = ("neurons", "logic", "count")  # kinds that send nothing where nothing happens
_VALUES = 10**8  # to hold at once when activity is measured

ASSUMPTIONS = (
    f"Limits: {CORES_PER_CHIP} cores a chip, {NEURONS_PER_CORE} neurons and {BYTES_PER_CORE:,} bytes a core (Intel, "
    "technology brief on Loihi 2, 2021).",
    f"A neuron takes {BYTES_PER_NEURON} bytes (accumulator, membrane, bias), a weight {BYTES_PER_WEIGHT}; axons and "
    "routing tables take none.",
    "A core stores the kernels of its own output channels once, for all their pixels (the chip's convolutional "
    "compression); linear layers share nothing.",
    "A core holds neurons of one layer; a layer is cut along channels and pixels into as few cores as fit. What a real "
    "compiler needs may be more.",
    "Pixels, and currents that are passed on as graded spikes, are sent at every step; neurons of spikes as measured.",
    f"Energy: {JOULES_PER_SYNOP * 1e12:g} pJ a synaptic operation and {JOULES_PER_UPDATE * 1e12:g} pJ a neuron and "
    "step, of Loihi 1 (Davies et al., IEEE Micro 38(1), 2018, Table 2: simulated before silicon, at 0.75 V, the first "
    "a minimum). Nothing of the kind is published of Loihi 2. Routing, static power, the embedded processors and input "
    "are not in it.",
    f"A step takes at least {SHORTEST_STEP * 1e9:g} ns (the brief), and longer the more there is to do in it.",
)


@dataclass(frozen=True)
class Layer:
    """A population of neurons with what comes into it.

    Attributes:
        name: of the node of the graph, of a relay with what it holds up and for how long, as in the network file.
        kind: as in :class:`~snnzoo.export.lava.lower.Population`, or ``relay``.
        shape: ``(C, H, W)``.
        step: how many steps behind the image it is.
        synapses: into it, those at the border of an image not counted, nor weights that are zero.
        weights: of all that comes in, each kernel once.
        cores: None if not even one channel's neuron fits on one.
        rate: messages a neuron and step; None without images, and of the readout.
        synops: synaptic operations that its neurons receive for one image; None without images.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    step: int
    neurons: int
    synapses: int
    weights: int
    cores: int | None
    rate: float | None = None
    synops: float | None = None


@dataclass(frozen=True)
class Resources:
    """An estimate, see :data:`ASSUMPTIONS`. Of one image, shown for ``num_steps`` steps.

    Attributes:
        latency_steps: from an image's first step to its answer; images that stream follow each other by ``num_steps``.
        problems: what does not fit on one chip, or has no form there, with what would make it fit.
        images: on how many the activity was measured; without any there are no operations and no energy.
    """

    model: str
    input_size: tuple[int, ...]
    num_steps: int
    layers: tuple[Layer, ...]
    problems: tuple[str, ...]
    images: int = 0
    assumptions: tuple[str, ...] = field(default=ASSUMPTIONS)

    @property
    def neurons(self) -> int:
        return sum(layer.neurons for layer in self.layers)

    @property
    def synapses(self) -> int:
        return sum(layer.synapses for layer in self.layers)

    @property
    def weights(self) -> int:
        return sum(layer.weights for layer in self.layers)

    @property
    def cores(self) -> int | None:
        counts = [layer.cores for layer in self.layers]
        return None if None in counts else sum(counts)

    @property
    def chips(self) -> int | None:
        return None if self.cores is None else math.ceil(self.cores / CORES_PER_CHIP)

    @property
    def latency_steps(self) -> int:
        return self.layers[-1].step + self.num_steps

    @property
    def neuron_updates(self) -> int:
        return self.neurons * self.num_steps

    @property
    def synops(self) -> float | None:
        return sum(layer.synops for layer in self.layers) if self.images else None

    @property
    def joules(self) -> float | None:
        if not self.images:
            return None
        return self.synops * JOULES_PER_SYNOP + self.neuron_updates * JOULES_PER_UPDATE

    def to_dict(self) -> dict[str, Any]:
        """For JSON; ``estimate`` is True so that nobody takes it for a measurement."""
        names = "neurons synapses weights cores chips latency_steps neuron_updates synops joules"
        totals = {name: getattr(self, name) for name in names.split()}
        return {
            "estimate": True,
            **totals,
            "shortest_latency_seconds": self.latency_steps * SHORTEST_STEP,
            **asdict(self),
        }

    def table(self) -> str:
        """For a person: a row for each layer, the totals, what does not fit, the assumptions."""
        rows = [("layer", "kind", "shape", "step", "neurons", "synapses", "weights", "cores", "rate", "synops")]
        for x in self.layers:
            rate = "" if x.rate is None else f"{x.rate:.3f}"
            synops = "" if x.synops is None else f"{x.synops:,.0f}"
            cores = "none fits" if x.cores is None else str(x.cores)
            rows.append(
                (x.name, x.kind, "x".join(map(str, x.shape)), str(x.step), f"{x.neurons:,}", f"{x.synapses:,}",
                 f"{x.weights:,}", cores, rate, synops)
            )  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for row in rows:
            cells = zip(row, widths, strict=True)
            lines.append("  ".join(c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(cells)).rstrip())
        size = "x".join(map(str, self.input_size))
        steps = f"{self.latency_steps} steps to the answer, then one each {self.num_steps}"
        lines += [
            "",
            f"An estimate for Loihi 2: {self.model}, {size}, {self.num_steps} time steps",
            f"neurons     {self.neurons:,}",
            f"synapses    {self.synapses:,}, of {self.weights:,} weights",
            f"cores       {'does not fit' if self.cores is None else f'{self.cores}, on {_chips(self.chips)}'}",
            f"latency     {steps}; at least {self.latency_steps * SHORTEST_STEP * 1e6:.1f} us",
        ]
        if self.images:
            share = self.synops * JOULES_PER_SYNOP / self.joules
            lines += [
                f"an image    {self.synops:,.0f} synaptic operations, {self.neuron_updates:,} neuron updates (measured "
                f"on {self.images} images)",
                f"energy      about {self.joules * 1e6:,.1f} uJ an image, {100 * share:.0f} % of it for synaptic "
                "operations",
            ]
        else:
            lines += ["an image    operations and energy depend on the activity: give images"]
        lines += [f"problem     {problem}" for problem in self.problems]
        lines += ["", "Assumptions:", *(f"- {assumption}" for assumption in self.assumptions)]
        return "\n".join(lines) + "\n"


def _chips(count: int) -> str:
    return "1 chip" if count == 1 else f"{count} chips"


def estimate(graph: Graph, images: Tensor | None = None) -> Resources:
    """Estimate what a network takes on Loihi 2.

    Args:
        graph: of a spiking model.
        images: ``[B, C, H, W]``, normalised, to measure the activity on.

    Raises:
        InputError: nodes that Loihi cannot express, with the reasons; or the images are of another size.
    """
    if images is not None and images.shape[1:] != graph.input.shape:
        raise InputError(f"images must be [B, {', '.join(map(str, graph.input.shape))}], got {tuple(images.shape)}")
    channels = graph.input.shape[0]
    lowered = lower(graph, [0.0] * channels, [1 / 255] * channels)  # what enters is what the model takes
    sent = None if images is None else _messages(lowered, images, graph.num_steps)
    placed = _place(lowered)
    layers = []
    for p in placed[1:]:
        rate = synops = None
        if sent is not None:
            rate = float(sent[p.sends].mean()) / graph.num_steps if p.kind != "readout" else None
            synops = sum(float((link.fan_out * sent[link.source]).sum()) for link in p.links)
        layers.append(
            Layer(
                p.name, p.kind, p.shape, p.step, math.prod(p.shape), sum(int(link.fan_out.sum()) for link in p.links),
                sum(link.weights for link in p.links), _cores(p), rate, synops,
            )
        )  # fmt: skip
    return Resources(
        graph.name, graph.input.shape, graph.num_steps, tuple(layers), tuple(_problems(placed[1:])),
        0 if images is None else len(images),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Synapses:
    """A link, counted: ``fan_out`` synapses for each neuron that sends; ``per_channel`` weights for one that receives,
    ``weights`` for all."""

    source: str  # whose messages they are; relays pass on those of another
    fan_out: Tensor
    weights: int
    per_channel: int
    from_pixels: bool


@dataclass(frozen=True, eq=False)
class _Placed:
    name: str
    kind: str
    shape: tuple[int, int, int]
    step: int
    sends: str
    links: tuple[_Synapses, ...]


def _place(lowered: tuple[Population, ...]) -> list[_Placed]:
    """The populations with the relays between them, each with its step."""
    by_name = {p.name: p for p in lowered}
    result = []
    for placed in in_steps({p.name: [link.source for link in p.links] for p in lowered}):
        p = by_name[placed.holds_up or placed.name]
        if placed.holds_up:
            links = (_Synapses(p.name, torch.ones(p.shape), p.shape[0], 1, False),)
        else:
            links = tuple(_count(link, by_name[link.source].shape, link.source == lowered[0].name) for link in p.links)
        kind = "relay" if placed.holds_up else p.kind
        result.append(_Placed(placed.name, kind, p.shape, placed.step, p.name, links))
    return result


def _count(link: Link, shape: tuple[int, int, int], from_pixels: bool) -> _Synapses:
    used = (link.weight != 0).float()
    with torch.enable_grad():  # how many outputs an input is part of is the gradient of their sum
        x = torch.zeros(1, *shape, requires_grad=True)
        (fan_out,) = torch.autograd.grad(link.apply(x, used).sum(), x)
    per_channel = int(used.flatten(1).sum(1).max())
    return _Synapses(link.source, fan_out[0], int(used.sum()), per_channel, from_pixels)


def _messages(lowered: tuple[Population, ...], images: Tensor, num_steps: int) -> dict[str, Tensor]:
    """How many messages each neuron of a population sends for one image, the mean over images."""
    sent = {p.name: torch.zeros(p.shape, dtype=torch.float64) for p in lowered}
    chunk = max(1, _VALUES // (num_steps * sum(math.prod(p.shape) for p in lowered)))
    for some in images.split(chunk):
        for name, values in evaluate(lowered, some, num_steps).items():
            sent[name] += (values != 0).sum((0, 1)) / len(images)
    for p in lowered:
        if p.kind not in _OF_SPIKES:
            sent[p.name] = torch.full(p.shape, float(num_steps))
    return sent


def _cores(p: _Placed, width: float = 1) -> int | None:
    """The fewest cores that hold a population, ``width`` times as wide: over how many channels each has."""
    channels, pixels = p.shape[0], math.prod(p.shape[1:])
    if p.kind != "readout":
        channels = math.ceil(width * channels)
    stored = sum(c.per_channel if c.from_pixels else math.ceil(width * c.per_channel) for c in p.links)
    best = None
    for count in range(1, min(channels, NEURONS_PER_CORE) + 1):
        space = (BYTES_PER_CORE - count * stored * BYTES_PER_WEIGHT) // (count * BYTES_PER_NEURON)
        fit = min(pixels, NEURONS_PER_CORE // count, space)
        if fit < 1:
            break
        cores = math.ceil(channels / count) * math.ceil(pixels / fit)
        best = cores if best is None else min(best, cores)
    return best


def _problems(placed: list[_Placed]) -> Iterator[str]:
    """What does not fit on a chip, and what would help."""
    cores = {p.name: _cores(p) for p in placed}
    for p in placed:
        if cores[p.name] is None:
            stored = sum(c.per_channel for c in p.links)
            most = BYTES_PER_CORE - BYTES_PER_NEURON
            yield (
                f"{p.name}: one of its neurons has {stored:,} weights, and a core holds {most:,}; {most / stored:.2f} "
                f"of the channels or pixels before it would fit"
            )
    total = sum(count or 0 for count in cores.values())
    if total <= CORES_PER_CHIP:
        return
    largest = sorted((p for p in placed if cores[p.name]), key=lambda p: -cores[p.name])[:3]
    names = ", ".join(f"{p.name} {cores[p.name]}" for p in largest)
    remedies = f"{_chips(math.ceil(total / CORES_PER_CHIP))} of a larger board"
    for width in WIDTHS:
        counts = [_cores(p, width) for p in placed]
        if None not in counts and sum(counts) <= CORES_PER_CHIP:
            remedies += f", or {width:g} of the width everywhere ({sum(counts)} cores)"
            break
    else:
        remedies += ", or smaller images"
    yield f"{total} cores, and a chip has {CORES_PER_CHIP} (the largest: {names}); it takes {remedies}"


__all__ = ["ASSUMPTIONS", "Layer", "Resources", "estimate"]
