"""What a network costs: operations, energy, memory; and how its activity brings that about.

Counted is what the model itself computes, seen by hooks on its layers (:mod:`snnzoo.analysis.counting`), not what a
graph of it says: so every model can be profiled, also one that no exporter knows, on any device and at full speed.
"""

import json
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snnzoo.analysis.counting import LayerCounter, Neurons, Synapses
from snnzoo.errors import InputError
from snnzoo.files import new_file
from snnzoo.folding import check_plain
from snnzoo.fused import uncompiled
from snnzoo.modes import evaluating
from snnzoo.version import __version__

STATE_BYTES = 4  # of a membrane: float32


@dataclass(frozen=True)
class Energy:
    """Energy of an operation in picojoule.

    The defaults are those of 32-bit floating point in a 45 nm process at 0.9 V: an addition 0.9 pJ, a multiplication
    3.7 pJ (Horowitz, "Computing's energy problem", ISSCC 2014). They leave out memory traffic, which costs more.

    Raises:
        InputError: a value that is not positive.
    """

    mac: float = 4.6
    ac: float = 0.9

    def __post_init__(self):
        for name, value in (("a MAC", self.mac), ("an AC", self.ac)):
            if not 0 < value < float("inf"):
                raise InputError(f"energy: {name} must take a positive number of pJ, got {value!r}")

    def of(self, macs: float, acs: float) -> float:
        """In microjoule."""
        return (macs * self.mac + acs * self.ac) * 1e-6


