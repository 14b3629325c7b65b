"""Every registered model, as timm tests its own; and what only spiking models have.

The networks are the registered ones with an eighth of their width, which none of these properties depends on.
"""

import copy
import itertools
import json
import pickle
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from timm.layers import create_feature_extractor, freeze_batch_norm_2d, unfreeze_batch_norm_2d
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay

from snnzoo import InputError
from snnzoo.distill import AnnGuidedDistillationTask
from snnzoo.layers import LIF
from snnzoo.models._blocks import PadShortcut
from snnzoo.models._pretrained import SHIPPED

SPIKING = timm.list_models("snn_*")
ANNS = timm.list_models("cifar_*")
ALL = SPIKING + ANNS
# Of each architecture one: for what costs seconds and does not depend on the default number of steps.
ARCHITECTURES = [name for name in SPIKING if name.endswith("_t2")] + [
    "cifar_resnet18",
    "cifar_resnet19",
    "cifar_resnet20",
]
IN1K = ["snn_resnet34", "snn_preact_resnet18", "snn_preact_resnet34"]
IN1K += [f"snn_sew_resnet{depth}" for depth in (18, 34, 50)]
RECIPES = {
    "c10": dict(input_size=(3, 32, 32), num_classes=10, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    "c100": dict(input_size=(3, 32, 32), num_classes=100, mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761)),
    "in1k": dict(input_size=(3, 224, 224), num_classes=1000, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "c10dvs": dict(input_size=(2, 48, 48), num_classes=10, mean=(0.0, 0.0), std=(1.0, 1.0)),
}


@cache
def narrow(name):
    """Arguments for an eighth of the width."""
    model = timm.create_model(name, device="meta")
    widths = dict(channels=tuple(info["num_chs"] // 8 for info in model.feature_info[1:]))
    return widths | (dict(head_width=32) if model.head_width else {})


def side(name):
    row = name.rsplit("_t")[0]
    return 64 if row in IN1K else 32 if row == "snn_vgg11" else 16


def small(name, **kwargs):
    """A narrow model and two images; its batch norms know them, so that spikes get through."""
    kwargs = narrow(name) | dict(num_classes=10) | kwargs
    model = timm.create_model(name, **kwargs)
    x = torch.randn(2, model.in_chans, side(name), side(name)).to(next(model.parameters()).dtype)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        if model.has_hidden_head:
            model.head_fc.weight.normal_()  # as untrained weights are, its neurons would not fire
        model.train()(x)
    for norm in norms:
        norm.momentum = 0.1
    with torch.no_grad():
        assert model.eval().forward_features(x).abs().sum() > 0
    return model.train(), x


@pytest.fixture(scope="module", params=ALL)
def zoo(request):
    """Each model in turn, in evaluation mode: its ``name``, ``x``, ``features`` and ``logits``. Not to be changed."""
    torch.manual_seed(0)
    model, x = small(request.param)
    with torch.no_grad():
        features, logits = model.eval().forward_features(x), model(x)
    return SimpleNamespace(name=request.param, model=model, x=x, features=features, logits=logits)


# --- norms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name in SPIKING])
@pytest.mark.parametrize("grad_method", ["rate", "bptt"])
def test_frozen_norms_are_norms_in_evaluation_mode(name, grad_method):
    model, x = small(name, grad_method=grad_method)
    frozen = freeze_batch_norm_2d(copy.deepcopy(model))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval().requires_grad_(False)
    torch.testing.assert_close(frozen(x), model(x))
    for net in (frozen, model):
        net(x).square().sum().backward()
    expected = {key: p.grad for key, p in model.named_parameters() if p.requires_grad}
    torch.testing.assert_close({key: p.grad for key, p in frozen.named_parameters()}, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(frozen.eval()(x), model.eval()(x))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("replace", "by"),
    [
        (torch.nn.SyncBatchNorm.convert_sync_batchnorm, "SyncBatchNorm"),
        (lambda model: unfreeze_batch_norm_2d(freeze_batch_norm_2d(model)), "BatchNorm2d"),
    ],
)
def test_norms_that_do_not_know_time_are_refused(replace, by, training):
    model, x = small("snn_resnet20_t2")
    with pytest.raises(InputError, match=f"^bn1 is a {by}, which does not know time.*synchronise.*eval"):
        replace(model).train(training)(x)


# --- the read-out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name in SPIKING])
def test_a_leaky_readout_is_an_integrator_over_the_steps(name):
    """Value and gradient through time, from the plain means over the first 1, 2 and 3 steps."""
    model, x = small(name, num_steps=3, dtype=torch.float64)
    model.eval().readout_decay = 0.6
    logits = model(x)
    torch.testing.assert_close(model.forward_head(model.forward_features(x)), logits)
    last, rates = model.forward_intermediates(x)
    torch.testing.assert_close(model.forward_head(last), logits)
    model.readout_decay, sums = 1.0, [0.0]
    torch.testing.assert_close(model.forward_intermediates(x, intermediates_only=True), rates)  # they stay rates
    for model.num_steps in (1, 2, 3):
        sums.append(model.num_steps * model(x))
    state = 0.0
    for before, after in itertools.pairwise(sums):
        state = 0.6 * state + (after - before)
    expected = state / (0.36 + 0.6 + 1)
    torch.testing.assert_close(logits, expected)
    assert not torch.allclose(logits, sums[-1] / 3)
    parameters = [p for p in model.parameters() if p.requires_grad]
    direction = torch.randn_like(logits)
    got, wanted = (torch.autograd.grad((y * direction).sum(), parameters) for y in (logits, expected))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("decay", [0, -0.5, 1.01, float("nan"), True, "0.6"])
def test_a_readout_that_cannot_be_is_refused(decay):
    with pytest.raises(InputError, match=r"readout_decay must lie in \(0, 1\], got "):
        timm.create_model("snn_resnet20_t2", readout_decay=decay)
    model = timm.create_model("snn_resnet20_t2")
    with pytest.raises(InputError, match="readout_decay"):
        model.readout_decay = decay
    assert model.readout_decay == 1.0


# --- names, tags, configurations ---------------------------------------------------------------------------------


def test_names():
    rows = ["snn_resnet18", "snn_resnet19", "snn_resnet20", "snn_vgg11", *IN1K]
    expected = {f"{row}_t{steps}" for row in rows for steps in (1, 2, 4, 6)} | {"snn_resnet19_t10"}
    assert set(SPIKING) == expected
    assert set(ANNS) == {f"cifar_resnet{depth}" for depth in (18, 19, 20, 32, 34, 56)}
    assert set(timm.list_models("snn_*", module="spiking_sew_resnet")) == {n for n in SPIKING if "_sew_" in n}
    assert timm.list_models("*resnet19*", exclude_filters="snn_*") == ["cifar_resnet19"]
    # only these are known to have weights without asking the Hub
    with_weights = set(timm.list_models(["snn_*.*", "cifar_*.*"], pretrained=True))
    assert with_weights == SHIPPED | {f"{name}.ann_in1k" for name in SPIKING if name.rsplit("_t")[0] in IN1K}
    # no name of timm's own is ours: each of the others comes from one of timm's modules
    modules = {timm.model_entrypoint(name).__module__.split(".")[0] for name in timm.list_models() if name not in ALL}
    assert modules == {"timm"}


@pytest.mark.parametrize("name", ALL)
def test_full_size(name):
    """At the registered widths and input size, on the meta device: shapes without arithmetic."""
    model = timm.create_model(name, device="meta").eval()
    if name in SPIKING:
        assert model.num_steps == int(name.rsplit("_t")[1])
    cfg = model.default_cfg
    features = model.forward_features(torch.empty(1, *cfg["input_size"], device="meta"))
    assert features.shape == (1, model.num_features, *cfg["pool_size"])
    assert model.forward_head(features).shape == (1, cfg["num_classes"])
    assert model.state_dict().keys() >= {f"{cfg[key]}.weight" for key in ("first_conv", "classifier")}
    assert model.fc.weight.device.type == "meta"


@pytest.mark.parametrize("name", ALL)
def test_tags(name):
    row = name.rsplit("_t")[0]
    tags = ["in1k", "ann_in1k"] if row in IN1K else ["c10", "c100"] + (["c10dvs"] if "resnet19" in row else [])
    assert set(timm.list_models(f"{name}.*", include_tags=True)) == {f"{name}.{tag}" for tag in tags}
    for tag in tags:
        cfg = timm.get_pretrained_cfg(f"{name}.{tag}").to_dict()
        expected = dict(RECIPES[tag.removeprefix("ann_")])
        teachers_prepare = row in ("cifar_resnet20", "cifar_resnet32", "cifar_resnet56") and tag == "c10"
        if teachers_prepare or f"{name}.{tag}" in SHIPPED:
            expected |= dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))  # as their weights were trained
        assert {key: cfg[key] for key in expected} == expected
        prepared = {"in1k": (0.875, "bilinear"), "ann_in1k": (0.95, "bicubic")}.get(tag, (1.0, "bilinear"))
        assert (cfg["crop_pct"], cfg["interpolation"]) == prepared
        model = timm.create_model(f"{name}.{tag}", device="meta")
        assert (model.num_classes, model.in_chans) == (cfg["num_classes"], cfg["input_size"][0])
        assert (model.default_cfg["architecture"], model.default_cfg["tag"]) == (name, tag)
        data = timm.data.resolve_model_data_config(model)
        assert (data["input_size"], data["mean"]) == (cfg["input_size"], cfg["mean"])
    assert timm.create_model(name, device="meta").default_cfg["tag"] == tags[0]
    assert timm.get_pretrained_cfg(name).tag == tags[0]


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_registered_configuration_is_that_of_the_weights_that_ship(name):
    cfg, made = timm.get_pretrained_cfg(name).to_dict(), timm.create_model(name, pretrained=True).pretrained_cfg
    registered, of_weights = (json.dumps(timm.data.resolve_data_config({}, pretrained_cfg=c)) for c in (cfg, made))
    assert registered == of_weights
    assert cfg["license"] == made["license"]


@pytest.mark.parametrize("name", ALL)
def test_pretrained_without_weights_fails(name):
    tag = timm.get_pretrained_cfg(name).tag
    for given in (name, f"{name}.{tag}"):
        if f"{name}.{tag}" in SHIPPED:
            continue
        with pytest.raises(InputError, match=rf"No pretrained weights exist for {name}\.{tag}: none ship with"):
            timm.create_model(given, pretrained=True, device="meta")


def test_safe_model_name():
    assert timm.models.safe_model_name("snn_resnet18_t4.c10") == "snn_resnet18_t4_c10"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_head_surgery_from_a_file(name, tmp_path):
    """Fine-tuning as timm does it: from 3 channels to 2 and from 10 classes to 7."""
    model, _ = small(name)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    source = dict(file=str(tmp_path / "weights.pt"), num_classes=10, input_size=(3, 32, 32))
    tuned = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=source, num_classes=7, in_chans=2, **narrow(name)
    )
    old, new = model.state_dict(), tuned.state_dict()
    assert set(old) == set(new)
    changed = {key for key in old if old[key].shape != new[key].shape}
    assert changed == {"conv1.weight", "fc.weight", "fc.bias"}
    assert all(torch.equal(old[key], new[key]) for key in set(old) - changed)
    torch.testing.assert_close(new["conv1.weight"], old["conv1.weight"][:, :2] * 1.5)
    logits = tuned.train()(torch.randn(2, 2, side(name), side(name)))
    assert logits.shape == (2, 7)
    logits.sum().backward()


