"""Loihi: integers, their file, and Lava's simulator, which has to fire what was predicted."""

import copy
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform

from snnzoo import InputError, LIFParams, cli
from snnzoo.export import graph as g
from snnzoo.export.importers import lively
from snnzoo.export.interpret import interpret
from snnzoo.export.lava import (
    Layer,
    LoihiNetwork,
    MismatchError,
    Synapses,
    compare,
    open_network,
    quantize,
    run_simulator,
    simulate,
    simulate_integer,
)
from snnzoo.export.lava import export as exporter
from snnzoo.export.lava.export import _lost
from snnzoo.export.lava.interpreter import find_interpreter
from snnzoo.export.lava.lower import evaluate, lower, pixel_offset
from snnzoo.export.lava.simulator.network import NetworkError, load, save
from snnzoo.export.parity import ParityError
from snnzoo.export.trace import trace
from snnzoo.rate import time_mean

h5py = pytest.importorskip("h5py")

SMALL = dict(depths=(1, 1), channels=(4, 8), num_classes=10)
CASES = {  # name: (model, arguments, size of the images)
    "resnet20": ("snn_resnet20_t2", {}, 8),
    "resnet20, pad, hard": ("snn_resnet20_t4", dict(shortcut="pad", reset="hard", readout_decay=0.6), 8),
    "resnet19": ("snn_resnet19_t2", {}, 8),
    "resnet34": ("snn_resnet34_t2", {}, 16),
    "preact": ("snn_preact_resnet18_t2", dict(stem="cifar", depths=(1, 2)), 8),
    "preact, hard": ("snn_preact_resnet18_t4", dict(stem="cifar", reset="hard", spike_head=True), 8),
    "sew": ("snn_sew_resnet18_t4", {}, 24),
    "sew, and": ("snn_sew_resnet18_t2", dict(connect="and", reset="hard"), 24),
    "sew, iand": ("snn_sew_resnet18_t2", dict(connect="iand"), 24),
    "vgg": ("snn_vgg11_t2", dict(reset="hard", readout_decay=0.7), 8),
}


def pixels(count, size, seed=0):
    """Noise, at every strength, as 8-bit images."""
    return torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def photographs(count, size, seed):
    """Crops of scikit-learn's two photographs, as 8-bit images: what real pixels are like."""
    datasets = pytest.importorskip("sklearn.datasets")
    random, images = np.random.default_rng(seed), []
    for number in range(count):
        photo = Image.fromarray(datasets.load_sample_images().images[number % 2])
        side = int(random.integers(3 * size, 400))
        left, top = (int(random.integers(0, n - side)) for n in photo.size)
        images.append(np.asarray(photo.resize((size, size), box=(left, top, left + side, top + side))))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def graph_of(case):
    name, kwargs, size = CASES[case]
    return trace(lively(name, **{**SMALL, **kwargs}), (3, size, size)), size


@pytest.fixture(scope="module")
def quantized():
    """Networks by case, made once."""
    made = {}

    def get(case):
        if case not in made:
            graph, size = graph_of(case)
            made[case] = quantize(graph, photographs(16, size, seed=1)), graph, photographs(2, size, seed=2)
        return made[case]

    return get


def float_images(graph, images):
    mean, std = (torch.tensor(graph.metadata[key])[:, None, None] for key in ("mean", "std"))
    return (images / 255 - mean) / std


# --- the populations, in real numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_populations_compute_the_graph(case):
    graph, size = graph_of(case)
    graph.metadata.update(mean=(0.481, 0.45, 0.4), std=(0.2, 0.25, 0.3))  # the mean is no whole pixel: borders differ
    images = pixels(4, size)
    expected = interpret(graph, float_images(graph, images))
    populations = lower(graph, graph.metadata["mean"], graph.metadata["std"])
    offset = pixel_offset(graph.metadata["mean"]).float()[:, None, None]
    got = evaluate(populations, images - offset, graph.num_steps)
    for name, spikes in expected.spikes.items():
        assert torch.equal(got[name].reshape(spikes.shape), spikes)
    logits = time_mean(got["logits"], graph.output.decay).flatten(1)
    torch.testing.assert_close(logits, expected.logits, rtol=1e-4, atol=1e-5)


