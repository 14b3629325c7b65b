"""The other Python: Lava is archived and runs on 3.10 only, so whoever needs it starts a 3.10 interpreter."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from snnzoo.errors import InputError

VARIABLE = "SNNZOO_LAVA_PYTHON"
LAVA = ("lava.proc.lif.process", "lava.lib.dl.netx.hdf5")

_FOLDER = ".venv-lava"  # what `make lava-env` makes
# Imported for real: packages may be there and not fit each other. lava-dl prints advice while it is imported.
_PROBE = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        sys.exit(f"cannot import {name} ({type(error).__name__}: {error})")
print("fine")
"""
_PATIENCE = 120  # s; the first import after installation compiles everything to bytecode


def find_interpreter(given: str | None = None, needs: Sequence[str] = LAVA) -> str:
    """The path of a Python that has Lava.

    Args:
        given: the interpreter that the user names, and then no other is tried. Otherwise it is the one that
            ``SNNZOO_LAVA_PYTHON`` names, or else the first that works of: this one, if it is a Python 3.10;
            ``.venv-lava`` in the current folder; ``.venv-lava`` beside the sources of an editable installation.
        needs: modules that it has to be able to import.

    Raises:
        InputError: none that works; the message says what was tried and what was wrong with each.
    """
    tried = []
    for python in _candidates(given):
        problem = _problem(python, needs)
        if not problem:
            return python
        tried.append(f"{python}: {problem}")
    raise InputError(
        f"no Python with Lava: {'; '.join(tried)}. `make lava-env` makes one in {_FOLDER}, "
        f"or name one of your own by --python or {VARIABLE} (Python 3.10, pip install 'snnzoo[lava]')"
    )


def need_h5py() -> None:
    """Raise :class:`InputError` where this Python cannot read and write network files."""
    try:
        import h5py  # noqa: F401
    except ImportError as error:
        raise InputError("network files of Lava need h5py: pip install 'snnzoo[lava]'") from error


def _candidates(given: str | None) -> list[str]:
    named = given or os.environ.get(VARIABLE)
    if named:
        # a name alone is looked for in PATH; a path has to hold in the folder that the simulator is started in
        return [str(Path.cwd() / Path(named).expanduser()) if os.sep in named else named]
    folders = dict.fromkeys([Path.cwd(), Path(__file__).resolve().parents[2]])
    own = [sys.executable] if sys.version_info[:2] == (3, 10) else []
    return own + [str(folder / _FOLDER / "bin" / "python") for folder in folders]


def _problem(python: str, needs: Sequence[str]) -> str:
    """What is wrong with an interpreter; nothing if it will do."""
    try:
        result = subprocess.run([python, "-c", _PROBE, *needs], capture_output=True, text=True, timeout=_PATIENCE)
    except FileNotFoundError:
        return "there is no such file"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run ({error})"
    if result.returncode:
        return (result.stderr.strip().splitlines() or ["it fails without a message"])[-1]
    return "" if result.stdout.strip().endswith("fine") else "is no Python"
