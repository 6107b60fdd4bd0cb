"""One more job of the study: low-rank adapters (LoRA) teach the byte-level GPT, itself frozen, the text read backwards.

Hu et al. 2021, arXiv 2106.09685: `W x` becomes `W x + 2 up (down x)`, down [rank, into] drawn at random, up [out, rank]
zero. Such matrices are much longer than wide: with rank 8 up to 64 times here, and 512 times in a large model.
"""

from functools import cache
from typing import cast

import torch
from torch import Tensor, nn

from benchmarks.gpt import GPT
from benchmarks.gpt import loss as bytes_loss
from benchmarks.race import Task
from benchmarks.study_contenders import train
from benchmarks.study_settings import DEFAULTS
from benchmarks.tasks import GPT as PRETRAINING
from benchmarks.tasks import JOBS, Job, Params
from benchmarks.text import Text, standard_library

SCALE = 2.0


class Adapted(nn.Module):
    """A linear layer, frozen, plus an adapter."""

    def __init__(self, frozen: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.down = nn.Parameter(torch.empty(rank, frozen.in_features))
        self.up = nn.Parameter(torch.zeros(frozen.out_features, rank))
        nn.init.normal_(self.down, std=frozen.in_features**-0.5, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.frozen(x) + SCALE * (x @ self.down.mT) @ self.up.mT)


def adapters(rank: int, pretraining: int) -> Job:
    """The job, for adapters of this rank and a GPT that was trained for so many steps."""

    def model(seed: int) -> GPT:
        adapted = Task(steps=0).model(0).requires_grad_(False)
        adapted.load_state_dict(_pretrained(pretraining))
        generator = torch.Generator().manual_seed(seed)
        linear = [name for name, module in adapted.layers.named_modules() if isinstance(module, nn.Linear)]
        for name in linear:
            adapted.layers.set_submodule(name, Adapted(cast(nn.Linear, adapted.layers.get_submodule(name)), rank, generator))
        return adapted

    return Job(
        name=f"adapters-{rank}",
        steps=200,
        model=model,
        batches=lambda seed, steps: Task(steps=steps).batches(_backwards(), seed),
        held_out=lambda: Task(steps=0).held_out(_backwards()),
        loss=bytes_loss,
        diagonal=(),
    )


@cache
def _backwards() -> Text:
    text = standard_library()
    return Text(train=text.train.flip(0), held_out=text.held_out.flip(0))


@cache
def _pretrained(steps: int) -> Params:
    *_, params = train(PRETRAINING, 0, {**DEFAULTS, "lr": 0.014}, steps=steps)
    return params


ALL_JOBS = JOBS | {job.name: job for job in (adapters(rank, PRETRAINING.steps) for rank in (8, 16))}
