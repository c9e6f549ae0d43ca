"""Pictures of pictures: grids, curves of a run, and a slider that needs no kernel.

Images are tensors (b 3 h w) in [-1, 1], as everywhere. matplotlib and PIL are imported
only when a figure is made.
"""

import base64
import hashlib
import io
import json
import math
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from imagen_nb.store.files import as_path, picture_file, read_rows, replaced, write_new

__all__ = [
    "BLUE",
    "ORANGE",
    "save_picture",
    "add_picture",
    "image_grid",
    "show_images",
    "show_stages",
    "FrameSlider",
    "frame_slider",
    "smooth",
    "plot_log",
    "plot_reference",
    "interval_line",
    "preference_bars",
]

BLUE, ORANGE = "#2a6fb0", "#e07b28"  # the two accents: data, noise
WIDTH = 7.0  # inches, the widest figure
SLIDER_LIMIT = 300_000  # bytes of HTML
MANY_SCRIPTS = (  # fonts with Chinese letters and many others, as Linux, macOS and Windows name them
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "PingFang SC",
    "Arial Unicode MS",
    "Microsoft YaHei",
    "SimHei",
)


# ---------------------------------------------------------------- grids


def _pictures(images, caller: str) -> tuple[list[Tensor], int | None]:
    "Single images (c h w) in row order, and how many belong in a row if that is known."
    row = None
    if (
        isinstance(images, Sequence)
        and len(images)
        and all(isinstance(i, Tensor) and i.ndim == 4 for i in images)
    ):
        sizes = [len(i) for i in images]
        if len(set(sizes)) > 1:
            raise ValueError(
                f"{caller}: batches side by side, got {sizes} images, expected as many in each"
            )
        row = len(images)
        images = [image for group in zip(*images) for image in group]
    images = list(images)
    for image in images:
        if not isinstance(image, Tensor) or image.ndim != 3 or len(image) not in (1, 3):
            got = tuple(getattr(image, "shape", ())) or type(image).__name__
            raise ValueError(f"{caller}: an image, got {got}, expected (3 h w)")
        if not image.is_floating_point():
            raise ValueError(f"{caller}: an image, got {image.dtype}, expected floats in [-1, 1]")
    if not images:
        raise ValueError(f"{caller}: got no images, expected at least one")
    return images, row


def _bytes(image: Tensor) -> Tensor:
    "(c h w) in [-1, 1] as uint8 (h w 3); what lies outside is cut off, NaN is black."
    image = image.detach().float().cpu().expand(3, -1, -1)
    image = ((image.clamp(-1, 1) + 1) * 127.5).nan_to_num(0.0)
    return image.round().to(torch.uint8).permute(1, 2, 0).contiguous()


def save_picture(
    picture,  # (3 h w) in [-1, 1], what lies outside is cut off; or a matplotlib figure
    path: str | Path,  # PNG, JPEG or WebP file, made or replaced
    dpi: int = 100,  # of a figure
):
    "One picture as a file."
    path = picture_file(path)
    with replaced(path) as f:
        f.write(_file(picture, path.suffix, dpi))


def add_picture(
    picture,  # (3 h w) in [-1, 1], or a matplotlib figure
    path: str | Path,  # PNG, JPEG or WebP file to make
    taken: Iterable[Path] = (),  # names of other pictures
) -> Path:  # the file: where `path` is another one, or taken, its name has a number
    "One picture as a new file; none is replaced."
    path = picture_file(path)
    return write_new(path, _file(picture, path.suffix), taken)


def _file(picture, ending: str = ".png", dpi: int = 100) -> bytes:
    "A picture or a figure as the bytes of a file."
    from PIL import Image

    buffer, kind = io.BytesIO(), ending.lower().replace("jpg", "jpeg")[1:]
    if isinstance(picture, Tensor):
        Image.fromarray(_bytes(picture).numpy()).save(buffer, kind)
        return buffer.getvalue()
    metadata = dict(Software=None) if kind == "png" else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # it is drawn as a box
        picture.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def _enlarge(image: Tensor, size: tuple[int, int], caller: str) -> Tensor:
    "Repeat the pixels of (h w 3) a whole number of times to reach `size`."
    (h, w), (tall, wide) = image.shape[:2], size
    if tall % h or wide % w or tall // h != wide // w:
        raise ValueError(
            f"{caller}: images of several sizes, got {h}x{w} beside "
            f"{tall}x{wide}, expected whole multiples"
        )
    k = tall // h
    return image.repeat_interleave(k, 0).repeat_interleave(k, 1)


