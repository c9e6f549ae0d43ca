"""Measure what a page in nbs/experiments shows: `python tools/run_experiments.py thresholding`.

Pictures are drawn in parts of 16 and kept in `runs/experiments`; what is there is not drawn
again. With `--seconds 60` no part begins after so long: exit status 3 says that there is more
to do. When all is drawn, `data/runs/experiment-NAME.json` and its grids are written.
"""
import argparse
import json
import os
import platform
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from imagen_nb.cascade import Imagen, config_to_dict
from imagen_nb.checkpoint import assets, load_directory, save_directory
from imagen_nb.data import ShapesWorld, resize
from imagen_nb.evaluation import score_pictures
from imagen_nb.experiments import (bootstrap_mean, drawing_error, frechet_distance, jackknife, right_share, sample_watched,
                                   saturated_share, thumbnails)
from imagen_nb.plots import image_grid

ROOT = Path(__file__).resolve().parents[1]
PART = 16   # captions drawn together
REFERENCE = range(1000, 5000)   # drawings that the Frechet distance compares with
DEFAULT = dict(w=2., threshold="dynamic", sampler="dpmpp_2m", steps=16)   # of the shipped base

CONFIGS = {
    "thresholding": dict(
        captions=96, seeds=2, w=[1., 1.5, 2., 3., 4., 6., 10.], threshold=[None, "static", "dynamic"], sampler="dpmpp_2m", steps=16,
        ancestral=dict(captions=96, seeds=1, w=[4., 10.], threshold=[None, "static", "dynamic"], sampler="ddpm", steps=16),
        grid=dict(captions=2, w=[1., 2., 4., 6., 10.])),
    "guidance_weight": dict(
        captions=96, seeds=2, w=[1., 1.25, 1.5, 2., 3., 4., 6., 10.], threshold="dynamic", sampler="dpmpp_2m", steps=16,
        enlarger=dict(captions=48, seeds=1, base_w=2., w=[1., 2., 3., 5., 8., 12.], aug_t=[.05, .2], threshold="static", sampler="dpmpp_2m", steps=6),
        grid=dict(captions=4, w=[1., 1.5, 2., 3., 4., 6., 10.])),
    "sampler_steps": dict(
        captions=64, seeds=1, w=2., threshold="dynamic", sampler=["ddpm", "ddim", "dpmpp_2m"], steps=[2, 4, 8, 16, 32, 64, 128],
        grid=dict(captions=2, steps=[2, 4, 8, 16, 32, 128])),
}


# ---------------------------------------------------------------- drawing

class Studio:
    "Draws parts with the weights that ship, and remembers them."

    def __init__(self, folder: Path, seconds: float):
        self.imagen, self.world = Imagen.from_pretrained("toy").to("cpu"), ShapesWorld("test", level="full", length=5000)
        self.weights = json.loads((assets()/"toy"/"manifest.json").read_text())["sha256"]
        self.folder, self.end = folder/self.weights[:12], time.monotonic() + seconds

    def part(self, name: str, draw) -> dict:
        "Tensors of a part: from disk, or drawn now."
        path = self.folder/name
        if path.exists(): return load_directory(path)[0]["part"]
        if time.monotonic() > self.end: sys.exit(3)
        since = time.process_time()
        tensors = draw()
        save_directory(path, dict(part=tensors), dict(name=name, cpu_seconds=round(time.process_time() - since, 2)))
        return load_directory(path)[0]["part"]

    def base(self, first: int, k: int, w: float, threshold, sampler: str, steps: int) -> dict:
        "Sixteen pictures of the base: images, outside, scale."
        def draw():
            text, seeds = self.text(first), seeds_of(first, k)
            made = sample_watched(self.imagen.stages[0], text, seeds, w=w, threshold=threshold, sampler=sampler, steps=steps)
            return dict(zip(("images", "outside", "scale"), made))
        return self.part(f"base-w{w:g}-{threshold}-{sampler}-{steps}/caption{first:03}-seed{k}", draw)

    def enlarged(self, first: int, k: int, w: float, aug_t: float) -> dict:
        "The default base's pictures, enlarged to 128 px with another guidance weight."
        lowres = self.base(first, k, **DEFAULT)["images"].clamp(-1, 1)
        draw = lambda: dict(images=self.imagen.stages[1].sample(self.text(first), lowres, seeds=seeds_of(first, k), w=w, aug_t=aug_t))
        return self.part(f"128px-w{w:g}-aug{aug_t:g}/caption{first:03}-seed{k}", draw)

    def finished(self, captions: int, options: dict) -> torch.Tensor:
        "The first captions through the whole cascade, the enlargers at their defaults; shown at 128 px."
        def draw():
            lowres, text = self.base(0, 0, **options)["images"][:captions].clamp(-1, 1), self.text(0).rows(torch.arange(captions))
            return dict(images=self.imagen.sample(text, seeds=seeds_of(0, 0)[:captions], lowres=lowres))
        name = "-".join(f"{v:g}" if isinstance(v, float) else str(v) for v in options.values())
        return resize(self.part(f"512px-{name}/{captions}-captions", draw)["images"], 128)

    def text(self, first: int):
        return self.imagen.encode([self.world.caption(i) for i in range(first, first + PART)])


