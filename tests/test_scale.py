"""From a laptop to many GPUs: processes, accumulation, mixed precision, compilation. Processes here use gloo."""

import os
import signal
import subprocess
import sys
import time

import pytest
import timm
import torch
from conftest import ROOT
from PIL import Image
from running import assert_same_state, load, options, refuse, rows, taught
from test_sync import torchrun
from torch.utils._python_dispatch import TorchDispatchMode

import train_distill

TRAIN = ROOT / "train_distill.py"


@pytest.mark.slow
def test_two_processes_train_as_one_does(digits, teacher, tmp_path):
    """The same images with the same augmentation in the same steps, whoever has them."""
    extra = (*taught(teacher), "--epochs", 2, "--lr", 0.02, "--aa", "cifar10", "--cutout", 2)
    train_distill.main(options(digits, tmp_path, *extra, "--batch-size", 40, "--experiment", "one"))
    two = options(digits, tmp_path, *extra, "--batch-size", 20, "--experiment", "two", "--sync-bn")
    assert "FutureWarning" not in torchrun(TRAIN, *two).stderr
    ours, theirs = rows(tmp_path / "two"), rows(tmp_path / "one")
    for a, b in zip(ours, theirs, strict=True):
        for key in ("train_loss", "train_kd_loss", "train_branch_1_loss", "eval_loss", "eval_similarity_2"):
            assert a[key] == pytest.approx(b[key], abs=1e-4), key
        assert a["eval_rate_layer1"] == pytest.approx(b["eval_rate_layer1"], abs=1e-3)
    assert len(load(tmp_path / "two/last.pth.tar")["rng"]) == 2

    # and the run of two goes on in one, or in two without shared statistics
    for name, start in (("one", train_distill.main), ("two", lambda arguments: torchrun(TRAIN, *arguments))):
        more = options(digits, tmp_path, *extra, "--experiment", "two", "--resume", "auto", "--model-ema")
        start([*more, "--epochs", "3" if name == "one" else "4", "--batch-size", "20"])
    assert [row["epoch"] for row in rows(tmp_path / "two")] == [0, 1, 2, 3]


@pytest.mark.slow
def test_processes_stop_together_and_go_on(digits, tmp_path):
    run = options(digits, tmp_path, "--epochs", 60, "--experiment", "run", "--sync-bn", "--batch-size", 10)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(TRAIN), *run]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run/last.pth.tar").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    stderr = process.communicate(timeout=100)[1]
    assert process.returncode != 0
    assert "stopped by SIGTERM in epoch" in stderr
    progress = load(tmp_path / "run/last.pth.tar")["progress"]
    assert progress["samples"] % 20 == 0
    again = options(digits, tmp_path, "--epochs", progress["epoch"] + 1, "--batch-size", 20)
    train_distill.main([*again, "--experiment", "run", "--resume", "auto"])
    assert rows(tmp_path / "run")[-1]["epoch"] == progress["epoch"]


DIES = """
import os, sys
sys.path.insert(0, sys.argv.pop(1))
import train_distill
from snnzoo.checkpoints import Checkpoints

save = Checkpoints.save

def save_and_die(self, progress):
    save(self, progress)
    self._processes.gather(None)  # the first one has written
    if progress.updates == 3:
        os._exit(1)

Checkpoints.save = save_and_die
train_distill.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_processes_keep_their_own_statistics_inside_an_epoch(digits, tmp_path):
    """Without --sync-bn each normalises by its own images, and the running statistics become one at the epoch's end."""
    (tmp_path / "dies.py").write_text(DIES)
    run = options(digits, tmp_path, "--batch-size", 5, "--recovery-interval", 1, "--model-ema", "--experiment")
    torchrun(TRAIN, *run, "whole")
    assert torchrun(tmp_path / "dies.py", ROOT, *run, "cut", check=False).returncode
    assert load(tmp_path / "cut/last.pth.tar")["progress"]["updates"] == 3
    torchrun(TRAIN, *run, "cut", "--resume", "auto")
    assert_same_state(*(load(tmp_path / name / "last.pth.tar") for name in ("cut", "whole")))


