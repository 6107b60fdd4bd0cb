"""Laws of the method, over drawn shapes, seeds and options, in float64."""

from collections.abc import Sequence

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shampoo_fn import (
    EMA,
    Adagrad,
    Adam,
    Blocking,
    Cadence,
    Chain,
    Config,
    CoupledNewton,
    Eigh,
    FixedRMS,
    Graft,
    Identity,
    Kronecker,
    Momentum,
    Preconditioned,
    Preconditioner,
    PseudoInverse,
    RMSprop,
    Scale,
    Solver,
    init_state,
    update,
)
from shampoo_fn.blocking import cut
from tests.support import (
    assert_close,
    assert_identical,
    each,
    entries,
    entry,
    gradients,
    last_update,
    randn,
    run,
    single,
)

STEPS = 2  # the second has a past: a third one goes the same way
seeds = st.integers(0, 2**20)
sizes = st.integers(2, 6)
matrices = st.tuples(sizes, sizes)
tensors = st.lists(st.integers(2, 5), min_size=1, max_size=3).map(tuple)
betas = st.sampled_from([0.0, 0.5, 0.9])
memories = st.sampled_from([0.9, 0.99, 1.0])
exponents = st.sampled_from([None, 0.5, 0.25, 1.0])
ROTATION_FREE = st.sampled_from([None, Identity(), FixedRMS(0.2)])
MAGNITUDES = st.sampled_from([Identity(), Adagrad(), RMSprop(), Adam(), FixedRMS(0.2), Kronecker(exponent=0.5)])

RIDGE = Eigh(relative_epsilon=0.0, epsilon=1e-2)  # absolute: the norm that scales a relative one changes under rotation


def config(direction: Kronecker, magnitude: Preconditioner | None = None, beta1: float = 0.0, **options: object) -> Config:
    preconditioner = direction if magnitude is None else Graft(direction, magnitude)
    precondition = Preconditioned(preconditioner, EMA(beta1) if beta1 else None)
    return Config(
        Chain(precondition=precondition, momentum=Momentum(0.5), rate=Scale(0.1)),
        **{"blocking": Blocking(merge_dims=False), "cadence": Cadence(1), **options},
    )


def orthogonal(n: int, seed: int) -> Tensor:
    return torch.linalg.qr(randn(n, n, seed=seed)).Q


def rotated(tensor: Tensor, rotations: Sequence[Tensor]) -> Tensor:
    """Each mode multiplied by its matrix."""
    for mode, rotation in enumerate(rotations):
        tensor = torch.tensordot(rotation, tensor, ([1], [mode])).movedim(0, mode)
    return tensor


@given(shape=tensors, seed=seeds, beta1=betas, beta2=memories, exponent=exponents, magnitude=ROTATION_FREE)
def test_rotating_gradients_rotates_updates(
    shape: tuple[int, ...],
    seed: int,
    beta1: float,
    beta2: float,
    exponent: float | None,
    magnitude: Preconditioner | None,
) -> None:
    optimizer = config(Kronecker(beta2, exponent, solver=RIDGE), magnitude, beta1)
    params, grads = single(shape, seed, STEPS)
    rotations = [orthogonal(n, seed + mode) for mode, n in enumerate(shape)]
    turned = last_update(params, each(grads, lambda grad: rotated(grad, rotations)), optimizer)
    assert_close(turned, {"w": rotated(last_update(params, grads, optimizer)["w"], rotations)}, rtol=1e-9)


@given(shape=tensors, seed=seeds, beta1=betas, beta2=memories, scale=st.floats(1e-12, 1e12))
def test_scaling_all_gradients_changes_nothing_without_grafting(
    shape: tuple[int, ...], seed: int, beta1: float, beta2: float, scale: float
) -> None:
    optimizer = config(Kronecker(beta2, solver=Eigh(relative_epsilon=1e-4)), None, beta1)
    params, grads = single(shape, seed, STEPS)
    scaled = last_update(params, each(grads, lambda grad: scale * grad), optimizer)
    assert_close(scaled, last_update(params, grads, optimizer), rtol=1e-9)


@given(shape=matrices, seed=seeds, scale=st.floats(10, 1e4))
def test_an_absolute_ridge_shrinks_the_update_of_smaller_gradients(shape: tuple[int, ...], seed: int, scale: float) -> None:
    # at the first step P = U diag(s / (s^2 + epsilon)^(1/2)) V^T for G = U diag(s) V^T
    optimizer = config(Kronecker(solver=Eigh(relative_epsilon=0.0, epsilon=1e-3)))
    params, grads = single(shape, seed, steps=1)
    smaller = last_update(params, each(grads, lambda grad: grad / scale), optimizer)
    assert smaller["w"].norm() < last_update(params, grads, optimizer)["w"].norm()