def seeds_of(first: int, k: int) -> list[int]:
    "The k-th seed of caption i is 1000 k + i."
    return [1000*k + i for i in range(first, first + PART)]


def gather(draw, captions: int, seeds: int, name: str = "images") -> torch.Tensor:
    "Draw all parts of an arm: (seeds captions ...)."
    return torch.stack([torch.cat([draw(first, k)[name] for first in range(0, captions, PART)]) for k in range(seeds)])


# ---------------------------------------------------------------- measuring

def rounded(value, digits: int = 5):
    "Floats of nested lists and dicts, shortened."
    if isinstance(value, dict): return {k: rounded(v, digits) for k, v in value.items()}
    if isinstance(value, list): return [rounded(v, digits) for v in value]
    return round(value, digits) if isinstance(value, float) else value


def per_caption(studio: Studio, images: torch.Tensor) -> dict:
    "Measures of (seeds captions 3 h w), averaged over a caption's seeds: name -> (captions,)."
    every = list(range(images.shape[1]))
    rows = [score_pictures(studio.world, every, x) for x in images]
    marks = lambda name: [[float(r[name]) for r in row] for row in rows]
    out = dict(right=[[right_share(r) for r in row] for row in rows], everything=marks("all"),
               error=[[drawing_error(studio.world, o) for o in x] for x in images])
    return {k: torch.tensor(v).mean(0) for k, v in out.items()} | dict(saturated=torch.stack([saturated_share(x) for x in images]).mean(0))


def frechet(images: torch.Tensor, reference: torch.Tensor) -> dict:
    "Distance to the reference, each seed on its own, averaged; jackknife over captions."
    features = torch.stack([thumbnails(x) for x in images])
    return jackknife(lambda kept: sum(frechet_distance(f[kept], reference) for f in features)/len(features), images.shape[1])


def measure(studio: Studio, images: torch.Tensor, reference=None) -> dict:
    "Everything of an arm, with intervals. Pictures are judged as they are delivered: clipped."
    images = images.clamp(-1, 1)
    out = {k: bootstrap_mean(v) for k, v in per_caption(studio, images).items()}
    return out | (dict(frechet=frechet(images, reference)) if reference is not None else {})


def base_arm(studio: Studio, reference, captions: int, seeds: int, **options) -> dict:
    "Draw and measure pictures of the base."
    draw = lambda first, k: studio.base(first, k, **options)
    path = {name: gather(draw, captions, seeds, name).mean((0, 1)).tolist() for name in ("outside", "scale")}
    return dict(**options, captions=captions, seeds=seeds, **measure(studio, gather(draw, captions, seeds), reference), **path)


def truth(studio: Studio, captions: int, size: int, reference=None) -> dict:
    "The same measures of the true drawings of the same captions."
    return measure(studio, studio.world.images(range(captions), size)[None], reference)