@pytest.mark.slow
def test_when_one_process_fails_all_do(digits, tmp_path):
    """The second process cannot read an image; the first has all it needs and would wait for it for ever."""
    broken = tmp_path / "digits"
    for split, count in (("train", 8), ("validation", 2)):
        for label in range(10):
            (broken / split / str(label)).mkdir(parents=True)
            for index in range(count):
                Image.new("L", (8, 8)).save(broken / split / str(label) / f"{index}.png")
    (broken / "train/3/5.png").write_bytes(b"no image")
    begun = time.perf_counter()
    result = torchrun(TRAIN, *options(broken, tmp_path, "--experiment", "run", "--batch-size", 10), check=False)
    assert result.returncode != 0
    assert time.perf_counter() - begun < 100
    errors = [line for line in result.stderr.splitlines() if line.startswith("train_distill.py: error: ")]
    assert any("train/3/5.png' cannot be read, mend or remove it" in line for line in errors)

    result = torchrun(TRAIN, *options(digits, "/sys", "--experiment", "run"), check=False)
    assert result.returncode != 0
    assert "the run's folder '/sys/run' cannot be written to" in result.stderr


def test_accumulation_is_exact_without_batch_statistics(digits, tmp_path):
    """A network with layer norm: four batches of ten, or one of forty; and a last step of fewer batches."""
    fixed = ("--model", "test_convnext", "--num-classes", 10, "--input-size", 3, 32, 32, "--opt", "sgd", "--lr", 0.01)
    run = options(digits, tmp_path, *fixed)
    at = run.index("--model-kwargs")
    run = [*run[:at], *run[at + 2 :]]
    train_distill.main([*run, "--batch-size", "40", "--experiment", "whole"])
    train_distill.main([*run, "--batch-size", "10", "--grad-accum-steps", "4", "--experiment", "parts"])
    whole, parts = (load(tmp_path / name / "last.pth.tar") for name in ("whole", "parts"))
    assert whole["progress"]["updates"] == parts["progress"]["updates"] == 2
    torch.testing.assert_close(parts["state_dict"], whole["state_dict"], rtol=1e-4, atol=1e-6)
    train_distill.main([*run, "--batch-size", "10", "--grad-accum-steps", "5", "--experiment", "uneven"])
    assert load(tmp_path / "uneven/last.pth.tar")["progress"]["updates"] == 2  # five batches, then three


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_keeps_membranes_and_losses_in_float32(digits, teacher, tmp_path, monkeypatch, dtype):
    from snnzoo import neurons

    seen = set()
    step = neurons.lif_step

    def watch(current, v, params):
        seen.add((current.dtype, None if v is None else v.dtype))
        return step(current, v, params)

    monkeypatch.setattr(neurons, "lif_step", watch)
    extra = ("--amp", "--amp-dtype", dtype, "--grad-accum-steps", 2, "--clip-grad", 1.0, "--model-ema")
    train_distill.main(options(digits, tmp_path, *taught(teacher), *extra, "--experiment", "run"))
    assert seen and all(v in (None, torch.float32) for _, v in seen)
    state = load(tmp_path / "run/last.pth.tar")
    assert ("amp_scaler" in state) == (dtype == "float16")
    (row,) = rows(tmp_path / "run")
    loss = row["train_loss"]
    assert loss != float(torch.tensor(loss, dtype=torch.float32).to(getattr(torch, dtype)))  # finer than the dtype


