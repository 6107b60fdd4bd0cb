"""What holds for every configuration: pure functions, stages that compose, blocks that do not know of each other."""

import io
from functools import cache

import pytest
import torch
from torch import Tensor

from shampoo_fn import (
    Cadence,
    Clock,
    Config,
    Roots,
    State,
    accumulate,
    apply_updates,
    from_dict,
    init_state,
    precondition,
    refresh,
    to_dict,
    update,
)
from shampoo_fn.blocking import cut, put_back
from shampoo_fn.solve import Job, batched
from shampoo_fn.tree import flatten
from tests.cases import enough_steps, every_case, every_combination
from tests.support import (
    Tensors,
    assert_close,
    assert_identical,
    copies,
    entries,
    gradients,
    model,
    randn,
    run,
)

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


def addresses(*trees: object) -> set[int]:
    """Where the storages of all tensors that have one begin."""
    leaves = [leaf for tree in trees for leaf in flatten(tree).values()]
    return {leaf.untyped_storage().data_ptr() for leaf in leaves if leaf.untyped_storage().nbytes()}


@cache
def warmed_up(config: Config) -> tuple[Tensors, State, Tensors]:
    """Parameters and state after three steps, and the next gradients. Nobody writes into them: that is what is tested."""
    params = model()
    *past, grads = gradients(params, 4)
    params, state, _ = run(params, past, config)
    return params, state, grads


@cache
def refreshed(config: Config) -> tuple[Tensors, list[Tensors], Tensors, State]:
    """Parameters, the gradients of some steps, and what these lead to.

    refresh=True: in a staggered cadence a parameter's turn depends on its company.
    """
    params = model()
    grads = gradients(params, enough_steps(config))
    after, state, _ = run(params, grads, config, refresh=True)
    return params, grads, after, state


def one_of_each(config: Config) -> list[str]:
    """Of the parameters of one shape that are optimized alike, and so share their stacks, the last one."""
    last = {
        (p.shape, config.transform.select(name, config.blocking.merged(tuple(p.shape)))): name for name, p in model().items()
    }
    return list(last.values())


@every_combination
def test_inputs_and_the_random_state_are_left_bit_identical_and_outputs_share_no_storage(config: Config) -> None:
    random_state = torch.get_rng_state()
    params, state, grads = warmed_up(config)
    for stage in (update, accumulate, precondition, lambda _, state, config, params: refresh(state, config)):
        before = copies((grads, state, params))
        result = stage(grads, state, config, params)
        assert_identical(flatten((grads, state, params)), before)
        assert not addresses(result) & addresses(grads, state, params)
    assert torch.equal(torch.get_rng_state(), random_state)


@every_case
def test_the_first_state_shares_no_storage_with_the_parameters_or_within_itself(config: Config) -> None:
    params = model()
    state = init_state(params, config)
    assert not addresses(state) & addresses(params)
    leaves = [leaf for leaf in flatten(state).values() if leaf.numel()]
    assert len(addresses(state)) == len(leaves)


@every_combination
def test_saved_and_loaded_states_share_no_storage_with_what_they_come_from(config: Config) -> None:
    params, state, _ = warmed_up(config)
    saved = to_dict(state, config)
    assert not addresses(saved) & addresses(state)
    assert not addresses(from_dict(saved, config, params)) & addresses(saved, params)


def test_applied_updates_are_new_tensors() -> None:
    params, updates = model(), {"first": randn(6, 4, seed=9)}
    before = copies((params, updates))
    applied = apply_updates(params, updates)
    assert_identical(flatten((params, updates)), before)
    assert not addresses(applied) & addresses(params, updates)
    assert torch.equal(applied["first"], params["first"] + updates["first"])
    assert torch.equal(applied["second"], params["second"])


@every_combination
def test_update_is_precondition_after_refresh_after_accumulate(config: Config) -> None:
    params, state, grads = warmed_up(config)
    for when in (None, True, False):
        counted = accumulate(grads, state, config, params)
        refreshed = counted if when is False else refresh(counted, config, every=when)
        composed = precondition(grads, refreshed, config, params)
        assert_identical(flatten(update(grads, state, config, params, refresh=when)), flatten(composed))


