"""Where captioned pictures come from: folders, tables, tar shards, parquet and arrow files; and how one is decoded.

A shard is a folder, a table with files beside it, a tar, or a table of `datasets`. It can `scan` what it holds, `read`
one picture again from where it was found, and give the `stamp` by which a change is noticed. `imagen_nb.catalog`
writes down what a scan found; `imagen_nb.data` makes training pictures of it.
"""

import codecs
import collections
import csv
import hashlib
import io
import itertools
import json
import os
import re
import stat
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "MIN_SIDE",
    "SUFFIXES",
    "TEXT_COLUMNS",
    "FILE_COLUMNS",
    "UnreadablePicture",
    "decode_picture",
    "probe",
    "decode_text",
    "clean_caption",
    "Found",
    "Notes",
    "Folder",
    "Listed",
    "Tar",
    "Rows",
    "Source",
    "find_source",
]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # told by content, never by name
MAX_PIXELS = 89_478_485  # of a picture: a quarter of a gigabyte as RGB, where Pillow warns
MIN_SIDE = 16  # of a picture's shorter side, in pixels
MAX_FILE = 2**30  # bytes of a picture's file
HEAD, TAIL = 2**16, 16  # bytes read from both ends of a file to look at it
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TEXT_COLUMNS = ("text", "caption", "captions", "prompt", "sentence", "description", "sentences")
FILE_COLUMNS = ("file_name", "image", "image_path", "path", "file", "filename", "filepath")
TABLES = ("metadata.jsonl", "metadata.csv")
SHARDS = (".tar", ".parquet", ".arrow")


# ---------------------------------------------------------------- pictures and captions


class UnreadablePicture(ValueError):
    "What cannot become an RGB picture with a caption; the message is the reason."


def decode_picture(
    blob: bytes,  # a whole image file
):  # PIL.Image, RGB, upright; transparency on white
    "Decode the first frame of a picture; anything else raises `UnreadablePicture`."
    from PIL import ImageOps

    return _opened(blob, lambda image: _rgb(ImageOps.exif_transpose(image)))


def probe(
    head: bytes,  # the first bytes of a file, or all of it
    tail: bytes,  # its last bytes
    read: Callable[[], bytes],  # gives the whole file, where its ends leave a doubt
) -> tuple[int, int]:  # width and height
    "Size of a picture from its header. A file that does not end as its format ends is decoded to be sure."
    if len(head) == HEAD and head[:4] in (b"RIFF", b"II*\0", b"MM\0*"):
        head = read()
    if not _is_complete(head, tail):
        return decode_picture(read()).size
    if size := _jpeg_size(head) if head[:2] == b"\xff\xd8" else _png_size(head):
        _check_size(*size)
        return size
    try:
        return _opened(head, lambda image: image.size)
    except UnreadablePicture:
        if len(head) < HEAD:
            raise
        return decode_picture(read()).size  # a long header


def _is_complete(head: bytes, tail: bytes) -> bool:
    "Does a file end with its format's end mark?"
    if head[:2] == b"\xff\xd8":
        return tail.endswith(b"\xff\xd9")
    if head[:4] == b"\x89PNG":
        return tail.endswith(b"IEND\xaeB`\x82")
    if head[:4] == b"RIFF":
        return int.from_bytes(head[4:8], "little") + 8 == len(head)
    return False


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    "Width and height from a JPEG's frame header; None leaves it to Pillow, which takes ten times as long."
    at = 2
    while at + 9 < len(head) and head[at] == 0xFF:
        mark = head[at + 1]
        if mark in (0xC0, 0xC1, 0xC2):
            h, w = (
                int.from_bytes(head[at + 5 : at + 7], "big"),
                int.from_bytes(head[at + 7 : at + 9], "big"),
            )
            return (w, h) if w and h and head[at + 4] == 8 and head[at + 9] in (1, 3, 4) else None
        if not (0xC4 == mark or 0xDB <= mark <= 0xFE):
            return None
        at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")


