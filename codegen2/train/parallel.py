"""Several processes as one trainer: who they are, shards of the weights (FSDP2), whole tensors from and to shards.

Not here: the loop. One process is the case of a world of one, in which nothing here does anything. Started by torchrun,
each process has its device, and every weight, gradient and optimizer state is cut along its first axis between all.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..model import CodeGen2


@dataclass(frozen=True)
class World:
    """This process's number, how many there are, and where it computes; mesh is None for one alone."""

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh | None = None

    @property
    def is_first(self) -> bool:
        """Return whether this process writes files and speaks."""
        return self.rank == 0


@contextlib.contextmanager
def join_world(device: str) -> Iterator[World]:
    """Yield the world that torchrun made, or a world of one. Raises ValueError for a device that is not there."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"device {device!r}: this PyTorch sees no CUDA device; choose cpu, or install another build"
        )
    if size == 1:
        yield World(0, 1, torch.device(device))
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    where = torch.device("cuda", local) if device.startswith("cuda") else torch.device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    try:
        yield World(rank, size, where, init_device_mesh(where.type, (size,)))
    finally:
        dist.destroy_process_group()


def end_process(status: int = 0) -> None:
    """End this process with this status if it is one of several, without taking the interpreter apart; else do nothing.

    Taken apart, it aborted once in twelve runs of two gloo processes, when all was done; a thread that lets go of its
    last tensor while the interpreter goes is suspected, not shown. To be called when all is written.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def sum_over(world: World, values: list[float]) -> list[float]:
    """Return each value's sum over all processes."""
    if world.mesh is None:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=world.device)
    dist.all_reduce(total)
    return [float(x) for x in total.tolist()]


def by_first(world: World, work: Callable[[], object], failed: str) -> None:
    """Let the first process do something; where it raises ValueError or OSError all do, the others with this text.

    So nobody goes on to a collective that the first process will not join.
    """
    error: Exception | None = None
    if world.is_first:
        try:
            work()
        except (ValueError, OSError) as e:
            error = e
    if sum_over(world, [float(error is not None)])[0]:
        raise error or ValueError(failed)


def shard(root: nn.Module, model: CodeGen2, world: World, bfloat16: bool) -> None:
    """Cut the weights of each block, and then of the rest, between all processes."""
    if world.mesh is None:
        return
    low = bfloat16 and world.device.type == "cuda"
    # Weights travel in bfloat16, gradients are summed in float32.
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if low else MixedPrecisionPolicy()
    for block in model.transformer.h:
        fully_shard(block, mesh=world.mesh, mp_policy=policy)
    fully_shard(root, mesh=world.mesh, mp_policy=policy)


def fill(model: CodeGen2, source: Callable[[str, Tensor], None]) -> None:
    """Let source write every weight by name into a CPU tensor, and put it, or this process's part, into the model.

    One weight is whole in memory at a time.
    """
    for name, p in model.named_parameters():
        whole = torch.empty(p.shape, dtype=torch.float32)
        source(name, whole)
        put(p.data, whole)


def put(target: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor into target, which may be a shard of such."""
    target.copy_(_like(target, whole))


def gather(tensor: Tensor) -> Tensor:
    """Return a tensor whole and on the CPU; all processes must ask at once."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def gather_optimizer(optimizer: torch.optim.Optimizer, keep: bool) -> dict[str, Any]:
    """Return an optimizer's state dict with whole tensors; keep=False takes part in the gathering only."""
    found = optimizer.state_dict()
    state = {}
    for number, values in found["state"].items():
        whole = {k: gather(v) if isinstance(v, Tensor) else v for k, v in values.items()}
        if keep:
            state[number] = whole
    return {"state": state, "param_groups": found["param_groups"]}


def scatter_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Undo gather_optimizer: load a state dict with whole tensors into an optimizer, of shards or not."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    state = {}
    for number, values in saved["state"].items():
        state[number] = {k: _like(params[number], v) for k, v in values.items()}
    optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})


def _like(p: Tensor, value: Any) -> Any:
    """Return this process's part of a whole tensor of p's shape where p is a shard; any other value as it is."""
    if not isinstance(p, DTensor) or not isinstance(value, Tensor) or value.shape != p.shape:
        return value
    # Every process has read the same, so nobody needs to send.
    return distribute_tensor(value.to(p.device), p.device_mesh, p.placements, src_data_rank=None)