def test_a_pooled_answer_is_refused():
    graph = trace(timm.create_model("snn_resnet20_t2", **{**SMALL, "num_classes": 0}), (3, 8, 8))
    with pytest.raises(InputError, match="the answer is a pooled map without a classifier: set num_classes"):
        quantize(graph, pixels(2, 8))


def of_nodes(*nodes, shape=(3, 8, 8)):
    return g.Graph((g.Input("images", (), shape), *nodes), metadata=dict(mean=(0.5,) * 3, std=(0.2,) * 3))


def conv(name="conv", reads="images", bias=0.0):
    return g.Conv(name, (reads,), torch.randn(3, 3, 3, 3), torch.full((3,), bias), padding=(1, 1))


LIF = g.LIF("lif", ("conv",), LIFParams())


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ((conv(), g.ReLU("act", ("conv",)), g.Output("out", ("act",))), "has no LIF layer"),
        ((conv(), LIF, g.ReLU("act", ("lif",)), g.Output("out", ("act",))), r"act \(relu\).*an ANN's activation"),
        ((conv(), g.Pool("p", ("conv",), "max", (2, 2), (2, 2)), g.LIF("lif", ("p",), LIFParams()),
          g.Output("out", ("lif",))), r"p \(max pooling\).*stem='cifar'"),
        ((conv(), LIF, g.Pool("p", ("lif",), "avg", (2, 2), (2, 2)), g.Output("out", ("p",))), "only that of the"),
        ((conv(), LIF, g.Add("add", ("lif", "lif")), g.Gate("gate", ("lif", "add"), gate="and"),
          g.Output("out", ("gate",))), r"gate \(and\) needs plain spikes, add sends"),
    ],
)  # fmt: skip
def test_what_neurons_cannot_do_is_named(nodes, message):
    with pytest.raises(InputError, match=message):
        quantize(of_nodes(*nodes), pixels(2, 8))


# --- the integers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["resnet20", "preact", "sew", "resnet34"])
def test_integers_lose_little(quantized, case):
    result, graph, images = quantized(case)
    run = simulate_integer(result.network, images)
    model = interpret(graph, float_images(graph, images))
    for name, spikes in model.spikes.items():
        assert float((run.spikes[name].reshape(spikes.shape) == spikes).double().mean()) > 0.75, name
    assert not run.overflows
    for report in result.layers:
        assert report.alone is None or report.alone > 0.98
        assert report.worst_current <= 32767
        assert report.largest_weight > 3 or report.alone is None


@pytest.mark.parametrize("decay", [1.0, 0.6, 1e-5])
def test_the_readout_leaks_as_the_models(decay):
    """The state after the last step is the weighted mean of what the integers' own spikes brought, but for the cut of a
    64th of a unit at each step."""
    model = lively("snn_resnet20_t4", **SMALL, readout_decay=decay)
    result = quantize(model, photographs(16, 8, seed=1))
    images = photographs(8, 8, seed=2)
    run = simulate_integer(result.network, images)
    (link,) = result.network.readout.inputs
    weight = torch.from_numpy(link.weight).double() * result.network.readout.scale
    bias = result.network.readout.bias_map() * 2.0**result.network.readout.bias_exp / 64 * result.network.readout.scale
    spikes = run.spikes[link.source].double()
    steps = torch.stack([torch.nn.functional.conv2d(s, weight).flatten(1) for s in spikes])
    kept = round(4096 * decay) / 4096 if decay > 1e-4 else 1 / 4096  # the chip leaves at least that much
    weights = torch.tensor([kept ** (3 - t) for t in range(4)], dtype=torch.float64)
    expected = torch.einsum("t,tbo->bo", weights / weights.sum(), steps) + torch.from_numpy(bias).flatten()
    torch.testing.assert_close(run.logits, expected, rtol=0, atol=4 / 64 * result.network.readout.scale)
    assert not torch.allclose(run.logits, steps.mean(0) + torch.from_numpy(bias).flatten(), atol=1e-2) or decay == 1