def _png_size(head: bytes) -> tuple[int, int] | None:
    "Width and height of a PNG whose header's check sum is right."
    if head[:16] != b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" or zlib.crc32(head[12:29]) != int.from_bytes(
        head[29:33], "big"
    ):
        return None
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def _check_size(w: int, h: int):
    "Refuse what is too large or too small."
    if w * h > MAX_PIXELS:
        raise UnreadablePicture(f"more than {MAX_PIXELS:,} pixels")
    if min(w, h) < MIN_SIDE:
        raise UnreadablePicture(f"shorter side under {MIN_SIDE} pixels")


def _opened(blob: bytes, work: Callable):
    "What `work` makes of a picture whose header is sound; `UnreadablePicture` if that fails."
    from PIL import Image

    if not blob:
        raise UnreadablePicture("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(blob), formats=FORMATS)
            _check_header(image)
            return work(image)
    except Image.DecompressionBombError:
        raise UnreadablePicture(f"more than {MAX_PIXELS:,} pixels") from None
    except Image.UnidentifiedImageError:
        raise UnreadablePicture("not JPEG, PNG, WebP, BMP, GIF or TIFF") from None
    except UnreadablePicture:
        raise
    except Exception as e:  # Pillow's decoders raise many kinds
        raise UnreadablePicture("truncated or damaged") from e


def _check_header(image):
    "Refuse before decoding what is too large, too small, or in numbers without a known range."
    _check_size(*image.size)
    if image.mode in ("F", "LAB") or image.mode == "I" and image.format == "TIFF":
        raise UnreadablePicture(f"pixels without a known range (mode {image.mode})")


def _rgb(image):
    "RGB on white, from any mode that `_check_header` lets pass."
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits in one channel: 65535 becomes 255
        levels = (np.asarray(image).astype("int64") + 128) // 257
        return Image.fromarray(levels.astype("uint8")).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def reason(error: Exception) -> str:
    "Why a row is left out, in the words of the decoder or of the system."
    named = error if isinstance(error, UnreadablePicture) else getattr(error, "strerror", None)
    return str(named or "unreadable file")


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


def lines_of(text: str) -> list[str]:
    "Captions of a text file: one in each line that is not blank."
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()]


def captions_of(value) -> list[str]:
    "Captions in a table's cell: a text, a list of them, the digits of a number, nothing of null."
    if isinstance(value, (list, tuple)):
        return [text for part in value for text in captions_of(part)]
    if isinstance(value, dict):
        raise UnreadablePicture("caption that is no text")
    return (
        [] if value is None or value != value else [str(value)]
    )  # a float that is no number: null


# ---------------------------------------------------------------- what a scan finds


class Found(NamedTuple):
    "A picture a scan came upon."

    name: str  # for people; in a folder also the path
    start: int  # first byte in a tar, row of a table, else 0
    length: int  # bytes of its file; 0 where that is not known
    captions: list[str]  # as they were found
    problem: str  # why it cannot be used, or ""
    ends: Callable[[], tuple[bytes, bytes]]  # the first and the last bytes of its file


@dataclass
class Notes:
    "What a scan met besides pictures."

    problems: collections.Counter = field(default_factory=collections.Counter)  # reason -> how many
    examples: dict = field(default_factory=dict)  # reason -> up to three names
    ignored: collections.Counter = field(
        default_factory=collections.Counter
    )  # what is no picture -> how many
    lost: int = 0  # bytes between sound members of tars

    def problem(self, why: str, name: str):
        "Count a problem and keep a few names."
        self.problems[why] += 1
        names = self.examples.setdefault(why, [])
        if len(names) < 3:
            names.append(clean_caption(name))


def _stamp(path: Path) -> str:
    "Name, size and time of a file: another one, another stamp."
    info = os.stat(path)
    return f"{path.name} {info.st_size} {info.st_mtime_ns}"


def _open(path: Path):
    "A regular file for reading; a pipe would wait forever, a device never end."
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):
        raise UnreadablePicture("not a regular file")
    if info.st_size > MAX_FILE:
        raise UnreadablePicture("file over 1 GB")
    return open(path, "rb")


def _read_file(path: Path) -> bytes:
    with _open(path) as f:
        return f.read()


def _file_ends(path: Path) -> tuple[bytes, bytes]:
    "Both ends of a file."
    with _open(path) as f:
        head = f.read(HEAD)
        if len(head) < HEAD:
            return head, head[-TAIL:]
        f.seek(-TAIL, os.SEEK_END)
        return head, f.read(TAIL)


# ---------------------------------------------------------------- folders


