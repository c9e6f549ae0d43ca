"`imagen-nb train`, launcher and all, told to stop."

import os
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

from imagen_nb.store.checkpoint import checkpoints, verify

from . import done, saved_step
from .signals import SIGNALS, STEPS


def pictures(folder: Path):
    "A few captioned pictures."
    from imagen_nb.data import ShapesWorld
    from imagen_nb.plots import save_picture

    folder.mkdir()
    for i, image in enumerate(ShapesWorld("train", level="quick", size=64).images(range(6))):
        save_picture(image, folder / f"{i}.png")


def command(folder: Path, name: str, processes: int) -> dict:
    "Start a run, send the signal after the first checkpoint, wait for the end."
    out = folder / f"{name}-{processes}"
    words = f"train toy --data {folder / 'pictures'} --out {out} --stage 0 --processes {processes}"
    words += f" --set training.0.steps={STEPS} --set training.0.batch=4"
    words += " --set training.0.save_every=5 --set stages.0.network.dim=16"
    words += " --set stages.0.network.head_dim=16"
    child = subprocess.Popen(
        [sys.executable, "-m", "imagen_nb.cli", *words.split()],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 900
    while not saved_step(out / "32px") and time.monotonic() < until:
        time.sleep(0.05)
    since = time.monotonic()
    if name == "SIGINT":
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does
    else:
        child.send_signal(getattr(signal, name))
    told = child.communicate(timeout=600)[1].strip().splitlines()[-1].replace(str(folder), "")
    seconds = round(time.monotonic() - since, 2)
    verify(checkpoints(out / "32px")[0])
    return dict(
        signal=name,
        processes=processes,
        code=child.returncode,
        seconds=seconds,
        saved=saved_step(out / "32px"),
        told=told,
    )


def measure(folder: Path, quick: bool) -> dict:
    "Card of three signals, one process and two."
    done(lambda: pictures(folder / "pictures"))
    cases = [("SIGTERM", 1)] if quick else product(SIGNALS, (1, 2))
    return dict(commands=[command(folder, *case) for case in cases])
