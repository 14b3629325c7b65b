"""Running means that stay on the device until somebody asks."""

import math

import torch
from torch import Tensor

from snnzoo.errors import InputError
from snnzoo.processes import Processes

DIVERGED = (
    "{} has become infinite or not a number: lower --lr, add --warmup-epochs or --clip-grad, or use --amp-dtype "
    "bfloat16 in place of float16, or mend the data; --resume goes on from before, if there is a checkpoint yet"
)


class Meters:
    """Means of an epoch's metrics over the samples of all processes; adding to them makes no host wait for a device.

    Args:
        processes: of the run.
        totals: sums so far, from :meth:`totals` of a run that was interrupted.
    """

    def __init__(self, processes: Processes, totals: dict[str, float] | None = None):
        self._processes = processes
        totals = totals or {}
        self._names = [name for name in totals if name != "samples"]
        before = [totals[name] for name in self._names] + [totals.get("samples", 0.0)]
        dtype = torch.float32 if processes.device.type == "mps" else torch.float64
        self._sums = torch.tensor(before, dtype=dtype, device=processes.device)
        if not processes.is_first:  # the totals are everybody's
            self._sums.zero_()

    def update(self, parts: dict[str, Tensor], count: int) -> None:
        """Add the means (scalars) over ``count`` samples; the same names each time."""
        if not self._names:
            self._names = list(parts)
            self._sums = self._sums.new_zeros(len(parts) + 1)
        values = torch.stack([parts[name].detach() for name in self._names]).to(self._sums.dtype)
        self._sums += torch.cat([values, values.new_ones(1)]) * count

    def totals(self) -> dict[str, float]:
        """The sums over all processes' samples, and the number of samples.

        Raises:
            InputError: a loss among them was not a finite number.
        """
        sums = self._processes.sum(self._sums.clone()).tolist()
        totals = dict(zip([*self._names, "samples"], sums, strict=True))
        if not math.isfinite(totals.get("loss", 0.0)):
            raise InputError(DIVERGED.format("the loss"))
        return totals


def means_of(totals: dict[str, float], since: dict[str, float] | None = None) -> dict[str, float]:
    """The means of all samples in :meth:`Meters.totals`, or of those after the totals ``since``."""
    before = since or {}
    samples = max(totals["samples"] - before.get("samples", 0.0), 1)
    return {name: (value - before.get(name, 0.0)) / samples for name, value in totals.items() if name != "samples"}
