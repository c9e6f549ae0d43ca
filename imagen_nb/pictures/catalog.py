"""What a scan of a source found, written down once: one compact file, mapped into memory, shared by every process.

Layout: a digest of all that follows, three lengths, text, rows, JSON. A row is 42 bytes (`ROW`); its text is its name
and its captions, each ended by a zero byte.
"""

import collections
import copy
import functools
import hashlib
import json
import mmap
import os
import shutil
import struct
import tempfile
import warnings
from pathlib import Path

import numpy as np

from imagen_nb.pictures.cache import alone
from imagen_nb.pictures.decode import cause, decode_picture, probe, reason
from imagen_nb.pictures.shards import Found, Shard, keep_name
from imagen_nb.pictures.sources import Source
from imagen_nb.pictures.tables import clean_caption, clean_captions

ROW = np.dtype(
    [
        ("shard", "<u4"),
        ("start", "<u8"),
        ("length", "<u8"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("key", "<u4"),  # hash of the name: which side of a held-out share it falls on
        ("reason", "<u2"),  # 0: a picture; else a number of `reasons`
        ("end", "<u8"),  # where its text ends
    ]
)
CHECKS = ("nothing", "header", "all")  # what is read of a picture before it is written down
VERSION = 3  # of this layout: another one, another file
LENGTHS = struct.Struct("<3Q")  # bytes of text, rows, bytes of JSON
DIGEST = functools.partial(hashlib.blake2b, digest_size=16)
BEGIN = DIGEST().digest_size + LENGTHS.size  # where the text begins


class Catalog:
    "Rows of a catalog file, and the shards they were found in."

    def __init__(
        self,
        path: Path,  # of the file
        shards: list[Shard],  # of the source, in the order of the scan
    ):
        self.path, self.shards = path, shards
        with open(path, "rb") as f:
            self.map = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        text, rows, meta = LENGTHS.unpack(self.map[BEGIN - LENGTHS.size : BEGIN])
        self.rows = np.frombuffer(self.map, ROW, rows, BEGIN + text)
        self.meta = json.loads(self.map[len(self.map) - meta :])

    def __reduce__(self):
        return Catalog, (self.path, self.shards)

    def __len__(self) -> int:
        return len(self.rows)

    def _texts(self, row: int) -> list[bytes]:
        "Name and captions."
        begin = int(self.rows["end"][row - 1]) if row else 0
        return self.map[BEGIN + begin : BEGIN + int(self.rows["end"][row])].split(b"\0")[:-1]

    def name(self, row: int) -> str:
        "A picture's name, for people."
        return clean_caption(os.fsdecode(self._texts(row)[0]))

    def captions(self, row: int) -> list[str]:
        "All captions of a picture; none, or each in one line."
        return [text.decode() for text in self._texts(row)[1:]]

    def blob(self, row: int) -> bytes:
        "A picture's file, read where the scan found it."
        o, name = self.rows[row], os.fsdecode(self._texts(row)[0])
        return self.shards[o["shard"]].read(name, int(o["start"]), int(o["length"]))


def open_catalog(
    source: Source,  # what to look up
    options: tuple = (),  # what else its contents depend on: columns
    check: str = "header",  # one of `CHECKS`
    progress: bool = True,  # show a bar while it is built
) -> Catalog:
    "The catalog of a source: found in the cache, or built by the first process that needs it."
    if check not in CHECKS:
        raise ValueError(f"open_catalog: check, got {check!r}, expected one of {CHECKS}")
    words = repr((VERSION, source.place, options, check)).encode(errors="surrogateescape")
    key, stamp = hashlib.blake2b(words, digest_size=8).hexdigest(), source.stamp()
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in source.name.split("/")[-1])
    with alone(f"{name[:40]}-{key}.catalog") as path:
        if not _is_current(path, stamp):
            build_catalog(source, path, stamp, check, progress)
        return Catalog(path, source.shards)


