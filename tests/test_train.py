"""The scripts, on a few real digits: training, resuming, measuring, and every bad input."""

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import ClassVar

import pytest
import timm
import torch
import yaml
from conftest import ROOT
from running import load, options, refuse, rows, taught
from safetensors.torch import save_file

import train_distill
import validate
from snnzoo import InputError, hub
from snnzoo.data.batches import SeededDataset
from snnzoo.distill import create_teacher
from snnzoo.weights import create_model

# --- what must work ----------------------------------------------------------------------------------------------


def test_a_run_leaves_all_that_is_promised(digits, teacher, tmp_path):
    extra = (*taught(teacher), "--epochs", 2, "--experiment", "run", "--aa", "cifar10", "--cutout", 2, "--model-ema")
    train_distill.main(options(digits, tmp_path, *extra, "--amp", "--clip-grad", 1.0, "--channels-last"))
    folder = tmp_path / "run"
    written = {path.name for path in folder.iterdir()}
    promised = {"last.pth.tar", "model_best.pth.tar", "checkpoint-0.pth.tar", "checkpoint-1.pth.tar", "summary.csv",
                "summary.json", "args.yaml", "train.log"}  # fmt: skip
    assert promised <= written
    assert not [name for name in written if "tmp" in name]
    table = rows(folder)
    assert [row["epoch"] for row in table] == [0, 1]
    wanted = {
        "train_loss", "train_task_loss", "train_kd_loss", "train_branch_1_loss", "train_branch_2_loss", "train_top1",
        "train_images_per_s", "eval_top1", "eval_top1_1", "eval_top1_2", "eval_similarity_1", "eval_ema_top1", "lr",
        "eval_rate_stem", "eval_rate_layer1", "eval_rate_layer3",
    }  # fmt: skip
    assert wanted <= set(table[0])
    checkpoint = load(folder / "last.pth.tar")
    model = timm.create_model("snn_resnet20_t2", depths=(1, 1, 1))
    assert set(checkpoint["state_dict"]) == set(model.state_dict()) == set(checkpoint["state_dict_ema"])
    assert "adapters" in checkpoint["task_state"]
    assert yaml.safe_load((folder / "args.yaml").read_text())["teacher"] == "cifar_resnet20"


@pytest.mark.parametrize(
    "extra",
    [
        ("--grad-method", "bptt", "--reset", "hard", "--grad-checkpointing", "--sched", "none"),
        ("--branches", "none"),
        ("--branches", "stem,fc", "--alpha-schedule", "rising", "--beta", "halving"),
        ("--mean", "0.3", "0.3", "0.3", "--std", "0.4", "0.4", "0.4", "--clip-grad", "0.1", "--clip-mode", "agc"),
        ("--opt", "adamw", "--lr", "1e-3", "--sched", "step", "--smoothing", "0.1", "--no-aug", "--drop", "0.1"),
    ],
    ids=lambda extra: " ".join(extra[:2]),
)
def test_options(digits, teacher, tmp_path, extra):
    train_distill.main(options(digits, tmp_path, *taught(teacher), "--experiment", "run", *extra))
    assert 0 <= float(rows(tmp_path / "run")[0]["eval_top1"]) <= 100


def test_validation_now_and_then(digits, teacher, tmp_path):
    extra = (*taught(teacher), "--epochs", 4, "--val-interval", 3, "--model-ema", "--experiment", "run")
    train_distill.main(options(digits, tmp_path, *extra))
    table = rows(tmp_path / "run")
    assert [row["epoch"] for row in table if "eval_top1" in row] == [2, 3]  # the last one always
    assert all("train_loss" in row and "lr" in row for row in table)
    best = load(tmp_path / "run/model_best.pth.tar")["progress"]
    assert best["best_epoch"] in (2, 3) and best["best_metric"] == max(row.get("eval_ema_top1", 0) for row in table)
    assert {"curves.png", "checkpoint-1.pth.tar"} <= {path.name for path in (tmp_path / "run").iterdir()}
    refuse("--val-interval does nothing with --sched plateau", options(digits, tmp_path, *extra, "--sched", "plateau"))


def test_grey_images(digits, tmp_path):
    weights = tmp_path / "grey.safetensors"
    save_file(timm.create_model("cifar_resnet20", in_chans=1).state_dict(), weights)
    grey = ("--in-chans", 1, "--input-size", 1, 8, 8, "--experiment", "run")
    train_distill.main(options(digits, tmp_path, *taught(weights), *grey))
    assert load(tmp_path / "run/last.pth.tar")["state_dict"]["conv1.weight"].shape[1] == 1


