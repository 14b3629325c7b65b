"""ONNX files, run by onnxruntime."""

import copy
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from test_export_graph import FAMILIES, SMALL
from test_folding import trained
from timm.data import create_transform

from snnzoo import InputError, cli
from snnzoo.data import write_digits
from snnzoo.export.interpret import watch

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

import snnzoo.export.onnx as exporter  # noqa: E402
from snnzoo.export.onnx import OnnxEngine, export_onnx  # noqa: E402
from snnzoo.export.parity import ParityError  # noqa: E402
from snnzoo.export.trace import trace  # noqa: E402

SIZE = (3, 32, 32)


@pytest.fixture(scope="module")
def photos():
    """Eight crops of scikit-learn's two photographs, normalised."""
    datasets = pytest.importorskip("sklearn.datasets")
    transform = create_transform(SIZE, is_training=False, crop_pct=1.0)
    images = [Image.fromarray(array) for array in datasets.load_sample_images().images]
    crops = [image.crop((x, 100, x + 160, 260)) for image in images for x in (0, 150, 300, 450)]
    return torch.stack([transform(crop) for crop in crops])


def consumed(model):
    """Names that some node, or the output, reads."""
    return {name for node in model.graph.node for name in node.input} | {out.name for out in model.graph.output}


@pytest.mark.parametrize("mode", ["unrolled", "stateful"])
@pytest.mark.parametrize(("name", "kwargs"), FAMILIES)
def test_every_family_on_photographs(tmp_path, photos, name, kwargs, mode):
    model = trained(name, **SMALL, **kwargs).eval()
    path = tmp_path / "net.onnx"
    report = export_onnx(model, path, SIZE, mode=mode, dynamic_batch=True, images=photos)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "net.onnx.json", "net.onnx.txt"]
    assert report["parity"]["images"] == 8
    assert report["parity"]["differing"] == report["parity"]["ties"] <= 2
    assert report["parity"]["logits_of_same"] <= 1e-4
    engine = OnnxEngine(path)
    for batch in (1, 3, 8):
        expected = watch(model, photos[:batch]).logits
        got = engine(photos[:batch])
        assert got.shape == (batch, 7)
        if not report["parity"]["ties"]:
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    read = consumed(proto)
    assert all(set(node.output) & read for node in proto.graph.node)  # no dead nodes
    assert {weight.name for weight in proto.graph.initializer} <= read
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
    assert "layer1.0.conv1" in {node.name for node in proto.graph.node}


@pytest.mark.parametrize("mode", ["unrolled", "stateful"])
@pytest.mark.parametrize("steps", [1, 2])
def test_an_answer_of_spikes(tmp_path, photos, steps, mode):
    """Of a network without pooling and classifier: its last layer is neurons, whose spikes are compared, too."""
    model = trained("snn_resnet20_t1", num_steps=steps, **{**SMALL, "num_classes": 0}, global_pool="").eval()
    report = export_onnx(model, tmp_path / "net.onnx", SIZE, mode=mode, images=photos)
    assert report["parity"]["same_top1"] == 8
    got = OnnxEngine(tmp_path / "net.onnx")(photos)
    torch.testing.assert_close(got, model(photos).detach())


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_steps_and_opsets(tmp_path, photos, steps, opset):
    model = trained("snn_preact_resnet18_t2", num_steps=steps, **SMALL).eval()
    export_onnx(model, tmp_path / "net.onnx", SIZE, opset=opset, images=photos)
    proto = onnx.load(tmp_path / "net.onnx")
    assert proto.opset_import[0].version == opset
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1  # without --dynamic-batch
    torch.testing.assert_close(OnnxEngine(tmp_path / "net.onnx")(photos), model(photos).detach(), rtol=1e-4, atol=1e-4)


