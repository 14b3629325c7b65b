"""Several processes must give what one gives: statistics, gradients, twenty steps of training."""

import json
import os
import subprocess
import sys

import distributed_worker
import pytest
import timm
import torch
from conftest import ROOT
from torch import nn

from snnzoo import InputError, layers
from snnzoo.processes import Processes
from snnzoo.sync import SyncBatchNorm2d, SyncSpikingBatchNorm2d, synchronise


def torchrun(*command, processes=2, check=True, **kwargs):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
               *map(str, command)]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=check, env=environment, timeout=300, **kwargs)


@pytest.mark.parametrize("grad_method", ["rate", "bptt"])
def test_two_processes_give_the_result_of_one(grad_method):
    expected = distributed_worker.train(Processes("cpu"), grad_method)
    output = torchrun(ROOT / "tests/distributed_worker.py", grad_method).stdout
    found = json.loads(output.strip().splitlines()[-1])
    assert expected["losses"][-1] != pytest.approx(expected["losses"][0], abs=1e-2)  # it moves
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-4)
    for key, value in expected["running"].items():
        assert found["running"][key] == pytest.approx(value, rel=1e-2, abs=1e-3), key


def test_synchronise_keeps_parameters_and_refuses_what_it_does_not_know():
    model = timm.create_model("snn_resnet20_t1")
    before = dict(model.named_parameters()) | dict(model.named_buffers())
    synchronise(model)
    after = dict(model.named_parameters()) | dict(model.named_buffers())
    assert before.keys() == after.keys()
    assert all(after[name] is before[name] for name in before)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all(type(norm) is SyncSpikingBatchNorm2d for norm in norms)
    assert type(synchronise(nn.Sequential(nn.BatchNorm2d(3).eval()))[0]) is SyncBatchNorm2d
    assert isinstance(model.bn1, layers.BatchNorm2d)
    with pytest.raises(InputError, match="efficientnet_lite0|EfficientNet|Sequential.* has a BatchNormAct2d"):
        synchronise(timm.create_model("efficientnet_lite0"))
    # in evaluation nothing is exchanged: it works without other processes
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model.eval()(x), model(x))


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("snn_resnet20_t2", dict(grad_method="rate")),
        ("snn_resnet20_t2", dict(grad_method="bptt")),
        ("cifar_resnet20", {}),
    ],
)
def test_a_process_alone_has_batch_norm_as_it_was(name, kwargs):
    model, x = timm.create_model(name, depths=(1,), channels=(8,), **kwargs), torch.randn(2, 3, 8, 8)
    expected = model(x)
    running = model.bn1.running_mean.clone()
    model.bn1.reset_running_stats()
    assert torch.equal(synchronise(model)(x), expected)
    assert torch.equal(model.bn1.running_mean, running)
