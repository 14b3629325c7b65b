"""Push, pull and pretrained weights: the real client of the Hub against a Hub on loopback, see hub_server."""

import json
import pickle
import re
import subprocess
import sys
import threading
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
import timm
import torch
import yaml
from huggingface_hub import constants, model_info
from safetensors.torch import load, load_file, save, save_file

from snnzoo import InputError, cli
from snnzoo import hub as snnhub
from snnzoo.distill import AnnGuidedDistillationTask
from snnzoo.distill.teacher import create_teacher
from snnzoo.models._pretrained import HUB_CONFIGS, SHIPPED
from snnzoo.neurons import Surrogate
from snnzoo.weights import create_model

TOKEN = "hf_secret_of_the_owner"
SMALL = dict(depths=(1, 1), channels=(8, 16))
# Of every family a small model with arguments that are not the usual ones.
FAMILIES = {
    "snn_resnet20_t4": dict(SMALL, decay=0.5, threshold=0.7, reset="hard", shortcut="pad", num_classes=7),
    "snn_resnet19_t2": dict(SMALL, head_width=12, surrogate=Surrogate("atan", 3.0), in_chans=2, global_pool="max"),
    "snn_preact_resnet18_t2": dict(SMALL, spike_head=True, num_steps=3, stem="cifar"),
    "snn_sew_resnet50_t1": dict(depths=(1, 1), channels=(16, 32), connect="iand", detach_reset=False, num_classes=5),
    "snn_vgg11_t2": dict(grad_method="bptt", surrogate="triangle", num_classes=3),
    "cifar_resnet20": dict(SMALL, num_classes=4),
}


@pytest.fixture
def owner(monkeypatch):
    """Whoever runs the test has the token where it usually is."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def impatient(monkeypatch):
    """The client waits half a minute in all for a server that is down."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


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


def test_the_watch_for_pickles_sees_them(hub, owner):
    """Else the tests that grep the traffic could not fail: timm's own push writes both."""
    timm.models.push_to_hf_hub(made(), "me/both")
    sent = [body for method, _, body, _ in hub.traffic if method == "PUT"]
    assert [is_pickle(body) for body in sent].count(True) == 1 and is_pickle(pickle.dumps({}))
    with pytest.raises(AssertionError):
        assert_no_pickle(hub)


# --- round trips ----------------------------------------------------------------------------------------------------

READ = """
import json, sys, warnings
warnings.simplefilter("error")
import timm, torch, snnzoo
from safetensors.torch import load_file
from snnzoo.hub import model_args
expected = load_file(sys.argv[1])
for name, args in json.loads(sys.argv[2]).items():
    model = timm.create_model(f"hf-hub:me/{name}.c10", pretrained=True).eval()
    assert model_args(model) == args, (model_args(model), args)
    with torch.no_grad():
        assert torch.equal(model(expected[name + ".images"]), expected[name]), name
print("the same")
"""


