"""One evaluation loop for the trainer and the evaluator script."""

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
from timm.task import ClassificationEvaluator
from torch import Tensor
from tqdm import tqdm

Outputs = dict[str, Tensor | dict[str, Tensor]]


def logits_of(model: Callable[[Tensor], Tensor], images: Tensor) -> Outputs:
    """A plain model in the form that :func:`evaluate` takes."""
    return {"output": model(images)}


@torch.no_grad()
def evaluate(
    forward: Callable[[Tensor], Outputs],
    loader: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    autocast: Callable = nullcontext,
    channels_last: bool = False,
    description: str = "validate",
) -> dict[str, float]:
    """Run ``forward`` over ``loader``.

    Args:
        forward: images to ``{'output': logits}``, and optionally ``'hybrids'``, logits by name, and ``'similarity'``,
            ``[B]`` by name (:meth:`~snnzoo.distill.AnnGuidedDistillationTask.inspect`).
        loader: batches of images and labels, on the device or not.
        device: where to run.
        autocast: makes the context to run ``forward`` in.
        channels_last: memory layout of the images.
        description: of the progress bar.

    Returns:
        ``loss``, ``top1``, ``top5`` (percent), ``images_per_s``, and for each further output ``top1_<name>`` and
        ``similarity_<name>``.
    """
    main, hybrids, similarity = ClassificationEvaluator(device), {}, {}
    start = time.perf_counter()
    with tqdm(desc=description, total=_num_images(loader), unit="img", disable=None, leave=False) as bar:
        for images, target in loader:
            images, target = images.to(device), target.to(device)
            if channels_last and images.ndim == 4:
                images = images.contiguous(memory_format=torch.channels_last)
            with autocast():
                result = forward(images)
            main.update(result["output"], target)
            for name, logits in result.get("hybrids", {}).items():
                hybrids.setdefault(name, ClassificationEvaluator(device)).update(logits, target)
            for name, value in result.get("similarity", {}).items():
                similarity[name] = similarity.get(name, 0.0) + value.sum().double()
            bar.update(len(images))
    metrics = dict(main.compute())
    metrics["images_per_s"] = main.num_samples / (time.perf_counter() - start)
    metrics |= {f"top1_{name}": evaluator.compute()["top1"] for name, evaluator in hybrids.items()}
    metrics |= {f"similarity_{name}": float(total) / main.num_samples for name, total in similarity.items()}
    return metrics


def _num_images(loader) -> int | None:
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):
        return None
