"""A run: train every stage of a recipe, draw captions, and say where the pictures are."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch.distributed import TCPStore

from imagen_nb.engine.execution import Execution
from imagen_nb.engine.keeping import claim_directory, extended, has_begun, release_directory
from imagen_nb.engine.stopping import StopSignal
from imagen_nb.recipes import Recipe
from imagen_nb.runs.errors import STOPPED
from imagen_nb.runs.results import HELD_OUT, finish
from imagen_nb.runs.setup import (
    asked_for,
    build_cache,
    check_cascade,
    check_width,
    held_back,
    looked_at,
    make_encoder,
    open_data,
    settle_encoder,
)
from imagen_nb.runs.team import check_team, how_many, leave, prepared_by_first, was_started
from imagen_nb.runs.work import Job, work
from imagen_nb.store.checkpoint import checkpoints
from imagen_nb.store.config import config_to_dict
from imagen_nb.store.files import as_path
from imagen_nb.training import learning_rate

__all__ = ["train"]

REPLACED = ("captions.json", "samples", "samples.png", "scores.json")  # by a run, in its directory


def train(
    recipe: Recipe,  # what to train, on what, and how
    out: str | Path,  # directory of the run
    stage: int | None = None,  # train this one alone, 0 is the base; None: all, in turn
    processes: int | None = None,  # one for each GPU, or on a CPU; None: see `team.how_many`
    held_out: int = HELD_OUT,  # test captions of ShapesWorld to draw and score
    device: str | None = None,  # "cuda" or "cpu"; None: GPUs where there are some
    online: bool = False,  # captions are encoded while training runs; else before, into a cache
    **execution,  # of `Execution`: how to train and watch; may change when a run goes on
):
    "Train a cascade, draw with it, and score what can be scored. Run it again to go on."
    check_request(recipe, stage, processes, held_out)
    out, since = as_path(out), time.time()
    how = Execution(**execution)
    job = Job(out=str(out), stage=stage, held_out=held_out, online=online, execution=how)
    ready = partial(prepare, recipe, out, job)
    if was_started():
        check_team(processes, device)
        if prepared_by_first(ready):
            process = work(job)
            if process.rank == 0:
                finish(recipe, out, held_out, time.time() - since, process.device)
            leave()
        return
    processes, device = how_many(processes, device)
    if not ready():
        return
    if processes == 1 and (device == "cuda" or not torch.cuda.is_available()):
        work(job)
    else:
        launch(job, processes, device)
    finish(recipe, out, held_out, time.time() - since, device)


def prepare(
    recipe: Recipe,  # what to train
    out: Path,  # directory of the run
    job: Job,  # what is asked for
) -> bool:  # False: the run is finished
    "Claim the directory and encode the captions that are going to be read."
    check_cascade(recipe)
    world, encoder = open_data(recipe), make_encoder(recipe.encoder)
    check_width(recipe, encoder)
    recipe = settle_encoder(recipe, encoder, out)
    check_place(out)
    release_directory(out)
    claim_directory(out, config_to_dict(recipe), partial(with_new_stages, recipe, out))
    if is_finished(recipe, out, job):
        print(
            f"{out} is finished: pictures in {out / 'samples'}, overview in {out / 'samples.png'}."
        )
        return False
    (out / "samples.png").unlink(missing_ok=True)  # of fewer stages
    worlds = [world, *filter(None, [held_back(recipe)])]
    wanted = looked_at(*worlds) if job.online else asked_for(recipe, job.stage, *worlds)
    build_cache(encoder, out / "captions", *worlds, wanted=wanted)
    return True


def check_place(
    out: Path,  # directory of the run
):
    "Refuse a folder that is no run and holds files which a run replaces."
    found = [name for name in REPLACED if (out / name).exists()]
    if found and not (out / "config.json").exists():
        raise ValueError(
            f"train: {out}, got {' and '.join(found)} without a config.json, expected a run, or a"
            " folder without such files; use another directory"
        )


def is_finished(
    recipe: Recipe,  # as it is now
    out: Path,  # directory of the run
    job: Job,  # what is asked for
) -> bool:  # nothing is left to do
    "Are there pictures, and has every stage that was asked for taken its last step?"
    for k in range(len(recipe.stages)) if job.stage is None else [job.stage]:
        folder = out / f"{recipe.stages[k].size}px"
        newest = checkpoints(folder)[:1]  # none: somebody needed the room
        if not has_begun(folder) or any(int(o.name[5:]) < recipe.training[k].steps for o in newest):
            return False
    drawn = [] if recipe.data else [f"samples/{i:05d}.json" for i in range(job.held_out)]
    return all((out / name).exists() for name in ["samples.png", *drawn])


def with_new_stages(
    recipe: Recipe,  # as it is now
    out: Path,  # directory of the run
    old: dict,  # the recipe on disk, as JSON holds it
) -> dict:  # the same, with what may still become as it is now
    "A stage that has not begun may be trained in another way, one that has may become longer."
    if len(old.get("training", ())) != len(recipe.training):
        return old

    def read(stage, was, now):
        folder = out / f"{stage.size}px"
        has = has_begun(folder)
        return extended(was, now, folder, learning_rate) if has else config_to_dict(now)

    return old | dict(training=[*map(read, recipe.stages, old["training"], recipe.training)])


def check_request(recipe: Recipe, stage: int | None, processes: int | None, held_out: int):
    "Refuse what is wrong before anything is written."
    n = len(recipe.stages)
    if stage is not None and not 0 <= stage < n:
        raise ValueError(f"train: stage, got {stage}, expected 0 to {n - 1} (0 is the base)")
    scored = range(2, 1 + len(open_data(recipe, "test"))) if recipe.data is None else [held_out]
    if held_out not in scored:
        raise ValueError(
            f"train: held_out, got {held_out}, expected {scored[0]} to {scored[-1]} (captions to score)"
        )
    if processes is not None and processes < 1:
        raise ValueError(f"train: processes, got {processes}, expected at least 1")


def launch(
    job: Job,  # for each process
    processes: int,  # one for each GPU, or on a CPU
    device: str = "cpu",  # or "cuda"
):
    "One thread for each process: on a busy machine two threads of a process wait for each other."
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # where they meet
    env = os.environ | meeting(store.port) | dict(WORLD_SIZE=str(processes), OMP_NUM_THREADS="1")
    if device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-m", "imagen_nb.runs.work", json.dumps(config_to_dict(job))]
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a child inherits it until it trains
    children: list[subprocess.Popen] = []
    try:
        for rank in map(str, range(processes)):
            own = env | dict(RANK=rank, LOCAL_RANK=rank)
            children.append(subprocess.Popen(command, env=own))
        is_stopped = wait_for(children)
    finally:
        for child in children:
            child.kill()  # where all has gone well there is none
            child.wait()
        signal.signal(signal.SIGINT, heard)
    if is_stopped:
        raise KeyboardInterrupt(
            f"stopped; the newest checkpoint is in {job.out}. Run the same command to go on."
        )
    if any(child.returncode for child in children):
        raise SystemExit(
            f"imagen-nb: a training process ended with an error, see above; what it had"
            f" saved is in {job.out}. Run the same command to go on."
        )


def meeting(port: int) -> dict[str, str]:
    "Where processes find a store that is open already, as torch's own launcher tells them."
    found = dict(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    return found | dict(TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0")


def wait_for(
    children: list[subprocess.Popen],  # that train together
) -> bool:  # they were told to stop
    "Until all have ended, or one has failed; a signal to stop is passed on."
    with StopSignal() as stop:
        is_told = False
        while None in (codes := [child.poll() for child in children]):
            if not {None, 0, STOPPED}.issuperset(codes) and not stop.received:
                return False
            if stop.received and not is_told:
                for child in children:
                    child.terminate()
                is_told = True
            time.sleep(0.1)
        return stop.received or STOPPED in codes
