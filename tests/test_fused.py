"""Compiled neurons give what the plain functions give."""

import contextvars
import copy
import logging
import threading

import pytest
import timm
import torch
from test_rate import assert_same_grads, assert_two_passes_agree, loss_and_grads, random_frames, small_net
from torch._subclasses import FakeTensorMode

from snnzoo import InputError, LIFParams, Surrogate, fused, neurons, set_backend
from snnzoo.compilation import compile_options
from snnzoo.current import Current, Norm, Term, sum_steps

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
@pytest.mark.parametrize("num_steps", [1, 2, 5])
@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_compiled_net_equals_two_plain_passes(compiled, num_steps, reset):
    net = small_net(num_steps=num_steps, reset=reset, detach_reset=False)
    assert_two_passes_agree(net, random_frames(num_steps, False, 3, 3, 9, 7), False, 1e-5, reset=reset, detach=False)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compiled_sums_and_moments_equal_plain(compiled, layout):
    """Batch norms and additions inside the neuron's kernel, and the sweep over a convolution's output."""
    for num_steps in (1, 4):
        x, y = (LAYOUTS[layout](torch.randn(num_steps, 2, 60)) for _ in range(2))
        norms = [Norm(*(torch.rand(x.shape[2]) + 0.5 for _ in range(4)), eps=1e-5, of_batch=True) for _ in range(2)]
        for terms in ((Term(x, norms[0]),), (Term(x, norms[0]), Term(y)), (Term(x, norms[0]), Term(y, norms[1]))):
            got = fused.lif_statistics(Current(terms), LIFParams())
            expected = neurons.lif_statistics(sum_steps(Current(terms)), LIFParams())
            assert torch.equal(got[0], expected[0])
            torch.testing.assert_close(got[1:], expected[1:], rtol=1e-5, atol=1e-5)
        offset = x + 1000  # a mean far from zero costs no digits of the variance
        rate, mean, var = fused.moments(offset)
        torch.testing.assert_close(rate, offset.mean(0))
        torch.testing.assert_close(mean, offset.double().mean((0, 1, 3, 4)).float())
        torch.testing.assert_close(var, offset.double().var((0, 1, 3, 4), correction=0).float(), rtol=1e-4, atol=0)


@pytest.mark.slow
def test_sigmoid_by_series_equals_sigmoid(compiled):
    x = torch.linspace(-30, 30, 100_001)
    compiled_sigmoid = torch.compile(Surrogate("sigmoid", 2.0).derivative)
    torch.testing.assert_close(compiled_sigmoid(x), Surrogate("sigmoid", 2.0).derivative(x), rtol=0, atol=1e-6)
    exact = torch.linspace(-10, 10, 1001, dtype=torch.float64)
    torch.testing.assert_close(compiled_sigmoid(exact), Surrogate("sigmoid", 2.0).derivative(exact), rtol=0, atol=1e-15)
    far = torch.tensor([-1e30, 1e5, float("inf")])
    assert torch.equal(compiled_sigmoid(far), torch.zeros(3))


@pytest.mark.slow
def test_shapes_are_not_compiled_one_by_one(compiled):
    torch._dynamo.reset()
    fused._compiled.cache_clear()
    torch._dynamo.utils.counters.clear()
    for batch, channels, height, width in ((2, 3, 5, 4), (3, 8, 6, 6), (7, 4, 3, 9), (5, 16, 12, 2)):
        fused.lif_statistics(torch.randn(4, batch, channels, height, width), LIFParams())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2  # torch itself may specialise on the first shape


@pytest.mark.slow
@pytest.mark.parametrize("grad_method", ["rate", "bptt"])
def test_whole_model_compiles_in_one_graph(compiled, grad_method):
    net = small_net(num_steps=2, grad_method=grad_method, depths=(1, 1))
    x, target = torch.randn(3, 3, 9, 7, dtype=torch.float64), torch.arange(3)
    logits, expected = loss_and_grads(net, x, target)
    compiled_net = torch.compile(net, fullgraph=True)
    net.zero_grad()
    got = compiled_net(x)
    torch.nn.functional.cross_entropy(got, target).backward()
    torch.testing.assert_close(got.detach(), logits, rtol=1e-5, atol=1e-5)
    assert_same_grads({name: p.grad for name, p in net.named_parameters()}, expected, 1e-5)


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


