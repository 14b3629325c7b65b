"""No crash may cost more than what came after the last checkpoint."""

import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from running import TIMINGS, assert_same_state, load, options, refuse, rows, taught

import train_distill
from snnzoo import InputError, runs
from snnzoo.interruption import Interruption, Stopped
from snnzoo.records import Records


@pytest.fixture
def whole(digits, teacher, tmp_path):
    """Options of a short run with everything that is random in it, and where it went uninterrupted."""
    extra = (
        *taught(teacher), "--epochs", 3, "--model-ema", "--checkpoint-hist", 9, "--drop", 0.2, "--mixup", 0.5,
        "--cutmix", 0.5, "--recovery-interval", 1, "--aa", "cifar10", "--reprob", 0.5,
    )  # fmt: skip
    run = options(digits, tmp_path, *extra)
    train_distill.main([*run, "--experiment", "whole"])
    return run, tmp_path / "whole"


class Killed(BaseException):
    """In place of kill -9, which benchmarks/kill.py does for real."""


def die():
    raise Killed


def die_after(monkeypatch, updates):
    """Let the run die once ``updates`` optimizer steps are done."""
    from snnzoo.checkpoints import Checkpoints

    save = Checkpoints.save

    def save_and_die(self, progress):
        save(self, progress)
        if progress.updates == updates and progress.samples:
            raise Killed

    monkeypatch.setattr(Checkpoints, "save", save_and_die)


@pytest.mark.slow
def test_a_run_that_died_inside_an_epoch_ends_as_if_it_had_not(whole, monkeypatch, tmp_path):
    run, folder = whole
    for updates in (1, 6, 12):  # after the first of four steps, in the middle, before the last validation
        name = f"cut{updates}"
        with monkeypatch.context() as patch, pytest.raises(Killed):
            die_after(patch, updates)
            train_distill.main([*run, "--experiment", name])
        assert load(tmp_path / name / "last.pth.tar")["progress"]["updates"] == updates
        train_distill.main([*run, "--experiment", name, "--resume", "auto", "--workers", "2"])
        assert_same_state(load(tmp_path / name / "last.pth.tar"), load(folder / "last.pth.tar"))
        assert rows(tmp_path / name, TIMINGS) == rows(folder, TIMINGS)


@pytest.mark.parametrize("distilled", [True, False])
def test_a_run_goes_on_from_any_epoch(digits, teacher, tmp_path, distilled):
    extra = ("--epochs", 3, "--model-ema", "--checkpoint-hist", 9, *(taught(teacher) if distilled else ()))
    train_distill.main(options(digits, tmp_path, *extra, "--experiment", "whole"))
    cut = tmp_path / "cut"
    cut.mkdir()
    shutil.copy(tmp_path / "whole/checkpoint-0.pth.tar", cut / "last.pth.tar")
    shutil.copy(tmp_path / "whole/summary.csv", cut)
    train_distill.main(options(digits, tmp_path, *extra, "--resume", cut / "last.pth.tar"))
    assert_same_state(load(cut / "last.pth.tar"), load(tmp_path / "whole/last.pth.tar"))
    assert rows(cut, TIMINGS) == rows(tmp_path / "whole", TIMINGS)


