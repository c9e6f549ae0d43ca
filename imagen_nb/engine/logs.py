"""What a run says of itself: files in its directory, a bar or a live figure, and trackers."""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
import socket
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from imagen_nb.engine.stopping import TrainingError
from imagen_nb.store.config import counted
from imagen_nb.store.files import append, read_rows, replace_text, save_png

if TYPE_CHECKING:
    from imagen_nb.engine.distributed import Process
    from imagen_nb.training import TrainConfig

__all__ = ["Log", "Stopwatch", "TRACKERS", "check_trackers", "flat"]

LEVELS, BAD_LIMIT = 4, 10  # noise levels in a row of the log; bad steps in a row that end a run
COLUMNS = (
    "step",
    "samples",
    "loss",
    *(f"by_level_{k}" for k in range(LEVELS)),
    "lr",
    "grad_norm",
    "skipped",
    "images_per_s",
    "waiting",
    "updating",
    "saving",
    "watching",
    "memory_gib",
)  # of log.csv


# ---------------------------------------------------------------- time and memory


class Stopwatch:
    "Seconds spent on each kind of work."

    def __init__(
        self,
        device: torch.device,  # where the work is done
    ):
        self.is_gpu = device.type == "cuda"
        self.restart()

    def restart(self):
        "Forget what was measured."
        self.seconds, self.pairs, self.since = defaultdict(float), [], time.perf_counter()

    @contextmanager
    def __call__(self, what: str):
        "Time a block; on a GPU, `updating` by its own clock, which is not waited for."
        if self.is_gpu and what == "updating":
            pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            pair[0].record()
            yield
            pair[1].record()
            self.pairs.append(pair)
            return
        since = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - since

    def each(self, what: str, items: Iterable) -> Iterator:
        "Time how long each item takes to come."
        items = iter(items)
        while True:
            with self(what):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def read(self, *names: str) -> list[float]:
        "Seconds in all, then those of each kind."
        if self.pairs:
            torch.cuda.synchronize()
            self.seconds["updating"] += (
                sum(start.elapsed_time(end) for start, end in self.pairs) / 1000
            )
            self.pairs = []
        return [time.perf_counter() - self.since, *(self.seconds[name] for name in names)]


def memory_gib(device: torch.device) -> float:
    "Most that was ever used on a GPU; on a CPU what the process holds now."
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import psutil

    return psutil.Process().memory_info().rss / 2**30


# ---------------------------------------------------------------- rows in files


def flat(
    row: dict,  # numbers, lists and dictionaries of numbers
    prefix: str = "",  # before every name
) -> dict:  # "by_level_0", "text_gain_mean", ...
    "One name for each number; what is no number is left out."
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, (list, tuple)):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}_")
        elif isinstance(value, (int, float)):
            found[f"{prefix}{name}"] = value
    return found


def csv_lines(rows: list[dict], header: bool) -> str:
    "Rows of the log as a table with fixed columns."
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    if header:
        table.writeheader()
    table.writerows(flat(row) for row in rows)
    return text.getvalue()


