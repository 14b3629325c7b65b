"""What test_lava_slayer.py runs in the Python that has Lava: ``python lava_slayer.py IMAGES.npz``, JSON out."""

import json
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from snnzoo.export import graph as g
from snnzoo.export.importers import lively
from snnzoo.export.interpret import interpret, watch
from snnzoo.export.lava.slayer import SlayerNetwork, to_slayer, watch_slayer
from snnzoo.export.parity import compare

SMALL = dict(depths=(1, 1), channels=(8, 16), num_classes=10, reset="hard")
MODELS = {
    "snn_vgg11_t4": dict(readout_decay=0.6),
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
        run, expected = watch_slayer(network, images), interpret(network.graph, images)
        parity = compare(network.graph, images, expected, run)  # the model's decay is another, by SLAYER's grid
        result[name] = {
            **parity.to_dict(),
            "from_graph": differing(run, expected),
            "from_model": differing(run, watch(model, images)),
            "silent": [layer for layer, spikes in run.spikes.items() if not 0 < float(spikes.mean()) < 1],
        }
        with torch.no_grad():  # and what the comparison is worth: one weight changed
            weight = next(p for p in network.parameters() if p.ndim == 5)
            weight[0] += 0.05
        result[name]["caught"] = not compare(network.graph, images, expected, watch_slayer(network, images)).passed
    return result


def on_grid(x: Tensor, step: float) -> Tensor:
    return torch.round(x.double() / step) * step


@torch.no_grad()
def chip(network: SlayerNetwork, images: Tensor, shift: bool = True) -> tuple[dict[str, Tensor], float]:
    """The spikes of a quantised network in the arithmetic of the chip, written down once more: 8-bit weights, 13-bit
    biases, whole currents, shifts, 'above' to fire; and the largest current of a neuron behind the first layer.

    All numbers are multiples of a power of two, and float64 adds them exactly. ``shift`` is whether weighted currents
    are cut to whole units before they are added to others, as the chip has to.
    """
    graph, scales = network.graph, network.scales
    values = {graph.input.name: images.double().expand(graph.num_steps, *images.shape)}
    spikes, largest, currents = {}, 0.0, set()
    for node in graph:
        if not node.inputs:
            continue
        x, scale = values[node.inputs[0]], scales[node.name]
        if isinstance(node, (g.Conv, g.Linear)):
            weight = node.weight
            if isinstance(node, g.Linear) and x.ndim > 3:  # the mean over the map, as weights
                weight = weight.repeat_interleave(x[0, 0, 0].numel(), 1) / x[0, 0, 0].numel()
                x = x.flatten(2)
            weight = on_grid(weight, 2 / scale).clamp(-128 * 2 / scale, 127 * 2 / scale)
            bias = on_grid(node.bias, 1 / scale)
            if isinstance(node, g.Linear):
                value = x @ weight.T
            else:
                settings = (node.stride, node.padding, node.dilation, node.groups)
                value = torch.stack([F.conv2d(step, weight, None, *settings) for step in x])
                bias = bias[:, None, None]
            if shift and node.inputs[0] in currents:
                value = (value * scale).floor() / scale
            values[node.name] = value + bias
            currents.add(node.name)
        elif isinstance(node, g.Add):
            values[node.name] = sum(values[name] for name in node.inputs)
            if currents & set(node.inputs):
                currents.add(node.name)
        elif isinstance(node, g.LIF):
            keep, fires_above = 4096 - round(4096 * (1 - node.params.decay)), int(node.params.threshold * scale) << 6
            if spikes:
                largest = max(largest, float((x * scale).abs().max()))
            v, steps = torch.zeros_like(x[0], dtype=torch.int64), []
            for step in (x * scale * 64).trunc().to(torch.int64):
                u = v.sign() * (v.abs() * keep >> 12) + step
                fires = u > fires_above
                v = u * ~fires
                steps.append(fires.double())
            values[node.name] = spikes[node.name] = torch.stack(steps)
        else:  # pooling and flattening, which the linear layer does
            values[node.name] = x
    return spikes, largest


def quantized(images: Tensor) -> dict:
    result = {}
    for name, kwargs in MODELS.items():
        model = lively(name, **SMALL, **kwargs)
        network = to_slayer(model, tuple(images.shape[1:]), quantize=True)
        run = watch_slayer(network, images)
        reference, largest_current = chip(network, images)
        synapses = [
            m for m in network.modules() if isinstance(getattr(m, "weight", None), Tensor) and m.weight.ndim == 5
        ]
        largest = max(float(s.pre_hook_fx(s.weight, descale=True).abs().max()) for s in synapses)
        result[name] = {
            "wrong": sum(int((run.spikes[name] != reference[name]).sum()) for name in reference),
            "unshifted": sum(int((run.spikes[name] != s).sum()) for name, s in chip(network, images, False)[0].items()),
            "from_model": differing(run, watch(model, images)),
            "neuron_steps": sum(s.numel() for s in reference.values()),
            "largest_weight": largest,
            "largest_current": largest_current,
        }
    return result


def training(images: Tensor, labels: Tensor, name: str, quantize: bool) -> dict:
    network = to_slayer(lively(name, **SMALL, **MODELS[name]), tuple(images.shape[1:]), quantize=quantize)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(network.read_out(network(network.frames(images))), labels)
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
