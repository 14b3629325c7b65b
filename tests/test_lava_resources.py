"""Resources on Loihi 2: numbers that were worked out by hand, and counts made another way."""

import json

import pytest
import timm
import torch
import torch.nn.functional as F

from snnzoo import InputError, LIFParams, cli
from snnzoo.export import graph as g
from snnzoo.export.importers import lively
from snnzoo.export.interpret import interpret
from snnzoo.export.lava import quantize, resources
from snnzoo.export.lava.resources import estimate
from snnzoo.export.trace import trace

LIVELY = dict(depths=(1, 1), channels=(4, 8), num_classes=7)


def conv(name, reads, ins, outs, bias=0.0, weight=0.001, **settings):
    return g.Conv(name, (reads,), torch.full((outs, ins, 3, 3), weight), torch.full((outs,), bias), **settings)


def residual(steps=2):
    """A stem that always fires, and a block: a layer that never does, and one that always does."""
    lif, pad = LIFParams(), dict(padding=(1, 1))
    return g.Graph(
        (
            g.Input("images", (), (2, 4, 4)),
            conv("conv1", "images", 2, 3, bias=2.0, **pad),
            g.LIF("act1", ("conv1",), lif),
            conv("block.conv1", "act1", 3, 3, bias=-2.0, **pad),
            g.LIF("block.act1", ("block.conv1",), lif),
            conv("block.conv2", "block.act1", 3, 3, bias=2.0, **pad),
            g.Add("block.add", ("block.conv2", "act1")),
            g.LIF("block.act2", ("block.add",), lif),
            g.Pool("pool", ("block.act2",), "avg", (4, 4), (4, 4)),
            g.Flatten("flatten", ("pool",)),
            g.Linear("fc", ("flatten",), torch.ones(5, 3), torch.zeros(5)),
            g.Output("logits", ("fc",)),
        ),
        num_steps=steps,
        name="residual",
    )


def test_a_residual_block_by_hand():
    result = estimate(residual(), torch.zeros(3, 2, 4, 4))
    rows = {x.name: (x.kind, x.step, x.neurons, x.synapses, x.weights, x.cores) for x in result.layers}
    # A 3x3 kernel has 10 taps along 4 padded pixels (2 + 3 + 3 + 2), so 100 on the image.
    assert rows == {
        "act1": ("neurons", 1, 48, 100 * 2 * 3, 54, 1),
        "block.act1": ("neurons", 2, 48, 100 * 3 * 3, 81, 1),
        "act1/delay1": ("relay", 2, 48, 48, 3, 1),
        "block.act2": ("neurons", 3, 48, 100 * 3 * 3 + 48, 81 + 3, 1),
        "logits": ("readout", 4, 5, 48 * 5, 48 * 5, 1),
    }
    assert {x.name: x.rate for x in result.layers} == {
        "act1": 1, "block.act1": 0, "act1/delay1": 1, "block.act2": 1, "logits": None,
    }  # fmt: skip
    # Two steps: pixels, spikes of act1 into the block and the relay, of the relay, and of block.act2.
    assert [x.synops for x in result.layers] == [2 * 600, 2 * 900, 2 * 48, 2 * 48, 2 * 240]
    assert result.synops == 3672
    assert (result.neurons, result.cores, result.chips, result.images) == (197, 5, 1, 3)
    assert result.latency_steps == 4 + 2
    assert result.neuron_updates == 2 * 197
    assert result.joules == pytest.approx(3672 * 23.6e-12 + 394 * 81e-12)
    assert result.problems == ()


def test_layers_are_those_of_the_network_file():
    images = torch.randint(0, 256, (4, 2, 4, 4), dtype=torch.uint8)
    network = quantize(residual(), images, mean=(0.5, 0.5), std=(0.25, 0.25)).network
    _, *expected = network.depths.items()  # without the images
    assert [(layer.name, layer.step) for layer in estimate(residual()).layers] == expected


