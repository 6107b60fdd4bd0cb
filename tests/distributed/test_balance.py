"""How evenly root work is spread for real models on up to 4,096 ranks; where it is not, that nothing could spread it better."""

from collections import Counter
from collections.abc import Iterator
from functools import cache

import pytest

from benchmarks.shapes import MODELS, elements
from shampoo_fn import shampoo
from shampoo_optim.distributed.plan import Plan

RANKS = (8, 64, 512, 4096)
CLOSE = 1.05


@cache
def model(name: str, interval: int) -> Plan:
    """The plan for one rank, staggered: what it holds does not depend on how many there are."""
    return Plan.of(MODELS[name](), shampoo(precondition_frequency=interval, staggered=True), 1)


@cache
def plan(name: str, ranks: int, interval: int = 10) -> Plan:
    found = model(name, interval)
    return Plan(found.layout, found.config, ranks)


@pytest.mark.parametrize(
    ("name", "parameters"),
    # GPT-2's and Llama's published counts, torchvision's for ResNet-50
    [("GPT-2 124M", 124_439_808), ("Llama-7B", 6_738_415_616), ("ResNet-50", 25_557_032)],
)
def test_the_shapes_are_those_of_the_models(name: str, parameters: int) -> None:
    assert elements(MODELS[name]()) == parameters


def test_every_layer_of_the_mixture_has_a_hundred_experts_of_three_matrices() -> None:
    names = [name for name in MODELS["MoE, 100 experts"]() if ".experts." in name]
    per_layer = Counter(name.split(".experts.")[0] for name in names)
    assert len(per_layer) == 24
    assert set(per_layer.values()) == {300}


# In sum over an interval, where single factors are large beside a rank's share: busiest over mean, below which ratio nothing is
# possible, and the proof: weights for n = 1024 and n = 768, in this order. No set of factors whose work is below that ratio
# weighs more than 1, and all factors together weigh more than there are ranks. (Without turns Llama-7B is at 1.086; with them
# no rank has more than one root at a step, and which rank has it must serve ten steps.)
INTERVAL_EXCEPTIONS = {
    ("GPT-2 124M", 64): (1.067, 1.066, (2 / 5, 1 / 5)),
    ("Llama-7B", 4096): (1.138, 1.085, (1 / 3, 2 / 15)),
}


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", MODELS)
def test_over_an_interval_the_busiest_rank_is_within_5_percent_of_the_mean_where_the_factors_allow_it(
    name: str, ranks: int
) -> None:
    found = plan(name, ranks).over_interval
    if (name, ranks) in INTERVAL_EXCEPTIONS:
        assert found.ratio == pytest.approx(INTERVAL_EXCEPTIONS[name, ranks][0], abs=1e-3)
    elif found.best_ratio <= 1.04:
        assert found.ratio <= CLOSE
    else:
        assert found.busiest == found.at_best  # a single factor is more than the mean rank's share


@pytest.mark.parametrize(("name", "ranks"), INTERVAL_EXCEPTIONS)
def test_the_exceptions_over_an_interval_are_proven(name: str, ranks: int) -> None:
    costs = Counter(unit.cost for unit in plan(name, ranks).units)
    _, possible, weights = INTERVAL_EXCEPTIONS[name, ranks]
    assert needed(costs, weights, capacity=possible * plan(name, ranks).over_interval.mean) > ranks


# At single steps: one such case
STEP_EXCEPTION = ("GPT-2 124M", 8)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", MODELS)
def test_at_every_step_the_busiest_rank_is_within_5_percent_of_what_the_largest_factors_impose(name: str, ranks: int) -> None:
    found = plan(name, ranks).at_a_step
    if (name, ranks) == STEP_EXCEPTION:
        assert found.ratio == pytest.approx(1.193, abs=1e-3)
    else:
        assert found.busiest <= 1.001 * found.at_best
    if found.best_ratio <= 1.04:
        assert found.ratio <= CLOSE
    elif found.busiest == max(unit.cost for unit in plan(name, ranks).units):
        assert found.best_ratio == found.ratio  # a step is one factor: the bound is exact


def test_the_exception_at_a_step_is_proven() -> None:
    found = plan(*STEP_EXCEPTION)
    costs = Counter(unit.cost for unit in found.units)
    cells = found.ranks * found.interval
    assert needed(costs, (1 / 2, 1 / 4), capacity=1.11 * found.at_a_step.mean) > cells


def needed(costs: Counter[float], weights: tuple[float, float], capacity: float) -> float:
    """A number of ranks without which these factors do not fit, each rank's work being below the capacity.

    Every rank that stays below it holds factors of weight 1 at most, which is checked for all sets of factors; so there must be
    as many ranks as all factors weigh. Factors beyond the two largest sizes weigh nothing.
    """
    sizes = sorted(costs, reverse=True)[: len(weights)]
    assert all(sum(n * w for n, w in zip(each, weights, strict=True)) <= 1 + 1e-12 for each in fillings(sizes, capacity))
    return sum(costs[size] * weight for size, weight in zip(sizes, weights, strict=True))


def fillings(sizes: list[float], capacity: float) -> Iterator[tuple[int, ...]]:
    """How many factors of each size fit below the capacity together."""
    if not sizes:
        yield ()
        return
    for count in range(int(capacity // sizes[0]) + 1):
        if count * sizes[0] < capacity:
            yield from ((count, *rest) for rest in fillings(sizes[1:], capacity - count * sizes[0]))


@pytest.mark.parametrize("name", ["GPT-2 124M", "Llama-7B"])
def test_the_worst_step_of_an_interval_of_a_hundred_is_what_the_largest_factors_impose(name: str) -> None:
    for ranks in RANKS:
        found = plan(name, ranks, interval=100).at_a_step
        assert found.busiest == pytest.approx(found.at_best, rel=0.01)


@pytest.mark.parametrize("name", MODELS)
def test_turns_and_tiles_do_not_depend_on_the_number_of_ranks(name: str) -> None:
    assert plan(name, 8).units == plan(name, 4096).units
    assert plan(name, 8).owners != plan(name, 4096).owners


@pytest.mark.parametrize("name", MODELS)
def test_the_slots_of_every_factor_are_in_exactly_one_tile(name: str) -> None:
    found = plan(name, 64)
    seen = Counter((unit.stack, unit.path, slot) for unit in found.units for slot in unit.slots)
    specs = {stack.key: stack.transform.root_specs(stack.block) for stack in found.layout.stacks}
    sizes = {stack.key: stack.size for stack in found.layout.stacks}
    assert set(seen.values()) == {1}
    assert set(seen) == {(key, path, slot) for key in specs for path in specs[key] for slot in range(sizes[key])}
    assert all(len({found.layout.turns[unit.stack][slot] for slot in unit.slots}) == 1 for unit in found.units)
