"""One layer's neurons while they see one image: membranes and spikes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from snnzoo.analysis.figure import COLOURS, GREY, as_text, new_figure, tidy
from snnzoo.errors import InputError
from snnzoo.fused import uncompiled
from snnzoo.layers import LIF, settle
from snnzoo.modes import evaluating
from snnzoo.neurons import lif_step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRACES = 5  # membranes drawn as lines
NEURONS = 60  # rows of the raster


@dataclass(frozen=True, eq=False)
class Recording:
    """What the neurons of a layer did.

    Attributes:
        layer: its path in the model.
        threshold: membrane at which its neurons fire.
        membranes: before the reset, ``[T, ...]``, in units of the input current.
        spikes: 0 or 1, likewise.
    """

    layer: str
    threshold: float
    membranes: Tensor
    spikes: Tensor


@torch.no_grad()
@uncompiled()
def record(model: nn.Module, image: Tensor, layer: str) -> Recording:
    """Show a model one image and keep what the neurons of a layer do, in evaluation mode.

    Args:
        model: a spiking model; its modules' modes are left as they were.
        image: ``[C, H, W]``, or frames ``[T, C, H, W]``; as the model takes them.
        layer: path of a LIF layer.

    Raises:
        InputError: the model has no such LIF layer, or it did not run.
    """
    lifs = {name: module for name, module in model.named_modules() if isinstance(module, LIF)}
    if layer not in lifs:
        raise InputError(
            f"{type(model).__name__} has no LIF layer {layer!r}; it has {', '.join(lifs) or 'none, it does not spike'}"
        )
    params, currents = lifs[layer].params, []
    handle = lifs[layer].register_forward_pre_hook(lambda module, args: currents.append(settle(args[0])))
    try:
        with evaluating(model):
            model(image[None])
    finally:
        handle.remove()
    membranes, spikes, v = [], [], None
    for current in currents[0][:, 0]:
        u, s, v = lif_step(current.float(), v, params)
        membranes.append(u)
        spikes.append(s)
    return Recording(layer, params.threshold, torch.stack(membranes).cpu(), torch.stack(spikes).cpu())


def draw_raster(recording: Recording, image: Tensor | None = None, title: str = "") -> "Figure":
    """Membranes of a few neurons, spikes of many, and how many fire at each step.

    The rows of the raster are evenly taken from all neurons of the layer that fire at all, most spikes on top; the
    membranes are those of neurons taken evenly from these rows. Where no neuron fires they are the highest.

    Args:
        recording: of :func:`record`.
        image: ``[H, W]`` or ``[H, W, 3]``, 0 to 1, to draw beside it.
        title: of the figure.

    Raises:
        InputError: matplotlib is not installed.
    """
    spikes, membranes = recording.spikes.flatten(1), recording.membranes.flatten(1)
    steps, count = spikes.shape
    shown = _shown(spikes)
    figure = new_figure(12 if image is not None else 10, 4.4)
    widths = [1.2, 2.4, 2] if image is not None else [2.4, 2]
    panels = list(figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0])
    if image is not None:
        axes = panels.pop(0)
        axes.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set(title="image", xticks=[], yticks=[])
    times = range(1, steps + 1)

    axes = panels.pop(0)
    if shown:
        traced, which = shown[:: -(-len(shown) // TRACES)], "membranes (a triangle: a spike)"
    else:
        traced, which = membranes.amax(0).topk(min(TRACES, count)).indices.tolist(), "the highest membranes"
    for colour, neuron in zip(COLOURS, traced, strict=False):
        axes.plot(times, membranes[:, neuron], color=colour, marker=".", label=f"neuron {neuron}")
        fired = [t for t in times if spikes[t - 1, neuron]]
        axes.plot(fired, membranes[[t - 1 for t in fired], neuron], "^", color=colour, markersize=7)
    axes.axhline(recording.threshold, color=GREY, linestyle="--", label="threshold")
    axes.set(title=which, xlabel="time step", ylabel="membrane before the reset (no unit)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=TRACES + 1, fontsize="small")
    tidy(axes)

    axes = panels.pop(0)
    rows = [[t for t in times if spikes[t - 1, neuron]] for neuron in shown]
    if rows:
        axes.eventplot(rows, colors=COLOURS[0], linelengths=0.8, linewidths=max(2.0, 40 / steps))
    firing = int((spikes.sum(0) > 0).sum())
    axes.set(title=f"spikes of {len(shown)} of the {firing:,} neurons that fire" if shown else "no neuron fires",
             xlabel="time step", ylabel="neuron", yticks=[], ylim=(len(rows) - 0.4, -0.6))  # fmt: skip
    tidy(axes, "x")
    for axes in figure.axes[-2:]:
        axes.set_xlim(0.5, steps + 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    rate = 100 * float(spikes.mean())
    what = f"{recording.layer}: {count:,} neurons, T = {steps}, {rate:.1f} % fire at a step"
    figure.suptitle(f"{as_text(title)}, {what}" if title else what, fontsize="medium")
    return figure


def _shown(spikes: Tensor) -> Sequence[int]:
    """Indices of the raster's neurons."""
    total = spikes.sum(0)
    firing = torch.nonzero(total).flatten()
    firing = firing[torch.argsort(total[firing], descending=True, stable=True)]
    if len(firing) > NEURONS:
        firing = firing[torch.linspace(0, len(firing) - 1, NEURONS).long()]
    return firing.tolist()