@given(shape=matrices, seed=seeds, beta1=betas, beta2=memories, exponent=exponents, magnitude=MAGNITUDES)
def test_transposing_gradients_transposes_updates(
    shape: tuple[int, ...], seed: int, beta1: float, beta2: float, exponent: float | None, magnitude: Preconditioner
) -> None:
    optimizer = config(Kronecker(beta2, exponent), magnitude, beta1)
    params, grads = single(shape, seed, STEPS)
    turned = last_update({"w": params["w"].T}, each(grads, lambda grad: grad.T), optimizer)
    assert_close(turned, {"w": last_update(params, grads, optimizer)["w"].T}, rtol=1e-8)


@given(seed=seeds, order=st.permutations(["a", "b", "c", "d"]), magnitude=MAGNITUDES)
def test_the_order_of_the_parameters_does_not_matter(seed: int, order: list[str], magnitude: Preconditioner) -> None:
    optimizer = config(Kronecker(), magnitude, 0.9, blocking=Blocking(3))
    params = {name: randn(*shape, seed=seed) for name, shape in zip("abcd", [(4, 3), (3, 3), (4, 3), (5,)], strict=True)}
    grads = gradients(params, STEPS, seed)
    permuted = last_update({name: params[name] for name in order}, grads, optimizer)
    # products batched in another order may round otherwise
    assert_close({name: permuted[name] for name in "abcd"}, last_update(params, grads, optimizer), rtol=1e-8)


@given(seed=seeds, names=st.permutations(["a", "b", "c"]))
def test_names_do_not_matter(seed: int, names: list[str]) -> None:
    optimizer = config(Kronecker(), Adam(), 0.9)
    params = {name: randn(4, 3, seed=seed + i) for i, name in enumerate("abc")}
    grads = gradients(params, STEPS, seed)
    new = dict(zip("abc", names, strict=True))
    renamed = last_update(
        {new[name]: params[name] for name in params},
        [{new[name]: grad[name] for name in grad} for grad in grads],
        optimizer,
    )
    assert_identical({name: renamed[new[name]] for name in params}, last_update(params, grads, optimizer))


@given(shape=matrices, seed=seeds, beta1=betas, beta2=memories, exponent=exponents)
def test_diagonal_factors_are_full_ones_where_the_statistics_are_diagonal(
    shape: tuple[int, int], seed: int, beta1: float, beta2: float, exponent: float | None
) -> None:
    params, grads = single(shape, seed, STEPS)
    shuffled = torch.randperm(shape[1], generator=torch.Generator().manual_seed(seed))
    # one entry in each row and column, at the same places always: G G^T and G^T G are diagonal
    aligned = each(grads, lambda grad: (torch.eye(*shape) * grad)[:, shuffled])
    full = run(params, aligned, config(Kronecker(beta2, exponent), None, beta1))
    diagonal = run(params, aligned, config(Kronecker(beta2, exponent, "diagonal"), None, beta1))
    assert_close(diagonal[2][-1], full[2][-1], rtol=1e-10)


@given(
    shape=tensors,
    seed=seeds,
    beta2=memories,
    exponent=st.sampled_from([0.5, 0.25, 0.125, 1.0]),
    solver=st.sampled_from([Eigh(1e-3), Eigh(0.0, 1e-2), Eigh(1e-3, 1e-2), CoupledNewton(1e-3, dtype=torch.float64)]),
)
def test_installed_roots_are_inverse_roots_of_the_corrected_factor_and_its_ridge(
    shape: tuple[int, ...], seed: int, beta2: float, exponent: float, solver: Solver
) -> None:
    steps = 4
    optimizer = config(Kronecker(beta2, exponent, solver=solver))
    params, grads = single(shape, seed, steps)
    _, state, _ = run(params, grads, optimizer)
    for mode in range(len(shape)):
        unfolded = [grad["w"].movedim(mode, 0).reshape(shape[mode], -1) for grad in grads]
        ages = [beta2 ** (steps - 1 - t) for t in range(steps)]
        total = sum(ages) if beta2 < 1 else 1.0
        factor = sum(age / total * (g @ g.T) for age, g in zip(ages, unfolded, strict=True))
        scale = min(factor.norm(), factor.abs().sum(1).max())
        ridged = factor + (solver.relative_epsilon * scale + solver.epsilon) * torch.eye(shape[mode])
        root = entry(state, optimizer, "w", f"roots.{mode}.inverse_root")
        product = torch.linalg.matrix_power(root, round(1 / exponent)) @ ridged
        torch.testing.assert_close(product, torch.eye(shape[mode], dtype=torch.float64), rtol=0, atol=1e-5)
        assert entry(state, optimizer, "w", f"roots.{mode}.failures") == 0


