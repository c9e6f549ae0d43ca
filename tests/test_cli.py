"""The command line: whole tiny runs, stopping and going on, pictures of one's own, and errors in one line."""

import argparse
import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import load_file

from imagen_nb.cascade import Imagen
from imagen_nb.cli import COMMANDS, main, wanted
from imagen_nb.data import ShapesWorld
from imagen_nb.engine.captions import EmbeddingCache
from imagen_nb.engine.distributed import Process
from imagen_nb.engine.execution import Execution
from imagen_nb.engine.logs import TRACKERS
from imagen_nb.engine.validation import HELD_BACK, VALIDATED
from imagen_nb.pictures.captioned import load_captioned
from imagen_nb.plots import image_grid
from imagen_nb.recipes import RECIPES, DataConfig, find_recipe, paper, toy, toy_full
from imagen_nb.runs import look, options, results, run, setup
from imagen_nb.runs.options import USES, parser
from imagen_nb.runs.options import path as path_of
from imagen_nb.runs.options import words as words_of
from imagen_nb.runs.plan import GPUS
from imagen_nb.runs.pretrained import start_from
from imagen_nb.runs.work import Job, close
from imagen_nb.sampling import SAMPLERS
from imagen_nb.stage import Stage
from imagen_nb.store.checkpoint import checkpoints, load_directory
from imagen_nb.store.config import change, counted
from imagen_nb.store.keyed import permute
from imagen_nb.text import TextEncoder
from imagen_nb.training import Samples

