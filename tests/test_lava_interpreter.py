"""The search for a Python that has Lava."""

import os
import subprocess
import sys

import pytest

from snnzoo import InputError
from snnzoo.export.lava import interpreter
from snnzoo.export.lava.interpreter import find_interpreter


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch):
    monkeypatch.delenv(interpreter.VARIABLE, raising=False)


@pytest.mark.lava
def test_what_is_found_runs_lava(lava_python):
    code = "import sys, lava.proc.lif.process; print(sys.version_info[:2])"
    done = subprocess.run([lava_python, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "(3, 10)"


def script(path, body):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_a_python_without_lava_is_named():
    message = rf"{sys.executable}: cannot import lava.* \(ModuleNotFoundError: No module named 'lava'\).*make lava-env"
    with pytest.raises(InputError, match=message):
        find_interpreter(sys.executable)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo warning >&2; echo broken >&2; exit 3", "python: broken. `make"),
        ("exit 3", "it fails without a message"),
        ("exit 0", "is no Python"),
    ],
)
def test_other_interpreters_that_will_not_do(tmp_path, body, message):
    with pytest.raises(InputError, match=message):
        find_interpreter(script(tmp_path / "python", body))


def test_more_can_be_needed(tmp_path):
    names = script(tmp_path / "python", 'shift 2; test "$*" = "lava.one two" && echo fine')
    assert find_interpreter(names, needs=("lava.one", "two")) == names
    with pytest.raises(InputError, match="cannot import json.nothing"):
        find_interpreter(sys.executable, needs=("json", "json.nothing"))


def test_missing_and_unrunnable_files(tmp_path):
    with pytest.raises(InputError, match="there is no such file"):
        find_interpreter(str(tmp_path / "python"))
    (tmp_path / "python").write_text("text")
    with pytest.raises(InputError, match="does not run .*Permission denied"):
        find_interpreter(str(tmp_path / "python"))


def test_order_of_the_search(tmp_path, monkeypatch):
    fine = "echo advice; echo fine"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(interpreter, "__file__", str(tmp_path / "sources" / "export" / "lava" / "interpreter.py"))
    with pytest.raises(InputError) as error:
        find_interpreter()
    assert str(tmp_path / ".venv-lava") in str(error.value)  # all that was tried is said
    assert str(tmp_path / "sources" / ".venv-lava") in str(error.value)
    sources = script(tmp_path / "sources" / ".venv-lava" / "bin" / "python", fine)
    assert find_interpreter() == sources
    here = script(tmp_path / ".venv-lava" / "bin" / "python", fine)
    assert find_interpreter() == here
    named = script(tmp_path / "named", fine)
    monkeypatch.setenv(interpreter.VARIABLE, named)
    assert find_interpreter() == named
    given = script(tmp_path / "given", fine)
    assert find_interpreter(given) == given
    assert find_interpreter("./given") == given  # it will be started from another folder
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert find_interpreter("given") == "given"
    with pytest.raises(InputError, match="missing: there is no such file"):
        find_interpreter(str(tmp_path / "missing"))  # what the user names is not replaced by another
