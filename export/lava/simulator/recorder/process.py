"""A sink that writes to a file what it receives: Lava's own hands back its buffer number by number, which takes longer
than the simulation."""

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol


class Recorder(AbstractProcess):
    """Writes what arrives at step t, of ``shape``, as entry t - 1 of a ``.npy`` file that is there already."""

    def __init__(self, *, shape: tuple, path: str):
        super().__init__(shape=shape, path=path)
        self.a_in = InPort(shape=shape)


@implements(proc=Recorder, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyRecorderModel(PyLoihiProcessModel):
    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)

    def run_spk(self):
        file = np.lib.format.open_memmap(self.proc_params["path"], "r+")
        file[self.time_step - 1] = self.a_in.recv()
        file.flush()