class Log:
    "Every `every` steps a row; rows of validation and of drawn samples; a bar or a live figure; trackers."

    def __init__(
        self,
        out: Path,  # directory of the run
        start: int,  # step it starts from; later rows on disk are dropped
        config: TrainConfig,  # of the run: its steps and samples
        process: Process,  # this one
        begun: dict | None = None,  # a row that a checkpoint took along, what `begun` gave
        title: str = "",  # of a bar or live figure; empty: none
        track: Iterable[str] = (),  # names of `TRACKERS`
        every: int = 20,  # steps per row
    ):
        self.out, self.config, self.process, self.every = out, config, process, every
        self.is_main, self.clock = process.rank == 0, Stopwatch(process.device)
        self.steps = {kind: self.rewind(kind, start) for kind in ("log", "validation", "samples")}
        last = self.steps["log"].get(max(self.steps["log"], default=0), {})
        self.skipped, self.bad = last.get("skipped", 0), 0
        self.show: Bar | LivePlot | None = None
        self.trackers: list[Quiet] = []
        self.reset()
        if begun:
            self.go_on(begun)
        if not self.is_main:
            return
        replace_text(out / "log.csv", csv_lines(list(self.steps["log"].values()), header=True))
        if title:
            self.show = LivePlot(out) if in_notebook() else Bar(title, config.steps, start)
        self.trackers = [Quiet(name, out, start) for name in track]

    def rewind(self, kind: str, start: int) -> dict:
        "Drop rows of steps that will be done again, and lines that were cut; the others by step."
        path = self.out / f"{kind}.jsonl"
        rows = {row["step"]: row for row in read_rows(path)[0] if row["step"] <= start}
        text = "".join(json.dumps(row) + "\n" for row in rows.values())
        if self.is_main and path.exists() and path.read_bytes() != text.encode():
            replace_text(path, text)
        return rows

    def reset(self):
        "Begin the next row."
        device = self.process.device
        self.sums = torch.zeros(
            2, LEVELS, dtype=torch.double, device=device
        )  # of losses, of samples
        self.good = self.seen = 0  # steps in the row; samples of this process since it counts time
        self.clock.restart()

    def begun(self) -> dict:
        "The unfinished row, over all processes, for a checkpoint."
        sums = self.process.total(self.sums).tolist()
        last = dict(norm=float(self.norm), lr=self.lr) if self.good else {}
        return dict(sums=sums, good=self.good, bad=self.bad, skipped=self.skipped, **last)

    def go_on(self, begun: dict):
        "With a row that a checkpoint took along; its sums go to one process."
        values = dict(begun)
        sums = self.sums.new_tensor(values.pop("sums"))
        if self.is_main:
            self.sums = sums
        for name, value in values.items():
            setattr(self, name, value)

    def add(
        self,
        step: int,  # done now
        result: dict | None,  # what the step returned: losses, norm, lr; None: not finite
        draws,  # the step's random numbers
    ):
        "Note one step."
        if result is None:
            self.bad, self.skipped = self.bad + 1, self.skipped + 1
            if self.bad >= BAD_LIMIT:
                raise TrainingError(
                    f"Trainer: {counted(self.bad, 'step')} in a row had a loss or gradient that is"
                    f" not finite, up to step {step}. Nothing of them was kept."
                    " Lower the learning rate or look at the data of these steps."
                )
        else:
            self.bad, self.norm, self.lr = 0, result["norm"], result["lr"]
            self.good, self.seen = self.good + 1, self.seen + len(draws.t)
            losses = result["losses"].double()
            bins = (draws.t * LEVELS).long().clamp(max=LEVELS - 1)
            self.sums.index_add_(1, bins, torch.stack([losses, torch.ones_like(losses)]))
        if self.show:
            self.show.advance()
        if self.good and (step % self.every == 0 or step == self.config.steps):
            self.write(step)

    def write(self, step: int):
        "One row about the steps since the last one, over all processes."
        names = ("waiting", "updating", "saving", "watching")
        sums, counts = self.process.total(self.sums).tolist()
        seconds, *parts = self.clock.read(*names)
        row = dict(
            step=step,
            samples=step * self.config.batch,
            loss=sum(sums) / sum(counts),
            by_level=[s / n if n else None for s, n in zip(sums, counts)],
            lr=self.lr,
            grad_norm=float(self.norm),
            skipped=self.skipped,
            images_per_s=round(self.seen * self.process.ranks / seconds, 1),
            **{name: round(o / seconds, 4) for name, o in zip(names, parts)},
            memory_gib=round(memory_gib(self.process.device), 3),
        )
        self.note("log", row)
        self.reset()

    def note(
        self,
        kind: str,  # "log", "validation" or "samples"
        row: dict,  # with its step
        picture=None,  # PIL image that goes with it
    ):
        "Write a row to its file, show it, hand it to the trackers; a full disk is one warning more."
        if not self.is_main:
            return
        self.steps[kind][row["step"]] = row
        is_kept = append(self.out / f"{kind}.jsonl", json.dumps(row) + "\n")
        if kind == "log":
            is_kept &= append(self.out / "log.csv", csv_lines([row], header=False))
        if picture is not None:
            is_kept &= save_png(picture, self.out / kind / f"step_{row['step']:08d}.png")
        if not is_kept:
            warnings.warn(
                f"Log: what step {row['step']} has to say could not be written whole to {self.out}"
            )
        if self.show:
            self.show.update(kind, row)
        for tracker in self.trackers:
            tracker.note(kind, row, picture)

    def close(self):
        "Leave bar and figure as they are; close the trackers."
        if self.show:
            self.show.close()
        for tracker in self.trackers:
            tracker.close()


# ---------------------------------------------------------------- for the eye


