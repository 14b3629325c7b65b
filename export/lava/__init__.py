"""Spiking networks as Loihi 2 runs them: quantised, written to a file, simulated by Lava, compared spike by spike."""

from snnzoo.export.lava.quantization import LayerReport, Quantized, quantize
from snnzoo.export.lava.reference import IntegerRun, simulate_integer
from snnzoo.export.lava.runner import MismatchError, compare, open_network, run_simulator, simulate
from snnzoo.export.lava.simulator.network import Layer, LoihiNetwork, Synapses

__all__ = [
    "IntegerRun",
    "Layer",
    "LayerReport",
    "LoihiNetwork",
    "MismatchError",
    "Quantized",
    "Synapses",
    "compare",
    "open_network",
    "quantize",
    "run_simulator",
    "simulate",
    "simulate_integer",
]