@pytest.mark.slow
def test_every_family_comes_back_in_a_fresh_process(hub, owner, tmp_path):
    tensors, arguments = {}, {}
    for name in FAMILIES:
        model = made(name)
        snnhub.push(model, f"me/{name}.c10", license="apache-2.0")
        images = torch.rand(2, model.in_chans, 32, 32)
        with torch.no_grad():
            tensors |= {name: model(images).clone(), f"{name}.images": images}
        assert tensors[name].std() > 0, name
        arguments[name] = snnhub.model_args(model)
        asked = {k: v for k, v in FAMILIES[name].items() if not isinstance(v, Surrogate)}
        assert json.loads(json.dumps(asked)).items() <= arguments[name].items()
    save_file(tensors, tmp_path / "expected.safetensors")
    command = [sys.executable, "-c", READ, str(tmp_path / "expected.safetensors"), json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == "the same\n", done.stderr
    assert_no_pickle(hub)


def test_what_the_config_says(hub, owner):
    model = made(surrogate=Surrogate("atan", 3.0))
    model.num_steps, model.grad_method = 6, "bptt"  # changed after it was made
    model.reset_classifier(9)
    snnhub.push(model, "me/snn_resnet20_t4.c10", license="mit")
    sha = model_info("me/snn_resnet20_t4.c10").sha
    config = json.loads(hub.repos["me/snn_resnet20_t4.c10"].commits[sha]["config.json"])
    args = config["model_args"]
    assert (args["decay"], args["threshold"], args["reset"], args["shortcut"]) == (0.5, 0.7, "hard", "pad")
    assert (args["num_steps"], args["grad_method"], args["stem"]) == (6, "bptt", "cifar")
    assert args["surrogate"] == {"name": "atan", "alpha": 3.0}
    assert (config["num_classes"], config["architecture"]) == (9, "snn_resnet20_t4")
    assert (config["pretrained_cfg"]["license"], config["pretrained_cfg"]["tag"]) == ("mit", "c10")
    loaded = timm.create_model("hf-hub:me/snn_resnet20_t4.c10", pretrained=True)
    assert (loaded.num_steps, loaded.grad_method, loaded.num_classes) == (6, "bptt", 9)


def test_other_classes_and_channels(hub, owner):
    """timm#1016, timm#1755: what the card says of the images survives a change of the head and the stem."""
    model = made(num_classes=7)
    model.pretrained_cfg |= dict(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    snnhub.push(model, "me/net", license="mit")
    other = timm.create_model("hf-hub:me/net", pretrained=True, num_classes=3, in_chans=1, num_steps=2).eval()
    assert logits(other).shape == (2, 3) and other.num_steps == 2
    torch.testing.assert_close(other.conv1.weight, model.conv1.weight.sum(1, keepdim=True))
    assert torch.equal(other.layer2[0].conv2.weight, model.layer2[0].conv2.weight)
    assert other.pretrained_cfg["mean"] == [0.1, 0.2, 0.3] and other.pretrained_cfg["std"] == [0.4, 0.5, 0.6]
    data = timm.data.resolve_model_data_config(timm.create_model("hf-hub:me/net", pretrained=True, num_classes=3))
    assert (data["mean"], data["std"]) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)) or data["mean"] == [0.1, 0.2, 0.3]
    features = timm.create_model("hf-hub:me/net", pretrained=True, features_only=True)
    assert torch.equal(features.model.conv1.weight, model.conv1.weight)


# --- pretrained=True ------------------------------------------------------------------------------------------------


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


# --- push and pull ----------------------------------------------------------------------------------------------------


def test_push_is_one_commit_of_safetensors(hub, owner, tmp_path, capfd):
    model = made()
    pushed = snnhub.push(model, "me/snn_resnet20_t4.c10", license="apache-2.0", private=True, message="First")
    repo = hub.repos["me/snn_resnet20_t4.c10"]
    assert repo.private and len(repo.commits) == 2  # the Hub's own, and ours
    assert pushed.url.endswith(repo.refs["main"])
    assert set(repo.commits[repo.refs["main"]]) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    again = snnhub.push(model, "me/snn_resnet20_t4.c10", license="apache-2.0", revision="v2")
    assert again.url and set(repo.refs) == {"main", "v2"}
    folder = snnhub.pull("me/snn_resnet20_t4.c10", "v2", tmp_path / "net")
    assert folder == tmp_path / "net" and {path.name for path in folder.iterdir()} == set(pushed.files)
    local = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(logits(local), logits(model))
    out = capfd.readouterr()
    assert TOKEN not in out.out + out.err
    assert_no_pickle(hub)


def test_a_dry_run_sends_nothing(hub, owner):
    pushed = snnhub.push(made(), "me/net", license="mit", dry_run=True)
    assert pushed.url is None and set(pushed.files) == {"README.md", "config.json", "model.safetensors"}
    assert hub.traffic == []


def test_a_push_takes_the_old_weights_results_away(hub, owner, tmp_path):
    model = made()
    (tmp_path / "recipe.yaml").write_text("epochs: 3\n")
    results = [measured(tmp_path / "r.json", model)]
    snnhub.push(model, "me/net", license="mit", recipe=tmp_path / "recipe.yaml", results=results)
    hub.add("me/net", {"notes.txt": b"kept"})
    old = snnhub.pull("me/net", folder=tmp_path / "pulled")
    assert {"results.json", "recipe.yaml"} <= {path.name for path in old.iterdir()}
    snnhub.push(made(seed=5), "me/net", license="mit")
    repo = hub.repos["me/net"]
    assert set(repo.commits[repo.refs["main"]]) == {
        ".gitattributes", "notes.txt", "README.md", "config.json", "model.safetensors"
    }  # fmt: skip
    with pytest.raises(InputError, match=r"has recipe.yaml, results.json, which me/net has not"):
        snnhub.pull("me/net", folder=tmp_path / "pulled")
    assert snnhub.pull("me/net", folder=tmp_path / "new").joinpath("model.safetensors").is_file()


