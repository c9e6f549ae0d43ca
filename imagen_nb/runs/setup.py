"""What a run needs before its first step: pictures, a text encoder, cached captions, stages."""

import json
import os
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch

from imagen_nb.cascade import Imagen
from imagen_nb.data import ShapesWorld
from imagen_nb.engine.captions import EmbeddingCache
from imagen_nb.engine.validation import HELD_BACK, VALIDATED
from imagen_nb.pictures.captioned import load_captioned
from imagen_nb.recipes import Recipe
from imagen_nb.stage import Stage
from imagen_nb.store.checkpoint import load_directory, load_into, newest_checkpoint
from imagen_nb.store.config import config_diff, config_from_dict, config_to_dict
from imagen_nb.store.files import replace_text
from imagen_nb.store.hub import find_model
from imagen_nb.store.keyed import permute
from imagen_nb.store.text_models import is_shipped
from imagen_nb.text import TextEncoder

__all__ = [
    "load_recipe",
    "open_data",
    "already_told",
    "held_back",
    "make_encoder",
    "settle_encoder",
    "check_width",
    "check_cascade",
    "asked_for",
    "looked_at",
    "build_cache",
    "first_stage",
    "first_stages",
    "bare_stage",
    "trained_stages",
]


FEW = 8  # pictures of which `doctor` draws the captions


def load_recipe(
    out: Path,  # directory of a run
) -> Recipe:
    "The recipe a directory was made for."
    return config_from_dict(json.loads((out / "config.json").read_text()))


# ---------------------------------------------------------------- pictures and captions


def open_data(
    recipe: Recipe,  # which names a source or a drawn world
    split: str = "train",  # "train", "valid" or "test"
):
    "The captioned pictures a recipe trains on, or another split of its drawn world."
    if recipe.data is not None:
        return load_captioned(size=recipe.stages[-1].size, split=split, **vars(recipe.data))
    if recipe.level is not None:
        return ShapesWorld(split, level=recipe.level)
    raise ValueError(f"train: recipe {recipe.name} needs pictures of your own: give --data SOURCE")


@contextmanager
def already_told() -> Iterator[None]:
    "What was said of the data when the run was prepared, or by the first process, is not said again."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def held_back(
    recipe: Recipe,  # whose pictures are kept back
):  # captioned pictures for validation; None: the user keeps none back, or too few
    "Pictures that are never trained on."
    if recipe.data is not None and not recipe.data.held_out:
        return None
    try:
        return open_data(recipe, "valid")
    except ValueError as e:
        warnings.warn(f"train: validation on training pictures: {e}")
        return None


def make_encoder(
    name: str,  # a folder, a hub name, "toy" or "english"
    max_length: int = 128,  # tokens kept of a caption
    dtype: torch.dtype
    | None = None,  # it computes in; None: those that ship in float32, others in the fastest
    device: torch.device | str | None = None,  # None: the CPU
) -> TextEncoder:
    "A text encoder by its name."
    return TextEncoder.from_pretrained(name, max_length, dtype, device)


def settle_encoder(
    recipe: Recipe,  # which names the encoder
    encoder: TextEncoder,  # that it names
    out: Path,  # directory of the run
) -> Recipe:  # with a folder's full path, which holds from anywhere
    "Remember where the encoder lies; in a run that goes on digests decide, so it may have moved."
    folder = Path(recipe.encoder).expanduser()
    if not is_shipped(recipe.encoder) and folder.is_dir():
        recipe = replace(recipe, encoder=os.path.abspath(folder))
    with suppress(ValueError, OSError):  # no run yet, or another one: `claim_directory` will say
        EmbeddingCache.open(out / "captions", encoder)
        if (old := load_recipe(out)).encoder != recipe.encoder:
            moved = config_to_dict(replace(old, encoder=recipe.encoder))
            replace_text(out / "config.json", json.dumps(moved, indent=1))
    return recipe


def check_width(
    recipe: Recipe,  # whose networks read
    encoder: TextEncoder,  # what they read
):
    "Refuse networks that expect other embeddings than the encoder's."
    for k, stage in enumerate(recipe.stages):
        if (dim := stage.network.text_dim) not in (0, encoder.width):  # 0: it reads none
            raise ValueError(
                f"train: stages.{k}.network.text_dim, got {dim}, expected {encoder.width}, the width"
                f" of encoder {recipe.encoder}; --encoder sets both"
            )


def check_cascade(
    recipe: Recipe,  # whose stages are trained apart and draw together
):
    "Refuse a stage that does not enlarge what the one before it draws."
    drawn = [None, *(stage.size for stage in recipe.stages)]
    for k, (stage, before) in enumerate(zip(recipe.stages, drawn)):
        if stage.lowres_size != before:
            raise ValueError(
                f"train: stages.{k}.lowres_size, got {stage.lowres_size}, expected {before},"
                + (f" the size of stages.{k - 1}" if k else " as for every base")
            )


