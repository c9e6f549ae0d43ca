"""The command line: a whole tiny run, going on, finished runs, and errors in one line."""
import json
from dataclasses import replace
from pathlib import Path

import pytest

from imagen_nb import recipes
from imagen_nb.cli import main, sample, train
from imagen_nb.recipes import Recipe, paper, toy


def tiny(seed=0):
    "The toy recipe, a few steps of each stage."
    full = toy(seed)
    stages = tuple(replace(s, steps=2) for s in full.stages)
    training = tuple(replace(t, batch=4, steps=2, warmup=1) for t in full.training)
    return Recipe(name="tiny", encoder=full.encoder, level=full.level, stages=stages, training=training)


@pytest.fixture
def world(monkeypatch):
    "A recipe that takes seconds, on a small part of the training split."
    from imagen_nb import cli
    from imagen_nb.data import ShapesWorld
    monkeypatch.setitem(recipes.RECIPES, "tiny", tiny)
    monkeypatch.setattr(cli, "make_world", lambda plan, split: ShapesWorld(split, level="quick", length=40))


def test_train_then_sample(world, tmp_path, capsys):
    scores = train("tiny", tmp_path/"run", processes=1, held_out=2)
    assert {"32", "128", "512", "seconds"} == set(scores) and scores["512"]["all"]["all"]["n"] == 2
    for name in ("scores.json", "samples.png", "model/manifest.json", "samples/00001_512.png", "32px/log.jsonl"):
        assert (tmp_path/"run"/name).exists(), name
    assert train("tiny", tmp_path/"run", processes=1, held_out=2) == json.loads((tmp_path/"run"/"scores.json").read_text())
    assert "is finished" in capsys.readouterr().out
    paths = sample(["a red circle", "", "a red circle"], str(tmp_path/"run"/"model"), tmp_path/"pictures", seed=5, steps=1)
    assert [p.name for p in paths] == ["a-red-circle-seed5.png", "empty-seed6.png", "a-red-circle-seed7.png"]
    assert main(["sample", "a blue square", "--model", str(tmp_path/"run"/"model"), "--out", str(tmp_path/"more"), "--steps", "1"]) == 0
    assert len(list((tmp_path/"more").iterdir())) == 1


@pytest.mark.parametrize("argv, words", [
    (["train", "nonsense"], "expected one of"), (["train", "toy", "--held-out", "0"], "at least 2"),
    (["train", "toy", "--processes", "0"], "at least 1"), (["train", "paper"], "pictures of your own"),
    (["sample", "a red circle", "--model", "./nowhere"], "no such directory")])
def test_mistakes_are_one_line(argv, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert words in err and len(err.strip().splitlines()) == 1


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit): main(["--help"])
    out = capsys.readouterr().out
    assert "train" in out and "sample" in out and "Examples" in out


def test_recipes_are_complete():
    for recipe in (toy(), paper()):
        assert len(recipe.stages) == len(recipe.training) == 3
    assert paper().training[0].optimizer == "adafactor" and paper().training[1].optimizer == "adam"
    assert {t.batch for t in paper().training} == {2048} and {t.steps for t in paper().training} == {2_500_000}
    assert [s.schedule for s in paper().stages] == ["cosine", "cosine", "linear"] and paper().stages[2].crop == 256
    assert {s.target for s in paper().stages} == {"eps"} and {s.caption_drop for s in paper().stages} == {.1}
    with pytest.raises(ValueError, match="training"): replace(toy(), training=())
    assert Path(toy().name).name == "toy"
