"""Parts of a tensor as boxes: what one rank has and another wants is where their boxes overlap."""

from collections.abc import Sequence

from torch import Tensor

Box = tuple[tuple[int, int], ...]  # start and end in each dimension


def whole_box(shape: Sequence[int]) -> Box:
    """All of a tensor."""
    return tuple((0, n) for n in shape)


def rows_box(shape: Sequence[int], dim: int, start: int, stop: int) -> Box:
    """A tensor from `start` to `stop` in one dimension."""
    box = list(whole_box(shape))
    box[dim] = (start, stop)
    return tuple(box)


def overlap(first: Box, second: Box) -> Box | None:
    """What is in both; None for nothing."""
    found = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(first, second, strict=True))
    return found if all(start < stop for start, stop in found) else None


def part(tensor: Tensor, place: Box, inner: Box) -> Tensor:
    """The view `inner` of a tensor that is the box `place` of the whole."""
    for dim, ((origin, _), (start, stop)) in enumerate(zip(place, inner, strict=True)):
        tensor = tensor.narrow(dim, start - origin, stop - start)
    return tensor


def shape_of(box: Box) -> list[int]:
    """The shape of a box."""
    return [stop - start for start, stop in box]


def chunk_of(size: int, rank: int, ranks: int) -> tuple[int, int]:
    """The part of a dimension that `torch.chunk`, and so DTensor's Shard, gives to a rank."""
    each = -(-size // ranks)
    return min(rank * each, size), min((rank + 1) * each, size)