def image_grid(
    images,  # (b 3 h w), a list of (3 h w), or a list of batches
    columns: int | None = None,  # how many in a row; by default nearly square
    *,
    padding: int = 2,  # pixels around each image
    background: float = 1.0,  # level of the padding in [-1, 1]; 1 is white
):  # PIL.Image, one of its pixels for one of ours
    """A grid of images, exact to the pixel.

    Images of several sizes are first enlarged to the largest, each pixel repeated. A list
    of batches puts the stages of a cascade side by side: a row per picture.
    """
    from PIL import Image

    pictures, row = _pictures(images, "image_grid")
    tiles = [_bytes(p) for p in pictures]
    h, w = max(t.shape[0] for t in tiles), max(t.shape[1] for t in tiles)
    tiles = [_enlarge(t, (h, w), "image_grid") for t in tiles]
    columns = columns or row or math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    columns = min(columns, len(tiles))
    level = round((min(max(background, -1), 1) + 1) * 127.5)
    shape = (rows * (h + padding) + padding, columns * (w + padding) + padding, 3)
    sheet = torch.full(shape, level, dtype=torch.uint8, device="cpu")
    for i, tile in enumerate(tiles):
        top = padding + i // columns * (h + padding)
        left = padding + i % columns * (w + padding)
        sheet[top : top + h, left : left + w] = tile
    return Image.fromarray(sheet.numpy())


def _wrapped(texts: Sequence[str] | None, width: float) -> list[str]:
    "Texts of 7 point in lines that fit so many inches."
    lines = max(int(width * 72 / 7 / 0.56), 6)  # letters in a line
    plain = (str(t).encode(errors="replace").decode() for t in texts or [])
    return [
        "\n".join("\n".join(textwrap.wrap(line, lines)) for line in t.split("\n")) for t in plain
    ]


def _fonts() -> list[str]:
    "The usual font, and behind it those of this machine that have Chinese letters and others."
    from matplotlib import font_manager, rcParams

    there = {*font_manager.get_font_names()}
    return [*rcParams["font.family"], *(name for name in MANY_SCRIPTS if name in there)]


def _tall(texts: list[str]) -> float:
    "Inches that the longest of them needs."
    return max((t.count("\n") + 1 for t in texts), default=0) * 7 * 1.25 / 72