# --- forward and backward ----------------------------------------------------------------------------------------


def test_forward(zoo):
    assert zoo.logits.shape == (2, 10)
    assert zoo.logits.isfinite().all()
    with torch.no_grad():
        assert torch.equal(zoo.model(zoo.x), zoo.logits)  # no state survives a forward
        torch.testing.assert_close(zoo.model.forward_head(zoo.features), zoo.logits)


def test_backward(zoo):
    model = copy.deepcopy(zoo.model).train()
    out = model(zoo.x)
    out.sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    assert [name for name, _ in model.named_parameters()][-2:] == ["fc.weight", "fc.bias"]
    # the path by way of the features is the same network
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.forward_head(model.forward_features(zoo.x)).sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], grads)


def test_copies(zoo):
    fresh = timm.create_model(zoo.name, num_classes=10, **narrow(zoo.name)).eval()
    fresh.load_state_dict(zoo.model.state_dict())
    for other in (copy.deepcopy(zoo.model), pickle.loads(pickle.dumps(zoo.model)), fresh):
        with torch.no_grad():
            assert torch.equal(other(zoo.x), zoo.logits)


def test_memory_formats_agree(zoo):
    model = copy.deepcopy(zoo.model).to(memory_format=torch.channels_last)
    with torch.no_grad():
        final, features = model.forward_intermediates(zoo.x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(model.forward_head(final), zoo.logits, rtol=1e-3, atol=1e-3)
    assert all(feature.is_contiguous(memory_format=torch.channels_last) for feature in features)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(zoo, dtype):
    model = copy.deepcopy(zoo.model).to("cpu", dtype)
    with torch.no_grad():
        logits = model(zoo.x.to(dtype))
        assert logits.dtype == model.forward_features(zoo.x.to(dtype)).dtype == dtype
        assert logits.shape == zoo.logits.shape
        assert logits.isfinite().all()
        # Rounding lets some neurons fire a step sooner or later, and an untrained network makes more of it with depth.
        stem = [net.forward_intermediates(zoo.x.to(next(net.parameters()).dtype))[1][0] for net in (model, zoo.model)]
    similarity = torch.nn.functional.cosine_similarity(*(feature.double().flatten() for feature in stem), dim=0)
    assert similarity > (0.9999 if dtype == torch.float64 else 0.9)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_created_in_a_dtype(name):
    model = timm.create_model(name, dtype=torch.bfloat16, device="cpu", **narrow(name))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    x = torch.randn(2, model.in_chans, 32, 32, dtype=torch.bfloat16)
    logits = model.train()(x)
    logits.sum().backward()
    assert logits.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.reset_classifier(3)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("in_chans", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_input_channels(name, in_chans):
    model = timm.create_model(name, in_chans=in_chans, num_classes=10, **narrow(name))
    assert model.conv1.weight.shape[1] == in_chans
    assert model(torch.randn(2, in_chans, side(name), side(name))).shape == (2, 10)


# --- features ----------------------------------------------------------------------------------------------------


def test_forward_intermediates(zoo):
    with torch.no_grad():
        final, intermediates = zoo.model.forward_intermediates(zoo.x)
        assert torch.equal(final, zoo.features)
        torch.testing.assert_close(zoo.model.forward_head(final), zoo.logits)
        size = zoo.x.shape[-1]
        for info, feature in zip(zoo.model.feature_info, intermediates, strict=True):
            assert feature.shape == (2, info["num_chs"], size // info["reduction"], size // info["reduction"])
            assert zoo.model.get_submodule(info["module"]) is not None
        assert torch.equal(intermediates[-1], final)
        for indices in ([1], 2, [0, -1]):
            got = zoo.model.forward_intermediates(zoo.x, indices=indices, intermediates_only=True)
            taken = intermediates[-indices:] if isinstance(indices, int) else [intermediates[i] for i in indices]
            torch.testing.assert_close(got, taken)
        early = zoo.model.forward_intermediates(zoo.x, indices=[1], stop_early=True)
        torch.testing.assert_close(early, (intermediates[1], intermediates[1:2]))
        torch.testing.assert_close(zoo.model.forward_intermediates(zoo.x, norm=True), (final, intermediates))
    with pytest.raises(InputError, match=r"output_fmt must be one of \('NCHW',\), got 'NLC'"):
        zoo.model.forward_intermediates(zoo.x, output_fmt="NLC")


def test_features_only(zoo):
    last = len(zoo.model.feature_info) - 1
    with torch.no_grad():
        intermediates = zoo.model.forward_intermediates(zoo.x, intermediates_only=True)
        for out_indices in (None, (0, 2), (-2,), (0,)):
            kwargs = {} if out_indices is None else dict(out_indices=out_indices)
            extractor = timm.create_model(zoo.name, features_only=True, **kwargs, **narrow(zoo.name)).eval()
            extractor.model.load_state_dict(zoo.model.state_dict(), strict=False)
            indices = range(last + 1) if out_indices is None else [i % (last + 1) for i in out_indices]
            torch.testing.assert_close(extractor(zoo.x), [intermediates[i] for i in indices])
            assert extractor.feature_info.channels() == [zoo.model.feature_info[i]["num_chs"] for i in indices]
            assert extractor.feature_info.reduction() == [zoo.model.feature_info[i]["reduction"] for i in indices]
            names = {name for name, _ in extractor.named_parameters()}
            assert not any("fc" in name or f"layer{max(indices) + 1}" in name for name in names)


def test_prune_intermediate_layers(zoo):
    with torch.no_grad():
        intermediates = zoo.model.forward_intermediates(zoo.x, intermediates_only=True)
        for index in range(len(intermediates)):
            model = copy.deepcopy(zoo.model)
            assert model.prune_intermediate_layers([index]) == [index]
            features = model(zoo.x)
            if index:  # with the stem alone what is left ends there too
                torch.testing.assert_close(features, intermediates[index])
            assert model.num_features == model.head_hidden_size == intermediates[index].shape[1]
            assert model.num_classes == 0
        model = copy.deepcopy(zoo.model)
        model.prune_intermediate_layers(1, prune_head=False)
        torch.testing.assert_close(model(zoo.x), zoo.logits)


def test_spiking_features_are_rates_or_refused():
    with pytest.raises(InputError, match="feature_cls must be 'getter' for a spiking model, got 'hook'"):
        timm.create_model("snn_resnet20_t2", features_only=True, feature_cls="hook")
    for kind in ("hook", "list", "fx", "getter"):
        extractor = timm.create_model("cifar_resnet20", features_only=True, feature_cls=kind)
        assert len(extractor(torch.randn(1, 3, 16, 16))) == 4


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if "cifar" not in name])
def test_output_stride(name, output_stride):
    model = timm.create_model(name, output_stride=output_stride, stem="imagenet", **narrow(name))
    assert model.feature_info[-1]["reduction"] <= output_stride
    size = 64 // model.feature_info[-1]["reduction"]
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, model.num_classes)
    assert model.forward_features(torch.randn(2, 3, 64, 64)).shape[-2:] == (size, size)
    with pytest.raises(InputError, match="output_stride must be a power of two from 4, .* to 32, got 2"):
        timm.create_model(name, output_stride=2, stem="imagenet", **narrow(name))


