"""A graph as an ONNX model, under names that a person can read.

A value is one tensor for all steps as long as nothing before it has a memory (``[B, ...]``); behind a LIF it is a list
of T of them, or all of them stacked along the batch (``[T B, ...]``), whichever is asked for, so that each convolution
is one node that runs once. In the stateful form T is 1 and the membranes come in and go out.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from snnzoo.export.graph import LIF, Add, Conv, Flatten, Gate, Graph, Input, Linear, Node, Output, Pool, ReLU
from snnzoo.version import __version__

FLOAT = TensorProto.FLOAT


@dataclass
class _Value:
    """A tensor's name for all steps together, T of them, or both; one if T is 1 or each step has the same."""

    stacked: str | None = None
    steps: list[str] | None = None
    constant: bool = False


def build(graph: Graph, mode: str, dynamic_batch: bool, opset: int) -> tuple[onnx.ModelProto, dict[str, list[str]]]:
    """The ONNX model, and the names of each LIF layer's spikes, one for each step."""
    builder = _Builder(graph, mode == "stateful", opset)
    for node in graph:
        builder.visit(node)
    batch = "batch" if dynamic_batch else 1
    proto = helper.make_graph(
        builder.nodes,
        graph.name or "snnzoo",
        [helper.make_tensor_value_info(name, FLOAT, [batch, *shape]) for name, shape in builder.inputs],
        [helper.make_tensor_value_info(name, FLOAT, [batch, *shape]) for name, shape in builder.outputs],
        builder.weights,
    )
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        proto,
        producer_name="snnzoo",
        producer_version=__version__,
        opset_imports=imports,
        ir_version=helper.find_min_ir_version_for(imports),
    )
    return model, builder.spikes