def show_images(
    images,  # (b 3 h w), a list of (3 h w), or of batches
    captions: Sequence[str] | None = None,  # one under each image, wrapped
    columns: int | None = None,  # how many in a row; by default up to 8
    path=None,  # also save the figure there
    *,
    width: float | None = None,  # inches of one image
    title: str | None = None,  # over the figure
    rows: Sequence[str] | None = None,  # a label at the left of each row
    heads: Sequence[str] | None = None,  # a label above each column
    dpi: int = 100,  # dots per inch
):  # matplotlib Figure
    "Show images on the fixed scale [-1, 1], with captions under them and labels around them."
    import matplotlib.pyplot as plt

    pictures, row = _pictures(images, "show_images")
    columns = min(columns or row or 8, len(pictures))
    count = math.ceil(len(pictures) / columns)
    for name, given, n in (
        ("captions", captions, len(pictures)),
        ("rows", rows, count),
        ("heads", heads, columns),
    ):
        if given is not None and len(given) != n:
            raise ValueError(f"show_images: {name}, got {len(given)}, expected {n}")
    beside = 0.7 if rows else 0  # inches for the labels of rows
    width = width or min((WIDTH - beside) / columns, 1.6)
    texts, tops, sides = _wrapped(captions, width), _wrapped(heads, width), _wrapped(rows, beside)
    below, tall = _tall(texts) + 0.04, max(p.shape[1] / p.shape[2] for p in pictures) * width
    above = (0.3 if title else 0) + (_tall(tops) + 0.04 if tops else 0)
    size = (beside + columns * width, count * (tall + below) + above)
    fig = plt.figure(figsize=size, dpi=dpi)
    style: dict[str, Any] = dict(fontsize=7, linespacing=1.15, parse_math=False)
    style["fontfamily"] = _fonts()
    for i, picture in enumerate(pictures):
        left, top = beside + i % columns * width, i // columns * (tall + below) + above
        (x, w), (y, h) = (left + 0.02, width - 0.04), (size[1] - top - tall, tall - 0.02)
        ax = fig.add_axes((x / size[0], y / size[1], w / size[0], h / size[1]))
        _draw(ax, picture)
        if texts:
            ax.text(0.5, -0.03, texts[i], transform=ax.transAxes, ha="center", va="top", **style)
        if tops and i < columns:
            ax.text(0.5, 1.03, tops[i], transform=ax.transAxes, ha="center", va="bottom", **style)
        if sides and i % columns == 0:
            text = sides[i // columns]
            fig.text(
                (beside - 0.05) / size[0],
                (y + h / 2) / size[1],
                text,
                ha="right",
                va="center",
                **style,
            )
    if title:
        fig.suptitle(title, fontsize=9, y=1 - 0.06 / size[1], va="top")
    return _finished(fig, path, dpi)


def show_stages(
    captions: Sequence[str],  # one per picture
    stages: Sequence[Tensor],  # pictures of each stage of a cascade, (b 3 h w)
    path=None,  # also save the figure there
):  # matplotlib Figure
    "Captions and the pictures of every stage, side by side at one size."
    side = 256

    def tile(image):
        scale = side / max(image.shape[1:])
        sides = [round(scale * s) for s in image.shape[1:]]
        return F.interpolate(image[None], sides, mode="nearest" if scale > 1 else "area")[0]

    tiles = [tile(image) for row in zip(*stages) for image in row]
    sides = [tuple(images.shape[-2:]) for images in stages]
    sizes = [f"{h} px" if h == w else f"{h} x {w} px" for h, w in sides]
    labels = [
        f"{caption[:200]}\n{size}" if k == 0 else size
        for caption in captions
        for k, size in enumerate(sizes)
    ]
    columns = max(1, 6 // len(stages)) * len(stages)
    return show_images(torch.stack(tiles), labels, columns, path)


def _finished(fig, path=None, dpi: int = 100):
    "A figure that pyplot forgets, or a notebook would show it twice; saved if there is a path."
    import matplotlib.pyplot as plt

    plt.close(fig)
    if path is not None:
        save_picture(fig, path, dpi)
    return fig


def _draw(ax, picture: Tensor):
    "One image in its axes; one channel is drawn in grays."
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(linewidth=0.4, color="0.6")  # where a white image ends
    if len(picture) == 1:
        ax.imshow(
            picture[0].detach().float().cpu().numpy(),
            cmap="gray",
            vmin=-1,
            vmax=1,
            interpolation="nearest",
        )
    else:
        ax.imshow(_bytes(picture).numpy(), vmin=0, vmax=255, interpolation="nearest")


# ---------------------------------------------------------------- slider

MOVE = (
    "var f=this.closest('figure'),k=+this.value,v=JSON.parse(this.dataset.labels)[k],"
    "i=f.querySelector('img');i.src='data:image/png;base64,'+this.dataset.frames.split(' ')[k];"
    "i.alt=i.dataset.shows+v;"
    "f.querySelector('output').textContent=v;this.setAttribute('aria-valuetext',v)"
)

FIGURE = """\
<figure class="nbslider" id="{uid}" data-lm-suppress-shortcuts="true" \
style="margin:0;max-width:max({width}px,20em)">
<img alt="{shows}{label}" data-shows="{shows}" src="data:image/png;base64,{first}" \
style="width:100%;max-width:{width}px;image-rendering:{rendering}">
<figcaption><label style="display:flex;gap:.6em;align-items:center">{name}
<input type="range" min="0" max="{last}" step="1" value="{start}" style="flex:1;min-width:6em;min-height:24px" \
aria-label="{title}" aria-valuetext="{label}" data-labels="{labels}" data-frames="{frames}" \
oninput="{move}"><output>{label}</output></label></figcaption>
</figure>
"""


class FrameSlider:
    "A slider over pictures made beforehand; where scripts are stripped, the first one."

    def __init__(
        self,
        frames: Sequence[bytes],  # PNG files
        labels: Sequence,  # what to show for each
        *,
        name: str = "",  # text before the slider
        alt: str = "",  # what the pictures show
        start: int = 0,  # the frame shown first
        width: int = 560,  # widest, in CSS pixels
        pixelated: bool = False,  # repeat pixels when enlarged?
    ):
        if not frames or len(frames) != len(labels):
            raise ValueError(
                f"FrameSlider: got {len(frames)} frames and {len(labels)} "
                "labels, expected as many of each, at least one"
            )
        if not 0 <= start < len(frames):
            raise ValueError(f"FrameSlider: start, got {start}, expected 0 to {len(frames) - 1}")
        self.frames, self.labels = list(frames), [str(v) for v in labels]
        self.name, self.alt, self.start = name, alt, start
        self.width, self.pixelated = width, pixelated

    def _repr_html_(self) -> str:
        return self.data

    def __repr__(self) -> str:
        return f"FrameSlider({len(self.frames)} frames)"

    @property
    def uid(self) -> str:
        "An id that depends on the contents alone."
        digest = hashlib.sha256(b"".join(self.frames))
        digest.update("\n".join([self.name, self.alt, *self.labels]).encode())
        return "nbs-" + digest.hexdigest()[:10]

    @property
    def data(self) -> str:
        "The HTML, with everything it needs inside."
        coded = [base64.b64encode(f).decode() for f in self.frames]
        label = self.labels[self.start]
        shows = self.alt or self.name
        return FIGURE.format(
            uid=self.uid,
            width=self.width,
            shows=escape(f"{shows}: " if shows else ""),
            title=escape(self.name or self.alt or "frame"),
            first=coded[self.start],
            rendering="pixelated" if self.pixelated else "auto",
            name=escape(self.name),
            last=len(coded) - 1,
            start=self.start,
            label=escape(label),
            labels=escape(json.dumps(self.labels, ensure_ascii=False)),
            frames=" ".join(coded),
            move=MOVE,
        )


def frame_slider(
    figs: Sequence,  # matplotlib figures, PIL images or PNG bytes, one per stop
    labels: Sequence,  # text per stop
    *,
    name: str = "",  # text before the slider
    alt: str = "",  # what the pictures show
    start: int = 0,  # the frame shown first
    dpi: int = 80,  # of the figures
    colours: int | None = None,  # reduce all frames to so many colours, to save bytes
    width: int | None = None,  # widest, in CSS pixels; by default that of the frames
    pixelated: bool = False,  # repeat pixels when enlarged?
) -> FrameSlider:  # displays itself in a notebook and on a static page
    "A slider over pre-rendered frames, at most 300 kB, without kernel or network."
    frames = [_png(f, dpi) for f in figs]
    if colours is not None:
        frames = _in_colours(frames, colours)
    if width is None and frames:
        width = int.from_bytes(frames[0][16:20], "big")  # the PNG header holds it
    slider = FrameSlider(
        frames, labels, name=name, alt=alt, start=start, width=width or 0, pixelated=pixelated
    )
    size = len(slider.data.encode())
    if size > SLIDER_LIMIT:
        raise ValueError(
            f"frame_slider: got {size} bytes, expected at most "
            f"{SLIDER_LIMIT}: use fewer frames, a lower dpi, or colours=64"
        )
    return slider


def _png(fig, dpi: int) -> bytes:
    "The PNG file of a matplotlib figure, a PIL image, or bytes that are one already."
    from PIL import Image

    if isinstance(fig, (bytes, bytearray)):
        data = bytes(fig)
    elif isinstance(fig, Image.Image):
        data = _encode(fig)
    else:
        data = _file(_finished(fig), dpi=dpi)
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"frame_slider: a frame, got bytes {data[:8]!r}, expected a PNG")
    return data


def _in_colours(frames: list[bytes], colours: int) -> list[bytes]:
    "Frames with one palette for all: what stays the same keeps its colour."
    from PIL import Image

    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in frames]
    every = Image.new("RGB", (max(o.width for o in images), sum(o.height for o in images)))
    for k, image in enumerate(images):
        every.paste(image, (0, sum(o.height for o in images[:k])))
    # among many colours an octree keeps the rare ones, among few it tints the gray
    method = Image.Quantize.FASTOCTREE if colours > 128 else Image.Quantize.MEDIANCUT
    palette = every.quantize(colours, method)
    return [_encode(o.quantize(palette=palette, dither=Image.Dither.NONE)) for o in images]


