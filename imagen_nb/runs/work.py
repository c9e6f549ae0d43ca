"""What each process of a run does: `python -m imagen_nb.runs.work JOB`, started by `runs.run`."""

import gc
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

from imagen_nb.cascade import Imagen
from imagen_nb.engine.captions import EmbeddingCache
from imagen_nb.engine.distributed import Process, team_size
from imagen_nb.engine.execution import Execution
from imagen_nb.engine.online import OnlineText
from imagen_nb.evaluation import draw_and_score
from imagen_nb.recipes import Recipe
from imagen_nb.runs.errors import STOPPED, in_one_line
from imagen_nb.runs.setup import (
    already_told,
    bare_stage,
    first_stage,
    held_back,
    load_recipe,
    make_encoder,
    open_data,
    trained_stages,
)
from imagen_nb.store.checkpoint import checkpoints
from imagen_nb.store.config import config, config_from_dict
from imagen_nb.store.files import replace_text
from imagen_nb.store.manifest import MANIFEST, file_entry
from imagen_nb.training import Trainer

__all__ = ["Job", "work", "main"]


@config
class Job:
    "All that a process is told; as JSON it is the one word of its command line."

    out: str  # directory of the run, with its config.json and cached captions
    stage: int | None = None  # train this one alone; None: all, in turn
    held_out: int  # test captions of ShapesWorld to draw and score
    online: bool = False  # captions are encoded while training runs; else they are in the cache
    execution: Execution  # how to train and watch


def work(
    job: Job,  # the same for every process
) -> Process:  # this one
    "Train the stages in turn, then draw this process's share of the held-out captions."
    out = Path(job.out)
    recipe = load_recipe(out)
    with already_told():
        world, valid = open_data(recipe), held_back(recipe)
    text = reader(job, recipe)
    for k in range(len(recipe.stages)) if job.stage is None else [job.stage]:
        folder, how = out / f"{recipe.stages[k].size}px", recipe.training[k]
        goes_on = job.execution.shard and team_size() > 1 and checkpoints(folder)
        start = bare_stage(recipe, k) if goes_on else first_stage(recipe, k)
        with nullcontext() if is_first() else already_told():
            trainer = Trainer(start, world, text, how, folder, valid, job.execution)
        trainer.fit()
        process = trainer.process
        del trainer, start
        gc.collect()  # wrappers and their networks hold each other, and a GPU's memory
    if process.rank == 0 or recipe.data is None:
        close(job, recipe, text, process)
    process.wait()
    return process


def reader(
    job: Job,  # which says where the cache is
    recipe: Recipe,  # which names the encoder
) -> EmbeddingCache | OnlineText:  # the same numbers under the same name
    "Who gives a batch its text."
    path = Path(job.out, "captions")
    if not job.online:
        return EmbeddingCache.open(path)
    encoder = make_encoder(recipe.encoder).to(Process().device)
    text = OnlineText(encoder)
    began = EmbeddingCache.open(path, encoder)
    text.identity = began.identity  # as it was called when the run began
    return text


def close(
    job: Job,  # whose stages are trained
    recipe: Recipe,  # of the run
    text: EmbeddingCache | OnlineText,  # it knows whose embeddings it holds
    process: Process,  # this one
):
    "The first process saves the model; of a drawn world each draws its share, where it has trained."
    out = Path(job.out)
    imagen = Imagen(text, trained_stages(recipe, out))  # whose identity is all that is saved
    if process.rank == 0:
        imagen.save_pretrained(out / "model")
    if recipe.data is None and all(o.is_trained for o in imagen.stages):
        imagen.encoder = make_encoder(recipe.encoder)
        share = list(range(job.held_out))[process.rank :: process.ranks]
        test, is_first = open_data(recipe, "test"), process.rank == 0
        imagen.to(process.device)
        if is_first:
            forget_others(out / "samples", out / "model")
        process.wait()
        draw_and_score(imagen, test, share, out / "samples", progress=is_first)


def forget_others(
    samples: Path,  # folder of pictures and answers, perhaps not there
    model: Path,  # that draws now
):
    "What another model has drawn is drawn again; of this one, nothing is."
    drawn, now = samples / "model.sha256", file_entry(model / MANIFEST)["sha256"]
    if drawn.exists() and drawn.read_text() == now:
        return
    for answers in samples.glob("[0-9]*.json"):
        answers.unlink()
    samples.mkdir(exist_ok=True)
    replace_text(drawn, now)


def is_first() -> bool:
    "Of the processes of this run."
    return os.environ.get("RANK", "0") == "0"


def main() -> int:
    "Entry point of a process."

    def call():
        try:
            work(config_from_dict(json.loads(sys.argv[1])))
        except KeyboardInterrupt:
            if is_first():
                raise
            return STOPPED  # the first process says where

    return in_one_line("train", call)


if __name__ == "__main__":
    sys.exit(main())
