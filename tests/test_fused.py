"""Compiled neurons give what the plain functions give."""

import logging

import pytest
import timm
import torch

from snnzoo import InputError, LIFParams, fused, neurons, set_backend

LAYOUTS = {
    "4d": lambda x: x,
    "contiguous": lambda x: x.unflatten(2, (3, 4, 5)),
    "channels_last": lambda x: x.unflatten(2, (4, 5, 3)).movedim(-1, 2),
    "held": lambda x: x[:1].unflatten(2, (3, 4, 5)).expand(len(x), -1, -1, -1, -1),
    "transposed": lambda x: x.unflatten(2, (3, 4, 5)).transpose(0, 1).contiguous().transpose(0, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("detach", [True, False])
def test_compiled_equals_plain(compiled, layout, reset, detach):
    params = LIFParams(0.3, 0.7, reset, detach)
    for num_steps in (1, 3):
        current = LAYOUTS[layout](torch.randn(num_steps, 2, 60)).requires_grad_()
        spikes, rate, slope = fused.lif_statistics(current, params)
        expected = neurons.lif_statistics(current, params)
        assert torch.equal(spikes, expected[0])
        torch.testing.assert_close((rate, slope), expected[1:], rtol=1e-5, atol=1e-5)
        assert spikes.shape == current.shape
        weight = torch.randn_like(spikes)
        (got,) = torch.autograd.grad((weight * fused.lif(current, params)).sum(), current)
        (want,) = torch.autograd.grad((weight * neurons.lif(current, params)).sum(), current)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_training_step_does_not_depend_on_compilation(compiled):
    net, x = timm.create_model("snn_resnet20_t2"), torch.randn(2, 3, 12, 10)
    grads = []
    for backend in ("compiled", "eager"):
        set_backend(backend)
        net.zero_grad()
        net(x).square().sum().backward()
        grads.append([p.grad.clone() for p in net.parameters()])
    set_backend("compiled")
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_without_a_compiler_the_log_says_so(monkeypatch, caplog):
    monkeypatch.setattr(fused, "_backend", "auto")
    monkeypatch.setenv("PATH", "")
    fused._has_compiler.cache_clear()
    with caplog.at_level(logging.WARNING):
        fused.lif(torch.randn(2, 3), LIFParams())
        fused.lif(torch.randn(2, 3), LIFParams())
    fused._has_compiler.cache_clear()
    assert [r.message for r in caplog.records] == [
        "no C++ compiler found: neurons on cpu run uncompiled, a training step takes longer"
    ]


def test_a_broken_compiler_is_left_alone(monkeypatch, caplog):
    monkeypatch.setattr(fused, "_backend", "auto")
    monkeypatch.setattr(fused, "_has_compiler", lambda device: True)
    monkeypatch.setattr(fused, "_broken", set())

    def broken(fn):
        raise RuntimeError("cc1plus: out of memory")

    monkeypatch.setattr(fused, "_compiled", broken)
    current = torch.randn(2, 3)
    assert torch.equal(fused.lif(current, LIFParams()), neurons.lif(current, LIFParams()))
    assert fused._broken == {"cpu"}
    assert caplog.text.count("compilation failed (RuntimeError)") == 1
    fused.lif(current, LIFParams())
    assert caplog.text.count("compilation failed (RuntimeError)") == 1
    set_backend("compiled")
    with pytest.raises(RuntimeError, match="cc1plus"):
        fused.lif(current, LIFParams())


def test_unknown_backend():
    with pytest.raises(InputError, match="must be one of auto, compiled, eager, got 'cuda'"):
        set_backend("cuda")


def test_out_of_memory_is_not_a_broken_compiler(monkeypatch):
    monkeypatch.setattr(fused, "_backend", "auto")
    monkeypatch.setattr(fused, "_has_compiler", lambda device: True)
    monkeypatch.setattr(fused, "_broken", set())

    def full(fn):
        raise torch.cuda.OutOfMemoryError("full")

    monkeypatch.setattr(fused, "_compiled", full)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        fused.lif(torch.randn(2, 3), LIFParams())
    assert not fused._broken
