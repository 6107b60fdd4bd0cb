"""State is nested named tuples and dicts of tensors; these few functions are all that the package asks of a tree."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor

Record = TypeVar("Record", bound=tuple[Any, ...])
Tree = Any  # Tensor | tuple of trees (named or not) | dict[str, Tree]


# Loops, and looks for tensors, where a comprehension or one more call would do: torch.compile traces each function that is
# called, comprehensions included, and half of those in a step are of this file.
def map_tree(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Apply `function` to each tensor of `tree`, and to the tensors at the same places of `others`."""
    if isinstance(tree, Tensor):
        return function(tree, *others)
    if isinstance(tree, dict):
        built = {}
        for key, value in tree.items():
            beside = [other[key] for other in others] if others else ()
            built[key] = function(value, *beside) if isinstance(value, Tensor) else map_tree(function, value, *beside)
        return built
    mapped = []
    for values in zip(tree, *others, strict=True):
        mapped.append(function(*values) if isinstance(values[0], Tensor) else map_tree(function, *values))
    return tuple.__new__(type(tree), mapped) if hasattr(tree, "_fields") else tuple(mapped)


def first_leaf(tree: Tree) -> Tensor | None:
    """The first tensor of `tree`, None where there is none."""
    if isinstance(tree, Tensor):
        return tree
    for child in tree.values() if isinstance(tree, dict) else tree:
        found = first_leaf(child)
        if found is not None:
            return found
    return None


def leaves(tree: Tree) -> list[Tensor]:
    """The tensors of `tree`, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    found: list[Tensor] = []
    for child in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(child, Tensor):
            found.append(child)
        else:
            found.extend(leaves(child))
    return found


def flatten(tree: Tree, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of `tree` keyed by dotted path: `{"links.momentum.velocity": tensor, ...}`."""
    if isinstance(tree, Tensor):
        return {prefix: tree}
    flat = {}
    for key, value in _children(tree).items():
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else key))
    return flat


def unflatten(like: Tree, flat: Mapping[str, Tensor], prefix: str = "") -> Tree:
    """The inverse of `flatten`: a tree of the structure of `like` with the tensors of `flat`; KeyError names a missing path."""
    if isinstance(like, Tensor):
        return flat[prefix]
    built = {k: unflatten(v, flat, f"{prefix}.{k}" if prefix else k) for k, v in _children(like).items()}
    if isinstance(like, dict):
        return built
    return type(like)(*built.values()) if hasattr(like, "_fields") else tuple(built.values())


def changes(old: Tree, new: Tree) -> dict[str, Tree]:
    """The leaves of `new` that are not those of `old`, as nested dicts; equal structures, compared by identity."""
    found: dict[str, Tree] = {}
    befores = _children(old)
    for key, value in _children(new).items():
        before = befores[key]
        if isinstance(value, Tensor):
            if value is not before:
                found[key] = value
        else:
            below = changes(before, value)
            if below:
                found[key] = below
    return found


def changed(tree: Tree, new: Mapping[str, Tree], write: Callable[[Tensor, Tensor], Tensor]) -> Tree:
    """`tree` with `write(leaf, new leaf)` at each place in `new`, a result of `changes`."""
    if isinstance(tree, Tensor):
        return write(tree, new)  # type: ignore[arg-type]
    children = _children(tree)
    values = {key: changed(children[key], value, write) for key, value in new.items()}
    if isinstance(tree, dict):
        return tree | values
    return replaced(tree, **values) if hasattr(tree, "_fields") else tuple((children | values).values())


def replaced(record: Record, **fields: Any) -> Record:
    """`record._replace(**fields)` of a named tuple, in words that torch.compile follows also in torch 2.8."""
    kind: Any = type(record)
    made: Record = tuple.__new__(kind, [fields.get(kind._fields[place], record[place]) for place in range(len(record))])
    return made


def _children(tree: Tree) -> dict[str, Tree]:
    if isinstance(tree, dict):
        return tree
    names = type(tree)._fields if hasattr(tree, "_fields") else [str(place) for place in range(len(tree))]
    children: dict[str, Tree] = {}
    for place in range(len(tree)):
        children[names[place]] = tree[place]
    return children
