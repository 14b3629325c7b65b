"""Our NIR files in other simulators, and the table of what each makes of which model.

``python -m snnzoo.export.importers docs/deploy.md`` makes the table anew.
"""

import contextlib
import io
import logging
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from snnzoo.errors import InputError
from snnzoo.export.graph import Graph
from snnzoo.export.interpret import Run, watch
from snnzoo.export.nir import DT, _nir, order, refusals, to_nir
from snnzoo.export.parity import compare
from snnzoo.export.trace import trace
from snnzoo.files import write_atomically
from snnzoo.rate import time_mean


def _snntorch(read, reset: str) -> nn.Module:
    from snntorch.import_nir import import_from_nir

    return import_from_nir(read)


def _norse(read, reset: str) -> nn.Module:
    from norse.torch import from_nir
    from norse.torch.functional import reset as resets

    method = {"hard": resets.reset_value, "soft": resets.reset_subtract}[reset]
    return from_nir(read, dt=DT, reset_method=method, ignore_warnings=True)


def _norse_in_order(read, reset: str) -> nn.Module:
    """norse runs nodes depth first, a join before its second branch: here, in an order that the graph allows."""
    net = _norse(read, reset)
    names = [_plain(name) for name in order(read)]
    net.execution_order.sort(key=lambda node: names.index(_plain(node.name)))
    return net


def _spikingjelly(read, reset: str) -> nn.Module:
    from spikingjelly.activation_based.neuron import BaseNode
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    net = import_from_nir(read)
    if reset == "soft":
        for module in net.modules():
            if isinstance(module, BaseNode):
                module.v_reset = None
    return net


# column of the table: (name of the target, how to import)
IMPORTERS: dict[str, tuple[str, Callable]] = {
    "snntorch": ("snntorch", _snntorch),
    "norse": ("norse", _norse),
    "norse, in order": ("norse", _norse_in_order),
    "spikingjelly": ("spikingjelly", _spikingjelly),
}


def _plain(name: str) -> str:
    """A node's name as modules may have it."""
    return name.replace(".", "_")


@torch.no_grad()
def run_file(path: str | Path, importer: str, graph: Graph, images: Tensor) -> Run:
    """Run a NIR file in another simulator, step by step.

    Args:
        path: the file.
        importer: one of :data:`IMPORTERS`; its package has to be installed.
        graph: what the file was written from.
        images: ``[B, C, H, W]``.
    """
    read = _nir().read(str(path))
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of the importers' own dependencies
        net = IMPORTERS[importer][1](read, graph.lifs[0].params.reset)
    seen: dict[str, list[Tensor]] = {node.name: [] for node in graph.lifs}
    by_module = {_plain(name): name for name in seen}

    def keep(name):
        def hook(module, args, output):
            seen[name].append((output[0] if isinstance(output, tuple) else output).float())

        return hook

    for module_name, module in net.named_modules():
        if _plain(module_name) in by_module:
            module.register_forward_hook(keep(by_module[_plain(module_name)]))
    logits, state = [], None
    for _ in range(graph.num_steps):
        output = net(images, state)
        output, state = output if isinstance(output, tuple) else (output, None)
        logits.append(output.float())
    answer = time_mean(torch.stack(logits), graph.output.decay)
    return Run(answer, {name: torch.stack(steps) for name, steps in seen.items()}, {})


_SMALL = dict(depths=(1, 2), channels=(8, 16), num_classes=10)
# Shapes of the zoo's families, small; what an importer makes of a model does not depend on its width and depth.
MODELS: dict[str, tuple[str, dict]] = {
    "snn_resnet18, 20": ("snn_resnet18_t4", {}),
    "snn_resnet18, 20, `shortcut='pad'`": ("snn_resnet20_t4", dict(shortcut="pad")),
    "snn_resnet19": ("snn_resnet19_t4", {}),
    "snn_resnet34": ("snn_resnet34_t4", {}),
    "snn_resnet34, `stem='cifar'`": ("snn_resnet34_t4", dict(stem="cifar")),
    "snn_preact_resnet": ("snn_preact_resnet18_t4", {}),
    "snn_preact_resnet, `stem='cifar'`": ("snn_preact_resnet18_t4", dict(stem="cifar")),
    "snn_sew_resnet": ("snn_sew_resnet18_t4", {}),
    "snn_sew_resnet, `stem='cifar'`": ("snn_sew_resnet18_t4", dict(stem="cifar")),
    "snn_sew_resnet, `stem='cifar', connect='iand'`": ("snn_sew_resnet18_t4", dict(stem="cifar", connect="iand")),
    "snn_vgg11": ("snn_vgg11_t4", {}),
}


def lively(name: str, seed: int = 0, **kwargs) -> nn.Module:
    """A model of random weights whose neurons fire in all layers."""
    torch.manual_seed(seed)
    model = timm.create_model(name, **kwargs)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.7)
    if getattr(model, "has_hidden_head", False):
        nn.init.uniform_(model.head_fc.bias, 0.3, 1.3)
    with torch.no_grad():
        for _ in range(10):
            model.train()(torch.randn(8, model.in_chans, 16, 16))
    return model.eval()


def verdict(graph: Graph, importer: str, images: Tensor, expected: Run) -> str:
    """One cell of the table: what an importer makes of a graph; ``expected`` is what the model does."""
    target = IMPORTERS[importer][0]
    if refusals(graph, target):
        return "refused"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.nir"
        _nir().write(str(path), to_nir(graph, target))
        try:
            run = run_file(path, importer, graph, images)
        except Exception as error:  # whatever an importer makes of it is the answer
            return f"fails ({type(error).__name__})"
    if run.logits.shape != expected.logits.shape:
        return "differs (another layer answers)"
    parity = compare(graph, images, expected, run)
    if parity.passed:
        return f"exact, {parity.ties} ties" if parity.ties else "exact"
    return f"differs ({parity.differing:,} neurons)"


BEGIN, END = "<!-- table: python -m snnzoo.export.importers -->\n", "<!-- end of table -->\n"


def support_table() -> str:
    """What each importer makes of each family, in Markdown."""
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    rows = [["model", "reset", *IMPORTERS], ["---"] * (2 + len(IMPORTERS))]
    for label, (name, kwargs) in MODELS.items():
        for reset in ("hard", "soft"):
            model = lively(name, reset=reset, **_SMALL, **kwargs)
            graph, expected = trace(model, tuple(images.shape[1:])), watch(model, images)
            cells = [verdict(graph, importer, images, expected) for importer in IMPORTERS]
            rows.append([label, reset, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def main() -> None:
    """Update the page that the command line names, docs/deploy.md by default."""
    logging.disable(logging.INFO)
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/deploy.md")
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if not path.is_file() or not pattern.search(path.read_text()):
        raise InputError(f"{str(path)!r} is not there, or has no line {BEGIN.strip()!r} to put the table behind")
    table = support_table()
    write_atomically(path, pattern.sub(lambda _: f"{BEGIN}\n{table}\n{END}", path.read_text()))


if __name__ == "__main__":
    main()
