"""Readable names: of parameters, and of the tensors of a state, `momentum` for `links.momentum.velocity`."""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch.nn.parameter import is_lazy

from shampoo_fn.by_shape import matches_glob

_FINAL = {
    "velocity": "momentum",
    "average": "filtered",
    "second_moment": "second_moment",
    "inverse_root": "inverse_roots",
    "residual": "residuals",
    "failures": "failures",
    "boost": "ridge_boosts",
}


def parameter_name(groups: Sequence[Mapping[str, Any]], number: int, index: int) -> str:
    """The name of a parameter of a group: the one it was given, its place behind it if another had it before; else its place.

    Such a place in brackets is no part of the name to the globs of `shampoo_fn.When`. ValueError if not all have a name.
    """
    names, params = groups[number].get("param_names"), groups[number]["params"]
    if not names:
        return f"group{number}.param{index}"
    if len(names) != len(params):
        raise ValueError(
            f"group {number} has {len(params)} parameters and {len(names)} names: change its 'param_names' together with its "
            "'params', or delete it"
        )
    name = str(names[index])  # such as that of a generator, and then of a discriminator
    taken = names.index(name) != index or any(name in group.get("param_names", ()) for group in groups[:number])
    return f"{name} [{number}.{index}]" if taken else name


def warn_of_embedding(group: Mapping[str, Any], number: int) -> None:
    """Say so if a parameter without a name by which embeddings and output heads are known looks like one.

    A vocabulary is long, and much longer than a model is wide; no other matrix of a common model is (fused gates: 11 times).
    """
    names = group.get("param_names") or [None] * len(group["params"])
    for place, (param, name) in enumerate(zip(group["params"], names, strict=False)):
        short, long = sorted(param.shape) if not is_lazy(param) and param.dim() == 2 else (0, 0)
        known = name is not None and any(matches_glob(glob, str(name)) for glob in group["diagonal"])
        if 128 <= short <= long / 12 and long >= 8192 and not known:
            which = f"parameter {place} of group {number}" if name is None else f"{name!r}"
            lacks = "has none: pass model.named_parameters(), or" if name is None else "has another: write diagonal=(globs), or"
            warnings.warn(
                f"Shampoo knows embeddings and output heads by their names, and {which}, of shape {tuple(param.shape)} and "
                f"likely to be one, {lacks} say which take the diagonal method: diagonal='*' in a group of their own, "
                "diagonal=() for none",
                UserWarning,
                stacklevel=5,  # the line that makes the optimizer
            )
            return


def readable(paths: Iterable[str]) -> dict[str, str]:
    """A name for each path of `shampoo_fn.tree.flatten`; the whole path where two would share a name.

    `factors.0` is the Kronecker factor of the first mode of a block, `inverse_roots.0` its root in use, `residuals.0` how far
    the last one found is from being one, `failures.0` how often in a row none was good, `ridge_boosts.0` the factor on the
    ridge next time.
    """
    paths = list(paths)
    names = [_short(path) for path in paths]
    return {path: name if names.count(name) == 1 else path for path, name in zip(paths, names, strict=True)}


def is_ours(name: str) -> bool:
    """Whether `readable` gives such a name to an entry of this package's own transforms."""
    plain = "|".join(["step", "skipped", "finite", "refreshed", "factors", *_FINAL.values()])
    return re.fullmatch(rf"(region\d+\.)?({plain})(\.\d+)?|.*links\..*", name) is not None


def _short(path: str) -> str:
    factor = re.search(r"\.factors\.(\d+)$", path)
    if factor:
        return f"factors.{factor[1]}"
    *_, last = path.split(".")
    root = re.search(r"\.roots\.(\d+)\.\w+$", path)
    name = _FINAL.get(last, last)
    return f"{name}.{root[1]}" if root else name
