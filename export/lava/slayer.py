"""A trained network as SLAYER blocks of lava-dl, to go on training there. Runs in the Python 3.10 of ``make lava-env``.

SLAYER's CUBA neuron (``lava.lib.dl.slayer.neuron.cuba``) with ``current_decay=1``, so that the synapse has no memory,
is our LIF with a hard reset, on a grid of ``1 / (64 scale)``::

    u[t] = trunc(v[t-1] * (4096 - d) / 4096) + trunc(I[t])     d = round(4096 (1 - decay))
    v[t] = 0 where u[t] fires, else u[t]

Up to a scale of about 2^11 it fires above the threshold, beyond that at it, as we do: it adds 0.01 of a grid step to
the threshold, which float32 then no longer resolves.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from snnzoo.errors import InputError
from snnzoo.export.graph import LIF, Add, Conv, Flatten, Gate, Graph, Linear, Node, Pool, ReLU
from snnzoo.export.interpret import Run
from snnzoo.export.trace import trace
from snnzoo.models._spiking import encode
from snnzoo.neurons import LIFParams
from snnzoo.rate import time_mean

DECAY_STEPS = 1 << 12  # Loihi's decays are 12-bit numbers
FINE_SCALE = 1 << 16  # the grid is then 2^-22, as fine as float32 at the threshold
MAX_WEIGHT, MAX_BIAS, MAX_THRESHOLD = 254, 4095, (1 << 17) - 1  # integers on the chip: 8 bits in steps of 2, 13, 17


def to_slayer(
    model: nn.Module, input_size: tuple[int, int, int] | None = None, *, quantize: bool = False
) -> "SlayerNetwork":
    """A trained model with its batch norms folded, as a network of ``lava.lib.dl.slayer.block.cuba`` blocks.

    Args:
        model: a spiking zoo model with ``reset='hard'``; it is not changed.
        input_size: ``(C, H, W)`` of the images; the model's ``pretrained_cfg`` says by default.
        quantize: train as for the chip: weights through SLAYER's 8-bit hook, biases as integers of 13 bits, and the
            states on the grid of that scale. Otherwise weights are floats, and so are the states but for rounding.

    Raises:
        InputError: what SLAYER's neurons and blocks cannot express, each layer named, with the reason and the remedy;
            or lava-dl is not installed.
    """
    graph = trace(model, input_size)
    reasons = refusals(graph)
    if reasons:
        raise InputError("no lava-dl network: " + "; ".join(reasons))
    return SlayerNetwork(graph, quantize)


def refusals(graph: Graph) -> list[str]:
    """Why there are no SLAYER blocks for a graph: each reason with its nodes; none if there are."""
    reasons: dict[str, list[str]] = {}
    for node in graph:
        why = _refusal(graph, node)
        if why:
            reasons.setdefault(why, []).append(f"{node.name} ({node.kind})")
    if not graph.lifs:
        reasons.setdefault("it has no LIF layer, and SLAYER trains spiking networks", []).append(graph.name)
    return [f"{', '.join(names)}: {why}" for why, names in reasons.items()]


def _refusal(graph: Graph, node: Node) -> str:
    if isinstance(node, LIF) and node.params.reset == "soft":
        return "reset='soft', and SLAYER's neurons go to zero after a spike: train with reset='hard'"
    if isinstance(node, LIF) and node.params.threshold * FINE_SCALE > MAX_THRESHOLD:
        limit = MAX_THRESHOLD / FINE_SCALE
        return f"threshold {node.params.threshold:g} is above {limit:.3g}: train with threshold=1, SLAYER's usual one"
    if isinstance(node, Gate):
        return f"SEW's {node.gate.upper()}, and SLAYER joins currents by adding them: train with connect='add'"
    if isinstance(node, Pool) and node.pool == "max":
        return "SLAYER has no max pooling: train with stem='cifar' and strided convolutions"
    if isinstance(node, Pool) and not graph.linear_behind(node):
        return "average pooling that is not global and before a linear layer: use strided convolutions"
    if isinstance(node, ReLU):
        return "the activation of an ANN: take the spiking model of the same shape, snn_…"
    return ""


def _slayer():
    try:
        from lava.lib.dl import slayer
    except ImportError as error:
        raise InputError(
            f"SLAYER needs {error.name}, which runs on Python 3.10 only: `make lava-env` makes an environment with it, "
            f"or there pip install 'snnzoo[lava]'"
        ) from error
    return slayer


class Bias(nn.Module):
    """What a folded batch norm adds to a current. SLAYER has no bias but what a neuron's ``norm`` adds: this is one.

    ``weight`` ``[C]`` is trained. ``bias``, the integers of the chip, is what SLAYER's own export reads.
    """

    def __init__(self, values: Tensor, scale: int | None):
        super().__init__()
        self.weight = nn.Parameter(values.clone())
        self.scale = scale  # None: not rounded

    @property
    def values(self) -> Tensor:
        if self.scale is None:
            return self.weight
        rounded = _slayer().utils.quantize(self.weight, step=1 / self.scale)
        return rounded.clamp(-MAX_BIAS / self.scale, MAX_BIAS / self.scale)

    @property
    def bias(self) -> Tensor:
        return torch.round(self.values.detach() * (self.scale or FINE_SCALE))

    def forward(self, current: Tensor) -> Tensor:
        """``[B, C, ..., T]`` to the same."""
        return current + self.values.view(-1, *[1] * (current.ndim - 2))


class WholeUnits(nn.Module):
    """What is left of weighted currents, which have more digits than other currents, when they are shifted to be added
    to those: whole units of ``1 / scale``, rounded down. The gradient passes straight through."""

    def __init__(self, scale: int):
        super().__init__()
        self.scale = scale

    def forward(self, current: Tensor) -> Tensor:
        """``[B, C, ..., T]`` to the same."""
        return current + (torch.floor(current * self.scale) / self.scale - current).detach()


class SlayerNetwork(nn.Module):
    """SLAYER blocks, wired as the graph is. Made by :func:`to_slayer`.

    A convolution or linear layer and the neurons behind it are one block; neurons that read a sum are a block of their
    own, and a convolution that feeds a sum is a SLAYER synapse with its bias. Layers follow each other within a step
    (``delay_shift=False``), so T steps in are T steps out.

    Attributes:
        blocks: by the name of the layer that ends the block, with ``_`` for ``.``: ``blocks['layer1_0_act1']``.
        graph: what it computes: the model's, with the decays of 12 bits that SLAYER has.
        scales: of each node, how many of the chip's units a current of one is; without ``quantize`` of the states only.
    """

    def __init__(self, graph: Graph, quantize: bool):
        super().__init__()
        nodes = tuple(
            dataclasses.replace(node, params=_on_grid(node.params)) if isinstance(node, LIF) else node for node in graph
        )
        self.graph = dataclasses.replace(graph, nodes=nodes)
        self.blocks = nn.ModuleDict()
        self._wiring: list[tuple[str, tuple[str, ...]]] = []  # in order: what is computed, from what
        self.scales = _scales(self.graph) if quantize else {node.name: FINE_SCALE for node in self.graph}
        build = _Build(_slayer(), self.graph, self.scales, quantize)
        for node in self.graph:
            block, inputs = build(node)
            if block is not None:
                self.blocks[_key(node.name)] = block
            if inputs:
                self._wiring.append((node.name, inputs))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W, T]``, SLAYER's layout (:meth:`frames` makes it of images), to ``[B, classes, T]``; the mean
        over T (:meth:`read_out`) is what the model calls its logits."""
        values = {self.graph.input.name: x}
        for name, inputs in self._wiring:
            xs = [values[i] for i in inputs]
            key = _key(name)
            values[name] = self.blocks[key](*xs) if key in self.blocks else sum(xs)
        return values[self.graph.output.inputs[0]]

    def frames(self, images: Tensor) -> Tensor:
        """Images ``[B, C, H, W]``, repeated T times, or frames ``[B, T, C, H, W]``, as ``[B, C, H, W, T]``."""
        series, num_steps = encode(images, self.graph.input.shape[0], self.graph.num_steps, as_signal=False)
        return series.expand(num_steps, *series.shape[1:]).movedim(0, -1)

    def read_out(self, outputs: Tensor) -> Tensor:
        """Outputs at each step ``[B, classes, T]`` to logits ``[B, classes]``, with the model's ``readout_decay``."""
        return time_mean(outputs.movedim(-1, 0), self.graph.output.decay)


