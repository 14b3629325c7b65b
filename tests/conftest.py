"""Shared fixtures. Neurons run uncompiled unless a test asks for it: compiling costs seconds each time."""

import logging
import os
import socket
import sys
import tempfile
import warnings
from pathlib import Path

# The Hub's client reads its settings when it is imported: its Hub is a port on loopback, where nothing answers unless a
# test starts a server there, and neither a token nor a cache of this machine's user is in sight.
with socket.socket() as _free:
    _free.bind(("127.0.0.1", 0))
    HUB_PORT = _free.getsockname()[1]
os.environ |= {
    "SNNZOO_BACKEND": os.environ.get("SNNZOO_BACKEND", "eager"),
    "HF_ENDPOINT": f"http://127.0.0.1:{HUB_PORT}",
    "HF_HOME": tempfile.mkdtemp(prefix="snnzoo-tests-"),
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
for _name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN", "SNNZOO_HUB_ORG"):
    os.environ.pop(_name, None)

import pytest  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the scripts, which are not part of the package

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


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


@pytest.fixture(autouse=True)
def _hub_cache(request, monkeypatch, tmp_path_factory):
    """Each test has a cache of its own; no test reaches a Hub but those that start one."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", "hub" not in request.fixturenames)


@pytest.fixture
def hub():
    """A Hub on loopback, and the token of somebody who may write."""
    from hub_server import HubServer

    server = HubServer(HUB_PORT)
    yield server
    server.stop()


@pytest.fixture
def owner(monkeypatch):
    """Whoever runs the test has the token where it usually is."""
    from hub_server import TOKEN

    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def impatient(monkeypatch):
    """The client waits half a minute in all for a server that is down."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


@pytest.fixture(scope="session")
def lava_python():
    """A Python that can import Lava and snnzoo; tests that ask for it are marked ``lava``."""
    from snnzoo import InputError
    from snnzoo.export.lava.interpreter import LAVA, find_interpreter

    try:
        return find_interpreter(needs=(*LAVA, "snnzoo"))
    except InputError as error:
        pytest.skip(str(error))


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