# --- head --------------------------------------------------------------------------------------------------------


def test_head(zoo):
    with torch.no_grad():
        model = copy.deepcopy(zoo.model)
        assert model.get_classifier() is model.fc
        assert model.get_classifier(name_only=True) == zoo.model.default_cfg["classifier"] == "fc"
        pre_logits = model.forward_head(zoo.features, pre_logits=True)
        assert pre_logits.shape == (2, model.head_hidden_size)
        torch.testing.assert_close(model.fc(pre_logits), zoo.logits)
        model.reset_classifier(100)
        assert model(zoo.x).shape == (2, 100)
        model.reset_classifier(0)
        assert model.num_classes == 0
        torch.testing.assert_close(model(zoo.x), pre_logits)
        model.reset_classifier(0, "")
        torch.testing.assert_close(model(zoo.x), zoo.features)
        for pool, width in (("avg", 1), ("max", 1), ("avgmax", 1), ("catavgmax", 2)):
            model.reset_classifier(5, pool)
            assert model(zoo.x).shape == (2, 5)
            if not model.head_width:
                assert model.head_hidden_size == width * model.num_features
        assert not model.fc.training
        assert timm.create_model(zoo.name, num_classes=0, **narrow(zoo.name))(zoo.x).shape == pre_logits.shape
        bare = timm.create_model(zoo.name, num_classes=0, global_pool="", **narrow(zoo.name))
        assert bare(zoo.x).shape == zoo.features.shape