@torch.no_grad()
def watch_slayer(network: SlayerNetwork, images: Tensor) -> Run:
    """What the network does with images, as :func:`~snnzoo.export.interpret.watch` tells of a model."""
    spikes: dict[str, Tensor] = {}

    def keep(name):
        return lambda module, args, output: spikes.update({name: output.movedim(-1, 0)})

    handles = [network.blocks[_key(node.name)].register_forward_hook(keep(node.name)) for node in network.graph.lifs]
    try:
        logits = network.read_out(network(network.frames(images)))
    finally:
        for handle in handles:
            handle.remove()
    return Run(logits, spikes, {})


def _key(name: str) -> str:
    return name.replace(".", "_")


def _on_grid(params: LIFParams) -> LIFParams:
    return dataclasses.replace(params, decay=1 - round(DECAY_STEPS * (1 - params.decay)) / DECAY_STEPS)


class _Build:
    """Makes the block of each node, and says what it reads."""

    def __init__(self, slayer, graph: Graph, scales: dict[str, int], quantize: bool):
        self.slayer, self.graph, self.scales, self.quantize = slayer, graph, scales, quantize

    def __call__(self, node: Node) -> tuple[nn.Module | None, tuple[str, ...]]:
        """Both empty: it is part of another node's block. No block: a sum."""
        cuba = self.slayer.block.cuba
        if isinstance(node, Add):
            return None, node.inputs
        if isinstance(node, Flatten):
            source = self.graph[node.inputs[0]]
            return cuba.Flatten(), source.inputs if isinstance(source, Pool) else node.inputs
        if isinstance(node, LIF):
            source = self.graph[node.inputs[0]]
            if self._is_fused(source):
                neuron = self._neuron(node, Bias(source.bias, self._bias_scale(source)))
                return self._block(source, neuron, partial(cuba.Dense, delay_shift=False)), source.inputs
            block = cuba.Input(self._neuron(node), delay_shift=False)
            block.pre_hook_fx = nn.Identity()  # its hook would clip the sum to what one 8-bit weight can be
            return block, node.inputs
        if isinstance(node, (Conv, Linear)) and not self._is_fused(node):
            return self._current(node), node.inputs
        return None, ()

    def _is_fused(self, node: Node) -> bool:
        """Whether a convolution or linear layer is one block with the neurons behind it."""
        readers = self.graph.readers(node.name)
        return isinstance(node, (Conv, Linear)) and len(readers) == 1 and isinstance(readers[0], LIF)

    def _neuron(self, node: LIF, bias: Bias | None = None) -> dict:
        """SLAYER's neuron_params. Its surrogate is ``exp(-|x| / tau) / (2 tau)``: the width is set so that at the
        threshold it has the value of ours (it multiplies tau_grad by 100 thresholds and divides scale_grad by 10)."""
        params = node.params
        peak = float(params.surrogate.derivative(torch.zeros(1)))
        return {
            "threshold": params.threshold,
            "current_decay": 1,
            "voltage_decay": 1 - params.decay,
            "tau_grad": 1 / (2 * peak) / (100 * params.threshold),
            "scale_grad": 10,
            "scale": self.scales[node.name],
            "norm": None if bias is None else lambda: bias,
        }

    def _bias_scale(self, node: Node) -> int | None:
        return self.scales[node.name] if self.quantize else None

    def _settings(self, node: Conv) -> dict:
        return {
            "in_features": node.weight.shape[1] * node.groups,
            "out_features": node.weight.shape[0],
            "kernel_size": tuple(node.weight.shape[2:]),
            **{name: getattr(node, name) for name in ("stride", "padding", "dilation", "groups")},
        }

    def _block(self, node: Conv | Linear, neuron: dict, dense: Callable) -> nn.Module:
        hook = {} if self.quantize else {"pre_hook_fx": None}  # without it SLAYER takes its 8-bit hook
        if isinstance(node, Conv):
            block = self.slayer.block.cuba.Conv(neuron, **self._settings(node), delay_shift=False, **hook)
            block.synapse.weight.data = node.weight[..., None].clone()
            return block
        weight = self._linear_weight(node)
        block = dense(neuron, weight.shape[1], weight.shape[0], **hook)
        block.synapse.weight.data = weight[:, :, None, None, None]
        return block

    def _linear_weight(self, node: Linear) -> Tensor:
        """``[O, F]``; with those of the global average pooling before it, for each pixel its part."""
        flatten = self.graph[node.inputs[0]]
        pool = self.graph[flatten.inputs[0]] if isinstance(flatten, Flatten) else flatten
        if not isinstance(pool, Pool):
            return node.weight.clone()
        pixels = math.prod(pool.kernel)
        return node.weight.repeat_interleave(pixels, dim=1) / pixels

    def _current(self, node: Conv | Linear) -> nn.Module:
        """A layer without neurons: the last one, or one that feeds a sum."""
        bias = Bias(node.bias, self._bias_scale(node))
        neuron = {"threshold": 1, "current_decay": 1, "voltage_decay": 1, "scale": self.scales[node.name]}
        if isinstance(node, Linear):
            affine = partial(self.slayer.block.cuba.Affine, dynamics=False)
            return nn.Sequential(self._block(node, neuron, affine), bias)
        synapse = self.slayer.synapse.Conv(**self._settings(node))
        synapse.weight.data = node.weight[..., None].clone()
        if not self.quantize:
            return nn.Sequential(synapse, bias)
        synapse.pre_hook_fx = self.slayer.neuron.cuba.Neuron(**neuron).quantize_8bit
        if _carries_current(self.graph, self.graph[node.inputs[0]]):
            return nn.Sequential(synapse, WholeUnits(self.scales[node.name]), bias)
        return nn.Sequential(synapse, bias)


