"""Checkpoints packed into folders, their measurements and cards; the folders that ship."""

import json

import pytest
import timm
import torch
import yaml
from hub_checkpoints import FAMILIES, checkpoint_of_a_run, logits, made, measured
from safetensors.torch import load_file

from snnzoo import InputError, cli
from snnzoo import hub as snnhub
from snnzoo.hub import cards, packing
from snnzoo.models._pretrained import HUB_CONFIGS


def test_pack_a_run_with_its_results_in_one_command(tmp_path, capsys):
    model = made(num_classes=10)
    run = checkpoint_of_a_run(tmp_path / "model_best.pth.tar", model, num_classes=10)
    seeds = (model, made(seed=1, num_classes=10), made(seed=2, num_classes=10))
    tops = (55.5, 54.5, 56.5)
    results = [measured(tmp_path / f"{top}.json", *pair) for *pair, top in zip(seeds, tops, tops, strict=True)]
    teacher = measured(tmp_path / "t.json", model, 91.73, "cifar_resnet20", num_steps=None)
    folder = tmp_path / "snn_resnet20_t4.c10"
    cli.main(
        f"pack {folder} --checkpoint {run} --license apache-2.0 --results {' '.join(map(str, results))} "
        f"--teacher-results {teacher}".split()
    )
    assert capsys.readouterr().out == f"{folder}\n"
    assert {path.name for path in folder.iterdir()} == set(packing.FILES) - {packing.LICENSE}
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
        "of epoch 4 of the run, counted from 0",
        "import snnzoo  # registers the model",
    ):
        assert words in card, words
    for path in folder.iterdir():
        assert b"somebody" not in path.read_bytes(), path
    averaged = load_file(folder / "model.safetensors") | {"fc.bias": torch.full((10,), 0.5)}
    torch.save(torch.load(run, weights_only=True) | {"state_dict_ema": averaged}, run)
    model.load_state_dict(averaged)
    cli.main(f"pack {folder} --checkpoint {run} --use-ema --results {measured(tmp_path / 'ema.json', model)}".split())
    assert "of epoch 4 of the run, counted from 0, averaged (`--model-ema`)" in (folder / "README.md").read_text()
    # new weights: the old ones' numbers go
    again = made(seed=3, num_classes=10)
    cli.main(f"pack {folder} --checkpoint {checkpoint_of_a_run(run, again, num_classes=10)}".split())
    assert "55.50" not in (folder / "README.md").read_text() and not (folder / "results.json").exists()
    # numbers of other weights are refused, also behind our back
    snnhub.pack(folder, results=[measured(tmp_path / "again.json", again)])
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


def test_folders_that_timm_wrote(tmp_path):
    folder, model = tmp_path / "theirs", made()
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    card = (snnhub.pack(folder, license="mit") / "README.md").read_text()
    assert "time steps T | 4" in card and "neuron" not in card  # which timm's config does not say
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"has weights and no config.json that says of which model"):
        snnhub.pack(folder, license="mit")
    assert (folder / "README.md").read_text() == card


def test_what_is_refused_changes_nothing(tmp_path):
    recipe = tmp_path / "good.yaml"
    recipe.write_text("lr: 0.1\n")
    folder = snnhub.pack(tmp_path / "net", made(), license="mit", recipe=recipe)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name, content in (("list.yaml", "[1, 2]"), ("half.yaml", "lr: ["), ("kwargs.yaml", "model_kwargs: [decay=1]")):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=f"recipe '.*{name}' "):
            snnhub.pack(folder, made(seed=1), recipe=tmp_path / name)
    for kwargs, match in (
        (dict(recipe=tmp_path / "none.yaml"), "no file at"),
        (dict(recipe=tmp_path / "good.yaml"), "no model named 'new'"),
        (dict(results=[measured(tmp_path / "r.json", made())], recipe=_of_a_model(tmp_path)), "'.*new' has none"),
    ):
        with pytest.raises(InputError, match=match):
            snnhub.pack(tmp_path / "new", license="mit", **kwargs)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not (tmp_path / "new").exists()


