"""The processes of a run: one, or those that torchrun has started."""

import os
from typing import Any

import torch
import torch.distributed as dist
from timm.utils.distributed import init_distributed_device_so, is_distributed_env
from torch import Tensor

from snnzoo.errors import InputError
from snnzoo.scripting import as_input_error, open_device


class Processes:
    """This process among those of the run; alone, every method is the identity.

    Gradients and statistics travel by the device's own backend (nccl, gloo); what the hosts tell each other goes by
    gloo, so that it never waits for a GPU.

    Args:
        device: name of the device; under torchrun with several GPUs, each process takes its own.

    Attributes:
        rank, count: which process this is, of how many.
        device: the device of this process.

    Raises:
        InputError: no such device.
    """

    def __init__(self, device: str):
        self.rank, self.count, self._hosts = 0, 1, None
        if is_distributed_env():
            cards = torch.cuda.device_count()
            if device.startswith("cuda") and int(os.environ.get("LOCAL_RANK", 0)) >= cards:
                raise InputError(
                    f"{os.environ.get('LOCAL_WORLD_SIZE', '?')} processes on a machine with {cards} GPUs: give "
                    f"torchrun --nproc-per-node {cards}, or --device cpu"
                )
            with as_input_error(f"--device {device}, or what torchrun says about the processes,"):
                info = init_distributed_device_so(device)
            self.rank, self.count, device = info["global_rank"], info["world_size"], info["device"]
            self._hosts = dist.new_group(backend="gloo")
        self.device = open_device(device)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and logs."""
        return self.rank == 0

    @property
    def together(self) -> bool:
        """Whether there are others."""
        return self.count > 1

    def sum(self, value: Tensor) -> Tensor:
        """The sum over processes of a tensor on the device, in place."""
        if self.together:
            dist.all_reduce(value)
        return value

    def maximum(self, value: int) -> int:
        """The largest of the processes' numbers."""
        if not self.together:
            return value
        tensor = torch.tensor(value)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._hosts)
        return int(tensor)

    def from_first(self, value: Any) -> Any:
        """The first process's value, in all of them."""
        if not self.together:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._hosts)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank."""
        if not self.together:
            return [value]
        values = [None] * self.count
        dist.all_gather_object(values, value, group=self._hosts)
        return values

    def close(self) -> None:
        """Leave the others in order."""
        if self.together:
            dist.barrier(group=self._hosts)
            dist.destroy_process_group()
