"""Guards, and `imagen-nb doctor` on directories: healthy, unfinished, damaged, empty."""

import json
import shutil

import pytest
import torch
from guards import CASES

import imagen_nb
from imagen_nb.cli import main
from imagen_nb.data import ShapesWorld
from imagen_nb.engine import guards as health
from imagen_nb.engine.guards import LEVELS
from imagen_nb.engine.keeping import describe_run
from imagen_nb.plots import image_grid, plot_reference
from imagen_nb.recipes import toy
from imagen_nb.runs import env
from imagen_nb.runs.doctor import doctor, report
from imagen_nb.runs.drawings import picture_stats
from imagen_nb.runs.reference import find_reference, trained_as
from imagen_nb.store.files import assets, read_rows
from imagen_nb.text import TextEncoder
from imagen_nb.training import TrainConfig, ema_decay

TINY = [
    f"--set={path}={value}"
    for k in range(3)
    for path, value in (
        (f"training.{k}.steps", 4),
        (f"training.{k}.batch", 4),
        (f"training.{k}.warmup", 1),
        (f"training.{k}.save_every", 2),
        (f"stages.{k}.steps", 2),
    )
]
TINY += [
    "--set=stages.0.network.dim=16",
    "--set=stages.0.network.head_dim=16",
    "--set=stages.1.network.channels=(16,16)",
    "--set=stages.2.network.channels=(16,16)",
    "--processes=1",
]
TOO_SHORT = {"amount of training", "reference"}  # what a run of four steps is told, and rightly


# ---------------------------------------------------------------- guards


@pytest.mark.parametrize("name", CASES)
def test_a_guard_tells_the_planted_fault_from_the_healthy_case(name):
    healthy, planted, level = CASES[name]
    well, ill = healthy(), planted()
    assert well.level == "ok" and not well.advice, well
    assert ill.level == level and ill.advice and ill.what == well.what, ill
    assert ill.level in LEVELS


LIMITS = [  # a guard, and its verdicts on both sides of a limit
    (health.follows_lowres, (0.1,), "ok", (0.101,), "warning"),
    (health.enough_samples, (20_000,), "ok", (19_999,), "warning"),
    (health.enough_samples, (50_000, 100), "ok", (50_100, 100), "note"),
    (health.aug_level, (0.15, 0.15), "ok", (0.16, 0.15), "error"),
    (health.guidance_is_trained, (2.0, 0.3), "ok", (2.0, 0.31), "warning"),
    (health.few_skipped, (1, 1000), "note", (2, 1000), "warning"),
    (health.few_skipped, (50, 1000), "warning", (51, 1000), "error"),
    (health.warm_up_is_over, (10, 10, 20), "ok", (9, 10, 20), "note"),
    (health.warm_up_is_over, (20, 19, 20), "ok", (20, 20, 20), "warning"),
    (health.rarely_clipped, ([0.5, 2.0] * 5, 1.0), "ok", ([0.5, 2.0, 2.0] * 5, 1.0), "warning"),
    (health.data_is_fast, ([0.2],), "ok", ([0.21],), "warning"),
    (health.loss_falls, ([1.0] * 20 + [1.29] * 20,), "ok", ([1.0] * 20 + [1.32] * 20,), "warning"),
]


@pytest.mark.parametrize("guard, inside, verdict, outside, other", LIMITS)
def test_a_guard_changes_its_mind_where_it_says(guard, inside, verdict, outside, other):
    assert (guard(*inside).level, guard(*outside).level) == (verdict, other)


