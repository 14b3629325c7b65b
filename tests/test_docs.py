"""The pages: every command is one that its program takes, every link leads somewhere, Python in them runs."""

import argparse
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
import timm
import yaml
from conftest import ROOT

import validate
from snnzoo import cli, options, scripting

sys.path.insert(0, str(ROOT / "docs"))
import run_all
from run import PAGE, PAGES, PROGRAMS, blocks_of, commands_between, commands_in

LINKING = [*PAGES, ROOT / "CHANGELOG.md"]


def _id(value):
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else None


BLOCKS = [(page, number, block) for page in PAGES for number, block in enumerate(blocks_of(page.read_text()))]
COMMANDS = sorted(
    {(page, command) for page, _, block in BLOCKS for command in commands_in(block)}
    | {(page, command) for page in PAGES for command in commands_between(page.read_text())}
)


def _parse(parser: argparse.ArgumentParser, words: list[str], monkeypatch) -> argparse.Namespace:
    monkeypatch.chdir(ROOT)
    try:
        return scripting.parse_with_config(parser, words)
    except SystemExit as stop:
        pytest.fail(f"{shlex.join(words)}: its parser ends with {stop.code}")


def _parser_of(script: Path, monkeypatch) -> argparse.ArgumentParser:
    """The parser of a script that makes it in its main, caught when it is about to parse."""
    spec = importlib.util.spec_from_file_location(f"docs_{script.stem}", script)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend(str(script.parent))
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    caught = []

    def catch(self, *args, **kwargs):
        caught.append(self)
        raise SystemExit(0)

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(argparse.ArgumentParser, "parse_args", catch)
        module.main()
    return caught[0]


def check_python(words: list[str], monkeypatch) -> None:
    if words[0] == "-c":
        compile(words[1], "-c", "exec")
    elif words[0] == "-m":
        assert importlib.util.find_spec(words[1]), f"no module {words[1]}"
    elif words[0] == "train_distill.py":
        args = _parse(options.make_parser(), words[1:], monkeypatch)
        options.check_options(args)
        _is_a_model(args.model)
        _is_a_model(args.teacher)
    elif words[0] == "validate.py":
        _is_a_model(_parse(validate.make_parser(), words[1:], monkeypatch).model)
    else:
        script = ROOT / words[0]
        assert script.is_file(), f"there is no {words[0]}"
        if "ArgumentParser" in script.read_text():
            _parse(_parser_of(script, monkeypatch), words[1:], monkeypatch)
        else:
            assert not words[1:]


def _is_a_model(name: str | None) -> None:
    assert not name or ":" in name or timm.is_model(name), f"no model {name}"


def check_make(words: list[str]) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word for word in words if "=" not in word} <= targets


def check_pip(words: list[str]) -> None:
    assert words[0] == "install"
    extras = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    named = re.findall(r"(?:snnzoo|\.|CHECKOUT)\[([\w,]+)\]", " ".join(words))
    assert {extra for group in named for extra in group.split(",")} <= set(
        re.findall(r"^(\w+) =", extras, re.MULTILINE)
    )


def check(words: list[str], monkeypatch) -> None:
    program, words = words[0], words[1:]
    if program == "python":
        check_python(words, monkeypatch)
    elif program == "snnzoo":
        args = _parse(cli.make_parser(), words, monkeypatch)
        _is_a_model(None if args.command.__name__ in ("_push", "_pack", "_pull") else getattr(args, "model", None))
    elif program == "torchrun":
        script = next(index for index, word in enumerate(words) if word.endswith(".py"))
        check_python(words[script:], monkeypatch)
    elif program == "sh":
        assert (ROOT / words[0]).is_file(), f"there is no {words[0]}"
    elif program == "make":
        check_make(words)
    else:
        check_pip(words)


def test_there_are_commands():
    assert len(COMMANDS) > 60
    assert {command.split()[0] for _, command in COMMANDS} == set(PROGRAMS)


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=_id)
def test_command(page, command, monkeypatch):
    check(shlex.split(command), monkeypatch)


