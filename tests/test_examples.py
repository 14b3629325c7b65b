"""The examples, as they run without arguments."""

import re
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "examples"))


@pytest.mark.slow
def test_finetune(tmp_path, capsys):
    pytest.importorskip("sklearn")
    import finetune

    finetune.main(["--output", str(tmp_path), "--epochs", "8"])
    tuned, scratch = map(float, re.findall(r"top-1 ([\d.]+) %", capsys.readouterr().out))
    assert tuned > scratch  # what it knew helps
    assert tuned > 40
    assert (tmp_path / "finetuned.safetensors").is_file()


@pytest.mark.slow
def test_compare(tmp_path, capsys):
    pytest.importorskip("sklearn")
    import compare

    compare.main(["--output", str(tmp_path)])
    text = capsys.readouterr().out
    ann, snn = map(float, re.search(r"top-1, %\s+([\d.]+)\s+([\d.]+)", text).groups())
    assert ann > 80 and snn > 30
    macs = [float(n.replace(",", "")) for n in re.search(r"MACs an image\s+([\d.,]+)\s+([\d.,]+)", text).groups()]
    assert macs[0] > 10 * macs[1]


@pytest.mark.slow
def test_stream_events(tmp_path, capsys):
    for library in ("sklearn", "tonic", "onnxruntime"):
        pytest.importorskip(library)
    import stream_events

    stream_events.main(["--output", str(tmp_path)])
    text = capsys.readouterr().out
    frames = re.findall(r"frame \d/6 +class (\d), (\d+)%", text)
    assert len(frames) == 6
    assert frames[-1][0] == "1"  # the recording is of a one
    assert float(re.search(r"logits differ by ([\d.e+-]+)", text)[1]) < 1e-4


def test_finetune_refuses(tmp_path):
    import finetune

    from snnzoo import InputError

    with pytest.raises(InputError, match="--epochs and --lr must be positive, got 0 and 0.1"):
        finetune.main(["--epochs", "0"])
    with pytest.raises(InputError, match="there is no such folder or file"):
        finetune.main(["--data-dir", str(tmp_path / "nowhere")])


def test_stream_refuses_a_network_for_images(monkeypatch):
    import stream_events
    import timm

    from snnzoo import InputError

    loaded = (
        timm.create_model("snn_resnet20_t4", depths=(1, 1, 1)),
        SimpleNamespace(options={"model": "snn_resnet20_t4"}),
    )
    monkeypatch.setattr(stream_events.hub, "load", lambda path: loaded)
    with pytest.raises(InputError, match=r"'x.pth.tar' is of snn_resnet20_t4, 3 channels: .* with 2"):
        stream_events.main(["--recording", "r.aedat", "--checkpoint", "x.pth.tar"])


@pytest.mark.parametrize(
    ("name", "options"), [("compare", ["--teacher", "x"]), ("stream_events", ["--recording", "x"])]
)
def test_halves_of_a_pair(name, options):
    import importlib

    from snnzoo import InputError

    with pytest.raises(InputError, match="go together"):
        importlib.import_module(name).main(options)
