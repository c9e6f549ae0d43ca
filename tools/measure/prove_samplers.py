"""Proofs of the samplers, into run cards `data/runs/proof-*.json`.

`python tools/measure/prove_samplers.py [parity] [matrix] [order] [bf16] [--out FOLDER]`;
without names, all four (about 15 minutes on 2 cores).
The laboratory itself is `tests/laboratory.py` and `tests/parity.py`.
"""

import argparse
import itertools
import math
import os
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import laboratory as lab
import parity
import torch
from cards import RUNS, write_card

from imagen_nb.diffusion import TARGETS

PAIRS, MATCH_STEPS, COUNTS = (
    500,
    1000,
    (5, 7, 10, 14, 20, 28, 40, 57, 80, 113, 160, 226, 320, 453, 640, 1280),
)


def digits(x, n=4):
    "Numbers to n digits, wherever they are."
    if isinstance(x, dict):
        return {k: digits(v, n) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [digits(v, n) for v in x]
    return (float(f"{x:.{n}g}") if math.isfinite(x) else str(x)) if isinstance(x, float) else x


def write(out, name, since, what, **found):
    "One card, small and rounded."
    seconds = round(time.time() - since)
    command = f"python tools/measure/prove_samplers.py {name}"
    write_card(out / f"proof-{name}.json", what, command, seconds=seconds, **digits(found))


def prove_parity(out):
    import diffusers

    warnings.simplefilter("ignore")
    since, worst = time.time(), {}
    cells = list(
        itertools.product(
            parity.KINDS, parity.BETAS, parity.PREDICTIONS, parity.THRESHOLDS, parity.STEPS
        )
    )
    for kind, *cell in cells:
        worst[kind] = max(worst.get(kind, 0.0), parity.largest_difference(kind, *cell))
    unmatched = {}
    for what, (kind, changes) in parity.UNMATCHED.items():
        changes = dict(changes)
        unmatched[what] = parity.largest_difference(
            kind, "linear", "epsilon", changes.pop("thresholding", False), 20, **changes
        )
    write(
        out,
        "parity",
        since,
        what="largest difference from diffusers' schedulers over all steps, relative to the largest value",
        diffusers=diffusers.__version__,
        cells=len(cells),
        betas=parity.BETAS,
        predictions=list(parity.PREDICTIONS),
        thresholding=parity.THRESHOLDS,
        steps=parity.STEPS,
        goal=1e-4,
        largest=worst,
        conventions=parity.CONVENTIONS,
        when_not_matched=unmatched,
    )


def in_parallel(work, items):
    "One process per core; results in order, printed as they come."
    with ProcessPoolExecutor(
        os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        results = []
        for result in pool.map(work, items):
            print(digits(result), flush=True)
            results.append(result)
        return results


def threshold_of(guidance):
    "The 99 % quantile of two true samples; for one Gaussian it grows with its standard deviation."
    truth = (
        lab.one_gaussian(torch.zeros(3), 1.0)
        if guidance == "w=3"
        else lab.law(guidance, 0.0, "cosine")
    )
    return lab.quantile_of_two(truth, PAIRS)


def over_limit(quantiles, sampler, target, schedule, guidance, run=None):
    "Error of one cell, over the threshold of its law."
    truth, steps = (
        lab.law(guidance, lab.SAMPLERS[sampler][2], schedule),
        lab.steps_for(sampler, schedule, guidance),
    )
    limit = quantiles[guidance] * (truth.stds[0].item() if guidance == "w=3" else 1.0)
    return lab.error(truth, sampler, target, schedule, guidance, steps, run=run) / limit


def row_of(task):
    quantiles, sampler, schedule, guidance = task
    ratios = {
        target: over_limit(quantiles, sampler, target, schedule, guidance) for target in TARGETS
    }
    return dict(
        sampler=sampler,
        schedule=schedule,
        guidance=guidance,
        steps=lab.steps_for(sampler, schedule, guidance),
        **ratios,
    )


def planted_row_of(task):
    quantiles, (what, sampler, right, wrong) = task
    ratio = over_limit(
        quantiles, sampler, "eps", "linear", "w=3", run=lab.planted(sampler, right, wrong)
    )
    return dict(
        sampler=sampler, what=what, steps=lab.steps_for(sampler, "linear", "w=3"), ratio=ratio
    )


def prove_matrix(out):
    since = time.time()
    quantiles = dict(zip(lab.GUIDANCE, in_parallel(threshold_of, lab.GUIDANCE)))
    cells = itertools.product(lab.SAMPLERS, lab.SCHEDULES, lab.GUIDANCE)
    rows = in_parallel(row_of, [(quantiles, *cell) for cell in cells])
    found = in_parallel(planted_row_of, [(quantiles, planted) for planted in lab.PLANTED])
    ratios = [row[t] for row in rows for t in TARGETS]
    right = {
        row["sampler"]: row["eps"]
        for row in rows
        if (row["schedule"], row["guidance"]) == ("linear", "w=3")
    }
    write(
        out,
        "matrix",
        since,
        what="energy distance of a sampler's results to the law they should have,"
        " over the 99 % quantile of two true samples",
        n=lab.N,
        pairs=PAIRS,
        seeds=dict(start=0, noise=1, pairs=0),
        directions=len(lab.directions()),
        w=lab.W,
        quantile_99=quantiles,
        cells=len(ratios),
        passing=sum(r < 1 for r in ratios),
        largest=max(ratios),
        planted=len(found),
        failing=sum(not f["ratio"] < 1 for f in found),
        right_where_planted=right,
        rows=rows,
        planted_rows=found,
    )


def series(steps, errors):
    slope, low, high = lab.order(steps, errors)
    return dict(steps=steps, errors=errors, order=slope, low=low, high=high)


def prove_order(out):
    since, strong, weak, full, cost = time.time(), {}, {}, {}, {}
    for sampler in lab.SAMPLERS:
        if sampler in ("ddim eta 0", "dpmpp_2m"):
            strong[sampler] = {
                name: series(lab.LADDER, [lab.strong_error(sampler, truth, n) for n in lab.LADDER])
                for name, truth in (("gaussian", lab.LINE), ("mixture", lab.TWO))
            }
        both = [lab.weak_errors(sampler, n) for n in lab.LADDER]
        weak[sampler] = dict(std=series(lab.LADDER, [b[0] for b in both]))
        if max(b[1] for b in both) > 1e-9:
            weak[sampler]["mean"] = series(lab.LADDER, [b[1] for b in both])
        else:
            weak[sampler]["mean"] = dict(exact=True, largest=max(b[1] for b in both))
        full[sampler] = {
            kind: series(lab.LADDER, [lab.full_error(sampler, n, kind) for n in lab.LADDER])
            for kind in ("t", "log_snr")
        }
        print(sampler, weak[sampler], flush=True)
    goals = [lab.transport_error("ddpm gamma 0", MATCH_STEPS, seed=s) for s in range(3)]
    goal = sum(goals) / len(goals)
    for sampler, kind in itertools.product(
        ("ddpm gamma 0", "ddpm gamma 1", "ddim eta 0", "dpmpp_2m"), ("t", "log_snr")
    ):
        errors = []
        for n in COUNTS:
            errors.append(lab.transport_error(sampler, n, kind))
            if errors[-1] < goal / 1.5:
                break
        cost.setdefault(sampler, {})[kind] = dict(
            steps=COUNTS[: len(errors)], errors=errors, needed=crossing(COUNTS, errors, goal)
        )
        print(sampler, kind, cost[sampler][kind], flush=True)
    spread_goal, spread = lab.full_error("ddpm gamma 0", MATCH_STEPS, "t"), {}
    for sampler, kind in itertools.product(
        ("ddpm gamma 1", "ddim eta 0", "dpmpp_2m"), ("t", "log_snr")
    ):
        errors = []
        for n in COUNTS[:-1]:
            errors.append(lab.full_error(sampler, n, kind))
            if errors[-1] < spread_goal / 1.5:
                break
        spread.setdefault(sampler, {})[kind] = dict(
            steps=COUNTS[: len(errors)], errors=errors, needed=crossing(COUNTS, errors, spread_goal)
        )
    write(
        out,
        "order",
        since,
        what="orders of convergence (slope of log error over log steps, 95 % interval)"
        " and evaluations that match 1000 steps of DDPM",
        theory={"ddim": 1, "dpmpp_2m": 2, "ddpm": "1, weak; its mean is exact for one Gaussian"},
        setting="strong and weak: even steps in log-SNR from -6 to 6, float64, without Monte Carlo;"
        " full: cosine, from t=1 to t=0, relative error of the standard deviation of x0_hat",
        strong=strong,
        weak=weak,
        full=full,
        match=dict(
            what="Wasserstein-1 distance to a one-dimensional mixture, cosine, from t=1 to t=0,"
            " 2048 points with shared-out noise",
            steps_of_ddpm=MATCH_STEPS,
            error=goal,
            seeds=goals,
            evaluations=cost,
        ),
        match_spread=dict(
            what="relative error of the standard deviation for one Gaussian, as in full, no random numbers",
            steps_of_ddpm=MATCH_STEPS,
            error=spread_goal,
            evaluations=spread,
        ),
    )


def crossing(steps, errors, goal):
    "Evaluations at which the error falls to the goal for good, straight in log-log; None: never."
    above = max((i for i, e in enumerate(errors) if e > goal), default=-1)
    if above == len(errors) - 1:
        return None
    if above < 0:
        return steps[0]
    (n0, n1), (e0, e1) = steps[above : above + 2], errors[above : above + 2]
    return math.ceil(n0 * (n1 / n0) ** (math.log(e0 / goal) / math.log(e0 / e1)))


def prove_bf16(out):
    since, n, rows = time.time(), 5000, []
    limit = lab.quantile_of_two(lab.PICTURES, 300, n)
    spread = lab.PICTURES.sample(50_000, lab.seeded()).std().item()
    samplers, starts = (
        ("ddpm gamma 0", "ddpm gamma 1", "ddim eta 0", "dpmpp_2m"),
        (1.0, 0.9999, 0.999, 0.995, 0.99),
    )
    for sampler, start, target, limiter in itertools.product(samplers, starts, TARGETS, lab.LIMITS):
        row = dict(sampler=sampler, start=start, target=target, threshold=limiter)
        base = lab.draw_pictures(sampler, target, "exact", limiter, start, n=n)
        row["exact"] = lab.distance(base, lab.PICTURES) / limit
        for spoil in ("rounded", "noise"):
            x = lab.draw_pictures(sampler, target, spoil, limiter, start, n=n)
            row[spoil] = lab.distance(x, lab.PICTURES) / limit
            row[f"{spoil}_moved"] = ((x - base) ** 2).mean().sqrt().item() / spread
        rows.append(row)
        if target == "eps":
            print(digits(row), flush=True)
    names = list(rows[0])
    wide = {
        sampler: {start: lab.brightness_error(sampler, start) for start in starts}
        for sampler in samplers
    }
    write(
        out,
        "bf16",
        since,
        what="results when the network's answer carries an error of half precision: energy distance"
        " to the data over the 99 % quantile of two true samples, and rms move over the data's"
        " standard deviation",
        n=n,
        pairs=300,
        steps=50,
        schedule="cosine",
        seeds=dict(start=3, noise=4, error=11),
        quantile_99=limit,
        columns=names,
        rows=[[row[k] for k in names] for row in rows],
        brightness=dict(
            what="relative error of the spread of mean brightness over pictures of 3x64x64 pixels"
            " by start time, 256 steps, data 0.3, exact arithmetic",
            errors=wide,
        ),
    )


PROOFS = dict(parity=prove_parity, matrix=prove_matrix, order=prove_order, bf16=prove_bf16)

if __name__ == "__main__":
    torch.set_num_threads(1)
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("names", nargs="*", choices=[*PROOFS, []])
    arguments.add_argument("--out", type=Path, default=RUNS)
    given = arguments.parse_args()
    for name in given.names or PROOFS:
        PROOFS[name](given.out)