class Folder:
    "Picture files, each with its captions in a .txt or .json file beside it."

    def __init__(self, root: Path, caption_column: str | None = None):
        self.root, self.name, self.column = root, root.name, caption_column

    def stamp(self):
        "Every file below, by name, size and time."
        for folder, names in _walk(self.root, Notes()):
            for name in names:
                try:
                    info = os.stat(self.root / folder / name)
                except OSError:
                    continue  # a link to nowhere
                yield f"{os.path.join(folder, name)} {info.st_size} {info.st_mtime_ns}"

    def scan(self, notes: Notes):
        for folder, names in _walk(self.root, notes):
            texts = {}
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
        path, captions, problem = self.root / file, [], ""
        try:
            captions = self._captions(text) if text else []
        except (OSError, ValueError) as e:
            problem = reason(e)
        return Found(file, 0, 0, captions, problem, lambda: _file_ends(path))

    def _captions(self, text: str) -> list[str]:
        blob = _read_file(self.root / text)
        return (
            lines_of(decode_text(blob))
            if text.lower().endswith(".txt")
            else _json_captions(blob, self.column)
        )

    def read(self, name: str, start: int, length: int) -> bytes:
        "The file of a picture."
        return _read_file(self.root / name)


def _json_captions(blob: bytes, column: str | None) -> list[str]:
    "Captions in the .json that goes with a picture; none if it holds no such column."
    try:
        row = json.loads(decode_text(blob))
    except (ValueError, RecursionError):
        raise UnreadablePicture("caption file that is not JSON") from None
    if not isinstance(row, dict):
        return []
    names = TEXT_COLUMNS if column is None else (column,)
    return captions_of(next((row[c] for c in names if c in row), None))


def _walk(root: Path, notes: Notes, folder: str = ""):
    "Folders below a root with the names of their files, in order, one folder in memory at a time."
    try:
        with os.scandir(root / folder) as entries:
            entries = sorted(entries, key=lambda e: e.name)
    except OSError as e:
        return notes.problem(f"folder: {reason(e)}", folder or root.name)
    hidden = [e for e in entries if _is_hidden(e.name)]
    notes.ignored.update(["hidden"] * len(hidden))
    entries = [e for e in entries if not _is_hidden(e.name)]
    inner = [e for e in entries if e.is_dir(follow_symlinks=False)]
    linked = [e for e in entries if e.is_symlink() and os.path.isdir(e.path)]
    notes.ignored.update(["linked folders"] * len(linked))
    apart = {e.name for e in inner + linked}
    yield folder, [e.name for e in entries if e.name not in apart]
    for e in inner:
        yield from _walk(root, notes, os.path.join(folder, e.name))


def _is_hidden(*names: str) -> bool:
    "Is one of these parts of a path hidden, or macOS's folder of leftovers?"
    return any(n == "__MACOSX" or n[0] == "." and n.strip(".") for n in names if n)


# ---------------------------------------------------------------- tables with files beside them


class Listed(Folder):
    "Pictures named in a table: .jsonl, .csv, .tsv, or COCO's annotations."

    def __init__(
        self,
        table: Path,
        root: Path,
        image_column: str | None = None,
        caption_column: str | None = None,
    ):
        super().__init__(root, caption_column)
        self.table, self.name, self.image = table, table.name, image_column

    def stamp(self):
        yield _stamp(self.table)
        yield from super().stamp()

    def scan(self, notes: Notes):
        rows = _table(self.table)
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
            yield Found(name, 0, 0, captions, "", lambda name=name: _file_ends(self.root / name))
        if not seen:
            first = [
                f", first: {names[0]}: {why}"
                for why, names in notes.examples.items()
                if names[0].startswith(self.name)
            ]
            raise ValueError(
                f"load_captioned: {self.name}, got no sound row of {count}{''.join(first[:1])};"
                " expected a file_name in every row"
            )
        self._count_others(files, notes)

    def _count_others(self, files: set, notes: Notes):
        "Count the files that no row names."
        for folder, names in _walk(self.root, notes):
            paths = ((n, os.path.join(folder, n)) for n in names)
            notes.ignored.update(
                os.path.splitext(n)[1] or n
                for n, path in paths
                if _hash(path) not in files
                and self.root / path != self.table
                and not n.lower().endswith(SHARDS)
            )


