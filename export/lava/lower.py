"""From the export graph to populations of neurons with convolutions between them, still in real numbers.

What is left is what the chip knows: neurons, and weighted connections that add up. Sums become connections into one
population, poolings and SEW's gates become neurons or connections, batch norms are folded already.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from snnzoo.errors import InputError
from snnzoo.export.graph import LIF, Add, Conv, Flatten, Gate, Graph, Input, Linear, Node, Output, Pair, Pool, ReLU
from snnzoo.neurons import LIFParams, lif

Shape = tuple[int, int, int]
PIXELS = 64  # that neurons add up by themselves: their 16 bits leave 5 to a weight of 27 pixels, 3 to one of 147


@dataclass(frozen=True, eq=False)
class Link:
    """A convolution from one population into another.

    Attributes:
        source: name of the population that it reads.
        weight: ``[O, C / groups, KH, KW]``, real numbers.
        exact: the weights are whole numbers that stay what they are.
        shift: what the source sends is brought to the target's unit, nothing else; the weights are an identity.
        origin: the graph's node, empty where there is none.
    """

    source: str
    weight: Tensor
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    exact: bool = False
    shift: bool = False
    origin: str = ""

    def apply(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """``[N, C, H, W]`` to ``[N, O, H', W']``, with other weights of the same shape if given."""
        weight = self.weight if weight is None else weight
        return F.conv2d(x, weight.to(x.dtype), None, self.stride, self.padding, self.dilation, self.groups)


@dataclass(frozen=True, eq=False)
class Population:
    """Neurons of one kind.

    Kinds: ``input``; ``neurons``, the model's own; ``logic``, neurons that fire above a whole number ``threshold`` and
    forget (max pooling, SEW's gates); ``count``, sums of spikes; ``current``, sums of currents in the ``group``'s unit;
    ``wide``, currents in a unit of their own, to be shifted into another's; ``readout``.

    Attributes:
        group: populations whose currents share one unit have the same.
        bias: ``[C, H, W]``, added at each step. A ``current`` passes on none: those who read it have it.
        decay: of a ``readout``, what is left of its state after one step.
    """

    name: str
    kind: str
    shape: Shape
    links: tuple[Link, ...] = ()
    bias: Tensor | None = None
    params: LIFParams | None = None
    threshold: int = 0
    decay: float = 1.0
    group: str = ""

    def respond(self, current: Tensor) -> Tensor:
        """What it sends, ``[T, B, ...]``, when ``current`` arrives, as real numbers."""
        if self.bias is not None:
            current = current + self.bias
        if self.kind == "neurons":
            return lif(current, self.params)
        return (current > self.threshold).to(current.dtype) if self.kind == "logic" else current


@torch.no_grad()
def evaluate(populations: tuple[Population, ...], images: Tensor, num_steps: int) -> dict[str, Tensor]:
    """What each population sends, ``[T, B, C, H, W]`` by name; of the input ``[1, B, C, H, W]``.

    Args:
        populations: of :func:`lower`.
        images: ``[B, C, H, W]``, pixels less :func:`pixel_offset`.
        num_steps: T.
    """
    values = {populations[0].name: images[None]}
    for population in populations[1:]:
        current = sum(per_step(link, values[link.source]) for link in population.links)
        values[population.name] = population.respond(current.expand(num_steps, *current.shape[1:]))
    return values


def per_step(link: Link, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """``[T, B, C, H, W]`` through a link."""
    return link.apply(x.flatten(0, 1), weight).unflatten(0, x.shape[:2])


@dataclass(frozen=True, eq=False)
class _Value:
    """What a graph's node computes.

    Attributes:
        links: whose sum it is.
        bias: ``[C, H, W]``, to be added to that.
        source: the population that sends just that, if there is one.
        pooled: it is averaged over the whole map, which whoever reads it has to see to.
    """

    shape: Shape
    links: tuple[Link, ...] = ()
    bias: Tensor | None = None
    source: Population | None = None
    pooled: bool = False


_SPIKES = ("neurons", "logic", "count")
_BINARY = ("neurons", "logic")


def pixel_offset(mean: Sequence[float]) -> Tensor:
    """``[C]``: the whole number next to the mean of 8-bit pixels, so that zero padding means a mean pixel."""
    return (255 * torch.tensor(mean, dtype=torch.float64)).round().clamp(0, 255)


def lower(graph: Graph, mean: Sequence[float], std: Sequence[float]) -> tuple[Population, ...]:
    """The populations, in an order in which each comes after what it reads; the first receives pixels.

    Args:
        graph: of a spiking model.
        mean, std: of its images, by channel, for pixels within 0 and 1.

    Raises:
        InputError: nodes that neurons and connections cannot express, with the reasons.
    """
    return _Lowering(graph, torch.tensor(mean).double(), torch.tensor(std).double()).run()


@dataclass
class _Lowering:
    graph: Graph
    mean: Tensor
    std: Tensor
    populations: list[Population] = field(default_factory=list)
    values: dict[str, _Value] = field(default_factory=dict)

    def run(self) -> tuple[Population, ...]:
        if not self.graph.lifs:
            raise InputError(f"{self.graph.name} has no LIF layer: Lava runs spiking networks, train a snn_* model")
        for node in self.graph:
            value = self._visit(node, *(self.values[name] for name in node.inputs))
            if value.source is None and not value.pooled and len(self.graph.readers(node.name)) > 1:
                value = self._stream(node.name, value)
            self.values[node.name] = value
        return tuple(self.populations)

    def _visit(self, node: Node, *values: _Value) -> _Value:
        if isinstance(node, Input):
            return self._add(Population(node.name, "input", node.shape))
        if isinstance(node, Output):
            if values[0].pooled:
                raise InputError("the answer is a pooled map without a classifier: set num_classes")
            links = self._links(*values)
            shape = self._shape(node.inputs[0])
            return self._add(
                Population(node.name, "readout", shape, links, values[0].bias, decay=node.decay, group=node.name)
            )
        if isinstance(node, LIF):
            return self._neurons(node, *values)
        if isinstance(node, Conv):
            return self._conv(node, *values)
        if isinstance(node, Linear):
            return self._linear(node, *values)
        if isinstance(node, Flatten):
            return values[0]
        if isinstance(node, Pool):
            return self._pool(node, *values)
        if isinstance(node, Gate):
            return self._gate(node, *values)
        if isinstance(node, Add):
            return self._sum(node, *values)
        why = "an ANN's activation" if isinstance(node, ReLU) else "Loihi has no such thing"
        raise InputError(f"{node.name} ({node.kind}) has no place on Loihi: {why}")

    def _shape(self, name: str) -> Shape:
        shape = self.graph.shapes[name]
        return shape if len(shape) == 3 else (shape[0], 1, 1)

    def _add(self, population: Population) -> _Value:
        self.populations.append(population)
        return _Value(population.shape, source=population)

    def _links(self, *values: _Value) -> tuple[Link, ...]:
        """Links whose sum is the sum of the values."""
        return tuple(
            link
            for value in values
            for link in (value.links or (_identity(value.source, exact=value.source.kind == "current"),))
        )

    def _group(self, name: str, links: tuple[Link, ...]) -> str:
        """Currents that come as they are bring their unit along."""
        found = {self[link.source].group for link in links if link.exact and self[link.source].kind == "current"}
        if len(found) > 1:  # two streams meet: one unit for both
            first, *others = sorted(found)
            self.populations = [replace(p, group=first) if p.group in others else p for p in self.populations]
            found = {first}
        return found.pop() if found else name

    def __getitem__(self, name: str) -> Population:
        return next(population for population in self.populations if population.name == name)

    def _stream(self, name: str, value: _Value) -> _Value:
        """A current that several read, or that is worked on, as a population that passes it on without its bias."""
        links = self._links(value)
        stream = Population(name, "current", value.shape, links, group=self._group(name, links))
        return replace(self._add(stream), bias=value.bias)

    def _neurons(self, node: LIF, value: _Value) -> _Value:
        links = self._links(value)
        group = self._group(node.name, links)
        return self._add(Population(node.name, "neurons", value.shape, links, value.bias, node.params, group=group))

    def _conv(self, node: Conv, value: _Value) -> _Value:
        settings = dict(stride=node.stride, padding=node.padding, dilation=node.dilation, groups=node.groups)
        if value.source is None:
            value = self._stream(node.inputs[0], value)
        source, shape = value.source, self._shape(node.name)
        link = Link(source.name, node.weight, **settings, origin=node.name)
        bias = node.bias[:, None, None].expand(shape)
        if value.bias is not None:
            bias = bias + link.apply(value.bias[None])[0]
        if source.kind == "input":
            # What the offset lacks of the mean is a bias, a smaller one at the border, where the padding lacks nothing.
            lacking = (pixel_offset(self.mean.tolist()) / 255 - self.mean) / self.std
            bias = bias + link.apply(lacking.float()[None, :, None, None].expand(1, *source.shape))[0]
            factor = (1 / (255 * self.std)).float().view(node.groups, -1).repeat_interleave(len(bias) // node.groups, 0)
            link = replace(link, weight=node.weight * factor[:, :, None, None])
        if source.kind != "current" and not (source.kind == "input" and node.weight[0].numel() > PIXELS):
            return _Value(shape, (link,), bias)
        if source.kind == "current" and bool(((node.weight == 0) | (node.weight == 1)).all()):
            return _Value(shape, (replace(link, exact=True),), bias)
        self._add(wide := Population(f"{node.name}/wide", "wide", shape, (link,), group=f"{node.name}/wide"))
        return _Value(shape, (replace(_identity(wide, exact=True), shift=True),), bias)

    def _linear(self, node: Linear, value: _Value) -> _Value:
        if value.source is None:
            raise InputError(f"{node.name} (linear) reads a current that is not pooled: train with spike_head=True")
        size = value.source.shape[1:]
        weight = node.weight.reshape(len(node.weight), -1, *([1, 1] if value.pooled else size))
        if value.pooled:
            weight = weight.expand(-1, -1, *size) / (size[0] * size[1])
        link, bias = Link(value.source.name, weight, origin=node.name), node.bias[:, None, None]
        if value.bias is not None:
            bias = bias + link.apply(value.bias[None])[0]
        return _Value((len(weight), 1, 1), (link,), bias)

    def _pool(self, node: Pool, value: _Value) -> _Value:
        shape = self._shape(node.name)
        window = torch.ones(shape[0], 1, *node.kernel)
        if node.pool == "max":
            if value.source is None or value.source.kind not in _BINARY:
                raise InputError(
                    f"{node.name} (max pooling) of what is not plain spikes: neurons can only say whether any fired; "
                    f"stem='cifar' has no pooling"
                )
            link = Link(
                value.source.name, window, node.stride, node.padding, groups=shape[0], exact=True, origin=node.name
            )
            return self._add(Population(node.name, "logic", shape, (link,)))
        if not self.graph.is_global(node):
            raise InputError(f"{node.name} (average pooling): only that of the whole map is supported")
        if value.source is None:
            value = self._stream(node.inputs[0], value)
        if value.source.kind != "current":
            return replace(value, pooled=True)
        # Sums of currents are long numbers; a part of their bits is enough for the classifier.
        link = Link(value.source.name, window / window[0].numel(), groups=shape[0], exact=True, origin=node.name)
        self._add(wide := Population(f"{node.name}/wide", "wide", shape, (link,), group=f"{node.name}/wide"))
        short = Population(
            node.name, "current", shape, (replace(_identity(wide, exact=True), shift=True),), group=node.name
        )
        return replace(
            self._add(short), bias=value.bias if value.bias is None else value.bias.mean((1, 2), keepdim=True)
        )

    def _gate(self, node: Gate, branch: _Value, shortcut: _Value) -> _Value:
        for name, value in zip(node.inputs, (branch, shortcut), strict=True):
            if value.source is None or value.source.kind not in _BINARY:
                raise InputError(f"{node.name} ({node.gate}) needs plain spikes, {name} sends something else")
        sign, threshold = (1, 1) if node.gate == "and" else (-1, 0)
        first = _identity(branch.source, exact=True)
        links = (replace(first, weight=sign * first.weight), _identity(shortcut.source, exact=True))
        return self._add(Population(node.name, "logic", branch.shape, links, threshold=threshold))

    def _sum(self, node: Add, a: _Value, b: _Value) -> _Value:
        if all(value.source is not None and value.source.kind in _SPIKES for value in (a, b)):
            links = tuple(_identity(value.source, exact=True) for value in (a, b))
            return self._add(Population(node.name, "count", a.shape, links))
        biases = [value.bias for value in (a, b) if value.bias is not None]
        return _Value(a.shape, self._links(a, b), sum(biases) if biases else None)


def _identity(source: Population, exact: bool) -> Link:
    return Link(source.name, torch.ones(source.shape[0], 1, 1, 1), groups=source.shape[0], exact=exact)
