"Drawings say what live networks are, their text can be read, and nothing lies off the sheet."

import html.parser
import re

import pytest
import torch

from imagen_nb.cascade import Imagen
from imagen_nb.data import ShapesWorld
from imagen_nb.diagrams import (
    WIDTH,
    Drawing,
    count,
    draw_attention,
    draw_block,
    draw_cascade,
    draw_step,
    draw_unet,
)
from imagen_nb.efficient_unet import EfficientUNetConfig
from imagen_nb.layers import Attention, ResBlock
from imagen_nb.pictures.pixels import Batch
from imagen_nb.text import TextEmbedding
from imagen_nb.training import draw
from imagen_nb.unet import UNetConfig

LETTER = 6.4  # units: no letter of 11 units is much wider on the mean


def words(b, l, d):
    return TextEmbedding(torch.zeros(b, l, d), torch.ones(b, l, dtype=torch.bool))


def big_unet():
    with torch.device("meta"):
        network = UNetConfig().build()
        return draw_unet(network, torch.empty(1, 3, 64, 64), torch.empty(1), words(1, 8, 4096))


def efficient():
    config = EfficientUNetConfig(
        channels=(16, 32),
        blocks=(1, 2),
        strides=(2, 2),
        self_attention=(False, False),
        text_attention=(False, True),
        heads=2,
        stem=16,
        text_dim=8,
        text_width=8,
        emb_dim=8,
    )
    z_t, lowres = torch.zeros(2, 1, 3, 32, 32)
    level = torch.zeros(1)
    return draw_unet(config.build(), z_t, level, words(1, 2, 8), lowres, level)


def block(way=None, scale=1.0):
    side = 4 if way is None else 8
    return draw_block(
        ResBlock(12, 24, 16, way, scale), torch.zeros(1, 12, side, side), torch.zeros(1, 16)
    )


def attention(has_self):
    layer = Attention(32, 8, 16, has_self=has_self)
    return draw_attention(layer, torch.zeros(1, 32, 4, 4), words(1, 5, 8))


def step(k):
    imagen = Imagen.from_pretrained("toy")
    stage, n = imagen.stages[k], torch.arange(2)
    side = stage.config.side + 2 * stage.config.margin
    images = ShapesWorld("train", size=side).images(range(2), side)
    return draw_step(
        stage, Batch(images, imagen.encoder(["red", "blue"]), n), draw(0, n, stage.config)
    )


def cascade():
    return draw_cascade(Imagen.from_pretrained("toy"))


EVERY = dict(
    unet=big_unet,
    efficient=efficient,
    block=block,
    both=lambda: attention(True),
    cross=lambda: attention(False),
    base=lambda: step(0),
    enlarger=lambda: step(1),
    cascade=cascade,
)


class Reader(html.parser.HTMLParser):
    "Tags are closed in order; keeps the texts and where they stand."

    def __init__(self, page):
        super().__init__()
        self.open, self.texts, self.tags = [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            assert self.open[-1] == "text"
            self.texts.append((data, self.tags[-1][1]))


@pytest.mark.parametrize("name", EVERY)
def test_it_is_text_in_the_page_and_fits_a_phone(name):
    drawing = EVERY[name]()
    page = drawing._repr_html_()
    read = Reader(page)
    assert [t for t, _ in read.texts] == drawing.words and len(drawing.words) > 5
    svg = dict(read.tags)["svg"]
    assert svg["role"] == "img" and svg["aria-label"] == drawing.alt
    left, top, width, height = map(float, svg["viewbox"].split())
    assert (left, top, width) == (0, 0, WIDTH) and WIDTH <= 366  # of a screen of 390
    assert not re.search(r"https?:|<script|<img|#(000|fff)", page)  # alone, and in both themes
    for text, at in read.texts:
        half = LETTER * len(text) / (2 if at["text-anchor"] == "middle" else 1)
        x, y = float(at["x"]), float(at["y"])
        assert x + half <= width and 8 <= y <= height, text
        assert at["text-anchor"] == "start" or x - half >= 0, text
    for tag, at in read.tags:
        if tag == "rect":
            x, y, w, h = (float(at[k]) for k in ("x", "y", "width", "height"))
            assert 0 <= x and x + w <= width and 0 <= y and y + h <= height
        if tag == "polyline":
            points = [tuple(map(float, p.split(","))) for p in at["points"].split()]
            assert all(0 <= x <= width and 0 <= y <= height for x, y in points)


def test_the_papers_base_is_a_u_of_nine_boxes():
    d = big_unet()
    text = "\n".join(d.words)
    assert "prediction, 3×64×64" in text and "2.3 B parameters" in text
    assert [w for w in d.words if w.endswith("channels")] == [
        f"{512 * k} channels" for k in (1, 2, 3, 4, 4, 4, 3, 2, 1)
    ]
    assert d.words.count("4 skips") == 4  # 16, see the exercise of 08
    purple = d.data.count('fill="#8a5bb5"')
    assert purple == 7 and d.data.count('fill="#2a6fb0"') == 2  # both ends have no attention


def test_an_efficient_network_has_one_skip_a_level_and_no_middle():
    d = efficient()
    assert [w for w in d.words if " × " in w] == ["16 × 16", "8 × 8", "8 × 8", "16 × 16"]
    assert d.words.count("1 skip") == 2
    assert [w.split(",")[0] for w in d.words if "block" in w] == [
        "1 block",
        "2 blocks",
        "2 blocks",
        "1 block",
    ]


def test_a_block_says_its_ways():
    plain, down = block(), block("down", 0.5**0.5)
    assert "sum" in plain.words and "sum, times 0.707" in down.words
    assert "half the side" in down.words and "y, 24×4×4" in down.words
    assert "shortcut: 1×1 convolution" in plain.words
    same = draw_block(ResBlock(12, 12, 16), torch.zeros(1, 12, 4, 4), torch.zeros(1, 16))
    assert "shortcut: as it is" in same.words


def test_attention_counts_its_keys():
    both, cross = attention(True), attention(False)
    assert "each of 16 queries: one softmax over 21 keys" in both.words
    assert "each of 16 queries: one softmax over 5 keys" in cross.words
    assert "16 pixels" in both.words and "16 pixels" not in cross.words


def test_a_step_and_a_cascade_are_the_live_ones():
    assert "prediction of x0, 2 of 3×32×32" in step(0).words
    assert any("small pictures" in w for w in step(1).words)
    d = cascade()
    assert [w for w in d.words if w.endswith(" px")] == [f"{s} × {s} px" for s in (32, 128, 512)]
    assert "16 steps of dpmpp_2m, guidance 2" in d.words


def test_looking_leaves_nothing_behind():
    layer = ResBlock(12, 12, 16)
    draw_block(layer, torch.zeros(1, 12, 4, 4), torch.zeros(1, 16))
    with pytest.raises(RuntimeError):
        draw_block(layer, torch.zeros(1, 5, 4, 4), torch.zeros(1, 16))
    assert not any(m._forward_hooks for m in layer.modules())


def test_numbers_and_odd_texts():
    assert [count(torch.nn.Linear(1, n, bias=False)) for n in (371, 12_000, 4_560)] == [
        "371",
        "12 k",
        "4.6 k",
    ]
    d = Drawing("a < b & c")
    d.text(180, 20, "x < y & z")
    assert [t for t, _ in Reader(d.data).texts] == ["x < y & z"]
