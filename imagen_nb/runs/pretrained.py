"""Trained models and runs: start from one, read with another encoder, write one before its end."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from imagen_nb.cascade import Imagen
from imagen_nb.engine.captions import EmbeddingCache
from imagen_nb.recipes import Recipe
from imagen_nb.runs.setup import load_recipe, make_encoder, trained_stages
from imagen_nb.store.checkpoint import load_meta, newest_checkpoint
from imagen_nb.store.config import config_from_dict
from imagen_nb.store.files import as_path
from imagen_nb.store.hub import find_model
from imagen_nb.store.text_models import find_encoder
from imagen_nb.text import TextEncoder

__all__ = ["export", "read_with", "start_from"]


def export(
    run: str | Path,  # directory of a run, finished or not
    out: str | Path,  # directory of the model
) -> dict[int, int]:  # steps in the newest checkpoint of each stage, by size; 0: never trained
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
    Imagen(encoder, trained_stages(recipe, run)).save_pretrained(out)
    return steps


def read_with(
    recipe: Recipe,  # whose networks take the encoder's width
    encoder: str,  # a folder, a hub name, "toy" or "english"
) -> Recipe:
    "Another text encoder."
    width = make_encoder(encoder).width

    def widen(network: Any):  # a config of any network
        return replace(network, text_dim=width) if network.text_dim else network

    stages = tuple(replace(o, network=widen(o.network)) for o in recipe.stages)
    return replace(recipe, encoder=encoder, stages=stages)


def start_from(
    recipe: Recipe,  # how to train
    model: str,  # a directory, a hub name or "toy"
    encoder: str | None = None,  # where its text encoder lies; None: look around
) -> Recipe:  # with that model's stages and text encoder
    "Go on from a trained model: its networks, its weights, its text encoder and no other."
    folder = find_model(model)
    meta = load_meta(folder)
    if (kind := meta.get("kind")) != "imagen":
        raise ValueError(f"train: init, got {kind!r} in {model}, expected a saved Imagen")
    stages = tuple(config_from_dict(values) for values in meta["stages"])
    if len(stages) != len(recipe.stages):
        raise ValueError(
            f"train: init, got {len(stages)} stages in {model},"
            f" expected the {len(recipe.stages)} of recipe {recipe.name}"
        )
    place, _ = find_encoder(meta["encoder"], TextEncoder.from_pretrained, encoder, folder)
    where = str(as_path(model).resolve()) if as_path(model).is_dir() else str(model)
    return replace(recipe, init=where, stages=stages, encoder=place or recipe.encoder)
