"""What leaves a rank and what arrives: segments, roots in them, and the copies that a rank solves."""

import pytest
import torch

from shampoo_fn.symmetric import packed, packed_shape
from shampoo_fn.tree import flatten
from shampoo_optim.distributed.arrival import arrived, pack_into, unpacked
from shampoo_optim.distributed.exchange import HEADER, Seating, evened, header, heads_of, read
from shampoo_optim.distributed.flight import Flight
from shampoo_optim.distributed.solving import asks
from shampoo_optim.distributed.tiles import Block, Directory, Tile, tiles_of
from shampoo_optim.refreshing import part_at
from shampoo_optim.storage import Storage
from tests.distributed.walks import MANY, PLAIN, build, take
from tests.optim.support import grads_for


@pytest.mark.parametrize("n", range(1, 12))
def test_matrices_of_several_parts_are_unpacked_to_the_bit(n: int) -> None:
    matrices = torch.randn(5, n, n, generator=torch.Generator().manual_seed(n))
    matrices = matrices + matrices.mT
    matrices[0] = -0.0
    parts = packed(matrices).split([1, 3, 1])
    found = unpacked(parts)
    assert torch.equal(found, matrices)
    assert found.is_contiguous()
    assert torch.equal(found.mT.contiguous().view(torch.int32), found.view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", range(1, 12))
def test_matrices_are_packed_to_the_bit(n: int, dtype: torch.dtype) -> None:
    matrices = torch.randn(3, n, n, generator=torch.Generator().manual_seed(n))
    matrices = (matrices + matrices.mT).to(dtype)
    rectangles = torch.full((3, *packed_shape(n)), torch.nan, dtype=dtype)
    pack_into(rectangles, matrices)
    assert torch.equal(rectangles, packed(matrices))


def tile(n: int, blocks: int) -> Tile:
    names = tuple(Block(f"w{n}", 0, index) for index in range(blocks))
    return Tile("0", names, packed_shape(n), True, torch.float32, float(n**3), 0, None)  # type: ignore[arg-type]


def test_segments_are_as_long_as_what_is_in_them_where_padding_would_count() -> None:
    even, uneven = (Seating.of([tile(64, 1)] * 4, owners, 4, None) for owners in ([0, 1, 2, 3], [0, 1, 0, 0]))
    assert len(set(even.sizes)) == 1
    assert uneven.sizes[2] == uneven.sizes[3] == HEADER
    assert uneven.sizes[0] > uneven.sizes[1] > HEADER
    assert [evened(5, 16, 4), evened(5, 15, 4)] == [True, False]  # 20 bytes instead of 16 or of 15


def test_roots_are_found_in_segments_of_any_length() -> None:
    tiles = [tile(64, 2), tile(64, 1), tile(64, 1)]
    seating = Seating.of(tiles, [1, 1, 0], 3, torch.bfloat16)
    segments = [seating.empty(rank, torch.device("cpu")) for rank in range(3)]
    assert [len(segment) for segment in segments] == list(seating.sizes)
    matrices = torch.arange(4.0).view(4, 1, 1).expand(4, 64, 64)
    for number, those in ((0, slice(0, 2)), (1, slice(2, 3)), (2, slice(3, 4))):
        segment = segments[seating.rooms[number].owner]
        seating.roots(segment, number).copy_(packed(matrices[those]))
        seating.residuals(segment, number).copy_(matrices[those, 0, 0])
    segments[2][:HEADER] = header(b"x", "no luck")
    found = arrived(seating, segments, [(0, slice(1, 2)), (2, slice(None)), (1, slice(0, 1))], torch.device("cpu"))
    assert torch.equal(found.roots, matrices[[1, 3, 2]])
    assert found.residuals.tolist() == [1.0, 3.0, 2.0]
    heads = heads_of(segments, seating.heads)
    assert read(heads[2]) == (b"x".ljust(32, b"\0"), "no luck")
    assert seating.residuals(heads[1], 0).tolist() == [0.0, 1.0]


def stored(options: dict[str, object]) -> Storage:
    """The storage of an optimizer after some steps."""
    params, optimizer = build(options, None)
    for grads in grads_for(params, 4):
        take(optimizer, params, grads)
    ((storage, _),) = optimizer.stacked.of(0)
    return storage


@pytest.mark.parametrize("options", [PLAIN, MANY | {"bias_correction": False}], ids=["plain", "with turns"])
def test_what_a_rank_is_asked_for_are_copies_of_the_state(options: dict[str, object]) -> None:
    storage = stored(options)
    directory, tiles = Directory([storage]), tiles_of(storage)
    seating = Seating.of(tiles, [number % 2 for number in range(len(tiles))], 2, None)
    seats = Flight(1, seating, list(directory.places), directory, None).seats
    held = {leaf.untyped_storage().data_ptr() for blocks in storage.state.stacks.values() for leaf in flatten(blocks).values()}
    found = list(asks(seating, 1, directory, seats, storage.limit))
    assert found
    for ask in found:
        for tensor in (ask.job.factors, ask.job.boost):
            assert tensor.untyped_storage().data_ptr() not in held


@pytest.mark.parametrize("slots", [[2], [0, 1, 2], [1, 3], [0, 2, 3], [0, 3]])
def test_the_state_of_some_slots_is_read_and_written_there_alone(slots: list[int]) -> None:
    storage = stored(PLAIN)
    stack = next(stack for stack in storage.plan.stacks if stack.size == 4)
    before = {path: leaf.clone() for path, leaf in flatten(storage.state.stacks[stack.key]).items()}
    part, put = part_at(storage, stack, slots)
    assert all(torch.equal(leaf, before[path][slots]) for path, leaf in flatten(part).items())
    put({"refreshed": torch.arange(10, 10 + len(slots))})
    expected = before["refreshed"].clone()
    expected[slots] = torch.arange(10, 10 + len(slots))
    after = flatten(storage.state.stacks[stack.key])
    assert torch.equal(after.pop("refreshed"), expected)
    assert all(torch.equal(leaf, before[path]) for path, leaf in after.items())