def test_without_images_there_is_no_activity():
    result = estimate(residual())
    assert result.synops is None
    assert result.joules is None
    assert all(x.rate is None and x.synops is None for x in result.layers)
    assert "operations and energy depend on the activity: give images" in result.table()


@pytest.mark.parametrize(
    "settings",
    [
        dict(stride=(2, 2), padding=(1, 1)),
        dict(dilation=(2, 2)),
        dict(stride=(3, 3)),
    ],
)
def test_synapses_are_the_entries_of_the_matrix(settings):
    node = conv("conv", "images", 2, 4, **settings)
    node.weight[0, 1] = 0  # no synapses where there is no weight
    graph = g.Graph(
        (g.Input("images", (), (2, 9, 7)), node, g.LIF("act", ("conv",), LIFParams()), g.Output("o", ("act",)))
    )
    matrix = torch.autograd.functional.jacobian(node.apply, torch.zeros(1, 2, 9, 7))
    assert estimate(graph).layers[0].synapses == int((matrix != 0).sum())


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("snn_resnet20_t4", dict(shortcut="pad")),
        ("snn_sew_resnet18_t2", dict(stem="cifar", connect="iand")),
        ("snn_preact_resnet18_t2", dict(stem="cifar")),
        ("snn_resnet34_t2", {}),
    ],
)
def test_operations_are_what_arrives_over_every_weight(name, kwargs, monkeypatch):
    monkeypatch.setattr(resources, "_VALUES", 1)  # one image at once
    graph = trace(lively(name, **LIVELY, **kwargs), (3, 16, 16))
    images = torch.randn(3, 3, 16, 16)
    result, spikes = estimate(graph, images), interpret(graph, images).spikes
    layers = {x.name: x for x in result.layers}
    checked = 0
    for node in graph.lifs:
        source = graph[node.inputs[0]]
        if isinstance(source, g.Conv) and source.inputs[0] in spikes:
            x = spikes[source.inputs[0]].flatten(0, 1)
            used = (source.weight != 0).float()
            arrived = F.conv2d(x, used, None, source.stride, source.padding).sum(dtype=torch.float64) / len(images)
            assert layers[node.name].synops == pytest.approx(float(arrived), rel=1e-3)
            checked += 1
        assert layers[node.name].rate == pytest.approx(float(spikes[node.name].mean()), rel=1e-3)
    assert checked
    assert result.neurons >= sum(spikes[n.name][0, 0].numel() for n in graph.lifs)
    steps = [x.step for x in result.layers]
    assert result.latency_steps == max(steps) + graph.num_steps


def test_steps_of_the_families():
    """A layer a step; a preactivation block has one more, from the stream to its neurons, and so has a SEW sum."""

    def last_step(name, **kwargs):
        model = timm.create_model(name, depths=(1, 1), channels=(4, 8), **kwargs)
        return estimate(trace(model, (3, 16, 16))).layers[-1].step

    assert last_step("snn_vgg11_t4") == 1 + 2 + 1
    assert last_step("snn_resnet20_t4", shortcut="pad") == 1 + 2 * 2 + 1
    assert last_step("snn_preact_resnet18_t4", stem="cifar") == 1 + 2 * 3 + 1 + 2  # and its mean over the image two
    assert last_step("snn_sew_resnet18_t4", stem="cifar") == 1 + 2 * 3 + 1


def alone(weight, size, kind=g.Conv):
    """One layer of neurons."""
    bias = torch.zeros(len(weight))
    nodes = [g.Input("images", (), size)]
    if kind is g.Linear:
        nodes.append(g.Flatten("flatten", ("images",)))
    nodes += [kind("layer", (nodes[-1].name,), weight, bias), g.LIF("act", ("layer",), LIFParams())]
    return g.Graph((*nodes, g.Output("out", ("act",))), name="alone")


