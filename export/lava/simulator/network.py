"""A network in the integers of a Loihi 2 chip, and its file.

The file is HDF5. Where every layer reads only the one before it and resets hard, it also has the keys of lava-dl's
netx, and a stock ``lava.lib.dl.netx.hdf5.Network`` loads it.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

KINDS = ("input", "lif", "graded", "readout")
FORMAT, VERSION = "snnzoo-loihi", 1
WEIGHT = (-128, 127)  # 8 bits
BIAS = (-4096, 4095)  # 13 bits, times 2 ** exponent
BIAS_EXPONENTS = (0, 7)
THRESHOLD = (0, 2**17 - 1)
DECAY = (0, 4095)  # 12 bits; what is taken away of 4096
CURRENT = 2**15 - 1  # a_in, 16 bits
STATE = 2**23 - 1  # 24 bits
FRACTION = 64  # a membrane counts 64ths of what a current counts
NETX_BIAS_EXPONENT = 6  # netx knows no other


class NetworkError(ValueError):
    """A network that Loihi cannot hold, or a file that is none; the message names layer, value and remedy."""


@dataclass(frozen=True, eq=False)
class Synapses:
    """A convolution from one layer into another, whose result arrives one step later.

    Attributes:
        source: the layer that it reads.
        weight: ``[O, C / groups, KH, KW]``, int8, to be correlated as torch does.
        shift: bits that are cut off from what arrives, rounding down; then the weights are an identity.
        origin: the model's layer that it stands for; empty where it only passes on.
    """

    source: str
    weight: np.ndarray
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    shift: int = 0
    origin: str = ""

    def out_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """``(C, H, W)`` of the result from that of the source."""
        settings = zip(shape[1:], self.weight.shape[2:], self.stride, self.padding, self.dilation, strict=True)
        return (len(self.weight), *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in settings))


@dataclass(frozen=True, eq=False)
class Layer:
    """Neurons of one kind. With a the sum of what arrives at a step and v a 24-bit state, zero before the first step:

    - ``input``: sends the pixels of the image, each less ``pixel_offset`` of its channel, at every step.
    - ``lif``: ``v <- trunc(v (4096 - decay) / 4096) + 64 a + bias 2^bias_exp``, and fires when ``v > 64 threshold``;
      then v becomes 0, or with ``reset='soft'`` is less by ``64 threshold + 1``.
    - ``graded``: sends a.
    - ``readout``: a lif that adds up, with a leak or without, and never fires; v after the last step is the answer.

    Attributes:
        shape: ``(C, H, W)``.
        bias: ``[C]``, or ``[C, H, W]`` where it differs at the border, int; the mantissa.
        decay: what a step takes of the state, in 4096ths.
        scale: the model's current that one unit of a is worth.
        spikes: whether it stands for one of the model's LIF layers, of the same name.
    """

    name: str
    kind: str
    shape: tuple[int, int, int]
    inputs: tuple[Synapses, ...] = ()
    bias: np.ndarray | None = None
    bias_exp: int = NETX_BIAS_EXPONENT
    threshold: int = 0
    decay: int = 0
    reset: str = "hard"
    scale: float = 1.0
    spikes: bool = False

    def bias_map(self) -> np.ndarray:
        """The mantissa of each neuron's bias, ``[C, H, W]``, int64."""
        bias = np.zeros(self.shape[:1], np.int64) if self.bias is None else self.bias.astype(np.int64)
        return np.broadcast_to(bias if bias.ndim == 3 else bias[:, None, None], self.shape)