def test_a_large_window_of_pixels_keeps_its_weights(quantized):
    """In 16 bits 147 pixels would leave 3 bits and a sign of a weight: they are added up in 24, and shifted."""
    result, _, _ = quantized("resnet34")
    (shifted,) = result.network["act1"].inputs
    (pixels,) = result.network[shifted.source].inputs
    assert shifted.shift > 0 and pixels.source == "images" and pixels.origin == "conv1"
    report = result.layers[0]
    assert 64 <= report.largest_weight == abs(pixels.weight.astype(int)).max() <= 127
    assert report.guaranteed and 32000 < report.worst_current <= 32767 and report.alone > 0.99


def test_saturated_weights_between_layers_count():
    """Weights far beyond the others are cut off where currents are passed on as they are before neurons."""
    model = lively("snn_preact_resnet18_t2", **SMALL, stem="cifar").eval()
    weight = model.layer1[0].conv2.weight
    torch.manual_seed(0)
    with torch.no_grad():
        weight.mul_(torch.randn_like(weight).square())
    result = quantize(model, pixels(8, 8))
    (between,) = (s for s in result.network["layer1.0.add"].inputs if s.origin == "layer1.0.conv2")
    assert (abs(between.weight.astype(int)) >= 127).sum() > 1
    assert result.saturated > sum(layer.saturated for layer in result.layers)


def test_threshold_is_the_models_rule():
    """A current of exactly Vth fires, one 64th of a unit less does not, whatever the threshold."""
    images = pixels(1, 8)
    for threshold in (0.5, 1.0, 1.7):
        lif = g.LIF("lif", ("conv",), LIFParams(threshold=threshold, decay=0.0))
        head = g.Conv("head", ("lif",), torch.ones(1, 3, 8, 8), torch.zeros(1))
        network = quantize(of_nodes(conv(), lif, head, g.Output("out", ("head",))), images).network
        layer = network["lif"]
        least = 64 * layer.threshold + 1
        assert least / 64 * layer.scale == pytest.approx(threshold, rel=1e-12)


