"""When each population of a network works, and the relays that hold up what would arrive too early."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Placed:
    """A population, or a relay, in its step.

    Attributes:
        step: how many steps behind the image it is.
        sources: whom it reads, all of them one step before it: relays in place of what would arrive too early.
        holds_up: of a relay, the population whose messages it passes on; else None.
    """

    name: str
    step: int
    sources: tuple[str, ...]
    holds_up: str | None = None


def in_steps(reads: Mapping[str, Sequence[str]]) -> list[Placed]:
    """Place populations in steps, with relays between them, each thing behind what it reads.

    Args:
        reads: of each population whom it reads, a link taking one step; in an order in which nothing reads ahead.
    """
    steps: dict[str, int] = {}
    placed = []
    for name, sources in reads.items():
        step = 1 + max((steps[source] for source in sources), default=-1)
        in_time = []
        for source in sources:
            before = source
            for wait in range(1, step - steps[source]):
                relay = f"{source}/delay{wait}"
                if relay not in steps:
                    steps[relay] = steps[source] + wait
                    placed.append(Placed(relay, steps[relay], (before,), source))
                before = relay
            in_time.append(before)
        steps[name] = step
        placed.append(Placed(name, step, tuple(in_time)))
    return placed
