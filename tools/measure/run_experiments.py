"""Measure what a page in nbs/experiments shows: `python tools/measure/run_experiments.py thresholding`.

Pictures are drawn in parts of 16 and kept in `runs/experiments`; what is there is not drawn
again. With `--seconds 60` no part begins after so long: exit status 3 says that there is more
to do. When all is drawn, `data/runs/experiment-NAME.json` and its grids are written.
"""

import argparse
import hashlib
import json
import sys
import time
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
from cards import RUNS, write_card
from PIL import Image, ImageDraw, ImageFont

from imagen_nb.cascade import Imagen
from imagen_nb.data import ShapesWorld, render
from imagen_nb.evaluation import bootstrap_mean, frechet_distance, jackknife, score_pictures
from imagen_nb.lab.measures import (
    drawing_error,
    other_drawing,
    right_share,
    sample_watched,
    saturated_share,
    thumbnails,
)
from imagen_nb.pictures.pixels import resize
from imagen_nb.plots import image_grid
from imagen_nb.recipes import toy_full
from imagen_nb.stage import Stage
from imagen_nb.store.checkpoint import load_directory, save_directory
from imagen_nb.store.config import config_to_dict
from imagen_nb.store.files import assets
from imagen_nb.training import Samples, TrainConfig, Trainer

ROOT = Path(__file__).resolve().parents[2]
PART = 16  # captions drawn together
REFERENCE = 20  # other drawings of each caption, with which the Frechet distance compares
DEFAULT = dict(
    w=2.0, threshold="dynamic", sampler="dpmpp_2m", steps=16
)  # the shipped base, thresholded as when these pages were measured (it now ships with static)

CONFIGS = {
    "thresholding": dict(
        captions=96,
        seeds=2,
        w=[1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0],
        threshold=[None, "static", "dynamic"],
        sampler="dpmpp_2m",
        steps=16,
        ancestral=dict(
            captions=32,
            seeds=1,
            w=[10.0],
            threshold=[None, "static", "dynamic"],
            sampler="ddpm",
            steps=16,
        ),
        grid=dict(captions=2, w=[2.0, 4.0, 10.0]),
    ),
    "guidance_weight": dict(
        captions=96,
        seeds=2,
        w=[1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0],
        threshold="dynamic",
        sampler="dpmpp_2m",
        steps=16,
        enlarger=dict(
            captions=32,
            seeds=1,
            base_w=2.0,
            w=[1.0, 2.0, 4.0, 8.0],
            aug_t=[0.05, 0.2],
            threshold="static",
            sampler="dpmpp_2m",
            steps=6,
        ),
        grid=dict(captions=2, w=[1.0, 2.0, 4.0, 10.0]),
    ),
    "sampler_steps": dict(
        captions=48,
        seeds=1,
        w=2.0,
        threshold="dynamic",
        sampler=["ddpm", "ddim", "dpmpp_2m"],
        steps=[2, 4, 8, 16, 32, 64],
        grid=dict(captions=1, steps=[2, 4, 8, 16, 64]),
    ),
    "enlarger_text": dict(
        training=dict(
            aug_max=1.0,
            is_residual=False,
            steps=800,
            batch=32,
            samples="toy's law of t, level full",
        ),
        loss=dict(
            samples=128,
            t=[0.2, 0.4, 0.6, 0.8, 0.95],
            aug_t=[0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0],
        ),
        drawn=dict(
            captions=48,
            seeds=1,
            aug_t=[0.05, 0.2, 0.4, 0.6, 0.8],
            w=[1.0, 2.0, 4.0, 8.0],
            sampler="dpmpp_2m",
            steps=8,
            threshold="static",
        ),
        grid=dict(caption=3, aug_t=[0.05, 0.2, 0.4, 0.6, 0.8], w=[1.0, 2.0, 4.0]),
    ),
}


# ---------------------------------------------------------------- drawing


def weights_digest() -> str:
    "Of the weights that ship, whatever is configured beside them."
    files = json.loads((assets() / "toy" / "manifest.json").read_text())["files"]
    return hashlib.sha256(
        " ".join(
            o["sha256"] for name, o in sorted(files.items()) if name.endswith(".safetensors")
        ).encode()
    ).hexdigest()


