"""Captions encoded once: embeddings on disk, in parts, without padding.

`EmbeddingCache` is the dictionary of the chapter on text, from a caption to its real tokens, made to last:
`store.parts` keeps it in files that are whole or absent, a build that was stopped goes on, and another encoder is
refused.
"""

import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from imagen_nb.store import parts
from imagen_nb.store.config import counted
from imagen_nb.store.files import CheckpointError, as_path, check_room
from imagen_nb.store.identity import differences, is_same_source
from imagen_nb.store.text_models import check_captions, losses_told
from imagen_nb.text import Encoder, TextEmbedding, pad_rows

__all__ = ["BuildPlan", "EmbeddingCache", "encode_rows", "forecast"]

AT_ONCE = 256  # captions that an encoder is given in one call
TRIAL = 512  # captions in the first part, from which the rest is forecast


class BuildPlan(NamedTuple):
    "What a build will take, before it starts."

    captions: int  # to encode
    tokens: float  # of a caption, on average
    bytes: int  # on disk, of all of them
    seconds: float  # for all of them
    per_part: int  # captions in one file

    def __str__(self):
        if not self.captions:
            return "all captions are there, nothing to encode"
        size = f"{self.bytes / 1e9:.2f} GB" if self.bytes > 1e8 else f"{self.bytes / 1e6:.2f} MB"
        took = f", about {self.seconds / 60:.1f} min" if self.seconds > 30 else ""
        return (
            f"{counted(self.captions, 'caption')} to encode, {self.tokens:.1f} tokens each:"
            f" {size}{took}; saved every {counted(self.per_part, 'caption')}"
        )


