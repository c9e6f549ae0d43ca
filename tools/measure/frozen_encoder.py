"""What a frozen text encoder costs in training: `python tools/measure/frozen_encoder.py EMOJI_SET`.

A step of the emoji base beside the embeddings of its batch, read from the cache or encoded anew, in turn, one thread.
Into `data/runs/frozen-encoder.json`: medians of seconds with least and most, and shares of a step.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from cards import RUNS, write_card
from text_encoder import Emojis

from imagen_nb.engine.captions import EmbeddingCache
from imagen_nb.engine.keeping import Learned
from imagen_nb.recipes import emoji
from imagen_nb.stage import Stage
from imagen_nb.text import TextEncoder
from imagen_nb.training import Samples, update

ROUNDS = 15


def spent(work: Callable, *inputs) -> float:
    "CPU seconds of a call."
    since = time.process_time()
    work(*inputs)
    return time.process_time() - since


def summary(seconds: list[float], step: float) -> dict:
    "Median, least, most; share of a training step."
    middle = statistics.median(seconds)
    return dict(
        seconds=[round(s, 6) for s in (middle, min(seconds), max(seconds))],
        share=round(middle / step, 5),
    )


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("data", type=Path, help="folder that `imagen-nb emoji` wrote")
    args = p.parse_args()
    torch.set_num_threads(1)
    emojis, encoder, recipe = Emojis(args.data), TextEncoder.english(), emoji()
    config, how = recipe.stages[0], recipe.training[0]
    found: dict[str, list[float]] = {"step": [], "cached": [], "encoded": []}
    with tempfile.TemporaryDirectory() as folder:
        cache = EmbeddingCache.build(encoder, emojis.captions(), Path(folder) / "text")
        learned = Learned.begin(Stage(config), how, torch.device("cpu"))
        stage = Stage(config, learned.network)
        batches = Samples(config, emojis, cache, how).batches(0)

        def step(k, batch, draws):
            stage.loss(batch, draws).mean().backward()
            update(learned, k, how)

        for k, (batch, draws) in enumerate(itertools.islice(batches, ROUNDS + 2)):
            captions = list(batch.captions)
            turn = dict(
                step=spent(step, k, batch, draws),
                cached=spent(cache.__getitem__, captions),
                encoded=spent(encoder, captions),
            )
            if k >= 2:  # the first ones warm up
                for name, seconds in turn.items():
                    found[name].append(seconds)
    each = statistics.median(found["step"])
    write_card(
        RUNS / "frozen-encoder.json",
        "CPU seconds of a step of the emoji base and of its batch's text embeddings: median, least, most",
        "python tools/measure/frozen_encoder.py EMOJI_SET",
        batch=how.batch,
        rounds=ROUNDS,
        parameters=dict(
            base=sum(p.numel() for p in stage.network.parameters()),
            encoder=sum(p.numel() for p in encoder.model.parameters()),
        ),
        found={name: summary(seconds, each) for name, seconds in found.items()},
    )
    print({name: summary(seconds, each) for name, seconds in found.items()})


if __name__ == "__main__":
    main()