def _hash(*parts: str) -> int:
    return int.from_bytes(
        hashlib.blake2b("\0".join(parts).encode(errors="surrogatepass"), digest_size=8).digest(),
        "big",
    )


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


def _table(path: Path):
    "(line number, row) of a table; a row that is no dictionary cannot be parsed."
    if path.suffix.lower() == ".json":
        return _coco(path)
    return _jsonl(path) if path.suffix.lower() == ".jsonl" else _csv(path)


def _open_text(path: Path):
    with open(path, "rb") as f:
        head = f.read(2)
    return open(
        path,
        encoding=_encoding(head),
        errors="replace",
        newline="\n" if path.suffix.lower() == ".jsonl" else "",
    )


def _jsonl(path: Path):
    with _open_text(path) as f:
        for line, row in enumerate(f, 1):
            if not row.strip():
                continue
            try:
                yield line, json.loads(row)
            except (ValueError, RecursionError):
                yield line, None


def _csv(path: Path):
    "Rows as dictionaries; None where quotes do not match or a field is endless."
    with _open_text(path) as f:
        reader = csv.DictReader(
            f, strict=True, delimiter="\t" if path.suffix.lower() == ".tsv" else ","
        )
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error:
                row = None
            yield reader.line_num, row


def _coco(path: Path):
    "Pictures of COCO's annotations with all their captions, in the order of the file."
    data = json.loads(path.read_bytes())
    if not isinstance(data, dict) or not {"images", "annotations"} <= data.keys():
        raise ValueError(
            f"load_captioned: {path.name}, got {sorted(data)[:5] if isinstance(data, dict) else type(data).__name__},"
            " expected COCO's images and annotations"
        )
    captions = collections.defaultdict(list)
    for a in data["annotations"]:
        captions[a.get("image_id")].append(a.get("caption"))
    for k, image in enumerate(data["images"], 1):
        is_row = isinstance(image, dict)
        yield (
            k,
            dict(file_name=image.get("file_name"), text=captions[image.get("id")])
            if is_row
            else None,
        )


def find_column(columns, wanted: str | None, source) -> str:
    "The caption column: the wanted one, or the first with a usual name."
    found = next((c for c in (TEXT_COLUMNS if wanted is None else (wanted,)) if c in columns), None)
    if found is None:
        raise ValueError(
            f"load_captioned: caption_column of {source}, got {wanted!r}, expected one of {sorted(columns)}"
        )
    return found


# ---------------------------------------------------------------- tar shards


class Tar:
    "A tar in webdataset's layout: members of one key, which is the path up to the first dot of the name, belong together."

    def __init__(self, path: Path, caption_column: str | None = None):
        self.path, self.name, self.column = path, path.name, caption_column

    def stamp(self):
        yield _stamp(self.path)

    def scan(self, notes: Notes):
        found = {}
        with open(self.path, "rb") as f:
            for member in tar_members(f, self.name, notes):
                self._add(found, *member, notes)
            for key, parts in found.items():
                if "image" in parts:
                    yield self._found(f, key, parts)

    def _add(self, found: dict, name: str, start: int, length: int, is_file: bool, notes: Notes):
        key, end = re.fullmatch(r"((?:.*/)?[^./]*)\.?(.*)", name, re.S).groups()
        end = end.lower()
        kind = end if end in ("txt", "json") else f".{end}" in SUFFIXES and "image"
        if _is_hidden(*name.split("/")):
            notes.ignored["hidden"] += 1
        elif not kind or not is_file:
            notes.ignored[f".{end}" if is_file else "folders and links"] += 1
        elif kind in found.setdefault(key, {}):
            notes.problem(f"second {kind} of one key", f"{self.name}: {name}")
        else:
            found[key][kind] = (start, length)

    def _found(self, f, key: str, parts: dict) -> Found:
        (start, length), captions, problem = parts["image"], [], ""
        try:
            captions = self._captions(f, parts)
        except (OSError, ValueError) as e:
            problem = reason(e)
        return Found(
            clean_caption(f"{self.name}: {key}"),
            start,
            length,
            captions,
            problem,
            lambda: _part_ends(f, start, length),
        )

    def _captions(self, f, parts: dict) -> list[str]:
        if "json" in parts and (self.column is not None or "txt" not in parts):
            return _json_captions(_part(f, *parts["json"]), self.column)
        return lines_of(decode_text(_part(f, *parts["txt"]))) if "txt" in parts else []

    def read(self, name: str, start: int, length: int) -> bytes:
        "A member, from where it starts."
        with open(self.path, "rb") as f:
            return _part(f, start, length)


