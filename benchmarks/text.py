"""Real text that every machine with Python already has: the source of Python's own standard library.

The text, and so every loss, depends on the Python version. The split is by file: each tenth file of the sorted list is
held out whole.
"""

import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

VOCABULARY = 128
HOLD_OUT_EVERY = 10
# Test suites repeat themselves, and installed packages differ from machine to machine.
SKIPPED = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
NOT_ASCII = bytes(range(VOCABULARY, 256))


@dataclass(frozen=True)
class Text:
    """Two uint8 tensors of one dimension, each file's end joined to the next one's beginning."""

    train: Tensor
    held_out: Tensor


def standard_library() -> Text:
    root = Path(sysconfig.get_paths()["stdlib"])
    names = sorted(path.relative_to(root) for path in root.rglob("*.py"))
    names = [name for name in names if SKIPPED.isdisjoint(name.parts)]
    held_out = names[::HOLD_OUT_EVERY]
    train = [name for index, name in enumerate(names) if index % HOLD_OUT_EVERY]
    return Text(train=_read(root, train), held_out=_read(root, held_out))


def _read(root: Path, names: list[Path]) -> Tensor:
    content = b"".join((root / name).read_bytes().translate(None, NOT_ASCII) for name in names)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def batches(text: Tensor, *, count: int, batch: int, context: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """`count` pairs (inputs, targets) of int64 `[batch, context]`, windows at random places; the seed decides which."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        starts = torch.randint(len(text) - context, (batch,), generator=generator)
        yield _windows(text, starts, context)


def spread(text: Tensor, *, count: int, context: int) -> tuple[Tensor, Tensor]:
    """`count` windows at equal distances over the whole text: always the same ones."""
    starts = torch.linspace(0, len(text) - context - 1, count).long()
    return _windows(text, starts, context)


def _windows(text: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    windows = text[starts[:, None] + torch.arange(context + 1)].long()
    return windows[:, :-1], windows[:, 1:]
