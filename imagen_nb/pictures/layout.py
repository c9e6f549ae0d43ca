"""What lies in a folder, and which part of it is asked for: splits, tables, shards, loose pictures.

The one place where a folder's layout is decided. Whatever is left aside is counted in the notes.
"""

import collections
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from imagen_nb.pictures.folders import is_below, is_in, names_some, walk
from imagen_nb.pictures.shards import SHARDS, Notes, ending
from imagen_nb.pictures.tables import SUFFIXES
from imagen_nb.store.config import counted

TABLES = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.parquet")
SPLITS = {"train": ("train",), "valid": ("valid", "validation", "val"), "test": ("test",)}
WORDS = {word: split for split, words in SPLITS.items() for word in words}


@dataclass
class Inside:
    "Files of one folder, without those of its subfolders."

    endings: collections.Counter = field(default_factory=collections.Counter)
    pictures: int = 0
    tables: list[str] = field(default_factory=list)  # the first is used
    shards: list[str] = field(default_factory=list)


@dataclass
class Layout:
    "What to read of a folder; all paths are relative to it."

    parts: list[str]  # folders and shards that are asked for; [""]: all
    others: list[str]  # folders and shards of other splits
    has_split: bool
    tables: dict[str, str]  # folder: list of the pictures in it and below
    shards: list[str]
    has_loose: bool  # are there pictures that no table speaks of?

    @property
    def base(self) -> str:
        'The folder of the split; "": the whole, or shards alone.'
        return next((p for p in self.parts if p not in self.shards), "")

    def asked(self, folder: str) -> tuple[list[str], list[str]]:
        "Parts and others as a table in that folder calls them."
        return tuple(  # type: ignore[return-value]
            [os.path.relpath(p, folder or ".") for p in some if p and is_below(p, folder)]
            for some in (self.parts, self.others)
        )


def split_names(split: str) -> tuple[str, ...]:
    "A split as others call it."
    return SPLITS.get(split, (split,))


def lay_out(
    root: Path,  # a folder
    split: str,  # "train", "valid", "test", or the name of a folder in it
    notes: Notes,  # what is left aside is counted here, and said
) -> Layout:
    "Which files of a folder are the split that is asked for."
    inside = survey(root)
    parts, others, has_split = find_split(inside, split, root.name)
    ours = {f: o for f, o in inside.items() if is_in(f, parts) and not is_in(f, others)}
    every = [os.path.join(f, name) for f, o in sorted(inside.items()) for name in o.shards]
    shards = [s for s in every if is_in(s, parts) and not is_in(s, others)]
    tables = {
        f: os.path.join(f, o.tables[0])
        for f, o in ours.items()
        if o.tables and (f in parts or names_some(root / f / o.tables[0], ""))
    }
    if (part := parts[0]) in ours and part not in tables:
        tables |= _table_above(root, inside, part)
    tables = {f: t for f, t in tables.items() if not f or not is_in(os.path.dirname(f), tables)}
    has_loose = any(o.pictures for f, o in ours.items() if not is_in(f, tables))
    read = {*shards, *tables.values()}
    aside = {f: o for f, o in inside.items() if f not in ours and not is_in(f, others)}
    _tell_aside(aside, read.union(others), parts, notes)
    _tell_words(ours, parts, notes)
    return Layout(parts, others, has_split, tables, shards, has_loose)


def survey(root: Path) -> dict[str, Inside]:
    "Folders below a root that hold any file, and what is in them."
    found: dict[str, Inside] = {}
    for folder, names in walk(root, Notes()):
        here = found.setdefault(folder, Inside())
        for name in names:
            low = name.lower()
            here.endings[ending(name)] += 1
            here.pictures += low.endswith(SUFFIXES)
            if low in TABLES:
                here.tables.append(name)
            elif low.endswith(SHARDS):
                here.shards.append(name)
        here.tables.sort(key=lambda name: TABLES.index(name.lower()))
    return found


def find_split(
    inside: dict[str, Inside],  # a folder
    split: str,  # that is asked for
    name: str,  # of the folder, for people
) -> tuple[list[str], list[str], bool]:  # its parts, those of other splits; is there such a split?
    "Folders and shards called train or valid are splits if all beside them are, or another split is there."
    if split not in SPLITS:
        return ([split], [], True) if split in inside else ([""], [], False)
    entries, loose = _entries(inside)
    words = {e: word for e in entries if (word := _word(e, e in inside))}
    if len(words) < len(entries) and len({*words.values()}) < 2:
        return [""], [], False  # no splits, or a class that is called train
    parts = [e for e, word in words.items() if word == split]
    others = [e for e, word in words.items() if word != split]
    if parts:
        return sorted(parts, key=lambda e: e not in inside), others, True
    if split == "train" and len(words) == len(entries) and words and not loose:
        raise ValueError(
            f"load_captioned: split of {name}, got {split!r}, expected one of {sorted({*words.values()})}"
        )
    return [""], others if split == "train" else [], False


def _entries(inside: dict[str, Inside]) -> tuple[list[str], int]:
    "Folders with pictures and shards that lie side by side, as deep as there is a choice; loose pictures there."
    full = [f for f, o in inside.items() if o.pictures or o.shards or o.tables]
    at = ""
    while True:
        depth = at.count(os.sep) + 1 if at else 0
        below = (f.split(os.sep)[: depth + 1] for f in full if f != at and is_below(f, at))
        folders = sorted({os.path.join(*parts) for parts in below})
        here = inside.get(at, Inside())
        if len(folders) != 1 or here.pictures or here.shards or _word(folders[0], True):
            return folders + [os.path.join(at, s) for s in here.shards], here.pictures
        at = folders[0]


def _word(entry: str, is_folder: bool) -> str | None:
    "The split that a folder's name is, or a shard's begins with."
    name = os.path.basename(entry).lower()
    begin = re.match(f"({'|'.join(WORDS)})(?![a-z])", name)
    return WORDS.get(name if is_folder else begin[1] if begin else "")


def _table_above(root: Path, inside: dict[str, Inside], part: str) -> dict[str, str]:
    "The nearest table in a folder above that names pictures of the split."
    for folder in map(str, Path(part).parents):
        folder = "" if folder == "." else folder
        for name in inside[folder].tables:
            if names_some(root / folder / name, os.path.relpath(part, folder or ".")):
                return {folder: os.path.join(folder, name)}
    return {}


def _tell_aside(aside: dict[str, Inside], read: set[str], parts: list[str], notes: Notes):
    "Count the files beside the split."
    pictures = 0
    for folder, here in aside.items():
        known = [n for n in here.shards + here.tables if os.path.join(folder, n) in read]
        notes.ignored.update(here.endings - collections.Counter(map(ending, known)))
        pictures += here.pictures + len(here.shards) - sum(n in here.shards for n in known)
    if pictures:
        what = ", ".join(parts[:3])
        notes.remarks.append(
            counted(
                pictures,
                f"file with pictures beside {what} is",
                f"files with pictures beside {what} are",
            )
            + " not looked at"
        )


def _tell_words(ours: dict[str, Inside], parts: list[str], notes: Notes):
    "Say which folders could be splits and are read as a part of the whole."
    inner = [
        f
        for f, o in ours.items()
        if _word(f, True) and f not in parts and (o.pictures or o.shards or o.tables)
    ]
    if inner:
        notes.remarks.append(
            f"folders named like a split are read like those beside them: {', '.join(inner[:3])}"
        )
