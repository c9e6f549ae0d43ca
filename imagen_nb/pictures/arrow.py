"""Rows of Hugging Face `datasets`: parquet and arrow files, and tables in memory."""

import contextlib
from pathlib import Path

from imagen_nb.pictures.shards import Found, Notes, blob_ends, read_file, stamp_of, told
from imagen_nb.pictures.tables import captions_of, find_column


class Rows:
    "Rows of a `datasets.Dataset`: pictures stay encoded until they are asked for."

    def __init__(
        self,
        table,  # datasets.Dataset
        name: str,  # for people
        image_column: str | None = None,  # None: guessed from the types
        caption_column: str | None = None,  # None: a usual name, or the only text column
        path: Path | None = None,  # of its file; None: it is in memory
    ):
        import datasets

        self.name, self.path, self.mark = name, path, f"{table._fingerprint} {len(table)}"
        self.image, self.text = table_columns(table.features, image_column, caption_column, name)
        if isinstance(table.features[self.image], datasets.Image):
            table = table.cast_column(self.image, datasets.Image(decode=False))
        self.table = table.select_columns([self.image, self.text])

    def stamp(self):
        "The file's, or the fingerprint of a table in memory."
        yield self.mark if self.path is None else stamp_of(self.path)

    def scan(self, notes: Notes):
        "Every row."
        step = 64
        for first in range(0, len(self.table), step):
            rows = self.table[first : first + step]
            for k, (value, text) in enumerate(zip(rows[self.image], rows[self.text])):
                yield self._found(first + k, value, text)

    def _found(self, row: int, value, text) -> Found:
        captions, problem = told(lambda: captions_of(text))
        name = f"row {row}" if self.path is None else f"{self.name}: row {row}"
        return Found(name, row, 0, captions, problem, lambda: blob_ends(self._blob(value)))

    def read(self, name: str, start: int, length: int) -> bytes:
        "The picture of a row."
        return self._blob(self.table[start][self.image])

    def _blob(self, value) -> bytes:
        if isinstance(value, dict):
            value = value["bytes"] if value.get("bytes") is not None else value["path"]
        if isinstance(value, str):
            return read_file((self.path.parent if self.path else Path()) / value)
        return value or b""


def table_columns(
    features,  # datasets.Features
    image_column: str | None,  # None: guessed from the types
    caption_column: str | None,  # None: a usual name, or the only text column
    name: str,  # of the table, for people
) -> tuple[str, str]:  # image column, caption column
    "Which columns hold the pictures and their captions."
    import datasets

    pictures = [c for c, f in features.items() if isinstance(f, datasets.Image)]
    pictures = pictures or [c for c, f in features.items() if _is_bytes(f)]
    if image_column is not None:
        pictures = [c for c in features if c == image_column]
    if len(pictures) != 1:
        hint = "; a list of addresses holds no pictures, fetch them first with img2dataset" * (
            "url" in map(str.lower, features)
        )
        raise ValueError(
            f"load_captioned: image_column of {name}, got {image_column or pictures},"
            f" expected one of {list(features)}{hint}"
        )
    texts = [c for c, f in features.items() if _is_text(f)]
    if caption_column is None and len(texts) == 1:
        caption_column = texts[0]
    return pictures[0], find_column(texts, caption_column, name)


def _is_text(feature) -> bool:
    "Does a column hold strings, or lists of strings?"
    inner = getattr(feature, "feature", feature)
    inner = inner[0] if isinstance(inner, list) else inner
    return getattr(inner, "dtype", None) in ("string", "large_string")


def _is_bytes(feature) -> bool:
    "Does a column hold encoded files: bytes, or a dictionary with bytes?"
    return (
        isinstance(feature, dict)
        and "bytes" in feature
        or getattr(feature, "dtype", None) in ("binary", "large_binary")
    )


def open_table(
    path: Path,  # a parquet file, copied once into the cache of `datasets`; or arrow, mapped
):  # datasets.Dataset
    "A file's table, whose rows can be read in any order."
    import datasets

    if path.suffix.lower() == ".arrow":
        return datasets.Dataset.from_file(str(path))
    with _quiet(datasets):
        return datasets.Dataset.from_parquet(str(path))


@contextlib.contextmanager
def _quiet(datasets):
    "No bars and no logged traceback of `datasets`."
    bars, logs = datasets.utils, datasets.logging
    was_hidden, level = bars.are_progress_bars_disabled(), logs.get_verbosity()
    bars.disable_progress_bars()
    logs.set_verbosity(50)
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if not was_hidden:
            bars.enable_progress_bars()


def is_list_of_links(
    path: Path,  # any file
) -> bool:  # is it one of the lists of addresses that img2dataset leaves beside its shards?
    "A parquet without pictures, beside a tar or a folder of the same name."
    if path.suffix.lower() != ".parquet" or not (
        path.with_suffix(".tar").exists() or path.with_suffix("").is_dir()
    ):
        return False
    from pyarrow import parquet, types

    try:
        kinds = parquet.read_schema(path).types
    except Exception:
        return False  # damaged: to be named as such
    return not any(
        types.is_struct(k) or types.is_binary(k) or types.is_large_binary(k) for k in kinds
    )
