"""Shared by the cases: a stage that trains in a second, drawn scenes, a caption reader that costs nothing."""

import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import torch

torch.set_num_threads(1)
from imagen_nb.cascade import Imagen
from imagen_nb.data import ShapesWorld
from imagen_nb.engine.execution import Execution
from imagen_nb.stage import Stage, StageConfig
from imagen_nb.text import TextEmbedding
from imagen_nb.training import TrainConfig, Trainer
from imagen_nb.unet import UNetConfig

NET = UNetConfig(
    dim=16,
    mults=(1, 2),
    blocks=1,
    attention=(False, True),
    head_dim=16,
    text_dim=4,
    text_width=8,
    emb_dim=16,
)
CONFIG = StageConfig(
    size=16, target="x0", loss_weight="capped", network=NET, steps=4, sampler="ddim", w=2.0
)
WORLD = ShapesWorld("train", level="quick", size=16, length=40)


class Reader:
    "Captions as four numbers for each of their first six letters."

    identity = "reader"

    def __getitem__(self, captions):
        rows = [
            [
                [ord(c) / 64 - 1, ord(c) % 3 - 1, ord(c) % 5 - 2, ord(c) % 7 - 3]
                for c in s.ljust(6)[:6]
            ]
            for s in captions
        ]
        return TextEmbedding(torch.tensor(rows).float(), torch.ones(len(rows), 6, dtype=torch.bool))


def fresh(config=CONFIG, seed=0):
    torch.manual_seed(seed)
    return Stage(config)


def folder():
    return Path(tempfile.mkdtemp())


def trainer(stage, out, world=WORLD, text=None, execution=None, **changes):
    config = (
        dict(batch=4, steps=6, optimizer="muon", lr=3e-3, warmup=2, save_every=100, ema=1.0)
        | changes
    )
    quiet = dict(progress=False, validate_every=0, sample_every=0) | (execution or {})
    return Trainer(
        stage, world, text or Reader(), TrainConfig(**config), out, execution=Execution(**quiet)
    )


def weights(stage):
    return torch.cat([p.detach().double().flatten() for p in stage.network.parameters()])


def same(a, b):
    return bool((weights(a) == weights(b)).all())


def awake(seed=0):
    "A stage with weights in every layer that may draw."
    stage = fresh(seed=seed)
    g = torch.Generator().manual_seed(seed)
    for p in stage.network.parameters():
        p.data.add_(0.05 * torch.randn(p.shape, generator=g))
    stage.is_trained = True
    return stage


def model():
    return Imagen(None, [awake()])


def captions(n=1):
    return Reader()[["red circle", "blue ring", "a star"][:n]]


def end(ok, line):
    print(("right: " if ok else "WRONG: ") + line)
    raise SystemExit(0 if ok else 1)
