"""Figures: that what is drawn are the numbers; the commands that draw."""

import itertools
import json
import re

import pytest
import timm
import torch
from running import TINY, options, taught
from safetensors.torch import save_file

import train_distill
import validate
from snnzoo import InputError, cli
from snnzoo.analysis import (
    draw_accuracy,
    draw_curves,
    draw_hybrids,
    draw_profile,
    draw_raster,
    draw_rates,
    profile,
    record,
    save,
)
from snnzoo.export.importers import lively
from snnzoo.export.interpret import interpret
from snnzoo.export.trace import trace
from snnzoo.records import read_results, read_table

pytest.importorskip("matplotlib")

SMALL = dict(depths=(1, 1), channels=(8, 16), num_classes=7, stem="cifar")


def lines(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}


def texts(figure):
    """Everything written in a figure."""
    from matplotlib.text import Text

    return " | ".join(text.get_text() for text in figure.findobj(Text))


def overlaps(figure):
    """Pairs of labels of the same axis that run into each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
    found = []
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            labels = [label for tick in ticks for label in (tick.label1, tick.label2) if label.get_visible()]
            boxes = [(label.get_text(), label.get_window_extent()) for label in labels if label.get_text()]
            found += [(a[0], b[0]) for a, b in itertools.pairwise(boxes) if a[1].overlaps(b[1])]
    return found


ROWS = [
    {"epoch": e, "train_loss": 3.0 - e, "eval_loss": 3.5 - e, "train_top1": 10.0 * e, "eval_top1": 9.0 * e,
     "eval_top1_1": 5.0 * e, "eval_similarity_1": 0.1 * e, "eval_rate_stem": 0.2, "eval_rate_layer1": 0.3}
    for e in range(3)
]  # fmt: skip


def test_curves():
    loss, accuracy, rates = (figure := draw_curves({"run": ROWS})).axes
    assert lines(loss) == {"training": [[0, 3], [1, 2], [2, 1]], "validation": [[0, 3.5], [1, 2.5], [2, 1.5]]}
    assert lines(accuracy)["validation"] == [[0, 0], [1, 9], [2, 18]]
    assert lines(rates)["stage 1"] == [[0, 30], [1, 30], [2, 30]]  # percent
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss, nats", "top-1, %", "neurons that fire at a step, %"]
    two = draw_curves({"a": ROWS, "b": ROWS[:2]})
    assert set(lines(two.axes[0])) == {"a: training", "a: validation", "b: training", "b: validation"}
    assert not overlaps(two)
    runs = {f"a run whose name says {what} of it": ROWS for what in ("much", "a great deal", "everything")}
    long = draw_curves(runs)
    names = [text.get_text() for text in long.legends[0].get_texts()]
    assert names == list(runs) and not overlaps(long)
    for axes in long.axes:  # told apart by colour; no name of a run takes the panel's room
        assert len(axes.get_legend().get_texts()) == 2
        assert axes.get_position().width > 0.25
    for axes in draw_curves({"run": ROWS[:1]}).axes:  # one epoch: no fractions of it, and a dot that is seen
        assert list(axes.get_xticks()) == [0]
        assert all(line.get_markersize() > 6 for line in axes.get_lines())


def test_hybrids():
    accuracy, similarity = draw_hybrids({"run": ROWS}).axes
    assert lines(accuracy) == {"hybrid 1": [[0, 0], [1, 5], [2, 10]], "student": [[0, 0], [1, 9], [2, 18]]}
    assert lines(similarity) == {"stage 1": [[0, 0], [1, 0.1], [2, 0.2]]}
    with pytest.raises(InputError, match="there are no hybrids to draw"):
        draw_hybrids({"run": [{"epoch": 0, "train_loss": 1.0, "eval_top1": 3.0}]})


@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("name", ["snn_resnet20_t6", "snn_preact_resnet18_t4"])
def test_a_recording_is_what_the_interpreter_computes(name, reset):
    model = lively(name, **SMALL, reset=reset)
    image = torch.randn(3, 16, 16)
    run = interpret(trace(model, (3, 16, 16)), image[None])
    for layer in ("layer1.0.act2", "layer2.0.act1"):
        found = record(model, image, layer)
        torch.testing.assert_close(found.membranes, run.membranes[layer][:, 0], rtol=1e-4, atol=1e-4)
        assert (found.spikes != run.spikes[layer][:, 0]).float().mean() < 1e-3
    frames = record(model, torch.randn(3, 3, 16, 16), "layer1.0.act1")
    assert frames.spikes.shape[0] == 3


def test_raster():
    model = lively("snn_resnet20_t6", **SMALL)
    found = record(model, torch.randn(3, 16, 16), "layer1.0.act1")
    figure = draw_raster(found, torch.rand(16, 16), "a.png")
    _, membranes, raster = figure.axes
    drawn = {label: points for label, points in lines(membranes).items() if label.startswith("neuron")}
    assert len(drawn) == 5
    for label, points in drawn.items():
        neuron = int(label.split()[1])
        assert [u for _, u in points] == pytest.approx(found.membranes.flatten(1)[:, neuron].tolist())
    rows = [collection.get_positions() for collection in raster.collections]
    totals = found.spikes.flatten(1).sum(0)
    assert len(rows) == min(60, int((totals > 0).sum()))
    assert len(rows[0]) == totals.max()  # the busiest is on top
    assert "layer1.0.act1: 2,048 neurons, T = 6" in texts(figure)
    silent = found.__class__("x", 1.0, found.membranes * 0, found.spikes * 0)
    silent.membranes.view(6, -1)[2, 7] = 0.9
    figure = draw_raster(silent)
    assert all(title in texts(figure) for title in ("no neuron fires", "the highest membranes"))
    assert lines(figure.axes[0])["neuron 7"][2] == [3, pytest.approx(0.9)]
    assert sum(label.startswith("neuron") for label in lines(figure.axes[0])) == 5


@pytest.mark.parametrize("steps", [1, 6, 40])
def test_both_panels_of_a_raster_have_the_same_steps(steps):
    model = lively("snn_resnet20_t6", **SMALL)
    model.num_steps = steps
    for axes in draw_raster(record(model, torch.randn(3, 16, 16), "layer1.0.act1")).axes:
        assert axes.get_xlim() == (0.5, steps + 0.5)
        assert all(tick == int(tick) for tick in axes.get_xticks())


def test_no_such_layer():
    model = timm.create_model("snn_resnet20_t2", **SMALL)
    with pytest.raises(InputError, match=r"no LIF layer 'conv1'; it has act1, layer1.0.act1"):
        record(model, torch.randn(3, 16, 16), "conv1")
    with pytest.raises(InputError, match="it has none, it does not spike"):
        record(timm.create_model("cifar_resnet20"), torch.randn(3, 16, 16), "act1")


@pytest.fixture(scope="module")
def profiled():
    model = lively("snn_resnet20_t4", num_classes=7)
    return profile(model, [torch.randn(2, 3, 16, 16)]).to_dict()


def test_profile_and_rates(profiled):
    figure = draw_profile(profiled)
    rates, layers, total = figure.axes
    neurons = [row for row in profiled["layers"] if row["kind"] == "lif"]
    assert [bar.get_width() for bar in rates.patches] == pytest.approx([100 * row["rate"] for row in neurons])
    names = [label.get_text() for label in layers.get_yticklabels()]
    assert names == [row["name"] for row in profiled["layers"] if row["kind"] != "lif"]
    energies = [bar.get_height() for bar in total.patches]
    totals = profiled["totals"]
    assert energies == pytest.approx([totals[f"{k}_uj"] for k in ("energy", "membrane_energy", "ann_energy")])
    assert not overlaps(figure)

    figure = draw_rates(profiled)
    (image,) = figure.axes[0].images
    assert image.get_array().tolist() == [pytest.approx([100 * r for r in row["rates"]]) for row in neurons]
    assert not overlaps(figure)


def test_large_numbers_and_many_steps(profiled):
    totals = {**profiled["totals"], "energy_uj": 1381.4, "ann_energy_uj": 99.4}
    assert all(f"| {number} |" in texts(draw_profile({**profiled, "totals": totals})) for number in ("1,381", "99.4"))
    neurons = [{**row, "rates": row["rates"] * 25} for row in profiled["layers"] if row["kind"] == "lif"]
    figure = draw_rates({**profiled, "layers": neurons})
    assert figure.get_figwidth() < 12
    assert not overlaps(figure)


def test_an_ann_has_no_rates():
    model = timm.create_model("cifar_resnet20", **SMALL)
    ann = profile(model, [torch.randn(2, 3, 16, 16)]).to_dict()
    assert len(draw_profile(ann).axes) == 2
    with pytest.raises(InputError, match="no firing rates"):
        draw_rates(ann)
    with pytest.raises(InputError, match="no activity to draw"):
        draw_profile(profile(model, input_size=(3, 16, 16)).to_dict())


def test_accuracy(profiled):
    results = [{"model": "snn_resnet20_t4", "num_steps": t, "top1": 10.0 * t} for t in (1, 2, 4)]
    assert lines(draw_accuracy({"r": results}).axes[0])["r"] == [[1, 10], [2, 20], [4, 40]]
    _, energy = draw_accuracy({"r": results}, [profiled]).axes
    assert lines(energy)["r"] == [[profiled["totals"]["energy_uj"], 40]]
    with pytest.raises(InputError, match=r"no profile belongs to the results.*snn_resnet20 T = 4"):
        draw_accuracy({"r": results[:2]}, [profiled])


def test_saving(tmp_path):
    figure = draw_curves({"run": ROWS})
    assert save(figure, tmp_path / "a.svg").read_bytes()[:5] == b"<?xml"
    with pytest.raises(InputError, match=r"figure 'a.doc': its suffix must be one of .*png"):
        save(figure, "a.doc")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        save(figure, tmp_path / "file/a.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "file"]


# --- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    save_file(timm.create_model("cifar_resnet20").state_dict(), folder / "teacher.safetensors")
    train_distill.main(options(digits, folder, *taught(folder / "teacher.safetensors"), "--experiment", "run"))
    return folder / "run"


def test_a_run_leaves_its_figures(run):
    assert (run / "curves.png").stat().st_size > 10_000
    assert (run / "hybrids.png").stat().st_size > 10_000


def test_commands(run, digits, tmp_path):
    model = f"snn_resnet20_t2 --checkpoint {run}/last.pth.tar --model-kwargs {TINY} --input-size 3 8 8"
    image = next((digits / "validation/3").glob("*.png"))
    where = f"--data-dir {digits} --model {model} --results-file {tmp_path}/r.csv --num-steps 1 2 -j 0 --device cpu"
    validate.main(where.split())
    cli.main(f"profile {model} --data-dir {digits} --images 8 -o {tmp_path}/p.json".split())
    for number, command in enumerate((
        f"curves {run}",
        f"hybrids {run}/summary.csv",
        f"raster {model} --image {image} --layer layer1.0.act1",
        f"rates {tmp_path}/p.json",
        f"accuracy {tmp_path}/r.csv --profile {tmp_path}/p.json",
    )):  # fmt: skip
        cli.main(f"plot {command} -o {tmp_path}/{number}.png".split())
        assert (tmp_path / f"{number}.png").read_bytes()[:4] == b"\x89PNG"
    assert read_results(tmp_path / "r.csv")[1]["num_steps"] == "2"
    assert len(read_table(run / "summary.csv")) == 1


@pytest.mark.parametrize(
    ("command", "match"),
    [
        ("curves nowhere", "no run at 'nowhere/?.*': give the folder of a run"),
        ("curves {numbers}", "is not the summary.csv of a run: it has no column 'epoch'"),
        ("hybrids {words}", "is not the summary.csv of a run: could not convert string to float: 'x'"),
        ("rates {run}/summary.json", "is not what `snnzoo profile -o` writes: it has no model"),
        ("accuracy {run}/summary.csv", "not what `validate.py --results-file` writes: it has no model"),
        ("accuracy {run}/summary.json", "not what `validate.py --results-file` writes: it has no 'results'"),
        ("accuracy nowhere.csv", "not what `validate.py --results-file` writes"),
        ("raster snn_resnet20_t2 --image nowhere.png --layer act1", "there is no file 'nowhere.png'"),
        ("raster snn_resnet20_t2 --image {run}/summary.csv --layer act1", "cannot be read"),
        (
            "raster snn_resnet20_t2 --in-chans 2 --image {run}/curves.png --layer act1",
            "a picture has 3 channels or 1, the network takes 2: give a .npz",
        ),
    ],
)
def test_bad_commands(run, tmp_path, capsys, command, match):
    words, numbers = tmp_path / "words.csv", tmp_path / "numbers.csv"
    words.write_text("epoch,eval_top1\n0,x\n")
    numbers.write_text("eval_top1\n1\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(f"plot {command.format(run=run, words=words, numbers=numbers)} -o {tmp_path}/x.png".split())
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert re.search(match, error), error


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        (5, "layers of it is 5"),
        ([5], "layer 0 is not a table"),
        ([{"rates": 5}], "layer 0 has no name"),
        ([{"name": 5, "kind": "lif"}], "name of layer 0 is 5"),
        ([{"name": "act1", "kind": "lif", "rates": 5}], "the rates of act1 are no list of numbers"),
        ([{"name": "act1", "kind": "lif", "rates": ["a"]}], "the rates of act1 are no list of numbers"),
    ],
)
def test_a_profile_of_wrong_types_is_refused(layers, match, tmp_path, capsys):
    file = tmp_path / "p.json"
    file.write_text(json.dumps(dict(model="m", num_steps=2, images=1, energy={}, totals={}, layers=layers)))
    with pytest.raises(SystemExit):
        cli.main(f"plot rates {file} -o {tmp_path}/x.png".split())
    assert re.search(f"is not what `snnzoo profile -o` writes: {match}", capsys.readouterr().err)
