"""Recipes: everything a run needs, as functions that return full, typed configurations."""

import ast
import difflib
from dataclasses import dataclass, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import get_args, get_origin, get_type_hints

from imagen_nb.cascade import StageConfig
from imagen_nb.efficient_unet import EfficientUNetConfig
from imagen_nb.training import TrainConfig
from imagen_nb.unet import UNetConfig

__all__ = [
    "DataConfig",
    "Recipe",
    "toy",
    "toy_full",
    "base_network",
    "paper",
    "RECIPES",
    "find_recipe",
    "change",
]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    "The user's own pictures, in the words of `load_captioned`."

    source: str  # folder, file or hub name
    image_column: str | None = None  # of a table; None: guessed
    caption_column: str | None = None  # of a table or .json; None: a usual name
    min_size: int = 0  # leave out pictures whose shorter side has fewer pixels
    held_out: float = 0.0  # share kept back as "valid", and as much as "test"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    "A cascade, what it learns from and how it is trained: all that a run depends on."

    name: str  # of the recipe
    encoder: str  # text encoder: a name, a folder or "toy"
    level: str | None = None  # level of ShapesWorld; None: the user brings pictures
    data: DataConfig | None = None  # the user's pictures; None: ShapesWorld
    init: str | None = None  # model whose weights are the start; None: random ones
    stages: tuple[StageConfig, ...]  # the base first
    training: tuple[TrainConfig, ...]  # one for each stage

    def __post_init__(self):
        if len(self.stages) != len(self.training):
            raise ValueError(
                f"Recipe: training, got {len(self.training)} configs,"
                f" expected one for each of {len(self.stages)} stages"
            )


def toy(seed: int = 0) -> Recipe:
    "32 -> 128 -> 512 on ShapesWorld `quick`: what two CPU cores learn in minutes."
    base = StageConfig(
        size=32,
        target="x0",
        loss_weight="capped",
        time_law=(0.6, 1.25),
        network=UNetConfig(
            dim=48,
            mults=(1, 2),
            blocks=1,
            attention=(False, True),
            head_dim=32,
            text_dim=128,
            text_width=128,
            emb_dim=128,
            text_depth=1,
            skips="add",
            resample="conv",
            separate_attention=True,
            feed_forward=2,
            patch=2,
        ),
        t_start=0.995,
        steps=16,
        sampler="dpmpp_2m",
        w=2.0,
        threshold="static",
    )
    sr = dict(text_dim=128, text_width=64, heads=2, emb_dim=128, pool_queries=2)
    middle = StageConfig(
        size=128,
        lowres_size=32,
        crop=64,
        target="x0",
        loss_weight="capped",
        time_law=(0.0, 1.1),
        is_residual=True,
        aug_max=0.15,
        network=EfficientUNetConfig(
            channels=(48, 64),
            blocks=(1, 2),
            strides=(1, 2),
            self_attention=(False, False),
            text_attention=(False, True),
            stem=48,
            patch=4,
            **sr,
        ),
        t_start=0.995,
        steps=6,
        sampler="dpmpp_2m",
        w=1.0,
        threshold="static",
        aug_t=0.05,
    )
    last = StageConfig(
        size=512,
        lowres_size=128,
        crop=128,
        target="x0",
        loss_weight="capped",
        time_law=(0.0, 1.1),
        is_residual=True,
        aug_max=0.1,
        network=EfficientUNetConfig(
            channels=(32, 48),
            blocks=(1, 2),
            strides=(1, 2),
            self_attention=(False, False),
            text_attention=(False, True),
            stem=32,
            patch=8,
            **sr,
        ),
        t_start=0.995,
        steps=4,
        sampler="dpmpp_2m",
        w=1.0,
        threshold="static",
        aug_t=0.02,
    )
    common = dict(
        optimizer="muon",
        lr=4e-3,
        betas=(0.9, 0.98),
        weight_decay=0.01,
        warmup=60,
        final=0.02,
        ema=1.0,
        seed=seed,
        save_every=100,
    )
    return Recipe(
        name="toy",
        encoder="toy",
        level="quick",
        stages=(base, middle, last),
        training=(
            TrainConfig(batch=48, steps=1400, **common),
            TrainConfig(batch=32, steps=260, **common),
            TrainConfig(batch=32, steps=300, **common),
        ),
    )


def toy_full(seed: int = 0) -> Recipe:
    "The weights that ship, but for a last part (`tools/train_crowded.py`): the toy, wider, on ShapesWorld `full`."
    small = toy(seed)
    base, middle, last = small.stages

    def widen(stage, **kw):
        return replace(stage, network=replace(stage.network, **kw))

    stages = (
        replace(widen(base, dim=64), time_law=(0.5, 1.15)),
        widen(middle, channels=(64, 96), stem=64),
        widen(last, channels=(64, 96), stem=64),
    )
    training = tuple(
        replace(config, steps=steps, decay="late")
        for config, steps in zip(small.training, (5500, 1400, 1000))
    )
    return replace(small, name="toy-full", level="full", stages=stages, training=training)


