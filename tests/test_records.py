"""What a run leaves to be read."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from conftest import ROOT
from PIL import Image
from running import options, refuse, rows, taught

import train_distill
from snnzoo import InputError
from snnzoo.analysis import SpikeCounter, draw_curves, firing_rates
from snnzoo.data import fingerprint, open_dataset
from snnzoo.records import git_revision, read_table


def test_summary_and_curves(digits, teacher, tmp_path):
    pytest.importorskip("matplotlib")
    run = options(digits, tmp_path, *taught(teacher), "--epochs", 2, "--experiment", "run", "--log-interval", 1)
    train_distill.main(run)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["finished"] and summary["epochs"] == 2
    assert summary["options"]["teacher"] == "cifar_resnet20" and summary["options"]["lr"] == 0.1
    assert summary["versions"]["torch"] == torch.__version__
    assert summary["data"]["train"]["samples"] == 80 and summary["data"]["validation"]["classes"] == 10
    assert summary["best"]["value"] == max(row["eval_top1"] for row in rows(tmp_path / "run"))
    assert summary["last"]["eval_similarity_1"] == pytest.approx(rows(tmp_path / "run")[-1]["eval_similarity_1"])
    assert Image.open(tmp_path / "run/curves.png").size[0] > 1000
    assert (tmp_path / "run/train.log").read_text().count("img/s ETA") == 2 * 4


def test_the_revision_is_that_of_this_tree():
    asked = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    known = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    assert (git_revision() or {"revision": ""})["revision"] == known


def test_fingerprints_tell_data_apart(digits, tmp_path):
    first = fingerprint(open_dataset("", str(digits), "train", 10))
    assert first == fingerprint(open_dataset("", str(digits), "train", 10))
    assert first != fingerprint(open_dataset("", str(digits), "validation", 10))
    copy = tmp_path / "copy"
    for path in sorted((digits / "train").rglob("*.png")):
        target = copy / "train" / path.relative_to(digits / "train")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    assert fingerprint(open_dataset("", str(copy), "train", 10)) == first
    path = sorted((copy / "train/0").iterdir())[0]
    Image.new("L", (8, 8)).save(path)  # the first sample is one of those that are looked into
    assert fingerprint(open_dataset("", str(copy), "train", 10)) != first
    path.rename(path.with_name("other.png"))
    assert fingerprint(open_dataset("", str(copy), "train", 10)) != first


def test_firing_rates_by_stage():
    model = timm.create_model("snn_resnet20_t2", depths=(1, 1, 1)).eval()
    x = torch.randn(4, 3, 16, 16)
    with SpikeCounter(model) as counter, torch.no_grad():
        model(x)
        model(x)
    assert counter.by_layer() == firing_rates(model, [x])
    layers, stages = counter.by_layer(), counter.by_stage()
    assert list(stages) == ["stem", "layer1", "layer2", "layer3"]
    assert stages["stem"] == layers["act1"]
    assert stages["layer2"] == pytest.approx((layers["layer2.0.act1"] + layers["layer2.0.act2"]) / 2)
    assert not model.act1._forward_hooks


def test_tensorboard(digits, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = options(digits, tmp_path, "--epochs", 2, "--experiment", "run", "--log-tensorboard")
    train_distill.main(run)
    written = EventAccumulator(str(tmp_path / "run")).Reload()
    values = [event.value for event in written.Scalars("eval/top1")]
    assert values == pytest.approx([row["eval_top1"] for row in rows(tmp_path / "run")])


@pytest.mark.slow
def test_wandb(digits, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    command = [sys.executable, str(ROOT / "train_distill.py"), *options(digits, tmp_path, "--experiment", "run")]
    environment = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "SNNZOO_BACKEND": "eager", "PATH": "/usr/bin:/bin"}
    environment |= {"HOME": str(tmp_path)}
    subprocess.run([*command, "--log-wandb"], check=True, env=environment, capture_output=True, timeout=200)
    assert list((tmp_path / "run").rglob("run-*.wandb"))


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_library_is_named_before_training(digits, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else "wandb", None)
    run = options(digits, tmp_path, f"--log-{name}")
    refuse(rf"--log-{name} needs {name}: pip install 'snnzoo\[{name}\]'", run)


def test_curves_need_matplotlib_and_epochs(tmp_path, monkeypatch, digits):
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError, match="there is nothing to draw"):
        draw_curves({"run": []})
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"pip install 'snnzoo\[plot\]'"):
        draw_curves({"run": [{"epoch": 0, "train_loss": 1.0}]})
    train_distill.main(options(digits, tmp_path, "--experiment", "run"))  # ends well all the same
    assert not (tmp_path / "run/curves.png").exists()
    assert read_table(tmp_path / "run/summary.csv")
