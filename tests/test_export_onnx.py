"""ONNX files, run by onnxruntime."""

import json

import numpy as np
import pytest
import timm
import torch

from snnzoo import InputError, cli

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from snnzoo.export.onnx import export_onnx  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch.onnx itself
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]


def trained(name, **kwargs):
    """A model whose batch norms have seen data, so that spikes get through."""
    model = timm.create_model(name, **kwargs)
    with torch.no_grad():
        for _ in range(20):
            model.train()(torch.randn(8, 3, 16, 16))
    return model.eval()


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_onnxruntime_gives_the_same_logits(tmp_path, backend, request):
    if backend == "compiled":
        request.getfixturevalue("compiled")
    model = trained("snn_resnet20_t2", depths=(1, 1, 1), decay=0.3, threshold=0.9, reset="hard")
    report = export_onnx(model, tmp_path / "net.onnx", (3, 16, 16))
    assert model.fc.weight.requires_grad
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert report["max_difference"] < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, 3, 8):
        x = torch.randn(batch, 3, 16, 16)
        got = session.run(None, {"images": x.numpy()})[0]
        expected = model(x).detach().numpy()
        assert np.ptp(expected) > 0.1
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    metadata = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert metadata["num_steps"] == 2
    assert (metadata["decay"], metadata["threshold"], metadata["reset"]) == (0.3, 0.9, "hard")
    assert metadata["mean"] == list(model.pretrained_cfg["mean"])


def test_a_difference_leaves_no_file(tmp_path, monkeypatch):
    model = trained("snn_resnet20_t1", depths=(1, 1, 1))
    target = tmp_path / "net.onnx"
    target.write_text("the file of yesterday")
    monkeypatch.setattr("snnzoo.export.onnx.TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match="logits differ from PyTorch's by .* was not written"):
        export_onnx(model, target, (3, 16, 16))
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert target.read_text() == "the file of yesterday"


def test_command(tmp_path, capsys):
    target = tmp_path / "deep/er/net.onnx"
    shape = "--model-kwargs depths=(1,1,1) --num-steps 3 --input-size 1 8 8"
    cli.main(f"export onnx snn_resnet20_t1 {shape} -o {target}".split())
    printed = capsys.readouterr().out
    report = json.loads(printed[printed.index("{\n") :])
    assert (report["num_steps"], report["input_size"], report["path"]) == (3, [1, 8, 8], str(target))
    assert onnx.load(target).graph.input[0].type.tensor_type.shape.dim[1].dim_value == 1


def test_bad_command(capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main("export onnx snn_resnet21_t1 -o x.onnx".split())
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.startswith("snnzoo: error: no model named 'snn_resnet21_t1'; did you mean")


def test_missing_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"ONNX export needs onnxruntime: pip install 'snnzoo\[onnx\]'"):
        export_onnx(timm.create_model("snn_resnet20_t1"), tmp_path / "net.onnx")
