"""Fine-tuning with Loihi's 8-bit weights: what is trained is what is exported."""

import copy
import json

import pytest
import timm
import torch
from running import assert_same_state, load, options, refuse, rows, taught
from torch import nn

import train_distill
import validate
from snnzoo.export.importers import lively
from snnzoo.export.lava import quantize, simulate_integer
from snnzoo.export.lava.finetune import FrozenBatchNorm2d, prepare
from snnzoo.folding import move_scales
from snnzoo.grid import Grid, plain_weights
from snnzoo.weights import create_model

SMALL = dict(depths=(1, 1), channels=(4, 8), num_classes=10)
MODELS = {
    "snn_resnet20_t2": {},
    "snn_resnet20_t4": dict(shortcut="pad", reset="hard"),
    "snn_resnet34_t2": {},
    "snn_resnet19_t2": {},
    "snn_preact_resnet18_t2": dict(stem="cifar"),
    "snn_sew_resnet18_t4": {},
    "snn_vgg11_t2": {},
}


def model_of(name, **kwargs):
    model = lively(name, **{**SMALL, **MODELS[name], **kwargs})
    model.pretrained_cfg.update(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    return model


def images(count=4, size=16, seed=0):
    """Normalised noise that is made of whole pixels."""
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(seed))
    mean, std = (torch.tensor(x)[:, None, None] for x in ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)))
    return pixels.to(torch.uint8), (pixels / 255 - mean) / std


def plain(model, name):
    """The trained weights in a model of ordinary layers."""
    result = model_of(name)
    result.load_state_dict(plain_weights(model.state_dict()))
    return result.eval()


@pytest.mark.parametrize("name", MODELS)
def test_moving_scales_changes_no_logit(name):
    model = model_of(name).double()
    moved = copy.deepcopy(model)
    move_scales(moved, (3, 16, 16))
    assert list(moved.state_dict()) == list(model.state_dict())
    assert not torch.equal(moved.conv1.weight, model.conv1.weight)
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(moved(x), model(x))


