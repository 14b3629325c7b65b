"""A run's curves as a picture: the paper's Figs. 2 and 3, and what else is seen every epoch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from snnzoo.errors import InputError
from snnzoo.files import atomic_path

PANELS = (  # title, and the columns: exact names, or those that begin so
    ("loss", ("train_loss", "eval_loss")),
    ("top-1 of student and hybrids, %", ("train_top1", "eval_top1", "eval_ema_top1", "eval_top1_*")),
    ("cosine similarity of C_k(F_Sk) and F_Ak", ("eval_similarity_*",)),
    ("spikes per neuron and step", ("eval_rate_*",)),
)
_STYLES = ("-", "--", ":", "-.")


def draw_curves(runs: Mapping[str, Sequence[Mapping[str, float]]], path: str | Path) -> Path:
    """Draw metrics over epochs; panels that no run has numbers for are left out.

    Args:
        runs: by name, the rows of their tables (:func:`snnzoo.records.read_table`); several are told apart by line
            style.
        path: of the picture, PNG or what else matplotlib writes.

    Returns:
        The path.

    Raises:
        InputError: matplotlib is not installed, or there is nothing to draw.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("curves are drawn by matplotlib: pip install 'snnzoo[plot]'") from error
    columns = dict.fromkeys(name for rows in runs.values() for row in rows for name in row)
    panels = [(title, [name for want in wanted for name in _matching(want, columns)]) for title, wanted in PANELS]
    panels = [(title, names) for title, names in panels if names]
    if not panels:
        raise InputError("there is nothing to draw: no run has finished an epoch")
    figure = Figure((5 * len(panels), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for (run, rows), style in zip(runs.items(), _STYLES * len(runs), strict=False):
            for color, name in enumerate(names):
                points = [(row["epoch"], row[name]) for row in rows if name in row]
                if points:
                    label = name.removeprefix("eval_").replace("top1_", "hybrid ").replace("_", " ")
                    axes.plot(*zip(*points, strict=True), style, color=f"C{color}", marker=".", markersize=3,
                              label=label if len(runs) == 1 else f"{run}: {label}")  # fmt: skip
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")
    path = Path(path)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        figure.savefig(file, format=path.suffix.lstrip(".") or "png", dpi=120)
    return path


def _matching(wanted: str, columns: Mapping[str, None]) -> list[str]:
    if wanted.endswith("*"):
        return [name for name in columns if name.startswith(wanted[:-1])]
    return [wanted] if wanted in columns else []
