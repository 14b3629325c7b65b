"""What a Loihi network computes, in torch, whole batches at once: the prediction that the simulator has to match."""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from snnzoo.errors import InputError
from snnzoo.export.lava.simulator.network import CURRENT, FRACTION, STATE, Layer, LoihiNetwork, NetworkError, Synapses

_FLOAT32_EXACT = 2**24


@dataclass(frozen=True, eq=False)
class IntegerRun:
    """What the network did with some images.

    Attributes:
        readout: ``[B, num_classes]``, int64: the readout's state after the last step.
        logits: the same as the model's logits, averaged over time; float64.
        spikes: of the model's LIF layers, by name, ``[T, B, C, H, W]``, uint8; empty if not asked for.
        overflows: by layer, how many sums of currents left 16 bits and how many states 24, where any did.
    """

    readout: Tensor
    logits: Tensor
    spikes: dict[str, Tensor] = field(default_factory=dict)
    overflows: dict[str, tuple[int, int]] = field(default_factory=dict)


@torch.no_grad()
def simulate_integer(network: LoihiNetwork, images: Tensor | np.ndarray, record: bool = True) -> IntegerRun:
    """Run the network, bit by bit as the fixed-point simulator does.

    Args:
        network: see :class:`~snnzoo.export.lava.simulator.network.LoihiNetwork`.
        images: ``[B, C, H, W]``, 8-bit pixels (uint8).
        record: keep the spikes.

    Raises:
        InputError: images of another shape or type.
    """
    pixels = torch.from_numpy(check_pixels(network, images))
    values, spikes, overflows = {network.layers[0].name: pixels[None]}, {}, {}
    left = {name: sum(s.source == name for layer in network for s in layer.inputs) for name in network.depths}
    for layer in network.layers[1:]:
        current = sum(_arrives(s, values[s.source]) for s in layer.inputs)
        current = current.expand(network.num_steps, *current.shape[1:])
        if layer.kind == "graded":
            values[layer.name], too_large, clipped = current, 0, int((current.abs() > STATE).sum())
        else:
            values[layer.name], state, clipped = _lif(layer, current)
            too_large = int((current.abs() > CURRENT).sum())
        if too_large or clipped:
            overflows[layer.name] = (too_large, clipped)
        if record and layer.spikes:
            spikes[layer.name] = values[layer.name]
        for s in layer.inputs:  # forget what nobody will read any more
            left[s.source] -= 1
            if not left[s.source]:
                del values[s.source]
    readout = state.flatten(1)
    return IntegerRun(readout, readout.double() * network.logit_scale, spikes, overflows)


def check_pixels(network: LoihiNetwork, images: Tensor | np.ndarray) -> np.ndarray:
    """8-bit images as what the input layer sends; :class:`InputError` if they are not the network's."""
    try:
        return network.pixels(np.asarray(images))
    except NetworkError as error:
        raise InputError(str(error)) from error


def _arrives(synapses: Synapses, x: Tensor) -> Tensor:
    """Integers ``[T, B, C, H, W]`` through synapses, int32. Exact: no partial sum leaves what the type can count."""
    if synapses.shift:
        return x >> synapses.shift
    weight = torch.from_numpy(synapses.weight).double()
    bound = float(weight.abs().sum((1, 2, 3)).max()) * max(1, int(x.abs().max()))
    dtype = torch.float32 if bound < _FLOAT32_EXACT else torch.float64
    settings = (None, synapses.stride, synapses.padding, synapses.dilation, synapses.groups)
    with torch.backends.nnpack.flags(enabled=False):  # its fast convolutions are not exact
        result = F.conv2d(x.flatten(0, 1).to(dtype), weight.to(dtype), *settings)
    return result.to(torch.int32).unflatten(0, x.shape[:2])


def _lif(layer: Layer, current: Tensor) -> tuple[Tensor, Tensor, int]:
    """Spikes, the state that is left, and how often it met the ends of its 24 bits."""
    threshold, keep = FRACTION * layer.threshold, 4096 - layer.decay
    bias = torch.from_numpy(layer.bias_map() << layer.bias_exp)
    v, clipped, spikes = torch.zeros(current.shape[1:], dtype=torch.int64), 0, []
    for current_t in current:
        v = v.sign() * (v.abs() * keep >> 12) + FRACTION * current_t.long() + bias
        clipped += int((v.abs() > STATE).sum())
        v = v.clamp(-STATE, STATE)
        fired = v > threshold
        spikes.append(fired.to(torch.uint8))
        if layer.kind != "readout":
            v = v - (threshold + 1) * fired if layer.reset == "soft" else v * ~fired
    return torch.stack(spikes), v, clipped
