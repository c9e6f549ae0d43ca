"""What every kind of source has in common: it can be stamped, scanned and read; and what a scan finds."""

import collections
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from imagen_nb.pictures.decode import HEAD, TAIL, UnreadablePicture, reason
from imagen_nb.pictures.tables import clean_caption

TEXTS = (".json", ".caption", ".txt")  # of captions beside a picture; a later one wins
SHARDS = (".tar", ".parquet", ".arrow")  # of files that hold many pictures
MAX_FILE = 2**30  # bytes of a picture's file


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

    problems: collections.Counter = field(default_factory=collections.Counter)  # reason: how many
    examples: dict = field(default_factory=dict)  # reason: up to three names
    ignored: collections.Counter = field(
        default_factory=collections.Counter
    )  # no picture: how many
    lost: int = 0  # bytes between sound members of tars
    remarks: list[str] = field(
        default_factory=list
    )  # how a source was understood, where it is open

    def problem(self, why: str, name: str, n: int = 1):
        "Count a problem, or n of a kind, and keep a few names."
        self.problems[why] += n
        keep_name(self.examples, why, name)


class Shard(Protocol):
    "A folder, a table with files beside it, a tar, or a table of `datasets`."

    name: str  # for people

    def stamp(self) -> Iterator[str]:
        "Lines that change when the shard's contents do."

    def scan(self, notes: Notes) -> Iterator[Found]:
        "Every picture, in an order that is always the same."

    def read(self, name: str, start: int, length: int) -> bytes:
        "A picture's file, from where the scan found it."


def keep_name(
    examples: dict,  # reason: up to three names; changed
    why: str,  # the reason
    name: str,  # of one that it concerns
):
    "Remember the first three names of each reason."
    names = examples.setdefault(why, [])
    if len(names) < 3:
        names.append(clean_caption(name))


def told(
    read: Callable[[], list[str]],  # gives a picture's captions
) -> tuple[list[str], str]:  # the captions, and why there are none
    "Captions, or the reason why they cannot be read."
    try:
        return read(), ""
    except (OSError, ValueError) as e:
        return [], reason(e)


def is_hidden(
    *names: str,  # parts of a path
) -> bool:  # is one of them hidden, or macOS's folder of leftovers?
    "What nobody put there on purpose."
    return any(n == "__MACOSX" or n[0] == "." and n.strip(".") for n in names if n)


def ending(
    name: str,  # of a file
) -> str:  # its last part: .jpg, .tar.gz; the whole name where there is no dot
    "What kind of file it says it is."
    stem, end = os.path.splitext(name)
    is_packed = end.lower() in (".gz", ".bz2", ".xz", ".zst")
    return (os.path.splitext(stem)[1] if is_packed else "") + end or name


def stamp_of(
    path: Path,  # a file
) -> str:  # name, size and time
    "Another file, another stamp."
    info = os.stat(path)
    return f"{path.name} {info.st_size} {info.st_mtime_ns}"


def open_file(
    path: Path,  # a regular file: a pipe would wait forever, a device never end
):  # open for reading
    "Open a file of reasonable size."
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):
        raise UnreadablePicture("not a regular file")
    if info.st_size > MAX_FILE:
        raise UnreadablePicture("file over 1 GB")
    return open(path, "rb")


def read_file(
    path: Path,  # a regular file
) -> bytes:  # all of it
    "Read a file of reasonable size."
    with open_file(path) as f:
        return f.read()


def file_ends(
    path: Path,  # a regular file
) -> tuple[bytes, bytes]:  # its first and its last bytes
    "Both ends of a file, which show a picture's size and whether it was cut off."
    with open_file(path) as f:
        head = f.read(HEAD)
        if len(head) < HEAD:
            return blob_ends(head)
        f.seek(-TAIL, os.SEEK_END)
        return head, f.read(TAIL)


def blob_ends(
    blob: bytes,  # a whole file
) -> tuple[bytes, bytes]:  # its first and its last bytes
    "Both ends of a file in memory."
    return blob[:HEAD], blob[-TAIL:]
