"""From a model to its graph: ``torch.fx`` follows the model's own forward, and each layer becomes a node."""

import copy
import itertools
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import timm.layers
import torch
import torch.nn.functional as F
from timm.data.loader import adapt_to_chs
from torch import fx, nn

from snnzoo import layers
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
    Shape,
    frozen,
    to_pair,
    unused,
)
from snnzoo.folding import check_plain, fuse
from snnzoo.models._blocks import PadShortcut
from snnzoo.models._spiking import encode, pool_steps
from snnzoo.models.spiking_sew_resnet import Connect


def trace(model: nn.Module, input_size: tuple[int, int, int] | None = None) -> Graph:
    """The graph of a model in evaluation mode, its batch norms folded.

    Args:
        model: any zoo model, spiking or not, or another image classifier of the same layers; it is not changed.
        input_size: ``(C, H, W)`` of the images; by default what the model's ``pretrained_cfg`` says.

    Raises:
        InputError: a layer that the graph has no node for or that has a forward of its own, named by its path; weights
            that are not finite, pruned or parametrized; or the model does not take such images.
    """
    cfg = getattr(model, "pretrained_cfg", None) or {}
    if not (input_size or cfg):
        raise InputError(
            f"{type(model).__name__} has no pretrained_cfg that says which images it takes: give input_size"
        )
    input_size = tuple(input_size or (getattr(model, "in_chans", cfg["input_size"][0]), *cfg["input_size"][1:]))
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    model = fuse(float_copy(model), input_size)
    left = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    builder = _Builder(model, input_size)
    try:
        traced = _Tracer().trace(model)
    except InputError:
        raise
    except Exception as error:  # what a forward does to a proxy can fail in any way
        raise InputError(f"{type(model).__name__} cannot be followed into the graph: {error}") from error
    for step in traced.nodes:
        builder.visit(step)
    return Graph(
        tuple(builder.nodes),
        num_steps=getattr(model, "num_steps", 1),
        name=cfg.get("architecture") or type(model).__name__,
        folded=tuple(sorted(norms - left)),
        changed=tuple(builder.changed),
        metadata={key: cfg.get(key) and adapt_to_chs(cfg[key], input_size[0]) for key in ("mean", "std")}
        | {"labels": cfg.get("label_names")},
    )


def float_copy(model: nn.Module) -> nn.Module:
    """A copy of a model in float32, on the CPU and in evaluation mode: what exporters work on.

    Raises:
        InputError: a weight is not finite, or computed from others.
    """
    check_plain(model)
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if not tensor.isfinite().all():
            raise InputError(f"{name} has numbers that are not finite: export weights of before they diverged")
    return copy.deepcopy(model).cpu().float().eval()