class Studio:
    "Draws parts with the weights that ship, and remembers them."

    def __init__(self, folder: Path, seconds: float):
        self.imagen, self.world = (
            Imagen.from_pretrained("toy").to("cpu"),
            ShapesWorld("test", level="full"),
        )
        self.weights = weights_digest()
        self.folder, self.end = folder / self.weights[:12], time.monotonic() + seconds

    def part(self, name: str, make) -> dict:
        "Tensors of a part: from disk, or made now."
        path = self.folder / name
        if path.exists():
            return load_directory(path)[0]["part"]
        if time.monotonic() > self.end:
            sys.exit(3)
        since = time.process_time()
        tensors = make()
        save_directory(
            path,
            dict(part=tensors),
            dict(name=name, cpu_seconds=round(time.process_time() - since, 2)),
        )
        return tensors

    def judged(self, name: str, first: int, part: dict) -> dict:
        "A part together with what is measured on its pictures, as they are delivered: clipped."
        return part | self.part(
            f"judged/{name}", lambda: judge(self.world, first, part["images"].clamp(-1, 1))
        )

    def base(self, first: int, k: int, w: float, threshold, sampler: str, steps: int) -> dict:
        "Sixteen pictures of the base: images, outside, scale, and measures."

        def draw():
            text, seeds = self.text(first), seeds_of(first, k)
            made = sample_watched(
                self.imagen.stages[0],
                text,
                seeds,
                w=w,
                threshold=threshold,
                sampler=sampler,
                steps=steps,
            )
            return dict(zip(("images", "outside", "scale"), made))

        name = f"base-w{w:g}-{threshold}-{sampler}-{steps}/caption{first:03}-seed{k}"
        return self.judged(name, first, self.part(name, draw))

    def enlarged(self, first: int, k: int, w: float, aug_t: float) -> dict:
        "The default base's pictures, enlarged to 128 px with another guidance weight."
        lowres = self.base(first, k, **DEFAULT)["images"].clamp(-1, 1)

        def draw():
            return dict(
                images=self.imagen.stages[1].sample(
                    self.text(first), lowres, seeds=seeds_of(first, k), w=w, aug_t=aug_t
                )
            )

        name = f"128px-w{w:g}-aug{aug_t:g}/caption{first:03}-seed{k}"
        return self.judged(name, first, self.part(name, draw))

    def finished(self, captions: int, options: dict) -> torch.Tensor:
        "The first captions through the whole cascade, the enlargers at their defaults; shown at 128 px."

        def draw():
            lowres, text = (
                self.base(0, 0, **options)["images"][:captions].clamp(-1, 1),
                self.text(0).rows(torch.arange(captions)),
            )
            return dict(
                images=self.imagen.sample(text, seeds=seeds_of(0, 0)[:captions], lowres=lowres)
            )

        name = "-".join(f"{v:g}" if isinstance(v, float) else str(v) for v in options.values())
        return resize(self.part(f"512px-{name}/{captions}-captions", draw)["images"], 128)

    def text(self, first: int):
        return self.imagen.encode([self.world.caption(i) for i in range(first, first + PART)])


def seeds_of(first: int, k: int) -> list[int]:
    "The k-th seed of caption i is 1000 k + i."
    return [1000 * k + i for i in range(first, first + PART)]


def gather(draw, captions: int, seeds: int) -> dict:
    "All parts of an arm: name -> (seeds captions ...)."
    parts = [[draw(first, k) for first in range(0, captions, PART)] for k in range(seeds)]
    return {
        name: torch.stack([torch.cat([p[name] for p in row]) for row in parts])
        for name in parts[0][0]
    }


# ---------------------------------------------------------------- measuring


def rounded(value, digits: int = 5):
    "Floats of nested lists and dicts, shortened."
    if isinstance(value, dict):
        return {k: rounded(v, digits) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v, digits) for v in value]
    return round(value, digits) if isinstance(value, float) else value


