"""How long Lava's simulator takes for real networks, and whether it fires what was predicted.

``python benchmarks/lava.py NET.h5 … --images DIR``: each file of `snnzoo export lava` with Lava's own convolutions and
with ours, on the same images. Prints Markdown.
"""

import argparse
import time
from statistics import median

from snnzoo.export.lava import compare, open_network, run_simulator, simulate_integer
from snnzoo.export.lava.export import read_images


def measure(path: str, images, python: str | None, fast: bool) -> str:
    """One row of the table."""
    network = open_network(path)
    start = time.perf_counter()
    predicted = simulate_integer(network, images)
    reference = (time.perf_counter() - start) / len(images)
    run = run_simulator(path, images, python, fast)
    matches = compare(predicted, run)
    wrong = sum(match.differing for match in matches)
    spikes = sum(match.chances for match in matches[:-1])
    first, *steps = run.seconds
    per_image = network.num_steps * median(steps)
    cells = [
        network.model,
        "soft" if any(layer.reset == "soft" for layer in network) else "hard",
        f"{network.num_steps}",
        "ours" if fast else "Lava's",
        f"{len(images)}",
        f"{wrong} of {spikes:,}",
        f"{median(steps):.2f}",
        f"{per_image:.1f}",
        f"{first:.0f}",
        f"{reference:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--images", nargs="+", required=True)
    parser.add_argument("--count", type=int, default=2)
    parser.add_argument("--python")
    parser.add_argument("--only", choices=("lava", "ours"), help="only one kind of convolution")
    args = parser.parse_args()
    print(
        "| model | reset | T | convolutions | images | spikes that differ | s a step | s an image, streaming | "
        "s to start | s an image, reference in torch |"
    )
    print(f"|{' --- |' * 10}")
    for path in args.networks:
        images, _ = read_images(open_network(path), args.images, args.count)
        for kind in (args.only,) if args.only else ("ours", "lava"):
            print(measure(path, images, args.python, kind == "ours"), flush=True)


if __name__ == "__main__":
    main()
