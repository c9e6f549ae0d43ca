"""Parts of an embedding cache: any number of processes may add to one folder, and any of them may die.

    FOLDER/part-ID/part.safetensors    some captions: tokens end to end, lengths, hashes, text
    FOLDER/index-ID/index.safetensors  where every caption is, sorted by hash

A part is written by `save_directory`, so it is complete or absent, with a digest of every file.
Nothing else is remembered: what is done is what is there, and a build that died goes on with
what is missing. The index follows from the parts, and its ID from their names; one that is
missing is computed when the cache is opened. A caption that two parts hold is read from one.
"""

import hashlib
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from imagen_nb.store.checkpoint import load_meta, save_directory, sweep, verify
from imagen_nb.store.files import CheckpointError

__all__ = [
    "Index",
    "hash_captions",
    "to_bytes",
    "from_bytes",
    "add_part",
    "read_part",
    "list_parts",
    "open_index",
    "write_index",
    "damaged_parts",
    "mend",
]

PART = re.compile(r"part-[0-9a-f]{16}")
INDEX = re.compile(r"index-[0-9a-f]{16}")
KIND = "EmbeddingCache"


class Index(NamedTuple):
    "Where captions are; one row for each, in order of their hashes."

    meta: dict  # what all parts were made with
    parts: list  # names of the parts
    hashes: np.ndarray  # 16 bytes each, sorted, (n,) S16
    part: np.ndarray  # place in `parts`, (n,) int32
    start: np.ndarray  # first token in the part, (n,) int64
    length: np.ndarray  # tokens, (n,) int32

    def find(
        self,
        hashes: np.ndarray,  # (b,) S16
    ) -> np.ndarray:  # rows, -1 for what is not there, (b,) int64
        "Binary search."
        if not len(self.hashes):
            return np.full(len(hashes), -1)
        rows = np.searchsorted(self.hashes, hashes).clip(max=len(self.hashes) - 1)
        return np.where(self.hashes[rows] == hashes, rows, -1)


def hash_captions(
    captions: list,  # of str
) -> np.ndarray:  # 128 bits of BLAKE2b each, (n,) S16
    "Keys of captions: a billion different ones collide with probability 1e-21."
    rows = [hashlib.blake2b(caption.encode(), digest_size=16).digest() for caption in captions]
    return np.frombuffer(b"".join(rows), "S16")


def to_bytes(
    captions: list,  # of str
) -> tuple[Tensor, Tensor]:  # all in UTF-8 (n,) uint8; bytes of each (k,) int32
    "Captions as tensors."
    rows = [caption.encode() for caption in captions]
    text = torch.from_numpy(np.frombuffer(b"".join(rows), np.uint8).copy())
    return text, torch.tensor([len(row) for row in rows], dtype=torch.int32, device="cpu")


def from_bytes(
    text: Tensor,  # UTF-8, (n,) uint8
    lengths: Tensor,  # bytes of each caption, (k,)
) -> list:  # of str
    "The inverse of `to_bytes`."
    data, ends = text.numpy().tobytes(), lengths.cumsum(0).tolist()
    return [data[a:b].decode() for a, b in zip([0, *ends], ends)]


# ---------------------------------------------------------------- parts


def add_part(
    folder: Path,  # of the cache
    captions: list,  # of str, all different
    rows: list,  # tokens of each, (length d)
    meta: dict,  # what all parts are made with
):
    "Write one part: all of it, or none."
    text, text_lengths = to_bytes(captions)
    hashes = torch.from_numpy(hash_captions(captions).view(np.uint8).reshape(-1, 16).copy())
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int32, device="cpu")
    tensors = {
        "tokens": torch.cat(rows),
        "lengths": lengths,
        "hashes": hashes,
        "text": text,
        "text_lengths": text_lengths,
    }
    save_directory(
        folder / f"part-{secrets.token_hex(8)}", {"part": tensors}, {"kind": KIND, **meta}
    )


def read_part(
    folder: Path,  # of the cache
    name: str,  # of the part
) -> dict[str, Tensor]:  # memory-mapped: bytes are read when they are used
    "What `add_part` wrote."
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / name / "part.safetensors")
    except (SafetensorError, OSError) as e:
        raise CheckpointError(
            f"EmbeddingCache: {folder / name} cannot be read, {e}; build it again"
        ) from e


