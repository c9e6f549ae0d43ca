"""Batches ahead of the step that needs them."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from imagen_nb.pictures.pixels import Batch
from imagen_nb.stage import Draws


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
    done, results = 0, iter(loader)
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


def to_device(
    rows: NamedTuple,  # a Batch or Draws
    device: torch.device | str,  # where it goes
) -> NamedTuple:  # the same, moved
    "Move what can be moved."
    return type(rows)(*(v.to(device) if hasattr(v, "to") else v for v in rows))


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
