"""Operations against a count by hand and against NeuroBench; energy, state and steps; the command."""

import json
import re

import numpy as np
import pytest
import timm
import torch
from running import TINY, options
from torch import nn
from torch.nn.utils import prune

import train_distill
from benchmarks.neurobench_table import neurobench_counts
from snnzoo import InputError, cli
from snnzoo.analysis import Energy, firing_rates, profile
from snnzoo.export.importers import lively
from snnzoo.layers import Conv2d

SMALL = dict(depths=(1, 1), channels=(8, 16), num_classes=7, stem="cifar")


def by_hand(model, images):
    """Operations of every layer with weights, patch by patch.

    By name: kind of the inputs, synops, MACs, ACs, and MACs that meet no padding.
    """
    seen = {}

    def keep(name):
        def hook(module, args):
            seen[name] = args[0]

        return hook

    weighty = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    hooks = [module.register_forward_pre_hook(keep(name)) for name, module in weighty.items()]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    counted = {}
    for name, module in weighty.items():
        w = (module.weight != 0).double()
        x = seen[name].double()
        x = x.flatten(0, -4) if w.ndim == 4 else x.flatten(0, -2)

        def run(values, w, module=module):
            if w.ndim == 2:
                return float((values @ w.T).sum())
            padded = nn.functional.pad(values, [n for p in reversed(module.padding) for n in (p, p)])
            patches = nn.functional.unfold(padded, w.shape[-2:], dilation=module.dilation, stride=module.stride)
            # each group of outputs sees its own channels
            w, patches = w.flatten(1).unflatten(0, (module.groups, -1)), patches.unflatten(1, (module.groups, -1))
            return float((w @ patches).sum())

        synops, inside = run((x != 0).double(), w), run(torch.ones_like(x), torch.ones_like(w))
        if bool((x == x.round()).all()):
            counted[name] = "sums" if float(x.max()) > 1 else "spikes", synops, 0.0, run(x, w), inside
        else:
            counted[name] = "real", synops, synops, 0.0, inside
    return counted


BY_HAND = [
    ("snn_resnet20_t4", {}, {"real", "spikes"}),
    ("snn_resnet19_t2", {}, {"real", "spikes"}),
    ("snn_preact_resnet18_t4", {}, {"real", "spikes"}),
    ("snn_sew_resnet18_t2", {}, {"real", "spikes", "sums"}),
    ("snn_sew_resnet18_t4", dict(connect="iand"), {"real", "spikes"}),
    ("snn_vgg11_t2", {}, {"real", "spikes"}),
    ("cifar_resnet20", {}, {"real"}),
]


@pytest.mark.parametrize(("name", "kwargs", "kinds"), BY_HAND)
def test_operations_are_those_counted_by_hand(name, kwargs, kinds):
    model = lively(name, **SMALL, **kwargs)
    with torch.no_grad():
        model.layer2[0].conv1.weight[:, 0] = 0  # pruned weights are no operations
    images = torch.randn(4, 3, 16, 16)
    found = profile(model, images.split((3, 1)))
    expected = by_hand(model, images)
    assert {layer.name for layer in found.synapses} == set(expected)
    for layer in found.synapses:
        kind, synops, macs, acs, _ = expected[layer.name]
        assert layer.activity.inputs == kind
        got = layer.activity.synops, layer.activity.macs, layer.activity.acs
        assert got == pytest.approx((synops / 4, macs / 4, acs / 4))
    assert {layer.activity.inputs for layer in found.synapses} == kinds
    assert not model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_operations_of_grouped_convolutions():
    model = lively("snn_resnet20_t4", **SMALL)
    for groups, block in ((2, model.layer1[0]), (8, model.layer2[0])):
        conv = block.conv1
        block.conv1 = Conv2d(8, conv.out_channels, 3, stride=conv.stride, padding=1, groups=groups, bias=False)
    images = torch.randn(4, 3, 16, 16)
    found, expected = profile(model, [images]), by_hand(model, images)
    for layer in found.synapses:
        assert 0 < layer.activity.synops == pytest.approx(expected[layer.name][1] / 4)


def test_what_runs_once_and_what_runs_at_each_step():
    model = lively("snn_resnet20_t4", **SMALL)
    found = profile(model, [torch.randn(2, 3, 16, 16)])
    steps = {layer.name: layer.steps for layer in found.layers}
    assert steps["conv1"] == steps["fc"] == 1
    assert {steps[name] for name in steps if name not in ("conv1", "fc")} == {4}
    frames = profile(model, [torch.randn(2, 3, 3, 16, 16)])  # three frames
    assert frames.num_steps == frames.synapses[0].steps == 3
    # PreAct's shortcut carries currents, which change from step to step
    preact = profile(lively("snn_preact_resnet18_t4", **SMALL), [torch.randn(2, 3, 16, 16)])
    shortcut = next(layer for layer in preact.synapses if "downsample" in layer.name)
    assert (shortcut.steps, shortcut.activity.inputs) == (4, "real")


