"Drawn scenes, their captions, the reader, the resize, the order, and pictures from files."

import hashlib
import inspect
import io
import json
import math
import os
import re
import subprocess
import sys
import tarfile
import warnings
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from imagen_nb.data import ShapesWorld, coverage, render, shape_distance, wordings
from imagen_nb.lab import oracle
from imagen_nb.pictures import decode, scenes
from imagen_nb.pictures.captioned import CaptionedImages, load_captioned
from imagen_nb.pictures.pixels import (
    MARGIN,
    Batch,
    Crop,
    Pictures,
    crop_images,
    resize,
    tent_weights,
    to_square,
)
from imagen_nb.pictures.scenes import HELD_OUT_PAIRS, HELD_OUT_RELATIONS, INVERSE, Scene, Thing
from imagen_nb.store.keyed import permute

LEVELS = ("quick", "full")


# ---------------------------------------------------------------- scenes and splits


def combinations(scene):
    "What a scene combines, said here a second time, apart from the library."
    pairs = {(o.colour, o.shape) for o in scene.things}
    triples = set()
    if scene.relation:
        a, b = scene.things[0].shape, scene.things[1].shape
        triples = {(a, scene.relation, b), (b, INVERSE[scene.relation], a)}
    return pairs, triples


@pytest.mark.parametrize("level", LEVELS)
def test_training_never_shows_a_held_out_combination(level):
    for split in ("train", "valid"):
        ds = ShapesWorld(split, level=level)
        for i in range(2000 if split == "train" else 300):
            pairs, triples = combinations(ds.scene(i))
            assert not pairs & HELD_OUT_PAIRS[level]
            assert not triples & HELD_OUT_RELATIONS[level]


@pytest.mark.parametrize("level", LEVELS)
def test_half_of_test_is_held_out(level):
    ds = ShapesWorld("test", level=level)
    for i in range(200):
        pairs, triples = combinations(ds.scene(i))
        held = bool(pairs & HELD_OUT_PAIRS[level] or triples & HELD_OUT_RELATIONS[level])
        assert held == ds.is_held_out(ds.scene(i)) == (i % 2 == 1)


def test_held_out_combinations_leave_every_part_in_training():
    "Each colour, shape and relation on its own is common in training."
    for level in LEVELS:
        ds, seen = ShapesWorld(level=level), Counter()
        for i in range(1500):
            scene = ds.scene(i)
            seen.update(v for o in scene.things for v in (o.colour, o.shape, o.size, o.fill))
            seen.update([scene.relation, scene.background, len(scene.things)])
        colours, shapes = scenes.VOCABULARY[level]
        assert all(seen[v] > 50 for v in (*colours, *shapes, *INVERSE, "white", "gray", "black"))
        counts = (1, 2) if level == "quick" else (1, 2, 3, 4)
        assert all(seen[n] > 50 for n in counts)
        if level == "full":
            assert all(seen[v] > 150 for v in ("small", "big", "plain", "gradient", "striped"))


def test_collections_offer_what_training_asks_for():
    "The contract's parameters, in its order; an option is more, a parameter without a default is not."
    for name in ("__len__", "captions", "caption", "images"):
        asked = list(inspect.signature(getattr(Pictures, name)).parameters)
        for made in (ShapesWorld, CaptionedImages):
            assert list(inspect.signature(getattr(made, name)).parameters) == asked
    assert all(isinstance(o.identity, property) for o in (Pictures, ShapesWorld, CaptionedImages))


def test_scenes_are_the_same_in_every_process():
    code = (
        "from imagen_nb.data import ShapesWorld\n"
        "for level in ('quick', 'full'):\n"
        "    for split in ('train', 'valid', 'test'):\n"
        "        ds = ShapesWorld(split, 3, level=level, length=10**9)\n"
        "        for i in (0, 1, 77, 10**9 - 1): print(ds.scene(i), ds.caption(i))\n"
    )
    out = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": h},
        ).stdout
        for h in ("1", "2")
    ]
    assert out[0] == out[1] and len(out[0].splitlines()) == 24
    assert len(set(out[0].splitlines())) == 24


