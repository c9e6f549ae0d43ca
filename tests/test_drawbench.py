"Our suite, atom by atom: what is asked, who can answer, what is counted, and the command that draws and scores it."

import dataclasses
import json
import math
import re
import sys
from types import SimpleNamespace

import pytest
import torch

from imagen_nb.cli import main
from imagen_nb.data import render
from imagen_nb.drawbench import (
    CATEGORIES,
    READ,
    Atom,
    Prompt,
    answers,
    ask_scene,
    by_category,
    by_kind,
    can_read,
    find,
    mean_interval,
    own_prompts,
    score_answers,
)
from imagen_nb.evaluation import wilson
from imagen_nb.lab.prompts import read_published
from imagen_nb.pictures.emoji import emoji_objects
from imagen_nb.pictures.scenes import BACKGROUNDS, COLOURS, SHAPES, Scene, Thing
from imagen_nb.runs import drawbench as bench
from imagen_nb.store.files import assets

SUITE = own_prompts()
PLACES = [(0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)]


# ---------------------------------------------------------------- the suite


def test_as_many_prompts_in_each_category_as_drawbench_has():
    found = {name: sum(p.category == name for p in SUITE) for name in CATEGORIES}
    assert found == {name: n for name, (n, _) in CATEGORIES.items()}
    assert len(SUITE) == len({p.text for p in SUITE}) == sum(found.values()) == 200
    for world in READ:
        own = own_prompts(world)
        assert {p.category for p in own} == set(CATEGORIES) and {p.world for p in own} == {world}
    assert (assets() / "drawbench.json").stat().st_size < 40_000


def test_every_atom_is_a_claim_that_the_world_knows():
    kinds = {*READ["shapes"], *READ["emoji"], "text", "look"}
    for prompt in SUITE:
        assert prompt.atoms and len(set(prompt.atoms)) == len(prompt.atoms), prompt.text
        for atom in prompt.atoms:
            assert atom.kind in kinds, atom
            if atom.kind == "text":
                assert f'"{atom.words}"' in prompt.text
            if prompt.world == "emoji" and atom.kind == "object":
                assert atom.words in emoji_objects(), atom
            if prompt.world == "shapes" and atom.kind == "object":
                assert atom.words in SHAPES, atom
            if atom.kind == "background":
                assert atom.words in BACKGROUNDS, atom
    no_reader = [p.text for p in SUITE if not any(can_read(p, a) for a in p.atoms)]
    assert len(no_reader) == 2 and all('"' in text for text in no_reader)


def test_what_nobody_can_read_is_said_to_be_so():
    two = next(p for p in SUITE if "shark riding" in p.text)
    assert [a.kind for a in two.atoms if can_read(two, a)] == ["style"]  # the judge names one thing
    one = Prompt("Counting", "emoji", "two cats", (Atom("object", "cat"), Atom("count", "2 cat")))
    assert [can_read(one, a) for a in one.atoms] == [True, False]
    shapes = Prompt("Colors", "shapes", "", ())
    for kind, words, expected in [
        ("colour", "brown square", False),
        ("colour", "red square", True),
        ("relation", "red square left blue circle", True),
        ("relation", "square between circles", False),
        ("background", "white", True),
        ("background", "red", False),
        ("text", "RED", False),
        ("look", "red square", False),
        ("count", "12 square", True),
    ]:
        assert can_read(shapes, Atom(kind, words)) is expected, (kind, words)
    assert not can_read(Prompt("Text", "", "", ()), Atom("object", "circle"))


def drawing(prompt):
    "A scene that obeys a prompt of which everything can be read, by its atoms alone; None if it is too hard to place."
    things, background = {}, "white"
    for kind, words in prompt.atoms:
        if kind == "background":
            background = words
        elif kind in ("relation", "absent", "count"):
            continue
        else:
            *look, shape = words.split()
            own = things.setdefault(
                shape, dict(shape=shape, colour="red", size="big", fill="plain")
            )
            if look and own.get(f"said {kind}", look[0]) != look[0]:
                return None  # two things of one shape
            if look:
                value = {"shaded": "gradient"}.get(look[0], look[0])
                own |= {kind: value, f"said {kind}": look[0]}
    made = []
    for own, (x, y) in zip(things.values(), PLACES):
        looks = {k: own[k] for k in ("shape", "colour", "size", "fill")}
        made.append(Thing(**looks, x=x, y=y, r=0.115 if own["size"] == "small" else 0.17))
    return Scene(tuple(made), background)


