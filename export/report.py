"""What every export leaves beside its file: the report, for machines (``.json``) and for people (``.txt``)."""

import hashlib
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from snnzoo.export.graph import Graph
from snnzoo.export.parity import Parity
from snnzoo.files import new_files
from snnzoo.version import __version__


def make_report(graph: Graph, target: str, path: str | Path, parity: Parity | None, **more: Any) -> dict[str, Any]:
    """The report of an export.

    Args:
        graph: what was exported.
        target: the format.
        path: of the file.
        parity: with the model, in the format's engine; None where the format computes something else by its nature.
        **more: what the format adds.
    """
    neurons = sorted({(n.params.decay, n.params.threshold, n.params.reset) for n in graph.lifs})
    return {
        "path": str(path),
        "target": target,
        "model": graph.name,
        "input_size": list(graph.input.shape),
        "num_steps": graph.num_steps,
        "neurons": [dict(zip(("decay", "threshold", "reset"), neuron, strict=True)) for neuron in neurons],
        "readout_decay": graph.output.decay,
        "parameters": graph.num_parameters,
        **graph.metadata,
        **more,
        "parity": parity and parity.to_dict(),
        "folded": list(graph.folded),
        "changed": list(graph.changed),
        "layers": [
            {
                "name": node.name,
                "kind": node.kind,
                "reads": list(node.inputs),
                "shape": list(graph.shapes[node.name]),
                "parameters": sum(tensor.numel() for tensor in node.tensors),
                "settings": node.describe(),
            }
            for node in graph
        ],
        "snnzoo": __version__,
    }


def new_export(path: str | Path) -> AbstractContextManager[tuple[Path, Path, Path]]:
    """Temporary names of an export's file and its two reports, which appear together (:func:`~snnzoo.files.new_files`).

    Raises:
        InputError: one of them cannot be written.
    """
    return new_files(path, f"{path}.json", f"{path}.txt")


def write_report(report: dict[str, Any], graph: Graph, file: Path, for_machines: Path, for_people: Path) -> None:
    """Write the report of a finished file, adding the file's size and SHA-256.

    Args:
        report: see :func:`make_report`.
        graph: what was exported.
        file, for_machines, for_people: see :func:`new_export`.
    """
    report["bytes"] = file.stat().st_size
    report["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    for_machines.write_text(json.dumps(report, indent=2) + "\n")
    for_people.write_text(as_text(report) + "\n" + graph.table())


def as_text(report: dict[str, Any]) -> str:
    """What a person wants to know first, without the layers."""
    parity = report["parity"]
    size = f", {report['bytes']:,} bytes" if "bytes" in report else ""
    lines = [f"{report['path']}: {report['model']} for {report['target']}{size}"]
    lines += [f"input       {'x'.join(map(str, report['input_size']))}, {report['num_steps']} time steps"]
    lines += [f"parameters  {report['parameters']:,}, {len(report['folded'])} batch norms folded"]
    for neuron in report["neurons"]:
        lines += [f"neurons     decay {neuron['decay']:g}, threshold {neuron['threshold']:g}, {neuron['reset']} reset"]
    if report["readout_decay"] != 1:
        lines += [f"read-out    leaky, decay {report['readout_decay']:g}"]
    lines += [f"changed     {change}" for change in report["changed"]]
    if parity:
        lines += [
            f"parity      {parity['images']} {report.get('parity_images', 'images')}: {parity['differing']} of "
            f"{parity['neuron_steps']:,} spikes differ on equal inputs, {parity['ties']} of them ties at the "
            f"threshold; logits by {parity['logits']:.1e} of the largest; same class for {parity['same_top1']}",
            f"            {parity['model_differing']} of the model's own spikes differ from the graph's, "
            f"{parity['model_ties']} of them ties; logits by {parity['model_logits']:.1e}",
        ]
    if parity and parity["neuron_steps"]:
        lines += [f"firing rate {100 * parity['spikes'] / parity['neuron_steps']:.2f} % of neurons at a step"]
    lines += report.get("summary", [])
    for name, accuracy in report.get("accuracy", {}).items():
        lines += [f"accuracy    {name}: {accuracy:.2f} %"]
    return "\n".join(lines) + "\n"