def test_dropout_rates(zoo):
    model = timm.create_model(zoo.name, num_classes=10, drop_rate=0.5, **narrow(zoo.name))
    model.load_state_dict(zoo.model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(zoo.x), zoo.logits)
        assert not torch.equal(model.train()(zoo.x), model(zoo.x))


@pytest.mark.parametrize(
    ("name", "grad_method"),
    [
        (name, method)
        for name in ARCHITECTURES
        if "vgg" not in name
        for method in (("rate", "bptt") if name in SPIKING else (None,))
    ],
)
def test_drop_path(name, grad_method):
    model, x = small(name, drop_path_rate=0.9)
    plain = timm.create_model(name, num_classes=10, **narrow(name)).eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), plain(x))
    model.train()
    if name in SPIKING:
        model.grad_method = grad_method
    probabilities = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert probabilities == sorted(probabilities)
    assert probabilities[-1] == pytest.approx(0.9)
    assert not torch.equal(model(x), model(x))
    model(x).sum().backward()


def test_a_path_is_dropped_at_every_step():
    from snnzoo.layers import DropPath
    from snnzoo.rate import Signal

    x = torch.rand(3, 8, 2, 4, 4) + 0.5
    for values in (x, Signal(x, x.mean(0))):
        out = DropPath(0.5).train()(values)
        steps = out.steps if isinstance(out, Signal) else out
        kept = (steps / x).flatten(2)
        assert {float(value) for value in kept.unique()} == {0.0, 2.0}
        assert torch.equal(kept, kept[:1, :, :1].expand_as(kept))
        if isinstance(out, Signal):
            torch.testing.assert_close(out.rate, steps.mean(0))
        assert DropPath(0.5).eval()(values) is values