@dataclass(frozen=True, eq=False)
class LoihiNetwork:
    """Layers in an order in which each comes after what it reads; checked on construction.

    Attributes:
        layers: the first is the input, the last the readout.
        num_steps: T, for how many steps an image is shown.
        pixel_offset: ``[C]``, what is subtracted of the 8-bit pixels before they are sent, near the data's mean.
        model: name of the model.
        metadata: how to prepare images, names of the classes.

    Raises:
        NetworkError: a value outside the chip's range, sources of different depth, shapes that do not fit.
    """

    layers: tuple[Layer, ...]
    num_steps: int
    pixel_offset: np.ndarray
    model: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        kinds = [layer.kind for layer in self.layers]
        if len(kinds) < 2 or kinds[0] != "input" or kinds[-1] != "readout" or not set(kinds[1:-1]) <= {"lif", "graded"}:
            raise NetworkError(f"a network is an input, neurons and a readout, got {', '.join(kinds) or 'nothing'}")
        if self.num_steps < 1:
            raise NetworkError(f"num_steps must be at least 1, got {self.num_steps}")
        if len(self.pixel_offset) != self.layers[0].shape[0]:
            raise NetworkError(f"{len(self.pixel_offset)} pixel offsets for {self.layers[0].shape[0]} channels")
        before: dict[str, Layer] = {}
        for layer in self.layers:
            self._check(layer, before)
            before[layer.name] = layer

    def _check(self, layer: Layer, before: dict[str, Layer]) -> None:
        where = f"layer {layer.name!r}"
        if layer.name in before:
            raise NetworkError(f"{where}: another layer has the same name")
        if layer.kind != "input" and not layer.inputs:
            raise NetworkError(f"{where} reads nothing")
        _within(where, "threshold", layer.threshold, THRESHOLD)
        _within(where, "decay", layer.decay, DECAY)
        _within(where, "bias exponent", layer.bias_exp, BIAS_EXPONENTS)
        if layer.bias is not None:
            if layer.bias.shape not in (layer.shape, layer.shape[:1]):
                raise NetworkError(f"{where}: a bias of shape {layer.bias.shape} for neurons of shape {layer.shape}")
            _within(where, "bias", layer.bias, BIAS)
        if layer.reset not in ("hard", "soft"):
            raise NetworkError(f"{where}: reset must be 'hard' or 'soft', got {layer.reset!r}")
        for synapses in layer.inputs:
            if synapses.source not in before:
                raise NetworkError(f"{where} reads {synapses.source!r}, which is no layer before it")
            if synapses.weight.dtype != np.int8:
                raise NetworkError(f"{where}: weights must be int8, got {synapses.weight.dtype}")
            shape = synapses.out_shape(before[synapses.source].shape)
            if shape != layer.shape:
                raise NetworkError(f"{where} has shape {layer.shape}, {synapses.source!r} brings it {shape}")
        depths = {self.depths[synapses.source] for synapses in layer.inputs}
        if len(depths) > 1:
            raise NetworkError(f"{where} reads layers of depths {sorted(depths)}, which arrive at different steps")

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __getitem__(self, name: str) -> Layer:
        return next(layer for layer in self.layers if layer.name == name)

    @cached_property
    def depths(self) -> dict[str, int]:
        """After how many steps each layer sees an image, by name: 0 for the input."""
        depths: dict[str, int] = {}
        for layer in self.layers:
            depths[layer.name] = 1 + depths.get(layer.inputs[0].source, 0) if layer.inputs else 0
        return depths

    @property
    def readout(self) -> Layer:
        return self.layers[-1]

    @property
    def sequential(self) -> bool:
        """Whether stock netx can hold it."""
        pairs = zip(self.layers[1:], self.layers, strict=False)
        return all(
            [synapses.source for synapses in layer.inputs] == [before.name]
            and layer.kind in ("lif", "readout")
            and layer.reset == "hard"
            and layer.bias_exp == NETX_BIAS_EXPONENT
            and not layer.inputs[0].shift
            for layer, before in pairs
        )

    @property
    def logit_scale(self) -> float:
        """One unit of the readout's state as a logit, averaged over time (by what its leak has left of each step)."""
        keep = (4096 - self.readout.decay) / 4096
        return self.readout.scale / FRACTION / sum(keep**t for t in range(self.num_steps))

    def pixels(self, images: np.ndarray) -> np.ndarray:
        """8-bit images ``[B, C, H, W]`` as what the input layer sends.

        Raises:
            NetworkError: not 8-bit, or of another shape.
        """
        images = np.asarray(images)
        shape = self.layers[0].shape
        if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
            raise NetworkError(
                f"images must be 8-bit pixels (uint8) of shape [B, {', '.join(map(str, shape))}], "
                f"got {images.dtype} {list(images.shape)}"
            )
        return images.astype(np.int32) - self.pixel_offset.astype(np.int32)[:, None, None]


def _within(where: str, what: str, value: Any, limits: tuple[int, int]) -> None:
    value = np.asarray(value)
    if value.dtype.kind not in "iu" or value.min() < limits[0] or value.max() > limits[1]:
        bad = value[(value < limits[0]) | (value > limits[1])] if value.dtype.kind in "iu" else value
        raise NetworkError(f"{where}: {what} must be whole and within {limits}, got {bad.ravel()[:3].tolist()}")


