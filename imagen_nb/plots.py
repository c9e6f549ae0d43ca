"""Pictures of pictures: grids, loss curves, and a slider that needs no kernel.

Images are tensors (b 3 h w) in [-1, 1], as everywhere. matplotlib and PIL are imported
only when a figure is made.
"""

import base64
import hashlib
import io
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import torch
from torch import Tensor

__all__ = [
    "BLUE",
    "ORANGE",
    "save_picture",
    "image_grid",
    "show_images",
    "FrameSlider",
    "frame_slider",
    "plot_losses",
    "plot_log",
    "plot_reference",
]

BLUE, ORANGE = "#2a6fb0", "#e07b28"  # the two accents: data, noise
WIDTH = 7.0  # inches, the widest figure
SLIDER_LIMIT = 300_000  # bytes of HTML


# ---------------------------------------------------------------- grids


def _pictures(images, caller: str) -> tuple[list[Tensor], int]:
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
    image: Tensor,  # (3 h w) in [-1, 1]; what lies outside is cut off
    path: str | Path,  # PNG file
):
    "One picture as a file."
    from PIL import Image

    Image.fromarray(_bytes(image).numpy()).save(path)


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
    sheet = torch.full(shape, level, dtype=torch.uint8)
    for i, tile in enumerate(tiles):
        top = padding + i // columns * (h + padding)
        left = padding + i % columns * (w + padding)
        sheet[top : top + h, left : left + w] = tile
    return Image.fromarray(sheet.numpy())


def show_images(
    images,  # (b 3 h w), a list of (3 h w), or of batches
    captions: Sequence[str] | None = None,  # one under each image, wrapped
    columns: int | None = None,  # how many in a row; by default up to 8
    path=None,  # also save the figure there
    *,
    width: float | None = None,  # inches of one image
    title: str | None = None,  # over the figure
    dpi: int = 100,  # dots per inch
):  # matplotlib Figure
    "Show images on the fixed scale [-1, 1], with captions under them."
    import matplotlib.pyplot as plt

    pictures, row = _pictures(images, "show_images")
    if captions is not None and len(captions) != len(pictures):
        raise ValueError(f"show_images: captions, got {len(captions)}, expected {len(pictures)}")
    columns = min(columns or row or 8, len(pictures))
    width = width or min(WIDTH / columns, 1.6)
    lines = max(int(width * 72 / 7 / 0.56), 6)  # letters of 7 point in a line
    texts = [
        "\n".join("\n".join(textwrap.wrap(line, lines)) for line in str(c).split("\n"))
        for c in captions or []
    ]
    rows = math.ceil(len(pictures) / columns)
    below = max((t.count("\n") + 1 for t in texts), default=0) * 7 * 1.25 / 72 + 0.04
    tall = max(p.shape[1] / p.shape[2] for p in pictures) * width
    above = 0.3 if title else 0
    size = (columns * width, rows * (tall + below) + above)
    fig = plt.figure(figsize=size, dpi=dpi)
    for i, picture in enumerate(pictures):
        left, top = i % columns * width, i // columns * (tall + below) + above
        box = (left + 0.02, size[1] - top - tall, width - 0.04, tall - 0.02)
        ax = fig.add_axes([box[0] / size[0], box[1] / size[1], box[2] / size[0], box[3] / size[1]])
        _draw(ax, picture)
        if texts:
            ax.text(
                0.5,
                -0.03,
                texts[i],
                transform=ax.transAxes,
                fontsize=7,
                ha="center",
                va="top",
                linespacing=1.15,
            )
    if title:
        fig.suptitle(title, fontsize=9, y=1 - 0.06 / size[1], va="top")
    plt.close(fig)  # a notebook would otherwise show it twice
    if path is not None:
        fig.savefig(path, dpi=dpi, metadata={"Software": None})
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
    "var f=this.closest('figure'),k=+this.value,v=JSON.parse(this.dataset.labels)[k];"
    "f.querySelector('img').src='data:image/png;base64,'"
    "+this.dataset.frames.split(' ')[k];"
    "f.querySelector('output').textContent=v;this.setAttribute('aria-valuetext',v)"
)

