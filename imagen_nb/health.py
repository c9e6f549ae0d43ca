"""Guards of a training run: its stop signal, and what may not be trained on."""
import math
import os
import secrets
import signal
from pathlib import Path

__all__ = ["TrainingError", "StopSignal", "check_pictures", "replace_text"]


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
    "Ctrl-C, SIGTERM or SIGUSR1 sets a flag; the step in progress is finished first. A second Ctrl-C stops at once."
    names = ("SIGINT", "SIGTERM", "SIGUSR1")  # the last as schedulers send it; not everywhere

    def __enter__(self):
        self.received, self.before = False, {}
        for s in (getattr(signal, name) for name in self.names if hasattr(signal, name)):
            try: self.before[s] = signal.signal(s, self._note)
            except ValueError: pass                      # not the main thread: no signals to catch
        return self

    def _note(self, number, frame):
        if self.received and number == signal.SIGINT: raise KeyboardInterrupt
        self.received = True

    def __exit__(self, *_):
        for s, handler in self.before.items(): signal.signal(s, handler)
