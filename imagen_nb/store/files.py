"""Files that are whole or as before, locks, JSON lines, room on the disk, and where things lie."""

import errno
import json
import os
import platform
import secrets
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

__all__ = [
    "CheckpointError",
    "append",
    "assets",
    "cache_folder",
    "check_room",
    "flush",
    "locked",
    "read_rows",
    "replace_text",
    "replaced",
    "save_png",
]


class CheckpointError(ValueError):
    "What is stored is missing, cut, altered, of another format, or in use."


def flush(
    path: Path,  # file, or directory
):
    "Force a file's bytes, or a directory's names, to the disk."
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some file systems cannot flush a directory
            raise
    finally:
        os.close(handle)


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
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise CheckpointError(
                f"{folder} is in use by {owner}; wait, stop it, or use another directory"
            ) from None
        except (ImportError, OSError) as e:  # Windows; a file system without locks
            warnings.warn(f"{folder} cannot be locked ({e}): see that one process uses it")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


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
    return Path(place) if place else Path(base) / "imagen_nb"


@contextmanager
def replaced(
    path: str | Path,  # file to make or to replace
) -> Iterator[IO[bytes]]:  # a new file, which takes its place when the block ends well
    "Write a file: all of it, or nothing changes."
    path = Path(path)
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
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
