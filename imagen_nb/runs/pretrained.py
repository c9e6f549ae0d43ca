"""Trained models and runs: start from one, read with another encoder, write one before its end."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from imagen_nb.cascade import Imagen
from imagen_nb.engine.captions import EmbeddingCache
from imagen_nb.recipes import Recipe
from imagen_nb.runs.setup import load_recipe, make_encoder, trained_stages
from imagen_nb.stage import Stage, StageConfig
from imagen_nb.store.checkpoint import load_meta, newest_checkpoint
from imagen_nb.store.config import config_from_dict
from imagen_nb.store.files import SHIPPED, as_path
from imagen_nb.store.hub import find_model
from imagen_nb.store.text_models import find_encoder
from imagen_nb.text import TextEncoder

__all__ = ["export", "read_with", "start_from"]


def export(
    run: str | Path,  # directory of a run, finished or not
    out: str | Path,  # directory of the model
) -> dict[int, str]:  # what each stage holds, by size
    "Write a model from the averaged weights of a run's newest checkpoints."
    run, out = as_path(run), as_path(out)
    if not (run / "config.json").exists():
        raise ValueError(
            f"export: {run}, got no config.json in it, expected the directory of a run"
        )
    recipe = load_recipe(run)
    found = {o.size: newest_checkpoint(run / f"{o.size}px") for o in recipe.stages}
    steps = {size: o[1]["step"] if o else 0 for size, o in found.items()}
    if not any(steps.values()):
        raise ValueError(f"export: {run}, got no checkpoint of any stage, expected at least one")
    cache = run / "captions"  # knows the identity of the encoder, which is all that is saved of it
    encoder = EmbeddingCache.open(cache) if cache.is_dir() else make_encoder(recipe.encoder)
    stages = trained_stages(recipe, run)
    Imagen(encoder, stages).save_pretrained(out)
    return {o.config.size: held(o, steps[o.config.size], recipe.init) for o in stages}


def held(stage: Stage, steps: int, init: str | None) -> str:
    "What a stage holds after so many steps of a run, for people."
    if steps:
        return f"averaged weights of step {steps:,}"
    return f"weights of {init}, as the run began" if stage.is_trained else "no checkpoint yet"


def read_with(
    recipe: Recipe,  # whose networks take the encoder's width
    encoder: str,  # a folder, a hub name, "toy" or "english"
) -> Recipe:
    "Another text encoder."
    stages = widened(recipe.stages, make_encoder(encoder).width)
    return replace(recipe, encoder=encoder, stages=stages)


def widened(stages: tuple[StageConfig, ...], width: int) -> tuple[StageConfig, ...]:
    "Networks that take text take it of this width."

    def widen(network: Any):  # a config of any network
        return replace(network, text_dim=width) if network.text_dim else network

    return tuple(replace(o, network=widen(o.network)) for o in stages)


def start_from(
    recipe: Recipe,  # how to train
    model: str,  # a directory, a hub name or "toy"
    encoder: str | None = None,  # where its text encoder lies; None: look around
) -> Recipe:  # with that model's stages and text encoder; stages that it lacks are the recipe's
    "Go on from a trained model: its networks, its weights, its text encoder and no other."
    folder = find_model(model)
    meta = load_meta(folder)
    if (kind := meta.get("kind")) != "imagen":
        raise ValueError(f"train: init, got {kind!r} in {model}, expected a saved Imagen")
    stages = tuple(config_from_dict(values) for values in meta["stages"])
    others = recipe.stages[len(stages) :]
    if len(stages) > len(recipe.stages) or others and others[0].lowres_size != stages[-1].size:
        raise ValueError(
            f"train: init, got stages of {sizes(stages)} px in {model}, expected the {sizes(recipe.stages)}"
            f" of recipe {recipe.name}, or the first of them"
        )
    place, reader = find_encoder(meta["encoder"], TextEncoder.from_pretrained, encoder, folder)
    stages += widened(others, reader.width) if reader else others
    is_folder = str(model) not in SHIPPED and as_path(model).is_dir()
    where = str(as_path(model).resolve()) if is_folder else str(model)
    return replace(recipe, init=where, stages=stages, encoder=place or recipe.encoder)


def sizes(stages: tuple[StageConfig, ...]) -> str:
    "For people."
    return ", ".join(str(stage.size) for stage in stages)
