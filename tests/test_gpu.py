"""On a GPU: the compiled kernels, the gradients, mixed precision, memory, and the trainer."""

import subprocess
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import ROOT
from safetensors.torch import save_file

from snnzoo import LIFParams, fused, neurons, set_backend
from snnzoo.data import write_digits

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def gradients(net, forward, x, target):
    net.zero_grad()
    loss = F.cross_entropy(neurons.full(forward(x)), target)
    loss.backward()
    return torch.cat([p.grad.flatten().double().cpu() for p in net.parameters()])


def relative_error(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("num_steps", [1, 2, 5])
@pytest.mark.parametrize("shape", [(3, 5, 7, 3), (4, 16, 8, 8), (1, 1, 1, 1)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_kernels_equal_the_plain_functions(compiled, num_steps, shape, channels_last):
    current = torch.randn(num_steps, *shape, device="cuda")
    if channels_last:
        current = current.movedim(2, -1).contiguous().movedim(-1, 2)
    for reset in ("soft", "hard"):
        params = LIFParams(0.3, 0.7, reset, False)
        spikes, rate, slope = fused.lif_statistics(current, params)
        expected = neurons.lif_statistics(current, params)
        assert torch.equal(spikes, expected[0])
        torch.testing.assert_close((rate, slope), expected[1:], rtol=1e-5, atol=1e-5)
    rate, mean, var = fused.moments(current)
    torch.testing.assert_close(rate, current.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean, current.mean((0, 1, 3, 4)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(var, current.var((0, 1, 3, 4), correction=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grad_method", ["rate", "bptt"])
def test_gradients_are_those_of_the_cpu(grad_method):
    net = timm.create_model("snn_resnet20_t4", grad_method=grad_method).double().train()
    x, target = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.arange(4)
    expected = gradients(net, net, x, target)
    net.cuda()
    assert relative_error(gradients(net, net, x.cuda(), target.cuda()), expected) < 1e-8


@pytest.mark.slow
def test_training_step_does_not_depend_on_compilation(compiled):
    net = timm.create_model("snn_resnet20_t4").cuda().double().train().to(memory_format=torch.channels_last)
    x, target = torch.randn(4, 3, 16, 16, device="cuda", dtype=torch.float64), torch.arange(4, device="cuda")
    got = gradients(net, net, x, target)
    whole = gradients(net, torch.compile(net), x, target)
    set_backend("eager")
    expected = gradients(net, net, x, target)
    assert relative_error(got, expected) < 1e-5
    assert relative_error(whole, expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_keeps_the_membrane_in_float32(compiled, dtype):
    eps = torch.finfo(dtype).eps
    current = torch.tensor([1 - eps / 2, *[eps / 16] * 8], device="cuda", dtype=dtype).view(9, 1, 1, 1, 1)
    assert sum(current.unbind()) < 1  # each of the eight is lost in rounding
    assert fused.lif(current, LIFParams(decay=1.0)).sum() == 1  # in the membrane none is
    net = timm.create_model("snn_resnet20_t4").cuda().train()
    x, target = torch.randn(32, 3, 32, 32, device="cuda"), torch.arange(32, device="cuda") % 10
    expected = gradients(net, net, x, target)
    with torch.autocast("cuda", dtype):
        got = gradients(net, net, x, target)
    assert all(p.grad.dtype == torch.float32 for p in net.parameters())
    assert got.isfinite().all()
    # Rounded currents are other spikes, the more the deeper: on a CPU 0.31 to 0.61 for twelve seeds; gradients
    # that have nothing to do with each other are near 0 in so many dimensions.
    assert F.cosine_similarity(got, expected, dim=0) > 0.3


def memory(net, x, target, num_steps):
    """Bytes that a training step keeps for its backward pass, and its peak."""
    net.num_steps = num_steps
    for _ in range(2):  # the second has all workspaces and kernels
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
        loss = F.cross_entropy(net(x), target)
        kept = torch.cuda.memory_allocated() - base
        loss.backward()
        net.zero_grad()
    return kept, torch.cuda.max_memory_allocated() - base


def test_memory_kept_by_rates_does_not_grow_with_steps(compiled):
    net = timm.create_model("snn_resnet18_t4").cuda().train()
    x, target = torch.randn(64, 3, 32, 32, device="cuda"), torch.arange(64, device="cuda") % 10
    (kept, _), (kept_longer, peak) = (memory(net, x, target, num_steps) for num_steps in (2, 8))
    assert kept_longer == pytest.approx(kept, rel=0.01)
    net.grad_method = "bptt"
    (kept, _), (kept_longer, peak_through_time) = (memory(net, x, target, num_steps) for num_steps in (2, 8))
    assert kept_longer > 3 * kept and peak_through_time > 1.5 * peak


@pytest.mark.slow
def test_the_trainer_trains_in_bfloat16(tmp_path):
    pytest.importorskip("sklearn")
    data, teacher, runs = write_digits(tmp_path / "digits"), tmp_path / "teacher.safetensors", tmp_path / "runs"
    save_file(timm.create_model("cifar_resnet20").state_dict(), teacher)
    command = (
        f"{sys.executable} train_distill.py --device cuda --amp --amp-dtype bfloat16 --channels-last --data-dir {data} "
        f"--input-size 3 8 8 --batch-size 100 --workers 2 --model snn_resnet20_t2 --crop-padding 1 --hflip 0 "
        f"--teacher cifar_resnet20 --teacher-checkpoint {teacher} --epochs 2 --output {runs} --experiment run"
    )
    subprocess.run(command.split(), check=True, cwd=ROOT)
    assert (runs / "run/summary.csv").read_text().count("\n") == 3