def simple():
    "Prompts of one to four different shapes, without numbers or relations."
    for prompt in own_prompts("shapes"):
        kinds = {a.kind for a in prompt.atoms}
        if all(can_read(prompt, a) for a in prompt.atoms) and not kinds & {
            "relation",
            "absent",
            "count",
        }:
            scene = drawing(prompt)
            if scene and scene.things:
                yield prompt, scene


def test_a_drawing_that_obeys_is_all_right_and_one_that_does_not_is_not():
    found = list(simple())
    assert len(found) >= 20
    for prompt, scene in found[::3]:
        first, *others = scene.things
        colour = next(c for c in COLOURS if c not in {o.colour for o in scene.things})
        wrong = dataclasses.replace(
            scene,
            things=(dataclasses.replace(first, colour=colour), *others),
            background=next(b for b in BACKGROUNDS if b != scene.background),
        )
        right, false = answers([prompt, prompt], render([scene, wrong], 128))
        assert all(right), (prompt, right)
        broken = {a.kind for a, ok in zip(prompt.atoms, false) if not ok}
        claimed = {a.kind for a in prompt.atoms} & {"colour", "background"}
        assert broken >= claimed and "object" not in broken, (prompt, broken)


# ---------------------------------------------------------------- questions


def thing(shape, colour, x, y, size="big", fill="plain"):
    return Thing(shape, colour, size, fill, x, y, 0.17)


SCENE = Scene(
    (
        thing("circle", "red", 0.3, 0.5),
        thing("circle", "blue", 0.7, 0.5, "small"),
        thing("star", "red", 0.3, 0.9, fill="gradient"),
    ),
    "gray",
)


@pytest.mark.parametrize(
    "kind, words, holds",
    [
        ("object", "star", True),
        ("object", "ring", False),
        ("colour", "red circle", True),
        ("colour", "blue star", False),  # both words are there, in two things
        ("size", "small circle", True),
        ("fill", "shaded star", True),
        ("fill", "striped star", False),
        ("background", "gray", True),
        ("background", "white", False),
        ("count", "2 circle", True),
        ("count", "1 circle", False),
        ("count", "3 thing", True),
        ("count", "2 red thing", True),
        ("relation", "red circle left blue circle", True),
        ("relation", "blue circle left red circle", False),
        ("relation", "blue circle right red circle", True),
        ("relation", "circle above star", True),
        ("relation", "star below red circle", True),
        ("relation", "star above circle", False),
        ("relation", "ring above circle", False),
        ("absent", "ring", True),
        ("absent", "red star", False),
        ("absent", "blue star", True),
    ],
)
def test_one_question(kind, words, holds):
    assert ask_scene(SCENE, Atom(kind, words)) is holds


def test_a_thing_stands_in_no_relation_to_itself():
    scene = Scene(SCENE.things[:1], "gray")
    assert not any(
        ask_scene(scene, Atom("relation", f"circle {r} circle")) for r in ("left", "above")
    )
    assert find(SCENE, "thing") == list(SCENE.things)


def test_emoji_are_read_by_the_judge():
    reading = SimpleNamespace(object="cat", style="3d", tone="")
    judge = SimpleNamespace(read=lambda images: [reading])
    atoms = (Atom("object", "cat"), Atom("style", "flat"), Atom("count", "2 cat"))
    [said] = answers(
        [Prompt("Counting", "emoji", "two cats", atoms)], torch.zeros(1, 3, 32, 32), judge
    )
    assert said == [True, False, None]


def test_fills_are_asked_of_large_pictures_only():
    prompt = Prompt("Colors", "shapes", "", (Atom("fill", "striped circle"),))
    scene = Scene((thing("circle", "red", 0.5, 0.5, fill="striped"),), "white")
    assert answers([prompt], render([scene], 64)) == [[None]]
    assert answers([prompt], render([scene], 256)) == [[True]]
    with pytest.raises(ValueError, match="answers: images"):
        answers([prompt], torch.zeros(2, 3, 64, 64))


# ---------------------------------------------------------------- scores


def test_two_scores():
    assert score_answers([True, True]) == (1, 1)
    assert score_answers([True, False, False, True]) == (0.5, 0)
    atoms, right = score_answers([True, None])
    assert atoms == 1 and math.isnan(right)  # nobody knows whether all is right
    assert all(map(math.isnan, score_answers([None]))) and all(map(math.isnan, score_answers([])))


