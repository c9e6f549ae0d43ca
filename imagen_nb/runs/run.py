"""A run: train every stage of a recipe, draw captions, and say where the pictures are."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from imagen_nb.plots import save_picture
from imagen_nb.recipes import Recipe

__all__ = [
    "train",
    "work",
    "export",
    "read_with",
    "start_from",
    "open_data",
    "draw_captions",
    "save_grid",
]

HELD_OUT = 200  # test captions drawn and scored at the end of a run on ShapesWorld
EXAMPLES = 8  # captions drawn at the end of a run on the user's pictures


def train(
    recipe: Recipe,  # what to train, on what, and how
    out: str | Path,  # directory of the run
    stage: int | None = None,  # train this one alone, 0 is the base; None: all, in turn
    processes: int | None = None,  # on a CPU; None: one per core, at most 2
    held_out: int = HELD_OUT,  # test captions of ShapesWorld to draw and score
    **execution,  # of `Execution`: how to train and watch; may change when a run goes on
):
    "Train a cascade, draw with it, and score what can be scored. Run it again to go on."
    import torch

    from imagen_nb.engine.execution import Execution
    from imagen_nb.engine.keeping import claim_directory
    from imagen_nb.store.config import config_to_dict

    Execution(**execution)  # refuses what is wrong before anything is written
    n = len(recipe.stages)
    if stage is not None and not 0 <= stage < n:
        raise ValueError(f"train: stage, got {stage}, expected 0 to {n - 1} (0 is the base)")
    if not isinstance(held_out, int) or held_out < 2:
        raise ValueError(f"train: held_out, got {held_out}, expected at least 2 captions to score")
    if processes is not None and processes < 1:
        raise ValueError(f"train: processes, got {processes}, expected at least 1")
    out, since = Path(out), time.time()
    world, encoder = open_data(recipe), make_encoder(recipe)
    check_width(recipe, encoder)
    claim_directory(out, config_to_dict(recipe))
    if (out / "samples.png").exists():
        print(
            f"{out} is finished: pictures in {out / 'samples'}, overview in {out / 'samples.png'}."
        )
        return
    build_cache(encoder, out / "captions", world, *filter(None, [held_back(recipe)]))
    if processes is None:
        processes = 1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1)
    launch(out, stage, held_out, processes, execution)
    finish(recipe, out, world, encoder, held_out, time.time() - since)


def export(
    run: str | Path,  # directory of a run, finished or not
    out: str | Path,  # directory of the model
) -> dict:  # steps in the newest checkpoint of each stage, by size; 0: never trained
    "Write a model from the averaged weights of a run's newest checkpoints."
    from imagen_nb.cascade import Imagen
    from imagen_nb.store.checkpoint import newest_checkpoint

    run = Path(run)
    if not (run / "config.json").exists():
        raise ValueError(
            f"export: {run}, got no config.json in it, expected the directory of a run"
        )
    recipe = load_recipe(run)
    found = {o.size: newest_checkpoint(run / f"{o.size}px") for o in recipe.stages}
    steps = {size: o[1]["step"] if o else 0 for size, o in found.items()}
    if not any(steps.values()):
        raise ValueError(f"export: {run}, got no checkpoint of any stage, expected at least one")
    Imagen(make_encoder(recipe), trained_stages(recipe, run)).save_pretrained(out)
    return steps


def read_with(
    recipe: Recipe,  # whose networks take the encoder's width
    encoder: str,  # a folder, a hub name or "toy"
) -> Recipe:
    "Another text encoder."
    recipe = replace(recipe, encoder=encoder)
    width = make_encoder(recipe).width
    stages = (replace(o, network=replace(o.network, text_dim=width)) for o in recipe.stages)
    return replace(recipe, stages=tuple(stages))


def start_from(
    recipe: Recipe,  # how to train
    model: str,  # a directory, a hub name or "toy"
) -> Recipe:  # with that model's stages and text encoder
    "Go on from a trained model: its networks, its weights, its text encoder."
    from imagen_nb.store.checkpoint import load_meta
    from imagen_nb.store.config import config_from_dict
    from imagen_nb.store.hub import find_model

    meta = load_meta(find_model(model))
    if (kind := meta.get("kind")) != "imagen":
        raise ValueError(f"train: init, got {kind!r} in {model}, expected a saved Imagen")
    stages = tuple(config_from_dict(values) for values in meta["stages"])
    if len(stages) != len(recipe.stages):
        raise ValueError(
            f"train: init, got {len(stages)} stages in {model},"
            f" expected the {len(recipe.stages)} of recipe {recipe.name}"
        )
    name = (meta["encoder"] or {}).get("encoder", recipe.encoder)
    where = str(Path(model).resolve()) if Path(model).is_dir() else str(model)
    return replace(recipe, init=where, stages=stages, encoder="toy" if name == "t5-toy" else name)


# ---------------------------------------------------------------- what a run needs


def open_data(recipe: Recipe, split: str = "train"):
    "The captioned pictures a recipe trains on, or another split of its drawn world."
    from imagen_nb.data import ShapesWorld
    from imagen_nb.pictures.captioned import load_captioned

    if recipe.data is not None:
        return load_captioned(size=recipe.stages[-1].size, split=split, **vars(recipe.data))
    if recipe.level is not None:
        return ShapesWorld(split, level=recipe.level)
    raise ValueError(f"train: recipe {recipe.name} needs pictures of your own: give --data SOURCE")


def held_back(recipe: Recipe):
    "Captioned pictures for validation; None: the user keeps none back, or so small a share that it is empty."
    if recipe.data is not None and not recipe.data.held_out:
        return None
    try:
        return open_data(recipe, "valid")
    except ValueError as e:
        warnings.warn(f"train: validation on training pictures: {e}")


def make_encoder(recipe: Recipe):
    "The text encoder of a recipe."
    from imagen_nb.text import TextEncoder

    return (
        TextEncoder.toy()
        if recipe.encoder == "toy"
        else TextEncoder.from_pretrained(recipe.encoder)
    )


def build_cache(encoder, path: Path, *worlds):
    "Embeddings of every caption of these data, encoded once; a build that was stopped goes on."
    import torch
    from tqdm.auto import tqdm

    from imagen_nb.engine.captions import EmbeddingCache

    covered, identity = (
        path.with_name("captions.json"),
        [world.identity for world in worlds],
    )  # once all is encoded
    with suppress(ValueError, OSError):
        if json.loads(covered.read_text()) == identity:
            return EmbeddingCache.open(path, encoder)
    pictures = tqdm(
        [(world, i) for world in worlds for i in range(len(world))],
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
    covered.write_text(json.dumps(identity))
    return cache


def check_width(recipe: Recipe, encoder):
    "Refuse networks that expect other embeddings than the encoder's."
    for k, stage in enumerate(recipe.stages):
        if (dim := stage.network.text_dim) != encoder.width:
            raise ValueError(
                f"train: stages.{k}.network.text_dim, got {dim}, expected {encoder.width}, the width"
                f" of encoder {recipe.encoder}; --encoder sets both"
            )


def load_recipe(out: Path) -> Recipe:
    "The recipe a directory was made for."
    from imagen_nb.store.config import config_from_dict

    return config_from_dict(json.loads((out / "config.json").read_text()))


def first_stages(recipe: Recipe) -> list:
    "Stages as training begins: fresh networks, or those of the model to start from."
    import torch

    from imagen_nb.cascade import Imagen
    from imagen_nb.stage import Stage
    from imagen_nb.store.config import config_diff, config_to_dict

    stages = []
    if recipe.init is None:
        for config, training in zip(recipe.stages, recipe.training):
            torch.manual_seed(training.seed)
            stages.append(Stage(config))
        return stages
    for k, (config, old) in enumerate(
        zip(recipe.stages, Imagen.from_pretrained(recipe.init).stages)
    ):
        if diff := config_diff(config_to_dict(old.config.network), config_to_dict(config.network)):
            raise ValueError(
                f"train: init, stage {k} of {recipe.init} has another network: {'; '.join(diff)}"
            )
        stages.append(Stage(config, old.network))
        stages[-1].is_trained = old.is_trained
    return stages


def trained_stages(recipe: Recipe, out: Path) -> list:
    "Stages with their newest averaged weights; one without a checkpoint stays as training would begin."
    from imagen_nb.store.checkpoint import load_into, newest_checkpoint

    stages = first_stages(recipe)
    for stage in stages:
        if found := newest_checkpoint(out / f"{stage.config.size}px"):
            load_into(stage.network, found[0]["average"], f"{out}, {stage.config.size} px")
            stage.is_trained = True
    return stages


# ---------------------------------------------------------------- training


def launch(out: Path, stage: int | None, held_out: int, processes: int, execution: dict):
    "One thread for each process: on a busy machine two threads of a process wait for each other."
    if processes == 1:
        return work(out, stage, held_out, execution)
    env = dict(os.environ, OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        "-m",
        "imagen_nb.cli",
        "work",
        str(out),
        "--held-out",
        str(held_out),
        "--execution",
        json.dumps(execution),
    ] + ([] if stage is None else ["--stage", str(stage)])
    child = subprocess.Popen(command, env=env)

    def forward(*_):
        child.send_signal(signal.SIGTERM)
        raise KeyboardInterrupt

    handlers = {
        signal.SIGTERM: forward,
        signal.SIGINT: signal.default_int_handler,
    }  # a job in the background ignores Ctrl-C
    if hasattr(signal, "SIGUSR1"):
        handlers[signal.SIGUSR1] = forward
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        code = child.wait()
    except KeyboardInterrupt:  # the child knows: a terminal tells both
        child.wait()
        raise KeyboardInterrupt(
            f"stopped; the newest checkpoint is in {out}. Run the same command to go on."
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code:
        raise SystemExit(
            f"imagen-nb: a training process ended with an error, see above; what it had"
            f" saved is in {out}. Run the same command to go on."
        )


def work(out: Path, stage: int | None, held_out: int, execution: dict):
    "What each process does: train the stages in turn, then draw its share of the held-out captions."
    from imagen_nb.cascade import Imagen
    from imagen_nb.engine.captions import EmbeddingCache
    from imagen_nb.engine.execution import Execution
    from imagen_nb.evaluation import draw_and_score
    from imagen_nb.training import Trainer

    recipe = load_recipe(out)
    encoder, world, stages = make_encoder(recipe), open_data(recipe), first_stages(recipe)
    valid = held_back(recipe)
    text = EmbeddingCache.open(out / "captions", encoder)
    for k in range(len(stages)) if stage is None else [stage]:
        trainer = Trainer(
            stages[k],
            world,
            text,
            recipe.training[k],
            out / f"{stages[k].config.size}px",
            valid,
            Execution(**execution),
        )
        trainer.fit()
    imagen = Imagen(encoder, trained_stages(recipe, out))
    if trainer.rank == 0:
        imagen.save_pretrained(out / "model")
    if recipe.data is None and all(o.is_trained for o in imagen.stages):
        share = list(range(held_out))[trainer.rank :: trainer.ranks]
        draw_and_score(
            imagen, open_data(recipe, "test"), share, out / "samples", progress=trainer.rank == 0
        )
    trainer.accelerator.wait_for_everyone()


# ---------------------------------------------------------------- pictures and scores


def finish(recipe: Recipe, out: Path, world, encoder, held_out: int, seconds: float):
    "Draw or score, write the overview, say where everything is."
    from imagen_nb.cascade import Imagen

    imagen = Imagen.from_pretrained(out / "model", encoder)
    untrained = [str(k) for k, o in enumerate(imagen.stages) if not o.is_trained]
    if untrained:
        print(
            f"\nModel: {out / 'model'}; stages never trained: {', '.join(untrained)} (--stage {untrained[0]} is next)."
        )
        return
    if recipe.data is None:
        caption = score_run(recipe, out, held_out, seconds)
    else:
        captions = list(dict.fromkeys(world.caption(i) for i in range(len(world))))
        captions = captions[:: max(1, len(captions) // EXAMPLES)][:EXAMPLES]
        if len(captions) == 1:
            captions = captions * EXAMPLES  # no captions: one picture for each seed
        caption = captions[0]
        draw_captions(
            imagen, captions, list(range(len(captions))), out / "samples", out / "samples.png"
        )
    print(
        f"\nPictures: {out / 'samples.png'} and {out / 'samples'}. Model: {out / 'model'}. Draw your own:\n"
        f'  imagen-nb sample "{caption}" --model {out / "model"}'
    )


def score_run(recipe: Recipe, out: Path, held_out: int, seconds: float) -> str:
    "Collect what the oracle said, print the tables, write scores and overview; returns a caption."
    from tqdm.auto import tqdm

    from imagen_nb.evaluation import chance, report, score_pictures, tally

    world, indices = open_data(recipe, "test"), list(range(held_out))
    rows = [json.loads((out / "samples" / f"{i:05d}.json").read_text()) for i in indices]
    guess = chance(world, indices)
    sizes, scores = [c.size for c in recipe.stages], {}
    for size in tqdm(sizes, "scoring against other captions", unit="stage"):
        right = [r["scores"][str(size)] for r in rows]
        wrong = score_pictures(world, indices, read_pictures(out, indices, size), shift=1)
        seen, unseen = (
            [answers for answers, r in zip(right, rows) if r["held_out"] == flag]
            for flag in (False, True)
        )
        scores[str(size)] = dict(
            all=tally(right),
            seen=tally(seen),
            held_out=tally(unseen),
            shuffled=tally(wrong),
            chance=tally(guess),
        )
        tqdm.write(
            f"\n{size} px\n{report(right, wrong, guess)}\n"
            f"all right on combinations never trained on: {100 * tally(unseen)['all']['share']:.1f} %"
        )
    (out / "scores.json").write_text(json.dumps(scores | dict(seconds=seconds), indent=1))
    first = indices[:8]
    save_grid(
        [r["caption"] for r in rows[:8]],
        [read_pictures(out, first, size) for size in sizes],
        out / "samples.png",
    )
    return rows[0]["caption"]


def read_pictures(out: Path, indices: list, size: int):
    "Pictures from disk as the oracle takes them."
    import numpy as np
    import torch
    from PIL import Image

    names = [out / "samples" / f"{i:05d}_{size}.png" for i in indices]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(name))) for name in names])
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1  # (b 3 h w)


def draw_captions(
    imagen,  # a trained cascade
    captions: list[str],  # what to draw
    seeds: list[int],  # one for each picture, those of a caption one after the other
    folder: str | Path,  # a PNG for each goes here
    overview: str | Path,  # one picture of all captions and stages
    **options,  # of `Imagen.sample`
) -> list[Path]:  # the files
    "Draw captions with every trained stage; save the last pictures one by one, and all in one overview."
    n = len(seeds) // len(captions)
    stages = imagen.sample(
        captions,
        n=n,
        seeds=seeds,
        stages=max(count_trained(imagen), 1),
        return_all=True,
        progress=True,
        **options,
    )
    folder, paths = Path(folder), []
    captions = [caption for caption in captions for _ in range(n)]
    folder.mkdir(parents=True, exist_ok=True)
    for caption, seed, image in zip(captions, seeds, stages[-1]):
        name = "".join(c if c.isalnum() else "-" for c in caption)[:60].strip("-") or "empty"
        name = name.encode()[:200].decode(errors="ignore")  # file systems take 255 bytes
        paths.append(folder / f"{name}-seed{seed}.png")
        save_picture(image, paths[-1])
    save_grid(captions, stages, overview)
    return paths


def count_trained(imagen) -> int:
    "How many stages can draw, from the base on."
    return next((k for k, o in enumerate(imagen.stages) if not o.is_trained), len(imagen.stages))


def save_grid(
    captions: list[str],  # one per picture
    stages: list,  # pictures of each stage, (b 3 h w)
    path: str | Path,  # PNG file
):
    "Captions and the pictures of every stage, side by side."
    import torch
    import torch.nn.functional as F

    from imagen_nb.plots import show_images

    side, pairs = 256, max(1, 6 // len(stages))

    def tile(image):
        scale = side / max(image.shape[1:])
        sides = [round(scale * s) for s in image.shape[1:]]
        return F.interpolate(image[None], sides, mode="nearest" if scale > 1 else "area")[0]

    tiles = [tile(image) for row in zip(*stages) for image in row]
    sizes = [
        f"{h} px" if h == w else f"{h} x {w} px"
        for h, w in (images.shape[-2:] for images in stages)
    ]
    labels = [
        f"{caption}\n{size}" if k == 0 else size
        for caption in captions
        for k, size in enumerate(sizes)
    ]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    show_images(torch.stack(tiles), labels, columns=pairs * len(stages)).savefig(path, dpi=100)