class Bar:
    "A progress bar."

    def __init__(self, title: str, steps: int, start: int):
        from tqdm.auto import tqdm

        self.bar = tqdm(
            total=steps,
            initial=start,
            desc=title,
            unit="step",
            mininterval=1.0,
            dynamic_ncols=True,
        )

    def advance(self):
        "One step more."
        self.bar.update(1)

    def update(self, kind: str, row: dict):
        "Loss and speed beside the bar."
        if kind == "log":
            self.bar.set_postfix_str(f"loss {row['loss']:.4f}, {row['images_per_s']:.0f} images/s")

    def close(self):
        self.bar.close()


class LivePlot:
    "One figure in a notebook, drawn anew with each row, but for at most a twentieth of the time."

    def __init__(self, out: Path):
        self.out, self.handle, self.next = out, None, 0.0

    def advance(self):
        "A step alone is nothing to draw."

    def update(self, kind: str, row: dict):
        "Draw, unless it is too early."
        if time.perf_counter() >= self.next:
            self.draw()

    def draw(self):
        "The curves so far."
        from IPython.display import display

        from imagen_nb.plots import plot_log

        since = time.perf_counter()
        figure = plot_log(self.out)
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)
        now = time.perf_counter()
        self.next = now + 20 * (now - since)

    def close(self):
        "The last state."
        if self.handle is not None:
            self.draw()


def in_notebook() -> bool:
    "Is this a kernel that shows figures?"
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


# ---------------------------------------------------------------- trackers


def values_of(kind: str, row: dict) -> list[tuple[str, float]]:
    "Numbers of a row, named for a tracker."
    return [(f"{kind}/{name}", value) for name, value in flat(row).items() if name != "step"]


class TensorBoard:
    "Event files in RUN/tensorboard."

    package = "tensorboard"

    def __init__(self, out: Path, start: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(out / "tensorboard", purge_step=start + 1)

    def note(self, kind: str, row: dict, picture):
        import numpy as np

        for name, value in values_of(kind, row):
            self.writer.add_scalar(name, value, row["step"])
        if picture is not None:
            self.writer.add_image(kind, np.asarray(picture), row["step"], dataformats="HWC")
        self.writer.flush()

    def close(self):
        self.writer.close()


class WandB:
    "A run of Weights & Biases, kept in RUN/wandb until it is synchronised where there is no network."

    package = "wandb"

    def __init__(self, out: Path, start: int):
        import wandb

        mode = os.environ.get("WANDB_MODE")
        if mode is None and not is_reachable("api.wandb.ai"):
            mode = "offline"
            warnings.warn(
                f"wandb: no network; the run is kept in {out / 'wandb'}, `wandb sync` sends it later"
            )
        self.image = wandb.Image
        self.run = wandb.init(
            project="imagen_nb",
            name=f"{out.resolve().parent.name} {out.name}",
            dir=str(out),
            mode=mode,
        )
        self.run.define_metric("*", step_metric="step")

    def note(self, kind: str, row: dict, picture):
        values = dict(values_of(kind, row))
        if picture is not None:
            values[f"{kind}/picture"] = self.image(picture)
        self.run.log(values | dict(step=row["step"]))

    def close(self):
        self.run.finish()


TRACKERS: dict[str, Any] = dict(tensorboard=TensorBoard, wandb=WandB)


def check_trackers(names: Iterable[str]):
    "Refuse trackers that do not exist or are not installed, before a run begins."
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"track: got {name!r}, expected one of {', '.join(TRACKERS)}")
        try:
            importlib.import_module(TRACKERS[name].package)
        except ImportError:
            raise ValueError(
                f'track: {name} is not installed; pip install "imagen-nb[track]"'
            ) from None


class Quiet:
    "A tracker that never ends a run: its first failure is one warning, then it is left alone."

    def __init__(self, name: str, out: Path, start: int):
        self.name, self.tracker = name, None
        self.attempt(lambda: setattr(self, "tracker", TRACKERS[name](out, start)))

    def attempt(self, call):
        try:
            call()
        except Exception as e:  # whatever a tracker may raise
            self.tracker = None
            warnings.warn(
                f"{self.name}: {type(e).__name__}: {e}; the run goes on without it, its own log is complete"
            )

    def note(self, *row):
        if self.tracker is not None:
            self.attempt(lambda: self.tracker.note(*row))

    def close(self):
        if self.tracker is not None:
            self.attempt(self.tracker.close)


def is_reachable(host: str) -> bool:
    "Can this host be asked: directly, or through a proxy that the user set?"
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True
    try:
        socket.create_connection((host, 443), timeout=3).close()
    except Exception:
        return False
    return True