_PAIRS = ("stride", "padding", "dilation")


def save(network: LoihiNetwork, path: str | os.PathLike) -> None:
    """Write the file; the caller sees to it that it appears whole."""
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs.update(
            format=FORMAT, version=VERSION, num_steps=network.num_steps, model=network.model,
            metadata=json.dumps(network.metadata), pixel_offset=network.pixel_offset, sequential=network.sequential,
        )  # fmt: skip
        for index, layer in enumerate(network):
            group = file.create_group(f"layer/{index}")
            for key in ("name", "kind", "threshold", "decay", "bias_exp", "reset", "scale", "spikes"):
                group.attrs[key] = getattr(layer, key)
            group["shape"] = np.array(layer.shape)
            if layer.bias is not None:
                group["bias"] = layer.bias.T  # netx's order: (W, H, C)
            for number, synapses in enumerate(layer.inputs):
                edge = group.create_group(f"edge/{number}")
                edge.create_dataset("weight", data=synapses.weight, compression="gzip", shuffle=True)
                edge.attrs.update({key: getattr(synapses, key) for key in (*_PAIRS, "groups", "shift")})
                edge.attrs.update(source=synapses.source, origin=synapses.origin)
            if network.sequential:
                _add_netx(group, layer)


def _add_netx(group, layer: Layer) -> None:
    """The keys by which lava-dl knows a layer."""
    group.create_dataset("type", (1,), "S10", [b"conv" if layer.inputs else b"input"])
    if not layer.inputs:
        return
    (synapses,) = layer.inputs
    group["weight"] = group["edge/0/weight"]  # a hard link
    for key in _PAIRS:
        group[key] = np.array(getattr(synapses, key))
    group["groups"] = synapses.groups
    neuron = group.create_group("neuron")
    neuron.create_dataset("type", (1,), "S10", [b"CUBA"])
    for key, value in dict(iDecay=4096, vDecay=layer.decay, vThMant=layer.threshold, refDelay=1, gradedSpike=0).items():
        neuron[key] = value


def load(path: str | os.PathLike) -> LoihiNetwork:
    """Read a file that :func:`save` wrote.

    Raises:
        NetworkError: no such file, a damaged one, or one of another format or version.
    """
    import h5py

    path = os.fspath(path)
    if not Path(path).is_file():
        raise NetworkError(f"no network file at {path!r}")
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT:
                raise NetworkError(f"{path!r} is an HDF5 file, but none that `snnzoo export lava` wrote")
            if file.attrs["version"] != VERSION:
                raise NetworkError(
                    f"{path!r} has version {file.attrs['version']} of the format, this snnzoo reads {VERSION}: "
                    f"write it again with `snnzoo export lava`"
                )
            layers = tuple(_layer(file[f"layer/{index}"]) for index in range(len(file["layer"])))
            return LoihiNetwork(
                layers, int(file.attrs["num_steps"]), file.attrs["pixel_offset"][:], file.attrs["model"],
                json.loads(file.attrs["metadata"]),
            )  # fmt: skip
    except NetworkError:
        raise
    except Exception as error:  # h5py has many ways to say that bytes are missing
        raise NetworkError(f"{path!r} cannot be read, it is damaged or no HDF5 file: {error}") from error


def _layer(group) -> Layer:
    edges = group["edge"] if "edge" in group else {}
    attributes = dict(group.attrs)
    whole = {key: int(attributes[key]) for key in ("threshold", "decay", "bias_exp")}
    return Layer(
        attributes["name"], attributes["kind"], tuple(int(n) for n in group["shape"][:]),
        tuple(_synapses(edges[str(number)]) for number in range(len(edges))),
        group["bias"][:].T if "bias" in group else None,
        reset=attributes["reset"], scale=float(attributes["scale"]), spikes=bool(attributes["spikes"]), **whole,
    )  # fmt: skip


def _synapses(edge) -> Synapses:
    pairs = {key: tuple(int(n) for n in edge.attrs[key]) for key in _PAIRS}
    return Synapses(
        edge.attrs["source"], edge["weight"][:], groups=int(edge.attrs["groups"]), shift=int(edge.attrs["shift"]),
        origin=edge.attrs["origin"], **pairs,
    )  # fmt: skip
