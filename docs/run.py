#!/usr/bin/env python3
"""Walk docs/getting-started.md from an empty folder, doing what it says and nothing else; print what failed.

    python docs/run.py                        # on scikit-learn's digits, as the page offers
    python docs/run.py --data-dir CIFAR10     # on a folder of CIFAR-10
    python docs/run.py --install              # with an environment of its own, downloaded: several GB

All ``sh`` blocks run in one shell, with what is committed of this checkout as the repository, and python blocks in its
environment. The Hub is one on loopback. Without ``--install`` the environment borrows the packages of this one.
"""

import argparse
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/getting-started.md"
WITHOUT_DATA = "<!-- docs/run.py: unless --data-dir is given -->\n"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
PROGRAMS = ("python", "snnzoo", "make", "pip", "torchrun", "sh")
OWNER, TOKEN = "newcomer", "hf_token_of_a_newcomer"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text, the section it is in, and the line before it."""

    language: str
    text: str
    section: str
    before: str


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a Markdown page, in order."""
    found, section, before, language, text = [], "", "", None, ""
    for line in page.splitlines(keepends=True):
        if language is None and line.startswith("```"):
            language, text = line[3:].strip(), ""
        elif line.startswith("```"):
            found.append(Block(language, text, section, before))
            language = None
        elif language is not None:
            text += line
        else:
            section = line.strip("# \n") if line.startswith("#") else section
            before = line
    return found


def commands_in(block: Block) -> list[str]:
    """The lines of a fenced block that call one of the programs, without comments."""
    if block.language not in ("", "sh"):
        return []
    lines = re.sub(r"\s+#.*", "", re.sub(r"\s*\\\n\s*", " ", block.text)).splitlines()
    return [line for line in lines if line.split(" ")[0] in PROGRAMS]


def commands_between(page: str) -> list[str]:
    """The scripts that are called in the sentences of a page, and in the comments over its tables."""
    found = re.findall(r"(?:`|table: )(python [^`…<>]+?)(?:`| -->)", re.sub(r"(?ms)^```.*?^```$", "", page))
    return list(dict.fromkeys(" ".join(command.split()) for command in found))


def borrow_environment(checkout: Path) -> None:
    """What `make` would install, with the packages of the Python that runs this script."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    python = checkout / ".venv/bin/python"
    where = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    paths = [sysconfig.get_path("purelib"), *(p for p in sys.path if p.endswith("site-packages"))]
    (Path(where.strip()) / "zz_borrowed.pth").write_text("\n".join(dict.fromkeys(paths)) + "\n")
    install = "install --quiet --disable-pip-version-check --no-deps -e".split()
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install, checkout], check=True)
    (checkout / ".venv/.installed").touch()
    lava = ROOT / ".venv-lava"
    if (lava / ".installed").exists():
        (checkout / lava.name).symlink_to(lava)
        (lava / ".installed").touch()


def start_hub(folder: Path):
    """A Hub on loopback, and an environment in which there is no other one, and nothing of this machine's user."""
    sys.path.insert(0, str(ROOT / "tests"))
    from hub_server import HubServer

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hub = HubServer(port)
    hub.tokens = {TOKEN}
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SNNZOO_", "PYTHON"))
    }
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_TOKEN": TOKEN, "HF_HOME": str(folder / "hub"),
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    return hub, environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="CIFAR-10 as the page wants it (default: digits)")
    parser.add_argument("--install", action="store_true", help="let `make` install the environment")
    parser.add_argument("--no-demo", action="store_true", help="leave out `make demo`")
    parser.add_argument("--keep", action="store_true", help="do not delete the folder")
    args = parser.parse_args()
    if args.install and args.no_demo:
        parser.error("--install is what `make demo` does")

    folder = Path(tempfile.mkdtemp(prefix="snnzoo-docs-"))
    hub, environment = start_hub(folder)
    state = folder / "state.sh"  # what one block leaves to the next: folder and variables
    state.write_text(f"cd {folder}\n")
    failed, ran = [], 0
    for number, block in enumerate(blocks_of(PAGE.read_text())):
        if block.language not in ("sh", "python") or (block.before == WITHOUT_DATA and args.data_dir):
            continue
        text = block.text.replace("URL", str(ROOT)).replace("YOU/", f"{OWNER}/")
        if block.language == "python":
            (folder / f"block{number}.py").write_text(text)
            text = f"python < {folder}/block{number}.py  # in the checkout, as if it were typed there"
        elif text.startswith("git clone"):
            # between the clone and `make`: the environment, unless `make` is to install it
            borrow = "" if args.install else f"{shlex.join([sys.executable, __file__, '--borrow', '.'])}\n"
            text = text.replace("make demo\n", borrow + ("" if args.no_demo else "make demo\n"))
        print(f"\n--- {block.section}\n{text}", flush=True)
        begun, ran = time.perf_counter(), ran + 1
        script = f". {state}\nset -e\n{text}\nexport -p > {state}\necho cd $(pwd) >> {state}\n"
        status = subprocess.run(["bash", "-c", script], env=environment, check=False).returncode
        print(
            f"--- {'done' if status == 0 else f'FAILED with status {status}'}, {time.perf_counter() - begun:.0f} s",
            flush=True,
        )
        if status:
            failed.append(f"{block.section}:\n{text}")
        if "git clone" in text and args.data_dir and not status:
            (folder / "snnzoo/cifar10").symlink_to(args.data_dir.resolve())
    hub.stop()
    if args.keep:
        print(f"\nleft: {folder}")
    else:
        shutil.rmtree(folder)
    print(f"\nall {ran} blocks worked" if not failed else "\nFAILED:\n\n" + "\n\n".join(failed))
    sys.exit(bool(failed))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--borrow"]:
        borrow_environment(Path(sys.argv[2]).resolve())
    else:
        main()
