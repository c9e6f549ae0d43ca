"""The one reader of captions: text files, cells, and tables of them (.csv, .tsv, .jsonl, .parquet, COCO's .json)."""

import codecs
import collections
import csv
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagen_nb.pictures.decode import UnreadablePicture

SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jfif",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
)  # of pictures
FILE_COLUMNS = ("file_name", "image", "image_path", "path", "file", "filename", "filepath")
TEXT_COLUMNS = ("text", "caption", "captions", "prompt", "sentence", "description", "sentences")


def decode_text(
    blob: bytes,  # a whole text file
) -> str:  # undecodable bytes became U+FFFD
    "Text in UTF-8, or in UTF-16 if its first two bytes say so."
    return blob.decode(_encoding(blob), errors="replace")


def _encoding(head: bytes) -> str:
    return "utf-16" if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def clean_caption(
    text: str,  # as it was found
) -> str:  # one line; halves of characters became U+FFFD
    "Control characters and white space become single spaces."
    text = re.sub("[\ud800-\udfff]", "\ufffd", text)
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())


def lines_of(
    text: str,  # of a text file
) -> list[str]:  # a caption each
    "Lines that are not blank."
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()]


def captions_of(
    value,  # of a table's cell: a text, a list of them, a number, null
) -> list[str]:  # the digits of a number, nothing of null
    "Captions in a table's cell."
    if isinstance(value, (list, tuple)):
        return [text for part in value for text in captions_of(part)]
    if isinstance(value, dict):
        raise UnreadablePicture("caption that is no text")
    is_null = value is None or value != value  # a float that is no number
    return [] if is_null else [str(value)]


def clean_captions(
    captions: list[str],  # as they were found
) -> list[str]:  # one line each; a blank one is none
    "Captions as a model reads them."
    return [caption for caption in map(clean_caption, captions) if caption]


def json_captions(
    blob: bytes,  # of the .json that goes with a picture
    column: str | None,  # with the captions; None: a usual name
) -> list[str]:  # none if it holds no such column
    "Captions beside a picture."
    try:
        row = json.loads(decode_text(blob))
    except (ValueError, RecursionError):
        raise UnreadablePicture("caption file that is not JSON") from None
    return row_captions(row, column) if isinstance(row, dict) else []


def row_captions(
    row: dict,  # a JSON object that goes with a picture
    column: str | None,  # with the captions; None: a usual name
) -> list[str]:  # none if it holds no such column
    "Captions of a picture in an object with many names."
    return captions_of(row.get(_usual(row, column)))


def table_rows(
    path: Path,  # .csv, .tsv, .jsonl, .parquet, or COCO's .json
    errors: str = "replace",  # what to do with undecodable bytes: "replace" or "strict"
) -> Iterator[tuple[int, object]]:  # line number, row; one that is no dictionary cannot be parsed
    "Rows of a table, one in memory at a time (but COCO's)."
    kind = path.suffix.lower()
    if kind == ".json":
        yield from _coco(path)
        return
    if kind == ".parquet":
        yield from _parquet(path)
        return
    with open(path, "rb") as f:
        encoding = _encoding(f.read(2))
    with open(path, encoding=encoding, errors=errors, newline="\n" * (kind == ".jsonl")) as f:
        yield from _jsonl(f) if kind == ".jsonl" else _csv(f, "\t" if kind == ".tsv" else ",")


def _jsonl(f):
    "Objects of JSON lines; None where a line is no JSON."
    for line, row in enumerate(f, 1):
        if not row.strip():
            continue
        try:
            yield line, json.loads(row)
        except (ValueError, RecursionError):
            yield line, None


def _csv(f, delimiter: str):
    "Rows as dictionaries; None where quotes do not match or a field is endless."
    header: list[str] | None = None
    again: list[str] = []  # lines that a stray quote had swallowed, the next one last
    line = 1
    while True:
        taken: list[str] = []
        row = _record(_lines(f, again, taken), delimiter)
        if row is None or len(taken) > 1 and _has_swallowed(taken, row, delimiter):
            row, again, taken = None, again + taken[:0:-1], taken[:1]
        if not taken:
            return
        if header is None:
            header = row or []
        elif row != []:  # a blank line
            yield line, row and _named(header, row)
        line += len(taken)


