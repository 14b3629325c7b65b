"""Run by a Python with lava-dl: a network's file in stock netx. ``lava_netx.py NET.h5 PIXELS.npy OUT.npz T OFFSET``.

PIXELS holds what the input sends, ``[B, C, H, W]``; written are the last layer's states after each image.
"""

import logging
import sys

import numpy as np
from lava.lib.dl.netx.hdf5 import Network
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.proc.io.sink import RingBuffer as Sink
from lava.proc.io.source import RingBuffer as Source

if __name__ == "__main__":
    logging.disable(logging.WARNING)
    file, pixels, out, num_steps = sys.argv[1], np.load(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    # An image reaches the first neurons at step 2, so that is where their state has to begin anew.
    net = Network(net_config=file, input_message_bits=16, reset_interval=num_steps, reset_offset=1)
    depth = len(net.layers)
    source = Source(data=np.repeat(pixels, num_steps, axis=0).transpose(3, 2, 1, 0))
    sink = Sink(shape=net.layers[-2].neuron.s_out.shape, buffer=len(pixels) * num_steps + depth)
    source.s_out.connect(net.inp)
    net.layers[-2].neuron.s_out.connect(sink.a_in)
    config, states = Loihi2SimCfg(select_tag="fixed_pt"), []
    for image in range(len(pixels)):
        net.run(condition=RunSteps(num_steps=num_steps + (depth if image == 0 else 0)), run_cfg=config)
        states.append(net.layers[-1].neuron.v.get().ravel())
    spikes = sink.data.get()[..., depth - 1 :][..., : len(pixels) * num_steps]
    net.stop()
    np.savez(out, states=np.stack(states), spikes=spikes.transpose(3, 2, 1, 0))
