"""Runs that are told to stop: by SIGTERM, SIGINT and SIGUSR1; one process and two; once, twice, and while saving.

A second Ctrl-C stops at once: it alone may lose steps.
"""

import os
import random
import signal
import time
from collections import Counter
from itertools import product
from pathlib import Path

from imagen_nb.store.checkpoint import checkpoints, verify

from . import Watch, bound, ended, fork, make_trainer, quantiles, saved_step, team

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")
STEPS, PATIENCE = 100_000, 60  # no run ends by itself; one that takes longer to stop has hung


def train(out: Path, watch: Watch):
    "A run without an end."
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    trainer = make_trainer(out, STEPS, save_every=50)
    watch.follow(trainer)
    trainer.fit()


def told_to_stop(
    out: Path, name: str, processes: int, to: str, when: str, r: random.Random
) -> dict:
    "Start, send the signal in the middle, wait for the end."
    watches = [Watch() for _ in range(processes)]
    pids = (
        [fork(lambda: train(out, watches[0]))]
        if processes == 1
        else team(processes, lambda rank: train(out, watches[rank]))
    )
    chosen = dict(first=pids[:1], last=pids[-1:], all=pids)[to]
    if not watches[0].wait("stepping", PATIENCE):
        raise TimeoutError("signals: no step within a minute")
    if when == "saving":
        watches[0].wait("saving", PATIENCE)
    else:
        time.sleep(r.uniform(0, 1))
    since, number = time.monotonic(), getattr(signal, name)
    for pid in chosen:
        os.kill(pid, number)
    if when == "twice":
        time.sleep(r.uniform(0, 0.01))
        for pid in chosen:
            os.kill(pid, number)
    codes = []
    for pid in pids:
        try:
            codes.append(ended(pid, PATIENCE))
        except TimeoutError:
            codes.append("hung")
    seconds = time.monotonic() - since
    steps = {w.step() for w in watches}
    for w in watches:
        w.close()
    for p in checkpoints(out):
        verify(p)
    return dict(
        seconds=seconds, codes=codes, lost=max(steps) - saved_step(out), apart=len(steps) - 1
    )


def many(folder: Path, name: str, processes: int, to: str, when: str, n: int) -> dict:
    "The same `n` times."
    r = random.Random(f"{name} {processes} {to} {when}")
    found = [
        told_to_stop(folder / f"{name}-{processes}-{to}-{when}-{k}", name, processes, to, when, r)
        for k in range(n)
    ]
    return dict(
        signal=name,
        processes=processes,
        to=to,
        when=when,
        n=n,
        steps_lost=max(o["lost"] for o in found),
        hangs=sum("hung" in o["codes"] for o in found),
        processes_apart=max(o["apart"] for o in found),
        seconds=quantiles([o["seconds"] for o in found]),
        codes=dict(Counter(str(c) for o in found for c in o["codes"])),
    )


def measure(folder: Path, quick: bool) -> dict:
    "Card of every combination."
    cases = [(s, 1, "all", when) for s, when in product(SIGNALS, ("stepping", "twice", "saving"))]
    cases += [(s, 2, to, "stepping") for s, to in product(SIGNALS, ("first", "last", "all"))]
    cases += [("SIGTERM", 2, "all", "twice"), ("SIGTERM", 2, "last", "saving")]
    if quick:
        cases = [
            ("SIGTERM", 1, "all", "saving"),
            ("SIGUSR1", 1, "all", "stepping"),
            ("SIGTERM", 2, "last", "stepping"),
        ]
    rows = [many(folder, *case, 1 if quick else 3) for case in cases]
    stops, hangs = sum(o["n"] for o in rows), sum(o["hangs"] for o in rows)
    return dict(stops=stops, hangs=hangs, hangs_at_most=bound(hangs, stops), cases=rows)
