"""NIR files (Neuromorphic Intermediate Representation, https://neuroir.org): spiking networks for other simulators.

NIR describes neurons in continuous time and says neither how a simulator steps nor what a spike leaves behind. So a
file here is written for importers that step as ``u = decay v + I`` with ``dt = 1e-4`` s, in a form that was found to be
exact there, and the discrete numbers (decay, threshold, reset, dt, T) are in the metadata as well.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snnzoo.errors import InputError
from snnzoo.export.graph import (
    LIF,
    Add,
    Conv,
    Flatten,
    Gate,
    Graph,
    Input,
    Linear,
    Node,
    Output,
    Pool,
    ReLU,
)
from snnzoo.export.interpret import interpret, watch
from snnzoo.export.parity import compare, images_or_noise
from snnzoo.export.report import make_report, new_export, write_report
from snnzoo.export.trace import float_copy, trace
from snnzoo.neurons import LIFParams
from snnzoo.version import __version__

DT = 1e-4  # s; what importers assume that have no option for it
MARGIN = 1e-6  # some fire above the threshold and not at it: so it lies this much lower, in relative terms


@dataclass(frozen=True)
class Target:
    """What one importer makes of a file; by reset, how it has to be called, or None where it cannot do it."""

    hard: str | None
    soft: str | None
    why_not: str = ""
    average_pool: bool = True
    smallest_decay: float = 0.0  # it has to be above this


TARGETS = {
    "any": Target(
        hard="the default of snntorch, norse (with dt=1e-4) and SpikingJelly",
        soft=None,
        why_not="NIR does not say what a spike leaves behind, and importers set the membrane to zero",
        average_pool=False,
        smallest_decay=1e-9,
    ),
    "snntorch": Target(
        hard="snntorch.import_nir.import_from_nir(graph)",
        soft=None,
        why_not="its importer sets the membrane to zero after a spike (reset_mechanism='zero')",
    ),
    "norse": Target(
        hard="norse.torch.from_nir(graph, dt=1e-4)",
        soft="norse.torch.from_nir(graph, dt=1e-4, reset_method=norse.torch.functional.reset.reset_subtract)",
        average_pool=False,
    ),
    "spikingjelly": Target(
        hard="spikingjelly.activation_based.nir_exchange.import_from_nir(graph)",
        soft="spikingjelly.activation_based.nir_exchange.import_from_nir(graph), then v_reset = None on all neurons",
        smallest_decay=1e-9,
    ),
}


def export_nir(
    model: nn.Module,
    path: str | Path,
    input_size: tuple[int, int, int] | None = None,
    *,
    target: str = "any",
    images: Tensor | None = None,
    accuracy: Any = None,
    labels: list[str] | None = None,
) -> dict[str, Any]:
    """Write a spiking model as a NIR file, read it back, and compare spikes and logits.

    The file computes one step; the answer is the mean of the steps' outputs (weighted as :func:`snnzoo.rate.time_mean`
    does, if the metadata have a ``readout_decay``).

    Args:
        model: a spiking zoo model; it is not changed.
        path: the file to write; it and its reports (``.json``, ``.txt``) appear only when the comparison has passed.
        input_size: ``(C, H, W)`` of the images; the model's ``pretrained_cfg`` says by default.
        target: which importer it is for, one of :data:`TARGETS`.
        images: ``[B, C, H, W]`` to compare on; three of noise by default.
        accuracy: top-1 in percent of a function from images to logits, for the report.
        labels: names of the classes, for the file's metadata.

    Returns:
        The report.

    Raises:
        InputError: a node that NIR or the target cannot express, named, with the reason; a path that cannot be
            written; the extra ``nir`` is not installed.
        ParityError: the file that was read back computes something else than the model.
    """
    nir = _nir()
    if target not in TARGETS:
        raise InputError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    with new_export(path) as (temporary, *reports):
        model = float_copy(model)
        graph = trace(model, input_size)
        if labels:
            graph.metadata["labels"] = labels
        written = to_nir(graph, target)
        nir.write(str(temporary), written)
        loaded = load(temporary)
        images, kind = images_or_noise(graph, images)
        run = interpret(loaded, images)
        parity = compare(graph, images, watch(model, images), run).check(f"{str(path)!r}, read back,")
        call = getattr(TARGETS[target], graph.lifs[0].params.reset)  # all have the same
        report = make_report(
            graph, "nir", path, parity, importer=target, call=call, dt=DT,
            parity_images=kind, versions={"nir": nir.version},
        )  # fmt: skip
        report["changed"] += _changes(graph)
        if accuracy:
            report["accuracy"] = {
                "PyTorch": accuracy(model),
                "NIR, read back": accuracy(lambda x: interpret(loaded, x).logits),
            }
        write_report(report, graph, temporary, *reports)
    return report


def _nir():
    try:
        import nir
    except ImportError as error:
        raise InputError(f"NIR export needs {error.name}: pip install 'snnzoo[nir]'") from error
    return nir


def refusals(graph: Graph, target: str) -> list[str]:
    """Why NIR, or its importer ``target``, cannot express the graph: each reason with its nodes; none if it can."""
    importer = TARGETS[target]
    soft = [] if importer.soft else [name for name in TARGETS if TARGETS[name].soft and not refusals(graph, name)]
    instead = f"exact with --target {', '.join(soft)}, or train" if soft else "train"
    reasons: dict[tuple[str, str], list[str]] = {}
    first = graph.lifs[0] if graph.lifs else None
    for node in graph:
        why = ""
        if isinstance(node, LIF):
            p = node.params
            if p.reset == "soft" and importer.soft is None:
                why = f"reset='soft': {importer.why_not}; {instead} with reset='hard'"
            elif p.reset != first.params.reset:
                why = f"reset={p.reset!r}: {first.name} has another one, and importers take one for all neurons"
            elif p.decay == 1:
                why = "decay=1: a neuron without leak has no time constant that importers agree on"
            elif p.decay < importer.smallest_decay:
                why = f"decay={p.decay:g}: --target {target} needs a time constant above dt"
        elif isinstance(node, Gate):
            why = f"SEW's {node.gate.upper()}: NIR joins values by adding them; connect='add' can be written"
        elif isinstance(node, Pool) and node.pool == "max":
            why = "NIR has no max pooling; stem='cifar' and strided convolutions do without"
        elif isinstance(node, Pool) and not importer.average_pool and not graph.linear_behind(node):
            why = f"--target {target} has no average pooling but the global one before a linear layer"
        elif isinstance(node, Conv) and node.groups > 1:
            why = f"groups={node.groups}: the package nir takes it for one of fewer input channels"
        elif isinstance(node, ReLU):
            why = "NIR describes spiking networks, this is an ANN's activation"
        if why:
            reasons.setdefault((node.kind, why), []).append(node.name)
    if not graph.lifs:
        reasons.setdefault(("model", "it has no LIF layer"), []).append(graph.name)
    return [f"{_some(names)} ({kind}): {why}" for (kind, why), names in reasons.items()]


def _some(names: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _changes(graph: Graph) -> list[str]:
    changes = [f"thresholds are lowered by {MARGIN:g} of themselves, for importers that fire above and not at them"]
    changes += [
        f"{node.name}: folded into the weights of the linear layer behind it"
        for node in graph
        if isinstance(node, Pool) and graph.linear_behind(node)
    ]
    changes += [
        f"{node.name}: a 1x1 convolution that passes on its input, since several layers read the sum"
        for node in graph
        if isinstance(node, Add) and not _is_plain_sum(graph, node)
    ]
    return changes


def _is_plain_sum(graph: Graph, node: Add) -> bool:
    """Two edges into the one layer that reads it say the same, as long as they come from two nodes."""
    readers = graph.readers(node.name)
    distinct = len(set(node.inputs)) == 2
    return distinct and len(readers) == 1 and isinstance(readers[0], (LIF, Conv))


def to_nir(graph: Graph, target: str = "any"):
    """The graph as a ``nir.NIRGraph``.

    Raises:
        InputError: what ``target`` cannot express, every node that is in the way.
    """
    nir = _nir()
    reasons = refusals(graph, target)
    if reasons:
        raise InputError(f"no NIR file for {target!r}: " + "; ".join(reasons))
    nodes, edges = {}, []
    sources: dict[str, tuple[str, ...]] = {}  # the NIR nodes whose sum is a node's value
    for node in graph:
        inputs = tuple(source for name in node.inputs for source in sources[name])
        shape = graph.shapes[node.name]
        before = graph.shapes[node.inputs[0]] if node.inputs else shape
        if isinstance(node, Add) and _is_plain_sum(graph, node):
            sources[node.name] = inputs
            continue
        if isinstance(node, Pool) and graph.linear_behind(node):
            sources[node.name] = inputs
            continue
        nodes[node.name] = _convert(nir, graph, node, before, shape)
        edges += [(source, node.name) for source in dict.fromkeys(inputs)]
        sources[node.name] = (node.name,)
    metadata = {
        "model": graph.name,
        "num_steps": graph.num_steps,
        "dt": DT,
        "target": target,
        "made_by": f"snnzoo {__version__}",
        "nodes": "\n".join(nodes),  # in their order, which the file does not keep
    }
    if graph.output.decay != 1:
        metadata["readout_decay"] = graph.output.decay
    metadata |= {key: np.array(graph.metadata[key]) for key in ("mean", "std") if graph.metadata.get(key)}
    if graph.metadata.get("labels"):
        metadata["labels"] = "\n".join(map(str, graph.metadata["labels"]))
    return nir.NIRGraph(nodes, edges, metadata=metadata)


def _convert(nir, graph: Graph, node: Node, before: tuple[int, ...], shape: tuple[int, ...]):
    if isinstance(node, Input):
        return nir.Input({"input": np.array(shape)})
    if isinstance(node, Output):
        return nir.Output({"output": np.array(shape)})
    if isinstance(node, Add):  # a sum of which twice the same value is a part is twice the value
        scale = 2.0 if node.inputs[0] == node.inputs[1] else 1.0
        identity = scale * np.eye(shape[0], dtype=np.float32)[:, :, None, None]
        return nir.Conv2d(shape[1:], identity, (1, 1), (0, 0), (1, 1), 1, np.zeros(shape[0], np.float32))
    if isinstance(node, Conv):
        return nir.Conv2d(
            before[1:], node.weight.numpy(), node.stride, node.padding, node.dilation, node.groups, node.bias.numpy()
        )
    if isinstance(node, Linear):
        return nir.Affine(_with_pool(graph, node), node.bias.numpy())
    if isinstance(node, Flatten):
        # Of a pooling that moved into the linear layer, the whole image is flattened.
        pool = graph[node.inputs[0]]
        if isinstance(pool, Pool) and graph.linear_behind(pool):
            before = graph.shapes[pool.inputs[0]]
        # Counted from the end, the axes are the same with a batch before them.
        return nir.Flatten({"input": np.array(before)}, start_dim=-len(before), end_dim=-1)
    if isinstance(node, Pool):
        return nir.AvgPool2d(np.array(node.kernel), np.array(node.stride), np.array(node.padding))
    assert isinstance(node, LIF)
    return _neurons(nir, node.params, shape)


def _with_pool(graph: Graph, node: Linear) -> np.ndarray:
    weight = node.weight.numpy()
    flatten = graph[node.inputs[0]]
    pool = graph[flatten.inputs[0]] if isinstance(flatten, Flatten) else None
    if isinstance(pool, Pool) and graph.linear_behind(pool):
        pixels = pool.kernel[0] * pool.kernel[1]
        weight = (np.repeat(weight.astype(np.float64), pixels, axis=1) / pixels).astype(np.float32)
    return weight


def _neurons(nir, p: LIFParams, shape: tuple[int, ...]):
    """The neuron in continuous time, which an Euler step of dt turns into ours; float64, or importers round decay."""
    full = np.ones(shape)
    tau, threshold = DT / (1 - p.decay), p.threshold * (1 - MARGIN)
    metadata = {"decay": p.decay, "threshold": p.threshold, "reset": p.reset, "dt": DT}
    zero = 0 * full
    if p.reset == "hard":  # dv = dt / tau (I - v), so v is (1 - decay) times our membrane
        return nir.LIF(
            tau=tau * full, r=full, v_leak=zero, v_reset=zero, v_threshold=(1 - p.decay) * threshold * full,
            metadata=metadata,
        )  # fmt: skip
    # A synapse that forgets within one step, and a resistance that cancels dt / tau: v is our membrane itself, so that
    # an importer which subtracts the threshold subtracts ours.
    return nir.CubaLIF(
        tau_mem=tau * full, tau_syn=DT * full, r=tau / DT * full, v_leak=zero, v_reset=zero,
        v_threshold=threshold * full, w_in=full, metadata=metadata,
    )  # fmt: skip


def load(path: str | Path) -> Graph:
    """Read a file that :func:`export_nir` wrote; :func:`~snnzoo.export.interpret.interpret` runs what comes back.

    Raises:
        InputError: no such file, not a NIR file, or one without the numbers that we put into the metadata.
    """
    nir = _nir()
    if not Path(path).is_file():
        raise InputError(f"no NIR file at {str(path)!r}")
    try:
        read = nir.read(str(path))
    except Exception as error:  # h5py and nir have many ways
        raise InputError(f"{str(path)!r} cannot be read as NIR: {error}") from error
    try:
        nodes: list[Node] = []
        decay = read.metadata.get("readout_decay", 1.0)
        for name in order(read):
            inputs = tuple(a for a, b in read.edges if b == name)
            node = read.nodes[name]
            while len(inputs) > 1 and not isinstance(node, nir.Input):
                join = f"{name}/sum{len(inputs)}" if len(inputs) > 2 else f"{name}/sum"
                nodes.append(Add(join, inputs[:2]))
                inputs = (join, *inputs[2:])
            nodes.append(_restore(nir, node, name, inputs, decay))
        metadata = {key: read.metadata[key].tolist() for key in ("mean", "std") if key in read.metadata}
        labels = read.metadata.get("labels")
        metadata["labels"] = None if labels is None else _text(labels).split("\n")
        return Graph(
            tuple(nodes), num_steps=int(read.metadata["num_steps"]), name=_text(read.metadata["model"]),
            metadata=metadata,
        )  # fmt: skip
    except KeyError as error:
        raise InputError(f"{str(path)!r} was not written by snnzoo: its metadata lacks {error}") from error


def order(read) -> list[str]:
    """The names of a file's nodes, each behind those that it reads."""
    return _text(read.metadata["nodes"]).split("\n")


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _restore(nir, node, name: str, inputs: tuple[str, ...], readout_decay: float) -> Node:
    if isinstance(node, nir.Input):
        return Input(name, (), tuple(int(n) for n in node.input_type["input"]))
    if isinstance(node, nir.Output):
        return Output(name, inputs, readout_decay)
    if isinstance(node, nir.Conv2d):
        stride, padding, dilation = (tuple(int(n) for n in x) for x in (node.stride, node.padding, node.dilation))
        weight, bias = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
        return Conv(name, inputs, weight, bias, stride, padding, dilation, int(node.groups))
    if isinstance(node, nir.Affine):
        return Linear(name, inputs, torch.from_numpy(node.weight), torch.from_numpy(node.bias))
    if isinstance(node, nir.Flatten):
        return Flatten(name, inputs)
    if isinstance(node, nir.AvgPool2d):
        kernel, stride, padding = (tuple(int(n) for n in x) for x in (node.kernel_size, node.stride, node.padding))
        return Pool(name, inputs, "avg", kernel, stride, padding)
    if isinstance(node, (nir.LIF, nir.CubaLIF)):
        decay, threshold = float(node.metadata["decay"]), float(node.metadata["threshold"])
        params = LIFParams(decay, threshold, _text(node.metadata["reset"]))
        meant = _neurons(nir, params, node.v_threshold.shape)
        if type(node) is not type(meant):
            raise InputError(f"{name}: a {type(node).__name__} is not {params}, which its metadata names")
        for key, value in vars(meant).items():
            if isinstance(value, np.ndarray) and not np.allclose(getattr(node, key), value, rtol=1e-9, atol=0):
                raise InputError(f"{name}: its {key} is not that of {params}, which its metadata names")
        return LIF(name, inputs, params)
    raise InputError(f"{name}: a {type(node).__name__} is nothing that snnzoo writes")
