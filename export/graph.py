"""One typed graph of a network: what every exporter starts from.

A node says what happens to one sample at one time step; shapes leave out time and batch. A LIF node alone has a memory,
and the output averages over time. Batch norms are gone: they are folded into the convolutions (:mod:`snnzoo.folding`).
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from snnzoo.errors import InputError
from snnzoo.neurons import LIFParams
from snnzoo.rate import checked_readout_decay

Shape = tuple[int, ...]
Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Node:
    """A value of the network and where it comes from.

    Attributes:
        name: the path in the model of the layer that computes it, ``layer1.0.conv1``; for what has no layer, that of
            the block and what it does, ``layer1.0.add``.
        inputs: names of the nodes that it reads.
    """

    name: str
    inputs: tuple[str, ...]

    arity: ClassVar[int] = 1
    kind: ClassVar[str] = "node"

    def infer(self, *shapes: Shape) -> Shape:
        """Shape of the output from those of the inputs; ValueError if they do not fit."""
        return shapes[0]

    def apply(self, *xs: Tensor) -> Tensor:
        """The value for one step, ``[N, *shape]`` each."""
        raise NotImplementedError  # Input and LIF: the interpreter's business

    def describe(self) -> str:
        """Its settings, for a person."""
        return ""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Its weights."""
        return tuple(t for t in (getattr(self, "weight", None), getattr(self, "bias", None)) if t is not None)


@dataclass(frozen=True, eq=False)
class Input(Node):
    """Images, or one frame for each step: ``shape`` is ``(C, H, W)``."""

    shape: Shape
    arity: ClassVar[int] = 0
    kind: ClassVar[str] = "input"

    def infer(self) -> Shape:
        return self.shape


