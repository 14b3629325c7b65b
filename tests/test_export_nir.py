"""NIR files: read back by ourselves in a fresh process, and run by other frameworks."""

import copy
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from test_export_graph import SMALL
from test_folding import trained

from snnzoo import InputError, cli
from snnzoo.export.interpret import Run, interpret, watch
from snnzoo.export.parity import ParityError, compare
from snnzoo.export.trace import trace
from snnzoo.layers import Conv2d

nir = pytest.importorskip("nir")

import snnzoo.export.nir as exporter  # noqa: E402
from snnzoo.export import importers  # noqa: E402
from snnzoo.export.nir import DT, export_nir, load, refusals, to_nir  # noqa: E402

SIZE = (3, 16, 16)
HARD = dict(reset="hard", **SMALL)
CIFAR = dict(stem="cifar", **HARD)
EXPRESSIBLE = [
    ("snn_resnet18_t4", HARD),
    ("snn_resnet19_t2", HARD | dict(decay=0.5, readout_decay=0.6)),
    ("snn_resnet20_t2", HARD | dict(shortcut="pad", threshold=0.7)),
    ("snn_resnet34_t2", CIFAR),
    ("snn_preact_resnet18_t4", CIFAR),
    ("snn_preact_resnet18_t2", CIFAR | dict(spike_head=True)),
    ("snn_sew_resnet18_t2", CIFAR),
    ("snn_vgg11_t1", HARD),
]
READ = """
import sys, torch
from snnzoo.export.nir import load
from snnzoo.export.interpret import interpret
images = torch.load(sys.argv[2], weights_only=True)
run = interpret(load(sys.argv[1]), images)
torch.save({"logits": run.logits, **run.spikes}, sys.argv[3])
"""


@pytest.mark.parametrize(("name", "kwargs"), EXPRESSIBLE)
def test_round_trip(tmp_path, name, kwargs):
    model = trained(name, **kwargs).eval()
    report = export_nir(model, tmp_path / "net.nir", SIZE)
    assert report["parity"]["differing"] == report["parity"]["ties"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.nir", "net.nir.json", "net.nir.txt"]
    graph = load(tmp_path / "net.nir")
    images = torch.randn(2, *SIZE)
    run = interpret(graph, images)
    assert compare(trace(model, SIZE), images, watch(model, images), run).passed
    assert (graph.num_steps, graph.lifs[0].params.reset) == (model.num_steps, "hard")
    assert graph.lifs[0].params.threshold == kwargs.get("threshold", 1.0)
    assert graph.metadata["mean"] == pytest.approx(model.pretrained_cfg["mean"])


def test_a_fresh_process_reads_it(tmp_path):
    model = trained("snn_resnet20_t2", **HARD).eval()
    export_nir(model, tmp_path / "net.nir", SIZE)
    images = torch.randn(2, *SIZE)
    torch.save(images, tmp_path / "images")
    files = [str(tmp_path / name) for name in ("net.nir", "images", "result")]
    subprocess.run([sys.executable, "-c", READ, *files], check=True)
    result, expected = torch.load(files[2], weights_only=True), watch(model, images)
    torch.testing.assert_close(result.pop("logits"), expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result, expected.spikes)


def test_the_numbers_in_the_file(tmp_path):
    model = trained("snn_resnet20_t2", **HARD, decay=0.25, threshold=2.0)
    export_nir(model, tmp_path / "net.nir", SIZE, labels=list("abcdefg"))
    read = nir.read(str(tmp_path / "net.nir"))
    neuron = read.nodes["layer1.0.act1"]
    assert neuron.tau.shape == (8, 16, 16)
    assert np.unique(1 - DT / neuron.tau) == pytest.approx([0.25], rel=1e-12)
    assert np.unique(neuron.v_threshold) == pytest.approx([0.75 * 2.0], rel=2e-6)
    assert {key: float(neuron.metadata[key]) for key in ("decay", "threshold", "dt")} == {
        "decay": 0.25, "threshold": 2.0, "dt": DT,
    }  # fmt: skip
    assert int(read.metadata["num_steps"]) == 2
    assert load(tmp_path / "net.nir").metadata["labels"] == list("abcdefg")


@pytest.mark.parametrize(
    ("name", "kwargs", "target", "message"),
    [
        ("snn_resnet20_t2", {}, "any", r"act1, .* \(lif\): reset='soft': NIR does not say"),
        (
            "snn_resnet20_t2",
            {},
            "snntorch",
            r"act1, .* \(lif\): .*reset_mechanism='zero'.*--target norse, spikingjelly",
        ),
        ("snn_resnet34_t2", {}, "any", r"reset='soft': .* to zero; train with reset='hard'; maxpool"),
        ("snn_resnet20_t2", dict(decay=0.0), "snntorch", r"reset='soft': .*exact with --target norse, or train"),
        ("snn_resnet20_t2", dict(reset="hard", decay=1.0), "any", r"act1, .* and 2 more \(lif\): decay=1"),
        ("snn_resnet20_t2", dict(reset="hard", decay=0.0), "spikingjelly", r"act1, .* \(lif\): decay=0"),
        ("snn_resnet20_t2", dict(reset="hard", decay=0.0), "any", r"act1, .* \(lif\): decay=0"),
        ("snn_resnet34_t2", dict(reset="hard"), "any", r"maxpool \(pool\): NIR has no max pooling"),
        (
            "snn_sew_resnet18_t2",
            dict(reset="hard", stem="cifar", connect="and"),
            "any",
            r"layer1\.0\.connect, layer2\.0\.connect .*AND",
        ),
        ("snn_sew_resnet18_t2", dict(reset="hard", stem="cifar", connect="iand"), "any", r"layer2\.0\.connect .*IAND"),
        ("cifar_resnet20", {}, "any", r"act1, .* \(relu\): NIR describes spiking networks"),
    ],
)
def test_refusals_name_the_node(tmp_path, name, kwargs, target, message):
    model = timm.create_model(name, **SMALL, **kwargs)
    with pytest.raises(InputError, match=message):
        export_nir(model, tmp_path / "net.nir", (3, 32, 32), target=target)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["any", "snntorch", "norse", "spikingjelly"])
