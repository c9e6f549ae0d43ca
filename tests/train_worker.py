"""A small training run in a process of its own: `python train_worker.py DIRECTORY [STEPS [WAIT]]`.

Tells each step, so that a test can kill it. After step WAIT it waits for a line before it goes on.
"""

import sys
from pathlib import Path

import torch

torch.set_num_threads(1)

from imagen_nb import stage as stages  # noqa: E402
from imagen_nb.data import ShapesWorld  # noqa: E402
from imagen_nb.engine.execution import Execution  # noqa: E402
from imagen_nb.stage import Stage, StageConfig  # noqa: E402
from imagen_nb.text import TextEmbedding  # noqa: E402
from imagen_nb.training import TrainConfig, Trainer  # noqa: E402
from imagen_nb.unet import UNetConfig  # noqa: E402

STAGE = StageConfig(
    size=16,
    target="x0",
    loss_weight="capped",
    network=UNetConfig(
        dim=24,
        mults=(1, 2),
        blocks=1,
        attention=(False, True),
        head_dim=24,
        text_dim=6,
        text_width=16,
        emb_dim=32,
    ),
)
CONFIG = dict(batch=8, optimizer="muon", lr=3e-3, warmup=4, save_every=5, ema=1.0)


def pin_fp32():
    "On every CPU: figures of these tests are of fp32. Returns what undoes it."
    before = stages.has_fast_bf16
    stages.has_fast_bf16 = lambda device: False

    def undo():
        stages.has_fast_bf16 = before

    return undo


class Letters:
    "Embeds a caption as its first letters: a text encoder that costs nothing."

    identity = "letters"

    def __getitem__(self, captions):
        tokens = torch.tensor(
            [[[ord(c) % (k + 2) for k in range(6)] for c in o.ljust(8)[:8]] for o in captions]
        ).float()
        return TextEmbedding(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))


def make_trainer(out, steps=20, world=None, valid=None, stage=STAGE, network=None, **changes):
    execution = dict(progress=False, validate_every=0, sample_every=0) | {
        k: changes.pop(k) for k in Execution.__dataclass_fields__ if k in changes
    }
    torch.manual_seed(0)
    world = world or ShapesWorld("train", level="quick", size=16, length=50)
    return Trainer(
        stage if isinstance(stage, Stage) else Stage(stage, network),
        world,
        Letters(),
        TrainConfig(**CONFIG | dict(steps=steps) | changes),
        out,
        valid,
        Execution(**execution),
    )


if __name__ == "__main__":
    pin_fp32()
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    wait = int(sys.argv[3]) if len(sys.argv) > 3 else None
    trainer = make_trainer(Path(sys.argv[1]), steps)
    step, save = trainer.train_step, trainer.save

    def told_step(batch, draws):
        result = step(batch, draws)
        print("step", trainer.step, flush=True)
        if trainer.step == wait:
            sys.stdin.readline()
        return result

    def told_save():
        print("saving", trainer.step, flush=True)
        save()

    trainer.train_step, trainer.save = told_step, told_save
    trainer.fit()
    print("done", flush=True)
