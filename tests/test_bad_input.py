"""Whatever is in the folder: decoded by a stated rule, or left out, counted and told why.

`CASES` is a table; every row makes its files, says what must come of them, and is one test.
`tools/measure/bad_input_table.py` prints the same table for people.
"""

import contextlib
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import time
import tracemalloc
import unicodedata
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import pytest
import torch
from PIL import Image

from imagen_nb.data import ShapesWorld
from imagen_nb.pictures import captioned, decode, pixels, shards
from imagen_nb.pictures.captioned import load_captioned
from imagen_nb.pictures.pixels import Crop, crop_images
from imagen_nb.pictures.tables import clean_caption, table_rows
from imagen_nb.text import TextEncoder

UNKNOWN = "not JPEG, PNG, WebP, BMP, GIF or TIFF"
DAMAGED, HUGE = "truncated or damaged", f"more than {decode.MAX_PIXELS:,} pixels"
SMALL = f"shorter side under {decode.MIN_SIDE} pixels"
GONE, DENIED = "No such file or directory", "Permission denied"
UNPARSED, NAMELESS = "row that cannot be parsed", "row without file_name"
OUTSIDE = "file_name outside the folder"
RED, GREEN, BLUE, GREY = (230, 20, 30), (10, 200, 40), (20, 40, 220), (120, 120, 120)
FOUR = (RED, GREEN, BLUE, GREY)  # corners: above left and right, below left and right


@dataclass
class Case:
    "Files of one class, and what must come of them in a folder with one good picture."

    what: str  # the class, for people
    build: Callable  # called with the folder
    captions: list = field(default_factory=lambda: [""])  # of the pictures kept, but the good one
    skipped: dict = field(default_factory=dict)  # reason -> how many
    ignored: dict = field(default_factory=dict)  # what -> how many
    corners: tuple | None = None  # colours the picture kept must have
    off: int = 0  # by how many levels they may differ


# ---------------------------------------------------------------- making files