def judge(world: ShapesWorld, first: int, images: torch.Tensor) -> dict:
    "Measures of pictures of captions first, first + 1, ...: name -> (b,), and their thumbnails."
    rows = score_pictures(world, list(range(first, first + len(images))), images)
    out = dict(
        right=[right_share(r) for r in rows],
        everything=[float(r["all"]) for r in rows],
        error=[drawing_error(world, o) for o in images],
    )
    if images.shape[-1] >= 128:
        out["fill"] = [float(r["fill"]) for r in rows]
    return {k: torch.tensor(v) for k, v in out.items()} | dict(
        saturated=saturated_share(images), thumbnails=thumbnails(images)
    )


def frechet(features: torch.Tensor, reference: torch.Tensor) -> dict:
    "Distance of (seeds captions d) to (REFERENCE captions d): each seed on its own, averaged; jackknife over captions."
    n = features.shape[1]

    def distance(kept):
        return sum(
            frechet_distance(f[kept], reference[:, kept].flatten(0, 1)) for f in features
        ) / len(features)

    return jackknife(distance, n)


def summary(arm: dict, reference=None) -> dict:
    "Everything measured on an arm, with intervals over captions; seeds of a caption are averaged."
    out = {
        k: bootstrap_mean(arm[k].mean(0))
        for k in ("right", "everything", "error", "saturated", "fill")
        if k in arm
    }
    return out | (
        dict(frechet=frechet(arm["thumbnails"], reference[:, : arm["thumbnails"].shape[1]]))
        if reference is not None
        else {}
    )


def base_arm(studio: Studio, reference, captions: int, seeds: int, **options) -> dict:
    "Draw and measure pictures of the base."
    arm = gather(lambda first, k: studio.base(first, k, **options), captions, seeds)
    path = {name: arm[name].mean((0, 1)).tolist() for name in ("outside", "scale")}
    return dict(**options, captions=captions, seeds=seeds, **summary(arm, reference), **path)


def truth(studio: Studio, captions: int, seeds: int, size: int, reference=None) -> dict:
    "The same measures of true drawings: as many for each caption as there are samples."
    arms = [
        judge(studio.world, 0, redrawn(studio, captions, f"truth {k}", size)) for k in range(seeds)
    ]
    return summary({name: torch.stack([a[name] for a in arms]) for name in arms[0]}, reference)


def redrawn(studio: Studio, captions: int, key: str, size: int) -> torch.Tensor:
    "Another drawing of each of the first captions."
    return render(
        [other_drawing(studio.world.scene(i), f"{i} {key}") for i in range(captions)], size
    )


def drawings(studio: Studio, captions: int) -> torch.Tensor:
    "Thumbnails of the reference, (REFERENCE captions d)."
    return torch.stack(
        [thumbnails(redrawn(studio, captions, f"reference {k}", 32)) for k in range(REFERENCE)]
    )


def thresholding(studio: Studio, config: dict) -> tuple[dict, dict]:
    "Three rules over w, and the same at two weights with the paper's sampler."
    wanted, g = [], config["grid"]
    for c in (config, config["ancestral"]):
        fixed = {k: c[k] for k in ("captions", "seeds", "sampler", "steps")}
        wanted += [dict(fixed, w=w, threshold=rule) for rule, w in product(c["threshold"], c["w"])]
    for o in wanted:
        regather(studio, o)
    rows = [
        (
            rule or "none",
            [
                studio.finished(g["captions"], DEFAULT | dict(w=w, threshold=rule))[k]
                for w in g["w"]
            ],
        )
        for k in range(g["captions"])
        for rule in config["threshold"]
    ]
    reference = drawings(studio, config["captions"])
    arms = [base_arm(studio, reference, **o) for o in wanted]
    card = dict(
        arms=arms,
        contrasts=contrasts(studio, arms),
        truth=truth(studio, config["captions"], config["seeds"], 32, reference),
    )
    return card, dict(grid=([f"w = {w:g}" for w in g["w"]], rows))