def test_a_run_that_was_told_colours_and_took_grey(tmp_path, monkeypatch):
    """As the trainer does; and a pack that fails leaves the folder that was there."""
    folder = snnhub.pack(tmp_path / "net", made(), license="mit", recipe=_of_a_model(tmp_path))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    told = dict(in_chans=1, input_size=[3, 16, 16], mean=[0.5])
    run = checkpoint_of_a_run(tmp_path / "run.pth.tar", model := made(in_chans=1), **told)
    command = f"pack {folder} --checkpoint {run}".split()
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(packing, "write_card", lambda *_: 1 / 0)
        cli.main(command)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    cli.main(command)
    config = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    assert (config["input_size"], config["mean"]) == ([1, 16, 16], [0.5])
    assert torch.equal(logits(timm.create_model(f"local-dir:{folder}", pretrained=True).eval()), logits(model))
    cli.main(f"push {run} --repo me/net --license mit --dry-run".split())
    (tmp_path / "recipe.yaml").write_text("model: snn_resnet20_t4\nin_chans: 1\ninput_size: [3, 8, 8]\n")
    untrained = snnhub.pack(tmp_path / "untrained", license="mit", recipe=tmp_path / "recipe.yaml")
    assert json.loads((untrained / "config.json").read_text())["pretrained_cfg"]["input_size"] == [1, 8, 8]


def _of_a_model(folder):
    """A recipe as people write it, with what the trainer takes."""
    (folder / "recipe.yaml").write_text(
        "model: snn_resnet20_t4\nnum-classes: 7\nin-chans: 1\nmodel-kwargs: {decay: 0.5}\nseed:\n"
    )
    return folder / "recipe.yaml"


def test_a_recipe_is_read_as_the_trainer_reads_it(tmp_path):
    folder = snnhub.pack(tmp_path / "net", license="mit", recipe=_of_a_model(tmp_path))
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_classes"], config["model_args"]["decay"]) == (7, 0.5)
    assert config["pretrained_cfg"]["input_size"][0] == 1
    (tmp_path / "recipe.yaml").write_text("model: snn_resnet20_t4\nmodel_kwargs:\n")
    snnhub.pack(tmp_path / "empty", license="mit", recipe=tmp_path / "recipe.yaml")


def test_a_stem_that_is_a_layer_is_no_argument():
    assert snnhub.model_args(timm.create_model("convnext_atto", device="meta", num_classes=7))["num_classes"] == 7


def test_the_card_of_an_ann(tmp_path):
    folder = snnhub.pack(tmp_path / "net", model := made("cifar_resnet20"), license="mit")
    seeds = (model, 5.0), (made("cifar_resnet20", seed=1), 6.0)
    results = [measured(tmp_path / f"{top1}.json", of, top1, "cifar_resnet20", num_steps=None) for of, top1 in seeds]
    card = (snnhub.pack(folder, results=results) / "README.md").read_text()
    assert "| none | 5.00 | 97.25 |" in card and "\n- top-1 5.50 %, standard deviation 0.71, n = 2" in card
    assert "None" not in card
    snnhub.validate(str(folder), model)


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
        ('{"results": [{"top1": 3}]}', "do not say digest, images, model, num_steps, parameters, top5"),
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


def test_numbers_of_other_weights_never_reach_a_card(tmp_path):
    """Averaged weights and others are of one file, and neurons leave no trace in weights."""
    folder = snnhub.pack(tmp_path / "net", model := made(), license="mit", recipe=_of_a_model(tmp_path))
    results = measured(tmp_path / "r.json", model)
    same = made(num_steps=2, grad_method="bptt")
    same.load_state_dict(model.state_dict())
    assert snnhub.digest(same) == snnhub.digest(model)
    assert snnhub.digest(made(readout_decay=1.0)) == snnhub.digest(model)
    for other in (made(seed=1), made(decay=0.4), made(reset="soft"), made(readout_decay=0.6)):
        with pytest.raises(InputError, match="of other weights than these, or of another neuron"):
            snnhub.pack(folder, results=[measured(tmp_path / "other.json", other)])
    with pytest.raises(InputError, match="two of these files are of the same"):
        snnhub.pack(folder, results=[results, results])
    teacher = measured(tmp_path / "t.json", model, name="cifar_resnet18")
    for recipe, expected in (("", None), ("teacher: cifar_resnet20\n", "cifar_resnet20")):
        (tmp_path / "other.yaml").write_text(f"model: snn_resnet20_t4\n{recipe}")
        with pytest.raises(InputError, match=f"are of a cifar_resnet18, the recipe's teacher is {expected}"):
            snnhub.pack(folder, results=[results], teacher_results=teacher, recipe=tmp_path / "other.yaml")
    card = snnhub.pack(tmp_path / "snn_resnet20_t4.c10", model, license="mit", results=[results]) / "README.md"
    assert "model-index" not in card.read_text() and "CIFAR-10" not in card.read_text()  # it has seven classes


