"""The graph: every family comes out, validated, and computes what the model computes."""

import copy

import pytest
import timm
import torch
from test_folding import trained
from torch import nn

from snnzoo import InputError, LIFParams, cli, fused
from snnzoo.data import data_config
from snnzoo.export import graph as g
from snnzoo.export.importers import lively
from snnzoo.export.interpret import Run, interpret, watch
from snnzoo.export.parity import ParityError, compare
from snnzoo.export.trace import trace

SMALL = dict(depths=(1, 1), channels=(8, 16), num_classes=7)
FAMILIES = [
    ("snn_resnet18_t1", {}),
    ("snn_resnet18_t4", dict(reset="hard", decay=0.5)),
    ("snn_resnet19_t2", {}),
    ("snn_resnet20_t2", dict(shortcut="pad", threshold=0.7)),
    ("snn_resnet34_t2", {}),
    ("snn_preact_resnet18_t4", {}),
    ("snn_preact_resnet34_t2", dict(spike_head=True)),
    ("snn_sew_resnet18_t2", {}),
    ("snn_sew_resnet34_t2", dict(connect="and")),
    ("snn_sew_resnet50_t2", dict(connect="iand")),
    ("snn_vgg11_t4", dict(readout_decay=0.6)),
    ("cifar_resnet18", {}),
    ("cifar_resnet19", {}),
    ("cifar_resnet20", {}),
]


@pytest.mark.parametrize(("name", "kwargs"), FAMILIES)
def test_interpreter_gives_the_models_spikes_and_logits(name, kwargs):
    model = lively(name, **SMALL, **kwargs)
    graph = trace(model, (3, 32, 32))
    images = torch.randn(3, 3, 32, 32)
    expected, got = watch(model, images), interpret(graph, images)
    assert list(got.spikes) == list(expected.spikes)  # the same layers, by their paths, in the same order
    assert compare(graph, images, expected, got).passed
    assert compare(graph, images, expected, expected).passed  # the model as the engine: no spike that is not a tie
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-4)
    assert sum(0 < float(s.mean()) < 1 for s in got.spikes.values()) >= 0.8 * len(got.spikes)
    for node in graph:  # shapes are those of the values
        if node.name in got.spikes:
            assert got.spikes[node.name].shape[2:] == graph.shapes[node.name]


def test_frames_and_event_models():
    model = trained("snn_resnet19_t10.c10dvs", depths=(1,), channels=(8,)).eval()
    graph, frames = trace(model, (2, 16, 16)), torch.randn(2, 5, 2, 16, 16)
    torch.testing.assert_close(interpret(graph, frames).logits, model(frames).detach())


def test_timm_models_of_the_same_layers():
    model = trained("resnet18", num_classes=5).eval()
    images = torch.randn(2, 3, 64, 64)
    got = interpret(trace(model, (3, 64, 64)), images).logits
    torch.testing.assert_close(got, model(images).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_every_model_of_the_zoo_has_a_graph():
    names = [name for name in timm.list_models("snn_*") if name.endswith("_t1")] + timm.list_models("cifar_*")
    for name in names:
        model = timm.create_model(name)
        size = 64 if model.pretrained_cfg["input_size"][1] > 100 else 16
        graph = trace(model, (3, size, size))
        norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        assert len(graph.folded) == norms
        assert graph.shapes["logits"] == (model.num_classes,)


def test_table_lists_every_node():
    graph = trace(trained("snn_resnet20_t2", **SMALL, shortcut="pad"), (3, 16, 16))
    lines = graph.table().splitlines()
    assert len(lines) == 1 + len(graph.nodes)
    line = next(line for line in lines if line.startswith("layer2.0.conv1 "))
    assert line.split() == ["layer2.0.conv1", "conv", "layer1.0.act2", "16x8x8", "1,168", "3x3,", "stride", "2"]
    assert graph.changed == (
        "layer2.0.downsample: the subsampling, zero-padding shortcut is a 1x1 convolution of ones and zeros",
    )
    assert graph.num_parameters == sum(t.numel() for node in graph for t in node.tensors)


def image(shape=(3, 8, 8)):
    return g.Input("images", (), shape)


def conv(name="conv", reads="images", ins=3, outs=4):
    return g.Conv(name, (reads,), torch.zeros(outs, ins, 3, 3), torch.zeros(outs))


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([], "begins with an Input"),
        ([image(), conv()], "ends with an Output"),
        ([image(), conv(ins=5), g.Output("out", ("conv",))], r"'conv' \(conv\): weights for 5 channels, 3 come in"),
        ([image((3, 2, 2)), conv(), g.Output("out", ("conv",))], "a window of .3, 3. does not fit an image of .2, 2."),
        ([image(), conv(reads="x"), g.Output("out", ("conv",))], "reads 'x', which no node before it computes"),
        ([image(), conv(), conv(reads="conv", ins=4), g.Output("out", ("conv",))], "another node has the same name"),
        ([image(), conv(), conv("b"), g.Output("out", ("b",))], r"'conv' \(conv\): nothing reads it"),
        ([image(), conv(), g.Add("add", ("conv",)), g.Output("out", ("add",))], "has 1 inputs, it takes 2"),
        ([image(), conv(), g.Add("add", ("conv", "images")), g.Output("out", ("add",))], "'add' .*shapes .* differ"),
        ([image(), g.Linear("fc", ("images",), torch.zeros(2, 3), torch.zeros(2)), g.Output("o", ("fc",))], "'fc'"),
        ([image(), g.Pool("p", ("images",), "sum", (2, 2), (2, 2)), g.Output("o", ("p",))], "pool must be one of"),
    ],
)
def test_construction_is_checked(nodes, message):
    with pytest.raises(InputError, match=message):
        g.Graph(tuple(nodes))


