"""What each process of a run does: `python -m imagen_nb.runs.work JOB`, started by `runs.run`."""

import json
import sys
from pathlib import Path

from imagen_nb.cascade import Imagen
from imagen_nb.engine.captions import EmbeddingCache
from imagen_nb.engine.execution import Execution
from imagen_nb.evaluation import draw_and_score
from imagen_nb.runs.errors import in_one_line
from imagen_nb.runs.setup import (
    first_stages,
    held_back,
    load_recipe,
    make_encoder,
    open_data,
    trained_stages,
)
from imagen_nb.store.config import config, config_from_dict
from imagen_nb.training import Trainer

__all__ = ["Job", "work", "main"]


@config
class Job:
    "All that a process is told; as JSON it is the one word of its command line."

    out: str  # directory of the run, with its config.json and cached captions
    stage: int | None = None  # train this one alone; None: all, in turn
    held_out: int  # test captions of ShapesWorld to draw and score
    execution: Execution  # how to train and watch


def work(
    job: Job,  # the same for every process
):
    "Train the stages in turn, then draw this process's share of the held-out captions."
    out = Path(job.out)
    recipe = load_recipe(out)
    encoder, world, valid = make_encoder(recipe.encoder), open_data(recipe), held_back(recipe)
    text, stages = EmbeddingCache.open(out / "captions", encoder), first_stages(recipe)
    for k in range(len(stages)) if job.stage is None else [job.stage]:
        folder = out / f"{stages[k].config.size}px"
        trainer = Trainer(stages[k], world, text, recipe.training[k], folder, valid, job.execution)
        trainer.fit()
    imagen, is_first = Imagen(encoder, trained_stages(recipe, out)), trainer.process.rank == 0
    if is_first:
        imagen.save_pretrained(out / "model")
    if recipe.data is None and all(o.is_trained for o in imagen.stages):
        share = list(range(job.held_out))[trainer.process.rank :: trainer.process.ranks]
        test = open_data(recipe, "test")
        draw_and_score(imagen, test, share, out / "samples", progress=is_first)
    trainer.process.wait()


def main() -> int:
    "Entry point of a process."
    return in_one_line("train", lambda: work(config_from_dict(json.loads(sys.argv[1]))))


if __name__ == "__main__":
    sys.exit(main())
