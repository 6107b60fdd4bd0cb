"""A loop under Hugging Face Accelerate with Shampoo: accumulated gradients, clipping, a scheduler, state saved and loaded."""

import argparse
import tempfile
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from shampoo_optim import Shampoo


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, train the second half once more from the saved state, and print how both ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="an even number")
    steps = parser.parse_args(arguments).steps

    torch.manual_seed(0)
    inputs = torch.randn(256, 16)
    targets = torch.tanh(inputs @ torch.randn(16, 4) / 4)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
    optimizer = Shampoo(model.named_parameters(), lr=0.03)  # was: torch.optim.AdamW(model.parameters(), ...)
    scheduler = CosineAnnealingLR(optimizer, steps)
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=128)

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=len(loader))
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)

    def epoch() -> float:
        """One step of the optimizer, its gradient accumulated over the batches."""
        total = 0.0
        for batch, wanted in loader:
            with accelerator.accumulate(model):
                loss = (model(batch) - wanted).square().mean()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            total += loss.item() / len(loader)
        return total

    with tempfile.TemporaryDirectory() as directory:
        first = [epoch() for _ in range(steps // 2)]
        accelerator.save_state(directory)
        second = [epoch() for _ in range(steps // 2)]
        accelerator.load_state(directory)
        again = [epoch() for _ in range(steps // 2)]
    print(f"step {steps}: loss {first[0]:.6g} -> {second[-1]:.6g}")
    print(f"resumed at step {steps // 2}: -> {again[-1]:.6g}")


if __name__ == "__main__":
    main()
