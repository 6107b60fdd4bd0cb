"""The main job: it runs, its parts keep their promises, and both contenders start from the same place."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.contenders import CONTENDERS
from benchmarks.curves import Curve, Group, table
from benchmarks.race import Task, run
from benchmarks.schedule import WarmupCosine
from benchmarks.text import VOCABULARY, Text, batches, spread, standard_library
from benchmarks.train import main

TINY = Task(steps=4, width=16, layers=1, heads=2, context=8, batch=2, evaluate_every=2, held_out_windows=4)


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def text() -> Text:
    return standard_library()


@pytest.mark.usefixtures("one_thread")
def test_the_job_leaves_a_picture_a_csv_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "deep" / "train.png"
    main(["--steps", "2", "--seeds", "1", "--out", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = csv.DictReader(picture.with_suffix(".csv").read_text().splitlines())
    assert {row["optimizer"] for row in rows} == {"AdamW", "Shampoo"}
    assert "ms per step" in capsys.readouterr().out


def test_every_contender_starts_from_the_same_weights_and_improves(text: Text) -> None:
    curves = [run(one, one.best, TINY, text, seed=0, compiled=False) for one in CONTENDERS]
    assert len({curve.losses[0] for curve in curves}) == 1
    assert all(curve.losses[-1] < curve.losses[0] for curve in curves)


def test_the_best_settings_are_members_of_the_grid() -> None:
    for contender in CONTENDERS:
        assert contender.best.keys() == contender.grid.keys()
        assert all(value in contender.grid[name] for name, value in contender.best.items())


def test_a_seed_decides_the_batches(text: Text) -> None:
    first, again, other = (next(batches(text.train, count=1, batch=2, context=8, seed=seed))[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_targets_are_the_inputs_one_byte_later(text: Text) -> None:
    inputs, targets = spread(text.held_out, count=3, context=8)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert inputs.max() < VOCABULARY


def test_the_learning_rate_warms_up_then_falls_to_a_tenth() -> None:
    rates = [WarmupCosine(peak=2.0, total=100)(torch.tensor(step)).item() for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[9] == pytest.approx(2.0)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.2)


def test_the_table_says_when_the_baselines_best_loss_was_reached() -> None:
    slow = Group([Curve("slow", 0, steps=[0, 5, 10], seconds=[0.0, 1.0, 2.0], losses=[5.0, 4.0, 3.0])])
    fast = Group([Curve("fast", 0, steps=[0, 5, 10], seconds=[0.0, 3.0, 6.0], losses=[5.0, 2.5, 2.0])])
    poor = Group([Curve("poor", 0, steps=[0, 5, 10], seconds=[0.0, 1.0, 2.0], losses=[5.0, 4.5, 4.0])])
    _, *rows = table([slow, fast, poor]).splitlines()
    assert [row.split()[0] for row in rows] == ["slow", "fast", "poor"]
    assert rows[0].split()[3:] == ["10", "2.0", "200.0"]
    assert rows[1].split()[3:] == ["5", "3.0", "600.0"]
    assert rows[2].split()[3:] == ["never", "never", "200.0"]