def forecast(
    captions: list[str],  # to encode, all different, in no order of length
    rows: list[Tensor],  # tokens of the first of them, (length d), as they are stored
    seconds: float = 0.0,  # that these took
    part_bytes: int = 2**28,  # in one file of the cache
) -> BuildPlan:
    "Bytes and seconds of a build, from its first captions."
    n = max(len(rows), 1)
    text = sum(len(caption.encode()) for caption in captions[:n]) / n
    row = sum(row.nbytes for row in rows) / n  # bytes of one caption's tokens
    return BuildPlan(
        len(captions),
        sum(map(len, rows)) / n,
        int(len(captions) * (row + text + 56)),
        seconds / n * len(captions),
        int(min(max(part_bytes // max(row, 1), 1), 65536)),
    )


def encode_rows(
    encoder: Encoder,  # whose embeddings are wanted
    captions: list[str],
    dtype: torch.dtype,  # stored
    tick=lambda n: None,  # called with the number of captions done
) -> list[Tensor]:  # tokens of each caption, (length d), no padding
    "Embeddings of some captions, each as long as it is."
    order = sorted(range(len(captions)), key=lambda i: len(captions[i]))  # so that little is padded
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), AT_ONCE):
        index = order[start : start + AT_ONCE]
        text = encoder([captions[i] for i in index])
        check_text(text, [captions[i] for i in index], encoder.width)
        tokens = text.tokens[text.mask].to("cpu", dtype)  # (n d)
        found.update(zip(index, tokens.split(text.mask.sum(1).tolist())))
        tick(len(index))
    return [found[i] for i in range(len(captions))]


def check_text(
    text: TextEmbedding,  # of `captions`, from an encoder
    captions: list[str],
    width: int,  # of a token, as the encoder says
):
    "Refuse embeddings that are not what `Encoder` promises, before they are stored."
    b, l, d = text.tokens.shape
    if (b, d) != (len(captions), width) or text.mask.shape != (b, l) or not text.mask.any(1).all():
        raise ValueError(
            f"EmbeddingCache.build: got tokens {(b, l, d)} and a mask {tuple(text.mask.shape)}, expected"
            f" {len(captions)} rows of width {width}, each with one real token or more"
        )
    if not text.tokens[text.mask].isfinite().all():
        raise ValueError(
            "EmbeddingCache.build: got embeddings that are not finite, of"
            f" {captions[0][:60]!r} or its batch; expected numbers"
        )


def check_encoder(
    path,  # of the cache, for the error
    ours: dict,  # identity of the encoder at hand
    theirs: dict,  # identity of the one that made the cache
):
    "Refuse another encoder and say what differs; a name alone decides nothing."
    if differ := differences(ours, theirs):
        akin = "; the same source in other storage has a cache of its own"
        raise ValueError(
            f"EmbeddingCache: {path} was made by another encoder, {theirs['encoder']!r};"
            f" {ours['encoder']!r} differs in {'; '.join(differ)}{akin * is_same_source(ours, theirs)}"
        )


def missing_captions(
    captions: list[str],  # perhaps with duplicates
    path: Path,  # folder of the cache
    meta: dict,  # what its parts are made with
    share: tuple[int, int],  # (k, n): the k-th of n equal shares
    verify: bool,  # read every byte of what is there
) -> list[str]:  # captions to encode, each once, in order of their hashes
    "What is wanted, less what is there and whole."
    k, n = share
    if not 0 <= k < n:
        raise ValueError(f"EmbeddingCache.build: share, got {share}, expected (k, n), 0 <= k < n")
    for reason in parts.mend(path, digests=verify):
        warnings.warn(f"EmbeddingCache.build: {reason}; encoded anew")
    index = parts.open_index(path)
    if index.parts:
        check_encoder(path, meta["identity"], index.meta["identity"])
        if meta["dtype"] != index.meta["dtype"]:
            raise ValueError(
                f"EmbeddingCache.build: dtype, got {meta['dtype']}, expected"
                f" {index.meta['dtype']}, in which {path} is stored"
            )
    hashes, first = np.unique(parts.hash_captions(captions), return_index=True)
    mine = hashes.view(np.uint8).reshape(-1, 16)[:, :4].copy().view("<u4")[:, 0] % n == k
    return [captions[i] for i in first[mine & (index.find(hashes) < 0)]]


class EmbeddingCache:
    "Embeddings of known captions on disk: each caption once, no padding stored."

    part_bytes = 2**28  # of tokens in one file

    def __init__(
        self,
        path: Path,  # folder of the cache
        index: parts.Index,  # where each caption is
    ):
        self.path, self.index = Path(path), index
        self.identity, self.width = index.meta["identity"], index.meta["width"]
        self.tokens: dict[int, Tensor] = {}  # of the files opened so far

    @classmethod
    def build(
        cls,
        encoder: Encoder,  # whose embeddings are wanted
        captions: list[str],  # duplicates are stored once
        path: str | Path,  # folder to make, or to add to
        progress: bool = False,  # show a forecast and a progress bar
        dtype: torch.dtype = torch.bfloat16,  # stored
        share: tuple[int, int] = (0, 1),  # (k, n): encode the k-th of n equal shares
        verify: bool = False,  # read every byte of what is there already
    ) -> "EmbeddingCache":  # opened, with all that is there
        "Encode what is missing. Stop it anywhere and call it again: it goes on."
        from tqdm.auto import tqdm

        check_captions("EmbeddingCache.build", captions)
        path, width = as_path(path), encoder.width
        kind = str(dtype).removeprefix("torch.")
        meta = {"identity": encoder.identity, "width": width, "dtype": kind}
        todo = missing_captions(captions, path, meta, share, verify)
        meta = parts.open_index(path).meta or meta  # named as when it was begun
        path.mkdir(parents=True, exist_ok=True)
        row = width * dtype.itemsize  # bytes of one token; a caption has one at least
        check_room(path, len(todo) * (row + 56), "EmbeddingCache.build")
        done, size = 0, min(TRIAL, max(cls.part_bytes // (32 * row), 1))
        if progress and not todo:
            tqdm.write(str(forecast([], [])))
        show = progress and bool(todo)
        with (
            losses_told("EmbeddingCache.build", encoder),
            tqdm(total=len(todo), unit="caption", disable=not show) as bar,
        ):
            while done < len(todo):
                part, began = todo[done : done + size], time.perf_counter()
                rows = encode_rows(encoder, part, dtype, bar.update)
                if not done:
                    plan = forecast(todo, rows, time.perf_counter() - began, cls.part_bytes)
                    check_room(path, plan.bytes, "EmbeddingCache.build")
                    size = plan.per_part
                    if progress:
                        tqdm.write(str(plan))
                parts.add_part(path, part, rows, meta)
                done += len(part)
        parts.write_index(path)
        index = parts.open_index(path)
        return cls(path, index._replace(meta=index.meta or meta))

    @classmethod
    def open(
        cls,
        path: str | Path,  # folder written by `build`
        encoder: Encoder | None = None,  # refuse the cache unless this encoder made it
        verify: bool = False,  # read every byte and compare digests
    ) -> "EmbeddingCache":  # sizes of all files checked
        "Open a cache; a damaged one, or another encoder's, is refused."
        path = as_path(path)
        for reason in parts.damaged_parts(path).values() if verify else ():
            raise CheckpointError(f"EmbeddingCache.open: {reason}")
        index = parts.open_index(path)
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
        return bool(self.index.find(parts.hash_captions([caption]))[0] >= 0)

    def __getitem__(
        self,
        captions: list[str],  # each of them built into the cache
    ) -> TextEmbedding:  # float32, rows in the captions' order, padded to the longest
        "Look captions up."
        check_captions("EmbeddingCache", captions)
        rows = self.index.find(parts.hash_captions(captions))
        if (rows < 0).any():
            raise KeyError(
                f"EmbeddingCache: {(rows < 0).sum()} of {counted(len(captions), 'caption')} are not in"
                f" the cache, first {captions[(rows < 0).argmax()]!r}"
            )
        i = self.index
        places = zip(i.part[rows].tolist(), i.start[rows].tolist(), i.length[rows].tolist())
        return pad_rows([self.part(k)[a : a + n] for k, a, n in places])

    def part(self, k: int) -> Tensor:  # tokens of the k-th file end to end, (n d)
        "Memory-mapped at its first use: bytes are read from disk when they are used."
        if k not in self.tokens:
            self.tokens[k] = parts.read_part(self.path, self.index.parts[k])["tokens"]
        return self.tokens[k]