def test_a_token_with_a_newline(hub):
    """As one that is read from a file."""
    assert snnhub.push(made(), "me/net", license="mit", token=f" {TOKEN}\n").url
    with pytest.raises(InputError) as error:
        snnhub.push(made(), "me/net", license="mit", token=f"{TOKEN}\nx")
    assert TOKEN not in str(error.value)


def test_push_without_a_token(hub, capfd):
    with pytest.raises(InputError, match="'me/net'.*401"):
        snnhub.push(made(), "me/net", license="mit")
    with pytest.raises(InputError) as error:
        snnhub.push(made(), "me/net", license="mit", token="hf_wrong_token")
    assert "hf_wrong_token" not in str(error.value) + "".join(capfd.readouterr())
    assert "me/net" not in hub.repos


def test_push_refuses_what_does_not_come_back(hub, owner, monkeypatch):
    with pytest.raises(InputError, match="need a licence"):
        snnhub.push(made(), "me/net")
    for repo in ("net", "me/", "me/net@v2", "me/..", "me/a b", "me/a/b"):
        with pytest.raises(InputError, match=f"{repo!r} is not a Hub.*must be OWNER/NAME"):
            snnhub.push(made(), repo, license="mit", dry_run=True)
    with pytest.raises(InputError, match=r"float32, these are torch.float16: give model.float\(\)"):
        snnhub.push(made().half(), "me/net", license="mit")
    for other in (torch.nn.Linear(2, 2), timm.create_model("snn_resnet20_t4", features_only=True)):
        with pytest.raises(InputError, match="is not a timm model with a classifier"):
            snnhub.push(other, "me/net", license="mit")
    model = made()
    args = snnhub.model_args(model)
    monkeypatch.setattr(snnhub, "model_args", lambda m: {**args, "decay": 0.9} if m is model else args)
    with pytest.raises(InputError, match="does not come back the same"):
        snnhub.push(model, "me/net", license="mit")
    assert hub.traffic == []
    broken = made()
    broken.fc.bias.data[0] = float("nan")
    monkeypatch.undo()
    with pytest.raises(InputError, match="not finite"):
        snnhub.push(broken, "me/net", license="mit", token=TOKEN)


def test_a_push_leaves_the_model_as_it_was(hub):
    """Frozen norms stay frozen; what torch.compile wraps is pushed as what it wraps."""
    model = made().train()
    model.bn1.eval()
    pushed = snnhub.push(torch.compile(model), "me/net", license="mit", dry_run=True)
    assert pushed.files and model.training and model.layer1.training and not model.bn1.training


def test_push_of_folders_that_others_made(hub, owner, tmp_path, caplog):
    """timm's own form has no sha256; a card that somebody has written stays."""
    model = made()
    timm.models.save_for_hf(model, tmp_path / "ts", safe_serialization=True, model_args=snnhub.model_args(model))
    config = json.loads((tmp_path / "ts/config.json").read_text())
    config["pretrained_cfg"].pop("license", None)
    (tmp_path / "ts/config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config.json': the weights need a licence"):
        snnhub.push(tmp_path / "ts", "me/ts")
    snnhub.pack(tmp_path / "ts", license="mit", results=[measured(tmp_path / "r.json", model)])
    with pytest.raises(InputError, match="license: a folder is pushed as it is"):
        snnhub.push(tmp_path / "ts", "me/ts", license="mit")
    snnhub.push(tmp_path / "ts", "me/ts")
    config = json.loads((tmp_path / "ts/config.json").read_text())
    assert config["pretrained_cfg"]["license"] == "mit" and len(config["sha256"]) == 64
    card = (snnhub.pull("me/ts") / "README.md").read_text()
    assert 'create_model("hf-hub:me/ts", pretrained=True)' in card and "no weights yet" not in card
    (tmp_path / "ts/README.md").write_text(card + "\n## Limitations\n")
    snnhub.push(tmp_path / "ts", "you/ts")
    assert (snnhub.pull("you/ts") / "README.md").read_text().endswith("## Limitations\n")
    assert "is not the card that `snnzoo pack` makes" in caplog.text