@dataclass(frozen=True, eq=False)
class Conv(Node):
    """2d convolution: ``weight`` ``[O, C / groups, KH, KW]``, ``bias`` ``[O]``."""

    weight: Tensor
    bias: Tensor
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    kind: ClassVar[str] = "conv"

    def infer(self, shape: Shape) -> Shape:
        channels, *size = _image(shape)
        out, per_group, *kernel = self.weight.shape
        if channels != per_group * self.groups:
            raise ValueError(f"weights for {per_group * self.groups} channels, {channels} come in")
        if self.bias.shape != (out,):
            raise ValueError(f"{out} output channels, and a bias of shape {tuple(self.bias.shape)}")
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, kernel, strict=True)]
        return (out, *_slide(size, reach, self.stride, self.padding))

    def apply(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def describe(self) -> str:
        parts = [f"{self.weight.shape[2]}x{self.weight.shape[3]}", f"stride {self.stride[0]}"]
        parts += [f"dilation {self.dilation[0]}"] if self.dilation != (1, 1) else []
        parts += [f"groups {self.groups}"] if self.groups > 1 else []
        return ", ".join(parts)


@dataclass(frozen=True, eq=False)
class Linear(Node):
    """Linear layer: ``weight`` ``[O, F]``, ``bias`` ``[O]``."""

    weight: Tensor
    bias: Tensor
    kind: ClassVar[str] = "linear"

    def infer(self, shape: Shape) -> Shape:
        out, features = self.weight.shape
        if shape != (features,) or self.bias.shape != (out,):
            raise ValueError(f"weights {tuple(self.weight.shape)}, bias {tuple(self.bias.shape)}, input {shape}")
        return (out,)

    def apply(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, eq=False)
class LIF(Node):
    """Leaky integrate-and-fire neurons (:class:`~snnzoo.neurons.LIFParams`), their membranes zero at the start."""

    params: LIFParams
    kind: ClassVar[str] = "lif"

    def describe(self) -> str:
        return f"decay {self.params.decay:g}, threshold {self.params.threshold:g}, {self.params.reset} reset"


@dataclass(frozen=True, eq=False)
class ReLU(Node):
    """The activation of an ANN."""

    kind: ClassVar[str] = "relu"

    def apply(self, x: Tensor) -> Tensor:
        return F.relu(x)


POOLS = ("max", "avg")


@dataclass(frozen=True, eq=False)
class Pool(Node):
    """Maximum or mean over windows; the mean counts the padding."""

    pool: str
    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    kind: ClassVar[str] = "pool"

    def infer(self, shape: Shape) -> Shape:
        if self.pool not in POOLS:
            raise ValueError(f"pool must be one of {POOLS}, got {self.pool!r}")
        channels, *size = _image(shape)
        return (channels, *_slide(size, self.kernel, self.stride, self.padding))

    def apply(self, x: Tensor) -> Tensor:
        pool = F.max_pool2d if self.pool == "max" else F.avg_pool2d
        return pool(x, self.kernel, self.stride, self.padding)

    def describe(self) -> str:
        return f"{self.pool}, {self.kernel[0]}x{self.kernel[1]}, stride {self.stride[0]}"


@dataclass(frozen=True, eq=False)
class Add(Node):
    """Sum of two values."""

    arity: ClassVar[int] = 2
    kind: ClassVar[str] = "add"

    def infer(self, a: Shape, b: Shape) -> Shape:
        if a != b:
            raise ValueError(f"shapes {a} and {b} differ")
        return a

    def apply(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


GATES = ("and", "iand")


@dataclass(frozen=True, eq=False)
class Gate(Add):
    """Branch A and shortcut S of a SEW block: ``'and'``: A S; ``'iand'``: (1 - A) S (arXiv 2102.04159)."""

    gate: str
    kind: ClassVar[str] = "gate"

    def infer(self, a: Shape, b: Shape) -> Shape:
        if self.gate not in GATES:
            raise ValueError(f"gate must be one of {GATES}, got {self.gate!r}")
        return super().infer(a, b)

    def apply(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b if self.gate == "and" else (1 - a) * b

    def describe(self) -> str:
        return self.gate


@dataclass(frozen=True, eq=False)
class Flatten(Node):
    """``(C, H, W)`` to ``(C H W,)``."""

    kind: ClassVar[str] = "flatten"

    def infer(self, shape: Shape) -> Shape:
        return (math.prod(shape),)

    def apply(self, x: Tensor) -> Tensor:
        return x.flatten(1)


@dataclass(frozen=True, eq=False)
class Output(Node):
    """What the network answers: the mean of its input over time, weighted by ``decay`` (:func:`snnzoo.rate.time_mean`).

    Attributes:
        decay: what is left of the read-out's state after one step; 1 is the plain mean.
    """

    decay: float = 1.0
    kind: ClassVar[str] = "output"

    def __post_init__(self):
        object.__setattr__(self, "decay", checked_readout_decay(self.decay))

    def apply(self, x: Tensor) -> Tensor:
        return x

    def describe(self) -> str:
        return "" if self.decay == 1 else f"decay {self.decay:g}"


def _image(shape: Shape) -> Shape:
    if len(shape) != 3:
        raise ValueError(f"it takes (C, H, W), {shape} comes in")
    return shape


def _slide(size: Sequence[int], reach: Sequence[int], stride: Pair, padding: Pair) -> list[int]:
    result = [(n + 2 * p - r) // s + 1 for n, r, s, p in zip(size, reach, stride, padding, strict=True)]
    if min(result) < 1:
        raise ValueError(f"a window of {tuple(reach)} does not fit an image of {tuple(size)}")
    return result


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in an order in which each comes after what it reads; checked on construction.

    Attributes:
        nodes: the first is the Input, the last the Output.
        num_steps: T, for how many steps an image is shown; 1 for an ANN.
        name: of the model.
        folded: names of the batch norms that are folded away.
        changed: what is written differently than in the model, a sentence each.
        metadata: ``mean``, ``std``, ``labels``: how to prepare images and read the answer; None where unknown.

    Raises:
        InputError: a node that does not fit its inputs, is named twice, or that nothing reads.
    """

    nodes: tuple[Node, ...]
    num_steps: int = 1
    name: str = ""
    folded: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(init=False, default_factory=dict)  # of each node's output, by its name

    def __post_init__(self):
        if not self.nodes or not isinstance(self.nodes[0], Input) or not isinstance(self.nodes[-1], Output):
            raise InputError("a graph begins with an Input and ends with an Output")
        for node in self.nodes:
            where = f"node {node.name!r} ({node.kind})"
            if node.name in self.shapes:
                raise InputError(f"{where}: another node has the same name")
            if len(node.inputs) != node.arity:
                raise InputError(f"{where} has {len(node.inputs)} inputs, it takes {node.arity}")
            for name in node.inputs:
                if name not in self.shapes:
                    raise InputError(f"{where} reads {name!r}, which no node before it computes")
            try:
                self.shapes[node.name] = tuple(node.infer(*(self.shapes[name] for name in node.inputs)))
            except ValueError as error:
                raise InputError(f"{where}: {error}") from error
        for node in self.nodes[:-1]:
            if not self.readers(node.name):
                raise InputError(f"node {node.name!r} ({node.kind}): nothing reads it")

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __getitem__(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def readers(self, name: str) -> list[Node]:
        """The nodes that read ``name``."""
        return [node for node in self.nodes if name in node.inputs]

    @property
    def input(self) -> Input:
        return self.nodes[0]

    @property
    def output(self) -> Output:
        return self.nodes[-1]

    @property
    def lifs(self) -> list[LIF]:
        """The layers of neurons, in order."""
        return [node for node in self.nodes if isinstance(node, LIF)]

    @property
    def num_parameters(self) -> int:
        return sum(tensor.numel() for node in self.nodes for tensor in node.tensors)

    def is_global(self, node: Pool) -> bool:
        """Whether one window is the whole image."""
        return node.kernel == self.shapes[node.inputs[0]][1:] and node.padding == (0, 0)

    def linear_behind(self, pool: Pool) -> Linear | None:
        """The linear layer that global average pooling can be part of, if nothing else reads it."""
        (flatten, *others) = self.readers(pool.name)
        if others or not isinstance(flatten, Flatten) or not self.is_global(pool) or pool.pool != "avg":
            return None
        (linear, *others) = self.readers(flatten.name)
        return None if others or not isinstance(linear, Linear) else linear

    def averaged_from(self) -> str:
        """The name of the node whose output to average over time: what follows is linear and need not see each step."""
        node = self[self.output.inputs[0]]
        while isinstance(node, (Linear, Flatten, Pool)) and len(self.readers(node.name)) == 1:
            if isinstance(node, Pool) and node.pool != "avg":
                break
            node = self[node.inputs[0]]
        return node.name

    def table(self) -> str:
        """One line for each node: name, kind, what it reads, shape of its output, parameters, settings."""
        rows = [("node", "kind", "reads", "shape", "parameters", "")]
        for node in self.nodes:
            size = sum(tensor.numel() for tensor in node.tensors)
            shape = "x".join(map(str, self.shapes[node.name]))
            rows.append(
                (node.name, node.kind, ", ".join(node.inputs), shape, f"{size:,}" if size else "", node.describe())
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
        return "\n".join(lines) + "\n"


def unused(name: str, taken: Collection[str]) -> str:
    """``name``, or for a layer that runs again ``name_1``, ``name_2``, …"""
    return next(n for n in (name, *(f"{name}_{i}" for i in range(1, len(taken) + 2))) if n not in taken)


def to_pair(value: int | Sequence[int]) -> Pair:
    """Torch's ints that stand for two."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def frozen(tensor: Tensor) -> Tensor:
    """A weight for a node: float32, on the CPU, a copy of its own."""
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