def _part(f, start: int, length: int) -> bytes:
    if length > MAX_FILE:
        raise UnreadablePicture("file over 1 GB")
    f.seek(start)
    return f.read(length)


def _part_ends(f, start: int, length: int) -> tuple[bytes, bytes]:
    head = _part(f, start, min(length, HEAD))
    return (head, head[-TAIL:]) if length <= HEAD else (head, _part(f, start + length - TAIL, TAIL))


def tar_members(f, name: str, notes: Notes):
    "(name, start, length, is it a file) of each member; what lies between two sound headers is counted as lost."
    size, at, safe, long = (
        os.fstat(f.fileno()).st_size,
        0,
        0,
        {},
    )  # safe: behind the last sound header
    while at < size:
        f.seek(at)
        header = _tar_header(block := f.read(512))
        is_whole = header is not None and at + 512 + int(long.get("size", header[1])) <= size
        if not is_whole:
            if header is not None:
                safe = at + 512
            elif not block.strip(b"\0"):
                safe = at
            if (beyond := _next_header(f, safe)) is None:
                return (
                    _tar_end(block, size, at, name, notes)
                    if header is None
                    else _lost(name, at, size - at, notes)
                )
            begin = min(at, safe) if beyond <= at else at
            if (
                block.strip(b"\0") or beyond - begin > 20 * 512
            ):  # zeros alone are where two tars were joined
                _lost(name, begin, beyond - begin, notes)
            at, long = beyond, {}
            continue
        member, length, kind = header
        if kind in "xgLK":
            text = f.read(min(length, 2**20))
            if kind in "xL":
                long |= (
                    _pax(text)
                    if kind == "x"
                    else {"path": text.rstrip(b"\0").decode(errors="surrogateescape")}
                )
        else:
            is_file, length = kind in "0\0007S", int(long.get("size", length))
            yield long.get("path", member), at + 512, length, is_file
            length, long = length * is_file, {}
        safe = at + 512
        at += 512 + (length + 511) // 512 * 512
    notes.problem("tar file without its end", name)


def _tar_end(block: bytes, size: int, at: int, name: str, notes: Notes):
    "No header follows: the end of a tar is two blocks of zeros."
    if at == 0:
        return notes.problem("tar file compressed, or damaged from its start", name)
    if block.strip(b"\0"):
        return _lost(name, at, size - at, notes)
    if size - at < 1024:
        notes.problem("tar file without its end", name)


def _lost(name: str, at: int, n: int, notes: Notes):
    notes.lost += n
    notes.problem("part of a tar file damaged or cut off", f"{name}: {n:,} bytes from {at:,} on")


def _tar_header(block: bytes) -> tuple[str, int, str] | None:
    "Name, length and kind of a member; None if this is no header."
    if len(block) < 512 or not block.strip(b"\0"):
        return None
    try:
        total = int(block[148:156].strip(b" \0") or b"-1", 8)
    except ValueError:
        return None
    if total != sum(block) - sum(block[148:156]) + 8 * 32:
        return None
    name, prefix = (
        block[a:b].split(b"\0", 1)[0].decode(errors="surrogateescape")
        for a, b in ((0, 100), (345, 500))
    )
    is_posix = block[257:263] == b"ustar\0"
    try:
        length = (
            int.from_bytes(block[125:136], "big")
            if block[124] & 0x80
            else int(block[124:136].strip(b" \0") or b"0", 8)
        )
    except ValueError:
        return None
    return f"{prefix}/{name}" if prefix and is_posix else name, length, chr(block[156])


def _pax(text: bytes) -> dict:
    "Long names and sizes of the member that follows."
    out = {}
    for key, value in re.findall(rb"\d+ (path|size)=([^\n]*)\n", text):
        out[key.decode()] = value.decode(errors="surrogateescape")
    return out