def _is_current(path: Path, stamp: str) -> bool:
    "Is there a sound catalog of the files as they are now?"
    try:
        with open(path, "rb") as f:
            wanted = f.read(DIGEST().digest_size)
            is_sound = hashlib.file_digest(f, DIGEST).digest() == wanted
    except OSError:
        return False
    if not is_sound:
        warnings.warn(f"load_captioned: the catalog {path.name} is damaged; it is built again")
    return is_sound and Catalog(path, []).meta["stamp"] == stamp


def build_catalog(
    source: Source,  # what to scan
    path: Path,  # file to write; complete, or not there
    stamp: str,  # of the source, taken before the scan
    check: str = "header",  # one of `CHECKS`
    progress: bool = False,  # show a bar
):
    "Scan every shard and write down what was found; memory does not grow with the number of pictures."
    from tqdm.auto import tqdm

    new, notes = path.with_name(f"{path.name}.{os.getpid()}.new"), copy.deepcopy(source.notes)
    bar = tqdm(desc=source.name, unit="picture", delay=2, leave=False, disable=not progress)
    try:
        with open(new, "w+b") as file, tempfile.TemporaryFile() as rows, bar:
            writer = _Writer(file, rows)
            for k, shard in enumerate(source.shards):
                try:
                    for found in shard.scan(notes):
                        writer.add(k, found, *_look(shard, found, check))
                        bar.update()
                except OSError as e:
                    notes.problem(f"shard: {reason(e)}", shard.name)
            writer.close(dict(stamp=stamp, check=check, **vars(notes)))
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def _look(shard: Shard, found: Found, check: str) -> tuple[int, int, str, str]:
    "Width, height, why a picture cannot be used, and what is behind it."
    if found.problem or check == "nothing":
        return 0, 0, found.problem, ""
    read = functools.partial(shard.read, found.name, found.start, found.length)
    try:
        w, h = decode_picture(read()).size if check == "all" else probe(*found.ends(), read)
        return w, h, "", ""
    except (OSError, ValueError) as e:
        return 0, 0, reason(e), cause(e)


class _Writer:
    "Text goes to the file at once, rows to a second file that is appended at the end."

    def __init__(self, file, rows):
        self.file, self.rows, self.n, self.end = file, rows, 0, 0
        self.some: list[tuple] = []  # rows that are not written yet
        self.reasons, self.left_out, self.names = {"": 0}, collections.Counter(), {}
        self.kept = hashlib.blake2b(digest_size=8)  # of names and captions
        file.write(bytes(BEGIN))

    def add(self, shard: int, found: Found, width: int, height: int, why: str, behind: str):
        "Write down a picture."
        name = os.fsencode(found.name)
        text = b"\0".join([name, *(c.encode() for c in clean_captions(found.captions)), b""])
        if why:
            self.reasons.setdefault(why, len(self.reasons))
            self.left_out[why] += 1
            keep_name(self.names, why, found.name + behind)
        else:
            self.kept.update(text)
        self.file.write(text)
        self.n, self.end = self.n + 1, self.end + len(text)
        key = int.from_bytes(hashlib.blake2b(name, digest_size=4).digest(), "big")
        where = (shard, found.start, found.length)
        self.some.append((*where, width, height, key, self.reasons[why], self.end))
        if len(self.some) == 4096:
            self.flush()

    def flush(self):
        "Empty the memory."
        self.rows.write(np.array(self.some, ROW).tobytes())
        self.some = []

    def close(self, meta: dict):
        "Append rows and JSON, put lengths and digest in front, and make sure that all is on disk."
        self.flush()
        self.rows.seek(0)
        shutil.copyfileobj(self.rows, self.file)
        meta |= dict(reasons=list(self.reasons), left_out=self.left_out, names=self.names)
        blob = json.dumps(meta | dict(digest=self.kept.hexdigest())).encode()
        self.file.write(blob)
        self.file.seek(BEGIN - LENGTHS.size)
        self.file.write(LENGTHS.pack(self.end, self.n, len(blob)))
        self.file.seek(BEGIN - LENGTHS.size)
        digest = hashlib.file_digest(self.file, DIGEST).digest()
        self.file.seek(0)
        self.file.write(digest)
        self.file.flush()
        os.fsync(self.file.fileno())
