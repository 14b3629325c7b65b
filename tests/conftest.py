"""Shared fixtures. Neurons run uncompiled unless a test asks for it: compiling costs seconds each time."""

import logging
import os
import sys
import warnings
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

os.environ.setdefault("SNNZOO_BACKEND", "eager")
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the scripts, which are not part of the package

torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _quiet_root_logger():
    """The scripts add handlers to the root logger; take them off again."""
    before = logging.root.handlers[:]
    yield
    for handler in logging.root.handlers[:]:
        if handler not in before:
            logging.root.removeHandler(handler)
            handler.close()


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Eight training and four validation images of each digit."""
    pytest.importorskip("sklearn")
    from snnzoo.data import write_digits

    folder = write_digits(tmp_path_factory.mktemp("digits"))
    for split, keep in (("train", 8), ("validation", 4)):
        for label in (folder / split).iterdir():
            for path in sorted(label.iterdir())[keep:]:
                path.unlink()
    return folder


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    """Weights of an untrained cifar_resnet20."""
    import snnzoo  # noqa: F401, registers it

    path = tmp_path_factory.mktemp("teacher") / "weights.safetensors"
    torch.manual_seed(1)
    save_file(timm.create_model("cifar_resnet20").state_dict(), path)
    return path


@pytest.fixture
def compiled():
    """Run a test with compiled neurons."""
    from snnzoo import fused

    if not fused._has_compiler("cpu"):
        pytest.skip("no C++ compiler on this machine")
    before = fused._backend
    fused.set_backend("compiled")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.compile's own, other ones in each version
        yield
    fused.set_backend(before)
