"""A model of Lava's Conv: the same integers, by one matrix product instead of a scipy call for each channel pair."""

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from lava.proc.conv import utils
from lava.proc.conv.models import AbstractPyConvModel
from lava.proc.conv.process import Conv


def convolve(x: np.ndarray, weight: np.ndarray, stride, padding, dilation, groups: int) -> np.ndarray:
    """What ``lava.proc.conv.utils.conv`` computes of whole numbers, exactly: their sums stay below 2^53.

    Args:
        x: ``[W, H, C]``.
        weight: ``[O, KW, KH, C / groups]``.
        stride, padding, dilation: along W and H.
        groups: of channels.

    Returns:
        ``[W', H', O]``.
    """
    outs, *kernel, per_group = weight.shape
    (px, py), (sx, sy), (dx, dy) = padding, stride, dilation
    x = np.pad(x, ((px, px), (py, py), (0, 0))).astype(np.float64)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]  # noqa: B905, two each
    windows = np.lib.stride_tricks.sliding_window_view(x, reach, axis=(0, 1))[::sx, ::sy, :, ::dx, ::dy]
    width, height = windows.shape[:2]
    columns = windows.reshape(width * height, groups, per_group * kernel[0] * kernel[1]).transpose(1, 0, 2)
    flipped = weight[:, ::-1, ::-1].transpose(0, 3, 1, 2).reshape(groups, outs // groups, -1)
    result = columns @ flipped.transpose(0, 2, 1).astype(np.float64)
    return result.transpose(1, 0, 2).reshape(width, height, outs)


@implements(proc=Conv, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class FastConvModel(AbstractPyConvModel):
    """Takes the place of Lava's ``PyConvModelFixed`` where a run asks for it."""

    s_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    a_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    a_buf: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)
    weight: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=8)

    def run_spk(self) -> None:
        self.a_out.send(self.a_buf)
        x = self.s_in.recv()
        if not self.num_message_bits.item():
            x = x.astype(bool)
        settings = (self.stride, self.padding, self.dilation)
        result = convolve(x, self.weight, *([int(n) for n in pair] for pair in settings), int(self.groups[0]))
        self.a_buf = utils.signed_clamp(result.astype(np.int32), bits=24)
