"""Which scenes the drawn world holds: its vocabulary, what only the test split shows, random scenes.

`imagen_nb.data` draws them and puts them into words; `imagen_nb.lab.oracle` reads them back.
"""

import random
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "cross", "star", "ring")
COLOURS = {  # RGB in [0, 1]; hues at least 27 degrees apart
    "red": (0.90, 0.08, 0.12),
    "orange": (1.0, 0.50, 0.02),
    "yellow": (0.96, 0.90, 0.08),
    "green": (0.10, 0.70, 0.20),
    "cyan": (0.10, 0.85, 0.88),
    "blue": (0.12, 0.25, 0.95),
    "purple": (0.50, 0.12, 0.85),
    "pink": (1.0, 0.38, 0.75),
}
BACKGROUNDS = {"white": 1.0, "gray": 0.5, "black": 0.0}  # achromatic: hue belongs to things
INVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}
VOCABULARY = {  # level -> colours, shapes
    "quick": (("red", "yellow", "green", "cyan", "blue", "pink"), SHAPES[:4]),
    "full": (tuple(COLOURS), SHAPES),
}
KINDS = {  # level -> kind of scene and its share
    "quick": (("one", 0.5), ("two", 0.5)),
    "full": (("one", 0.3), ("two", 0.35), ("same", 0.2), ("list", 0.15)),
}


def _listed(text: str) -> frozenset[tuple[str, ...]]:
    "Combinations that are told as words, with a comma between two."
    return frozenset(tuple(words.split()) for words in text.split(", "))


HELD_OUT_PAIRS = {  # level -> (colour, shape) pairs that only the test split draws
    "quick": _listed(
        "red cross, yellow circle, green square, blue triangle, cyan cross, pink square"
    ),
    "full": _listed(
        "red star, green ring, blue triangle, yellow cross, purple square, orange circle"
    ),
}
BOTH = "circle left triangle, cross left square, square above cross, triangle above circle"
HELD_OUT_RELATIONS = {  # level -> (shape, relation, shape) that only the test split draws
    "quick": _listed(BOTH),
    "full": _listed(f"{BOTH}, star left ring, ring above star"),
}


@dataclass(frozen=True)
class Thing:
    "One drawn object; lengths in units of the frame's side."

    shape: str  # one of `SHAPES`
    colour: str  # a key of `COLOURS`
    size: str | None  # "small", "big", or None where captions name no size
    fill: str  # "plain", "gradient" or "striped"
    x: float  # centre from the left, in [0, 1]
    y: float  # centre from the top, in [0, 1]
    r: float  # radius


@dataclass(frozen=True)
class Scene:
    "What is in a picture."

    things: tuple[Thing, ...]  # 1 to 4
    background: str  # a key of `BACKGROUNDS`
    relation: str | None = None  # of things[0] to things[1]: left right above below


# ---------------------------------------------------------------- what only the test split shows


def relations(
    scene: Scene,  # of any level
) -> list[
    tuple[str, str, str]
]:  # (shape, relation, shape), from both sides; none without a relation
    "The relation of a scene, and the same said from the other side."
    if scene.relation is None:
        return []
    a, b = (o.shape for o in scene.things[:2])
    return [(a, scene.relation, b), (b, INVERSE[scene.relation], a)]


def is_held_out(
    scene: Scene,  # of that level
    level: str,  # "quick" or "full"
) -> bool:  # does it show a combination that training never sees?
    "One pair of colour and shape is enough, or one relation of two shapes."
    pairs = ((o.colour, o.shape) for o in scene.things)
    is_new = any(pair in HELD_OUT_PAIRS[level] for pair in pairs)
    return is_new or any(r in HELD_OUT_RELATIONS[level] for r in relations(scene))


# ---------------------------------------------------------------- random scenes

# Only `random()` of a generator is used: it alone is stable across Python versions. The order of the draws is part of
# every scene's definition: another order, another world, and shipped models were trained on this one.


def pick(
    rng: random.Random,  # source of randomness
    options,  # a sequence
):
    "One of several."
    return options[int(rng.random() * len(options))]


def around(
    rng: random.Random,  # source of randomness
    middle: float,  # of the interval
    reach: float,  # to both sides
) -> float:
    "A number near another."
    return middle + (2 * rng.random() - 1) * reach