def test_a_mean_of_zeros_and_ones_has_wilsons_interval():
    found = mean_interval([1.0] * 7 + [0.0] * 3)
    assert (found["low"], found["high"]) == wilson(7, 10) and found["n"] == 10
    assert mean_interval([]) == {}


def test_pictures_of_one_prompt_are_one_observation():
    a = Prompt("Colors", "shapes", "a", (Atom("object", "star"), Atom("colour", "red star")))
    b = Prompt("Text", "shapes", "b", (Atom("object", "ring"), Atom("text", "X")))
    said = [[True, True], [True, False], [False, None], [False, None]]
    found = by_category([a, a, b, b], said)
    assert found["Colors"]["atoms"] == mean_interval([0.75])
    assert found["Colors"]["all_right"] == mean_interval([0.5])
    assert found["Text"] == dict(asked=1, atoms=mean_interval([0.0]), all_right={})
    assert found["all"]["atoms"] == mean_interval([0.75, 0.0]) and found["all"]["asked"] == 2
    kinds = by_kind([a, a, b, b], said)
    assert kinds["object"] == mean_interval([1.0, 0.0]) and kinds["text"] == {}
    assert kinds["colour"] == mean_interval([0.5])


# ---------------------------------------------------------------- the published prompts


@pytest.mark.parametrize("name, comma", [("a.csv", ","), ("a.tsv", "\t")])
def test_published_prompts_from_a_table(tmp_path, name, comma):
    rows = ["Prompts,Category", "A red x.,Colors", "A blue y.,Colors", "A blue y.,Colors", ",Text"]
    (tmp_path / name).write_text(
        "\ufeff" + "\n".join(rows).replace(",", comma) + "\n", encoding="utf-8"
    )
    assert read_published(tmp_path / name) == [("Colors", "A red x."), ("Colors", "A blue y.")]


def test_published_prompts_from_lines_and_from_the_hub(tmp_path, monkeypatch):
    rows = [dict(category="Text", prompts="write"), dict(category="Text", prompts="read")]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_published(tmp_path / "a.jsonl") == [("Text", "write"), ("Text", "read")]
    fake = SimpleNamespace(load_dataset=lambda name: dict(train=rows[:1], test=rows[1:]))
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert read_published("somebody/drawbench") == [("Text", "write"), ("Text", "read")]
    fake.load_dataset = lambda name: 1 / 0
    with pytest.raises(
        ValueError, match="somebody/drawbench, got ZeroDivisionError, expected .* Category"
    ):
        read_published("somebody/drawbench")


