"""Guards of a training run: its log, its progress bar, its stop signal, and what may not be trained on."""
import json
import math
import os
import secrets
import signal
import time
from pathlib import Path

import torch

__all__ = ["TrainingError", "StopSignal", "Log", "check_pictures", "replace_text"]


class TrainingError(RuntimeError):
    "A run that cannot go on; the message says why and what to try."


def check_pictures(
    images,                 # (b 3 h w)
    size: int | tuple,      # expected side, or (height, width)
):
    "Refuse pictures of another shape, not finite, or outside [-1, 1]: the usual causes of noise."
    h, w = (size, size) if isinstance(size, int) else size
    if images.ndim != 4 or images.shape[1:] != (3, h, w):
        raise ValueError(f"check_pictures: shape, got {tuple(images.shape)}, expected (b, 3, {h}, {w})")
    low, high = images.amin().item(), images.amax().item()
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("check_pictures: values, got NaN or infinity, expected numbers in [-1, 1]")
    if low < -1.01 or high > 1.01:
        raise ValueError(f"check_pictures: values, got [{low:.3g}, {high:.3g}], expected within [-1, 1]")
    if low >= 0 and len(images) >= 4:
        raise ValueError(f"check_pictures: values, got [{low:.3g}, {high:.3g}], nothing darker than"
                         f" mid-gray in {len(images)} pictures, expected [-1, 1], not [0, 1]")


def replace_text(
    path: str | Path,  # file to make or to replace
    text: str,         # all of its contents
):
    "Write a text file: all of it, or nothing changes."
    path = Path(path)
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with new.open("x", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


class StopSignal:
    "Ctrl-C or SIGTERM sets a flag; the step in progress is finished first. A second Ctrl-C stops at once."
    def __enter__(self):
        self.received, self.before = False, {}
        for s in (signal.SIGINT, signal.SIGTERM):
            try: self.before[s] = signal.signal(s, self._note)
            except ValueError: pass                      # not the main thread: no signals to catch
        return self

    def _note(self, number, frame):
        if self.received and number == signal.SIGINT: raise KeyboardInterrupt
        self.received = True

    def __exit__(self, *_):
        for s, handler in self.before.items(): signal.signal(s, handler)


class Log:
    "One JSON line every `every` steps: loss, loss by noise level, learning rate, gradient norm, images/s."
    levels, bad_limit = 4, 10

    def __init__(self,
        trainer,          # whose run this is
        start: int,       # step it starts from; later lines on disk are dropped
        every: int = 20,  # steps per line
    ):
        self.trainer, self.every, self.bad, self.skipped = trainer, every, 0, 0
        self.path, self.is_main = trainer.out/"log.jsonl", trainer.rank == 0
        if self.is_main: self._rewind(start)
        self.reset()
        self.bar = None
        if trainer.progress:
            from tqdm.auto import tqdm
            name = f"{trainer.stage.config.size} px"
            self.bar = tqdm(total=trainer.config.steps, initial=start, desc=name, unit="step",
                            mininterval=1., dynamic_ncols=True)

    def _rewind(self, start):
        "Drop lines of steps that will be done again, and one that was cut."
        if not self.path.exists(): return
        lines = [o for o in self.path.read_text().splitlines() if o.endswith("}")]
        replace_text(self.path, "".join(o + "\n" for o in lines if json.loads(o)["step"] <= start))

    def reset(self):
        "Begin the next line."
        self.losses, self.times, self.norm, self.since = [], [], 0., time.perf_counter()

    def add(self,
        result: dict | None,  # what the step returned: losses, norm, lr; None: not finite
        draws,                # the step's random numbers
    ):
        "Note one step."
        t = self.trainer
        if result is None:
            self.bad, self.skipped = self.bad + 1, self.skipped + 1
            if self.bad >= self.bad_limit:
                raise TrainingError(f"Trainer: {self.bad} steps in a row had a loss or gradient that is"
                                    f" not finite, up to step {t.step}. Nothing of them was kept."
                                    " Lower the learning rate or look at the data of these steps.")
        else:
            self.bad, self.norm, self.lr = 0, result["norm"], result["lr"]
            self.losses.append(result["losses"])
            self.times.append(draws.t)
        if self.bar: self.bar.update(1)
        if t.step % self.every == 0 or t.step == t.config.steps: self.write()

    def write(self):
        "One line about the steps since the last one."
        t = self.trainer
        if not self.losses: return
        losses, times = torch.cat(self.losses).float().cpu(), torch.cat(self.times).float().cpu()
        bins = (times*self.levels).long().clamp(max=self.levels - 1)
        parts = [losses[bins == k] for k in range(self.levels)]
        rate = len(losses)*t.ranks/(time.perf_counter() - self.since)
        row = dict(step=t.step, samples=t.step*t.config.batch, loss=losses.mean().item(),
                   by_level=[p.mean().item() if len(p) else None for p in parts],
                   lr=self.lr, grad_norm=float(self.norm), skipped=self.skipped,
                   images_per_s=round(rate, 1))
        if self.is_main:
            with self.path.open("a") as f: f.write(json.dumps(row) + "\n")
        if self.bar: self.bar.set_postfix_str(f"loss {row['loss']:.4f}, {rate:.0f} images/s")
        self.reset()

    def close(self):
        "Leave the bar as it is."
        if self.bar: self.bar.close()
