"""The evaluator script."""

import csv
import json

import pytest
import timm
import torch
from conftest import ROOT
from running import TINY, options, refuse, rows
from safetensors.torch import save_file
from test_sync import torchrun
from timm.data import create_dataset, create_loader
from timm.utils import AverageMeter, accuracy

import train_distill
import validate


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("validate")
    train_distill.main(options(digits, folder, "--experiment", "run", "--model-ema"))
    return folder / "run"


@pytest.fixture
def measure(digits, trained):
    fixed = f"--data-dir {digits} --model snn_resnet20_t2 --model-kwargs {TINY} --input-size 3 8 8 --workers 0"
    return [*fixed.split(), "--device", "cpu", "--checkpoint", str(trained / "last.pth.tar")]


def test_several_numbers_of_steps_in_one_go(trained, measure, tmp_path):
    validate.main([*measure, "--num-steps", "1", "2", "6", "--results-file", str(tmp_path / "r.csv")])
    with (tmp_path / "r.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["num_steps"] for row in table] == ["1", "2", "6"]
    trained_at_two = rows(trained)[0]
    for key in ("top1", "top5", "loss", "rate_stem", "rate_layer3"):
        assert float(table[1][key]) == pytest.approx(trained_at_two[f"eval_{key}"])
    assert all(float(row["images_per_s"]) > 0 and row["images"] == "40" for row in table)
    assert len({row["loss"] for row in table}) == 3


def test_images_are_prepared_as_in_the_run(digits, tmp_path):
    """What the run was told about its images need not be told again; what is told anew is taken."""
    told = ("--mean", 0.1, 0.2, 0.3, "--std", 0.3, 0.3, 0.4)
    train_distill.main(options(digits, tmp_path, "--experiment", "run", *told))
    fixed = f"--data-dir {digits} --model snn_resnet20_t2 --workers 0 --device cpu"  # of 8x8 images, as it was
    measure = [*fixed.split(), "--checkpoint", str(tmp_path / "run" / "last.pth.tar"), "--results-file"]
    losses = []
    for number, more in enumerate(([], ["--mean", "0.5"])):
        validate.main([*measure, str(tmp_path / f"{number}.json"), *more])
        losses.append(json.loads((tmp_path / f"{number}.json").read_text())["results"][0]["loss"])
    assert losses[0] == pytest.approx(rows(tmp_path / "run")[0]["eval_loss"])
    assert losses[1] != pytest.approx(losses[0])


def test_the_first_pass_has_the_layout_of_the_others(measure, monkeypatch):
    """Kernels are compiled in it."""
    made, layouts = validate.create_model, []

    def create_model(*args, **kwargs):
        model = made(*args, **kwargs)
        layout = dict(memory_format=torch.channels_last)
        model.register_forward_pre_hook(lambda _, images: layouts.append(images[0].is_contiguous(**layout)))
        return model

    monkeypatch.setattr(validate, "create_model", create_model)
    validate.main([*measure, "--channels-last", "--batch-size", "20"])
    assert layouts == [True] * 3


@pytest.mark.slow
def test_two_processes_write_one_result(measure, tmp_path):
    measured = []
    for name, start in (("one", validate.main), ("two", lambda arguments: torchrun(ROOT / "validate.py", *arguments))):
        result = start([*measure, "--results-file", str(tmp_path / f"{name}.json")])
        measured.append(json.loads((tmp_path / f"{name}.json").read_text())["results"][0]["loss"])
    assert measured[1] == pytest.approx(measured[0])
    assert result.stderr.count("top-1") == 1
    assert "Warning" not in result.stderr


def test_json_says_with_what(measure, trained, tmp_path):
    validate.main([*measure, "--use-ema", "--results-file", str(tmp_path / "r.json")])
    found = json.loads((tmp_path / "r.json").read_text())
    (result,) = found["results"]
    assert result["num_steps"] == 2
    assert result["top1"] == pytest.approx(rows(trained)[0]["eval_ema_top1"])
    assert found["versions"]["torch"] == torch.__version__


def test_averaged_weights_are_named(measure, trained, caplog):
    assert "best ema_top1" in (trained / "train.log").read_text()
    best = json.loads((trained / "summary.json").read_text())["best"]
    assert (best["averaged"], best["value"]) == (True, rows(trained)[0]["eval_ema_top1"])
    with caplog.at_level("INFO"):
        validate.main([*measure, "--use-ema"])
        assert "--use-ema" not in caplog.text
        validate.main(measure)
    assert "has averaged weights, too: --use-ema" in caplog.text


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_an_ann_gets_the_numbers_that_timm_gives_it(digits, tmp_path, name):
    """timm's own dataset, loader and accuracy, put together as its validate.py does."""
    model = timm.create_model(name, num_classes=10).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    dataset = create_dataset("", root=str(digits), split="validation")
    cfg = model.pretrained_cfg
    loader = create_loader(
        dataset, (3, 64, 64), 16, mean=cfg["mean"], std=cfg["std"], crop_pct=0.9, interpolation="bicubic",
        num_workers=0, device=torch.device("cpu"), persistent_workers=False,
    )  # fmt: skip
    top1, top5, loss = AverageMeter(), AverageMeter(), AverageMeter()
    with torch.no_grad():
        for images, target in loader:
            logits = model(images)
            one, five = accuracy(logits, target, topk=(1, 5))
            top1.update(one.item(), len(images))
            top5.update(five.item(), len(images))
            loss.update(torch.nn.functional.cross_entropy(logits, target).item(), len(images))
    arguments = f"--data-dir {digits} --model {name} --num-classes 10 --checkpoint {tmp_path}/w.safetensors -b 16"
    config = "--input-size 3 64 64 --crop-pct 0.9 --interpolation bicubic --workers 1 --device cpu --results-file"
    validate.main([*arguments.split(), *config.split(), str(tmp_path / "r.json")])
    (result,) = json.loads((tmp_path / "r.json").read_text())["results"]
    assert (result["top1"], result["top5"]) == pytest.approx((top1.avg, top5.avg))
    assert result["loss"] == pytest.approx(loss.avg, rel=1e-5)


def test_bad_input(measure, tmp_path):
    ann = measure[: measure.index("--checkpoint")]
    refuse("nothing to measure", ann, validate.main)
    refuse("--event-steps does nothing without", [*measure, "--event-steps", "4"], validate.main)
    refuse("has no sub-folder 'vaildation', .* it has train, validation", [*measure, "--split", "vaildation"],
           validate.main)  # fmt: skip
    refuse("must end in .csv or .json, got 'r.txt'", [*measure, "--results-file", "r.txt"], validate.main)
    (tmp_path / "file").touch()
    nowhere = ["--results-file", str(tmp_path / "file" / "r.csv")]
    refuse("file/r.csv' cannot be written .* name another file",  # which is said before anything is measured
           [*measure, *nowhere, "--split", "vaildation"], validate.main)  # fmt: skip
    assert not list(tmp_path.glob(".*.tmp"))
    refuse("--batch-size must be at least 1, got 0", [*measure, "--batch-size", "0"], validate.main)
    refuse("--workers must be at least 0, got -1", [*measure, "--workers", "-1"], validate.main)
    refuse("--interpolation or --crop-pct does not fit", [*measure, "--interpolation", "foo"], validate.main)
    refuse("num_steps must be a whole number of at least 1, got 0", [*measure, "--num-steps", "2", "0"], validate.main)
    for words, said in (
        ("--std 0", "--std must be above 0"), ("--crop-pct 0", "--crop-pct must be above 0"),
        ("--input-size 3 0 8", "--input-size must be at least 1"), ("--input-size 0 8 8", "in_chans must be at"),
        ("--in-chans -1", "in_chans must be at least 1, got -1"),
    ):  # fmt: skip
        refuse(said, [*measure, *words.split()], validate.main)
    plain = tmp_path / "plain.safetensors"
    save_file(timm.create_model("snn_resnet20_t2", depths=(1, 1, 1)).state_dict(), plain)
    refuse("has no averaged weights", [*ann, "--checkpoint", str(plain), "--use-ema"], validate.main)
