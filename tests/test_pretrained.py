"""Pretrained weights: where they are found, and what is refused. Against a Hub on loopback, see hub_server."""

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from hub_checkpoints import FAMILIES, SMALL, assert_no_pickle, logits, made, put
from hub_server import TOKEN
from huggingface_hub import constants
from safetensors.torch import load, load_file, save, save_file

from snnzoo import InputError
from snnzoo import hub as snnhub
from snnzoo.distill.teacher import create_teacher
from snnzoo.models._pretrained import HUB_CONFIGS, SHIPPED
from snnzoo.weights import create_model


def test_pretrained_finds_the_organisations_repository(hub, monkeypatch):
    model = made("snn_resnet34_t4", num_classes=11, decay=0.4)
    put(hub, "snnzoo/snn_resnet34_t4.in1k", model)
    put(hub, "lab/snn_resnet34_t4.in1k", made("snn_resnet34_t4", seed=1))
    loaded = timm.create_model("snn_resnet34_t4", pretrained=True).eval()
    assert torch.equal(logits(loaded), logits(model)) and loaded.num_classes == 11
    assert snnhub.model_args(loaded) == snnhub.model_args(model)
    monkeypatch.setenv("SNNZOO_HUB_ORG", "lab")
    other = timm.create_model("snn_resnet34_t4.in1k", pretrained=True).eval()
    assert not torch.equal(other.conv1.weight, model.conv1.weight)
    # the caller's arguments win, and so does an overlay
    assert timm.create_model("snn_resnet34_t4", pretrained=True, num_steps=1, num_classes=2).num_classes == 2
    overlay = dict(hf_hub_id="snnzoo/snn_resnet34_t4.in1k", num_classes=11)
    named = timm.create_model("snn_resnet34_t4", pretrained=True, pretrained_cfg_overlay=overlay, **SMALL)
    assert torch.equal(named.conv1.weight, model.conv1.weight)
    assert_no_pickle(hub)


def test_an_overlay_of_a_file_wins_over_everything(hub, tmp_path):
    put(hub, "snnzoo/snn_resnet20_t4.c10", made())
    put(hub, "me/net", made())
    mine = made(seed=5)
    save_file(mine.state_dict(), tmp_path / "mine.safetensors")
    overlay = dict(file=str(tmp_path / "mine.safetensors"), num_classes=7)
    for name in ("snn_resnet20_t4", "hf-hub:me/net"):
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **FAMILIES["snn_resnet20_t4"])
        assert torch.equal(model.conv1.weight, mine.conv1.weight)


def test_ann_in1k_starts_from_timms_weights(hub, caplog):
    ann = timm.create_model("resnet34")
    config = dict(architecture="resnet34", num_classes=1000, num_features=512, pretrained_cfg=dict(ann.pretrained_cfg))
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": save(ann.state_dict())}
    hub.add("timm/resnet34.a1_in1k", files)
    model = timm.create_model("snn_resnet34_t1.ann_in1k", pretrained=True)
    for key, value in ann.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    assert "snn_resnet34_t1.ann_in1k is an initialisation: the weights of the ANN timm/resnet34.a1_in1k" in caplog.text
    assert timm.get_pretrained_cfg("snn_resnet34_t1").tag == "in1k"
    card = (HUB_CONFIGS / "snn_resnet34_t4.ann_in1k" / "README.md").read_text()
    assert "**An initialisation, not a trained network.**" in card and "top-1" not in card


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_shipped_weights_need_no_network(name):
    model = timm.create_model(name, pretrained=True).eval()
    weights = load_file(HUB_CONFIGS / name / "model.safetensors")
    assert torch.equal(model.conv1.weight, weights["conv1.weight"])
    assert logits(model).std() > 0


def test_weights_in_the_package_come_before_the_hub(hub, tmp_path):
    """A folder in hub_configs is all it takes: a process whose package has one needs no network."""
    folder = snnhub.pack(tmp_path / "hub_configs" / "snn_resnet20_t4.c10", made(), license="apache-2.0")
    put(hub, "snnzoo/snn_resnet20_t4.c10", made(seed=9))
    script = f"""
import sys, types
package = types.ModuleType("snnzoo.hub_configs")
package.__path__ = [{str(folder.parent)!r}]
sys.modules["snnzoo.hub_configs"] = package
import timm, torch, snnzoo
assert timm.is_model_pretrained("snn_resnet20_t4") and not timm.is_model_pretrained("snn_resnet20_t2")
model = timm.create_model("snn_resnet20_t4", pretrained=True)
from safetensors.torch import load_file
assert torch.equal(model.conv1.weight, load_file({str(folder / "model.safetensors")!r})["conv1.weight"])
assert model.num_classes == 7
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert hub.traffic == []


# --- what can go wrong ------------------------------------------------------------------------------------------------


def refused(name, **kwargs):
    """The message of the one error that a model's name leads to, whether timm is asked or we are."""
    with pytest.raises(InputError) as ours:
        create_model(name, pretrained=True, **kwargs)
    return str(ours.value)


