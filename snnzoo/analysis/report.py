"""A run as one HTML page that needs nothing but a browser: no script, no network, pictures inside."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnzoo.analysis.charts import draw_confusion, draw_profile, draw_rates
from snnzoo.analysis.curves import draw_curves, draw_hybrids, has_hybrids
from snnzoo.analysis.figure import as_number, as_svg
from snnzoo.analysis.inspection import Inspection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light; --ink: #1c2733; --soft: #5b6875; --line: #dde3e9; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1rem 4rem; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
p { max-width: 48rem; } p.soft, figcaption { color: var(--soft); margin: .3rem 0; }
p.note { background: #fff7e6; border-left: 4px solid #e69f00; padding: .5rem .8rem; }
nav a { margin-right: 1rem; color: var(--accent); display: inline-block; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem; margin: 1.2rem 0; }
.tile { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; }
.tile b { display: block; font-size: 1.35rem; } .tile span { color: var(--soft); font-size: .85rem; }
.wide { overflow-x: auto; } figure { margin: .5rem 0; } figure img { width: 100%; height: auto; display: block; }
.wide figure img { min-width: var(--least); max-width: var(--most); }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .22rem .7rem .22rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; } th { color: var(--soft); font-weight: 600; }
td:last-child { overflow-wrap: anywhere; }
details summary { cursor: pointer; color: var(--accent); margin: .5rem 0; }
@media print { nav { display: none; } h2 { break-after: avoid; } }
"""


def render(found: Inspection) -> str:
    """The page. Whatever comes from files is escaped.

    Args:
        found: :func:`snnzoo.analysis.inspection.inspect_run`.

    Raises:
        InputError: matplotlib is not installed, or the run has not finished an epoch.
    """
    sections = {
        "Configuration": _configuration(found),
        "Curves": _curves(found),
        "Confusion": _confusion(found),
        "Firing rates": _rates(found),
        "Energy": _energy(found),
        "Deployment": _deployment(found),
    }
    links = " ".join(f'<a href="#{_anchor(title)}">{title}</a>' for title in sections)
    body = "\n".join(
        f'<section><h2 id="{_anchor(title)}">{title}</h2>\n{content}</section>' for title, content in sections.items()
    )
    name = escape(found.name)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{name} · snnzoo</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<header><h1>{name}</h1>\n{_subtitle(found)}\n{_tiles(found)}\n"
        f"<nav>{links}</nav></header>\n{body}\n</body>\n</html>\n"
    )


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _subtitle(found: Inspection) -> str:
    options, summary = found.options, found.summary
    parts = [f"{options.get('model', 'a model')}"]
    if options.get("teacher"):
        parts.append(f"distilled from {options['teacher']}")
    parts.append(f"{len(found.rows)} of {options.get('epochs', '?')} epochs")
    if summary.get("started"):
        parts.append(f"begun {str(summary['started'])[:16].replace('T', ' ')} UTC")
    return f'<p class="soft">{escape(", ".join(parts))}</p>'


def _tiles(found: Inspection) -> str:
    best = found.summary.get("best") or {}
    tiles = []
    if best:
        unit = "" if best["metric"] == "loss" else " %"
        averaged = ", weights averaged" if best.get("averaged") else ""
        tiles.append((f"{best['value']:.2f}{unit}", f"best {best['metric']}, epoch {best['epoch']}{averaged}"))
    if found.profile:
        totals = found.profile.totals
        tiles += [(str(totals["latency_steps"]), "time steps"), (f"{totals['parameters']:,}", "parameters")]
        if totals["firing_rate"] is not None:
            tiles.append((f"{100 * totals['firing_rate']:.1f} %", "of the neurons fire at a step"))
        energy, ann = as_number(totals["energy_uj"]), as_number(totals["ann_energy_uj"])
        tiles.append((f"{energy} µJ", f"an image; the ANN {ann} µJ"))
    compared = [report["parity"] for report in found.deploy if _is_compared(report)]
    if compared:
        passed = sum(map(_passed, compared))
        tiles.append((f"{passed} of {len(compared)}", "exports fire the model's spikes"))
    boxes = "".join(f'<div class="tile"><b>{escape(n)}</b><span>{escape(what)}</span></div>' for n, what in tiles)
    return f'<div class="tiles">{boxes}</div>'


def _configuration(found: Inspection) -> str:
    chosen = {k: v for k, v in found.options.items() if v not in (None, "", False, [], {})}
    data = found.summary.get("data") or {}
    facts = [
        *((f"{split} data", _facts(about)) for split, about in data.items()),
        ("versions", _facts(found.summary.get("versions") or {})),
        ("source", _source(found.summary.get("git") or {})),
        ("checkpoint looked at", found.checkpoint or "none"),
    ]
    return (
        _table(("", ""), [row for row in facts if row[1]], numbers=())
        + "<details><summary>All options</summary>"
        + _table(("option", "value"), [(k, _value(v)) for k, v in sorted(chosen.items())], numbers=())
        + "</details>"
    )


def _facts(about: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_value(value)}" for key, value in about.items() if value is not None)


