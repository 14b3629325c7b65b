"""What runs over one network of every family runs over a new one, too: its list has to have it."""

import importlib
import re

import pytest
import timm

import snnzoo

FAMILIES = {timm.model_entrypoint(name).__module__ for name in timm.list_models("snn_*")}
LISTS = [
    ("benchmarks.neurobench_table", "MODELS"),
    ("lava_slayer", "MODELS"),
    ("snnzoo.export.importers", "MODELS"),
    ("test_export_graph", "FAMILIES"),
    ("test_export_lava", "CASES"),
    ("test_export_nir", "EXACT"),
    ("test_export_nir", "EXPRESSIBLE"),
    ("test_finetune", "MODELS"),
    ("test_folding", "NETS"),
    ("hub_checkpoints", "FAMILIES"),
    ("test_profile", "BY_HAND"),
    ("test_profile", "FAMILIES"),
    ("test_rate", "NETS"),
]


def families_in(networks) -> set[str]:
    """The modules of the models that are named in ``networks``, and of the classes in it, however it is nested."""
    words = re.findall(r"[\w.]+", repr(networks))
    named = {timm.model_entrypoint(word).__module__ for word in words if timm.is_model(word)}
    return (named | {word.rpartition(".")[0] for word in words}) & FAMILIES


@pytest.mark.parametrize(("module", "name"), LISTS)
def test_has_a_network_of_every_family(module, name):
    missing = FAMILIES - families_in(getattr(importlib.import_module(module), name))
    assert not missing, f"{name} of {module} has no network of {', '.join(sorted(missing))}"


def test_a_missing_family_is_seen():
    assert len(FAMILIES) > 3
    some = [("snn_resnet18_t1", {}), (snnzoo.models.SpikingVGG, dict(depths=(1,)))]
    assert families_in(some) == {"snnzoo.models.spiking_resnet", "snnzoo.models.spiking_vgg"}
    assert families_in({"sew": "no_such_model, snn_sew_resnet18_t1"}) == {"snnzoo.models.spiking_sew_resnet"}
