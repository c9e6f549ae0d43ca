"""Seconds and memory of drawing with weights that ship, into `data/runs/sampling-NAME.json`.

    python tools/measure/time_sampling.py emoji       # or toy
    python tools/measure/time_sampling.py emoji text  # into `text-once.json`

The command is timed as a whole (start, loading, drawing, writing); the library by its `sample` alone, warm. `text`
times each stage with its text read once and read at every step, in turn: neighbours share the machine's load.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from unittest import mock

import torch
from cards import RUNS, device_name, write_card

from imagen_nb import stage as stages
from imagen_nb.cascade import Imagen
from imagen_nb.stage import Stage
from imagen_nb.text import TextEmbedding

CAPTIONS = {
    "emoji": [
        "a 3d emoji of a strawberry",
        "a flat emoji of a tiger",
        "a noto emoji of a cactus",
        "a black and white emoji of a bicycle",
    ],
    "toy": [
        "a small red circle to the left of a big blue square on a white background",
        "four striped purple stars against black",
        "a big shaded green ring on a gray background",
        "a small pink cross above a big yellow triangle with a white background",
    ],
}


def seconds(work, n: int) -> list[float]:
    "Wall time of n calls."
    out = []
    for _ in range(n):
        since = time.perf_counter()
        work()
        out.append(round(time.perf_counter() - since, 2))
    return out


def summary(values: list[float], captions: int) -> dict:
    "Median and range, per caption."
    return dict(
        median=round(statistics.median(values) / captions, 2),
        low=min(values) / captions,
        high=max(values) / captions,
        runs=len(values),
        captions=captions,
    )


def draw_alone(stage: Stage, text: TextEmbedding) -> float:
    "CPU-seconds of one picture."
    side, since = stage.config.lowres_size, time.process_time()
    stage.sample(text, torch.zeros(1, 3, side, side) if side else None, seeds=[0])
    return time.process_time() - since


def text_once(name: str, pairs: int = 9):
    "CPU time of a picture of each stage whose text is read once, as a share of one whose text is read at every step."
    imagen, rows = Imagen.from_pretrained(name), []
    text = imagen.encoder(CAPTIONS[name][:1])
    for stage in imagen.stages:
        draw_alone(stage, text)
        once, often = [], []
        for _ in range(pairs):
            once.append(draw_alone(stage, text))
            with mock.patch.object(stages, "RepeatedText", TextEmbedding):
                often.append(draw_alone(stage, text))
        ratio = sorted(a / b for a, b in zip(once, often))
        rows.append(
            dict(
                size=stage.config.size,
                steps=stage.config.steps,
                once=round(statistics.median(once), 3),
                every_step=round(statistics.median(often), 3),
                ratio=[round(x, 3) for x in (ratio[pairs // 2], ratio[0], ratio[-1])],
            )
        )
    write_card(
        RUNS / "text-once.json",
        "CPU-seconds of a picture, its text read once or at every step; ratio: median of neighbours, least, most",
        f"python tools/measure/time_sampling.py {name} text",
        model=name,
        pairs=pairs,
        stages=rows,
    )


def main(name: str = "emoji", what: str = "all"):
    if what == "text":
        return text_once(name)
    captions = CAPTIONS[name]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "imagen_nb.cli", "sample", captions[0]]
        command += ["--model", name, "--out", folder]
        whole = seconds(lambda: subprocess.run(command, check=True, capture_output=True), 5)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    imagen = Imagen.from_pretrained(name).to(device)
    imagen.sample(captions[:1])
    one = seconds(lambda: imagen.sample(captions[:1]), 5)
    four = seconds(lambda: imagen.sample(captions), 5)
    write_card(
        RUNS / f"sampling-{name}.json",
        f"imagen-nb sample, {' -> '.join(str(o.config.size) for o in imagen.stages)} px",
        f"python tools/measure/time_sampling.py {name}",
        device=device_name(device),
        parameters=[sum(p.numel() for p in o.network.parameters()) for o in imagen.stages],
        command_seconds=summary(whole, 1),
        command_memory_gib=round(memory, 2),
        one_caption=summary(one, 1),
        four_captions=summary(four, 4),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
