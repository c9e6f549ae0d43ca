"""What a folder of one's own becomes, from scratch and from a model that ships, into `data/runs/own-pictures.json`.

    python tools/make/stamps.py stamps
    python tools/measure/own_pictures.py stamps OUT

Trains the base of recipe `emoji` twice on one core, and draws after 5, 20 and 60 CPU-minutes of training: first
captions of the folder, then captions that were kept back, first samples, nothing picked. A drawing counts as right if
the nearest of all pictures of the folder, at 16 px, has its caption; the same drawings against other captions are
chance. It can be stopped, and goes on from the newest checkpoint.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from cards import RUNS, write_card

from imagen_nb.evaluation import tally
from imagen_nb.lab.measures import thumbnails
from imagen_nb.plots import save_picture, show_images
from imagen_nb.recipes import DataConfig, emoji
from imagen_nb.runs.pretrained import read_with, start_from
from imagen_nb.runs.setup import build_cache, first_stages, held_back, make_encoder, open_data
from imagen_nb.stage import Stage
from imagen_nb.store.config import config_to_dict
from imagen_nb.training import Trainer

SHOWN = 8  # captions in a grid, of those trained on and of those kept back
SIDE = 16  # pixels at which pictures are compared


class Enough(Exception):
    "The last snapshot is taken."


class Timed(Trainer):
    "A trainer that knows how much CPU time its steps took, and is looked at after so much of it."

    def watch(self, minutes: list[float], look):  # look(minutes, step, stage with averaged weights)
        "Train until the last snapshot."
        self.spent, self.minutes, self.shown = 0.0, sorted(minutes), look
        if (clock := self.out / "cpu.json").exists():
            self.times = json.loads(clock.read_text())
        else:
            self.times = {}
        try:
            self.fit()
        except Enough:
            pass

    def prepare(self):
        "The time of the checkpoint that the run goes on from."
        log = super().prepare()
        self.spent, self.since = self.times.get(str(self.step), 0.0), time.process_time()
        self.minutes = [m for m in self.minutes if 60 * m > self.spent]
        return log

    def save(self):
        super().save()
        self.times[str(self.step)] = self.spent + time.process_time() - self.since
        (self.out / "cpu.json").write_text(json.dumps(self.times))

    def look(self):
        "Draw where it is time; drawing does not count as training."
        if not self.minutes:
            raise Enough
        spent = self.spent + time.process_time() - self.since
        if spent < 60 * self.minutes[0]:
            return
        self.shown(self.minutes.pop(0), self.step, Stage(self.stage.config, self.learned.average))
        self.spent, self.since = spent, time.process_time()
        self.save()


def different(pictures, most: int, without=()) -> list[str]:
    "Captions from all over some pictures, each once."
    captions = [c for c in dict.fromkeys(map(pictures.caption, range(len(pictures)))) if c]
    captions = [c for c in captions if c not in without]
    return captions[:: max(1, len(captions) // most)][:most]


class Nearest:
    "Which caption has the picture that a drawing is most like?"

    def __init__(self, *parts):
        self.captions = [part.captions(i) for part in parts for i in range(len(part))]
        seen = [
            part.images(range(k, min(k + 64, len(part))), 32)
            for part in parts
            for k in range(0, len(part), 64)
        ]
        self.features = thumbnails(torch.cat(seen), SIDE)

    def right(self, images, captions: list[str]) -> list[dict]:
        "For each drawing: is it right?"
        nearest = torch.cdist(thumbnails(images, SIDE), self.features).argmin(1).tolist()
        return [dict(all=c in self.captions[i]) for c, i in zip(captions, nearest)]


def snapshot(stage: Stage, encoder, captions: dict[str, list[str]], nearest: Nearest, path: Path):
    "Draw, save a grid, count."
    shares, shown, said = {}, [], []
    for kind, some in captions.items():
        parts = [some[k : k + 16] for k in range(0, len(some), 16)]
        images = torch.cat(
            [stage.sample(encoder(part), seeds=list(range(len(part)))) for part in parts]
        )
        others = some[1:] + some[:1]
        shares[kind] = tally(nearest.right(images, some))["all"]
        shares[f"{kind}, against other captions"] = tally(nearest.right(images, others))["all"]
        step = max(1, len(some) // SHOWN)
        shown, said = [*shown, *images[::step][:SHOWN]], said + some[::step][:SHOWN]
    save_picture(show_images(shown, said, columns=SHOWN), path)
    return shares


def run(args, start: str | None) -> dict:
    "One arm: snapshots by CPU-minutes."
    name, recipe = start and Path(start).name or "scratch", emoji(args.seed)
    data = DataConfig(source=str(args.folder.resolve()), held_out=args.held_out)
    recipe = start_from(recipe, start, args.encoder) if start else read_with(recipe, args.encoder)
    recipe = replace(recipe, data=data)
    out, encoder = args.out / name, make_encoder(recipe.encoder)
    train, valid = open_data(recipe), held_back(recipe)
    text = build_cache(encoder, out / "captions", train, *filter(None, [valid]))
    captions = dict(trained=different(train, args.judged))
    if valid is not None:
        every = {train.caption(i) for i in range(len(train))}
        captions["kept back"] = different(valid, args.judged, every)
    nearest, shots = Nearest(*filter(None, [train, valid])), out / "snapshots.json"
    found = json.loads(shots.read_text()) if shots.exists() else []

    def look(minutes, step, stage):
        path = args.grids / f"own-pictures-{name}-{minutes:g}.jpg"
        shares = snapshot(stage, encoder, captions, nearest, path)
        samples = step * recipe.training[0].batch
        found.append(
            dict(cpu_minutes=minutes, steps=step, samples=samples, grid=path.name, right=shares)
        )
        shots.write_text(json.dumps(found))
        print(
            f"{name}, {minutes:g} CPU-minutes, {step:,} steps: "
            + ", ".join(f"{k} {v['share']:.1%}" for k, v in shares.items()),
            flush=True,
        )

    training = replace(  # any moment is as good as another; it is the clock that ends it
        recipe.training[0], decay="constant", steps=10**6, save_every=200
    )
    trainer = Timed(first_stages(recipe)[0], train, text, training, out / "32px")
    trainer.watch(args.minutes, look)
    return dict(
        init=start,
        pictures=len(train),
        kept_back=0 if valid is None else len(valid),
        stage=config_to_dict(recipe.stages[0]),
        training=config_to_dict(training),
        snapshots=found,
    )


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("folder", type=Path, help="captioned pictures")
    p.add_argument("out", type=Path, help="directory of the runs")
    p.add_argument("--encoder", default="english", help="who reads captions (default english)")
    p.add_argument(
        "--init",
        nargs="*",
        default=["", "emoji"],
        help="models to start from; '' is none (default '' emoji)",
    )
    p.add_argument(
        "--minutes",
        type=float,
        nargs="+",
        default=[5, 20, 60],
        help="of CPU time (default 5 20 60)",
    )
    p.add_argument(
        "--held-out", type=float, default=0.1, help="share of pictures kept back (default .1)"
    )
    p.add_argument(
        "--judged", type=int, default=64, help="captions drawn of each kind (default 64)"
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--grids", type=Path, default=RUNS, help="folder for the grids (default data/runs)"
    )
    p.add_argument("--card", type=Path, default=RUNS / "own-pictures.json")
    args = p.parse_args()
    torch.set_num_threads(1)
    arms = {start or "scratch": run(args, start or None) for start in args.init}
    write_card(
        args.card,
        "own pictures: drawings after some CPU-minutes of training the base alone; right: the nearest picture"
        f" of the folder, at {SIDE} px, has the caption; constant learning rate, averaged weights",
        f"python tools/measure/own_pictures.py {args.folder.name} OUT --encoder {args.encoder}",
        arms=arms,
    )


if __name__ == "__main__":
    main()