class _Tracer(fx.Tracer):
    """Sees every layer as a whole, and says which module it cannot follow."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return super().is_leaf_module(module, name) or next(module.children(), None) is None

    def call_module(self, module: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        try:
            return super().call_module(module, forward, args, kwargs)
        except InputError:
            raise
        except Exception as error:
            path = self.path_of_module(module)
            raise InputError(f"{path} ({type(module).__name__}) cannot be followed into the graph: {error}") from error


_SAME = {layers.hold, layers.settle, F.dropout}  # in evaluation mode and for one step


@dataclass
class _Builder:
    """Turns the steps of the traced forward into nodes, one after the other."""

    model: nn.Module
    input_size: Shape
    nodes: list[Node] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    _names: dict[fx.Node, str] = field(default_factory=dict)  # the node that holds a step's value
    _shapes: dict[str, Shape] = field(default_factory=dict)
    _averaged: set[str] = field(default_factory=set)  # nodes after the mean over time, which must be linear
    _decay: float = 1.0  # of that mean

    def visit(self, step: fx.Node) -> None:
        if step.op == "placeholder":
            if not self.nodes:  # any other argument has a default
                self._names[step] = self._emit(Input, "images", (), shape=self.input_size)
            return
        if step.op == "output":
            self._emit(Output, "logits", self._inputs(step), decay=self._decay)
            return
        if step.op == "call_module":
            module = self.model.get_submodule(step.target)
            name = self._module(step, module, step.target)
        else:
            name = self._function(step)
        if name is not None:
            self._names[step] = name

    def _inputs(self, step: fx.Node) -> tuple[str, ...]:
        return tuple(self._names[x] for x in step.args if isinstance(x, fx.Node) and x in self._names)

    def _emit(self, cls: type[Node], name: str, inputs: tuple[str, ...], **settings: Any) -> str:
        unique = unused(name, {node.name for node in self.nodes})
        node = cls(unique, inputs, **settings)
        if self._averaged.intersection(inputs):
            self._averaged.add(unique)
            if not isinstance(node, (Conv, Linear, Flatten, Add, Output)) and getattr(node, "pool", "") != "avg":
                raise InputError(f"{name} ({node.kind}) acts on firing rates, which exist only after the last step")
        try:
            self._shapes[unique] = tuple(node.infer(*(self._shapes[x] for x in inputs)))
        except ValueError as error:
            raise InputError(f"{name} ({node.kind}): {error}") from error
        self.nodes.append(node)
        return unique

    def _module(self, step: fx.Node, module: nn.Module, path: str) -> str:
        inputs = self._inputs(step)
        if _runs(module, nn.Identity, nn.Dropout, timm.layers.DropPath, layers.DropPath):
            return inputs[0]
        if (
            _runs(module, nn.Conv2d, layers.Conv2d)
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        ):
            return self._emit(
                Conv, path, inputs, weight=frozen(module.weight), bias=_bias(module, len(module.weight)),
                stride=to_pair(module.stride), padding=to_pair(module.padding), dilation=to_pair(module.dilation),
                groups=module.groups,
            )  # fmt: skip
        if _runs(module, nn.Linear, timm.layers.Linear, layers.Linear):
            return self._emit(
                Linear, path, inputs, weight=frozen(module.weight), bias=_bias(module, len(module.weight))
            )
        if _runs(module, layers.LIF):
            return self._emit(LIF, path, inputs, params=module.params)
        if _runs(module, nn.ReLU):
            return self._emit(ReLU, path, inputs)
        if (
            _runs(module, nn.MaxPool2d, layers.MaxPool2d)
            and to_pair(module.dilation) == (1, 1)
            and not module.ceil_mode
        ):
            return self._emit(
                Pool, path, inputs, pool="max", kernel=to_pair(module.kernel_size), stride=to_pair(module.stride),
                padding=to_pair(module.padding),
            )  # fmt: skip
        if _runs(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
            return self._global_pool(path, inputs)
        if _runs(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1:
            return self._emit(Flatten, path, inputs)
        if _runs(module, Connect):
            if module.name == "add":
                return self._emit(Add, path, inputs)
            return self._emit(Gate, path, inputs, gate=module.name)
        if _runs(module, PadShortcut):
            return self._pad(path, inputs, module)
        raise InputError(
            f"{path}: the graph has no node for {module}; it knows convolutions with a batch norm behind them or none, "
            f"linear layers, LIF, ReLU, max and global average pooling, sums and SEW's connections; none "
            f"with a forward of its own"
        )

    def _function(self, step: fx.Node) -> str | None:
        inputs = self._inputs(step)
        if step.target is encode:
            return inputs[0]
        if step.target is operator.getitem and step.args[0].target is encode:
            return inputs[0] if step.args[1] == 0 else None  # the second result is T
        if step.target in _SAME:
            return inputs[0]
        if step.target is layers.to_rate:
            self._averaged.add(inputs[0])
            self._decay = step.args[2]
            return inputs[0]
        stack = list(step.meta.get("nn_module_stack") or ())
        path = f"{stack[-1]}." if stack and stack[-1] else ""
        if step.target in (operator.add, operator.iadd, torch.add) and len(step.args) == 2 and not step.kwargs:
            a, b = (self._names.get(x) if isinstance(x, fx.Node) else None for x in step.args)
            if a and b:
                return self._emit(Add, f"{path}add", (a, b))
        if step.target is pool_steps and step.args[1] == "avg":
            return self._emit(Flatten, "global_pool.flatten", (self._global_pool("global_pool.pool", inputs),))
        what = getattr(step.target, "__name__", step.target)
        raise InputError(f"{path}{step.name}: the graph has no node for {what}{(*step.args[1:], *step.kwargs) or ''}")

    def _global_pool(self, path: str, inputs: tuple[str, ...]) -> str:
        size = self._shapes[inputs[0]][1:]
        return self._emit(Pool, path, inputs, pool="avg", kernel=size, stride=size)

    def _pad(self, path: str, inputs: tuple[str, ...], module: PadShortcut) -> str:
        *_, before, after = module.pad
        channels = self._shapes[inputs[0]][0]
        weight = torch.zeros(before + channels + after, channels, 1, 1)
        weight[before : before + channels, :, 0, 0] = torch.eye(channels)
        self.changed.append(f"{path}: the subsampling, zero-padding shortcut is a 1x1 convolution of ones and zeros")
        stride = (module.stride, module.stride)
        return self._emit(Conv, path, inputs, weight=weight, bias=torch.zeros(len(weight)), stride=stride)


def _runs(module: nn.Module, *classes: type[nn.Module]) -> bool:
    """Whether it computes what one of the classes does: a subclass with a forward of its own need not."""
    forward = getattr(module.forward, "__func__", module.forward)
    return any(isinstance(module, cls) and forward is cls.forward for cls in classes)


def _bias(module: nn.Module, outputs: int) -> torch.Tensor:
    return torch.zeros(outputs) if module.bias is None else frozen(module.bias)
