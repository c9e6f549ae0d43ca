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
import warnings

from imagen_nb.pictures.arrow import table_columns
from imagen_nb.pictures.captioned import FEW
from imagen_nb.pictures.decode import UnreadablePicture, decode_picture, reason
from imagen_nb.pictures.pixels import to_square
from imagen_nb.pictures.sources import load_hub
from imagen_nb.pictures.tables import captions_of, clean_captions
from imagen_nb.store.files import as_path
from imagen_nb.store.keyed import permute

__all__ = ["StreamedImages", "stream_captioned"]

KINDS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}


def stream_captioned(
    source,  # name on the hub, or local .parquet, .arrow or .tar files
    size: int,  # side of each picture in pixels
    split: str = "train",  # of a hub's dataset
    image_column: str | None = None,  # None: guessed from the types
    caption_column: str | None = None,  # None: a usual name, or the only text column
    block: int = 1000,  # rows mixed with one another; they are kept in memory, encoded
    seed: int = 0,  # another seed, another order
    max_skipped: float = 0.05,  # share of unreadable pictures at which to stop
) -> "StreamedImages":
    "Captioned pictures one after the other, without downloading them first."
    import datasets

    if block < 1:
        raise ValueError(f"stream_captioned: block, got {block}, expected at least 1")
    paths = [as_path(p) for p in (source if isinstance(source, (list, tuple)) else [source])]
    if paths and all(p.exists() for p in paths):
        if (kind := KINDS.get(paths[0].suffix.lower())) is None:
            raise ValueError(
                f"stream_captioned: source, got {paths[0].name}, expected .parquet, .arrow or .tar files"
            )
        table = datasets.load_dataset(
            kind, data_files=[str(p) for p in paths], split="train", streaming=True
        )
    else:
        table = load_hub(source, split, streaming=True)
    return StreamedImages(
        table, str(source), size, image_column, caption_column, block, seed, max_skipped
    )


class StreamedImages:
    "An epoch of pictures after another; iterate, keep `state()`, and go on from it with `resume`."

    def __init__(
        self,
        table,  # datasets.IterableDataset
        name: str,  # for people
        size: int,  # side of each picture in pixels
        image_column: str | None = None,  # None: guessed from the types
        caption_column: str | None = None,  # None: a usual name, or the only text column
        block: int = 1000,  # rows mixed with one another
        seed: int = 0,  # another seed, another order
        max_skipped: float = 0.05,  # share of unreadable pictures at which to stop
    ):
        import datasets

        if table.features is None:
            table = table._resolve_features()
        caption_column = caption_column or _text_of(table.features)
        self.image, self.text = table_columns(table.features, image_column, caption_column, name)
        if isinstance(table.features[self.image], datasets.Image):
            table = table.cast_column(self.image, datasets.Image(decode=False))
        self.table, self.name, self.size = table, name, size
        self.block, self.seed, self.max_skipped = block, seed, max_skipped
        self.skipped: collections.Counter = collections.Counter()
        self.first, self.seen, self.epoch = table.state_dict(), 0, 0
        self._begin_block(self.first, 0)

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
        some = [(self.text and r[self.text], _bytes(r[self.image])[:64]) for r in block[:3]]
        mark = hashlib.blake2b(f"{some}{len(block)}".encode(), digest_size=8).hexdigest()
        if self.mark not in (None, mark):
            raise ValueError(
                f"StreamedImages: {self.name}, got other rows than before the stop at block {self.number};"
                " the source has changed, or its library lost the place; start the epoch again"
            )
        self.mark = mark

    def _pair(self, row: dict):
        "Image (3 size size) and caption, or None and a count."
        self.seen += 1
        try:
            captions = clean_captions(captions_of(row[self.text])) or [""]
            return to_square(decode_picture(_bytes(row[self.image])), self.size), captions[0]
        except (OSError, ValueError) as e:
            why = reason(e)
        self.skipped[why] += 1
        if (n := self.skipped.total()) > max(FEW, self.max_skipped * max(self.seen, 100)):
            counts = "; ".join(f"{k} {r}" for r, k in self.skipped.most_common())
            raise ValueError(
                f"StreamedImages: {self.name}: {n} of {self.seen} pictures cannot be read: {counts}"
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


def _text_of(features) -> str | None:
    "webdataset calls a caption by its file's ending."
    return "txt" if "txt" in features else None


def _bytes(value) -> bytes:
    "An encoded picture of a row."
    if isinstance(value, dict):
        value = value.get("bytes")
    if value is not None and not isinstance(value, bytes):
        raise UnreadablePicture("no bytes")
    return value or b""
