"""Rows of parquet and arrow files, opened as files and never as patterns; rows of `datasets` in memory."""

import bisect
import contextlib
import hashlib
import itertools
import json
import mmap
from pathlib import Path
from typing import Any

from imagen_nb.pictures.cache import alone
from imagen_nb.pictures.shards import Found, Notes, blob_ends, read_file, stamp_of, told
from imagen_nb.pictures.tables import TEXT_COLUMNS, captions_of, find_column
from imagen_nb.store.files import replaced

STEP = 64  # rows read at once


class Rows:
    "Rows of a `datasets.Dataset`: pictures stay encoded until they are asked for."

    def __init__(
        self,
        table,  # datasets.Dataset
        name: str,  # for people
        image_column: str | None = None,  # None: guessed from the types
        caption_column: str | None = None,  # None: a usual name, or the only text column
    ):
        self.mark = f"{table._fingerprint} {len(table)}"
        self._choose(table.features.arrow_schema, name, image_column, caption_column)
        self.unused += ["transform of the dataset"] * (table.format["type"] == "custom")
        self.table = as_stored(table, self.image).select_columns(self.columns)

    path: Any = None  # of its file; None: it is in memory
    kind = "dataset"

    def _choose(self, schema, name: str, image_column: str | None, caption_column: str | None):
        self.name = name
        self.image, self.text = table_columns(schema, image_column, caption_column, name)
        self.columns = [c for c in (self.image, self.text) if c is not None]
        others = schema.names if self.text is None else TEXT_COLUMNS
        self.unused = [f"column {c}" for c in others if c in schema.names and c not in self.columns]
        self.now: tuple[int, list] = (0, [])  # number of a row, pictures from there on

    def __getstate__(self):
        return self.__dict__ | {"now": (0, [])}

    def stamp(self):
        "The fingerprint of a table in memory."
        yield self.mark

    def scan(self, notes: Notes):
        "Every row up to damage."
        notes.ignored.update(self.unused)
        row = 0
        try:
            for pictures, texts in self._parts():
                self.now = row, pictures
                for value, text in zip(pictures, texts or itertools.repeat(None)):
                    yield self._found(row, value, text)
                    row += 1
        except (OSError, ValueError) as e:  # of pyarrow
            where = f"{self.name}: from row {row} on: {e}"
            notes.problem(f"{self.kind} damaged", where, max(1, self._length() - row))

    def _length(self) -> int:
        return len(self.table)

    def _parts(self):
        "Pictures and texts of some rows after the other; no texts: None."
        for first in range(0, len(self.table), STEP):
            rows = self.table[first : first + STEP]
            yield rows[self.image], self.text and rows[self.text]

    def _found(self, row: int, value, text) -> Found:
        captions, problem = told(lambda: captions_of(text))
        name = f"row {row}" if self.path is None else f"{self.name}: row {row}"
        return Found(name, row, 0, captions, problem, lambda: blob_ends(self._blob(value)))

    def read(self, name: str, start: int, length: int) -> bytes:
        "The picture of a row."
        first, some = self.now
        value = some[start - first] if 0 <= start - first < len(some) else self._value(start)
        return self._blob(value)

    def _value(self, row: int):
        return self.table[row][self.image]

    def _blob(self, value) -> bytes:
        if isinstance(value, dict):
            value = value["bytes"] if value.get("bytes") is not None else value["path"]
        if isinstance(value, str):
            return read_file((self.path.parent if self.path else Path()) / value)
        return value or b""


class FileRows(Rows):
    "Rows of a parquet or arrow file: read in turn where it lies, at random from a map of it or of its copy."

    def __init__(
        self,
        path: Path,  # .parquet or .arrow
        image_column: str | None = None,  # None: guessed from the types
        caption_column: str | None = None,  # None: a usual name, or the only text column
    ):
        self.path, self.kind = path, f"{path.suffix[1:].lower()} file"
        self._choose(read_schema(path), path.name, image_column, caption_column)
        self.map: Any = None  # batches, and the row at which each begins

    def __getstate__(self):
        return super().__getstate__() | {"map": None}

    def stamp(self):
        "The file's."
        yield stamp_of(self.path)

    def _parts(self):
        for batch in self._batches():
            for first in range(0, len(batch), STEP):
                pictures, *texts = (
                    batch.slice(first, STEP).select(self.columns).to_pydict().values()
                )
                yield pictures, texts[0] if texts else None

    def _batches(self):
        if self.path.suffix.lower() == ".arrow":
            yield from map_batches(self.path)
            return
        from pyarrow import parquet

        with open(self.path, "rb") as f:
            file = parquet.ParquetFile(f, buffer_size=2**20)
            yield from file.iter_batches(STEP, columns=self.columns)

    def _length(self) -> int:
        "Rows, where the file says so; 0 where they must be counted."
        from pyarrow import parquet

        if self.path.suffix.lower() == ".arrow":
            return 0
        with open(self.path, "rb") as f:
            return parquet.ParquetFile(f).metadata.num_rows

    def _value(self, row: int):
        if self.map is None:
            is_arrow = self.path.suffix.lower() == ".arrow"
            batches = list(map_batches(self.path if is_arrow else self._copy()))
            self.map = batches, [0, *itertools.accumulate(map(len, batches))]
        batches, begins = self.map
        k = bisect.bisect_right(begins, row) - 1
        return batches[k].column(self.image)[row - begins[k]].as_py()

    def _copy(self) -> Path:
        "The two columns in a file that can be mapped, which parquet cannot: made by the first who needs it."
        import pyarrow

        what = f"{self.path.resolve()} {self.columns}".encode(errors="surrogateescape")
        key, stamp = hashlib.blake2b(what, digest_size=8).hexdigest(), stamp_of(self.path)
        mark = {"stamp": stamp.encode(errors="surrogateescape")}
        with alone(f"{key}.arrow") as path:
            if not _is_copy(path, mark):
                batches = _to_damage(self._batches())
                first = next(batches)
                schema = first.schema.with_metadata(mark)
                with replaced(path) as f, pyarrow.ipc.new_stream(f, schema) as out:
                    for batch in itertools.chain([first], batches):
                        out.write_batch(batch)
            return path


