"Experiments: the watched sampler is the real one, measures are checked, runs resume, pages say what their cards show."

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_cascade import BASE_STAGE, SR_STAGE, awake, text

from imagen_nb.data import ShapesWorld, render, wordings
from imagen_nb.lab import oracle
from imagen_nb.lab.measures import (
    drawing_error,
    other_drawing,
    right_share,
    sample_watched,
    saturated_share,
    thumbnails,
)
from imagen_nb.pictures.pixels import resize
from imagen_nb.store.files import assets

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools" / "measure"))
import run_experiments

WORLD = ShapesWorld("valid", level="full")
OPTIONS = dict(steps=3, w=4.0, threshold="dynamic", sampler="dpmpp_2m")


def random_normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- sampling


@pytest.mark.parametrize(
    "change",
    [
        dict(),
        dict(threshold=None),
        dict(threshold="static"),
        dict(sampler="ddpm"),
        dict(sampler="ddim"),
        dict(w=1.0),
    ],
)
def test_the_watched_sampler_draws_what_the_stage_draws(change):
    stage, options = awake(BASE_STAGE), OPTIONS | change
    images, outside, scale = sample_watched(stage, text(2), [3, 4], **options)
    assert torch.equal(images.clamp(-1, 1), stage.sample(text(2), seeds=[3, 4], **options))
    assert outside.shape == scale.shape == (2, 3)


def test_the_first_look_is_watched_before_its_threshold():
    stage = awake(replace(BASE_STAGE, target="x0"))
    raw, outside, scale = sample_watched(
        stage, text(2), [3, 4], **OPTIONS | dict(steps=1, threshold=None, w=9.0)
    )
    for rule in ("static", "dynamic"):
        again = sample_watched(
            stage, text(2), [3, 4], **OPTIONS | dict(steps=1, threshold=rule, w=9.0)
        )
        assert torch.equal(outside, again[1]) and torch.equal(scale, again[2])
    for k in range(2):
        values = raw[k].abs().flatten().sort().values
        assert outside[k, 0] == pytest.approx((values > 1).sum().item() / len(values))
        assert scale[k, 0].item() == pytest.approx(values.double().quantile(0.995).item(), rel=1e-5)


def test_only_the_base_is_watched():
    with pytest.raises(ValueError, match="sample: lowres, got None"):
        sample_watched(awake(SR_STAGE), text(1), [0], **OPTIONS)


# ---------------------------------------------------------------- measures


def test_right_share_counts_what_applies():
    assert right_share(dict(count=True, colour=False, relation=None, all=False)) == 0.5
    with pytest.raises(ValueError, match="right_share: row"):
        right_share({"all": True})


@pytest.mark.parametrize("size, most", [(32, 0.03), (128, 0.005)])
def test_true_drawings_have_almost_no_drawing_error(size, most):
    errors = [drawing_error(WORLD, image) for image in WORLD.images(range(30), size)]
    assert max(errors) < most, errors


def test_damage_raises_the_drawing_error():
    image = WORLD.images([1], 32)[0]
    clean = drawing_error(WORLD, image)
    damaged = dict(
        shrunk=0.8 * image,
        noise=(image + 0.1 * random_normal(3, 32, 32).float()).clamp(-1, 1),
        blurred=resize(resize(image[None], 12), 32)[0],
    )
    for name, other in damaged.items():
        assert drawing_error(WORLD, other) > clean + 0.02, name


def test_what_the_oracle_cannot_name_counts_in_full():
    image = torch.ones(3, 32, 32)
    image[1:, 10:26, 14:18] = -1  # a red bar is no shape of this world
    assert [thing.shape for thing in oracle.read(image, WORLD.level).things] == ["unknown"]
    assert drawing_error(WORLD, image) == pytest.approx(
        (4 * 2 * 16 * 4 / (3 * 32 * 32)) ** 0.5, rel=1e-4
    )


def test_saturated_share():
    assert saturated_share(torch.tensor([[[[1.0, -1.0, 0.98, 0.0]]]])).tolist() == [0.5]


def test_another_drawing_shows_the_same_caption_elsewhere():
    for i in range(60):
        scene = WORLD.scene(i)
        one, two = other_drawing(scene, f"{i} a"), other_drawing(scene, f"{i} b")
        assert (
            wordings(one) == wordings(scene)
            and one != two
            and one == other_drawing(scene, f"{i} a")
        )
        assert oracle.compare(scene, oracle.read(render([one], 128)[0], WORLD.level), fill=True)[
            "all"
        ]


