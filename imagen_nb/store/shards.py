"""Reads checkpoints that every process of a run has written its part of, with `torch.distributed.checkpoint`.

Such a directory holds `shard-RANK-model-K-of-N.safetensors`, as torch's `HuggingFaceStorageWriter` names and writes
them, beside the usual meta.json and manifest.json. The K-th file of each process belongs to the K-th group of tensors,
and a tensor's name begins with its group: "average.head.weight". Nothing is pickled, not even what torch calls
metadata, since each file's header says which part of which tensor it holds. Importing torch's module takes seconds, so
it is imported where it is used.
"""

import re
import warnings
from pathlib import Path

import torch
from torch import Tensor

from imagen_nb.store.files import CheckpointError

__all__ = ["Groups", "is_sharded", "joined", "read_parts", "read_whole", "reasons", "shapes"]

Groups = dict[str, dict[str, Tensor]]  # {"network": {"head.weight": ...}, ...}
SHARD = re.compile(r"shard-\d+-model-\d+-of-\d+\.safetensors")  # torch's name for it


def is_sharded(
    files,  # names of a checkpoint's files
) -> bool:
    "Did every process of a run write its own part of the tensors?"
    return any(SHARD.fullmatch(name) for name in files)


def joined(groups: Groups) -> dict[str, Tensor]:
    "One dictionary for all groups."
    return {f"{g}.{k}": t for g, tensors in groups.items() for k, t in tensors.items()}


def reasons(e) -> str:
    "What went wrong in which process."
    return "; ".join(f"process {k}: {error}" for k, (error, _) in e.failures.items())


def make_reader(folder: Path, names: list[str]):
    "torch's, for some files of a folder."
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    def these(path) -> list[str]:
        return [str(folder / name) for name in names]

    reader = HuggingFaceStorageReader(str(folder))
    reader.fs.ls = these  # type: ignore[method-assign]
    return reader


def read_parts(
    folder: Path,  # a checkpoint, whole or sharded
    groups: Groups,  # to be filled: tensors of any kind, as many processes as there are now
    group=None,  # of the processes; None: this one alone
):
    "Fill tensors from a checkpoint, whoever has written it; no process reads more than it needs."
    from torch.distributed.checkpoint import load
    from torch.distributed.checkpoint.api import CheckpointException

    names = [p.name for p in folder.glob("*.safetensors")]
    parts = [(names, joined(groups))]
    if not is_sharded(names):
        parts = [([f"{g}.safetensors"], tensors) for g, tensors in groups.items()]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one alone reads
            for files, tensors in parts:
                reader = make_reader(folder, files)
                load(tensors, storage_reader=reader, process_group=group, no_dist=group is None)
    except CheckpointException as e:
        raise CheckpointError(f"{folder}: {reasons(e)}") from e


def shapes(
    folder: Path,  # a checkpoint, whole or sharded
) -> Groups:  # tensors without data
    "What a checkpoint holds, by the headers of its files."
    names = [p.name for p in folder.glob("*.safetensors")]
    files = {"": names} if is_sharded(names) else {f"{n.rpartition('.')[0]}.": [n] for n in names}
    found: Groups = {}
    for start, some in files.items():
        for name, told in make_reader(folder, some).read_metadata().state_dict_metadata.items():
            group, _, key = f"{start}{name}".partition(".")
            tensor = torch.empty(told.size, dtype=told.properties.dtype, device="meta")
            found.setdefault(group, {})[key] = tensor
    return found


def read_whole(
    folder: Path,  # a sharded checkpoint
) -> Groups:  # on the CPU
    "Its tensors in one piece, as one process needs them."
    groups = {
        g: {k: torch.empty_like(t, device="cpu") for k, t in tensors.items()}
        for g, tensors in shapes(folder).items()
    }
    read_parts(folder, groups)
    return groups
