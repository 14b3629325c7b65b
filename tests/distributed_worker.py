"""Run by torchrun: twenty steps of a distilled student on this process's share of each batch; prints as JSON."""

import json
import sys

import timm
import torch

import snnzoo  # noqa: F401, registers the models
from snnzoo.distill import AnnGuidedDistillationTask
from snnzoo.processes import Processes
from snnzoo.sync import OWN_BUFFERS, synchronise

STEPS, BATCH = 20, 16


def train(processes: Processes, grad_method: str, model: str = "snn_resnet20_t2") -> dict:
    torch.manual_seed(0)
    # float64: otherwise a rounding can bring one neuron over its threshold, and everything after it goes another way
    student = timm.create_model(model, depths=(1, 1, 1), grad_method=grad_method).double()
    teacher = timm.create_model("cifar_resnet20").double()
    task = AnnGuidedDistillationTask(student, teacher, input_size=(3, 8, 8), dtype=torch.float64, verbose=False)
    task.train().double()  # the adapters, too
    images, labels = torch.randn(STEPS, BATCH, 3, 8, 8).double(), torch.randint(10, (STEPS, BATCH))
    if processes.together:
        synchronise(task.get_trainable_module())
    optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), 0.05, momentum=0.9)
    if processes.together:
        task.prepare_distributed(**OWN_BUFFERS)
    losses = []
    for x, y in zip(images, labels, strict=True):
        result = task(x[processes.rank :: processes.count], y[processes.rank :: processes.count])
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
        losses.append(float(processes.sum(result["loss"].detach()) / processes.count))
    state = task.get_eval_model().state_dict()
    return {"losses": losses, "running": {k: v.tolist() for k, v in state.items() if "running" in k}}


if __name__ == "__main__":
    processes = Processes("cpu")
    found = train(processes, sys.argv[1])
    if processes.is_first:
        print(json.dumps(found))
    processes.close()
