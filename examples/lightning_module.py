"""A LightningModule with Shampoo and a scheduler, and a Lightning checkpoint from which training resumes."""

import argparse
import tempfile
from collections.abc import Sequence
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from shampoo_optim import Shampoo


class Regression(lightning.LightningModule):
    """A small network, its loss and its optimizer."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.network = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
        self.losses: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        inputs, targets = batch
        loss = (self.network(inputs) - targets).square().mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = Shampoo(self.named_parameters(), lr=0.03)  # was: torch.optim.AdamW(self.parameters(), ...)
        scheduler = CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def fit(module: Regression, steps: int, **options: Any) -> lightning.Trainer:
    """Train a module up to a step."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(256, 16, generator=generator)
    targets = torch.tanh(inputs @ torch.randn(16, 4, generator=generator) / 4)
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=256)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(accelerator="cpu", max_steps=steps, max_epochs=-1, **quiet)
    trainer.fit(module, loader, **options)
    return trainer


def main(arguments: Sequence[str] | None = None) -> None:
    """Train in one go, train in two with a checkpoint between them, and print how both ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="an even number")
    steps = parser.parse_args(arguments).steps
    torch.manual_seed(0)
    whole, half, resumed = Regression(steps), Regression(steps), Regression(steps)
    half.load_state_dict(whole.state_dict())
    fit(whole, steps)
    with tempfile.TemporaryDirectory() as directory:
        fit(half, steps // 2).save_checkpoint(f"{directory}/half.ckpt")
        fit(resumed, steps, ckpt_path=f"{directory}/half.ckpt")
    print(f"step {steps}: loss {whole.losses[0]:.6g} -> {whole.losses[-1]:.6g}")
    print(f"resumed at step {steps // 2}: -> {resumed.losses[-1]:.6g}")


if __name__ == "__main__":
    main()