@pytest.mark.parametrize("name", MODELS)
def test_what_was_trained_is_what_is_exported(name):
    """An export finds the scales of training in the weights, and rounds nothing that is not whole already."""
    pixels, x = images()
    model = model_of(name)
    before = prepare(model, x).network
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05)
    for _ in range(2):
        model.train()(x).logsumexp(1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = plain(model, name)
    torch.testing.assert_close(trained(x), model.eval()(x), rtol=0, atol=1e-6)

    network = quantize(trained, pixels).network
    grids = {path: module.parametrizations.weight[0] for path, module in model.named_modules()
             if hasattr(module, "parametrizations")}  # fmt: skip
    moved = 0
    for layer, old in zip(network, before, strict=True):
        for synapses, was in zip(layer.inputs, old.inputs, strict=True):
            if synapses.origin not in grids:
                continue
            weight = model.get_submodule(synapses.origin).weight.detach()
            step = grids[synapses.origin].step.view(1, -1, *[1] * (weight.ndim - 2))
            expected = (weight / step).round().flatten(2 if weight.ndim > 2 else 1)
            got = torch.from_numpy(synapses.weight).float()
            got = got.flatten(2) if weight.ndim > 2 else got[:, :, 0, 0]
            assert torch.equal(got, expected)
            moved += (synapses.weight != was.weight).sum()
    assert grids
    assert moved  # training did move integers, not the real numbers behind them alone


def test_biases_have_room_to_grow(caplog):
    """The classifier's would be at the end of its bits (4065 of 4095 units), and grows."""
    pixels, x = images()
    for factor, left in ((1.05, False), (1.5, True)):
        model = model_of("snn_resnet20_t2")
        nn.init.constant_(model.fc.bias, 3.3)
        prepare(model, x)
        step = model.fc.parametrizations.weight[0].step
        weight = model.fc.weight.detach() / step
        nn.init.constant_(model.fc.bias, 3.3 * factor)
        quantized = quantize(plain(model, "snn_resnet20_t2"), pixels)
        got = torch.from_numpy(quantized.network["logits"].inputs[0].weight)[:, :, 0, 0]
        assert torch.equal(got.float(), weight.round()) is not left
        assert ("on a grid that does not fit the chip" in caplog.text) is left


def test_the_integers_do_what_training_saw():
    pixels, x = images(16)
    model = model_of("snn_resnet20_t4")
    prepare(model, x)
    quantized = quantize(plain(model, "snn_resnet20_t4"), pixels)
    run = simulate_integer(quantized.network, pixels)
    spikes = {}
    for path, module in model.named_modules():
        if path.rpartition(".")[2].startswith("act"):
            module.register_forward_hook(lambda module, args, out, path=path: spikes.__setitem__(path, out))
    model(x)
    agreement = [float((spikes[path] == run.spikes[path]).double().mean()) for path in run.spikes]
    assert min(layer.alone for layer in quantized.layers if layer.alone is not None) > 0.997
    assert min(agreement) > 0.95  # what biases and membranes lose adds up from layer to layer


def test_statistics_stay_and_gradients_end_with_the_grid():
    _, x = images()
    model = model_of("snn_resnet20_t2")
    prepare(model, x)
    before = {key: value.clone() for key, value in model.named_buffers()}
    model.train()(x).square().sum().backward()
    for key, value in model.named_buffers():
        assert torch.equal(value, before[key]), key
    assert not model.bn1.weight.requires_grad
    assert model.bn1.bias.grad.abs().sum() > 0

    weight = torch.tensor([[-1.5, -1.0, 0.004, 0.9, 1.3]], requires_grad=True)
    rounded = Grid(torch.full((5,), 0.01))(weight)
    torch.testing.assert_close(rounded, torch.tensor([[-1.28, -1.0, 0.0, 0.9, 1.27]]))
    rounded.sum().backward()
    assert weight.grad.tolist() == [[0, 1, 1, 1, 0]]


@pytest.fixture
def student(digits, tmp_path):
    """A trained student of :func:`running.options`."""
    train_distill.main(options(digits, tmp_path, "--experiment", "student"))
    return tmp_path / "student" / "model_best.pth.tar"


def test_the_script_fine_tunes_and_resumes(digits, teacher, student, tmp_path):
    run = options(digits, tmp_path, *taught(teacher), "--initial-checkpoint", student, "--quant", "loihi",
                  "--lr", 0.01, "--epochs", 2, "--model-ema")  # fmt: skip
    train_distill.main([*run, "--experiment", "whole"])
    train_distill.main([*run, "--experiment", "cut", "--epochs", "1", "--sched", "none"])
    train_distill.main([*run, "--experiment", "whole2", "--sched", "none"])
    train_distill.main([*run, "--experiment", "cut", "--sched", "none", "--resume", "auto"])
    assert_same_state(load(tmp_path / "cut/last.pth.tar"), load(tmp_path / "whole2/last.pth.tar"))

    last = tmp_path / "whole/last.pth.tar"
    model = create_model("snn_resnet20_t2", last)
    assert not any(isinstance(module, (Grid, FrozenBatchNorm2d)) for module in model.modules())
    assert len(torch.unique(model.layer3[0].conv1.weight)) <= 256
    result = tmp_path / "result.json"
    where = f"--device cpu --data-dir {digits} --input-size 3 8 8 --workers 0 --model snn_resnet20_t2"
    for ema in ("", "ema_"):
        use = ["--use-ema"] if ema else []
        validate.main([*where.split(), "--checkpoint", str(last), "--results-file", str(result), *use])
        (measured,) = json.loads(result.read_text())["results"]
        assert measured["loss"] == pytest.approx(rows(tmp_path / "whole")[-1][f"eval_{ema}loss"], rel=1e-4)


def test_refusals(digits, student, tmp_path):
    run = options(digits, tmp_path, "--quant", "loihi")
    refuse("--quant fine-tunes a trained model: give --initial-checkpoint or --pretrained", run)
    refuse("--sync-bn does nothing with --quant", [*run, "--initial-checkpoint", str(student), "--sync-bn"])
    ann = [*run, "--pretrained", "--model", "cifar_resnet20", "--model-kwargs"]
    refuse("no pretrained|No pretrained", ann)
    folder = tmp_path / "without"
    train_distill.main([*options(digits, folder, "--experiment", "a"), "--initial-checkpoint", str(student)])
    with_quant = [*run, "--initial-checkpoint", str(student), "--resume", str(folder / "a")]
    refuse("was written with --quant None, this run has loihi", with_quant)


def test_what_loihi_cannot_run_is_named():
    ann = timm.create_model("cifar_resnet20", depths=(1, 1, 1))
    with pytest.raises(ValueError, match="no LIF layer"):
        prepare(ann, images()[1])
    with pytest.raises(ValueError, match=r"these are \[2, 4, 3, 16, 16\]: no frames"):
        prepare(model_of("snn_resnet20_t2"), torch.zeros(2, 4, 3, 16, 16))
    assert isinstance(ann.conv1, nn.Conv2d)


def test_weights_at_the_end_of_16_bits_may_grow():
    model = model_of("snn_resnet20_t2")
    quantized = prepare(model, images()[1])
    stem, unit = quantized.layers[0], quantized.network["act1"].scale
    steps = model.conv1.parametrizations.weight[0].step / (255 * torch.tensor(model.pretrained_cfg["std"]))
    assert stem.worst_current > 32767 / 1.1
    torch.testing.assert_close(steps / unit, torch.full((3,), 1.1 * stem.worst_current / 32767), rtol=1e-3, atol=0)
    assert quantized.layers[1].worst_current < 32767 / 2
    kept = model.layer1[0].conv1.parametrizations.weight[0].step
    torch.testing.assert_close(kept, torch.full_like(kept, quantized.layers[1].unit))
