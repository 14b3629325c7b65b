"""The table of models in the documentation, made from the registry: ``python -m snnzoo.analysis.table``."""

import re
import sys
from pathlib import Path

import timm

from snnzoo.analysis.profiling import profile
from snnzoo.errors import InputError
from snnzoo.files import write_atomically
from snnzoo.models._cfgs import INITIALISATION

BEGIN, END = "<!-- table: python -m snnzoo.analysis.table -->\n", "<!-- end of table -->\n"


def model_table() -> str:
    """All models of the zoo in Markdown, a row for each architecture and tag."""
    rows = [
        "| model | default T | tag | input | classes | parameters | MACs per step | head |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for base, steps in _architectures().items():
        label, name = (f"`{base}_tT`", f"{base}_t{steps[0]}") if steps else (f"`{base}`", base)
        for tag in _tags(name):
            model = timm.create_model(f"{name}.{tag}", device="meta")
            classes, input_size = model.num_classes, model.default_cfg["input_size"]
            hidden = [f"fc {model.head_width}", "LIF" if steps else "ReLU"] if model.has_hidden_head else []
            cells = [
                label,
                ", ".join(map(str, steps)),
                f"`.{tag}`",
                "x".join(map(str, input_size)),
                str(classes),
                f"{sum(p.numel() for p in model.parameters()):,}",
                f"{profile(model, input_size=input_size).ann_macs / 1e6:,.0f} M",
                ", ".join(["pool", *hidden, f"fc {classes}"]),
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _architectures() -> dict[str, list[int]]:
    """Names without their number of steps, and those numbers; none for an ANN."""
    found: dict[str, list[int]] = {}
    for name in timm.list_models("snn_*"):
        base, _, steps = name.rpartition("_t")
        found[base] = sorted([*found.get(base, []), int(steps)])
    return found | {name: [] for name in timm.list_models("cifar_*")}


def _tags(name: str) -> list[str]:
    tags = [full.partition(".")[2] for full in timm.list_models(f"{name}.*", include_tags=True)]
    tags = [tag for tag in tags if not tag.startswith(INITIALISATION)]  # the same network as without
    default = timm.get_pretrained_cfg(name).tag
    return sorted(tags, key=lambda tag: (tag != default, tag))


def update(path: Path) -> str:
    """The page at ``path`` with the table between its two marks made anew.

    Raises:
        InputError: the marks are not there.
    """
    text = path.read_text()
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if not pattern.search(text):
        raise InputError(f"{str(path)!r} has no lines {BEGIN.strip()!r} and {END.strip()!r} to put the table between")
    return pattern.sub(lambda match: BEGIN + "\n" + model_table() + "\n" + END, text)


def main() -> None:
    """Update the page that the command line names, docs/models.md by default."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/models.md")
    if not path.is_file():
        raise SystemExit(f"error: no page at {str(path)!r}: run this where the project is, or name the page")
    write_atomically(path, update(path))


if __name__ == "__main__":
    main()
