"Grids are exact to the pixel, sliders stand alone and stay small."

import html.parser
import io
import json
import math
import warnings

import pytest
import torch
from PIL import Image

from imagen_nb import plots
from imagen_nb.plots import (
    FrameSlider,
    frame_slider,
    image_grid,
    interval_line,
    plot_log,
    show_images,
    show_stages,
    smooth,
)


def pixels(image):
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return data.view(image.height, image.width, 3)


def noise(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


# ---- grids


@pytest.mark.parametrize("fonts, is_box", [((), True), (("no such font", "STIXGeneral"), False)])
def test_a_letter_that_the_usual_font_lacks_comes_from_another(monkeypatch, fonts, is_box):
    monkeypatch.setattr(plots, "MANY_SCRIPTS", fonts)
    figure = show_images(noise(1, 3, 8, 8), ["\u1d81"])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        figure.savefig(io.BytesIO())
    assert any("Glyph" in str(o.message) for o in told) is is_box


def test_grid_is_exact():
    images = noise(5, 3, 4, 6)
    sheet = pixels(image_grid(images, 3, padding=1))
    assert sheet.shape == (2 * 5 + 1, 3 * 7 + 1, 3)
    expected = ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    for i in range(5):
        top, left = 1 + i // 3 * 5, 1 + i % 3 * 7
        assert torch.equal(sheet[top : top + 4, left : left + 6], expected[i])
    assert (sheet[0] == 255).all() and (sheet[6:, 15:] == 255).all()  # padding, no sixth


def test_grid_ends_of_the_scale():
    images = torch.tensor([-1.0, 1.0, -3.0, 3.0, 0.0, float("nan")]).view(6, 1, 1, 1)
    sheet = pixels(image_grid(images.expand(-1, 3, 1, 1), 6, padding=0))
    assert sheet[0, :, 0].tolist() == [0, 255, 0, 255, 128, 0]


def test_labels_stand_beside_their_rows_and_above_their_columns():
    labels = dict(rows=["first", "second"], heads=["a", "b", "c"])
    fig = show_images(noise(6, 3, 4, 4), columns=3, **labels)
    fig.canvas.draw()
    assert [t.get_text() for t in fig.texts] == ["first", "second"]  # from the top
    first, second = (t.get_window_extent() for t in fig.texts)
    axes = [ax.get_window_extent() for ax in fig.axes]
    for text, ax in ((first, axes[0]), (second, axes[3])):
        assert 0 <= text.x0 and text.x1 <= ax.x0 and ax.y0 < (text.y0 + text.y1) / 2 < ax.y1
    for ax, box in zip(fig.axes[:3], axes):
        (head,) = (t.get_window_extent() for t in ax.texts)
        assert head.y0 >= box.y1 and box.x0 < (head.x0 + head.x1) / 2 < box.x1
        assert head.y1 <= fig.bbox.y1
    with pytest.raises(ValueError, match="rows, got 1, expected 2"):
        show_images(noise(6, 3, 4, 4), columns=3, rows=["only"])


def test_grid_of_stages_side_by_side():
    base, fine = noise(2, 3, 4, 4), noise(2, 3, 16, 16)
    image = image_grid([base, fine], padding=0)
    assert image.size == (32, 32)
    sheet, exact = pixels(image), pixels(image_grid(fine, 1, padding=0))
    assert torch.equal(sheet[:, 16:], exact)
    low = pixels(image_grid(base, 1, padding=0))
    assert torch.equal(sheet[:, :16], low.repeat_interleave(4, 0).repeat_interleave(4, 1))
    assert image_grid([base[0], fine[0]], padding=0).size == (32, 16)


@pytest.mark.parametrize(
    "images, what",
    [
        (noise(2, 4, 8, 8), "expected \\(3 h w\\)"),
        (noise(3, 8), "expected \\(3 h w\\)"),
        (noise(0, 3, 8, 8), "no images"),
        ([], "no images"),
        ([noise(3, 8, 8), noise(3, 12, 12)], "whole multiples"),
        ([noise(2, 3, 8, 8), noise(3, 3, 8, 8)], "as many in each"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "expected floats"),
    ],
)
def test_grid_errors(images, what):
    with pytest.raises(ValueError, match=f"image_grid.*{what}"):
        image_grid(images)


# ---- figures


def rendered(fig):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(fig).draw()
    return torch.frombuffer(bytearray(fig.canvas.buffer_rgba()), dtype=torch.uint8)


def test_show_images_wraps_captions_and_saves(tmp_path):
    import matplotlib.pyplot as plt

    captions = ["a small red circle left of a large blue square on a gray background"] * 9
    fig = show_images(noise(9, 3, 8, 8), captions, path=tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert fig.get_size_inches()[0] <= 7
    texts = [t for ax in fig.axes for t in ax.texts]
    assert len(texts) == 9 and all("\n" in t.get_text() for t in texts)
    assert plt.get_fignums() == []  # nothing left open
    fig.canvas.draw()
    page = fig.bbox
    for text in texts:  # no caption leaves the figure or reaches into the next one
        box = text.get_window_extent()
        assert box.x0 >= page.x0 - 1 and box.x1 <= page.x1 + 1 and box.y0 >= page.y0 - 1
    first, second = (t.get_window_extent() for t in texts[:2])
    assert first.x1 <= second.x0 + 1


def test_show_images_keeps_line_breaks():
    fig = show_images(noise(2, 3, 8, 8), ["a red circle\n32 px", ""])
    assert fig.axes[0].texts[0].get_text() == "a red circle\n32 px"


def test_show_images_scale_is_fixed():
    dim = torch.full((1, 3, 4, 4), -0.5)
    assert not torch.equal(rendered(show_images(dim)), rendered(show_images(dim + 0.4)))
    one = show_images(dim[:, :1])
    assert one.axes[0].images[0].get_clim() == (-1, 1)
    assert rendered(one).view(-1, 4)[:, 0].min() == 64  # -0.5 of [-1, 1], not black


def test_show_images_errors():
    with pytest.raises(ValueError, match="captions, got 1, expected 2"):
        show_images(noise(2, 3, 4, 4), ["one"])


# ---- slider


def figures(n, dpi=80):
    import matplotlib.pyplot as plt

    for i in range(n):
        fig, ax = plt.subplots(figsize=(3, 2))
        ax.plot([0, i])
        yield fig


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_slider_is_self_contained_and_repeatable():
    import matplotlib.pyplot as plt

    labels = ["t = 0", 't = "1" & <2>', "t = 3"]
    a = frame_slider(list(figures(3)), labels, name="time", alt="a line")
    b = frame_slider(list(figures(3)), labels, name="time", alt="a line")
    assert plt.get_fignums() == []
    text = a._repr_html_()
    assert text == b._repr_html_() and "http" not in text and "<script" not in text
    tags = dict(Page(text).tags)
    assert tags["figure"]["id"] == a.uid
    assert json.loads(tags["input"]["data-labels"]) == labels
    frames = tags["input"]["data-frames"].split(" ")
    assert len(frames) == 3 and len(set(frames)) == 3
    assert tags["img"]["src"] == "data:image/png;base64," + frames[0]
    assert tags["img"]["alt"] == "a line: t = 0" and tags["img"]["data-shows"] == "a line: "
    assert (
        tags["input"]["aria-label"] == "time"
        and "i.alt=i.dataset.shows+v" in tags["input"]["oninput"]
    )
    assert tags["input"]["max"] == "2"
    assert "max-width:240px" in tags["img"]["style"] and "240px" in tags["figure"]["style"]
    assert repr(a) == "FrameSlider(3 frames)"


def test_slider_takes_png_bytes_and_pil_images():
    grid = image_grid(noise(4, 3, 8, 8))
    from_images = frame_slider([grid, grid], ["a", "b"], start=1, pixelated=True)
    from_bytes = frame_slider(from_images.frames, ["a", "b"], start=1, pixelated=True)
    assert from_images._repr_html_() == from_bytes._repr_html_()
    tags = dict(Page(from_bytes.data).tags)
    assert tags["img"]["alt"] == "b" and tags["input"]["aria-label"] == "frame"


def test_what_stays_the_same_keeps_its_colours_from_frame_to_frame():
    same = image_grid(noise(1, 3, 32, 16))
    frames = [image_grid(noise(1, 3, 32, 32).roll(1 + k, -1)) for k in range(3)]
    for frame in frames:
        frame.paste(same, (0, 0))
    slider = frame_slider(frames, range(3), colours=8)
    kept = [
        Image.open(io.BytesIO(o)).convert("RGB").crop((0, 0, *same.size)) for o in slider.frames
    ]
    assert kept[0].tobytes() == kept[1].tobytes() == kept[2].tobytes()


def test_slider_size_is_checked_and_colours_help():
    grids = [image_grid(noise(16, 3, 32, 32).roll(i)) for i in range(8)]
    with pytest.raises(ValueError, match="expected at most 300000"):
        frame_slider(grids, range(8))
    assert len(frame_slider(grids, range(8), colours=16).data) < 300_000


def test_a_frame_of_many_colours_keeps_rare_ones():
    gray, rare = (
        image_grid(0.3 * noise(1, 3, 64, 64)),
        ((40, 200, 210), (40, 210, 120), (255, 128, 0)),
    )
    for k, colour in enumerate(rare):
        gray.paste(colour, (10 * k, 20, 10 * k + 2, 22))
    frame = frame_slider([gray], ["a"], colours=256).frames[0]
    kept = Image.open(io.BytesIO(frame)).convert("RGB")
    for k, colour in enumerate(rare):
        assert max(abs(a - b) for a, b in zip(kept.getpixel((10 * k, 20)), colour)) < 12


def test_slider_errors():
    with pytest.raises(ValueError, match="2 frames and 1 labels"):
        FrameSlider([b"", b""], ["a"])
    with pytest.raises(ValueError, match="0 frames"):
        frame_slider([], [])
    with pytest.raises(ValueError, match="start, got 5"):
        FrameSlider([b""], ["a"], start=5)
    with pytest.raises(ValueError, match="expected a PNG"):
        frame_slider([b"GIF89a"], ["a"])


# ---- curves


def test_smoothing_is_a_geometric_mean_that_passes_over_what_is_not_finite():
    assert smooth([1.0, 1.0]) == [1.0, 1.0] and smooth([4.0, 1.0]) == pytest.approx([4.0, 2.0])
    assert smooth([1.0] * 9 + [32.0])[-1] == pytest.approx(2.0)
    assert smooth([1.0, float("nan"), 4.0], 2) == pytest.approx([1.0, 1.0, 4.0])
    assert smooth([1.0, float("inf"), 4.0], 3) == pytest.approx([1.0, 1.0, 2.0])
    assert math.isnan(smooth([float("nan"), 1.0])[0])


def test_a_log_that_was_cut_is_drawn(tmp_path):
    rows = [dict(step=i, loss=1 / (i + 1), by_level=[0.1, None]) for i in range(50)]
    text = "".join(json.dumps(r) + "\n" for r in rows)
    (tmp_path / "log.jsonl").write_text(text + '{"step": 50, "lo')  # killed while writing
    thin, thick = plot_log(tmp_path, tmp_path / "a.png").axes[0].lines
    assert list(thin.get_xdata()) == list(range(50)) and thin.get_ydata()[1] == 0.5
    assert thick.get_ydata()[0] == 1 and 0.02 < thick.get_ydata()[-1] < 1
    assert (tmp_path / "a.png").exists()
    with pytest.raises(ValueError, match="has no rows"):
        plot_log(tmp_path / "none")


def test_stages_are_shown_side_by_side(tmp_path):
    base, fine = noise(3, 3, 8, 8), noise(3, 3, 16, 16)
    fig = show_stages(["a", "b", "c"], [base, fine], tmp_path / "a.png")
    words = [ax.texts[0].get_text() for ax in fig.axes]
    assert words == ["a\n8 px", "16 px", "b\n8 px", "16 px", "c\n8 px", "16 px"]
    assert (tmp_path / "a.png").exists()
    assert show_stages([""], [noise(1, 3, 8, 16)]).axes[0].texts[0].get_text() == "\n8 x 16 px"


def test_intervals_are_bars():
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots()
    interval_line(ax, [1, 2], [dict(mean=1, low=0, high=3), dict(mean=2, low=1, high=2)])
    line, _, (bars,) = ax.containers[0].lines
    assert list(line.get_ydata()) == [1, 2]
    assert [list(segment[:, 1]) for segment in bars.get_segments()] == [[0, 3], [1, 2]]
    plt.close(fig)
