"""Writes checkpoints of which every process has a part, while training goes on: see `shards` for what is in them.

Each process writes its own files into a hidden directory. When all have written, the first process seals that directory
and puts it in its place, as `checkpoint` does with those of one process.
"""

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from imagen_nb.store.checkpoint import meta_text, new_directory, seal, size_of
from imagen_nb.store.files import CheckpointError
from imagen_nb.store.manifest import file_entry
from imagen_nb.store.shards import Groups, joined, reasons

__all__ = ["Saving"]


def make_writer(new: Path, groups: Groups, text: bytes, place: Callable[[], None]):
    "torch's; each process tells the first one sizes and digests of its files, and that one seals the directory."
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    class Writer(HuggingFaceStorageWriter):
        def write_data(self, plan, planner):
            written = super().write_data(plan, planner).wait()
            names = sorted({o.storage_data.relative_path for o in written})
            done: torch.futures.Future = torch.futures.Future()
            done.set_result([(name, file_entry(new / name)) for name in names])
            return done

        def finish(self, metadata, results):  # of the first process, once all have written
            seal(new, text, known=dict(chain(*results)))
            place()

    files = {f"{g}.{k}": i for i, g in enumerate(groups, 1) for k in groups[g]}
    return Writer(str(new), files, save_distributed=True)


class Saving:
    "A checkpoint that is being written while its tensors may change already."

    def __init__(
        self,
        path: Path,  # directory to make or to replace
        groups: Groups,  # every process's parts
        meta: dict,  # anything JSON can hold
        group,  # gloo, for nothing else while this lasts
        after: Callable[[], object],  # what the first process does once the directory is in place
    ):
        from torch.distributed.checkpoint import async_save

        self.stack, text = ExitStack(), meta_text(meta)
        self.future: Any = Future()
        told: list[str | None] = [None]
        try:
            if distributed.get_rank(group) == 0:
                size = size_of(groups) + len(text)
                told = [str(self.stack.enter_context(new_directory(path, size)))]
        except (OSError, CheckpointError) as e:
            self.future.set_exception(e)
        distributed.broadcast_object_list(told, group_src=0, group=group)
        if told[0] is None:
            if not self.future.done():
                self.future.set_exception(CheckpointError("the first process could not begin"))
            return

        def place():
            self.stack.close()
            after()

        writer = make_writer(Path(told[0]), groups, text, place)
        self.future = async_save(joined(groups), storage_writer=writer, process_group=group)

    def finish(self):
        "Wait until it is on disk; raises where it is not."
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            self.future.result()
        except CheckpointException as e:
            error = CheckpointError(reasons(e))
            self.stack.__exit__(type(error), error, None)  # what was written is deleted
            raise error from e
