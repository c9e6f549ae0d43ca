"Training runs that die by SIGKILL end bit-equal to one that was left alone."

import os
import random
import resource
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path

from imagen_nb.store.keyed import permute

from . import (
    CONFIG,
    PICTURES,
    Watch,
    differences,
    done,
    ended,
    fork,
    make_trainer,
    saved_step,
    state,
)

AIMS = ("saving", "pruning", "logging")  # of every second kill


def train(out: Path, steps: int, watch: Watch | None = None, limit: int | None = None):
    "One life of a run; it waits for its death before the step after `limit`."
    trainer = make_trainer(out, steps)
    (watch or Watch()).follow(trainer, out.with_suffix(".ids"))
    step = trainer.train_step

    def waiting(*args):
        if trainer.step == limit:
            signal.pause()
        return step(*args)

    trainer.train_step = waiting
    trainer.fit()


def one_life(
    out: Path, steps: int, limit: int, aim: str | None, seconds: float, r: random.Random
) -> tuple[str, int]:
    "Start, kill within so many seconds of work, or within the first phase aimed at; phase and step of death."
    watch, moment = Watch(), r.uniform(0, seconds)
    pid = fork(lambda: train(out, steps, watch, limit))
    if aim:
        while not watch.wait(aim, 1) and watch.step() < limit:
            pass
        time.sleep(r.uniform(0, 0.02 if aim == "saving" else 0.002))
    else:
        while worked(pid) < moment and watch.step() < limit:
            time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    code = ended(pid)
    phase, step = watch.phase(), watch.step()
    watch.close()
    if code != -signal.SIGKILL:
        raise RuntimeError(f"kills: a run ended with {code} before it was killed")
    return phase, step


def worked(pid: int) -> float:
    "Processor seconds of a process: a busy machine does not move the moments of death."
    return time.clock_gettime(~pid << 3 | 2)


def needed(work) -> float:
    "Processor seconds of `work()` in a process of its own."

    def spent():
        return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])

    before = spent()
    done(work)
    return spent() - before


def samples_seen(out: Path, steps: int) -> dict:
    "Did every epoch show every picture once, whatever was done again?"
    told = {}
    for line in out.with_suffix(".ids").read_text().splitlines():
        step, *ids = map(int, line.split())
        told.setdefault(step, set()).add(tuple(ids))
    agreed = [min(told[k]) for k in range(1, steps + 1)]
    rows = [permute(n, PICTURES, 0) for ids in agreed for n in ids]
    epochs = [rows[i : i + PICTURES] for i in range(0, len(rows) - PICTURES + 1, PICTURES)]
    return dict(
        epochs=len(epochs),
        missing_or_twice=sum(len(set(e)) != PICTURES for e in epochs),
        steps_done_again_with_other_samples=sum(len(o) > 1 for o in told.values()),
    )


def many_times(folder: Path, kills: int, steps: int, seed: int = 0) -> dict:
    "One run, killed again and again, whose kills keep pace with its steps."
    r, out, phases, redone = random.Random(seed), folder / "run", Counter(), []
    start = needed(lambda: train(folder / "short", 1))
    each = max(0.005, (needed(lambda: train(folder / "reference", steps)) - start) / steps)
    for k in range(kills):
        before = saved_step(out)
        pace = steps * (k + 1) // kills
        limit, behind = min(steps - 1, max(before, pace) + 20), max(0, pace - before)
        aim = AIMS[k // 2 % len(AIMS)] if k % 2 and behind > 2 else None
        phase, step = one_life(out, steps, limit, aim, start / 2 + 2 * each * (behind + 2), r)
        phases[phase] += 1
        redone.append(max(0, step - saved_step(out)))
    done(lambda: train(out, steps))
    differ = differences(state(out, steps), state(folder / "reference", steps))
    left = sorted(p.name for p in out.iterdir() if p.name.startswith(".") and p.is_dir())
    return dict(
        kills=kills,
        steps=steps,
        kills_in=dict(phases.most_common()),
        differences=differ,
        steps_done_again=dict(
            total=sum(redone), most_after_a_kill=max(redone), save_every=CONFIG["save_every"]
        ),
        samples=samples_seen(out, steps),
        directories_left=left,
    )


def once_each(folder: Path, runs: int, steps: int, seed: int = 1) -> dict:
    "Independent runs, each killed once at a random moment and started again."
    r, equal, phases = random.Random(seed), 0, Counter()
    whole = needed(lambda: train(folder / "reference", steps))
    expected = state(folder / "reference", steps)
    for k in range(runs):
        out = folder / f"run{k}"
        phases[one_life(out, steps, steps - 1, None, 0.9 * whole, r)[0]] += 1
        done(partial(train, out, steps))
        equal += not differences(state(out, steps), expected)
    return dict(runs=runs, steps=steps, bit_equal=equal, kills_in=dict(phases.most_common()))


def measure(folder: Path, quick: bool) -> dict:
    "Card of both."
    for name in ("many", "once"):
        (folder / name).mkdir()
    return dict(
        many=many_times(folder / "many", *(12, 40) if quick else (200, 400)),
        once=once_each(folder / "once", *(3, 20) if quick else (20, 20)),
    )
