"""The log of a run: rows in files, over all processes; trackers that can fail; a live figure."""

import csv
import errno
import json
import sys
import types
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from train_worker import STAGE, make_trainer

from imagen_nb.data import ShapesWorld
from imagen_nb.engine import logs
from imagen_nb.engine.execution import Execution
from imagen_nb.engine.logs import Log, Stopwatch, check_trackers, flat
from imagen_nb.store.files import read_rows


def rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run of 60 steps that is validated three times and draws twice."
    out = tmp_path_factory.mktemp("run")
    valid = ShapesWorld("valid", level="quick", size=16)
    stage = replace(STAGE, steps=2, sampler="ddim", w=1.0)
    watched = dict(valid=valid, validate_every=25, sample_every=40)
    make_trainer(out, steps=60, stage=stage, save_every=30, **watched).fit()
    return out


# ---------------------------------------------------------------- rows


def test_a_row_says_what_the_steps_were(run):
    log = rows(run / "log.jsonl")
    assert [r["step"] for r in log] == [20, 40, 60]
    for r in log:
        assert (
            r["samples"] == 8 * r["step"]
            and len(r["by_level"]) == 4
            and r["skipped"] == 0
            and r["lr"] > 0
        )
        shares = [r[k] for k in ("waiting", "updating", "saving", "watching")]
        assert (
            all(0 <= o <= 1 for o in shares)
            and sum(shares) < 1
            and r["waiting"] > 0
            and r["updating"] > 0
        )
        assert 0.05 < r["memory_gib"] < 24
    assert (
        log[1]["saving"] > 0 == log[0]["saving"] and log[1]["watching"] > 0
    )  # saved at 30, validated at 25


def test_the_row_is_the_mean_of_the_losses(tmp_path):
    trainer, seen = make_trainer(tmp_path), []
    step = trainer.train_step

    def kept(batch, draws):
        seen.append((step(batch, draws), draws.t))
        return seen[-1][0]

    trainer.train_step = kept
    trainer.fit()
    (row,) = rows(tmp_path / "log.jsonl")
    losses, times = (
        torch.cat([r["losses"] for r, _ in seen]).double(),
        torch.cat([t for _, t in seen]),
    )
    assert abs(row["loss"] - losses.mean()) < 1e-6
    for k in range(4):
        assert abs(row["by_level"][k] - losses[(times * 4).long() == k].mean()) < 1e-6


def test_the_table_beside_it_holds_the_same(run):
    table = list(csv.DictReader((run / "log.csv").open()))
    log = rows(run / "log.jsonl")
    assert tuple(table[0]) == logs.COLUMNS and len(table) == len(log)
    for line, row in zip(table, log):
        values = flat(row)
        assert {k: float(v) for k, v in line.items()} == {k: float(values[k]) for k in logs.COLUMNS}


def test_validation_and_samples_have_rows_and_pictures(run):
    from PIL import Image

    checks, samples = rows(run / "validation.jsonl"), rows(run / "samples.jsonl")
    assert [r["step"] for r in checks] == [25, 50, 60] and [r["step"] for r in samples] == [40, 60]
    for r in checks:
        assert r["on"] == "valid" and r["n"] == 64 and r["samples"] == 8 * r["step"]
        assert all(len(r[k]) == 8 for k in ("levels", "loss", "shuffled", "trivial"))
        assert r["text_gain"]["low"] <= r["text_gain"]["mean"] <= r["text_gain"]["high"]
    assert sum(checks[-1]["loss"]) < sum(checks[0]["loss"])
    assert all(
        r["lowres_gap"] is None and -1 <= r["min"] <= r["max"] <= 1 and len(r["mean"]) == 3
        for r in samples
    )
    pictures = sorted((run / "samples").iterdir())
    assert [p.name for p in pictures] == ["step_00000040.png", "step_00000060.png"]
    assert Image.open(pictures[0]).size == (2 + 2 * 18, 2 + 2 * 18)  # four of 16 pixels