def test_a_private_repository(hub, monkeypatch, capfd):
    put(hub, "me/secret", made(), private=True)
    message = refused("hf-hub:me/secret")
    assert "no repository 'me/secret' that you may use" in message and "HF_TOKEN" in message
    with pytest.raises(InputError, match="it is private and the token"):
        snnhub.pull("me/secret")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert create_model("hf-hub:me/secret", pretrained=True).num_classes == 7


def test_a_gated_repository(hub):
    put(hub, "me/gated", made())
    hub.repos["me/gated"].gated = True
    assert "'me/gated' is gated: ask for access on its page" in refused("hf-hub:me/gated")


def test_what_is_missing(hub):
    assert "no repository 'me/nothing'" in refused("hf-hub:me/nothing")
    assert "No pretrained weights exist for snn_resnet18_t4.c10" in refused("snn_resnet18_t4")
    put(hub, "me/net", made())
    assert "'me/net@v2' has no such revision" in refused("hf-hub:me/net@v2")
    del hub.repos["me/net"].commits[hub.repos["me/net"].refs["main"]]["model.safetensors"]
    assert "'me/net' has no model.safetensors" in refused("hf-hub:me/net")
    hub.add("me/empty", {"a.txt": b"x"})
    assert "'me/empty' has no config.json and no model.safetensors" in refused("hf-hub:me/empty")
    assert "must be OWNER/NAME" in refused("hf-hub:not a name")
    hub.add("me/odd", {"config.json": b"[1]"})
    with pytest.raises(InputError, match="not in timm's format"):
        snnhub.pull("me/odd")


def test_a_pickle_is_refused(hub):
    put(hub, "me/net", made())
    files = hub.repos["me/net"].commits[hub.repos["me/net"].refs["main"]]
    del files["model.safetensors"]
    hub.add("me/net", {"pytorch_model.bin": pickle.dumps({"conv1.weight": 1})})
    teacher = dict(architecture="resnet18", num_classes=10, pretrained_cfg=dict(num_classes=10))
    hub.add("me/ann", {"config.json": json.dumps(teacher).encode(), "pytorch_model.bin": pickle.dumps({})})
    for name in ("hf-hub:me/net", "hf-hub:me/ann", "hf_hub:me/ann", "HF-Hub:me/ann"):
        assert "it offers pytorch_model.bin, a pickle, which could run code and is refused" in refused(name)
    with pytest.raises(InputError, match="a pickle"):
        timm.create_model("hf-hub:me/net", pretrained=True)
    hub.add("timm/resnet18.a1_in1k", {"config.json": json.dumps(teacher).encode(), "pytorch_model.bin": b"x"})
    with pytest.raises(InputError, match="a pickle"):
        create_teacher("resnet18.a1_in1k", 1000)
    with pytest.raises(InputError, match=r"only \.safetensors files"):
        overlay = dict(hf_hub_id="me/net", hf_hub_filename="pytorch_model.bin")
        timm.create_model("snn_resnet20_t4", pretrained=True, pretrained_cfg_overlay=overlay)
    assert_no_pickle(hub)
    local = Path(constants.HF_HUB_CACHE) / "local"
    local.mkdir()
    for name in ("config.json", "pytorch_model.bin"):
        (local / name).write_bytes({**files, **hub.repos["me/net"].commits[hub.repos["me/net"].refs["main"]]}[name])
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        timm.create_model(f"local-dir:{local}", pretrained=True)


def test_another_architecture(hub):
    put(hub, "snnzoo/snn_resnet34_t4.in1k", made("snn_resnet20_t4"))
    assert "are of a 'snn_resnet20_t4', not of a 'snn_resnet34_t4'" in refused("snn_resnet34_t4")
    save_args = dict(pretrained_cfg_overlay=dict(hf_hub_id="snnzoo/snn_resnet34_t4.in1k", num_classes=7), num_classes=7)
    assert "not those of a snn_vgg11_t2" in refused("snn_vgg11_t2", **save_args)
    config = json.dumps(dict(architecture="snn_alien", pretrained_cfg={})).encode()
    hub.add("me/alien", {"config.json": config, "model.safetensors": b""})
    assert "an architecture that is not registered here" in refused("hf-hub:me/alien")


def test_damaged_weights(hub):
    put(hub, "me/net", made())
    hub.spoil = lambda data: data[:-8] + b"\x00" * 8  # of the right size
    message = refused("hf-hub:me/net")
    assert "sha256" in message and "damaged; delete it and fetch it again" in message
    assert_no_pickle(hub)
    hub.spoil = lambda data: data
    Path(re.search(r"'(/.*)' has the sha256", message)[1]).unlink()  # more than a link to it
    assert create_model("hf-hub:me/net", pretrained=True).num_classes == 7


