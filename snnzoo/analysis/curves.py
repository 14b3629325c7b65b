"""Runs over their epochs as pictures."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from snnzoo.analysis.figure import COLOURS, as_text, new_figure, save, tidy
from snnzoo.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Rows = Sequence[Mapping[str, float]]
Panel = tuple[str, str, tuple[str, ...]]  # title, label of the axis, columns: exact names, or those that begin so

TRAINING: tuple[Panel, ...] = (
    ("loss", "loss, nats", ("train_loss", "eval_loss")),
    ("accuracy", "top-1, %", ("train_top1", "eval_top1", "eval_ema_top1")),
    ("firing rate", "neurons that fire at a step, %", ("eval_rate_*",)),
)
HYBRIDS: tuple[Panel, ...] = (
    ("accuracy of the hybrids", "top-1, %", ("eval_top1_*", "eval_top1")),
    ("features of student and teacher", "cosine similarity of $C_k(F_S)$ and $F_A$", ("eval_similarity_*",)),
)
_NAMES = {
    "train_loss": "training", "eval_loss": "validation", "train_top1": "training", "eval_top1": "validation",
    "eval_ema_top1": "validation, averaged weights",
}  # fmt: skip
_STYLES = ("-", "--", ":", "-.")


def draw_curves(runs: Mapping[str, Rows]) -> "Figure":
    """Loss, accuracy and firing rates over epochs; panels that no run has numbers for are left out.

    Args:
        runs: by name, the rows of their tables (:func:`snnzoo.records.read_table`); several are told apart by line
            style.

    Raises:
        InputError: matplotlib is not installed, or there is nothing to draw.
    """
    return _draw(runs, TRAINING, "no run has finished an epoch")


def draw_hybrids(runs: Mapping[str, Rows]) -> "Figure":
    """Accuracy of every hybrid, and how alike its features are to the teacher's, over epochs (arXiv 2503.16572,
    Figs. 2 and 3).

    Args:
        runs: as for :func:`draw_curves`.

    Raises:
        InputError: matplotlib is not installed, or no run has hybrids.
    """
    if not any(has_hybrids(rows) for rows in runs.values()):
        raise InputError("there are no hybrids to draw: a run has them with --teacher and --branches other than none")
    return _draw(runs, HYBRIDS, "no run has finished an epoch")


def has_hybrids(rows: Rows) -> bool:
    """Whether a run's table tells of hybrids."""
    return any(name.startswith("eval_similarity_") for row in rows for name in row)


def save_curves(folder: Path, rows: Rows) -> None:
    """A run's figures, into its folder: ``curves.png``, and ``hybrids.png`` if it has hybrids.

    Raises:
        InputError: matplotlib is not installed, or there is nothing to draw.
    """
    save(draw_curves({folder.name: rows}), folder / "curves.png")
    if has_hybrids(rows):
        save(draw_hybrids({folder.name: rows}), folder / "hybrids.png")


def _draw(runs: Mapping[str, Rows], wanted: Sequence[Panel], nothing: str) -> "Figure":
    columns = dict.fromkeys(name for rows in runs.values() for row in rows for name in row)
    panels = [(title, label, [n for w in names for n in _matching(w, columns)]) for title, label, names in wanted]
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        raise InputError(f"there is nothing to draw: {nothing}")
    several = len(runs) > 1
    figure = new_figure(4.8 * len(panels), 4.2 + 0.2 * len(runs) * several)
    styles = dict(zip(runs, _STYLES * len(runs), strict=False))
    epochs = {row["epoch"] for rows in runs.values() for row in rows}
    for axes, (title, label, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        colours = {}
        for (run, rows), (index, name) in itertools.product(runs.items(), enumerate(names)):
            scale = 100 if name.startswith("eval_rate_") else 1
            points = [(row["epoch"], scale * row[name]) for row in rows if name in row]
            if not points:
                continue
            colour = COLOURS[index % len(COLOURS)]
            if wanted is HYBRIDS and name == "eval_top1":
                colour = COLOURS[-1]  # the student, black beside its hybrids
            called = as_text(_called(name, wanted is HYBRIDS))
            colours[called] = colour
            axes.plot(*zip(*points, strict=True), styles[run], color=colour, marker=".",
                      markersize=3 if len(points) > 1 else 12,
                      label=f"{as_text(run)}: {called}" if several else called)  # fmt: skip
        axes.set(title=title, xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(epochs) == 1:
            axes.set_xticks(list(epochs))
        tidy(axes)
        # Below, where it covers no data: what the colours are; and once for all panels which run has which style.
        axes.legend(handles=[_key(*item) for item in colours.items()], fontsize="x-small", loc="upper center",
                    bbox_to_anchor=(0.5, -0.15), ncols=len(colours))  # fmt: skip
    if several:
        keys = [_key(as_text(run), "black", style) for run, style in styles.items()]
        figure.legend(handles=keys, fontsize="x-small", loc="outside lower center")
    return figure


def _key(label: str, colour: str, style: str = "-") -> "Line2D":
    """A line for a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linestyle=style, label=label)


def _called(name: str, hybrids: bool) -> str:
    if hybrids and name == "eval_top1":
        return "student"
    for prefix, kind in (("eval_top1_", "hybrid "), ("eval_similarity_", "stage "), ("eval_rate_", "")):
        if name.startswith(prefix):
            return kind + name.removeprefix(prefix).replace("layer", "stage " if not kind else "")
    return _NAMES[name]


def _matching(wanted: str, columns: Mapping[str, None]) -> list[str]:
    if wanted.endswith("*"):
        return [name for name in columns if name.startswith(wanted[:-1])]
    return [wanted] if wanted in columns else []