@pytest.mark.parametrize("sched", [("plateau", "--patience-epochs", 0), ("step", "--decay-epochs", 1)])
def test_the_schedule_goes_on(digits, tmp_path, sched):
    extra = ("--epochs", 4, "--sched", *sched, "--checkpoint-hist", 9)
    train_distill.main(options(digits, tmp_path, *extra, "--experiment", "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in ("last", "previous", "checkpoint-3", "checkpoint-2"):
        (tmp_path / f"cut/{name}.pth.tar").unlink()
    train_distill.main(options(digits, tmp_path, *extra, "--experiment", "cut", "--resume", "auto"))
    rates = [row["lr"] for row in rows(tmp_path / "whole")]
    assert rates == [row["lr"] for row in rows(tmp_path / "cut")]
    assert rates[-1] < rates[0]


@pytest.mark.parametrize("metric", ["top1", "loss"])
def test_a_plateau_follows_the_options_of_the_run_that_goes_on(digits, tmp_path, judge, metric):
    judge(epoch0=90.0, epoch1=80.0, epoch2=70.0)
    run = options(digits, tmp_path, "--experiment", "run", "--sched", "plateau")
    train_distill.main([*run, "--epochs", "2"])
    new = ("--patience-epochs", "5", "--decay-rate", "0.5", "--eval-metric", metric)
    train_distill.main([*run, "--epochs", "3", "--resume", "auto", *new])
    state = load(tmp_path / "run/last.pth.tar")["scheduler"]
    mode, best, bad = {"top1": ("max", 90, 2), "loss": ("min", 0, 0)}[metric]
    assert (state["patience"], state["factor"], state["mode"]) == (5, 0.5, mode)
    assert (state["best"], state["num_bad_epochs"], state["last_epoch"]) == (best, bad, 3)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_the_run(digits, teacher, tmp_path, signum):
    run = options(digits, tmp_path, *taught(teacher), "--epochs", 40, "--experiment", "run", "--workers", "1")
    environment = os.environ | {"SNNZOO_BACKEND": "eager", "OMP_NUM_THREADS": "1"}
    # a test runner in the background hands SIGINT down as ignored
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train_distill.py"), *run], env=environment, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    while not (tmp_path / "run/last.pth.tar").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signum)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signum, stderr
    assert f"stopped by {signal.Signals(signum).name} in epoch" in stderr
    assert "Traceback" not in stderr
    progress = load(tmp_path / "run/last.pth.tar")["progress"]
    assert progress["epoch"] < 40
    again = options(digits, tmp_path, *taught(teacher), "--epochs", progress["epoch"] + 1)
    train_distill.main([*again, "--resume", str(tmp_path / "run")])
    assert rows(tmp_path / "run")[-1]["epoch"] == progress["epoch"]


def test_a_stop_waits_for_the_next_check_and_a_second_one_does_not():
    from snnzoo.processes import Processes

    before = signal.getsignal(signal.SIGTERM)
    with Interruption(Processes("cpu")) as interruption:
        interruption.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGTERM"):
            interruption.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_damaged_checkpoint_gives_way_to_the_one_before(whole, tmp_path, capfd):
    run, folder = whole
    for name, damage in (("torn", lambda data: data[: len(data) // 2]), ("flipped", flip_a_byte)):
        cut = tmp_path / name
        shutil.copytree(folder, cut)  # copies, no links
        (cut / "last.pth.tar").write_bytes(damage((cut / "last.pth.tar").read_bytes()))
        train_distill.main([*run, "--experiment", name, "--resume", "auto"])
        said = capfd.readouterr().err
        assert "last.pth.tar' is not a checkpoint of this script, or it is truncated" in said
        assert "going on from the one before: " in said and "previous.pth.tar" in said
        assert_same_state(load(cut / "last.pth.tar"), load(folder / "last.pth.tar"))
    for path in cut.glob("*.pth.tar"):
        path.write_bytes(b"nothing")
    refuse("checkpoint-0.pth.tar' is not a checkpoint", [*run, "--experiment", name, "--resume", "auto"])


def flip_a_byte(data):
    """In the middle of the largest tensor."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        tensor = archive.read(max(archive.infolist(), key=lambda part: part.file_size))
    at = data.index(tensor) + len(tensor) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_a_full_disk_leaves_the_checkpoint_before(digits, tmp_path):
    """The limit on a file's size stands in for the disk's end: the write fails in the same place."""
    import resource

    run = options(digits, tmp_path, "--epochs", 2)
    environment = os.environ | {"SNNZOO_BACKEND": "eager"}

    def on_a_full_disk(*extra):
        command = [sys.executable, str(ROOT / "train_distill.py"), *run, *extra]
        result = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit, env=environment)
        assert result.returncode == 2, result.stderr
        return result.stderr

    train_distill.main([*run, "--epochs", "1", "--experiment", "run"])
    before = (tmp_path / "run/last.pth.tar").read_bytes()

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    said = on_a_full_disk("--resume", str(tmp_path / "run"))
    assert "checkpoint-1.pth.tar' could not be written: File too large; make room, then --resume" in said
    assert "make room" in (said := on_a_full_disk("--experiment", "new")) and "--resume" not in said
    assert (tmp_path / "run/last.pth.tar").read_bytes() == before
    assert not list((tmp_path / "run").glob(".*tmp"))
    train_distill.main([*run, "--resume", str(tmp_path / "run")])


def test_a_full_disk_is_one_line_wherever_it_is_met(tmp_path, capsys):
    from snnzoo.files import write_atomically
    from snnzoo.scripting import run

    (tmp_path / "file").write_text("old")
    with pytest.raises(SystemExit) as ended:
        run(lambda: Path("/dev/full").write_text("new"), "script")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "script: error: [Errno 28] No space left on device\n"
    with pytest.raises(FileNotFoundError):  # anything else is a bug, and shows where
        run(lambda: (tmp_path / "none").read_text(), "script")
    write_atomically(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_that_fails_takes_its_folders_along(tmp_path):
    from snnzoo.files import new_file

    (tmp_path / "kept").mkdir()
    for path in ("kept/new/newer/file", "kept/file"):
        with pytest.raises(Killed), new_file(tmp_path / path) as temporary:
            temporary.write_text("half")
            raise Killed
    assert [path.name for path in tmp_path.rglob("*")] == ["kept"]
    with new_file(tmp_path / "new/file") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "new/file").read_text() == "whole"


def test_the_best_is_in_place_before_the_last_says_so(digits, tmp_path, monkeypatch):
    """A run that dies between the two has lost neither."""
    from snnzoo import checkpoints

    link = checkpoints._link
    monkeypatch.setattr(checkpoints, "_link", lambda a, b: die() if b.name == "last.pth.tar" else link(a, b))
    run = options(digits, tmp_path, "--epochs", 2, "--experiment", "run", "--resume", "auto")
    with pytest.raises(Killed):
        train_distill.main(run)
    monkeypatch.setattr(checkpoints, "_link", link)
    assert load(tmp_path / "run/model_best.pth.tar")["progress"]["best_epoch"] == 0
    train_distill.main(run)
    best = load(tmp_path / "run/last.pth.tar")["progress"]["best_epoch"]
    assert load(tmp_path / "run/model_best.pth.tar")["epoch"] == best


def test_the_last_epochs_and_the_best_are_kept(digits, tmp_path):
    train_distill.main(options(digits, tmp_path, "--epochs", 5, "--checkpoint-hist", 2, "--experiment", "run"))
    kept = {path.name for path in (tmp_path / "run").glob("*.pth.tar")}
    assert kept == {f"{name}.pth.tar" for name in ("last", "previous", "model_best", "checkpoint-3", "checkpoint-4")}
    best = max(rows(tmp_path / "run"), key=lambda row: row["eval_top1"])["epoch"]
    assert load(tmp_path / "run/model_best.pth.tar")["epoch"] == best


@pytest.fixture
def judge(monkeypatch):
    """Give the epochs of runs the top-1 that a test wants; of the averaged weights, one more."""

    def judge(**by_epoch):
        def validate(args, task, *others):
            top1 = by_epoch[f"epoch{progress.epoch}"]
            return {"loss": 0.0, "top1": top1} | ({"ema_top1": top1 + 1} if task.has_ema() else {})

        monkeypatch.setattr(train_distill, "validate", validate)

    from snnzoo.checkpoints import Progress

    progress, begin = Progress(), train_distill.train_one_epoch

    def follow(args, training, batches, forward, processes, now, *others):
        progress.epoch = now.epoch
        begin(args, training, batches, forward, processes, now, *others)

    monkeypatch.setattr(train_distill, "train_one_epoch", follow)
    return judge


def test_a_branch_brings_its_best_along(digits, tmp_path, judge):
    judge(epoch0=20.0, epoch1=30.0, epoch2=10.0)
    run = options(digits, tmp_path, "--epochs", 2)
    train_distill.main([*run, "--experiment", "a"])
    train_distill.main([*run, "--epochs", "3", "--resume", str(tmp_path / "a"), "--experiment", "e"])
    best = load(tmp_path / "e/model_best.pth.tar")
    assert (best["epoch"], load(tmp_path / "e/last.pth.tar")["progress"]["best_epoch"]) == (1, 1)


def test_the_best_goes_back_with_the_run(digits, tmp_path, judge):
    run = options(digits, tmp_path, "--epochs", 3, "--experiment", "run")
    judge(epoch0=20.0, epoch1=30.0, epoch2=25.0)
    train_distill.main(run)
    judge(epoch1=10.0, epoch2=15.0)
    train_distill.main([*run, "--resume", str(tmp_path / "run/checkpoint-0.pth.tar")])
    best, last = (load(tmp_path / f"run/{name}.pth.tar") for name in ("model_best", "last"))
    assert (best["epoch"], last["progress"]["best_epoch"], last["progress"]["best_metric"]) == (0, 0, 20)
    # back to an epoch that was not the best, whose weights are lost
    for name in ("model_best", "checkpoint-0"):
        (tmp_path / f"run/{name}.pth.tar").unlink()
    train_distill.main([*run, "--resume", str(tmp_path / "run/checkpoint-1.pth.tar")])
    assert load(tmp_path / "run/model_best.pth.tar")["epoch"] == 2


def test_a_run_that_went_back_and_died_has_left_nothing_of_what_it_abandoned(digits, tmp_path, judge, monkeypatch):
    run = options(digits, tmp_path, "--epochs", 4, "--experiment", "run", "--checkpoint-hist", 9)
    judge(epoch0=10.0, epoch1=20.0, epoch2=30.0, epoch3=25.0)
    train_distill.main(run)
    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(train_distill, "fit", lambda *_: die())
            train_distill.main([*run, "--resume", str(tmp_path / "run/checkpoint-0.pth.tar")])
        assert not list((tmp_path / "run").glob(".*.tmp"))
    judge(epoch1=5.0, epoch2=6.0, epoch3=7.0)
    train_distill.main([*run, "--resume", "auto"])
    assert [row["eval_top1"] for row in rows(tmp_path / "run")] == [10, 5, 6, 7]
    assert load(tmp_path / "run/model_best.pth.tar")["epoch"] == 0


def test_the_best_is_found_under_its_epochs_name(digits, tmp_path, judge):
    run = options(digits, tmp_path, "--epochs", 3, "--checkpoint-hist", 9)
    judge(epoch0=10.0, epoch1=30.0, epoch2=20.0, epoch3=15.0)
    train_distill.main([*run, "--experiment", "run"])
    for name in ("run", "branch"):
        best = tmp_path / "run/model_best.pth.tar"
        best.unlink()  # it has another name
        shutil.copy(tmp_path / "run/checkpoint-0.pth.tar", best)  # as after going back
        again = ("--epochs", "4", "--resume", str(tmp_path / "run/checkpoint-2.pth.tar"), "--experiment", name)
        train_distill.main([*run, *again])
        assert load(tmp_path / name / "model_best.pth.tar")["epoch"] == 1


@pytest.mark.parametrize("averaged_first", [True, False])
def test_averaged_weights_are_not_compared_with_others(digits, tmp_path, judge, averaged_first):
    judge(epoch0=50.0, epoch1=40.0)
    run = options(digits, tmp_path, "--experiment", "run")
    flags = [["--model-ema"], []] if averaged_first else [[], ["--model-ema"]]
    train_distill.main([*run, *flags[0]])
    train_distill.main([*run, *flags[1], "--epochs", "2", "--resume", "auto"])
    assert load(tmp_path / "run/model_best.pth.tar")["progress"]["best_epoch"] == 1


def test_a_metric_that_is_no_number_is_no_best():
    from snnzoo.checkpoints import Progress

    progress = Progress()
    progress.judge(float("nan"), decreasing=True)
    progress.next_epoch()
    progress.judge(0.3, decreasing=True)
    assert (progress.best_metric, progress.best_epoch) == (0.3, 1)


def test_auto_begins_where_nothing_has_begun(digits, tmp_path):
    train_distill.main(options(digits, tmp_path, "--experiment", "run", "--resume", "auto"))
    assert rows(tmp_path / "run")[0]["epoch"] == 0
    refuse("--resume auto .* name it with --experiment", options(digits, tmp_path, "--resume", "auto"))
    refuse("--resume: no checkpoint file at", options(digits, tmp_path, "--resume", tmp_path))


def test_a_checkpoint_that_is_not_there_is_not_another_one(digits, tmp_path):
    """And nothing is made for it: no folder, no log."""
    train_distill.main(options(digits, tmp_path, "--experiment", "run"))
    before = sorted(tmp_path.rglob("*"))
    there = "there is checkpoint-0.pth.tar, last.pth.tar, model_best.pth.tar"
    for what, said in (
        ("run/checkpoint-4.pth.tar", there), ("run/model_bst.pth.tar", there), ("rnu", "there is no checkpoint"),
        ("rnu/last.pth.tar", "there is no checkpoint"),
    ):  # fmt: skip
        for more in ((), ("--experiment", "other")):
            run = options(digits, tmp_path, "--epochs", 2, "--resume", tmp_path / what, *more)
            refuse(f"--resume: no checkpoint file at '.*{what}'; .*{said}", run)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "run/last.pth.tar").unlink()
    train_distill.main(options(digits, tmp_path, "--epochs", 2, "--resume", tmp_path / "run/last.pth.tar"))


def test_an_epochs_order_cannot_change_inside_it(digits, teacher, tmp_path, monkeypatch):
    run = options(digits, tmp_path, "--experiment", "run", "--recovery-interval", 1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_after(patch, 2)
        train_distill.main(run)
    refuse("whose order comes from --seed 42; this run has 7", [*run, "--resume", "auto", "--seed", "7"])
    train_distill.main([*run, "--resume", "auto", "--batch-size", "10"])  # the place is a sample, not a batch
    assert load(tmp_path / "run/last.pth.tar")["progress"]["updates"] == 2 + 4


def test_an_epochs_data_cannot_change_inside_it(digits, tmp_path, monkeypatch):
    fewer, other = tmp_path / "fewer", tmp_path / "other"
    for folder, keep in ((fewer, 2), (other, 8)):
        shutil.copytree(digits, folder)
        for label in (folder / "train").iterdir():
            for path in sorted(label.iterdir())[keep:]:
                path.unlink()
    path = min((other / "train/0").iterdir())
    path.rename(path.with_name("zero.png"))
    run = options(digits, tmp_path, "--experiment", "run", "--recovery-interval", 1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_after(patch, 1)
        train_distill.main(run)
    for folder, samples in ((fewer, 20), (other, 80)):
        said = rf"inside an epoch of other training data \(80 samples, .*\) than these \({samples} samples, "
        refuse(said, [*run, "--resume", "auto", "--data-dir", str(folder)])
    train_distill.main([*run, "--resume", "auto"])
    train_distill.main([*run, "--resume", "auto", "--data-dir", str(fewer), "--epochs", "2"])  # between epochs it may


def test_a_loss_that_is_no_number_stops_the_run(digits, tmp_path):
    run = options(digits, tmp_path, "--epochs", 3, "--lr", "1e30", "--experiment", "run", "--sched", "none")
    refuse("the loss has become infinite or not a number: lower --lr.* before, if there is a checkpoint yet", run)
    for path in (tmp_path / "run").glob("*.pth.tar"):
        assert all(value.isfinite().all() for value in load(path)["state_dict"].values())


@pytest.mark.parametrize("grad_method", ["rate", "bptt"])
def test_weights_that_are_no_numbers_stop_the_run(digits, tmp_path, monkeypatch, grad_method):
    """The loss does not show them: their neurons are silent."""
    from snnzoo.data import TrainingBatches

    epoch = TrainingBatches.epoch

    def spoilt(self, number, done=0):
        for images, target in epoch(self, number, done):
            yield images * (float("nan") if number == 1 else 1), target

    monkeypatch.setattr(TrainingBatches, "epoch", spoilt)
    run = options(digits, tmp_path, "--epochs", 3, "--experiment", "run", "--grad-method", grad_method)
    refuse(r"'student.*|'.*' has become infinite or not a number: .* mend the data", run)
    assert [row["epoch"] for row in rows(tmp_path / "run")][:1] == [0]
    for path in (tmp_path / "run").glob("*.pth.tar"):
        assert load(path)["epoch"] == 0
        assert all(value.isfinite().all() for value in load(path)["state_dict"].values())


def test_a_run_goes_on_from_its_own_options(digits, tmp_path):
    """With a tuple among them, and a teacher that was taken away."""
    run = options(digits, tmp_path, "--experiment", "run", "--teacher", "")
    at = run.index("--model-kwargs")
    train_distill.main([*run[: at + 1], "depths=(1, 1, 1)", *run[at + 2 :]])
    assert load(tmp_path / "run/last.pth.tar")["options"]["model_kwargs"]["depths"] == (1, 1, 1)
    train_distill.main(["-c", str(tmp_path / "run/args.yaml"), "--resume", "auto", "--epochs", "2"])
    train_distill.main([*options(digits, tmp_path, "--resume", tmp_path / "run", "--epochs", 3)])
    assert len(rows(tmp_path / "run")) == 3


def test_other_numbers_of_the_optimizer_are_used(digits, tmp_path):
    fixed = ("--experiment", "run", "--sched", "none")
    train_distill.main(options(digits, tmp_path, *fixed))
    new = ("--lr", 0.001, "--weight-decay", 0.5, "--momentum", 0.1, "--eval-metric", "loss")
    train_distill.main(options(digits, tmp_path, *fixed, "--resume", "auto", "--epochs", 2, *new))
    state = load(tmp_path / "run/last.pth.tar")
    decayed, others = sorted(state["optimizer"]["param_groups"], key=lambda group: -group["weight_decay"])
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.5, 0)
    assert {(group["lr"], group["momentum"]) for group in (decayed, others)} == {(0.001, 0.1)}
    assert state["progress"]["best_epoch"] == 1  # top-1 of before says nothing beside a loss


def test_other_groups_of_batches_inside_an_epoch(digits, tmp_path, monkeypatch):
    run = options(digits, tmp_path, "--experiment", "run", "--recovery-interval", 1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_after(patch, 1)
        train_distill.main(run)
    # 60 of 80 images are left, in batches of 25 two and no third
    train_distill.main([*run, "--resume", "auto", "--batch-size", "25", "--grad-accum-steps", "3"])
    assert load(tmp_path / "run/last.pth.tar")["progress"]["updates"] == 1 + 1


def test_epochs_that_were_gone_back_on_are_dropped(digits, tmp_path):
    run = options(digits, tmp_path, "--experiment", "run", "--checkpoint-hist", 2)
    train_distill.main([*run, "--epochs", "1"])
    shutil.copy(tmp_path / "run/last.pth.tar", tmp_path / "first.pth.tar")
    train_distill.main([*run, "--epochs", "5", "--resume", "auto"])
    shutil.copy(tmp_path / "first.pth.tar", tmp_path / "run/first.pth.tar")
    train_distill.main([*run, "--epochs", "3", "--resume", str(tmp_path / "run/first.pth.tar")])
    epochs = {path.name for path in (tmp_path / "run").glob("checkpoint-*")}
    assert epochs == {"checkpoint-1.pth.tar", "checkpoint-2.pth.tar"}


def test_random_states_survive_a_checkpoint(tmp_path):
    import random

    import numpy as np

    from snnzoo.randomness import rng_state, seeded, set_rng_state

    cpu = torch.device("cpu")

    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    torch.save(rng_state(cpu), tmp_path / "state")
    first = draw()
    with seeded(1, 2):
        inside = draw()
    second = draw()
    set_rng_state(load(tmp_path / "state"), cpu)
    assert draw() == first and draw() == second  # the block took nothing away
    with seeded(1, 2):
        assert draw() == inside
    with seeded(1, 3):
        assert draw() != inside


def test_an_option_that_makes_it_another_run(digits, tmp_path):
    train_distill.main(options(digits, tmp_path, "--experiment", "run"))
    with pytest.raises(InputError, match="written with --in-chans None, this run has 1"):
        grey = ("--in-chans", 1, "--input-size", 1, 8, 8)
        train_distill.main(options(digits, tmp_path, "--resume", tmp_path / "run", "--epochs", 2, *grey))


def test_two_processes_do_not_share_a_folder(digits, tmp_path):
    """Whoever is killed gives it back, though his data loading worker outlives him by some seconds."""
    run = options(digits, tmp_path, "--epochs", 200, "--experiment", "run", "--resume", "auto", "--workers", 1)
    environment = os.environ | {"SNNZOO_BACKEND": "eager", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, str(ROOT / "train_distill.py"), *run], env=environment)
    try:
        while not (tmp_path / "run/last.pth.tar").exists() and process.poll() is None:
            time.sleep(0.02)
        leftover = tmp_path / "run/.other.tmp"  # such as the first process may be writing
        leftover.touch()
        refuse("another process is training in '.*run': wait for its end, or choose another --experiment", run)
        assert leftover.exists() and process.poll() is None
    finally:
        process.kill()
        process.wait()
    epoch = load(tmp_path / "run/last.pth.tar")["progress"]["epoch"]
    train_distill.main([*run, "--epochs", str(epoch + 1)])
    assert not leftover.exists() and rows(tmp_path / "run")[-1]["epoch"] == epoch


def test_runs_that_begin_in_one_second_have_folders_of_their_own(digits, tmp_path, monkeypatch):
    class Noon(runs.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 1, 12)

    monkeypatch.setattr(runs, "datetime", Noon)
    for _ in range(3):
        train_distill.main(options(digits, tmp_path))
    names = ("", "-1", "-2")
    assert {path.name for path in tmp_path.iterdir()} == {f"20260101-120000-snn_resnet20_t2{name}" for name in names}
    assert all((path / "summary.csv").exists() for path in tmp_path.iterdir())


@pytest.mark.parametrize(("dies", "by"), [((Records, "close"), "auto"), ((Records, "close"), "folder"),
                                          ((train_distill, "save_curves"), "auto")])  # fmt: skip
def test_a_run_that_died_after_its_last_save_is_finished(digits, tmp_path, monkeypatch, dies, by):
    run = options(digits, tmp_path, "--epochs", 2, "--experiment", "run", "--resume", "auto")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(*dies, lambda *_, **__: die())
        train_distill.main(run)
    summary = tmp_path / "run/summary.json"
    assert not json.loads(summary.read_text())["finished"]
    if by == "folder":
        run[-1] = str(tmp_path / "run")
        for other in (("--experiment", "other"), ("--epochs", "1")):  # these are not that run's end
            with pytest.raises(InputError, match="nothing to do"):
                train_distill.main([*run, *other])
    train_distill.main(run)
    told = json.loads(summary.read_text())
    assert told["finished"] and told["epochs"] == 2
    assert told["best"]["value"] == max(row["eval_top1"] for row in rows(tmp_path / "run"))
    assert (tmp_path / "run/curves.png").exists() == bool(importlib.util.find_spec("matplotlib"))
    before = summary.read_text()
    with nullcontext() if by == "auto" else pytest.raises(InputError, match="nothing to do"):
        train_distill.main([*run, "--lr", "7"])
    assert summary.read_text() == before