def test_no_path_to_drop():
    with pytest.raises(InputError, match="drop_path_rate needs connect='add', got connect='iand'"):
        timm.create_model("snn_sew_resnet18_t2", connect="iand", drop_path_rate=0.1, device="meta")
    with pytest.raises(InputError, match="drop_path_rate needs shortcuts, which a VGG does not have: got 0.1"):
        timm.create_model("snn_vgg11_t2", drop_path_rate=0.1, device="meta")


# --- training ----------------------------------------------------------------------------------------------------


def test_parameter_groups(zoo):
    names = sorted(name for name, _ in zoo.model.named_parameters())
    blocks = sum(len(getattr(zoo.model, stage)) for stage in zoo.model.stage_names)
    for coarse, expected in ((False, 1 + blocks + 1), (True, 1 + len(zoo.model.stage_names) + 1)):
        groups = group_parameters(zoo.model, zoo.model.group_matcher(coarse))
        assert sorted(name for members in groups.values() for name in members) == names
        assert len(groups) == expected
    decayed = param_groups_layer_decay(zoo.model, weight_decay=0.05, layer_decay=0.5)
    assert sum(len(group["params"]) for group in decayed) == len(names)
    assert {group["lr_scale"] for group in decayed} >= {1.0, 0.5 ** (blocks + 1)}
    assert zoo.model.no_weight_decay() == set()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("grad_method", ["rate", "bptt"])