FIGURE = """\
<figure class="nbslider" id="{uid}" data-lm-suppress-shortcuts="true" \
style="margin:0;max-width:{width}px">
<img alt="{alt}" src="data:image/png;base64,{first}" \
style="width:100%;image-rendering:{rendering}">
<figcaption><label style="display:flex;gap:.6em;align-items:center">{name}
<input type="range" min="0" max="{last}" step="1" value="{start}" style="flex:1" \
aria-valuetext="{label}" data-labels="{labels}" data-frames="{frames}" \
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
        alt = ": ".join(t for t in (self.alt or self.name, label) if t)
        return FIGURE.format(
            uid=self.uid,
            width=self.width,
            alt=escape(alt),
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
    colours: int | None = None,  # reduce each frame to so many colours, to save bytes
    width: int | None = None,  # widest, in CSS pixels; by default that of the frames
    pixelated: bool = False,  # repeat pixels when enlarged?
) -> FrameSlider:  # displays itself in a notebook and on a static page
    "A slider over pre-rendered frames, at most 300 kB, without kernel or network."
    frames = [_png(f, dpi, colours) for f in figs]
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


def _png(fig, dpi: int, colours) -> bytes:
    "The PNG file of a matplotlib figure, a PIL image, or bytes that are one already."
    from PIL import Image

    if isinstance(fig, (bytes, bytearray)):
        data = bytes(fig)
    elif isinstance(fig, Image.Image):
        data = _encode(fig)
    else:
        buffer = io.BytesIO()
        fig.savefig(buffer, dpi=dpi, format="png", metadata={"Software": None})
        _close(fig)
        data = buffer.getvalue()
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"frame_slider: a frame, got bytes {data[:8]!r}, expected a PNG")
    if colours is not None:
        data = _encode(Image.open(io.BytesIO(data)).convert("RGB").quantize(colours))
    return data


def _encode(image) -> bytes:
    "A PIL image as a PNG file."
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _close(fig):
    "Let pyplot forget a figure."
    import matplotlib.pyplot as plt

    plt.close(fig)


# ---------------------------------------------------------------- curves


def plot_losses(
    records,  # list of dicts, a path to JSON lines, or {name: either}
    key: str = "loss",  # what to draw
    *,
    x: str = "step",  # against what
    by: str = "stage",  # a line for each value of this key, if present
    smooth: float = 0.9,  # weight of the past in the thick line; 0 draws only data
    log: bool = True,  # logarithmic y axis?
    path=None,  # also save the figure there
):  # matplotlib Figure
    "Loss curves: the data thin, their running mean thick."
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
    lines = _curves(records, key, x, by)
    if not lines:
        plt.close(fig)
        raise ValueError(
            f"plot_losses: got no records with {x!r} and {key!r}, expected at least one"
        )
    colours = [BLUE, ORANGE] if len(lines) < 3 else None
    for i, (name, points) in enumerate(lines.items()):
        colour = colours[i] if colours else plt.cm.viridis(i / len(lines))
        xs, ys = zip(*points)
        ax.plot(
            xs,
            ys,
            lw=0.6,
            alpha=0.35 if smooth else 1,
            color=colour,
            label=None if smooth else name,
        )
        if smooth:
            ax.plot(xs, _running_mean(ys, smooth), lw=1.6, color=colour, label=name)
    if log:
        ax.set_yscale("log")
    ax.set(xlabel=x, ylabel=key)
    if len(lines) > 1:
        ax.legend(fontsize=8, frameon=False)
    plt.close(fig)
    if path is not None:
        fig.savefig(path, dpi=100, metadata={"Software": None})
    return fig


def plot_log(
    folder,  # of a stage's run: log.jsonl, perhaps validation.jsonl
    path=None,  # also save the figure there
):  # matplotlib Figure
    "How a run goes: its loss, its loss by noise level, its last validation."
    import matplotlib.pyplot as plt

    folder = Path(folder)
    rows, checks = (
        _read_lines(f) if (f := folder / f"{name}.jsonl").exists() else []
        for name in ("log", "validation")
    )
    if not rows:
        raise ValueError(f"plot_log: {folder} has no rows in log.jsonl, expected at least one")
    fig, axes = plt.subplots(1, 3 if checks else 2, figsize=(WIDTH, 2.3), layout="constrained")
    steps, losses = [r["step"] for r in rows], [r["loss"] for r in rows]
    axes[0].plot(steps, losses, lw=0.6, alpha=0.35, color=BLUE)
    smooth = _running_mean(losses, 0.9 if len(rows) > 30 else 0.0)
    axes[0].plot(steps, smooth, lw=1.6, color=BLUE, label="training")
    if checks:
        means = [sum(r["loss"]) / len(r["loss"]) for r in checks]
        axes[0].plot(
            [r["step"] for r in checks], means, "o-", ms=3, lw=1, color=ORANGE, label="validation"
        )
        axes[0].legend(fontsize=7, frameon=False)
    levels = len(rows[-1]["by_level"])
    for k in range(levels):
        ys = [math.nan if (y := r["by_level"][k]) is None else y for r in rows]
        label = f"t in {k / levels:g}..{(k + 1) / levels:g}"
        axes[1].plot(steps, ys, lw=1, color=plt.cm.viridis(k / levels), label=label)
    axes[1].legend(fontsize=6, frameon=False)
    left = f"step {steps[-1]}" + (
        f", {s:g} images/s" if (s := rows[-1].get("images_per_s")) else ""
    )
    for ax, title in zip(axes, ("loss", "loss by noise level")):
        ax.set(xlabel="step", yscale="log")
        ax.set_title(title, fontsize=9)
    if checks:
        last = checks[-1]
        middle = [(k + 0.5) / len(last["levels"]) for k in range(len(last["levels"]))]
        for name, colour, style in (
            ("trivial", "0.6", "--"),
            ("shuffled", ORANGE, "-"),
            ("loss", BLUE, "-"),
        ):
            axes[2].plot(middle, last[name], style, marker=".", color=colour, label=name)
        axes[2].set(xlabel="t (0 data, 1 noise)", yscale="log")
        axes[2].set_title(f"validation at step {last['step']}", fontsize=9)
        axes[2].legend(fontsize=7, frameon=False)
    fig.suptitle(left, fontsize=8, x=0.01, ha="left")
    plt.close(fig)
    if path is not None:
        fig.savefig(path, dpi=100, metadata={"Software": None})
    return fig


def plot_reference(
    card: dict,  # run card "toy-reference"
    run=None,  # directory of a run, drawn on top
):  # matplotlib Figure
    "What is normal, a column for each stage: the band of training losses; validation by noise level at five moments."
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    fig, axes = plt.subplots(
        2, len(card["stages"]), figsize=(WIDTH, 4.4), layout="constrained", squeeze=False
    )
    for (name, stage), (top, bottom) in zip(card["stages"].items(), axes.T):
        band = stage["loss"]
        steps, mean, factor = band["step"], band["mean"], math.exp(BAND * band["spread"])
        top.fill_between(
            steps,
            [m / factor for m in mean],
            [m * factor for m in mean],
            color=BLUE,
            alpha=0.25,
            lw=0,
        )
        top.plot(steps, mean, color=BLUE, lw=1.2, label="reference")
        path = None if run is None else Path(run) / name / "log.jsonl"
        if path is not None and path.exists():
            rows = _read_lines(path)
            top.plot(
                [r["step"] for r in rows],
                smooth([r["loss"] for r in rows]),
                color=ORANGE,
                lw=1.2,
                label="this run",
            )
        top.set(yscale="log", title=f"{name[:-2]} px", xlabel="step")
        for k, moment in enumerate(stage["moments"]):
            colour, n = plt.cm.viridis(k / len(stage["moments"])), len(moment["loss"])
            t, (middle, low, high) = [(j + 0.5) / n for j in range(n)], zip(*moment["loss"])
            bottom.fill_between(t, low, high, color=colour, alpha=0.3, lw=0)
            bottom.plot(
                t,
                middle,
                color=colour,
                lw=1.2,
                label=f"{100 * moment['step'] / stage['steps']:.0f} %",
            )
        bottom.plot(
            t,
            [v[0] for v in stage["moments"][-1]["trivial"]],
            color="black",
            lw=1,
            ls=":",
            label="linear guess",
        )
        bottom.set(yscale="log", xlabel="noise level $t$")
        for ax in (top, bottom):
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter(NullFormatter())
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
    plt.close(fig)
    return fig


def _curves(records, key: str, x: str, by: str) -> dict:
    "Name -> [(x, y), ...] of every line to draw."
    if isinstance(records, Mapping):
        lines = {}
        for name, part in records.items():
            for inner, points in _curves(part, key, x, by).items():
                lines[f"{name} {inner}" if inner else str(name)] = points
        return lines
    if isinstance(records, (str, Path)):
        records = _read_lines(Path(records))
    lines = {}
    for r in records:
        if r.get(x) is not None and r.get(key) is not None:
            lines.setdefault(str(r.get(by, "")), []).append((r[x], float(r[key])))
    return lines


def _read_lines(path: Path) -> list[dict]:
    "The records in a file of JSON lines; a last line cut by a kill is left out."
    lines = path.read_text(encoding="utf-8").split("\n")
    records = []
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except ValueError as e:
            if i == len(lines) - 1:  # no newline after it: the writer died there
                break
            raise ValueError(f"plot_losses: {path}, line {i + 1}, got {e}, expected JSON") from e
    return records


def _running_mean(ys: Sequence[float], weight: float) -> list[float]:
    "Exponential mean without a bias to the start; what is not finite is passed over."
    total = norm = 0.0
    means = []
    for y in ys:
        if math.isfinite(y):
            total, norm = weight * total + y, weight * norm + 1
        means.append(total / norm if norm else math.nan)
    return means


def smooth(losses: list[float], width: int = 5) -> list[float]:
    "Geometric mean of each loss and those before it."
    logs = [math.log(max(v, 1e-12)) for v in losses]
    return [
        math.exp(sum(part) / len(part))
        for k in range(len(logs))
        for part in [logs[max(0, k + 1 - width) : k + 1]]
    ]


BAND = 5.0  # 95 % of further runs, from the spread s of three: 4.30 (t, 2 degrees of freedom) * sqrt(1 + 1/3) * s; +-11 to 14 %
