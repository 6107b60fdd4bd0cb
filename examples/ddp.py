"""DistributedDataParallel with Shampoo: one more argument, and the ranks share the inverse roots.

    torchrun --standalone --nproc-per-node 2 examples/ddp.py --checkpoint /tmp/ddp.pt

On several machines, on each of them:

    torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint FIRST_HOST:29500 examples/ddp.py
"""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from shampoo_optim import Shampoo
from shampoo_optim.distributed import Scattered


def train(arguments: Sequence[str] | None = None) -> tuple[float, float]:
    """Train as one rank of the default process group; the losses of the first and the last step of this run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--checkpoint", type=Path, help="a file: resume from it if it is there, write it at the end")
    options = parser.parse_args(arguments)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")

    torch.manual_seed(0)  # the same data and weights everywhere, and of the data each rank takes a part
    inputs = torch.randn(512, 16)
    targets = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))(inputs).detach()
    inputs, targets = (each[rank::ranks].to(device) for each in (inputs, targets))
    model = DistributedDataParallel(nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 4)).to(device))
    optimizer = Shampoo(model.named_parameters(), lr=0.03, distributed=Scattered())  # the one argument more

    start = 0
    if options.checkpoint and options.checkpoint.exists():
        saved = torch.load(options.checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]

    losses = []
    for _ in range(start, options.steps):
        optimizer.zero_grad()
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        optimizer.step()
        dist.all_reduce(shared := loss.detach() / ranks)
        losses.append(shared.item())

    if not losses:
        if rank == 0:
            print(f"{options.checkpoint} is at step {start} already: --steps says how far to go")
        return math.nan, math.nan
    if options.checkpoint and rank == 0:  # every rank holds all of it, so one writes it, for any number of ranks
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": options.steps}
        torch.save(state, options.checkpoint)
    if rank == 0:
        print(f"{ranks} ranks, step {options.steps}: loss {losses[0]:.3g} -> {losses[-1]:.3g}")
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