def test_unknown_layers_are_named():
    model = timm.create_model("cifar_resnet20", depths=(1,), channels=(4,))
    model.layer1[0].act1 = nn.GELU()
    with pytest.raises(InputError, match=r"layer1\.0\.act1: the graph has no node for GELU"):
        trace(model, (3, 8, 8))


def test_unknown_functions_are_named():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.sin(self.inner(x))

        def __init__(self):
            super().__init__()
            self.inner = nn.Identity()

    model = timm.create_model("cifar_resnet20", depths=(1,), channels=(4,))
    model.layer1[0].act1 = Odd()
    with pytest.raises(InputError, match=r"layer1\.0\.act1\.sin: the graph has no node for sin"):
        trace(model, (3, 8, 8))


class Cosine(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(nn.functional.normalize(x), nn.functional.normalize(self.weight))


class Wide(nn.Conv2d):
    def forward(self, x):
        return super().forward(2 * x)


class Halved(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x):
        return torch.add(x, self.act(x), alpha=0.5)


@pytest.mark.parametrize(
    ("path", "layer", "message"),
    [
        ("fc", Cosine(8, 10), r"fc: .* Cosine\(.*none with a forward of its own"),
        ("layer1.0.conv1", Wide(8, 8, 3, padding=1), r"layer1\.0\.conv1: .* Wide\(8, 8"),
        ("layer1.0.act1", Halved(), r"layer1\.0\.act1\.add: the graph has no node for add.*alpha"),
    ],
)
def test_another_forward_is_refused(path, layer, message):
    model = timm.create_model("cifar_resnet20", depths=(1,), channels=(8,))
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)
    with pytest.raises(InputError, match=message):
        trace(model, (3, 8, 8))


def test_a_forward_that_was_put_into_a_layer_is_refused():
    model = timm.create_model("cifar_resnet20", depths=(1,), channels=(8,))
    model.fc.forward = lambda x: x[:, :1]
    with pytest.raises(InputError, match=r"fc: the graph has no node for Linear"):
        trace(model, (3, 8, 8))


def test_padding_in_a_convolutions_forward_is_refused():
    """timm's way to pad as TensorFlow does: as the size of the images asks for."""
    with pytest.raises(InputError, match=r"conv_stem: the graph has no node for Conv2dSame"):
        trace(timm.create_model("tf_mobilenetv3_small_minimal_100"), (3, 65, 65))


def test_a_layer_that_runs_twice():
    model = lively("snn_resnet20_t2", **SMALL)
    model.layer1[0].act2 = model.layer1[0].act1
    graph, images = trace(model, (3, 16, 16)), torch.randn(2, 3, 16, 16)
    expected = watch(model, images)
    assert "layer1.0.act1_1" in expected.spikes
    assert compare(graph, images, expected, interpret(graph, images)).passed


def test_half_a_models_digits_are_folded_in_full():
    """As the command line does it, which makes models in float32."""
    model = trained("snn_resnet20_t2", **SMALL).bfloat16()
    ours, floats = trace(model, (3, 8, 8)), trace(copy.deepcopy(model).float(), (3, 8, 8))
    for node, other in zip(ours, floats, strict=True):
        assert all(map(torch.equal, node.tensors, other.tensors))
    assert model.conv1.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["conv1.weight", "bn1.running_var", "fc.bias"])
def test_what_is_not_finite_is_named(name):
    model = timm.create_model("snn_resnet20_t2", **SMALL)
    model.state_dict()[name][0] = torch.nan
    with pytest.raises(InputError, match=f"{name} has numbers that are not finite"):
        trace(model, (3, 8, 8))


