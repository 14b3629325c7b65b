"""Every registered model, as timm tests its own; and what only spiking models have."""

import copy
import pickle

import pytest
import timm
import torch

from snnzoo import InputError
from snnzoo.layers import LIF
from snnzoo.models.spiking_resnet import PadShortcut

SPIKING = timm.list_models("snn_*")
ANNS = ["cifar_resnet18", "cifar_resnet20", "cifar_resnet32", "cifar_resnet56"]
ALL = SPIKING + ANNS


def small(name, **kwargs):
    """A model and two images, small enough to run in a test; its batch norms know them, so that spikes get through."""
    model, x = timm.create_model(name, **kwargs), torch.randn(2, kwargs.get("in_chans", 3), 16, 16)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(x)
    for norm in norms:
        norm.momentum = 0.1
    assert model.eval().forward_features(x).abs().sum() > 0
    return model.train(), x


def test_names():
    expected = {f"snn_resnet{depth}_t{steps}" for depth in (18, 20) for steps in (1, 2, 4, 6)}
    assert expected == set(SPIKING)
    assert set(ANNS) == set(timm.list_models("cifar_*"))
    for name in SPIKING:
        assert timm.create_model(name).num_steps == int(name.rsplit("_t")[1])


@pytest.mark.parametrize("name", ALL)
def test_forward_and_backward(name):
    model, x = small(name)
    out = model.eval()(x)
    assert out.shape == (2, 10)
    assert out.isfinite().all()
    assert torch.equal(model(x), out)  # no state survives a forward
    model.train()(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ALL)