def test_streaming_by_hand(tmp_path, photos):
    model = trained("snn_resnet20_t4", depths=(1,), channels=(8,), decay=0.6, reset="hard").eval()
    export_onnx(model, tmp_path / "net.onnx", SIZE, mode="stateful", dynamic_batch=True)
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    assert names == ["images", "act1.membrane", "layer1.0.act1.membrane", "layer1.0.act2.membrane"]
    frames = torch.stack([photos[:2], photos[2:4], photos[4:6]], 1)  # two clips of three frames
    states = {name: np.zeros((2, 8, 32, 32), np.float32) for name in names[1:]}
    logits = []
    for t in range(3):
        y, *after = session.run(None, {"images": frames[:, t].numpy(), **states})
        states = dict(zip(states, after, strict=True))
        logits.append(y)
    np.testing.assert_allclose(np.mean(logits, 0), model(frames).detach().numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["unrolled", "stateful"])
def test_a_leaky_readout_weights_the_steps(tmp_path, photos, mode):
    model = trained("snn_resnet20_t4", **SMALL, readout_decay=0.6).eval()
    export_onnx(model, tmp_path / "net.onnx", SIZE, mode=mode, dynamic_batch=True, images=photos)
    engine = OnnxEngine(tmp_path / "net.onnx")
    assert engine.readout_decay == 0.6
    assert "read-out    leaky, decay 0.6\n" in (tmp_path / "net.onnx.txt").read_text()
    torch.testing.assert_close(engine(photos), watch(model, photos).logits, rtol=1e-4, atol=1e-4)
    model.readout_decay = 1.0
    export_onnx(model, tmp_path / "mean.onnx", SIZE, mode=mode, dynamic_batch=True, images=photos)
    assert not torch.allclose(OnnxEngine(tmp_path / "mean.onnx")(photos), engine(photos), atol=1e-2)


def test_metadata_and_report(tmp_path):
    model = trained("snn_resnet20_t2", depths=(1,), channels=(4,), decay=0.3, threshold=0.9, reset="hard")
    report = export_onnx(model, tmp_path / "net.onnx", (3, 16, 16), labels=list("abcdefghij"))
    assert model.fc.weight.requires_grad
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    metadata = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert (metadata["num_steps"], metadata["decay"], metadata["threshold"]) == (2, 0.3, 0.9)
    assert (metadata["reset"], metadata["labels"]) == ("hard", list("abcdefghij"))
    assert metadata["mean"] == list(model.pretrained_cfg["mean"])
    assert metadata["std"] == list(model.pretrained_cfg["std"])
    assert json.loads((tmp_path / "net.onnx.json").read_text()) == json.loads(json.dumps(report))
    assert report["bytes"] == (tmp_path / "net.onnx").stat().st_size
    assert report["folded"] == ["bn1", "layer1.0.bn1", "layer1.0.bn2"]
    text = (tmp_path / "net.onnx.txt").read_text()
    assert "parity      3 images of noise" in text
    assert "layer1.0.conv2" in text


def test_metadata_of_neurons_that_differ(tmp_path):
    model = trained("snn_resnet20_t2", depths=(1,), channels=(4,), decay=0.3)
    model.act1.params = dataclasses.replace(model.act1.params, decay=0.6, reset="hard")
    report = export_onnx(model, tmp_path / "net.onnx", (3, 8, 8))
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert "decay" not in metadata and "reset" not in metadata and json.loads(metadata["threshold"]) == 1.0
    assert [neuron["decay"] for neuron in report["neurons"]] == [0.3, 0.6]


def test_a_difference_leaves_no_file(tmp_path, monkeypatch, capsys):
    target = tmp_path / "net.onnx"
    target.write_text("the file of yesterday")
    command = f"export onnx snn_resnet20_t1 --model-kwargs depths=(1,) channels=(4,) --input-size 3 8 8 -o {target}"
    observe = exporter.observe
    monkeypatch.setattr(exporter, "observe", lambda *args: wrong_run(observe(*args)))
    with pytest.raises(SystemExit) as exit_info:
        cli.main(command.split())
    assert exit_info.value.code == 1
    assert "is not what the model computes" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert target.read_text() == "the file of yesterday"
    with pytest.raises(ParityError):
        export_onnx(timm.create_model("snn_resnet20_t1", depths=(1,), channels=(4,)), target, (3, 8, 8))


