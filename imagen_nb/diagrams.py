"""Networks and models as drawings, made from the shapes that live ones report.

A drawing is SVG inside the page: its words can be selected, its lines take the colour of the page, light or dark, and
at 360 units it is as wide as the screen of a phone.
"""

import math
from collections.abc import Iterable
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "Drawing",
    "draw_unet",
    "draw_block",
    "draw_attention",
    "draw_step",
    "draw_cascade",
]

WIDTH = 360  # units; one unit is one CSS pixel where there is room
LINE = 14  # units from one line of text to the next
FILLS = dict(plain="none", pixels="#2a6fb0", words="#e07b28", both="#8a5bb5")
PAGE = """\
<figure class="nbdrawing" style="margin:0">
<svg role="img" aria-label="{alt}" viewBox="0 0 {width} {height}" style="width:100%;max-width:{wide}px;\
height:auto;color:inherit;font-family:sans-serif;font-size:11px" stroke-width="1.2">
{marks}
</svg></figure>
"""


class Drawing:
    "Boxes, words and arrows on a sheet 360 units wide; y grows downwards."

    def __init__(
        self,
        alt: str,  # what it shows, for readers who cannot see it
        height: float = 0,  # of the sheet, units; it grows with what is drawn
    ):
        self.alt, self.height = alt, height
        self.marks: list[str] = []
        self.words: list[str] = []  # every text, in the order in which it was written

    def text(self, x: float, y: float, *lines: str, anchor: str = "middle"):
        "Lines of text around the height `y`."
        for i, line in enumerate(lines):
            base = y + (i - (len(lines) - 1) / 2) * LINE + 4
            self.words.append(line)
            self.marks.append(
                f'<text x="{x:g}" y="{base:g}" text-anchor="{anchor}" fill="currentColor">'
                f"{escape(line)}</text>"
            )
            self.height = max(self.height, base + 6)

    def box(
        self, x: float, y: float, width: float, *lines: str, kind: str = "plain", height: float = 0
    ):
        "A box around the centre (x, y) with its text; `kind` is one of `FILLS`."
        height = height or LINE * len(lines) + 10
        self.marks.append(
            f'<rect x="{x - width / 2:g}" y="{y - height / 2:g}" width="{width:g}"'
            f' height="{height:g}" rx="5" fill="{FILLS[kind]}" fill-opacity="0.22"'
            ' stroke="currentColor"/>'
        )
        self.height = max(self.height, y + height / 2 + 2)
        self.text(x, y, *lines)

    def arrow(self, *points: tuple[float, float], is_dashed: bool = False):
        "A line through the points that ends in a tip."
        (x0, y0), (x1, y1) = points[-2:]
        turn = math.atan2(y1 - y0, x1 - x0)
        wings = ((x1 - 6 * math.cos(turn + a), y1 - 6 * math.sin(turn + a)) for a in (0.45, -0.45))
        path, tip = (
            " ".join(f"{x:.1f},{y:.1f}" for x, y in p) for p in (points, (*wings, (x1, y1)))
        )
        dashes = ' stroke-dasharray="4 3"' if is_dashed else ""
        self.marks.append(
            f'<polyline points="{path}" fill="none" stroke="currentColor"{dashes}/>'
            f'<polygon points="{tip}" fill="currentColor"/>'
        )
        self.height = max(self.height, *(y + 2 for _, y in points))

    def chain(self, x: float, y: float, width: float, steps: Iterable[tuple]) -> list[float]:
        "Boxes (kind, *lines) below each other with arrows between; returns the centres' heights."
        centres: list[float] = []
        for kind, *lines in steps:
            half = (LINE * len(lines) + 10) / 2
            if centres:
                self.arrow((x, y), (x, y + 14))
                y += 14
            self.box(x, y + half, width, *lines, kind=kind)
            centres.append(y + half)
            y += 2 * half
        return centres

    @property
    def data(self) -> str:
        "The HTML, with everything that it needs inside."
        return PAGE.format(
            alt=escape(self.alt),
            width=WIDTH,
            height=math.ceil(self.height),
            wide=round(1.35 * WIDTH),
            marks="\n".join(self.marks),
        )

    def _repr_html_(self) -> str:
        return self.data

    def __repr__(self) -> str:
        return f"Drawing({self.alt!r})"


