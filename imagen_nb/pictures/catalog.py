"""What a scan of a source found, written down once: one compact file, mapped into memory, shared by every process.

Layout: MAGIC, text, rows, JSON, tail. A row is 42 bytes (`ROW`); its text is its name and its captions, each ended by a
zero byte. The tail says how long the parts are and holds a digest of all that is before it.
"""

import collections
import contextlib
import hashlib
import json
import mmap
import os
import struct
import tempfile
import warnings
from pathlib import Path

import numpy as np

from imagen_nb.pictures.decode import decode_picture, probe, reason
from imagen_nb.pictures.shards import Notes
from imagen_nb.pictures.sources import Source
from imagen_nb.pictures.tables import clean_caption
from imagen_nb.store.files import cache_folder

__all__ = ["ROW", "CHECKS", "Catalog", "cache_folder", "open_catalog", "build_catalog"]

MAGIC, TAIL, VERSION = b"imgcat01", struct.Struct("<QQQ16s"), 1
ROW = np.dtype(
    [
        ("shard", "<u4"),
        ("start", "<u8"),
        ("length", "<u8"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("key", "<u4"),  # hash of the name: which side of a held-out share it falls on
        ("reason", "<u2"),  # 0: a picture; else a number of `reasons`
        ("end", "<u8"),
    ]
)  # where its text ends
CHECKS = ("nothing", "header", "all")  # what is read of a picture before it is written down


class Catalog:
    "Rows of a catalog file, and the shards they were found in."

    def __init__(self, path: Path, shards: list):
        self.path, self.shards = Path(path), shards
        with open(self.path, "rb") as f:
            self.map = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        text, rows, meta, digest = _lengths(self.map)
        begin = len(MAGIC) + text
        self.rows = np.frombuffer(self.map, ROW, rows, begin)
        self.meta = json.loads(
            self.map[begin + rows * ROW.itemsize : begin + rows * ROW.itemsize + meta]
        )

    def __reduce__(self):
        return Catalog, (self.path, self.shards)

    def __len__(self):
        return len(self.rows)

    def _texts(self, row: int) -> list[bytes]:
        "Name and captions."
        begin = int(self.rows["end"][row - 1]) if row else 0
        return self.map[len(MAGIC) + begin : len(MAGIC) + int(self.rows["end"][row])].split(b"\0")[
            :-1
        ]

    def name(self, row: int) -> str:
        "A picture's name, for people."
        return clean_caption(os.fsdecode(self._texts(row)[0]))

    def captions(self, row: int) -> list[str]:
        "All captions of a picture; none, or each in one line."
        return [text.decode() for text in self._texts(row)[1:]]

    def blob(self, row: int) -> bytes:
        "A picture's file, read where the scan found it."
        o = self.rows[row]
        return self.shards[o["shard"]].read(
            os.fsdecode(self._texts(row)[0]), int(o["start"]), int(o["length"])
        )

    def sizes(self) -> np.ndarray:
        "Shorter sides of the pictures that can be used; 0 where headers were not read."
        sound = self.rows[self.rows["reason"] == 0]
        return np.minimum(sound["width"], sound["height"])


def open_catalog(
    source: Source,  # what to look up
    options: tuple = (),  # what else its contents depend on: columns
    check: str = "header",  # one of `CHECKS`
    progress: bool = True,  # show a bar while it is built
) -> Catalog:
    "The catalog of a source: found in the cache, or built by the first process that needs it."
    if check not in CHECKS:
        raise ValueError(f"open_catalog: check, got {check!r}, expected one of {CHECKS}")
    key = hashlib.blake2b(
        repr((source.place, options, check)).encode(errors="surrogateescape"), digest_size=8
    ).hexdigest()
    stamp, name = (
        source.stamp(),
        "".join(c if c.isalnum() or c in "-_" else "-" for c in source.name.split("/")[-1])[:40],
    )
    with _alone(f"{name}-{key}.catalog") as path:
        if not _is_current(path, stamp):
            build_catalog(source, path, stamp, check, progress)
        return Catalog(path, source.shards)


@contextlib.contextmanager
def _alone(name: str):
    "Path of a file in the cache, held by this process alone; in a temporary folder where there can be no cache."
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / f"{name}.lock", "w")
    except OSError as e:
        folder = Path(tempfile.mkdtemp(prefix="imagen_nb-"))
        warnings.warn(
            f"load_captioned: no catalog can be kept in {cache_folder()} ({e.strerror}); the pictures are looked"
            " through again each time. Name another folder in IMAGEN_NB_CACHE"
        )
        yield folder / name
        return
    with lock:
        with contextlib.suppress(
            ImportError, OSError
        ):  # without locks two processes write the same file, one after the other
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder / name


def _lengths(data) -> tuple[int, int, int, bytes]:
    "Bytes of text, number of rows, bytes of JSON, digest."
    return TAIL.unpack(data[-TAIL.size :])


def _is_current(path: Path, stamp: str) -> bool:
    "Is there a sound catalog of the files as they are now?"
    try:
        data = path.open("rb")
    except OSError:
        return False
    with data:
        what = _damage(data, path.stat().st_size)
        if what:
            warnings.warn(
                f"load_captioned: the catalog {path.name} is damaged ({what}); it is built again"
            )
        return not what and _meta(data)["stamp"] == stamp


