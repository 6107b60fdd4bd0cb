"""What every solver is tested on: a table of factors, the solvers, and a reference root with more digits than float64."""

import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shampoo_fn.roots.auto import Auto
from shampoo_fn.roots.eigh import Eigh
from shampoo_fn.roots.minimax import Minimax
from shampoo_fn.roots.newton import CoupledNewton
from shampoo_fn.roots.pseudo_inverse import PseudoInverse
from shampoo_fn.roots.rational import Rational
from shampoo_fn.roots.ridge import Ridged, add_ridge
from shampoo_fn.roots.solver import Solver

DATA = Path(__file__).parent.parent / "data"

SOLVERS: dict[str, Solver] = {
    "eigh": Eigh(),
    "eigh fast": Eigh(dtype=torch.float32),
    "coupled newton": CoupledNewton(),
    "minimax": Minimax(),
    "minimax float64": Minimax(dtype=torch.float64),
    "minimax split": Minimax(split="float16"),
    "rational": Rational(),
    "rational fast": Rational(dtype=torch.float32),
    "pseudo-inverse": PseudoInverse(),
    "auto": Auto(),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float64 numbers from a generator of their own."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_spectrum(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    basis: Tensor = torch.linalg.qr(normal(len(eigenvalues), len(eigenvalues), seed=seed)).Q
    matrix = (basis * eigenvalues) @ basis.mT
    return (matrix + matrix.mT) / 2


def geometric(n: int, condition: float) -> Tensor:
    """Eigenvalues evenly spaced in the logarithm, from 1 down to 1 / condition."""
    return with_spectrum(condition ** -torch.linspace(0, 1, n, dtype=torch.float64))


def low_rank(n: int, rank: int) -> Tensor:
    columns = normal(n, rank)
    return columns @ columns.mT


def wishart(n: int) -> Tensor:
    samples = normal(n, 2 * n)
    return samples @ samples.mT / (2.0 * n)


FACTORS: dict[str, Callable[[int], Tensor]] = {
    "wishart": wishart,
    "condition 1e4": lambda n: geometric(n, 1e4),
    "condition 1e8": lambda n: geometric(n, 1e8),
    "condition 1e12": lambda n: geometric(n, 1e12),
    "rank n/8": lambda n: low_rank(n, n // 8),
    "rank 1": lambda n: low_rank(n, 1),
    "identity": lambda n: torch.eye(n, dtype=torch.float64),
    "zero": lambda n: torch.zeros(n, n, dtype=torch.float64),
    "scale 1e-30": lambda n: 1e-30 * geometric(n, 1e8),
    "scale 1e30": lambda n: 1e30 * geometric(n, 1e8),
}


def factors(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The whole table as one batch [10, n, n], rounded to `dtype` (and symmetric still)."""
    return torch.stack([make(n) for make in FACTORS.values()]).to(dtype)


def real_factors() -> dict[str, Tensor]:
    """Factors of a training run (`python -m benchmarks.save_factors`), float32."""
    loaded: dict[str, Tensor] = torch.load(DATA / "real_factors.pt", weights_only=True)
    return loaded


def exact_root(matrices: Tensor, exponent: float) -> Tensor:
    """`A^(-e)` of positive definite float64 matrices [batch, n, n], to twelve digits at a condition of 1e8.

    float64 eigendecomposition, corrected once. With Q made orthogonal and `E = A - Q diag(w) Q^T` both in extended precision,

        A^(-e) = Q (diag(w^-e) + Gamma * (Q^T E Q)) Q^T + O(E^2),        Gamma as in `derivative.py`,

    and E is about 1e-16: what is left is of the order of `(1e-16 / w_min)^2`.
    """
    n = matrices.shape[-1]
    roots = [_exact_root(matrix.contiguous().numpy().tobytes(), exponent).reshape(n, n) for matrix in matrices]
    return torch.from_numpy(np.stack(roots))


@functools.lru_cache(300)  # several solvers are held against the same
def _exact_root(entries: bytes, exponent: float) -> np.ndarray:
    flat = np.frombuffer(entries)
    matrix = flat.reshape(math.isqrt(len(flat)), -1)
    values, vectors = np.linalg.eigh(matrix)
    w, q, a = (array.astype(np.longdouble) for array in (values, vectors, matrix))
    q = q @ (3 * np.eye(len(w), dtype=np.longdouble) - q.T @ q) / 2
    inner = q.T @ a @ q - np.diag(w)
    log_ratio = np.log(w[:, None] / w[None, :])
    safe = np.where(log_ratio == 0, 1, log_ratio)
    gamma = np.where(log_ratio == 0, -exponent, np.expm1(-exponent * safe) / np.expm1(safe)) * w ** (-exponent - 1)
    root = q @ (np.diag(w**-exponent) + gamma * inner) @ q.T
    found: np.ndarray = root.astype(np.float64)
    return found


def scaled_problem(matrices: Tensor, relative_epsilon: float) -> Ridged:
    """The ridged matrices in float64 and the powers of two they were divided by."""
    return add_ridge(matrices.double(), relative_epsilon=relative_epsilon, epsilon=0.0)


def root_errors(solver: Solver, matrices: Tensor, exponent: float) -> Tensor:
    """`||X - A^(-e)||_F / ||A^(-e)||_F` [batch] against the reference, for the solver's own ridge."""
    problem = scaled_problem(matrices, solver.relative_epsilon)
    exact = exact_root(problem.matrices, exponent)
    roots = solver(matrices, exponent).roots.double() * problem.scale.pow(exponent)[:, None, None]
    errors: Tensor = (roots - exact).norm(dim=(-2, -1)) / exact.norm(dim=(-2, -1))
    return errors


def whitening_errors(solver: Solver, matrices: Tensor, p: int) -> Tensor:
    """`||X^(p/2) A X^(p/2) - I||_F / sqrt(n)` [batch] for even p: what is left of the factor after preconditioning."""
    problem = scaled_problem(matrices, solver.relative_epsilon)
    roots = solver(matrices, 1 / p).roots.double() * problem.scale.pow(1 / p)[:, None, None]
    half = torch.linalg.matrix_power(roots, p // 2)
    n = matrices.shape[-1]
    defect = half @ problem.matrices @ half - torch.eye(n, dtype=torch.float64)
    errors: Tensor = defect.norm(dim=(-2, -1)) / math.sqrt(n)
    return errors
