"""Training by several processes, one for each GPU, as `torchrun` starts them.

    torchrun --nproc-per-node 4 -m litemed.train.cli DATA --base lite_medsam.pth -o RUN

(Where a machine's own name does not lead back to it that hangs; give `--local-addr 127.0.0.1` then.)

Every batch is dealt out to the processes, and the gradients are those of the whole batch. Each process has
random numbers of its own for augmentation and boxes; otherwise their number changes the rounding and the
speed, nothing else. (One exception: where batch norms learn, their statistics are those of the whole batch on
GPUs, and those of the first process's share on CPUs, for want of a synchronised batch norm there.)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from litemed.runtime.errors import UsageError


@dataclass(frozen=True)
class Processes:
    """This process among those that train together. rank: its number, from 0. device: where it computes."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of `values` over all processes; every one of them has to call."""
        if self.world > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values

    def any(self, answer: bool) -> bool:
        """Whether any process says yes; every one of them has to call."""
        return answer if self.world == 1 else bool(self.sum(torch.tensor(float(answer))).item())

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            dist.barrier()

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return a module whose backward pass averages the gradients over the processes.

        Call it in the mode, training or evaluation, that the network is trained in.
        """
        if self.world == 1:
            return network
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        learning = any(norm.training for norm in norms)
        on_gpu = self.device.type == "cuda"
        if learning and on_gpu:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return DistributedDataParallel(
            network,
            device_ids=[self.device.index] if on_gpu else None,
            broadcast_buffers=learning and not on_gpu,
        )


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the processes that `torchrun` started, or be alone.

    device: "auto", "cpu" or "cuda". Raises UsageError when a GPU is asked for and none is there.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if device == "cuda" and torch.cuda.device_count() <= local_rank:
        raise UsageError(
            f"device cuda: {torch.cuda.device_count()} GPUs here, process {local_rank} needs another"
        )
    on_gpu = device != "cpu" and torch.cuda.device_count() > local_rank
    place = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(place)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Processes(0, 1, place)
        return
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), place)
    finally:
        dist.destroy_process_group()
