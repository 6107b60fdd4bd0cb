"""Shampoo for PyTorch as pure functions: `init_state(params, config)`, `update(grads, state, config, params)`."""

from shampoo_fn.blocking import Blocking
from shampoo_fn.by_shape import ByShape, When
from shampoo_fn.cadence import Cadence
from shampoo_fn.chain import Chain
from shampoo_fn.checkpoint import from_dict, to_dict
from shampoo_fn.config import Config, is_due
from shampoo_fn.diagonal import Adagrad, Adam, RMSprop
from shampoo_fn.ema import EMA
from shampoo_fn.graft import FixedRMS, Graft
from shampoo_fn.kronecker import Kronecker
from shampoo_fn.modes import ModeOptions
from shampoo_fn.momentum import Momentum
from shampoo_fn.preconditioned import Preconditioned
from shampoo_fn.preconditioner import Identity, Preconditioner, RootState
from shampoo_fn.recipe import shampoo
from shampoo_fn.roots.auto import Auto
from shampoo_fn.roots.eigh import Eigh
from shampoo_fn.roots.minimax import Minimax
from shampoo_fn.roots.newton import CoupledNewton
from shampoo_fn.roots.pseudo_inverse import PseudoInverse
from shampoo_fn.roots.rational import Rational
from shampoo_fn.roots.solver import Roots, Solver
from shampoo_fn.scale import Scale
from shampoo_fn.solve import Job, Solve, batched
from shampoo_fn.state import BlockState, State, init_state
from shampoo_fn.transform import Clock, Transform
from shampoo_fn.update import accumulate, apply_updates, precondition, refresh, update
from shampoo_fn.values import Value
from shampoo_fn.weight_decay import WeightDecay

__all__ = [
    "EMA",
    "Adagrad",
    "Adam",
    "Auto",
    "BlockState",
    "Blocking",
    "ByShape",
    "Cadence",
    "Chain",
    "Clock",
    "Config",
    "CoupledNewton",
    "Eigh",
    "FixedRMS",
    "Graft",
    "Identity",
    "Job",
    "Kronecker",
    "Minimax",
    "ModeOptions",
    "Momentum",
    "Preconditioned",
    "Preconditioner",
    "PseudoInverse",
    "RMSprop",
    "Rational",
    "RootState",
    "Roots",
    "Scale",
    "Solve",
    "Solver",
    "State",
    "Transform",
    "Value",
    "WeightDecay",
    "When",
    "accumulate",
    "apply_updates",
    "batched",
    "from_dict",
    "init_state",
    "is_due",
    "precondition",
    "refresh",
    "shampoo",
    "to_dict",
    "update",
]
