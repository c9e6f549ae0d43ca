"""Picture files on a disk, with captions beside them or in a table."""

import functools
import hashlib
import itertools
import os
from collections.abc import Collection
from pathlib import Path

from imagen_nb.pictures.decode import UnreadablePicture, reason
from imagen_nb.pictures.shards import (
    TEXTS,
    Found,
    Notes,
    ending,
    file_ends,
    is_hidden,
    read_file,
    stamp_of,
    told,
)
from imagen_nb.pictures.tables import (
    FILE_COLUMNS,
    SUFFIXES,
    captions_of,
    decode_text,
    find_column,
    json_captions,
    lines_of,
    table_rows,
)


class Folder:
    "Picture files, each with its captions in a .txt, .caption or .json file beside it."

    def __init__(
        self,
        root: Path,  # where to begin
        caption_column: str | None = None,  # of a .json; None: a usual one
        apart: Collection[str] = (),  # files and folders below that are read otherwise
    ):
        self.root, self.name, self.column = root, root.name, caption_column
        self.base = os.path.abspath(root)
        self.apart = {os.path.normpath(os.path.join(self.base, path)) for path in apart}

    def stamp(self):
        "Every file below, by name, size and time."
        for folder, names in self.walk(Notes()):
            for name in names:
                try:
                    info = os.stat(self.root / folder / name)
                except OSError:
                    continue  # a link to nowhere
                yield f"{os.path.join(folder, name)} {info.st_size} {info.st_mtime_ns}"

    def walk(self, notes: Notes):
        "Folders below and the files in them, without those that are read otherwise."
        for folder, names in walk(self.root, notes, apart=self.apart):
            place = os.path.normpath(os.path.join(self.base, folder))
            yield folder, [n for n in names if os.path.join(place, n) not in self.apart]

    def scan(self, notes: Notes):
        "Every picture, and how many files are none."
        for folder, names in self.walk(notes):
            texts: dict[str, str] = {}
            for end in TEXTS:
                texts |= {n[: -len(end)]: n for n in names if n.lower().endswith(end)}
            used: set[str | None] = set()
            for name in names:
                stem, suffix = os.path.splitext(name)
                if suffix.lower() not in SUFFIXES:
                    continue
                text = texts.get(stem, texts.get(name))
                used |= {name, text, stem + ".json"}
                yield self._found(os.path.join(folder, name), text and os.path.join(folder, text))
            notes.ignored.update(ending(n) for n in names if n not in used)

    def _found(self, file: str, text: str | None) -> Found:
        captions, problem = told(lambda: self._captions(text)) if text else ([], "")
        return Found(file, 0, 0, captions, problem, lambda: file_ends(self.root / file))

    def _captions(self, text: str) -> list[str]:
        blob = read_file(self.root / text)
        is_json = text.lower().endswith(".json")
        return json_captions(blob, self.column) if is_json else lines_of(decode_text(blob))

    def read(self, name: str, start: int, length: int) -> bytes:
        "The file of a picture."
        return read_file(self.root / name)


def walk(
    root: Path,  # where to begin
    notes: Notes,  # what is passed by is counted here
    folder: str = "",  # below the root
    apart: Collection[str] = (),  # paths of folders that are not entered
):  # yields (folder, names of its files), in order, one folder in memory at a time
    "Folders below a root, without hidden and linked ones."
    try:
        with os.scandir(root / folder) as inside:
            every = sorted(inside, key=lambda e: e.name)
    except OSError as e:
        return notes.problem(f"folder: {reason(e)}", folder or root.name)
    entries = [e for e in every if not is_hidden(e.name)]
    notes.ignored.update(["hidden"] * (len(every) - len(entries)))
    inner = [e for e in entries if e.is_dir(follow_symlinks=False)]
    linked = [e for e in entries if e.is_symlink() and os.path.isdir(e.path)]
    notes.ignored.update(["linked folders"] * len(linked))
    folders = {e.name for e in inner + linked}
    yield folder, [e.name for e in entries if e.name not in folders]
    for below in inner:
        if os.path.abspath(below.path) not in apart:
            yield from walk(root, notes, os.path.join(folder, below.name), apart)