def four(size=(48, 32), colours=FOUR, mode="RGB"):
    "A picture with one colour in each quarter."
    w, h = size
    image = Image.new(mode, size)
    for k, colour in enumerate(colours):
        left, top = k % 2 * (w // 2), k // 2 * (h // 2)
        image.paste(colour, (left, top, left + w // 2, top + h // 2))
    return image


def encoded(image, kind="PNG", **k):
    out = io.BytesIO()
    image.save(out, kind, **k)
    return out.getvalue()


def file(name, content):
    "A build that writes one file; the content may be a function, called when it is needed."

    def build(root):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        blob = content() if callable(content) else content
        path.write_bytes(blob.encode() if isinstance(blob, str) else blob)

    return build


def picture(name, kind="PNG", **k):
    return file(name, lambda: encoded(four(), kind, **k))


def also(*builds):
    def build(root):
        for b in builds:
            b(root)

    return build


def png(w, h, depth=8, colour=0, rows=None):
    "A PNG written chunk by chunk; without rows it is all black and complete."

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    if rows is None:
        pack = zlib.compressobj(9)
        width = 1 + (w * depth * {0: 1, 2: 3}[colour] + 7) // 8
        body = b"".join(pack.compress(bytes(width)) for _ in range(h)) + pack.flush()
    else:
        body = zlib.compress(b"".join(b"\0" + row for row in rows))
    head = struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def png16(colours=(0x0000, 0x8080, 0xFFFF, 0x4000), side=32):
    "16 bits of gray in four quarters."
    half = side // 2

    def row(a, b):
        return struct.pack(f">{side}H", *[a] * half + [b] * half)

    return png(side, side, 16, 0, [row(*colours[:2])] * half + [row(*colours[2:])] * half)


def png48(side=32):
    "16 bits in each of three channels."
    row = b"".join(struct.pack(">3H", 0xFFFF, 0x8080, 0x0101) for _ in range(side))
    return png(side, side, 16, 2, [row] * side)


def jpeg_saying(w, h):
    "A small JPEG whose header claims another size."
    blob = bytearray(encoded(four(), "JPEG"))
    at = blob.index(b"\xff\xc0")
    blob[at + 5 : at + 9] = struct.pack(">HH", h, w)
    return bytes(blob)


def webp_saying(w, h):
    "An animated WebP whose canvas claims another size."
    blob = bytearray(encoded(four(), "WEBP", save_all=True, append_images=[four().rotate(180)]))
    at = blob.index(b"VP8X") + 12
    blob[at : at + 6] = (w - 1).to_bytes(3, "little") + (h - 1).to_bytes(3, "little")
    return bytes(blob)


def bmp_saying(w, h):
    blob = bytearray(encoded(four(), "BMP"))
    blob[18:26] = struct.pack("<ii", w, h)
    return bytes(blob)


def tiff_saying(w, h):
    "A TIFF whose tags claim another size."
    blob = encoded(four(), "TIFF")
    for tag, old, new in ((256, 48, w), (257, 32, h)):  # 4: a number of 32 bits
        for kind in (3, 4):
            blob = blob.replace(
                struct.pack("<HHII", tag, kind, 1, old), struct.pack("<HHII", tag, 4, 1, new)
            )
    return blob


def gif_saying(w, h):
    blob = bytearray(encoded(four(), "GIF"))
    blob[6:10] = struct.pack("<HH", w, h)
    return bytes(blob)


BOMBS = {
    "PNG": lambda: png(20_000, 20_000, 1),
    "JPEG": lambda: jpeg_saying(20_000, 20_000),
    "GIF": lambda: gif_saying(20_000, 20_000),
    "BMP": lambda: bmp_saying(20_000, 20_000),
    "TIFF": lambda: tiff_saying(20_000, 20_000),
    "WebP": lambda: webp_saying(16_383, 16_383),
}


def turned(orientation, kind):
    "A picture stored turned, with the EXIF tag that says how to turn it back."
    T = Image.Transpose
    back = {
        2: T.FLIP_LEFT_RIGHT,
        3: T.ROTATE_180,
        4: T.FLIP_TOP_BOTTOM,
        5: T.TRANSPOSE,
        6: T.ROTATE_90,
        7: T.TRANSVERSE,
        8: T.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = four() if orientation == 1 else four().transpose(back[orientation])
    return encoded(image, kind, exif=exif, **({} if kind in ("PNG", "TIFF") else {"quality": 95}))


def palette(transparent=None):
    image = Image.new("P", (48, 32))
    image.putpalette(sum(FOUR, ()))
    for k in range(4):
        left, top = k % 2 * 24, k // 2 * 16
        image.paste(k, (left, top, left + 24, top + 16))
    return encoded(image, **({} if transparent is None else {"transparency": transparent}))


def animated(kind, **k):
    return encoded(
        four(), kind, save_all=True, append_images=[four().rotate(180)], duration=100, **k
    )


def lines(*rows):
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


def table(*rows, name="metadata.jsonl", encoding="utf-8"):
    "A metadata file; the good picture has a row of its own."
    good = {"file_name": "good.png", "text": "good"}
    return file(name, lines(*rows, good).encode(encoding))


def sheet(text, encoding="utf-8"):
    return file("metadata.csv", ("file_name,text\n" + text + "\ngood.png,good\n").encode(encoding))


def link(name, target):
    return lambda root: (root / name).symlink_to(target)


def folder(name):
    return lambda root: (root / name).mkdir(parents=True)


def locked(build, name):
    return also(build, lambda root: (root / name).chmod(0))


def tar(members):
    "A tar in place of the loose good picture."

    def build(root):
        for name in ("good.png", "good.txt"):
            (root / name).unlink()
        with tarfile.open(root / "shard.tar", "w") as out:
            for name, blob in (("good.png", encoded(four())), ("good.txt", b"good"), *members):
                info = tarfile.TarInfo(name)
                info.size = len(blob)
                out.addfile(info, io.BytesIO(blob))

    return build


def spoil(name, change):
    "A build that changes the bytes of a file already there."
    return lambda root: (root / name).write_bytes(change((root / name).read_bytes()))


# ---------------------------------------------------------------- the table

WHITE, BLACK = (255,) * 3, (0,) * 3


def gray_of(c):
    return (round(0.299 * c[0] + 0.587 * c[1] + 0.114 * c[2]),) * 3


def over_white(c, a):
    return tuple(round(v * a / 255 + 255 - a) for v in c)


a_png, a_row = picture("a.png"), {"file_name": "a.png", "text": "a"}

PICTURES = [
    Case("zero bytes", file("a.png", b""), [], {"empty file": 1}),
    Case("truncated PNG", file("a.png", lambda: encoded(four())[:90]), [], {DAMAGED: 1}),
    Case(
        "truncated JPEG",
        file("a.jpg", lambda: encoded(four((480, 320)), "JPEG")[:-900]),
        [],
        {DAMAGED: 1},
    ),
    Case("PNG named .jpg", file("a.jpg", lambda: encoded(four())), corners=FOUR),
    Case("text named .png", file("a.png", "hello"), [], {UNKNOWN: 1}),
    Case(
        "PostScript named .png",
        file("a.png", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n"),
        [],
        {UNKNOWN: 1},
    ),
    Case("suffix in capitals", also(picture("a.PNG"), file("a.TXT", "a")), ["a"], corners=FOUR),
    Case(
        "gray",
        file("a.png", lambda: encoded(four().convert("L"))),
        corners=tuple(map(gray_of, FOUR)),
        off=1,
    ),
    Case(
        "black and white, 1 bit",
        file("a.png", lambda: encoded(four(colours=(0, 1, 1, 0), mode="1"))),
        corners=(BLACK, WHITE, WHITE, BLACK),
    ),
    Case(
        "alpha",
        file(
            "a.png",
            lambda: encoded(
                four(colours=[(*c, a) for c, a in zip(FOUR, (255, 128, 0, 64))], mode="RGBA")
            ),
        ),
        corners=tuple(map(over_white, FOUR, (255, 128, 0, 64))),
        off=1,
    ),
    Case(
        "gray with alpha",
        file(
            "a.png",
            lambda: encoded(four(colours=[(0, 255), (0, 128), (0, 0), (200, 255)], mode="LA")),
        ),
        corners=(BLACK, (127,) * 3, WHITE, (200,) * 3),
        off=1,
    ),
    Case("palette", file("a.png", palette), corners=FOUR),
    Case(
        "palette with one transparent colour",
        file("a.png", lambda: palette(1)),
        corners=(RED, WHITE, BLUE, GREY),
    ),
    Case(
        "palette with alpha",
        file("a.png", lambda: palette(bytes((255, 128, 0, 255)))),
        corners=(RED, over_white(GREEN, 128), WHITE, GREY),
        off=1,
    ),
    Case(
        "RGB with one transparent colour",
        file("a.png", lambda: encoded(four(), transparency=BLUE)),
        corners=(RED, GREEN, WHITE, GREY),
    ),
    Case(
        "CMYK",
        file("a.jpg", lambda: encoded(four().convert("CMYK"), "JPEG", quality=95)),
        corners=FOUR,
        off=8,
    ),
    Case(
        "16 bits, gray", file("a.png", png16), corners=(BLACK, (128,) * 3, WHITE, (64,) * 3), off=1
    ),
    Case("16 bits, colour", file("a.png", png48), corners=((255, 128, 1),) * 4, off=1),
    Case(
        "16 bits, TIFF",
        file("a.tif", lambda: encoded(Image.new("I;16", (32, 32), 0x8080), "TIFF")),
        corners=((128,) * 3,) * 4,
        off=1,
    ),
    Case(
        "32-bit integers",
        file("a.tif", lambda: encoded(Image.new("I", (32, 32), 7), "TIFF")),
        [],
        {"pixels without a known range (mode I)": 1},
    ),
    Case(
        "floats",
        file("a.tif", lambda: encoded(Image.new("F", (32, 32), 0.5), "TIFF")),
        [],
        {"pixels without a known range (mode F)": 1},
    ),
    Case("animated GIF", file("a.gif", lambda: animated("GIF")), corners=FOUR, off=2),
    Case("animated WebP", file("a.webp", lambda: animated("WEBP", lossless=True)), corners=FOUR),
    Case("animated PNG", file("a.png", lambda: animated("PNG")), corners=FOUR),
    *(
        Case(
            f"EXIF orientation {k}",
            file("a.jpg", lambda k=k: turned(k, "JPEG")),
            corners=FOUR,
            off=8,
        )
        for k in range(1, 9)
    ),
    *(
        Case(
            f"EXIF-rotated {kind}",
            file(f"a.{kind.lower()}", lambda kind=kind: turned(6, kind)),
            corners=FOUR,
            off=8,
        )
        for kind in ("PNG", "TIFF", "WEBP")
    ),
    Case("1 x 1", file("a.png", lambda: encoded(Image.new("RGB", (1, 1)))), [], {SMALL: 1}),
    Case("50 000 x 1", file("a.png", lambda: png(50_000, 1)), [], {SMALL: 1}),
    *(
        Case(
            f"20 000 x 20 000, {kind}".replace("20 000 x 20 000, WebP", "16 383 x 16 383, WebP"),
            file("a.png", bomb),
            [],
            {HUGE: 1},
        )
        for kind, bomb in BOMBS.items()
    ),
]

FOLDERS = [
    Case(
        "folder named like a picture", also(folder("a.png"), picture("a.png/b.png")), corners=FOUR
    ),
    Case("link to itself", link("a.png", "a.png"), [], {"Too many levels of symbolic links": 1}),
    Case("link to nowhere", link("a.png", "gone.png"), [], {GONE: 1}),
    Case(
        "link to a picture",
        also(file("x.bin", lambda: encoded(four())), link("a.png", "x.bin")),
        ignored={".bin": 1},
        corners=FOUR,
    ),
    Case(
        "circle of folders",
        also(folder("sub"), link("sub/up", "..")),
        [],
        ignored={"linked folders": 1},
    ),
    Case("picture that may not be read", locked(a_png, "a.png"), [], {DENIED: 1}),
    Case(
        "caption that may not be read",
        locked(also(a_png, file("a.txt", "a")), "a.txt"),
        [],
        {DENIED: 1},
    ),
    Case(
        "folder that may not be read",
        locked(picture("no/a.png"), "no"),
        [],
        {f"folder: {DENIED}": 1},
    ),
    Case(
        "pipe named like a picture",
        lambda root: os.mkfifo(root / "a.png"),
        [],
        {"not a regular file": 1},
    ),
    Case(
        "hidden files",
        also(file(".DS_Store", "x"), picture("._a.jpg"), picture("__MACOSX/b.png")),
        [],
        ignored={"hidden": 3},
    ),
    Case(
        "other files",
        also(file("readme.md", "x"), picture("a.heic"), file("LICENSE", "x")),
        [],
        ignored={".md": 1, ".heic": 1, "LICENSE": 1},
    ),
    Case(
        "name that is not UTF-8",
        lambda root: Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9.png")).write_bytes(
            encoded(four())
        ),
        corners=FOUR,
    ),
]

LONG, MIXED = "red circle " * 9091, "عربي שלום 👩‍👩‍👧 🏳️‍🌈 café"
TEXTS = {  # what -> the file beside the picture, the caption that comes of it
    "no caption": (None, ""),
    "empty caption": ("", ""),
    "white space": (" \n\t\u00a0 ", ""),
    "100 000 characters": (LONG, LONG.strip()),
    "right to left, emoji": (MIXED, MIXED),
    "control characters": ("a\x07red\x1b[0m\tcircle", "a red [0m circle"),
    "NUL": ("red\0circle\0", "red circle"),
    "byte order mark": ("\ufeffred", "red"),
    "UTF-16": ("red שלום".encode("utf-16"), "red שלום"),
    "not UTF-8": ("café".encode("latin-1"), "caf\ufffd"),
    "HTML": ("<b>red &amp; blue</b>", "<b>red &amp; blue</b>"),
}
CAPTIONS = [
    Case("caption in a.caption", also(a_png, file("a.caption", "a")), ["a"]),
    Case("caption in a.png.txt", also(a_png, file("a.png.txt", "a")), ["a"]),
] + [
    Case(what, a_png if text is None else also(a_png, file("a.txt", text)), [caption])
    for what, (text, caption) in TEXTS.items()
]

TABLES = [
    Case("jsonl: file missing", table({"file_name": "gone.png", "text": "x"}), [], {GONE: 1}),
    Case("jsonl: duplicate row", also(a_png, table(a_row, a_row)), ["a"], {"duplicate row": 1}),
    Case(
        "jsonl: two captions of one picture",
        also(a_png, table(a_row, a_row | {"text": "b"})),
        ["a", "b"],
    ),
    Case(
        "jsonl: row that is not JSON",
        also(a_png, table("{'file_name':", a_row)),
        ["a"],
        {UNPARSED: 1},
    ),
    Case(
        "jsonl: row that is no object", also(a_png, table("[1]", a_row, "7")), ["a"], {UNPARSED: 2}
    ),
    Case("jsonl: endless brackets", table("[" * 100_000), [], {UNPARSED: 1}),
    Case("jsonl: byte order mark", also(a_png, table(a_row, encoding="utf-8-sig")), ["a"]),
    Case("jsonl: UTF-16", also(a_png, table(a_row, encoding="utf-16")), ["a"]),
    Case("jsonl: blank lines", also(a_png, table("", a_row, "  ", "")), ["a"]),
    Case(
        "jsonl: Windows line ends",
        also(
            a_png, table(a_row, "\r"), spoil("metadata.jsonl", lambda b: b.replace(b"\n", b"\r\n"))
        ),
        ["a"],
    ),
    Case(
        "jsonl: row without file_name",
        also(a_png, table({"text": "x"}, a_row)),
        ["a"],
        {NAMELESS: 1},
    ),
    Case("jsonl: file_name null", table({"file_name": None, "text": "x"}), [], {NAMELESS: 1}),
    Case("jsonl: absolute path", table({"file_name": "/etc/hosts", "text": "x"}), [], {OUTSIDE: 1}),
    Case(
        "jsonl: path out of the folder",
        table({"file_name": "a/../../b.png", "text": "x"}),
        [],
        {OUTSIDE: 1},
    ),
    Case(
        "jsonl: NUL in a name",
        table({"file_name": "a\0.png", "text": "x"}),
        [],
        {"unreadable file": 1},
    ),
    Case(
        "jsonl: file_name is a folder",
        also(folder("d"), table({"file_name": "d", "text": "x"})),
        [],
        {"not a regular file": 1},
    ),
    Case("jsonl: caption null", also(a_png, table(a_row | {"text": None})), [""]),
    Case("jsonl: caption missing", also(a_png, table({"file_name": "a.png"})), [""]),
    Case("jsonl: caption a number", also(a_png, table(a_row | {"text": 0})), ["0"]),
    Case("jsonl: caption NaN", also(a_png, table('{"file_name": "a.png", "text": NaN}')), [""]),
    Case("jsonl: caption a list", also(a_png, table(a_row | {"text": ["a", "b"]})), ["a"]),
    Case(
        "jsonl: caption an object",
        also(a_png, table(a_row | {"text": {"en": "a"}})),
        [],
        {"caption that is no text": 1},
        {".png": 1},
    ),
    Case(
        "jsonl: half a character",
        also(a_png, table(r'{"file_name": "a.png", "text": "a\ud83d"}')),
        ["a\ufffd"],
    ),
    Case(
        "jsonl: line separator in a caption",
        also(a_png, table('{"file_name": "a.png", "text": "a\u2028b"}')),
        ["a b"],
    ),
    Case("jsonl: picture without a row", also(a_png, table()), [], ignored={".png": 1}),
    Case("csv: byte order mark", also(a_png, sheet("a.png,a", "utf-8-sig")), ["a"]),
    Case("csv: not UTF-8", also(a_png, sheet("a.png,café", "latin-1")), ["caf\ufffd"]),
    Case("csv: blank line, empty caption", also(a_png, sheet("\na.png,\n")), [""]),
    Case("csv: row cut short", also(a_png, sheet("a.png")), [""]),
    Case(
        "csv: row with too many fields",
        also(a_png, sheet("a.png,one, two")),
        [],
        {UNPARSED: 1},
        {".png": 1},
    ),
    Case("csv: line break in quotes", also(a_png, sheet('a.png,"one\ntwo"')), ["one two"]),
    Case("csv: 100 000 characters", also(a_png, sheet("a.png," + LONG)), [LONG.strip()]),
    Case(
        "csv: field beyond the reader's limit",
        also(a_png, sheet("a.png," + "x" * 200_000)),
        [],
        {UNPARSED: 1},
        {".png": 1},
    ),
    Case(
        "csv: quote that is never closed",
        also(a_png, picture("b.png"), picture("c.png"), sheet('a.png,"a\nb.png,b\nc.png,"c, c"')),
        ["b", "c, c"],
        {UNPARSED: 1},
        {".png": 1},
    ),
    Case(
        "csv: two quotes with rows between",
        also(a_png, picture("b.png"), picture("c.png"), sheet('a.png,"a\nb.png,b\nc.png,5"')),
        ["b", '5"'],
        {UNPARSED: 1},
        {".png": 1},
    ),
    Case(
        "tsv: quotes within a field",
        also(
            a_png,
            file("metadata.tsv", 'file_name\ttext\na.png\t5" disc, red\ngood.png\tgood\n'),
        ),
        ['5" disc, red'],
    ),
    Case(
        "table in a subfolder",
        also(picture("sub/a.png"), file("sub/metadata.csv", "file_name,text\na.png,a\n")),
        ["a"],
    ),
    Case(
        "table of something else in a subfolder",
        also(picture("sub/a.png"), file("sub/metadata.csv", "id,score\n1,2\n")),
        ignored={".csv": 1},
    ),
    Case("name of a table in capitals", also(a_png, table(a_row, name="Metadata.JSONL")), ["a"]),
]

ENDS, PART = (b"good", encoded(four())), "part of a tar file damaged or cut off"
SHARDS = [
    Case("tar: picture without caption", tar([("a.png", encoded(four()))]), corners=FOUR),
    Case(
        "tar: caption without picture", tar([("a.txt", b"a"), ("b.txt", b"b")]), [], {}, {".txt": 2}
    ),
    Case("tar: caption in a.caption", tar([("a.png", ENDS[1]), ("a.caption", b"a")]), ["a"]),
    Case(
        "tar: hidden files",
        tar([("._a.png", ENDS[1]), ("__MACOSX/._b.png", ENDS[1])]),
        [],
        ignored={"hidden": 2},
    ),
    Case(
        "tar: two pictures of one key",
        tar([("a.png", ENDS[1]), ("a.jpg", ENDS[1])]),
        [""],
        {"second image of one key": 1},
    ),
    Case(
        "tar: caption that is not UTF-8",
        tar([("a.png", ENDS[1]), ("a.txt", b"caf\xe9")]),
        ["caf\ufffd"],
    ),
    Case(
        "tar: cut short",
        also(
            tar([("a.png", ENDS[1]), ("b.png", ENDS[1])]),
            spoil("shard.tar", lambda b: b[: b.index(b"b.png") + 530]),
        ),
        [
            "",
        ],
        {PART: 1},
    ),
    Case(
        "tar: damaged in the middle",
        also(
            tar([("a.png", ENDS[1]), ("b.png", ENDS[1])]),
            spoil("shard.tar", lambda b: b.replace(b"b.png", b"!!!!!")),
        ),
        [""],
        {PART: 1},
    ),
]

CASES = PICTURES + CAPTIONS + TABLES + FOLDERS + SHARDS


# ---------------------------------------------------------------- running it


@contextlib.contextmanager
def refusing():
    "Whoever runs this, even the system's administrator, may not read what has no permission bits."
    read, scan = shards.open_file, os.scandir

    def allow(path):
        if not isinstance(path, int) and os.lstat(path).st_mode & 0o777 == 0:
            raise PermissionError(13, DENIED, str(path))

    def refuse(real):
        def call(path):
            allow(path)
            return real(path)

        return call

    with (
        mock.patch.object(shards, "open_file", refuse(read)),
        mock.patch.object(os, "scandir", refuse(scan)),
    ):
        yield


def run(case, root):
    "The files of a case beside a good picture, loaded."
    file("good.png", encoded(four()))(root)
    file("good.txt", "good")(root)
    case.build(root)
    with refusing(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_captioned(root, 16, max_skipped=1)


def kept(ds):
    "Places of all pictures but the good one."
    return [i for i in range(len(ds)) if ds.caption(i) != "good"]


def quarters(image):
    w, h = image.size
    return tuple(image.getpixel((x, y)) for y in (h // 4, 3 * h // 4) for x in (w // 4, 3 * w // 4))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_case(case, tmp_path):
    ds = run(case, tmp_path)
    places = kept(ds)
    assert len(places) == len(ds) - 1, "the good picture is kept"
    assert [ds.caption(i) for i in places] == case.captions
    assert ds.skipped == case.skipped
    ignored = {
        k: n for k, n in ds.catalog.meta["ignored"].items() if k != ".txt" or n > 1
    }  # good.txt, with a table
    assert ignored == case.ignored
    assert set(ds.examples) == set(ds.skipped) and all(ds.examples.values())
    if case.corners:
        seen = quarters(decode.decode_picture(ds.catalog.blob(ds.row(places[0]))))
        assert max(abs(a - b) for s, t in zip(seen, case.corners) for a, b in zip(s, t)) <= case.off
    assert ds.images(range(len(ds))).isfinite().all()
    ds.report().encode(), ds.identity.encode()


def test_every_case_has_a_name_of_its_own():
    assert len({case.what for case in CASES}) == len(CASES)


BOMB_COST = """
import json, resource, sys, time
from pathlib import Path
from imagen_nb.pictures.decode import UnreadablePicture, decode_picture
out, peak = {}, lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
try: decode_picture(b"x")  # Pillow itself is imported
except UnreadablePicture: pass
for path in sorted(Path(sys.argv[1]).iterdir()):
    blob, before, start = path.read_bytes(), peak(), time.perf_counter()
    try: decode_picture(blob)
    except UnreadablePicture as e: out[path.name] = [str(e), time.perf_counter() - start, peak() - before]
print(json.dumps(out))
"""


def test_bombs_are_refused_fast_and_small(tmp_path):
    "Seconds and megabytes of the whole process, in one that has decoded nothing yet."
    for kind, bomb in BOMBS.items():
        (tmp_path / kind).write_bytes(bomb())
    assert (tmp_path / "PNG").stat().st_size < 100_000
    done = subprocess.run(
        [sys.executable, "-c", BOMB_COST, str(tmp_path)], capture_output=True, text=True, check=True
    )
    costs = json.loads(done.stdout)
    print({kind: f"{1e3 * s:.1f} ms, {mb:.1f} MB" for kind, (_, s, mb) in costs.items()})
    assert costs.keys() == BOMBS.keys()
    for kind, (reason, seconds, megabytes) in costs.items():
        assert reason == HUGE and seconds < 0.1 and megabytes < 20, (
            kind,
            reason,
            seconds,
            megabytes,
        )


def test_python_allocates_next_to_nothing_for_a_bomb():
    blob = BOMBS["PNG"]()
    tracemalloc.start()
    with pytest.raises(decode.UnreadablePicture, match="more than"):
        decode.decode_picture(blob)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_limits_are_where_they_are_said_to_be(monkeypatch):
    side = decode.MIN_SIDE
    assert decode.decode_picture(encoded(Image.new("RGB", (side, 5000)))).size == (side, 5000)
    with pytest.raises(ValueError, match=SMALL):
        decode.decode_picture(encoded(Image.new("RGB", (side - 1, 99))))
    monkeypatch.setattr(decode, "MAX_PIXELS", 1600)
    assert decode.decode_picture(encoded(Image.new("RGB", (40, 40)))).size == (40, 40)
    with pytest.raises(ValueError, match="more than 1,600"):
        decode.decode_picture(encoded(Image.new("L", (40, 41))))


# ---------------------------------------------------------------- sources without a single picture


def test_nothing_at_all(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no readable picture of 0"):
        load_captioned(tmp_path, 16)
    with pytest.raises(ValueError, match="gone.*does not exist"):
        load_captioned(tmp_path / "gone", 16)
    for name in ("part-0.tar.gz", "images.zip", "IMG_1.HEIC"):
        (tmp_path / name).write_bytes(b"x" * 2000)
    with pytest.raises(ValueError, match="of 0: not looked at: 1 .HEIC, 1 .zip, 1 .tar.gz"):
        load_captioned(tmp_path, 16)
    (tmp_path / "a.jfif").write_bytes(b"x")
    with pytest.raises(ValueError, match=f"of 1: 1 {UNKNOWN}; for example .*a.jfif; not looked at"):
        load_captioned(tmp_path, 16)
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="no-such-pictures.*does not exist"):
        load_captioned("no-such-pictures", 16)


@pytest.mark.parametrize(
    "name,text",
    [
        ("metadata.jsonl", "{\n\nnope\n"),
        ("metadata.jsonl", ""),
        ("metadata.csv", "a;b\n1;2\n"),
        ("metadata.csv", "file_name\n"),
        ("metadata.csv", ""),
    ],
)
def test_a_table_without_a_sound_row_is_an_error(tmp_path, name, text):
    a_png(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"load_captioned: .*{name}.*expected"):
        load_captioned(tmp_path, 16)
    if text.startswith("{"):
        with pytest.raises(ValueError, match="of 2, first: metadata.jsonl line 1"):
            load_captioned(tmp_path, 16)


# ---------------------------------------------------------------- what is told


def test_the_report_counts_and_names(tmp_path):
    for i in range(5):
        file(f"empty-{i}.png", b"")(tmp_path)
    also(
        a_png,
        picture("b.png"),
        picture("c.png"),
        picture("d.png"),
        file("a.txt", "one"),
        file("b.txt", "one"),
        file("c.txt", b"\xe9"),
        file("text.jpg", "x"),
        file("readme.md", ""),
    )(tmp_path)
    with pytest.raises(
        ValueError, match="6 of 10 pictures cannot be used.*5 empty file; 1 not JPEG.*empty-0.png"
    ):
        load_captioned(tmp_path, 16)
    with pytest.warns(
        UserWarning, match="left out 6 of 10 pictures: 5 empty file; 1 not JPEG"
    ) as seen:
        ds = load_captioned(tmp_path, 16, max_skipped=1)
    assert len(seen) == 1
    assert ds.examples == {
        "empty file": [f"empty-{i}.png" for i in range(3)],
        UNKNOWN: ["text.jpg"],
    }
    assert ds.report().split("\n")[1:] == [
        "  5 empty file: empty-0.png, empty-1.png, empty-2.png, ...",
        f"  1 {UNKNOWN}: text.jpg",
        "captions: 2 different, 1 missing, 1 with undecodable characters",
        "  1 to 3 characters, median 3, 95 % under 4",
        "shorter sides: 32 to 32 pixels, median 32",
        "  4 under 64",
        "not looked at: 1 .md",
    ]
    assert ds.report().startswith(f"{tmp_path.name}: 10 pictures, 4 kept, 6 left out")


def test_a_stray_quote_costs_its_own_row(tmp_path):
    "The quote that ends row 3 would close it, and make one row of three."
    lines = ["file_name,text", "0.png,red", '1.png,"a disc', "2.png,blue", '3.png,of 5"', "4.png,a"]
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    found = {line: row and row["text"] for line, row in table_rows(tmp_path / "list.csv")}
    assert found == {2: "red", 3: None, 4: "blue", 5: 'of 5"', 6: "a"}


def test_broken_rows_are_named_by_line(tmp_path):
    ds = run(Case("", table("", "nope", {"text": 1})), tmp_path)
    assert ds.examples == {UNPARSED: ["metadata.jsonl line 2"], NAMELESS: ["metadata.jsonl line 3"]}


def test_identity_names_the_data_and_not_the_place(tmp_path):
    def made(place, caption="one", name="a.png"):
        root = tmp_path / place / "set"
        also(picture(name), file("a.txt", caption))(root)
        return load_captioned(root, 16).identity

    first = made("x")
    assert first == made("y") and first.startswith("set, 1 pictures, ")
    assert len({first, made("z", "two"), made("w", name="b.png")}) == 3
    worlds = [
        ShapesWorld(),
        ShapesWorld("valid"),
        ShapesWorld(seed=1),
        ShapesWorld(level="full"),
        ShapesWorld(length=7),
    ]
    assert worlds[0].identity == "ShapesWorld quick train seed 0, 100000 scenes"
    assert len({world.identity for world in worlds}) == len(worlds)


def test_tables_of_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    good = encoded(four())
    rows = datasets.Dataset.from_dict(
        dict(
            image=[{"bytes": b, "path": None} for b in (good, b"", b"x", good)] + [None],
            text=[["a\0", "b"], ["x"], ["x"], None, ["x"]],
        )
    ).cast_column("image", datasets.Image())
    with pytest.warns(UserWarning, match="left out 3 of 5"):
        ds = load_captioned(rows, 16)
    assert [ds.caption(i) for i in range(len(ds))] == ["a", ""]
    assert ds.examples == {"empty file": ["row 1", "row 4"], UNKNOWN: ["row 2"]}


def test_damage_is_told_with_what_the_library_said(tmp_path):
    "A Pillow without JPEG calls every photograph damaged; so its own words are kept."
    a_png(tmp_path)
    file("b.jpg", lambda: encoded(four((480, 320)), "JPEG")[:-900])(tmp_path)
    ds = run(Case("", lambda root: None), tmp_path)
    assert "b.jpg (image file is truncated" in ds.report() and ds.skipped == {DAMAGED: 1}


def test_pictures_without_any_caption_beside_something_unread_are_told(tmp_path):
    def said(name, content):
        root = tmp_path / name
        also(picture(f"{name}/a.png"), file(f"{name}/{name}", content))(tmp_path)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            load_captioned(root, 16)
        return " ".join(str(w.message) for w in seen)

    sheet = "file_name,text\na.png,a\n"
    for name in ("captions.csv", "captions.txt", "labels.json"):
        ending = name[name.index(".") :]
        assert f"no picture has a caption; not looked at: 1 {ending}; captions are read" in said(
            name, sheet
        )
    assert said("metadata.csv", sheet) == said("a.txt", "a") == ""


# ---------------------------------------------------------------- squares in memory


def counted(ds, monkeypatch):
    "The rows a collection reads, as it reads them."
    reads, blob = [], ds.catalog.blob
    monkeypatch.setattr(ds.catalog, "blob", lambda i: reads.append(i) or blob(i))
    return reads


def test_squares_are_decoded_once(tmp_path, monkeypatch):
    for name in "abc":
        picture(f"{name}.png")(tmp_path)
    ds = load_captioned(tmp_path, 16)
    reads = counted(ds, monkeypatch)
    first = ds.images([0, 1, 0], 32)
    assert torch.equal(first, ds.images([0, 1, 0], 32)) and reads == [0, 1]
    crop = Crop(torch.tensor([-3, 9]), torch.tensor([4, 4]), 8, 8)
    assert torch.equal(ds.images([0, 1], 32, crop), crop_images(first[:2], crop)) and reads == [
        0,
        1,
    ]
    exact = pixels.to_square(decode.decode_picture((tmp_path / "a.png").read_bytes()), 20)
    assert (
        torch.equal(ds.images([0], 20)[0], exact) and len(ds._kept) == 1
    )  # another size, other squares
    monkeypatch.setattr(captioned, "KEPT", 2 * 3 * 32**2)
    reads.clear()
    ds.images([0, 1, 2, 2, 1, 0], 32)
    assert reads == [0, 1, 2, 2]


@pytest.mark.parametrize("size", [1024, 96, 40, 23])
def test_a_window_read_alone_is_the_window_of_the_whole(size, tmp_path, monkeypatch):
    "What memory holds must not change a pixel: else a run that resumes would differ."
    noise = torch.randint(0, 256, (90, 131, 3), generator=torch.Generator().manual_seed(0)).byte()
    file("a.png", encoded(Image.fromarray(noise.numpy())))(tmp_path)
    ds = load_captioned(tmp_path, size)
    crop = Crop(
        torch.tensor([-4, 0, size - 13, size // 3, -2]),
        torch.tensor([size // 2, -4, size - 9, 5, -3]),
        17,
        17,
    )
    whole = ds.images([0] * 5, crop=crop)
    monkeypatch.setattr(captioned, "KEPT", 0)
    assert (ds.images([0] * 5, crop=crop) - whole).abs().max() <= 1 / 127.5 + 1e-6
    exact = pixels.resize(
        torch.from_numpy(noise.numpy()[:, 20:110]).permute(2, 0, 1)[None] / 127.5 - 1, size
    )
    assert (ds.images([0])[0] - exact[0]).abs().max() <= 1.2 / 127.5


def test_a_picture_that_is_lost_later_is_named(tmp_path):
    a_png(tmp_path)
    ds = load_captioned(tmp_path, 16)
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=f"CaptionedImages: a.png, got {GONE}"):
        ds[0]


# ---------------------------------------------------------------- captions and the encoder

ODD = [caption for _, caption in TEXTS.values()] + [
    "caf\ufffd",
    "a\0b",
    "a\x07b",
    "\u202ea",
    "👩‍👩‍👧",
    "\ufeffa",
    "𝕏",
]


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder.toy()


def test_odd_captions_are_embedded(encoder):
    encoder.truncated = 0
    text = encoder(ODD)
    assert text.tokens.isfinite().all() and len(text.tokens) == len(ODD)
    assert encoder.truncated == ODD.count(LONG.strip()) == 1
    blank = torch.tensor([not caption for caption in ODD])
    assert (text.mask.sum(1)[blank] == 1).all() and not text.tokens[blank].any()
    assert text.tokens[~blank].abs().sum((1, 2)).min() > 0


def test_right_to_left_and_emoji_are_told_apart(encoder):
    ids = encoder.tokenize(["שלום", "שלומ", "🔴", "🔵", "👩‍👩‍👧", "عربي"])
    assert len({tuple(row) for row in ids}) == 6


@pytest.mark.parametrize(
    "text",
    [LONG, "x" * 100_000, "😀" * 100_000, "שלום " * 20_000, " " * 100_000],
    ids=["words", "one letter", "emoji", "right to left", "blanks"],
)
def test_a_long_caption_is_not_slow(encoder, text):
    start = time.perf_counter()
    assert encoder([clean_caption(text)]).mask.shape[1] <= encoder.max_length
    assert time.perf_counter() - start < 2


def test_cutting_before_the_tokenizer_changes_no_token(encoder):
    for text in (LONG, "ab" * 30_000, MIXED * 2000):
        ids = encoder.tokenizer(text, verbose=False)["input_ids"]
        n, before = encoder.max_length, encoder.truncated
        assert (
            encoder.tokenize([text]) == [ids[: n - 1] + ids[-1:]]
            and encoder.truncated == before + 1
        )


def test_half_a_character_is_refused_by_name(encoder):
    with pytest.raises(ValueError, match=r"TextEncoder: captions, got 1 with half.*ud83d"):
        encoder(["a", "a\ud83d"])


def test_cleaning_leaves_written_language_alone():
    for text in (MIXED, "Größe", unicodedata.normalize("NFD", "Größe"), "日本語", "a\u200db\u200e"):
        assert clean_caption(text) == text
