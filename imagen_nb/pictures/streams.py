"""Pictures that are read as they arrive: remote sources through the streaming of `datasets`.

A stream promises less than a catalog. There is no length and no random access; pictures are mixed only within a block;
another number of readers gives another order; a broken picture is known when it is met. What it does promise: within one
epoch every row comes once, in the same order each time, and a stream that is resumed, as often as one likes, goes on
with the very next picture. `datasets` cannot say so of its own shuffle buffer, whose contents its state leaves out
(huggingface/datasets#7901, and #8308 for a second resume); so a block is read whole, permuted by a key, and begun again
from the state in which it was read first.
"""

import collections
import hashlib
import itertools
import warnings
from pathlib import Path

from imagen_nb.pictures.captioned import FEW
from imagen_nb.pictures.pixels import to_square
from imagen_nb.pictures.sources import (
    UnreadablePicture,
    captions_of,
    clean_caption,
    decode_picture,
    load_hub,
    reason,
    table_columns,
)
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
    paths = [Path(p) for p in (source if isinstance(source, (list, tuple)) else [source])]
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
        table,
        name: str,
        size: int,
        image_column=None,
        caption_column=None,
        block=1000,
        seed=0,
        max_skipped=0.05,
    ):
        import datasets

        if table.features is None:
            table = table._resolve_features()
        self.image, self.text = table_columns(
            table.features, image_column, caption_column or _text_of(table.features), name
        )
        if isinstance(table.features[self.image], datasets.Image):
            table = table.cast_column(self.image, datasets.Image(decode=False))
        self.table, self.name, self.size, self.block, self.seed, self.max_skipped = (
            table,
            name,
            size,
            block,
            seed,
            max_skipped,
        )
        self.skipped, self.seen, self.epoch = collections.Counter(), 0, 0
        self.first_state, self.start, self.done, self.number, self.mark = (
            table.state_dict(),
            None,
            0,
            0,
            None,
        )

    def __iter__(self):
        "(image, caption) from here to the end of the epoch."
        self.start = self.first_state if self.start is None else self.start
        self.table.load_state_dict(self.start)
        rows = iter(self.table)
        while True:
            block = list(itertools.islice(rows, self.block))
            self._check_mark(block)
            while self.done < len(block):
                row = block[
                    permute(self.done, len(block), f"{self.seed} {self.epoch} {self.number}")
                ]
                self.done += 1
                if (pair := self._pair(row)) is not None:
                    yield pair
            if len(block) < self.block:
                break
            self.start, self.done, self.number, self.mark = (
                self.table.state_dict(),
                0,
                self.number + 1,
                None,
            )
        self.epoch, self.start, self.done, self.number, self.mark = self.epoch + 1, None, 0, 0, None

    def _check_mark(self, block: list):
        "A block that is begun again must be the one that was begun before."
        mark = hashlib.blake2b(
            repr(
                [(self.text and r[self.text], _bytes(r[self.image])[:64]) for r in block[:3]]
            ).encode()
            + str(len(block)).encode(),
            digest_size=8,
        ).hexdigest()
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
            texts = captions_of(row[self.text])
            return to_square(decode_picture(_bytes(row[self.image])), self.size), clean_caption(
                texts[0]
            ) if texts else ""
        except (OSError, ValueError) as e:
            why = reason(e)
        self.skipped[why] += 1
        if (n := self.skipped.total()) > max(FEW, self.max_skipped * max(self.seen, 100)):
            raise ValueError(
                f"StreamedImages: {self.name}: {n} of {self.seen} pictures cannot be read:"
                f" {'; '.join(f'{k} {r}' for r, k in self.skipped.most_common())}"
            )
        warnings.warn(f"StreamedImages: {self.name}: picture left out: {why}")

    def state(self) -> dict:
        "Where the stream stands, as JSON can hold it."
        return dict(
            epoch=self.epoch,
            start=self.start,
            done=self.done,
            number=self.number,
            mark=self.mark,
            seed=self.seed,
            block=self.block,
            seen=self.seen,
            skipped=dict(self.skipped),
        )

    def resume(self, state: dict):
        "Go on where `state()` stood: at most one block is read again."
        for name in ("seed", "block"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"StreamedImages: {name}, got {getattr(self, name)}, expected {state[name]} of the state"
                )
        self.epoch, self.start, self.done, self.number, self.mark, self.seen = (
            state[k] for k in ("epoch", "start", "done", "number", "mark", "seen")
        )
        self.skipped = collections.Counter(state["skipped"])
        return self


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
