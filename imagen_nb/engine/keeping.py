"""A run's directory: whose it is, its newest sound checkpoint, and what to do when a save fails."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from imagen_nb.engine.distributed import Process, is_finite, undisturbed
from imagen_nb.engine.optim import (
    load_optimizer_tensors,
    make_optimizers,
    optimizer_room,
    optimizer_tensors,
)
from imagen_nb.engine.samples import Arrivals
from imagen_nb.engine.sharding import Shards
from imagen_nb.engine.stopping import TrainingError
from imagen_nb.stage import Stage, StageConfig
from imagen_nb.store.checkpoint import (
    CheckpointError,
    checkpoints,
    load_into,
    newest_checkpoint,
    prune,
    save_directory,
)
from imagen_nb.store.config import config_diff, config_from_dict, config_to_dict, with_defaults
from imagen_nb.store.files import locked, replace_text

if TYPE_CHECKING:
    from imagen_nb.training import Samples, TrainConfig

CLAIMS = ({"stage", "train"}, {"stages", "training"})  # what each `config.json` of ours has
MISSES = 3  # checkpoints in a row that may fail
WAY_ON = (
    "To train its weights further, begin another run with them: Trainer(the stage that fit()"
    " returned, ...), or `imagen-nb train RECIPE --init RUN`."
)


def claim_directory(
    out: str | Path,  # directory of a run; made if it is not there
    config: dict,  # everything the run depends on, as JSON can hold it
    read_as: Callable[[dict], dict] = lambda old: old,  # what of the old run may be taken as ours
):
    "Write `config.json`, or refuse a directory that belongs to another configuration."
    path, new = Path(out) / "config.json", json.loads(json.dumps(config))
    old = None
    if path.exists():
        try:
            old = with_defaults(json.loads(path.read_text()))
        except ValueError as e:
            raise ValueError(
                f"claim_directory: {path} is damaged, got {e}, expected JSON;"
                " restore it, or use another directory"
            ) from e
        if not is_claim(old):
            raise ValueError(
                f"claim_directory: {path}, got a file of something else, expected that of a run;"
                " use another directory"
            )
        if diff := config_diff(read_as(old), new):
            raise ValueError(
                f"claim_directory: {out} belongs to another run:\n  "
                + "\n  ".join(diff)
                + f"\nUse another directory, or the old settings. {WAY_ON}"
            )
    if old != new:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(new, indent=1))


def is_claim(
    values,  # what a `config.json` holds
) -> bool:  # `claim_directory` wrote it
    "Is it of a run, of one stage or of several?"
    return isinstance(values, dict) and any(names <= values.keys() for names in CLAIMS)


def has_begun(
    out: Path,  # directory of a stage that is trained
) -> bool:  # it is claimed
    "Is there a checkpoint, even a damaged or a cut one, or a row of the log?"
    return any(out.glob("*step_*")) or any(p.stat().st_size for p in out.glob("*.jsonl"))


def release_directory(
    out: str | Path,  # directory of a run
):
    "Take back a claim that nothing came of, so that another try may begin here."
    path = Path(out) / "config.json"
    if not any(map(has_begun, (path.parent, *path.parent.glob("*px")))):
        with suppress(FileNotFoundError, ValueError):  # what nobody can read is not ours
            if is_claim(json.loads(path.read_text())):
                path.unlink()


def extended(
    old: dict,  # how a stage is trained, as its directory has it
    now: TrainConfig,  # as it is asked for
    out: Path,  # that directory
    rate: Callable[[int, TrainConfig], float],  # learning rate after so many steps
) -> dict:  # the old one, with the new number of steps if it makes no done step another one
    "A stage may be trained longer or shorter where its learning rates up to now stay what they were."
    if old["steps"] == now.steps:
        return old
    was, found = config_from_dict(old), checkpoints(out)
    new, done = replace(was, steps=now.steps), int(found[0].name[5:]) if found else 0
    same = all(rate(k, was) == rate(k, new) for k in range(done))
    return config_to_dict(new) if same and done <= new.steps else old


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


def own_copy(
    network: nn.Module,  # on any device
    device: torch.device | str,  # where the copy goes
) -> nn.Module:  # the same, sharing nothing; no weight is copied twice on the way
    "A network like this one, somewhere else; weights of any precision learn in float32."
    memo: dict[int, Any] = {}
    for p in network.parameters():
        value = p.detach().to(device, torch.float32, copy=True)
        memo[id(p)] = nn.Parameter(value, p.requires_grad)
    for b in network.buffers():
        memo[id(b)] = b.detach().to(device, copy=True)
    return copy.deepcopy(network, memo)


class Learned(NamedTuple):
    "What a step changes and a checkpoint holds."

    network: nn.Module  # trained
    average: nn.Module  # of its weights over the steps
    optimizers: list[torch.optim.Optimizer]  # with what they remember

    @classmethod
    def begin(
        cls,
        stage: Stage,  # whose network is the start
        config: TrainConfig,  # by which optimizer
        device: torch.device,  # where
        shards: Shards | None = None,  # over these processes; None: each has all of it
    ) -> Learned:
        "As a run starts: the average is the network. The given one stays what and where it is."
        if shards:
            network, average = shards.begin(own_copy(stage.network, "meta"), stage.network)
            return cls(network, average, make_optimizers(network, config))
        network = own_copy(stage.network, device).train()
        Stage(stage.config, network).to(device)
        return cls(network, copy.deepcopy(network), make_optimizers(network, config))

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
        try:
            load_optimizer_tensors(self.optimizers, tensors["optimizer"])
        except CheckpointError as e:
            raise CheckpointError(f"{where}: {e}.\n{WAY_ON}") from e

    def load_parts(
        self,
        folder: Path,  # a checkpoint, of any number of processes
        shards: Shards,  # those of now
    ) -> dict:  # meta
        "Put back this process's parts."
        room = self.tensors()
        room["optimizer"] = optimizer_room(self.optimizers, shards.kept(folder))
        meta = shards.load(folder, room)
        load_optimizer_tensors(self.optimizers, room["optimizer"])
        return meta


class Keeper:
    "Keeps what was learned in a directory that belongs to one run."

    def __init__(
        self,
        out: Path,  # directory of the run
        samples: Samples | Arrivals,  # what it learns from: they say which run this is
        process: Process,  # this one
        rate: Callable[[int, TrainConfig], float],  # learning rate after so many steps
        shard: bool = False,  # over the processes; one has nothing to share
    ):
        self.out, self.samples, self.process, self.misses = out, samples, process, 0
        self.rate = rate
        self.saving: tuple[int, Callable] | None = None  # step of a save, and what it waits for
        self.shards = Shards(process) if shard and process.ranks > 1 else None
        self.is_main, self.config = process.rank == 0, samples.config

    @contextmanager
    def alone(self) -> Iterator[None]:
        "Nobody else trains in this directory during a block, and no setting of other code enters."
        with undisturbed(), locked(self.out) if self.is_main else nullcontext():
            yield

    def resume(
        self,
        learned: Learned,  # to be what it was
    ) -> dict:  # meta of the checkpoint; of none: step 0
        "Claim the directory, and load its newest sound checkpoint."
        s = self.samples
        if self.is_main:
            release_directory(self.out)
        self.process.wait()
        run = describe_run(s.stage_config, self.config, s.dataset, s.text)
        claim_directory(self.out, run, self.extended)
        self.process.wait()
        if self.shards:
            newest = self.shards.newest(self.out)
            if newest is None:
                return dict(step=0)
            meta = learned.load_parts(newest, self.shards)
        elif (found := newest_checkpoint(self.out)) is None:
            return dict(step=0)
        else:
            tensors, meta = found
            learned.load(tensors, f"Trainer: {self.out}, step {meta['step']}")
        if isinstance(s, Arrivals):
            s.resume(meta["stream"])
        return meta

    def extended(
        self,
        old: dict,  # what is on disk of this run
    ) -> dict:  # the same, with our number of steps if that is allowed
        "Our run, perhaps of another length."
        if "train" not in old:
            return old
        return old | dict(train=extended(old["train"], self.config, self.out, self.rate))

    def save(
        self,
        learned: Learned,  # to keep; never one that is not finite
        step: int,  # steps done
        row: dict,  # of the log, begun
    ):
        "By one process; of a sharded run by all, while training goes on."
        self.settle()
        if self.process.any(not (is_finite(learned.network) and is_finite(learned.average))):
            raise TrainingError(
                f"Trainer: a weight of step {step} is not finite; it is not saved,"
                " what was saved before stays. Lower the learning rate."
            )
        meta = dict(kind="training", step=step, ranks=self.process.ranks, log=row)
        if isinstance(self.samples, Arrivals):
            meta["stream"] = self.samples.state
        path = self.out / f"step_{step:08d}"
        write: Callable[[], object] = partial(self.write, learned, path, meta)
        if self.shards:
            write = self.shards.save(path, learned.tensors(), meta, self.config.keep).finish
        self.saving = step, write
        if not self.shards or step == self.config.steps:
            self.settle()

    def write(self, learned: Learned, path: Path, meta: dict):
        "One process does it."
        if self.is_main:
            save_directory(path, learned.tensors(), meta)
            prune(self.out, self.config.keep)

    def settle(self):
        "Have on disk what is being saved; where that fails the run goes on, and the next save tries again."
        if self.saving is None:
            return
        (step, write), self.saving, problem = self.saving, None, None
        try:
            write()
        except (OSError, CheckpointError) as e:
            problem = e
        has_failed = self.process.any(problem is not None)
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
        self.settle()
        if self.misses:
            raise TrainingError(f"Trainer: stopped at step {step}, which is not saved")
        raise KeyboardInterrupt(f"stopped at step {step}, saved; run the same command to go on")
