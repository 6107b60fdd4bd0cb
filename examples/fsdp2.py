"""FSDP2 with Shampoo: parameters, gradients and state are sharded, and the steps are those of one process.

    torchrun --standalone --nproc-per-node 2 examples/fsdp2.py --checkpoint /tmp/fsdp2

The checkpoint is a folder that any number of ranks can resume from. On several machines, on each of them:

    torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint FIRST_HOST:29500 examples/fsdp2.py
"""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from shampoo_optim import Shampoo
from shampoo_optim.distributed import FullySharded


def train(arguments: Sequence[str] | None = None) -> tuple[float, float]:
    """Train as one rank of the default process group; the losses of the first and the last step of this run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--stop-after", type=int, help="end early, as if interrupted, after so many of the steps")
    parser.add_argument("--checkpoint", type=Path, help="a folder: resume from it if it is there, write it at the end")
    options = parser.parse_args(arguments)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")

    torch.manual_seed(0)  # the same data and weights everywhere, and of the data each rank takes a part
    inputs = torch.randn(512, 16)
    targets = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))(inputs).detach()
    inputs, targets = (each[rank::ranks].to(device) for each in (inputs, targets))
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 4)).to(device)
    fully_shard(model, mesh=init_device_mesh(device.type, (ranks,)))
    optimizer = Shampoo(model.named_parameters(), lr=0.03, distributed=FullySharded("exact"))  # the one argument more

    step = 0
    if options.checkpoint and options.checkpoint.exists():
        weights, state = get_state_dict(model, optimizer)
        saved = {"model": weights, "optimizer": state, "step": step}
        dcp.load(saved, checkpoint_id=options.checkpoint)
        set_state_dict(model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])
        step = saved["step"]

    losses = []
    while step < (options.stop_after or options.steps):
        optimizer.zero_grad()
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        optimizer.step()
        step += 1
        dist.all_reduce(shared := loss.detach() / ranks)
        losses.append(shared.item())

    if not losses:
        if rank == 0:
            print(f"{options.checkpoint} is at step {step} already: --steps says how far to go")
        return math.nan, math.nan
    if options.checkpoint:
        weights, state = get_state_dict(model, optimizer)
        writer = dcp.FileSystemWriter(options.checkpoint, overwrite=True)
        dcp.save({"model": weights, "optimizer": state, "step": step}, storage_writer=writer)
    if rank == 0:
        print(f"{ranks} ranks, step {step}: loss {losses[0]:.3g} -> {losses[-1]:.3g}")
    return losses[0], losses[-1]


def main() -> None:
    """One process as `torchrun` starts it."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    train()
    dist.barrier()  # no rank leaves while another still talks to it
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