def contrasts(studio: Studio, arms: list) -> list:
    "Rule minus rule at one weight and sampler, caption by caption: the starting noise is the same."
    found = {(a["sampler"], a["w"], a["threshold"]): regather(studio, a) for a in arms}
    return [
        dict(
            sampler=s,
            w=w,
            rules=[rule, other],
            **differences(found[s, w, rule], found[s, w, other]),
        )
        for s, w in dict.fromkeys((s, w) for s, w, _ in found)
        for rule, other in (("static", None), ("dynamic", "static"), ("dynamic", None))
    ]


def regather(studio: Studio, arm: dict) -> dict:
    "The parts of an arm that was measured."
    return gather(
        lambda first, k: studio.base(first, k, **{o: arm[o] for o in DEFAULT}),
        arm["captions"],
        arm["seeds"],
    )


def differences(one: dict, other: dict) -> dict:
    "Mean differences between two arms, paired by caption and seed."
    return {
        k: bootstrap_mean((one[k] - other[k]).mean(0))
        for k in ("right", "everything", "error", "fill")
        if k in one
    }


def guidance_weight(studio: Studio, config: dict) -> tuple[dict, dict]:
    "The base over w; the first enlarger over w at two levels of augmentation."
    e, g = config["enlarger"], config["grid"]
    fixed = {k: config[k] for k in ("captions", "seeds", "threshold", "sampler", "steps")}
    wanted = [dict(fixed, w=w) for w in config["w"]]
    enlarged = [enlarger_arm(studio, e, w, aug_t) for aug_t, w in product(e["aug_t"], e["w"])]
    made = [regather(studio, o) for o in wanted]
    tiles = [studio.finished(g["captions"], DEFAULT | dict(w=w)) for w in g["w"]]
    rows = [(f"caption {k}", [x[k] for x in tiles]) for k in range(g["captions"])]
    striped = [
        i for i in range(e["captions"]) if studio.world.scene(i).things[0].fill == "striped"
    ][:3]
    close = [
        (f"aug_t = {a:g}", [part_picture(studio, i, w, a) for w in e["w"]])
        for i in striped
        for a in e["aug_t"]
    ]
    reference = drawings(studio, config["captions"])
    arms = [
        base_arm(studio, reference, **o) | dict(gain=differences(arm, made[0]))
        for o, arm in zip(wanted, made)
    ]  # over w = 1
    card = dict(
        arms=arms,
        truth=truth(studio, config["captions"], config["seeds"], 32, reference),
        enlarged=enlarged,
        enlarged_truth=truth(studio, e["captions"], e["seeds"], 128),
    )
    return card, dict(
        grid=([f"w = {w:g}" for w in g["w"]], rows),
        enlarger=([f"w = {w:g}" for w in e["w"]], close),
    )


def part_picture(studio: Studio, i: int, w: float, aug_t: float) -> torch.Tensor:
    "One picture of the 128 px stage."
    return studio.enlarged(i - i % PART, 0, w, aug_t)["images"][i % PART]


def enlarger_arm(studio: Studio, e: dict, w: float, aug_t: float) -> dict:
    "One guidance weight of the 128 px stage on fixed 32 px pictures."
    arm = gather(lambda first, k: studio.enlarged(first, k, w, aug_t), e["captions"], e["seeds"])
    off = gather(
        lambda first, k: studio.enlarged(first, k, e["w"][0], aug_t), e["captions"], e["seeds"]
    )
    return dict(
        w=w,
        aug_t=aug_t,
        captions=e["captions"],
        seeds=e["seeds"],
        **summary(arm),
        gain=differences(arm, off),
    )


