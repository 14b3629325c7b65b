"""``train_distill.py`` with other neurons or norms, for one comparison; not a part of the package.

python train.py VARIANT [what train_distill.py takes]

- ``first-membrane``: a membrane from before the first step is worth a quarter of the threshold there
- ``learned``: that and the decay, one of each for every channel, beginning at 0 and 0.5
- ``frozen-norms``: the student's batch norms stay with the running statistics that they begin with
"""

import runpy
import sys
from pathlib import Path

import torch
from torch import nn

import snnzoo.weights
from snnzoo import layers, neurons

MAIN = Path(__file__).parents[3] / "train_distill.py"


def first_membrane():
    plain = neurons.lif_step
    neurons.lif_step = lambda current, v, params: plain(current + 0.25 if v is None else current, v, params)


def learned():
    def forward(self, x):
        decay, v0 = torch.sigmoid(self.decay)[:, None, None], self.v0[:, None, None]
        v, spikes = None, []
        for current in layers.settle(x).unbind(0):
            u = current.float() + (v0 if v is None else decay * v)
            spikes.append(neurons._Spike.apply(u, self.params))
            v = u - spikes[-1]
        return neurons.join([s.to(current.dtype) for s in spikes])

    def create_model(*args, **kwargs):
        model = plain(*args, **kwargs)
        for name, module in model.named_modules():
            if isinstance(module, layers.LIF):
                channels = {"1": 16, "2": 32, "3": 64}[name[5]] if name.startswith("layer") else 16
                module.decay, module.v0 = (nn.Parameter(torch.zeros(channels)) for _ in range(2))
        return model

    plain, snnzoo.weights.create_model = snnzoo.weights.create_model, create_model
    layers.LIF.forward = forward


def frozen_norms():
    layers.BatchNorm2d.train = lambda self, mode=True: nn.Module.train(self, False)


VARIANTS = {"first-membrane": first_membrane, "learned": learned, "frozen-norms": frozen_norms}

if __name__ == "__main__":
    VARIANTS[sys.argv.pop(1)]()
    sys.argv[0] = str(MAIN)
    sys.path.insert(0, str(MAIN.parent))
    runpy.run_path(str(MAIN), run_name="__main__")