def test_training_waits_for_the_device_only_to_log(digits, teacher, tmp_path, monkeypatch):
    """On a GPU every scalar that is read stops the host; the number of reads may not grow with the steps."""

    class CountReads(TorchDispatchMode):
        reads = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.reads += function is torch.ops.aten._local_scalar_dense.default
            return function(*args, **(kwargs or {}))

    found = []
    train_one_epoch = train_distill.train_one_epoch

    def counted(*args, **kwargs):
        with CountReads() as mode:
            train_one_epoch(*args, **kwargs)
        found.append(mode.reads)

    monkeypatch.setattr(train_distill, "train_one_epoch", counted)
    extra = (*taught(teacher), "--model-ema", "--amp", "--workers", 1)  # a worker, so that loading is elsewhere
    for batch_size in (40, 8):  # two steps, ten steps
        train_distill.main(options(digits, tmp_path, *extra, "--batch-size", batch_size, "--experiment", batch_size))
    assert found[0] == found[1]


@pytest.mark.slow
def test_compiled_training_forward(digits, teacher, tmp_path):
    """Traced by the compiler and run without its C++ back end; the numbers are those of the uncompiled run."""
    for name, extra in (("plain", ()), ("compiled", ("--torchcompile", "aot_eager"))):
        run = options(digits, tmp_path, *taught(teacher), *extra, "--experiment", name, "--lr", 0.01)
        train_distill.main(run)
    plain, compiled = (rows(tmp_path / name)[0] for name in ("plain", "compiled"))
    assert compiled["train_loss"] == pytest.approx(plain["train_loss"], abs=1e-4)
    assert (
        load(tmp_path / "compiled/last.pth.tar")["state_dict"].keys()
        == load(tmp_path / "plain/last.pth.tar")["state_dict"].keys()
    )
    refuse("--torchcompile nonsense .*does not fit", options(digits, tmp_path, "--torchcompile", "nonsense"))
    mode = ("--torchcompile", "--torchcompile-mode", "nonsense")
    refuse("--torchcompile-mode does not fit", options(digits, tmp_path, *mode))
    refuse("--torchcompile-mode does nothing without", options(digits, tmp_path, *mode[1:]))


def test_gradient_checkpointing_of_an_ann(digits, tmp_path):
    plain = options(digits, tmp_path, "--model", "cifar_resnet20", "--lr", 0.01)
    train_distill.main([*plain, "--experiment", "plain"])
    train_distill.main([*plain, "--experiment", "checkpointed", "--grad-checkpointing"])
    a, b = (load(tmp_path / name / "last.pth.tar")["state_dict"] for name in ("plain", "checkpointed"))
    torch.testing.assert_close({k: v for k, v in a.items() if "running" not in k and "tracked" not in k},
                               {k: v for k, v in b.items() if "running" not in k and "tracked" not in k})  # fmt: skip


IMAGENET = [name for name in ("snn_sew_resnet34_t4", "snn_preact_resnet34_t4") if name in timm.list_models("snn_*")]


@pytest.mark.slow
@pytest.mark.parametrize("model", IMAGENET or ["snn_resnet18_t1"])
def test_imagenet_shapes_in_two_processes_and_bfloat16(tmp_path, model):
    """A few steps as the ImageNet recipes take them, on small images in an ImageNet-shaped folder."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    for split, count in (("train", 8), ("val", 4)):
        for label in ("n01440764", "n01443537"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for index in range(count):
                pixels = torch.randint(256, (70, 80, 3), dtype=torch.uint8).numpy()
                Image.fromarray(pixels).save(tmp_path / "data" / split / label / f"{label}_{index}.JPEG")
    save_file(timm.create_model("resnet34", num_classes=2).state_dict(), tmp_path / "w.safetensors")
    stem = ["--model-kwargs", "stem=imagenet"] if model == "snn_resnet18_t1" else []
    run = (
        f"--data-dir {tmp_path}/data --model {model} --num-classes 2 --input-size 3 64 64 --batch-size 4 --epochs 1 "
        f"--teacher resnet34 --teacher-checkpoint {tmp_path}/w.safetensors --amp --sync-bn --workers 1 --device cpu "
        f"--channels-last --color-jitter 0 --aa rand-m9-mstd0.5 --output {tmp_path} --experiment run"
    )
    torchrun(TRAIN, *run.split(), *stem)
    (row,) = rows(tmp_path / "run")
    assert {"eval_top1_1", "eval_top1_2", "eval_top1_3"} <= row.keys()