@pytest.mark.parametrize(
    ("weight", "size", "cores"),
    [
        ((16, 3, 1, 1), (3, 64, 64), 8),  # 65,536 neurons, 8192 a core
        ((17, 3, 1, 1), (3, 64, 64), 9),
        ((1, 1, 1, 1), (1, 128, 128), 2),  # a channel of more than a core's neurons
        ((512, 512, 3, 3), (512, 6, 6), 13),  # 4608 bytes and 16 neurons a channel: 40 of them a core
        ((512, 512, 3, 3), (512, 4, 4), 13),  # 4608 and 4: 42
    ],
)
def test_layers_are_cut_into_cores(weight, size, cores):
    assert estimate(alone(torch.ones(weight), size)).layers[0].cores == cores


def test_linear_layers_are_cut_into_cores():
    graph = alone(torch.ones(1000, 4096), (16, 16, 16), g.Linear)
    assert estimate(graph).layers[0].cores == 22  # 4108 bytes a neuron: 47 of them a core


def test_a_layer_that_fits_on_no_core_is_named():
    result = estimate(alone(torch.ones(2, 200_000), (2, 250, 400), g.Linear))
    assert result.cores is None
    assert result.chips is None
    (problem,) = result.problems
    assert problem.startswith("act: one of its neurons has 200,000 weights, and a core holds 196,596; 0.98 of")
    assert "none fits" in result.table()
    assert "cores       does not fit" in result.table()


def test_a_network_that_is_too_large_is_told_what_would_fit():
    (problem,) = estimate(alone(torch.ones(64, 3, 1, 1), (3, 256, 256))).problems
    # 512 cores for the neurons, and as many for those that the output averages; at a width of 1/8 64 and 512
    assert problem.startswith("1024 cores, and a chip has 128 (the largest: act 512, out 512); it takes 8 chips")
    assert problem.endswith("or smaller images")
    nodes = (
        g.Input("images", (), (3, 64, 64)),
        g.Conv("conv1", ("images",), torch.ones(300, 3, 1, 1), torch.zeros(300)),
        g.LIF("act1", ("conv1",), LIFParams()),  # two channels a core
        g.Conv("conv2", ("act1",), torch.ones(4, 300, 1, 1), torch.zeros(4), stride=(8, 8)),
        g.LIF("act2", ("conv2",), LIFParams()),
        g.Output("out", ("act2",)),
    )
    (problem,) = estimate(g.Graph(nodes)).problems
    assert problem.startswith("152 cores, and a chip has 128 (the largest: act1 150, ")
    assert problem.endswith("it takes 2 chips of a larger board, or 0.75 of the width everywhere (115 cores)")


@pytest.mark.parametrize(
    ("graph", "images", "message"),
    [
        (alone(torch.ones(1, 1, 1, 1), (1, 4, 4)), torch.zeros(2, 1, 4, 5), r"\[B, 1, 4, 4\], got .2, 1, 4, 5."),
        (trace(timm.create_model("cifar_resnet20"), (3, 8, 8)), None, "cifar_resnet20 has no LIF layer"),
    ],
)
def test_bad_input(graph, images, message):
    with pytest.raises(InputError, match=message):
        estimate(graph, images)


def test_command(digits, capsys):
    model = "resources snn_resnet20_t2 --model-kwargs depths=(1,) channels=(4,) --input-size 3 8 8 --num-classes 10"
    cli.main(model.split())
    text = capsys.readouterr().out
    assert "An estimate for Loihi 2: snn_resnet20_t2, 3x8x8, 2 time steps" in text
    assert "give images" in text
    assert "Davies et al." in text
    cli.main([*model.split(), "--data-dir", str(digits), "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["estimate"] is True
    assert result["images"] == 40
    assert result["synops"] == pytest.approx(sum(layer["synops"] for layer in result["layers"]))
    assert result["joules"] > result["neuron_updates"] * 81e-12
    with pytest.raises(SystemExit) as status:
        cli.main("resources cifar_resnet20".split())
    assert status.value.code == 2
    assert "cifar_resnet20 has no LIF layer" in capsys.readouterr().err
