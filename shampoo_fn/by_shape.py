"""A choice of transform per parameter, by its name and shape."""

import re
from dataclasses import dataclass
from typing import NoReturn

from torch import Tensor

from shampoo_fn.chain import Chain
from shampoo_fn.tracing import constant_result
from shampoo_fn.transform import Clock, Transform
from shampoo_fn.tree import Tree
from shampoo_fn.validate import check_count, require

WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")  # of torch.compile, of checkpoint_wrapper


@dataclass(frozen=True)
class When:
    """Use `transform` for a parameter that meets every condition given.

    `name` is a glob over the whole dotted name (`*` any characters, `?` one), or several of which one must match; `order` the
    number of dimensions after merging, or several; `larger_than` demands a merged dimension greater than it. A note in brackets
    behind a name, as in "weight [1.0]", is no part of it: it tells two parameters of one name apart. Nor need a glob say what
    wrappers add to names: `module.` in front (DDP), `_orig_mod.` (torch.compile), `_checkpoint_wrapped_module.`.
    """

    transform: Transform
    name: str | tuple[str, ...] = "*"
    order: int | tuple[int, ...] | None = None
    larger_than: int | None = None

    def __post_init__(self) -> None:
        require(isinstance(self.transform, Transform), "transform", self.transform, "a Transform")
        check_globs("name", self.name)
        for order in self.order if isinstance(self.order, tuple) else (self.order,):
            check_count("order", 1 if order is None else order)
        check_count("larger_than", 0 if self.larger_than is None else self.larger_than, least=0)

    def matches(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether the parameter of this name and merged shape meets every condition."""
        name, _, _ = name.partition(" [")
        names = (self.name,) if isinstance(self.name, str) else self.name
        orders = (self.order,) if isinstance(self.order, int) else self.order
        return (
            any(matches_glob(glob, name) for glob in names)
            and (orders is None or len(shape) in orders)
            and (self.larger_than is None or max(shape, default=0) > self.larger_than)
        )


@dataclass(frozen=True)
class ByShape(Transform):
    """The transform of the first rule that matches a parameter, `default` where none does.

    It is resolved by `select` before anything runs, per parameter, and so is never called itself.
    """

    default: Transform
    rules: tuple[When, ...] = ()

    def __post_init__(self) -> None:
        require(isinstance(self.default, Transform), "default", self.default, "a Transform")
        proper = isinstance(self.rules, tuple) and all(isinstance(rule, When) for rule in self.rules)
        require(proper, "rules", self.rules, "a tuple of When(transform, name=..., order=...)")

    def select(self, name: str, shape: tuple[int, ...]) -> Transform:
        for rule in self.rules:
            if rule.matches(name, shape):
                return rule.transform.select(name, shape)
        return self.default.select(name, shape)

    def init(self, param: Tensor) -> NoReturn:
        raise TypeError("ByShape stands for several transforms: call select(name, shape) first, as init_state does")

    def update(self, update: Tensor, state: Tree, param: Tensor | None, clock: Clock) -> NoReturn:
        raise TypeError("ByShape stands for several transforms: call select(name, shape) first, as update does")

    @property
    def alternatives(self) -> tuple[Transform, ...]:
        """Every transform that a parameter may get."""
        return (self.default, *(rule.transform for rule in self.rules))

    @property
    def reads_params(self) -> bool:
        return any(transform.reads_params for transform in self.alternatives)

    @property
    def reads_norms(self) -> bool:
        return any(transform.reads_norms for transform in self.alternatives)

    @property
    def has_statistics(self) -> bool:
        return any(transform.has_statistics for transform in self.alternatives)


def same(left: Transform, right: Transform) -> bool:
    """Whether two selections are the same transforms: by identity, since hyper-parameters may be tensors."""
    if isinstance(left, Chain) and isinstance(right, Chain):
        return len(left.links) == len(right.links) and all(
            name == other and same(link, twin) for (name, link), (other, twin) in zip(left.links, right.links, strict=True)
        )
    return left is right


def check_globs(field: str, value: str | tuple[str, ...]) -> None:
    """Refuse what is no pattern of names and no tuple of these."""
    globs = (value,) if isinstance(value, str) else value
    proper = isinstance(globs, tuple) and all(isinstance(glob, str) for glob in globs)
    require(proper, field, value, "a glob such as '*embed*', or a tuple of globs")


@constant_result
def matches_glob(glob: str, name: str) -> bool:
    """fnmatch.fnmatchcase without character classes, of a name as it is or without what wrappers added to it."""
    pattern = ".*".join(".".join(re.escape(part) for part in piece.split("?")) for piece in glob.split("*"))
    inner = ".".join(part for part in name.split(".") if part not in WRAPPERS)
    return any(re.fullmatch(pattern, each) for each in (name, inner, inner.removeprefix("module.")))
