#!/usr/bin/env python3
"""Draw the pages' pictures: how a student is trained and what a training step takes; how a network is deployed.

    python docs/images/draw.py      # writes overview.svg and deploy.svg beside this file

The times are those in benchmarks/results, as benchmarks/speed.py wrote them.
"""

import re
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from snnzoo.files import atomic_path

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent.parent / "benchmarks/results/speed-2026-11-23.txt"
NETWORK = "snn_resnet18_t4 B=16"
BARS = {  # the row in the results: what the picture calls it
    "floor": "floor: forward of 4 B, backward of B",
    "": "snnzoo, by rates",
    "published": "published algorithm, by rates",
    "ours through time": "snnzoo, through time",
    "SpikingJelly": "SpikingJelly 2.0, through time",
}
STUDENT, TEACHER, ADAPTER, INK = "#d95f02", "#3b6ea5", "#7a7a7a", "#222222"


def ratios() -> dict[str, float]:
    """The other one's time for a step divided by ours, by label, from the results."""
    found = {BARS[""]: 1.0}
    for line in RESULTS.read_text().splitlines():
        for row, label in BARS.items():
            if row and line.startswith(f"{NETWORK}: ") and row in line and "step" in line:
                found[label] = float(re.search(r"ms\s+([\d.]+)", line).group(1))
    return {label: found[label] for label in BARS.values()}


def box(axes, x, y, text, color, width=0.8, height=0.62):
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0.02,rounding_size=0.08",
            facecolor=color + "22", edgecolor=color, linewidth=1.4,
        )
    )  # fmt: skip
    axes.text(x, y, text, ha="center", va="center", color=INK, fontsize=11)


def arrow(axes, start, end, color):
    axes.annotate("", end, start, arrowprops=dict(arrowstyle="-|>", color=color, linewidth=1.4, shrinkA=0, shrinkB=0))


def draw_method(axes):
    """Teacher above, student below, an adapter from each stage of the student into the rest of the teacher."""
    top, middle, bottom = 2.6, 1.5, 0.4
    xs = [1.2, 2.7, 4.2, 5.7]
    for row, letter, color in ((top, "A", TEACHER), (bottom, "S", STUDENT)):
        for k, x in enumerate(xs):
            box(axes, x, row, f"${letter}_{k}$", color)
        for a, b in zip([0.2, *xs], [*xs, 7.0], strict=True):
            arrow(axes, (a + (0.44 if a > 0.5 else 0.14), row), (b - 0.44, row), color)
        axes.text(0.1, row, "$x$", ha="center", va="center", fontsize=12, color=INK)
    box(axes, 7.0, top, "head", TEACHER)
    box(axes, 7.0, bottom, "head", STUDENT)
    for k in (1, 2):
        x = xs[k]
        box(axes, x + 0.75, middle, f"$C_{k}$", ADAPTER, 0.6, 0.5)
        arrow(axes, (x + 0.1, bottom + 0.35), (x + 0.62, middle - 0.29), ADAPTER)
        arrow(axes, (x + 0.88, middle + 0.29), (xs[k + 1] - 0.1, top - 0.35), ADAPTER)
    for row, text in ((top, "teacher's and\nhybrids' logits"), (bottom, "student's\nlogits")):
        axes.text(7.6, row, text, ha="left", va="center", fontsize=9.5, color=INK)
    axes.text(0.0, 3.25, "teacher: a pretrained ANN, frozen", color=TEACHER, fontsize=10, ha="left")
    axes.text(0.0, -0.32, "student: a spiking network, T steps; its rates go up into the teacher", color=STUDENT,
              fontsize=10, ha="left")  # fmt: skip
    axes.text(
        0.0,
        middle,
        "hybrids:\n$S_0 \\ldots S_k,\\ C_k,$\n$A_{k+1} \\ldots A_n$",
        color=ADAPTER,
        fontsize=10,
        ha="left",
        va="center",
    )
    axes.set(xlim=(-0.2, 9.1), ylim=(-0.5, 3.5), aspect="equal")
    axes.axis("off")


def draw_times(axes):
    """A bar for each way to train the same network."""
    times = ratios()
    for y, (label, value) in enumerate(times.items()):
        axes.barh(y, value, color=STUDENT if label.startswith("snnzoo, by rates") else "#b8b8b8", height=0.62)
        axes.text(value + 0.04, y, f"{value:.2f}", va="center", fontsize=9.5, color=INK)
    axes.set_yticks(range(len(times)), list(times), fontsize=9.5)
    axes.invert_yaxis()
    axes.set_xlim(0, 2.45)
    axes.set_xlabel("time of a training step / snnzoo's, by rates", fontsize=9.5)
    axes.set_title("snn_resnet18_t4, 32x32, batch 16, two CPU cores", fontsize=9.5)
    axes.spines[["top", "right"]].set_visible(False)


def draw_deployment(axes):
    """From the model by way of one graph to three files, each run in its own engine and compared."""
    rows = (
        (2.6, "ONNX file", "onnxruntime", "spikes and logits,\nfloat32"),
        (1.5, "NIR file", "read back and\ninterpreted", "spikes and logits,\nfloat32"),
        (
            0.4,
            "Loihi 2's integers,\nHDF5 file",
            "Lava's fixed-point\nsimulator",
            "spikes and logits,\nequal in every bit",
        ),
    )
    box(axes, 0.9, 1.5, "PyTorch\nmodel", STUDENT, 1.4, 0.9)
    box(axes, 3.1, 1.5, "graph, batch\nnorms folded", STUDENT, 1.7, 0.9)
    arrow(axes, (1.65, 1.5), (2.2, 1.5), STUDENT)
    for y, file, engine, compared in rows:
        box(axes, 5.8, y, file, TEACHER, 2.1, 0.8)
        box(axes, 8.8, y, engine, ADAPTER, 2.3, 0.8)
        arrow(axes, (4.02, 1.5 + 0.3 * (y - 1.5)), (4.7, y), STUDENT)
        arrow(axes, (6.9, y), (7.6, y), TEACHER)
        axes.text(10.2, y, compared, ha="left", va="center", fontsize=10, color=INK)
    for x, text in ((5.8, "written"), (8.8, "run by"), (11.1, "compared")):
        axes.text(x, 3.25, text, ha="center", color=INK, fontsize=10)
    axes.set(xlim=(0, 12.2), ylim=(-0.2, 3.5), aspect="equal")
    axes.axis("off")


def save(figure, name):
    with atomic_path(HERE / name) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def main() -> None:
    matplotlib.rcParams["svg.hashsalt"] = "snnzoo"  # the same file every time
    figure = Figure((12.5, 3.7), layout="constrained", facecolor="white")
    FigureCanvasSVG(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.9, 1))
    draw_method(left)
    draw_times(right)
    save(figure, "overview.svg")
    figure = Figure((10, 3.2), layout="constrained", facecolor="white")
    FigureCanvasSVG(figure)
    draw_deployment(figure.subplots())
    save(figure, "deploy.svg")


if __name__ == "__main__":
    main()
