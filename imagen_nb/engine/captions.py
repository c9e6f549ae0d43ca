"""Captions encoded once: embeddings on disk, in parts, without padding."""

import errno
import shutil
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from imagen_nb.store import parts as shards
from imagen_nb.store.checkpoint import CheckpointError
from imagen_nb.text import TextEmbedding, TextEncoder, check_captions


class BuildPlan(NamedTuple):
    "What a build will take, before it starts."

    captions: int  # to encode
    tokens: float  # of a caption, on average
    bytes: int  # on disk
    seconds: float | None  # None: too few captions to be worth a trial
    per_part: int  # captions in one file

    def __str__(self):
        if not self.captions:
            return "all captions are there, nothing to encode"
        size = f"{self.bytes / 1e9:.2f} GB" if self.bytes > 1e8 else f"{self.bytes / 1e6:.2f} MB"
        took = "" if self.seconds is None else f", about {self.seconds / 60:.1f} min"
        return (
            f"{self.captions:,} captions to encode, {self.tokens:.1f} tokens each:"
            f" {size}{took}; saved every {self.per_part:,} captions"
        )


def forecast(
    encoder: TextEncoder,  # that will encode
    captions: list,  # of str, all different, in no order of length
    dtype: torch.dtype = torch.bfloat16,  # stored
    part_bytes: int = 2**28,  # in one file of the cache
    batch_size: int = None,  # captions at once, None: by device
) -> BuildPlan:  # size from lengths, time from a trial
    "Tokens, bytes and seconds, from the first of the captions."
    truncated = encoder.truncated
    lengths = [max(len(ids), 1) for ids in encoder.tokenize(captions[:1024] or [""])]
    tokens, seconds = sum(lengths) / len(lengths), None
    if len(captions) > 8192:
        for _ in encoder.batches(captions[:8]):
            pass  # the first time is slow
        start = time.perf_counter()
        for _, text in encoder.batches(captions[:512], batch_size):
            text.to("cpu")
        seconds = (time.perf_counter() - start) / 512 * len(captions)
    encoder.truncated = truncated
    row = tokens * encoder.width * dtype.itemsize
    text = sum(len(c.encode()) for c in captions[:1024]) / max(len(captions[:1024]), 1)
    per_part = int(min(max(part_bytes // row, 1), 65536))
    return BuildPlan(
        len(captions), tokens, int(len(captions) * (row + text + 56)), seconds, per_part
    )


def encode_rows(
    encoder: TextEncoder,  # whose embeddings are wanted
    captions: list,  # of str
    dtype: torch.dtype,  # stored
    batch_size: int,  # captions in one forward pass
    tick,  # called with the number of captions done
) -> list:  # tokens of each caption, (length d), no padding
    "Embeddings of some captions, each as long as it is."
    rows = [None] * len(captions)
    for index, text in encoder.batches(captions, batch_size):
        tokens = text.tokens[text.mask].to("cpu", dtype)  # (n d)
        if not tokens.isfinite().all():
            raise ValueError(
                "EmbeddingCache.build: got embeddings that are not finite, of"
                f" {captions[index[0]][:60]!r} or its batch; expected numbers"
            )
        for i, row in zip(index, tokens.split(text.mask.sum(1).tolist())):
            rows[i] = row
        tick(len(index))
    return rows


def pad_rows(
    rows: list,  # tokens of each caption, (length d)
) -> TextEmbedding:  # float32, padded to the longest
    "The inverse of dropping the padding."
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]  # (b l)
    tokens = torch.zeros(*mask.shape, rows[0].shape[1])  # (b l d)
    for out, row in zip(tokens, rows):
        out[: len(row)] = row
    return TextEmbedding(tokens, mask)


def check_encoder(
    path,  # of the cache, for the error
    ours: dict,  # identity of the encoder at hand
    theirs: dict,  # identity of the one that made the cache
):
    "Refuse another encoder and say what differs; a name alone decides nothing."
    keys = ("revision", "tokenizer", "max_length", "dtype")
    differ = [
        f"{key}, got {ours[key]!r}, expected {theirs[key]!r}"
        for key in keys
        if ours[key] != theirs[key]
    ]
    if differ:
        raise ValueError(
            f"EmbeddingCache: {path} was made by another encoder, {theirs['encoder']!r};"
            f" {ours['encoder']!r} differs in {'; '.join(differ)}"
        )


def missing_captions(
    captions: list,  # of str, perhaps with duplicates
    path: Path,  # folder of the cache
    meta: dict,  # what its parts are made with
    share: tuple,  # (k, n): the k-th of n equal shares
    verify: bool,  # read every byte of what is there
) -> list:  # captions to encode, each once, in order of their hashes
    "What is wanted, less what is there and whole."
    k, n = share
    if not 0 <= k < n:
        raise ValueError(f"EmbeddingCache.build: share, got {share}, expected (k, n), 0 <= k < n")
    shards.tidy(path)
    damaged = shards.damaged_parts(path, digests=verify)
    for reason in damaged.values():
        warnings.warn(f"EmbeddingCache.build: {reason}; encoded anew")
    shards.drop_parts(path, damaged)
    index = shards.open_index(path)
    if index.parts:
        check_encoder(path, meta["identity"], index.meta["identity"])
        if meta["dtype"] != index.meta["dtype"]:
            raise ValueError(
                f"EmbeddingCache.build: dtype, got {meta['dtype']}, expected"
                f" {index.meta['dtype']}, in which {path} is stored"
            )
    hashes, first = np.unique(shards.hash_captions(captions), return_index=True)
    mine = hashes.view(np.uint8).reshape(-1, 16)[:, :4].copy().view("<u4")[:, 0] % n == k
    return [captions[i] for i in first[mine & (index.find(hashes) < 0)]]


def check_room(
    path: Path,  # where files will be
    size: int,  # bytes
):
    "Fail before encoding if the disk cannot hold the result."
    path.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(path).free) < size:
        raise OSError(
            errno.ENOSPC, f"EmbeddingCache.build: {size} bytes needed, {free} free", str(path)
        )


class EmbeddingCache:
    "Embeddings of known captions on disk: each caption once, no padding stored."

    part_bytes = 2**28  # of tokens in one file

    def __init__(
        self,
        path: Path,  # folder of the cache
        index: shards.Index,  # where each caption is
    ):
        self.path, self.index, self.tokens = Path(path), index, {}  # files opened so far
        self.identity, self.width = index.meta["identity"], index.meta["width"]

    @classmethod
    def build(
        cls,
        encoder: TextEncoder,  # whose embeddings are wanted
        captions: list,  # of str; duplicates are stored once
        path,  # folder to make, or to add to
        batch_size: int = None,  # captions at once, None: by device
        progress: bool = False,  # show forecast and progress bar
        dtype: torch.dtype = torch.bfloat16,  # stored
        share: tuple[int, int] = (0, 1),  # (k, n): encode the k-th of n equal shares
        verify: bool = False,  # read every byte of what is there already
    ) -> "EmbeddingCache":  # opened, with all that is there
        "Encode what is missing. Stop it anywhere and call it again: it goes on."
        check_captions("EmbeddingCache.build", captions)
        path = Path(path)
        meta = {
            "identity": encoder.identity,
            "width": encoder.width,
            "dtype": str(dtype).removeprefix("torch."),
        }
        todo = missing_captions(captions, path, meta, share, verify)
        plan = forecast(encoder, todo, dtype, cls.part_bytes, batch_size)
        check_room(path, plan.bytes)
        from tqdm.auto import tqdm

        if progress:
            tqdm.write(str(plan))
        with tqdm(total=len(todo), unit="caption", disable=not (progress and todo)) as bar:
            for start in range(0, len(todo), plan.per_part):
                part = todo[start : start + plan.per_part]
                rows = encode_rows(encoder, part, dtype, batch_size, bar.update)
                shards.add_part(path, part, rows, meta)
        shards.write_index(path)
        return cls(path, shards.open_index(path)._replace(meta=meta))

    @classmethod
    def open(
        cls,
        path,  # folder written by `build`
        encoder: TextEncoder = None,  # refuse the cache unless this encoder made it
        verify: bool = False,  # read every byte and compare digests
    ) -> "EmbeddingCache":  # sizes of all files checked
        "Open a cache; a damaged one, or another encoder's, is refused."
        for reason in shards.damaged_parts(Path(path)).values() if verify else ():
            raise CheckpointError(f"EmbeddingCache.open: {reason}")
        index = shards.open_index(Path(path))
        if not index.parts:
            raise CheckpointError(
                f"EmbeddingCache.open: {path} holds no embeddings, expected a"
                " folder written by EmbeddingCache.build or imagen-nb embed"
            )
        if encoder is not None:
            check_encoder(path, encoder.identity, index.meta["identity"])
        return cls(path, index)

    def __reduce__(self):
        return EmbeddingCache.open, (self.path,)  # for workers: no data is sent

    def __len__(self):
        return len(self.index.hashes)

    def __contains__(self, caption):
        return bool(self.index.find(shards.hash_captions([caption]))[0] >= 0)

    def __getitem__(
        self,
        captions: list,  # of str, each of them built into the cache
    ) -> TextEmbedding:  # float32, rows in the captions' order, padded to the longest
        "Look captions up."
        check_captions("EmbeddingCache", captions)
        rows = self.index.find(shards.hash_captions(captions))
        if (rows < 0).any():
            raise KeyError(
                f"EmbeddingCache: {(rows < 0).sum()} of {len(captions)} captions are not in"
                f" the cache, first {captions[(rows < 0).argmax()]!r}"
            )
        i = self.index
        places = zip(i.part[rows].tolist(), i.start[rows].tolist(), i.length[rows].tolist())
        return pad_rows([self.part(k)[a : a + n] for k, a, n in places])

    def part(self, k) -> Tensor:  # tokens of the k-th file end to end, (n d)
        "Memory-mapped at its first use: bytes are read from disk when they are used."
        if k not in self.tokens:
            self.tokens[k] = shards.read_part(self.path, self.index.parts[k])["tokens"]
        return self.tokens[k]
