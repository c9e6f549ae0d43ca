"""What training and guidance of one stage change: `python tools/measure/training_arms.py EMOJI_SET`.

Small networks learn the emoji world with one thing changed, all else equal: steps, batch, draws, pictures, two seeds.
Enlargers 32 -> 128 learn from real renders and then enlarge what the shipped base has drawn, mistakes and all.

    augmentation    noise on the small picture in training: none, up to 0.2, up to 1; then its level in sampling times w
    words           what the last network is told: words it attends to, a pooled vector, nothing
    optimizers      Adafactor, Adam and Muon on the base and on the enlarger

    --arm NAME --seed K    this arm alone
    --card NAME            write `data/runs/experiment-NAME.json` of one of the three

An arm that is done is not trained again; a run that was stopped goes on. Distances are Frechet distances between
32-pixel patches of drawn and of real pictures in the features of the judge; the intervals are over captions.
"""

import argparse
import json
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path

import torch
from cards import ROOT, RUNS, write_card
from judge_accuracy import read_rows
from PIL import Image
from text_encoder import Emojis, Standard, rounded
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from imagen_nb.cascade import Imagen
from imagen_nb.engine.execution import Execution
from imagen_nb.evaluation import bootstrap_mean, frechet_distance, jackknife
from imagen_nb.lab.judge import Judge
from imagen_nb.pictures.pixels import crop_images, resize, to_square
from imagen_nb.plots import save_picture, show_images
from imagen_nb.recipes import emoji
from imagen_nb.stage import Stage, StageConfig
from imagen_nb.store.checkpoint import load_directory, save_directory
from imagen_nb.text import TextEncoder
from imagen_nb.training import TrainConfig, Trainer

CONFIG = dict(
    enlarger=dict(steps=400, batch=32, pictures=1200, captions=128, real=1000, w=1.0, aug_t=0.0),
    sweep=dict(aug_t=[0.0, 0.1, 0.2, 0.4], w=[1.0, 2.0, 4.0, 8.0]),
    base=dict(steps=200, batch=48, width=48),
    validate_every=50,
)
EXPERIMENTS = ("augmentation", "words", "optimizers")


# ---------------------------------------------------------------- arms


def enlarger(**changes) -> StageConfig:
    "The first enlarger of the emoji cascade; it predicts the picture itself, not what a small one lacks."
    return replace(emoji().stages[1], is_residual=False, **changes)


def told(text_attention: tuple[bool, bool], **changes) -> StageConfig:
    "An enlarger that attends to words at these levels."
    stage = enlarger(aug_max=0.2, **changes)
    return replace(stage, network=replace(stage.network, text_attention=text_attention))


def base() -> StageConfig:
    "The base of the experiment on text encoders."
    stage = emoji().stages[0]
    network = replace(stage.network, dim=CONFIG["base"]["width"], text_depth=0)
    return replace(stage, network=network)


OPTIMIZERS = {
    f"{name} {lr:g}": dict(optimizer=name, lr=lr)
    for name, rates in {"adafactor": (3e-2, 1e-1), "adam": (1e-3, 3e-3)}.items()
    for lr in rates
}
STAGES = {  # arm -> what is trained; "up to 0.2" is the arm that the others are compared with
    "no augmentation": enlarger(aug_max=0.0),
    "up to 0.2": enlarger(aug_max=0.2),
    "every level": enlarger(aug_max=1.0),
    "pooled text": told((False, False)),
    "no text": told((False, False), caption_drop=1.0),
    "base, muon 0.004": base(),
    **{f"enlarger, {name}": enlarger(aug_max=0.2) for name in OPTIMIZERS},
    **{f"base, {name}": base() for name in OPTIMIZERS},
}
ARMS = {  # experiment -> its arms
    "augmentation": ["no augmentation", "up to 0.2", "every level"],
    "words": ["up to 0.2", "pooled text", "no text"],
    "optimizers": [
        "up to 0.2",
        "base, muon 0.004",
        *(f"{stage}, {name}" for stage in ("enlarger", "base") for name in OPTIMIZERS),
    ],
}


