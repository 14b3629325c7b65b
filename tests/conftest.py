"""Shared fixtures. Neurons run uncompiled unless a test asks for it: compiling costs seconds each time."""

import os
import sys
import warnings
from pathlib import Path

import pytest
import torch

os.environ.setdefault("SNNZOO_BACKEND", "eager")
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the scripts, which are not part of the package

torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


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