TINY = [
    f"--set={path}={value}"
    for k in range(3)
    for path, value in (
        (f"training.{k}.steps", 2),
        (f"training.{k}.batch", 4),
        (f"training.{k}.warmup", 1),
        (f"stages.{k}.steps", 2),
    )
]
TINY += [
    "--set=stages.0.network.dim=16",
    "--set=stages.0.network.head_dim=16",
    "--set=stages.1.network.channels=(16,16)",
    "--set=stages.2.network.channels=(16,16)",
    "--validate-every=0",
    "--sample-every=0",
    "--processes=1",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Six pictures with captions, one of them empty."
    path = tmp_path_factory.mktemp("pictures")
    world = ShapesWorld("train", level="quick", size=64)
    for i in range(6):
        image_grid(world.images([i]), padding=0).save(path / f"{i}.png")
        (path / f"{i}.txt").write_text(world.caption(i) if i else "")
    return path


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    "A run on those pictures."
    out = tmp_path_factory.mktemp("runs") / "own"
    assert main(["train", "toy", "--data", str(folder), "--out", str(out), *TINY]) == 0
    return out


def test_a_run_on_drawn_scenes(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(setup, "ShapesWorld", partial(ShapesWorld, length=40))
    command = [
        "train",
        "toy",
        "--out",
        str(tmp_path / "run"),
        "--held-out",
        "2",
        *TINY,
        "--validate-every=2",
        "--sample-every=2",
    ]
    assert main(command) == 0
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert {"32", "128", "512", "seconds"} == set(scores)
    asked = {part: found["all"]["n"] for part, found in scores["512"].items()}
    assert asked == dict(all=2, seen=1, held_out=1, shuffled=2, chance=2)
    for name in (
        "samples.png",
        "model/manifest.json",
        "samples/00001_512.png",
        "32px/log.jsonl",
        "128px/log.csv",
        "512px/samples/step_00000002.png",
    ):
        assert (tmp_path / "run" / name).exists(), name
    for size in (32, 128, 512):
        check, look = (
            json.loads((tmp_path / "run" / f"{size}px" / f"{name}.jsonl").read_text())
            for name in ("validation", "samples")
        )
        assert (
            check["on"] == "valid"
            and check["n"] == 64
            and (look["lowres_gap"] is None) == (size == 32)
        )
    assert main(command) == 0 and "is finished" in capsys.readouterr().out
    assert main([*command, "--seed", "1"]) == 2 and "training.0" not in capsys.readouterr().out


def test_a_run_is_finished_once_what_is_asked_for_is_drawn(tmp_path):
    for name in ("32px/log.jsonl", "128px/log.jsonl", "512px/log.jsonl", "samples.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    recipe, own = toy(), replace(toy(), data=DataConfig(source="photos"))
    (tmp_path / "samples").mkdir()
    for i in range(2):
        (tmp_path / f"samples/{i:05d}.json").write_text("{}")
    for asked, n, is_finished in ((recipe, 2, True), (recipe, 3, False), (own, 3, True)):
        job = Job(out=str(tmp_path), held_out=n, execution=Execution())
        assert run.is_finished(asked, tmp_path, job) == is_finished


def test_another_model_draws_again_and_the_same_one_goes_on(tmp_path):
    def answers(w):
        recipe = change(start_from(brief(), "toy"), "stages.0.w", w)
        job = Job(out=str(tmp_path), held_out=1, execution=Execution())
        close(job, recipe, setup.make_encoder("toy"), Process())
        return tmp_path / "samples" / "00000.json"

    answers("1.0").write_text("{}")
    assert answers("1.0").read_text() == "{}"
    assert answers("2.0").read_text() != "{}"


def test_first_weights_are_those_of_the_seed():
    stages = [setup.first_stage(toy(seed), 0) for seed in (1, 1, 2)]
    one, again, other = (stage.network.conv_in.weight for stage in stages)
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_a_run_on_own_pictures(trained, folder, tmp_path, capsys):
    assert (
        len(list((trained / "samples").glob("*.png"))) == 6 and (trained / "samples.png").exists()
    )
    out = tmp_path / "pictures"
    assert (
        main(
            [
                "sample",
                "a red circle",
                "",
                "--model",
                str(trained / "model"),
                "--out",
                str(out),
                "--n",
                "2",
                "--seed",
                "5",
                "--steps",
                "2,1,1",
                "--w",
                "2",
                "--threshold",
                "none,static,dynamic",
            ]
        )
        == 0
    )
    assert sorted(p.name for p in out.iterdir()) == [
        "a-red-circle-seed5.png",
        "a-red-circle-seed6.png",
        "empty-seed5.png",
        "empty-seed6.png",
        "grid.png",
    ]
    assert Image.open(out / "empty-seed5.png").size == (512, 512)
    assert len(capsys.readouterr().out.split()) == 5
    one = Imagen.from_pretrained(trained / "model").sample(
        ["a red circle"], seeds=[6], steps=[2, 1, 1], w=2.0, threshold=[None, "static", "dynamic"]
    )
    again, saved = image_grid(one, padding=0), Image.open(out / "a-red-circle-seed6.png")
    assert (
        max(high for _, high in ImageChops.difference(again, saved).getextrema()) <= 2
    )  # convolutions depend a little on the batch


def test_pictures_without_captions(folder, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for p in folder.glob("*.png"):
        (bare / p.name).write_bytes(p.read_bytes())
    assert main(["train", "toy", "--data", str(bare), "--out", str(tmp_path / "run"), *TINY]) == 0
    assert len(list((tmp_path / "run" / "samples").glob("empty-seed*.png"))) == results.EXAMPLES


def test_one_stage_at_a_time(folder, tmp_path, capsys):
    command = ["train", "toy", "--data", str(folder), "--out", str(tmp_path / "run"), *TINY]
    assert main([*command, "--stage", "1"]) == 0
    assert "never trained: 0, 2 (--stage 0 is next)" in capsys.readouterr().out
    assert (
        main(
            [
                "sample",
                "a",
                "--model",
                str(tmp_path / "run" / "model"),
                "--out",
                str(tmp_path / "none"),
            ]
        )
        == 2
    )
    assert "never trained" in capsys.readouterr().err
    assert main([*command, "--stage", "0"]) == 0
    capsys.readouterr()
    assert (
        main(
            [
                "sample",
                "a",
                "--model",
                str(tmp_path / "run" / "model"),
                "--out",
                str(tmp_path / "two"),
            ]
        )
        == 0
    )
    assert "left out: 512 px" in capsys.readouterr().err and Image.open(
        tmp_path / "two" / "a-seed0.png"
    ).size == (128, 128)
    assert main(command) == 0 and (tmp_path / "run" / "samples.png").exists()


@pytest.mark.parametrize("decay, words", [("constant", ""), ("cosine", "steps: 2 on disk, 4 now")])
def test_a_run_becomes_longer_where_its_steps_stay_the_same(folder, tmp_path, capsys, decay, words):
    out = tmp_path / "run"
    command = ["train", "toy", "--data", str(folder), "--out", str(out), "--stage=0", *TINY]
    command += [f"--set=training.0.decay={decay}", "--set=training.0.warmup=0"]
    assert main(command) == 0
    assert main([*command, "--set=training.0.steps=4"]) == (2 if words else 0)
    assert words in capsys.readouterr().err
    steps = 2 if words else 4
    assert setup.load_recipe(out).training[0].steps == steps
    assert checkpoints(out / "32px")[0].name == f"step_{steps:08d}"


def test_another_encoder(folder, tmp_path, capsys):
    from test_text import random_t5

    random_t5(tmp_path / "t5")
    command = [
        "train",
        "toy",
        "--data",
        str(folder),
        "--out",
        str(tmp_path / "run"),
        *TINY,
        "--stage",
        "2",
    ]
    assert (
        main([*command, "--set", f"encoder={tmp_path / 't5'}"]) == 2
        and not (tmp_path / "run").exists()
    )
    assert "expected 32, the width of encoder" in capsys.readouterr().err
    assert main([*command, "--encoder", str(tmp_path / "t5")]) == 0
    model = Imagen.from_pretrained(
        tmp_path / "run" / "model", TextEncoder.from_pretrained(tmp_path / "t5")
    )
    assert model.encoder.width == 32 and {o.config.network.text_dim for o in model.stages} == {32}
    shutil.copytree(tmp_path / "t5", tmp_path / "moved")  # another name, the same weights
    assert (
        Imagen.from_pretrained(
            tmp_path / "run" / "model", TextEncoder.from_pretrained(tmp_path / "moved")
        ).encoder.width
        == 32
    )
    with pytest.raises(ValueError, match="expected the encoder of training"):
        Imagen.from_pretrained(tmp_path / "run" / "model", TextEncoder.toy())
    assert (
        main(
            [
                "upscale",
                str(folder / "1.png"),
                "a",
                "--model",
                str(tmp_path / "run" / "model"),
                "--encoder",
                str(tmp_path / "t5"),
                "--out",
                str(tmp_path / "u.png"),
            ]
        )
        == 2
    )
    assert "stage was never trained" in capsys.readouterr().err


def test_a_model_finds_its_encoder(folder, tmp_path, capsys, monkeypatch):
    "A run with an encoder in a folder named as any: continued, exported, drawn; then the folder moves."
    from test_text import random_t5

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "small").mkdir()
    random_t5(tmp_path / "small" / "model")
    few = ["train", "toy", "--data", str(folder), *TINY, "--stage", "0"]
    assert main([*few, "--out", "first", "--encoder", "small/model"]) == 0
    recipe = setup.load_recipe(tmp_path / "first")
    assert recipe.encoder == str(tmp_path / "small" / "model")  # found from anywhere
    card = (tmp_path / "first" / "model" / "README.md").read_text()
    digest = Imagen.from_pretrained("first").encoder.identity["revision"]
    assert "`small/model/`" in card and digest in card and "--encoder DIR" in card
    assert main([*few, "--out", "second", "--init", "first"]) == 0

    shutil.move("small/model", "moved")
    assert main(["export", "first", "copy"]) == 0  # needs no encoder
    for model in ("first", "copy"):
        capsys.readouterr()
        assert main(["sample", "a", "--model", model, "--out", "drawn", "--steps", "1"]) == 2
        told = capsys.readouterr().err
        assert "--encoder DIR" in told and digest in told and "small/model/" in told
        assert "huggingface.co" not in told  # a folder is not looked for on the hub
        draw = ["sample", "a", "--model", model, "--out", "drawn", "--steps", "1"]
        assert main([*draw, "--encoder", "moved"]) == 0
    more = [*few, "--out", "third", "--init", "first", "--encoder"]
    assert main([*more, "toy"]) == 2 and not (tmp_path / "third").exists()
    told = capsys.readouterr().err
    assert "differs in revision" in told and f"expected '{digest}'" in told
    assert main([*more, "moved"]) == 0
    assert Imagen.from_pretrained("third").encoder.identity["revision"] == digest
    assert main([*few, "--out", "first", "--encoder", "moved"]) == 0  # digests decide, not names
    assert setup.load_recipe(tmp_path / "first").encoder == str(tmp_path / "moved")

    shutil.copytree("moved", tmp_path / "small" / "model")
    shutil.move("copy", "small/copy")
    monkeypatch.chdir(folder)  # beside the model; see `places`
    shutil.copytree(tmp_path / "moved", tmp_path / "small" / "small" / "model")
    assert Imagen.from_pretrained(tmp_path / "small" / "copy").encoder.width == 32


def test_data_counts_the_tokens_of_an_encoder(folder, tmp_path, capsys):
    from test_text import random_t5

    random_t5(tmp_path / "t5")
    (tmp_path / "p").mkdir()
    shutil.copy(folder / "0.png", tmp_path / "p")
    (tmp_path / "p" / "0.txt").write_text("红色的圆", encoding="utf-8")
    look = ["data", str(tmp_path / "p"), "--out", str(tmp_path / "d.png"), "--encoder"]
    assert main([*look, str(tmp_path / "t5")]) == 0
    told = capsys.readouterr().out
    assert "1 caption with characters that encoder 't5/' has no token for" in told
    assert main([*look, "toy"]) == 0 and "<unk>" not in capsys.readouterr().out


def test_going_on_from_a_model(trained, folder, tmp_path, capsys):
    command = [
        "train",
        "toy",
        "--data",
        str(folder),
        "--init",
        str(trained / "model"),
        "--processes",
        "1",
    ]
    still = [
        f"--set=training.{k}.{name}={value}"
        for k in range(3)
        for name, value in (("lr", 1e-9), ("steps", 1), ("batch", 2))
    ]
    assert main([*command, "--out", str(tmp_path / "run"), *still]) == 0
    old, new = (load_file(o / "model" / "stage0.safetensors") for o in (trained, tmp_path / "run"))
    assert old.keys() == new.keys() and all(
        torch.allclose(old[k].float(), new[k].float(), atol=1e-3) for k in old
    )
    assert max(v.abs().max() for v in old.values()) > 0.1
    assert (
        main([*command, "--out", str(tmp_path / "other"), "--set", "stages.0.network.dim=32"]) == 2
    )
    assert "dim: 16 on disk, 32 now" in capsys.readouterr().err
    assert main(["train", "toy", "--data", str(folder), "--init", "./nowhere"]) == 2
    assert "no such directory" in capsys.readouterr().err


def test_a_folder_with_the_name_of_a_shipped_model_is_none(tmp_path, monkeypatch):
    "As for `--model`; the folder is `./toy`."
    (tmp_path / "toy").mkdir()
    monkeypatch.chdir(tmp_path)
    assert start_from(toy(), "toy").init == "toy"


def test_the_base_alone_is_trained_further_and_the_enlargers_stay(
    trained, folder, tmp_path, capsys
):
    run, model = tmp_path / "a run", ["--init", str(trained / "model")]
    command = ["train", "toy", "--data", str(folder), *model, "--processes=1", "--out", str(run)]
    command += [f"--set=training.{k}.steps=1" for k in range(3)]
    command += [f"--set=training.{k}.batch=2" for k in range(3)]
    assert main([*command, "--stage", "0"]) == 0
    told = capsys.readouterr().out
    assert "samples.png" in told and "never trained" not in told  # all three draw
    assert f"--model '{run / 'model'}'" in told  # as a shell needs it
    was, now = (load_directory(o / "model")[0] for o in (trained, run))
    same = {name: all(torch.equal(v, now[name][k]) for k, v in was[name].items()) for name in was}
    assert same == dict(stage0=False, stage1=True, stage2=True)
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert f"128 px: weights of {trained / 'model'}, as the run began" in told
    exported = load_directory(tmp_path / "out")[0]
    assert all(torch.equal(v, now[n][k]) for n in now for k, v in exported[n].items())
    assert Imagen.from_pretrained(tmp_path / "out").sample(["a"], steps=1).shape[-1] == 512

    capsys.readouterr()
    assert main([*command, "--stage", "0"]) == 0 and "is finished" in capsys.readouterr().out
    assert main([*command, "--stage", "2"]) == 0 and "is finished" not in capsys.readouterr().out
    after = load_directory(run / "model")[0]
    assert torch.equal(*(next(iter(o["stage0"].values())) for o in (now, after)))
    assert any(not torch.equal(v, after["stage2"][k]) for k, v in now["stage2"].items())
    assert not list(run.glob("samples-*.png"))  # the overview is the newest


def test_a_model_of_fewer_stages_is_where_a_cascade_begins(trained, folder, tmp_path, capsys):
    whole = Imagen.from_pretrained(trained)
    Imagen(whole.encoder, whole.stages[:1]).save_pretrained(tmp_path / "base")
    command = ["train", "toy", "--data", str(folder), "--processes=1", "--init"]
    few = [f"--set=training.{k}.{n}" for k in range(3) for n in ("steps=1", "batch=2")]
    few += [f"--set=stages.{k}.network.channels=(16,16)" for k in (1, 2)]
    run = tmp_path / "run"
    assert main([*command, str(tmp_path / "base"), "--stage=1", *few, "--out", str(run)]) == 0
    stages = Imagen.from_pretrained(run).stages
    assert [o.is_trained for o in stages] == [True, True, False]
    for old, new in zip(whole.stages[0].network.parameters(), stages[0].network.parameters()):
        assert torch.equal(old.half(), new.half())

    assert main(["train", "paper", *command[2:], str(tmp_path / "base")]) == 2
    told = capsys.readouterr().err
    assert "got stages of 32 px in" in told and "the 64, 256, 1024 of recipe paper" in told


def test_every_caption_of_a_picture_is_encoded_and_trained_on(folder, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    for p in folder.glob("?.png"):
        (many / p.name).write_bytes(p.read_bytes())
        (many / p.name).with_suffix(".txt").write_text(
            "\n".join(f"picture {p.stem}{k}" for k in "abc")
        )
    command = [
        "train",
        "toy",
        "--data",
        str(many),
        "--out",
        str(tmp_path / "run"),
        *TINY,
        "--stage",
        "0",
        "--set=training.0.steps=12",
    ]
    assert main(command) == 0  # eight epochs: a caption that is not in the cache would be an error
    cache = EmbeddingCache.open(tmp_path / "run" / "captions")
    assert len(cache) == 18 and all(f"picture {i}{k}" in cache for i in range(6) for k in "abc")
    assert (
        main(["embed", str(many), "--out", str(tmp_path / "cache")]) == 0
        and len(EmbeddingCache.open(tmp_path / "cache")) == 18
    )


def test_own_pictures_are_chosen_as_the_loader_does(folder, tmp_path, capsys):
    for i in range(6):
        shutil.copy(folder / f"{i}.png", tmp_path)
    Image.open(folder / "0.png").resize((40, 40)).save(tmp_path / "small.png")
    rows = [f"gone.png\t{name}.png\tno\ttitle {name}" for name in (*range(6), "small")]
    (tmp_path / "list.tsv").write_text("\n".join(["thumb\tpath\tnote\ttitle", *rows]))
    command = ["train", "toy", "--out", str(tmp_path / "run"), *TINY, "--stage", "2"]
    own = [
        "--data",
        str(tmp_path / "list.tsv"),
        "--image-column",
        "path",
        "--caption-column",
        "title",
        "--min-size",
        "50",
        "--held-out",
        ".2",
    ]
    assert main([*command, *own]) == 0
    recorded = setup.load_recipe(tmp_path / "run").data
    assert recorded == DataConfig(
        source=str(tmp_path / "list.tsv"),
        image_column="path",
        caption_column="title",
        min_size=50,
        held_out=0.2,
    )
    wanted = load_captioned(
        tmp_path / "list.tsv",
        512,
        image_column="path",
        caption_column="title",
        min_size=50,
        held_out=0.2,
    )
    assert (
        0 < len(wanted) < 6
        and setup.open_data(setup.load_recipe(tmp_path / "run")).identity == wanted.identity
    )
    assert (
        json.loads((tmp_path / "run" / "512px" / "config.json").read_text())["data"]
        == wanted.identity
    )
    cache = EmbeddingCache.open(tmp_path / "run" / "captions")
    assert len(cache) == len(wanted) and all(wanted.caption(i) in cache for i in range(len(wanted)))
    capsys.readouterr()
    assert main([*command, *own]) == 0
    assert (
        main([*command, *own[:-2]]) == 2
        and "data.held_out: 0.2 on disk, 0.0 now" in capsys.readouterr().err
    )
    assert (
        main([*command, "--min-size", "50"]) == 2 and "only with --data" in capsys.readouterr().err
    )
    assert main([*command, *own[:-1], "7"]) == 2 and "a share below 0.5" in capsys.readouterr().err


def processes_under(pid: int) -> list[int]:
    "All that a process started, and what those started."
    mine = [
        int(o)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for o in (task / "children").read_text().split()
    ]
    return mine + [o for child in mine for o in processes_under(child)]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_a_killed_training_process_ends_the_run_and_nothing_is_lost(folder, tmp_path):
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path), OMP_NUM_THREADS="1")

    def command(out):
        return [
            sys.executable,
            "-m",
            "imagen_nb.cli",
            "train",
            "toy",
            "--data",
            str(folder),
            "--out",
            str(tmp_path / out),
            "--stage",
            "0",
            *TINY[:-1],
            "--processes=2",
            "--set=training.0.steps=40",
            "--set=training.0.save_every=5",
        ]

    child = subprocess.Popen(command("killed"), env=env, stderr=subprocess.PIPE, text=True)
    saved = tmp_path / "killed" / "32px" / "step_00000010"
    while not saved.exists() and child.poll() is None:  # however busy the machine is
        time.sleep(0.02)
    workers = [
        o
        for o in processes_under(child.pid)
        if b"imagen_nb.runs.work" in Path(f"/proc/{o}/cmdline").read_bytes()
        and b"torch.distributed" not in Path(f"/proc/{o}/cmdline").read_bytes()
    ]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    err = child.communicate()[1]
    assert child.returncode == 1
    assert not (saved.parent / "step_00000040").exists()  # it did not go on without the other
    assert (
        "a training process ended with an error" in err
        and "Run the same command to go on" in err.strip().splitlines()[-1]
    )
    for out in ("killed", "whole"):
        subprocess.run(command(out), env=env, check=True, capture_output=True)
    killed, whole = (
        load_file(tmp_path / out / "32px" / "step_00000040" / "network.safetensors")
        for out in ("killed", "whole")
    )
    assert killed.keys() == whole.keys() and all(torch.equal(killed[k], whole[k]) for k in killed)


@pytest.mark.slow
@pytest.mark.parametrize("number, processes", [(signal.SIGINT, 2), (signal.SIGTERM, 1)])
def test_a_stopped_run_goes_on(folder, tmp_path, number, processes):
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "imagen_nb.cli",
        "train",
        "toy",
        "--data",
        str(folder),
        "--out",
        str(out),
        "--stage",
        "0",
        *TINY[:-1],
        f"--processes={processes}",
        "--set=training.0.steps=40",
        "--set=training.0.warmup=41",
    ]
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path), OMP_NUM_THREADS="1")
    child = subprocess.Popen(
        command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (out / "32px" / "log.jsonl").exists() and child.poll() is None:
        time.sleep(0.05)  # step 20
    if number == signal.SIGINT:
        os.killpg(child.pid, number)  # as a terminal does
    else:
        child.send_signal(number)
    err = child.communicate()[1]
    assert (
        child.returncode == 130 and "un the same command to go on" in err.strip().splitlines()[-1]
    ), err[-2000:]
    assert "Traceback" not in err and err.count("stopped at step") == 1  # of two processes, too
    step = max(int(p.name.split("_")[1]) for p in (out / "32px").glob("step_*"))
    assert 20 <= step < 40
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("longer than steps") == 1  # the first process speaks for all
    rows = [json.loads(o)["step"] for o in (out / "32px" / "log.jsonl").read_text().splitlines()]
    assert rows == sorted(set(rows)) and rows[-1] == 40


def test_a_run_that_has_not_finished_is_exported(folder, tmp_path, capsys):
    "Averaged weights of the stages that have some; the others cannot draw."
    run, model = tmp_path / "run", tmp_path / "model"
    assert (
        main(["export", str(run), str(model)]) == 2
        and "expected the directory of a run" in capsys.readouterr().err
    )
    assert (
        main(["train", "toy", "--data", str(folder), "--out", str(run), "--stage", "0", *TINY]) == 0
    )
    shutil.rmtree(run / "model")
    capsys.readouterr()
    assert main(["export", str(run), str(model)]) == 0
    assert (
        "32 px: averaged weights of step 2\n128 px: no checkpoint yet\n512 px: no"
        in capsys.readouterr().out
    )
    assert main(["export", str(run), str(model)]) == 0
    assert "the model that is there is replaced" in capsys.readouterr().out
    imagen, average = (
        Imagen.from_pretrained(model),
        load_file(run / "32px" / "step_00000002" / "average.safetensors"),
    )
    assert [o.is_trained for o in imagen.stages] == [True, False, False]
    assert all(
        torch.equal(v, average[k].half().float())
        for k, v in imagen.stages[0].network.state_dict().items()
    )
    assert imagen.sample(["a"], stages=1, steps=1).shape == (1, 3, 32, 32)
    with pytest.raises(ValueError, match="128 px stage was never trained"):
        imagen.sample(["a"], steps=1)
    shutil.rmtree(run / "32px")
    assert (
        main(["export", str(run), str(tmp_path / "none")]) == 2
        and "got no checkpoint of any stage" in capsys.readouterr().err
    )
    assert not (tmp_path / "none").exists()


def test_other_sizes_and_levels(tmp_path, capsys):
    command = ["sample", "a red circle", "two blue stars", "--out", str(tmp_path), "--steps", "1"]
    assert main([*command, "--n", "2", "--size", "8x12", "--aug-t", "0,.05,.02"]) == 0
    assert sorted(p.name for p in tmp_path.glob("*-*.png")) == [
        f"{name}-seed{k}.png" for name in ("a-red-circle", "two-blue-stars") for k in (0, 1)
    ]
    assert {Image.open(p).size for p in tmp_path.glob("*-*.png")} == {(96, 64)}
    pixels = {Image.open(p).tobytes() for p in tmp_path.glob("*-*.png")}
    assert (
        len(pixels) == 4
        and main([*command[:2], *command[3:], "--size", "8x12", "--aug-t", ".1"]) == 0
    )
    assert Image.open(tmp_path / "a-red-circle-seed0.png").tobytes() in pixels  # not replaced
    assert Image.open(tmp_path / "a-red-circle-seed0-2.png").tobytes() not in pixels
    capsys.readouterr()
    for extra, words in (
        (["--size", "8"], "as in 32x48"),
        (["--size", "10x12"], "got 10 x 12 pixels, expected multiples of 4; the nearest is 8 x 12"),
        (["--aug-t", "2"], "expected a number, 0 to 1"),
        (["--aug-level", "much"], "got 'much', expected a number"),
        (["--aug-t", "0,1"], "--aug-t: got 2 values"),
    ):
        assert main([*command, *extra]) == 2 and words in capsys.readouterr().err, extra


def test_upscale(trained, folder, tmp_path, capsys, monkeypatch):
    for size, first in ((40, 32), (128, 128), (300, 128)):
        Image.open(folder / "1.png").resize((size, size + 20)).convert("LA").save(
            tmp_path / f"{size}.png"
        )
        assert (
            main(
                [
                    "upscale",
                    str(tmp_path / f"{size}.png"),
                    "a red circle",
                    "--model",
                    str(trained / "model"),
                    "--steps",
                    "1",
                ]
            )
            == 0
        )
        assert Image.open(tmp_path / f"{size}-512px.png").size == (512, 512)
        assert f"is taken to {first} px" in capsys.readouterr().out
    (tmp_path / "bad.png").write_bytes(b"no picture")
    assert main(["upscale", str(tmp_path / "bad.png"), "a", "--model", str(trained / "model")]) == 2
    assert (
        main(["upscale", str(tmp_path / "none.png"), "a", "--model", str(trained / "model")]) == 2
    )
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2 and "JPEG" in lines[0] and "none.png" in lines[1]
    monkeypatch.setattr(Imagen, "sample", lambda *_, **__: 1 / 0)  # nothing is drawn before that
    for out, words in (("none", "none.png"), ("40.png/x.png", "file of this name")):
        command = ["upscale", str(tmp_path / "40.png"), "a", "--model", str(trained)]
        assert main([*command, "--out", str(tmp_path / out)]) == 2
        assert words in capsys.readouterr().err


def test_embed_data_env(folder, tmp_path, capsys):
    (tmp_path / "captions.txt").write_text("a red circle\na blue square\na red circle\n")
    assert main(["embed", str(tmp_path / "captions.txt"), "--out", str(tmp_path / "cache")]) == 0
    assert "2 different captions of 3" in capsys.readouterr().out
    assert main(["embed", str(folder), "--out", str(tmp_path / "more")]) == 0
    (folder / "zero.png").write_bytes(b"")
    assert main(["data", str(folder), "--out", str(tmp_path / "data.png")]) == 0
    (folder / "zero.png").unlink()
    out = capsys.readouterr().out
    assert "empty file" in out and "1" in out and Image.open(tmp_path / "data.png").width > 300
    command = ["data", str(folder), "--out", str(tmp_path / "data.png")]
    assert main(command) == 0 and not list(tmp_path.glob("data-*"))  # the very same grid
    assert main([*command[:-1], str(tmp_path / "data")]) == 2
    assert "data.png" in capsys.readouterr().err and not (tmp_path / "data").exists()
    assert main(["env"]) == 0 and "torch" in capsys.readouterr().out


class Four:
    "Pictures of four sides that are read at once."

    def __len__(self):
        return 4

    def sizes(self):
        return np.array([8, 16, 32, 64])

    def images(self, indices, size):
        return None


def test_a_source_is_told_in_epochs_and_sides():
    recipe = SimpleNamespace(
        stages=[SimpleNamespace(size=32)], training=[SimpleNamespace(steps=10, batch=6)]
    )
    [line] = look.forecast(Four(), recipe)
    assert "stage 0, 32 px: 2 pictures are smaller" in line
    found = [look.clock(seconds) for seconds in (99.94, 100, 5999, 6000)]
    assert found == ["99.9 s", "2 min", "100 min", "1.7 h"]


def test_a_run_s_request_is_checked_before_anything_is_written():
    for stage, processes in ((None, None), (0, 1), (2, 4)):
        run.check_request(toy(), stage, processes, 1000)
    for wrong in ((3, None, 2), (-1, None, 2), (None, 0, 2), (None, None, 1), (None, None, 1001)):
        with pytest.raises(ValueError, match="train: "):
            run.check_request(toy(), *wrong)


def brief(*changes):
    "The recipe toy with a step for each stage, changed."
    recipe = toy()
    for text in (*(f"training.{k}.steps=1" for k in range(3)), *changes):
        recipe = change(recipe, *text.split("="))
    return recipe


@pytest.mark.parametrize("name", ["captions.json", "samples", "samples.png"])
def test_a_folder_with_files_of_somebody_else_is_no_place_for_a_run(name, tmp_path):
    (tmp_path / name).write_text("mine")
    job = Job(out=str(tmp_path), held_out=2, execution=Execution())
    with pytest.raises(ValueError, match=f"got {name} without a config.json"):
        run.prepare(brief(), tmp_path, job)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["mine"]


def test_stages_that_do_not_fit_each_other_are_refused_before_training(tmp_path):
    job = Job(out=str(tmp_path), stage=0, held_out=2, execution=Execution())
    for wrong, words in (
        ("stages.0.size=64", "stages.1.lowres_size, got 32, expected 64, the size of stages.0"),
        ("stages.1.size=256", "stages.2.lowres_size, got 128, expected 256"),
    ):
        with pytest.raises(ValueError, match=words):
            run.prepare(brief(wrong), tmp_path, job)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "argv, words",
    [
        (["train", "nonsense"], "expected one of emoji, toy, toy-full, paper"),
        (["train", "toi"], "did you mean toy?"),
        (["train", "toy", "--held-out", "0"], "at least 2"),
        (["train", "toy", "--stage", "3"], "invalid choice: 3"),
        (["train", "toy", "--steps", "3,4"], "for each of 3"),
        (["train", "toy", "--device", "tpu"], "invalid choice: 'tpu'"),
        (["train", "toy", "--track", "wandbb"], "did you mean wandb?"),
        (["train", "toy", "--processes", "0"], "1 or more"),
        (["train", "paper"], "--data SOURCE"),
        (["train", "toy", "--data", "./nowhere"], "does not exist"),
        (["train", "toy", "--set", "steps"], "expected path=value"),
        (["train", "toy", "--set", "stages.0.network.dims=3"], "did you mean dim?"),
        (["train", "toy", "--set", "training.3.lr=1"], "from 0 to 2"),
        (["sample", "a red circle", "--model", "./nowhere"], "no such directory"),
        (["data", "./nowhere"], "does not exist"),
        (["sample", "a", "--n", "0"], "1 or more"),
        (["sample", "a", "--model", "tooy"], "did you mean toy?"),
        (["data", "nowhere"], "does not exist"),
        (["data", "a/b/c.csv"], "does not exist"),
        (["doctor", "./nowhere"], "expected the directory of a run"),
        (["embed", "./nowhere", "--out", "x"], "does not exist"),
    ],
)
def test_mistakes_are_one_line(argv, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert words in err and len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_a_word_without_a_name_is_drawn_as_the_nearest_and_told(capsys, monkeypatch, tmp_path):
    drawn, model = [], SimpleNamespace(encoder=TextEncoder.english(), stages=[])
    monkeypatch.setattr("imagen_nb.cli.load_model", lambda args: model)
    monkeypatch.setattr(
        results, "draw_captions", lambda _, asked, *a, **k: drawn.append((asked, k["drawn"])) or []
    )
    command = ["sample", "a 3d emoji of a kitty", "a lemon", "--out", str(tmp_path)]
    assert main(command) == 0
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "'a 3d emoji of a kitty'" in told[0] and "--literal" in told[0]
    assert main([*command, "--literal"]) == 0 and not capsys.readouterr().err
    asked = command[1:3]  # files keep the names that the user knows
    assert drawn == [(asked, ["a 3d emoji of a cat face", "a lemon"]), (asked, asked)]


@pytest.mark.parametrize(
    "options, words",
    [
        (["--steps", "two"], "a whole number"),
        (["--steps", "1,2"], "for each of 3"),
        (["--w", "strong"], "a number"),
        (["--sampler", "euler"], "sampler"),
        (["--threshold", "much"], "threshold"),
        (["--steps", "0"], "steps"),
    ],
)
def test_wrong_options_of_sample(trained, options, words, capsys, tmp_path):
    assert (
        main(
            [
                "sample",
                "a",
                "--model",
                str(trained / "model"),
                "--out",
                str(tmp_path / "x"),
                *options,
            ]
        )
        == 2
    )
    err = capsys.readouterr().err.strip().splitlines()
    assert words in err[-1] and "Traceback" not in "".join(err)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["sampel", "x"], "Did you mean sample?"),
        ([], "expected a command: train, plan, sample"),
        (["sample"], "required: CAPTION"),
        (["sample", "x", "--step", "3", "--frobnicate"], "--frobnicate"),
        (["sample", "x", "--sed", "3"], "Did you mean --seed?"),
        (["sample", "x", "--seed", "q"], "invalid int value"),
        (["train", "toy", "--stages", "1"], "Did you mean --stage?"),
    ],
)
def test_wrong_words(argv, words, capsys):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert words in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help(name, capsys):
    assert main([name, "--help"] if name else ["--help"]) == 0
    out = capsys.readouterr().out
    assert "work" not in out.replace("networks", "").replace("network", "")
    assert all(o in out for o in (COMMANDS if not name else [name]))
    assert not name or ("examples:" in out) == bool(USES[name].examples)