@pytest.mark.slow
@pytest.mark.parametrize("grad_method", ["rate", "bptt"])
def test_compiled_gradients_are_there_again_and_have_their_own(compiled, grad_method):
    """``retain_graph=True``, in training and for saliency maps in evaluation, and the gradient of a gradient."""
    network = small_net(num_steps=2, grad_method=grad_method, depths=(1, 1))
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    found = {}
    for backend in ("compiled", "eager"):
        set_backend(backend)
        net = copy.deepcopy(network)
        loss = net(x).square().sum()
        loss.backward(retain_graph=True)
        once = [p.grad.clone() for p in net.parameters()]
        loss.backward()
        torch.testing.assert_close([p.grad for p in net.parameters()], [2 * g for g in once])
        jacobian = torch.autograd.functional.jacobian(net.eval(), x[:1])
        image = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(net(image)[:, 0].sum(), image, create_graph=True)
        (second,) = torch.autograd.grad(slope.square().sum(), image)
        assert second.abs().max() > 0
        found[backend] = [*once, jacobian, slope.detach(), second]
    set_backend("compiled")
    torch.testing.assert_close(found["compiled"], found["eager"], rtol=1e-8, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compiled_gradient_of_a_sum(compiled, layout):
    """By every term, scale and shift; a tensor that is two of the terms; terms and norms that need none."""
    x, y = (LAYOUTS[layout](torch.randn(3, 2, 60)).requires_grad_() for _ in range(2))
    weight, bias = (torch.rand(x.shape[2]).add(0.5).requires_grad_() for _ in range(2))
    norm = Norm(weight, bias, torch.randn(x.shape[2]), torch.rand(x.shape[2]) + 0.5, 1e-5, False)
    for terms, by in (
        ((Term(x, norm), Term(y), Term(x)), (x, y, weight, bias)),
        ((Term(x.detach(), norm), Term(y)), (y, bias)),
        ((Term(x, norm), Term(y.detach())), (x, weight)),
    ):
        spikes = fused.lif(Current(terms), LIFParams(detach_reset=False))
        expected = neurons.lif(sum_steps(Current(terms)), LIFParams(detach_reset=False))
        assert torch.equal(spikes, expected)
        grad = torch.randn_like(spikes)
        for create_graph in (False, True):
            got = torch.autograd.grad(spikes, by, grad, retain_graph=True, create_graph=create_graph)
            want = torch.autograd.grad(expected, by, grad, retain_graph=True)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("where", ["fake", "meta"])
def test_shapes_alone_are_not_compiled(monkeypatch, where):
    monkeypatch.setattr(fused, "_backend", "compiled")
    monkeypatch.setattr(fused, "_compiled", lambda fn: pytest.fail("it was compiled"))
    with FakeTensorMode() if where == "fake" else torch.device("meta"):
        net = timm.create_model("snn_resnet20_t2", depths=(1, 1), channels=(4, 8))
        for training in (True, False):
            assert net.train(training)(torch.randn(2, 3, 9, 7)).shape == (2, 10)


def test_calls_leave_nothing_behind(compiled):
    current = torch.randn(2, 3, 4)
    fused.lif(current, LIFParams())
    before = len(contextvars.copy_context())  # where torch 2.14 keeps its patches
    for _ in range(20):
        fused.lif(current, LIFParams())
    assert len(contextvars.copy_context()) <= before


def test_without_a_compiler_the_log_says_so(monkeypatch, caplog):
    monkeypatch.setattr(fused, "_backend", "auto")
    monkeypatch.setenv("PATH", "")
    fused._has_compiler.cache_clear()
    with caplog.at_level(logging.WARNING):
        fused.lif(torch.randn(2, 3), LIFParams())
        fused.lif(torch.randn(2, 3), LIFParams())
    fused._has_compiler.cache_clear()
    assert [r.message for r in caplog.records] == [
        "no C++ compiler found: neurons on cpu run uncompiled, a training step takes 1.2 times (wide networks) to 2 "
        "times (narrow ones) as long"
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


def test_uncompiled_block(monkeypatch):
    """Nested, after an error, and in the thread that asked alone."""
    monkeypatch.setattr(fused, "_backend", "compiled")
    monkeypatch.setattr(fused, "_compiled", lambda fn: pytest.fail("it was compiled"))
    other = []
    with pytest.raises(KeyError), fused.uncompiled():
        with fused.uncompiled():
            pass
        fused.lif(torch.randn(2, 3), LIFParams())
        thread = threading.Thread(target=lambda: other.append(fused._compiles(torch.zeros(1))))
        thread.start()
        thread.join()
        raise KeyError
    assert other == [True]
    assert fused._compiles(torch.zeros(1))


def test_a_callers_mistake_does_not_switch_the_compiler_off(monkeypatch, caplog):
    monkeypatch.setattr(fused, "_backend", "auto")
    monkeypatch.setattr(fused, "_has_compiler", lambda device: True)
    monkeypatch.setattr(fused, "_broken", set())
    monkeypatch.setattr(fused, "_compiled", lambda fn: fn)
    a, b = torch.randn(2, 3, 4, 5, 5), torch.randn(2, 3, 6, 5, 5)
    with pytest.raises(RuntimeError, match="size of tensor"):
        fused.lif(Current((Term(a), Term(b))), LIFParams())
    assert not fused._broken
    assert not caplog.records


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_numbers_are_compiled_right(compiled, dtype):
    """What inductor writes for batch norm and neurons of two memory formats; some g++ lose half of it."""

    def transposed(a, b, c, d):
        return (a.t().float() + b) * 0.5 + (c.t().float() + d)

    numbers = [torch.randn(64, 64).to(dtype) for _ in range(4)]
    whole = torch.compile(transposed, **compile_options("inductor", None, "cpu", dtype))
    torch.testing.assert_close(whole(*numbers), transposed(*numbers), rtol=1e-5, atol=1e-5)


def test_options_for_the_compiler():
    assert compile_options("inductor", "max-autotune", "cuda", torch.bfloat16) == {"mode": "max-autotune"}
    assert compile_options("inductor", None, "cpu", torch.float32) == {"mode": None}
    with pytest.raises(RuntimeError, match="nonsense"):
        torch.compile(torch.sin, **compile_options("inductor", "nonsense", "cpu", torch.bfloat16))
