"""What a name stands for: a folder, a file, a list of files, a table in memory, a data set on the hub."""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from imagen_nb.pictures.arrow import Rows, is_list_of_links, open_table
from imagen_nb.pictures.folders import Folder, Listed, walk
from imagen_nb.pictures.shards import SHARDS, SUFFIXES, Notes, Shard, is_hidden
from imagen_nb.pictures.tars import Tar
from imagen_nb.store.files import as_path

TABLES = ("metadata.jsonl", "metadata.csv")
SPLITS = {"train": ("train",), "valid": ("valid", "validation", "val"), "test": ("test",)}


@dataclass
class Source:
    "Shards of one split, and the problems met while opening them."

    name: str  # for people
    place: str  # names the catalog: the same source, the same place
    shards: list[Shard]
    notes: Notes = field(default_factory=Notes)
    has_split: bool = False  # the source itself knows the split that was asked for

    def stamp(self) -> str:
        "Digest of every shard's stamp: a catalog made of other files is stale."
        digest = hashlib.blake2b(digest_size=16)
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
    columns = (image_column, caption_column)
    if hasattr(source, "features"):
        rows = Rows(source, "the dataset given", *columns)
        return Source("dataset", f"dataset {rows.mark}", [rows])
    paths = [as_path(p) for p in (source if isinstance(source, (list, tuple)) else [source])]
    if not paths or not all(p.exists() for p in paths):
        rows = Rows(load_hub(source, split), str(source), *columns)
        return Source(str(source), f"hub {source} {rows.mark}", [rows], has_split=True)
    out = Source(paths[0].resolve().name, " ".join(str(p.resolve()) for p in paths), [])
    if len(paths) == 1 and paths[0].is_dir():
        _add_folder(out, paths[0], split, columns)
    else:
        for path in paths:
            _add_file(out, path, columns)
    if not out.shards and not out.notes.problems:
        raise ValueError(
            f"load_captioned: source, got {out.name}, expected a folder, .tar, .parquet, .arrow, .csv, .tsv,"
            " .jsonl or COCO's .json"
        )
    return out


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
            " expected a folder, .tar, .parquet, .arrow, .csv, .tsv, .jsonl or COCO's .json"
        )
    try:
        table = open_table(path)
    except Exception as e:  # pyarrow and datasets raise many kinds
        return out.notes.problem(f"{kind[1:]} file damaged", f"{path.name}: {type(e).__name__}")
    out.shards.append(Rows(table, path.name, columns[0], columns[1], path))


def _add_folder(out: Source, folder: Path, split: str, columns: tuple):
    "A folder: saved by `datasets`, COCO's, or whatever pictures and shards lie in it."
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return _add_saved(out, folder, split, columns)
    if tables := _coco_tables(folder, split):
        out.has_split = True
        return _add_file(out, tables, columns)
    root, out.has_split = _split_folder(folder, split)
    table = next((root / t for t in TABLES if (root / t).is_file()), None)
    files = sorted(
        p
        for p in root.iterdir()
        if p.suffix.lower() in SHARDS and not is_hidden(p.name) and p.is_file()
    )
    shards, pictures = [p for p in files if not is_list_of_links(p)], _has_pictures(root)
    out.notes.ignored.update(["parquet without pictures"] * (len(files) - len(shards)))
    if table is not None or pictures or not shards:
        out.shards.append(Listed(table, root, *columns) if table else Folder(root, columns[1]))
    for path in shards:
        _add_file(out, path, columns)


def _has_pictures(root: Path) -> bool:
    "Is there a picture among the files below a folder?"
    return any(
        os.path.splitext(n)[1].lower() in SUFFIXES
        for _, names in walk(root, Notes())
        for n in names
    )


def _split_names(split: str) -> tuple[str, ...]:
    "A split as others call it."
    return SPLITS.get(split, (split,))


def _split_folder(root: Path, split: str) -> tuple[Path, bool]:
    "The subfolder of a split, or the whole folder."
    for name in _split_names(split):
        if (root / name).is_dir():
            return root / name, True
    return root, False


def _coco_tables(folder: Path, split: str) -> Path | None:
    "COCO's captions of a split, in a folder that holds its annotations."
    found = sorted((folder / "annotations").glob("captions_*.json"))
    if not found:
        return None
    begin = f"captions_{_split_names(split)[-1]}"
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


def _add_saved(out: Source, folder: Path, split: str, columns: tuple):
    "A dataset written by `save_to_disk`: its arrow files, in the order of its state."
    if (folder / "dataset_dict.json").exists():
        splits = json.loads((folder / "dataset_dict.json").read_bytes())["splits"]
        name = next((n for n in _split_names(split) if n in splits), None)
        if name is None:
            raise ValueError(
                f"load_captioned: split of {folder.name}, got {split!r}, expected one of {splits}"
            )
        folder, out.has_split = folder / name, True
    for file in json.loads((folder / "state.json").read_bytes())["_data_files"]:
        _add_file(out, folder / file["filename"], columns)


def load_hub(
    source,  # its name
    split: str,  # "train", "valid", "test", or the data set's own word
    **options,  # of `datasets.load_dataset`
):  # datasets.Dataset, or with streaming=True an iterable one
    "A data set named on the hub."
    import datasets

    if not isinstance(source, str) or source.count("/") > 1 or source.startswith((".", "/", "~")):
        raise ValueError(f"load_captioned: source, got {source}, which does not exist")
    names = _split_names(split)
    try:
        if len(names) > 1:
            split = next(
                (n for n in names if n in datasets.get_dataset__split_names(source)), split
            )
        return datasets.load_dataset(source, split=split, **options)
    except OSError as e:  # no such name, or no way to the hub
        raise ValueError(
            f"load_captioned: source, got {source!r}, which is no local path; and as a name on the hub: {e}"
        ) from e