@given(rows=st.integers(4, 6), columns=st.integers(1, 2), seed=seeds, exponent=st.sampled_from([0.5, 0.25]))
def test_a_pseudo_inverse_root_vanishes_where_no_gradient_went(rows: int, columns: int, seed: int, exponent: float) -> None:
    optimizer = config(Kronecker(exponent={2: exponent, 1: exponent}, solver=PseudoInverse()))
    params, grads = single((rows, columns), seed, steps=1)
    _, state, _ = run(params, grads, optimizer)
    root = entry(state, optimizer, "w", "roots.0.inverse_root")
    gradient = grads[0]["w"]
    reached = torch.linalg.svd(gradient).U[:, :columns]
    torch.testing.assert_close(root @ (reached @ reached.T), root, rtol=1e-6, atol=1e-9)
    assert torch.linalg.matrix_rank(root, rtol=1e-5) == columns


@given(seed=seeds, largest=st.integers(2, 4), beta1=betas, magnitude=MAGNITUDES)
def test_the_norm_of_a_grafted_block_is_that_of_the_magnitude(
    seed: int, largest: int, beta1: float, magnitude: Preconditioner
) -> None:
    shape = (5, 4)
    params, grads = single(shape, seed, STEPS)
    blocking = Blocking(largest)
    ours, theirs = (
        run(params, grads, of_direction(preconditioner, beta1, blocking))[2][-1]["w"]
        for preconditioner in (Graft(Kronecker(), magnitude), magnitude)
    )
    for region in blocking.regions(shape):
        norms = [cut(update, region).flatten(1).norm(dim=1) for update in (ours, theirs)]
        torch.testing.assert_close(*norms, rtol=1e-10, atol=0)
    assert not torch.allclose(ours, theirs, rtol=1e-3)


@given(seed=seeds, largest=st.integers(2, 4), beta1=betas, magnitude=MAGNITUDES)
def test_with_one_norm_per_tensor_it_is_that_of_the_whole_tensor(
    seed: int, largest: int, beta1: float, magnitude: Preconditioner
) -> None:
    params, grads = single((5, 4), seed, STEPS)
    blocking = Blocking(largest)
    whole, plain, alone = (
        run(params, grads, of_direction(preconditioner, beta1, blocking))[2][-1]["w"]
        for preconditioner in (Graft(Kronecker(), magnitude, norm="tensor"), magnitude, Kronecker())
    )
    torch.testing.assert_close(whole.norm(), plain.norm(), rtol=1e-10, atol=0)
    torch.testing.assert_close(whole / whole.norm(), alone / alone.norm(), rtol=1e-10, atol=1e-12)


def of_direction(preconditioner: Preconditioner, beta1: float, blocking: Blocking) -> Config:
    precondition = Preconditioned(preconditioner, EMA(beta1) if beta1 else None)
    return Config(Chain(precondition=precondition, rate=Scale(0.1)), blocking, Cadence(1))


@given(shape=tensors, seed=seeds, order=st.permutations(range(4)), magnitude=st.sampled_from([None, Adagrad(), Identity()]))
def test_under_sum_decay_the_order_of_gradients_between_refreshes_does_not_matter(
    shape: tuple[int, ...], seed: int, order: list[int], magnitude: Preconditioner | None
) -> None:
    direction = Kronecker(beta2=1)
    preconditioner = direction if magnitude is None else Graft(direction, magnitude)
    optimizer = Config(
        Chain(precondition=Preconditioned(preconditioner), rate=Scale(0.1)),
        Blocking(merge_dims=False),
        Cadence(4, start=4),
    )
    params, (*window, last) = single(shape, seed, steps=5)
    plain, shuffled = ([*window, last], [*(window[i] for i in order), last])
    assert_close(last_update(params, shuffled, optimizer), last_update(params, plain, optimizer), rtol=1e-8)


