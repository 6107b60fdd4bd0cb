"""The ordinary loop with `shampoo_optim.Shampoo`, a scheduler, and a checkpoint from which it resumes to the bit."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from shampoo_optim import Shampoo


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """What a random network says of random inputs."""
    inputs = torch.randn(512, 16)
    teacher = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
    return inputs, teacher(inputs).detach()


def main(arguments: Sequence[str] | None = None) -> tuple[float, float]:
    """Train, print, and return the losses of the first and the last step of this run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--stop-after", type=int, help="end early, as if interrupted, after so many of the steps")
    parser.add_argument("--checkpoint", type=Path, help="a file: resume from it if it is there, write it at the end")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    inputs, targets = data()
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 4))
    optimizer = Shampoo(model.named_parameters(), lr=0.03, weight_decay=1e-4)  # was: torch.optim.AdamW(model.parameters(), ...)
    scheduler = CosineAnnealingLR(optimizer, options.steps)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}

    if options.checkpoint and options.checkpoint.exists():
        saved = torch.load(options.checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])

    losses = []
    for _ in range(scheduler.last_epoch, options.stop_after or options.steps):
        optimizer.zero_grad()
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())

    if not losses:
        print(f"{options.checkpoint} is at step {scheduler.last_epoch} already: --steps says how far to go")
        return math.nan, math.nan
    if options.checkpoint:
        torch.save({name: part.state_dict() for name, part in parts.items()}, options.checkpoint)
    print(f"step {scheduler.last_epoch}: loss {losses[0]:.3g} -> {losses[-1]:.3g}")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
