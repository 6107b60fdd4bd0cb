"""`benchmarks.step`: its counts are those of the bare products, and its tables hold what was measured."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import step
from benchmarks.step_floor import bare_products, flops, traffic
from benchmarks.step_runs import stepper, storage_of

SHAPES = {"square": (8, 8), "wide": (8, 24), "bias": (8,)}


def test_flops_are_those_of_the_products() -> None:
    storage = storage_of(stepper(SHAPES, max_preconditioner_dim=8))
    with FlopCounterMode(display=False) as counter:
        bare_products(storage)()
    assert counter.get_total_flops() == flops(storage.plan) == 4 * 4 * 2 * 8**3


def test_bytes_grow_with_the_work() -> None:
    one, two = (storage_of(stepper({f"w{i}": (8, 8) for i in range(n)})).plan for n in (1, 2))
    assert traffic(two) == 2 * traffic(one) == 2 * 4 * (6 * 64 + 3 * 2 * 64)


def test_what_a_precision_does_is_measured() -> None:
    torch.manual_seed(0)
    errors = step.rounding()
    assert 0 < errors["highest"] < 1e-6 < 10 * errors["medium"]
    assert errors["medium"] < 1e-2


def test_every_table_has_its_rows() -> None:
    torch.manual_seed(0)
    steady = step.steady(SHAPES, 8, 1, compiled=False)
    assert steady["milliseconds"].keys() == {
        "bare products",
        "eager",
        "eager, statistics in 'medium'",
        "packed",
        "AdamW(fused=True)",
    }
    assert all(time > 0 for time in steady["milliseconds"].values())
    assert steady["stages"].keys() == {"statistics", "update", "roots"}
    assert all(time > 0 for stage in steady["stages"].values() for time in stage["milliseconds"].values())
    assert steady["stages"]["statistics"]["flops"] + steady["stages"]["update"]["flops"] == steady["flops"]
    rows = {"torch.linalg.eigh, float32", "step, all roots due", "step, all roots due, in float32"}
    assert step.refreshing(SHAPES, 8, 1)["milliseconds"].keys() == rows
    assert step.staggering(SHAPES, 8, 1)["staggered"] >= 1