def list_parts(
    folder: Path,  # of the cache, or where it will be
) -> list:  # names, sorted
    "The parts that are there; a folder that holds anything else is refused."
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise ValueError(f"EmbeddingCache: {folder}, got a file, expected a folder")
    names = [p.name for p in folder.iterdir() if not p.name.startswith(".")]
    strange = sorted(
        name for name in names if not PART.fullmatch(name) and not INDEX.fullmatch(name)
    )
    if strange:
        raise ValueError(
            f"EmbeddingCache: {folder} is no embedding cache, got {strange[:3]} in it,"
            " expected parts and index only; name another folder"
        )
    return sorted(name for name in names if PART.fullmatch(name))


def damaged_parts(
    folder: Path,  # of the cache
    digests: bool = True,  # read every byte; False: sizes only
) -> dict:  # name -> what is wrong with it
    "Parts, and an index, that are not as they were written."
    parts, found = list_parts(folder), {}
    index = index_path(folder, parts)
    for name in parts + [index.name] * index.exists():
        try:
            verify(folder / name, digests)
        except CheckpointError as e:
            found[name] = str(e)
    return found


def mend(
    folder: Path,  # of the cache, or where it will be
    digests: bool = True,  # read every byte; False: sizes only
) -> list[str]:  # what was wrong with each part removed
    "Remove what dead writers left and what is damaged; the next build encodes those captions again."
    sweep(folder)
    damaged = damaged_parts(folder, digests)
    for name in damaged:
        shutil.rmtree(folder / name)
    return list(damaged.values())


# ---------------------------------------------------------------- the index


def index_path(folder: Path, parts: list) -> Path:
    "Where the index of these parts is, if it is there."
    return folder / f"index-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:16]}"


def merge_parts(folder: Path, parts: list) -> Index:
    "The index, from the parts; all must have been made alike, and have their sizes."
    if not parts:
        empty = np.zeros(0, np.int64)
        return Index({}, [], np.zeros(0, "S16"), empty, empty, empty)
    columns, meta = [], load_meta(folder / parts[0])
    for k, name in enumerate(parts):
        verify(folder / name, digests=False)
        if (found := load_meta(folder / name)) != meta:
            raise ValueError(
                f"EmbeddingCache: parts of {folder} were made differently, got {found} in {name},"
                f" expected {meta} as in {parts[0]}; remove the wrong ones"
            )
        part = read_part(folder, name)
        length = part["lengths"].numpy().astype(np.int64)
        place = np.full(len(length), k, np.int32)
        columns.append(
            (part["hashes"].numpy().view("S16")[:, 0], place, length.cumsum() - length, length)
        )
    hashes, place, start, length = map(np.concatenate, zip(*columns))
    hashes, first = np.unique(hashes, return_index=True)
    return Index(meta, parts, hashes, place[first], start[first], length[first].astype(np.int32))


def open_index(
    folder: Path,  # of the cache
) -> Index:  # memory-mapped if it was written, else computed
    "The index of the parts that are there now."
    from safetensors.torch import load_file

    parts = list_parts(folder)
    path = index_path(folder, parts)
    try:
        verify(path, digests=False)
        meta = load_meta(path)
        columns = {k: v.numpy() for k, v in load_file(path / "index.safetensors").items()}
    except (CheckpointError, OSError):
        return merge_parts(folder, parts)
    for name in parts:
        check_size(folder, name, meta["bytes"][name])
    return Index(
        meta["parts"],
        parts,
        columns["hashes"].view("S16")[:, 0],
        columns["part"],
        columns["start"],
        columns["length"],
    )


def check_size(folder: Path, name: str, size: int):
    "Raise if a part is cut or missing."
    file = folder / name / "part.safetensors"
    got = file.stat().st_size if file.is_file() else 0
    if got != size:
        raise CheckpointError(
            f"EmbeddingCache: {folder / name} is damaged, got {got} bytes, expected {size};"
            " build the cache again: this part alone is encoded anew"
        )


def write_index(
    folder: Path,  # of the cache
):
    "Write the index of the parts that are there now, and remove older ones."
    parts = list_parts(folder)
    path = index_path(folder, parts)
    if not parts:
        return
    with suppress(CheckpointError):
        return verify(path, digests=False)
    index = merge_parts(folder, parts)
    sizes = {name: (folder / name / "part.safetensors").stat().st_size for name in parts}
    hashes = torch.from_numpy(index.hashes.view(np.uint8).reshape(-1, 16))
    columns = {
        k: torch.from_numpy(v)
        for k, v in index._asdict().items()
        if k in ("part", "start", "length")
    }
    with suppress(FileNotFoundError, FileExistsError):  # another process is writing the same index
        save_directory(
            path,
            {"index": {"hashes": hashes, **columns}},
            {"kind": KIND, "parts": index.meta, "bytes": sizes},
        )
    for old in folder.glob("index-*"):
        if old != path:
            shutil.rmtree(old, ignore_errors=True)
