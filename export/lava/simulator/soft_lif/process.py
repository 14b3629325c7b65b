"""LIF neurons with a soft reset, which Lava lacks; the arithmetic before the reset is Lava's own."""

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.ports import PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from lava.proc.lif.models import AbstractPyLifModelFixed
from lava.proc.lif.process import LIFReset


class SoftLIFReset(LIFReset):
    """As LIFReset, but a spike takes ``64 vth + 1`` from the voltage, the least at which the neuron fires."""


@implements(proc=SoftLIFReset, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PySoftLifResetModelFixed(AbstractPyLifModelFixed):
    """Fixed-point model. On the chip it needs microcode."""

    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    vth: int = LavaPyType(int, np.int32, precision=17)

    def __init__(self, proc_params):
        super().__init__(proc_params)
        self.interval = proc_params["reset_interval"]
        self.offset = proc_params["reset_offset"] % self.interval

    def scale_threshold(self):
        self.effective_vth = np.left_shift(self.vth, self.vth_shift)
        self.isthrscaled = True

    def spiking_activation(self):
        return self.v > self.effective_vth

    def reset_voltage(self, spike_vector):
        self.v[spike_vector] -= self.effective_vth + 1

    def run_spk(self):
        if self.time_step % self.interval == self.offset:  # before what arrives is added
            self.u[:] = 0
            self.v[:] = 0
        super().run_spk()
