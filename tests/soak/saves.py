"Processes that die by SIGKILL while they save: is there a checkpoint afterwards? Ours, Accelerate's, two of torch."

import os
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from imagen_nb.store.checkpoint import checkpoints, load_directory, prune, save_directory

from . import bound, done, ended, fork

SHAPES = [(256, 256)] * 16  # of weights, 4 MiB; with Adam's two averages 12 MiB


def groups(n: int) -> dict:
    "What is saved as state n: every value is n."

    def full():
        return {f"layer{i}": torch.full(s, float(n)) for i, s in enumerate(SHAPES)}

    return dict(network=full(), first=full(), second=full())


def same(tensors, n: int) -> bool:
    return all(bool((t == n).all()) for t in tensors)


class Ours:
    "`save_directory`, then `prune` to two, as `Trainer.save` does"

    def prepare(self, folder, n):
        return lambda: (
            save_directory(folder / f"step_{n:08d}", groups(n), dict(step=n)),
            prune(folder, 2),
        )

    def resume(self, folder):
        tensors, meta = load_directory(checkpoints(folder)[0])
        return meta["step"], [t for g in tensors.values() for t in g.values()]

    def any_left(self, folder):
        return False


class Accelerates:
    "`Accelerator.save_state` with total_limit=2, resumed by `load_state()`"

    def made(self, folder, n):
        accelerator = Accelerator(
            cpu=True,
            project_config=ProjectConfiguration(
                project_dir=str(folder),
                automatic_checkpoint_naming=True,
                total_limit=2,
                iteration=n,
            ),
        )
        network = torch.nn.ParameterList(
            torch.nn.Parameter(torch.full(s, float(n))) for s in SHAPES
        )
        optimizer = torch.optim.Adam(network.parameters(), foreach=False)
        for p in network:
            optimizer.state[p] = dict(
                step=torch.tensor(float(n)),
                exp_avg=p.detach().clone(),
                exp_avg_sq=p.detach().clone(),
            )
        return accelerator, *accelerator.prepare(network, optimizer)

    def prepare(self, folder, n):
        accelerator, *_ = self.made(folder, n)
        return accelerator.save_state

    def resume(self, folder, name=None):
        accelerator, network, optimizer = self.made(folder, -1)
        accelerator.load_state(name)
        tensors = [t.detach() for p in network for t in (p, *optimizer.state[p].values())]
        return int(tensors[0].flatten()[0]), tensors

    def any_left(self, folder):
        "Does an older directory load, if someone names it?"
        for name in sorted(
            (folder / "checkpoints").iterdir(),
            key=lambda p: int(p.name.split("_")[1]),
            reverse=True,
        ):
            try:
                n, tensors = self.resume(folder, str(name))
                if n >= 0 and same(tensors, n):
                    return True
            except Exception:
                pass
        return False


class Over:
    "`torch.save` over the last file"

    def prepare(self, folder, n):
        state = dict(step=n, **groups(n))
        return lambda: torch.save(state, folder / "last.pt")

    def resume(self, folder):
        state = torch.load(folder / "last.pt", weights_only=True)
        n = state.pop("step")
        return n, [t for g in state.values() for t in g.values()]

    def any_left(self, folder):
        return False


class Renamed(Over):
    "`torch.save` to another name, then `os.replace`"

    def prepare(self, folder, n):
        state = dict(step=n, **groups(n))
        return lambda: (
            torch.save(state, folder / "new.pt"),
            os.replace(folder / "new.pt", folder / "last.pt"),
        )


def outcome(way, folder: Path, n: int) -> int:
    "After a kill while state n was saved over n - 1: 0 new, 1 old, 2 refused, 3 wrong, +2 if something older is left."
    try:
        found, tensors = way.resume(folder)
    except Exception:
        return 2 + 2 * way.any_left(folder)
    if not same(tensors, found) or found not in (n, n - 1):
        return 3 + 2 * way.any_left(folder)
    return int(found != n)


def timed_save(way, folder: Path, n: int, write: int):
    "Save; bytes into a pipe when it begins and ends."
    save = way.prepare(folder, n)
    os.write(write, b"b")
    save()
    os.write(write, b"e")


def save_now(way, folder: Path, n: int):
    way.prepare(folder, n)()


def tell_outcome(way, folder: Path, n: int):
    os._exit(10 + outcome(way, folder, n))


def trials(way, folder: Path, kills: int, r: random.Random) -> dict:
    "Kill `kills` saves, each at a random moment; what a resume finds then."

    def fresh():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for k in (0, 1):
            done(partial(save_now, way, folder, k))
        return 2

    n, counts, finished, seconds = fresh(), [0] * 6, 0, 0.1
    while sum(counts) < kills:
        read, write = os.pipe()
        pid = fork(partial(timed_save, way, folder, n, write))
        os.close(write)
        os.read(read, 1)
        since = time.monotonic()
        time.sleep(r.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        ended(pid)
        took, is_over = time.monotonic() - since, os.read(read, 1)
        os.close(read)
        if is_over:  # the kill came after the save
            finished += 1
            seconds *= 0.95
        else:
            seconds *= 1.03 if took > 0.8 * seconds else 1.0
            result = ended(fork(partial(tell_outcome, way, folder, n))) - 10
            counts[result] += 1
            if result > 1:
                n = fresh()
                continue
        n += 1
        done(partial(save_now, way, folder, n))
        n += 1
    new, old, *bad = counts
    return dict(
        kills=kills,
        kills_after_the_save=finished,
        new=new,
        old=old,
        unusable=sum(bad),
        at_most=bound(sum(bad), kills),
        refused=bad[0] + bad[2],
        wrong=bad[1] + bad[3],
        unusable_though_an_older_one_is_left=bad[2] + bad[3],
    )


def measure(folder: Path, quick: bool) -> dict:
    "Card of four ways."
    r, kills = random.Random(0), 5 if quick else 200
    ways = dict(ours=Ours(), accelerate=Accelerates(), torch_over=Over(), torch_renamed=Renamed())
    return dict(
        megabytes=12.6,
        confidence=0.95,
        limits="a kill of the process: what the system has been told to write is written; a loss of power is not tried",
        ways={
            name: dict(how=type(way).__doc__, **trials(way, folder / name, kills, r))
            for name, way in ways.items()
        },
    )
