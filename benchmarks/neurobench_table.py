#!/usr/bin/env python3
"""The table of docs/look.md that sets our profile beside NeuroBench's metrics.

    pip install 'snnzoo[neurobench,test]'
    python benchmarks/neurobench_table.py

Each model, at T = 4 with random weights scaled so that its neurons fire, sees the same 64 of scikit-learn's digits at
32x32 pixels in both.
"""

import re
import tempfile
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from snnzoo.analysis import profile
from snnzoo.data import write_digits
from snnzoo.export.importers import lively
from snnzoo.files import write_atomically
from snnzoo.layers import LIF
from snnzoo.model_options import open_data

MODELS = ("snn_resnet20_t4", "snn_resnet19_t4", "snn_vgg11_t4", "snn_preact_resnet18_t4", "snn_sew_resnet18_t4",
          "cifar_resnet20")  # fmt: skip
BEGIN, END = "<!-- table: python benchmarks/neurobench_table.py -->\n", "<!-- end of table -->\n"


def neurobench_counts(model: nn.Module, images: Tensor, batch_size: int) -> dict:
    """What NeuroBench says of a model and images, by its metrics' names."""
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.static import Footprint, ParameterCount
    from neurobench.metrics.workload import ActivationSparsity, SynapticOperations
    from neurobench.models import TorchModel

    wrapped = TorchModel(model)
    wrapped.add_activation_module(LIF)
    loader = DataLoader(TensorDataset(images, torch.zeros(len(images))), batch_size=batch_size)
    metrics = [[Footprint, ParameterCount], [ActivationSparsity, SynapticOperations]]
    return Benchmark(wrapped, loader, [], [], metrics).run(quiet=True)


def digits(count: int) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        options = Namespace(
            dataset="", data_dir=str(write_digits(folder)), input_size=(3, 32, 32), batch_size=count, crop_pct=1.0
        )
        model = lively("snn_resnet20_t1", num_classes=10)
        (batch,) = open_data(options, model, "validation", count=count)[1]
    return batch[0]


def table(images: Tensor) -> str:
    rows = [
        "| model | | parameters | footprint, bytes | activation sparsity | MACs | ACs | MACs + ACs | dense |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in MODELS:
        torch.manual_seed(0)
        model = lively(name, num_classes=10, stem="cifar")
        ours, theirs = profile(model, images.split(16)).totals, neurobench_counts(model, images, 16)
        ops = theirs["SynapticOperations"]
        sparsity = ours["activation_sparsity"]
        rows += [
            f"| `{name}` | ours | {ours['parameters']:,} | {ours['bytes']:,} | "
            f"{'' if sparsity is None else f'{sparsity:.6f}'} | {ours['macs']:,.0f} | {ours['acs']:,.0f} | "
            f"{ours['synops']:,.0f} | {ours['dense_macs']:,} |",
            f"| | NeuroBench | {theirs['ParameterCount']:,} | {theirs['Footprint']:,} | "
            f"{theirs['ActivationSparsity']:.6f} | {ops['Effective_MACs']:,.0f} | {ops['Effective_ACs']:,.0f} | "
            f"{ops['Effective_MACs'] + ops['Effective_ACs']:,.0f} | {ops['Dense']:,.0f} |",
        ]
    return "\n".join(rows) + "\n"


def main() -> None:
    page = Path(__file__).resolve().parent.parent / "docs/look.md"
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    made = f"{BEGIN}\n{table(digits(64))}\n{END}"
    write_atomically(page, pattern.sub(lambda match: made, page.read_text()))


if __name__ == "__main__":
    main()
