"""lava-dl networks: their forward is ours, spike for spike, and they train."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from lava_slayer import MODELS, SMALL
from PIL import Image

from snnzoo import InputError
from snnzoo.export.lava.slayer import to_slayer

WORKER = Path(__file__).with_name("lava_slayer.py")


@pytest.fixture(scope="module")
def result(lava_python, digits, tmp_path_factory):
    """What the worker says of two images of each digit."""
    folder = tmp_path_factory.mktemp("slayer")
    files = [(label, path) for label in range(10) for path in sorted((digits / "train" / str(label)).iterdir())[:2]]
    images = np.stack([np.asarray(Image.open(path).convert("RGB").resize((16, 16))) for _, path in files])
    images = images.transpose(0, 3, 1, 2).astype(np.float32) / 128 - 1
    np.savez(folder / "images.npz", images=images, labels=np.array([label for label, _ in files]))
    done = subprocess.run(
        [lava_python, str(WORKER), str(folder / "images.npz")], capture_output=True, text=True, timeout=300,
        env=os.environ | {"SNNZOO_BACKEND": "eager"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.lava
@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_spike_is_ours(result, name):
    parity = result["parity"][name]
    assert parity["passed"]
    assert not parity["silent"]
    assert parity["from_graph"] <= 2  # ties at the threshold; what passed says that there is nothing else
    assert parity["from_model"] <= 2e-3 * parity["neuron_steps"]  # SLAYER's decay is 819 / 4096, the model's 0.2
    assert parity["caught"]  # with one channel's weights changed, the same comparison fails


@pytest.mark.lava
@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_quantised_it_is_the_arithmetic_of_the_chip(result, name):
    quantized = result["quantized"][name]
    assert quantized["wrong"] == 0
    assert 0 < quantized["from_model"] < 0.1 * quantized["neuron_steps"]
    assert 127 < quantized["largest_weight"] <= 254  # a scale twice as large would not fit
    assert 127 < quantized["largest_current"] <= 32767


@pytest.mark.lava
@pytest.mark.slow
def test_weighted_currents_are_cut_to_whole_units(result):
    """Only the PreAct shortcut weighs currents; what would be left without the cut is seen."""
    assert {name for name in MODELS if result["quantized"][name]["unshifted"]} == {"snn_preact_resnet18_t4"}


@pytest.mark.lava
@pytest.mark.slow
@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("name", ["snn_vgg11_t4", "snn_resnet20_t4"])
def test_training_goes_on(result, name, quantize):
    training = result["training"][f"{name}, {quantize}"]
    assert training["finite"]
    assert not training["zero"]  # every parameter has a gradient
    assert training["losses"][-1] < training["losses"][0] - 0.05


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("snn_resnet20_t4", dict(reset="soft"), r"act1 \(lif\), layer1.0.act1 .*reset='soft'.*train with reset='hard'"),
        ("snn_resnet34_t4", {}, r"maxpool \(pool\): SLAYER has no max pooling: train with stem='cifar'"),
        ("snn_sew_resnet18_t4", dict(stem="cifar", connect="iand"), r"layer1.0.connect \(gate\).*SEW's IAND.*connect"),
        ("snn_resnet20_t4", dict(threshold=3.0), r"act1 \(lif\).*threshold 3 is above 2"),
    ],
)
def test_what_slayer_cannot_express_is_named(name, kwargs, message):
    with pytest.raises(InputError, match=message):
        to_slayer(timm.create_model(name, **SMALL | kwargs), (3, 32, 32))


def test_anns_and_local_pooling_are_refused():
    with pytest.raises(InputError, match=r"act1 \(relu\).*the activation of an ANN.*cifar_resnet20: it has no LIF"):
        to_slayer(timm.create_model("cifar_resnet20", depths=(1,), channels=(4,)), (3, 16, 16))
    model = timm.create_model("snn_vgg11_t2", **SMALL)
    model.fc = torch.nn.Sequential(torch.nn.Identity())  # nothing linear behind the pooling
    with pytest.raises(InputError, match=r"global_pool.pool \(pool\): average pooling that is not global and before"):
        to_slayer(model, (3, 16, 16))


@pytest.mark.skipif(sys.version_info[:2] == (3, 10), reason="here lava-dl may be installed")
def test_without_lava_the_way_to_it_is_said():
    with pytest.raises(InputError, match=r"SLAYER needs lava, .*`make lava-env`.*snnzoo\[lava\]"):
        to_slayer(timm.create_model("snn_vgg11_t2", **SMALL), (3, 16, 16))