def test_events_are_whole_numbers():
    model = lively("snn_resnet19_t4", in_chans=2, **SMALL)
    frames = torch.randint(0, 4, (2, 4, 2, 16, 16)).float()
    first = profile(model, [frames]).synapses[0]
    assert first.activity.inputs == "sums"
    assert first.activity.acs > first.activity.synops > 0
    assert first.activity.macs == 0


def test_totals():
    model = lively("snn_resnet20_t4", **SMALL)
    images = torch.randn(4, 3, 16, 16)
    found = profile(model, [images], energy=Energy(mac=2.0, ac=0.5))
    totals = found.totals
    neurons = 3 * 8 * 16 * 16 + 2 * 16 * 8 * 8
    assert totals["neurons"] == neurons
    assert totals["state_bytes"] == 4 * neurons
    assert totals["membrane_updates"] == 4 * neurons
    assert totals["latency_steps"] == 4
    assert totals["parameters"] == sum(p.numel() for p in model.parameters())
    assert totals["macs"] == sum(layer.activity.macs for layer in found.synapses)
    assert totals["energy_uj"] == pytest.approx((2.0 * totals["macs"] + 0.5 * totals["acs"]) * 1e-6)
    assert totals["ann_energy_uj"] == pytest.approx(2.0 * totals["ann_macs"] * 1e-6)
    assert totals["energy_of_ann"] == pytest.approx(totals["energy_uj"] / totals["ann_energy_uj"])
    rates = firing_rates(model, [images])
    assert {layer.name: layer.rate for layer in found.neurons} == pytest.approx(rates)
    ann = profile(timm.create_model("cifar_resnet20", shortcut="conv", **SMALL), input_size=(3, 16, 16))
    assert ann.ann_macs == found.ann_macs == ann.totals["dense_macs"]
    assert ann.totals["energy_uj"] is None
    assert json.loads(json.dumps(found.to_dict()))["totals"] == totals


def test_rates_by_step():
    model = lively("snn_resnet20_t4", **SMALL)
    found = profile(model, [torch.randn(4, 3, 16, 16)])
    first = found.neurons[0]
    assert len(first.rates) == 4
    assert len(set(first.rates)) > 1  # the membrane fills up
    model.num_steps = 1  # and the first of four steps is the only one of one
    torch.manual_seed(0)
    images = torch.randn(4, 3, 16, 16)
    one = profile(model, [images]).neurons[0].rates
    model.num_steps = 4
    assert profile(model, [images]).neurons[0].rates[0] == pytest.approx(one[0])


def test_bad_input():
    model = timm.create_model("snn_resnet20_t2", **SMALL)
    with pytest.raises(InputError, match=r"got \(3, 16, 16\) and then \(3, 8, 8\)"):
        profile(model, [torch.randn(1, 3, 16, 16), torch.randn(1, 3, 8, 8)])
    with pytest.raises(InputError, match="a MAC must take a positive number of pJ, got 0"):
        Energy(mac=0)
    with pytest.raises(InputError, match="an AC must take a positive number of pJ, got -1"):
        Energy(ac=-1)
    prune.l1_unstructured(model.conv1, "weight", 0.5)
    with pytest.raises(InputError, match="conv1: its weights are computed from others.*prune.remove"):
        profile(model, [torch.randn(1, 3, 16, 16)])


def test_pruned_weights_are_not_counted():
    model = timm.create_model("cifar_resnet20", **SMALL)
    before = profile(model, [torch.rand(1, 3, 16, 16)]).totals["synops"]
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            prune.l1_unstructured(module, "weight", 0.5)
            prune.remove(module, "weight")
    assert profile(model, [torch.rand(1, 3, 16, 16)]).totals["synops"] < 0.6 * before


def test_steps_of_a_model_inside_another():
    model = timm.create_model("snn_resnet20_t4", **SMALL)
    wrapped = torch.nn.Sequential(torch.nn.Identity(), model)
    found = profile(wrapped, [torch.randn(1, 3, 16, 16)])
    assert found.num_steps == found.totals["latency_steps"] == model.num_steps


# --- NeuroBench ------------------------------------------------------------------------------------------------------

FAMILIES = [
    ("snn_resnet20_t4", {}),
    ("snn_preact_resnet18_t4", {}),
    ("snn_sew_resnet18_t4", {}),
    ("snn_vgg11_t4", {}),
    ("cifar_resnet20", {}),
]