def test_scenes_do_not_change_between_versions():
    "Trained weights and their scores speak of these scenes; a new digest is a new dataset."
    text = "".join(
        f"{ds.scene(i)}{ds.caption(i)}"
        for level in LEVELS
        for ds in (ShapesWorld("test", level=level),)
        for i in range(20)
    )
    text = re.sub(r"\d+\.\d+", lambda m: f"{float(m[0]):.9f}", text)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == DIGEST


DIGEST = "2f055f7c7b33b567"


def test_splits_and_seeds_differ():
    for level in LEVELS:
        worlds = [
            ShapesWorld(split, seed, level=level)
            for split in ("train", "valid", "test")
            for seed in (0, 1)
        ]
        scenes = [w.scene(i) for w in worlds for i in range(100)]
        assert len(set(scenes)) == len(scenes)


def test_everything_stays_inside_the_frame():
    n, side = 400, 256
    for level in LEVELS:
        scenes = [ShapesWorld(level=level).scene(i) for i in range(n)]
        for top, left, h, w in (
            (0, 0, 1, side),
            (255, 0, 1, side),
            (0, 0, side, 1),
            (0, 255, side, 1),
        ):
            edge = render(scenes, side, Crop(torch.full((n,), top), torch.full((n,), left), h, w))
            assert (edge == edge[..., :1, :1]).all()


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="split"):
        ShapesWorld("training")
    with pytest.raises(ValueError, match="level"):
        ShapesWorld(level="hard")
    with pytest.raises(IndexError):
        ShapesWorld("valid")[1000]
    with pytest.raises(IndexError):
        ShapesWorld("valid").scene(-1)
    assert len(ShapesWorld()) == 100_000 and len(ShapesWorld("test")) == 1000
    assert sum(1 for _ in ShapesWorld("valid", size=8, length=5)) == 5


# ---------------------------------------------------------------- captions

SIZE = {"small": "small", "little": "small", "big": "big", "large": "big"}
FILL = {"striped": "striped", "shaded": "gradient"}
COUNT = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4}
SAYING = {
    "to the left of": "left",
    "left of": "left",
    "to the right of": "right",
    "right of": "right",
    "above": "above",
    "over": "above",
    "below": "below",
    "under": "below",
}


def parse_name(words):
    "'a little striped star that is red' -> count and (shape, colour, size, fill)."
    words, shape, colour, size, fill = words.split(), None, None, None, "plain"
    for word in words[1:]:
        single = re.sub(r"(?<=cross)es$|(?<!s)s$", "", word)
        if single in scenes.SHAPES:
            shape = single
        elif word in scenes.COLOURS:
            colour = word
        elif word in SIZE:
            size = SIZE[word]
        elif word in FILL:
            fill = FILL[word]
        else:
            assert word in ("that", "is", "are"), word
    return [(shape, colour, size, fill)] * COUNT[words[0]]


def parse(caption):
    "Caption -> things, relation, background: a tiny grammar of its own."
    subject, _, background = re.fullmatch(
        r"(.*) (on a|with a|against) (white|gray|black)(?: background)?", caption
    ).groups()
    for saying in sorted(SAYING, key=len, reverse=True):
        if f" {saying} " in subject:
            a, b = subject.split(f" {saying} ")
            return parse_name(a) + parse_name(b), SAYING[saying], background
    return sum((parse_name(p) for p in re.split(", | and ", subject)), []), None, background


@pytest.mark.parametrize("level", LEVELS)
def test_every_wording_means_its_scene(level):
    ds, sizes = ShapesWorld("test", level=level), Counter()
    for i in range(300):
        scene = ds.scene(i)
        texts = wordings(scene)
        sizes[len(texts)] += 1
        assert len(set(texts)) == len(texts) and ds.caption(i) in texts and len(texts) > 2
        wanted = [(o.shape, o.colour, o.size, o.fill) for o in scene.things]
        for text in texts:
            assert text == text.lower() and not re.search(r"\d", text)
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text
            things, relation, background = parse(text)
            assert background == scene.background
            if scene.relation and things != wanted:
                things, relation = things[::-1], INVERSE[relation]
                assert things == wanted
            assert sorted(things) == sorted(wanted) and relation == scene.relation
    assert min(sizes) >= 6 and max(sizes) <= (10 if level == "quick" else 12)


