"""Where the time of a training step goes, and what watching a run costs, into `data/runs/training-cost.json`.

    python tools/measure/measure_training.py

One process trains the first steps of each stage of a recipe; a save, a validation and a grid of samples are
timed by themselves.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from cards import RUNS, write_card

from imagen_nb.engine.captions import EmbeddingCache
from imagen_nb.engine.execution import Execution
from imagen_nb.engine.validation import draw_samples
from imagen_nb.recipes import find_recipe
from imagen_nb.runs.setup import first_stages, open_data
from imagen_nb.stage import Stage
from imagen_nb.store.files import read_rows
from imagen_nb.store.keyed import permute
from imagen_nb.text import TextEncoder
from imagen_nb.training import Trainer, validation_loss


def seconds(call, times=3):
    "Median seconds of a call."
    taken = []
    for _ in range(times):
        since = time.perf_counter()
        call()
        taken.append(time.perf_counter() - since)
    return statistics.median(taken)


def measure(recipe, k, stage, steps, folder):
    "One stage: shares of a step, seconds of a save, a validation, a grid; and what watching adds to the whole run."
    config, train, valid = recipe.training[k], open_data(recipe), open_data(recipe, "valid")
    captions = [
        train.caption(permute(n, len(train), config.seed)) for n in range(steps * config.batch)
    ]
    text = EmbeddingCache.build(
        TextEncoder.toy(),
        captions + [valid.caption(i) for i in range(len(valid))],
        folder / f"captions{k}",
    )
    quiet = Execution(progress=False)
    planned = Trainer(stage, train, text, config, folder / f"{k}", valid, quiet)
    trainer = Trainer(
        stage,
        train,
        text,
        replace(config, steps=steps),
        folder / f"{k}",
        valid,
        replace(quiet, validate_every=0, sample_every=0),
    )
    trainer.fit()
    rows = read_rows(trainer.out / "log.jsonl")[0][1:]  # the first also warms up
    step = config.batch / statistics.mean(r["images_per_s"] for r in rows)
    average = Stage(stage.config, trainer.learned.average)
    each = dict(
        save=seconds(lambda: trainer.keeper.save(trainer.learned, trainer.step, None)),
        validation=seconds(lambda: validation_loss(average, valid, text)),
        samples=seconds(lambda: draw_samples(average, valid, text)),
    )

    def often(every):
        return len({*range(every, config.steps + 1, every), config.steps})

    e, total = planned.execution, config.steps * step
    counts = dict(
        save=often(config.save_every),
        validation=often(e.validate_every),
        samples=often(e.sample_every),
    )
    return dict(
        size=stage.config.size,
        batch=config.batch,
        steps=config.steps,
        measured=steps,
        seconds_per_step=round(step, 4),
        waiting=round(statistics.mean(r["waiting"] for r in rows), 4),
        updating=round(statistics.mean(r["updating"] for r in rows), 4),
        seconds={name: round(o, 3) for name, o in each.items()},
        times=counts,
        saving=round(counts["save"] * each["save"] / total, 4),
        watching=round(
            (counts["validation"] * each["validation"] + counts["samples"] * each["samples"])
            / total,
            4,
        ),
        memory_gib=rows[-1]["memory_gib"],
    )


def main():
    "Measure every stage, print, write."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--recipe", default="toy")
    p.add_argument(
        "--steps", type=int, nargs="+", default=[60, 40, 40], help="measured steps of each stage"
    )
    p.add_argument("--note", default="", help="about the machine, for the card")
    p.add_argument("--out", type=Path, default=RUNS / "training-cost.json")
    args = p.parse_args()
    torch.set_num_threads(1)
    recipe = find_recipe(args.recipe)
    with tempfile.TemporaryDirectory() as folder:
        stages = [
            measure(recipe, k, stage, n, Path(folder))
            for k, (stage, n) in enumerate(zip(first_stages(recipe), args.steps))
        ]
    spent = [s["steps"] * s["seconds_per_step"] for s in stages]
    whole = {
        name: round(sum(a * s[name] for a, s in zip(spent, stages)) / sum(spent), 4)
        for name in ("waiting", "updating", "saving", "watching")
    }
    write_card(
        args.out,
        "shares of the time of a training run, one process, one thread"
        + f"; {args.note}" * bool(args.note),
        f"python tools/measure/measure_training.py --recipe {args.recipe}",
        whole=whole,
        stages=stages,
    )


if __name__ == "__main__":
    main()