def _encode(image) -> bytes:
    "A PIL image as a PNG file."
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


# ---------------------------------------------------------------- curves


def smooth(
    losses: Sequence[float],  # above 0; what is not finite is passed over
    width: int = 5,  # losses in a mean
) -> list[float]:  # as many
    "Geometric mean of each loss and those before it."
    means = []
    for k in range(1, len(losses) + 1):
        part = [v for v in losses[max(0, k - width) : k] if math.isfinite(v)]
        logs = [math.log(max(v, 1e-12)) for v in part]
        means.append(math.exp(sum(logs) / len(logs)) if logs else math.nan)
    return means


def plot_log(
    folder: str | Path,  # of a stage's run: log.jsonl, perhaps validation.jsonl
    path=None,  # also save the figure there
):  # matplotlib Figure
    "How a run goes: its loss, its loss by noise level, its last validation."
    import matplotlib.pyplot as plt

    folder = as_path(folder)
    rows, checks = (read_rows(folder / f"{name}.jsonl")[0] for name in ("log", "validation"))
    if not rows:
        raise ValueError(f"plot_log: {folder} has no rows in log.jsonl, expected at least one")
    fig, axes = plt.subplots(1, 3 if checks else 2, figsize=(WIDTH, 2.3), layout="constrained")
    _plot_loss(axes[0], rows, checks)
    _plot_levels(axes[1], rows)
    if checks:
        _plot_validation(axes[2], checks[-1])
    speed = rows[-1].get("images_per_s")
    text = f"step {rows[-1]['step']}" + (f", {speed:g} images/s" if speed else "")
    fig.suptitle(text, fontsize=8, x=0.01, ha="left")
    return _finished(fig, path)