@pytest.mark.filterwarnings("ignore")  # its own and its libraries'
@pytest.mark.parametrize(("name", "kwargs"), FAMILIES)
def test_neurobench_counts_the_same(name, kwargs):
    pytest.importorskip("neurobench", reason="needs the extra neurobench")
    model = lively(name, **SMALL, **kwargs)
    images = torch.randn(8, 3, 16, 16)
    ours = profile(model, images.split(4))
    theirs = neurobench_counts(model, images, 4)
    totals, ops = ours.totals, theirs["SynapticOperations"]
    assert theirs["ParameterCount"] == totals["parameters"]
    assert theirs["Footprint"] == totals["bytes"]
    if ours.neurons:  # theirs of an ANN is that of its ReLUs
        assert theirs["ActivationSparsity"] == pytest.approx(totals["activation_sparsity"])
    assert ops["Effective_MACs"] + ops["Effective_ACs"] == pytest.approx(totals["synops"], rel=1e-6)
    sums = sum(layer.activity.synops for layer in ours.synapses if layer.activity.inputs == "sums")
    assert bool(sums) == ("sew" in name)
    # a sum of spikes is one MAC to them, and to us an AC for each spike
    assert ops["Effective_MACs"] == pytest.approx(totals["macs"] + sums, rel=1e-6)
    # they leave out what meets the padding
    inside = sum(row[-1] for row in by_hand(model, images).values()) / 8
    assert ops["Dense"] == pytest.approx(inside, rel=1e-6)
    assert inside < totals["dense_macs"]


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    train_distill.main(options(digits, folder, "--experiment", "run"))
    return folder / "run/last.pth.tar"


def command(*more):
    cli.main(["profile", "snn_resnet20_t2", "--model-kwargs", TINY, "--input-size", "3", "8", "8", *map(str, more)])


def test_the_command(checkpoint, digits, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    files = ("-o", tmp_path / "p.json", "--plot", tmp_path / "p.png")
    command("--checkpoint", checkpoint, "--data-dir", digits, "--images", 20, "--ac-pj", 1, *files)
    text = capsys.readouterr().out
    assert "mean of 20 images" in text
    assert "at 4.6 pJ a MAC and 1 pJ an AC" in text
    written = json.loads((tmp_path / "p.json").read_text())
    assert written["images"] == 20
    assert written["energy"] == {"mac_pj": 4.6, "ac_pj": 1.0}
    assert f"{written['totals']['energy_uj']:.3f} µJ an image" in text
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_without_images_no_rates_are_invented(tmp_path, capsys):
    command("-o", tmp_path / "p.json")
    text = capsys.readouterr().out
    assert "give --data-dir DIR" in text
    assert "zeros %" not in text and "SynOps" not in text
    written = json.loads((tmp_path / "p.json").read_text())
    assert written["totals"]["energy_uj"] is None
    assert written["totals"]["ann_energy_uj"] > 0
    assert all(row.get("rates") is None and row.get("activity") is None for row in written["layers"])


def test_frames(tmp_path, capsys):
    for name in ("a", "b"):
        folder = tmp_path / "validation" / name
        folder.mkdir(parents=True)
        np.save(folder / "1.npy", np.random.default_rng(0).integers(0, 3, (3, 2, 8, 8)).astype(np.float32))
    where = f"--dataset frames --data-dir {tmp_path} --input-size 2 8 8 -o {tmp_path}/p.json"
    cli.main(f"profile snn_resnet20_t2 --model-kwargs {TINY} {where}".split())
    written = json.loads((tmp_path / "p.json").read_text())
    assert (written["num_steps"], written["images"]) == (3, 2)
    assert written["layers"][0]["activity"]["inputs"] == "sums"


def test_untrained_weights_are_pointed_out(digits, capsys):
    command("--data-dir", digits, "--images", 4)
    assert "untrained weights" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (("--plot", "p.png"), "--plot draws activity, which needs images: give --data-dir"),
        (("--plot", "p.txt"), r"figure 'p.txt': its suffix must be one of .*png"),
        (("-o", "p.csv"), r"--output must end in .json, got 'p.csv'"),
        (("-o", "/dev/null/p.json"), "'/dev/null/p.json' cannot be written .File exists.: name another file"),
        (("--device", "nothing"), "--device nothing does not fit"),
        (("--mac-pj", "0"), "a MAC must take a positive number"),
        (("--data-dir", "DIGITS", "--images", "0"), "the number of images must be at least 1, got 0"),
        (("--data-dir", "DIGITS", "--batch-size", "0"), "--batch-size must be at least 1, got 0"),
        (("--data-dir", "nowhere"), "there is no such folder"),
        (("--num-steps", "0"), "num_steps must be a whole number of at least 1, got 0"),
        (("--checkpoint", "nowhere.pth.tar"), "no checkpoint file at 'nowhere.pth.tar'"),
    ],
)
def test_bad_options(digits, capsys, more, match):
    with pytest.raises(SystemExit) as ended:
        command(*(digits if word == "DIGITS" else word for word in more))
    assert ended.value.code == 2
    assert re.search(match, capsys.readouterr().err)
