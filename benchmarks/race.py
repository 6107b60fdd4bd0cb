"""One run: a contender trains the task's GPT from a seed, and its held-out loss is taken on the way."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.contenders import Contender, Settings
from benchmarks.curves import Curve
from benchmarks.gpt import GPT, loss
from benchmarks.text import VOCABULARY, Text, batches, spread


@dataclass(frozen=True)
class Task:
    """What is trained and how long; contenders at the same seed get the same initial weights and the same batches."""

    steps: int
    width: int = 128
    layers: int = 2
    heads: int = 4
    context: int = 64
    batch: int = 16
    evaluate_every: int = 10
    held_out_windows: int = 256

    def model(self, seed: int) -> GPT:
        return GPT(VOCABULARY, width=self.width, layers=self.layers, heads=self.heads, context=self.context, seed=seed)

    def batches(self, text: Text, seed: int) -> list[tuple[Tensor, Tensor]]:
        drawn = batches(text.train, count=self.steps, batch=self.batch, context=self.context, seed=seed)
        return list(drawn)

    def held_out(self, text: Text) -> tuple[Tensor, Tensor]:
        return spread(text.held_out, count=self.held_out_windows, context=self.context)


def run(contender: Contender, settings: Settings, task: Task, text: Text, *, seed: int, compiled: bool) -> Curve:
    model = task.model(seed)
    held_out = task.held_out(text)
    training = contender.train(model, task.batches(text, seed), settings, total=task.steps, compiled=compiled)
    curve = Curve(contender.name, seed)
    seconds = 0.0
    for step in _progress(task.steps, curve):
        # Process time adds up what all threads worked, and does not count what other programs took from them.
        began = time.process_time()
        params = next(training)
        if step > 0:
            seconds += time.process_time() - began
        if step % task.evaluate_every == 0 or step == task.steps:
            with torch.no_grad():
                curve.add(step, seconds, loss(model, params, *held_out).item())
    return curve


def _progress(steps: int, curve: Curve) -> Iterator[int]:
    """The steps from 0 on: behind a moving bar in a terminal, as five plain lines where the output goes elsewhere."""
    label = f"{curve.name:8} seed {curve.seed}"
    moving = sys.stderr.isatty()
    yield 0
    with tqdm(total=steps, desc=label, disable=not moving, unit="step", dynamic_ncols=True) as bar:
        for step in range(1, steps + 1):
            yield step
            bar.update()
            bar.set_postfix_str(f"held-out {curve.losses[-1]:.3f}", refresh=False)
            if not moving and (step % max(1, steps // 5) == 0 or step == steps):
                print(f"{label}  step {step:4}/{steps}  held-out {curve.losses[-1]:.3f}", file=sys.stderr, flush=True)