def test_damaged_weights_of_another_family(hub):
    """As a teacher's: timm alone would load them."""
    put(hub, "me/ann", timm.create_model("resnet18", num_classes=3))
    assert create_teacher("hf-hub:me/ann", 3).num_classes == 3
    put(hub, "me/ann2", timm.create_model("resnet18", num_classes=3))
    hub.spoil = lambda data: data[:-8] + b"\x00" * 8
    with pytest.raises(InputError, match="damaged; delete it"):
        create_teacher("hf-hub:me/ann2", 3)


def test_weights_that_are_not_all_there(hub):
    """timm does not mind what is missing where the number of classes changes."""
    put(hub, "me/net", made())
    files = hub.repos["me/net"].commits[hub.repos["me/net"].refs["main"]]
    weights = {k: v for k, v in load(files["model.safetensors"]).items() if k != "layer2.0.conv1.weight"}
    config = {k: v for k, v in json.loads(files["config.json"]).items() if k != "sha256"}
    hub.add("me/net", {"model.safetensors": save(weights), "config.json": json.dumps(config).encode()})
    for classes in (7, 3):
        message = refused("hf-hub:me/net", num_classes=classes)
        assert "not those of a snn_resnet20_t4: 1 tensors are missing, 'layer2.0.conv1.weight' for one" in message


CONFIGS = {
    "of-transformers": (b'{"model_type": "bert"}', "'architecture'"),
    "broken": (b"{", "not in timm's format"),
    "list": (b"[1]", "not in timm's format"),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("pretrained", [True, False])
def test_a_config_that_is_not_timms(name, pretrained, hub, tmp_path):
    content, message = CONFIGS[name]
    hub.add(f"me/{name}", {"config.json": content})
    (tmp_path / "config.json").write_bytes(content)
    for source in (f"hf-hub:me/{name}", f"local-dir:{tmp_path}"):
        with pytest.raises(InputError, match=f"config.json.*not in timm's format.*{message}|{message}"):
            create_model(source, pretrained=pretrained)


def test_another_familys_weights_that_do_not_fit(hub):
    config = json.dumps(dict(architecture="resnet18", num_classes=3, pretrained_cfg=dict(num_classes=3))).encode()
    weights = save(timm.create_model("resnet34", num_classes=3).state_dict())
    hub.add("me/other", {"config.json": config, "model.safetensors": weights})
    assert "not those of a hf-hub:me/other" in refused("hf-hub:me/other")
    hub.add("me/torn", {"config.json": config, "model.safetensors": weights[:-10]})
    assert "the file may be truncated" in refused("hf-hub:me/torn")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hub:me/net", "no model named 'hub:me/net'"),
        ("hf-hub:", "no model named 'hf-hub:'"),
        ("me/net", "hf-hub:me/net"),
        (r"C:\models\net", "no model named"),
        ("hf-hub:me/a@b@c", "must be OWNER/NAME or OWNER/NAME@REVISION"),
        ("snn_resnet20_t4.nope", "with tags there are snn_resnet20_t4.c10, snn_resnet20_t4.c100"),
        ("local-dir:nowhere", "no config.json in 'nowhere'"),
    ],
)
def test_names_that_are_none(name, message):
    assert message in refused(name)


def test_an_overlay_of_a_file_that_is_not_there(tmp_path):
    overlay = dict(file=str(tmp_path / "none.safetensors"))
    with pytest.raises(InputError, match=r"there is no file '.*none.safetensors'"):
        timm.create_model("snn_resnet20_t4", pretrained=True, pretrained_cfg_overlay=overlay)


def test_a_truncated_download(hub):
    put(hub, "me/net", made())
    hub.spoil = lambda data: data[:-100]
    assert "Consistency check failed" in refused("hf-hub:me/net")
    hub.spoil = lambda data: data
    assert create_model("hf-hub:me/net", pretrained=True).num_classes == 7  # nothing of it was kept


def test_a_truncated_file_without_sha256(hub):
    """As of repositories that others made: a file that was uploaded incomplete."""
    put(hub, "me/net", made())
    files = hub.repos["me/net"].commits[hub.repos["me/net"].refs["main"]]
    config = json.loads(files["config.json"])
    del config["sha256"]
    hub.add(
        "me/net", {"config.json": json.dumps(config).encode(), "model.safetensors": files["model.safetensors"][:-100]}
    )
    assert "the file may be truncated" in refused("hf-hub:me/net")


def test_the_server_is_down(hub, impatient):
    put(hub, "me/net", made())
    expected = logits(timm.create_model("hf-hub:me/net", pretrained=True).eval())
    put(hub, "snnzoo/snn_resnet34_t4.in1k", made("snn_resnet34_t4"))
    timm.create_model("snn_resnet34_t4", pretrained=True)
    hub.stop()
    warm = timm.create_model("hf-hub:me/net", pretrained=True).eval()
    assert torch.equal(logits(warm), expected)
    timm.create_model("snn_resnet34_t4", pretrained=True)
    for name in ("hf-hub:me/cold", "snn_resnet18_t4"):
        assert "the Hub cannot be reached, and the local cache does not have" in refused(name)
    with pytest.raises(InputError, match="the Hub's 'me/net': Connect"):
        snnhub.push(made(), "me/net", license="mit", token=TOKEN)
