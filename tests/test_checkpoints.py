"""Other people's weights in our networks: the same weights give the same outputs."""

import argparse
import re

import pytest
import timm
import torch
import torchvision
from torch import nn

from snnzoo import InputError
from snnzoo.model_options import add_model, make_model
from snnzoo.models._convert import checkpoint_filter_fn
from snnzoo.weights import load_weights

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def learn_statistics(model, x):
    """Random weights and batch-norm statistics that are far from the defaults."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.8, 1.6)
            nn.init.uniform_(module.bias, -0.1, 0.5)
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def ours(name, state_dict, **kwargs):
    """Our model with these weights, all of them and no others."""
    model = timm.create_model(name, num_classes=1000, **kwargs)
    model.load_state_dict(checkpoint_filter_fn(state_dict, model), strict=True)
    return model.eval()


# --- ANNs ----------------------------------------------------------------------------------------------------------

SAME_SHAPE = [(18, "snn_resnet18_t1", dict(stem="imagenet"))]
SAME_SHAPE += [(34, "snn_resnet34_t1", {}), (18, "snn_preact_resnet18_t1", {}), (34, "snn_preact_resnet34_t1", {})]
SAME_SHAPE += [(depth, f"snn_sew_resnet{depth}_t1", {}) for depth in (18, 34, 50)]


@pytest.mark.parametrize("source", ["timm", "torchvision"])
@pytest.mark.parametrize(("depth", "name", "kwargs"), SAME_SHAPE)
def test_an_ann_initialises_every_family(source, depth, name, kwargs):
    with torch.device("meta"):
        ann = (
            timm.create_model(f"resnet{depth}") if source == "timm" else getattr(torchvision.models, f"resnet{depth}")()
        )
    model = timm.create_model(name, num_classes=1000, device="meta", **kwargs)
    weights = checkpoint_filter_fn(ann.state_dict(), model)
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in weights.items()}


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_our_ann_is_timms(output_stride):
    ann = learn_statistics(timm.create_model("resnet18", output_stride=output_stride), X)
    model = ours("cifar_resnet18", ann.state_dict(), stem="imagenet", output_stride=output_stride)
    with torch.no_grad():
        torch.testing.assert_close(model(X), ann(X))
        torch.testing.assert_close(model.forward_intermediates(X), ann.forward_intermediates(X))
        tv = torchvision.models.resnet18().eval()
        tv.load_state_dict(ann.state_dict())
        if output_stride == 32:
            torch.testing.assert_close(model(X), tv(X))


def test_timm_loads_an_ann_into_a_spiking_model(tmp_path):
    """By create_model alone, with timm's own adaptation of classes and channels."""
    ann = torchvision.models.resnet18()
    torch.save(ann.state_dict(), tmp_path / "resnet18.pt")
    model = timm.create_model(
        "snn_sew_resnet18_t2",
        pretrained=True,
        pretrained_cfg_overlay=dict(file=str(tmp_path / "resnet18.pt"), num_classes=1000),
        num_classes=100,
        in_chans=1,
    )
    assert torch.equal(model.layer4[1].conv2.weight, ann.layer4[1].conv2.weight)
    torch.testing.assert_close(model.conv1.weight, ann.conv1.weight.sum(1, keepdim=True))
    assert model.fc.weight.shape == (100, 512)


# --- SpikingJelly --------------------------------------------------------------------------------------------------


