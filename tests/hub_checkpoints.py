"""Checkpoints for the tests of the Hub: small models, what a run leaves of them, and a watch for pickles."""

import json
import zipfile
from io import BytesIO
from pathlib import Path

import timm
import torch
from huggingface_hub import constants

from snnzoo import hub as snnhub
from snnzoo.neurons import Surrogate

SMALL = dict(depths=(1, 1), channels=(8, 16))
# Of every family a small model with arguments that are not the usual ones.
FAMILIES = {
    "snn_resnet20_t4": dict(SMALL, decay=0.5, threshold=0.7, reset="hard", shortcut="pad", num_classes=7),
    "snn_resnet19_t2": dict(
        SMALL, head_width=12, surrogate=Surrogate("atan", 3.0), readout_decay=0.6, in_chans=2, global_pool="max"
    ),
    "snn_preact_resnet18_t2": dict(SMALL, spike_head=True, num_steps=3, stem="cifar"),
    "snn_sew_resnet50_t1": dict(depths=(1, 1), channels=(16, 32), connect="iand", detach_reset=False, num_classes=5),
    "snn_vgg11_t2": dict(grad_method="bptt", surrogate="triangle", num_classes=3),
    "cifar_resnet20": dict(SMALL, num_classes=4),
}


def made(name="snn_resnet20_t4", seed=0, **kwargs):
    """A small model whose neurons fire, and whose statistics are not the initial ones."""
    torch.manual_seed(seed)
    model = timm.create_model(name, **{**FAMILIES.get(name, SMALL), **kwargs}).train()
    with torch.no_grad():
        for _ in range(3):
            model(2 * torch.randn(4, model.in_chans, 32, 32))
    return model.eval()


@torch.no_grad()
def logits(model, size=32):
    return model(torch.rand(2, model.in_chans, size, size, generator=torch.Generator().manual_seed(3)))


def put(hub, repo_id, model, **kwargs):
    """What ``model`` is packed into, straight into the server's repository."""
    folder = Path(constants.HF_HUB_CACHE) / "packed" / repo_id.split("/")[1]
    snnhub.pack(folder, model, license="apache-2.0")
    return hub.add(repo_id, {path.name: path.read_bytes() for path in folder.iterdir()}, **kwargs)


def is_pickle(data):
    """Python's pickles, and the zip files that torch puts them into."""
    if zipfile.is_zipfile(BytesIO(data)):
        return True
    return data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


def assert_no_pickle(hub, allowed=()):
    assert hub.traffic
    for method, path, sent, got in hub.traffic:
        assert not is_pickle(sent) and not is_pickle(got), (method, path)
        name = path.split("?")[0]
        assert name in allowed or not name.endswith((".bin", ".pt", ".pth", ".tar", ".pkl", ".ckpt")), (method, path)
        for line in sent.splitlines() if "/commit/" in path else ():
            value = json.loads(line)["value"]
            assert not value.get("path", "").endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt")), (method, path)


def checkpoint_of_a_run(path, model, /, **options):
    """What train_distill.py leaves, as far as it is read."""
    options = {
        "model": "snn_resnet20_t4", "model_kwargs": {**SMALL, "decay": 0.5, "threshold": 0.7, "shortcut": "pad"},
        "reset": "hard", "num_classes": 7, "teacher": "cifar_resnet20", "data_dir": "/home/somebody/data",
        "teacher_checkpoint": "/home/somebody/teacher.safetensors", "epochs": 12, "lr": 0.05, "seed": 42,
        "alpha": 0.0, "amp": False,
        "mean": [0.1, 0.2, 0.3], "std": None, "output": "/home/somebody/output", "workers": 3, **options,
    }  # fmt: skip
    torch.save({"epoch": 4, "arch": "snn_resnet20_t4", "state_dict": model.state_dict(), "options": options}, path)
    return path


def measured(path, model, top1=55.5, name="snn_resnet20_t4", **row):
    """What validate.py --results-file leaves."""
    row = {
        "model": name, "checkpoint": "/home/somebody/x.pth.tar", "num_steps": 4, "images": 10000,
        "input_size": "3x32x32", "parameters": sum(p.numel() for p in model.parameters()),
        "digest": snnhub.digest(model), "top1": top1, "top5": 97.25, "loss": 1.5, "images_per_s": 100.0,
        "rate_stem": 0.125, "rate_layer1": 0.0625, **row,
    }  # fmt: skip
    path.write_text(json.dumps({"results": [row], "versions": {"torch": "2.15.0", "gpu": None}}))
    return path
