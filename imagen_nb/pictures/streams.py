"""Pictures that are read as they arrive: remote sources through the streaming of `datasets`.

A stream promises less than a catalog. There is no length and no random access; pictures are mixed only within a block;
another number of readers gives another order; a broken picture is known when it is met. What it does promise: within
one epoch every row comes once, in the same order each time, and a stream that is resumed, as often as one likes, goes
on with the very next picture. `datasets` cannot say so of its own shuffle buffer, whose contents its state leaves out
(huggingface/datasets#7901, and #8308 for a second resume); so a block is read whole, permuted by a key, and begun again
from the state in which it was read first.
"""

import collections
import hashlib
import itertools
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from imagen_nb.pictures.arrow import as_stored, table_columns
from imagen_nb.pictures.captioned import FEW
from imagen_nb.pictures.decode import UnreadablePicture, decode_picture, reason
from imagen_nb.pictures.pixels import to_square
from imagen_nb.pictures.shards import Notes
from imagen_nb.pictures.sources import Source, find_source, load_hub, pick_split
from imagen_nb.pictures.tables import captions_of, clean_captions, row_captions
from imagen_nb.store.config import counted
from imagen_nb.store.files import as_path
from imagen_nb.store.keyed import permute

__all__ = ["StreamedImages", "stream_captioned"]


def stream_captioned(
    source,  # name on the hub, an IterableDataset, or whatever `load_captioned` reads
    size: int,  # side of each picture in pixels
    split: str = "train",  # "train", "valid", "test", or the data set's own word
    image_column: str | None = None,  # None: guessed from the types
    caption_column: str | None = None,  # None: a usual name, or the only text column
    block: int = 1000,  # rows mixed with one another; they are kept in memory, encoded
    seed: int = 0,  # another seed, another order
    max_skipped: float = 0.05,  # share of unreadable pictures at which to stop
) -> "StreamedImages":
    "Captioned pictures one after the other, without downloading or copying them first."
    if block < 1:
        raise ValueError(f"stream_captioned: block, got {block}, expected at least 1")
    columns, name = (image_column, caption_column), "the dataset given"
    if isinstance(source, Mapping):  # an IterableDatasetDict
        source = source[pick_split(source, split, name)]
    paths = source if isinstance(source, (list, tuple)) else [source]
    is_path = all(isinstance(p, (str, os.PathLike)) for p in paths)
    if is_path and not all(as_path(p).exists() for p in paths):
        name, source = str(source), load_hub(source, split, streaming=True)
    if hasattr(source, "features") and not hasattr(source, "num_rows"):
        rows: Local | Remote = Remote(source, *columns, name)
    else:
        found = find_source(source, split, *columns)
        rows, name = Local(found), found.name
    return StreamedImages(rows, name, size, block, seed, max_skipped)


class Row(NamedTuple):
    "A picture as it arrives."

    blob: bytes  # its file
    captions: list[str]
    problem: str  # why it cannot be used, or ""


class Local:
    "Rows of files at hand, read by what reads them for `load_captioned`: nothing is kept but the place."

    def __init__(self, source: Source):
        self.source = source
        self.load_state_dict(dict(shard=0, row=0))

    def state_dict(self) -> dict:
        "The next row, as JSON can hold it."
        return dict(shard=self.shard, row=self.row)

    def load_state_dict(self, state: dict):
        "Go on there."
        self.shard, self.row = state["shard"], state["row"]

    def __iter__(self) -> Iterator[Row]:
        while self.shard <= len(self.source.shards):
            for row in itertools.islice(self._rows(), self.row, None):
                self.row += 1
                yield row
            self.shard, self.row = self.shard + 1, 0

    def _rows(self):
        "Rows of a shard; what cannot be read of it comes last. The last shard is what could not be opened."
        notes = Notes()
        if self.shard == len(self.source.shards):
            notes = self.source.notes
        else:
            shard = self.source.shards[self.shard]
            yield from (_read(shard, found) for found in shard.scan(notes))
        for why, n in notes.problems.items():
            yield from itertools.repeat(Row(b"", [], why), n)


def _read(shard, found) -> Row:
    "A picture that a scan came upon."
    try:
        blob = b"" if found.problem else shard.read(found.name, found.start, found.length)
        return Row(blob, found.captions, found.problem)
    except (OSError, ValueError) as e:
        return Row(b"", [], reason(e))