def test_the_average_forgets_as_the_trainer_averages():
    for ema, power, steps in ((0.99, 13.0, 200), (0.9999, 0.0, 300), (1.0, 2.0, 100)):
        held, config = 1.0, TrainConfig(ema=ema, ema_power=power)
        for k in range(steps // 10 + 1, steps + 1):
            held *= ema_decay(k, config)
        said = health.average_is_warm(steps, ema, power).why.split(" %")[0]
        assert float(said) == pytest.approx(100 * held, rel=0.06)  # two digits are said


def test_faults_of_an_early_run_are_notes():
    found = health.not_noise(0.0)
    assert (
        health.soften(found, 10, 100, 0.15).level == "note"
        and health.soften(found, 15, 100, 0.15).level == "error"
    )
    assert health.soften(health.not_noise(0.9), 10, 100, 0.15).level == "ok"


def test_smoothing_passes_over_nothing_and_delays_little():
    assert health.smooth([1.0, 1.0]) == [1.0, 1.0] and health.smooth([4.0, 1.0]) == pytest.approx(
        [4.0, 2.0]
    )
    assert health.smooth([1.0] * 9 + [32.0])[-1] == pytest.approx(2.0)


# ---------------------------------------------------------------- directories


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "Eight captioned pictures, and a run of four steps on them without validation and samples, which are rightly bad."
    home = tmp_path_factory.mktemp("doctor")
    world = ShapesWorld("train", level="quick", size=64)
    (home / "pictures").mkdir()
    for i in range(8):
        image_grid(world.images([i]), padding=0).save(home / "pictures" / f"{i}.png")
        (home / "pictures" / f"{i}.txt").write_text(world.caption(i))
    assert (
        main(["train", "toy", "--data", str(home / "pictures"), "--out", str(home / "run"), *TINY])
        == 0
    )
    assert {("32px", "trivial predictor"), ("32px", "text")} <= set(
        faults(doctor(home / "run", draw=0))
    )
    for path in [*home.glob("run/*/validation.jsonl"), *home.glob("run/*/samples.jsonl")]:
        path.unlink()
    return home / "run"


@pytest.fixture
def run(trained, tmp_path):
    "A copy to damage."
    return shutil.copytree(trained, tmp_path / "run")


def faults(findings):
    return {(f.where, f.what): f.level for f in findings if f.level in ("warning", "error")}


def files(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_a_sound_run_and_its_stage_have_no_errors_and_are_left_alone(trained):
    before = files(trained)
    found = doctor(trained, draw=0)
    assert {what for _, what in faults(found)} <= TOO_SHORT, report(found)
    told = {(f.where, f.what) for f in found if f.level == "ok"}
    for what in (
        "checkpoints",
        "weights",
        "guidance",
        "averaged weights",
        "skipped steps",
        "picture size",
        "pixel range",
    ):
        assert ("32px", what) in told and ("512px", what) in told
    assert {("", "captions"), ("", "text cache"), ("", "model"), ("128px", "aug level")} <= told
    alone = doctor(trained / "128px", draw=0)
    assert not faults(alone) and ("128px", "checkpoints") in {(f.where, f.what) for f in alone}
    assert files(trained) == before


def test_drawing_finds_that_four_steps_are_too_few(trained):
    before, found = files(trained), doctor(trained, draw=4)
    assert ("32px", "trivial predictor") in faults(found), report(found)
    assert {f.level for f in found if f.what == "drawing"} == {"ok"}
    assert all(
        (f"{size}px", "contrast") in {(f.where, f.what) for f in found} for size in (32, 128, 512)
    )
    assert files(trained) == before


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(path, change):
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def add_row(path, **row):
    with path.open("a") as f:
        f.write(json.dumps(row) + "\n")


GAIN = dict(step=4, loss=[0.1] * 8, trivial=[0.5] * 8, text_gain=dict(mean=0.0, low=-0.1, high=0.1))
ROW = dict(step=4, min=-1.0, max=1.0, mean=[0.0, 0.0, 0.0], std=0.5, saturated=0.2, lowres_gap=0.01)
PLANTED = {  # name -> what is done to the directory, and the finding: where, guard, level
    "newest checkpoint": (
        lambda r: damage(r / "32px" / "step_00000004" / "average.safetensors"),
        ("32px", "checkpoints", "warning"),
    ),
    "every checkpoint": (
        lambda r: [damage(p / "average.safetensors") for p in (r / "32px").glob("step_*")],
        ("32px", "checkpoints", "error"),
    ),
    "cut checkpoint": (
        lambda r: (r / "128px" / "step_00000004" / "manifest.json").unlink(),
        ("128px", "checkpoints", "warning"),
    ),
    "no stage config": (
        lambda r: (r / "32px" / "config.json").unlink(),
        ("32px", "configuration", "error"),
    ),
    "no JSON in the recipe": (
        lambda r: (r / "config.json").write_text("{"),
        ("", "recipe", "error"),
    ),
    "another encoder's cache": (
        lambda r: edit(r / "32px" / "config.json", lambda c: c["text"].update(revision="0")),
        ("", "text cache", "error"),
    ),
    "cut cache": (
        lambda r: next((r / "captions").glob("part-*/part.safetensors")).unlink(),
        ("", "text cache", "error"),
    ),
    "damaged model": (lambda r: damage(r / "model" / "stage1.safetensors"), ("", "model", "error")),
    "aug level": (
        lambda r: edit(r / "128px" / "config.json", lambda c: c["stage"].update(aug_t=0.5)),
        ("128px", "aug level", "error"),
    ),
    "no guidance": (
        lambda r: edit(r / "32px" / "config.json", lambda c: c["stage"].update(caption_drop=0.0)),
        ("32px", "guidance", "error"),
    ),
    "cold average": (
        lambda r: edit(
            r / "32px" / "config.json", lambda c: c["train"].update(ema=0.9999, ema_power=0.0)
        ),
        ("32px", "averaged weights", "error"),
    ),
    "loss not finite": (
        lambda r: (
            [add_row(r / "32px" / "log.jsonl", step=4, loss=float("nan"), grad_norm=0.1, skipped=0)]
            * 1
        ),
        ("32px", "loss", "error"),
    ),
    "skipped steps": (
        lambda r: add_row(r / "32px" / "log.jsonl", step=4, loss=0.1, grad_norm=0.1, skipped=3),
        ("32px", "skipped steps", "error"),
    ),
    "waiting": (
        lambda r: add_row(
            r / "32px" / "log.jsonl", step=4, loss=0.1, grad_norm=0.1, skipped=0, waiting=0.6
        ),
        ("32px", "data wait", "warning"),
    ),
    "cut log": (
        lambda r: (
            add_row(r / "32px" / "log.jsonl") or (r / "32px" / "log.jsonl").write_text('{"step": 2')
        ),
        ("32px", "log", "warning"),
    ),
    "text does not help": (
        lambda r: add_row(r / "32px" / "validation.jsonl", **GAIN),
        ("32px", "text", "warning"),
    ),
    "worse than trivial": (
        lambda r: add_row(r / "32px" / "validation.jsonl", **GAIN | dict(trivial=[0.05] * 8)),
        ("32px", "trivial predictor", "error"),
    ),
    "saturated": (
        lambda r: add_row(r / "512px" / "samples.jsonl", **ROW | dict(saturated=0.99)),
        ("512px", "saturation", "warning"),
    ),
    "blank": (
        lambda r: add_row(r / "32px" / "samples.jsonl", **ROW | dict(std=0.0)),
        ("32px", "contrast", "error"),
    ),
    "departs": (
        lambda r: add_row(r / "512px" / "samples.jsonl", **ROW | dict(lowres_gap=0.5)),
        ("512px", "low-res input", "warning"),
    ),
    "untrained stage": (
        lambda r: [
            shutil.rmtree(r / "model"),
            *(shutil.rmtree(p) for p in (r / "512px").glob("step_*")),
            (r / "samples" / "00000_512.png").touch(),
        ],
        ("", "untrained stages", "error"),
    ),
    "no captions": (
        lambda r: [p.write_text("") for p in (r.parent / "pictures").glob("*.txt")],
        ("", "captions", "warning"),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_in_a_directory_is_found(run, trained, name):
    shutil.copytree(trained.parent / "pictures", run.parent / "pictures")
    edit(run / "config.json", lambda c: c["data"].update(source=str(run.parent / "pictures")))
    assert {what for _, what in faults(doctor(run, draw=0))} <= TOO_SHORT
    plant, (where, what, level) = PLANTED[name]
    plant(run)
    found = doctor(run, draw=0)
    assert (where, what, level) in {(f.where, f.what, f.level) for f in found}, report(found)


def test_no_damage_makes_the_doctor_stumble(trained, tmp_path):
    seen = set()
    for path in sorted(p for p in trained.rglob("*") if p.is_file()):
        if (path.parent.name[:4], path.name) in seen or path.suffix == ".png":
            continue
        seen.add((path.parent.name[:4], path.name))
        for cut in (0, path.stat().st_size // 2):
            data = path.read_bytes()
            try:
                path.write_bytes(data[:cut])
                assert doctor(trained, draw=0), path
            finally:
                path.write_bytes(data)
    assert len(seen) > 15


def test_exit_codes_and_the_table(trained, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["doctor", str(trained), "--draw", "0"]) == 0
    told = capsys.readouterr().out
    assert "0 errors" in told and "not looked at: " in told and "-> " in told
    assert main(["doctor", str(tmp_path / "empty")]) == 1 and "1 error," in capsys.readouterr().out
    assert (
        main(["doctor", str(tmp_path / "nowhere")]) == 2
        and "no such directory" in capsys.readouterr().err
    )
    assert (
        main(["doctor", str(trained), "--draw", "-1"]) == 2
        and "expected a whole number, 0 or more" in capsys.readouterr().err
    )


def test_the_cascade_that_ships_is_well():
    found = doctor(assets() / "toy")
    assert {f.level for f in found} == {"ok"}, report(found)
    assert {"model's noise", "model's colour", "model's low-res input", "model's aug level"} <= {
        f.what for f in found
    }


def test_a_bug_report_names_versions(monkeypatch):
    monkeypatch.setattr(env, "PACKAGES", ["torch", "no-such-package"])
    monkeypatch.setattr(env, "has_fast_bf16", lambda device: f"asked of {device}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told = env.versions()
    assert told["GPU"] == "none" and told["fast bf16"] == "asked of cpu"
    assert told["imagen_nb"] == imagen_nb.__version__ and told["torch"] == torch.__version__
    assert told["no-such-package"] == "not installed"


# ---------------------------------------------------------------- reference runs


def card():
    return json.loads((assets() / "runs" / "toy-reference.json").read_text())


def config(k, seed=5, **changes):
    "config.json of a stage of `toy`, as the trainer writes it."
    recipe = toy(seed)
    config = describe_run(
        recipe.stages[k], recipe.training[k], ShapesWorld("train", level="quick"), TextEncoder.toy()
    )
    config = json.loads(json.dumps(config))
    for part, values in changes.items():
        config[part].update(values)
    return config


def test_runs_of_the_toy_are_compared_whatever_their_seed_and_sampling():
    for k, stage in enumerate(card()["stages"].values()):
        assert find_reference(config(k)) == stage
        assert (
            find_reference(
                config(k, stage=dict(threshold="dynamic", w=3.0), train=dict(save_every=7, keep=9))
            )
            == stage
        )
        assert (
            find_reference(config(k, train=dict(lr=1e-3))) is None
            and find_reference(config(k, stage=dict(caption_drop=0.2))) is None
        )


def test_a_config_of_an_older_version_is_the_same():
    new = config(0)
    old = json.loads(json.dumps(new))
    del old["stage"]["network"]["has_lowres"], old["train"]["keep"], old["stage"]["is_residual"]
    assert trained_as(old) == trained_as(new)


def test_a_run_in_the_band_of_reference_runs_is_normal_and_a_bad_run_is_not():
    steps = range(20, 2001, 20)

    def level(loss, band):
        return health.loss_is_normal([dict(step=s, loss=loss) for s in steps], band).level

    band = dict(
        step=list(steps), mean=[0.1] * 100, spread=0.02
    )  # a factor of exp(.1) to both sides
    found = [level(loss, band) for loss in (0.1, 0.109, 0.112, 0.15, 0.08)]
    assert found == ["ok", "ok", "warning", "warning", "note"]
    for name, stage in card()["stages"].items():
        band = stage["loss"]
        rows = [dict(step=s, loss=1.5 * v) for s, v in zip(band["step"], band["mean"])]
        assert health.loss_is_normal(rows, band).level == "warning", name


def test_the_reference_is_drawn_with_a_run_on_top(tmp_path):
    (tmp_path / "32px").mkdir()
    (tmp_path / "32px" / "log.jsonl").write_text(
        "".join(json.dumps(dict(step=20 * k, loss=0.1)) + "\n" for k in range(1, 9))
    )
    fig = plot_reference(card(), tmp_path, band=health.BAND)
    top, bottom = fig.axes[0], fig.axes[3]
    assert [o.get_label() for o in top.lines] == ["reference", "this run"] and list(
        top.lines[1].get_ydata()
    ) == pytest.approx([0.1] * 8)
    assert len(bottom.lines) == 6 and len(fig.axes[1].lines) == 1


def test_lines_that_are_no_rows_are_counted(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\nnonsense\n7\n{"step": 2}\n{"st')
    assert read_rows(tmp_path / "log.jsonl") == ([dict(step=1), dict(step=2)], [2, 3, 5])
    assert read_rows(tmp_path / "none") == ([], [])


def test_statistics_of_pictures():
    noise = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    world = ShapesWorld("train", level="quick").images([0, 1, 2, 3], 32)
    assert (
        abs(picture_stats(noise)["neighbours"]) < 0.05 and picture_stats(world)["neighbours"] > 0.85
    )
    assert (
        picture_stats(world, world)["lowres_gap"] == 0
        and picture_stats(world)["lowres_gap"] is None
    )