def test_recipes_are_complete():
    for recipe in (make() for make in RECIPES.values()):
        assert len(recipe.stages) == len(recipe.training) == 3
        assert find_recipe(recipe.name, 3) == RECIPES[recipe.name](3) and {
            t.seed for t in RECIPES[recipe.name](3).training
        } == {3}
    assert paper().training[0].optimizer == "adafactor" and paper().training[1].optimizer == "adam"
    assert {t.batch for t in paper().training} == {2048} and {
        t.steps for t in paper().training
    } == {2_500_000}
    assert [s.schedule for s in paper().stages] == [
        "cosine",
        "cosine",
        "linear",
    ] and paper().stages[2].crop == 256
    assert {s.target for s in paper().stages} == {"eps"} and {
        s.caption_drop for s in paper().stages
    } == {0.1}
    assert toy_full().level == "full" and toy().level == "quick" and paper().level is None
    with pytest.raises(ValueError, match="training"):
        replace(toy(), training=())


@pytest.mark.parametrize(
    "path, text, value",
    [
        ("training.0.steps", "1e3", 1000),
        ("training.1.lr", "1", 1.0),
        ("stages.0.threshold", "none", None),
        ("stages.0.threshold", "static", "static"),
        ("stages.1.network.channels", "(32, 64)", (32, 64)),
        ("stages.1.network.self_attention", "(True, False)", (True, False)),
        ("stages.2.time_law", "None", None),
        ("stages.2.time_law", "[1, 2]", (1.0, 2.0)),
        ("encoder", "google/t5-v1_1-small", "google/t5-v1_1-small"),
        ("init", "12", "12"),
        ("data.min_size", "64", 64),
        ("data.image_column", "12", "12"),
        ("stages.1.is_residual", "false", False),
    ],
)
def test_typed_changes(path, text, value):
    recipe = replace(toy(), data=DataConfig(source="photos"))
    new = change(recipe, path, text)
    for name in path.split("."):
        new = new[int(name)] if name.isdecimal() else getattr(new, name)
    assert (
        new == value
        and type(new) is type(value)
        and recipe == replace(toy(), data=DataConfig(source="photos"))
    )