def training(name: str, seed: int) -> TrainConfig:
    "How an arm is trained."
    part = CONFIG["base" if name.startswith("base") else "enlarger"]
    how = replace(
        emoji().training[0],
        steps=part["steps"],
        batch=part["batch"],
        warmup=part["steps"] // 10,
        decay="cosine",
        seed=seed,
    )
    return replace(how, **OPTIMIZERS.get(name.split(", ")[-1], {}))


# ---------------------------------------------------------------- pictures


class Renders:
    "Real pictures in memory, 128 px, and their captions; crops as an enlarger's training asks for them."

    def __init__(self, folder: Path, rows: list[dict], size: int):
        self.rows, self.name = rows, "emoji"
        opened = (Image.open(folder / r["split"] / r["file_name"]).convert("RGB") for r in rows)
        self.pixels = torch.stack([((to_square(o, size) + 1) * 127.5).byte() for o in opened])

    def __len__(self):
        return len(self.rows)

    def caption(self, i: int, epoch: int | None = None) -> str:
        "The plainest."
        return self.rows[i]["text"][0]

    def images(self, indices, size=None, crop=None, device=None) -> Tensor:
        "Pictures by index, or windows of them."
        images = self.pixels[torch.as_tensor(indices)].float() / 127.5 - 1
        return (images if crop is None else crop_images(images, crop)).to(device)


class World:
    "What all arms see and are asked."

    def __init__(self, folder: Path, work: Path):
        part, self.work, self.folder = CONFIG["enlarger"], work, folder
        rows = [row for row in read_rows(folder) if not row["tone"]]
        random.Random("training arms").shuffle(rows)
        self.train = [row for row in rows if row["split"] == "train"]
        self.asked = [row for row in rows if row["split"] == "test"][: part["captions"]]
        self.captions = [row["text"][0] for row in self.asked]

    @cached_property
    def renders(self) -> Renders:
        return Renders(self.folder, self.train[: CONFIG["enlarger"]["pictures"]], 128)

    @cached_property
    def held_back(self) -> Renders:
        return Renders(self.folder, self.asked, 128)

    @cached_property
    def held_back_small(self) -> Renders:
        return Renders(self.folder, [r for r in self.emojis.all if r["split"] == "test"], 32)

    @cached_property
    def real(self) -> Renders:
        return Renders(self.folder, self.train[-CONFIG["enlarger"]["real"] :], 128)

    @cached_property
    def emojis(self) -> Emojis:
        return Emojis(self.folder)

    @cached_property
    def text(self) -> Standard:
        known = [row["text"][0] for row in self.train] + self.captions
        return Standard(TextEncoder.english(), sorted({*known, *self.emojis.captions()}))

    @cached_property
    def small(self) -> Tensor:
        "What the shipped base draws for captions that it was never trained on, (n 3 32 32)."
        place = self.work / "small"
        if not place.exists():
            imagen = Imagen.from_pretrained("emoji")
            drawn = imagen.sample(self.captions, seeds=list(range(len(self.captions))), stages=1)
            save_directory(place, {"images": {"small": drawn}}, {})
        return load_directory(place)[0]["images"]["small"]


# ---------------------------------------------------------------- one arm