def test_gradient_checkpointing_changes_nothing(name, grad_method):
    model, x = small(name, **(dict(grad_method=grad_method) if name in SPIKING else {}))
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


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name in SPIKING])
def test_every_architecture_can_be_a_student(name):
    """And an ANN of its number of stages its teacher, entered after each of them."""
    student, x = small(name)
    stages = len(student.stage_names)
    teacher = "cifar_resnet19" if student.has_hidden_head else "cifar_resnet18"
    ann, _ = small(teacher, depths=(1,) * stages, channels=(8,) * stages)
    task = AnnGuidedDistillationTask(student, ann, branches="all", input_size=x.shape[1:], verbose=False).train()
    result = task(x, torch.tensor([0, 1]))
    result["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.trainable_module.parameters())
    assert len(task.inspect(x)["hybrids"]) == len(student.feature_info)
    with torch.no_grad():
        torch.testing.assert_close(task.eval().inspect(x)["output"], student(x))


# --- compilers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_compiles_as_one_graph(name):
    torch._dynamo.reset()
    model, x = small(name)
    with torch.no_grad():
        expected = model.eval()(x)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch.export's own
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_exports(name):
    model, x = small(name)
    with torch.no_grad():
        expected = model.eval()(x)
        program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.testing.assert_close(program.module()(x), expected)
        more = torch.randn(5, *x.shape[1:])
        torch.testing.assert_close(program.module()(more), model(more))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_traces_with_fx(name, training):
    model, x = small(name, **(dict(connect="iand") if "_sew_" in name else {}))
    model.train(training)
    traced = create_feature_extractor(model, {"fc": "logits"}).train(training)
    torch.testing.assert_close(traced(x)["logits"], model(x))
    traced(x)["logits"].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_is_refused():
    with pytest.raises(InputError, match="SpikingResNet has no TorchScript form .* use torch.compile or torch.export"):
        torch.jit.script(timm.create_model("snn_resnet20_t2"))


# --- time --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["eval", "rate", "bptt"])
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name in SPIKING])
def test_a_repeated_frame_is_the_image(name, mode):
    model, x = small(name)
    model.train(mode != "eval")
    model.grad_method = "rate" if mode == "eval" else mode
    torch.testing.assert_close(model(x.unsqueeze(1).repeat(1, 2, 1, 1, 1)), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name in SPIKING])
def test_any_number_of_steps(name):
    model, x = small(name)
    model.eval()
    frames = torch.randn(2, 3, *x.shape[1:])
    with torch.no_grad():
        model.num_steps = 1
        one = model(frames)
        model.num_steps = 6
        assert torch.equal(model(frames), one)  # frames win over num_steps
        longer = timm.create_model(f"{name[:-2]}t6", num_classes=10, **narrow(name)).eval()
        longer.load_state_dict(model.state_dict())
        assert torch.equal(longer(x), model(x))
        single = model(frames[:, :1])
        model.num_steps = 1
        torch.testing.assert_close(single, model(frames[:, 0]))
        # the steps are there: other steps, other logits
        assert not torch.equal(single, one)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name in SPIKING])