@pytest.mark.parametrize(
    "path, text, words",
    [
        ("stages.0.network.dim", "big", "expected a whole number"),
        ("stages.0.is_residual", "3", "expected True or False"),
        ("stages.0.steps", "1.5", "expected a whole number"),
        ("stages.1.network.channels", "(1, 'a')", "expected a tuple of .*whole number"),
        ("stages.0", "3", "expected a name after"),
        ("stages", "3", "expected a name after"),
        ("stages.0.size.x", "3", "has no parts"),
        ("training.0.optimizer", "sgd", "expected one of"),
        ("stages.zero.size", "3", "from 0 to 2"),
        ("data", "photos", "expected .*DataConfig"),
        ("data.min_size", "3", "has no parts"),
    ],
)
def test_refused_changes(path, text, words):
    with pytest.raises(ValueError, match=words):
        change(toy(), path, text)


# ---------------------------------------------------------------- every command, every option

COMMAND_PARSERS = next(
    a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)
).choices
OPTIONS = [
    (name, action)
    for name, own in COMMAND_PARSERS.items()
    for action in own._actions
    if action.option_strings and not isinstance(action, argparse._HelpAction)
]


@pytest.mark.parametrize("name, action", OPTIONS, ids=lambda o: o if isinstance(o, str) else o.dest)
def test_an_option_tells_its_default(name, action):
    if action.nargs == 0 or "may be repeated" in action.help:
        return
    told = action.help.replace("%%", "%")
    assert re.search(r"default|needed|the same as|nothing else", told), told
    if action.default not in (None, [], argparse.SUPPRESS):
        assert re.search(
            rf"\(default:? {re.escape(f'{action.default}')}\b|{action.default}[^;]* \(default\)",
            told,
        ), told