def test_a_card_of_ones_own_stays(tmp_path, caplog):
    folder = snnhub.pack(tmp_path / "net", made(), license="mit")
    (folder / "README.md").write_text("my card")
    snnhub.pack(folder, license="apache-2.0")
    assert (folder / "README.md").read_text() == "my card" and "stays as it is" in caplog.text
    assert json.loads((folder / "config.json").read_text())["pretrained_cfg"]["license"] == "apache-2.0"


def test_the_card_tells_of_a_read_out_that_was_changed(tmp_path):
    run = checkpoint_of_a_run(tmp_path / "x.pth.tar", made())
    cli.main(f"pack {tmp_path / 'net'} --checkpoint {run} --license mit".split())
    card = (tmp_path / "net/README.md").read_text()
    assert "| read-out | the mean over the steps |" in card and "changed" not in card
    cli.main(f"pack {tmp_path / 'net'} --checkpoint {run} --model-kwargs readout_decay=0.6".split())
    card = (tmp_path / "net/README.md").read_text()
    assert "| read-out | leaky, decay 0.6 |" in card
    assert "| read-out | changed after the training, from a decay of 1.0 to 0.6 |" in card
    assert timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True).readout_decay == 0.6
    again = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True, readout_decay=0.8)
    assert again.readout_decay == snnhub.model_args(again)["readout_decay"] == 0.8
    kwargs = {key: value for key, value in FAMILIES["snn_resnet20_t4"].items() if key != "num_classes"}
    kwargs["readout_decay"] = 0.7
    run = checkpoint_of_a_run(tmp_path / "y.pth.tar", made(**kwargs), model_kwargs=kwargs)
    cli.main(f"pack {tmp_path / 'other'} --checkpoint {run} --license mit".split())
    card = (tmp_path / "other/README.md").read_text()
    assert "| read-out | leaky, decay 0.7 |" in card and "changed" not in card


def test_cards_say_where_a_run_began(tmp_path):
    """And nothing of branches where nobody taught; the names of classes stay."""
    options = dict(teacher=None, model="hf-hub:me/before", pretrained=True, branches="main")
    run = checkpoint_of_a_run(tmp_path / "x.pth.tar", model := made(), **options)
    model.pretrained_cfg["label_names"] = list("abcdefg")
    folder = snnhub.pack(tmp_path / "net", model, snnhub.Run(load(run)["options"]), license="mit")
    card = (folder / "README.md").read_text()
    assert "| started from | the pretrained weights of `hf-hub:me/before` |" in card and "branches" not in card
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == "me/before"
    assert json.loads((folder / "config.json").read_text())["label_names"] == list("abcdefg")
    checkpoint_of_a_run(run, model, model="local-dir:net")
    assert snnhub.Run(load(run)["options"]).recipe["model"] == "local-dir:net"


def load(path):
    return torch.load(path, weights_only=True)


# --- the folders that ship --------------------------------------------------------------------------------------------

FOLDERS = sorted(path for path in HUB_CONFIGS.iterdir() if path.is_dir() and path.name != "__pycache__")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_folders_are_complete(folder):
    """`snnzoo pack FOLDER` makes what is missing, and cards that are out of date."""
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "README.md"} <= names <= set(packing.FILES)
    assert (folder / "README.md").read_text() == cards.render(folder, f"snnzoo/{folder.name}")
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == folder.name.split(".")[0] and {"stem", "num_steps"} <= set(config["model_args"])
    assert ("sha256" in config) == ("model.safetensors" in names)
    if "model.safetensors" in names:
        assert (folder / "model.safetensors").stat().st_size < 8e6
    assert timm.create_model(f"local-dir:{folder}", device="meta").num_classes == config["num_classes"]
    assert "recipe.yaml" in names or ".ann_" in folder.name


def test_the_card_of_event_frames_transforms_no_image():
    card = (HUB_CONFIGS / "snn_resnet19_t4.c10dvs/README.md").read_text()
    assert "logits = model(torch.zeros(1, 4, 2, 48, 48))  # frames of events" in card and "transform" not in card


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_code_in_a_card_makes_the_model(folder, monkeypatch):
    """Without weights that are not there yet: an initialisation's are on the Hub."""
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    create_model = timm.create_model
    config = json.loads((folder / "config.json").read_text())

    def offline(name, pretrained=False, **kwargs):
        assert pretrained == ("sha256" in config or "initialisation" in config)
        return create_model(name.removeprefix("hf-hub:snnzoo/"), **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    made = {}
    if "imagenet" not in json.dumps(config["model_args"]):  # those take long
        exec(code, made)
        assert made["logits"].shape == (1, config["num_classes"])
    else:
        exec(code.replace("logits =", "#"), made)
        assert made["model"].num_classes == config["num_classes"]