def sampler_steps(studio: Studio, config: dict) -> tuple[dict, dict]:
    "Three samplers over the number of evaluations, each beside its own longest run."
    g, fixed = config["grid"], {k: config[k] for k in ("captions", "seeds", "w", "threshold")}
    wanted = [
        dict(fixed, sampler=s, steps=n) for s, n in product(config["sampler"], config["steps"])
    ]
    made = {(o["sampler"], o["steps"]): regather(studio, o) for o in wanted}
    rows = [
        (
            s,
            [
                studio.finished(g["captions"], DEFAULT | dict(sampler=s, steps=n))[k]
                for n in g["steps"]
            ],
        )
        for k in range(g["captions"])
        for s in config["sampler"]
    ]
    reference, longest = drawings(studio, config["captions"]), max(config["steps"])
    arms = [
        base_arm(studio, reference, **o)
        | dict(apart=apart(made[o["sampler"], o["steps"]], made[o["sampler"], longest]))
        for o in wanted
    ]
    return (
        dict(arms=arms, truth=truth(studio, config["captions"], config["seeds"], 32, reference)),
        dict(grid=([f"{n} evaluations" for n in g["steps"]], rows)),
    )


def apart(one: dict, longest: dict) -> dict:
    "Differences, caption by caption, from the same sampler's longest run; distance between the two pictures of a seed."
    distance = (
        (one["images"].clamp(-1, 1) - longest["images"].clamp(-1, 1))
        .square()
        .flatten(2)
        .mean(2)
        .sqrt()
    )
    return differences(one, longest) | dict(distance=bootstrap_mean(distance.mean(0)))


# ---------------------------------------------------------------- what captions are worth to an enlarger


class Encoded:
    "Captions encoded when asked for: the toy encoder is quick."

    def __init__(self, encoder):
        self.encoder, self.identity = encoder, encoder.identity

    def __getitem__(self, captions):
        return self.encoder(captions)


def trained_on_every_level(studio: Studio, training: dict) -> Stage:
    "The first enlarger's network from its first step, its small pictures under noise of every level, as in the paper."
    shipped = studio.imagen.stages[1].config
    config = replace(shipped, aug_max=training["aug_max"], is_residual=training["is_residual"])
    how = replace(toy_full().training[1], steps=training["steps"], batch=training["batch"])
    torch.manual_seed(how.seed)
    world = ShapesWorld("train", level="full")
    return Trainer(
        Stage(config),
        world,
        Encoded(studio.imagen.encoder),
        how,
        studio.folder.with_name("enlarger-every-level"),
    ).fit()


def paired_losses(stage: Stage, studio: Studio, config: dict) -> list[dict]:
    "Loss with the true caption minus loss with another one, all else equal, at every pair of levels; < 0: it helps."
    samples = Samples(
        stage.config,
        studio.world,
        Encoded(studio.imagen.encoder),
        TrainConfig(batch=PART, steps=1, seed=1),
    )
    found = {}
    for first in range(0, config["samples"], PART):
        batch, draws = samples(torch.arange(first, first + PART))
        draws = draws._replace(keep_text=torch.ones(PART, dtype=torch.bool))
        other = batch._replace(text=batch.text.rows(torch.arange(PART).roll(1)))
        for t, aug_t in product(config["t"], config["aug_t"]):
            if aug_t > stage.config.aug_max:
                continue
            at = draws._replace(t=torch.full((PART,), t), aug_t=torch.full((PART,), aug_t))
            with torch.no_grad():
                pair = torch.stack([stage.loss(batch, at), stage.loss(other, at)])
            found.setdefault((t, aug_t), []).append(pair)
    pairs = {key: torch.cat(parts, 1) for key, parts in found.items()}
    return [
        dict(
            t=t,
            aug_t=aug_t,
            loss=true.mean().item(),
            gain=bootstrap_mean(true - shuffled),
            relative=((true - shuffled).mean() / shuffled.mean()).item(),
        )
        for (t, aug_t), (true, shuffled) in pairs.items()
    ]