def _to_damage(batches):
    "What can be read; the scan has counted the rest."
    with contextlib.suppress(OSError, ValueError):
        yield from batches


def _is_copy(path: Path, mark: dict) -> bool:
    "Is there a whole copy of the file as it is now?"
    try:
        return read_schema(path).metadata == {k.encode(): v for k, v in mark.items()}
    except (OSError, ValueError):
        return False


def read_schema(
    path: Path,  # .parquet or .arrow
):  # pyarrow.Schema
    "Names and types of a file's columns."
    from pyarrow import parquet

    if path.suffix.lower() == ".arrow":
        return _open_map(path).schema
    with open(path, "rb") as f:
        return parquet.ParquetFile(f).schema_arrow


def _open_map(path: Path):
    "An arrow file in either of its two forms, mapped into memory."
    from pyarrow import ipc, py_buffer

    with open(path, "rb") as f:
        mapped = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    is_file = mapped[:6] == b"ARROW1"
    return (ipc.open_file if is_file else ipc.open_stream)(py_buffer(mapped))


def map_batches(
    path: Path,  # .arrow
):  # pyarrow.RecordBatch, one after the other
    "Rows of an arrow file, without reading what nobody asks for."
    file = _open_map(path)
    if hasattr(file, "num_record_batches"):
        yield from map(file.get_batch, range(file.num_record_batches))
    else:
        yield from file


def as_stored(
    table,  # datasets.Dataset or IterableDataset
    image: str,  # its column of pictures
):  # the same table
    "Without transforms, and with pictures as they are encoded."
    import datasets

    if isinstance(table.features[image], datasets.Image):
        table = table.cast_column(image, datasets.Image(decode=False))
    return table.with_format(None)


def table_columns(
    schema,  # pyarrow.Schema
    image_column: str | None,  # None: guessed from the types
    caption_column: str | None,  # None: a usual name, or the only text column
    name: str,  # of the table, for people
) -> tuple[str, str | None]:  # image column, caption column: None where no column holds text
    "Which columns hold the pictures and their captions."
    pictures = picture_columns(schema)
    if image_column is not None:
        pictures = [c for c in schema.names if c == image_column]
    if len(pictures) != 1:
        hint = "; a list of addresses holds no pictures, fetch them first with img2dataset" * (
            "url" in map(str.lower, schema.names)
        )
        raise ValueError(
            f"load_captioned: image_column of {name}, got {image_column or pictures},"
            f" expected one of {schema.names}{hint}"
        )
    texts = [field.name for field in schema if _is_text(field.type)]
    if caption_column is None and len(texts) < 2:
        return pictures[0], texts[0] if texts else None
    return pictures[0], find_column(texts, caption_column, name)


def picture_columns(
    schema,  # pyarrow.Schema
) -> list[str]:  # those that `datasets` has marked so; else columns of encoded files
    "Where pictures can be."
    meta = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = meta.get("info", {}).get("features", {})
    kinds = {c: o.get("_type") for c, o in features.items() if isinstance(o, dict)}
    blobs = [o.name for o in schema if _is_bytes(o.type) and kinds.get(o.name) not in FOREIGN]
    return [c for c in schema.names if kinds.get(c) == "Image"] or blobs


FOREIGN = ("Audio", "Video", "Pdf", "Nifti")  # what `datasets` stores in the same way


def _is_text(kind) -> bool:
    "Does a column hold strings, or lists of strings?"
    from pyarrow import types

    if types.is_dictionary(kind) or types.is_list(kind) or types.is_large_list(kind):
        return _is_text(kind.value_type)
    return any(
        is_it(kind) for is_it in (types.is_string, types.is_large_string, types.is_string_view)
    )


def _is_bytes(kind) -> bool:
    "Does a column hold encoded files: bytes, or a dictionary with bytes?"
    from pyarrow import types

    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return any(
        is_it(kind) for is_it in (types.is_binary, types.is_large_binary, types.is_binary_view)
    )


def is_list_of_links(
    path: Path,  # any file
) -> bool:  # is it one of the lists of addresses that img2dataset leaves beside its shards?
    "A parquet without pictures, beside a tar or a folder of the same name."
    if path.suffix.lower() != ".parquet" or not (
        path.with_suffix(".tar").exists() or path.with_suffix("").is_dir()
    ):
        return False
    try:
        return not picture_columns(read_schema(path))
    except (OSError, ValueError):
        return False  # damaged: to be named as such