def test_pull_says_what_it_does_not_get(hub, owner, impatient, caplog):
    snnhub.push(made(), "me/net", license="mit")
    snnhub.push(made(), "me/known", license="mit")
    create_model("hf-hub:me/net", pretrained=True)  # keeps no card
    snnhub.pull("me/known")
    hub.stop()
    assert not (snnhub.pull("me/net") / "README.md").exists()
    assert "README.md, recipe.yaml, results.json, LICENSE of me/net: not asked for" in caplog.text
    caplog.clear()
    assert (snnhub.pull("me/known") / "README.md").exists() and not caplog.text  # it has no recipe, as the cache knows
    with pytest.raises(InputError, match="name one"):
        snnhub.pull("me/net@main", "main")
    (file := Path(constants.HF_HUB_CACHE) / "file").touch()
    with pytest.raises(InputError, match="is a file: name a folder"):
        snnhub.pull("me/known", folder=file)


def test_two_pushes_at_once(hub, owner):
    models = [made(seed=seed) for seed in (1, 2)]
    hub.conflicts = 1  # one of them finds that the other was quicker
    errors = []

    def push(model):
        try:
            snnhub.push(model, "me/net", license="mit")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=push, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and hub.conflicts == 0
    assert len(hub.repos["me/net"].commits) == 3  # the Hub's own, and one of each
    for sha in hub.repos["me/net"].commits:
        if "config.json" in hub.repos["me/net"].commits[sha]:
            loaded = timm.create_model(f"hf-hub:me/net@{sha}", pretrained=True).eval()  # its sha256 is verified
            assert any(torch.equal(logits(loaded), logits(model)) for model in models)


# --- the command, packing, cards ------------------------------------------------------------------------------------


def checkpoint_of_a_run(path, model, **options):
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
        "input_size": "3x32x32", "parameters": sum(p.numel() for p in model.parameters()), "top1": top1, "top5": 97.25,
        "loss": 1.5, "images_per_s": 100.0, "rate_stem": 0.125, "rate_layer1": 0.0625, **row,
    }  # fmt: skip
    path.write_text(json.dumps({"results": [row], "versions": {"torch": "2.15.0", "gpu": None}}))
    return path


def test_pack_a_run_with_its_results_in_one_command(tmp_path, capsys):
    model = made()
    run = checkpoint_of_a_run(tmp_path / "model_best.pth.tar", model)
    results = [measured(tmp_path / f"{seed}.json", model, top1) for seed, top1 in enumerate((55.5, 54.5, 56.5))]
    teacher = measured(tmp_path / "t.json", model, 91.73, "cifar_resnet20", num_steps=None)
    folder = tmp_path / "snn_resnet20_t4.c10"
    cli.main(
        f"pack {folder} --checkpoint {run} --license apache-2.0 --results {' '.join(map(str, results))} "
        f"--teacher-results {teacher}".split()
    )
    assert capsys.readouterr().out == f"{folder}\n"
    assert {path.name for path in folder.iterdir()} == set(snnhub.FILES) - {snnhub.LICENSE}
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(logits(loaded), logits(model))
    assert list(loaded.pretrained_cfg["mean"]) == [0.1, 0.2, 0.3]  # as the run normalised its images
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["teacher_checkpoint"] == "teacher.safetensors" and "data_dir" not in recipe and recipe["seed"] == 42
    assert recipe["alpha"] == 0.0 and "amp" not in recipe and "std" not in recipe
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644
    card = (folder / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert (metadata["license"], metadata["library_name"]) == ("apache-2.0", "timm")
    assert (metadata["pipeline_tag"], metadata["datasets"]) == ("image-classification", ["uoft-cs/cifar10"])
    assert metadata["model-index"][0]["results"][0]["metrics"][0]["value"] == 55.5
    for words in (
        "| 4 | 55.50 | 97.25 | 10000 | 0.125 | 0.062 |",
        "top-1 55.50 %, standard deviation 1.00, n = 3 (55.50, 54.50, 56.50)",
        "The teacher, `cifar_resnet20`: top-1 91.73 % on 10000 images.",
        "LIF, decay 0.5, threshold 0.7, hard reset",
        "python train_distill.py -c recipe.yaml --data-dir DIR --teacher-checkpoint FILE",
        "after epoch 5 of the run",
        "import snnzoo  # registers the model",
    ):
        assert words in card, words
    for path in folder.iterdir():
        assert b"somebody" not in path.read_bytes(), path
    averaged = load_file(folder / "model.safetensors") | {"fc.bias": torch.full((7,), 0.5)}
    torch.save(torch.load(run, weights_only=True) | {"state_dict_ema": averaged}, run)
    cli.main(f"pack {folder} --checkpoint {run} --use-ema --results {results[0]}".split())
    assert "after epoch 5 of the run, averaged (`--model-ema`)" in (folder / "README.md").read_text()
    # new weights: the old ones' numbers go
    cli.main(f"pack {folder} --checkpoint {checkpoint_of_a_run(run, made(seed=3))}".split())
    assert "55.50" not in (folder / "README.md").read_text() and not (folder / "results.json").exists()
    # numbers of other weights are refused, also behind our back
    snnhub.pack(folder, results=results[:1])
    kept = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**kept, "sha256": "0" * 64}))
    with pytest.raises(InputError, match="measured on other weights"):
        snnhub.pack(folder)


