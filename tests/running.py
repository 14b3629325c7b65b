"""Short runs of the scripts, for the tests."""

import pytest
import torch

import train_distill
from snnzoo import InputError
from snnzoo.records import read_table

TINY = "depths=(1,1,1)"


def options(data, output, *extra):
    """One epoch of a small student on the digits."""
    where = f"--device cpu --data-dir {data} --output {output}"
    basic = f"{where} --input-size 3 8 8 --batch-size 20 --workers 0 --epochs 1"
    student = f"--model snn_resnet20_t2 --model-kwargs {TINY} --crop-padding 1 --hflip 0"
    return [*basic.split(), *student.split(), *(str(word) for word in extra)]


def taught(teacher):
    return "--teacher", "cifar_resnet20", "--teacher-checkpoint", teacher


def load(path):
    return torch.load(path, weights_only=True)


def rows(folder, without=()):
    """A run's table, without some of its columns."""
    return [{k: v for k, v in row.items() if k not in without} for row in read_table(folder / "summary.csv")]


TIMINGS = ("train_images_per_s", "eval_images_per_s")


def assert_same_state(ours, theirs):
    """Two checkpoints of one place in a run."""
    for key in ("state_dict", "state_dict_ema", "optimizer", "task_state", "task_state_ema", "rng", "progress"):
        assert (key in ours) == (key in theirs)
        if key in theirs:
            torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=0)


def refuse(match, arguments, main=train_distill.main):
    with pytest.raises(InputError, match=match):
        main(arguments)