def _label(ax, title: str, x: str):
    "Names and scale of a panel of losses."
    ax.set(xlabel=x, yscale="log")
    ax.set_title(title, fontsize=9)


def _plot_loss(ax, rows: list[dict], checks: list[dict]):
    "Training losses, thin, and their running mean; means of the validations."
    steps, losses = [r["step"] for r in rows], [r["loss"] for r in rows]
    ax.plot(steps, losses, lw=0.6, alpha=0.35, color=BLUE)
    running = smooth(losses, 10 if len(rows) > 30 else 1)
    ax.plot(steps, running, lw=1.6, color=BLUE, label="training")
    if checks:
        means = [sum(r["loss"]) / len(r["loss"]) for r in checks]
        steps = [r["step"] for r in checks]
        ax.plot(steps, means, "o-", ms=3, lw=1, color=ORANGE, label="validation")
        ax.legend(fontsize=7, frameon=False)
    _label(ax, "loss", "step")


def _plot_levels(ax, rows: list[dict]):
    "Training losses, a line for each bin of t."
    import matplotlib.pyplot as plt

    steps, n = [r["step"] for r in rows], len(rows[-1]["by_level"])
    for k in range(n):
        losses = [math.nan if (y := r["by_level"][k]) is None else y for r in rows]
        label = f"t in {k / n:g}..{(k + 1) / n:g}"
        ax.plot(steps, losses, lw=1, color=plt.cm.viridis(k / n), label=label)
    ax.legend(fontsize=6, frameon=False)
    _label(ax, "loss by noise level", "step")


def _plot_validation(ax, row: dict):
    "One validation: the loss by noise level, with other captions, and of a linear guess."
    middle = _middles(len(row["levels"]))
    looks = (("trivial", "0.6", "--"), ("shuffled", ORANGE, "-"), ("loss", BLUE, "-"))
    for name, colour, style in looks:
        ax.plot(middle, row[name], style, marker=".", color=colour, label=name)
    ax.legend(fontsize=7, frameon=False)
    _label(ax, f"validation at step {row['step']}", "t (0 data, 1 noise)")


def _middles(n: int) -> list[float]:
    "Middles of n equal bins of t."
    return [(k + 0.5) / n for k in range(n)]


def plot_reference(
    card: dict,  # run card "toy-reference"
    run: str | Path | None = None,  # directory of a run, drawn on top
    *,
    band: float,  # half the width of what is normal, in spreads: `engine.guards.BAND`
):  # matplotlib Figure
    "What is normal, a column for each stage: the band of training losses; validation by noise level at five moments."
    import matplotlib.pyplot as plt

    stages: dict = card["stages"]
    fig, axes = plt.subplots(
        2, len(stages), figsize=(WIDTH, 4.4), layout="constrained", squeeze=False
    )
    for (name, stage), (top, bottom) in zip(stages.items(), axes.T):
        rows = [] if run is None else read_rows(as_path(run) / name / "log.jsonl")[0]
        _plot_band(top, stage["loss"], band, rows)
        top.set(title=f"{name[:-2]} px")
        _plot_moments(bottom, stage)
    fig.legend(
        *bottom.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=7,
        fontsize=7,
        frameon=False,
        title="share of the steps",
        title_fontsize=7,
    )
    axes[0, 0].set_ylabel("training loss")
    axes[0, 0].legend(fontsize=7, frameon=False)
    axes[1, 0].set_ylabel("validation loss")
    return _finished(fig)