def _next_header(f, at: int) -> int | None:
    "Where the next sound header begins, at byte `at` or later; None if there is none."
    step, overlap = 2**20, 512
    while True:
        f.seek(at)
        chunk = f.read(step + overlap)
        for match in re.finditer(b"ustar", chunk):
            begin = match.start() - 257
            if begin >= 0 and _tar_header(chunk[begin : begin + 512]) is not None:
                return at + begin
        if len(chunk) < step + overlap:
            return None
        at += step


# ---------------------------------------------------------------- tables of `datasets`


class Rows:
    "Rows of a `datasets.Dataset`: pictures stay encoded until they are asked for."

    def __init__(
        self,
        table,
        name: str,
        image_column: str | None = None,
        caption_column: str | None = None,
        path: Path | None = None,
    ):
        import datasets

        self.name, self.path, self.mark = name, path, f"{table._fingerprint} {len(table)}"
        self.image, self.text = table_columns(table.features, image_column, caption_column, name)
        if isinstance(table.features[self.image], datasets.Image):
            table = table.cast_column(self.image, datasets.Image(decode=False))
        self.table = table.select_columns([self.image, self.text])

    def stamp(self):
        yield self.mark if self.path is None else _stamp(self.path)

    def scan(self, notes: Notes):
        step = 64
        for first in range(0, len(self.table), step):
            rows = self.table[first : first + step]
            for k, (value, text) in enumerate(zip(rows[self.image], rows[self.text])):
                yield self._found(first + k, value, text)

    def _found(self, row: int, value, text) -> Found:
        captions, problem = [], ""
        try:
            captions = captions_of(text)
        except UnreadablePicture as e:
            problem = str(e)

        def ends():
            blob = self._blob(value)
            return (blob, blob[-TAIL:]) if len(blob) <= HEAD else (blob[:HEAD], blob[-TAIL:])

        name = f"row {row}" if self.path is None else f"{self.name}: row {row}"
        return Found(name, row, 0, captions, problem, ends)

    def read(self, name: str, start: int, length: int) -> bytes:
        "The picture of a row."
        return self._blob(self.table[start][self.image])

    def _blob(self, value) -> bytes:
        if isinstance(value, dict):
            value = value["bytes"] if value.get("bytes") is not None else value["path"]
        if isinstance(value, str):
            return _read_file((self.path.parent if self.path else Path()) / value)
        return value or b""


def table_columns(
    features, image_column: str | None, caption_column: str | None, name: str
) -> tuple[str, str]:
    "Image and caption column of a table, given or guessed from their types."
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


# ---------------------------------------------------------------- what a name stands for


@dataclass
class Source:
    "Shards of one split, and the problems met while opening them."

    name: str  # for people
    place: str  # names the catalog: the same source, the same place
    shards: list
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
    paths = [Path(p) for p in (source if isinstance(source, (list, tuple)) else [source])]
    if not paths or not all(p.exists() for p in paths):
        rows = Rows(load_hub(source, split), str(source), *columns)
        return Source(str(source), f"hub {source} {rows.mark}", [rows], has_split=True)
    out = Source(paths[0].resolve().name, " ".join(str(p.resolve()) for p in paths), [])
    if len(paths) == 1 and paths[0].is_dir():
        _add_folder(out, paths[0], split, *columns)
    else:
        for path in paths:
            _add_file(out, path, split, *columns)
    if not out.shards and not out.notes.problems:
        raise ValueError(
            f"load_captioned: source, got {out.name}, expected a folder, .tar, .parquet, .arrow, .csv, .tsv,"
            " .jsonl or COCO's .json"
        )
    return out


def _add_file(out: Source, path: Path, split: str, image_column, caption_column):
    "One file as a shard; a damaged one is noted and the others go on."
    kind, columns = path.suffix.lower(), (image_column, caption_column)
    if kind == ".tar":
        return out.shards.append(Tar(path, caption_column))
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
    out.shards.append(Rows(table, path.name, *columns, path=path))