def _source(git: Mapping[str, Any]) -> str:
    return f"git revision {git.get('revision')}{', with changes' if git.get('changed') else ''}" if git else ""


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" for k, v in value.items())
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _curves(found: Inspection) -> str:
    if not found.rows:
        return _note("The run has not finished an epoch.")
    runs = {found.name: found.rows}
    text = _figure(draw_curves(runs), "Loss, accuracy and firing rates over the epochs", 46)
    if has_hybrids(found.rows):
        caption = (
            "Hybrids: the student's first stages, an adapter, the teacher's rest. Left their accuracy, right how "
            "alike the adapted features are to the teacher's"
        )
        text += _figure(draw_hybrids(runs), caption, 34)
    return text


def _confusion(found: Inspection) -> str:
    if found.confusion is None:
        return _note(found.missing["activity"])
    counts = found.confusion
    names = list(found.classes) or [str(label) for label in range(len(counts))]
    names += [str(label) for label in range(len(names), len(counts))]  # the model may have more than the data
    right, total = int(counts.diagonal().sum()), int(counts.sum())
    wrong = counts.clone().fill_diagonal_(0)
    pairs = wrong.flatten().argsort(descending=True, stable=True)[:8].tolist()
    rows = [
        (names[pair // len(counts)], names[pair % len(counts)], str(int(wrong.flatten()[pair])))
        for pair in pairs
        if wrong.flatten()[pair]
    ]
    text = f"<p>{right:,} of {total:,} validation images are right: top-1 {100 * right / total:.2f} %.</p>"
    text += _figure(draw_confusion(counts, names), "Answers, in percent of each true class", 24, most=44)
    if rows:
        text += "<p>Most frequent confusions:</p>" + _table(("true class", "answer", "images"), rows, numbers=(2,))
    return text


def _rates(found: Inspection) -> str:
    if found.profile is None:
        return _note(found.missing["activity"])
    if not found.profile.neurons:
        return _note("The network is an ANN: nothing fires.")
    return _figure(draw_rates(found.profile.to_dict()), "Share of each layer's neurons that fire, by time step", 24,
                   most=40)  # fmt: skip


def _energy(found: Inspection) -> str:
    if found.profile is None:
        return _note(found.missing["activity"])
    profile = found.profile
    text = _figure(draw_profile(profile.to_dict()), "Firing rate and energy of each layer, and the sums", 52)
    table = f'<div class="wide"><pre>{escape(profile.table())}</pre></div>'
    return f"{text}<details><summary>Layer by layer</summary>{table}</details>"


def _deployment(found: Inspection) -> str:
    rows, others = [], ""
    for report in found.deploy:
        parity, file = report["parity"], Path(report.get("path", "made for this page")).name
        if not _is_compared(report):  # what it loses is in its summary
            lines = [f"engine      {report['target']}: {file}", *report.get("summary", [])]
            lines += [f"accuracy    {name}: {top1:.2f} %" for name, top1 in report.get("accuracy", {}).items()]
            summary = "\n".join(lines)
            others += f'<div class="wide"><pre>{escape(summary)}</pre></div>'
            continue
        rows.append(
            (
                file,
                str(report["target"]),
                "passed" if _passed(parity) else "failed",
                f"{parity['images']}",
                f"{parity['neuron_steps']:,}",
                f"{parity['differing']}, {parity['ties']} of them ties at the threshold",
                f"{parity['logits']:.1e}",
                f"{parity['same_top1']}",
            )
        )
    head = ("file", "engine", "parity", "images", "chances to fire", "neurons that fire otherwise",
            "logits differ by, of the largest", "same answer")  # fmt: skip
    text = (_table(head, rows, numbers=(3, 4, 6, 7)) if rows else "") + others
    if found.missing.get("deploy"):
        text += _note(found.missing["deploy"])
    elif not text:
        text += _note(found.missing.get("activity", "There is no export in the run's folder."))
    return text


def _is_compared(report: Mapping[str, Any]) -> bool:
    """Whether its file has to fire the model's spikes; what has 8-bit weights is another network by its nature."""
    return bool(report["parity"]) and not report.get("int8")


def _passed(parity: Mapping[str, Any]) -> bool:
    """Files of before it was written down are there because they passed."""
    return parity.get("passed", True)


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _figure(figure: "Figure", caption: str, least: int, most: int = 72) -> str:
    """An image in the page, ``least`` to ``most`` rem wide; a narrow window scrolls it."""
    data = base64.b64encode(as_svg(figure)).decode()
    return (
        f'<div class="wide" style="--least: {least}rem; --most: {most}rem"><figure><img alt="{escape(caption)}" '
        f'src="data:image/svg+xml;base64,{data}"></figure></div>\n<p class="soft">{escape(caption)}.</p>\n'
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int]) -> str:
    """Cells are escaped; the columns in ``numbers`` are aligned to the right."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(
            f'<{tag}{" class=n" if i in numbers else ""}>{escape(cell)}</{tag}>' for i, cell in enumerate(cells)
        ) + "</tr>"  # fmt: skip

    header = f"<thead>{line(head, 'th')}</thead>" if any(head) else ""
    return f'<div class="wide"><table>{header}<tbody>{"".join(line(row, "td") for row in rows)}</tbody></table></div>\n'
