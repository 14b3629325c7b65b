"""One evaluation loop for the trainer and the evaluator script."""

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
from timm.task import ClassificationEvaluator
from timm.task.evaluator import evaluation_sample_limit
from torch import Tensor, nn
from tqdm import tqdm

from snnzoo.analysis.firing import SpikeCounter
from snnzoo.processes import Processes

Outputs = dict[str, Tensor | dict[str, Tensor]]


def logits_of(model: Callable[[Tensor], Tensor], images: Tensor) -> Outputs:
    """A plain model in the form that :func:`evaluate` takes."""
    return {"output": model(images)}


@torch.no_grad()
def evaluate(
    forward: Callable[[Tensor], Outputs],
    loader: Iterable[tuple[Tensor, Tensor]],
    processes: Processes,
    autocast: Callable = nullcontext,
    channels_last: bool = False,
    description: str = "validate",
    spiking: nn.Module | None = None,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Run ``forward`` over ``loader``.

    Args:
        forward: images to ``{'output': logits}``, and optionally ``'hybrids'``, logits by name, and ``'similarity'``,
            ``[B]`` by name (:meth:`~snnzoo.distill.AnnGuidedDistillationTask.inspect`).
        loader: batches of images and labels; each process has its share.
        processes: of the run.
        autocast: makes the context to run ``forward`` in.
        channels_last: memory layout of the images.
        description: of the progress bar.
        spiking: a network that ``forward`` runs, to count the spikes of.
        after_batch: called after each batch; may raise to end early.

    Returns:
        ``loss``, ``top1``, ``top5`` (percent), ``images_per_s``, for each further output ``top1_<name>`` and
        ``similarity_<name>``, and ``rate_<stage>``, spikes per neuron and step; all over all processes' samples.
    """
    device, limit = processes.device, evaluation_sample_limit(loader)
    evaluators: dict[str, ClassificationEvaluator] = {}
    similarity: dict[str, Tensor] = {}
    start, seen = time.perf_counter(), 0
    bar = tqdm(desc=description, total=_num_images(loader), unit="img", disable=processes.rank > 0 or None, leave=False)
    counter = nullcontext() if spiking is None else SpikeCounter(spiking)
    with bar, counter:
        for images, target in loader:
            images, target = images.to(device), target.to(device)
            if channels_last and images.ndim == 4:
                images = images.contiguous(memory_format=torch.channels_last)
            with autocast():
                result = forward(images)
            for name, logits in {"": result["output"], **result.get("hybrids", {})}.items():
                evaluators.setdefault(name, ClassificationEvaluator(device, max_samples=limit)).update(logits, target)
            real = evaluators[""].num_samples - seen  # without the samples that even out the processes' shares
            for name, value in result.get("similarity", {}).items():
                similarity[name] = similarity.get(name, 0.0) + value[:real].sum().double()
            seen += real
            bar.update(real * processes.count)
            after_batch()
    computed = {name: evaluator.compute(processes.together) for name, evaluator in evaluators.items()}
    total = float(processes.sum(torch.tensor(float(seen), device=device)))
    metrics = dict(computed.pop(""))
    metrics["images_per_s"] = total / (time.perf_counter() - start)
    metrics |= {f"top1_{name}": values["top1"] for name, values in computed.items()}
    metrics |= {f"similarity_{name}": float(processes.sum(value)) / total for name, value in similarity.items()}
    if spiking is not None:
        metrics |= {f"rate_{name}": value for name, value in counter.by_stage(processes.sum).items()}
    return metrics


def _num_images(loader) -> int | None:
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):
        return None