def test_other_drawings_follow_the_law_of_the_world():
    "Places and radii of one thing: the same mean and spread as those of fresh scenes."
    fresh = [
        s for s in map(ShapesWorld("train", level="full").scene, range(3000)) if len(s.things) == 1
    ]
    other = [other_drawing(s, str(k)) for k, s in enumerate(fresh)]

    def table(scenes):
        return torch.tensor(
            [[s.things[0].x, s.things[0].y, s.things[0].r] for s in scenes]
        ).double()

    a, b = table(fresh), table(other)
    error = (a.var(0) + b.var(0)).div(len(fresh)).sqrt()
    assert ((a.mean(0) - b.mean(0)).abs() < 4 * error).all() and (
        (a.std(0) / b.std(0) - 1).abs() < 0.1
    ).all()


def test_thumbnails_are_means_of_the_picture():
    x = torch.full((1, 3, 32, 32), 0.25)
    assert thumbnails(x).shape == (1, 48) and torch.allclose(thumbnails(x), torch.tensor(0.25))


# ---------------------------------------------------------------- the runner


def test_a_run_stops_goes_on_and_repeats_itself(tmp_path, monkeypatch):
    small = dict(
        captions=16,
        seeds=1,
        w=2.0,
        threshold="dynamic",
        sampler=["ddim", "dpmpp_2m"],
        steps=[1, 2],
        grid=dict(captions=1, steps=[2]),
    )
    (tmp_path / "data" / "runs").mkdir(parents=True)
    monkeypatch.setattr(run_experiments, "CONFIGS", dict(sampler_steps=small))
    monkeypatch.setattr(run_experiments, "RUNS", tmp_path / "data" / "runs")
    command = ["run", "sampler_steps", "--folder", str(tmp_path / "parts")]
    monkeypatch.setattr(sys, "argv", [*command, "--seconds", "0"])
    with pytest.raises(SystemExit) as stopped:
        run_experiments.main()
    path = tmp_path / "data" / "runs" / "experiment-sampler_steps.json"
    assert stopped.value.code == 3 and not path.exists()
    monkeypatch.setattr(sys, "argv", command)
    run_experiments.main()
    first, grid = (
        path.read_bytes(),
        path.with_name("experiment-sampler_steps-grid.jpg").read_bytes(),
    )
    monkeypatch.setattr(run_experiments, "sample_watched", None)  # nothing is drawn again
    run_experiments.main()
    assert (
        path.read_bytes() == first
        and path.with_name("experiment-sampler_steps-grid.jpg").read_bytes() == grid
    )
    arms = json.loads(first)["arms"]
    assert [(a["sampler"], a["steps"]) for a in arms] == [
        ("ddim", 1),
        ("ddim", 2),
        ("dpmpp_2m", 1),
        ("dpmpp_2m", 2),
    ]
    assert arms[1]["apart"]["distance"]["mean"] == 0 < arms[0]["apart"]["distance"]["mean"]
    assert (
        abs(arms[0]["right"]["mean"] - arms[2]["right"]["mean"]) < 1e-6
    )  # one step of either is the same step


# ---------------------------------------------------------------- cards


@pytest.mark.parametrize("name", run_experiments.CONFIGS)
def test_a_card_is_of_these_weights_and_of_this_configuration(name):
    path = assets() / "runs" / f"experiment-{name}.json"
    card = json.loads(path.read_text())
    assert card["what"] == name and name in card["command"]
    assert card["config"] == json.loads(json.dumps(run_experiments.CONFIGS[name]))
    assert card["weights"] == run_experiments.weights_digest()
    assert path.stat().st_size < 110_000


def test_grids_are_small():
    grids = list((assets() / "runs").glob("experiment-*.jpg"))
    assert len(grids) >= 3
    for path in grids:
        assert path.stat().st_size < 110_000, path.name
        with Image.open(path) as image:
            assert image.format == "JPEG"


@pytest.mark.parametrize("name", run_experiments.CONFIGS)
def test_a_page_says_what_its_grid_was_asked_for(name):
    "Caption and alt text name shapes and colours of the grid's own captions, which the page reads from the data."
    notebook = json.loads((ROOT / "nbs" / "experiments" / f"{name}.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"]]
    k = next(k for k, cell in enumerate(cells) if f"experiment-{name}-grid.jpg" in cell)
    grid, world = run_experiments.CONFIGS[name]["grid"], ShapesWorld("test", level="full")
    rows = [grid["caption"]] if "caption" in grid else range(grid["captions"])
    words = " ".join(world.caption(i) for i in rows)
    shown = [json.dumps(cell.get("outputs")) for cell in notebook["cells"]]
    assert any(all(world.caption(i) in text for i in rows) for text in shown), "read no caption"
    kinds = {t.shape for i in range(300) for t in world.scene(i).things} - {"cross"}
    told = " ".join(line for line in cells[k].split("\n") if line.startswith("#| fig-"))
    assert all(kind in words for kind in kinds if re.search(rf"\b{kind}s?\b", told)), told
