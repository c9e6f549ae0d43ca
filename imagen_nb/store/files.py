"""Paths as users name them, files that are whole or as before, locks, JSON lines, room on the disk, assets."""

import errno
import importlib
import itertools
import json
import os
import platform
import re
import secrets
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

__all__ = [
    "CheckpointError",
    "SHIPPED",
    "WINDOWS",
    "append",
    "as_path",
    "assets",
    "cache_folder",
    "check_room",
    "flush",
    "has_ended",
    "is_hub_name",
    "locked",
    "picture_file",
    "read_rows",
    "replace_text",
    "replaced",
    "save_png",
    "writable_folder",
    "write_new",
]

WINDOWS = os.name == "nt"
SHIPPED = (
    "emoji",
    "toy",
    "photo-enlarger",
)  # models in folders of `assets()`; the first is the default
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
FILES = (".arrow", ".csv", ".json", ".jsonl", ".parquet", ".tar", ".tsv", ".txt", ".zip")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")  # endings of the files that we draw


class CheckpointError(ValueError):
    "What is stored is missing, cut, altered, of another format, or in use."


# ---------------------------------------------------------------- paths


def as_path(
    name: str | Path,  # as a user gives it
) -> Path:
    "What a user named. `~` is a home folder, as in a shell; nothing else is expanded."
    if not isinstance(name, (str, os.PathLike)):
        raise ValueError(f"a path, got {name!r}, expected text or a Path")
    text = os.path.expanduser(given := os.fspath(name))
    if not text.strip() or "\0" in text:
        raise ValueError(f"a path, got {given!r}, expected the name of a file or folder")
    if text[0] == "~" and not os.path.lexists(text):
        who = text.replace(os.sep, "/").split("/")[0]
        raise ValueError(f"{given}: nobody knows the home folder {who}; ./{who} is a name like any")
    path = Path(text)
    return path.absolute() if path.parts[:1] and path.parts[0][0] == "~" else path  # "./~"


def is_hub_name(
    name: str | Path,  # as a user gives it
) -> bool:
    "Could it be OWNER/NAME on the hub? What looks like a path, or begins with a folder that is here, is none."
    text = str(name)
    is_name = bool(HUB_NAME.fullmatch(text)) and not text.lower().endswith(FILES)
    return is_name and not os.path.isdir(text.partition("/")[0])


def writable_folder(
    name: str | Path,  # a folder; made if it is not there
) -> Path:
    "Where files will go, refused before the work for them if they cannot."
    path = as_path(name)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{path}: there is a file of this name, expected a folder") from None


def picture_file(
    name: str | Path,  # a file, there or not; its folder is made
) -> Path:
    "Where a picture will go, refused before it is drawn if it cannot."
    path = as_path(name)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a file, as {path / 'picture.png'}")
    if path.suffix.lower() not in PICTURES:
        known = ", ".join(PICTURES)
        raise ValueError(f"{path}, expected a name with one of {known} at its end: {path}.png")
    writable_folder(path.parent)
    with suppress(FileNotFoundError):
        path.stat()  # a name that is too long
    return path


def write_new(
    path: Path,  # file to make
    data: bytes,  # all of its contents
    taken: Iterable[Path] = (),  # names of something else, whatever their contents
) -> Path:  # the file
    "Write a file and replace none: where another one lies the name gets a number; the very same one is left."
    for k in itertools.count(1):
        at = path.with_stem(f"{path.stem}-{k}") if k > 1 else path
        if at in taken:
            continue
        try:
            with at.open("xb") as f:
                f.write(data)
        except FileExistsError:
            if not at.is_file() or at.read_bytes() != data:
                continue
        except BaseException:
            at.unlink(missing_ok=True)
            raise
        return at
    raise AssertionError


# ---------------------------------------------------------------- bytes


def flush(
    path: Path,  # file, or directory
):
    "Force a file's bytes, or a directory's names, to the disk."
    if is_folder := path.is_dir():
        if WINDOWS:
            return  # it opens no directories, and keeps names by itself
    handle = os.open(
        path, os.O_RDWR if WINDOWS else os.O_RDONLY
    )  # there, what is read is not flushed
    try:
        os.fsync(handle)
    except OSError:
        if not is_folder:  # some file systems cannot flush a directory
            raise
    finally:
        os.close(handle)