def test_features(name):
    model, x = small(name)
    model.eval()
    final, intermediates = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x))
    torch.testing.assert_close(model.forward_head(final), model(x))
    for info, feature in zip(model.feature_info, intermediates, strict=True):
        assert feature.shape == (2, info["num_chs"], 16 // info["reduction"], 16 // info["reduction"])
        assert model.get_submodule(info["module"]) is not None
    last = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(last, intermediates[1:2])
    with pytest.raises(InputError, match="output_fmt must be 'NCHW'"):
        model.forward_intermediates(x, output_fmt="NLC")

    extractor = timm.create_model(name, features_only=True, out_indices=(0, 2)).eval()
    extractor.model.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(extractor(x), [intermediates[0], intermediates[2]])
    assert extractor.feature_info.channels() == [model.feature_info[i]["num_chs"] for i in (0, 2)]


@pytest.mark.parametrize("name", ["snn_resnet18_t2", "snn_resnet20_t4", "cifar_resnet20"])
def test_timm_head_surgery(name):
    model, x = small(name)
    model.reset_classifier(100)
    assert model(x).shape == (2, 100)
    assert model.get_classifier() is model.fc
    assert model.get_classifier(name_only=True) == "fc"
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, model.num_features, *[16 // model.feature_info[-1]["reduction"]] * 2)
    assert timm.create_model(name, num_classes=0)(x).shape == (2, model.num_features)
    assert timm.create_model(name, in_chans=1)(x[:, :1]).shape == (2, 10)
    assert timm.create_model(name, in_chans=2, global_pool="max", drop_rate=0.5)(x[:, :2]).shape == (2, 10)
    assert timm.create_model(name, stem="imagenet")(torch.randn(2, 3, 64, 64)).shape == (2, 10)


@pytest.mark.parametrize("name", ["snn_resnet18_t2", "cifar_resnet20"])
def test_config(name):
    model, _ = small(name)
    cfg = model.pretrained_cfg
    assert cfg["architecture"] == name
    assert cfg["tag"] == "c10"
    assert model.state_dict().keys() >= {cfg["first_conv"] + ".weight", cfg["classifier"] + ".weight"}
    assert not timm.models.is_model_pretrained(name)
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model(name, pretrained=True)


def test_parameter_groups():
    from timm.models import group_parameters

    model = timm.create_model("snn_resnet20_t2")
    groups = group_parameters(model, model.group_matcher())
    names = [name for members in groups.values() for name in members]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert len(groups) == 1 + 9 + 1


@pytest.mark.parametrize("grad_method", ["rate", "bptt"])
def test_gradient_checkpointing_changes_nothing(grad_method):
    model, x = small("snn_resnet20_t2", grad_method=grad_method)
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*grads)


def test_rate_mode_keeps_no_steps_with_checkpointing():
    model, x = small("snn_resnet20_t2")
    model.set_grad_checkpointing()
    model.train()(x)
    assert model.bn1.num_batches_tracked == model.layer3[0].bn1.num_batches_tracked == 2  # one each forward


def test_copies():
    model, x = small("snn_resnet20_t2")
    model.eval()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
    fresh = timm.create_model("snn_resnet20_t6").eval()
    assert set(fresh.state_dict()) == set(timm.create_model("cifar_resnet20", shortcut="conv").state_dict())
    fresh.load_state_dict(model.state_dict())
    fresh.num_steps = 2
    assert torch.equal(fresh(x), model(x))


def test_memory_formats_agree():
    model, x = small("snn_resnet20_t2")
    logits = model(x)
    model.to(memory_format=torch.channels_last)
    again = model(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(again, logits, rtol=1e-3, atol=1e-3)


# --- time --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["eval", "rate", "bptt"])
def test_a_repeated_frame_is_the_image(mode):
    model, x = small("snn_resnet20_t4")
    model.train(mode != "eval")
    model.grad_method = "rate" if mode == "eval" else mode
    torch.testing.assert_close(model(x.unsqueeze(1).repeat(1, 4, 1, 1, 1)), model(x), rtol=1e-4, atol=1e-4)


def test_frames_win_over_num_steps():
    model, _ = small("snn_resnet20_t4")
    model.eval()
    frames = torch.randn(2, 3, 3, 16, 16)
    model.num_steps = 1
    one = model(frames)
    model.num_steps = 6
    assert torch.equal(model(frames), one)
    single = model(frames[:, :1])
    model.num_steps = 1
    torch.testing.assert_close(single, model(frames[:, 0]))


def test_logits_are_time_averages():
    """The rates that reach the head are means of spikes: their multiples by T are whole numbers."""
    model, x = small("snn_resnet20_t4")
    for training in (False, True):
        model.train(training)
        counts = 4 * model.forward_features(x)
        torch.testing.assert_close(counts, counts.round())
        assert 0 <= counts.min() < counts.max() <= 4


def test_neuron_arguments_reach_every_layer():
    model = timm.create_model(
        "snn_resnet20_t2", decay=0.5, threshold=0.7, reset="hard", detach_reset=False, surrogate="atan"
    )
    neurons = {module.params for module in model.modules() if isinstance(module, LIF)}
    (params,) = neurons
    assert (params.decay, params.threshold, params.reset, params.detach_reset) == (0.5, 0.7, "hard", False)
    assert params.surrogate.name == "atan"


def test_pad_shortcut():
    x = torch.randn(2, 4, 6, 6)
    out = PadShortcut(4, 8, 2)(x)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert not out[:, :2].any()
    assert not out[:, 6:].any()
    model = timm.create_model("snn_resnet20_t2", shortcut="pad")
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    assert set(model.state_dict()) == set(timm.create_model("cifar_resnet20").state_dict())


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, 2.5, None])
def test_bad_num_steps(value):
    model = timm.create_model("snn_resnet20_t2")
    with pytest.raises(InputError, match="num_steps must be a whole number of at least 1, got"):
        model.num_steps = value
    assert model.num_steps == 2
    if value is not None:
        with pytest.raises(InputError, match="num_steps"):
            timm.create_model("snn_resnet20_t2", num_steps=value)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        (dict(grad_method="stdp"), "grad_method must be 'rate' or 'bptt', got 'stdp'"),
        (dict(reset="none"), "reset must be 'soft' or 'hard'"),
        (dict(stem="tiny"), r"stem must be one of \('cifar', 'imagenet'\), got 'tiny'"),
        (dict(shortcut="none"), "shortcut must be one of"),
        (dict(surrogate="step"), "surrogate: no such name 'step'"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(InputError, match=match):
        timm.create_model("snn_resnet20_t2", **kwargs)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 1, 16, 16), (2, 4, 1, 16, 16), (2, 0, 3, 16, 16), (2, 3)])
def test_odd_shapes(shape):
    with pytest.raises(InputError, match=r"expected images \[B, 3, H, W\] or frames \[B, T, 3, H, W\]"):
        timm.create_model("snn_resnet20_t2")(torch.randn(shape))
