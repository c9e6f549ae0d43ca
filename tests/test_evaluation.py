"""Intervals, tallies, and drawing that is not repeated."""

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image
from test_cascade import BASE_STAGE, SR_STAGE, awake

from imagen_nb.cascade import Imagen
from imagen_nb.data import ShapesWorld
from imagen_nb.evaluation import chance, draw_and_score, report, score_pictures, tally, wilson
from imagen_nb.text import TextEmbedding

WORLD = ShapesWorld("test", level="quick")


def test_wilson_solves_its_equation_and_covers():
    for hits, n in ((0, 5), (3, 10), (190, 200), (7, 7)):
        low, high = wilson(hits, n)
        assert 0 <= low <= hits / n <= high <= 1
        for p in (low, high):
            if 0 < p < 1:
                assert abs((hits / n - p) ** 2 - 1.96**2 * p * (1 - p) / n) < 1e-9
    rng, covered = random.Random(0), 0
    for _ in range(1000):
        low, high = wilson(sum(rng.random() < 0.9 for _ in range(60)), 60)
        covered += low <= 0.9 <= high
    assert 920 <= covered <= 985
    with pytest.raises(ValueError, match="wilson"):
        wilson(1, 0)


def test_tally_leaves_out_what_does_not_apply():
    t = tally([dict(a=True, b=None), dict(a=False, b=True), dict(a=True, b=None)])
    assert (
        t["a"]["share"] == 2 / 3 and t["a"]["n"] == 3 and t["b"]["n"] == 1 and t["b"]["share"] == 1
    )


def test_true_pictures_score_and_swapped_ones_do_not():
    indices = list(range(30))
    images = WORLD.images(indices, 64)
    assert tally(score_pictures(WORLD, indices, images))["all"]["share"] == 1
    assert tally(score_pictures(WORLD, indices, images, shift=1))["all"]["share"] < 0.15
    assert tally(chance(WORLD, indices))["all"]["share"] < 0.15
    assert "| all | 100.0 |" in report(*[score_pictures(WORLD, indices, images)] * 3)
    with pytest.raises(ValueError, match="images"):
        score_pictures(WORLD, [1], images)


class Encoder:
    identity = None

    def __call__(self, captions):
        return TextEmbedding(
            torch.tensor([[[float(len(c))] * 12] for c in captions]),
            torch.ones(len(captions), 1, dtype=torch.bool),
        )


def test_drawing_goes_on_where_it_stopped(tmp_path):
    imagen = Imagen(Encoder(), [awake(BASE_STAGE), awake(SR_STAGE)])
    first = draw_and_score(imagen, WORLD, [0, 1, 2], tmp_path, batch_size=2, progress=False)
    (tmp_path / "00001.json").unlink()
    before = (tmp_path / "00002_64.png").stat().st_mtime_ns
    again = draw_and_score(imagen, WORLD, [0, 1, 2, 3], tmp_path, batch_size=2, progress=False)
    assert again[:3] == first and (tmp_path / "00002_64.png").stat().st_mtime_ns == before
    assert (
        again[1]["held_out"]
        and not again[0]["held_out"]
        and set(again[3]["scores"]) == {"16", "64"}
    )
    assert json.loads((tmp_path / "00003.json").read_text())["caption"] == WORLD.caption(3)


def test_a_scored_picture_depends_on_its_scene_alone(tmp_path):
    "Not on its place in a batch, nor on what was drawn before."
    imagen = Imagen(Encoder(), [awake(BASE_STAGE)])
    asked = []
    sample = imagen.sample

    def watched(captions, **options):
        asked.append(options["seeds"])
        return sample(captions, **options)

    imagen.sample = watched
    draw_and_score(imagen, WORLD, [4, 11, 7], tmp_path / "a", batch_size=2, progress=False)
    draw_and_score(imagen, WORLD, [7, 11], tmp_path / "b", batch_size=1, progress=False)
    assert asked == [[4, 11], [7], [7], [11]]
    for index in (7, 11):
        both = [
            np.asarray(Image.open(tmp_path / folder / f"{index:05d}_16.png")).astype(int)
            for folder in "ab"
        ]
        assert abs(both[0] - both[1]).max() <= 1 and both[0].std() > 1
