"""Batch norm folded into convolutions: the same function, without the norms."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from snnzoo import InputError, fuse
from snnzoo.export.trace import trace
from snnzoo.folding import move_scales


def trained(name, **kwargs):
    """A model whose norms do something."""
    model = timm.create_model(name, **kwargs)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, (low, high) in (
                (module.weight, (0.5, 1.5)),
                (module.bias, (-0.3, 0.5)),
                (module.running_mean, (-0.2, 0.2)),
                (module.running_var, (0.5, 2.0)),
            ):
                nn.init.uniform_(tensor, low, high)
    return model


def norms(model):
    return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


SMALL = dict(depths=(1, 1), channels=(8, 16))
NETS = [("cifar_resnet20", {}), ("resnet18", {}), ("mobilenetv3_small_050", {}), ("snn_resnet20_t2", {})]
NETS += [(f"snn_{family}_t2", SMALL) for family in ("resnet19", "preact_resnet18", "sew_resnet18", "vgg11")]


@pytest.mark.parametrize(("name", "kwargs"), NETS)
def test_same_logits_without_norms(name, kwargs):
    model = trained(name, num_classes=7, **kwargs).double()
    before = copy.deepcopy(model.state_dict())
    fused = fuse(model, (3, 32, 32))
    assert norms(model) > 0
    assert norms(fused) == 0
    assert not fused.training
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(fused(x), model.eval()(x))
    torch.testing.assert_close(model.state_dict(), before)


def test_norms_before_convolutions_stay():
    model = trained("densenet121", num_classes=3).double()  # norm-act-conv blocks: only some norms follow a convolution
    fused = fuse(model, (3, 32, 32))
    assert 0 < norms(fused) < norms(model)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(fused(x), model.eval()(x))


def test_keeps_dtype_and_memory_format():
    model = trained("snn_resnet20_t2").to(memory_format=torch.channels_last)
    fused = fuse(model)
    assert {p.dtype for p in fused.parameters()} == {torch.float32}
    assert fused.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert fused.layer1[0].conv1.bias is not None


def test_frames_and_steps_still_work():
    model = trained("snn_resnet20_t2").double()
    fused, frames = fuse(model), torch.randn(2, 5, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(fused(frames), model.eval()(frames))
    fused.num_steps = model.num_steps = 3
    torch.testing.assert_close(fused(frames[:, 0]), model(frames[:, 0]))


@pytest.mark.parametrize("fold", [fuse, move_scales])
def test_refuses_what_reads_an_output_twice(fold):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            nn.init.constant_(self.norm.running_mean, 3.0)

        def forward(self, x):
            x = self.conv(x)
            return (x + self.norm(x)).mean((2, 3))

    model = Twice()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match="Twice cannot have its norms folded: something besides"):
        fold(model, (3, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.norm.weight.requires_grad


@pytest.mark.parametrize("fold", [fuse, trace])
@pytest.mark.parametrize("layer", ["layer1.0.conv1", "fc", "layer1.0.bn1"])
def test_refuses_computed_weights(fold, layer):
    """A copy of the model cannot even be made, or would compute them anew."""
    for change, back in ((identity, parametrize.remove_parametrizations), (prune.random_unstructured, prune.remove)):
        model = trained("cifar_resnet20", **SMALL)
        change(model.get_submodule(layer), "weight", 0.5)
        with pytest.raises(InputError, match=f"{layer}: its weights are computed .*remove_parametrizations, prune.rem"):
            fold(model, (3, 8, 8))
        back(model.get_submodule(layer), "weight")
        fold(model, (3, 8, 8))


def identity(module, name, _):
    parametrize.register_parametrization(module, name, nn.Identity())


@pytest.mark.parametrize("fold", [fuse, move_scales])
def test_refuses_what_gives_no_numbers(fold):
    model = trained("cifar_resnet20", **SMALL)
    model.fc.bias.data[0] = torch.nan
    with pytest.raises(InputError, match="ResNet answers with numbers that are not finite"):
        fold(model, (3, 8, 8))
    with pytest.raises(InputError, match=r"answers with a list, not with logits: make it without features_only"):
        fold(trained("cifar_resnet20", features_only=True), (3, 16, 16))


def test_takes_the_models_own_channels():
    model = trained("snn_resnet20_t2", in_chans=1, **SMALL).eval()
    assert norms(fuse(model)) == 0


def test_refuses_a_size_the_model_does_not_take():
    with pytest.raises(InputError, match="does not take images of size"):
        fuse(timm.create_model("cifar_resnet20"), (5, 32, 32))
    with pytest.raises(InputError, match=r"input_size must be \(C, H, W\), each at least 1, got \(3, -8, 8\)"):
        fuse(timm.create_model("cifar_resnet20"), (3, -8, 8))