# ---------------------------------------------------------------- what a live module says


def count(module: nn.Module) -> str:
    "Its parameters, in words: 371, 12 k, 4.6 M, 2.3 B."
    n: float = sum(p.numel() for p in module.parameters())
    units = ["", " k", " M", " B"]
    while n >= 999.5:
        n, units = n / 1000, units[1:]
    return f"{n:.1f}{units[0]}" if n < 9.95 and units[0] else f"{n:.0f}{units[0]}"


def told(x: Tensor) -> str:
    "The shape of one sample: 3×64×64."
    return "×".join(map(str, x.shape[1:]))


def seen(
    parts: dict[str, nn.Module], run: nn.Module, *inputs: Any
) -> dict[
    str, tuple
]:  # first input and output of each part that ran, in the order in which they ran
    "Run a module once and look at the tensors that its parts are given and answer."
    found: dict[str, tuple] = {}

    def note(name):
        def hook(_, given, out):
            found.setdefault(name, (given[0], out))

        return hook

    hooks = [part.register_forward_hook(note(name)) for name, part in parts.items()]
    try:
        with torch.no_grad():
            run(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


# ---------------------------------------------------------------- networks


def draw_unet(
    network,  # `UNet` or `EfficientUNet`; on the meta device it costs nothing
    *inputs,  # what it is given: z_t (1 3 h w), log_snr (1,), text, and for an enlarger lowres, aug_log_snr
) -> Drawing:
    "The way down at the left, the way up at the right, skips across; one box for each size."
    ways = {w: getattr(network, w, ()) for w in ("down", "middle", "up")}
    parts = {f"{w} {i}": layer for w, layers in ways.items() for i, layer in enumerate(layers)}
    found = seen(parts, network, *inputs)
    levels: dict[tuple[str, int], list[tuple[nn.Module, Tensor]]] = {}
    for name, (given, out) in found.items():
        way = name.split()[0]
        x = given if hasattr(parts[name], "up") else out  # a `UBlock` works before it grows
        levels.setdefault((way, x.shape[-1]), []).append((parts[name], x))
    sides = [side for way, side in levels if way == "down"]
    size = inputs[0].shape[-1]
    d = Drawing(f"U-Net for {size} × {size} pixels: {', '.join(map(str, sides))} pixels wide.")
    d.text(75, 12, f"z_t, {told(inputs[0])}")
    d.text(285, 12, f"prediction, {told(inputs[0])}")
    d.arrow((75, 20), (75, 36))
    d.arrow((285, 36), (285, 20))
    place = {}
    for (way, side), layers in levels.items():
        row = sides.index(side) if way != "middle" else len(sides)
        x, y = dict(down=75, middle=180, up=285)[way], 60 + 68 * row
        place[way, side] = x, y
        attends = any(layer.attention is not None for layer, _ in layers)
        blocks = sum(len(getattr(layer, "blocks", "1")) for layer, _ in layers)
        lines = (
            f"{side} × {side}",
            f"{layers[-1][1].shape[1]} channels",
            f"{blocks} block{'s' * (blocks != 1)}, {count(nn.ModuleList(o for o, _ in layers))}",
        )
        d.box(x, y, 132, *lines, kind="both" if attends else "pixels", height=48)
    _arrows_of_a_u(d, place, levels)
    if any(layer.attention is not None for layers in levels.values() for layer, _ in layers):
        d.text(180, d.height + 14, "violet: with attention; blue: without")
    d.text(180, d.height + 10, f"all together {count(network)} parameters")
    return d


def _arrows_of_a_u(d: Drawing, place: dict, levels: dict):
    "Down, through the middle, up, and the skips across."
    order = list(place)
    for start, end in zip(order, order[1:]):
        (x0, y0), (x1, y1) = place[start], place[end]
        if x0 == x1:
            sign = 1 if y1 > y0 else -1
            d.arrow((x0, y0 + 24 * sign), (x1, y1 - 24 * sign))
        elif y1 > y0:
            d.arrow((x0, y0 + 24), (x0, y1), (x1 - 66, y1))
        elif y1 < y0:
            d.arrow((x0 + 66, y0), (x1, y0), (x1, y1 + 24))
        else:  # no middle: straight across, below the skip
            d.arrow((x0 + 66, y0 + 14), (x1 - 66, y1 + 14))
    for (way, side), (_, y) in place.items():
        if way == "up" and ("down", side) in place:
            n = sum(getattr(layer, "takes_skip", True) for layer, _ in levels[way, side])
            d.arrow((141, y - 6), (219, y - 6), is_dashed=True)
            d.text(180, y - 16, f"{n} skip{'s' * (n != 1)}")


def draw_block(
    block,  # a `ResBlock`
    x: Tensor,  # features, (b c h w)
    emb: Tensor,  # conditioning vector, (b emb_dim)
) -> Drawing:
    "A residual block from top to bottom: its branch, what steers it, its shortcut."
    found = seen(dict(block.named_children()), block, x, emb)
    inside, out = found["norm2"][0], found["conv2"][1]
    d = Drawing(f"Residual block, {told(x)} in, {told(out)} out.")
    size = {"down": ["half the side"], "up": ["twice the side"]}.get(block.resample, [])
    steps = [
        ("plain", f"x, {told(x)}"),
        ("pixels", "GroupNorm, SiLU", *size),
        ("pixels", f"3×3 convolution, {count(block.conv1)}", f"→ {told(inside)}"),
        ("both", "GroupNorm, times 1 + γ, plus β", "SiLU"),
        ("pixels", f"3×3 convolution, {count(block.conv2)}", "starts at zero"),
        ("plain", "sum" if block.sum_scale == 1 else f"sum, times {block.sum_scale:.3f}"),
        ("plain", f"y, {told(out)}"),
    ]
    ys = d.chain(105, 4, 180, steps)
    d.box(290, ys[2], 130, "conditioning", f"vector e, {emb.shape[1]}", kind="words")
    d.box(290, ys[3], 112, "SiLU, linear", f"γ and β, {out.shape[1]} each", kind="words")
    d.arrow((290, ys[2] + 19), (290, ys[3] - 19))
    d.arrow((234, ys[3]), (195, ys[3]))
    way = "as it is" if isinstance(block.shortcut, nn.Identity) else "1×1 convolution"
    d.text(272, (ys[4] + ys[5]) / 2 + 6, f"shortcut: {way}")
    d.arrow((195, ys[0]), (357, ys[0]), (357, ys[5]), (195, ys[5]))
    return d


def draw_attention(
    attention,  # an `Attention` with text
    x: Tensor,  # features, (b c h w)
    text,  # words, a `TextEmbedding` (b l text_dim)
) -> Drawing:
    "Words and pixels become keys and values; each pixel shares one softmax over them."
    found = seen(dict(attention.named_children()), attention, x, text)
    hw, c, l = x.shape[2] * x.shape[3], x.shape[1], text.tokens.shape[1]
    heads, e = c // attention.head_dim, attention.head_dim
    own = hw if attention.has_self else 0
    d = Drawing(f"Attention of {hw} pixels to {l} words{f' and {own} pixels' * bool(own)}.")
    d.box(90, 22, 168, f"words, {told(text.tokens)}", "of the caption", kind="words")
    d.box(270, 22, 168, f"pixels, {told(x)}", f"{hw} in a row", kind="pixels")
    d.box(
        90, 86, 168, "LayerNorm, linear", f"keys, values {told(found['text_kv'][1])}", kind="words"
    )
    each = "queries, keys, values" if own else "queries"
    d.box(270, 86, 168, "GroupNorm, linear", f"{each} {told(found['qkv'][1])}", kind="pixels")
    d.arrow((90, 41), (90, 67))
    d.arrow((270, 41), (270, 67))
    wide = 320 * (0.5 if own else 1.0)  # not to scale: a few words beside many pixels
    left = 20 + wide / 2
    d.arrow((90, 105), (90, 138))
    d.text(180, 128, "keys side by side" if own else "keys")
    d.box(left, 160, wide, f"{l} words", kind="words", height=44)
    if own:
        d.arrow((270, 105), (270, 138))
        d.box(20 + wide + 80, 160, 320 - wide, f"{own} pixels", kind="pixels", height=44)
    d.text(180, 194, f"each of {hw} queries: one softmax over {l + own} keys")
    d.text(180, 208, f"{heads} head{'s' * (heads != 1)} of {e} channels; padded words have share 0")
    d.arrow((180, 216), (180, 232))
    d.box(180, 251, 250, "shares times values, linear", f"{hw}×{c}, starts at zero", kind="both")
    d.arrow((180, 270), (180, 286))
    d.box(180, 298, 250, f"plus the pixels themselves: {told(x)}")
    return d


# ---------------------------------------------------------------- training and sampling


def draw_step(
    stage,  # a `Stage`
    batch,  # a `Batch` with the stage's margin
    draws,  # its `Draws`
) -> Drawing:
    "One training step: what is drawn at random, what is learned, what is compared."
    c = stage.config
    (given, out), losses = _asked(stage, batch, draws)
    z_t, _, words, lowres = (*given, None)[:4]
    b = len(z_t)
    d = Drawing(f"One training step of {b} pictures of {z_t.shape[-1]} pixels.")
    d.box(65, 22, 124, "pictures x0", f"{b} of {told(z_t)}", kind="pixels")
    d.box(195, 22, 118, "noise, drawn", f"{b} of {told(draws.eps)}")
    d.box(309, 22, 92, "times, drawn", f"{b} in 0 to 1")
    for x in (65, 195, 309):
        d.arrow((x, 41), (x, 60))
    d.box(
        180, 79, 350, "z_t = α x0 + σ ε", f"{c.schedule} schedule: t gives α and σ", kind="pixels"
    )
    d.arrow((110, 98), (110, 134))
    read = "no captions" if words is None else f"captions, {b} of {told(words.tokens)}"
    d.box(265, 116, 176, read, kind="words")
    d.arrow((265, 128), (265, 134))
    extra = [f"also: {b} small pictures, enlarged"] if lowres is not None else []
    lines = (f"network, {count(stage.network)} parameters", *extra)
    share = f"{c.caption_drop:.0%} of the captions are dropped"
    steps = [
        ("both", *lines, share),
        ("pixels", f"prediction of {c.target}, {b} of {told(out)}"),
        ("plain", f"loss: {len(losses)} squared errors, their mean"),
        ("plain", "gradient, clipped"),
        ("plain", "optimizer moves the weights"),
        ("plain", "the average follows"),
    ]
    d.chain(180, 134, 350, steps)
    return d


def _asked(stage, batch, draws) -> tuple[tuple, Tensor]:
    "What the network is given and answers in one step; the losses."
    found = []
    hook = stage.network.register_forward_hook(lambda _, *both: found.append(both))
    try:
        with torch.no_grad():
            losses = stage.loss(batch, draws)
    finally:
        hook.remove()
    return found[0], losses


def draw_cascade(
    imagen,  # an `Imagen`: encoder and stages
) -> Drawing:
    "The way of a caption: text encoder, then one stage after the other, each with its size."
    stages = imagen.stages
    sizes = " → ".join(str(s.config.size) for s in stages)
    d = Drawing(f"A cascade of {len(stages)} diffusion models, {sizes} pixels.")
    d.box(
        180,
        22,
        330,
        "caption → text encoder, frozen",
        f"a vector of {imagen.encoder.width} per token",
        kind="words",
    )
    y = 41.0
    for stage in stages:
        c, first = stage.config, y == 41.0
        kind = type(stage.network).__name__.replace("EfficientUNet", "Efficient U-Net")
        lines = (
            f"{kind.replace('UNet', 'U-Net')}, {count(stage.network)} parameters",
            f"{c.steps} steps of {c.sampler}, guidance {c.w:g}",
            *([] if first else [f"reads {c.lowres_size} px with noise of t = {c.aug_t:g}"]),
        )
        half = (LINE * len(lines) + 10) / 2
        if c.network.text_dim:
            d.arrow(
                (345, 22) if first else (352, 22),
                (352, 22),
                (352, y + 40 + half),
                (325, y + 40 + half),
            )
        d.text(60, y + 26, f"noise {c.size}×{c.size}", anchor="start")
        d.arrow((50, y + 18), (50, y + 40))
        if not first:
            d.arrow((230, y), (230, y + 40))
        d.box(180, y + 40 + half, 290, *lines, kind="both")
        y += 40 + 2 * half
        d.arrow((230, y), (230, y + 16))
        side = 60 + 20 * math.log2(c.size / stages[0].config.size)
        d.box(230, y + 29, side + 40, f"{c.size} × {c.size} px", kind="pixels", height=26)
        y += 42
    return d
