"""Weights that are trained on the grid of the 8-bit integers they will become (``train_distill.py --quant``).

The layer keeps its weight, in floating point, for the optimizer, and computes with the nearest point of the grid.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

ENDS = (-128, 127)
_INSIDE, _ORIGINAL, _STEP = ".parametrizations.weight.", "original", "0.step"  # torch's names


class Grid(nn.Module):
    """A parametrization: a weight to the nearest of -128 … 127 steps; gradients pass, but not beyond the ends.

    Args:
        step: ``[C]``, of each input channel.
    """

    def __init__(self, step: Tensor):
        super().__init__()
        self.register_buffer("step", step)

    def forward(self, weight: Tensor) -> Tensor:
        """``[O, C, …]`` in and out."""
        zero = torch.zeros_like(self.step, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, self.step, zero, 1, *ENDS)


def put_on_grid(layer: nn.Module, step: Tensor) -> None:
    """Let a layer compute with its weight on a grid of ``step``, ``[C]``; the layer is changed in place."""
    parametrize.register_parametrization(layer, "weight", Grid(step.to(layer.weight)))


def plain_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the weights that layers on grids compute with, under the names of plain layers."""
    state = dict(state_dict)
    for key in [key for key in state if key.endswith(_INSIDE + _ORIGINAL)]:
        layer = key.removesuffix(_INSIDE + _ORIGINAL)
        state[f"{layer}.weight"] = Grid(state.pop(layer + _INSIDE + _STEP))(state.pop(key))
    return state