def _add_folder(out: Source, folder: Path, split: str, image_column, caption_column):
    "A folder: saved by `datasets`, COCO's, or whatever pictures and shards lie in it."
    columns = (image_column, caption_column)
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return _add_saved(out, folder, split, *columns)
    if tables := _coco_tables(folder, split):
        out.has_split = True
        return _add_file(out, tables, split, *columns)
    root, out.has_split = _split_folder(folder, split)
    table = next((root / t for t in TABLES if (root / t).is_file()), None)
    files = sorted(
        p
        for p in root.iterdir()
        if p.suffix.lower() in SHARDS and not _is_hidden(p.name) and p.is_file()
    )
    shards, pictures = [p for p in files if not _is_list_of_links(p)], _has_pictures(root)
    out.notes.ignored.update(["parquet without pictures"] * (len(files) - len(shards)))
    if table is not None or pictures or not shards:
        out.shards.append(
            Listed(table, root, *columns) if table is not None else Folder(root, caption_column)
        )
    for path in shards:
        _add_file(out, path, split, *columns)


def _has_pictures(root: Path) -> bool:
    "Is there a picture among the files below a folder?"
    return any(
        os.path.splitext(n)[1].lower() in SUFFIXES
        for _, names in _walk(root, Notes())
        for n in names
    )


def _is_list_of_links(path: Path) -> bool:
    "img2dataset leaves beside every tar or folder a parquet of the same name with what it knows of each URL, no pictures."
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


def _split_folder(root: Path, split: str) -> tuple[Path, bool]:
    "The subfolder of a split, or the whole folder."
    for name in SPLIT_NAMES.get(split, (split,)):
        if (root / name).is_dir():
            return root / name, True
    return root, False


SPLIT_NAMES = {
    "train": ("train",),
    "valid": ("valid", "validation", "val"),
    "test": ("test",),
}  # as others call them


def _coco_tables(folder: Path, split: str) -> Path | None:
    "COCO's captions of a split, in a folder that holds its annotations."
    found = (
        sorted((folder / "annotations").glob("captions_*.json"))
        if (folder / "annotations").is_dir()
        else []
    )
    if not found:
        return None
    ours = [
        p
        for p in found
        if p.stem.removeprefix("captions_").startswith(SPLIT_NAMES.get(split, (split,))[-1])
    ]
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


def _add_saved(out: Source, folder: Path, split: str, image_column, caption_column):
    "A dataset written by `save_to_disk`: its arrow files, in the order of its state."
    if (folder / "dataset_dict.json").exists():
        splits = json.loads((folder / "dataset_dict.json").read_bytes())["splits"]
        name = next((n for n in SPLIT_NAMES.get(split, (split,)) if n in splits), None)
        if name is None:
            raise ValueError(
                f"load_captioned: split of {folder.name}, got {split!r}, expected one of {splits}"
            )
        folder, out.has_split = folder / name, True
    for file in json.loads((folder / "state.json").read_bytes())["_data_files"]:
        _add_file(out, folder / file["filename"], split, image_column, caption_column)


def open_table(path: Path):
    "A parquet file, which `datasets` copies once into its cache as arrow; or an arrow file, mapped where it is."
    import datasets

    if path.suffix.lower() == ".arrow":
        return datasets.Dataset.from_file(str(path))
    with _quiet(datasets):
        return datasets.Dataset.from_parquet(str(path))


class _quiet:
    "No bars and no logged traceback of `datasets`."

    def __init__(self, datasets):
        self.bars, self.logs = datasets.utils, datasets.logging

    def __enter__(self):
        self.was_shown, self.level = (
            not self.bars.are_progress_bars_disabled(),
            self.logs.get_verbosity(),
        )
        self.bars.disable_progress_bars()
        self.logs.set_verbosity(50)

    def __exit__(self, *_):
        if self.was_shown:
            self.bars.enable_progress_bars()
        self.logs.set_verbosity(self.level)


def load_hub(source, split: str, **options):
    "A dataset named on the hub."
    import datasets

    if not isinstance(source, str) or source.count("/") > 1 or source.startswith((".", "/", "~")):
        raise ValueError(f"load_captioned: source, got {source}, which does not exist")
    names = SPLIT_NAMES.get(split, (split,))
    try:
        if len(names) > 1:
            split = next((n for n in names if n in datasets.get_dataset_split_names(source)), split)
        return datasets.load_dataset(source, split=split, **options)
    except OSError as e:  # no such name, or no way to the hub
        raise ValueError(
            f"load_captioned: source, got {source!r}, which is no local path; and as a name on the hub: {e}"
        ) from e
