"""A graph, run in torch: the reference that every exported file is compared with."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snnzoo import layers
from snnzoo.export.graph import LIF, Graph, Input, Output, unused
from snnzoo.fused import uncompiled
from snnzoo.models._spiking import encode
from snnzoo.neurons import lif_step
from snnzoo.rate import per_step, time_mean


@dataclass(frozen=True, eq=False)
class Run:
    """What a network did with some images.

    Attributes:
        logits: ``[B, num_classes]``, averaged over time.
        spikes: of each LIF layer, by its name, ``[T, B, ...]``.
        membranes: before the reset, likewise; empty where an engine does not tell.
    """

    logits: Tensor
    spikes: dict[str, Tensor]
    membranes: dict[str, Tensor]


@torch.no_grad()
def interpret(graph: Graph, images: Tensor, given: Mapping[str, Tensor] | None = None) -> Run:
    """Run the graph.

    Args:
        graph: of any model.
        images: ``[B, C, H, W]``, shown at each of ``graph.num_steps`` steps, or ``[B, T, C, H, W]``, one for each.
        given: spikes ``[T, B, ...]`` by LIF layer that the layers after it receive instead of its own.

    Raises:
        InputError: images of another shape.
    """
    series, num_steps = encode(images, graph.input.shape[0], graph.num_steps, as_signal=False)
    averaged = graph.averaged_from()
    values, spikes, membranes = {}, {}, {}
    for node in graph:
        xs = [values[name] for name in node.inputs]
        if isinstance(node, Input):
            value = series
        elif isinstance(node, LIF):
            steps, v = [], None
            for current in xs[0].expand(num_steps, *xs[0].shape[1:]):
                u, s, v = lif_step(current, v, node.params)
                steps.append((s, u))
            spikes[node.name], membranes[node.name] = (torch.stack(x) for x in zip(*steps, strict=True))
            value = given[node.name] if given else spikes[node.name]
        elif len(xs) == 1:
            value = per_step(node.apply, xs[0])
        else:
            value = node.apply(*xs)
        if node.name == averaged:
            value = time_mean(value, graph.output.decay)[None]
        values[node.name] = value
        if isinstance(node, Output):
            return Run(value[0], spikes, membranes)
    raise AssertionError("a graph ends with its output")


@torch.no_grad()
@uncompiled()
def watch(model: nn.Module, images: Tensor) -> Run:
    """The same of the model itself, in evaluation mode."""
    spikes = {}

    def keep(name):
        def hook(module, args, output):
            spikes[unused(name, spikes)] = output

        return hook

    handles = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if isinstance(module, layers.LIF)
    ]
    training = model.training
    try:
        logits = model.eval()(images)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return Run(logits, spikes, {})
