"""The processes of a network, with Lava's own models wherever Lava has one; or those that lava-dl's netx makes of it.

Tensors are ``(W, H, C)`` there, weights ``(C_out, W, H, C_in)``, and its convolution flips the kernel, which ours does
not.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from lava.magma.core.process.process import AbstractProcess
from lava.proc.conv.process import Conv
from lava.proc.graded.process import GradedVec
from lava.proc.io.sink import Read
from lava.proc.io.source import RingBuffer as Source
from lava.proc.lif.process import LIFReset
from lava.proc.sparse.process import Sparse
from scipy.sparse import identity

from .network import Layer, LoihiNetwork, Synapses
from .recorder.process import Recorder
from .soft_lif.process import SoftLIFReset

NO_CURRENT_DECAY = 4095  # du: what is left of the synaptic current after a step is nothing
MESSAGE_BITS = 24  # of what is not a plain spike


@dataclass
class Processes:
    """What :func:`build` made.

    Attributes:
        start: any of the connected processes; running it runs them all.
        recordings: files of the recorded layers by name, ``[steps, W, H, C]``.
        readout: reads the readout's state at the last step of each image.
        num_steps: how many steps the images take, until the last answer.
    """

    start: AbstractProcess
    readout: Read
    num_steps: int
    recordings: dict[str, Path] = field(default_factory=dict)


def build(network: LoihiNetwork, images: np.ndarray, record: tuple[str, ...], folder: Path) -> Processes:
    """Connect the processes that show ``images`` one after the other, each for T steps.

    Args:
        network: what to build.
        images: ``[B, C, H, W]``, uint8.
        record: names of the layers whose spikes to keep.
        folder: for the files of what is recorded.
    """
    first = _source(network, images)
    outputs = {network.layers[0].name: first.s_out}
    neurons: dict[str, AbstractProcess] = {}
    for layer in network.layers[1:]:
        neurons[layer.name] = _neurons(network, layer)
        for synapses in layer.inputs:
            _connect(network, synapses, outputs[synapses.source], neurons[layer.name])
        outputs[layer.name] = neurons[layer.name].s_out
    return _watched(network, len(images), first, neurons, record, folder)


def build_netx(
    path: str, network: LoihiNetwork, images: np.ndarray, record: tuple[str, ...], folder: Path
) -> Processes:
    """The same, but lava-dl's stock netx makes the network of its file ``path``. It has to be sequential."""
    from lava.lib.dl.netx.hdf5 import Network

    # An image reaches the first neurons at step 2, so that is where their state has to begin anew.
    net = Network(net_config=path, input_message_bits=16, reset_interval=network.num_steps, reset_offset=1)
    first = _source(network, images)
    first.s_out.connect(net.inp)
    names = [layer.name for layer in network.layers[1:]]
    neurons = {name: block.neuron for name, block in zip(names, net.layers, strict=True)}
    return _watched(network, len(images), first, neurons, record, folder)


def _source(network: LoihiNetwork, images: np.ndarray) -> Source:
    pixels = np.repeat(network.pixels(images), network.num_steps, axis=0)
    return Source(data=pixels.transpose(3, 2, 1, 0))


def _watched(
    network: LoihiNetwork,
    count: int,
    first: Source,
    neurons: dict[str, AbstractProcess],
    record: tuple[str, ...],
    folder: Path,
) -> Processes:
    """Connected processes, with others that record layers and read the answers of ``count`` images."""
    steps, depth = network.num_steps, network.depths[network.readout.name]
    read = Read(buffer=count + depth // steps + 1, interval=steps, offset=(depth - 1) % steps)
    read.connect_var(neurons[network.readout.name].v)
    processes = Processes(first, read, count * steps + depth)
    for number, name in enumerate(record):
        width_first, path = network[name].shape[::-1], folder / f"{number}.npy"
        np.lib.format.open_memmap(path, "w+", np.int32, (processes.num_steps, *width_first)).flush()
        recorder = Recorder(shape=width_first, path=str(path))
        neurons[name].s_out.connect(recorder.a_in)
        processes.recordings[name] = path
    return processes


def _neurons(network: LoihiNetwork, layer: Layer) -> AbstractProcess:
    shape = layer.shape[::-1]
    if layer.kind == "graded":
        return GradedVec(shape=shape, vth=0)
    process = SoftLIFReset if layer.reset == "soft" else LIFReset
    return process(
        shape=shape, du=NO_CURRENT_DECAY, dv=layer.decay, vth=layer.threshold,
        bias_mant=layer.bias_map().T.astype(int), bias_exp=layer.bias_exp,
        # Lava's time starts at 1: the first step whose input is an image's starts from zero.
        reset_interval=network.num_steps, reset_offset=network.depths[layer.name] + 1,
    )  # fmt: skip


def _connect(network: LoihiNetwork, synapses: Synapses, source, neurons: AbstractProcess) -> None:
    layer = network[synapses.source]
    shape = layer.shape[::-1]
    if synapses.shift:  # of the stock connections only these shift right what they have added up
        size = int(np.prod(shape))
        weights = identity(size, dtype=np.int32, format="csr")
        shifter = Sparse(weights=weights, weight_exp=-synapses.shift, num_message_bits=MESSAGE_BITS)
        source.flatten().connect(shifter.s_in)
        shifter.a_out.reshape(new_shape=shape).connect(neurons.a_in)
        return
    weight = synapses.weight.astype(int)[:, :, ::-1, ::-1].transpose(0, 3, 2, 1)
    conv = Conv(
        weight=np.ascontiguousarray(weight), input_shape=shape, stride=synapses.stride[::-1],
        padding=synapses.padding[::-1], dilation=synapses.dilation[::-1], groups=synapses.groups,
        num_message_bits=0 if layer.kind == "lif" else MESSAGE_BITS,
    )  # fmt: skip
    source.connect(conv.s_in)
    conv.a_out.connect(neurons.a_in)