class Listed(Folder):
    "Pictures named in a table: .jsonl, .csv, .tsv, .parquet, or COCO's annotations."

    def __init__(
        self,
        table: Path,  # the file with the list
        root: Path,  # what its names are relative to
        image_column: str | None = None,  # with the names; None: a usual one
        caption_column: str | None = None,  # with the captions; None: a usual one
        asked: tuple[list[str], list[str]] = ([], []),  # parts of the root (none: all); not these
        apart: Collection[str] = (),  # files and folders below that are read otherwise
    ):
        super().__init__(root, caption_column, [*apart, os.path.abspath(table)])
        self.parts, self.others = asked
        self.table, self.name, self.image = table, table.name, image_column

    def stamp(self):
        "The table's, and every file's below."
        yield stamp_of(self.table)
        yield from super().stamp()

    def scan(self, notes: Notes):
        "Every sound row; the others are noted with their line."
        rows = table_rows(self.table)
        first = list(itertools.islice(rows, 1000))
        columns = {c for _, row in first if isinstance(row, dict) for c in row if c is not None}
        file = self.image or next((c for c in FILE_COLUMNS if c in columns), "file_name")
        text = find_column(columns, self.column, self.table.name) if file in columns else ""
        seen, files, count = set(), set(), 0
        for line, row in itertools.chain(first, rows):
            count += 1
            try:
                name, captions = _listed(row, file, text)
                if not self._is_asked(name):
                    continue
                if (key := _hash(name, *captions)) in seen:
                    raise UnreadablePicture("duplicate row")
            except UnreadablePicture as e:
                notes.problem(str(e), f"{self.table.name} line {line}")
                continue
            seen.add(key)
            files.add(_hash(name))
            ends = functools.partial(file_ends, self.root / name)
            yield Found(name, 0, 0, captions, "", ends)
        if not seen:
            self._refuse(count, notes)
        self._count_others(files, notes)

    def _refuse(self, count: int, notes: Notes):
        "Say what is wrong with the first row of a table that has no sound one."
        ours = ((n[0], why) for why, n in notes.examples.items() if n[0].startswith(self.name))
        first = next((f", first: {name}: {why}" for name, why in ours), "")
        raise ValueError(
            f"load_captioned: {self.name}, got no sound row of {count}{first};"
            " expected a file_name in every row"
        )

    def _count_others(self, files: set, notes: Notes):
        "Count the files that no row names."
        for folder, names in self.walk(notes):
            if self._is_asked(folder):
                notes.ignored.update(
                    ending(n) for n in names if _hash(os.path.join(folder, n)) not in files
                )

    def _is_asked(self, name: str) -> bool:
        return (not self.parts or is_in(name, self.parts)) and not is_in(name, self.others)


def is_below(
    name: str,  # of a file or folder, relative to a root
    folder: str,  # likewise; "": the root
) -> bool:
    "Does it lie in a folder?"
    return not folder or name.startswith(folder + os.sep)


def is_in(
    path: str,  # of a file or folder, relative to a root
    places: Collection[str],  # files and folders
) -> bool:
    "Is it one of them, or in one?"
    return any(path == place or is_below(path, place) for place in places)


def names_some(
    table: Path,  # a list of pictures
    folder: str,  # relative to the table's own; "": that
) -> bool:
    "Does a table name a picture in a folder?"
    rows = (row.values() for _, row in table_rows(table) if isinstance(row, dict))
    cells = (cell for row in rows for cell in row if isinstance(cell, str))
    names = (os.path.normpath(cell) for cell in cells if cell.lower().endswith(SUFFIXES))
    return any(is_below(name, folder) for name in names)


def _hash(*parts: str) -> int:
    text = "\0".join(parts).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _listed(row, file: str, text: str) -> tuple[str, list[str]]:
    "File and captions of one row, or what is wrong with it."
    if not isinstance(row, dict) or None in row:  # None: fields beyond the header's
        raise UnreadablePicture("row that cannot be parsed")
    name = row.get(file)
    if not isinstance(name, str) or not name.strip():
        raise UnreadablePicture("row without file_name")
    name = os.path.normpath(name)
    if os.path.isabs(name) or name.split(os.sep)[0] == "..":
        raise UnreadablePicture("file_name outside the folder")
    if "\0" in name:
        raise UnreadablePicture("unreadable file")
    return name, captions_of(row.get(text))
