"""Distances between crowds, CLIP score, intervals, tallies, and drawing that is not repeated."""

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image
from test_cascade import BASE_STAGE, SR_STAGE, awake

from imagen_nb.cascade import Imagen
from imagen_nb.data import ShapesWorld
from imagen_nb.evaluation import (
    bootstrap_mean,
    chance,
    clip_score,
    draw_and_score,
    draw_levels,
    frechet_distance,
    jackknife,
    keep_best,
    kernel_distance,
    precision_recall,
    report,
    score_pictures,
    tally,
    wilson,
)
from imagen_nb.lab.judge import Judge
from imagen_nb.pictures.captioned import load_captioned
from imagen_nb.store.files import assets
from imagen_nb.text import TextEmbedding

WORLD = ShapesWorld("test", level="quick")


def random_normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- distances


def test_frechet_distance_of_a_shift_and_of_a_scale():
    a, shift = random_normal(400, 5), torch.tensor([1.0, 0, -2, 0, 0.5]).double()
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + shift) == pytest.approx(shift.square().sum().item())
    wide = a.mean(0) + 3 * (a - a.mean(0))  # covariance times 9: (3 - 1)^2 times its trace
    assert frechet_distance(a, wide) == pytest.approx(4 * torch.cov(a.T).trace().item())


def test_frechet_distance_against_the_eigenvalues_of_a_product():
    a, b = (
        random_normal(300, 6) @ random_normal(6, 6, seed=1),
        random_normal(200, 6, seed=2) @ random_normal(6, 6, seed=3),
    )
    p, q = torch.cov(a.T), torch.cov(b.T)
    shared = torch.linalg.eigvals(p @ q).sqrt().real.sum()  # tr (pq)^1/2, another way
    expected = (a.mean(0) - b.mean(0)).square().sum() + p.trace() + q.trace() - 2 * shared
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(expected.item(), rel=1e-8)


@pytest.mark.parametrize("a, b", [((3, 4), (3, 5)), ((1, 4), (3, 4)), ((4,), (4,))])
def test_what_are_not_two_sets_is_refused(a, b):
    for measure in (frechet_distance, kernel_distance, precision_recall):
        with pytest.raises(ValueError, match=f"{measure.__name__}: features"):
            measure(torch.zeros(a), torch.zeros(b))


def test_frechet_distance_of_spheres_in_closed_form():
    "Many samples of N(m, s^2 I) and N(0, I): |m|^2 + d (s - 1)^2, within sampling error."
    a, b = random_normal(200_000, 4), random_normal(200_000, 4, seed=1) * 3 + 1
    assert frechet_distance(a, b) == pytest.approx(4 + 4 * (3 - 1) ** 2, rel=0.02)


def test_frechet_distance_is_biased_and_kernel_distance_is_not():
    "Two samples of one distribution, many times."
    pairs = [(random_normal(40, 6, seed=k), random_normal(40, 6, seed=1000 + k)) for k in range(60)]
    frechet = torch.tensor([frechet_distance(*p) for p in pairs])
    kernel = torch.tensor([kernel_distance(*p) for p in pairs])
    assert frechet.min() > 0 and frechet.mean() > 2 * 6 / 40  # what the means alone add
    assert kernel.mean().abs() < 3 * kernel.std() / 60**0.5 and kernel.min() < 0