def _damage(f, size: int) -> str:
    "What is wrong with a catalog file, or nothing."
    if size < len(MAGIC) + TAIL.size:
        return f"{size} bytes"
    f.seek(size - TAIL.size)
    text, rows, meta, wanted = TAIL.unpack(f.read())
    f.seek(0)
    if (
        f.read(len(MAGIC)) != MAGIC
        or len(MAGIC) + text + rows * ROW.itemsize + meta + TAIL.size != size
    ):
        return "lengths"
    f.seek(0)
    digest, left = hashlib.blake2b(digest_size=16), size - 16
    while left:
        part = f.read(min(left, 2**22))
        digest.update(part)
        left -= len(part)
    return "" if digest.digest() == wanted else "digest"


def _meta(f) -> dict:
    f.seek(-TAIL.size, os.SEEK_END)
    end, (_, _, meta, _) = f.tell(), TAIL.unpack(f.read())
    f.seek(end - meta)
    return json.loads(f.read(meta))


def build_catalog(
    source: Source,  # what to scan
    path: Path,  # file to write; complete, or not there
    stamp: str,  # of the source, taken before the scan
    check: str = "header",  # one of `CHECKS`
    progress: bool = False,  # show a bar
):
    "Scan every shard and write down what was found; memory does not grow with the number of pictures."
    from tqdm.auto import tqdm

    new, notes = path.with_name(f"{path.name}.{os.getpid()}.new"), Notes()
    notes.problems.update(source.notes.problems)
    notes.ignored.update(source.notes.ignored)
    notes.examples.update({k: list(v) for k, v in source.notes.examples.items()})
    try:
        with (
            open(new, "wb") as f,
            tempfile.TemporaryFile() as rows,
            tqdm(
                desc=source.name, unit="picture", delay=2, leave=False, disable=not progress
            ) as bar,
        ):
            writer = _Writer(f, rows)
            for k, shard in enumerate(source.shards):
                try:
                    for found in shard.scan(notes):
                        writer.add(k, found, *_look(shard, found, check))
                        bar.update()
                except OSError as e:
                    notes.problem(f"shard: {reason(e)}", shard.name)
            writer.close(
                dict(
                    version=VERSION,
                    stamp=stamp,
                    check=check,
                    problems=notes.problems,
                    examples=notes.examples,
                    ignored=notes.ignored,
                    lost=notes.lost,
                )
            )
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def _look(shard, found, check: str) -> tuple[int, int, str]:
    "Width, height, and why a picture cannot be used."
    if found.problem or check == "nothing":
        return 0, 0, found.problem

    def read():
        return shard.read(found.name, found.start, found.length)

    try:
        if check == "all":
            return *decode_picture(read()).size, ""
        return *probe(*found.ends(), read), ""
    except (OSError, ValueError) as e:
        return 0, 0, reason(e)


class _Writer:
    "Text goes to the file at once, rows to a second file that is appended at the end."

    def __init__(self, file, rows):
        self.file, self.rows, self.digest = file, rows, hashlib.blake2b(digest_size=16)
        self.reasons, self.left_out, self.names = {"": 0}, collections.Counter(), {}
        self.kept, self.some, self.end, self.text, self.n = (
            hashlib.blake2b(digest_size=8),
            [],
            0,
            [],
            0,
        )
        self.write(MAGIC)

    def write(self, data: bytes):
        self.file.write(data)
        self.digest.update(data)

    def add(self, shard: int, found, width: int, height: int, why: str):
        parts = [os.fsencode(found.name)] + [
            c.encode() for c in map(clean_caption, found.captions) if c
        ]
        text = b"\0".join(parts) + b"\0"
        if why:
            self._leave_out(why, found.name)
        else:
            self.kept.update(text)
        self.end += len(text)
        self.text.append(text)
        key = int.from_bytes(hashlib.blake2b(parts[0], digest_size=4).digest(), "big")
        self.some.append(
            (shard, found.start, found.length, width, height, key, self.reasons[why], self.end)
        )
        if len(self.some) == 4096:
            self.flush()

    def _leave_out(self, why: str, name: str):
        self.reasons.setdefault(why, len(self.reasons))
        self.left_out[why] += 1
        names = self.names.setdefault(why, [])
        if len(names) < 3:
            names.append(clean_caption(name))

    def flush(self):
        self.write(b"".join(self.text))
        self.rows.write(np.array(self.some, ROW).tobytes())
        self.n, self.some, self.text = self.n + len(self.some), [], []

    def close(self, meta: dict):
        "Append rows, JSON and tail, and make sure they are on disk."
        self.flush()
        self.rows.seek(0)
        while part := self.rows.read(2**22):
            self.write(part)
        meta = json.dumps(
            meta
            | dict(
                reasons=list(self.reasons),
                left_out=self.left_out,
                names=self.names,
                digest=self.kept.hexdigest(),
            )
        ).encode()
        self.write(meta)
        tail = TAIL.pack(self.end, self.n, len(meta), b"")
        self.digest.update(tail[:-16])
        self.file.write(tail[:-16] + self.digest.digest())
        self.file.flush()
        os.fsync(self.file.fileno())
