"""Models under ``torch.func``: the same gradients, and those of every sample at once."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, vmap

from snnzoo import fused

MODELS = {
    "snn_resnet20_t2": dict(channels=(4, 4, 8), shortcut="pad", detach_reset=False),
    "snn_sew_resnet18_t2": dict(channels=(4, 4, 8, 8), reset="hard"),
    "snn_preact_resnet18_t2": dict(channels=(4, 4, 8, 8)),
    "snn_vgg11_t2": {},
}


@pytest.fixture(params=[(name, method) for name in MODELS for method in ("rate", "bptt")], ids="-".join)
def model(request):
    name, grad_method = request.param
    options = dict(num_classes=5, stem="cifar", threshold=0.5, grad_method=grad_method)
    return timm.create_model(name, **options | MODELS[name]).double().train()


@pytest.fixture
def batch():
    return torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.tensor([4, 0, 2])


def gradients(model, x, target):
    return torch.autograd.grad(F.cross_entropy(model(x), target), list(model.parameters()))


def params_of(model):
    return {key: param.detach() for key, param in model.named_parameters()}


def test_gradient(model, batch, monkeypatch):
    """With batch norm on the batch, whose running statistics, changed inside, have to be the transform's own."""
    expected = gradients(model, *batch)
    monkeypatch.setattr(fused, "_backend", "compiled")
    monkeypatch.setattr(fused, "_compiled", lambda fn: pytest.fail("a kernel cannot see through a transform"))

    def loss(params, x, target):
        buffers = {key: value.clone() for key, value in model.named_buffers()}
        return F.cross_entropy(functional_call(model, (params, buffers), (x,)), target)

    found = grad(loss)(params_of(model), *batch)
    torch.testing.assert_close(tuple(found.values()), expected, rtol=1e-8, atol=1e-10)


def test_gradients_of_every_sample(model, batch):
    """With batch norm frozen: no sample sees another one."""
    for _ in range(20):
        model(batch[0])  # running statistics with which neurons fire
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()

    def loss(params, x, target):
        return F.cross_entropy(functional_call(model, params, (x[None],)), target[None])

    found = vmap(grad(loss), in_dims=(None, 0, 0))(params_of(model), *batch)
    for i, (x, target) in enumerate(zip(*batch, strict=True)):
        expected = gradients(model, x[None], target[None])
        torch.testing.assert_close(tuple(g[i] for g in found.values()), expected, rtol=1e-8, atol=1e-10)
    assert all(g.abs().max() > 0 for g in found.values())