def test_kernel_distance_by_loops():
    a, b = random_normal(5, 3), random_normal(4, 3, seed=1)

    def k(x, y):
        return (sum(p * q for p, q in zip(x.tolist(), y.tolist())) / 3 + 1) ** 3

    def within(s):
        pairs = [(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]
        return sum(k(*p) for p in pairs) / len(pairs)

    across = sum(k(x, y) for x in a for y in b) / 20
    assert kernel_distance(a, b) == pytest.approx(within(a) + within(b) - 2 * across)


def test_precision_and_recall_by_loops():
    real, drawn = random_normal(30, 2), random_normal(25, 2, seed=1) * 1.5 + 0.5

    def inside(points, centers):
        hits = 0
        for x in points:
            radii = [sorted((c - o).norm().item() for o in centers)[3] for c in centers]
            hits += any((x - c).norm().item() <= r for c, r in zip(centers, radii))
        return hits / len(points)

    found = precision_recall(real, drawn)
    assert found == (inside(drawn, real), inside(real, drawn)) and 0 < min(found) < 1


def test_precision_and_recall_tell_two_faults_apart():
    real = random_normal(400, 2)
    few = real[real[:, 0] > 1] + 0.01  # good pictures of one kind
    far = torch.cat([random_normal(400, 2, seed=1), random_normal(400, 2, seed=2) + 20])
    precision, recall = precision_recall(real, few)
    assert precision > 0.9 and recall < 0.5
    precision, recall = precision_recall(real, far)
    assert precision < 0.6 and recall > 0.8
    with pytest.raises(ValueError, match="precision_recall: k"):
        precision_recall(real[:3], real[:3])


def test_large_crowds_are_measured_in_parts():
    "More than one part of 1024 rows."
    a, b = random_normal(1500, 3), random_normal(1100, 3, seed=1) + 0.2
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(0))
    assert kernel_distance(a[order], b) == pytest.approx(kernel_distance(a, b), rel=1e-9)
    assert precision_recall(a[order], b) == precision_recall(a, b)


# ---------------------------------------------------------------- against torchmetrics


class Looked(torch.nn.Module):
    "Features that were computed before: the pictures are their rows."

    num_features = 160

    def forward(self, x):
        return x.flatten(1)


@pytest.fixture(scope="module")
def crowds():
    "Features of the judge for true shapes and for shapes of another level, (n 160)."
    judge, worlds = Judge.shipped(), (WORLD, ShapesWorld("test", level="full"))
    with torch.no_grad():
        return [judge.image_features(w.images(range(300), 32)) for w in worlds]


def torchmetrics():
    "The extra `eval`."
    return pytest.importorskip("torchmetrics", exc_type=ImportError)


def test_fid_is_torchmetrics(crowds):
    torchmetrics()
    from torchmetrics.image.fid import FrechetInceptionDistance

    theirs = FrechetInceptionDistance(feature=Looked())
    theirs.set_dtype(torch.float64)
    for x, is_real in zip(crowds, (True, False)):
        theirs.update(x.double()[:, :, None, None], real=is_real)
    assert frechet_distance(*crowds) == pytest.approx(theirs.compute().item(), rel=1e-4)


@pytest.mark.filterwarnings("ignore:Metric `Kernel")
def test_kid_is_torchmetrics(crowds):
    torchmetrics()
    from torchmetrics.image.kid import KernelInceptionDistance

    theirs = KernelInceptionDistance(feature=Looked(), subsets=1, subset_size=300)
    for x, is_real in zip(crowds, (True, False)):
        theirs.update(x.double()[:, :, None, None], real=is_real)
    assert kernel_distance(*crowds) == pytest.approx(theirs.compute()[0].item(), rel=1e-4)


def test_clip_score_is_torchmetrics():
    "Its update step, given our judge as model and processor."
    torchmetrics()
    from types import SimpleNamespace

    from torchmetrics.functional.multimodal.clip_score import clip_score as theirs

    judge, emoji = Judge.shipped(), load_captioned(assets() / "emoji-set", 32)
    images, captions = emoji.images(range(0, 48, 8)), [emoji.caption(i) for i in range(0, 48, 8)]

    class Model:
        config = SimpleNamespace()
        get_image_features = staticmethod(judge.image_vectors)

        def get_text_features(self, numbers, mask):
            return judge.text_vectors([captions[i] for i in numbers.tolist()])

        def to(self, device):
            return self

    def processor(images=None, text=None, **_):
        if images is not None:
            return dict(pixel_values=torch.stack(images))
        numbers = torch.tensor([captions.index(t) for t in text])
        return dict(input_ids=numbers, attention_mask=torch.ones(len(text), 4))

    with torch.no_grad():
        ours = clip_score(judge.image_vectors(images), judge.text_vectors(captions)).mean()
        found = theirs(images, captions, lambda: (Model(), processor))
    assert found.item() == pytest.approx(ours.item(), rel=1e-4) and ours > 20