def test_nothing_is_compiled(monkeypatch):
    """For a few images a compilation takes longer than it saves."""
    monkeypatch.setattr(fused, "_backend", "compiled")
    monkeypatch.setattr(fused, "_compiled", lambda fn: pytest.fail("it was compiled"))
    model = timm.create_model("snn_resnet20_t2", **SMALL)
    trace(model, (3, 8, 8))
    watch(model, torch.randn(1, 3, 8, 8))


def test_control_flow_is_named():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x):
            return self.inner(x) if x.sum() > 0 else x

    model = timm.create_model("cifar_resnet20", depths=(1,), channels=(4,))
    model.layer1[0].act1 = Fork()
    with pytest.raises(InputError, match=r"layer1\.0\.act1 \(Fork\) cannot be followed into the graph"):
        trace(model, (3, 8, 8))


def test_what_acts_on_rates_is_refused():
    with pytest.raises(InputError, match=r"global_pool\.pool"):
        trace(timm.create_model("snn_resnet20_t2", global_pool="max", **SMALL), (3, 16, 16))


def test_a_wrong_size_is_refused():
    with pytest.raises(InputError, match="does not take images of size"):
        trace(timm.create_model("snn_resnet20_t2"), (5, 32, 32))


def test_a_layer_of_another_width_is_named():
    """The model itself takes a map as wide as it has channels."""
    model = timm.create_model("snn_resnet20_t2", depths=(1,), channels=(8,), global_pool="")
    with pytest.raises(InputError, match=r"fc \(linear\): weights"):
        trace(model, (3, 8, 8))


def test_metadata_are_of_the_models_channels():
    """As images are normalised, whose mean the weights of one channel were made for."""
    model = timm.create_model("snn_resnet20_t2", in_chans=1, **SMALL)
    graph = trace(model, (1, 16, 16))
    assert graph.metadata["mean"] == data_config({}, model, "")["mean"] == (pytest.approx(0.4734, abs=1e-4),)


def chain(bias):
    """One neuron that gets ``bias`` at each step."""
    lif = g.LIF("lif", ("conv",), LIFParams())
    one = g.Conv("conv", ("images",), torch.zeros(1, 1, 1, 1), torch.tensor([bias]))
    return g.Graph((g.Input("images", (), (1, 1, 1)), one, lif, g.Output("out", ("lif",))), num_steps=3)


def test_parity_tells_ties_from_errors():
    images = torch.zeros(2, 1, 1, 1)
    for bias, passes in ((1.0 - 1e-6, True), (0.97, False)):
        graph = chain(bias)
        silent = interpret(graph, images)
        assert silent.spikes["lif"][0].sum() == 0
        spikes = silent.spikes["lif"].clone()
        spikes[0, 1] = 1.0  # at the first step the second sample's neuron fires nevertheless
        engine = Run(spikes.mean(0), {"lif": spikes}, {})
        parity = compare(graph, images, silent, engine)
        assert (parity.differing, parity.ties, parity.same_spikes) == (1, int(passes), 1)
        assert parity.passed is passes
    with pytest.raises(ParityError, match="on 2 images 1 neurons fire otherwise, 0 of them for rounding"):
        parity.check("it")
    wrong = Run(silent.logits + 0.01, silent.spikes, {})
    assert not compare(graph, images, silent, wrong).passed
    nan = Run(silent.logits * float("nan"), silent.spikes, {})
    assert not compare(graph, images, silent, nan).passed


def test_parity_of_the_model_too():
    """An engine that computes a wrong graph rightly."""
    images = torch.zeros(2, 1, 1, 1)
    graph, right = chain(0.6), interpret(chain(0.6), images)
    other = interpret(chain(1.0 + 1e-3), images)
    parity = compare(graph, images, other, right)
    assert (parity.differing, parity.model_differing, parity.model_ties) == (0, 2, 0)
    with pytest.raises(ParityError, match="the graph behind it is not .*: on 2 images 2 neurons fire otherwise, 0 of"):
        parity.check("it")
    assert not compare(graph, images, Run(right.logits + 0.01, right.spikes, {}), right).passed
    assert not compare(graph, images, Run(right.logits * float("nan"), right.spikes, {}), right).passed


def test_command(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    shape = "--model-kwargs depths=(1,1) channels=(4,8) --input-size 3 16 16"
    cli.main(f"export graph snn_sew_resnet18_t2 {shape} --plot {tmp_path}/net.png".split())
    printed = capsys.readouterr().out
    assert "layer2.0.connect" in printed
    assert "batch norms folded, 2 time steps" in printed
    picture = tmp_path / "net.png"
    assert picture.read_bytes()[1:4] == b"PNG"
    assert picture.stat().st_size > 10_000


def test_bad_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    with pytest.raises(SystemExit) as exit_info:
        cli.main(f"export graph cifar_resnet20 --input-size 3 8 8 --plot {tmp_path}/net.doc".split())
    assert exit_info.value.code == 2
    assert "its suffix must be one of" in capsys.readouterr().err
