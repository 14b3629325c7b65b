"""Profiles as pictures: energy by layer, firing rates by layer and step, accuracy against steps and energy."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from snnzoo.analysis.figure import COLOURS, GREY, as_number, as_text, new_figure, tidy
from snnzoo.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW = 0.19  # inches for a layer's name
MANY = 16  # steps; more are drawn narrower, without a number in each cell


def draw_profile(profile: Mapping[str, Any]) -> "Figure":
    """Firing rate and energy of each layer, and the sums beside the ANN of the same shape.

    Args:
        profile: :meth:`snnzoo.analysis.Profile.to_dict`, or its JSON file read.

    Raises:
        InputError: matplotlib is not installed, or the profile is one without images.
    """
    totals, energy = profile["totals"], profile["energy"]
    if not profile["images"]:
        raise InputError("the profile was made without images: there is no activity to draw")
    neurons, synapses = _neurons(profile), [row for row in profile["layers"] if row["kind"] != "lif"]
    rows = max(len(neurons), len(synapses))
    figure = new_figure(12, max(3.6, 1.3 + ROW * rows))
    widths = [3, 4, 2.6] if neurons else [4, 2]
    panels = list(figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0])
    if neurons:
        axes = panels.pop(0)
        axes.barh(range(len(neurons)), [100 * row["rate"] for row in neurons], color=COLOURS[0])
        _layers(axes, neurons)
        axes.set(title="firing rate", xlabel="neurons that fire at a step, %")

    axes, left = panels.pop(0), [0.0] * len(synapses)
    anns = [row["dense"] / row["steps"] * energy["mac_pj"] * 1e-6 for row in synapses]
    axes.barh(range(len(synapses)), anns, height=0.85, color="none", edgecolor=GREY, label="ANN, all MACs")
    for kind, colour in (("mac", COLOURS[1]), ("ac", COLOURS[0])):
        parts = [row["activity"][f"{kind}s"] * energy[f"{kind}_pj"] * 1e-6 for row in synapses]
        axes.barh(range(len(synapses)), parts, height=0.6, left=left, color=colour, label=f"{kind.upper()}s")
        left = [a + b for a, b in zip(left, parts, strict=True)]
    _layers(axes, synapses)
    axes.set(title="energy by layer", xlabel="µJ per image")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")

    axes = panels.pop(0)
    bars = {"synapses": (totals["energy_uj"], COLOURS[0])}
    if neurons:
        bars["membranes"] = totals["membrane_energy_uj"], COLOURS[2]
    bars["ANN"] = totals["ann_energy_uj"], GREY
    drawn = axes.bar(list(bars), [value for value, _ in bars.values()], color=[colour for _, colour in bars.values()])
    axes.bar_label(drawn, [as_number(value) for value, _ in bars.values()], padding=2, fontsize="small")
    axes.set(title="energy, all layers", ylabel="µJ per image")
    axes.margins(y=0.1)
    axes.tick_params(axis="x", labelsize="small")
    tidy(axes, "y")
    figure.suptitle(
        f"{as_text(profile['model'])}, T = {profile['num_steps']}, mean of {profile['images']} images, "
        f"{energy['mac_pj']:g} pJ a MAC, {energy['ac_pj']:g} pJ an AC",
        fontsize="medium",
    )
    return figure


def draw_rates(profile: Mapping[str, Any]) -> "Figure":
    """Firing rate of every layer at every step as a heat map.

    Raises:
        InputError: matplotlib is not installed, or the profile has no firing rates.
    """
    neurons = _neurons(profile)
    if not neurons or not profile["images"]:
        raise InputError("the profile has no firing rates: make it of a spiking model, with images (--data-dir)")
    values = [[100 * rate for rate in row["rates"]] for row in neurons]
    steps = len(values[0])
    width = max(4.2, 2.9 + 0.5 * min(steps, MANY))
    figure = new_figure(width, max(2.6, 1.2 + 1.2 * ROW * len(neurons)))
    axes = figure.subplots()
    image = axes.imshow(values, aspect="auto", cmap="cividis", vmin=0)
    _layers(axes, neurons)
    axes.grid(False)
    axes.set(xlabel="time step", xticks=range(steps), xticklabels=range(1, steps + 1), ylim=(len(neurons) - 0.5, -0.5))
    if steps > MANY:
        axes.set_xticks(range(0, steps, steps // 8))
        axes.set_xticklabels(range(1, steps + 1, steps // 8))
    else:
        brightest = max(map(max, values)) or 1
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                colour = "black" if value > 0.55 * brightest else "white"
                axes.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, label="neurons that fire, %")
    figure.suptitle(f"{as_text(profile['model'])}, mean of {profile['images']} images", fontsize="medium")
    return figure


def draw_accuracy(
    results: Mapping[str, Sequence[Mapping[str, Any]]], profiles: Sequence[Mapping[str, Any]] = ()
) -> "Figure":
    """Top-1 against the number of steps, and against energy where there are profiles.

    Args:
        results: by name, rows of ``validate.py --results-file`` (:func:`snnzoo.records.read_results`).
        profiles: of the same models, one for each number of steps; a model's row is joined with the profile that has
            its name and number of steps.

    Raises:
        InputError: matplotlib is not installed, or profiles that none of the rows belongs to.
    """
    spent = {(_plain(p["model"]), p["num_steps"]): p["totals"] for p in profiles if p["images"]}
    joined = {
        name: [(row, spent[key]) for row in rows if (key := (_plain(row["model"]), _steps(row))) in spent]
        for name, rows in results.items()
    }
    if profiles and not any(joined.values()):
        raise InputError(
            "no profile belongs to the results: the same model and number of steps must be in both, made with images; "
            f"profiles are of {', '.join(f'{model} T = {steps}' for model, steps in spent) or 'no images'}"
        )
    panels = 2 if profiles else 1
    figure = new_figure(5 * panels, 3.8)
    by_steps, *by_energy = figure.subplots(1, panels, squeeze=False)[0]
    for index, (name, rows) in enumerate(results.items()):
        points = sorted((_steps(row) or 1, float(row["top1"])) for row in rows)
        style = dict(marker="o", color=COLOURS[index % len(COLOURS)], label=as_text(name))
        by_steps.plot(*zip(*points, strict=True), **style)
        for axes in by_energy:
            known = sorted((totals["energy_uj"], float(row["top1"]), _steps(row)) for row, totals in joined[name])
            if not known:
                continue
            axes.plot([energy for energy, *_ in known], [top1 for _, top1, _ in known], **style)
            for energy, top1, steps in known:  # more steps, more energy, better answers: right and below is no line
                where = dict(textcoords="offset points", xytext=(6, -6), ha="left", va="top")
                axes.annotate(f"T = {steps}" if steps else "ANN", (energy, top1), fontsize="small", **where)
    ticks = sorted({_steps(row) or 1 for rows in results.values() for row in rows})
    by_steps.set(xlabel="time steps T", ylabel="top-1, %", xticks=ticks)
    for axes in by_energy:
        anns = {totals["ann_energy_uj"] for totals in spent.values()}
        for position, value in enumerate(sorted(anns)):
            axes.axvline(
                value, color=GREY, linestyle="--", label=None if position else "ANN of the same shape, all MACs"
            )
        axes.set(xlabel="energy of synapses, µJ per image", ylabel="top-1, %", xscale="log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "25" else "")
        axes.margins(x=0.12)
    for axes in (by_steps, *by_energy):
        tidy(axes)
        axes.margins(y=0.15)
        axes.legend(fontsize="small")
    return figure


def draw_confusion(counts: Tensor, names: Sequence[str]) -> "Figure":
    """A confusion matrix in percent of each true class.

    Args:
        counts: ``[N, N]``, by true label and answer.
        names: of the N classes.

    Raises:
        InputError: matplotlib is not installed.
    """
    shares = 100 * counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    count, few = len(counts), len(counts) <= 20
    side = max(4.2, 1.6 + 0.42 * count) if few else 7
    figure = new_figure(side + 0.8, side)
    axes = figure.subplots()
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100)
    axes.set(xlabel="answer", ylabel="true class")
    figure.colorbar(image, label="% of the true class")
    if few:
        labels = [as_text(name) for name in names]
        axes.set(xticks=range(count), yticks=range(count), xticklabels=labels, yticklabels=labels)
        axes.tick_params(axis="x", labelrotation=45 if max(map(len, names)) > 3 else 0)
        for y, x in counts.nonzero().tolist():
            value = float(shares[y, x])
            axes.text(x, y, f"{value:.0f}" if value >= 1 else "<1", ha="center", va="center", fontsize=7,
                      color="white" if value > 55 else "black")  # fmt: skip
    return figure


def _plain(model: str) -> str:
    """Without the tag, and without T where the name ends in it: any T can be set later."""
    name = str(model).split(".")[0]
    base, _, steps = name.rpartition("_t")
    return base if base and steps.isdigit() else name


def _steps(row: Mapping[str, Any]) -> int | None:
    """None of an ANN."""
    return int(row["num_steps"]) if row.get("num_steps") not in (None, "") else None


def _neurons(profile: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in profile["layers"] if row["kind"] == "lif"]


def _layers(axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """A row for each layer, the first on top."""
    axes.set(yticks=range(len(rows)), yticklabels=[row["name"] for row in rows], ylim=(len(rows) - 0.4, -0.6))
    axes.tick_params(axis="y", labelsize=8)
    tidy(axes, "x")
