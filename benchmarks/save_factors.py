"""Save Kronecker factors of a real training run, for the tests of inverse roots.

python -m benchmarks.save_factors       tests/data/real_factors.pt: {"parameter / mode": [n, n] float32, bias-corrected}
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.counts import count
from benchmarks.gpt import loss
from benchmarks.race import Task
from benchmarks.schedule import WarmupCosine
from benchmarks.text import standard_library
from shampoo_fn import apply_updates, init_state, shampoo, to_dict, update

OUT = Path(__file__).parent.parent / "tests" / "data" / "real_factors.pt"
BETA2 = 0.95
# the embedding's factor over bytes (many of which never occur), attention's input side, and both sides of a perceptron layer
WANTED = (
    ("token.weight", "0"),
    ("layers.0.attention.qkv.weight", "1"),
    ("layers.1.mlp.0.weight", "0"),
    ("layers.1.mlp.2.weight", "0"),
)


def factors(steps: int) -> dict[str, Tensor]:
    """The wanted factors after so many steps of Shampoo on a small byte-level GPT."""
    task, text = Task(steps=steps), standard_library()
    model = task.model(seed=0)
    config = shampoo(lr=WarmupCosine(1e-2, steps), betas=(0.9, BETA2), max_preconditioner_dim=256)
    gradients_of = torch.func.grad(partial(loss, model))
    params = {name: parameter.detach() for name, parameter in model.named_parameters()}
    state = init_state(params, config)
    for inputs, targets in tqdm(task.batches(text, seed=0), total=steps, unit="step", disable=None):
        updates, state = update(gradients_of(params, inputs, targets), state, config, params)
        params = apply_updates(params, updates)
    blocks = {name: next(iter(saved.values())) for name, saved in to_dict(state, config).items()}
    return {f"{name} / {mode}": _factor(blocks[name], mode) / (1 - BETA2**steps) for name, mode in WANTED}


def _factor(block: dict[str, Tensor], mode: str) -> Tensor:
    (path,) = (path for path in block if path.endswith(f"factors.{mode}"))
    return block[path]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.save_factors", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=count, default=100, help="optimizer steps before the factors are taken (%(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="where they are kept (tests/data/real_factors.pt)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    saved = factors(options.steps)
    torch.save(saved, options.out)
    for name, matrix in saved.items():
        print(f"{name:40} {tuple(matrix.shape)}")
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