@pytest.mark.parametrize("name", ["snn_resnet20_t1", "cifar_resnet20"])
def test_a_graph_that_is_not_the_models_leaves_no_file(tmp_path, monkeypatch, name):
    """onnxruntime computes what was traced: only the model can tell."""

    def wrong(model, input_size):
        model = copy.deepcopy(model)
        model.fc.weight.data *= 1.01
        return trace(model, input_size)

    monkeypatch.setattr(exporter, "trace", wrong)
    with pytest.raises(ParityError, match="the graph behind .* is not what the model computes: .* 0 neurons"):
        export_onnx(trained(name, **SMALL), tmp_path / "net.onnx", (3, 8, 8))
    assert not list(tmp_path.iterdir())


def wrong_run(run):
    return type(run)(run.logits + 1, run.spikes, {})


def test_command_on_data_with_int8(tmp_path, capsys):
    pytest.importorskip("sklearn")
    write_digits(tmp_path / "digits")
    target = tmp_path / "deep/er/net.onnx"
    shape = "--model-kwargs depths=(1,) channels=(8,) --num-steps 3 --input-size 3 8 8"
    cli.main(
        f"export onnx snn_resnet20_t1 {shape} --data-dir {tmp_path}/digits --int8 --dynamic-batch -o {target}".split()
    )
    report = json.loads((target.parent / "net.onnx.json").read_text())
    assert (report["num_steps"], report["input_size"], report["path"]) == (3, [3, 8, 8], str(target))
    assert report["parity"]["images"] == 8
    assert report["accuracy"]["PyTorch"] == report["accuracy"]["onnxruntime"]
    assert 0 <= report["accuracy"]["onnxruntime, int8"] <= 100
    assert report["labels"] == list("0123456789")
    proto = onnx.load(target)
    assert report["nodes"] == len(proto.graph.node)
    assert "DequantizeLinear" in {node.op_type for node in proto.graph.node}
    said = capsys.readouterr().out
    assert "accuracy    onnxruntime, int8" in said
    assert "parity      8 real images, before its weights had 8 bits: 0 of" in said
    assert f"int8        {report['int8_differing']:,} of " in said
    assert f"same class as before for {report['int8_same_top1']} of 8 images" in said


def test_the_spikes_that_8_bits_cost_are_counted(tmp_path, photos):
    model = trained("snn_resnet20_t2", depths=(1,), channels=(8,)).eval()
    export_onnx(model, tmp_path / "float.onnx", SIZE, images=photos)
    report = export_onnx(model, tmp_path / "net.onnx", SIZE, images=photos, calibration=[photos])
    float_file, int8_file = (onnx.load(tmp_path / name) for name in ("float.onnx", "net.onnx"))
    names = {layer: [f"{layer}/t1/spikes", f"{layer}/t2/spikes"] for layer in watch(model, photos).spikes}
    before, after = (
        exporter.observe(proto, names, OnnxEngine(proto.SerializeToString()), photos).spikes
        for proto in (float_file, int8_file)
    )
    differing = sum(int((before[name] != after[name]).sum()) for name in names)
    assert report["int8_differing"] == differing > 0
    assert report["parity"]["passed"] and report["parity"]["differing"] == report["parity"]["ties"]


def test_sigterm_leaves_nothing(tmp_path):
    command = f"-m snnzoo.cli export onnx snn_resnet20_t4 -o {tmp_path}/new/net.onnx".split()
    process = subprocess.Popen([sys.executable, *command])
    try:
        while not list(tmp_path.glob("new/.net.onnx.*.tmp")):  # it has begun
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
    assert not list(tmp_path.iterdir())