class Remote:
    "Rows of a `datasets.IterableDataset`."

    def __init__(
        self,
        table,  # datasets.IterableDataset
        image_column: str | None,  # None: guessed from the types
        caption_column: str | None,  # None: a usual name, or the only text column
        name: str,  # for people
    ):
        if table.features is None:
            table = table._resolve_features()
        schema = table.features.arrow_schema
        for extra in ("__key__", "__url__"):  # of webdataset
            if extra in schema.names:
                schema = schema.remove(schema.get_field_index(extra))
        self.is_json, self.column = (
            "json" in schema.names and "txt" not in schema.names,
            caption_column,
        )
        column = None if self.is_json else caption_column
        self.image, self.text = table_columns(schema, image_column, column, name)
        self.text = "json" if self.is_json else self.text
        self.table = as_stored(table, self.image)
        self.state_dict, self.load_state_dict = self.table.state_dict, self.table.load_state_dict

    def __iter__(self) -> Iterator[Row]:
        return map(self._row, self.table)

    def _row(self, row: dict) -> Row:
        try:
            text = row[self.text] if self.text else None
            if self.is_json and isinstance(text, dict):
                text = row_captions(text, self.column)
            captions = captions_of(text)
            return Row(_bytes(row[self.image]), captions, "")
        except (OSError, ValueError) as e:
            return Row(b"", [], reason(e))


class StreamedImages:
    "An epoch of pictures after another; iterate, keep `state()`, and go on from it with `resume`."

    def __init__(
        self,
        table: Local | Remote,  # rows in turn, from a place that can be kept
        name: str,  # for people
        size: int,  # side of each picture in pixels
        block: int = 1000,  # rows mixed with one another
        seed: int = 0,  # another seed, another order
        max_skipped: float = 0.05,  # share of unreadable pictures at which to stop
    ):
        self.table, self.name, self.size = table, name, size
        self.block, self.seed, self.max_skipped = block, seed, max_skipped
        self.skipped: collections.Counter = collections.Counter()
        self.first, self.seen, self.epoch = table.state_dict(), 0, 0
        self._begin_block(self.first, 0)

    @property
    def identity(self) -> str:
        "These data in a run's record: name, side, order."
        return f"{self.name}, streamed at {self.size} px, seed {self.seed}, blocks of {self.block}"

    def _begin_block(self, start: dict, number: int):
        "Stand before a block: the table's state, the block's number in the epoch, rows given out."
        self.start, self.number, self.done = start, number, 0
        self.mark: str | None = None  # digest of the block, once it is read

    def __iter__(self):
        "(image, caption) from here to the end of the epoch."
        self.table.load_state_dict(self.start)
        rows = iter(self.table)
        while True:
            block = list(itertools.islice(rows, self.block))
            self._check_mark(block)
            key = f"{self.seed} {self.epoch} {self.number}"
            while self.done < len(block):
                row = block[permute(self.done, len(block), key)]
                self.done += 1
                if (pair := self._pair(row)) is not None:
                    yield pair
            if len(block) < self.block:
                break
            self._begin_block(self.table.state_dict(), self.number + 1)
        self.epoch += 1
        self._begin_block(self.first, 0)

    def _check_mark(self, block: list):
        "A block that is begun again must be the one that was begun before."
        some = [(row.captions, row.blob[:64]) for row in block[:3]]
        mark = hashlib.blake2b(f"{some}{len(block)}".encode(), digest_size=8).hexdigest()
        if self.mark not in (None, mark):
            raise ValueError(
                f"StreamedImages: {self.name}, got other rows than before the stop at block {self.number};"
                " the source has changed, or its library lost the place; start the epoch again"
            )
        self.mark = mark

    def _pair(self, row: Row):
        "Image (3 size size) and caption, or None and a count."
        self.seen += 1
        try:
            if row.problem:
                raise UnreadablePicture(row.problem)
            captions = clean_captions(row.captions) or [""]
            return to_square(decode_picture(row.blob), self.size), captions[0]
        except (OSError, ValueError) as e:
            why = reason(e)
        self.skipped[why] += 1
        if (n := self.skipped.total()) > max(FEW, self.max_skipped * max(self.seen, 100)):
            counts = "; ".join(f"{k} {r}" for r, k in self.skipped.most_common())
            raise ValueError(
                f"StreamedImages: {self.name}: {n} of {counted(self.seen, 'picture')} cannot be read: {counts}"
            )
        warnings.warn(f"StreamedImages: {self.name}: picture left out: {why}")

    def state(self) -> dict:
        "Where the stream stands, as JSON can hold it."
        return {k: getattr(self, k) for k in STATE} | dict(skipped=dict(self.skipped))

    def resume(self, state: dict):
        "Go on where `state()` stood: at most one block is read again."
        for name in ("seed", "block"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"StreamedImages: {name}, got {getattr(self, name)}, expected {state[name]} of the state"
                )
        for name in STATE:
            setattr(self, name, state[name])
        self.skipped = collections.Counter(state["skipped"])
        return self


STATE = ("seed", "block", "epoch", "start", "number", "done", "mark", "seen")


def _bytes(value) -> bytes:
    "An encoded picture of a row."
    if isinstance(value, dict):
        value = value.get("bytes")
    if value is not None and not isinstance(value, bytes):
        raise UnreadablePicture("no bytes")
    return value or b""
