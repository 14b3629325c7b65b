"""The page of a run: what it says, that it needs no network, and that nothing from files gets into its markup."""

import base64
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import timm
import torch
from running import options, taught
from safetensors.torch import save_file

import train_distill
from snnzoo import InputError, cli, hub
from snnzoo.analysis.inspection import Inspection, confusion_matrix, inspect_run
from snnzoo.analysis.report import render
from snnzoo.export.lava.export import export_lava
from snnzoo.records import read_table

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    save_file(timm.create_model("cifar_resnet20").state_dict(), folder / "teacher.safetensors")
    train_distill.main(options(digits, folder, *taught(folder / "teacher.safetensors"), "--experiment", "run"))
    return folder / "run"


class Page(HTMLParser):
    """Tags, attributes and text of a page; every tag must be closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], "", []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def pictures(page):
    return [base64.b64decode(value.partition(",")[2]) for key, value in page.attributes if key == "src"]


def assert_offline(text):
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    for key, value in page.attributes:
        if key in ("src", "href"):
            assert value.startswith(("data:image/svg+xml;base64,", "#")), value
        assert not key.startswith("on")
    markup = re.sub(r"data:[^\"]*", "", text)
    assert "//" not in markup.replace("<!--", "") and "url(" not in markup and "@import" not in markup
    for picture in pictures(page):
        for element in ElementTree.fromstring(picture).iter():
            for key, value in element.attrib.items():
                assert not key.endswith("href") or value.startswith(("#", "data:image/png;base64,"))


def test_the_command(run, capsys):
    pytest.importorskip("onnxruntime")
    cli.main(["report", str(run)])
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    text = (run / "report.html").read_text()
    assert_offline(text)
    page = Page(text)
    assert len(pictures(page)) == 5  # curves, hybrids, confusion, rates, energy
    for title in ("Configuration", "Curves", "Confusion", "Firing rates", "Energy", "Deployment"):
        assert title in page.text
    top1 = read_table(run / "summary.csv")[0]["eval_top1"]
    assert f"top-1 {top1:.2f} %" in page.text
    assert "made for this pageonnxpassed" in page.text
    assert "distilled from cifar_resnet20" in page.text


def test_confusion(run, digits):
    found = inspect_run(run)
    assert found.confusion.sum() == 40
    assert found.confusion.sum(1).tolist() == [4] * 10
    assert found.classes == [str(label) for label in range(10)]
    top1 = read_table(run / "summary.csv")[0]["eval_top1"]
    assert 100 * int(found.confusion.diagonal().sum()) / 40 == pytest.approx(top1)
    model, _ = hub.load(run / "model_best.pth.tar")
    x = torch.randn(6, 3, 8, 8)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    with torch.no_grad():
        answers = model.eval()(x).argmax(1)
    counts = confusion_matrix(model, [(x[:4], labels[:4]), (x[4:], labels[4:])])
    for label, answer in zip(labels.tolist(), answers.tolist(), strict=True):
        counts[label, answer] -= 1
    assert not counts.any()


def test_without_data_it_says_so(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    summary = json.loads((copy / "summary.json").read_text())
    summary["options"]["data_dir"] = "/nowhere"
    (copy / "summary.json").write_text(json.dumps(summary))
    text = render(inspect_run(copy))
    assert_offline(text)
    assert "there is no such folder or file" in text
    assert "--data-dir" in text
    assert len(pictures(Page(text))) == 2
    for checkpoint in copy.glob("*.pth.tar"):
        checkpoint.unlink()
    assert "The folder has no checkpoint" in render(inspect_run(copy))


def test_a_failed_export_is_told(run):
    def fails(model, images):
        raise InputError("it is not what the model computes")

    found = inspect_run(run, images=8, deploy=fails)
    assert found.profile.images == 8
    parity = dict(images=8, neuron_steps=100, differing=3, ties=1, logits=0.0, passed=False, same_top1=8)
    found.deploy.append({"target": "nir", "parity": parity})
    page = Page(render(found))
    assert "it is not what the model computes." in page.text
    assert "nirfailed" in page.text
    assert "0 of 1" in page.text


def test_the_averaged_weights_of_a_run_are_looked_at(run, tmp_path):
    """By which its best checkpoint was chosen."""
    copy = shutil.copytree(run, tmp_path / "run")
    state = torch.load(run / "model_best.pth.tar", weights_only=True)
    bias = torch.full_like(state["state_dict"]["fc.bias"], -1e4)
    bias[3] = 1e4
    torch.save(state | {"state_dict_ema": state["state_dict"] | {"fc.bias": bias}}, copy / "model_best.pth.tar")
    summary = json.loads((run / "summary.json").read_text())
    summary["options"]["model_ema"] = summary["best"]["averaged"] = True
    (copy / "summary.json").write_text(json.dumps(summary))
    found = inspect_run(copy)
    assert found.confusion[:, 3].sum() == 40
    assert found.checkpoint == "model_best.pth.tar, its averaged weights"
    assert "epoch 0, weights averaged" in Page(render(found)).text


def test_a_loihi_export_in_the_folder_is_told(run, tmp_path):
    """Integers are another network by their nature: there is no parity to pass or fail."""
    pytest.importorskip("h5py")
    copy = shutil.copytree(run, tmp_path / "run")
    model = timm.create_model("snn_resnet20_t1", depths=(1,), channels=(8,))
    pixels = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    export_lava(model, copy / "net.h5", pixels, accuracy=lambda forward: 12.5)
    text = render(inspect_run(copy, images=8))
    assert_offline(text)
    page = Page(text)
    assert "engine      lava: net.h5" in page.text and "least agreement with the model" in page.text
    assert "accuracy    Loihi integers: 12.50 %" in page.text
    assert "exports fire" not in page.text


def test_a_file_of_8_bits_is_told_and_not_counted(run, tmp_path):
    """Its report has the comparison of the network before: the file itself fires other spikes."""
    pytest.importorskip("onnxruntime")
    from snnzoo.export.onnx import export_onnx

    copy = shutil.copytree(run, tmp_path / "run")
    model, images = timm.create_model("snn_resnet20_t1", depths=(1,), channels=(8,)), torch.randn(2, 3, 8, 8)
    export_onnx(model, copy / "float.onnx", (3, 8, 8), images=images)
    export_onnx(model, copy / "small.onnx", (3, 8, 8), images=images, calibration=[images], accuracy=lambda f: 12.5)
    path = copy / "float.onnx.json"
    report = json.loads(path.read_text())
    assert report["parity"].pop("passed")  # as files of before were
    path.write_text(json.dumps(report))
    page = Page(render(inspect_run(copy, images=8)))
    assert "1 of 1exports fire the model's spikes" in page.text
    assert "float.onnxonnxpassed" in page.text and "small.onnxonnx" not in page.text
    assert "engine      onnx: small.onnx" in page.text and "of 3,072 spikes are not those of before" in page.text
    assert "accuracy    onnxruntime, int8: 12.50 %" in page.text


EVIL = '<script>alert("$x$")</script>&"\'$\\frac{$'


def test_nothing_from_files_gets_into_the_markup(run):
    found = inspect_run(run, images=8)
    evil = Inspection(
        name=EVIL,
        options={"model": EVIL, "teacher": EVIL, "epochs": EVIL, EVIL: EVIL, "list": [EVIL], "dict": {EVIL: EVIL}},
        summary={"data": {EVIL: {EVIL: EVIL}}, "versions": {EVIL: EVIL}, "git": {EVIL: EVIL}, "started": EVIL,
                 "best": {"metric": EVIL, "value": 1.0, "epoch": EVIL}},
        rows=[{"epoch": 0, "train_loss": 1.0, f"eval_top1_{EVIL}": 1.0, f"eval_similarity_{EVIL}": 1.0}],
        checkpoint=EVIL,
        classes=[EVIL] * 10,
        confusion=found.confusion,
        profile=found.profile,
        deploy=[{"target": EVIL, "parity": dict(images=EVIL, neuron_steps=1, differing=1, ties=1, logits=0.0,
                                                passed=True, same_top1=EVIL)},
                {"target": EVIL, "path": EVIL, "parity": None, "summary": [EVIL], "accuracy": {EVIL: 1.0}}],
        missing={"deploy": EVIL},
    )  # fmt: skip
    text = render(evil)
    assert_offline(text)
    assert text.count("<script") == 0
    assert Page(text).text.count(EVIL) > 10  # it is there, as text


def test_bad_input(run, tmp_path, capsys, monkeypatch):
    for command, match in (
        (f"report {tmp_path}/none", "no run at .*: a run's folder has a summary.csv"),
        (f"report {run} --data-dir {tmp_path}/nowhere", "there is no such folder or file"),
        (
            f"report {run} --images 4 -o /dev/null/r.html",
            "'/dev/null/r.html' cannot be written .File exists",
        ),
        (f"report {run} --images 0", "--images must be at least 1, got 0"),
        (f"report {run} -o report.pdf", "--output must end in .html, got 'report.pdf'"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(command.split())
        assert ended.value.code == 2
        assert re.search(match, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit):
        cli.main(["report", str(run)])
    assert "pip install 'snnzoo[plot]'" in capsys.readouterr().err