NET = "snn_resnet20_t1 --input-size 3 8 8"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("onnx snn_resnet21_t1 -o x.onnx", "no model named 'snn_resnet21_t1'; did you mean"),
        (f"onnx {NET} --opset 9 -o x.onnx", "opset must lie between 13 and 21, got 9"),
        (f"onnx {NET} --mode lazy -o x.onnx", r"mode must be one of \('unrolled', 'stateful'\), got 'lazy'"),
        (f"onnx {NET} --int8 -o x.onnx", "--int8 needs images to calibrate on: give --data-dir"),
        (f"onnx {NET} -o file/x.onnx", "'file/x.onnx' cannot be written .*: name another file"),
        (f"onnx {NET} -o .", "'.' cannot be written .it is a folder."),
        (f"onnx {NET} -o reports", r"'reports\.json' cannot be written .it is a folder."),
        (f"onnx {NET} -o {'x' * 250}", r"^snnzoo: error: 'x{250}' cannot be written .File name too long.*\n$"),
        (f"nir {NET} --model-kwargs reset=hard -o reports", r"'reports\.json' cannot be written .it is a folder."),
        (f"onnx {NET} -o pipe", "'pipe' cannot be written .it is no regular file."),
        ("onnx snn_resnet20_t1 --input-size 3 -8 8 -o x.onnx", "--input-size must be at least 1 1 1, got 3 -8 8"),
        ("graph snn_resnet20_t1 --in-chans 0", "in_chans must be at least 1, got 0"),
        ("graph snn_resnet20_t1 --num-classes -1", "num_classes must be at least 0, got -1"),
        (f"onnx {NET} --calibration-split test -o x.onnx", "--calibration-split does nothing without --int8"),
        (f"onnx {NET} --pretrained -o x.onnx", "No pretrained weights exist"),
        (f"onnx {NET} --checkpoint none.pth -o x.onnx", "no checkpoint file at 'none.pth'"),
        (f"onnx {NET} --checkpoint other.safetensors -o x.onnx", "does not fit SpikingResNet"),
        (f"onnx {NET} --data-dir nowhere -o x.onnx", "there is no such folder or file"),
        (f"nir {NET} --target brain -o x.nir", "target must be one of any, snntorch, norse, spikingjelly, got 'brain'"),
        (f"nir {NET} -o file/x.nir", "'file/x.nir' cannot be written"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, capsys, command, message):
    pytest.importorskip("nir")
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    os.mkfifo("pipe")
    Path("reports.json").mkdir()
    save_file(timm.create_model("snn_vgg11_t1", channels=(4, 4, 4, 4)).state_dict(), "other.safetensors")
    with pytest.raises(SystemExit) as exit_info:
        cli.main(f"export {command}".split())
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other.safetensors", "pipe", "reports.json"]


@pytest.mark.parametrize(
    ("images", "got"),
    [
        *(
            (torch.zeros(shape), rf"torch\.float32 \[{shape[0]}, ")
            for shape in [(2, 3, 16, 16), (3, 8, 8), (0, 3, 8, 8)]
        ),
        (torch.zeros(2, 2, 3, 8, 8), r"torch\.float32 \[2, 2, 3, 8, 8\]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"torch\.uint8 \[2, 3, 8, 8\]"),
        (np.zeros((2, 3, 8, 8), np.float32), "ndarray"),
    ],
)
def test_images_that_do_not_fit(tmp_path, images, got):
    model = timm.create_model("snn_resnet20_t1", depths=(1,), channels=(4,))
    must = rf" must be normalised, a tensor of real numbers \[B, 3, 8, 8\] with B at least 1, got {got}"
    with pytest.raises(InputError, match="images to compare on" + must):
        export_onnx(model, tmp_path / "net.onnx", (3, 8, 8), images=images)
    with pytest.raises(InputError, match="calibration images" + must):
        export_onnx(model, tmp_path / "net.onnx", (3, 8, 8), calibration=[torch.zeros(1, 3, 8, 8), images])
    assert not list(tmp_path.iterdir())


def test_calibration_needs_images(tmp_path):
    with pytest.raises(InputError, match="calibration must hold at least one batch of images, got none"):
        export_onnx(timm.create_model("snn_resnet20_t1"), tmp_path / "net.onnx", (3, 8, 8), calibration=[])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("images", [torch.rand(2, *SIZE).double(), torch.rand(2, *SIZE, requires_grad=True),
                                    torch.rand(2, *SIZE).half()])  # fmt: skip
def test_images_of_other_types(tmp_path, images):
    model = trained("snn_resnet20_t2", depths=(1,), channels=(4,))
    report = export_onnx(model, tmp_path / "net.onnx", SIZE, images=images, calibration=[images])
    assert report["parity"]["images"] == 2


def test_missing_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"ONNX export needs onnxruntime: pip install 'snnzoo\[onnx\]'"):
        export_onnx(timm.create_model("snn_resnet20_t1"), tmp_path / "net.onnx")