def test_an_ann_is_trained_by_the_same_script(digits, tmp_path):
    extra = ["--model", "cifar_resnet20", "--epochs", 4, "--lr", 0.05, "--experiment", "ann"]
    train_distill.main(options(digits, tmp_path, *extra))
    losses = [float(row["train_loss"]) for row in rows(tmp_path / "ann")]
    assert losses[-1] < losses[0]


def test_data_in_tars_and_torchvision_folders(digits, tmp_path):
    for split in ("train", "validation"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            tar.add(digits / split, arcname=".")
    tars = ("--train-split", "train.tar", "--val-split", "validation.tar")
    train_distill.main(options(tmp_path, tmp_path / "out", "--experiment", "tar", *tars))
    train_distill.main(options(digits, tmp_path / "out", "--experiment", "torch", "--dataset", "torch/image_folder"))
    tar, folder = rows(tmp_path / "out/tar"), rows(tmp_path / "out/torch")
    assert tar[0]["eval_top1"] == folder[0]["eval_top1"]  # the same images, in the same order
    assert tar[0]["train_loss"] == folder[0]["train_loss"]


def test_config_file(digits, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: snn_resnet20_t1\nepochs: 7\nweight-decay: 5e-4\n")
    parser = train_distill.make_parser()
    args = train_distill.parse_with_config(parser, ["-c", str(recipe), "--epochs", "2"])
    assert (args.model, args.epochs, args.weight_decay) == ("snn_resnet20_t1", 2, 5e-4)


def test_the_options_of_a_run_can_be_used_again(digits, teacher, tmp_path):
    """Those of one that was gone on with start it from its beginning, too."""
    extra = ("--mean", 0.5, "--std", 0.5, "--sched", "none")
    run = options(digits, tmp_path, *taught(teacher), "--experiment", "run", *extra)
    train_distill.main(run)
    train_distill.main([*run, "--resume", str(tmp_path / "run"), "--epochs", "2"])
    again = ["-c", str(tmp_path / "run/args.yaml"), "--experiment", "again"]
    train_distill.main(again)
    before, after = (load(tmp_path / name / "last.pth.tar") for name in ("run", "again"))
    torch.testing.assert_close(after["state_dict"], before["state_dict"], rtol=0, atol=0)


def measured(checkpoint, digits, *extra):
    """The loss that validate.py finds for a run's checkpoint, which it is told nothing about."""
    result = checkpoint.parent / "r.json"
    where = f"--data-dir {digits} --device cpu --workers 0 --checkpoint {checkpoint} --results-file {result}"
    validate.main([*where.split(), *extra])
    return json.loads(result.read_text())["results"][0]["loss"]


INHERITS = "--device cpu --workers 0 --batch-size 20 --epochs 1 --crop-padding 1 --model snn_resnet20_t2"


def test_what_a_run_inherits_from_its_first_weights_is_in_its_options(digits, tmp_path):
    """How the network is made and how images are prepared: the run's own weights come back without the first ones."""
    fixed = f"{INHERITS} --data-dir {digits} --output {tmp_path}".split()
    first = "--model-kwargs depths=(1,1,1) decay=0.9 --reset hard --num-steps 3 --input-size 1 10 10 --mean 0.3"
    train_distill.main([*fixed, *first.split(), "--experiment", "a"])
    from_a = [*fixed, "--initial-checkpoint", str(tmp_path / "a/last.pth.tar")]
    train_distill.main([*from_a, "--experiment", "b"])
    train_distill.main([*from_a, "--experiment", "other", "--model-kwargs", "decay=0.4", "--num-steps", "1"])
    for name, decay, steps in (("b", 0.9, 3), ("other", 0.4, 1)):
        last = tmp_path / name / "last.pth.tar"
        told = load(last)["options"]
        assert told["model_kwargs"] == {"depths": [1, 1, 1], "decay": decay}
        assert (told["reset"], told["num_steps"], told["in_chans"]) == ("hard", steps, 1)
        assert yaml.safe_load((tmp_path / name / "args.yaml").read_text())["model_kwargs"] == told["model_kwargs"]
        assert measured(last, digits, "--model", "snn_resnet20_t2") == pytest.approx(
            rows(tmp_path / name)[0]["eval_loss"]
        )
    train_distill.main([*from_a, "--resume", str(tmp_path / "b"), "--epochs", "2"])
    train_distill.main(["-c", str(tmp_path / "b/args.yaml"), "--resume", str(tmp_path / "b"), "--epochs", "3"])
    assert measured(tmp_path / "b/last.pth.tar", digits, "--model", "snn_resnet20_t2") == pytest.approx(
        rows(tmp_path / "b")[2]["eval_loss"]
    )
    refuse("was written with --", [*fixed, "--resume", str(tmp_path / "b"), "--epochs", "4"])


def test_a_name_with_another_t_is_the_same_model(digits, tmp_path):
    """Its neuron and its images are the run's, its T the one that was asked for."""
    fixed = f"{INHERITS} --data-dir {digits} --output {tmp_path}".split()
    made = "--model-kwargs depths=(1,1,1) decay=0.9 threshold=0.5 --reset hard --input-size 3 8 8 --mean 0.3"
    for name, steps in (("a", ()), ("b", ("--num-steps", "3"))):  # T by name, and by an option
        train_distill.main([*fixed, *made.split(), *steps, "--experiment", name])
        last = tmp_path / name / "last.pth.tar"
        model = create_model("snn_resnet20_t4", last)
        assert (model.act1.params.decay, model.act1.params.threshold, model.act1.params.reset) == (0.9, 0.5, "hard")
        assert (model.num_steps, model.pretrained_cfg["mean"][0]) == (4, 0.3)
        assert create_model("snn_resnet20_t4", last, num_steps=6).num_steps == 6
        assert create_model("snn_resnet20_t2", last).num_steps == (3 if steps else 2)
        assert hub.model_args(create_teacher("snn_resnet20_t4", 10, checkpoint=last)) == hub.model_args(model)
        as_two = measured(last, digits, "--model", "snn_resnet20_t2", "--num-steps", "5")
        assert measured(last, digits, "--model", "snn_resnet20_t4", "--num-steps", "5") == as_two
    begun = [*fixed, "--model", "snn_resnet20_t4", "--initial-checkpoint", str(last), "--experiment", "c"]
    train_distill.main(begun)
    told = load(tmp_path / "c/last.pth.tar")["options"]
    assert told["model_kwargs"] == {"depths": [1, 1, 1], "decay": 0.9, "threshold": 0.5}
    assert (told["reset"], told["num_steps"]) == ("hard", None)


def test_what_a_run_inherits_from_pretrained_weights_is_in_its_options(digits, tmp_path):
    fixed = f"{INHERITS.replace('_t2', '_t4')} --data-dir {digits} --output {tmp_path} --experiment run".split()
    train_distill.main([*fixed, "--pretrained", "--in-chans", "1", "--input-size", "1", "8", "8"])
    last = tmp_path / "run/last.pth.tar"
    told = load(last)["options"]
    assert told["model_kwargs"] == {"shortcut": "pad", "decay": 0.5, "detach_reset": False, "readout_decay": 0.7}
    assert (told["grad_method"], told["num_steps"]) == ("bptt", None)
    assert measured(last, digits, "--model", "snn_resnet20_t4") == pytest.approx(rows(tmp_path / "run")[0]["eval_loss"])


def test_a_run_of_a_model_with_a_source_needs_it_no_more(digits, tmp_path):
    """hf-hub:… and local-dir:… bring arguments, which may change there, or be gone."""
    shape = dict(depths=[1, 1], channels=[8, 16], decay=0.9, num_steps=3, in_chans=1, num_classes=10)
    model = timm.create_model("snn_resnet20_t2", **shape)
    folder = hub.pack(tmp_path / "net", model, license="mit")
    fixed = f"{INHERITS} --data-dir {digits} --output {tmp_path} --experiment run --input-size 1 8 8".split()
    train_distill.main([*fixed, "--model", f"local-dir:{folder}", "--pretrained"])
    last = tmp_path / "run/last.pth.tar"
    assert load(last)["arch"] == "snn_resnet20_t2"
    told = load(last)["options"]
    assert told["model_kwargs"] == {"depths": [1, 1], "channels": [8, 16], "decay": 0.9} and told["num_steps"] == 3
    shutil.rmtree(folder)
    again, run = hub.load(last)
    assert hub.model_args(again) == hub.model_args(model) and run.recipe["model"] == "local-dir:net"
    assert measured(last, digits, "--model", "snn_resnet20_t2") == pytest.approx(rows(tmp_path / "run")[0]["eval_loss"])


def test_a_run_begins_with_averaged_weights_and_learns_from_them(digits, tmp_path, caplog):
    train_distill.main(options(digits, tmp_path, "--experiment", "a", "--model-ema", "--model-ema-decay", 0.5))
    checkpoint = tmp_path / "a/last.pth.tar"
    averaged = load(checkpoint)["state_dict_ema"]
    asked = ["--model", "snn_resnet20_t2", "--initial-checkpoint", str(checkpoint)]
    with caplog.at_level("INFO"):
        student = train_distill.build_student(train_distill.make_parser().parse_args(asked))
        teacher = create_teacher("snn_resnet20_t2", 10, checkpoint=checkpoint)
    for model in (student, teacher):
        torch.testing.assert_close(dict(model.state_dict()), averaged, rtol=0, atol=0)
    assert caplog.text.count(f"the averaged weights of {checkpoint} are taken") == 2
    assert "--use-ema" not in caplog.text


def test_a_run_from_plain_weights_inherits_nothing(tmp_path):
    """Neither does one of an ANN whose modules are named like arguments of ours."""
    parse = train_distill.make_parser().parse_args
    for name in ("snn_resnet20_t2", "convnext_atto"):
        weights = tmp_path / f"{name}.safetensors"
        save_file(timm.create_model(name, num_classes=10).state_dict(), weights)
        words = ["--model", name, "--num-classes", "10", "--initial-checkpoint", str(weights)]
        args = parse(words)
        train_distill.build_student(args)
        assert args == parse(words)


RECIPES = sorted((ROOT / "hub_configs").glob("*/recipe.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.parent.name)
def test_every_recipe_is_understood(recipe):
    args = train_distill.parse_with_config(train_distill.make_parser(), ["-c", str(recipe), "--epochs", "7"])
    train_distill.check_options(args)
    assert (args.epochs, args.branches, args.alpha) == (7, "main", 0.5)
    assert recipe.parent.name.startswith(f"{args.model}.")
    if not timm.is_model(args.model):
        pytest.skip(f"{args.model} is not in the zoo")
    assert timm.is_model(args.teacher)


def test_there_is_a_recipe_for_every_row_of_the_paper():
    names = {path.parent.name for path in RECIPES}
    for tag in ("c10", "c100"):
        assert {f"snn_resnet18_t{t}.{tag}" for t in (2, 4, 6)} | {f"snn_resnet19_t2.{tag}"} <= names
    assert {"snn_sew_resnet34_t4.in1k", "snn_preact_resnet34_t4.in1k", "snn_preact_resnet34_t4.in1k_resnet50"} <= names
    assert "snn_resnet19_t4.c10dvs" in names


def test_a_recipe_runs_on_the_digits(digits, teacher, tmp_path):
    recipe = ROOT / "hub_configs/snn_resnet20_t4.c10/recipe.yaml"
    where = f"--device cpu --data-dir {digits} --output {tmp_path} --experiment run --input-size 3 8 8 --workers 0"
    weights = f"--teacher-checkpoint {teacher} --initial-checkpoint {teacher}"
    train_distill.main(f"-c {recipe} {where} {weights} --batch-size 20 --epochs 1".split())
    assert yaml.safe_load((tmp_path / "run/args.yaml").read_text())["model_kwargs"] == {
        "shortcut": "pad", "decay": 0.5, "detach_reset": False
    }  # fmt: skip
    run = tmp_path / "run/model_best.pth.tar"
    model = create_model("snn_resnet20_t4", run)  # made as the run made it
    assert not any("downsample" in name for name in model.state_dict()) and model.num_steps == 4
    assert create_model("snn_resnet20_t4", run, num_steps=2).num_steps == 2
    with pytest.raises(InputError, match="does not fit"):
        create_model("snn_resnet20_t4", run, shortcut="conv")


def test_a_recipe_without_its_teacher(digits, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("teacher: resnet18\nteacher-checkpoint: t.pth\ninitial-checkpoint: t.pth\nbranches: none\n"
                      "alpha-schedule: rising\nbeta: halving\n")  # fmt: skip
    run = ["-c", str(recipe), *options(digits, tmp_path, "--experiment", "run", "--initial-checkpoint", "")]
    train_distill.main([*run, "--teacher", ""])
    told = yaml.safe_load((tmp_path / "run/args.yaml").read_text())
    assert (told["teacher"], told["teacher_checkpoint"], told["branches"]) == ("", None, "main")
    train_distill.main(["-c", str(tmp_path / "run/args.yaml"), "--resume", "auto", "--epochs", "2"])
    refuse("no checkpoint file at 't.pth'", run)


@pytest.mark.parametrize("extra", [("--mixup", 0.8), ("--cutmix", 1.0, "--mixup", 0.2, "--smoothing", 0.1)])
def test_mixed_labels(digits, teacher, tmp_path, extra):
    train_distill.main(options(digits, tmp_path, *taught(teacher), *extra, "--experiment", "run"))
    assert rows(tmp_path / "run")[0]["train_loss"] > 0
    refuse("--batch-size must be even, got 5", options(digits, tmp_path, *extra, "--batch-size", 5))


def test_the_loss_gradient_can_be_scaled(digits, tmp_path):
    """By SGD without momentum and decay: half the gradient is half the learning rate."""
    plain = options(digits, tmp_path, "--momentum", 0, "--weight-decay", 0, "--lr", 0.05, "--sched", "none")
    train_distill.main([*plain, "--loss-grad-scale", "0.5", "--experiment", "a"])
    train_distill.main([*plain, "--lr", "0.025", "--experiment", "b"])
    a, b = (load(tmp_path / name / "last.pth.tar")["state_dict"] for name in "ab")
    torch.testing.assert_close(a, b)
    train_distill.main([*plain, "--experiment", "c"])
    with pytest.raises(AssertionError):
        torch.testing.assert_close(a, load(tmp_path / "c/last.pth.tar")["state_dict"])


@pytest.mark.slow
def test_a_teacher_from_the_hub(digits, tmp_path):
    """Pulled by huggingface_hub itself from a server on this machine that answers as the Hub does."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=10)
    files = tmp_path / "hub"
    files.mkdir()
    save_file(model.state_dict(), files / "model.safetensors")
    config = {"architecture": "resnet18", "num_classes": 10, "num_features": 512,
              "pretrained_cfg": {"tag": "digits", "mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 32, 32],
                                 "num_classes": 10, "first_conv": "conv1", "classifier": "fc"}}  # fmt: skip
    (files / "config.json").write_text(json.dumps(config))

    class Hub(http.server.BaseHTTPRequestHandler):
        asked: ClassVar[list] = []

        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.wfile.write(self.answer())

        def answer(self):
            self.asked.append(self.path)
            path = files / self.path.rsplit("/", 1)[-1]
            found = "/someone/teacher/resolve/" in self.path and path.is_file()
            content = path.read_bytes() if found else b""
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            if not found:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            return content

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    run = options(digits, tmp_path, "--teacher", "hf-hub:someone/teacher", "--experiment", "run")
    environment = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "h")}
    command = [sys.executable, str(ROOT / "train_distill.py"), *run, "--input-size", "3", "32", "32"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    server.shutdown()
    server.server_close()
    assert result.returncode == 0, result.stderr
    assert any(path.endswith("model.safetensors") for path in Hub.asked)
    assert rows(tmp_path / "run")[0]["train_kd_loss"] > 0


# --- what must not -----------------------------------------------------------------------------------------------


def test_no_such_model_or_teacher(digits, teacher, tmp_path):
    run = options(digits, tmp_path)
    refuse("no model named 'snn_resnet99_t4'; did you mean snn_resnet", [*run, "--model", "snn_resnet99_t4"])
    refuse("no model named 'resnet999'", [*run, "--teacher", "resnet999"])
    refuse(
        "no checkpoint file at 'nowhere.pth'", [*run, "--teacher", "resnet18", "--teacher-checkpoint", "nowhere.pth"]
    )
    refuse("unexpected keyword argument 'num_steps'", [*run, "--model", "resnet18", "--num-steps", "4"])
    assert not list(tmp_path.iterdir())


def test_teacher_of_other_classes(digits, tmp_path):
    path = tmp_path / "hundred.safetensors"
    save_file(timm.create_model("cifar_resnet20", num_classes=100).state_dict(), path)
    refuse("does not fit ResNet with 10 classes", options(digits, tmp_path / "out", *taught(path)))
    assert not (tmp_path / "out").exists()


def test_data_folder_missing_empty_or_wrong(digits, tmp_path):
    refuse("there is no such folder or file; give it with --data-dir", options(tmp_path / "no", tmp_path / "out"))
    run = options(digits, tmp_path / "out")
    at = run.index("--data-dir")
    refuse("dataset folder: there is no such folder or file; give it with --data-dir", [*run[:at], *run[at + 2 :]])
    (tmp_path / "empty").mkdir()
    refuse("Found 0 images", options(tmp_path / "empty", tmp_path / "out"))
    refuse("has 10 classes .*set --num-classes 10", options(digits, tmp_path / "out", "--num-classes", 5))
    shutil.copytree(digits / "train", tmp_path / "flat")
    refuse("which overlap: put them in sub-folders", options(tmp_path / "flat", tmp_path / "out"))
    shutil.copytree(digits / "train", tmp_path / "half/train")
    refuse("has no sub-folder 'validation'", options(tmp_path / "half", tmp_path / "out"))
    few = ("--dataset", "torch/image_folder", "--num-classes", 5)
    refuse("has 10 classes .*set --num-classes 10", options(digits, tmp_path / "out", *few))
    shutil.copytree(digits / "validation/0", tmp_path / "half/validation/zero")
    refuse("name different classes", options(tmp_path / "half", tmp_path / "out"))
    refuse("fewer images", options(digits, tmp_path / "out", "--batch-size", 100))
    assert not (tmp_path / "out").exists()


def test_samples_that_cannot_be_used(digits, tmp_path):
    shutil.copytree(digits, tmp_path / "data")
    path = sorted((tmp_path / "data/train/4").iterdir())[0]
    path.write_bytes(path.read_bytes()[:60])
    refuse(f"sample '{path}' cannot be read, mend or remove it", options(tmp_path / "data", tmp_path))
    run = options(tmp_path / "data", tmp_path, "--workers", 2)
    # From another process; the program ends, though its workers are deaf to signals.
    ended = subprocess.run(
        [sys.executable, "train_distill.py", *run], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.returncode == 2
    assert f"sample '{path}' cannot be read, mend or remove it: image file is truncated" in ended.stderr
    assert "killed by signal" not in ended.stderr and "Traceback" not in ended.stderr
    dataset = SeededDataset([("image", 3), ("image", 12), ("image", -1)], num_classes=10)
    assert dataset[0] == ("image", 3)
    for index, label in ((1, 12), (2, -1)):
        with pytest.raises(InputError, match=f"number {index} has label {label}, the model has 10 classes"):
            dataset[index]


def test_numbers_out_of_range(digits, tmp_path):
    for option in ("batch-size", "epochs", "grad-accum-steps", "checkpoint-hist", "log-interval"):
        refuse(f"--{option} must be at least 1, got 0", options(digits, tmp_path, f"--{option}", 0))
    for option, value, text in (
        ("seed", -1, r"in \[0, 2\*\*32\)"), ("seed", 2**32, r"in \[0, 2\*\*32\)"),
        ("workers", -1, "at least 0"), ("crop-padding", -1, "at least 0"),
        ("cooldown-epochs", -1, "at least 0"), ("warmup-epochs", -1, "at least 0"), ("mixup", -1, "at least 0"),
        ("in-chans", 0, "at least 1"), ("crop-pct", 0, "above 0"), ("decay-epochs", 0, "above 0"),
        ("std", 0, "above 0"), ("input-size", "3 0 8", "at least 1"), ("hflip", 2, r"in \[0, 1\]"),
        ("model-ema-decay", 2, r"in \[0, 1\]"),
        ("drop", 2, r"in \[0, 1\)"), ("smoothing", -0.5, r"in \[0, 1\)"), ("smoothing", 1.5, r"in \[0, 1\)"),
    ):  # fmt: skip
        extra = {"model-ema-decay": ("--model-ema",), "decay-epochs": ("--sched", "step")}.get(option, ())
        refuse(f"--{option} must be {text}, got", options(digits, tmp_path, *extra, f"--{option}", *str(value).split()))
    refuse("--interpolation or --crop-pct does not fit: .*foo", options(digits, tmp_path, "--interpolation", "foo"))
    refuse("read with 1 or 3 channels, the model takes 4: set --in-chans",
           [*options(digits, tmp_path), "--in-chans", "4", "--input-size", "4", "8", "8"])  # fmt: skip
    refuse("--model-ema-decay does nothing without", options(digits, tmp_path, "--model-ema-decay", 0.5))
    refuse("--mixup-prob does nothing without", options(digits, tmp_path, "--mixup-prob", 0.5))
    refuse("--roll does nothing without event frames", options(digits, tmp_path, "--roll", 2))


def test_a_folder_that_cannot_be_written_to(digits, tmp_path):
    if not Path("/sys/kernel").exists():
        pytest.skip("no folder on this machine that not even its administrator can write to")
    refuse("the run's folder '/sys/run' cannot be written to: .*; choose another --output",
           options(digits, "/sys", "--experiment", "run"))  # fmt: skip
    (tmp_path / "file").touch()
    refuse("cannot be written to: Not a directory", options(digits, tmp_path / "file", "--experiment", "run"))


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps(digits, tmp_path, steps):
    refuse(
        f"num_steps must be a whole number of at least 1, got {steps}", options(digits, tmp_path, "--num-steps", steps)
    )


def test_damaged_checkpoints(digits, tmp_path):
    train_distill.main(options(digits, tmp_path, "--epochs", 1, "--experiment", "run"))
    good = (tmp_path / "run/last.pth.tar").read_bytes()
    torn = tmp_path / "run/torn.pth.tar"
    for size in (0, 100, len(good) // 2):
        torn.write_bytes(good[:size])
        refuse("not a checkpoint of this script, or it is truncated", options(digits, tmp_path, "--resume", torn))
        refuse("cannot be read, it may be truncated", options(digits, tmp_path, "--initial-checkpoint", torn))
    torch.save([1], torn)
    refuse("holds a list, not weights by name", options(digits, tmp_path, "--initial-checkpoint", torn))
    weights = tmp_path / "torn.safetensors"
    save_file(timm.create_model("cifar_resnet20").state_dict(), weights)
    weights.write_bytes(weights.read_bytes()[:10_000])
    refuse("cannot be read, it may be truncated", options(digits, tmp_path, *taught(weights)))
    refuse("no checkpoint file at", options(digits, tmp_path, "--resume", tmp_path / "none.pth.tar"))
    assert (tmp_path / "run/last.pth.tar").read_bytes() == good


def test_a_run_is_never_overwritten(digits, teacher, tmp_path):
    train_distill.main(options(digits, tmp_path, "--epochs", 1, "--experiment", "run"))

    def contents():  # but for the log, which is open as long as this process
        return {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.name != "train.log"}

    before = contents()
    again = options(digits, tmp_path, "--epochs", 1, "--experiment", "run")
    last = tmp_path / "run/last.pth.tar"
    refuse("holds another run's checkpoints; resume it with --resume, or choose another --experiment", again)
    refuse("all of 1 epochs", options(digits, tmp_path, "--epochs", 1, "--resume", last))
    refuse("written with --teacher None, this run has cifar_resnet20",
           options(digits, tmp_path, "--epochs", 2, "--resume", last, *taught(teacher)))  # fmt: skip
    refuse("written with --model snn_resnet20_t2, this run has snn_resnet20_t1",
           [*options(digits, tmp_path, "--epochs", 2, "--resume", last), "--model", "snn_resnet20_t1"])  # fmt: skip
    refuse("written with --opt momentum, this run has adamw",
           options(digits, tmp_path, "--epochs", 2, "--resume", last, "--opt", "adamw"))  # fmt: skip
    assert contents() == before


def test_bad_config(digits, tmp_path):
    for text, match in [
        ("learning_rate: 0.1", "there is no option 'learning_rate'"),
        ("beta: quarter", r"beta must be one of \['uniform', 'halving'\], got 'quarter'"),
        ("- a\n- b", "must hold 'option: value' lines"),
        ("a: [", "cannot be read"),
        ("epochs: 1.5", "epochs must be one int, got 1.5"),
        ("train_interpolation: nosuch", "train_interpolation must be one of .*'bicubic'"),
        ("amp: 1", "amp must be true or false, got 1"),
        ("mean: 0.5", "mean must be a list of float, got 0.5"),
        ("branches: [stem, 1]", "branches must be one str, got"),
        ("model_kwargs: decay=1", "model_kwargs must be a mapping, got 'decay=1'"),
        ("1: 2", "there is no option 1"),
    ]:
        (tmp_path / "bad.yaml").write_text(text)
        refuse(match, ["-c", str(tmp_path / "bad.yaml")])
    refuse("cannot be read", ["-c", str(tmp_path / "none.yaml")])


def test_options_that_do_not_go_together(digits, teacher, tmp_path):
    run = options(digits, tmp_path)
    at = run.index("--crop-padding")
    plain = [*run[:at], *run[at + 2 :]]
    refuse("--cutout does nothing without --crop-padding", [*plain, "--cutout", "4"])
    refuse("--aa cifar10 needs --crop-padding", [*plain, "--aa", "cifar10"])
    refuse("--vflip does nothing with --crop-padding", [*run, "--vflip", "0.5"])
    refuse("--teacher-checkpoint does nothing without --teacher", [*run, "--teacher-checkpoint", "x.pth"])
    refuse("--alpha does nothing without --teacher", [*run, "--alpha", "0.7"])
    refuse("--alpha does nothing with --alpha-schedule",
           options(digits, tmp_path, *taught(teacher), "--alpha", "0.2", "--alpha-schedule", "rising"))  # fmt: skip
    refuse("--model-kwargs drop_rate=…: use --drop", [*run, "--model-kwargs", "drop_rate=0.1"])
    refuse("--grad-checkpointing does nothing for rate-based", [*run, "--grad-checkpointing"])
    refuse("--opt nonsense does not fit", [*run, "--opt", "nonsense"])
    refuse("--sched nonsense does not fit", [*run, "--sched", "nonsense"])
    refuse("--mean must be one value or 3, one per channel, got", [*run, "--mean", "0.1", "0.2"])
    for idle, without in (
        ("--amp-dtype float16", "--amp"), ("--wandb-project x", "--log-wandb"), ("--clip-mode agc", "--clip-grad"),
        ("--patience-epochs 3", "--sched plateau"), ("--decay-milestones 3", "--sched multistep"),
        ("--warmup-lr 0.1", "--warmup-epochs"), ("--remode const", "--reprob"),
    ):  # fmt: skip
        refuse(f"{idle.split()[0]} does nothing without {without}", [*run, *idle.split()])
    for words, refused in (
        ("--opt momentum --opt-eps 1e-8", "--opt-eps"), ("--opt adamw --momentum 0.8", "--momentum"),
        ("--decay-rate 0.5", "--decay-rate"), ("--decay-epochs 3", "--decay-epochs"),
        ("--sched none --min-lr 0.01", "--min-lr"), ("--sched none --warmup-epochs 2", "--warmup-epochs"),
        ("--sched none --cooldown-epochs 2", "--cooldown-epochs"), ("--sched step --min-lr 0.01", "--min-lr"),
        ("--sched plateau --decay-epochs 3", "--decay-epochs"),
    ):  # fmt: skip
        refuse(f"{refused} does nothing with", [*run, *words.split()])
    for words in (
        "--opt adamw --opt-eps 1e-7", "--sched step --decay-rate 0.5 --decay-epochs 3 --warmup-epochs 1",
        "--opt lars --momentum 0.8", "--sched plateau --decay-rate 0.5 --min-lr 0.01 --warmup-epochs 1",
    ):  # fmt: skip
        train_distill.check_options(train_distill.make_parser().parse_args(words.split()))
    for opt in ("adahessian", "lookahead_adahessian"):
        refuse(f"--opt {opt} needs second derivatives", [*run, "--opt", opt])
    refuse("--opt-betas: --opt adamw takes 2 numbers, got", [*run, "--opt", "adamw", "--opt-betas", "0.9"])
    refuse("--opt-betas: --opt momentum takes 0 numbers, got", [*run, "--opt-betas", "0.9", "0.999"])
    train_distill.check_options(
        train_distill.make_parser().parse_args(["--opt", "lookahead_adamw", "--opt-betas", "0.8", "0.9"])
    )
    refuse("--device nonsense does not fit", [*run, "--device", "nonsense"])
    refuse("--model-kwargs num_steps=…: use --num-steps", [*run, "--model-kwargs", "num_steps=3"])
    refuse("model 'snn_resnet20_t2'", [*run, "--model-kwargs", "decay=abc"])
    refuse("as many widths as depths, got depths", [*run, "--model", "snn_resnet18_t1"])
    refuse("policy 'original' is not for padded crops", options(digits, tmp_path, "--aa", "original"))
    refuse("branches: no '7'", options(digits, tmp_path, *taught(teacher), "--branches", "7"))
    refuse("alpha must lie in", options(digits, tmp_path, *taught(teacher), "--alpha", "2"))
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_an_error_is_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "train_distill.py"), "--data-dir", str(tmp_path / "none")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("train_distill.py: error: dataset folder at")
    assert result.stderr.count("\n") == 1
