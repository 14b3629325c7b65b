#!/usr/bin/env python3
"""Run every command and every block of Python of the pages, in a small world of their own; print what failed.

    python docs/run_all.py                # all pages but getting-started.md, which `python docs/run.py` walks
    python docs/run_all.py docs/look.md   # some

Each page begins in a fresh clone of what is committed of this checkout. In it lies what the pages name: digits that
stand in for CIFAR-10, weights, a run, frames of events, and on loopback a Hub. Commands that would take hours are
shortened, with the change printed. The environment borrows the packages of this one.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from run import PAGE, PAGES, ROOT, blocks_of, borrow_environment, commands_between, commands_in, start_hub

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()  # of CIFAR-10
RUN, TEACHER = "output/train/student", "resnet20.safetensors"
STUDENT = f"{RUN}/model_best.pth.tar"
PLACEHOLDERS = [  # a name, in which commands or blocks, what it stands for; the first that fits counts
    ("DIR", r"--dataset frames", "frames"),
    ("DIR", r"c10dvs/", "dvs"),
    ("DIR", r"--num-classes 7", "seven"),
    ("DIR", r"", "cifar10"),
    ("FILE", r"cifar_resnet18|snn_resnet18_t4\.c10/", "resnet18.safetensors"),
    ("FILE", r"train_distill|ablations|--model cifar", TEACHER),
    ("FILE", r"", STUDENT),
    ("CHECKPOINT", r"", STUDENT),
    ("RUN_DIR", r"", RUN),
    ("[RUN ...]", r"", "output/train/teacher"),
    ("RUN", r"", RUN),
    ("IMAGE", r"", "cifar10/validation/cat/0.png"),
    ("FOLDER", r"local-dir", "hub_configs/snn_resnet20_t4.c10"),
    ("FOLDER", r"pull|synthetic", "made"),
    ("FOLDER", r"benchmarks", "networks"),
]
REPOSITORIES = "OWNER/NAME", "YOU/"  # these the Hub takes as they are
CHANGES = [  # what is shortened, and how
    (r"torchrun --nproc-per-node 8", "python -m torch.distributed.run --standalone --nproc-per-node 2"),
    (r"(train_distill\.py .*sew_resnet.*)", r"\1 --input-size 3 64 64"),
    (r"(train_distill\.py .*)", r"\1 --epochs 1 --batch-size 8 --workers 0 --device cpu"),
    (r"(benchmarks/ablations\.py.*)", r"\1 --variants main --seeds 0 --epochs 1"),
    (r"(--options \".*)\"", r'\1 --batch-size 8"'),
    (r"(benchmarks/memory\.py .*)", r"\1 --batch-size 2 --steps 2"),
    (r"(benchmarks/speed\.py)", r"\1 lif"),
    (r"(benchmarks/lava\.py) FOLDER/\*\.h5(.*)", r"\1 FOLDER/resnet20_hard_t2.h5\2 --count 1 --only ours"),
    (r"(benchmarks/kill\.py)", r"\1 --kills 1"),
    (r"(benchmarks/onnx_speed\.py)", r"\1 --models snn_resnet20_t4 --batch-sizes 1 --rounds 2"),
    (r"(benchmarks/synthetic_dvs\.py.*)", r"\1 --train 1 --test 1"),
    (r"(benchmarks/teachers\.py)", r"\1 --models resnet18"),
    (r"(snnzoo simulate net.*)", r"\1 --count 1 --fast"),
]
LEFT_OUT = {  # commands that are not run here, and why
    r"pip install": "downloads",
    r"make (demo|test|lint)": "needs an environment of its own",
    r"python -m pytest": "the tests",
    r"python docs/run\.py": "walks the page that this script leaves to it",
    r"python docs/run_all\.py": "this script",
    r"python benchmarks/gpu\.py": "needs a GPU",
    r".*after-(85|93)-epochs\.": "needs the weights of the run before",
}
NEED = {  # what some commands and blocks need, a module or Lava's environment; without it they are left out, too
    r"snnzoo simulate|benchmarks/lava\.py|make lava-env|\.venv-lava": ".venv-lava",
    r"c10dvs/": "tonic",
    r"examples/stream_events\.py": "aedat",
    r"benchmarks/memory\.py": "spikingjelly",
    r"snnzoo\.export\.importers": "norse",
    r"benchmarks/neurobench_table\.py": "neurobench",
}
PRELUDE = """import numpy as np, timm, torch, snnzoo
model = timm.create_model("snn_resnet20_t4", RESET).eval()
images = calibration_images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
QUANTIZED or (images := images / 255)
batches, labels, frames = [images], torch.tensor([0, 1]), [np.zeros((1, 3, 32, 32), np.float32)]
"""  # what readers have


def texts_of(page: str) -> list[str]:
    """What is run of a page: in the order of its blocks, then what stands between them."""
    texts = []
    for block in blocks_of(page):
        texts += [block.text] if block.language == "python" else commands_in(block)
    return texts + commands_between(page)


def placeholders_in(text: str) -> list[tuple[str, str, str]]:
    """The row for each placeholder of a command or a block."""
    rows = {}
    for row in PLACEHOLDERS:
        if re.search(_as_word(row[0]), text) and re.search(row[1], text):
            rows.setdefault(row[0], row)
    return list(rows.values())


def _as_word(name: str) -> str:
    return rf"(?<![\w.'-]){re.escape(name)}(?![\w.])"


def stand_in(text: str) -> str:
    """A command or a block as it is run: shortened, with what its placeholders stand for."""
    rows = placeholders_in(text)
    for pattern, change in CHANGES:
        text = re.sub(pattern, change, text)
    for name, _, value in rows:
        text = re.sub(_as_word(name), value, text)
    return text


def why_left_out(text: str) -> str | None:
    """The reason, if it is not run."""
    for pattern, reason in LEFT_OUT.items():
        if re.match(pattern, text):
            return reason
    for pattern, need in NEED.items():
        there = (ROOT / need / ".installed").exists() if need[0] == "." else importlib.util.find_spec(need)
        if re.search(pattern, text) and not there:
            return f"needs {need}"
    return None


def make_world(folder: Path, hub) -> None:
    """What the pages name."""
    import numpy as np
    import timm
    from safetensors.torch import save_file
    from timm.models import save_for_hf

    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    from PIL import Image
    from synthetic_dvs import write_synthetic_dvs

    import train_distill
    import validate
    from snnzoo import cli
    from snnzoo.data import write_digits
    from snnzoo.hub import pack

    folder.mkdir()
    os.chdir(folder)
    digits = write_digits("digits")
    for digit, label in enumerate(CLASSES):
        for split, count in (("train", 4), ("validation", 2)):
            Path(f"cifar10/{split}/{label}").mkdir(parents=True)
            Path(f"frames/{split}/{label}").mkdir(parents=True)
            for number, path in enumerate(sorted((digits / split / str(digit)).iterdir())[:count]):
                image = Image.open(path).convert("RGB").resize((32, 32))
                image.save(f"cifar10/{split}/{label}/{number}.png")
            np.savez(f"frames/{split}/{label}/0.npz", np.resize(np.asarray(image), (2, 2, 12, 12)).astype(np.float32))
        if digit < 7:
            for split in ("train", "validation"):
                shutil.copytree(f"cifar10/{split}/{label}", f"seven/{split}/{label}")
    write_synthetic_dvs(Path("cifar10"), Path("dvs"), 1, 1)

    train = "--data-dir cifar10 --epochs 2 --batch-size 8 --workers 0 --device cpu --lr 0.02 --experiment"
    train_distill.main(f"--model cifar_resnet20 --crop-padding 4 {train} teacher".split())
    teacher = timm.create_model("cifar_resnet20", checkpoint_path="output/train/teacher/model_best.pth.tar")
    save_file(teacher.state_dict(), TEACHER)
    shutil.copy(TEACHER, "teacher.safetensors")
    save_file(timm.create_model("cifar_resnet18").state_dict(), "resnet18.safetensors")
    recipe = ROOT / "hub_configs/snn_resnet20_t4.c10/recipe.yaml"
    train_distill.main(f"-c {recipe} --initial-checkpoint {TEACHER} {train} student".split())

    measure = "--data-dir cifar10 --workers 0 --device cpu"
    steps = f"--model snn_resnet20_t4 --checkpoint {STUDENT} --num-steps 1 2 4 --results-file results.csv"
    validate.main(f"{measure} {steps}".split())
    validate.main(f"{measure} --model cifar_resnet20 --checkpoint {TEACHER} --results-file t.json".split())
    for steps in (1, 2, 4):
        options = f"snn_resnet20_t4 --checkpoint {STUDENT} --data-dir cifar10 --num-steps {steps}"
        cli.main(f"profile {options} -o profile-t{steps}.json".split())

    for name in ("resnet18.a1_in1k", "resnet34.a1_in1k"):
        save_for_hf(timm.create_model(name), f"hub/{name}", safe_serialization=True)
        hub.add(f"timm/{name}", {path.name: path.read_bytes() for path in Path(f"hub/{name}").iterdir()})
    packed = pack("hub/cifar_resnet20.c10", teacher, license="apache-2.0")
    commit = hub.add("OWNER/NAME", {path.name: path.read_bytes() for path in packed.iterdir()})
    hub.repos["OWNER/NAME"].refs["v2"] = commit


def begin(checkout: Path, world: Path) -> None:
    """The checkout as it was committed, in the world."""
    git = ["git", "-C", checkout]
    subprocess.run([*git, "checkout", "--quiet", "."], check=True)
    subprocess.run([*git, "clean", "-fdxq", "-e", ".venv", "-e", ".venv-lava", "-e", "*.egg-info"], check=True)
    shutil.copytree(world, checkout, dirs_exist_ok=True)


def run(text: str, checkout: Path, environment: dict[str, str]) -> str | None:
    """Run a command, or a block of Python; returns the end of what it wrote if it fails."""
    if "\n" in text:
        lava = text.startswith("# .venv-lava/bin/python")
        python = ".venv-lava/bin/python" if lava else ".venv/bin/python"
        prelude = PRELUDE.replace("RESET", "reset='hard'" if lava else "reset='soft'")
        text = prelude.replace("QUANTIZED", str("quantize(" in text)) + text
        command = [checkout / python, "-c", text]
    else:
        # a run that is there would be refused, or not repeated
        for run_ in ["output/ablations", *(f"output/train/{name}" for name in re.findall(r"--experiment (\S+)", text))]:
            shutil.rmtree(checkout / run_, ignore_errors=True)
        command = ["bash", "-c", text]
    done = subprocess.run(
        command, cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return "\n".join(done.stdout.splitlines()[-30:] + [f"status {done.returncode}"]) if done.returncode else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, metavar="PAGE")
    args = parser.parse_args()
    pages = [path.resolve() for path in args.pages] or [page for page in PAGES if page != PAGE]

    folder = Path(tempfile.mkdtemp(prefix="snnzoo-docs-"))
    hub, environment = start_hub(folder)
    checkout, world = folder / "checkout", folder / "world"
    subprocess.run(["git", "clone", "--quiet", ROOT, checkout], check=True)
    borrow_environment(checkout)
    environment |= {"SNNZOO_BACKEND": "eager", "PATH": f"{checkout / '.venv/bin'}:{environment['PATH']}"}
    os.environ |= environment
    begun = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        make_world(world, hub)
    print(f"a small world, {time.perf_counter() - begun:.0f} s", flush=True)

    counts, failed = {"done": 0, "left out": 0, "FAILED": 0}, []
    for page in pages:
        print(f"\n--- {page.relative_to(ROOT)}", flush=True)
        begin(checkout, world)
        for text in texts_of((checkout / page.relative_to(ROOT)).read_text()):
            changed, begun = stand_in(text), time.perf_counter()
            print(text.rstrip() + (f"\n  as: {changed.rstrip()}" if changed != text else ""), flush=True)
            if reason := why_left_out(text):
                end = f"left out: {reason}"
            elif error := run(changed, checkout, environment):
                end = "FAILED"
                failed.append(f"{page.relative_to(ROOT)}: {text}\n{error}")
                print(error)
            else:
                end = "done"
            counts[end.partition(":")[0]] += 1
            print(f"  {end}, {time.perf_counter() - begun:.0f} s", flush=True)
    hub.stop()
    shutil.rmtree(folder)
    print("\n" + ", ".join(f"{count} {what}" for what, count in counts.items()), *failed, sep="\n\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
