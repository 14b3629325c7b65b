"""Push and pull: the real client of the Hub against a Hub on loopback, see hub_server."""

import json
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import timm
import torch
from hub_checkpoints import FAMILIES, assert_no_pickle, checkpoint_of_a_run, is_pickle, logits, made, measured, put
from hub_server import TOKEN
from huggingface_hub import HfApi, constants, model_info
from safetensors.torch import save_file

from snnzoo import InputError, cli
from snnzoo import hub as snnhub
from snnzoo.distill import AnnGuidedDistillationTask
from snnzoo.distill.teacher import create_teacher
from snnzoo.hub import packing, transfer
from snnzoo.models._pretrained import SHIPPED, on_hub
from snnzoo.neurons import Surrogate
from snnzoo.weights import create_model


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
    assert '"hf-hub:me/snn_resnet20_t4.c10@v2"' in (folder / "README.md").read_text()  # main may have other weights
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
    monkeypatch.setattr(packing, "model_args", lambda m: {**args, "decay": 0.9} if m is model else args)
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
    assert (snnhub.pull("me/known") / "README.md").exists()
    assert "me/known is as the cache has it" in caplog.text
    assert "not asked for" not in caplog.text  # it has no recipe, as the cache knows
    with pytest.raises(InputError, match="name one"):
        snnhub.pull("me/net@main", "main")
    (file := Path(constants.HF_HUB_CACHE) / "file").touch()
    with pytest.raises(InputError, match="is a file: name a folder"):
        snnhub.pull("me/known", folder=file)


def test_pull_leaves_other_peoples_files_alone(hub, owner, tmp_path):
    snnhub.push(made(), "me/net", license="mit")
    (tmp_path / "README.md").write_text("of my project")
    with pytest.raises(InputError, match="has a README.md and is no checkpoint's"):
        snnhub.pull("me/net", folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == "of my project"


def test_pull_says_that_the_cache_is_behind(hub, owner, monkeypatch, caplog):
    """As the client does, if the Hub answers a file's address with an error."""
    snnhub.push(made(), "me/net", license="mit")
    old = snnhub.pull("me/net").name
    assert "as the cache has it" not in caplog.text
    snnhub.push(made(seed=1), "me/net", license="mit")
    monkeypatch.setattr(transfer, "on_hub", lambda name: on_hub(f"{name}@{old}"))
    assert snnhub.pull("me/net").name == old
    assert f"commit {old[:8]}: the newest is {hub.repos['me/net'].refs['main'][:8]}" in caplog.text


def test_private_is_not_taken_for_granted(hub, owner):
    snnhub.push(made(), "me/net", license="mit")
    commits = dict(hub.repos["me/net"].commits)
    with pytest.raises(InputError, match="'me/net' exists and is public"):
        snnhub.push(made(seed=1), "me/net", license="mit", private=True)
    assert hub.repos["me/net"].commits == commits


def test_a_push_between_looking_and_committing(hub, owner, tmp_path, monkeypatch):
    """Nothing of theirs stays beside weights that it is not of."""
    theirs, ours = made(seed=1), made(seed=2)
    results = [measured(tmp_path / "r.json", theirs)]
    snnhub.push(made(), "me/net", license="mit")
    create_commit, waiting = HfApi.create_commit, [True]

    def late(*args, **kwargs):
        if waiting:
            waiting.clear()
            snnhub.push(theirs, "me/net", license="mit", results=results)
        return create_commit(*args, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", late)
    snnhub.push(ours, "me/net", license="mit")
    repo = hub.repos["me/net"]
    assert len(repo.commits) == 4
    assert set(repo.commits[repo.refs["main"]]) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert torch.equal(logits(create_model("hf-hub:me/net", pretrained=True).eval()), logits(ours))


def test_averaged_weights_are_not_passed_over_in_silence(hub, owner, tmp_path, capsys, caplog):
    run = checkpoint_of_a_run(tmp_path / "x.pth.tar", model := made())
    torch.save(torch.load(run, weights_only=True) | {"state_dict_ema": model.state_dict()}, run)
    cli.main(f"push {run} --repo me/net --license mit --dry-run".split())
    assert "has averaged weights, too: --use-ema" in caplog.text
    caplog.clear()
    cli.main(f"push {run} --repo me/net --license mit --dry-run --use-ema".split())
    assert "has averaged weights, too" not in caplog.text


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
    cli.main(["list", "nosuch*"])
    assert tuple(capsys.readouterr()) == ("", "snnzoo: no model is named 'nosuch*'\n")
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
