"""How a run is carried out and watched: nothing here changes what is learned."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from imagen_nb.engine.blocks import compile_blocks, recompute_blocks
from imagen_nb.engine.logs import check_trackers
from imagen_nb.engine.samples import loading_workers
from imagen_nb.engine.validation import DRAWN, VALIDATED
from imagen_nb.stage import Stage
from imagen_nb.store.config import config, option

if TYPE_CHECKING:
    from imagen_nb.engine.distributed import Process
    from imagen_nb.training import TrainConfig


@config
class Execution:
    "What may differ when a run goes on."

    accumulate: int = option(1, least=1)  # micro-batches of a process's share of a step
    compile: bool | None = None  # the network's blocks; None: on a GPU
    shard: bool = (
        False  # weights, average and optimizer state over the processes; else each has all
    )
    recompute: bool = False  # activations going back, instead of keeping them: less memory
    validate_every: int | None = option(None, least=0)  # steps, and at the end; None: see `settle`
    sample_every: int | None = option(None, least=0)  # likewise; 0: never
    track: tuple[str, ...] = ()  # "tensorboard", "wandb"
    progress: bool = True  # a bar; in a notebook a live figure

    def __post_init__(self):
        check_trackers(self.track)

    def settle(
        self,
        stage: Stage,  # what is trained
        config: TrainConfig,  # how
        ranks: int = 1,  # processes
        device: torch.device | str = "cpu",  # where they compute
    ) -> Execution:  # nothing left open
        "Decide what was left to us: watching takes 1 % of the time each, or less."
        c, step = stage.config, 3 * config.batch / ranks  # passes through the network
        draw = DRAWN * c.steps * (2 if c.w != 1 else 1) * (c.size / c.side) ** 2

        def often(passes, most):
            return max(min(math.ceil(config.steps / 5), most), math.ceil(passes / step / 0.01))

        ours = dict(
            compile=torch.device(device).type == "cuda",
            validate_every=often(2 * VALIDATED, 5000),
            sample_every=often(draw, 25_000),
        )
        settled = replace(self, **{k: v for k, v in ours.items() if getattr(self, k) is None})
        settled.check(config.batch // ranks)
        return settled

    def check(
        self,
        share: int,  # samples of a process in a step
    ):
        "Refuse what this batch cannot do."
        if share < self.accumulate:
            raise ValueError(
                f"Trainer: accumulate, got {self.accumulate},"
                f" expected at most {share}, a process's samples in a step"
            )

    def wrap(
        self,
        network: nn.Module,  # on its device
        process: Process,  # this one
    ) -> nn.Module:  # what the loss calls; the parameters are the same
        "Make a network ready to learn as this execution wants it."
        if self.recompute:
            recompute_blocks(network)
        if self.compile:
            compile_blocks(network)
        return process.wrap(network)

    def loading(
        self,
        device: torch.device,  # where the network computes
    ) -> dict:  # options of `engine.samples.ahead`
        "Where batches go and who makes them; compiled code wants captions of few lengths."
        return dict(
            device=device, workers=loading_workers(device), multiple=32 if self.compile else 1
        )
