"""`compile=`: two graphs for each shape of blocks serve a whole run, with the numbers of eager mode."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.flop_counter import FlopCounterMode

from shampoo_fn import Adam, Blocking, ByShape, Cadence, Chain, Config, Graft, Kronecker, Preconditioned, Scale, When
from shampoo_optim import Shampoo, walks
from tests.optim.support import BUSY, grads_for, parameters, snapshot, walk
from tests.support import assert_identical

GRAPHS = []
SHAPES = {"first": (6, 4), "second": (6, 4), "third": (6, 4)}  # one stack, since tracing takes a second or two for each


@torch._dynamo.register_backend(name="counting")  # type: ignore[attr-defined]
def counting(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
    """A backend that runs graphs as they are and counts them."""
    GRAPHS.append(graph)
    return graph.forward


@pytest.fixture(autouse=True)
def no_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    GRAPHS.clear()
    yield
    torch._dynamo.reset()


def pair(
    shapes: dict[str, tuple[int, ...]] = SHAPES, **options: Any
) -> tuple[tuple[dict[str, Parameter], Shampoo], tuple[dict[str, Parameter], Shampoo]]:
    """The same optimizer twice, compiled and eager."""
    ours, theirs = parameters(torch.float64, shapes), parameters(torch.float64, shapes)
    return (ours, Shampoo(ours.items(), compile="counting", **options)), (theirs, Shampoo(theirs.items(), **options))


def assert_equal_run(left: tuple[dict[str, Parameter], Shampoo], right: tuple[dict[str, Parameter], Shampoo]) -> None:
    one, other = snapshot(*left), snapshot(*right)
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-9, atol=1e-12, msg=name)


def test_two_hundred_steps_of_a_schedule_are_two_graphs_for_each_shape() -> None:
    ours, theirs = pair(SHAPES | {"bias": (5,)}, lr=0.01, weight_decay=0.1, momentum=0.9)
    grads = grads_for(ours[0], 200)
    for params, optimizer in (ours, theirs):
        scheduler = CosineAnnealingLR(optimizer, 200)
        for each in grads:
            walk(optimizer, params, [each])
            scheduler.step()
    assert len(GRAPHS) == 4
    assert_equal_run(ours, theirs)


def test_steps_out_of_the_ordinary_need_no_other_graphs() -> None:
    """Without some gradients, with one that is not finite, after a load, and while operations are counted, which is eager."""
    ours, theirs = pair(lr=0.01, momentum=0.9)
    grads = grads_for(ours[0], 8)
    del grads[2]["second"]  # between the other two
    del grads[3]["first"]
    grads[4]["second"][0, 0] = float("nan")
    for params, optimizer in (ours, theirs):
        walk(optimizer, params, grads[:5])
        optimizer.load_state_dict(optimizer.state_dict())
        walk(optimizer, params, grads[5:6])
        with FlopCounterMode(display=False) as counter:
            walk(optimizer, params, grads[6:7])
        assert counter.get_total_flops() > 0
        walk(optimizer, params, grads[7:])
    assert len(GRAPHS) == 2
    assert int(ours[1].state[ours[0]["second"]]["skipped"]) == 1
    assert_equal_run(ours, theirs)


def test_with_decay_a_chunk_of_one_parameter_and_one_of_several_share_their_graphs() -> None:
    shapes = {"wide": (4, 8), "wider": (4, 12)}  # cut along their second dimension
    # L2, so that both graphs read parameters
    ours, theirs = pair(shapes, weight_decay=0.1, adam_w_mode=False, max_preconditioner_dim=4, merge_dims=False)
    grads = grads_for(ours[0], 3)
    steps = [{"wide": grads[0]["wide"]}, {"wider": grads[1]["wider"]}, grads[2]]
    for params, optimizer in (ours, theirs):
        walk(optimizer, params, steps)
    assert len(GRAPHS) == 2
    assert_equal_run(ours, theirs)


def test_a_run_that_resumes_without_some_gradients_needs_no_other_graphs() -> None:
    params = parameters(torch.float64, dict.fromkeys(SHAPES, (5,)))
    first, second = grads_for(params, 2)
    before, after = Shampoo(params.items()), Shampoo(params.items(), compile="counting")
    walk(before, params, [first])
    checkpoint = before.state_dict()
    checkpoint["param_groups"][0]["compile"] = "counting"
    after.load_state_dict(checkpoint)
    walk(after, params, [{name: grad for name, grad in second.items() if name != "second"}, second])
    assert len(GRAPHS) == 2


def test_groups_that_differ_in_dials_share_their_graphs() -> None:
    shapes = {f"w{group}{number}": (6, 4) for group in range(3) for number in range(2)}
    runs = []
    for backend in ("counting", False):
        params = parameters(torch.float64, shapes)
        groups = [
            {"params": [], "lr": 0.1 / (1 + n), "weight_decay": 0.1 * (1 + n), "betas": (0.9, 0.9 + 0.01 * n)} for n in range(3)
        ]
        for name, param in params.items():
            groups[int(name[1])]["params"].append((name, param))
        runs.append((params, Shampoo(groups, compile=backend)))
        walk(runs[-1][1], params, grads_for(params, 3))
    assert len(GRAPHS) == 2
    assert_equal_run(*runs)


def test_groups_whose_blocks_take_other_transforms_have_graphs_of_their_own() -> None:
    def matrices(exponent: float) -> Preconditioned:
        return Preconditioned(Kronecker(exponent=exponent))

    rules = (When(Preconditioned(Adam()), name="embed"), When(matrices(0.25), name="other"))
    config = Config(Chain(precondition=ByShape(matrices(0.5), rules), rate=Scale(0.1)))
    runs = []
    for backend in ("counting", False):
        params = parameters(torch.float64, dict.fromkeys(("weight", "embed", "other"), (6, 4)))
        optimizer = Shampoo([{"params": [pair]} for pair in params.items()], config=config)
        for group in optimizer.param_groups:
            group["compile"] = backend
        walk(optimizer, params, grads_for(params, 3))
        runs.append((params, optimizer))
    assert len(GRAPHS) == 5  # both kinds of matrices take gradients into their statistics alike
    assert_equal_run(*runs)


PACE = {"rate": 0.1}


def paced(step: torch.Tensor) -> torch.Tensor:
    """A schedule that reads what a user changes."""
    return PACE["rate"] / (1 + 0.1 * step)


def test_a_schedule_of_the_users_is_traced_anew_when_what_it_reads_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(Chain(precondition=Preconditioned(Adam()), rate=Scale(paced)))
    runs = [(params := parameters(torch.float64, SHAPES), Shampoo(params.items(), config=config)) for _ in range(2)]
    runs[0][1].param_groups[0]["compile"] = "counting"
    for rate in (0.1, 0.7):
        monkeypatch.setitem(PACE, "rate", rate)
        for params, optimizer in runs:
            walk(optimizer, params, grads_for(params, 3))
    assert len(GRAPHS) > 2
    assert_equal_run(*runs)


def test_more_groups_than_torch_recompiles_one_function() -> None:
    params = {f"w{n}": Parameter(torch.ones(n)) for n in (2, 3)}
    optimizer = Shampoo([{"params": [(name, p)]} for name, p in params.items()], compile="counting")
    with torch._dynamo.config.patch(recompile_limit=1):
        walk(optimizer, params, grads_for(params, 2))
    assert len(GRAPHS) == 2 * len(params)


def test_a_start_at_once_after_another() -> None:
    params = {f"w{start}": Parameter(torch.ones(4, 3)) for start in (2, 1)}
    groups = [{"params": [(name, p)], "start_preconditioning_step": int(name[1:])} for name, p in params.items()]
    twins = {name: Parameter(p.detach().clone()) for name, p in params.items()}
    eager = Shampoo([{**group, "params": [(group["params"][0][0], twins[group["params"][0][0]])]} for group in groups])
    grads = grads_for(params, 4)
    walk(eager, twins, grads)
    walk(Shampoo(groups, compile="counting"), params, grads)
    for name, param in params.items():
        torch.testing.assert_close(param, twins[name])


def test_how_and_when_roots_are_taken_may_change_without_another_graph_and_compiling_at_any_step() -> None:
    ours, theirs = pair({"first": (8, 4), "second": (8, 4)}, **BUSY, maximize=True)
    changes: list[dict[str, Any]] = [{}, {}, {}, {"precondition_frequency": 2}, {"dense_until": 7, "staggered": False}]
    changes += [{"relative_epsilon": 1e-4}, {"root_inv_method": "coupled_newton"}]
    changes += [{"root_inv_method": "auto", "root_inv_dtype": "float32"}, {"epsilon": 1e-3}, {}]
    known = []
    for step, (change, each) in enumerate(zip(changes, grads_for(ours[0], len(changes)), strict=True)):
        for params, optimizer in (ours, theirs):
            optimizer.param_groups[0].update(change)
            if optimizer is ours[1]:
                optimizer.param_groups[0]["compile"] = 0 < step < len(changes) - 1 and "counting"
            walk(optimizer, params, [each])
        known.append(len(GRAPHS))
    assert known == [0] + [2] * (len(changes) - 1)
    assert_equal_run(ours, theirs)


def test_norms_of_whole_parameters() -> None:
    config = Config(
        Chain(precondition=Preconditioned(Graft(Kronecker(), Adam(), norm="tensor")), rate=Scale(0.1)),
        blocking=Blocking(2),
        cadence=Cadence(2),
    )
    ours, theirs = pair(config=config)
    grads = grads_for(ours[0], 4)
    walk(ours[1], ours[0], grads)
    walk(theirs[1], theirs[0], grads)
    assert GRAPHS
    assert_equal_run(ours, theirs)


def test_what_is_no_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="compile=3"):
        Shampoo(parameters().items(), compile=3)  # type: ignore[arg-type]


def test_inductor_generates_code_for_blocks_of_one_parameter_with_momentum() -> None:
    # torch 2.13 cannot if momentum is written back inside the graph
    params, twins = ({"w": Parameter(torch.linspace(-1, 1, 512).reshape(32, 16))} for _ in range(2))
    options: dict[str, Any] = {"max_preconditioner_dim": 16, "momentum": 0.9, "betas": (0.0, 0.95), "grafting_type": "SGD"}
    optimizer, eager = Shampoo(params.items(), compile=True, **options), Shampoo(twins.items(), **options)
    grads = grads_for(params, 3)
    walk(optimizer, params, grads)
    walk(eager, twins, grads)
    torch.testing.assert_close(params["w"], twins["w"], rtol=1e-4, atol=1e-6)


def test_where_generated_code_writes_beyond_its_buffers_steps_are_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walks, "OVERRUNS", True)
    walks._warn_of_overruns.cache_clear()
    params, twins = parameters(), parameters()
    optimizer, eager = Shampoo(params.items(), compile=True), Shampoo(twins.items())
    grads = grads_for(params, 2)
    with pytest.warns(RuntimeWarning, match="steps are eager here"):
        walk(optimizer, params, grads)
    walk(eager, twins, grads)
    assert_identical(snapshot(params, optimizer), snapshot(twins, eager))