def by_hand(network, image):
    """One image through the network in whole numbers, written down once more: loops, no library."""
    values = {network.layers[0].name: [network.pixels(image[None])[0].astype(object)] * network.num_steps}
    for layer in network.layers[1:]:
        sums = [np.zeros(layer.shape, object) for _ in range(network.num_steps)]
        for s in layer.inputs:
            for step, x in enumerate(values[s.source]):
                if s.shift:
                    sums[step] = sums[step] + x // 2**s.shift
                    continue
                (ph, pw), (sh, sw) = s.padding, s.stride
                padded = np.pad(x, ((0, 0), (ph, ph), (pw, pw)))
                outs, ins, kh, kw = s.weight.shape
                for o in range(outs):
                    first = o // (outs // s.groups) * ins
                    for i, j in np.ndindex(layer.shape[1:]):
                        window = padded[first : first + ins, i * sh : i * sh + kh, j * sw : j * sw + kw]
                        sums[step][o, i, j] += int((window * s.weight[o].astype(object)).sum())
        if layer.kind == "graded":
            values[layer.name] = sums
            continue
        v, spikes = np.zeros(layer.shape, object), []
        bias = layer.bias_map().astype(object) * 2**layer.bias_exp
        for current in sums:
            v = np.vectorize(lambda a, k: (abs(a) * k // 4096) * (1 if a > 0 else -1), otypes=[object])(
                v, 4096 - layer.decay
            )
            v = v + 64 * current + bias
            fired = v > 64 * layer.threshold
            spikes.append(fired.astype(object) * 1)
            v = np.where(fired, v - 64 * layer.threshold - 1 if layer.reset == "soft" else 0, v)
        values[layer.name] = spikes
    return v.ravel(), values


@pytest.mark.parametrize("case", ["resnet20", "preact, hard", "sew, iand"])
def test_reference_against_plain_loops(quantized, case):
    result, _, images = quantized(case)
    image = images[:1]
    run = simulate_integer(result.network, image)
    readout, values = by_hand(result.network, image[0].numpy())
    assert readout.tolist() == run.readout[0].tolist()
    for name, spikes in run.spikes.items():
        assert (np.stack(values[name]).astype(int) == spikes[:, 0].numpy()).all()


def test_overflows_are_counted():
    network = tiny(weight=np.full((2, 3, 1, 1), 127, np.int8))
    run = simulate_integer(network, np.full((1, 3, 2, 2), 255, np.uint8))
    assert run.overflows == {"a": (network.num_steps * 8, 0)}


def test_scales_stay_finite():
    graph = of_nodes(
        conv(), LIF, g.Conv("head", ("lif",), torch.ones(1, 3, 8, 8), torch.zeros(1)), g.Output("o", ("head",))
    )
    graph["conv"].weight[0, 0, 0, 0] = float("inf")
    with pytest.raises(InputError, match=r"conv \(conv\) has weights that are not finite"):
        quantize(graph, pixels(2, 8))
    graph["conv"].weight.fill_(1e30)
    with pytest.raises(InputError, match="lif: no scale keeps its currents within 16 bits; its weights reach"):
        quantize(graph, pixels(2, 8))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(2, 3, 8, 8), "must be 8-bit pixels, a uint8 tensor .*float32"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), "must be 8-bit pixels"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), r"takes images \(3, 8, 8\), calibration images are \(1, 8, 8\)"),
    ],
)
def test_calibration_images_are_checked(images, message):
    with pytest.raises(InputError, match=message):
        quantize(graph_of("vgg")[0], images)


def test_images_of_one_channel_have_one_mean():
    model = timm.create_model("snn_resnet20_t1", depths=(1,), channels=(8,), in_chans=1)
    images = pixels(2, 8)[:, :1]
    assert quantize(model, images).network.metadata["mean"] == [pytest.approx(0.4734, abs=1e-4)]
    with pytest.raises(InputError, match=r"images of 1 channels need as many means and stds, got \(0.5, 0.5\)"):
        quantize(model, images, mean=(0.5, 0.5))


def test_calibration_needs_an_image(tmp_path, capsys):
    command = f"export lava snn_resnet20_t1 --data-dir {tmp_path} -o {tmp_path / 'net.h5'} --calibration-images 0"
    with pytest.raises(SystemExit) as stop:
        cli.main(command.split())
    assert stop.value.code == 2 and "--calibration-images must be at least 1, got 0" in capsys.readouterr().err


