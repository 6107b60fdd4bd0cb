"""Digits without a download: 16 x 16 pictures of the ten digits in the fonts that matplotlib ships with.

Each picture is a glyph, turned, sheared, scaled and shifted at random, with noise added; training and held-out pictures are
drawn apart. The pictures, and so every loss, depend on matplotlib's version.

There are so many training pictures that few are seen twice. With 4096 of them, and fonts held out whole, the loss measured
how late an optimizer starts to overfit: AdamW then ended lower than Shampoo, which had got there in half the steps.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE, LARGE = 16, 32  # pixels of a picture, and of the glyph that it is taken from
FAMILIES = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmr10", "cmb10", "cmss10", "cmtt10")


class Digits(NamedTuple):
    train: Tensor  # [16384, 256], mean 0 and variance 1 over all training pixels
    train_labels: Tensor  # [16384] int64
    held_out: Tensor  # [1024, 256], shifted and scaled as the training pictures
    held_out_labels: Tensor  # [1024] int64


@dataclass(frozen=True)
class Distortion:
    """Ranges of the random maps: turns in radians, the rest as parts of the picture."""

    turn: float = 0.35
    shear: float = 0.25
    scale: float = 0.2
    shift: float = 0.15
    noise: float = 0.05


def digits(*, train: int = 16384, held_out: int = 1024, distortion: Distortion = Distortion()) -> Digits:
    glyphs, generator = _glyphs(font_files()), torch.Generator().manual_seed(0)
    pictures, labels = _pictures(glyphs, train, distortion, generator)
    others, other_labels = _pictures(glyphs, held_out, distortion, generator)
    mean, deviation = pictures.mean(), pictures.std()
    return Digits((pictures - mean) / deviation, labels, (others - mean) / deviation, other_labels)


def font_files() -> list[Path]:
    """matplotlib's text fonts, sorted: those that have upright or slanted digits."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = sorted(path for path in folder.glob("*.ttf") if path.stem.startswith(FAMILIES) and "Display" not in path.stem)
    if not files:
        raise FileNotFoundError(f"{folder} holds none of the fonts {FAMILIES}: install matplotlib with its fonts")
    return files


def _glyphs(fonts: list[Path]) -> Tensor:
    """White on black, centred [fonts, 10, LARGE, LARGE]."""
    from matplotlib.ft2font import FT2Font

    glyphs = torch.zeros(len(fonts), 10, LARGE, LARGE)
    for index, path in enumerate(fonts):
        font = FT2Font(str(path))
        font.set_size(0.75 * LARGE, 72)
        for digit in range(10):
            font.set_text(str(digit))
            font.draw_glyphs_to_bitmap()
            bitmap = torch.from_numpy(font.get_image().copy())[:LARGE, :LARGE] / 255
            top, left = ((LARGE - side) // 2 for side in bitmap.shape)
            glyphs[index, digit, top : top + bitmap.shape[0], left : left + bitmap.shape[1]] = bitmap
    return glyphs


def _pictures(glyphs: Tensor, count: int, by: Distortion, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`count` distorted pictures [count, SIZE^2] of digits of random fonts, and which digits they are."""

    def uniform(width: float) -> Tensor:
        return width * (2 * torch.rand(count, generator=generator) - 1)

    labels = torch.randint(10, (count,), generator=generator)
    fonts = torch.randint(len(glyphs), (count,), generator=generator)
    turn, shear, scale = uniform(by.turn), uniform(by.shear), 1 + uniform(by.scale)
    turned = torch.stack([turn.cos(), -turn.sin() + shear, turn.sin(), turn.cos()], 1).view(count, 2, 2)
    maps = torch.cat([turned * scale[:, None, None], torch.stack([uniform(by.shift), uniform(by.shift)], 1)[..., None]], 2)
    grid = F.affine_grid(maps, [count, 1, LARGE, LARGE], align_corners=False)
    large = F.grid_sample(glyphs[fonts, labels][:, None], grid, align_corners=False)
    small = F.avg_pool2d(large, LARGE // SIZE).flatten(1)
    return small + by.noise * torch.randn(small.shape, generator=generator), labels
