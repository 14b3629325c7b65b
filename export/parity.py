"""Whether an engine and the model compute the same graph: spike by spike, with ties at the threshold counted.

Two engines that add in another order differ in the last digits, and a membrane within those digits of the threshold
may fire in one and not in the other. Everything after it then differs, rightly. So the graph is run once more on the
*engine's own* spikes, layer by layer: there each difference has to be such a tie, and the logits have to agree. The
same is asked of the model, or a graph that is not the model's would pass for it.
"""

from dataclasses import asdict, dataclass

import torch

from snnzoo.errors import InputError
from snnzoo.export.graph import Graph
from snnzoo.export.interpret import Run, interpret

TIE = 1e-5  # of the largest membrane of the layer: how near the threshold rounding can matter
LOGITS = 1e-4  # of the largest logit, or of 1


class ParityError(RuntimeError):
    """An exported network does not compute what the model computes; nothing was written."""


@dataclass(frozen=True)
class Parity:
    """How far an engine is from a model, over some images.

    Attributes:
        images: how many.
        spikes: spikes that the engine fired, of ``neuron_steps`` chances to.
        differing: neurons of the engine that fire otherwise than the graph does on the engine's own spikes.
        ties: those of them whose membrane was at the threshold, to rounding, when they first did.
        logits: largest difference of the logits from the graph's on the engine's spikes, relative to the largest.
        model_differing, model_ties, model_logits: the same of the model.
        same_spikes: images whose every spike is the model's.
        logits_of_same: largest difference of these images' logits from the model's, absolute.
        same_top1: images with the model's first class.
    """

    images: int
    spikes: int
    neuron_steps: int
    differing: int
    ties: int
    logits: float
    model_differing: int
    model_ties: int
    model_logits: float
    same_spikes: int
    logits_of_same: float
    same_top1: int

    @property
    def _of_model(self) -> tuple[int, int, float]:
        return self.model_differing, self.model_ties, self.model_logits

    @property
    def _of_engine(self) -> tuple[int, int, float]:
        return self.differing, self.ties, self.logits

    @property
    def passed(self) -> bool:
        return _agree(*self._of_model) and _agree(*self._of_engine)

    def check(self, what: str) -> "Parity":
        """Itself, or :class:`ParityError` if the engine, or the graph already, computes something else."""
        _demand(f"the graph behind {what}", self.images, *self._of_model)
        _demand(what, self.images, *self._of_engine)
        return self

    def to_dict(self) -> dict:
        return asdict(self) | {"passed": self.passed, "tie_tolerance": TIE, "logit_tolerance": LOGITS}


def images_or_noise(graph: Graph, images: torch.Tensor | None) -> tuple[torch.Tensor, str]:
    """What to compare on, the images or three of noise if there are none, and what the report calls it.

    Raises:
        InputError: images that the graph does not take, or none at all.
    """
    if images is not None:
        return float_images(graph, images, "images to compare on"), "real images"
    return torch.randn(3, *graph.input.shape, generator=torch.Generator().manual_seed(0)), "images of noise"


def float_images(graph: Graph, images: torch.Tensor, what: str) -> torch.Tensor:
    """Images as engines take them: float32, on the CPU, without a gradient.

    Raises:
        InputError: images that the graph does not take, or 8-bit ones; they are called ``what``.
    """
    shape, tensor = graph.input.shape, isinstance(images, torch.Tensor)
    if not (tensor and images.is_floating_point() and images.shape[1:] == shape and len(images)):
        got = f"{images.dtype} {list(images.shape)}" if tensor else type(images).__name__
        raise InputError(
            f"{what} must be normalised, a tensor of real numbers [B, {', '.join(map(str, shape))}] with B at least 1, "
            f"got {got}"
        )
    return images.detach().cpu().float()


def compare(graph: Graph, images: torch.Tensor, model: Run, engine: Run) -> Parity:
    """Compare an engine's run on ``images``, and the model's, with the graph's.

    Args:
        graph: of the model.
        images: as for :func:`~snnzoo.export.interpret.interpret`.
        model: what the model did, see :func:`~snnzoo.export.interpret.watch`.
        engine: what the engine did; its spikes must be there for every LIF layer.
    """
    differing, ties, logits = _differences(graph, images, engine)
    model_differing, model_ties, model_logits = _differences(graph, images, model)
    same = torch.ones(len(images), dtype=torch.bool)
    for name, spikes in model.spikes.items():
        same &= (spikes == engine.spikes[name]).transpose(0, 1).flatten(1).all(1)
    apart = (engine.logits - model.logits).abs()[same]
    return Parity(
        images=len(images),
        spikes=int(sum(spikes.double().sum() for spikes in engine.spikes.values())),
        neuron_steps=sum(spikes.numel() for spikes in engine.spikes.values()),
        differing=differing,
        ties=ties,
        logits=logits,
        model_differing=model_differing,
        model_ties=model_ties,
        model_logits=model_logits,
        same_spikes=int(same.sum()),
        logits_of_same=_largest(apart),
        same_top1=same_top1(engine.logits, model.logits),
    )


def same_top1(a: torch.Tensor, b: torch.Tensor) -> int:
    """Of how many images the largest answer is the same one; without a classifier it may be a map's."""
    return int((a.flatten(1).argmax(1) == b.flatten(1).argmax(1)).sum())


def check_graph(graph: Graph, images: torch.Tensor, model: Run, what: str) -> None:
    """:class:`ParityError` if the graph behind ``what`` is not what the model computes; arguments as for compare."""
    _demand(f"the graph behind {what}", len(images), *_differences(graph, images, model))


def _agree(differing: int, ties: int, logits: float) -> bool:
    return differing == ties and logits <= LOGITS


def _demand(what: str, images: int, differing: int, ties: int, logits: float) -> None:
    if not _agree(differing, ties, logits):
        raise ParityError(
            f"{what} is not what the model computes: on {images} images {differing} neurons fire otherwise, "
            f"{ties} of them for rounding; logits differ by {logits:.2e} of the largest, {LOGITS:g} are allowed"
        )


def _differences(graph: Graph, images: torch.Tensor, run: Run) -> tuple[int, int, float]:
    """From the graph on the run's own spikes: differing neurons, ties among them, largest difference of the logits."""
    own = interpret(graph, images, given=run.spikes)
    differing = ties = 0
    for node in graph.lifs:
        wrong = own.spikes[node.name] != run.spikes[node.name]
        first = wrong & (wrong.cumsum(0) == 1)  # afterwards the neuron's own membrane differs
        distance = (own.membranes[node.name] - node.params.threshold).abs()
        near = distance <= TIE * max(node.params.threshold, float(own.membranes[node.name].abs().max()))
        differing += int(first.sum())
        ties += int((first & near).sum())
    scale = max(1.0, float(own.logits.abs().max()))
    return differing, ties, _largest((run.logits - own.logits).abs()) / scale


def _largest(x: torch.Tensor) -> float:
    """NaN where there is one: it must not pass for agreement."""
    return float(x.max()) if x.numel() else 0.0