def _distinct(rng: random.Random, options, n: int) -> list:
    "n different options, in random order."
    left = list(options)
    return [left.pop(int(rng.random() * len(left))) for _ in range(n)]


def radius_of(
    rng: random.Random,  # source of randomness
    size: str | None,  # "small" or "big"
) -> float:  # in units of the frame's side
    "Radius of a thing of level full."
    return 0.105 + 0.02 * rng.random() if size == "small" else 0.16 + 0.025 * rng.random()


def pair_places(
    rng: random.Random,  # source of randomness
    relation: str,  # of the first thing to the second
) -> list[tuple[float, float]]:  # two centres (x, y)
    "Places of two things that stand in a relation."
    near, far = around(rng, 0.265, 0.02), around(rng, 0.735, 0.02)
    if relation in ("right", "below"):
        near, far = far, near
    a, b = around(rng, 0.5, 0.08), around(rng, 0.5, 0.08)
    return [(near, a), (far, b)] if relation in ("left", "right") else [(a, near), (b, far)]


def quarter_places(
    rng: random.Random,  # source of randomness
    n: int,  # 1 to 4
) -> list[tuple[float, float]]:  # n centres (x, y)
    "Places in the four quarters of the frame."
    quarters = [(x, y) for y in (0.26, 0.74) for x in (0.26, 0.74)]
    return [(around(rng, x, 0.01), around(rng, y, 0.01)) for x, y in _distinct(rng, quarters, n)]


def draw_quick(
    rng: random.Random,  # source of randomness
    kind: str,  # "one" or "two"
) -> Scene:
    "A scene of level quick: one or two plain things, four shapes, six colours."
    colours, shapes = VOCABULARY["quick"]
    background = pick(rng, tuple(BACKGROUNDS))
    if kind == "one":
        x, y, r = around(rng, 0.5, 0.12), around(rng, 0.5, 0.12), 0.23 + 0.06 * rng.random()
        thing = Thing(pick(rng, shapes), pick(rng, colours), None, "plain", x, y, r)
        return Scene((thing,), background)
    relation = pick(rng, tuple(INVERSE))
    things = tuple(
        Thing(pick(rng, shapes), c, None, "plain", x, y, 0.165 + 0.03 * rng.random())
        for c, (x, y) in zip(_distinct(rng, colours, 2), pair_places(rng, relation))
    )
    return Scene(things, background, relation)


def draw_full(
    rng: random.Random,  # source of randomness
    kind: str,  # "one", "two", "same" (2 to 4 alike) or "list" (3 or 4 different)
) -> Scene:
    "A scene of level full: up to four things with size and fill, six shapes, eight colours."
    colours, shapes = VOCABULARY["full"]
    background, relation = pick(rng, tuple(BACKGROUNDS)), None

    def looks(colour):
        fill = pick(rng, ("plain", "plain", "gradient", "striped"))
        return (pick(rng, shapes), colour, pick(rng, ("small", "big")), fill)

    if kind == "two":
        relation, pair = pick(rng, tuple(INVERSE)), _distinct(rng, colours, 2)
        places, wanted = pair_places(rng, relation), [looks(c) for c in pair]
    elif kind == "one":
        wanted = [looks(pick(rng, colours))]
        places = [(around(rng, 0.5, 0.15), around(rng, 0.5, 0.15))]
    else:
        n = pick(rng, (2, 3, 4) if kind == "same" else (3, 3, 4))
        places, one = quarter_places(rng, n), looks(pick(rng, colours))
        wanted = [one] * n if kind == "same" else [looks(c) for c in _distinct(rng, colours, n)]
    things = tuple(
        Thing(shape, colour, size, fill, x, y, radius_of(rng, size))
        for (shape, colour, size, fill), (x, y) in zip(wanted, places)
    )
    return Scene(things, background, relation)


def _kind(rng: random.Random, level: str) -> str:
    "Draw a kind of scene by its share."
    u = rng.random()
    for kind, share in KINDS[level]:
        u -= share
        if u < 0:
            return kind
    return kind


def draw_scene(
    rng: random.Random,  # source of randomness
    level: str,  # "quick" or "full"
    held_out: bool = False,  # must it show a combination that training never sees?
) -> Scene:
    "A random scene with such a combination, or without any."
    draw, kind = draw_quick if level == "quick" else draw_full, _kind(rng, level)
    while True:
        scene = draw(rng, kind)
        if is_held_out(scene, level) == held_out:
            return scene
