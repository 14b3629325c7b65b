"""How long Lava's simulator takes for real networks, and whether it fires what was predicted.

``python benchmarks/lava.py NET.h5 … --images DIR``: each file of `snnzoo export lava` as it is and with our model of
Lava's convolution, on the same images; a sequential network also as lava-dl's netx loads it. Prints Markdown: a row
for each run, and below it layer by layer how many spikes differ and how often the neurons fire, as equal silence shows
nothing.
"""

import argparse
import time
from statistics import median

from snnzoo.export.lava import compare, open_network, run_simulator, simulate_integer
from snnzoo.export.lava.export import read_images

KINDS = {  # who builds the network, whose convolutions
    "lava": ("our builder, Lava's", {}),
    "ours": ("our builder, ours", {"fast": True}),
    "netx": ("netx, Lava's", {"netx": True}),
}
HEAD = (
    "model", "reset", "T", "built by, convolutions", "images", "spikes that differ", "layers that differ",
    "firing rates, least to most", "s a step", "s an image, streaming", "s to start", "s an image, reference in torch",
)  # fmt: skip


def measure(path: str, images, python: str | None, kind: str) -> tuple[str, str]:
    """A row of the table, and a line about each layer."""
    network = open_network(path)
    start = time.perf_counter()
    predicted = simulate_integer(network, images)
    reference = (time.perf_counter() - start) / len(images)
    label, options = KINDS[kind]
    run = run_simulator(path, images, python, **options)
    *layers, logits = compare(predicted, run)
    first, *steps = run.seconds
    rates = [layer.spikes / layer.chances for layer in layers]
    reset = "soft" if any(layer.reset == "soft" for layer in network) else "hard"
    cells = [
        network.model,
        reset,
        f"{network.num_steps}",
        label,
        f"{len(images)}",
        f"{sum(layer.differing for layer in layers):,} of {sum(layer.chances for layer in layers):,}",
        f"{sum(layer.differing > 0 for layer in (*layers, logits))} of {len(layers)} and the logits",
        f"{100 * min(rates):.1f} to {100 * max(rates):.1f} %",
        f"{median(steps):.2f}",
        f"{network.num_steps * median(steps):.1f}",
        f"{first:.0f}",
        f"{reference:.2f}",
    ]
    by_layer = ", ".join(
        f"{layer.layer} {layer.differing} ({100 * rate:.1f} %)" for layer, rate in zip(layers, rates, strict=True)
    )
    return f"| {' | '.join(cells)} |", f"{network.model}, {reset}, T = {network.num_steps}, {label}: {by_layer}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--images", nargs="+", required=True)
    parser.add_argument("--count", type=int, default=2)
    parser.add_argument("--python")
    parser.add_argument("--only", choices=KINDS, nargs="+", default=KINDS)
    args = parser.parse_args()
    print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}")
    lines = []
    for path in args.networks:
        network = open_network(path)
        images, _ = read_images(network, args.images, args.count)
        for kind in args.only:
            if kind != "netx" or network.sequential:
                row, line = measure(path, images, args.python, kind)
                print(row, flush=True)
                lines.append(line)
    print("\nSpikes that differ, and the firing rate, by layer:\n\n" + "\n".join(f"- {line}" for line in lines))


if __name__ == "__main__":
    main()
