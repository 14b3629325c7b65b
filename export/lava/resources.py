"""What a network takes on Loihi 2: neurons, synapses, cores, steps, and an estimate of its energy.

The network is laid out as populations of neurons and connections between them, each of which takes one step. Neurons
that read a sum receive every branch of it; a value that several layers read is a population that passes on graded
spikes; and what arrives too early is held up by relays, one step each.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from snnzoo.errors import InputError
from snnzoo.export.graph import LIF, Add, Conv, Flatten, Gate, Graph, Input, Linear, Node, Output, Pool, ReLU
from snnzoo.export.interpret import interpret
from snnzoo.rate import per_step

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
_CHUNK = 8  # images at once

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
        name: of the node of the graph, of a relay with what it holds up and for how long.
        kind: ``lif``, ``graded`` (passes on a value), ``relay``, ``pool``, ``gate`` or ``output``.
        shape: ``(C, H, W)`` or ``(F,)``.
        step: how many steps behind the image it is.
        synapses: into it, those at the border of an image not counted, nor weights that are zero.
        weights: of all that comes in, each kernel once.
        cores: None if not even one channel's neuron fits on one.
        rate: messages a neuron and step; None without images.
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
            rate, synops = ("", "") if x.rate is None else (f"{x.rate:.3f}", f"{x.synops:,.0f}")
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
        InputError: the graph is an ANN's, or averages over windows; or the images are of another size.
    """
    if images is not None and images.shape[1:] != graph.input.shape:
        raise InputError(f"images must be [B, {', '.join(map(str, graph.input.shape))}], got {tuple(images.shape)}")
    populations = _lay_out(graph)
    sent = None if images is None else _messages(graph, populations, images)
    layers = []
    for p in populations.values():
        if p.kind == "input":
            continue
        rate = synops = None
        if sent is not None:
            rate = float(sent[p.sends_as].mean()) / graph.num_steps
            synops = sum(float((c.fan_out * sent[populations[c.source].sends_as]).sum()) for c in p.connections)
        layers.append(
            Layer(
                p.name, p.kind, p.shape, p.step, math.prod(p.shape), sum(c.synapses for c in p.connections),
                sum(c.weights for c in p.connections), _cores(p), rate, synops,
            )
        )  # fmt: skip
    return Resources(
        graph.name, graph.input.shape, graph.num_steps, tuple(layers), tuple(_problems(graph, populations)),
        0 if images is None else len(images),
    )  # fmt: skip


@dataclass
class _Connection:
    """Synapses from one population into another."""

    name: str
    source: str
    fan_out: Tensor  # synapses of each neuron of the source, in its shape
    weights: int
    per_channel: int  # weights that a core stores for one channel of the target
    from_pixels: bool = False

    @property
    def synapses(self) -> int:
        return int(self.fan_out.sum())


@dataclass
class _Population:
    name: str
    kind: str
    shape: tuple[int, ...]
    connections: list[_Connection]
    step: int
    sends_as: str  # the node of the graph whose value it sends


def _lay_out(graph: Graph) -> dict[str, _Population]:
    """The populations by name, in an order in which each comes after its sources; the last is the output."""
    if not graph.lifs:
        raise InputError(f"{graph.name} has no LIF layer: on Loihi there is nothing of it but spiking neurons")
    populations: dict[str, _Population] = {}
    for node in graph:
        _check(graph, node)
        if not _is_population(graph, node):
            continue
        connections = _incoming(graph, node)
        step = 1 + max((populations[c.source].step for c in connections), default=-1)
        for connection in connections:  # what comes early waits in relays, one step each
            for wait in range(1, step - populations[connection.source].step):
                connection.source = _relay(populations, graph, connection.source, wait)
        kind = node.kind if node.kind in ("input", "lif", "pool", "gate", "output") else "graded"
        shape = graph.shapes[node.name]
        populations[node.name] = _Population(node.name, kind, shape, connections, step, node.name)
    return populations


def _relay(populations: dict[str, _Population], graph: Graph, source: str, wait: int) -> str:
    """The name of the population that holds ``source`` up by a step; made if it is not there."""
    before = populations[source]
    name = f"{before.sends_as} +{wait}"
    if name not in populations:
        identity = _identity(f"{name} identity", source, before.shape)
        populations[name] = _Population(name, "relay", before.shape, [identity], before.step + 1, before.sends_as)
    return name


def _check(graph: Graph, node: Node) -> None:
    if isinstance(node, ReLU):
        raise InputError(f"{node.name} (relu): an ANN's activation; on Loihi there is the spiking model of the shape")
    if isinstance(node, Pool) and node.pool == "avg" and not graph.linear_behind(node):
        raise InputError(f"{node.name} (pool): only global average pooling before a linear layer can be laid out")


def _is_population(graph: Graph, node: Node) -> bool:
    """Whether a node's value has neurons of its own, and is not just what arrives at others."""
    if isinstance(node, (Input, LIF, Gate, Output)) or (isinstance(node, Pool) and node.pool == "max"):
        return True
    if not isinstance(node, (Conv, Linear, Add)):
        return False
    (reader, *others) = graph.readers(node.name)
    if isinstance(reader, Add) and not isinstance(reader, Gate):
        return bool(others)
    return bool(others) or not isinstance(reader, (LIF, Output))


def _incoming(graph: Graph, node: Node) -> list[_Connection]:
    """The connections into a population: of each branch of the sum that it reads one."""
    if isinstance(node, Input):
        return []
    if isinstance(node, Pool):
        return [_windows(graph, node)]
    if isinstance(node, (Conv, Linear)):
        return [_weighted(graph, node)]
    connections = []
    for name in node.inputs:
        other = graph[name]
        if _is_population(graph, other):
            connections.append(_identity(f"{node.name} identity", name, graph.shapes[name]))
        else:
            connections += _incoming(graph, other)
    return connections