def test_a_graph_that_is_not_the_models_leaves_no_file(tmp_path, monkeypatch):
    def wrong(model, input_size):
        model = copy.deepcopy(model)
        model.fc.weight.data *= 1.01
        return trace(model, input_size)

    monkeypatch.setattr(exporter, "trace", wrong)
    model = lively("snn_resnet20_t2", depths=(1,), channels=(8,))
    with pytest.raises(ParityError, match="the graph behind .* is not what the model computes: .* 0 neurons"):
        exporter.export_lava(model, tmp_path / "net.h5", pixels(4, 8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("images", [pixels(2, 16), torch.rand(2, 3, 8, 8), pixels(2, 8)[0], pixels(0, 8)])
def test_images_to_compare_on_are_checked(tmp_path, images):
    model = timm.create_model("snn_resnet20_t1", **SMALL)
    with pytest.raises(InputError, match=r"images must be 8-bit pixels \(uint8\) of shape \[B, 3, 8, 8\], got "):
        exporter.export_lava(model, tmp_path / "net.h5", pixels(2, 8), images=images)
    assert not list(tmp_path.iterdir())


# --- the file ---------------------------------------------------------------------------------------------------------


def tiny(weight=None, **changes):
    """Pixels, two neurons, a readout."""
    weight = np.ones((2, 3, 1, 1), np.int8) if weight is None else weight
    neurons = Layer(
        "a", "lif", (2, 2, 2), (Synapses("images", weight),), np.zeros(2, np.int16), threshold=5, decay=3277
    )
    readout = Layer("out", "readout", (1, 1, 1), (Synapses("a", np.ones((1, 2, 2, 2), np.int8)),), threshold=131071)
    layers = (Layer("images", "input", (3, 2, 2)), replace(neurons, **changes), readout)
    return LoihiNetwork(layers, 2, np.zeros(3, np.int16), "tiny", {"mean": [0.5] * 3, "std": [0.2] * 3})


@pytest.mark.parametrize("case", ["preact", "sew", "vgg"])
def test_file_gives_the_network_back(quantized, case, tmp_path):
    network = quantized(case)[0].network
    save(network, tmp_path / "net.h5")
    back = load(tmp_path / "net.h5")
    assert (back.num_steps, back.model, back.metadata) == (network.num_steps, network.model, network.metadata)
    assert back.depths == network.depths and back.sequential == network.sequential == (case == "vgg")
    images = quantized(case)[2]
    assert torch.equal(simulate_integer(back, images).readout, simulate_integer(network, images).readout)
    for ours, theirs in zip(network, back, strict=True):
        for field in ("name", "kind", "shape", "threshold", "decay", "bias_exp", "reset", "scale", "spikes"):
            assert getattr(ours, field) == getattr(theirs, field)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(threshold=1 << 17), r"'a': threshold must be whole and within \(0, 131071\), got \[131072\]"),
        (dict(decay=4096), "'a': decay must be whole"),
        (dict(bias=np.array([5000, 0])), r"'a': bias must be whole and within \(-4096, 4095\), got \[5000\]"),
        (dict(bias_exp=8), "'a': bias exponent"),
        (dict(reset="none"), "reset must be 'hard' or 'soft', got 'none'"),
        (dict(shape=(2, 3, 3)), r"'a' has shape \(2, 3, 3\), 'images' brings it \(2, 2, 2\)"),
        (dict(inputs=()), "'a' reads nothing"),
        (dict(inputs=(Synapses("b", np.ones((2, 3, 1, 1), np.int8)),)), "reads 'b', which is no layer before it"),
        (dict(inputs=(Synapses("images", np.ones((2, 3, 1, 1))),)), "weights must be int8, got float64"),
    ],
)
def test_what_the_chip_cannot_hold_is_named(changes, message):
    with pytest.raises(NetworkError, match=message):
        tiny(**changes)


def test_bad_files_are_named(tmp_path):
    good = tmp_path / "net.h5"
    save(tiny(), good)
    for bad, damage, message in (
        ("none.h5", None, "no network file at"),
        ("cut.h5", lambda path: path.write_bytes(good.read_bytes()[:3000]), "cannot be read, it is damaged"),
        ("text.h5", lambda path: path.write_text("hello"), "cannot be read, it is damaged or no HDF5 file"),
        ("other.h5", lambda path: h5py.File(path, "w").close(), "none that `snnzoo export lava` wrote"),
        ("old.h5", lambda path: _with_version(good, path, 0), "has version 0 of the format, this snnzoo reads 1"),
        ("less.h5", lambda path: _without_layer(good, path), "cannot be read, it is damaged"),
    ):
        path = tmp_path / bad
        if damage:
            damage(path)
        with pytest.raises(InputError, match=message):
            open_network(path)
    with pytest.raises(InputError, match="is for 2 time steps, not 4: .* --num-steps 4"):
        open_network(good, num_steps=4)
    with pytest.raises(
        InputError, match=r"must be 8-bit pixels \(uint8\) of shape .B, 3, 2, 2., got uint8 .1, 3, 4, 4."
    ):
        simulate_integer(open_network(good), np.zeros((1, 3, 4, 4), np.uint8))