@pytest.mark.parametrize("first", ["hard", "soft"])
def test_neurons_of_both_resets_are_refused(tmp_path, first, target):
    """Each importer is told one reset for all, or knows one."""
    model = trained("snn_resnet20_t2", reset=first, **SMALL)
    other = {"hard": "soft", "soft": "hard"}[first]
    model.layer1[0].act1.params = dataclasses.replace(model.act1.params, reset=other)
    why = rf"layer1\.0\.act1 \(lif\): reset='{other}': act1 has another one, and importers take one for all neurons"
    if target in ("any", "snntorch"):
        why = r"\(lif\): reset='soft': .* to zero.*; train with reset='hard'"
    with pytest.raises(InputError, match=why):
        export_nir(model, tmp_path / "net.nir", SIZE, target=target)
    assert not list(tmp_path.iterdir())


def test_grouped_convolutions_are_refused(tmp_path):
    model = trained("snn_resnet20_t2", **HARD)
    model.layer1[0].conv1 = Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
    with pytest.raises(InputError, match=r"layer1\.0\.conv1 \(conv\): groups=4: the package nir takes it for one of"):
        export_nir(model, tmp_path / "net.nir", SIZE)
    assert not list(tmp_path.iterdir())


def test_a_difference_leaves_no_file(tmp_path, monkeypatch):
    def wrong(graph, images):
        run = interpret(graph, images)
        return Run(run.logits + 1, run.spikes, {})

    monkeypatch.setattr(exporter, "interpret", wrong)
    with pytest.raises(ParityError, match="read back, is not what the model computes"):
        export_nir(trained("snn_resnet20_t2", **HARD), tmp_path / "net.nir", SIZE)
    assert not list(tmp_path.iterdir())


def test_a_graph_that_is_not_the_models_leaves_no_file(tmp_path, monkeypatch):
    def wrong(model, input_size):
        model = copy.deepcopy(model)
        model.layer1[0].conv1.weight.data *= 1.5
        return trace(model, input_size)

    monkeypatch.setattr(exporter, "trace", wrong)
    with pytest.raises(ParityError, match="the graph behind .*, read back, is not what the model computes"):
        export_nir(trained("snn_resnet20_t2", **HARD), tmp_path / "net.nir", SIZE)
    assert not list(tmp_path.iterdir())


def test_images_of_other_types(tmp_path):
    model = trained("snn_resnet20_t2", **HARD)
    report = export_nir(model, tmp_path / "net.nir", SIZE, images=torch.rand(2, *SIZE).double().requires_grad_())
    assert report["parity"]["images"] == 2
    with pytest.raises(InputError, match=r"images to compare on must be normalised.*got torch.uint8 \[2, 3, 16, 16\]"):
        export_nir(model, tmp_path / "net.nir", SIZE, images=torch.zeros(2, *SIZE).byte())


def test_files_that_are_not_ours(tmp_path):
    with pytest.raises(InputError, match="no NIR file at"):
        load(tmp_path / "none.nir")
    (tmp_path / "text.nir").write_text("hello")
    with pytest.raises(InputError, match="cannot be read as NIR"):
        load(tmp_path / "text.nir")
    other = nir.NIRGraph.from_list(nir.Affine(np.eye(2, dtype=np.float32), np.zeros(2, np.float32)))
    nir.write(str(tmp_path / "other.nir"), other)
    with pytest.raises(InputError, match="was not written by snnzoo: its metadata lacks 'nodes'"):
        load(tmp_path / "other.nir")


