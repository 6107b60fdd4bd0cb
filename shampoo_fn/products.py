"""Products of batches of matrices in which a matrix's bits do not depend on its place.

A BLAS may round otherwise for a matrix that does not begin at a multiple of 16 bytes (MKL does on AMD's processors, not on
Intel's), and of odd matrices in a batch most do not. With an even number of rows and columns all do, in float32 and float64, so
odd ones get a row or a column of zeros. With one thread that is all there is to it; with several, MKL on AMD also gives the
matrices of a small batch other bits than those of a large one.
"""

import torch.nn.functional as F
from torch import Tensor


def product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` [..., n, m] of [..., n, k] and [..., k, m]."""
    n, m = left.shape[-2], right.shape[-1]
    if left.device.type != "cpu":
        whole: Tensor = left @ right
        return whole
    padded = even(left) @ even(right)
    return padded if n % 2 == m % 2 == 0 else padded[..., :n, :m]


def even(matrices: Tensor) -> Tensor:
    """The matrices [..., n, m] with zeros in a row and a column more, where their number is odd."""
    n, m = matrices.shape[-2:]
    return F.pad(matrices, (0, m % 2, 0, n % 2)) if n % 2 or m % 2 else matrices