def _with_version(source, path, version):
    path.write_bytes(source.read_bytes())
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = version


def _without_layer(source, path):
    path.write_bytes(source.read_bytes())
    with h5py.File(path, "r+") as file:
        del file["layer/1/edge/0/weight"]


# --- the simulator ----------------------------------------------------------------------------------------------------


def test_interpreter_without_lava(tmp_path):
    save(tiny(), tmp_path / "net.h5")
    with pytest.raises(InputError, match=rf"no Python with Lava: {sys.executable}: cannot import lava.*make lava-env"):
        simulate(tmp_path / "net.h5", np.zeros((1, 3, 2, 2), np.uint8), sys.executable)


@pytest.fixture(scope="session")
def lava_python():
    """A Python with Lava, or the reason why there is none; unlike conftest's it need not have snnzoo."""
    try:
        return find_interpreter(needs=("lava.lib.dl.netx.hdf5", "h5py"))
    except InputError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.lava
@pytest.mark.parametrize("case", ["resnet20, pad, hard", "resnet20", "preact", "sew", "sew, iand"])
def test_simulator_fires_what_was_predicted(quantized, case, lava_python, tmp_path):
    result, _, images = quantized(case)
    save(result.network, tmp_path / "net.h5")
    simulated = simulate(tmp_path / "net.h5", images, lava_python)
    assert all(match.differing == 0 for match in simulated["matches"])
    assert all(0 < match.spikes < match.chances for match in simulated["matches"][:-1])
    assert simulated["matches"][-1].layer == "logits"
    torch.testing.assert_close(simulated["logits"], simulate_integer(result.network, images).logits)


@pytest.mark.slow
@pytest.mark.lava
def test_one_weight_changed_by_one_is_found(quantized, lava_python, tmp_path):
    result, images = quantized("resnet20, pad, hard")[0], photographs(6, 8, seed=3)
    predicted = simulate_integer(result.network, images)
    weight = result.network["layer2.0.act1"].inputs[0].weight  # the network's own, put right again below
    for index in np.ndindex(weight.shape):  # not every weight of some hundreds decides a spike on six images
        before = weight[index]
        weight[index] += 1 if before < 127 else -1
        changed = simulate_integer(result.network, images)
        save(result.network, tmp_path / "net.h5")
        weight[index] = before
        if not torch.equal(changed.spikes["layer2.0.act1"], predicted.spikes["layer2.0.act1"]):
            break
    else:
        pytest.fail("no weight decides a spike")
    matches = compare(predicted, run_simulator(tmp_path / "net.h5", images, lava_python))
    wrong = [match.layer for match in matches if match.differing]
    assert wrong[0] == "layer2.0.act1" and "act1" not in wrong and "layer1.0.act2" not in wrong
    first = next(match.first for match in matches if match.first)
    assert first.neuron[0] == index[0] and first.predicted != first.simulated
    assert f"layer2.0.act1: image {first.image}, step {first.step}, neuron {first.neuron}: predicted" in str(first)


@pytest.mark.slow
@pytest.mark.lava
def test_stock_netx_fires_what_was_predicted(quantized, lava_python, tmp_path):
    result, _, images = quantized("vgg")
    save(result.network, tmp_path / "net.h5")
    matches = simulate(tmp_path / "net.h5", images, lava_python, netx=True)["matches"]
    assert all(match.differing == 0 for match in matches)
    assert all(0 < match.spikes < match.chances for match in matches[:-1])


def test_netx_refuses_what_is_not_sequential(quantized, tmp_path):
    result, _, images = quantized("resnet20")
    save(result.network, tmp_path / "net.h5")
    with pytest.raises(InputError, match="netx cannot load .*net.h5.*layers in a row that reset hard"):
        simulate(tmp_path / "net.h5", images, netx=True)


