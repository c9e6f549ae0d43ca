"""What a name stands for: a folder, a file, a list of files, a table in memory, a data set on the hub."""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from imagen_nb.pictures.arrow import FileRows, Rows, is_list_of_links, picture_columns, read_schema
from imagen_nb.pictures.folders import Folder, Listed
from imagen_nb.pictures.layout import lay_out, split_names
from imagen_nb.pictures.shards import SHARDS, Notes, Shard
from imagen_nb.pictures.tables import FILE_COLUMNS
from imagen_nb.pictures.tars import Tar
from imagen_nb.store.files import as_path, is_hub_name

KNOWN = "a folder, .tar, .parquet, .arrow, .csv, .tsv, .jsonl or COCO's .json"


@dataclass
class Source:
    "Shards of one split, and the problems met while opening them."

    name: str  # for people
    place: str  # names the catalog: the same source, the same place
    shards: list[Shard]
    notes: Notes = field(default_factory=Notes)
    has_split: bool = False  # the source itself knows the split that was asked for
    cause: Exception | None = None  # why the last damaged shard could not be opened

    def stamp(self) -> str:
        "Digest of every shard's stamp: a catalog made of other files is stale."
        digest = hashlib.blake2b(repr(self.notes).encode(errors="replace"), digest_size=16)
        for shard in self.shards:
            digest.update(f"{type(shard).__name__} {shard.name}\n".encode(errors="surrogateescape"))
            for line in shard.stamp():
                digest.update(f"{line}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


def find_source(
    source,  # folder, file, list of files, Dataset, or a name on the hub
    split: str,  # "train", "valid", "test"
    image_column: str | None,  # of a table
    caption_column: str | None,  # of a table, or of the .json beside a picture
) -> Source:
    "The shards behind what a user names, told apart by what is there."
    columns, has_split = (image_column, caption_column), False
    if isinstance(source, Mapping):  # a DatasetDict
        source, has_split = source[pick_split(source, split, "the dataset given")], True
    if hasattr(source, "features"):
        return _given(source, has_split, columns)
    paths = source if isinstance(source, (list, tuple)) else [source]
    if not all(isinstance(p, (str, os.PathLike)) for p in paths):
        what = ", ".join(sorted({type(p).__name__ for p in paths}))
        raise ValueError(f"load_captioned: source, got {what}, expected {KNOWN}, or a Dataset")
    paths = [as_path(p) for p in paths]
    if not paths or not all(p.exists() for p in paths):
        rows = Rows(load_hub(source, split), str(source), *columns)
        return Source(str(source), f"hub {source} {rows.mark}", [rows], has_split=True)
    place = " ".join([split, *(str(p.resolve()) for p in paths)])
    out = Source(paths[0].resolve().name, place, [])
    if len(paths) == 1 and paths[0].is_dir():
        _add_folder(out, paths[0], split, columns)
    else:
        for path in paths:
            _add_file(out, path, columns)
    if not out.shards and not out.notes.problems:
        raise ValueError(f"load_captioned: source, got {out.name}, expected {KNOWN}")
    return out


def _given(table, has_split: bool, columns: tuple) -> Source:
    "A table in memory."
    if not hasattr(table, "num_rows"):
        raise ValueError(
            f"load_captioned: source, got {type(table).__name__}, which cannot be read in any order:"
            " give it to stream_captioned, or give a Dataset"
        )
    rows = Rows(table, "the dataset given", *columns)
    return Source("dataset", f"dataset {rows.mark}", [rows], has_split=has_split)


def pick_split(
    words: Collection[str],  # what the splits of a source are called
    split: str,  # that is asked for
    name: str,  # of the source, for people
) -> str:  # the source's word for it
    "A split by any of its names."
    if found := next((n for n in split_names(split) if n in words), None):
        return found
    raise ValueError(
        f"load_captioned: split of {name}, got {split!r}, expected one of {sorted(words)}"
    )


def _add_file(out: Source, path: Path, columns: tuple):
    "One file as a shard; a damaged one is noted and the others go on."
    kind = path.suffix.lower()
    if kind == ".tar":
        return out.shards.append(Tar(path, columns[1]))
    if kind == ".json":
        return out.shards.append(Listed(path, _coco_pictures(path), *columns))
    if kind in (".csv", ".tsv", ".jsonl"):
        return out.shards.append(Listed(path, path.parent, *columns))
    if kind not in SHARDS:
        raise ValueError(
            f"load_captioned: source, got {path.name}, a file ending in {kind or 'nothing'},"
            f" expected {KNOWN}"
        )
    try:
        schema = read_schema(path)
    except Exception as e:  # pyarrow raises many kinds
        out.cause = e
        why = e.strerror if isinstance(e, OSError) and e.errno else None
        return out.notes.problem(
            f"{kind[1:]} file: {why}" if why else f"{kind[1:]} file damaged", f"{path.name}: {e}"
        )
    is_list = not picture_columns(schema) and {columns[0], *FILE_COLUMNS} & {*schema.names}
    out.shards.append(Listed(path, path.parent, *columns) if is_list else FileRows(path, *columns))


def _add_folder(out: Source, folder: Path, split: str, columns: tuple):
    "A folder: saved by `datasets`, COCO's, or whatever tables, pictures and shards lie in it."
    if splits := _listed(folder / "dataset_dict.json", "splits"):
        out.has_split = True
        return _add_saved(out, folder / pick_split(splits, split, folder.name), columns)
    if _listed(folder / "state.json", "_data_files"):
        return _add_saved(out, folder, columns)
    if coco := _coco_tables(folder, split):
        out.has_split = True
        return _add_file(out, coco, columns)
    found = lay_out(folder, split, out.notes)
    out.has_split = found.has_split
    paths = [folder / s for s in found.shards]
    shards = [p for p in paths if not is_list_of_links(p)]
    out.notes.ignored.update(["parquet without pictures"] * (len(paths) - len(shards)))
    apart = [os.path.abspath(folder / o) for o in (*found.shards, *found.others)]
    for place, table in found.tables.items():
        asked, (image, text) = found.asked(place), columns
        out.shards.append(Listed(folder / table, folder / place, image, text, asked, apart))
    if found.has_loose or not (found.tables or shards):
        apart += [os.path.abspath(folder / place) for place in found.tables]
        out.shards.append(Folder(folder / found.base, columns[1], apart))
    for path in shards:
        _add_file(out, path, columns)


def _coco_tables(folder: Path, split: str) -> Path | None:
    "COCO's captions of a split, in a folder that holds its annotations."
    found = sorted((folder / "annotations").glob("captions_*.json"))
    if not found:
        return None
    begin = f"captions_{split_names(split)[-1]}"
    ours = [p for p in found if p.name.startswith(begin)]
    if len(ours) != 1:
        raise ValueError(
            f"load_captioned: split of {folder.name}, got {split!r}, which is {[p.name for p in ours]}"
            f" among {[p.name for p in found]}; expected one: name the file"
        )
    return ours[0]


def _coco_pictures(table: Path) -> Path:
    "Folder of the pictures that COCO's captions_train2017.json speaks of."
    name = table.stem.removeprefix("captions_")
    above = table.parent.parent if table.parent.name == "annotations" else table.parent
    places = (above / name, above / "images" / name, above / "images", table.parent / name)
    return next((p for p in places if p.is_dir()), table.parent)


def _add_saved(out: Source, folder: Path, columns: tuple):
    "A dataset written by `save_to_disk`: its arrow files, in the order of its state."
    state = folder / "state.json"
    files = _listed(state, "_data_files")
    if not files:
        raise ValueError(
            f"load_captioned: {state}, got no data files, expected those that `save_to_disk` wrote"
        )
    for file in files:
        _add_file(out, folder / file["filename"], columns)


def _listed(file: Path, what: str) -> list:
    "What a file that `datasets` wrote lists; nothing, where another program wrote it, or none."
    with suppress(OSError, ValueError, LookupError, TypeError):
        return list(json.loads(file.read_bytes())[what])
    return []


def load_hub(
    source,  # its name
    split: str,  # "train", "valid", "test", or the data set's own word
    **options,  # of `datasets.load_dataset`
):  # datasets.Dataset, or with streaming=True an iterable one
    "A data set named on the hub."
    import datasets

    if not is_hub_name(source):
        raise ValueError(
            f"load_captioned: source, got {source}, which does not exist; expected {KNOWN},"
            " or a dataset of the hub, 'owner/name'"
        )
    names = split_names(split)
    try:
        if len(names) > 1:
            words = datasets.get_dataset_split_names(source)
            split = next((n for n in names if n in words), split)
        return datasets.load_dataset(source, split=split, **options)
    except OSError as e:  # no such name, or no way to the hub
        raise ValueError(
            f"load_captioned: source, got {source!r}, which is no local path; and as a name on the hub: {e}"
        ) from e
