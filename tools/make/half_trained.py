"""Train the small base of chapter 08 for half of the way, and save it as `data/half-trained`.

    python tools/make/half_trained.py runs/half-trained

The learning rate stays at its peak to the end, so the chapter can go on where this run stops. It can be stopped and
goes on. The run card `half-trained` says what its samples are like.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from imagen_nb.data import ShapesWorld
from imagen_nb.engine.captions import EmbeddingCache
from imagen_nb.lab.oracle import score
from imagen_nb.recipes import toy
from imagen_nb.stage import Stage
from imagen_nb.store.checkpoint import save_directory
from imagen_nb.store.config import config_to_dict
from imagen_nb.text import TextEncoder
from imagen_nb.training import Trainer
from imagen_nb.unet import UNetConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "measure"))
from cards import ROOT, RUNS, write_card

NETWORK = UNetConfig(
    dim=20,
    mults=(1, 2),
    blocks=1,
    attention=(False, True),
    head_dim=20,
    text_dim=128,
    text_width=32,
    emb_dim=64,
    skips="add",
    resample="conv",
    patch=4,
)
STAGE = replace(toy().stages[0], network=NETWORK)
HOW = replace(toy().training[0], steps=1600, decay="constant", save_every=200)
PICTURES = 6000  # of the training split, level `quick`
ASKED = 64  # captions of the validation split that are drawn and read


def train(run: Path) -> Trainer:
    "Train, or go on."
    world = ShapesWorld("train", level="quick", size=STAGE.size, length=PICTURES)
    valid = ShapesWorld("valid", level="quick", size=STAGE.size, length=256)
    captions = [o.caption(i) for o in (world, valid) for i in range(len(o))]
    text = EmbeddingCache.build(TextEncoder.toy(), captions, run / "captions")
    trainer = Trainer(Stage(STAGE), world, text, HOW, run / "32px", valid)
    trainer.fit()
    return trainer


def right(stage: Stage) -> int:
    "How many of the asked captions does it draw right in every respect?"
    world = ShapesWorld("valid", level="quick", size=STAGE.size, length=ASKED)
    text = TextEncoder.toy()([world.caption(i) for i in range(ASKED)])
    images = stage.sample(text, seeds=list(range(ASKED)))
    return sum(bool(score(world.scene(i), image)["all"]) for i, image in enumerate(images))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("run", type=Path, help="checkpoints and logs")
    run = p.parse_args().run
    start = time.process_time()
    trainer = train(run)
    seconds, network = time.process_time() - start, trainer.learned.network
    weights = {name: w.bfloat16() for name, w in network.state_dict().items()}
    meta = dict(network=config_to_dict(NETWORK), steps=HOW.steps, batch=HOW.batch)
    save_directory(ROOT / "data" / "half-trained", {"network": weights}, meta)
    write_card(
        RUNS / "half-trained.json",
        "the half-trained base of chapter 08, weights of its last step: captions drawn right in every respect",
        "python tools/make/half_trained.py runs/half-trained",
        parameters=sum(w.numel() for w in weights.values()),
        steps=HOW.steps,
        batch=HOW.batch,
        cpu_seconds=round(seconds),  # of the last call
        captions=ASKED,
        right=right(Stage(STAGE, network)),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