REFUSE = """
import sys
class Heavy:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "numpy", "PIL", "transformers", "datasets", "matplotlib", "tqdm"):
            raise SystemExit(f"imported {name}")
sys.meta_path.insert(0, Heavy())
from imagen_nb.cli import main
bad = []
for words in sys.stdin.read().splitlines():
    command = words.split("\t")
    try:
        code = main(command)
    except SystemExit as stop:
        code = stop.code
    if code != (0 if command[-1] in ("--help", "--version") else 2):
        bad.append(f"{words}: {code}")
sys.exit("; ".join(bad) or 0)
"""


def refusals():
    "For each command: help, an unknown option, and for each option that reads a value one that it cannot be."
    yield ["--version"]
    yield ["--help"]
    for name, own in COMMAND_PARSERS.items():
        yield [name, "--help"]
        positionals = [a for a in own._actions if not a.option_strings and a.nargs != "?"]
        fine = ["toy" if a.dest in ("recipe", "model") else "x" for a in positionals]
        yield [name, *fine, "--frobnicate"]
        for action in own._actions:
            plain = action.type in (None, words_of, path_of) and not action.choices
            if action.option_strings and action.nargs != 0 and not plain:
                for flag in action.option_strings:
                    yield [name, *fine, flag, "no such value"]


