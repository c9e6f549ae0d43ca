"""Batches ahead of the step that needs them, from pictures by number or from a stream."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset

from imagen_nb.engine.online import with_text
from imagen_nb.pictures.pixels import Batch, crop_images
from imagen_nb.stage import Draws

if TYPE_CHECKING:
    from imagen_nb.training import Samples


Rows = TypeVar("Rows", bound=NamedTuple)


def in_order(
    work: Callable,  # called with each item
    items: Iterable,  # what to call it with
    workers: int = 0,  # processes that work ahead; 0: none, this one works
) -> Iterator:  # results in the order of the items
    "The same results in the same order for any number of workers; one that dies is an error."
    if workers < 0:
        raise ValueError(f"in_order: workers, got {workers}, expected 0 or more")
    if workers == 0:
        yield from map(work, items)
        return
    loader = DataLoader(
        _Calls(work),
        batch_size=None,
        sampler=items,
        collate_fn=_same,
        num_workers=workers,
        generator=torch.Generator(),
    )  # not the global one
    results: Any = iter(loader)
    done = 0
    try:
        for result in results:
            yield result
            done += 1
    except RuntimeError as e:
        if "DataLoader worker" not in str(e):
            raise
        raise RuntimeError(
            f"in_order: a worker died after {done} results ({e}); often memory ran"
            " out. What was given out is complete: go on from there"
        ) from e
    finally:
        results._shutdown_workers()  # at once, not when the error's traceback is forgotten


class _Calls(Dataset):
    "Items a worker receives are handed to a function."

    def __init__(self, work: Callable):
        self.work = work

    def __getitem__(self, item):
        return self.work(item)


def _same(result):
    "Results leave a worker as they are."
    return result


def one_ahead(
    work: Callable,  # called with each item in turn, in another thread
    items: Iterable,  # what to call it with
) -> Iterator:  # the results in order; an exception comes where its result would
    "Work on the next item while the last result is in use."
    ahead = None
    with ThreadPoolExecutor(1) as pool:
        for item in items:
            now, ahead = ahead, pool.submit(work, item)
            if now is not None:
                yield now.result()
        if ahead is not None:
            yield ahead.result()


def loading_workers(
    device: torch.device,  # where the network computes
) -> int:  # processes
    "Who prepares batches ahead: cores that nobody else needs; on a CPU there are none."
    if device.type == "cpu":
        return 0
    return min(8, max(1, (os.cpu_count() or 1) // max(1, torch.cuda.device_count()) - 1))


def share_of(
    batch: int,  # samples of a step
    ranks: int,  # processes
) -> int:  # samples of each
    "Processes take equal shares."
    if batch % ranks:
        raise ValueError(
            f"Samples: batch, got {batch}, expected a multiple of the {ranks} processes"
        )
    return batch // ranks


def to_device(
    rows: Rows,  # a Batch or Draws
    device: torch.device | str,  # where it goes
    is_pinned: bool = False,  # by way of memory that a GPU reads by itself: nobody waits
) -> Rows:  # the same, moved
    "Move what can be moved."

    def moved(v):
        if isinstance(v, Tensor):
            return (v.pin_memory() if is_pinned else v).to(device, non_blocking=is_pinned)
        return to_device(v, device, is_pinned) if hasattr(v, "_fields") else v

    return type(rows)(*map(moved, rows))


class Mover:
    "Copies to a GPU on a stream of its own: one does not wait behind the step that is computed."

    def __init__(
        self,
        device: torch.device | str,  # a GPU
    ):
        self.device, self.stream = device, torch.cuda.Stream(device)

    def move(
        self,
        pair: tuple[Batch, Draws],  # on the CPU
    ) -> tuple[tuple[Batch, Draws], torch.cuda.Event]:  # on its way; arrived
        "Begin to copy; called in another thread."
        with torch.cuda.stream(self.stream):
            batch = to_device(pair[0], self.device, is_pinned=True)
            draws = to_device(pair[1], self.device, is_pinned=True)
            return (batch, draws), self.stream.record_event()

    def arrive(
        self,
        moved: tuple[tuple[Batch, Draws], torch.cuda.Event],  # what `move` gave
    ) -> tuple[Batch, Draws]:  # for what the GPU is told from now on
        "The GPU waits for the copy, the host does not."
        pair, event = moved
        now = torch.cuda.current_stream(self.device)
        now.wait_event(event)
        for x in tree_leaves(pair):
            if isinstance(x, Tensor):
                x.record_stream(now)  # its memory is free again when the step is done with it
        return pair


def in_parts(
    batch: Batch,  # pictures and captions, b rows
    draws: Draws,  # their random numbers
    parts: int,  # how many, at most b
) -> Iterator[tuple[Batch, Draws]]:  # in order, equal up to one row
    "Cut a batch into micro-batches."

    def cut(rows, at):
        def some(v):
            return v if v is None else v.rows(at) if hasattr(v, "rows") else v[at]

        return type(rows)(*map(some, rows))

    for part in torch.arange(len(batch.index)).tensor_split(parts):
        at = slice(int(part[0]), int(part[-1]) + 1)
        yield cut(batch, at), cut(draws, at)


def ahead(
    make: Callable[[Tensor], tuple[Batch, Draws]],  # numbers of samples -> a step, on the CPU
    indices: Iterable[Tensor],  # numbers of each step's samples
    device: torch.device | str = "cpu",  # where steps go
    workers: int = 0,  # processes that make them
    multiple: int = 1,  # captions are padded to a multiple of it
) -> Iterator[tuple[Batch, Draws]]:  # on the device, in order
    "What each step trains on; where a GPU computes, the next one is moved over meanwhile."

    def padded(pair):
        batch, draws = with_text(pair[0], make), pair[1]
        if multiple > 1:
            length = math.ceil(batch.text.mask.shape[1] / multiple) * multiple
            batch = batch._replace(text=batch.text.pad(length))
        return batch, draws

    ready = in_order(make, indices, workers)
    if torch.device(device).type != "cuda":
        yield from (tuple(to_device(rows, device) for rows in padded(pair)) for pair in ready)
        return
    mover = Mover(device)
    yield from map(mover.arrive, one_ahead(lambda pair: mover.move(padded(pair)), ready))


class Arrivals:
    """Samples whose pictures come from a stream, in the order of their arrival.

    Draws are named by number as ever; which picture a number meets depends on what came before. So a stream
    promises less: one process only, and no picture twice unless the stream is put back to a state it was in.
    """

    def __init__(
        self,
        samples: Samples,  # whose dataset is a stream: (image, caption) again and again
        draw: Callable,  # (seed, index, stage_config) -> Draws
        draw_crop: Callable,  # likewise -> Crop; None: whole pictures
    ):
        stream = samples.dataset
        if samples.ranks > 1:
            raise ValueError(
                f"Trainer: dataset, got a stream and {samples.ranks} processes, expected one"
                " process: a stream cannot be shared"
            )
        if stream.size != samples.stage_config.size:
            raise ValueError(
                f"Trainer: dataset, got a stream of {stream.size} pixels,"
                f" expected {samples.stage_config.size}"
            )
        self.samples, self.pairs = samples, epochs(stream)
        self.draw, self.draw_crop = draw, draw_crop
        self.stage_config, self.config = samples.stage_config, samples.config
        self.dataset, self.text = samples.dataset, samples.text
        self.state: dict | None = None  # where the stream stood after the batch handed out last
        self.states: deque = deque()  # after batches that were made ahead

    def resume(self, state: dict):
        "Go on with the next picture of a run."
        self.dataset.resume(state)
        self.state, self.pairs = state, epochs(self.dataset)

    def __call__(self, index: Tensor) -> tuple[Batch, Draws]:
        "The next pictures, with the draws of these numbers."
        images, captions = zip(*(next(self.pairs) for _ in index))
        self.states.append(self.dataset.state())
        key = (self.config.seed, index, self.stage_config)
        pictures, crop = torch.stack(images), self.draw_crop(*key)
        if crop is not None:
            pictures = crop_images(pictures, crop)
        return Batch(pictures, self.text[list(captions)], index, list(captions)), self.draw(*key)

    def batches(self, start: int, **how) -> Iterator[tuple[Batch, Draws]]:
        "What every step from `start` to the last trains on; nobody else can read the stream ahead."
        indices = map(self.samples.index, range(start, self.config.steps))
        for pair in ahead(self, indices, **how | dict(workers=0)):
            self.state = self.states.popleft()
            yield pair


def epochs(stream: Iterable) -> Iterator:
    "A stream again and again."
    empty = 0  # passes in a row; one that is resumed behind its last picture has none either
    while True:
        empty += 1
        for pair in stream:
            empty = 0
            yield pair
        if empty > 1:
            raise ValueError("Trainer: dataset, got a stream without a picture, expected some")
