#!/usr/bin/env python3
"""Training loss from trained weights, by the neuron's arguments: what made the last table of c10-decay-2026-11-26.md.

python c10-reset-2026-11-26.py --data-dir DIR --teacher resnet20.safetensors --model-kwargs detach_reset=False
"""

import argparse
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from timm.utils import ParseKwargs

import snnzoo  # noqa: F401, registers the models
from snnzoo.neurons import Surrogate

BATCH, PER_CLASS, AVERAGED = 128, 2500, 25
MEAN, STD = (torch.tensor(x).view(1, 3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
LAST = dict(memory_format=torch.channels_last)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data-dir", type=Path, required=True, help="CIFAR-10 as folders of images")
parser.add_argument("--teacher", required=True, help="weights of cifar_resnet20, its classifier called linear")
parser.add_argument("--model-kwargs", nargs="*", default={}, action=ParseKwargs)
parser.add_argument("--alpha", type=float, help="of the sigmoid")
parser.add_argument("--batches", type=int, default=125)
args = parser.parse_args()
torch.set_num_threads(1)

files = [sorted(folder.iterdir())[:PER_CLASS] for folder in sorted((args.data_dir / "train").iterdir())]
images = torch.from_numpy(np.stack([np.array(Image.open(f).convert("RGB")) for folder in files for f in folder]))
labels = torch.arange(10).repeat_interleave(PER_CLASS)

kwargs = {"decay": 0.5, "readout_decay": 1.0, **args.model_kwargs, "grad_method": "bptt"}
if args.alpha:
    kwargs["surrogate"] = Surrogate("sigmoid", args.alpha)
model = timm.create_model("snn_resnet20_t4", pretrained=True, **kwargs).to(**LAST).train()
teacher = timm.create_model("cifar_resnet20")
teacher.load_state_dict({k.replace("linear.", "fc."): v for k, v in load_file(args.teacher).items()})
teacher = teacher.to(**LAST).eval()
optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9, weight_decay=5e-4)

generator, losses = torch.Generator().manual_seed(7), []
for batch in range(1, args.batches + 1):
    chosen = torch.randint(len(images), (BATCH,), generator=generator)
    x = F.pad((images[chosen].permute(0, 3, 1, 2).float() / 255 - MEAN) / STD, (4,) * 4)
    tops = torch.randint(0, 9, (BATCH, 2), generator=generator).tolist()
    flips = torch.rand(BATCH, generator=generator) < 0.5
    crops = [image[:, i : i + 32, j : j + 32] for image, (i, j) in zip(x, tops, strict=True)]
    x = torch.stack([crop.flip(-1) if flip else crop for crop, flip in zip(crops, flips, strict=True)]).to(**LAST)
    with torch.no_grad():
        target = F.softmax(teacher(x), 1)
    logits = model(x)
    task = F.cross_entropy(logits, labels[chosen])
    distance = F.kl_div(F.log_softmax(logits, 1), target, reduction="batchmean")
    optimizer.zero_grad()
    (0.5 * task + 0.5 * distance).backward()
    optimizer.step()
    losses.append((task.item(), distance.item()))
    if batch % AVERAGED == 0:
        print(batch, "cross-entropy {:.4f} distance {:.4f}".format(*np.mean(losses[-AVERAGED:], 0)), flush=True)
