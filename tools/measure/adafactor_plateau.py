"""Adafactor's steps scaled by each weight's size, and not: loss of a tiny base, into `data/runs/adafactor.json`.

    python tools/measure/adafactor_plateau.py

Layers that start at zero have no size, so scaled steps are small there: 1e-3 of the rate. Each curve is a run with a
constant rate and no warm-up. All see the same pictures and draws, and start from the same weights. Curves that the
card has are kept: delete it to measure all of them.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from cards import RUNS, write_card

from imagen_nb.data import ShapesWorld
from imagen_nb.engine.captions import EmbeddingCache
from imagen_nb.engine.keeping import Learned
from imagen_nb.engine.optim import rms
from imagen_nb.stage import Stage, StageConfig
from imagen_nb.store.config import config_to_dict
from imagen_nb.text import TextEncoder
from imagen_nb.training import Samples, TrainConfig, update
from imagen_nb.unet import UNetConfig

OUT, POINTS = RUNS / "adafactor.json", 30  # points of a curve
TINY = StageConfig(  # eps, as the paper's base
    size=8,
    network=UNetConfig(
        dim=16,
        mults=(1,),
        blocks=1,
        attention=(True,),
        head_dim=16,
        text_dim=128,
        text_width=16,
        emb_dim=32,
        pool_queries=1,
    ),
)
SHORT = [
    (name, lr, 300)
    for name in ("adafactor", "adafactor_unscaled", "adam")
    for lr in (1e-4, 1e-3, 1e-2)
]
LONG = [
    (name, lr, 3000) for name in ("adafactor", "adafactor_unscaled") for lr in (1e-4, 1e-3, 1e-2)
]


def settings(name: str, lr: float, steps: int) -> TrainConfig:
    "How one curve is trained."
    return TrainConfig(
        optimizer=name, lr=lr, steps=steps, batch=8, warmup=0, decay="constant", ema=0.0
    )


def samples(config: TrainConfig, folder: Path) -> Samples:
    "What every curve sees."
    world = ShapesWorld("train", level="quick", size=TINY.size, length=256)
    captions = [world.caption(i) for i in range(len(world))]
    return Samples(
        TINY, world, EmbeddingCache.build(TextEncoder.toy(), captions, folder / "text"), config
    )


def curve(config: TrainConfig, batches) -> dict:
    "Train; loss, and size of the weights that started at zero, as means over equal parts of the run."
    torch.manual_seed(0)
    since, learned = time.process_time(), Learned.begin(Stage(TINY), config, torch.device("cpu"))
    stage, losses, sizes = Stage(TINY, learned.network), [], []
    zero = [p for p in learned.network.parameters() if p.ndim > 1 and not p.any()]
    for step, (batch, draws) in zip(range(config.steps), batches):
        loss = stage.loss(batch, draws).mean()
        loss.backward()
        update(learned, step, config)
        losses.append(loss.item())
        if (step + 1) % (config.steps // POINTS) == 0:
            sizes.append(statistics.mean(rms(p.detach()[None]).item() for p in zero))
    n = config.steps // POINTS
    parts = [round(statistics.mean(losses[i : i + n]), 4) for i in range(0, config.steps, n)]
    return dict(
        optimizer=config.optimizer,
        lr=config.lr,
        steps=config.steps,
        loss=parts,
        last=round(statistics.mean(losses[-config.steps // 10 :]), 4),
        size=[float(f"{s:.3g}") for s in sizes],
        zero_tensors=len(zero),
        cpu_seconds=round(time.process_time() - since, 1),
    )


def main():
    "Measure every curve that the card lacks; write after each."
    torch.set_num_threads(1)
    curves = json.loads(OUT.read_text())["curves"] if OUT.exists() else []
    done = {(c["optimizer"], c["lr"], c["steps"]) for c in curves}
    with tempfile.TemporaryDirectory() as folder:
        seen = samples(settings(*LONG[1]), Path(folder))
        batches = list(seen.batches(0))
    for which in (o for o in SHORT + LONG if o not in done):
        curves.append(curve(settings(*which), batches))
        print(curves[-1] | dict(loss=curves[-1]["last"], size=curves[-1]["size"][-1]), flush=True)
        write_card(
            OUT,
            "loss of a tiny base by optimizer and constant rate, and root mean square of its"
            f" weights that start at zero; means over {POINTS} equal parts of a run, seed 0",
            "python tools/measure/adafactor_plateau.py",
            stage=config_to_dict(TINY),
            train=config_to_dict(settings(*LONG[1])),
            points=POINTS,
            curves=curves,
        )


if __name__ == "__main__":
    main()