@dataclass(frozen=True)
class Profile:
    """What :func:`profile` found; all operations and energies are of one image, over all its steps.

    Attributes:
        model: its name.
        input_size: ``(C, H, W)``.
        num_steps: T, the steps after which the answer is there: the latency.
        images: how many were shown; 0 for none.
        parameters: all of the model's, batch norms included.
        bytes: of parameters and buffers, as they are in memory.
        layers: in the order in which they run.
        energy: of an operation.
    """

    model: str
    input_size: tuple[int, ...]
    num_steps: int
    images: int
    parameters: int
    bytes: int
    layers: tuple[Synapses | Neurons, ...]
    energy: Energy = field(default_factory=Energy)

    @property
    def synapses(self) -> list[Synapses]:
        return [layer for layer in self.layers if isinstance(layer, Synapses)]

    @property
    def neurons(self) -> list[Neurons]:
        return [layer for layer in self.layers if isinstance(layer, Neurons)]

    @property
    def num_neurons(self) -> int:
        return sum(layer.count for layer in self.neurons)

    @property
    def ann_macs(self) -> int:
        """Multiply-accumulates of the ANN of the same shape: every layer once, zeros included."""
        return sum(layer.dense // layer.steps for layer in self.synapses)

    @property
    def membrane_updates(self) -> int:
        """Each a multiplication by the decay and an addition of the current."""
        return sum(layer.count * layer.steps for layer in self.neurons)

    @cached_property
    def totals(self) -> dict[str, float | None]:
        """Sums over the layers, by the names of the JSON file; those that need images are None without."""
        ann = self.energy.of(self.ann_macs, 0)
        membranes = self.energy.of(self.membrane_updates, 0)
        found: dict[str, float | None] = {
            "parameters": self.parameters,
            "bytes": self.bytes,
            "neurons": self.num_neurons,
            "state_bytes": STATE_BYTES * self.num_neurons,
            "latency_steps": self.num_steps,
            "dense_macs": sum(layer.dense for layer in self.synapses),
            "ann_macs": self.ann_macs,
            "ann_energy_uj": ann,
            "membrane_updates": self.membrane_updates,
            "membrane_energy_uj": membranes,
        }
        names = ("firing_rate", "activation_sparsity", "synops", "macs", "acs", "energy_uj", "energy_of_ann")
        if not self.images:
            return found | dict.fromkeys(names)
        synops, macs, acs = (
            sum(getattr(layer.activity, name) for layer in self.synapses) for name in ("synops", "macs", "acs")
        )
        energy, rate = self.energy.of(macs, acs), None
        if self.neurons:
            rate = sum(sum(layer.rates) * layer.count for layer in self.neurons) / self.membrane_updates
        sparsity = None if rate is None else 1 - rate
        return found | dict(zip(names, (rate, sparsity, synops, macs, acs, energy, energy / ann), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers, for JSON."""
        rows = []
        for layer in self.layers:
            row = asdict(layer)
            if isinstance(layer, Neurons):
                row |= {"kind": "lif", "rate": layer.rate}
            elif layer.activity:
                row["activity"]["energy_uj"] = self.energy.of(layer.activity.macs, layer.activity.acs)
            rows.append(row)
        head = {name: getattr(self, name) for name in ("model", "input_size", "num_steps", "images")}
        energy = {"mac_pj": self.energy.mac, "ac_pj": self.energy.ac}
        return head | {"energy": energy, "totals": self.totals, "layers": rows, "snnzoo": __version__}

    def table(self) -> str:
        """A line for each layer, and the totals."""
        rows = [
            ("layer", "kind", "output", "parameters", "steps", "dense MACs", "input", "zeros %", "MACs", "ACs",
             "rate %", "energy µJ")
        ]  # fmt: skip
        for layer in self.layers:
            shape = "x".join(map(str, layer.shape))
            if isinstance(layer, Neurons):
                energy = self.energy.of(layer.count * layer.steps, 0)
                rate = "" if layer.rate is None else f"{100 * layer.rate:.2f}"
                rows.append((layer.name, "lif", shape, "", str(layer.steps), *[""] * 5, rate, f"{energy:.3f}"))
                continue
            row = (layer.name, layer.kind, shape, f"{layer.parameters:,}", str(layer.steps), f"{layer.dense:,}")
            a = layer.activity
            if a:
                energy = self.energy.of(a.macs, a.acs)
                row += (a.inputs, f"{100 * a.sparsity:.2f}", f"{a.macs:,.0f}", f"{a.acs:,.0f}", "", f"{energy:.3f}")
            rows.append(row + ("",) * (len(rows[0]) - len(row)))
        columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
        padded = []
        for column in columns:
            width, words = max(map(len, column)), column[0] in ("layer", "kind", "output", "input")
            padded.append([cell.ljust(width) if words else cell.rjust(width) for cell in column])
        lines = ["  ".join(row).rstrip() for row in zip(*padded, strict=True)]
        return "\n".join([*lines, "", *self._summary()]) + "\n"

    def _summary(self) -> list[str]:
        t = self.totals
        lines = [
            f"{self.model}, input {'x'.join(map(str, self.input_size))}, "
            + (f"mean of {self.images} images" if self.images else "no images shown"),
            f"latency      {t['latency_steps']} time step{'s' if t['latency_steps'] > 1 else ''}",
            f"parameters   {t['parameters']:,} ({_size(t['bytes'])} with buffers)",
            f"state        {t['neurons']:,} membranes ({_size(t['state_bytes'])})",
        ]
        if self.images and self.neurons:
            lines += [f"firing rate  {100 * t['firing_rate']:.2f} % of the neurons fire at a step"]
        if self.images:
            lines += [f"operations   {t['synops']:,.0f} SynOps: {t['macs']:,.0f} MACs and {t['acs']:,.0f} ACs"]
        lines += [
            f"dense        {t['dense_macs']:,} MACs, zeros included; ANN of the same shape {t['ann_macs']:,}",
            f"energy       at {self.energy.mac:g} pJ a MAC and {self.energy.ac:g} pJ an AC, memory traffic left out:",
        ]
        if self.images:
            share = f"{100 * t['energy_of_ann']:.1f} % of the ANN's"
            lines += [f"             synapses   {t['energy_uj']:10.3f} µJ an image, {share}"]
        if self.neurons:
            lines += [f"             membranes  {t['membrane_energy_uj']:10.3f} µJ, a MAC for each update"]
        return [*lines, f"             ANN        {t['ann_energy_uj']:10.3f} µJ, all its MACs"]

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_dict` as a JSON file.

        Raises:
            InputError: a path that cannot be written.
        """
        with new_file(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n")


@torch.no_grad()
def profile(
    model: nn.Module,
    batches: Iterable[Tensor] = (),
    input_size: tuple[int, int, int] | None = None,
    energy: Energy | None = None,
) -> Profile:
    """Count a model's operations, in evaluation mode: those of its convolutions and linear layers.

    What else multiplies is left out: of a transformer, the products of attention.

    Args:
        model: any image classifier, spiking or not; its modules' modes are left as they were. On the meta device
            nothing is computed.
        batches: images as for the model's forward, all of one size. Without any, only what does not depend on them is
            found: how often neurons fire is a matter of what they see, and noise would give meaningless rates.
        input_size: ``(C, H, W)`` where there are no batches; by default what the model's ``pretrained_cfg`` says.
        energy: of an operation.

    Raises:
        InputError: images of several shapes, or pruned or parametrized weights, of which it cannot see which are zero.
    """
    check_plain(model)
    batches = iter(batches)
    first = next(batches, None)
    shown = first is not None
    cfg = getattr(model, "pretrained_cfg", None) or {}
    if not shown:
        size = input_size or (model.in_chans, *cfg["input_size"][1:])
        first = torch.zeros(1, *size, device=next(model.parameters()).device)
    with evaluating(model), nullcontext() if shown else uncompiled(), LayerCounter(model, measure=shown) as counter:
        counter.show(first)
        for batch in batches:
            counter.show(batch)
    found = tuple(counter.layers())
    return Profile(
        model=cfg.get("architecture") or type(model).__name__,
        input_size=tuple(first.shape[-3:]),
        num_steps=max((layer.steps for layer in found if isinstance(layer, Neurons)), default=1),
        images=counter.images if shown else 0,
        parameters=sum(p.numel() for p in model.parameters()),
        bytes=sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers())),
        layers=found,
        energy=energy or Energy(),
    )


def _size(count: float) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
