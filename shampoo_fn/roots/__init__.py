"""Inverse roots of Kronecker factors: solvers, the ridge they add, the residual that every root must pass."""