@dataclass
class Arm:
    "A stage that learns in one way."

    name: str
    seed: int
    world: World

    @property
    def folder(self) -> Path:
        return self.world.work / f"{self.name.replace(' ', '-').replace(',', '')}-{self.seed}"

    @property
    def is_base(self) -> bool:
        return self.name.startswith("base")

    def fit(self) -> Stage:
        "Train, or go on, or only load."
        torch.manual_seed(self.seed)
        stage, world = Stage(STAGES[self.name]), self.world
        data = world.emojis if self.is_base else world.renders
        watch = Execution(validate_every=CONFIG["validate_every"], sample_every=0, progress=False)
        valid = world.held_back_small if self.is_base else world.held_back
        how = training(self.name, self.seed)
        return Trainer(stage, data, world.text, how, self.folder / "run", valid, watch).fit()

    def done(self) -> dict:
        "What it cost and how its loss on held-back pictures fell."
        place = self.folder / "done.json"
        if not place.exists():
            since = time.process_time()
            stage = self.fit()
            spent = time.process_time() - since
            numbers = dict(
                parameters=sum(p.numel() for p in stage.network.parameters()),
                gflops=round(flops(stage, self.world.text) / 1e9, 3),
                cpu_seconds=round(spent, 1),
            )
            place.write_text(json.dumps(numbers | dict(curve=self.curve())))
            print(f"{self.name}, seed {self.seed}: {spent:.0f} CPU-seconds", flush=True)
        return json.loads(place.read_text())

    def curve(self) -> list:
        "Steps and mean loss on pictures held back."
        lines = (self.folder / "run" / "validation.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return [[r["step"], round(sum(r["loss"]) / len(r["loss"]), 5)] for r in rows]

    @cached_property
    def stage(self) -> Stage:
        self.done()
        stage = self.fit().to("cpu")
        stage.network.eval()
        return stage

    def enlarged(self, aug_t: float, w: float, is_real: bool = False) -> Tensor:
        "The base's pictures, or real small ones, enlarged: (n 3 128 128)."
        place = self.folder / f"drawn-{aug_t:g}-{w:g}{'-real' if is_real else ''}"
        if not place.exists():
            world, parts = self.world, []
            low = resize(world.held_back.images(range(len(world.asked))), 32)
            low = low if is_real else world.small
            for i in range(0, len(low), 32):
                seeds = list(range(i, min(i + 32, len(low))))
                text = world.text[world.captions[i : i + 32]]
                o = self.stage.sample(text, low[i : i + 32], seeds=seeds, aug_t=aug_t, w=w)
                parts.append(((o + 1) * 127.5).round().byte())
            save_directory(place, {"images": {"drawn": torch.cat(parts)}}, {})
        return load_directory(place)[0]["images"]["drawn"].float() / 127.5 - 1


def flops(stage: Stage, text: Standard) -> float:
    "Of one evaluation of the network on one training picture."
    side, level, words = stage.config.side, torch.zeros(1), text[["a cat"]]
    low = (torch.zeros(1, 3, side, side), level) if stage.config.lowres_size else ()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        stage.network(torch.zeros(1, 3, side, side), level, words, *low)
    return counter.get_total_flops()


# ---------------------------------------------------------------- scores


class Scorer:
    "Patches of pictures in the features of the judge."

    def __init__(self, world: World):
        self.world, self.judge = world, Judge.shipped()
        self.real = self.patches(world.real.images(range(len(world.real)))).flatten(0, 1)

    @torch.no_grad()
    def patches(self, images: Tensor) -> Tensor:  # (n 5 d)
        "Four quarters around the middle and the middle itself, 32 px each."
        corners = [(32, 32), (32, 64), (64, 32), (64, 64), (48, 48)]
        cut = torch.stack([images[..., y : y + 32, x : x + 32] for y, x in corners], 1)
        features = [self.judge.image_features(part) for part in cut.flatten(0, 1).split(320)]
        return torch.cat(features).unflatten(0, cut.shape[:2])

    def distance(self, seeds: list[Tensor]) -> dict:
        "Of all seeds together to the real patches, with an interval over captions, and of each seed."
        drawn = torch.stack([self.patches(o) for o in seeds], 1)  # (n seeds 5 d)

        def far(some: Tensor, kept: Tensor) -> float:
            return frechet_distance(self.real, some[kept].flatten(0, -2))

        apart = [round(far(drawn[:, k], torch.arange(len(drawn))), 4) for k in range(len(seeds))]
        return jackknife(partial(far, drawn), len(drawn)) | dict(by_seed=apart)

    def contrast(self, first: "Setting", second: "Setting") -> dict:
        "Distance and match of the first minus those of the second, the same captions left out of both."
        drawn = [[arm.enlarged(**o.how) for arm in o.arms] for o in (first, second)]
        patches = [torch.stack([self.patches(o) for o in row], 1) for row in drawn]

        def further(kept: Tensor) -> float:
            far = [frechet_distance(self.real, o[kept].flatten(0, -2)) for o in patches]
            return far[0] - far[1]

        scores = [
            torch.stack([self.judge.score(o, self.world.captions) for o in row]).mean(0)
            for row in drawn
        ]
        return dict(
            first=first.name,
            second=second.name,
            frechet=jackknife(further, len(self.world.captions)),
            match=bootstrap_mean(100 * (scores[0] - scores[1])),
        )

    def match(self, seeds: list[Tensor]) -> dict:
        "100 times the cosine of picture and caption, mean over captions."
        scores = torch.stack([self.judge.score(o, self.world.captions) for o in seeds]).mean(0)
        return bootstrap_mean(100 * scores)

    def of(self, arms: list[Arm], **setting) -> dict:
        "One setting of one arm."
        drawn = [arm.enlarged(**setting) for arm in arms]
        return dict(**setting, frechet=self.distance(drawn), match=self.match(drawn))


@dataclass
class Setting:
    "One setting of one arm, by name."

    arms: list[Arm]
    how: dict

    @property
    def name(self) -> str:
        return f"{self.arms[0].name}, aug_t {self.how['aug_t']:g}, w {self.how['w']:g}"


def contrasts(scorer: Scorer, arms: dict[str, list[Arm]], pairs: list) -> list[dict]:
    "Pairs of (arm, aug_t, w)."
    one = [[Setting(arms[name], dict(aug_t=a, w=w)) for name, a, w in pair] for pair in pairs]
    return [scorer.contrast(*pair) for pair in one]


def settings(name: str) -> Iterable[dict]:
    "What an arm of `augmentation` is asked; one that never saw noise is shown none."
    levels = [0.0] if name == "no augmentation" else CONFIG["sweep"]["aug_t"]
    return [dict(aug_t=a, w=w) for a, w in product(levels, CONFIG["sweep"]["w"])]


def shared(arms: dict[str, list[Arm]]) -> dict:
    "Cost and curve of each arm."
    out = {}
    for name, row in arms.items():
        done = [arm.done() for arm in row]
        out[name] = {k: done[0][k] for k in ("parameters", "gflops")} | dict(
            cpu_seconds=[o["cpu_seconds"] for o in done], curves=[o["curve"] for o in done]
        )
    return out


def augmentation(scorer: Scorer, arms: dict[str, list[Arm]]) -> dict:
    "Every level of noise and every w; and the same from real small pictures, where no mistake is to be mended."
    small = resize(scorer.world.small, 128)
    none, some, every = ARMS["augmentation"]
    pairs = [((none, 0.0, 1.0), (arm, 0.1, 1.0)) for arm in (some, every)]
    pairs += [((arm, a, 1.0), (arm, 0.0, 1.0)) for arm in (some, every) for a in (0.1, 0.2, 0.4)]
    pairs += [
        ((arm, a, 1.0), (arm, a, w))
        for arm, a in ((none, 0.0), (some, 0.1), (every, 0.1))
        for w in (2.0, 4.0, 8.0)
    ]
    return dict(
        contrasts=contrasts(scorer, arms, pairs),
        small=dict(frechet=scorer.distance([small]), match=scorer.match([small])),
        sweep={
            name: [scorer.of(row, **setting) for setting in settings(name)]
            for name, row in arms.items()
        },
        from_real={
            name: scorer.of(row, aug_t=0.0, w=1.0, is_real=True) for name, row in arms.items()
        },
    )


def words(scorer: Scorer, arms: dict[str, list[Arm]]) -> dict:
    "Each arm at each w."
    attending, *others = ARMS["words"]
    pairs = [((arm, 0.1, 1.0), (attending, 0.1, 1.0)) for arm in others]
    pairs += [((others[0], 0.1, w), (attending, 0.1, w)) for w in CONFIG["sweep"]["w"][1:]]
    return dict(
        contrasts=contrasts(scorer, arms, pairs),
        drawn={
            name: [
                scorer.of(row, aug_t=0.1, w=w)
                for w in (CONFIG["sweep"]["w"] if name != "no text" else [1.0])
            ]
            for name, row in arms.items()
        },
    )


def least(arms: dict[str, list[Arm]], begins: str) -> str:
    "Of the rates of one optimizer, that with the lowest loss on pictures held back: seed 0, at the end."
    names = [name for name in arms if name.startswith(f"{begins} ")]
    return min(names, key=lambda name: arms[name][0].done()["curve"][-1][1])


def optimizers(scorer: Scorer, arms: dict[str, list[Arm]]) -> dict:
    "What the enlargers draw; of the bases the loss says enough."
    rows = {name: row for name, row in arms.items() if not row[0].is_base}
    best = {o: least(arms, f"enlarger, {o}") for o in ("adafactor", "adam")}
    pairs = [[(best[o], 0.1, 1.0) for o in best]]
    return dict(
        best=best | {f"base, {o}": least(arms, f"base, {o}") for o in best},
        contrasts=contrasts(scorer, arms, pairs),
        drawn={name: scorer.of(row, aug_t=0.1, w=1.0) for name, row in rows.items()},
    )


def picture(scorer: Scorer, arms: dict[str, list[Arm]], path: Path):
    "The first captions, a row for each arm: seed 0, w = 1."
    world, n = scorer.world, 6
    rows = {"base, 32 px": resize(world.small[:n], 128)}
    for name, row in arms.items():
        if not row[0].is_base:
            aug_t = 0.0 if name == "no augmentation" else 0.1
            rows[name] = row[0].enlarged(aug_t, 1.0)[:n]
    fig = show_images(torch.cat([*rows.values()]), columns=n, width=1.0, rows=list(rows))
    save_picture(fig, path)


def trained(world: World, names: list[str], seeds: list[int]) -> dict[str, list[Arm]]:
    "Every arm; of the rates of one optimizer only the best has more than one seed."
    arms = {name: [Arm(name, seeds[0], world)] for name in names}
    for (first,) in arms.values():
        first.done()
    tried = {f"{stage}, {o}" for stage in ("enlarger", "base") for o in ("adafactor", "adam")}
    best = {least(arms, o) for o in tried if any(name.startswith(o) for name in names)}
    for name, row in arms.items():
        if name in best or not any(name.startswith(o) for o in tried):
            row += [Arm(name, seed, world) for seed in seeds[1:]]
        for arm in row:
            arm.done()
    return arms


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("data", type=Path, help="folder that `imagen-nb emoji` wrote")
    p.add_argument("--work", type=Path, default=ROOT / "runs" / "training-arms")
    p.add_argument("--arm", help="this one alone")
    p.add_argument("--seed", type=int, help="this one alone")
    p.add_argument("--card", choices=EXPERIMENTS, help="write the card of one experiment")
    args = p.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    world = World(args.data, args.work)
    seeds = [0, 1] if args.seed is None else [args.seed]
    if args.arm:
        for seed in seeds:
            Arm(args.arm, seed, world).done()
        return
    arms = trained(world, ARMS[args.card] if args.card else list(STAGES), seeds)
    if not args.card:
        return
    scorer = Scorer(world)
    found = {"augmentation": augmentation, "words": words, "optimizers": optimizers}[args.card](
        scorer, arms
    )
    out = RUNS / f"experiment-{args.card}.json"
    picture(scorer, arms, out.with_name(f"experiment-{args.card}-grid.jpg"))
    write_card(
        out,
        f"one stage of the emoji world, trained with one thing changed: {args.card}",
        f"python tools/measure/training_arms.py EMOJI_SET --card {args.card}",
        config=CONFIG,
        captions=world.captions[:6],
        seeds=seeds,
        arms=shared(arms),
        **rounded(found),
    )


if __name__ == "__main__":
    main()