def test_what_is_refused_costs_no_heavy_import():
    lines = "\n".join("\t".join(row) for row in refusals())
    assert lines.count("\n") > 80
    env = dict(os.environ, PYTHONPATH=str(Path(__file__).resolve().parents[1]))
    done = subprocess.run(
        [sys.executable, "-c", REFUSE], input=lines, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for line in done.stderr.strip().splitlines():
        assert line.startswith("imagen-nb "), line


def test_what_is_not_there_costs_no_heavy_import_and_asks_no_hub(tmp_path):
    (tmp_path / "photos").mkdir()
    rows = [
        ["data", "nothere"],
        ["data", "photos/nothere"],  # photos is a folder of this machine
        ["data", "~/nothere"],
        ["train", "toy", "--data", "/nothere"],
        ["train", "toy", "--init", "photos/nothere"],
        ["train", "paper"],
        ["train", "toy", "--min-size", "3"],
        ["train", "toy", "--data", "photos", "--held-out", "0.5"],
        ["sample", "a", "--model", "nothere"],
        ["sample", "a", "--encoder", "./nothere"],
        ["upscale", "nothere.png", "a"],
        ["export", "nothere", "out"],
        ["doctor", "nothere"],
        ["rate", "nothere", "photos"],
        ["embed"],
        ["evaluate", "emoji"],
        ["evaluate", "nothere", "--data", "photos"],
        ["drawbench", "nothere"],
    ]
    env = dict(os.environ, PYTHONPATH=str(Path(__file__).resolve().parents[1]))
    done = subprocess.run(
        [sys.executable, "-c", REFUSE],
        input="\n".join("\t".join(row) for row in rows),
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stderr.strip().splitlines()) == len(rows), done.stderr


def test_what_exists_is_what_the_command_line_says_exists():
    assert set(options.RECIPES) == set(RECIPES) and set(options.GPUS) == set(GPUS)
    ours = {name for name, f in SAMPLERS.items() if f.__module__.startswith("imagen_nb.")}
    assert set(options.SAMPLERS) == ours and set(options.TRACKERS) == set(TRACKERS)
    drawn = {name for name, make in RECIPES.items() if make().level is not None}
    assert set(options.DRAWN_SCENES) == drawn
    for threshold in options.THRESHOLDS:
        change(toy(), "stages.0.threshold", threshold)


def test_plain_words_mean_what_short_ones_mean():
    def read(*words):
        values = vars(parser().parse_args(words))
        return {name: value for name, value in values.items() if name != "parser"}

    short = [
        "--w",
        "3,1",
        "--aug-t",
        "0,.1",
        "--n",
        "4",
        "--sampler",
        "ddim",
        "--threshold",
        "none",
    ]
    plain = ["--guidance-scale", "3,1", "--aug-level", "0,.1", "--num-images", "4"]
    plain += ["--scheduler", "ddim", "--thresholding", "none"]
    assert read("sample", "a", *short) == read("sample", "a", *plain)
    assert read("sample", "a", *short)["w"] == [3.0, 1.0]
    assert read("export", "a", "b") == read("export", "a", "--out", "b")


def test_steps_of_a_training_in_short():
    def steps(*words):
        args = parser().parse_args(["train", "toy", *words])
        return [(t.steps, t.batch, t.lr) for t in wanted(args).training]

    was = [(t.steps, t.batch, t.lr) for t in toy().training]
    assert steps("--steps", "20", "--lr", "1e-3") == [(20, b, 1e-3) for _, b, _ in was]
    assert steps("--steps", "3,4,5")[2][0] == 5
    assert steps("--stage", "1", "--batch-size", "8") == [was[0], (was[1][0], 8, was[1][2]), was[2]]
    assert steps("--steps", "20", "--set", "training.0.steps=7")[0][0] == 7


def test_a_short_training_reads_few_captions():
    world, valid = ShapesWorld("train"), ShapesWorld("valid")
    recipe = change(change(toy(), "training.0.steps", "20"), "training.0.batch", "8")
    drawn, looks = setup.asked_for(recipe, 0, world, valid)
    assert 160 <= len(drawn) <= 160 + 64 + 10 and len(looks) <= 64 + 10 < len(valid)
    stage = Stage(recipe.stages[0])
    text = {}  # what is read, without reading it
    samples = Samples(stage.config, world, text, recipe.training[0])
    rows = [
        permute(n, len(world), samples.config.seed)
        for s in range(20)
        for n in samples.index(s).tolist()
    ]
    assert set(rows) <= drawn and 0 in drawn
    looked = [permute(HELD_BACK * len(valid) + k, len(valid), 0) for k in range(VALIDATED)]
    assert set(looked) <= looks
    everything = setup.asked_for(toy(), None, ShapesWorld("train", length=40))
    assert list(everything[0]) == list(range(40))


def test_progress_is_a_line_now_and_then_where_nobody_watches():
    code = "import os; from imagen_nb.cli import LINES; os.environ.update(LINES)\n"
    code += "from tqdm.auto import tqdm\nfor _ in tqdm(range(500), 'drawing'): pass"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=dict(os.environ, PYTHONPATH=str(Path(__file__).resolve().parents[1])),
        capture_output=True,
        text=True,
    )
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    assert len(said) == 2 and said[0].startswith("drawing:   0%| 0 of 500"), said
    assert "drawing: 100%| 500 of 500" in said[1] and "\x1b" not in done.stderr