def asked_for(
    recipe: Recipe,  # how many samples each stage draws
    stage: int | None,  # the one that is trained; None: all
    *worlds,  # captioned pictures: to train on, and perhaps those held back
) -> list[Collection[int]]:  # numbers of pictures, for each world
    "Pictures whose captions a run reads: those it draws, those of its looks, and a few from all over for `doctor`."
    n, stages = len(worlds[0]), recipe.training if stage is None else [recipe.training[stage]]
    drawn = [(min(n, how.steps * how.batch), how.seed) for how in stages]  # none twice before all
    rows = looked_at(*worlds)
    if any(k == n for k, _ in drawn):
        return [range(n), *rows[1:]]
    rows[0] = {permute(i, n, seed) for k, seed in drawn for i in range(k)} | set(rows[0])
    return rows


def looked_at(
    *worlds,  # captioned pictures: to train on, and perhaps those held back
) -> list[Collection[int]]:  # numbers of pictures, for each world
    "Pictures of a look at a run, and a few from all over."

    def looks(n):
        return {permute(HELD_BACK * n + k, n, 0) for k in range(VALIDATED)}

    return [looks(n) | set(range(0, n, max(1, n // FEW))) for n in map(len, worlds)]


def build_cache(
    encoder: TextEncoder,  # who reads
    path: Path,  # folder of the cache
    *worlds,  # captioned pictures
    wanted: list[Collection[int]] | None = None,  # numbers of pictures, for each world; None: all
) -> EmbeddingCache:
    "Embeddings of the captions of these data, encoded once; a build that was stopped goes on."
    from tqdm.auto import tqdm

    covered = path.with_name("captions.json")  # written once all is encoded
    identity = [world.identity for world in worlds]
    with suppress(ValueError, OSError):
        if json.loads(covered.read_text()) == identity:
            return EmbeddingCache.open(path, encoder)
    chosen = wanted or [range(len(world)) for world in worlds]
    pictures = tqdm(
        [(world, i) for world, which in zip(worlds, chosen) for i in sorted(which)],
        "captions",
        unit="picture",
        delay=1,
    )
    captions = [caption for world, i in pictures for caption in world.captions(i) or [""]]
    home = encoder.device
    if torch.cuda.is_available():
        encoder.to("cuda")
    try:
        cache = EmbeddingCache.build(encoder, captions, path, progress=True)
    finally:
        encoder.to(home)
    if all(len(which) == len(world) for world, which in zip(worlds, chosen)):
        covered.write_text(json.dumps(identity))
    return cache


# ---------------------------------------------------------------- stages


def first_stages(
    recipe: Recipe,  # configs, seeds, perhaps a model to start from
) -> list[Stage]:
    "Stages as training begins: those of the model to start from, and fresh ones where it has none."
    old: list[Stage] = []
    if recipe.init is not None:
        tensors, meta = load_directory(find_model(recipe.init))
        old = Imagen.from_files(tensors, {**meta, "encoder": None}, None).stages
    n = len(old)
    kept = [
        taken_over(stage, config, f"stage {k} of {recipe.init}")
        for k, (stage, config) in enumerate(zip(old, recipe.stages))
    ]
    return kept + [fresh_stage(*pair) for pair in zip(recipe.stages[n:], recipe.training[n:])]


def first_stage(
    recipe: Recipe,  # as for `first_stages`
    k: int,  # which
) -> Stage:
    "One of them; those that begin with random weights are made without the others."
    if recipe.init is not None:
        return first_stages(recipe)[k]
    return fresh_stage(recipe.stages[k], recipe.training[k])


def bare_stage(
    recipe: Recipe,  # as for `first_stages`
    k: int,  # which
) -> Stage:  # without data, for a run that goes on from a checkpoint in parts
    "A stage that takes no memory; one whose network holds more than weights is made with all of it."
    with torch.device("meta"):
        network = recipe.stages[k].network.build()
    if any(True for _ in network.buffers()):
        return first_stage(recipe, k)
    return Stage(recipe.stages[k], network)


def fresh_stage(config, training) -> Stage:
    "Random weights by the run's seed."
    torch.manual_seed(training.seed)
    return Stage(config)


def taken_over(old: Stage, config, where: str) -> Stage:
    "A trained network under another config of the stage."
    if diff := config_diff(config_to_dict(old.config.network), config_to_dict(config.network)):
        raise ValueError(f"train: init, {where} has another network: {'; '.join(diff)}")
    stage = Stage(config, old.network)
    stage.is_trained = old.is_trained
    return stage


def trained_stages(
    recipe: Recipe,  # of the run
    out: Path,  # its directory
) -> list[Stage]:
    "Stages with their newest averaged weights; one without a checkpoint stays as training would begin."
    stages = first_stages(recipe)
    for stage in stages:
        if found := newest_checkpoint(out / f"{stage.config.size}px"):
            load_into(stage.network, found[0]["average"], f"{out}, {stage.config.size} px")
            stage.is_trained = True
    return stages