def test_logits_are_time_averages(name, training):
    """Rates are means of spikes: their multiples by T are whole numbers, where a stage passes on spikes."""
    model, x = small(name)
    model.train(training)
    with torch.no_grad():
        counts = 2 * model.forward_features(x)
    whole = torch.allclose(counts, counts.round(), atol=1e-4)
    assert whole == ("_preact_" not in name)
    if whole:
        assert 0 <= counts.min() < counts.max()


def test_a_head_with_neurons_sees_the_spikes():
    """ResNet-19: the map takes its time series along; one without gives its rate at every step."""
    model, x = small("snn_resnet19_t4")
    frames = torch.randn(2, 4, *x.shape[1:])
    for training in (False, True):
        model.train(training)
        with torch.no_grad():
            expected = model(frames)
            features = model.forward_features(frames)
            torch.testing.assert_close(model.forward_head(features), expected)
            constant = model.forward_head(features.clone())
        assert constant.shape == expected.shape
        assert not torch.allclose(constant, expected)
    model.eval()
    with torch.no_grad():
        current = model.head_fc(model.global_pool(features)).expand(4, -1, -1)
        torch.testing.assert_close(model.forward_head(features.clone()), model.fc(model.head_act(current).mean(0)))


def test_a_map_that_was_changed_in_place_gives_its_rate_to_a_head_with_neurons():
    model, x = small("snn_resnet19_t4")
    model.eval()
    with torch.no_grad():
        features = model.forward_features(x)
        assert torch.equal(model.forward_head(features), model(x))
        features[:, :3] = 1.0
        assert torch.equal(model.forward_head(features), model.forward_head(features.clone()))
    with torch.inference_mode():  # where torch counts no changes
        assert torch.equal(model.forward_head(model.forward_features(x)), model(x))


def test_steps_set_later_are_in_what_timm_saves(tmp_path):
    model, x = small("snn_resnet20_t2")
    model.num_steps, model.grad_method = 5, "bptt"
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert (loaded.num_steps, loaded.grad_method) == (5, "bptt")
    assert torch.equal(loaded.eval()(x), model.eval()(x))


def test_the_copies_of_data_parallel():
    """torch makes a copy's parameters plain attributes, so that it has none."""
    model, x = small("snn_resnet20_t2")
    expected = model.eval()(x)
    replica = copy.deepcopy(model)
    for module in replica.modules():
        for name, parameter in list(module._parameters.items()):
            module._parameters.pop(name)
            setattr(module, name, None if parameter is None else parameter.detach())
    assert not list(replica.parameters())
    assert torch.equal(replica(x), expected)


def test_spike_head():
    model, x = small("snn_preact_resnet18_t2", spike_head=True)
    model.eval()
    with torch.no_grad():
        final, intermediates = model.forward_intermediates(x)
        assert torch.equal((2 * final).round(), 2 * final)
        assert not torch.equal(intermediates[-1], final)
        torch.testing.assert_close(model.forward_intermediates(x, norm=True)[1][-1], final)
        torch.testing.assert_close(model.forward_head(final), model(x))
    model.train()(x).sum().backward()


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name in SPIKING])
def test_neuron_arguments_reach_every_layer(name):
    neuron = dict(decay=0.5, threshold=0.7, reset="hard", detach_reset=False, surrogate="atan")
    model = timm.create_model(name, device="meta", **neuron)
    (params,) = {module.params for module in model.modules() if isinstance(module, LIF)}
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


@pytest.mark.parametrize("connect", ["add", "and", "iand"])
def test_connect(connect):
    from snnzoo.models.spiking_sew_resnet import Connect

    a, s = (torch.rand(2, 3, 4, 5, 5) < 0.5 for _ in range(2))
    expected = {"add": a.float() + s.float(), "and": (a & s).float(), "iand": (~a & s).float()}[connect]
    assert torch.equal(Connect(connect)(a.float(), s.float()), expected)
    model, x = small("snn_sew_resnet18_t2", connect=connect)
    with torch.no_grad():
        counts = 2 * model.eval().forward_features(x)
    assert (counts.max() > 2) == (connect == "add")  # only sums of spikes go beyond one a step


