"""What test_lava_slayer.py runs in the Python that has Lava: ``python lava_slayer.py IMAGES.npz``, JSON out."""

import json
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from snnzoo.export.importers import lively
from snnzoo.export.interpret import interpret, watch
from snnzoo.export.lava.slayer import SlayerNetwork, to_slayer, watch_slayer
from snnzoo.export.parity import compare

SMALL = dict(depths=(1, 1), channels=(8, 16), num_classes=10, reset="hard")
MODELS = {
    "snn_vgg11_t4": {},
    "snn_resnet20_t4": dict(shortcut="pad", decay=0.5),
    "snn_resnet18_t2": dict(surrogate="atan"),
    "snn_resnet19_t4": {},
    "snn_preact_resnet18_t4": dict(stem="cifar", spike_head=True),
    "snn_sew_resnet18_t4": dict(stem="cifar", threshold=0.5),
    "snn_sew_resnet50_t4": dict(stem="cifar"),
}


def differing(run, other) -> int:
    return sum(int((run.spikes[name] != other.spikes[name]).sum()) for name in run.spikes)


def parity(images: Tensor) -> dict:
    """SLAYER's forward against the graph, with the decays that SLAYER has, and against the model itself."""
    result = {}
    for name, kwargs in MODELS.items():
        model = lively(name, **SMALL, **kwargs)
        network = to_slayer(model, tuple(images.shape[1:]))
        run, expected = watch_slayer(network, images), watch(model, images)
        result[name] = {
            **compare(network.graph, images, expected, run).to_dict(),
            "passed": compare(network.graph, images, expected, run).passed,
            "from_graph": differing(run, interpret(network.graph, images)),
            "from_model": differing(run, expected),
            "silent": [layer for layer, spikes in run.spikes.items() if not 0 < float(spikes.mean()) < 1],
        }
        with torch.no_grad():  # and what the comparison is worth: one weight changed
            weight = next(p for p in network.parameters() if p.ndim == 5)
            weight[0] += 0.05
        result[name]["caught"] = not compare(network.graph, images, expected, watch_slayer(network, images)).passed
    return result


@torch.no_grad()
def integers(network: SlayerNetwork, images: Tensor) -> dict[str, Tensor]:
    """The spikes of a sequential quantised network in the arithmetic of the chip: integers, shifts, 'above' to fire."""
    x = images.double().expand(network.graph.num_steps, *images.shape)
    spikes = {}
    for name, block in ((n.name, network.blocks[n.name.replace(".", "_")]) for n in network.graph.lifs):
        node = network.graph[network.graph[name].inputs[0]]
        neuron = block.neuron
        scale, decay = neuron.w_scale, 4096 - int(neuron.cx_voltage_decay)
        weight = torch.round(node.weight.double() * scale / 2).clamp(-128, 127) * 2
        bias = torch.round(node.bias.double() * scale)[:, None, None]
        current = torch.stack([F.conv2d(step, weight, None, node.stride, node.padding) for step in x])
        v, steps = torch.zeros_like(current[0], dtype=torch.int64), []
        for step in current:
            decayed = v.sign() * ((v.abs() * decay) >> 12)
            u = decayed + ((step * 64).trunc() + bias * 64).to(torch.int64)
            fires = u > int(neuron.threshold * scale) << 6
            v = u * ~fires
            steps.append(fires.double())
        x = spikes[name] = torch.stack(steps)
    return spikes


def quantized(images: Tensor) -> dict:
    model = lively("snn_vgg11_t4", **SMALL)
    network = to_slayer(model, tuple(images.shape[1:]), quantize=True)
    run = watch_slayer(network, images)
    reference = integers(network, images)
    weights = [block.synapse for block in network.blocks.values() if hasattr(block, "synapse")]
    largest = max(float(s.pre_hook_fx(s.weight, descale=True).abs().max()) for s in weights)
    return {
        "wrong": sum(int((run.spikes[name] != reference[name]).sum()) for name in reference),
        "from_model": differing(run, watch(model, images)),
        "neuron_steps": sum(s.numel() for s in reference.values()),
        "largest_weight": largest,
    }


def training(images: Tensor, labels: Tensor, name: str, quantize: bool) -> dict:
    network = to_slayer(lively(name, **SMALL, **MODELS[name]), tuple(images.shape[1:]), quantize=quantize)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(network(network.frames(images)).mean(-1), labels)
        optimizer.zero_grad()
        loss.backward()
        grads = {key: p.grad for key, p in network.named_parameters() if p.requires_grad}
        optimizer.step()
        losses.append(float(loss))
    return {
        "losses": losses,
        "finite": all(g is not None and bool(g.isfinite().all()) for g in grads.values()),
        "zero": [key for key, g in grads.items() if g is None or not g.abs().max() > 0],
    }


def main() -> None:
    data = np.load(sys.argv[1])
    images, labels = torch.tensor(data["images"]), torch.tensor(data["labels"])
    result = {
        "parity": parity(images),
        "quantized": quantized(images),
        "training": {
            f"{name}, {quantize}": training(images, labels, name, quantize)
            for name in ("snn_vgg11_t4", "snn_resnet20_t4")
            for quantize in (False, True)
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
