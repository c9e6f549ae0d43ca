"""A run's directory: whose it is, its newest sound checkpoint, and what to do when a save fails."""

from __future__ import annotations

import copy
import json
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from imagen_nb.engine.distributed import any_rank, is_finite
from imagen_nb.engine.optim import load_optimizer_tensors, make_optimizers, optimizer_tensors
from imagen_nb.engine.samples import Arrivals
from imagen_nb.engine.stopping import TrainingError
from imagen_nb.stage import Stage, StageConfig
from imagen_nb.store.checkpoint import (
    CheckpointError,
    load_into,
    newest_checkpoint,
    prune,
    save_directory,
)
from imagen_nb.store.config import config_diff, config_to_dict, with_defaults
from imagen_nb.store.files import locked, replace_text

if TYPE_CHECKING:
    from imagen_nb.training import Samples, TrainConfig

MISSES = 3  # checkpoints in a row that may fail


def claim_directory(
    out: str | Path,  # directory of a run; made if it is not there
    config: dict,  # everything the run depends on, as JSON can hold it
):
    "Write `config.json`, or refuse a directory that belongs to another configuration."
    path, new = Path(out) / "config.json", json.loads(json.dumps(config))
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return replace_text(path, json.dumps(new, indent=1))
    try:
        old = with_defaults(json.loads(path.read_text()))
    except ValueError as e:
        raise ValueError(
            f"claim_directory: {path} is damaged, got {e}, expected JSON;"
            " restore it, or use another directory"
        ) from e
    if diff := config_diff(old, new):
        raise ValueError(
            f"claim_directory: {out} belongs to another run:\n  "
            + "\n  ".join(diff)
            + "\nUse another directory, or the old settings."
        )


def describe_run(
    stage_config: StageConfig,  # what is trained
    config: TrainConfig,  # how
    dataset,  # named by its `identity`, else by its class
    text,  # likewise
) -> dict:  # plain values, for `claim_directory`
    "What a run depends on."

    def name(o):
        return getattr(o, "identity", type(o).__name__)

    return dict(
        stage=config_to_dict(stage_config),
        train=config_to_dict(config),
        data=name(dataset),
        text=name(text),
    )


class Learned(NamedTuple):
    "What a step changes and a checkpoint holds."

    network: nn.Module  # trained
    average: nn.Module  # of its weights over the steps
    optimizers: list[torch.optim.Optimizer]  # with what they remember

    @classmethod
    def begin(
        cls,
        stage: Stage,  # whose network learns; it is moved
        config: TrainConfig,  # by which optimizer
        device: torch.device,  # where
    ) -> Learned:
        "As a run starts: the average is the network."
        network = stage.to(device).network.train()
        average = copy.deepcopy(network).requires_grad_(False)
        return cls(network, average, make_optimizers(network, config))

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        "All of it by name."
        return dict(
            network=dict(self.network.state_dict()),
            average=dict(self.average.state_dict()),
            optimizer=optimizer_tensors(self.optimizers),
        )

    def load(
        self,
        tensors: dict[str, dict[str, Tensor]],  # what `tensors` gave
        where: str,  # they come from; an error begins with it
    ):
        "Put it back, or refuse what another network left."
        if missing := {"network", "average", "optimizer"} - tensors.keys():
            raise CheckpointError(
                f"{where}: got no {', '.join(sorted(missing))}, expected all three"
            )
        load_into(self.average, tensors["average"], f"{where}, average")
        load_into(self.network, tensors["network"], f"{where}, network")
        load_optimizer_tensors(self.optimizers, tensors["optimizer"])


class Keeper:
    "Keeps what was learned in a directory that belongs to one run."

    def __init__(
        self,
        out: Path,  # directory of the run
        samples: Samples | Arrivals,  # what it learns from: they say which run this is
        accelerator,  # of this process
    ):
        self.out, self.samples, self.accelerator, self.misses = out, samples, accelerator, 0
        self.is_main, self.config = accelerator.process_index == 0, samples.config

    def alone(self) -> AbstractContextManager:
        "Nobody else trains in this directory during a block."
        return locked(self.out) if self.is_main else nullcontext()

    def resume(
        self,
        learned: Learned,  # to be what it was
    ) -> dict:  # meta of the checkpoint; of none: step 0
        "Claim the directory, and load its newest sound checkpoint."
        s = self.samples
        claim_directory(self.out, describe_run(s.stage_config, self.config, s.dataset, s.text))
        self.accelerator.wait_for_everyone()
        if (found := newest_checkpoint(self.out)) is None:
            return dict(step=0)
        tensors, meta = found
        learned.load(tensors, f"Trainer: {self.out}, step {meta['step']}")
        if isinstance(s, Arrivals):
            s.resume(meta["stream"])
        return meta

    def save(
        self,
        learned: Learned,  # to keep; never one that is not finite
        step: int,  # steps done
        row: dict,  # of the log, begun
    ):
        "Save by one process; where that fails the run goes on, and the next save tries again."
        problem = None
        if not (is_finite(learned.network) and is_finite(learned.average)):
            raise TrainingError(
                f"Trainer: a weight of step {step} is not finite; it is not saved,"
                " what was saved before stays. Lower the learning rate."
            )
        meta = dict(kind="training", step=step, ranks=self.accelerator.num_processes, log=row)
        if isinstance(self.samples, Arrivals):
            meta["stream"] = self.samples.state
        try:
            if self.is_main:
                save_directory(self.out / f"step_{step:08d}", learned.tensors(), meta)
                prune(self.out, self.config.keep)
        except (OSError, CheckpointError) as e:
            problem = e
        has_failed = any_rank(self.accelerator, problem is not None)
        self.misses = self.misses + 1 if has_failed else 0
        what = (
            f"Trainer: step {step} could not be saved ({problem or 'see the first process'});"
            " what was saved before stays"
        )
        if self.misses == MISSES or (has_failed and step == self.config.steps):
            raise TrainingError(what)
        if problem:
            warnings.warn(f"{what}, the next save tries again")

    def stop(self, step: int) -> NoReturn:
        "End a run early, and say what is on disk."
        if self.misses:
            raise TrainingError(f"Trainer: stopped at step {step}, which is not saved")
        raise KeyboardInterrupt(f"stopped at step {step}, saved; run the same command to go on")
