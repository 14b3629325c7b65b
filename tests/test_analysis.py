"""Firing rates against a count by hand."""

import pytest
import timm
import torch

from snnzoo import InputError
from snnzoo.analysis import firing_rates
from snnzoo.layers import LIF


def test_firing_rates():
    model = timm.create_model("snn_resnet20_t4").train()
    batches = [torch.randn(4, 3, 16, 16), torch.randn(2, 3, 16, 16)]
    with torch.no_grad():
        model(batches[0])
    rates = firing_rates(model, batches)
    assert model.training
    assert list(rates) == [name for name, module in model.named_modules() if isinstance(module, LIF)]
    assert len(rates) == 19
    # the last layer's rate is the mean of the last feature map, over all six images
    model.eval()
    with torch.no_grad():
        total = sum(model.forward_features(x).sum() for x in batches)
    assert rates["layer3.2.act2"] == pytest.approx(float(total) / (6 * 64 * 4 * 4))
    assert max(rates.values()) > 0
    assert not any(module._forward_hooks for module in model.modules())


def test_an_ann_does_not_fire():
    with pytest.raises(InputError, match="ResNet has no LIF layers"):
        firing_rates(timm.create_model("cifar_resnet20"), [])
