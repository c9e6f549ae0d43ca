"""Tar shards in webdataset's layout, read on behind any damage."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from imagen_nb.pictures.decode import HEAD, TAIL, UnreadablePicture
from imagen_nb.pictures.shards import MAX_FILE, TEXTS, Found, Notes, is_hidden, stamp_of, told
from imagen_nb.pictures.tables import SUFFIXES, clean_caption, decode_text, json_captions, lines_of


class Member(NamedTuple):
    "A file in a tar, or a folder or a link."

    name: str  # its path
    start: int  # first byte of its contents
    length: int  # bytes
    is_file: bool


class Tar:
    "A tar in webdataset's layout: members whose names are alike up to the first dot belong together."

    def __init__(self, path: Path, caption_column: str | None = None):
        self.path, self.name, self.column = path, path.name, caption_column

    def stamp(self):
        "The file's."
        yield stamp_of(self.path)

    def scan(self, notes: Notes):
        "Every picture, once all members are known: they may stand in any order."
        found: dict[str, dict] = {}  # key: what belongs together
        with open(self.path, "rb") as f:
            for member in tar_members(f, self.name, notes):
                self._add(found, member, notes)
            for key, parts in found.items():
                if "image" in parts:
                    yield self._found(f, key, parts)
                else:
                    notes.ignored.update(f".{end}" for end in parts)

    def _add(self, found: dict, member: Member, notes: Notes):
        folder, slash, file = member.name.rpartition("/")
        stem, _, end = file.partition(".")
        key, end = folder + slash + stem, end.lower()
        kind = end if f".{end}" in TEXTS else "image" if f".{end}" in SUFFIXES else ""
        if is_hidden(*member.name.split("/")):
            notes.ignored["hidden"] += 1
        elif not kind or not member.is_file:
            notes.ignored[f".{end}" if member.is_file else "folders and links"] += 1
        elif kind in found.setdefault(key, {}):
            notes.problem(f"second {kind} of one key", f"{self.name}: {member.name}")
        else:
            found[key][kind] = (member.start, member.length)

    def _found(self, f, key: str, parts: dict) -> Found:
        (start, length), name = parts["image"], clean_caption(f"{self.name}: {key}")
        captions, problem = told(lambda: self._captions(f, parts))
        return Found(name, start, length, captions, problem, lambda: _part_ends(f, start, length))

    def _captions(self, f, parts: dict) -> list[str]:
        text = parts.get("txt", parts.get("caption"))
        if "json" in parts and (self.column is not None or text is None):
            return json_captions(_part(f, *parts["json"]), self.column)
        return lines_of(decode_text(_part(f, *text))) if text else []

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


def tar_members(
    f,  # a tar, open for reading
    name: str,  # of it, for people
    notes: Notes,  # what lies between two sound headers is counted here as lost
) -> Iterator[Member]:  # in the order of the file
    "Every member behind a sound header."
    size, at, safe = os.fstat(f.fileno()).st_size, 0, 0  # safe: behind the last sound header
    long: dict[str, str] = {}  # name and size of the next member, where its header has no room
    while at < size:
        f.seek(at)
        header = _tar_header(block := f.read(512))
        if header is None or at + 512 + int(long.get("size", header[1])) > size:
            safe = at + 512 if header else safe if block.strip(b"\0") else at
            beyond = _next_header(f, safe)
            if beyond is None:
                return (
                    _lost(name, at, size - at, notes)
                    if header
                    else _tar_end(block, size, at, name, notes)
                )
            begin = min(at, safe) if beyond <= at else at
            if block.strip(b"\0") or beyond - begin > 20 * 512:  # few zeros: two tars were joined
                _lost(name, begin, beyond - begin, notes)
            at, long = beyond, {}
            continue
        member, length, kind = header
        if kind in "xgLK":
            long |= _long(kind, f.read(min(length, 2**20)))
        else:
            is_file, length = kind in "0\0007S", int(long.get("size", length))
            yield Member(long.get("path", member), at + 512, length, is_file)
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


def _long(kind: str, text: bytes) -> dict[str, str]:
    "Name and size of the member that follows, where its own header has no room for them."
    if kind == "L":
        return {"path": text.rstrip(b"\0").decode(errors="surrogateescape")}
    found = re.findall(rb"\d+ (path|size)=([^\n]*)\n", text) if kind == "x" else []
    return {key.decode(): value.decode(errors="surrogateescape") for key, value in found}


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