def has_ended(
    pid: int,  # number of a process of this machine
) -> bool | None:  # None: nobody can say
    "Is there no process of this number?"
    if WINDOWS:  # where os.kill does kill, signal 0 or not
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def check_room(
    folder: Path,  # where files will be
    size: int,  # bytes they will take
    what: str,  # needs them; the error begins with it
):
    "Fail before the work if the disk cannot hold its result."
    if (free := shutil.disk_usage(folder).free) < size:
        raise OSError(errno.ENOSPC, f"{what}: {size} bytes needed, {free} free", str(folder))


@contextmanager
def locked(
    folder: str | Path,  # made if it is not there
    name: str = ".lock",  # of the file in it that is locked
    wait: bool = False,  # until the other process lets go; False: an error names that process
) -> Iterator[None]:
    "Keep other processes out during a block; the system lets go when this one dies."
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            _lock(file.fileno(), wait)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise CheckpointError(
                f"{folder} is in use by {owner}; wait, stop it, or use another directory"
            ) from None
        except OSError as e:  # a file system without locks
            warnings.warn(f"{folder} cannot be locked ({e}): see that one process uses it")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def _lock(handle: int, wait: bool):
    "Take the lock of an open file, which goes with the file; BlockingIOError: another process has it."
    try:
        import fcntl
    except ImportError:
        return _lock_on_windows(handle, wait)
    fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_on_windows(handle: int, wait: bool):
    "The same there: a byte far behind the text, since nobody can read a locked one."
    system: Any = importlib.import_module("msvcrt")
    os.lseek(handle, 1 << 30, os.SEEK_SET)
    while True:
        try:
            return system.locking(handle, system.LK_NBLCK, 1)
        except PermissionError as e:
            if not wait:
                raise BlockingIOError(*e.args) from None
            time.sleep(0.1)


def assets() -> Path:
    "The folder of files that ship with the package."
    here = Path(__file__).resolve().parents[1]
    if (here / "assets").is_dir():  # installed from a wheel
        return here / "assets"
    if (here.parent / "settings.ini").is_file() and (here.parent / "data").is_dir():
        return here.parent / "data"  # a checkout, or installed from one with -e
    raise FileNotFoundError(f"assets: no {here / 'assets'} and no data folder beside the package")


def cache_folder() -> Path:
    "Where catalogs are kept: $IMAGEN_NB_CACHE, or the user's cache; never beside the pictures unless so named."
    place = os.environ.get("IMAGEN_NB_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return as_path(place) if place else as_path(base) / "imagen_nb"


@contextmanager
def replaced(
    path: str | Path,  # file to make or to replace
) -> Iterator[IO[bytes]]:  # a new file, which takes its place when the block ends well
    "Write a file: all of it, or nothing changes."
    path = Path(path)
    new = path.with_name(
        f".{secrets.token_hex(8)}.new"
    )  # short: `path.name` may be as long as can be
    try:
        with new.open("xb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def replace_text(
    path: str | Path,  # file to make or to replace
    text: str,  # all of its contents
):
    "Write a text file: all of it, or nothing changes."
    with replaced(path) as f:
        f.write(text.encode())


def read_rows(
    path: str | Path,  # file of JSON lines
) -> tuple[list[dict], list[int]]:  # rows with a step; numbers of the lines that are none
    "A log as far as it can be read: a kill may cut its last line; no file has no rows."
    rows: list[dict] = []
    bad: list[int] = []
    with suppress(FileNotFoundError):
        for i, line in enumerate(Path(path).read_bytes().splitlines(), 1):
            with suppress(ValueError):
                row = json.loads(line.decode(errors="replace"))
                if isinstance(row, dict) and "step" in row:
                    rows.append(row)
                    continue
            bad.append(i)
    return rows, bad


def append(
    path: Path,  # text file, made if it is not there
    line: str,  # to add
) -> bool:  # False: the disk did not take it, and the file is as before
    "Add a line, whole or not at all."
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8") as f:
            f.write(line)
    except OSError:
        with suppress(OSError):
            os.truncate(path, size)
        return False
    return True


def save_png(
    picture,  # PIL image
    path: Path,  # file; its folder is made
) -> bool:  # False: the disk did not take it, and there is no file
    "Save a picture, whole or not at all."
    try:
        path.parent.mkdir(exist_ok=True)
        picture.save(path)
    except OSError:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return False
    return True
