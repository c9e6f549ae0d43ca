"""One resize, one crop, one range: every function that touches pixels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from imagen_nb.text import TextEmbedding


class Crop(NamedTuple):
    "A window per image, in pixels of the full image; beyond the frame its edge repeats."

    top: Tensor  # first row, may be negative, int64 (b,)
    left: Tensor  # first column, may be negative, int64 (b,)
    height: int  # rows
    width: int  # columns


class Batch(NamedTuple):
    "What a training step receives."

    images: Tensor  # (b 3 h w) in [-1, 1]
    text: TextEmbedding  # encoded captions, b rows
    index: Tensor  # type: ignore[assignment]  # key of every draw, int64 (b,)
    captions: list[str] | None = None  # for the eye only


class Pictures(Protocol):
    "Captioned pictures in random access: all that training, validation and sampling ask of a data set."

    def __len__(self) -> int:
        "Pictures; training draws a new order of them each epoch."

    @property
    def identity(self) -> str:
        "These pictures in a run's record: other pictures, another text."

    def captions(self, i: int) -> list[str]:
        "All captions of picture i; none, or each in one line."

    def caption(self, i: int, epoch: int | None = None) -> str:
        "The caption of picture i in an epoch: keyed, the same in every process; empty without any."

    def images(
        self,
        indices,  # int64 (b,) or a list of ints, each from 0 to len - 1
        size: int | None = None,  # side of the whole frame in pixels; None: the data set's own
        crop: Crop | None = None,  # windows of it, one per picture
        device=None,  # where to put them
    ) -> Tensor:  # (b 3 h w) in [-1, 1], float32; h and w are the size's or the crop's
        "Pictures by index, the same whatever was asked for before."


MARGIN = 8  # pixels a crop carries on each side, so that reducing it by 4 equals cropping after


def resize(
    images: Tensor,  # (b c h w)
    size: int | tuple[int, int],  # new side, or (height, width)
) -> Tensor:  # (b c *size); the same tensor if nothing changes
    "Bilinear resize with anti-aliasing, the frame's edge repeated beyond it."
    old = tuple(images.shape[-2:])
    new = (size, size) if isinstance(size, int) else tuple(size)
    if images.ndim != 4 or min(new) < 1:
        raise ValueError(
            f"resize: images and size, got {tuple(images.shape)} and {size},"
            " expected (b c h w) and at least 1"
        )
    if new == old:
        return images
    if any(max(a, b) % min(a, b) for a, b in zip(old, new)):  # grids that never realign
        rows, cols = (tent_weights(a, b).to(images) for a, b in zip(old, new))
        return rows @ images @ cols.T
    (py, qy), (px, qx) = ((a // math.gcd(a, b), b // math.gcd(a, b)) for a, b in zip(old, new))
    padded = F.pad(images, (px, px, py, py), mode="replicate")
    out = F.interpolate(padded, (new[0] + 2 * qy, new[1] + 2 * qx), mode="bilinear", antialias=True)
    return out[..., qy : qy + new[0], qx : qx + new[1]].contiguous()


def tent_weights(
    old: int,  # pixels along an axis
    new: int,  # pixels after the resize
) -> Tensor:  # weight of every old pixel in every new one, (new old), float64; rows sum to 1
    "A tent as wide as two pixels of the coarser grid; what hangs over the frame counts on its edge."
    reach = max(1.0, old / new)
    pad = math.ceil(reach)
    exact: dict = dict(dtype=torch.float64, device="cpu")
    at = torch.arange(-pad, old + pad, device="cpu")
    centre = (torch.arange(new, **exact) + 0.5) * old / new
    weights = (1 - (at + 0.5 - centre[:, None]).abs() / reach).clamp(min=0)
    weights = weights / weights.sum(1, keepdim=True)
    return torch.zeros(new, old, **exact).index_add(1, at.clamp(0, old - 1), weights)


def crop_images(
    images: Tensor,  # (b c h w)
    crop: Crop,  # one window per image
) -> Tensor:  # (b c crop.height crop.width)
    "Cut windows; beyond the frame its edge repeats."
    b, _, h, w = images.shape
    rows = (
        (crop.top[:, None] + torch.arange(crop.height, device=crop.top.device))
        .clamp(0, h - 1)
        .to(images.device)
    )
    cols = (
        (crop.left[:, None] + torch.arange(crop.width, device=crop.left.device))
        .clamp(0, w - 1)
        .to(images.device)
    )
    batch = torch.arange(b, device=images.device)[:, None, None]
    return images[batch, :, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2).contiguous()


def to_square(
    picture,  # PIL.Image in RGB
    size: int,  # side in pixels
    at: float = 0.5,  # where along the longer side the square lies, in [0, 1]
) -> Tensor:  # (3 size size) in [-1, 1], in steps of 1/127.5
    "The largest square of a picture, by default the middle one, resized."
    return cut_square(picture, size, at, (0, 0, size, size)).float().div_(127.5).sub_(1)


def cut_square(
    picture,  # PIL.Image in RGB
    size: int,  # side of the square in pixels
    at: float,  # where along the longer side the square lies, in [0, 1]
    window: tuple[int, int, int, int],  # top, left, height, width: the part that is wanted
) -> Tensor:  # uint8 (3 height width)
    "A window of a picture's resized square, without resizing the rest."
    side, scale = min(picture.size), min(picture.size) / size
    x, y = (int((length - side) * at) for length in picture.size)
    pad = math.ceil(max(1.0, scale))
    frame = _framed(picture.crop((x, y, x + side, y + side)), pad)
    top, left, h, w = window
    corners = (left * scale, top * scale, (left + w) * scale, (top + h) * scale)
    pixels = frame.resize((w, h), BILINEAR, tuple(c + pad for c in corners))
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous()


BILINEAR = 2  # Pillow's number for the tent filter, widened by the scale when it reduces


def _framed(square, pad: int):
    "A square with its edge repeated on all sides."
    side, whole = square.width, square.width + 2 * pad
    frame = square.crop((-pad, -pad, side + pad, side + pad))  # black outside
    for a, b in ((0, pad), (side + pad, side + pad - 1)):  # where to paste, what to repeat
        frame.paste(frame.crop((0, b, whole, b + 1)).resize((whole, pad), 0), (0, a))
    for a, b in ((0, pad), (side + pad, side + pad - 1)):
        frame.paste(frame.crop((b, 0, b + 1, whole)).resize((pad, whole), 0), (a, 0))
    return frame
