"""The plan: what it counts, what it recommends, what its digest covers, and that it reads well."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.shapes import gpt2
from shampoo_fn import Config, Momentum, shampoo
from shampoo_fn.layout import layout
from shampoo_optim import Shampoo
from shampoo_optim.distributed.digest import canonical
from shampoo_optim.distributed.exchange import HEADER, Seating
from shampoo_optim.distributed.plan import Plan
from shampoo_optim.distributed.routing import padded
from shampoo_optim.distributed.tiles import tiles_of

SHAPES = {f"layer{index}": (8, 6) for index in range(12)} | {"bias": (8,), "tall": (20, 4)}
SMALL = {"max_preconditioner_dim": 8, "precondition_frequency": 4}


def config(**options: Any) -> Config:
    return shampoo(**(SMALL | options))


def test_loads_are_the_work_of_the_units_that_each_rank_owns() -> None:
    plan = Plan.of(SHAPES, config(staggered=True), ranks=3)
    for rank in range(3):
        owned = [unit.cost for unit, owner in zip(plan.units, plan.owners, strict=True) if owner == rank]
        assert plan.loads[rank] == sum(owned)
    # twelve blocks of 8 x 6; of the tall one two of 8 x 4 and one of 4 x 4
    assert sum(plan.loads) == 12 * (8**3 + 6**3) + 2 * (8**3 + 4**3) + 2 * 4**3
    assert plan.over_interval.mean == sum(plan.loads) / 3


def test_a_refresh_of_all_is_one_step_and_staggered_ones_are_spread_over_the_interval() -> None:
    together, staggered = (Plan.of(SHAPES, config(staggered=value), ranks=2) for value in (False, True))
    assert {unit.turn for unit in together.units} == {0}
    assert {unit.turn for unit in staggered.units} == {0, 1, 2, 3}
    assert (together.refreshes, staggered.refreshes) == (1, 4)
    assert staggered.at_a_step.mean == together.at_a_step.mean / 4
    assert sum(staggered.loads) == sum(together.loads)


def test_small_factors_are_solved_together_in_tiles_of_a_bounded_size() -> None:
    plan = Plan.of({f"w{index}": (128, 128) for index in range(9)}, shampoo(), ranks=2)
    assert [len(unit.slots) for unit in plan.units] == [4, 4, 1, 4, 4, 1]
    assert plan.units[0].cost == 4 * 128**3
    assert plan.units[0].elements == 4 * 128 * 129 // 2


def test_diagonal_factors_are_units_too_and_nearly_free() -> None:
    plan = Plan.of({"w": (30, 4)}, shampoo(max_preconditioner_dim=8, large_dim="diagonal"), ranks=1)
    assert [(unit.n, unit.full, unit.cost, unit.elements) for unit in plan.units] == [
        (30, False, 30.0, 30),
        (4, True, 64.0, 10),
    ]


def test_with_more_ranks_than_blocks_due_at_a_step_a_shorter_interval_is_free() -> None:
    shapes = {f"w{index}": (300, 300) for index in range(12)}  # 12 blocks, 24 factors, each of them a tile
    plan = Plan.of(shapes, shampoo(precondition_frequency=12, staggered=True), ranks=8)
    assert plan.at_a_step.busiest == 300**3
    assert plan.recommended_interval == 3  # four blocks, eight factors on eight ranks
    assert plan.every(3).at_a_step.busiest == plan.at_a_step.busiest
    assert plan.every(2).at_a_step.busiest > plan.at_a_step.busiest
    assert "an interval of 3 is free in work" in str(plan)
    assert Plan.of(shapes, shampoo(precondition_frequency=12), ranks=8).recommended_interval == 12


def test_one_rank_sends_nothing() -> None:
    assert Plan.of(SHAPES, config(), ranks=1).bytes_per_step == 0


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("staggered", [False, True])
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_bytes_of_a_refresh_are_those_of_the_buffer_that_the_exchange_makes(
    ranks: int, staggered: bool, dtype: torch.dtype | None
) -> None:
    params = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
    optimizer = Shampoo(params.items(), **SMALL, staggered=staggered)
    for param in params.values():
        param.grad = torch.ones_like(param)
    ((storage, _),) = optimizer.stacked.of(0)
    plan = Plan(storage.plan, storage.config, ranks, dtype)
    tiles = tiles_of(storage)
    for turn, size in plan.bytes_per_refresh.items():
        chosen = [(tile, owner) for tile, owner in zip(tiles, plan.owners, strict=True) if tile.turn == turn]
        assert size == sum(Seating.of([tile for tile, _ in chosen], [owner for _, owner in chosen], ranks, dtype).sizes)
    assert set(plan.bytes_per_refresh) == {tile.turn for tile in tiles}


def test_roots_travel_packed_and_in_the_dtype_asked_for() -> None:
    plan = Plan.of({"w": (8, 6)}, config(), ranks=2)
    assert plan.root_bytes == 4 * (8 * 9 // 2 + 6 * 7 // 2)
    assert Plan.of({"w": (8, 6)}, config(), ranks=2, dtype=torch.bfloat16).root_bytes == plan.root_bytes // 2
    assert Plan.of({"w": (8, 6)}, config(factor_dtype=torch.float64), ranks=2).root_bytes == plan.root_bytes * 2


def test_equal_inputs_have_equal_digests() -> None:
    first, second = (Plan.of(dict(SHAPES), config(lr=schedule), ranks=3) for _ in range(2))
    assert first.digest == second.digest
    assert len(first.digest) == 64


@pytest.mark.parametrize(
    "other",
    [
        Plan.of(SHAPES, config(), ranks=4),
        Plan.of(SHAPES, config(), ranks=3, dtype=torch.bfloat16),
        Plan.of(SHAPES | {"layer0": (6, 8)}, config(), ranks=3),
        Plan.of({name.replace("3", "three"): shape for name, shape in SHAPES.items()}, config(), ranks=3),
        Plan.of(dict(reversed(SHAPES.items())), config(), ranks=3),
        Plan.of(SHAPES, config(precondition_frequency=5), ranks=3),
        Plan.of(SHAPES, config(betas=(0.9, 0.5)), ranks=3),
        Plan.of(SHAPES, config(nonfinite="propagate"), ranks=3),
        Plan(
            layout({name: torch.empty((0, *shape), dtype=torch.float64) for name, shape in SHAPES.items()}, config()),
            config(),
            3,
        ),
    ],
    ids=["ranks", "dtype sent", "shape", "name", "order", "interval", "option", "policy", "dtype"],
)
def test_whatever_the_ranks_must_agree_on_changes_the_digest(other: Plan) -> None:
    assert other.digest != Plan.of(SHAPES, config(), ranks=3).digest


def test_the_digest_does_not_depend_on_values_that_change_or_on_addresses() -> None:
    one, two = (config(lr=torch.tensor(value)) for value in (0.1, 0.2))
    assert Plan.of(SHAPES, one, ranks=3).digest == Plan.of(SHAPES, two, ranks=3).digest
    assert canonical(schedule).endswith("test_plan.schedule")
    assert "0x" not in canonical([schedule, {"a": torch.ones(2)}, Momentum(0.9), torch.float32, 1.5])


def test_a_plan_is_plain_numbers() -> None:
    found = Plan.of(SHAPES, config(staggered=True), ranks=3).as_dict()
    assert json.loads(json.dumps(found))["ranks"] == 3
    assert len(found["loads"]) == 3
    assert found["over_interval"]["busiest"] == max(found["loads"])


def test_a_plan_reads_well() -> None:
    text = str(Plan.of(gpt2(), shampoo(precondition_frequency=10, staggered=True), ranks=8))
    head, *rows = text.splitlines()
    assert head == "8 ranks, 240 units of root work, staggered over 10 steps"
    assert rows[0].split("  ")[-1] == "ratio at best"
    assert rows[1].split()[-4:] == ["2.27", "1.90", "1.193", "1.053"]
    assert rows[2].split()[-2:] == ["1.002", "1.000"]
    assert all(len(row) <= 200 for row in rows)


def test_a_plan_says_what_staggering_would_bring_and_what_too_many_ranks_send() -> None:
    assert "staggered=True would bring the worst step down to 0.104" in str(Plan.of(gpt2(), shampoo(), ranks=8))
    lonely = str(Plan.of(gpt2(), shampoo(precondition_frequency=100, staggered=True), ranks=64))
    assert "at most 4 units are due at a step, too few for equal segments" in lonely
    segment = padded(HEADER + 8) + 4 * 1024 * 1025 / 2  # of one root
    assert f"up to {63 * segment / 1e6:.4g} MB leave a rank" in lonely
    assert "no step takes longer than one root" in lonely


def test_a_plan_without_roots_and_one_without_parameters_print_too() -> None:
    for shapes in ({"bias": (8,)}, {}):
        plan = Plan.of(shapes, config(staggered=True), ranks=4)
        assert plan.recommended_interval == 4
        assert "0 units" in str(plan)


@pytest.mark.parametrize(
    ("options", "message"), [({"ranks": 0}, "ranks=0"), ({"ranks": 2, "dtype": torch.int8}, "dtype=torch.int8")]
)
def test_a_wrong_argument_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan.of(SHAPES, config(), **options)


def schedule(step: torch.Tensor) -> torch.Tensor:
    return 0.1 / step


def test_the_example_of_the_documentation_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)```", text, flags=re.DOTALL)
    exec(snippet, {})
    printed, expected = capsys.readouterr().out.splitlines(), shown.splitlines()
    assert printed[:-1] == expected[:-1]
    assert printed[-1].startswith("digest ")  # it changes with every option that is added
