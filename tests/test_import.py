"""What `import snnzoo` does to a process that has timm: registers models, and nothing else."""

import subprocess
import sys

SCRIPT = """
import socket, sys, time, warnings
import timm
before = {name: timm.model_entrypoint(name) for name in timm.list_models()}

def refuse(*args, **kwargs):
    raise AssertionError("import snnzoo opens a socket")

socket.socket.connect = socket.getaddrinfo = refuse
warnings.simplefilter("error")
start = time.process_time()
import snnzoo
seconds = time.process_time() - start
after = {name: timm.model_entrypoint(name) for name in timm.list_models()}
assert all(after[name] is entry for name, entry in before.items()), "a name of timm's is overridden"
new = set(after) - set(before)
assert new and all(name.startswith(("snn_", "cifar_")) for name in new), sorted(new)
heavy = {"onnx", "onnxruntime", "matplotlib", "nir", "tonic", "lava", "spikingjelly", "wandb"} & set(sys.modules)
assert not heavy, heavy
print(seconds)
"""


def test_import():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no warning, no log
    assert float(done.stdout) < 0.3
