"""Firing rates against a count by hand; the table of models against other people's counts."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision

from snnzoo import InputError, fused
from snnzoo.analysis import firing_rates, profile, record, table
from snnzoo.distill import AnnGuidedDistillationTask
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


def test_looking_inside_leaves_every_modules_mode():
    model = timm.create_model("snn_resnet20_t2").train()
    model.bn1.eval()
    modes, x = [module.training for module in model.modules()], torch.randn(2, 3, 16, 16)
    for look in (
        lambda x: firing_rates(model, [x]),
        lambda x: profile(model, [x]),
        lambda x: record(model, x[0], "act1"),
        lambda x: AnnGuidedDistillationTask(model, timm.create_model("cifar_resnet20"), input_size=x.shape[1:]),
    ):
        look(x)
        assert [module.training for module in model.modules()] == modes
        with pytest.raises(InputError, match="expected images|of size"):
            look(x[:, :2])
        assert [module.training for module in model.modules()] == modes


def test_a_look_at_one_image_compiles_nothing(monkeypatch):
    model = timm.create_model("snn_resnet20_t2")
    monkeypatch.setattr(fused, "_backend", "compiled")
    monkeypatch.setattr(fused, "_compiled", lambda fn: pytest.fail("it was compiled"))
    record(model, torch.randn(3, 16, 16), "layer1.0.act1")
    profile(model, input_size=(3, 16, 16))
    with pytest.raises(pytest.fail.Exception):
        profile(model, [torch.randn(2, 3, 16, 16)])


def test_an_ann_does_not_fire():
    with pytest.raises(InputError, match="ResNet has no LIF layers"):
        firing_rates(timm.create_model("cifar_resnet20"), [])


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_macs_are_torchvisions(depth):
    published = torchvision.models.get_model_weights(f"resnet{depth}").IMAGENET1K_V1.meta
    model = timm.create_model(f"snn_sew_resnet{depth}_t1", device="meta")
    assert sum(p.numel() for p in model.parameters()) == published["num_params"]
    assert profile(model, input_size=(3, 224, 224)).ann_macs / 1e9 == pytest.approx(published["_ops"], abs=6e-4)
    assert model.training


def test_the_page_of_models_is_current():
    page = Path(__file__).parent.parent / "docs/models.md"
    assert table.update(page) == page.read_text(), "run: python -m snnzoo.analysis.table"
    text = table.model_table()
    rows = [name.rpartition("_t")[0] for name in timm.list_models("snn_*")]
    assert all(f"`{row}_tT`" in text for row in rows)
    assert all(f"`{name}`" in text for name in timm.list_models("cifar_*"))


def test_a_page_without_marks(tmp_path):
    (tmp_path / "page.md").write_text("# Models")
    with pytest.raises(InputError, match="page.md' has no lines '<!-- table"):
        table.update(tmp_path / "page.md")