def test_a_log_goes_back_to_the_checkpoint_and_passes_over_cut_lines(run, tmp_path):
    import shutil

    out = tmp_path / "run"
    shutil.copytree(run, out)
    before = {
        name: (out / name).read_text() for name in ("log.jsonl", "log.csv", "validation.jsonl")
    }
    with (out / "log.jsonl").open("a") as f:
        f.write('{"step": 70, "lo{"step": 80, "loss": 1}\n{"step": 80, "loss": 1}\n{"step"')
    run_of_60 = make_trainer(out, steps=60)
    start_at = partial(Log, out, config=run_of_60.config, process=run_of_60.process)
    start_at(60).close()
    assert {name: (out / name).read_text() for name in before} == before
    start_at(40).close()
    assert [r["step"] for r in rows(out / "log.jsonl")] == [20, 40] and [
        r["step"] for r in rows(out / "validation.jsonl")
    ] == [25]
    assert (out / "log.csv").read_text().splitlines() == before["log.csv"].splitlines()[:3]
    old = [
        {
            k: r[k]
            for k in (
                "step",
                "samples",
                "loss",
                "by_level",
                "lr",
                "grad_norm",
                "skipped",
                "images_per_s",
            )
        }
        for r in rows(out / "log.jsonl")
    ]
    (out / "log.jsonl").write_text(
        "".join(json.dumps(r | dict(skipped=3)) + "\n" for r in old)
    )  # of a version without shares
    log = start_at(40)
    assert log.skipped == 3 and [
        line["waiting"] for line in csv.DictReader((out / "log.csv").open())
    ] == ["", ""]
    assert read_rows(out / "nothing.jsonl") == ([], [])
    (out / "damaged.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe\x00\n{"step": 2}\n')
    assert [row["step"] for row in read_rows(out / "damaged.jsonl")[0]] == [1, 2]


def test_numbers_are_named_and_the_rest_is_left_out():
    assert flat(dict(step=1, by=[2, None, 3.0], gain=dict(low=-1), on="valid")) == dict(
        step=1, by_0=2, by_2=3.0, gain_low=-1
    )


def test_a_full_disk_leaves_the_log_whole(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    assert logs.append(path, "one\n")
    real = Path.open

    class Full:
        def __init__(self, f):
            self.f = f

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.f.close()

        def write(self, text):
            self.f.write(text[:2])
            self.f.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda self, *a, **k: Full(real(self, *a, **k)))
    assert not logs.append(path, "two\n")
    monkeypatch.undo()
    assert path.read_text() == "one\n"

    class Heavy:
        def save(self, path):
            path.write_bytes(b"half a")
            raise OSError(errno.ENOSPC, "No space left on device")

    assert (
        not logs.save_png(Heavy(), tmp_path / "samples" / "a.png")
        and not (tmp_path / "samples" / "a.png").exists()
    )


def test_a_stopwatch_adds_up():
    import time

    clock = Stopwatch(torch.device("cpu"))

    def slow():
        for i in range(3):
            time.sleep(0.01)
            yield i

    assert list(clock.each("waiting", slow())) == [0, 1, 2]
    with pytest.raises(ZeroDivisionError), clock("saving"):
        raise ZeroDivisionError
    total, waiting, saving, nothing = clock.read("waiting", "saving", "updating")
    assert total >= waiting >= 0.03 and 0 < saving < 0.03 and nothing == 0
    clock.restart()
    assert clock.read("waiting")[1] == 0


# ---------------------------------------------------------------- trackers


class Told:
    "Stands for a tracker's package and notes what it is told."

    def __init__(self):
        self.calls, self.fails = [], False

    def __getattr__(self, name):
        def call(*args, **kw):
            if self.fails:
                raise RuntimeError("the server is on fire")
            self.calls.append((name, args, kw))
            return self

        return call


@pytest.fixture
def packages(monkeypatch):
    "Fake packages of both trackers."
    told = Told()
    writer = types.ModuleType("torch.utils.tensorboard")
    writer.SummaryWriter = lambda *args, **kw: told.SummaryWriter(*args, **kw)
    wandb = types.ModuleType("wandb")
    wandb.init, wandb.Image = (lambda **kw: told.init(**kw)), (lambda pixels: "picture")
    for name, module in {
        "tensorboard": types.ModuleType("tensorboard"),
        "torch.utils.tensorboard": writer,
        "wandb": wandb,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    return told


def tracked(out, name):
    return make_trainer(out, track=(name,), validate_every=20)


def test_tensorboard_gets_every_number(packages, tmp_path):
    tracked(tmp_path, "tensorboard").fit()
    (made, where, options), *calls = packages.calls
    assert (
        made == "SummaryWriter"
        and where == (tmp_path / "tensorboard",)
        and options == dict(purge_step=1)
    )
    scalars = {args[0]: args[1:] for name, args, _ in calls if name == "add_scalar"}
    row, check = rows(tmp_path / "log.jsonl")[0], rows(tmp_path / "validation.jsonl")[0]
    assert scalars["log/loss"] == (row["loss"], 20) and scalars["validation/text_gain_high"] == (
        check["text_gain"]["high"],
        20,
    )
    assert scalars["log/by_level_3"] == (row["by_level"][3], 20) and calls[-1][0] == "close"


def test_wandb_without_a_network_is_kept_offline_with_one_warning(packages, tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "is_reachable", lambda host: False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.warns(UserWarning, match="no network") as told:
        tracked(tmp_path / "offline", "wandb").fit()
    assert len(told) == 1
    _, _, options = packages.calls[0]
    assert options["mode"] == "offline" and options["dir"] == str(tmp_path / "offline")
    noted = [args[0] for name, args, _ in packages.calls if name == "log"]
    assert noted[0]["step"] == 20 and "log/loss" in noted[0] and "validation/loss_7" in noted[1]
    packages.calls.clear()
    monkeypatch.setattr(logs, "is_reachable", lambda host: True)
    tracked(tmp_path / "online", "wandb").fit()
    assert packages.calls[0][2]["mode"] is None


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_tracker_that_raises_is_one_warning(packages, tmp_path, when):
    trainer = tracked(tmp_path, "tensorboard")
    packages.fails = when == "at once"
    if when == "later":
        step = trainer.train_step

        def failing(*args):
            packages.fails = True
            return step(*args)

        trainer.train_step = failing
    with pytest.warns(
        UserWarning, match="tensorboard: RuntimeError: the server is on fire; the run goes on"
    ) as told:
        trainer.fit()
    assert len(told) == 1 and len(rows(tmp_path / "log.jsonl")) == 1


def test_trackers_that_are_missing_or_unknown_are_one_line(monkeypatch):
    check_trackers(())
    with pytest.raises(ValueError, match="track: got 'mlflow', expected one of tensorboard, wandb"):
        check_trackers(["mlflow"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ValueError, match=r'wandb is not installed; pip install "imagen-nb\[track\]"'
    ):
        Execution(track=("wandb",))


def test_pictures_reach_the_trackers(packages, tmp_path, run):
    from PIL import Image

    quiet = logs.Quiet("tensorboard", tmp_path, 0)
    quiet.note("samples", dict(step=40, std=0.5), Image.open(run / "samples" / "step_00000040.png"))
    name, args, options = next(c for c in packages.calls if c[0] == "add_image")
    assert (
        args[0] == "samples"
        and args[1].shape == (38, 38, 3)
        and args[2] == 40
        and options == dict(dataformats="HWC")
    )


def test_no_network_is_not_reached():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not logs.is_reachable("api.wandb.ai")  # tests refuse every connection


# ---------------------------------------------------------------- figures


def test_a_live_figure_is_one_display_drawn_now_and_then(run, monkeypatch):
    shown = []

    class Handle:
        def update(self, figure):
            shown.append(figure)

    ipython = types.ModuleType("IPython.display")
    ipython.display = lambda figure, display_id: shown.append(figure) or Handle()
    monkeypatch.setitem(sys.modules, "IPython.display", ipython)
    live = logs.LivePlot(run)
    for _ in range(5):
        live.update("log", {})
    assert len(shown) == 1  # the others came too early
    live.close()
    assert len(shown) == 2 and len(shown[1].axes) == 3


def test_the_figure_needs_only_the_log(run, tmp_path):
    from imagen_nb.plots import plot_log

    (tmp_path / "log.jsonl").write_text((run / "log.jsonl").read_text())
    figure = plot_log(tmp_path, tmp_path / "figure.png")
    assert len(figure.axes) == 2 and (tmp_path / "figure.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="has no rows"):
        plot_log(tmp_path / "nothing")
