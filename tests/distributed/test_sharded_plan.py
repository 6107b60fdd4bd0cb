"""Who owns what: balanced, complete, and the same everywhere; what it moves, counted from the plan and as it travels."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.volumes import traded_bytes, update_bytes
from shampoo_fn import Config, shampoo
from shampoo_fn.blocking import Region, cut
from shampoo_fn.layout import Layout, layout, restricted
from shampoo_optim import diagnose
from shampoo_optim.distributed.exchange import DIGEST
from shampoo_optim.distributed.ownership import Ownership, load_of, owned
from tests.distributed.sharding import MANY, SHAPES, TENSOR_NORMS, give, model_for, optimizer_for, stepped
from tests.distributed.support import spawned
from tests.optim.support import grads_for, parameters

GPT2 = {"wte.weight": (50257, 768), "wpe.weight": (1024, 768), "ln_f.weight": (768,), "ln_f.bias": (768,)} | {
    f"h.{number}.{name}": shape
    for number in range(12)
    for name, shape in {
        **{f"{norm}.{which}": (768,) for norm in ("ln_1", "ln_2") for which in ("weight", "bias")},
        "attn.c_attn.weight": (768, 2304),
        "attn.c_attn.bias": (2304,),
        "attn.c_proj.weight": (768, 768),
        "attn.c_proj.bias": (768,),
        "mlp.c_fc.weight": (768, 3072),
        "mlp.c_fc.bias": (3072,),
        "mlp.c_proj.weight": (3072, 768),
        "mlp.c_proj.bias": (768,),
    }.items()
}


def plan_of(shapes: dict[str, tuple[int, ...]], config: Config) -> Layout:
    return layout({name: torch.empty((0, *shape), device="meta") for name, shape in shapes.items()}, config)


def shared_out(shapes: dict[str, tuple[int, ...]], config: Config, ranks: int) -> tuple[Layout, Ownership]:
    plan = plan_of(shapes, config)
    return plan, owned([plan], ranks)[0]


@pytest.mark.parametrize("options", [{}, {"diagonal": ()}, {"momentum": 0.9}], ids=["default", "no embeddings", "momentum"])
def test_gpt2_on_eight_ranks(options: dict[str, Any]) -> None:
    plan, ownership = shared_out(GPT2, shampoo(0.01, **options), 8)
    assert len({run.rank for run in ownership.runs["wte.weight", 0]}) >= 5  # the embedding is cut
    for field in ("work", "bytes", "elements"):
        loads = [getattr(load, field) for load in ownership.loads]
        assert max(loads) <= 1.05 * sum(loads) / 8, field
    # the loads are those of the blocks that each rank keeps
    for rank, load in enumerate(ownership.loads):
        own = restricted(plan, ownership.kept(rank))
        found = [(load_of(stack), stack.size) for stack in own.stacks]
        assert sum(each.bytes * count for each, count in found) == pytest.approx(load.bytes)
    assert "8 ranks own 317 blocks" in str(ownership)


@pytest.mark.parametrize("config", [shampoo(0.1, max_preconditioner_dim=16), TENSOR_NORMS], ids=["blocks", "norms"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 40])
def test_every_block_has_one_owner(config: Config, ranks: int) -> None:
    plan, ownership = shared_out(SHAPES, config, ranks)
    for name, regions in plan.regions.items():
        for part, region in enumerate(regions):
            runs = ownership.runs[name, part]
            assert [block for run in runs for block in range(run.start, run.stop)] == list(range(region.size))
            assert len({run.rank for run in runs}) == len(runs)
    if config is TENSOR_NORMS:
        owners = {
            name: {run.rank for (each, _), runs in ownership.runs.items() if each == name for run in runs} for name in SHAPES
        }
        assert all(len(ranks) == 1 for ranks in owners.values())


def test_groups_go_on_where_those_before_them_end() -> None:
    config = shampoo(0.1)
    plans = [plan_of({f"{layer}.w": (64, 64)}, config) for layer in range(8)]
    found = owned(plans, 4)
    assert [each.runs[f"{layer}.w", 0][0].rank for layer, each in enumerate(found)] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert owned(plans[:5], 4) == found[:5]  # a group that is added later moves nothing


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.data())
def test_a_run_of_blocks_is_a_few_regions(counts: list[int], data: st.DataObject) -> None:
    region = Region((1,) * len(counts), tuple(counts), (2,) * len(counts))
    start = data.draw(st.integers(0, region.size))
    stop = data.draw(st.integers(start, region.size))
    tensor = torch.arange(float(torch.tensor([1 + 2 * count for count in counts]).prod())).view(
        [1 + 2 * count for count in counts]
    )
    parts = region.between(start, stop)
    assert len(parts) < 2 * len(counts)
    assert torch.equal(
        torch.cat([tensor.new_empty((0, *region.block)), *(cut(tensor, part) for part in parts)]),
        cut(tensor, region)[start:stop],
    )


@contextmanager
def counting() -> Iterator[Counter[tuple[str, int]]]:
    """Collectives and the bytes that they bring, as torch.distributed is called."""
    found: Counter[tuple[str, int]] = Counter()
    gather = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"

    def counted(kind: str, original: Any) -> Any:
        def call(output: Tensor, *args: Any, **kwargs: Any) -> Any:
            found[kind, output.numel() * output.element_size()] += 1
            return original(output, *args, **kwargs)

        return call

    names = {"gather": gather, "trade": "all_to_all_single"}
    patches = [patch.object(dist, name, counted(kind, getattr(dist, name))) for kind, name in names.items()]
    for each in patches:
        each.start()
    yield found
    for each in patches:
        each.stop()


def moved(mode: str) -> Counter[tuple[str, int]]:
    """What the third step moves."""
    module = model_for(mode)
    optimizer = optimizer_for(mode, module)
    for grads in grads_for(parameters(shapes=SHAPES), 3):
        give(module, grads)
        with counting() as found:
            optimizer.step()
    return found


def diagnosed() -> list[set[str]]:
    """The parameters that this rank can say something about, by mode."""
    found = []
    for mode in ("sharded", "exact"):
        optimizer = stepped(mode)
        found.append({row["parameter"] for row in diagnose(optimizer).rows if row["step"] == 1})
    return found


def test_each_rank_diagnoses_what_it_holds() -> None:
    for sharded, exact in zip(*spawned(diagnosed, 2), strict=True):
        assert sharded | exact == set(SHAPES)


def both_moved() -> list[Counter[tuple[str, int]]]:
    return [moved("sharded"), moved("exact")]


@pytest.mark.parametrize("ranks", [2, 4])
def test_what_a_step_moves(ranks: int) -> None:
    config = shampoo(0.1, max_preconditioner_dim=16, momentum=0.9)
    plan = layout({name: torch.empty((0, *shape)) for name, shape in SHAPES.items()}, config)
    ownership = owned([plan], ranks)[0]
    gradients, updates = traded_bytes(plan, ownership, SHAPES)
    agreed = ("gather", ranks * DIGEST)
    for rank, (sharded, exact) in enumerate(spawned(both_moved, ranks)):
        assert sharded == {agreed: 1, ("gather", update_bytes(plan, ownership)): 1}
        # parameters travel with the gradients, since the weight decay of `MANY` reads them
        assert exact == Counter([agreed, ("trade", 2 * gradients[rank]), ("trade", updates[rank])])
    assert MANY["weight_decay"]