def spikingjelly(family, builder, **kwargs):
    """A SpikingJelly network, in multi-step mode, with the neuron of ours: v <- (1 - 1/tau) v + x."""
    models = pytest.importorskip(f"spikingjelly.activation_based.model.{family}")
    from spikingjelly.activation_based import functional, neuron

    net = getattr(models, builder)(spiking_neuron=neuron.LIFNode, decay_input=False, **kwargs)
    functional.set_step_mode(net, "m")

    class Averaged(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            functional.reset_net(net)
            return net(x.unsqueeze(0).repeat(3, 1, 1, 1, 1)).mean(0)

    return net, Averaged()


NEURONS = [
    (dict(tau=2.0, v_reset=0.0, v_threshold=1.0), dict(decay=0.5, reset="hard", threshold=1.0)),
    (dict(tau=1.25, v_reset=None, v_threshold=0.8), dict(decay=0.2, reset="soft", threshold=0.8)),
]
SJ_MODELS = [("spiking_resnet", "spiking_resnet18", "snn_resnet18_t2", dict(stem="imagenet"), {})]
SJ_MODELS += [("spiking_resnet", "spiking_resnet34", "snn_resnet34_t2", {}, {})]
SJ_MODELS += [
    ("sew_resnet", f"sew_resnet{depth}", f"snn_sew_resnet{depth}_t2", dict(connect=connect.lower()), dict(cnf=connect))
    for depth, connect in [(18, "ADD"), (18, "AND"), (18, "IAND"), (34, "ADD"), (50, "ADD"), (50, "AND")]
    # not (50, "IAND"): SpikingJelly 2.0's bottleneck swaps branch and shortcut, unlike its basic block and the paper
]


@pytest.mark.parametrize(("family", "builder", "name", "kwargs", "theirs"), SJ_MODELS)
@pytest.mark.parametrize(("their_neuron", "our_neuron"), NEURONS)
def test_spikingjelly_gives_the_same_logits(family, builder, name, kwargs, theirs, their_neuron, our_neuron):
    net, averaged = spikingjelly(family, builder, **theirs, **their_neuron)
    learn_statistics(averaged, X)
    if theirs.get("cnf") == "AND":  # products of rates vanish: let more neurons fire
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.data += 1.0
    model = ours(name, net.state_dict(), num_steps=3, **kwargs, **our_neuron)
    with torch.no_grad():
        expected, logits = averaged(X), model(X)
        assert model.forward_features(X).sum() > 0
    assert expected.std() > 0
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


# Recorded from SpikingJelly 2.0: names of the first block that changes shape, and of what surrounds the stages.
NORM = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
SJ_KEYS = ["conv1.weight", *(f"bn1.{k}" for k in NORM), "fc.weight", "fc.bias"]
for _part in ("1", "2"):
    SJ_KEYS += [f"layer2.0.conv{_part}.weight", *(f"layer2.0.bn{_part}.{k}" for k in NORM)]
SJ_KEYS += ["layer2.0.downsample.0.weight", *(f"layer2.0.downsample.1.{k}" for k in NORM)]


@pytest.mark.parametrize("name", ["snn_resnet34_t2", "snn_sew_resnet34_t2"])
def test_spikingjellys_names_are_ours(name):
    model = timm.create_model(name, device="meta")
    got = [k for k in model.state_dict() if not k.startswith("layer") or k.startswith("layer2.0.")]
    assert sorted(got) == sorted(SJ_KEYS)


# --- the repositories of the papers --------------------------------------------------------------------------------


def renamed(state_dict, *pairs):
    for pattern, name in pairs:
        state_dict = {re.sub(pattern, name, key): value for key, value in state_dict.items()}
    return state_dict


def with_biases(state_dict):
    """The same network with a bias in every convolution, which the norm behind it takes away again."""
    out = dict(state_dict)
    for key in state_dict:
        if match := re.fullmatch(r"(.*)(conv(\d)|downsample\.0)\.weight", key):
            norm = match[1] + ("downsample.1" if "downsample" in key else f"bn{match[3]}")
            bias = torch.randn(len(state_dict[key]))
            out[key.replace("weight", "bias")] = bias
            out[f"{norm}.running_mean"] = state_dict[f"{norm}.running_mean"] + bias
    return out


def ratebp_resnet(state_dict):
    head = "0" if "head_fc.weight" not in state_dict else "2"
    return renamed(
        state_dict,
        (r"^conv1\.", "conv0.0."),
        (r"^bn1\.", "conv0.1."),
        (r"downsample\.", "shortcut."),
        (r"^fc\.", f"classifier.{head}."),
        (r"^head_fc\.", "classifier.0."),
    )


def ratebp_sew(state_dict):
    return renamed(with_biases(state_dict), (r"conv(\d)\.", r"convNeuron\1.0."), (r"bn(\d)\.", r"convNeuron\1.1."))


def original_sew(state_dict):
    return renamed(
        state_dict,
        (r"(layer.*)conv(\d)\.", r"\1conv\2.module.0."),
        (r"(layer.*)bn(\d)\.", r"\1conv\2.module.1."),
        (r"downsample\.", "downsample.0.module."),
    )


LAYOUTS = [
    ("snn_resnet18_t2", ratebp_resnet, "layer2.0.shortcut.1.weight", "classifier.0.bias"),
    ("snn_resnet19_t2", ratebp_resnet, "conv0.0.weight", "classifier.2.bias"),
    ("snn_sew_resnet18_t2", ratebp_sew, "convNeuron1.0.bias", "layer2.0.downsample.0.bias"),
    ("snn_preact_resnet18_t2", with_biases, "conv1.bias", "layer2.0.conv2.bias"),
    (
        "snn_sew_resnet50_t2",
        original_sew,
        "layer1.0.conv3.module.1.running_var",
        "layer1.0.downsample.0.module.0.weight",
    ),
]


@pytest.mark.parametrize(("name", "layout", "some", "other"), LAYOUTS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_published_layouts(name, layout, some, other, wrapped, tmp_path):
    """The inverse renaming, written from those repositories' model files, comes back to the same network."""
    model = learn_statistics(timm.create_model(name, num_classes=10), X)
    if model.has_hidden_head:
        nn.init.normal_(model.head_fc.weight)  # else its neurons stay silent
    theirs = layout(model.state_dict())
    assert {some, other} <= set(theirs)
    path = tmp_path / "model_weights.pth"
    torch.save({"best_acc": 90.0, "best_epoch": 3, "best_net": theirs} if wrapped else theirs, path)
    fresh = timm.create_model(name, num_classes=10).eval()
    load_weights(fresh, path)
    with torch.no_grad():
        torch.testing.assert_close(fresh(X), model(X), rtol=1e-4, atol=1e-4)


def test_a_foreign_network_is_refused(tmp_path):
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "resnet34.pt")
    model = timm.create_model("snn_sew_resnet18_t2", num_classes=1000)
    before = model.conv1.weight.clone()
    with pytest.raises(InputError, match="does not fit SpikingSEWResNet with 1000 classes"):
        load_weights(model, tmp_path / "resnet34.pt")
    assert torch.equal(model.conv1.weight, before)


def test_a_bias_without_a_batch_norm_is_too_many(tmp_path):
    torch.save({"conv1.weight": torch.ones(6, 3, 5, 5), "conv1.bias": torch.ones(6)}, tmp_path / "lenet.pth")
    with pytest.raises(InputError, match="lenet.pth' does not fit SpikingResNet with 10 classes"):
        load_weights(timm.create_model("snn_resnet20_t4"), tmp_path / "lenet.pth")


def test_every_command_takes_the_averaged_weights(tmp_path):
    parser = argparse.ArgumentParser()
    add_model(parser)
    weights = timm.create_model("snn_resnet20_t1").state_dict()
    averaged = weights | {"fc.bias": torch.full((10,), 0.5)}
    torch.save({"state_dict": weights, "state_dict_ema": averaged}, tmp_path / "x.pth.tar")
    checkpoint = ["snn_resnet20_t1", "--checkpoint", str(tmp_path / "x.pth.tar")]
    assert make_model(parser.parse_args([*checkpoint, "--use-ema"])).fc.bias.tolist() == [0.5] * 10
    assert make_model(parser.parse_args(checkpoint)).fc.bias.tolist() == weights["fc.bias"].tolist()
    with pytest.raises(InputError, match="averaged weights are those of a training checkpoint: give its file"):
        make_model(parser.parse_args(["snn_resnet20_t1", "--use-ema"]))