def enlarger_text(studio: Studio, config: dict) -> tuple[dict, dict]:
    "Losses of three enlargers; pictures of the one that knows every level, by level and guidance weight."
    every = trained_on_every_level(studio, config["training"])
    every.network.eval()
    names = {
        "shipped, 32 to 128": studio.imagen.stages[1],
        "shipped, 128 to 512": studio.imagen.stages[2],
        "every level, 32 to 128": every,
    }
    losses = {
        name: paired_losses(stage.to("cpu"), studio, config["loss"])
        for name, stage in names.items()
    }
    d = config["drawn"]

    def drawn(first, k, aug_t, w):
        lowres = resize(studio.world.images(range(first, first + PART), 128), 32)

        def draw():
            return dict(
                images=every.sample(
                    studio.text(first),
                    lowres,
                    seeds=seeds_of(first, k),
                    w=w,
                    aug_t=aug_t,
                    steps=d["steps"],
                    sampler=d["sampler"],
                    threshold=d["threshold"],
                )
            )

        name = f"every-level-w{w:g}-aug{aug_t:g}/caption{first:03}-seed{k}"
        return studio.judged(name, first, studio.part(name, draw))

    made = {
        (aug_t, w): gather(partial(drawn, aug_t=aug_t, w=w), d["captions"], d["seeds"])
        for aug_t, w in product(d["aug_t"], d["w"])
    }
    arms = [
        dict(aug_t=aug_t, w=w, **summary(m), gain=differences(m, made[aug_t, 1.0]))
        for (aug_t, w), m in made.items()
    ]
    g = config["grid"]
    rows = [
        (f"w = {w:g}", [made[aug_t, w]["images"][0, g["caption"]] for aug_t in g["aug_t"]])
        for w in g["w"]
    ]
    return dict(losses=losses, arms=arms), dict(grid=([f"aug_t {a:g}" for a in g["aug_t"]], rows))


# ---------------------------------------------------------------- writing


def labelled(columns: list, rows: list, path: Path, quality: int):
    "A grid with names at its top and left, as JPEG."
    grid = image_grid([o for _, row in rows for o in row], columns=len(columns), padding=2)
    font, left, top = ImageFont.load_default(13), 14 + max(8 * len(name) for name, _ in rows), 22
    sheet = Image.new("RGB", (grid.width + left, grid.height + top), "white")
    sheet.paste(grid, (left, top))
    draw, tile = ImageDraw.Draw(sheet), grid.width // len(columns)
    for k, name in enumerate(columns):
        draw.text((left + tile * (k + 0.5), 4), name, "black", font, anchor="ma")
    for k, (name, _) in enumerate(rows):
        draw.text((4, top + tile * (k + 0.5)), name, "black", font, anchor="lm")
    sheet.save(path, quality=quality, optimize=True)
    print(f"{path.name}: {path.stat().st_size // 1000} kB")


def cpu_seconds(studio: Studio) -> int:
    "What drawing everything that is kept has cost, experiments shared."
    return round(
        sum(
            json.loads(p.read_text())["cpu_seconds"]
            for p in studio.folder.rglob("meta.json")
            if "judged" not in p.parts
        )
    )


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("name", choices=CONFIGS)
    p.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin no part after so long"
    )
    p.add_argument(
        "--folder", type=Path, default=ROOT / "runs" / "experiments", help="where parts are kept"
    )
    p.add_argument("--quality", type=int, default=72, help="of the JPEG grids")
    args = p.parse_args()
    torch.set_num_threads(1)
    studio, config = Studio(args.folder, args.seconds), CONFIGS[args.name]
    found, grids = dict(
        thresholding=thresholding,
        guidance_weight=guidance_weight,
        sampler_steps=sampler_steps,
        enlarger_text=enlarger_text,
    )[args.name](studio, config)
    stages = [
        {k: v for k, v in config_to_dict(s.config).items() if k != "network"}
        for s in studio.imagen.stages
    ]
    found = dict(
        weights=studio.weights,
        world=studio.world.identity,
        captions="test[0:n]; the k-th seed of caption i is 1000 k + i",
        reference=f"{REFERENCE} other drawings of each caption",
        config=config,
        stages=stages,
        drawing_cpu_seconds_all_pages=cpu_seconds(studio),
        **found,
    )
    write_card(
        RUNS / f"experiment-{args.name}.json",
        args.name,
        f"python tools/measure/run_experiments.py {args.name}",
        **rounded(found),
    )
    for name, (columns, rows) in grids.items():
        labelled(columns, rows, RUNS / f"experiment-{args.name}-{name}.jpg", args.quality)


if __name__ == "__main__":
    main()