@every_combination
def test_a_step_depends_on_its_arguments_alone(config: Config) -> None:
    params, state, grads = warmed_up(config)
    first = update(grads, state, config, params)
    run(model(seed=5), gradients(params, 1, seed=6), config)
    assert_identical(flatten(update(grads, state, config, params)), flatten(first))


@every_combination
def test_parameters_together_go_the_way_of_each_alone(config: Config) -> None:
    params, grads, together, _ = refreshed(config)
    for name in one_of_each(config):
        alone, _, _ = run({name: params[name]}, [{name: step[name]} for step in grads], config, refresh=True)
        assert_close({name: together[name]}, alone, rtol=rounding(config))


def rounding(config: Config) -> float:
    """How far two orders of summation may lie apart: a root amplifies what its factor's dtype rounds off."""
    leaves = flatten(init_state(model(), config))
    return 1e-4 if any("factors" in path and leaf.dtype == torch.float32 for path, leaf in leaves.items()) else 1e-9


class Loop:
    """The same optimizer for one parameter, block after block in Python: what `update` is the `vmap` of."""

    def __init__(self, name: str, param: Tensor, config: Config) -> None:
        self.config, self.shape = config, tuple(param.shape)
        self.merged = config.blocking.merged(self.shape)
        self.regions = config.blocking.regions(self.merged)
        self.transform = config.transform.select(name, self.merged)
        self.states = [self.transform.init(block) for block in self.blocks(param)]
        self.steps = 0

    def blocks(self, tensor: Tensor) -> list[Tensor]:
        return [block for region in self.regions for block in cut(tensor.reshape(self.merged), region)]

    def clock(self, norms: Tensor | tuple[()] = ()) -> Clock:
        step = torch.tensor(self.steps)
        return Clock(step, torch.tensor(True), step >= self.config.cadence.start, norms)

    def step(self, grad: Tensor, param: Tensor) -> Tensor:
        self.steps += 1
        blocks = list(zip(self.blocks(grad), self.blocks(param), strict=True))
        squared: Tensor = torch.zeros(2, dtype=grad.dtype)
        for i, (g, w) in enumerate(blocks):
            self.states[i] = self.transform.accumulate(g, self.states[i], w, self.clock())
            self.states[i] = self.transform.install(self.states[i], self.solved(self.states[i], g), self.clock())
            squared = squared + self.transform.norms(g, self.states[i], w, self.clock()).square()
        clock, updates = self.clock(squared.sqrt() if self.transform.reads_norms else ()), []
        for i, (g, w) in enumerate(blocks):
            block, self.states[i] = self.transform.update(g, self.states[i], w, clock)
            updates.append(block)
        parts = [torch.stack([updates.pop(0) for _ in range(region.size)]) for region in self.regions]
        return put_back(parts, self.regions, self.shape)

    def solved(self, state: object, block: Tensor) -> dict[str, Roots]:
        specs = self.transform.root_specs(tuple(block.shape))
        jobs = self.transform.jobs(state, self.clock())
        roots = {}
        for path, (factor, boost) in jobs.items():
            job = Job(path, ("w",), factor[None], boost[None], specs[path].exponent, specs[path].solver)
            roots[path] = Roots(*(field[0] for field in batched([job])[0]))
        return roots


@every_case
def test_stacks_of_blocks_go_the_way_of_a_loop_over_blocks(config: Config) -> None:
    params, grads, vmapped, _ = refreshed(config)
    for name in one_of_each(config):
        param, loop = params[name], Loop(name, params[name], config)
        for step in grads:
            param = param + loop.step(step[name], param)
        assert_close({name: vmapped[name]}, {name: param}, rtol=rounding(config))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@every_combination