@pytest.mark.parametrize(
    ("reset", "key"),
    [("hard", key) for key in ("tau", "r", "v_leak", "v_reset", "v_threshold")]
    + [("soft", key) for key in ("tau_mem", "tau_syn", "r", "v_leak", "v_reset", "v_threshold", "w_in")],
)
def test_a_neuron_that_was_changed(tmp_path, reset, key):
    """One of one layer is enough."""
    graph = to_nir(trace(trained("snn_resnet20_t2", **SMALL, reset=reset), SIZE), "norse")
    changed = getattr(graph.nodes["act1"], key).copy()
    changed[2, 3, 4] += 0.5
    setattr(graph.nodes["act1"], key, changed)
    nir.write(str(tmp_path / "changed.nir"), graph)
    with pytest.raises(InputError, match=f"act1: its {key} is not that of"):
        load(tmp_path / "changed.nir")


@pytest.mark.parametrize("decay", [0.0, 5.0, -1.0, float("nan"), "0.6"])
def test_a_read_out_that_cannot_be(tmp_path, decay):
    written = to_nir(trace(trained("snn_resnet20_t2", **HARD, readout_decay=0.6), SIZE))
    assert written.metadata["readout_decay"] == 0.6
    written.metadata["readout_decay"] = decay
    nir.write(str(tmp_path / "net.nir"), written)
    with pytest.raises(InputError, match=r"readout_decay must lie in \(0, 1\], got"):
        load(tmp_path / "net.nir")


def test_a_neuron_of_another_kind(tmp_path):
    graph = to_nir(trace(trained("snn_resnet20_t2", **HARD), SIZE))
    graph.nodes["act1"].metadata["reset"] = "soft"
    nir.write(str(tmp_path / "changed.nir"), graph)
    with pytest.raises(InputError, match="act1: a LIF is not LIFParams.*reset='soft'"):
        load(tmp_path / "changed.nir")


# By which importer what comes out exact; norse alone needs the order of execution put right where branches join.
EXACT = [
    (importer, reset, name, kwargs)
    for importer in ("snntorch", "norse, in order", "spikingjelly")
    for reset in ("hard", "soft")
    for name, kwargs in (
        ("snn_resnet20_t4", {}),
        ("snn_resnet19_t2", {}),
        ("snn_preact_resnet18_t4", dict(stem="cifar")),
        ("snn_sew_resnet18_t2", dict(stem="cifar")),
        ("snn_vgg11_t4", {}),
    )
    if not (importer == "snntorch" and reset == "soft")
]


@pytest.mark.filterwarnings("ignore")  # of the importers and what they import
@pytest.mark.parametrize(("importer", "reset", "name", "kwargs"), EXACT)
def test_other_frameworks_fire_the_same_spikes(tmp_path, importer, reset, name, kwargs):
    target = importers.IMPORTERS[importer][0]
    pytest.importorskip("nirtorch")  # which they import NIR with
    pytest.importorskip(target)
    model = importers.lively(name, reset=reset, **SMALL, **kwargs)
    export_nir(model, tmp_path / "net.nir", SIZE, target=target)
    images, graph = torch.randn(3, *SIZE), trace(model, SIZE)
    run = importers.run_file(tmp_path / "net.nir", importer, graph, images)
    for node in graph.lifs:
        assert run.spikes[node.name].shape == (graph.num_steps, 3, *graph.shapes[node.name])
    assert sum(0 < float(s.mean()) < 1 for s in run.spikes.values()) >= 0.8 * len(run.spikes)
    parity = compare(graph, images, watch(model, images), run)
    assert parity.passed, parity
    assert parity.ties <= 2


def test_targets_refuse_what_their_importers_get_wrong():
    graph = trace(timm.create_model("snn_resnet20_t2", **SMALL), SIZE)
    assert [bool(refusals(graph, target)) for target in ("any", "snntorch", "norse", "spikingjelly")] == [
        True, True, False, False,
    ]  # fmt: skip


def test_command(tmp_path, capsys):
    pytest.importorskip("sklearn")
    from snnzoo.data import write_digits

    write_digits(tmp_path / "digits")
    shape = "--model-kwargs depths=(1,) channels=(8,) reset=hard --input-size 3 8 8"
    cli.main(f"export nir snn_resnet20_t2 {shape} --data-dir {tmp_path}/digits -o {tmp_path}/net.nir".split())
    report = json.loads((tmp_path / "net.nir.json").read_text())
    assert report["accuracy"]["PyTorch"] == report["accuracy"]["NIR, read back"]
    assert "thresholds are lowered by 1e-06" in capsys.readouterr().out
