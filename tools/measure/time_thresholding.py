"""Seconds of dynamic thresholding over one pass of `abs().amax()`: `python tools/measure/time_thresholding.py`.

The card is `data/runs/proof-thresholding.json`. Both sides alternate in one run, on a quiet machine.
Beside it, the same with `torch.quantile` replaced by a full sort.
"""

import os
import statistics
import time

import torch
from cards import RUNS, write_card

from imagen_nb.thresholding import dynamic_threshold, row_quantile

SHAPE, TURNS = (4, 3, 1024, 1024), 15


def by_sorting(x):
    "The textbook way."
    s = (
        x.abs()
        .flatten(1)
        .sort(1)
        .values[:, int(0.995 * (x[0].numel() - 1))]
        .clamp(min=1)[:, None, None, None]
    )
    return x.clamp(-s, s) / s


def measure(x) -> dict:
    "Median and range of each side's seconds, and of the ratio to the pass of its own round."
    sides = dict(
        one_pass=lambda: x.abs().amax(),
        dynamic=lambda: dynamic_threshold(x),
        quantile=lambda: row_quantile(x.flatten(1), 0.995),
        by_sorting=lambda: by_sorting(x),
    )
    seconds = {name: [] for name in sides}
    for turn in range(TURNS + 1):
        for name, work in sides.items():
            if name == "by_sorting" and turn > 3:
                continue
            since = time.perf_counter()
            work()
            if turn:
                seconds[name].append(time.perf_counter() - since)

    def told(values):
        return [round(f(values), 4) for f in (statistics.median, min, max)]

    ratio = {
        name: told([a / b for a, b in zip(seconds[name], seconds["one_pass"])])
        for name in sides
        if name != "one_pass"
    }
    return dict(
        seconds={name: told(values) for name, values in seconds.items()}, over_one_pass=ratio
    )


def main():
    pictures = {
        "noise": 1.5 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)),
        "smooth": torch.nn.functional.interpolate(
            2 * torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
            size=SHAPE[2:],
            mode="bicubic",
        ),
    }
    results = {}
    for threads in (1, os.cpu_count()):
        torch.set_num_threads(threads)
        results[f"{threads} thread{'s' * (threads > 1)}"] = {
            name: measure(x) for name, x in pictures.items()
        }
    write_card(
        RUNS / "proof-thresholding.json",
        "dynamic thresholding over one pass of abs().amax(): median, least, most",
        "python tools/measure/time_thresholding.py",
        shape=SHAPE,
        p=0.995,
        runs=TURNS,
        goal=4,
        seed=0,
        results=results,
    )
    for threads, by in results.items():
        for name, result in by.items():
            print(threads, name, result["over_one_pass"])


if __name__ == "__main__":
    main()