def drawings(studio: Studio) -> torch.Tensor:
    "Thumbnails of the reference."
    return torch.cat([thumbnails(studio.world.images(REFERENCE[k:k + 500], 32)) for k in range(0, len(REFERENCE), 500)])


def thresholding(studio: Studio, config: dict) -> tuple[dict, dict]:
    "Three rules over w, and the same at two weights with the paper's sampler."
    pick = lambda c, names: {k: c[k] for k in names}
    arms, reference = [], drawings(studio)
    for c in (config, config["ancestral"]):
        fixed = pick(c, ("captions", "seeds", "sampler", "steps"))
        arms += [base_arm(studio, reference, w=w, threshold=rule, **fixed) for rule, w in product(c["threshold"], c["w"])]
    g = config["grid"]
    rows = [(rule or "none", [studio.finished(g["captions"], DEFAULT | dict(w=w, threshold=rule))[k] for w in g["w"]])
            for k in range(g["captions"]) for rule in config["threshold"]]
    return dict(arms=arms, truth=truth(studio, config["captions"], 32, reference)), dict(grid=([f"w = {w:g}" for w in g["w"]], rows))


def guidance_weight(studio: Studio, config: dict) -> tuple[dict, dict]:
    "The base over w; the first enlarger over w at two levels of augmentation."
    reference, e, g = drawings(studio), config["enlarger"], config["grid"]
    fixed = {k: config[k] for k in ("captions", "seeds", "threshold", "sampler", "steps")}
    arms = [base_arm(studio, reference, w=w, **fixed) for w in config["w"]]
    enlarged = [enlarger_arm(studio, e, w, aug_t) for aug_t, w in product(e["aug_t"], e["w"])]
    tiles = [studio.finished(g["captions"], DEFAULT | dict(w=w)) for w in g["w"]]
    rows = [(f"caption {k}", [x[k] for x in tiles]) for k in range(g["captions"])]
    striped = [i for i in range(e["captions"]) if studio.world.scene(i).things[0].fill == "striped"][:3]
    close = [(f"aug_t = {a:g}", [part_picture(studio, i, w, a) for w in e["w"]]) for i in striped for a in e["aug_t"]]
    card = dict(arms=arms, truth=truth(studio, config["captions"], 32, reference), enlarged=enlarged,
                enlarged_truth=enlarger_truth(studio, e["captions"]))
    return card, dict(grid=([f"w = {w:g}" for w in g["w"]], rows), enlarger=([f"w = {w:g}" for w in e["w"]], close))


def part_picture(studio: Studio, i: int, w: float, aug_t: float) -> torch.Tensor:
    "One picture of the 128 px stage."
    return studio.enlarged(i - i % PART, 0, w, aug_t)["images"][i % PART]


def fill_right(studio: Studio, images: torch.Tensor) -> dict:
    "Share of pictures whose fills are right, over captions."
    return bootstrap_mean(torch.tensor([float(r["fill"]) for r in score_pictures(studio.world, list(range(len(images))), images)]))


def enlarger_arm(studio: Studio, e: dict, w: float, aug_t: float) -> dict:
    "One guidance weight of the 128 px stage on fixed 32 px pictures."
    images = gather(lambda first, k: studio.enlarged(first, k, w, aug_t), e["captions"], e["seeds"])
    return dict(w=w, aug_t=aug_t, captions=e["captions"], seeds=e["seeds"], **measure(studio, images), fill=fill_right(studio, images[0]))


def enlarger_truth(studio: Studio, captions: int) -> dict:
    "The true drawings at 128 px."
    images = studio.world.images(range(captions), 128)
    return dict(measure(studio, images[None]), fill=fill_right(studio, images))