@pytest.mark.slow
@pytest.mark.lava
def test_fast_convolution_is_lavas(lava_python, tmp_path):
    script = tmp_path / "check.py"
    script.write_text(
        "import numpy as np\n"
        "from lava.proc.conv import utils\n"
        "from simulator.fast_conv import convolve\n"
        "r = np.random.default_rng(0)\n"
        "for groups, ins, outs, kernel, stride, padding, dilation in [\n"
        "    (1, 3, 5, (3, 3), (1, 1), (1, 1), (1, 1)), (1, 4, 6, (1, 1), (2, 2), (0, 0), (1, 1)),\n"
        "    (4, 4, 4, (3, 2), (2, 1), (1, 0), (1, 1)), (2, 4, 6, (3, 3), (1, 2), (2, 1), (2, 1)),\n"
        "    (1, 3, 2, (7, 7), (2, 2), (3, 3), (1, 1)),\n"
        "]:\n"
        "    x = r.integers(-300, 300, (9, 8, ins))\n"
        "    w = r.integers(-128, 128, (outs, *kernel, ins // groups)).astype(np.int32)\n"
        "    args = (kernel, stride, padding, dilation, groups)\n"
        "    assert (utils.conv(x, w, *args) == convolve(x, w, *args[1:])).all(), args\n"
    )
    folder = Path(cli.__file__).parents[1] / "export/lava"
    done = subprocess.run(
        [lava_python, script], env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.lava
def test_commands(digits, lava_python, tmp_path, capsys):
    net = tmp_path / "net.h5"
    model = ["snn_vgg11_t2", "--model-kwargs", "depths=(1,)", "channels=(8,)", "reset=hard", "--input-size", *"388"]
    cli.main(["export", "lava", *model, "--data-dir", str(digits), "-o", str(net), "--calibration-images", "8"])
    said = capsys.readouterr().out
    assert "stock netx loads it" in said and "Loihi integers" in said
    assert net.with_suffix(".h5.json").is_file() and net.with_suffix(".h5.txt").is_file()
    cli.main(
        [
            "simulate",
            str(net),
            "--images",
            str(digits / "validation"),
            "--count",
            "2",
            "--python",
            lava_python,
            "--fast",
        ]
    )
    said = capsys.readouterr().out
    assert "layer1.0.act1" in said and "logits: equal" in said and "a step" in said
    with pytest.raises(SystemExit) as stop:
        cli.main(["simulate", str(net), "--images", str(tmp_path / "none"), "--python", lava_python])
    assert stop.value.code == 2 and "no image or folder at" in capsys.readouterr().err


def test_mismatch_is_an_error(monkeypatch, tmp_path):
    """What the simulator says otherwise ends the command, named."""
    from snnzoo.export.lava import runner

    network, images = tiny(), np.arange(12, dtype=np.uint8).reshape(1, 3, 2, 2)
    save(network, tmp_path / "net.h5")
    predicted = simulate_integer(network, images)
    run = runner.SimulatorRun(predicted.readout + 1, {}, [1.0, 1.0], "python")
    monkeypatch.setattr(runner, "run_simulator", lambda *args: run)
    with pytest.raises(
        MismatchError, match=r"fires otherwise than predicted in logits \(1\); first logits: image 0, step 0"
    ):
        simulate(tmp_path / "net.h5", images)


@pytest.mark.parametrize("crop_mode", ["squash", "border", "center"])
def test_images_are_prepared_as_those_of_the_export(tmp_path, capsys, crop_mode):
    for label in "ab":  # not square, so that it matters what becomes of the corners
        (tmp_path / "data/validation" / label).mkdir(parents=True)
        noise = np.random.default_rng(ord(label)).integers(0, 255, (12, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "data/validation" / label / "image.png")
    settings = f"pretrained_cfg_overlay={dict(crop_mode=crop_mode, crop_pct=0.9)}".replace(" ", "")
    cli.main(
        f"export lava snn_resnet20_t1 --input-size 3 8 8 --model-kwargs depths=(1,) channels=(4,) {settings} "
        f"--data-dir {tmp_path}/data --calibration-split validation -o {tmp_path}/net.h5".split()
    )
    network = open_network(tmp_path / "net.h5")
    prepared, files = exporter.read_images(network, [tmp_path / "data"], 2)
    transform = create_transform((3, 8, 8), use_prefetcher=True, crop_mode=crop_mode, crop_pct=0.9,
                                 interpolation=network.metadata["interpolation"])  # fmt: skip
    for pixels, file in zip(prepared, files, strict=True):
        assert np.array_equal(pixels, transform(Image.open(file)))


def test_image_files_have_1_or_3_channels(tmp_path, capsys):
    network = quantize(timm.create_model("snn_resnet20_t1", **SMALL, in_chans=4), torch.zeros(1, 4, 8, 8).byte())
    save(network.network, tmp_path / "net.h5")
    Image.new("RGBA", (8, 8)).save(tmp_path / "image.png")
    with pytest.raises(SystemExit):
        cli.main(["simulate", str(tmp_path / "net.h5"), "--images", str(tmp_path / "image.png")])
    error = capsys.readouterr().err
    assert "takes images of 4 channels, image files have 1 or 3: give pixels to snnzoo.export.lava.simulate" in error


def test_answers_without_a_name_are_numbers(monkeypatch, tmp_path, capsys):
    """A network may have more outputs than its data have classes."""
    from snnzoo.export.lava import runner

    network = tiny()
    weight = np.stack([np.zeros((2, 2, 2)), np.ones((2, 2, 2))]).astype(np.int8)
    readout = replace(network.readout, shape=(2, 1, 1), inputs=(Synapses("a", weight),))
    network = replace(
        network, layers=(*network.layers[:-1], readout), metadata=network.metadata | {"labels": ["the first"]}
    )
    save(network, tmp_path / "net.h5")
    Image.new("RGB", (2, 2), "white").save(tmp_path / "white.png")
    predicted = simulate_integer(network, np.full((1, 3, 2, 2), 255, np.uint8))
    run = runner.SimulatorRun(predicted.readout, predicted.spikes, [1.0, 1.0], "python")
    monkeypatch.setattr(runner, "run_simulator", lambda *args: run)
    cli.main(["simulate", str(tmp_path / "net.h5"), "--images", str(tmp_path / "white.png")])
    assert "white.png: 1\n" in capsys.readouterr().out


def test_files_need_h5py(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match="need h5py: pip install 'snnzoo.lava.'"):
        open_network(tmp_path / "net.h5")


def test_export_needs_images():
    with pytest.raises(SystemExit):
        cli.main(["export", "lava", "snn_vgg11_t2", "-o", "x.h5"])


def test_report_where_all_layers_share_their_units():
    """No layer's spikes can be counted alone: a shortcut ties the neurons to the stem's current."""
    weight, pad = torch.linspace(-1, 1, 3 * 3 * 9).reshape(3, 3, 3, 3), dict(padding=(1, 1))
    graph = g.Graph(
        (
            g.Input("images", (), (3, 4, 4)),
            g.Conv("conv1", ("images",), weight, torch.full((3,), 0.3), **pad),
            g.LIF("act1", ("conv1",), LIFParams()),
            g.Conv("conv2", ("act1",), weight, torch.zeros(3), **pad),
            g.Add("add", ("conv2", "conv1")),
            g.LIF("act2", ("add",), LIFParams()),
            g.Flatten("flatten", ("act2",)),
            g.Linear("fc", ("flatten",), torch.linspace(-1, 1, 5 * 48).reshape(5, 48), torch.zeros(5)),
            g.Output("logits", ("fc",)),
        ),
        num_steps=2,
        name="shared",
    )
    images = pixels(4, 4)
    result = quantize(graph, images, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert [layer.alone for layer in result.layers] == [None] * 3
    lost = _lost(result, simulate_integer(result.network, images), graph, images)
    assert re.search(r"least agreement with the model [\d.]+ % \(act.\); same class", "\n".join(lost["summary"]))
