"""What a pass through a network takes, from sizes alone: nothing is computed and no memory is needed.

A `Sketch` walks a network as its `forward` does, with a `Sheet` in place of each tensor. It adds up multiplications
and remembers what autograd keeps for the way back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from imagen_nb.efficient_unet import DBlock, EfficientUNet
from imagen_nb.layers import (
    Attention,
    AttentionPool,
    NoiseEmbedding,
    ResBlock,
    TextProjection,
    Upsample,
)
from imagen_nb.unet import Conditioner, Layer, UNet

Part = Any  # a weight or a module inside a module: torch knows their types at run time alone
LENGTH = 128  # tokens of a caption on a GPU, padding included


@dataclass(eq=False, slots=True)
class Sheet:
    "A tensor of which only the size is known, for one picture. Two of equal size are two tensors."

    width: int  # channels or features
    places: int  # pixels or words
    item: int = 4  # bytes of a number

    @property
    def bytes(self) -> int:
        "Of one picture."
        return self.width * self.places * self.item


@dataclass(eq=False)
class Block:
    "A part of a pass: what it multiplies and what it keeps for the way back."

    unit: int | None  # which part of the network it belongs to; None: its ends
    parameters: int  # numbers that learn
    given: tuple[Sheet, ...] = ()  # the first of a unit: what the unit was given
    flops: float = 0  # of one picture, forward
    copies: int = 0  # bytes of weights in lower precision, kept whatever the batch
    kept: list[Sheet] = field(default_factory=list)  # for the way back
    widest: int = 0  # numbers of its largest tensor


@dataclass
class Sketch:
    "A pass through a network, not compiled: matrices in `item` bytes, GroupNorm and what follows it in fp32."

    item: int = 2  # bytes of a number in matrix products: 2 under autocast, 4 without
    length: int = LENGTH  # tokens of a caption
    folds: bool = False  # `upsample_conv` as on a CPU
    blocks: list[Block] = field(default_factory=list)

    def begin(self, *parts: nn.Module | None, unit: int | None = None, given: Iterable = ()):
        "What follows belongs to these modules, and they to a part of the network."
        n = sum(p.numel() for part in parts if part is not None for p in part.parameters())
        self.blocks.append(Block(unit, n, tuple(o for o in given if o is not None)))

    def keep(self, *sheets: Sheet) -> Sheet:
        "Tensors that the way back needs; returns the first."
        self.blocks[-1].kept += sheets
        for sheet in sheets:
            self.blocks[-1].widest = max(self.blocks[-1].widest, sheet.width * sheet.places)
        return sheets[0]

    def cast(self, x: Sheet, item: int) -> Sheet:
        "A copy in another precision, or the tensor itself."
        return x if x.item == item else Sheet(x.width, x.places, item)

    def multiply(self, weight: Part, x: Sheet, shrink: int = 1) -> Sheet:
        "A convolution or a linear map: as many products as it has weights, at every place of the result."
        block, places = self.blocks[-1], max(1, x.places // shrink)
        self.keep(self.cast(x, self.item))
        block.flops += 2 * weight.numel() * places
        block.copies += weight.numel() * self.item if self.item < 4 else 0
        return Sheet(weight.shape[0], places, self.item)

    def norm(self, norm: Part, x: Sheet) -> Sheet:
        "Normalize in fp32."
        rows = norm.num_groups if isinstance(norm, nn.GroupNorm) else x.places
        self.keep(self.cast(x, 4), Sheet(2, rows))
        return Sheet(x.width, x.places)

    def silu(self, x: Sheet) -> Sheet:
        "Keeps what it was given."
        return self.keep(x) and Sheet(x.width, x.places, x.item)

    @property
    def flops(self) -> float:
        "Of one picture, forward."
        return sum(block.flops for block in self.blocks)

    @property
    def kept(self) -> int:
        "Bytes that one picture leaves for the way back."
        return total(sheet for block in self.blocks for sheet in block.kept)

    @property
    def copies(self) -> int:
        "Bytes of weights in another form, kept whatever the batch."
        return sum(block.copies for block in self.blocks)


# ---------------------------------------------------------------- parts of a network


def enlarge(s: Sketch, conv: nn.Conv2d, x: Sheet) -> Sheet:
    "`upsample_conv`: on a CPU four small convolutions in one, of a picture that is not enlarged."
    if not s.folds:
        return s.multiply(conv.weight, Sheet(x.width, 4 * x.places, x.item))
    pairs = 16 * conv.in_channels * conv.out_channels
    s.keep(s.cast(x, s.item))
    s.blocks[-1].flops += 2 * pairs * (math.isqrt(x.places) + 1) ** 2
    s.blocks[-1].copies += pairs * s.item
    return Sheet(conv.out_channels, 4 * x.places, s.item)


def attend(s: Sketch, q: Sheet, heads: int, keys: int) -> Sheet:
    "Scaled dot products in one kernel: the result and a number for each row are kept, no matrix."
    s.blocks[-1].flops += 4 * q.width * q.places * keys
    out = Sheet(q.width, q.places, s.item)
    return s.keep(out, Sheet(heads, q.places))


def residual(s: Sketch, block: ResBlock, x: Sheet, emb: Sheet) -> Sheet:
    "`ResBlock.forward`."
    h = s.silu(s.norm(block.norm1, x))
    if block.resample == "down":
        s.keep(h, x)
        h, x = (Sheet(o.width, o.places // 4, o.item) for o in (h, x))
    if block.resample == "up":
        h, x = enlarge(s, block.conv1, h), Sheet(x.width, 4 * x.places, x.item)
    else:
        h = s.multiply(block.conv1.weight, h)
    s.multiply(block.film.weight, s.silu(emb))
    h = s.keep(s.norm(block.norm2, h), Sheet(h.width, 1))
    h = s.silu(Sheet(h.width, h.places))
    y = s.multiply(block.conv2.weight, h)
    if isinstance(block.shortcut, nn.Conv2d):
        s.multiply(block.shortcut.weight, x)
    return y


def attention(s: Sketch, block: Attention, x: Sheet, words: Sheet | None) -> Sheet:
    "`Attention.forward`."
    read = s.keep(s.multiply(block.qkv.weight, s.norm(block.norm, x)))
    keys = x.places if block.has_self else 0
    if block.has_text:
        assert words is not None
        told = s.multiply(block.text_kv.weight, s.norm(block.text_norm, words))
        keys += words.places
        s.keep(Sheet(1, keys, s.item))  # the mask, as numbers
        if block.has_self:  # words and pixels side by side
            s.keep(*(Sheet(x.width, keys, s.item) for _ in "kv"))
        else:
            s.keep(told)
    heads = x.width // block.head_dim
    out = attend(s, Sheet(x.width, read.places), heads, keys)
    return s.multiply(block.out.weight, out)


def perceptron(s: Sketch, layers: nn.Sequential, x: Sheet) -> Sheet:
    "Linear, SiLU, linear."
    return s.multiply(layers[2].weight, s.silu(s.multiply(layers[0].weight, x)))


def project(s: Sketch, text: TextProjection, dim: int) -> Sheet:
    "`TextProjection.forward`."
    words = s.multiply(text.proj[1].weight, s.norm(text.proj[0], Sheet(dim, s.length)))
    layer: Part
    for layer in text.mix:
        words, attention = Sheet(words.width, words.places, s.item), layer.self_attn
        read = s.multiply(attention.in_proj_weight, s.norm(layer.norm1, words))
        s.keep(read, Sheet(attention.num_heads, s.length, s.item))  # q, k and v; the mask
        told = attend(s, words, attention.num_heads, s.length)
        s.multiply(attention.out_proj.weight, Sheet(told.width, told.places, s.item))
        words = Sheet(words.width, words.places, s.item)
        inner = s.multiply(layer.linear1.weight, s.norm(layer.norm2, words))
        s.multiply(layer.linear2.weight, s.silu(inner))
        words = Sheet(words.width, words.places, s.item)
    return words


def pooled(s: Sketch, pool: AttentionPool, words: Sheet) -> Sheet:
    "`AttentionPool.forward`."
    x, queries = s.norm(pool.norm, words), pool.score.out_features
    s.multiply(pool.score.weight, x)
    share = s.keep(Sheet(queries, words.places))
    s.keep(s.cast(share, s.item), s.cast(x, s.item), Sheet(1, words.places, 1))
    s.blocks[-1].flops += 2 * queries * words.places * words.width
    return perceptron(s, pool.mlp, Sheet(queries * words.width, 1, s.item))


def condition(s: Sketch, cond: Conditioner, dim: int) -> tuple[Sheet, Sheet | None]:
    "`Conditioner.forward`: vector and words."
    s.begin(cond)
    words, emb = None, None
    for part in (cond.time, *([cond.aug] if cond.has_lowres else [])):
        emb = noise(s, part)
    if cond.has_text:
        words = project(s, cond.text, dim)
        emb = pooled(s, cond.pool, words)
    assert emb is not None
    return Sheet(emb.width, 1, s.item), words


def noise(s: Sketch, part: NoiseEmbedding) -> Sheet:
    "`NoiseEmbedding.forward`."
    return perceptron(s, part.mlp, Sheet(part.width, 1))


# ---------------------------------------------------------------- whole networks


def entry(s: Sketch, conv: nn.Conv2d, side: int, patch: int) -> Sheet:
    "The convolution that sees the pixels."
    s.begin(conv)
    return s.multiply(conv.weight, Sheet(conv.in_channels, (side // patch) ** 2))


def ending(s: Sketch, out: nn.Sequential, h: Sheet):
    "GroupNorm, SiLU, convolution."
    s.begin(out)
    s.multiply(out[2].weight, s.silu(s.norm(out[0], h)))


def one_layer(
    s: Sketch, layer: Layer, unit: int, h: Sheet, emb: Sheet, words: Sheet | None
) -> Sheet:
    "`Layer.forward`."
    part: Part
    s.begin(layer.block, unit=unit, given=(h, emb, words))
    if isinstance(layer.block, ResBlock):
        h = residual(s, layer.block, h, emb)
    else:
        h = resized(s, layer.block, h)
    for part in layer.attention.parts if layer.attention is not None else ():
        s.begin(part, unit=unit)
        if isinstance(part, Attention):
            h = attention(s, part, h, words)
        else:
            x = s.multiply(part.up.weight, s.norm(part.norm, h))
            h = s.multiply(part.down.weight, s.silu(x))
    return h


def resized(s: Sketch, part: Part, h: Sheet) -> Sheet:
    "A convolution that changes the resolution."
    if isinstance(part, Upsample) and part.stride == 2:
        return enlarge(s, part.conv, h)
    return s.multiply(part.conv.weight, h, part.conv.stride[0] ** 2)


def unet(s: Sketch, net: UNet, side: int):
    "`UNet.forward`."
    c = net.config
    emb, words = condition(s, net.cond, c.text_dim)
    h = entry(s, net.conv_in, side, c.patch)
    skips = [h] if c.skips == "concat" else []
    for unit, layer in enumerate([*net.down, *net.middle, *net.up]):
        if layer.takes_skip:
            skip = skips.pop()
            h = Sheet(h.width + (skip.width if c.skips == "concat" else 0), h.places, h.item)
        h = one_layer(s, layer, unit, h, emb, words)
        if layer.gives_skip:
            skips.append(h)
    ending(s, net.out, h)


def efficient_unet(s: Sketch, net: EfficientUNet, side: int):
    "`EfficientUNet.forward`."
    c, skips = net.config, list[Sheet]()
    emb, words = condition(s, net.cond, c.text_dim)
    h = entry(s, net.conv_in, side, c.patch)
    for unit, part in enumerate([*net.down, *net.up]):
        if isinstance(part, DBlock):
            s.begin(part.down, unit=unit, given=(h, emb, words))
            h = resized(s, part.down, h)
        else:
            s.begin(unit=unit, given=(h, skip := skips.pop(), emb, words))
            h = Sheet(h.width + skip.width, h.places, h.item)
        for block in part.blocks:
            s.begin(block, unit=unit)
            h = residual(s, block, h, emb)
        if part.attention is not None:
            s.begin(part.attention, unit=unit)
            h = attention(s, part.attention, h, words)
        if isinstance(part, DBlock):
            skips.append(h)
        else:
            s.begin(part.up, unit=unit)
            h = resized(s, part.up, h)
    ending(s, net.out, h)


def sketch(
    network: nn.Module,  # a `UNet` or an `EfficientUNet`; on the meta device it needs no memory
    side: int,  # of its pictures, pixels
    **how,  # of `Sketch`
) -> Sketch:
    "A pass of one picture."
    s = Sketch(**how)
    if isinstance(network, UNet):
        unet(s, network, side)
    elif isinstance(network, EfficientUNet):
        efficient_unet(s, network, side)
    else:
        raise ValueError(
            f"sketch: network, got {type(network).__name__}, expected UNet or EfficientUNet:"
            " of another one nobody has written down what it keeps"
        )
    return s


def total(sheets: Iterable[Sheet]) -> int:
    "Bytes of tensors, each counted once."
    return sum(sheet.bytes for sheet in dict.fromkeys(sheets))