def test_packing_again(tmp_path, capsys):
    model = made()
    folder = snnhub.pack(tmp_path / "net", model, license="apache-2.0")
    with pytest.raises(InputError, match="no file at"):
        snnhub.pack(folder, recipe=tmp_path / "missing.yaml")
    assert "license: apache-2.0" in (folder / "README.md").read_text()
    snnhub.pack(folder, license="mit")
    assert "license: mit" in (folder / "README.md").read_text()
    assert json.loads((folder / "config.json").read_text())["pretrained_cfg"]["license"] == "mit"
    results = [measured(tmp_path / "r.json", model, name="hf-hub:me/snn_resnet20_t4.c10", num_steps=1)]
    card = (snnhub.pack(folder, results=results) / "README.md").read_text()
    assert "| 1 | 55.50 |" in card and "model-index" not in card  # nothing was measured at its own T
    with pytest.raises(InputError, match="is a file: name a folder to pack into"):
        snnhub.pack(tmp_path / "r.json", model, license="mit")
    run = checkpoint_of_a_run(tmp_path / "x.pth.tar", model, teacher="local-dir:/home/somebody/a/teacher")
    cli.main(f"pack {tmp_path / 'run'} --checkpoint {run} --license mit".split())
    assert yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["teacher"] == "local-dir:teacher"
    assert all(b"somebody" not in path.read_bytes() for path in (tmp_path / "run").iterdir())


def test_what_was_an_initialisation(tmp_path):
    ann = timm.create_model("resnet18")
    overlay = dict(state_dict=ann.state_dict())
    model = timm.create_model("snn_preact_resnet18_t4.ann_in1k", pretrained=True, pretrained_cfg_overlay=overlay)
    for name in ("finetuned", "mynet.ann_v2"):
        folder = snnhub.pack(tmp_path / name, model, license="mit")
        assert "initialisation" not in (folder / "config.json").read_text() + (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "not what `validate.py --results-file X.json` writes"),
        ('{"results": [{"top1": 3}]}', "do not say images, model, num_steps, parameters, top5"),
        (None, "results of a snn_resnet18_t4 with"),
    ],
)
def test_results_that_do_not_belong(content, message, tmp_path):
    folder = snnhub.pack(tmp_path / "net", model := made(), license="mit")
    path = measured(tmp_path / "r.json", model, name="snn_resnet18_t4")
    if content:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        snnhub.pack(folder, results=[path])