def test_updates_have_the_dtype_and_device_of_their_parameter(config: Config, dtype: torch.dtype, device: str) -> None:
    shapes = {"matrix": (6, 4), "vector": (5,), "scalar": ()}
    params = {name: param.to(device) for name, param in model(dtype, shapes).items()}
    after, state, updates = run(params, gradients_on(params), config)
    for name, param in params.items():
        assert {(step[name].dtype, step[name].device) for step in updates} == {(dtype, param.device)}
        assert (after[name].dtype, after[name].shape) == (dtype, param.shape)
        assert bool(after[name].isfinite().all())
    assert {leaf.device.type for leaf in flatten(state).values()} == {device}


def gradients_on(params: Tensors) -> list[Tensors]:
    return [{name: grad.to(params[name].device) for name, grad in step.items()} for step in gradients(params, 2)]


def through_a_file(saved: object) -> dict[str, dict[str, dict[str, Tensor]]]:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every_combination
def test_a_state_comes_back_from_a_file_to_the_bit_and_training_goes_on(config: Config) -> None:
    params, state, grads = warmed_up(config)
    loaded = from_dict(through_a_file(to_dict(state, config)), config, params)
    assert_identical(flatten(loaded), flatten(state))
    assert type(loaded) is type(state)
    assert_identical(flatten(update(grads, loaded, config, params)), flatten(update(grads, state, config, params)))


@every_combination
def test_a_saved_state_does_not_depend_on_the_order_of_the_parameters(config: Config) -> None:
    params, _, _, state = refreshed(config)
    backwards = dict(reversed(params.items()))
    loaded = from_dict(to_dict(state, config), config, backwards)
    assert list(loaded.templates) == list(backwards)
    assert_identical(entries(loaded, config), entries(state, config))


@every_combination
def test_a_parameter_without_gradient_is_untouched_bit_by_bit(config: Config) -> None:
    params, state, grads = warmed_up(config)
    rest = {name: grad for name, grad in grads.items() if name not in ("second", "bias")}
    updates, after = update(rest, state, config, params)
    assert updates.keys() == rest.keys()
    assert_identical(entries(after, config, "second", "bias"), entries(state, config, "second", "bias"))
    moved = apply_updates(params, updates)
    assert_identical({name: moved[name] for name in ("second", "bias")}, {n: params[n] for n in ("second", "bias")})
    complete, _ = update(grads, state, config, params, refresh=False)
    partial, _ = update(rest, state, config, params, refresh=False)
    if not config.transform.reads_params:
        assert_close(partial, {name: complete[name] for name in rest}, rtol=1e-12)


@every_combination
def test_no_gradients_at_all_are_no_step(config: Config) -> None:
    params, state, _ = warmed_up(config)
    updates, after = update({}, state, config, params)
    assert updates == {}
    assert_identical(flatten(after), flatten(state))


@every_combination
def test_a_state_holds_tensors_only_and_counts_steps_from_one(config: Config) -> None:
    _, state, _ = warmed_up(config)
    assert all(isinstance(leaf, Tensor) for leaf in flatten(state).values())
    saved = to_dict(state, config)
    assert {type(leaf) for blocks in saved.values() for block in blocks.values() for leaf in block.values()} == {Tensor}
    assert all(bool((blocks.step == 3).all()) for blocks in state.stacks.values())


def test_a_custom_solve_sees_every_due_factor_once_with_its_owner() -> None:
    from shampoo_fn import Chain, Kronecker, Preconditioned, Scale

    config = Config(Chain(precondition=Preconditioned(Kronecker()), rate=Scale(0.1)), cadence=Cadence(2))
    params = model(shapes={"a": (3, 2), "b": (3, 2), "c": (4,)})
    seen: list[Job] = []

    def solve(jobs: list[Job]) -> list[object]:
        seen.extend(jobs)
        return batched(jobs)

    updates, state = update(gradients(params, 1)[0], init_state(params, config), config, params, solve=solve)
    expected, after = update(gradients(params, 1)[0], init_state(params, config), config, params)
    assert sorted((job.owners, tuple(job.factors.shape)) for job in seen) == [
        (("a", "b"), (2, 2, 2)),
        (("a", "b"), (2, 3, 3)),
        (("c",), (1, 4, 4)),
    ]
    assert len({job.name for job in seen}) == 3
    assert_identical(updates, expected)
    assert_identical(flatten(state), flatten(after))