BASE_SIZES = {
    "300M": (192, 512),
    "500M": (256, 512),
    "1B": (320, 4096),
    "2B": (512, 2048),
}  # dim, text_width


def base_network(
    size: str = "2B",  # "300M", "500M", "1B" or "2B"
) -> UNetConfig:
    "The base at a size of the paper's ablations (4.4, D.1, D.3), which print the size alone: width and text path are our choice."
    if size not in BASE_SIZES:
        raise ValueError(
            f"base_network: size, got {size!r}, expected one of {', '.join(BASE_SIZES)}"
        )
    dim, text_width = BASE_SIZES[size]
    return UNetConfig(dim=dim, emb_dim=4 * dim, text_width=text_width)


def paper(seed: int = 0) -> Recipe:
    "The three published models (F.1, F.2, F.3); the pictures are yours to bring."
    adam = dict(optimizer="adam", ema=0.9999, seed=seed)
    return Recipe(
        name="paper",
        encoder="google/t5-v1_1-xxl",
        stages=(
            StageConfig(size=64, network=base_network()),
            StageConfig(size=256, lowres_size=64, network=EfficientUNetConfig(), steps=128, w=8.0),
            StageConfig(
                size=1024,
                lowres_size=256,
                crop=256,
                schedule="linear",
                steps=32,
                w=8.0,
                network=EfficientUNetConfig(self_attention=(False,) * 4),
            ),
        ),
        training=(TrainConfig(seed=seed), TrainConfig(**adam), TrainConfig(**adam)),
    )


RECIPES = {"toy": toy, "toy-full": toy_full, "paper": paper}


def find_recipe(
    name: str,  # a key of `RECIPES`
    seed: int = 0,  # of weights and draws
) -> Recipe:
    "A recipe by name."
    if name not in RECIPES:
        raise ValueError(
            f"train: recipe, got {name!r}, expected one of {', '.join(RECIPES)}"
            + _guess(name, RECIPES)
        )
    return RECIPES[name](seed)


# ---------------------------------------------------------------- changes from the command line


def change(
    config,  # a config or a tuple of them
    path: str,  # dotted names and numbers, as in "stages.1.network.blocks"
    value: str,  # what to put there, as one writes it in Python; a bare word is a string
):  # a copy of the config; the given one is unchanged
    "Replace one value, which must have the type of its field."
    return _change(config, path.split("."), value, path)


def _change(config, names: list[str], text: str, path: str):
    "Walk down, replace, and rebuild (and so check) every config on the way back."
    if isinstance(config, tuple):
        if not names[0].isdecimal() or int(names[0]) >= len(config):
            raise ValueError(
                f"--set {path}: got {names[0]!r}, expected a number from 0 to {len(config) - 1}"
            )
        k = int(names[0])
        if len(names) == 1:
            raise ValueError(f"--set {path}: expected a name after the number: {_names(config[k])}")
        return (*config[:k], _change(config[k], names[1:], text, path), *config[k + 1 :])
    known = [f.name for f in fields(config)]
    if names[0] not in known:
        raise ValueError(
            f"--set {path}: got {names[0]!r}, expected one of {_names(config)}"
            + _guess(names[0], known)
        )
    inner = getattr(config, names[0])
    is_config = is_dataclass(inner) or isinstance(inner, tuple) and inner and is_dataclass(inner[0])
    if is_config != (len(names) > 1):
        raise ValueError(
            f"--set {path}: "
            + (
                f"expected a name after it: {_names(inner)}"
                if is_config
                else f"{names[0]} is a value and has no parts"
            )
        )
    new = (
        _change(inner, names[1:], text, path)
        if is_config
        else _typed(text, get_type_hints(type(config))[names[0]], path)
    )
    return replace(config, **{names[0]: new})


def _names(config) -> str:
    "What may follow in a path."
    if isinstance(config, tuple):
        return f"a number from 0 to {len(config) - 1}"
    return ", ".join(f.name for f in fields(config))


def _guess(name: str, known) -> str:
    "A suggestion for a misspelt name."
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


def _typed(text: str, hint, path: str):
    "A value from its text, refused unless it fits the type hint."
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if value is None and NoneType in kinds:
        return None
    for kind in kinds:
        if (fit := _fit(value, kind)) is not None:
            return fit
    if str in kinds:
        return text
    shown = getattr(hint, "__name__", None) if not get_args(hint) else str(hint)
    raise ValueError(f"--set {path}: got {text!r}, expected {shown}")


def _fit(value, kind):
    "The value as this type; None if it does not fit."
    if get_origin(kind) is tuple:
        items = value if isinstance(value, (tuple, list)) else None
        if items is None:
            return None
        kinds = get_args(kind)
        kinds = kinds[:1] * len(items) if kinds[-1] is Ellipsis else kinds
        fits = [_fit(v, k) for v, k in zip(items, kinds)]
        return tuple(fits) if len(items) == len(kinds) and None not in fits else None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is kind else None