def test_push_and_pull_by_command(hub, owner, tmp_path, capsys):
    run = checkpoint_of_a_run(tmp_path / "last.pth.tar", model := made())
    cli.main(f"push {run} --repo me/snn_resnet20_t4.c10 --license mit --dry-run".split())
    assert "dry run: nothing was sent to me/snn_resnet20_t4.c10" in capsys.readouterr().out and not hub.traffic
    cli.main(f"push {run} --repo me/snn_resnet20_t4.c10 --license mit".split())
    assert "/me/snn_resnet20_t4.c10/commit/" in capsys.readouterr().out
    cli.main(f"pull me/snn_resnet20_t4.c10 -o {tmp_path / 'net'}".split())
    assert capsys.readouterr().out == f"{tmp_path / 'net'}\n"
    assert 'create_model("hf-hub:me/snn_resnet20_t4.c10"' in (tmp_path / "net" / "README.md").read_text()
    (tmp_path / "net" / "LICENSE").write_text("a notice")
    cli.main(f"push {tmp_path / 'net'} --repo snnzoo/snn_resnet20_t4.c10".split())  # a folder, as it is
    assert (snnhub.pull("snn_resnet20_t4.c10", folder=tmp_path / "back") / "LICENSE").read_text() == "a notice"
    assert (
        'create_model("hf-hub:snnzoo/snn_resnet20_t4.c10"'
        in snnhub.pull("snn_resnet20_t4.c10").joinpath("README.md").read_text()
    )
    named = timm.create_model("hf-hub:snnzoo/snn_resnet20_t4.c10", pretrained=True)
    assert torch.equal(logits(named.eval()), logits(model))
    assert_no_pickle(hub)
    with pytest.raises(SystemExit) as stopped:
        cli.main(f"push {tmp_path / 'net' / 'model.safetensors'} --repo me/x --license mit".split())
    assert stopped.value.code == 2 and "does not say which model it is of" in capsys.readouterr().err


def test_list(hub, capsys):
    put(hub, "snnzoo/snn_resnet18_t4.c10", made("snn_resnet18_t4"))
    cli.main(["list", "snn_resnet18*"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and "snn_resnet18_t4.c100" in lines and hub.traffic == []
    cli.main(["list", "snn_resnet*", "--pretrained"])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == "snn_resnet18_t4.c10 on the Hub, snnzoo/snn_resnet18_t4.c10".split() for line in lines)
    assert any("initialisation, timm/resnet34.a1_in1k" in line for line in lines)
    assert len(lines) == 5 + sum(name.startswith("snn_resnet") for name in SHIPPED - {"snn_resnet18_t4.c10"})


def test_list_without_a_hub(caplog):
    listed = snnhub.list_models(pretrained=True)
    assert {model.name for model in listed} >= SHIPPED and "what the Hub has is not listed" in caplog.text


# --- teachers ---------------------------------------------------------------------------------------------------------


def test_a_teacher_by_hub_id(hub, owner):
    """Its weights, and its normalisation: the images come normalised as the student's."""
    ann = made("cifar_resnet20", num_classes=7)
    ann.pretrained_cfg |= dict(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    snnhub.push(ann, "me/teacher", license="mit")
    teacher = create_teacher("hf-hub:me/teacher", 7)
    assert torch.equal(logits(teacher.eval()), logits(ann))
    student = made()
    task = AnnGuidedDistillationTask(student, teacher, branches="none", input_size=(3, 32, 32))
    pixels = torch.rand(2, 3, 32, 32)

    def normalised(mean, std):
        return (pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)

    cfg = student.pretrained_cfg
    seen = task.teacher.normalize_input(normalised(cfg["mean"], cfg["std"]), task.student_mean, task.student_std)
    torch.testing.assert_close(seen, normalised((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="was trained on 7 classes, the student has 10"):
        create_teacher("hf-hub:me/teacher", 10)
    with pytest.raises(InputError, match="no repository 'me/none'"):
        create_teacher("hf-hub:me/none", 10)
    assert_no_pickle(hub)


# --- the folders that ship --------------------------------------------------------------------------------------------

FOLDERS = sorted(path for path in HUB_CONFIGS.iterdir() if path.is_dir() and path.name != "__pycache__")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_folders_are_complete(folder):
    """`snnzoo pack FOLDER` makes what is missing, and cards that are out of date."""
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "README.md"} <= names <= set(snnhub.FILES)
    assert (folder / "README.md").read_text() == snnhub.cards.render(folder, f"snnzoo/{folder.name}")
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == folder.name.split(".")[0] and {"stem", "num_steps"} <= set(config["model_args"])
    assert ("sha256" in config) == ("model.safetensors" in names)
    if "model.safetensors" in names:
        assert (folder / "model.safetensors").stat().st_size < 8e6
    assert timm.create_model(f"local-dir:{folder}", device="meta").num_classes == config["num_classes"]
    assert "recipe.yaml" in names or ".ann_" in folder.name
