"""Every example runs, as a user would run it, and does what it says; warnings of other packages are theirs."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from examples import ensemble, functional_compile, learning_rate_gradient, training_loop

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_ordinary_loop_trains() -> None:
    first, last = training_loop.main(["--steps", "120"])
    assert last < first / 200


def test_the_ordinary_loop_resumes_to_the_bit(tmp_path: Path) -> None:
    checkpoint = ["--checkpoint", str(tmp_path / "checkpoint.pt")]
    whole = training_loop.main(["--steps", "30"])
    half = training_loop.main(["--steps", "30", "--stop-after", "17", *checkpoint])
    rest = training_loop.main(["--steps", "30", *checkpoint])
    assert half[0] == whole[0]
    assert half[1] > rest[0]
    assert rest[1] == whole[1]


def test_the_compiled_step_trains_in_two_graphs() -> None:
    torch.compiler.reset()
    counters.clear()
    first, last = functional_compile.main(["--steps", "60", "--backend", "eager"])
    assert last < first / 10
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


def test_the_models_of_the_ensemble_train_each_at_its_own_rate() -> None:
    rates = ["0.001", "0.01", "0.1"]
    together = ensemble.main(["--steps", "40", "--rates", *rates])
    falls = [last / first for first, last in together.values()]
    assert falls == sorted(falls, reverse=True)
    assert falls[0] < 1
    assert falls[-1] < 0.1


def test_the_derivative_of_the_learning_rate_is_that_of_finite_differences() -> None:
    at, step = torch.tensor(-4.0, dtype=torch.float64), 1e-5
    derivative = torch.func.grad(learning_rate_gradient.loss_after)(at, 7)
    ahead, behind = (learning_rate_gradient.loss_after(at + sign * step, 7) for sign in (1, -1))
    torch.testing.assert_close(derivative, (ahead - behind) / (2 * step), rtol=1e-5, atol=0)
    assert derivative < -1e-3


def test_the_learning_rate_is_learned() -> None:
    rounds = learning_rate_gradient.main(["--steps", "5", "--rounds", "5"])
    losses = [loss for _, loss in rounds]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize(
    ("example", "package", "fall"),
    [("hugging_face_trainer", "transformers", 3), ("accelerate_loop", "accelerate", 10), ("lightning_module", "lightning", 10)],
)
def test_the_integration_trains_and_resumes(example: str, package: str, fall: float) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'shampoo-fn[integrations]'")
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / f"{example}.py")]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300).stdout
    first, last = map(float, re.search(r"loss (\S+) -> (\S+)", printed).groups())
    resumed = float(re.search(r"resumed at step 30: -> (\S+)", printed).group(1))
    assert last < first / fall
    assert resumed == last