def _carries_current(graph: Graph, node: Node) -> bool:
    return isinstance(node, (Conv, Linear)) or (
        isinstance(node, Add) and any(_carries_current(graph, graph[name]) for name in node.inputs)
    )


def _scales(graph: Graph) -> dict[str, int]:
    """For each node the integers of the chip per unit: the largest power of two at which weights and biases fit. What
    flows into one neuron has one scale: a group is the layers and sums whose currents come together."""
    group: dict[str, str] = {}

    def root(name: str) -> str:
        while group.setdefault(name, name) != name:
            name = group[name]
        return name

    for node in graph:
        if isinstance(node, (LIF, Add)):
            for name in node.inputs:
                if _carries_current(graph, graph[name]):
                    group[root(name)] = root(node.name)
    largest: dict[str, int] = {}
    for node in graph:
        limit = MAX_THRESHOLD
        if isinstance(node, LIF):
            limit = MAX_THRESHOLD / node.params.threshold
        elif isinstance(node, (Conv, Linear)):
            weight, bias = (float(t.abs().max()) for t in node.tensors)
            limit = min(MAX_WEIGHT / weight if weight else limit, MAX_BIAS / bias if bias else limit)
        largest[root(node.name)] = min(largest.get(root(node.name), MAX_THRESHOLD), limit)
    return {node.name: 1 << max(0, math.floor(math.log2(largest[root(node.name)]))) for node in graph}


__all__ = ["Bias", "SlayerNetwork", "WholeUnits", "refusals", "to_slayer", "watch_slayer"]