def test_caption_choice_uses_every_wording():
    ds = ShapesWorld()
    place = Counter(wordings(ds.scene(i)).index(ds.caption(i)) for i in range(800))
    assert min(place[k] for k in range(6)) > 60


# ---------------------------------------------------------------- drawing


def test_crops_equal_windows_of_the_whole():
    for level in LEVELS:
        ds = ShapesWorld(level=level)
        for size in (32, 96):
            g = torch.Generator().manual_seed(size)
            top, left = torch.randint(-MARGIN, size - 8, (2, 12), generator=g)
            crop = Crop(top, left, 20, 17)
            whole = crop_images(ds.images(range(12), size), crop)
            torch.testing.assert_close(ds.images(range(12), size, crop), whole, rtol=0, atol=1e-6)


def test_a_picture_does_not_depend_on_its_batch():
    ds = ShapesWorld(level="full")
    batch = ds.images(range(16), 48)
    alone = torch.cat([ds.images([i], 48) for i in range(16)])
    torch.testing.assert_close(batch, alone, rtol=0, atol=1e-6)
    assert batch.dtype == torch.float32 and batch.min() >= -1 and batch.max() <= 1
    assert render([], 16).shape == (0, 3, 16, 16)


def test_coverage_is_the_area_under_a_tent():
    edge = torch.linspace(-1.2, 1.2, 25, dtype=torch.float64)
    at = (torch.arange(-20000, 20000, dtype=torch.float64) + 0.5) / 10000
    tent = (1 - at.abs()).clamp(min=0) / 10000
    brute = ((at + edge[:, None] < 0) * tent).sum(1)
    torch.testing.assert_close(coverage(edge), brute, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_distances_have_unit_slope_and_the_right_sign(shape):
    at = torch.linspace(-1.5, 1.5, 301, dtype=torch.float64)
    x, y = (v.clone().requires_grad_() for v in torch.meshgrid(at + 1e-4, at + 2e-4, indexing="xy"))
    d = shape_distance(shape, x, y)
    gx, gy = torch.autograd.grad(d.sum(), (x, y))
    slope = (gx**2 + gy**2).sqrt()[d.abs() < 0.1]
    assert (slope - 1).abs().median() < 1e-6 and slope.max() < 1.001
    assert d.detach()[0, 0] > 0 and d.detach().min() < -0.15


def corners(shape):
    "Outline of a shape as corner points, y downward, written out a second time."

    def turn(r, degrees):
        return (r * math.sin(math.radians(degrees)), -r * math.cos(math.radians(degrees)))

    a = 0.36
    return {
        "square": [(0.84, 0.84), (-0.84, 0.84), (-0.84, -0.84), (0.84, -0.84)],
        "triangle": [turn(1.2, 0), turn(1.2, 120), turn(1.2, 240)],  # tip up
        "star": [turn(1.15 if k % 2 == 0 else 0.52, 36 * k) for k in range(10)],
        "cross": [
            (a, 1),
            (a, a),
            (1, a),
            (1, -a),
            (a, -a),
            (a, -1),
            (-a, -1),
            (-a, -a),
            (-1, -a),
            (-1, a),
            (-a, a),
            (-a, 1),
        ],
    }[shape]


@pytest.mark.parametrize("shape", ["square", "triangle", "star", "cross"])
def test_inside_of_a_shape_is_the_inside_of_its_corners(shape):
    points = (
        torch.rand(2000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
        - 1.5
    )
    x, y = points.T
    inside, ring = torch.zeros(2000, dtype=torch.bool), corners(shape)
    for (ax, ay), (bx, by) in zip(ring, ring[1:] + ring[:1]):  # count edges to the right
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x < ax + (y - ay) * (bx - ax) / (by - ay))
    assert torch.equal(shape_distance(shape, x, y) < 0, inside)


def test_drawn_small_is_drawn_large_and_reduced():
    for level in LEVELS:
        scenes = [ShapesWorld(level=level).scene(i) for i in range(32)]
        gap = (render(scenes, 32) - resize(render(scenes, 128), 32)).abs()
        assert gap.mean() < 0.004


def test_stripes_are_crisp_only_when_large_and_keep_their_hue():
    scene = Scene((Thing("square", "blue", "big", "striped", 0.5, 0.5, 0.18),), "white")
    inside = {
        s: render([scene], s)[0][:, 2 * s // 5 : 3 * s // 5, 2 * s // 5 : 3 * s // 5]
        for s in (32, 128, 512)
    }
    spread = {s: x[0].std().item() for s, x in inside.items()}
    assert spread[32] < 0.02 < 0.1 < spread[128] < 0.75 * spread[512]
    hue = {s: F.normalize(oracle.chroma(x).mean((1, 2)), dim=0) for s, x in inside.items()}
    torch.testing.assert_close(hue[32], hue[512], atol=0.01, rtol=0)


# ---------------------------------------------------------------- reading back


@pytest.mark.parametrize(
    "level,size,n",
    [
        ("quick", 32, 80),
        ("full", 32, 80),
        ("quick", 128, 20),
        ("full", 64, 30),
        ("full", 128, 20),
        ("full", 512, 12),
    ],
)
def test_pictures_read_back_to_their_scene(level, size, n):
    ds = ShapesWorld("test", level=level)
    marks = [oracle.score(ds.scene(i), ds.images([i], size)[0]) for i in range(n)]
    assert [k for k, m in enumerate(marks) if not m["all"]] == []


def test_blur_and_noise_are_forgiven():
    ds, g = ShapesWorld("test"), torch.Generator().manual_seed(0)
    x = ds.images(range(60), 32)
    x = 0.6 * x + 0.1 * (x.roll(1, 2) + x.roll(-1, 2) + x.roll(1, 3) + x.roll(-1, 3))
    x = x + 0.05 * torch.randn(x.shape, generator=g)
    assert sum(oracle.score(ds.scene(i), x[i])["all"] for i in range(60)) >= 58


def test_score_finds_each_fault():
    a = Thing("circle", "red", "big", "plain", 0.265, 0.5, 0.17)
    b = Thing("square", "blue", "big", "plain", 0.735, 0.5, 0.17)
    scene = Scene((a, b), "gray", "left")

    def new(thing, **k):
        return Thing(**(vars(thing) | k))

    faults = {
        "count": Scene((a,), "gray"),
        "colour": Scene((a, new(b, colour="green")), "gray"),
        "shape": Scene((new(a, shape="square"), new(b, shape="circle")), "gray"),
        "relation": Scene((new(a, x=0.735), new(b, x=0.265)), "gray"),
        "size": Scene((a, new(b, r=0.11)), "gray"),
        "fill": Scene((a, new(b, fill="striped")), "gray"),
        "background": Scene((a, b), "white"),
    }
    assert all(v for v in oracle.score(scene, render([scene], 128)[0]).values())
    for name, wrong in faults.items():
        marks = oracle.score(scene, render([wrong], 128)[0])
        assert marks[name] is False and marks["all"] is False, name
        bad = {k for k, v in marks.items() if v is False} - {"all"}
        assert bad == {name} or name in ("count", "colour"), (name, bad)
    small = oracle.score(scene, render([scene], 32)[0])
    assert small["fill"] is None and small["all"]
    quick = oracle.score(
        Scene((Thing("circle", "red", None, "plain", 0.5, 0.5, 0.25),), "gray"),
        torch.zeros(3, 32, 32),
    )
    assert quick["size"] is quick["fill"] is quick["relation"] is None and not quick["count"]


def test_reading_never_fails():
    g = torch.Generator().manual_seed(0)
    for level in LEVELS:
        ds = ShapesWorld(level=level)
        for x in (
            torch.randn(3, 32, 32, generator=g),
            torch.ones(3, 64, 64),
            -torch.ones(3, 128, 128),
            torch.randn(3, 128, 128, generator=g).clamp(-1, 1),
            torch.tensor([1.0, -1, -1])[:, None, None].expand(3, 64, 64),
        ):
            assert not oracle.score(ds.scene(0), x)["all"]


def test_shuffled_pictures_score_near_chance():
    ds = ShapesWorld("test")
    x = ds.images(range(61), 32)
    assert sum(oracle.score(ds.scene(i), x[i + 1])["all"] for i in range(60)) <= 3


# ---------------------------------------------------------------- resize and crops


@pytest.mark.parametrize(
    "old,new", [((64, 64), (16, 16)), ((16, 16), (64, 64)), ((12, 20), (24, 10))]
)
def test_resize_agrees_with_weights_written_out(old, new):
    x = torch.randn(2, 3, *old, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows, cols = (tent_weights(a, b) for a, b in zip(old, new))
    torch.testing.assert_close(resize(x, new), rows @ x @ cols.T, atol=1e-6, rtol=0)


def test_resize_keeps_range_constants_and_identity():
    x = torch.rand(2, 3, 37, 50, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert resize(x, (37, 50)) is x
    for size in (8, 64, (37, 10), (74, 100), 13):
        y = resize(x, size)
        assert y.min() >= -1 and y.max() <= 1 and y.is_contiguous()
        assert tuple(y.shape[2:]) == ((size, size) if isinstance(size, int) else size)
        torch.testing.assert_close(resize(torch.full_like(x, 0.3), size), torch.full_like(y, 0.3))
    assert abs(tent_weights(37, 8).sum(1) - 1).max() < 1e-12
    with pytest.raises(ValueError, match="resize"):
        resize(x[0], 8)
    with pytest.raises(ValueError, match="resize"):
        resize(x, 0)


def test_crop_then_resize_equals_resize_then_crop():
    ds, size, side = ShapesWorld(level="full"), 128, 64
    tops = torch.tensor([0, 64, 0, 64, 32, 4])  # four corners of the frame among them
    lefts = torch.tensor([0, 0, 64, 64, 32, 60])
    crop = Crop(tops - MARGIN, lefts - MARGIN, side + 2 * MARGIN, side + 2 * MARGIN)
    small, m = resize(ds.images(range(6), size, crop), (side + 2 * MARGIN) // 4), MARGIN // 4
    whole = resize(ds.images(range(6), size), size // 4)
    wanted = crop_images(whole, Crop(tops // 4, lefts // 4, side // 4, side // 4))
    torch.testing.assert_close(small[..., m:-m, m:-m], wanted, atol=1e-6, rtol=0)


def test_crop_images_repeats_the_edge():
    x = torch.arange(12.0).view(1, 1, 3, 4).expand(2, 3, 3, 4)
    y = crop_images(x, Crop(torch.tensor([-2, 1]), torch.tensor([-1, 3]), 4, 3))
    assert y[0, 0].tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, 1], [4, 4, 5]]
    assert y[1, 2].tolist() == [[7, 7, 7], [11, 11, 11], [11, 11, 11], [11, 11, 11]]


def test_batch_is_a_tuple():
    batch = Batch(torch.zeros(1, 3, 4, 4), None, torch.zeros(1, dtype=torch.int64))
    assert batch.captions is None and len(batch) == 4


# ---------------------------------------------------------------- order


@pytest.mark.parametrize("length", [1, 2, 3, 5, 64, 1000, 1025])
def test_permute_visits_all_once_each_epoch(length):
    for epoch in (0, 1):
        drawn = [permute(epoch * length + i, length, 7) for i in range(length)]
        assert sorted(drawn) == list(range(length))


def test_permute_mixes_epochs_and_seeds():
    orders = {
        tuple(permute(e * 500 + i, 500, s) for i in range(500)) for e in range(3) for s in range(3)
    }
    assert len(orders) == 9
    order = torch.tensor([permute(i, 5000, 0) for i in range(5000)]).float()
    line = torch.arange(5000.0)
    assert abs(torch.corrcoef(torch.stack([order, line]))[0, 1]) < 0.05
    assert abs(torch.corrcoef(torch.stack([order[1:], order[:-1]]))[0, 1]) < 0.05
    assert 0 <= permute(10**12 + 5, 10**9, 0) < 10**9
    with pytest.raises(ValueError, match="permute"):
        permute(-1, 5, 0)
    with pytest.raises(ValueError, match="permute"):
        permute(0, 0, 0)


# ---------------------------------------------------------------- pictures from files


def picture(mode="RGB", size=(40, 30), colour=(200, 30, 90)):
    return Image.new("RGB", size, colour).convert(mode)


def encoded(image, kind="PNG", **k):
    out = io.BytesIO()
    image.save(out, kind, **k)
    return out.getvalue()


COLOURS = {"a.png": (255, 0, 0), "b.png": (0, 255, 0), "c.png": (0, 0, 255)}


@pytest.fixture
def folder(tmp_path):
    for name, colour in COLOURS.items():
        (tmp_path / name).write_bytes(encoded(picture(colour=colour)))
    return tmp_path


@pytest.fixture
def cache(tmp_path_factory, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    datasets.disable_progress_bars()


def check(ds, captions, size=8):
    "The three one-coloured pictures, in order, through the interface every dataset has."
    assert len(ds) == 3 and [ds.caption(i) for i in range(3)] == captions and ds.size == size
    image, caption = ds[1]
    assert caption == captions[1] and image.shape == (3, size, size)
    batch = ds.images(torch.tensor([0, 2]), 16)
    assert batch.dtype == torch.float32 and batch.shape == (2, 3, 16, 16)
    assert batch[0, :, 3, 3].tolist() == [1, -1, -1] and batch[1, :, 3, 3].tolist() == [-1, -1, 1]
    crop = Crop(torch.tensor([-2, 4]), torch.tensor([0, 9]), 5, 6)
    assert torch.equal(ds.images([0, 2], 16, crop), crop_images(batch, crop))
    with pytest.raises(IndexError):
        ds[3]


def test_folder_with_text_files(folder):
    for name in ("a", "c"):
        (folder / f"{name}.txt").write_text(f"picture {name}\n")
    (folder / "readme.md").write_text("not a picture")
    check(load_captioned(folder, 8), ["picture a", "", "picture c"])


def test_folder_with_tables(folder):
    rows = [dict(file_name=n, caption=f"it is {n[0]}", other="x") for n in COLOURS]
    (folder / "metadata.csv").write_text(
        "file_name,prompt\n" + "".join(f'{n},"so, {n[0]}"\n' for n in COLOURS)
    )
    check(load_captioned(str(folder), 8), ["so, a", "so, b", "so, c"])
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    check(load_captioned(folder, 8), ["it is a", "it is b", "it is c"])
    check(load_captioned(folder, 8, caption_column="other"), ["x"] * 3)
    with pytest.raises(ValueError, match="caption_column.*'title'.*other"):
        load_captioned(folder, 8, caption_column="title")


def test_folder_with_splits(folder):
    (folder / "valid").mkdir()
    for name in COLOURS:
        (folder / name).rename(folder / "valid" / name)
    check(load_captioned(folder, 8, "valid"), [""] * 3)
    with pytest.raises(ValueError, match="split.*'test'"):
        load_captioned(folder, 8, "test")


def test_tar_shards(folder):
    for k, names in enumerate((["a.png", "b.png"], ["c.png"])):
        with tarfile.open(folder / f"shard-{k}.tar", "w") as tar:
            for name in names:
                text = f"told of {name[0]}".encode()
                for path, blob in (
                    (f"x.y/{name}", encoded(picture(colour=COLOURS[name]))),
                    (f"x.y/{name[0]}.txt", text),
                    (f"x.y/{name[0]}.json", b"{}"),
                ):
                    info = tarfile.TarInfo(path)
                    info.size = len(blob)
                    tar.addfile(info, io.BytesIO(blob))
    captions = ["told of a", "told of b", "told of c"]
    assert len(load_captioned(folder, 8)) == 6  # loose pictures and shards
    for name in COLOURS:
        (folder / name).unlink()
    check(load_captioned(folder, 8), captions)
    check(load_captioned([folder / "shard-0.tar", folder / "shard-1.tar"], 8), captions)
    (folder / "cut.tar").write_bytes((folder / "shard-0.tar").read_bytes()[:400])
    with pytest.raises(ValueError, match="cut.tar.*damaged"):
        load_captioned(folder / "cut.tar", 8)


def test_datasets_and_parquet(folder, cache):
    import datasets

    columns = dict(
        image=[str(folder / n) for n in COLOURS], text=["one", "two", "three"], n=[1, 2, 3]
    )
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    check(load_captioned(table, 8), columns["text"])
    with pytest.raises(ValueError, match="caption_column.*text"):
        load_captioned(table, 8, caption_column="n")
    with pytest.raises(ValueError, match="image_column.*nope.*'image', 'text', 'n'"):
        load_captioned(table, 8, image_column="nope")
    table.save_to_disk(str(folder / "saved"))
    check(load_captioned(folder / "saved", 8), columns["text"])
    datasets.DatasetDict(test=table).save_to_disk(str(folder / "splits"))
    check(load_captioned(folder / "splits", 8, "test"), columns["text"])
    with pytest.raises(ValueError, match="split.*'train'.*test"):
        load_captioned(folder / "splits", 8)
    raw = dict(
        jpg=[(folder / n).read_bytes() for n in COLOURS], what=[["one", "1"], ["two"], ["three"]]
    )
    path = folder / "raw.parquet"
    datasets.Dataset.from_dict(raw).to_parquet(str(path))
    check(load_captioned(path, 8), columns["text"])
    (folder / "more").mkdir()
    table.to_parquet(str(folder / "more" / "part-0.parquet"))
    check(load_captioned(folder / "more", 8), columns["text"])


def test_bad_pictures_are_counted_and_left_out(folder, monkeypatch):
    noise = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(0))
    jpeg = encoded(Image.fromarray(noise.byte().numpy()), "JPEG")
    (folder / "d.jpg").write_bytes(b"")
    (folder / "e.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "f.png").write_text("hello")
    (folder / "g.png").write_bytes(encoded(picture(size=(300, 300))))
    monkeypatch.setattr(decode, "MAX_PIXELS", 80_000)
    with pytest.warns(UserWarning, match="left out 4 of 7") as seen:
        ds = load_captioned(folder, 8, max_skipped=1)
    assert len(seen) == 1
    check(ds, [""] * 3)
    assert ds.skipped == {
        "empty file": 1,
        "truncated or damaged": 1,
        "not JPEG, PNG, WebP, BMP, GIF or TIFF": 1,
        "more than 80,000 pixels": 1,
    }
    rows = [dict(file_name=n, text="t") for n in (*COLOURS, "gone.png")]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    with pytest.warns(UserWarning, match="1 No such file"):
        check(load_captioned(folder, 8), ["t"] * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_captioned(folder, 8, check=False)) == 4


def test_sources_that_do_not_exist(tmp_path):
    with pytest.raises(ValueError, match="no readable picture"):
        load_captioned(tmp_path, 8)
    with pytest.raises(ValueError, match="does not exist"):
        load_captioned(tmp_path / "gone", 8)
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=".zip"):
        load_captioned(tmp_path / "x.zip", 8)


def rgb(blob):
    return decode.decode_picture(blob).getpixel((2, 1))


def test_every_mode_becomes_rgb():
    assert rgb(encoded(picture("L", colour=(80, 80, 80)))) == (80, 80, 80)
    assert rgb(encoded(picture("P", colour=(255, 0, 0)))) == (255, 0, 0)
    assert rgb(encoded(picture("1", colour=(255, 255, 255)))) == (255, 255, 255)
    assert rgb(encoded(Image.new("RGBA", (16, 16), (10, 20, 30, 0)))) == (255, 255, 255)
    assert rgb(encoded(Image.new("LA", (16, 16), (0, 128)))) == (127, 127, 127)
    assert rgb(encoded(Image.new("I;16", (16, 16), 128 * 257))) == (128, 128, 128)
    seen = Image.new("P", (16, 16), 0)
    seen.putpalette([9, 9, 9])
    assert rgb(encoded(seen, transparency=0)) == (255, 255, 255)
    cmyk = rgb(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert cmyk[0] > 240 and max(cmyk[1:]) < 15


def test_pictures_are_turned_upright_and_cut_to_a_centred_square():
    image = Image.new("RGB", (60, 20), "black")
    image.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter right to see it upright
    turned = decode.decode_picture(encoded(image, "JPEG", exif=exif, quality=95))
    assert turned.size == (20, 60) and turned.getpixel((10, 5))[0] > 240
    assert to_square(picture(size=(60, 20)), 10).shape == (3, 10, 10)
    left = Image.new("RGB", (60, 20), "black")
    left.paste("white", (20, 0, 40, 20))
    assert to_square(left, 10).min() == 1
