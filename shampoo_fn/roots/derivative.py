"""The first derivative of a matrix power through its eigendecomposition, exact at equal eigenvalues.

Autograd of `eigh` divides by `w_i - w_j`: NaN at the identity, wrong by more than half near it. The derivative of the matrix
function itself has no such pole (Daleckii and Krein 1965; Higham, Functions of Matrices, Theorem 3.11):

    D f(A)[E] = Q (Gamma * (Q^T E Q)) Q^T,      Gamma_ij = (f(w_i) - f(w_j)) / (w_i - w_j),  f'(w_i) where equal.

For `f(w) = w^(-e)` put `L = log(w_i / w_j)`. Then

    Gamma_ij = w_j^(-e-1) (exp(-e L) - 1) / (exp(L) - 1) = w_j^(-e-1) expm1(-e L) / expm1(L),     -> -e w_j^(-e-1) as L -> 0.

A rounding error in L enters both expm1 alike and cancels to first order, so no digit is lost at any distance of the two.
"""

import torch
from torch import Tensor


def divided_differences(eigenvalues: Tensor, exponent: float) -> Tensor:
    """`Gamma` of `w^(-e)` for eigenvalues [batch, n] > 0 -> [batch, n, n]."""
    column, row = eigenvalues[..., :, None], eigenvalues[..., None, :]
    log_ratio = torch.log(column / row)
    equal = log_ratio == 0
    safe = torch.where(equal, 1.0, log_ratio)
    quotient = torch.where(equal, -exponent, torch.expm1(-exponent * safe) / torch.expm1(safe))
    return row.pow(-exponent - 1) * quotient


def linearised(root: Tensor, matrices: Tensor, eigenvalues: Tensor, eigenvectors: Tensor, exponent: float) -> Tensor:
    """`root`, unchanged in value, with the exact first derivative with respect to `matrices`.

    It is the tangent at the present point, so every transform (`grad`, `jvp`, `vmap`, `compile`) accepts it, and second
    derivatives are zero, not the true ones.
    """
    gamma = divided_differences(eigenvalues, exponent)
    displacement = eigenvectors.mT @ (matrices - matrices.detach()) @ eigenvectors
    return root + eigenvectors @ (gamma * displacement) @ eigenvectors.mT