@pytest.mark.parametrize(
    "command",
    [
        "python train_distill.py --data-dir DIR --model snn_resnet20_t4 --no-such-option",
        "python train_distill.py -c hub_configs/no-such-folder/recipe.yaml",
        "python train_distill.py --data-dir DIR --alpha 0.7",
        "python validate.py --model snn_resnet999",
        "python benchmarks/no_such.py",
        "python benchmarks/speed.py no-such-part",
        "snnzoo no-such-command",
        "snnzoo export onnx snn_resnet20_t4",
        "make no-such-target",
        "pip install 'snnzoo[no_such_extra]'",
    ],
)
def test_a_wrong_command_is_found(command, monkeypatch):
    with pytest.raises((Exception, pytest.fail.Exception)):
        check(shlex.split(command), monkeypatch)


# --- docs/run_all.py -----------------------------------------------------------------------------------------------

TEXTS = [text for page in PAGES if page != PAGE for text in run_all.texts_of(page.read_text())]
RUN = [command for page, command in COMMANDS if page != PAGE]


def test_no_command_is_lost():
    assert set(RUN) <= set(TEXTS)


@pytest.mark.parametrize("command", RUN)
def test_command_can_be_run_as_it_stands(command):
    """Nothing in it stands for something that the world of docs/run_all.py does not know."""
    if any(re.match(pattern, command) for pattern in run_all.LEFT_OUT):
        return
    changed = run_all.stand_in(command)
    for repository in run_all.REPOSITORIES:
        changed = changed.replace(repository, "")
    assert not re.findall(r"(?<![\w.-])[A-Z][A-Z_]+\b|\[|<", changed)


@pytest.mark.parametrize("name", ["PLACEHOLDERS", "REPOSITORIES", "CHANGES", "LEFT_OUT", "NEED"])
def test_every_row_is_for_something(name):
    rows = getattr(run_all, name)
    if name == "PLACEHOLDERS":
        assert set(rows) == {row for text in TEXTS for row in run_all.placeholders_in(text)}
    elif name == "REPOSITORIES":
        assert all(any(row in text for text in TEXTS) for row in rows)
    else:
        patterns = [row[0] for row in rows] if name == "CHANGES" else list(rows)
        assert [row for row in patterns if not any(re.search(row, text) for text in TEXTS)] == []


# --- python --------------------------------------------------------------------------------------------------------

SNIPPETS = [(page, number, block.text) for page, number, block in BLOCKS if block.language == "python"]
# Blocks that need what only the reader has: a file of a run, a Hub, a larger network's weights, a run of their own.
NEED = ("output/train", "student.onnx", "stream.onnx", "pretrained=True", "from snnzoo.analysis import profile",
        "trace(model)", "lava")  # fmt: skip


@pytest.mark.parametrize(("page", "number", "text"), SNIPPETS, ids=_id)
def test_python_block(page, number, text, capsys):
    code = compile(text, f"{page.name}, block {number}", "exec")
    if not any(needed in text for needed in NEED):
        exec(code, {})


# --- links ---------------------------------------------------------------------------------------------------------


def anchors_of(page: Path) -> set[str]:
    """What GitHub makes of the page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKING, ids=_id)
def test_links(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors_of(target), f"{page.name}: {link} is no heading"


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_files_that_are_named_exist(page):
    text = page.read_text()
    folders = "snnzoo|export|tests|docs|benchmarks|examples|hub_configs"
    for name in re.findall(rf"(?<![\w/.-])((?:{folders})/[\w./-]*\w)", text):
        if "<" not in text[text.index(name) : text.index(name) + len(name) + 2]:
            assert any(ROOT.glob(f"{name}*")), f"{page.name} names {name}"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/index.md").read_text()
    assert all(f"({page.name})" in index for page in (ROOT / "docs").glob("*.md") if page.name != "index.md")
    readme = (ROOT / "README.md").read_text()
    assert all(f"(docs/{page.name})" in readme for page in (ROOT / "docs").glob("*.md") if page.name != "index.md")


def test_citation():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    from snnzoo import __version__

    assert cited["version"] == __version__
    assert {reference["identifiers"][0]["value"] for reference in cited["references"]} == {
        "arXiv:2503.16572", "arXiv:2410.11488",
    }  # fmt: skip