def _plot_band(ax, loss: dict, band: float, rows: list[dict]):
    "The reference runs' mean and band, and this run's losses."
    steps, mean, factor = loss["step"], loss["mean"], math.exp(band * loss["spread"])
    low, high = ([m * f for m in mean] for f in (1 / factor, factor))
    ax.fill_between(steps, low, high, color=BLUE, alpha=0.25, lw=0)
    ax.plot(steps, mean, color=BLUE, lw=1.2, label="reference")
    if rows:
        steps, losses = [r["step"] for r in rows], smooth([r["loss"] for r in rows])
        ax.plot(steps, losses, color=ORANGE, lw=1.2, label="this run")
    _scale(ax, "step")


def _plot_moments(ax, stage: dict):
    "Validation losses by noise level, a band for each moment of the run, above a linear guess."
    import matplotlib.pyplot as plt

    moments = stage["moments"]
    t = _middles(len(moments[-1]["loss"]))
    for k, moment in enumerate(moments):
        colour, (middle, low, high) = plt.cm.viridis(k / len(moments)), zip(*moment["loss"])
        ax.fill_between(t, low, high, color=colour, alpha=0.3, lw=0)
        label = f"{100 * moment['step'] / stage['steps']:.0f} %"
        ax.plot(t, middle, color=colour, lw=1.2, label=label)
    guess = [v[0] for v in moments[-1]["trivial"]]
    ax.plot(t, guess, color="black", lw=1, ls=":", label="linear guess")
    _scale(ax, "noise level $t$")


def _scale(ax, x: str):
    "A logarithmic axis with few numbers."
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.set(yscale="log", xlabel=x)
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def interval_line(
    ax,  # matplotlib axes
    x: list,  # one position per summary
    summaries: list[dict],  # mean, low, high: what `bootstrap_mean` or `jackknife` gave
    **style,  # of matplotlib's `errorbar`
):
    "A line through means, with a bar for each interval."
    mean, low, high = ([s[k] for s in summaries] for k in ("mean", "low", "high"))
    below, above = ([abs(a - b) for a, b in zip(mean, edge)] for edge in (low, high))
    ax.errorbar(x, mean, [below, above], capsize=2, lw=1.2, elinewidth=0.8, **style)


def preference_bars(
    found: dict[str, dict[str, dict]],  # question -> category -> mean, low, high: shares of A
    names: tuple[str, str] = ("A", "B"),  # of the models
):  # matplotlib Figure
    "How often people preferred either model, with 95 % intervals: a panel for each question (as in Fig. 3)."
    import matplotlib.pyplot as plt

    rows = list(dict.fromkeys(name for own in found.values() for name in own))
    rows = [*(["all"] if "all" in rows else []), *(name for name in rows if name != "all")]
    size = (WIDTH, 1.1 + 0.36 * len(rows))
    fig, axes = plt.subplots(
        1, len(found), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for ax, (question, own) in zip(axes[0], found.items()):
        for k, (name, colour) in enumerate(zip(names, (BLUE, ORANGE))):
            means, low, high = (
                [own[r][v] for r in rows if r in own] for v in ("mean", "low", "high")
            )
            if k:  # the other one's share
                means, low, high = ([1 - v for v in x] for x in (means, high, low))
            error = [[100 * (m - v) for m, v in zip(means, low)]]
            error += [[100 * (v - m) for m, v in zip(means, high)]]
            y = [i + 0.38 * k for i, r in enumerate(rows) if r in own]
            style = dict(height=0.36, color=colour, label=name, error_kw=dict(lw=0.8), capsize=2)
            ax.barh(y, [100 * m for m in means], xerr=error, **style)
        ax.axvline(50, color="0.4", lw=0.8, ls=":")
        ax.set(xlim=(0, 100), xlabel="preferred, %")
        ax.set_title(question, fontsize=9)
    axes[0, 0].set_yticks([i + 0.19 for i in range(len(rows))], rows)
    axes[0, 0].invert_yaxis()
    handles = axes[0, 0].get_legend_handles_labels()
    fig.legend(*handles, loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return _finished(fig)
