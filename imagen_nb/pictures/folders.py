"""Picture files on a disk, with captions beside them or in a table."""

import functools
import hashlib
import itertools
import os
from pathlib import Path

from imagen_nb.pictures.decode import UnreadablePicture, reason
from imagen_nb.pictures.shards import (
    SHARDS,
    SUFFIXES,
    Found,
    Notes,
    file_ends,
    is_hidden,
    read_file,
    stamp_of,
    told,
)
from imagen_nb.pictures.tables import (
    captions_of,
    decode_text,
    find_column,
    json_captions,
    lines_of,
    table_rows,
)

FILE_COLUMNS = ("file_name", "image", "image_path", "path", "file", "filename", "filepath")


class Folder:
    "Picture files, each with its captions in a .txt or .json file beside it."

    def __init__(self, root: Path, caption_column: str | None = None):
        self.root, self.name, self.column = root, root.name, caption_column

    def stamp(self):
        "Every file below, by name, size and time."
        for folder, names in walk(self.root, Notes()):
            for name in names:
                try:
                    info = os.stat(self.root / folder / name)
                except OSError:
                    continue  # a link to nowhere
                yield f"{os.path.join(folder, name)} {info.st_size} {info.st_mtime_ns}"

    def scan(self, notes: Notes):
        "Every picture, and how many files are none."
        for folder, names in walk(self.root, notes):
            texts: dict[str, str] = {}
            for ending in (".json", ".txt"):  # a .txt wins
                texts |= {n[: -len(ending)]: n for n in names if n.lower().endswith(ending)}
            used = set()
            for name in names:
                stem, suffix = os.path.splitext(name)
                if suffix.lower() not in SUFFIXES:
                    continue
                text = texts.get(stem)
                used |= {name, text, stem + ".json"}
                yield self._found(os.path.join(folder, name), text and os.path.join(folder, text))
            notes.ignored.update(
                os.path.splitext(n)[1] or n
                for n in names
                if n not in used and not n.lower().endswith(SHARDS)
            )

    def _found(self, file: str, text: str | None) -> Found:
        captions, problem = told(lambda: self._captions(text)) if text else ([], "")
        return Found(file, 0, 0, captions, problem, lambda: file_ends(self.root / file))

    def _captions(self, text: str) -> list[str]:
        blob = read_file(self.root / text)
        is_text = text.lower().endswith(".txt")
        return lines_of(decode_text(blob)) if is_text else json_captions(blob, self.column)

    def read(self, name: str, start: int, length: int) -> bytes:
        "The file of a picture."
        return read_file(self.root / name)


def walk(
    root: Path,  # where to begin
    notes: Notes,  # what is passed by is counted here
    folder: str = "",  # below the root
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
    apart = {e.name for e in inner + linked}
    yield folder, [e.name for e in entries if e.name not in apart]
    for below in inner:
        yield from walk(root, notes, os.path.join(folder, below.name))


class Listed(Folder):
    "Pictures named in a table: .jsonl, .csv, .tsv, or COCO's annotations."

    def __init__(
        self,
        table: Path,  # the file with the list
        root: Path,  # what its names are relative to
        image_column: str | None = None,  # with the names; None: a usual one
        caption_column: str | None = None,  # with the captions; None: a usual one
    ):
        super().__init__(root, caption_column)
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
        for folder, names in walk(self.root, notes):
            paths = ((n, os.path.join(folder, n)) for n in names)
            notes.ignored.update(
                os.path.splitext(n)[1] or n
                for n, path in paths
                if _hash(path) not in files
                and self.root / path != self.table
                and not n.lower().endswith(SHARDS)
            )


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