def test_what_to_fetch_is_said(tmp_path):
    with pytest.raises(ValueError, match="no such file, expected DrawBench as a table"):
        read_published(tmp_path / "drawbench.csv")
    (tmp_path / "a.csv").write_text("one,two\n1,2\n")
    with pytest.raises(ValueError, match="got columns one, two, expected Category and Prompts"):
        read_published(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("Category,Prompts\n")
    with pytest.raises(ValueError, match="got no rows"):
        read_published(tmp_path / "b.csv")


# ---------------------------------------------------------------- the commands


class Painter:
    "Draws a red circle for every caption, and notes what it was asked for."

    def __init__(self, colour="red"):
        self.asked, self.stages = [], [SimpleNamespace(is_trained=True)]
        scene = Scene((thing("circle", colour, 0.5, 0.5),), "white")
        self.image = render([scene], 128)

    def sample(self, captions, *, seeds, stages, **options):
        self.asked += zip(captions, seeds)
        return self.image.expand(len(captions), -1, -1, -1)


@pytest.fixture
def few(monkeypatch):
    "Three prompts of the suite."
    wanted = (
        "a red circle on a white background",
        "a circle but no square",
        'a pink cross labelled "X"',
    )
    own = tuple(p for p in SUITE if p.text in wanted)
    monkeypatch.setattr(bench, "own_prompts", lambda world=None: own)
    return own


def test_a_picture_is_made_once(few, tmp_path):
    painter, out = Painter(), tmp_path / "drawn"
    scores = bench.drawbench(painter, "painter", "shapes", out, 1)
    assert [seed for _, seed in painter.asked] == [0, 1, 2]
    assert scores["categories"]["Colors"]["all_right"]["mean"] == 1
    assert scores["categories"]["Text"]["atoms"]["mean"] == 0
    assert scores["categories"]["Text"]["all_right"] == {}
    assert json.loads((out / "scores.json").read_text()) == scores
    (out / "pictures" / "0001-0.png").unlink()  # stopped before this one
    assert bench.drawbench(painter, "painter", "shapes", out, 2) == scores | dict(n=2)
    assert [seed for _, seed in painter.asked[3:]] == [1, 3, 4, 5]
    assert bench.drawbench(painter, "painter", "shapes", out, 1)["n"] == 2  # none is lost
    assert len(painter.asked) == 7
    with pytest.raises(ValueError, match="another model"):
        bench.drawbench(painter, "other", "shapes", out, 1)
    with pytest.raises(ValueError, match="another options"):
        bench.drawbench(painter, "painter", "shapes", out, 1, dict(w=3.0))


def test_the_report_stands_alone_and_hides_nothing(few, tmp_path):
    bench.drawbench(Painter(), "<painter>", "shapes", tmp_path, 1)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "&lt;painter&gt;" in text and "<painter>" not in text
    assert text.count("<img ") == 3 and text.count("not scored") == 1
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert {p.name for p in tmp_path.glob("grid-*.png")} == {
        "grid-colors.png",
        "grid-gary-marcus-et-al.png",
        "grid-text.png",
    }


def test_prompts_of_others_are_drawn_and_not_scored(tmp_path):
    (tmp_path / "a.csv").write_text("Category,Prompts\nColors,A red car.\n")
    scores = bench.drawbench(Painter(), "painter", str(tmp_path / "a.csv"), tmp_path / "out", 1)
    assert scores["categories"]["Colors"] == dict(asked=1, atoms={}, all_right={})


class Obedient(Painter):
    "Draws the colour that a caption names."

    def sample(self, captions, **how):
        return torch.cat([Painter("red" if "red" in c else "blue").image for c in captions])


def test_pictures_of_one_prompt_are_compared(tmp_path):
    "Two models that were asked in another order, and one of them for more; so many of a category."
    rows = ["Colors,a red car", "Colors,a blue car", "Text,a red word"]
    for name, own in (("a", rows), ("b", [*rows[1:], rows[0], "Text,a blue word"])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["Category,Prompts", *own]))
        bench.drawbench(Obedient(), name, str(tmp_path / f"{name}.csv"), tmp_path / name, 1)
    pairs = bench.pairs_of(tmp_path / "a", tmp_path / "b", None)
    assert [p.caption for p in pairs] == ["a red car", "a blue car", "a red word"]
    assert all(torch.equal(p.a, p.b) for p in pairs)
    assert not torch.equal(pairs[0].a, pairs[1].a)
    few = bench.pairs_of(tmp_path / "a", tmp_path / "b", 1)
    assert [p.caption for p in few] == ["a red car", "a red word"]


def test_two_models_are_rated(few, tmp_path, capsys):
    "From pictures to a page, and from answers to shares: whoever prefers red circles prefers A."
    for name, colour in (("a", "red"), ("b", "blue")):
        bench.drawbench(Painter(colour), name, "shapes", tmp_path / name, 1)
    a, b, out = (str(tmp_path / name) for name in ("a", "b", "rating"))
    assert main(["rate", a, b, "--out", out]) == 0
    page = (tmp_path / "rating" / "rating.html").read_text(encoding="utf-8")
    key = json.loads((tmp_path / "rating" / "key.json").read_text())
    assert "owners" not in page and len(key["trials"]) == 8
    said = []
    for trial, own in key["trials"].items():
        said.append(dict(trial=trial, answer=own["owners"].index(own["right"] or "a")))
    ratings = dict(format=key["format"], page=key["page"], rater="ann", answers=said)
    (tmp_path / "ann.json").write_text(json.dumps(ratings))
    assert main(["rate", a, b, "--out", out, "--ratings", str(tmp_path / "ann.json")]) == 0
    assert "| alignment | all | 100.0" in capsys.readouterr().out
    found = json.loads((tmp_path / "rating" / "results.json").read_text())
    assert found["controls"] == dict(ann=1.0) and found["results"]["fidelity"]["all"]["mean"] == 1
    assert (tmp_path / "rating" / "preferences.png").stat().st_size > 5000
    assert main(["rate", a, str(tmp_path), "--out", out]) == 2
    assert "imagen-nb drawbench has filled" in capsys.readouterr().err
