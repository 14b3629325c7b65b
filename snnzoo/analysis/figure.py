"""What all our figures have in common: matplotlib if it is there, colours, and how a picture comes into being."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from snnzoo.errors import InputError
from snnzoo.files import new_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people tell apart however they see colours; without their yellow, faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#9a9a9a"


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("figures are drawn by matplotlib: pip install 'snnzoo[plot]'") from error
    return Figure((width, height), layout="constrained")


def check_figure_path(path: str | Path) -> Path:
    """The path, if matplotlib is there and can write such a file: to be asked before any work is done.

    Raises:
        InputError: it cannot.
    """
    path = Path(path)
    formats = new_figure(1, 1).canvas.get_supported_filetypes()
    if path.suffix[1:] not in formats:
        raise InputError(f"figure {str(path)!r}: its suffix must be one of {', '.join(sorted(formats))}")
    return path


def save(figure: "Figure", path: str | Path, dpi: int = 130) -> Path:
    """Write a figure; the suffix says the format.

    Raises:
        InputError: an unknown format, or a path that cannot be written.
    """
    path = check_figure_path(path)
    with new_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=dpi)
    return path


def as_svg(figure: "Figure") -> bytes:
    """The figure as an SVG image, the same bytes for the same figure; letters are drawn, so that no font is needed."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "snnzoo", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def as_text(name: object) -> str:
    """A name from outside, so that matplotlib takes none of it for a formula."""
    return str(name).replace("$", r"\$")


def as_number(value: float) -> str:
    """Three digits that count, or all those before the point: ``0.0123``, ``12.3``, ``1,235``."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def tidy(axes: "Axes", grid: str = "both") -> None:
    """No box around the data, a faint grid behind it."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, alpha=0.3)
    axes.set_axisbelow(True)