@given(shape=tensors, seed=seeds, magnitude=MAGNITUDES)
def test_parameters_of_equal_shape_do_not_influence_each_other(
    shape: tuple[int, ...], seed: int, magnitude: Preconditioner
) -> None:
    optimizer = config(Kronecker(), magnitude, 0.9)
    params = {"a": randn(*shape, seed=seed), "b": randn(*shape, seed=seed + 1)}
    grads, others = gradients(params, STEPS, seed), gradients(params, STEPS, seed + 1)
    mixed = [{"a": grad["a"], "b": 1e3 * other["b"]} for grad, other in zip(grads, others, strict=True)]
    one, other = run(params, grads, optimizer), run(params, mixed, optimizer)
    assert torch.equal(one[0]["a"], other[0]["a"])
    assert not torch.equal(one[0]["b"], other[0]["b"])
    assert_identical(entries(one[1], optimizer, "a"), entries(other[1], optimizer, "a"))


@given(shape=tensors, seed=seeds, start=st.integers(1, 4), magnitude=MAGNITUDES)
def test_staggered_and_plain_cadence_agree_at_an_interval_of_one(
    shape: tuple[int, ...], seed: int, start: int, magnitude: Preconditioner
) -> None:
    params, grads = single(shape, seed, steps=4)
    plain, staggered = (
        run(params, grads, config(Kronecker(), magnitude, cadence=Cadence(1, start, staggered))) for staggered in (False, True)
    )
    assert_identical(plain[0], staggered[0])


@given(shape=tensors, seed=seeds, frequency=st.integers(2, 4), start=st.integers(1, 4))
def test_between_refreshes_roots_stay_and_factors_move(shape: tuple[int, ...], seed: int, frequency: int, start: int) -> None:
    cadence = Cadence(frequency, start)
    optimizer = config(Kronecker(), Adam(), cadence=cadence)
    params, grads = single(shape, seed, steps=6)
    state = init_state(params, optimizer)
    for t, grad in enumerate(grads, 1):
        roots, factors = (entry(state, optimizer, "w", name) for name in ("roots.0.inverse_root", "factors.0"))
        _, state = update(grad, state, optimizer, params)
        assert torch.equal(entry(state, optimizer, "w", "roots.0.inverse_root"), roots) != cadence.due(t)
        assert not torch.equal(entry(state, optimizer, "w", "factors.0"), factors)


@given(seed=seeds, rows=sizes, columns=sizes)
def test_one_step_without_filter_and_ridge_whitens_the_gradient(seed: int, rows: int, columns: int) -> None:
    # (G G^T)^(-1/4) G (G^T G)^(-1/4) = U V^T for G = U S V^T (Gupta, Koren, Singer 2018), on the range of G
    optimizer = of_direction(Kronecker(solver=PseudoInverse(rank_tolerance=1e-10)), 0.0, Blocking())
    params, grads = single((rows, columns), seed, steps=1)
    left, _, right = torch.linalg.svd(grads[0]["w"], full_matrices=False)
    assert_close(last_update(params, grads, optimizer), {"w": -0.1 * left @ right}, rtol=1e-5)


def test_the_recipe_of_the_first_paper_by_hand() -> None:
    # Gupta, Koren, Singer 2018, algorithm 1, from L = R = eps I:
    # L <- L + G G^T, R <- R + G^T G, W <- W - lr L^(-1/4) G R^(-1/4)
    epsilon, lr = 1e-4, 0.1
    optimizer = Config(
        Chain(precondition=Preconditioned(Kronecker(beta2=1, solver=Eigh(0.0, epsilon))), rate=Scale(lr)),
        cadence=Cadence(1),
    )
    params, grads = single((4, 3), seed=3, steps=5)
    left, right, expected = epsilon * torch.eye(4).double(), epsilon * torch.eye(3).double(), params["w"]
    for grad in grads:
        left, right = left + grad["w"] @ grad["w"].T, right + grad["w"].T @ grad["w"]
        expected = expected - lr * power(left, -0.25) @ grad["w"] @ power(right, -0.25)
    assert_close(run(params, grads, optimizer)[0], {"w": expected}, rtol=1e-10)


def power(matrix: Tensor, exponent: float) -> Tensor:
    eigenvalues, eigenvectors = torch.linalg.eigh(matrix)
    return eigenvectors @ torch.diag(eigenvalues**exponent) @ eigenvectors.T