class _Builder:
    def __init__(self, graph: Graph, stateful: bool, opset: int):
        self.graph, self.stateful, self.opset = graph, stateful, opset
        self.num_steps = 1 if stateful else graph.num_steps
        self.mean_of = graph.averaged_from()
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self.inputs: list[tuple[str, tuple[int, ...]]] = []
        self.outputs: list[tuple[str, tuple[int, ...]]] = []
        self.spikes: dict[str, list[str]] = {}
        self.values: dict[str, _Value] = {}
        self.scalars: dict[float, str] = {}

    # --- pieces -----------------------------------------------------------------------------------------------------

    def op(self, op_type: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """A node with one output, both of that name."""
        self.nodes.append(helper.make_node(op_type, inputs, [name], name, **attributes))
        return name

    def weight(self, name: str, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def scalar(self, name: str, value: float) -> str:
        """A constant, one for all that use its value."""
        if value not in self.scalars:
            name = name if name not in self.scalars.values() else f"{name}_{value:g}"
            self.scalars[value] = self.weight(name, np.array(value, np.float32))
        return self.scalars[value]

    def stack(self, name: str) -> str:
        """The value with its steps along the batch (or for all steps, if it does not change)."""
        value = self.values[name]
        if value.stacked is None:
            value.stacked = self.op("Concat", value.steps, f"{name}/steps", axis=0)
        return value.stacked

    def split(self, name: str) -> list[str]:
        """The value step by step."""
        value = self.values[name]
        if value.steps is None:
            value.steps = [value.stacked] * self.num_steps
            if not value.constant:
                value.steps = [f"{name}/t{t}" for t in range(1, self.num_steps + 1)]
                count = {"num_outputs": self.num_steps} if self.opset >= 18 else {}
                self.nodes.append(
                    helper.make_node("Split", [value.stacked], value.steps, f"{name}/split", axis=0, **count)
                )
        return value.steps

    # --- nodes ------------------------------------------------------------------------------------------------------

    def visit(self, node: Node) -> None:
        if isinstance(node, Input):
            self.inputs.append((node.name, node.shape))
            value = _Value(node.name, constant=True)
        elif isinstance(node, LIF):
            value = self.lif(node)
        elif isinstance(node, Output):
            self.answer(node)
            self.outputs.insert(0, (node.name, self.graph.shapes[node.name]))
            return
        elif node.arity == 2:
            value = self.two(node)
        else:
            value = _Value(self.one(node), constant=self.values[node.inputs[0]].constant)
        self.values[node.name] = value
        if node.name == self.mean_of and not value.constant:
            self.values[node.name] = _Value(self.mean(node.name, self.split(node.name)), constant=True)

    def mean(self, name: str, steps: list[str]) -> str:
        """:func:`snnzoo.rate.time_mean`, unrolled."""
        decay = self.graph.output.decay
        if decay == 1:
            return self.op("Mean", steps, f"{name}/mean_over_time")
        keeps, (state, *later) = self.scalar("readout_decay", decay), steps
        for t, step in enumerate(later, start=2):
            left = self.op("Mul", [state, keeps], f"{name}/t{t}/left")
            state = self.op("Add", [left, step], f"{name}/t{t}/read_out")
        weight = self.scalar("readout_weight", sum(decay**t for t in range(len(steps))))
        return self.op("Div", [state, weight], f"{name}/mean_over_time")

    def answer(self, node: Output) -> None:
        """The last tensor, renamed where nothing else reads it and it is not a layer's spikes."""
        last = self.stack(node.inputs[0])
        spikes = any(last in steps for steps in self.spikes.values())
        if self.nodes[-1].output[0] == last and len(self.graph.readers(node.inputs[0])) == 1 and not spikes:
            self.nodes[-1].output[0] = node.name
        else:
            self.op("Identity", [last], node.name)

    def one(self, node: Node) -> str:
        """A node that treats each step alike."""
        x, name = self.stack(node.inputs[0]), node.name
        if isinstance(node, (Conv, Linear)):
            parts = {f"{name}.weight": node.weight, f"{name}.bias": node.bias}
            inputs = [x, *(self.weight(part, tensor.numpy()) for part, tensor in parts.items())]
        if isinstance(node, Conv):
            return self.op(
                "Conv", inputs, name, kernel_shape=node.weight.shape[2:], strides=node.stride,
                pads=node.padding * 2, dilations=node.dilation, group=node.groups,
            )  # fmt: skip
        if isinstance(node, Linear):
            return self.op("Gemm", inputs, name, transB=1)
        if isinstance(node, ReLU):
            return self.op("Relu", [x], name)
        if isinstance(node, Flatten):
            return self.op("Flatten", [x], name, axis=1)
        assert isinstance(node, Pool)
        if node.pool == "avg" and self.graph.is_global(node):
            return self.op("GlobalAveragePool", [x], name)
        window = dict(kernel_shape=node.kernel, strides=node.stride, pads=node.padding * 2)
        if node.pool == "max":
            return self.op("MaxPool", [x], name, **window)
        return self.op("AveragePool", [x], name, count_include_pad=1, **window)

    def two(self, node: Node) -> _Value:
        a, b = node.inputs
        constant = [self.values[x].constant for x in node.inputs]
        if constant[0] == constant[1]:
            return _Value(self.join(node, self.stack(a), self.stack(b), node.name), constant=constant[0])
        pairs = zip(self.split(a), self.split(b), strict=True)
        return _Value(steps=[self.join(node, *pair, f"{node.name}/t{t}") for t, pair in enumerate(pairs, start=1)])

    def join(self, node: Node, a: str, b: str, name: str) -> str:
        if isinstance(node, Gate):
            if node.gate == "iand":
                a = self.op("Sub", [self.scalar("one", 1.0), a], f"{name}/not")
            return self.op("Mul", [a, b], name)
        assert isinstance(node, Add)
        return self.op("Add", [a, b], name)

    def lif(self, node: LIF) -> _Value:
        """:func:`snnzoo.neurons.lif_step`, unrolled; what the last step leaves is computed only if it goes out."""
        params, name, spikes, v = node.params, node.name, [], None
        if self.stateful:
            v = f"{name}.membrane"
            self.inputs.append((v, self.graph.shapes[name]))
        currents = self.split(node.inputs[0])
        for t, u in enumerate(currents, start=1):
            at = name if len(currents) == 1 else f"{name}/t{t}"
            if v is not None:
                left = self.op("Mul", [v, self.scalar("decay", params.decay)], f"{at}/leak")
                u = self.op("Add", [left, u], f"{at}/membrane")
            fires = self.op("GreaterOrEqual", [u, self.scalar("threshold", params.threshold)], f"{at}/fires")
            s = self.op("Cast", [fires], f"{at}/spikes", to=FLOAT)
            spikes.append(s)
            if self.stateful or t < len(currents):
                after = f"{name}.membrane_out" if self.stateful else f"{at}/after_reset"
                if params.reset == "hard":
                    v = self.op("Where", [fires, self.scalar("zero", 0.0), u], after)
                else:
                    drop = s
                    if params.threshold != 1:
                        drop = self.op("Mul", [s, self.scalar("threshold", params.threshold)], f"{at}/drop")
                    v = self.op("Sub", [u, drop], after)
        if self.stateful:
            self.outputs.append((v, self.graph.shapes[name]))
        self.spikes[name] = spikes
        return _Value(steps=spikes) if len(spikes) > 1 else _Value(spikes[0], constant=True)
