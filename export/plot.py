"""A graph as a picture."""

from pathlib import Path

from snnzoo.analysis.figure import new_figure, save
from snnzoo.export.graph import Graph

COLOURS = {
    "input": "#d9d9d9", "output": "#d9d9d9", "conv": "#a6cee3", "linear": "#a6cee3", "lif": "#fdbf6f",
    "relu": "#fdbf6f", "pool": "#b2df8a", "flatten": "#f0f0f0", "add": "#cab2d6", "gate": "#cab2d6",
}  # fmt: skip


def plot(graph: Graph, path: str | Path) -> None:
    """Draw the graph from top to bottom, one box for each node, with the shape of what leaves it.

    Args:
        graph: any.
        path: of the picture; its suffix says the format: png, svg or pdf.

    Raises:
        InputError: the extra ``plot`` is not installed, an unknown format, or a path that cannot be written.
    """
    places = _places(graph)
    rows, lanes = (1 + max(place[i] for place in places.values()) for i in (0, 1))
    figure = new_figure(2.6 * lanes + 1.2, 0.62 * rows + 0.4)
    axes = figure.add_subplot()
    axes.set(xlim=(-0.75, lanes - 0.25), ylim=(rows - 0.4, -0.6))
    axes.axis("off")
    for node in graph:
        row, lane = places[node.name]
        for source in node.inputs:
            above, beside = places[source]
            start, end, style = (beside, above + 0.28), (lane, row - 0.28), "arc3"
            if row - above > 1 and lane == beside:  # past other nodes: out at the side, around them, and in again
                start, end, style = (lane - 0.16, above), (lane - 0.16, row), "arc3,rad=0.25"
            arrow = dict(arrowstyle="-|>", color="#555555", lw=0.8, connectionstyle=style, shrinkA=0, shrinkB=0)
            axes.annotate("", end, start, arrowprops=arrow)
        shape = "x".join(map(str, graph.shapes[node.name]))
        axes.text(
            lane, row, f"{node.name}\n{node.kind} {shape}", ha="center", va="center", fontsize=6,
            bbox=dict(boxstyle="round", fc=COLOURS[node.kind], ec="#555555", lw=0.6),
        )  # fmt: skip
    save(figure, path)


def _places(graph: Graph) -> dict[str, tuple[int, int]]:
    """Row and lane of each node: as far down as its longest way from the input, the longest way on to the left."""
    rows: dict[str, int] = {}
    for node in graph:
        rows[node.name] = 1 + max((rows[name] for name in node.inputs), default=-1)
    ahead: dict[str, int] = {}  # nodes on the longest way to the output
    for node in reversed(graph.nodes):
        ahead[node.name] = 1 + max((ahead[reader.name] for reader in graph.readers(node.name)), default=-1)
    taken: dict[int, int] = {}
    places = {}
    for name in sorted(rows, key=lambda name: -ahead[name]):
        lane = taken.get(rows[name], 0)
        taken[rows[name]] = lane + 1
        places[name] = (rows[name], lane)
    return places
