"""A frozen teacher that can be entered after any of its stages."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from timm.data.loader import adapt_to_chs
from timm.task import DistillationTeacher
from torch import Tensor, fx, nn

from snnzoo.errors import InputError
from snnzoo.folding import fuse
from snnzoo.weights import create_model


def create_teacher(name: str, num_classes: int, in_chans: int = 3, checkpoint: str | Path | None = None) -> nn.Module:
    """A trained teacher: its pretrained weights, or those of a checkpoint file.

    Args:
        name: any timm model; ``hf-hub:…`` too.
        num_classes: of the student; the teacher must have as many, or its head would start from nothing.
        in_chans: input channels.
        checkpoint: weights file, averaged ones if it has them; without it the model's pretrained weights are used.

    Raises:
        InputError: no such model, no weights, or another number of classes.
    """
    if checkpoint:
        return create_model(name, checkpoint, use_ema=None, num_classes=num_classes, in_chans=in_chans)
    model = create_model(name, pretrained=True, in_chans=in_chans)
    if model.num_classes != num_classes:
        raise InputError(
            f"teacher {name!r} was trained on {model.num_classes} classes, the student has {num_classes}: "
            f"fine-tune the teacher first and give its weights as the teacher checkpoint"
        )
    return model


def model_name(model: nn.Module) -> str:
    """The name that the model was created by."""
    return getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__


@torch.no_grad()
def probe_model(model: nn.Module, input_size: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """A fixed random batch of two images ``[2, C, H, W]`` and the model's logits for it.

    Raises:
        InputError: the model does not take images of that size.
    """
    probe = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0))
    probe = probe.to(next(model.parameters()))
    try:
        return probe, model.eval()(probe)
    except Exception as error:  # each architecture has its own way of refusing
        raise InputError(f"teacher {model_name(model)!r} does not take images of size {input_size}: {error}") from error


def _without_norms(model: nn.Module, input_size: tuple[int, int, int]) -> nn.Module:
    try:
        return fuse(model, input_size)
    except InputError:  # it takes such images, so it cannot be fused: it teaches as it is
        return model


class FrozenTeacher(DistillationTeacher):
    """A teacher that stays in evaluation mode, gets no gradients, and normalises as many channels as it takes.

    It is a fused copy of the model (:func:`snnzoo.fuse`), or the model itself where that is not possible.

    Args:
        model: any timm model with weights.
        input_size: ``(C, H, W)`` of the images it will see.

    Raises:
        InputError: the model does not take images of that size.
    """

    def __init__(self, model: nn.Module, input_size: tuple[int, int, int]):
        probe_model(model, input_size)
        super().__init__(_without_norms(model, input_size))
        self.requires_grad_(False)
        for name in ("mean_kd", "std_kd"):
            value = adapt_to_chs(getattr(self, name).flatten().tolist(), input_size[0])
            self.register_buffer(name, torch.tensor(value).view(1, -1, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """Stays in evaluation mode whatever is asked for."""
        return super().train(False)

    def normalize_input(self, input: Tensor, student_mean: Tensor, student_std: Tensor) -> Tensor:
        """Images as the student sees them, ``[B, C, H, W]``, to what the teacher expects.

        Where the two agree these are the very images. timm's compares them first, and on a GPU the host then waits for
        all that it has launched, in every step.
        """
        self.model.eval()  # every use of the teacher begins here, so here it is made sure of its mode
        return input * (student_std / self.std_kd) + (student_mean - self.mean_kd) / self.std_kd


class StagedTeacher(FrozenTeacher):
    """A frozen network cut at the boundaries that its ``feature_info`` names.

    The forward of the network is traced down to those boundary modules and no further, and cut into segments; a batch
    of feature maps can then enter after any boundary and be carried to the logits. The cut is proved on construction:
    every feature of a probe batch, entered after its boundary, must give the network's own logits.

    Args:
        model: a timm CNN with weights.
        input_size: ``(C, H, W)`` of the images it will see.

    Attributes:
        points: names of the boundary modules, in order.
        feature_shapes: ``(C, H, W)`` at each of them, for ``input_size``.

    Raises:
        InputError: the network cannot be cut; the message names it, the boundary and the reason.
    """

    def __init__(self, model: nn.Module, input_size: tuple[int, int, int]):
        super().__init__(model, input_size)
        self.name = model_name(model)
        info = getattr(model, "feature_info", None) or []
        self.points = [point["module"] for point in info]
        if not self.points:
            raise self._refusal("it has no feature_info")
        # Kept as a plain list: the segments share the model's own modules, which are registered once.
        self._segments = self._cut()
        self.feature_shapes = self._prove([point["num_chs"] for point in info], input_size)

    def _refusal(self, reason: str) -> InputError:
        return InputError(
            f"teacher {self.name!r} cannot be split into stages: {reason}. It can still teach by its logits alone "
            f"(branches='none')"
        )

    def _cut(self) -> list[fx.GraphModule]:
        boundaries = set(self.points)

        class Tracer(fx.Tracer):
            def is_leaf_module(self, module: nn.Module, name: str) -> bool:
                return not any(point.startswith(name + ".") for point in boundaries)

        try:
            graph = Tracer().trace(self.model)
        except Exception as error:  # whatever the forward does that a trace cannot follow
            raise self._refusal(f"its forward cannot be traced ({type(error).__name__}: {error})") from error
        calls = [node for node in graph.nodes if node.op == "call_module" and node.target in boundaries]
        if [node.target for node in calls] != self.points:
            raise self._refusal(f"its forward calls {[n.target for n in calls]} where feature_info names {self.points}")
        entry = next(node for node in graph.nodes if node.op == "placeholder")
        output = next(node for node in graph.nodes if node.op == "output")
        ends = [entry, *calls, output.args[0]]
        return [self._segment(entry, start, end) for start, end in pairwise(ends)]

    def _segment(self, entry: fx.Node, start: fx.Node, end: fx.Node) -> fx.GraphModule:
        """What the traced graph computes between two of its nodes, which must not reach back past the first."""
        segment = fx.Graph()
        copies = {start: segment.placeholder("x")}
        needed, pending = {start}, [end]
        while pending:
            node = pending.pop()
            if node in needed:
                continue
            if node is entry:
                raise self._refusal(f"what comes after {start.target!r} also depends on what came before it")
            needed.add(node)
            pending.extend(node.all_input_nodes)
        for node in end.graph.nodes:
            if node in needed and node is not start:
                copies[node] = segment.node_copy(node, copies.__getitem__)
        segment.output(copies[end])
        return fx.GraphModule(self.model, segment)

    @torch.no_grad()
    def _prove(self, channels: list[int], input_size: tuple[int, int, int]) -> list[tuple[int, int, int]]:
        probe, expected = probe_model(self.model, input_size)
        features, _ = self.forward_features(probe)
        for index, (point, feature, num_chs) in enumerate(zip(self.points, features, channels, strict=True)):
            if feature.ndim != 4 or feature.shape[1] != num_chs:
                raise self._refusal(
                    f"at {point!r} it has a feature of shape {tuple(feature.shape)}, not [B, {num_chs}, H, W]"
                )
            resumed = self.resume({index: feature})[index]
            if not torch.allclose(resumed, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())):
                raise self._refusal(f"entered after {point!r} it does not give its own logits")
        return [tuple(feature.shape[1:]) for feature in features]

    @torch.no_grad()
    def forward_features(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Images ``[B, C, H, W]``, normalised for the teacher, to its features at every point and its logits."""
        features = []
        for segment in self._segments:
            x = segment(x)
            features.append(x)
        return features[:-1], features[-1]

    def resume(self, features: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Carry feature maps through the rest of the teacher, gradients included.

        Each segment runs once, on one batch of all that has entered so far.

        Args:
            features: for the index of a point, the ``[B, C, H, W]`` that enters after it; equal B.

        Returns:
            For each of them the logits ``[B, num_classes]``.
        """
        x, entered = None, []
        for index, segment in enumerate(self._segments):
            if x is not None:
                x = segment(x)
            if index in features:
                entered.append(index)
                x = features[index] if x is None else torch.cat([x, features[index]])
        return dict(zip(entered, x.chunk(len(entered)), strict=True))