def test_clip_score_by_hand():
    a, b = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[4.0, 3.0], [-2.0, 0.0]])
    torch.testing.assert_close(clip_score(a, b), torch.tensor([96.0, -100.0]))


# ---------------------------------------------------------------- intervals


def test_bootstrap_covers():
    "The interval of a mean of 60 values contains the truth about 95 times in 100."
    hits = 0
    for k in range(300):
        found = bootstrap_mean(random_normal(60, seed=k).exp(), resamples=500)
        hits += found["low"] <= torch.tensor(0.5).exp().item() <= found["high"]
    assert 0.86 < hits / 300 < 0.98  # skewed values: slightly below the promise


def test_bootstrap_is_keyed_and_refuses():
    values = random_normal(20)
    assert bootstrap_mean(values) == bootstrap_mean(values)
    for bad in (torch.zeros(1), torch.zeros(2, 2), torch.tensor([1.0, float("nan")])):
        with pytest.raises(ValueError, match="bootstrap_mean: values"):
            bootstrap_mean(bad)


def test_jackknife_of_a_mean_is_the_textbook_interval():
    values = random_normal(50)
    found, half = (
        jackknife(lambda kept: values[kept].mean().item(), 50),
        1.96 * values.std().item() / 50**0.5,
    )
    assert found["high"] - found["mean"] == pytest.approx(half) and found["mean"] - found[
        "low"
    ] == pytest.approx(half)
    with pytest.raises(ValueError, match="jackknife: n"):
        jackknife(lambda kept: 0.0, 1)


# ---------------------------------------------------------------- the best of several


def test_the_best_of_each_caption_is_kept():
    candidates = torch.arange(6.0)[:, None, None, None].expand(6, 3, 2, 2).reshape(3, 2, 3, 2, 2)
    scores = torch.tensor([[0.1, 0.9], [0.5, 0.2], [0.3, 0.4]])
    assert keep_best(candidates, scores)[:, 0, 0, 0].tolist() == [2.0, 1.0]
    with pytest.raises(ValueError, match="keep_best: candidates and scores"):
        keep_best(candidates, scores.T)


def test_each_level_enlarges_the_same_small_picture():
    imagen = Imagen(Encoder(), [awake(BASE_STAGE), awake(SR_STAGE)])
    captions, seeds, levels = ["a", "bb"], [4, 7], [0.0, 0.3]
    found = draw_levels(imagen, captions, seeds, levels, steps=2)
    lowres = imagen.sample(captions, seeds=seeds, stages=1)
    assert torch.equal(found, draw_levels(imagen, captions, seeds, levels, lowres, steps=2))
    for k, level in enumerate(levels):
        alone = imagen.sample(captions, seeds=seeds, lowres=lowres, aug_t=level, steps=2)
        assert torch.equal(found[k], alone)
    assert not torch.equal(found[0], found[1])


# ---------------------------------------------------------------- the paper's tables


def test_the_papers_tables_are_its_own():
    paper = json.loads((assets() / "paper.json").read_text(encoding="utf-8"))
    fid = {(r["model"], r["zero_shot"]): r["fid"] for r in paper["coco_fid"]["rows"]}
    assert len(fid) == 12 and min(fid.values()) == fid["Imagen", True] == 7.27
    assert (fid["DALL-E 2", True], fid["GLIDE", True], fid["Make-A-Scene", False]) == (
        10.39,
        12.24,
        7.55,
    )
    prompts = paper["drawbench"]["prompts"]
    assert len(prompts) == 11 and sum(prompts.values()) == 200
    people = {r["pictures"]: r for r in paper["coco_people"]["rows"]}
    assert people["Imagen"]["photorealism"] == 39.5 and people["original"]["alignment"] == 91.9
    assert "other models, other data" in paper["what"]


# ---------------------------------------------------------------- shares, and drawing


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