def test_branches_that_let_the_shortcut_through_do_so_in_16_bits():
    """0.7 in bfloat16 is less than 0.7."""
    kwargs = dict(stem="cifar", depths=(1, 1), channels=(64, 64), threshold=0.7, grad_method="bptt")
    model = timm.create_model("snn_sew_resnet18_t1", connect="and", **kwargs)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rates = model.forward_intermediates(torch.randn(2, 3, 16, 16), intermediates_only=True)
    assert all(rate.mean() > 0.1 for rate in rates)


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, 2.5, None, True])
def test_bad_num_steps(value):
    model = timm.create_model("snn_resnet20_t2", device="meta")
    with pytest.raises(InputError, match="num_steps must be a whole number of at least 1, got"):
        model.num_steps = value
    assert model.num_steps == 2
    model.num_steps = np.int64(3)
    assert type(model.num_steps) is int


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        (dict(num_steps=-1), "num_steps must be a whole number of at least 1, got -1"),
        (dict(grad_method="stdp"), r"grad_method must be one of \('rate', 'bptt'\), got 'stdp'"),
        (dict(reset="medium"), "reset must be 'soft' or 'hard', got 'medium'"),
        (dict(decay=1.5), r"decay must lie in \[0, 1\], got 1.5"),
        (dict(threshold=0), "threshold must be a positive number, got 0"),
        (dict(surrogate="step"), "surrogate: no such name 'step'; choose from sigmoid, atan"),
        (dict(stem="tiny"), r"stem must be one of \('cifar', 'imagenet'\), got 'tiny'"),
        (dict(output_stride=3), r"output_stride must be a power of two from \d, .* to 32, got 3"),
        (dict(depths=(1, 1)), "as many widths as depths"),
    ],
)
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name in SPIKING])
def test_bad_arguments(name, kwargs, match):
    with pytest.raises(InputError, match=match):
        timm.create_model(name, device="meta", **kwargs)


def test_bad_arguments_of_one_family():
    with pytest.raises(InputError, match=r"connect must be one of \('add', 'and', 'iand'\), got 'xor'"):
        timm.create_model("snn_sew_resnet18_t2", device="meta", connect="xor")
    with pytest.raises(InputError, match=r"shortcut must be one of \('conv', 'pad'\), got 'none'"):
        timm.create_model("snn_resnet20_t2", device="meta", shortcut="none")
    with pytest.raises(InputError, match=r"drop_path_rate must lie in \[0, 1\), got -0.5"):
        timm.create_model("snn_resnet20_t2", device="meta", drop_path_rate=-0.5)
    with pytest.raises(TypeError, match="connect"):
        timm.create_model("snn_resnet20_t2", device="meta", connect="add")


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 1, 16, 16), (2, 4, 1, 16, 16), (2, 3)])
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name in SPIKING])
def test_odd_shapes(name, shape):
    with pytest.raises(InputError, match=r"expected images \[B, 3, H, W\] or frames \[B, T, 3, H, W\]"):
        timm.create_model(name, device="meta")(torch.randn(shape))


@pytest.mark.parametrize("shape", [(0, 3, 32, 32), (2, 3, 0, 32), (2, 0, 3, 16, 16)])
def test_empty_input_is_refused(shape):
    with pytest.raises(InputError, match=r"^input of shape \(.*\): no axis may be empty"):
        timm.create_model("snn_resnet20_t2", device="meta")(torch.randn(shape))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(depths=2), "depths must be whole numbers of at least 1, one for each stage, got 2"),
        (dict(depths=(2, 0)), "depths must be .* got \\(2, 0\\)"),
        (dict(channels=16), "channels must be .* got 16"),
        (dict(channels="abc"), "channels must be .* got 'abc'"),
    ],
)
def test_depths_and_channels_are_sequences(kwargs, message):
    for name in ("snn_resnet20_t2", "snn_vgg11_t2", "snn_preact_resnet18_t2"):
        with pytest.raises(InputError, match=message):
            timm.create_model(name, device="meta", **kwargs)


def test_neurons_of_a_hidden_head_begin_at_their_threshold():
    model = timm.create_model("snn_resnet19_t4", depths=(1, 1), channels=(8, 16), head_width=64, threshold=0.5)
    model(torch.randn(8, 3, 16, 16))  # settles the batch norms
    fired = model.eval().forward_head(model.forward_features(torch.randn(8, 3, 16, 16)), pre_logits=True)
    assert 0.2 < float((fired > 0).float().mean()) < 0.95
    with torch.no_grad():
        model.head_fc.bias.zero_()
    model.reset_classifier(3)
    assert not model.head_fc.bias.any()  # what was trained stays