def _identity(name: str, source: str, shape: tuple[int, ...]) -> _Connection:
    return _Connection(name, source, torch.ones(shape), weights=shape[0], per_channel=1)


def _windows(graph: Graph, node: Pool) -> _Connection:
    """Max pooling of spikes: neurons that fire if anything in their window does."""
    shape = graph.shapes[node.inputs[0]]
    ones = torch.ones(shape[0], 1, *node.kernel)
    fan_out = _fan_out(shape, lambda x: F.conv2d(x, ones, None, node.stride, node.padding, groups=shape[0]))
    size = math.prod(node.kernel)
    return _Connection(node.name, node.inputs[0], fan_out, size * shape[0], size)


def _weighted(graph: Graph, node: Conv | Linear) -> _Connection:
    used = (node.weight != 0).float()
    if isinstance(node, Conv):
        shape = graph.shapes[node.inputs[0]]
        fan_out = _fan_out(
            shape, lambda x: F.conv2d(x, used, None, node.stride, node.padding, node.dilation, node.groups)
        )
        source = node.inputs[0]
    else:
        source, shape = node.inputs[0], graph.shapes[node.inputs[0]]
        while isinstance(graph[source], Flatten) or (isinstance(graph[source], Pool) and graph[source].pool == "avg"):
            source = graph[source].inputs[0]
            shape = graph.shapes[source]
        pixels = math.prod(shape) // used.shape[1]  # pooled into one feature, each with a weight of its own
        used = used.repeat_interleave(pixels, dim=1)
        fan_out = used.sum(0).view(shape)
    per_channel = int(used.flatten(1).sum(1).max())
    return _Connection(node.name, source, fan_out, int(used.sum()), per_channel, isinstance(graph[source], Input))


def _fan_out(shape: tuple[int, ...], convolve) -> Tensor:
    """How many synapses each input of a convolution has: the gradient of the sum of its outputs."""
    with torch.enable_grad():
        x = torch.zeros(1, *shape, requires_grad=True)
        (grad,) = torch.autograd.grad(convolve(x).sum(), x)
    return grad[0]


def _cores(p: _Population, width: float = 1) -> int | None:
    """The fewest cores that hold a population, ``width`` times as wide: over how many channels each has."""
    channels, pixels = p.shape[0], math.prod(p.shape[1:])
    if p.kind != "output":
        channels = math.ceil(width * channels)
    stored = sum(c.per_channel if c.from_pixels else math.ceil(width * c.per_channel) for c in p.connections)
    best = None
    for count in range(1, min(channels, NEURONS_PER_CORE) + 1):
        space = (BYTES_PER_CORE - count * stored * BYTES_PER_WEIGHT) // (count * BYTES_PER_NEURON)
        fit = min(pixels, NEURONS_PER_CORE // count, space)
        if fit < 1:
            break
        cores = math.ceil(channels / count) * math.ceil(pixels / fit)
        best = cores if best is None else min(best, cores)
    return best


def _problems(graph: Graph, populations: dict[str, _Population]):
    """What does not fit on a chip, and what would help."""
    on_chip = [p for p in populations.values() if p.kind != "input"]
    cores = {p.name: _cores(p) for p in on_chip}
    for p in on_chip:
        if p.kind == "pool" and not isinstance(graph[graph[p.name].inputs[0]], LIF):
            yield f"{p.name}: the maximum of currents has no form in spiking neurons; stem='cifar' has no max pooling"
        if cores[p.name] is None:
            stored = sum(c.per_channel for c in p.connections)
            most = BYTES_PER_CORE - BYTES_PER_NEURON
            yield (
                f"{p.name}: one of its neurons has {stored:,} weights, and a core holds {most:,}; {most / stored:.2f} "
                f"of the channels or pixels before it would fit"
            )
    total = sum(count or 0 for count in cores.values())
    if total <= CORES_PER_CHIP:
        return
    largest = sorted((p for p in on_chip if cores[p.name]), key=lambda p: -cores[p.name])[:3]
    names = ", ".join(f"{p.name} {cores[p.name]}" for p in largest)
    remedies = f"{_chips(math.ceil(total / CORES_PER_CHIP))} of a larger board"
    for width in WIDTHS:
        counts = [_cores(p, width) for p in on_chip]
        if None not in counts and sum(counts) <= CORES_PER_CHIP:
            remedies += f", or {width:g} of the width everywhere ({sum(counts)} cores)"
            break
    else:
        remedies += ", or smaller images"
    yield f"{total} cores, and a chip has {CORES_PER_CHIP} (the largest: {names}); it takes {remedies}"


@torch.no_grad()
def _messages(graph: Graph, populations: dict[str, _Population], images: Tensor) -> dict[str, Tensor]:
    """How many messages each neuron sends for one image, the mean over images, by node."""
    always = {p.sends_as: torch.full(p.shape, float(graph.num_steps)) for p in populations.values()}
    counted: dict[str, Tensor] = {}
    for chunk in images.split(_CHUNK):
        values = dict(interpret(graph, chunk).spikes)
        for node in graph:  # sums of spikes, and what is made of spikes without weights
            if isinstance(node, (Add, Pool)) and all(name in values for name in node.inputs):
                xs = [values[name] for name in node.inputs]
                values[node.name] = per_step(node.apply, xs[0]) if len(xs) == 1 else node.apply(*xs)
        for name in always.keys() & values.keys():
            sent = (values[name] != 0).sum((0, 1)).double() / len(images)
            counted[name] = counted[name] + sent if name in counted else sent
    return always | counted


__all__ = ["ASSUMPTIONS", "Layer", "Resources", "estimate"]