def sampler_steps(studio: Studio, config: dict) -> tuple[dict, dict]:
    "Three samplers over the number of evaluations, each beside its own longest run."
    reference, g = drawings(studio), config["grid"]
    fixed = {k: config[k] for k in ("captions", "seeds", "w", "threshold")}
    arms = [base_arm(studio, reference, sampler=s, steps=n, **fixed) for s, n in product(config["sampler"], config["steps"])]
    values = {}
    for arm in arms:
        options = {k: arm[k] for k in DEFAULT}
        images = gather(lambda first, k: studio.base(first, k, **options), config["captions"], config["seeds"]).clamp(-1, 1)
        values[arm["sampler"], arm["steps"]] = per_caption(studio, images) | dict(images=images[0])
    for arm in arms: arm["apart"] = apart(values[arm["sampler"], arm["steps"]], values[arm["sampler"], max(config["steps"])])
    rows = [(s, [studio.finished(g["captions"], DEFAULT | dict(sampler=s, steps=n))[k] for n in g["steps"]])
            for k in range(g["captions"]) for s in config["sampler"]]
    return (dict(arms=arms, truth=truth(studio, config["captions"], 32, reference)),
            dict(grid=([f"{n} evaluations" for n in g["steps"]], rows)))


def apart(one: dict, longest: dict) -> dict:
    "Differences, caption by caption, from the same sampler's longest run; distance between the two pictures of a seed."
    distance = (one["images"] - longest["images"]).square().flatten(1).mean(1).sqrt()
    return {k: bootstrap_mean(one[k] - longest[k]) for k in ("right", "everything", "error")} | dict(distance=bootstrap_mean(distance))


# ---------------------------------------------------------------- writing

def labelled(columns: list, rows: list, path: Path, quality: int):
    "A grid with names at its top and left, as JPEG."
    grid = image_grid([o for _, row in rows for o in row], columns=len(columns), padding=2)
    font, left, top = ImageFont.load_default(13), 12 + max(7*len(name) for name, _ in rows), 22
    sheet = Image.new("RGB", (grid.width + left, grid.height + top), "white")
    sheet.paste(grid, (left, top))
    draw, tile = ImageDraw.Draw(sheet), grid.width//len(columns)
    for k, name in enumerate(columns): draw.text((left + tile*(k + .5), 4), name, "black", font, anchor="ma")
    for k, (name, _) in enumerate(rows): draw.text((4, top + tile*(k + .5)), name, "black", font, anchor="lm")
    sheet.save(path, quality=quality, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size//1000} kB")


def machine() -> dict:
    "Where it was measured."
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return dict(commit=commit, device=f"{os.cpu_count()} CPU cores, {torch.backends.cpu.get_cpu_capability()}, 1 thread",
                torch=torch.__version__, python=platform.python_version())


def cpu_seconds(studio: Studio) -> int:
    "What drawing everything that is kept has cost, experiments shared."
    return round(sum(json.loads(p.read_text())["cpu_seconds"] for p in studio.folder.rglob("meta.json")))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("name", choices=CONFIGS)
    p.add_argument("--seconds", type=float, default=float("inf"), help="begin no part after so long")
    p.add_argument("--folder", type=Path, default=ROOT/"runs"/"experiments", help="where parts are kept")
    p.add_argument("--quality", type=int, default=72, help="of the JPEG grids")
    args = p.parse_args()
    torch.set_num_threads(1)
    studio, config = Studio(args.folder, args.seconds), CONFIGS[args.name]
    found, grids = dict(thresholding=thresholding, guidance_weight=guidance_weight, sampler_steps=sampler_steps)[args.name](studio, config)
    stages = [{k: v for k, v in config_to_dict(s.config).items() if k != "network"} for s in studio.imagen.stages]
    card = dict(what=args.name, command=f"python tools/run_experiments.py {args.name}", **machine(), weights=studio.weights, world=studio.world.identity,
                captions="test[0:n]; the k-th seed of caption i is 1000 k + i", reference=[REFERENCE.start, REFERENCE.stop], config=config,
                stages=stages, cpu_seconds_of_all_parts=cpu_seconds(studio), **found)
    out = ROOT/"data"/"runs"
    (out/f"experiment-{args.name}.json").write_text(json.dumps(rounded(card)) + "\n")
    for name, (columns, rows) in grids.items(): labelled(columns, rows, out/f"experiment-{args.name}-{name}.jpg", args.quality)


if __name__ == "__main__": main()