def _lines(f, again: list[str], taken: list[str]):
    "Lines of a file, first those that are to be read again; each that is taken is noted."
    while line := again.pop() if again else f.readline():
        taken.append(line)
        yield line


def _record(lines, delimiter: str) -> list[str] | None:
    "The next row of a .csv; None where quotes do not match or a field is endless."
    try:
        return next(csv.reader(lines, strict=True, delimiter=delimiter), [])
    except csv.Error:
        return None


def _has_swallowed(taken: list[str], row: list[str], delimiter: str) -> bool:
    "Does a line within a row name a picture where the row does? A quote that is never closed joins rows."
    for line in taken[1:]:
        inner = _record([line], delimiter) or line.rstrip("\r\n").split(delimiter)
        if len(inner) >= len(row) and any(
            a.lower().endswith(SUFFIXES) and b.lower().endswith(SUFFIXES)
            for a, b in zip(row, inner)
        ):
            return True
    return False


def _named(header: list[str], row: list[str]) -> dict:
    "A row by its columns; fields beyond the header's under None."
    named: dict = dict(itertools.zip_longest(header, row[: len(header)]))
    return named | ({None: row[len(header) :]} if len(row) > len(header) else {})


def _parquet(path: Path):
    "Rows of a list without pictures."
    from pyarrow import parquet

    with open(path, "rb") as f:
        rows = (row for part in parquet.ParquetFile(f).iter_batches() for row in part.to_pylist())
        yield from enumerate(rows, 1)


def _coco(path: Path):
    "Pictures of COCO's annotations with all their captions, in the order of the file."
    data = json.loads(path.read_bytes())
    if not isinstance(data, dict) or not {"images", "annotations"} <= data.keys():
        got = sorted(data)[:5] if isinstance(data, dict) else type(data).__name__
        raise ValueError(
            f"load_captioned: {path.name}, got {got}, expected COCO's images and annotations"
        )
    captions = collections.defaultdict(list)
    for a in data["annotations"]:
        captions[a.get("image_id")].append(a.get("caption"))
    for k, image in enumerate(data["images"], 1):
        if isinstance(image, dict):
            image = dict(file_name=image.get("file_name"), text=captions[image.get("id")])
        yield k, image


def find_column(
    columns,  # names
    wanted: str | None,  # None: a usual name
    source: str,  # for people
) -> str:  # one of the columns
    "The caption column: the wanted one, or the first with a usual name."
    if found := _usual(columns, wanted):
        return found
    raise ValueError(
        f"load_captioned: caption_column of {source}, got {wanted!r}, expected one of {sorted(columns)}"
    )


def _usual(columns, wanted: str | None) -> str | None:
    return next((c for c in (TEXT_COLUMNS if wanted is None else (wanted,)) if c in columns), None)


def table_captions(
    path: Path,  # .csv, .tsv, .jsonl or COCO's .json; .txt: a caption in each line
    column: str | None = None,  # with the captions; None: a usual name
) -> list[str]:  # in the order of the file; "" for a row without any
    "Every caption of a file, as training on the pictures it lists asks for them."
    try:
        if path.suffix.lower() == ".txt":
            blob = path.read_bytes()
            return clean_captions(lines_of(blob.decode(_encoding(blob))))
        rows: list[Any] = [row for _, row in table_rows(path, "strict")]
    except UnicodeDecodeError as e:
        raise ValueError(f"embed: {path} is not UTF-8, {e}") from e
    if None in rows:
        raise ValueError(f"embed: {path}, a line is no JSON, or a row's quotes do not match")
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"embed: {path} has no rows with names")
    columns = {c: None for row in rows for c in row if c is not None}
    if (name := _usual(columns, column)) is None:
        raise ValueError(
            f"embed: {path} has columns {', '.join(columns)}, expected caption or text;"
            " --column names another"
        )
    return [c for row in rows for c in clean_captions(captions_of(row.get(name))) or [""]]
