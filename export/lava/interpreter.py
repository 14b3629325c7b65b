"""The other Python: Lava is archived and runs on 3.10 only, so whoever needs it starts a 3.10 interpreter."""

import os
import subprocess
import sys
from pathlib import Path

from snnzoo.errors import InputError

VARIABLE = "SNNZOO_LAVA_PYTHON"
_FOLDER = ".venv-lava"  # what `make lava-env` makes

# Lava is imported for real, by what everybody needs of it: packages may be there and not fit each other.
_PROBE = """
import importlib.util, sys
try:
    import lava.lib.dl.netx.hdf5, lava.proc.lif.process
except Exception as error:
    print(f"cannot import Lava ({type(error).__name__}: {error})")
else:
    print("fine" if importlib.util.find_spec("snnzoo") else "has Lava, but no snnzoo")
"""
_PATIENCE = 120  # s; the first import after installation compiles everything to bytecode


def find_interpreter(given: str | None = None) -> str:
    """The path of a Python that can import Lava and snnzoo.

    Args:
        given: the interpreter that the user names, and then no other is tried. Otherwise it is the one that
            ``SNNZOO_LAVA_PYTHON`` names, or else the first that works of: this one, if it is a Python 3.10;
            ``.venv-lava`` in the current folder; ``.venv-lava`` beside the sources of an editable installation.

    Raises:
        InputError: none that works; the message says what was tried and what was wrong with each.
    """
    tried = []
    for python in _candidates(given):
        problem = _problem(python)
        if not problem:
            return python
        tried.append(f"{python}: {problem}")
    raise InputError(
        f"no Python with Lava: {'; '.join(tried)}. `make lava-env` makes one in {_FOLDER}, "
        f"or name one of your own by --python or {VARIABLE} (Python 3.10, pip install 'snnzoo[lava]')"
    )


def _candidates(given: str | None) -> list[str]:
    named = given or os.environ.get(VARIABLE)
    if named:
        return [str(Path(named).expanduser())]
    folders = dict.fromkeys([Path.cwd(), Path(__file__).resolve().parents[2]])
    own = [sys.executable] if sys.version_info[:2] == (3, 10) else []
    return own + [str(folder / _FOLDER / "bin" / "python") for folder in folders]


def _problem(python: str) -> str:
    """What is wrong with an interpreter; nothing if it will do."""
    try:
        result = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, timeout=_PATIENCE)
    except FileNotFoundError:
        return "there is no such file"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run ({error})"
    if result.returncode:
        return f"does not run ({(result.stderr.strip().splitlines() or ['no message'])[-1]})"
    *_, answer = ["is no Python", *result.stdout.strip().splitlines()]  # lava-dl prints advice while it is imported
    return "" if answer == "fine" else answer