def test_nothing_is_written_in_colour():
    for path in Path(setup.__file__).parents[1].rglob("*.py"):
        assert not re.search(r"\\x1b|\\033|\\u001b", path.read_text(encoding="utf-8")), path


# ---------------------------------------------------------------- numbers and their nouns

NOUN = "pictures|captions|stages|steps|prompts|files|tokens|values|lines|errors|warnings|notes|validations"


def test_a_number_has_its_noun():
    assert [counted(n, "picture") for n in (0, 1, 2, 20570)] == [
        "0 pictures",
        "1 picture",
        "2 pictures",
        "20,570 pictures",
    ]
    assert counted(1, "picture is", "pictures are") == "1 picture is"
    assert counted(2, "picture is", "pictures are") == "2 pictures are"


def loose_counts(text: str) -> list[str]:
    "Numbers in f-strings with a noun that does not follow them."
    found = []
    for node in ast.walk(ast.parse(text)):
        parts = node.values if isinstance(node, ast.JoinedStr) else []
        for value, after in zip(parts, parts[1:]):
            words = after.value if isinstance(after, ast.Constant) else ""
            if isinstance(value, ast.FormattedValue) and re.match(rf" ({NOUN})\b", str(words)):
                found.append(f"{ast.unparse(value.value)}{words[:20]}")
    return found


PLURAL = {  # what is never one, or may not change
    "captioned.py": ["len(self) pictures"],  # an identity on disk
    "captions.py": ["self.tokens tokens each:"],  # a mean
    "plan.py": ["n or 1000000 captions of", "WORDS tokens"],  # a data set; a constant
}


def test_what_commands_say_is_singular_where_it_is_one():
    assert loose_counts("f'{n} pictures drawn'") == ["n pictures drawn"]
    package = Path(setup.__file__).parents[1]
    for folder in ("runs", "pictures", "engine"):
        for path in [*(package / folder).rglob("*.py"), package / "cli.py"]:
            found = loose_counts(path.read_text(encoding="utf-8"))
            known = PLURAL.get(path.name, [])
            assert [o for o in found if o.strip() not in known] == [], path.name
